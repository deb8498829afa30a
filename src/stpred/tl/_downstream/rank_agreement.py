from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred import metrics
from stpred._core.checks import InputError, fraction_of, listing, whole
from stpred._core.names import look_up, names_of
from stpred.metrics import benjamini_hochberg

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

ALL = "all"
"""The group of all slides."""

MIN_GENES = 3
MIN_SLIDES = 4


def rank_agreement(
    predicted: pd.DataFrame,
    measured: pd.DataFrame,
    *,
    n_top: int = 20,
    groups: Mapping[str, str] | None = None,
    by: Mapping[str, str] | None = None,
    n_bootstrap: int = 2000,
    n_permutations: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare two sets of differential ranks (DR-scores) of the same genes and slides: predicted and measured ones.

    Over the genes: how the scores, averaged over slides, correlate, and how many of the `n_top` genes of highest (and
    of lowest) score both have. The null shuffles the genes of one side, as for two lists that have nothing to do with
    each other. It takes genes for independent; co-expressed ones are not, so that its p-values are too small where many
    genes move together. The interval draws slides, or donors, with replacement, the same for both sides.

    Parameters
    ----------
    predicted, measured
        Frames of :func:`stpred.tl.differential_rank` of the same slides and risk, on the same scale; genes that only
        one has are left out.
    n_top
        Genes in a list of the highest, and of the lowest, scores.
    groups
        Donor of each slide, drawn with all slides; None draws slides.
    by
        Subtype (or any group) of each slide: further rows are of these slides alone.
    n_bootstrap, n_permutations
        Draws of slides and of genes.
    level
        Of the interval.
    seed
        Of the draws.

    Returns
    -------
    DataFrame with a row for all slides and one per group of `by`: ``group``, ``spearman``, ``spearman_low``,
    ``spearman_high``, ``pearson``, ``p_value`` (one-sided, of Spearman against the null), ``top_shared`` and
    ``bottom_shared`` (genes in both lists), ``top_low``, ``top_high`` (interval), ``top_expected`` (genes that two
    random lists share), ``top_p_value`` and ``bottom_p_value`` (hypergeometric), ``n_genes``, ``n_slides``,
    ``n_donors``. Intervals of a single donor are NaN. ``attrs["top"]`` and ``attrs["bottom"]`` hold by group the genes
    that both lists have, ``attrs["genes"]`` a frame's columns by gene for all slides: ``gene``, ``predicted``,
    ``measured``, ``correlation`` over the slides (Spearman, from 4 slides on), ``p_value`` (one-sided) and ``p_bh``.

    Raises
    ------
    InputError
        If the frames are not of differential ranks, of other slides or another scale, or share fewer than 3 genes.

    References
    ----------
    Schmauch et al. (2025), A deep learning-based multiscale integration of spatial omics with tumor morphology,
    Nature Communications: a Spearman correlation of 0.62 over 117 genes on 15 slides, and the 20 first genes of
    either side.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(2, size_um=(800, 800), n_genes=20)
    >>> risk = {n: s["spots_counts"].layers["expected"][:, 3] for n, s in slides.items()}
    >>> found = st.tl.differential_rank(slides, "spots_counts", risk, n_top=10)
    >>> again = st.tl.differential_rank(slides, "spots_counts", risk, n_top=12)
    >>> bool(st.tl.rank_agreement(found, again, n_top=5)["spearman"][0] > 0.9)
    True
    """
    import pandas as pd

    counts = {"n_top": n_top, "n_bootstrap": n_bootstrap, "n_permutations": n_permutations}
    n_top, n_bootstrap, n_permutations = (whole(v, name=n) for n, v in counts.items())
    level = fraction_of(level, name="level")
    ours, theirs = _scores(predicted, "predicted"), _scores(measured, "measured")
    if ours.index.tolist() != theirs.index.tolist():
        raise InputError(
            f"`predicted` is of the slides {listing(ours.index)}, `measured` of {listing(theirs.index)}; both must be "
            "of the same."
        )
    scales = [frame.attrs.get("scale") for frame in (predicted, measured)]
    if scales[0] != scales[1]:
        raise InputError(
            f"`predicted` ranks {scales[0]!r} and `measured` {scales[1]!r}; rank both on one scale (the `scale` of "
            "stpred.tl.differential_rank)."
        )
    genes = ours.columns[ours.columns.isin(theirs.columns)]
    if len(genes) < max(MIN_GENES, n_top):
        raise InputError(
            f"The frames share {len(genes)} genes; {MIN_GENES}, and the `n_top`={n_top} of a list, are needed."
        )
    x, y = ours[genes].to_numpy(), theirs[genes].to_numpy()
    slides = ours.index.tolist()
    donors = np.array(slides if groups is None else names_of(look_up(groups, slides, what="groups").values()))
    kinds = {ALL: np.ones(len(slides), dtype=bool)}
    if by is not None:
        of = np.array(names_of(look_up(by, slides, what="by").values(), what="group"))
        if ALL in of:
            raise InputError(f"A group of `by` is called {ALL!r}, as the row of all slides is; rename it.")
        kinds |= {str(k): of == k for k in np.unique(of)}
    rows: list[dict[str, Any]] = []
    lists: dict[str, dict[str, list[str]]] = {"top": {}, "bottom": {}}
    for kind, rows_of in kinds.items():
        args = (x[rows_of], y[rows_of], donors[rows_of])
        row, shared = _agreement(*args, n_top=n_top, n=(n_bootstrap, n_permutations), level=level, seed=seed)
        rows.append({"group": kind, **row})
        for end, members in shared.items():
            lists[end][kind] = genes[members].tolist()
    result = pd.DataFrame(rows)
    result.attrs = {**lists, "n_top": n_top, "scale": scales[0], "genes": _by_gene(genes, x, y)}
    return result


def _scores(frame: Any, name: str) -> pd.DataFrame:
    """Return the (slides, genes) scores of a frame of differential ranks, slides in the order of their names."""
    import pandas as pd

    if not isinstance(frame, pd.DataFrame) or "gene" not in frame or "per_slide" not in frame.attrs:
        raise InputError(f"`{name}` must be a frame of stpred.tl.differential_rank, with its attrs.")
    by_slide = frame.attrs["per_slide"]
    if any(len(scores) != len(frame) for scores in by_slide.values()):
        raise InputError(f"`{name}` has other rows than when it was made; give it as stpred.tl.differential_rank did.")
    return pd.DataFrame(by_slide, index=frame["gene"].astype(str)).T.sort_index()


def _agreement(
    x: NDArray[np.float64], y: NDArray[np.float64], donors: NDArray[Any], *, n_top: int, n: tuple[int, int],
    level: float, seed: int,
) -> tuple[dict[str, Any], dict[str, NDArray[np.int64]]]:  # fmt: skip
    """Return what a row says of (S, G) scores of both sides, and which genes both lists have."""
    from scipy.stats import hypergeom

    rng = np.random.default_rng(seed)
    means = x.mean(axis=0), y.mean(axis=0)
    shared = {"top": shared_top(*means, n_top), "bottom": shared_top(-means[0], -means[1], n_top)}
    rho = _spearman(means[0][None], means[1][None])[0]
    null = _spearman(means[0][None], np.stack([rng.permutation(means[1]) for _ in range(n[1])]))
    names, of = np.unique(donors, return_inverse=True)
    ends = np.full((2, 2), np.nan)
    if len(names) > 1:
        times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=n[0])[:, of]
        share = times / times.sum(axis=1, keepdims=True)
        drawn = share @ x, share @ y
        tops = [len(shared_top(a, b, n_top)) for a, b in zip(*drawn, strict=True)]
        quantiles = [(1 - level) / 2, (1 + level) / 2]
        ends = np.array([np.nanquantile(v, quantiles) for v in (_spearman(*drawn), tops)])
    chance = hypergeom(x.shape[1], n_top, n_top)
    return {
        "spearman": rho,
        "spearman_low": ends[0, 0],
        "spearman_high": ends[0, 1],
        "pearson": float(metrics.pearson(means[0][:, None], means[1][:, None])[0]),
        "p_value": float((1 + (null >= rho - 1e-12).sum()) / (1 + len(null))) if np.isfinite(rho) else np.nan,
        "top_shared": len(shared["top"]),
        "bottom_shared": len(shared["bottom"]),
        "top_low": ends[1, 0],
        "top_high": ends[1, 1],
        "top_expected": float(chance.mean()),
        "top_p_value": float(chance.sf(len(shared["top"]) - 1)),
        "bottom_p_value": float(chance.sf(len(shared["bottom"]) - 1)),
        "n_genes": x.shape[1],
        "n_slides": len(x),
        "n_donors": len(names),
    }, shared


def shared_top(first: NDArray[np.float64], second: NDArray[np.float64], n: int) -> NDArray[np.int64]:
    """Return the genes that are among the `n` of highest score on both sides, highest of the first side first."""
    lists = [np.argsort(-v, kind="stable")[:n] for v in (first, second)]
    return lists[0][np.isin(lists[0], lists[1])]


def _spearman(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (n,) correlations of the ranks of rows; NaN where a row does not vary."""
    from scipy.stats import rankdata

    ranks = [rankdata(v, axis=1) - (v.shape[1] + 1) / 2 for v in (x, y)]
    size = np.sqrt((ranks[0] ** 2).sum(axis=1) * (ranks[1] ** 2).sum(axis=1))
    return np.divide((ranks[0] * ranks[1]).sum(axis=1), size, out=np.full(len(size), np.nan), where=size > 0)


def _by_gene(genes: pd.Index, x: NDArray[np.float64], y: NDArray[np.float64]) -> dict[str, list[Any]]:
    """Return the columns of a table of genes over all slides."""
    from scipy.stats import t

    correlation = p = np.full(len(genes), np.nan)
    if len(x) >= MIN_SLIDES:
        correlation = metrics.spearman(x, y)
        freedom = len(x) - 2
        with np.errstate(divide="ignore"):
            p = t.sf(correlation * np.sqrt(freedom / np.maximum(1 - correlation**2, 0)), freedom)
    columns = {"predicted": x.mean(axis=0), "measured": y.mean(axis=0), "correlation": correlation, "p_value": p}
    columns["p_bh"] = benjamini_hochberg(p)
    return {"gene": genes.tolist(), **{name: values.tolist() for name, values in columns.items()}}

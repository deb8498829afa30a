"""Which genes to predict: scores of how much a gene is worth predicting, and the choice by a rule.

Kernels take (n, G) raw counts, dense or sparse, and return one score per gene, higher being better and NaN where a gene
cannot be scored. `select` applies a rule to several slides; the caller passes training slides only.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stpred._core.checks import InputError, listing
from stpred._core.expression.counts import check_counts
from stpred._core.expression.gene_names import mismatch, refuse_duplicates, shared_genes
from stpred._core.specs import GeneRule
from stpred._core.targets import totals, transform

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["hvg", "mean_counts", "morans_i", "rmax", "select", "shared_genes", "svg"]

logger = logging.getLogger("stpred")

MORAN_FLOOR = 1e-3
"""What a Moran's I of zero or less counts as in the geometric mean over slides."""

_NEIGHBOURS = 6
_BLOCK = 2048  # genes made dense at once
_LOESS_SPANS = (0.3, 0.6, 1.0)
_LOESS_POINTS = 50  # with fewer distinct means an odd gene is its own trend (and below 5 the compiled fit crashes)


def mean_counts(slides: Sequence[Any]) -> NDArray[np.float64]:
    """Mean count of each gene over all rows of all slides.

    Parameters
    ----------
    slides
        (n_i, G) raw counts of each slide, dense or sparse.

    Returns
    -------
    (G,) float64.

    Examples
    --------
    >>> import numpy as np
    >>> from stpred.genes import mean_counts
    >>> mean_counts([np.array([[2, 0]]), np.array([[4, 0], [0, 3]])])
    array([2., 1.])
    """
    total = np.sum([np.asarray(c.sum(axis=0), dtype=np.float64).ravel() for c in slides], axis=0)
    return total / max(1, sum(c.shape[0] for c in slides))


def rmax(counts: Any) -> NDArray[np.float64]:
    """Highest Pearson correlation with raw counts that a perfect predictor of the Poisson rate could reach.

    ``sqrt(1 - mean / variance)`` over the rows of one slide, since counts have the variance of the rate plus its mean
    (Schmauch et al., MISO). A gene no more variable than Poisson noise gets 0.

    Parameters
    ----------
    counts
        (n, G) raw counts of one slide, dense or sparse.

    Returns
    -------
    (G,) float64 in [0, 1); NaN for genes without counts.

    Examples
    --------
    >>> import numpy as np
    >>> from stpred.genes import rmax
    >>> rmax(np.array([[0, 1, 0], [0, 0, 0], [9, 1, 0]])).round(2)
    array([0.94, 0.  ,  nan])
    """
    mean, variance = _moments(counts)
    with np.errstate(invalid="ignore", divide="ignore"):
        ceiling = np.sqrt(np.clip(1.0 - mean / variance, 0.0, None))
    return np.where(mean > 0, ceiling, np.nan)


def hvg(slides: Sequence[Any], *, n_top: int | None = None) -> NDArray[np.float64]:
    """Rank genes by variance beyond the mean-variance trend of each slide, combined as in Seurat v3.

    The normalised variance per slide is scanpy's (``flavor="seurat_v3"``); genes are ordered by their median rank among
    the slides where they are in the first `n_top`, then by the number of those slides, as scanpy does with a
    ``batch_key``. Where the trend cannot be fitted its span is widened; a slide with fewer than 50 distinct mean counts
    (few genes or spots) has no trend to speak of, and its genes are ranked by variance over mean.

    Parameters
    ----------
    slides
        (n_i, G) raw counts of each slide, dense or sparse.
    n_top
        Genes that are asked for; None ranks all.

    Returns
    -------
    (G,) float64: minus the median rank (0 is the most variable gene of every slide), raised by less than half a rank
    for genes that are in the first `n_top` of more slides; NaN for genes that are so on no slide.

    Examples
    --------
    >>> import numpy as np
    >>> from stpred.genes import hvg
    >>> counts = np.random.default_rng(0).poisson(np.linspace(1, 9, 80), size=(50, 80))
    >>> counts[::2, 40], counts[1::2, 40] = 10, 0
    >>> int(np.nanargmax(hvg([counts])))
    40
    """
    from scipy.stats import rankdata

    variances = np.array([_normalised_variance(c) for c in slides])
    ranks = rankdata(-variances, method="min", axis=1) - 1.0
    ranks[(ranks >= (variances.shape[1] if n_top is None else n_top)) | (variances <= 0)] = np.nan
    n_slides = np.isfinite(ranks).sum(axis=0)
    ranked = n_slides > 0
    scores = np.full(variances.shape[1], np.nan)
    scores[ranked] = n_slides[ranked] / (2.0 * (len(slides) + 1)) - np.nanmedian(ranks[:, ranked], axis=0)
    return scores


def morans_i(counts: Any, coords_um: ArrayLike) -> NDArray[np.float64]:
    """Moran's I of log1p CP10k on one slide, from squidpy, over the six nearest neighbours.

    Parameters
    ----------
    counts
        (n, G) raw counts, dense or sparse.
    coords_um
        (n, 2) centres in micrometres.

    Returns
    -------
    (G,) float64; NaN for genes that do not vary.

    Examples
    --------
    >>> import numpy as np
    >>> from stpred.genes import morans_i
    >>> xy = np.mgrid[:8, :8].reshape(2, -1).T * 100.0
    >>> counts = np.random.default_rng(0).poisson(5, size=(64, 3))
    >>> counts[:, 1] += 20 * (xy[:, 0] > 350)
    >>> int(morans_i(counts, xy).argmax())
    1
    """
    import squidpy as sq
    from anndata import AnnData
    from scipy.sparse import csr_matrix

    coords = np.asarray(coords_um, dtype=np.float64)
    if coords.shape != (counts.shape[0], 2):
        raise InputError(f"`coords_um` must be ({counts.shape[0]}, 2), one row per row of counts, got {coords.shape}.")
    library, scores = totals(counts), np.full(counts.shape[1], np.nan)
    if len(coords) < 3:
        return scores
    graph = _neighbour_graph(coords, k=min(_NEIGHBOURS, len(coords) - 1))
    matrix = counts.tocsc() if hasattr(counts, "tocsc") else np.asarray(counts)
    for start in range(0, scores.size, _BLOCK):
        values = transform(matrix[:, start : start + _BLOCK], library, target="log1p_cp10k")
        varies = np.flatnonzero(np.ptp(values, axis=0) > 0)
        if varies.size:
            data = AnnData(csr_matrix(values[:, varies]), obsp={"spatial_connectivities": graph})
            with np.errstate(invalid="ignore", divide="ignore"):  # squidpy's p-values on tiny slides; only I is used
                table = sq.gr.spatial_autocorr(data, mode="moran", copy=True, show_progress_bar=False)
            scores[start + varies] = table["I"].reindex(data.var_names).to_numpy(dtype=np.float64)
    return scores


def svg(slides: Sequence[Any], coords_um: Sequence[ArrayLike]) -> NDArray[np.float64]:
    """Geometric mean over slides of Moran's I, each slide with its own neighbours.

    A Moran's I of zero or less counts as `MORAN_FLOOR`, so that one slide without spatial structure lowers a gene and
    does not remove it. Slides on which a gene does not vary are left out of its mean.

    Parameters
    ----------
    slides
        (n_i, G) raw counts of each slide, dense or sparse.
    coords_um
        (n_i, 2) centres in micrometres of each slide.

    Returns
    -------
    (G,) float64; NaN for genes that vary on no slide.

    Examples
    --------
    >>> import numpy as np
    >>> from stpred.genes import svg
    >>> xy = np.mgrid[:8, :8].reshape(2, -1).T * 100.0
    >>> counts = np.random.default_rng(0).poisson(5, size=(64, 3))
    >>> counts[:, 1] += 20 * (xy[:, 0] > 350)
    >>> int(svg([counts, counts[::-1]], [xy, xy[::-1]]).argmax())
    1
    """
    each = np.array([morans_i(c, xy) for c, xy in zip(slides, coords_um, strict=True)])
    return np.exp(_mean_over_slides(np.log(np.clip(each, MORAN_FLOOR, None))))


def select(
    rule: GeneRule,
    counts: Mapping[str, Any],
    var_names: Sequence[str],
    *,
    coords_um: Mapping[str, ArrayLike] | None = None,
) -> pd.DataFrame:
    """Choose the genes of a rule from training slides.

    Parameters
    ----------
    rule
        What to choose.
    counts
        (n_i, G) raw counts of each *training* slide, dense or sparse, with the genes of `shared_genes`.
    var_names
        (G,) names of the columns, distinct.
    coords_um
        (n_i, 2) centres of each slide in micrometres; needed by ``"svg"`` only.

    Returns
    -------
    A frame indexed by gene, best first (equal scores by name; an explicit list in its own order), with ``score`` (of
    the rule; mean counts for ``"all"`` and ``"list"``), ``rmax`` (mean over the slides that have counts of the gene),
    ``mean`` (mean count over all rows) and ``n_slides`` (slides with counts of the gene). Fewer than ``rule.n`` genes
    come back when fewer reach ``rule.min_total`` and have a score; genes without any count never do.

    Examples
    --------
    >>> import numpy as np
    >>> import stpred as st
    >>> from stpred.genes import select
    >>> counts = {"s1": np.array([[9, 1, 0], [8, 0, 0]]), "s2": np.array([[7, 2, 0]])}
    >>> select(st.GeneRule("mean", n=1), counts, ["A", "B", "C"])["mean"].to_dict()
    {'A': 8.0}
    """
    import pandas as pd

    names = [str(g) for g in var_names]
    _check_select(counts, names)
    slides = list(counts.values())
    each_rmax = np.array([rmax(c) for c in slides])
    detected = np.array([np.asarray(c.sum(axis=0)).ravel() > 0 for c in slides])
    mean = mean_counts(slides)
    frame = pd.DataFrame(
        {
            "score": _score(rule, counts, coords_um, mean=mean, each_rmax=each_rmax),
            "rmax": _mean_over_slides(each_rmax),
            "mean": mean,
            "n_slides": detected.sum(axis=0),
        },
        index=pd.Index(names, name="gene"),
    )
    if rule.method == "list":
        return frame.loc[_listed(rule.genes or (), names)]
    total = mean * sum(c.shape[0] for c in slides)
    frame = frame[(total > 0) & (total >= rule.min_total - 1e-6) & frame["score"].notna().to_numpy()]
    if frame.empty:
        raise InputError(
            f"None of the {len(names)} shared genes can be chosen by {rule.method!r} with at least "
            f"{rule.min_total:g} counts over {len(slides)} training slides."
        )
    return frame.sort_index().sort_values("score", ascending=False, kind="stable").head(rule.n or len(frame))


def _score(
    rule: GeneRule,
    counts: Mapping[str, Any],
    coords_um: Mapping[str, ArrayLike] | None,
    *,
    mean: NDArray[np.float64],
    each_rmax: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the (G,) score of a rule over all slides."""
    if rule.method == "rmax":
        return _mean_over_slides(each_rmax)
    if rule.method == "hvg":
        return hvg(list(counts.values()), n_top=rule.n)
    if rule.method == "svg":
        missing = [s for s in counts if coords_um is None or s not in coords_um]
        if coords_um is None or missing:
            raise InputError(f"The gene rule 'svg' needs coordinates; `coords_um` lacks the slides {listing(missing)}.")
        return svg(list(counts.values()), [coords_um[s] for s in counts])
    return mean


def _check_select(counts: Mapping[str, Any], names: list[str]) -> None:
    if not counts:
        raise InputError("No training slide was given to choose genes from.")
    refuse_duplicates(names, where="`var_names`", kind="gene names")
    for slide, matrix in counts.items():
        if matrix.shape[1] != len(names):
            raise InputError(f"Slide {slide!r} has {matrix.shape[1]} genes, but there are {len(names)} gene names.")
        check_counts(matrix, what=f"counts of slide {slide!r}")


def _listed(wanted: Sequence[str], names: list[str]) -> list[str]:
    """Return the explicit list if all of it is measured."""
    known = set(names)
    missing = [g for g in wanted if g not in known]
    if missing:
        hint = mismatch(missing, names)
        if hint is None and len(wanted) == 1:  # one name alone may be meant as a rule
            hint = f"nor is it a gene rule: {listing(GeneRule.METHODS)}"
        raise InputError(
            f"{len(missing)} of the {len(wanted)} listed genes are not measured on every training slide: "
            f"{listing(missing)}; measured are for example {listing(names[:3])}{'; ' + hint if hint else ''}."
        )
    return list(wanted)


def _moments(counts: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean and the unbiased variance of each column."""
    n = counts.shape[0]
    values = counts.astype(np.float64)
    squares = values.multiply(values) if hasattr(values, "multiply") else np.square(values)
    mean = np.asarray(values.sum(axis=0)).ravel() / max(n, 1)
    second = np.asarray(squares.sum(axis=0)).ravel()
    if n < 2:
        return mean, np.full_like(mean, np.nan)
    return mean, np.clip(second - n * np.square(mean), 0.0, None) / (n - 1)


def _mean_over_slides(each: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average (slides, G) scores over the slides that have one."""
    known = np.isfinite(each)
    with np.errstate(invalid="ignore"):
        return np.where(known, each, 0.0).sum(axis=0) / np.where(known.any(axis=0), known.sum(axis=0), np.nan)


def _neighbour_graph(coords: NDArray[np.float64], *, k: int) -> Any:
    """Return the (n, n) csr_matrix that links each row to its k nearest others."""
    from scipy.sparse import csr_matrix
    from scipy.spatial import cKDTree

    n = len(coords)
    near = cKDTree(coords).query(coords, k=k + 1)[1]
    other = near != np.arange(n)[:, None]
    other[other.all(axis=1), -1] = False  # rows at one place may hide each other
    return csr_matrix((np.ones(n * k), (np.repeat(np.arange(n), k), near[other])), shape=(n, n))


def _normalised_variance(counts: Any) -> NDArray[np.float64]:
    """Return the variance of each gene relative to the trend of the slide, as Seurat v3 does it in scanpy."""
    import scanpy as sc
    from anndata import AnnData
    from scipy.sparse import csr_matrix

    mean, variance = _moments(counts)
    varies = variance > 0
    if len(np.unique(mean[varies].round(9))) >= _LOESS_POINTS:
        data = AnnData(csr_matrix(counts, dtype=np.float64))
        for span in _LOESS_SPANS:
            try:
                found = sc.pp.highly_variable_genes(
                    data, flavor="seurat_v3", n_top_genes=data.n_vars, span=span, check_values=False, inplace=False
                )
            except ValueError as error:  # the local fit is singular: too few points in its span
                logger.debug("loess with span %s failed: %s", span, error)
                continue
            scores = found["variances_norm"].to_numpy(dtype=np.float64)
            if np.isfinite(scores[varies]).all():
                return np.where(varies, scores, 0.0)
    logger.info("A slide has too few genes for a mean-variance trend; they are ranked by variance over mean.")
    return np.divide(variance, mean, out=np.zeros_like(mean), where=varies)

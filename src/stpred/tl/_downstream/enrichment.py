from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stpred._core import keys
from stpred._core.checks import InputError, listing, one_of, whole
from stpred._core.expression.counts import duplicates
from stpred._core.expression.gene_names import mismatch
from stpred.metrics import benjamini_hochberg
from stpred.tl._downstream.gene_sets import need_decoupler, read_gene_sets, sets_among

logger = logging.getLogger("stpred")

METHODS = ("ora", "gsea")

MAX_FRACTION = 0.5
"""Share of the background from which on a list of genes says nothing."""


def enrichment(
    genes: Iterable[str] | pd.Series | pd.DataFrame,
    gene_sets: Mapping[str, Iterable[str]] | pd.DataFrame | str | Path,
    *,
    background: Any = None,
    method: str | None = None,
    min_size: int = 5,
    n_permutations: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Tell which gene sets a list of genes is rich in, or which lie at the ends of a ranking.

    Parameters
    ----------
    genes
        A list of genes, for over-representation; a Series of scores indexed by gene, for GSEA; or the frame of
        :func:`stpred.tl.markers`, of which each group is asked about in turn.
    gene_sets
        Mapping of names to genes, frame in long form (``source``, ``target``), path of a .gmt, .csv or .tsv file, or
        ``"hallmark"`` or ``"progeny"`` (loaded from the net through decoupler).
    background
        Genes that the list was chosen from: a list of them, or the table (AnnData) with all of its genes. Required for
        a list, since nothing is measured or predicted genome-wide; the frame of markers brings its own.
    method
        ``"ora"``, over-representation by the hypergeometric test; or ``"gsea"``. None: ``"gsea"`` for scores,
        ``"ora"`` otherwise. GSEA of markers needs all genes: ``markers(..., n_genes=None)``.
    min_size
        Sets with fewer genes in the background (or ranking) are left out.
    n_permutations, seed
        Of GSEA: random sets of the same size that a score is compared with.

    Returns
    -------
    DataFrame with a row per set (and ``group``), by rising `p`. Columns of both: ``set``; ``size``, its genes in the
    background; ``p`` and ``p_adj`` (Benjamini and Hochberg over the sets, within a group); ``genes``, those that make
    it, with ``";"`` between. Of over-representation: ``n_genes`` of the list in the set, ``expected`` and
    ``fold_enrichment``. Of GSEA: ``es`` and ``nes``, the enrichment score as it is and over the mean of random ones of
    its sign; ``genes`` are then the leading edge.

    Raises
    ------
    InputError
        If there is no background, sets and genes do not meet, the list is not part of the background or more than half
        of it, scores are not finite or not unique, or the method does not suit what was given.

    Notes
    -----
    The over-representation is tested one-sidedly. Both tests take genes to be independent; sets whose genes go together
    come out too significant. GSEA is decoupler's, with genes permuted, and one is added to the count of random sets
    that reach the score, so that `p` is never 0.

    References
    ----------
    Subramanian et al. 2005, "Gene set enrichment analysis", PNAS. Badia-i-Mompel et al. 2022, "decoupleR",
    Bioinformatics Advances.

    Examples
    --------
    >>> import stpred as st
    >>> measured = [f"G{i}" for i in range(100)]
    >>> sets = {"first": measured[:10], "last": measured[-10:]}
    >>> found = st.tl.enrichment(["G1", "G2", "G3", "G50"], sets, background=measured)
    >>> found["set"].tolist(), found["genes"][0], float(found["fold_enrichment"][0])
    (['first', 'last'], 'G1;G2;G3', 7.5)
    """
    one_of(method, (*METHODS, None), name="method")
    least = whole(min_size, name="min_size")
    sets = read_gene_sets(gene_sets)
    if isinstance(genes, pd.DataFrame):
        return _of_markers(genes, sets, background=background, method=method or "ora", least=least,
                           n=n_permutations, seed=seed)  # fmt: skip
    scored = isinstance(genes, pd.Series) and pd.api.types.is_numeric_dtype(genes)
    method = method or ("gsea" if scored else "ora")
    if method == "gsea":
        if not scored:
            raise InputError("GSEA needs a Series of scores indexed by gene; for a list of genes take method='ora'.")
        if background is not None:
            raise InputError("GSEA needs no `background`: it is the genes that have a score.")
        return gsea(genes, sets, min_size=least, n_permutations=n_permutations, seed=seed)  # type: ignore[arg-type]
    if scored:
        raise InputError(
            "Over-representation needs a list of genes, not scores; pass scores.index[...] of your choice."
        )
    if isinstance(genes, str) or not isinstance(genes, Iterable):
        raise InputError(f"`genes` must be a list of genes, a Series of scores or a frame of markers, got {genes!r}.")
    return ora([str(g) for g in genes], sets, background=_background(background), min_size=least)


def ora(genes: list[str], sets: Mapping[str, list[str]], *, background: list[str], min_size: int = 5) -> pd.DataFrame:
    """Return the hypergeometric test of each set; see `enrichment`."""
    from scipy.stats import hypergeom

    universe, chosen = set(background), set(genes)
    if not chosen:
        raise InputError("`genes` is empty; give at least one.")
    if away := sorted(chosen - universe):
        if len(away) == len(chosen):
            hint = mismatch(away, background)
            raise InputError(
                f"None of the {len(chosen)} genes (such as {listing(away[:3])}) is in the background of "
                f"{len(universe)} (such as {listing(background[:3])}){'; ' + hint if hint else ''}."
            )
        logger.warning("%d of %d genes are not in the background and are left out: %s.", len(away), len(chosen),
                       listing(away))  # fmt: skip
        chosen &= universe
    if len(chosen) > MAX_FRACTION * len(universe):
        raise InputError(
            f"The list holds {len(chosen)} of the {len(universe)} genes of the background, so no set can stand out; "
            "give the top genes only, or scores for GSEA."
        )
    rows = []
    for name, members in sets_among(sets, background, what="the background", min_size=min_size).items():
        shared = [g for g in members if g in chosen]
        expected = len(members) * len(chosen) / len(universe)
        p = float(hypergeom.sf(len(shared) - 1, len(universe), len(members), len(chosen)))
        rows.append((name, len(members), len(shared), expected, len(shared) / expected, min(p, 1.0), ";".join(shared)))
    found = pd.DataFrame(rows, columns=["set", "size", "n_genes", "expected", "fold_enrichment", "p", "genes"])
    return _adjusted(found)


def gsea(
    scores: pd.Series, sets: Mapping[str, list[str]], *, min_size: int = 5, n_permutations: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Return the enrichment score of each set in a ranking; see `enrichment`."""
    dc = need_decoupler()
    times = whole(n_permutations, name="n_permutations")
    if repeated := duplicates(scores.index):
        raise InputError(f"Genes have more than one score: {listing(repeated)}.")
    values = scores.to_numpy(dtype=np.float64)
    if not np.isfinite(values).all():
        raise InputError(f"{int((~np.isfinite(values)).sum())} of {len(values)} scores are NaN or infinite; drop them.")
    if not np.any(values):
        raise InputError("All scores are 0, so there is no ranking.")
    names = scores.index.astype(str).to_numpy()
    kept = sets_among(sets, list(names), what="the scores", min_size=min_size)
    if whole_list := [name for name, members in kept.items() if len(members) == len(names)]:
        raise InputError(f"Sets hold every gene that has a score: {listing(whole_list)}; leave them out.")
    network = pd.DataFrame([(s, g) for s, members in kept.items() for g in members], columns=["source", "target"])
    order = np.argsort(-values, kind="stable")  # ranked here, so that ties stay in the order that was given
    values, names = values[order], names[order]
    sources, *index = dc.pp.idxmat(names, network)
    row = values[None]
    plain = dc.mt.gsea.func(row, *index, times=0)[0][0]
    # decoupler takes a seed of 0 for none, and then permutes nothing.
    nes, p = (part[0] for part in dc.mt.gsea.func(row, *index, times=times, seed=int(seed) + 1))
    found = pd.DataFrame({
        "set": sources.astype(str),
        "size": [len(kept[s]) for s in sources],
        "es": plain,
        "nes": nes,
        # decoupler's p is over the permutations of the same sign, about half of all: one is added to these.
        "p": np.minimum((p * times + 2) / (times + 2), 1),
        "genes": [";".join(_leading(values, names, set(kept[s]))) for s in sources],
    })  # fmt: skip
    return _adjusted(found)


def _leading(values: np.ndarray, names: np.ndarray, members: set[str]) -> list[str]:
    """Return the genes of a set up to where its running sum is farthest from 0, of ranked values."""
    inside = np.array([g in members for g in names])
    up = np.where(inside, np.abs(values), 0.0)
    total = up.sum()
    if total == 0:
        return []
    running = np.cumsum(up / total - np.where(inside, 0.0, 1 / (~inside).sum()))
    peak = int(np.abs(running).argmax())
    part = slice(None, peak + 1) if running[peak] > 0 else slice(peak, None)
    return [str(g) for g in names[part][inside[part]]]


def _of_markers(
    frame: pd.DataFrame, sets: Mapping[str, list[str]], *, background: Any, method: str, least: int, n: int, seed: int
) -> pd.DataFrame:
    """Return what is found of each group of markers."""
    if lacking := {"group", "gene", "score"} - set(frame.columns):
        raise InputError(
            f"A frame of markers has the columns 'group', 'gene' and 'score'; this one lacks "
            f"{listing(sorted(lacking))} (it has {listing(frame.columns)})."
        )
    known = frame.attrs.get(keys.UNS, {}).get("genes")
    of_group: Callable[[pd.DataFrame], pd.DataFrame]
    if method == "ora":
        universe = _background(known if background is None else background)

        def of_group(part: pd.DataFrame) -> pd.DataFrame:
            return ora(part.gene[part.score > 0].astype(str).tolist(), sets, background=universe, min_size=least)
    else:
        if known is not None and len(frame) < len(known) * frame.group.nunique():
            raise InputError("GSEA ranks all genes; make the markers with n_genes=None.")

        def of_group(part: pd.DataFrame) -> pd.DataFrame:
            scores = pd.Series(part.score.to_numpy(), index=part.gene.to_numpy())
            return gsea(scores, sets, min_size=least, n_permutations=n, seed=seed)

    parts = []
    for group, part in frame.groupby("group", sort=False, observed=True):
        if method == "ora" and not (part.score > 0).any():
            logger.info("Group %r has no gene that is higher than elsewhere.", group)
            continue
        found = of_group(part)
        found.insert(0, "group", group)
        parts.append(found)
    if not parts:
        raise InputError("No group of the markers has a gene that is higher than elsewhere.")
    return pd.concat(parts, ignore_index=True)


def _background(given: Any) -> list[str]:
    from anndata import AnnData

    if given is None:
        raise InputError(
            "Over-representation needs `background`, the genes that the list was chosen from: the table (AnnData) or a "
            "list of its genes. Against the whole genome any list of measured genes looks enriched."
        )
    if isinstance(given, str) or not isinstance(given, (AnnData, Iterable)):
        raise InputError(f"`background` must be a table (AnnData) or a list of genes, got {given!r}.")
    return list(dict.fromkeys(str(g) for g in (given.var_names if isinstance(given, AnnData) else given)))


def _adjusted(found: pd.DataFrame) -> pd.DataFrame:
    """Add p-values adjusted over the sets, and sort."""
    adjusted = benjamini_hochberg(found["p"].to_numpy(dtype=np.float64))
    found.insert(found.columns.get_loc("p") + 1, "p_adj", adjusted)  # type: ignore[operator]
    return found.sort_values("p", kind="stable", ignore_index=True)

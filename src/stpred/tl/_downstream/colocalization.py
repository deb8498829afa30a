from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stpred import links, metrics
from stpred._core import keys
from stpred._core.checks import InputError, one_of, whole
from stpred._core.elements import need_sdata
from stpred._core.targets import standardised
from stpred.comparison.slide_tables import positions_um, slide_table
from stpred.metrics import benjamini_hochberg
from stpred.tl._downstream.gene_sets import read_gene_sets, sets_among
from stpred.tl._downstream.spatial_null import Draw, cross_statistics, shifts

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray
    from spatialdata import SpatialData

NULLS = {
    "shift": "Scores are shifted round the slide (and mirrored), so that they stay as smooth as they are.",
    "permutation": "Scores are shuffled over locations. This null is anti-conservative: two unrelated scores that vary "
    "smoothly are called colocalised or exclusive far more often than the p-value says.",
}


def colocalization(
    sdata: SpatialData,
    table_key: str,
    gene_sets: Mapping[str, Any] | pd.DataFrame | str,
    *,
    method: Literal["score", "rank"] = "score",
    n_neighbors: int = 6,
    n_permutations: int = 999,
    null: Literal["shift", "permutation"] = "shift",
    min_genes: int = 1,
    in_distribution_only: bool = True,
    seed: int = 0,
    coordinate_system: str = keys.UM,
) -> pd.DataFrame:
    """Ask of each two gene sets whether they are high in the same places, or in different ones, more than by chance.

    A set's score in a location is the mean z-score of its genes. The statistic of two sets is the correlation of one's
    score with the other's mean over a location and its nearest neighbours, averaged over both ways round (a bivariate
    Moran statistic). Genes that two sets share are left out of both for that pair: a set is always where it is itself.

    Expression is smooth in space, so that two unrelated scores resemble each other, or exclude each other, by
    chance far more than as many independent locations would. The default null keeps this: one of the two scores is
    moved as a whole by a random shift that wraps round the slide's bounding box, perhaps mirrored, and every location
    takes the value of the location nearest to where it then lies. This is an approximation, since values do not meet
    at the seam, and locations that land outside the tissue take the value of its edge: of unrelated synthetic scores,
    5 to 12 % had p below 0.05 where patterns were as wide as a twentieth to a tenth of the slide (one standard
    deviation of the smoothing), and 15 to 21 % at a sixth, where a slide holds hardly more than a few of them
    (shuffled locations: 48 to 84 %). Look at more than one slide before believing a pair.

    Parameters
    ----------
    sdata
        The slide.
    table_key
        Table of predictions, which are used as they are, or of raw counts, which are normalised to log1p CP10k.
    gene_sets
        Mapping of names to genes, frame, path or name, as in :func:`stpred.tl.enrichment`.
    method
        ``"score"`` (mean z-score of the set's genes) or ``"rank"`` (mean rank, which no outlier can dominate).
    n_neighbors
        Nearest locations that are averaged with a location itself.
    n_permutations
        Draws from the null; no p-value is below ``2 / (n_permutations + 1)``.
    null
        ``"shift"``, or ``"permutation"`` of locations, which is anti-conservative and there for comparison.
    min_genes
        Sets with fewer genes in the table are left out.
    in_distribution_only
        Leave out locations that the table marks as out of distribution.
    seed
        Of the null.
    coordinate_system
        The slide's micrometre frame.

    Returns
    -------
    DataFrame with a row per pair of sets, strongest first: ``first``, ``second``, ``statistic`` (positive: together,
    negative: apart), ``null_mean``, ``null_std``, ``z``, ``p_value`` (two-sided), ``p_holm``, ``p_bh``,
    ``n_genes_first``, ``n_genes_second``, ``n_shared_genes`` and ``n_locations``. A pair of which one set has no gene
    of its own is NaN. ``attrs["null"]`` and ``attrs["note"]`` say which null it was and what it means.

    Raises
    ------
    InputError
        If fewer than two sets have genes in the table, or the slide has too few locations.

    References
    ----------
    Wartenberg, Multivariate spatial correlation, Geographical Analysis 17 (1985). Dale and Fortin, Spatial
    autocorrelation and statistical tests, J. Agric. Biol. Environ. Stat. 14 (2009), for toroidal shifts.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(size_um=(1000, 1000), n_genes=60)
    >>> sets = {"tumour": ["EPCAM", "KRT8"], "stroma": ["COL1A1", "COL1A2"]}
    >>> found = st.tl.colocalization(slide, "spots_counts", sets, n_permutations=99)
    >>> bool(found["statistic"][0] < 0)
    True
    """
    one_of(method, ("score", "rank"), name="method")
    one_of(null, NULLS, name="null")
    n_permutations, n_neighbors = whole(n_permutations, name="n_permutations"), whole(n_neighbors, name="n_neighbors")
    need_sdata(sdata)
    side = slide_table(sdata, table_key, coordinate_system=coordinate_system)
    sets = sets_among(
        read_gene_sets(gene_sets),
        side.table.var_names.tolist(),
        what=f"table {table_key!r}",
        min_size=whole(min_genes, name="min_genes"),
    )
    if len(sets) < 2:
        raise InputError(f"Only the set {next(iter(sets))!r} has genes in table {table_key!r}; two or more are needed.")
    kept = side.with_counts() & (side.in_distribution() if in_distribution_only else True)
    if kept.sum() < 2 * (n_neighbors + 1):
        raise InputError(
            f"Table {table_key!r} has {int(kept.sum())} locations to go by (of {len(kept)}), too few for "
            f"{n_neighbors} neighbours each; at least {2 * (n_neighbors + 1)} are needed."
        )
    xy = positions_um(sdata, side.table, coordinate_system=coordinate_system)[kept]
    used = side.table.var_names[side.table.var_names.isin([g for genes in sets.values() for g in genes])]
    values = standardised(_ranked(side.normalised(used)[kept]) if method == "rank" else side.normalised(used)[kept])
    fields, pairs, facts = _fields(values, used, sets)
    near = links.knn(xy, xy, n_neighbors=n_neighbors, include_self=True).to_csr(len(xy))
    average = near.multiply(1 / near.sum(axis=1)).tocsr()
    rng = np.random.default_rng(seed)
    draw: Draw = (lambda: rng.permutation(len(xy))) if null == "permutation" else shifts(xy, rng=rng)
    found = cross_statistics(fields, average, pairs, draw=draw, n=n_permutations)
    return _table(facts, *found, n_locations=len(xy), null=null)


def _fields(
    values: NDArray[np.float64], genes: pd.Index, sets: Mapping[str, Sequence[str]]
) -> tuple[NDArray[np.float64], NDArray[np.int64], list[dict[str, Any]]]:
    """Return the (N, U) scores that are needed, for each pair which two of them, and what to say of the pair."""
    columns: dict[tuple[str, ...], int] = {}
    pairs, facts = [], []
    for first, second in combinations(sets, 2):
        shared = set(sets[first]) & set(sets[second])
        own = [tuple(g for g in sets[name] if g not in shared) for name in (first, second)]
        pairs.append([columns.setdefault(o, len(columns)) for o in own])
        sizes = {"n_genes_first": len(own[0]), "n_genes_second": len(own[1]), "n_shared_genes": len(shared)}
        facts.append({"first": first, "second": second, **sizes})
    fields = np.zeros((len(values), len(columns)))
    for members, at in columns.items():
        if members:
            fields[:, at] = values[:, genes.get_indexer(list(members))].mean(axis=1)
    return fields, np.array(pairs), facts


def _ranked(values: NDArray[Any]) -> NDArray[np.float64]:
    from scipy.stats import rankdata

    return rankdata(values, axis=0)


def _table(
    facts: list[dict[str, Any]],
    observed: NDArray[np.float64],
    drawn: NDArray[np.float64],
    *,
    n_locations: int,
    null: str,
) -> pd.DataFrame:
    """Return one row per pair, with p-values of both tails and corrected for the number of pairs."""
    import pandas as pd

    tails = [(1 + (side >= 0).sum(axis=0)) / (len(drawn) + 1) for side in (drawn - observed, observed - drawn)]
    p = np.where(np.isnan(observed), np.nan, np.minimum(1, 2 * np.minimum(*tails)))
    spread = drawn.std(axis=0)
    result = pd.DataFrame(facts).assign(
        statistic=observed,
        null_mean=drawn.mean(axis=0),
        null_std=spread,
        z=np.divide(observed - drawn.mean(axis=0), spread, out=np.full_like(spread, np.nan), where=spread > 0),
        p_value=p,
        p_holm=metrics.holm(p),
        p_bh=benjamini_hochberg(p),
        n_locations=n_locations,
    )
    order = ["first", "second", "statistic", "null_mean", "null_std", "z", "p_value", "p_holm", "p_bh"]
    order += ["n_genes_first", "n_genes_second", "n_shared_genes", "n_locations"]
    result = result[order].sort_values("statistic", key=np.abs, ascending=False, kind="stable", ignore_index=True)
    result.attrs = {"null": null, "note": NULLS[null], "n_permutations": len(drawn)}
    return result

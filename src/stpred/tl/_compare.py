from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from stpred import links, metrics
from stpred._core import keys
from stpred._core.checks import InputError, one_of, positive, whole
from stpred._core.elements import centroids
from stpred._core.matching import placed
from stpred._core.pairing import Pair, pair, pair_bins

if TYPE_CHECKING:
    from spatialdata import SpatialData

CELL = "cell"


def compare(
    sdata: SpatialData,
    predicted_key: str,
    measured_key: str,
    *,
    target: str | None = None,
    match: Literal["auto", "id", "overlap", "distance"] = "auto",
    min_overlap: float = 0.5,
    max_distance_um: float = 5.0,
    level: Literal["cell"] | None = None,
    k_neighbors: int | Iterable[int] | None = None,
    bin_um: float | Iterable[float] | None = None,
    trusted_only: bool = False,
    write: bool = False,
    coordinate_system: str = keys.UM,
) -> pd.DataFrame:
    """Compare a predicted with a measured table, gene by gene: location by location, in neighbourhoods, or in squares.

    The tables may annotate the same region or two regions of the same things, such as predictions on the nuclei of the
    H&E image and counts of the cells that Xenium segmented. A single cell is measured with few counts, so scores rise
    with the size of the tissue that a value stands for: compare at the level at which the values are to be used.

    Parameters
    ----------
    sdata
        Object that holds both tables.
    predicted_key
        Table that :func:`stpred.tl.predict` wrote.
    measured_key
        Table of raw counts.
    target
        Scale on which the measurement is taken, ``"log1p_cp10k"`` or ``"counts"``; None takes the prediction's own
        (``"log1p_cp10k"`` for a relative prediction).
    match
        How a location of one table is found in the other: ``"id"`` (same instance id), ``"overlap"`` (each is the one
        with which the other shares the largest area), ``"distance"`` (each is the other's nearest centroid), or
        ``"auto"``: by id for the same region, by overlap for two regions.
    min_overlap
        Smallest area that two locations which ``"overlap"`` matches have in common, as a share of the smaller one's.
    max_distance_um
        Largest distance of two centroids that ``"distance"`` matches.
    level
        ``"cell"`` compares location by location, also where `k_neighbors` or `bin_um` is given; None does so only where
        neither is.
    k_neighbors
        Compare neighbourhoods: every matched location together with its nearest ones, this many in all (one or several
        numbers). Predictions are averaged (counts summed), measured counts are summed and then normalised.
    bin_um
        Compare in square bins of this edge in micrometres (one or several numbers) into which the locations of both
        tables fall by their centroids, pooled likewise; only bins with locations of both count. This needs no `match`,
        so the regions may be anything, such as nuclei and 2 um bins.
    trusted_only
        Compare only genes that the model marks as ``trusted``.
    write
        Also write the scores into ``var`` of the predicted table as ``measured_pearson`` and ``measured_spearman``
        (with ``_k10`` or ``_bins_016um`` behind the name for neighbourhoods and bins).
    coordinate_system
        The slide's micrometre frame.

    Returns
    -------
    DataFrame indexed by gene, best Pearson first: ``pearson``, ``spearman``, ``r2`` and ``rmse`` (float64; NaN where
    either side has no variance; the last two also where the prediction is relative), ``library_size`` (Pearson of the
    measurement with a location's total of all other genes: what knowing nothing but the amount of RNA gives),
    ``mean_count``, ``n_locations``, and ``cv_pearson`` and ``trusted`` as the model states them. Raw-count scores are
    never to be read without ``library_size`` beside them. Where several levels are asked for, all are below each other
    with a column ``level``: ``"cell"``, ``"k10"``, ``"bins_016um"``. ``attrs["matching"]`` says for each level how many
    locations either table has and how many were matched.

    Raises
    ------
    InputError
        If the tables share no location or gene, the regions are of different things (spots and cells), or a table's
        locations have no shapes.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(seed=1)
    >>> cohort = st.datasets.toy_cohort(2)
    >>> model = st.tl.train(cohort, genes=["EPCAM", "COL1A2"], shapes_key="spots")
    >>> st.tl.predict(slide, model)
    >>> st.tl.compare(slide, "spots_ridge", "spots_counts").columns[:2].tolist()
    ['pearson', 'spearman']
    >>> st.tl.predict(slide, model, shapes_key="cells")
    >>> scores = st.tl.compare(slide, "cells_ridge", "cells_counts", level="cell", bin_um=(16, 55))
    >>> scores["level"].unique().tolist()
    ['cell', 'bins_016um', 'bins_055um']
    """
    neighbours = _several(k_neighbors, lambda k: whole(k, name="k_neighbors", unset=True))
    edges = _several(bin_um, lambda b: positive(b, name="bin_um", unit="um"))
    if level is not None:
        one_of(level, (CELL,), name="level")
    asked: dict[str, Any] = {"target": target, "coordinate_system": coordinate_system}
    levels: dict[str, Pair] = {}
    if level is not None or neighbours or not edges:
        how: dict[str, Any] = {"match": match, "min_overlap": min_overlap, "max_distance_um": max_distance_um}
        single = pair(sdata, predicted_key, measured_key, **how, **asked)
        if level is not None or not (neighbours or edges):
            levels[CELL] = single
        levels |= {f"k{k}": _neighbourhoods(single, sdata, k, coordinate_system) for k in neighbours}
    for edge in edges:
        levels[_bin_name(edge)] = pair_bins(sdata, predicted_key, measured_key, size_um=edge, **asked)
    predicted = sdata.tables[predicted_key]
    parts = {name: _scores(both, predicted.var) for name, both in levels.items()}
    if write:
        for name, scores in parts.items():
            suffix = "" if name == CELL else f"_{name}"
            for column in ("pearson", "spearman"):
                predicted.var[f"measured_{column}{suffix}"] = scores[column].reindex(predicted.var_names).to_numpy()
    result = next(iter(parts.values()))
    if len(parts) > 1:
        result = pd.concat([scores.assign(level=name) for name, scores in parts.items()])
    if trusted_only:
        if "trusted" not in result or not result["trusted"].any():
            raise InputError(f"Table {predicted_key!r} marks none of the measured genes as trusted.")
        result = result[result["trusted"]]
    result.attrs["matching"] = {name: both.facts for name, both in levels.items()}
    return result


def _scores(both: Pair, var: pd.DataFrame) -> pd.DataFrame:
    """Return the scores of each gene, best Pearson first."""
    result = pd.DataFrame(
        {
            "pearson": metrics.pearson(both.guessed, both.observed),
            "spearman": metrics.spearman(both.guessed, both.observed),
            "r2": metrics.r2(both.guessed, both.observed),
            "rmse": metrics.rmse(both.guessed, both.observed),
            "library_size": metrics.library_size_baseline(both.counts, target=both.target, genes=both.columns),
            "mean_count": np.asarray(both.counts[:, both.columns].mean(axis=0)).ravel(),
            "n_locations": len(both.predicted),
            **{c: var.loc[both.genes, c].to_numpy() for c in ("cv_pearson", "trusted") if c in var},
        },
        index=pd.Index(both.genes, name="gene"),
    )
    if both.output_scale == "relative":
        result[["r2", "rmse"]] = np.nan  # a prediction without a scale has no error in units of one
    return result.sort_values("pearson", ascending=False, kind="stable")


def _neighbourhoods(both: Pair, sdata: SpatialData, k: int, coordinate_system: str) -> Pair:
    """Return the values of each location and its nearest, `k` in all."""
    placed(sdata, both.shapes_key, coordinate_system=coordinate_system)
    xy, index = centroids(sdata, both.shapes_key, coordinate_system=coordinate_system)
    positions = index.get_indexer(both.instances)
    if (positions < 0).any():
        raise InputError(
            f"{int((positions < 0).sum())} predicted locations have no shape in {both.shapes_key!r}, so they have no "
            "neighbours; predict on the shapes as they are."
        )
    if k > len(positions):
        raise InputError(f"`k_neighbors`={k} is more than the {len(positions)} locations that are compared.")
    xy = xy[positions]
    near = links.knn(xy, xy, k=k - 1, include_self=True) if k > 1 else links.from_labels(np.arange(len(xy)), len(xy))
    pooled = both.pooled(near.to_csr(len(xy)).astype(np.int64))
    pooled.facts["k_neighbors"] = k
    return pooled


def _several(value: Any, check: Any) -> list[Any]:
    """Return one or several checked numbers as a list without repeats."""
    if value is None:
        return []
    values = list(value) if isinstance(value, Iterable) and not isinstance(value, (str, bytes)) else [value]
    return list(dict.fromkeys(check(v) for v in values))


def _bin_name(edge_um: float) -> str:
    """Name a level as the shapes of such bins are named."""
    if edge_um == int(edge_um):
        return keys.bins(int(edge_um))
    return f"bins_{edge_um:g}um"

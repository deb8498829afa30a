from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from stpred import links, metrics
from stpred._core import keys
from stpred._core.checks import InputError, one_of, positive, whole
from stpred._core.elements import centroids, key_in_frame, need_sdata
from stpred._core.geometry import placed
from stpred.comparison.pairing import MatchRule, pair, pair_bins
from stpred.comparison.scoring import scores_in_context

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stpred.comparison.terms import Pair

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
    resolution: Literal["cell"] | None = None,
    n_neighbors: int | Iterable[int] | None = None,
    bin_um: float | Iterable[float] | None = None,
    trusted_only: bool = False,
    write: bool = False,
    coordinate_system: str = keys.UM,
) -> pd.DataFrame:
    """Compare predicted with measured expression, gene by gene: location by location, in neighbourhoods, or in squares.

    Two tables may annotate the same region or two regions of the same things, such as predictions on the nuclei of the
    H&E image and counts of the cells that Xenium segmented. In squares anything can be compared that lies on the same
    slide: a super-resolved map with Xenium transcripts or Visium HD bins, typically in those of 8, 16, 32 and 55 um.

    A small piece of tissue is measured with few counts, so scores rise with the size of the tissue that a value stands
    for: compare at the level at which the values are to be used, and relate each score to ``rmax``, which says how
    high the noise of the measurement lets it come there.

    Parameters
    ----------
    sdata
        Object that holds both.
    predicted_key
        Table that :func:`stpred.tl.predict` wrote; or with `bin_um` a predicted raster, an image of floats whose
        channels are genes, NaN where nothing was predicted, with provenance in ``sdata.attrs["stpred"][predicted_key]``
        (the JSON string that a predicted table has in ``uns["stpred"]``). It is read chunk by chunk, once.
    measured_key
        Table of raw counts; or with `bin_um` Points of transcripts, which are read into memory. Of these, controls and
        those of a quality (``qv``) below 20 are excluded, as :func:`stpred.pp.aggregate` does by default.
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
    resolution
        ``"cell"`` compares location by location, also where `n_neighbors` or `bin_um` is given; None does so only where
        neither is.
    n_neighbors
        Compare neighbourhoods: every matched location together with its nearest ones, this many in all (one or several
        numbers). Predictions are averaged (counts summed), measured counts are summed and then normalised.
    bin_um
        Compare in square bins of this edge in micrometres (one or several numbers, typically ``(8, 16, 32, 55)``) into
        which the locations of both sides fall by their centroids, pooled likewise; only bins with locations of both
        and at least one count are compared. This needs no `match`, so the regions may be anything, such as nuclei and
        2 um bins. Of a raster the pixels count that are not NaN, by their centres, in bins where every gene has one.
        Bins finer than the prediction's own spacing are only those that hold one of its locations, which is
        logged: they say how well the prediction fits at its points, and nothing of what lies between.
    trusted_only
        Compare only genes that the model marks as ``trusted``.
    write
        Also write the scores into ``var`` of the predicted table as ``measured_pearson`` and ``measured_spearman``
        (with ``_k10`` or ``_bins_016um`` behind the name for neighbourhoods and bins, and the suffix of the frame where
        the table is of several slides). A raster has no such place.
    coordinate_system
        The slide's micrometre frame.

    Returns
    -------
    DataFrame indexed by gene, best Pearson first, with

    - ``pearson``, ``spearman``, ``r2`` and ``rmse``: float64; NaN where either side has no variance, the last two also
      where the prediction is relative or on another scale than `target`;
    - ``library_size``: Pearson of the measurement with a location's total of all other genes, which is what knowing
      nothing but the amount of RNA gives; raw-count scores are never to be read without it;
    - ``rmax``: highest Pearson that the Poisson noise of the measured *raw counts* allows in just the locations that
      are compared (``stpred.genes.rmax``), as estimated from these: 0 for a gene that varies no more than such
      noise, NaN for one without counts. Where `target` is ``"log1p_cp10k"`` it is still that of the raw counts, and no
      bound on ``pearson``: normalising takes away the part of the variance that the amount of RNA makes. It is there
      to tell whether scores fall with the size of the squares because the prediction is blurred or because there is
      less to be explained. What squares on the edge of the tissue lack in counts is variance too, and raises it;
    - ``pearson_of_rmax``: ``pearson / rmax``, NaN where that is 0 (and for the same reason it may exceed 1);
    - ``mean_count``, ``n_locations``, and ``cv_pearson`` and ``trusted`` as the model states them;
    - ``mae``, ``auroc`` (of the top against the bottom quarter of the measurement), ``ssim`` (similarity of both maps
      over each location with its ring, scaled to 0..1), ``pearson_smoothed`` (measurement averaged over the ring, as
      ST-Net reports), ``pearson_given_library_size`` (what is left when the log of a location's total is taken out);
    - ``neighbour_average``: Pearson of the measurement with its own average over the ring, which is what interpolating
      gives; ``reliability``: the ceiling that noise leaves on the scale of the comparison, by count splitting
      (:func:`stpred.metrics.reliability`);
    - ``rmax_null`` and ``rmax_p``: what ``rmax`` averages for counts without any structure, and the chance that such
      counts vary as much (:func:`stpred.metrics.rmax_test`): above 0.05, ``rmax`` is not distinguishable from 0.

    - ``same_library``: only where library sizes of the two are not counted over the same genes, and then False: log1p
      CP10k is not one scale, ``r2``, ``rmse`` and ``mae`` say nothing, and a warning says so. That is so where the
      measurement lacks genes that carry more than a tenth of the counts that the model was trained on (a panel against
      a whole transcriptome, a table cut to variable genes). Where it has the model's genes and others, its library
      sizes are counted over the former.

    Scores over rings are NaN for neighbourhoods (`n_neighbors`), ``ssim`` also where fewer than 10 rings are complete.

    Where several levels are requested, all are below each other with a column ``level``: ``"cell"``, ``"k10"``,
    ``"bins_016um"``. ``attrs["matching"]`` says for each level how many locations (or squares) either side has and how
    many were matched; of transcripts also the number excluded, of a raster that of squares without some gene; under
    ``"library"`` the numbers of genes that library sizes are counted over, and the shares of counts that both have.

    Raises
    ------
    InputError
        If the two share no location or gene, the regions are of different things (spots and cells), a table's
        locations have no shapes, transcripts or a raster are to be compared without `bin_um`, or an image was not
        predicted by stpred, or is turned against the frame.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(size_um=(500, 500), n_genes=20, donor=2)
    >>> cohort = st.datasets.toy_cohort(2, size_um=(500, 500), n_genes=20)
    >>> model = st.tl.train(cohort, genes=["EPCAM", "COL1A2"], shapes_key="spots")
    >>> st.tl.predict(slide, model)
    >>> st.tl.compare(slide, "spots_ridge", "spots_counts").columns[:2].tolist()
    ['pearson', 'spearman']
    >>> st.tl.predict(slide, model, shapes_key="cells")
    >>> scores = st.tl.compare(slide, "cells_ridge", "cells_counts", resolution="cell", bin_um=(8, 16, 32, 55))
    >>> scores["level"].unique().tolist()
    ['cell', 'bins_008um', 'bins_016um', 'bins_032um', 'bins_055um']
    >>> ceiling = scores.groupby("level")["rmax"].median()
    >>> bool(ceiling["bins_055um"] > ceiling["bins_008um"])
    True
    """
    neighbours = _several(n_neighbors, lambda k: whole(k, name="n_neighbors", unset=True))
    edges = _several(bin_um, lambda b: positive(b, name="bin_um", unit="um"))
    if resolution is not None:
        one_of(resolution, (CELL,), name="resolution")
    rule = MatchRule(match, min_overlap, max_distance_um)
    need_sdata(sdata)
    if write and predicted_key in sdata.images:
        raise InputError(
            f"`write` puts scores into var of a predicted table, and {predicted_key!r} is an image; keep the result."
        )
    parts: dict[str, pd.DataFrame] = {}
    matching: dict[str, dict[str, Any]] = {}
    levels = _levels(
        sdata, (predicted_key, measured_key), rule, single=resolution is not None, neighbours=neighbours, edges=edges,
        target=target, coordinate_system=coordinate_system,
    )  # fmt: skip
    for name, both in levels:  # lazily, so that only one level is in memory
        parts[name] = _scores(both, sdata.tables[predicted_key].var if predicted_key in sdata.tables else None)
        matching[name] = both.matching
    if write:
        var = sdata.tables[predicted_key].var
        for name, found in parts.items():
            suffix = "" if name == CELL else f"_{name}"
            suffix = key_in_frame(sdata, predicted_key, suffix, coordinate_system=coordinate_system)
            for column in ("pearson", "spearman"):
                var[f"measured_{column}{suffix}"] = found[column].reindex(var.index).to_numpy()
    result = next(iter(parts.values()))
    if len(parts) > 1:
        result = pd.concat([found.assign(level=name) for name, found in parts.items()])
    if trusted_only:
        if "trusted" not in result or not result["trusted"].any():
            kind = "Table" if predicted_key in sdata.tables else "Image"
            raise InputError(f"{kind} {predicted_key!r} marks none of the measured genes as trusted.")
        result = result[result["trusted"]]
    if any(summary.get("library", {}).get("same") is False for summary in matching.values()):
        result = result.assign(same_library=False)
    result.attrs["matching"] = matching
    return result


def _levels(
    sdata: SpatialData,
    table_keys: tuple[str, str],
    rule: MatchRule,
    *,
    single: bool,
    neighbours: list[int],
    edges: list[float],
    target: str | None,
    coordinate_system: str,
) -> Iterator[tuple[str, Pair]]:
    """Yield the name and the values of each level; `single` locations also where others are compared."""
    warned: set[str] = set()
    if single or neighbours or not edges:
        both = pair(sdata, *table_keys, rule=rule, target=target, coordinate_system=coordinate_system, warned=warned)
        if single or not (neighbours or edges):
            yield CELL, both
        for k in neighbours:
            yield f"k{k}", _neighbourhoods(both, sdata, k, coordinate_system)
    if edges:
        pooled = pair_bins(
            sdata, *table_keys, sizes_um=edges, target=target, coordinate_system=coordinate_system, warned=warned
        )
        for edge, both in zip(edges, pooled, strict=True):
            yield _bin_name(edge), both


def _scores(both: Pair, var: pd.DataFrame | None) -> pd.DataFrame:
    """Return the scores of each gene, best Pearson first; `var` is what a predicted table says of its genes."""
    stated = [c for c in ("cv_pearson", "trusted") if var is not None and c in var]
    found = scores_in_context(both)
    ceiling = found["rmax"]
    tested = metrics.rmax_test(both.second.select(both.columns)) if len(both.instances) > 1 else None
    last = ("auroc", "pearson_given_library_size", "mae", "pearson_smoothed", "ssim")
    result = pd.DataFrame(
        {
            **{name: found[name] for name in ("pearson", "spearman", "r2", "rmse")},
            "library_size": found["library_size"],
            "rmax": ceiling,
            "pearson_of_rmax": np.divide(
                found["pearson"], ceiling, out=np.full(len(ceiling), np.nan), where=ceiling > 0
            ),
            "mean_count": found["mean_count"],
            "n_locations": len(both.instances),
            **{c: var.loc[both.genes, c].to_numpy() for c in stated if var is not None},
            **{name: found[name] for name in (*last, "neighbour_average", "reliability")},
            "rmax_null": np.nan if tested is None else tested.null_mean,
            "rmax_p": np.nan if tested is None else tested.p_value,
        },
        index=pd.Index(both.genes, name="gene"),
    )
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
        raise InputError(f"`n_neighbors`={k} is more than the {len(positions)} locations that are compared.")
    xy = xy[positions]
    near = (
        links.knn(xy, xy, n_neighbors=k - 1, include_self=True)
        if k > 1
        else links.from_labels(np.arange(len(xy)), len(xy))
    )
    pooled = both.pooled(near.to_csr(len(xy)).astype(np.int64))
    pooled.matching["k_neighbors"] = k
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

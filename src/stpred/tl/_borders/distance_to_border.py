from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import keys
from stpred._core.checks import InputError, element_name, key_in, listing
from stpred._core.elements import table_in_frame, table_instances, table_regions
from stpred._core.geometry import geometries_um
from stpred.comparison.slide_tables import named_slides, positions_um

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData


def distance_to_border(
    slides: Mapping[str, SpatialData] | SpatialData,
    table_key: str,
    region: str,
    *,
    groupby: str | None = None,
    key_added: str = "border_distance_um",
    coordinate_system: str = keys.UM,
    inplace: bool = True,
) -> dict[str, NDArray[np.float64]] | None:
    """Measure how far each location is from the border of a region, such as the tumour's: negative inside.

    Parameters
    ----------
    slides
        Slides by name, or one slide.
    table_key
        Table of every slide whose rows are the locations (cells, spots, ...).
    region
        Name of the shapes that outline the region, such as annotations, which are joined; or with `groupby` the class
        of that column whose locations are the region.
    groupby
        Column of the table's ``obs`` with classes of its locations, as of spots that a pathologist labelled. The border
        then lies midway between neighbouring locations of the class and of any other: the distance is that to the
        nearest location of the other kind less half of the median distance between nearest locations. Locations
        without a class have none (NaN), and are no border.
    key_added
        Column of ``obs``.
    coordinate_system
        The slides' micrometre frame; of a table that annotates regions of several slides, the rows of the one there.
    inplace
        With False a mapping of slide to (n,) distances is returned and the tables are left alone.

    Returns
    -------
    None, or with ``inplace=False`` the distances. Writes ``obs[key_added]`` (float64 micrometres from the centre of the
    location to the nearest border, negative inside the region; NaN on slides without the class).

    Raises
    ------
    InputError
        If a table, shapes, column or class is missing on all slides, or the region has no area.

    Notes
    -----
    Where a region ends at the edge of the tissue or of what was annotated, that counts as its border, too.

    References
    ----------
    Bergenstråhle et al. (2022), Super-resolved spatial transcriptomics by deep data fusion, Nature Biotechnology
    40:476: cell types by distance from the tumour.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(size_um=(500, 500), n_genes=20)
    >>> table = slide.tables["cells_counts"]
    >>> table.obs["side"] = ["left" if x < 250 else "right" for x in table.obsm["spatial"][:, 0]]
    >>> st.tl.distance_to_border(slide, "cells_counts", "left", groupby="side")
    >>> bool((table.obs.loc[table.obs["side"] == "left", "border_distance_um"] <= 5).all())
    True
    """
    element_name(key_added)
    by_name = named_slides(slides)
    found: dict[str, NDArray[np.float64]] = {}
    parts = {}
    for name, sdata in by_name.items():
        key_in(table_key, sdata.tables, what=f"table of {name!r}", name="table_key")
        table = parts[name] = table_in_frame(sdata, table_key, coordinate_system=coordinate_system)
        points = _points(sdata, table, coordinate_system=coordinate_system)
        if groupby is None:
            found[name] = signed_distance(points, _outline(sdata, region, name, coordinate_system=coordinate_system))
        else:
            key_in(groupby, table.obs.columns, what=f"column of obs in table {table_key!r} of {name!r}", name="groupby")
            classes = table.obs[groupby]
            known = np.where(classes.isna(), "", classes.astype(str))
            found[name] = distance_to_others(points, known == str(region), known != "")
    if groupby is not None and all(np.isnan(v).all() for v in found.values()):
        classes_of = {c for t in parts.values() for c in t.obs[groupby].dropna().astype(str)}
        raise InputError(
            f"There is no border of {region!r} in obs[{groupby!r}] of any slide: it has {listing(sorted(classes_of))}, "
            "of which a slide needs this one and another."
        )
    if not inplace:
        return found
    for name, part in parts.items():
        table = by_name[name].tables[table_key]
        rows = np.arange(table.n_obs) if part is table else table_instances(table, *table_regions(part))[0]
        there = key_added in table.obs and table.obs[key_added].dtype.kind == "f"
        column = np.full(table.n_obs, np.nan) if not there else table.obs[key_added].to_numpy(np.float64, copy=True)
        column[rows] = found[name]
        table.obs[key_added] = column
    return None


def signed_distance(points_um: NDArray[np.float64], outline: Any) -> NDArray[np.float64]:
    """Return (n,) distances of points from the border of a shapely area, negative inside."""
    import shapely

    border = shapely.boundary(outline)
    shapely.prepare([outline, border])
    points = shapely.points(points_um)
    distance = shapely.distance(points, border)
    return np.where(shapely.contains(outline, points), -distance, distance)


def distance_to_others(
    points_um: NDArray[np.float64], inside: NDArray[np.bool_], known: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return (n,) distances to the nearest point of the other kind less half the spacing; negative where `inside`.

    Points that are not `known` have none.
    """
    from scipy.spatial import KDTree

    out = np.full(len(points_um), np.nan)
    outside = known & ~inside
    inside = known & inside
    if not inside.any() or not outside.any():
        return out
    spacing = np.median(KDTree(points_um[known]).query(points_um[known], k=2)[0][:, 1])
    for own, other, sign in ((inside, outside, -1.0), (outside, inside, 1.0)):
        nearest = KDTree(points_um[other]).query(points_um[own])[0]
        out[own] = sign * np.maximum(nearest - spacing / 2, 0)
    return out


def _points(sdata: SpatialData, table: AnnData, *, coordinate_system: str) -> NDArray[np.float64]:
    if keys.SPATIAL in table.obsm:
        return np.asarray(table.obsm[keys.SPATIAL], dtype=np.float64)
    return positions_um(sdata, table, coordinate_system=coordinate_system)


def _outline(sdata: SpatialData, region: str, slide: str, *, coordinate_system: str) -> Any:
    """Return the union of a region's shapes in micrometres."""
    import shapely

    key_in(region, sdata.shapes, what=f"shapes element of {slide!r}", name="region")
    outline = shapely.union_all(geometries_um(sdata, region, coordinate_system=coordinate_system)[0])
    if shapely.area(outline) <= 0:
        raise InputError(f"The shapes {region!r} of {slide!r} have no area, so there is no border to be far from.")
    return outline

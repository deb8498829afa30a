from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred import metrics
from stpred._core import keys
from stpred._core.checks import InputError, key_in, listing, whole
from stpred._core.elements import centroids, table_instances
from stpred._core.geometry import geometries_um, placed
from stpred.comparison.pairing import pair

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stpred.comparison.terms import Pair

logger = logging.getLogger("stpred")


def within_regions(
    sdata: SpatialData,
    predicted_key: str,
    measured_key: str,
    *,
    groupby: str | tuple[str, str],
    min_locations: int = 20,
    target: str | None = None,
    coordinate_system: str = keys.UM,
) -> pd.DataFrame:
    """Compare predicted with measured expression inside each kind of tissue, beside what the whole slide gives.

    A model that only tells tumour from normal tissue predicts a tumour gene well on a slide that has both, and knows
    nothing of its variation within the tumour. Such a gene has a high ``pearson_all`` and a ``pearson`` about 0
    in every region.

    Parameters
    ----------
    sdata
        Slide that holds both tables.
    predicted_key, measured_key
        Table of predictions and table of raw counts, matched as :func:`stpred.tl.compare` does by default.
    groupby
        What names the regions: a column of ``obs`` of either table (the measured one's goes first), or
        ``(shapes, column)``: polygons, such as a pathologist's annotation, and the column that names them (``"index"``
        for the names of the polygons themselves). A location belongs to the polygon that holds its centroid.
    min_locations
        Regions with fewer locations are excluded.
    target
        As in :func:`stpred.tl.compare`.
    coordinate_system
        The slide's micrometre frame.

    Returns
    -------
    Tidy DataFrame, one row per gene and region: ``gene``, ``region``, ``n_locations``, ``pearson``, ``spearman`` (NaN
    where either side has no variance), beside the values for all locations that are in the regions of the frame,
    ``pearson_all`` and ``spearman_all``, and for these with each region's mean taken off both sides,
    ``pearson_within``. ``attrs["left_out"]``: locations of each region that is too small; ``attrs["unnamed"]``:
    locations of no region.

    Raises
    ------
    InputError
        If no region has enough locations, there is no such column, or a location lies in polygons of different names.

    References
    ----------
    He et al. (2020), Integrating spatial gene expression and breast tumour morphology via deep learning, Nature
    Biomedical Engineering 4:827, who predict 63 genes within the tumour as consistently as 102 on all spots.

    Examples
    --------
    >>> import stpred as st
    >>> small = {"size_um": (600, 600), "n_genes": 20}
    >>> slide = st.datasets.toy(seed=1, **small)
    >>> model = st.tl.train(st.datasets.toy_cohort(2, **small), genes="all", shapes_key="spots")
    >>> st.tl.predict(slide, model)
    >>> table = slide["spots_counts"]
    >>> table.obs["half"] = ["left" if x < 300 else "right" for x in table.obsm["spatial"][:, 0]]
    >>> found = st.tl.within_regions(slide, "spots_ridge", "spots_counts", groupby="half", min_locations=10)
    >>> found["region"].unique().tolist()
    ['left', 'right']
    """
    import pandas as pd

    least = whole(min_locations, name="min_locations")
    both = pair(sdata, predicted_key, measured_key, target=target, coordinate_system=coordinate_system)
    if isinstance(groupby, str):
        names = _column(sdata, (measured_key, predicted_key), both, groupby)
    else:
        names = _polygons(sdata, both, groupby, coordinate_system=coordinate_system)
    unnamed = int(names.isna().sum())
    sizes = names.value_counts()
    large = sorted(sizes.index[sizes >= least], key=str)
    if not large:
        raise InputError(
            f"No region of {groupby!r} has {least} locations: {dict(sizes.items())}, and {unnamed} locations are in "
            "none; choose another grouping or lower `min_locations`."
        )
    labels = pd.Categorical(names, categories=large).codes
    found = region_scores(both.guessed, both.observed, np.asarray(labels))
    parts = [
        pd.DataFrame({"gene": both.genes, "region": name, "n_locations": int(sizes[name]), **scores}).assign(
            **found[len(large)]
        )
        for name, scores in zip(large, found[:-1], strict=True)
    ]
    result = pd.concat(parts, ignore_index=True)
    result.attrs = {
        "left_out": {str(k): int(v) for k, v in sizes[sizes < least].items()},
        "unnamed": unnamed,
        "target": both.target,
        "matching": both.matching,
    }
    if result.attrs["left_out"]:
        logger.info("Regions with under %d locations are excluded: %s.", least, result.attrs["left_out"])
    return result


def region_scores(predicted: Any, observed: Any, labels: NDArray[Any]) -> list[dict[str, NDArray[np.float64]]]:
    """Return the (G,) scores of (N, G) values within each region, and last those of all regions' locations.

    `labels` (N,) are regions 0 ... R - 1, -1 for none.
    """
    x, y = np.asarray(predicted, dtype=np.float64), np.asarray(observed, dtype=np.float64)
    inside = labels >= 0
    x, y, labels = x[inside], y[inside], labels[inside]
    found = []
    x_within, y_within = x.copy(), y.copy()
    for region in range(int(labels.max()) + 1):
        at = labels == region
        found.append({"pearson": metrics.pearson(x[at], y[at]), "spearman": metrics.spearman(x[at], y[at])})
        x_within[at] -= x[at].mean(axis=0)
        y_within[at] -= y[at].mean(axis=0)
    found.append(
        {
            "pearson_all": metrics.pearson(x, y),
            "spearman_all": metrics.spearman(x, y),
            "pearson_within": metrics.pearson(x_within, y_within),
        }
    )
    return found


def _column(sdata: SpatialData, tables: tuple[str, str], both: Pair, groupby: str) -> pd.Series:
    """Return the region of each compared location from a column of obs of one of the tables."""
    import pandas as pd

    for key in tables:
        table = sdata.tables[key]
        if groupby not in table.obs:
            continue
        rows, ids = table_instances(table, both.shapes_key)
        named = pd.Series(table.obs[groupby].to_numpy()[rows], index=ids)
        if (there := both.instances.isin(ids)).any():
            found = named.reindex(both.instances)
            if not there.all():
                logger.warning("%d of %d locations have no %r in table %r.", (~there).sum(), len(there), groupby, key)
            return found
    columns = dict.fromkeys(c for key in tables for c in sdata.tables[key].obs.columns)
    hint = f"; for polygons give groupby=({groupby!r}, column)" if groupby in sdata.shapes else ""
    raise InputError(
        f"Neither table {tables[0]!r} nor {tables[1]!r} has a column {groupby!r} in obs (`groupby`) for the locations "
        f"that are compared; available: {listing(columns)}{hint}."
    )


def _polygons(sdata: SpatialData, both: Pair, groupby: Any, *, coordinate_system: str) -> pd.Series:
    """Return the name of the polygon that holds each compared location's centroid."""
    import pandas as pd
    import shapely

    if not (isinstance(groupby, tuple) and len(groupby) == 2):
        raise InputError(f"`groupby` must be a column of obs or a pair of shapes and column, got {groupby!r}.")
    shapes_key, column = groupby
    key_in(shapes_key, sdata.shapes, what="shapes element", name="groupby")
    element = sdata.shapes[shapes_key]
    key_in(column, ["index", *element.columns], what=f"column of shapes {shapes_key!r}", name="groupby")
    values = (element.index if column == "index" else element[column]).to_numpy()
    polygons, _ = geometries_um(sdata, shapes_key, coordinate_system=coordinate_system)
    placed(sdata, both.shapes_key, coordinate_system=coordinate_system)
    xy, index = centroids(sdata, both.shapes_key, coordinate_system=coordinate_system)
    points = shapely.points(xy[index.get_indexer(both.instances)])
    location, polygon = shapely.STRtree(polygons).query(points, predicate="intersects")
    hits = pd.DataFrame({"location": location, "name": values[polygon]}).drop_duplicates()
    if (several := hits["location"].duplicated()).any():
        names = hits.loc[hits["location"].isin(hits.loc[several, "location"]), "name"].unique()
        raise InputError(
            f"{int(several.sum())} locations lie in polygons of {shapes_key!r} with different {column!r}: "
            f"{listing(names)}; give polygons that do not overlap."
        )
    return hits.set_index("location")["name"].reindex(range(len(points))).set_axis(both.instances)

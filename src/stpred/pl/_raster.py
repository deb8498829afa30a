from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import keys
from stpred._core.checks import InputError, key_in, listing
from stpred._core.elements import affine_to, find_image, need_sdata, region_in_frame, scale0, table_instances
from stpred._core.tables import one_donor
from stpred.pl._canvas import Canvas, color_limits, scale_bar, warn_across, window_of
from stpred.pl._figure import finish
from stpred.pl.labels import OOD_UNIT, stated_of, title_of, unit_of
from stpred.tiles import Pyramid

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

MAX_RASTER_PX = 2000
"""Pixels along the longer side of a raster that is drawn; of a larger one a coarser level is."""

MAX_IMAGE_PX = 1000
"""Pixels of the H&E image along the longer side of the raster."""


def raster(
    sdata: SpatialData,
    raster_key: str,
    genes: str | Sequence[str],
    *,
    image_key: str | None = None,
    with_image: bool = True,
    cmap: str = "viridis",
    limits: tuple[float, float] | None = None,
    table_key: str | None = None,
    crop_um: tuple[float, float, float, float] | None = None,
    coordinate_system: str = keys.UM,
    save: str | Path | None = None,
) -> NDArray[Any]:
    """Draw genes of a predicted raster beside the H&E image.

    Parameters
    ----------
    sdata
        Object with the raster that ``stpred.tl.predict_map`` wrote.
    raster_key
        Name of the raster.
    genes
        One or several of its genes, a panel each.
    image_key
        H&E image; None takes the one in the micrometre frame.
    with_image
        Draw the tissue in a panel of its own first.
    cmap, limits
        Colours, and the values of their ends; None: quantiles 0.01 and 0.99 of each gene.
    table_key
        Predicted table of the same model: titles then say how far its genes were predictable, and its
        out-of-distribution score has a panel where any location is out of distribution.
    crop_um
        Window ``(x0, y0, x1, y1)`` in micrometres of `coordinate_system`, as of :func:`stpred.pl.spatial`; what lies
        beyond the raster is cut off.
    coordinate_system
        The slide's micrometre frame.
    save
        File to write the figure to.

    Returns
    -------
    (panels,) axes, in micrometres with a scale bar. What was not predicted stays empty.

    Raises
    ------
    InputError
        If there is no such raster or gene, or the window is empty, reversed or off the raster.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(size_um=(400, 400), n_genes=20)
    >>> config = st.models.Student.Config(hidden=(16,), epochs=2)
    >>> st.tl.predict_map(slide, st.tl.train(slide, config, shapes_key="spots"))
    >>> len(st.pl.raster(slide, "tissue_student_map", ["EPCAM", "COL1A2"]))
    3
    """
    import matplotlib.pyplot as plt

    need_sdata(sdata)
    key_in(raster_key, sdata.images, what="image", name="raster_key")
    shown = [genes] if isinstance(genes, str) else list(genes)
    if not shown:
        raise InputError("`genes` is empty; name one or more genes of the raster.")
    channels = [str(c) for c in scale0(sdata.images[raster_key]).coords["c"].values]
    if missing := [g for g in shown if g not in channels]:
        raise InputError(f"The raster {raster_key!r} has no gene {listing(missing)}; it has {listing(channels)}.")
    element, (x0, y0, x1, y1) = raster_part(sdata, raster_key, crop_um, coordinate_system)
    unit = unit_of(raster_scale(sdata, raster_key))
    table = None if table_key is None else sdata.tables[key_in(table_key, sdata.tables, what="table", name="table_key")]
    scored = table is not None and keys.OOD_SCORE in table.obs and bool(table.obs[keys.OOD_SCORE].gt(0).any())
    n = len(shown) + with_image + scored
    figure, axes = plt.subplots(1, n, figsize=(5 * n, 4.6), squeeze=False, layout="constrained")
    panels = axes[0]
    if with_image:
        image_key = find_image(sdata, image_key, coordinate_system=coordinate_system)
        pyramid = Pyramid.from_image(sdata.images[image_key], coordinate_system=coordinate_system)
        step = max(max(x1 - x0, y1 - y0) / MAX_IMAGE_PX, pyramid.mpp)
        picture, corner = pyramid.thumbnail(step, box_um=None if crop_um is None else (x0, y0, x1, y1))
        right, bottom = corner + np.array(picture.shape[1::-1]) * step
        panels[0].imshow(picture, extent=(corner[0], right, bottom, corner[1]))
        panels[0].set_title("H&E")
    for ax, gene in zip(panels[int(with_image) :], shown, strict=False):
        values = np.asarray(element.isel(c=channels.index(gene)))
        low, high = color_limits(values) if limits is None else limits
        drawn = ax.imshow(values, extent=(x0, x1, y1, y0), cmap=cmap, vmin=low, vmax=high, interpolation="nearest")
        figure.colorbar(drawn, ax=ax, shrink=0.8, label=unit)
        ax.set_title(gene if table is None or gene not in table.var_names else title_of(table, gene, ""))
    if scored and table is not None:
        region = region_in_frame(sdata, str(table_key), coordinate_system=coordinate_system)
        rows, instances = table_instances(table, region)
        canvas = Canvas(sdata, region, image_key=image_key, coordinate_system=coordinate_system, crop_um=crop_um)
        score = table.obs[keys.OOD_SCORE].to_numpy(dtype=np.float32)[rows]
        canvas.values(panels[-1], score, instances, title=keys.OOD_SCORE, cmap=cmap, unit=OOD_UNIT)
        usual = table.obs[keys.IN_DISTRIBUTION].to_numpy()[rows].astype(bool)
        warn_across(figure, usual, one_donor=one_donor(stated_of(table)))
    for ax in panels:
        ax.set(xlim=(x0, x1), ylim=(y1, y0), xticks=[], yticks=[], aspect="equal")
        scale_bar(ax)
    return finish(panels, save)


def raster_part(
    sdata: SpatialData, raster_key: str, crop_um: Any, coordinate_system: str
) -> tuple[Any, tuple[float, float, float, float]]:
    """Return what of a raster is drawn, at a level that is not too fine, and its box (x0, y0, x1, y1)."""
    box = _extent_um(sdata, raster_key, coordinate_system)
    image = sdata.images[raster_key]
    if crop_um is None:
        return _drawn_level(image), box
    left, top, right, bottom = window_of(crop_um, box, what=f"raster {raster_key!r}", frame=coordinate_system)
    x0, y0, x1, y1 = box
    share = max((right - left) / (x1 - x0), (bottom - top) / (y1 - y0))
    level = _drawn_level(image, share=share)
    width, height = (x1 - x0) / level.sizes["x"], (y1 - y0) / level.sizes["y"]
    columns = slice(int(np.floor((left - x0) / width + 1e-6)), int(np.ceil((right - x0) / width - 1e-6)))
    rows = slice(int(np.floor((top - y0) / height + 1e-6)), int(np.ceil((bottom - y0) / height - 1e-6)))
    shown = (x0 + columns.start * width, y0 + rows.start * height, x0 + columns.stop * width, y0 + rows.stop * height)
    return level.isel(x=columns, y=rows), shown


def _extent_um(sdata: SpatialData, raster_key: str, coordinate_system: str) -> tuple[float, float, float, float]:
    """Return x0, y0, x1, y1 of a raster in micrometres."""
    full = scale0(sdata.images[raster_key])
    affine = affine_to(full, coordinate_system)
    if affine is None:
        raise InputError(f"The raster {raster_key!r} is not placed in {coordinate_system!r}.")
    x0, y0 = affine[0, 2], affine[1, 2]
    return x0, y0, x0 + affine[0, 0] * full.sizes["x"], y0 + affine[1, 1] * full.sizes["y"]


def raster_scale(sdata: SpatialData, raster_key: str) -> str | None:
    """Return the scale of a raster's values if its provenance names it."""
    provenance = sdata.attrs.get(keys.UNS, {})
    text = provenance.get(raster_key) if isinstance(provenance, Mapping) else None
    try:
        return json.loads(text)["output_scale"] if isinstance(text, str) else None
    except (ValueError, KeyError, TypeError):
        return None


def _drawn_level(image: Any, *, share: float = 1.0) -> Any:
    """Return the finest level of a raster of which `share` is within `MAX_RASTER_PX`; the coarsest one if none is."""
    from xarray import DataTree

    if not isinstance(image, DataTree):
        return image
    levels = [next(iter(node.ds.values())) for node in image.children.values()]
    small = [level for level in levels if share * max(level.sizes["x"], level.sizes["y"]) <= MAX_RASTER_PX]
    return max(small or levels[-1:], key=lambda level: level.sizes["x"])

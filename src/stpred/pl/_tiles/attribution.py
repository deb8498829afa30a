from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import keys
from stpred._core.checks import InputError, key_in, listing
from stpred._core.elements import need_sdata, region_in_frame, table_instances
from stpred.pl._canvas import Canvas, color_limits, scale_bar
from stpred.pl._figure import finish
from stpred.pl._raster import raster_part, raster_scale
from stpred.pl._spatial import unit_in, values_of
from stpred.pl.labels import unit_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stpred.tl._trust.attribution import Attribution

SMOOTH = 50
"""The default smoothing is the tile's edge over this."""

AROUND = 5.0
"""Edge of the window in which predictions of locations are drawn, in tiles."""

PER_UM2 = 100.0
"""Area that attributions are given for, in square micrometres."""

_STRONG = 0.995


def attribution(
    found: Attribution,
    *,
    genes: str | Iterable[str] | None = None,
    sdata: SpatialData | None = None,
    table_key: str | None = None,
    raster_key: str | None = None,
    smooth_um: float | None = None,
    limit: float | None = None,
    cmap: str = "RdBu_r",
    image_key: str | None = None,
    coordinate_system: str = keys.UM,
    save: str | Path | None = None,
) -> NDArray[Any]:
    """Draw which parts of H&E tiles raise or lower a gene's prediction, beside the tiles and the prediction itself.

    Parameters
    ----------
    found
        What :func:`stpred.tl.attribution` returned: a row of panels for each of its tiles.
    genes
        Which of its genes; None: all.
    sdata
        Slide of the tiles, for panels of what is predicted there.
    table_key
        Predicted table of `sdata`: each gene has a panel of the locations around the tile, on the H&E image, in a
        window of five tiles, on the colour scale of the whole slide.
    raster_key
        Predicted map of `sdata` (:func:`stpred.tl.predict_map`) instead: the panel is the map over the tile.
    smooth_um
        Standard deviation of a Gaussian by which attributions are smoothed for the picture; single pixels of gradients
        are noisy. 0 leaves them; None: a fiftieth of the tile's edge.
    limit
        Attribution at the ends of the colour scale; None: 99.5 % of the absolute values of each gene, over all tiles.
    cmap
        Matplotlib colour map of the attributions, of which what is near 0 is transparent.
    image_key, coordinate_system
        Of `sdata`, as in :func:`stpred.pl.spatial`.
    save
        File to write the figure to.

    Returns
    -------
    (tiles, panels) axes in micrometres, each with a scale bar: the tile, and for each gene (the prediction, and) the
    attribution over the tile in grey. Attributions are drawn as the change of the prediction per 100 square
    micrometres, on one colour scale for all tiles of a gene: over a tile they add up to the difference of the
    prediction from that of the baseline, which the titles state.

    Raises
    ------
    InputError
        If a gene, table or raster is not there, or both are given, or neither comes with `sdata`.

    Examples
    --------
    >>> import stpred as st, torch
    >>> slide = st.datasets.toy(size_um=(500, 500), n_genes=20)
    >>> pool = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
    >>> encoder = st.encoders.get(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 5), pool), tile=st.TileSpec(4, 24))
    >>> model = st.tl.train(slide, "ridge", genes=["EPCAM"], encoder=encoder, shapes_key="spots")
    >>> found = st.tl.attribution(slide, model, ["EPCAM"], n_steps=8)
    >>> st.pl.attribution(found).shape
    (1, 2)
    """
    import matplotlib.pyplot as plt

    columns = _columns(found, genes)
    predicted = _checked_source(sdata, table_key, raster_key, found)
    densities = {c: _density(found, c, smooth_um) for c in columns}
    n_tiles, each = len(found.tiles), 2 if predicted else 1
    n_panels = 1 + each * len(columns)
    size = (3.5 * n_panels + 0.4 * len(columns), 3.6 * n_tiles)
    _, axes = plt.subplots(n_tiles, n_panels, figsize=size, squeeze=False, layout="constrained")
    for row, panels in enumerate(axes):
        box = _box(found, row)
        panels[0].imshow(found.tiles[row], extent=_extent(box))
        panels[0].set(title=f"{found.instances[row]}: H&E")
        for k, column in enumerate(columns):
            gene = found.genes[column]
            if predicted and sdata is not None:
                panel = panels[1 + each * k]
                if raster_key is not None:
                    _draw_raster(panel, sdata, raster_key, gene, found.tiles[row], box, coordinate_system)
                else:
                    _draw_table(panel, sdata, str(table_key), gene, box, image_key, coordinate_system)
            panel = panels[each * (k + 1)]
            strong = _limit(densities[column]) if limit is None else float(limit)
            _draw_attribution(panel, found, row, column, densities[column][row], strong=strong, cmap=cmap)
        for panel in panels:
            panel.set(xticks=[], yticks=[], aspect="equal")
            scale_bar(panel)
    return finish(axes, save)


def _columns(found: Attribution, genes: str | Iterable[str] | None) -> list[int]:
    """Return the positions of the genes that are drawn."""
    if not hasattr(found, "attributions"):
        raise InputError(f"`found` must be what stpred.tl.attribution returns, got {type(found).__name__}.")
    wanted = found.genes if genes is None else [genes] if isinstance(genes, str) else list(genes)
    if missing := [g for g in wanted if g not in found.genes]:
        raise InputError(f"There are no attributions of {listing(missing)}; there are of {listing(found.genes)}.")
    if not wanted:
        raise InputError("`genes` is empty; name one or more genes that were attributed.")
    return [found.genes.index(g) for g in dict.fromkeys(wanted)]


def _checked_source(
    sdata: SpatialData | None, table_key: str | None, raster_key: str | None, found: Attribution
) -> bool:
    """Whether there are panels of the prediction; half of what they need is refused."""
    if table_key is None and raster_key is None:
        if sdata is not None:
            raise InputError("`sdata` is for panels of the prediction: name them with `table_key` or `raster_key`.")
        return False
    if table_key is not None and raster_key is not None:
        raise InputError("Give `table_key` or `raster_key`, not both.")
    if sdata is None:
        raise InputError("`table_key` and `raster_key` are of a slide: pass it as `sdata`.")
    need_sdata(sdata)
    if found.centres_um is None:
        raise InputError("The attributions do not say where their tiles are; compute them anew.")
    if table_key is not None:
        key_in(table_key, sdata.tables, what="table", name="table_key")
    else:
        key_in(str(raster_key), sdata.images, what="image", name="raster_key")
    return True


def _density(found: Attribution, column: int, smooth_um: float | None) -> NDArray[np.float64]:
    """Return the (n, H, W) smoothed attributions of a gene, per `PER_UM2`."""
    from scipy.ndimage import gaussian_filter

    values = found.attributions[:, column].astype(np.float64) * (PER_UM2 / found.mpp**2)
    width = found.tiles.shape[1] * found.mpp
    sigma = width / SMOOTH if smooth_um is None else _not_negative(smooth_um)
    return gaussian_filter(values, (0, sigma / found.mpp, sigma / found.mpp), mode="nearest") if sigma else values


def _not_negative(smooth_um: Any) -> float:
    if isinstance(smooth_um, (str, bool)) or not 0 <= float(smooth_um) < float("inf"):
        raise InputError(f"`smooth_um` must be a number of micrometres of at least 0, got {smooth_um!r}.")
    return float(smooth_um)


def _limit(density: NDArray[np.float64]) -> float:
    return float(np.quantile(np.abs(density), _STRONG)) or 1e-12


def _box(found: Attribution, row: int) -> tuple[float, float, float, float]:
    """Return x0, y0, x1, y1 of a tile in micrometres: in the slide's frame, or from its own corner where unknown."""
    height, width = (n * found.mpp for n in found.tiles.shape[1:3])
    x, y = (width / 2, height / 2) if found.centres_um is None else found.centres_um[row]
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _extent(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    return box[0], box[2], box[3], box[1]


def _draw_attribution(
    ax: Axes, found: Attribution, row: int, column: int, density: NDArray[np.float64], *, strong: float, cmap: str
) -> None:
    """Draw a tile in grey with its attributions over it."""
    import matplotlib as mpl
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    extent = _extent(_box(found, row))
    grey = found.tiles[row].astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    ax.imshow(grey, extent=extent, cmap="gray", vmin=0, vmax=255, alpha=0.75)
    norm = Normalize(-strong, strong)
    colors = mpl.colormaps[cmap](norm(density.clip(-strong, strong)))
    colors[..., 3] = 0.9 * np.sqrt(np.abs(density) / strong).clip(0, 1)
    ax.imshow(colors, extent=extent, interpolation="nearest")
    unit = unit_of(found.output_scale) if found.output_scale is not None else "prediction"
    ax.figure.colorbar(ScalarMappable(norm, cmap), ax=ax, shrink=0.8, label=f"{unit} per {PER_UM2:g} µm²")
    value, start = found.predicted[row, column], found.at_baseline[row, column]
    ax.set_title(f"{found.genes[column]}: attribution\n{value:.2f} predicted, {found.baseline} {start:.2f}", fontsize=9)


def _draw_table(
    ax: Axes,
    sdata: SpatialData,
    table_key: str,
    gene: str,
    box: tuple[float, float, float, float],
    image_key: str | None,
    coordinate_system: str,
) -> None:
    """Draw what is predicted for the locations around a tile, whose outline is shown."""
    from matplotlib.patches import Rectangle

    table = sdata.tables[table_key]
    key_in(gene, table.var_names, what=f"gene of table {table_key!r}", name="genes")
    region = region_in_frame(sdata, table_key, coordinate_system=coordinate_system)
    rows, instances = table_instances(table, region)
    values = values_of(table, gene, None)[rows]
    (x0, y0, x1, y1), wider = box, (AROUND - 1) / 2
    margin = wider * (x1 - x0)
    window = (x0 - margin, y0 - margin, x1 + margin, y1 + margin)
    canvas = Canvas(sdata, region, image_key=image_key, coordinate_system=coordinate_system, crop_um=window)
    canvas.values(ax, values, instances, title=f"{gene}: predicted", limits=color_limits(values), unit=unit_in(table))
    ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor="black", linewidth=1.2))
    ax.title.set_fontsize(9)


def _draw_raster(
    ax: Axes,
    sdata: SpatialData,
    raster_key: str,
    gene: str,
    tile: NDArray[np.uint8],
    box: tuple[float, float, float, float],
    coordinate_system: str,
) -> None:
    """Draw a predicted map over a tile."""
    element, shown = raster_part(sdata, raster_key, box, coordinate_system)
    channels = [str(c) for c in element.coords["c"].values]
    key_in(gene, channels, what=f"gene of raster {raster_key!r}", name="genes")
    values = np.asarray(element.isel(c=channels.index(gene)))
    low, high = color_limits(np.asarray(raster_part(sdata, raster_key, None, coordinate_system)[0].sel(c=gene)))
    ax.imshow(tile, extent=_extent(box))
    drawn = ax.imshow(
        values, extent=_extent(shown), cmap="viridis", vmin=low, vmax=high, alpha=0.6, interpolation="nearest"
    )
    ax.figure.colorbar(drawn, ax=ax, shrink=0.8, label=unit_of(raster_scale(sdata, raster_key)))
    ax.set(xlim=(box[0], box[2]), ylim=(box[3], box[1]))
    ax.set_title(f"{gene}: predicted", fontsize=9)

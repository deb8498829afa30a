"""One panel: a slide's thumbnail with a region coloured by values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import keys
from stpred._core.checks import InputError
from stpred._core.elements import apply_affine, find_image
from stpred._core.geometry import placed
from stpred._core.tables import build_table
from stpred.tiles import Pyramid, thumbnail_element

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from matplotlib.axes import Axes
    from numpy.typing import NDArray
    from spatialdata import SpatialData

MIN_RASTERISED = 20_000
"""Locations from which on shapes are rasterised instead of drawn one by one: of fewer it saves a fifth of the memory at
most and shows the pixels' pattern."""

MAX_LEGEND_ROWS = 12

_FRAME = keys.UM
"""Frame of the small copy, whatever the slide's is called."""

MIN_IN_DISTRIBUTION = 0.5
"""Fraction of in-distribution tiles below which a picture warns."""


class Canvas:
    """A small copy of a slide (thumbnail and one region) on which values are drawn again and again."""

    def __init__(
        self,
        sdata: SpatialData,
        shapes_key: str,
        *,
        image_key: str | None,
        coordinate_system: str,
        crop_um: Any = None,
        max_px: int = 1200,
    ) -> None:
        from spatialdata import SpatialData as Object

        image_key = find_image(sdata, image_key, coordinate_system=coordinate_system)
        pyramid = Pyramid.from_image(sdata.images[image_key], coordinate_system=coordinate_system)
        window = None
        if crop_um is not None:
            window = window_of(crop_um, pyramid.bounds_um, what=f"image {image_key!r}", frame=coordinate_system)
        thumbnail = thumbnail_element(pyramid, max_px=max_px, box_um=window, coordinate_system=_FRAME)
        self.shapes_key, shapes = shapes_key, sdata.shapes[shapes_key]
        self.instances: pd.Index | None = None
        if window is not None:
            shapes = _touching(sdata, shapes_key, window, coordinate_system)
            self.instances = shapes.index
        shapes = _in_small_copy(shapes, coordinate_system)
        self.box_um = _box(shapes, thumbnail) if window is None else window
        self.small = Object(images={keys.IMAGE: thumbnail}, shapes={shapes_key: shapes})

    def shown(self, instances: pd.Index) -> NDArray[np.bool_]:
        """Return (n,) which of some locations lie in the window; all, where there is none."""
        if self.instances is None:
            return np.ones(len(instances), dtype=bool)
        return np.asarray(instances.isin(self.instances), dtype=bool)

    def image(self, ax: Axes, *, title: str = "H&E") -> None:
        """Draw the tissue alone."""
        import spatialdata_plot  # noqa: F401  (registers .pl)

        self._show(self.small.pl.render_images(keys.IMAGE), ax, title=title)

    def values(
        self,
        ax: Axes,
        values: NDArray[np.float32],
        instances: pd.Index,
        *,
        title: str,
        cmap: str = "viridis",
        limits: tuple[float, float] | None = None,
        image: bool = True,
        unit: str = "",
    ) -> None:
        """Draw one value per instance over the tissue, with `unit` beside the colour bar."""
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        inside = self.shown(instances)
        values = np.asarray(values)[inside]
        low, high = color_limits(values) if limits is None else limits
        # A constant (such as a score that is zero everywhere) gets a scale of its own size, not one of rounding errors.
        high = high if high - low > 1e-3 * max(abs(low), 1e-3) else low + max(abs(low), 1.0)
        norm = Normalize(float(low), float(high), clip=True)
        self._shapes(ax, values, instances[inside], title=title, cmap=cmap, norm=norm, image=image)
        ax.figure.colorbar(ScalarMappable(norm, cmap), ax=ax, shrink=0.8, pad=0.02, label=unit)

    def categories(
        self,
        ax: Axes,
        groups: pd.Categorical,
        instances: pd.Index,
        *,
        title: str,
        colors: Sequence[str] | None = None,
        image: bool = True,
    ) -> None:
        """Draw one category per instance over the tissue, and a legend; those without one are grey."""
        from matplotlib.colors import ListedColormap, Normalize
        from matplotlib.patches import Patch

        inside = self.shown(instances)
        names = [str(c) for c in groups.categories]
        colors = list(colors) if colors is not None else category_colors(len(names))
        codes = np.where(groups.codes < 0, np.nan, groups.codes)[inside]
        norm = Normalize(-0.5, len(names) - 0.5)
        self._shapes(ax, codes, instances[inside], title=title, cmap=ListedColormap(colors), norm=norm, image=image)
        present = np.unique(codes[np.isfinite(codes)]).astype(int)
        handles = [Patch(color=colors[k], label=names[k]) for k in present]
        ax.legend(
            handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, handlelength=1,
            ncols=-(-len(handles) // MAX_LEGEND_ROWS),
        )  # fmt: skip

    def _shapes(
        self, ax: Axes, values: NDArray[Any], instances: pd.Index, *, title: str, cmap: Any, norm: Any, image: bool
    ) -> None:
        import pandas as pd
        import spatialdata_plot  # noqa: F401  (registers .pl)

        self.small.tables["values"] = build_table(
            np.asarray(values, dtype=np.float32).reshape(-1, 1),
            shapes_key=self.shapes_key,
            instances=instances,
            var=pd.DataFrame(index=["value"]),
            spatial_um=np.zeros((len(instances), 2)),
        )
        base = self.small.pl.render_images(keys.IMAGE, alpha=0.6) if image else self.small
        drawn = base.pl.render_shapes(
            self.shapes_key,
            color="value",
            table_name="values",
            cmap=cmap,
            norm=norm,
            colorbar=False,
            method="datashader" if len(instances) > MIN_RASTERISED else "matplotlib",
        )
        self._show(drawn, ax, title=title)
        del self.small.tables["values"]

    def _show(self, drawn: Any, ax: Axes, *, title: str) -> None:
        drawn.pl.show(coordinate_systems=_FRAME, ax=ax, title=title)
        x0, y0, x1, y1 = self.box_um
        ax.set_xlim(x0, x1)
        ax.set_ylim(y1, y0)
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_ylabel("")
        scale_bar(ax)


def category_colors(n: int) -> list[str]:
    """Return a colour for each of n categories, as scanpy chooses them."""
    from scanpy.plotting.palettes import default_20, default_28, default_102

    palette = default_20 if n <= len(default_20) else default_28 if n <= len(default_28) else default_102
    return [palette[k % len(palette)] for k in range(n)]


def color_limits(*values: NDArray[Any]) -> tuple[float, float]:
    """Return the ends of a colour scale: quantiles 0.01 and 0.99 of each array, the lowest and the highest of them."""
    ends = [np.quantile(known, [0.01, 0.99]) for v in values if len(known := v[np.isfinite(v)])]
    return (float(min(e[0] for e in ends)), float(max(e[1] for e in ends))) if ends else (0.0, 1.0)


def scale_bar(ax: Axes) -> None:
    """Draw a scale bar below axes in micrometres, unless they have one."""
    from matplotlib_scalebar.scalebar import ScaleBar

    if any(isinstance(a, ScaleBar) for a in ax.artists):
        return
    ax.set_xlabel(" ", fontsize=18)  # the layout keeps room for a label, not for the bar
    below = {"bbox_to_anchor": (1.0, -0.01), "bbox_transform": ax.transAxes}
    ax.add_artist(ScaleBar(1.0, "um", location="upper right", box_alpha=0, border_pad=0, pad=0.1, **below))


def warn_across(
    figure: Any, in_distribution: NDArray[Any], *, scores: NDArray[Any] | None = None, one_donor: bool = False
) -> None:
    """Write a line across the top of a figure where most tiles are out of distribution, or nothing is known of it.

    `scores`: their out-of-distribution scores, NaN where what the model was trained on is not known. `one_donor`:
    whether that was a single donor.
    """
    fraction = float(np.mean(in_distribution)) if len(in_distribution) else 1.0
    if fraction >= MIN_IN_DISTRIBUTION:
        return
    of = "those of the single training donor" if one_donor else "the model's training tiles"
    text, colour = (
        f"Out of distribution: {1 - fraction:.0%} of the tiles are unlike {of}; do not rely on these values.",
        "firebrick",
    )
    if scores is not None and not np.isfinite(scores).any():
        text, colour = "The model's training tiles are not known: nothing says how far to rely on these values.", "0.4"
    figure.get_layout_engine().set(h_pad=0.1)
    figure.suptitle(text, color="white", bbox={"facecolor": colour, "edgecolor": "none", "pad": 3}, wrap=True)


def window_of(
    crop_um: Any, bounds_um: tuple[float, float, float, float], *, what: str, frame: str
) -> tuple[float, float, float, float]:
    """Return the part of a window (x0, y0, x1, y1) that lies on the slide; an empty or reversed one is refused."""
    try:
        numbers = [float(v) for v in crop_um]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != 4 or isinstance(crop_um, (str, bytes)) or not np.isfinite(numbers).all():
        raise InputError(
            f"`crop_um` must be four numbers (x0, y0, x1, y1) in micrometres of the frame {frame!r}, got {crop_um!r}."
        )
    x0, y0, x1, y1 = numbers
    if x1 < x0 or y1 < y0:
        raise InputError(
            f"`crop_um`={tuple(numbers)} is reversed: it is (x0, y0, x1, y1) with x0 < x1 and y0 < y1 (y grows "
            f"downwards); you may mean {(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))}."
        )
    if x1 == x0 or y1 == y0:
        raise InputError(f"`crop_um`={tuple(numbers)} is empty: its width is {x1 - x0:g} um, its height {y1 - y0:g}.")
    left, top, right, bottom = bounds_um
    if x0 >= right or x1 <= left or y0 >= bottom or y1 <= top:
        raise InputError(
            f"`crop_um`={tuple(numbers)} lies outside the slide: {what} reaches from ({left:.0f}, {top:.0f}) to "
            f"({right:.0f}, {bottom:.0f}) um in the frame {frame!r}."
        )
    return max(x0, left), max(y0, top), min(x1, right), min(y1, bottom)


def _touching(
    sdata: SpatialData, shapes_key: str, window: tuple[float, float, float, float], coordinate_system: str
) -> Any:
    """Return the shapes of a region whose boxes touch a window; none at all is refused."""
    element = sdata.shapes[shapes_key]
    affine = placed(sdata, shapes_key, coordinate_system=coordinate_system)
    low, high = np.split(element.geometry.bounds.to_numpy(), 2, axis=1)
    if "radius" in element.columns:
        radius = element["radius"].to_numpy(dtype=np.float64)[:, None]
        low, high = low - radius, high + radius
    corners = np.stack(
        [apply_affine(affine, np.column_stack([x[:, 0], y[:, 1]])) for x in (low, high) for y in (low, high)]
    )
    first, last = corners.min(axis=0), corners.max(axis=0)
    x0, y0, x1, y1 = window
    inside = (last[:, 0] > x0) & (last[:, 1] > y0) & (first[:, 0] < x1) & (first[:, 1] < y1)
    if not inside.any():
        (left, top), (right, bottom) = np.nanmin(first, axis=0), np.nanmax(last, axis=0)
        raise InputError(
            f"No shape of {shapes_key!r} lies in `crop_um`; they reach from ({left:.0f}, {top:.0f}) to ({right:.0f}, "
            f"{bottom:.0f}) um."
        )
    part = element[inside]
    part.attrs = dict(element.attrs)
    return part


def _in_small_copy(shapes: Any, coordinate_system: str) -> Any:
    """Return shapes whose place is stated for `_FRAME` alone, and as none for ``"global"``.

    Where spatialdata-plot rasterises, it transforms shapes to the frame that is drawn, and then takes their extent
    in ``"global"``: without that frame it fails, and with a vendor's pixels there it draws a part of the slide.
    """
    from spatialdata.transformations import Identity, get_transformation

    copy = shapes.copy(deep=False)
    copy.attrs = {"transform": {_FRAME: get_transformation(shapes, coordinate_system), "global": Identity()}}
    return copy


def _box(shapes: Any, image: Any) -> tuple[float, float, float, float]:
    """Return the part of the image (x0, y0, x1, y1) that holds the region, with a margin."""
    from spatialdata import get_extent

    part, whole = (get_extent(e, coordinate_system=_FRAME) for e in (shapes, image))
    margin = 0.05 * max(part[a][1] - part[a][0] for a in "xy")
    low = [max(part[a][0] - margin, whole[a][0]) for a in "xy"]
    high = [min(part[a][1] + margin, whole[a][1]) for a in "xy"]
    return low[0], low[1], high[0], high[1]

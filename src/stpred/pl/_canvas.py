"""One panel: a slide's thumbnail with a region coloured by values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import keys
from stpred._core.elements import find_image
from stpred._core.tables import build_table
from stpred.tiles import Pyramid, thumbnail_element

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from numpy.typing import NDArray
    from spatialdata import SpatialData

MIN_RASTERISED = 20_000
"""Locations from which on shapes are rasterised instead of drawn one by one."""

MIN_IN_DISTRIBUTION = 0.5
"""Fraction of in-distribution tiles below which a picture warns."""


class Canvas:
    """A small copy of a slide (thumbnail and one region) on which values are drawn again and again."""

    def __init__(
        self, sdata: SpatialData, shapes_key: str, *, image_key: str | None, coordinate_system: str, max_px: int = 1200
    ) -> None:
        from spatialdata import SpatialData as Object

        image_key = find_image(sdata, image_key, coordinate_system=coordinate_system)
        pyramid = Pyramid.from_image(sdata.images[image_key], coordinate_system=coordinate_system)
        thumbnail = thumbnail_element(pyramid, max_px=max_px, coordinate_system=coordinate_system)
        self.shapes_key, self.coordinate_system = shapes_key, coordinate_system
        self.box_um = _box(sdata.shapes[shapes_key], thumbnail, coordinate_system)
        self.small = Object(images={keys.IMAGE: thumbnail}, shapes={shapes_key: sdata.shapes[shapes_key]})

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
        import pandas as pd
        import spatialdata_plot  # noqa: F401  (registers .pl)
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        table = build_table(
            np.asarray(values, dtype=np.float32).reshape(-1, 1),
            shapes_key=self.shapes_key,
            instances=instances,
            var=pd.DataFrame(index=["value"]),
            spatial_um=np.zeros((len(instances), 2)),
        )
        self.small.tables["values"] = table
        low, high = color_limits(values) if limits is None else limits
        # A constant (such as a score that is zero everywhere) gets a scale of its own size, not one of rounding errors.
        high = high if high - low > 1e-3 * max(abs(low), 1e-3) else low + max(abs(low), 1.0)
        norm = Normalize(float(low), float(high), clip=True)
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
        ax.figure.colorbar(ScalarMappable(norm, cmap), ax=ax, shrink=0.8, pad=0.02, label=unit)

    def _show(self, drawn: Any, ax: Axes, *, title: str) -> None:
        drawn.pl.show(coordinate_systems=self.coordinate_system, ax=ax, title=title)
        x0, y0, x1, y1 = self.box_um
        ax.set_xlim(x0, x1)
        ax.set_ylim(y1, y0)
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_ylabel("")
        scale_bar(ax)


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


def warn_across(figure: Any, in_distribution: NDArray[Any], *, what: str = "tiles") -> None:
    """Write a line across the top of a figure where most tiles are out of distribution."""
    fraction = float(np.mean(in_distribution)) if len(in_distribution) else 1.0
    if fraction < MIN_IN_DISTRIBUTION:
        figure.get_layout_engine().set(h_pad=0.1)
        figure.suptitle(
            f"Out of distribution: {1 - fraction:.0%} of the {what} are unlike the model's training tiles; do not rely "
            "on these values.",
            color="white",
            bbox={"facecolor": "firebrick", "edgecolor": "none", "pad": 3},
            wrap=True,
        )


def _box(shapes: Any, image: Any, coordinate_system: str) -> tuple[float, float, float, float]:
    """Return the part of the image (x0, y0, x1, y1) that holds the region, with a margin."""
    from spatialdata import get_extent

    part, whole = (get_extent(e, coordinate_system=coordinate_system) for e in (shapes, image))
    margin = 0.05 * max(part[a][1] - part[a][0] for a in "xy")
    low = [max(part[a][0] - margin, whole[a][0]) for a in "xy"]
    high = [min(part[a][1] + margin, whole[a][1]) for a in "xy"]
    return low[0], low[1], high[0], high[1]

"""One map: a slide's thumbnail with a region coloured by values."""

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

_MANY = 20_000
"""Locations from which on shapes are rasterised instead of drawn one by one."""


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
        self.small = Object(images={keys.IMAGE: thumbnail}, shapes={shapes_key: sdata.shapes[shapes_key]})

    def image(self, ax: Axes, *, title: str = "H&E") -> None:
        """Draw the tissue alone."""
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
        label: str = "",
        image: bool = True,
    ) -> None:
        """Draw one value per instance over the tissue."""
        import pandas as pd
        import spatialdata_plot  # noqa: F401  (registers .pl)
        from matplotlib.colors import Normalize

        table = build_table(
            np.asarray(values, dtype=np.float32).reshape(-1, 1),
            shapes_key=self.shapes_key,
            instances=instances,
            var=pd.DataFrame(index=["value"]),
            spatial_um=np.zeros((len(instances), 2)),
        )
        self.small.tables["values"] = table
        finite = values[np.isfinite(values)]
        low, high = (np.quantile(finite, [0.01, 0.99]) if len(finite) else (0, 1)) if limits is None else limits
        base = self.small.pl.render_images(keys.IMAGE, alpha=0.6) if image else self.small
        drawn = base.pl.render_shapes(
            self.shapes_key,
            color="value",
            table_name="values",
            cmap=cmap,
            norm=Normalize(float(low), float(max(high, low + 1e-6)), clip=True),
            method="datashader" if len(instances) > _MANY else "matplotlib",
        )
        self._show(drawn, ax, title=title)
        del self.small.tables["values"]
        if label and ax.figure.axes[-1] is not ax:
            ax.figure.axes[-1].set_ylabel(label, fontsize=8)

    def _show(self, drawn: Any, ax: Axes, *, title: str) -> None:
        drawn.pl.show(
            coordinate_systems=self.coordinate_system, ax=ax, title=title, scalebar_dx=1.0, scalebar_units="um"
        )
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_xlabel("")
        ax.set_ylabel("")

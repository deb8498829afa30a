"""Shapes elements that are added to an object."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stpred._core import keys, tables
from stpred._core.checks import InputError, warn
from stpred._core.elements import need_sdata, table_regions

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from spatialdata import SpatialData


def check_shapes(sdata: SpatialData, key: str) -> None:
    """Refuse a name of shapes that is taken by another element, or by shapes that carry measured values."""
    need_sdata(sdata)
    tables.check_name(sdata, key, kind="shapes")
    for name, table in sdata.tables.items() if key in sdata.shapes else ():
        if key in table_regions(table) and keys.UNS not in table.uns:
            raise InputError(
                f"Shapes {key!r} carry the measured table {name!r}, so they are not overwritten; choose another "
                "`key_added`."
            )


def put_shapes(sdata: SpatialData, key: str, frame: GeoDataFrame, *, coordinate_system: str = keys.UM) -> None:
    """Put shapes whose coordinates are micrometres into the object."""
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    check_shapes(sdata, key)
    if frame.empty:
        raise InputError(
            f"No shapes {key!r} were found: none is left on this image in the frame {coordinate_system!r}."
        )
    element = ShapesModel.parse(frame, transformations={coordinate_system: Identity()})
    if key in sdata.shapes:
        warn(f"Shapes {key!r} existed and are overwritten in memory.")
        del sdata.shapes[key]
    sdata.shapes[key] = element

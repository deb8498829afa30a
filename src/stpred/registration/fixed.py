"""What an image is registered to, whatever kind of element it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stpred._core import keys
from stpred._core.checks import InputError, key_in
from stpred._core.elements import affine_to, mpp_of, rgb_problem
from stpred.calibration import scaling
from stpred.registration.images import read_fluorescence, read_he
from stpred.registration.locations import read_locations
from stpred.registration.placed import Placed

if TYPE_CHECKING:
    from spatialdata import SpatialData


def read_fixed(
    sdata: SpatialData,
    fixed: str,
    *,
    channel: str | None = None,
    table_key: str | None = None,
    layer: str | None = None,
    coordinate_system: str = keys.UM,
) -> Placed:
    """Return what an image is registered to; parameters as of :func:`stpred.pp.register`.

    Raises
    ------
    InputError
        If there is no such element, it has no place, or an option is not of its kind.
    """
    kinds = {"images": sdata.images, "shapes": sdata.shapes, "points": sdata.points}
    if fixed in sdata.labels:
        raise InputError(
            f"`fixed`={fixed!r} is a label image; make polygons from it with spatialdata.to_polygons and name these."
        )
    key_in(fixed, [k for kind in kinds.values() for k in kind], what="image, shapes or points", name="fixed")
    kind = next(name for name, elements in kinds.items() if fixed in elements)
    affine = affine_to(kinds[kind][fixed], coordinate_system)
    if affine is None:
        raise InputError(
            f"{fixed!r} is not placed in the coordinate system {coordinate_system!r}, in which the image will lie; run "
            "stpred.pp.calibrate(sdata), or set its transformation to micrometres."
        )
    if kind != "images":
        if channel is not None:
            raise InputError(f"`channel` is of fluorescence images; {fixed!r} are {kind}.")
        return read_locations(sdata, fixed, table_key=table_key, layer=layer, coordinate_system=coordinate_system)
    if table_key is not None or layer is not None:
        raise InputError(f"`table_key` and `layer` are of spots and bins; {fixed!r} is an image.")
    image = sdata.images[fixed]
    if rgb_problem(image) is not None or channel is not None:
        return read_fluorescence(image, affine, channel=channel, key=fixed)
    mpp = mpp_of(affine, what=f"image {fixed!r}")
    what = f"Image {fixed!r}"
    return Placed(read_he(image, mpp, what=what), affine @ scaling(1 / mpp), what)

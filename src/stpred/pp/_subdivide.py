from __future__ import annotations

from typing import TYPE_CHECKING

from stpred import regions
from stpred._core import keys
from stpred._core.checks import InputError, element_name, positive
from stpred._core.elements import find_region, need_sdata, shapes_in

if TYPE_CHECKING:
    from spatialdata import SpatialData


def subdivide(
    sdata: SpatialData,
    shapes_key: str | None = None,
    *,
    size_um: float = 8.0,
    key_added: str | None = None,
    coordinate_system: str = keys.UM,
) -> None:
    """Cut spots, tissue or any other region into squares, to predict finer than was measured.

    The squares lie on one lattice, anchored at the origin of the micrometre frame, so that those of two regions and the
    bins of :func:`aggregate` agree. A square belongs to a shape when its centre lies in it; of several shapes that
    overlap there, to the one whose centroid is nearest.

    Parameters
    ----------
    sdata
        Object with the region. No image is needed.
    shapes_key
        Circles or polygons to cut; None takes the slide's only region (squares made here do not count as one), else
        ``tissue`` when present.
    size_um
        Edge of the squares in micrometres.
    key_added
        Name of the squares; None makes ``{shapes}_008um`` and the like.
    coordinate_system
        The slide's micrometre frame.

    Returns
    -------
    None. Writes ``sdata.shapes[key_added]``: squares in micrometres by row and then column, whose index ``x{i}y{j}``
    tells column and row of the lattice, with the id of the shape that each belongs to as ``parent``. Shapes that hold
    no centre have no square; a warning in the log lists them.

    Raises
    ------
    InputError
        If there is no such region, it is empty or not placed in micrometres, or no shape of it holds a square's centre.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(size_um=(500, 500), n_genes=20)
    >>> st.pp.subdivide(slide, "spots", size_um=8)
    >>> bool(slide.shapes["spots_008um"]["parent"].isin(slide.shapes["spots"].index).all())
    True
    """
    need_sdata(sdata)
    size = positive(size_um, name="size_um", unit="micrometres")
    shapes_key = _region(sdata, coordinate_system) if shapes_key is None else find_region(sdata, shapes_key)
    key_added = element_name(keys.squares(shapes_key, size) if key_added is None else key_added)
    if key_added == shapes_key:
        raise InputError(f"`key_added`={key_added!r} is the region that is cut; choose another name.")
    regions.check_shapes(sdata, key_added)
    frame = regions.cut(sdata, shapes_key, size_um=size, coordinate_system=coordinate_system)
    regions.put_shapes(sdata, key_added, frame, coordinate_system=coordinate_system)


def _region(sdata: SpatialData, coordinate_system: str) -> str:
    whole = [k for k in shapes_in(sdata, coordinate_system) if "parent" not in sdata.shapes[k].columns]
    usual = keys.in_frame(keys.TISSUE, coordinate_system)
    if len(whole) == 1:
        return whole[0]
    return usual if usual in sdata.shapes else find_region(sdata, coordinate_system=coordinate_system)

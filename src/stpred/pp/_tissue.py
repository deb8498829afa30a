from __future__ import annotations

from typing import TYPE_CHECKING

from stpred import regions
from stpred._core import keys
from stpred._core.checks import element_name

if TYPE_CHECKING:
    from spatialdata import SpatialData


def tissue(
    sdata: SpatialData,
    *,
    image_key: str | None = None,
    key_added: str | None = None,
    min_area_um2: float = 20_000.0,
    coordinate_system: str = keys.UM,
) -> None:
    """Outline the tissue on the H&E image.

    Parameters
    ----------
    sdata
        Object with a calibrated H&E image.
    image_key
        H&E image; None takes the one in the micrometre frame.
    key_added
        Name of the shapes; None makes ``tissue``, with the frame's suffix in a frame other than ``"um"``.
    min_area_um2
        Smaller pieces are dropped.
    coordinate_system
        The slide's micrometre frame.

    Returns
    -------
    None. Writes ``sdata.shapes[key_added]``: polygons (with holes) in micrometres.

    Raises
    ------
    InputError
        If there is no calibrated H&E image, or no tissue on it.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(seed=0)
    >>> st.pp.tissue(slide)
    >>> "tissue" in slide.shapes
    True
    """
    key_added = element_name(keys.in_frame(keys.TISSUE, coordinate_system) if key_added is None else key_added)
    regions.check_shapes(sdata, key_added)
    frame = regions.outline_tissue(
        sdata, image_key=image_key, coordinate_system=coordinate_system, min_area_um2=min_area_um2
    )
    regions.put_shapes(sdata, key_added, frame, coordinate_system=coordinate_system)

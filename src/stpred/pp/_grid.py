from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from stpred import regions
from stpred._core import keys
from stpred._core.checks import element_name, key_in

if TYPE_CHECKING:
    from spatialdata import SpatialData


def grid(
    sdata: SpatialData,
    *,
    pitch_um: float = 100.0,
    layout: Literal["square", "hexagonal"] = "square",
    image_key: str | None = None,
    tissue_key: str | None = None,
    key_added: str | None = None,
    coordinate_system: str = keys.UM,
) -> None:
    """Lay a grid of circles on the tissue, to predict on a slide that has no spots.

    Parameters
    ----------
    sdata
        Object with a calibrated H&E image.
    pitch_um
        Distance of neighbouring centres in micrometres; 100 is Visium's.
    layout
        ``"square"`` or ``"hexagonal"``.
    image_key
        H&E image; None takes the one in the micrometre frame.
    tissue_key
        Shapes to stay on; None takes ``tissue`` when present and detects the tissue otherwise.
    key_added
        Name of the shapes; None makes ``grid``, with the frame's suffix in a frame other than ``"um"``.
    coordinate_system
        The slide's micrometre frame.

    Returns
    -------
    None. Writes ``sdata.shapes[key_added]``: circles of diameter `pitch_um` in micrometres.

    Raises
    ------
    InputError
        If there is no calibrated H&E image or no point lies on tissue.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(size_um=(500, 500), n_genes=20)
    >>> st.pp.grid(slide, pitch_um=50)
    >>> float(slide.shapes["grid"].radius.iloc[0])
    25.0
    """
    key_added = element_name(keys.in_frame(keys.GRID, coordinate_system) if key_added is None else key_added)
    regions.check_shapes(sdata, key_added)
    if tissue_key is None:
        usual = keys.in_frame(keys.TISSUE, coordinate_system)
        tissue_key = usual if usual in sdata.shapes else None
    else:
        key_in(tissue_key, sdata.shapes, what="shapes element", name="tissue_key")
    frame = regions.lay_grid(
        sdata,
        pitch_um=pitch_um,
        layout=layout,
        image_key=image_key,
        tissue_key=tissue_key,
        coordinate_system=coordinate_system,
    )
    regions.put_shapes(sdata, key_added, frame, coordinate_system=coordinate_system)

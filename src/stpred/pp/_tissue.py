from __future__ import annotations

from typing import TYPE_CHECKING

from stpred import regions
from stpred._core import keys
from stpred._core.checks import element_name, one_of
from stpred._image.tissue import METHODS, checked_threshold

if TYPE_CHECKING:
    from spatialdata import SpatialData


def tissue(
    sdata: SpatialData,
    *,
    image_key: str | None = None,
    key_added: str | None = None,
    min_area_um2: float = 20_000.0,
    method: str | None = None,
    threshold: float | None = None,
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
    method
        What tissue is told from glass by, on a copy of 8 um per pixel smoothed over 10 um. ``"auto"`` (None): optical
        density (-log10 of the mean grey value over that of the slide's own glass), cut at Otsu's threshold within
        0.04 to 0.12, and below where the pixels under the cut are textured as tissue is (pale stain, tissue of
        several densities); pen marks are left out. ``"otsu"``: Otsu's threshold on optical density as it comes.
        ``"saturation"``: Otsu's threshold on saturation (1 - min / max of red, green and blue). Fill of one colour
        (rotation, registration, stitching) is left out whatever the method.
    threshold
        Cut to use instead of the one that is found: an optical density above glass (about 0.02 for pale stain to 0.15),
        or a saturation from 0 to 1 for ``"saturation"``.
    coordinate_system
        The slide's micrometre frame.

    Returns
    -------
    None. Writes ``sdata.shapes[key_added]``: polygons (with holes) in micrometres.

    Raises
    ------
    InputError
        If there is no calibrated H&E image, or no tissue on it, or the method is unknown or the threshold out of range.

    Warns
    -----
    UserWarning
        If the outline is unsure: hardly any glass to compare with, pale stain, or densities of glass and tissue that
        run into each other.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(size_um=(500, 500), n_genes=20)
    >>> st.pp.tissue(slide)
    >>> "tissue" in slide.shapes
    True
    """
    method = "auto" if method is None else one_of(method, METHODS, name="method")
    threshold = checked_threshold(threshold, method=method)
    key_added = element_name(keys.in_frame(keys.TISSUE, coordinate_system) if key_added is None else key_added)
    regions.check_shapes(sdata, key_added)
    frame = regions.outline_tissue(
        sdata,
        image_key=image_key,
        coordinate_system=coordinate_system,
        min_area_um2=min_area_um2,
        method=method,
        threshold=threshold,
    )
    regions.put_shapes(sdata, key_added, frame, coordinate_system=coordinate_system)

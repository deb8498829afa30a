"""A plain H&E image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stpred._core import keys
from stpred.calibration import scaling, settle_mpp
from stpred.io._assemble import slide
from stpred.io._images.open import open_pixels
from stpred.io._images.pixels import to_image

if TYPE_CHECKING:
    from spatialdata import SpatialData


def wsi(path: str | Path, *, mpp: float | None = None, scene: int | str | None = None) -> SpatialData:
    """Read a plain H&E slide: a whole-slide image, a tif of any layout, or a png or jpg.

    Nothing is decoded here; the file's own pyramid is used, and coarser levels are averaged lazily where it has none.

    Parameters
    ----------
    path
        svs, ome.tif, pyramidal or flat tif, btf, ndpi, png or jpg; other vendors' formats with ``stpred[wsi]``.
    mpp
        Micrometres per pixel; needed where the file does not state it. It wins over what the file states, with a
        warning where the two differ by more than ``settings.mpp_tolerance``.
    scene
        Number or name of the picture to read, of files that hold several (OME, SCN, QPTIFF, pages of a tif); None takes
        the largest that is no label, macro or thumbnail, and warns if another one could have been meant.

    Returns
    -------
    Object with the image ``he`` (dims c, y, x, uint8, lazy, multiscale), placed in the coordinate systems ``"um"``
    (micrometres) and ``"global"`` (pixels). It has no shapes; ``stpred.pp.tissue`` and ``stpred.pp.grid`` make some.

    Raises
    ------
    InputError
        If the image is not 8-bit RGB (fluorescence channels are not), is damaged, has no such scene, or its resolution
        is neither stated nor given.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy_wsi("slide.svs", format="svs", size_um=(300, 300))
    >>> sdata = st.io.wsi(slide)
    >>> list(sdata.images), list(sdata.tables)
    (['he'], [])

    An image that does not state its resolution: ``st.io.wsi("slide.png", mpp=0.5)``; the second of several scenes:
    ``st.io.wsi("slides.scn", scene=2)``.
    """
    pixels = open_pixels(path, scene=scene)
    resolution = settle_mpp(pixels.evidence, user_mpp=mpp, what=f"the image {pixels.path.name!r}")
    image = to_image(pixels, {"global": np.eye(3), keys.UM: scaling(resolution)})
    return slide(images={keys.IMAGE: image}, shapes={}, tables={})

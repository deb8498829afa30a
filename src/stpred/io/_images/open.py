"""Opening an image file of any format, by its suffix."""

from __future__ import annotations

from pathlib import Path

from stpred._core.checks import InputError, MissingFileError, listing
from stpred._core.files import readable
from stpred.io._images.flat import open_flat
from stpred.io._images.pixels import Pixels
from stpred.io._images.tiff import open_tiff
from stpred.io._images.vendor import open_vendor

TIFF_SUFFIXES = (".tif", ".tiff", ".btf", ".tf8", ".svs", ".ndpi", ".scn", ".qptiff")
FLAT_SUFFIXES = (".png", ".jpg", ".jpeg")
VENDOR_SUFFIXES = (".mrxs", ".vms", ".vmu", ".bif", ".dcm", ".czi", ".vsi", ".isyntax")
SUFFIXES = TIFF_SUFFIXES + FLAT_SUFFIXES + VENDOR_SUFFIXES


def open_pixels(path: str | Path, *, scene: int | str | None = None) -> Pixels:
    """Open an image file without decoding it.

    Tiled, stripped and pyramidal tifs (OME, Aperio, Hamamatsu, generic) go through tifffile, png and jpg through
    Pillow, other vendors' slides through wsidata.

    Parameters
    ----------
    path
        The file.
    scene
        Number or name of the picture to read, of files that hold several; None takes the largest that is no label,
        macro or thumbnail, and warns if another one could have been meant.

    Raises
    ------
    MissingFileError
        If there is no such file.
    InputError
        If it is no 8-bit RGB image, is cut off, is larger than its bytes or the memory allow, has no such scene, or is
        of a format that nothing here reads.
    """
    path = Path(path)
    with readable(path.name, what="image"):
        there, regular = path.exists(), path.is_file()
    if not there:
        raise MissingFileError(f"There is no image file {str(path)!r}.")
    suffix = path.suffix.lower()
    if suffix in SUFFIXES and not regular:  # reading a pipe would wait for ever
        raise InputError(f"{str(path)!r} is not an image file but a folder, or something else that is no file.")
    if suffix in TIFF_SUFFIXES:
        return open_tiff(path, scene=scene)
    if suffix in FLAT_SUFFIXES:
        return open_flat(path, scene=scene)
    if suffix in VENDOR_SUFFIXES:
        return open_vendor(path, scene=scene)
    raise InputError(f"{path.name!r} is no image format that can be read; known: {listing(SUFFIXES, most=40)}.")

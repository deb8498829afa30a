"""Opening an image file of any format, by its suffix."""

from __future__ import annotations

from pathlib import Path

from stpred._core.checks import InputError, MissingFileError, listing
from stpred.io._flat import open_flat
from stpred.io._pixels import Pixels
from stpred.io._tiff import open_tiff
from stpred.io._vendor import open_vendor

TIFF_SUFFIXES = (".tif", ".tiff", ".btf", ".tf8", ".svs", ".ndpi", ".scn", ".qptiff")
FLAT_SUFFIXES = (".png", ".jpg", ".jpeg")
VENDOR_SUFFIXES = (".mrxs", ".vms", ".vmu", ".bif", ".dcm", ".czi", ".vsi", ".isyntax")
SUFFIXES = TIFF_SUFFIXES + FLAT_SUFFIXES + VENDOR_SUFFIXES


def open_pixels(path: str | Path) -> Pixels:
    """Open an image file without decoding it.

    Tiled, stripped and pyramidal tifs (OME, Aperio, Hamamatsu, generic) go through tifffile, png and jpg through
    Pillow, other vendors' slides through wsidata.

    Raises
    ------
    MissingFileError
        If there is no such file.
    InputError
        If it is no 8-bit RGB image, is cut off, or is of a format that nothing here reads.
    """
    path = Path(path)
    if not path.exists():
        raise MissingFileError(f"There is no image file {str(path)!r}.")
    suffix = path.suffix.lower()
    if suffix in TIFF_SUFFIXES:
        return open_tiff(path)
    if suffix in FLAT_SUFFIXES:
        return open_flat(path)
    if suffix in VENDOR_SUFFIXES:
        return open_vendor(path)
    raise InputError(f"{path.name!r} is no image format that can be read; known: {listing(SUFFIXES, most=40)}.")

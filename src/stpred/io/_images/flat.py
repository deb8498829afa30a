"""png and jpg: the header is read at once, the pixels once, when they are first looked at."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from stpred._core.checks import InputError, warn
from stpred._core.files import readable
from stpred.calibration import Evidence
from stpred.io._images.channels import on_white
from stpred.io._images.pixels import FlatImage, Pixels, refuse_mode
from stpred.io._images.resolution import density
from stpred.io._images.sizes import check_memory

logger = logging.getLogger("stpred")

ORIENTATION = 0x0112
"""Exif's tag."""
MAX_NOTES = 2**20

_MODES = {
    "1": "black and white",
    "L": "greyscale",
    "LA": "greyscale with transparency",
    "La": "greyscale with transparency",
    "CMYK": "CMYK",
    "I": "32-bit greyscale",
    "I;16": "16-bit greyscale",
    "I;16B": "16-bit greyscale",
}
_COLOUR_MODES = ("RGB", "RGBA", "P", "PA")


def open_flat(path: Path, *, scene: int | str | None = None) -> Pixels:
    """Open a png or jpg; its end marker is looked for, so that a cut file is refused before any work.

    Palettes become RGB, the Exif orientation is applied, and what is transparent is laid on white, with a warning.
    """
    if scene not in (None, 0, "0") or isinstance(scene, bool):
        raise InputError(f"`scene` must be 0 or None, got {scene!r}: {path.name!r} holds one picture.")
    with readable(path.name, what="image"), _image_file(path) as image:
        width, height = image.size
        transparent = image.mode in ("RGBA", "PA") or "transparency" in image.info
        check_memory(path, (3, height, width), size=path.stat().st_size, samples=4 if transparent else 3)
        if image.mode not in _COLOUR_MODES or _bits(image) > 8:
            refuse_mode(path, found="16-bit" if _bits(image) > 8 else _MODES.get(image.mode, f"of mode {image.mode!r}"))
        dpi = image.info.get("dpi")
        turn = _orientation(image, path)
        _check_end(path)
    if turn >= 5:
        width, height = height, width
    evidence: tuple[Evidence, ...] = ()
    if dpi is not None and (found := _density(dpi, f"the dpi of {path.name}")):
        evidence = (found,)
    level = FlatImage(path, (3, height, width), _decode)
    if turn != 1:
        logger.info("%s is turned as its Exif orientation says (%d).", path.name, turn)
    if transparent and not _is_opaque(path):
        warn(f"The image {path.name!r} is transparent in parts, which are laid on white.")
    return Pixels(path, (level,), evidence)


def _density(dpi: Any, source: str) -> Evidence | None:
    try:
        return density(float(dpi[0]), unit_um=25400.0, source=source)
    except (TypeError, ValueError, IndexError, ZeroDivisionError):
        return None


def _image_file(path: Path) -> Any:
    """Open the header; the format's own class is used since `Image.open` refuses large slides by a global limit."""
    from PIL.JpegImagePlugin import JpegImageFile
    from PIL.PngImagePlugin import PngImageFile

    with path.open("rb") as file:
        magic = file.read(8)
    if not magic.startswith((b"\xff\xd8", b"\x89PNG")):
        raise InputError(f"{path.name!r} is neither a png nor a jpg, whatever its name says.")
    image: Any = PngImageFile(path) if magic.startswith(b"\x89PNG") else JpegImageFile(path)
    if 0 in image.size:
        raise InputError(f"The image {path.name!r} holds no pixels.")
    return image


def _bits(image: Any) -> int:
    """Return the bits per channel that a png header states; Pillow silently cuts 16-bit colour to 8."""
    for mode in [tile[3] for tile in image.tile]:
        raw = mode[0] if isinstance(mode, tuple) else mode
        if isinstance(raw, str) and ";16" in raw:
            return 16
    return 8


def _orientation(image: Any, path: Path) -> int:
    """Return the Exif orientation, 1 to 8; notes that cannot be read tell nothing."""
    from PIL import Image

    try:
        with readable(path.name, what="Exif header of"):
            if image.format == "PNG" and "exif" not in image.info and (notes := _png_chunk(path, b"eXIf")) is not None:
                image.info["exif"] = b"Exif\x00\x00" + notes
            turn = Image.Image.getexif(image).get(ORIENTATION, 1)  # that of the png class decodes the image first
    except InputError as error:  # the pixels do not need it
        logger.info("%s", error)
        return 1
    return int(turn) if isinstance(turn, int) and 1 <= turn <= 8 else 1


def _png_chunk(path: Path, kind: bytes) -> bytes | None:
    """Return the first chunk of a kind, which may also lie behind the pixels."""
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length = int.from_bytes(head[:4], "big")
            if head[4:] == kind:
                return file.read(min(length, MAX_NOTES))
            file.seek(length + 4, 1)
    return None


def _check_end(path: Path) -> None:
    with path.open("rb") as file:
        magic = file.read(4)
        size = file.seek(0, 2)
        file.seek(max(0, size - 65536))  # some programs write notes behind the end of the image
        tail = file.read()
    if (b"IEND" if magic == b"\x89PNG" else b"\xff\xd9") not in tail:
        raise InputError(f"The image {path.name!r} is cut off: its end marker is missing; copy or download it again.")


def _is_opaque(path: Path) -> bool:
    """Decode an image with transparency, to tell whether any of it is."""
    with readable(path.name, what="image"), _image_file(path) as image:
        if image.mode != "RGBA":
            image = image.convert("RGBA")
        low, _ = image.getchannel("A").getextrema()
    return bool(low == 255)


def _decode(path: Path) -> np.ndarray:
    with readable(path.name, what="image"), _image_file(path) as image:
        turn = _orientation(image, path)
        if image.mode in ("RGBA", "PA") or "transparency" in image.info:
            pixels = on_white(np.asarray(image.convert("RGBA")))
        elif image.mode == "RGB":
            pixels = np.asarray(image)  # converting would copy all of it
        else:
            pixels = np.asarray(image.convert("RGB"))
    return displayed(pixels, turn)


def displayed(pixels: np.ndarray, turn: int) -> np.ndarray:
    """Return stored (y, x, c) pixels as an orientation of 1 to 8 wants them displayed."""
    if turn >= 5:
        pixels = pixels.transpose(1, 0, 2)
    flip_y, flip_x = turn in (3, 4, 7, 8), turn in (2, 3, 6, 7)
    return np.ascontiguousarray(pixels[:: -1 if flip_y else 1, :: -1 if flip_x else 1]) if turn != 1 else pixels

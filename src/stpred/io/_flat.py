"""png and jpg: the header is read at once, the pixels once, when they are first looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from stpred._core.calibration import Evidence
from stpred._core.checks import InputError
from stpred.io._pixels import FlatImage, Pixels, refuse_mode
from stpred.io._resolution import density

_MODES = {
    "1": "black and white",
    "L": "greyscale",
    "LA": "greyscale with transparency",
    "P": "a palette image",
    "RGBA": "RGBA (four channels)",
    "CMYK": "CMYK",
    "I": "32-bit greyscale",
    "I;16": "16-bit greyscale",
    "I;16B": "16-bit greyscale",
}


def open_flat(path: Path) -> Pixels:
    """Open a png or jpg; its end marker is looked for, so that a cut file is refused before any work."""
    image = _image_file(path)
    with image:
        width, height = image.size
        if image.mode != "RGB" or _bits(image) > 8:
            refuse_mode(path, found="16-bit" if _bits(image) > 8 else _MODES.get(image.mode, f"of mode {image.mode!r}"))
        dpi = image.info.get("dpi")
    _check_end(path)
    evidence: tuple[Evidence, ...] = ()
    if dpi is not None and (found := density(float(dpi[0]), unit_um=25400.0, source=f"the dpi of {path.name}")):
        evidence = (found,)
    return Pixels(path, (FlatImage(path, (3, height, width), _decode),), evidence)


def _image_file(path: Path) -> Any:
    """Open the header; the format's own class is used since `Image.open` refuses large slides by a global limit."""
    from PIL import UnidentifiedImageError
    from PIL.JpegImagePlugin import JpegImageFile
    from PIL.PngImagePlugin import PngImageFile

    with path.open("rb") as file:
        magic = file.read(8)
    if not magic.startswith((b"\xff\xd8", b"\x89PNG")):
        raise InputError(f"{path.name!r} is neither a png nor a jpg, whatever its name says.")
    try:
        image: Any = PngImageFile(path) if magic.startswith(b"\x89PNG") else JpegImageFile(path)
        if 0 in image.size:
            raise InputError(f"The image {path.name!r} holds no pixels.")
        return image
    except InputError:
        raise
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise InputError(f"The image {path.name!r} cannot be read: {error}.") from error


def _bits(image: Any) -> int:
    """Return the bits per channel that a png header states; Pillow silently cuts 16-bit colour to 8."""
    for mode in [tile[3] for tile in image.tile]:
        raw = mode[0] if isinstance(mode, tuple) else mode
        if isinstance(raw, str) and ";16" in raw:
            return 16
    return 8


def _check_end(path: Path) -> None:
    with path.open("rb") as file:
        magic = file.read(4)
        size = file.seek(0, 2)
        file.seek(max(0, size - 65536))  # some programs write notes behind the end of the image
        tail = file.read()
    if (b"IEND" if magic == b"\x89PNG" else b"\xff\xd9") not in tail:
        raise InputError(f"The image {path.name!r} is cut off: its end marker is missing; copy or download it again.")


def _decode(path: Path) -> np.ndarray:
    with _image_file(path) as image:
        try:
            return np.asarray(image)  # RGB, as was seen when it was opened; converting would copy all of it
        except OSError as error:
            raise InputError(f"The image {path.name!r} is damaged: {error}.") from error

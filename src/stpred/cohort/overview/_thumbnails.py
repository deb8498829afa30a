"""Small pictures of slides, from the images in their stores."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from stpred._core import keys
from stpred._core.checks import InputError
from stpred._core.files import readable

QUALITY = 60
"""Of the JPEG: what a picture of this size needs."""

MAX_PIXELS = 64_000_000
"""Pixels of the smallest level up to which it is read."""


def thumbnail(store: Path, *, px: int) -> bytes | None:
    """Return a JPEG of the H&E image in a store with a longest edge of at most `px`; None where there is none to show.

    A store that is damaged or gone is shown without a picture: the page is also of runs that went wrong.
    """
    from PIL import Image

    try:
        with readable(store, what="store"):
            pixels = _pixels(store, px)
    except InputError:
        return None
    if pixels is None:
        return None
    picture = Image.fromarray(pixels)
    picture.thumbnail((px, px), resample=Image.Resampling.BICUBIC, reducing_gap=3.0)
    out = io.BytesIO()
    picture.save(out, format="JPEG", quality=QUALITY, optimize=True)
    return out.getvalue()


def _pixels(store: Path, px: int) -> np.ndarray | None:
    """Return the (h, w, 3) pixels of the smallest level that is not below `px`."""
    import zarr

    if not (store / "images" / keys.IMAGE).is_dir():
        return None
    group = zarr.open_group(store / "images" / keys.IMAGE, mode="r", use_consolidated=False)
    said: Any = dict(group.attrs)
    scales = (said.get("ome") or said)["multiscales"][0]["datasets"]
    arrays: list[Any] = [group[str(level["path"])] for level in scales]
    levels = sorted(arrays, key=lambda a: a.shape[-1] * a.shape[-2])
    level = next((a for a in levels if max(a.shape[-2:]) >= px), levels[-1])
    if level.shape[-1] * level.shape[-2] > MAX_PIXELS or level.dtype != np.uint8 or level.shape[0] < 3:
        return None
    return np.ascontiguousarray(np.moveaxis(np.asarray(level[:3]), 0, -1))

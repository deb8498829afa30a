"""H&E and fluorescence images, read tile by tile at about a micrometre per pixel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stpred._core.checks import InputError, key_in, listing
from stpred._core.elements import mpp_of
from stpred._image.registration import (
    Side,
    blocks,
    fluorescence_planes,
    he_planes,
    limits,
    of_nuclei,
    scaled_brightness,
    tissue_of,
)
from stpred._image.tissue import survey
from stpred.calibration import scaling
from stpred.registration.placed import Placed
from stpred.tiles import Pyramid

READ_MPP = 1.0
SURVEY_MPP = 8.0
MAX_READ_PX = 12_000
"""Pixels along the tissue that are read; of larger ones, coarser pixels are."""

MAX_KEPT_PX = 1_200
MIN_KEPT_UM = 2.0
TILE_PX = 1_024

_NUCLEAR = ("dapi", "hoechst", "draq", "syto", "nuclei", "nuclear")


def read_he(image: Any, mpp: float, *, what: str) -> Side:
    """Return nuclei and stains of an H&E image in micrometres along its own axes.

    Raises
    ------
    InputError
        If it shows no tissue.
    """
    pyramid = Pyramid.from_image(image, to_um=scaling(mpp))
    coarse = max(SURVEY_MPP, mpp)
    thumbnail, _ = pyramid.thumbnail(coarse)
    found = survey(thumbnail, mpp=coarse)
    if not found.tissue.any():
        raise InputError(f"{what} shows no tissue.")

    def read(x0: float, y0: float, x1: float, y1: float, step: float) -> NDArray[np.float32]:
        rgb, _ = pyramid.thumbnail(step, box_um=(x0, y0, x1, y1))
        return he_planes(rgb, mpp=step, background=found.glass or 255.0)

    return _side(read, found.tissue, mask_um=coarse, finest=max(mpp, READ_MPP), n_planes=3)


def read_unplaced_he(image: Any, area_um2: float, *, what: str) -> tuple[Side, float]:
    """Return an H&E image of unknown resolution, and the one at which its tissue has an area.

    A first guess gives the tissue, and the tissue the resolution.
    """
    pyramid = Pyramid.from_image(image, to_um=np.eye(3))
    mpp = 1.5 * np.sqrt(area_um2) / max(pyramid.shape)
    for _ in range(2):
        coarse = max(SURVEY_MPP, mpp)
        thumbnail, _ = Pyramid.from_image(image, to_um=scaling(mpp)).thumbnail(coarse)
        tissue = float(survey(thumbnail, mpp=coarse).tissue.sum()) * coarse**2
        if tissue == 0:
            raise InputError(f"{what} shows no tissue.")
        mpp = float(np.clip(mpp * np.sqrt(area_um2 / tissue), 0.02, 50.0))
    return read_he(image, mpp, what=what), mpp


def is_nuclear(channel: Any) -> bool:
    """Tell whether a channel is called like a stain of nuclei."""
    return any(name in str(channel).lower() for name in _NUCLEAR)


def read_fluorescence(image: Any, to_um: NDArray[np.float64], *, channel: str | None, key: str) -> Placed:
    """Return the channel of nuclei of a fluorescence image.

    Raises
    ------
    InputError
        If it has no such channel, none of several is called like a stain of nuclei, or it shows no tissue.
    """
    what = f"Image {key!r}"
    mpp = mpp_of(to_um, what=what)
    levels, names = _levels(image, mpp)
    c = _channel(names, channel, what=what)
    pixels, size, k = _level_for(levels, SURVEY_MPP)
    small = blocks(np.asarray(pixels[c], dtype=np.float32), k)
    bounds = limits(small)
    tissue = tissue_of(scaled_brightness(small, bounds), px_um=size * k)
    if not tissue.any():
        raise InputError(f"{what} shows no tissue in channel {names[c]!r}.")

    def read(x0: float, y0: float, x1: float, y1: float, step: float) -> NDArray[np.float32]:
        pixels, size, k = _level_for(levels, step)
        height, width = round((y1 - y0) / step), round((x1 - x0) / step)
        top, left = round(y0 / size), round(x0 / size)
        part = np.asarray(pixels[c, top : top + height * k, left : left + width * k], dtype=np.float32)
        part = np.pad(part, ((0, height * k - part.shape[0]), (0, width * k - part.shape[1])), mode="edge")
        return fluorescence_planes(scaled_brightness(blocks(part, k), bounds), mpp=step)

    _, size_1, k_1 = _level_for(levels, READ_MPP)
    side = _side(read, tissue, mask_um=size * k, finest=size_1 * k_1, n_planes=2)
    return Placed(side, to_um @ scaling(1 / mpp), what)


def _levels(image: Any, mpp: float) -> tuple[list[tuple[Any, float]], list[str]]:
    """Return the (c, h, w) pixels of each level with their size in micrometres, finest first, and the channels."""
    from xarray import DataTree

    arrays = [next(iter(n.ds.values())) for n in image.children.values()] if isinstance(image, DataTree) else [image]
    arrays = [a.transpose("c", "y", "x") for a in arrays]
    names = [str(v) for v in arrays[0].coords["c"].values] if "c" in arrays[0].coords else []
    names = names or [str(i) for i in range(arrays[0].sizes["c"])]
    width = arrays[0].sizes["x"]
    return [(a.data, mpp * width / a.sizes["x"]) for a in arrays], names


def _level_for(levels: list[tuple[Any, float]], step_um: float) -> tuple[Any, float, int]:
    """Return the coarsest level that is at least as fine as `step_um`, its pixel size, and how many make a step."""
    fine = [level for level in levels if level[1] <= step_um * 1.05] or levels[:1]
    pixels, size = fine[-1]
    return pixels, size, max(1, round(step_um / size))


def _channel(names: list[str], channel: str | None, *, what: str) -> int:
    if channel is not None:
        return names.index(key_in(str(channel), names, what=f"channel of {what}", name="channel"))
    if len(names) == 1:
        return 0
    nuclear = [i for i, name in enumerate(names) if is_nuclear(name)]
    if len(nuclear) != 1:
        raise InputError(
            f"{what} has {len(names)} channels, {listing(names)}, and {'none' if not nuclear else 'several'} of them "
            "called like a stain of nuclei; name it with `channel`."
        )
    return nuclear[0]


def _side(
    read: Callable[[float, float, float, float, float], NDArray[np.float32]],
    tissue: NDArray[np.bool_],
    *,
    mask_um: float,
    finest: float,
    n_planes: int,
) -> Side:
    """Read the tiles that hold tissue and bring them to the pixels that are compared.

    Parameters
    ----------
    read
        Returns the planes of a box (x0, y0, x1, y1) in micrometres at a pixel size.
    tissue
        (h, w) bool on pixels of `mask_um`.
    finest
        Smallest pixel that is worth reading.
    """
    rows, columns = np.nonzero(tissue)
    extent = (max(np.ptp(rows), np.ptp(columns)) + 1) * mask_um
    step = finest * max(1, round(max(READ_MPP, extent / MAX_READ_PX) / finest))
    k = max(1, round(max(MIN_KEPT_UM, extent / MAX_KEPT_PX) / step))
    px = step * k
    shape = tuple(int(np.ceil(n * mask_um / px)) for n in tissue.shape)
    at = np.minimum((np.arange(max(shape)) + 0.5) * px / mask_um, max(tissue.shape) - 1).astype(np.int64)
    mask = tissue[np.minimum(at[: shape[0]], tissue.shape[0] - 1)][:, np.minimum(at[: shape[1]], tissue.shape[1] - 1)]
    planes = np.zeros((n_planes, *shape), np.float32)
    edge = max(1, TILE_PX // k)
    for row in range(0, shape[0], edge):
        for column in range(0, shape[1], edge):
            part = np.s_[row : min(row + edge, shape[0]), column : min(column + edge, shape[1])]
            if mask[part].any():
                h, w = mask[part].shape
                found = read(column * px, row * px, (column + w) * px, (row + h) * px, step)
                planes[:, *part] = np.stack([blocks(p, k)[:h, :w] for p in found])
    return of_nuclei(planes, mask, px_um=px, corner_um=(0.0, 0.0))

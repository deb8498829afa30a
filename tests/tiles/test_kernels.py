from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from stpred.tiles import resample
from stpred.tiles._resample import _straight
from stpred.tiles._stream import _RUN, _runs_of_a_colour


def by_pillow(region: np.ndarray, lower: np.ndarray, upper: np.ndarray, size: int) -> np.ndarray:
    picture = Image.fromarray(np.ascontiguousarray(region))
    return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC, box=(*lower.tolist(), *upper.tolist())))


@pytest.mark.parametrize("memory", ["part of a chunk", "whole", "planes", "read only"])
@pytest.mark.parametrize("extreme", [False, True])
def test_tiles_are_those_of_pillow_bit_for_bit(memory: str, extreme: bool) -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        size = int(rng.integers(5, 120))
        lengths = size * (rng.uniform(0.991, 1.009, 2) if rng.random() < 0.5 else np.full(2, rng.uniform(0.991, 1.009)))
        height, width = int(size * 1.01) + rng.integers(1, 14) + rng.integers(0, 2, 2)
        pixels = rng.integers(0, 256, (height + 9, width + 9, 3), dtype=np.uint8)
        if extreme:  # overshoots at both ends
            pixels = (pixels > 128).astype(np.uint8) * 255
        region = pixels[3 : 3 + height, 5 : 5 + width]
        if memory == "whole":
            region = np.ascontiguousarray(region)
        elif memory == "planes":
            region = np.moveaxis(np.ascontiguousarray(np.moveaxis(region, -1, 0)), 0, -1)
        elif memory == "read only":
            region.flags.writeable = False
        lower = rng.uniform(0, [width - lengths[0], height - lengths[1]])
        if rng.random() < 0.2:
            lower = np.floor(lower)
        found = _straight(region, lower, lower + lengths, size_px=size)
        np.testing.assert_array_equal(found, by_pillow(region, lower, lower + lengths, size))


def test_pixels_of_the_tile_itself_are_copied() -> None:
    region = np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    centre = np.array([22.0, 19.0])
    tile = resample(region, centre, np.eye(2), size_px=16)
    np.testing.assert_array_equal(tile, region[11:27, 14:30])
    turned = resample(region, centre, np.array([[0.0, -1.0], [1.0, 0.0]]), size_px=16)
    np.testing.assert_array_equal(turned, np.rot90(tile))
    flipped = resample(region, centre, np.diag([-1.0, 1.0]), size_px=16)
    np.testing.assert_array_equal(flipped, tile[:, ::-1])


def test_runs_of_a_colour_are_found_as_by_comparing_one_by_one() -> None:
    rng = np.random.default_rng(2)
    pixels = (rng.integers(0, 2, (40, 30, 3)) * rng.integers(0, 4, (40, 30, 3))).astype(np.uint8)
    pixels[5:20, 3:9] = (7, 200, 254)
    pixels[9, 4] += 2
    pixels[9, 6, 2] -= 3
    for view in (pixels, pixels.swapaxes(0, 1), pixels[::2, ::2]):
        n = len(view) - _RUN
        wide = view.astype(int)
        expected = [
            [(np.abs(wide[r + 1 : r + 1 + _RUN, c] - wide[r, c]) <= 2).all() for c in range(view.shape[1])]
            for r in range(n)
        ]
        found = _runs_of_a_colour(view, _RUN)
        np.testing.assert_array_equal(found, expected)
        assert found.any()
        assert not found.all()

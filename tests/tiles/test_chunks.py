"""Decoding of single chunks, and of those that several levels share."""

from __future__ import annotations

from collections import Counter

import dask.array as da
import numpy as np
import pytest

from stpred.io._images.pixels import halve
from stpred.tiles import Level
from stpred.tiles._chunks import Chunks


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 70, 90), dtype=np.uint8)


def chunks_of(*arrays: object) -> Chunks:
    """All chunks of the arrays, each needed by one tile."""
    levels = [Level(a, np.diag([2.0**k, 2.0**k, 1.0])) for k, a in enumerate(arrays)]
    return Chunks(levels, [np.ones([len(e) - 1 for e in level.edges], dtype=np.int64) for level in levels])


def at(chunks: Chunks, *blocks: tuple[int, int, int]) -> list[np.ndarray]:
    users = [np.zeros_like(u) for u in chunks.to_come]
    for k, r, c in blocks:
        users[k][r, c] = 1
    assert sorted(chunks.fetch(users)) == sorted(blocks)
    found = [chunks.pixels(block) for block in blocks]
    chunks.release(users)
    return found


@pytest.mark.parametrize("deep", [1, 2, 3])
def test_chunks_equal_slices(pixels: np.ndarray, deep: int) -> None:
    chunks = chunks_of(da.from_array(pixels, chunks=(deep, 32, 40)))
    wanted = [(0, 2, 1), (0, 0, 0), (0, 1, 2)]
    for got, (_, r, c) in zip(at(chunks, *wanted), wanted, strict=True):
        assert np.array_equal(got, np.moveaxis(pixels, 0, -1)[32 * r : 32 * r + 32, 40 * c : 40 * c + 40])
    assert at(chunks) == []
    assert chunks.kept == [{}]


def test_only_the_chunks_that_are_asked_for_are_computed(pixels: np.ndarray) -> None:
    seen = []

    def load(block: np.ndarray, block_info: dict | None = None) -> np.ndarray:
        seen.append(block_info[0]["chunk-location"])
        return block

    lazy = da.map_blocks(load, da.from_array(pixels, chunks=(3, 32, 40)), meta=np.empty((0, 0, 0), np.uint8))
    at(chunks_of(lazy), (0, 1, 0), (0, 1, 1))
    assert sorted(seen) == [(0, 1, 0), (0, 1, 1)]


def test_interleaved_memory_is_not_copied(pixels: np.ndarray) -> None:
    interleaved = np.ascontiguousarray(np.moveaxis(pixels, 0, -1))
    lazy = da.from_array(np.moveaxis(interleaved, -1, 0), chunks=-1, name=False, asarray=False)
    (got,) = at(chunks_of(lazy), (0, 0, 0))
    assert got.flags.c_contiguous


def test_numpy_array_is_one_chunk(pixels: np.ndarray) -> None:
    (got,) = at(chunks_of(pixels), (0, 0, 0))
    assert np.array_equal(got, np.moveaxis(pixels, 0, -1))


@pytest.mark.parametrize("deep", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_averaged_levels_share_what_is_decoded(deep: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (3, 90, 110), dtype=np.uint8)
    seen: Counter[tuple[int, ...]] = Counter()

    def load(block: np.ndarray, block_info: dict | None = None) -> np.ndarray:
        seen[block_info[0]["chunk-location"]] += 1
        return block

    meta = np.empty((0, 0, 0), np.uint8)
    fine = da.map_blocks(load, da.from_array(image, chunks=(deep, 16, 24)), meta=meta)
    half = halve(fine)
    quarter = halve(half)
    expected = [np.moveaxis(a.compute(), 0, -1) for a in (fine, half, quarter)]
    seen.clear()
    chunks = chunks_of(fine, half, quarter)
    blocks = [(k, r, c) for k, u in enumerate(chunks.to_come) for r, c in np.argwhere(u).tolist()]
    rng.shuffle(blocks)
    for part in np.array_split(blocks, 15):  # in any order at all
        some = [tuple(b) for b in part.tolist()]
        for got, (k, r, c) in zip(at(chunks, *some), some, strict=True):
            rows, columns = chunks.levels[k].edges
            assert np.array_equal(got, expected[k][rows[r] : rows[r + 1], columns[c] : columns[c + 1]])
    assert set(seen.values()) == {1}
    assert chunks.kept == [{}, {}, {}]

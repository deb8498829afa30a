from __future__ import annotations

import dask.array as da
import numpy as np
import pytest

from stpred.tiles._chunks import ChunkDecoder


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 70, 90), dtype=np.uint8)


@pytest.mark.parametrize("deep", [1, 2, 3])
def test_chunks_equal_slices(pixels: np.ndarray, deep: int) -> None:
    decode = ChunkDecoder(da.from_array(pixels, chunks=(deep, 32, 40)))
    chunks = [(2, 1), (0, 0), (1, 2)]
    for got, (r, c) in zip(decode(chunks), chunks, strict=True):
        assert np.array_equal(got, np.moveaxis(pixels, 0, -1)[32 * r : 32 * r + 32, 40 * c : 40 * c + 40])
    assert decode([]) == []


def test_only_the_chunks_that_are_asked_for_are_computed(pixels: np.ndarray) -> None:
    seen = []

    def load(block: np.ndarray, block_info: dict | None = None) -> np.ndarray:
        seen.append(block_info[0]["chunk-location"])
        return block

    lazy = da.map_blocks(load, da.from_array(pixels, chunks=(3, 32, 40)), meta=np.empty((0, 0, 0), np.uint8))
    ChunkDecoder(lazy)([(1, 0), (1, 1)])
    assert sorted(seen) == [(0, 1, 0), (0, 1, 1)]


def test_interleaved_memory_is_not_copied(pixels: np.ndarray) -> None:
    interleaved = np.ascontiguousarray(np.moveaxis(pixels, 0, -1))
    lazy = da.from_array(np.moveaxis(interleaved, -1, 0), chunks=-1, name=False, asarray=False)
    (got,) = ChunkDecoder(lazy)([(0, 0)])
    assert got.flags.c_contiguous


def test_numpy_array_is_one_chunk(pixels: np.ndarray) -> None:
    (got,) = ChunkDecoder(pixels)([(0, 0)])
    assert np.array_equal(got, np.moveaxis(pixels, 0, -1))

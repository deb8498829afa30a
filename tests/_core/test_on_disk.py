from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stpred import InputError
from stpred._core.disk import on_disk
from stpred._core.disk.on_disk import FileRows, Joined, joined


def kept(path: Path, values: np.ndarray) -> FileRows:
    np.save(path, values)
    return FileRows(path, np.load(path, mmap_mode="r"))


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(30, 4)).astype(np.float16)


INDICES = [
    slice(None), slice(3, 9), slice(20, 2, -3), np.array([5, 2, 2, 29]), [0], np.arange(30) % 3 == 0, 7, np.int64(29),
    np.empty(0, dtype=np.int64), (slice(None), 2), (np.array([1, 4]), slice(1, 3)), (..., None), (3, 1), -2,
    np.array([-1, 3]), np.array([[1, 2], [3, 4]]),
]  # fmt: skip


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_rows_are_those_of_the_array(tmp_path: Path, values: np.ndarray, index: object) -> None:
    first, second = kept(tmp_path / "a.npy", values[:12]), kept(tmp_path / "b.npy", values[12:])
    left, right = kept(tmp_path / "c.npy", values[:, :1]), values[:, 1:]
    for array in (kept(tmp_path / "all.npy", values), joined([first, second], axis=0), joined([left, right], axis=-1)):
        assert (array.shape, array.dtype, array.ndim, len(array)) == ((30, 4), np.float16, 2, 30)
        assert array.nbytes == values.nbytes
        found = array[index]
        assert type(found) is type(values[index])  # type: ignore[call-overload]
        assert np.array_equal(found, values[index])  # type: ignore[call-overload]
        assert not isinstance(found, np.memmap)
        assert found.flags.writeable or np.ndim(found) == 0
        assert np.array_equal(np.asarray(array), values)
        assert array.astype(np.float64).dtype == np.float64


def test_types_join_as_arrays_do(tmp_path: Path, values: np.ndarray) -> None:
    wide = values.astype(np.float32) / 3
    both = joined([kept(tmp_path / "a.npy", values), wide], axis=0)
    assert isinstance(both, Joined)
    assert both.dtype == np.float32
    assert np.array_equal(both[28:32], np.concatenate([values, wide])[28:32])
    assert isinstance(joined([values, wide], axis=0), np.ndarray)
    assert joined([values], axis=0) is values
    with pytest.raises(IndexError):
        both[np.array([60])]


def test_few_files_stay_open(tmp_path: Path, values: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_disk, "_maps", on_disk._Maps())
    monkeypatch.setattr(on_disk, "OPEN_FILES", 3)
    arrays = [kept(tmp_path / f"{i}.npy", values + i) for i in range(9)]
    for _ in range(2):
        for i, array in enumerate(arrays):
            assert np.array_equal(array[[4, 1]], (values + i)[[4, 1]])
            assert len(on_disk._maps._open) <= 3
    monkeypatch.setattr(on_disk, "OPEN_BYTES", values.nbytes * 2 - 1)  # files of more than half of it are never kept
    monkeypatch.setattr(on_disk, "_maps", on_disk._Maps())
    assert np.array_equal(arrays[0][:], values)
    assert len(on_disk._maps._open) == 0


def test_a_file_that_is_gone_is_named(tmp_path: Path, values: np.ndarray) -> None:
    array = kept(tmp_path / "a.npy", values)
    (tmp_path / "a.npy").unlink()
    with pytest.raises(InputError, match=r"features in '.*a\.npy' cannot be read any more.*keep the cache folder"):
        array[:]

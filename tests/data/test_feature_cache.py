from __future__ import annotations

import errno
import gc
import json
import logging
import os
import platform
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stpred import InputError
from stpred._core.disk import locks
from stpred.data import _feature_cache
from stpred.data._feature_cache import Busy, Entry, FeatureCache

FACTS = {"image": "0123", "encoder": {"name": "toy", "revision": "1", "tile": {"mpp": 0.5, "size_px": 224}}}
COORDS = np.random.default_rng(0).uniform(0, 1e5, (20, 2))
VALUES = np.random.default_rng(1).normal(size=(20, 4, 3)).astype(np.float32)


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path / "new" / "folder")


def entry_of(cache: FeatureCache, facts: dict[str, Any] = FACTS, coords: np.ndarray = COORDS) -> Entry:
    return cache.entry(facts, coords, shape=(4, 3), dtype=np.float16)


def filled(cache: FeatureCache, facts: dict[str, Any] = FACTS) -> Entry:
    with entry_of(cache, facts) as entry:
        entry.write(np.arange(20), VALUES)
        entry.finish()
    return entry


def file_of(cache: FeatureCache, end: str) -> Path:
    (path,) = cache.folder.glob(f"*.{end}")
    return path


def test_round_trip(cache: FeatureCache) -> None:
    order = np.random.default_rng(2).permutation(20)
    with entry_of(cache) as entry:
        assert not entry.complete
        assert entry.todo().tolist() == list(range(20))
        for rows in np.split(order, 5):
            entry.write(rows, VALUES[rows])
        got = entry.finish()
    for array in (got, entry_of(cache).read(), np.load(file_of(cache, "npy"), mmap_mode="r", allow_pickle=False)):
        assert isinstance(array, np.memmap)
        assert not array.flags.writeable
        assert array.flags.c_contiguous
        assert array.dtype == np.float16
        assert np.array_equal(array, VALUES.astype(np.float16))
    assert {path.name.partition(".")[2] for path in cache.folder.iterdir()} == {"npy", "json"}
    record = json.loads(file_of(cache, "json").read_text())
    assert record.pop("crc32") == zlib.crc32(VALUES.astype(np.float16).tobytes())
    assert record == {"format": 2, "facts": FACTS, "n": 20, "shape": [4, 3], "dtype": "float16"}
    again = entry_of(cache)
    assert again.complete
    assert len(again.todo()) == 0
    assert np.array_equal(again.finish(), got)


@pytest.mark.parametrize(("n", "shape"), [(5, (2, 2, 3)), (5, ()), (0, (7,))])
def test_pixels_and_odd_shapes(cache: FeatureCache, n: int, shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (n, *shape), dtype=np.uint8)
    with cache.entry(FACTS, COORDS[:n], shape=shape, dtype="uint8") as entry:
        entry.write(np.arange(n), pixels)
        assert np.array_equal(entry.finish(), pixels)
    assert cache.entry(FACTS, COORDS[:n], shape=shape, dtype="uint8").complete


def test_interrupted_entry_is_taken_up_again(cache: FeatureCache) -> None:
    def interrupted() -> None:
        with entry_of(cache) as entry:
            entry.write([7, 3], VALUES[[7, 3]])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with entry_of(cache) as entry:
        assert not entry.complete
        missing = entry.todo()
        assert missing.tolist() == [i for i in range(20) if i not in (3, 7)]
        with pytest.raises(InputError, match="18 of 20 rows"):
            entry.finish()
        entry.write(missing, VALUES[missing])
        assert np.array_equal(entry.finish(), VALUES.astype(np.float16))


CHILD = """
import os, sys
import numpy as np
from stpred.data._feature_cache import FeatureCache
entry = FeatureCache(sys.argv[1]).entry({}, np.zeros((9, 2)), shape=(2,), dtype="float16")
entry.write([0, 1], np.ones((2, 2)))
entry.flush()
entry.write([2], np.ones((1, 2)))
os._exit(1)
"""


def test_killed_process_leaves_its_flushed_rows_and_a_lock_that_is_taken_over(cache: FeatureCache) -> None:
    subprocess.run([sys.executable, "-c", CHILD, str(cache.folder)], check=False)
    assert file_of(cache, "lock").exists()
    with cache.entry({}, np.zeros((9, 2)), shape=(2,), dtype="float16") as entry:
        assert entry.todo().tolist() == list(range(2, 9))
        entry.write(np.arange(2, 9), np.full((7, 2), 2.0))
        assert entry.finish()[:, 0].tolist() == [1, 1] + [2] * 7


def test_crash_between_the_two_renames_is_not_complete(cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def crash(source: Path, target: Path) -> None:
        if target.suffix == ".npy":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        filled(cache)
    monkeypatch.undo()
    with entry_of(cache) as entry:
        assert not entry.complete
        assert len(entry.todo()) == 0
        assert np.array_equal(entry.finish(), VALUES.astype(np.float16))


def test_what_makes_another_entry(cache: FeatureCache) -> None:
    filled(cache)
    moved = COORDS.copy()
    moved[5, 1] += 0.01
    other = {**FACTS, "encoder": {**FACTS["encoder"], "revision": "2"}}  # type: ignore[dict-item]
    assert not entry_of(cache, other).complete
    assert not entry_of(cache, coords=moved).complete
    assert not entry_of(cache, coords=COORDS[::-1]).complete
    assert not entry_of(cache, coords=COORDS[:-1]).complete
    assert not cache.entry(FACTS, COORDS, shape=(3, 4), dtype=np.float16).complete
    assert not cache.entry(FACTS, COORDS, shape=(4, 3), dtype=np.uint8).complete
    same = np.round(COORDS, 3)
    assert entry_of(cache, dict(reversed(FACTS.items())), np.asfortranarray(same)).complete


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def transpose(path: Path) -> None:
    np.save(path, np.asfortranarray(np.load(path)))


def reshape(path: Path) -> None:
    np.save(path, np.load(path).reshape(20, 12))


@pytest.mark.parametrize(
    ("end", "damage"),
    [
        ("npy", cut),
        ("npy", transpose),
        ("npy", reshape),
        ("npy", lambda path: path.write_bytes(b"")),
        ("json", cut),
        ("json", lambda path: path.write_bytes(b"\xff\xfe")),
        ("json", lambda path: path.write_text(path.read_text().replace("toy", "boy"))),
    ],
)
def test_damaged_entry_is_reported_and_made_anew(
    cache: FeatureCache, caplog: pytest.LogCaptureFixture, end: str, damage: Any
) -> None:
    filled(cache)
    damage(file_of(cache, end))
    with caplog.at_level(logging.WARNING, logger="stpred"):
        assert not entry_of(cache).complete
    assert "is damaged and is computed again" in caplog.text
    with pytest.raises(InputError, match="not complete"):
        entry_of(cache).read()
    with entry_of(cache) as entry:
        assert len(entry.todo()) == 20
        entry.write(np.arange(20), VALUES)
        assert np.array_equal(entry.finish(), VALUES.astype(np.float16))
    assert entry_of(cache).complete


@pytest.mark.parametrize("end", ["part.npy", "part.done"])
def test_damaged_part_is_begun_again(
    cache: FeatureCache, end: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with entry_of(cache) as entry:
        entry.write([1], VALUES[:1])
    cut(file_of(cache, end))
    with entry_of(cache) as entry, caplog.at_level(logging.WARNING, logger="stpred"):
        assert len(entry.todo()) == 20
    assert caplog.text.count("is damaged") == 1
    with entry_of(cache) as entry:
        entry.write([1], VALUES[:1])
    file_of(cache, "part.npy").unlink()  # marks without the rows they speak of

    def crash(*_: object) -> None:
        create(*_)
        raise KeyboardInterrupt

    create = Entry._create
    monkeypatch.setattr(Entry, "_create", crash)
    with pytest.raises(KeyboardInterrupt):
        entry_of(cache).todo()
    monkeypatch.undo()
    with entry_of(cache) as entry:
        assert len(entry.todo()) == 20


@pytest.mark.parametrize("big", [65505.0, 1e30, np.inf, np.nan])
def test_overflow_turns_the_entry_into_float32(cache: FeatureCache, big: float) -> None:
    with entry_of(cache) as entry:
        entry.write(np.arange(8), VALUES[:8])
        entry.write([8], np.full((1, 4, 3), -65504.0))
        values = VALUES[9:12].copy()
        values[1, 2, 0] = -big
        entry.write([9, 10, 11], values)
    with entry_of(cache) as entry:  # and stays so when taken up again
        assert entry.todo().tolist() == list(range(12, 20))
        entry.write(np.arange(12, 20), VALUES[12:])
        got = entry.finish()
    assert got.dtype == np.float32
    assert np.array_equal(got[:8], VALUES[:8].astype(np.float16))
    assert (got[8] == -65504).all()
    assert np.array_equal(got[9:12], values, equal_nan=True)
    assert np.array_equal(got[12:], VALUES[12:])
    assert entry_of(cache).complete
    assert cache.size_bytes() < 20 * 12 * 4 + 1000


def test_live_lock_is_respected(cache: FeatureCache) -> None:
    with entry_of(cache) as entry:
        entry.write([0], VALUES[:1])
        other = entry_of(cache)
        with pytest.raises(Busy):
            other.todo()
        with pytest.raises(Busy):
            other.write([1], VALUES[:1])
        del other  # lets go of nothing that it does not hold
        cache.clear()
        assert file_of(cache, "part.npy").exists()
        assert file_of(cache, "lock").exists()
    for _ in range(2):  # what is dropped without a word holds the lock no longer than it lives
        assert entry_of(cache).todo().tolist() == list(range(1, 20))
        gc.collect()


def test_lock_files_of_dead_processes_do_not_block(cache: FeatureCache) -> None:
    with entry_of(cache) as entry:
        entry.todo()
        lock = file_of(cache, "lock")
    for text in ("process 1 on elsewhere", f"process {os.getpid()} on {platform.node()}", ""):
        lock.write_text(text)
        with entry_of(cache) as entry:
            assert len(entry.todo()) == 20
        assert not lock.exists()


def test_entry_that_another_process_completed_meanwhile(cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    late = entry_of(cache)  # finds it absent, and waits a little before it takes the lock
    acquire = _feature_cache._acquire

    def slowly(lock: Path) -> locks.Lock:
        monkeypatch.undo()
        filled(cache)
        return acquire(lock)

    monkeypatch.setattr(_feature_cache, "_acquire", slowly)
    assert len(late.todo()) == 0
    late.write([0], VALUES[1:2])
    cache.clear()  # what was found stays readable
    assert np.array_equal(late.finish(), VALUES.astype(np.float16))
    assert not list(cache.folder.glob("*.lock"))


def test_clear_removes_the_oldest_and_nothing_else(cache: FeatureCache) -> None:
    assert cache.size_bytes() == 0
    cache.clear()
    for age, image in enumerate(["b", "a", "c"]):
        filled(cache, {"image": image})
        for path in cache.folder.iterdir():
            if path.stat().st_mtime > time.time() - 500:
                os.utime(path, (time.time() - 1000 * (3 - age),) * 2)
    (cache.folder / "notes.npy").write_bytes(b"mine")
    total = cache.size_bytes()
    assert total == sum(path.stat().st_size for path in cache.folder.iterdir()) - 4
    kept = entry_of(cache, {"image": "c"}).read()
    cache.clear(total)
    assert cache.size_bytes() == total
    cache.clear(total - 1)
    assert [entry_of(cache, {"image": image}).complete for image in "bac"] == [False, True, True]
    with entry_of(cache, {"image": "d"}) as entry:
        entry.write([0], VALUES[:1])
    cache.clear()
    assert [path.name for path in cache.folder.iterdir()] == ["notes.npy"]
    assert np.array_equal(kept, VALUES.astype(np.float16))  # a map outlives its file


def test_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for folder in ("file", "file/below"):
        with pytest.raises(InputError, match=f"cache folder .*{folder}.* cannot be written"):
            entry_of(FeatureCache(tmp_path / folder)).todo()
    if not hasattr(os, "posix_fallocate"):
        return

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    cache = FeatureCache(tmp_path / "full")
    with entry_of(cache) as entry:
        entry.write([0], VALUES[:1])
        monkeypatch.setattr(os, "posix_fallocate", full)
        with pytest.raises(InputError, match="full.*No space left"):
            entry.write([1], VALUES[:1] * 1e9)
    with pytest.raises(InputError, match="full.*No space left"):
        entry_of(cache, {"image": "other"}).todo()
    monkeypatch.undo()
    assert len(entry_of(cache).todo()) == 19
    assert len(entry_of(cache, {"image": "other"}).todo()) == 20


def test_portable_reservation_gives_the_same_file(cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    assert np.array_equal(filled(cache).read(), VALUES.astype(np.float16))


def test_bad_input(cache: FeatureCache) -> None:
    with pytest.raises(InputError, match="`dtype` must be one of"):
        cache.entry(FACTS, COORDS, shape=(4, 3), dtype=np.int64)
    with entry_of(cache) as entry, pytest.raises(InputError, match=r"float16 of shape \(2, 4, 3\), got float32"):
        entry.write([0, 1], VALUES[:3])
    pixels = cache.entry(FACTS, COORDS, shape=(4, 3), dtype=np.uint8)
    with pytest.raises(InputError, match=r"must be uint8 of shape \(20, 4, 3\), got float32"):
        pixels.write(np.arange(20), VALUES)

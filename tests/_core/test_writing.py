"""What happens to files and folders when the system refuses to write, or another process writes as well."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import stpred as st
from stpred import InputError, _report, stores
from stpred._core import files
from stpred._core.disk import locks, staging
from stpred._core.disk.staging import staged_file, staged_folder
from stpred.training._checkpoint import Checkpoint


@pytest.fixture(scope="module")
def trained() -> Any:
    """A model of some kilobytes."""
    shapes = {"mlp.hidden_layers.0": (64, 32), "mlp.hidden_layers.2": (6, 64), "mlp.hidden_layers.4": (3, 6)}
    weights = {f"{k}.weight": torch.zeros(v) for k, v in shapes.items()}
    weights |= {f"{k}.bias": torch.zeros(v[0]) for k, v in shapes.items()}
    return st.models.load_reference("miso-student", weights)


def save(path: Path, trained: Any, slide: Any) -> None:
    st.models.save(trained, path, overwrite=True)


def store(path: Path, trained: Any, slide: Any) -> None:
    stores.write_result(slide, path, overwrite=True)


def checkpoint(path: Path, trained: Any, slide: Any) -> None:
    Checkpoint(path).save({"a": torch.zeros(10**6)}, {})


def page(path: Path, trained: Any, slide: Any) -> None:
    _report._write(_report.check_page(path.with_name(path.name + ".html"), overwrite=True), "x" * 2**22)


def picture(path: Path, trained: Any, slide: Any) -> None:
    st.pl.spatial(slide, "spots_counts", "EPCAM", save=path.with_name(path.name + ".png"))


def data_set(path: Path, trained: Any, slide: Any) -> None:
    st.datasets.toy_legacy_st(path, size_um=(600, 600), n_genes=20, overwrite=True)


WRITERS: dict[str, Callable[[Path, Any, Any], None]] = {
    f.__name__: f for f in (save, store, checkpoint, page, picture, data_set)
}


@pytest.fixture(scope="module")
def slide() -> Any:
    return st.datasets.toy(size_um=(400.0, 400.0), mpp=1.0, n_genes=20)


@pytest.fixture
def disk(tmp_path: Path) -> Any:
    """A file system of its own, of a megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_is_told_and_changes_nothing(kind: str, disk: Path, trained: Any, slide: Any) -> None:
    if kind == "save":  # the model that is there stays
        st.models.save(trained, disk / "old")
    (disk / "fill").write_bytes(bytes(2**20 - sum(p.stat().st_size for p in disk.rglob("*")) - 3 * 8192))
    before = tree(disk)
    with pytest.raises(InputError, match="cannot be written: No space left on device"):
        WRITERS[kind](disk / "deep" / "new", trained, slide)
    if kind == "save":
        with pytest.raises(InputError, match="cannot be written: No space left on device"):
            WRITERS[kind](disk / "old", trained, slide)
    assert tree(disk) == before


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("where", ["readonly", "long", "file", "link", "nul"])
def test_places_that_cannot_be_written(
    kind: str, where: str, tmp_path: Path, trained: Any, slide: Any, request: pytest.FixtureRequest
) -> None:
    folder = tmp_path
    if where == "readonly":
        folder = request.getfixturevalue("disk")
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        path = folder / "m"
    elif where == "long":
        path = folder / ("n" * 300)
    elif where == "file":
        (folder / "f").write_text("precious")
        path = folder / "f" / "m"
    elif where == "link":
        (folder / "l").symlink_to("nowhere")
        path = folder / "l" / "m"
    else:
        path = folder / "a\x00b"
    before = tree(folder)
    with pytest.raises(InputError, match="written"):
        WRITERS[kind](path, trained, slide)
    assert tree(folder) == before


def test_a_folder_that_another_process_writes_meanwhile_is_kept(tmp_path: Path) -> None:
    def both() -> None:
        with staged_folder(tmp_path / "m", what="model") as new:
            (new / "a").write_text("mine")
            (tmp_path / "m").mkdir()
            (tmp_path / "m" / "a").write_text("theirs")

    with pytest.raises(InputError, match="written by another process meanwhile"):
        both()
    assert tree(tmp_path) == {"m": None, "m/a": b"theirs"}


def test_what_killed_runs_left_goes_with_the_next_on_the_same_target(tmp_path: Path) -> None:
    left, live = tmp_path / ".m-dead", tmp_path / ".m-live"
    for folder in (left, live):
        (folder / "old").mkdir(parents=True)
        (folder / "old" / "a").write_text("before")
        (folder / staging._LOCK).write_text("process 999999999 on this host")
        (folder / staging._TARGET).write_text("m")
    held = locks.acquire(live / staging._LOCK)
    with staged_folder(tmp_path / "m", what="model") as new:  # killed between the two renames: the old state is back
        assert (tmp_path / "m" / "a").read_text() == "before"
        (new / "a").write_text("after")
    assert not left.exists()
    assert live.exists()
    held.release()
    assert (tmp_path / "m" / "a").read_text() == "after"


def test_errors_of_stpreds_own_are_not_told_as_the_systems(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), staged_file(tmp_path / "deep" / "f", what="file") as part:  # noqa: PT012
        part.write_text("half")
        1 / 0  # noqa: B018
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["... errno = 28, error message = 'x'", "[Errno 28] Error writing bytes to file"])
def test_refusals_that_libraries_only_print(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="No space left"), files.writable(tmp_path / "f", what="file"):
        raise RuntimeError(text)


def test_a_lock_names_its_holder_and_is_taken_over_when_that_has_ended(tmp_path: Path) -> None:
    lock = tmp_path / "l.lock"
    with locks.held(lock, what="map 'a'"):
        with pytest.raises(InputError, match=rf"map 'a' is being written by process {os.getpid()} on "):
            with locks.held(lock, what="map 'a'"):
                pass
        assert lock.exists()
    assert not lock.exists()
    lock.write_text("process 999999999 on this host")
    with locks.held(lock, what="map 'a'"):
        assert locks.holder(lock).startswith(f"process {os.getpid()} on ")
    code = f"import os, pathlib; from stpred._core.disk import locks; lock = locks.acquire(pathlib.Path({str(lock)!r}))"
    code += "; os._exit(9)"
    subprocess.run([sys.executable, "-c", code], check=False)
    assert lock.exists()
    with locks.held(lock, what="map 'a'"):
        pass
    assert not lock.exists()


def test_a_lock_whose_file_goes_while_it_is_opened_is_that_of_the_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last holder removes the file; who had it open already must not hold a lock that nobody else sees."""
    path = tmp_path / "l.lock"
    first = locks.acquire(path)
    acquire = locks.FileLock.acquire

    def late(self: Any, **kwargs: Any) -> Any:
        monkeypatch.undo()
        first.release()  # removes the file that was found
        path.write_text("of another process")
        return acquire(self, **kwargs)

    monkeypatch.setattr(locks.FileLock, "acquire", late)
    second = locks.acquire(path)
    with pytest.raises(locks.Busy):
        locks.acquire(path)
    second.release()
    assert not path.exists()


def test_a_forked_child_gives_no_lock_free(tmp_path: Path) -> None:
    lock = locks.acquire(tmp_path / "l.lock")
    pid = os.fork()
    if pid == 0:
        lock.release()
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(locks.Busy, match=f"held by process {os.getpid()} on"):
        locks.acquire(tmp_path / "l.lock")
    lock.release()
    assert not (tmp_path / "l.lock").exists()


def test_a_damaged_checkpoint_is_begun_anew_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = Checkpoint(tmp_path / "c.safetensors")
    kept.save({"a": torch.arange(4.0), "b": torch.tensor(1)}, {"losses": [1.0]})
    tensors, facts = kept.load() or ({}, {})
    assert facts == {"losses": [1.0]}
    assert tensors["a"].tolist() == [0, 1, 2, 3]
    whole = kept.path.read_bytes()
    for damage in (whole[:-3], whole[:-2] + b"\x01\x01", b"", whole.replace(b"losses", b"loss\\u"), b"[" * 10**6):
        kept.path.unlink()
        kept.path.write_bytes(damage)
        caplog.clear()
        assert kept.load() is None
        assert "is damaged" in caplog.text

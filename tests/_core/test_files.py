"""What libraries and the system raise while files are read and written becomes one sentence."""

from __future__ import annotations

import errno
import gzip
import json
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from stpred._core.checks import MAX_MESSAGE, InputError, MissingFileError, listing
from stpred._core.disk.staging import staged_folder
from stpred._core.files import parse_json, read_json, readable, writable

RAISED = [
    Exception("bare"), AssertionError("x"), TypeError("x"), IndexError("x"), AttributeError("x"), OverflowError("x"),
    MemoryError(), RecursionError("maximum"), np.linalg.LinAlgError("x"), zlib.error("x"), zipfile.BadZipFile("x"),
    KeyError("name"), EOFError(), ValueError(), gzip.BadGzipFile("not gzip"), PermissionError(errno.EACCES, "denied"),
]  # fmt: skip


@pytest.mark.parametrize("error", RAISED, ids=lambda e: type(e).__name__)
def test_whatever_a_library_raises_names_the_file_and_keeps_the_cause(error: Exception) -> None:
    with pytest.raises(InputError, match="The spots file '.*there.tsv' cannot be read: .+; .+") as said:
        with readable(Path("there.tsv"), what="spots file"):
            raise error
    assert said.value.__cause__ is error


def test_our_own_sentences_and_interruptions_pass() -> None:
    with pytest.raises(InputError, match="^ours$"), readable("x", what="file"):
        raise InputError("ours")
    with pytest.raises(KeyboardInterrupt), readable("x", what="file"):
        raise KeyboardInterrupt
    with pytest.raises(MissingFileError, match="is not there"), readable("x", what="file"):
        Path("nowhere-at-all").read_bytes()


def test_damage_is_said_only_where_the_error_tells_so() -> None:
    for error, damaged in ((EOFError("Compressed file ended"), True), (TypeError("no len()"), False)):
        with pytest.raises(InputError) as said, readable("x.h5", what="counts"):
            raise error
        assert ("damaged or cut off" in str(said.value)) is damaged


def test_messages_are_one_line_of_bounded_length() -> None:
    assert len(str(InputError("a" * 5000))) <= MAX_MESSAGE
    assert "\n" not in str(MissingFileError("a\nb"))
    assert str(InputError("short")) == "short"
    assert len(listing(["x" * 10_000] * 3)) < MAX_MESSAGE


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a": ' + "9" * 100_000 + "}", "", "{", b"\xff\xfe", "[]", "null", "3"], ids=range(8)
)
def test_json_that_is_none_is_refused(text: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=r"settings '.*facts\.json'"):
        read_json(path, what="settings")


def test_json_objects_are_read(tmp_path: Path) -> None:
    (tmp_path / "facts.json").write_text(json.dumps({"a": [1]}))
    assert read_json(tmp_path / "facts.json", what="settings") == {"a": [1]}
    assert parse_json("[1]", path="x", what="settings") == [1]


def test_refusals_of_the_system_are_sentences_and_bugs_pass() -> None:
    with pytest.raises(InputError, match="'out' cannot be written: No space left on device; nothing was changed"):
        with writable("out", what="model"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    wrapped = RuntimeError("wrapped")
    wrapped.__cause__ = OSError(errno.EROFS, os.strerror(errno.EROFS))
    with pytest.raises(InputError, match="Read-only"), writable("out", what="model"):
        raise wrapped
    with pytest.raises(ZeroDivisionError), writable("out", what="model"):
        1 / 0  # noqa: B018


def test_staged_folders_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "store"
    for text in ("first", "second"):
        with staged_folder(target, what="store") as new:
            (new / "a").write_text(text)
        assert (target / "a").read_text() == text
    with pytest.raises(ZeroDivisionError), staged_folder(target, what="store") as new:
        (new / "b").write_text(str(1 / 0))
    assert (target / "a").read_text() == "second"
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_an_existing_folder_is_put_back_where_the_exchange_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "store"
    target.mkdir()
    (target / "a").write_text("old")
    rename = Path.rename

    def fail(self: Path, other: Path) -> Path:
        if self.name == "new":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(InputError, match="No space left"), staged_folder(target, what="store"):
        pass
    assert (target / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_names_too_long_and_files_in_the_way_are_sentences(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for target in (tmp_path / ("a" * 300), tmp_path / "file" / "store"):
        with pytest.raises(InputError, match="cannot be written"), staged_folder(target, what="store"):
            pass
    assert [p.name for p in tmp_path.iterdir()] == ["file"]

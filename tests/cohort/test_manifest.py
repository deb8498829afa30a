from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from stpred._core.checks import InputError
from stpred.cohort.manifest import (
    COLUMNS,
    Record,
    file_names,
    read_manifest,
    record_file,
    write_manifest,
    write_record,
)


def test_files_are_named_after_slides_and_never_shared() -> None:
    names = ["a", "a b", "a-b", "a/b", "A", "x" * 400, "x" * 401, "..", "ä"]
    found = file_names(names)
    assert list(found) == names
    assert len({v.casefold() for v in found.values()}) == len(names)
    assert found["ä"] == "ä"
    assert max(map(len, found.values())) < 200
    assert not any("/" in v or v.startswith(".") for v in found.values())


def test_a_manifest_comes_back_with_what_happened_since(tmp_path: Path) -> None:
    done = Record("a", "/x/a.svs", store="a.zarr", status="complete", seconds=1.5, n_tiles=7, in_distribution=0.5)
    waiting = Record('b, "quoted"\nname', "/x/b.svs", store="b.zarr")
    write_manifest([waiting, done], tmp_path)
    kept = read_manifest(tmp_path)
    assert list(kept.columns) == list(COLUMNS)
    assert kept["slide"].tolist() == ["a", waiting.slide]
    assert kept["n_tiles"].tolist() == [7, pd.NA]
    assert pd.read_csv(tmp_path / "manifest.csv")["slide"].tolist() == kept["slide"].tolist()
    write_record(tmp_path, Record(waiting.slide, "/x/b.svs", store="b.zarr", status="failed", error="No."))
    record_file(tmp_path, "c.zarr").write_text("{cut off")  # says nothing
    assert read_manifest(tmp_path)["status"].tolist() == ["complete", "failed"]


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no cohort was predicted into it"):
        read_manifest(tmp_path)

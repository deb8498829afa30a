"""What is known of each slide of a run: one file a slide while it goes on, and a table of all."""

from __future__ import annotations

import dataclasses
import json
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stpred._core.checks import InputError
from stpred._core.disk.staging import staged_file
from stpred._core.files import read_json, readable, writable

if TYPE_CHECKING:
    import pandas as pd

COMPLETE, FAILED, PENDING = STATUSES = ("complete", "failed", "pending")

PARQUET, CSV = "manifest.parquet", "manifest.csv"

OWN = ".stpred"
"""Folder in that of the stores that holds what is the run's own: records, locks, unfinished stores."""


@dataclass(frozen=True)
class Record:
    """One slide of a run: a row of the manifest.

    Attributes
    ----------
    slide, path, donor
        As in the table of slides; `path` is absolute.
    store
        Its result, relative to the folder of the run.
    status
        ``"complete"``, ``"failed"`` or ``"pending"``.
    error
        Why it failed, in one sentence.
    warnings
        What was warned of, one below the other.
    seconds, worker, finished
        How long it took, where (host, process and Dask's name), and when it ended (ISO 8601, UTC).
    fingerprint
        Of the content of its files.
    stamp
        Of their names, sizes and times of change: as long as it stays, they are not read again for the fingerprint.
    mpp
        Micrometres per pixel of the image.
    n_tiles
        Locations that were predicted (or embedded).
    in_distribution
        Share of them that look like the model's training tiles.
    table, n_genes
        Key of the predicted table, and its genes.
    model, model_id
        The model's name and id.
    settings
        Short hash of all options that decide the result.
    versions
        Of the packages, a JSON string.
    """

    slide: str
    path: str
    donor: str = ""
    store: str = ""
    status: str = PENDING
    error: str = ""
    warnings: str = ""
    seconds: float | None = None
    worker: str = ""
    finished: str = ""
    fingerprint: str = ""
    stamp: str = ""
    mpp: float | None = None
    n_tiles: int | None = None
    in_distribution: float | None = None
    table: str = ""
    n_genes: int | None = None
    model: str = ""
    model_id: str = ""
    settings: str = ""
    versions: str = ""


FIELDS = tuple(f.name for f in dataclasses.fields(Record))

COLUMNS = tuple(name for name in FIELDS if name != "stamp")
"""Columns of the manifest."""

_NUMBERS = {
    "seconds": "float64",
    "mpp": "float64",
    "in_distribution": "float64",
    "n_tiles": "Int64",
    "n_genes": "Int64",
}


def file_names(slides: Iterable[str]) -> dict[str, str]:
    """Return a file name, without ending, for each slide; those that would share one get a checksum behind it.

    Examples
    --------
    >>> file_names(["a 1", "b"])
    {'a 1': 'a-1', 'b': 'b'}
    >>> len(set(file_names(["a 1", "a-1", "A/1"]).values()))
    3
    """
    slugs = {s: re.sub(r"[^\w.-]+", "-", s).strip(".")[:150] or "slide" for s in slides}
    many: dict[str, int] = {}
    for slug in slugs.values():
        many[slug.casefold()] = many.get(slug.casefold(), 0) + 1
    return {
        s: slug if many[slug.casefold()] == 1 and len(s) <= 150 else f"{slug}-{zlib.crc32(s.encode()):08x}"
        for s, slug in slugs.items()
    }


def record_file(folder: Path, store: str) -> Path:
    """Return where the record of a store is kept."""
    return folder / OWN / "records" / f"{store}.json"


def write_record(folder: Path, record: Record) -> None:
    """Keep the record of a slide, whole or not at all."""
    path = record_file(folder, record.store)
    with staged_file(path, what="record of a slide") as part:
        part.write_text(json.dumps(dataclasses.asdict(record), ensure_ascii=False), encoding="utf-8")


def read_record(path: Path) -> Record | None:
    """Return a record; None where there is none, or one that says nothing."""
    try:
        said = read_json(path, what="record of a slide")
        found = {k: v for k, v in said.items() if k in FIELDS}
        return Record(**found) if found.get("status") in STATUSES else None
    except (InputError, TypeError):
        return None


def read_records(folder: Path) -> dict[str, Record]:
    """Return the records of a folder by store."""
    found = (read_record(path) for path in sorted((folder / OWN / "records").glob("*.json")))
    return {record.store: record for record in found if record is not None}


def to_frame(records: Iterable[Record]) -> pd.DataFrame:
    """Return records as a table, slides in order of their names."""
    import pandas as pd

    rows = sorted((vars(r) for r in records), key=lambda row: row["slide"])
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    for name in COLUMNS:
        kind = _NUMBERS.get(name)
        frame[name] = frame[name].fillna("").astype(str) if kind is None else frame[name].astype(kind)
    return frame


def write_manifest(frame: pd.DataFrame | Iterable[Record], folder: Path) -> None:
    """Write ``manifest.parquet`` and ``manifest.csv``, each whole or not at all."""
    import pandas as pd

    table = frame if isinstance(frame, pd.DataFrame) else to_frame(frame)
    with staged_file(folder / PARQUET, what="manifest") as part:
        table.to_parquet(part, index=False)
    with staged_file(folder / CSV, what="manifest") as part:
        table.to_csv(part, index=False)


def read_manifest(folder: str | Path) -> pd.DataFrame:
    """Return the manifest of a run, with what became of its slides since it was written.

    Parameters
    ----------
    folder
        Folder that :func:`stpred.tl.predict_cohort` wrote.

    Raises
    ------
    InputError
        If it holds no run.
    """
    import pandas as pd

    folder = Path(folder)
    if not (folder / PARQUET).is_file() and not (folder / OWN).is_dir():
        raise InputError(
            f"{str(folder)!r} holds no {PARQUET}, so no cohort was predicted into it; name the folder that "
            "stpred.tl.predict_cohort wrote."
        )
    rows: dict[str, Mapping[str, Any]] = {}
    if (folder / PARQUET).is_file():
        with readable(folder / PARQUET, what="manifest"):
            kept = pd.read_parquet(folder / PARQUET)
            rows = {str(row["store"]): row for row in kept.to_dict("records")}
    fresh = read_records(folder)
    kept_rows = [_record(row) for store, row in rows.items() if store not in fresh]
    return to_frame([*kept_rows, *fresh.values()])


def records_of(frame: pd.DataFrame) -> list[Record]:
    """Return the records that a manifest holds."""
    return [_record(row) for row in frame.to_dict("records")]


def _record(row: Mapping[Any, Any]) -> Record:
    import pandas as pd

    return Record(**{k: v for k, v in row.items() if k in FIELDS and not pd.isna(v)})


def prepare(folder: Path) -> Path:
    """Make the folder of a run, or say why that cannot be; return the folder of what is the run's own."""
    own = folder / OWN
    with writable(folder, what="folder"):
        (own / "records").mkdir(parents=True, exist_ok=True)
    return own

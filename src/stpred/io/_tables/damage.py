"""Looking at the headers of vendor files, so that the damaged one is named before a vendor's reader opens them all."""

from __future__ import annotations

import zipfile
from pathlib import Path

from stpred._core.files import readable


def check_readable(*paths: Path) -> None:
    """Refuse damaged files before a vendor's reader, which does not say which one it is, opens them all.

    Looks at headers and footers only; files that are not there, and kinds that are not known here, pass.
    """
    for path in paths:
        if not path.is_file():
            continue
        with readable(path, what="file"):
            _open(path)


def _open(path: Path) -> None:
    if path.suffix == ".h5":
        import h5py

        h5py.File(path, "r").close()
    elif path.suffix == ".parquet":
        from pyarrow import parquet

        parquet.read_metadata(path)
    elif path.suffix == ".zip":
        zipfile.ZipFile(path).close()
    elif path.suffix == ".geojson":
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - 64))
            if not file.read().rstrip().endswith(b"}"):
                raise ValueError("the JSON does not end")

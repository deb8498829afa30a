"""Laying files out as spatialdata-io expects them, in a temporary folder of links, whatever the layout they came in."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path


@contextmanager
def staged(files: Mapping[str, Path | bytes]) -> Iterator[Path]:
    """Make a temporary folder of links to files (or of small files with the given bytes), by relative name.

    Within it, the chatter of the readers (missing images, repeated symbols: both handled here) is silenced.
    """
    with tempfile.TemporaryDirectory(prefix="stpred-") as name:
        root = Path(name)
        for relative, content in files.items():
            target = root / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                target.write_bytes(content)
            else:
                _link(content.resolve(), target)
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield root


def _link(source: Path, target: Path) -> None:
    """Link, or copy where the system allows no links."""
    try:
        os.symlink(source, target)
    except OSError:
        shutil.copyfile(source, target)

"""Fingerprints of a slide's files: of their content, and of what the file system says of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from stpred._core.checks import InputError, MissingFileError
from stpred._core.files import readable
from stpred.cohort.slides import STORE, is_store
from stpred.io.samples import format_of

if TYPE_CHECKING:
    from stpred.io.samples import Sample

WHOLE_BYTES = 1 << 30
"""Files up to this size are read as a whole."""

LARGE_BYTES = 256 << 20
"""Size of a slide's files from which on its features are kept while it is worked on, and idle workers help."""

_BLOCK, _N_BLOCKS = 1 << 20, 256
"""Of larger ones so many blocks of this size, evenly spread, the first and the last among them."""


def fingerprint_of(sample: Sample) -> str:
    """Return what tells the content of a slide's files from any other, wherever they lie, and as what they are read.

    Of files above 1 GiB, 256 blocks of 1 MiB and the size stand for the whole.
    """
    if not sample.path.exists():
        raise MissingFileError(f"There is nothing at {str(sample.path)!r}.")
    digest = hashlib.blake2b(str(_format(sample)).encode(), digest_size=16)
    for name, path in files_of(sample):
        with readable(path, what="slide"):
            size = path.stat().st_size
            digest.update(f"{name}\0{size}\0".encode(errors="surrogateescape"))
            with path.open("rb") as file:
                if size <= WHOLE_BYTES:
                    while block := file.read(_BLOCK):
                        digest.update(block)
                    continue
                for k in range(_N_BLOCKS):
                    file.seek((size - _BLOCK) * k // (_N_BLOCKS - 1))
                    digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def stamp_of(sample: Sample) -> str:
    """Return names, sizes and times of change of a slide's files, as a hash; empty where some are not there."""
    digest = hashlib.blake2b(str(sample.format).encode(), digest_size=16)
    try:
        for name, path in files_of(sample):
            state = path.stat()
            digest.update(f"{name}\0{state.st_size}\0{state.st_mtime_ns}\0".encode(errors="surrogateescape"))
    except OSError:
        return ""
    return digest.hexdigest()


def size_of(sample: Sample) -> int:
    """Return the bytes of a slide's files; 0 where they are not there."""
    try:
        return sum(path.stat().st_size for _, path in files_of(sample))
    except OSError:
        return 0


def is_large(sample: Sample) -> bool:
    """Whether a slide takes so long that its features are kept while it is worked on, and idle workers help."""
    return size_of(sample) >= LARGE_BYTES


def _format(sample: Sample) -> str | None:
    """Return the format that a slide is read as; None where it is none, which reading says then."""
    with suppress(InputError, OSError):
        return STORE if is_store(sample.path) else format_of(sample)
    return None


def files_of(sample: Sample) -> Iterator[tuple[str, Path]]:
    """Yield the files of a slide, in a folder all of them, each with what it is called there."""
    extra = {k: Path(v) for k, v in sample.options.items() if k in ("image", "spots", "alignment")}
    for role, path in {"path": sample.path, **extra}.items():
        if path.is_dir():
            for file in sorted(p for p in path.rglob("*") if p.is_file()):
                yield f"{role}/{file.relative_to(path)}", file
        else:
            yield role, path

"""Matrices of counts in files: checked before a library builds on them, since none of the libraries does.

An index beyond the matrix ends the whole process (a segmentation fault in SciPy's compiled code) as soon as columns are
taken, and a dataset may declare terabytes. All checks look at h5 and mtx files themselves.
"""

from __future__ import annotations

import gzip
import logging
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from stpred._core.checks import InputError, MissingFileError, listing
from stpred._core.files import readable

if TYPE_CHECKING:
    from anndata import AnnData
    from h5py import Dataset, File, Group

logger = logging.getLogger("stpred")

MAX_DEPTH = 32
"""Groups within groups; real files have five."""
MAX_RATIO = 1100
"""Bytes that one stored byte of gzip can stand for (1032), and no filter of HDF5 itself more."""
UNSTORED_BYTES = 2**26
"""What a dataset may declare without holding a byte: such values were never written."""
BLOCK = 2**22
"""Indices that are looked at together."""

GENES = "Gene Expression"
"""The type of features that are genes; antibodies and guides are others."""

_OWN_FILTERS = (None, "gzip", "lzf", "szip")
_SPARSE = ("data", "indices", "indptr")
_WHOLE_TEXT = b"0123456789+- \t\r\n"
_REAL_TEXT = _WHOLE_TEXT + b".eE"
_MTX_BANNER = re.compile(
    rb"%%MatrixMarket\s+matrix\s+coordinate\s+((unsigned-)?integer|real|double)\s+general\s*$", re.IGNORECASE
)


class _Counts(NamedTuple):
    """Where a 10x h5 file keeps its matrix."""

    group: str
    genes: tuple[str, ...]
    """Paths of the datasets with one entry per gene, ids first and names second."""


def check_10x_h5(path: Path) -> None:
    """Refuse a 10x h5 file of counts that scanpy would misread, fail over, or crash on.

    Checked are links and declared sizes of all its parts, the fields of the matrix, that names and shape belong
    together, that barcodes are unique, and that every index lies within the matrix. The values are checked once they
    are read (:func:`stpred._core.expression.counts.check_counts`).
    """
    import h5py

    with readable(path, what="counts file"), h5py.File(path, "r") as file:
        _Reader(file, path).check_10x()


def usable_10x_h5(path: Path) -> Path | bytes:
    """Check a 10x h5 file, and return it, or where R wrote its whole numbers as doubles, a stand-in with integers.

    The stand-in holds links to `path` for everything else.
    """
    from io import BytesIO

    import h5py

    with readable(path, what="counts file"), h5py.File(path, "r") as file:
        reader = _Reader(file, path)
        found = reader.check_10x()
        whole = {k: file[f"{found.group}/{k}"] for k in ("shape", "indices", "indptr")}
        whole = {k: d for k, d in whole.items() if d.dtype.kind not in "iu"}
        if not whole:
            return path
        buffer = BytesIO()
        with h5py.File(buffer, "w") as new:
            for key, value in file.attrs.items():
                new.attrs[key] = value
            group = new.create_group(found.group)
            for key in file[found.group]:
                if key in whole:
                    group[key] = np.asarray(whole[key][()], dtype=np.int64)
                else:
                    group[key] = h5py.ExternalLink(str(path.resolve()), f"/{found.group}/{key}")
        return buffer.getvalue()


def read_10x_h5(path: Path, *, gex_only: bool = True) -> AnnData:
    """Read a 10x h5 file of counts after :func:`check_10x_h5`."""
    import scanpy as sc

    from stpred.io._tables.links_folder import staged

    usable = usable_10x_h5(path)
    with readable(path, what="counts file"), staged({"counts.h5": usable}) as root:
        return sc.read_10x_h5(root / "counts.h5", gex_only=gex_only)


def barcodes_10x(path: Path) -> np.ndarray:
    """Return the barcodes of a 10x h5 file that was checked."""
    import h5py

    with readable(path, what="counts file"), h5py.File(path, "r") as file:
        reader = _Reader(file, path)
        return reader.names(f"{reader.layout().group}/barcodes")


def check_h5ad(path: Path) -> None:
    """Refuse an h5ad file with links that leave it, with sizes beyond it, or with a broken sparse matrix anywhere."""
    import h5py

    with readable(path, what="AnnData file"), h5py.File(path, "r") as file:
        reader = _Reader(file, path)
        for name, part in list(reader.walk(file)):  # all links and sizes before any matrix
            if isinstance(part, h5py.Group) and (form := _sparse_format(part)) is not None:
                reader.check_sparse(name, shape=_stated_shape(part), by_rows=form == "csr")


def _sparse_format(group: Group) -> str | None:
    """Return ``csr`` or ``csc`` for a group that anndata, of any version, takes for a sparse matrix."""
    stated = group.attrs.get("encoding-type", group.attrs.get("h5sparse_format"))
    stated = stated.decode() if isinstance(stated, bytes) else str(stated)
    if stated.startswith(("csr", "csc")):
        return stated[:3]
    return None


def _stated_shape(group: Group) -> Any:
    for key in ("shape", "h5sparse_shape"):
        if key in group.attrs:
            return group.attrs[key]
    raise InputError(f"{group.file.filename!r} is damaged: the sparse matrix {group.name!r} states no shape.")


class _Reader:
    """Looks into one open h5 file."""

    def __init__(self, file: File, path: Path) -> None:
        self.file = file
        self.path = path

    def refuse(self, reason: str) -> InputError:
        return InputError(f"The matrix file {str(self.path)!r} cannot be used: {reason}; write or download it again.")

    def walk(self, group: Group, *, above: tuple[int, ...] = ()) -> Iterator[tuple[str, Any]]:
        """Go through all parts; links that leave the file, or run in a circle, and sizes that cannot be are refused."""
        import h5py

        above = (*above, h5py.h5o.get_info(group.id).addr)
        for key in group:
            name = f"{group.name.rstrip('/')}/{key}"
            link = group.get(key, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise self.refuse(f"its part {name!r} is a link to another file, {link.filename!r}")
            try:
                part = group[key]
            except (KeyError, OSError, RuntimeError):
                if not isinstance(link, h5py.SoftLink):
                    raise
                raise self.refuse(f"its part {name!r} is a link to nothing that is there") from None
            if isinstance(part, h5py.Group):
                if len(above) > MAX_DEPTH or h5py.h5o.get_info(part.id).addr in above:
                    raise self.refuse(f"its groups contain themselves or are nested too deeply, at {name[:80]!r}")
                yield name, part
                yield from self.walk(part, above=above)
            elif isinstance(part, h5py.Dataset):
                self._check_size(name, part)
                yield name, part

    def _check_size(self, name: str, part: Dataset) -> None:
        if part.is_virtual or part.external:
            raise self.refuse(f"the values of its part {name!r} lie in other files")
        declared = (part.size or 0) * part.dtype.itemsize
        if declared <= UNSTORED_BYTES:
            return
        held = part.id.get_storage_size()
        if part.compression in _OWN_FILTERS and declared > MAX_RATIO * held:
            raise self.refuse(f"its part {name!r} declares {_size(declared)}, of which the file holds {_size(held)}")
        if (memory := _memory()) is not None and declared > memory:
            raise self.refuse(f"its part {name!r} takes {_size(declared)} where this machine has {_size(memory)}")

    def dataset(self, name: str, *, ndim: int = 1) -> Dataset:
        """Return an array of the file, or say that it is none."""
        import h5py

        found = self.file.get(name)
        if found is None:
            raise self.refuse(f"it has no {name!r}")
        if not isinstance(found, h5py.Dataset) or found.shape is None or found.ndim != ndim:
            raise self.refuse(f"its {name!r} is no {ndim}-dimensional array")
        return found

    def check_10x(self) -> _Counts:
        """Check the matrix of a file by Cell Ranger or Space Ranger and say where it is."""
        for _ in self.walk(self.file):
            pass
        found = self.layout()
        shape = self.dataset(f"{found.group}/shape")
        names = [self.names(g) for g in found.genes]
        barcodes = self.names(f"{found.group}/barcodes")
        sizes = self._whole(shape[()], name=f"{found.group}/shape", most=2)
        if len(set(map(len, names))) > 1 or sizes != (len(names[0]), len(barcodes)):
            lengths = {n: len(v) for n, v in zip(found.genes, names, strict=True)}
            raise self.refuse(
                f"its shape of genes and barcodes is {sizes}, but it names {lengths} and {len(barcodes)} barcodes"
            )
        if len(names) == 3 and not (names[2] == GENES).any():
            raise self.refuse(f"none of its features is of the type {GENES!r}, only {listing(np.unique(names[2]))}")
        if len(np.unique(barcodes)) < len(barcodes):
            values, n = np.unique(barcodes, return_counts=True)
            raise self.refuse(f"it holds barcodes twice, such as {values[n > 1][0]!r}")
        # by columns as 10x stores it: one run of genes per barcode
        self.check_sparse(found.group, shape=sizes, by_rows=False)
        return found

    def layout(self) -> _Counts:
        import h5py

        groups = [k for k in self.file if isinstance(self.file[k], h5py.Group)]
        if "matrix" in self.file:
            if "matrix" not in groups:
                raise self.refuse("its 'matrix' is no group")
            features = "matrix/features"
            if not isinstance(self.file.get(features), h5py.Group):
                raise self.refuse(f"it has no group {features!r}")
            ids = "gene_id" if "gene_id" in self.file[features] else "id"
            return _Counts("matrix", tuple(f"{features}/{k}" for k in (ids, "name", "feature_type")))
        if len(groups) != 1:
            held = (
                f"several genomes, {listing(groups)}"
                if groups
                else f"neither 'matrix' nor a genome, only {listing(self.file)}"
            )
            raise self.refuse(f"it holds {held}")
        return _Counts(groups[0], (f"{groups[0]}/genes", f"{groups[0]}/gene_names"))

    def names(self, name: str) -> np.ndarray:
        found = self.dataset(name)
        if found.dtype.kind not in "SO":
            raise self.refuse(f"its {name!r} holds no text but {found.dtype}")
        try:
            return np.asarray(found.asstr()[()] if found.dtype.kind == "O" else found[()].astype(str)).astype(str)
        except (UnicodeDecodeError, TypeError) as error:
            raise self.refuse(f"its {name!r} holds no readable text") from error

    def _whole(self, values: Any, *, name: str, most: int | None = None) -> tuple[int, ...]:
        """Return whole numbers as they are stored, by R also as doubles."""
        values = np.asarray(values).reshape(-1)
        if most is not None and len(values) != most:
            raise self.refuse(f"its {name!r} holds {len(values)} numbers, not {most}")
        self._check_whole(values, name=name)
        return tuple(int(v) for v in values)

    def _check_whole(self, values: np.ndarray, *, name: str) -> None:
        if values.dtype.kind not in "iuf":
            raise self.refuse(f"its {name!r} holds no numbers but {values.dtype}")
        if values.dtype.kind == "f" and not (np.isfinite(values) & (values == np.round(values))).all():
            raise self.refuse(f"its {name!r} holds values that are not whole numbers")
        if values.size and (values.min() < 0 or values.max() >= 2**62):
            raise self.refuse(
                f"its {name!r} holds values from {values.min()} to {values.max()}, which are no positions"
            )

    def check_sparse(self, group: str, *, shape: Any, by_rows: bool) -> None:
        """Check the arrays of one compressed sparse matrix against its shape and each other."""
        data, indices, indptr = (self.dataset(f"{group}/{k}") for k in _SPARSE)
        rows, columns = self._whole(shape, name=f"{group}/shape", most=2)
        outer, inner = (rows, columns) if by_rows else (columns, rows)
        for part in (data, indices):
            if part.dtype.kind not in "iuf" and not (part is data and part.dtype.kind == "b"):
                raise self.refuse(f"its {part.name!r} holds no numbers but {part.dtype}")
        if len(indptr) != outer + 1:
            raise self.refuse(f"its {indptr.name!r} has {len(indptr)} entries where {outer + 1} belong to the shape")
        if len(data) != len(indices) or len(data) > outer * inner:
            raise self.refuse(
                f"its matrix {group!r} of {rows} x {columns} has {len(data)} values and {len(indices)} indices"
            )
        starts = indptr[()]
        self._check_whole(starts, name=indptr.name)
        if starts[0] != 0 or starts[-1] != len(data) or (starts[1:] < starts[:-1]).any():
            raise self.refuse(f"its {indptr.name!r} does not divide the {len(data)} values into {outer} runs")
        for start in range(0, len(indices), BLOCK):
            block = indices[start : start + BLOCK]
            self._check_whole(block, name=indices.name)
            if block.max() >= inner:
                raise self.refuse(f"its {indices.name!r} points to {block.max()}, beyond the {inner} there are")


def check_10x_mtx(folder: Path) -> None:
    """Refuse a folder of ``matrix.mtx``, ``features.tsv`` and ``barcodes.tsv`` (each may be gzipped) that do not match.

    The sizes that the matrix declares are compared with the names, and with what its file can hold, before SciPy makes
    room for them.
    """
    matrix, features, barcodes = (_packed(folder, name) for name in ("matrix.mtx", "features.tsv", "barcodes.tsv"))
    names = []
    for path in (features, barcodes):
        with readable(path, what="counts file"), _open(path) as file:
            names.append([line.rstrip(b"\r\n") for line in file])
    names = [[n for n in ns if n] for ns in names]
    if len(set(names[1])) < len(names[1]):
        raise InputError(f"The counts file {str(barcodes)!r} holds barcodes twice; write or download it again.")
    with readable(matrix, what="counts file"), _open(matrix) as file:
        banner = file.readline(1000)
        line = file.readline(10000)
        while line.startswith(b"%") or (line and not line.strip()):
            line = file.readline(10000)
        odd, tokens = _survey(file, whole=b"integer" in banner.lower())
    if not _MTX_BANNER.fullmatch(banner.strip()):
        raise InputError(
            f"The counts file {str(matrix)!r} is no MatrixMarket file of coordinates and numbers; it begins with "
            f"{banner[:60]!r}."
        )
    try:
        rows, columns, entries = (int(v) for v in line.split())
    except ValueError:
        raise InputError(f"The counts file {str(matrix)!r} does not state its three sizes but {line[:60]!r}.") from None
    if (rows, columns) != (len(names[0]), len(names[1])):
        raise InputError(
            f"The counts file {str(matrix)!r} declares {rows} x {columns} values, but there are {len(names[0])} "
            f"features and {len(names[1])} barcodes; do the files belong together?"
        )
    held = matrix.stat().st_size * (MAX_RATIO if matrix.suffix == ".gz" else 1)
    if not 0 <= entries <= min(rows * columns, held // 4):
        raise InputError(
            f"The counts file {str(matrix)!r} declares {entries} entries, which {rows} x {columns} values in a file of "
            f"{_size(matrix.stat().st_size)} cannot be."
        )
    if odd:
        raise InputError(
            f"The counts file {str(matrix)!r} holds {odd!r} where its header promises numbers only; write or "
            "download it again."
        )
    if tokens != 3 * entries:
        raise InputError(
            f"The counts file {str(matrix)!r} declares {entries} entries of three numbers, but holds {tokens} numbers; "
            "it is cut off or damaged, so copy or download it again."
        )


def _survey(file: Any, *, whole: bool) -> tuple[str, int]:
    """Return the first character that no number has (SciPy stops at it and takes what it has), and how many tokens."""
    allowed, space = np.zeros(256, bool), np.zeros(256, bool)
    allowed[list(_WHOLE_TEXT if whole else _REAL_TEXT)] = True
    space[list(b" \t\r\n")] = True
    tokens, before = 0, True
    while block := file.read(BLOCK):
        values = np.frombuffer(block, dtype=np.uint8)
        if not (fits := allowed[values]).all():
            return chr(values[~fits][0]), tokens
        gap = space[values]
        tokens += int((gap[:-1] & ~gap[1:]).sum()) + int(before and not gap[0])
        before = bool(gap[-1])
    return "", tokens


def _packed(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.exists():
            return path
    raise MissingFileError(f"The counts folder {str(folder)!r} lacks {name}.gz.")


def _open(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _memory() -> int | None:
    """Return the bytes of memory of this machine, where the system tells."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _size(n_bytes: int) -> str:
    """Write a number of bytes for a message."""
    power = min(4, int(math.log(max(n_bytes, 1), 1024)))
    return f"{n_bytes / 1024**power:.3g} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"

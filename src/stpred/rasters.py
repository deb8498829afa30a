"""Predicted maps: images whose channels are genes, filled block by block, kept on disk by gene."""

from __future__ import annotations

import glob
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stpred._core import keys
from stpred._core.checks import InputError, MissingFileError, check_parent
from stpred._core.disk import locks
from stpred._core.files import read_json, readable, reason, writable

if TYPE_CHECKING:
    from spatialdata import SpatialData

logger = logging.getLogger("stpred")

BLOCK = 256
"""Pixels along each edge of what is predicted, and kept in one file of a gene, at a time."""

MOST_IN_MEMORY = 0.5
"""Share of the machine's memory that a map without a file may take."""

_BLOCK_BYTES = 2**28
_SMALLEST = 512
_PYRAMID = 4 / 3
_COMMIT_S = 600.0
_STORE = "zarr.json"
_MARK = "spatialdata_attrs"


@dataclass(frozen=True)
class Frame:
    """Pixels of a map: squares of a lattice that is anchored at the frame's origin.

    Attributes
    ----------
    size_um
        Edge of a pixel.
    first
        Column and row of the lattice at which the map begins.
    shape
        Height and width in pixels.
    """

    size_um: float
    first: tuple[int, int]
    shape: tuple[int, int]

    @classmethod
    def around(cls, bounds_um: tuple[float, float, float, float], size_um: float) -> Frame:
        """Return one that covers a box, hardly larger: its smaller copies halve it evenly, so none is out of place."""
        low = np.floor(np.array(bounds_um[:2]) / size_um + 1e-6).astype(int)
        high = np.maximum(np.ceil(np.array(bounds_um[2:]) / size_um - 1e-6).astype(int), low + 1)
        (x, y), step = low.tolist(), 2 ** _halvings(*(high - low).tolist())
        width, height = (-(-(high - low) // step) * step).tolist()
        return cls(size_um, (x, y), (height, width))

    def n_bytes(self, n_genes: int) -> int:
        """Return the size of the map with its smaller copies, not compressed."""
        return int(n_genes * self.shape[0] * self.shape[1] * 4 * _PYRAMID)

    def blocks(self, n_genes: int) -> Iterator[tuple[slice, slice]]:
        """Yield rows and columns of blocks."""
        edge = block_edge(n_genes)
        for y in range(0, self.shape[0], edge):
            for x in range(0, self.shape[1], edge):
                yield slice(y, min(y + edge, self.shape[0])), slice(x, min(x + edge, self.shape[1]))

    def centres_um(self, rows: slice, columns: slice) -> NDArray[np.float64]:
        """Return the (h * w, 2) centres of a block's pixels, row by row."""
        y, x = np.mgrid[rows, columns]
        at = np.column_stack([x.ravel() + self.first[0], y.ravel() + self.first[1]])
        return np.asarray((at + 0.5) * self.size_um, dtype=np.float64)


def _halvings(height: int, width: int) -> int:
    """Return the number of smaller copies."""
    return max(1, int(np.ceil(np.log2(max(height, width) / _SMALLEST))))


def block_edge(n_genes: int) -> int:
    """Return the edge of blocks; of very many genes they are smaller."""
    edge = BLOCK
    while edge > 32 and n_genes * edge**2 * 4 > _BLOCK_BYTES:
        edge //= 2
    return edge


def check_memory(frame: Frame, n_genes: int) -> None:
    """Refuse a map that does not fit into memory."""
    needed = frame.n_bytes(n_genes)
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 8 * 2**30
    if needed > MOST_IN_MEMORY * there:
        raise InputError(
            f"The map of {n_genes} genes on {frame.shape[1]} x {frame.shape[0]} pixels of {frame.size_um:g} um takes "
            f"{needed / 2**30:.3g} GB, more than half of the {there / 2**30:.3g} GB of this machine; pass out= to "
            "write it to disk, or ask for fewer genes."
        )


def check_disk(path: Path, frame: Frame, n_genes: int, *, staging: Path, copies: int = 1) -> None:
    """Refuse a map that the disk has no room for: itself, its smaller copies, and `copies` of it while it is written.

    What the folder `staging` holds already is gone on with or goes, so it takes no room from the map.
    """
    needed = frame.n_bytes(n_genes) + copies * n_genes * frame.shape[0] * frame.shape[1] * 4
    above = next(p for p in path.absolute().parents if p.exists())
    held = sum(f.stat().st_size for f in staging.rglob("*") if f.is_file())
    free = shutil.disk_usage(above).free + held
    if needed > free:
        raise InputError(
            f"The map of {n_genes} genes on {frame.shape[1]} x {frame.shape[0]} pixels of {frame.size_um:g} um needs "
            f"up to {needed / 2**30:.3g} GB while it is written, and {str(above)!r} has {free / 2**30:.3g} GB free; "
            "ask for fewer genes or larger pixels (resolution_um), or write elsewhere."
        )


class Blocks:
    """Notes on a map's finished blocks.

    Attributes
    ----------
    finished
        By first row and column of the block, what was noted of it.
    """

    def __init__(self) -> None:
        self.finished: dict[str, dict[str, Any]] = {}

    def has(self, rows: slice, columns: slice) -> bool:
        """Whether a block is there."""
        return f"{rows.start},{columns.start}" in self.finished

    def noted(self, name: str) -> list[Any]:
        """Return what was noted under a name of all blocks that have it."""
        return [noted[name] for noted in self.finished.values() if name in noted]


class Staging(Blocks):
    """A map on disk that is filled block by block, and resumed after an interruption.

    Parameters
    ----------
    folder
        Where it is kept until it is whole.
    inputs
        All that decides its values; one that was begun with others is begun anew.
    frame, n_genes
        Its shape.
    """

    def __init__(self, folder: Path, inputs: dict[str, Any], frame: Frame, n_genes: int) -> None:
        import zarr

        super().__init__()
        self.folder, self._done = folder, folder / "done.txt"
        text = json.dumps(inputs, sort_keys=True, default=str)
        stored = folder / "facts.json"
        edge = block_edge(n_genes)
        shape = (n_genes, *frame.shape)
        try:
            with readable(folder, what="unfinished map"):
                if stored.read_text(encoding="utf-8") != text:
                    raise InputError("it is of another prediction")
                self._resume(shape)
        except MissingFileError:
            pass
        except InputError as error:
            logger.warning("The unfinished map in %s is begun again: %s.", folder, reason(error.__cause__ or error))
        if self.finished:
            logger.info("%d finished blocks are taken from %s.", len(self.finished), folder)
            return
        with writable(folder, what="unfinished map"):
            self.discard()
            folder.mkdir(parents=True)
            self.values = zarr.create_array(
                folder / "map.zarr",
                shape=shape,
                chunks=(1, min(edge, frame.shape[0]), min(edge, frame.shape[1])),
                dtype="float32",
                fill_value=float("nan"),
            )
            stored.write_text(text, encoding="utf-8")

    def _resume(self, shape: tuple[int, ...]) -> None:
        """Take up what is there; whatever is wrong with it raises."""
        import zarr

        self.values = zarr.open_array(self.folder / "map.zarr", mode="r+")
        if self.values.shape != shape or self.values.dtype != np.float32:
            raise ValueError(f"it has values of shape {self.values.shape}")
        text = self._done.read_text(encoding="utf-8") if self._done.exists() else ""
        whole = text[: text.rfind("\n") + 1]  # the last line may have been cut off
        found = {}
        for line in whole.splitlines():
            block, _, noted = line.partition(" ")
            found[block] = json.loads(noted)
            if not re.fullmatch(r"\d+,\d+", block) or not isinstance(found[block], dict):
                raise ValueError("its list of finished blocks is damaged")
        if whole != text:
            self._done.write_text(whole, encoding="utf-8")
        self.finished = found

    def put(self, rows: slice, columns: slice, values: NDArray[np.float32] | None, **noted: Any) -> None:
        """Write a (n_genes, h, w) block, or nothing where it is empty, and only then note that it is there."""
        block = f"{rows.start},{columns.start}"
        with writable(self.folder, what="unfinished map"):
            if values is not None:
                self.values[:, rows, columns] = values
            with self._done.open("a", encoding="utf-8") as done:
                done.write(f"{block} {json.dumps(noted)}\n")
        self.finished[block] = noted

    def discard(self) -> None:
        """Remove all of it."""
        if self.folder.is_dir() and not self.folder.is_symlink():
            shutil.rmtree(self.folder)
        else:
            self.folder.unlink(missing_ok=True)

    def lazy(self) -> Any:
        """Return the map as a dask array."""
        import dask.array as da

        return da.from_zarr(str(self.folder / "map.zarr"))

    def rewritten(self, change: Callable[[NDArray[np.float32], int], NDArray[np.float32]]) -> Any:
        """Return the map with every gene's plane changed, as a dask array; the map itself stays as it is."""
        import dask.array as da
        import zarr

        path = self.folder / "changed.zarr"
        shape, chunks = self.values.shape, self.values.chunks
        with writable(path, what="unfinished map"):
            changed = zarr.create_array(
                path, shape=shape, chunks=chunks, dtype="float32", fill_value=float("nan"), overwrite=True
            )
        for gene in range(shape[0]):
            plane = change(np.asarray(self.values[gene]), gene)
            with writable(path, what="unfinished map"):
                changed[gene] = plane
        return da.from_zarr(str(path))


def element(values: Any, genes: list[str], frame: Frame, *, coordinate_system: str = keys.UM) -> Any:
    """Return the multiscale image element of a (n_genes, h, w) map, placed in micrometres; NaN where there is none.

    Smaller copies are means of what is there.
    """
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Scale, Sequence, Translation

    place = Sequence(
        [
            Scale([frame.size_um, frame.size_um], axes=("x", "y")),
            Translation([frame.first[0] * frame.size_um, frame.first[1] * frame.size_um], axes=("x", "y")),
        ]
    )
    edge = block_edge(len(genes)) * 4
    return Image2DModel.parse(
        values,
        dims=("c", "y", "x"),
        c_coords=genes,
        scale_factors=[2] * _halvings(*frame.shape),
        chunks=(1, min(edge, frame.shape[0]), min(edge, frame.shape[1])),
        transformations={coordinate_system: place},
    )


def note(sdata: SpatialData, key: str, provenance: str) -> None:
    """Keep the provenance of a map with the object: images have no place for it."""
    kept = dict(sdata.attrs.get(keys.UNS, {}))
    sdata.attrs[keys.UNS] = {**kept, key: provenance}


def check_out(out: str | Path, key: str) -> Path:
    """Return the store that a map can be written to: a new one, or one without an element of its name."""
    path = check_parent(Path(out))
    check_parent(staging_of(path, key))
    if not path.exists():
        return path
    if path.is_dir() and not os.access(path, os.W_OK):
        raise InputError(f"`out`={str(path)!r} cannot be written: the store is not writable.")
    kept = read_json(path / _STORE, what="store") if (path / _STORE).is_file() else {}
    if not isinstance(attributes := kept.get("attributes"), dict) or _MARK not in attributes:
        raise InputError(f"`out`={str(path)!r} is no SpatialData store; name a new one or an existing store.")
    for kind in ("images", "labels", "points", "shapes", "tables"):
        # Remains of a map that was put there, before the store listed it, go when it is put there again.
        staged = kind == "images" and staging_of(path, key).exists()
        if (path / kind / key).exists() and not staged:
            raise InputError(f"`out`={str(path)!r} holds {kind}/{key} already; choose another `key_added`.")
    return path


def staging_of(path: Path, key: str) -> Path:
    """Return where a map is kept until it is whole."""
    return path.with_name(f".{path.name}-{key}.part")


@contextmanager
def alone(out: str | Path, key: str) -> Iterator[Path]:
    """Let no other process write the same map for a block, and give its store; refuse where one is at it, and name it.

    Folders created for the lock go if nothing was written into them. Remains of killed runs are removed, but for
    finished blocks of a map, which :class:`Staging` takes up.
    """
    path = check_out(out, key)
    above = [p for p in path.absolute().parents if not p.exists()]
    try:
        with writable(path, what="store"):
            path.absolute().parent.mkdir(parents=True, exist_ok=True)
        with locks.held(lock_of(path, key), what=f"map {key!r} of {str(path)!r}"):
            check_out(out, key)  # another process may have been done meanwhile
            for part in path.absolute().parent.glob(f"{glob.escape(f'.{path.name}-{key}.')}*writing"):
                shutil.rmtree(part, ignore_errors=True)
            yield path
    finally:
        for folder in above:
            with suppress(OSError):
                folder.rmdir()


def lock_of(path: Path, key: str | None = None) -> Path:
    """Return the file that says who is writing a map, or without a name: who is changing the store."""
    return path.with_name(f".{path.name}.lock" if key is None else f".{path.name}-{key}.lock")


def commit(path: Path, key: str, image: Any, provenance: str) -> Any:
    """Write a map as an element of a store, which gets it whole or not at all; return it as read from there."""
    from spatialdata import SpatialData, read_zarr

    made = SpatialData(images={key: image})
    note(made, key, provenance)
    fresh = path.with_name(f".{path.name}-{key}.{uuid.uuid4().hex[:12]}.writing")
    what = f"map {key!r} of the store"
    try:
        with writable(path, what=what):
            made.write(fresh)
            # Maps of other names may be on their way into the same store.
            with locks.held(lock_of(path), what=f"store {str(path)!r}", wait_s=_COMMIT_S):
                if not path.exists():
                    fresh.rename(path)
                else:
                    _put(path, fresh, key, provenance)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    with readable(path, what="store"):
        return read_zarr(path, selection=("images",)).images[key]


def _put(path: Path, fresh: Path, key: str, provenance: str) -> None:
    """Move an element into an existing store, of which the metadata says so last; put the store back if that fails."""
    import zarr
    from spatialdata import read_zarr

    images, old = path / "images", fresh / "old.json"
    shutil.copy(path / _STORE, old)
    there = [p for p in (images, images / _STORE) if p.exists()]
    try:
        images.mkdir(exist_ok=True)
        if not (images / _STORE).exists():
            shutil.copy(fresh / "images" / _STORE, images / _STORE)
        shutil.rmtree(images / key, ignore_errors=True)
        (fresh / "images" / key).rename(images / key)
        with readable(path, what="store"):
            kept = read_zarr(path, selection=())
        note(kept, key, provenance)
        kept.write_attrs()
        zarr.consolidate_metadata(str(path))
    except BaseException:
        os.replace(old, path / _STORE)
        shutil.rmtree(images / key, ignore_errors=True)
        for made in (images / _STORE, images):
            if made not in there:
                with suppress(OSError):
                    made.unlink() if made.is_file() else made.rmdir()
        raise

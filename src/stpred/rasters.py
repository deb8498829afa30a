"""Predicted maps: images whose channels are genes, filled block by block, kept on disk by gene."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stpred._core import keys
from stpred._core.checks import InputError, check_parent

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
    """Refuse a map that the disk has no room for: itself, its smaller copies, and `copies` of it while it is made.

    What the folder `staging` holds already is gone on with or goes, so it takes no room from the map.
    """
    needed = frame.n_bytes(n_genes) + copies * n_genes * frame.shape[0] * frame.shape[1] * 4
    above = next(p for p in path.absolute().parents if p.exists())
    held = sum(f.stat().st_size for f in staging.rglob("*") if f.is_file())
    free = shutil.disk_usage(above).free + held
    if needed > free:
        raise InputError(
            f"The map of {n_genes} genes on {frame.shape[1]} x {frame.shape[0]} pixels of {frame.size_um:g} um needs "
            f"up to {needed / 2**30:.3g} GB while it is written, and {str(above)!r} has {free / 2**30:.3g} GB left; "
            "ask for fewer genes or larger pixels (resolution_um), or write elsewhere."
        )


class Blocks:
    """What is known of a map's finished blocks.

    Attributes
    ----------
    finished
        By first row and column of the block, what was noted of it.
    """

    finished: dict[str, dict[str, Any]]

    def has(self, rows: slice, columns: slice) -> bool:
        """Whether a block is there."""
        return f"{rows.start},{columns.start}" in self.finished

    def noted(self, name: str) -> list[Any]:
        """Return what was noted under a name of all blocks that have it."""
        return [noted[name] for noted in self.finished.values() if name in noted]


class Staging(Blocks):
    """A map on disk that is filled block by block, and taken up again where it was left.

    Parameters
    ----------
    folder
        Where it is kept until it is whole.
    facts
        All that decides its values; one that was begun with others is begun anew.
    frame, n_genes
        Its shape.
    """

    def __init__(self, folder: Path, facts: dict[str, Any], frame: Frame, n_genes: int) -> None:
        import zarr

        self.folder, self._done = folder, folder / "done.txt"
        said = json.dumps(facts, sort_keys=True, default=str)
        known = folder / "facts.json"
        if folder.exists() and (not known.is_file() or known.read_text() != said):
            logger.info("What was left in %s is of another prediction, and is begun anew.", folder)
            shutil.rmtree(folder)
        edge = block_edge(n_genes)
        if not folder.exists():
            folder.mkdir(parents=True)
            zarr.create_array(
                folder / "map.zarr",
                shape=(n_genes, *frame.shape),
                chunks=(1, min(edge, frame.shape[0]), min(edge, frame.shape[1])),
                dtype="float32",
                fill_value=float("nan"),
            )
            known.write_text(said)
        self.values = zarr.open_array(folder / "map.zarr", mode="r+")
        text = self._done.read_text() if self._done.exists() else ""
        whole = text[: text.rfind("\n") + 1]  # the last line may have been cut off
        if whole != text:
            self._done.write_text(whole)
        lines = (line.split(" ", 1) for line in whole.splitlines())
        self.finished = {block: json.loads(noted) for block, noted in lines}
        if self.finished:
            logger.info("%d finished blocks are taken from %s.", len(self.finished), folder)

    def put(self, rows: slice, columns: slice, values: NDArray[np.float32] | None, **noted: Any) -> None:
        """Write a (n_genes, h, w) block, or nothing where it is empty, and only then note that it is there."""
        if values is not None:
            self.values[:, rows, columns] = values
        block = f"{rows.start},{columns.start}"
        with self._done.open("a") as done:
            done.write(f"{block} {json.dumps(noted)}\n")
        self.finished[block] = noted

    def discard(self) -> None:
        """Remove all of it."""
        shutil.rmtree(self.folder)

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
        changed = zarr.create_array(
            path, shape=shape, chunks=chunks, dtype="float32", fill_value=float("nan"), overwrite=True
        )
        for gene in range(shape[0]):
            changed[gene] = change(np.asarray(self.values[gene]), gene)
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
    if not path.exists():
        return path
    if not (path / _STORE).is_file() or _MARK not in json.loads((path / _STORE).read_text()).get("attributes", {}):
        raise InputError(f"`out`={str(path)!r} is no SpatialData store; name a new one or an existing store.")
    for kind in ("images", "labels", "points", "shapes", "tables"):
        # What was left when a map was put there, before the store knew of it, goes when it is put there again.
        left = kind == "images" and staging_of(path, key).exists()
        if (path / kind / key).exists() and not left:
            raise InputError(f"`out`={str(path)!r} holds {kind}/{key} already; choose another `key_added`.")
    return path


def staging_of(path: Path, key: str) -> Path:
    """Return where a map is kept until it is whole."""
    return path.with_name(f".{path.name}-{key}.part")


def commit(path: Path, key: str, image: Any, provenance: str) -> Any:
    """Write a map as an element of a store, which gets it whole or not at all; return it as read from there."""
    import zarr
    from spatialdata import SpatialData, read_zarr

    made = SpatialData(images={key: image})
    note(made, key, provenance)
    fresh = path.with_name(f".{path.name}-{key}.writing")
    shutil.rmtree(fresh, ignore_errors=True)
    made.write(fresh)
    if not path.exists():
        fresh.rename(path)
    else:
        (path / "images").mkdir(exist_ok=True)
        if not (path / "images" / _STORE).exists():
            shutil.copy(fresh / "images" / _STORE, path / "images" / _STORE)
        shutil.rmtree(path / "images" / key, ignore_errors=True)
        (fresh / "images" / key).rename(path / "images" / key)
        there = read_zarr(path, selection=())
        note(there, key, provenance)
        there.write_attrs()
        zarr.consolidate_metadata(str(path))
        shutil.rmtree(fresh)
    return read_zarr(path, selection=("images",)).images[key]

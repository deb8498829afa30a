"""An AnnData on disk that is written block by block, so that it may be larger than memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import keys
from stpred._core.disk.staging import staged_file, staged_folder
from stpred.cohort.collected._stored_tables import Locations

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

CHUNK_BYTES = 4_000_000
"""Size of a chunk of values on disk, before compression."""

_ARRAY = {"encoding-type": "array", "encoding-version": "0.2.0"}
_TEXT = {"encoding-type": "string-array", "encoding-version": "0.2.0"}


class JoinedTables:
    """Tables of many slides, one below the other, in a group of an HDF5 file or a zarr store.

    Every array has its final size from the start; :meth:`put` fills the rows of one slide.

    Parameters
    ----------
    root
        Empty group.
    n_obs
        Locations of all slides.
    var
        Frame of the genes.
    categories
        For each categorical column of ``obs``, here ``slide``, ``donor`` and ``region``, its categories.
    text_ids
        Whether instance ids are written as text.
    layers
        Layers beside ``X``.
    uns
        JSON string for ``uns["stpred"]``.
    """

    def __init__(
        self,
        root: Any,
        *,
        n_obs: int,
        var: pd.DataFrame,
        categories: dict[str, list[str]],
        text_ids: bool,
        layers: Sequence[str],
        uns: str,
    ) -> None:
        from anndata.io import write_elem

        self.root, self.n_obs, self.text_ids = root, n_obs, text_ids
        self._codes = {name: {c: i for i, c in enumerate(values)} for name, values in categories.items()}
        root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        write_elem(root, "var", var)
        write_elem(root, "uns", {keys.UNS: uns})
        for name in ("obsm", "varm", "obsp", "varp", "layers"):
            write_elem(root, name, {})
        columns = [*categories, "instance_id", keys.OOD_SCORE, keys.IN_DISTRIBUTION]
        obs = root.create_group("obs")
        obs.attrs.update(
            {
                "encoding-type": "dataframe",
                "encoding-version": "0.2.0",
                "_index": "_index",
                "column-order": columns,
            }
        )
        self._create("obs/_index", str)
        for name, values in categories.items():
            column = obs.create_group(name)
            column.attrs.update({"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False})
            write_elem(column, "categories", np.array(values, dtype=object))
            self._create(f"obs/{name}/codes", np.dtype(np.int32 if len(values) > 100 else np.int8))
        self._create("obs/instance_id", str if text_ids else np.dtype(np.int64))
        self._create(f"obs/{keys.OOD_SCORE}", np.dtype(np.float32))
        self._create(f"obs/{keys.IN_DISTRIBUTION}", np.dtype(bool))
        self._create(f"obsm/{keys.SPATIAL}", np.dtype(np.float64), 2)
        for path in ("X", *(f"layers/{name}" for name in layers)):
            self._create(path, np.dtype(np.float32), len(var))

    def _create(self, path: str, dtype: Any, n_columns: int | None = None) -> None:
        shape = (self.n_obs,) if n_columns is None else (self.n_obs, n_columns)
        size = 16 if dtype is str else dtype.itemsize
        rows = int(np.clip(CHUNK_BYTES // (size * max(n_columns or 1, 1)), 1, self.n_obs))
        chunks = (rows,) if n_columns is None else (rows, max(n_columns, 1))
        if hasattr(self.root, "store"):  # zarr
            made = self.root.create_array(path, shape=shape, chunks=chunks, dtype=dtype)
        else:
            import h5py

            kind = h5py.string_dtype() if dtype is str else dtype
            made = self.root.create_dataset(path, shape=shape, chunks=chunks, dtype=kind)
        made.attrs.update(_TEXT if dtype is str else _ARRAY)

    def put(self, start: int, slide: str, donor: str, locations: Locations) -> None:
        """Write what is known of the locations of a slide, from row `start` on; their values come by :meth:`values`."""
        n = len(locations.ids)
        rows = slice(start, start + n)
        ids = np.array([str(i) for i in locations.ids], dtype=object)
        columns = {
            "_index": np.array([f"{slide}/{i}" for i in ids], dtype=object),
            "instance_id": ids if self.text_ids else locations.ids.astype(np.int64),
            keys.OOD_SCORE: locations.ood_score.astype(np.float32),
            keys.IN_DISTRIBUTION: locations.in_distribution,
            "slide/codes": self._coded("slide", [slide] * n),
            "donor/codes": self._coded("donor", [donor] * n),
            "region/codes": self._coded("region", locations.regions.tolist()),
        }
        for name, values in columns.items():
            self.root[f"obs/{name}"][rows] = values
        self.root[f"obsm/{keys.SPATIAL}"][rows] = locations.spatial

    def _coded(self, name: str, values: list[str]) -> NDArray[np.int32]:
        codes = self._codes[name]
        return np.array([codes.get(v, -1) for v in values], dtype=np.int32)

    def values(self, start: int, values: NDArray[np.float32], *, layer: str | None = None) -> None:
        """Write (n, G) values from row `start` on."""
        self.root["X" if layer is None else f"layers/{layer}"][start : start + len(values)] = values


@contextmanager
def of_either_format() -> Iterator[None]:
    """Write zarr without being told what will be the default next year: each version is read by all that read these."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Writing zarr v2|zarr v3 autosharding", category=UserWarning)
        yield


@contextmanager
def joined_tables(path: Path, **shape: Any) -> Iterator[JoinedTables]:
    """Give an AnnData to fill that takes the place of `path` whole when the block ends, or not at all.

    Parameters
    ----------
    path
        File ending in ``.h5ad``, or zarr store.
    **shape
        As of :class:`JoinedTables`.
    """
    if path.suffix == ".h5ad":
        import h5py

        with staged_file(path, what="file of the tables") as part, h5py.File(part, "w") as file:
            yield JoinedTables(file, **shape)
        return
    import anndata
    import zarr

    with of_either_format(), staged_folder(path, what="store of the tables") as new:
        group = zarr.open_group(new, mode="w", zarr_format=anndata.settings.zarr_write_format)
        yield JoinedTables(group, **shape)
        zarr.consolidate_metadata(group.store)

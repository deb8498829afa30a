"""Predicted tables in the stores of a run, read from disk a block at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import keys, targets
from stpred._core.checks import InputError, listing
from stpred._core.files import readable
from stpred._core.tables import INSTANCE_KEY, REGION_KEY

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

BLOCK_BYTES = 16_000_000
"""Values that are read at once, as float32."""

_OF_THE_MODEL = (
    "model", "model_id", "family", "encoder", "tile", "gene_rule", "support_um", "library", "output_scale", "per",
    "readout",
)  # fmt: skip
"""Provenance that is kept of a table: what does not differ between the slides of one model."""


class UnreadableSlide(InputError):
    """A slide's table that cannot be read; ``slide`` names it."""

    def __init__(self, slide: str, message: str) -> None:
        super().__init__(message)
        self.slide = slide


@dataclass(frozen=True)
class StoredTable:
    """One slide's predicted table on disk; nothing of its values is in memory.

    Attributes
    ----------
    slide, store, key
        Name of the slide, its store and the table in it.
    genes
        Names of the columns; tables of the same genes share one object.
    n_obs
        Locations.
    provenance
        What stpred wrote of the model, the same object for tables of one model.
    left_out
        How many locations could not be predicted, by reason.
    upsampled
        Whether the image was coarser than what the model's encoder sees.
    text_ids
        Whether instance ids are text, not numbers.
    regions
        Shapes elements that it annotates.
    """

    slide: str
    store: Path
    key: str
    genes: pd.Index
    n_obs: int
    provenance: dict[str, Any]
    left_out: dict[str, int]
    upsampled: bool
    text_ids: bool
    regions: tuple[str, ...]

    @property
    def what(self) -> str:
        """Description in messages."""
        return f"table {self.key!r} of slide {self.slide!r} in"

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Say of any error whose table it is of."""
        try:
            with readable(self.store, what=self.what):
                yield
        except InputError as error:
            raise UnreadableSlide(self.slide, str(error)) from error

    @property
    def scale(self) -> str:
        """What the values are: as of :class:`stpred._core.expression.bulk.BulkSum`."""
        scale = str(self.provenance["output_scale"])
        return "cp10k" if scale == "counts" and self.provenance.get("per") else scale

    def locations(self) -> Locations:
        """Read what is known of the locations."""
        from anndata.io import read_elem

        with self._reading():
            group = _group(self.store, self.key)
            obs = group["obs"]
            marked = read_elem(obs[keys.IN_DISTRIBUTION]) if keys.IN_DISTRIBUTION in obs else None
            score = read_elem(obs[keys.OOD_SCORE]) if keys.OOD_SCORE in obs else None
            spatial = read_elem(group["obsm"][keys.SPATIAL]) if keys.SPATIAL in group["obsm"] else None
            return Locations(
                ids=np.asarray(read_elem(obs[INSTANCE_KEY])),
                regions=np.array(_texts(read_elem(obs[REGION_KEY])), dtype=object),
                in_distribution=np.ones(self.n_obs, bool) if marked is None else np.asarray(marked, dtype=bool),
                ood_score=np.full(self.n_obs, np.nan) if score is None else np.asarray(score, dtype=np.float64),
                spatial=np.full((self.n_obs, 2), np.nan) if spatial is None else np.asarray(spatial, dtype=np.float64),
            )

    def var(self) -> pd.DataFrame:
        """Read what is known of the genes."""
        from anndata.io import read_elem

        with self._reading():
            return read_elem(_group(self.store, self.key)["var"])

    def blocks(
        self, columns: NDArray[np.int64] | None, *, layer: str | None = None
    ) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Yield ``(rows, values)``: consecutive rows and their (n, g) values of some columns, None: of all.

        Parameters
        ----------
        columns
            (g,) positions of genes.
        layer
            Layer instead of ``X``.
        """
        with self._reading():
            group = _group(self.store, self.key)
            values = _values(group["X"] if layer is None else group["layers"][layer])
            step = _rows_at_once(values, len(self.genes))
        for start in range(0, self.n_obs, step):
            rows = slice(start, min(start + step, self.n_obs))
            with self._reading():
                yield rows, _block(values, rows, columns)


@dataclass(frozen=True)
class Locations:
    """What is known of a table's (n,) locations; what the table does not say is NaN, or in distribution."""

    ids: NDArray[Any]
    regions: NDArray[Any]
    in_distribution: NDArray[np.bool_]
    ood_score: NDArray[np.float64]
    spatial: NDArray[np.float64]


class Opener:
    """Opens tables; lists of genes that many tables have are kept once."""

    def __init__(self, layers: Sequence[str] = ()) -> None:
        self.layers = layers
        self._genes: dict[bytes, pd.Index] = {}
        self._models: dict[str, dict[str, Any]] = {}

    def __call__(self, slide: str, store: Path, key: str) -> StoredTable:
        """Return a table, or say that it is not there, not complete, or no prediction."""
        what = f"store of slide {slide!r},"
        if not store.is_dir():
            raise InputError(f"Slide {slide!r} is complete in the manifest, but its store {str(store)!r} is not there.")
        with readable(store, what=what):
            there = sorted(p.name for p in (store / "tables").glob("*") if p.is_dir() and not p.name.startswith("."))
        if key not in there:
            raise InputError(f"The {what} {str(store)!r}, has no table {key!r}; its tables: {listing(there)}.")
        with readable(store, what=what):
            group = _group(store, key)
            genes = self._index(group["var"])
            said = group["uns"][keys.UNS][()] if keys.UNS in group["uns"] else None
            lacking = [c for c in (REGION_KEY, INSTANCE_KEY) if c not in group["obs"]]
            lacking += [f"layers[{name!r}]" for name in self.layers if name not in group["layers"]]
            ids = None if lacking else group["obs"][INSTANCE_KEY]
            regions = () if lacking else _categories(group["obs"][REGION_KEY])
            n_obs = _length(group["obs"][group["obs"].attrs["_index"]])
        place = f"Table {key!r} of slide {slide!r} in {str(store)!r}"
        provenance = _provenance(said, place)
        if lacking:
            has = listing(sorted(group["layers"])) if lacking[0].startswith("layers") else listing(sorted(group["obs"]))
            raise InputError(f"{place} lacks {', '.join(lacking)}; it has {has}.")
        text = not np.issubdtype(getattr(ids, "dtype", np.dtype(object)), np.integer)
        own = {k: provenance[k] for k in _OF_THE_MODEL if k in provenance}
        own = self._models.setdefault(json.dumps(own, sort_keys=True), own)
        left_out = {k: n for k, n in (provenance.get("left_out") or {}).items() if isinstance(n, int)}
        upsampled = bool(provenance.get("upsampled"))
        return StoredTable(slide, store, key, genes, n_obs, own, left_out, upsampled, text, regions)

    def _index(self, var: Any) -> pd.Index:
        import pandas as pd
        from anndata.io import read_elem

        names = _texts(read_elem(var[var.attrs["_index"]]))
        digest = hashlib.sha256("\0".join(names).encode()).digest()
        if digest not in self._genes:
            self._genes[digest] = pd.Index(names, dtype=object)
        return self._genes[digest]


def _length(column: Any) -> int:
    """Return the number of entries of a column, which newer versions of pandas have stored as a group."""
    return int((column["values"] if hasattr(column, "keys") else column).shape[0])


def _categories(column: Any) -> tuple[str, ...]:
    from anndata.io import read_elem

    values = read_elem(column["categories"]) if hasattr(column, "keys") else np.unique(np.asarray(read_elem(column)))
    return tuple(_texts(values))


def _texts(values: Any) -> list[str]:
    """Return text, which libraries hold as objects, NumPy's strings or pandas' categories, as Python's."""
    return [str(v) for v in np.asarray(values, dtype=object)]


def _provenance(said: Any, place: str) -> dict[str, Any]:
    try:
        found = json.loads(str(said.item() if hasattr(said, "item") else said))
    except ValueError:
        found = None
    if not isinstance(found, dict) or "output_scale" not in found:
        raise InputError(f"{place} is no prediction that stpred wrote: its uns[{keys.UNS!r}] does not say its scale.")
    return found


def _group(store: Path, key: str) -> Any:
    import zarr

    return zarr.open_group(store / "tables" / key, mode="r", use_consolidated=False)


def _values(element: Any) -> Any:
    """Return a lazy array, or sparse dataset, of values on disk."""
    from anndata.io import sparse_dataset

    return element if hasattr(element, "chunks") else sparse_dataset(element)


def _rows_at_once(values: Any, n_genes: int) -> int:
    """Return how many rows are read at once: whole chunks, about `BLOCK_BYTES`."""
    chunk = values.chunks[0] if hasattr(values, "chunks") else 1
    return max(int(BLOCK_BYTES // (4 * max(n_genes, 1)) // chunk), 1) * chunk


def _block(values: Any, rows: slice, columns: NDArray[np.int64] | None) -> NDArray[np.float32]:
    if hasattr(values, "chunks") and columns is not None:
        found = values.oindex[rows, columns]
    else:
        found = values[rows]
        found = found if columns is None else found[:, columns]
    return targets.dense(found, np.float32)

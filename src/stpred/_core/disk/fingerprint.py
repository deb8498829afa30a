"""A small sample of a table's values, kept with its provenance: whether the values are still those that were written.

Rows and genes may be left out or reordered, the numbers may be stored as another float type, dense or sparse; what was
normalised, logged, scaled or filled anew does not fit the sample any more.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

MAX_ROWS = 256
"""Rows that values are sampled from."""

MAX_VALUES = 16384
"""Values that are kept; of tables with more genes, one of each."""

_RTOL = 2e-3
"""Relative difference up to which two values are the same: half-precision floats are rounded by a quarter of it."""

_ATOL = 1e-3
"""Likewise, as a share of the root mean square of the values."""


MIN_SHARE = 0.5
"""Share of a table's genes that a fingerprint must hold: fewer are checksums that meet by chance after renaming."""


@dataclass(frozen=True)
class Difference:
    """How a table differs from its fingerprint.

    Attributes
    ----------
    n_compared, n_changed
        Sampled values that the table still holds, and those of them that are others now.
    was, now
        One of these: the one that differs most.
    """

    n_compared: int
    n_changed: int
    was: float
    now: float


def fingerprint(X: Any, instances: ArrayLike, genes: Sequence[str]) -> dict[str, Any]:
    """Return a sample of the values, JSON-able.

    Parameters
    ----------
    X
        (n, G) values, dense or sparse.
    instances
        (n,) ids of the rows, numbers or strings.
    genes
        (G,) names of the columns.

    Returns
    -------
    ``instances``: ids of at most 256 rows, evenly spread; ``genes``: a 32-bit checksum of each name; ``values``:
    float32 values of each gene in some of these rows (which follows from the checksum), gene by gene. The last two are
    base64 of little-endian numbers: about 100 kB for 10 000 genes.

    Examples
    --------
    >>> import numpy as np
    >>> from stpred._core.disk.fingerprint import difference, fingerprint
    >>> X = np.random.default_rng(0).random((50, 4))
    >>> kept = fingerprint(X, np.arange(50), list("abcd"))
    >>> difference(kept, X[::-2, [2, 0]], np.arange(50)[::-2], ["c", "a"]) is None
    True
    >>> difference(kept, np.log1p(X), np.arange(50), list("abcd")).n_changed > 100
    True
    """
    ids = np.asarray(instances)
    n = len(ids)
    rows = np.unique(np.linspace(0, n - 1, min(n, MAX_ROWS)).round().astype(np.int64))
    codes = _codes(genes)
    sample = _dense(X, rows)
    each = _each(len(codes), len(rows))
    values = sample[_places(codes, each, len(rows)), np.arange(len(codes))[:, None]]
    return {
        "instances": [v.item() if isinstance(v, np.generic) else str(v) for v in ids[rows]],
        "genes": _packed(codes, "<u4"),
        "values": _packed(values, "<f4"),
    }


def difference(kept: Any, X: Any, instances: ArrayLike, genes: Sequence[str]) -> Difference | None:
    """Return how values differ from a fingerprint; None where they do not, or where nothing can be compared.

    Parameters
    ----------
    kept
        What :func:`fingerprint` returned, perhaps of more rows and genes.
    X, instances, genes
        As there.
    """
    import pandas as pd

    try:
        stored = list(kept["instances"])
        codes = np.frombuffer(base64.b64decode(kept["genes"], validate=True), dtype="<u4")
        values = np.frombuffer(base64.b64decode(kept["values"], validate=True), dtype="<f4")
        each = _each(len(codes), len(stored))
        values = values.reshape(len(codes), each)
    except (KeyError, TypeError, ValueError, binascii.Error):
        return None  # of another version
    at_gene, of_gene = _same(_codes(genes), codes)
    rows = _find(stored, pd.Index(np.asarray(instances)))
    if len(at_gene) < MIN_SHARE * len(genes) or len(at_gene) == 0 or rows is None:
        return None
    there = np.flatnonzero(rows >= 0)
    found = np.full((len(stored), len(at_gene)), np.nan)
    found[there] = _dense(X, rows[there])[:, at_gene]
    places = _places(codes[of_gene], each, len(stored))
    was = values[of_gene].astype(np.float64)
    now = found[places, np.arange(len(at_gene))[:, None]]
    compared = (rows >= 0)[places]
    if not compared.any():
        return None
    was, now = was[compared], now[compared]
    finite = values[np.isfinite(values)]
    size = float(np.sqrt(np.mean(np.square(finite, dtype=np.float64)))) if finite.size else 0.0
    off = np.abs(now - was)
    changed = ~(off <= _RTOL * np.abs(was) + _ATOL * size)  # NaN is a change, too, unless it was there
    changed &= ~(np.isnan(now) & np.isnan(was))
    if not changed.any():
        return None
    worst = int(np.nan_to_num(np.where(changed, off, -1.0), nan=np.inf).argmax())
    return Difference(int(compared.sum()), int(changed.sum()), float(was[worst]), float(now[worst]))


def _codes(genes: Sequence[str]) -> NDArray[np.uint32]:
    return np.fromiter((zlib.crc32(str(g).encode()) for g in genes), dtype=np.uint32, count=len(genes))


def _each(n_genes: int, n_rows: int) -> int:
    """Return how many values of each gene are kept."""
    return int(np.clip(MAX_VALUES // max(n_genes, 1), 1, max(n_rows, 1)))


def _places(codes: NDArray[np.uint32], each: int, n_rows: int) -> NDArray[np.int64]:
    """Return the (g, each) sampled rows of genes: evenly spread, from one that the gene's name decides."""
    steps = (np.arange(each, dtype=np.int64) * n_rows) // each
    return (codes.astype(np.int64)[:, None] + steps) % n_rows


def _find(stored: list[Any], ids: Any) -> NDArray[np.int64] | None:
    """Return the positions of stored ids in a table's; None where these are not unique."""
    if not ids.is_unique:
        return None
    positions = ids.get_indexer(stored)
    if (positions < 0).all():  # numbers may have become strings on the way
        text = ids.astype(str)
        positions = text.get_indexer([str(v) for v in stored]) if text.is_unique else positions
    return np.asarray(positions, dtype=np.int64)


def _dense(X: Any, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return some rows as a dense array; `X` may be an array, sparse, lazy, or on disk."""
    order = np.argsort(rows)  # arrays on disk want ascending rows
    block = X[rows[order]]
    block = block.compute() if hasattr(block, "compute") else block
    block = np.asarray(block.toarray() if hasattr(block, "toarray") else block, dtype=np.float64)
    out = np.empty_like(block)
    out[order] = block
    return out


def _same(ours: NDArray[np.uint32], theirs: NDArray[np.uint32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return positions of the same genes; a checksum that two genes share names neither."""
    unique, first, counts = np.unique(theirs, return_index=True, return_counts=True)
    unique, first = unique[counts == 1], first[counts == 1]
    at = np.searchsorted(unique, ours)
    found = np.flatnonzero(unique[np.minimum(at, len(unique) - 1)] == ours) if len(unique) else np.empty(0, np.int64)
    return found, first[at[found]]


def _packed(values: Any, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype=dtype).tobytes()).decode("ascii")

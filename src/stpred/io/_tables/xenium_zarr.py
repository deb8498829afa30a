"""What only ``cells.zarr.zip`` of a Xenium bundle holds: label images, each cell's label, and a summary."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stpred._core.checks import InputError, warn
from stpred._core.files import readable
from stpred.regions.vertices import cell_ids

if TYPE_CHECKING:
    from anndata import AnnData

_SUMMARY = ("z_level", "nucleus_count")
_MASKS = {"nucleus_labels": 0, "cell_labels": 1}
_LOOKED_AT = 200


def describe(path: Path, counts: AnnData, *, labels: bool) -> None:
    """Add to ``obs`` what the archive says of the cells, by cell id; with `labels` also their label numbers.

    An archive without these, or whose ids are others, adds nothing.
    """
    import pandas as pd

    with _opened(path) as root:
        if "cell_id" not in root:
            return
        raw = np.asarray(root["cell_id"][...])
        summary = _summary(root, len(raw))
        label = _labels(root, len(raw)) if labels else None
    ids = _spelled(raw)
    if ids is None or not (index := pd.Index(ids)).is_unique:
        return
    row = index.get_indexer(counts.obs_names)
    if (row >= 0).all():
        for name, values in summary.items():
            counts.obs[name] = values[row]
    if label is not None and (row >= 0).any():
        counts.obs["cell_labels"] = np.where(row >= 0, label[row], 0)


def label_images(path: Path) -> dict[str, Any]:
    """Return the label images of nuclei and cells, lazily, in pixels of the morphology image."""
    import dask.array as da
    from spatialdata.models import Labels2DModel
    from spatialdata.transformations import Identity

    images = {}
    with _opened(path) as root:
        for name, number in _MASKS.items():
            images[name] = Labels2DModel.parse(
                da.from_array(root[f"masks/{number}"]),
                dims=("y", "x"),
                transformations={"global": Identity()},
                chunks=(4096, 4096),
                scale_factors=[2, 2, 2, 2],
            )
    return images


def check_labels(path: Path, centres_px: NDArray[np.float64], label: NDArray[np.int64]) -> None:
    """Warn where the label image carries other labels at the centres of cells than these are said to have."""
    rows = np.random.default_rng(0).permutation(len(label))[:_LOOKED_AT]
    rows = rows[np.lexsort(centres_px[rows].T.astype(np.int64) // 4096)]
    with _opened(path) as root:
        mask = root["masks/1"]
        x, y = np.floor(centres_px[rows]).astype(np.int64).T
        on = (x >= 0) & (y >= 0) & (x < mask.shape[1]) & (y < mask.shape[0]) & (label[rows] > 0)
        found = np.asarray(mask.vindex[y[on], x[on]], dtype=np.int64) if on.any() else np.empty(0, np.int64)
    some = found > 0
    wrong = int((found != label[rows][on])[some].sum())
    if wrong > 0.2 * max(1, some.sum()):
        warn(
            f"At the centres of {wrong} of {int(some.sum())} cells looked at, the label image of {path.name!r} carries "
            "another label than obs['cell_labels'] says; match labels by place instead."
        )


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import zarr

    with readable(path, what="archive of cells"):
        store = zarr.storage.ZipStore(path, read_only=True)
        root = zarr.open_group(store, mode="r")
        if not isinstance(root, zarr.Group):
            raise InputError(f"The archive of cells {str(path)!r} holds no group of arrays.")
        yield root


def _summary(root: Any, n: int) -> dict[str, NDArray[Any]]:
    if "cell_summary" not in root:
        return {}
    values = np.asarray(root["cell_summary"][...])
    names = [str(c) for c in root["cell_summary"].attrs.get("column_names", [])]
    if values.shape != (n, len(names)):
        return {}
    return {c: values[:, names.index(c)] for c in _SUMMARY if c in names}


def _labels(root: Any, n: int) -> NDArray[np.int64] | None:
    """Return the label of each cell in the image of cells, 0 where it has none, or None where that is not said."""
    if "polygon_sets/1/cell_index" in root:
        cell = np.asarray(root["polygon_sets/1/cell_index"][...], dtype=np.int64)
        fine = (cell >= 0) & (cell < n)
        label = np.zeros(n, np.int64)
        label[cell[fine]] = np.arange(1, len(cell) + 1)[fine]
        return label
    if "seg_mask_value" in root:
        label = np.asarray(root["seg_mask_value"][...], dtype=np.int64)
        return label if label.shape == (n,) else None
    return None


def _spelled(raw: NDArray[Any]) -> NDArray[Any] | None:
    """Return ids as the tables write them: letters a to p for hexadecimal digits and a suffix, or whole numbers."""
    if raw.ndim == 1:
        ids, row = cell_ids(raw)
        return ids[row]
    if raw.ndim != 2 or raw.shape[1] != 2 or not np.issubdtype(raw.dtype, np.integer):
        return None
    prefix = raw[:, 0].astype(np.uint32)
    digits = prefix[:, None] >> np.arange(28, -1, -4, dtype=np.uint32) & np.uint32(15)
    letters = (digits + ord("a")).astype(np.uint8)
    text = np.ascontiguousarray(letters).view("S8").ravel().astype(str)
    return np.array([f"{a}-{b}" for a, b in zip(text, raw[:, 1].tolist(), strict=True)], dtype=object)

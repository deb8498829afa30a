"""Matrices in the HDF5 layout of Cell Ranger and Space Ranger."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import keys
from stpred._core.checks import InputError, listing
from stpred._core.disk.staging import staged_file
from stpred._core.elements import affine_to, apply_affine
from stpred._core.expression.counts import MAX_COUNT, check_counts
from stpred.io._export.chosen import Chosen, chosen, free_file, library_of, shapes_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

_CHUNK = 2**16


def write_10x_h5(
    sdata: SpatialData,
    table_key: str,
    path: str | Path,
    *,
    genes: Iterable[str] | None = None,
    layer: str | None = None,
    counts: bool = False,
    library_size: float | None = None,
    positions: str | Path | None = None,
    genome: str = "unknown",
    coordinate_system: str = keys.UM,
    overwrite: bool = False,
) -> Path:
    """Write a table as an h5 file of 10x Genomics' layout, for Seurat and everything else that reads it.

    Seurat's ``Read10X_h5`` makes a sparse matrix of doubles of the values, whatever their scale, and
    ``CreateSeuratObject(counts=)`` takes it for raw counts. Values on a logarithmic scale belong into the layer
    ``"data"`` (``CreateAssayObject(data=)``, or ``CreateAssay5Object(data=)``) and must not be normalised again; for
    what expects raw counts write with ``counts=True``.

    Parameters
    ----------
    sdata
        Object with the table.
    table_key
        Name of the table, predicted or measured.
    path
        File to write, ``.h5``. It appears whole or not at all.
    genes
        Genes to write; None: all.
    layer
        Layer of the values; None: ``X``.
    counts
        Write whole numbers on the scale of counts: of a measured table its raw counts as they are; of a prediction
        what would be expected at `library_size`, rounded, so that the noise of counting is not in it and what is
        expected less than half a time is 0. False writes the values as they are (float32).
    library_size
        Counts per location that a prediction is given for, with `counts`; None: the median of the libraries of the
        model's training. Predictions of counts stay as they are.
    positions
        A csv file to write beside it: ``barcode``, ``x_um``, ``y_um``, the centres in micrometres (for Seurat's
        ``CreateCentroids``), since the layout has no place for them.
    genome
        Name of the genome.
    coordinate_system
        The slide's coordinates in micrometres.
    overwrite
        Replace existing files.

    Returns
    -------
    The path. The file holds ``/matrix`` with ``barcodes`` (names of the observations), ``data`` (float32, or int32 with
    `counts`), ``indices`` and ``indptr`` of compressed columns, ``shape`` (genes, locations) and ``features`` (``id``:
    ``var["gene_id"]`` or the name; ``name``, ``feature_type``, ``genome``). It is written block by block.

    Raises
    ------
    InputError
        If genes, table or layer do not exist, a file exists, values are NaN, or counts are asked for of values that are
        none and cannot be made to.

    Examples
    --------
    >>> import pathlib, tempfile, scanpy, stpred as st
    >>> sdata = st.datasets.toy(size_um=(400, 400), n_genes=20)
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "spots.h5"
    >>> _ = st.io.write_10x_h5(sdata, "spots_counts", path, counts=True)
    >>> back = scanpy.read_10x_h5(path)
    >>> back.shape == sdata["spots_counts"].shape, back.X.sum() == sdata["spots_counts"].X.sum()
    (True, np.True_)
    """
    path = free_file(path, (".h5", ".hdf5"), what="h5 file", overwrite=overwrite)
    beside = (
        None if positions is None else free_file(positions, (".csv",), what="file of positions", overwrite=overwrite)
    )
    found = chosen(sdata, table_key, genes=genes, layer=layer, coordinate_system=coordinate_system)
    names = found.table.obs_names[found.rows]
    if not names.is_unique:
        raise InputError(
            f"The names of the observations of {found.what} are not unique: "
            f"{listing(names[names.duplicated()].unique())}; make them so with obs_names_make_unique()."
        )
    factor = _factor(found, library_size) if counts else None
    centres = None if beside is None else _centres(sdata, found, coordinate_system)
    with staged_file(path, what="h5 file") as part:
        _write(part, found, [str(n) for n in names], factor=factor, genome=genome)
        if beside is not None and centres is not None:
            _write_positions(beside, [str(n) for n in names], centres)
    return path


class _Factor:
    """Turns values into counts: a factor, after what inverts the logarithm."""

    def __init__(self, *, logarithmic: bool, factor: float, exact: bool = False) -> None:
        self.logarithmic, self.factor, self.exact = logarithmic, factor, exact

    def __call__(self, values: NDArray[Any], what: str) -> NDArray[np.int32]:
        """Return (k, g) whole numbers."""
        if self.exact:
            check_counts(values, what=f"values of {what}")
            return values.astype(np.int32)
        amounts = np.maximum(values.astype(np.float64), 0)
        amounts = (np.expm1(amounts) if self.logarithmic else amounts) * self.factor
        if amounts.max(initial=0) >= MAX_COUNT:
            raise InputError(f"The counts of {what} would be {amounts.max():.3g}; are they predictions of counts?")
        return np.rint(amounts).astype(np.int32)


def _factor(found: Chosen, library_size: float | None) -> _Factor:
    """Return how the values become counts, or refuse."""
    provenance = found.provenance
    if "output_scale" not in provenance or found.layer is not None:
        if library_size is not None:
            raise InputError(f"`library_size` is of predictions; the values of {found.what} are taken as they are.")
        return _Factor(logarithmic=False, factor=1.0, exact=True)
    scale = provenance["output_scale"]
    if scale == "counts" and not provenance.get("per"):
        if library_size is not None:
            raise InputError(f"The {found.what} is on the scale of counts already; leave out `library_size`.")
        return _Factor(logarithmic=False, factor=1.0)
    if scale not in ("counts", "log1p_cp10k"):
        raise InputError(
            f"The {found.what} is on the scale {scale!r}, which does not become counts; write it with counts=False."
        )
    return _Factor(logarithmic=scale == "log1p_cp10k", factor=library_of(found, library_size) / 1e4)


def _centres(sdata: SpatialData, found: Chosen, coordinate_system: str) -> NDArray[np.float64]:
    """Return the (n, 2) centres of the rows in micrometres."""
    shapes = shapes_of(sdata, found)
    affine = affine_to(shapes, coordinate_system)
    if affine is None:
        raise InputError(f"Shapes {found.region!r} are not placed in the coordinate system {coordinate_system!r}.")
    points = shapes.geometry.centroid
    return apply_affine(affine, np.column_stack([points.x, points.y]))


def _write_positions(path: Path, names: list[str], xy: NDArray[np.float64]) -> None:
    import pandas as pd

    frame = pd.DataFrame({"barcode": names, "x_um": xy[:, 0].round(4), "y_um": xy[:, 1].round(4)})
    with staged_file(path, what="file of positions") as part:
        frame.to_csv(part, index=False)


def _text(values: Iterable[Any]) -> NDArray[np.bytes_]:
    """Return text of fixed length, as Cell Ranger writes it."""
    return np.array([str(v).encode() for v in values], dtype=np.bytes_)


def _write(path: Path, found: Chosen, names: list[str], *, factor: _Factor | None, genome: str) -> None:
    """Write the matrix, a block of locations at a time."""
    import h5py

    genes, n = found.genes, len(found.rows)
    packed: dict[str, Any] = {"compression": "gzip", "compression_opts": 4, "shuffle": True}
    with h5py.File(path, "w") as file:
        file.attrs["filetype"], file.attrs["version"] = "matrix", 2
        file.attrs["software_version"] = f"stpred-{version('stpred')}"
        file.attrs["output_scale"] = "counts" if factor else str(found.provenance.get("output_scale", "unknown"))
        matrix = file.create_group("matrix")
        matrix.create_dataset("barcodes", data=_text(names), **packed)
        matrix.create_dataset("shape", data=np.array([len(genes), n], dtype=np.int32))
        features = matrix.create_group("features")
        for name, values in {
            "id": _gene_ids(found), "name": genes, "feature_type": ["Gene Expression"] * len(genes),
            "genome": [genome] * len(genes),
        }.items():  # fmt: skip
            features.create_dataset(name, data=_text(values), **packed)
        features.create_dataset("_all_tag_keys", data=_text(["genome"]))
        room: dict[str, Any] = {"shape": (0,), "maxshape": (None,), "chunks": (_CHUNK,)} | packed
        data = matrix.create_dataset("data", dtype=np.float32 if factor is None else np.int32, **room)
        indices = matrix.create_dataset("indices", dtype=np.int64, **room)
        ends = np.zeros(n + 1, dtype=np.int64)
        for rows, block in found.blocks():
            if not np.isfinite(block).all():
                raise InputError(f"The values of {found.what} are NaN or infinite in places; nothing was written.")
            amounts = block if factor is None else factor(block, found.what)
            row, column = np.nonzero(amounts)
            begin = len(data)
            for dataset, new in ((data, amounts[row, column]), (indices, column)):
                dataset.resize((begin + len(row),))
                dataset[begin:] = new
            ends[rows.start + 1 : rows.stop + 1] = begin + np.cumsum(np.bincount(row, minlength=len(amounts)))
        matrix.create_dataset("indptr", data=ends, **packed)


def _gene_ids(found: Chosen) -> list[str]:
    """Return the ids of the genes, their names where there are none."""
    var = found.table.var.iloc[found.columns]
    column = next((c for c in ("gene_id", "gene_ids") if c in var), None)
    if column is None:
        return found.genes
    ids = [i if isinstance(i, str) and i else g for i, g in zip(var[column], found.genes, strict=True)]
    return ids if len(set(ids)) == len(ids) else found.genes

"""A synthetic Visium HD slide as the vendor's pipeline writes it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stpred._core import keys
from stpred._core.checks import one_of
from stpred.datasets import _files
from stpred.datasets._bins import Bins, bin_names, cell_labels, make_bins, place_molecules
from stpred.datasets._simulated.tissue import Tissue, TissueKeywords, TissueSettings, get_tissue
from stpred.datasets._simulated.truth import COUNTS, FOLDER, SHARES, save_truth
from stpred.datasets._visium import FIDUCIAL_UM, FULLRES

if TYPE_CHECKING:
    from anndata import AnnData

BIN_SIZES_UM = (2, 8, 16)
SOFTWARE, CHEMISTRY = "spaceranger-4.0.1", "Visium HD v1"


def toy_visium_hd(
    path: str | Path,
    *,
    bin_sizes: tuple[int, ...] = BIN_SIZES_UM,
    segmented: bool = True,
    tissue: Tissue | TissueSettings | None = None,
    overwrite: bool = False,
    **settings: Unpack[TissueKeywords],
) -> Path:
    """Write a synthetic Visium HD slide as a Space Ranger ``outs`` folder.

    Parameters
    ----------
    path
        Folder to write; appears whole or not at all.
    bin_sizes
        Bin sizes in micrometres, of 2, 8 and 16.
    segmented
        Also write ``segmented_outputs`` (cells and nuclei as geojson, cells by genes) and ``barcode_mappings.parquet``.
    tissue
        A slide to write, or the settings to make one from; None: 608 x 608 um, 100 genes.
        Bins cover the largest multiple of 16 um in each direction.
    overwrite
        Replace an existing folder.
    **settings
        Fields of :class:`TissueSettings` to replace.

    Returns
    -------
    pathlib.Path
        The folder, with the full-resolution image in ``microscope_image``; :func:`load_truth` gives cells and bins.

    Raises
    ------
    InputError
        If a bin size is unknown or the folder exists.

    Examples
    --------
    >>> import stpred as st
    >>> path = st.datasets.toy_visium_hd("toy_hd", size_um=(320, 320), n_genes=20)
    >>> sdata = st.io.visium_hd(path)
    """
    for size in bin_sizes:
        one_of(size, BIN_SIZES_UM, name="bin_sizes")
    truth: dict[str, Any] = {}
    with _files.staged(path, overwrite=overwrite) as folder:
        tissue = get_tissue(tissue, TissueSettings(size_um=(608.0, 608.0), n_genes=100), settings)
        labels = cell_labels(tissue)
        molecules = place_molecules(tissue, labels)
        (folder / "spatial").mkdir()
        factors = _factors(tissue.mpp, _files.write_thumbnails(folder / "spatial", tissue.image))
        for size in bin_sizes:
            bins = make_bins(tissue, labels, molecules, size_um=size)
            _write_bins(folder, bins, tissue, size, factors)
            truth[keys.bins(size)] = _bin_truth(bins, tissue)
        if segmented:
            _write_cells(folder, tissue, factors)
            _write_mapping(folder, tissue, labels)
        _write_layout(folder / "feature_slice.h5", tissue)
        (folder / "microscope_image").mkdir()
        _files.write_tiled_tif(folder / "microscope_image" / FULLRES, tissue.image)
        save_truth(folder / FOLDER, tissue, tables=truth, names=cell_names(len(tissue.cells)))
    return Path(path)


def cell_names(n: int) -> list[str]:
    """Return the names of cells as the segmented matrix spells them."""
    return [f"cellid_{i + 1:09d}-1" for i in range(n)]


def _factors(mpp: float, thumbnails: dict[str, float]) -> dict[str, float]:
    return {
        "microns_per_pixel": mpp,
        "regist_target_img_scalef": thumbnails["tissue_hires_scalef"],
        "fiducial_diameter_fullres": FIDUCIAL_UM / mpp,
        **thumbnails,
    }


def _write_bins(folder: Path, bins: Bins, tissue: Tissue, size: int, factors: dict[str, float]) -> None:
    """Write ``binned_outputs/square_...um``: the bins in tissue as a matrix, all of them as positions."""
    target = folder / "binned_outputs" / f"square_{size:03d}um"
    shutil.copytree(folder / "spatial", target / "spatial")
    own = {"spot_diameter_fullres": size / tissue.mpp, "bin_size_um": float(size)}
    _files.write_json(target / "spatial" / "scalefactors_json.json", {**own, **factors})
    positions = bins.positions.reset_index()
    positions["pxl_row_in_fullres"] = positions.pop("y_um") / tissue.mpp
    positions["pxl_col_in_fullres"] = positions.pop("x_um") / tissue.mpp
    kinds = {"array_row": np.uint32, "array_col": np.uint32}
    positions.astype(kinds).to_parquet(target / "spatial" / "tissue_positions.parquet", index=False)
    rows = np.flatnonzero(bins.positions["in_tissue"])
    _write_matrix(target / "filtered_feature_bc_matrix.h5", bins.counts[rows], bins.positions.index[rows], tissue)


def _write_matrix(path: Path, counts: Any, barcodes: Iterable[str], tissue: Tissue) -> None:
    _files.write_10x_h5(
        path,
        counts,
        barcodes=list(barcodes),
        genes=tissue.genes,
        library_id=f"toy_donor{tissue.donor}",
        chemistry=CHEMISTRY,
        software=SOFTWARE,
    )


def _bin_truth(bins: Bins, tissue: Tissue) -> AnnData:
    """Return the bins in tissue; their expectation is left to be multiplied out when it is loaded."""
    from anndata import AnnData

    rows = np.flatnonzero(bins.positions["in_tissue"])
    obs = bins.positions.iloc[rows]
    table = AnnData(obs=obs[["in_tissue", "array_row", "array_col"]], var=tissue.genes)
    table.layers[COUNTS] = bins.counts[rows]
    table.obsm[keys.SPATIAL] = obs[["x_um", "y_um"]].to_numpy()
    table.obsm[SHARES] = bins.shares[rows].astype(np.float32)
    return table


def _write_cells(folder: Path, tissue: Tissue, factors: dict[str, float]) -> None:
    """Write ``segmented_outputs``: polygons in pixels of the full resolution, and cells by genes."""
    target = folder / "segmented_outputs"
    shutil.copytree(folder / "spatial", target / "spatial")
    _files.write_json(target / "spatial" / "scalefactors_json.json", factors)
    _write_matrix(target / "filtered_feature_cell_matrix.h5", tissue.counts, cell_names(len(tissue.cells)), tissue)
    for name, polygons in (("cell", tissue.outlines), ("nucleus", tissue.nuclei)):
        content = json.dumps({"type": "FeatureCollection", "features": _features(polygons, tissue.mpp)})
        (target / f"{name}_segmentations.geojson").write_text(content)


def _features(polygons: NDArray[Any], mpp: float) -> list[dict[str, Any]]:
    import shapely

    rings = (np.round(shapely.get_coordinates(p.exterior) / mpp, 2).tolist() for p in polygons)
    return [
        {"type": "Feature", "properties": {"cell_id": i + 1}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
        for i, ring in enumerate(rings)
    ]


def _write_mapping(folder: Path, tissue: Tissue, labels: NDArray[np.int32]) -> None:
    """Write which cell and nucleus the centre of each 2 um bin lies in."""
    columns, rows = (int(s // 16) * 8 for s in tissue.size_um)
    at = np.ix_(np.arange(rows) * 4 + 2, np.arange(columns) * 4 + 2)
    cell, nucleus = (image[at].ravel() for image in (labels, cell_labels(tissue, nuclei=True)))
    kept = np.flatnonzero(cell)
    i, j = np.divmod(kept, columns)
    names = np.array(cell_names(len(tissue.cells)))
    frame: dict[str, Any] = {}
    for size in BIN_SIZES_UM:
        fold = size // 2
        barcodes = bin_names(rows // fold, columns // fold, size_um=size)
        frame[f"square_{size:03d}um"] = barcodes[i // fold * (columns // fold) + j // fold]
    frame |= {"cell_id": names[cell[kept] - 1], "in_nucleus": nucleus[kept] == cell[kept], "in_cell": True}
    pd.DataFrame(frame).to_parquet(folder / "barcode_mappings.parquet", index=False)


def _write_layout(path: Path, tissue: Tissue) -> None:
    """Write the metadata of ``feature_slice.h5``: how array columns and rows lie in the microscope image."""
    import h5py

    pitch = 2.0 / tissue.mpp
    to_image = np.array([[pitch, 0, pitch / 2], [0, pitch, pitch / 2], [0, 0, 1]])
    matrices = {
        "spot_colrow_to_microscope_colrow": to_image,
        "microscope_colrow_to_spot_colrow": np.linalg.inv(to_image),
    }
    for name in ("spot_colrow_to_cytassist_colrow", "cytassist_colrow_to_spot_colrow"):
        matrices[name] = np.eye(3)
    layout = {"slide_uid": "H1-TOY0000", "file_format": "1.0", "transform": np.eye(3).ravel().tolist()}
    metadata = {
        "sample_id": f"toy_donor{tissue.donor}",
        "sample_desc": "Synthetic tissue",
        "slide_name": "visium_hd_v1",
        "nrows": int(tissue.size_um[1] // 16) * 8,
        "ncols": int(tissue.size_um[0] // 16) * 8,
        "spot_pitch": 2.0,
        "hd_layout_json": json.dumps(layout),
        "transform_matrices": {name: matrix.tolist() for name, matrix in matrices.items()},
    }
    with h5py.File(path, "w") as file:
        file.attrs["filetype"], file.attrs["version"] = "feature_slice", "0.1.0"
        file.attrs["software_version"] = SOFTWARE
        file.attrs["metadata_json"] = json.dumps(metadata)

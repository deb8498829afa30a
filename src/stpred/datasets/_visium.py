"""A synthetic Visium slide as the vendor's pipeline writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

import numpy as np
import pandas as pd

from stpred._core.checks import one_of
from stpred.datasets import _files
from stpred.datasets._simulated.tissue import Tissue, TissueKeywords, TissueSettings, get_tissue
from stpred.datasets._simulated.truth import FOLDER, save_truth, spot_truth
from stpred.datasets._spots import Spots, visium_spots

VERSIONS = {"v1": "spaceranger-1.3.1", "v2": "spaceranger-2.1.0", "v3": "spaceranger-3.1.2", "v4": "spaceranger-4.0.1"}
MATRICES = ("h5", "mtx", "both")
FULLRES = "fullres_image.tif"
THEORETICAL_SPOT_UM, FIDUCIAL_UM = 65.0, 105.0
"""What the vendor's scale factors call a spot's diameter is that of a theoretical 65 um spot, not the true 55 um."""


def toy_visium(
    path: str | Path,
    *,
    version: str = "v2",
    counts: str = "h5",
    fullres: bool = True,
    tissue: Tissue | TissueSettings | None = None,
    overwrite: bool = False,
    **settings: Unpack[TissueKeywords],
) -> Path:
    """Write a synthetic Visium slide as a Space Ranger ``outs`` folder.

    Parameters
    ----------
    path
        Folder to write; appears whole or not at all.
    version
        ``"v1"`` (``tissue_positions_list.csv`` without header), ``"v2"`` or ``"v3"`` (``tissue_positions.csv``) or
        ``"v4"`` (``tissue_positions.parquet``).
    counts
        ``"h5"``, ``"mtx"`` (folder ``filtered_feature_bc_matrix``) or ``"both"``.
    fullres
        Also write the full-resolution image ``fullres_image.tif`` (tiled, without resolution).
    tissue
        A slide to write, or the settings to make one from; None: the defaults of :class:`TissueSettings`.
    overwrite
        Replace an existing folder.
    **settings
        Fields of :class:`TissueSettings` to replace.

    Returns
    -------
    pathlib.Path
        The folder; :func:`load_truth` gives its cells and spots.

    Raises
    ------
    InputError
        If `version` or `counts` is unknown or the folder exists.

    Examples
    --------
    >>> import stpred as st
    >>> path = st.datasets.toy_visium("toy_outs", size_um=(400, 400))
    >>> sdata = st.io.visium(path)
    """
    one_of(version, VERSIONS, name="version")
    one_of(counts, MATRICES, name="counts")
    with _files.staged(path, overwrite=overwrite) as folder:
        tissue = get_tissue(tissue, TissueSettings(), settings)
        spots = visium_spots(tissue)
        _write_matrices(folder, spots, tissue, software=VERSIONS[version], counts=counts)
        (folder / "spatial").mkdir()
        _write_positions(folder / "spatial", spots.positions, tissue.mpp, version)
        factors = _files.write_thumbnails(folder / "spatial", tissue.image)
        sizes = {
            "spot_diameter_fullres": THEORETICAL_SPOT_UM / tissue.mpp,
            "fiducial_diameter_fullres": FIDUCIAL_UM / tissue.mpp,
        }
        _files.write_json(folder / "spatial" / "scalefactors_json.json", {**factors, **sizes})
        if fullres:
            _files.write_tiled_tif(folder / FULLRES, tissue.image)
        save_truth(folder / FOLDER, tissue, tables={"spots": spot_truth(spots, tissue)})
    return Path(path)


def _write_matrices(folder: Path, spots: Spots, tissue: Tissue, *, software: str, counts: str) -> None:
    """Write the spots in tissue, sorted by barcode as the vendor does (the positions keep the array's order)."""
    rows = np.flatnonzero(spots.positions["in_tissue"].to_numpy() == 1)
    rows = rows[np.argsort(spots.positions.index.to_numpy()[rows])]
    names = spots.positions.index[rows].tolist()
    if counts in ("h5", "both"):
        _files.write_10x_h5(
            folder / "filtered_feature_bc_matrix.h5",
            spots.counts[rows],
            barcodes=names,
            genes=tissue.genes,
            library_id=f"toy_donor{tissue.donor}",
            chemistry="Spatial 3' v1",
            software=software,
        )
    if counts in ("mtx", "both"):
        _files.write_10x_mtx(
            folder / "filtered_feature_bc_matrix", spots.counts[rows], barcodes=names, genes=tissue.genes
        )


def _write_positions(folder: Path, positions: pd.DataFrame, mpp: float, version: str) -> None:
    frame = positions[["in_tissue", "array_row", "array_col"]].assign(
        pxl_row_in_fullres=np.rint(positions["y_um"] / mpp).astype(int),
        pxl_col_in_fullres=np.rint(positions["x_um"] / mpp).astype(int),
    )
    if version == "v1":
        frame.to_csv(folder / "tissue_positions_list.csv", header=False)
    elif version == "v4":
        frame.reset_index().to_parquet(folder / "tissue_positions.parquet", index=False)
    else:
        frame.to_csv(folder / "tissue_positions.csv")

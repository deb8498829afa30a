"""A synthetic slide as a pair of AnnData file and image, in HEST style."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

import numpy as np

from stpred._core import keys
from stpred.datasets import _files
from stpred.datasets._simulated.tissue import Tissue, TissueKeywords, TissueSettings, get_tissue
from stpred.datasets._simulated.truth import COUNTS, FOLDER, save_truth, spot_truth
from stpred.datasets._spots import visium_spots


def toy_hest(
    path: str | Path,
    *,
    pixel_size: bool = True,
    tissue: Tissue | TissueSettings | None = None,
    overwrite: bool = False,
    **settings: Unpack[TissueKeywords],
) -> Path:
    """Write a synthetic slide as one h5ad of spots and one image.

    Parameters
    ----------
    path
        Folder to write; appears whole or not at all.
    pixel_size
        State the resolution in ``uns["pixel_size_um_estimated"]``; otherwise only the spots' pitch tells it.
    tissue
        A slide to write, or the settings to make one from; None: the defaults of :class:`TissueSettings`.
    overwrite
        Replace an existing folder.
    **settings
        Fields of :class:`TissueSettings` to replace.

    Returns
    -------
    pathlib.Path
        The folder with ``toy.h5ad`` (counts in ``X``, pixels of the full resolution in ``obsm["spatial"]``, x first)
        and ``toy.tif`` (tiled, without resolution); :func:`load_truth` gives its cells and spots.

    Raises
    ------
    InputError
        If the folder exists.

    Examples
    --------
    >>> import stpred as st
    >>> p = st.datasets.toy_hest("toy_pair", size_um=(400, 400))
    >>> sdata = st.io.hest(p / "toy.h5ad", p / "toy.tif")
    """
    from anndata import AnnData
    from scipy.sparse import csr_matrix

    with _files.staged(path, overwrite=overwrite) as folder:
        tissue = get_tissue(tissue, TissueSettings(), settings)
        truth = spot_truth(visium_spots(tissue), tissue)
        pixels = truth.obsm[keys.SPATIAL] / tissue.mpp
        obs = truth.obs[["in_tissue", "array_row", "array_col"]].assign(
            pxl_col_in_fullres=pixels[:, 0], pxl_row_in_fullres=pixels[:, 1]
        )
        table = AnnData(csr_matrix(truth.layers[COUNTS], dtype=np.float32), obs=obs, var=tissue.genes[["gene_id"]])
        table.obsm[keys.SPATIAL] = pixels
        if pixel_size:
            table.uns["pixel_size_um_estimated"] = tissue.mpp
        table.write_h5ad(folder / "toy.h5ad")
        _files.write_tiled_tif(folder / "toy.tif", tissue.image)
        save_truth(folder / FOLDER, tissue, tables={"spots": truth})
    return Path(path)

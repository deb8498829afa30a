"""A synthetic section of the first Spatial Transcriptomics arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from stpred.datasets import _files
from stpred.datasets._simulated.tissue import Tissue, make_tissue
from stpred.datasets._simulated.truth import FOLDER, save_truth, spot_truth
from stpred.datasets._spots import legacy_spots


def toy_legacy_st(
    path: str | Path,
    *,
    seed: int = 0,
    donor: int = 0,
    size_um: tuple[float, float] = (1600.0, 1600.0),
    mpp: float = 0.7,
    n_genes: int = 200,
    tissue: Tissue | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a synthetic legacy ST section: spots of 100 um at a pitch of 200 um.

    Parameters
    ----------
    path
        Folder to write; appears whole or not at all.
    seed, donor, size_um, mpp, n_genes
        As in :func:`make_tissue`.
    tissue
        An existing slide to write instead of making one from these.
    overwrite
        Replace an existing folder.

    Returns
    -------
    pathlib.Path
        The folder with ``counts.tsv.gz`` (rows ``XxY``, columns symbols), ``spots.tsv`` (``x``, ``y``, ``new_x``,
        ``new_y``, ``pixel_x``, ``pixel_y``, ``selected``) and ``image.jpg``;
        :func:`load_truth` gives its cells and spots.

    Raises
    ------
    stpred._core.checks.InputError
        If the folder exists.

    Examples
    --------
    >>> import stpred as st
    >>> p = st.datasets.toy_legacy_st("toy_st", size_um=(800, 800))
    >>> sdata = st.io.legacy_st(p / "counts.tsv.gz", p / "image.jpg", p / "spots.tsv")
    """
    from PIL import Image

    _files.refuse_existing(Path(path), overwrite=overwrite)
    if tissue is None:
        tissue = make_tissue(size_um=size_um, mpp=mpp, seed=seed, donor=donor, n_genes=n_genes)
    spots = legacy_spots(tissue)
    place = spots.positions
    names = [f"{x}x{y}" for x, y in zip(place["array_col"], place["array_row"], strict=True)]
    pixel_x, pixel_y = place["x_um"] / tissue.mpp, place["y_um"] / tissue.mpp
    table = pd.DataFrame(
        {
            "x": place["array_col"],
            "y": place["array_row"],
            "new_x": place["array_col"].astype(float),
            "new_y": place["array_row"].astype(float),
            "pixel_x": np.round(pixel_x, 2),
            "pixel_y": np.round(pixel_y, 2),
            "selected": place["in_tissue"],
        }
    )
    kept = np.flatnonzero(place["in_tissue"].to_numpy())
    counts = pd.DataFrame(spots.counts[kept], index=[names[k] for k in kept], columns=tissue.genes.index.tolist())
    truth = spot_truth(spots, tissue)
    truth.obs_names = counts.index
    with _files.staged(path, overwrite=overwrite) as folder:
        counts.to_csv(folder / "counts.tsv.gz", sep="\t", compression={"method": "gzip", "compresslevel": 1})
        table.to_csv(folder / "spots.tsv", sep="\t", index=False)
        Image.fromarray(tissue.image).save(folder / "image.jpg", quality=95, subsampling=0)
        save_truth(folder / FOLDER, tissue, tables={"spots": truth})
    return Path(path)

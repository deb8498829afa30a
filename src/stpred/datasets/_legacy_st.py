"""A synthetic section of the first Spatial Transcriptomics arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

import numpy as np
import pandas as pd

from stpred.datasets import _files
from stpred.datasets._simulated.tissue import Tissue, TissueKeywords, TissueSettings, get_tissue
from stpred.datasets._simulated.truth import FOLDER, save_truth, spot_truth
from stpred.datasets._spots import Spots, legacy_spots


def toy_legacy_st(
    path: str | Path,
    *,
    tissue: Tissue | TissueSettings | None = None,
    overwrite: bool = False,
    **settings: Unpack[TissueKeywords],
) -> Path:
    """Write a synthetic legacy ST section: spots of 100 um at a pitch of 200 um.

    Parameters
    ----------
    path
        Folder to write; appears whole or not at all.
    tissue
        A slide to write, or the settings to make one from; None: 1600 x 1600 um at 0.7 um per pixel.
    overwrite
        Replace an existing folder.
    **settings
        Fields of :class:`TissueSettings` to replace.

    Returns
    -------
    pathlib.Path
        The folder with ``counts.tsv.gz`` (rows ``XxY``, columns symbols), ``spots.tsv`` (``x``, ``y``, ``new_x``,
        ``new_y``, ``pixel_x``, ``pixel_y``, ``selected``) and ``image.jpg``;
        :func:`load_truth` gives its cells and spots.

    Raises
    ------
    InputError
        If the folder exists.

    Examples
    --------
    >>> import stpred as st
    >>> p = st.datasets.toy_legacy_st("toy_st", size_um=(800, 800))
    >>> sdata = st.io.legacy_st(p / "counts.tsv.gz", p / "image.jpg", p / "spots.tsv")
    """
    from PIL import Image

    with _files.staged(path, overwrite=overwrite) as folder:
        tissue = get_tissue(tissue, TissueSettings(size_um=(1600.0, 1600.0), mpp=0.7), settings)
        spots = legacy_spots(tissue)
        names = [f"{x}x{y}" for x, y in spots.positions[["array_col", "array_row"]].to_numpy()]
        kept = np.flatnonzero(spots.positions["in_tissue"].to_numpy())
        counts = pd.DataFrame(spots.counts[kept], index=[names[k] for k in kept], columns=tissue.genes.index.tolist())
        counts.to_csv(folder / "counts.tsv.gz", sep="\t", compression={"method": "gzip", "compresslevel": 1})
        _spot_table(spots, tissue.mpp).to_csv(folder / "spots.tsv", sep="\t", index=False)
        Image.fromarray(tissue.image).save(folder / "image.jpg", quality=95, subsampling=0)
        truth = spot_truth(spots, tissue)
        truth.obs_names = counts.index
        save_truth(folder / FOLDER, tissue, tables={"spots": truth})
    return Path(path)


def _spot_table(spots: Spots, mpp: float) -> pd.DataFrame:
    column, row = spots.positions["array_col"], spots.positions["array_row"]
    return pd.DataFrame(
        {
            "x": column,
            "y": row,
            "new_x": column.astype(float),
            "new_y": row.astype(float),
            "pixel_x": np.round(spots.positions["x_um"] / mpp, 2),
            "pixel_y": np.round(spots.positions["y_um"] / mpp, 2),
            "selected": spots.positions["in_tissue"],
        }
    )

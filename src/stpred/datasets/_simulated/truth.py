"""The truth that every written toy keeps beside its files, and how to get it back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import keys
from stpred._core.checks import MissingFileError
from stpred.datasets._simulated.tissue import Tissue
from stpred.datasets._spots import Spots

if TYPE_CHECKING:
    from anndata import AnnData

FOLDER = "truth"
COUNTS, EXPECTED = "counts", "expected"
SHARES = "cell_shares"


def cell_truth(tissue: Tissue) -> AnnData:
    """Return the cells as AnnData: noiseless expectation in ``X``, counts in ``layers["counts"]``, centres in um."""
    from anndata import AnnData

    table = AnnData(tissue.expected, obs=tissue.cells.drop(columns=["x_um", "y_um"]), var=tissue.genes)
    table.layers[COUNTS] = tissue.counts
    table.obsm[keys.SPATIAL] = tissue.xy_um
    table.uns["mpp"], table.uns["size_um"] = tissue.mpp, np.asarray(tissue.size_um)
    return table


def spot_truth(spots: Spots, tissue: Tissue) -> AnnData:
    """Return the spots that hold a cell as AnnData, like :func:`cell_truth`."""
    from anndata import AnnData

    kept = spots.positions["n_cells"].to_numpy() > 0
    obs = spots.positions[kept]
    table = AnnData(spots.expected[kept], obs=obs.drop(columns=["x_um", "y_um"]), var=tissue.genes)
    table.layers[COUNTS] = spots.counts[kept]
    table.obsm[keys.SPATIAL] = obs[["x_um", "y_um"]].to_numpy()
    return table


def save_truth(
    folder: Path, tissue: Tissue, *, tables: Mapping[str, AnnData] | None = None, names: Sequence[str] | None = None
) -> None:
    """Write the cells, further tables and the polygons (``nuclei.parquet``, ``outlines.parquet``) into a folder.

    `names` are the cells' names in the vendor's files, where these have cells.
    """
    import geopandas as gpd

    folder.mkdir(parents=True, exist_ok=True)
    cells = cell_truth(tissue)
    if names is not None:
        cells.obs_names = list(names)
    for name, table in {keys.CELLS: cells, **(tables or {})}.items():
        table.write_h5ad(folder / f"{name}.h5ad")
    for name, polygons in (("nuclei", tissue.nuclei), ("outlines", tissue.outlines)):
        gpd.GeoDataFrame(geometry=polygons, index=cells.obs_names).to_parquet(folder / f"{name}.parquet")


def load_truth(path: str | Path) -> dict[str, AnnData]:
    """Load what is true of a toy that one of the ``toy_...`` writers wrote.

    Parameters
    ----------
    path
        What the writer returned.

    Returns
    -------
    dict
        ``"cells"`` and what the format has besides (``"spots"``, ``"bins_008um"`` ...): AnnData with the noiseless
        expectation in ``X`` (float32), counts in ``layers["counts"]``, centres in micrometres in ``obsm["spatial"]``,
        of cells ``type``, ``region`` and morphology in ``obs``, and ``gene_id``, ``marks`` and ``driver`` in ``var``.
        Bins hold each cell's share of area in ``obsm["cell_shares"]``.

    Raises
    ------
    InputError
        If no truth lies beside the file or in the folder.

    Examples
    --------
    >>> import stpred as st
    >>> path = st.datasets.toy_visium("toy_outs", size_um=(400, 400))
    >>> sorted(st.datasets.load_truth(path))
    ['cells', 'spots']
    """
    import anndata

    folder = truth_folder(path)
    if not (folder / "cells.h5ad").is_file():
        raise MissingFileError(f"No truth of a toy was found at '{folder}'; only stpred.datasets.toy_... leave one.")
    tables: dict[str, Any] = {file.stem: anndata.read_h5ad(file) for file in sorted(folder.glob("*.h5ad"))}
    for table in tables.values():
        if SHARES in table.obsm:
            table.X = (table.obsm[SHARES] @ tables[keys.CELLS].X).astype(np.float32)
    return tables


def truth_folder(path: str | Path) -> Path:
    """Return where the truth of a written toy lies: inside a folder, beside a file."""
    path = Path(path)
    return path / FOLDER if path.is_dir() else path.with_name(f"{path.name}.{FOLDER}")

"""The picture of a predicted slide: its best genes beside the out-of-distribution score."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stpred import pl
from stpred._core.disk.staging import staged_file
from stpred.pl.labels import best_genes

if TYPE_CHECKING:
    from spatialdata import SpatialData


def write_picture(sdata: SpatialData, key: str, raster_key: str | None, path: Path) -> None:
    """Draw the genes that are predicted best, of a map where there is one, and write them whole or not at all."""
    import matplotlib.pyplot as plt

    figure = draw_picture(sdata, key, raster_key)[0].figure
    try:
        with staged_file(path, what="picture") as part:
            figure.savefig(part, dpi=130)
    finally:
        plt.close(figure)


def draw_picture(sdata: SpatialData, key: str, raster_key: str | None) -> Any:
    """Draw the genes that are predicted best and the out-of-distribution score; return the axes."""
    genes = best_genes(sdata.tables[key])
    if raster_key is not None:
        return pl.raster(sdata, raster_key, genes, table_key=key)
    return pl.spatial(sdata, key, [*genes, "ood_score"], ncols=5)

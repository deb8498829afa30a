"""The picture of a predicted slide: its best genes beside the out-of-distribution score."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stpred import pl
from stpred._core import keys
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
    """Draw the genes that are predicted best, and the out-of-distribution score where it is not zero; return the axes.

    Where no location is out of distribution the title of the image says so.
    """
    table = sdata.tables[key]
    genes, score = best_genes(table), table.obs[keys.OOD_SCORE]
    if raster_key is not None:
        axes = pl.raster(sdata, raster_key, genes, table_key=key)
    else:
        axes = pl.spatial(sdata, key, [*genes, keys.OOD_SCORE] if score.gt(0).any() else genes, ncols=5)
    if score.eq(0).all():
        axes[0].set_title("H&E (all in distribution)")
    return axes

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import keys, targets
from stpred._core.checks import InputError, key_in, listing
from stpred._core.elements import region_in_frame, table_instances
from stpred._core.tables import check_values
from stpred.pl._figure import finish
from stpred.pl._maps import Canvas

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData


def spatial(
    sdata: SpatialData,
    table_key: str,
    genes: str | Sequence[str] | None = None,
    *,
    layer: str | None = None,
    image_key: str | None = None,
    ncols: int = 4,
    cmap: str = "viridis",
    show_image: bool = True,
    coordinate_system: str = keys.UM,
    save: str | Path | None = None,
) -> NDArray[Any]:
    """Draw genes of a table on the tissue, beside the H&E image.

    Parameters
    ----------
    sdata
        Object with the image, the shapes and the table.
    table_key
        Predicted or measured table.
    genes
        Gene symbols, or columns of ``obs`` such as ``"ood_score"``; None takes the three genes that the model predicts
        best.
    layer
        Layer to draw instead of ``X``, such as ``"std"``.
    image_key
        H&E image; None takes the one in the micrometre frame.
    ncols
        Panels per row.
    cmap
        Matplotlib colour map.
    show_image
        Draw the H&E image under the values.
    coordinate_system
        The slide's micrometre frame.
    save
        File to write the figure to.

    Returns
    -------
    (genes + 1,) axes, the H&E image first. Colours span the 1st to 99th percentile of each gene.

    Raises
    ------
    InputError
        If the table or a gene is not there.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(seed=0)
    >>> axes = st.pl.spatial(slide, "spots_counts", ["EPCAM"])
    """
    import matplotlib.pyplot as plt

    key_in(table_key, sdata.tables, what="table", name="table_key")
    table = sdata.tables[table_key]
    wanted = _wanted(table, table_key, genes)
    region = region_in_frame(sdata, table_key, coordinate_system=coordinate_system)
    if any(name in table.var_names for name in wanted):
        check_values(table, what=f"table {table_key!r}", layer=layer)
    rows, instances = table_instances(table, region)
    canvas = Canvas(sdata, region, image_key=image_key, coordinate_system=coordinate_system)
    columns = min(ncols, len(wanted) + 1)
    n_rows = -(-(len(wanted) + 1) // columns)
    _, axes = plt.subplots(n_rows, columns, figsize=(4.2 * columns, 3.8 * n_rows), squeeze=False, layout="constrained")
    panels = axes.ravel()
    canvas.image(panels[0])
    for ax, name in zip(panels[1:], wanted, strict=False):
        values = _values(table, name, layer)[rows]
        canvas.values(ax, values, instances, title=_title(table, name), cmap=cmap, image=show_image)
    for ax in panels[len(wanted) + 1 :]:
        ax.set_axis_off()
    return finish(panels[: len(wanted) + 1], save)


def _wanted(table: AnnData, table_key: str, genes: str | Sequence[str] | None) -> list[str]:
    """Return what to draw, refusing what the table does not have."""
    if genes is None:
        order = table.var_names
        if "cv_pearson" in table.var:
            order = table.var["cv_pearson"].fillna(-1).sort_values(ascending=False, kind="stable").index
        return list(order[:3])
    wanted = [genes] if isinstance(genes, str) else list(genes)
    if missing := [g for g in wanted if g not in table.var_names and g not in table.obs]:
        some = listing(table.var_names[:5])
        raise InputError(f"Table {table_key!r} has no gene or obs column {listing(missing)}; its genes are {some} ...")
    return wanted


def _values(table: AnnData, name: str, layer: str | None) -> Any:
    if name not in table.var_names:
        return table.obs[name].to_numpy(dtype=np.float32)
    if layer is not None:
        key_in(layer, table.layers, what="layer", name="layer")
    source = table.X if layer is None else table.layers[layer]
    return targets.dense(source[:, [table.var_names.get_loc(name)]], dtype=np.float32).ravel()


def _title(table: AnnData, name: str) -> str:
    """Say beside the gene how far it was predictable on left-out slides."""
    if name not in table.var_names or "cv_pearson" not in table.var:
        return name
    score = table.var.loc[name, "cv_pearson"]
    return f"{name} (held-out r = {score:.2f})" if np.isfinite(score) else f"{name} (not validated)"

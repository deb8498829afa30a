from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import keys, targets
from stpred._core.checks import InputError, key_in, listing
from stpred._core.elements import region_in_frame, table_instances
from stpred._core.expression.counts import are_counts
from stpred._core.tables import changed_values, check_values, one_donor
from stpred.pl._canvas import MIN_IN_DISTRIBUTION, Canvas, warn_across
from stpred.pl._figure import finish
from stpred.pl.labels import OOD_UNIT, best_genes, stated_of, title_of, unit_of

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
    limits: tuple[float, float] | None = None,
    show_image: bool = True,
    crop_um: tuple[float, float, float, float] | None = None,
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
        Gene symbols, or columns of ``obs`` such as ``"ood_score"`` or clusters; categories, text and booleans get a
        legend, in the colours of ``uns["{column}_colors"]`` where they are there. None takes the three genes that the
        model predicts best, and ``"ood_score"`` where most tiles are out of distribution.
    layer
        Layer to draw instead of ``X``, such as ``"std"``.
    image_key
        H&E image; None takes the one in the micrometre frame.
    ncols
        Panels per row.
    cmap
        Matplotlib colour map.
    limits
        Values of its ends for all genes; None: quantiles 0.01 and 0.99 of each, in a window of what lies in it.
    show_image
        Draw the H&E image under the values.
    crop_um
        Window ``(x0, y0, x1, y1)`` in micrometres of `coordinate_system`, in which ``obsm["spatial"]`` of the tables is
        given (x to the right, y downwards); the image is read anew at a resolution that suits it. What lies beyond the
        slide is cut off. None: the whole region.
    coordinate_system
        The slide's micrometre frame.
    save
        File to write the figure to.

    Returns
    -------
    (genes + 1,) axes, the H&E image first. A column of ``obs`` without any value, such as the ``"ood_score"`` of a
    model that has none, has no panel. Where most tiles are out of distribution a line across the top says so.

    Raises
    ------
    InputError
        If the table or a gene is not there, or the window is empty, reversed, off the slide or holds no location.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(size_um=(500, 500), n_genes=20)
    >>> axes = st.pl.spatial(slide, "spots_counts", ["EPCAM"])
    >>> axes = st.pl.spatial(slide, "spots_counts", ["EPCAM"], crop_um=(100, 100, 350, 300))
    """
    import matplotlib.pyplot as plt

    key_in(table_key, sdata.tables, what="table", name="table_key")
    table = sdata.tables[table_key]
    wanted = _wanted(table, table_key, genes)
    region = region_in_frame(sdata, table_key, coordinate_system=coordinate_system)
    if any(name in table.var_names for name in wanted):
        check_values(table, what=f"table {table_key!r}", layer=layer)
    rows, instances = table_instances(table, region)
    groups = {name: labels[rows] for name in wanted if (labels := categories_of(table, name)) is not None}
    shown = {name: values_of(table, name, layer)[rows] for name in wanted if name not in groups}
    wanted = [n for n in wanted if n in table.var_names or n in groups or np.isfinite(shown[n]).any()]
    canvas = Canvas(sdata, region, image_key=image_key, coordinate_system=coordinate_system, crop_um=crop_um)
    inside = canvas.shown(instances)
    if not inside.any():
        raise InputError(f"Table {table_key!r} has no location in `crop_um`={crop_um}.")
    columns = min(ncols, len(wanted) + 1)
    n_rows = -(-(len(wanted) + 1) // columns)
    figure, axes = plt.subplots(
        n_rows, columns, figsize=(4.2 * columns, 3.8 * n_rows), squeeze=False, layout="constrained"
    )
    panels = axes.ravel()
    canvas.image(panels[0])
    for ax, name in zip(panels[1:], wanted, strict=False):
        if name in groups:
            colors = table.uns.get(f"{name}_colors")
            known = colors is not None and len(colors) == len(groups[name].categories)
            canvas.categories(
                ax, groups[name], instances, title=name, colors=list(colors) if known else None, image=show_image
            )
            continue
        gene = name in table.var_names
        unit = unit_in(table, layer) if gene else OOD_UNIT if name == keys.OOD_SCORE else ""
        canvas.values(
            ax, shown[name], instances, title=title_of(table, name, region), cmap=cmap, image=show_image,
            limits=limits if gene else None, unit=unit,
        )  # fmt: skip
    for ax in panels[len(wanted) + 1 :]:
        ax.set_axis_off()
    if keys.IN_DISTRIBUTION in table.obs:
        scores = table.obs[keys.OOD_SCORE].to_numpy(np.float32)[rows] if keys.OOD_SCORE in table.obs else None
        usual = table.obs[keys.IN_DISTRIBUTION].to_numpy()[rows][inside].astype(bool)
        warn_across(figure, usual, scores=scores, one_donor=one_donor(stated_of(table)))
    return finish(panels[: len(wanted) + 1], save)


def _wanted(table: AnnData, table_key: str, genes: str | Sequence[str] | None) -> list[str]:
    """Return what to draw, refusing what the table does not have."""
    if genes is None:
        outside = keys.IN_DISTRIBUTION in table.obs and table.obs[keys.IN_DISTRIBUTION].mean() < MIN_IN_DISTRIBUTION
        return best_genes(table) + ([keys.OOD_SCORE] if outside and keys.OOD_SCORE in table.obs else [])
    wanted = [genes] if isinstance(genes, str) else list(genes)
    if missing := [g for g in wanted if g not in table.var_names and g not in table.obs]:
        some = listing(table.var_names[:5])
        raise InputError(f"Table {table_key!r} has no gene or obs column {listing(missing)}; its genes are {some} ...")
    return wanted


def categories_of(table: AnnData, name: str) -> Any:
    """Return the categories of a column of ``obs`` that holds categories, text or truth values; None of any other."""
    import pandas as pd

    if name in table.var_names or pd.api.types.is_numeric_dtype(table.obs[name]) and table.obs[name].dtype != bool:
        return None
    return pd.Categorical(table.obs[name])


def values_of(table: AnnData, name: str, layer: str | None) -> Any:
    if name not in table.var_names:
        return table.obs[name].to_numpy(dtype=np.float32)
    if layer is not None:
        key_in(layer, table.layers, what="layer", name="layer")
    source = table.X if layer is None else table.layers[layer]
    return targets.dense(source[:, [table.var_names.get_loc(name)]], dtype=np.float32).ravel()


def unit_in(table: AnnData, layer: str | None = None) -> str:
    """Return what the values of genes are measured in, as far as that is known."""
    provenance = stated_of(table)
    scale = provenance.get("output_scale")
    if changed_values(table, provenance, what="") is not None:
        return ""
    if layer is not None:
        return f"{layer}, {unit_of(scale)}" if scale and layer in (keys.STD, "lower", "upper") else layer
    if scale is not None:
        return unit_of(scale)
    return unit_of("counts") if are_counts(table.X) else ""

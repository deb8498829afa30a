from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stpred._core import targets
from stpred._core.checks import InputError, key_in, listing, one_of, whole
from stpred._core.elements import need_sdata, table_in_frame
from stpred._core.tables import check_values
from stpred.pl._figure import finish, need_columns

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData


def markers(
    sdata: SpatialData,
    table_key: str,
    markers: Mapping[str, Sequence[str]] | Sequence[str] | pd.DataFrame,
    *,
    groupby: str,
    n_genes: int = 5,
    kind: Literal["matrix", "dots"] = "matrix",
    layer: str | None = None,
    limit: float | None = None,
    cmap: str = "RdBu_r",
    coordinate_system: str | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Draw the mean of marker genes in groups of locations, in standard deviations from each gene's mean.

    Parameters
    ----------
    sdata
        Object with the table.
    table_key
        Predicted or measured table.
    markers
        Genes, sets of genes by name, such as those of cell types, or the frame of :func:`stpred.tl.markers`. Genes that
        the table does not have are left out of the sets.
    groupby
        Categorical column of ``obs``, a row per category.
    n_genes
        Of a frame: first genes of each group.
    kind
        ``"matrix"``, or ``"dots"``, whose size says which share of a group's locations lies above the gene's mean.
    layer
        Layer to take instead of ``X``; counts are drawn as they are, so name a normalised layer of measured tables.
    limit
        Standard deviations at which the colours end, equally above and below 0; None: the largest mean.
    cmap
        Matplotlib colour map, diverging.
    coordinate_system
        Of a table that annotates regions of several slides: the frame of the slide whose rows are taken. None takes all
        rows.
    save
        File to write the figure to.

    Returns
    -------
    The axes of the matrix. The names of genes that the model marks as ``trusted`` have a ``*``.

    Raises
    ------
    InputError
        If the table, column or layer is not there, or the table has none of the genes.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(size_um=(400, 400), n_genes=30)
    >>> sets = {"tumour": ["EPCAM", "KRT8"], "plasma": ["JCHAIN", "MZB1"]}
    >>> axes = st.pl.markers(slide, "cells_counts", sets, groupby="type")
    """
    import scanpy as sc

    need_sdata(sdata)
    key_in(table_key, sdata.tables, what="table", name="table_key")
    one_of(kind, ("matrix", "dots"), name="kind")
    table = table_in_frame(sdata, table_key, coordinate_system=coordinate_system)
    check_values(table, what=f"table {table_key!r}", layer=layer)
    sets, brackets = _sets(table, table_key, _top(markers, whole(n_genes, name="n_genes")))
    small = _standardised(table, [g for genes in sets.values() for g in genes], groupby=groupby, layer=layer)
    marked = dict(zip(small.uns["symbols"], small.var_names, strict=True))
    named: Any = {name: [marked[g] for g in genes] for name, genes in sets.items()}
    wanted = named if brackets else named[""]
    means = small.to_df().groupby(small.obs[groupby], observed=True).mean().to_numpy()
    end = (float(np.abs(means).max()) or 1.0) if limit is None else limit  # constant genes have no colour of their own
    draw: Any = sc.pl.MatrixPlot if kind == "matrix" else sc.pl.DotPlot
    n_columns, n_rows = sum(map(len, sets.values())), small.obs[groupby].nunique()
    options: dict[str, Any] = {"expression_cutoff": 0.0} if kind == "dots" else {}
    plot = draw(
        small, wanted, groupby, vmin=-end, vcenter=0.0, vmax=end,
        figsize=(0.34 * n_columns + 3.2, max(2.6, 0.32 * n_rows + 1.6)), **options,
    )  # fmt: skip
    plot.style(cmap=cmap)
    if kind == "matrix":
        plot.legend(title="mean z-score", width=1.4)
    else:
        plot.legend(colorbar_title="mean z-score", size_title="above the mean (%)", width=1.6)
    plot.make_figure()
    ax: Axes = plot.ax_dict["mainplot_ax"]
    ax.set_ylabel(groupby)
    return finish(ax, save)


def _top(markers: Any, n_genes: int) -> Any:
    """Return the first genes of each group of a frame; anything else as it is."""
    if not hasattr(markers, "columns"):
        return markers
    frame = need_columns(markers, ("group", "gene"), name="markers", source="stpred.tl.markers")
    return {
        str(name): part["gene"].head(n_genes).tolist()
        for name, part in frame.groupby("group", observed=True, sort=False)
    }


def _sets(table: AnnData, table_key: str, markers: Any) -> tuple[dict[str, list[str]], bool]:
    """Return the genes of each set that the table has, and whether sets were named."""
    brackets = isinstance(markers, Mapping)
    given = markers if brackets else {"": [markers] if isinstance(markers, str) else markers}
    sets = {str(name): list(dict.fromkeys(str(g) for g in genes)) for name, genes in given.items()}
    wanted_genes = [g for genes in sets.values() for g in genes]
    found = {name: [g for g in genes if g in table.var_names] for name, genes in sets.items()}
    if not any(found.values()):
        raise InputError(
            f"Table {table_key!r} has none of the genes {listing(wanted_genes)} (`markers`); its genes are "
            f"{listing(table.var_names[:5])} ..."
        )
    return {name: genes for name, genes in found.items() if genes}, brackets


def _standardised(table: AnnData, genes: list[str], *, groupby: str, layer: str | None) -> AnnData:
    """Return a small table of z-scores of these genes, with trusted ones marked in their names."""
    import pandas as pd
    from anndata import AnnData

    key_in(groupby, table.obs, what="obs column", name="groupby")
    if table.obs[groupby].dtype.kind in "iuf" and not isinstance(table.obs[groupby].dtype, pd.CategoricalDtype):
        raise InputError(f"`groupby` must be a categorical column of obs, and {groupby!r} holds numbers.")
    if layer is not None:
        key_in(layer, table.layers, what="layer", name="layer")
    unique = list(dict.fromkeys(genes))
    columns = table.var_names.get_indexer(unique)
    values = targets.dense((table.X if layer is None else table.layers[layer])[:, columns]).astype(np.float64)
    spread = values.std(axis=0)
    z = (values - values.mean(axis=0)) / np.where(spread > 1e-12, spread, 1.0)
    trusted = (
        table.var["trusted"].to_numpy(dtype=bool)[columns] if "trusted" in table.var else np.zeros(len(unique), bool)
    )
    names = [f"{g} *" if t else g for g, t in zip(unique, trusted, strict=True)]
    known = table.obs[groupby].notna().to_numpy()
    labels = table.obs[groupby][known].astype("category").cat.remove_unused_categories()
    small = AnnData(
        z[known].astype(np.float32),
        obs=pd.DataFrame({groupby: labels.to_numpy()}, index=table.obs_names[known]),
        var=pd.DataFrame(index=pd.Index(names)),
    )
    small.obs[groupby] = pd.Categorical(labels.to_numpy(), categories=labels.cat.categories)
    small.uns["symbols"] = unique
    return small

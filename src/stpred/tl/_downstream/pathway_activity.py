from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stpred._core import keys, tables
from stpred._core.checks import InputError, element_name, key_in, listing, one_of, whole
from stpred._core.elements import affine_to, centroids, key_in_frame, need_sdata, table_in_frame, table_regions
from stpred.tl._downstream.gene_sets import need_decoupler, read_network, sets_among
from stpred.tl._downstream.markers import chosen_genes, compared_values

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

METHODS = ("mlm", "ulm")


def pathway_activity(
    sdata: SpatialData,
    table_key: str,
    network: Mapping[str, Iterable[str]] | pd.DataFrame | str | Path = "progeny",
    *,
    method: str = "mlm",
    key_added: str | None = None,
    min_targets: int = 5,
    scale: bool = True,
    trusted_only: bool = False,
    coordinate_system: str | None = None,
    inplace: bool = True,
) -> AnnData | None:
    """Estimate how active each pathway is at each location, from the genes that respond to it.

    The genes' values at a location are regressed on the genes' weights in the pathways by decoupler; the activity is
    the t-value of a pathway's slope.

    Parameters
    ----------
    sdata
        Object with the table.
    table_key
        Predicted or measured table; measured counts are taken as log1p CP10k.
    network
        Genes of each pathway and their weights: a frame, or .csv or .tsv file, in long form (``source``, ``target``,
        ``weight``; ``pathway`` and ``gene`` do as well), a mapping of pathways to genes (or to mappings of genes to
        weights), a .gmt file (all weights 1), or ``"progeny"`` or ``"hallmark"`` (``":mouse"`` may follow), which
        decoupler loads from the net (omnipathdb.org).
    method
        ``"mlm"``: all pathways in one regression, each given the others; ``"ulm"``: one by one.
    key_added
        Name of the new table; None makes ``{table_key}_{network}``, ``..._activity`` of a mapping or frame.
    min_targets
        Pathways with fewer genes in the table are left out.
    scale
        Standardise each gene over the locations first, so that an activity says how a location differs from the table's
        average. Otherwise the genes' levels over the whole table make the activity of every location.
    trusted_only
        Use only genes that ``var["trusted"]`` vouches for, where the table has such a column.
    coordinate_system
        Of a table that annotates regions of several slides: the frame of the slide whose rows are taken. None takes all
        rows, and with `scale` standardises over them together.
    inplace
        With False the new table is returned and the object is left alone.

    Returns
    -------
    None, or with ``inplace=False`` the AnnData: a table of the same locations (those with any count) with

    - ``X``: float32 (n, n_pathways) activities, and ``layers["p_adj"]``, of the slope being 0, adjusted by Benjamini
      and Hochberg over the pathways of a location;
    - ``obs``: region, instance, and ``ood_score`` and ``in_distribution`` where the table has them;
    - ``var``: ``n_targets`` and, where genes have ``cv_pearson``, its mean over the targets, ``targets_cv_pearson``;
    - ``obsm["spatial"]``: centres in micrometres;
    - ``uns["stpred"]``: JSON with network, method, scale (``"relative"``) and what the table was made from.

    Raises
    ------
    InputError
        If the table does not exist or annotates nothing, network and table share too few genes, the pathways cannot be
        told apart, or there is one location only.

    Notes
    -----
    The p-values take genes to be independent, which they are not. Predicted genes are all made from the same image
    features, so activities of predicted tables say which pathways' genes go along with what is seen.

    References
    ----------
    Badia-i-Mompel et al. 2022, "decoupleR: ensemble of computational methods to infer biological activities from omics
    data", Bioinformatics Advances. Schubert et al. 2018, "Perturbation-response genes reveal signaling footprints in
    cancer gene expression", Nature Communications (PROGENy).

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(size_um=(400, 400), n_genes=40)
    >>> genes = slide.tables["spots_counts"].var_names
    >>> st.tl.pathway_activity(slide, "spots_counts", {"first": genes[:10], "last": genes[-10:]}, method="ulm")
    >>> slide.tables["spots_counts_activity"].var_names.tolist()
    ['first', 'last']
    """
    need_sdata(sdata)
    key_in(table_key, sdata.tables, what="table", name="table_key")
    one_of(method, METHODS, name="method")
    least = whole(min_targets, name="min_targets")
    table, what = table_in_frame(sdata, table_key, coordinate_system=coordinate_system), f"table {table_key!r}"
    name = _name(network)
    usual = key_in_frame(sdata, table_key, f"{table_key}_{name}", coordinate_system=coordinate_system)
    key = usual if key_added is None else element_name(key_added)
    if inplace:
        tables.check_writable(sdata, key)
    regions = table_regions(table)
    if not regions:
        raise InputError(f"The {what} annotates no element: it lacks uns['spatialdata_attrs'].")
    values, output_scale, filled = compared_values(table, what=what)
    columns = chosen_genes(table, what=what, trusted_only=trusted_only)
    values = values[np.ix_(filled, columns)]
    if len(values) < 2:
        raise InputError(f"The {what} has {len(values)} location with counts, too few to compare.")
    varies = np.ptp(values, axis=0) > 1e-9
    if scale:  # a gene that never changes says nothing of how locations differ
        values, columns = values[:, varies], columns[varies]
        values = (values - values.mean(axis=0)) / values.std(axis=0) if len(columns) else values
    genes = table.var_names[columns]
    edges = read_network(network)
    members = {str(s): part.target.tolist() for s, part in edges.groupby("source", sort=False)}
    kept = sets_among(members, list(genes), what=what, min_size=least)
    edges = edges[edges.source.isin(kept) & edges.target.isin(genes)]
    weights = edges.pivot(index="target", columns="source", values="weight").reindex(genes).fillna(0.0)[list(kept)]
    found, p_adj = activities(values, weights.to_numpy(), names=list(kept), method=method)
    var = pd.DataFrame({"n_targets": [len(v) for v in kept.values()]}, index=pd.Index(list(kept), dtype=object))
    if "cv_pearson" in table.var:
        var["targets_cv_pearson"] = [float(table.var["cv_pearson"][v].mean()) for v in kept.values()]
    source = tables.read_provenance(table, what=what) if keys.UNS in table.uns else {}
    facts = {
        "kind": "activity",
        "output_scale": "relative",
        "network": name,
        "method": method,
        "min_targets": least,
        "scaled": bool(scale),
        "trusted_only": bool(trusted_only),
        "source": {"table": table_key, "values": output_scale}
        | {k: source[k] for k in ("model", "model_id") if k in source},
        "left_out": {"empty": int((~filled).sum())},
        "versions": tables.package_versions(),
    }
    result = _alike(sdata, table, np.flatnonzero(filled), X=found, var=var, p_adj=p_adj, facts=facts)
    if not inplace:
        return result
    tables.put_table(sdata, key, result)
    return None


def activities(
    values: NDArray[np.float64], weights: NDArray[np.float64], *, names: list[str], method: str
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return (n, k) t-values of each pathway's slope and their p-values, adjusted over the pathways.

    `values` are (n, G), `weights` (G, k), 0 where a gene is no target of a pathway.
    """
    from scipy.stats import false_discovery_control

    design = np.column_stack([np.ones(len(weights)), weights])
    alike = [n for n, w in zip(names, weights.T, strict=True) if np.ptp(w) < 1e-12]
    if alike:
        raise InputError(
            f"Every gene has the same weight in {listing(alike)}, so there is no slope; predict more genes."
        )
    needed = design.shape[1] if method == "mlm" else 2
    if len(weights) <= needed:
        raise InputError(f"{len(weights)} genes are too few to fit {needed - 1} pathways; predict more genes.")
    if method == "mlm" and np.linalg.matrix_rank(design) < needed:
        raise InputError(
            f"The {len(names)} pathways cannot be told apart by the {len(weights)} genes (some are combinations of "
            "others); pass method='ulm' or fewer pathways."
        )
    kernel = getattr(need_decoupler().mt, method).func
    found, p = kernel(np.ascontiguousarray(values), np.ascontiguousarray(weights))
    return found.astype(np.float32), false_discovery_control(np.clip(p, 0, 1), axis=1).astype(np.float32)


def _name(network: Any) -> str:
    """Return what a network is called in the name of a table."""
    if isinstance(network, Path) or (isinstance(network, str) and Path(network).suffix):
        return keys.slug(Path(network).name.removesuffix(".gz").rpartition(".")[0]) or "activity"
    return keys.slug(network) if isinstance(network, str) else "activity"


def _alike(
    sdata: SpatialData, table: AnnData, rows: NDArray[np.int64], *, X: Any, var: pd.DataFrame, p_adj: Any, facts: Any
) -> AnnData:
    """Return a table of other variables that annotates the same locations."""
    from anndata import AnnData as Table
    from spatialdata.models import TableModel

    attrs = table.uns["spatialdata_attrs"]
    columns = [attrs["region_key"], attrs["instance_key"]]
    columns += [c for c in (keys.OOD_SCORE, keys.IN_DISTRIBUTION) if c in table.obs]
    obs = table.obs[columns].iloc[rows].copy()
    obs[columns[0]] = pd.Categorical(obs[columns[0]].astype(str))
    result = Table(X, obs=obs, var=var, layers={"p_adj": p_adj})
    if keys.SPATIAL in table.obsm:
        result.obsm[keys.SPATIAL] = np.array(table.obsm[keys.SPATIAL])[rows]
    elif len(regions := table_regions(table)) == 1 and _placed(sdata, regions[0]):
        xy, instances = centroids(sdata, regions[0])
        result.obsm[keys.SPATIAL] = xy[instances.get_indexer(obs[columns[1]])]
    tables.write_provenance(result, facts, instances=obs[columns[1]])
    return TableModel.parse(
        result, region=list(obs[columns[0]].cat.categories), region_key=columns[0], instance_key=columns[1]
    )


def _placed(sdata: SpatialData, region: str) -> bool:
    """Whether the centres of a region are known in micrometres."""
    return region in sdata.shapes and affine_to(sdata.shapes[region]) is not None

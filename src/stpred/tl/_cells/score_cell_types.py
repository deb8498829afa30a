from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import keys, targets
from stpred._core.checks import InputError, key_in, listing, warn, whole
from stpred._core.elements import lost_provenance, need_sdata, table_in_frame, table_regions
from stpred._core.expression.counts import are_counts
from stpred._core.expression.gene_names import mismatch
from stpred._core.tables import read_prediction
from stpred.comparison.cell_types import CELL_TYPE, UNASSIGNED, rows_of, updated_column, write_provenance
from stpred.tl._downstream.markers import chosen_genes

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

logger = logging.getLogger("stpred")

_CUT_GENES, _CUTS = 20, 24
"""Genes of similar expression that controls are taken from, at least; and the most such groups."""

_GROUP_COLUMNS = ("group", "cell_type", "celltype", "type", "cluster", "set", "names")
_GENE_COLUMNS = ("gene", "genes", "symbol", "gene_symbol", "marker", "markers", "feature")


def score_cell_types(
    sdata: SpatialData,
    table_key: str,
    markers: Mapping[str, Iterable[str]] | pd.DataFrame | str | Path,
    *,
    layer: str | None = None,
    ctrl_size: int = 50,
    min_margin: float = 0.0,
    normalize: bool = True,
    trusted_only: bool = False,
    key_added: str = CELL_TYPE,
    seed: int = 0,
    coordinate_system: str | None = None,
    inplace: bool = True,
) -> AnnData | None:
    """Score every cell of a table for cell types by their marker genes, and name its best.

    Works on a copy of the values, whose ``X`` stays as it is: each cell is brought to the same total over the genes of
    the table (`normalize`; counts become log1p CP10k), each gene is divided by its standard deviation, and a score is
    the mean of the markers minus the mean of control genes of similar expression (:func:`scanpy.tl.score_genes`),
    centred over the cells. So a score says how far a cell is above the average cell of this table, and tables are
    comparable only where their mixtures are.

    Parameters
    ----------
    sdata
        Object with the table.
    table_key
        Predicted or measured table of cells (or of any other region).
    markers
        Genes of each type: a mapping, a frame with a column ``group`` (or ``cell_type``) and a column ``gene`` (or one
        column per type), or the path of such a csv file or of a GMT file.
    layer
        Layer to score instead of ``X``.
    ctrl_size
        Control genes that are drawn for each group of genes of similar expression; never markers of the same type.
    min_margin
        Cells whose best score is not further than this above the second best are ``"unassigned"``, as are cells
        without any count; with a single type, cells whose score is not further than this above 0.
    normalize
        Bring predicted cells to one total, too, as the publication does: those of log1p CP10k before the logarithm,
        others as they are. A model's cells differ in their sum over the predicted genes by how much of the tissue's
        RNA these make up, and by how sure it is of a cell. Values that are negative in places (log shares, standardised
        outputs) have no total and stay as they are; ``uns`` says so. Counts are always normalised.
    trusted_only
        Score by trusted genes alone (``var["trusted"]``), markers and controls.
    key_added
        Column of ``obs`` for the best type.
    seed
        Of the random choice of controls.
    coordinate_system
        Of a table that annotates regions of several slides: the frame of the slide whose rows are scored, against its
        own average; the columns of other rows stay as they are, or missing. None scores all rows together.
    inplace
        With False a copy of the table with the columns is returned and the object is left alone.

    Returns
    -------
    None, or with ``inplace=False`` the AnnData. Writes ``obs[f"score_{type}"]`` (float64; what a column cannot be
    called becomes ``_``) and the categorical ``obs[key_added]``, and says in ``uns["stpred"]`` under ``"cell_types"``
    which genes were used and which were missing (in ``uns["stpred_cell_types"]`` of tables that stpred did not write).

    Raises
    ------
    InputError
        If the table has no gene of a type (or no trusted one), no other genes to compare with, or the markers cannot be
        read.

    References
    ----------
    Chadoutaud et al. (2026), sCellST predicts single-cell gene expression from H&E images, Nature Communications:
    normalised cells, scaled genes, and scores of markers less controls.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(size_um=(400, 400), n_genes=40)
    >>> markers = {"epithelial": ["EPCAM", "KRT8"], "stromal": ["COL1A1", "COL1A2"]}
    >>> st.tl.score_cell_types(slide, "cells_counts", markers)
    >>> slide.tables["cells_counts"].obs["cell_type"].cat.categories.tolist()
    ['epithelial', 'stromal']
    """
    import pandas as pd

    need_sdata(sdata)
    key_in(table_key, sdata.tables, what="table", name="table_key")
    whole_table = sdata.tables[table_key]
    table = table_in_frame(sdata, table_key, coordinate_system=coordinate_system)
    control_size = whole(ctrl_size, name="ctrl_size")
    if layer is not None:
        key_in(layer, table.layers, what="layer", name="layer")
    wanted = read_markers(markers)
    genes = chosen_genes(table, what=f"table {table_key!r}", trusted_only=trusted_only)
    used, missing = _known(wanted, table.var_names[genes], table_key)
    columns = _columns(used, key_added=key_added)
    work, scale, normalized, empty = _scaled(table, layer, table_key, genes=genes, normalize=normalize)
    scores = np.column_stack([_score(work, genes, name, control_size, seed) for name, genes in used.items()])
    result = whole_table if inplace else whole_table.copy()
    rows = np.arange(result.n_obs) if table is whole_table else rows_of(whole_table, table)
    for (name, column), values in zip(columns.items(), scores.T, strict=True):
        if column in result.obs and inplace:
            logger.info("obs[%r] of %r (%s) is written anew.", column, table_key, name)
        result.obs[column] = updated_column(result, column, rows, values)
    best = np.where(empty, UNASSIGNED, _best(scores, list(used), min_margin))
    labels = updated_column(result, key_added, rows, best)
    # Only categories that occur: scanpy cannot test the genes of a group without cells.
    found = set(labels[pd.notna(labels)])
    known = [*used, UNASSIGNED, *sorted(found - {*used, UNASSIGNED})]
    result.obs[key_added] = pd.Categorical(labels, categories=[c for c in known if c in found])
    facts = {
        "key_added": key_added,
        "scores": columns,
        "layer": layer,
        "regions": table_regions(table),
        "values": scale,
        "normalized": normalized,
        "trusted_only": bool(trusted_only),
        "ctrl_size": control_size,
        "min_margin": float(min_margin),
        "seed": seed,
        "used": used,
        "missing": {name: genes for name, genes in missing.items() if genes},
        "n_unassigned": int((best == UNASSIGNED).sum()),
    }
    write_provenance(result, facts)
    return None if inplace else result


def read_markers(markers: Any) -> dict[str, list[str]]:
    """Return the genes of each type, without repeats, from a mapping, a frame, or a csv or GMT file."""
    import pandas as pd

    if isinstance(markers, (str, Path)):
        path = Path(markers)
        if not path.is_file():
            raise InputError(
                f"There is no file of markers {str(path)!r}; `markers` is a mapping of types to genes, a frame, or the "
                "path of a csv or GMT file."
            )
        if path.suffix.lower() == ".gmt":
            lines = [line.split("\t") for line in path.read_text().splitlines() if line.strip()]
            if short := [i for i, line in enumerate(lines, 1) if len(line) < 3]:
                raise InputError(f"{path.name!r} is no GMT file: line {short[0]} has no name, description and genes.")
            found: dict[str, list[Any]] = {line[0]: line[2:] for line in lines}
        else:
            try:
                frame = pd.read_csv(path, sep=None, engine="python")
            except (ValueError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
                raise InputError(f"The markers {path.name!r} are no table of text: {error}.") from error
            found = _from_frame(frame, what=repr(path.name))
    elif isinstance(markers, pd.DataFrame):
        found = _from_frame(markers, what="`markers`")
    elif isinstance(markers, Mapping):
        found = {}
        for name, genes in markers.items():
            if isinstance(genes, (str, bytes)) or not isinstance(genes, Iterable):
                raise InputError(f"The markers of {name!r} must be a list of genes, got {genes!r}.")
            found[str(name)] = list(genes)
    else:
        raise InputError(
            f"`markers` must be a mapping of types to genes, a frame, or the path of a csv or GMT file, got "
            f"{type(markers).__name__}."
        )
    cleaned = {
        name: list(dict.fromkeys(str(g).strip() for g in genes if pd.notna(g) and str(g).strip()))
        for name, genes in found.items()
    }
    if not cleaned:
        raise InputError("`markers` is empty; give at least one type with its genes.")
    if UNASSIGNED in cleaned:
        raise InputError(f"A type cannot be called {UNASSIGNED!r}; that is what cells without a type are called.")
    return cleaned


def _from_frame(frame: pd.DataFrame, *, what: str) -> dict[str, list[Any]]:
    """Return the sets of a long frame (a column of types, a column of genes), or of one with a column per type."""
    lower = {str(c).lower(): c for c in frame.columns}
    gene = next((lower[c] for c in _GENE_COLUMNS if c in lower), None)
    group = next((lower[c] for c in _GROUP_COLUMNS if c in lower and lower[c] != gene), None)
    if gene is not None and group is None:
        raise InputError(
            f"{what} has a column {gene!r} of genes, but none of types ({listing(_GROUP_COLUMNS)}): {listing(lower)}."
        )
    if gene is not None:
        frame = frame.dropna(subset=[group, gene])
        return {str(name): part[gene].tolist() for name, part in frame.groupby(group, sort=False, observed=True)}
    if group is not None or any(frame[c].dtype.kind in "iufb" for c in frame.columns):
        raise InputError(
            f"{what} must have a column of types ({listing(_GROUP_COLUMNS)}) and one of genes "
            f"({listing(_GENE_COLUMNS)}), or a column of genes per type; it has {listing(frame.columns)}."
        )
    return {str(name): frame[name].dropna().tolist() for name in frame.columns}


def _known(
    wanted: Mapping[str, list[str]], there: pd.Index, table_key: str
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return the genes of each type that are there, and those that are not; a type with none is refused."""
    used = {name: [g for g in genes if g in there] for name, genes in wanted.items()}
    missing = {name: [g for g in genes if g not in there] for name, genes in wanted.items()}
    if without := [name for name, genes in used.items() if not genes]:
        hint = mismatch([g for name in without for g in wanted[name]], list(there))
        raise InputError(
            f"Table {table_key!r} has no marker of {listing(without)} (such as "
            f"{listing([g for name in without for g in wanted[name]][:3])}); its genes are "
            f"{listing(there[:3])} ...{'; ' + hint if hint else ''}; leave these types out."
        )
    if lost := list(dict.fromkeys(g for genes in missing.values() for g in genes)):
        warn(f"{len(lost)} marker genes are not in table {table_key!r} and are left out: {listing(lost, most=40)}.")
    for name, genes in used.items():
        if len(genes) == len(there):
            raise InputError(
                f"Every gene of table {table_key!r} is a marker of {name!r}, so there is none to compare with; predict "
                "more genes."
            )
    return used, missing


def _columns(used: Mapping[str, Any], *, key_added: str) -> dict[str, str]:
    """Return the column of each type's score; what SpatialData cannot store in a name becomes ``_``."""
    columns = {name: re.sub(r"[^\w.-]+", "_", f"score_{name}") for name in used}
    spoken = [c.lower() for c in (*columns.values(), key_added)]
    if len(set(spoken)) < len(spoken):
        raise InputError(
            f"The columns of the scores would not be unique (ignoring case): {listing([*columns.values(), key_added])}."
        )
    return columns


def _scaled(
    table: AnnData, layer: str | None, table_key: str, *, genes: NDArray[np.int64], normalize: bool
) -> tuple[AnnData, str, bool, NDArray[np.bool_]]:
    """Return a copy of some genes, of one standard deviation, of cells that are normalised where they can be.

    Also the scale that the values had, whether the cells were normalised, and (n,) which of them are empty.
    """
    import scanpy as sc
    from anndata import AnnData
    from scipy.sparse import issparse

    values = table.X if layer is None else table.layers[layer]
    what = f"values of table {table_key!r}" + ("" if layer is None else f", layer {layer!r}")
    if values is None:
        raise InputError(f"The {what} are missing.")
    stored = np.asarray(values.data if issparse(values) else values)
    if not np.isfinite(stored).all():
        raise InputError(f"The {what} hold {int((~np.isfinite(stored)).sum())} NaN or infinite values.")
    scale = None
    if layer is None and (lost := lost_provenance(table)):
        raise InputError(f"The scale of the {what} is not known: {lost}.")
    if layer is None and keys.UNS in table.uns:
        scale = read_prediction(table, what=f"table {table_key!r}").get("output_scale")
    if scale is None:
        scale = "counts" if are_counts(values) else "as it is"
        logger.info("The %s are taken %s.", what, "as raw counts" if scale == "counts" else "to be normalised")
    work = AnnData(values.astype(np.float32).copy(), obs=table.obs[[]].copy(), var=table.var[[]].copy())
    empty = np.zeros(work.n_obs, dtype=bool)
    if scale == "counts":
        empty = targets.totals(work.X) <= 0
        if empty.any():
            logger.info("%d of %d cells have no counts and are unassigned.", empty.sum(), len(empty))
        sc.pp.normalize_total(work, target_sum=targets.CP10K)
        sc.pp.log1p(work)
    normalized = scale == "counts" or bool(normalize and stored.min(initial=0) >= 0)
    if normalized and scale != "counts":
        log = scale == "log1p_cp10k"
        work.X = _one_total(targets.dense(work.X, np.float64), log=log).astype(np.float32)
    work = work[:, genes].copy()
    # Not centred: the genes keep their order of expression, by which controls are found; centring each gene would only
    # shift a type's score by a constant, which is what is taken off the scores instead.
    sc.pp.scale(work, zero_center=False)
    return work, str(scale), normalized, empty


def _one_total(values: NDArray[np.float64], *, log: bool) -> NDArray[np.float64]:
    """Return (n, G) values of the same sum in every row, the median of all; `log`: they are log1p of what is summed."""
    amounts = np.expm1(values) if log else values
    total = amounts.sum(axis=1)
    usual = np.median(total[total > 0]) if (total > 0).any() else 1.0
    amounts = amounts * np.divide(usual, total, out=np.ones_like(total), where=total > 0)[:, None]
    return np.log1p(amounts) if log else amounts


def _score(work: AnnData, genes: list[str], name: str, ctrl_size: int, seed: int) -> NDArray[np.float64]:
    """Return the centred score of one type; the global random state that scanpy seeds is put back."""
    import scanpy as sc

    # scanpy cuts the genes, ranked by expression, into groups of n / (n_bins - 1), so that the last one is left with
    # what does not divide evenly, down to a single gene without controls. Groups of this size leave no such rest.
    n = work.n_vars
    size = n // min(max(n // _CUT_GENES, 1), _CUTS) + 1
    state = np.random.get_state()  # noqa: NPY002
    try:
        sc.tl.score_genes(
            work,
            genes,
            ctrl_as_ref=False,
            ctrl_size=ctrl_size,
            n_bins=1 + n / size,
            score_name="score",
            random_state=seed,
            use_raw=False,
        )
    except RuntimeError as error:
        raise InputError(
            f"All genes expressed about as much as the markers of {name!r} are its markers, so there are none to "
            "compare with; predict more genes."
        ) from error
    finally:
        np.random.set_state(state)  # noqa: NPY002
    score = work.obs["score"].to_numpy(dtype=np.float64)
    return score - score.mean()


def _best(scores: NDArray[np.float64], names: list[str], min_margin: float) -> list[str]:
    """Return the type of the highest score, or that it is not clear."""
    order = scores.argmax(axis=1)
    second = np.sort(scores, axis=1)[:, -2] if len(names) > 1 else np.zeros(len(scores))
    clear = scores[np.arange(len(scores)), order] - second > min_margin
    return [names[i] if is_clear else UNASSIGNED for i, is_clear in zip(order, clear, strict=True)]

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stpred import data, encoders
from stpred._core import keys, tables, targets
from stpred._core.checks import InputError, key_in, listing, one_of, whole
from stpred._core.elements import need_sdata, table_in_frame, table_instances, table_regions
from stpred._core.places import Place
from stpred.metrics import benjamini_hochberg
from stpred.tl._downstream.markers import chosen_genes, compared_values, groups_of

if TYPE_CHECKING:
    from spatialdata import SpatialData

METHODS = ("spearman", "pearson")

MIN_LOCATIONS = 5
"""Locations from which on a correlation is given."""


def feature_associations(
    sdata: SpatialData,
    table_key: str,
    *,
    features: Any = None,
    genes: Iterable[str] | None = None,
    method: str = "spearman",
    groupby: str | None = None,
    n_features: int | None = None,
    trusted_only: bool = True,
    image_key: str | None = None,
    coordinate_system: str = keys.UM,
) -> pd.DataFrame:
    """Tell which image features go along with which genes over the locations of a slide.

    Parameters
    ----------
    sdata
        Object with the table and, unless features are stored, its calibrated H&E image.
    table_key
        Predicted or measured table of one region, or of several of which one is in the frame; measured counts are taken
        as log1p CP10k.
    features
        A feature table of the same region (see :func:`stpred.pp.features`), by its name, or an encoder. None: the
        named features of ``"morphology"``, which are taken from ``{shapes}_feat_morphology`` where that belongs to this
        image, and computed otherwise.
    genes
        Genes to look at; None: all of the table.
    method
        ``"spearman"`` or ``"pearson"``.
    groupby
        Column of the table's ``obs``, such as tissue classes: associations are then taken inside each class, which
        leaves out what merely tells the classes apart.
    n_features
        Features per gene, those of largest absolute correlation; None: all.
    trusted_only
        With ``genes=None``, only genes that ``var["trusted"]`` vouches for, where the table has such a column.
    image_key, coordinate_system
        Of the image, as in :func:`stpred.pp.features`.

    Returns
    -------
    DataFrame with a row per gene and feature, each gene's by falling absolute correlation; the object is left alone.
    Columns: ``group`` (with `groupby`), ``gene``, ``feature``, ``correlation`` (NaN where either is constant), ``p``
    (two-sided), ``p_adj`` (Benjamini and Hochberg over all pairs of a group) and ``n`` locations.

    Raises
    ------
    InputError
        If table, genes, features or column do not exist, the two share no location, or fewer than five are left.

    Notes
    -----
    ``p`` takes locations to be independent. Neighbours are alike in image and expression, so it is far too small: rank
    by it, and trust what repeats on other slides. Predictions are made from the image, so associations of a predicted
    table describe the model; those of a measured table describe the tissue.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(size_um=(600, 600), n_genes=20)
    >>> found = st.tl.feature_associations(slide, "spots_counts", genes=["EPCAM"], n_features=3)
    >>> found.columns.tolist(), len(found)
    (['gene', 'feature', 'correlation', 'p', 'p_adj', 'n'], 3)
    """
    need_sdata(sdata)
    key_in(table_key, sdata.tables, what="table", name="table_key")
    one_of(method, METHODS, name="method")
    n_features = None if n_features is None else whole(n_features, name="n_features", unset=True)
    table, what = table_in_frame(sdata, table_key, coordinate_system=coordinate_system), f"table {table_key!r}"
    regions = table_regions(table)
    if len(regions) != 1:
        raise InputError(f"The {what} must annotate one region, got {listing(regions)}.")
    columns = _columns(table, genes, what=what, trusted_only=trusted_only)
    values, scale, filled = compared_values(table, what=what)
    groups = np.full(table.n_obs, "all", dtype=object) if groupby is None else groups_of(table, groupby, what=what)
    features_at, names, ids = _features(
        sdata, features, regions[0], image_key=image_key, coordinate_system=coordinate_system
    )
    own = table_instances(table, regions[0])[1]
    place = ids.get_indexer(own)
    if (place < 0).all():
        raise InputError(
            f"The {what} and the features share no location: {listing(own[:3])} against {listing(ids[:3])}."
        )
    used = filled & (place >= 0) & (groups != "")
    parts = []
    for group in pd.unique(groups[used]):
        rows = np.flatnonzero(used & (groups == group))
        if len(rows) < MIN_LOCATIONS:
            continue
        frame = associations(
            values[np.ix_(rows, columns)], features_at[place[rows]], genes=list(table.var_names[columns]),
            features=names, method=method, n_features=n_features,
        )  # fmt: skip
        frame["n"] = len(rows)
        if groupby is not None:
            frame.insert(0, "group", group)
        parts.append(frame)
    if not parts:
        raise InputError(
            f"The {what} has under {MIN_LOCATIONS} locations with features{'' if groupby is None else ' in any group'}."
        )
    found = pd.concat(parts, ignore_index=True)
    found.attrs[keys.UNS] = {
        "kind": "feature_associations", "table": table_key, "scale": scale, "method": method, "by": groupby,
        "versions": tables.package_versions(),
    }  # fmt: skip
    return found


def associations(
    values: NDArray[Any], features_at: NDArray[Any], *, genes: list[str], features: list[str], method: str = "spearman",
    n_features: int | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Correlate every gene of (n, G) values with every feature of (n, F) values at the same locations.

    `n_features` of each gene are returned; p-values are adjusted over all of them.
    """
    from scipy.stats import rankdata, t

    if method == "spearman":
        values, features_at = rankdata(values, axis=0), rankdata(features_at, axis=0)
    r = (_unit(values).T @ _unit(features_at)).clip(-1, 1)
    freedom = len(values) - 2
    with np.errstate(divide="ignore"):
        p = 2 * t.sf(np.abs(r) * np.sqrt(freedom / (1 - r**2)), freedom)
    adjusted, known = benjamini_hochberg(p), np.isfinite(p)
    strength = np.where(known, -np.abs(r), np.inf)
    order = np.argsort(strength, axis=1, kind="stable")[:, :n_features]
    gene = np.repeat(np.arange(len(genes)), order.shape[1])
    feature = order.ravel()
    return pd.DataFrame({
        "gene": np.asarray(genes, dtype=object)[gene],
        "feature": np.asarray(features, dtype=object)[feature],
        "correlation": r[gene, feature],
        "p": p[gene, feature],
        "p_adj": adjusted[gene, feature],
    })  # fmt: skip


def _unit(values: NDArray[Any]) -> NDArray[np.float64]:
    """Centre columns and give them length 1; constant ones become NaN."""
    values = np.asarray(values, dtype=np.float64)
    constant = np.ptp(values, axis=0) <= 1e-9 * np.maximum(np.abs(values).max(axis=0), 1e-300)
    centred = values - values.mean(axis=0)
    length = np.linalg.norm(centred, axis=0)
    return centred / np.where(constant, np.nan, np.where(length == 0, 1.0, length))


def _columns(table: Any, genes: Iterable[str] | None, *, what: str, trusted_only: bool) -> NDArray[np.int64]:
    """Return the positions of the chosen genes."""
    if genes is None:
        return chosen_genes(table, what=what, trusted_only=trusted_only)
    wanted = [genes] if isinstance(genes, str) else [str(g) for g in genes]
    chosen_genes(table, what=what, trusted_only=False)  # refuses names that occur twice
    columns = table.var_names.get_indexer(wanted)
    if not wanted or (columns < 0).any():
        missing = [g for g, c in zip(wanted, columns, strict=True) if c < 0]
        raise InputError(f"No genes {listing(missing)} in {what}; it has {listing(table.var_names, most=5)}.")
    return np.asarray(columns, dtype=np.int64)


def _features(
    sdata: SpatialData, features: Any, shapes_key: str, *, image_key: str | None, coordinate_system: str
) -> tuple[NDArray[np.float64], list[str], pd.Index]:
    """Return (m, F) features, their names, and the ids of their locations."""
    if isinstance(features, str) and features in sdata.tables:
        table, what = sdata.tables[features], f"table {features!r}"
        if shapes_key not in table_regions(table):
            raise InputError(
                f"`features`={features!r} annotates {listing(table_regions(table))}, not {shapes_key!r} as the genes."
            )
        rows, ids = table_instances(table, shapes_key)
        values = targets.dense(table.X)[rows]
        if not np.isfinite(values).all():
            raise InputError(f"The features of {what} hold NaN or infinite values.")
        return values, [str(f) for f in table.var_names], ids
    try:
        used = encoders.get("morphology" if features is None else features)
    except InputError as error:
        known = [k for k, t in sdata.tables.items() if shapes_key in table_regions(t)]
        raise InputError(
            f"`features`={features!r} is neither a table of {shapes_key!r} ({listing(known)}) nor an encoder: {error}"
        ) from error
    place = Place(shapes_key=shapes_key, image_key=image_key, coordinate_system=coordinate_system)
    region = data.read_region(sdata, place)
    data.check_resolution(region, used, what=f"Image {region.image_key!r}")
    found = data.embed_region(region, used)
    names = used.card.feature_names or [f"{keys.slug(used.card.name)}_{i}" for i in range(used.card.width)]
    return np.asarray(found, dtype=np.float64), list(names), region.instances

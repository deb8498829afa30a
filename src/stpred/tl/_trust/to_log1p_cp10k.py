from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import keys, tables
from stpred._core.checks import InputError, key_in, positive
from stpred._core.elements import key_in_frame, need_sdata, table_in_frame, table_regions
from stpred._core.targets import LOG_SHARE, dense, from_log_share, totals
from stpred.comparison.pairing import pair
from stpred.inference.intervals import HIGH, LOW

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray
    from spatialdata import SpatialData

TARGET = "log1p_cp10k"


def to_log1p_cp10k(
    sdata: SpatialData,
    predicted_key: str,
    *,
    measured_key: str | None = None,
    library_size: float | str | ArrayLike | None = None,
    key_added: str | None = None,
    coordinate_system: str = keys.UM,
    inplace: bool = True,
) -> AnnData | None:
    """Turn a prediction of log shares (ST-Net's) into log1p CP10k at known library sizes.

    A log share, ``log((1 + count) / (n_measured + total))``, falls with the total count of its location where that is
    far below the number of genes, as on most spots. At a location's own total the conversion is exact; without it there
    is none, so it has to be given.

    Parameters
    ----------
    sdata
        Object with the prediction.
    predicted_key
        Table that :func:`stpred.tl.predict` wrote with a model of log shares.
    measured_key
        Table of raw counts at the same locations, whose totals (over the genes of the model's training tables, where
        it measured more) are taken; locations without counts are left out.
    library_size
        In place of `measured_key`: the total count of each location as (n,) numbers or the name of a column of the
        prediction's ``obs``; or one number for all, by which whatever the model learned of library sizes stays in the
        result. The provenance says which.
    key_added
        Name of the new table; None makes ``{predicted_key}_log1p_cp10k``.
    coordinate_system
        The slide's micrometre frame.
    inplace
        With False the table is returned and the object is not changed.

    Returns
    -------
    None, or the table: ``X`` float32 log1p CP10k, never below zero; ``obs["library_size"]``; everything else as in the
    prediction but for its intervals and ``std``, which were of the old scale.

    Raises
    ------
    InputError
        If the prediction is on another scale or does not state its number of genes, or not exactly one of
        `measured_key` and `library_size` is given.

    References
    ----------
    He et al. (2020), Integrating spatial gene expression and breast tumour morphology via deep learning, Nature
    Biomedical Engineering 4:827, whose target this is.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(2, size_um=(500, 500), n_genes=20)
    >>> model = st.tl.train(slides, "ridge", target="log_share", shapes_key="spots")
    >>> st.tl.predict(slides["donor0"], model, shapes_key="spots")
    >>> st.tl.to_log1p_cp10k(slides["donor0"], "spots_ridge", measured_key="spots_counts")
    >>> slides["donor0"]["spots_ridge_log1p_cp10k"].shape == slides["donor0"]["spots_ridge"].shape
    True
    """
    import pandas as pd

    need_sdata(sdata)
    key_in(predicted_key, sdata.tables, what="table", name="predicted_key")
    if (measured_key is None) == (library_size is None):
        raise InputError(
            "Log shares become log1p CP10k at known library sizes only: pass either `measured_key`, a table of counts "
            "at the same locations, or `library_size`, a number or one for each location."
        )
    table = table_in_frame(sdata, predicted_key, coordinate_system=coordinate_system)
    provenance = tables.read_prediction(table, what=f"table {predicted_key!r}")
    n_measured = _n_measured(provenance, predicted_key)
    if measured_key is not None:
        both = pair(sdata, predicted_key, measured_key, target=LOG_SHARE, coordinate_system=coordinate_system)
        ids = table.obs[tables.INSTANCE_KEY].to_numpy()
        at = np.flatnonzero(np.isin(ids, both.instances))
        sizes = totals(both.counts)[both.instances.get_indexer(ids[at])]
        source = measured_key
    else:
        at, (sizes, source) = np.arange(table.n_obs), _sizes(table, library_size)
    part = table[at]
    provenance.pop("intervals", None)
    obs = {k: part.obs[k].to_numpy() for k in (keys.OOD_SCORE, keys.IN_DISTRIBUTION) if k in part.obs}
    result = tables.build_table(
        from_log_share(dense(part.X), sizes, n_measured=n_measured),
        shapes_key=table_regions(table)[0],
        instances=pd.Index(part.obs[tables.INSTANCE_KEY]),
        var=table.var.drop(columns=[LOW, HIGH], errors="ignore"),
        spatial_um=np.asarray(part.obsm[keys.SPATIAL]),
        obs=obs | {"library_size": sizes},
        provenance=provenance | {"output_scale": TARGET, "converted": {"of": predicted_key, "library_size": source}},
    )
    if not inplace:
        return result
    usual = key_in_frame(sdata, predicted_key, f"{predicted_key}_{TARGET}", coordinate_system=coordinate_system)
    tables.put_table(sdata, usual if key_added is None else key_added, result)
    return None


def _n_measured(provenance: dict[str, Any], key: str) -> int:
    """Return the number of genes in the denominator of a prediction's log shares."""
    scale = provenance.get("output_scale")
    if scale != LOG_SHARE:
        raise InputError(f"Table {key!r} holds predictions as {scale!r}, not as {LOG_SHARE!r}.")
    found = (provenance.get("training") or {}).get("n_measured")
    if not found:
        raise InputError(f"Table {key!r} does not state the number of genes that its log shares refer to.")
    return int(found)


def _sizes(table: AnnData, given: Any) -> tuple[NDArray[np.float64], str]:
    """Return (n,) library sizes, and where they are from."""
    if isinstance(given, str):
        key_in(given, table.obs, what="column of obs", name="library_size")
        return _checked(table.obs[given].to_numpy(), table), f"obs[{given!r}]"
    if np.ndim(given) == 0:
        size = positive(given, name="library_size", unit="counts")
        return np.full(table.n_obs, size), f"{size:g} for all"
    return _checked(given, table), "one for each location"


def _checked(values: Any, table: AnnData) -> NDArray[np.float64]:
    sizes = np.asarray(values)
    if sizes.shape != (table.n_obs,) or sizes.dtype.kind not in "iuf" or not (sizes > 0).all():
        raise InputError(
            f"`library_size` must be {table.n_obs} numbers above 0, one for each location, got "
            f"{sizes.dtype} of shape {sizes.shape}."
        )
    return sizes.astype(np.float64)

"""A pseudo-bulk as a table of samples for models: features, donors, and columns that are complete."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import keys, tables, targets
from stpred._core.checks import InputError, listing, warn
from stpred._core.expression.bulk import WITHIN_SLIDES
from stpred._core.names import named, names_of
from stpred.tl._samples.pseudobulk import log1p_cpm

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray


def features(samples: AnnData, genes: Iterable[str] | None) -> tuple[NDArray[np.float64], pd.Index]:
    """Return (S, g) values and their genes: of a pseudo-bulk as log1p CPM, of another table as they are."""
    if not hasattr(samples, "obs_names"):
        raise InputError(f"`pseudobulk` must be an AnnData of samples x genes, got {type(samples).__name__}.")
    if not samples.obs_names.is_unique:
        raise InputError("The names of the samples are not unique.")
    values = log1p_cpm(samples)[0] if keys.UNS in samples.uns else targets.dense(samples.X)
    if keys.UNS in samples.uns and tables.read_provenance(samples).get(WITHIN_SLIDES):
        warn(
            'The model of these predictions standardises features within each slide (standardize="slide"), which '
            'removes most of what whole slides differ in. To compare slides, train with standardize="train" on slides '
            "of one stain, or after `stpred.pp.stain_normalize`."
        )
    names = samples.var_names
    if genes is not None:
        wanted = [genes] if isinstance(genes, str) else list(dict.fromkeys(genes))
        if missing := [g for g in wanted if g not in names]:
            raise InputError(f"The pseudo-bulk lacks {len(missing)} of {len(wanted)} genes: {listing(missing)}.")
        values, names = values[:, names.get_indexer(wanted)], names[names.get_indexer(wanted)]
    if not np.isfinite(values).all():
        raise InputError(f"The pseudo-bulk holds {int((~np.isfinite(values)).sum())} NaN or infinite values.")
    varied = np.ptp(values, axis=0) > 0
    if not varied.any():
        raise InputError(f"None of the {len(names)} genes varies over the {len(values)} samples.")
    return values[:, varied], names[varied]


def sample_values(samples: AnnData, given: Any, *, name: str) -> NDArray[Any]:
    """Return (S,) complete values: a column of obs, a mapping or Series by sample, or an array in their order."""
    import pandas as pd

    if isinstance(given, str):
        if given not in samples.obs:
            raise InputError(f"obs has no column {given!r} (`{name}`); available: {listing(samples.obs.columns)}.")
        values = samples.obs[given]
    elif isinstance(given, (Mapping, pd.Series)):
        by_name = named(given, what=name)
        values = pd.Series([by_name.get(s, np.nan) for s in samples.obs_names.astype(str)], index=samples.obs_names)
    else:
        values = pd.Series(np.asarray(given).ravel())
        if len(values) != samples.n_obs:
            raise InputError(f"`{name}` must have one value per sample: got {len(values)} for {samples.n_obs}.")
    if (missing := values.isna().to_numpy()).any():
        raise InputError(f"`{name}` is missing for the samples {listing(samples.obs_names[missing])}; leave them out.")
    return values.to_numpy()


def sample_groups(samples: AnnData, groups: Any) -> NDArray[Any]:
    """Return (S,) donors; None: every sample is one."""
    if groups is None:
        return samples.obs_names.to_numpy().astype(str)
    found = sample_values(samples, groups, name="groups")
    return np.array(names_of(found, what="donor"), dtype=str)


def follow_up(samples: AnnData, time: Any, event: Any) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return (S,) checked follow-up times and events, of which there is at least one."""
    try:
        t = sample_values(samples, time, name="time").astype(np.float64)
        e = sample_values(samples, event, name="event").astype(np.float64)
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("`time` must hold numbers, and `event` 0 and 1 or False and True.") from error
    if not (np.isfinite(t) & (t > 0)).all():
        raise InputError(f"`time` must be above 0; it is not for {int((~(t > 0)).sum())} of {len(t)} samples.")
    if not np.isin(e, (0, 1)).all():
        raise InputError("`event` must be 0 or 1 (False or True) for every sample.")
    if not e.any():
        raise InputError(
            f"None of the {len(e)} samples has an event, so there is no risk to learn; is `event` inverted?"
        )
    if np.ptp(t) == 0:
        raise InputError(f"`time` is {t[0]:g} for all {len(t)} samples, so none of them had its event earlier.")
    return t, e.astype(bool)

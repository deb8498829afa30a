from __future__ import annotations

from itertools import combinations
from typing import Any, Literal

import numpy as np
import pandas as pd

from stpred import metrics
from stpred._core import keys
from stpred._core.checks import InputError, key_in, listing, one_of
from stpred.tl._evaluation.summarise import of_metric, of_scale

UNITS = ("gene", "slide", "donor")


def paired_tests(
    scores: pd.DataFrame,
    column: str = "model",
    *,
    reference: Any = None,
    metric: str = "pearson",
    target: str | None = None,
    groupby: Literal["slide", "donor", "gene"] | None = None,
    over: Literal["gene", "slide", "donor"] = "gene",
    alternative: Literal["two-sided", "greater", "less"] = "two-sided",
    nan: Literal["drop", "zero"] = "zero",
) -> pd.DataFrame:
    """Test pairs of models, or of conditions, on the same genes, slides or donors (Wilcoxon's signed ranks, Holm).

    Parameters
    ----------
    scores
        Tidy frame of :func:`stpred.tl.cross_validate`, :func:`stpred.tl.validate`,
        :func:`stpred.tl.withheld_sections`, :func:`stpred.tl.withheld_spots`, :func:`stpred.tl.misaligned_spots` or
        :func:`stpred.tl.occluded_tiles`.
    column
        What is compared: ``"model"``, or a column of conditions of a single model, such as ``"shift_radii"`` of
        :func:`stpred.tl.misaligned_spots`.
    reference
        Value of `column` that each other is compared with; None compares all pairs.
    metric, target
        As in :func:`stpred.tl.rank_models`.
    groupby
        Test within each slide, donor or gene; None: all together.
    over
        What is paired: scores are averaged for each ``"gene"``, ``"slide"`` or ``"donor"`` before. Genes of the same
        slides are no independent observations: over genes, p-values say whether a difference goes through the genes
        of these slides, over donors whether it is to be expected of others.
    alternative
        ``"greater"``: the first of a pair (the reference, where there is one) is the higher one.
    nan
        Missing correlations count as ``"zero"``, or pairs with one are left out (``"drop"``, as of other metrics).

    Returns
    -------
    DataFrame with one row per group and pair: the group (a column called `groupby`), ``first``, ``second``, ``n``
    (pairs of values), ``median_first``, ``median_second``, ``difference`` (median of first minus second), ``p_value``
    and ``p_holm``, corrected over all rows. Groups of fewer than three pairs of values have no p-value.

    Raises
    ------
    InputError
        If the column, the reference or the metric is not there, or conditions of several models are mixed.

    References
    ----------
    Wilcoxon, Individual comparisons by ranking methods, Biometrics Bulletin 1 (1945). Bergenstråhle et al.,
    Super-resolved spatial transcriptomics by deep data fusion, Nature Biotechnology 40 (2022), for misaligned spots.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(size_um=(600, 600), n_genes=20)
    >>> scores = st.tl.misaligned_spots(slide, "ridge", radii=(0, 2), n_genes=10, shapes_key="spots")
    >>> found = st.tl.paired_tests(scores, "shift_radii", reference=0)
    >>> found[["first", "second", "n"]].to_numpy().tolist()
    [[0.0, 2.0, 10.0]]
    """
    one_of(over, UNITS, name="over")
    one_of(groupby, (*UNITS, None), name="groupby")
    one_of(alternative, ("two-sided", "greater", "less"), name="alternative")
    one_of(nan, ("drop", "zero"), name="nan")
    if groupby == over:
        raise InputError(f"`groupby` and `over` are both {over!r}: one value is no sample.")
    part = of_scale(of_metric(scores, metric), target)
    key_in(column, part.columns, what="column of `scores`", name="column")
    part = part[~part["model"].isin(keys.CONTEXT)]
    models = [str(m) for m in part["model"].unique()]
    if column != "model" and len(models) > 1:
        raise InputError(
            f"`scores` is of the models {listing(models)}; keep the rows of one to compare its {column!r}."
        )
    if nan == "zero" and keys.zero_is_nothing(metric):
        part = part.assign(value=part["value"].fillna(0.0))
    values = list(part[column].unique())
    if len(values) < 2:
        raise InputError(f"`scores` has one value of {column!r} alone, {listing(values)}; two or more are compared.")
    if reference is not None and reference not in values:
        raise InputError(f"`reference` must be one of {listing(values)} of {column!r}, got {reference!r}.")
    chosen = list(combinations(values, 2))
    if reference is not None:
        chosen = [(reference, v) for v in values if v != reference]
    rows = []
    for name, group in [(None, part)] if groupby is None else part.groupby(groupby, sort=False, observed=True):
        wide = group.groupby([over, column], observed=True)["value"].mean().unstack(column)
        for first, second in chosen:
            row = {} if groupby is None else {groupby: name}
            rows.append(row | {"first": first, "second": second} | _test(wide, first, second, alternative))
    found = pd.DataFrame(rows)
    return found.assign(p_holm=metrics.holm(found["p_value"].to_numpy(dtype=np.float64)))


def _test(wide: pd.DataFrame, first: Any, second: Any, alternative: Any) -> dict[str, Any]:
    """Return the test of one pair of columns."""
    sides = wide.reindex(columns=[first, second]).dropna().to_numpy(dtype=np.float64)
    difference = sides[:, 0] - sides[:, 1]
    n = len(sides)
    medians = np.median(np.column_stack([sides, difference]), axis=0) if n else np.full(3, np.nan)
    return {
        "n": n,
        "median_first": medians[0],
        "median_second": medians[1],
        "difference": medians[2],
        "p_value": metrics.signed_rank_p(difference, alternative=alternative) if n >= 3 else np.nan,
    }

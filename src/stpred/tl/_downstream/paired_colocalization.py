from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stpred._core.checks import InputError, listing, one_of
from stpred._core.names import look_up, named, names_of
from stpred.metrics import benjamini_hochberg, holm

if TYPE_CHECKING:
    import pandas as pd

MIN_PATIENTS = 3


def paired_colocalization(
    first: Mapping[str, pd.DataFrame],
    second: Mapping[str, pd.DataFrame] | None = None,
    *,
    groups: Mapping[str, str] | None = None,
    alternative: Literal["two-sided", "greater", "less"] = "two-sided",
) -> pd.DataFrame:
    """Test over patients how far pairs of gene sets lie together, or whether they do more so on one of two sides.

    One value per patient: the mean, over the patient's slides, of a pair's statistic (:func:`stpred.tl.colocalization`)
    on one side minus that on the other. Sides may be two kinds of regions (tumour and the rest of each slide), or
    predictions and measurements. A paired t-test asks whether the mean over patients is 0. Without a second side it
    asks so of the statistic minus the mean of its null on the slide. Slides and locations are no replicates here, and
    what is tested is the mean over patients like these.

    Parameters
    ----------
    first, second
        Frames of :func:`stpred.tl.colocalization` by slide. Slides and pairs that only one side has are left out.
    groups
        Patient of each slide; None: every slide is a patient of its own.
    alternative
        Of the mean difference: ``"two-sided"``, ``"greater"`` (the first side is higher) or ``"less"``.

    Returns
    -------
    DataFrame with a row per pair of sets, smallest p-value first: ``first``, ``second`` (the sets),
    ``mean_first``, ``mean_second`` (0 without a second side), ``difference``, ``low``, ``high`` (95 % by Student's t),
    ``t``, ``p_value``, ``p_holm``, ``p_bh``, ``n_patients`` (with the pair on both sides). ``attrs["left_out"]`` lists
    slides of one side only.

    Raises
    ------
    InputError
        If fewer than 3 patients have values on both sides, or frames are not of :func:`stpred.tl.colocalization`.

    References
    ----------
    He et al. (2020), Integrating spatial gene expression and breast tumour morphology via deep learning, Nature
    Biomedical Engineering 4:827, tested co-localisation by a paired t-test over patients.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(3, size_um=(600, 600), n_genes=60)
    >>> sets = {"tumour": ["EPCAM", "KRT8"], "stroma": ["COL1A1", "COL1A2"]}
    >>> one = {n: st.tl.colocalization(s, "spots_counts", sets, n_permutations=19) for n, s in slides.items()}
    >>> st.tl.paired_colocalization(one)["n_patients"].tolist()
    [3]
    """
    import pandas as pd
    from scipy.stats import t as student

    one_of(alternative, ("two-sided", "greater", "less"), name="alternative")
    one = _values(first, "first", against_null=second is None)
    other = {} if second is None else _values(second, "second", against_null=False)
    slides = [s for s in one if second is None or s in other]
    left_out = [s for s in {**one, **other} if s not in slides]
    if not slides:
        raise InputError(f"`first` and `second` share no slide: {listing(one)} against {listing(other)}.")
    patients = dict(zip(slides, slides, strict=True))
    if groups is not None:
        found = look_up(groups, slides, what="groups")
        patients = dict(zip(slides, names_of(found.values(), what="patient"), strict=True))
    a = pd.DataFrame({s: one[s] for s in slides}).T
    b = 0 * a if second is None else pd.DataFrame({s: other[s] for s in slides}).T
    pairs = [p for p in a.columns if p in b.columns]
    if not pairs:
        raise InputError("The two sides share no pair of gene sets.")
    a, b = a[pairs].astype(float), b[pairs].astype(float)
    known = a.notna() & b.notna()
    sides = [v.where(known).groupby(pd.Series(patients)).mean() for v in (a, b)]
    difference = sides[0] - sides[1]
    n = difference.notna().sum()
    if n.max() < MIN_PATIENTS:
        raise InputError(
            f"{int(n.max())} patients have a value on both sides ({len(slides)} slides); a paired test needs "
            f"{MIN_PATIENTS}, and has little power below about ten."
        )
    mean, error = difference.mean(), difference.std(ddof=1) / np.sqrt(n)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (mean / error).where(n >= MIN_PATIENTS).to_numpy()
    freedom = (n - 1).clip(lower=1).to_numpy()
    tails = {"greater": student.sf(t, freedom), "less": student.cdf(t, freedom)}
    p = 2 * student.sf(np.abs(t), freedom) if alternative == "two-sided" else tails[alternative]
    reach = (student.ppf(0.975, freedom) * error).where(n >= MIN_PATIENTS)
    result = pd.DataFrame(
        {
            "first": [f for f, _ in pairs],
            "second": [s for _, s in pairs],
            "mean_first": sides[0].mean().to_numpy(),
            "mean_second": sides[1].mean().to_numpy(),
            "difference": mean.to_numpy(),
            "low": (mean - reach).to_numpy(),
            "high": (mean + reach).to_numpy(),
            "t": t,
            "p_value": p,
            "p_holm": holm(p),
            "p_bh": benjamini_hochberg(p),
            "n_patients": n.to_numpy(),
        }
    ).sort_values("p_value", kind="stable", ignore_index=True)
    result.attrs = {"left_out": left_out, "alternative": alternative, "against": "null" if second is None else "second"}
    return result


def _values(frames: Any, name: str, *, against_null: bool) -> dict[str, dict[tuple[str, ...], float]]:
    """Return by slide the statistic of each pair, whose sets are in the order of their names."""
    import pandas as pd

    if not isinstance(frames, Mapping) or not frames:
        raise InputError(f"`{name}` must be a mapping of slides to frames of stpred.tl.colocalization.")
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for slide, frame in named(frames, what=name).items():
        if not isinstance(frame, pd.DataFrame) or not {"first", "second", "statistic", "null_mean"} <= set(frame):
            raise InputError(f"`{name}` of {slide!r} is no frame of stpred.tl.colocalization.")
        values = frame["statistic"] - frame["null_mean"] if against_null else frame["statistic"]
        keys = [tuple(sorted(map(str, pair))) for pair in zip(frame["first"], frame["second"], strict=True)]
        if len(set(keys)) < len(keys):
            raise InputError(f"`{name}` of {slide!r} has several rows of one pair of sets.")
        found[slide] = dict(zip(keys, values.tolist(), strict=True))
    return found

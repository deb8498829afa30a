from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred import metrics
from stpred._core import keys
from stpred._core.checks import InputError, fraction_of, key_in, one_of, whole
from stpred._core.names import look_up, named, names_of
from stpred._core.targets import TARGETS
from stpred.comparison.slide_tables import ONE_SLIDE, SlideTable, named_slides, slide_tables
from stpred.tl._samples.tile_survival import risk_table

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike, NDArray
    from spatialdata import SpatialData

logger = logging.getLogger("stpred")


def differential_rank(
    slides: Mapping[str, SpatialData] | SpatialData,
    table_key: str,
    risk: str | Mapping[str, ArrayLike] | ArrayLike,
    *,
    scale: str = "log1p_cp10k",
    n_top: int = 25,
    groups: Mapping[str, str] | None = None,
    in_distribution_only: bool = True,
    n_bootstrap: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
    coordinate_system: str = keys.UM,
) -> pd.DataFrame:
    """Score each gene by where it is high: in the locations of highest or of lowest risk (MISO's DR-score).

    On each slide a gene's values are replaced by their ranks over the locations, divided by the number of locations
    (equal values share the average rank). The score is the mean rank in the `n_top` locations of highest risk minus
    that in the `n_top` of lowest, averaged over the slides: near 1 for a gene that is high only where risk is, near -1
    for the opposite, about 0 for one that has nothing to do with it. Where several locations of the same risk compete
    for the last places among the `n_top`, they share these. `risk` may be any score of a location: that of a survival
    model, a classifier, a distance to the tumour, the activity of a pathway.

    Parameters
    ----------
    slides
        Slides by name, or one slide.
    table_key
        Table of every slide: predictions or raw counts.
    risk
        Name of a column in ``obs`` of the tables, or of the tables that :func:`stpred.tl.tile_survival` wrote; or by
        slide an array with one number per row of the table (a Series is joined by its index); for one slide also just
        that array. NaN leaves a location out.
    scale
        What is ranked, the same for measured and predicted tables: ``"log1p_cp10k"`` or ``"counts"``. On raw counts
        (the publication's choice) a score is also one of how much RNA the locations of high risk hold: where that
        follows the risk, nearly all genes score high. A prediction of a model of raw counts without a unit (MISO's)
        can only be ranked on ``"counts"``, and then its measurement has to be, too.
    n_top
        Locations at either end, of which a slide must have twice as many.
    groups
        Donor of each slide, drawn with all slides; None draws slides, of which sections of one donor are no new ones.
    in_distribution_only
        Leave out locations that the table marks as out of distribution.
    n_bootstrap
        Draws of slides or donors for the interval.
    level
        Of the interval.
    seed
        Of the draws.
    coordinate_system
        The slides' micrometre frame; of a table that annotates regions of several slides, the rows of the one there.

    Returns
    -------
    DataFrame with a row per gene that all slides have, highest score first: ``gene``, ``score`` in [-1, 1], ``low`` and
    ``high`` (percentile interval over draws of slides or donors) and ``n_slides``. With one slide or donor the interval
    is NaN: locations of a slide resemble their neighbours, so drawing locations instead would promise a precision that
    is not there. With fewer than about ten it is too narrow, too. ``attrs["per_slide"]`` is a dict of slide to list of
    scores in the order of the rows, ``attrs["n_locations"]`` says how many locations of each slide were used, and
    ``attrs["scale"]`` what was ranked.

    Raises
    ------
    InputError
        If a slide has fewer than ``2 * n_top`` locations, a risk is missing, has the wrong length or is the same
        everywhere, the tables share no gene, or their values cannot be brought to `scale`.

    References
    ----------
    Schmauch et al. (2025), A deep learning-based multiscale integration of spatial omics with tumor morphology,
    Nature Communications: the DR-score, there with n = 25, the risk of a survival model of slides, and ranks of raw
    counts.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(2, size_um=(800, 800), n_genes=20)
    >>> genes = slides["donor0"]["spots_counts"].var_names
    >>> risk = {name: s["spots_counts"].layers["expected"][:, 3] for name, s in slides.items()}
    >>> found = st.tl.differential_rank(slides, "spots_counts", risk, n_top=10)
    >>> bool(found.set_index("gene")["score"][genes[3]] > 0.3)
    True
    """
    import pandas as pd

    n_top, n_bootstrap = whole(n_top, name="n_top"), whole(n_bootstrap, name="n_bootstrap")
    level = fraction_of(level, name="level")
    one_of(scale, TARGETS, name="scale")
    sides, genes = slide_tables(slides, table_key, coordinate_system=coordinate_system)
    drawn = list(sides)
    if groups is not None:
        drawn = names_of(look_up(groups, sides, what="groups").values(), what="donor")
    scores = np.empty((len(sides), len(genes)))
    n_locations = {}
    risks = _of_tables(slides, sides, risk, coordinate_system=coordinate_system)
    for k, side in enumerate(sides.values()):
        given = risk_of(side, risks)
        kept = np.isfinite(given) & side.with_counts()
        if in_distribution_only:
            kept &= side.in_distribution()
        if kept.sum() < 2 * n_top:
            raise InputError(
                f"{side.description} has {int(kept.sum())} locations with a risk and expression to go by (of "
                f"{side.table.n_obs}), and `n_top`={n_top} at either end needs {2 * n_top}."
            )
        if np.ptp(given[kept]) == 0:
            raise InputError(f"The risk is the same in all {int(kept.sum())} locations of {side.slide!r}.")
        scores[k] = rank_difference(side.on_scale(genes, scale)[kept], given[kept], n_top=n_top)
        n_locations[side.slide] = int(kept.sum())
    low = high = np.full(len(genes), np.nan)
    if len(set(drawn)) > 1:
        low, high = metrics.bootstrap_ci(scores, groups=drawn, n_samples=n_bootstrap, level=level, seed=seed)
    else:
        logger.warning("With one slide or donor the scores have no interval: these are what is drawn.")
    result = pd.DataFrame(
        {"gene": genes, "score": scores.mean(axis=0), "low": low, "high": high, "n_slides": len(scores)}
    )
    order = np.argsort(-result["score"].to_numpy(), kind="stable")
    result = result.iloc[order].reset_index(drop=True)
    result.attrs["per_slide"] = {slide: s[order].tolist() for slide, s in zip(sides, scores, strict=True)}
    result.attrs["n_locations"] = n_locations
    result.attrs["scale"] = scale
    return result


def _of_tables(
    slides: Mapping[str, SpatialData] | SpatialData,
    sides: Mapping[str, SlideTable],
    risk: Any,
    *,
    coordinate_system: str,
) -> Any:
    """Return a risk by slide where it is the name of a table of risks; anything else as it is."""
    if not isinstance(risk, str) or any(risk in side.table.obs for side in sides.values()):
        return risk
    by_name = named_slides(slides)
    if not all(risk in by_name[s].tables for s in sides):
        return risk
    return {
        s: risk_table(by_name[s], risk, side.table, slide=s, coordinate_system=coordinate_system)
        for s, side in sides.items()
    }


def risk_of(side: SlideTable, risk: Any) -> NDArray[np.float64]:
    """Return the (n,) risk of a slide's locations, from a column of its table, a mapping of slides or an array."""
    import pandas as pd

    if isinstance(risk, str):
        key_in(risk, side.table.obs.columns, what=f"column of obs in table {side.key!r} of {side.slide!r}", name="risk")
        values: Any = side.table.obs[risk]
    elif isinstance(risk, Mapping):
        by_slide = named(risk, what="risk")
        values = by_slide[key_in(side.slide, by_slide, what="slide", name="risk")]
    elif side.slide == ONE_SLIDE:
        values = risk
    else:
        raise InputError("`risk` of several slides must be a column of obs or a mapping of slides to arrays.")
    if isinstance(values, pd.Series) and not values.index.equals(side.table.obs_names):
        if not values.index.is_unique or not side.table.obs_names.isin(values.index).any():
            raise InputError(f"The index of the risk of {side.slide!r} does not name the rows of table {side.key!r}.")
        values = values.reindex(side.table.obs_names)
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"The risk of {side.slide!r} must be numbers.") from error
    if numbers.shape != (side.table.n_obs,):
        raise InputError(
            f"The risk of {side.slide!r} must have one number per row of table {side.key!r}: got shape "
            f"{numbers.shape} for {side.table.n_obs} rows."
        )
    return numbers


def rank_difference(values: ArrayLike, risk: ArrayLike, *, n_top: int) -> NDArray[np.float64]:
    """Return (G,) mean ranks, 0 to 1, in the `n_top` locations of highest risk minus those in the lowest.

    `values` are (N, G), `risk` (N,) finite; locations of equal risk share the places left among the `n_top` (N / 2 at
    most).
    """
    from scipy.stats import rankdata

    ranks = rankdata(np.asarray(values), axis=0) / len(values)  # type: ignore[arg-type]
    score = np.asarray(risk, dtype=np.float64)
    return (_share_of_top(score, n_top) - _share_of_top(-score, n_top)) @ ranks / n_top


def _share_of_top(score: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """Return (N,) how much of each location is among the `n_top` highest; the sum is `n_top`."""
    last = np.partition(score, -n)[-n]
    above, tied = score > last, score == last
    return above + tied * ((n - above.sum()) / tied.sum())

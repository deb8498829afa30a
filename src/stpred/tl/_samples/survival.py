from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core.checks import InputError, positive, whole
from stpred.tl._samples.cox import elastic_net
from stpred.tl._samples.random_draws import drawn_scores
from stpred.tl._samples.sample_folds import folds, interval, resampled, share_of_pairs, survival_pairs
from stpred.tl._samples.sample_table import features, follow_up, sample_groups

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray

    from stpred._core.recipes.draws import Draws

MIN_EVENTS = 2

_INNER = 3
_DRAWS = 2000


def survival(
    pseudobulk: AnnData,
    time: str | ArrayLike,
    event: str | ArrayLike,
    *,
    genes: Iterable[str] | None = None,
    groups: str | Mapping[str, str] | ArrayLike | None = None,
    n_folds: int = 5,
    n_repeats: int = 1,
    l1_ratio: float = 0.5,
    penalizer: float | Sequence[float] = (0.03, 0.1, 0.3),
    n_screened: int | None = 50,
    draws: Draws | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Predict survival from pseudo-bulk with a Cox elastic net, and say how well on samples it has not seen.

    Everything is fitted on the training samples of a fold alone: which genes are looked at, their scale, and how strong
    the penalty is (by the concordance in three folds within). Folds never share a donor. The concordance is over pairs
    of samples of the same fold.

    Parameters
    ----------
    pseudobulk
        From :func:`stpred.tl.pseudobulk` (brought to log1p CPM, but for relative values); or any AnnData of samples x
        genes, such as true bulk RNA to compare with, used as it is.
    time, event
        Follow-up (above 0), and whether it ended with the event (1, True) or not (0): columns of ``obs``, or values by
        sample.
    genes
        Genes to learn from, such as those that the model predicts well; None: all.
    groups
        Donor of each sample: column of ``obs``, or values by sample; None: every sample is a donor of its own.
    n_folds, n_repeats
        Folds of the cross-validation, and how often it is repeated with others.
    l1_ratio
        Share of the lasso in the penalty, 0 to 1.
    penalizer
        Strength of the penalty, or several to choose from.
    n_screened
        In each fold only this many genes of the highest Cox score statistic are fitted, since a fit takes about a
        second with 50 and grows with the square; None: all.
    draws
        Train on randomly drawn patients and test on all others, many times, such as
        ``st.Draws(n_train=(75, 100, 125), repeats=1000)`` or ``st.Draws(train_fraction=0.7)``, instead of folds. Fits
        of thousands of genes are fast then (``n_screened=None``): they are the same model by another solver.
    seed
        Of folds and bootstrap.

    Returns
    -------
    DataFrame indexed by sample: ``risk`` (logarithm of the hazard ratio to the mean training sample, averaged over
    repeats), ``time``, ``event``, ``group``, ``fold`` (of the first repeat). ``attrs``: ``concordance``,
    ``concordance_interval`` (95 %, bootstrap over donors; that of these predictions, not of other folds),
    ``concordance_per_repeat``, ``penalizer`` (chosen, by repeat and fold), ``genes`` (by repeat and fold, those with a
    coefficient above 0.001 per standard deviation), ``n_events``.

    With `draws`, one row per draw instead: ``n_train`` patients, ``draw``, ``concordance`` over all pairs of test
    samples, ``penalizer``, ``n_genes`` with a coefficient, ``n_events_train``, ``n_samples_test``; and under
    ``attrs["summary"]`` by ``n_train`` the ``mean``, ``std`` and ``standard_error`` of the concordance. Draws of one
    cohort share patients: the standard error tells how well these draws tell the mean over all draws of this cohort,
    and not how far that of other patients would be.

    Raises
    ------
    InputError
        If there are fewer than two events per fold (or none at all), fewer donors than folds, or values are missing.

    References
    ----------
    Simon et al., J. Stat. Softw. 39 (2011), for the Cox elastic net; fitted by lifelines. Nonchev et al. (2025),
    DeepSpot: Leveraging Spatial Context for Enhanced Spatial Transcriptomics Prediction from H&E Images, medRxiv
    10.1101/2025.02.09.25321567, reports such concordances for pseudo-bulk of TCGA slides, with 75, 100 and 125
    random patients, 1 000 times.

    Examples
    --------
    >>> import numpy as np, anndata as ad, stpred as st
    >>> rng = np.random.default_rng(0)
    >>> bulk = ad.AnnData(rng.normal(size=(60, 4)))
    >>> time, event = rng.exponential(np.exp(-1.5 * bulk.X[:, 2])), rng.random(60) < 0.7
    >>> found = st.tl.survival(bulk, time, event, n_folds=3, penalizer=0.1)
    >>> found.attrs["concordance"] > 0.7
    True
    """
    import pandas as pd

    if draws is None:
        _lifelines()
    n_folds, n_repeats = whole(n_folds, name="n_folds"), whole(n_repeats, name="n_repeats")
    screened = None if n_screened is None else whole(n_screened, name="n_screened", unset=True)
    grid = [positive(p, name="penalizer") for p in np.atleast_1d(np.asarray(penalizer, dtype=object)).tolist()]
    if not grid or not 0 <= l1_ratio <= 1:
        raise InputError(f"`l1_ratio` must be between 0 and 1 and `penalizer` not empty: {l1_ratio!r}, {grid}.")
    X, names = features(pseudobulk, genes)
    t, died = follow_up(pseudobulk, time, event)
    if draws is not None:
        of = sample_groups(pseudobulk, groups)
        return _by_draws(X, t, died, of, draws, grid=grid, l1_ratio=l1_ratio, screened=screened)
    if n_folds < 2 or died.sum() < 2 * n_folds:
        raise InputError(
            f"{int(died.sum())} events in {len(t)} samples are too few for {n_folds} folds: at least two folds and two "
            f"events in each are needed ({2 * max(n_folds, 2)})."
        )
    of = sample_groups(pseudobulk, groups)
    risks, pairs, chosen, used, first = [], [], [], [], None
    for repeat in range(n_repeats):
        fold = folds(died, of, n=n_folds, seed=seed + repeat)
        first = fold if first is None else first
        risk, strength, kept = np.empty(len(t)), [], []
        for k in range(n_folds):
            train = fold != k
            data = (X[train], t[train], died[train])
            best = grid[0] if len(grid) == 1 else _choose(data, of[train], grid, l1_ratio, screened, seed + repeat)
            risk[~train], weights = _fit(*data, X[~train], penalizer=best, l1_ratio=l1_ratio, screened=screened)
            strength.append(best)
            kept.append([str(g) for g in names[np.abs(weights) > 1e-3]])
        risks.append(risk)
        pairs.append(survival_pairs(t, died, risk, fold))
        chosen.append(strength)
        used.append(kept)
    both = (np.mean([p[0] for p in pairs], axis=0), np.mean([p[1] for p in pairs], axis=0))
    shares = [share_of_pairs(both, w) for w in resampled(of, n=_DRAWS, seed=seed)]
    result = pd.DataFrame(
        {"risk": np.mean(risks, axis=0), "time": t, "event": died, "group": of, "fold": first},
        index=pd.Index(pseudobulk.obs_names.astype(str), name="sample"),
    )
    result.attrs = {
        "concordance": share_of_pairs(both),
        "concordance_interval": interval(shares),
        "concordance_per_repeat": [share_of_pairs(p) for p in pairs],
        "penalizer": chosen,
        "genes": used,
        "n_events": int(died.sum()),
    }
    return result


def _by_draws(
    X: NDArray[np.float64], t: NDArray[np.float64], died: NDArray[np.bool_], of: NDArray[Any], draws: Draws, *,
    grid: list[float], l1_ratio: float, screened: int | None,
) -> pd.DataFrame:  # fmt: skip
    """Return the concordance on the samples that are not drawn, by draw."""

    def usable(train: NDArray[np.bool_]) -> bool:
        test = ~train
        comparable = survival_pairs(t[test], died[test], np.zeros(int(test.sum())), np.zeros(int(test.sum())))[1].any()
        return bool(died[train].sum() >= MIN_EVENTS and comparable)

    def score(train: NDArray[np.bool_], seed: int) -> dict[str, float]:
        data = (X[train], t[train], died[train])
        options: dict[str, Any] = {"l1_ratio": l1_ratio, "screened": screened, "fit": _coefficients}
        best = grid[0] if len(grid) == 1 else _choose(data, of[train], grid, seed=seed, **options)
        risk, weights = _fit(*data, X[~train], penalizer=best, **options)
        return {
            "concordance": share_of_pairs(survival_pairs(t[~train], died[~train], risk, np.zeros(len(risk)))),
            "penalizer": best,
            "n_genes": int((np.abs(weights) > 1e-3).sum()),
            "n_events_train": int(died[train].sum()),
        }

    what = f"{MIN_EVENTS} events to train on and a pair to test on"
    return drawn_scores(draws, of, usable=usable, score=score, metric="concordance", what=what)


def _fit(
    X: NDArray[np.float64],
    time: NDArray[np.float64],
    event: NDArray[np.bool_],
    new: NDArray[np.float64],
    *,
    penalizer: float,
    l1_ratio: float,
    screened: int | None,
    fit: Callable[..., NDArray[np.float64]] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the log hazard ratios of new samples and the (g,) coefficients; 0 where nothing could be fitted.

    `fit`: solver by standardised genes, time and event; None: lifelines.
    """
    weights, mean, spread = np.zeros(X.shape[1]), X.mean(axis=0), X.std(axis=0)
    usable = np.flatnonzero(spread > 1e-12)
    if screened is not None and len(usable) > screened:
        rank = np.argsort(-score_statistics(X[:, usable], time, event), kind="stable")
        usable = np.sort(usable[rank[:screened]])
    genes = (X[:, usable] - mean[usable]) / spread[usable]
    solve = _of_lifelines if fit is None else fit
    if len(usable):
        weights[usable] = solve(genes, time, event, penalizer=penalizer, l1_ratio=l1_ratio)
    return (new[:, usable] - mean[usable]) / spread[usable] @ weights[usable], weights


def _of_lifelines(
    genes: NDArray[np.float64],
    time: NDArray[np.float64],
    event: NDArray[np.bool_],
    *,
    penalizer: float,
    l1_ratio: float,
) -> NDArray[np.float64]:
    """Return the (g,) coefficients of lifelines' elastic net; 0 where it does not converge."""
    import pandas as pd

    lifelines = _lifelines()
    frame = pd.DataFrame(genes).add_prefix("g").assign(time=time, event=event)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on collinear genes, which the penalty takes care of
        try:
            cox = lifelines.CoxPHFitter(penalizer=penalizer, l1_ratio=l1_ratio).fit(frame, "time", "event")
        except lifelines.exceptions.ConvergenceError:
            return np.zeros(genes.shape[1])
    return np.asarray(cox.params_.to_numpy(), dtype=np.float64)


def _coefficients(
    genes: NDArray[np.float64],
    time: NDArray[np.float64],
    event: NDArray[np.bool_],
    *,
    penalizer: float,
    l1_ratio: float,
) -> NDArray[np.float64]:
    """Return the (g,) coefficients by the solver that is fast for thousands of genes."""
    return elastic_net(genes, time, event, penalizer=penalizer, l1_ratio=l1_ratio)


def score_statistics(
    X: NDArray[np.float64], time: NDArray[np.float64], event: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return (g,) the score test of a Cox model with each gene alone: high where it goes with the hazard."""
    order = np.argsort(-time, kind="stable")
    X, time, event = X[order] - X.mean(axis=0), time[order], event[order]
    # At risk with an event are all that were followed at least as long; of equal times, the last in this order.
    last = np.searchsorted(-time, -time, side="right") - 1
    n = (last + 1.0)[:, None]
    mean, square = np.cumsum(X, axis=0)[last] / n, np.cumsum(X**2, axis=0)[last] / n
    score, information = (X - mean)[event].sum(axis=0), (square - mean**2)[event].sum(axis=0)
    return np.divide(score**2, information, out=np.zeros_like(score), where=information > 1e-12)


def _choose(
    data: tuple[NDArray[Any], ...],
    groups: NDArray[Any],
    grid: list[float],
    l1_ratio: float,
    screened: int | None,
    seed: int,
    fit: Callable[..., NDArray[np.float64]] | None = None,
) -> float:
    """Return the penalty of the highest concordance in folds of the training samples; of equal ones the strongest."""
    X, time, event = data
    if len(np.unique(groups)) < 2:  # nothing to choose by
        return max(grid)
    fold = folds(event, groups, n=min(_INNER, len(np.unique(groups))), seed=seed)
    found = {}
    for strength in sorted(grid, reverse=True):
        risk = np.empty(len(time))
        for k in np.unique(fold):
            train = fold != k
            risk[~train], _ = _fit(
                X[train], time[train], event[train], X[~train],
                penalizer=strength, l1_ratio=l1_ratio, screened=screened, fit=fit,
            )  # fmt: skip
        found[strength] = share_of_pairs(survival_pairs(time, event, risk, fold))
    return max(found, key=lambda s: np.nan_to_num(found[s]))


def _lifelines() -> Any:
    try:
        import lifelines
    except ImportError as error:
        raise InputError('Survival models need lifelines; install it with pip install "stpred[analysis]".') from error
    return lifelines

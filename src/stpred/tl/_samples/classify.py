from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core.checks import InputError, listing, positive, whole
from stpred.tl._samples.random_draws import drawn_scores
from stpred.tl._samples.sample_folds import class_pairs, folds, interval, resampled, share_of_pairs
from stpred.tl._samples.sample_table import features, sample_groups, sample_values

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray

    from stpred._core.recipes.draws import Draws
    from stpred.tl._samples.sample_folds import Pairs

_INNER = 3
_DRAWS = 1000


def classify(
    pseudobulk: AnnData,
    label: str | Mapping[str, Any] | ArrayLike,
    *,
    genes: Iterable[str] | None = None,
    groups: str | Mapping[str, str] | ArrayLike | None = None,
    n_folds: int = 5,
    n_repeats: int = 1,
    l1_ratio: float = 0.5,
    strength: float | Sequence[float] = (0.01, 0.1, 1.0),
    draws: Draws | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Predict a label of samples from pseudo-bulk with an elastic-net logistic regression, on samples left out.

    Scale and strength of the penalty are learned on the training samples of each fold alone; folds never share a donor.
    Classes are weighted by their rarity. The area under the ROC curve is over pairs of samples of the same fold.

    Parameters
    ----------
    pseudobulk
        As in :func:`stpred.tl.survival`.
    label
        Class of each sample: column of ``obs``, or values by sample.
    genes
        Genes to learn from; None: all.
    groups
        Donor of each sample: column of ``obs``, or values by sample; None: every sample is a donor of its own.
    n_folds, n_repeats
        Folds of the cross-validation, and how often it is repeated with others.
    l1_ratio
        Share of the lasso in the penalty, 0 to 1.
    strength
        Inverse of the penalty (C of scikit-learn), or several to choose from by balanced accuracy in three folds of the
        training samples.
    draws
        Train on randomly drawn patients and test on all others, many times, instead of folds: as in
        :func:`stpred.tl.survival`.
    seed
        Of folds, fits and bootstrap.

    Returns
    -------
    DataFrame indexed by sample: ``label``, ``predicted``, ``p_{class}`` for each class (averaged over repeats),
    ``group``, ``fold`` (of the first repeat). ``attrs``: ``auroc`` (one against the rest, averaged over classes),
    ``f1`` (averaged over classes) and ``balanced_accuracy``, each with ``_interval`` (95 %, bootstrap over donors; that
    of these predictions, not of other folds), ``auroc_per_repeat``, ``strength`` (chosen, by repeat and fold),
    ``classes`` and ``chance`` (balanced accuracy without knowledge).

    With `draws`, one row per draw instead: ``n_train`` patients, ``draw``, ``auroc``, ``f1``, ``balanced_accuracy`` and
    ``n_samples_test``; and under ``attrs["summary"]`` by ``n_train`` the ``mean``, ``std`` and ``standard_error`` of
    ``auroc`` (see :func:`stpred.tl.survival` on what it says).

    Raises
    ------
    InputError
        If there is one class only, a class has fewer donors than there are folds, or labels are missing.

    References
    ----------
    Zou and Hastie, J. R. Stat. Soc. B 67 (2005), for the elastic net; fitted by scikit-learn.

    Examples
    --------
    >>> import numpy as np, anndata as ad, stpred as st
    >>> rng = np.random.default_rng(0)
    >>> bulk = ad.AnnData(rng.normal(size=(40, 5)))
    >>> label = np.where(bulk.X[:, 1] > 0, "inflamed", "desert")
    >>> found = st.tl.classify(bulk, label, n_folds=3)
    >>> found.attrs["auroc"] > 0.9, found.attrs["classes"]
    (True, ['desert', 'inflamed'])
    """
    import pandas as pd

    n_folds, n_repeats = whole(n_folds, name="n_folds"), whole(n_repeats, name="n_repeats")
    grid = [positive(c, name="strength") for c in np.atleast_1d(np.asarray(strength, dtype=object)).tolist()]
    if not grid or not 0 <= l1_ratio <= 1:
        raise InputError(f"`l1_ratio` must be between 0 and 1 and `strength` not empty: {l1_ratio!r}, {grid}.")
    X, _ = features(pseudobulk, genes)
    y, of = sample_values(pseudobulk, label, name="label").astype(str), sample_groups(pseudobulk, groups)
    classes, codes = np.unique(y, return_inverse=True)
    if draws is not None:
        return _by_draws(X, codes, of, draws, grid=grid, l1_ratio=l1_ratio, classes=classes)
    donors = {str(c): len(np.unique(of[y == c])) for c in classes}
    if len(classes) < 2 or n_folds < 2 or min(donors.values()) < n_folds:
        raise InputError(
            f"Two or more classes are needed, each with at least as many donors as there are folds ({n_folds}, and no "
            f"fewer than 2), got donors per class {donors}."
        )
    probability, pairs, chosen, first = np.zeros((len(y), len(classes))), [], [], None
    for repeat in range(n_repeats):
        fold = folds(codes, of, n=n_folds, seed=seed + repeat)
        first = fold if first is None else first
        found, best = np.zeros_like(probability), []
        for k in range(n_folds):
            train = fold != k
            model, c = _fitted(X[train], codes[train], of[train], grid, l1_ratio=l1_ratio, seed=seed + repeat)
            found[np.ix_(~train, model.classes_)] = model.predict_proba(X[~train])
            best.append(c)
        probability += found / n_repeats
        pairs.append([class_pairs(codes == c, found[:, c], fold) for c in range(len(classes))])
        chosen.append(best)
    guess = probability.argmax(axis=1)
    both = [tuple(np.mean([p[c][i] for p in pairs], axis=0) for i in (0, 1)) for c in range(len(classes))]
    scores: dict[str, Callable[[Any], float]] = {
        "auroc": lambda w: _auroc(both, w),
        "f1": lambda w: rates(codes, guess, w, n=len(classes))[0],
        "balanced_accuracy": lambda w: rates(codes, guess, w, n=len(classes))[1],
    }
    result = pd.DataFrame(
        {"label": y, "predicted": classes[guess], **{f"p_{c}": p for c, p in zip(classes, probability.T, strict=True)}},
        index=pd.Index(pseudobulk.obs_names.astype(str), name="sample"),
    ).assign(group=of, fold=first)
    times = resampled(of, n=_DRAWS, seed=seed)
    once = np.ones(len(y))
    result.attrs = {name: score(once) for name, score in scores.items()}
    result.attrs |= {f"{name}_interval": interval([score(w) for w in times]) for name, score in scores.items()}
    result.attrs |= {
        "auroc_per_repeat": [_auroc(p, once) for p in pairs],
        "strength": chosen,
        "classes": classes.tolist(),
        "chance": 1 / len(classes),
    }
    return result


def _by_draws(
    X: NDArray[np.float64], codes: NDArray[Any], of: NDArray[Any], draws: Draws, *, grid: list[float], l1_ratio: float,
    classes: NDArray[Any],
) -> pd.DataFrame:  # fmt: skip
    """Return the scores on the samples that are not drawn, by draw."""
    n = len(classes)
    if n < 2:
        raise InputError(f"All samples have the label {listing(classes)}; two or more classes are needed.")

    def usable(train: NDArray[np.bool_]) -> bool:
        return len(np.unique(codes[train])) == n and len(np.unique(codes[~train])) > 1

    def score(train: NDArray[np.bool_], seed: int) -> dict[str, float]:
        model, _ = _fitted(X[train], codes[train], of[train], grid, l1_ratio=l1_ratio, seed=seed)
        found, truth = model.predict_proba(X[~train]), codes[~train]
        once = np.ones(len(truth))
        pairs = [class_pairs(truth == c, found[:, c], np.zeros(len(truth))) for c in range(n)]
        f1, accuracy = rates(truth, found.argmax(axis=1), once, n=n)
        return {"auroc": _auroc(pairs, once), "f1": f1, "balanced_accuracy": accuracy}

    return drawn_scores(draws, of, usable=usable, score=score, metric="auroc", what="sample of every class")


def rates(truth: NDArray[Any], guess: NDArray[Any], times: NDArray[Any], *, n: int) -> tuple[float, float]:
    """Return F1 averaged over classes, and balanced accuracy, each sample counted (S,) `times`.

    Classes that are not there have no say in balanced accuracy; in F1 only those that are not guessed either.
    """
    table = np.zeros((n, n))
    np.add.at(table, (truth, guess), times)
    hits, true, guessed = np.diag(table), table.sum(axis=1), table.sum(axis=0)
    f1 = (2 * hits)[true + guessed > 0] / (true + guessed)[true + guessed > 0]
    return float(f1.mean()), float((hits[true > 0] / true[true > 0]).mean())


def _auroc(pairs: Sequence[Pairs | Any], times: NDArray[Any]) -> float:
    """Return the area averaged over the classes that have pairs."""
    found = np.array([share_of_pairs(p, times) for p in pairs])
    return float(found[np.isfinite(found)].mean()) if np.isfinite(found).any() else float("nan")


def _fitted(
    X: NDArray[np.float64], y: NDArray[Any], groups: NDArray[Any], grid: list[float], *, l1_ratio: float, seed: int
) -> tuple[Any, float]:
    """Return the pipeline of scale and regression fitted to training samples, and its strength."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # Until 1.8, scikit-learn had to be told that a penalty with an l1_ratio is the elastic net; since then it warns.
    old = tuple(int(v) for v in version("scikit-learn").split(".")[:2]) < (1, 8)
    how = {"penalty": "elasticnet"} if old else {}

    def fit(x: NDArray[np.float64], labels: NDArray[Any], c: float) -> Any:
        regression = LogisticRegression(
            C=c, l1_ratio=l1_ratio, solver="saga", max_iter=2000, class_weight="balanced", random_state=seed, **how
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the last digits decide nothing here
            return make_pipeline(StandardScaler(), regression).fit(x, labels)

    if len(grid) == 1 or len(np.unique(groups)) < 2:  # nothing to choose, or nothing to choose by
        return fit(X, y, min(grid)), min(grid)
    fold = folds(y, groups, n=min(_INNER, len(np.unique(groups))), seed=seed)
    found = {}
    for c in sorted(grid):
        guess = np.empty_like(y)
        for k in np.unique(fold):
            train = fold != k
            several = len(np.unique(y[train])) > 1
            guess[~train] = fit(X[train], y[train], c).predict(X[~train]) if several else y[train][0]
        found[c] = balanced_accuracy_score(y, guess)
    best = max(found, key=lambda c: found[c])  # of equal ones the strongest penalty
    return fit(X, y, best), best

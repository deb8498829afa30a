"""Scores of all genes of a slide, beside a loop over genes with SciPy and scikit-learn."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from stpred import metrics

N_SPOTS, N_GENES = 5_000, 5_000
LOOP_GENES = 100
"""Genes that the loop goes through; its time is scaled to all of them."""


@cache
def _slide() -> tuple[np.ndarray, np.ndarray]:
    """Return predicted and observed values: logarithms of counts, with the zeros and ties that these have."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(1.0, 1.0, size=(1, N_GENES)), size=(N_SPOTS, N_GENES))
    observed = np.log1p(counts).astype(np.float32)
    return (observed + rng.normal(size=observed.shape)).astype(np.float32), observed


def _auroc(predicted: np.ndarray, observed: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    low, high = np.percentile(observed, [25, 75])
    kept = (observed >= high) | (observed <= low)
    return roc_auc_score(observed[kept] >= high, predicted[kept]) if low < high else np.nan


def _loops() -> dict[str, Callable[[np.ndarray, np.ndarray], Any]]:
    from scipy import stats
    from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

    return {
        "pearson": stats.pearsonr,
        "spearman": stats.spearmanr,
        "r2": lambda p, o: r2_score(o, p),
        "rmse": lambda p, o: root_mean_squared_error(o, p),
        "mae": lambda p, o: mean_absolute_error(o, p),
        "auroc": _auroc,
    }


def _least(call: Callable[[], Any], *, clock: Callable[[], float], repeats: int = 3) -> float:
    spent = []
    for _ in range(repeats):
        start = clock()
        call()
        spent.append(clock() - start)
    return min(spent)


class Scores:
    """5 000 spots, 5 000 genes."""

    timeout = 600
    params = (("pearson", "spearman", "r2", "rmse", "mae", "auroc"),)
    param_names = ("score",)

    def setup(self, score: str) -> None:
        self.predicted, self.observed = _slide()

    def track_seconds(self, score: str) -> float:
        """All genes at once."""
        return _least(lambda: getattr(metrics, score)(self.predicted, self.observed), clock=time.perf_counter)

    def track_ratio(self, score: str) -> float:
        """CPU time of it over that of a loop, gene by gene."""
        one = _loops()[score]
        columns = [(self.predicted[:, g].copy(), self.observed[:, g].copy()) for g in range(LOOP_GENES)]
        loop = _least(lambda: [one(p, o) for p, o in columns], clock=time.process_time) * N_GENES / LOOP_GENES
        spent = _least(lambda: getattr(metrics, score)(self.predicted, self.observed), clock=time.process_time)
        return spent / loop

    track_seconds.unit = "s"  # type: ignore[attr-defined]


class Null:
    """Test of dispersion of 5 000 genes at 5 000 spots, of which the rare ones are computed exactly."""

    def setup(self) -> None:
        rng = np.random.default_rng(0)
        self.counts = rng.poisson(rng.gamma(0.5, 2.0, size=(1, N_GENES)), size=(N_SPOTS, N_GENES))

    def time_rmax_test(self) -> None:
        metrics.rmax_test(self.counts)

"""Models of samples that are trained on randomly drawn patients and tested on all others, many times."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core.checks import InputError
from stpred._core.progress import track
from stpred._core.recipes.draws import Draws

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

_TRIES = 200


def drawn_scores(
    draws: Any,
    groups: NDArray[Any],
    *,
    usable: Callable[[NDArray[np.bool_]], bool],
    score: Callable[[NDArray[np.bool_], int], dict[str, float]],
    metric: str,
    what: str,
) -> pd.DataFrame:
    """Return one row per draw, and in ``attrs["summary"]`` means with their standard errors.

    `usable`: whether something can be learned from a training set, (S,) boolean, and tested on the others; `what` it
    needs, for the message. `score`: scores of a model of it, with a seed of its own. `metric`: the one to summarise.
    """
    import pandas as pd

    if not isinstance(draws, Draws):
        raise InputError(f"`draws` must be a stpred.Draws, got {draws!r}.")
    sizes = draws.sizes(len(np.unique(groups)))
    rows = []
    todo = [(size, repeat) for size in sizes for repeat in range(draws.repeats)]
    for size, repeat in track(iter(todo), total=len(todo), describe="draws", weight=lambda _: 1):
        rng = draws.rng(size, repeat)
        for _ in range(_TRIES):
            train = draws.train(groups, rng, size)
            if usable(train):
                break
        else:
            raise InputError(
                f"{_TRIES} draws of {size} patients in a row had no {what}; train on more or fewer of them."
            )
        found = score(train, int(rng.integers(2**31)))
        rows.append({"n_train": size, "draw": repeat, **found, "n_samples_test": int((~train).sum())})
    frame = pd.DataFrame(rows)
    frame.attrs = {"metric": metric, "summary": draw_summary(frame, metric).to_dict("records")}
    return frame


def draw_summary(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return mean, standard deviation and standard error of the mean of a score over the draws of each size."""
    by_size = frame.groupby("n_train", sort=True)[metric]
    result = by_size.agg(["mean", "std", "count"]).reset_index()
    result["standard_error"] = result["std"] / np.sqrt(result["count"])
    return result.rename(columns={"count": "n_draws"})

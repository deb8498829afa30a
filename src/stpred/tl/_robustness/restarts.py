from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stpred import data, metrics
from stpred._core import keys
from stpred._core.checks import InputError, whole
from stpred._core.places import Place
from stpred._core.progress import track
from stpred.tl._robustness.engine import Trial

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stpred.models import BaseConfig, Model


def restarts(
    slides: SpatialData | Mapping[str, SpatialData],
    model: str | BaseConfig | type[Model] = "xfuse",
    *,
    n_restarts: int = 4,
    n_genes: int | None = None,
    n_samples: int = 100,
    shapes_key: str | None = None,
    table_key: str | None = None,
    image_key: str | None = None,
    seed: int = 0,
    device: str | None = None,
    train_options: Mapping[str, Any] | None = None,
    coordinate_system: str = keys.UM,
) -> pd.DataFrame:
    """Train a model several times from other seeds, and compute the similarity of the predictions.

    It shows the dependence of results on the seed, not whether they are right: all runs may agree on what is wrong.
    Families with a closed form do not depend on the seed, so that their runs are the same.

    Parameters
    ----------
    slides
        One SpatialData object, or a mapping of slide names to them, with raw counts. They are left as they are.
    model
        Family name, class or ``Config`` of the model that is trained.
    n_restarts
        Number of trainings, two or more, with the seeds `seed`, ``seed + 1``, ...
    n_genes
        Genes that are compared: those of highest mean count, among the model's; None: all.
    n_samples
        Of generative models: draws from the posterior, the same in all runs, whose mean is compared. With few of them
        the draws' noise counts as a difference between runs.
    shapes_key, table_key, image_key, seed, device, train_options, coordinate_system
        As in :func:`stpred.tl.withheld_spots`.

    Returns
    -------
    DataFrame with one row per pair of runs, ``first`` and ``second`` (their seeds): ``pooled``, the Pearson correlation
    over all values of genes x measured locations of all slides, counts as log1p; and ``median_gene``, the median of the
    genes' own correlations over the locations. The former is high whenever runs agree on which genes are frequent.

    Raises
    ------
    InputError
        If `n_restarts` is below two, or training refuses an option.

    References
    ----------
    Bergenstråhle et al., Super-resolved spatial transcriptomics by deep data fusion, Nature Biotechnology 40 (2022).

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(size_um=(800, 800), n_genes=20)
    >>> config = st.models.MLP.Config(hidden=(16,), epochs=2)
    >>> st.tl.restarts(slide, config, n_restarts=3, shapes_key="spots")[["first", "second"]].to_numpy().tolist()
    [[0, 1], [0, 2], [1, 2]]
    """
    n_restarts = whole(n_restarts, name="n_restarts")
    if n_restarts < 2:
        raise InputError(f"`n_restarts` must be at least 2 trainings, got {n_restarts}.")
    place = Place(shapes_key, image_key, table_key, coordinate_system=coordinate_system)
    trial = Trial(model, place, seed, device, train_options, n_genes, (), n_samples)
    slides = data.as_slides(slides)
    regions = list(trial.regions(slides).values())
    runs: dict[int, NDArray[np.float32]] = {}
    for k in track(range(seed, seed + n_restarts), total=n_restarts, describe="restarts"):
        trained = trial.train(slides, seed=k)
        genes = trial.top_genes(trained, regions)
        # Posteriors are read with one seed throughout: only the trainings differ.
        runs[k] = np.concatenate([_log_predictions(trial, trained, region, genes) for region in regions])
    rows = []
    for first, second in combinations(runs, 2):
        pooled = metrics.pearson(runs[first].reshape(-1, 1), runs[second].reshape(-1, 1))[0]
        median = metrics.summarise(metrics.pearson(runs[first], runs[second]))["median"]
        rows.append({"first": first, "second": second, "pooled": float(pooled), "median_gene": median})
    return pd.DataFrame(rows)


def _log_predictions(trial: Trial, model: Model, region: data.Region, genes: list[str]) -> NDArray[np.float32]:
    """Return (n, g) predictions in the order of a region's locations, counts as log1p."""
    at, values, _ = trial.predict(model, region, genes)
    values = values[np.argsort(at)]
    counts = model.record.target == "counts" and model.config.per is None  # amounts per so many are logarithms already
    return np.log1p(values.clip(0)) if counts else values

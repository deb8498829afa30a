from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stpred import data, metrics
from stpred._core.checks import InputError, whole
from stpred._core.progress import track
from stpred.tl._robustness.stress import Job, highest, read

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stpred.models import BaseConfig, Model


def restarts(
    slides: SpatialData | Mapping[str, SpatialData],
    model: str | BaseConfig | type[Model] = "xfuse",
    *,
    n: int = 4,
    n_genes: int | None = None,
    seed: int = 0,
    shapes_key: str | None = None,
    table_key: str | None = None,
    n_samples: int = 100,
    **training: Any,
) -> pd.DataFrame:
    """Train a model several times from other seeds, and say how alike the predictions are.

    It says how far conclusions hang on chance, not whether they are right: all runs may agree on what is wrong.
    Families with a closed form do not depend on the seed, so that their runs are the same.

    Parameters
    ----------
    slides
        One SpatialData object, or a mapping of slide names to them, with raw counts. They are left as they are.
    model
        Family name, class or ``Config`` of the model that is trained.
    n
        Number of trainings, two or more, with the seeds `seed`, ``seed + 1``, ...
    n_genes
        Genes that are compared: those of highest mean count, among the model's; None: all.
    seed, shapes_key, table_key, **training
        As in :func:`stpred.tl.withheld_spots`.
    n_samples
        Of generative models: draws from the posterior, the same in all runs, whose mean is compared. With few of them
        the draws' noise counts as a difference between runs.

    Returns
    -------
    DataFrame with one row per pair of runs, ``first`` and ``second`` (their seeds): ``pooled``, the Pearson correlation
    over all values of genes x measured locations of all slides, counts as log1p; and ``median_gene``, the median of the
    genes' own correlations over the locations. The former is high whenever runs agree on which genes are frequent.

    Raises
    ------
    InputError
        If `n` is below two, or training refuses what it is given.

    References
    ----------
    Bergenstråhle et al., Super-resolved spatial transcriptomics by deep data fusion, Nature Biotechnology 40 (2022).

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(size_um=(800, 800), n_genes=20)
    >>> config = st.models.MLP.Config(hidden=(16,), epochs=2)
    >>> st.tl.restarts(slide, config, n=3, shapes_key="spots")[["first", "second"]].to_numpy().tolist()
    [[0, 1], [0, 2], [1, 2]]
    """
    n = whole(n, name="n")
    if n < 2:
        raise InputError(f"`n` must be at least 2 trainings, got {n}.")
    job = Job.of(
        model, training, seed=seed, shapes_key=shapes_key, table_key=table_key, n_genes=n_genes, n_samples=n_samples
    )
    slides = data.as_slides(slides)
    regions = list(job.regions(slides).values())
    runs: dict[int, NDArray[np.float32]] = {}
    for k in track(range(n), total=n, describe="restarts"):
        trained = job.trained(slides, seed=job.seed + k)
        names = highest(trained, regions, job.n_genes)
        # Read with one seed throughout: it is the trainings that differ.
        runs[job.seed + k] = np.concatenate([_logged(trained, r, names, job) for r in regions])
    rows = []
    for first, second in combinations(runs, 2):
        pooled = metrics.pearson(runs[first].reshape(-1, 1), runs[second].reshape(-1, 1))[0]
        genes = metrics.summarise(metrics.pearson(runs[first], runs[second]))["median"]
        rows.append({"first": first, "second": second, "pooled": float(pooled), "median_gene": genes})
    return pd.DataFrame(rows)


def _logged(trained: Model, region: data.Region, names: list[str], job: Job) -> NDArray[np.float32]:
    """Return (n, g) predictions at a region's locations, in its order, counts as log1p."""
    at, values, _ = read(trained, region, names, replace(job, intervals=()))
    values = values[np.argsort(at)]
    counts = (
        trained.record.target == "counts" and trained.config.per is None
    )  # those per so many are on a log scale already
    return np.log1p(values.clip(0)) if counts else values

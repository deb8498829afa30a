from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stpred import data
from stpred._core.checks import InputError, listing
from stpred._core.progress import track
from stpred.tl._robustness.stress import COLUMNS, SCALE, Job, highest, score
from stpred.training import group_folds

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stpred.models import BaseConfig, Model

BASELINES = ("mean", "intensity")

_SHARED = ("groups", "validation", "device")
"""Arguments of training that the baselines are trained with, too."""


def withheld_sections(
    slides: Mapping[str, SpatialData],
    model: str | BaseConfig | type[Model] = "xfuse",
    *,
    groups: Mapping[str, str] | str = "slide",
    baselines: bool = True,
    n_genes: int = 100,
    seed: int = 0,
    shapes_key: str | None = None,
    table_key: str | None = None,
    intervals: Sequence[float] = (0.5, 0.9),
    n_samples: int = 100,
    **training: Any,
) -> pd.DataFrame:
    """Leave each group of sections out in turn, train on the others, and score the model on them.

    What is told of a model on new tissue. The model is trained once per group. For settings to be chosen, or several
    models compared with features computed once, see :func:`stpred.tl.cross_validate`.

    Parameters
    ----------
    slides
        Names to SpatialData objects with raw counts, two or more; they are left as they are. For families that learn
        from images alone, slides without counts may be among them and are trained on in every fold.
    model
        Family name, class or ``Config`` of the model that is trained.
    groups
        Slide to donor, all of whose sections are left out together; or ``"slide"``: each section is left out by itself,
        though others of its donor are trained on (``donor_shared`` then says True).
    baselines
        Also score the training mean and a regression on colour alone (families ``"mean"`` and ``"intensity"``) of the
        same genes, on the same scale, at the same locations: what is to be beaten. The former has no correlation.
    n_genes, seed, shapes_key, table_key, intervals, n_samples, **training
        As in :func:`stpred.tl.withheld_spots`.

    Returns
    -------
    As of :func:`stpred.tl.withheld_spots`, with columns ``fold`` (the groups left out) and ``donor_shared``.

    Raises
    ------
    InputError
        If there are fewer than two groups with counts, or training refuses what it is given.

    References
    ----------
    Bergenstråhle et al., Super-resolved spatial transcriptomics by deep data fusion, Nature Biotechnology 40 (2022).

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(2, size_um=(600, 600), n_genes=20)
    >>> scores = st.tl.withheld_sections(slides, "ridge", n_genes=5, shapes_key="spots")
    >>> scores["model"].unique().tolist()
    ['ridge', 'mean', 'intensity']
    """
    job = Job.of(
        model, training, seed=seed, shapes_key=shapes_key, table_key=table_key,
        n_genes=n_genes, intervals=intervals, n_samples=n_samples,
    )  # fmt: skip
    slides, regions = job.on_one_library(data.as_slides(slides))
    donors = data.donor_folds(list(regions), groups)
    if len(set(donors.values())) < 2:
        raise InputError(
            f"There must be at least two groups of sections with counts, got {listing(sorted(set(donors.values())))} "
            f"of the slides {listing(regions)}."
        )
    if not isinstance(groups, str):
        given = data.donor_folds(list(slides), groups)
        job = replace(job, training=job.training | {"groups": given})
    folds = group_folds(donors, n_folds=None)
    parts = []
    for name, _, test in track(folds, total=len(folds), describe="sections"):
        seen = {s: sdata for s, sdata in slides.items() if s not in test}
        learned = [regions[s] for s in regions if s not in test]
        trained = job.trained(seen)
        names = highest(trained, learned, job.n_genes)
        scored: dict[str, Any] = {}
        for s in test:
            found, scored[s] = score(trained, regions[s], names, job)
            parts.append(found.assign(fold=name))
        shared = [g for k, g in enumerate(names) if all(r.known(names)[k] for r in learned)]
        for baseline in BASELINES if baselines and shared else ():
            some = {k: v for k, v in job.training.items() if k in _SHARED}
            simple = replace(job, model=baseline, takes_images=False, training=some)
            measured = {r.slide: slides[r.slide] for r in learned}
            fitted = simple.trained(measured, genes=shared, target=trained.record.training[SCALE])
            for s in test:
                found, _ = score(fitted, regions[s], shared, simple, rows=np.asarray(scored[s]))
                parts.append(found.assign(fold=name))
    found = pd.concat(parts, ignore_index=True)
    found = found.assign(check="withheld_sections", donor_shared=isinstance(groups, str))
    return found[[*COLUMNS, "fold", "donor_shared"]]

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from stpred import data
from stpred._core import keys
from stpred._core.checks import InputError, listing
from stpred._core.places import Place
from stpred._core.progress import track
from stpred.tl._robustness.engine import COLUMNS, SCALE, Trial
from stpred.training import group_folds

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stpred.models import BaseConfig, Model

BASELINES = ("mean", "intensity", "colour")

_SHARED = ("groups", "validation")
"""Options of training that the baselines are trained with, too."""


def withheld_sections(
    slides: Mapping[str, SpatialData],
    model: str | BaseConfig | type[Model] = "xfuse",
    *,
    groups: Mapping[str, str] | str = "slide",
    baselines: bool = True,
    context: bool = False,
    n_genes: int = 100,
    levels: Sequence[float] = (0.5, 0.9),
    n_samples: int = 100,
    shapes_key: str | None = None,
    table_key: str | None = None,
    image_key: str | None = None,
    seed: int = 0,
    device: str | None = None,
    train_options: Mapping[str, Any] | None = None,
    coordinate_system: str = keys.UM,
) -> pd.DataFrame:
    """Leave each group of sections out in turn, train on the others, and score the model on them.

    How well a model does on new tissue. The model is trained once per group. To choose settings, or to compare several
    models with features computed once, see :func:`stpred.tl.cross_validate`.

    Parameters
    ----------
    slides
        Names to SpatialData objects with raw counts, two or more; they are left as they are. For families that learn
        from images alone, slides without counts may be among them and are trained on in every fold.
    model
        Family name, class or ``Config`` of the model that is trained.
    groups
        Slide to donor, all of whose sections are held out together; or ``"slide"``: each section is held out by itself,
        though others of its donor are trained on (``donor_shared`` then says True).
    baselines
        Also score the training mean and two regressions on colour alone (families ``"mean"``, ``"intensity"`` and
        ``"colour"``) of the same genes, on the same scale, at the same locations: what is to be beaten. The mean has no
        correlation.
    context
        Also give what the scores are read against: ``library_size``, ``neighbour_average`` and ``ceiling``, as
        :func:`stpred.tl.cross_validate` does. :func:`stpred.report` shows scores on raw counts only beside these.
    n_genes, levels, n_samples, shapes_key, table_key, image_key, seed, device, train_options, coordinate_system
        As in :func:`stpred.tl.withheld_spots`.

    Returns
    -------
    As of :func:`stpred.tl.withheld_spots`, with ``fold`` the groups held out, ``split`` ``"donor"`` or ``"slide"``, and
    ``donor_shared`` False where `groups` names donors.

    Raises
    ------
    InputError
        If there are fewer than two groups with counts, or training refuses an option.

    References
    ----------
    Bergenstråhle et al., Super-resolved spatial transcriptomics by deep data fusion, Nature Biotechnology 40 (2022).

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(2, size_um=(600, 600), n_genes=20)
    >>> scores = st.tl.withheld_sections(slides, "ridge", n_genes=5, shapes_key="spots")
    >>> scores["model"].unique().tolist()
    ['ridge', 'mean', 'intensity', 'colour']
    """
    place = Place(shapes_key, image_key, table_key, coordinate_system=coordinate_system)
    trial = Trial(model, place, seed, device, train_options, n_genes, levels, n_samples)
    if "groups" in trial.arguments:
        raise InputError("`train_options` takes no 'groups' here; pass `groups` itself.")
    slides, regions = trial.on_one_library(data.as_slides(slides))
    donors = data.donor_folds(list(regions), groups)
    if len(set(donors.values())) < 2:
        raise InputError(
            f"There must be at least two groups of sections with counts, got {listing(sorted(set(donors.values())))} "
            f"of the slides {listing(regions)}."
        )
    if not isinstance(groups, str):
        trial = replace(trial, options={**trial.arguments, "groups": data.donor_folds(list(slides), groups)})
    folds = group_folds(donors, n_folds=None)
    parts = []
    for name, _, test in track(folds, total=len(folds), describe="sections"):
        training = {s: sdata for s, sdata in slides.items() if s not in test}
        found = _score_fold(trial, training, regions, test, baselines=BASELINES if baselines else (), context=context)
        parts += [frame.assign(fold=name) for frame in found]
    found = pd.concat(parts, ignore_index=True)
    found = found.assign(
        check="withheld_sections",
        donor_shared=isinstance(groups, str),
        split="slide" if isinstance(groups, str) else "donor",
        donor=found["slide"].map(donors),
    )
    return found[COLUMNS]


def _score_fold(
    trial: Trial,
    slides: Mapping[str, SpatialData],
    regions: Mapping[str, data.Region],
    test: Sequence[str],
    *,
    baselines: Sequence[str],
    context: bool,
) -> list[pd.DataFrame]:
    """Train a model and the baselines on `slides`, and score each of them on the test slides."""
    measured = [region for s, region in regions.items() if s in slides]
    model = trial.train(slides)
    genes = trial.top_genes(model, measured)
    parts, rows = [], {}
    for s in test:
        frame, rows[s] = trial.score(model, regions[s], genes)
        parts.append(frame)
        if context:
            parts.append(trial.context(model, regions[s], genes, rows[s], places=True))
    shared = [g for k, g in enumerate(genes) if all(r.measures(genes)[k] for r in measured)]
    for baseline in baselines if shared else ():
        options = {k: v for k, v in trial.arguments.items() if k in _SHARED}
        simple = replace(trial, model=baseline, options=options)
        fitted = simple.train(
            {r.slide: slides[r.slide] for r in measured}, genes=shared, target=model.record.training[SCALE]
        )
        parts += [simple.score(fitted, regions[s], shared, rows=rows[s])[0] for s in test]
    return parts

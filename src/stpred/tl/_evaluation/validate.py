from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stpred import data
from stpred._core import keys
from stpred._core.checks import InputError, listing, warn
from stpred._core.expression.gene_names import mismatch
from stpred._core.expression.library import Library
from stpred._core.places import Place
from stpred._core.targets import LOG_SHARE, SCALES, TARGETS
from stpred.comparison.scoring import scores, tidy
from stpred.inference.predictor import Predictor
from stpred.inference.provenance import trained_on
from stpred.models import Model
from stpred.models.ood import ood_scores
from stpred.tl._evaluation.cross_validate import COLUMNS, refuse_context_names, scales_of
from stpred.tl._evaluation.fold_scores import context_rows, measurement, pooled_rows

if TYPE_CHECKING:
    from spatialdata import SpatialData


def validate(
    slides: Mapping[str, SpatialData],
    models: Model | str | Path | Mapping[str, Any] | Sequence[Any],
    *,
    groups: Mapping[str, str] | str,
    genes: Iterable[str] | None = None,
    shapes_key: str | None = None,
    table_key: str | None = None,
    layer: str | None = None,
    image_key: str | None = None,
    cells_key: str | None = None,
    scored_on: str | Sequence[str] | None = None,
    encoder: Any = None,
    device: str | None = None,
    coordinate_system: str = keys.UM,
) -> pd.DataFrame:
    """Score trained models on slides of another cohort (external validation).

    The models stay as they are. What they predict is compared as :func:`stpred.tl.cross_validate` compares it, and the
    result is the same frame, which :func:`stpred.tl.summarise`, :func:`stpred.tl.rank_models` and
    :func:`stpred.report` take.

    Parameters
    ----------
    slides
        Names to SpatialData objects with measured raw counts. Slides, or donors, that a model was trained on are
        refused.
    models
        A trained model or the folder of one, a list of them, or a mapping of names to them.
    groups
        Slide to donor, required; ``"slide"``: each slide is scored by itself, and as its donor may be one that was
        trained on, every row says ``donor_shared=True``.
    genes
        Genes that are scored; None: of each model all that every slide measured.
    shapes_key, table_key, layer, image_key, cells_key, coordinate_system
        As in :func:`stpred.tl.cross_validate`; regions default to the models' own.
    scored_on
        As in :func:`stpred.tl.cross_validate`; None: log1p CP10k.
    encoder, device
        As in :func:`stpred.tl.predict`.

    Returns
    -------
    Tidy DataFrame as of :func:`stpred.tl.cross_validate`, with ``fold`` the donor and ``split`` ``"external"``; there
    is no ``training_mean``, for which the training slides would be needed. ``attrs["in_distribution"]`` has for each
    model and slide the share of locations that look like those of training (NaN where these are not known).

    Where a slide measured other genes than a model's training tables, library sizes are counted over those that both
    have, as far as that is possible; a warning says so.

    Raises
    ------
    InputError
        If a slide was trained on (found by its image, name or donor), has no donor, or no gene is shared.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(4, size_um=(500, 500), n_genes=20)
    >>> other = {name: slides.pop(name) for name in ("donor2", "donor3")}
    >>> model = st.tl.train(slides, "ridge", shapes_key="spots")
    >>> scores = st.tl.validate(other, model, groups={"donor2": "C", "donor3": "D"}, shapes_key="spots")
    >>> scores["fold"].unique().tolist()
    ['C', 'D']
    """
    slides = data.as_slides(slides)
    donors = data.donor_folds(list(slides), groups)
    scales = scales_of(scored_on, None)
    predictors = {name: Predictor.of(m, encoder=encoder, device=device) for name, m in _named(models).items()}
    place = Place(shapes_key, image_key, table_key, layer, coordinate_system)
    cells = any(p.model.needs.cells for p in predictors.values())
    if cells_key is not None and not cells:
        raise InputError("`cells_key` is for models that see cells, and none of these does.")
    prefer = next(iter(predictors.values())).model.record.region
    regions = {s: data.read_region(sdata, place, slide=s, measured=True, prefer=prefer) for s, sdata in slides.items()}
    if groups != "slide":
        data.refuse_copies(regions, donors)
    if cells:
        prefer = next(p.model.record.cells for p in predictors.values() if p.model.needs.cells)
        regions = {s: data.with_cells(r, cells_key=cells_key, prefer=prefer) for s, r in regions.items()}
    rows, usual, scored = [], {}, {}
    for name, predictor in predictors.items():
        _refuse_learned(name, predictor.model, regions, {} if groups == "slide" else donors)
        scored[name] = _scored_genes(name, predictor.model, regions, genes)
        found, usual[name] = _score(predictor, regions, donors, scored[name], scales)
        rows.append(found.assign(model=name))
    named = list(dict.fromkeys(g for names in scored.values() for g in names))
    rows += [_context(region, donors[s], named, scales) for s, region in regions.items()]
    result = pd.concat(rows, ignore_index=True).assign(donor_shared=groups == "slide", split="external")
    result["donor"] = result["slide"].map(donors).fillna(result["fold"])
    result = result[COLUMNS]
    result.attrs |= {
        "in_distribution": usual,
        "n_locations": {s: len(r.coords_um) for s, r in regions.items()},
    }
    return result


def _named(models: Any) -> dict[str, Any]:
    """Return models by name: the given ones, or those of their records."""
    if isinstance(models, Mapping):
        named = {str(k): v for k, v in models.items()}
    else:
        listed = list(models) if isinstance(models, (list, tuple)) else [models]
        named = {}
        for model in listed:
            loaded = Predictor.of(model).model if not isinstance(model, Model) else model
            if loaded.record.name in named:
                raise InputError(
                    f"Two models are called {loaded.record.name!r}; give them names with a mapping, or name= in "
                    "stpred.tl.train."
                )
            named[loaded.record.name] = loaded
    if not named:
        raise InputError("`models` is empty.")
    refuse_context_names(named)
    return named


def _refuse_learned(name: str, model: Model, regions: Mapping[str, data.Region], donors: Mapping[str, str]) -> None:
    """Refuse slides that a model was trained on, whatever says so: image, name or donor."""
    known = model.record.training.get("slides", {})
    if seen := [s for s, r in regions.items() if trained_on(model, r, donors.get(s, ""))]:
        raise InputError(
            f"Model {name!r} was trained on {listing(seen)} (or on their donors); validate it on others, or see "
            "stpred.tl.cross_validate."
        )
    if named := [s for s in regions if s in known]:
        raise InputError(
            f"Model {name!r} was trained on slides called {listing(named)}, if with other images; if these are other "
            "slides, give them other names."
        )


def _scored_genes(
    name: str, model: Model, regions: Mapping[str, data.Region], wanted: Iterable[str] | None
) -> list[str]:
    """Return the genes of a model that are scored: those wanted that every slide measured, in the model's order."""
    own = model.record.genes
    if wanted is not None:
        chosen = list(dict.fromkeys(str(g) for g in ([wanted] if isinstance(wanted, str) else wanted)))
        if unknown := [g for g in chosen if g not in set(own)]:
            raise InputError(f"Model {name!r} does not predict {listing(unknown)}.")
        own = [g for g in own if g in set(chosen)]
    lacking = {g for r in regions.values() for g, there in zip(own, r.measures(own), strict=True) if not there}
    found = [g for g in own if g not in lacking]
    if not found:
        region = next(r for r in regions.values() if not r.measures(own).all())
        theirs = [] if region.var is None else [str(g) for g in region.var.index]
        hint = mismatch(own, theirs)
        raise InputError(
            f"No gene of model {name!r} ({listing(own[:3])}) was measured on all slides (slide {region.slide!r} has "
            f"{listing(theirs[:3])}){'; ' + hint if hint else ''}."
        )
    if lacking:
        warn(
            f"{len(lacking)} of {len(own)} genes of model {name!r} were not measured on every slide and are not scored."
        )
    return found


def _score(
    predictor: Predictor,
    regions: Mapping[str, data.Region],
    donors: Mapping[str, str],
    genes: list[str],
    scales: list[str],
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Return a model's scores on every slide, and the share of each one's locations that look like training."""
    model = predictor.model
    record, per = model.record, model.config.per
    own = record.target if record.target in SCALES and per is None else TARGETS[0]
    predictor = replace(predictor, columns=pd.Index(record.genes).get_indexer(genes).tolist())
    parts, usual = [], {}
    pairs: dict[tuple[str, str], list[tuple[Any, Any]]] = {}
    for s, region in regions.items():
        if own in (TARGETS[0], LOG_SHARE):
            region, _ = data.on_library(region, Library.parse(record.library))
        applied = predictor.apply(region)
        predicted = model.as_scored(applied.mean)
        score = ood_scores(applied.distance, record.training.get("slide_limit"))
        usual[s] = float("nan") if np.isnan(score).all() else float((score <= 0).mean())
        for scale in scales:
            truth = measurement(region, genes, scale, n_measured=record.n_measured)
            found = scores(predicted, truth, comparable=own == scale and record.target != "relative")
            parts.append(tidy(found, genes).assign(slide=s, fold=donors[s], target=scale))
            pairs.setdefault((donors[s], scale), []).append((predicted, truth.observed))
    parts += [
        pooled_rows(sides, genes, fold=fold, scale=scale).assign(fold=fold) for (fold, scale), sides in pairs.items()
    ]
    return pd.concat(parts).assign(chosen="", trained_on=record.training.get("target", record.target)), usual


def _context(region: data.Region, donor: str, names: list[str], scales: list[str]) -> pd.DataFrame:
    parts = [
        row.assign(target=scale, trained_on=scale)
        for scale in scales
        for row in context_rows(measurement(region, names, scale, n_measured=None), names)
    ]
    return pd.concat(parts).assign(slide=region.slide, fold=donor, chosen="")

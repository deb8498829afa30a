"""Train on transformed slides, predict on the slides as they are, compare: what the robustness checks share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stpred import data, metrics
from stpred._core import keys
from stpred._core.checks import InputError, distinct, fraction_of, listing, one_of, whole
from stpred._core.elements import find_table, table_instances
from stpred._core.places import Place
from stpred._core.progress import track
from stpred._core.specs import Posterior
from stpred._core.targets import SCALES, dense
from stpred.comparison.scoring import tidy
from stpred.models import registry
from stpred.tl._evaluation.fold_scores import context_rows, measurement
from stpred.tl._predictors.predict import predict
from stpred.tl._predictors.train import train
from stpred.tl._robustness.posterior import interval_coverage, read_posterior
from stpred.tl._robustness.transforms import with_elements, withhold

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stpred.models import Model

MIN_LOCATIONS = 3
"""Locations of a slide that a correlation needs."""

COLUMNS = [
    "check", "model", "fold", "slide", "gene", "metric", "value", "target", "trained_on", "donor_shared", "split",
    "chosen", "donor",
]  # fmt: skip
"""Those of a cross-validation, and which check it was."""

SCALE = "scored_on"
"""Where a model's record says which scale of the measurement its predictions are compared with."""

Transform = Callable[["SpatialData", data.Region], "SpatialData"]
"""What is changed about the training copy of a slide, whose locations are those of the region."""


@dataclass(frozen=True)
class Trial:
    """A model that is trained several times, and options of scoring.

    Attributes
    ----------
    model
        Family name, class or ``Config``.
    place
        Elements of the slides.
    seed
        Of training, of transforms and of posterior draws.
    device
        Where models are trained and applied.
    options
        Further arguments of :func:`stpred.tl.train`.
    n_genes
        Genes that are scored, those of highest mean count; None: all.
    levels, n_samples
        Of generative models: levels of the intervals whose coverage is computed, and draws from the posterior.
    """

    model: Any
    place: Place
    seed: int = 0
    device: str | None = None
    options: Mapping[str, Any] | None = None
    n_genes: int | None = None
    levels: Iterable[float] = ()
    n_samples: int = 100

    def __post_init__(self) -> None:
        registry.resolve(self.model)
        own = {"slides", "model", "seed", "device", *Place.__dataclass_fields__}
        parameters = set(inspect.signature(train).parameters) - own
        if unknown := sorted(set(self.arguments) - parameters):
            raise InputError(
                f"`train_options` takes no {listing(unknown)}; it takes {listing(sorted(parameters), most=40)}."
            )
        if not (isinstance(self.seed, (int, np.integer)) and self.seed >= 0):
            raise InputError(f"`seed` must be a whole number of at least 0, got {self.seed!r}.")
        if self.n_genes is not None:
            whole(self.n_genes, name="n_genes", unset=True)
        whole(self.n_samples, name="n_samples")
        levels = [fraction_of(level, name="levels") for level in distinct(self.levels, name="levels", empty=True)]
        object.__setattr__(self, "levels", tuple(levels))

    @property
    def arguments(self) -> dict[str, Any]:
        """Further arguments of training."""
        return dict(self.options or {})

    @property
    def takes_images(self) -> bool:
        """Whether slides of images alone may be among those of training."""
        return registry.resolve(self.model).takes_images

    def train(self, slides: Mapping[str, SpatialData], **changes: Any) -> Model:
        """Train on these slides."""
        place = {k: v for k, v in vars(self.place).items() if k != "layer"}
        arguments: dict[str, Any] = {"seed": self.seed, "device": self.device, **place, **self.arguments, **changes}
        return train(slides, self.model, **arguments)

    def regions(self, slides: Mapping[str, SpatialData]) -> dict[str, data.Region]:
        """Read the measured region of every slide; slides of images alone are skipped where the model takes them."""
        found = {
            s: data.read_region(sdata, self.place, slide=s, measured=True)
            for s, sdata in slides.items()
            if data.has_counts(sdata) or not self.takes_images
        }
        if not found:
            raise InputError(f"None of the slides {listing(slides)} has counts.")
        return found

    def on_one_library(
        self, slides: Mapping[str, SpatialData]
    ) -> tuple[Mapping[str, SpatialData], dict[str, data.Region]]:
        """Return slides and their regions; where these measured different genes, with tables of the shared ones."""
        regions = self.regions(slides)
        shared = None if self.takes_images else data.shared_library(regions.values())
        if shared is None:
            return slides, regions
        slides = dict(slides)
        for s, region in regions.items():
            key = find_table(region.sdata, region.shapes_key, self.place.table_key)
            table = region.sdata.tables[key]
            slides[s] = with_elements(region.sdata, tables={key: table[:, table.var_names.isin(shared.genes)].copy()})
        return slides, self.regions(slides)

    def top_genes(self, model: Model, regions: list[data.Region]) -> list[str]:
        """Return the model's genes of highest mean count over some locations, in the model's order."""
        names = model.record.genes
        if self.n_genes is None or self.n_genes >= len(names):
            return list(names)
        total, rows = np.zeros(len(names)), np.zeros(len(names))
        for region in regions:
            columns = region.var.index.get_indexer(names)  # type: ignore[union-attr]
            there = np.flatnonzero(columns >= 0)
            total[there] += np.asarray(region.counts[:, columns[there]].sum(axis=0)).ravel()  # type: ignore[index]
            rows[there] += len(region.coords_um)
        first = np.argsort(-total / np.maximum(rows, 1), kind="stable")[: self.n_genes]
        return [names[i] for i in np.sort(first)]

    def predict(
        self, model: Model, region: data.Region, genes: list[str]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float64] | None]:
        """Return the rows of a region with a prediction, the values as they are scored, and ranks of the counts.

        The ranks, among posterior-predictive draws, are of generative models only.
        """
        if model.config.generative:
            posterior = Posterior(n_samples=self.n_samples, seed=self.seed)
            mean, ranks = read_posterior(
                model, region, genes, posterior=posterior, device=self.device, ranked=bool(self.levels)
            )
            return np.arange(len(mean)), mean, ranks
        at, table = self.table(model, region, genes)
        return at, model.as_scored(dense(table.X, np.float32)), None

    def table(self, model: Model, region: data.Region, genes: list[str]) -> tuple[NDArray[np.int64], Any]:
        """Return the rows of a region with a prediction, and the predicted table of these."""
        key, shapes = region.shapes_key, {}
        if model.record.cells != key:  # cells need their neighbours, others only the scored locations
            key = f"{region.shapes_key}_scored"
            element = region.sdata.shapes[region.shapes_key]
            shapes = {key: element.iloc[element.index.get_indexer(region.instances)]}
        table: Any = predict(
            with_elements(region.sdata, shapes=shapes, tables={}),
            model,
            shapes_key=key,
            image_key=self.place.image_key,
            coordinate_system=self.place.coordinate_system,
            cells_key=self.arguments.get("cells_key"),
            genes=genes,
            device=self.device,
            inplace=False,
        )
        at = region.instances.get_indexer(table_instances(table, key)[1])
        return at[at >= 0], table[at >= 0]

    def context(
        self, model: Model, region: data.Region, genes: list[str], rows: NDArray[np.int64], *, places: bool
    ) -> pd.DataFrame:
        """Return what scores at some rows of a region are read against; `places`: the neighbours' mean, too."""
        genes = [g for g, there in zip(genes, region.measures(genes), strict=True) if there]
        scale = model.record.training[SCALE]
        truth = measurement(region.take(rows), genes, scale, n_measured=model.record.n_measured)
        if not places:
            truth = replace(truth, coords_um=None)
        found = pd.concat(context_rows(truth, genes))
        if not places:
            found = found[found["model"] != keys.NEIGHBOUR_AVERAGE]
        return found.assign(slide=region.slide, target=scale, trained_on=scale, chosen="")

    def score(
        self, model: Model, region: data.Region, genes: list[str], *, rows: NDArray[np.int64] | None = None
    ) -> tuple[pd.DataFrame, NDArray[np.int64]]:
        """Return per-gene scores at a region's locations, or at some rows of it, and the rows that were scored."""
        genes = [g for g, there in zip(genes, region.measures(genes), strict=True) if there]
        scale = one_of(model.record.training[SCALE], SCALES, name=SCALE)
        region = region if rows is None else region.take(rows)
        at, values, ranks = self.predict(model, region, genes)
        if len(at) < MIN_LOCATIONS:
            raise InputError(
                f"Slide {region.slide!r} has predictions at {len(at)} measured locations, fewer than {MIN_LOCATIONS}; "
                "nothing can be scored there."
            )
        truth = region.target(genes, scale, n_measured=model.record.n_measured)[at]
        comparable = model.record.target != "relative"
        found = {"pearson": metrics.pearson(values, truth), "spearman": metrics.spearman(values, truth)}
        found["r2"] = metrics.r2(values, truth) if comparable else np.full(len(genes), np.nan)
        parts = [tidy(found, genes).assign(target=scale)]
        if ranks is not None and self.levels:
            covered = {f"coverage_{100 * level:g}": interval_coverage(ranks, level) for level in self.levels}
            parts.append(tidy(covered, genes).assign(target="counts"))
        frame = pd.concat(parts).assign(
            slide=region.slide, model=model.record.name, trained_on=model.record.training["target"], chosen=""
        )
        return frame, at if rows is None else rows[at]


def score_withheld(
    trial: Trial,
    slides: Any,
    fraction: float,
    transforms: Mapping[Any, Transform | None],
    *,
    column: str,
    context: bool = False,
) -> pd.DataFrame:
    """Train once per transform without some spots of every slide, and score each model at those spots.

    `column` names the column of the transforms' keys; `context`: also rows of what scores are read against.
    """
    fraction = fraction_of(fraction, name="fraction")
    slides, regions = trial.on_one_library(data.as_slides(slides))
    training, kept, held_out = {}, [], []
    for s, region in regions.items():
        key = find_table(region.sdata, region.shapes_key, trial.place.table_key)
        training[s] = withhold(region.sdata, region, fraction, table_key=key, seed=trial.seed)
        trained = region.instances.isin(table_instances(training[s].tables[key], region.shapes_key)[1])
        if min(trained.sum(), (~trained).sum()) < MIN_LOCATIONS:
            raise InputError(
                f"Slide {s!r} has {len(trained)} usable spots in {region.shapes_key!r}: {(~trained).sum()} would be "
                f"withheld and {trained.sum()} trained on (fraction {fraction:g}), and at least {MIN_LOCATIONS} of "
                "each are needed."
            )
        kept.append(region.take(np.flatnonzero(trained)))
        held_out.append(region.take(np.flatnonzero(~trained)))
    parts = []
    for value, transform in track(transforms.items(), total=len(transforms), describe="trainings"):
        changed = training if transform is None else {s: transform(v, regions[s]) for s, v in training.items()}
        model = trial.train(dict(slides) | changed)
        genes = trial.top_genes(model, kept)
        for region in held_out:
            scored, at = trial.score(model, region, genes)
            parts.append(scored.assign(**{column: value}))
            if context:
                parts.append(trial.context(model, region, genes, at, places=False).assign(**{column: value}))
    groups = trial.arguments.get("groups")
    donors = data.donor_folds(list(regions), "slide" if groups is None else groups)
    found = pd.concat(parts, ignore_index=True)
    return found.assign(fold="withheld spots", donor_shared=True, split="spots", donor=found["slide"].map(donors))

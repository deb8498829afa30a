"""What the held-out checks share: spots to withhold, copies of slides for training, and scores at true places."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stpred import data, metrics
from stpred._core.checks import InputError, listing, one_of, whole
from stpred._core.elements import find_table, table_instances
from stpred._core.places import Place
from stpred._core.progress import track
from stpred._core.targets import dense
from stpred.comparison.scoring import tidy
from stpred.encoders.modules import pick_device
from stpred.inference.predictor import context_of, encoder_for
from stpred.models import registry
from stpred.tl._predictors.predict import predict
from stpred.tl._predictors.train import train

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stpred.models import Model
    from stpred.models.xfuse.readout import Reading

LEAST = 3
"""Locations of a slide below which no correlation over them says anything."""

COLUMNS = ["check", "model", "slide", "gene", "metric", "value", "target"]

SCALE = "scored_on"
"""Where a model's record says which scale of the measurement its predictions are compared with."""

_READ = ("cells_key", "device", "image_key", "coordinate_system")
"""Arguments of training that prediction takes as well."""

_PLACE = ("image_key", "coordinate_system")


@dataclass(frozen=True)
class Job:
    """How the models of a check are trained, and what is scored.

    Attributes
    ----------
    model
        Family name, class or ``Config``.
    takes_images
        Whether slides of images alone may be among those of training.
    seed
        Of training, and of what is withheld.
    where
        ``shapes_key``, ``table_key`` and, where they were given, ``image_key`` and ``coordinate_system``.
    training
        Whatever else goes to :func:`stpred.tl.train`.
    n_genes
        Genes that are scored, those of highest mean count; None: all.
    intervals
        Levels of the posterior-predictive intervals whose coverage is told.
    n_samples
        Of generative models: draws of the posterior.
    """

    model: Any
    takes_images: bool
    seed: int
    where: dict[str, Any]
    training: dict[str, Any]
    n_genes: int | None = None
    intervals: tuple[float, ...] = ()
    n_samples: int = 10

    @classmethod
    def of(
        cls,
        model: Any,
        training: Mapping[str, Any],
        *,
        seed: int,
        shapes_key: str | None,
        table_key: str | None,
        n_genes: Any = None,
        intervals: Any = (),
        n_samples: Any = 10,
    ) -> Job:
        """Check all that can be checked before anything is read."""
        config = registry.resolve(model)
        known = set(inspect.signature(train).parameters) - {"slides", "model", "seed", "shapes_key", "table_key"}
        if unknown := sorted(set(training) - known):
            raise InputError(f"Training takes no {listing(unknown)}; it takes {listing(sorted(known), most=40)}.")
        if not (isinstance(seed, (int, np.integer)) and seed >= 0):
            raise InputError(f"`seed` must be a whole number of at least 0, got {seed!r}.")
        return cls(
            model,
            config.takes_images,
            int(seed),
            {"shapes_key": shapes_key, "table_key": table_key} | {k: training[k] for k in _PLACE if k in training},
            {k: v for k, v in training.items() if k not in _PLACE},
            None if n_genes is None else whole(n_genes, name="n_genes", unset=True),
            tuple(share_of(level, name="intervals") for level in several(intervals, name="intervals", empty=True)),
            whole(n_samples, name="n_samples"),
        )

    @property
    def reading(self) -> dict[str, Any]:
        """Arguments of prediction."""
        return {k: v for k, v in (self.training | self.where).items() if k in _READ}

    def regions(self, slides: Mapping[str, SpatialData]) -> dict[str, data.Region]:
        """Read the measured region of every slide; slides of images alone are left out where the model takes them."""
        found = {
            s: data.read_region(sdata, Place(**self.where), slide=s, measured=True)
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
            key = find_table(region.sdata, region.shapes_key, self.where["table_key"])
            table = region.sdata.tables[key]
            some = table.var_names.isin(shared.genes)
            slides[s] = copied(region.sdata, tables={key: table[:, some].copy()})
        return slides, self.regions(slides)

    def trained(self, slides: Mapping[str, SpatialData], **changes: Any) -> Model:
        """Train on these slides."""
        return train(slides, self.model, **({"seed": self.seed} | self.where | self.training | changes))


def several(values: Any, *, name: str, empty: bool = False) -> list[Any]:
    """Return one value or several as a list without repeats."""
    listed = list(dict.fromkeys(values)) if isinstance(values, Iterable) and not isinstance(values, str) else [values]
    if not listed and not empty:
        raise InputError(f"`{name}` is empty.")
    return listed


def share_of(value: Any, *, name: str, least: float | None = None) -> float:
    """Return a number between 0 and 1, neither of them; `least` 0 lets 0 pass."""
    try:
        number = float("nan") if isinstance(value, (str, bytes, bool)) else float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not (0 < number < 1 or number == least):
        span = "between 0 and 1" if least is None else "at least 0 and below 1"
        raise InputError(f"`{name}` must be {span}, got {value!r}.")
    return number


def at_least_zero(value: Any, *, name: str) -> float:
    """Return a finite number that is not negative."""
    try:
        number = float("nan") if isinstance(value, (str, bytes, bool)) else float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not 0 <= number < float("inf"):
        raise InputError(f"`{name}` must be a number of at least 0, got {value!r}.")
    return number


def generator_of(seed: int, slide: str, what: int) -> np.random.Generator:
    """Return the random numbers of one slide for one purpose, whatever other slides there are."""
    return np.random.default_rng([seed, zlib.crc32(slide.encode()), what])


@dataclass(frozen=True)
class Withheld:
    """A slide of which some spots are withheld.

    Attributes
    ----------
    region
        All measured locations at their true places.
    held, kept
        Rows of `region` that are scored, and that are trained on.
    training
        Copy of the object in which the counts of the withheld spots are not there.
    """

    region: data.Region
    held: NDArray[np.int64]
    kept: NDArray[np.int64]
    training: SpatialData

    @classmethod
    def of(cls, region: data.Region, share: float, job: Job) -> Withheld:
        """Withhold a random share of a slide's spots; which ones does not depend on their counts."""
        sdata = region.sdata
        table_key = find_table(sdata, region.shapes_key, job.where["table_key"])
        table = sdata.tables[table_key]
        rows, ids = table_instances(table, region.shapes_key)
        n = round(share * len(ids))
        drawn = generator_of(job.seed, region.slide, 0).permutation(len(ids))[:n]
        out = np.isin(region.instances, ids[drawn])
        held, kept = np.flatnonzero(out), np.flatnonzero(~out)
        if min(len(held), len(kept)) < LEAST:
            raise InputError(
                f"Slide {region.slide!r} has {len(region.instances)} usable spots in {region.shapes_key!r}: "
                f"{len(held)} would be withheld and {len(kept)} trained on (share {share:g}), and at least {LEAST} of "
                "each are needed."
            )
        left = np.ones(table.n_obs, dtype=bool)
        left[rows[drawn]] = False
        return cls(region, held, kept, copied(sdata, tables={table_key: table[left].copy()}))


def copied(sdata: SpatialData, **changes: Mapping[str, Any]) -> SpatialData:
    """Return a new object of the same elements, some of them others; tables are only those that are given."""
    from spatialdata import SpatialData as Object

    return Object(
        images=dict(sdata.images) | dict(changes.get("images", {})),
        shapes=dict(sdata.shapes) | dict(changes.get("shapes", {})),
        tables=dict(changes.get("tables", {})),
    )


Change = Callable[[Withheld], "SpatialData"]


def withhold(slides: Any, share: Any, job: Job) -> tuple[dict[str, SpatialData], dict[str, Withheld]]:
    """Return all slides, and those with counts with some of their spots withheld."""
    share = share_of(share, name="share")
    slides, regions = job.on_one_library(data.as_slides(slides))
    return dict(slides), {s: Withheld.of(region, share, job) for s, region in regions.items()}


def score_withheld(
    slides: Mapping[str, SpatialData], withheld: Mapping[str, Withheld], job: Job, change: Change | None = None
) -> pd.DataFrame:
    """Train without the withheld spots, on changed copies, and score the model at them on the slides as they are."""
    seen = {
        s: sdata if s not in withheld else withheld[s].training if change is None else change(withheld[s])
        for s, sdata in slides.items()
    }
    trained = job.trained(seen)
    names = highest(trained, [w.region.take(w.kept) for w in withheld.values()], job.n_genes)
    parts = [score(trained, w.region.take(w.held), names, job)[0] for w in withheld.values()]
    return pd.concat(parts, ignore_index=True)


def score_changes(
    slides: Any, share: Any, job: Job, values: list[Any], change: Callable[[Withheld, Any], SpatialData], *, column: str
) -> pd.DataFrame:
    """Train once for every value, on copies that it changes, and score the same withheld spots; `column` says which."""
    slides, withheld = withhold(slides, share, job)
    parts = []
    for value in track(values, total=len(values), describe=column):
        found = score_withheld(slides, withheld, job, partial(_exchanged, change, value))
        parts.append(found.assign(**{column: value}))
    return pd.concat(parts, ignore_index=True)[[*COLUMNS[1:], column]]


def _exchanged(change: Callable[[Withheld, Any], SpatialData], value: Any, withheld: Withheld) -> SpatialData:
    """Return what is trained on; at a value of 0 as it is."""
    return change(withheld, value) if value else withheld.training


def highest(trained: Model, regions: list[data.Region], n_genes: int | None) -> list[str]:
    """Return the model's genes of highest mean count over some locations, in the model's order; None: all."""
    names = trained.record.genes
    if n_genes is None or n_genes >= len(names):
        return list(names)
    total, rows = np.zeros(len(names)), np.zeros(len(names))
    for region in regions:
        columns = region.var.index.get_indexer(names)  # type: ignore[union-attr]
        there = np.flatnonzero(columns >= 0)
        total[there] += np.asarray(region.counts[:, columns[there]].sum(axis=0)).ravel()  # type: ignore[index]
        rows[there] += len(region.coords_um)
    first = np.argsort(-total / np.maximum(rows, 1), kind="stable")[:n_genes]
    return [names[i] for i in np.sort(first)]


def score(
    trained: Model, region: data.Region, names: list[str], job: Job, *, rows: NDArray[np.int64] | None = None
) -> tuple[pd.DataFrame, NDArray[np.int64]]:
    """Return per-gene scores at a region's locations, or at some rows of it, and the rows that were scored."""
    names = [g for g, known in zip(names, region.known(names), strict=True) if known]
    scale = one_of(trained.record.training[SCALE], ("counts", "log1p_cp10k"), name=SCALE)
    region = region if rows is None else region.take(rows)
    at, values, ranks = read(trained, region, names, job)
    if len(at) < LEAST:
        raise InputError(
            f"Slide {region.slide!r} has predictions at {len(at)} measured locations, fewer than {LEAST}; nothing can "
            "be scored there."
        )
    truth = region.target(names, scale)[at]
    comparable = trained.record.target != "relative"
    found = {"pearson": metrics.pearson(values, truth), "spearman": metrics.spearman(values, truth)}
    found["r2"] = metrics.r2(values, truth) if comparable else np.full(len(names), np.nan)
    parts = [tidy(found, names).assign(target=scale)]
    if ranks is not None:
        covered = {f"coverage_{100 * level:g}": inside(ranks, level) for level in job.intervals}
        parts += [tidy(covered, names).assign(target="counts")] if covered else []
    frame = pd.concat(parts).assign(slide=region.slide, model=trained.record.name)
    return frame, at if rows is None else rows[at]


def read(
    trained: Model, region: data.Region, names: list[str], job: Job
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float64] | None]:
    """Return rows of the region with a prediction, the prediction as it is scored, and its counts' ranks among draws.

    The last are of generative models alone.
    """
    if trained.config.generative:
        mean, ranks = read_posterior(
            trained, region, names, n_samples=job.n_samples, seed=job.seed, ranked=bool(job.intervals), **job.reading
        )
        return np.arange(len(mean)), mean, ranks
    key, shapes = region.shapes_key, {}
    if trained.record.cells != key:  # cells are seen among all others
        key = f"{region.shapes_key}_scored"
        element = region.sdata.shapes[region.shapes_key]
        shapes = {key: element.iloc[element.index.get_indexer(region.instances)]}
    sdata = copied(region.sdata, shapes=shapes)
    table = predict(sdata, trained, shapes_key=key, genes=names, inplace=False, **job.reading)
    at = region.instances.get_indexer(table_instances(table, key)[1])
    values = trained.as_scored(dense(table.X, np.float32))
    return at[at >= 0], values[at >= 0], None


def read_posterior(
    trained: Model,
    region: data.Region,
    names: list[str],
    *,
    n_samples: int,
    seed: int,
    ranked: bool = True,
    averaged: bool = True,
    **reading: Any,
) -> tuple[NDArray[np.float32], NDArray[np.float64] | None]:
    """Return the (n, g) posterior mean of the expected counts, and the ranks of the measured ones among draws."""
    shape = len(region.coords_um), len(names)
    mean, ranks = np.zeros(shape, dtype=np.float32), np.zeros(shape)
    counts = region.target(names, "counts") if ranked else None
    rng = generator_of(seed, region.slide, 1)
    for rows, found in posterior(trained, region, names, n_samples=n_samples, seed=seed, **reading):
        for some, genes, values in found.expected() if averaged else ():
            mean[rows[some], genes] = values.mean(axis=0)
        if counts is None:
            continue
        for some, genes, values in found.counts():
            ranks[rows[some], genes] = ranks_among(values, counts[rows[some], genes], rng)
    return mean, ranks if ranked else None


def posterior(
    trained: Model,
    region: data.Region,
    names: list[str],
    *,
    n_samples: int,
    seed: int,
    covariates: Mapping[str, str | None] | None = None,
    device: str | None = None,
    **_: Any,
) -> Iterator[tuple[NDArray[np.int64], Reading]]:
    """Yield rows of a region and draws from a generative model's posterior there, of some genes."""
    from stpred.models.xfuse.readout import Readout, read_out

    position = {g: i for i, g in enumerate(trained.record.genes)}
    columns = [position[g] for g in names]
    # By name: a slide whose image was painted over for training is not known by its pixels.
    own = trained.covariates.slides.get(region.slide, {})  # type: ignore[union-attr,operator]
    levels = {name: level for name, level in own.items() if level is not None} | dict(covariates or {})
    readout = Readout(n_samples=n_samples, seed=seed, covariates=levels or None)
    used = encoder_for(trained, None, device=device)
    trained.to(pick_device(device))
    for rows, batch in data.reader_for(region, used, trained.needs, context_of(trained)).blocks():
        found = read_out(trained, batch, readout)  # type: ignore[arg-type]
        profiles, base, logits = found.profiles[:, :, columns], found.base[:, columns], found.logits[:, columns]
        yield rows, replace(found, profiles=profiles, base=base, logits=logits)


def ranks_among(draws: NDArray[Any], observed: NDArray[Any], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return (n, g) ranks, 0 to 1, of observed values among (s, n, g) draws; ties are broken at random.

    This is the randomised probability integral transform, with the observed value counted among the draws: if it comes
    from where they come from, the rank is uniform, however few or coarse the values are.
    """
    less, equal = (draws < observed).sum(axis=0), (draws == observed).sum(axis=0)
    return (less + rng.random(observed.shape) * (equal + 1)) / (len(draws) + 1)


def inside(ranks: NDArray[np.float64], level: float) -> NDArray[np.float64]:
    """Return the (g,) shares of locations whose (n, g) ranks lie in the central interval of a level."""
    return np.asarray((np.abs(2 * ranks - 1) <= level).mean(axis=0), dtype=np.float64)

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from geopandas import GeoDataFrame, points_from_xy
from spatialdata.models import ShapesModel
from spatialdata.transformations import Identity

from stpred import data, metrics
from stpred._core import keys
from stpred._core.checks import InputError, one_of, whole
from stpred._core.places import Place
from stpred._core.progress import track
from stpred._core.specs import Posterior
from stpred._core.targets import dense
from stpred.regions import TissueMask
from stpred.tl._robustness.engine import Trial
from stpred.tl._robustness.posterior import posterior_moments
from stpred.tl._robustness.transforms import random_numbers, with_elements

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stpred.models import BaseConfig, Model


Z_95 = 1.959964

_REGIONS = "restart_regions"

MIN_SD = 1e-12
"""Stated standard deviation below which none is taken to be stated."""

_TRIES = 200
"""Draws of points after which a slide counts as having no tissue for regions."""


def restarts(
    slides: SpatialData | Mapping[str, SpatialData],
    model: str | BaseConfig | type[Model] = "xfuse",
    *,
    n_restarts: int = 4,
    n_regions: int | None = None,
    by: Literal["pair", "value"] = "pair",
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
    """Train a model several times from other seeds, and compare the predictions with each other.

    It shows the dependence of results on the seed, not whether they are right: all runs may agree on what is wrong.
    Families with a closed form do not depend on the seed, so that their runs are the same. XFuse's publication compares
    four runs in a hundred regions of spot size, drawn uniformly from the tissue: ``n_regions=100``.

    Parameters
    ----------
    slides
        One SpatialData object, or a mapping of slide names to them, with raw counts. They are left as they are.
    model
        Family name, class or ``Config`` of the model that is trained.
    n_restarts
        Number of trainings, two or more, with the seeds `seed`, ``seed + 1``, ...
    n_regions
        Circles of each slide that runs are compared in, of the width of the measured locations and anywhere on the
        tissue, the same for all runs. None: the measured locations.
    by
        ``"pair"``: a row per pair of runs. ``"value"``: a row per pair, place and gene.
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
    over all values of genes x places of all slides, counts as log1p, which is high whenever runs agree on which genes
    are frequent; ``median_gene``, the median of the genes' own correlations over the places; ``rms_difference``, the
    root mean square of the differences of predictions as they are. Of models that state their uncertainty, with the
    variances V1 and V2 of the two runs: ``rms_stated``, that of ``sqrt(V1 + V2)``; ``rms_ratio``, that of differences
    in units of it (at most about 1 where the uncertainty holds what restarts differ by); and ``within_95``, the share
    of differences within 1.96 of it.

    By value: ``first``, ``second``, ``slide``, ``x_um``, ``y_um``, ``gene``, ``mean_first``, ``mean_second``,
    ``difference`` and ``stated_sd`` (missing where none is stated).

    Raises
    ------
    InputError
        If `n_restarts` is below two, a slide has no tissue to draw regions from, or training refuses an option.

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
    one_of(by, ("pair", "value"), name="by")
    if n_regions is not None:
        n_regions = whole(n_regions, name="n_regions", unset=True)
    place = Place(shapes_key, image_key, table_key, coordinate_system=coordinate_system)
    trial = Trial(model, place, seed, device, train_options, n_genes, (), n_samples)
    slides = data.as_slides(slides)
    measured = list(trial.regions(slides).values())
    places = measured if n_regions is None else [_drawn(r, n_regions, place, seed=seed) for r in measured]
    runs: dict[int, list[Run]] = {}
    for k in track(range(seed, seed + n_restarts), total=n_restarts, describe="restarts"):
        trained = trial.train(slides, seed=k)
        genes = trial.top_genes(trained, measured)
        # Posteriors are read with one seed throughout: only the trainings differ.
        runs[k] = [_predicted(trial, trained, region, genes) for region in places]
    counts = trained.record.target == "counts" and trained.config.per is None  # other amounts are logarithms already
    row = _values if by == "value" else partial(_summary, counts=counts)
    rows = [row(first, second, runs[first], runs[second], places, genes) for first, second in combinations(runs, 2)]
    return pd.concat(rows, ignore_index=True)


class Run(NamedTuple):
    """One run's (n, g) means and standard deviations (None where none are stated) at the places of one slide."""

    mean: NDArray[np.float32]
    std: NDArray[np.float32] | None


def _predicted(trial: Trial, model: Model, region: data.Region, genes: list[str]) -> Run:
    """Return predictions in the order of a region's locations."""
    if model.config.generative:
        posterior = Posterior(n_samples=trial.n_samples, seed=trial.seed)
        return Run(*posterior_moments(model, region, genes, posterior=posterior, device=trial.device))
    at, table = trial.table(model, region, genes)
    order = np.argsort(at)
    mean = model.as_scored(dense(table.X, np.float32))[order]
    std = dense(table.layers[keys.STD], np.float32)[order] if keys.STD in table.layers else None
    return Run(mean, std)


def _drawn(region: data.Region, n: int, place: Place, *, seed: int) -> data.Region:
    """Return circles of the width of a region's locations, drawn uniformly from the tissue of its slide."""
    radius = data.median_width_um(region) / 2
    tissue = TissueMask.of(region.pyramid)
    x0, y0, x1, y1 = region.pyramid.bounds_um
    rng = random_numbers(seed, region.slide, 2)
    found: list[NDArray[np.float64]] = []
    for _ in range(_TRIES):
        points = rng.uniform((x0 + radius, y0 + radius), (x1 - radius, y1 - radius), size=(4 * n, 2))
        found.append(points[tissue(points)])
        if sum(map(len, found)) >= n:
            break
    else:
        raise InputError(f"Slide {region.slide!r} has too little tissue on its image to draw {n} regions from.")
    centres = np.concatenate(found)[:n]
    circles = GeoDataFrame({"radius": np.full(n, radius)}, geometry=points_from_xy(*centres.T))
    element = ShapesModel.parse(circles, transformations={place.coordinate_system: Identity()})
    sdata = with_elements(region.sdata, tables={}, shapes={_REGIONS: element})
    return data.read_region(sdata, replace(place, shapes_key=_REGIONS, table_key=None), slide=region.slide)


def _summary(
    first: int, second: int, ours: list[Run], theirs: list[Run], places: Any, genes: list[str], *, counts: bool
) -> pd.DataFrame:
    """Return the row of a pair of runs."""
    a, b = (np.concatenate([r.mean for r in side]) for side in (ours, theirs))
    logs = [np.log1p(v.clip(0)) if counts else v for v in (a, b)]
    difference = a.astype(np.float64) - b
    stated = _stated(ours, theirs)
    there = stated > MIN_SD
    ratio = difference[there] / stated[there]

    def rms(values: NDArray[np.float64]) -> float:
        return float(np.sqrt(np.square(values).mean())) if values.size else float("nan")

    return pd.DataFrame(
        [
            {
                "first": first,
                "second": second,
                "pooled": float(metrics.pearson(*(v.reshape(-1, 1) for v in logs))[0]),
                "median_gene": metrics.summarise(metrics.pearson(*logs))["median"],
                "rms_difference": rms(difference),
                "rms_stated": rms(stated[there]),
                "rms_ratio": rms(ratio),
                "within_95": float((np.abs(ratio) <= Z_95).mean()) if there.any() else float("nan"),
            }
        ]
    )


def _values(
    first: int, second: int, ours: list[Run], theirs: list[Run], places: list[data.Region], genes: list[str]
) -> pd.DataFrame:
    """Return a row per place and gene of a pair of runs."""
    parts = []
    for a, b, region in zip(ours, theirs, places, strict=True):
        stated = _stated([a], [b])
        each = np.repeat(region.coords_um, len(genes), axis=0)
        parts.append(
            pd.DataFrame(
                {
                    "first": first,
                    "second": second,
                    "slide": region.slide,
                    "x_um": each[:, 0],
                    "y_um": each[:, 1],
                    "gene": np.tile(genes, len(region.coords_um)),
                    "mean_first": a.mean.ravel(),
                    "mean_second": b.mean.ravel(),
                    "difference": (a.mean.astype(np.float64) - b.mean).ravel(),
                    "stated_sd": np.where(stated > MIN_SD, stated, np.nan).ravel(),
                }
            )
        )
    return pd.concat(parts)


def _stated(ours: list[Run], theirs: list[Run]) -> NDArray[np.float64]:
    """Return (n, g) standard deviations of the difference of two runs as they state them; NaN where one states none."""
    sides = []
    for side in (ours, theirs):
        each = [np.full(r.mean.shape, np.nan) if r.std is None else r.std.astype(np.float64) for r in side]
        sides.append(np.concatenate(each))
    return np.asarray(np.sqrt(np.square(sides[0]) + np.square(sides[1])))

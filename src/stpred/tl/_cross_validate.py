from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stpred import data, encoders, metrics, training
from stpred._core import keys
from stpred._core.checks import InputError, listing, one_of
from stpred._core.progress import track
from stpred._core.specs import GeneRule, TileSpec
from stpred._core.targets import TARGETS
from stpred.models import _registry
from stpred.models._base import BaseConfig, Batch, Model, Needs

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

Option = tuple[type[Model], BaseConfig]


def cross_validate(
    slides: Mapping[str, SpatialData],
    models: str | BaseConfig | Mapping[str, Any] | Sequence[Any],
    *,
    groups: Mapping[str, str] | str,
    genes: GeneRule | str | Iterable[str] | None = None,
    shapes_key: str | None = None,
    table_key: str | None = None,
    image_key: str | None = None,
    target: str | None = None,
    encoder: Any = None,
    tile: TileSpec | Mapping[str, float] | None = None,
    seed: int = 0,
    device: str | None = None,
    batch_size: int | None = None,
    allow_upsampling: bool = False,
    coordinate_system: str = keys.UM,
) -> pd.DataFrame:
    """Score models on donors that they have not seen: leave one donor out.

    Parameters
    ----------
    slides
        Names to SpatialData objects with measured raw counts.
    models
        One model, a list, or a mapping of names to models; each a family name or a ``Config``. A *list of configs*
        under one name is a grid: the best one is chosen inside the training slides of every fold, by leaving out their
        donors in turn.
    groups
        Slide to donor, required: folds never share a donor. ``"slide"`` is the explicit exception for sections of one
        donor, and every row of the result then says ``donor_shared=True``.
    genes
        Gene rule, computed on the training slides of every fold anew; None takes the 250 genes of highest mean count.
    shapes_key, table_key, image_key, coordinate_system
        As in :func:`stpred.tl.train`.
    target, encoder, tile, seed, device, batch_size, allow_upsampling
        As in :func:`stpred.tl.train`.

    Returns
    -------
    Tidy DataFrame, one row per model, fold, slide, gene and metric: ``model``, ``fold`` (the left-out donor),
    ``slide``, ``gene``, ``metric`` (``pearson``, ``spearman``, ``r2``), ``value``, ``target``, ``donor_shared``,
    ``chosen`` (settings chosen inside the fold). The model ``library_size`` is added to show what knowing a location's
    total counts alone gives.

    Raises
    ------
    InputError
        If there are fewer than two donors, a slide has no donor, or slides share no gene.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(3)
    >>> donors = {"donor0": "A", "donor1": "B", "donor2": "C"}
    >>> scores = st.tl.cross_validate(slides, ["mean", "ridge"], groups=donors, shapes_key="spots")
    >>> sorted(scores["model"].unique())
    ['library_size', 'mean', 'ridge']
    """
    slides = data.as_slides(slides)
    donors = data.donor_folds(list(slides), groups)
    if len(set(donors.values())) < 2:
        if groups == "slide":
            raise InputError(f"Cross-validation needs at least two slides, got {listing(slides)}.")
        raise InputError(
            f"Cross-validation needs at least two donors, got {sorted(set(donors.values()))}; for sections of one "
            f"donor pass groups='slide'."
        )
    grids = _grids(models)
    rule = GeneRule.parse(genes)
    target = one_of("log1p_cp10k" if target is None else target, TARGETS, name="target")
    where: dict[str, Any] = {
        "shapes_key": shapes_key,
        "image_key": image_key,
        "table_key": table_key,
        "coordinate_system": coordinate_system,
    }
    regions = {s: data.read_region(sdata, slide=s, measured=True, **where) for s, sdata in slides.items()}
    reading = {"batch_size": batch_size, "allow_upsampling": allow_upsampling}
    embedded = _embed(regions, grids, encoder=encoder, tile=tile, device=device, reading=reading)
    rows: list[pd.DataFrame] = []
    folds = list(training.leave_groups_out(donors))
    for fold, train, test in track(folds, total=len(folds), describe="folds"):
        chosen = data.choose_genes([regions[s] for s in train], rule)
        names = [g for g in chosen.index if all(g in regions[s].var.index for s in test)]  # type: ignore[union-attr]
        y = {s: regions[s].target(names, target) for s in slides}
        for name, options in grids.items():
            batches = [{s: replace(embedded[_key(o)][s], y=y[s]) for s in slides} for o in options]
            inner = {i: [b[s] for s in train] for i, b in enumerate(batches)}
            order = [donors[s] for s in train]
            best, _ = training.choose_config(options, inner, groups=order, seed=seed)
            model, facts = training.fit(*options[best], inner[best], groups=order, seed=seed, typical=False)
            said = ", ".join(f"{k}={v}" for k, v in _told(options[best][1], facts).items())
            for s in test:
                mean, _ = model.predict(batches[best][s])
                rows.append(_scores(mean, y[s], names).assign(model=name, fold=fold, slide=s, chosen=said))
        for s in test:
            rows.append(
                _library_size(regions[s], names, target).assign(model="library_size", fold=fold, slide=s, chosen="")
            )
    result = pd.concat(rows, ignore_index=True).assign(target=target, donor_shared=groups == "slide")
    return result[["model", "fold", "slide", "gene", "metric", "value", "target", "donor_shared", "chosen"]]


def _grids(models: Any) -> dict[str, list[Option]]:
    """Return, for each name, the settings to choose from."""
    if isinstance(models, Mapping):
        named = dict(models)
    else:
        listed = list(models) if isinstance(models, (list, tuple)) else [models]
        named = {}
        for m in listed:
            name = _registry.resolve(m)[0].family
            if name in named:
                raise InputError(f"Two models are called {name!r}; give them names with a mapping.")
            named[name] = m
    if not named:
        raise InputError("`models` is empty.")
    if empty := [str(name) for name, value in named.items() if isinstance(value, (list, tuple)) and not value]:
        raise InputError(f"`models` holds no setting for {listing(empty)}.")
    return {
        str(name): [_registry.resolve(o) for o in (value if isinstance(value, (list, tuple)) else [value])]
        for name, value in named.items()
    }


def _key(option: Option) -> tuple[str, Needs]:
    """Options with the same key see the same batch."""
    family, config = option
    return family.default_encoder, family(config, n_features=1, n_genes=1).needs


def _embed(
    regions: dict[str, data.Region],
    grids: dict[str, list[Option]],
    *,
    encoder: Any,
    tile: Any,
    device: Any,
    reading: dict[str, Any],
) -> dict[tuple[str, Needs], dict[str, Batch]]:
    """Return batches without targets for every (encoder, needs); tiles are embedded once per encoder."""
    wanted = {_key(o) for options in grids.values() for o in options}
    found: dict[tuple[str, Needs], dict[str, Batch]] = {}
    for default in sorted({k[0] for k in wanted}):
        # Baselines that bring an encoder of their own (colour) keep it whatever the others use.
        given = encoder if encoder is not None and default == Model.default_encoder else default
        used = encoders.get(given, tile=None if tile is None else TileSpec.parse(tile), device=device)
        for s, region in regions.items():
            first = data.make_batch(region, used, Needs(), **reading)
            for key in (k for k in wanted if k[0] == default):
                found.setdefault(key, {})[s] = data.with_needs(first, key[1])
    return found


def _told(config: BaseConfig, facts: dict[str, Any]) -> dict[str, Any]:
    """Return settings that differ from the defaults, and what the fit chose."""
    default = type(config)()
    told = {k: v for k, v in config.to_dict().items() if v != getattr(default, k)}
    return told | {k: v for k, v in facts.items() if isinstance(v, (int, float))}


def _scores(predicted: NDArray[np.float32], observed: NDArray[np.float32], names: list[str]) -> pd.DataFrame:
    values = {
        "pearson": metrics.pearson(predicted, observed),
        "spearman": metrics.spearman(predicted, observed),
        "r2": metrics.r2(predicted, observed),
    }
    return _tidy(values, names)


def _library_size(region: data.Region, names: list[str], target: str) -> pd.DataFrame:
    columns = region.var.index.get_indexer(names)  # type: ignore[union-attr]
    return _tidy({"pearson": metrics.library_size_baseline(region.counts, target=target, genes=columns)}, names)


def _tidy(values: dict[str, NDArray[np.float64]], names: list[str]) -> pd.DataFrame:
    return pd.concat([pd.DataFrame({"gene": names, "metric": m, "value": v}) for m, v in values.items()])

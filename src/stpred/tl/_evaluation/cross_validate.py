from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import pandas as pd

from stpred import data, encoders, training
from stpred._core import keys
from stpred._core.checks import InputError, listing, one_of, whole
from stpred._core.places import Place
from stpred._core.progress import track
from stpred._core.recipes.splits import Splits
from stpred._core.specs import GeneRule, TileSpec
from stpred._core.targets import SCALES, TARGETS, TRAINED_ON, scale_of
from stpred.models import registry
from stpred.models.base import BaseConfig, Model
from stpred.tl._evaluation.fixed_models import FixedModels
from stpred.tl._evaluation.fold_models import FoldModels
from stpred.tl._evaluation.fold_scores import Study
from stpred.tl._evaluation.out_of_fold import OutOfFold

if TYPE_CHECKING:
    from spatialdata import SpatialData

logger = logging.getLogger("stpred")

COLUMNS = [
    "model", "fold", "slide", "gene", "metric", "value", "target", "trained_on", "donor_shared", "split", "chosen",
    "donor",
]  # fmt: skip


@overload
def cross_validate(
    slides: Mapping[str, SpatialData],
    models: str | BaseConfig | Mapping[str, Any] | Sequence[Any],
    *,
    groups: Mapping[str, str] | str,
    genes: GeneRule | str | Iterable[str] | None = ...,
    n_folds: int | None = ...,
    splits: Splits | None = ...,
    shapes_key: str | None = ...,
    table_key: str | None = ...,
    layer: str | None = ...,
    image_key: str | None = ...,
    cells_key: str | None = ...,
    target: str | None = ...,
    scored_on: str | Sequence[str] | None = ...,
    encoder: Any = ...,
    tile: TileSpec | Mapping[str, float] | None = ...,
    seed: int = ...,
    device: str | None = ...,
    key_added: str | None = ...,
    return_models: Literal[False] = ...,
    coordinate_system: str = ...,
) -> pd.DataFrame: ...
@overload
def cross_validate(
    slides: Mapping[str, SpatialData],
    models: str | BaseConfig | Mapping[str, Any] | Sequence[Any],
    *,
    groups: Mapping[str, str] | str,
    genes: GeneRule | str | Iterable[str] | None = ...,
    n_folds: int | None = ...,
    splits: Splits | None = ...,
    shapes_key: str | None = ...,
    table_key: str | None = ...,
    layer: str | None = ...,
    image_key: str | None = ...,
    cells_key: str | None = ...,
    target: str | None = ...,
    scored_on: str | Sequence[str] | None = ...,
    encoder: Any = ...,
    tile: TileSpec | Mapping[str, float] | None = ...,
    seed: int = ...,
    device: str | None = ...,
    key_added: str | None = ...,
    return_models: Literal[True],
    coordinate_system: str = ...,
) -> tuple[pd.DataFrame, dict[str, dict[str, Model]]]: ...
def cross_validate(
    slides: Mapping[str, SpatialData],
    models: str | BaseConfig | Mapping[str, Any] | Sequence[Any],
    *,
    groups: Mapping[str, str] | str,
    genes: GeneRule | str | Iterable[str] | None = None,
    n_folds: int | None = None,
    splits: Splits | None = None,
    shapes_key: str | None = None,
    table_key: str | None = None,
    layer: str | None = None,
    image_key: str | None = None,
    cells_key: str | None = None,
    target: str | None = None,
    scored_on: str | Sequence[str] | None = None,
    encoder: Any = None,
    tile: TileSpec | Mapping[str, float] | None = None,
    seed: int = 0,
    device: str | None = None,
    key_added: str | None = None,
    return_models: bool = False,
    coordinate_system: str = keys.UM,
) -> pd.DataFrame | tuple[pd.DataFrame, dict[str, dict[str, Model]]]:
    """Score models on held-out donors.

    Genes are chosen, features and genes scaled, numbers of epochs, penalties and settings picked inside the training
    slides of every fold anew. With ``stpred.settings.checkpoint_dir``, scores of finished folds are kept there and not
    computed again (unless `key_added` asks for predictions); delete the folder when it is no longer needed.

    Parameters
    ----------
    slides
        Names to SpatialData objects with measured raw counts.
    models
        One model, a list, or a mapping of names to models; each a family name or a ``Config``, or a trained model, such
        as a published one of :func:`stpred.models.get`: it is not trained but applied as it is (slides that it was
        trained on are refused), and scored on those of a fold's genes that it predicts. A *list of configs*
        (of one or several families) under one name is a grid: the best one is chosen inside the training slides of
        every fold, by leaving out their donors in turn. Features are computed once for all of them. ``"colour"`` beside
        them tells what six numbers of each tile's colour can do.
    groups
        Slide to donor, required: folds never share a donor. Two explicit exceptions, for which every row of the result
        says ``donor_shared=True``: ``"slide"`` leaves out sections of one donor; ``"blocks"`` leaves out parts of each
        slide, with a buffer of 2.5 pitches to what is trained on (``split`` then says ``"block"``).
    genes
        Gene rule, computed on the training slides of every fold anew; None takes the 250 genes of highest mean count.
    n_folds
        Number of folds that the donors are dealt out to; None leaves one donor out at a time (``"blocks"``: 4 blocks).
    splits
        Other folds (explicit, random and repeated, or training on one donor), and what settings of a grid are chosen
        by: see :class:`stpred.Splits`. Slides that a split never tests have no rows.
    shapes_key, table_key, layer, image_key, coordinate_system
        As in :func:`stpred.tl.train`.
    cells_key
        As in :func:`stpred.tl.train`. Where any of the models sees cells, all are trained and scored on the same
        locations: those that hold a cell.
    target
        What models are trained on, as in :func:`stpred.tl.train`; None: each family's own.
    scored_on
        Scale or scales of the measurement that predictions are compared with, ``"log1p_cp10k"``, ``"counts"`` or
        ``"log_share"`` (ST-Net's own); None: that of `target` if it is given, else log1p CP10k.
    encoder, tile, seed, device
        As in :func:`stpred.tl.train`.
    key_added
        Also put what each model predicts for the slides that it was not trained on into these slides, as tables
        ``{shapes}_{model}_{key_added}``, such as ``"cv"``: ``var`` has the genes' scores on slides of other donors.
        None keeps the scores alone.
    return_models
        Also return the models of all folds. Each remembers what it was trained on, with its scores on the slides that
        it was not, and is applied, saved and validated as what :func:`stpred.tl.train` returns;
        :func:`stpred.models.average` makes one of those of a name.

    Returns
    -------
    Tidy DataFrame (with `return_models`, a tuple of it and of a mapping: model name to fold name to model), one row per
    model, fold, slide, gene, scale and metric: ``model``, ``fold`` (the held-out donors), ``slide``, ``gene``,
    ``metric``, ``value`` (missing where a gene does not vary), ``target`` (the scale scored on), ``trained_on``,
    ``donor_shared``, ``split`` (``donor``, ``slide`` or ``block``), ``chosen`` (settings chosen inside the fold),
    ``donor``. Metrics are those of :func:`stpred.tl.compare`: ``pearson``, ``spearman``, ``auroc``, ``ssim``,
    ``pearson_smoothed``, ``pearson_given_library_size``, and ``r2``, ``rmse``, ``mae``, which are missing where the
    prediction is on another scale. ``pearson_pooled`` is that over all locations of a fold's slides at once, as some
    publications report it: differences between slides raise it, so it is a row of its own (slide ``"pooled {fold}"``)
    and in no mean.

    Where the slides measured materially different genes (the shared ones carry less than 95 % of the counts of some),
    library sizes of all are counted over those that they share, so that log1p CP10k is one scale; a warning says so,
    and ``attrs["library"]`` their number and which share of each slide's counts they carry.

    What to read them against is added as further models: ``library_size`` (what a location's total of all other genes
    tells), ``neighbour_average`` (what its neighbours' measurement tells), ``training_mean`` (``r2``, ``rmse``, ``mae``
    of predicting each gene's mean), and ``ceiling``, whose metrics ``rmax`` (of raw counts only) and ``reliability``
    are the highest Pearson that noise allows. :func:`stpred.tl.summarise` averages all this,
    :func:`stpred.tl.rank_models` tests which models differ.

    Raises
    ------
    InputError
        If there are fewer than two donors, a slide has no donor, the same tissue has two, or slides share no gene.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(3, size_um=(500, 500), n_genes=20)
    >>> donors = {"donor0": "A", "donor1": "B", "donor2": "C"}
    >>> scores = st.tl.cross_validate(slides, ["mean", "ridge"], groups=donors, shapes_key="spots")
    >>> sorted(scores["model"].unique())
    ['ceiling', 'library_size', 'mean', 'neighbour_average', 'ridge', 'training_mean']
    """
    slides = data.as_slides(slides)
    grids, trained = _grids(models)
    rule = GeneRule.parse(genes)
    if target is not None:
        one_of(target, TRAINED_ON, name="target")
    scales = scales_of(scored_on, target)
    if n_folds is not None:
        n_folds = whole(n_folds, name="n_folds", unset=True)
        if n_folds < 2:
            raise InputError(f"`n_folds` must be at least 2 or None, got {n_folds}.")
    donors = data.donor_folds(list(slides), "slide" if isinstance(groups, str) and groups == "blocks" else groups)
    split = {"slide": "slide", "blocks": "block"}.get(groups if isinstance(groups, str) else "", "donor")
    if split != "block":
        _check_donors(donors, split, n_folds)
    if splits is not None and not isinstance(splits, Splits):
        raise InputError(f"`splits` must be a stpred.Splits, got {splits!r}.")
    if splits is not None and (splits.repeats > 1 or splits.train_on_one) and key_added is not None:
        raise InputError("These splits predict a slide several times: leave `key_added` out.")
    run = training.Run(device=device)
    place = Place(shapes_key, image_key, table_key, layer, coordinate_system)
    regions = {s: data.read_region(sdata, place, slide=s, measured=True) for s, sdata in slides.items()}
    if split != "block":
        data.refuse_copies(regions, donors)
    asked = [m.needs for m in trained.values()] + [c.needs for options in grids.values() for c in options]
    if any(needs.cells for needs in asked):
        regions = {s: data.with_cells(r, cells_key=cells_key) for s, r in regions.items()}
    elif cells_key is not None:
        raise InputError("`cells_key` is for families that see cells, and none of the models does.")
    shared = data.shared_library(regions.values())
    if shared is not None:
        regions = {s: r.over(shared.genes) for s, r in regions.items()}
    lattice = data.common_lattice(list(regions.values()))
    pitch_um = None if lattice is None else lattice.pitch_um
    grids = {name: [config.at_pitch(pitch_um) for config in options] for name, options in grids.items()}
    folds = _folds(regions, donors, split=split, n_folds=n_folds, splits=splits)
    fixed = FixedModels.of(trained, regions, donors if split == "donor" else {}, scales, device=device)
    out_of_fold = None if key_added is None else OutOfFold(key_added, regions, [*grids, *trained])
    named = split == "donor" and not isinstance(groups, str)
    kept = FoldModels(regions, donors, rule, target, seed, named, shared) if return_models else None
    if isinstance(encoder, (list, tuple)):
        encoder = encoders.get(encoder, tile=None if tile is None else TileSpec.parse(tile), device=device)
        tile = None
    criterion = "pearson" if splits is None else splits.criterion
    study = Study(
        regions, donors, grids, rule, target, scales, encoder, tile, seed, run, out_of_fold, criterion, kept, fixed
    )
    with training.resumable(run, planned=_announce(grids, folds, donors)):
        rows = [row for fold in track(folds, total=len(folds), describe="folds") for row in study.score_fold(fold)]
    result = pd.concat(rows, ignore_index=True).assign(donor_shared=split != "donor", split=split)
    result = result.assign(donor=result["slide"].map(donors).fillna(result["fold"]))[COLUMNS]
    if splits is not None and splits.repeats > 1:
        result = result.assign(repeat=result["fold"].map({f.name: i for i, f in enumerate(folds)}))
    result.attrs["n_locations"] = {s: len(r.coords_um) for s, r in regions.items()}
    if shared is not None:
        result.attrs["library"] = shared.to_dict()
    if out_of_fold is not None:
        out_of_fold.put(slides, result)
    return result if kept is None else (result, kept.found)


def _folds(
    regions: dict[str, data.Region],
    donors: dict[str, str],
    *,
    split: str,
    n_folds: int | None,
    splits: Splits | None,
) -> list[data.Fold]:
    """Return what is trained and tested on, in each fold."""
    given = None if splits is None or split == "block" else splits.of(donors)
    if given is not None and n_folds is not None:
        raise InputError("`splits` says what the folds are; leave `n_folds` out.")
    if split == "block":
        if splits is not None and splits.n is not None:
            raise InputError("`groups`='blocks' makes its own folds; leave `splits` out.")
        return data.block_folds(regions, n_folds=n_folds)
    found = training.group_folds(donors, n_folds=n_folds) if given is None else given
    return [data.Fold(name, dict.fromkeys(train), dict.fromkeys(test)) for name, train, test in found]


def _announce(grids: dict[str, list[BaseConfig]], folds: Sequence[data.Fold], donors: dict[str, str]) -> int:
    """Log the number of fitted networks of each model; return the total."""
    total = 0
    for name, options in grids.items():
        n, networks, long = 0, 0, False
        for fold in folds:
            groups = [donors[s] for s in fold.train]
            plans = [training.plan(o.model_class, o, groups, scored=len(options) > 1) for o in options]
            n += sum(p.n for p in plans) - (len(options) - 1)  # only the chosen setting is fitted on all slides
            networks += sum(p.networks for p in plans) - sum(p.networks > 0 for p in plans[1:])
            long = any(p.long for p in plans)
        if long:
            training.announce([f"Cross-validation of {name} takes {n} fits in {len(folds)} folds."])
            total += networks
    return total


def _check_donors(donors: dict[str, str], split: str, n_folds: int | None) -> None:
    n = len(set(donors.values()))
    if n < 2 and split == "slide":
        raise InputError(f"Cross-validation needs at least two slides, got {listing(donors)}.")
    if n < 2:
        raise InputError(
            f"Cross-validation needs at least two donors, got {sorted(set(donors.values()))}; for sections of one "
            f"donor pass groups='slide'."
        )
    if n_folds is not None and n_folds > n:
        raise InputError(f"`n_folds` is {n_folds}, but there are only {n} donors to deal out.")


def scales_of(scored_on: str | Sequence[str] | None, target: str | None) -> list[str]:
    """Return the scales that are scored on."""
    if scored_on is None:
        return [TARGETS[0] if target is None else scale_of(target)]
    scales = [scored_on] if isinstance(scored_on, str) else list(scored_on)
    if not scales:
        raise InputError(f"`scored_on` is empty; give one or more of {listing(SCALES)}.")
    return [one_of(s, SCALES, name="scored_on") for s in dict.fromkeys(scales)]


def refuse_context_names(names: Iterable[Any]) -> None:
    """Refuse models that are called what scores are read against."""
    if taken := [str(name) for name in names if str(name) in keys.CONTEXT]:
        raise InputError(
            f"No model can be called {listing(taken)}: these are the names of what scores are read against."
        )


def _grids(models: Any) -> tuple[dict[str, list[BaseConfig]], dict[str, Model]]:
    """Return, for each name, the settings to choose from; and trained models, which stay as they are."""
    if isinstance(models, Mapping):
        named = {str(name): value for name, value in models.items()}
    else:
        listed = list(models) if isinstance(models, (list, tuple)) else [models]
        named = {}
        for m in listed:
            name = m.record.name if isinstance(m, Model) else registry.resolve(m).family
            if name in named:
                raise InputError(f"Two models are called {name!r}; give them names with a mapping.")
            named[name] = m
    if not named:
        raise InputError("`models` is empty.")
    refuse_context_names(named)
    if empty := [name for name, value in named.items() if isinstance(value, (list, tuple)) and not value]:
        raise InputError(f"`models` holds no setting for {listing(empty)}.")
    trained = {name: value for name, value in named.items() if isinstance(value, Model)}
    if untrained := [name for name, model in trained.items() if not model.record.genes]:
        raise InputError(f"The models {listing(untrained)} are not trained; pass their Config.")
    grids = {
        name: [registry.resolve(o) for o in (value if isinstance(value, (list, tuple)) else [value])]
        for name, value in named.items()
        if name not in trained
    }
    return grids, trained

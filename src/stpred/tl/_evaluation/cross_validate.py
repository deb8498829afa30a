from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stpred import data, metrics, training
from stpred._core import keys
from stpred._core.checks import InputError, listing, one_of, whole
from stpred._core.files import readable, staged_file
from stpred._core.places import Place
from stpred._core.progress import track
from stpred._core.specs import GeneRule, TileSpec
from stpred._core.targets import TARGETS
from stpred.comparison.scoring import Measured, context, scores, tidy
from stpred.models import registry
from stpred.models.base import BaseConfig, Model
from stpred.models.batch import Batch, Needs
from stpred.tl._evaluation.out_of_fold import Prediction, Unseen
from stpred.training.cohort import encoder_of, measured, scored_scale

if TYPE_CHECKING:
    from spatialdata import SpatialData

logger = logging.getLogger("stpred")

Option = tuple[type[Model], BaseConfig]

COLUMNS = [
    "model", "fold", "slide", "gene", "metric", "value", "target", "trained_on", "donor_shared", "split", "chosen",
    "donor",
]  # fmt: skip

POOLED = "pearson_pooled"
METRICS = 2
"""Version of what is scored: a checkpoint of another one is not taken up."""


def cross_validate(
    slides: Mapping[str, SpatialData],
    models: str | BaseConfig | Mapping[str, Any] | Sequence[Any],
    *,
    groups: Mapping[str, str] | str,
    genes: GeneRule | str | Iterable[str] | None = None,
    n_folds: int | None = None,
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
    coordinate_system: str = keys.UM,
) -> pd.DataFrame:
    """Score models on donors that they have not seen.

    Genes are chosen, features and genes scaled, numbers of epochs, penalties and settings picked inside the training
    slides of every fold anew. With ``stpred.settings.checkpoint_dir``, scores of finished folds are kept there and not
    computed again (unless `key_added` asks for predictions); delete the folder when it is no longer needed.

    Parameters
    ----------
    slides
        Names to SpatialData objects with measured raw counts.
    models
        One model, a list, or a mapping of names to models; each a family name or a ``Config``. A *list of configs*
        (of one or several families) under one name is a grid: the best one is chosen inside the training slides of
        every fold, by leaving out their donors in turn. Features are computed once for all of them.
    groups
        Slide to donor, required: folds never share a donor. Two explicit exceptions, for which every row of the result
        says ``donor_shared=True``: ``"slide"`` leaves out sections of one donor; ``"blocks"`` leaves out parts of each
        slide, with a buffer of 2.5 pitches to what is trained on (``split`` then says ``"block"``).
    genes
        Gene rule, computed on the training slides of every fold anew; None takes the 250 genes of highest mean count.
    n_folds
        Number of folds that the donors are dealt out to; None leaves one donor out at a time (``"blocks"``: 4 blocks).
    shapes_key, table_key, layer, image_key, coordinate_system
        As in :func:`stpred.tl.train`.
    cells_key
        As in :func:`stpred.tl.train`. Where any of the models sees cells, all are trained and scored on the same
        locations: those that hold a cell.
    target
        What models are trained on, as in :func:`stpred.tl.train`; None: each family's own.
    scored_on
        Scale or scales of the measurement that predictions are compared with, ``"log1p_cp10k"`` or ``"counts"``; None:
        `target` if it is given, else log1p CP10k.
    encoder, tile, seed, device
        As in :func:`stpred.tl.train`.
    key_added
        Also put what each model predicts for the slides that it was not trained on into these slides, as tables
        ``{shapes}_{model}_{key_added}``, such as ``"cv"``: ``var`` has the genes' scores on slides of other donors.
        None keeps the scores alone.

    Returns
    -------
    Tidy DataFrame, one row per model, fold, slide, gene, scale and metric: ``model``, ``fold`` (the left-out donors),
    ``slide``, ``gene``, ``metric``, ``value`` (missing where a gene does not vary), ``target`` (the scale scored on),
    ``trained_on``, ``donor_shared``, ``split`` (``donor``, ``slide`` or ``block``), ``chosen`` (settings chosen inside
    the fold), ``donor``. Metrics are those of :func:`stpred.tl.compare`: ``pearson``, ``spearman``, ``auroc``,
    ``ssim``, ``pearson_smoothed``, ``pearson_given_library_size``, and ``r2``, ``rmse``, ``mae``, which are missing
    where the prediction is on another scale. Where a fold leaves out several slides, ``pearson_pooled`` is that over
    all their locations at once, as some publications report it: differences between slides raise it, so it is a row of
    its own (slide ``"pooled {fold}"``) and in no mean.

    Where the slides measured materially different genes (the shared ones carry less than 95 % of the counts of some),
    library sizes of all are counted over those that they share, so that log1p CP10k is one scale; a warning says so,
    and ``attrs["library"]`` how many they are and which share of each slide's counts they carry.

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
    grids = _grids(models)
    rule = GeneRule.parse(genes)
    if target is not None:
        one_of(target, TARGETS, name="target")
    scales = _scales(scored_on, target)
    if n_folds is not None:
        n_folds = whole(n_folds, name="n_folds", unset=True)
        if n_folds < 2:
            raise InputError(f"`n_folds` must be at least 2 or None, got {n_folds}.")
    donors = data.donor_folds(list(slides), "slide" if isinstance(groups, str) and groups == "blocks" else groups)
    split = {"slide": "slide", "blocks": "block"}.get(groups if isinstance(groups, str) else "", "donor")
    if split != "block":
        _check_donors(donors, split, n_folds)
    run = training.Run(device=device)
    place = Place(shapes_key, image_key, table_key, layer, coordinate_system)
    regions = {s: data.read_region(sdata, place, slide=s, measured=True) for s, sdata in slides.items()}
    if split != "block":
        data.refuse_copies(regions, donors)
    seen = [o[1].needs.cells for options in grids.values() for o in options]
    if any(seen):
        regions = {s: data.with_cells(r, cells_key=cells_key) for s, r in regions.items()}
    elif cells_key is not None:
        raise InputError("`cells_key` is for families that see cells, and none of the models does.")
    shared = data.shared_library(regions.values())
    if shared is not None:
        regions = {s: r.over(shared.genes) for s, r in regions.items()}
    lattice = data.common_lattice(list(regions.values()))
    pitch_um = None if lattice is None else lattice.pitch_um
    grids = {n: [(family, config.at_pitch(pitch_um)) for family, config in options] for n, options in grids.items()}
    folds = (
        data.block_folds(regions, n_folds=n_folds)
        if split == "block"
        else [
            data.Fold(name, dict.fromkeys(train), dict.fromkeys(test))
            for name, train, test in training.group_folds(donors, n_folds=n_folds)
        ]
    )
    embedded: dict[Any, dict[str, Batch]] = {}
    used_for = [getattr(encoder, "card", encoder), tile, coordinate_system]
    rows: list[pd.DataFrame] = []
    unseen = None if key_added is None else Unseen(key_added, regions, grids)
    run.planned = _announce(grids, folds, donors)
    for fold in track(folds, total=len(folds), describe="folds"):
        chosen = data.choose_genes([_part(regions[s], r) for s, r in fold.train.items()], rule)
        names = [g for g in chosen.index if all(g in regions[s].var.index for s in fold.test)]  # type: ignore[union-attr]
        for name, options in grids.items():
            facts = [
                METRICS, name, options, fold, names, target, scales, seed, rule.to_dict(), _facts(regions), used_for,
                donors,
            ]  # fmt: skip
            kept = _Kept(run.checkpoint, facts)
            found = kept.load() if unseen is None else None  # scores on disk have no predictions with them
            if found is None:
                if not embedded:
                    embedded = _embed(regions, grids, encoder=encoder, tile=tile, device=device)
                found, predicted = _score_model(
                    options, fold, regions, embedded, names,
                    donors=donors, target=target, scales=scales, seed=seed, run=run, encoder=encoder,
                    keep=unseen is not None,
                )  # fmt: skip
                kept.save(found)
                if unseen is not None:
                    unseen.add(name, predicted)
            rows.append(found.assign(model=name, fold=fold.name))
        rows += [
            _context(fold, s, regions, names, scale).assign(fold=fold.name, slide=s, target=scale)
            for s in fold.test
            for scale in scales
        ]
    run.clear()
    result = pd.concat(rows, ignore_index=True).assign(donor_shared=split != "donor", split=split)
    result = result.assign(donor=result["slide"].map(donors).fillna(result["fold"]))[COLUMNS]
    if shared is not None:
        result.attrs["library"] = shared.to_dict()
    if unseen is not None:
        unseen.put(slides, result)
    return result


def _announce(grids: dict[str, list[Option]], folds: Sequence[data.Fold], donors: dict[str, str]) -> int:
    """Say how many networks are fitted, model by model; return their number."""
    total = 0
    for name, options in grids.items():
        n, networks, long = 0, 0, False
        for fold in folds:
            groups = [donors[s] for s in fold.train]
            plans = [training.plan(*o, groups, scored=len(options) > 1) for o in options]
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


def _scales(scored_on: str | Sequence[str] | None, target: str | None) -> list[str]:
    """Return the scales that are scored on."""
    if scored_on is None:
        return [TARGETS[0] if target is None else target]
    scales = [scored_on] if isinstance(scored_on, str) else list(scored_on)
    if not scales:
        raise InputError(f"`scored_on` is empty; give one or more of {listing(TARGETS)}.")
    return [one_of(s, TARGETS, name="scored_on") for s in dict.fromkeys(scales)]


def _part(region: data.Region, rows: Any) -> data.Region:
    return region if rows is None else region.take(rows)


def _score_model(
    options: list[Option],
    fold: data.Fold,
    regions: dict[str, data.Region],
    embedded: dict[Any, dict[str, Batch]],
    names: list[str],
    *,
    donors: dict[str, str],
    target: str | None,
    scales: list[str],
    seed: int,
    run: training.Run,
    encoder: Any,
    keep: bool,
) -> tuple[pd.DataFrame, list[Prediction]]:
    """Choose, train and score one model in one fold; with `keep`, also return what it predicted."""
    inner: list[list[Batch]] = []
    order: list[str] = []
    for o in options:
        batches, order = [], []
        for s, rows in fold.train.items():
            values = measured(regions[s], names, o[1], target=target, scored_on=scales[0])
            batch = values.put(embedded[_key(o)][s])
            batches.append(batch if rows is None else batch.take(rows))
            order.append(donors[s])
        inner.append(batches)
    best, _ = training.choose_config(options, dict(enumerate(inner)), groups=order, seed=seed, run=run)
    model, facts = training.fit(*options[best], inner[best], groups=order, seed=seed, typical=keep, run=run)
    config = options[best][1]
    said = ", ".join(f"{k}={v}" for k, v in _told(options[best], facts, several=len(options) > 1).items())
    parts, predicted = [], []
    both: dict[str, list[tuple[Any, Any]]] = {scale: [] for scale in scales}
    for s, rows in fold.test.items():
        batch = embedded[_key(options[best])][s]
        batch = batch if rows is None else batch.take(rows)
        raw, spread = model.predict(batch)
        for scale in scales:
            truth = _measured(_part(regions[s], rows), names, scale)
            comparable = scored_scale(config, target) == scale and config.output_scale(target) != "relative"
            found = scores(model.as_scored(raw), truth, comparable=comparable)
            parts.append(tidy(found, names).assign(slide=s, target=scale))
            both[scale].append((model.as_scored(raw), truth.observed))
        if keep:
            limit = facts.get("slide_limit")
            predicted.append(
                Prediction(
                    slide=s, rows=rows, genes=names, mean=raw, std=spread, unlike=model.ood_distance(batch),
                    slide_limit=limit, scale=config.output_scale(target), per=config.per,
                    family=config.family, config=config.to_dict(), chosen=said,
                    encoder=_seen_through(config, encoder), fold=fold.name, trained_on=list(fold.train),
                )
            )  # fmt: skip
    if len(fold.test) > 1:
        for scale, sides in both.items():
            pooled = metrics.pearson(*(np.concatenate(side) for side in zip(*sides, strict=True)))
            parts.append(tidy({POOLED: pooled}, names).assign(slide=f"pooled {fold.name}", target=scale))
    frame = pd.concat(parts).assign(chosen=said, trained_on=config.training_target(target))
    return frame, predicted


_MARK = "# sha256 "
"""What the last line of a file of scores begins with."""


class _Kept:
    """A fold's scores on disk, by everything that they depend on."""

    def __init__(self, folder: str | Path | None, facts: list[Any]) -> None:
        key = hashlib.sha256(json.dumps(facts, default=_plain, sort_keys=True).encode()).hexdigest()[:20]
        self.path = None if folder is None else Path(folder) / f"scores-{key}.csv"

    def load(self) -> pd.DataFrame | None:
        """Return what is there, if it is."""
        if self.path is None or not self.path.is_file():
            return None
        kinds = {"gene": str, "slide": str, "metric": str, "target": str, "chosen": str, "trained_on": str}
        try:
            with readable(self.path, what="file of a fold's scores"):
                text, _, mark = self.path.read_text(encoding="utf-8").rpartition(_MARK)
                if mark.strip() != _digest(text):
                    raise ValueError("it does not hold what was written")
                frame = pd.read_csv(
                    io.StringIO(text),
                    dtype=kinds,
                    float_precision="round_trip",
                    keep_default_na=False,
                    na_values={"value": [""]},
                )
        except InputError as error:
            logger.warning("%s The fold is scored anew.", error)
            return None
        logger.info("A finished fold was taken from %s.", self.path)
        return frame

    def save(self, frame: pd.DataFrame) -> None:
        """Keep it; the file appears whole."""
        if self.path is None:
            return
        text = frame.to_csv(index=False)
        with staged_file(self.path, what="file of a fold's scores") as part:
            part.write_text(f"{text}{_MARK}{_digest(text)}\n", encoding="utf-8")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _plain(value: Any) -> Any:
    """Return facts as JSON: configs by family and fields, folds by rows."""
    if isinstance(value, data.Fold):
        return [value.name, value.train, value.test]
    if isinstance(value, BaseConfig):
        return value.to_dict()
    if isinstance(value, type):
        return value.__name__
    return value.tolist() if isinstance(value, np.ndarray) else str(value)


def _facts(regions: dict[str, data.Region]) -> dict[str, Any]:
    """Return what tells these slides' images, locations and counts from others."""
    return {
        s: [r.pyramid.fingerprint, float(np.abs(r.coords_um).sum()), float(r.totals.sum()), len(r.coords_um), _cells(r)]  # type: ignore[union-attr]
        for s, r in regions.items()
    }


def _cells(region: data.Region) -> list[Any] | None:
    """Return what tells the cells of a slide's locations from others."""
    if region.cells is None:
        return None
    inside = region.cells
    return [inside.region.shapes_key, inside.links.indices.size, float(np.abs(inside.region.coords_um).sum())]


def _grids(models: Any) -> dict[str, list[Option]]:
    """Return, for each name, the settings to choose from."""
    if isinstance(models, Mapping):
        named = dict(models)
    else:
        listed = list(models) if isinstance(models, (list, tuple)) else [models]
        named = {}
        for m in listed:
            name = registry.resolve(m).family
            if name in named:
                raise InputError(f"Two models are called {name!r}; give them names with a mapping.")
            named[name] = m
    if not named:
        raise InputError("`models` is empty.")
    if taken := [str(name) for name in named if str(name) in keys.CONTEXT]:
        raise InputError(
            f"No model can be called {listing(taken)}: these are the names of what scores are read against."
        )
    if empty := [str(name) for name, value in named.items() if isinstance(value, (list, tuple)) and not value]:
        raise InputError(f"`models` holds no setting for {listing(empty)}.")
    return {
        str(name): [
            ((config := registry.resolve(o)).model_class, config)
            for o in (value if isinstance(value, (list, tuple)) else [value])
        ]
        for name, value in named.items()
    }


def _key(option: Option) -> tuple[str, TileSpec | None, Needs]:
    """Options with the same key see the same batch."""
    config = option[1]
    return config.default_encoder, config.default_tile, config.needs


def _embed(
    regions: dict[str, data.Region],
    grids: dict[str, list[Option]],
    *,
    encoder: Any,
    tile: Any,
    device: Any,
) -> dict[tuple[str, TileSpec | None, Needs], dict[str, Batch]]:
    """Return batches without targets for every (encoder, tile, needs); tiles are embedded once per encoder."""
    wanted = {_key(o): o[1] for options in grids.values() for o in options}
    found: dict[tuple[str, TileSpec | None, Needs], dict[str, Batch]] = {key: {} for key in wanted}
    for seen in sorted({key[:2] for key in wanted}, key=str):
        mine = {key: config for key, config in wanted.items() if key[:2] == seen}
        config = next(iter(mine.values()))
        # Families that bring an encoder of their own (colour, pixels) keep it whatever the others use.
        given = encoder if config.default_encoder == BaseConfig.default_encoder else None
        used = encoder_of(config, given, tile=tile, device=device)
        for s, region in regions.items():
            for key in [k for k in mine if k[2].cells or k[2].tokens]:
                found[key][s] = data.reader_for(region, used, key[2]).whole()
            tiles = {k: v for k, v in mine.items() if not (k[2].cells or k[2].tokens)}
            if not tiles:
                continue
            colour = any(key[2].slide_colour for key in tiles)
            first = data.reader_for(region, used, Needs(slide_colour=colour)).whole()
            for parts in {key[2].parts for key in tiles}:
                batch = first
                if parts is not None:
                    batch = data.with_parts(first, region, used, parts)
                for key in tiles:
                    if key[2].parts == parts:
                        found[key][s] = data.with_needs(batch, key[2])
    return found


def _told(option: Option, facts: dict[str, Any], *, several: bool) -> dict[str, Any]:
    """Return settings that differ from the defaults, and what the fit chose."""
    family, config = option
    default = type(config)()
    told = {k: v for k, v in config.to_dict().items() if v != default.to_dict()[k]}
    first = {"family": family.family} if several else {}
    return first | told | {k: v for k, v in facts.items() if isinstance(v, (int, float)) and k != "slide_limit"}


def _seen_through(config: BaseConfig, given: Any) -> str:
    """Return the name of the encoder that a model sees tiles through."""
    if given is None or config.default_encoder != BaseConfig.default_encoder:
        return config.default_encoder
    return str(given if isinstance(given, str) else getattr(getattr(given, "card", None), "name", type(given).__name__))


def _measured(region: data.Region, names: list[str], target: str) -> Measured:
    columns = region.var.index.get_indexer(names)  # type: ignore[union-attr]
    return Measured(region.counts, columns, region.target(names, target), target, region.coords_um)


def _context(
    fold: data.Fold, slide: str, regions: dict[str, data.Region], names: list[str], target: str
) -> pd.DataFrame:
    """Return what scores on a left-out slide are read against, as rows of further models."""
    truth = _measured(_part(regions[slide], fold.test[slide]), names, target)
    found = context(truth)
    parts = [tidy({"pearson": found[name]}, names).assign(model=name) for name in keys.CONTEXT[:2]]
    ceilings = ("rmax", "reliability") if target == "counts" else ("reliability",)
    parts.append(tidy({name: found[name] for name in ceilings}, names).assign(model=keys.CEILING))
    total = sum(_part(regions[s], r).target(names, target).sum(axis=0, dtype=np.float64) for s, r in fold.train.items())
    n = sum(len(regions[s].coords_um) if r is None else len(r) for s, r in fold.train.items())
    mean = np.broadcast_to(total / n, truth.observed.shape)
    errors = {name: getattr(metrics, name)(mean, truth.observed) for name in ("r2", "rmse", "mae")}
    parts.append(tidy(errors, names).assign(model=keys.TRAINING_MEAN))
    return pd.concat(parts).assign(chosen="", trained_on=target)

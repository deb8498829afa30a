from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred import data, encoders
from stpred._core import keys, tables, targets
from stpred._core.checks import InputError, key_in, listing, warn, whole
from stpred._core.elements import table_in_frame, table_instances, table_regions
from stpred._core.names import named
from stpred._core.places import Place
from stpred._core.recipes.splits import Splits
from stpred._core.recipes.tile_risk import TileRisk
from stpred.comparison.slide_tables import positions_um
from stpred.tl._samples.sample_folds import folds, interval, resampled, share_of_pairs, survival_pairs
from stpred.tl._samples.sample_table import follow_up, sample_groups

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray
    from spatialdata import SpatialData

    from stpred.tl._samples.tile_network import TileRisks

KIND = "tile_risk"

_DRAWS = 2000


def tile_survival(
    slides: Mapping[str, SpatialData] | Mapping[str, NDArray[Any]],
    time: Mapping[str, float] | ArrayLike,
    event: Mapping[str, bool] | ArrayLike,
    *,
    groups: Mapping[str, str] | None = None,
    encoder: Any = "morphology",
    table_key: str | None = None,
    shapes_key: str | None = None,
    image_key: str | None = None,
    n_folds: int = 5,
    splits: Splits | None = None,
    model: TileRisk | None = None,
    apply_to: Mapping[str, SpatialData] | Mapping[str, NDArray[Any]] | None = None,
    key_added: str | None = None,
    seed: int = 0,
    device: str | None = None,
    coordinate_system: str = keys.UM,
) -> pd.DataFrame:
    """Learn from survival which tiles of a slide go with a high risk, and write a risk per tile.

    Each tile gets a score that is linear in its features, and a small network turns the highest and the lowest scores
    of a slide into its log hazard (Cox's partial likelihood; as Chowder does). The network rises with every score, so
    that a score is a risk. Scores begin as those of a Cox ridge regression on the mean tile and are refined through
    the network as long as slides that were held out bear it out.

    All risks are out of fold: a slide's tiles and the slide itself are judged by models that saw no slide of its donor.
    Where slides are ranked no better than by chance, their tiles' risks are 0 (:class:`stpred.TileRisk`, ``level``):
    those of a model without knowledge would point at some tissue as confidently as those of a good one.

    Parameters
    ----------
    slides
        Slides by name. Or by name the (n, d) features of its tiles, of which nothing is written.
    time, event
        Follow-up of each slide's patient (above 0), and whether it ended with the event (1, True) or not (0): by slide,
        or in the order of the slides.
    groups
        Patient of each slide, never on both sides of a split; None: every slide is a patient of its own.
    encoder
        Whose features tiles have, as in :func:`stpred.pp.features`, which may have stored them.
    table_key
        Table of every slide whose ``X`` are the features of tiles, instead of an encoder.
    shapes_key, image_key
        Region whose locations are the tiles (such as ``"grid"``), and H&E image; None: the only one.
    n_folds
        Folds, spread evenly over events.
    splits
        Explicit folds, ``st.Splits(folds=...)``, in which every slide is held out once.
    model
        Settings; None: those of :class:`stpred.TileRisk`.
    apply_to
        Further slides, without follow-up, whose tiles get the mean risk by all models. None of their patients may be
        in `slides`, by name of slide or in `groups`.
    key_added
        Name of the tables; None: ``{shapes}_risk``.
    seed
        Of folds, inner folds, the network's start and the choice of tiles.
    device
        Where encoder and network run; None: the network on the CPU.
    coordinate_system
        The slides' micrometre frame.

    Returns
    -------
    DataFrame indexed by slide: ``risk`` (log hazard ratio to the mean training slide, averaged over repeats), ``time``,
    ``event``, ``group``, ``fold`` (of the first repeat), ``n_tiles``. ``attrs``: ``concordance`` and
    ``concordance_interval`` (95 %, bootstrap over patients) over pairs of slides of the same fold, ``above_chance`` (if
    not, all tiles have the risk 0), ``concordance_per_repeat``, ``n_events``, and by repeat and fold ``penalty``,
    ``n_steps`` and ``inner_concordance``. Of arrays also ``tile_risk``, a dict of slide to list of risks.

    Each slide gets a table (n_tiles, 1) with the variable ``risk``, float32: standard deviations above the mean of the
    training slides' tiles. :func:`stpred.tl.differential_rank` takes its name as `risk`. A slide of fewer than
    ``2 * n_top`` tiles has some among both its highest and its lowest; one of fewer than ``n_top`` repeats tiles.

    Raises
    ------
    InputError
        If follow-up is missing, no slide has an event, there are fewer than two events per fold or fewer patients than
        folds, a patient is on both sides of a split, or the slides' features differ.

    Warns
    -----
    UserWarning
        Where risks are 0 for lack of evidence, and of slides with few tiles.

    References
    ----------
    Courtiol et al. 2018 (Chowder). Schmauch et al. (2025), A deep learning-based multiscale integration of spatial
    omics with tumor morphology, Nature Communications: 25 highest and 25 lowest tiles, five folds.

    Examples
    --------
    >>> import numpy as np, stpred as st
    >>> rng = np.random.default_rng(0)
    >>> share = rng.uniform(0, 0.5, 60)
    >>> tiles = {f"s{i}": rng.normal(size=(40, 8)) + 3 * (rng.random((40, 1)) < share[i]) for i in range(60)}
    >>> time = rng.exponential(np.exp(-8 * share))
    >>> found = st.tl.tile_survival(tiles, time, np.ones(60), n_folds=2, model=st.TileRisk(n_top=10, n_inner=2))
    >>> found.attrs["concordance"] > 0.7
    True
    """
    import pandas as pd

    from stpred.tl._samples.tile_network import cross_fitted

    settings = TileRisk() if model is None else model
    if not isinstance(settings, TileRisk):
        raise InputError(f"`model` must be a stpred.TileRisk, got {model!r}.")
    given, others = _named(slides, "slides"), {} if apply_to is None else _named(apply_to, "apply_to")
    samples = pd.DataFrame(index=pd.Index(list(given), name="slide"))
    t, died, of = _outcome(samples, time, event, groups, others)
    fold = _folds(list(given), died, of, n_folds=n_folds, splits=splits, n_repeats=settings.n_repeats, seed=seed)
    where = _Tiles(encoder, table_key, Place(shapes_key, image_key, coordinate_system=coordinate_system), device)
    read = {slide: where.read(slide, value) for slide, value in (given | others).items()}
    _same_features(read)
    regions = {s: t.region for s, t in read.items() if t.region is not None and s in given}
    data.refuse_copies(regions, dict(zip(given, of, strict=True)))
    for tile in read.values():
        if not isinstance(tile.sdata, np.ndarray):
            tile.key(key_added)
    tiles = [read[s].features for s in given]
    found = cross_fitted(tiles, t, died, of, fold, settings=settings, seed=seed, device=device or "cpu")
    result = _frame(samples, found, t, died, of, fold, settings=settings, seed=seed)
    result.insert(5, "n_tiles", [len(x) for x in tiles])
    _tell(result, settings)
    every = [m for repeat in found.models for m in repeat]
    risks = dict(zip(given, found.tiles, strict=True))
    risks |= {s: np.mean([m.tile_risk(read[s].features) for m in every], axis=0) for s in others}
    if not result.attrs["above_chance"]:
        risks = {s: np.zeros_like(r) for s, r in risks.items()}
    if any(isinstance(v.sdata, np.ndarray) for v in read.values()):
        result.attrs["tile_risk"] = {s: r.tolist() for s, r in risks.items()}
    for slide, tile in read.items():
        if not isinstance(tile.sdata, np.ndarray):
            facts = {"fold": int(fold[0, list(given).index(slide)])} if slide in given else {"fold": None}
            facts |= {"encoder": tile.card, "model": asdict(settings), "seed": seed, "n_slides": len(given)}
            facts |= {"concordance": result.attrs["concordance"], "above_chance": result.attrs["above_chance"]}
            tile.write(risks[slide], key_added, facts | {"out_of_fold": slide in given})
    return result


class _Tile:
    """Tiles of one slide."""

    def __init__(
        self, sdata: Any, features: NDArray[Any], names: list[str] | None, shapes_key: str = "", instances: Any = None,
        coords_um: Any = None, card: Any = None, region: data.Region | None = None,
    ) -> None:  # fmt: skip
        self.sdata, self.features, self.names, self.region = sdata, features, names, region
        self.shapes_key, self.instances, self.coords_um, self.card = shapes_key, instances, coords_um, card

    def key(self, key_added: str | None) -> str:
        """Return what its table will be called, if it can be written."""
        key = f"{self.shapes_key}_risk" if key_added is None else key_added
        tables.check_writable(self.sdata, key)
        return key

    def write(self, risk: NDArray[np.float32], key_added: str | None, facts: dict[str, Any]) -> None:
        """Write the risks as a table of the region."""
        import pandas as pd

        table = tables.build_table(
            risk[:, None].astype(np.float32),
            shapes_key=self.shapes_key,
            instances=self.instances,
            var=pd.DataFrame(index=["risk"]),
            spatial_um=self.coords_um,
            provenance={"kind": KIND, **facts, "versions": tables.package_versions()},
        )
        tables.put_table(self.sdata, self.key(key_added), table)


class _Tiles:
    """Where features of tiles come from."""

    def __init__(self, encoder: Any, table_key: str | None, place: Place, device: str | None) -> None:
        self.encoder, self.table_key, self.place, self.device = encoder, table_key, place, device
        self._loaded: Any = None

    def read(self, slide: str, value: Any) -> _Tile:
        """Return a slide's tiles, which are checked."""
        if isinstance(value, np.ndarray):
            found = _Tile(value, value, None)
        elif self.table_key is not None:
            found = self._stored(slide, value, self.table_key)
        else:
            found = self._embedded(slide, value)
        x = found.features
        if x.ndim != 2 or 0 in x.shape or x.dtype.kind not in "fiub":
            raise InputError(f"Features of {slide!r} must be numbers of shape (n_tiles, n_features), got {x.shape}.")
        if not np.isfinite(x).all():
            raise InputError(f"Features of {slide!r} hold {int((~np.isfinite(x)).sum())} NaN or infinite values.")
        return found

    def _stored(self, slide: str, sdata: SpatialData, key: str) -> _Tile:
        key_in(key, sdata.tables, what=f"table of {slide!r}", name="table_key")
        table = table_in_frame(sdata, key, coordinate_system=self.place.coordinate_system)
        xy = positions_um(sdata, table, coordinate_system=self.place.coordinate_system)
        region = table_regions(table)[0]
        card = tables.read_provenance(table).get("encoder") if keys.UNS in table.uns else None
        rows, instances = table_instances(table, region)
        x = targets.dense(table.X, np.float32)[rows]
        return _Tile(sdata, x, table.var_names.astype(str).tolist(), region, instances, xy[rows], card)

    def _embedded(self, slide: str, sdata: SpatialData) -> _Tile:
        if self._loaded is None:
            self._loaded = encoders.get(self.encoder, device=self.device)
        region = data.read_region(sdata, self.place, slide=slide)
        data.check_resolution(region, self._loaded)
        x, card = data.embed_region(region, self._loaded), self._loaded.card.to_dict()
        return _Tile(sdata, np.asarray(x), None, region.shapes_key, region.instances, region.coords_um, card, region)


def _named(slides: Any, name: str) -> dict[str, Any]:
    """Return slides by name: all SpatialData, or all arrays."""
    if not isinstance(slides, Mapping) or not slides:
        raise InputError(f"`{name}` must be a mapping of names to slides, or to arrays of tile features.")
    found = named(slides, what=name)
    if all(isinstance(v, np.ndarray) for v in found.values()):
        return found
    return dict(data.as_slides(found))


def _outcome(
    samples: pd.DataFrame, time: Any, event: Any, groups: Any, others: Mapping[str, Any]
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[Any]]:
    """Return (S,) follow-up, events and patients."""
    from anndata import AnnData

    for name, value in {"time": time, "event": event, "groups": groups}.items():
        if isinstance(value, str):
            raise InputError(f"`{name}` must have one value per slide, by name or in their order, got {value!r}.")
    table = AnnData(obs=samples)
    t, died = follow_up(table, time, event)
    of = sample_groups(table, groups)
    known = {} if groups is None or not hasattr(groups, "items") else named(groups, what="groups")
    patients = {s: str(known.get(s, s)) for s in others}
    trained = set(of) | set(samples.index)
    if shared := [s for s, p in patients.items() if p in trained or s in trained]:
        raise InputError(
            f"Patients of the slides {listing(shared)} of `apply_to` are in `slides`, too; leave them out."
        )
    return t, died, of


def _folds(
    slides: list[str], died: NDArray[np.bool_], of: NDArray[Any], *, n_folds: int, splits: Splits | None,
    n_repeats: int, seed: int,
) -> NDArray[np.int64]:  # fmt: skip
    """Return (R, S) folds by repeat."""
    n = whole(n_folds, name="n_folds")
    if splits is not None:
        if not isinstance(splits, Splits) or splits.folds is None or splits.discarded is not None:
            raise InputError("`splits` must be a stpred.Splits with `folds`, in which every slide is held out once.")
        found = np.full(len(slides), -1)
        for k, (_, _, test) in enumerate(splits.of(dict(zip(slides, of, strict=True))) or []):
            found[[slides.index(s) for s in test]] = k
        if (found < 0).any():
            raise InputError(f"No fold holds out the slides {listing(np.array(slides)[found < 0])}.")
        n = int(found.max()) + 1
    if n < 2 or died.sum() < 2 * n:
        raise InputError(
            f"{int(died.sum())} events in {len(died)} slides are too few for {n} folds: at least two folds and two "
            f"events in each are needed ({2 * max(n, 2)})."
        )
    if splits is not None:
        if poor := [k for k in range(n) if died[found != k].sum() < 2]:
            raise InputError(f"The training slides of the folds {poor} have fewer than two events.")
        return found[None]
    return np.stack([folds(died, of, n=n, seed=seed + r) for r in range(n_repeats)])


def _same_features(read: Mapping[str, _Tile]) -> None:
    """Refuse slides whose features are not the same."""
    (first, one), *others = read.items()
    for slide, tile in others:
        if tile.features.shape[1] != one.features.shape[1] or tile.names != one.names:
            raise InputError(
                f"The features of {first!r} ({one.features.shape[1]}) and {slide!r} ({tile.features.shape[1]}) differ"
                f"{'' if tile.names is None else ' or have other names'}; compute them with one encoder."
            )
        if tile.card != one.card:
            names = [(t.card or {}).get("name", "none") for t in (one, tile)]
            raise InputError(
                f"The features of {first!r} and {slide!r} are of different encoders ({names[0]!r} and {names[1]!r}, or "
                "the same with other settings); compute them with one."
            )


def _frame(
    samples: pd.DataFrame, found: TileRisks, time: Any, event: Any, groups: Any, fold: NDArray[np.int64], *,
    settings: TileRisk, seed: int,
) -> pd.DataFrame:  # fmt: skip
    pairs = [survival_pairs(time, event, risk, of) for risk, of in zip(found.slides, fold, strict=True)]
    both = (np.mean([p[0] for p in pairs], axis=0), np.mean([p[1] for p in pairs], axis=0))
    draws = [share_of_pairs(both, w) for w in resampled(groups, n=_DRAWS, seed=seed)]
    concordance = share_of_pairs(both)
    result = samples.assign(risk=found.slides.mean(axis=0), time=time, event=event, group=groups, fold=fold[0])

    def each(field: str) -> list[list[Any]]:
        return [[getattr(m, field) for m in repeat] for repeat in found.models]

    result.attrs = {
        "concordance": concordance,
        "concordance_interval": interval(draws),
        "above_chance": above_chance(concordance, draws, settings.level),
        "concordance_per_repeat": [share_of_pairs(p) for p in pairs],
        "n_events": int(event.sum()),
        **{name: each(name) for name in ("penalty", "n_steps", "inner_concordance")},
    }
    return result


def above_chance(concordance: float, draws: ArrayLike, level: float | None) -> bool:
    """Whether a concordance is above a half at a one-sided level, with its standard error from draws; None: always."""
    from scipy.stats import norm

    error = np.nanstd(np.asarray(draws))
    return level is None or bool(np.isfinite(concordance) and concordance - 0.5 > norm.isf(level) * error)


def _tell(result: pd.DataFrame, settings: TileRisk) -> None:
    """Warn of risks that are not given, and of slides with few tiles."""
    if not result.attrs["above_chance"]:
        warn(
            f"Slides are ranked no better than by chance (concordance {result.attrs['concordance']:.2f}, not above 0.5 "
            f"at level {settings.level}), so all tiles get the risk 0."
        )
    if (few := result["n_tiles"] < 2 * settings.n_top).any():
        warn(
            f"{int(few.sum())} of {len(few)} slides have fewer than {2 * settings.n_top} tiles, so that some are among "
            f"both the highest and the lowest: {listing(result.index[few])}."
        )


def risk_table(sdata: SpatialData, key: str, table: AnnData, *, slide: str, coordinate_system: str) -> pd.Series:
    """Return the risks of a table of :func:`tile_survival` by the rows of another table of the same region."""
    import pandas as pd

    risks = table_in_frame(sdata, key, coordinate_system=coordinate_system)
    facts = tables.read_provenance(risks, what=f"table {key!r} of {slide!r}")
    if facts.get("kind") != KIND:
        raise InputError(f"Table {key!r} of {slide!r} holds {facts.get('kind')!r}, no risk of stpred.tl.tile_survival.")
    own, its = table_regions(table), table_regions(risks)
    if own != its:
        raise InputError(
            f"The risks {key!r} of {slide!r} are of {listing(its)}, and the expression is of {listing(own)}; give both "
            "the same region (`shapes_key`)."
        )
    (rows, ids), (mine, wanted) = table_instances(risks, its[0]), table_instances(table, own[0])
    by_instance = pd.Series(np.asarray(risks.X)[rows, 0], index=ids)
    return pd.Series(by_instance.reindex(wanted).to_numpy(), index=table.obs_names[mine]).reindex(table.obs_names)

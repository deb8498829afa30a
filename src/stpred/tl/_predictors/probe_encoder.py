from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from stpred import data, encoders, training
from stpred._core import keys
from stpred._core.checks import InputError, key_in, listing, positive, warn, whole
from stpred._core.disk.wheels import WHEELS
from stpred._core.elements import table_instances, table_regions
from stpred._core.specs import TileSpec
from stpred.encoders.base import RANDOM, TIMM, Encoder
from stpred.encoders.composite import Composite
from stpred.encoders.registry import rebuild
from stpred.encoders.trained import TrainedEncoder
from stpred.tiles import read_tiles
from stpred.tl._predictors.pretrain_encoder import regions_of

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData

logger = logging.getLogger("stpred")

MAJORITY, COLOUR = "majority", "colour"
UNTRAINED = "-untrained"

PENALTY = 1e-3
"""Of the linear classifier's squared weights, beside the mean cross-entropy."""

STATISTICS_TILES = 512
"""Tiles from which an untrained network gets the statistics of its batch norms."""


def probe_encoder(
    encoder: Any,
    slides: SpatialData | Mapping[str, SpatialData],
    *,
    labels: str,
    shapes_key: str | None = None,
    table_key: str | None = None,
    image_key: str | None = None,
    groups: Mapping[str, str] | None = None,
    tile: TileSpec | Mapping[str, float] | None = None,
    n_folds: int = 4,
    buffer_um: float | None = None,
    n_tiles: int = 20_000,
    n_neighbors: int = 20,
    seed: int = 0,
    device: str | None = None,
    coordinate_system: str = keys.UM,
) -> pd.DataFrame:
    """Score how well encoders' features predict labels, such as cell types, on held-out tissue.

    Parameters
    ----------
    encoder
        One encoder or a list of them: whatever :func:`stpred.encoders.get` takes. Encoders in a list of their own,
        ``["morphology", ["morphology", "intensity"]]``, are scored side by side.
    slides
        One SpatialData object, or a mapping of slide names to them.
    labels
        Column of the shapes, or of a table that annotates them, with two or more classes. Locations without a label are
        held out.
    shapes_key
        Region; None takes ``nuclei``, ``cells``, ``spots`` or ``grid``, whichever comes first.
    table_key
        Table that holds the labels; None looks in the shapes, and then in all tables of the region.
    image_key
        H&E image; None takes the one in the micrometre frame.
    groups
        Donor of each slide; None takes each slide for a donor of its own. With two donors or more, whole donors are
        held out; else blocks of each slide.
    tile
        :class:`~stpred.TileSpec` for encoders that are named; None takes their own.
    n_folds
        Most folds.
    buffer_um
        With blocks: distance of the others from a held-out block; None: twice the largest tile's edge.
    n_tiles
        Most locations that are looked at: a random choice over all slides.
    n_neighbors
        Neighbours that vote.
    seed
        Of that choice.
    device
        Where encoders run; None takes a GPU if there is one.
    coordinate_system
        The slides' micrometre frame.

    Returns
    -------
    pandas.DataFrame
        One row per encoder, and before them ``"majority"`` (always the commonest label) and ``"colour"`` (mean and
        standard deviation of the tile's red, green and blue, the encoder of that name); after each network that can be
        initialised at random, ``"...-untrained"``.
        ``knn`` and ``linear`` are accuracies of the k nearest neighbours and of a logistic regression on standardised
        features, ``knn_balanced`` and ``linear_balanced`` their means over classes: all are means over the folds.
        Further: ``width``, ``n_folds``, ``n_locations``, ``left_out`` (``"donors"`` or ``"blocks"``).

    Raises
    ------
    InputError
        If there is no such column, it has a single class, or the slides are too small to leave parts out.

    Warns
    -----
    UserWarning
        When a network does not beat its untrained self by either classifier.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(size_um=(400, 400), mpp=0.25, n_genes=20)
    >>> found = st.tl.probe_encoder("morphology", slide, labels="type", tile=st.TileSpec(0.25, 48))
    >>> found.index.tolist()
    ['majority', 'colour', 'morphology']
    """
    slides = data.as_slides(slides)
    if not isinstance(labels, str):
        raise InputError(f"`labels` must be the name of a column, got {labels!r}.")
    counts = {"n_folds": n_folds, "n_neighbors": n_neighbors, "n_tiles": n_tiles}
    n_folds, n_neighbors, n_tiles = (whole(v, name=n) for n, v in counts.items())
    if n_folds < 2:
        raise InputError(f"`n_folds` must be at least 2, got {n_folds}.")
    if buffer_um is not None and buffer_um != 0:
        buffer_um = positive(buffer_um, name="buffer_um", unit="micrometres")
    donors = data.donor_folds(list(slides), "slide" if groups is None else groups)
    used = _encoders(encoder, tile=tile, device=device)
    regions = regions_of(slides, shapes_key=shapes_key, image_key=image_key, coordinate_system=coordinate_system)
    for region in regions:
        for e in used:
            data.check_resolution(region, e)
    regions, codes, classes = _with_labels(regions, labels, table_key, n_tiles=n_tiles, seed=seed)
    every, named, parents = _with_baselines(used, regions, seed=seed, device=device)
    if buffer_um is None:
        buffer_um = 2 * max(e.card.tile.size_um for e in every.values())
    folds, left_out = _folds(regions, donors, n_folds=n_folds, buffer_um=buffer_um)
    scores = {MAJORITY: _majority(codes, folds)}
    widths = {MAJORITY: 0}
    for name, e in every.items():
        x = np.concatenate([data.embed(r, e, r.coords_um) for r in regions]).astype(np.float32)
        scores[name] = _scores(x, codes, folds, n_neighbors=n_neighbors)
        widths[name] = e.card.width
    frame = _frame(scores, widths, n_folds=len(folds), n=len(codes), left_out=left_out)
    for name in named:
        own = frame.loc[name]
        if (worse := parents.get(name)) is not None and not (
            own["knn"] > frame.loc[worse, "knn"] or own["linear"] > frame.loc[worse, "linear"]
        ):
            warn(
                f"The encoder {name!r} knows no more of {labels!r} than the same network with random weights (kNN "
                f"{own['knn']:.3f}, untrained {frame.loc[worse, 'knn']:.3f}; linear {own['linear']:.3f}, untrained "
                f"{frame.loc[worse, 'linear']:.3f})."
            )
    return frame


def _encoders(given: Any, *, tile: Any, device: str | None) -> list[Encoder]:
    several = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    if not several:
        raise InputError("`encoder` is empty; name an encoder, or give one.")
    spec = None if tile is None else TileSpec.parse(tile)
    loaded = [
        encoders.get(e, device=device) if isinstance(e, TrainedEncoder) else encoders.get(e, tile=spec, device=device)
        for e in several
    ]
    names = [e.card.name for e in loaded]
    if repeated := sorted({n for n in names if names.count(n) > 1 or n in (MAJORITY, COLOUR)}):
        raise InputError(
            f"The encoders' names {listing(repeated)} are taken or repeated; give each its own `name` "
            f"({MAJORITY!r} and {COLOUR!r} are in every result)."
        )
    return loaded


def _with_baselines(
    used: list[Encoder], regions: list[data.Region], *, seed: int, device: str | None
) -> tuple[dict[str, Encoder], list[str], dict[str, str]]:
    """Return what is embedded, by name; which of it was requested; and the untrained self of those that have one."""
    # Colour in the smallest tile of the encoders.
    smallest = min((e.card.tile for e in used), key=lambda t: t.size_um)
    every: dict[str, Encoder] = {COLOUR: encoders.get(COLOUR, tile=smallest)}
    parents = {}
    for e in used:
        name = e.card.name
        every[name] = e
        untrained = _untrained(e, regions, seed=seed, device=device)
        if untrained is not None and untrained.card.revision != e.card.revision:
            parents[name] = name + UNTRAINED
            every[parents[name]] = untrained
    return every, [e.card.name for e in used], parents


def _untrained(encoder: Encoder, regions: list[data.Region], *, seed: int, device: str | None) -> Encoder | None:
    """Return an encoder with random weights in its networks; None if it has none that can be initialised."""
    if isinstance(encoder, Composite):
        found = [_untrained(m, regions, seed=seed, device=device) for m in encoder.members]
        if all(m is None for m in found):
            return None
        return encoders.get([m if u is None else u for m, u in zip(encoder.members, found, strict=True)])
    if isinstance(encoder, TrainedEncoder):
        return encoder.untrained(_some_tiles(regions, encoder.card.tile, seed=seed))
    card = encoder.card
    if not (card.name.startswith(TIMM) or card.name in WHEELS) or card.source == RANDOM or ":" in card.name:
        return None
    return rebuild({**card.to_dict(), "source": RANDOM}, device=device)


def _some_tiles(regions: list[data.Region], tile: TileSpec, *, seed: int) -> NDArray[np.uint8]:
    """Return random tiles of all slides."""
    rng = np.random.default_rng(seed)
    parts = []
    for region in regions:
        n = min(max(STATISTICS_TILES // len(regions), 2), len(region.coords_um))
        chosen = np.sort(rng.choice(len(region.coords_um), n, replace=False))
        parts.append(read_tiles(region.pyramid, region.coords_um[chosen], tile))
    return rng.permutation(np.concatenate(parts))


def _with_labels(
    regions: list[data.Region], column: str, table_key: str | None, *, n_tiles: int, seed: int
) -> tuple[list[data.Region], NDArray[np.int64], list[str]]:
    """Return the regions' locations that have labels, at most so many, and their labels as numbers."""
    import pandas as pd

    values = [_column(r, column, table_key) for r in regions]
    kept = [np.flatnonzero(v.notna().to_numpy()) for v in values]
    total = sum(map(len, kept))
    if total > n_tiles:
        picked = np.zeros(total, dtype=bool)
        picked[np.random.default_rng(seed).choice(total, n_tiles, replace=False)] = True
        ends = np.cumsum([len(rows) for rows in kept])[:-1]
        kept = [rows[some] for rows, some in zip(kept, np.split(picked, ends), strict=True)]
    if empty := [r.slide for r, rows in zip(regions, kept, strict=True) if len(rows) == 0]:
        raise InputError(f"Slides {listing(empty)} have no location with a label in {column!r}.")
    found = pd.concat([v.iloc[rows].astype(str) for v, rows in zip(values, kept, strict=True)])
    codes, classes = pd.factorize(found, sort=True)
    if len(classes) < 2:
        raise InputError(f"Column {column!r} has a single class {listing(classes)}; two or more are needed.")
    return [r.take(rows) for r, rows in zip(regions, kept, strict=True)], codes.astype(np.int64), list(classes)


def _column(region: data.Region, column: str, table_key: str | None) -> pd.Series:
    """Return the labels of a region's locations, from its shapes or a table."""
    shapes, tables = region.sdata.shapes[region.shapes_key], region.sdata.tables
    if table_key is None and column in shapes.columns:
        return shapes[column].loc[region.instances]
    own = [t for t in tables if region.shapes_key in table_regions(tables[t])]
    if table_key is not None:
        key_in(table_key, own, what=f"table of {region.shapes_key!r}", name="table_key")
        own = [table_key]
    having = [t for t in own if column in tables[t].obs]
    if not having:
        available = [c for c in shapes.columns if c != "geometry"] if table_key is None else []
        available += [c for t in own for c in tables[t].obs]
        raise InputError(
            f"Slide {region.slide!r} has no column {column!r} (`labels`) in {region.shapes_key!r} or its tables; "
            f"available: {listing(dict.fromkeys(available), most=20)}."
        )
    if len(having) > 1:
        raise InputError(f"Column {column!r} is in several tables {listing(having)}; name one with `table_key`.")
    rows, ids = table_instances(tables[having[0]], region.shapes_key)
    labels = tables[having[0]].obs[column].iloc[rows].astype(object).set_axis(ids)
    return labels.reindex(region.instances)


def _folds(
    regions: list[data.Region], donors: Mapping[str, str], *, n_folds: int, buffer_um: float
) -> tuple[list[tuple[NDArray[np.int64], NDArray[np.int64]]], str]:
    """Return (training rows, test rows) of each fold over all regions' locations, and what is held out."""
    slide = np.repeat([r.slide for r in regions], [len(r.coords_um) for r in regions])
    if len(set(donors.values())) > 1:
        parts = training.group_folds(donors, n_folds=n_folds)
        return [
            (np.flatnonzero(np.isin(slide, train)), np.flatnonzero(np.isin(slide, test))) for _, train, test in parts
        ], "donors"
    blocks = [data.blocks_of(r.coords_um, n_folds, slide=r.slide) for r in regions]
    folds = []
    for b in range(n_folds):
        far = []
        for region, block in zip(regions, blocks, strict=True):
            away = cKDTree(region.coords_um[block == b]).query(region.coords_um)[0]
            far.append((block != b) & (away >= buffer_um))
        train = np.flatnonzero(np.concatenate(far))
        if len(train) == 0:
            raise InputError(
                f"The slides are too small for {n_folds} blocks with {buffer_um:g} um between them: nothing remains to "
                "learn from; lower `n_folds` or `buffer_um`, or give slides of several donors."
            )
        folds.append((train, np.flatnonzero(np.concatenate(blocks) == b)))
    return folds, "blocks"


def _scores(
    x: NDArray[np.float32], codes: NDArray[np.int64], folds: Sequence[Any], *, n_neighbors: int
) -> NDArray[np.float64]:
    """Return (folds, 4): accuracy and balanced accuracy of neighbours, and of a linear classifier."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    out = []
    for train, test in folds:
        if len(np.unique(codes[train])) < 2:  # nothing to tell apart
            out.append(_accuracies(codes[test], np.full(len(test), codes[train][0])) * 2)
            continue
        found = []
        for classifier in (
            KNeighborsClassifier(min(n_neighbors, len(train))),
            LogisticRegression(C=1 / (PENALTY * len(train)), max_iter=500),
        ):
            fitted = make_pipeline(StandardScaler(), classifier).fit(x[train], codes[train])
            found += _accuracies(codes[test], fitted.predict(x[test]))
        out.append(found)
    return np.array(out)


def _majority(codes: NDArray[np.int64], folds: Sequence[Any]) -> NDArray[np.float64]:
    out = []
    for train, test in folds:
        commonest = np.bincount(codes[train]).argmax()
        out.append(_accuracies(codes[test], np.full(len(test), commonest)) * 2)
    return np.array(out)


def _accuracies(truth: NDArray[np.int64], said: NDArray[np.int64]) -> list[float]:
    """Return the share of right labels, and its mean over the classes that occur (balanced accuracy)."""
    from sklearn.metrics import recall_score

    balanced = recall_score(truth, said, labels=np.unique(truth), average="macro", zero_division=0)
    return [float((truth == said).mean()), float(balanced)]


def _frame(
    scores: Mapping[str, NDArray[np.float64]], widths: Mapping[str, int], *, n_folds: int, n: int, left_out: str
) -> pd.DataFrame:
    import pandas as pd

    columns = ["knn", "knn_balanced", "linear", "linear_balanced"]
    frame = pd.DataFrame([s.mean(axis=0) for s in scores.values()], index=list(scores), columns=columns)
    return frame.assign(width=[widths[s] for s in scores], n_folds=n_folds, n_locations=n, left_out=left_out)

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stpred import data, training
from stpred._core import keys, tables
from stpred._core.checks import InputError, element_name, listing, warn, whole
from stpred._core.disk.wheels import WHEELS
from stpred._core.elements import shapes_in
from stpred._core.places import Place
from stpred._core.specs import TileSpec
from stpred.encoders import trained
from stpred.encoders.base import EncoderCard
from stpred.encoders.modules import digest
from stpred.encoders.pretraining import MoCo
from stpred.training import augmentation, crops, feature_scores

if TYPE_CHECKING:
    from spatialdata import SpatialData
    from torch import nn

    from stpred.encoders.trained import TrainedEncoder

logger = logging.getLogger("stpred")

CELL_TILE = TileSpec(0.25, 48)
"""A cell and its closest surroundings: 12 um."""

PREFERRED = (keys.NUCLEI, keys.CELLS, keys.SPOTS, keys.GRID)

HELD_OUT = (8, 512)
"""Fewest and most tiles that are not trained on but looked at before and after."""

MIN_TILES = 32

_PAIRS, _PART = 8, 64
"""Passes over few tiles, and tiles at a time."""

COLLAPSED_SPREAD, COLLAPSED_RANK = 0.01, 1.5
"""Below either, features are the same for all tiles, or one number repeated."""


def pretrain_encoder(
    slides: SpatialData | Mapping[str, SpatialData],
    backbone: str = "resnet18",
    method: MoCo | None = None,
    *,
    shapes_key: str | None = None,
    image_key: str | None = None,
    tile: TileSpec | Mapping[str, float] | None = None,
    n_tiles: int = 1_000_000,
    pretrained: bool = False,
    weights: str | Path | None = None,
    name: str | None = None,
    seed: int = 0,
    device: str | None = None,
    coordinate_system: str = keys.UM,
) -> TrainedEncoder:
    """Train an encoder on the tiles of your own slides, without any label or expression (MoCo v3).

    The network learns to tell every tile from every other, whatever its direction, colour or sharpness. Expression is
    not looked at, so slides that a model is later tested on may be among them.

    Parameters
    ----------
    slides
        One SpatialData object, or a mapping of slide names to them: calibrated image and region.
    backbone
        Any model of timm by its name, such as ``"resnet18"``, ``"resnet50"`` (as published) or
        ``"vit_small_patch16_224"``, or ``"efficientnet-lite0"``, whose ImageNet weights can be installed.
    method
        :class:`~stpred.encoders.MoCo`: epochs, optimiser, temperature, views and so on; None: as published.
    shapes_key
        Region whose centres are learned from; None takes ``nuclei``, ``cells``, ``spots`` or ``grid``, whichever comes
        first.
    image_key
        H&E image; None takes the one in the micrometre frame.
    tile
        :class:`~stpred.TileSpec`; None: 48 px at 0.25 um for cells and nuclei, the package's default for others.
    n_tiles
        Most tiles to learn from: a random choice over all slides.
    pretrained
        Begin with timm's weights, which are downloaded.
    weights
        Begin with these local weights: a ``.safetensors`` or torch file.
    name
        What the encoder is called; None makes ``moco-{backbone}``.
    seed
        Of initial weights, choice and order of tiles, and views.
    device
        Where training runs; None takes a GPU if there is one.
    coordinate_system
        The slides' micrometre frame.

    Returns
    -------
    TrainedEncoder
        Use it as ``encoder=`` of :func:`stpred.tl.train` or :func:`stpred.pp.features`, keep it with
        :func:`stpred.encoders.save`. ``record["check"]`` compares it with the untrained network on tiles that were held
        out: ``recognition`` (probability that two random views of a tile are recognised; 0.5 is guessing, 1 perfect),
        ``effective_rank`` (directions in which features vary) and ``spread`` (0: all tiles look alike to it).

    Raises
    ------
    InputError
        If timm or the backbone is missing, a slide lacks image or region or is too coarse, tiles are too few, or the
        loss is not finite.

    Warns
    -----
    UserWarning
        When the features collapsed, or tell held-out tiles apart no better than those of the untrained network.

    Notes
    -----
    The method's defaults were published for hundreds of thousands of cells and a GPU; its examples show settings for a
    few thousand cells and minutes on a CPU. With ``stpred.settings.checkpoint_dir``, an interrupted training that is
    called again goes on where it was; ``settings.precision`` and ``settings.fabric`` set its precision and devices.

    The check says whether the task was learned, :func:`stpred.tl.probe_encoder` what the features are worth wherever
    some labels exist. With several processes, batch norms see the tiles of all of them on GPUs only.

    References
    ----------
    Chen, Xie & He (2021), An empirical study of training self-supervised vision transformers, ICCV. Chadoutaud et
    al. (2026), sCellST predicts single-cell gene expression from H&E images, Nature Communications. There the cells
    are embedded by such a network.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(2, size_um=(400, 400), mpp=0.25, n_genes=20)
    >>> encoder = st.tl.pretrain_encoder(slides, method=st.encoders.MoCo(epochs=20))  # doctest: +SKIP
    >>> st.encoders.save(encoder, "my-cells")  # doctest: +SKIP
    >>> st.tl.train(slides, "scellst", encoder=encoder)  # doctest: +SKIP
    """
    slides = data.as_slides(slides)
    config = MoCo() if method is None else method
    if not isinstance(config, MoCo):
        raise InputError(f"`method` must be stpred.encoders.MoCo(...) or None, got {method!r}.")
    n_tiles = whole(n_tiles, name="n_tiles")
    seed = _seed(seed)
    if not isinstance(backbone, str):
        raise InputError(f"`backbone` must be the name of one network of timm, got {backbone!r}.")
    plain_name, begun = _start(backbone, pretrained=pretrained, weights=weights)
    called = element_name(f"moco-{keys.slug(plain_name)}" if name is None else name, name="name")
    run = training.Run(device=device)
    regions = regions_of(slides, shapes_key=shapes_key, image_key=image_key, coordinate_system=coordinate_system)
    tile = _tile_of(regions, tile)
    for region in regions:
        what = f"Image {region.image_key!r} of slide {region.slide!r}"
        region.pyramid.check_resolution(tile, what=what)
    if (there := min(n_tiles, sum(len(r.coords_um) for r in regions))) < MIN_TILES:
        raise InputError(
            f"There are {there} tiles to learn from; {MIN_TILES} or more are needed, and thousands for a use."
        )
    kwargs, width = trained.size_for(backbone, tile.size_px, seed=seed)
    module = trained.build(backbone, kwargs, seed=seed, pretrained=pretrained, weights=weights)
    chosen = crops.choose_rows(regions, n_tiles, seed=seed)
    edge = math.ceil(augmentation.MARGIN * tile.size_px)
    larger = TileSpec(tile.mpp, edge + (edge - tile.size_px) % 2)  # so that the tile itself is exactly its middle
    with training.resumable(run), crops.read_crops(regions, chosen, larger) as tiles:
        n = len(tiles)
        summary, check, colours = _train(
            module, tiles, tile=tile, width=width, config=config, backbone=backbone, seed=seed, run=run
        )
    card = EncoderCard(
        called,
        tile,
        width=width,
        source=f"trained here: MoCo v3, {plain_name} from {begun}, {len(slides)} slides, {n} tiles, "
        f"{config.epochs} epochs",
        revision=digest(module.state_dict()),
        licence="your own" if begun == "random weights" else "that of the weights it began with",
        **colours,
    )
    record = {
        "method": "MoCo v3",
        "backbone": plain_name,
        "start": begun,
        "config": config.to_dict(),
        "seed": seed,
        "slides": {r.slide: _slide_provenance(r, len(c)) for r, c in zip(regions, chosen, strict=True)},
        "training": summary,
        "check": check,
        "versions": tables.package_versions(),
    }
    encoder = trained.TrainedEncoder(
        module, card=card, backbone=plain_name, kwargs=kwargs, seed=seed, record=record
    ).to(str(run.launched.device))
    _warn(called, check)
    return encoder


def _start(backbone: str, *, pretrained: bool, weights: Any) -> tuple[str, str]:
    """Return the backbone's name in timm, and which weights it begins with."""
    plain = str(backbone).removeprefix("timm/")
    wheel = WHEELS.get(plain)
    name = plain if wheel is None else wheel.architecture
    if weights is not None:
        return name, f"file {Path(weights).name}"
    if not pretrained:
        return name, "random weights"
    return name, "timm weights" if wheel is None else f"those of {wheel.distribution}"


def _train(
    module: nn.Module,
    tiles: NDArray[np.uint8],
    *,
    tile: TileSpec,
    width: int,
    config: MoCo,
    backbone: str,
    seed: int,
    run: training.Run,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Train a network in place; return a summary, its check on held-out tiles, and the tiles' mean colours."""
    import torch

    mean, std = crops.mean_colour(tiles, tile.size_px)
    n = len(tiles)
    held = min(max(n // 10, HELD_OUT[0]), HELD_OUT[1])
    rows = np.random.default_rng([seed, 1]).permutation(n)
    held_out = np.ascontiguousarray(tiles[np.sort(rows[:held])])
    start = digest(module.state_dict())
    plain = copy.deepcopy(module).eval()  # with the statistics that training would give its batch norms
    some = rows[held : held + HELD_OUT[1]]
    scale = {"mean": torch.tensor(mean), "std": torch.tensor(std)}
    trained.adapt_statistics(
        plain, (augmentation.plain(tiles[some[i::4]], size_px=tile.size_px, **scale) for i in range(4))
    )
    scaling: dict[str, Any] = {"mean": mean, "std": std, "seed": seed}
    before = _check(plain, held_out, config, run, tile=tile, **scaling)
    summary = training.pretrain(
        module,
        crops.Rows(tiles, np.sort(rows[held:])),
        width=width,
        size_px=tile.size_px,
        config=config,
        run=run,
        identity=f"{backbone} {start}",
        **scaling,
    )
    after = _check(module, held_out, config, run, tile=tile, **scaling)
    return summary, {"started": before, "trained": after, "n_tiles": held}, {"mean": mean, "std": std}


def _slide_provenance(region: data.Region, n_tiles: int) -> dict[str, Any]:
    return {
        "shapes_key": region.shapes_key,
        "n_tiles": n_tiles,
        "mpp": round(region.pyramid.mpp, 5),
        "image": region.pyramid.fingerprint,
    }


def regions_of(
    slides: Mapping[str, SpatialData], *, shapes_key: str | None, image_key: str | None, coordinate_system: str
) -> list[data.Region]:
    """Return each slide's image and locations: cells before spots, where nothing is named."""
    found = []
    for slide, sdata in slides.items():
        there = shapes_in(sdata, coordinate_system) if shapes_key is None else []
        candidates = [k for name in PREFERRED for k in (keys.in_frame(name, coordinate_system), name) if k in there]
        found.append(
            data.read_region(
                sdata,
                Place(
                    shapes_key=candidates[0] if candidates else shapes_key,
                    image_key=image_key,
                    coordinate_system=coordinate_system,
                ),
                slide=slide,
            )
        )
    return found


def _tile_of(regions: list[data.Region], tile: Any) -> TileSpec:
    """Return the tile: as given, or as suits the regions, which must then be of one kind."""
    if tile is not None:
        return TileSpec.parse(tile)
    cells = {r.shapes_key.startswith((keys.NUCLEI, keys.CELLS)) for r in regions}
    if len(cells) > 1:
        raise InputError(
            f"The slides' regions are of different kinds {listing(dict.fromkeys(r.shapes_key for r in regions))}; name "
            "one with `shapes_key`, or give `tile`."
        )
    return CELL_TILE if cells.pop() else TileSpec()


def _check(
    module: nn.Module,
    crops: NDArray[np.uint8],
    config: MoCo,
    run: training.Run,
    *,
    tile: TileSpec,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    seed: int,
) -> dict[str, float]:
    """Return what a network makes of held-out tiles: of pairs of random views, and of the tiles as they are."""
    import torch

    device = run.launched.device
    module.to(device).eval()
    generator = torch.Generator().manual_seed(seed + 1)
    scale = {"mean": torch.tensor(mean), "std": torch.tensor(std)}
    parts = [torch.from_numpy(some).to(device) for some in np.split(crops, range(_PART, len(crops), _PART))]
    stained = config.augmentation.stain > 0

    def features_of_views() -> NDArray[np.float32]:
        drawn = augmentation.draw(len(crops), config.augmentation, generator=generator)
        takes = [drawn.take(slice(start, start + _PART)) for start in range(0, len(crops), _PART)]
        batches = (
            augmentation.views(p, d, size_px=tile.size_px, stained=stained, **scale)
            for p, d in zip(parts, takes, strict=True)
        )
        return np.concatenate([module(b).float().cpu().numpy() for b in batches])

    with torch.inference_mode():
        # Few tiles are drawn several times, so that luck matters less.
        pairs = [
            (features_of_views(), features_of_views()) for _ in range(max(1, min(_PAIRS, HELD_OUT[1] // len(crops))))
        ]
        still = np.concatenate(
            [module(augmentation.plain(p, size_px=tile.size_px, **scale)).float().cpu().numpy() for p in parts]
        )
    return {
        "recognition": round(float(np.mean([feature_scores.recognition(*pair) for pair in pairs])), 4),
        "effective_rank": round(feature_scores.effective_rank(still), 2),
        "spread": round(feature_scores.spread(still), 4),
    }


def _warn(name: str, check: Mapping[str, Any]) -> None:
    """Say so if nothing was learned."""
    started, trained = check["started"], check["trained"]
    advice = "train longer, on more tiles, or with another `lr` or `optimizer`"
    if trained["spread"] < COLLAPSED_SPREAD or trained["effective_rank"] < COLLAPSED_RANK:
        problem = (
            f"collapsed: its features hardly differ between tiles (spread {trained['spread']:.3g}, effective rank "
            f"{trained['effective_rank']:.3g})"
        )
    elif trained["recognition"] <= started["recognition"]:
        problem = (
            f"tells held-out tiles apart no better than before training (recognition {trained['recognition']:.3g}, "
            f"before {started['recognition']:.3g})"
        )
    else:
        return
    warn(f"The encoder {name!r} {problem}; {advice}.")


def _seed(seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise InputError(f"`seed` must be a whole number, at least 0, got {seed!r}.")
    return int(seed)

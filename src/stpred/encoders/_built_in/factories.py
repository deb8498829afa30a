"""Factories of the built-in encoders: light, so that listing names loads nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stpred._core.checks import InputError
from stpred._core.specs import TileSpec
from stpred.encoders.base import Encoder
from stpred.encoders.composite import Composite

Factory = Callable[..., Encoder]

TILES = (TileSpec(0.5, 224), TileSpec(2.0, 224))
"""Tiles of the multiscale encoders: 112 um, about a spot, and 448 um, what is around it."""

CROPS = (TileSpec(0.5, 48), TileSpec(0.5, 96))
"""Crops of the encoders of cells: 24 um, a nucleus and what is close, and 48 um, its neighbours as well."""

MIDDLE = (2, 3)
"""Stages of a network of ImageNet that describe tissue; the last ones describe objects of photographs."""


def _morphology(**kwargs: Any) -> Encoder:
    """Stain, nuclei and texture of a tile, measured without a network; the default."""
    from stpred.encoders._built_in.morphology import Morphology

    return Morphology(**kwargs)


def _intensity(**kwargs: Any) -> Encoder:
    """Mean red, green and blue of a tile."""
    from stpred.encoders._built_in.colour import IntensityEncoder

    return IntensityEncoder(**kwargs)


def _colour(**kwargs: Any) -> Encoder:
    """Mean and standard deviation of a tile's red, green and blue."""
    from stpred.encoders._built_in.colour import ColourEncoder

    return ColourEncoder(**kwargs)


def _pixels(**kwargs: Any) -> Encoder:
    """The pixels themselves, for families that are networks of images."""
    from stpred.encoders._built_in.pixels import Pixels

    return Pixels(**kwargs)  # type: ignore[return-value]  # the one encoder whose features are uint8


def _morphology_multiscale(*, tile: TileSpec | None = None) -> Encoder:
    """Tiles of 112 and 448 um side by side, each as "morphology" describes it; the default of ridge, mlp and auto."""
    _no_tile(tile, "morphology-multiscale")
    return Composite([_morphology(tile=t) for t in TILES])  # type: ignore[return-value]


def _imagenet_multiscale(*, tile: TileSpec | None = None) -> Encoder:
    """Tiles of 112 and 448 um by "morphology" and by middle layers of "efficientnet-lite0" (stpred[imagenet])."""
    from stpred.encoders._networks import timm_models

    _no_tile(tile, "imagenet-multiscale")
    networks = [
        timm_models.installed(
            "efficientnet-lite0", tile=t, weights=None, pretrained=True, layers=MIDDLE, pool="mean+std"
        )
        for t in TILES
    ]
    return Composite([*(_morphology(tile=t) for t in TILES), *networks])  # type: ignore[return-value]


def _cells_multiscale(*, tile: TileSpec | None = None) -> Encoder:
    """Crops of 24 and 48 um and tiles of 112 and 448 um, each as "morphology" describes it; the default of scellst."""
    _no_tile(tile, "cells-multiscale")
    return Composite([_morphology(tile=t) for t in (*CROPS, *TILES)])  # type: ignore[return-value]


def _cells_imagenet(*, tile: TileSpec | None = None) -> Encoder:
    """Crops of 24 and 48 um by "morphology" and "efficientnet-lite0", and "imagenet-multiscale" (stpred[imagenet])."""
    from stpred.encoders._networks import timm_models

    _no_tile(tile, "cells-imagenet")
    networks = [
        timm_models.installed(
            "efficientnet-lite0",
            tile=t,
            weights=None,
            pretrained=True,
            layers=(1, *MIDDLE),
            pool="mean+std",
            input_px=96,
        )
        for t in CROPS
    ]
    return Composite([*(_morphology(tile=t) for t in CROPS), *networks, _imagenet_multiscale()])  # type: ignore[return-value]


def _no_tile(tile: TileSpec | None, name: str) -> None:
    if tile is not None:
        raise InputError(
            f"The encoder {name!r} has tiles of its own; leave `tile` out, or give a list of encoders, each with its "
            f"tile: [stpred.encoders.get('morphology', tile=...), ...]."
        )


BUILT_IN: dict[str, Factory] = {
    "cells-imagenet": _cells_imagenet,
    "cells-multiscale": _cells_multiscale,
    "colour": _colour,
    "imagenet-multiscale": _imagenet_multiscale,
    "intensity": _intensity,
    "morphology": _morphology,
    "morphology-multiscale": _morphology_multiscale,
    "pixels": _pixels,
}

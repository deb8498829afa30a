"""Encoders that were trained here, on disk: ``config.json`` + ``model.safetensors``, written whole, without pickle."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stpred._core.checks import InputError, MissingFileError, check_parent
from stpred._core.disk import hub, stored
from stpred._core.disk.weights import CONFIG, WEIGHTS, check_tensors, check_values, write_folder
from stpred._core.files import read_json, reason
from stpred._core.specs import TileSpec
from stpred.encoders.base import EncoderCard

if TYPE_CHECKING:
    from torch import nn

    from stpred.encoders.trained import TrainedEncoder

FORMAT_VERSION = 1
KIND = "encoder"

MAX_TILE_PX = 2048
"""Edge of the largest tiles of an encoder that was trained here."""

_KWARGS: dict[str, stored.Check] = {
    "img_size": lambda v, w: stored.whole(v, w, high=MAX_TILE_PX),
    "drop_rate": lambda v, w: stored.number(v, w, low=0, high=1),
    "drop_path_rate": lambda v, w: stored.number(v, w, low=0, high=1),
}
"""All that a stored encoder may tell `timm.create_model` beside the name: nothing that names files or the net."""


def save(encoder: TrainedEncoder, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write an encoder that was trained here as a folder.

    Parameters
    ----------
    encoder
        What :func:`stpred.tl.pretrain_encoder` returned. Others are loaded by their name, or from your own code.
    path
        Folder to make.
    overwrite
        Replace an existing encoder.

    Returns
    -------
    The folder; it appears whole or not at all.

    Raises
    ------
    InputError
        If the encoder was not trained here, or the folder exists.

    Examples
    --------
    >>> import stpred as st
    >>> st.encoders.save("morphology", "my-cells")
    Traceback (most recent call last):
    ...
    stpred._core.checks.InputError: ...
    """
    path = Path(path)
    check_trained(encoder, what="saved")
    check_parent(path)
    if path.exists() and not overwrite:
        raise InputError(f"{str(path)!r} exists; pass overwrite=True to replace the encoder.")
    if path.exists() and not (path.is_dir() and _kind(path) == KIND):
        raise InputError(f"{str(path)!r} is not an encoder's folder, so it is not overwritten.")
    return write(encoder, path)


def write(encoder: TrainedEncoder, path: Path) -> Path:
    """Write an encoder that was trained here as a folder, in the place of what is there."""
    config = {
        "format_version": FORMAT_VERSION,
        "kind": KIND,
        "backbone": encoder.backbone,
        "kwargs": encoder.kwargs,
        "seed": encoder.seed,
        "card": encoder.card.to_dict(),
        "record": encoder.record,
    }
    return write_folder(path, config, encoder.module.state_dict(), what="encoder")


def check_trained(encoder: Any, *, what: str) -> None:
    """Refuse encoders that were not trained here; `what` is done to them, such as "saved"."""
    from stpred.encoders.trained import TrainedEncoder

    if not isinstance(encoder, TrainedEncoder):
        card = getattr(encoder, "card", None)
        said = repr(encoder) if isinstance(encoder, str) else repr(card.name) if card else type(encoder).__name__
        raise InputError(
            f"Only an encoder that stpred.tl.pretrain_encoder returned can be {what}, got {said}; others are loaded by "
            "stpred.encoders.get."
        )


def load(path: str | Path, *, device: str | None = None) -> TrainedEncoder:
    """Load an encoder that was trained here.

    Parameters
    ----------
    path
        Folder that :func:`save` wrote, or ``"hf:owner/name"`` or ``"hf:owner/name@revision"`` of the Hugging Face hub,
        where :func:`push_to_hub` put it. A revision is a branch, a tag or a commit; the commit is in the card's
        `source`, and so in the record of every model that is trained on the encoder.
    device
        Such as ``"cpu"`` or ``"cuda:0"``; None takes a GPU if there is one.

    Returns
    -------
    The encoder; its features are those it gave before it was saved.

    Raises
    ------
    InputError
        If the folder holds no encoder, or one of another format version, or its weights are not those it was saved
        with; or the repository is not there, or closed to you.

    Examples
    --------
    >>> import stpred as st
    >>> st.encoders.load("nowhere")
    Traceback (most recent call last):
    ...
    stpred._core.checks.MissingFileError: ...
    """
    if hub.is_remote(path):
        snapshot = hub.fetch(path, what="encoder")
        found = _load(snapshot.folder)
        found.card = replace(found.card, source=snapshot.name)
        return found.to(device)
    return _load(Path(path)).to(device)


def _load(folder: Path) -> TrainedEncoder:
    """Return the encoder of a folder."""
    from stpred.encoders import modules, trained

    config = _read(folder)
    card, weights = _card(config["card"], folder / CONFIG), folder / WEIGHTS
    backbone, kwargs, seed = config["backbone"], config["kwargs"], config["seed"]
    if kwargs.get("img_size", card.tile.size_px) != card.tile.size_px:
        raise InputError(
            f"{str(folder / CONFIG)!r} says that the network takes tiles of {kwargs['img_size']} px, and that they "
            f"have {card.tile.size_px}."
        )

    def build() -> nn.Module:
        return trained.build(backbone, kwargs, seed=seed)

    check_tensors(weights, build, what=f"the backbone {backbone!r}")
    module = build()
    modules.load_weights(module, weights)
    if (found := modules.digest(module.state_dict())) != card.revision:
        raise InputError(
            f"The weights in {str(folder)!r} are not those that the encoder was saved with ({found} instead of "
            f"{card.revision}); fetch the folder again."
        )
    check_values(module.state_dict().items(), weights)
    try:  # embeds an empty tile
        encoder = trained.TrainedEncoder(
            module, card=card, backbone=backbone, kwargs=kwargs, seed=seed, record=config["record"]
        )
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"The encoder in {str(folder)!r} takes no tiles of {card.tile.size_px} px: {reason(error)}."
        ) from error
    if (encoder.card.width, encoder.card.dense) != (card.width, card.dense or encoder.card.dense):
        raise InputError(
            f"{str(folder / CONFIG)!r} says that the encoder gives {card.width} features, but it gives "
            f"{encoder.card.width}."
        )
    return encoder


def factory(path: str | Path, *, name: str) -> Callable[..., Any]:
    """Return what makes the encoder of a folder under a name; a folder without one is refused at once."""
    folder = Path(path).absolute()
    _read(folder)

    def make(
        *, tile: TileSpec | None = None, pretrained: bool = True, layers: Any = None, pool: str | None = None
    ) -> Any:
        found = load(folder, device="cpu")
        found.card = replace(found.card, name=name)
        if tile is not None and tile != found.card.tile:
            raise InputError(f"The encoder {name!r} was trained on {found.card.tile}; it takes no other `tile`.")
        found = found if pretrained else found.untrained()
        if layers is None:
            return found
        from stpred.encoders._networks.layers import read_layers

        return read_layers(found.module, layers, pool, card=found.card)

    return make


def _read(folder: Path) -> dict[str, Any]:
    """Return the config of an encoder's folder, checked."""
    if not (folder / CONFIG).is_file():
        raise MissingFileError(
            f"No encoder at {str(folder)!r}: a folder with {CONFIG} and {WEIGHTS} is needed, as stpred.encoders.save "
            "writes it."
        )
    config = read_json(folder / CONFIG, what="encoder's config")
    if config.get("kind") != KIND:
        model = "family" in config
        raise InputError(
            f"{str(folder)!r} holds no encoder"
            f"{'; it is a model, which stpred.models.load reads' if model else f' ({CONFIG} does not say so)'}."
        )
    version, where = config.get("format_version"), repr(str(folder / CONFIG))
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise InputError(f"Encoder {str(folder)!r} has format version {version!r}, this stpred reads {FORMAT_VERSION}.")
    kinds = {"backbone": str, "kwargs": dict, "seed": int, "card": dict, "record": dict}
    if wrong := sorted(k for k, kind in kinds.items() if not isinstance(config.get(k), kind)):
        raise InputError(f"{where} lacks {wrong}, or they are of the wrong kind.")
    stored.text(config["backbone"], f"{where} (backbone)", most=200)
    if not re.fullmatch(r"(timm/)?\w+(\.\w+)?", config["backbone"]):  # no path, and nothing to be fetched
        raise InputError(f"{where} names no network of timm as `backbone`, but {config['backbone']!r}.")
    config["seed"] = stored.whole(config["seed"], f"{where} (seed)", low=-(2**63), high=2**63 - 1)
    config["kwargs"] = stored.mapping(config["kwargs"], f"{where} (kwargs)", _KWARGS)
    stored.sane(config["record"], f"{where} (record)")
    return config


def _card(values: Any, path: Path) -> EncoderCard:
    found = stored.card(
        values, f"The card in {str(path)!r}", required=("name", "tile", "width", "revision", "mean", "std")
    )
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}
    if found["tile"]["size_px"] > MAX_TILE_PX:
        raise InputError(f"The card in {str(path)!r} states tiles of more than {MAX_TILE_PX} px.")
    return EncoderCard(**{**plain, "tile": TileSpec.parse(found["tile"])})


def _kind(folder: Path) -> Any:
    """Return the kind that a folder's config states."""
    try:
        return read_json(folder / CONFIG, what="config").get("kind")
    except InputError:
        return None

"""Encoders that were trained here, on disk: ``config.json`` + ``model.safetensors``, written whole, without pickle."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stpred._core.checks import InputError, MissingFileError, check_parent
from stpred._core.specs import TileSpec
from stpred._core.weights import CONFIG, WEIGHTS, write_folder
from stpred.encoders._base import EncoderCard

if TYPE_CHECKING:
    from stpred.encoders._trained import TrainedEncoder

FORMAT_VERSION = 1
KIND = "encoder"


def save(encoder: TrainedEncoder, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write an encoder that was trained here as a folder.

    Parameters
    ----------
    encoder
        What :func:`stpred.tl.pretrain_encoder` returned. Others are made again by their name, or from your own code.
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
    from stpred.encoders._trained import TrainedEncoder

    path = Path(path)
    if not isinstance(encoder, TrainedEncoder):
        card = getattr(encoder, "card", None)
        said = repr(encoder) if isinstance(encoder, str) else repr(card.name) if card else type(encoder).__name__
        raise InputError(
            f"Only an encoder that stpred.tl.pretrain_encoder made can be saved, got {said}; others are made again by "
            "stpred.encoders.get."
        )
    check_parent(path)
    if path.exists() and not overwrite:
        raise InputError(f"{str(path)!r} exists; pass overwrite=True to replace the encoder.")
    if path.exists() and not (path.is_dir() and _kind(path) == KIND):
        raise InputError(f"{str(path)!r} is not an encoder's folder, so it is not overwritten.")
    facts = {
        "format_version": FORMAT_VERSION,
        "kind": KIND,
        "backbone": encoder.backbone,
        "kwargs": encoder.kwargs,
        "seed": encoder.seed,
        "card": encoder.card.to_dict(),
        "record": encoder.record,
    }
    return write_folder(path, facts, encoder.module.state_dict(), what="encoder")


def load(path: str | Path, *, device: str | None = None) -> TrainedEncoder:
    """Load an encoder that was trained here.

    Parameters
    ----------
    path
        Folder that :func:`save` wrote.
    device
        Such as ``"cpu"`` or ``"cuda:0"``; None takes a GPU if there is one.

    Returns
    -------
    The encoder; its features are those it gave before it was saved.

    Raises
    ------
    InputError
        If the folder holds no encoder, or one of another format version, or its weights are not those it was saved
        with.

    Examples
    --------
    >>> import stpred as st
    >>> st.encoders.load("nowhere")
    Traceback (most recent call last):
    ...
    stpred._core.checks.MissingFileError: ...
    """
    from stpred.encoders import _module, _trained

    folder = Path(path)
    facts = _read(folder)
    card = _card(facts["card"], folder / CONFIG)
    if not (folder / WEIGHTS).is_file():
        raise MissingFileError(f"Encoder file {str(folder / WEIGHTS)!r} is missing.")
    module = _trained.build(facts["backbone"], facts["kwargs"], seed=facts["seed"])
    _module.load_weights(module, folder / WEIGHTS)
    if (found := _module.digest(module.state_dict())) != card.revision:
        raise InputError(
            f"The weights in {str(folder)!r} are not those that the encoder was saved with ({found} instead of "
            f"{card.revision}); fetch the folder again."
        )
    return _trained.TrainedEncoder(
        module,
        card=card,
        backbone=facts["backbone"],
        kwargs=facts["kwargs"],
        seed=facts["seed"],
        record=facts["record"],
    ).to(device)


def factory(path: str | Path, *, name: str) -> Callable[..., Any]:
    """Return what makes the encoder of a folder under a name; a folder without one is refused at once."""
    folder = Path(path).absolute()
    _read(folder)

    def make(*, tile: TileSpec | None = None, pretrained: bool = True) -> Any:
        found = load(folder, device="cpu")
        found.card = replace(found.card, name=name)
        if tile is not None and tile != found.card.tile:
            raise InputError(f"The encoder {name!r} was trained on {found.card.tile}; it takes no other `tile`.")
        return found if pretrained else found.untrained()

    return make


def _read(folder: Path) -> dict[str, Any]:
    """Return the facts of an encoder's folder, checked."""
    if not (folder / CONFIG).is_file():
        raise MissingFileError(
            f"No encoder at {str(folder)!r}: a folder with {CONFIG} and {WEIGHTS} is needed, as stpred.encoders.save "
            "writes it."
        )
    try:
        facts = json.loads((folder / CONFIG).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{str(folder / CONFIG)!r} is not valid JSON: {error}.") from error
    if not isinstance(facts, dict) or facts.get("kind") != KIND:
        model = isinstance(facts, dict) and "family" in facts
        raise InputError(
            f"{str(folder)!r} holds no encoder"
            f"{'; it is a model, which stpred.models.load reads' if model else f' ({CONFIG} does not say so)'}."
        )
    if (version := facts.get("format_version")) != FORMAT_VERSION:
        raise InputError(f"Encoder {str(folder)!r} has format version {version!r}, this stpred reads {FORMAT_VERSION}.")
    kinds = {"backbone": str, "kwargs": dict, "seed": int, "card": dict, "record": dict}
    if wrong := sorted(k for k, kind in kinds.items() if not isinstance(facts.get(k), kind)):
        raise InputError(f"{str(folder / CONFIG)!r} lacks {wrong}, or they are of the wrong kind.")
    return facts


def _card(facts: Mapping[str, Any], path: Path) -> EncoderCard:
    known = {f.name for f in fields(EncoderCard)}
    if unknown := sorted(set(facts) - known):
        raise InputError(f"The card in {str(path)!r} has unknown fields {unknown}; known are {sorted(known)}.")
    if lacking := sorted({"name", "tile", "width", "revision", "mean", "std"} - facts.keys()):
        raise InputError(f"The card in {str(path)!r} lacks {lacking}.")
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in facts.items()}
    return EncoderCard(**{**plain, "tile": TileSpec.parse(facts["tile"])})


def _kind(folder: Path) -> Any:
    """Return what a folder says that it holds."""
    try:
        facts = json.loads((folder / CONFIG).read_text())
    except (OSError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return facts.get("kind") if isinstance(facts, dict) else None

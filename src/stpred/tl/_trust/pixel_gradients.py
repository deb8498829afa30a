"""A prediction as a differentiable function of the pixels of its tile."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from stpred._core.checks import InputError, listing
from stpred.encoders.composite import Composite
from stpred.encoders.modules import TorchEncoder
from stpred.models import registry
from stpred.models.parts.sample import EXTREME, Sample, Scaling

if TYPE_CHECKING:
    from torch import Tensor

    from stpred.encoders.base import Encoder
    from stpred.models import Model
    from stpred.models.batch import Batch

    Function = Callable[[Tensor], Tensor]

_OFF = 0.01
"""Relative difference between features with and without gradients up to which they are taken to be the same."""


def check_family(model: Model) -> None:
    if model.config.differentiable is None:
        having = [name for name in registry.FAMILIES if registry.family(name).Config.differentiable is not None]
        raise InputError(
            f"Pixels cannot be followed through a {model.family!r} model: it sees more than one tile for each "
            f"location, or predicts in several steps; attributions are there for {listing(having)}."
        )


def check_encoder(encoder: Encoder) -> None:
    if encoder.card.name == "pixels":
        return
    if isinstance(encoder, Composite):
        for member in encoder.members:
            check_encoder(member)
        raise InputError(
            f"The model sees several tiles of each location ({encoder.card.name!r}), so a prediction is no function of "
            "the pixels of one; train it with a single encoder for attributions."
        )
    if not isinstance(encoder, TorchEncoder):
        raise InputError(
            f"Features of the encoder {encoder.card.name!r} are counted and measured, so they have no gradient by the "
            "pixels; stpred.tl.feature_associations says which of them go along with a gene."
        )
    if encoder.prepares_images:
        raise InputError(f"Encoder {encoder.card.name!r} prepares images itself, so gradients cannot be followed.")


def prediction_of(model: Model, encoder: Encoder, batch: Batch, row: int, *, tile: NDArray[np.uint8]) -> Function:
    """Return the prediction of one location as a differentiable function of the pixels of its tile.

    Its neighbours and what features are standardised by are held as they are in the batch.
    """
    import torch

    model.eval()
    kind = model.config.differentiable
    if kind == "pixels":
        return _pixels(model, batch)
    head = _linear(model, batch, row) if kind == "linear" else _network(model, batch, row)
    device = next(iter(model.state_dict().values())).device

    def features(x: Tensor) -> Tensor:
        return cast(TorchEncoder, encoder).differentiable(x).to(device)

    own = np.asarray(batch.features[batch.targets[row]], np.float64)
    with torch.no_grad():
        again = features(torch.from_numpy(tile.astype(np.float32))[None])[0].cpu().numpy()
    if np.linalg.norm(again - own) > _OFF * np.linalg.norm(own):
        raise InputError(
            f"Encoder {encoder.card.name!r} prepares tiles in its own way (`transform`), through which gradients "
            "cannot be followed, or kept features are of an older version of it; wrap the module itself with `mean` "
            "and `std`, stpred.encoders.get(module, tile=..., mean=..., std=...), or compute its features anew."
        )
    return lambda x: head(features(x))


def _pixels(model: Any, batch: Batch) -> Function:
    import torch

    scaling = model.scaling(batch)
    mean, std = (model.pixel_mean, model.pixel_std) if scaling is None else (scaling.mean, scaling.std)
    mean, std = (torch.as_tensor(v, dtype=torch.float32, device=model.pixel_mean.device) for v in (mean, std))

    def function(x: Tensor) -> Tensor:
        values = ((x.to(mean.device) / 255 - mean) / std).flatten(1)
        rows = torch.arange(len(values), device=mean.device)
        return model.finish(model(Sample(values, rows, torch.zeros_like(rows))))

    return function


def _around(batch: Batch, row: int) -> NDArray[Any]:
    """Return (k, n_features) features of a target's neighbours."""
    links = batch.links
    if links is None:
        return np.empty((0, batch.features.shape[1]), np.float32)
    return np.asarray(batch.features[links.indices[links.indptr[row] : links.indptr[row + 1]]])


def _rings(batch: Batch, row: int) -> list[NDArray[Any] | None]:
    """Return the neighbours' mean within the radius or in each ring; None where the location's own tile is it."""
    around = _around(batch, row).astype(np.float64)
    bounds = [len(around)] if batch.near is None else batch.near[row].tolist()
    found: list[NDArray[Any] | None] = []
    mean, inner = None, 0
    for outer in bounds:
        mean = around[inner:outer].mean(axis=0) if outer > inner else mean
        found.append(mean)
        inner = outer
    return found


def _linear(model: Any, batch: Batch, row: int) -> Function:
    import torch

    device = model.coef.device
    scaling = Scaling.of(batch.features[batch.sources])
    mean, std = (model.mean, model.std) if model.config.standardize == "train" else (scaling.mean, scaling.std)
    mean, std = (torch.as_tensor(v, dtype=torch.float32, device=device) for v in (mean, std))
    context = [
        None if c is None else torch.as_tensor(c, dtype=torch.float32, device=device) for c in _rings(batch, row)
    ]

    def function(x: Tensor) -> Tensor:
        own = ((x - mean) / std).clamp(-EXTREME, EXTREME)
        if model.config.context_um is None:
            return own @ model.weights + model.intercept
        # A location without neighbours is its own context.
        others = [own if c is None else ((c - mean) / std).clamp(-EXTREME, EXTREME).expand_as(own) for c in context]
        return torch.cat([own, *others], dim=1) @ model.weights + model.intercept

    return function


def _network(model: Any, batch: Batch, row: int) -> Function:
    import torch

    device = next(model.parameters()).device
    scaling = model.scaling(batch)
    near = _around(batch, row).astype(np.float32)
    fixed = torch.from_numpy(near if scaling is None else scaling.apply(near)).to(device)

    def function(x: Tensor) -> Tensor:
        if scaling is not None:
            mean, std = (torch.as_tensor(v, dtype=torch.float32, device=device) for v in (scaling.mean, scaling.std))
            x = ((x - mean) / std).clamp(-EXTREME, EXTREME)
        rows = torch.arange(len(x), device=device)
        linked, counts = None, None
        if model.config.context_um is not None:
            linked = (len(x) + torch.arange(len(fixed), device=device)).expand(len(x), -1)
            if batch.near is not None:
                counts = torch.as_tensor(batch.near[row], device=device).expand(len(x), -1)
        sample = Sample(torch.cat([x, fixed]), rows, torch.zeros_like(rows), neighbors=linked, near=counts)
        return model.finish(model(sample))

    return function

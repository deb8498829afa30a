"""State of an interrupted training on disk: one safetensors file per run, replaced whole after every epoch."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from stpred._core.checks import InputError
from stpred._core.disk.staging import staged_file
from stpred._core.files import parse_json, readable, reason

logger = logging.getLogger("stpred")


class Checkpoint:
    """One file of tensors and JSON values; what is on disk is always a whole state.

    Parameters
    ----------
    path
        The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Replace the state."""
        kept = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
        text = json.dumps(values)
        metadata = {"facts": text, "digest": _digest(kept, text)}
        with staged_file(self.path, what="checkpoint") as part:
            save_file(kept, part, metadata=metadata)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return tensors and plain values, or None where there is no readable state."""
        try:
            with readable(self.path, what="checkpoint"):
                if not self.path.is_file():
                    return None
                with safe_open(self.path, framework="pt") as file:
                    metadata = file.metadata() or {}
                    tensors = {k: file.get_tensor(k) for k in file.keys()}
                if metadata["digest"] != _digest(tensors, metadata["facts"]):
                    raise ValueError("it does not hold what was written")
            return tensors, parse_json(metadata["facts"], path=self.path, what="checkpoint")
        except InputError as error:
            self.damaged(error)
            return None

    def damaged(self, error: Exception) -> None:
        """Say that the state cannot be resumed."""
        logger.warning("The checkpoint %r is damaged (%s) and training starts anew.", str(self.path), reason(error))


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    """Return a fingerprint of a text and of the tensors' names and bytes."""
    found = hashlib.blake2b(text.encode(), digest_size=16)
    for name in sorted(tensors):
        found.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        found.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


@dataclass
class State:
    """State of a training: what a checkpoint holds.

    Attributes
    ----------
    model, optimizer
        In training.
    order
        Of what the samples of an epoch are drawn by.
    views
        Of random views, where there are any.
    losses
        Mean loss of each epoch.
    scored
        (S, G) Pearson, (S, G) Spearman and (S,) squared error of the held-out slides after each epoch.
    best
        Weights of the best epoch, where these are kept.
    """

    model: torch.nn.Module
    optimizer: Any
    order: np.random.Generator
    views: torch.Generator | None = None
    losses: list[float] = field(default_factory=list)
    scored: list[tuple[NDArray, NDArray, NDArray]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)

    @property
    def plain_optimizer(self) -> torch.optim.Optimizer:
        """The optimiser itself, not Fabric's wrapper."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def save(self, checkpoint: Checkpoint) -> None:
        """Keep it, with torch's random state."""
        tensors, packed = pack_optimizer(self.plain_optimizer)
        tensors |= {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()} | {"random": torch.get_rng_state()}
        if torch.cuda.is_available():
            tensors["random_cuda"] = torch.cuda.get_rng_state()
        if self.views is not None:
            tensors["views"] = self.views.get_state()
        for name, part in zip(_SCORES, zip(*self.scored, strict=True), strict=False):
            tensors[f"scored.{name}"] = torch.from_numpy(np.stack(part))
        values = {"optimizer": packed, "order": self.order.bit_generator.state, "losses": self.losses}
        checkpoint.save(tensors, values)

    def resume(self, checkpoint: Checkpoint | None) -> None:
        """Take up the state that is kept, if one is; one that does not fit leaves everything as it was."""
        kept = None if checkpoint is None else checkpoint.load()
        if checkpoint is None or kept is None:
            return
        model, optimizer = copy.deepcopy((self.model.state_dict(), self.plain_optimizer.state_dict()))
        order, random = self.order.bit_generator.state, torch.get_rng_state()
        views = None if self.views is None else self.views.get_state()
        try:
            self._restore(*kept)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            self.model.load_state_dict(model)
            self.plain_optimizer.load_state_dict(optimizer)
            self.order.bit_generator.state = order
            torch.set_rng_state(random)
            if self.views is not None and views is not None:
                self.views.set_state(views)
            checkpoint.damaged(error)
            return
        logger.info("Training goes on after epoch %d of %s.", len(self.losses), checkpoint.path.name)

    def _restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Restore tensors and plain values; the lists change last, when nothing can fail any more."""
        self.model.load_state_dict(_named("model.", tensors))
        unpack_optimizer(self.plain_optimizer, tensors, values["optimizer"])
        self.order.bit_generator.state = values["order"]
        torch.set_rng_state(tensors["random"])
        if "random_cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["random_cuda"])
        if self.views is not None:
            self.views.set_state(tensors["views"])
        losses = [float(loss) for loss in values["losses"]]
        scored: list[Any] = []
        if "scored.error" in tensors:
            scored = list(zip(*(tensors[f"scored.{n}"].numpy() for n in _SCORES), strict=True))
        self.best.update(_named("best.", tensors))
        self.scored.extend(scored)
        self.losses.extend(losses)


_SCORES = ("pearson", "spearman", "error")


def _named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return an optimiser's state as named tensors and plain values."""
    state = optimizer.state_dict()
    tensors, numbers = {}, {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            else:
                numbers[f"{index}.{name}"] = value
    return tensors, {"groups": state["param_groups"], "numbers": numbers}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], packed: dict[str, Any]) -> None:
    """Put the state back that `pack_optimizer` returned."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**_named("optimizer.", tensors), **packed["numbers"]}.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    # JSON stores the tuples (betas) of a group as lists.
    groups = [{k: tuple(v) if k == "betas" else v for k, v in g.items()} for g in packed["groups"]]
    optimizer.load_state_dict({"state": state, "param_groups": groups})

"""State of an interrupted training on disk: one safetensors file per run, replaced whole after every epoch."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from stpred._core.checks import InputError
from stpred._core.files import parse_json, readable, reason, staged_file

logger = logging.getLogger("stpred")


class Checkpoint:
    """One file that holds tensors and JSON facts; what is on disk is always a whole state.

    Parameters
    ----------
    path
        The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Replace the state."""
        kept = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
        text = json.dumps(facts)
        metadata = {"facts": text, "digest": _digest(kept, text)}
        with staged_file(self.path, what="checkpoint") as part:
            save_file(kept, part, metadata=metadata)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return tensors and facts, or None where there is no readable state."""
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
        """Say that the state cannot be gone on with."""
        logger.warning("The checkpoint %r is damaged (%s) and training starts anew.", str(self.path), reason(error))


def _digest(tensors: Mapping[str, Tensor], facts: str) -> str:
    """Return a fingerprint of the facts and of the tensors' names and bytes."""
    made = hashlib.blake2b(facts.encode(), digest_size=16)
    for name in sorted(tensors):
        made.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        made.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return made.hexdigest()


def resume(
    checkpoint: Checkpoint | None,
    put_back: Callable[[dict[str, Tensor], dict[str, Any]], None],
    *,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    order: np.random.Generator,
) -> bool:
    """Put an interrupted training's state back; one that does not fit leaves everything as it was.

    Parameters
    ----------
    checkpoint
        Where it is, or None.
    put_back
        Called with tensors and facts; it changes the model, the optimiser, `order` and torch's random state, and
        anything else only at its end.
    """
    state = None if checkpoint is None else checkpoint.load()
    if checkpoint is None or state is None:
        return False
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict(), order.bit_generator.state))
    random = torch.get_rng_state()
    try:
        put_back(*state)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        model.load_state_dict(before[0])
        optimizer.load_state_dict(before[1])
        order.bit_generator.state = before[2]
        torch.set_rng_state(random)
        checkpoint.damaged(error)
        return False
    return True


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


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Put the state back that `pack_optimizer` returned."""
    state: dict[int, dict[str, Any]] = {}
    named = {k.removeprefix("optimizer."): v for k, v in tensors.items() if k.startswith("optimizer.")}
    for key, value in {**named, **facts["numbers"]}.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    # JSON made lists of the tuples (betas) that a group holds.
    groups = [{k: tuple(v) if k == "betas" else v for k, v in g.items()} for g in facts["groups"]]
    optimizer.load_state_dict({"state": state, "param_groups": groups})

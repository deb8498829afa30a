"""State of an interrupted training on disk: one safetensors file per run, replaced whole after every epoch."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stpred._core.checks import InputError

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
        staging = self.path.with_suffix(".writing")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_file(
                {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()},
                staging,
                metadata={"facts": json.dumps(facts)},
            )
            os.replace(staging, self.path)
        except OSError as error:
            raise InputError(f"The checkpoint {str(self.path)!r} cannot be written: {error.strerror}.") from error

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return tensors and facts, or None where there is no readable state."""
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                facts = json.loads((file.metadata() or {})["facts"])
                return {k: file.get_tensor(k) for k in file.keys()}, facts
        except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
            logger.warning("The checkpoint %r is damaged (%s) and training starts anew.", str(self.path), error)
            return None


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

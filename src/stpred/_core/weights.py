"""Folders of ``config.json`` + ``model.safetensors``: what trained models and encoders are kept as."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stpred._core.checks import InputError
from stpred._core.files import reason, staged_folder

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def write_folder(path: Path, facts: Mapping[str, Any], tensors: Mapping[str, Any], *, what: str) -> Path:
    """Write facts and tensors as a folder that appears whole or not at all; an existing one goes only then.

    Parameters
    ----------
    path
        Folder to make or replace.
    facts
        What JSON can hold, numbers of NumPy included.
    tensors
        Names to torch tensors.
    what
        What it is, for messages.
    """
    from safetensors.torch import save_file

    try:
        text = json.dumps(facts, indent=1, allow_nan=False, default=float)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"The {what} {str(path)!r} holds facts that JSON cannot hold: {reason(error)}.") from error
    with staged_folder(path, what=what) as new:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, new / WEIGHTS)
        (new / WEIGHTS).chmod(0o644)  # safetensors' own file is closed to everybody else
        (new / CONFIG).write_text(text)
    return path

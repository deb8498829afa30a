"""Folders of ``config.json`` + ``model.safetensors``: what trained models and encoders are kept as."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def write_folder(path: Path, facts: Mapping[str, Any], tensors: Mapping[str, Any]) -> Path:
    """Write facts and tensors as a folder that appears whole or not at all; an existing one goes only then.

    Parameters
    ----------
    path
        Folder to make or replace.
    facts
        What JSON can hold, numbers of NumPy included.
    tensors
        Names to torch tensors.
    """
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    new = staging / "new"
    try:
        new.mkdir()
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, new / WEIGHTS)
        (new / WEIGHTS).chmod(0o644)  # safetensors' own file is closed to everybody else
        (new / CONFIG).write_text(json.dumps(facts, indent=1, allow_nan=False, default=float))
        if path.exists():
            path.rename(staging / "old")
        new.rename(path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return path

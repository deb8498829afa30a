"""Folders of ``config.json`` + ``model.safetensors``: what trained models and encoders are kept as."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stpred._core.checks import InputError, MissingFileError, listing
from stpred._core.disk.staging import staged_folder
from stpred._core.files import readable, reason

if TYPE_CHECKING:
    import torch

CONFIG, WEIGHTS = "config.json", "model.safetensors"

MAX_VALUE = 1e15
"""Largest magnitude of a value in a tensor: sums of products of such stay finite."""

_ABOVE_ZERO = re.compile(
    r"(.*\.)?(typical\.(std|spread|rest|limit)|std|feature_std|gene_std|pixel_std|library_median|scale)"
)
"""Names of tensors of models that something is divided by."""

_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
}


def write_folder(path: Path, config: Mapping[str, Any], tensors: Mapping[str, Any], *, what: str) -> Path:
    """Write a config and tensors as a folder that appears whole or not at all; an existing one goes only then.

    Parameters
    ----------
    path
        Folder to make or replace.
    config
        What JSON can hold, numbers of NumPy included.
    tensors
        Names to torch tensors.
    what
        What it is, for messages.
    """
    from safetensors.torch import save_file

    try:
        text = json.dumps(config, indent=1, allow_nan=False, default=float)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"The {what} {str(path)!r} holds values that JSON cannot hold: {reason(error)}.") from error
    with staged_folder(path, what=what) as new:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, new / WEIGHTS)
        (new / WEIGHTS).chmod(0o644)  # safetensors' own file is closed to everybody else
        (new / CONFIG).write_text(text)
    return path


def check_tensors(path: Path, build: Callable[[], torch.nn.Module], *, what: str) -> None:
    """Refuse a file of tensors that are not those of a network, before any memory is taken for either.

    The network is made of tensors without memory.

    Parameters
    ----------
    path
        The safetensors file.
    build
        Makes the network from stored settings.
    what
        What the network is, such as "family 'ridge'", for messages.
    """
    import torch
    from safetensors import safe_open

    if not path.is_file():
        raise MissingFileError(f"Model file {str(path)!r} is missing.")
    with readable(path, what="model file"), safe_open(path, framework="pt") as file:
        slices = {k: file.get_slice(k) for k in file.keys()}
        there = {k: (_DTYPES.get(v.get_dtype()), tuple(v.get_shape())) for k, v in slices.items()}
    try:
        with torch.device("meta"):
            expected = build().state_dict()
    except InputError:
        raise
    except (ArithmeticError, AssertionError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"The settings in {str(path.with_name(CONFIG))!r} make no network of {what}: {reason(error)}."
        ) from error
    if missing := sorted(expected.keys() - there.keys()):
        raise InputError(f"Model file {str(path)!r} lacks tensors {listing(missing)}.")
    if unknown := sorted(there.keys() - expected.keys()):
        raise InputError(f"Model file {str(path)!r} has tensors that {what} does not know: {listing(unknown)}.")
    for name, (kind, shape) in there.items():
        wanted = expected[name]
        if shape != tuple(wanted.shape):
            raise InputError(
                f"Tensor {name!r} of {str(path)!r} has shape {shape}, {what} with this config needs "
                f"{tuple(wanted.shape)}."
            )
        dtype = None if kind is None else getattr(torch, kind)
        both_float = dtype is not None and dtype.is_floating_point and wanted.dtype.is_floating_point
        if dtype != wanted.dtype and not both_float:
            raise InputError(f"Tensor {name!r} of {str(path)!r} is of type {kind}, {what} needs {wanted.dtype}.")


def check_values(tensors: Iterable[tuple[str, torch.Tensor]], path: Path) -> None:
    """Refuse tensors with NaN, infinite or absurd values, or divisors that are not above zero."""
    import torch

    for name, tensor in tensors:
        if not tensor.is_floating_point() or tensor.numel() == 0:
            continue
        low, high = (float(v) for v in torch.aminmax(tensor.detach().float()))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise InputError(f"Tensor {name!r} of {str(path)!r} has values that are not finite; the file is damaged.")
        if max(-low, high) > MAX_VALUE:
            raise InputError(f"Tensor {name!r} of {str(path)!r} has values beyond {MAX_VALUE:g}; the file is damaged.")
        if (_ABOVE_ZERO.fullmatch(name) and low <= 0) or (name.endswith(".running_var") and low < 0):
            raise InputError(f"Tensor {name!r} of {str(path)!r} must be above zero, but reaches {low:g}.")

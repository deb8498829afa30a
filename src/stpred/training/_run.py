"""Options of training: device, precision, checkpoints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from stpred._core.checks import InputError, check_parent, one_of
from stpred._core.disk.on_disk import OnDisk
from stpred._core.files import writable
from stpred._core.settings import PRECISIONS, settings
from stpred.models.base import BaseConfig
from stpred.models.batch import Batch
from stpred.training._checkpoint import Checkpoint

if TYPE_CHECKING:
    from lightning_fabric import Fabric


T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """How networks are trained; what is not given is that of ``stpred.settings``.

    Parameters
    ----------
    device
        Such as ``"cpu"``, ``"cuda"``, ``"cuda:1"``; None takes a GPU if there is one.
    precision
        ``"32-true"`` (None), ``"bf16-mixed"`` or ``"16-mixed"``: weights stay in single precision.
    checkpoint
        Folder to keep the state of unfinished trainings in; None keeps none.
    fabric
        A launched Lightning Fabric, for several GPUs; it decides on device and precision instead.
    """

    device: str | None = None
    precision: str | None = field(default_factory=lambda: settings.precision)
    checkpoint: str | Path | None = field(default_factory=lambda: settings.checkpoint_dir)
    fabric: Fabric | None = field(default_factory=lambda: settings.fabric)

    def __post_init__(self) -> None:
        if self.precision is not None:
            one_of(self.precision, PRECISIONS, name="precision")
        if self.fabric is not None and self.precision is not None:
            raise InputError("A Fabric has its own precision: set one of `settings.fabric` and `settings.precision`.")
        if self.checkpoint is not None:
            folder = check_parent(Path(self.checkpoint))
            if folder.exists() and not folder.is_dir():
                raise InputError(f"`checkpoint_dir` must be a folder, {str(folder)!r} is a file.")

    @property
    def strict(self) -> bool:
        """Whether a gradient that is not finite ends the training; scaled half precision skips such steps by design."""
        return self.fabric is None and self.precision != "16-mixed"

    @cached_property
    def launched(self) -> Fabric:
        """The Fabric that training runs on."""
        if self.fabric is not None:
            return self.fabric
        from lightning_fabric import Fabric

        from stpred.encoders.modules import pick_device

        device = pick_device(self.device)
        # A device without a number is the first.
        devices: Any = 1 if device.type == "cpu" else [device.index or 0]
        return Fabric(accelerator=device.type, devices=devices, precision=self.precision or "32-true")  # type: ignore[arg-type]

    def file(self, key: str) -> Checkpoint | None:
        """Return the checkpoint of the training with this key."""
        if self.checkpoint is None:
            return None
        path = Path(self.checkpoint) / f"{key}.safetensors"
        if (call := _CALL.get()) is not None:
            call.files.add(path)
        return Checkpoint(path)


@dataclass
class _Call:
    """Fits of a public call: how many networks are planned and begun, and the files of their states."""

    planned: int
    begun: int = 0
    files: set[Path] = field(default_factory=set)


_CALL: ContextVar[_Call | None] = ContextVar("call", default=None)


@contextmanager
def resumable(run: Run, *, planned: int = 0) -> Iterator[None]:
    """Keep the checkpoints of all fits inside until the last is done, and number `planned` of them in progress bars.

    With several processes, the first one removes the files.
    """
    call = _Call(planned)
    token = _CALL.set(call)
    try:
        yield
    finally:
        _CALL.reset(token)
    if run.fabric is not None and not run.fabric.is_global_zero:
        return
    for path in call.files:
        with writable(path, what="checkpoint"):
            path.unlink(missing_ok=True)
    if run.checkpoint is not None:
        with suppress(OSError):  # it holds the checkpoints of others, or was removed with theirs
            Path(run.checkpoint).rmdir()


def each_its_share(fabric: Fabric | None, items: Sequence[T], work: Callable[[T], object]) -> None:
    """With several processes, let each work on its share of the items, and wait for all."""
    if fabric is None or fabric.world_size == 1:
        return
    for item in items[fabric.global_rank :: fabric.world_size]:
        work(item)
    fabric.barrier()


def numbered(what: str) -> str:
    """Return the name of the next fit, with its number among the planned ones."""
    call = _CALL.get()
    if call is None:
        return what
    call.begun += 1
    return f"fit {call.begun} of {call.planned}, {what}" if call.begun <= call.planned else what


def fingerprint(
    family: str,
    config: BaseConfig,
    train: Sequence[Batch],
    test: Sequence[Batch],
    *,
    seed: int,
    epochs: int,
    best: bool = False,
    precision: str | None = None,
) -> str:
    """Return a short hash of everything that decides the result of a training: settings, and all of the batches."""
    options = [family, config.to_dict(), seed, epochs, best, precision, len(train), len(test)]
    digest = hashlib.blake2b(json.dumps(options, default=str).encode(), digest_size=10)
    for batch in (*train, *test):
        add_to_digest(digest, batch)
    return digest.hexdigest()


def add_to_digest(digest: Any, value: Any) -> None:
    """Add a value to a digest: fields of dataclasses, arrays by type, shape and content."""
    digest.update(type(value).__name__.encode())
    if hasattr(value, "identity"):  # a slide's pixels
        for part in (value.identity, value.patch_px, value.sizes()):
            add_to_digest(digest, part)
    elif is_dataclass(value):
        for f in fields(value):
            digest.update(f.name.encode())
            add_to_digest(digest, getattr(value, f.name))
    elif isinstance(value, (np.ndarray, OnDisk)):
        digest.update(f"{value.dtype.str}{value.shape}".encode())
        for start in range(0, len(value), 4096):  # what is on disk is read part by part
            digest.update(np.ascontiguousarray(value[start : start + 4096]).data)
    elif hasattr(value, "indptr"):  # sparse
        for part in (value.indptr, value.indices, value.data):
            add_to_digest(digest, part)
    else:
        digest.update(repr(value).encode())

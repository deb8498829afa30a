"""Where and how training runs: device, precision, checkpoints; and what has been trained already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core.checks import InputError, check_parent, one_of
from stpred._core.files import writable
from stpred._core.settings import PRECISIONS, settings
from stpred._core.targets import stored
from stpred.models.base import BaseConfig
from stpred.models.batch import Batch
from stpred.training._checkpoint import Checkpoint
from stpred.training._scores import Curve

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass
class Run:
    """Settings of everything that is trained in one call.

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
    relabel
        Gives training batches other targets, from these batches and their donors alone: it is called anew with the
        training slides of every fold, so that no target knows of a left-out slide. None: as measured.
    """

    device: str | None = None
    precision: str | None = field(default_factory=lambda: settings.precision)
    checkpoint: str | Path | None = field(default_factory=lambda: settings.checkpoint_dir)
    fabric: Fabric | None = field(default_factory=lambda: settings.fabric)
    relabel: Callable[[Sequence[Batch], Sequence[str]], list[Batch]] | None = None
    curves: dict[str, Curve] = field(default_factory=dict, repr=False)
    files: set[Path] = field(default_factory=set, repr=False)
    planned: int = 0
    """Trainings of networks that this call takes, where that is known; 0 otherwise."""
    started: int = 0
    strict: bool = field(init=False, repr=False, default=True)
    """Whether a gradient that is not finite ends the training."""

    def __post_init__(self) -> None:
        # In half precision the gradient scaler skips steps that overflow, by design.
        self.strict = self.fabric is None and self.precision != "16-mixed"
        if self.precision is not None:
            one_of(self.precision, PRECISIONS, name="precision")
        if self.fabric is not None and (self.precision is not None):
            raise InputError("A Fabric has its own precision: set one of `settings.fabric` and `settings.precision`.")
        if self.checkpoint is not None:
            self.checkpoint = check_parent(Path(self.checkpoint))
            if self.checkpoint.exists() and not self.checkpoint.is_dir():
                raise InputError(f"`checkpoint_dir` must be a folder, {str(self.checkpoint)!r} is a file.")

    def label(self, what: str) -> str:
        """Return what the next training is called, with its number."""
        self.started += 1
        return f"fit {self.started} of {self.planned}, {what}" if self.started <= self.planned else what

    def labelled(self, batches: Sequence[Batch], groups: Sequence[str]) -> Sequence[Batch]:
        """Return training batches with the targets that are to be learned."""
        return batches if self.relabel is None else self.relabel(batches, groups)

    def made(self) -> Fabric:
        """Return the Fabric that training runs on."""
        if self.fabric is None:
            from lightning_fabric import Fabric

            from stpred.encoders.modules import pick_device

            device = pick_device(self.device)
            # A device without a number is the first.
            devices: Any = 1 if device.type == "cpu" else [device.index or 0]
            self.fabric = Fabric(accelerator=device.type, devices=devices, precision=self.precision or "32-true")  # type: ignore[arg-type]
        return self.fabric

    def file(self, key: str) -> Checkpoint | None:
        """Return the checkpoint of the training with this key."""
        if self.checkpoint is None:
            return None
        path = Path(self.checkpoint) / f"{key}.safetensors"
        self.files.add(path)
        return Checkpoint(path)

    def clear(self) -> None:
        """Remove the checkpoints of this call, when all of it is done; with several processes, the first one does."""
        if self.fabric is not None and not self.fabric.is_global_zero:
            return
        for path in self.files:
            with writable(path, what="checkpoint"):
                path.unlink(missing_ok=True)
        if self.checkpoint is not None:
            with suppress(OSError):  # it holds the checkpoints of others, or was removed with theirs
                Path(self.checkpoint).rmdir()


def fingerprint(
    family: str,
    config: BaseConfig,
    train: Sequence[Batch],
    test: Sequence[Batch],
    *,
    seed: int,
    epochs: int,
    best: bool = False,
) -> str:
    """Return a short hash of everything that decides how a training goes."""
    digest = hashlib.sha256(json.dumps([family, config.to_dict(), seed, epochs, best], default=str).encode())
    for batch in (*train, *test):
        digest.update(repr((batch.slide, batch.features.shape, len(batch.targets), batch.scale)).encode())
        every = max(1, len(batch.targets) // 64)
        some = np.asarray(batch.features[batch.targets[::every]])
        for values in (some, batch.sources, batch.coords_um, batch.y, batch.truth, batch.totals):
            digest.update(b"-" if values is None else np.ascontiguousarray(stored(values)).tobytes())
        digest.update(b"" if batch.pixel_grid is None else batch.pixel_grid.identity.encode())
        for links in (batch.links, batch.parts):
            digest.update(b"" if links is None else links.indices.tobytes())
    digest.update(str(len(train)).encode())
    return digest.hexdigest()[:20]

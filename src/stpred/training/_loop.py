"""The one loop that every network is trained by, on Lightning Fabric."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stpred import metrics
from stpred._core.checks import InputError
from stpred._core.progress import track
from stpred._core.targets import dense
from stpred.models.batch import Batch
from stpred.models.parts.iterative import Iterative
from stpred.training._checkpoint import Checkpoint, pack_optimizer, resume, unpack_optimizer
from stpred.training._feeds import feed_of
from stpred.training._run import Run
from stpred.training._scores import Curve

logger = logging.getLogger("stpred")

SAVE_EVERY_S = 30.0
"""Between two states on disk: a large model's takes seconds to write."""


def train(
    model: Iterative,
    batches: Sequence[Batch],
    *,
    epochs: int,
    seed: int,
    run: Run,
    validation: Sequence[Batch] = (),
    patience: int | None = None,
    keep_best: bool = False,
    checkpoint: Checkpoint | None = None,
    describe: str = "",
) -> tuple[Curve | None, dict[str, Any]]:
    """Train a network in place.

    Parameters
    ----------
    model
        With initial weights.
    batches
        One per training slide, with targets.
    epochs
        Passes over them.
    seed
        Of the order of locations, and of dropout; the global random state is left alone.
    run
        Device and precision.
    validation
        Left-out slides that are scored after each epoch.
    patience
        Epochs without a better score on them after which training stops.
    keep_best
        Leave the model as it was after the epoch that the left-out slides scored best at.
    checkpoint
        Where the state is kept after each epoch, and taken up again from.
    describe
        What the progress bar is called.

    Returns
    -------
    The scores of the left-out slides after each epoch (None without any), and facts: epochs, steps, losses.
    """
    fabric = run.made()
    device = fabric.device
    cuda = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed + fabric.global_rank)
        model.begin(batches)
        order = np.random.default_rng(seed)
        scored: list[tuple[NDArray, NDArray, NDArray]] = []
        losses: list[float] = []
        best: dict[str, Tensor] = {}
        feed = feed_of(model, batches, seed=seed, fabric=fabric)
        wrapped, optimizer = fabric.setup(model, _optimizer(model, fabric.device))
        first = _resume(checkpoint, model, optimizer, order, scored, losses, best)
        saved = time.monotonic()
        stopped = _stale(scored, validation, model, patience)
        for epoch in track(range(first, epochs), total=epochs - first, describe=run.label(describe)):
            if stopped:
                break
            model.train()
            total, n_batches = 0.0, 0
            for sample, told in feed.epoch(order):
                total += _step(model, wrapped, optimizer, sample, fabric, told, epoch, strict=run.strict)
                n_batches += 1
            losses.append(total / max(n_batches, 1))
            if model.review(epoch + 1, lambda: (sample for sample, _ in feed.epoch(order))):
                wrapped, optimizer = fabric.setup(model, _optimizer(model, fabric.device))  # parameters came or went
            if validation and (model.scored_each_epoch or epoch + 1 == epochs):
                scored.append(_score(model, validation))
                if keep_best and _best(scored, validation, model) == epoch:
                    best.update({k: v.detach().cpu().clone() for k, v in model.state_dict().items()})
            stopped = _stale(scored, validation, model, patience)
            due = stopped or epoch + 1 == epochs or time.monotonic() - saved >= SAVE_EVERY_S
            if checkpoint is not None and fabric.is_global_zero and due:
                _keep(checkpoint, model, optimizer, order, scored, losses, best)
                saved = time.monotonic()
    if best:
        model.load_state_dict(best)
    model.eval()
    facts = {
        "epochs": _best(scored, validation, model) + 1 if best else len(losses),
        "loss": {"first": losses[0], "last": losses[-1]},
        "curve": {"loss": [float(f"{v:.5g}") for v in losses]},
    }
    return (_curve(scored, validation) if validation else None), facts


def _optimizer(model: Iterative, device: torch.device) -> torch.optim.Optimizer:
    """Return the model's optimiser; on the CPU it updates all in one pass, where torch's default takes ten."""
    optimizer = model.optimizer()
    for group in optimizer.param_groups:
        if device.type == "cpu" and "fused" in group:
            group["fused"] = True
    return optimizer


def _step(
    model: Iterative,
    wrapped: Any,
    optimizer: Any,
    sample: Any,
    fabric: Any,
    told: str,
    epoch: int,
    *,
    strict: bool,
) -> float:
    """Forward, loss, backward, step; return the loss."""
    optimizer.zero_grad(set_to_none=True)
    loss = model.loss(wrapped(sample), sample)
    value = float(loss.detach())
    _check_finite("loss", value, told, epoch)
    fabric.backward(loss)
    if model.config.clip_norm is not None:
        norm = fabric.clip_gradients(wrapped, optimizer, max_norm=model.config.clip_norm, error_if_nonfinite=False)
        if strict:
            _check_finite("gradient", float(norm), told, epoch)
    optimizer.step()
    model.after_step()
    return value


def _check_finite(what: str, value: float, told: str, epoch: int) -> None:
    """Stop with the step named, before its weights spoil the following ones."""
    if not np.isfinite(value):
        raise InputError(
            f"The {what} became {value} in epoch {epoch + 1}, in a step of {told}; look for extreme values there, or "
            "lower `lr`."
        )


def _score(model: Iterative, validation: Sequence[Batch]) -> tuple[NDArray, NDArray, NDArray]:
    """Return (S, G) Pearson and Spearman and the (S,) squared error of left-out slides."""
    found = [score_slide(model, b) for b in validation]
    return np.stack([f[0] for f in found]), np.stack([f[1] for f in found]), np.array([f[2] for f in found], np.float32)


def score_slide(model: Any, batch: Batch) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
    """Return Pearson and Spearman of each gene, and the mean squared error, of a slide's prediction."""
    mean, truth = model.as_scored(model.predict(batch)[0]), dense(batch.scored, np.float32)
    error = float(np.square(mean - truth).mean())
    return metrics.pearson(mean, truth).astype(np.float32), metrics.spearman(mean, truth).astype(np.float32), error


def _curve(scored: list[tuple[NDArray, NDArray, NDArray]], validation: Sequence[Batch]) -> Curve:
    return Curve(
        [b.slide for b in validation],
        np.array([len(b.targets) for b in validation]),
        np.stack([s[0] for s in scored]),
        np.stack([s[1] for s in scored]),
        np.stack([s[2] for s in scored]),
    )


def _stale(scored: list[Any], validation: Sequence[Batch], model: Iterative, patience: int | None) -> bool:
    """Whether the left-out slides have not scored better for `patience` epochs."""
    if patience is None or not validation or len(scored) <= patience:
        return False
    return len(scored) - 1 - _best(scored, validation, model) >= patience


def _best(scored: list[Any], validation: Sequence[Batch], model: Iterative) -> int:
    """Return the epoch, from 0, after which the left-out slides scored best."""
    return int(np.argmax(_curve(scored, validation).quality(model.criterion)))


def _keep(
    checkpoint: Checkpoint,
    model: Iterative,
    optimizer: Any,
    order: np.random.Generator,
    scored: list,
    losses: list[float],
    best: dict[str, Tensor],
) -> None:
    tensors, facts = pack_optimizer(getattr(optimizer, "optimizer", optimizer))
    tensors |= {f"model.{k}": v for k, v in model.state_dict().items()} | {f"best.{k}": v for k, v in best.items()}
    tensors["random"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random_cuda"] = torch.cuda.get_rng_state()
    for name, part in zip(("pearson", "spearman", "error"), zip(*scored, strict=True), strict=False):
        tensors[f"scored.{name}"] = torch.from_numpy(np.stack(part))
    checkpoint.save(tensors, {"optimizer": facts, "order": order.bit_generator.state, "losses": losses})


def _resume(
    checkpoint: Checkpoint | None,
    model: Iterative,
    optimizer: Any,
    order: np.random.Generator,
    scored: list,
    losses: list[float],
    best: dict[str, Tensor],
) -> int:
    """Put an interrupted training's state back; return the number of epochs that are done."""
    plain = getattr(optimizer, "optimizer", optimizer)

    def put_back(tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        own = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        model.load_state_dict(own)
        unpack_optimizer(plain, tensors, facts["optimizer"])
        order.bit_generator.state = facts["order"]
        torch.set_rng_state(tensors["random"])
        if "random_cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["random_cuda"])
        done = [float(loss) for loss in facts["losses"]]
        parts = []
        if "scored.error" in tensors:
            parts = list(zip(*(tensors[f"scored.{n}"].numpy() for n in ("pearson", "spearman", "error")), strict=True))
        best.update({k.removeprefix("best."): v for k, v in tensors.items() if k.startswith("best.")})
        scored.extend(parts)
        losses.extend(done)

    if resume(checkpoint, put_back, model=model, optimizer=plain, order=order):
        logger.info("Training goes on after epoch %d.", len(losses))
    return len(losses)

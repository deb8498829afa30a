"""The one loop that every network is trained by, on Lightning Fabric."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from stpred import metrics
from stpred._core.checks import InputError
from stpred._core.compute.gpu import enough_memory
from stpred._core.progress import track
from stpred._core.targets import dense
from stpred.models.batch import Batch
from stpred.models.parts.iterative import Iterative
from stpred.training._checkpoint import Checkpoint, State
from stpred.training._run import Run, numbered
from stpred.training._samplers import sampler_of
from stpred.training._scores import Curve, criterion_of

if TYPE_CHECKING:
    from lightning_fabric import Fabric

SAVE_EVERY_S = 30.0
"""Between two states on disk: a large model's takes seconds to write."""

ADVICE = "lower `batch_size` in the model's Config, or set stpred.settings.precision to 'bf16-mixed'"
"""Where the memory of the GPU does not suffice for a step."""


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
    warm: Callable[[torch.optim.Optimizer], None] | None = None,
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
        Of the order of locations, and of dropout; the global random state is not changed.
    run
        Device and precision.
    validation
        Held-out slides that are scored after each epoch.
    patience
        Epochs without a better score on them after which training stops.
    keep_best
        Leave the model as it was after the epoch that the held-out slides scored best at.
    checkpoint
        Where the state is kept after each epoch, and taken up again from.
    warm
        Go on from the model's weights instead of new ones, with the learning rates that this gives to the optimiser;
        held-out slides are then scored before the first epoch as well.
    describe
        What the progress bar is called.

    Returns
    -------
    The scores of the held-out slides after each epoch (None without any), and a summary: epochs, steps, losses.
    """
    fabric = run.launched
    with seeded(fabric, seed + fabric.global_rank):
        if warm is None:
            model.begin(batches)
        sampler = sampler_of(model, batches, seed=seed, fabric=fabric)
        built = _optimizer(model, fabric.device)
        if warm is not None:
            warm(built)
        wrapped, optimizer = fabric.setup(model, built)
        state = State(model, optimizer, np.random.default_rng(seed))

        def one_epoch(epoch: int) -> float:
            model.train()
            total, n_batches = 0.0, 0
            for sample, what in sampler.epoch(state.order):
                with enough_memory(f"in a step of {what}", advice=ADVICE):
                    total += _step(model, wrapped, state.optimizer, sample, fabric, what, epoch, strict=run.strict)
                n_batches += 1
            return _agreed(model, total / max(n_batches, 1), fabric)

        def after(epoch: int) -> bool:
            nonlocal wrapped
            if model.review(epoch + 1, lambda: (sample for sample, _ in sampler.epoch(state.order))):
                wrapped, state.optimizer = fabric.setup(model, _optimizer(model, fabric.device))  # other parameters
            if validation and (model.scored_each_epoch or epoch + 1 == epochs):
                state.scored.append(_score(model, validation))
                if keep_best and _best(state.scored, validation, model) == epoch:
                    state.best.update({k: v.detach().cpu().clone() for k, v in model.state_dict().items()})
            return _stale(state.scored, validation, model, patience)

        state.resume(checkpoint)
        if warm is not None and validation and not state.scored:
            state.scored.append(_score(model, validation))
        last = len(state.losses) if _stale(state.scored, validation, model, patience) else epochs
        run_epochs(state, one_epoch, after, epochs=last, fabric=fabric, checkpoint=checkpoint, describe=describe)
    if state.best:
        model.load_state_dict(state.best)
    model.eval()
    losses = state.losses
    chosen = {
        "epochs": _best(state.scored, validation, model) + 1 if state.best else len(losses),
        "loss": {"first": losses[0], "last": losses[-1]},
        "curve": {"loss": [float(f"{v:.5g}") for v in losses]},
    }
    return (_curve(state.scored, validation) if validation else None), chosen


def _agreed(model: Iterative, loss: float, fabric: Fabric) -> float:
    """Return the mean loss over processes, and give all the buffers of the first (batch norm's are of each one's own).

    With what else differs between them gone, all processes score, choose and stop alike.
    """
    if fabric.world_size == 1:
        return loss
    for name, buffer in model.named_buffers():
        if not name.startswith("typical."):
            buffer.copy_(fabric.broadcast(buffer))
    return float(fabric.all_reduce(torch.tensor(loss, dtype=torch.float64, device=fabric.device), reduce_op="mean"))  # type: ignore[arg-type]


@contextmanager
def seeded(fabric: Fabric, seed: int) -> Iterator[None]:
    """Seed torch, and leave its global random state as it was."""
    cuda = [fabric.device.index or 0] if fabric.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        yield


def run_epochs(
    state: State,
    one_epoch: Callable[[int], float],
    after: Callable[[int], bool],
    *,
    epochs: int,
    fabric: Fabric,
    checkpoint: Checkpoint | None,
    describe: str,
) -> None:
    """Run the epochs that are not done yet, and keep the state now and then.

    Parameters
    ----------
    state
        What is kept; the losses grow by one an epoch.
    one_epoch
        Trains for an epoch and returns its mean loss.
    after
        Is called after each epoch, and says whether training ends.
    epochs, fabric, checkpoint, describe
        As of :func:`train`.
    """
    first, saved = len(state.losses), time.monotonic()
    for epoch in track(range(first, epochs), total=epochs - first, describe=numbered(describe)):
        state.losses.append(one_epoch(epoch))
        stopped = after(epoch)
        due = stopped or epoch + 1 == epochs or time.monotonic() - saved >= SAVE_EVERY_S
        if checkpoint is not None and fabric.is_global_zero and due:
            state.save(checkpoint)
            saved = time.monotonic()
        if stopped:
            break


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
    what: str,
    epoch: int,
    *,
    strict: bool,
) -> float:
    """Forward, loss, backward, step; return the loss."""
    optimizer.zero_grad(set_to_none=True)
    loss = model.loss(wrapped(sample), sample)
    value = float(loss.detach())
    _check_finite("loss", value, what, epoch)
    fabric.backward(loss)
    if model.config.clip_norm is not None:
        norm = fabric.clip_gradients(wrapped, optimizer, max_norm=model.config.clip_norm, error_if_nonfinite=False)
        if strict:
            _check_finite("gradient", float(norm), what, epoch)
    optimizer.step()
    model.after_step()
    return value


def _check_finite(quantity: str, value: float, what: str, epoch: int) -> None:
    """Stop with the step named, before its weights spoil the following ones."""
    if not np.isfinite(value):
        raise InputError(
            f"The {quantity} became {value} in epoch {epoch + 1}, in a step of {what}; look for extreme values there, "
            "or lower `lr`."
        )


def _score(model: Any, validation: Sequence[Batch]) -> tuple[NDArray, NDArray, NDArray]:
    """Return (S, G) Pearson and Spearman and the (S,) squared error of held-out slides."""
    found = [score_slide(model, b) for b in validation]
    return np.stack([f[0] for f in found]), np.stack([f[1] for f in found]), np.array([f[2] for f in found], np.float32)


def score_once(model: Any, batches: Sequence[Batch]) -> Curve:
    """Return the scores of slides as a curve of one epoch."""
    return _curve([_score(model, batches)], batches)


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
    """Whether the held-out slides have not scored better for `patience` epochs."""
    if patience is None or not validation or len(scored) <= patience:
        return False
    return len(scored) - 1 - _best(scored, validation, model) >= patience


def _best(scored: list[Any], validation: Sequence[Batch], model: Iterative) -> int:
    """Return the epoch, from 0, after which the held-out slides scored best."""
    return int(np.argmax(_curve(scored, validation).quality(criterion_of(type(model), model.config))))

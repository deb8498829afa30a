"""Self-supervised learning of an encoder from unlabelled tiles: MoCo v3 (Chen, Xie & He 2021, arXiv 2104.02057)."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from stpred._core.checks import InputError
from stpred.encoders.pretraining import WEIGHT_DECAY, MoCo
from stpred.training import augmentation
from stpred.training._checkpoint import State
from stpred.training._loop import run_epochs, seeded
from stpred.training._run import Run, add_to_digest

MIN_TILES = 16
"""Tiles below which there is nothing to tell apart."""


def projector(n_in: int, hidden: int, n_out: int, *, last_norm: bool) -> nn.Sequential:
    """Return two linear layers, batch norm after the first and, without scale and shift, optionally after the last."""
    layers: list[nn.Module] = [
        nn.Linear(n_in, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, n_out, bias=False),
    ]
    if last_norm:
        layers.append(nn.BatchNorm1d(n_out, affine=False))
    return nn.Sequential(*layers)


class MomentumContrast(nn.Module):
    """Two encoders, one trained and one that follows it slowly; the loss of two views of the same tiles.

    Parameters
    ----------
    backbone
        Maps (n, 3, s, s) to (n, width).
    width
        Of its features.
    config
        Sizes and temperature.
    """

    def __init__(self, backbone: nn.Module, *, width: int, config: MoCo) -> None:
        super().__init__()
        self.encoder = nn.Sequential(backbone, projector(width, config.hidden, config.projection, last_norm=True))
        self.predictor = projector(config.projection, config.hidden, config.projection, last_norm=False)
        self.slow = copy.deepcopy(self.encoder).requires_grad_(requires_grad=False)
        self.temperature = config.temperature

    @property
    def backbone(self) -> nn.Module:
        """What is kept of it."""
        return self.encoder[0]

    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        """Return the symmetric loss of two (n, 3, s, s) batches of views."""
        first, second = self.predictor(self.encoder(one)), self.predictor(self.encoder(two))
        with torch.no_grad():
            slow_first, slow_second = self.slow(one), self.slow(two)
        return contrast(first, slow_second, temperature=self.temperature) + contrast(
            second, slow_first, temperature=self.temperature
        )

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """Move the second encoder's parameters towards the first's; its batch norms keep statistics of their own."""
        for slow, fast in zip(self.slow.parameters(), self.encoder.parameters(), strict=True):
            slow.lerp_(fast.detach().to(slow.dtype), 1 - momentum)


def contrast(queries: Tensor, keys: Tensor, *, temperature: float) -> Tensor:
    """Return 2 * temperature * InfoNCE: each query has to find its key among all keys of the step.

    With several processes the keys of all are gathered.
    """
    with torch.autocast(queries.device.type, enabled=False):
        q, k = F.normalize(queries.float(), dim=1), F.normalize(keys.float(), dim=1).detach()
        n, first = len(q), 0
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            parts = [torch.empty_like(k) for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather(parts, k.contiguous())
            first, k = n * torch.distributed.get_rank(), torch.cat(parts)
        own = torch.arange(first, first + n, device=q.device)
        return 2 * temperature * F.cross_entropy(q @ k.T / temperature, own)


class LARS(torch.optim.Optimizer):
    """Momentum SGD whose step in each weight matrix has a length in proportion to it (You et al. 2017).

    Biases and the parameters of normalisations (fewer than two dimensions) take plain steps, without weight decay.
    """

    def __init__(
        self, params: Any, *, lr: float, weight_decay: float = 0.0, momentum: float = 0.9, trust: float = 0.001
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                change = p.grad
                if p.ndim > 1:
                    change = change.add(p, alpha=group["weight_decay"])
                    length, size = p.norm(), change.norm()
                    ratio = group["trust"] * length / size
                    change = change * torch.where((length > 0) & (size > 0), ratio, torch.ones_like(ratio))
                kept = self.state[p]
                if "velocity" not in kept:
                    kept["velocity"] = torch.zeros_like(p)
                kept["velocity"].mul_(group["momentum"]).add_(change)
                p.add_(kept["velocity"], alpha=-group["lr"])
        return loss


def pretrain(
    backbone: nn.Module,
    crops: Any,
    *,
    width: int,
    size_px: int,
    config: MoCo,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    seed: int,
    run: Run,
    identity: str = "",
) -> dict[str, Any]:
    """Train a backbone in place, and return what happened: losses, steps, seconds.

    Parameters
    ----------
    backbone
        With initial weights.
    crops
        (n, edge, edge, 3) uint8 tiles with a margin: an array, or what gives one for the rows that it is indexed by.
    width, size_px
        Of the features; edge of the tile itself.
    config
        Settings.
    mean, std
        Normalisation of colours.
    seed
        Of order, views, and new layers; the global random state is not changed.
    run
        Device, precision, checkpoint.
    identity
        What else makes this training another one (name of the backbone and its initial weights).
    """
    fabric = run.launched
    device = fabric.device
    world, rank = fabric.world_size, fabric.global_rank
    n = len(crops)
    if n < MIN_TILES * world:
        raise InputError(f"There are {n} tiles to learn from; {MIN_TILES * world} or more are needed.")
    together = min(config.batch_size * world, n // world * world)
    checkpoint = run.file(fingerprint(config, crops, mean, std, seed=seed, identity=identity, run=run))
    with seeded(fabric, seed):
        model: Any = MomentumContrast(backbone, width=width, config=config)
        if world > 1 and device.type == "cuda":  # batch statistics of all processes; torch has it for GPUs only
            from timm.layers import convert_sync_batchnorm  # knows timm's own norms too

            model = convert_sync_batchnorm(model)
        wrapped, optimizer = fabric.setup(model, _optimizer(model, config, tiles_per_step=together))
        torch.manual_seed(seed + rank)  # dropout differs between processes, weights and views do not
        state = State(model, optimizer, np.random.default_rng(seed), views=torch.Generator().manual_seed(seed))
        look: dict[str, Any] = {"size_px": size_px, "mean": torch.tensor(mean), "std": torch.tensor(std)}
        steps = n // together

        def one_epoch(epoch: int) -> float:
            model.train()
            total = torch.zeros((), device=device)
            for step, (some, drawn) in enumerate(_steps(crops, state, config, together, rank, world)):
                at = epoch + step / steps
                for group in optimizer.param_groups:
                    group["lr"] = config.lr_at(at, tiles_per_step=together)
                tiles = torch.from_numpy(some).to(device)
                stained = config.augmentation.stain > 0
                optimizer.zero_grad(set_to_none=True)
                loss = wrapped(*(augmentation.views(tiles, d, stained=stained, **look) for d in drawn))
                _check_finite(float(loss.detach()), epoch=epoch, step=step)
                fabric.backward(loss)
                optimizer.step()
                model.follow(config.momentum_at(at))
                total += loss.detach()
            return float(fabric.all_reduce(total / steps, reduce_op="mean"))  # type: ignore[arg-type]

        state.resume(checkpoint)
        began = time.monotonic()
        run_epochs(
            state, one_epoch, lambda _: False, epochs=config.epochs, fabric=fabric, checkpoint=checkpoint,
            describe="pretraining",
        )  # fmt: skip
        seconds = time.monotonic() - began
    backbone.eval()
    return {
        "n_tiles": n,
        "tiles_per_step": together,
        "steps": steps * config.epochs,
        "loss": [float(f"{x:.5g}") for x in state.losses],
        "chance_loss": float(f"{4 * config.temperature * math.log(together):.5g}"),
        "seconds": round(seconds, 1),
    }


def _steps(
    crops: Any, state: State, config: MoCo, together: int, rank: int, world: int
) -> Iterator[tuple[NDArray[np.uint8], tuple[augmentation.Draw, augmentation.Draw]]]:
    """Yield this process's tiles of each step of an epoch, and the draws of both views; the rest is dropped."""
    shuffled = state.order.permutation(len(crops))
    own, views = slice(rank, None, world), state.views
    assert views is not None
    for start in range(0, len(crops) - together + 1, together):
        rows = np.sort(shuffled[start : start + together])  # in order: a memory map is read forwards
        drawn = [augmentation.draw(together, config.augmentation, generator=views).take(own) for _ in range(2)]
        yield np.ascontiguousarray(crops[rows[own]]), (drawn[0], drawn[1])


def _optimizer(model: nn.Module, config: MoCo, *, tiles_per_step: int) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    lr = config.base_lr(tiles_per_step)
    decay = WEIGHT_DECAY[config.optimizer] if config.weight_decay is None else config.weight_decay
    if config.optimizer == "lars":
        return LARS(parameters, lr=lr, weight_decay=decay)
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr)


def fingerprint(config: MoCo, crops: Any, mean: Any, std: Any, *, seed: int, identity: str, run: Run) -> str:
    """Return a short hash of everything that decides the result of a training."""
    options = [config.to_dict(), list(crops.shape), list(mean), list(std), seed, identity, run.precision]
    digest = hashlib.blake2b(json.dumps(options).encode(), digest_size=10)
    if run.checkpoint is not None:
        for start in range(0, len(crops), 4096):
            add_to_digest(digest, crops[start : start + 4096])
    return f"encoder-{digest.hexdigest()}"


def _check_finite(value: float, *, epoch: int, step: int) -> None:
    if not math.isfinite(value):
        raise InputError(
            f"The loss became {value} in epoch {epoch + 1}, step {step + 1}; lower `lr`, or raise `warmup_epochs`."
        )

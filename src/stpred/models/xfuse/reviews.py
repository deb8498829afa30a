"""Reviews of the metagenes between epochs: which stay, which are dropped, which are split."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from stpred.models.parts.iterative import Iterative
from stpred.models.xfuse import likelihood as terms
from stpred.models.xfuse import metagenes as bookkeeping
from stpred.models.xfuse.config import XFuseConfig
from stpred.models.xfuse.sample import PatchSample

logger = logging.getLogger("stpred")

FIRST_SPREAD = 0.01
_DRAWS = 3


class Reviewed(Iterative):
    """A generative model whose metagenes are reviewed; see `XFuse`, of which this is the part that counts them."""

    config: XFuseConfig
    active: Tensor
    forest: Tensor
    metagene: Any
    profile_mean: nn.Parameter
    profile_log_std: nn.Parameter
    beside: Any
    guide: Any
    decoder: Any
    latents: Any
    mixed: Any
    draw_profiles: Any
    _effects: Any
    _profile_kl: Any
    _optimizer: Any
    log_rate: nn.Parameter
    logit: nn.Parameter

    def review(self, epoch: int, samples: Callable[[], Iterable[PatchSample]]) -> bool:
        """Drop and add metagenes where it is due; the optimiser's state of those that stay is kept."""
        c, total = self.config, self.config.epochs or 0
        self._slow_down(epoch / total)
        if epoch == total:
            if self.beside is not None:
                self._match_totals(samples())  # else metagenes may seem superfluous for their amount alone
            self._purge(samples)
            if self.beside is not None:
                self._match_totals(samples())
                with torch.no_grad():  # of the same mean
                    self.log_rate.sub_(self.beside.dispersion.log())
                    self.logit.add_(self.beside.dispersion.log())
            return False
        if c.purge_interval is None or epoch % c.purge_interval or epoch + c.purge_interval > total:
            return False
        scores = self.leave_one_out(samples(), draws=_DRAWS)
        if c.strategy == "extra":
            change = bookkeeping.keep_spare(scores, spare=self._spare(epoch), capacity=c.max_metagenes)
        else:
            forest = bookkeeping.unflattened(v for v in self.forest.tolist() if v >= -1)
            contributes = {m: value < 0 or len(scores) == 1 for m, value in scores.items()}
            forest, change = bookkeeping.drop_and_split(forest, contributes, capacity=c.max_metagenes)
            flat = bookkeeping.flattened(forest)
            self.forest.fill_(-2)
            self.forest[: len(flat)] = torch.tensor(flat)
        self._change(change)
        logger.info("Epoch %d: %d metagenes (%d dropped, %d new).", epoch, int(self.active.sum()),
                    len(change.dropped), len(change.added))  # fmt: skip
        return False  # the parameters' shapes stay

    def _purge(self, samples: Callable[[], Iterable[PatchSample]]) -> None:
        """Drop metagenes that do not contribute, the most superfluous first, until all do.

        Two that stand for the same thing are both superfluous, until one of them is gone.
        """
        for n_left in range(int(self.active.sum()) - 1, 0, -1):
            scores = self.leave_one_out(samples(), draws=_DRAWS)
            worst = max(scores, key=lambda m: scores[m])
            if scores[worst] < 0:
                return
            self._change(bookkeeping.Change([worst]))
            logger.info("Metagene %d is dropped; %d remain.", worst, n_left)

    def _match_totals(self, samples: Iterable[PatchSample]) -> None:
        """Shift the genes' log rates, so that the expected counts of each add up to the measured ones.

        In training, layers are normalised by the patches of a step; in prediction by averages over all steps, with
        which scales come out a little too small or too large everywhere.
        """
        was = self.training
        self.eval()
        expected, measured = torch.zeros_like(self.log_rate), torch.zeros_like(self.log_rate)
        try:
            with torch.no_grad():
                for sample in samples:
                    posterior = self.latents(sample.image, sample.features)
                    h = self.decoder([mean + std * torch.randn_like(mean) for mean, std in posterior]).float()
                    logits, scale = self.mixed(h, sample.features)
                    share = torch.softmax(logits[sample.pixel], dim=1) * scale[sample.pixel, None]
                    base, success, _, _ = self._effects(sample)
                    sums = terms.region_sums(share, sample.region, len(sample.owner))
                    total = terms.total_counts(sums, self.draw_profiles(), base[sample.owner])
                    there = sample.measured[sample.owner] & (sample.counts.sum(dim=1, keepdim=True) > 0)
                    expected += (total * success[sample.owner].exp() * there).sum(dim=0)
                    measured += (sample.counts * there).sum(dim=0)
        finally:
            self.train(was)
        with torch.no_grad():  # half a count, so that genes without any keep a rate
            self.log_rate.add_(((measured + 0.5) / (expected + 0.5)).log())

    def _slow_down(self, progress: float) -> None:
        """Let the rates fall along half a cosine; the last steps would otherwise leave the noise of a few patches."""
        if self._optimizer is None or not self.config.decay:
            return
        for group in self._optimizer.param_groups:
            first = group.setdefault("initial_lr", group["lr"])
            group["lr"] = first * (0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2)

    def leave_one_out(self, samples: Iterable[PatchSample], *, draws: int) -> dict[int, float]:
        """Return the change of the bound of a pass without each metagene, all from one decode.

        The image and the latents are the same with and without it; what differs is how the others share its pixels,
        the counts' likelihood and the metagene's own divergence.
        """
        names = torch.nonzero(self.active)[:, 0].tolist()
        was = self.training
        self.eval()
        total = torch.zeros(len(names), device=self.active.device)
        kl = self._profile_kl().detach()
        try:
            with torch.no_grad():
                for sample in samples:
                    posterior = self.latents(sample.image, sample.features)
                    for _ in range(draws):
                        h = self.decoder([mean + std * torch.randn_like(mean) for mean, std in posterior])
                        total += self._without_each(h.float(), sample) / draws
                    total += kl * len(sample.slides) / sum(sample.n_patches.values())
        finally:
            self.train(was)
        return dict(zip(names, total.tolist(), strict=True))

    def _without_each(self, h: Tensor, sample: PatchSample) -> Tensor:
        logits, scale = self.mixed(h, sample.features)
        base, success, _, _ = self._effects(sample)
        return terms.leave_one_out(
            logits[sample.pixel],
            scale[sample.pixel],
            sample.region,
            len(sample.owner),
            profiles=self.draw_profiles(),
            base=base[sample.owner],
            success=success[sample.owner],
            counts=sample.counts,
            measured=sample.measured[sample.owner],
        )

    def _spare(self, epoch: int) -> int:
        c = self.config
        return round(c.spare + (c.spare_last - c.spare) * min(epoch / c.spare_epochs, 1.0))

    def _change(self, change: bookkeeping.Change) -> None:
        """Switch metagenes off and on; a copy takes over everything of its parent, the optimiser's state included."""
        parameters = [self.profile_mean, self.profile_log_std, self.metagene.weight, self.metagene.bias]
        if self.beside is not None:
            parameters.append(self.beside.to_metagenes)
        states = [] if self._optimizer is None else [self._optimizer.state.get(p, {}) for p in parameters]
        moments = [v for s in states for k, v in s.items() if k != "step" and isinstance(v, Tensor)]
        with torch.no_grad():
            self.active[change.dropped] = False
            for new, parent in change.added:
                self.active[new] = True
                for tensor in (*parameters, *moments):
                    if parent is not None:
                        tensor[new] = tensor[parent]
                    elif any(tensor is m for m in moments):
                        tensor[new] = 0
                if parent is None:
                    self.profile_mean[new] = 0
                    self.profile_log_std[new] = math.log(FIRST_SPREAD)
                    nn.init.kaiming_uniform_(self.metagene.weight[new][None], a=math.sqrt(5))
                    self.metagene.bias[new] = 0
                    if self.beside is not None:
                        self.beside.to_metagenes[new] = 0

"""XFuse: a generative model of histology and expression, with posterior uncertainty (Bergenstråhle et al. 2022)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from stpred._core.checks import InputError, listing
from stpred._core.specs import Posterior
from stpred.models.base import BaseConfig
from stpred.models.batch import Batch
from stpred.models.parts.iterative import Iterative
from stpred.models.xfuse import likelihood as terms
from stpred.models.xfuse import metagenes as bookkeeping
from stpred.models.xfuse.config import DEFAULT_TILE, XFuseConfig
from stpred.models.xfuse.covariates import Covariates
from stpred.models.xfuse.initial import evenly_picked_counts, evenly_picked_pixels, first_profiles, fit_baselines
from stpred.models.xfuse.likelihood import Elbo
from stpred.models.xfuse.networks import Decoder, Encoder, head, last
from stpred.models.xfuse.posterior import draw_posterior
from stpred.models.xfuse.sample import PatchSample

logger = logging.getLogger("stpred")


_FIT_ROWS = 4000
"""Maximum number of locations in the first fit of the gene baselines."""

_FIRST_SPREAD = 0.01
_DRAWS = 3


class XFuse(Iterative):
    """Counts of spots as sums over the pixels in them, image and expression from one latent state of the tissue.

    Every pixel has a scale and a mixture of metagenes, decoded from latents at several resolutions that an encoder
    infers from the image alone; a spot's counts are negative binomial on the sum over its pixels, so expression is
    learned below the spots' size, and slides with nothing but an image can be read.

    Notes
    -----
    The tile defines the pixels: its resolution is the pixels' and its size that of the training patches. Pixels
    cost: the default of 8 um per pixel is for laptops. Predictions are counts, with ``layers["std"]`` the posterior's
    standard deviation of the expected count. Memory depends on patches and steps, not on slides. Distances to training
    tiles are of colours in windows of 8 to 64 pixels.

    Beside the publication: each channel is scaled to the slide's own range on a small copy; spots are discs of
    their true radius, and pixels off the tissue count as empty only away from the spots, for pale tissue among them is
    no glass; a spot's mean size leaves the empty region out; metagenes start at factors of the counts, rates fall along
    a cosine, and the last review drops one metagene at a time.

    Per-gene scores on held-out donors need as many more trainings as donors; without ``score_folds=True`` (or
    ``validation=`` slides) no gene is marked as trusted.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(2, size_um=(400, 400), n_genes=20)
    >>> config = st.models.XFuse.Config(depth=2, width=4, epochs=1)
    >>> model = st.tl.train(slides, config, shapes_key="spots", tile=st.TileSpec(mpp=16, size_px=16))
    >>> st.tl.predict(slides["donor0"], model, shapes_key="spots")
    >>> "std" in slides["donor0"].tables["spots_xfuse"].layers
    True
    """

    unit = "patches"
    criterion = "pearson"
    scored_each_epoch = False
    Config: ClassVar[type[XFuseConfig]] = XFuseConfig  # type: ignore[assignment]
    config: XFuseConfig
    guide: Encoder
    decoder: Decoder
    image_mean: nn.Sequential
    image_spread: nn.Sequential
    shared: nn.Sequential
    scale: nn.Sequential
    metagene: Any
    active: Tensor
    forest: Tensor

    def __init__(self, config: BaseConfig, *, n_features: int, n_genes: int) -> None:
        super().__init__(config, n_features=n_features, n_genes=n_genes)
        c = self.config
        most = c.max_metagenes
        self.covariates = Covariates(c.covariates or {})
        self.guide, self.decoder = Encoder(c.depth, c.width), Decoder(c.depth, c.width)
        self.image_mean, self.image_spread = head(c.width, 3), head(c.width, 3)
        self.shared = head(c.width, c.width)[:2]
        self.metagene = nn.Conv2d(c.width, most, 1)
        self.scale = head(c.width, 1)
        with torch.no_grad():
            self.metagene.bias.zero_()
            for layer in (last(self.image_mean), last(self.image_spread)):
                layer.weight.zero_()
            if not (weight := last(self.scale).weight).is_meta:  # a blank model's tensors hold nothing
                weight.normal_(0, 1e-5)
        self.profile_mean = nn.Parameter(torch.zeros(most, n_genes))
        self.profile_log_std = nn.Parameter(torch.full((most, n_genes), math.log(_FIRST_SPREAD)))
        self.profile_log_prior = nn.Parameter(torch.zeros(n_genes))
        self.log_rate = nn.Parameter(torch.zeros(n_genes))
        self.logit = nn.Parameter(torch.zeros(n_genes))
        # Rows: levels of all covariates, one after the other. First axis: effect on the log rate, on the logit.
        n_levels = self.covariates.n_levels
        self.effect_mean = nn.Parameter(torch.zeros(2, n_levels, n_genes))
        self.effect_log_std = nn.Parameter(torch.full((2, n_levels, n_genes), math.log(_FIRST_SPREAD)))
        self.effect_log_prior = nn.Parameter(torch.zeros(2, n_genes))
        self.level_logits = nn.Parameter(torch.zeros(len(self.covariates.unknown), self.covariates.widest))
        self.register_buffer("active", torch.arange(most) < c.metagenes)
        self.register_buffer("forest", torch.full((2 * most,), -2, dtype=torch.long))
        self._optimizer: Any = None

    @property
    def support_um(self) -> float:
        """Width of a pixel: predictions are sums over these."""
        return float(self.record.tile.get("mpp", DEFAULT_TILE.mpp))

    # Training.

    def begin(self, batches: Sequence[Batch]) -> None:
        """Fit the gene baselines, and let image and scale start at the slides' means."""
        measured = [b for b in batches if b.y is not None]
        rows, there = zip(
            *(evenly_picked_counts(b, self.n_genes, _FIT_ROWS // len(measured)) for b in measured), strict=True
        )
        rate, logit = fit_baselines(torch.cat(rows), torch.cat(there))
        n = int(self.active.sum())
        grids: list[Any] = [b.pixel_grid for b in batches]
        size = float(np.median(np.concatenate([b.pixel_grid.sizes() for b in measured])))  # type: ignore[union-attr]
        colours = np.concatenate([evenly_picked_pixels(s) for s in grids], axis=1)
        mean, std = colours.mean(axis=1), colours.std(axis=1).clip(1e-2)
        with torch.no_grad():
            self.log_rate.copy_(rate)
            self.logit.copy_(logit)
            if n > 1:
                first, deviation = first_profiles(torch.cat(rows), torch.cat(there), n, logits=logit)
                self.profile_mean[:n] = first
                self.profile_log_std[:n] = deviation.log()
                self.log_rate.sub_(first.exp().mean(dim=0).log())  # at first every pixel has the same of each
            for layer, value in (
                (last(self.image_mean), np.arctanh(mean.clip(-0.999, 0.999))),
                (last(self.image_spread), np.log(np.expm1(std))),
                (last(self.scale), np.log(np.expm1(np.array([1 / max(size, 1.0)])))),
            ):
                layer.bias.copy_(torch.as_tensor(value))  # type: ignore[union-attr]

    def param_groups(self) -> list[dict[str, Any]]:
        """Return baselines at five times, posteriors of metagenes and effects at twice the rate of the networks."""
        lr = self.config.lr_global
        fast = [self.log_rate, self.logit]
        twice = [self.profile_mean, self.profile_log_std, self.effect_mean, self.effect_log_std, self.level_logits]
        special = {id(p) for p in (*fast, *twice)}
        rest = [p for p in self.parameters() if id(p) not in special]
        return [{"params": rest}, {"params": twice, "lr": 2 * lr}, {"params": fast, "lr": 5 * lr}]

    def optimizer(self) -> torch.optim.Optimizer:
        """Return Adam, which the reviews of the metagenes keep up with."""
        self._optimizer = torch.optim.Adam(self.param_groups(), lr=self.config.lr, amsgrad=self.config.amsgrad)
        return self._optimizer

    def forward(self, sample: PatchSample) -> Elbo:
        """Return the terms of the bound, with one draw of everything that is latent."""
        posterior = self.guide(sample.image)
        latents = [mean + std * torch.randn_like(mean) for mean, std in posterior]
        h = self.decoder(latents)
        with torch.autocast(h.device.type, enabled=False):
            h = h.float()
            found = terms.normal(sample.image.float(), *self.picture(h)).sum(dim=1)
            image = (found * sample.on_image).sum()
            kl = sum((terms.normal_kl(mean, std).sum() for mean, std in posterior), start=image.new_zeros(()))
            expression, effects, levels = self._expression(h, sample)
            n = sum(sample.n_patches.values())
            return Elbo(image, expression, kl, self._profile_kl().sum() * len(sample.slides) / n, effects, levels)

    def picture(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of every pixel's channels, (b, 3, h, w) each."""
        return torch.tanh(self.image_mean(h)), F.softplus(self.image_spread(h)) + 1e-8

    def mixture(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return (p, m) logits of the active metagenes and (p,) scales of all pixels of (b, c, h, w) features."""
        logits = F.conv2d(self.shared(h), self.metagene.weight[self.active], self.metagene.bias[self.active])
        return logits.permute(0, 2, 3, 1).flatten(0, 2), F.softplus(self.scale(h)).flatten()

    def draw_profiles(self, generator: torch.Generator | None = None) -> Tensor:
        """Return a draw of the (m, n_genes) log profiles of the active metagenes."""
        mean, std = self.profile_mean[self.active], self.profile_log_std[self.active].exp()
        if len(mean) == 1:  # a single one is the baseline over again
            mean, std = mean.detach(), std.detach()
        noise = torch.randn(mean.shape, generator=generator, device="cpu" if generator else mean.device)
        return mean + std * noise.to(mean.device)

    def _profile_kl(self) -> Tensor:
        """Return the (m,) divergences of the active metagenes."""
        mean, std = self.profile_mean[self.active], self.profile_log_std[self.active].exp()
        if len(mean) == 1:
            mean, std = mean.detach(), std.detach()
        return terms.normal_kl(mean, std, self.profile_log_prior.exp()).sum(dim=1)

    def _expression(self, h: Tensor, sample: PatchSample) -> tuple[Tensor, Tensor, Tensor]:
        """Return the log likelihood of the counts, and the divergences of effects and unknown levels."""
        profiles = self.draw_profiles()
        base, success, effects, levels = self._effects(sample)
        logits, scale = self.mixture(h)
        share = torch.softmax(logits[sample.pixel], dim=1) * scale[sample.pixel, None]
        sums = terms.region_sums(share, sample.region, len(sample.owner))
        total = terms.total_counts(sums, profiles, base[sample.owner])
        found = terms.negative_binomial(sample.counts, total, success[sample.owner])
        return (found * sample.measured[sample.owner]).sum(), effects, levels

    def _effects(self, sample: PatchSample) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return (b, n_genes) log rates and logits of the patches' slides with their effects, and the divergences."""
        plain = torch.stack([self.log_rate, self.logit])
        effects, levels = plain.new_zeros(()), plain.new_zeros(())
        covariates = self.covariates
        if not covariates.names:
            base, success = plain[:, None].expand(2, len(sample.slides), self.n_genes)
            return base, success, effects, levels
        std = self.effect_log_std.exp()
        kl = terms.normal_kl(self.effect_mean, std, self.effect_log_prior.exp()[:, None]).sum(dim=(0, 2))
        per_level = covariates.patches(sample.n_patches)
        rows = []
        for slide in sample.slides:
            drawn = self.effect_mean + std * torch.randn_like(std)
            row = plain
            for name in covariates.names:
                at, given = covariates.place(slide, name)
                first, last = covariates.span(name)
                if not given:
                    logits = self.level_logits[at, : last - first]
                    choice = _straight_through(logits)
                    row = row + torch.einsum("k,ekg->eg", choice, self.effect_mean[:, first:last])
                    levels = levels + terms.categorical_kl(logits) / sample.n_patches[slide]
                else:
                    row = row + drawn[:, at]
                    effects = effects + kl[at] / float(per_level[at])
            rows.append(row)
        base, success = torch.stack(rows, dim=1)
        return base, success, effects, levels

    def loss(self, output: Elbo, sample: PatchSample) -> Tensor:
        """Return minus the bound; a term that is not finite is named."""
        for name, value in vars(output).items():
            if not torch.isfinite(value):
                raise InputError(
                    f"The term {name!r} of the evidence lower bound became {float(value.detach())}, in a step of "
                    f"patches of slides {listing(dict.fromkeys(sample.slides))}; look for extreme counts or pixels "
                    "there, or lower `lr`."
                )
        return -output.total()

    # Metagenes.

    def review(self, epoch: int, samples: Callable[[], Iterable[PatchSample]]) -> bool:
        """Drop and add metagenes where it is due; the optimiser's state of those that stay is kept."""
        c, total = self.config, self.config.epochs or 0
        self._slow_down(epoch / total)
        if epoch == total:
            self._purge(samples)
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
                    posterior = self.guide(sample.image)
                    for _ in range(draws):
                        h = self.decoder([mean + std * torch.randn_like(mean) for mean, std in posterior])
                        total += self._without_each(h.float(), sample) / draws
                    total += kl * len(sample.slides) / sum(sample.n_patches.values())
        finally:
            self.train(was)
        return dict(zip(names, total.tolist(), strict=True))

    def _without_each(self, h: Tensor, sample: PatchSample) -> Tensor:
        logits, scale = self.mixture(h)
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
                    self.profile_log_std[new] = math.log(_FIRST_SPREAD)
                    nn.init.kaiming_uniform_(self.metagene.weight[new][None], a=math.sqrt(5))
                    self.metagene.bias[new] = 0

    # Prediction.

    def predict(
        self, batch: Batch, posterior: Posterior | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Return the (n, n_genes) posterior mean and standard deviation of the expected count of each target."""
        mean = np.empty((len(batch.targets), self.n_genes), dtype=np.float32)
        std = np.empty_like(mean)
        for rows, genes, values in draw_posterior(self, batch, posterior or Posterior()).expected():
            mean[rows, genes], std[rows, genes] = values.mean(axis=0), values.std(axis=0)
        return mean, std


def _straight_through(logits: Tensor) -> Tensor:
    """Return a one-hot draw whose gradient is that of the relaxed one."""
    return F.gumbel_softmax(logits, tau=0.1, hard=True)

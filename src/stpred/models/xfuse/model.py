"""XFuse: a generative model of histology and expression, with posterior uncertainty (Bergenstråhle et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
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
from stpred.models.parts.pixel_grid import DESCRIBED
from stpred.models.xfuse import likelihood as terms
from stpred.models.xfuse.config import DEFAULT_TILE, XFuseConfig
from stpred.models.xfuse.covariates import Covariates
from stpred.models.xfuse.features import FeatureTerm
from stpred.models.xfuse.initial import (
    evenly_picked_counts,
    evenly_picked_pixels,
    evenly_picked_rows,
    features_of_targets,
    first_profiles,
    fit_baselines,
)
from stpred.models.xfuse.likelihood import Elbo
from stpred.models.xfuse.networks import Decoder, Encoder, head, last
from stpred.models.xfuse.posterior import draw_posterior
from stpred.models.xfuse.reviews import FIRST_SPREAD, Reviewed
from stpred.models.xfuse.sample import PatchSample
from stpred.models.xfuse.start import Spots, fit_start, growth

_FIT_ROWS = 4000
"""Maximum number of locations in the first fit of the gene baselines."""

_MIN_COARSE_PX = 4
"""Smallest edge of a training patch at the coarsest level."""


class XFuse(Reviewed):
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

    With ``features`` (not published) an encoder's dense tokens, standardised on the slide's tissue and reduced to their
    principal components, are further channels of the guide's input, and metagenes and scale have a linear term of them,
    so that the scale follows the density of cells. The likelihoods are the same. The term starts at what explains
    the counts of all sections' spots, with a prior chosen on sections (of a single one: quarters) held out.

    Per-gene scores on held-out donors need as many more trainings as donors; without ``score_folds=True`` (or
    ``validation=`` slides) no gene is marked as trusted.

    References
    ----------
    Bergenstråhle et al. (2022), Super-resolved spatial transcriptomics by deep data fusion, Nature Biotechnology
    40:476.

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
    beside: FeatureTerm | None

    def __init__(self, config: BaseConfig, *, n_features: int, n_genes: int) -> None:
        super().__init__(config, n_features=n_features, n_genes=n_genes)
        c = self.config
        most = c.max_metagenes
        self.covariates = Covariates(c.covariates or {})
        width = n_features - DESCRIBED if c.features is not False else 0
        self.beside = FeatureTerm(width, c.feature_channels, most) if width > 0 else None
        extra = 0 if self.beside is None else self.beside.channels
        self.guide, self.decoder = Encoder(c.depth, c.width, extra), Decoder(c.depth, c.width)
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
        self.profile_log_std = nn.Parameter(torch.full((most, n_genes), math.log(FIRST_SPREAD)))
        self.profile_log_prior = nn.Parameter(torch.zeros(n_genes))
        self.log_rate = nn.Parameter(torch.zeros(n_genes))
        self.logit = nn.Parameter(torch.zeros(n_genes))
        # Rows: levels of all covariates, one after the other. First axis: effect on the log rate, on the logit.
        n_levels = self.covariates.n_levels
        self.effect_mean = nn.Parameter(torch.zeros(2, n_levels, n_genes))
        self.effect_log_std = nn.Parameter(torch.full((2, n_levels, n_genes), math.log(FIRST_SPREAD)))
        self.effect_log_prior = nn.Parameter(torch.zeros(2, n_genes))
        self.level_logits = nn.Parameter(torch.zeros(len(self.covariates.unknown), self.covariates.widest))
        self.register_buffer("active", torch.arange(most) < c.metagenes)
        self.register_buffer("forest", torch.full((2 * most,), -2, dtype=torch.long))
        self._optimizer: Any = None

    @property
    def n_ood_features(self) -> int:
        """Colours of the windows around a location."""
        return min(self.n_features, DESCRIBED)

    @property
    def support_um(self) -> float:
        """Width of a pixel: predictions are sums over these."""
        return float(self.record.tile.get("mpp", DEFAULT_TILE.mpp))

    # Training.

    def begin(self, batches: Sequence[Batch]) -> None:
        """Fit the gene baselines, let image and scale start at the slides' means, and features at what they explain."""
        self._check_patches(batches[0].pixel_grid)
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
            if self.beside is not None:
                self._begin_features(self.beside, measured)

    def _check_patches(self, grid: Any) -> None:
        """Refuse patches of which the coarsest level sees next to nothing."""
        c, step = self.config, 2 ** (self.config.depth - 1)
        if grid.patch_px // step < _MIN_COARSE_PX:
            raise InputError(
                f"Patches of {grid.patch_px} px are {grid.patch_px // step} px wide at the coarsest of {c.depth} "
                f"levels, which need {_MIN_COARSE_PX * step} px at least; give "
                f"tile=stpred.TileSpec(mpp={grid.mpp:g}, size_px={c.default_tile.size_px}), or a smaller `depth`."
            )

    def _begin_features(self, term: FeatureTerm, measured: Sequence[Batch]) -> None:
        """Let metagenes and scale start as functions of the features, fitted to the spots of all sections."""
        rows = [evenly_picked_rows(b, _FIT_ROWS // len(measured)) for b in measured]
        found = [features_of_targets(b.take(r)) for b, r in zip(measured, rows, strict=True)]
        term.fit_axes(np.concatenate([pixels for pixels, _, _ in found]))
        counts, there = zip(
            *(evenly_picked_counts(b, self.n_genes, len(r)) for b, r in zip(measured, rows, strict=True)), strict=True
        )
        n = [len(r) for r in rows]
        group = torch.repeat_interleave(torch.arange(len(n)), torch.tensor(n))
        where = np.concatenate(
            [b.coords_um[r] > np.median(b.coords_um, axis=0) for b, r in zip(measured, rows, strict=True)]
        )
        quarter = torch.from_numpy(where @ np.array([1, 2]))
        means = torch.from_numpy(np.concatenate([m for _, m, _ in found]))
        spots = Spots(
            (means - term.centre) @ term.axes,
            torch.from_numpy(np.concatenate([s for _, _, s in found])).float(),
            torch.cat(counts),
            torch.cat(there),
            group,
            group if len(n) > 1 else quarter,
            quarter,
        )
        active = self.active
        start, chosen = fit_start(spots, profiles=self.profile_mean[active], rate=self.log_rate, logit=self.logit)
        term.precision.fill_(chosen.precision)
        term.dispersion.fill_(chosen.dispersion)
        term.unseen.fill_(chosen.unseen)
        term.to_metagenes[active] = start.to_metagenes
        term.to_scale.copy_(start.to_scale)
        self.metagene.weight[active] *= 0.01  # so that the latents change little of it at first
        self.metagene.bias[active] = start.bias
        last(self.scale).bias.copy_(start.scale.expand(1))  # type: ignore[union-attr]
        self.profile_mean[active] = start.profiles
        self.logit.copy_(start.logit)
        self.log_rate.copy_(start.rate + self._begin_effects(start.effects, [b.slide for b in measured]))

    def _begin_effects(self, effects: Tensor, slides: Sequence[str]) -> Tensor:
        """Set the sections' effects where each slide is a level; return what remains of their mean."""
        mean = effects.mean(dim=0)
        if len(self.covariates.names) != 1 or self.covariates.unknown:
            return mean
        name = self.covariates.names[0]
        places = [self.covariates.place(slide, name)[0] for slide in slides]
        if len(set(places)) == len(places):
            self.effect_mean[0, places] = effects - mean
        return mean

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
        posterior = self.latents(sample.image, sample.features)
        latents = [mean + std * torch.randn_like(mean) for mean, std in posterior]
        h = self.decoder(latents)
        with torch.autocast(h.device.type, enabled=False):
            h = h.float()
            found = terms.normal(sample.image.float(), *self.picture(h)).sum(dim=1)
            image = (found * sample.on_image).sum()
            kl = sum((terms.normal_kl(mean, std).sum() for mean, std in posterior), start=image.new_zeros(()))
            expression, effects, levels = self._expression(h, sample)
            share = len(sample.slides) / sum(sample.n_patches.values())
            bound = Elbo(image, expression, kl, self._profile_kl().sum() * share, effects, levels)
            return bound if self.beside is None else replace(bound, features=self.beside.penalty(self.active) * share)

    def latents(self, image: Tensor, features: Tensor | None = None) -> list[tuple[Tensor, Tensor]]:
        """Return means and standard deviations of the latents, from the image and the features beside it."""
        return self.guide(image if features is None else torch.cat([image, features], dim=1))  # type: ignore[no-any-return]

    def on_grid(self, batch: Batch) -> Batch:
        """Return a batch with the features of its pixels reduced to what the networks take."""
        if self.beside is None or batch.pixel_grid is None:
            return batch
        return replace(batch, pixel_grid=self.beside.reduced(batch.pixel_grid))

    def picture(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of every pixel's channels, (b, 3, h, w) each."""
        return torch.tanh(self.image_mean(h)), F.softplus(self.image_spread(h)) + 1e-8

    def mixture(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return (p, m) logits of the active metagenes and (p,) scales of all pixels of (b, c, h, w) features."""
        logits = F.conv2d(self.shared(h), self.metagene.weight[self.active], self.metagene.bias[self.active])
        return logits.permute(0, 2, 3, 1).flatten(0, 2), F.softplus(self.scale(h)).flatten()

    def mixed(self, h: Tensor, features: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return what `mixture` does, with the term of the features."""
        logits, scale = self.mixture(h)
        if self.beside is None or features is None:
            return logits, scale
        more, term = self.beside(features, self.active)
        # The latents' part of the scale goes into the same factor: behind the rectifier it would be an exponential.
        typical: Any = last(self.scale).bias
        latent = torch.log(torch.expm1(scale.clamp(max=30.0)).clamp(min=1e-12)) - typical
        return logits + more, F.softplus(typical) * growth(latent + term)

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
        logits, scale = self.mixed(h, sample.features)
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

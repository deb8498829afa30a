"""Draws from the posterior of regions: one decode per sample, whatever the number of genes."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stpred._core.checks import InputError
from stpred._core.specs import Posterior
from stpred.models.batch import Batch
from stpred.models.parts.layers import evaluating
from stpred.models.parts.pixel_grid import Window
from stpred.models.xfuse.likelihood import EPS, region_sums

if TYPE_CHECKING:
    from stpred.models.xfuse.model import XFuse

CORE = 512
"""Pixels along each edge of what is decoded at a time, beside the margin; tiles lie on the slide's own lattice."""

MARGIN = 4
"""Width of the margin in pixels of the coarsest level: what is farther away hardly matters."""

_VALUES = 2**24
_NOISE = 64


@dataclass(frozen=True)
class Draws:
    """Draws from the posterior of some regions.

    Attributes
    ----------
    sums
        (s, n, m) scale times activation of the metagenes, summed over each region's pixels.
    sizes
        (n,) pixels in each region.
    profiles
        (s, m, n_genes) log profiles.
    base, logits
        (s, n_genes) log rates and logits with the effects of covariates.
    posterior
        Options of the draws.
    key
        Which regions these are, so that draws of counts of others are others.
    """

    sums: Tensor
    sizes: Tensor
    profiles: Tensor
    base: Tensor
    logits: Tensor
    posterior: Posterior
    key: int = 0

    def of_genes(self, columns: list[int]) -> Draws:
        """Return the same draws of some genes."""
        profiles, base, logits = self.profiles[:, :, columns], self.base[:, columns], self.logits[:, columns]
        return replace(self, profiles=profiles, base=base, logits=logits)

    def total_counts(self, rows: slice, genes: slice) -> Tensor:
        """Return (s, r, g) total counts of the regions' negative binomials."""
        rates = self.profiles[:, :, genes].exp() * self.base[:, None, genes].exp()
        total = EPS + torch.bmm(self.sums[:, rows], rates)
        sizes = self.sizes[rows, None]
        return torch.where(sizes > 0, total / sizes, 0.0) if self.posterior.normalize_size else total

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """Yield rows and genes of blocks whose draws fit into memory."""
        n, n_genes, s = self.sums.shape[1], self.base.shape[1], len(self.sums)
        height = max(1, min(n, _VALUES // (s * min(n_genes, 256))))
        width = max(1, min(n_genes, _VALUES // (s * height)))
        for row in range(0, n, height):
            for gene in range(0, n_genes, width):
                yield slice(row, min(row + height, n)), slice(gene, min(gene + width, n_genes))

    def expected(self) -> Iterator[tuple[slice, slice, NDArray[np.float32]]]:
        """Yield rows, genes and (s, r, g) expected counts."""
        for rows, genes in self.blocks():
            found = self.total_counts(rows, genes) * self.logits[:, None, genes].exp()
            yield rows, genes, found.cpu().numpy()

    def counts(self, *, repeats: int = 1) -> Iterator[tuple[slice, slice, NDArray[np.float32]]]:
        """Yield rows, genes and (s * repeats, r, g) draws of counts: what would be measured."""
        generator = np.random.default_rng([self.posterior.seed, self.key])
        for rows, genes in self.blocks():
            total = self.total_counts(rows, genes).cpu().numpy().astype(np.float64)
            odds = self.logits[:, None, genes].exp().cpu().numpy().astype(np.float64)
            drawn = [generator.poisson(generator.gamma(total) * odds) for _ in range(repeats)]
            yield rows, genes, np.concatenate(drawn).astype(np.float32)


def draw_posterior(model: XFuse, batch: Batch, posterior: Posterior) -> Draws:
    """Return draws from the posterior of a batch's targets."""
    if batch.pixel_grid is None:
        raise InputError(f"Slide {batch.slide!r} came without its pixels.")
    generators = [torch.Generator().manual_seed(_mixed(posterior.seed, s)) for s in range(posterior.n_samples)]
    with evaluating(model):
        profiles = torch.stack([model.draw_profiles(g) for g in generators])
        base, logits = _baselines(model, batch.slide, posterior, generators)
        sums, sizes = _sums(model, batch, posterior)
    key = zlib.crc32(np.ascontiguousarray(batch.pixel_grid.boxes()).tobytes())
    return Draws(sums, sizes, profiles, base, logits, posterior, key)


def tile_window(row: int, column: int, bounds: Window) -> Window:
    """Return the pixels of tile (row, column) of the lattice of tiles that are on the image."""
    y0, x0 = max(row * CORE, bounds.row), max(column * CORE, bounds.column)
    y1 = min((row + 1) * CORE, bounds.row + bounds.height)
    x1 = min((column + 1) * CORE, bounds.column + bounds.width)
    return Window(y0, x0, y1 - y0, x1 - x0)


def tiles_of(boxes: NDArray[np.int64], bounds: Window) -> list[Window]:
    """Return the tiles that (n, 4) boxes of first row and column, and last row and column, touch."""
    limit = np.array([bounds.row, bounds.column]), np.array([bounds.row + bounds.height, bounds.column + bounds.width])
    first = np.clip(boxes[:, :2], limit[0], limit[1] - 1) // CORE
    last = np.clip(boxes[:, 2:], limit[0], limit[1] - 1) // CORE
    found = set()
    for low, high in np.unique(np.hstack([first, last]), axis=0).reshape(-1, 2, 2).tolist():
        found |= {(r, c) for r in range(low[0], high[0] + 1) for c in range(low[1], high[1] + 1)}
    return [tile_window(r, c, bounds) for r, c in sorted(found)]


def decoded(model: XFuse, grid: Any, tile: Window, *, n_samples: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield, for each sample, (h * w, m) activations and (h * w,) scales of a tile's pixels."""
    step = 2 ** (model.config.depth - 1)
    around = _aligned(tile.wider(MARGIN * step), step)
    device = model.active.device
    image = torch.from_numpy(grid.image(around))[None].to(device)
    top, left = tile.row - around.row, tile.column - around.column
    features = None if model.beside is None else torch.from_numpy(grid.features(around))[None].to(device)
    posterior = model.latents(image, features)
    if features is not None:
        features = features[:, :, top : top + tile.height, left : left + tile.width]
    for s in range(n_samples):
        noise = _noise(around, [m.shape[1] for m, _ in posterior], seed=_mixed(seed, s))
        h = model.decoder([m + sd * e.to(device) for (m, sd), e in zip(posterior, noise, strict=True)])
        h = h[:, :, top : top + tile.height, left : left + tile.width].float()
        logits, scale = model.mixed(h, features)
        yield torch.softmax(logits, dim=1), scale


def _sums(model: XFuse, batch: Batch, posterior: Posterior) -> tuple[Tensor, Tensor]:
    """Return (s, n, m) sums over regions and (n,) pixels in them, tile by tile."""
    grid: Any = model.on_grid(batch).pixel_grid
    device = model.active.device
    n, s = len(batch.targets), posterior.n_samples
    # In double precision from tile to tile: a region may be as large as the slide.
    sums = torch.zeros(s, n, int(model.active.sum()), device=device, dtype=torch.float64)
    sizes = torch.zeros(n, device=device, dtype=torch.float64)
    step = 2 ** (model.config.depth - 1)
    for tile in tiles_of(grid.boxes(), grid.bounds):
        inside = grid.inside(tile)
        if len(inside.target) == 0:
            continue
        grid.fetch([_aligned(tile.wider(MARGIN * step), step)])
        rows, row_of = np.unique(inside.target, return_inverse=True)
        target, place, pixel = (torch.from_numpy(v).to(device) for v in (rows, row_of, inside.pixel))
        share = torch.from_numpy(inside.share).to(device)
        sizes[target] += region_sums(share[:, None], place, len(rows))[:, 0]
        for k, (activation, scale) in enumerate(decoded(model, grid, tile, n_samples=s, seed=posterior.seed)):
            amount = share if posterior.normalize_scale else share * scale[pixel]
            sums[k, target] += region_sums(activation[pixel] * amount[:, None], place, len(rows))
    return sums.float(), sizes.float()


def _baselines(
    model: XFuse, slide: str, posterior: Posterior, generators: list[torch.Generator]
) -> tuple[Tensor, Tensor]:
    """Return (s, n_genes) log rates and logits; of a missing level, draws go through all of them."""
    plain = torch.stack([model.log_rate, model.logit])
    out = plain.repeat(len(generators), 1, 1)
    covariates = model.covariates
    rows = covariates.of(slide, posterior.covariates)  # refuses unknown levels, normalised or not
    if posterior.normalize_covariates or not covariates.names:
        return out[:, 0], out[:, 1]
    drawn = []
    for generator in generators:
        noise = torch.randn(model.effect_mean.shape, generator=generator).to(plain.device)
        drawn.append(model.effect_mean + model.effect_log_std.exp() * noise)
    if model.beside is not None and any(len(levels) > 1 for levels, _ in rows.values()):
        out += torch.stack([-model.beside.unseen.log(), model.beside.unseen.log()])[:, None]  # of the same mean
    for k, name in enumerate(covariates.names):
        levels, unknown = rows[name]
        share = np.full(len(levels), 1 / len(levels))
        if unknown is not None:
            share = F.softmax(model.level_logits[unknown, : len(levels)], dim=0).cpu().numpy().astype(np.float64)
        order = np.random.default_rng([posterior.seed, k]).permutation(len(generators))
        at = np.searchsorted(np.cumsum(share) / share.sum(), (order + 0.5) / len(generators))
        for s, effect in enumerate(drawn):
            out[s] += effect[:, levels[int(at[s])]]
    return out[:, 0], out[:, 1]


def _noise(window: Window, channels: list[int], *, seed: int) -> list[Tensor]:
    """Return standard normal draws of every level for a window, by blocks: the same at a place in any window."""
    levels = len(channels)
    block = max(_NOISE, 2 ** (levels - 1))
    out = [torch.empty(1, c, -(-window.height // 2**i), -(-window.width // 2**i)) for i, c in enumerate(channels)]
    for r in range(window.row // block, (window.row + window.height - 1) // block + 1):
        for c in range(window.column // block, (window.column + window.width - 1) // block + 1):
            generator = torch.Generator().manual_seed(_mixed(seed, r, c))
            for i, n in enumerate(channels):
                edge = block // 2**i
                drawn = torch.randn(n, edge, edge, generator=generator)
                top, left = (r * block - window.row) // 2**i, (c * block - window.column) // 2**i
                y0, x0 = max(top, 0), max(left, 0)
                y1, x1 = min(top + edge, out[i].shape[2]), min(left + edge, out[i].shape[3])
                out[i][0, :, y0:y1, x0:x1] = drawn[:, y0 - top : y1 - top, x0 - left : x1 - left]
    return out


def _aligned(window: Window, step: int) -> Window:
    """Return a window that begins and ends on the lattice of the coarsest level."""
    row, column = window.row // step * step, window.column // step * step
    height = -(-(window.row + window.height - row) // step) * step
    width = -(-(window.column + window.width - column) // step) * step
    return Window(row, column, height, width)


def _mixed(*numbers: int) -> int:
    """Return a seed that depends on all of some whole numbers."""
    return int(np.random.SeedSequence([n & 0xFFFFFFFF for n in numbers]).generate_state(1, np.uint64)[0] >> 1)

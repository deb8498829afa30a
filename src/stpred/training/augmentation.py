"""Random views of tiles for self-supervised learning: whole batches at once, each tile with parameters of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stpred._image.stain import stain_matrix
from stpred.encoders.pretraining import Augmentation

MARGIN = 1.5
"""How much larger than the view a tile is read: above sqrt(2), so that no corner is empty however it is turned."""

_GREY = (0.299, 0.587, 0.114)
_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


@dataclass(frozen=True)
class Draw:
    """What was drawn for n views; ``take`` keeps some, as the processes that share a step do."""

    values: dict[str, Tensor]

    def take(self, rows: slice) -> Draw:
        """Return the draw of some of the views."""
        return Draw({k: v[rows] for k, v in self.values.items()})


def draw(n: int, recipe: Augmentation, *, generator: torch.Generator) -> Draw:
    """Draw the parameters of n views on the CPU, so that they are the same on any device."""

    def uniform(low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    def log_uniform(low: float, high: float) -> Tensor:
        return uniform(math.log(low), math.log(high)).exp()

    def factor(strength: float) -> Tensor:
        return uniform(max(0.0, 1 - strength), 1 + strength)

    area, ratio = uniform(*recipe.scale), log_uniform(*recipe.aspect)
    # A window of that area and ratio that fits into the tile: shares of its edge.
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    hole, shape = uniform(*recipe.erase_area), log_uniform(*recipe.erase_aspect)
    hole_width, hole_height = (hole * shape).sqrt().clamp(max=1), (hole / shape).sqrt().clamp(max=1)
    values = {
        "angle": uniform(0, 2 * math.pi) * recipe.rotate,
        "flip": (uniform() < 0.5 * recipe.flip).float(),
        "width": width,
        "height": height,
        "x": uniform(-1, 1) * (1 - width),  # centre of the window, -1 to 1 over the tile
        "y": uniform(-1, 1) * (1 - height),
        "jitter": (uniform() < recipe.jitter).float(),
        "order": torch.rand(n, 4, generator=generator).argsort(dim=1),
        "brightness": factor(recipe.brightness),
        "contrast": factor(recipe.contrast),
        "saturation": factor(recipe.saturation),
        "hue": uniform(-recipe.hue, recipe.hue) * 2 * math.pi,
        "stain": (1 + recipe.stain * torch.randn(n, 2, generator=generator)).clamp(min=0),
        "blur": (uniform() < recipe.blur).float() * uniform(*recipe.blur_px),
        "erase": (uniform() < recipe.erase).float(),
        "hole_width": hole_width,
        "hole_height": hole_height,
        "hole_x": uniform() * (1 - hole_width),  # its left upper corner, 0 to 1
        "hole_y": uniform() * (1 - hole_height),
    }
    return Draw(values)


def views(
    tiles: NDArray[np.uint8] | Tensor,
    drawn: Draw,
    *,
    size_px: int,
    stained: bool = False,
    mean: Tensor | None = None,
    std: Tensor | None = None,
) -> Tensor:
    """Return the (n, 3, size_px, size_px) views of tiles that were drawn, normalised if `mean` and `std` are given.

    Parameters
    ----------
    tiles
        (n, edge, edge, 3) uint8, with the margin that turning needs.
    drawn
        One set of parameters per tile.
    size_px
        Edge of the tile itself, the middle of `tiles`, and of the views.
    stained
        Whether the stains are changed.
    mean, std
        (3,) on the 0..1 scale.

    Notes
    -----
    Turn, crop and enlargement are one bilinear resampling. Brightness, contrast, saturation and hue (a rotation in the
    YIQ colour space) are affine maps of colour, so all four are one matrix per view, and colours are clipped once.
    """
    pixels = torch.as_tensor(tiles)
    device = pixels.device
    of = {k: v.to(device) for k, v in drawn.values.items()}
    out = F.grid_sample(
        pixels.permute(0, 3, 1, 2).float() / 255,
        _grid(of, edge=pixels.shape[1], size_px=size_px),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    if stained:
        out = _stain(out, of["stain"])
    out = _colour(out, of).clamp(0, 1)
    if len(rows := torch.nonzero(of["blur"])[:, 0]):
        out[rows] = _blur(out[rows], of["blur"][rows])
    out = out * _kept(of, size_px)
    if mean is not None and std is not None:
        out = (out - mean.to(device)[:, None, None]) / std.to(device)[:, None, None]
    return out


def plain(tiles: NDArray[np.uint8] | Tensor, *, size_px: int, mean: Tensor, std: Tensor) -> Tensor:
    """Return the middle of tiles, normalised, as it is when features are computed."""
    pixels = torch.as_tensor(tiles)
    first = (pixels.shape[1] - size_px) // 2
    middle = pixels[:, first : first + size_px, first : first + size_px].permute(0, 3, 1, 2).float() / 255
    return (middle - mean.to(pixels.device)[:, None, None]) / std.to(pixels.device)[:, None, None]


def _grid(of: Mapping[str, Tensor], *, edge: int, size_px: int) -> Tensor:
    """Return the (n, size_px, size_px, 2) places, -1 to 1 over the tile with its margin, that views are read from."""
    steps = (torch.arange(size_px, device=of["x"].device) + 0.5) / size_px * 2 - 1
    mirror = 1 - 2 * of["flip"]
    u = mirror[:, None] * (of["x"][:, None] + of["width"][:, None] * steps)
    v = of["y"][:, None] + of["height"][:, None] * steps
    cos, sin = of["angle"].cos()[:, None, None], of["angle"].sin()[:, None, None]
    x, y = u[:, None, :], v[:, :, None]
    return torch.stack([cos * x - sin * y, sin * x + cos * y], dim=-1) * (size_px / edge)


def _stain(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply the amounts of haematoxylin and eosin, and leave the residual."""
    rows = torch.as_tensor(stain_matrix(), dtype=torch.float32, device=images.device)
    scales = torch.cat([factors, torch.ones_like(factors[:, :1])], dim=1)
    change = torch.linalg.inv(rows) @ torch.diag_embed(scales) @ rows  # density as rows: od @ change
    density = -torch.log10(images.clamp(min=1 / 255))
    return 10 ** -torch.einsum("nchw,ncd->ndhw", density, change)


def _colour(images: Tensor, of: Mapping[str, Tensor]) -> Tensor:
    """Apply each view's four changes of colour, in its own order, as one affine map."""
    n, device = len(images), images.device
    grey, eye = torch.tensor(_GREY, device=device), torch.eye(3, device=device)
    yiq = torch.tensor(_YIQ, device=device)
    to_grey = grey.expand(3, 3)  # every channel becomes the grey value
    saturate = of["saturation"][:, None, None] * eye + (1 - of["saturation"])[:, None, None] * to_grey
    cos, sin, one, nil = of["hue"].cos(), of["hue"].sin(), torch.ones(n, device=device), torch.zeros(n, device=device)
    turn = torch.stack([one, nil, nil, nil, cos, -sin, nil, sin, cos], dim=1).reshape(n, 3, 3)
    linear = torch.stack(
        [
            of["brightness"][:, None, None] * eye,
            of["contrast"][:, None, None] * eye,
            saturate,
            torch.linalg.inv(yiq) @ turn @ yiq,
        ],
        dim=1,
    )
    matrix, shift = eye.expand(n, 3, 3), torch.zeros(n, 3, device=device)
    average = images.mean(dim=(2, 3))
    every = torch.arange(n, device=device)
    for k in range(4):
        kind = of["order"][:, k]
        step = linear[every, kind]
        # Contrast pulls towards the mean grey of the view as it is at that point.
        level = ((matrix @ average[:, :, None])[:, :, 0] + shift) @ grey
        pull = torch.where(kind == 1, (1 - of["contrast"]) * level, nil)
        matrix, shift = step @ matrix, (step @ shift[:, :, None])[:, :, 0] + pull[:, None]
    changed = torch.einsum("ncd,ndhw->nchw", matrix, images) + shift[:, :, None, None]
    return torch.where(of["jitter"][:, None, None, None] > 0, changed, images)


def jittered(image: NDArray[np.float32], amounts: NDArray[np.float64], order: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return a (3, h, w) image, -0.9 to 0.9, with its colours changed.

    Parameters
    ----------
    amounts
        (4,) of brightness, contrast and saturation (0: as it is) and hue (shares of a turn).
    order
        (4,) order in which they are applied.
    """
    brightness, contrast, saturation, hue = (torch.tensor([float(v)]) for v in amounts)
    of = {
        "brightness": 1 + brightness,
        "contrast": 1 + contrast,
        "saturation": 1 + saturation,
        "hue": hue * 2 * math.pi,
        "order": torch.from_numpy(order)[None],
        "jitter": torch.ones(1),
    }
    unit = torch.from_numpy(image)[None] / 1.8 + 0.5
    return np.asarray((_colour(unit, of)[0].clamp(0, 1) - 0.5) * 1.8)


def _blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur every image by a Gaussian of its own, with the border repeated."""
    n, channels, height, width = images.shape
    reach = min(max(1, math.ceil(3 * float(sigma.max()))), height - 1, width - 1)
    at = torch.arange(-reach, reach + 1, device=images.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (at / sigma.clamp(min=1e-3)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)
    stacked = images.reshape(1, n * channels, height, width)
    padded = F.pad(stacked, (reach, reach, 0, 0), mode="replicate")
    across = F.conv2d(padded, kernel[:, None, None, :], groups=n * channels)
    padded = F.pad(across, (0, 0, reach, reach), mode="replicate")
    return F.conv2d(padded, kernel[:, None, :, None], groups=n * channels).reshape(images.shape)


def _kept(of: Mapping[str, Tensor], size_px: int) -> Tensor:
    """Return (n, 1, size_px, size_px) with zeros in the erased rectangles."""
    at = (torch.arange(size_px, device=of["erase"].device) + 0.5) / size_px

    def within(start: str, length: str) -> Tensor:
        from_start = at - of[start][:, None]
        return (from_start >= 0) & (from_start < of[length][:, None])

    hole = within("hole_y", "hole_height")[:, :, None] & within("hole_x", "hole_width")[:, None, :]
    return 1 - (hole & (of["erase"] > 0)[:, None, None])[:, None].float()

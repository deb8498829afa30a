"""From an image to the posterior of its latents, and from latents to features of every pixel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.2
MOMENTUM = 0.05


def normed(channels: int) -> nn.Sequential:
    """Return batch normalisation and a leaky rectifier."""
    return nn.Sequential(nn.BatchNorm2d(channels, momentum=MOMENTUM), nn.LeakyReLU(SLOPE, inplace=True))


def conv(inputs: int, outputs: int, size: int, *, stride: int = 1) -> nn.Sequential:
    """Return a convolution that keeps the size (or divides it by `stride`, rounded up), normalised and rectified."""
    layer = nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2)
    return nn.Sequential(layer, normed(outputs))


def double(channels: int) -> nn.Sequential:
    """Return the block of a level: two 3 x 3 convolutions."""
    return nn.Sequential(conv(channels, channels, 3), conv(channels, channels, 3))


def head(inputs: int, outputs: int) -> nn.Sequential:
    """Return two layers on each pixel for itself; the last is ``[-1]``."""
    return nn.Sequential(nn.Conv2d(inputs, inputs, 1), normed(inputs), nn.Conv2d(inputs, outputs, 1))


def last(layers: nn.Sequential) -> nn.Conv2d:
    """Return the last layer of a head."""
    layer = layers[-1]
    assert isinstance(layer, nn.Conv2d)
    return layer


class Encoder(nn.Module):
    """Means and standard deviations of the latents of every level, from the image alone.

    Parameters
    ----------
    depth
        Number of levels; level i has ``width * 2**i`` channels at ``1 / 2**i`` of the resolution.
    width
        Channels of the finest level.
    extra
        Channels of features beside those of the image.
    """

    def __init__(self, depth: int, width: int, extra: int = 0) -> None:
        super().__init__()
        channels = [width * 2**i for i in range(depth)]
        self.first = conv(3 + extra, width, 3)
        self.levels = nn.ModuleList(double(c) for c in channels)
        self.down = nn.ModuleList(conv(c, 2 * c, 5, stride=2) for c in channels[:-1])
        self.mean = nn.ModuleList(head(c, c) for c in channels)
        self.spread = nn.ModuleList(head(c, c) for c in channels)

    def forward(self, image: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return (n, channels, h, w) means and standard deviations of each level, the finest first."""
        found = []
        y = self.first(image)
        for i, level in enumerate(self.levels):
            y = level(y)
            found.append((self.mean[i](y).float(), F.softplus(self.spread[i](y).float()) + 1e-8))
            if i < len(self.down):
                y = self.down[i](y)
        return found


class Decoder(nn.Module):
    """Features of every pixel from the latents of all levels; parameters as of `Encoder`."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        channels = [width * 2**i for i in range(depth)]
        self.levels = nn.ModuleList(double(c) for c in channels)
        self.up = nn.ModuleList(conv(2 * c, c, 5) for c in channels[:-1])
        self.join = nn.ModuleList(conv(2 * c, c, 3) for c in channels[:-1])

    def forward(self, latents: Sequence[Tensor]) -> Tensor:
        """Return (n, width, h, w) features from latents, the finest first."""
        y = self.levels[-1](latents[-1])
        for i in reversed(range(len(self.up))):
            height, width = latents[i].shape[2:]
            above = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)
            y = torch.cat([self.up[i](above)[:, :, :height, :width], latents[i].to(y.dtype)], dim=1)
            y = self.levels[i](self.join[i](y))
        return y

"""The nucleus network that comes with stpred: its layers, its weights, and what it says of a field."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stpred._core.checks import InputError

WEIGHTS = Path(__file__).parent / "_weights"
"""Holds ``nuclei.safetensors`` and its card, ``nuclei.json``; `scripts/train_nuclei.py` writes both."""

WIDTHS = (24, 48, 96, 128)
STRIDE_PX = 2 ** (len(WIDTHS) - 1)
"""Fields have to begin at multiples of it, so that pooling parts the same pixels."""
OFFSET_PX = 8.0
"""Unit of the planes that say where the middle of a nucleus is."""
PLANES = ("foreground", "depth", "to_x", "to_y")


class _Block(nn.Sequential):
    def __init__(self, n_in: int, n_out: int, *, norm: bool) -> None:
        layers: list[nn.Module] = []
        for n in (n_in, n_out):
            layers.append(nn.Conv2d(n, n_out, 3, padding=1, bias=not norm))
            if norm:
                layers.append(nn.BatchNorm2d(n_out))
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)


class NucleusNet(nn.Module):
    """U-Net (Ronneberger et al. 2015, MICCAI 18:234) over the densities of red, green and blue.

    (n, 3, h, w) floats at the working resolution, 0 as the slide's ground and 1 as its nuclei
    (:mod:`stpred.nuclei._levels`), edges multiples of `STRIDE_PX`, to (n, 4, h, w): logit of being in a nucleus, depth
    within it (0 at its border, 1 at its middle), and where its middle is from here, x and y, in units of `OFFSET_PX`.

    Parameters
    ----------
    widths
        Channels at each resolution.
    norm
        With batch normalisation, for training; without it for weights that hold it already (:func:`folded`).
    """

    def __init__(self, widths: tuple[int, ...] = WIDTHS, *, norm: bool = False) -> None:
        super().__init__()
        pairs = zip((3, *widths), widths, strict=False)
        self.down = nn.ModuleList(_Block(n_in, n, norm=norm) for n_in, n in pairs)
        pairs = zip(widths[1:], widths, strict=False)
        self.up = nn.ModuleList(_Block(below + n, n, norm=norm) for below, n in pairs)
        self.head = nn.Conv2d(widths[0], len(PLANES), 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the planes."""
        skipped = []
        for k, block in enumerate(self.down):
            x = block(x if k == 0 else nn.functional.max_pool2d(x, 2))
            skipped.append(x)
        for block, beside in zip(reversed(self.up), reversed(skipped[:-1]), strict=True):
            x = nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = block(torch.cat([x, beside], dim=1))
        return self.head(x)


def folded(net: NucleusNet) -> dict[str, Tensor]:
    """Return the state of a network without normalisation that computes what `net` does in evaluation."""
    state: dict[str, Tensor] = {}
    for group in ("down", "up"):
        for b, block in enumerate(getattr(net, group)):
            for k in range(0, len(block), 3):
                conv, norm = block[k], block[k + 1]
                scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
                name = f"{group}.{b}.{k // 3 * 2}"
                state[f"{name}.weight"] = (conv.weight * scale[:, None, None, None]).detach().contiguous()
                state[f"{name}.bias"] = (norm.bias - norm.running_mean * scale).detach()
    return state | {f"head.{k}": v.detach().contiguous() for k, v in net.head.state_dict().items()}


@cache
def load(device: str, folder: Path = WEIGHTS) -> NucleusNet:
    """Load the network, once per process and device.

    Raises
    ------
    InputError
        If the weights are not those of their card.
    """
    from safetensors.torch import load_file

    path = folder / "nuclei.safetensors"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != (wanted := json.loads((folder / "nuclei.json").read_text())["sha256"]):
        raise InputError(
            f"The weights of the nucleus network at '{path}' are not those of their card (sha256 {digest[:12]}, not "
            f"{wanted[:12]}); install stpred anew, or use method='builtin'."
        )
    with torch.device("meta"):  # no random start, which would move the global random state
        net = NucleusNet()
    net.load_state_dict({k: v.float() for k, v in load_file(path).items()}, assign=True)
    return net.eval().requires_grad_(requires_grad=False).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def planes(net: NucleusNet, densities: NDArray[np.float32], *, device: str = "cpu") -> NDArray[np.float32]:
    """Return the planes of a (h, w, 3) normalised field, (4, h, w), the share of foreground instead of its logit."""
    height, width = densities.shape[:2]
    room = ((0, -height % STRIDE_PX), (0, -width % STRIDE_PX), (0, 0))
    batch = torch.from_numpy(np.pad(densities, room, mode="edge")).to(device).permute(2, 0, 1)[None].float()
    with torch.inference_mode():
        out = net(batch.contiguous(memory_format=torch.channels_last))[0, :, :height, :width]
        out[0].sigmoid_()
        return out.float().cpu().contiguous().numpy()

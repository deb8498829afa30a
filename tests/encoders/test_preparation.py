"""What a network gets as input, against the plain formula."""

from __future__ import annotations

import numpy as np
import pytest

import stpred as st
from stpred import encoders, settings
from stpred.encoders.base import EncoderCard
from stpred.encoders.modules import TorchEncoder

torch = pytest.importorskip("torch")

NORMALISATIONS = [
    None,
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ((0.70, 0.54, 0.69), (0.19, 0.21, 0.17)),
]


class Mean(torch.nn.Module):
    """The mean of each channel, and a parameter to be on a device."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        self.shape, self.strides = x.shape, x.stride()
        return x.mean(dim=(2, 3)) * self.scale


class Flat(torch.nn.Module):
    """Takes one order of the pixels only, and gives a view of its input."""

    def forward(self, x):
        return x.view(len(x), -1)


def by_formula(tiles: np.ndarray, normalisation: tuple | None, input_px: int) -> torch.Tensor:
    batch = torch.from_numpy(np.array(tiles)).permute(0, 3, 1, 2).float() / 255
    if input_px != batch.shape[-1]:
        batch = torch.nn.functional.interpolate(
            batch, size=(input_px, input_px), mode="bicubic", align_corners=False, antialias=True
        ).clamp(0, 1)
    if normalisation is None:
        return batch
    mean, std = (torch.tensor(v)[:, None, None] for v in normalisation)
    return (batch - mean) / std


def encoder(size_px: int, normalisation: tuple | None, input_px: int | None = None) -> TorchEncoder:
    mean, std = (None, None) if normalisation is None else normalisation
    card = EncoderCard(
        "mean",
        st.TileSpec(0.5, size_px),
        width=0,
        source="test",
        revision="1",
        licence="unknown",
        mean=mean,
        std=std,
    )
    return TorchEncoder(Mean(), card=card, input_px=input_px)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize(("size_px", "input_px"), [(1, 1), (7, 7), (32, 32), (96, 96), (32, 24), (32, 64), (33, 32)])
def test_input_is_that_of_the_formula(size_px: int, input_px: int, normalisation: tuple | None) -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (3, size_px, size_px, 3), dtype=np.uint8)
    tiles[0], tiles[1, :, ::2] = 0, 255
    expected = by_formula(tiles, normalisation, input_px)
    made = encoder(size_px, normalisation, input_px)
    for given in (tiles, tiles[::-1][::-1], np.asfortranarray(tiles)):
        found = made._prepare(given)
        assert found.shape == expected.shape == (3, 3, input_px, input_px)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
        assert found.is_contiguous(memory_format=torch.channels_last)
    tiles.flags.writeable = False
    torch.testing.assert_close(made._prepare(tiles), expected, atol=1e-6, rtol=1e-6)
    np.testing.assert_allclose(made.encode(tiles), expected.mean(dim=(2, 3)), atol=1e-5)


@pytest.mark.parametrize("input_px", [16, 12])
def test_features_follow_pixels(input_px: int) -> None:
    tiles = np.random.default_rng(1).integers(60, 200, (2, 16, 16, 3), dtype=np.uint8)
    made = encoder(16, NORMALISATIONS[2], input_px)
    x = torch.from_numpy(tiles).float().requires_grad_()
    features = made.differentiable(x)
    np.testing.assert_allclose(features.detach(), made.encode(tiles), atol=1e-5)
    features.sum().backward()
    each = 1 / (255 * np.array(NORMALISATIONS[2][1]) * 16 * 16)
    np.testing.assert_allclose(x.grad.sum(dim=(0, 1, 2)), 2 * 16 * 16 * each, rtol=1e-3)


def test_a_module_of_one_order_only_gets_it() -> None:
    tiles = np.random.default_rng(2).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    made = encoders.get(Flat(), tile=st.TileSpec(0.5, 8), device="cpu")
    expected = tiles.transpose(0, 3, 1, 2).reshape(40, -1) / np.float32(255)
    with settings.override(batch_size=16):
        np.testing.assert_allclose(made.encode(tiles), expected, atol=1e-6)  # no batch overwrites another


def test_batches_go_in_parts_that_fit_the_caches() -> None:
    made = encoder(224, None)
    threads = torch.get_num_threads()
    tiles = np.zeros((8 * threads + 1, 224, 224, 3), dtype=np.uint8)
    seen = []
    made._module.register_forward_hook(lambda module, given, out: seen.append(len(given[0])))
    with settings.override(batch_size=4096):
        made.encode(tiles)
        assert seen == [8 * threads, 1]
    seen.clear()
    with settings.override(batch_size=5):
        made.encode(tiles[:8])
        assert seen == [5, 3]

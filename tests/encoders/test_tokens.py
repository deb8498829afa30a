"""Tokens of tiles: what morphology measures on its patches, and any encoder as one that has tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.draw import disk

import stpred as st
from stpred import InputError
from stpred._image.nuclei import segment
from stpred._image.stain import optical_density, stain_matrix, unmix
from stpred.encoders import EncoderCard, Morphology
from stpred.encoders._built_in.morphology_dense import dense_names
from stpred.encoders.tokens import SubTiles, token_edge_um, with_tokens

PX, N, STEP = 224, 14, 16
NAMES = dense_names()


def tissue(*, seed: int = 0, n: int = 45) -> NDArray[np.uint8]:
    """Round nuclei of several sizes on an uneven eosin ground, with a white corner."""
    rng = np.random.default_rng(seed)
    haematoxylin = np.full((PX, PX), 0.03)
    for y, x, radius in zip(*rng.uniform(8, PX - 8, (2, n)), rng.uniform(3, 8, n), strict=True):
        haematoxylin[disk((y, x), radius, shape=(PX, PX))] = rng.uniform(0.4, 0.8)
    eosin = 0.2 + 0.1 * gaussian_filter(rng.normal(size=(PX, PX)), 6) * 20
    stains = np.stack([gaussian_filter(haematoxylin, 0.7), eosin.clip(0.02)])
    stains[:, : PX // 4, : PX // 4] = 0
    light = 245 * 10 ** -np.einsum("syx,sc->yxc", stains, stain_matrix()[:2]) + rng.normal(0, 1.5, (PX, PX, 3))
    return np.clip(light, 0, 255).astype(np.uint8)


def dense(*tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    return Morphology(threads=1).encode_dense(np.stack(tiles))


def at(name: str) -> int:
    return NAMES.index(name)


# Morphology's patches.


def test_names_and_numbers_agree() -> None:
    encoder = Morphology()
    assert encoder.card.dense == (N, N, len(NAMES))
    assert len(set(NAMES)) == len(NAMES)
    assert all(n.startswith(("own_", "within_16um_")) for n in NAMES)
    out = encoder.encode_dense(np.stack([tissue(), tissue(seed=1)]))
    assert out.shape == (2, N, N, len(NAMES))
    assert out.dtype == np.float32
    assert encoder.encode_dense(np.empty((0, PX, PX, 3), np.uint8)).shape == (0, N, N, len(NAMES))
    fine = with_tokens(st.encoders.get("morphology", tile=st.TileSpec(0.25, 448)))
    assert fine.card.dense == (N, N, len(NAMES))


@pytest.mark.parametrize("patches", [1, 7, 14, 28])
def test_any_pixels_give_finite_numbers(patches: int) -> None:
    rng = np.random.default_rng(0)
    tiles = [np.full((PX, PX, 3), v, np.uint8) for v in (0, 128, 240, 255)]
    tiles.append(np.broadcast_to(np.array([200, 30, 90], np.uint8), (PX, PX, 3)).copy())
    tiles.append(rng.integers(0, 256, (PX, PX, 3), dtype=np.uint8))
    tiles.append(np.where(rng.random((PX, PX, 1)) < 0.5, np.uint8(0), np.full((PX, PX, 3), 255, np.uint8)))
    assert np.isfinite(Morphology(patches=patches).encode_dense(np.stack(tiles))).all()


def test_patches_are_finite_or_refused_as_too_small() -> None:
    """The coarsest plane that is measured has pixels of up to 2 um."""
    for size_px, mpp, patches in ((PX, 0.5, 56), (PX, 0.5, 112), (64, 0.5, 20), (64, 0.5, 32), (448, 0.25, 112)):
        try:
            encoder = Morphology(tile=st.TileSpec(mpp, size_px), patches=patches)
        except InputError:
            assert size_px * mpp / patches < 2
            continue
        tile = np.random.default_rng(0).integers(0, 256, (1, size_px, size_px, 3), dtype=np.uint8)
        assert np.isfinite(encoder.encode_dense(tile)).all(), (size_px, patches)


def test_own_numbers_are_those_of_the_block_of_pixels() -> None:
    tile = tissue()
    out = dense(tile)[0]
    channels = optical_density(tile)
    stains = unmix(channels)
    labels, _ = segment(stains[0], mpp=0.5)
    for i in range(N):
        for j in range(N):
            block = slice(i * STEP, (i + 1) * STEP), slice(j * STEP, (j + 1) * STEP)
            want = {
                "own_haematoxylin_mean": stains[0][block].mean(),
                "own_eosin_mean": stains[1][block].mean(),
                "own_residual_mean": stains[2][block].mean(),
                "own_red_mean": channels[0][block].mean(),
                "own_blue_mean": channels[2][block].mean(),
                "own_eosin_std": stains[1][block].std(),
                "own_nuclear_share": (labels[block] > 0).mean(),
            }
            for name, value in want.items():
                assert out[i, j, at(name)] == pytest.approx(value, rel=1e-3, abs=1e-4), (name, i, j)


def test_a_nucleus_counts_once_over_all_patches() -> None:
    tile = tissue(seed=3)
    out = dense(tile)[0].astype(float)
    labels, _ = segment(unmix(optical_density(tile))[0], mpp=0.5)
    number = len(np.unique(labels[labels > 0]))
    assert number > 15
    um2 = (STEP * 0.5) ** 2
    assert (out[..., at("own_nuclei_number")] ** 2).sum() * um2 / 1e4 == pytest.approx(number, rel=1e-3)
    kinds = [n for n in NAMES if n.startswith(("own_nuclei_round_", "own_nuclei_long_"))]
    assert len(kinds) == 8
    by_kind = (out[..., [at(k) for k in kinds]] ** 2).sum() * um2 / 1e4
    assert by_kind == pytest.approx(number, rel=1e-3)
    shares = out[..., [at(f"own_{p}_share") for p in ("empty", "nuclear", "perinuclear", "stromal")]].sum(axis=-1)
    np.testing.assert_allclose(shares, 1, atol=1e-5)


def test_windows_are_gaussian_means_over_patches_that_end_at_the_border() -> None:
    out = dense(tissue())[0].astype(float)
    for kind in ("red_mean", "haematoxylin_mean", "nuclear_share"):
        own = out[..., at(f"own_{kind}")]
        for i, j in ((0, 0), (0, 7), (6, 5), (13, 12)):
            y, x = np.mgrid[:N, :N] * 8.0  # um
            weights = np.exp(-0.5 * ((y - 8 * i) ** 2 + (x - 8 * j) ** 2) / 8.0**2)
            want = (weights * own).sum() / weights.sum()
            assert out[i, j, at(f"within_16um_{kind}")] == pytest.approx(want, rel=1e-4, abs=1e-5)


def test_own_densities_do_not_know_of_far_pixels() -> None:
    """Thresholds of nuclei are of the whole tile; densities, spreads and band strengths are not."""
    tile = tissue()
    other = tile.copy()
    other[PX // 2 :] = tissue(seed=9)[PX // 2 :]
    other[-40:] = 0
    a, b = dense(tile, other)
    near = slice(0, 5)  # rows whose windows of 3 sigma of 2 um end well above the change
    free = [n for n in NAMES if n.startswith("own_") and n.endswith(("_mean", "_std"))]
    free = [n for n in free if not any(p in n for p in ("nuclei", "nuclear", "stromal"))]
    assert len(free) == 8
    free += [f"own_{s}_band_{b}um_strength" for s in ("haematoxylin", "eosin") for b in ("0.5", "1", "2")]
    free += [f"own_{s}_edges_1um_{m}" for s in ("haematoxylin", "eosin") for m in ("energy", "coherence")]
    columns = [at(n) for n in free]
    np.testing.assert_array_equal(a[near][..., columns], b[near][..., columns])
    assert not np.allclose(a[8:, :, columns], b[8:, :, columns])


@pytest.mark.parametrize("axis", [0, 1])
def test_a_flipped_tile_has_the_flipped_grid(axis: int) -> None:
    tile = tissue(seed=2)
    plain, turned = dense(tile, np.flip(tile, axis))
    turned = np.flip(turned, axis)
    exact = [n for n in NAMES if n.split("_", 1)[1].endswith(("red_mean", "green_mean", "blue_mean", "residual_mean"))]
    exact += [
        f"{w}_{s}_{m}" for w in ("own", "within_16um") for s in ("haematoxylin", "eosin") for m in ("mean", "std")
    ]
    exact += [f"own_{s}_band_{b}um_strength" for s in ("haematoxylin", "eosin") for b in ("0.5", "1")]
    columns = [at(n) for n in exact]
    np.testing.assert_allclose(plain[..., columns], turned[..., columns], rtol=1e-3, atol=1e-4)
    # Halved planes begin at another pixel, so all else agrees about as well as it can.
    spread = plain.std(axis=(0, 1)) + 1e-6
    apart = np.abs(plain - turned).mean(axis=(0, 1)) / spread
    assert np.median(apart) < 0.02
    steady = np.array(["coherence" not in n for n in NAMES])  # a few pixels of flat ground have no direction
    assert (apart[steady] < 0.3).all(), np.array(NAMES)[steady][apart[steady] >= 0.3]


def test_a_quarter_turn_turns_the_grid() -> None:
    tile = tissue(seed=4)
    plain, turned = dense(tile, np.ascontiguousarray(np.rot90(tile)))
    columns = [at(f"own_{n}") for n in ("red_mean", "haematoxylin_mean", "eosin_std", "haematoxylin_band_1um_strength")]
    np.testing.assert_allclose(np.rot90(plain)[..., columns], turned[..., columns], rtol=1e-3, atol=1e-4)


def test_batches_and_threads_change_no_bit() -> None:
    tiles = np.stack([tissue(seed=s) for s in range(4)])
    one = Morphology(threads=1).encode_dense(tiles)
    np.testing.assert_array_equal(Morphology(threads=4).encode_dense(tiles), one)
    np.testing.assert_array_equal(Morphology(threads=1).encode_dense(tiles[[2]]), one[[2]])
    np.testing.assert_array_equal(Morphology(threads=2).encode_dense(tiles[::-1]), one[::-1])


# Any encoder with tokens.


class Colour:
    """Mean colour of a tile; counts its calls."""

    def __init__(self, *, size_px: int = 64, mpp: float = 0.5, n: int | None = None) -> None:
        self.card = EncoderCard("colour", st.TileSpec(mpp, size_px), 3, dense=None if n is None else (n, n, 3))
        if n is not None:
            self.encode_dense = lambda tiles: tiles.reshape(len(tiles), n, size_px // n, n, -1, 3).mean(axis=(2, 4))
        self.seen: list[tuple[int, ...]] = []
        self.device: str | None = "cpu"

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert tiles.dtype == np.uint8
        assert tiles.shape[1:] == (self.card.tile.size_px, self.card.tile.size_px, 3)
        self.seen.append(tiles.shape)
        return tiles.mean(axis=(1, 2)).astype(np.float32)

    def to(self, device: str | None) -> Colour:
        self.device = device
        return self


@pytest.mark.parametrize(("token_um", "n"), [(8.0, 14), (16.0, 7), (112.0, 1), (None, 14)])
def test_morphology_takes_any_patch_that_divides_its_tile(token_um: float | None, n: int) -> None:
    encoder = st.encoders.get("morphology")
    found = with_tokens(encoder, token_um)
    assert found.card.dense[:2] == (n, n)
    assert found.card.tile == encoder.card.tile
    assert token_edge_um(encoder, token_um) == pytest.approx(112 / n)
    assert found.encode_dense(tissue()[None]).shape == (1, n, n, len(NAMES))
    # A patch of the whole tile knows what the tile's own numbers know.
    if n == 1:
        value = found.encode_dense(tissue()[None])[0, 0, 0, at("own_red_mean")]
        tile = dict(zip(encoder.card.feature_names or (), encoder.encode(tissue()[None])[0], strict=True))
        assert value == pytest.approx(tile["red_mean"], rel=1e-4)


def test_odd_patches_are_refused_in_words() -> None:
    morphology = st.encoders.get("morphology")
    with pytest.raises(InputError, match=r"`token_um` must divide the tile of 112 um .*'morphology', got 9; such as"):
        with_tokens(morphology, 9.0)
    with pytest.raises(InputError, match=r"`token_um` must divide the tile of 112 um .*got 300; such as 112"):
        with_tokens(morphology, 300.0)
    with pytest.raises(InputError, match=r"`token_um` is 0.25, smaller than a pixel of the tile \(0.5 um\)"):
        with_tokens(morphology, 0.25)
    with pytest.raises(InputError, match="token_um"):
        with_tokens(morphology, -8.0)
    with pytest.raises(InputError, match="cannot cut a tile of 224 px at 0.5 um per pixel into 224 x 224 patches"):
        with_tokens(morphology, 0.5)
    # What the message proposes is taken.
    assert with_tokens(morphology, 112 / 12).card.dense[0] == 12


def test_tokens_of_a_network_are_what_they_are() -> None:
    own = Colour(n=4)  # 32 um in four
    assert with_tokens(own) is own
    assert with_tokens(own, 8.0) is own
    with pytest.raises(InputError, match=r"The tokens of the encoder 'colour' are 8 um wide, `token_um` is 16; leave"):
        with_tokens(own, 16.0)


def test_sub_tiles_are_the_right_crops() -> None:
    """On a picture whose colours are its columns and rows, the mean colour of a crop is its centre."""
    encoder = Colour()
    y, x = np.mgrid[:64, :64]
    tile = np.stack([x * 3, y * 3, np.full_like(x, 7)], axis=-1).astype(np.uint8)
    found = with_tokens(encoder)
    assert isinstance(found, SubTiles)
    assert found.card.dense == (4, 4, 3)
    assert found.card.name == "colour"
    tokens = found.encode_dense(np.stack([tile, tile[::-1, ::-1]]))
    assert tokens.shape == (2, 4, 4, 3)
    centres = np.array([0, 8, 24, 32]) + 15.5  # windows of twice the edge, moved inwards at the border
    np.testing.assert_allclose(tokens[0, ..., 0], np.broadcast_to(3 * centres, (4, 4)), atol=0.7)
    np.testing.assert_allclose(tokens[0, ..., 1], np.broadcast_to(3 * centres[:, None], (4, 4)), atol=0.7)
    np.testing.assert_allclose(tokens[..., 2], 7, atol=1e-4)
    np.testing.assert_allclose(tokens[1], tokens[0, ::-1, ::-1], atol=1e-4)
    np.testing.assert_array_equal(found.encode(tile[None]), encoder.encode(tile[None]))
    assert found.to("cpu") is found
    assert with_tokens(found) is found  # once is enough


@pytest.mark.parametrize(("token_um", "n"), [(32.0, 1), (16.0, 2), (6.4, 5), (2.0, 16)])
def test_sub_tiles_of_any_size(token_um: float, n: int) -> None:
    encoder = Colour()
    tile = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    tokens = with_tokens(encoder, token_um).encode_dense(tile[None])
    assert tokens.shape == (1, n, n, 3)
    assert np.isfinite(tokens).all()
    if n <= 2:  # the window is the tile itself
        np.testing.assert_allclose(tokens, np.broadcast_to(tile.mean(axis=(0, 1)), tokens.shape), rtol=1e-5)
    with pytest.raises(InputError, match="smaller than a pixel"):
        with_tokens(encoder, 0.25)


def test_modules_and_intensity_get_sub_tiles() -> None:
    class Mean(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(dim=(2, 3))

    tile = st.TileSpec(0.5, 32)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    module = with_tokens(st.encoders.get(Mean(), tile=tile, device="cpu"))
    colour = with_tokens(st.encoders.get("intensity", tile=tile))
    assert isinstance(module, SubTiles)
    assert isinstance(colour, SubTiles)
    assert module.card.dense == colour.card.dense == (2, 2, 3)
    np.testing.assert_allclose(module.encode_dense(images) * 255, colour.encode_dense(images), atol=1e-3)
    together, alone = colour.encode_dense(images), colour.encode_dense(images[[1]])
    np.testing.assert_array_equal(together[[1]], alone)


def test_pixels_describe_nothing() -> None:
    with pytest.raises(InputError, match="'pixels' gives pixels; a model of tokens needs one that describes them"):
        with_tokens(st.encoders.get("pixels", tile=st.TileSpec(0.5, 64)))

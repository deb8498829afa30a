from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from skimage.draw import ellipse

from stpred import InputError, TileSpec
from stpred._image.stain import stain_matrix
from stpred.encoders._built_in.morphology import Morphology
from stpred.encoders.base import Encoder

UM = 112.0


def tissue(
    *,
    n: int = 40,
    area_um2: float = 40.0,
    ratio: float = 1.2,
    angle: float | None = None,
    hollow: bool = False,
    clumps: float = 0.0,
    fibres: float = 0.0,
    white: float = 0.0,
    strength: float = 1.0,
    mpp: float = 0.5,
    seed: int = 0,
) -> np.ndarray:
    """Draw nuclei on a jittered lattice (fewer than the lattice holds: left out at random) over an eosin ground."""
    rng = np.random.default_rng(seed)
    px = round(UM / mpp)
    haematoxylin, eosin = np.full((px, px), 0.02), np.full((px, px), 0.25)
    if fibres:
        y, _ = np.mgrid[:px, :px]
        eosin += fibres * np.sin(2 * np.pi * y * mpp / 6)
    minor = np.sqrt(area_um2 / np.pi / ratio) / mpp
    side = int(np.ceil(np.sqrt(n)))
    places = rng.permutation(side**2)[:n]
    texture = gaussian_filter(rng.normal(size=(px, px)), 0.6 / mpp) * 4
    for place in places:
        y, x = (np.array(divmod(place, side)) + 0.5 + rng.uniform(-0.15, 0.15, 2)) * px / side
        turn = rng.uniform(0, np.pi) if angle is None else angle
        body = ellipse(y, x, minor, minor * ratio, shape=(px, px), rotation=turn)
        haematoxylin[body] = 0.6 + clumps * texture[body]
        if hollow:
            haematoxylin[ellipse(y, x, minor * 0.6, minor * ratio * 0.6, shape=(px, px), rotation=turn)] = 0.3
    if white:
        haematoxylin[: round(white * px)] = 0
        eosin[: round(white * px)] = 0
    stains = np.stack([gaussian_filter(s, 0.35 / mpp) for s in (haematoxylin, eosin)]) * strength
    density = np.einsum("syx,sc->yxc", stains, stain_matrix()[:2])
    light = 245 * 10**-density + rng.normal(0, 1.5, (px, px, 3))
    return np.clip(light, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def encoder() -> Morphology:
    return Morphology()


def features(encoder: Morphology, *tiles: np.ndarray) -> list[dict[str, float]]:
    names = encoder.card.feature_names
    assert names is not None
    return [dict(zip(names, row, strict=True)) for row in encoder.encode(np.stack(tiles))]


def test_it_is_an_encoder_with_a_full_card(encoder: Morphology) -> None:
    assert isinstance(encoder, Encoder)
    card = encoder.card
    assert (card.name, card.tile, card.revision) == ("morphology", TileSpec(0.5, 224), "1")
    assert card.feature_names is not None
    assert len(set(card.feature_names)) == card.width == len(card.feature_names) <= 250
    assert all(n == n.lower() and n.replace("_", "").replace(".", "").isalnum() for n in card.feature_names)
    assert encoder.to("cpu") is encoder.to(None) is encoder


def test_rows_depend_on_their_tile_alone(encoder: Morphology) -> None:
    tiles = np.stack([tissue(seed=s, n=10 + 8 * s) for s in range(5)])
    whole = encoder.encode(tiles)
    assert whole.dtype == np.float32
    assert whole.shape == (5, encoder.card.width)
    np.testing.assert_array_equal(encoder.encode(tiles), whole)
    np.testing.assert_array_equal(encoder.encode(tiles[::-1])[::-1], whole)
    np.testing.assert_array_equal(np.concatenate([encoder.encode(tiles[i : i + 1]) for i in range(5)]), whole)
    np.testing.assert_array_equal(Morphology(threads=1).encode(tiles), whole)
    np.testing.assert_array_equal(Morphology(threads=3).encode(tiles), whole)
    assert encoder.encode(tiles[:0]).shape == (0, encoder.card.width)


def test_degenerate_tiles_give_finite_numbers(encoder: Morphology) -> None:
    rng = np.random.default_rng(0)
    shape = (224, 224, 3)
    halves = np.zeros(shape, np.uint8)
    halves[:112] = 255
    one_nucleus = np.full(shape, 240, np.uint8)
    one_nucleus[100:112, 100:112] = (60, 40, 120)
    tiles = [np.full(shape, v, np.uint8) for v in (0, 1, 120, 254, 255)]
    tiles += [np.full(shape, c, np.uint8) for c in ((255, 0, 0), (0, 0, 255), (120, 60, 160))]
    found = encoder.encode(np.stack([*tiles, halves, one_nucleus, rng.integers(0, 256, shape, np.uint8)]))
    assert np.isfinite(found).all()
    assert np.abs(found).max() < 100


def test_a_white_tile_is_empty_and_has_no_nuclei(encoder: Morphology) -> None:
    (white,) = features(encoder, np.full((224, 224, 3), 250, np.uint8))
    assert white["empty_share"] == 1
    assert (
        white["nuclei_number"] == white["nuclei_share"] == white["nuclei_long_tiny"] == white["nuclei_alignment"] == 0
    )
    assert np.exp(white["nuclei_log_area_mean"]) == pytest.approx(40)
    assert white["nuclei_log_area_std"] == 0


def test_numbers_stay_in_range_when_there_is_hardly_anything_to_measure(encoder: Morphology) -> None:
    usual = encoder.encode(np.stack([tissue(n=20 + 10 * s, seed=s, white=0.1 * s) for s in range(5)]))
    sparse = encoder.encode(np.stack([tissue(n=n, seed=n, white=0.7) for n in range(3)]))
    scale = usual.std(axis=0) + 0.05 * np.abs(usual).max(axis=0) + 0.05
    assert np.abs((sparse - usual.mean(axis=0)) / scale).max() < 15


KNOWN = {
    "more nuclei": ({"n": 20}, {"n": 80}, ["nuclei_number", "nuclei_share", "nuclear_share", "haematoxylin_mean"]),
    "more nuclei, nearer": ({"n": 80}, {"n": 20}, ["nuclei_log_distance_mean"]),
    "larger": ({"area_um2": 30}, {"area_um2": 70}, ["nuclei_log_area_mean", "centre_nuclei_log_area_mean"]),
    "larger, by class": ({"area_um2": 30}, {"area_um2": 70}, ["nuclei_round_medium"]),
    "longer": (
        {"ratio": 1.2},
        {"ratio": 3.5},
        ["nuclei_elongation_mean", "nuclei_long_small", "centre_nuclei_elongation_mean"],
    ),
    "parallel": (
        {"ratio": 3},
        {"ratio": 3, "angle": 0.4},
        ["nuclei_alignment", "haematoxylin_edges_1um_coherence_tile"],
    ),
    "hollow": ({"area_um2": 80}, {"area_um2": 80, "hollow": True}, ["nuclei_hollowness_mean", "nuclei_contrast_mean"]),
    "clumped": ({"area_um2": 80}, {"area_um2": 80, "clumps": 0.15}, ["chromatin_texture_1um", "nuclei_contrast_mean"]),
    "fibres": ({}, {"fibres": 0.1}, ["eosin_edges_1um_coherence_tile", "eosin_band_2um_strength", "eosin_std"]),
    "lumen": ({}, {"white": 0.4}, ["empty_share", "empty_patchiness"]),
    "darker": ({}, {"strength": 1.3}, ["haematoxylin_mean", "eosin_mean", "red_mean", "nuclei_threshold"]),
}


@pytest.mark.parametrize("case", KNOWN)
def test_known_changes_move_the_named_features(encoder: Morphology, case: str) -> None:
    less, more, names = KNOWN[case]
    low = features(encoder, *(tissue(seed=s, **less) for s in range(3)))
    high = features(encoder, *(tissue(seed=s, **more) for s in range(3)))
    for name in names:
        gap = min(h[name] for h in high) - max(f[name] for f in low)
        assert gap > 0, f"{name}: {[f[name] for f in low]} against {[f[name] for f in high]}"


def test_measures_are_right_and_in_micrometres() -> None:
    for mpp in (0.35, 0.5, 0.8):
        encoder = Morphology(tile=TileSpec(mpp, round(UM / mpp)))
        (found,) = features(encoder, tissue(n=36, area_um2=60, ratio=2.0, mpp=mpp))
        assert found["nuclei_number"] ** 2 * (UM / 100) ** 2 == pytest.approx(36, abs=4)
        assert np.exp(found["nuclei_log_area_mean"]) == pytest.approx(60, rel=0.15)
        assert np.exp(found["nuclei_elongation_mean"]) == pytest.approx(2.0, rel=0.15)
        assert np.exp(found["nuclei_log_distance_mean"]) == pytest.approx(UM / 6, rel=0.2)
        assert found["nuclei_fill_mean"] == pytest.approx(1, abs=0.05)


def test_turned_and_mirrored_tiles_give_nearly_the_same(encoder: Morphology) -> None:
    tiles = [tissue(n=10 + 5 * s, ratio=2, angle=0.3, clumps=0.1, fibres=0.05, seed=s) for s in range(8)]
    plain = encoder.encode(np.stack(tiles))
    scale = plain.std(axis=0) + 1e-2
    for turn in (lambda t: np.rot90(t), lambda t: t[::-1], lambda t: t[:, ::-1]):
        turned = encoder.encode(np.stack([turn(t) for t in tiles]))
        assert np.median(np.abs(turned - plain) / scale) < 0.05


def test_the_centre_is_described_by_itself(encoder: Morphology) -> None:
    full, empty = tissue(n=64), np.full((224, 224, 3), 240, np.uint8)
    ring, middle = full.copy(), empty.copy()
    ring[56:168, 56:168] = 240
    middle[56:168, 56:168] = full[56:168, 56:168]
    only_ring, only_middle = features(encoder, ring, middle)
    assert only_ring["centre_nuclei_number"] == 0 < only_ring["nuclei_number"]
    assert only_middle["centre_nuclei_number"] > 0
    assert only_middle["centre_haematoxylin_mean"] > only_ring["centre_haematoxylin_mean"] + 0.05


@pytest.mark.parametrize(
    ("tiles", "said"),
    [
        (np.zeros((2, 224, 224, 3), np.float32), r"uint8 tiles of shape \(n, 224, 224, 3\), got float32"),
        (np.zeros((224, 224, 3), np.uint8), r"got uint8 of shape \(224, 224, 3\)"),
        (np.zeros((1, 256, 256, 3), np.uint8), r"got uint8 of shape \(1, 256, 256, 3\)"),
        (np.zeros((1, 224, 224, 4), np.uint8), r"got uint8 of shape \(1, 224, 224, 4\)"),
        ([[1]], "got list"),
    ],
)
def test_wrong_tiles_are_refused(encoder: Morphology, tiles: np.ndarray, said: str) -> None:
    with pytest.raises(InputError, match=said):
        encoder.encode(tiles)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(InputError, match="at least 32 px"):
        Morphology(tile=TileSpec(0.5, 16))
    with pytest.raises(InputError, match="`threads` must be at least 1"):
        Morphology(threads=0)


@pytest.mark.parametrize("tile", [TileSpec(0.5, 32), TileSpec(2.0, 64), TileSpec(0.25, 101)])
def test_other_tiles_work(tile: TileSpec) -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (2, tile.size_px, tile.size_px, 3), np.uint8)
    found = Morphology(tile=tile).encode(tiles)
    assert np.isfinite(found).all()

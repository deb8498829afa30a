"""Stained tissue, glass, fill and pen on thumbnails."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter, rotate

import stpred as st
from stpred import InputError
from stpred._core.fill import find_fill
from stpred._image.tissue import survey, tissue_mask

MPP = 8.0
COLOURS = {"black": (0, 0, 0), "grey": (128, 128, 128), "pale grey": (200, 200, 200), "white": (255, 255, 255)}
COLOURS |= {"blue": (0, 0, 255), "green": (0, 170, 60)}


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """A synthetic slide at 0.5 um per pixel, glass around its tissue; (1600, 1600, 3)."""
    image = st.datasets.toy(size_um=(800, 800), n_genes=5, seed=3)["he"]["scale0"].image.data
    return np.moveaxis(np.asarray(image), 0, -1)


@pytest.fixture(scope="module")
def plain(pixels: np.ndarray) -> np.ndarray:
    return tissue_mask(small(pixels), mpp=MPP)


def small(pixels: np.ndarray) -> np.ndarray:
    size = (round(pixels.shape[1] / 16), round(pixels.shape[0] / 16))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def jpeg(pixels: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg", quality=75)
    return np.asarray(Image.open(file))


def stained(pixels: np.ndarray, share: float, glass: float = 255.0) -> np.ndarray:
    """Return the pixels with this share of their optical density."""
    return np.rint(glass * (np.maximum(pixels, 1) / glass) ** share).clip(0, 255).astype(np.uint8)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def old_mask(thumbnail: np.ndarray) -> np.ndarray:
    """Otsu's threshold within bounds, on all pixels: what the outline of a slide without fill was."""
    from skimage.filters import threshold_otsu
    from skimage.morphology import remove_small_holes, remove_small_objects

    gray = thumbnail.astype(np.float32).mean(axis=2)
    glass = max(float(np.quantile(gray, 0.995)), 215.0)
    density = gaussian_filter(-np.log10((gray + 1) / (glass + 1)), 10.0 / MPP)
    mask = density > float(np.clip(threshold_otsu(density), 0.04, 0.12))
    return remove_small_holes(remove_small_objects(mask, max_size=311), max_size=311)


@pytest.mark.parametrize("seed", range(3))
def test_a_plain_slide_is_outlined_to_the_pixel_as_by_bounded_otsu(seed: int) -> None:
    image = st.datasets.toy(size_um=(600, 600), n_genes=5, seed=seed)["he"]["scale0"].image.data
    thumbnail = small(np.moveaxis(np.asarray(image), 0, -1))
    found = survey(thumbnail, mpp=MPP)
    assert np.array_equal(found.tissue, old_mask(thumbnail))
    assert not found.excluded.any()
    assert found.doubts == ()


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("share", [0.02, 0.05, 0.15])
@pytest.mark.parametrize("lossy", [False, True])
def test_a_strip_of_fill_is_found_and_moves_nothing(
    pixels: np.ndarray, plain: np.ndarray, colour: str, share: float, lossy: bool
) -> None:
    width = round(pixels.shape[1] * share)
    frame = np.full((len(pixels), pixels.shape[1] + width, 3), COLOURS[colour], np.uint8)
    frame[:, :-width] = pixels
    found = survey(small(jpeg(frame) if lossy else frame), mpp=MPP)
    assert overlap(found.tissue[:, : plain.shape[1]], plain) > 0.97
    assert not found.tissue[:, plain.shape[1] + 1 :].any()
    # All whole pixels of the strip, but for white, which may as well be glass.
    assert colour == "white" or found.fill[:, plain.shape[1] + 1 :].all()
    assert not found.fill[:, : plain.shape[1] - 1].any()
    assert found.doubts == ()


@pytest.mark.parametrize("turns", range(4))
def test_orientation_does_not_matter(pixels: np.ndarray, turns: int) -> None:
    frame = np.pad(pixels, ((0, 0), (0, 160), (0, 0)))
    straight = survey(small(frame), mpp=MPP)
    for flipped in (False, True):
        turned = np.rot90(small(frame), turns)
        turned = turned[:, ::-1] if flipped else turned
        found = survey(np.ascontiguousarray(turned), mpp=MPP)
        back = np.rot90(found.tissue[:, ::-1] if flipped else found.tissue, -turns)
        assert overlap(back, straight.tissue) > 0.995


@pytest.mark.parametrize("value", [0, 128, 255])
@pytest.mark.parametrize("lossy", [False, True])
def test_corners_of_a_rotation(pixels: np.ndarray, plain: np.ndarray, value: int, lossy: bool) -> None:
    planes = [rotate(pixels[..., c], 10, order=1, cval=value) for c in range(3)]
    turned = np.stack(planes, axis=-1).astype(np.uint8)
    found = survey(small(jpeg(turned) if lossy else turned), mpp=MPP)
    assert found.tissue.sum() == pytest.approx(plain.sum(), rel=0.05)
    assert value == 255 or found.fill.mean() > 0.15


@pytest.mark.parametrize("ink", [(40, 60, 170), (30, 130, 70), (25, 25, 30), (190, 35, 45)])
def test_pen_on_glass_is_no_tissue_and_pen_on_tissue_moves_no_cut(
    pixels: np.ndarray, plain: np.ndarray, ink: tuple[int, int, int]
) -> None:
    rows, columns = np.mgrid[: len(pixels), : len(pixels)]
    marked = pixels.copy()
    marked[np.abs(columns - 50) < 45] = ink
    found = survey(small(marked), mpp=MPP)
    assert not found.tissue[:, :5].any()
    assert overlap(found.tissue, plain) > 0.95
    marked = pixels.copy()
    line = np.abs(columns - 0.3 * rows - 500) < 40
    marked[line] = np.rint(marked[line] / 255.0 * ink).astype(np.uint8)
    away = ~small(np.repeat(line[..., None], 3, axis=2).astype(np.uint8) * 255).any(axis=2)
    assert overlap(survey(small(marked), mpp=MPP).tissue & away, plain & away) > 0.95


@pytest.mark.parametrize("share", [0.35, 0.5])
@pytest.mark.parametrize("glass", [255.0, 243.0])
def test_pale_stain_is_kept_and_said(pixels: np.ndarray, plain: np.ndarray, share: float, glass: float) -> None:
    found = survey(small(stained(pixels, share, glass)), mpp=MPP)
    assert overlap(found.tissue, plain) > 0.97
    assert any("pale" in doubt for doubt in found.doubts) == (share < 0.5)


@pytest.mark.parametrize("dense", [0.3, 0.5, 0.7])
def test_no_cut_between_two_densities_of_tissue(pixels: np.ndarray, plain: np.ndarray, dense: float) -> None:
    two = stained(pixels, 0.35)
    column = round(dense * pixels.shape[1])
    two[:, :column] = pixels[:, :column]
    assert overlap(survey(small(two), mpp=MPP).tissue, plain) > 0.93


@pytest.mark.parametrize("share", [1.0, 0.35])
def test_tissue_without_glass_is_whole_and_said(pixels: np.ndarray, share: float) -> None:
    inner = stained(pixels[500:1100, 500:1100], share)
    found = survey(small(inner), mpp=MPP)
    assert found.tissue.mean() > 0.95
    assert not found.fill.any()
    assert any("glass" in doubt for doubt in found.doubts)


def test_dark_tissue_at_the_border_is_no_fill() -> None:
    rng = np.random.default_rng(0)
    dark = gaussian_filter(rng.normal(0, 60, (120, 150)), 1.5)[..., None] + (45, 25, 60)
    thumbnail = np.full((120, 200, 3), 242, np.uint8)
    thumbnail[:, :150] = dark.clip(0, 255)
    found = survey(thumbnail, mpp=MPP)
    assert not found.excluded.any()
    assert found.tissue[:, :149].mean() > 0.97


def test_glass_is_no_fill_and_an_unscanned_field_is() -> None:
    rng = np.random.default_rng(0)
    thumbnail = np.full((200, 200, 3), 240, np.uint8)
    thumbnail[60:160, 50:180] = rng.normal((170, 90, 150), 15, (100, 130, 3)).clip(0, 255)
    assert not find_fill(thumbnail).mask.any()
    thumbnail[80:110, 80:120] = 12
    truth = np.zeros((200, 200), bool)
    truth[80:110, 80:120] = True
    assert overlap(find_fill(thumbnail).mask, truth) > 0.99
    assert not find_fill(np.zeros((200, 200, 3), np.uint8)[:5]).mask.any()


@pytest.mark.parametrize("value", [255, 240, 0])
def test_an_image_of_one_value_has_no_tissue(value: int) -> None:
    assert not tissue_mask(np.full((100, 100, 3), value, np.uint8), mpp=MPP).any()


def test_method_and_threshold_are_the_users(pixels: np.ndarray, plain: np.ndarray) -> None:
    thumbnail = small(pixels)
    for method in ("otsu", "saturation"):
        assert overlap(survey(thumbnail, mpp=MPP, method=method).tissue, plain) > 0.9
    areas = [survey(thumbnail, mpp=MPP, threshold=t).tissue.sum() for t in (0.02, 0.06, 0.13)]
    assert areas == sorted(areas, reverse=True)
    assert areas[0] > 1.2 * areas[2]
    slide = st.datasets.toy(size_um=(400, 400), n_genes=5)
    st.pp.tissue(slide, threshold=0.05)
    for wrong in (
        {"method": "hsv"},
        {"threshold": 0},
        {"threshold": "0.1"},
        {"method": "saturation", "threshold": 1.5},
    ):
        with pytest.raises(InputError, match="`method` must be one of .*'saturation'|`threshold` must be"):
            st.pp.tissue(slide, **wrong)

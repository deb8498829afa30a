from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.stats import skew
from skimage.feature import local_binary_pattern, structure_tensor_eigenvalues

from stpred._image import texture as tx


@pytest.fixture
def plane() -> np.ndarray:
    noise = np.random.default_rng(0).normal(0.4, 0.3, (57, 64))
    return (gaussian_filter(noise, 1) * 3).astype(np.float32)


def stripes(angle: float, *, size: int = 96, period: float = 9.0) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    return np.sin(2 * np.pi * (np.cos(angle) * x + np.sin(angle) * y) / period).astype(np.float32)


@pytest.mark.parametrize("sigma", [0.4, 1.0, 2.7, 6.0])
def test_gaussian_equals_scipy(plane: np.ndarray, sigma: float) -> None:
    radius = max(1, int(np.ceil(3 * sigma)))
    expected = gaussian_filter(plane.astype(np.float64), sigma, mode="reflect", radius=radius)
    np.testing.assert_allclose(tx.gaussian(plane, sigma), expected, atol=2e-6)


def test_gaussian_wider_than_the_image_stays_finite_and_keeps_the_mean() -> None:
    plane = np.random.default_rng(0).random((6, 5)).astype(np.float32)
    blurred = tx.gaussian(plane, 40.0)
    assert np.ptp(blurred) < 0.2
    assert abs(blurred.mean() - plane.mean()) < 0.05
    assert tx.gaussian(plane, 0) is plane


def test_scale_space_follows_direct_blurs(plane: np.ndarray) -> None:
    image = np.tile(plane, (2, 2))
    sigmas = [1.0, 2.0, 4.0, 8.0]
    space = tx.scale_space(image, sigmas)
    assert space.steps == [1, 1, 2, 4, 4]  # halved from two pixels on, not below 32 px
    for sigma, fine, step in zip(sigmas, space.fine[1:], space.steps[1:], strict=True):
        direct = gaussian_filter(image.astype(np.float64), sigma, mode="reflect")[::step, ::step]
        inside = (slice(6, -6), slice(6, -6))
        assert np.abs(fine - direct)[inside].max() < 0.06 * np.ptp(image) / sigma
    assert all(f.shape == c.shape for f, c in zip(space.fine, space.coarse, strict=False))


@pytest.mark.filterwarnings("ignore:Applying `local_binary_pattern`")
@pytest.mark.parametrize("radius", [1.0, 2.0, 3.0, 4.5])
def test_lbp_equals_skimage(plane: np.ndarray, radius: float) -> None:
    margin = int(np.ceil(radius))
    codes = local_binary_pattern(plane.astype(np.float64), 8, radius, "uniform")[margin:-margin, margin:-margin]
    expected = np.bincount(codes.astype(int).ravel(), minlength=10) / codes.size
    np.testing.assert_allclose(tx.lbp_histogram(plane, radius), expected, atol=1e-3)
    strided = codes[::2]
    expected = np.bincount(strided.astype(int).ravel(), minlength=10) / strided.size
    np.testing.assert_allclose(tx.lbp_histogram(plane, radius, stride_px=2), expected, atol=2e-3)


def test_lbp_ignores_brightness_and_contrast_and_turns(plane: np.ndarray) -> None:
    square = np.ascontiguousarray(plane[:50, :50])
    expected = tx.lbp_histogram(square, 1.0)
    np.testing.assert_allclose(tx.lbp_histogram(square * np.float32(2) + np.float32(1), 1.0), expected, atol=2e-3)
    np.testing.assert_allclose(tx.lbp_histogram(np.ascontiguousarray(np.rot90(square)), 1.0), expected, atol=2e-3)


def test_lbp_of_flat_and_of_tiny_images() -> None:
    flat = np.full((20, 20), 0.3, np.float32) + np.random.default_rng(0).normal(0, 1e-4, (20, 20)).astype(np.float32)
    assert tx.lbp_histogram(flat, 1.0, tolerance=0.01)[8] == 1
    assert tx.lbp_histogram(flat, 1.0)[8] < 0.5
    assert tx.lbp_histogram(flat[:4, :4].copy(), 3.0).sum() == 0


def test_block_tensor_equals_a_loop(plane: np.ndarray) -> None:
    gy, gx = np.gradient(plane.astype(np.float64))
    h, w = plane.shape
    expected = np.zeros((4, 4, 3))
    for by in range(4):
        for bx in range(4):
            rows = slice(max(by * h // 4, 1), min((by + 1) * h // 4, h - 1))
            cols = slice(max(bx * w // 4, 1), min((bx + 1) * w // 4, w - 1))
            a, b = gx[rows, cols], gy[rows, cols]
            expected[by, bx] = (a * a).sum(), (b * b).sum(), (a * b).sum()
    np.testing.assert_allclose(tx.block_tensor(plane, 4), expected / ((h - 2) * (w - 2)), rtol=1e-4)
    np.testing.assert_allclose(tx.pool(tx.block_tensor(plane, 4), 4), tx.block_tensor(plane, 1), rtol=1e-6)


def test_coherence_equals_the_eigenvalues(plane: np.ndarray) -> None:
    whole = tx.block_tensor(plane, 1)
    a = structure_tensor_eigenvalues([whole[..., 1], whole[..., 2], whole[..., 0]])
    expected = (a[0] - a[1]) / (a[0] + a[1])
    assert tx.coherence(whole, floor=0) == pytest.approx(float(expected.squeeze()))


@pytest.mark.parametrize("angle", [0.0, 0.4, np.pi / 2, 2.5])
def test_parallel_lines_are_coherent_at_any_angle_and_crossed_ones_are_not(angle: float) -> None:
    one = tx.block_tensor(stripes(angle), 4)
    assert tx.coherence(one, floor=1e-6) > 0.97
    both = stripes(angle)
    both[:, 48:] = stripes(angle + np.pi / 2)[:, 48:]
    crossed = tx.block_tensor(both, 4)
    assert tx.coherence(crossed, floor=1e-6) > 0.9
    assert tx.coherence(tx.pool(crossed, 4), floor=1e-6) < 0.2


def test_distribution_equals_numpy(plane: np.ndarray) -> None:
    levels = np.array([0.05, 0.25, 0.5, 0.75, 0.95])
    found = tx.distribution(plane, -3.0, 4.0, levels)
    assert found[:2] == pytest.approx([plane.mean(dtype=np.float64), plane.std(dtype=np.float64)], rel=1e-5)
    np.testing.assert_allclose(found[2:], np.quantile(plane, levels), atol=2 * 7 / 1024)


def test_distribution_of_a_constant_beyond_the_bins() -> None:
    found = tx.distribution(np.full((5, 5), 9.0, np.float32), 0.0, 1.0, np.array([0.5]))
    assert found[0] == 9
    assert found[1] == 0
    assert 0.99 < found[2] <= 1.0


def test_difference_moments_and_correlation_equal_numpy(plane: np.ndarray) -> None:
    coarse, other = tx.gaussian(plane, 2.0), np.ascontiguousarray(plane[::-1])
    other_coarse = tx.gaussian(other, 2.0)
    a, b = (plane - coarse).astype(np.float64), (other - other_coarse).astype(np.float64)
    rms, skewness = tx.difference_moments(plane, coarse)
    assert rms == pytest.approx(np.sqrt((a**2).mean()), rel=1e-5)
    assert skewness == pytest.approx(skew(a.ravel()), abs=1e-4)
    expected = (a * b).mean() / np.sqrt((a**2).mean() * (b**2).mean())
    assert tx.difference_correlation(plane, coarse, other, other_coarse, 0.0) == pytest.approx(expected, rel=1e-4)
    assert tx.difference_correlation(plane, coarse, plane, coarse, 0.0) == pytest.approx(1)
    assert tx.difference_moments(plane, plane) == (0, 0)
    assert tx.difference_correlation(plane, plane, plane, plane, 1e-3) == 0


def test_class_means_equal_a_loop(plane: np.ndarray) -> None:
    classes = np.random.default_rng(0).integers(0, 3, plane.shape).astype(np.uint8)
    found = tx.class_means(plane, classes, 4)
    for k in range(3):
        values = plane[classes == k].astype(np.float64)
        np.testing.assert_allclose(found[k], [values.size / plane.size, values.mean(), values.std()], rtol=1e-5)
    np.testing.assert_array_equal(found[3], 0)

from __future__ import annotations

import numpy as np
import pytest
from skimage.color import hed_from_rgb, rgb_from_hed, separate_stains

from stpred import InputError
from stpred._image.stain import DAB, EOSIN, HAEMATOXYLIN, optical_density, separate, stain_matrix, unmix


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 9, 7, 3), np.uint8)


def test_matrix_is_the_published_one() -> None:
    matrix = stain_matrix(HAEMATOXYLIN, EOSIN, DAB)
    np.testing.assert_allclose(matrix, rgb_from_hed / np.linalg.norm(rgb_from_hed, axis=1, keepdims=True))


def test_residual_is_perpendicular_and_unit() -> None:
    matrix = stain_matrix()
    np.testing.assert_allclose(matrix[2] @ matrix[:2].T, 0, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(matrix, axis=1), 1)


def test_unmixing_equals_skimage(rgb: np.ndarray) -> None:
    rgb = np.maximum(rgb, 1)
    ours = separate(rgb, matrix=np.linalg.inv(hed_from_rgb))
    # skimage counts in log 1e-6 and clips what is negative
    theirs = separate_stains(rgb, hed_from_rgb) * 6
    np.testing.assert_allclose(np.maximum(ours, 0), np.moveaxis(theirs, -1, 0), atol=1e-4)


def test_density_equals_the_formula(rgb: np.ndarray) -> None:
    expected = -np.log10(np.maximum(rgb, 1) / 240)
    np.testing.assert_allclose(np.moveaxis(optical_density(rgb, background=240), 0, -1), expected, atol=1e-6)


def test_known_amounts_come_back() -> None:
    amounts = np.random.default_rng(1).uniform(0, 0.6, (2, 50)).astype(np.float32)
    density = np.einsum("sp,sc->cp", amounts, stain_matrix()[:2])
    found = unmix(density.astype(np.float32))
    np.testing.assert_allclose(found[:2], amounts, atol=1e-5)
    np.testing.assert_allclose(found[2], 0, atol=1e-5)


def test_planes_are_contiguous_and_batches_equal_single_images(rgb: np.ndarray) -> None:
    whole = separate(rgb)
    assert whole.shape == (3, 2, 9, 7)
    assert whole[0, 0].flags.c_contiguous
    np.testing.assert_array_equal(whole[:, 1], separate(rgb[1]))


def test_strided_input_gives_the_same(rgb: np.ndarray) -> None:
    np.testing.assert_array_equal(separate(rgb[:, ::2]), separate(np.ascontiguousarray(rgb[:, ::2])))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: optical_density(np.zeros((4, 4, 3), np.float32)), "uint8 array, got float32"),
        (lambda: optical_density([[1, 2, 3]]), "uint8 array, got list"),  # type: ignore[arg-type]
        (lambda: separate(np.zeros((4, 4, 4), np.uint8)), r"3 colour channels .* shape \(4, 4, 4\)"),
        (lambda: optical_density(np.zeros((1, 3), np.uint8), background=0), "`background` must be a positive"),
        (lambda: stain_matrix(HAEMATOXYLIN), "two or three vectors"),
        (lambda: stain_matrix(EOSIN, EOSIN), "not independent"),
    ],
)
def test_refusals(call, said: str) -> None:
    with pytest.raises(InputError, match=said):
        call()

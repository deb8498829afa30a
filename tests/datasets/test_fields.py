from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from stpred.datasets._simulated.fields import Canvas, Fibres, wrapped_noise


def test_wrapped_noise_is_a_gaussian_blur_of_white_noise() -> None:
    got = wrapped_noise(np.random.default_rng(0), (64, 80), (2.0, 5.0))
    white = np.random.default_rng(0).standard_normal((64, 80), dtype=np.float32)
    want = gaussian_filter(white.astype(float), (2.0, 5.0), mode="wrap", truncate=8)
    np.testing.assert_allclose(got, (want - want.mean()) / want.std(), atol=1e-4)


def test_noise_is_standardised_and_as_smooth_as_asked() -> None:
    canvas = Canvas((1200.0, 800.0))
    field = canvas.noise(np.random.default_rng(1), 40.0)
    assert field.shape == canvas.shape == (200, 300)
    assert field.mean() == pytest.approx(0, abs=1e-4)
    assert field.std() == pytest.approx(1, abs=1e-4)
    apart = 10  # 40 um: the correlation of blurred white noise is exp(-d^2 / (4 sigma^2))
    assert np.mean(field[:, apart:] * field[:, :-apart]) == pytest.approx(np.exp(-0.25), abs=0.08)


def test_points_and_pixels_read_x_along_columns() -> None:
    canvas = Canvas((400.0, 200.0))
    x, y = canvas.centres()
    field = x + 0 * y
    np.testing.assert_allclose(canvas.at(field, [10.0, 390.0], [150.0, 20.0]), [10, 390], atol=2.1)
    image = canvas.to_pixels(field, (100, 200))
    np.testing.assert_allclose(image[50, 5:-5], (np.arange(200)[5:-5] + 0.5) * 2, atol=0.2)


def test_fibres_run_along_the_angle() -> None:
    canvas = Canvas((600.0, 600.0))
    fibres = Fibres.random(canvas, np.random.default_rng(2))
    down, right = np.gradient(fibres.across)
    along = right * np.cos(fibres.angle) + down * np.sin(fibres.angle)
    assert np.abs(along).max() < 1e-3

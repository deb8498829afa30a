from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, label

from stpred._core.compute import strips
from stpred._core.compute.strips import in_strips, label_sums, looked_up
from stpred._core.fill import find_fill
from stpred._image.tissue import METHODS, survey


@pytest.mark.parametrize("rows", [1, 7, 100])
def test_filters_are_the_same_in_strips(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strips, "ROWS", rows)
    image = np.random.default_rng(0).normal(size=(61, 20)).astype(np.float32)
    found = in_strips(lambda part: gaussian_filter(part, 1.5), image, dtype=np.float32, reach=6)
    np.testing.assert_array_equal(found, gaussian_filter(image, 1.5))
    pieces, n = label(image > 0)
    np.testing.assert_array_equal(label_sums(pieces, n), np.bincount(pieces.ravel(), minlength=n + 1))
    table = np.arange(n + 1) % 3 == 0
    np.testing.assert_array_equal(looked_up(table, pieces), table[pieces])


def slide() -> np.ndarray:
    """Glass with two pieces of tissue, a stroke of a pen, black fill at two sides and a field that was not scanned."""
    rng = np.random.default_rng(1)
    pixels = np.clip(240 + rng.normal(scale=1.5, size=(230, 190, 3)), 0, 255)
    for y, x, colour in ((60, 60, (170, 90, 150)), (150, 120, (215, 190, 215))):
        disc = np.hypot(*np.ogrid[-y : 230 - y, -x : 190 - x]) < 35
        pixels[disc] = np.array(colour) + rng.normal(scale=14, size=(disc.sum(), 3))
    pixels[100:108, 20:150] = (40, 70, 190) + rng.normal(scale=6, size=(8, 130, 3))
    pixels[190:210, 30:80] = 255
    pixels[:, -12:] = pixels[:5] = 0
    return np.clip(pixels, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("method", METHODS)
def test_neither_tissue_nor_fill_nor_pen_depend_on_the_strips(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = slide()
    whole, fill = survey(pixels, mpp=8.0, method=method), find_fill(pixels)
    assert whole.tissue.any()
    assert len(fill.colours) == 2
    assert whole.pen.any() == (method == "auto")
    monkeypatch.setattr(strips, "ROWS", 17)
    again, same = survey(pixels, mpp=8.0, method=method), find_fill(pixels)
    for name in ("tissue", "fill", "pen"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
    assert (again.glass, again.cut, again.doubts) == (whole.glass, whole.cut, whole.doubts)
    np.testing.assert_array_equal(same.labels, fill.labels)
    np.testing.assert_array_equal(same.colours, fill.colours)

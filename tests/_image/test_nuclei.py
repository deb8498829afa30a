from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, label
from scipy.spatial import cKDTree
from skimage.draw import disk, ellipse
from skimage.filters import threshold_otsu
from skimage.measure import regionprops
from skimage.morphology import local_maxima

from stpred._image import nuclei as nc

COLUMN = {name: i for i, name in enumerate(nc.STAT_NAMES)}


def stats_of(labels: np.ndarray, intensity: np.ndarray) -> dict[str, np.ndarray]:
    table = nc.region_stats(labels.astype(np.int32), intensity.astype(np.float32))
    return {name: table[:, i] for name, i in COLUMN.items()}


@pytest.fixture
def field() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    blobs, _ = label(gaussian_filter(rng.normal(size=(90, 80)), 3) > 0.03)
    return blobs, rng.random((90, 80)).astype(np.float32)


def test_otsu_equals_skimage() -> None:
    rng = np.random.default_rng(0)
    plane = (
        np.concatenate([rng.normal(0.3, 0.08, 3000), rng.normal(1.1, 0.15, 1000)]).reshape(50, 80).astype(np.float32)
    )
    assert nc.otsu(plane, 0.0, 2.0) == pytest.approx(threshold_otsu(plane), abs=0.03)
    assert 0 <= nc.otsu(np.zeros((5, 5), np.float32), 0.0, 2.0) <= 2


def test_region_stats_equal_regionprops(field: tuple[np.ndarray, np.ndarray]) -> None:
    labels, intensity = field
    found = stats_of(labels, intensity)
    for i, p in enumerate(regionprops(labels, intensity_image=intensity)):
        assert found["area_px"][i] == p.area
        assert (found["y_px"][i], found["x_px"][i]) == pytest.approx(p.centroid)
        # skimage takes pixels for points, ours are squares with a variance of 1/12 of their own
        assert found["major_px"][i] == pytest.approx(np.hypot(p.axis_major_length, 4 / np.sqrt(12)), rel=1e-6)
        assert found["minor_px"][i] == pytest.approx(np.hypot(p.axis_minor_length, 4 / np.sqrt(12)), rel=1e-6)
        assert found["mean"][i] == pytest.approx(p.intensity_mean, rel=1e-5)
        assert found["std"][i] == pytest.approx(intensity[labels == p.label].std(), rel=1e-4)
        if p.eccentricity > 0.4:  # skimage counts the angle from the rows' axis
            assert np.cos(2 * (found["angle_rad"][i] + p.orientation - np.pi / 2)) == pytest.approx(1, abs=1e-6)


def test_perimeter_of_discs_and_hollowness_of_rings() -> None:
    y, x = np.mgrid[:81, :81] - 40
    r = np.hypot(y, x)
    labels = (r < 20).astype(int)
    even, dark_rim, dark_core = (stats_of(labels, v) for v in (np.ones_like(r), 0.2 + (r > 12), 0.2 + (r < 8)))
    assert even["perimeter_px"][0] == pytest.approx(2 * np.pi * 20, rel=0.03)
    assert even["hollowness"][0] == pytest.approx(1, abs=1e-6)
    assert dark_core["hollowness"][0] < 0.8 < 1.2 < dark_rim["hollowness"][0]


def test_missing_labels_and_no_labels() -> None:
    labels = np.zeros((8, 8), int)
    assert nc.region_stats(labels.astype(np.int32), np.ones((8, 8), np.float32)).shape == (0, len(nc.STAT_NAMES))
    labels[2:4, 2:4] = 2
    found = stats_of(labels, np.ones((8, 8)))
    assert found["area_px"].tolist() == [0, 4]


def test_nearest_neighbours_equal_a_tree() -> None:
    points = np.random.default_rng(0).random((40, 2))
    np.testing.assert_allclose(nc.nearest_neighbours(points), cKDTree(points).query(points, k=2)[0][:, 1])
    assert nc.nearest_neighbours(points[:1]).tolist() == [np.inf]


def test_climb_gives_one_label_per_summit_and_connected_basins() -> None:
    height = gaussian_filter(np.random.default_rng(0).random((70, 60)), 2).astype(np.float32)
    mask = height > np.quantile(height, 0.4)
    labels = nc.climb(height, mask)
    assert ((labels > 0) == mask).all()
    summits = local_maxima(np.where(mask, height, 0), connectivity=2) & mask
    assert sorted(labels[summits]) == list(range(1, labels.max() + 1))
    for k in range(1, labels.max() + 1):
        assert label(labels == k, np.ones((3, 3)))[1] == 1


def test_climb_follows_the_steepest_path() -> None:
    height = gaussian_filter(np.random.default_rng(3).random((25, 25)), 1.5).astype(np.float32)
    labels = nc.climb(height, np.ones((25, 25), bool))
    for y in range(25):
        for x in range(25):
            rows, cols = slice(max(y - 1, 0), y + 2), slice(max(x - 1, 0), x + 2)
            best = np.argmax(height[rows, cols])
            assert labels[y, x] == labels[rows, cols].ravel()[best]


def test_climb_gives_a_plateau_one_label() -> None:
    assert np.unique(nc.climb(np.full((9, 11), 0.5, np.float32), np.ones((9, 11), bool))).tolist() == [1]
    assert nc.climb(np.zeros((4, 4), np.float32), np.zeros((4, 4), bool)).max() == 0


def draw(discs: list[tuple[float, float, float]], *, size: int = 160, mpp: float = 0.5) -> np.ndarray:
    plane = np.full((size, size), 0.05)
    for y, x, r in discs:
        plane[disk((y / mpp, x / mpp), r / mpp, shape=plane.shape)] = 0.7
    rng = np.random.default_rng(0)
    return (gaussian_filter(plane, 0.4 / mpp) + rng.normal(0, 0.02, plane.shape)).astype(np.float32)


@pytest.mark.parametrize("mpp", [0.25, 0.5, 1.0])
def test_segment_finds_drawn_nuclei_at_any_resolution(mpp: float) -> None:
    truth = [(15, 15, 4), (15, 45, 4), (45, 15, 3), (60, 60, 5)]
    labels, threshold = nc.segment(draw(truth, size=int(80 / mpp), mpp=mpp), mpp=mpp)
    found = stats_of(labels, np.ones(labels.shape))
    assert labels.max() == len(truth)
    assert 0.12 < threshold < 0.6
    order = cKDTree(np.column_stack([found["y_px"], found["x_px"]]) * mpp).query([t[:2] for t in truth])[1]
    np.testing.assert_allclose(found["area_px"][order] * mpp**2, [np.pi * t[2] ** 2 for t in truth], rtol=0.25)


def test_segment_splits_touching_nuclei_and_not_one_long_one() -> None:
    labels, _ = nc.segment(draw([(30, 30, 4), (30, 37, 4)]), mpp=0.5)
    assert labels.max() == 2
    plane = np.full((160, 160), 0.05)
    plane[ellipse(80, 80, 6, 16, rotation=0.5)] = 0.7
    labels, _ = nc.segment(gaussian_filter(plane, 0.8).astype(np.float32), mpp=0.5)
    assert labels.max() == 1


@pytest.mark.parametrize("value", [-0.3, 0.0, 0.1])
def test_segment_finds_nothing_where_there_is_no_stain(value: float) -> None:
    noise = np.random.default_rng(0).normal(value, 0.01, (64, 64)).astype(np.float32)
    labels, threshold = nc.segment(noise, mpp=0.5)
    assert labels.max() == 0
    assert threshold >= 0.12


def test_small_regions_are_dropped_and_labels_stay_dense() -> None:
    labels, _ = nc.segment(draw([(20, 20, 4), (20, 50, 1.2), (50, 50, 4)]), mpp=0.5, min_area_um2=12)
    assert np.unique(labels).tolist() == [0, 1, 2]

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

import stpred as st
from stpred._image import labels as label_images
from stpred._image import segment as s
from stpred._image import segment_kernels as kernels


def f1_of(true: NDArray, found: NDArray) -> float:
    """F1 of label images at an intersection over union of a half."""
    n, m = int(true.max()), int(found.max())
    both = np.bincount(true.ravel() * (m + 1) + found.ravel(), minlength=(n + 1) * (m + 1)).reshape(n + 1, m + 1)
    union = both.sum(1)[1:, None] + both.sum(0)[None, 1:] - both[1:, 1:]
    real = (both.sum(1)[1:] > 0).sum()
    return 2 * int((both[1:, 1:] > 0.5 * union).sum()) / (real + m)


def drawn(polygons: NDArray, shape: tuple[int, int], mpp: float) -> NDArray:
    canvas = Image.new("I", shape[::-1])
    pen = ImageDraw.Draw(canvas)
    for k, polygon in enumerate(polygons):
        pen.polygon([tuple(p) for p in shapely.get_coordinates(polygon) / mpp - 0.5], fill=k + 1)
    return np.array(canvas).astype(np.int64)


def discs(*places: tuple[float, float, float], shape: tuple[int, int] = (80, 90), blur_px: float = 1.0) -> NDArray:
    """A pale pink field with dark blue discs at y, x of a radius in pixels."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    dark = np.zeros(shape)
    for cy, cx, r in places:
        dark[(y - cy) ** 2 + (x - cx) ** 2 < r * r] = 1
    dark = ndimage.gaussian_filter(dark, blur_px)[..., None]
    return (np.array([232, 190, 215]) * (1 - dark) + np.array([95, 60, 140]) * dark).astype(np.uint8)


STAINING = s.Staining((240.0, 240.0, 240.0), threshold=0.2, dark=0.4, light=0.02, hue=0.7)


@pytest.mark.parametrize(("mpp", "donor"), [(0.5, 0), (0.69, 1)])
def test_finds_the_nuclei_of_the_synthetic_tissue(mpp: float, donor: int) -> None:
    tissue = st.datasets.make_tissue(size_um=(300, 300), mpp=mpp, seed=3, donor=donor, n_genes=5)
    size = round(300 / s.WORK_MPP)
    field = np.asarray(Image.fromarray(tissue.image).resize((size, size), Image.Resampling.BICUBIC))
    labels = s.segment(field, s.measure_staining([field]))
    assert f1_of(drawn(tissue.nuclei, labels.shape, s.WORK_MPP), labels) > 0.85


def test_touching_discs_are_parted_and_a_long_one_is_not() -> None:
    field = discs((30, 30, 9), (30, 46.5, 9), (60, 25, 6), (60, 33, 6.3), (60, 41, 6))
    labels = s.segment(field, STAINING)
    assert labels.max() == 3
    assert labels[30, 30] != labels[30, 47] > 0
    assert labels[60, 25] == labels[60, 41] > 0


def test_hollow_nuclei_are_filled_and_pink_ones_left_out() -> None:
    field = discs((30, 30, 10)).astype(float)
    y, x = np.mgrid[:80, :90] + 0.5
    field[(y - 30) ** 2 + (x - 30) ** 2 < 16] = (190, 150, 200)
    field[(y - 50) ** 2 + (x - 70) ** 2 < 64] = (150, 20, 60)  # a red cell
    labels = s.segment(field.astype(np.uint8), STAINING)
    assert labels.max() == 1
    assert labels[30, 30] == 1
    assert (labels > 0).sum() == pytest.approx(np.pi * 100, rel=0.3)


@pytest.mark.parametrize("value", [255, 240, 128])
def test_a_flat_field_is_empty(value: int) -> None:
    field = np.full((64, 70, 3), value, np.uint8)
    assert s.segment(field, s.measure_staining([field])).max() == 0
    noise = np.random.default_rng(0).normal(0, 2, field.shape)
    noisy = (field + noise).clip(0, 255).astype(np.uint8)
    assert s.segment(noisy, s.measure_staining([noisy])).max() == 0
    assert s.segment(field[:4, :4], STAINING).shape == (4, 4)


def test_turning_the_field_turns_the_labels() -> None:
    field = discs((30, 30, 9), (30, 46.5, 9), (60, 25, 7), (12, 75, 8))
    upright = s.segment(field, STAINING) > 0
    for turn in (1, 2, 3):
        turned = np.rot90(s.segment(np.ascontiguousarray(np.rot90(field, turn)), STAINING), -turn) > 0
        assert (turned != upright).sum() < 0.05 * upright.sum()


def test_area_bounds_hold() -> None:
    labels = s.segment(discs((20, 20, 5), (40, 60, 12)), STAINING, min_area_um2=40, max_area_um2=200)
    assert labels[20, 20] == 0
    assert labels[40, 60] > 0


def test_the_component_tree_equals_regions_of_every_threshold() -> None:
    rng = np.random.default_rng(0)
    level = rng.integers(0, 6, (11, 13)).astype(np.uint8)
    plane = level.astype(np.float32)
    _, parent, sums = kernels.component_tree(level, plane, 8)
    flat = level.ravel()
    tops = [p for p in range(flat.size) if parent[p] == p or flat[parent[p]] < flat[p]]
    found = sorted((int(flat[p]), *sums[p].round(3)) for p in tops)
    wanted = []
    y, x = np.mgrid[:11, :13]
    for value in range(6):
        regions, n = ndimage.label(level >= value)
        for k in range(1, n + 1):
            inside = regions == k
            if not (level[inside] == value).any():
                continue
            steps = rise = 0.0
            for a, b in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
                edge = inside[a] != inside[b]
                steps += edge.sum()
                rise += np.abs(plane[a] - plane[b])[edge].sum()
            yi, xi = y[inside], x[inside]
            sums_of = (inside.sum(), yi.sum(), xi.sum(), (yi**2).sum(), (xi**2).sum(), (yi * xi).sum(), steps, rise)
            wanted.append((value, *(round(float(v), 3) for v in sums_of)))
    assert found == sorted(wanted)


def test_the_selection_is_the_best_of_all() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        level = rng.integers(0, 4, (3, 4)).astype(np.uint8)
        order, parent, _ = kernels.component_tree(level, level.astype(np.float32), 1)
        flat = level.ravel()
        tops = [int(p) for p in range(12) if parent[p] == p or flat[parent[p]] < flat[p]]
        worth = rng.normal(0.2, 1, 12).astype(np.float32)

        def above(p: int, parent: NDArray = parent) -> set[int]:
            chain = set()
            while parent[p] != p:
                p = int(parent[p])
                chain.add(p)
            return chain

        best = 0.0
        for bits in range(1 << len(tops)):
            chosen = [p for k, p in enumerate(tops) if bits >> k & 1]
            if all(not above(p) & set(chosen) for p in chosen):
                best = max(best, float(sum(worth[p] for p in chosen)))
        labels = kernels.select(level, order, parent, worth.copy())
        picked = [p for p in tops if labels.ravel()[p] and not any(labels.ravel()[q] for q in above(p) & set(tops))]
        assert sum(worth[p] for p in picked) == pytest.approx(best, abs=1e-5)


def test_outlines_have_the_area_and_place_of_their_labels() -> None:
    y, x = np.mgrid[:60, :70] + 0.5
    labels = np.zeros((60, 70), np.int32)
    labels[(y - 20) ** 2 + (x - 25) ** 2 < 100] = 1
    labels[((y - 45) / 6) ** 2 + ((x - 50) / 15) ** 2 < 1] = 3
    xy, begin = label_images.outlines(labels)
    assert begin.tolist()[1:3] == [begin[1], begin[1]]  # label 2 has no pixels
    for label in (1, 3):
        ring = shapely.Polygon(xy[begin[label - 1] : begin[label]])
        assert ring.is_valid
        assert ring.area == pytest.approx((labels == label).sum(), rel=0.04)
        cy, cx = ndimage.center_of_mass(labels == label)
        assert ring.centroid.distance(shapely.Point(cx + 0.5, cy + 0.5)) < 0.1
    single = np.zeros((3, 3), np.int32)
    single[1, 1] = 1
    assert shapely.Polygon(label_images.outlines(single)[0]).centroid.coords[0] == pytest.approx((1.5, 1.5))


def test_outlines_move_inwards_by_what_is_asked() -> None:
    y, x = np.mgrid[:40, :40] + 0.5
    labels = ((y - 20) ** 2 + (x - 20) ** 2 < 144).astype(np.int32)
    outer, inner = (shapely.Polygon(label_images.outlines(labels, inset_px=d)[0]) for d in (0.0, 1.5))
    assert np.sqrt(outer.area / np.pi) - np.sqrt(inner.area / np.pi) == pytest.approx(1.5, abs=0.1)
    assert inner.within(outer)


def test_overlapping_sets_keep_the_side_of_the_larger_score() -> None:
    field = discs((30, 30, 9), (30, 46.5, 9), (60, 25, 7), shape=(80, 90))
    red = ndimage.gaussian_filter(-np.log10(field[..., 0] / 240.0), 1).astype(np.float32)
    y, x = np.mgrid[:80, :90] + 0.5
    left, right = ((y - 30) ** 2 + (x - cx) ** 2 < 81 for cx in (30, 46.5))
    whole, core = (y - 60) ** 2 + (x - 25) ** 2 < 49, (y - 60) ** 2 + (x - 25) ** 2 < 16
    first = np.where(left | right, 1, 0) + 2 * core
    second = np.where(left & (x < 38.25), 1, 0) + np.where(right & (x >= 38.25), 2, 0) + 3 * whole
    area_px = (20, 2000)
    for one, other in ((first, second), (second, first)):  # the two discs and the whole one win from either side
        got = s._better_of(one.astype(np.int32), other.astype(np.int32), red, 0.4, area_px)
        assert got.max() == 3
        assert ((got > 0) == (second > 0)).all()
        assert len({got[30, 30], got[30, 46], got[60, 25], 0}) == 4
    assert (s._better_of(first.astype(np.int32), np.zeros_like(first, np.int32), red, 0.4, area_px) == first).all()


def test_depth_is_the_distance_to_the_nearest_outside() -> None:
    rng = np.random.default_rng(0)
    inside = ndimage.gaussian_filter(rng.normal(size=(50, 61)), 4) > -0.02
    wanted = ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
    assert wanted.max() > 6
    assert kernels.depth(inside, 40) == pytest.approx(wanted, abs=1e-5)
    assert kernels.depth(inside, 3) == pytest.approx(np.minimum(wanted, 3), abs=1e-5)


def test_sums_of_labels_are_those_of_the_tree() -> None:
    rng = np.random.default_rng(2)
    level = rng.integers(0, 2, (11, 13)).astype(np.uint8)
    plane = rng.random((11, 13)).astype(np.float32)
    _, parent, sums = kernels.component_tree(level, plane, 8)
    labels, n = ndimage.label(level)
    tops = [p for p in np.flatnonzero(level) if parent[p] == p or level.ravel()[parent[p]] == 0]
    wanted = sums[sorted(tops, key=lambda p: labels.ravel()[p])]
    assert kernels.label_sums(labels.astype(np.int32), plane, n) == pytest.approx(wanted)


def test_pieces_keep_the_largest_and_share_edges() -> None:
    labels = np.array([[1, 0, 2, 2], [0, 1, 0, 2], [0, 1, 4, 0], [4, 0, 4, 4]])
    assert label_images.whole_pieces(labels).tolist() == [[0, 0, 2, 2], [0, 1, 0, 2], [0, 1, 3, 0], [0, 0, 3, 3]]
    assert label_images.whole_pieces(np.zeros((2, 2), int)).max() == 0


def plain(rgb: NDArray) -> NDArray:
    """Colour deconvolution, Otsu's threshold, watershed of the distance to the ground: what a script would do."""
    from skimage.color import rgb2hed
    from skimage.feature import peak_local_max
    from skimage.filters import gaussian, threshold_otsu
    from skimage.segmentation import watershed

    stain = gaussian(rgb2hed(rgb)[..., 0], 1)
    mask = ndimage.binary_fill_holes(stain > threshold_otsu(stain))
    depth = ndimage.distance_transform_edt(mask)
    seeds = np.zeros(mask.shape, int)
    peaks = peak_local_max(depth, min_distance=5, labels=mask.astype(int))
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    return watershed(-depth, seeds, mask=mask)


@pytest.mark.realdata
def test_beats_a_plain_script_on_annotated_fields(real_data: Path) -> None:
    """Every ninth annotated field and the pink ones; two magnifications, which no file tells."""
    paths = sorted((real_data / "nuclei").glob("*_image.png"))
    pink = ("4193474b2f1c", "8f27ebc74164", "87ea72894f65", "57bd029b19c1")
    ours, theirs = [], []
    for path in [*paths[::9], *(p for p in paths if p.name.startswith(pink))]:
        true = np.array(Image.open(str(path).replace("_image", "_label"))).astype(np.int64)
        diameter_px = 2 * np.sqrt(np.median(np.bincount(true.ravel())[1:]) / np.pi)
        shrink = 1.0 if diameter_px < 24 else 0.5
        image = Image.open(path).convert("RGB")
        size = (round(image.width * shrink), round(image.height * shrink))
        field = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
        labels = s.segment(field, s.measure_staining([field]))
        wide = np.array(Image.fromarray(labels).resize(image.size, Image.Resampling.NEAREST)).astype(np.int64)
        ours.append(f1_of(true, wide))
        theirs.append(f1_of(true, plain(np.asarray(image))))
    assert np.mean(ours) > np.mean(theirs) + 0.1
    assert np.mean(ours[-4:]) > 2 * np.mean(theirs[-4:])

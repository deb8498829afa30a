"""A slide as its pixels: what lies in which target, and what patches show of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray

from stpred import InputError, TileSpec
from stpred.data._readers.canvas import RANGE, Canvas
from stpred.data._readers.pixels import PixelReader, SlidePixelGrid
from stpred.data._regions import Region, read_region
from stpred.datasets._subtypes import toy_subtypes
from stpred.models.parts.pixel_grid import Coverage, Window
from stpred.tiles import Level, Pyramid

MPP = 2.0


def canvas_of(image: NDArray[np.uint8] | None = None, *, edge: int = 200, mpp: float = MPP) -> Canvas:
    """A canvas of an image at its own resolution; of noise where none is given."""
    if image is None:
        image = np.random.default_rng(0).integers(0, 256, (3, edge, edge), dtype=np.uint8)
    return Canvas(Pyramid([Level(image, np.diag([mpp, mpp, 1.0]))]), mpp)


def scene_of(polygons: Sequence[shapely.Geometry], canvas: Canvas | None = None) -> SlidePixelGrid:
    """A scene of polygons in pixels."""
    canvas = canvas_of() if canvas is None else canvas
    shapes = shapely.transform(np.array(polygons), lambda xy: xy * canvas.mpp)
    box = shapely.bounds(shapes)
    centres = shapely.get_coordinates(shapely.centroid(shapes))
    shapely.prepare(shapes)

    def says(target: NDArray[np.int64], xy: NDArray[np.float64]) -> NDArray[np.bool_]:
        return np.asarray(shapely.contains_xy(shapes[target], xy), dtype=bool)

    return SlidePixelGrid(canvas, box[:, :2], box[:, 2:], centres, says, canvas.bounds, 32)


def discs(
    centres: NDArray[np.float64], radius: float | NDArray[np.float64], canvas: Canvas | None = None
) -> SlidePixelGrid:
    """A scene of discs, in pixels."""
    canvas = canvas_of() if canvas is None else canvas
    at, r = centres * canvas.mpp, np.broadcast_to(radius, len(centres)) * canvas.mpp

    def says(target: NDArray[np.int64], xy: NDArray[np.float64]) -> NDArray[np.bool_]:
        return np.asarray(np.square(xy - at[target]).sum(axis=1) <= r[target] ** 2, dtype=bool)

    return SlidePixelGrid(canvas, at - r[:, None], at + r[:, None], at, says, canvas.bounds, 32)


def areas(inside: Coverage, n: int) -> NDArray[np.float64]:
    return np.bincount(inside.target, weights=inside.share, minlength=n)


def as_map(inside: Coverage, n: int, window: Window) -> NDArray[np.float64]:
    """(n, 200, 200) share of every pixel of the whole canvas in every target."""
    out = np.zeros((n, 200, 200))
    row, column = np.divmod(inside.pixel, window.width)
    np.add.at(out, (inside.target, row + window.row, column + window.column), inside.share)
    return out


# Pixels that lie in targets.


@pytest.mark.parametrize(("width", "off"), [(40.0, 0.03), (12.0, 0.03), (5.0, 0.03), (1.3, 0.1)])
def test_pixels_in_discs_add_up_to_their_area(width: float, off: float) -> None:
    centres = np.random.default_rng(1).uniform(25, 175, (40, 2))
    scene = discs(centres, width / 2)
    found = areas(scene.inside(scene.bounds), 40)
    area = np.pi * width**2 / 4
    np.testing.assert_allclose(found, area, rtol=off)
    np.testing.assert_allclose(found.mean(), area, rtol=off / 3)
    np.testing.assert_allclose(scene.sizes(), area, rtol=0.05)


def test_pixels_in_polygons_add_up_to_their_area() -> None:
    rng = np.random.default_rng(2)
    polygons = [
        shapely.MultiPoint(rng.uniform(20, 180, 2) + rng.uniform(-9, 9, (12, 2))).convex_hull for _ in range(30)
    ]
    scene = scene_of(polygons)
    inside = scene.inside(scene.bounds)
    np.testing.assert_allclose(areas(inside, 30), shapely.area(np.array(polygons)), rtol=0.03)
    assert (np.diff(inside.target) >= 0).all()
    assert inside.share.max() <= 1
    # A pixel in the middle of a target lies in it in full, and none beyond the target's box does.
    row, column = np.divmod(inside.pixel, 200)
    low, high = scene.low[inside.target] / MPP, scene.high[inside.target] / MPP
    assert (column + 1 > low[:, 0] - 1e-9).all()
    assert (row < high[:, 1] + 1e-9).all()
    whole = shapely.contains(np.array(polygons)[inside.target], shapely.box(column, row, column + 1, row + 1))
    assert whole.sum() > 1000
    np.testing.assert_array_equal(inside.share[whole], 1)


@pytest.mark.parametrize("width", [40.0, 7.3, 1.3, 0.15])
def test_windows_that_cut_targets_add_up_to_the_whole(width: float) -> None:
    centres = np.random.default_rng(3).uniform(25, 175, (50, 2))
    centres[:5] = np.round(centres[:5])  # on the corners of pixels, too
    scene = discs(centres, width / 2)
    whole = as_map(scene.inside(scene.bounds), 50, scene.bounds)
    parts = np.zeros_like(whole)
    rows, columns = [0, 37, 101, 200], [0, 64, 65, 128, 200]
    for y0, y1 in zip(rows[:-1], rows[1:], strict=True):
        for x0, x1 in zip(columns[:-1], columns[1:], strict=True):
            window = Window(y0, x0, y1 - y0, x1 - x0)
            parts += as_map(scene.inside(window), 50, window)
    np.testing.assert_array_equal(parts, whole)
    assert (whole.sum(axis=(1, 2)) > 0).all()


def test_squares_on_the_lattice_are_their_pixels_exactly() -> None:
    at = np.stack(np.meshgrid(np.arange(50, 70), np.arange(30, 50)), axis=-1).reshape(-1, 2)
    scene = scene_of([shapely.box(x, y, x + 1, y + 1) for x, y in at.tolist()])
    inside = scene.inside(scene.bounds)
    np.testing.assert_array_equal(inside.target, np.arange(400))
    np.testing.assert_array_equal(inside.pixel, at[:, 1] * 200 + at[:, 0])
    np.testing.assert_array_equal(inside.share, 1)
    wide = scene_of([shapely.box(x, y, x + 4, y + 4) for x, y in (at * 4 - 100).tolist() if 0 <= x < 190 and y < 190])
    found = wide.inside(wide.bounds)
    np.testing.assert_array_equal(found.share, 1)
    np.testing.assert_array_equal(np.bincount(found.target), 16)


def test_pixel_in_two_targets_is_read_for_both() -> None:
    scene = discs(np.array([[50.0, 50.0], [56.0, 50.0]]), 6.0)
    found = areas(scene.inside(scene.bounds), 2)
    np.testing.assert_allclose(found, np.pi * 36, rtol=0.03)


def test_taken_targets_are_those_rows() -> None:
    rng = np.random.default_rng(4)
    scene = discs(rng.uniform(25, 175, (20, 2)), 6.0)
    rows = np.array([11, 3, 19])
    every, some = scene.inside(scene.bounds), scene.take(rows).inside(scene.bounds)
    for k, row in enumerate(rows.tolist()):
        np.testing.assert_array_equal(some.pixel[some.target == k], every.pixel[every.target == row])
    twice = scene.take(rows).take(np.array([2, 0]))
    np.testing.assert_array_equal(twice.centres, scene.centres[[19, 11]])
    found = twice.inside(scene.bounds)
    np.testing.assert_array_equal(found.pixel[found.target == 1], every.pixel[every.target == 11])
    assert scene.take(rows).frame == scene.frame
    assert scene.take(rows).identity != scene.identity


def test_boxes_hold_all_pixels() -> None:
    scene = discs(np.random.default_rng(5).uniform(25, 175, (30, 2)), 7.7)
    inside, boxes = scene.inside(scene.bounds), scene.boxes()
    row, column = np.divmod(inside.pixel, 200)
    at = np.stack([row, column], axis=1)
    assert (at >= boxes[inside.target, :2]).all()
    assert (at <= boxes[inside.target, 2:]).all()


# What is seen.


def test_canvas_shows_the_image_and_glass_beyond_it() -> None:
    image = np.random.default_rng(6).integers(0, 256, (3, 300, 520), dtype=np.uint8)
    canvas = canvas_of(image)
    assert canvas.bounds == Window(0, 0, 300, 520)
    shown = canvas.pixels(Window(-7, 240, 60, 300))  # over two pieces, and beyond the border
    np.testing.assert_array_equal(shown[7:, :280], image[:, :53, 240:].transpose(1, 2, 0))
    np.testing.assert_array_equal(shown[:7], np.broadcast_to(canvas.pyramid.background, (7, 300, 3)))
    np.testing.assert_array_equal(shown[:, 280:], np.broadcast_to(canvas.pyramid.background, (60, 20, 3)))


def test_colours_lie_on_the_slides_range() -> None:
    image = np.random.default_rng(7).integers(40, 90, (3, 128, 128), dtype=np.uint8)
    image[1] += 100
    scaled = canvas_of(image).scaled(image.transpose(1, 2, 0))
    for c in range(3):
        low, high = int(image[c].min()), int(image[c].max())
        want = (image[c].astype(float) - low) / (high - low) * 2 * RANGE - RANGE
        np.testing.assert_allclose(scaled[..., c], want, atol=1e-6)
    flat = np.full((3, 64, 64), 240, dtype=np.uint8)  # a channel without any range is no reason for infinite values
    assert np.isfinite(canvas_of(flat).scaled(flat.transpose(1, 2, 0))).all()


def identity(window: Window, mpp: float = MPP) -> NDArray[np.float64]:
    return np.array([[mpp, 0.0, window.column * mpp], [0.0, mpp, window.row * mpp]])


def test_view_without_a_turn_is_the_window() -> None:
    scene = discs(np.random.default_rng(8).uniform(25, 175, (15, 2)), 9.0)
    for window in (Window(20, 40, 64, 48), Window(-6, 170, 40, 60)):
        view = scene.view(identity(window), (window.height, window.width))
        np.testing.assert_array_equal(view.image, scene.image(window))
        y, x = np.mgrid[: window.height, : window.width]
        on = (y + window.row >= 0) & (x + window.column < 200)
        np.testing.assert_array_equal(view.on_image, on)


def test_view_turned_by_a_quarter_has_the_same_pixels_turned() -> None:
    scene = discs(np.random.default_rng(9).uniform(40, 140, (25, 2)), 5.0)
    window = Window(30, 50, 64, 64)
    straight = scene.view(identity(window), (64, 64))
    # Patch pixel (x, y) shows what lies at (64 - y, x) of the window.
    turned = scene.view(np.array([[0, -MPP, (50 + 64) * MPP], [MPP, 0, 30 * MPP]]), (64, 64))
    np.testing.assert_allclose(turned.image, np.rot90(straight.image, axes=(1, 2)), atol=1e-5)
    number = np.rot90(np.arange(64 * 64).reshape(64, 64)).ravel()
    assert set(turned.target) == set(straight.target)
    assert len(set(turned.target)) >= 3
    for t in set(turned.target.tolist()):
        found = set(number[turned.pixel[turned.target == t]].tolist())
        want = set(straight.pixel[straight.target == t].tolist())
        assert len(found ^ want) <= 2, t  # a centre on the very border may go either way
    for name in ("on_image", "taken", "tissue"):
        assert (getattr(turned, name) != np.rot90(getattr(straight, name))).mean() < 0.01


def test_colour_between_pixels_is_right() -> None:
    y, x = np.mgrid[:200, :200]
    image = np.stack([x, y, 100 + (x + y) // 4]).astype(np.uint8)
    scene = discs(np.array([[100.0, 100.0]]), 5.0, canvas_of(image))
    turn = np.deg2rad(33)
    linear = 1.07 * MPP * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ [[1, 0.1], [0, 1]]
    affine = np.column_stack([linear, [180.0, 120.0]])
    view = scene.view(affine, (50, 40))
    low, high = scene.canvas.limits
    v, u = np.mgrid[:50, :40]
    px, py = (
        np.einsum("ij,jhw->ihw", linear, np.stack([u + 0.5, v + 0.5])) / MPP + np.array([90.0, 60.0])[:, None, None]
    )
    for c, want in ((0, px - 0.5), (1, py - 0.5)):  # the middle of pixel k has value k
        found = (view.image[c] + RANGE) / (2 * RANGE) * (high - low)[c] + low[c]
        np.testing.assert_allclose(found, want, atol=1e-3)


def test_targets_that_are_cut_are_not_there_and_others_in_full() -> None:
    rng = np.random.default_rng(10)
    at = np.stack(np.meshgrid(np.arange(20, 190, 15.0), np.arange(20, 190, 15.0)), axis=-1).reshape(-1, 2)
    centres = at + rng.uniform(-1, 1, at.shape)
    scene = discs(centres, 6.0)
    turn = np.deg2rad(20)
    linear = MPP * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    affine = np.column_stack([linear, np.array([80.0, 60.0]) * MPP])
    view = scene.view(affine, (64, 64))
    # Centres in pixels of the patch: a disc is complete if it leaves the outermost pixels alone.
    own = (centres * MPP - affine[:, 2]) @ np.linalg.inv(linear).T
    gap = np.minimum(own, 64 - own).min(axis=1) - 6.0
    assert set(np.flatnonzero(gap > 1.0)) <= set(view.target.tolist()) <= set(np.flatnonzero(gap > 0.0))
    assert 5 < len(set(view.target)) < (gap > -6).sum()
    assert (np.diff(view.target) >= 0).all()
    y, x = np.mgrid[:64, :64]
    middle = np.stack([x.ravel() + 0.5, y.ravel() + 0.5], axis=1)
    taken = np.zeros(64 * 64, dtype=bool)
    for k in range(len(centres)):
        away = np.hypot(*(middle - own[k]).T)
        taken |= away <= 6.0
        if k in view.target:
            pixels = view.pixel[view.target == k]
            assert set(np.flatnonzero(away < 6 - 1e-4)) <= set(pixels) <= set(np.flatnonzero(away < 6 + 1e-4))
    np.testing.assert_array_equal(view.taken.ravel(), taken)  # complete or not


@pytest.mark.parametrize("touched", [(4.0, 20.0), (60.0, 20.0), (20.0, 4.0), (20.0, 60.0)])
def test_target_that_touches_the_border_is_not_complete(touched: tuple[float, float]) -> None:
    inner = np.clip(np.array(touched), 5.0, 59.0)  # a pixel farther in
    for centre, there in ((touched, False), (inner, True)):
        scene = discs(np.array([centre]) + 70, 4.0)
        view = scene.view(identity(Window(70, 70, 64, 64)), (64, 64))
        assert (len(view.target) > 0) == there
        assert view.taken.sum() == pytest.approx(np.pi * 16, abs=4)  # all of its pixels are in the patch


def test_targets_in_two_pieces_are_complete_only_with_both() -> None:
    def pieces(x: float, *, apart: float) -> shapely.MultiPolygon:
        return shapely.MultiPolygon([shapely.box(x, 30, x + 5, 35), shapely.box(x, 30 + apart, x + 5, 35 + apart)])

    scene = scene_of([pieces(30, apart=20), pieces(40, apart=80), pieces(50, apart=80)])
    view = scene.view(identity(Window(20, 20, 64, 64)), (64, 64))
    assert set(view.target) == {0}
    assert len(view.target) == 50
    assert view.taken.sum() == 100


def test_pixel_of_overlapping_targets_belongs_to_the_nearest_centre() -> None:
    centres = np.array([[60.0, 64.3], [67.0, 64.0], [64.0, 70.5]])
    scene = discs(centres, 7.0)
    view = scene.view(identity(Window(40, 40, 60, 60)), (60, 60))
    assert len(np.unique(view.pixel)) == len(view.pixel)
    row, column = np.divmod(view.pixel, 60)
    away = np.hypot(*(np.stack([column, row], axis=1)[:, None] + 40.5 - centres).transpose(2, 0, 1))
    np.testing.assert_array_equal(view.target, away.argmin(axis=1))
    assert len(view.pixel) == view.taken.sum()
    # Where one of two that overlap is cut, the other still has the pixels that are nearer to it, and no others.
    edge = scene.view(identity(Window(40, 40, 60, 24)), (60, 24))
    assert set(edge.target) == set()
    edge = scene.view(identity(Window(40, 40, 60, 29)), (60, 29))
    assert set(edge.target) == {0}
    np.testing.assert_array_equal(edge.pixel // 29 * 60 + edge.pixel % 29, view.pixel[view.target == 0])


def test_frame_goes_around_the_targets_and_stays_on_the_image() -> None:
    slide = toy_subtypes(size_um=800, mpp=4.0)
    region = read_region(slide, measured=True)
    scene = SlidePixelGrid.of(region, TileSpec(mpp=4.0, size_px=64))
    assert scene.patch_px == 64
    low, high = region.coords_um.min() - 50, region.coords_um.max() + 50  # 25 to 725: 84 um of margin go off the left
    assert scene.frame == Window(0, 0, 200, 200)
    part = SlidePixelGrid.of(region.take(np.array([12])), TileSpec(mpp=4.0, size_px=64))
    x, y = region.coords_um[12]
    assert part.frame.column == np.floor((x - 50 - 12) / 4)
    assert part.frame.height == np.ceil((y + 50 + 12) / 4) - np.floor((y - 50 - 12) / 4)
    assert (low, high) == (25.0, 725.0)
    found = areas(scene.inside(scene.bounds), len(region.coords_um))
    np.testing.assert_allclose(found, np.pi * 12.5**2, rtol=0.03)


def test_targets_below_a_pixel_or_in_each_other_are_refused_for_training() -> None:
    def reader(region: Region, mpp: float) -> PixelReader:
        return PixelReader(region, TileSpec(mpp=mpp, size_px=32), Canvas(region.pyramid, mpp))

    region = read_region(toy_subtypes(size_um=800, mpp=4.0), measured=True)
    with pytest.raises(InputError, match="um wide, less than a pixel of 200 um"):
        reader(region, 200.0).whole()
    twice = region.take(np.repeat(np.arange(len(region.coords_um)), 2))
    with pytest.raises(InputError, match="overlap: 100%"):
        reader(twice, 4.0).whole()
    ((_, batch),) = reader(twice, 4.0).blocks()  # to be predicted they may
    assert batch.pixel_grid is not None


def test_taken_targets_hold_the_same_pixels_though_sizes_differ() -> None:
    centres = np.random.default_rng(0).uniform(25, 175, (20, 2))
    scene = discs(centres, np.repeat([10.0, 1.2], [12, 8]))
    rows = np.arange(12, 20)
    every, some = scene.inside(scene.bounds), scene.take(rows).inside(scene.bounds)
    np.testing.assert_allclose(areas(some, 8), areas(every, 20)[rows], rtol=1e-6)


@pytest.mark.parametrize(("radius", "others"), [(0.1, 0.1), (0.9, 10.0)])
def test_smallest_discs_have_their_area_not_their_boxes(radius: float, others: float) -> None:
    centres = np.random.default_rng(0).uniform(25, 175, (20, 2))
    scene = discs(centres, np.repeat([others, radius], [12, 8]))
    np.testing.assert_allclose(areas(scene.inside(scene.bounds), 20)[12:], np.pi * radius**2, rtol=0.1)


def test_narrow_shapes_are_not_lost() -> None:
    corners = np.random.default_rng(0).uniform(20, 150, (10, 2)).tolist()
    scene = scene_of([shapely.box(x, y, x + 30, y + 0.3) for x, y in corners])
    np.testing.assert_allclose(areas(scene.inside(scene.bounds), 10), 9.0, rtol=0.5)


def test_targets_off_the_lattice_are_cut_though_many_are_on_it() -> None:
    on = [shapely.box(x, y, x + 2, y + 2) for x in range(20, 36, 2) for y in range(20, 36, 2)]
    scene = scene_of([*on, *(shapely.Point(100 + 4 * k, 100).buffer(1.3) for k in range(10))])
    np.testing.assert_allclose(areas(scene.inside(scene.bounds), 74)[64:], np.pi * 1.3**2, rtol=0.1)

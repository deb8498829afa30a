from __future__ import annotations

from collections import Counter

import dask.array as da
import numpy as np
import pytest
from PIL import Image

from stpred import TileSpec, settings
from stpred._core.checks import InputError, UnsafeResolutionError
from stpred.tiles import Level, Pyramid, read_tiles, resample, thumbnail_element

MPP = 0.25


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """A smooth coloured field with sharp dark blobs, (1500, 1800, 3) uint8."""
    rng = np.random.default_rng(0)
    small = rng.uniform(120, 250, (60, 72, 3)).astype(np.uint8)
    field = np.asarray(Image.fromarray(small).resize((1800, 1500), Image.Resampling.BICUBIC)).copy()
    y, x = np.mgrid[:1500, :1800]
    for cy, cx, r in zip(rng.uniform(0, 1500, 400), rng.uniform(0, 1800, 400), rng.uniform(8, 20, 400), strict=True):
        box = np.s_[max(int(cy - 25), 0) : int(cy + 25), max(int(cx - 25), 0) : int(cx + 25)]
        field[box][(y[box] - cy) ** 2 + (x[box] - cx) ** 2 < r**2] = (90, 50, 130)
    return field


def pyramid_of(picture: np.ndarray, *, affine: np.ndarray | None = None, chunk: int = 256, levels: int = 1) -> Pyramid:
    affine = np.diag([MPP, MPP, 1.0]) if affine is None else affine
    made = []
    for k in range(levels):
        f = 2**k
        h, w = picture.shape[0] // f * f, picture.shape[1] // f * f
        small = picture[:h, :w].reshape(h // f, f, w // f, f, 3).mean(axis=(1, 3)).round().astype(np.uint8)
        array = da.from_array(np.moveaxis(small, -1, 0), chunks=(3, chunk, chunk))
        made.append(Level(array, affine @ np.diag([f, f, 1.0])))
    return Pyramid(made)


def centers(n: int, *, margin_um: float = 90.0, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.column_stack([rng.uniform(margin_um, 450 - margin_um, n), rng.uniform(margin_um, 375 - margin_um, n)])


def slow_cubic(picture: np.ndarray, center_um: np.ndarray, tile: TileSpec) -> np.ndarray:
    """Cubic convolution (a = -0.5), kernel stretched by the shrink factor, one output pixel at a time."""
    s = max(tile.mpp / MPP, 1.0)

    def kernel(t: np.ndarray) -> np.ndarray:
        t = np.abs(t)
        inner = 1.5 * t**3 - 2.5 * t**2 + 1
        outer = -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
        return np.where(t < 1, inner, np.where(t < 2, outer, 0.0))

    def weights(position: float, size: int) -> tuple[np.ndarray, np.ndarray]:
        at = np.arange(int(position - 2 * s) - 1, int(position + 2 * s) + 2).clip(0, size - 1)
        w = kernel((at + 0.5 - position) / s)
        return at, w / w.sum()

    out = np.zeros((tile.size_px, tile.size_px, 3))
    for v in range(tile.size_px):
        rows, wy = weights((center_um[1] + (v + 0.5 - tile.size_px / 2) * tile.mpp) / MPP, picture.shape[0])
        for u in range(tile.size_px):
            columns, wx = weights((center_um[0] + (u + 0.5 - tile.size_px / 2) * tile.mpp) / MPP, picture.shape[1])
            out[v, u] = np.einsum("y,x,yxc->c", wy, wx, picture[np.ix_(rows, columns)].astype(float))
    return out.clip(0, 255)


@pytest.mark.parametrize("mpp", [0.25, 0.4, 0.5])
def test_equals_slow_reference(picture: np.ndarray, mpp: float) -> None:
    tile = TileSpec(mpp, 48)
    at = centers(2)
    tiles = read_tiles(pyramid_of(picture), at, tile)
    for got, center in zip(tiles, at, strict=True):
        assert np.abs(got - slow_cubic(picture, center, tile)).max() <= 2.0


@pytest.mark.parametrize("mpp", [0.25, 0.35, 0.5, 0.75, 1.0])
def test_flat_pyramid_and_chunks_agree(picture: np.ndarray, mpp: float) -> None:
    tile, at = TileSpec(mpp, 96), centers(12)
    flat = read_tiles(pyramid_of(picture, chunk=2000), at, tile)
    assert np.array_equal(flat, read_tiles(pyramid_of(picture, chunk=130), at, tile))
    levels = read_tiles(pyramid_of(picture, levels=3), at, tile)
    assert np.abs(flat.astype(int) - levels).mean() < 2.0


@pytest.mark.parametrize("mpp", [0.25, 0.4, 0.5, 0.6, 0.75, 1.0, 1.5])
def test_a_grainy_slide_looks_the_same_with_and_without_a_pyramid(picture: np.ndarray, mpp: float) -> None:
    grain = np.random.default_rng(0).normal(0, 12, picture.shape)
    grainy = (picture + grain).clip(0, 255).astype(np.uint8)
    tile, at = TileSpec(mpp, 64), centers(10)
    flat = read_tiles(pyramid_of(grainy), at, tile)
    assert np.abs(flat.astype(int) - read_tiles(pyramid_of(grainy, levels=4), at, tile)).mean() < 2.0


@pytest.mark.parametrize("turn", range(8))
def test_quarter_turns_and_flips_are_exact(picture: np.ndarray, turn: int) -> None:
    h, w = picture.shape[:2]
    stored, to_original = picture, np.eye(3)
    if turn >= 4:
        stored = stored[:, ::-1]
        to_original = to_original @ np.array([[-1, 0, w], [0, 1, 0], [0, 0, 1.0]])
    for _ in range(turn % 4):  # rot90: stored'[i, j] = stored[j, W - 1 - i]
        to_original = to_original @ np.array([[0, -1, stored.shape[1]], [1, 0, 0], [0, 0, 1.0]])
        stored = np.rot90(stored)
    tile, at = TileSpec(0.5, 64), centers(6)
    placed = pyramid_of(np.ascontiguousarray(stored), affine=np.diag([MPP, MPP, 1.0]) @ to_original)
    # Pillow rounds between its two passes, which come in another order for a turned image.
    difference = np.abs(read_tiles(placed, at, tile).astype(int) - read_tiles(pyramid_of(picture), at, tile))
    assert difference.max() <= 4
    assert difference.mean() < 0.2


@pytest.mark.parametrize(("degrees", "scale"), [(30, 1.0), (-75, 0.8), (175, 0.6)])
@pytest.mark.parametrize("flip", [False, True])
def test_rotated_and_scaled_placement_shows_the_same_tissue(
    picture: np.ndarray, degrees: float, scale: float, flip: bool
) -> None:
    a = np.deg2rad(degrees)
    turned = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]) @ np.diag([scale, scale, 1.0])
    if flip:
        turned = turned @ np.diag([-1.0, 1, 1])
    size = 3200
    stored_to_original = np.array([[1, 0, 900], [0, 1, 750], [0, 0, 1.0]]) @ turned
    stored_to_original = stored_to_original @ np.array([[1, 0, -size / 2], [0, 1, -size / 2], [0, 0, 1.0]])
    stored = Image.fromarray(picture).transform(
        (size, size), Image.Transform.AFFINE, tuple(stored_to_original[:2].ravel()), Image.Resampling.BICUBIC
    )
    placed = pyramid_of(np.asarray(stored), affine=np.diag([MPP, MPP, 1.0]) @ stored_to_original)
    assert placed.mpp == pytest.approx(MPP * scale)
    tile, at = TileSpec(0.5, 96), centers(8)
    difference = np.abs(read_tiles(placed, at, tile).astype(int) - read_tiles(pyramid_of(picture), at, tile))
    assert difference.mean() < 2.0
    # A wrong placement would be far off: the check can fail.
    wrong = read_tiles(placed, at + 20.0, tile)
    assert np.abs(wrong.astype(int) - read_tiles(pyramid_of(picture), at, tile)).mean() > 8.0


@pytest.mark.parametrize("levels", [1, 2])
def test_each_chunk_is_decoded_once_and_dropped(picture: np.ndarray, levels: int) -> None:
    seen: Counter[tuple[int, int]] = Counter()

    def load(block_info: dict | None = None) -> np.ndarray:
        (y0, y1), (x0, x1) = block_info[None]["array-location"][1:]
        seen[y0, x0] += 1
        return np.moveaxis(picture, -1, 0)[:, y0:y1, x0:x1]

    meta = np.empty((0, 0, 0), np.uint8)
    array = da.map_blocks(load, chunks=((3,), (250,) * 6, (300,) * 6), dtype=np.uint8, meta=meta)
    pyramid = Pyramid([Level(array, np.diag([MPP, MPP, 1.0]))])
    at = centers(300, margin_um=40)
    for rows, tiles in pyramid.read(at, TileSpec(0.5, 96), batch_size=16):
        assert len(rows) == len(tiles)
    assert max(seen.values()) == 1
    assert len(seen) == 36


def test_order_and_batch_do_not_matter(picture: np.ndarray) -> None:
    tile, at = TileSpec(0.5, 64), centers(30)
    all_at_once = read_tiles(pyramid_of(picture), at, tile)
    order = np.random.default_rng(0).permutation(30)
    assert np.array_equal(read_tiles(pyramid_of(picture), at[order], tile), all_at_once[order])
    rows = np.concatenate([r for r, _ in pyramid_of(picture).read(at, tile, batch_size=7)])
    assert sorted(rows.tolist()) == list(range(30))
    assert list(pyramid_of(picture).read(np.empty((0, 2)), tile)) == []


def test_border_is_padded_with_the_slides_own_background() -> None:
    picture = np.full((400, 400, 3), (231, 226, 240), dtype=np.uint8)
    picture[100:300, 100:300] = (150, 70, 140)
    pyramid = pyramid_of(picture)
    assert pyramid.background == (231, 226, 240)
    tile = read_tiles(pyramid, np.array([[0.0, 0.0], [-500.0, -500.0]]), TileSpec(0.5, 64))
    assert np.abs(tile.astype(int) - (231, 226, 240)).max() <= 1


def test_anisotropic_pixels_are_refused() -> None:
    with pytest.raises(InputError, match="not square"):
        _ = Level(np.zeros((3, 4, 4), np.uint8), np.diag([0.5, 0.55, 1.0])).mpp


def test_too_coarse_image_is_refused_with_the_number() -> None:
    pyramid = Pyramid([Level(np.zeros((3, 50, 50), np.uint8), np.diag([25.0, 25.0, 1.0]))])
    with pytest.raises(UnsafeResolutionError, match=r"25 um per pixel, 50x coarser"):
        pyramid.check_resolution(TileSpec(0.5, 224))
    with settings.override(max_upsampling=50):
        pyramid.check_resolution(TileSpec(0.5, 224))


def test_thumbnail_of_a_rotated_slide_is_upright(picture: np.ndarray) -> None:
    upright, corner = pyramid_of(picture).thumbnail(2.0)
    assert upright.shape[:2] == (188, 225)
    assert corner.tolist() == [0, 0]
    quarter = np.array([[0, -1, 1800], [1, 0, 0], [0, 0, 1.0]])
    turned = pyramid_of(np.rot90(picture).copy(), affine=np.diag([MPP, MPP, 1.0]) @ quarter)
    again, corner = turned.thumbnail(2.0)
    assert np.abs(again.astype(int) - upright).mean() < 1.0
    element = thumbnail_element(pyramid_of(picture), max_px=200)
    assert max(element.shape) == 200


def test_fingerprint_tells_images_and_placements_apart(picture: np.ndarray) -> None:
    base = pyramid_of(picture).fingerprint
    assert base == pyramid_of(picture, chunk=100).fingerprint
    assert base != pyramid_of(picture, affine=np.diag([0.26, 0.26, 1.0])).fingerprint
    changed = picture.copy()
    changed[:40, :40] = 0
    assert base != pyramid_of(changed).fingerprint


def test_resample_of_whole_pixels_copies_them(picture: np.ndarray) -> None:
    tile = resample(picture[:100, :100], np.array([50.0, 50.0]), np.eye(2), size_px=32)
    assert np.array_equal(tile, picture[34:66, 34:66])


@pytest.mark.parametrize("value", [0, 128])
@pytest.mark.parametrize("turned", [False, True])
def test_fill_at_the_border_is_read_as_glass(value: int, turned: bool) -> None:
    rng = np.random.default_rng(0)
    inner = np.full((900, 900, 3), (241, 238, 243), np.uint8)
    inner[150:750, 100:] = rng.normal((170, 90, 150), 14, (600, 800, 3)).clip(0, 255)
    frame = np.full((1000, 1000, 3), value, np.uint8)
    frame[:900, :900] = inner
    affine = np.array([[0, MPP, 0], [MPP, 0, 0], [0, 0, 1.0]]) if turned else None
    clean = np.full((1000, 1000, 3), (241, 238, 243), np.uint8)
    clean[:900, :900] = inner
    at = np.stack(np.meshgrid(np.arange(15, 240, 30.0), np.arange(15, 240, 30.0)), axis=-1).reshape(-1, 2)
    tile = TileSpec(0.5, 56)
    padded, white = pyramid_of(frame, affine=affine), pyramid_of(clean, affine=affine)
    difference = np.abs(read_tiles(padded, at, tile).astype(int) - read_tiles(white, at, tile)).max(axis=-1)
    assert np.mean(difference > 12) < 0.01  # the line where tissue ends
    assert np.abs(np.array(padded.background) - white.background).max() <= 1
    assert padded.fill.covers(np.array([[237.0, 50.0], [50.0, 237.0]])).all()
    assert not padded.fill.covers(np.array([[150.0, 100.0]])).any()
    assert np.abs(padded.thumbnail(4.0)[0].astype(int)[-5, -5] - value).max() <= 1  # as it is stored
    assert white.fill is None
    # Tiles are the same whichever others are read with them.
    assert np.array_equal(read_tiles(padded, at[[63]], tile)[0], read_tiles(padded, at, tile)[63])


def test_features_of_an_image_with_fill_are_not_taken_for_those_of_before() -> None:
    frame = np.full((600, 600, 3), (241, 238, 243), np.uint8)
    frame[100:400, 100:400] = np.random.default_rng(0).normal((170, 90, 150), 14, (300, 300, 3)).clip(0, 255)
    assert pyramid_of(frame).fill is None
    frame[:, 560:] = 0
    pyramid = pyramid_of(frame)
    found = pyramid.fingerprint
    other = pyramid_of(frame)
    other.fill = None
    assert found != other.fingerprint

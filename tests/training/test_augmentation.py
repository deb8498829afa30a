"""Random views: bounds, no empty corners, the same again from the same seed, and each change against a plain one."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from stpred import InputError
from stpred._image.stain import optical_density, stain_matrix
from stpred.encoders import Augmentation
from stpred.training import augmentation

STILL = Augmentation(rotate=False, scale=(1, 1), aspect=(1, 1), jitter=0, blur=0, erase=0)


@pytest.fixture(scope="module")
def tiles() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size=(64, 36, 36, 3), dtype=np.uint8)


def views(tiles: np.ndarray, recipe: Augmentation, *, seed: int = 0, **changed: Any) -> torch.Tensor:
    drawn = augmentation.draw(len(tiles), recipe, generator=torch.Generator().manual_seed(seed))
    drawn.values.update({k: torch.tensor(float(v)).expand(len(tiles)) for k, v in changed.items()})
    return augmentation.views(tiles, drawn, size_px=24, stained=recipe.stain > 0)


def planes(tiles: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255


def test_without_changes_a_view_is_the_middle_of_the_tile(tiles: np.ndarray) -> None:
    middle = planes(tiles)[:, :, 6:30, 6:30]
    torch.testing.assert_close(views(tiles, STILL), middle, atol=1e-5, rtol=0)
    mean, std = torch.tensor([0.5, 0.6, 0.7]), torch.tensor([0.1, 0.2, 0.3])
    seen = augmentation.plain(tiles, size_px=24, mean=mean, std=std)
    torch.testing.assert_close(seen, (middle - mean[:, None, None]) / std[:, None, None])


def test_views_depend_on_the_seed_alone_and_stay_within_bounds(tiles: np.ndarray) -> None:
    recipe = Augmentation(stain=0.3, flip=True, blur=0.5)
    before = torch.random.get_rng_state()
    first = views(tiles, recipe)
    assert torch.equal(first, views(tiles, recipe))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(first, views(tiles, recipe, seed=1))
    assert first.shape == (64, 3, 24, 24)
    assert 0 <= float(first.min()) < float(first.max()) <= 1 + 1e-6


def test_views_of_a_part_are_that_part_of_the_views(tiles: np.ndarray) -> None:
    recipe = Augmentation(stain=0.3, flip=True, blur=0.5)
    drawn = augmentation.draw(64, recipe, generator=torch.Generator().manual_seed(0))
    whole = augmentation.views(tiles, drawn, size_px=24, stained=True)
    for part in (slice(0, None, 2), slice(1, None, 2)):  # as two processes share a step
        some = augmentation.views(tiles[part], drawn.take(part), size_px=24, stained=True)
        torch.testing.assert_close(some, whole[part], atol=1e-5, rtol=0)


def test_no_corner_is_empty_however_a_tile_is_turned() -> None:
    # Inside the circle that turned views reach, 255; outside it and beyond the border nothing may be taken from.
    at = np.arange(36) - 17.5
    inside = np.hypot(*np.meshgrid(at, at)) <= 12 * math.sqrt(2) + 1
    tile = np.repeat(np.where(inside, 255, 0).astype(np.uint8)[None, :, :, None], 3, axis=3)
    for angle in np.linspace(0, 2 * math.pi, 33):
        assert float(views(tile, STILL, angle=angle).min()) > 0.9999
    turned = views(np.repeat(tile, 64, axis=0), replace(STILL, rotate=True, scale=(0.6, 1.0)))
    assert float(turned.min()) > 0.9999


def test_a_quarter_turn_and_a_mirror_move_pixels_only(tiles: np.ndarray) -> None:
    middle = planes(tiles)[:, :, 6:30, 6:30]
    torch.testing.assert_close(views(tiles, STILL, angle=math.pi / 2), middle.rot90(1, (2, 3)), atol=1e-4, rtol=0)
    torch.testing.assert_close(views(tiles, STILL, flip=1.0), middle.flip(3), atol=1e-5, rtol=0)


def test_windows_lie_within_the_tile_and_have_the_area_asked_for() -> None:
    recipe = Augmentation(scale=(0.3, 0.5))
    of = augmentation.draw(20_000, recipe, generator=torch.Generator().manual_seed(0)).values
    for centre, length in (("x", "width"), ("y", "height")):
        assert float((of[centre].abs() + of[length]).max()) <= 1 + 1e-6
    area, ratio = of["width"] * of["height"], of["width"] / of["height"]
    assert 0.3 - 1e-6 <= float(area.min()) < 0.31
    assert 0.49 < float(area.max()) <= 0.5 + 1e-6
    assert 3 / 4 - 1e-5 <= float(ratio.min()) < float(ratio.max()) <= 4 / 3 + 1e-5
    hole = of["hole_width"] * of["hole_height"]
    assert 0.05 - 1e-6 <= float(hole.min()) < float(hole.max()) <= 0.15 + 1e-6
    assert float((of["hole_x"] + of["hole_width"]).max()) <= 1 + 1e-6
    for name, share in (("jitter", 0.8), ("erase", 0.3)):
        assert abs(float(of[name].mean()) - share) < 0.02
    assert abs(float((of["blur"] > 0).float().mean()) - 0.1) < 0.02
    for name, strength in (("brightness", 0.6), ("contrast", 0.7), ("saturation", 0.5)):
        assert 1 - strength <= float(of[name].min()) < float(of[name].max()) <= 1 + strength


def test_colour_changes_against_one_after_the_other() -> None:
    """The four changes applied to a pixel array in turn, without clipping, in each view's own order."""
    rng = np.random.default_rng(0)
    images = rng.uniform(0.4, 0.6, size=(24, 3, 5, 5))  # far from clipping
    recipe = replace(Augmentation(), jitter=1.0)
    of = augmentation.draw(24, recipe, generator=torch.Generator().manual_seed(0)).values
    found = augmentation._colour(torch.from_numpy(images).float(), of).numpy()
    grey = np.array(augmentation._GREY)
    yiq = np.array(augmentation._YIQ)
    for i, image in enumerate(images):
        x = image.copy()
        for kind in of["order"][i].tolist():
            if kind == 0:
                x = x * float(of["brightness"][i])
            elif kind == 1:
                f = float(of["contrast"][i])
                x = f * x + (1 - f) * np.tensordot(grey, x, axes=1).mean()
            elif kind == 2:
                f = float(of["saturation"][i])
                x = f * x + (1 - f) * np.tensordot(grey, x, axes=1)
            else:
                y, j, q = np.tensordot(yiq, x, axes=1)
                turned = (j + 1j * q) * np.exp(1j * float(of["hue"][i]))
                x = np.tensordot(np.linalg.inv(yiq), np.stack([y, turned.real, turned.imag]), axes=1)
        np.testing.assert_allclose(found[i], x, atol=1e-4)
    assert len({tuple(o) for o in of["order"].tolist()}) > 5


def test_views_without_jitter_keep_their_colours(tiles: np.ndarray) -> None:
    recipe = replace(STILL, jitter=0.5)
    drawn = augmentation.draw(64, recipe, generator=torch.Generator().manual_seed(0))
    same = (augmentation.views(tiles, drawn, size_px=24) - planes(tiles)[:, :, 6:30, 6:30]).abs().amax(
        dim=(1, 2, 3)
    ) < 1e-5
    assert torch.equal(same, drawn.values["jitter"] == 0)


def test_stains_are_multiplied_in_optical_density() -> None:
    tile = np.random.default_rng(0).integers(90, 250, size=(4, 36, 36, 3), dtype=np.uint8)
    factors = torch.tensor([[0.5, 1.0], [1.0, 1.2], [1.0, 1.0], [0.9, 0.8]])
    found = augmentation._stain(planes(tile), factors)
    rows = stain_matrix()
    for i in range(4):
        density = np.moveaxis(optical_density(tile[i]), 0, -1).astype(float)
        amounts = density @ np.linalg.inv(rows) * [*factors[i].tolist(), 1.0]
        wanted = np.moveaxis(10.0 ** -(amounts @ rows), -1, 0)
        np.testing.assert_allclose(found[i].numpy(), wanted, atol=1e-4)
    torch.testing.assert_close(found[2], planes(tile)[2], atol=1e-5, rtol=0)


def test_blur_against_scipy() -> None:
    from scipy.ndimage import gaussian_filter

    images = np.random.default_rng(0).uniform(size=(3, 3, 20, 20)).astype(np.float32)
    sigma = torch.tensor([0.5, 1.0, 2.0])
    found = augmentation._blur(torch.from_numpy(images), sigma).numpy()
    for i, s in enumerate(sigma.tolist()):
        wanted = gaussian_filter(images[i], (0, s, s), mode="nearest", radius=(0, 6, 6))
        np.testing.assert_allclose(found[i], wanted, atol=1e-5)


def test_erased_rectangles_are_black_and_of_the_drawn_size() -> None:
    white = np.full((200, 36, 36, 3), 255, np.uint8)
    share = (views(white, replace(STILL, erase=1.0))[:, 0] == 0).float().mean(dim=(1, 2))
    assert 0.02 < float(share.min()) < float(share.max()) < 0.2
    assert abs(float(share.mean()) - 0.1) < 0.01
    assert float(views(white, STILL).min()) == 1.0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scale": (0.6, 1.2)}, "`Augmentation.scale` is a fraction of the area, at most 1"),
        ({"scale": 0.6}, "`Augmentation.scale` must be two positive numbers, the smaller first, got 0.6"),
        ({"blur_px": (2.0, 0.1)}, "the smaller first"),
        ({"jitter": 1.5}, "`Augmentation.jitter` must be a number, at least 0 and at most 1, got 1.5"),
        ({"hue": 0.7}, "at most 0.5"),
        ({"stain": float("nan")}, "`Augmentation.stain` must be a number, at least 0, got nan"),
    ],
)
def test_what_a_recipe_refuses(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Augmentation(**wrong)


def test_a_recipe_survives_json() -> None:
    import json

    recipe = Augmentation(stain=0.3, scale=(0.5, 0.9))
    assert Augmentation(**json.loads(json.dumps(recipe.to_dict()))) == recipe

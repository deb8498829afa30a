"""Random patches of slides: how many, how processes share them, and what lies in their regions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from stpred.data._readers.canvas import Canvas
from stpred.data._readers.pixels import SlidePixelGrid
from stpred.models import Batch
from stpred.models.parts.pixel_grid import View, Window
from stpred.models.xfuse.sample import PatchSample
from stpred.regions import TissueMask
from stpred.tiles import Level, Pyramid
from stpred.training._patches import LOG_SCALE, SHEAR, PatchSampler, random_affine

MPP, RADIUS, EDGE, N_GENES = 8.0, 4.0, 48, 3


class Recorded:
    """A scene that remembers which patches were asked for."""

    def __init__(self, scene: SlidePixelGrid) -> None:
        self.scene, self.seen = scene, list[tuple[NDArray[np.float64], View]]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.scene, name)

    def view(self, affine: NDArray[np.float64], shape: tuple[int, int]) -> View:
        view = self.scene.view(affine, shape)
        self.seen.append((affine, view))
        return view


def slide(name: str, *, height: int = 100, width: int = 130, measured: bool = True, seed: int = 0) -> Batch:
    """A slide of noise whose left 40 pixels are glass, with discs on a square grid that goes over its border."""
    rng = np.random.default_rng(seed)
    image = rng.integers(100, 220, (3, height, width), dtype=np.uint8)
    canvas = Canvas(Pyramid([Level(image, np.diag([MPP, MPP, 1.0]))]), MPP)
    mask = np.broadcast_to(np.arange(width) >= 40, (height, width))  # pixels of the mask are 8 um wide, too
    canvas.__dict__["tissue"] = TissueMask(mask, np.zeros(2))
    x, y = np.meshgrid(np.arange(33.0, width - 5, 13), np.arange(7.0, height - 5, 13))
    at = np.stack([x.ravel(), y.ravel()], axis=1) * MPP

    def says(target: NDArray[np.int64], xy: NDArray[np.float64]) -> NDArray[np.bool_]:
        return np.asarray(np.square(xy - at[target]).sum(axis=1) <= (RADIUS * MPP) ** 2, dtype=bool)

    scene = SlidePixelGrid(canvas, at - RADIUS * MPP, at + RADIUS * MPP, at, says, canvas.bounds, EDGE)
    y_ = np.arange(1, len(at) + 1, dtype=np.float32)[:, None] * [1, 100, 10_000] if measured else None  # tells rows
    rows = np.arange(len(at))
    return Batch(
        name, np.zeros((len(at), 1), np.float32), rows, rows, at, pixel_grid=Recorded(scene),
        y=None if y_ is None else y_.astype(np.float32),
        measured=np.array([True, True, False]) if name == "b" else None,
    )  # fmt: skip


def feed(batches: list[Batch], *, batch_size: int = 4, rank: int = 0, world: int = 1) -> PatchSampler:
    model = SimpleNamespace(n_genes=N_GENES, config=SimpleNamespace(batch_size=batch_size))
    fabric = SimpleNamespace(global_rank=rank, world_size=world, device=torch.device("cpu"))
    return PatchSampler(batches, model, fabric=fabric)


def epoch(of: PatchSampler, *, seed: int = 0) -> list[PatchSample]:
    return [sample for sample, _ in of.epoch(np.random.default_rng(seed))]


def pictures(samples: list[PatchSample]) -> list[bytes]:
    return [image.numpy().tobytes() for s in samples for image in s.image]


def test_epoch_has_as_many_patches_as_cover_each_slide() -> None:
    batches = [slide("a"), slide("b", height=96, width=144, seed=1), slide("c", height=49, width=60, measured=False)]
    found = feed(batches)
    want = {"a": 3 * 3, "b": 2 * 3, "c": 2 * 2}
    assert found.n_patches == want
    samples = epoch(found)
    slides = [s for sample in samples for s in sample.slides]
    assert {n: slides.count(n) for n in want} == want
    assert [len(s.slides) for s in samples] == [4, 4, 4, 4, 3]
    assert all(s.n_patches == want for s in samples)
    assert slides != sorted(slides)  # in no order
    for sample in samples:
        assert sample.image.shape == (len(sample.slides), 3, EDGE, EDGE)
        assert sample.image.dtype == torch.float32
        assert float(sample.image.abs().max()) <= 0.9 + 1e-5
        want_known = torch.tensor([[True, True, n != "b"] for n in sample.slides])
        assert torch.equal(sample.measured, want_known)


def test_two_processes_share_the_patches_of_one() -> None:
    batches = [slide("a"), slide("b", seed=1)]  # 18 patches
    alone = epoch(feed(batches, batch_size=6))
    parts = [epoch(feed(batches, batch_size=3, rank=r, world=2)) for r in range(2)]
    assert len(parts[0]) == len(parts[1]) == len(alone) == 3
    first, second = map(pictures, parts)
    assert not set(first) & set(second)
    assert sorted(first + second) == sorted(pictures(alone))
    for whole, one, two in zip(alone, *parts, strict=True):
        assert len(one.slides) == len(two.slides) == 3
        key = sorted(map(tuple, whole.counts.tolist()))
        assert sorted(map(tuple, torch.cat([one.counts, two.counts]).tolist())) == key


@pytest.mark.parametrize("world", [2, 4, 5])
def test_processes_make_as_many_steps_as_each_other(world: int) -> None:
    batches = [slide("a")]  # 9 patches
    parts = [epoch(feed(batches, batch_size=1, rank=r, world=world)) for r in range(world)]
    assert {len(p) for p in parts} == {-(-9 // world)}
    assert all(len(s.slides) == 1 for p in parts for s in p)
    assert len({p for part in parts for p in pictures(part)}) == 9  # none is lost


def test_same_state_of_the_generator_gives_the_same_samples() -> None:
    batches = [slide("a"), slide("b", seed=1)]
    of = feed(batches)
    one, two, other = epoch(of, seed=3), epoch(of, seed=3), epoch(of, seed=4)
    for a, b in zip(one, two, strict=True):
        for name in ("image", "on_image", "pixel", "region", "owner", "counts", "measured"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
        assert a.slides == b.slides
    assert not set(pictures(one)) & set(pictures(other))
    generator = np.random.default_rng(3)
    epochs = [[s for s, _ in of.epoch(generator)] for _ in range(2)]
    assert pictures(epochs[0]) == pictures(one)
    assert not set(pictures(epochs[0])) & set(pictures(epochs[1]))


def test_regions_are_complete_targets_with_their_counts_or_glass_without_any() -> None:
    batches = [slide("a"), slide("b", seed=1), slide("c", measured=False)]
    scenes = {b.slide: b.pixel_grid for b in batches}
    seen = dict.fromkeys(scenes, 0)
    n_targets = n_glass = 0
    reach = {}
    for name, scene in scenes.items():
        centres: Any = scene.centres  # type: ignore[union-attr]
        apart = np.sort(np.linalg.norm(centres[:, None] - centres, axis=2), axis=1)[:, 1]
        reach[name] = 1.5 * np.median(apart) / MPP
    for sample in epoch(feed(batches)):
        size = sample.image.shape[2] * sample.image.shape[3]
        region, pixel, owner = sample.region.numpy(), sample.pixel.numpy(), sample.owner.numpy()
        assert (np.diff(region) >= 0).all()
        assert set(region) == set(range(len(owner)))
        assert len(set(pixel)) == len(pixel)
        np.testing.assert_array_equal(pixel // size, owner[region])
        for k, name in enumerate(sample.slides):
            affine, view = scenes[name].seen[seen[name]]  # type: ignore[union-attr]
            seen[name] += 1
            np.testing.assert_array_equal(sample.on_image[k], view.on_image)
            if name == "c":  # nothing but an image
                assert k not in owner
                continue
            y, x = np.divmod(np.arange(size), EDGE)
            um = np.stack([x + 0.5, y + 0.5], axis=1) @ affine[:, :2].T + affine[:, 2]
            away = np.linalg.norm(um[:, None] - scenes[name].centres, axis=2) / MPP  # type: ignore[union-attr]
            glass = (um[:, 0] < 40 * MPP) & (um >= 0).all(axis=1) & (um <= [130 * MPP, 100 * MPP]).all(axis=1)
            mine = np.flatnonzero(owner == k)
            for r in mine.tolist():
                inside = pixel[region == r] - k * size
                counts = sample.counts[r].tolist()
                if counts[0] > 0:
                    n_targets += 1
                    row = int(counts[0]) - 1
                    assert counts == [row + 1, (row + 1) * 100, (row + 1) * 10_000]
                    assert set(np.flatnonzero(away[:, row] < RADIUS - 0.01)) <= set(inside.tolist())
                    assert (away[inside, row] < RADIUS + 0.01).all()
                    edges = np.stack([x[inside], y[inside]])
                    assert edges.min() > 0
                    assert edges.max() < EDGE - 1
                else:
                    n_glass += 1
                    assert counts == [0, 0, 0]
                    assert r == mine[-1]
                    assert glass[inside].all()
                    assert (away[inside] > RADIUS - 0.01).all()
                    assert away[inside].min() > reach[name] - 0.01  # pale tissue among spots is no glass
                    assert len(inside) >= (glass & (away.min(axis=1) > reach[name] + 0.01)).sum()
    assert n_targets > 50
    assert n_glass >= 3


def test_patches_shrink_to_the_smallest_slide_of_a_step() -> None:
    batches = [slide("a", height=30, width=130)]
    of = feed(batches)
    assert of.n_patches == {"a": 3}
    assert {s.image.shape[2:] for s in epoch(of)} == {(30, 30)}
    mixed = feed([slide("a", height=30, width=130), slide("b")], batch_size=2)
    for sample in epoch(mixed):
        assert sample.image.shape[2] == (30 if "a" in sample.slides else EDGE)


def test_middle_of_patches_is_spread_over_the_frame() -> None:
    batch = slide("a")
    scene: Any = batch.pixel_grid
    object.__setattr__(scene.scene, "frame", Window(20, 30, 70, 90))
    of = feed([batch], batch_size=8)
    for seed in range(12):
        epoch(of, seed=seed)
    middle = np.array([affine[:, :2] @ [EDGE / 2, EDGE / 2] + affine[:, 2] for affine, _ in scene.seen]) / MPP
    low, high = np.array([30 + 24, 20 + 24]), np.array([120 - 24, 90 - 24])
    assert (middle > low - 1e-6).all()
    assert (middle < high + 1e-6).all()
    np.testing.assert_allclose(middle.min(axis=0), low, atol=5)
    np.testing.assert_allclose(middle.max(axis=0), high, atol=5)


def test_maps_turn_any_way_and_mirror_half_the_time_but_hardly_stretch() -> None:
    rng = np.random.default_rng(0)
    maps = np.stack([random_affine(rng) for _ in range(2000)])
    sign = np.sign(np.linalg.det(maps))
    assert 0.45 < (sign > 0).mean() < 0.55
    stretch = np.linalg.svd(maps, compute_uv=False)
    bound = np.tan(np.radians(SHEAR))
    assert stretch.max() <= np.exp(LOG_SCALE) * (1 + bound)
    assert stretch.min() >= np.exp(-LOG_SCALE) * (1 - bound)
    assert stretch.max() > 1.15
    turn = np.arctan2(maps[:, 1, 0], maps[:, 0, 0])
    quarters = np.bincount(((turn + np.pi) / (np.pi / 2)).astype(int).clip(0, 3), minlength=4) / 2000
    np.testing.assert_allclose(quarters, 0.25, atol=0.04)

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from scipy.spatial import cKDTree

import stpred as st
from stpred import nuclei
from stpred._core.checks import InputError
from stpred._image.labels import outlines
from stpred.nuclei import _levels, _network, _parting
from stpred.tiles import Level, Pyramid


def pyramid_of(image: NDArray, *, mpp: float = 0.5) -> Pyramid:
    array = da.from_array(np.moveaxis(image, -1, 0), chunks=(3, 256, 256))
    return Pyramid([Level(array, np.diag([mpp, mpp, 1.0]))])


def centers(frame: Any) -> NDArray:
    return np.column_stack([frame.centroid.x, frame.centroid.y])


@pytest.fixture(scope="module")
def tissue() -> Any:
    return st.datasets.make_tissue(size_um=(300, 300), mpp=0.5, seed=11, donor=4, n_genes=2)


def f1_of_centers(true: NDArray, found: NDArray, *, within_um: float) -> float:
    ahead, back = cKDTree(found).query(true)[0] < within_um, cKDTree(true).query(found)[0] < within_um
    return (
        2 * ahead.sum() / (len(true) + len(found))
        if ahead.sum() <= back.sum()
        else 2 * back.sum() / (len(true) + len(found))
    )


def test_it_finds_the_synthetic_nuclei_as_the_builtin_does(tissue: Any) -> None:
    true = tissue.cells[["x_um", "y_um"]].to_numpy()
    found = {m: centers(nuclei.detect(pyramid_of(tissue.image), method=m)) for m in ("network", "builtin")}
    score = {m: f1_of_centers(true, xy, within_um=3) for m, xy in found.items()}
    assert nuclei.names()[:2] == ["network", "builtin"]
    assert score["network"] > max(0.9, score["builtin"] - 0.02)


def test_neither_chunks_nor_threads_show(tissue: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    whole = nuclei.detect(pyramid_of(tissue.image), method="network")
    for chunk_um, cores in ((101.0, 1), (190.0, 3)):
        monkeypatch.setattr("stpred.nuclei._detect.n_threads", lambda most=8, n=cores: n)
        other = nuclei.detect(pyramid_of(tissue.image), method="network", chunk_um=chunk_um)
        assert len(other) == len(whole)
        assert cKDTree(centers(whole)).query(centers(other))[0].max() < 0.5
    assert torch.get_num_threads() == before


def test_glass_and_an_even_field_have_no_nuclei() -> None:
    rng = np.random.default_rng(0)
    for colour in ((241, 241, 243), (205, 150, 190)):
        even = (np.array(colour) + rng.normal(0, 2, (400, 500, 3))).clip(0, 255).astype(np.uint8)
        assert len(nuclei.detect(pyramid_of(even), method="network")) == 0


def planes_of(*discs: tuple[float, float, float], shape: tuple[int, int] = (64, 80)) -> NDArray[np.float32]:
    """Planes of a network that makes no mistake, for discs at y, x of a radius; pixels belong to the nearest disc."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    away = np.stack([np.hypot(y - cy, x - cx) / r for cy, cx, r in discs])
    own, nearest = away.argmin(axis=0), away.min(axis=0)
    cy, cx, _ = np.array(discs).T
    inside = nearest < 1
    depth = np.where(inside, 1 - nearest, 0)
    planes = [np.where(inside, 0.95, 0.02), depth, (cx[own] - x) / 8 * inside, (cy[own] - y) / 8 * inside]
    return np.stack(planes).astype(np.float32)


def test_touching_nuclei_are_parted_and_a_long_one_is_not() -> None:
    two = planes_of((30, 25, 10), (30, 42, 10))
    labels = _parting.part(two, offset_px=8, area_px=(20, 2000))
    assert labels.max() == 2
    assert ndimage.label(two[0] > 0.5)[1] == 1
    assert labels[30, 25] != labels[30, 42]
    y, x = np.mgrid[:64, :80]
    long = np.hypot((y - 32) / 5, (x - 40) / 25)
    inside = long < 1
    planes = np.stack([inside * 0.95, (1 - long) * inside, (40 - x) / 8 * inside, (32 - y) / 8 * inside])
    assert _parting.part(planes.astype(np.float32), offset_px=8, area_px=(20, 2000)).max() == 1


def test_parts_are_within_the_bounds_and_sure_enough() -> None:
    planes = planes_of((15, 15, 4), (15, 50, 10), (45, 30, 8))
    assert _parting.part(planes, offset_px=8, area_px=(60, 250)).max() == 1
    planes[0, 30:, :50] *= 0.55  # above the threshold of a pixel, but nowhere sure
    assert _parting.part(planes, offset_px=8, area_px=(20, 2000)).max() == 2
    nothing = np.zeros((4, 40, 40), np.float32)
    assert _parting.part(nothing, offset_px=8, area_px=(20, 2000)).max() == 0


def test_folded_weights_compute_the_same() -> None:
    torch.manual_seed(0)
    net = _network.NucleusNet((4, 6), norm=True)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    plain = _network.NucleusNet((4, 6))
    plain.load_state_dict(_network.folded(net.eval()))
    x = torch.randn(1, 3, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(plain.eval()(x), net(x), rtol=1e-4, atol=1e-4)


def test_a_field_of_any_size_keeps_it_and_its_corner_decides_nothing() -> None:
    net = _network.load("cpu")
    densities = np.random.default_rng(1).normal(0.3, 0.5, (150, 171, 3)).astype(np.float32)
    whole = _network.planes(net, densities)
    assert whole.shape == (4, 150, 171)
    assert ((whole[0] >= 0) & (whole[0] <= 1)).all()
    part = _network.planes(net, densities[:, 56:])  # a multiple of the stride
    np.testing.assert_allclose(part[:, :, 56:], whole[:, :, 112:], atol=2e-2)


def test_any_stain_looks_alike_after_its_levels_are_measured(tissue: Any) -> None:
    density = -np.log10((tissue.image.astype(np.float64) + 1) / 256)
    seen = []
    for times, shift in ((1.0, 0.0), (0.6, 0.15)):
        rgb = (256 * 10 ** -(density * times * [1.0, 0.8, 1.2] + shift) - 1).round().clip(0, 255).astype(np.uint8)
        levels = _levels.measure_levels([rgb])
        seen.append(_levels.normalised(rgb, levels))
        dark = tissue.image[..., 0] < np.quantile(tissue.image[..., 0], 0.05)
        assert seen[-1][dark].mean() > 0.8
        half = np.zeros(rgb.shape[:2], bool)
        half[:, :300] = True
        blank = np.where(half[..., None], rgb, np.uint8(0))
        one, other = _levels.measure_levels([blank], [half]), _levels.measure_levels([rgb[:, :300]])
        np.testing.assert_allclose(one.nuclei, other.nuclei, rtol=0.05)  # smoothing looks across the border
        np.testing.assert_allclose(one.ground, other.ground, rtol=0.05)
    assert np.abs(seen[0] - seen[1]).mean() < 0.1
    even = np.full((50, 50, 3), 200, np.uint8)
    assert np.isfinite(_levels.normalised(even, _levels.measure_levels([even]))).all()


def test_weights_are_those_of_their_card(tmp_path: Path) -> None:
    card = json.loads((_network.WEIGHTS / "nuclei.json").read_text())
    assert card["parameters"] <= 1_500_000
    assert (_network.WEIGHTS / "nuclei.safetensors").stat().st_size <= 3_000_000
    assert _network.load("cpu") is _network.load("cpu")
    broken = shutil.copytree(_network.WEIGHTS, tmp_path / "broken")
    path = broken / "nuclei.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0\1")
    with pytest.raises(InputError, match=r"are not those of their card \(sha256 .*install stpred anew, or use method="):
        _network.load("cpu", broken)


def test_lazyslide_models_is_not_imported_for_what_stpred_has_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    from stpred.nuclei import _methods

    monkeypatch.setattr(_methods, "names", lambda: pytest.fail("all names were asked for"))
    for method in (nuclei.NETWORK, nuclei.BUILTIN):
        _methods.check(method)


def traced_one_by_one(mask: NDArray[np.bool_]) -> float:
    """Area within the outline of a mask without smoothing: that of its first piece with holes filled."""
    pieces = ndimage.label(mask)[0]
    first = pieces == pieces[np.unravel_index(np.flatnonzero(mask)[0], mask.shape)]
    return float(ndimage.binary_fill_holes(first).sum())


def test_outlines_follow_the_first_piece_of_every_label() -> None:
    import shapely

    rng = np.random.default_rng(3)
    labels = ndimage.label(ndimage.gaussian_filter(rng.normal(size=(120, 130)), 4) > 0.01)[0].astype(np.int32)
    labels[rng.random(labels.shape) < 0.004] = 0  # holes
    labels[labels == 3] = 0
    xy, begin = outlines(labels)
    assert len(begin) == labels.max() + 1
    assert begin[2] == begin[3]
    for number in np.unique(labels[labels > 0]):
        true = traced_one_by_one(labels == number)
        if true > 60:
            ring = shapely.Polygon(xy[begin[number - 1] : begin[number]])
            assert ring.area == pytest.approx(true, rel=0.12)


def test_several_threads_load_one_network() -> None:
    _network.load.cache_clear()
    seen: list[Any] = []
    threads = [threading.Thread(target=lambda: seen.append(_network.load("cpu"))) for _ in range(3)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(seen) == 3
    assert all(torch.equal(n.head.weight, seen[0].head.weight) for n in seen)


@pytest.mark.realdata
def test_beats_the_builtin_on_annotated_fields(real_data: Path) -> None:
    """Fields that it was trained on: a check that the path keeps what training reached, not that it generalises."""
    paths = sorted((real_data / "nuclei").glob("*_image.png"))[::10]
    score: dict[str, list[float]] = {"network": [], "builtin": []}
    for path in paths:
        true = np.array(Image.open(str(path).replace("_image", "_label"))).astype(np.int64)
        mpp = 0.5 if np.median(np.bincount(true.ravel())[1:]) < 320 else 0.25
        middles = ndimage.center_of_mass(true > 0, true, np.unique(true)[1:])
        xy = (np.array(middles)[:, ::-1] + 0.5) * mpp
        for method, values in score.items():
            found = nuclei.detect(pyramid_of(np.asarray(Image.open(path).convert("RGB")), mpp=mpp), method=method)
            values.append(f1_of_centers(xy, centers(found), within_um=3))
    assert np.mean(score["network"]) > np.mean(score["builtin"]) + 0.02

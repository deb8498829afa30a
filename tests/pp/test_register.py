"""Registration: the true placement is found from the pictures alone, and a wrong pair is refused."""

from __future__ import annotations

import json
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy.ndimage import affine_transform, gaussian_filter
from spatialdata import SpatialData, read_zarr
from spatialdata.models import Image2DModel, PointsModel, ShapesModel
from spatialdata.transformations import Identity, Scale, get_transformation, set_transformation

import stpred as st
from stpred import InputError
from stpred._core.elements import affine_to, apply_affine, scale0
from stpred._image.registration import Level, from_he, from_landmarks, from_locations
from stpred.testing import copy_slide

SIZE = 600.0


@pytest.fixture(scope="module")
def slide() -> SpatialData:
    return st.datasets.toy(size_um=(SIZE, 0.9 * SIZE), mpp=1.0, n_genes=12)


def scanned(slide: SpatialData, *, angle: float, mirror: bool, scale: float, missing: float, seed: int) -> Any:
    """Return the H&E image as another scanner shows it, turned and cut, and the (3, 3) affine to micrometres."""
    rng = np.random.default_rng(seed)
    pixels = np.moveaxis(np.asarray(scale0(slide.images["he"]).data), 0, -1).astype(float)
    glass = np.quantile(pixels.reshape(-1, 3), 0.98, axis=0)
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    linear = np.array([[c, -s], [s, c]]) @ np.diag([-1.0 if mirror else 1.0, 1.0]) * scale
    height, width = pixels.shape[:2]
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]]) @ np.linalg.inv(linear).T
    low, high = corners.min(axis=0) - 40, corners.max(axis=0) + 40
    truth = np.eye(3)
    truth[:2, :2], truth[:2, 2] = linear, linear @ low
    first = (linear @ [0.5, 0.5] + truth[:2, 2] - 0.5)[::-1]
    shape = tuple(np.ceil(high - low).astype(int)[::-1])
    out = np.stack(
        [affine_transform(pixels[..., k], linear[::-1, ::-1], first, shape, order=1, cval=glass[k]) for k in range(3)],
        axis=-1,
    )
    if missing:
        along = np.cos(seed) * np.arange(shape[1])[None] + np.sin(seed) * np.arange(shape[0])[:, None]
        along = along + 200 * gaussian_filter(rng.normal(size=shape), 30)
        out[along > np.quantile(along[out.mean(axis=-1) < 225], 1 - missing)] = glass
    out = 0.9 * out + rng.normal(0, 2, out.shape)  # another exposure, and noise
    return np.clip(out, 0, 255).round().astype(np.uint8), truth


def with_scan(slide: SpatialData, pixels: np.ndarray, *, key: str = "scan") -> SpatialData:
    """Return an object with the scan, which lies nowhere in micrometres, in place of the H&E image."""
    slide = copy_slide(slide)
    del slide.images["he"]
    slide.images[key] = Image2DModel.parse(
        np.moveaxis(pixels, -1, 0), dims=("c", "y", "x"), transformations={"global": Identity()}
    )
    return slide


def error_um(found: np.ndarray, truth: np.ndarray, slide: SpatialData) -> float:
    """Return the median error over the tissue, where its cells are."""
    xy = np.column_stack([slide.shapes["cells"].centroid.x, slide.shapes["cells"].centroid.y])
    at = apply_affine(np.linalg.inv(truth), xy)
    return float(np.median(np.linalg.norm(apply_affine(found, at) - xy, axis=1)))


@pytest.fixture(scope="module")
def case(slide: SpatialData) -> tuple[SpatialData, np.ndarray, Any]:
    """A turned, mirrored, scaled scan without a fifth of the tissue, registered to the cells."""
    pixels, truth = scanned(slide, angle=97, mirror=True, scale=1.2, missing=0.2, seed=1)
    holder = with_scan(slide, pixels)
    return holder, truth, st.pp.register(holder, "scan", "cells", mpp=1.0)


def test_the_true_placement_is_found_and_written(case: Any) -> None:
    holder, truth, found = case
    assert error_um(found.affine, truth, holder) < 5
    assert found.convincing
    assert found.mirrored
    assert found.mpp == pytest.approx(1.2, rel=0.01)
    assert found.scale == pytest.approx(1.2, rel=0.01)
    assert found.score > 4 * max(found.null)
    assert found.residual_um < 5
    np.testing.assert_allclose(affine_to(holder.images["scan"], "um"), found.affine)
    assert isinstance(get_transformation(holder.images["scan"], to_coordinate_system="global"), Identity)
    kept = json.loads(holder.attrs["stpred"]["scan:registration"])
    np.testing.assert_allclose(kept["affine"], found.affine)
    assert kept["fixed"] == "cells"
    assert kept["convincing"] is True


def test_the_place_survives_the_store_and_is_predicted_on(case: Any, tmp_path: Any) -> None:
    holder, _, found = case
    holder.write(tmp_path / "slide.zarr")
    again = read_zarr(tmp_path / "slide.zarr")
    np.testing.assert_allclose(affine_to(again.images["scan"], "um"), found.affine)
    assert json.loads(again.attrs["stpred"]["scan:registration"])["z"] == pytest.approx(found.z)
    assert st.pp.qc(again, shapes_key="cells", inplace=False).loc["pass", "n"] > 0


def test_the_picture_shows_both_sides_and_the_null(case: Any) -> None:
    axes = st.pl.registration(case[0])
    assert len(axes) == 3
    assert len(axes[2].lines[0].get_xdata()) == len(case[2].null)
    plt.close("all")


def test_a_wrong_pair_is_refused_and_left_alone(slide: SpatialData) -> None:
    other = st.datasets.toy(size_um=(SIZE, 0.9 * SIZE), mpp=1.0, n_genes=12, donor=1, seed=7)
    pixels, _ = scanned(other, angle=4, mirror=False, scale=1.0, missing=0.0, seed=2)
    holder = with_scan(slide, pixels)
    with pytest.raises(InputError, match="agree no better than wrong placements"):
        st.pp.register(holder, "scan", "cells", mpp=1.0)
    assert affine_to(holder.images["scan"], "um") is None
    assert "stpred" not in holder.attrs
    corners = np.array([[0.0, 0], [SIZE, 0], [0, SIZE]])
    with pytest.warns(UserWarning, match="placed all the same"):
        found = st.pp.register(holder, "scan", "cells", landmarks=(corners, corners), check=False, inplace=False)
    assert not found.convincing
    assert affine_to(holder.images["scan"], "um") is None


@pytest.mark.slow
def test_without_a_resolution_the_tissue_gives_it(slide: SpatialData) -> None:
    pixels, truth = scanned(slide, angle=188, mirror=False, scale=0.85, missing=0.15, seed=3)
    found = st.pp.register(with_scan(slide, pixels), "scan", "cells")
    assert error_um(found.affine, truth, slide) < 5
    assert np.isnan(found.scale)


def dapi_like(slide: SpatialData, *, mpp: float = 1.5) -> np.ndarray:
    """Return a picture in which nuclei are bright and all else is dim."""
    rng = np.random.default_rng(5)
    points = np.column_stack([slide.shapes["cells"].centroid.x, slide.shapes["cells"].centroid.y])
    out = np.zeros((int(0.9 * SIZE / mpp), int(SIZE / mpp)))
    at = np.clip((points / mpp).astype(int), 0, np.array(out.shape[::-1]) - 1)
    np.add.at(out, (at[:, 1], at[:, 0]), rng.uniform(0.5, 1.5, len(at)))
    return (60 + 6000 * gaussian_filter(out, 2.2 / mpp) + rng.normal(0, 10, out.shape)).clip(0).astype(np.uint16)


def test_fluorescence_is_registered_by_its_stain_of_nuclei(slide: SpatialData) -> None:
    pixels, truth = scanned(slide, angle=271, mirror=False, scale=1.1, missing=0.0, seed=4)
    holder = with_scan(slide, pixels)
    nuclei = dapi_like(slide)
    other = np.random.default_rng(0).integers(0, 500, nuclei.shape).astype(np.uint16)
    holder.images["morphology"] = Image2DModel.parse(
        np.stack([other, nuclei]),
        dims=("c", "y", "x"),
        c_coords=["18S", "DAPI"],
        transformations={"um": Scale([1.5, 1.5], axes=("x", "y"))},
    )
    found = st.pp.register(holder, "scan", "morphology", mpp=1.0)
    assert error_um(found.affine, truth, slide) < 5
    with pytest.raises(InputError, match=r"No channel of Image 'morphology' named 'red' \(`channel`\)"):
        st.pp.register(holder, "scan", "morphology", mpp=1.0, channel="red")


def test_another_h_and_e_image_gives_a_frame_of_its_own(slide: SpatialData) -> None:
    pixels, truth = scanned(slide, angle=-12, mirror=False, scale=0.9, missing=0.2, seed=5)
    holder = with_scan(slide, pixels)
    holder.images["he"] = slide.images["he"]
    places = np.array([[100.0, 90], [480, 120], [300, 430]])
    found = st.pp.register(holder, "scan", "he", landmarks=(apply_affine(np.linalg.inv(truth), places), places))
    assert error_um(found.affine, truth, slide) < 5
    assert found.coordinate_system == "um-scan"
    assert affine_to(holder.images["scan"], "um") is None  # one H&E image to a frame
    np.testing.assert_allclose(affine_to(holder.shapes["cells"], "um-scan"), affine_to(holder.shapes["cells"], "um"))
    assert st.pp.qc(holder, shapes_key="cells", coordinate_system="um-scan", inplace=False).loc["pass", "n"] > 0


def test_landmarks_begin_the_search(slide: SpatialData) -> None:
    pixels, truth = scanned(slide, angle=140, mirror=True, scale=1.6, missing=0.1, seed=6)  # no scale that is tried
    holder = with_scan(slide, pixels)
    places = np.array([[100.0, 90], [480, 120], [300, 430]])
    own = apply_affine(np.linalg.inv(truth), places) + np.array([[6.0, -4], [-5, 5], [3, 7]])
    found = st.pp.register(holder, "scan", "cells", landmarks=(own, places))
    assert error_um(found.affine, truth, slide) < 4  # better than by the landmarks alone
    assert found.n_landmarks == 3
    assert 4 < found.landmark_error_um < 15


def test_landmarks_alone_give_the_map_that_made_them() -> None:
    rng = np.random.default_rng(0)
    for mirror in (1.0, -1.0):
        for n, stretch in ((3, 0.0), (8, 0.01)):
            linear = np.array([[0.3, -1.1], [1.1, 0.3]]) @ np.diag([mirror * (1 + stretch), 1])
            points = rng.uniform(0, 1000, (n, 2))
            affine = from_landmarks(points, points @ linear.T + [50, -20])
            np.testing.assert_allclose(affine[:2], np.column_stack([linear, [50, -20]]), atol=1e-8)


def test_the_slope_of_the_score_is_that_of_the_difference(slide: SpatialData) -> None:
    pixels = np.moveaxis(np.asarray(scale0(slide.images["he"]).data), 0, -1)
    xy = np.column_stack([slide.shapes["cells"].centroid.x, slide.shapes["cells"].centroid.y])
    level = Level.of(from_he(pixels, mpp=1.0, px_um=2.0), from_locations(xy, px_um=2.0), 8.0)
    back = np.array([[1.01, 0.02, -2.0], [-0.01, 0.99, 4.0], [0, 0, 1]])
    slope = level.score(back, slope=True)[1]
    for i in range(2):
        for j, step in enumerate((2e-3, 2e-3, 0.5)):
            ahead, behind = back.copy(), back.copy()
            ahead[i, j] += step
            behind[i, j] -= step
            difference = (level.score(ahead)[0] - level.score(behind)[0]) / (2 * step)
            assert slope[i, j] == pytest.approx(difference, rel=0.25, abs=1e-3 if j == 2 else 0.15)


def test_every_bad_input_has_its_sentence(slide: SpatialData) -> None:
    holder = with_scan(slide, np.full((300, 300, 3), 240, np.uint8))
    holder.images["grey"] = Image2DModel.parse(np.zeros((1, 20, 20), np.uint8), dims=("c", "y", "x"))
    holder.images["three"] = Image2DModel.parse(
        np.zeros((2, 20, 20), np.uint16), dims=("c", "y", "x"), c_coords=["a", "b"], transformations={"um": Identity()}
    )
    holder.shapes["few"] = holder.shapes["cells"].iloc[:5]
    lost = holder.shapes["cells"].iloc[:50].copy()
    set_transformation(lost, {"elsewhere": Identity()}, set_all=True)
    holder.shapes["lost"] = lost
    lattice = np.stack(np.meshgrid(np.arange(20.0), np.arange(20.0)), axis=-1).reshape(-1, 2) * 8
    holder.shapes["bare"] = ShapesModel.parse(lattice, geometry=0, radius=3.0, transformations={"um": Identity()})
    holder.points["lattice"] = PointsModel.parse(lattice, transformations={"um": Identity()})
    line = np.array([[0.0, 0], [1, 1], [2, 2]])
    good = np.array([[0.0, 0], [100, 0], [0, 100]])
    cases: list[tuple[str, str, dict[str, Any], str]] = [
        ("scam", "cells", {}, r"No image named 'scam' \(`moving`\)"),
        ("grey", "cells", {}, "'grey' cannot be used as H&E"),
        ("scan", "scan", {}, "`moving` and `fixed` are both 'scan'"),
        ("scan", "cell", {}, r"No image, shapes or points named 'cell' \(`fixed`\)"),
        ("scan", "lost", {}, "'lost' is not placed in the coordinate system 'um'"),
        ("scan", "few", {}, "Shapes 'few' are 5, and at least 30"),
        ("scan", "bare", {}, "lie on a lattice"),
        ("scan", "lattice", {}, "lie on a lattice, so their density says nothing"),
        ("scan", "three", {}, r"has 2 channels, \['a', 'b'\], and none of them"),
        ("scan", "cells", {"channel": "DAPI"}, "`channel` is of fluorescence images"),
        ("scan", "cells", {"table_key": "cells_counts"}, "`table_key` is of spots or bins on a lattice"),
        ("scan", "three", {"table_key": "cells_counts"}, "`table_key` and `layer` are of spots and bins"),
        ("scan", "cells", {"mpp": 0}, "`mpp` must be a positive number"),
        ("scan", "cells", {"mpp": 5000.0}, r"`mpp` must be 0\.01 to 100"),
        ("scan", "cells", {"mpp": 1.0}, "Image 'scan' shows no tissue"),
        ("scan", "cells", {}, "Image 'scan' shows no tissue"),
        ("scan", "cells", {"landmarks": 5}, "`landmarks` must be two lists"),
        ("scan", "cells", {"landmarks": (good, good[:2])}, r"two arrays of shape \(n, 2\), got \(3, 2\) and \(2, 2\)"),
        ("scan", "cells", {"landmarks": (good[:2], good[:2])}, "3 pairs or more of finite numbers, got 2"),
        ("scan", "cells", {"landmarks": (line, good)}, "lie on one line"),
    ]
    for moving, fixed, options, said in cases:
        with pytest.raises(InputError, match=said):
            st.pp.register(holder, moving, fixed, **options)
    with pytest.raises(InputError, match="No image of the object was registered"):
        st.pl.registration(holder)
    with pytest.raises(InputError, match="Image 'scan' was not registered"):
        st.pl.registration(holder, "scan")
    assert affine_to(holder.images["scan"], "um") is None

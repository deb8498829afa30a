from __future__ import annotations

import json
import re
import warnings
from dataclasses import replace
from typing import Any

import dask.array as da
import numpy as np
import pytest
from spatialdata import SpatialData, read_zarr
from spatialdata.models import Image2DModel
from spatialdata.transformations import Identity, Scale, get_transformation

import stpred as st
from stpred import InputError
from stpred._core.elements import find_image, scale0
from stpred._core.tables import read_provenance

METHODS = ("macenko", "reinhard", "moments")


def toy(donor: int) -> Any:
    return st.datasets.toy(size_um=(400, 400), n_genes=10, donor=donor)


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    return toy(0), toy(3)


@pytest.fixture(scope="module")
def references(pair: tuple[Any, Any]) -> Any:
    return [st.pp.stain_reference(slide) for slide in pair]


def fresh(slide: Any) -> Any:
    """The same elements in a new object, so that tests do not see each other's images."""
    return SpatialData(images=dict(slide.images), shapes=dict(slide.shapes), tables=dict(slide.tables))


def pixels(slide: Any, key: str) -> np.ndarray:
    return np.asarray(scale0(slide.images[key]).data)


def one_image(array: np.ndarray, mpp: float = 0.5) -> Any:
    scale = {"um": Scale([mpp, mpp], axes=("x", "y"))}
    return SpatialData(images={"he": Image2DModel.parse(array, dims=("c", "y", "x"), transformations=scale)})


@pytest.mark.parametrize("method", METHODS)
def test_colours_become_those_of_the_reference(pair: tuple[Any, Any], references: Any, method: str) -> None:
    slide, (before, wanted) = fresh(pair[0]), references
    st.pp.stain_normalize(slide, method=method, reference=wanted)
    key = f"he_{method}"
    after = st.pp.stain_reference(slide, image_key=key)
    np.testing.assert_allclose(after.glass, wanted.glass, atol=4)
    if method == "macenko":
        np.testing.assert_allclose(after.amounts, wanted.amounts, rtol=0.05)
        np.testing.assert_allclose(after.stains, wanted.stains, atol=0.03)
        assert np.abs(np.subtract(before.amounts, wanted.amounts)).max() > 0.1
    elif method == "reinhard":
        np.testing.assert_allclose(after.lab_mean, wanted.lab_mean, atol=0.02)
        np.testing.assert_allclose(after.lab_std, wanted.lab_std, rtol=0.1)
    else:
        np.testing.assert_allclose(after.second_moments, wanted.second_moments, rtol=0.1, atol=0.002)


@pytest.mark.parametrize("method", METHODS)
def test_a_slide_normalised_to_itself_stays_as_it_is(pair: tuple[Any, Any], references: Any, method: str) -> None:
    slide = fresh(pair[0])
    st.pp.stain_normalize(slide, method=method, reference=references[0])
    change = pixels(slide, f"he_{method}").astype(int) - pixels(slide, "he")
    assert np.abs(change).max() <= 1


@pytest.mark.parametrize("method", METHODS)
def test_white_stays_white_and_black_black(pair: tuple[Any, Any], method: str) -> None:
    array = pixels(pair[0], "he").copy()
    array[:, :60, :300], array[:, -40:] = 255, 0
    slide = one_image(array)
    st.pp.stain_normalize(slide, method=method)
    new = pixels(slide, f"he_{method}")
    assert (new[:, :60, :300] == 255).all()
    assert (new[:, -40:] == 0).all()
    corner = new[:, 70:90, 2:20].reshape(3, -1)  # glass
    assert (np.median(corner, axis=1) >= 253).all()


@pytest.mark.parametrize("method", METHODS)
def test_pixels_against_the_formulas(references: Any, method: str) -> None:
    """A slow reference in float64, from the papers."""
    from stpred._image.appearance import ColourMap

    source, target = replace(references[0], glass=(240.0, 230.0, 250.0)), references[1]
    rng = np.random.default_rng(0)
    light = 10.0 ** -(rng.uniform(0.15, 1.0, (500, 2)) @ np.array(source.stains))
    rgb = np.rint(np.array(source.glass) * light).astype(np.uint8)
    d = -np.log10(rgb / np.array(source.glass))
    if method == "macenko":
        full = [np.vstack([s, np.cross(*s) / np.linalg.norm(np.cross(*s))]) for s in (source.stains, target.stains)]
        amounts = d @ np.linalg.inv(full[0])
        amounts[:, :2] *= np.divide(target.amounts, source.amounts)
        expected = 10.0 ** -(amounts @ full[1])
    elif method == "moments":
        ours, theirs = source.density_moments, target.density_moments
        from scipy.linalg import sqrtm

        half = sqrtm(ours)
        linear = np.linalg.inv(half) @ sqrtm(half @ theirs @ half) @ np.linalg.inv(half)
        np.testing.assert_allclose(linear @ ours @ linear.T, theirs, atol=1e-9)
        expected = 10.0 ** -(d @ linear)
    else:
        cones = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
        mix = np.diag(1 / np.sqrt([3, 6, 2])) @ [[1, 1, 1], [1, 1, -2], [1, -1, 0]]
        lab = np.log10(10.0**-d @ cones.T) @ mix.T
        lab = (lab - source.lab_mean) / np.array(source.lab_std) * target.lab_std + target.lab_mean
        expected = 10 ** (lab @ np.linalg.inv(mix).T) @ np.linalg.inv(cones).T
    shown = np.clip(np.rint(np.array(target.glass) * expected), 0, 255)
    tissue = d.mean(axis=1) > 0.1
    new = ColourMap(source, target, method=method)(rgb.T[:, :, None].copy())[..., 0].T
    assert np.abs(new[tissue].astype(int) - shown[tissue]).max() <= 1


def test_nothing_is_computed_but_the_sample(pair: tuple[Any, Any], references: Any) -> None:
    """Only chunks that the sample needs are decoded, and none of the others until it is read."""
    tile = pixels(pair[0], "he")
    seen: list[tuple[int, int]] = []

    def make(block_info: Any = None) -> np.ndarray:
        seen.append(tuple(block_info[None]["chunk-location"][1:]))
        return tile[:, :800, :800].copy()

    n = 12
    big = da.map_blocks(make, chunks=((3,), (800,) * n, (800,) * n), dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))
    small = da.from_array(np.tile(tile[:, :800:10, :800:10], (1, n, n)), chunks=(3, 960, 960))
    slide = one_image(np.zeros((3, 8, 8), np.uint8))
    from spatialdata.transformations import set_transformation
    from xarray import DataArray, Dataset, DataTree

    tree = DataTree.from_dict(
        {
            f"scale{k}": Dataset({"image": DataArray(a, dims=("c", "y", "x"), coords={"c": ["r", "g", "b"]})})
            for k, a in enumerate((big, small))
        }
    )
    set_transformation(tree, {"um": Scale([0.5, 0.5], axes=("x", "y"))}, set_all=True)
    slide.images["he"] = tree
    seen.clear()
    st.pp.stain_normalize(slide, method="moments", reference=references[1])
    sampled = len(set(seen))
    assert sampled < n * n
    seen.clear()
    new = scale0(slide.images["he_moments"])
    assert new.chunks[1:] == scale0(tree).chunks[1:]
    part = new.data[:, 2500:2600, 5700:5800].compute()
    assert set(seen) == {(3, 7)}
    assert part.dtype == np.uint8


def test_verbs_use_the_normalised_image_without_being_told(pair: tuple[Any, Any], tmp_path: Any) -> None:
    slide, other = fresh(pair[0]), fresh(pair[1])
    for s in (slide, other):
        st.pp.stain_normalize(s)
        assert get_transformation(s.images["he_macenko"], get_all=True) == get_transformation(
            s.images["he"], get_all=True
        )
        assert find_image(s) == "he_macenko"
        assert find_image(s, "he") == "he"
    model = st.tl.train({"a": slide, "b": other}, "ridge", encoder="intensity", shapes_key="spots")
    st.tl.predict(slide, model, shapes_key="spots", key_added="new")
    with pytest.warns(UserWarning, match="trained on images normalised by 'macenko', and image 'he' was not"):
        st.tl.predict(slide, model, shapes_key="spots", image_key="he", key_added="old")
    bare = SpatialData(images=dict(slide.images), attrs=dict(slide.attrs))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*normalised by.*")
        st.tl.predict(bare, model)  # regions of its own are found on the same image
    assert read_provenance(bare.tables["grid_ridge"])["image_key"] == "he_macenko"
    third = toy(5)
    st.models.save(model, tmp_path / "model")
    wanted = st.models.load(tmp_path / "model").record.training["normalised"]
    st.pp.stain_normalize(third, method=wanted["method"], reference=wanted["reference"])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*normalised by.*")
        st.tl.predict(third, st.models.load(tmp_path / "model"), shapes_key="spots")
    assert not np.allclose(slide.tables["new"].X, slide.tables["old"].X)
    slide.write(tmp_path / "slide.zarr")
    again = read_zarr(tmp_path / "slide.zarr")
    assert find_image(again) == "he_macenko"
    np.testing.assert_array_equal(pixels(again, "he_macenko"), pixels(slide, "he_macenko"))
    st.tl.predict(again, model, shapes_key="spots", key_added="again")
    np.testing.assert_allclose(again.tables["again"].X, slide.tables["new"].X, atol=1e-5)
    note = json.loads(again.attrs["stpred"]["he_macenko"])
    assert (note["source"], note["method"]) == ("he", "macenko")


def test_a_cell_can_be_run_twice(pair: tuple[Any, Any]) -> None:
    slide = fresh(pair[0])
    st.pp.stain_normalize(slide)
    first = pixels(slide, "he_macenko")
    with pytest.warns(UserWarning, match="'he_macenko' existed and is overwritten"):
        st.pp.stain_normalize(slide)  # from "he" again, not from the normalised image
    np.testing.assert_array_equal(pixels(slide, "he_macenko"), first)
    st.pp.stain_normalize(slide, method="reinhard")
    with pytest.raises(InputError, match=r"2 H&E images are placed in 'um': \['he_macenko', 'he_reinhard'\]"):
        find_image(slide)
    element = st.pp.stain_normalize(slide, method="moments", inplace=False)
    assert "he_moments" not in slide.images
    assert scale0(element).dtype == np.uint8


def test_references(pair: tuple[Any, Any], references: Any, tmp_path: Any) -> None:
    slide, other = pair
    both = st.pp.stain_reference({"a": slide, "b": other})
    low, high = np.sort([r.lab_mean for r in references], axis=0)
    assert (np.array(both.lab_mean) >= low - 1e-3).all()
    assert (np.array(both.lab_mean) <= high + 1e-3).all()
    path = both.save(tmp_path / "cohort.json")
    assert st.pp.StainReference.load(path) == both
    images = [
        pixels_of(st.pp.stain_normalize(slide, reference=r, inplace=False))
        for r in (both.to_dict(), str(path), {"a": slide, "b": other})
    ]
    for image in images[1:]:
        np.testing.assert_array_equal(image, images[0])
    assert st.pp.stain_reference(slide) == references[0]


def pixels_of(element: Any) -> np.ndarray:
    return np.asarray(scale0(element).data)


def test_a_coarse_slide_is_compared_at_its_own_resolution(pair: tuple[Any, Any]) -> None:
    fine = pixels(pair[0], "he")
    h, w = fine.shape[1] // 6 * 6, fine.shape[2] // 6 * 6
    coarse = fine[:, :h, :w].reshape(3, h // 6, 6, w // 6, 6).mean(axis=(2, 4)).round().astype(np.uint8)
    slide = one_image(coarse, mpp=3.0)
    st.pp.stain_normalize(slide, reference=pair[0])  # measured again, at 3 um
    note = json.loads(slide.attrs["stpred"]["he_macenko"])
    assert note["reference"]["mpp"] == note["measured"]["mpp"] == pytest.approx(3.0)
    assert np.abs(pixels(slide, "he_macenko").astype(int) - coarse).mean() < 4


def test_bad_input(pair: tuple[Any, Any], references: Any, tmp_path: Any) -> None:
    slide = fresh(pair[0])
    with pytest.raises(InputError, match="`method` must be one of"):
        st.pp.stain_normalize(slide, method="vahadane")
    with pytest.raises(InputError, match="`reference` must be a SpatialData"):
        st.pp.stain_normalize(slide, reference=3)
    with pytest.raises(InputError, match="missing:.*'stains'"):
        st.pp.stain_normalize(slide, reference={"glass": [255, 255, 255]})
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(InputError, match="is no stain reference of format 1"):
        st.pp.stain_normalize(slide, reference=tmp_path / "other.json")
    with pytest.raises(FileNotFoundError):
        st.pp.stain_normalize(slide, reference=tmp_path / "absent.json")
    with pytest.raises(InputError, match="is the image itself"):
        st.pp.stain_normalize(slide, key_added="he")
    slide.images["mine"] = slide.images["he"]
    with pytest.raises(InputError, match=re.escape("an image that stpred did not normalise")):
        st.pp.stain_normalize(slide, image_key="he", key_added="mine")
    glass = np.full((3, 800, 800), 240, np.uint8)
    glass[:, 100:130, 100:130] = 120
    with pytest.raises(InputError, match="Too little stained tissue on image 'he'"):
        st.pp.stain_normalize(one_image(glass))
    grey = np.repeat(pixels(pair[0], "he")[1:2], 3, axis=0)
    with pytest.raises(InputError, match="cannot be told apart as haematoxylin and eosin.*method='reinhard'"):
        st.pp.stain_normalize(one_image(grey))
    st.pp.stain_normalize(one_image(grey), method="reinhard")
    assert st.pp.stain_reference(one_image(grey)).stains is None
    with pytest.raises(InputError, match="has no stain vectors"):
        st.pp.stain_normalize(slide, image_key="he", reference=one_image(grey))
    uncalibrated = SpatialData(
        images={"he": Image2DModel.parse(glass, dims=("c", "y", "x"), transformations={"global": Identity()})}
    )
    with pytest.raises(InputError, match="calibrate"):
        st.pp.stain_normalize(uncalibrated)
    for changes, message in (
        ({"glass": (0, 1, 2)}, "between 1 and 255"),
        ({"lab_std": (0.1, 0.0, 0.1)}, "must be positive"),
        ({"stains": ((1, 0, 0), (1, 0, 0))}, "not independent"),
        ({"amounts": None}, "go together"),
        ({"mpp": float("nan")}, "finite numbers"),
        ({"second_moments": (1, 5, 0, 1, 0, 1)}, "not those of any colours"),
    ):
        with pytest.raises(InputError, match=message):
            replace(references[0], **changes)

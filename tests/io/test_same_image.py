"""An image belongs to a slide by what it shows, not by its size."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tifffile
from anndata import AnnData
from PIL import Image
from scipy import sparse

import stpred as st
from stpred import InputError
from stpred.io._images import same_image
from stpred.io._images.open import open_pixels
from stpred.io._images.same_image import (
    ORIENTATIONS,
    Overview,
    compare_with_copy,
    grid_shape,
    judge,
    match_copy,
    overview,
    tissue_shares,
    window_means,
)

Make = Callable[..., SimpleNamespace]


def tissue(height: int = 600, width: int = 500, *, seed: int = 0) -> np.ndarray:
    """An H&E-like picture: glass, and a lopsided piece of tissue with detail of its own."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    aside, down = (0.4 + 0.04 * seed, 0.35 + 0.03 * seed)  # no two sections have quite the same outline
    inside = ((x - aside * width) / (0.3 * width)) ** 2 + ((y - down * height) / (0.28 * height)) ** 2 < 1
    inside |= (abs(x - 0.62 * width) < 0.05 * width) & (abs(y - 0.55 * height) < 0.25 * height)
    coarse = rng.normal(0, 1, (height // 12 + 2, width // 12 + 2)).astype(np.float32)
    detail = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    image = np.full((height, width, 3), 240.0)
    image[inside] = np.array([190.0, 130.0, 180.0]) + detail[inside, None] * np.array([20.0, 30.0, 15.0])
    return np.clip(image + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8)


def smaller(image: np.ndarray, factor: int = 4) -> np.ndarray:
    size = image.shape[1] // factor, image.shape[0] // factor
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))


def whole(image: np.ndarray) -> Overview:
    return Overview(window_means(image, shape=grid_shape(*image.shape[:2]), share=1.0), 1.0)


@pytest.mark.parametrize("share", [1.0, 0.4])
def test_window_means_are_those_of_slow_loops(share: float) -> None:
    image = np.random.default_rng(0).integers(0, 256, (37, 53, 3)).astype(np.uint8)
    shape = (5, 7)
    got = window_means(image, shape=shape, share=share)
    for i in range(5):
        for j in range(7):
            sides = []
            for n, k, at in ((37, 5, i), (53, 7, j)):
                size = max(1, round(n / k * share))
                start = min(max(0, round((at + 0.5) * n / k - size / 2)), n - size)
                sides.append(slice(start, start + size))
            np.testing.assert_allclose(got[i, j], image[sides[0], sides[1]].mean(axis=(0, 1)), rtol=1e-5)


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_every_orientation_is_named(name: str) -> None:
    image = tissue()
    match = match_copy(whole(ORIENTATIONS[name](image)), smaller(image))
    assert match is not None
    if name == "as it is":
        assert judge(match) == "same"
        assert match.as_it_is > 0.9
    else:
        assert judge(match) == "turned"
        assert match.orientation == name


def test_copies_with_other_colours_and_compression_are_the_same(tmp_path: Path) -> None:
    image = tissue()
    Image.fromarray(smaller(image)).save(tmp_path / "copy.jpg", quality=50)
    packed = np.asarray(Image.open(tmp_path / "copy.jpg"))
    for copy in (packed, (255 * (packed / 255.0) ** 1.6).astype(np.uint8), 255 - (255 - packed) // 2):
        match = match_copy(whole(image), copy)
        assert match is not None
        assert judge(match) == "same"


def test_other_tissue_of_much_the_same_outline_is_different() -> None:
    match = match_copy(whole(tissue(seed=0)), smaller(tissue(seed=1)))
    assert match is not None
    assert judge(match) == "different"


def test_nothing_is_said_of_two_blank_images() -> None:
    blank = np.full((100, 120, 3), 230, dtype=np.uint8)
    assert match_copy(whole(blank), blank) is None
    match = match_copy(whole(tissue()), np.full((150, 125, 3), 230, dtype=np.uint8))
    assert match is not None
    assert judge(match) == "different"


def test_windows_of_a_large_image_tell_as_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    image = tissue(1200, 1000)
    monkeypatch.setattr(same_image, "MAX_WHOLE_PX", 64)
    monkeypatch.setattr(same_image, "_WINDOW_PX", 8)
    for layout in ({"tile": (64, 64)}, {"rowsperstrip": 16, "compression": "zlib"}):
        tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", **layout)
        pixels = open_pixels(tmp_path / "a.tif")
        assert overview(pixels).share < 0.6
        assert compare_with_copy(pixels, smaller(image), name="c")[0] == "same"
        assert compare_with_copy(pixels, smaller(image[:, ::-1]), name="c")[0] == "turned"


def test_shares_of_positions_on_tissue_follow_the_image() -> None:
    mask = np.zeros((30, 20), dtype=bool)
    mask[2:9, 3:8] = True
    y, x = np.nonzero(mask)
    xy = np.column_stack([x, y]) * 10.0 + 5.0
    for name, turn in ORIENTATIONS.items():
        turned = turn(mask[:, :, None])[:, :, 0]
        shares = tissue_shares(xy, turned, width=turned.shape[1] * 10, height=turned.shape[0] * 10)
        assert shares[name] == 1.0
        assert max(shares, key=lambda k: shares[k]) == name


def rewrite(truth: SimpleNamespace, turn: Callable[[np.ndarray], np.ndarray], path: Path | None = None) -> Path:
    path = truth.outs.parent / "slide.tif" if path is None else path
    tifffile.imwrite(path, np.ascontiguousarray(turn(truth.image)), tile=(64, 64), photometric="rgb")
    return path


TURNED = [name for name in ORIENTATIONS if name != "as it is"]


@pytest.mark.parametrize("name", TURNED)
def test_a_turned_image_beside_a_visium_run_is_refused(make_visium: Make, name: str) -> None:
    truth = make_visium()
    rewrite(truth, ORIENTATIONS[name])
    with pytest.raises(InputError, match=rf"'slide\.tif' shows what '.*hires_image\.png' shows only {name}.*wrong"):
        st.io.visium(truth.outs)


@pytest.mark.filterwarnings("ignore:The image .* may not be the image")  # of another size, which is said too
@pytest.mark.parametrize("name", TURNED)
def test_a_turned_image_that_was_given_is_refused(make_visium: Make, make_hd: Make, tmp_path: Path, name: str) -> None:
    truth = make_visium(fullres=None)
    given = rewrite(truth, ORIENTATIONS[name], tmp_path / "given.tif")
    with pytest.raises(InputError, match=rf"'given\.tif' shows .* only {name}.*Space Ranger was run on"):
        st.io.visium(truth.outs, fullres_image=given)


def test_another_slide_of_the_same_size_is_not_taken(make_visium: Make, tmp_path: Path) -> None:
    truth = make_visium(fullres=None)
    other = np.roll(truth.image, (133, 201), axis=(0, 1))
    for place in (truth.outs / "other.tif", truth.outs.parent / "other.tif"):
        tifffile.imwrite(place, other, tile=(64, 64), photometric="rgb")
        with pytest.warns(UserWarning, match=r"not taken: .*other\.tif' does not look like 'tissue_hires_image\.png'"):
            sdata = st.io.visium(truth.outs)
        assert "he_hires" not in sdata.images  # the small copy is the image
        with pytest.raises(InputError, match=r"other\.tif' does not look like"):
            st.io.visium(truth.outs, fullres_image=place)
        place.unlink()


def test_of_several_images_the_one_that_shows_the_slide_is_taken(make_visium: Make) -> None:
    truth = make_visium()
    tifffile.imwrite(truth.outs / "other.tif", np.roll(truth.image, 133, axis=0), photometric="rgb")
    rewrite(truth, lambda a: a[::-1, ::-1], truth.outs / "turned.tif")
    sdata = st.io.visium(truth.outs)
    np.testing.assert_array_equal(np.asarray(sdata["he"]["scale0"].image).transpose(1, 2, 0), truth.image)


def test_without_a_copy_it_is_said_which_image_was_taken(make_visium: Make) -> None:
    truth = make_visium(fullres="slide.tif", hires=False, lowres=False)
    with pytest.warns(UserWarning, match=r"slide\.tif' is taken as the full-resolution image since it is the only"):
        st.io.visium(truth.outs)


def test_a_turned_image_of_visium_hd_is_refused(make_hd: Make) -> None:
    truth = make_hd()
    path = next(p for p in truth.outs.parent.rglob("*.*") if p.suffix in (".tif", ".btf"))
    image = tifffile.imread(path)
    tifffile.imwrite(path, image[::-1, ::-1].copy(), photometric="rgb")
    small = truth.outs / "spatial"
    small.mkdir(exist_ok=True)
    Image.fromarray(smaller(image)).save(small / "tissue_hires_image.png")
    for scales in truth.outs.rglob("scalefactors_json.json"):
        scales.write_text(json.dumps(json.loads(scales.read_text()) | {"tissue_hires_scalef": 0.25}))
    with pytest.raises(InputError, match="shows only turned by 180 degrees"):
        st.io.visium_hd(truth.outs)
    with pytest.raises(InputError, match="shows only turned by 180 degrees"):
        st.io.visium_hd(truth.outs, fullres_image=path)


def spots_on(image: np.ndarray, *, step: int = 20) -> np.ndarray:
    """Positions on the tissue of a picture, in rows and columns."""
    y, x = np.mgrid[step // 2 : image.shape[0] : step, step // 2 : image.shape[1] : step]
    on = image[y, x].mean(axis=-1) < 215
    return np.column_stack([x[on], y[on]]).astype(float)


def anndata(xy: np.ndarray, **uns: object) -> AnnData:
    counts = sparse.csr_matrix(np.random.default_rng(0).poisson(2.0, (len(xy), 5)).astype(np.float32))
    table = AnnData(counts, obs=pd.DataFrame(index=[f"s{i}" for i in range(len(xy))]), uns=dict(uns))
    table.var_names = ["EPCAM", "VIM", "CD3E", "KRT8", "DCN"]
    table.obsm["spatial"] = xy
    return table


@pytest.mark.parametrize("name", [n for n in TURNED if "exchanged" not in n])  # of those test_hest.py tells
def test_hest_needs_tissue_under_its_spots(tmp_path: Path, name: str) -> None:
    image = tissue()
    table = anndata(spots_on(image))
    Image.fromarray(image).save(tmp_path / "right.png")
    assert st.io.hest(table, tmp_path / "right.png", mpp=5.0).tables["spots_counts"].n_obs == table.n_obs
    Image.fromarray(np.ascontiguousarray(ORIENTATIONS[name](image))).save(tmp_path / "turned.png")
    with pytest.raises(InputError, match=f"{name}|x and y are exchanged|outside the image"):
        st.io.hest(table, tmp_path / "turned.png", mpp=5.0)


def test_hest_compares_with_the_image_that_the_anndata_carries(tmp_path: Path) -> None:
    image = tissue()
    small = smaller(image)
    Image.fromarray(image).save(tmp_path / "right.png")
    Image.fromarray(image[:, ::-1]).save(tmp_path / "mirrored.png")
    for carried in (small, small / 255.0):
        table = anndata(spots_on(image), spatial={"lib": {"images": {"hires": carried}}})
        st.io.hest(table, tmp_path / "right.png", mpp=5.0)
        with pytest.raises(InputError, match=r"mirrored\.png' shows what .*\['hires'\].* only mirrored left to right"):
            st.io.hest(table, tmp_path / "mirrored.png", mpp=5.0)


@pytest.mark.parametrize("name", ["turned by 180 degrees", "mirrored left to right", "mirrored top to bottom"])
def test_legacy_st_needs_tissue_under_its_spots(tmp_path: Path, name: str) -> None:
    image = tissue()
    xy = spots_on(image)
    names = [f"{round(x / 20 - 0.5)}x{round(y / 20 - 0.5)}" for x, y in xy]
    counts = pd.DataFrame(np.ones((len(xy), 4), dtype=int), index=names, columns=list("ABCD"))
    array = np.round(xy / 20 - 0.5)
    spots = pd.DataFrame({"x": array[:, 0], "y": array[:, 1], "pixel_x": xy[:, 0], "pixel_y": xy[:, 1]})
    Image.fromarray(image).save(tmp_path / "right.png")
    assert st.io.legacy_st(counts, tmp_path / "right.png", spots).tables["spots_counts"].n_obs == len(xy)
    Image.fromarray(np.ascontiguousarray(ORIENTATIONS[name](image))).save(tmp_path / "turned.png")
    with pytest.raises(InputError, match=f"of the spots lie on the tissue of 'turned.png', and .* an image {name}"):
        st.io.legacy_st(counts, tmp_path / "turned.png", spots)


def test_xenium_needs_tissue_under_its_cells(make_xenium: Make, tmp_path: Path) -> None:
    truth = make_xenium()  # cells at 20 to 80 and 15 to 63 um
    image = np.full((800, 900, 3), 240, dtype=np.uint8)  # 0.5 um per pixel
    image[10:330, 20:340] = np.random.default_rng(0).integers(90, 180, (320, 320, 3))
    for name, turn in ORIENTATIONS.items():
        Image.fromarray(np.ascontiguousarray(turn(image))).save(tmp_path / "he.png")
        if name in ("as it is", "with x and y exchanged"):  # tissue lies at the origin in both
            assert "he" in st.io.xenium(truth.path, he_image=tmp_path / "he.png", mpp=0.5).images
        else:
            with pytest.raises(InputError, match="Only 0% of the cells lie on the tissue of 'he.png', and 100% if"):
                st.io.xenium(truth.path, he_image=tmp_path / "he.png", mpp=0.5)


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.parametrize("name", ["turned by 180 degrees", "mirrored left to right", "mirrored top to bottom"])
def test_real_sections_fit_their_own_image_only(real_data: Path, tmp_path: Path, name: str) -> None:
    """HER2ST C2, with the image reduced so that the test is quick."""
    base = real_data / "her2st"
    image = Image.open(base / "C2.jpg").reduce(4)
    spots = pd.read_csv(base / "C2.spots.tsv", sep="\t")
    spots[["pixel_x", "pixel_y"]] /= 4
    image.save(tmp_path / "right.png")
    st.io.legacy_st(base / "C2.counts.tsv.gz", tmp_path / "right.png", spots)
    Image.fromarray(np.ascontiguousarray(ORIENTATIONS[name](np.asarray(image)))).save(tmp_path / "turned.png")
    with pytest.raises(InputError, match=f"an image {name}"):
        st.io.legacy_st(base / "C2.counts.tsv.gz", tmp_path / "turned.png", spots)

"""Files that hold several pictures: which one is read, what is said of the others, and choosing."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

import stpred as st
from stpred import InputError
from stpred.io._images.open import open_pixels
from stpred.io._images.pixels import to_dask
from stpred.io._images.scenes import scenes_of


def picture(height: int, width: int, value: int) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


A, B, SMALL = picture(300, 400, 50), picture(320, 240, 100), picture(30, 90, 150)


def value(path: Path, scene: int | str | None = None) -> int:
    level = open_pixels(path, scene=scene).levels[0]
    return int(to_dask(level)[0, 5, 5].compute(scheduler="synchronous"))


def ome(path: Path, **images: np.ndarray) -> Path:
    with tifffile.TiffWriter(path, ome=True) as tif:
        for name, image in images.items():
            tif.write(image, photometric="rgb", metadata={"axes": "YXS", "Name": name})
    return path


def pages(path: Path, *images: np.ndarray, **options: Any) -> Path:
    with tifffile.TiffWriter(path) as tif:
        for image in images:
            tif.write(image, photometric="rgb", metadata=None, **options)
    return path


def test_the_largest_scene_of_an_ome_file_is_read_and_the_others_are_named(tmp_path: Path) -> None:
    path = ome(tmp_path / "a.ome.tif", left=B, right=A)
    said = r"'a\.ome\.tif' holds several scenes: 1 'right' \(400 x 300 px\) is read, not 0 'left' \(240 x 320 px\); sce"
    with pytest.warns(UserWarning, match=said):
        assert value(path) == 50
    for scene in (0, "left", "LEFT", "0", np.int64(0)):
        assert value(path, scene) == 100
    sdata = st.io.wsi(path, mpp=0.5, scene="left")
    assert sdata.images["he"]["scale0"]["image"].shape == (3, 320, 240)


def test_of_equal_scenes_the_first_is_read_and_it_is_said(tmp_path: Path) -> None:
    paths = (
        ome(tmp_path / "a.ome.tif", one=A, two=A + 1),
        pages(tmp_path / "a.tif", A, A + 1),
        pages(tmp_path / "b.tif", A, A + 1, tile=(64, 64), compression="zlib"),
    )
    for path in paths:
        with pytest.warns(UserWarning, match="holds several scenes: 0"):
            assert value(path) == 50
        assert value(path, 1) == 51


@pytest.mark.parametrize("scene", [2, -1, "none", 1.5, True])
def test_scenes_that_are_not_there_are_refused_with_those_that_are(scene: Any, tmp_path: Path) -> None:
    path = ome(tmp_path / "a.ome.tif", left=B, right=A)
    with pytest.raises(InputError, match=r"`scene` must be .* there are \[\"0 'left' .*1 'right'"):
        open_pixels(path, scene=scene)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_pictures_of_one_scene_take_0_alone(suffix: str, tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(A).save(tmp_path / f"a.{suffix}")
    assert value(tmp_path / f"a.{suffix}", 0) == 50
    for scene in (1, "label", True):
        with pytest.raises(InputError, match="`scene` must be 0"):
            open_pixels(tmp_path / f"a.{suffix}", scene=scene)


@pytest.mark.filterwarnings("error::UserWarning")
def test_labels_macros_and_thumbnails_are_no_scenes(tmp_path: Path) -> None:
    ome(tmp_path / "a.ome.tif", slide=A, **{"label image": B, "macro image": B[:, :200]})
    ome(tmp_path / "b.ome.tif", **{"macro": picture(900, 900, 1)}, slide=A)
    pages(tmp_path / "c.tif", A, SMALL)  # far smaller
    about = "Aperio Image Library v11\r\n400x300|AppMag = 20|MPP = 0.5"
    with tifffile.TiffWriter(tmp_path / "d.svs") as tif:
        options: dict[str, Any] = {"photometric": "rgb", "metadata": None}
        tif.write(A, tile=(64, 64), description=about, **options)
        tif.write(A[::3, ::3], description=about, rowsperstrip=100, **options)
        tif.write(picture(200, 200, 7), description="Aperio\nlabel 200x200", subfiletype=1, **options)
        tif.write(picture(200, 300, 7), description="Aperio\nmacro 300x200", subfiletype=9, **options)
    for path in sorted(tmp_path.iterdir()):
        assert value(path) == 50, path.name


def test_a_label_can_be_chosen(tmp_path: Path) -> None:
    path = ome(tmp_path / "a.ome.tif", slide=A, **{"label image": B})
    assert value(path, "label image") == 100


@pytest.mark.filterwarnings("error::UserWarning")
def test_levels_are_no_scenes(tmp_path: Path) -> None:
    big = picture(1024, 768, 50)
    for flag in (0, 1):
        path = tmp_path / f"{flag}.tif"
        with tifffile.TiffWriter(path) as tif:
            for k in range(3):
                small = big[:: 2**k, :: 2**k]
                tif.write(small, photometric="rgb", tile=(64, 64), metadata=None, subfiletype=flag if k else 0)
        assert [level.shape[1] for level in open_pixels(path).levels] == [1024, 512, 256]


def qptiff(path: Path, *images: tuple[np.ndarray, str]) -> Path:
    with tifffile.TiffWriter(path) as tif:
        for image, kind in images:
            about = (
                f"<PerkinElmer-QPI-ImageDescription><ImageType>{kind}</ImageType></PerkinElmer-QPI-ImageDescription>"
            )
            tif.write(
                image, photometric="rgb", description=about, software="PerkinElmer-QPI", metadata=None, tile=(64, 64),
                resolution=(20000, 20000), resolutionunit="CENTIMETER",
            )  # fmt: skip
    return path


def test_scenes_of_a_qptiff_go_by_the_type_that_each_page_states(tmp_path: Path) -> None:
    whole = [(A, "FullResolution"), (SMALL, "Thumbnail"), (A[::2, ::2], "ReducedResolution")]
    around = [(picture(200, 200, 9), "Overview"), (picture(100, 200, 9), "Label")]
    path = qptiff(tmp_path / "a.qptiff", *whole, *around)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert [level.shape[1] for level in open_pixels(path).levels] == [300, 150]
    two = qptiff(tmp_path / "b.qptiff", *whole, *around, (B, "FullResolution"), (B[::2, ::2], "ReducedResolution"))
    with pytest.warns(UserWarning, match=r"'FullResolution' \(400 x 300 px\) is read, not .* \(240 x 320 px\)"):
        assert value(two) == 50
    with tifffile.TiffFile(two) as tif:
        number = next(s.number for s in scenes_of(tif) if s.levels[0].sizes["X"] == 240)
    assert [level.shape[1] for level in open_pixels(two, scene=number).levels] == [320, 160]
    assert value(two, number) == 100
    same = qptiff(tmp_path / "c.qptiff", (A, "FullResolution"), (A + 1, "FullResolution"))
    with pytest.warns(UserWarning, match="several scenes"):
        assert value(same) == 50


def scn(path: Path, *images: np.ndarray) -> Path:
    """Write a Leica collection of images, each in two levels."""
    parts = "".join(
        f'<image name="image_{k}"><pixels sizeX="{i.shape[1]}" sizeY="{i.shape[0]}">'
        f'<dimension sizeX="{i.shape[1]}" sizeY="{i.shape[0]}" r="0" ifd="{2 * k}"/>'
        f'<dimension sizeX="{i.shape[1] // 2}" sizeY="{i.shape[0] // 2}" r="1" ifd="{2 * k + 1}"/></pixels></image>'
        for k, i in enumerate(images)
    )
    about = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
        f"<collection>{parts}</collection></scn>"
    )
    with tifffile.TiffWriter(path, bigtiff=True) as tif:
        for k, image in enumerate(i[::s, ::s] for i in images for s in (1, 2)):
            tif.write(
                image, photometric="rgb", tile=(64, 64), metadata=None, description=about if k == 0 else None,
                resolution=(20000 >> k % 2, 20000 >> k % 2), resolutionunit="CENTIMETER",
            )  # fmt: skip
    return path


def test_scenes_of_a_leica_collection(tmp_path: Path) -> None:
    path = scn(tmp_path / "a.scn", SMALL, B, A)
    said = r"2 'image_2' \(400 x 300 px\) is read, not 1 'image_1' \(240 x 320 px\); scene="
    with pytest.warns(UserWarning, match=said):
        pixels = open_pixels(path)
    assert [level.shape[1] for level in pixels.levels] == [300, 150]
    assert [e.mpp for e in pixels.evidence] == [pytest.approx(0.5)]
    assert value(path, "image_1") == 100


@pytest.mark.parametrize("sides", [(512, 400), (512, 256), (512, 171)])
def test_pages_of_one_shape_are_levels_only_if_they_show_the_same(sides: tuple[int, int], tmp_path: Path) -> None:
    from PIL import Image

    coarse = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    one = np.asarray(Image.fromarray(coarse).resize((sides[0],) * 2))
    other = np.asarray(Image.fromarray(255 - coarse).resize((sides[1],) * 2))
    path = pages(tmp_path / "a.tif", one, other)
    with pytest.warns(UserWarning, match=rf"{sides[0]} px\) is read, not 1 \({sides[1]} x"):
        assert len(open_pixels(path).levels) == 1
    assert open_pixels(path, scene=1).levels[0].shape[1] == sides[1]
    if sides[1] < 400:
        copy = np.asarray(Image.fromarray(one).resize((sides[1],) * 2))
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            open_pixels(pages(tmp_path / "b.tif", one, copy))


def test_every_reader_takes_a_scene_of_its_image(make_visium: Any, make_xenium: Any, tmp_path: Path) -> None:
    truth = make_visium(fullres=None)
    path = tmp_path / "both.ome.tif"
    other = np.full((500, 600, 3), 200, dtype=np.uint8)
    with tifffile.TiffWriter(path, ome=True) as tif:
        for name, image in (("other", other), ("slide", truth.image)):
            tif.write(image, photometric="rgb", tile=(64, 64), metadata={"Name": name})
    sdata = st.io.visium(truth.outs, fullres_image=path, scene="slide")
    np.testing.assert_array_equal(np.asarray(sdata["he"]["scale0"].image).transpose(1, 2, 0), truth.image)
    with pytest.raises(InputError, match="does not look like|scaled by"):
        st.io.visium(truth.outs, fullres_image=path, scene="other")
    with pytest.raises(InputError, match="`scene` is of the image that is given as fullres_image="):
        st.io.visium(truth.outs, scene=1)
    for scene in (0, 1):
        found = st.io.xenium(make_xenium(name=f"x{scene}").path, he_image=path, scene=scene, mpp=0.5)
        assert found["he"]["scale0"].image.shape[1:] == (other, truth.image)[scene].shape[:2]

"""Which three channels are red, green and blue, and how palettes, opacity and orientations become RGB."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

import stpred as st
from stpred import InputError
from stpred.io._images.channels import on_white
from stpred.io._images.open import open_pixels
from stpred.io._images.pixels import Turned, to_dask

RGB = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
PLANES = np.ascontiguousarray(RGB.transpose(2, 0, 1))


def whole(path: Path) -> np.ndarray:
    return to_dask(open_pixels(path).levels[0]).compute(scheduler="synchronous").transpose(1, 2, 0)


def ome(path: Path, channel: dict[str, Any] | None = None, **options: Any) -> Path:
    metadata = {"axes": "CYX"} | ({} if channel is None else {"Channel": channel})
    tifffile.imwrite(path, PLANES, ome=True, metadata=metadata, **{"photometric": "minisblack", **options})
    return path


@pytest.mark.parametrize(
    "channel",
    [
        None,
        {"Name": ["Red", "Green", "Blue"]},
        {"Name": ["r", "g", "b"]},
        {"Name": ["Channel 0", "Channel 1", "Channel 2"]},
        {"Name": ["C1", "C2", "C3"]},
        {"Name": ["H&E", "H&E", "H&E"]},
        {"Name": ["he_R", "he_G", "he_B"]},
        {"Name": ["Channel:0:0", "Channel:0:1", "Channel:0:2"]},
        {"Color": [-16776961, 16711935, 65535]},
    ],
)
def test_planes_are_rgb_where_nothing_names_them_otherwise(channel: dict[str, Any] | None, tmp_path: Path) -> None:
    np.testing.assert_array_equal(whole(ome(tmp_path / "he.ome.tif", channel)), RGB)


@pytest.mark.parametrize(
    ("channel", "said"),
    [
        ({"Name": ["DAPI", "FITC", "Cy3"]}, "'DAPI', 'FITC', 'Cy3'"),
        ({"Name": ["DAPI", "Channel 1", "Channel 2"]}, "'DAPI'"),
        ({"Name": ["Alexa 488", "Alexa 488", "Alexa 488"]}, "'Alexa 488'"),
        ({"Name": ["Blue", "Green", "Red"]}, "'Blue', 'Green', 'Red'"),
        ({"Name": ["Red (Cy5)", "Green (FITC)", "Blue (DAPI)"]}, r"'Red \(Cy5\)'"),
        ({"Name": ["Haematoxylin", "Eosin", "Residual"]}, "'Eosin'"),
        ({"Color": [65535, 16711935, -16776961]}, "0000ffff, 00ff00ff, ff0000ff"),
        ({"Fluor": ["DAPI", "FITC", "Cy3"]}, "fluorescence channels 'DAPI', 'FITC', 'Cy3'"),
        ({"ExcitationWavelength": [350, 490, 550]}, "fluorescence channels '350', '490', '550'"),
        ({"ContrastMethod": ["Fluorescence"] * 3}, "fluorescence channels"),
        ({"EmissionWavelength": [461, 520, 570]}, "fluorescence channels '461', '520', '570'"),
    ],
)
def test_ome_channels_that_are_not_rgb_are_refused_by_name(channel: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = ome(tmp_path / "if.ome.tif", channel)
    with pytest.raises(InputError, match=rf"'if\.ome\.tif' is .*{said}.*H&E image"):
        st.io.wsi(path, mpp=0.5)


@pytest.mark.parametrize("name", ["H&E", "Brightfield", "Epithelium 7", "Texas biobank"])
def test_one_channel_of_three_samples_may_have_any_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / "he.ome.tif"
    for samples in (True, False):
        tifffile.imwrite(path, RGB, photometric="rgb", ome=True, metadata={"axes": "YXS", "Channel": {"Name": [name]}})
        if not samples:  # as older writers leave it out
            path.write_bytes(path.read_bytes().replace(b'SamplesPerPixel="3"', b" " * 19))
        np.testing.assert_array_equal(whole(path), RGB)


def test_names_count_whatever_the_photometric_interpretation(tmp_path: Path) -> None:
    path = ome(tmp_path / "if.ome.tif", {"Name": ["DAPI", "FITC", "Cy3"]}, photometric="rgb", planarconfig="separate")
    with pytest.raises(InputError, match="'DAPI'"):
        open_pixels(path)


def imagej(path: Path, **metadata: Any) -> None:
    tifffile.imwrite(path, PLANES, imagej=True, metadata={"axes": "CYX", **metadata})


def shaped(path: Path, **metadata: Any) -> None:
    tifffile.imwrite(path, PLANES, photometric="minisblack", metadata={"axes": "CYX", **metadata})


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda p: imagej(p, mode="composite"), "ImageJ composite"),
        (lambda p: imagej(p, Labels=["DAPI", "FITC", "Cy3"]), "'DAPI', 'FITC', 'Cy3'"),
        (lambda p: shaped(p, Channel={"Name": ["DAPI", "FITC", "Cy3"]}), "'DAPI', 'FITC', 'Cy3'"),
        (lambda p: imagej(p, mode="composite", Labels=["Red", "Green", "Blue"]), None),
        (lambda p: shaped(p), None),
        (lambda p: tifffile.imwrite(p, RGB, imagej=True), None),
        (lambda p: tifffile.imwrite(p, RGB, imagej=True, metadata={"Labels": ["slide 7.tif"]}), None),
        (lambda p: tifffile.imwrite(p, PLANES, photometric="minisblack", planarconfig="separate"), None),
    ],
)
def test_channel_names_of_other_tifs(write: Callable[[Path], None], said: str | None, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write(path)
    if said is None:
        np.testing.assert_array_equal(whole(path), RGB)
    else:
        with pytest.raises(InputError, match=said):
            open_pixels(path)


def qptiff(path: Path, pages: list[tuple[np.ndarray, str, str]], **options: Any) -> Path:
    """Write pages of (pixels, image type, name) as PerkinElmer does."""
    with tifffile.TiffWriter(path) as tif:
        for image, kind, name in pages:
            name = f"<Name>{name}</Name>" if name else ""
            about = (
                f"<PerkinElmer-QPI-ImageDescription><ImageType>{kind}</ImageType>{name}"
                "</PerkinElmer-QPI-ImageDescription>"
            )
            tif.write(
                image, photometric="rgb" if image.ndim == 3 else "minisblack", description=about, metadata=None,
                software="PerkinElmer-QPI", resolution=(20000, 20000), resolutionunit="CENTIMETER", **options,
            )  # fmt: skip
    return path


def test_fluorescence_qptiff_is_refused_by_its_names_and_a_colour_one_is_read(tmp_path: Path) -> None:
    names = ("DAPI", "Opal 520", "Opal 690")
    path = qptiff(tmp_path / "if.qptiff", [(PLANES[0], "FullResolution", name) for name in names])
    with pytest.raises(InputError, match=r"'DAPI', 'Opal 520', 'Opal 690'.*H&E image"):
        open_pixels(path)
    for name in ("", "Brightfield profile"):
        np.testing.assert_array_equal(whole(qptiff(tmp_path / "he.qptiff", [(RGB, "FullResolution", name)])), RGB)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"photometric": "cielab"}, "CIELab"),
        ({"photometric": "icclab"}, "ICCLab"),
        ({"photometric": "ycbcr"}, "YCbCr without JPEG"),
        ({"photometric": "ycbcr", "compression": "lzw"}, "YCbCr without JPEG"),
    ],
)
def test_other_colour_spaces_are_refused(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", RGB, metadata=None, **options)
    with pytest.raises(InputError, match=rf"'a\.tif' is .*{said}"):
        open_pixels(tmp_path / "a.tif")


def test_jpeg_tiles_of_ycbcr_are_turned_to_rgb(tmp_path: Path) -> None:
    stored = np.full((128, 128, 3), (200, 90, 150), np.uint8)  # Y, Cb, Cr
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, stored, photometric="ycbcr", tile=(64, 64), compression="jpeg")
    expected = (200 + 1.402 * 22, 200 - 0.344136 * -38 - 0.714136 * 22, 200 + 1.772 * -38)
    assert abs(whole(path) - np.array(expected)).max() <= 2


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("colours", [200, 12])
def test_palettes_become_rgb(suffix: str, colours: int, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    image = Image.fromarray(RGB).quantize(colours)
    image.save(path)
    np.testing.assert_array_equal(whole(path), np.asarray(image.convert("RGB")))


def with_alpha(alpha: np.ndarray | int) -> np.ndarray:
    return np.dstack([RGB, np.broadcast_to(np.uint8(alpha), RGB.shape[:2])])


def write_rgba(path: Path, image: np.ndarray, **options: Any) -> Path:
    if path.suffix == ".png":
        Image.fromarray(image).save(path)
    else:
        tifffile.imwrite(path, image, **{"photometric": "rgb", "extrasamples": ["unassalpha"], **options})
    return path


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_opaque_pictures_with_alpha_are_rgb_and_nothing_is_said(name: str, tmp_path: Path) -> None:
    np.testing.assert_array_equal(whole(write_rgba(tmp_path / name, with_alpha(255))), RGB)


def test_alpha_in_tiles_planes_ome_and_pictures_without_a_name_for_it(tmp_path: Path) -> None:
    image = with_alpha(255)
    write_rgba(tmp_path / "tiles.tif", image, tile=(32, 48), compression="zlib")
    write_rgba(tmp_path / "planes.tif", image.transpose(2, 0, 1).copy(), planarconfig="separate")
    write_rgba(tmp_path / "a.ome.tif", image, metadata={"axes": "YXS"}, ome=True)
    write_rgba(tmp_path / "unnamed.tif", image, extrasamples=["unspecified"])
    for path in sorted(tmp_path.iterdir()):
        np.testing.assert_array_equal(whole(path), RGB)
    write_rgba(tmp_path / "unnamed.tif", with_alpha(40), extrasamples=["unspecified"])
    with pytest.raises(InputError, match="not said to be opacity"):
        open_pixels(tmp_path / "unnamed.tif")


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_transparent_pictures_are_laid_on_white_and_it_is_said(name: str, tmp_path: Path) -> None:
    image = with_alpha(np.random.default_rng(1).integers(0, 256, RGB.shape[:2]))
    path = write_rgba(tmp_path / name, image)
    with pytest.warns(UserWarning, match=f"'{name}' is transparent in parts"):
        found = whole(path)
    white = Image.new("RGBA", RGB.shape[1::-1], (255, 255, 255, 255))
    white.alpha_composite(Image.fromarray(image))
    assert abs(found.astype(int) - np.asarray(white.convert("RGB"))).max() <= 1


def test_laying_on_white_keeps_opaque_pixels_and_knows_premultiplied_ones() -> None:
    share = np.arange(256)
    rgba = np.full((1, 256, 4), 200, np.uint8)
    rgba[0, :, 3] = share
    np.testing.assert_allclose(on_white(rgba)[0, :, 0], 255 - share / 255 * 55, atol=0.51)
    premultiplied = rgba.copy()
    premultiplied[0, :, :3] = np.rint(200 * share / 255)[:, None]
    np.testing.assert_allclose(on_white(premultiplied, premultiplied=True), on_white(rgba), atol=1)


def test_a_transparent_colour_of_a_png_is_white(tmp_path: Path) -> None:
    image = RGB.copy()
    image[:20] = (1, 2, 3)
    Image.fromarray(image).save(tmp_path / "a.png", transparency=(1, 2, 3))
    with pytest.warns(UserWarning, match="transparent"):
        found = whole(tmp_path / "a.png")
    assert (found[:20] == 255).all()
    np.testing.assert_array_equal(found[20:], image[20:])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "tif", "tiles"])
def test_orientations_are_honoured_as_pillow_does(orientation: int, kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.png" if kind == "png" else "a.tif")
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGB).save(tmp_path / "expected.png", exif=exif)
    with Image.open(tmp_path / "expected.png") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    if kind == "png":
        Image.fromarray(RGB).save(path, exif=exif)
    else:
        tile = {"tile": (32, 48), "compression": "zlib"} if kind == "tiles" else {}
        tifffile.imwrite(path, RGB, photometric="rgb", extratags=[(274, 3, 1, orientation, True)], **tile)
    np.testing.assert_array_equal(whole(path), expected)
    level = open_pixels(path).levels[0]
    window = level[slice(0, 3), slice(11, 60, 2), slice(30, 77)]
    np.testing.assert_array_equal(window.transpose(1, 2, 0), expected[11:60:2, 30:77])


def test_the_orientation_of_a_jpg_turns_its_size(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGB).save(tmp_path / "a.jpg", exif=exif, quality=95)
    pixels = open_pixels(tmp_path / "a.jpg")
    assert (pixels.width, pixels.height) == (90, 120)
    sdata = st.io.wsi(tmp_path / "a.jpg", mpp=0.5)
    assert sdata.images["he"]["scale0"]["image"].shape == (3, 120, 90)


def test_levels_are_turned_with_the_finest(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (1500, 1300, 3), dtype=np.uint8)
    options: dict[str, Any] = {"tile": (256, 256), "photometric": "rgb", "compression": "zlib"}
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        tif.write(image, subifds=1, extratags=[(274, 3, 1, 6, True)], **options)
        tif.write(image[::2, ::2], subfiletype=1, **options)
    levels = open_pixels(tmp_path / "a.tif").levels
    assert [level.shape for level in levels] == [(3, 1300, 1500), (3, 650, 750)]
    assert all(isinstance(level, Turned) for level in levels)
    found = levels[1][slice(0, 3), slice(0, 50), slice(0, 60)].transpose(1, 2, 0)
    np.testing.assert_array_equal(found, np.rot90(image[::2, ::2], -1)[:50, :60])


def test_pictures_of_one_kind_do_not_warn(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for path in tmp_path.iterdir():
            open_pixels(path)

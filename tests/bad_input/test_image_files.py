"""Image files: not RGB, cut off, empty, mislabelled, without pixels, of unknown or contradictory resolution."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

import stpred as st
from stpred._core.checks import MissingFileError
from stpred.testing import affine_to

RGB = np.random.default_rng(0).integers(0, 256, (300, 340, 3), dtype=np.uint8)


def tif(path: Path, array: np.ndarray = RGB, **options: Any) -> Path:
    if array.ndim == 3:
        options = {"photometric": "rgb", "extrasamples": ["unassalpha"] * (array.shape[2] - 3)} | options
    tifffile.imwrite(path, array, metadata=None, **options)
    return path


@pytest.fixture(params=["wsi", "read", "visium", "hest"])
def reader(request: pytest.FixtureRequest, vendor_files: Path) -> Callable[[Path], Any]:
    """Hands an image file to one of the readers."""
    return {
        "wsi": lambda path: st.io.wsi(path, mpp=0.5),
        "read": lambda path: st.io.read(path, mpp=0.5),
        "visium": lambda path: st.io.visium(vendor_files / "visium", fullres_image=path),
        "hest": lambda path: st.io.hest(vendor_files / "hest" / "toy.h5ad", path),
    }[request.param]


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (RGB[..., 0], "greyscale"),
        (RGB[..., 0].astype(np.uint16), "16-bit"),
        (RGB.astype(np.uint16), "16-bit"),
        (np.dstack([RGB, RGB[..., :2]]), "5-channel"),
        (RGB.astype(np.float32), "32-bit"),
    ],
)
def test_tifs_that_are_not_8_bit_rgb(
    array: np.ndarray, said: str, reader: Callable[[Path], Any], refused: Any, tmp_path: Path
) -> None:
    path = tif(tmp_path / "scan.tif", array)
    with refused("'scan.tif'", said, "three 8-bit channels (RGB)"):
        reader(path)


@pytest.mark.parametrize(
    ("mode", "said"),
    [("L", "greyscale"), ("LA", "greyscale"), ("I;16", "16-bit"), ("1", "black")],
)
def test_pngs_that_are_not_8_bit_rgb(mode: str, said: str, refused: Any, tmp_path: Path) -> None:
    Image.new(mode, (30, 20)).save(tmp_path / "scan.png")
    with refused("'scan.png'", said, "three 8-bit channels (RGB)"):
        st.io.wsi(tmp_path / "scan.png", mpp=0.5)


def test_jpgs_that_are_not_rgb(refused: Any, tmp_path: Path) -> None:
    for mode, said in (("L", "greyscale"), ("CMYK", "CMYK")):
        Image.new(mode, (30, 20)).save(tmp_path / "scan.jpg")
        with refused("'scan.jpg'", said, "three 8-bit channels (RGB)"):
            st.io.wsi(tmp_path / "scan.jpg", mpp=0.5)


@pytest.mark.parametrize("suffix", ["tif", "png", "jpg"])
@pytest.mark.parametrize("share", [0.2, 0.8])
def test_cut_files(suffix: str, share: float, reader: Callable[[Path], Any], refused: Any, tmp_path: Path) -> None:
    path = tmp_path / f"cut.{suffix}"
    if suffix == "tif":
        tif(path, tile=(64, 64), compression="zlib")
    else:
        Image.fromarray(RGB).save(path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with refused(repr(path.name), "cut off"):
        reader(path)


@pytest.mark.parametrize("suffix", ["tif", "svs", "btf", "png", "jpg"])
@pytest.mark.parametrize("content", [b"", b"gene,count\nEPCAM,3\n" * 20])
def test_empty_files_and_text_by_another_name(suffix: str, content: bytes, refused: Any, tmp_path: Path) -> None:
    path = tmp_path / f"slide.{suffix}"
    path.write_bytes(content)
    with refused(repr(path.name), "neither a png nor a jpg" if suffix in ("png", "jpg") else "cannot be read as a tif"):
        st.io.wsi(path, mpp=0.5)


def test_images_without_pixels(refused: Any, tmp_path: Path) -> None:
    path = tif(tmp_path / "zero.tif", compression="zlib")
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags["ImageLength"].overwrite(0)
    with refused("'zero.tif'"):
        st.io.wsi(path, mpp=0.5)
    Image.fromarray(RGB).save(tmp_path / "zero.png")
    content = bytearray((tmp_path / "zero.png").read_bytes())
    content[16:24] = struct.pack(">II", 0, 0)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    (tmp_path / "zero.png").write_bytes(bytes(content))
    with refused("'zero.png'"):
        st.io.wsi(tmp_path / "zero.png", mpp=0.5)


def test_missing_and_unknown_files(refused: Any, tmp_path: Path) -> None:
    with refused("none.svs'", error=MissingFileError):
        st.io.wsi(tmp_path / "none.svs")
    with refused("none.svs'", error=MissingFileError):
        st.io.read(tmp_path / "none.svs")
    with refused("none.svs'", error=FileNotFoundError):
        st.io.wsi(tmp_path / "none.svs")
    (tmp_path / "notes.txt").write_text("hello")
    with refused("'notes.txt'", "'.svs'", "'.png'"):
        st.io.wsi(tmp_path / "notes.txt")
    with refused("'notes.txt'", "an image file (wsi)", "(visium)", "(xenium)", "(hest)", "(legacy_st)"):
        st.io.read(tmp_path / "notes.txt")


def test_no_resolution_and_none_derivable(refused: Any, tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    Image.fromarray(RGB).save(tmp_path / "b.png", dpi=(72, 72))  # a screen's, not a microscope's
    tif(tmp_path / "c.svs", tile=(64, 64))
    tif(tmp_path / "d.svs", description="Aperio Image Library|MPP = unknown")
    tif(tmp_path / "e.svs", description="Aperio Image Library|MPP = 0")
    for path in sorted(tmp_path.iterdir()):
        for read in (st.io.wsi, st.io.read):
            with refused(f"image {path.name!r} is stated nowhere", "mpp=", "micrometres per pixel"):
                read(path)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "half", "0.5", True])
def test_resolutions_that_are_no_number(value: Any, refused: Any, tmp_path: Path, vendor_files: Path) -> None:
    path = tif(tmp_path / "slide.tif")
    calls: list[Callable[[], Any]] = [
        lambda: st.io.wsi(path, mpp=value),
        lambda: st.io.visium(vendor_files / "visium", mpp=value),
        lambda: st.io.hest(vendor_files / "hest" / "toy.h5ad", vendor_files / "hest" / "toy.tif", mpp=value),
    ]
    for call in calls:
        with refused("`mpp` must be a positive number of um per pixel", f"got {value!r}"):
            call()


def test_contradictions_of_more_than_five_percent_are_told(tmp_path: Path) -> None:
    path = tif(tmp_path / "slide.tif", resolution=(20000, 20000), resolutionunit="CENTIMETER")
    with pytest.warns(
        UserWarning, match=r"'slide\.tif' differ by 6%: mpp= says 0\.53 .* slide\.tif 0\.5; 0\.53 is used"
    ):
        sdata = st.io.wsi(path, mpp=0.53)
    assert affine_to(sdata.images["he"])[0, 0] == 0.53


@pytest.mark.filterwarnings("error::UserWarning")
def test_contradictions_of_less_are_not(tmp_path: Path) -> None:
    path = tif(tmp_path / "slide.tif", resolution=(20000, 20000), resolutionunit="CENTIMETER")
    assert affine_to(st.io.wsi(path, mpp=0.52).images["he"])[0, 0] == 0.52


def test_gross_contradictions_are_refused(vendor_files: Path, refused: Any) -> None:
    import anndata as ad

    counts = ad.read_h5ad(vendor_files / "hest" / "toy.h5ad")
    image = vendor_files / "hest" / "toy.tif"
    counts.uns["pixel_size_um_estimated"] = 0.54
    with pytest.warns(UserWarning, match=r"'pixel_size_um_estimated' says 0\.54 .* the spot pitch of 100 um 0\.5"):
        st.io.hest(counts, image)
    counts.uns["pixel_size_um_estimated"] = 5.0
    with refused("'toy.tif' is contradictory", "'pixel_size_um_estimated' says 5", "pitch of 100 um 0.5", "mpp="):
        st.io.hest(counts, image)


def test_pixels_that_are_not_square(refused: Any, tmp_path: Path) -> None:
    path = tif(tmp_path / "slide.tif", resolution=(20000, 22000), resolutionunit="CENTIMETER")
    with refused("not square", "slide.tif", "0.5 by 0.4545 um"):
        st.io.wsi(path)


def test_what_is_no_file(refused: Any, tmp_path: Path) -> None:
    import os

    (tmp_path / "folder.svs").mkdir()
    os.mkfifo(tmp_path / "pipe.tif")
    for name in ("folder.svs", "pipe.tif"):
        with refused(name, "no file"):
            st.io.wsi(tmp_path / name, mpp=0.5)
    for read in (st.io.wsi, st.io.read):
        with refused("cannot be read", "too long"):
            read("a" * 5000 + ".svs")
    with refused("neither a file nor a folder"):
        st.io.read("/dev/null")


def test_tiles_that_are_damaged_name_the_file_when_a_task_reads_them(tmp_path: Path) -> None:
    path = tif(tmp_path / "slide.tif", tile=(64, 64), compression="zlib")
    with tifffile.TiffFile(path) as file:
        offsets = file.pages[0].dataoffsets
    content = bytearray(path.read_bytes())
    for offset in offsets:
        content[offset : offset + 60] = bytes(60)
    path.write_bytes(bytes(content))
    sdata = st.io.wsi(path, mpp=0.5)
    for task in (st.pp.tissue, lambda s: s.images["he"]["scale0"]["image"].values):
        with pytest.raises(st.InputError, match=r"Tile \d+ of 'slide\.tif' cannot be decoded .*damaged"):
            task(sdata)


def test_files_that_go_away_after_they_were_opened(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    tif(tmp_path / "b.tif", tile=(64, 64), compression="zlib")
    for path in sorted(tmp_path.iterdir()):
        sdata = st.io.wsi(path, mpp=0.5)
        path.unlink()
        with pytest.raises(MissingFileError, match=path.name):
            sdata.images["he"]["scale0"]["image"].values  # noqa: B018

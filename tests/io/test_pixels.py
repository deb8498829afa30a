from __future__ import annotations

import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from stpred._core.checks import InputError, MissingFileError
from stpred.io._images import pixels, tiff
from stpred.io._images.open import open_pixels
from stpred.io._images.pixels import FlatImage, halve, multiscale, to_dask, to_image
from stpred.testing import affine_to, mpp_of


def picture(height: int = 301, width: int = 405, *, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(60, 256, (height // 16 + 2, width // 16 + 2, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def whole(path: Path, level: int = 0) -> np.ndarray:
    return to_dask(open_pixels(path).levels[level]).compute(scheduler="synchronous").transpose(1, 2, 0)


LAYOUTS = {
    "contiguous": {},
    "strips": {"rowsperstrip": 37, "compression": "zlib"},
    "one strip": {"rowsperstrip": 301, "compression": "lzw"},
    "tiles": {"tile": (64, 96), "compression": "deflate", "predictor": True},
    "uncompressed tiles": {"tile": (32, 32)},
    "planar": {"planarconfig": "separate"},
    "planar tiles": {"planarconfig": "separate", "tile": (64, 64), "compression": "zlib"},
    "planar strips": {"planarconfig": "separate", "rowsperstrip": 50, "compression": "zlib"},
    "bigtiff": {"bigtiff": True, "tile": (64, 64)},
    "big-endian": {"byteorder": ">", "rowsperstrip": 20, "compression": "zlib"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_tif_layout_gives_the_pixels_that_were_written(tmp_path: Path, layout: str) -> None:
    image, options = picture(), dict(LAYOUTS[layout])
    path = tmp_path / "a.tif"
    opening = {k: options.pop(k) for k in ("bigtiff", "byteorder") if k in options}
    planar = options.get("planarconfig") == "separate"
    with tifffile.TiffWriter(path, **opening) as writer:
        writer.write(image.transpose(2, 0, 1) if planar else image, photometric="rgb", **options)
    np.testing.assert_array_equal(whole(path), image)


def test_ome_tifs_with_interleaved_and_planar_axes_and_length_one_axes(tmp_path: Path) -> None:
    image = picture()
    for axes, data in {"YXS": image, "CYX": image.transpose(2, 0, 1), "TZYXS": image[None, None]}.items():
        path = tmp_path / f"{axes}.ome.tif"
        tifffile.imwrite(
            path, data, photometric="minisblack" if axes == "CYX" else "rgb", metadata={"axes": axes}, ome=True
        )
        np.testing.assert_array_equal(whole(path), image)


def test_jpeg_tiles_decode_as_tifffile_decodes_them(tmp_path: Path) -> None:
    path = tmp_path / "j.svs"
    tifffile.imwrite(
        path, picture(), tile=(64, 64), compression="jpeg", photometric="rgb", compressionargs={"level": 95}
    )
    np.testing.assert_array_equal(whole(path), tifffile.imread(path))
    assert abs(whole(path).astype(int) - picture()).mean() < 3


def test_a_window_reads_only_the_tiles_it_touches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, path = picture(), tmp_path / "t.tif"
    tifffile.imwrite(path, image, tile=(64, 64), compression="zlib", photometric="rgb")
    decoded: list[int] = []
    original = tiff.TiffLevel._decode

    def counting(self, keyframe, page, data, number):
        decoded.append(number)
        return original(self, keyframe, page, data, number)

    monkeypatch.setattr(tiff.TiffLevel, "_decode", counting)
    level = open_pixels(path).levels[0]
    assert decoded == []
    window = level[slice(0, 3), slice(60, 70), slice(130, 140)]
    np.testing.assert_array_equal(window, image[60:70, 130:140].transpose(2, 0, 1))
    assert sorted(decoded) == [2, 9]  # rows 0 and 1 of seven tiles each, column 2
    decoded.clear()
    to_dask(level).compute(scheduler="synchronous")
    assert sorted(decoded) == list(range(5 * 7))  # each tile once


def test_missing_tiles_are_white_as_scanners_leave_out_empty_glass(tmp_path: Path) -> None:
    path = tmp_path / "sparse.tif"

    def tiles():
        yield np.zeros((64, 64, 3), np.uint8)
        yield None

    tifffile.imwrite(
        path, tiles(), shape=(64, 128, 3), dtype=np.uint8, tile=(64, 64), compression="zlib", photometric="rgb"
    )
    image = whole(path)
    assert (image[:, :64] == 0).all()
    assert (image[:, 64:] == 255).all()


@pytest.mark.parametrize("kind", ["ome", "pages"])
def test_the_files_own_pyramid_is_used(tmp_path: Path, kind: str) -> None:
    image = picture(1500, 1300)
    small = (255 - image[::2, ::2]).copy()  # unlike an average, so that its use shows
    path = tmp_path / ("p.ome.tif" if kind == "ome" else "p.tif")
    options = {"tile": (256, 256), "photometric": "rgb", "compression": "zlib"}
    with tifffile.TiffWriter(path, ome=kind == "ome") as writer:
        writer.write(image, subifds=1 if kind == "ome" else 0, **options)
        writer.write(small, subfiletype=1, **options)
    tree = to_image(open_pixels(path), {"um": np.diag([0.5, 0.5, 1])})
    assert [tuple(tree[k]["image"].shape) for k in tree] == [(3, 1500, 1300), (3, 750, 650)]
    np.testing.assert_array_equal(tree["scale1"]["image"].data.compute(), small.transpose(2, 0, 1))
    assert mpp_of(affine_to(tree, "um")) == 0.5


def test_aperio_levels_are_found_with_and_without_a_thumbnail(tmp_path: Path) -> None:
    image = picture(1500, 1300)
    options = {"tile": (256, 256), "photometric": "rgb", "compression": "zlib", "metadata": None}
    about = "Aperio Image Library v11\r\n1300x1500|AppMag = 20|MPP = 0.5"
    for thumbnail in (True, False):
        path = tmp_path / f"{thumbnail}.svs"
        with tifffile.TiffWriter(path) as writer:
            writer.write(image, description=about, **options)
            if thumbnail:
                writer.write(image[::3, ::3], description=about, photometric="rgb", metadata=None, rowsperstrip=100)
            writer.write(image[::2, ::2], description=about, **options)
        assert [level.shape[1] for level in open_pixels(path).levels] == [1500, 750]


def test_missing_levels_are_averages_of_the_finest(tmp_path: Path) -> None:
    image, path = picture(2600, 301), tmp_path / "f.tif"
    tifffile.imwrite(path, image, tile=(240, 240), photometric="rgb")
    tree = to_image(open_pixels(path), {"um": np.eye(3)})
    assert [tree[k]["image"].shape[1:] for k in tree] == [(2600, 301), (1300, 150), (650, 75)]
    expected = area_mean(image.reshape(1300, 2, 301, 3).mean(axis=1), 1)
    found = tree["scale1"]["image"].data.compute().transpose(1, 2, 0)
    assert abs(found - expected).max() <= 4  # beside chunk borders
    assert abs(found - expected).mean() < 0.3  # rounding
    assert list(tree["scale2"]["image"].coords["c"].values) == ["r", "g", "b"]


class Counting:
    """A level in memory that says what was read of it."""

    def __init__(self, image: np.ndarray) -> None:
        self.image, self.shape, self.dtype, self.ndim = image, image.shape, image.dtype, 3
        self.chunk_px = (1000, 1000)
        self.reads: list[tuple] = []

    def __getitem__(self, index: tuple[slice, slice, slice]) -> np.ndarray:
        self.reads.append(index)
        return self.image[index]


def test_coarse_levels_of_a_flat_slide_cost_one_pass_together() -> None:
    image = picture(4000, 3000).transpose(2, 0, 1)
    source = Counting(image)
    tree = multiscale([to_dask(source)], {"global": np.eye(3)})
    assert not source.reads
    expected = halve(to_dask(Counting(image)))
    np.testing.assert_array_equal(tree["scale1"]["image"].data.compute(), expected.compute())
    np.testing.assert_array_equal(tree["scale2"]["image"].data.compute(), halve(expected).compute())
    assert len(source.reads) == 4 * 3


def test_a_kept_level_survives_pickling() -> None:
    half = halve(to_dask(Counting(picture(2000, 1500).transpose(2, 0, 1))))
    again = pickle.loads(pickle.dumps(pixels.KeptLevel(half)))
    np.testing.assert_array_equal(again[:, 10:40, 20:90], half[:, 10:40, 20:90].compute())


def test_coarse_chunks_decode_each_fine_chunk_once() -> None:
    import dask.array as da

    loads: list[tuple] = []

    class Source:
        shape, dtype, ndim = (3, 4000, 3000), np.dtype(np.uint8), 3

        def __getitem__(self, index):
            loads.append(index)
            return np.zeros([s.stop - s.start for s in index], np.uint8)

    fine = da.from_array(Source(), chunks=(3, 960, 960), asarray=False, name=False, meta=np.empty((0, 0, 0), np.uint8))
    coarse = halve(halve(fine))
    for y in range(coarse.numblocks[1]):
        for x in range(coarse.numblocks[2]):
            coarse.blocks[0, y, x].compute(scheduler="synchronous")
    assert len(loads) == 5 * 4


def area_mean(image: np.ndarray, axis: int) -> np.ndarray:
    """Average to half as many rows whose borders coincide with the image's, in the slow and obvious way."""
    image = np.moveaxis(image, axis, 0)
    size, n = len(image), len(image) // 2
    out = []
    for i in range(n):
        low, high = i * size / n, (i + 1) * size / n
        weights = np.clip(np.minimum(high, np.arange(1, size + 1)) - np.maximum(low, np.arange(size)), 0, None)
        out.append(np.tensordot(weights, image, axes=1) / weights.sum())
    return np.moveaxis(np.array(out), 0, axis)


@pytest.mark.parametrize("shape", [(30, 28), (31, 28), (30, 29), (31, 29)])
@pytest.mark.parametrize("chunks", [(7, 9), (5, 5), (1, 3), (31, 2), (31, 29)])
def test_halving_is_an_area_mean_whatever_the_chunks(shape: tuple[int, int], chunks: tuple[int, int]) -> None:
    import dask.array as da

    # smooth, so that the one row which a chunk lacks matters as little as in pictures
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = np.stack([4 * y + 2 * x, 120 + 4 * x - 3 * y, 100 + 3 * y]).astype(np.uint8)
    expected = area_mean(area_mean(image.astype(float), 1), 2)
    found = halve(da.from_array(image, chunks=(3, *chunks))).compute()
    single = chunks == (31, 29) or all(n % 2 == 0 for n in shape)
    assert abs(found - expected).max() <= (0.51 if single else 3.5)


@pytest.mark.parametrize("size", [(1471, 1236), (1237, 1471), (1999, 1999)])
def test_coarse_levels_lie_where_the_fine_one_does(size: tuple[int, int]) -> None:
    import dask.array as da

    # a dithered ramp tells its own place
    ramp = (np.arange(size[1]) + 0.5) / 8 + np.random.default_rng(0).random(size)
    image = np.broadcast_to(ramp.astype(np.uint8), (3, *size))
    tree = multiscale([da.from_array(image, chunks=(3, 256, 256))], {"um": np.eye(3)})
    for k in list(tree)[1:]:
        level = tree[k]["image"]
        found = level.values[0].astype(float).mean(axis=0) * 8 - level.coords["x"].values
        assert abs(found[-100:-5].mean() - found[5:100].mean()) < 0.3, k  # px of the finest


def test_one_pixel_images_and_thin_strips_make_valid_elements() -> None:
    import dask.array as da

    tree = multiscale([da.zeros((3, 1, 5000), dtype=np.uint8)], {"um": np.eye(3)})
    assert list(tree) == ["scale0"]


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_flat_images_are_decoded_once_and_one_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    from stpred.io._images import flat

    calls: list[Path] = []
    original = flat._decode
    monkeypatch.setattr(flat, "_decode", lambda p: calls.append(p) or original(p))
    monkeypatch.setattr(pixels, "CHUNK_PX", 100)
    paths = [tmp_path / f"{i}.{suffix}" for i in range(2)]
    for i, path in enumerate(paths):
        Image.fromarray(picture(seed=i)).save(path, quality=95)
    arrays = [to_dask(open_pixels(p).levels[0]) for p in paths]
    assert calls == []
    assert arrays[0].numblocks == (1, 4, 5)
    expected = np.asarray(Image.open(paths[0])).transpose(2, 0, 1)
    np.testing.assert_array_equal(arrays[0].compute(scheduler="threads", num_workers=2), expected)
    arrays[0][:, :5].compute(scheduler="synchronous")
    assert calls == [paths[0]]
    arrays[1].compute(scheduler="synchronous")
    arrays[0].compute(scheduler="synchronous")
    assert calls == [paths[0], paths[1], paths[0]]
    assert FlatImage._kept is not None
    assert FlatImage._kept[1].shape == (301, 405, 3)


def test_a_changed_flat_image_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(picture(seed=0)).save(path)
    array = to_dask(open_pixels(path).levels[0])
    array.compute(scheduler="synchronous")
    Image.fromarray(picture(seed=1)).save(path)
    os.utime(path, ns=(1, 1))
    np.testing.assert_array_equal(array.compute(scheduler="synchronous").transpose(1, 2, 0), picture(seed=1))
    Image.fromarray(picture(50, 60)).save(path)
    os.utime(path, ns=(2, 2))
    with pytest.raises(InputError, match="changed since it was opened"):
        array.compute(scheduler="synchronous")


def test_huge_flat_images_pass_without_touching_pillows_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    path = tmp_path / "a.png"
    Image.fromarray(picture()).save(path)
    np.testing.assert_array_equal(whole(path), picture())
    assert Image.MAX_IMAGE_PIXELS == 100


def test_large_compressed_strips_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff, "STRIP_BYTES", 10_000)
    path = tmp_path / "s.tif"
    tifffile.imwrite(path, picture(), rowsperstrip=301, compression="zlib", photometric="rgb")
    level = open_pixels(path).levels[0]
    assert isinstance(level, FlatImage)
    np.testing.assert_array_equal(to_dask(level).compute(scheduler="synchronous").transpose(1, 2, 0), picture())


def test_levels_survive_pickling(tmp_path: Path) -> None:
    path = tmp_path / "t.tif"
    tifffile.imwrite(path, picture(), tile=(64, 64), compression="zlib", photometric="rgb")
    level = open_pixels(path).levels[0]
    level[slice(0, 3), slice(0, 5), slice(0, 5)]
    again = pickle.loads(pickle.dumps(level))
    np.testing.assert_array_equal(again[slice(0, 3), slice(0, 301), slice(0, 405)].transpose(1, 2, 0), picture())


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        (np.zeros((40, 50), np.uint8), {}, "greyscale"),
        (np.zeros((40, 50), np.uint16), {}, "16-bit greyscale"),
        (np.zeros((40, 50, 3), np.uint16), {"photometric": "rgb"}, r"16-bit \(uint16\)"),
        (np.zeros((40, 50, 4), np.uint8), {"photometric": "separated"}, "CMYK"),
        (np.zeros((5, 40, 50), np.uint8), {"photometric": "minisblack"}, r"a stack|5-channel"),
        (np.zeros((40, 50, 3), np.float32), {"photometric": "rgb"}, "32-bit"),
    ],
)
def test_tifs_that_are_not_8_bit_rgb_say_what_they_are(
    tmp_path: Path, array: np.ndarray, options: dict, message: str
) -> None:
    tifffile.imwrite(tmp_path / "x.tif", array, **options)
    with pytest.raises(InputError, match=f"'x.tif' is .*({message}).*three 8-bit channels"):
        open_pixels(tmp_path / "x.tif")


@pytest.mark.parametrize(
    ("mode", "message"), [("L", "greyscale"), ("LA", "greyscale with transparency"), ("I;16", "16-bit")]
)
def test_pngs_that_are_not_rgb_say_what_they_are(tmp_path: Path, mode: str, message: str) -> None:
    Image.new(mode, (30, 20)).save(tmp_path / "x.png")
    with pytest.raises(InputError, match=f"'x.png' is .*{message}"):
        open_pixels(tmp_path / "x.png")


def test_16_bit_colour_pngs_are_refused_though_pillow_opens_them_as_rgb(tmp_path: Path) -> None:
    from imagecodecs import png_encode

    path = tmp_path / "deep.png"
    path.write_bytes(png_encode(picture().astype(np.uint16) * 257))
    assert Image.open(path).mode == "RGB"
    with pytest.raises(InputError, match="'deep.png' is 16-bit"):
        open_pixels(path)


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
def test_cut_files_are_refused_when_they_are_opened(tmp_path: Path, keep: float) -> None:
    image = picture(600, 700)
    tifffile.imwrite(tmp_path / "a.tif", image, tile=(64, 64), compression="zlib", photometric="rgb")
    tifffile.imwrite(tmp_path / "b.tif", image, photometric="rgb")
    Image.fromarray(image).save(tmp_path / "c.png")
    Image.fromarray(image).save(tmp_path / "d.jpg")
    for path in sorted(tmp_path.iterdir()):
        content = path.read_bytes()
        path.write_bytes(content[: int(keep * len(content))])
        with pytest.raises(InputError, match=f"{path.name}.*(cut off|damaged)"):
            open_pixels(path)


def test_damaged_pixels_name_the_file_when_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, picture(), tile=(64, 64), compression="zlib", photometric="rgb")
    with tifffile.TiffFile(path) as tif:
        offset = tif.pages[0].dataoffsets[3]
    content = bytearray(path.read_bytes())
    content[offset : offset + 40] = b"\xff" * 40
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"Tile 3 of 'a.tif' cannot be decoded"):
        whole(path)


def test_missing_unknown_and_mislabelled_files(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no image file"):
        open_pixels(tmp_path / "none.tif")
    (tmp_path / "x.bmp").write_bytes(b"BM")
    with pytest.raises(InputError, match=r"'x.bmp' is no image format.*'\.svs'"):
        open_pixels(tmp_path / "x.bmp")
    (tmp_path / "x.tif").write_bytes(b"not a tif at all")
    with pytest.raises(InputError, match="'x.tif' cannot be read as a tif"):
        open_pixels(tmp_path / "x.tif")
    (tmp_path / "x.png").write_bytes(b"not a png")
    with pytest.raises(InputError, match="neither a png nor a jpg"):
        open_pixels(tmp_path / "x.png")


def test_other_vendors_slides_need_wsidata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "wsidata", None)
    (tmp_path / "x.mrxs").write_bytes(b"")
    with pytest.raises(InputError, match=r"pip install 'stpred\[wsi\]'"):
        open_pixels(tmp_path / "x.mrxs")


def test_vendor_levels_read_the_pixels_that_tifffile_reads(tmp_path: Path) -> None:
    pytest.importorskip("wsidata")
    from stpred.io._images.vendor import open_vendor

    path = tmp_path / "v.tif"
    tifffile.imwrite(path, picture(512, 640), tile=(128, 128), compression="zlib", photometric="rgb")
    level = open_vendor(path).levels[0]
    assert level.shape == (3, 512, 640)
    window = level[slice(0, 3), slice(100, 180), slice(33, 90)]
    np.testing.assert_array_equal(window.transpose(1, 2, 0), picture(512, 640)[100:180, 33:90])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}, 0.5),
        ({"resolution": (50800, 50800), "resolutionunit": "INCH"}, 0.5),
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, None),
        ({"resolution": (300, 300), "resolutionunit": "INCH"}, None),
        ({"resolution": (20000, 20000), "resolutionunit": "NONE"}, None),
        ({"description": "Aperio Image Library v11\r\nx|AppMag = 40|MPP = 0.2520"}, 0.252),
        ({}, None),
    ],
)
def test_resolution_of_tif_headers(tmp_path: Path, options: dict, expected: float | None) -> None:
    path = tmp_path / "r.tif"
    tifffile.imwrite(path, picture(), photometric="rgb", metadata=None, **options)
    found = [e.mpp for e in open_pixels(path).evidence]
    assert found == ([] if expected is None else [pytest.approx(expected)])


@pytest.mark.parametrize(
    ("size", "unit", "expected"), [(0.27, "µm", 0.27), (270.0, "nm", 0.27), (0.00027, "mm", 0.27), (1.0, "pixel", None)]
)
def test_resolution_of_ome_headers_has_units(tmp_path: Path, size: float, unit: str, expected: float | None) -> None:
    path = tmp_path / "r.ome.tif"
    metadata = {
        "axes": "YXS",
        "PhysicalSizeX": size,
        "PhysicalSizeXUnit": unit,
        "PhysicalSizeY": size,
        "PhysicalSizeYUnit": unit,
    }
    tifffile.imwrite(path, picture(), photometric="rgb", metadata=metadata)
    found = [e.mpp for e in open_pixels(path).evidence]
    assert found == ([] if expected is None else [pytest.approx(expected)])


def test_pixels_that_are_not_square_are_refused(tmp_path: Path) -> None:
    metadata = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.6}
    tifffile.imwrite(tmp_path / "r.ome.tif", picture(), photometric="rgb", metadata=metadata)
    with pytest.raises(InputError, match=r"not square.*0\.5 by 0\.6 um"):
        open_pixels(tmp_path / "r.ome.tif")


def test_reading_a_large_slide_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "big.tif"
    tile = np.full((512, 512, 3), 200, np.uint8)
    side = 10_240
    tifffile.imwrite(
        path, (tile for _ in range((side // 512) ** 2)), shape=(side, side, 3), dtype=np.uint8, tile=(512, 512),
        compression="zlib", photometric="rgb",
    )  # fmt: skip
    tracemalloc.start()
    tree = to_image(open_pixels(path), {"um": np.eye(3)})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert tree["scale0"]["image"].shape == (3, side, side)
    assert peak < 20e6  # the image has 315 MB


def test_one_channel_row_or_pixel_of_a_lazy_image(tmp_path: Path) -> None:
    image = picture()
    tifffile.imwrite(tmp_path / "a.tif", image, tile=(64, 64), photometric="rgb", compression="zlib")
    Image.fromarray(image).save(tmp_path / "a.png")
    for path in tmp_path.iterdir():
        array = to_dask(open_pixels(path).levels[0])
        np.testing.assert_array_equal(array[1].compute(), image[..., 1])
        np.testing.assert_array_equal(array[:, 70, 5:9].compute(), image[70, 5:9].T)
        np.testing.assert_array_equal(array[:, [3, 90]].compute(), image[[3, 90]].transpose(2, 0, 1))
        assert array[0, 5, -1].compute() == image[5, -1, 0]

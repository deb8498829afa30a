"""What headers say of the resolution: numbers and units as they are written, placeholders, several sources."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

import stpred as st
from stpred import InputError
from stpred.calibration import Evidence, settle_mpp
from stpred.io._images.open import open_pixels
from stpred.io._images.resolution import length_um
from stpred.testing import affine_to

RGB = np.full((60, 80, 3), 200, np.uint8)
CM = {"resolutionunit": "CENTIMETER"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.499000", 0.499), ("0,500000", 0.5), ("1,003", 1.003), ("4.99e-01", 0.499), ("4,99E-1", 0.499),
        (".25", 0.25),
        ("+0.25", 0.25), (" 0.25 ", 0.25), ('"0.25"', 0.25), ("0.25 um/px", 0.25), ("0.25um", 0.25), ("0.25 µm", 0.25),
        ("0.25 \u03bcm/pixel", 0.25), ("0,25 microns per pixel", 0.25), ("250 nm", 0.25), ("0.00025 mm", 0.25),
        ("2.5e-05 cm", 0.25), (0.25, 0.25), ("0", None), ("-0.25", None), ("nan", None), ("inf", None),
        ("unknown", None),
        ("", None), ("4 px/um", None), ("0.25 pixel", None), ("1.234,5", None), ("1,234.5", None), ("1e9", None),
        ("1e-9", None), ("0.25.1", None),
    ],
)  # fmt: skip
def test_lengths_are_read_as_they_are_written(text: Any, expected: float | None) -> None:
    assert length_um(text) == (None if expected is None else pytest.approx(expected))


def tif(path: Path, **options: Any) -> Path:
    tifffile.imwrite(path, RGB, photometric="rgb", metadata=None, **options)
    return path


def found(path: Path) -> list[float]:
    return [e.mpp for e in open_pixels(path).evidence]


def aperio(*values: str) -> str:
    return "Aperio Image Library v1\r\n80x60|AppMag = 20|" + "|".join(f"MPP = {v}" for v in values)


@pytest.mark.parametrize("text", ["0,499", "4.99e-01", "0.499 um/px", "0.499 µm"])
def test_aperio_headers_of_other_locales_and_with_units(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    tifffile.imwrite(path, RGB, photometric="rgb", metadata=None, description=aperio(text).encode())
    assert found(path) == [pytest.approx(0.499)]


def test_what_cannot_be_used_hides_nothing_behind_it(tmp_path: Path) -> None:
    tags = {"resolution": (20000, 20000), **CM}
    assert found(tif(tmp_path / "a.svs", description=aperio("unknown"), **tags)) == [pytest.approx(0.5)]
    assert found(tif(tmp_path / "b.svs", description=aperio("0"), **tags)) == [pytest.approx(0.5)]
    assert found(tif(tmp_path / "c.svs", description=aperio("unknown", "0,5"))) == [0.5]
    for k, size in enumerate([0.0, -1.0, float("nan"), float("inf"), 1e9, "half"]):
        path = tmp_path / f"{k}.ome.tif"
        metadata = {"axes": "YXS", "PhysicalSizeX": size, "PhysicalSizeY": size}
        tifffile.imwrite(path, RGB, photometric="rgb", metadata=metadata, **tags)
        assert found(path) == [pytest.approx(0.5)], size


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"resolution": (50800, 50800), "resolutionunit": "INCH"}, 0.5),
        ({"resolution": (20000, 20000), **CM}, 0.5),
        ({"resolution": (600, 600), "resolutionunit": "INCH"}, None),
        ({"resolution": (118.11, 118.11), **CM}, None),  # 300 dpi
        ({"resolution": (0, 0), **CM}, None),
    ],
)
def test_tags_in_inch_and_centimetre(options: dict[str, Any], expected: float | None, tmp_path: Path) -> None:
    assert found(tif(tmp_path / "a.tif", **options)) == ([] if expected is None else [pytest.approx(expected)])


def test_rationals_that_divide_by_zero_tell_nothing(tmp_path: Path) -> None:
    path = tif(tmp_path / "a.tif", extratags=[(282, 5, 1, (20000, 0), True), (283, 5, 1, (20000, 0), True)])
    assert found(path) == []


def ome(path: Path, size: float, **options: Any) -> Path:
    metadata = {"axes": "YXS", "PhysicalSizeX": size, "PhysicalSizeY": size}
    tifffile.imwrite(path, RGB, photometric="rgb", metadata=metadata, **options)
    return path


def test_a_placeholder_is_taken_with_a_warning_that_asks_for_mpp(tmp_path: Path) -> None:
    for path in (
        ome(tmp_path / "a.ome.tif", 1.0),
        tif(tmp_path / "a.tif", resolution=(10000, 10000), **CM),
        tif(tmp_path / "a.svs", description=aperio("1.0000")),
    ):
        with pytest.warns(UserWarning, match=rf"{path.name} alone, as 1 um per pixel, which programs .*pass mpp="):
            sdata = st.io.wsi(path)
        assert affine_to(sdata.images["he"])[0, 0] == 1
    with pytest.warns(UserWarning, match=r"alone, as 10\.58"):
        st.io.wsi(tif(tmp_path / "scan.tif", resolution=(2400, 2400), resolutionunit="INCH"))


@pytest.mark.filterwarnings("error::UserWarning")
def test_a_placeholder_never_wins_over_a_value_nor_contradicts_one(tmp_path: Path) -> None:
    path = ome(tmp_path / "a.ome.tif", 1.0, resolution=(20000, 20000), **CM)
    assert affine_to(st.io.wsi(path).images["he"])[0, 0] == pytest.approx(0.5)
    path = ome(tmp_path / "b.ome.tif", 1.0)
    assert affine_to(st.io.wsi(path, mpp=0.2125).images["he"])[0, 0] == 0.2125
    assert affine_to(st.io.wsi(path, mpp=1.0).images["he"])[0, 0] == 1.0  # said by who knows
    evidence = [Evidence(0.2125, "the alignment"), *open_pixels(path).evidence]
    assert settle_mpp(evidence) == 0.2125


def test_two_fields_of_one_file_that_differ_are_told_and_the_header_is_used(tmp_path: Path) -> None:
    path = ome(tmp_path / "a.ome.tif", 0.5, resolution=(40000, 40000), **CM)
    said = r"the OME header of a\.ome\.tif says 0\.5 um per pixel and the TIFF resolution tags of a\.ome\.tif 0\.25"
    with pytest.warns(UserWarning, match=said):
        sdata = st.io.wsi(path)
    assert affine_to(sdata.images["he"])[0, 0] == 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert found(ome(tmp_path / "b.ome.tif", 0.5, resolution=(20100, 20100), **CM)) == [0.5]


def test_each_scene_has_its_own_size(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as tif:
        for size in (0.25, 0.5):
            tif.write(RGB, photometric="rgb", metadata={"axes": "YXS", "PhysicalSizeX": size, "PhysicalSizeY": size})
    assert [[e.mpp for e in open_pixels(path, scene=k).evidence] for k in (0, 1)] == [[0.25], [0.5]]


def philips(path: Path) -> Path:
    """Write the header of a Philips slide of two levels: spacings in mm, rows before columns."""

    def spacing(mm: float) -> str:
        return (
            '<DataObject ObjectType="PixelDataRepresentation"><Attribute Name="DICOM_PIXEL_SPACING" Group="0x0028" '
            f'Element="0x0030" PMSVR="IDoubleArray">"{mm:.9f}" "{mm:.9f}"</Attribute></DataObject>'
        )

    about = (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
        '<Attribute Name="PIM_DP_SCANNED_IMAGES"><Array><DataObject ObjectType="DPScannedImage">'
        f'<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE"><Array>{spacing(0.00025)}{spacing(0.0005)}'
        "</Array></Attribute></DataObject></Array></Attribute></DataObject>"
    )
    image = np.full((1024, 1024, 3), 200, np.uint8)
    with tifffile.TiffWriter(path) as tif:
        for k, level in enumerate((image, image[::2, ::2])):
            tif.write(
                level, photometric="rgb", tile=(256, 256), metadata=None, compression="zlib",
                description=about if k == 0 else None, software="Philips DP v1.0", subfiletype=k,
            )  # fmt: skip
    return path


def test_philips_slides_state_the_spacing_in_millimetres(tmp_path: Path) -> None:
    path = philips(tmp_path / "a.tiff")
    with tifffile.TiffFile(path) as tif:
        assert tif.is_philips
    pixels = open_pixels(path)
    assert [e.mpp for e in pixels.evidence] == [pytest.approx(0.25)]
    assert [level.shape[1] for level in pixels.levels] == [1024, 512]


def test_ventana_slides_state_it_in_their_xmp(tmp_path: Path) -> None:
    xmp = b'<EncodeInfo><iScan Magnification="20" ScanRes="0.465"/></EncodeInfo>'
    path = tif(tmp_path / "a.tif", extratags=[(700, 1, len(xmp), xmp, True)])
    assert found(path) == [pytest.approx(0.465)]


def test_densities_of_pictures(tmp_path: Path) -> None:
    from PIL import Image

    for name, dpi, expected in (("a", 50800, 0.5), ("b", 300, None), ("c", 72, None)):
        Image.fromarray(RGB).save(tmp_path / f"{name}.png", dpi=(dpi, dpi))
        Image.fromarray(RGB).save(tmp_path / f"{name}.jpg", dpi=(dpi, dpi))
        for suffix in ("png", "jpg"):
            expected_list = [] if expected is None else [pytest.approx(expected, rel=1e-3)]
            assert found(tmp_path / f"{name}.{suffix}") == expected_list
    Image.fromarray(RGB).save(tmp_path / "d.png", dpi=(0, 0))
    assert found(tmp_path / "d.png") == []


@pytest.mark.parametrize("value", [1e9, 1e-9, 101, 0.001])
def test_resolutions_that_no_image_has_are_refused(value: float, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"`mpp` must be 0\.01 to 100 um per pixel"):
        st.io.wsi(tif(tmp_path / "a.tif"), mpp=value)
    with pytest.raises(InputError, match=r"of the image is .* according to the pitch, which no image of tissue has"):
        settle_mpp([Evidence(value, "the pitch")])


def test_chunks_of_a_png_are_what_the_density_is_read_from(tmp_path: Path) -> None:
    """Pixels per metre of unknown unit are only an aspect ratio."""
    from PIL import Image

    Image.fromarray(RGB).save(tmp_path / "a.png", dpi=(50800, 50800))
    content = bytearray((tmp_path / "a.png").read_bytes())
    at = content.index(b"pHYs")
    content[at + 12] = 0
    content[at + 13 : at + 17] = struct.pack(">I", zlib.crc32(bytes(content[at : at + 13])))
    (tmp_path / "a.png").write_bytes(bytes(content))
    assert found(tmp_path / "a.png") == []

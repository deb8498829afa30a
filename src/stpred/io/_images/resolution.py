"""What image files say of their resolution, and what of it can be believed."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

from stpred._core.checks import InputError
from stpred._core.elements import ANISOTROPY_LIMIT
from stpred._core.settings import settings
from stpred.calibration import MAX_MPP, MIN_MPP, Evidence

logger = logging.getLogger("stpred")

COARSEST_DENSITY_UM = 20.0
"""Screen and print defaults (72, 96, 300, 600, 1200 dpi: 353 to 21 um per pixel) lie above."""
SCANNER_DPI = (1440.0, 2400.0, 2880.0, 3600.0, 4800.0, 7200.0, 9600.0)
"""Densities that desktop scanners and printers state, whatever was scanned."""

_UNITS_UM = {
    "": 1.0, "µm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0, "micrometers": 1.0,
    "micrometre": 1.0, "micrometres": 1.0, "nm": 1e-3, "pm": 1e-6, "å": 1e-4, "mm": 1e3, "cm": 1e4, "dm": 1e5, "m": 1e6,
    "in": 25400.0, "inch": 25400.0,
}  # fmt: skip
_NUMBER = re.compile(r"[+-]?(?:\d+(?:[.,]\d*)?|[.,]\d+)(?:[eE][+-]?\d+)?(?![\d.,])")


def length_um(text: Any, *, unit: str | None = None) -> float | None:
    """Return a stated length in micrometres, or None where it is none.

    The decimal sign may be a comma, and a unit may follow, also one "per pixel"; an unknown unit (such as "pixel", or
    "px/um") tells nothing.

    Parameters
    ----------
    text
        Such as ``0.499``, ``"0,5"``, ``"4.99e-01 um/px"``.
    unit
        The unit where it is stated apart; else what follows the number.
    """
    text = str(text).strip().strip("\"'").strip()
    match = _NUMBER.match(text)
    if match is None:
        return None
    factor = _unit_um(text[match.end() :] if unit is None else unit)
    if factor is None:
        return None
    value = float(match[0].replace(",", ".")) * factor
    return value if MIN_MPP <= value <= MAX_MPP else None


def _unit_um(unit: str) -> float | None:
    unit = unit.strip().lower().replace("\\u00b5", "µ").replace("μ", "µ")
    return _UNITS_UM.get(re.sub(r"\s*(/|per)\s*(px|pix|pixels?)$", "", unit))


def evidence_of(mpp: float | None, source: str) -> Evidence | None:
    """Return a stated resolution as evidence; exactly 1 um is what converters write where they know none."""
    if mpp is None or not MIN_MPP <= mpp <= MAX_MPP:
        return None
    return Evidence(mpp, source, placeholder=abs(mpp - 1) < 1e-6)


def density(per_unit: float, *, unit_um: float, source: str) -> Evidence | None:
    """Return pixels per unit as evidence, or None where it is not a microscope's resolution."""
    if not 0 < per_unit < float("inf"):
        return None
    mpp = unit_um / per_unit
    if not MIN_MPP <= mpp <= COARSEST_DENSITY_UM:
        return None
    desktop = any(abs(25400 / mpp / dpi - 1) < 1e-3 for dpi in SCANNER_DPI)
    return Evidence(mpp, source, placeholder=desktop or abs(mpp - 1) < 1e-6)


def tiff_resolution(tif: Any, page: Any, *, image: Any = None) -> tuple[Evidence, ...]:
    """Return what an opened tif says of the resolution of its finest level, the most trusted first.

    All that the file says is compared: what only repeats the first is dropped, and what contradicts it is secondary.

    Parameters
    ----------
    tif
        The opened ``TiffFile``.
    page
        The finest level's first page.
    image
        The ``Image`` of the OME header that describes it, if any.
    """
    found: list[Evidence] = []
    unequal: list[str] = []
    for evidence, source in _stated(tif, page, image):
        sizes = [e for e in evidence if e is not None]
        if not sizes:
            logger.debug("nothing usable in %s", source)
            continue
        if abs(sizes[0].mpp / sizes[-1].mpp - 1) > ANISOTROPY_LIMIT:
            unequal.append(f"{source}: {sizes[0].mpp:.4g} by {sizes[-1].mpp:.4g} um")
            continue
        found.append(sizes[0])
    if unequal and all(e.placeholder for e in found):
        raise InputError(f"The pixels are not square according to {unequal[0]}; resample the image to square pixels.")
    found.sort(key=lambda e: e.placeholder)
    first, others = found[:1], found[1:]
    return (*first, *(e._replace(secondary=True) for e in others if _differs(e, first[0])))


def _differs(one: Evidence, other: Evidence) -> bool:
    return max(one.mpp / other.mpp, other.mpp / one.mpp) > 1 + settings.mpp_tolerance


Sizes = tuple[Evidence | None, ...]


def _stated(tif: Any, page: Any, image: Any) -> Iterator[tuple[Sizes, str]]:
    """Yield the evidence in x and y of each part of the file that speaks of resolution, the most trusted first."""
    name, about = tif.filename, page.description or ""
    if about.startswith("Aperio"):
        source = f"the Aperio header of {name}"
        values = (evidence_of(length_um(m), source) for m in re.findall(r"\bMPP\s*=\s*([^|\r\n]*)", about))
        yield tuple(v for v in values if v is not None)[:1], source
    if image is not None:
        yield _ome(image, f"the OME header of {name}"), f"the OME header of {name}"
    if tif.is_philips:
        source = f"the Philips header of {name}"
        yield _philips(tif.philips_metadata or about, source), source
    if scanned := re.findall(r"\bScanRes\s*=\s*[\"']([^\"']*)[\"']", _text(page, 700)):  # Ventana's iScan element
        source = f"the Ventana header of {name}"
        yield tuple(evidence_of(length_um(s), source) for s in scanned[:1]), source
    tags = _ratio(page, "XResolution"), _ratio(page, "YResolution")
    if tif.is_imagej:
        source = f"the ImageJ header of {name}"
        unit_um = _unit_um(str((tif.imagej_metadata or {}).get("unit", "pixel")))
        yield tuple(density(t, unit_um=unit_um or 0.0, source=source) for t in tags), source
    source = f"the TIFF resolution tags of {name}"
    unit_um = {2: 25400.0, 3: 10000.0}.get(_whole(page, "ResolutionUnit", default=2))
    both = tuple(density(t, unit_um=unit_um or 0.0, source=source) for t in tags)
    yield both if None not in both else (), source


def _ome(image: Any, source: str) -> Sizes:
    pixels = next((child for child in image if child.tag.rpartition("}")[2] == "Pixels"), None)
    if pixels is None:
        return ()
    sizes = [
        length_um(pixels.get(f"PhysicalSize{axis}", ""), unit=pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        for axis in "XY"
    ]
    return tuple(evidence_of(size, source) for size in sizes)


def _philips(text: str, source: str) -> Sizes:
    """Return the finest of the pixel spacings (mm, rows before columns) that the header states for each level."""
    found = []
    for spacing in re.findall(r"Name=\"DICOM_PIXEL_SPACING\"[^>]*>([^<]*)<", text):
        values = [length_um(v, unit="mm") for v in spacing.replace("&quot;", '"').split()]
        if len(values) == 2 and None not in values:
            found.append(values[::-1])
    if not found:
        return ()
    return tuple(evidence_of(size, source) for size in min(found, key=lambda f: f[0] or 0.0))


def ome_images(tif: Any) -> list[Any]:
    """Return the ``Image`` elements of an OME header, in order; none where it cannot be parsed."""
    if not tif.is_ome or not tif.ome_metadata:
        return []
    try:
        root = ElementTree.fromstring(tif.ome_metadata)
    except ElementTree.ParseError as error:
        logger.info("The OME header of %s cannot be parsed: %s", tif.filename, error)
        return []
    return [child for child in root if child.tag.rpartition("}")[2] == "Image"]


def _text(page: Any, tag: int) -> str:
    value = page.tags.valueof(tag, "")
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _ratio(page: Any, tag: str) -> float:
    """Return a rational tag as number, 0 where it is absent or none."""
    value = page.tags.valueof(tag, (0, 1))
    try:
        return float(value[0]) / float(value[1]) if isinstance(value, tuple) else float(value)
    except (ZeroDivisionError, TypeError, ValueError, IndexError):
        return 0.0


def _whole(page: Any, tag: str, *, default: int) -> int:
    value = page.tags.valueof(tag, default)
    return int(value) if isinstance(value, int) else -1

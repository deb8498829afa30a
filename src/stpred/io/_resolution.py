"""What image files say of their resolution, and what of it can be believed."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

from stpred._core.calibration import Evidence
from stpred._core.checks import InputError
from stpred._core.elements import ANISOTROPY_LIMIT

PLAUSIBLE_UM = (0.05, 20.0)
"""Screen and print defaults (72, 96, 300, 600, 1200 dpi: 353 to 21 um per pixel) lie outside."""

_UNITS_UM = {"µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "pm": 1e-6}


def density(per_unit: float, *, unit_um: float, source: str) -> Evidence | None:
    """Return pixels per unit as evidence, or None where it is not a microscope's resolution."""
    if not per_unit > 0:
        return None
    mpp = unit_um / per_unit
    return Evidence(mpp, source) if PLAUSIBLE_UM[0] <= mpp <= PLAUSIBLE_UM[1] else None


def tiff_resolution(tif: Any, page: Any) -> tuple[Evidence, ...]:
    """Return what an opened tif says of the resolution of its finest level, the most trusted first."""
    name = tif.filename
    found = [_aperio(page.description or "", name), _ome(tif, page, name), _imagej(tif, page, name), _tags(page, name)]
    return tuple(e for e in found if e is not None)[:1]


def _aperio(description: str, name: str) -> Evidence | None:
    if not description.startswith("Aperio"):
        return None
    match = re.search(r"\bMPP\s*=\s*(\d*\.?\d+)", description)
    return Evidence(float(match[1]), f"the Aperio header of {name}") if match else None


def _ome(tif: Any, page: Any, name: str) -> Evidence | None:
    if not tif.is_ome or not tif.ome_metadata:
        return None
    try:
        root = ElementTree.fromstring(tif.ome_metadata)
    except ElementTree.ParseError:
        return None
    for pixels in root.iter():
        if not pixels.tag.endswith("}Pixels") or int(pixels.get("SizeX", 0)) != page.imagewidth:
            continue
        sizes = []
        for axis in "XY":
            value = pixels.get(f"PhysicalSize{axis}")
            factor = _UNITS_UM.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
            if value is None or factor is None:  # units such as "pixel" or "reference frame" tell nothing
                return None
            sizes.append(float(value) * factor)
        return _square(sizes[0], sizes[1], f"the OME header of {name}")
    return None


def _imagej(tif: Any, page: Any, name: str) -> Evidence | None:
    factor = _UNITS_UM.get(str((tif.imagej_metadata or {}).get("unit", "")).replace("\\u00B5", "µ"))
    tag = page.tags.get("XResolution")
    if factor is None or tag is None or not tag.value[1]:
        return None
    return density(tag.value[0] / tag.value[1], unit_um=factor, source=f"the ImageJ header of {name}")


def _tags(page: Any, name: str) -> Evidence | None:
    unit = page.tags.get("ResolutionUnit")
    unit_um = {2: 25400.0, 3: 10000.0}.get(int(unit.value) if unit is not None else 2)
    sizes = []
    for key in ("XResolution", "YResolution"):
        tag = page.tags.get(key)
        if tag is None or unit_um is None or not tag.value[0] or not tag.value[1]:
            return None
        found = density(tag.value[0] / tag.value[1], unit_um=unit_um, source=f"the TIFF resolution tags of {name}")
        if found is None:
            return None
        sizes.append(found.mpp)
    return _square(sizes[0], sizes[1], f"the TIFF resolution tags of {name}")


def _square(x: float, y: float, source: str) -> Evidence | None:
    if not (PLAUSIBLE_UM[0] <= x <= PLAUSIBLE_UM[1]):
        return None
    if abs(x / y - 1) > ANISOTROPY_LIMIT:
        raise InputError(f"The pixels are not square according to {source}: {x:.4g} by {y:.4g} um.")
    return Evidence(x, source)

"""Calibration of an object that was read elsewhere."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import keys
from stpred._core.checks import InputError, key_in, listing, positive
from stpred._core.elements import (
    affine_to,
    apply_affine,
    find_image,
    mpp_of,
    need_sdata,
    rgb_problem,
    scale0,
    table_instances,
    table_regions,
)
from stpred.calibration import (
    HEX_STEPS,
    VISIUM_PITCH_UM,
    Evidence,
    check_inside,
    lattice_pitch_px,
    looks_hexagonal,
    nearest_pitch,
    place,
    scaling,
    settle_mpp,
)

if TYPE_CHECKING:
    from spatialdata import SpatialData

logger = logging.getLogger("stpred")

_BIN_NAME = re.compile(r"(?:square|bins)_(\d{3})um$")
_XENIUM_NAMES = ("cell_boundaries", "nucleus_boundaries", "cell_circles")
MIN_CELL_UM, MAX_CELL_UM = 2.0, 40.0
"""Median diameter that cells or nuclei of a tissue can have."""


def calibrate(
    sdata: SpatialData,
    *,
    image_key: str | None = None,
    shapes_key: str | None = None,
    mpp: float | None = None,
    um_between_centers: float | None = None,
    um_diameter: float | None = None,
    um_square_edge: float | None = None,
    coordinate_system: str = keys.UM,
) -> None:
    """Place the H&E image and all that shares a coordinate system with it in micrometres.

    For objects that stpred did not read: the output of spatialdata-io's ``visium``, ``visium_hd`` and ``xenium`` with
    its own names, or one made by hand. The resolution comes from `mpp`, from one of the ``um_*`` sizes of `shapes_key`,
    or is derived: from the hexagonal spot pitch of Visium (100 um), from bins named by their size (``square_008um``),
    or from Xenium's shapes, whose own unit is the micrometre (those of an object made by hand count only if they do
    not lie in pixels of the image and have the size of cells). Calling it again changes nothing.

    Parameters
    ----------
    sdata
        Object with an 8-bit RGB image.
    image_key
        The H&E image; None takes the one already in `coordinate_system`, else the finest RGB image. Smaller copies of
        the same picture are left alone.
    shapes_key
        The shapes to derive the resolution from; None tries all that share a coordinate system with the image.
    mpp
        Micrometres per pixel of the image.
    um_between_centers
        Distance between the centres of neighbouring shapes, in micrometres.
    um_diameter
        Diameter of the circles, in micrometres (Space Ranger's ``spot_diameter_fullres`` is nominally 65 um).
    um_square_edge
        Edge of the square bins, in micrometres.
    coordinate_system
        Name of the frame in micrometres; give each slide of a concatenated object its own.

    Returns
    -------
    None. Transformations to `coordinate_system` are added to the image and to the shapes, points and labels that share
    a coordinate system with it, in memory. Tables are left as they are.

    Raises
    ------
    InputError
        If there is no RGB image, another image is already in the frame, the shapes lie outside the image, or the
        resolution is unknown or contradictory.

    Examples
    --------
    >>> import stpred as st
    >>> from spatialdata import SpatialData
    >>> from spatialdata.models import Image2DModel
    >>> import numpy as np
    >>> pixels = np.full((3, 600, 600), 230, dtype=np.uint8)
    >>> sdata = SpatialData(images={"scan": Image2DModel.parse(pixels, dims=("c", "y", "x"))})
    >>> st.pp.calibrate(sdata, mpp=0.5)
    >>> sorted(sdata.coordinate_systems)
    ['global', 'um']
    """
    sizes = {"um_between_centers": um_between_centers, "um_diameter": um_diameter, "um_square_edge": um_square_edge}
    need_sdata(sdata)
    physical_size = _physical_size(sizes, mpp)
    image_key = _image(sdata, image_key, coordinate_system)
    image = sdata.images[image_key]
    references = _references(sdata, image, shapes_key, coordinate_system)
    if not _systems(image, without=coordinate_system):
        logger.info("Image %r lies in %r alone: nothing to do.", image_key, coordinate_system)
        return
    frame = _frame(image, references, coordinate_system)
    references = {name: element for name, element in references.items() if affine_to(element, frame) is not None}
    image_to_frame = _to(image, frame)
    what = f"image {image_key!r}"

    unit = mpp_of(image_to_frame, what=what)
    evidence = list(_derived(sdata, references, frame, unit=unit))
    existing = affine_to(image, coordinate_system)
    if existing is not None:
        evidence.insert(0, Evidence(mpp_of(existing, what=what), f"its place in {coordinate_system!r}"))
    stated = mpp if mpp is not None else _from_size(references, frame, physical_size, unit=unit)
    if not evidence and stated is None:
        raise InputError(
            f"The resolution of {what} cannot be derived from the shapes that share its frame, {listing(references)}"
            f"{_unsaid(sdata, references)}; pass mpp=, or shapes_key= with um_between_centers=, um_diameter= or "
            "um_square_edge=."
        )
    resolution = settle_mpp(evidence, user_mpp=stated, what=what)
    keep = existing is not None and abs(mpp_of(existing) / resolution - 1) < 1e-6
    to_um = existing @ np.linalg.inv(image_to_frame) if keep and existing is not None else scaling(resolution / unit)
    _check_cover(image, image_to_frame, references, frame, resolution)
    _place_all(sdata, image, frame, to_um, coordinate_system, renew=not keep)


def _unsaid(sdata: SpatialData, references: dict[str, Any]) -> str:
    named = [name for name in references if _is_xenium(sdata, name)]
    return f" (that the unit of {listing(named)} is the micrometre cannot be told from the name alone)" if named else ""


def _physical_size(sizes: dict[str, float | None], mpp: float | None) -> tuple[str, float] | None:
    """Return the one physical size that was given, if any."""
    stated = [(name, value) for name, value in sizes.items() if value is not None]
    if len(stated) + (mpp is not None) > 1:
        names = [name for name, _ in stated] + ["mpp"] * (mpp is not None)
        raise InputError(f"Give one of mpp, um_between_centers, um_diameter and um_square_edge, got {names}.")
    if not stated:
        return None
    return stated[0][0], positive(stated[0][1], name=stated[0][0], unit="um")


def _image(sdata: SpatialData, image_key: str | None, coordinate_system: str) -> str:
    """Return the H&E image; a second one in the frame is refused."""
    placed = [
        name
        for name, element in sdata.images.items()
        if rgb_problem(element) is None and affine_to(element, coordinate_system) is not None
    ]
    if image_key is None and len(placed) == 1:
        return placed[0]
    chosen = find_image(sdata, image_key, calibrated=False)
    if others := [name for name in placed if name != chosen]:
        raise InputError(
            f"{listing(others)} lies already in {coordinate_system!r}, which holds one H&E image; remove its "
            f"transformation or give {chosen!r} a frame of its own with coordinate_system=."
        )
    return chosen


def _systems(element: Any, *, without: str) -> set[str]:
    from spatialdata.transformations import get_transformation

    return set(get_transformation(element, get_all=True)) - {without}


def _references(sdata: SpatialData, image: Any, shapes_key: str | None, coordinate_system: str) -> dict[str, Any]:
    """Return the shapes that share a coordinate system with the image."""
    own = _systems(image, without=coordinate_system)
    if shapes_key is not None:
        element = sdata.shapes[key_in(shapes_key, sdata.shapes, what="shapes element", name="shapes_key")]
        if not own & _systems(element, without=coordinate_system):
            raise InputError(
                f"Shapes {shapes_key!r} and the image share no coordinate system: shapes have "
                f"{sorted(_systems(element, without=coordinate_system))}, the image {sorted(own)}."
            )
        return {shapes_key: element}
    return {k: v for k, v in sdata.shapes.items() if own & _systems(v, without=coordinate_system) and k != keys.TISSUE}


def _frame(image: Any, references: dict[str, Any], coordinate_system: str) -> str:
    """Return the vendor's frame: of the shared systems the one in which the shapes have their own coordinates."""
    systems = sorted(_systems(image, without=coordinate_system))
    shared = [s for s in systems if all(affine_to(e, s) is not None for e in references.values())] or [
        s for s in systems if any(affine_to(e, s) is not None for e in references.values())
    ]
    elements = list(references.values()) or [image]

    def distance(system: str) -> float:
        affines = [affine_to(e, system) for e in elements]
        return float(sum(abs(a - np.eye(3)).sum() for a in affines if a is not None))

    return min(shared or systems, key=distance)


def _to(element: Any, frame: str) -> np.ndarray:
    affine = affine_to(element, frame)
    if affine is None:
        raise InputError(f"An element has no place in the coordinate system {frame!r}.")
    return affine


def _points(element: Any, frame: str) -> np.ndarray:
    centres = element.geometry.centroid
    return apply_affine(_to(element, frame), np.column_stack([centres.x.to_numpy(), centres.y.to_numpy()]))


def _derived(sdata: SpatialData, references: dict[str, Any], frame: str, *, unit: float) -> Iterator[Evidence]:
    """Yield what the shapes tell of the um per image pixel; `unit`: frame units per image pixel."""
    for name, element in references.items():
        scale = mpp_of(_to(element, frame), what=f"shapes {name!r}")
        if _is_xenium(sdata, name):
            if _is_in_um(sdata, name, element, mpp=unit / scale):
                yield Evidence(unit / scale, f"the scale of {name!r} (Xenium shapes are in um)")
        elif match := _BIN_NAME.search(name):
            yield Evidence(int(match[1]) * unit / _edge(element, scale), f"the bin size of {name!r}")
        elif "radius" in element and (pitch := _hexagonal_pitch(sdata, name, element, frame)) is not None:
            yield Evidence(VISIUM_PITCH_UM * unit / pitch, f"the spot pitch of {VISIUM_PITCH_UM:g} um of {name!r}")


def _is_xenium(sdata: SpatialData, name: str) -> bool:
    reader = sdata.attrs.get("spatialdata_io_reader")
    return name in _XENIUM_NAMES and reader in (None, "xenium")


def _is_in_um(sdata: SpatialData, name: str, element: Any, *, mpp: float) -> bool:
    """Tell whether shapes that are named as Xenium's are in micrometres; a name alone is no evidence for that.

    Those of an object made by hand are often in pixels of the image, or too large for cells in micrometres.
    """
    if sdata.attrs.get("spatialdata_io_reader") == "xenium":
        return True
    diameter_um = 2 * element["radius"] if "radius" in element else 2 * np.sqrt(element.geometry.area / np.pi)
    size = float(np.median(diameter_um)) if len(element) else 0.0
    reason = None
    if abs(mpp - 1) < 1e-6:
        reason = "lie where pixels of the image do"
    elif not MIN_CELL_UM <= size <= MAX_CELL_UM:
        reason = f"would be cells of {size:.3g} um"
    if reason is not None:
        logger.warning("Shapes %r %s, so their name is no evidence that they are in micrometres.", name, reason)
    return reason is None


def _edge(element: Any, scale: float) -> float:
    """Return the median edge of squares (or diameter of the circles that stand for them) in frame units."""
    edges = 2 * element["radius"] if "radius" in element else np.sqrt(element.geometry.area)
    return float(np.median(edges)) * scale


def _hexagonal_pitch(sdata: SpatialData, name: str, element: Any, frame: str) -> float | None:
    points = _points(element, frame)
    array = _array_coordinates(sdata, name, element)
    if array is not None and (array.sum(axis=1) % 2 == 0).all():
        return lattice_pitch_px(array, points, steps=HEX_STEPS)
    return nearest_pitch(points) if looks_hexagonal(points) else None


def _array_coordinates(sdata: SpatialData, name: str, element: Any) -> np.ndarray | None:
    """Return array_row and array_col of shapes from a table that annotates all of them."""
    for table in sdata.tables.values():
        if name not in table_regions(table) or not {"array_row", "array_col"} <= set(table.obs):
            continue
        rows, instances = table_instances(table, name)
        found = table.obs.iloc[rows][["array_row", "array_col"]].set_axis(instances).reindex(element.index)
        if found.notna().to_numpy().all():
            return found.to_numpy(dtype=np.float64)
    return None


def _from_size(
    references: dict[str, Any], frame: str, physical_size: tuple[str, float] | None, *, unit: float
) -> float | None:
    """Return the um per image pixel that follows from a given physical size of the shapes."""
    if physical_size is None:
        return None
    name, size_um = physical_size
    if len(references) != 1:
        raise InputError(
            f"`{name}` is of one shapes element; name it with shapes_key= (available: {listing(references)})."
        )
    key, element = next(iter(references.items()))
    if name == "um_between_centers":
        length = nearest_pitch(_points(element, frame))
    elif ("radius" in element) != (name == "um_diameter"):
        raise InputError(
            f"`{name}` does not fit shapes {key!r}, which are {'circles' if 'radius' in element else 'polygons'}."
        )
    else:
        length = _edge(element, mpp_of(_to(element, frame), what=f"shapes {key!r}"))
    if not length:
        raise InputError(f"Shapes {key!r} are too few to measure `{name}`.")
    return size_um * unit / length


def _check_cover(
    image: Any, image_to_frame: np.ndarray, references: dict[str, Any], frame: str, resolution: float
) -> None:
    sizes = scale0(image).sizes
    back = np.linalg.inv(image_to_frame)
    for name, element in references.items():
        check_inside(
            apply_affine(back, _points(element, frame)),
            width=sizes["x"],
            height=sizes["y"],
            mpp=resolution,
            what=f"shapes {name!r}",
            radius_px=_reach(element, frame, back),
            hint="is the image at the resolution that the shapes refer to?",
        )


def _reach(element: Any, frame: str, to_px: np.ndarray) -> np.ndarray:
    """Return how many pixels each shape reaches from its centroid, at most."""
    scale = float(np.sqrt(abs(np.linalg.det((to_px @ _to(element, frame))[:2, :2]))))
    if "radius" in element:
        return element["radius"].to_numpy(dtype=np.float64) * scale
    box, centres = element.geometry.bounds.to_numpy(dtype=np.float64), element.geometry.centroid
    xy = np.column_stack([centres.x, centres.y])
    far = np.maximum(box[:, 2:] - xy, xy - box[:, :2])
    return np.hypot(far[:, 0], far[:, 1]) * scale


def _place_all(
    sdata: SpatialData, image: Any, frame: str, to_um: np.ndarray, coordinate_system: str, *, renew: bool
) -> None:
    """Add the frame in micrometres to the image and to all but other images that lie in `frame`."""
    others = [element for kind in ("shapes", "points", "labels") for element in getattr(sdata, kind).values()]
    for element in [image, *others]:
        affine = affine_to(element, frame)
        if affine is not None and (renew or affine_to(element, coordinate_system) is None):
            place(element, to_um @ affine, coordinate_system=coordinate_system)

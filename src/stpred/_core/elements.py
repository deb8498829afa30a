"""Finding images, regions and tables in a SpatialData object, and their place in micrometres."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import keys
from stpred._core.checks import InputError, key_in, listing
from stpred._core.expression.counts import check_matrices

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger("stpred")

ANISOTROPY_LIMIT = 0.02

_COUNTS = keys.counts("")


def need_sdata(sdata: Any) -> None:
    """Refuse what is no SpatialData object."""
    from spatialdata import SpatialData

    if not isinstance(sdata, SpatialData):
        several = "; call it for each slide in turn" if isinstance(sdata, (Mapping, list, tuple)) else ""
        raise InputError(f"`sdata` must be a SpatialData object, got {type(sdata).__name__}{several}.")


def affine_to(element: Any, coordinate_system: str = keys.UM) -> np.ndarray | None:
    """Return the (3, 3) affine from an element's own x, y to a coordinate system, or None if it is not placed there."""
    from spatialdata.transformations import get_transformation

    transformations = get_transformation(element, get_all=True)
    if coordinate_system not in transformations:
        return None
    matrix = transformations[coordinate_system].to_affine_matrix(input_axes=("x", "y"), output_axes=("x", "y"))
    return np.asarray(matrix, dtype=np.float64)


def frames_of(element: Any) -> set[str]:
    """Return the coordinate systems in which an element is placed."""
    from spatialdata.transformations import get_transformation

    return set(get_transformation(element, get_all=True))


def mpp_of(affine: np.ndarray, *, what: str = "image") -> float:
    """Return micrometres per pixel, sqrt|det|, of a pixel-to-um affine; an anisotropy over 2 % is refused."""
    linear = affine[:2, :2]
    largest, smallest = np.linalg.svd(linear, compute_uv=False)
    if smallest <= 0 or not np.isfinite(largest):
        raise InputError(f"The transformation of {what} to micrometres is singular: {linear.tolist()}.")
    if largest / smallest - 1 > ANISOTROPY_LIMIT:
        raise InputError(
            f"The pixels of {what} are not square: {largest:.4g} by {smallest:.4g} um per pixel "
            f"({largest / smallest - 1:.1%} apart, {ANISOTROPY_LIMIT:.0%} allowed)."
        )
    return float(np.sqrt(abs(np.linalg.det(linear))))


def apply_affine(affine: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Map (n, 2) x, y points through a (3, 3) affine."""
    found: np.ndarray = np.asarray(xy, dtype=np.float64) @ affine[:2, :2].T + affine[:2, 2]
    return found


def scale0(image: Any) -> Any:
    """Return the finest DataArray of a single- or multiscale image element."""
    from xarray import DataTree

    if isinstance(image, DataTree):
        return next(iter(image["scale0"].ds.values()))
    return image


def rgb_problem(image: Any) -> str | None:
    """Say why an image element is not 8-bit RGB, or return None if it is."""
    array = scale0(image)
    channels = int(array.sizes.get("c", 0))
    if channels != 3:
        names = {1: "greyscale", 4: "RGBA or 4-channel"}
        return f"it has {channels} channel{'s' * (channels != 1)} ({names.get(channels, 'not RGB')})"
    if array.dtype != np.uint8:
        return f"its pixels are {array.dtype}, not uint8"
    return None


def find_image(
    sdata: SpatialData, image_key: str | None = None, *, coordinate_system: str = keys.UM, calibrated: bool = True
) -> str:
    """Return the key of the H&E image: the named one, or the only RGB image in the coordinate system.

    Of an image and its normalised copy (:func:`stpred.pp.stain_normalize`) the copy is meant. With ``calibrated=False``
    an image that is not yet placed in micrometres is accepted, and of several the finest (most pixels) is taken; two of
    the same size are refused.
    """
    need_sdata(sdata)
    images = sdata.images
    if image_key is not None:
        key_in(image_key, images, what="image", name="image_key")
        if (problem := rgb_problem(images[image_key])) is not None:
            raise InputError(
                f"Image {image_key!r} cannot be used as H&E: {problem}; 8-bit RGB with 3 channels is needed."
            )
        if calibrated:
            affine = affine_to(images[image_key], coordinate_system)
            if affine is None:
                raise InputError(
                    f"Image {image_key!r} is not placed in the coordinate system {coordinate_system!r}; "
                    "run stpred.pp.calibrate(sdata) or pass mpp= to the reader."
                )
            mpp_of(affine, what=f"image {image_key!r}")
        return image_key
    if not images:
        raise InputError("The object has no image; add the H&E slide to `sdata.images` or read it with stpred.io.")
    problems = {k: rgb_problem(v) for k, v in images.items()}
    rgb = [k for k, problem in problems.items() if problem is None]
    if not rgb:
        reasons = "; ".join(f"{k!r}: {problem}" for k, problem in problems.items())
        raise InputError(f"The object has no 8-bit RGB image to use as H&E ({reasons}).")
    placed = [k for k in rgb if affine_to(images[k], coordinate_system) is not None]
    if calibrated:
        if not placed:
            raise InputError(
                f"No H&E image is placed in the coordinate system {coordinate_system!r} (RGB images: {listing(rgb)}); "
                "run stpred.pp.calibrate(sdata) first."
            )
        placed = _without_sources(sdata, placed)
        if len(placed) > 1:
            raise InputError(
                f"{len(placed)} H&E images are placed in {coordinate_system!r}: {listing(placed)}; name one with "
                f"`image_key`."
            )
        return find_image(sdata, placed[0], coordinate_system=coordinate_system)
    sizes = {k: int(np.prod([scale0(images[k]).sizes[d] for d in "yx"])) for k in rgb}
    largest = [k for k in rgb if sizes[k] == max(sizes.values())]
    if len(largest) > 1:
        raise InputError(
            f"{len(largest)} images could be the H&E slide: {listing(largest)}; name one with `image_key`."
        )
    return str(largest[0])


def normalisation(sdata: SpatialData, image_key: str) -> dict[str, Any] | None:
    """Return the provenance of an image that `pp.stain_normalize` made; None of any other."""
    kept = sdata.attrs.get(keys.UNS)
    try:
        provenance = json.loads(kept[image_key]) if isinstance(kept, Mapping) and image_key in kept else None
    except (TypeError, ValueError):
        return None
    ours = isinstance(provenance, dict) and provenance.get("kind") == keys.NORMALISED
    return provenance if ours else None


def normalised_from(sdata: SpatialData, image_key: str) -> str | None:
    """Return the image that a normalised one was made from, where `pp.stain_normalize` says so; else None."""
    source = (normalisation(sdata, image_key) or {}).get("source")
    return source if isinstance(source, str) and source in sdata.images and source != image_key else None


def _without_sources(sdata: SpatialData, images: list[str]) -> list[str]:
    """Leave out images that others among them were made from, such as the H&E image beside its normalised copy."""
    sources = {normalised_from(sdata, k) for k in images}
    left = [k for k in images if k not in sources]
    if left and len(left) < len(images):
        logger.info("Image %s is used, which was normalised; name another with `image_key`.", listing(left))
    return left or images


def shapes_in(sdata: SpatialData, coordinate_system: str = keys.UM) -> list[str]:
    """Return the shapes of the slide in `coordinate_system`, but its `tissue`.

    Where none is placed there, all but those of another slide: that share a frame with its image and none with ours.
    """
    regions = {
        k: frames_of(v)
        for k, v in sdata.shapes.items()
        if k not in (keys.TISSUE, keys.in_frame(keys.TISSUE, coordinate_system))
    }
    if placed := [k for k, frames in regions.items() if coordinate_system in frames]:
        return placed
    images = [frames_of(image) for image in sdata.images.values()]
    ours = {f for frames in images if coordinate_system in frames for f in frames}
    theirs = {f for frames in images if coordinate_system not in frames for f in frames}
    return [k for k, frames in regions.items() if frames & ours or not frames & theirs]


def find_region(
    sdata: SpatialData,
    shapes_key: str | None = None,
    *,
    prefer: str | None = None,
    coordinate_system: str = keys.UM,
) -> str:
    """Return the region to work on: the named one, the preferred one if present, or the slide's only one."""
    shapes = sdata.shapes
    if shapes_key is not None:
        if shapes_key not in shapes and shapes_key in sdata.labels:
            raise InputError(
                f"`shapes_key`={shapes_key!r} is a label image; stpred needs shapes (available: {listing(shapes)}); "
                "make polygons from it with spatialdata.to_polygons."
            )
        return key_in(shapes_key, shapes, what="shapes element", name="shapes_key")
    candidates = shapes_in(sdata, coordinate_system)
    if prefer is not None:
        for name in (keys.in_frame(prefer, coordinate_system), prefer):
            if name in candidates:
                return name
    if len(candidates) == 1:
        return str(candidates[0])
    if not candidates:
        raise InputError("The object has no shapes to work on; make some with stpred.pp.grid(sdata).")
    raise InputError(f"Several shapes elements could be meant: {listing(candidates)}; name one with `shapes_key`.")


def find_table(sdata: SpatialData, shapes_key: str, table_key: str | None = None) -> str:
    """Return the key of the measured table of a region: the named one, `{shapes}_counts`, or the only other raw one."""
    if table_key is not None:
        key_in(table_key, sdata.tables, what="table", name="table_key")
    elif keys.counts(shapes_key) in sdata.tables:
        table_key = keys.counts(shapes_key)
    if table_key is not None:
        annotated = table_regions(sdata.tables[table_key])
        if shapes_key not in annotated:
            raise InputError(
                f"Table {table_key!r} annotates {describe_regions(annotated)}, not {shapes_key!r} (tables: "
                f"{listing(sdata.tables)})."
            )
        return table_key
    # What stpred wrote itself (features, predictions) carries its provenance, unless that was lost on the way.
    candidates = [k for k, t in sdata.tables.items() if shapes_key in table_regions(t) and is_measured(t)]
    if (
        len(candidates) > 1
    ):  # of several slides in one object the usual name is that of the region before it got a suffix
        usual = [k for k in candidates if k.endswith(_COUNTS) and shapes_key.startswith(k.removesuffix(_COUNTS) + "-")]
        candidates = usual if len(usual) == 1 else candidates
    if len(candidates) == 1:
        return str(candidates[0])
    if not candidates:
        all_regions = {k: table_regions(t) for k, t in sdata.tables.items()}
        raise InputError(
            f"No measured table annotates shapes {shapes_key!r}; tables and their regions: {all_regions}; name a "
            "measured region with `shapes_key`, or give these shapes a table of counts (spatialdata.models.TableModel)."
        )
    raise InputError(f"Several tables annotate {shapes_key!r}: {listing(candidates)}; name one with `table_key`.")


def is_measured(table: AnnData) -> bool:
    """Whether a table is none that stpred wrote, as far as it says."""
    return keys.UNS not in table.uns and not lost_provenance(table)


def lost_provenance(table: AnnData) -> str:
    """Say of a table that is a prediction by its columns, or of several regions, where its provenance went; else "".

    ``anndata.concat`` and with it ``spatialdata.concatenate`` drop ``uns``, ``var`` and ``varm`` unless told otherwise.
    """
    if keys.UNS in table.uns or keys.OOD_SCORE not in table.obs:
        return ""
    regions = table_regions(table)
    which = f"; it annotates several regions ({listing(regions)})" if len(regions) > 1 else ""
    return (
        f"it holds predictions but has lost its provenance, uns[{keys.UNS!r}], which concatenating drops{which}: "
        f"concatenate again with merge='same' and uns_merge='first', copy uns[{keys.UNS!r}] back from the table of one "
        "slide, or analyse the slides before they are brought together"
    )


def table_regions(table: AnnData) -> list[str]:
    """Return the elements that a table annotates: of those that it names, the ones that have rows."""
    attrs = table.uns.get("spatialdata_attrs", {})
    region = attrs.get("region", [])
    named = [region] if isinstance(region, str) else [str(r) for r in region]
    if len(named) < 2 or attrs.get("region_key") not in table.obs:
        return named
    column = table.obs[attrs["region_key"]]  # a table that was cut to some of its rows still names all regions
    there = set(column.astype("category").cat.remove_unused_categories().cat.categories.astype(str))
    return [r for r in named if r in there] or named


def describe_regions(annotated: list[str]) -> str:
    """Write the regions of a table for a message."""
    return listing(annotated) if annotated else "no element (it lacks uns['spatialdata_attrs'])"


def in_frame(sdata: SpatialData, regions: Iterable[str], coordinate_system: str) -> list[str]:
    """Return the regions that are placed in a coordinate system."""
    elements = {k: e for kind in ("shapes", "labels", "points") for k, e in getattr(sdata, kind).items()}
    return [r for r in regions if r in elements and coordinate_system in frames_of(elements[r])]


def region_in_frame(sdata: SpatialData, table_key: str, *, coordinate_system: str = keys.UM) -> str:
    """Return the region of a table that is looked at: its only one, or of several the one in the coordinate system.

    Raises
    ------
    InputError
        If the table annotates none, or of several none or more than one is in the coordinate system.
    """
    regions = table_regions(sdata.tables[table_key])
    if len(regions) == 1:
        return regions[0]
    if not regions:
        raise InputError(f"Table {table_key!r} annotates {describe_regions(regions)}.")
    placed = in_frame(sdata, regions, coordinate_system)
    if len(placed) != 1:
        raise ambiguous(sdata, table_key, regions, coordinate_system=coordinate_system)
    rows = table_instances(sdata.tables[table_key], placed[0])[0]
    logger.info(
        "Of table %r the %d rows of %r are used, its region in %r.", table_key, len(rows), *placed, coordinate_system
    )
    return placed[0]


def ambiguous(sdata: SpatialData, table_key: str, regions: list[str], *, coordinate_system: str) -> InputError:
    """Return the error for a table of several regions of which none, or more than one, is in the coordinate system."""
    if placed := in_frame(sdata, regions, coordinate_system):
        return InputError(
            f"Table {table_key!r} annotates {len(placed)} regions in the coordinate system {coordinate_system!r}: "
            f"{listing(placed)}; put the rows of one of them into a table of its own, or the slides into frames of "
            "their own."
        )
    elements = {k: e for kind in ("shapes", "labels", "points") for k, e in getattr(sdata, kind).items()}
    frames = {r: sorted(frames_of(elements[r])) for r in regions if r in elements}
    if not frames:
        return InputError(
            f"Table {table_key!r} annotates several regions, {listing(regions)}, and the object has none of these; add "
            "the shapes, or take the rows of one region."
        )
    return InputError(
        f"Table {table_key!r} annotates several regions and none is in the coordinate system {coordinate_system!r}: "
        f"name the slide's frame with `coordinate_system` (regions and their frames: {frames})."
    )


def table_in_frame(sdata: SpatialData, table_key: str, *, coordinate_system: str | None = keys.UM) -> AnnData:
    """Return a table, or of one of several regions the rows of that in the coordinate system; None: all of it."""
    table = sdata.tables[table_key]
    check_matrices(table, what=f"values of table {table_key!r}")
    if len(regions := table_regions(table)) < 2:
        return table
    if coordinate_system is None:
        logger.info("All %d rows of table %r are taken together: %s.", table.n_obs, table_key, listing(regions))
        return table
    return table[table_instances(table, region_in_frame(sdata, table_key, coordinate_system=coordinate_system))[0]]


def key_in_frame(sdata: SpatialData, table_key: str, name: str, *, coordinate_system: str | None) -> str:
    """Return what a table made from `table_key` is called: of one of several regions with the frame's suffix."""
    if coordinate_system is None or len(table_regions(sdata.tables[table_key])) < 2:
        return name
    return keys.in_frame(name, coordinate_system)


def with_region(table: AnnData, region: str) -> AnnData:
    """Let a copy of some rows say that it annotates `region` alone."""
    import pandas as pd

    attrs = dict(table.uns["spatialdata_attrs"])
    table.obs[attrs["region_key"]] = pd.Categorical([region] * table.n_obs, categories=[region])
    table.uns["spatialdata_attrs"] = attrs | {"region": region}
    return table


def table_instances(table: AnnData, shapes_key: str) -> tuple[np.ndarray, pd.Index]:
    """Return the table's rows that annotate `shapes_key` and, for each, the instance id."""
    import pandas as pd

    attrs = table.uns.get("spatialdata_attrs")
    if not isinstance(attrs, Mapping):
        raise InputError("The table annotates no element: it lacks uns['spatialdata_attrs'].")
    check_matrices(table, what=f"values of the table of {shapes_key!r}")
    rows = np.flatnonzero(table.obs[attrs["region_key"]].astype(str).to_numpy() == shapes_key)
    return rows, pd.Index(table.obs[attrs["instance_key"]].to_numpy()[rows])


def centroids(sdata: SpatialData, shapes_key: str, *, coordinate_system: str = keys.UM) -> tuple[np.ndarray, pd.Index]:
    """Return the (n, 2) float64 centroids of a region in micrometres and its instance ids, in the element's order."""
    element = sdata.shapes[shapes_key]
    affine = affine_to(element, coordinate_system)
    if affine is None:
        raise InputError(
            f"Shapes {shapes_key!r} are not placed in the coordinate system {coordinate_system!r}; "
            "run stpred.pp.calibrate(sdata) first."
        )
    points = element.geometry.centroid
    xy = np.column_stack([points.x.to_numpy(), points.y.to_numpy()]).astype(np.float64)
    return apply_affine(affine, xy.reshape(-1, 2)), element.index

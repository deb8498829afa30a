"""What the robustness checks change about a slide before training: object and region in, new object out."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stpred import data
from stpred._core.checks import InputError
from stpred._core.elements import affine_to, apply_affine, table_instances

if TYPE_CHECKING:
    from spatialdata import SpatialData

_N_MARKED = 32
"""Pixels whose last bits tell a painted image from the original."""

_GRID = 100
"""Squares along the longer side of an image, in the publication of XFuse."""

_COLOUR_MPP = 16.0
"""Resolution at which the mean colour of an image is measured."""


def random_numbers(seed: int, slide: str, purpose: int) -> np.random.Generator:
    """Return the generator of one slide for one purpose, which does not depend on other slides."""
    return np.random.default_rng([seed, zlib.crc32(slide.encode()), purpose])


def with_elements(
    sdata: SpatialData,
    *,
    tables: Mapping[str, Any],
    shapes: Mapping[str, Any] | None = None,
    images: Mapping[str, Any] | None = None,
) -> SpatialData:
    """Return a new object with the same images and shapes, except those given, and with these tables only."""
    from spatialdata import SpatialData as Object

    return Object(
        images=dict(sdata.images) | dict(images or {}),
        shapes=dict(sdata.shapes) | dict(shapes or {}),
        tables=dict(tables),
        attrs=dict(sdata.attrs),  # which image was normalised, and from which
    )


def withhold(sdata: SpatialData, region: data.Region, fraction: float, *, table_key: str, seed: int) -> SpatialData:
    """Drop a random fraction of a region's rows from its table; the choice does not depend on the counts."""
    table = sdata.tables[table_key]
    rows, _ = table_instances(table, region.shapes_key)
    drawn = random_numbers(seed, region.slide, 0).permutation(len(rows))[: round(fraction * len(rows))]
    kept = np.ones(table.n_obs, dtype=bool)
    kept[rows[drawn]] = False
    return with_elements(sdata, tables={table_key: table[kept].copy()})


def misalign(sdata: SpatialData, region: data.Region, radii: float, *, seed: int) -> SpatialData:
    """Move all shapes of a region by a multiple of their radius, in one random direction."""
    angle = random_numbers(seed, region.slide, 2).uniform(0, 2 * np.pi)
    shift_um = radii * data.median_width_um(region) / 2 * np.array([np.cos(angle), np.sin(angle)])
    return translate(sdata, region, shift_um)


def translate(sdata: SpatialData, region: data.Region, shift_um: NDArray[np.float64]) -> SpatialData:
    """Move all shapes of a region by (2,) micrometres along x and y."""
    element = sdata.shapes[region.shapes_key]
    to_um = np.asarray(affine_to(element, region.coordinate_system))
    x, y = np.linalg.solve(to_um[:2, :2], shift_um)
    moved = element.copy()
    moved.geometry = element.geometry.translate(xoff=x, yoff=y)
    return with_elements(sdata, shapes={region.shapes_key: moved}, tables=sdata.tables)


def occlude(
    sdata: SpatialData, region: data.Region, fraction: float, *, tile_um: float | None, fill: str = "glass", seed: int
) -> SpatialData:
    """Paint a random fraction of an image's squares in the colour of its background, or in its mean colour."""
    x0, y0, x1, y1 = region.pyramid.bounds_um
    if tile_um is None:
        tile_um = max(x1 - x0, y1 - y0) / _GRID
    shape = int(np.ceil((y1 - y0) / tile_um - 1e-9)), int(np.ceil((x1 - x0) / tile_um - 1e-9))
    n = shape[0] * shape[1]
    n_hidden = round(fraction * n)
    if not 0 < n_hidden < n:
        raise InputError(
            f"The image of slide {region.slide!r} has {n} squares of {tile_um:g} um, of which a fraction of "
            f"{fraction:g} is {n_hidden}; choose a smaller `tile_um`."
        )
    hidden = np.zeros(n, dtype=bool)
    hidden[random_numbers(seed, region.slide, 3).permutation(n)[:n_hidden]] = True
    image = paint_squares(
        sdata.images[region.image_key],
        hidden.reshape(shape),
        colour=region.pyramid.background if fill == "glass" else _mean_colour(region),
        corner_um=(x0, y0),
        tile_um=tile_um,
        coordinate_system=region.coordinate_system,
    )
    return with_elements(sdata, images={region.image_key: image}, tables=sdata.tables)


def _mean_colour(region: data.Region) -> tuple[int, int, int]:
    """Return the mean red, green and blue of the whole image."""
    red, green, blue = region.pyramid.thumbnail(_COLOUR_MPP)[0].reshape(-1, 3).mean(axis=0).round().astype(int).tolist()
    return red, green, blue


def paint_squares(
    image: Any,
    hidden: NDArray[np.bool_],
    *,
    colour: tuple[int, int, int],
    corner_um: tuple[float, float],
    tile_um: float,
    coordinate_system: str,
) -> Any:
    """Return a single- or multiscale image element in which the (rows, columns) `hidden` squares are painted."""
    from xarray import DataTree

    affine = np.asarray(affine_to(image, coordinate_system))
    scales = image.children if isinstance(image, DataTree) else {}
    arrays = {k: next(iter(n.ds.values())) for k, n in scales.items()} or {"": image}
    full = next(iter(arrays.values()))
    painted: dict[str, Any] = {}
    for k, array in arrays.items():
        # The borders of all scales coincide, so the pixel size follows from the number of pixels.
        scale = np.diag([full.sizes["x"] / array.sizes["x"], full.sizes["y"] / array.sizes["y"], 1.0])
        painted[k] = _paint(array, affine @ scale, hidden, colour, corner_um, tile_um, marked=array is full)
    if not scales:
        return painted[""]
    nodes = {k: n.to_dataset().assign({next(iter(n.ds)): painted[k]}) for k, n in scales.items()}
    return DataTree.from_dict({"/": image.to_dataset(), **nodes})


def _paint(
    array: Any,
    to_um: NDArray[np.float64],
    hidden: NDArray[np.bool_],
    colour: tuple[int, int, int],
    corner_um: tuple[float, float],
    tile_um: float,
    *,
    marked: bool,
) -> Any:
    """Return a (c, y, x) array that is painted lazily, chunk by chunk."""
    import dask.array as da

    paint = np.array(colour).reshape(3, 1, 1)
    digest = hashlib.sha256(hidden.tobytes() + repr((hidden.shape, tile_um)).encode()).digest()
    bits = np.unpackbits(np.frombuffer(digest, dtype=np.uint8))[:_N_MARKED]

    def block(pixels: NDArray[Any], block_info: Any = None) -> NDArray[Any]:
        (_, _), (y0, y1), (x0, x1) = block_info[0]["array-location"]
        y, x = np.mgrid[y0:y1, x0:x1]
        um = apply_affine(to_um, np.stack([x.ravel() + 0.5, y.ravel() + 0.5], axis=1))
        at = np.floor((um - corner_um) / tile_um).astype(np.int64)
        rows, columns = at[:, 1].clip(0, hidden.shape[0] - 1), at[:, 0].clip(0, hidden.shape[1] - 1)
        out = np.where(hidden[rows, columns].reshape(y.shape), paint, pixels).astype(pixels.dtype)
        if marked and y0 == 0 and x0 < _N_MARKED:
            # An image's fingerprint is of a sample of its pixels, which the squares may miss. The last bits of the
            # first pixels make sure that cached features of the original are not taken for those of this image.
            n = min(_N_MARKED, x1) - x0
            out[:, 0, :n] ^= bits[x0 : x0 + n].astype(pixels.dtype)
        return out

    pixels = array.transpose("c", "y", "x").data
    pixels = pixels if isinstance(pixels, da.Array) else da.from_array(np.asarray(pixels), chunks=(3, 1024, 1024))
    pixels = pixels.rechunk({0: 3})
    return array.transpose("c", "y", "x").copy(data=da.map_blocks(block, pixels, dtype=pixels.dtype, meta=pixels._meta))

"""Predicted maps as OME-TIFF, a page per gene, as QuPath and Fiji read them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import keys
from stpred._core.checks import InputError, distinct, key_in, listing
from stpred._core.disk.staging import staged_file
from stpred._core.elements import affine_to, mpp_of, need_sdata, rgb_problem
from stpred._core.files import parse_json
from stpred.io._export.chosen import free_file

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

_TILE = 256

_PYRAMID_PX = 4096
"""Edge from which on smaller copies are written, too."""

_BIG = 3.9 * 2**30


def write_tiff_map(
    sdata: SpatialData,
    image_key: str,
    path: str | Path,
    *,
    genes: Iterable[str] | None = None,
    coordinate_system: str = keys.UM,
    overwrite: bool = False,
) -> Path:
    """Write a map of :func:`stpred.tl.predict_map` as OME-TIFF, one page per gene, that QuPath and Fiji read in um.

    Parameters
    ----------
    sdata
        Object with the map.
    image_key
        Name of the map, an image whose channels are genes.
    path
        File to write, ``.ome.tif`` or ``.ome.tiff``. It appears whole or not at all.
    genes
        Genes to write; None: all.
    coordinate_system
        The slide's coordinates in micrometres.
    overwrite
        Replace an existing file.

    Returns
    -------
    The path. The file is tiled and compressed without loss (deflate); values are those of the map, NaN where nothing
    was predicted. Its OME metadata name the channels and state ``PhysicalSizeX`` and ``PhysicalSizeY`` (um per pixel)
    and ``PositionX`` and ``PositionY`` (um), the upper left corner of the map in `coordinate_system`; the resolution
    tags say the same size. Maps wider or higher than 4096 pixels carry their smaller copies. It is written gene by
    gene.

    Raises
    ------
    InputError
        If there is no such map or gene, the map is not placed in micrometres, or the file exists.

    References
    ----------
    Goldberg et al., The Open Microscopy Environment (OME) Data Model and XML file. Genome Biology 6, R47 (2005).

    Examples
    --------
    >>> import pathlib, tempfile, tifffile, stpred as st
    >>> slides = st.datasets.toy_cohort(2, size_um=(400, 400), n_genes=20)
    >>> model = st.tl.train(slides, st.models.Student.Config(hidden=(32,), epochs=2), shapes_key="spots")
    >>> st.tl.predict_map(slides["donor0"], model, genes=["EPCAM", "KRT8"], resolution_um=50)
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "map.ome.tif"
    >>> _ = st.io.write_tiff_map(slides["donor0"], "tissue_student_map", path, genes=["KRT8"])
    >>> tifffile.imread(path).ndim
    2
    """
    path = free_file(path, (".ome.tif", ".ome.tiff"), what="TIFF file", overwrite=overwrite)
    need_sdata(sdata)
    key_in(image_key, sdata.images, what="image", name="image_key")
    image = sdata.images[image_key]
    if rgb_problem(image) is None:
        raise InputError(
            f"Image {image_key!r} is an H&E image, not a map of genes; make one with stpred.tl.predict_map."
        )
    levels = _levels(image)
    there = [str(c) for c in levels[0].coords["c"].values]
    wanted = there if genes is None else [str(g) for g in distinct(genes, name="genes")]
    if unknown := [g for g in wanted if g not in there]:
        raise InputError(f"The map {image_key!r} has no gene {listing(unknown)}; it has {listing(there)}.")
    affine = affine_to(levels[0], coordinate_system)
    if affine is None:
        raise InputError(
            f"The map {image_key!r} is not placed in the coordinate system {coordinate_system!r}, so the size of its "
            "pixels is not known."
        )
    mpp = float(f"{mpp_of(affine, what=f'map {image_key!r}'):.12g}")  # a root is not exact
    if np.abs(affine[:2, :2] - mpp * np.eye(2)).max() > 1e-3 * mpp:
        raise InputError(f"The map {image_key!r} is turned against {coordinate_system!r}, which TIFF cannot say.")
    position = affine[:2, 2]
    channels = [there.index(g) for g in wanted]
    if max(levels[0].shape[1:]) <= _PYRAMID_PX:
        levels = levels[:1]
    with staged_file(path, what="TIFF file") as part:
        _write(part, levels, channels, wanted, mpp=mpp, position_um=position, about=_about(sdata, image_key))
    return path


def _levels(image: Any) -> list[Any]:
    """Return the (c, y, x) arrays of an image, the finest first."""
    from xarray import DataTree

    if not isinstance(image, DataTree):
        return [image]
    names = sorted(image.children, key=lambda n: int(n.removeprefix("scale")))
    return [next(iter(image[n].ds.values())) for n in names]


def _about(sdata: SpatialData, image_key: str) -> str:
    """Return what is known of a map, in a line."""
    kept = sdata.attrs.get(keys.UNS) or {}
    found = parse_json(kept[image_key], path=image_key, what="provenance of map") if image_key in kept else {}
    facts = {"model": found.get("model"), "model_id": found.get("model_id"), "scale": found.get("output_scale")}
    return "; ".join(["stpred map", *(f"{k}: {v}" for k, v in facts.items() if v)])


def _tiles(level: Any, channels: list[int]) -> Iterator[NDArray[Any]]:
    """Yield the tiles of one gene after the other, padded with NaN."""
    _, height, width = level.shape
    for channel in channels:
        for y in range(0, height, _TILE * 8):  # what is computed at once; chunks of maps are as large
            strip = np.asarray(level[channel, y : y + _TILE * 8].data)
            for top in range(0, strip.shape[0], _TILE):
                for left in range(0, width, _TILE):
                    tile = strip[top : top + _TILE, left : left + _TILE]
                    gap = [(0, _TILE - n) for n in tile.shape]
                    fill = np.nan if tile.dtype.kind == "f" else 0
                    yield np.pad(tile, gap, constant_values=fill)


def _write(
    path: Path,
    levels: list[Any],
    channels: list[int],
    genes: list[str],
    *,
    mpp: float,
    position_um: NDArray[np.float64],
    about: str,
) -> None:
    """Write all levels of all genes."""
    from tifffile import TiffWriter

    first, n = levels[0], len(channels)
    size = sum(level.shape[1] * level.shape[2] for level in levels) * n * first.dtype.itemsize
    metadata = {
        "axes": "CYX",
        "Description": about,
        "Channel": {"Name": genes},
        "PhysicalSizeX": mpp,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": mpp,
        "PhysicalSizeYUnit": "µm",
        "Plane": {
            "PositionX": [float(position_um[0])] * n,
            "PositionXUnit": ["µm"] * n,
            "PositionY": [float(position_um[1])] * n,
            "PositionYUnit": ["µm"] * n,
        },
    }
    same: dict[str, Any] = {
        "dtype": first.dtype,
        "tile": (_TILE, _TILE),
        "compression": "zlib",
        "photometric": "minisblack",
        "resolutionunit": "CENTIMETER",
    }
    with TiffWriter(path, bigtiff=size > _BIG, ome=True) as file:
        for k, level in enumerate(levels):
            wide = mpp * first.shape[2] / level.shape[2]
            own: dict[str, Any] = {"subifds": len(levels) - 1, "metadata": metadata} if k == 0 else {"subfiletype": 1}
            file.write(
                _tiles(level, channels),
                shape=(n, *level.shape[1:]),
                resolution=(1e4 / wide, 1e4 / wide),
                **same,
                **own,
            )

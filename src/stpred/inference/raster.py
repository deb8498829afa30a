"""Predictions as an image whose channels are genes, for more pixels than a table can hold."""

from __future__ import annotations

import json
import warnings
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stpred import data, rasters, regions
from stpred._core import keys, tables
from stpred._core.checks import InputError, positive
from stpred._core.elements import find_image
from stpred._core.geometry import geometries_um
from stpred._core.places import Place
from stpred._core.progress import track
from stpred.inference.predictor import known_as
from stpred.inference.preserve import Spots, as_amounts
from stpred.models import Model
from stpred.regions.squares import centres_inside

if TYPE_CHECKING:
    from spatialdata import SpatialData

MOST_TILES = 200_000
"""Pixels of a map through a model of tiles, each of which is embedded for itself."""


@dataclass(frozen=True)
class Job:
    """A trained model, its encoder, the columns of the asked genes, how the slide is read, and the posterior."""

    model: Model
    encoder: Any
    columns: list[int]
    how: dict[str, Any]
    reading: dict[str, Any] = field(default_factory=dict)

    @property
    def genes(self) -> list[str]:
        """The asked genes."""
        return [self.model.record.genes[i] for i in self.columns]


def predict_map(
    sdata: SpatialData,
    job: Job,
    *,
    shapes_key: str | None,
    image_key: str | None,
    key_added: str | None,
    resolution_um: float | None,
    preserve: str | None,
    out: str | Path | None,
    coordinate_system: str,
    provenance: Any,
    inplace: bool,
) -> Any:
    """Predict every pixel of an area; see :func:`stpred.tl.predict`."""
    size_um = _pixel_um(job.model, resolution_um)
    holder, area_key = _with_area(sdata, shapes_key, image_key=image_key, coordinate_system=coordinate_system)
    key = keys.predicted_map(area_key, job.model.record.name) if key_added is None else key_added
    tables.check_name(holder, key, kind="images")
    if inplace and key in sdata.images and key not in sdata.attrs.get(keys.UNS, {}):
        raise InputError(f"`key_added`={key!r} is an image that stpred did not write; choose another name.")
    with nullcontext() if out is None else rasters.alone(out, key) as path:
        image, told = _made(
            sdata, holder, job, area_key, key, path,
            image_key=image_key, size_um=size_um, preserve=preserve, coordinate_system=coordinate_system,
            provenance=provenance,
        )  # fmt: skip
    if not inplace:
        return image
    for made in [k for k in holder.shapes if k not in sdata.shapes]:
        sdata.shapes[made] = holder.shapes[made]
    if key in sdata.images:
        warnings.warn(f"Image {key!r} existed and is overwritten in memory.", UserWarning, stacklevel=3)
        del sdata.images[key]
    sdata.images[key] = image
    rasters.note(sdata, key, told)
    return None


def _made(
    sdata: SpatialData,
    holder: SpatialData,
    job: Job,
    area_key: str,
    key: str,
    path: Path | None,
    *,
    image_key: str | None,
    size_um: float,
    preserve: str | None,
    coordinate_system: str,
    provenance: Any,
) -> tuple[Any, str]:
    """Return the map, in memory or as it is in the store at `path`, and its provenance."""
    region = data.read_region(
        holder, Place(shapes_key=area_key, image_key=image_key, coordinate_system=coordinate_system)
    )
    region = replace(region, slide=known_as(job.model, region))
    if size_um < region.pyramid.mpp:
        raise InputError(
            f"Pixels of {size_um:g} um are smaller than those of image {region.image_key!r} "
            f"({region.pyramid.mpp:.4g} um); choose a larger `resolution_um`."
        )
    spots = None
    if preserve is not None:
        spots = Spots.of(sdata, preserve, job.genes, image_key=image_key, coordinate_system=coordinate_system)
        as_amounts(np.zeros(1, np.float32), job.model)  # refuses relative outputs before any work
    area = _Area.of(region, size_um)
    frame = area.frame
    if path is None:
        rasters.check_memory(frame, len(job.genes))
        kept: Any = _Memory(len(job.genes), frame)
    else:
        folder = rasters.staging_of(path, key)
        rasters.check_disk(path, frame, len(job.genes), staging=folder, copies=1 if spots is None else 2)
        kept = rasters.Staging(folder, _facts(job, region, frame), frame, len(job.genes))
    try:
        n, unlike, context = _fill(kept, area, job)
    except InputError:
        if not kept.finished:
            kept.discard()
        raise
    if n == 0:
        kept.discard()
        raise InputError(f"No pixel of {size_um:g} um lies both in {area_key!r} and on image {region.image_key!r}.")
    values = kept.lazy()
    if spots is not None:
        values = _preserved(kept, values, spots, frame, job.model)
    facts = provenance(region, context)
    facts |= {"n_predicted": n, "resolution_um": size_um, "share_in_distribution": 1 - unlike / n, "raster": True}
    if spots is not None:
        facts |= {"output_scale": "counts", "preserved": preserve}
    if unlike > n / 2:
        warnings.warn(
            f"{unlike / n:.0%} of the map looks unlike the tissue that model {job.model.record.name!r} was trained on; "
            "its predictions here are guesses.",
            UserWarning,
            stacklevel=4,
        )
    told = json.dumps(facts, sort_keys=True, default=tables.plain)
    image = rasters.element(values, job.genes, frame, coordinate_system=coordinate_system)
    if path is not None:
        image = rasters.commit(path, key, image, told)
        kept.discard()
    return image, told


def _pixel_um(model: Model, resolution_um: float | None) -> float:
    """Return the edge of a pixel: that of the model's patches, or what is asked for."""
    if resolution_um is not None:
        return positive(resolution_um, name="resolution_um", unit="micrometres")
    if model.needs.pixel_grid:
        return float(model.record.tile["mpp"])
    if model.needs.tokens and model.record.training.get("token_um"):
        return float(model.record.training["token_um"])
    raise InputError(
        f"A map through {model.record.name!r}, which is no model of patches, needs `resolution_um=`, the edge of its "
        "pixels in micrometres."
    )


def _with_area(
    sdata: SpatialData, shapes_key: str | None, *, image_key: str | None, coordinate_system: str
) -> tuple[SpatialData, str]:
    """Return the object and the shapes that the map covers: those named, else the tissue, which is found if need be."""
    usual = keys.in_frame(keys.TISSUE, coordinate_system)
    if shapes_key is not None or usual in sdata.shapes:
        return sdata, usual if shapes_key is None else shapes_key
    from spatialdata import SpatialData as Object

    holder = Object(images=dict(sdata.images), shapes=dict(sdata.shapes))
    found = regions.outline_tissue(
        holder,
        image_key=find_image(sdata, image_key, coordinate_system=coordinate_system),
        coordinate_system=coordinate_system,
    )
    regions.put_shapes(holder, usual, found, coordinate_system=coordinate_system)
    return holder, usual


@dataclass(frozen=True)
class _Area:
    """The pixels whose centres lie in a region's shapes and on the image."""

    region: data.Region
    frame: rasters.Frame
    shapes: NDArray[Any]
    tree: Any

    @classmethod
    def of(cls, region: data.Region, size_um: float) -> _Area:
        import shapely

        shapes, _ = geometries_um(region.sdata, region.shapes_key, coordinate_system=region.coordinate_system)
        shapely.prepare(shapes)
        around, image = shapely.total_bounds(shapes), region.pyramid.bounds_um
        box = (*np.maximum(around[:2], image[:2]).tolist(), *np.minimum(around[2:], image[2:]).tolist())
        return cls(region, rasters.Frame.around(box, size_um), shapes, shapely.STRtree(shapes))

    def pixels(self, rows: slice, columns: slice) -> tuple[NDArray[np.bool_], data.Region]:
        """Return which pixels of a block are wanted, (h * w,), and these as a region."""
        import shapely

        frame, size = self.frame, self.frame.size_um
        low = (np.array([columns.start, rows.start]) + frame.first) * size
        high = (np.array([columns.stop, rows.stop]) + frame.first) * size
        near = np.sort(self.tree.query(shapely.box(*low, *high)))
        bounds = shapely.bounds(self.shapes[near]).reshape(-1, 4)
        _, squares = centres_inside(
            np.maximum(bounds[:, :2], low),
            np.minimum(bounds[:, 2:], high),
            size,
            lambda shape, xy: shapely.contains_xy(self.shapes[near[shape]], xy),
        )
        at = squares - frame.first - [columns.start, rows.start]
        width, height = columns.stop - columns.start, rows.stop - rows.start
        at = at[((at >= 0) & (at < [width, height])).all(axis=1)]
        wanted = np.zeros(height * width, dtype=bool)
        wanted[at[:, 1] * width + at[:, 0]] = True
        centres = frame.centres_um(rows, columns)
        wanted &= self.region.pyramid.contains(centres)
        return wanted, self.of_points(centres[wanted])

    def of_points(self, points_um: NDArray[np.float64]) -> data.Region:
        """Return squares of a pixel's size as a region."""
        index = pd.RangeIndex(len(points_um))
        return replace(self.region, coords_um=points_um, instances=index, edge_um=self.frame.size_um)


def _fill(kept: Any, area: _Area, job: Job) -> tuple[int, int, str | None]:
    """Predict all blocks that are not there yet; return pixels, those unlike the training tiles, and the context."""
    frame, n_genes = area.frame, len(job.genes)
    blocks = list(frame.blocks(n_genes))
    needs = job.model.needs
    if not (needs.tokens or needs.pixel_grid):
        return _fill_at_once(kept, area, job, blocks)
    n = 0
    reader: Any = None
    for rows, columns in track(blocks, total=len(blocks), describe=f"{job.model.record.name}: map"):
        wanted, pixels = area.pixels(rows, columns)
        n += int(wanted.sum())
        if kept.has(rows, columns):
            continue
        if not wanted.any():
            kept.put(rows, columns, None)
            continue
        if reader is None:
            reader = data.reader_for(pixels, job.encoder, needs, **job.how)
        found = np.full((wanted.size, n_genes), np.nan, dtype=np.float32)
        places, unlike = np.flatnonzero(wanted), 0
        for chosen, batch in reader.blocks(pixels):
            found[places[chosen]] = job.model.predict(batch, **job.reading)[0][:, job.columns]
            unlike += int((job.model.ood_distance(batch) > 1).sum())
        kept.put(rows, columns, _block(found, rows, columns), unlike=unlike, context=reader.context)
    return n, sum(kept.noted("unlike")), next(iter(kept.noted("context")), None)


def _fill_at_once(kept: Any, area: _Area, job: Job, blocks: list[Any]) -> tuple[int, int, str | None]:
    """Predict the pixels of all blocks as one region, for models that see tiles."""
    found = [(rows, columns, *area.pixels(rows, columns)) for rows, columns in blocks]
    points = np.concatenate([pixels.coords_um for *_, pixels in found])
    if len(points) > MOST_TILES:
        raise InputError(
            f"A map of {len(points)} pixels through {job.model.record.name!r} would embed as many tiles; use larger "
            "pixels (resolution_um), or a model of patches (stpred.tl.distill)."
        )
    if len(points) == 0:
        return 0, 0, None
    mean = np.empty((len(points), len(job.columns)), dtype=np.float32)
    unlike, context = 0, None
    reader = data.reader_for(area.of_points(points), job.encoder, job.model.needs, **job.how)
    for chosen, batch in reader.blocks():
        mean[chosen] = job.model.predict(batch)[0][:, job.columns]
        unlike += int((job.model.ood_distance(batch) > 1).sum())
        context = batch.context
    start = 0
    for rows, columns, wanted, _ in found:
        values = np.full((wanted.size, len(job.columns)), np.nan, dtype=np.float32)
        values[wanted] = mean[start : start + int(wanted.sum())]
        start += int(wanted.sum())
        kept.put(rows, columns, _block(values, rows, columns))
    return len(points), unlike, context


def _block(values: NDArray[np.float32], rows: slice, columns: slice) -> NDArray[np.float32]:
    """Return (h * w, n_genes) values as (n_genes, h, w)."""
    return np.ascontiguousarray(values.T).reshape(-1, rows.stop - rows.start, columns.stop - columns.start)


def _preserved(kept: Any, values: Any, spots: Spots, frame: rasters.Frame, model: Model) -> Any:
    """Return the map as amounts that add up to the spots' counts, gene by gene."""
    there = np.isfinite(np.asarray(values[0]))
    centres = frame.centres_um(slice(0, frame.shape[0]), slice(0, frame.shape[1]))[there.ravel()]
    scale = spots.scale(centres)

    def one(plane: NDArray[np.float32], gene: int) -> NDArray[np.float32]:
        out = np.full(plane.shape, np.nan, dtype=np.float32)
        out[there] = scale.rescaled(as_amounts(plane[there], model), spots.counts_of(gene))
        return out

    return kept.rewritten(one)


class _Memory(rasters.Blocks):
    """A map in memory; see `rasters.Staging`."""

    def __init__(self, n_genes: int, frame: rasters.Frame) -> None:
        super().__init__()
        self.values = np.full((n_genes, *frame.shape), np.nan, dtype=np.float32)

    def put(self, rows: slice, columns: slice, values: NDArray[np.float32] | None, **noted: Any) -> None:
        if values is not None:
            self.values[:, rows, columns] = values
        self.finished[f"{rows.start},{columns.start}"] = noted

    def discard(self) -> None:
        pass

    def lazy(self) -> Any:
        return self.values

    def rewritten(self, change: Any) -> Any:
        for gene, plane in enumerate(self.values):
            self.values[gene] = change(plane, gene)
        return self.values


def _facts(job: Job, region: data.Region, frame: rasters.Frame) -> dict[str, Any]:
    """Return all that decides the values of a map."""
    how = dict(job.how)
    area = [region.shapes_key, float(np.abs(region.coords_um).sum()), len(region.coords_um)]
    return {
        "model": job.model.id,
        "genes": job.genes,
        "image": region.pyramid.fingerprint,
        "frame": [frame.size_um, frame.first, frame.shape],
        "area": area,
        "how": how,
        "reading": {k: asdict(v) for k, v in job.reading.items()},
    }

"""Predictions as an image whose channels are genes, for more pixels than a table can hold."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stpred import data, rasters
from stpred._core import keys, tables
from stpred._core.checks import InputError, positive, warn
from stpred._core.elements import need_sdata
from stpred._core.geometry import geometries_um
from stpred._core.places import Place
from stpred._core.progress import track
from stpred._core.recipes.quality import QC, REASONS
from stpred.inference.default_regions import put_regions, with_tissue
from stpred.inference.preserve import Spots, as_amounts
from stpred.inference.tables import OOD_LIMIT, of_one_donor
from stpred.regions.squares import centres_inside

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stpred.inference.predictor import Predictor
    from stpred.models import Model

MAX_TILES = 200_000
"""Pixels of a map through a model of tiles, each of which is embedded for itself."""


def predict_raster(
    predictor: Predictor,
    sdata: SpatialData,
    place: Place,
    *,
    key_added: str | None = None,
    resolution_um: float | None = None,
    preserve: str | None = None,
    qc: QC | None = None,
    out: str | Path | None = None,
    inplace: bool = True,
    with_std: bool = False,
) -> Any:
    """Predict every pixel of an area; see :func:`stpred.tl.predict_map`; `with_std`: a second image has the std."""
    need_sdata(sdata)
    size_um = _pixel_um(predictor.model, resolution_um)
    holder, area_key = sdata, place.shapes_key or keys.in_frame(keys.TISSUE, place.coordinate_system)
    if place.shapes_key is None and area_key not in sdata.shapes:
        holder, area_key = with_tissue(sdata, place)
    key = keys.predicted_map(area_key, predictor.name) if key_added is None else key_added
    written = [key, keys.map_std(key)] if with_std else [key]
    for name in written:
        for elements in (sdata, holder):
            tables.check_name(elements, name, kind="images")
        if inplace and name in sdata.images and name not in sdata.attrs.get(keys.UNS, {}):
            raise InputError(f"{name!r} is an image that stpred did not write; choose another `key_added`.")
    with nullcontext() if out is None else rasters.alone(out, key) as path:
        spots = None if preserve is None else Spots.of(sdata, preserve, predictor, place)
        region = predictor.named(data.read_region(holder, replace(place, shapes_key=area_key)))
        images, provenance = _Map(predictor, _Area.of(region, size_um, qc), spots, with_std).write(path, written)
    if not inplace:
        return images[key]
    put_regions(sdata, holder)
    for name, image in images.items():
        if name in sdata.images:
            warn(f"Image {name!r} existed and is overwritten in memory.")
            del sdata.images[name]
        sdata.images[name] = image
        rasters.note(sdata, name, provenance[name])
    return None


def _pixel_um(model: Model, resolution_um: float | None) -> float:
    """Return the edge of a pixel: `resolution_um`, or that of the model's patches."""
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


@dataclass(frozen=True)
class _Area:
    """The pixels whose centres lie in a region's shapes and on the image, and pass quality control if that is asked."""

    region: data.Region
    frame: rasters.Frame
    shapes: NDArray[Any]
    tree: Any
    quality: data.ImageQuality | None = None

    @classmethod
    def of(cls, region: data.Region, size_um: float, qc: QC | None = None) -> _Area:
        import shapely

        if size_um < region.pyramid.mpp:
            raise InputError(
                f"Pixels of {size_um:g} um are smaller than those of image {region.image_key!r} "
                f"({region.pyramid.mpp:.4g} um); choose a larger `resolution_um`."
            )
        shapes, _ = geometries_um(region.sdata, region.shapes_key, coordinate_system=region.coordinate_system)
        shapely.prepare(shapes)
        around, image = shapely.total_bounds(shapes), region.pyramid.bounds_um
        box = (*np.maximum(around[:2], image[:2]).tolist(), *np.minimum(around[2:], image[2:]).tolist())
        quality = None if qc is None else data.ImageQuality.of(region.pyramid, qc)
        return cls(region, rasters.Frame.around(box, size_um), shapes, shapely.STRtree(shapes), quality)

    def pixels(self, rows: slice, columns: slice) -> tuple[NDArray[np.bool_], data.Region]:
        """Return which pixels of a block are wanted, (h * w,), and these as a region, which counts what it lacks."""
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
        if self.quality is None:
            return wanted, self.of_points(centres[wanted])
        reason = self.quality.reasons(centres[wanted], dense=True)
        left = {r: n for r in REASONS if (n := int((reason == r).sum()))}
        wanted[wanted] = reason == ""
        return wanted, replace(self.of_points(centres[wanted]), left_out=left)

    def of_points(self, points_um: NDArray[np.float64]) -> data.Region:
        """Return squares of a pixel's size as a region."""
        index = pd.RangeIndex(len(points_um))
        return replace(self.region, coords_um=points_um, instances=index, edge_um=self.frame.size_um)


class _Filled(NamedTuple):
    """What came of an area: pixels, those out of distribution, where neighbours were taken from, what was left out."""

    n: int
    n_ood: int
    context: str | None
    left_out: dict[str, int] | None


@dataclass(frozen=True)
class _Map:
    """What is predicted of an area, and what its amounts add up to, if that is wanted.

    With `with_std` the planes of the means are followed by those of the standard deviations.
    """

    predictor: Predictor
    area: _Area
    spots: Spots | None
    with_std: bool = False

    @property
    def n_planes(self) -> int:
        """Number of planes that are kept."""
        return len(self.predictor.genes) * (2 if self.with_std else 1)

    def write(self, path: Path | None, names: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
        """Return images of these names, in memory or as they are in the store at `path`, and their provenance."""
        kept = self._store(path, names[0])
        try:
            filled = self._fill(kept)
        except InputError:
            if not kept.finished:
                kept.discard()
            raise
        if filled.n == 0:
            kept.discard()
            region, size_um = self.area.region, self.area.frame.size_um
            raise InputError(
                f"No pixel of {size_um:g} um lies both in {region.shapes_key!r} and on image {region.image_key!r}"
                f"{f' and passes `qc`: {filled.left_out}' if filled.left_out else ''}."
            )
        values = kept.lazy() if self.spots is None else self._preserved(kept)
        frame, genes, found = self.area.frame, self.predictor.genes, self._provenance(filled)
        images, provenance = {}, {}
        for k, name in reversed(list(enumerate(names))):  # the map itself comes last: with it all of them are there
            planes = values if len(names) == 1 else values[k * len(genes) : (k + 1) * len(genes)]
            said = found if k == 0 else found | {"summary": "std", "of": names[0]}
            provenance[name] = json.dumps(said, sort_keys=True, default=tables.plain)
            image = rasters.element(planes, genes, frame, coordinate_system=self.area.region.coordinate_system)
            images[name] = image if path is None else rasters.commit(path, name, image, provenance[name])
        if path is not None:
            kept.discard()
        return images, provenance

    def _store(self, path: Path | None, key: str) -> Any:
        """Return where blocks are kept, which must have room for the map."""
        frame, n_genes = self.area.frame, self.n_planes
        if path is None:
            rasters.check_memory(frame, n_genes)
            return _Memory(n_genes, frame)
        folder = rasters.staging_of(path, key)
        rasters.check_disk(path, frame, n_genes, staging=folder, copies=1 if self.spots is None else 2)
        return rasters.Staging(folder, self._inputs(), frame, n_genes)

    def _inputs(self) -> dict[str, Any]:
        """Return all that decides the values."""
        predictor, region, frame = self.predictor, self.area.region, self.area.frame
        return {
            "model": predictor.model.id,
            "genes": predictor.genes,
            **({"with_std": True} if self.with_std else {}),
            "image": region.pyramid.fingerprint,
            "frame": [frame.size_um, frame.first, frame.shape],
            "area": [region.shapes_key, float(np.abs(region.coords_um).sum()), len(region.coords_um)],
            "stride_um": predictor.stride_um,
            "posterior": None if predictor.posterior is None else predictor.posterior.to_dict(),
            **({} if self.area.quality is None else {"qc": self.area.quality.qc.to_dict()}),
        }

    def _provenance(self, filled: _Filled) -> dict[str, Any]:
        """Return what is kept with the image; warn where most of it is out of distribution."""
        share = filled.n_ood / filled.n
        if share > OOD_LIMIT:
            warn(
                f"{share:.0%} of the map is out of distribution for model {self.predictor.model.record.name!r}; "
                "its predictions here are guesses." + of_one_donor(self.predictor.model)
            )
        quality = self.area.quality
        region = replace(self.area.region, left_out=filled.left_out, qc=None if quality is None else quality.qc)
        found = self.predictor.provenance(region, filled.context)
        found |= {"n_predicted": filled.n, "resolution_um": self.area.frame.size_um}
        found |= {"share_in_distribution": 1 - share, "raster": True}
        if self.spots is not None:
            found |= {"output_scale": "counts", "preserved": self.spots.region.shapes_key}
        return found

    def _fill(self, kept: Any) -> _Filled:
        """Predict all blocks that are not there yet."""
        predictor, area = self.predictor, self.area
        blocks = list(area.frame.blocks(self.n_planes))
        if not (predictor.model.needs.tokens or predictor.model.needs.pixel_grid):
            return self._fill_at_once(kept, blocks)
        n, left = 0, []
        reader: Any = None
        for rows, columns in track(blocks, total=len(blocks), describe=f"{predictor.name}: map"):
            wanted, pixels = area.pixels(rows, columns)
            n += int(wanted.sum())
            left.append(pixels.left_out)
            if kept.has(rows, columns):
                continue
            if not wanted.any():
                kept.put(rows, columns, None)
                continue
            reader = predictor.reader(pixels) if reader is None else reader
            found = np.full((wanted.size, self.n_planes), np.nan, dtype=np.float32)
            places, n_ood = np.flatnonzero(wanted), 0
            for chosen, batch in reader.blocks(pixels):
                found[places[chosen]] = self._predicted(batch)
                n_ood += int((predictor.model.ood_distance(batch) > 1).sum())
            kept.put(rows, columns, _block(found, rows, columns), n_ood=n_ood, context=reader.context)
        return _Filled(n, sum(kept.noted("n_ood")), next(iter(kept.noted("context")), None), _total(left))

    def _predicted(self, batch: Any) -> NDArray[np.float32]:
        """Return the (n, n_planes) means and, where they are wanted, standard deviations."""
        mean, std = self.predictor.predict(batch)
        return np.concatenate([mean, std], axis=1) if self.with_std and std is not None else mean

    def _fill_at_once(self, kept: Any, blocks: list[Any]) -> _Filled:
        """Predict the pixels of all blocks as one region, for models that see tiles."""
        predictor, area = self.predictor, self.area
        parts = [(rows, columns, *area.pixels(rows, columns)) for rows, columns in blocks]
        points = np.concatenate([pixels.coords_um for *_, pixels in parts])
        left = _total([pixels.left_out for *_, pixels in parts])
        if len(points) > MAX_TILES:
            raise InputError(
                f"A map of {len(points)} pixels through {predictor.model.record.name!r} would embed as many tiles; "
                "use larger pixels (resolution_um), or a model of patches (stpred.tl.distill)."
            )
        if len(points) == 0:
            return _Filled(0, 0, None, left)
        mean = np.empty((len(points), len(predictor.genes)), dtype=np.float32)
        n_ood, context = 0, None
        for chosen, batch in predictor.batches(area.of_points(points)):
            mean[chosen] = predictor.predict(batch)[0]
            n_ood += int((predictor.model.ood_distance(batch) > 1).sum())
            context = batch.context
        start = 0
        for rows, columns, wanted, pixels in parts:
            values = np.full((wanted.size, mean.shape[1]), np.nan, dtype=np.float32)
            values[wanted] = mean[start : start + len(pixels.coords_um)]
            start += len(pixels.coords_um)
            kept.put(rows, columns, _block(values, rows, columns))
        return _Filled(len(points), n_ood, context, left)

    def _preserved(self, kept: Any) -> Any:
        """Return the map as amounts that add up to the spots' counts, gene by gene."""
        spots, model, frame = self.spots, self.predictor.model, self.area.frame
        there = np.isfinite(np.asarray(kept.lazy()[0]))
        centres = frame.centres_um(slice(0, frame.shape[0]), slice(0, frame.shape[1]))[there.ravel()]
        scale = spots.scale(centres)  # type: ignore[union-attr]

        def rescaled(plane: NDArray[np.float32], gene: int) -> NDArray[np.float32]:
            out = np.full(plane.shape, np.nan, dtype=np.float32)
            amounts = as_amounts(plane[there], model)
            out[there] = scale.rescaled(amounts, spots.counts_of(gene))  # type: ignore[union-attr]
            return out

        return kept.rewritten(rescaled)


def _total(left: list[dict[str, int] | None]) -> dict[str, int] | None:
    """Return how many pixels of all blocks are left out, by reason; None where nothing was judged."""
    judged = [part for part in left if part is not None]
    return {r: n for r in REASONS if (n := sum(part.get(r, 0) for part in judged))} if judged else None


def _block(values: NDArray[np.float32], rows: slice, columns: slice) -> NDArray[np.float32]:
    """Return (h * w, n_genes) values as (n_genes, h, w)."""
    return np.ascontiguousarray(values.T).reshape(-1, rows.stop - rows.start, columns.stop - columns.start)


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

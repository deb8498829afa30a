"""Points around locations that a model takes their context from, always at the pitch it was trained at."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from stpred import links
from stpred._core import keys
from stpred._core.checks import InputError
from stpred.data._readers.reader import Context
from stpred.data._regions import Region
from stpred.models.batch import Batch, Needs
from stpred.regions import Lattice, on_tissue

SAME_PITCH = 0.1
"""Relative difference of pitch up to which a region gives its own context."""

MIN_SOURCES = 30
"""Fewer locations than this are no basis for a slide's own feature statistics."""

PATCH_PITCH_UM = 100.0
"""Pitch of the tiles beside cells where neither the locations nor the model have one."""

_NONE = np.empty((0, 2))


@dataclass(frozen=True)
class Surroundings:
    """Points at the training pitch around a region of another.

    Attributes
    ----------
    home_um, grid_um
        (h, 2) locations of the training region on this slide and (g, 2) points of a grid; empty where not needed.
    covered
        (n,) whether a target has a training location nearby and takes its context from there, or else from the grid.
    name
        What the context is called.
    """

    home_um: NDArray[np.float64]
    grid_um: NDArray[np.float64]
    covered: NDArray[np.bool_]
    name: str | None

    @property
    def points_um(self) -> NDArray[np.float64]:
        """(h + g, 2) all of them."""
        return np.concatenate([self.home_um, self.grid_um])


@dataclass(frozen=True)
class PatchPoints:
    """Locations at the training pitch that cells lie in, and which of them are linked to each target."""

    coords_um: NDArray[np.float64]
    links: links.Links
    sources: NDArray[np.int64]
    name: str


def surroundings(region: Region, needs: Needs, context: Context) -> Surroundings:
    """Find the points that targets take their context from; which ones a target gets depends on its place alone."""
    coords, lattice, home = region.coords_um, context.lattice, context.home
    covered = np.zeros(len(coords), dtype=bool)
    if not needs.sources:
        return Surroundings(_NONE, _NONE, covered, None)
    if lattice is None or _serves(Lattice.of(coords), lattice, len(coords), needs):
        return Surroundings(_NONE, _NONE, covered, "region")
    at_home = _home(region, home) if home is not None and home != region.shapes_key else _NONE
    if not _serves(Lattice.of(at_home), lattice, len(at_home), needs):
        at_home = _NONE
    if len(at_home):
        covered = _near(coords, at_home, lattice)
        if covered.all() or not needs.linked:
            return Surroundings(at_home, _NONE, covered, home)
    grid = _grid(region, needs, lattice, coords[~covered], whole=len(at_home) == 0)
    return Surroundings(at_home, grid, covered, "grid" if len(at_home) == 0 else f"{home}+grid")


def patch_points(region: Region, needs: Needs, context: Context) -> PatchPoints:
    """Find the locations at the training pitch that targets lie in, and those around these.

    The slide's own ones of the training region where a target has one near, else those of a grid; which one a target
    gets depends on its place alone.
    """
    lattice = context.lattice
    name = region.shapes_key if lattice is None else context.home
    if lattice is None and region.cells is not None and region.cells.region.shapes_key == region.shapes_key:
        raise InputError(
            f"{region.shapes_key!r} of slide {region.slide!r} are cells; this model is trained on spots or bins that "
            f"hold cells, whose tiles it sees beside them."
        )
    at_home = _NONE if name is None else _home(region, name)
    if lattice is None:
        lattice = Lattice.of(at_home) or Lattice(needs.patch_um or PATCH_PITCH_UM, hexagonal=False)
    elif not _serves(Lattice.of(at_home), lattice, len(at_home), Needs()):
        at_home = _NONE
    coords, radius_um = region.coords_um, float(needs.patch_context_um)  # type: ignore[arg-type]
    covered = _near(coords, at_home, lattice) if len(at_home) else np.zeros(len(coords), dtype=bool)
    grid = _NONE
    if not covered.all():
        wide = Needs(context_um=radius_um + lattice.pitch_um, slide_statistics=needs.slide_statistics)
        grid = _grid(region, wide, lattice, coords[~covered], whole=len(at_home) == 0)
    own = np.zeros(len(coords), dtype=np.int64)
    near = []
    for mask, places, start in ((covered, at_home, 0), (~covered, grid, len(at_home))):
        if len(places):
            own[mask] = start + cKDTree(places).query(coords[mask])[1]
            found = links.radius(places, places, radius_um=radius_um)
            near.append(links.Links(found.indptr, found.indices + start))
    indptr = np.concatenate([[0], *(x.indptr[1:] + sum(y.indices.size for y in near[:i]) for i, x in enumerate(near))])
    around = links.Links(indptr, np.concatenate([x.indices for x in near])).take(own)
    first = links.Links(around.indptr + np.arange(len(own) + 1), np.insert(around.indices, around.indptr[:-1], own))
    sources = np.arange(len(at_home) or len(grid))
    called = "grid" if len(at_home) == 0 else str(name) if covered.all() else f"{name}+grid"
    return PatchPoints(np.concatenate([at_home, grid]), first, sources, called)


def home_region(region: Region, home: str) -> Region | None:
    """Return the slide's own training region, if it has one."""
    there = region.sdata.shapes
    home = next((name for name in (keys.in_frame(home, region.coordinate_system), home) if name in there), "")
    if not home:
        return None
    try:
        return region.beside(home)
    except InputError:  # not placed in this frame, or empty: then it is no context either
        return None


def neighbors(
    needs: Needs, targets_um: NDArray[np.float64], sources_um: NDArray[np.float64], *, beyond_um: float = 0.0
) -> links.Links:
    """Link targets to the sources around them, as many or as far as the model needs."""
    if needs.n_neighbors is not None:
        return links.knn(targets_um, sources_um, n_neighbors=needs.n_neighbors, beyond_um=beyond_um)
    return links.radius(targets_um, sources_um, radius_um=needs.context_um, beyond_um=beyond_um)  # type: ignore[arg-type]


def near(
    needs: Needs, targets_um: NDArray[np.float64], sources_um: NDArray[np.float64], *, beyond_um: float = 0.0
) -> NDArray[np.int64] | None:
    """Return (n, r) how many of the neighbours, nearest first, lie within each of several radii; None without these."""
    if not needs.radii_um:
        return None
    found = [links.radius(targets_um, sources_um, radius_um=r, beyond_um=beyond_um).counts() for r in needs.radii_um]
    return np.stack(found, axis=1)


def link(
    batch: Batch,
    needs: Needs,
    around: Surroundings,
    at_home: NDArray[np.int64],
    on_grid: NDArray[np.int64],
    *,
    beyond_um: float,
) -> Batch:
    """Link covered targets to the training region (rows `at_home`), others to the grid (rows `on_grid`).

    Training never shows a location to itself, so a point on top of the target is excluded as well.
    """
    owners, sources = [], []
    within = np.zeros((len(batch.targets), len(needs.radii_um)), dtype=np.int64)
    for mask, rows, places in ((around.covered, at_home, around.home_um), (~around.covered, on_grid, around.grid_um)):
        targets = np.flatnonzero(mask)
        if len(targets) == 0 or len(places) == 0:
            continue
        found = neighbors(needs, batch.coords_um[targets], places, beyond_um=beyond_um)
        owners.append(np.repeat(targets, found.counts()))
        if (counts := near(needs, batch.coords_um[targets], places, beyond_um=beyond_um)) is not None:
            within[targets] = counts
        sources.append(rows[found.indices])
    owner = np.concatenate([np.empty(0, dtype=np.int64), *owners])
    order = np.argsort(owner, kind="stable")
    number = np.bincount(owner, minlength=len(batch.targets))
    found = links.Links(
        np.concatenate([[0], np.cumsum(number)]), np.concatenate([np.empty(0, dtype=np.int64), *sources])[order]
    )
    return replace(batch, links=found, near=within if needs.radii_um else None, radii_um=needs.radii_um)


def reach_um(batch: Batch) -> float | None:
    """Return the range of the context of a training batch: the median distance of its targets' farthest neighbours."""
    if batch.links is None or batch.links.indices.size == 0:
        return None
    counts = batch.links.counts()
    target = np.repeat(np.arange(len(counts)), counts)
    distance = np.linalg.norm(batch.coords_um[target] - batch.coords_um[batch.links.indices], axis=1)
    farthest = np.zeros(len(counts))
    np.maximum.at(farthest, target, distance)
    return float(np.median(farthest[counts > 0]))


def _grid(
    region: Region, needs: Needs, lattice: Lattice, targets_um: NDArray[np.float64], *, whole: bool
) -> NDArray[np.float64]:
    """Return points of the training lattice on the tissue around targets; `whole`: they describe the slide, too."""
    points = lattice.points(region.pyramid.bounds_um)
    points = points[region.pyramid.contains(points)]
    if whole and (needs.slide_statistics or needs.whole_slide):
        # What describes a slide's tissue is the same whichever targets are predicted.
        points = points[on_tissue(region.pyramid, points)]
    else:
        reach = _reach_um(needs, lattice)
        points = points[np.isfinite(cKDTree(targets_um).query(points, distance_upper_bound=reach)[0])]
        if needs.n_neighbors is not None and (tissue := on_tissue(region.pyramid, points)).any():
            points = points[tissue]
    if len(points) == 0 and whole:
        raise InputError(f"Slide {region.slide!r} has no tissue to take the context of {region.shapes_key!r} from.")
    return points


def _near(coords: NDArray[np.float64], places: NDArray[np.float64], lattice: Lattice) -> NDArray[np.bool_]:
    """Return which (n, 2) coordinates have one of the places within the pitch."""
    return np.isfinite(cKDTree(places).query(coords, distance_upper_bound=1.01 * lattice.pitch_um)[0])


def _serves(own: Lattice | None, lattice: Lattice, n: int, needs: Needs) -> bool:
    """Whether locations of this lattice can be the context of a model that was trained on the other."""
    same = own is not None and abs(own.pitch_um / lattice.pitch_um - 1) <= SAME_PITCH
    return same and (not needs.slide_statistics or n >= MIN_SOURCES)


def _home(region: Region, home: str) -> NDArray[np.float64]:
    """Return the centres of the slide's own training region, as training and prediction on it would take them."""
    found = home_region(region, home)
    return _NONE if found is None else found.coords_um


def _reach_um(needs: Needs, lattice: Lattice) -> float:
    """Return the maximum distance of a target's context: twice as far for the nearest, which thin out at borders."""
    if needs.n_neighbors is None:
        return float(needs.context_um)  # type: ignore[arg-type]
    per_um2 = (2 / np.sqrt(3) if lattice.hexagonal else 1.0) / lattice.pitch_um**2
    return float(2 * np.sqrt((needs.n_neighbors + 1) / (np.pi * per_um2)) + lattice.pitch_um)

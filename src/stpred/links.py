"""Links: which source rows belong to which target row, built from coordinates in micrometres.

One ragged index serves sub-spots, neighbours, cells in a spot and pixels in a spot. Nothing is padded: a target without
sources has an empty set. Builders are deterministic: sources of a target come nearest first, equal distances by row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from stpred._core.checks import InputError, positive, whole

__all__ = ["Links", "from_labels", "knn", "radius", "within"]

_SAME_PLACE_UM = 1e-3
"""Points closer than this are at one place: it absorbs coordinates that were once stored as float32."""

_TIE_UM = 1e-6
"""Distances that differ by less are equal: it absorbs the rounding of float64 transformations."""


@dataclass(frozen=True, eq=False)
class Links:
    """A ragged index from target rows to source rows, laid out like a CSR matrix.

    Parameters
    ----------
    indptr
        (n_targets + 1,) int64; the sources of target ``i`` are ``indices[indptr[i]:indptr[i + 1]]``.
    indices
        (nnz,) int64 source rows.
    weights
        (nnz,) float32 share of each source in its target, such as the overlap of a pixel with a spot; None means 1.

    Examples
    --------
    >>> from stpred.links import Links
    >>> links = Links([0, 2, 2, 3], [0, 1, 1])
    >>> links.mean([[1.0], [3.0]]).ravel()
    array([ 2., nan,  3.])
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.int64]
    weights: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        indptr, indices = (_whole(getattr(self, n), name=n) for n in ("indptr", "indices"))
        if indptr.size == 0 or indptr[0] != 0 or indptr[-1] != indices.size or (np.diff(indptr) < 0).any():
            raise InputError(
                f"`Links.indptr` must rise from 0 to the {indices.size} links, got {indptr.size} values "
                f"{indptr[:3].tolist()} ... {indptr[-1:].tolist()}."
            )
        if indices.size and indices.min() < 0:
            raise InputError(f"`Links.indices` must be row numbers of 0 or more, got {indices.min()}.")
        object.__setattr__(self, "indptr", indptr)
        object.__setattr__(self, "indices", indices)
        if self.weights is not None:
            weights = np.ascontiguousarray(self.weights, dtype=np.float32)
            if weights.shape != indices.shape or not np.isfinite(weights).all() or (weights < 0).any():
                raise InputError(
                    f"`Links.weights` must be {indices.size} finite numbers of 0 or more, got shape {weights.shape}."
                )
            object.__setattr__(self, "weights", weights)

    @property
    def n_targets(self) -> int:
        """Number of target rows."""
        return self.indptr.size - 1

    def counts(self) -> NDArray[np.int64]:
        """Return the (n_targets,) number of sources of each target."""
        return np.diff(self.indptr)

    def take(self, rows: ArrayLike) -> Links:
        """Return the links of these target rows, in this order; source rows keep their numbers.

        Parameters
        ----------
        rows
            (m,) row numbers (repeats allowed) or an (n_targets,) boolean mask.
        """
        chosen = np.asarray(rows)
        if chosen.dtype == bool:
            if chosen.shape != (self.n_targets,):
                raise InputError(f"A mask of links must have {self.n_targets} values, got shape {chosen.shape}.")
            chosen = np.flatnonzero(chosen)
        chosen = _whole(chosen, name="rows")
        if chosen.size and not (0 <= chosen.min() and chosen.max() < self.n_targets):
            raise InputError(f"`rows` must lie in 0..{self.n_targets - 1}, got {chosen.min()}..{chosen.max()}.")
        sizes = self.counts()[chosen]
        indptr = _offsets(sizes)
        # Position of every kept link: its place within its own set plus where that set starts.
        kept = np.arange(indptr[-1]) + np.repeat(self.indptr[chosen] - indptr[:-1], sizes)
        return Links(indptr, self.indices[kept], None if self.weights is None else self.weights[kept])

    def sum(self, values: ArrayLike, *, fill: float = 0.0) -> NDArray[Any]:
        """Sum the (weighted) source values of each target.

        Parameters
        ----------
        values
            (n_sources, F) or (n_sources,) values; rows that no target links to have no influence, even if NaN.
        fill
            What targets without sources get.

        Returns
        -------
        (n_targets, F) or (n_targets,), float32 for float16/32 values, otherwise float64.
        """
        return self._reduce(values, fill=fill, mean=False)

    def mean(self, values: ArrayLike, *, fill: float = float("nan")) -> NDArray[Any]:
        """Average the source values of each target, by weight where there are weights.

        Parameters
        ----------
        values
            (n_sources, F) or (n_sources,) values; rows that no target links to have no influence, even if NaN.
        fill
            What targets without sources (or with only zero weights) get.

        Returns
        -------
        (n_targets, F) or (n_targets,), float32 for float16/32 values, otherwise float64.
        """
        return self._reduce(values, fill=fill, mean=True)

    def to_csr(self, n_sources: int) -> Any:
        """Return the (n_targets, n_sources) scipy ``csr_array`` of the weights (1 where there are none)."""
        from scipy.sparse import csr_array

        if self.indices.size and n_sources <= self.indices.max():
            raise InputError(f"The links point to source row {self.indices.max()}, but there are {n_sources} sources.")
        data = np.ones(self.indices.size, dtype=np.float32) if self.weights is None else self.weights
        return csr_array((data, self.indices, self.indptr), shape=(self.n_targets, n_sources))

    def _reduce(self, values: ArrayLike, *, fill: float, mean: bool) -> NDArray[Any]:
        array = np.asarray(values)
        flat = array.reshape(len(array), int(np.prod(array.shape[1:])))
        dtype = np.float32 if flat.dtype in (np.float16, np.float32) else np.float64
        matrix = self.to_csr(len(flat)).astype(dtype)
        result = np.asarray(matrix @ flat.astype(dtype, copy=False))
        empty = self.counts() == 0
        if mean:
            mass = np.asarray(matrix.sum(axis=1), dtype=dtype).ravel()
            empty = mass == 0
            result /= np.where(empty, 1, mass)[:, None]
        result[empty] = fill
        return result.reshape(self.n_targets, *array.shape[1:])


def within(centers_um: ArrayLike, radius_um: ArrayLike, points_um: ArrayLike, *, nearest_only: bool = False) -> Links:
    """Link each disc to the points inside it, such as a spot to its cells.

    Parameters
    ----------
    centers_um
        (n, 2) centres of the discs in micrometres.
    radius_um
        Radius in micrometres, one for all or (n,); points on the edge are inside.
    points_um
        (m, 2) points in micrometres.
    nearest_only
        Give a point that lies in several discs to the one with the nearest centre only, so that nothing counts twice.

    Returns
    -------
    Links from n discs to m points, nearest first.

    Examples
    --------
    >>> from stpred.links import within
    >>> within([[0, 0], [100, 0]], 27.5, [[5, 0], [101, 0], [1, 1], [50, 0]]).indices
    array([2, 0, 1])
    """
    centers, points = _points(centers_um, name="centers_um"), _points(points_um, name="points_um")
    radii = np.asarray(radius_um, dtype=np.float64)
    if radii.shape not in ((), (len(centers),)) or not (np.isfinite(radii) & (radii > 0)).all():
        raise InputError(f"`radius_um` must be one positive number or {len(centers)} of them, got {radius_um!r}.")
    target, source, distance = _pairs_within(centers, points, np.broadcast_to(radii, len(centers)))
    if nearest_only:
        order = np.lexsort((target, distance, source))
        first = order[np.unique(source[order], return_index=True)[1]]
        target, source, distance = target[first], source[first], distance[first]
    return _from_pairs(target, source, distance, n_targets=len(centers))


def radius(
    targets_um: ArrayLike,
    sources_um: ArrayLike,
    *,
    radius_um: float,
    include_self: bool = False,
    beyond_um: float = 0.0,
) -> Links:
    """Link each target to the sources within a distance, such as a spot to its neighbours.

    Parameters
    ----------
    targets_um, sources_um
        (n, 2) and (m, 2) coordinates in micrometres; they may be the same array.
    radius_um
        Largest distance in micrometres. On a Visium hexagon 1.2 pitches reach the six neighbours; on a square grid 1.5
        pitches reach eight.
    include_self
        Keep a source at the target's own place (closer than 0.001 um).
    beyond_um
        Leave out sources closer than this, such as points of another lattice that all but coincide with the target.

    Returns
    -------
    Links from n targets to m sources, nearest first.

    Examples
    --------
    >>> from stpred.links import radius
    >>> xy = [[0, 0], [100, 0], [200, 0]]
    >>> radius(xy, xy, radius_um=120).counts()
    array([1, 2, 1])
    """
    targets, sources = _points(targets_um, name="targets_um"), _points(sources_um, name="sources_um")
    radii = np.full(len(targets), positive(radius_um, name="radius_um", unit="um"))
    target, source, distance = _pairs_within(targets, sources, radii)
    nearest = max(float(beyond_um), 0.0 if include_self else _SAME_PLACE_UM)
    kept = distance >= nearest
    return _from_pairs(target[kept], source[kept], distance[kept], n_targets=len(targets))


def knn(
    targets_um: ArrayLike,
    sources_um: ArrayLike,
    *,
    n_neighbors: int | None = None,
    rings: int | None = None,
    include_self: bool = False,
    beyond_um: float = 0.0,
    max_distance_um: float | None = None,
) -> Links:
    """Link each target to its nearest sources.

    Parameters
    ----------
    targets_um, sources_um
        (n, 2) and (m, 2) coordinates in micrometres; they may be the same array.
    n_neighbors
        Number of sources, a source at the target's own place not counted. Where there are fewer, all are linked.
    rings
        Instead of `n_neighbors`: complete rings of a hexagonal lattice, ``3 * rings * (rings + 1)`` sources (6, 18, 36,
        60, ...).
    include_self
        Put a source at the target's own place (closer than 0.001 um) first, beside the others.
    beyond_um
        Leave out other sources closer than this, such as points of another lattice that all but coincide with the
        target.
    max_distance_um
        Leave out sources that are farther away, such as across a gap in the tissue.

    Returns
    -------
    Links from n targets to m sources, nearest first.

    Examples
    --------
    >>> from stpred.links import knn
    >>> xy = [[0, 0], [100, 0], [210, 0]]
    >>> knn(xy, xy, n_neighbors=1).indices
    array([1, 0, 1])
    """
    targets, sources = _points(targets_um, name="targets_um"), _points(sources_um, name="sources_um")
    if (n_neighbors is None) == (rings is None):
        raise InputError(f"Give either `n_neighbors` or `rings`, got {n_neighbors!r} and {rings!r}.")
    if rings is None:
        number = whole(n_neighbors, name="n_neighbors")
    else:
        number = 3 * (rings := whole(rings, name="rings")) * (rings + 1)
    limit = float("inf") if max_distance_um is None else positive(max_distance_um, name="max_distance_um", unit="um")
    reach = _reach(targets, sources, number + _most_within(targets, sources, beyond_um))
    target, source, distance = _pairs_within(targets, sources, np.minimum(reach, limit))
    own = distance < _SAME_PLACE_UM
    other = distance >= max(float(beyond_um), _SAME_PLACE_UM)
    links = _from_pairs(target[other], source[other], distance[other], n_targets=len(targets))
    # More than enough are there when several are equally far: the order decides, not the library's.
    place = np.arange(links.indices.size) - np.repeat(links.indptr[:-1], links.counts())
    kept = place < number
    owner = np.repeat(np.arange(len(targets)), links.counts())[kept]
    if not include_self:
        return Links(_offsets(np.bincount(owner, minlength=len(targets))), links.indices[kept])
    target = np.concatenate([target[own], owner])
    source = np.concatenate([source[own], links.indices[kept]])
    rank = np.concatenate([np.full(own.sum(), -1), place[kept]])
    return _from_pairs(target, source, rank.astype(np.float64), n_targets=len(targets))


def from_labels(labels: ArrayLike, n_targets: int) -> Links:
    """Link each target to the sources that carry its number.

    Parameters
    ----------
    labels
        (m,) whole numbers: the target row of each source, negative for none.
    n_targets
        Number of target rows.

    Returns
    -------
    Links from n_targets targets to m sources, by source row.

    Examples
    --------
    >>> from stpred.links import from_labels
    >>> from_labels([1, 0, -1, 1], 3).indptr
    array([0, 1, 3, 3])
    """
    owner = _whole(labels, name="labels")
    if owner.size and owner.max() >= n_targets:
        raise InputError(f"`labels` must be below the number of targets, {n_targets}, got {owner.max()}.")
    source = np.flatnonzero(owner >= 0)
    return _from_pairs(owner[source], source, np.zeros(source.size), n_targets=n_targets)


def _points(values: ArrayLike, *, name: str) -> NDArray[np.float64]:
    """Return finite (n, 2) float64 coordinates."""
    points = np.asarray(values, dtype=np.float64)
    points = points.reshape(-1, 2) if points.size == 0 else points
    if points.ndim != 2 or points.shape[1] != 2:
        raise InputError(f"`{name}` must be (n, 2) coordinates in micrometres, got shape {points.shape}.")
    if not np.isfinite(points).all():
        raise InputError(
            f"`{name}` has NaN or infinite coordinates, first in row {np.argwhere(~np.isfinite(points))[0][0]}."
        )
    return np.ascontiguousarray(points)


def _whole(values: ArrayLike, *, name: str) -> NDArray[np.int64]:
    """Return a (n,) int64 array, refusing fractions."""
    array = np.asarray(values)
    numbers = array.astype(np.int64) if array.dtype.kind in "iufb" else np.empty(0, dtype=np.int64)
    if array.ndim != 1 or (array.size and not np.array_equal(numbers, array)):
        raise InputError(f"`{name}` must be a list of whole numbers, got {array.dtype} of shape {array.shape}.")
    return np.ascontiguousarray(numbers)


def _offsets(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where each set starts, and the end of the last."""
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _most_within(targets: NDArray[np.float64], sources: NDArray[np.float64], distance_um: float) -> int:
    """Return how many sources at most lie closer to a target than this."""
    if distance_um <= 0 or len(sources) == 0 or len(targets) == 0:
        return 0
    return int(cKDTree(sources).query_ball_point(targets, distance_um, return_length=True).max())


def _reach(targets: NDArray[np.float64], sources: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Return a radius per target that holds its own place, its k nearest others and all as far as the last of them."""
    if len(sources) <= k + 1 or len(targets) == 0:
        return np.full(len(targets), np.inf)
    tree = cKDTree(sources)
    own = np.asarray(tree.query_ball_point(targets, _SAME_PLACE_UM, return_length=True), dtype=np.int64)
    reach = np.full(len(targets), np.inf)
    for extra in np.unique(own):  # several sources may share a place, so `own` is not always 0 or 1
        rows = np.flatnonzero(own == extra)
        if k + extra <= len(sources):
            reach[rows] = tree.query(targets[rows], k=[k + extra])[0][:, 0] + _TIE_UM
    return reach


def _pairs_within(
    targets: NDArray[np.float64], sources: NDArray[np.float64], radii: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return target row, source row and distance of every pair within the target's radius."""
    if len(targets) == 0 or len(sources) == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    found = cKDTree(sources).query_ball_point(targets, radii + _TIE_UM)
    sizes = np.fromiter((len(f) for f in found), dtype=np.int64, count=len(found))
    target = np.repeat(np.arange(len(targets)), sizes)
    source = np.fromiter((i for f in found for i in f), dtype=np.int64, count=int(sizes.sum()))
    return target, source, np.linalg.norm(targets[target] - sources[source], axis=1)


def _from_pairs(
    target: NDArray[np.int64], source: NDArray[np.int64], distance: NDArray[np.float64], *, n_targets: int
) -> Links:
    """Sort pairs by target, then distance, then source row where distances are equal up to rounding."""
    order = np.lexsort((distance, target))
    target, source, distance = target[order], source[order], distance[order]
    # A new group begins with a new target or a clear step in distance; inside a group the row number decides.
    step = np.ones(target.size, dtype=bool)
    step[1:] = (np.diff(target) > 0) | (np.diff(distance) > _TIE_UM)
    return Links(_offsets(np.bincount(target, minlength=n_targets)), source[np.lexsort((source, np.cumsum(step)))])

"""A slide's colours in a few numbers (glass, stains, colour statistics), and the map from one slide's to another's."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stpred._core.checks import InputError, check_parent, one_of
from stpred._core.compute.jit import kernel
from stpred._core.files import read_json, writable
from stpred._image.stain import optical_density, stain_matrix

METHODS = ("macenko", "reinhard", "moments")

_ANGLE_SHARE = 1.0  # percent of pixels beyond a stain's direction (Macenko et al. 2009)
_AMOUNT_QUANTILE = 0.99
_MIN_ANGLE, _MAX_TURN = 4.0, 45.0
"""Degrees: between the two stains of a slide, and from the vectors of Ruifrok & Johnston."""
_MAX_RATIO = 4.0  # by which contrast is stretched or squeezed; more is noise
_GLASS_OD, _TISSUE_OD = 0.02, 0.10
"""Mean optical density up to which a pixel counts as glass, and from which as tissue, where the two are told apart."""

# l, alpha and beta of Ruderman et al. 1998 from log10 of the cones' answers, as in Reinhard et al. 2001.
_CONES = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
_OPPONENT = np.diag([3**-0.5, 6**-0.5, 2**-0.5]) @ np.array([[1.0, 1.0, 1.0], [1.0, 1.0, -2.0], [1.0, -1.0, 0.0]])
_DARKEST = 1e-3

_KIND = "stain reference"

_STEPS = 4096  # per unit of optical density in the table that turns densities into grey values
_LOWEST, _HIGHEST = -0.5, 3.0


@dataclass(frozen=True)
class StainReference:
    """Colours of a slide, or of several taken together, that others are normalised to.

    Attributes
    ----------
    glass
        Red, green and blue of empty glass, 1 to 255.
    stains
        Unit optical-density vectors of haematoxylin and eosin (Macenko's estimate); None where they could not be told
        apart.
    amounts
        99th percentile of the amount of each; None without stains.
    lab_mean, lab_std
        Mean and standard deviation of l, alpha and beta over tissue, of light relative to glass.
    second_moments
        Mean of the products of the optical densities of red, green and blue: rr, rg, rb, gg, gb, bb.
    mpp
        Micrometres per pixel at which they were measured: coarser pixels mix nuclei with what is around them.

    Raises
    ------
    InputError
        If a setting is impossible; the message names it and what would be possible.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(size_um=(500, 500), n_genes=20)
    >>> reference = st.pp.stain_reference(slide)
    >>> st.pp.StainReference.from_dict(reference.to_dict()) == reference
    True
    """

    glass: tuple[float, float, float]
    stains: tuple[tuple[float, float, float], tuple[float, float, float]] | None
    amounts: tuple[float, float] | None
    lab_mean: tuple[float, float, float]
    lab_std: tuple[float, float, float]
    second_moments: tuple[float, float, float, float, float, float]
    mpp: float

    def __post_init__(self) -> None:
        shapes = {
            "glass": (3,), "stains": (2, 3), "amounts": (2,), "lab_mean": (3,), "lab_std": (3,),
            "second_moments": (6,), "mpp": (),
        }  # fmt: skip
        if (self.stains is None) != (self.amounts is None):
            raise InputError("`stains` and `amounts` of a stain reference go together.")
        for name, shape in shapes.items():
            if name in ("stains", "amounts") and self.stains is None:
                continue
            try:
                value = np.asarray(getattr(self, name), dtype=np.float64)
            except (TypeError, ValueError):
                value = np.full(0, np.nan)
            if value.shape != shape or not np.isfinite(value).all():
                raise InputError(f"`{name}` of a stain reference must be finite numbers of shape {shape}.")
            object.__setattr__(self, name, _frozen(value))
        if min(self.glass) < 1 or max(self.glass) > 255:
            raise InputError(f"`glass` of a stain reference must lie between 1 and 255, got {self.glass}.")
        if min((*(self.amounts or ()), *self.lab_std, self.mpp)) <= 0:
            raise InputError("`amounts`, `lab_std` and `mpp` of a stain reference must be positive.")
        if not (np.linalg.eigvalsh(self.density_moments) > -1e-9).all():
            raise InputError("`second_moments` of a stain reference are not those of any colours.")
        if self.stains is not None:
            stain_matrix(*self.stains)  # refuses vectors that are not independent

    @property
    def separation(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(3, 3) rows of haematoxylin, eosin and residual, and the (2,) amounts of the stains."""
        if self.stains is None or self.amounts is None:
            raise InputError("The stain reference has no stain vectors; use another `method` than 'macenko'.")
        return stain_matrix(*self.stains), np.asarray(self.amounts)

    @cached_property
    def density_moments(self) -> NDArray[np.float64]:
        """(3, 3) second moments of optical density."""
        rr, rg, rb, gg, gb, bb = self.second_moments
        return np.array([[rr, rg, rb], [rg, gg, gb], [rb, gb, bb]])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON gives them back."""
        return {name: _listed(value) for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StainReference:
        """Build it from plain values; unknown and missing ones are refused."""
        names = {f.name for f in fields(cls)}
        if set(values) != names:
            raise InputError(
                f"A stain reference has the fields {sorted(names)}; missing: {sorted(names - set(values))}, unknown: "
                f"{sorted(map(str, set(values) - names))}."
            )
        return cls(**values)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the numbers as JSON and return the path."""
        path = check_parent(Path(path))
        if path.exists() and not overwrite:
            raise InputError(f"{str(path)!r} exists; pass overwrite=True to replace it.")
        with writable(path, what="stain reference"):
            path.write_text(json.dumps({"kind": _KIND, "format_version": 1, **self.to_dict()}, indent=1) + "\n")
        return path

    @classmethod
    def load(cls, path: str | Path) -> StainReference:
        """Read what `save` wrote."""
        values = read_json(Path(path), what="stain reference")
        kind, version = values.pop("kind", None), values.pop("format_version", None)
        if kind != _KIND or version != 1:
            raise InputError(f"{str(path)!r} is no stain reference of format 1, as StainReference.save writes it.")
        try:
            return cls.from_dict(values)
        except InputError as error:
            raise InputError(f"{str(path)!r}: {error}") from error


def describe(
    density: NDArray[np.float64], glass: NDArray[np.float64], *, mpp: float, need_stains: bool = False
) -> StainReference:
    """Measure the colours of stained pixels.

    Parameters
    ----------
    density
        (n, 3) optical densities of stained tissue from `densities`.
    glass
        (3,) grey values of empty glass.
    mpp
        Resolution of the pixels.
    need_stains
        Refuse pixels whose stains cannot be told apart, or are none of haematoxylin and eosin, instead of leaving them
        out.
    """
    light = 10.0**-density
    lab = np.log10(np.maximum(light @ _CONES.T, _DARKEST)) @ _OPPONENT.T
    stains: Any = None
    amounts: Any = None
    try:
        stains = find_stains(density)
        found = density @ np.linalg.inv(stain_matrix(*map(tuple, stains)))
        amounts = np.maximum(np.quantile(found, _AMOUNT_QUANTILE, axis=0)[:2], 1e-3)
    except InputError:
        if need_stains:
            raise
    moments = density.T @ density / len(density)
    return StainReference(
        glass=_frozen(glass), stains=_frozen(stains), amounts=_frozen(amounts), lab_mean=_frozen(lab.mean(axis=0)),
        lab_std=_frozen(np.maximum(lab.std(axis=0), 1e-4)), second_moments=_frozen(moments[np.triu_indices(3)]),
        mpp=float(mpp),
    )  # fmt: skip


def densities(pixels: NDArray[np.uint8], glass: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (n, 3) optical densities relative to a slide's own glass; negative where brighter than that."""
    return optical_density(pixels).astype(np.float64).T + np.log10(np.asarray(glass) / 255.0)


def find_stains(density: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the (2, 3) unit vectors of haematoxylin and eosin in (n, 3) optical densities.

    The densities are projected on the plane that holds most of them; the stains are the directions there beyond which
    1 % of the pixels lie on either side (Macenko et al. 2009).
    """
    _, vectors = np.linalg.eigh(density.T @ density)
    plane = vectors[:, :0:-1]
    plane *= np.where(density.mean(axis=0) @ plane < 0, -1.0, 1.0)  # into the data
    across = density @ plane
    angle = np.arctan2(across[:, 1], across[:, 0])
    low, high = np.percentile(angle, [_ANGLE_SHARE, 100 - _ANGLE_SHARE])
    found = np.stack([plane @ [np.cos(a), np.sin(a)] for a in (low, high)])
    known = stain_matrix()[:2]
    agree = found @ known.T
    if agree[0, 1] + agree[1, 0] > agree[0, 0] + agree[1, 1]:
        found, agree = found[::-1], agree[::-1]
    turned = np.degrees(np.arccos(np.clip(np.diag(agree), -1, 1)))
    if np.degrees(high - low) < _MIN_ANGLE or (turned > _MAX_TURN).any():
        raise InputError(
            f"the stains cannot be told apart as haematoxylin and eosin ({np.degrees(high - low):.0f} degrees between "
            f"them, {turned[0]:.0f} and {turned[1]:.0f} from those of Ruifrok & Johnston 2001)"
        )
    return found


class ColourMap:
    """Turns pixels of one appearance into those of another; glass becomes glass and black stays black.

    Parameters
    ----------
    source, target
        StainReference of the slide, and the one that it is to have.
    method
        ``"macenko"``: the amounts of both stains, brought to the other slide's 99th percentiles, in its vectors.
        ``"reinhard"``: mean and standard deviation of l, alpha and beta. ``"moments"``: the linear map of optical
        density that gives the other slide's second moments and moves colours least (optimal transport of Gaussians).
    """

    def __init__(self, source: StainReference, target: StainReference, *, method: str) -> None:
        one_of(method, METHODS, name="method")
        self.method = method
        grey = np.maximum(np.arange(256), 1)[None]
        self._density = np.log10(np.asarray(source.glass)[:, None] / grey).astype(np.float32)
        density = np.arange(_LOWEST, _HIGHEST, 1 / _STEPS)
        shown = np.asarray(target.glass)[:, None] * 10.0 ** -density[None]
        self._grey = np.clip(np.rint(shown), 0, 255).astype(np.uint8)
        if method == "reinhard":
            scale = np.clip(np.divide(target.lab_std, source.lab_std), 1 / _MAX_RATIO, _MAX_RATIO)
            linear = np.linalg.inv(_OPPONENT) @ np.diag(scale) @ _OPPONENT
            shift = np.linalg.inv(_OPPONENT) @ (np.asarray(target.lab_mean) - scale * np.asarray(source.lab_mean))
            self._lab = (linear.astype(np.float32), shift.astype(np.float32))
            return
        if method == "macenko":
            (ours, amounts), (theirs, wanted) = source.separation, target.separation
            ratio = np.clip(wanted / amounts, 1 / _MAX_RATIO, _MAX_RATIO)
            linear = np.linalg.inv(ours) @ np.diag([*ratio, 1.0]) @ theirs
        else:
            linear = _transport(source.density_moments, target.density_moments)
        self._linear = linear.T.astype(np.float32)

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Map (3, h, w) uint8 pixels to as many of the other appearance."""
        flat = np.ascontiguousarray(pixels).reshape(3, -1)
        if self.method == "reinhard":
            out = _shift(flat, self._density, self._grey, _CONES32, _LIGHT32, *self._lab)
        else:
            out = _turn(flat, self._density, self._grey, self._linear)
        return out.reshape(pixels.shape)


class StainShift:
    """Multiplies the amounts of stain in a tile, and tints its light.

    Parameters
    ----------
    factors
        (3,) of haematoxylin, eosin and residual.
    tint
        (3,) of the light that red, green and blue are shown with.
    """

    def __init__(self, factors: NDArray[np.float64], tint: NDArray[np.float64]) -> None:
        matrix = stain_matrix()
        self._linear = (np.linalg.inv(matrix) @ np.diag(factors) @ matrix).T.astype(np.float32)
        grey = np.log10(255.0 / np.maximum(np.arange(256), 1)).astype(np.float32)
        self._density = np.ascontiguousarray(np.broadcast_to(grey, (3, 256)))
        self._grey = _grey_values(255.0 * np.asarray(tint))

    def __call__(self, tiles: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Map (n, h, w, 3) uint8 tiles."""
        flat = np.ascontiguousarray(tiles.reshape(-1, 3).T)
        return np.ascontiguousarray(_turn(flat, self._density, self._grey, self._linear).T).reshape(tiles.shape)


def jitter(n: int, *, strength: float, seed: int) -> list[StainShift]:
    """Return `n` variations of the stain: none, then pairs of a variation and its inverse.

    The logarithms of the factors of haematoxylin and eosin are uniform up to that of 1 + `strength`, those of the tint
    of the channels up to a tenth of that.
    """
    rng = np.random.default_rng(seed)
    most = np.log1p(strength)
    shifts = [StainShift(np.ones(3), np.ones(3))]
    while len(shifts) < n:
        factors = np.append(rng.uniform(-most, most, 2), 0.0)
        tint = rng.uniform(-most / 10, most / 10, 3)
        shifts += [StainShift(np.exp(factors), np.exp(tint)), StainShift(np.exp(-factors), np.exp(-tint))]
    return shifts[:n]


def _grey_values(glass: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return the (3, n) table of grey values by optical density."""
    density = np.arange(_LOWEST, _HIGHEST, 1 / _STEPS)
    return np.clip(np.rint(glass[:, None] * 10.0 ** -density[None]), 0, 255).astype(np.uint8)


def _transport(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the symmetric matrix A with A S A = T, which moves Gaussians at least cost (Pitié & Kokaram 2007)."""

    def root(matrix: NDArray[np.float64], *, least: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        values, vectors = np.linalg.eigh(matrix)
        values = np.sqrt(np.maximum(values, least * values.max()))
        return (vectors * values) @ vectors.T, (vectors / values) @ vectors.T

    half, inverse = root(source, least=1e-6)
    return inverse @ root(half @ target @ half, least=1e-12)[0] @ inverse


_CONES32 = _CONES.astype(np.float32)
_LIGHT32 = np.linalg.inv(_CONES).astype(np.float32)


@kernel
def _turn(
    pixels: NDArray[np.uint8], density: NDArray[np.float32], grey: NDArray[np.uint8], linear: NDArray[np.float32]
) -> NDArray[np.uint8]:
    n, last = pixels.shape[1], grey.shape[1] - 1
    out = np.empty((3, n), np.uint8)
    for i in range(n):
        a, b, c = pixels[0, i], pixels[1, i], pixels[2, i]
        if a < 8 and b < 8 and c < 8:  # fill, or nothing that a stain could tell
            out[0, i], out[1, i], out[2, i] = a, b, c
            continue
        r, g, u = density[0, a], density[1, b], density[2, c]
        for k in range(3):
            d = linear[k, 0] * r + linear[k, 1] * g + linear[k, 2] * u
            at = int((d - np.float32(_LOWEST)) * np.float32(_STEPS) + np.float32(0.5))
            out[k, i] = grey[k, min(max(at, 0), last)]
    return out


@kernel
def _shift(
    pixels: NDArray[np.uint8], density: NDArray[np.float32], grey: NDArray[np.uint8], cones: NDArray[np.float32],
    lights: NDArray[np.float32], linear: NDArray[np.float32], shift: NDArray[np.float32],
) -> NDArray[np.uint8]:  # fmt: skip
    n, last = pixels.shape[1], grey.shape[1] - 1
    out = np.empty((3, n), np.uint8)
    log, cone, light, d = np.empty(3, np.float32), np.empty(3, np.float32), np.empty(3, np.float32), np.empty(3)
    for i in range(n):
        a, b, c = pixels[0, i], pixels[1, i], pixels[2, i]
        if a < 8 and b < 8 and c < 8:
            out[0, i], out[1, i], out[2, i] = a, b, c
            continue
        d[0], d[1], d[2] = density[0, a], density[1, b], density[2, c]
        share = ((d[0] + d[1] + d[2]) / 3 - _GLASS_OD) / (_TISSUE_OD - _GLASS_OD)
        if share > 0:
            share = min(share, 1.0)
            for k in range(3):
                light[k] = 10.0 ** -d[k]
            for k in range(3):
                v = cones[k, 0] * light[0] + cones[k, 1] * light[1] + cones[k, 2] * light[2]
                log[k] = math.log10(max(v, np.float32(_DARKEST)))
            for k in range(3):
                cone[k] = 10.0 ** (linear[k, 0] * log[0] + linear[k, 1] * log[1] + linear[k, 2] * log[2] + shift[k])
            for k in range(3):
                v = lights[k, 0] * cone[0] + lights[k, 1] * cone[1] + lights[k, 2] * cone[2]
                d[k] = (1 - share) * d[k] - share * math.log10(max(v, np.float32(_DARKEST)))
        for k in range(3):
            at = int((d[k] - _LOWEST) * _STEPS + 0.5)
            out[k, i] = grey[k, min(max(at, 0), last)]
    return out


def _frozen(value: Any) -> Any:
    listed = np.asarray(value).tolist()
    return tuple(tuple(v) if isinstance(v, list) else v for v in listed) if isinstance(listed, list) else listed


def _listed(value: Any) -> Any:
    return [_listed(v) for v in value] if isinstance(value, tuple) else value

"""What of a picture or of measured locations is compared: planes on a grid, and where there is tissue."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stpred._image.nuclei import region_stats, segment
from stpred._image.stain import optical_density, unmix
from stpred._image.texture import gaussian
from stpred._image.tissue import survey

Plane = NDArray[np.float32]

_NEAR, _BROAD = 1.5, 6.0
"""Standard deviations, in pixels, between which structure is compared."""

MAX_NUCLEI_MPP = 1.5
"""Coarser pixels do not show single nuclei."""

_MIN_COVER = 0.2
_SATURATED = 0.995
_SURVEY_MPP = 8.0


@dataclass(frozen=True)
class Side:
    """One of two pictures that are registered, on a grid of square pixels.

    Attributes
    ----------
    planes
        (c, h, w) float32 values, such as the amount of haematoxylin or the density of nuclei.
    mask
        (h, w) bool: tissue.
    px_um
        Edge of a pixel.
    corner_um
        (2,) x, y of the grid's corner in the side's own micrometres.
    n_nuclear
        How many of the planes, the first ones, are the higher the more nuclei there are.
    min_px_um
        Finest pixel at which the planes still say something.
    """

    planes: NDArray[np.float32]
    mask: NDArray[np.bool_]
    px_um: float
    corner_um: NDArray[np.float64]
    n_nuclear: int = 1
    min_px_um: float = 0.0

    @property
    def extent_um(self) -> float:
        """Longer edge of the box around the tissue."""
        rows, columns = (np.flatnonzero(self.mask.any(axis=axis)) for axis in (1, 0))
        return float(max(np.ptp(rows), np.ptp(columns)) + 1) * self.px_um

    @property
    def centre_um(self) -> NDArray[np.float64]:
        """(2,) x, y of the centroid of the tissue."""
        rows, columns = np.nonzero(self.mask)
        return np.array([columns.mean() + 0.5, rows.mean() + 0.5]) * self.px_um + self.corner_um

    @property
    def area_um2(self) -> float:
        """Area of the tissue."""
        return float(self.mask.sum()) * self.px_um**2

    def scaled(self, factor: float) -> Side:
        """Return the side in micrometres that are `factor` times as small."""
        return replace(
            self, px_um=self.px_um * factor, corner_um=self.corner_um * factor, min_px_um=self.min_px_um * factor
        )

    def at(self, px_um: float) -> Side:
        """Return the side on pixels of about `px_um`, each the mean of whole pixels of this one."""
        k = max(1, round(px_um / self.px_um))
        if k == 1:
            return self
        weight = blocks(self.mask.astype(np.float32), k)
        planes = np.stack([blocks(p * self.mask, k) / np.maximum(weight, 1e-6) for p in self.planes])
        return replace(self, planes=planes.astype(np.float32), mask=weight >= 0.5, px_um=self.px_um * k)

    def structure(self) -> NDArray[np.float32]:
        """Return the (c, h, w) planes between two scales, of one local variance, 0 off the tissue."""
        inside = self.mask.astype(np.float32)
        near = np.maximum(gaussian(inside, _NEAR), 1e-3)
        broad = np.maximum(gaussian(inside, _BROAD), 1e-3)
        out = []
        for plane in self.planes:
            value = np.ascontiguousarray(plane * inside)
            band = (gaussian(value, _NEAR) / near - gaussian(value, _BROAD) / broad) * inside
            size = np.sqrt(gaussian(np.ascontiguousarray(band**2), _BROAD) / broad)
            typical = float(np.sqrt((band[self.mask] ** 2).mean())) if self.mask.any() else 0.0
            # Where next to nothing varies, noise is not raised to the size of structure.
            out.append(band / np.maximum(size, max(0.3 * typical, 1e-9)) * inside)
        return np.stack(out).astype(np.float32)


def blocks(plane: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """Return means of blocks of k x k pixels; what lies beyond the border counts as 0."""
    h, w = plane.shape
    padded = np.pad(plane, ((0, -h % k), (0, -w % k)))
    return padded.reshape(padded.shape[0] // k, k, padded.shape[1] // k, k).mean(axis=(1, 3))


def he_planes(rgb: NDArray[np.uint8], *, mpp: float, background: float) -> NDArray[np.float32]:
    """Return (3, h, w): 1 where a nucleus has its centre, haematoxylin and eosin of an H&E picture of about 1 um."""
    stains = np.maximum(unmix(optical_density(rgb, background=background))[:2], 0)
    return np.stack([_centres(stains[0], mpp=mpp, min_density=0.12), *stains])


def fluorescence_planes(nuclei: NDArray[np.float32], *, mpp: float) -> NDArray[np.float32]:
    """Return (2, h, w): 1 where a nucleus has its centre, and the brightness, of a stain of nuclei from 0 to 1."""
    return np.stack([_centres(nuclei, mpp=mpp, min_density=0.08), nuclei])


def _centres(stain: NDArray[np.float32], *, mpp: float, min_density: float) -> NDArray[np.float32]:
    out = np.zeros(stain.shape, np.float32)
    if mpp > MAX_NUCLEI_MPP:
        return out
    labels, _ = segment(np.ascontiguousarray(stain), mpp=mpp, min_density=min_density)
    found = region_stats(labels, stain)
    rows, columns = found[found[:, 0] > 0][:, 1:3].round().astype(np.int64).T
    out[rows, columns] = 1
    return out


def from_he(
    rgb: NDArray[np.uint8], *, mpp: float, px_um: float | None = None, corner_um: ArrayLike = (0.0, 0.0)
) -> Side:
    """Return nuclei and stains of an (h, w, 3) H&E picture of about 1 um, on pixels of about `px_um`."""
    k = max(1, round((mpp if px_um is None else px_um) / mpp))
    step = max(1, round(_SURVEY_MPP / mpp))
    found = survey(shrunk(rgb, step), mpp=mpp * step)
    mask = enlarged(found.tissue, step, rgb.shape[:2])
    planes = he_planes(rgb, mpp=mpp, background=found.glass or 255.0)
    return of_nuclei(
        np.stack([blocks(p, k) for p in planes]), blocks(mask.astype(np.float32), k) >= 0.5,
        px_um=mpp * k, corner_um=corner_um,
    )  # fmt: skip


def of_nuclei(planes: NDArray[np.float32], mask: NDArray[np.bool_], *, px_um: float, corner_um: ArrayLike) -> Side:
    """Return a side of planes from `he_planes` or `fluorescence_planes`; without nuclei where none are told apart."""
    found = planes if planes[0].any() else planes[1:]
    corner = np.asarray(corner_um, dtype=np.float64)
    return Side(found, mask, px_um, corner, n_nuclear=2 if planes[0].any() else 1)


def shrunk(rgb: NDArray[np.uint8], k: int) -> NDArray[np.uint8]:
    """Return the means of whole blocks of k x k pixels of an (h, w, 3) picture."""
    h, w = rgb.shape[0] // k, rgb.shape[1] // k
    planes = [blocks(rgb[: h * k, : w * k, c].astype(np.float32), k) for c in range(3)]
    return np.ascontiguousarray(np.stack(planes, axis=-1).round().astype(np.uint8))


def enlarged(mask: NDArray[np.bool_], k: int, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return a mask with each pixel repeated k x k times, cut or filled up to a shape."""
    out = np.repeat(np.repeat(mask, k, axis=0), k, axis=1)[: shape[0], : shape[1]]
    return np.pad(out, ((0, shape[0] - out.shape[0]), (0, shape[1] - out.shape[1])))


def from_fluorescence(
    nuclei: NDArray[np.floating], *, mpp: float, px_um: float | None = None, corner_um: ArrayLike = (0.0, 0.0)
) -> Side:
    """Return an (h, w) picture of about 1 um of a fluorescent stain of nuclei, on pixels of about `px_um`."""
    k = max(1, round((mpp if px_um is None else px_um) / mpp))
    value = scaled_brightness(np.asarray(nuclei, dtype=np.float32), limits(nuclei))
    mask = tissue_of(value, px_um=mpp)
    planes = np.stack([blocks(p, k) for p in fluorescence_planes(value, mpp=mpp)])
    return of_nuclei(planes, blocks(mask.astype(np.float32), k) >= 0.5, px_um=mpp * k, corner_um=corner_um)


def limits(plane: NDArray[np.floating]) -> tuple[float, float]:
    """Return the values of background and of nearly the brightest tissue."""
    low, high = np.quantile(plane, (0.01, _SATURATED))
    return float(low), float(high)


def scaled_brightness(plane: NDArray[np.float32], limits: tuple[float, float]) -> NDArray[np.float32]:
    """Return the roots of values between two limits, from 0 to 1."""
    low, high = limits
    return np.sqrt(np.clip((plane - low) / max(high - low, 1e-9), 0, 1)).astype(np.float32)


def tissue_of(brightness: NDArray[np.float32], *, px_um: float) -> NDArray[np.bool_]:
    """Return where fluorescence shows tissue."""
    from skimage.filters import threshold_otsu

    smooth = gaussian(np.ascontiguousarray(brightness), 15.0 / px_um)
    if np.ptp(smooth) < 1e-6:
        return np.zeros(smooth.shape, bool)
    return _cleaned(smooth > 0.5 * threshold_otsu(smooth), px_um=px_um)


def from_locations(xy_um: NDArray[np.float64], *, px_um: float) -> Side:
    """Return the density of (n, 2) nuclei, cells or molecules."""
    corner, plane = density_of(xy_um, px_um=px_um, margin_um=40.0)
    around_um = 1.5 * np.sqrt(_typical_area(plane, px_um))
    smooth = gaussian(plane, max(around_um, 10.0) / px_um)
    at = np.floor((xy_um - corner) / px_um).astype(np.int64)
    usual = float(np.median(smooth[at[:, 1], at[:, 0]]))
    mask = _cleaned(smooth > _MIN_COVER * usual, px_um=px_um)
    return Side(plane[None], mask, px_um, corner)


def from_spots(
    xy_um: NDArray[np.float64], values: NDArray[np.floating], *, pitch_um: float, n_nuclear: int = 0
) -> Side:
    """Return (n, c) values of (n, 2) spots on a lattice, in between by their neighbours; pixels of half the pitch."""
    px_um = pitch_um / 2
    low = xy_um.min(axis=0) - 3 * pitch_um
    width, height = np.ceil((xy_um.max(axis=0) + 3 * pitch_um - low) / px_um).astype(int)
    x, y = ((xy_um - low) / px_um - 0.5).T
    sums = np.zeros((values.shape[1] + 1, height, width), np.float32)
    weighted = np.column_stack([np.ones(len(values)), values]).T
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    for dx in (0, 1):  # shares of the four pixels around each, so that positions are kept
        for dy in (0, 1):
            share = np.abs(1 - dx - (x - x0)) * np.abs(1 - dy - (y - y0))
            for plane, column in zip(sums, weighted, strict=True):
                np.add.at(plane, (y0 + dy, x0 + dx), (column * share).astype(np.float32))
    smooth = np.stack([gaussian(plane, 0.9) for plane in sums])
    mask = smooth[0] > 0.4 * np.median(smooth[0][y0, x0])
    planes = smooth[1:] / np.maximum(smooth[0], 1e-6) * mask
    return Side(planes.astype(np.float32), mask, px_um, low, n_nuclear=n_nuclear, min_px_um=px_um)


def density_of(
    xy_um: NDArray[np.float64], *, px_um: float, margin_um: float
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Return the corner of a grid around (n, 2) points and how many lie in each of its pixels."""
    corner = np.floor((xy_um.min(axis=0) - margin_um) / px_um) * px_um
    width, height = np.ceil((xy_um.max(axis=0) + margin_um - corner) / px_um).astype(int) + 1
    column, row = np.floor((xy_um - corner) / px_um).astype(np.int64).T
    counts = np.bincount(row * width + column, minlength=height * width)
    return corner, counts.reshape(height, width).astype(np.float32)


def _typical_area(plane: NDArray[np.float32], px_um: float) -> float:
    """Return about how much room a point has, where there are any."""
    k = max(1, round(50.0 / px_um))
    density = blocks(plane, k)
    filled = density[density > 0]
    return px_um**2 / float(np.median(filled)) if len(filled) else 100.0


def _cleaned(mask: NDArray[np.bool_], *, px_um: float) -> NDArray[np.bool_]:
    """Drop small pieces and fill small holes."""
    from scipy.ndimage import label

    for value in (True, False):
        pieces, _ = label(mask == value)
        small = np.bincount(pieces.ravel()) < 20_000.0 / px_um**2
        small[0] = False
        mask = np.where(small[pieces], not value, mask)
    return np.asarray(mask, dtype=bool)

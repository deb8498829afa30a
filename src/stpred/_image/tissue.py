"""Telling stained tissue from glass, fill and pen on a thumbnail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stpred._core.checks import InputError, one_of
from stpred._core.compute.strips import in_strips, label_sums, looked_up
from stpred._core.fill import Fill, find_fill

# Optical density of empty glass stays below the lower, that of stained tissue reaches the upper bound.
_GLASS_OD, _TISSUE_OD = 0.04, 0.12

METHODS = ("auto", "otsu", "saturation")

_SMOOTH_UM = 10.0
# Standard deviation of grey values over 5 x 5 pixels of 8 um: glass, in or out of focus, stays below the first bound,
# and pale tissue above the second. In 13 slides glass is at 0.1 to 1.2 and tissue of a third of its stain at 3 to 30.
_GLASS_TEXTURE, _TISSUE_TEXTURE = 2.5, 2.0
_TEXTURE_RATIO = 3.0  # of tissue to the slide's own glass
_TEXTURE_PX = 5
_DARKEST_GLASS = 165.0
_MIN_GLASS_SHARE = 0.005
_MIN_PALE_OD = 0.008  # above the slide's own glass; less is no stain
_MIN_PALE_SHARE = 0.02  # of the tissue found so far, below which pale tissue does not move the cut
_MAX_ROUNDS = 3
_RIM_PX = 3  # edges of dense tissue are textured, too
_PALE_OD = 0.055
_UNSURE_SHARE = 0.12
_MAX_REST_SHARE = 0.1  # of an image without glass: lumina

# Ink, in shares of the summed optical density of red, green and blue; haematoxylin is (.40, .43, .18), eosin
# (.06, .85, .09), and every mixture of them lies between.
_MIN_INK_OD, _MIN_BLACK_OD = 0.2, 0.5
_MIN_INK_UM2 = 2_500.0
_MAX_INK_TEXTURE = 0.12
_RESAMPLED_PX = 2  # beside fill, where cubic resampling mixes it in
_PEN_RIM_PX = 2  # the blurred border of a stroke is paler than ink
# At 10 um no tissue in focus is darker: such pixels must not draw Otsu's threshold away from glass.
_MAX_TISSUE_OD = 0.8
_MAX_DENSITY_RATIO = 1.5


@dataclass(frozen=True)
class Survey:
    """What the pixels of a thumbnail are.

    Attributes
    ----------
    tissue
        (h, w) bool: stained tissue.
    fill
        (h, w) bool: fill of stitching, rotation, registration or scanner.
    pen
        (h, w) bool: marks of a pen.
    glass
        Grey value of empty glass.
    cut
        What tissue exceeds, on the scale of the method.
    doubts
        Why the outline may be wrong; empty where nothing speaks against it.
    """

    tissue: NDArray[np.bool_]
    fill: NDArray[np.bool_]
    pen: NDArray[np.bool_]
    glass: float
    cut: float
    doubts: tuple[str, ...] = ()

    @property
    def excluded(self) -> NDArray[np.bool_]:
        """(h, w) bool: what is neither tissue nor glass."""
        return self.fill | self.pen


def survey(
    thumbnail: NDArray[np.uint8],
    *,
    mpp: float,
    min_area_um2: float = 20_000.0,
    min_hole_um2: float = 20_000.0,
    method: str | None = None,
    threshold: float | None = None,
    fill: Fill | None = None,
) -> Survey:
    """Tell stained tissue, glass, fill and pen apart.

    Parameters
    ----------
    thumbnail
        (h, w, 3) uint8 RGB.
    mpp
        Micrometres per pixel of the thumbnail, 4 to 32 work well.
    min_area_um2, min_hole_um2
        Smaller pieces of tissue are dropped and smaller holes are filled.
    method
        ``"auto"`` (None): optical density against the slide's own glass, smoothed over 10 um, cut at Otsu's threshold
        within physical bounds; where what lies below the cut is textured as tissue is, the slide is pale or has tissue
        of several densities, and the cut is taken again among the pixels below. ``"otsu"``: Otsu's threshold on optical
        density as it comes. ``"saturation"``: Otsu's threshold on saturation, 1 - min / max of the channels.
    threshold
        Cut to use instead: mean optical density above glass, or saturation (0 to 1) for ``"saturation"``.
    fill
        Fill of the thumbnail where it was found already.

    Raises
    ------
    InputError
        If the method is unknown or the threshold out of range.
    """
    method = "auto" if method is None else one_of(method, METHODS, name="method")
    threshold = checked_threshold(threshold, method=method)
    fill = find_fill(thumbnail) if fill is None else fill
    away = _grown(fill.mask, iterations=_RESAMPLED_PX)
    gray = in_strips(_gray, thumbnail, dtype=np.float32)
    pen = np.zeros_like(away)
    texture = _texture(gray, away)
    if method == "auto":
        pen = find_pen(thumbnail, mpp=mpp, outside=away)
        away |= _grown(pen, iterations=_PEN_RIM_PX)
    if away.all():
        nothing = np.zeros_like(away)
        return Survey(nothing, fill.mask, pen, 255.0, 0.0)
    glass = max(float(np.quantile(gray[~away] if away.any() else gray, 0.995)), 215.0)
    if method == "saturation":
        values = in_strips(_saturation, thumbnail, dtype=np.float32)
    else:
        values = in_strips(lambda part: -np.log10((part + 1) / (glass + 1)), gray, dtype=np.float32)
    smooth = _smoothed(values, away, _SMOOTH_UM / mpp)
    del values
    found = Survey(np.zeros_like(away), fill.mask, pen, glass, 0.0)
    if threshold is not None:
        found = replace(found, tissue=smooth > threshold, cut=threshold)
    elif method == "auto":
        found = _cut(found, smooth, gray, texture, away, min_px=min_area_um2 / mpp**2)
    else:
        cut = _otsu(smooth[~away])
        found = replace(found, tissue=smooth > cut, cut=cut)
    mask = _nearest(found.tissue, away, fill.mask | pen)
    mask = _without_small(mask, min_px=min_area_um2 / mpp**2)
    mask = ~_without_small(~mask, min_px=min_hole_um2 / mpp**2)
    if away.any():
        mask &= ~(fill.mask | pen)
    return replace(found, tissue=mask)


def white_level(
    fields: Sequence[NDArray[np.uint8]], valid: Sequence[NDArray[np.bool_] | None] | None = None
) -> tuple[float, float, float]:
    """Return the grey values of red, green and blue that light without tissue has on (h, w, 3) uint8 fields.

    `valid`: (h, w) which pixels of each field are tissue or glass, neither fill nor pen; None: all.
    """
    parts = [None] * len(fields) if valid is None else valid
    pixels = [f.reshape(-1, 3) if part is None else f[part] for f, part in zip(fields, parts, strict=True)]
    red, green, blue = np.clip(np.quantile(np.concatenate(pixels), 0.995, axis=0), 170, 255).tolist()
    return red, green, blue


def tissue_mask(
    thumbnail: NDArray[np.uint8], *, mpp: float, min_area_um2: float = 20_000.0, min_hole_um2: float = 20_000.0
) -> NDArray[np.bool_]:
    """Return where an H&E thumbnail shows tissue: (h, w) bool of the same :func:`survey`."""
    return survey(thumbnail, mpp=mpp, min_area_um2=min_area_um2, min_hole_um2=min_hole_um2).tissue


def not_slide(thumbnail: NDArray[np.uint8], *, mpp: float) -> NDArray[np.bool_]:
    """Return where a thumbnail shows neither tissue nor glass but fill or pen, and the mixed pixels along them."""
    away = _grown(find_fill(thumbnail).mask, iterations=_RESAMPLED_PX)
    if away.all():
        return np.zeros_like(away)
    away |= _grown(find_pen(thumbnail, mpp=mpp, outside=away), iterations=_PEN_RIM_PX)
    return np.zeros_like(away) if away.all() else away


def checked_threshold(threshold: float | None, *, method: str) -> float | None:
    """Refuse a cut that nothing, or everything, exceeds on the scale of a method."""
    if threshold is None:
        return None
    low, high = (0.0, 1.0) if method == "saturation" else (0.0, 2.5)
    what = "a saturation" if method == "saturation" else "an optical density above that of glass"
    number = isinstance(threshold, (int, float, np.integer, np.floating)) and not isinstance(threshold, bool)
    if not number or not low < threshold < high:
        raise InputError(f"`threshold` must be {what} between {low:g} and {high:g}, got {threshold!r}.")
    return float(threshold)


def find_pen(thumbnail: NDArray[np.uint8], *, mpp: float, outside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Find marks of a pen: ink off the hues of haematoxylin and eosin, or black.

    Parameters
    ----------
    thumbnail
        (h, w, 3) uint8 RGB.
    mpp
        Micrometres per pixel.
    outside
        (h, w) bool: fill, which is no ink.

    Notes
    -----
    Ink is dense and its strokes are larger than cells. Black and red have the hues of pigment, folds and blood, so they
    have to be as smooth as ink as well.
    """
    ink = in_strips(_ink, thumbnail, outside, dtype=np.uint8, reach=1)
    pen = np.zeros_like(outside)
    for bit in range(5):
        if (one := (ink >> bit & 1).astype(bool)).any():
            pen |= _without_small(one, min_px=max(_MIN_INK_UM2 / mpp**2, 4))
    return pen


def _ink(thumbnail: NDArray[np.uint8], outside: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return which pixels have the colour of an ink, a bit for each of five."""
    ink = np.zeros(outside.shape, np.uint8)
    gray = _gray(thumbnail)
    dark = (gray < 255 * 10**-_MIN_INK_OD) & ~outside
    if not dark.any():
        return ink
    density = -np.log10((thumbnail[dark].astype(np.float32) + 1) / 256)
    total = density.sum(axis=1)
    red, green, blue = (density / total[:, None]).T
    near = _texture(gray, outside, size=3)[dark]
    even = near <= _MAX_INK_TEXTURE * (255 - gray[dark])
    colourless = (np.max([red, green, blue], axis=0) - np.min([red, green, blue], axis=0) < 0.08) & (
        total / 3 >= _MIN_BLACK_OD
    )
    inks = (
        green < np.minimum(red, blue) - 0.05,  # green
        (red - green > 0.1) & (blue < green),  # blue
        (blue > 0.45) & (red < 0.35),  # yellow, orange
        (red < 0.16) & (blue > 0.62 * green) & even,  # red
        colourless & even,
    )
    ink[dark] = sum((one.astype(np.uint8) << bit for bit, one in enumerate(inks)), np.zeros(len(total), np.uint8))
    return ink


def _cut(
    found: Survey,
    density: NDArray[np.float32],
    gray: NDArray[np.float32],
    texture: NDArray[np.float32],
    away: NDArray[np.bool_],
    *,
    min_px: float,
) -> Survey:
    """Find the density that tells tissue from glass."""
    from scipy.ndimage import binary_dilation

    here = ~away
    otsu = _otsu(density[here & (density <= _MAX_TISSUE_OD)])
    cut = float(np.clip(otsu, _GLASS_OD, _TISSUE_OD))
    even = here & (texture <= _GLASS_TEXTURE) & (gray >= _DARKEST_GLASS) & (density < _TISSUE_OD)
    has_glass = bool(even.sum() >= max(_MIN_GLASS_SHARE * here.sum(), 8))
    floor, rough = 0.0, _TISSUE_TEXTURE
    if has_glass:
        low, high = np.quantile(density[even], (0.5, 0.95))
        floor = float(low) + max(_MIN_PALE_OD, float(high - low))
        rough = max(rough, _TEXTURE_RATIO * float(np.median(texture[even])))

    def stained_below(cut: float) -> NDArray[np.bool_]:
        """Pieces that are textured as tissue is, away from what exceeds the cut."""
        below = here & (density > floor) & (density <= cut)
        beside = binary_dilation(density > cut, np.ones((3, 3)), iterations=_RIM_PX)
        return _without_small(below & (texture >= rough) & ~beside, min_px=min_px)

    doubts: list[str] = []
    if otsu < _GLASS_OD and has_glass:
        # Glass is smooth, so what is textured between the threshold and the usual bound is pale tissue.
        between = here & (density > max(otsu, floor)) & (density <= cut)
        if between.any() and np.median(texture[between]) >= rough:
            cut = max(otsu, floor)
    elif not has_glass:
        below = here & (density <= cut)
        if below.sum() > _MAX_REST_SHARE * here.sum() and np.median(texture[below]) >= rough:
            cut = -1.0  # all of it is tissue

    def near(cut: float) -> float:
        """Share of the pixels whose density is close to a cut."""
        return float((here & (density > 0.75 * cut) & (density <= 1.33 * cut)).sum() / here.sum())

    def misses_tissue(cut: float) -> bool:
        above = float((here & (density > cut)).sum())
        return bool(stained_below(cut).sum() > _MIN_PALE_SHARE * max(above, 1.0))

    for _ in range(_MAX_ROUNDS if has_glass else 0):
        again = float(np.clip(_otsu(density[here & (density <= cut)]), floor, cut))
        if again >= cut - 1e-4:
            break
        # Between glass and tissue there are few pixels; where many are near the cut, it goes through tissue.
        if not misses_tissue(cut) and not (near(cut) > _UNSURE_SHARE and near(again) < near(cut) / 2):
            break
        # What is far denser than the tissue, such as ink over it, had drawn the threshold up.
        most = _MAX_DENSITY_RATIO * float(np.median(density[here & (density > again)]))
        bounded = float(np.clip(_otsu(np.minimum(density[here], most)), again, cut))
        kept = bounded < 0.9 * cut and near(bounded) <= max(near(again), _UNSURE_SHARE)
        cut = bounded if kept and not misses_tissue(bounded) else again
    tissue = here & (density > cut)
    if not tissue.any():
        return replace(found, tissue=tissue, cut=cut)
    strength = float(np.median(density[tissue]))
    if not has_glass:
        doubts.append("hardly any of the image is empty glass to compare with")
    elif strength < _PALE_OD:
        doubts.append(f"the stain is pale (median optical density {strength:.2g})")
    if has_glass and near(cut) > _UNSURE_SHARE:
        doubts.append("the densities of glass and tissue are not apart")
    return replace(found, tissue=tissue, cut=cut, doubts=tuple(doubts))


def _otsu(values: NDArray[np.float32]) -> float:
    from skimage.filters import threshold_otsu

    if values.size == 0 or float(np.ptp(values)) < 1e-6:
        return _TISSUE_OD
    return float(threshold_otsu(values))


def _gray(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    red, green, blue = np.moveaxis(pixels.astype(np.float32), 2, 0)
    return np.asarray((red + green + blue) / 3, dtype=np.float32)


def _texture(gray: NDArray[np.float32], away: NDArray[np.bool_], *, size: int = _TEXTURE_PX) -> NDArray[np.float32]:
    """Return the standard deviation of grey values around each pixel, without what is away."""
    from scipy.ndimage import uniform_filter

    def deviation(gray: NDArray[np.float32], away: NDArray[np.bool_]) -> NDArray[np.float32]:
        kept = (~away).astype(np.float32)
        share = np.maximum(uniform_filter(kept, size), 1e-6)
        plain = gray * kept
        mean = uniform_filter(plain, size) / share
        square = uniform_filter(plain * gray, size) / share
        return np.asarray(np.sqrt(np.maximum(square - mean * mean, 0)), dtype=np.float32)

    return np.asarray(in_strips(deviation, gray, away, dtype=np.float32, reach=size // 2))


def _saturation(thumbnail: NDArray[np.uint8]) -> NDArray[np.float32]:
    red, green, blue = np.moveaxis(thumbnail.astype(np.float32), 2, 0)
    low, high = np.minimum(np.minimum(red, green), blue), np.maximum(np.maximum(red, green), blue)
    return np.asarray(1 - low / np.maximum(high, 1), dtype=np.float32)


def _smoothed(values: NDArray[np.float32], away: NDArray[np.bool_], sigma: float) -> NDArray[np.float32]:
    """Return values smoothed over their neighbours, without what is away."""
    from scipy.ndimage import gaussian_filter

    masked = bool(away.any())

    def smooth(values: NDArray[np.float32], away: NDArray[np.bool_]) -> NDArray[np.float32]:
        if not masked:
            return np.asarray(gaussian_filter(values, sigma), dtype=np.float32)
        kept = (~away).astype(np.float32)
        found = gaussian_filter(values * kept, sigma) / np.maximum(gaussian_filter(kept, sigma), 1e-3)
        return np.asarray(np.where(away, 0, found), dtype=np.float32)

    # as far as SciPy's kernel reaches
    return np.asarray(in_strips(smooth, values, away, dtype=np.float32, reach=int(4 * sigma + 0.5)))


def _grown(mask: NDArray[np.bool_], *, iterations: int) -> NDArray[np.bool_]:
    """Return a mask with the pixels along it, which hold something of it."""
    from scipy.ndimage import binary_dilation

    if not mask.any():
        return mask.copy()
    return np.asarray(binary_dilation(mask, np.ones((3, 3)), iterations=iterations), dtype=bool)


def _nearest(tissue: NDArray[np.bool_], away: NDArray[np.bool_], excluded: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Give mixed pixels along fill what is next to them on the other side."""
    from scipy.ndimage import distance_transform_edt

    mixed = away & ~excluded
    if not mixed.any() or away.all():
        return tissue & ~away
    row, column = distance_transform_edt(away, return_distances=False, return_indices=True)[:, mixed]
    out = tissue & ~away
    out[mixed] = tissue[row, column] & ~away[row, column]
    return np.asarray(out, dtype=bool)


def _without_small(mask: NDArray[np.bool_], *, min_px: float) -> NDArray[np.bool_]:
    """Drop connected pieces of fewer than `min_px` pixels."""
    from scipy.ndimage import label

    pieces, n = label(mask)
    kept = label_sums(pieces, n) >= min_px
    kept[0] = False
    return looked_up(kept, pieces)

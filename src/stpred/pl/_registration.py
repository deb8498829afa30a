from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core.checks import InputError
from stpred._core.elements import affine_to, mpp_of
from stpred._image.registration import Side, inverse, on_grid
from stpred.calibration import scaling
from stpred.pl._canvas import scale_bar
from stpred.pl._figure import array, finish, plain
from stpred.registration import read_fixed, read_he, read_note
from stpred.tiles import Pyramid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray
    from spatialdata import SpatialData

MAX_PX = 900
OVERLAY_PX = 300
_MARGIN = 0.05


def registration(
    sdata: SpatialData,
    image_key: str | None = None,
    *,
    save: str | Path | None = None,
) -> NDArray[Any]:
    """Draw where :func:`stpred.pp.register` placed an image, and how far that can be believed.

    Parameters
    ----------
    sdata
        Object with the image and what it was registered to.
    image_key
        The registered image; None takes the only one.
    save
        File to write the figure to.

    Returns
    -------
    (3,) axes: the image in micrometres with the outline of the other side's tissue; the structure of both on top of one
    another, black where they agree, green where the image has more nuclei and magenta where the other side has; and the
    score beside those of wrong placements.

    Raises
    ------
    InputError
        If no image was registered, several were and none is named, or the other side is gone.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(size_um=(600, 600), mpp=1.0, n_genes=20)
    >>> found = st.pp.register(slide, "he", "cells")
    >>> axes = st.pl.registration(slide)
    """
    import matplotlib.pyplot as plt

    key, provenance = read_note(sdata, image_key)
    how = {k: provenance.get(k) for k in ("channel", "table_key", "layer")}
    other = read_fixed(sdata, provenance["fixed"], **how, coordinate_system=provenance["frame_of_fixed"])
    affine = affine_to(sdata.images[key], provenance["coordinate_system"])
    if affine is None:
        raise InputError(
            f"Image {key!r} is no longer placed in {provenance['coordinate_system']!r}; register it again."
        )
    to_own = inverse(other.to_frame) @ affine
    figure, axes = plt.subplots(
        1, 3, figsize=(13, 4.6), layout="constrained", gridspec_kw={"width_ratios": [1, 1, 0.7]}
    )
    box = _box(other.side)
    _draw_image(axes[0], sdata.images[key], to_own, other.side, box)
    axes[0].set_title(f"{key} with the outline of {provenance['fixed']}")
    _draw_overlay(axes[1], sdata.images[key], to_own, other.side, box, what=f"Image {key!r}")
    axes[1].set_title(f"structure: {key} green, {provenance['fixed']} magenta")
    _draw_scores(axes[2], provenance)
    return finish(array(list(axes)), save)


def _box(side: Side) -> tuple[float, float, float, float]:
    """Return the box around the tissue with a margin, in the side's micrometres."""
    rows, columns = np.nonzero(side.mask)
    low = np.array([columns.min(), rows.min()]) * side.px_um + side.corner_um
    high = np.array([columns.max() + 1, rows.max() + 1]) * side.px_um + side.corner_um
    margin = _MARGIN * float((high - low).max())
    return (*(low - margin).tolist(), *(high + margin).tolist())


def _draw_image(ax: Axes, image: Any, to_um: Any, side: Side, box: tuple[float, float, float, float]) -> None:
    x0, y0, x1, y1 = box
    pyramid = Pyramid.from_image(image, to_um=to_um)
    pixels, _ = pyramid.thumbnail(max(pyramid.mpp, max(x1 - x0, y1 - y0) / MAX_PX), box_um=box)
    ax.imshow(pixels, extent=(x0, x1, y1, y0))
    outline = side.at(max(x1 - x0, y1 - y0) / MAX_PX)
    mask = np.pad(outline.mask, 1).astype(float)  # closed along the border, too
    height, width = mask.shape
    x = (np.arange(width) - 0.5) * outline.px_um + outline.corner_um[0]
    y = (np.arange(height) - 0.5) * outline.px_um + outline.corner_um[1]
    ax.contour(x, y, mask, levels=[0.5], colors="black", linewidths=1.2)
    _frame(ax, box)


def _draw_overlay(
    ax: Axes, image: Any, to_um: Any, side: Side, box: tuple[float, float, float, float], *, what: str
) -> None:
    mpp = mpp_of(to_um, what=what)
    fixed = side.at(max(box[2] - box[0], box[3] - box[1]) / OVERLAY_PX)
    moving = read_he(image, mpp, what=what).at(fixed.px_um)
    there = on_grid(moving.structure()[:1], moving, fixed, inverse(to_um @ scaling(1 / mpp)))[0]
    here = fixed.structure()[0]
    planes = [_shade(plane) for plane in (there, here)]
    pixels = np.stack([planes[1], planes[0], planes[1]], axis=-1)
    height, width = here.shape
    x0, y0 = fixed.corner_um
    ax.imshow(1 - pixels[..., [1, 0, 1]], extent=(x0, x0 + width * fixed.px_um, y0 + height * fixed.px_um, y0))
    _frame(ax, box)


def _shade(plane: Any) -> Any:
    """Return values above the mean from 0 to 1."""
    filled = np.abs(plane[plane != 0])
    top = float(np.quantile(filled, 0.95)) if filled.size else 1.0
    return np.clip(plane / max(top, 1e-9), 0, 1)


def _frame(ax: Axes, box: tuple[float, float, float, float]) -> None:
    ax.set(xlim=(box[0], box[2]), ylim=(box[3], box[1]), xticks=[], yticks=[], aspect="equal")
    ax.set_facecolor("white")
    scale_bar(ax)


def _draw_scores(ax: Axes, provenance: dict[str, Any]) -> None:
    null = np.sort(np.asarray(provenance["null"], dtype=float))
    ax.plot(null, np.arange(len(null)) + 1, "o", color="0.5", label="wrong placements")
    ax.axvline(provenance["score"], color="C3", label="this placement")
    ax.set(xlabel="score", ylabel="wrong placements, by score", xlim=(0, None), ylim=(0, len(null) + 1))
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False, fontsize=8)
    turned = f"{provenance['mpp']:.4g} um per pixel, {provenance['rotation_deg']:.1f} degrees"
    mirror = ", mirrored" if provenance["mirrored"] else ""
    residual = provenance["residual_um"]
    left = "" if residual is None or not np.isfinite(residual) else f", residual {residual:.3g} um"
    verdict = "" if provenance["convincing"] else "\nno better than wrong placements"
    ax.set_title(f"{turned}{mirror}\noutlines {provenance['overlap']:.2f}{left}{verdict}", fontsize=10)
    plain(ax)

"""How well `stpred.pp.register` finds where synthetic H&E images lie, and how often it refuses images of another donor.

Each image is turned (a quarter turn and up to 8 degrees, or any angle), mirrored or not, scaled by 0.8 to 1.25, has a
fifth of its tissue missing and another exposure with noise; the other side is what was measured of the section: cells
of which 15 % are missing, a fluorescent stain of nuclei, spots with counts, or the H&E of another scanner. A wrong pair
is the image of one donor and what was measured of another.

    python scripts/registration_truth.py --cases 20 --against cells dapi he
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any

import numpy as np
from scipy.ndimage import affine_transform, gaussian_filter
from spatialdata.models import Image2DModel
from spatialdata.transformations import Identity, Scale

import stpred as st
from stpred._core.checks import InputError
from stpred._core.elements import apply_affine, scale0

WITHIN_UM = 20.0


def scan(pixels: np.ndarray, rng: np.random.Generator, *, any_angle: bool, missing: float) -> Any:
    """Return what another scanner shows of a section, and the (3, 3) affine from its pixels to micrometres."""
    angle = rng.uniform(0, 360) if any_angle else rng.choice(4) * 90 + rng.uniform(-8, 8)
    mirror, scale = rng.random() < 0.5, rng.uniform(0.8, 1.25)
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    linear = np.array([[c, -s], [s, c]]) @ np.diag([-1.0 if mirror else 1.0, 1.0]) * scale
    glass = np.quantile(pixels.reshape(-1, 3), 0.98, axis=0)
    height, width = pixels.shape[:2]
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]]) @ np.linalg.inv(linear).T
    low, high = corners.min(axis=0) - 60, corners.max(axis=0) + 60
    truth = np.eye(3)
    truth[:2, :2], truth[:2, 2] = linear, linear @ low
    first = (linear @ [0.5, 0.5] + truth[:2, 2] - 0.5)[::-1]
    shape = tuple(np.ceil(high - low).astype(int)[::-1])
    turned = [
        affine_transform(pixels[..., k].astype(float), linear[::-1, ::-1], first, shape, order=1, cval=glass[k])
        for k in range(3)
    ]
    out = np.stack(turned, axis=-1)
    if missing:
        along = rng.uniform(0, 2 * np.pi)
        depth = np.cos(along) * np.arange(shape[1])[None] + np.sin(along) * np.arange(shape[0])[:, None]
        depth = depth + 300 * gaussian_filter(rng.normal(size=shape), 30)
        out[depth > np.quantile(depth[out.mean(axis=-1) < 225], 1 - missing)] = glass
    out = out * rng.uniform(0.85, 1.0) + rng.normal(0, 2, out.shape)
    return np.clip(out, 0, 255).round().astype(np.uint8), truth


def pixels_of(slide: Any) -> np.ndarray:
    """Return the (h, w, 3) pixels of the H&E image."""
    return np.moveaxis(np.asarray(scale0(slide.images["he"]).data), 0, -1)


def centres(slide: Any) -> np.ndarray:
    """Return the (n, 2) centres of the cells in micrometres."""
    return np.column_stack([slide.shapes["cells"].centroid.x, slide.shapes["cells"].centroid.y])


def measured(slide: Any, against: str, rng: np.random.Generator) -> tuple[Any, str]:
    """Return an object that holds one side of a registration, and the element's name."""
    if against == "cells":
        slide.shapes["cells"] = slide.shapes["cells"][rng.random(len(slide.shapes["cells"])) < 0.85]
        del slide.tables["cells_counts"]
        return slide, "cells"
    if against == "dapi":
        width, height = (int(np.ceil(v)) for v in centres(slide).max(axis=0) + 40)
        bright = np.zeros((height, width))
        column, row = centres(slide).astype(int).T
        np.add.at(bright, (row, column), rng.uniform(0.3, 1.7, len(row)))
        bright = 80 + 9000 * gaussian_filter(bright, 2.0) + 200 * gaussian_filter(rng.normal(size=bright.shape), 20)
        bright = (bright + rng.normal(0, 15, bright.shape)).clip(0)
        slide.images["dapi"] = Image2DModel.parse(
            bright[None].astype(np.uint16), dims=("c", "y", "x"), c_coords=["DAPI"],
            transformations={"um": Scale([1.0, 1.0], axes=("x", "y"))},
        )  # fmt: skip
        return slide, "dapi"
    if against == "he":
        pixels = 255 * (pixels_of(slide) / 255.0) ** np.array([1.3, 0.8, 1.1])  # another stain
        pixels = gaussian_filter(pixels, (0.7, 0.7, 0)).round().astype(np.uint8)
        slide.images["other"] = Image2DModel.parse(
            np.moveaxis(pixels, -1, 0), dims=("c", "y", "x"), transformations={"um": Scale([1.0, 1.0], axes=("x", "y"))}
        )
        return slide, "other"
    return slide, "spots"


def trial(seed: int, against: str, options: argparse.Namespace, *, wrong: bool) -> dict[str, Any]:
    """Register one image; return its error and whether it was refused."""
    rng = np.random.default_rng(seed)
    how = {"size_um": (options.size_um, 0.9 * options.size_um), "mpp": 1.0, "n_genes": 60}
    slide = st.datasets.toy(seed=seed, donor=seed % 5, **how)
    pixels, truth = scan(pixels_of(slide), rng, any_angle=options.any_angle, missing=options.missing)
    if wrong:
        slide = st.datasets.toy(seed=seed + 1000, donor=seed % 5 + 1, **how)
    points = centres(slide)
    slide, fixed = measured(slide, against, rng)
    del slide.images["he"]
    slide.images["scan"] = Image2DModel.parse(
        np.moveaxis(pixels, -1, 0), dims=("c", "y", "x"), transformations={"global": Identity()}
    )
    start = time.process_time()
    refused = False
    try:
        found = st.pp.register(slide, "scan", fixed, mpp=None if options.without_mpp else 1.0)
    except InputError as error:
        if "agree no better" not in str(error):
            raise
        refused = True
        found = st.pp.register(
            slide, "scan", fixed, mpp=None if options.without_mpp else 1.0, check=False, inplace=False
        )
    away = np.linalg.norm(apply_affine(found.affine, apply_affine(np.linalg.inv(truth), points)) - points, axis=1)
    return {
        "refused": refused, "error": float(np.median(away)), "z": found.z, "score": found.score,
        "null": max(found.null), "residual": found.residual_um, "seconds": time.process_time() - start,
    }  # fmt: skip


def main() -> None:
    """Run the cases and print a line for each kind of other side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--against", nargs="+", default=["cells", "dapi", "he"])
    parser.add_argument("--size-um", type=float, default=1000.0)
    parser.add_argument("--missing", type=float, default=0.2)
    parser.add_argument("--any-angle", action="store_true")
    parser.add_argument("--without-mpp", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    for against in options.against:
        right, wrong = (
            [_said(trial(options.first_seed + k, against, options, wrong=w), options) for k in range(options.cases)]
            for w in (False, True)
        )
        within = sum(t["error"] < WITHIN_UM and not t["refused"] for t in right)
        errors = [t["error"] for t in right if not t["refused"]]
        print(
            f"{against}: {within} of {len(right)} right pairs placed within {WITHIN_UM:g} um (median error "
            f"{np.median(errors) if errors else np.nan:.1f}, largest {max(errors, default=np.nan):.1f} um; refused "
            f"{sum(t['refused'] for t in right)}; z {min(t['z'] for t in right):.1f} or more); "
            f"{sum(t['refused'] for t in wrong)} of {len(wrong)} wrong pairs refused (z up to "
            f"{max(t['z'] for t in wrong):.1f}); median {np.median([t['seconds'] for t in right]):.1f} s of CPU",
            flush=True,
        )


def _said(found: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    if options.verbose:
        print({k: round(v, 3) for k, v in found.items()}, flush=True)
    return found


if __name__ == "__main__":
    main()

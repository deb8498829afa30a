"""Where the synthetic tissue lies, which region is where, and where its cells and glands sit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stpred.datasets._simulated.celltypes import CELL_TYPES, REGION_NAMES, REGIONS, TYPE_NAMES
from stpred.datasets._simulated.fields import Canvas, Fibres

WOBBLE_ORDERS = np.array([2, 3, 4])
GLAND_PITCH_UM = 80.0
GLAND_CELL_UM = 7.3
APICAL_UM = 11.0
"""Height of the gland cells between nucleus and lumen."""


@dataclass(frozen=True)
class Glands:
    """Rings of epithelium: centres, radius of the ring of nuclei, and the wobble of its outline."""

    xy_um: NDArray[np.float64]
    radius_um: NDArray[np.float64]
    amplitude: NDArray[np.float64]
    phase: NDArray[np.float64]

    def radius_at(self, gland: NDArray, angle: NDArray) -> NDArray:
        """Return the ring's radius of each given gland in each given direction."""
        wave = np.cos(WOBBLE_ORDERS * angle[..., None] + self.phase[gland])
        return self.radius_um[gland] * (1 + (self.amplitude[gland] * wave).sum(axis=-1))


@dataclass(frozen=True)
class Nuclei:
    """Outlines of nuclei: half axes, direction of the long axis, and wobble of the ellipse, one row per cell."""

    semi_um: NDArray[np.float64]
    angle: NDArray[np.float64]
    amplitude: NDArray[np.float64]
    phase: NDArray[np.float64]

    def outline_um(self, n_vertices: int = 25) -> NDArray[np.float64]:
        """Return (n, n_vertices, 2) closed outlines around the origin."""
        t = np.linspace(0, 2 * np.pi, n_vertices)
        waves = np.cos(WOBBLE_ORDERS * t[None, :, None] + self.phase[:, None, :])
        stretch = 1 + (self.amplitude[:, None, :] * waves).sum(axis=-1)
        u = self.semi_um[:, :1] * np.cos(t) * stretch
        v = self.semi_um[:, 1:] * np.sin(t) * stretch
        c, s = np.cos(self.angle)[:, None], np.sin(self.angle)[:, None]
        outline = np.stack([u * c - v * s, u * s + v * c], axis=-1)
        outline[:, -1] = outline[:, 0]
        return outline


@dataclass(frozen=True)
class Layout:
    """Everything about a slide but its colours and its expression."""

    canvas: Canvas
    tissue: NDArray[np.float32]
    region: NDArray[np.intp]
    fibres: Fibres
    glands: Glands
    cells: pd.DataFrame
    nuclei: Nuclei


def lay_out(size_um: tuple[float, float], *, rng: np.random.Generator, region_scale_um: float) -> Layout:
    """Lay out regions, glands and cells of a slide."""
    canvas = Canvas(size_um)
    tissue = _outline(canvas, rng)
    region = _regions(canvas, rng, region_scale_um)
    fibres = Fibres.random(canvas, rng)
    glands = _glands(canvas, tissue, region, rng)
    points = pd.concat([_ring_cells(glands, rng), _scattered_cells(canvas, region, glands, rng)], ignore_index=True)
    points = points[canvas.at(tissue, points["x_um"], points["y_um"]) > 0.9].reset_index(drop=True)
    points = _thin(points)
    points["region"] = canvas.at(region, points["x_um"], points["y_um"])
    nuclei = _nuclei(canvas, points, fibres, rng)
    return Layout(canvas, tissue, region, fibres, glands, _describe(points, nuclei, rng, canvas), nuclei)


def _outline(canvas: Canvas, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return 1 inside the tissue and 0 on the glass around it, with a soft irregular border."""
    x, y = canvas.centres()
    u, v = 2 * x / canvas.size_um[0] - 1, 2 * y / canvas.size_um[1] - 1
    inside_um = (1 - (u**4 + v**4) ** 0.25) * min(canvas.size_um) / 2
    inside_um = (
        inside_um - 0.04 * min(canvas.size_um) - 12.0 + 9.0 * canvas.noise(rng, 45.0) + 3.0 * canvas.noise(rng, 9.0)
    )
    return np.clip(inside_um / 8.0 + 0.5, 0, 1).astype(np.float32)


def _regions(canvas: Canvas, rng: np.random.Generator, scale_um: float) -> NDArray[np.intp]:
    """Give each place the region whose random field is highest; the slide's own preferences are added."""
    preference = rng.normal(0, 0.25, len(REGIONS)) + np.array([0.1, 0.0, -0.15, 0.1])
    fields = [canvas.noise(rng, scale_um) + 0.10 * canvas.noise(rng, 10.0) + p for p in preference]
    return np.argmax(fields, axis=0)


def _glands(canvas: Canvas, tissue: NDArray, region: NDArray, rng: np.random.Generator) -> Glands:
    xy = _lattice(canvas.size_um, GLAND_PITCH_UM, 0.07, rng)
    radius = rng.uniform(19.0, 29.0, len(xy))
    kept = canvas.at(region, xy[:, 0], xy[:, 1]) == REGION_NAMES.index("gland")
    for angle in np.arange(0, 2 * np.pi, np.pi / 4):  # whole inside the tissue, not cut by its border
        x, y = xy[:, 0] + 38 * np.cos(angle), xy[:, 1] + 38 * np.sin(angle)
        kept &= (x > 0) & (y > 0) & (x < canvas.size_um[0]) & (y < canvas.size_um[1])
        kept &= canvas.at(tissue, x, y) > 0.9
    amplitude = rng.normal(0, [0.07, 0.05, 0.03], (len(xy), 3)).clip(-0.12, 0.12)
    return Glands(xy[kept], radius[kept], amplitude[kept], rng.uniform(0, 2 * np.pi, (len(xy), 3))[kept])


def _ring_cells(glands: Glands, rng: np.random.Generator) -> pd.DataFrame:
    """Place epithelial cells side by side around each gland, pointing to its centre."""
    n = np.round(2 * np.pi * glands.radius_um / GLAND_CELL_UM).astype(int)
    gland = np.repeat(np.arange(len(n)), n)
    rank = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
    angle = 2 * np.pi * (rank + rng.normal(0, 0.05, len(rank))) / np.maximum(n[gland], 1)
    radius = glands.radius_at(gland, angle) + rng.normal(0, 0.8, len(rank))
    xy = glands.xy_um[gland] + radius[:, None] * np.column_stack([np.cos(angle), np.sin(angle)])
    return pd.DataFrame({"x_um": xy[:, 0], "y_um": xy[:, 1], "type": TYPE_NAMES.index("epithelial"), "angle": angle})


def _scattered_cells(canvas: Canvas, region: NDArray, glands: Glands, rng: np.random.Generator) -> pd.DataFrame:
    """Place the other cells of every region on a jittered lattice of its spacing, with types drawn by its shares."""
    from scipy.spatial import cKDTree

    infiltration = {name: np.exp(0.7 * canvas.noise(rng, 60.0)) for name in ("lymphocyte", "plasma")}
    parts = []
    for index, spec in enumerate(REGIONS):
        xy = _lattice(canvas.size_um, spec.spacing_um, 0.20, rng)
        xy = xy[canvas.at(region, xy[:, 0], xy[:, 1]) == index]
        share = np.array([np.full(len(xy), spec.share.get(name, 0.0)) for name in TYPE_NAMES])
        for name, factor in infiltration.items():
            share[TYPE_NAMES.index(name)] *= canvas.at(factor, xy[:, 0], xy[:, 1])
        drawn = rng.random(len(xy)) * share.sum(axis=0)
        kind = (drawn > np.cumsum(share, axis=0)).sum(axis=0).clip(0, len(TYPE_NAMES) - 1)
        parts.append(pd.DataFrame({"x_um": xy[:, 0], "y_um": xy[:, 1], "type": kind, "angle": np.nan}))
    cells = pd.concat(parts, ignore_index=True)
    if len(glands.radius_um):
        distance, gland = cKDTree(glands.xy_um).query(cells[["x_um", "y_um"]])
        cells = cells[distance > glands.radius_um[gland] * 1.1 + 7.0]
    return cells


def _lattice(size_um: tuple[float, float], spacing_um: float, jitter: float, rng: np.random.Generator) -> NDArray:
    """Return a hexagonal lattice over the slide, each point moved by a Gaussian of `jitter` spacings."""
    columns, rows = int(size_um[0] / spacing_um) + 2, int(size_um[1] / (spacing_um * 0.866)) + 2
    i, j = np.divmod(np.arange(rows * columns), columns)
    xy = np.column_stack([(j + 0.5 * (i % 2)) * spacing_um, i * spacing_um * 0.866])
    xy += rng.normal(0, jitter * spacing_um, xy.shape) + rng.uniform(0, spacing_um, 2) - spacing_um / 2
    inside = (xy > 0).all(axis=1) & (xy[:, 0] < size_um[0]) & (xy[:, 1] < size_um[1])
    return xy[inside]


def _thin(points: pd.DataFrame) -> pd.DataFrame:
    """Drop the later one of any two cells whose nuclei would lie on each other."""
    from scipy.spatial import cKDTree

    radius = np.sqrt(np.array([t.area_um2 for t in CELL_TYPES]) / np.pi)[points["type"].to_numpy()]
    pairs = cKDTree(points[["x_um", "y_um"]]).query_pairs(2 * radius.max(), output_type="ndarray")
    gap = np.linalg.norm(
        points[["x_um", "y_um"]].to_numpy()[pairs[:, 0]] - points[["x_um", "y_um"]].to_numpy()[pairs[:, 1]], axis=1
    )
    close = gap < 0.88 * (radius[pairs[:, 0]] + radius[pairs[:, 1]])
    return points.drop(index=np.unique(pairs[close].max(axis=1))).reset_index(drop=True)


def _nuclei(canvas: Canvas, points: pd.DataFrame, fibres: Fibres, rng: np.random.Generator) -> Nuclei:
    """Draw size, elongation and direction; nuclear size varies smoothly over the slide as well as from cell to cell."""
    x, y, kind = points["x_um"], points["y_um"], points["type"].to_numpy()
    grade = canvas.at(canvas.noise(rng, 70.0), x, y)
    z = np.clip(0.75 * grade + 0.6 * rng.standard_normal(len(points)), -2, 2)
    spec = {k: np.array([getattr(t, k) for t in CELL_TYPES])[kind] for k in ("area_um2", "area_cv", "aspect")}
    area = spec["area_um2"] * np.exp(spec["area_cv"] * z)
    aspect = 1 + (spec["aspect"] - 1) * np.exp(0.22 * np.clip(rng.standard_normal(len(points)), -2, 2))
    angle = rng.uniform(0, 2 * np.pi, len(points))
    aligned = kind == TYPE_NAMES.index("fibroblast")
    angle[aligned] = (canvas.at(fibres.angle, x, y) + rng.normal(0, 0.2, len(points)))[aligned]
    given = points["angle"].notna().to_numpy()
    angle[given] = points["angle"].to_numpy()[given]
    semi = np.sqrt(area / np.pi)[:, None] * np.column_stack([np.sqrt(aspect), 1 / np.sqrt(aspect)])
    amplitude = rng.normal(0, [0.045, 0.03, 0.02], (len(points), 3)).clip(-0.1, 0.1)
    return Nuclei(semi, angle, amplitude, rng.uniform(0, 2 * np.pi, (len(points), 3)))


def _describe(points: pd.DataFrame, nuclei: Nuclei, rng: np.random.Generator, canvas: Canvas) -> pd.DataFrame:
    """Return the public frame of cells; chromatin is the coarseness of the nuclear texture, 0..1."""
    x, y = points["x_um"].to_numpy(), points["y_um"].to_numpy()
    texture = canvas.at(canvas.noise(rng, 70.0), x, y) + 0.7 * rng.standard_normal(len(points))
    ratio = nuclei.semi_um[:, 1] / nuclei.semi_um[:, 0]
    return pd.DataFrame(
        {
            "x_um": x,
            "y_um": y,
            "type": pd.Categorical.from_codes(points["type"].to_numpy(), list(TYPE_NAMES)),
            "region": pd.Categorical.from_codes(points["region"].to_numpy(), list(REGION_NAMES)),
            "area_um2": np.pi * nuclei.semi_um.prod(axis=1),
            "eccentricity": np.sqrt(1 - ratio**2),
            "angle": np.mod(nuclei.angle, np.pi),
            "chromatin": 1 / (1 + np.exp(-1.2 * texture)),
        },
        index=pd.Index([f"cell{i:06d}" for i in range(len(points))], name="cell_id"),
    )

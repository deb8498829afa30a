"""Drawing the tissue: haematoxylin and eosin per pixel, levelled so that mean colour tells nothing of the tissue."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stpred.datasets._simulated.celltypes import CELL_TYPES, REGIONS, CellType
from stpred.datasets._simulated.fields import Canvas, wrapped_noise
from stpred.datasets._simulated.layout import APICAL_UM, Glands, Layout
from stpred.datasets._simulated.scan import scan

Map = NDArray[np.float32]
BATCH = 64
MARGIN_UM = 24.0
"""Border around the maps, so that a nucleus at the slide's edge needs no special case."""
LEVEL_UM = 32.0
"""Kernel over which stains are levelled: that of a 112 um tile's box."""
LEVEL_ROUNDS = 3
RED_ABSORBED, GREEN_ABSORBED = 0.185, 0.42
"""Share of light that haematoxylin takes from red, and both stains from green, averaged over a tile."""
FIBRE_STEP_UM = 0.5
FIBRE_SIZE = 1024


def render(layout: Layout, *, mpp: float, rng: np.random.Generator, scanner: np.random.Generator) -> NDArray[np.uint8]:
    """Draw the slide as uint8 RGB (rows, columns, 3); `rng` draws the tissue's textures, `scanner` stain and scan."""
    canvas = layout.canvas
    shape = (round(canvas.size_um[1] / mpp), round(canvas.size_um[0] / mpp))
    margin = int(np.ceil(MARGIN_UM / mpp))
    padded = np.zeros((2, shape[0] + 2 * margin, shape[1] + 2 * margin), dtype=np.float32)
    maps = padded[:, margin:-margin, margin:-margin]
    maps[0], maps[1] = _ground(layout, shape, mpp, rng)
    for gland in range(len(layout.glands.radius_um)):
        _draw_gland(padded, layout.glands, gland, mpp, margin)
    for index in range(len(CELL_TYPES)):
        _draw_type(padded, layout, index, mpp, margin, rng)
    tissue = canvas.to_pixels(layout.tissue, shape).clip(0, 1)
    haematoxylin, eosin = maps[0] * tissue, maps[1] * tissue
    del padded, maps
    drift = [0.13 * canvas.noise(scanner, 130.0) + np.float32(scanner.normal(0, 0.05)) for _ in range(2)]
    _level(haematoxylin, eosin, canvas, layout.tissue, drift)
    return scan(haematoxylin, eosin, mpp=mpp, rng=scanner)


def _ground(layout: Layout, shape: tuple[int, int], mpp: float, rng: np.random.Generator) -> tuple[Map, Map]:
    """Return haematoxylin and eosin of what lies between the cells: fibres, grains, clefts."""
    from scipy.ndimage import gaussian_filter

    canvas, fibres = layout.canvas, layout.fibres
    eosin_of, fibrous_of = (np.array([getattr(r, k) for r in REGIONS], dtype=np.float32) for k in ("eosin", "fibrous"))
    eosin = canvas.to_pixels(gaussian_filter(eosin_of[layout.region], 1.0), shape)
    fibrous = canvas.to_pixels(gaussian_filter(fibrous_of[layout.region], 1.0), shape)
    bundle = wrapped_noise(rng, (FIBRE_SIZE, FIBRE_SIZE), (1.1 / FIBRE_STEP_UM, 16.0 / FIBRE_STEP_UM))
    across = (canvas.to_pixels(fibres.across, shape) / FIBRE_STEP_UM).astype(np.int32) & (FIBRE_SIZE - 1)
    along = (canvas.to_pixels(fibres.along, shape) / FIBRE_STEP_UM).astype(np.int32) & (FIBRE_SIZE - 1)
    thread = np.tanh(1.4 * bundle)[across, along]
    grain = _tiled(wrapped_noise(rng, (512, 512), 0.7 / mpp), shape)
    eosin = eosin * (1 + 0.75 * fibrous * thread + 0.16 * grain)
    eosin *= 1 - _clefts(canvas, shape, rng)
    return np.clip(0.05 + 0.015 * grain, 0, None), np.clip(eosin, 0.01, None)


def _clefts(canvas: Canvas, shape: tuple[int, int], rng: np.random.Generator) -> Map:
    """Return 1 in narrow white slits that run here and there through any kind of tissue."""
    line, where = canvas.noise(rng, 22.0), canvas.noise(rng, 40.0)
    slit = canvas.to_pixels(line, shape)
    slit = np.exp(-np.square(slit / 0.055))
    return slit * np.clip(3 * (canvas.to_pixels(where, shape) - 0.9), 0, 1)


def _tiled(texture: Map, shape: tuple[int, int]) -> Map:
    """Repeat a seamless texture over an image."""
    return texture[np.arange(shape[0])[:, None] % texture.shape[0], np.arange(shape[1])[None] % texture.shape[1]]


def _draw_gland(padded: Map, glands: Glands, index: int, mpp: float, margin: int) -> None:
    """Draw the cells' cytoplasm as a ring, and the lumen inside it as a hole."""
    (x, y), half = glands.xy_um[index], int(np.ceil((glands.radius_um[index] * 1.25 + 5) / mpp))
    column, row = int(x / mpp), int(y / mpp)
    offset = (np.arange(-half, half + 1) + 0.5) * mpp
    dx, dy = offset[None] + column * mpp - x, offset[:, None] + row * mpp - y
    radius, angle = np.hypot(dx, dy), np.arctan2(dy, dx)
    outwards = radius - glands.radius_at(np.array(index), angle)
    ring = np.clip(4.5 - outwards, 0, 1) * np.clip(outwards + APICAL_UM, 0, 1)
    lumen = np.clip(-APICAL_UM - outwards, 0, 1)
    rows = slice(max(0, row + margin - half), row + margin + half + 1)
    columns = slice(max(0, column + margin - half), column + margin + half + 1)
    part = padded[:, rows, columns]
    cut = (slice(-part.shape[1], None), slice(-part.shape[2], None))
    ring, lumen, outwards = ring[cut], lumen[cut], outwards[cut]
    apical = 0.42 + 0.14 * np.exp(-np.square((outwards + APICAL_UM - 1.2) / 1.2))
    part[1] = (part[1] * (1 - ring) + ring * apical) * (1 - lumen)
    part[0] = (part[0] + 0.06 * ring) * (1 - lumen)


def _draw_type(padded: Map, layout: Layout, index: int, mpp: float, margin: int, rng: np.random.Generator) -> None:
    """Draw all cells of one type, a batch of patches at a time."""
    spec, nuclei = CELL_TYPES[index], layout.nuclei
    rows = np.flatnonzero(layout.cells["type"].cat.codes.to_numpy() == index)
    if not len(rows):
        return
    reach_um = nuclei.semi_um[rows].max() * 1.2 + spec.cytoplasm_um + 1.0
    half = min(int(np.ceil(reach_um / mpp)), margin - 1)
    textures = [wrapped_noise(rng, (256, 256), s / mpp) for s in (0.40, 0.85)]
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        x, y = (layout.cells[k].to_numpy()[batch] for k in ("x_um", "y_um"))
        column, row = (x / mpp).astype(int), (y / mpp).astype(int)
        offset = (np.arange(-half, half + 1) + 0.5) * mpp
        dx = (offset + (column * mpp - x)[:, None]).astype(np.float32)[:, None, :]
        dy = (offset + (row * mpp - y)[:, None]).astype(np.float32)[:, :, None]
        u, v, depth = _own_frame(layout, batch, dx, dy)
        noise = [_crops(t, len(batch), u.shape[1:], rng) for t in textures]
        chromatin = layout.cells["chromatin"].to_numpy()[batch]
        nucleus = _nucleus(spec, nuclei.semi_um[batch], u, v, depth, noise, chromatin, mpp, rng)
        cytoplasm = _cytoplasm(spec, nuclei.semi_um[batch], depth, noise[1])
        _paste(padded, nucleus, cytoplasm, spec, row + margin - half, column + margin - half)


def _own_frame(layout: Layout, batch: NDArray, dx: NDArray, dy: NDArray) -> tuple[Map, Map, Map]:
    """Return each pixel along the long and short axis of its nucleus and its depth, 1 at the outline."""
    nuclei = layout.nuclei
    cos, sin = (f(nuclei.angle[batch]).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
    u, v = dx * cos + dy * sin, dy * cos - dx * sin
    semi = nuclei.semi_um[batch].astype(np.float32)
    p, q = u / semi[:, :1, None], v / semi[:, 1:, None]
    wave = (nuclei.amplitude[batch] * np.exp(1j * nuclei.phase[batch])).astype(np.complex64)[:, :, None, None]
    ellipse = np.hypot(p, q)
    around = (p + 1j * q) / np.maximum(ellipse, 1e-6)
    # cos(k a + phase) for k = 2, 3, 4 is the real part of a power of exp(i a): no angle has to be computed.
    stretch = 1 + (around * around * (wave[:, 0] + around * (wave[:, 1] + around * wave[:, 2]))).real
    return u, v, ellipse / stretch


def _crops(texture: Map, n: int, shape: tuple[int, ...], rng: np.random.Generator) -> Map:
    """Return n windows of a seamless texture at random places."""
    size = texture.shape[0]
    i, j = rng.integers(0, size, (2, n))
    rows = (i[:, None] + np.arange(shape[0])) % size
    columns = (j[:, None] + np.arange(shape[1])) % size
    return texture[rows[:, :, None], columns[:, None, :]]


def _nucleus(
    spec: CellType,
    semi_um: NDArray,
    u: Map,
    v: Map,
    depth: Map,
    noise: list[Map],
    chromatin: NDArray,
    mpp: float,
    rng: np.random.Generator,
) -> tuple[Map, Map]:
    """Return haematoxylin (n, rows, columns) and coverage of nuclei: body, rim, chromatin texture and nucleoli."""
    edge_um = max(0.5, mpp)
    cover = np.clip((1 - depth) * semi_um[:, 1:, None].astype(np.float32) / edge_um + 0.5, 0, 1)
    body: Map = np.full_like(depth, spec.optical_density)
    if spec.hollow:
        rim = np.exp(-np.square((depth - 0.86) / 0.15))
        body *= 1 - spec.hollow + 1.35 * spec.hollow * rim
    strength = (0.3 + 1.4 * chromatin).astype(np.float32)[:, None, None]
    body = body * np.clip(1 + strength * (spec.stipple * noise[0] + spec.clump * noise[1]), 0.15, 2.2)
    if spec.nucleoli:
        n = np.minimum(rng.poisson(spec.nucleoli, len(u)), 3)
        for k in range(3):
            at = (rng.uniform(-0.45, 0.45, (2, len(u))) * semi_um.T).astype(np.float32)
            radius = rng.uniform(0.65, 1.0, len(u)).astype(np.float32)[:, None, None]
            gap = np.square(u - at[0][:, None, None]) + np.square(v - at[1][:, None, None])
            body += 0.95 * (k < n)[:, None, None] * np.exp(-gap / np.square(radius))
    return body * cover, cover


def _cytoplasm(spec: CellType, semi_um: NDArray, depth: Map, noise: Map) -> Map | None:
    """Return coverage of the cytoplasm, denser along the membrane, or None if the type has none drawn."""
    if not spec.cytoplasm_um:
        return None
    outside_um = (depth - 1) * np.sqrt(semi_um.prod(axis=1)).astype(np.float32)[:, None, None]
    inside = np.clip((spec.cytoplasm_um - outside_um) / 0.8, 0, 1)
    membrane = np.exp(-np.square((outside_um - spec.cytoplasm_um + 0.9) / 0.7))
    return inside * (0.9 + 0.10 * noise + 0.35 * membrane)


def _paste(
    padded: Map, nucleus: tuple[Map, Map], cytoplasm: Map | None, spec: CellType, top: NDArray, left: NDArray
) -> None:
    """Lay a batch of patches onto the maps: cytoplasm first, then nuclei; the darker of two wins."""
    haematoxylin, cover = nucleus
    size = cover.shape[1]
    for k, (i, j) in enumerate(zip(top.tolist(), left.tolist(), strict=True)):
        part = padded[:, i : i + size, j : j + size]
        if cytoplasm is not None:
            np.maximum(part[1], spec.eosin * cytoplasm[k], out=part[1])
            np.maximum(part[0], (0.05 + spec.basophilia) * cytoplasm[k], out=part[0])
        np.maximum(part[0], haematoxylin[k], out=part[0])
        part[1] *= 1 - 0.45 * cover[k]


def _level(haematoxylin: Map, eosin: Map, canvas: Canvas, tissue: Map, drift: Sequence[Map]) -> None:
    """Scale both stains, in place, by smooth fields until each place absorbs the same red and green, then by the drift.

    The fields are found on every other pixel, which is as good for fields this smooth.
    """
    from scipy.ndimage import gaussian_filter

    sigma = LEVEL_UM / canvas.step_um
    weight = gaussian_filter(tissue, sigma) + 1e-3
    thin = [np.ascontiguousarray(stain[::2, ::2]) for stain in (haematoxylin, eosin)]
    factors = [np.ones(canvas.shape, dtype=np.float32) for _ in thin]

    def absorbed(h: float, e: float) -> Map:
        light = np.exp(-h * thin[0] - e * thin[1]) if e else np.exp(-h * thin[0])
        return gaussian_filter(_shrink(1 - light, canvas.shape), sigma) / weight

    def rescale(which: int, wanted: Map | float, found: Map) -> None:
        factor = np.clip(wanted / np.maximum(found, 1e-3), 0.5, 2.0)
        factors[which] *= factor
        thin[which] *= canvas.to_pixels(factor, thin[which].shape)

    for _ in range(LEVEL_ROUNDS):
        rescale(0, RED_ABSORBED, absorbed(0.9, 0.0))
    base = absorbed(0.95, 0.0)
    for _ in range(LEVEL_ROUNDS):
        rescale(1, GREEN_ABSORBED - base, absorbed(0.95, 1.0) - base)
    for stain, factor, wave in zip((haematoxylin, eosin), factors, drift, strict=True):
        stain *= canvas.to_pixels(factor * np.exp(wave), stain.shape)


def _shrink(image: Map, shape: tuple[int, int]) -> Map:
    """Average an image onto a coarser grid."""
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((shape[1], shape[0]), Image.Resampling.BOX))

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import keys, targets
from stpred._core.checks import InputError, key_in, whole
from stpred._core.elements import find_image, region_in_frame, table_in_frame, table_instances
from stpred._core.geometry import geometries_um
from stpred._core.tables import read_provenance
from stpred.comparison.slide_tables import named_slides
from stpred.pl._canvas import scale_bar
from stpred.pl._figure import finish
from stpred.pl._raster import raster_part
from stpred.tiles import Pyramid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray
    from spatialdata import SpatialData

ENDS = (0.01, 0.99)
"""Quantiles of a component that get no ink and all of it."""

MAX_INK = 0.9
GROUND = "0.82"
"""Behind the colours: a mixture without any ink is white."""

TYPICAL = 0.05
"""Share of all places that a metagene's colour in the legend is the mean of."""

PROFILE, SCALE, METAGENES = "profile", "scale", "metagenes"


@dataclass(frozen=True)
class Inks:
    """Three principal components of the shares of metagenes as cyan, magenta and yellow.

    Attributes
    ----------
    middle
        (m,) mean shares.
    axes
        (m, k) loadings, k at most 3.
    low, high
        (k,) what gets no ink, and all of it.
    """

    middle: NDArray[np.float64]
    axes: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @classmethod
    def of(cls, shares: NDArray[np.float64]) -> Inks:
        """Fit the components to (n, m) shares; of each the largest loading is positive."""
        middle = shares.mean(axis=0)
        _, size, axes = np.linalg.svd(shares - middle, full_matrices=False)
        # Shares add up to 1 but for rounding: what is left of that is no component.
        k = min(3, int((size > max(1e-4 * size[0], 1e-6)).sum())) if len(size) else 0
        if k == 0:
            raise InputError("The metagenes have the same shares everywhere, so there is nothing to colour.")
        axes = axes[:k].T
        axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(k)])
        low, high = np.quantile((shares - middle) @ axes, ENDS, axis=0)
        return cls(middle, axes, low, np.where(high - low > 1e-12, high, low + 1))

    def colours(self, shares: NDArray[np.float64], black: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Return (n, 3) red, green and blue of (n, m) shares; `black` (n,) is the share of black ink."""
        ink = (((shares - self.middle) @ self.axes - self.low) / (self.high - self.low)).clip(0, 1) * MAX_INK
        out = np.ones((len(shares), 3))
        out[:, : ink.shape[1]] -= ink
        return out if black is None else out * (1 - black[:, None])


def metagenes(
    slides: Mapping[str, SpatialData] | SpatialData,
    key: str,
    *,
    table_key: str | None = None,
    n_genes: int = 4,
    darken: bool = True,
    ncols: int = 4,
    coordinate_system: str = keys.UM,
    save: str | Path | None = None,
) -> NDArray[Any]:
    """Draw all metagenes of a slide in one picture: their three principal components as cyan, magenta and yellow.

    Places of like colour have like mixtures of metagenes, whatever their number; the colours of several slides are the
    same, since components are taken over all of them.

    Parameters
    ----------
    slides
        Slides by name, or one slide.
    key
        What :func:`stpred.tl.metagenes` wrote on every slide: a table (its shapes are coloured) or a map
        (``raster=True``).
    table_key
        Of a map: the table of metagenes of the same model, which knows the genes of the legend.
    n_genes
        Genes that are named for each metagene, those that it raises most over the mean of the others.
    darken
        Of a table: darken places with little RNA (``obs["scale"]``), as the publication does with black ink.
    ncols
        Panels per row.
    coordinate_system
        The slides' micrometre frame.
    save
        File to write the figure to.

    Returns
    -------
    (slides + 1,) axes, the last one the legend: each metagene's colour (the mean of the twentieth of all places where
    its share is highest), its mean share, and the genes that it raises most.

    Raises
    ------
    InputError
        If there is no such table or map, slides have other metagenes, or there is but one.

    References
    ----------
    Bergenstråhle et al. (2022), Super-resolved spatial transcriptomics by deep data fusion, Nature Biotechnology
    40:476: the summary of metagenes as one image.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(2, size_um=(400, 400), n_genes=20)
    >>> config = st.models.XFuse.Config(depth=2, width=4, epochs=1)
    >>> model = st.tl.train(slides, config, shapes_key="spots", tile=st.TileSpec(mpp=16, size_px=16))
    >>> st.tl.metagenes(slides["donor0"], model, shapes_key="spots", posterior=st.Posterior(2))
    >>> len(st.pl.metagenes(slides["donor0"], "spots_xfuse_metagenes"))
    2
    """
    import matplotlib.pyplot as plt

    n_genes, ncols = whole(n_genes, name="n_genes"), whole(ncols, name="ncols")
    sides = {
        name: _Side.of(sdata, key, slide=name, darken=darken, coordinate_system=coordinate_system)
        for name, sdata in named_slides(slides).items()
    }
    names = next(iter(sides.values())).names
    for name, side in sides.items():
        if side.names != names:
            raise InputError(f"{key!r} of {name!r} has other metagenes than that of {next(iter(sides))!r}.")
    if len(names) < 2:
        raise InputError(f"{key!r} has one metagene, which is everywhere alike, so there is nothing to colour.")
    shares = np.concatenate([side.shares[side.known] for side in sides.values()])
    inks = Inks.of(shares)
    n = len(sides) + 1
    columns = min(ncols, n)
    rows = -(-n // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.6 * columns, 4.2 * rows), squeeze=False, layout="constrained")
    panels = axes.ravel()
    for ax, (name, side) in zip(panels, sides.items(), strict=False):
        side.draw(ax, inks)
        ax.set_title(name if len(sides) > 1 else "metagenes")
    for ax in panels[len(sides) :]:
        ax.set_axis_off()
    first = next(iter(named_slides(slides).values()))
    genes = _genes(first, key if key in first.tables else table_key, names, n=n_genes)
    typical = np.stack([shares[v >= np.quantile(v, 1 - TYPICAL)].mean(axis=0) for v in shares.T])
    _legend(panels[len(sides)], names, inks.colours(typical), shares.mean(axis=0), genes)
    return finish(panels[:n], save)


@dataclass(frozen=True)
class _Side:
    """One slide's metagenes: (n, m) shares of pixels or locations, and how they are drawn."""

    names: list[str]
    shares: NDArray[np.float64]
    known: NDArray[np.bool_]
    black: NDArray[np.float64] | None
    shapes: NDArray[Any] | None
    size: tuple[int, int] | None
    box: tuple[float, float, float, float]

    @classmethod
    def of(cls, sdata: SpatialData, key: str, *, slide: str, darken: bool, coordinate_system: str) -> _Side:
        if key in sdata.images:
            element, box = raster_part(sdata, key, None, coordinate_system)
            values = np.asarray(element.transpose("y", "x", "c"), dtype=np.float64)
            flat = values.reshape(-1, values.shape[2])
            names = [str(c) for c in element.coords["c"].values]
            known = np.asarray(np.isfinite(flat).all(axis=1))
            return cls(names, flat, known, None, None, (values.shape[0], values.shape[1]), box)
        key_in(key, [*sdata.tables, *sdata.images], what=f"table or map of {slide!r}", name="key")
        table = table_in_frame(sdata, key, coordinate_system=coordinate_system)
        if read_provenance(table, what=f"table {key!r} of {slide!r}").get("kind") != METAGENES:
            raise InputError(f"Table {key!r} of {slide!r} holds no metagenes; stpred.tl.metagenes writes them.")
        region = region_in_frame(sdata, key, coordinate_system=coordinate_system)
        outlines, index = geometries_um(sdata, region, coordinate_system=coordinate_system)
        shapes = outlines[index.get_indexer(table_instances(table, region)[1])]
        shares = targets.dense(table.X, np.float64)
        black = None
        if darken and SCALE in table.obs:
            scale = table.obs[SCALE].to_numpy(dtype=np.float64)
            black = 0.8 * (1 - (scale / max(float(np.quantile(scale, ENDS[1])), 1e-12)).clip(0, 1))
        image = find_image(sdata, None, coordinate_system=coordinate_system)
        box = Pyramid.from_image(sdata.images[image], coordinate_system=coordinate_system).bounds_um
        known = np.asarray(np.isfinite(shares).all(axis=1))
        return cls(list(table.var_names), shares, known, black, shapes, None, box)

    def draw(self, ax: Axes, inks: Inks) -> None:
        """Draw the colours where they are."""
        import shapely
        from matplotlib.collections import PolyCollection

        colors = np.ones((len(self.shares), 4))
        colors[self.known, :3] = inks.colours(
            self.shares[self.known], None if self.black is None else self.black[self.known]
        )
        colors[~self.known, 3] = 0
        x0, y0, x1, y1 = self.box
        if self.size is not None:
            ax.imshow(colors.reshape(*self.size, 4), extent=(x0, x1, y1, y0), interpolation="nearest")
        else:
            assert self.shapes is not None
            parts = [(shapely.get_parts(s), c) for s, c in zip(self.shapes, colors, strict=True)]
            rings = [shapely.get_coordinates(shapely.get_exterior_ring(p)) for ps, _ in parts for p in ps]
            ax.add_collection(PolyCollection(rings, facecolors=[c for ps, c in parts for _ in ps], edgecolors="none"))
            low, high = np.concatenate(rings).min(axis=0), np.concatenate(rings).max(axis=0)
            (x0, y0), (x1, y1) = low - 0.03 * (high - low), high + 0.03 * (high - low)
        ax.set(xlim=(x0, x1), ylim=(y1, y0), xticks=[], yticks=[], aspect="equal", facecolor=GROUND)
        scale_bar(ax)


def _genes(sdata: SpatialData, table_key: str | None, names: list[str], *, n: int) -> list[str]:
    """Return the genes that each metagene raises most over the mean of the others, as text; "" where unknown."""
    if table_key is None:
        return [""] * len(names)
    key_in(table_key, sdata.tables, what="table", name="table_key")
    table = sdata.tables[table_key]
    genes = json.loads(table.uns[keys.UNS]).get("genes") if keys.UNS in table.uns else None
    if PROFILE not in table.varm or genes is None or list(table.var_names) != names:
        raise InputError(f"Table {table_key!r} does not hold the profiles of these metagenes ({names}).")
    profile = np.asarray(table.varm[PROFILE], dtype=np.float64)
    others = (profile.sum(axis=0) - profile) / max(len(profile) - 1, 1)
    return [", ".join(genes[g] for g in np.argsort(-row, kind="stable")[:n]) for row in profile - others]


def _legend(
    ax: Axes, names: list[str], colors: NDArray[np.float64], shares: NDArray[np.float64], genes: list[str]
) -> None:
    """Draw each metagene's colour, share and genes, the largest first."""
    from matplotlib.patches import Rectangle

    order = np.argsort(-shares, kind="stable")
    step = min(0.09, 0.95 / len(names))
    for line, k in enumerate(order):
        y = 0.97 - (line + 1) * step
        ax.add_patch(Rectangle((0.0, y), 0.07, 0.8 * step, facecolor=colors[k], edgecolor="0.3", linewidth=0.5))
        text = f"{names[k].removeprefix('metagene')} ({shares[k]:.0%})  {genes[k]}"
        ax.text(0.1, y + 0.4 * step, text, va="center", fontsize=min(9, 90 * step))
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.set_title("metagene (share): genes", fontsize=10, loc="left")

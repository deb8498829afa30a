"""Is the profile of a single nucleus true? Three tests on real spots, without any cell being measured.

    python scripts/cell_evidence.py ../shared/data/her2st --nuclei cells/nuclei --out evidence

Each section is left out in turn; sCellST in closed form learns from the others. Beside it stands the same model on
tiles alone, whose prediction of a nucleus is that of the tile around it.

1. Reweighing. What tiles do not explain of a held-out spot, against the mean of the crops' part over its own cells,
   over cells just outside it, over those of its neighbour, and over those of any spot (the null).
2. Halves. The difference that is predicted between the cells of two halves of a spot, against the difference that is
   measured between the two spots on either side. The null turns the signs of spots.
3. Markers that exclude each other in a cell: how often both are among the highest tenth, over what chance gives.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from cell_ablation import MORPHOLOGY, TILES, Sections, Setting
from her2st_cells import add_nuclei
from scipy.spatial import cKDTree

import stpred as st
from stpred import data, training
from stpred._core.places import Place
from stpred.models import Batch, SCellST

if TYPE_CHECKING:
    from numpy.typing import NDArray

PAIRS = [
    ("EPCAM", "PTPRC"), ("EPCAM", "COL1A1"), ("EPCAM", "CD74"), ("KRT8", "PTPRC"), ("KRT8", "COL1A1"), ("KRT8", "CD74"),
    ("CD3E", "EPCAM"), ("CD74", "COL1A1"), ("PTPRC", "COL1A1"),
]  # fmt: skip
TOP = 0.1
N_NULL = 500


@dataclass(frozen=True)
class Cells:
    """A held-out section: its nuclei near spots, what is predicted of them, and its spots.

    Attributes
    ----------
    xy, spots_xy
        Centres in micrometres.
    whole, crops, tiles
        (n, n_genes) predictions of nuclei: of the model, of its crops' part, and of the model on tiles alone.
    y, rest
        (m, n_genes) measured log1p CP10k of the spots, and what the tiles' model leaves of it.
    radius_um
        Of a spot.
    """

    xy: NDArray[np.float64]
    spots_xy: NDArray[np.float64]
    whole: NDArray[np.float64]
    crops: NDArray[np.float64]
    tiles: NDArray[np.float64]
    y: NDArray[np.float64]
    rest: NDArray[np.float64]
    radius_um: float

    def mean_of(self, values: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
        """Return the mean of nuclei that lie from `low` to `high` micrometres from each spot's centre."""
        out = np.full((len(self.spots_xy), values.shape[1]), np.nan)
        distance, spot = cKDTree(self.spots_xy).query(self.xy)
        for i in range(len(out)):
            inside = (spot == i) & (distance >= low) & (distance <= high)
            if inside.any():
                out[i] = values[inside].mean(axis=0)
        return out


def held_out(sections: Sections, h: str, genes: list[str], blocks: tuple[str, ...]) -> Cells:
    """Fit both models on the other sections and predict the nuclei of this one."""
    train = [s for s in sections.regions if s != h]
    y = {s: np.asarray(r.target(genes, "log1p_cp10k"), dtype=np.float32) for s, r in sections.regions.items()}
    region = sections.regions[h].cells.region  # type: ignore[union-attr]
    own = data.with_cells(data.read_region(region.sdata, Place(shapes_key="nuclei"), slide=h))
    encoder = sections.encoder
    nuclei = data.reader_for(own, encoder, SCellST.Config().needs).whole()
    models: dict[str, Any] = {}
    tiles = tuple(b for b in blocks if b in TILES)
    settings = {"whole": Setting("", blocks[: -len(tiles)], tiles), "tiles": Setting("", (), tiles)}
    for name, setting in settings.items():
        models[name] = training.fit(
            SCellST, SCellST.Config(), [sections.batch(s, setting, y) for s in train], groups=train, typical=False,
            run=training.Run(device="cpu", checkpoint=None),
        )[0]  # fmt: skip
    found = {n: models[n].predict(_columns(nuclei, sections, s))[0].astype(float) for n, s in settings.items()}
    without = _columns(nuclei, sections, settings["whole"])
    width = sum(without.blocks[: len(settings["whole"].crops)])  # type: ignore[index]
    mean = without.features[without.sources].mean(axis=0)  # standardised to nothing
    flat = without.features.copy()
    flat[:, width:] = mean[width:]
    crops = models["whole"].predict(replace(without, features=flat))[0].astype(float)
    guess = models["tiles"].predict(sections.batch(h, settings["tiles"], y))[0]
    spots = sections.regions[h]
    return Cells(
        own.coords_um, spots.coords_um, found["whole"], crops, found["tiles"],
        y[h].astype(float), y[h] - guess.astype(float), data.median_width_um(spots) / 2,
    )  # fmt: skip


def _columns(batch: Batch, sections: Sections, setting: Setting) -> Batch:
    """Return nuclei with the features of a setting."""
    keep = np.concatenate([sections.columns[b] for b in setting.blocks])
    blocks = tuple(len(sections.columns[b]) for b in setting.blocks)
    return replace(batch, features=np.ascontiguousarray(batch.features[:, keep]), blocks=blocks)


def correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the mean over genes of the correlation over rows that both have."""
    rows = np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1)
    return float(np.nan_to_num(st.metrics.pearson(a[rows], b[rows])).mean())


def reweigh(cells: Cells, rng: np.random.Generator) -> dict[str, float]:
    """Score the crops' part of own cells, of those just outside, of the next spot and of any."""
    own = cells.mean_of(cells.crops, 0.0, cells.radius_um)
    outside = cells.mean_of(cells.crops, cells.radius_um, np.inf)
    both = np.isfinite(own).all(axis=1) & (np.isfinite(outside).all(axis=1) | np.isnan(outside).all())
    nearest = cKDTree(cells.spots_xy).query(cells.spots_xy, k=2)[1][:, 1]
    null = [correlation(own[both][rng.permutation(both.sum())], cells.rest[both]) for _ in range(N_NULL // 5)]
    scores = {
        "own cells": correlation(own[both], cells.rest[both]),
        "cells just outside": np.nan if np.isnan(outside).all() else correlation(outside[both], cells.rest[both]),
        "cells of the next spot": correlation(own[nearest][both], cells.rest[both]),
    }
    return scores | {"null, 95 %": float(np.quantile(null, 0.95))}


def halves(cells: Cells, rng: np.random.Generator) -> dict[str, float]:
    """Score differences between halves of spots against those between the spots on either side."""
    tree = cKDTree(cells.spots_xy)
    pitch = float(np.median(tree.query(cells.spots_xy, k=2)[0][:, 1]))
    own_tiles = cells.whole - cells.crops
    parts = {
        "model": cells.whole,
        "its tiles' part": own_tiles,
        "with a third of the crops'": own_tiles + cells.crops / 3,
        "crops": cells.crops,
        "tiles": cells.tiles,
    }
    measured: list[NDArray[np.float64]] = []
    predicted: dict[str, list[Any]] = {name: [] for name in (*parts, "the neighbours themselves")}
    distance, spot = tree.query(cells.xy)
    spot = np.where(distance <= cells.radius_um, spot, -1)
    at_spots = cells.mean_of(cells.whole, 0.0, cells.radius_um)
    for axis in (0, 1):
        step = np.eye(2)[axis] * pitch
        ahead, behind = (tree.query(cells.spots_xy + s, distance_upper_bound=0.25 * pitch) for s in (step, -step))
        for i in np.flatnonzero(np.isfinite(ahead[0]) & np.isfinite(behind[0])):
            rows = np.flatnonzero(spot == i)
            side = cells.xy[rows, axis] > cells.spots_xy[i, axis]
            if side.sum() < 3 or (~side).sum() < 3:
                continue
            a, b = ahead[1][i], behind[1][i]
            measured.append(cells.y[a] - cells.y[b])
            for name, values in parts.items():
                predicted[name].append(values[rows[side]].mean(axis=0) - values[rows[~side]].mean(axis=0))
            predicted["the neighbours themselves"].append(at_spots[a] - at_spots[b])
    m = np.stack(measured)
    scores: dict[str, float] = {"pairs": len(m)}
    for name, found in predicted.items():
        g = np.nan_to_num(np.stack(found))
        scores[name] = _through_zero(g, m)
        null = [_through_zero(g * rng.choice([-1.0, 1.0], len(g))[:, None], m) for _ in range(N_NULL)]
        scores[f"{name}, null 95 %"] = float(np.quantile(null, 0.95))
    return scores


def _through_zero(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the mean over genes of the correlation without centring: differences have no preferred sign."""
    length = np.sqrt(np.square(a).sum(axis=0) * np.square(b).sum(axis=0))
    return float(np.divide((a * b).sum(axis=0), length, out=np.zeros(len(length)), where=length > 0).mean())


def exclusive(cells: Cells, genes: list[str]) -> pd.DataFrame:
    """Return of each pair how often both are high over chance, and their correlation within spots."""
    place = {g: k for k, g in enumerate(genes)}
    distance, spot = cKDTree(cells.spots_xy).query(cells.xy)
    inside = distance <= cells.radius_um
    rows = []
    for a, b in [p for p in PAIRS if set(p) <= set(genes)]:
        row: dict[str, Any] = {"pair": f"{a} {b}"}
        for name, values in (("model", cells.whole[inside]), ("tiles", cells.tiles[inside]), ("spots", cells.y)):
            x, z = values[:, place[a]], values[:, place[b]]
            high = [v >= np.quantile(v, 1 - TOP) for v in (x, z)]
            row[f"{name}, both high"] = float((high[0] & high[1]).mean() / (high[0].mean() * high[1].mean()))
            if name != "spots":
                own = pd.DataFrame({"x": x, "z": z}).groupby(spot[inside]).transform(lambda v: v - v.mean())
                row[f"{name}, within spots"] = float(own.corr().iloc[0, 1])
        rows.append(row)
    return pd.DataFrame(rows).set_index("pair")


def main() -> None:
    """Run all tests on each section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slides", type=Path)
    parser.add_argument("--nuclei", type=Path, default=Path("cells/nuclei"), help="found before, or written there")
    parser.add_argument("--out", type=Path, default=Path("evidence"))
    parser.add_argument("--near-um", type=float, default=50.0, help="nuclei within this distance of a spot's centre")
    parser.add_argument("--networks", action="store_true", help="with the encoder 'cells-imagenet'")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    st.settings.cache_dir = given.out / "features"
    slides, _ = st.io.read_cohort([given.slides])
    add_nuclei(slides, given.nuclei, near_um=given.near_um)
    blocks: tuple[str, ...] = ("m24", "m48", *MORPHOLOGY)
    name = "cells-multiscale"
    if given.networks:
        blocks, name = ("m24", "m48", "n24", "n48", *TILES), "cells-imagenet"
    sections = Sections(slides, st.encoders.get(name, device="cpu"), blocks)
    markers = sorted({g for p in PAIRS for g in p})
    tests: dict[str, dict[str, dict[str, float]]] = {"reweighing": {}, "halves": {}}
    pairs = []
    for h in slides:
        start = time.process_time()
        train = [r for s, r in sections.regions.items() if s != h]
        genes = list(data.choose_genes(train, st.GeneRule("mean", n=250)).index)
        cells = held_out(sections, h, list(dict.fromkeys([*genes, *markers])), blocks)
        some = replace(
            cells, **{k: getattr(cells, k)[:, : len(genes)] for k in ("whole", "crops", "tiles", "y", "rest")}
        )
        rng = np.random.default_rng(0)
        tests["reweighing"][h], tests["halves"][h] = reweigh(some, rng), halves(some, rng)
        pairs.append(exclusive(cells, list(dict.fromkeys([*genes, *markers]))).assign(section=h))
        print(f"{h}: {len(cells.xy)} nuclei, {time.process_time() - start:.0f} s of CPU", flush=True)
    for test, found in tests.items():
        table = pd.DataFrame(found)
        table.assign(mean=table.mean(axis=1)).to_csv(given.out / f"{test}.csv")
        print(f"\n{test}\n{table.assign(mean=table.mean(axis=1)).round(3).to_string()}")
    both = pd.concat(pairs)
    both.to_csv(given.out / "exclusive.csv")
    print(
        f"\nmean over sections\n{both.drop(columns='section').groupby(level=0, sort=False).mean().round(2).to_string()}"
    )


if __name__ == "__main__":
    main()

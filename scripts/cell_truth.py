"""Ask on real tissue whether what is predicted for a cell, or for a pathologist's region, is true.

``python scripts/cell_truth.py xenium FOLDER`` reads the 200 cells of a Xenium lung section that lie in ``FOLDER``
(``NCBI858.h5ad`` and ``.jpg``, the example data of DeepSpot), trains on one half of the field and reads the cells of
the other half, in both directions, for a field cut left from right and for one cut top from bottom. sCellST is
trained on pseudo-spots: around each training cell the circle that holds its five nearest, overlapping, as counts the
sum of their cells. Beside it are the same model on the cells themselves, ridge and kernel ridge on tiles at the cell,
colour, and the mean.

The picture is reduced: nuclei are 3 pixels across, so a pixel is about 2.1 um (printed: the width at half height of
the mean absorbance around the measured cells). Values are Pearson correlations per gene on log1p CP10k over the cells
of a half, averaged over both halves, and their median over the genes that a fifth of all cells express. Nulls: the
measured cells of each half permuted, as a whole (`permuted`) and within groups of neighbours (`neighbours`: what is
left of a region is no part of the value); and models trained on permuted training cells (`retrained`). Crops and the
size of pseudo-spots were found on these very cells, which flatters a little. Measured cells have no labels: their class
is the one whose markers they hold most of, and the AUROC is that of its predicted markers.

``python scripts/cell_truth.py labels FOLDER FOLDER_A`` trains on C2-C5 reduced to 3.19 um per pixel (Andersson et al.
2021; see ``donor_study.py``) and asks whether markers predicted for A1, of another patient, tell the regions apart
that a pathologist drew on it, beside the measured counts, colour, and models of A1 itself in held-out blocks.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from donor_study import MPP, N_GENES, encoders, read_sections
from scipy.ndimage import map_coordinates
from scipy.spatial import cKDTree
from scipy.stats import rankdata

import stpred as st
from stpred import metrics
from stpred.models import KernelRidge, Ridge, SCellST

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

LUNG_MPP = 2.1
MIN_DETECTED = 0.2
"""Share of the cells that express a gene, for it to be scored."""
CELLS_PER_SPOT = 5
GROUP = 10
"""Neighbouring cells that are exchanged with each other in the null of neighbours."""

CLASSES = {
    "epithelial": ["EPCAM", "KRT8", "KRT18", "KRT7", "SFTPC", "SFTPD", "SFTA2", "NAPSA", "AGER", "RTKN2", "LAMP3"]
    + ["SCGB3A2", "SCGB1A1", "FOXJ1", "KRT5", "MUC5B", "CEACAM6", "WFDC2", "NKX2-1", "AGR3", "PGC"],
    "endothelial": ["PECAM1", "CLDN5", "KDR", "CA4", "RAMP2", "PLVAP", "FCN3", "CD34", "ACKR1", "GNG11", "APLNR"],
    "immune": ["PTPRC", "CD68", "LYZ", "CD3E", "CD3D", "CD2", "MS4A1", "CD79A", "NKG7", "MARCO", "C1QC", "AIF1"]
    + ["FCER1G", "MS4A7", "CD14", "CXCR4", "MRC1", "FCN1", "S100A8", "S100A9", "JCHAIN", "TPSAB1", "CPA3"],
    "mesenchymal": ["COL1A1", "COL1A2", "COL3A1", "DCN", "LUM", "PDGFRA", "PDGFRB", "ACTA2", "MFAP5", "SFRP2", "ELN"]
    + ["PI16", "CTHRC1", "POSTN", "FAP"],
}
SHUFFLED = "sCellST, crops"
"""The model that is trained again on permuted cells."""
MIN_MARKERS = 5
"""Counts of markers that a cell needs to have a class."""

TUMOUR, CONNECTIVE = ("invasive cancer", "cancer in situ"), ("connective tissue",)
ALL = (*TUMOUR, *CONNECTIVE, "adipose tissue", "immune infiltrate")
COLLAGENS = ["COL1A1", "COL1A2", "COL3A1", "COL6A3", "DCN", "LUM", "SPARC", "POSTN", "FN1", "THY1"]
REGIONS: dict[str, tuple[list[str], tuple[str, ...], tuple[str, ...]]] = {
    "EPCAM, ERBB2": (["EPCAM", "ERBB2"], TUMOUR, CONNECTIVE),
    "keratins": (["KRT7", "KRT8", "KRT18", "KRT19"], TUMOUR, CONNECTIVE),
    "collagens and others of fibroblasts": (COLLAGENS, CONNECTIVE, TUMOUR),
    "immune": (["PTPRC", "CD74", "IGKC", "HLA-DRA", "LYZ", "TRBC2", "CD3E"], CONNECTIVE, TUMOUR),
    "fat": (["FABP4", "PLIN1", "PLIN4", "ADIPOQ", "LPL", "CD36", "ADH1B"], ("adipose tissue",), ALL),
}
"""Markers, the labels that should hold more of them, and those (without the former) that should hold less."""


# Xenium: cells


def read_lung(folder: Path, *, mpp: float = LUNG_MPP) -> SpatialData:
    """Read the lung section; its columns ``x_pixel`` and ``y_pixel`` are row and column."""
    return st.io.hest(folder / "NCBI858.h5ad", folder / "NCBI858.jpg", mpp=mpp, swap_xy=True, shapes_key="cells")


def nucleus_width_px(slide: SpatialData, *, mpp: float) -> float:
    """Return the width at half height of the mean absorbance of red light around the cells, in pixels."""
    image = next(iter(slide.images["he"]["scale0"].ds.values())).to_numpy()
    absorbed = -np.log((image[0].astype(float) + 1) / 246)
    x, y = slide.tables["cells_counts"].obsm["spatial"].T / mpp - 0.5
    radii, turns = np.arange(0, 6.25, 0.25), np.linspace(0, 2 * np.pi, 24, endpoint=False)
    ring = [
        map_coordinates(
            absorbed, [y[:, None] + r * np.sin(turns), x[:, None] + r * np.cos(turns)], order=1, mode="nearest"
        ).mean()
        for r in radii
    ]
    half = (ring[0] + ring[-1]) / 2
    return float(2 * np.interp(-half, -np.asarray(ring), radii))


def expressed(slide: SpatialData) -> list[str]:
    """Return the genes that enough cells express."""
    table = slide.tables["cells_counts"]
    share = np.asarray((table.X > 0).mean(axis=0)).ravel()
    return list(table.var_names[share >= MIN_DETECTED])


def part_of(slide: SpatialData, rows: NDArray[np.intp], order: NDArray[np.intp] | None = None) -> SpatialData:
    """Return a slide with some of the cells, whose profiles are taken in another order if one is given."""
    from spatialdata import SpatialData as Object

    table = slide.tables["cells_counts"][rows].copy()
    if order is not None:
        table.X = table.X[order]
    return Object(
        images=dict(slide.images), shapes={"cells": slide.shapes["cells"].iloc[rows]}, tables={"cells_counts": table}
    )


def add_pseudo_spots(slide: SpatialData, *, n_cells: int = CELLS_PER_SPOT) -> None:
    """Add ``pseudo``: around each cell the circle that holds its `n_cells` nearest, with the sum of their counts."""
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    xy = slide.tables["cells_counts"].obsm["spatial"]
    distance = cKDTree(xy).query(xy, n_cells + 1)[0]
    radius = distance[:, -2:].mean(axis=1)  # between the last cell inside and the first outside
    slide.shapes["pseudo"] = ShapesModel.parse(xy, geometry=0, radius=radius, transformations={"um": Identity()})
    st.pp.aggregate(slide, "cells_counts", "pseudo")


def halves(xy: NDArray[np.float64]) -> dict[str, list[tuple[NDArray[np.intp], NDArray[np.intp]]]]:
    """Return (training, test) rows: left against right and top against bottom, in both directions."""
    out = {}
    for name, axis in (("left/right", 0), ("top/bottom", 1)):
        low = xy[:, axis] <= np.median(xy[:, axis])
        first, second = np.flatnonzero(low), np.flatnonzero(~low)
        out[name] = [(first, second), (second, first)]
    return out


def log_cp10k(table: AnnData, genes: list[str]) -> NDArray[np.float64]:
    """Return log1p CP10k of some genes, counted over all of them."""
    counts = np.asarray(table.X.todense(), dtype=float)
    return np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))[:, table.var_names.get_indexer(genes)]


@dataclass(frozen=True)
class Candidate:
    """A model, what it sees, and whether it is trained on pseudo-spots or on the cells themselves."""

    config: Any
    encoder: Any
    region: str


def candidates(mpp: float) -> dict[str, Candidate]:
    """Return what is compared: crops of 12 to 24 um around each cell, and tiles of 112 and 448 um."""
    morphology = st.encoders.get("morphology", tile=st.TileSpec(0.75, 32))
    colour = st.encoders.get("colour", tile=st.TileSpec(mpp, round(12 / mpp)))
    crop = st.encoders.get([colour, morphology])
    tile = st.encoders.get("morphology", tile=st.TileSpec(mpp, round(112 / mpp)))
    wide = st.encoders.get([tile, st.encoders.get("morphology", tile=st.TileSpec(mpp, round(448 / mpp)))])
    found = {
        "sCellST, crops": Candidate(SCellST.Config(regressor="ridge", tile_um=None), crop, "pseudo"),
        "sCellST, crops and a tile of 112 um": Candidate(
            SCellST.Config(regressor="ridge", tile_um=100.0), st.encoders.get([colour, morphology, tile]), "pseudo"
        ),
        "sCellST, perceptron, crops": Candidate(
            SCellST.Config(
                regressor="perceptron", tile_um=None, hidden=(64,), dropout=0.5, lr=1e-3, epochs=100, batch_size=16
            ),
            crop,
            "pseudo",
        ),
        "ridge on tiles": Candidate(Ridge.Config(), tile, "pseudo"),
    }
    found |= {f"{k}; on cells": Candidate(v.config, v.encoder, "cells") for k, v in found.items() if v.encoder is crop}
    return found | {
        "ridge, crops; on cells": Candidate(Ridge.Config(), crop, "cells"),
        "kernel ridge, crops; on cells": Candidate(KernelRidge.Config(), crop, "cells"),
        "ridge on tiles; on cells": Candidate(Ridge.Config(), tile, "cells"),
        "kernel ridge on tiles of 112 and 448 um; on cells": Candidate(KernelRidge.Config(), wide, "cells"),
        "colour (12 um); on cells": Candidate(Ridge.Config(), colour, "cells"),
        "mean": Candidate("mean", colour, "cells"),
    }


def predicted(
    slide: SpatialData,
    candidate: Candidate,
    train: NDArray[np.intp],
    test: NDArray[np.intp],
    genes: list[str],
    order: NDArray[np.intp] | None = None,
) -> NDArray[np.float64]:
    """Train on some cells (their profiles in another order if one is given) and predict others."""
    known, unseen = part_of(slide, train, order), part_of(slide, test)
    if candidate.region == "pseudo":
        add_pseudo_spots(known)
    model = st.tl.train(
        {"half": known}, candidate.config, genes=genes, encoder=candidate.encoder, shapes_key=candidate.region,
        cells_key="cells" if isinstance(candidate.config, SCellST.Config) else None, intervals=False, device="cpu",
    )  # fmt: skip
    table = st.tl.predict(
        unseen, model, shapes_key="cells", encoder=candidate.encoder, genes=genes, device="cpu", inplace=False
    )
    wanted = unseen.tables["cells_counts"].obs["instance_id"]
    rows = pd.Index(table.obs["instance_id"]).get_indexer(wanted)
    if (rows < 0).any():
        raise ValueError(f"{(rows < 0).sum()} of {len(rows)} cells were not predicted.")
    return np.asarray(table[:, genes].X, dtype=np.float64)[rows]


def median_pearson(guesses: list[NDArray[np.float64]], truths: list[NDArray[np.float64]]) -> float:
    """Return the median over genes of the mean Pearson correlation over the halves; one that is undefined is 0."""
    r = [np.nan_to_num(metrics.pearson(p, o)) for p, o in zip(guesses, truths, strict=True)]
    return float(np.median(np.mean(r, axis=0)))


def neighbour_groups(xy: NDArray[np.float64], *, size: int = GROUP) -> NDArray[np.int64]:
    """Return the group of each cell: strips of equal numbers of cells, each cut into stretches of `size`."""
    n_strips = max(1, round(np.sqrt(len(xy) / size)))
    strip = rankdata(xy[:, 0], method="ordinal").astype(int) * n_strips // (len(xy) + 1)
    groups = np.zeros(len(xy), dtype=np.int64)
    for s in range(n_strips):
        rows = np.flatnonzero(strip == s)
        groups[rows[np.argsort(xy[rows, 1], kind="stable")]] = s * len(xy) + np.arange(len(rows)) // size
    return groups


def null_of(
    guesses: list[NDArray[np.float64]],
    truths: list[NDArray[np.float64]],
    n: int,
    groups: list[NDArray[np.int64]] | None = None,
) -> NDArray[np.float64]:
    """Return the (n,) median Pearson correlation of predictions and permuted cells, those of a group within it."""
    drawn = [
        metrics.permutation_null(p, o, n_permutations=n, seed=k, blocks=None if groups is None else groups[k]).null
        for k, (p, o) in enumerate(zip(guesses, truths, strict=True))
    ]
    return np.median(np.nan_to_num(np.mean(drawn, axis=0)), axis=1)


def retrained(
    slide: SpatialData,
    candidate: Candidate,
    directions: list[tuple[NDArray[np.intp], NDArray[np.intp]]],
    truths: list[NDArray[np.float64]],
    genes: list[str],
    n: int,
) -> NDArray[np.float64]:
    """Return the (n,) median Pearson correlation of models whose training cells had each other's profiles."""
    rng = np.random.default_rng(7)
    return np.array(
        [
            median_pearson(
                [predicted(slide, candidate, *d, genes, rng.permutation(len(d[0]))) for d in directions], truths
            )
            for _ in range(n)
        ]
    )


def classes(table: AnnData) -> NDArray[Any]:
    """Return the class of each cell by its measured markers, each class weighed by its share of all counts."""
    present = {c: [g for g in markers if g in table.var_names] for c, markers in CLASSES.items()}
    counts = np.column_stack([np.asarray(table[:, g].X.sum(axis=1)).ravel() for g in present.values()])
    share = counts / counts.sum(axis=0)
    return np.where(counts.sum(axis=1) >= MIN_MARKERS, np.array(list(present))[share.argmax(axis=1)], "")


def comparisons(score: NDArray[np.float64], positive: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return (positives, others) whether the one scores higher than the other (1, or a half if alike): mean AUROC."""
    high, low = score[positive][:, None], score[~positive]
    return (high > low) + 0.5 * (high == low)


def marker_score(values: NDArray[np.float64], genes: list[str], markers: list[str]) -> NDArray[np.float64]:
    """Return the mean of a set's markers, each standardised; 0 for one that does not vary."""
    chosen = values[:, [genes.index(g) for g in markers if g in genes]]
    spread = chosen.std(axis=0)
    return np.divide(chosen - chosen.mean(axis=0), spread, out=np.zeros_like(chosen), where=spread > 1e-9).mean(axis=1)


def class_auroc(guesses: list[Any], kinds: list[NDArray[Any]], genes: list[str]) -> dict[str, float]:
    """Return for each class the mean over halves of the AUROC of its predicted markers among the cells of a class."""
    out = {}
    for name, markers in CLASSES.items():
        found = [
            comparisons(marker_score(p, genes, markers)[k != ""], (k == name)[k != ""]).mean()
            for p, k in zip(guesses, kinds, strict=True)
        ]
        out[name] = float(np.mean(found))
    return out


def xenium(args: argparse.Namespace) -> pd.DataFrame:
    """Print and return the table of the lung section."""
    slide = read_lung(args.folder, mpp=args.mpp)
    table = slide.tables["cells_counts"]
    xy, genes = np.asarray(table.obsm["spatial"]), expressed(slide)
    width = nucleus_width_px(slide, mpp=args.mpp)
    kind = classes(table)
    counts = np.median(np.asarray(table.X.sum(axis=1)))
    print(
        f"{table.n_obs} cells, median {counts:.0f} counts; {len(genes)} of {table.n_vars} genes "
        f"in at least {MIN_DETECTED:.0%} of the cells; nuclei {width:.1f} px wide, at {args.mpp:g} um per pixel "
        f"{width * args.mpp:.1f} um; classes {dict(pd.Series(kind).value_counts())}"
    )
    rows = []
    for name, candidate in candidates(args.mpp).items():
        if args.only and not any(name.startswith(o) for o in args.only):
            continue
        for cut, directions in halves(xy).items():
            start = time.process_time()
            guesses = [predicted(slide, candidate, *d, genes) for d in directions]
            truths = [log_cp10k(table[test], genes) for _, test in directions]
            depth = [np.log(np.asarray(table[test].X.sum(axis=1)).ravel()) for _, test in directions]
            value = median_pearson(guesses, truths)
            partial = [metrics.partial_pearson(p, o, d) for p, o, d in zip(guesses, truths, depth, strict=True)]
            row = {"model": name, "halves": cut, "median": value}
            row["given_library"] = float(np.median(np.nan_to_num(np.mean(partial, axis=0))))
            groups = [neighbour_groups(xy[test]) for _, test in directions]
            for called, null in (
                ("permuted", null_of(guesses, truths, args.permutations)),
                ("neighbours", null_of(guesses, truths, args.permutations, groups)),
            ):
                row |= summary(called, value, null)
            if args.shuffles and name == SHUFFLED:
                row |= summary(
                    "retrained", value, retrained(slide, candidate, directions, truths, genes, args.shuffles)
                )
            row |= class_auroc(guesses, [kind[test] for _, test in directions], genes)
            row["seconds"] = time.process_time() - start
            rows.append(row)
            print(line(row), flush=True)
    return pd.DataFrame(rows)


def summary(name: str, value: float, null: NDArray[np.float64]) -> dict[str, float]:
    """Return the 95th percentile of a null, and the p-value of a value."""
    return {f"{name}_95": float(np.quantile(null, 0.95)), f"{name}_p": (1 + (null >= value).sum()) / (1 + len(null))}


def line(row: Mapping[str, Any]) -> str:
    """Return a row of the table as text."""
    nulls = [k[:-3] for k in row if k.endswith("_95")]
    told = " ".join(f"{k} {row[f'{k}_95']:.3f} (p {row[f'{k}_p']:.3f})" for k in nulls)
    kinds = " ".join(f"{row[c]:.2f}" for c in CLASSES)
    return (
        f"{row['model']:50s} {row['halves']:10s} {row['median']:.3f} given library {row['given_library']:.3f}; 95 % of "
        f"nulls: {told}; AUROC of {', '.join(CLASSES)}: {kinds}; {row['seconds']:.0f} s"
    )


# A1: regions that a pathologist drew


def regions_of_spots(folder: Path) -> pd.Series:
    """Return the pathologist's label of each spot of A1, by its place in the array.

    The pixels in the file of labels are of another picture, whose rows count from the bottom.
    """
    given = pd.read_csv(folder / "A1_labeled_coordinates.tsv", sep="\t").dropna(subset=["x", "y", "label"])
    spots = pd.read_csv(folder / "A1.spots.tsv", sep="\t")
    distance, row = cKDTree(given[["x", "y"]]).query(spots[["new_x", "new_y"]])
    names = spots["x"].astype(str) + "x" + spots["y"].astype(str)
    return pd.Series(np.where(distance < 0.05, given["label"].to_numpy()[row], ""), index=names)


def interval(score: NDArray[np.float64], positive: NDArray[np.bool_], *, n: int = 2000, seed: int = 0) -> Any:
    """Return an AUROC and its 95 % bootstrap interval, drawing spots of either kind."""
    rng = np.random.default_rng(seed)
    won = comparisons(score, positive)
    n_high, n_low = won.shape
    drawn = [won[np.ix_(rng.integers(n_high, size=n_high), rng.integers(n_low, size=n_low))].mean() for _ in range(n)]
    return won.mean(), *np.quantile(drawn, (0.025, 0.975))


def labels(args: argparse.Namespace) -> pd.DataFrame:
    """Print and return the AUROC of marker sets between tumour and connective tissue of A1."""
    slides = read_sections(args.folder, args.folder_a)
    a1 = slides.pop("A1")
    shared = set(a1.tables["spots_counts"].var_names).intersection(
        *(s.tables["spots_counts"].var_names for s in slides.values())
    )
    counted: pd.Series = sum(
        pd.Series(np.asarray(t.X.sum(axis=0)).ravel(), t.var_names)
        for t in (s.tables["spots_counts"] for s in slides.values())
    )  # type: ignore[assignment]
    most = [g for g in counted.dropna().sort_values(ascending=False, kind="stable").index if g in shared][:N_GENES]
    markers = [g for found, *_ in REGIONS.values() for g in found if g in shared]
    genes = list(dict.fromkeys([*most, *markers]))
    label = regions_of_spots(args.folder_a)
    print({k or "none": int(n) for k, n in label.value_counts().items()})
    tables = {"measured counts": a1.tables["spots_counts"]}
    encoder = encoders([args.encoder], MPP)[args.encoder](None)
    strong = KernelRidge.Config(penalty=4.0, rank=8)
    models = {"kernel ridge": (KernelRidge.Config(), encoder), "strong kernel ridge": (strong, encoder)}
    models |= {
        "ridge": (Ridge.Config(), encoder),
        "colour": (Ridge.Config(), encoders(["colour"], MPP)["colour"](None)),
    }
    common: dict[str, Any] = {"genes": genes, "shapes_key": "spots", "device": "cpu"}
    for name, (config, seen) in models.items():
        target = "log1p_cp10k_half_library" if "strong" in name else None
        model = st.tl.train(
            slides, config, encoder=seen, groups={s: s for s in slides}, target=target, intervals=False, **common
        )
        tables[f"C2-C5: {name}"] = st.tl.predict(a1, model, shapes_key="spots", encoder=seen, inplace=False)
        st.tl.cross_validate({"A1": a1}, {"held": config}, groups="blocks", encoder=seen, key_added="cv", **common)
        tables[f"A1, held-out blocks: {name}"] = a1.tables.pop("spots_held_cv")
    rows = []
    for name, table in tables.items():
        rows += region_rows(name, table, label, genes)
    found = pd.DataFrame(rows)
    print(found.to_string(index=False, float_format=lambda v: f"{v:.3f}"), flush=True)
    return found


def region_rows(name: str, table: AnnData, label: pd.Series, genes: list[str]) -> list[dict[str, Any]]:
    """Return for each set of markers how well it tells tumour from connective tissue."""
    if name == "measured counts":
        values = log_cp10k(table, genes)
    else:
        values = np.asarray(table[:, genes].X, dtype=np.float64)
    region = label.reindex(table.obs["instance_id"].astype(str)).to_numpy()
    out = []
    for called, (markers, high, low) in REGIONS.items():
        used = np.isin(region, (*high, *low))
        positive = np.isin(region[used], high)
        row = {"from": name, "markers": called, "n": f"{positive.sum()}:{(~positive).sum()}"}
        row |= dict(
            zip(("AUROC", "low", "high"), interval(marker_score(values[used], genes, markers), positive), strict=True)
        )
        out.append(row)
    return out


def main() -> None:
    """Run the study that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    studies = parser.add_subparsers(required=True)
    lung = studies.add_parser("xenium", help="cells of a lung section, leaving out half of the field")
    lung.add_argument("folder", type=Path, help="with NCBI858.h5ad and NCBI858.jpg")
    lung.add_argument("--mpp", type=float, default=LUNG_MPP, help="micrometres per pixel of the picture")
    lung.add_argument("--only", nargs="+", help="models whose names begin so")
    lung.add_argument("--permutations", type=int, default=1000, help="of the measured cells")
    lung.add_argument("--shuffles", type=int, default=20, help="trainings of sCellST on permuted cells, 0: none")
    lung.set_defaults(run=xenium)
    drawn = studies.add_parser("labels", help="regions of A1 that a pathologist drew")
    drawn.add_argument("folder", type=Path, help="with sections C2-C5")
    drawn.add_argument("folder_a", type=Path, help="with section A1 and its labels")
    drawn.add_argument("--encoder", default="scales", help="of donor_study.py")
    drawn.set_defaults(run=labels)
    args = parser.parse_args()
    logging.getLogger("stpred").setLevel(logging.ERROR)  # one donor, small tiles: said above
    with tempfile.TemporaryDirectory() as folder, st.settings.override(cache_dir=Path(folder), max_upsampling=4.0):
        args.run(args)


if __name__ == "__main__":
    main()

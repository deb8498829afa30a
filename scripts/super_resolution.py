"""Compare maps of 8 um with the truth on synthetic tissue, or with a teacher's spots on HER2ST.

``python scripts/super_resolution.py toy`` trains on the spots of four synthetic donors whose sections were sequenced to
different depths, and scores maps of an unseen donor against its noiseless expression in squares of 8 um.

``python scripts/super_resolution.py her2st FOLDER`` distils on three of the sections C2-C5 (Andersson et al. 2021),
maps the fourth at 8 um, averages the map over each spot, and compares the scores with the teacher's own.

Figures go into the folder that ``--figures`` names.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.interpolate import griddata

import stpred as st
from stpred import metrics
from stpred.models import MLP, Student

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

DEPTHS = (1.0, 0.5, 0.2, 0.08, 1.0)
"""Share of its molecules that each donor's spots keep."""

BINS = "bins_008um"
SHOWN = ("EPCAM", "COL1A2", "PTPRC")


def thinned(sdata: SpatialData, share: float, *, seed: int) -> None:
    """Keep a share of the molecules of the spots, drawn at random."""
    table = sdata.tables["spots_counts"]
    counts = table.X.copy()
    counts.data = np.random.default_rng(seed).binomial(counts.data.astype(int), share).astype(np.int32)
    counts.eliminate_zeros()
    table.X = counts


def log_share(expected: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return log1p CP10k of noiseless expression."""
    totals = expected.sum(axis=1, keepdims=True)
    return np.log1p(1e4 * expected / np.maximum(totals, 1e-9)).astype(np.float32)


def with_truth(sdata: SpatialData) -> SpatialData:
    """Return the object with the noiseless expression of the bins (a hundredth of a count being one) as counts."""
    from scipy.sparse import csr_matrix
    from spatialdata import SpatialData as Object

    table = sdata.tables[f"{BINS}_counts"].copy()
    table.X = csr_matrix(np.rint(100 * table.layers["expected"]).astype(np.int32))
    return Object(images=dict(sdata.images), shapes={BINS: sdata.shapes[BINS]}, tables={f"{BINS}_counts": table})


def interpolated(sdata: SpatialData, table: Any, points_um: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the values of spots between them: linear, and of the nearest beyond the outermost."""
    xy = table.obsm["spatial"]
    inside, nearest = (griddata(xy, table.X, points_um, method=m) for m in ("linear", "nearest"))
    return np.where(np.isfinite(inside), inside, nearest).astype(np.float32)


def toy(figures: Path | None, *, size_um: float, n_genes: int) -> None:
    """Print median and mean Pearson over genes of each map against the truth at 8 um."""
    start = time.perf_counter()
    slides = st.datasets.toy_cohort(len(DEPTHS), size_um=(size_um, size_um), n_genes=n_genes, bin_um=8)
    for k, (sdata, share) in enumerate(zip(slides.values(), DEPTHS, strict=True)):
        thinned(sdata, share, seed=k)
    *names, left = slides
    train, unseen = {s: slides[s] for s in names}, slides[left]
    bins = unseen.tables[f"{BINS}_counts"]
    expected = bins.layers["expected"]
    there = expected.sum(axis=1) > 1e-6
    truth = log_share(expected)
    genes = list(bins.var_names)
    maps: dict[str, NDArray[np.float32]] = {}

    def told(name: str, values: NDArray[np.float32]) -> None:
        maps[name] = values
        r = metrics.pearson(values[there], truth[there])
        print(f"{name:55s} {np.nanmedian(r):.3f} {np.nanmean(r):.3f}  {time.perf_counter() - start:5.0f} s", flush=True)

    def at_8um(model: Any) -> NDArray[np.float32]:
        found = st.tl.predict(unseen, model, shapes_key=BINS, inplace=False)
        return found[[str(i) for i in bins.obs["instance_id"]]].X if found.n_obs == bins.n_obs else _filled(found, bins)

    common: dict[str, Any] = {"genes": genes, "shapes_key": "spots"}
    config = Student.Config(hidden=(1024, 512), epochs=30)  # the published widths
    ridge = st.tl.train(train, "ridge", encoder="morphology", **common)
    spots = st.tl.predict(unseen, ridge, shapes_key="spots", inplace=False)
    told("ridge on spots, interpolated", interpolated(unseen, spots, bins.obsm["spatial"]))
    told("student on raw counts (naive)", at_8um(st.tl.train(train, config, target="counts", **common)))
    told("student on log1p CP10k", at_8um(st.tl.train(train, config, **common)))
    for share in (0.0, 0.5):
        model = st.tl.distill(train, "ridge", config, measured_fraction=share, teacher_encoder="morphology", **common)
        told(f"student distilled from ridge, measured_fraction={share:g}", at_8um(model))
    whole = {s: with_truth(sdata) for s, sdata in train.items()}
    fine = st.tl.train(whole, Student.Config(hidden=(1024, 512), epochs=4), genes=genes, shapes_key=BINS)
    told("student trained on the noiseless truth at 8 um", at_8um(fine))
    if figures is not None:
        _draw_toy(unseen, bins.obsm["spatial"], {"truth": truth, **maps}, genes, figures / "super_resolution_toy.png")


def _filled(found: Any, bins: Any) -> NDArray[np.float32]:
    """Return predictions in the order of the bins, NaN where there is none."""
    rows = found.obs_names.get_indexer([str(i) for i in bins.obs["instance_id"]])
    out = np.full((bins.n_obs, found.n_vars), np.nan, dtype=np.float32)
    out[rows >= 0] = found.X[rows[rows >= 0]]
    return out


def _draw_toy(
    sdata: SpatialData, xy: NDArray[np.float64], maps: Mapping[str, Any], genes: list[str], path: Path
) -> None:
    import matplotlib.pyplot as plt

    shown = {
        "truth at 8 um": maps["truth"],
        "ridge on spots, interpolated": maps["ridge on spots, interpolated"],
        "student, 8 um": maps["student on log1p CP10k"],
        "distilled student, 8 um": maps["student distilled from ridge, measured_fraction=0"],
    }
    figure, axes = plt.subplots(
        len(SHOWN), 1 + len(shown), figsize=(2.6 * (1 + len(shown)), 2.7 * len(SHOWN)), layout="constrained"
    )
    image = np.asarray(sdata.images["he"]["scale0"].ds["image"]).transpose(1, 2, 0)
    extent = (0, image.shape[1] / 2, image.shape[0] / 2, 0)
    column, row = np.floor(xy / 8).astype(int).T
    for k, gene in enumerate(SHOWN):
        axes[k, 0].imshow(image, extent=extent)
        axes[k, 0].set_ylabel(gene)
        for ax, (name, values) in zip(axes[k, 1:], shown.items(), strict=True):
            plane = np.full((row.max() + 1, column.max() + 1), np.nan)
            plane[row, column] = values[:, genes.index(gene)]
            low, high = np.nanquantile(plane, (0.02, 0.98))
            ax.imshow(plane, extent=(0, 8 * plane.shape[1], 8 * plane.shape[0], 0), vmin=low, vmax=high)
            if k == 0:
                ax.set_title(name, fontsize=9)
        for ax in axes[k]:
            ax.set(xlim=(0, extent[1]), ylim=(extent[2], 0), xticks=[], yticks=[], aspect="equal")
    axes[0, 0].set_title("H&E; bar: 200 um", fontsize=9)
    axes[0, 0].plot([extent[1] - 240, extent[1] - 40], [extent[2] - 40] * 2, color="black", lw=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def her2st(folder: Path, figures: Path | None, *, left_out: list[str], share: float) -> None:
    """Leave out one section at a time; print mean Pearson of teacher, and of the map averaged over each spot."""
    names = ("C2", "C3", "C4", "C5")
    slides = {
        s: st.io.legacy_st(folder / f"{s}.counts.tsv.gz", folder / f"{s}.jpg", folder / f"{s}.spots.tsv") for s in names
    }
    small = {"input_dropout": 0.3, "dropout": 0.5, "epochs": 60, "batch_size": 64}
    teachers: dict[str, Any] = {
        "ridge": "ridge",
        "mlp": MLP.Config(hidden=(256,), input_dropout=0.5, dropout=0.5, lr=1e-3, weight_decay=1e-2, epochs=40),
    }
    student = Student.Config(hidden=(256,), **small)
    for left in left_out:
        train = {s: slides[s] for s in names if s != left}
        unseen = slides[left]
        st.pp.subdivide(unseen, "spots", size_um=8, key_added="fine")
        for called, teacher in teachers.items():
            start = time.perf_counter()
            taught = st.tl.train(train, teacher, encoder="morphology")
            genes = taught.record.genes
            st.tl.predict(unseen, taught, shapes_key="spots", key_added="teacher")
            model = st.tl.distill(
                train, teacher, student, genes=genes, shapes_key="spots", measured_fraction=share,
                teacher_encoder="morphology",
            )  # fmt: skip
            fine = st.tl.predict(unseen, model, shapes_key="fine", inplace=False)
            parent = unseen.shapes["fine"].loc[fine.obs["instance_id"], "parent"].to_numpy()
            table = unseen.tables["teacher"].copy()
            ids, member = np.unique(parent, return_inverse=True)
            mean = np.zeros((len(ids), fine.n_vars))
            np.add.at(mean, member, fine.X)
            mean /= np.bincount(member)[:, None]
            at = {i: k for k, i in enumerate(ids)}
            table.X = mean[[at[i] for i in table.obs["instance_id"]]].astype(np.float32)
            unseen.tables["map"] = table
            scores = {k: st.tl.compare(unseen, k, "spots_counts")["pearson"] for k in ("teacher", "map")}
            r = {k: float(np.nan_to_num(v).mean()) for k, v in scores.items()}
            epcam = {k: float(v.get("EPCAM", np.nan)) for k, v in scores.items()}
            print(
                f"{left}, {called:6s}: teacher {r['teacher']:.3f}, map over spots {r['map']:.3f} "
                f"(EPCAM {epcam['teacher']:.2f}, {epcam['map']:.2f}); {time.perf_counter() - start:.0f} s",
                flush=True,
            )
            if figures is not None and called == "ridge" and left == left_out[0]:
                st.tl.predict_map(unseen, model, genes=[g for g in SHOWN if g in genes], key_added="epcam_map")
                _draw_her2st(unseen, figures)


def _draw_her2st(sdata: SpatialData, figures: Path) -> None:
    for name, image in (("with_photograph", True), ("map", False)):
        st.pl.raster(sdata, "epcam_map", "EPCAM", with_image=image, save=figures / f"her2st_epcam_{name}.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("what", choices=("toy", "her2st"))
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--figures", type=Path)
    parser.add_argument("--left-out", nargs="+", default=["C5", "C2", "C3", "C4"])
    parser.add_argument("--measured-fraction", type=float, default=0.5)
    parser.add_argument("--size-um", type=float, default=1000.0)
    parser.add_argument("--n-genes", type=int, default=100)
    given = parser.parse_args()
    if given.what == "toy":
        toy(given.figures, size_um=given.size_um, n_genes=given.n_genes)
    else:
        her2st(given.folder, given.figures, left_out=given.left_out, share=given.measured_fraction)

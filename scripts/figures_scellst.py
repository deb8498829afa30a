"""The figure types of the sCellST publication (Chadoutaud et al. 2026), drawn from any cohort.

    python scripts/figures_scellst.py --synthetic --out figures/scellst
    python scripts/figures_scellst.py ../shared/data/her2st --out figures/scellst --test C5

Slides need nuclei or cells: those without any get ``stpred.pp.nuclei``. A model is trained on the spots of all slides
but ``--test`` and predicts each of its cells. Default are the closed-form settings (``scellst``); with ``--published``
the perceptron of the publication on each cell's crop. ``--steps`` chooses pictures:

==============  =======================  ===============================================================================
step            picture                  figure of the publication
==============  =======================  ===============================================================================
``simulation``  ``simulation.png``       simulation study: embeddings of real cells with simulated expression, three
                                         scenarios, spots against cells as supervision (of counts with ``--nb``:
                                         Supplementary Fig. 8); cells are the test slide's, expression is
                                         ``stpred.datasets.toy_reference`` or ``--reference FILE.h5ad``
``benchmark``   ``benchmark.png``        benchmark: each slide left out, by model and slide (box plots over genes)
``benchmark``   ``one_slide.png``        benchmark: trained on the first slide alone, the others predicted
``cells``       ``cells.png``            predicted expression of single cells, in a window of the slide
``gallery``     ``gallery.png``          cells of highest predicted expression of marker genes
``types``       ``types.png``            scores of cell types by marker genes, where they are
``types``       ``types_gallery.png``    cells of highest score for each type
``types``       ``by_distance.png``      (XFuse's ED 8) types by distance from the border of the tumour's cells
``markers``     ``markers.png``          genes by cell type: expression in each class of cells
``markers``     ``volcano.png``          genes of one class of cells against all others
``measured``    ``measured.png``         single cells against a measurement of them (Xenium, Fig. 6): only where the
                                         slide has counts of its cells, as the synthetic ones do
``measured``    ``measured_genes.png``   the same by gene, against the ceiling that counting noise sets
==============  =======================  ===============================================================================

The publication's peers (THItoGene, mclSTExp, ...) are other people's code; ``stpred.models.list()`` says what is here.
 Self-supervised against ImageNet features: ``scripts/her2st_cells.py``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import pandas as pd

import stpred as st

if TYPE_CHECKING:
    from spatialdata import SpatialData

TYPES = {
    "tumour": ["EPCAM", "KRT8", "KRT18", "KRT19", "KRT7", "ERBB2", "CLDN4"],
    "T cell": ["CD3E", "CD3D", "CD2", "TRBC1", "TRBC2", "IL7R", "CCL5"],
    "plasma": ["JCHAIN", "MZB1", "IGHG1", "IGKC", "IGHA1"],
    "macrophage": ["CD68", "CD14", "C1QA", "C1QB", "LYZ", "AIF1"],
    "fibroblast": ["COL1A1", "COL1A2", "COL3A1", "DCN", "LUM", "SPARC"],
    "endothelium": ["PECAM1", "VWF", "CLDN5", "PLVAP", "AQP1"],
}
MARKERS = ["EPCAM", "COL1A2", "PTPRC", "CD3E"]


def main() -> None:
    """Draw the pictures of all steps into a folder."""
    mpl.use("Agg")
    args = _arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    st.settings.cache_dir = str(args.out / "cache")
    slides = synthetic() if args.synthetic else st.io.read_cohort([args.folder])[0]
    begin = time.perf_counter()
    study = Study(slides, args.test or list(slides)[-1], args)
    for step in args.steps:
        STEPS[step](study, args.out)
        seconds = time.perf_counter() - begin
        print(f"{step}: {seconds:.0f} s so far, {time.process_time():.0f} s of processor", flush=True)


def synthetic() -> dict[str, SpatialData]:
    """Three slides of different donors, with spots, cells, and counts of both."""
    return st.datasets.toy_cohort(3, size_um=(500, 500), n_genes=120)


class Study:
    """The slides with their cells, the settings, and the cells that all pictures share."""

    def __init__(self, slides: dict[str, SpatialData], test: str, args: argparse.Namespace) -> None:
        self.args, self.test = args, test
        self.slides = slides
        for name, slide in slides.items():
            if "cells" not in slide.shapes and "nuclei" not in slide.shapes:
                start = time.perf_counter()
                st.pp.nuclei(slide)
                print(f"{name}: {len(slide.shapes['nuclei'])} nuclei, {time.perf_counter() - start:.0f} s", flush=True)
        self.region = "cells" if "cells" in slides[test].shapes else "nuclei"
        self.config = st.models.SCellST.Config.published() if args.published else "scellst"
        self._table: str | None = None

    @property
    def learned(self) -> dict[str, SpatialData]:
        """Slides that are trained on."""
        return {name: s for name, s in self.slides.items() if name != self.test}

    @property
    def unseen(self) -> SpatialData:
        """The slide whose cells are shown."""
        return self.slides[self.test]

    @property
    def genes(self) -> list[str]:
        """Genes of most counts over the training slides, and the markers that all measured."""
        tables = [s.tables["spots_counts"] for s in self.learned.values()]
        sums = [pd.Series(np.asarray(t.X.sum(axis=0)).ravel(), index=t.var_names) for t in tables]
        total = pd.concat(sums, axis=1, join="inner").sum(axis=1)
        total = total[~total.index.str.startswith("MT-")].sort_values(ascending=False, kind="stable")
        wanted = [*MARKERS, *(g for genes in TYPES.values() for g in genes)]
        return list(dict.fromkeys([*total.index[: self.args.genes], *(g for g in wanted if g in total.index)]))

    @property
    def table(self) -> str:
        """Table of the predicted cells of the test slide, made when it is first asked for."""
        if self._table is None:
            model = st.tl.train(self.learned, self.config, genes=self.genes, shapes_key="spots", cells_key=self.region)
            st.tl.predict(self.unseen, model, shapes_key=self.region)
            self._table = f"{self.region}_{model.record.name}"
        return self._table

    def window(self, edge_um: float) -> tuple[float, float, float, float]:
        """Return a window where many cells are: around their median."""
        x, y = np.median(self.unseen.tables[self.table].obsm["spatial"], axis=0)
        return float(x - edge_um / 2), float(y - edge_um / 2), float(x + edge_um / 2), float(y + edge_um / 2)


def simulation(study: Study, out: Path) -> None:
    """Correlations with the truth of simulated spots and cells."""
    import matplotlib.pyplot as plt

    crops = st.pp.features(
        study.unseen, "morphology", shapes_key=study.region, tile=st.TileSpec(0.5, 48), inplace=False
    )
    n = study.args.simulated
    if study.args.reference is None:
        reference = st.datasets.toy_reference(n_types=4, n_genes=200)
    else:
        import anndata as ad

        reference = ad.read_h5ad(study.args.reference)
    config = st.models.SCellST.Config.published(
        hidden=(64, 64), lr=1e-3, max_epochs=30, loss="nb" if study.args.nb else "mse"
    )
    found = st.tl.simulation_study(
        crops, reference, groupby=study.args.reference_types, n_types=4, n_hvg=150, n_markers=10, n_spots=n,
        cells_per_type=min(500, crops.n_obs // 5), config=config,
    )  # fmt: skip
    found.to_csv(out / "simulation.csv", index=False)
    scenarios = list(dict.fromkeys(found["scenario"]))
    fig, axes = plt.subplots(
        1, len(scenarios), figsize=(3.4 * len(scenarios), 4.0), sharey=True, layout="constrained", squeeze=False
    )
    for ax, scenario in zip(axes[0], scenarios, strict=True):
        part = found[(found["scenario"] == scenario) & (found["level"] == "cell")]
        groups = part.groupby(["inputs", "gene_set", "supervision"], sort=False)["pearson"]
        ax.boxplot([values.fillna(0).to_numpy() for _, values in groups], showfliers=False)
        ax.set_xticks(range(1, len(groups) + 1), [", ".join(name) for name, _ in groups], rotation=90, fontsize=7)
        ax.axhline(0, color="0.5", linewidth=0.8)
        ax.set_title(scenario)
    axes[0, 0].set_ylabel("Pearson per gene, single cells")
    fig.savefig(out / "simulation.png", dpi=150)
    plt.close(fig)


def benchmark(study: Study, out: Path) -> None:
    """Each slide left out, and trained on one slide alone."""
    models = {"scellst": study.config, "ridge": st.models.Ridge.Config(), "mean": "mean"}
    genes = study.genes
    how: dict[str, Any] = {"genes": genes, "shapes_key": "spots", "cells_key": study.region}
    found = st.tl.cross_validate(study.slides, models, groups="slide", **how)
    found.to_csv(out / "benchmark.csv", index=False)
    st.pl.boxes(found, target="log1p_cp10k", groupby="slide", save=out / "benchmark.png")
    first, *others = study.slides
    model = st.tl.train(study.slides[first], study.config, genes=genes, shapes_key="spots", cells_key=study.region)
    alone = st.tl.validate(
        {name: study.slides[name] for name in others}, model, groups="slide", shapes_key="spots", cells_key=study.region
    )
    alone.to_csv(out / "one_slide.csv", index=False)
    st.pl.boxes(alone, target="log1p_cp10k", groupby="slide", save=out / "one_slide.png")


def cells(study: Study, out: Path) -> None:
    """Predicted cells in a window of the slide."""
    table = study.unseen.tables[study.table]
    shown = [g for g in MARKERS if g in table.var_names][:3]
    st.pl.spatial(study.unseen, study.table, shown, crop_um=study.window(study.args.window_um), save=out / "cells.png")


def gallery(study: Study, out: Path) -> None:
    """Cells of highest predicted expression."""
    table = study.unseen.tables[study.table]
    shown = [g for g in MARKERS if g in table.var_names]
    st.pl.gallery(study.unseen, study.table, color=shown, n=8, size_um=24, save=out / "gallery.png")


def types(study: Study, out: Path) -> None:
    """Types of cells by marker genes: where they are, what they look like, and how far from the tumour."""
    table = study.unseen.tables[study.table]
    _score(study)
    scores = [f"score_{name.replace(' ', '_')}" for name in TYPES]
    shown = [c for c in table.obs.columns if c in scores or c.startswith("score_")][:5]
    st.pl.spatial(study.unseen, study.table, shown, crop_um=study.window(2 * study.args.window_um),
                  ncols=3, save=out / "types.png")  # fmt: skip
    st.pl.gallery(study.unseen, study.table, n=8, size_um=24, save=out / "types_gallery.png")
    st.tl.distance_to_border(study.unseen, study.table, "tumour", groupby="cell_type")
    limits = np.nanquantile(table.obs["border_distance_um"], [0.02, 0.98])
    found = st.tl.composition_by_distance(
        study.unseen, study.table, "cell_type", width_um=10, limits_um=tuple(limits.tolist())
    )
    found.to_csv(out / "by_distance.csv", index=False)
    st.pl.composition_by_distance(found, what=[w for w in found["what"].unique() if w != "tumour"],
                                  save=out / "by_distance.png")  # fmt: skip


def markers(study: Study, out: Path) -> None:
    """Genes of the classes of cells."""
    _score(study)
    found = st.tl.markers(study.unseen, study.table, "cell_type", n_genes=None, trusted_only=False)
    found.to_csv(out / "markers.csv", index=False)
    top = {g: part["gene"].head(4).tolist() for g, part in found.groupby("group") if g != "unassigned"}
    st.pl.markers(study.unseen, study.table, top, groupby="cell_type", save=out / "markers.png")
    group = "tumour" if "tumour" in top else next(iter(top))
    st.pl.volcano(found, group=group, min_change=0.2, save=out / "volcano.png")


def measured(study: Study, out: Path) -> None:
    """Predicted against measured cells."""
    counts = f"{study.region}_counts"
    if counts not in study.unseen.tables:
        print(f"measured: slide {study.test!r} has no {counts!r}, so its cells were not measured one by one")
        return
    scores = st.tl.compare(study.unseen, study.table, counts)
    scores.to_csv(out / "measured.csv")
    st.pl.compare(study.unseen, study.table, counts, save=out / "measured.png")
    st.pl.genes(scores, save=out / "measured_genes.png")


def _score(study: Study) -> None:
    """Score the cells, once."""
    table = study.unseen.tables[study.table]
    if "cell_type" in table.obs:
        return
    known = {name: [g for g in genes if g in table.var_names] for name, genes in TYPES.items()}
    st.tl.score_cell_types(study.unseen, study.table, {k: v for k, v in known.items() if len(v) > 1})


STEPS = {f.__name__: f for f in (cells, gallery, types, markers, measured, benchmark, simulation)}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", help="folder of slides (stpred.io.read_cohort)")
    parser.add_argument("--synthetic", action="store_true", help="synthetic tissue instead of a folder")
    parser.add_argument("--out", type=Path, default=Path("figures/scellst"))
    parser.add_argument("--test", help="slide whose cells are shown (default: the last one)")
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--published", action="store_true", help="the published perceptron")
    parser.add_argument("--genes", type=int, default=100, help="genes of most counts, beside the markers")
    parser.add_argument("--window-um", type=float, default=200.0, help="edge of the window of cells that is shown")
    parser.add_argument("--simulated", type=int, default=800, help="simulated spots, for training and for testing each")
    parser.add_argument("--reference", type=Path, help="single-cell reference (h5ad) of the simulation")
    parser.add_argument("--reference-types", default="cell_type", help="its column of types")
    parser.add_argument("--nb", action="store_true", help="simulate counts, with the negative binomial likelihood")
    args = parser.parse_args()
    if bool(args.folder) == args.synthetic:
        parser.error("give a folder of slides, or --synthetic")
    return args


if __name__ == "__main__":
    main()

"""The figure types of the DeepSpot publication (Nonchev et al. 2025), drawn from any cohort.

    python scripts/figures_deepspot.py --synthetic --out figures/deepspot
    python scripts/figures_deepspot.py ../shared/data/her2st --groups slide --out figures/deepspot --cache features
    python scripts/figures_deepspot.py ../shared/data/her2st --groups slide --out figures/deepspot --steps benchmark

Donors are held out in turn (``--groups slide``: sections, for a folder of one donor; every number is then optimistic
for other donors), and the last of them once more for the maps. Models are quick by default: colour, ridge, a perceptron
and a small DeepSpot; ``--epochs`` and ``--width`` bring DeepSpot to its published size (15, 512). Settings are as
written here, none is read off a held-out slide. ``--steps`` chooses pictures:

=================  ========================  ===========================================================================
step               picture                   what it is in the publication
=================  ========================  ===========================================================================
``benchmark``      ``boxes.png``             benchmark by data set and patient: Pearson of every gene, models side by
                                             side (paired tests are added)
``benchmark``      ``top_genes.png``         benchmark curves: median Pearson of the first N variable genes as N grows,
                                             with bootstrap over patients, and the area that settings are chosen by
``benchmark``      ``ranks.png``             (not published) ranks of the models over patients, which differ
``benchmark``      ``benchmark.csv``         supplementary tables: means with intervals, and of the areas
``ablation``       ``ablation.png``          ablation of the context: the spot, with sub-spots or neighbours, with all
``selection``      ``selection.csv``         nested choice of settings by the area under the curve, per test patient
``maps``           ``maps.png``              maps of marker genes, measured and predicted, on a patient never seen
``maps``           ``genes.png``             (not published) score of each gene against what noise allows
``resolution``     ``resolution.png``        super-resolved maps: the same model on squares far smaller than a spot
``regions``        ``regions.png``           regions found in predictions and their marker genes (rank-sum tests)
=================  ========================  ===========================================================================

Not here: correction of a slide of poor quality is ``scripts/her2st_analyses.py``; pseudo-bulk, survival and subtypes of
TCGA slides need those slides (``stpred.tl.pseudobulk``, ``survival``, ``classify``); cells are
``scripts/figures_scellst.py`` and ``scripts/her2st_cells.py``.
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import pandas as pd

import stpred as st

if TYPE_CHECKING:
    from spatialdata import SpatialData

MANY = 300
"""Genes from which on the published numbers of first genes make a curve; of fewer, tenths of them do."""

SHOWN = 10
"""Donors that have boxes of their own."""

TILE_UM = 27.5
"""Edge of the squares of the finer map."""

MARKERS = ("EPCAM", "COL1A2", "KRT8", "KRT19", "DCN", "CD74", "IGKC", "SOX10")
"""Genes that are mapped, the first two that are there."""


def main() -> None:
    """Draw the pictures of all steps into a folder."""
    mpl.use("Agg")
    args = _arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    slides = synthetic(args.n_slides) if args.synthetic else st.io.read_cohort([args.folder])[0]
    groups: Any = args.groups if args.groups is not None else {s: s for s in slides}
    study = Study(slides, groups, args)
    with nullcontext() if args.cache is None else st.settings.override(cache_dir=args.cache):
        for step in args.steps:
            STEPS[step](study, args.out)
            print(f"{step}: {time.process_time():.0f} s of processor so far", flush=True)


def synthetic(n: int) -> dict[str, SpatialData]:
    """Return synthetic donors whose true expression is known."""
    return st.datasets.toy_cohort(n, size_um=(900, 900), n_genes=120)


class Study:
    """A cohort, its models, and scores that several pictures need."""

    def __init__(self, slides: dict[str, SpatialData], groups: Any, args: argparse.Namespace) -> None:
        self.slides, self.groups, self.args = slides, groups, args
        self.test = list(slides)[-1]
        self.how: dict[str, Any] = {
            "genes": st.GeneRule("hvg", n=args.n_genes),
            "encoder": args.encoder,
            "shapes_key": "spots",
            "seed": 0,
        }
        self._scores: pd.DataFrame | None = None
        self._model: Any = None

    def deepspot(self, context: str = "all") -> Any:
        """Return DeepSpot's settings."""
        width, epochs = self.args.width, self.args.epochs
        return st.models.DeepSpot.Config(context=context, width=width, n_phi=3, n_rho=2, epochs=epochs)

    @property
    def models(self) -> dict[str, Any]:
        """The models of the benchmark."""
        return {
            "colour": "colour",
            "ridge": "ridge",
            "mlp": st.models.MLP.Config(hidden=(256,), dropout=0.5, epochs=self.args.epochs),
            "deepspot": self.deepspot(),
        }

    @property
    def scores(self) -> pd.DataFrame:
        """Scores of all models on every held-out donor."""
        if self._scores is None:
            self._scores = st.tl.cross_validate(self.slides, self.models, groups=self.groups, **self.how)
        return self._scores

    @property
    def unseen(self) -> tuple[SpatialData, Any]:
        """The last slide with the prediction of a DeepSpot trained without its donor, and that model."""
        slide = self.slides[self.test]
        if self._model is None:
            donor = self.groups[self.test] if isinstance(self.groups, dict) else self.test
            rest = {
                s: x
                for s, x in self.slides.items()
                if (self.groups[s] if isinstance(self.groups, dict) else s) != donor
            }
            self._model = st.tl.train(rest, self.deepspot(), **self.how)
            st.tl.predict(slide, self._model, shapes_key="spots")
        return slide, self._model


def benchmark(study: Study, out: Path) -> None:
    """Models against each other on held-out donors."""
    scores = study.scores
    few = scores[scores["donor"].isin(scores["donor"].unique()[:SHOWN])]
    tests = st.tl.paired_tests(few, groupby="donor", reference="deepspot", metric="pearson")
    st.pl.boxes(few, groupby="donor", tests=tests, context=True, save=out / "boxes.png")
    n = scores.loc[scores["model"] == "deepspot", "gene"].nunique()
    numbers = None if n >= MANY else sorted({max(1, n * k // 10) for k in range(1, 11)})
    curve = st.tl.top_gene_curve(scores, n_genes=numbers)
    st.pl.top_genes(curve, ylabel="median Pearson correlation", save=out / "top_genes.png")
    table = st.tl.summarise(scores).droplevel(0)
    areas = curve.groupby("model")[["area", "area_low", "area_high"]].first()
    table = table.join(areas)
    table.to_csv(out / "benchmark.csv")
    print(table[["mean", "low", "high", "given_library_size", "area", "area_low", "area_high"]].round(3).to_string())
    if scores["donor"].nunique() >= 3:
        comparison = st.tl.rank_models(scores)
        print(comparison)
        st.pl.critical_difference(comparison, save=out / "ranks.png")
    else:
        print("ranks.png needs three donors or more")


def ablation(study: Study, out: Path) -> None:
    """What each part of the context adds."""
    models = {c: study.deepspot(c) for c in ("spot", "spot+parts", "spot+neighbors", "all")}
    scores = st.tl.cross_validate(study.slides, models, groups=study.groups, **study.how)
    tests = st.tl.paired_tests(scores, reference="all")
    st.pl.boxes(scores, order=list(models), tests=tests, save=out / "ablation.png")
    print(tests.round(4).to_string(index=False))


def selection(study: Study, out: Path) -> None:
    """Settings chosen inside the training donors of each fold, by the area under the curve of the first genes."""
    grid = {"ridge": [st.models.Ridge.Config(penalty=p) for p in (1e1, 1e3, 1e5)] + ["colour"]}
    chosen = st.tl.cross_validate(
        study.slides, grid, groups=study.groups, splits=st.Splits(criterion="top_genes"), **study.how
    )
    rows = chosen[(chosen["model"] == "ridge") & (chosen["metric"] == "pearson")]
    table = rows.groupby(["fold", "chosen"])["value"].median().rename("median_pearson").reset_index()
    table.to_csv(out / "selection.csv", index=False)
    print(table.round(3).to_string(index=False))


def maps(study: Study, out: Path) -> None:
    """Marker genes on a donor never seen."""
    slide, model = study.unseen
    genes = [g for g in MARKERS if g in model.record.genes][:2] or None
    st.pl.compare(slide, "spots_deepspot", "spots_counts", genes=genes, save=out / "maps.png")
    found = st.tl.compare(slide, "spots_deepspot", "spots_counts")
    print(f"{study.test}: median Pearson {found['pearson'].median():.3f} over {len(found)} genes")
    st.pl.genes(found, x="mean_count" if "rmax" not in found else "rmax", save=out / "genes.png")


def resolution(study: Study, out: Path) -> None:
    """One gene on squares smaller than a spot."""
    slide, model = study.unseen
    gene = next((g for g in MARKERS if g in model.record.genes), model.record.genes[0])
    st.pp.subdivide(slide, "spots", size_um=TILE_UM, key_added="squares")
    st.tl.predict(slide, model, shapes_key="squares", genes=[gene])
    st.pl.spatial(slide, "squares_deepspot", [gene], save=out / "resolution.png")


def regions(study: Study, out: Path) -> None:
    """Regions in the predicted genes and what marks them."""
    from sklearn.cluster import KMeans

    slide, _ = study.unseen
    table = slide.tables["spots_deepspot"]
    values = np.asarray(table.X, dtype=np.float64)
    values = (values - values.mean(axis=0)) / np.maximum(values.std(axis=0), 1e-6)
    found = KMeans(3, n_init=5, random_state=0).fit_predict(values)
    table.obs["region_of_prediction"] = pd.Categorical([f"region {k + 1}" for k in found])
    ranked = st.tl.markers(slide, "spots_deepspot", "region_of_prediction", trusted_only=False)
    genes = list(dict.fromkeys(ranked.groupby("group", sort=False).head(4)["gene"]))
    st.pl.markers(slide, "spots_deepspot", genes, groupby="region_of_prediction", save=out / "regions.png")


STEPS = {
    "benchmark": benchmark,
    "ablation": ablation,
    "selection": selection,
    "maps": maps,
    "resolution": resolution,
    "regions": regions,
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="slides, as stpred.io.read_cohort reads them")
    parser.add_argument("--synthetic", action="store_true", help="synthetic donors instead of a folder")
    parser.add_argument("--n-slides", type=int, default=4, help="of the synthetic cohort")
    parser.add_argument("--groups", choices=["slide"], help="hold out sections of one donor")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--encoder", default="morphology")
    parser.add_argument("--n-genes", type=int, default=250, help="variable genes")
    parser.add_argument("--epochs", type=int, default=15, help="of perceptron and DeepSpot")
    parser.add_argument("--width", type=int, default=64, help="of DeepSpot's layers")
    parser.add_argument("--cache", type=Path, help="folder that features are kept in")
    args = parser.parse_args()
    if (args.folder is None) != args.synthetic:
        parser.error("give a folder of slides, or --synthetic")
    return args


if __name__ == "__main__":
    main()

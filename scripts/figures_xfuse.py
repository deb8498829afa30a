"""The figure types of the XFuse publication (Bergenstråhle et al. 2022), drawn from any cohort.

    python scripts/figures_xfuse.py --synthetic --out figures/xfuse
    python scripts/figures_xfuse.py ../shared/data/her2st --out figures/xfuse --test C5
    python scripts/figures_xfuse.py ../shared/data/her2st --out figures/xfuse --steps maps metagenes expression

A model is trained on all slides but ``--test``, whose image is then read alone. Sizes are small by default (16 um per
pixel, three levels, few epochs); the published ones are 6 levels of width 16, 768-px patches and 100 000 epochs on a
GPU. ``--steps`` chooses pictures:

====================  ========================  =======================================================================
step                  picture                   figure of the publication
====================  ========================  =======================================================================
``maps``              ``maps.png``              Figs. 1-2: genes below the size of a spot, on the whole slide
``maps``              ``window.png``            Figs. 1-2: details of these, with the posterior's standard deviation
``subtypes``          ``subtypes.png``          ED 1a-c: ROC curves of intermingled types (``--synthetic`` alone: it
                                                needs the true type of each pixel)
``metagenes``         ``metagenes.png``         ED 3: all metagenes as one colour picture, with their genes
``sections``          ``sections.png``          ED 4: sections left out, against the mean and five bins of intensity
``restarts``          ``restarts.png``          ED 5a: agreement of runs from other seeds in 100 regions
``uncertainty``       ``uncertainty.png``       ED 5b: stated deviations against differences, here from the measurement
``uncertainty``       ``coverage.png``          (not published) how often intervals of counts hold
``misalignment``      ``misalignment.png``      ED 6: spots misplaced by 0, 1 and 2 radii, scored at withheld spots
``occlusion``         ``occlusion.png``         ED 7: tiles of the training images hidden
``expression``        ``volcano.png``           ED 8a,b: genes that differ between two regions
``expression``        ``composition.png``       ED 8c-e: composition by distance from a region's border: of metagenes
                                                here, of cell types where a table has them
``training``          ``training.png``          ED 10: the bound by epoch
====================  ========================  =======================================================================

ED 1d-f (which half of two merged spots has more of a gene) is printed by ``scripts/xfuse_study.py subtypes``; ED 2
(in situ hybridisation of the Allen atlas) needs images that are not ours.
Regions of ED 8 are the third of the spots that is richest in the metagene that varies most, and the rest; with
annotations pass their column to the same functions.
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

MARKERS = 8
"""Genes of each type in the synthetic tissue."""

REGION, TABLE, MAP = "metagene_region", "spots_xfuse_metagenes", "tissue_xfuse_metagenes_map"


def main() -> None:
    """Draw the pictures of all steps into a folder."""
    mpl.use("Agg")
    args = _arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    slides = synthetic() if args.synthetic else st.io.read_cohort([args.folder])[0]
    test = args.test or list(slides)[-1]
    learned = {name: s for name, s in slides.items() if name != test}
    study = Study(slides, learned, test, args)
    begin = time.perf_counter()
    for step in args.steps:
        if step == "subtypes" and not args.synthetic:
            print("subtypes: only of tissue whose types are known (--synthetic)")
            continue
        STEPS[step](study, args.out)
        print(
            f"{step}: {time.perf_counter() - begin:.0f} s so far, {time.process_time():.0f} s of processor", flush=True
        )


def synthetic() -> dict[str, SpatialData]:
    """Three slides of types that alternate below the size of a spot; baselines see it enlarged."""
    st.settings.max_upsampling = 8
    return {f"s{k}": st.datasets.toy_subtypes(seed=k, size_um=1500.0) for k in range(3)}


class Study:
    """The slides, the settings, and the model that all pictures but those of retraining share."""

    def __init__(
        self, slides: dict[str, SpatialData], learned: dict[str, SpatialData], test: str, args: argparse.Namespace
    ) -> None:
        self.slides, self.learned, self.test, self.args = slides, learned, test, args
        tables = [s.tables["spots_counts"] for s in learned.values()]
        total = pd.concat([pd.Series(np.asarray(t.X.sum(axis=0)).ravel(), t.var_names) for t in tables]).groupby(
            level=0
        )
        shared = [g for g, n in total.size().items() if n == len(tables)]
        self.genes = total.sum()[shared].sort_values(ascending=False, kind="stable").index[: args.genes].tolist()
        self.options: dict[str, Any] = {"genes": self.genes, "tile": st.TileSpec(mpp=args.mpp, size_px=args.size_px)}
        self._model: Any = None

    def config(self, epochs: int) -> st.models.XFuse.Config:
        """Return the settings."""
        a = self.args
        return st.models.XFuse.Config(
            depth=a.depth, width=a.width, metagenes=a.metagenes, batch_size=2, lr=2e-3, epochs=epochs, features=False
        )

    @property
    def model(self) -> Any:
        """The model that was trained on all slides but the test slide."""
        if self._model is None:
            self._model = st.tl.train(
                self.learned, self.config(self.args.epochs), shapes_key="spots", seed=self.args.seed, **self.options
            )
        return self._model

    @property
    def unseen(self) -> SpatialData:
        """The slide that was not trained on."""
        return self.slides[self.test]

    def retrained(self) -> dict[str, Any]:
        """Return the arguments of checks that train anew."""
        return {"shapes_key": "spots", "n_samples": 20, "seed": self.args.seed, "train_options": self.options}


def maps(study: Study, out: Path) -> None:
    """Genes on the whole slide and in a window, of the section whose image alone was read."""
    slide, posterior = study.unseen, st.Posterior(5)
    genes = study.genes[:3]
    st.tl.predict_map(slide, study.model, genes=genes, posterior=posterior)
    st.pl.raster(slide, "tissue_xfuse_map", genes, save=out / "maps.png")
    x, y = slide.tables["spots_counts"].obsm["spatial"].mean(axis=0)
    half = 2 * study.args.mpp * 16
    window = (x - half, y - half, x + half, y + half)
    st.pl.raster(slide, "tissue_xfuse_map", genes, crop_um=window, save=out / "window.png")
    if "tissue_xfuse_map_std" in slide.images:
        st.pl.raster(slide, "tissue_xfuse_map_std", genes, crop_um=window, save=out / "window_std.png")


def subtypes(study: Study, out: Path) -> None:
    """ROC curves of the true type of each pixel by the share of its markers, on a slide that was trained on."""
    import matplotlib.pyplot as plt
    from sklearn.metrics import roc_auc_score, roc_curve

    slide = next(iter(study.learned.values()))
    genes = [g for g in study.genes if g in set(slide.tables["spots_counts"].var_names[: 3 * MARKERS])]
    image = st.tl.predict_map(
        slide, study.model, genes=genes, posterior=st.Posterior(5, normalize_scale=True), inplace=False
    )
    values = np.asarray(image["scale0"].image.data)
    names = [str(c) for c in image["scale0"].image.coords["c"].values]
    kind = np.asarray(slide.labels["subtype"])
    step = kind.shape[0] / values.shape[1]
    rows = np.minimum(((np.arange(values.shape[1]) + 0.5) * step).astype(int), kind.shape[0] - 1)
    columns = np.minimum(((np.arange(values.shape[2]) + 0.5) * step).astype(int), kind.shape[1] - 1)
    truth = kind[np.ix_(rows, columns)].ravel()
    known = np.isfinite(values).all(axis=0).ravel() & (truth > 0)
    total = values.reshape(len(values), -1)[:, known].sum(axis=0)
    order = slide.tables["spots_counts"].var_names[: 3 * MARKERS]
    _, ax = plt.subplots(figsize=(4.4, 4.2), layout="constrained")
    for k in range(3):
        own = [names.index(g) for g in order[MARKERS * k : MARKERS * (k + 1)] if g in names]
        share = values.reshape(len(values), -1)[own][:, known].sum(axis=0) / total
        fpr, tpr, _ = roc_curve(truth[known] == k + 1, share)
        ax.plot(fpr, tpr, label=f"type {k + 1}: AUROC {roc_auc_score(truth[known] == k + 1, share):.2f}")
    ax.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=0.8)
    ax.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
    ax.legend(frameon=False, loc="lower right")
    ax.figure.savefig(out / "subtypes.png", dpi=150)
    plt.close(ax.figure)


def metagenes(study: Study, out: Path) -> None:
    """All metagenes of every slide as one picture."""
    first = study.unseen
    for slide in study.slides.values():
        st.tl.metagenes(slide, study.model, raster=True, posterior=st.Posterior(5))
    st.tl.metagenes(first, study.model, shapes_key="spots", posterior=st.Posterior(5))
    shown = {study.test: first} | study.learned
    st.pl.metagenes(shown, MAP, table_key=TABLE, save=out / "metagenes.png")
    st.pl.metagenes(first, TABLE, save=out / "metagenes_spots.png")


def sections(study: Study, out: Path) -> None:
    """Scores of sections that were left out, against the mean and the intensity of the image."""
    scores = st.tl.withheld_sections(study.slides, study.config(study.args.study_epochs), **study.retrained())
    scores.to_csv(out / "sections.csv", index=False)
    st.pl.boxes(scores, groupby="slide", save=out / "sections.png")


def restarts(study: Study, out: Path) -> None:
    """Agreement of pairs of runs in 100 regions of spot size, and their differences against what they state."""
    import matplotlib.pyplot as plt

    how = study.retrained() | {"n_restarts": study.args.restarts, "n_regions": 100}
    found = st.tl.restarts(study.learned, study.config(study.args.study_epochs), **how)
    found.to_csv(out / "restarts.csv", index=False)
    print(
        f"restarts: differences are {found['rms_ratio'].mean():.2f} times what the runs state; "
        f"{found['within_95'].mean():.0%} within 95 % limits"
    )
    wide = found.pivot(index="first", columns="second", values="pooled")
    fig, ax = plt.subplots(figsize=(4.2, 3.4), layout="constrained")
    drawn = ax.imshow(wide, vmin=min(0.8, float(np.nanmin(wide))), vmax=1, cmap="magma")
    for (i, j), value in np.ndenumerate(wide.to_numpy()):
        if np.isfinite(value):
            ax.text(j, i, f"{value:.3f}", ha="center", va="center", color="0.4", fontsize=8)
    ax.set_xticks(range(wide.shape[1]), wide.columns)
    ax.set_yticks(range(wide.shape[0]), wide.index)
    ax.set(xlabel="seed", ylabel="seed")
    fig.colorbar(drawn, label="Pearson over genes and regions")
    fig.savefig(out / "restarts.png", dpi=150)
    plt.close(fig)


def uncertainty(study: Study, out: Path) -> None:
    """Errors of the section that was not trained on, by stated deviations, and the coverage of intervals of counts."""
    slide, posterior = study.unseen, st.Posterior(20)
    st.tl.predict(slide, study.model, shapes_key="spots", posterior=posterior)
    found = st.tl.error_by_std(slide, "spots_xfuse", "spots_counts", counting_noise=True)
    found.to_csv(out / "uncertainty.csv", index=False)
    print("uncertainty:", found.attrs["stpred"]["verdict"])
    st.pl.error_by_std(found, save=out / "uncertainty.png")
    covered = st.tl.calibration(slide, study.model, shapes_key="spots", posterior=posterior)
    st.pl.coverage(covered, save=out / "coverage.png")


def misalignment(study: Study, out: Path) -> None:
    """Scores at withheld spots after training on spots that were misplaced."""
    found = st.tl.misaligned_spots(study.learned, study.config(study.args.study_epochs), **study.retrained())
    found.to_csv(out / "misalignment.csv", index=False)
    order = sorted(found["shift_radii"].unique())
    st.pl.boxes(found, column="shift_radii", order=order, save=out / "misalignment.png")


def occlusion(study: Study, out: Path) -> None:
    """Scores at withheld spots after training on images parts of which were hidden."""
    found = st.tl.occluded_tiles(study.learned, study.config(study.args.study_epochs), **study.retrained())
    found.to_csv(out / "occlusion.csv", index=False)
    column = next(c for c in ("occluded_share", "occluded_fraction") if c in found)
    st.pl.boxes(found, column=column, order=sorted(found[column].unique()), save=out / "occlusion.png")


def expression(study: Study, out: Path) -> None:
    """Genes that differ between two regions, and the composition by distance from the border of the first."""
    slide = study.unseen
    if TABLE not in slide.tables:
        st.tl.metagenes(slide, study.model, shapes_key="spots", posterior=st.Posterior(5))
    table = slide.tables[TABLE]
    shares = np.asarray(table.X, dtype=np.float64)
    varied = shares[:, int(np.argmax(shares.std(axis=0) / shares.mean(axis=0)))]
    table.obs[REGION] = pd.Categorical(np.where(varied > np.quantile(varied, 2 / 3), "rich", "poor"))
    of_spot = pd.Series(table.obs[REGION].astype(str).to_numpy(), index=table.obs["instance_id"].to_numpy())
    slide.shapes["spots"][REGION] = of_spot.reindex(slide.shapes["spots"].index)
    found = st.tl.differential_expression(
        slide, study.model, "spots", groupby=REGION, pairs=[("rich", "poor")], posterior=st.Posterior(30)
    )
    found.to_csv(out / "differential_expression.csv", index=False)
    st.pl.volcano(found, min_change=0.5, save=out / "volcano.png")
    st.tl.distance_to_border(slide, TABLE, "rich", groupby=REGION)
    shown = table.var["share"].sort_values(ascending=False).index[:6].tolist()
    width = float(np.round(np.nanquantile(np.abs(table.obs["border_distance_um"]), 0.9) / 4, -1))
    by_distance = st.tl.composition_by_distance(slide, TABLE, shown, width_um=max(width, 50.0))
    by_distance.to_csv(out / "composition.csv", index=False)
    st.pl.composition_by_distance(by_distance, save=out / "composition.png")
    st.pl.spatial(slide, TABLE, shown[:3], save=out / "metagene_shares.png")


def training(study: Study, out: Path) -> None:
    """The loss by epoch."""
    st.pl.training(study.model, save=out / "training.png")


STEPS = {
    f.__name__: f
    for f in (
        maps, subtypes, metagenes, uncertainty, expression, training, sections, restarts, misalignment, occlusion,
    )
}  # fmt: skip


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", help="folder of slides (stpred.io.read_cohort)")
    parser.add_argument("--synthetic", action="store_true", help="synthetic tissue instead of a folder")
    parser.add_argument("--out", type=Path, default=Path("figures/xfuse"))
    parser.add_argument("--test", help="slide that is not trained on (default: the last one)")
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--genes", type=int, default=60, help="genes of most counts")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--study-epochs", type=int, default=10, help="of each training of the steps that train anew")
    parser.add_argument("--restarts", type=int, default=4)
    parser.add_argument("--mpp", type=float, default=16.0, help="micrometres per pixel of the model")
    parser.add_argument("--size-px", type=int, default=64, help="edge of a training patch")
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--width", type=int, default=12)
    parser.add_argument("--metagenes", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if bool(args.folder) == args.synthetic:
        parser.error("give a folder of slides, or --synthetic")
    return args


if __name__ == "__main__":
    main()

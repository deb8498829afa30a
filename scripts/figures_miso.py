"""The figure types of the MISO publication (Schmauch et al. 2025), drawn from any cohort.

    python scripts/figures_miso.py --synthetic --out figures/miso
    python scripts/figures_miso.py ../shared/data/her2st --out figures/miso
    python scripts/figures_miso.py COHORT --out figures/miso --follow-up follow_up.csv --steps risk ranks agreement

``--follow-up`` is a table with the columns ``slide``, ``time``, ``event`` and, if slides share patients, ``patient``. A
cohort without one is too small or has no outcome: its risk is then a stand-in, the tile's mean haematoxylin, and the
pictures say so. Models are trained without the slides that they are scored on; sections of one patient are no other
patients, and of a cohort of one patient all scores are between sections.

=============  =====================  ==========================================================================
step           picture                figure type of the publication
=============  =====================  ==========================================================================
``scores``     ``scores.png``         models side by side, by slide
``scores``     ``ceiling.png``        each gene's correlation against the highest that its counts allow (Rmax)
``map``        ``map.png``            predicted genes beside H&E, on a slide that was not trained on
``risk``       ``risk.png``           tiles by the risk of a survival model of slides, out of fold
``risk``       ``cohort_size.png``    (DeepSpot) concordance of pseudo-bulk against patients trained on
``ranks``      ``ranks.png``          differential ranks of genes by risk, with bootstrap intervals over patients
``agreement``  ``agreement.png``      differential ranks of measured against those of predicted expression
=============  =====================  ==========================================================================
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

RISK, STAND_IN = "spots_risk", "haematoxylin"


def main() -> None:
    """Draw the pictures of all steps into a folder."""
    mpl.use("Agg")
    args = _arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    study = Study(args)
    for step in args.steps:
        STEPS[step](study, args.out)
        print(f"{step}: {time.process_time():.0f} s of processor", flush=True)


class Study:
    """Slides, patients, follow-up, and what several pictures share."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.follow_up: pd.DataFrame | None = None
        if args.synthetic:
            self.slides = st.datasets.toy_cohort(
                args.n_slides, size_um=(args.size_um, args.size_um), n_genes=args.genes, mpp=1.0
            )
            self.follow_up = planted(self.slides, seed=args.seed)
        else:
            self.slides = st.io.read_cohort([args.folder])[0]
        if args.follow_up is not None:
            self.follow_up = pd.read_csv(args.follow_up, dtype={"slide": str}).set_index("slide")
        patients = {s: s for s in self.slides}
        if self.follow_up is not None and "patient" in self.follow_up:
            patients = {s: str(self.follow_up.loc[s, "patient"]) for s in self.slides}
        self.patients = patients
        self.genes: Any = "all" if args.synthetic else st.GeneRule("rmax", n=args.genes)
        self._predicted = False
        self._risk: str | None = None

    @property
    def held_out(self) -> dict[str, SpatialData]:
        """Slides of the second half of the patients."""
        named = sorted(set(self.patients.values()))
        later = named[len(named) // 2 :]
        return {s: x for s, x in self.slides.items() if self.patients[s] in later}

    def predict(self) -> dict[str, SpatialData]:
        """Train without the held-out slides, and predict these as raw counts are scaled."""
        if not self._predicted:
            others = {s: x for s, x in self.slides.items() if s not in self.held_out}
            model = st.tl.train(
                others, self.args.model, genes=self.genes, shapes_key="spots", target="log1p_cp10k",
                encoder=self.args.encoder, seed=self.args.seed,
            )  # fmt: skip
            for sdata in self.held_out.values():
                st.tl.predict(sdata, model, shapes_key="spots", key_added="spots_predicted")
            self._predicted = True
        return self.held_out

    def risk(self) -> str:
        """Write a risk of each spot; return what it is called."""
        if self._risk is not None:
            return self._risk
        if self.follow_up is None:
            for sdata in self.slides.values():
                stain_as_risk(sdata)
            self._risk = STAND_IN
            return self._risk
        frame = self.follow_up.loc[list(self.slides)]
        found = st.tl.tile_survival(
            self.slides, frame["time"], frame["event"], groups=self.patients, encoder=self.args.encoder,
            shapes_key="spots", n_folds=self.args.n_folds, seed=self.args.seed,
            model=st.TileRisk(n_top=self.args.n_top, level=None if self.args.synthetic else 0.01),
        )  # fmt: skip
        low, high = found.attrs["concordance_interval"]
        print(f"survival of tiles: concordance {found.attrs['concordance']:.3f} [{low:.3f}, {high:.3f}]")
        self._risk = RISK
        return self._risk


def planted(slides: dict[str, SpatialData], *, seed: int) -> pd.DataFrame:
    """Follow-up of patients who die the earlier, the more of the slide is tumour."""
    rng = np.random.default_rng(seed)
    share = np.array([(s["cells_counts"].obs["type"] == "tumour").mean() for s in slides.values()])
    died = rng.exponential(np.exp(-1.5 * (share - share.mean()) / max(share.std(), 1e-9))) + 0.01
    left = rng.exponential(3 * np.median(died), len(died)) + 0.01
    return pd.DataFrame({"time": np.minimum(died, left), "event": died <= left}, index=list(slides))


def stain_as_risk(sdata: SpatialData) -> None:
    """Write how much red a spot's tile absorbs, which haematoxylin does, as the risk of each spot."""
    features = st.pp.features(sdata, "intensity", shapes_key="spots", inplace=False)
    red = np.asarray(features[:, "mean_red"].X).ravel()
    by_spot = pd.Series(-red, index=features.obs["instance_id"].to_numpy())
    for key in [k for k in ("spots_counts", "spots_predicted") if k in sdata.tables]:
        table = sdata.tables[key]
        table.obs[STAND_IN] = by_spot.reindex(table.obs["instance_id"].to_numpy()).to_numpy()


def scores(study: Study, out: Path) -> None:
    """Models side by side, and each gene against its ceiling."""
    found = st.tl.cross_validate(
        study.slides, study.args.models, groups="slide" if study.follow_up is None else study.patients,
        genes=study.genes, shapes_key="spots", target="counts", encoder=study.args.encoder, seed=study.args.seed,
        n_folds=min(len(set(study.patients.values())), 4),
    )  # fmt: skip
    st.pl.boxes(found, metric="pearson", target="counts", groupby="slide", save=out / "scores.png")
    found = found[(found["target"] == "counts") & found["metric"].isin(["pearson", "rmax"])]
    means = found.groupby(["model", "metric", "gene"], observed=True)["value"].mean()
    best = means.xs("pearson", level="metric").groupby("model", observed=True).mean()
    best = best[[m for m in best.index if m in study.args.models]].idxmax()
    frame = pd.DataFrame({"rmax": means["ceiling"]["rmax"], "pearson": means[best]["pearson"]}).dropna()
    axes = st.pl.genes(frame)
    axes.set_title(f"{best}, raw counts: correlation between sections", fontsize=9, pad=20)
    axes.figure.savefig(out / "ceiling.png", dpi=150, bbox_inches="tight")
    print(f"{best}: mean Pearson {frame['pearson'].mean():.3f}, mean Rmax {frame['rmax'].mean():.3f}")


def maps(study: Study, out: Path) -> None:
    """Predicted genes beside the image."""
    sdata = next(iter(study.predict().values()))
    st.pl.spatial(sdata, "spots_predicted", save=out / "map.png")


def risk(study: Study, out: Path) -> None:
    """Tiles by their risk, and concordance by size of the cohort."""
    name = study.risk()
    slide = next(iter(study.held_out))
    if name == RISK:
        st.pl.spatial(study.slides[slide], RISK, ["risk"], cmap="coolwarm", save=out / "risk.png")
    else:
        st.pl.spatial(study.slides[slide], "spots_counts", [STAND_IN], cmap="coolwarm", save=out / "risk.png")
    if study.follow_up is None:
        print("cohort_size: needs --follow-up")
        return
    bulk = st.tl.pseudobulk(study.slides, "spots_counts")
    frame, n = study.follow_up.loc[list(study.slides)], len(set(study.patients.values()))
    draws = st.Draws(n_train=sorted({n // 2, 3 * n // 4}), repeats=study.args.repeats, seed=study.args.seed)
    found = st.tl.survival(
        bulk, frame["time"], frame["event"], groups=study.patients, draws=draws, penalizer=0.1, n_screened=None
    )
    st.pl.cohort_size({"measured pseudo-bulk": found}, save=out / "cohort_size.png")


def ranked(study: Study, table_key: str) -> pd.DataFrame:
    """Differential ranks of a table of the held-out slides."""
    slides, name = study.predict(), study.risk()
    if name == STAND_IN:
        for sdata in slides.values():  # predictions may have been written after it
            stain_as_risk(sdata)
    return st.tl.differential_rank(
        slides, table_key, name, n_top=study.args.n_top, in_distribution_only=False,
        groups={s: study.patients[s] for s in slides},
    )  # fmt: skip


def ranks(study: Study, out: Path) -> None:
    """Genes by where they are high."""
    axes = st.pl.differential_rank(ranked(study, "spots_predicted"))
    if study.risk() == STAND_IN:
        axes.set_title("by haematoxylin (no follow-up)", fontsize=9)
    axes.figure.savefig(out / "ranks.png", dpi=150, bbox_inches="tight")


def agreement(study: Study, out: Path) -> None:
    """Differential ranks of both sides."""
    pair = [ranked(study, key) for key in ("spots_predicted", "spots_counts")]
    n_top = min(20, len(pair[0]) // 3)
    found = st.tl.rank_agreement(*pair, n_top=n_top, groups={s: study.patients[s] for s in study.held_out})
    print(found.iloc[0].to_string())
    st.pl.rank_agreement(found, save=out / "agreement.png")


STEPS = {"scores": scores, "map": maps, "risk": risk, "ranks": ranks, "agreement": agreement}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", help="folder of slides that stpred.io.read_cohort reads")
    parser.add_argument("--synthetic", action="store_true", help="a synthetic cohort with planted follow-up")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--follow-up", type=Path)
    parser.add_argument("--models", nargs="+", default=["ridge", "intensity"], help="of the step scores")
    parser.add_argument("--model", default="ridge", help="of the other steps; MISO's own is miso")
    parser.add_argument("--encoder", default="morphology")
    parser.add_argument("--genes", type=int, default=60)
    parser.add_argument("--n-top", type=int, default=25)
    parser.add_argument("--n-folds", type=int, default=3)
    parser.add_argument("--n-slides", type=int, default=16, help="of the synthetic cohort")
    parser.add_argument("--size-um", type=float, default=1000.0, help="edge of synthetic slides")
    parser.add_argument("--repeats", type=int, default=20, help="draws of patients of each size")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.folder is None and not args.synthetic:
        parser.error("give a folder of slides, or --synthetic")
    return args


if __name__ == "__main__":
    main()

"""The figure types of the ST-Net publication (He et al., Nature Biomedical Engineering 4, 2020), from any cohort.

    python scripts/figures_stnet.py --synthetic --out figures/stnet
    python scripts/figures_stnet.py ../shared/data/her2st --groups slide --out figures/stnet --cache features
    python scripts/figures_stnet.py cohort --external other_cohort --family stnet --out figures/stnet

Donors are held out in turn (``--groups slide``: sections, for a folder of one donor; every number is then optimistic
for other donors). The network itself takes minutes per slide, so that ``--family ridge`` stands in for it by default:
the pictures are the same. ``--steps`` chooses pictures:

=================  ============================  ======================================================================
step               picture                       what it is in the publication
=================  ============================  ======================================================================
``genes``          ``donors_per_gene.png``       genes by the number of patients in whom they are predicted positively,
                                                 against the binomial null (102 of 250 in 20 of 23 patients or more)
``genes``          ``donors_per_gene_flips.png`` (not published) the same where genes of a patient change sign together
``genes``          ``best_genes.png``            best genes over patients: correlation with what was measured, and with
                                                 its average over the neighbourhood (3 x 3)
``genes``          ``consistent.csv``            supplementary table: every gene with its tests, binomial and Holm
``baselines``      ``baselines.png``             against simpler predictors, by patient, with paired tests
``baselines``      ``baselines.csv``             numbers of genes that each predicts consistently
``auroc``          ``auroc.png``                 highest against lowest quartile of each gene, as AUROC
``maps``           ``maps.png``                  maps of the best genes on a patient never seen, measured and predicted
``tumour``         ``tumour.csv``                inside tumour and normal tissue (``--labels``: a column of ``obs``)
``external``       ``external.png``              another cohort without retraining: the average of the folds' models on
                                                 ``--external`` (with ``--synthetic``: other donors)
=================  ============================  ======================================================================

Not here: integrated gradients over a tile, the latent space (clusters, purity, similar tiles) and its pictures are
``stpred.tl.attribution``, ``latent``, ``latent_clusters``, ``cluster_purity``, ``similar_tiles``; co-localisation is
``stpred.tl.colocalization``; TCGA bulk and subtypes need those slides (``stpred.tl.compare_bulk``, ``classify``).
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import pandas as pd

import stpred as st

if TYPE_CHECKING:
    from spatialdata import SpatialData

BEST = 6
"""Genes with boxes of their own."""


def main() -> None:
    """Draw the pictures of all steps into a folder."""
    mpl.use("Agg")
    args = _arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    external = None
    if args.synthetic:
        made = synthetic(args.n_slides + 2)
        names = list(made)
        slides = {s: made[s] for s in names[: args.n_slides]}
        external = {s: made[s] for s in names[args.n_slides :]}
    else:
        slides = st.io.read_cohort([args.folder])[0]
        if args.external is not None:
            external = st.io.read_cohort([args.external])[0]
    study = Study(slides, external, args)
    with nullcontext() if args.cache is None else st.settings.override(cache_dir=args.cache):
        for step in args.steps:
            STEPS[step](study, args.out)
            print(f"{step}: {time.process_time():.0f} s of processor so far", flush=True)


def synthetic(n: int) -> dict[str, SpatialData]:
    """Return synthetic donors."""
    return st.datasets.toy_cohort(n, size_um=(700, 700), n_genes=100)


class Study:
    """A cohort, another one, the scores of held-out donors and the folds' models."""

    def __init__(
        self, slides: dict[str, SpatialData], external: dict[str, SpatialData] | None, args: argparse.Namespace
    ) -> None:
        self.slides, self.external, self.args, self.name = slides, external, args, args.family
        self.groups: Any = args.groups if args.groups is not None else {s: s for s in slides}
        # One list of genes, so that the folds' models can be averaged: the publication chose on all donors, too.
        counts = {s: x.tables["spots_counts"].to_df().mean() for s, x in slides.items()}
        shared = pd.concat(counts, axis=1, join="inner").mean(axis=1).sort_values(ascending=False, kind="stable")
        self.how: dict[str, Any] = {
            "genes": [str(g) for g in shared.index[: args.n_genes]],
            "encoder": args.encoder,
            "shapes_key": "spots",
            "seed": 0,
        }
        self._found: Any = None

    @property
    def found(self) -> tuple[pd.DataFrame, dict[str, Any]]:
        """Scores of held-out donors, and the folds' models of the main family."""
        if self._found is None:
            models = {"mean": "mean", "intensity": "intensity", "colour": "colour", self.name: self.args.family}
            scores, kept = st.tl.cross_validate(self.slides, models, groups=self.groups, return_models=True, **self.how)
            self._found = scores, kept[self.name]
        return self._found

    @property
    def unseen(self) -> tuple[str, SpatialData]:
        """The last slide with what the model of its own fold predicts."""
        name = list(self.slides)[-1]
        slide = self.slides[name]
        held = next(m for m in self.found[1].values() if name in m.record.training["cross_validation"]["held_out"])
        key = f"spots_{held.record.name}"
        if key not in slide.tables:
            st.tl.predict(slide, held, shapes_key="spots")
        return key, slide


def genes(study: Study, out: Path) -> None:
    """Which genes are predicted, and in how many donors."""
    scores = study.found[0]
    for null, file in (("binomial", "donors_per_gene.png"), ("sign_flips", "donors_per_gene_flips.png")):
        st.pl.donors_per_gene(scores, model=study.name, null=null, save=out / file)  # type: ignore[arg-type]
    table = st.tl.summarise(scores[scores["model"] == study.name], groupby="gene").droplevel([0, 1])
    table.to_csv(out / "consistent.csv")
    print(f"{int(table['consistent'].sum())} of {len(table)} genes are predicted consistently")
    best = list(table.index[:BEST])
    own = scores[(scores["model"] == study.name) & scores["gene"].isin(best)]
    truths = {"pearson": "as measured", "pearson_smoothed": "averaged over neighbours"}
    both = own[own["metric"].isin(list(truths))]
    both = both.assign(measurement=both["metric"].map(truths), metric="pearson")
    order = {g: i for i, g in enumerate(best)}
    both = both.sort_values("gene", key=lambda c: c.map(order), kind="stable")
    st.pl.boxes(both, column="measurement", groupby="gene", points="donor", save=out / "best_genes.png")


def baselines(study: Study, out: Path) -> None:
    """Against what needs no network."""
    scores = study.found[0]
    tests = st.tl.paired_tests(scores, groupby="donor", reference=study.name, alternative="greater")
    st.pl.boxes(scores, groupby="donor", tests=tests, save=out / "baselines.png")
    by_gene = st.tl.summarise(scores, groupby="gene").droplevel(0)
    rows = {
        model: {"consistent": int(part["consistent"].sum()), "mean": part["mean"].mean(), "n": len(part)}
        for model, part in by_gene.groupby(level=0)
    }
    table = pd.DataFrame(rows).T
    table.to_csv(out / "baselines.csv")
    print(table.round(3).to_string())


def auroc(study: Study, out: Path) -> None:
    """Highest against lowest quartile."""
    scores = study.found[0]
    scores = scores[scores["model"] != "mean"]
    tests = st.tl.paired_tests(scores, metric="auroc", reference=study.name, nan="drop")
    st.pl.boxes(scores.dropna(subset="value"), metric="auroc", tests=tests, save=out / "auroc.png")


def maps(study: Study, out: Path) -> None:
    """The best genes on a donor never seen."""
    key, slide = study.unseen
    st.pl.compare(slide, key, "spots_counts", save=out / "maps.png")


def tumour(study: Study, out: Path) -> None:
    """Whether more is predicted than which tissue a location is."""
    if study.args.labels is None:
        print("tumour: give the column of obs with each location's tissue (--labels)")
        return
    key, slide = study.unseen
    table = st.tl.within_regions(slide, key, "spots_counts", groupby=study.args.labels)
    table.to_csv(out / "tumour.csv", index=False)
    print(table.head().to_string(index=False))


def external(study: Study, out: Path) -> None:
    """Another cohort, without retraining."""
    if study.external is None:
        print("external: give another cohort (--external)")
        return
    joined = st.models.average(study.found[1], name=f"average of {len(study.found[1])}")
    single = next(iter(study.found[1].values()))
    scores = st.tl.validate(
        study.external,
        {"average of the folds": joined, "one fold": single},
        groups={s: s for s in study.external},
        shapes_key="spots",
    )
    tests = st.tl.paired_tests(scores, groupby="slide")
    st.pl.boxes(scores, groupby="slide", tests=tests, context=True, save=out / "external.png")
    print(st.tl.summarise(scores).droplevel(0)[["mean", "n_slides"]].round(3).to_string())
    print({s: round(share, 2) for s, share in scores.attrs["in_distribution"]["average of the folds"].items()})


STEPS = {
    "genes": genes,
    "baselines": baselines,
    "auroc": auroc,
    "maps": maps,
    "tumour": tumour,
    "external": external,
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="slides, as stpred.io.read_cohort reads them")
    parser.add_argument("--synthetic", action="store_true", help="synthetic donors instead of a folder")
    parser.add_argument("--n-slides", type=int, default=6, help="of the synthetic cohort")
    parser.add_argument("--groups", choices=["slide"], help="hold out sections of one donor")
    parser.add_argument("--external", type=Path, help="another cohort")
    parser.add_argument("--family", default="ridge", help="model, such as stnet")
    parser.add_argument("--labels", help="column of the measured table's obs with each location's tissue")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--encoder", default=None)
    parser.add_argument("--n-genes", type=int, default=250, help="those of highest mean count")
    parser.add_argument("--cache", type=Path, help="folder that features are kept in")
    args = parser.parse_args()
    if (args.folder is None) != args.synthetic:
        parser.error("give a folder of slides, or --synthetic")
    return args


if __name__ == "__main__":
    main()

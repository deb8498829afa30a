"""Fine-tune a model of two donors on one slide of a third, and score it on unseen donors of the synthetic cohort.

    python scripts/finetune_study.py ridge mlp miso --seeds 20 21 22

Prints, for each unseen slide, the mean Pearson correlation with the noiseless log1p CP10k of the old model, of a model
of the own slide alone, and of the fine-tuned one.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

import stpred as st
from stpred import metrics
from stpred.models import MISO, MLP

if TYPE_CHECKING:
    from spatialdata import SpatialData

FAMILIES: dict[str, Any] = {
    "ridge": "ridge",
    "mlp": MLP.Config(hidden=(128,), lr=1e-3, max_epochs=25),
    "miso": MISO.Config(width=64, inner=16, n_heads=2, n_neighbors=12, lr=1e-3, loss="pearson", max_epochs=25),
}


def score(model: st.models.Model, sdata: SpatialData) -> float:
    """Return the mean correlation over genes with the noiseless expression of a slide's spots."""
    table = st.tl.predict(sdata, model, shapes_key="spots", inplace=False)
    counts = sdata.tables["spots_counts"]
    expected = np.asarray(counts.layers["expected"], dtype=np.float64)
    share = expected / expected.sum(axis=1, keepdims=True)
    truth = np.log1p(1e4 * share[:, counts.var_names.get_indexer(table.var_names)])
    return float(np.nan_to_num(metrics.pearson(table.X, truth)).mean())


def main() -> None:
    """Run it and print a line per unseen slide, and how often the fine-tuned model beats both others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", choices=list(FAMILIES), default=["ridge"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[20, 21, 22])
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    for family in given.families or ["ridge"]:
        config, better, n = FAMILIES[family], 0, 0
        start = time.perf_counter()
        for seed in given.seeds:
            cohort = st.datasets.toy_cohort(5, size_um=(900, 900), n_genes=80, seed=seed)
            first, second, own, *unseen = cohort
            others = {s: cohort[s] for s in (first, second)}
            old = st.tl.train(others, config, genes=st.GeneRule("mean", n=60), shapes_key="spots")
            new = st.tl.finetune(old, cohort[own], shapes_key="spots")
            alone = st.tl.train(cohort[own], config, genes=old.record.genes, shapes_key="spots")
            for slide in unseen:
                found = [score(m, cohort[slide]) for m in (old, alone, new)]
                n, better = n + 1, better + (found[2] > max(found[:2]))
                moved = new.record.training["finetuned"]["moved"]
                print(f"{family:6s} {seed} {slide}: old {found[0]:.3f}, own slide alone {found[1]:.3f}, "
                      f"fine-tuned {found[2]:.3f} (moved: {moved})", flush=True)  # fmt: skip
        print(f"{family}: better than both on {better} of {n}; {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()

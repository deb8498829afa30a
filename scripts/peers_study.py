"""What the peers that publications compare with recover on synthetic tissue, and what they find in shuffled counts.

``python scripts/peers_study.py`` trains each on three donors (1 mm of tissue, 60 genes, epochs given) and reads a
fourth against its noiseless log1p CP10k, the 30 genes of highest mean count; then the same on counts whose spots are
permuted within each slide. On real sections: ``python scripts/compare_families.py FOLDER --only NAMES``.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

import numpy as np
import torch

import stpred as st
from stpred import metrics
from stpred.testing import copy_slide

if TYPE_CHECKING:
    from spatialdata import SpatialData

GENES = st.GeneRule("mean", n=30)
PEERS = {
    "retrieval": st.models.Retrieval.Config(width=64, k=20, epochs=20, n_reference=600),
    "histogene": st.models.HisToGene.Config(epochs=30),
    "hist2st": st.models.Hist2ST.Config(epochs=15),
    "istar": st.models.IStar.Config(epochs=10),
    "random_forest": st.models.RandomForest.Config(),
    "nmf_composition": st.models.NMFComposition.Config(),
    "ridge": st.models.Ridge.Config(),
}


def shuffled(slides: dict[str, SpatialData]) -> dict[str, SpatialData]:
    """Return the slides with the counts of their spots permuted."""
    found = {name: copy_slide(slide) for name, slide in slides.items()}
    for k, slide in enumerate(found.values()):
        table = slide.tables["spots_counts"]
        table.X = table.X[np.random.default_rng(k).permutation(table.n_obs)]
    return found


def recovered(slides: dict[str, SpatialData], unseen: SpatialData, config: st.models.BaseConfig) -> float:
    """Return the median gene's correlation with the noiseless truth of a donor that was not trained on."""
    one = dict.fromkeys(slides, "one")  # epochs are given, so that no inner folds are needed
    model = st.tl.train(slides, config, genes=GENES, shapes_key="spots", groups=one)
    table = st.tl.predict(unseen, model, shapes_key="spots", inplace=False)
    truth = unseen.tables["spots_counts"][table.obs_names]
    share = truth.layers["expected"] / truth.layers["expected"].sum(axis=1, keepdims=True)
    wanted = np.log1p(1e4 * share)[:, truth.var_names.get_indexer(table.var_names)]
    return float(np.nanmedian(metrics.pearson(table.X, wanted)))


def main() -> None:
    """Print a row per peer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PEERS, default=list(PEERS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    donors = st.datasets.toy_cohort(4, size_um=(1000, 1000), n_genes=60)
    *names, last = donors
    slides = {name: donors[name] for name in names}
    print(f"{'model':16} median Pearson, on shuffled counts, CPU seconds of both")
    for name in given.only:
        start = time.process_time()
        found = [recovered(some, donors[last], PEERS[name]) for some in (slides, shuffled(slides))]
        print(f"{name:16} {found[0]:6.3f} {found[1]:6.3f} {time.process_time() - start:5.0f}", flush=True)


if __name__ == "__main__":
    main()

"""Compare all families on a folder of slides of one donor, leaving one slide out at a time: the README's table.

    python scripts/compare_families.py ../shared/data/her2st --checkpoint scores

Every family is trained for the scale that it is scored on; numbers of epochs, penalties and the choice between families
(`best`) are made inside the training slides.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import pandas as pd

import stpred as st
from stpred.models import MISO, MLP, DeepSpot, Ridge, Transformer

REACH_UM = 520.0
BASELINES = ("mean", "intensity", "colour")
SHARED = {"lr": 1e-3, "weight_decay": 1e-2}


def families(loss: str) -> dict[str, object]:
    """Return settings for a few hundred locations: far smaller than the published sizes, and heavy dropout."""
    heavy = {"loss": loss, **SHARED}
    ridge = Ridge.Config(context_um=REACH_UM)
    mlp = MLP.Config(hidden=(256,), context_um=REACH_UM, input_dropout=0.5, dropout=0.5, batch_size=1024, **heavy)
    miso = MISO.Config(n_neighbors=24, width=256, inner=64, n_heads=4, dropout=0.5, max_epochs=60, **heavy)
    deepspot = DeepSpot.Config(width=128, n_phi=3, n_rho=2, input_dropout=0.5, max_epochs=80, **heavy)
    whole = Transformer.Config(width=256, inner=64, n_heads=4, dropout=0.5, max_epochs=60, **heavy)
    return {
        "mean": "mean",
        "intensity": "intensity",
        "colour": "colour",
        "ridge, the tile alone": "ridge",
        "ridge with neighbour means": ridge,
        "mlp, the tile alone": MLP.Config(hidden=(256,), input_dropout=0.5, dropout=0.5, batch_size=1024, **heavy),
        "mlp with neighbour means": mlp,
        "miso": miso,
        "transformer": whole,
        "deepspot": deepspot,
        "best": [ridge, mlp, miso, deepspot],
    }


def ensemble(config: Any, n_members: int | None) -> Any:
    """Return a model, or every setting to choose from, as an ensemble."""
    if n_members is None:
        return config
    if isinstance(config, list):
        return [ensemble(c, n_members) for c in config]
    return st.models.Ensemble.Config(config, n_members)


def main() -> None:
    """Run it and print mean Pearson per scale, model and slide."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slides", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--ensemble", type=int)
    parser.add_argument("--targets", nargs="*", default=["log1p_cp10k", "counts"])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    st.settings.checkpoint_dir = given.checkpoint
    slides, _ = st.io.read_cohort([given.slides])
    parts = []
    for target in given.targets:
        for name, config in families("pearson").items():
            if given.only and name not in given.only:
                continue
            start = time.perf_counter()
            scores = st.tl.cross_validate(
                slides,
                {name: config if name in BASELINES else ensemble(config, given.ensemble)},
                groups="slide",
                genes=st.GeneRule("mean", n=250),
                target=target,
                device="cpu",
            )
            pearson = scores[scores.metric == "pearson"].assign(value=lambda d: d.value.fillna(0.0))
            table = pearson.groupby(["target", "model", "slide"]).value.mean().unstack()
            row = table.loc[(target, name)]
            slides_row = " ".join(f"{v:.3f}" for v in row)
            seconds = time.perf_counter() - start
            print(f"{target:12s} {name:28s} {slides_row} mean {row.mean():.4f} {seconds:.0f} s", flush=True)
            if name == "best":
                print("   ", *sorted(set(scores[scores.model == name].chosen)), sep="\n    ")
            parts.append(scores)
        row = table.loc[(target, "library_size")]
        print(f"{target:12s} {'library size alone':28s}", " ".join(f"{v:.3f}" for v in row), f"mean {row.mean():.4f}")
    if given.out is not None:
        pd.concat(parts).to_csv(given.out, index=False)


if __name__ == "__main__":
    main()

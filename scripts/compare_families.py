"""Compare all families on a folder of slides of one donor, leaving one slide out at a time: the README's table.

    python scripts/compare_families.py ../shared/data/her2st --checkpoint scores --cache features
    python scripts/compare_families.py ../shared/data/her2st --encoders morphology imagenet-multiscale --cache features

ST-Net from the ImageNet weights of the extra `imagenet`, minutes of one core per slide, runs only when asked for:

    python scripts/compare_families.py ../shared/data/her2st --only stnet --targets log1p_cp10k

Every family is trained for the scale that it is scored on; numbers of epochs, penalties and the choice between families
(`best`, `auto`) are made inside the training slides, but for ST-Net's six epochs, which were read off C4.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import pandas as pd

import stpred as st
from stpred.models import MISO, MLP, DeepSpot, KernelRidge, Ridge, STNet, Transformer

REACH_UM = 520.0
BASELINES = ("mean", "intensity", "colour")
ENCODERS = ("morphology", "morphology-multiscale", "imagenet-multiscale")
"""Tiles of 112 um; those and of 448 um; and middle layers of a network beside, on both."""

SHARED = {"lr": 1e-3, "weight_decay": 1e-2}
STNET = "stnet"
TILES = {STNET: st.TileSpec(150 / 112, 112)}
"""The published width of 150 um at half the published pixels: a quarter of the time."""


def families(loss: str) -> dict[str, object]:
    """Return settings for a few hundred locations: far smaller than the published sizes, and heavy dropout."""
    heavy = {"loss": loss, **SHARED}
    ridge = Ridge.Config(context_um=REACH_UM)
    mlp = MLP.Config(hidden=(256,), context_um=REACH_UM, input_dropout=0.5, dropout=0.5, batch_size=1024, **heavy)
    miso = MISO.Config(n_neighbors=24, width=256, inner=64, n_heads=4, dropout=0.5, max_epochs=60, **heavy)
    deepspot = DeepSpot.Config(width=128, n_phi=3, n_rho=2, input_dropout=0.5, max_epochs=80, **heavy)
    stnet = STNet.Config(
        backbone="efficientnet-lite0",
        optimiser="adamw",
        lr=2e-4,
        weight_decay=1e-2,
        reduction="mean",
        scale_genes=True,
        epochs=6,
    )
    whole = Transformer.Config(width=256, inner=64, n_heads=4, dropout=0.5, max_epochs=60, **heavy)
    return {
        "mean": "mean",
        "intensity": "intensity",
        "colour": "colour",
        "ridge, the tile alone": "ridge",
        "ridge with neighbour means": ridge,
        "ridge of shared noise": Ridge.Config(context_um=REACH_UM, location_weights="depth", rank="auto"),
        "kernel ridge": KernelRidge.Config(context_um=REACH_UM),
        "mlp, the tile alone": MLP.Config(hidden=(256,), input_dropout=0.5, dropout=0.5, batch_size=1024, **heavy),
        "mlp with neighbour means": mlp,
        "miso": miso,
        "transformer": whole,
        "deepspot": deepspot,
        "best": [ridge, mlp, miso, deepspot],
        "auto": "auto",
        STNET: stnet,
    }


def ensemble(config: Any, n_members: int | None) -> Any:
    """Return a model, or every setting to choose from, as an ensemble."""
    if n_members is None:
        return config
    if isinstance(config, list):
        return [ensemble(c, n_members) for c in config]
    return st.models.Ensemble.Config(config, n_members)


def scored(slides: dict[str, Any], name: str, config: Any, *, target: str, encoder: Any) -> pd.DataFrame:
    """Return the cross-validated scores of a model."""
    return st.tl.cross_validate(
        slides,
        {name: config},
        groups="slide",
        genes=st.GeneRule("mean", n=250),
        target=target,
        encoder=encoder,
        tile=TILES.get(name),
        device="cpu",
    )


def means(scores: pd.DataFrame, model: str, metric: str = "pearson") -> pd.Series:
    """Return a model's mean over genes on each slide; a gene without a score counts as 0."""
    rows = scores[(scores.model == model) & (scores.metric == metric)]
    return rows.assign(value=rows.value.fillna(0.0)).groupby("slide").value.mean()


def main() -> None:
    """Run it and print mean Pearson per scale, encoder, model and slide."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slides", type=Path)
    parser.add_argument("--encoders", nargs="*", choices=ENCODERS, default=["morphology-multiscale"])
    parser.add_argument("--only", nargs="*", help="of the models")
    parser.add_argument("--ensemble", type=int)
    parser.add_argument("--targets", nargs="*", default=["log1p_cp10k", "counts"])
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--cache", type=Path, help="folder of features, shared by all models and later runs")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    st.settings.checkpoint_dir, st.settings.cache_dir = given.checkpoint, given.cache
    slides, _ = st.io.read_cohort([given.slides])
    everything = families("pearson").keys() - {STNET}
    parts = []
    for target in given.targets:
        done: set[str] = set()
        for encoder in given.encoders:
            for name, config in families("pearson").items():
                if name not in (given.only or everything) or name in done:
                    continue
                start = time.perf_counter()
                model = config if name in (*BASELINES, "auto") else ensemble(config, given.ensemble)
                scores = scored(slides, name, model, target=target, encoder=None if name == STNET else encoder)
                row, rest = means(scores, name), means(scores, name, "pearson_given_library_size").mean()
                print(f"{target:12s} {encoder:21s} {name:28s}", *(f"{v:.3f}" for v in row), f"mean {row.mean():.4f} "
                      f"given library size {rest:.4f} {time.perf_counter() - start:.0f} s", flush=True)  # fmt: skip
                if name == "best":
                    print("   ", *sorted(set(scores[scores.model == name].chosen)), sep="\n    ")
                parts.append(scores.assign(encoder=encoder))
            done |= {*BASELINES, STNET}  # they have encoders of their own
        row = means(parts[-1], "library_size")
        print(f"{target:12s} {'library size alone':50s}", *(f"{v:.3f}" for v in row), f"mean {row.mean():.4f}")
    if given.out is not None:
        pd.concat(parts).to_csv(given.out, index=False)


if __name__ == "__main__":
    main()

"""Compare all families on a folder of slides of one donor, leaving one slide out at a time: the README's table.

    python scripts/compare_families.py ../shared/data/her2st --checkpoint scores --cache features
    python scripts/compare_families.py ../shared/data/her2st --encoders morphology imagenet-multiscale --cache features

ST-Net from the ImageNet weights of the extra `imagenet`, minutes of one core per slide, runs only when asked for:

    python scripts/compare_families.py ../shared/data/her2st --only stnet --targets log1p_cp10k

Peers that are baselines of other publications (`--only histogene hist2st istar ...`) run when asked for, too:

    python scripts/compare_families.py ../shared/data/her2st --only histogene hist2st istar "random forest" nmf \\
        --targets log1p_cp10k --cache features

Ways of pooling DeepSpot's neighbours, and the choice between them inside the training slides (`neighbours chosen`):

    python scripts/compare_families.py ../shared/data/her2st --only "neighbours max" "neighbours distance" \\
        "neighbours attention" "neighbours chosen" --targets log1p_cp10k --cache features

Every family is trained for the scale that it is scored on; numbers of epochs, penalties and the choice between families
(`best`, `auto`) are made inside the training slides, but for ST-Net's six epochs, which were read off C4.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

import stpred as st
from stpred.models import (
    MISO,
    MLP,
    DeepSpot,
    Hist2ST,
    HisToGene,
    IStar,
    KernelRidge,
    NMFComposition,
    RandomForest,
    Retrieval,
    Ridge,
    STNet,
    Transformer,
)

REACH_UM = 520.0
BASELINES = ("mean", "intensity", "colour")
ENCODERS = ("morphology", "morphology-multiscale", "imagenet-multiscale")
"""Tiles of 112 um; those and of 448 um; and middle layers of a network beside, on both."""

SHARED = {"lr": 1e-3, "weight_decay": 1e-2}
STNET = "stnet"
POOLS = tuple(f"neighbours {how}" for how in ("max", "distance", "attention", "chosen"))
PEERS = ("histogene", "hist2st", "istar", "random forest", "nmf", "retrieval")
ENCODERS_OF = {"istar": "morphology"}
"""Of families whose patches need tiles of one width."""

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
    section = {"depth": 2, "n_heads": 4, "feed_width": 256, "dropout": 0.3, "input_dropout": 0.5, "lr": 5e-4}
    section |= {"weight_decay": 1e-2, "max_epochs": 40}
    peers = {
        "histogene": HisToGene.Config(width=128, **section),
        "hist2st": Hist2ST.Config(width=128, n_graph_layers=2, views=1, **section),
        "istar": IStar.Config(input_dropout=0.3, dropout=0.2, max_epochs=20, patience=5, weight_decay=1e-2),
        "random forest": RandomForest.Config(),
        "nmf": NMFComposition.Config(context_um=REACH_UM),
        "retrieval": Retrieval.Config(weight_decay=1e-2, max_epochs=40),
    }
    around = {
        how: replace(deepspot, context="spot+neighbors", context_um=REACH_UM, neighbors_pool=how)
        for how in ("max", "distance", "attention")
    }
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
        **peers,
        **{f"neighbours {how}": config for how, config in around.items()},
        "neighbours chosen": list(around.values()),
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
    everything = families("pearson").keys() - {STNET, *PEERS, *POOLS}
    parts = []
    for target in given.targets:
        done: set[str] = set()
        for encoder in given.encoders:
            for name, config in families("pearson").items():
                if name not in (given.only or everything) or name in done:
                    continue
                start = time.perf_counter()
                model = config if name in (*BASELINES, "auto") else ensemble(config, given.ensemble)
                own = None if name == STNET else ENCODERS_OF.get(name, encoder)
                scores = scored(slides, name, model, target=target, encoder=own)
                row, rest = means(scores, name), means(scores, name, "pearson_given_library_size").mean()
                said = f"mean {row.mean():.4f} given library size {rest:.4f} {time.perf_counter() - start:.0f} s"
                print(f"{target:12s} {own or 'pixels':21s} {name:28s}", *(f"{v:.3f}" for v in row), said, flush=True)
                if name in ("best", "neighbours chosen"):
                    print("   ", *sorted(set(scores[scores.model == name].chosen)), sep="\n    ")
                parts.append(scores.assign(encoder=own))
            done |= {*BASELINES, STNET, *ENCODERS_OF}  # they have encoders of their own
        row = means(parts[-1], "library_size")
        print(f"{target:12s} {'library size alone':50s}", *(f"{v:.3f}" for v in row), f"mean {row.mean():.4f}")
    if given.out is not None:
        pd.concat(parts).to_csv(given.out, index=False)


if __name__ == "__main__":
    main()

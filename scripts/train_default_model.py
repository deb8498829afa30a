"""Train the models that come with stpred, and write their cards.

    python scripts/train_default_model.py ../shared/data/her2st [default] [default-imagenet]

The folder holds sections C2-C5 of the public HER2-positive breast cancer data (Andersson et al. 2021), as
``C2.counts.tsv.gz``, ``C2.jpg``, ``C2.spots.tsv`` and so on. Nothing of it is stored but the weights of the model.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

import stpred as st
from stpred.models.registry import BUNDLED

MAX_BYTES = 12_000_000
"""Of all of them together."""

ENCODERS = {"default": "morphology-multiscale", "default-imagenet": "imagenet-multiscale"}
SEES = {
    "default": 'the built-in `"morphology"` features of H&E tiles of 112 and 448 um',
    "default-imagenet": (
        '`"morphology"` features and middle layers of an EfficientNet-Lite0 of ImageNet weights (Apache-2.0, extra '
        "`stpred[imagenet]`), both of H&E tiles of 112 and 448 um"
    ),
}
REACH_UM = 520.0
RANK = 64
TARGET = "log1p_cp10k_half_library"
"""It holds better on other donors: `scripts/donor_study.py`."""
SUMMARY = "trained on one breast cancer patient (HER2ST C2-C5); to try things out"

CARD = """# Model card: `{name}`

**What it is.** Ridge regression from {sees}, with the mean of
the neighbours within {reach:g} um beside a location's own, to log1p CP10k expression of {n_genes} genes through {rank}
combinations of genes, trained without half of what each spot's library size explains (which holds better on other
donors). It comes with stpred so that `st.tl.predict(sdata{named})` works at once, offline.

**What it was trained on.** {n_sections} sections ({sections}) of **one patient** with HER2-positive breast cancer,
{n_spots} spots of legacy Spatial Transcriptomics (100 um spots, 200 um pitch, {mpp} um per pixel): Andersson et al.
2021, Nat. Commun. 12:6012. Weights only: no image, count or crop of them is included. Made by
`python scripts/train_default_model.py FOLDER {name}`.

**How well it predicts.** Each section left out in turn, Pearson correlation per gene over the spots of the left-out
section, mean over sections. All sections are of the same patient, so these are scores for *more tissue of this
patient*: expect less on other patients, and nothing at all on other organs, stains or scanners.

{table}

Best: {best}.
The genes were kept *because* they scored well here, so the scores of the kept ones are optimistic. Every gene's own
score is in `var["cv_pearson"]` of the predicted table.

**What it must not be used for.** Diagnosis, treatment or any decision about a person. Conclusions about other patients,
organs or stains. As a benchmark of the method. Train on your own slides: `st.tl.train`.

**How to see that it does not fit.** `obs["in_distribution"]` and `obs["ood_score"]` of the predicted table;
`st.tl.predict` warns when most tiles look unlike the training tiles. It has seen one patient's slides and takes those
of other patients, stains and scanners for what they are: unlike. Its intervals (`var["interval_low"]` and
`["interval_high"]`) were calibrated between these sections too, and are too narrow for anything else.

**Settings.** {config}; penalty {penalty:g}, chosen by leaving sections out; encoder `{encoder}` revision {revision}.
"""


def main(folder: str, names: list[str]) -> None:
    slides, _ = st.io.read_cohort([folder])
    for name in names:
        train(slides, name)
    size = sum(f.stat().st_size for f in BUNDLED.glob("*/*"))
    print(f"all: {size / 1e6:.2f} MB")
    if size > MAX_BYTES:
        raise SystemExit(f"The models are larger than {MAX_BYTES} bytes.")


def train(slides: dict[str, Any], name: str) -> None:
    """Train one model on the genes that it predicts on left-out sections, and write it with its card."""
    config = st.models.Ridge.Config(
        context_um=REACH_UM, rank=RANK, block_weights="equal", location_weights="depth", standardize="slide"
    )
    encoder = st.encoders.get(ENCODERS[name])
    for sdata in slides.values():  # once, for both trainings
        st.pp.features(sdata, shapes_key="spots", encoder=encoder)
    options = {"encoder": encoder, "name": name, "target": TARGET}
    candidates = st.tl.train(slides, config, genes=st.GeneRule("mean", n=4000, min_total=100), **options)
    cv = np.array([np.nan if v is None else v for v in candidates.record.var["cv_pearson"]])
    model = candidates
    while not all(model.record.var["trusted"]):  # combinations of genes depend on which genes there are
        kept = [g for g, trusted in zip(model.record.genes, model.record.var["trusted"], strict=True) if trusted]
        model = st.tl.train(slides, config, genes=kept, **options)
    model.record.gene_rule = {"method": "mean", "n": 4000, "min_total": 100, "then": "cross-section Pearson > 0.1"}
    model.record.training["summary"] = SUMMARY
    path = st.models.save(model, BUNDLED / name, overwrite=(BUNDLED / name).exists())
    (path / "CARD.md").write_text(card(model, cv, config))
    size = sum(f.stat().st_size for f in path.iterdir())
    print(f"{path}: {len(kept)} genes of {len(cv)}, {size / 1e6:.2f} MB", flush=True)


def card(model: st.models.Model, candidates: np.ndarray, config: st.models.BaseConfig) -> str:
    record = model.record
    kept = np.array([np.nan if v is None else v for v in record.var["cv_pearson"]])
    top = kept[np.argsort(-np.asarray(record.var["mean"], dtype=float))[:250]]
    rows = ["| genes | n | mean Pearson | median | 5 % to 95 % |", "|---|---|---|---|---|"]
    for name, values in (
        ("candidates (highest mean counts)", np.nan_to_num(candidates)),
        ("kept: cross-section Pearson above 0.1", kept),
        ("of which the 250 most counted", top),
    ):
        low, high = np.nanquantile(values, [0.05, 0.95])
        middle = f"{np.nanmean(values):.3f} | {np.nanmedian(values):.3f}"
        rows.append(f"| {name} | {len(values)} | {middle} | {low:.2f} to {high:.2f} |")
    order = np.argsort(-np.nan_to_num(kept))[:8]
    sections = record.training["slides"]
    return CARD.format(
        name=record.name,
        sees=SEES[record.name],
        reach=REACH_UM,
        rank=model.config.rank,
        named="" if record.name == "default" else f', "{record.name}"',
        encoder=ENCODERS[record.name],
        n_genes=len(kept),
        table="\n".join(rows),
        n_sections=len(sections),
        sections=", ".join(sections),
        n_spots=sum(s["n_locations"] for s in sections.values()),
        mpp=f"{np.median(list(record.training['mpp'].values())):.3f}",
        best=", ".join(f"{record.genes[i]} {kept[i]:.2f}" for i in order),
        config=", ".join(f"{k}={v}" for k, v in config.to_dict().items() if not k.startswith("penalt")),
        penalty=record.training["penalty"],
        revision=record.encoder["revision"],
    )


if __name__ == "__main__":
    given = sys.argv[2:] or list(ENCODERS)
    if len(sys.argv) < 2 or not Path(sys.argv[1]).is_dir() or set(given) - set(ENCODERS):
        raise SystemExit(__doc__)
    main(sys.argv[1], given)

"""How far intervals, `trusted` and `ood_score` can be trusted: the numbers of docs/results.md.

    python scripts/trust_study.py cohorts                     # synthetic cohorts of 12 slides that differ
    python scripts/trust_study.py her2st ../shared/data/her2st
    python scripts/trust_study.py strange ../shared/data      # tiles of other tissue, spoilt sections

A synthetic cohort has 12 slides of 150 locations with 20 image features. Genes depend on these to every degree from
not at all to closely, through a line and a bend; every slide shifts its features (stain), every gene (biology) and its
depth.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.metrics import roc_auc_score

import stpred as st
from stpred import metrics, training
from stpred._core.targets import totals, transform
from stpred.inference.intervals import LEVEL, calibrate, residual_sketch
from stpred.models import Batch, Ridge
from stpred.training._scores import HeldOut

N_SLIDES, N_LOCATIONS, N_FEATURES, N_GENES = 12, 150, 20, 60


def cohort(seed: int, *, shift: float) -> list[Batch]:
    """Return 12 slides; `shift` is the standard deviation of each gene's offset between them, in log units."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(N_FEATURES, N_GENES)) / np.sqrt(N_FEATURES)
    effect = np.linspace(0, 1.2, N_GENES)
    base = rng.normal(1.0, 1.0, N_GENES)
    slides = []
    for k in range(N_SLIDES):
        seen = rng.normal(size=(N_LOCATIONS, N_FEATURES))
        line = seen @ weights
        log_rate = base + effect * (line + 0.3 * np.square(line)) + rng.normal(0, shift, N_GENES)
        rate = np.exp(np.clip(log_rate, None, 5)) * np.exp(rng.normal(0, 0.3)) * rng.gamma(4, 0.25, (N_LOCATIONS, 1))
        counts = rng.poisson(np.column_stack([rate, np.full((N_LOCATIONS, 200), 3.0)]))
        y = transform(counts, totals(counts), target="log1p_cp10k")[:, :N_GENES].astype(np.float32)
        stained = (seen + rng.normal(0, 0.3, N_FEATURES)).astype(np.float32)
        slides.append(Batch.of(stained, slide=f"s{k}", y=y, scale="log1p_cp10k"))
    return slides


def fitted(train: list[Batch]) -> Ridge:
    donors = [b.slide for b in train]
    model, _ = training.fit(Ridge, Ridge.Config(standardize="train"), train, groups=donors)
    model.record.genes = [f"g{i}" for i in range(N_GENES)]
    return model


def covered(model: Ridge, test: list[Batch]) -> float:
    """Return the share of the test slides' values within the 90 % intervals."""
    level = next(i for i in model.record.intervals["levels"] if i["level"] == LEVEL)
    found = []
    for b in test:
        guess = model.predict(b)[0]
        low, high = (guess + np.array(level[side], dtype=float) for side in ("low", "high"))
        found.append(metrics.coverage(b.y, np.maximum(low, 0), np.maximum(high, 0)).mean())
    return float(np.mean(found))


def one_cohort(seed: int, *, shift: float) -> dict[str, float]:
    """Train, calibrate in both ways, and look at slides that had no part in either."""
    slides = cohort(seed, shift=shift)
    train, held, test = slides[:4], slides[4:9], slides[9:]
    model = fitted(train)
    calibrate(
        model,
        [residual_sketch(b.y, model.predict(b)[0], "log1p_cp10k") for b in held],
        slides=[b.slide for b in held],
        groups=[b.slide for b in held],
        width_um=100.0,
        calibrated_on="held out",
    )
    split = covered(model, test)
    train = slides[:9]
    model, donors = fitted(train), [b.slide for b in train]
    labels, _ = training.out_of_fold(Ridge, model.config, train, groups=donors)
    calibrate(
        model,
        [residual_sketch(b.y, labels[b.slide], "log1p_cp10k") for b in train],
        slides=donors,
        groups=donors,
        width_um=100.0,
        calibrated_on="out of fold",
    )
    scores = np.stack([metrics.pearson(labels[b.slide], b.y) for b in train])
    trusted = HeldOut(scores, scores, np.full(len(train), N_LOCATIONS)).columns()["trusted"]
    realised = np.nanmean([metrics.pearson(model.predict(b)[0], b.y) for b in test], axis=0)
    level = next(i for i in model.record.intervals["levels"] if i["level"] == LEVEL)
    return {
        "split": split,
        "cross": covered(model, test),
        "stated": level["coverage"],
        "trusted": float(trusted.mean()),
        "auroc": float(roc_auc_score(trusted, realised)) if 0 < trusted.mean() < 1 else float("nan"),
    }


def cohorts(n: int) -> None:
    for shift in (0.0, 0.2, 0.5):
        found = pd.DataFrame([one_cohort(seed, shift=shift) for seed in range(n)])
        print(f"{n} cohorts of {N_SLIDES} slides, shift between slides {shift} (log units):")
        for name, what in (
            ("split", "coverage of 90 %, 4 slides train, 5 calibrate, 3 are covered"),
            ("cross", "coverage of 90 %, 9 slides train and calibrate out of fold, 3 are covered"),
            ("stated", "the same as the model itself states it"),
            ("auroc", "AUROC of the realised correlation of trusted genes against the rest"),
            ("trusted", "share of genes that are trusted"),
        ):
            v = found[name]
            print(f"  {what}: mean {v.mean():.3f}, sd over cohorts {v.std():.3f}, from {v.min():.3f} to {v.max():.3f}")


def her2st(folder: Path) -> None:
    slides, _ = st.io.read_cohort([folder])
    rows = []
    for left in slides:
        train = {s: v for s, v in slides.items() if s != left}
        model = st.tl.train(train, Ridge.Config(context_um=520), shapes_key="spots")
        st.tl.predict(slides[left], model, shapes_key="spots", key_added="p")
        for row in st.tl.coverage(slides[left], "p", "spots_counts").groupby("level").coverage.mean().items():
            rows.append({"slide": left, "level": row[0], "coverage": row[1]})
    found = pd.DataFrame(rows).pivot(index="slide", columns="level", values="coverage")
    print("Coverage of each section by intervals calibrated on the three others (out of fold):")
    print(found.round(3).to_string())
    print("mean", found.mean().round(3).to_dict(), "standard error over sections", found.sem().round(3).to_dict())


STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])


def restained(image: NDArray, haematoxylin: float, eosin: float) -> NDArray:
    stains = STAINS / np.linalg.norm(STAINS, axis=1, keepdims=True)
    out = np.empty_like(image)
    for at in range(0, len(image), 512):
        amounts = -np.log((image[at : at + 512].astype(np.float64) + 1) / 256) @ np.linalg.inv(stains)
        amounts[..., :2] *= (haematoxylin, eosin)
        out[at : at + 512] = np.clip(256 * np.exp(-amounts @ stains) - 1, 0, 255)
    return out


def resized(image: NDArray, mpp: float, wanted: float, *, back: bool = False) -> NDArray:
    picture = Image.fromarray(image)
    size = tuple(round(edge * mpp / wanted) for edge in picture.size)
    small = picture.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(small.resize(picture.size, Image.Resampling.BICUBIC) if back else small)


def strange(folder: Path) -> None:
    """Other tissue at the training resolution, and one section spoilt, against the same section as it is."""
    Image.MAX_IMAGE_PIXELS = None
    slides, _ = st.io.read_cohort([folder / "her2st"])
    left = "C5"
    unseen = slides.pop(left)
    model = st.tl.train(slides, Ridge.Config(standardize="train"), shapes_key="spots")
    mpp = float(np.mean(list(model.record.training["mpp"].values())))
    own = st.tl.predict(unseen, model, shapes_key="spots", inplace=False)
    print(f"section {left} as it is: {1 - own.obs.in_distribution.mean():.1%} of the tiles flagged")
    with tempfile.TemporaryDirectory() as scratch:
        others = []
        for path, its in (
            (folder / "wsi/CMU-1-Small-Region.svs", 0.499),
            *((p, 0.5) for p in sorted((folder / "he_tiles").iterdir())),
        ):
            tile = Path(scratch) / "other.png"
            Image.fromarray(resized(_pixels(path), its, mpp)).save(tile)
            slide = st.io.wsi(tile, mpp=mpp)
            st.pp.tissue(slide)
            st.pp.grid(slide, pitch_um=80.0)
            table = st.tl.predict(slide, model, shapes_key="grid", inplace=False)
            others.append(table.obs.ood_score.to_numpy())
            print(f"{path.name}: {(others[-1] > 0).mean():.1%} of {table.n_obs} tiles flagged")
        other = np.concatenate(others)
        score = np.concatenate([own.obs.ood_score.to_numpy(), other])
        print(f"AUROC of other tissue: {roc_auc_score(np.r_[np.zeros(own.n_obs), np.ones(len(other))], score):.3f}")
        image = np.asarray(Image.open(folder / "her2st" / f"{left}.jpg").convert("RGB"))
        for name, spoilt in {
            "blurred by 2 um": lambda i: np.stack([gaussian_filter(i[..., c], 2 / mpp) for c in range(3)], -1),
            "4 um per pixel and back": lambda i: resized(i, mpp, 4.0, back=True),
            "2 um per pixel and back": lambda i: resized(i, mpp, 2.0, back=True),
            "stained 1.5 times as dark": lambda i: restained(i, 1.5, 1.5),
            "stained 0.6 times as dark": lambda i: restained(i, 0.6, 0.6),
            "haematoxylin 1.6, eosin 0.7": lambda i: restained(i, 1.6, 0.7),
            "haematoxylin 0.6, eosin 1.4": lambda i: restained(i, 0.6, 1.4),
        }.items():
            path = Path(scratch) / "spoilt.png"
            Image.fromarray(spoilt(image)).save(path, compress_level=1)
            files = (folder / "her2st" / f"{left}.counts.tsv.gz", path, folder / "her2st" / f"{left}.spots.tsv")
            table = st.tl.predict(st.io.legacy_st(*files), model, shapes_key="spots", inplace=False)
            told = st._core.tables.read_provenance(table)["slide"]
            print(
                f"{left} {name}: {1 - table.obs.in_distribution.mean():.1%} of the tiles flagged, slide "
                f"{'like' if told['in_distribution'] else 'UNLIKE'} those of training (score {told['score']:.2f})"
            )


def _pixels(path: Path) -> NDArray:
    if path.suffix in (".svs", ".tif"):
        import tifffile

        with tifffile.TiffFile(path) as file:
            found = file.pages[0].asarray()
        return np.ascontiguousarray(
            (found if found.shape[-1] in (3, 4) else np.moveaxis(found, 0, -1))[..., :3], np.uint8
        )
    return np.asarray(Image.open(path).convert("RGB"))


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("cohorts", "her2st", "strange"))
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--n", type=int, default=60)
    given = parser.parse_args()
    if given.part == "cohorts":
        cohorts(given.n)
    else:
        {"her2st": her2st, "strange": strange}[given.part](given.folder)


if __name__ == "__main__":
    main()

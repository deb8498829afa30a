"""Compare what helps on an unseen donor, whose stain and scanner are others.

``python scripts/donor_study.py her2st FOLDER FOLDER_A`` reads sections C2-C5 of one patient and A1 of another
(Andersson et al. 2021; A1 at 3.19 um per pixel with spots in pixels of a 6954 px wide picture) and reduces C2-C5 to
the resolution of A1. Models are scored three ways: on each of C2-C5 by a model of the other three ("same"), on A1 by
a model of C2-C5, and on each of C2-C5 by a model of A1. Values are means over the 250 genes most counted on C2-C5:
the Pearson correlation over spots on log1p CP10k, and the same given the log library size.

``python scripts/donor_study.py toy`` trains on four synthetic donors and scores two others against noiseless
expression, as they are and with the stain and the light of their images changed further.

``--encoders`` and ``--treatments`` restrict what is compared.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

import stpred as st
from stpred import metrics
from stpred._image.appearance import jitter
from stpred.models import KernelRidge, Ridge
from stpred.tiles import Pyramid

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

MPP = 3.19
N_GENES = 250
C = ("C2", "C3", "C4", "C5")
A_WIDTH_PX = (2000, 6954)
"""Width of the picture of A1, and of the one that its spots are in pixels of."""

GIVEN, HALF = "log1p_cp10k_given_library", "log1p_cp10k_half_library"
STRONG = {"penalty": 4.0, "rank": 8}
TREATMENTS: dict[str, dict[str, Any]] = {
    "as is, features standardised per slide": {},
    "standardised over the training slides": {"config": {"standardize": "train"}},
    "macenko": {"method": "macenko"},
    "reinhard": {"method": "reinhard"},
    "moments": {"method": "moments"},
    "moments, standardised over training": {"method": "moments", "config": {"standardize": "train"}},
    "4 jittered views": {"views": {"n": 4, "strength": 0.4}},
    "moments and 4 jittered views": {"method": "moments", "views": {"n": 4, "strength": 0.4}},
    "rank 4": {"config": {"rank": 4}},
    "trained given the library size": {"target": GIVEN},
    "given the library size, rank 4": {"target": GIVEN, "config": {"rank": 4}},
    "kernel ridge": {"family": KernelRidge},
    "kernel ridge, half the library": {"family": KernelRidge, "target": HALF},
    "kernel ridge, given the library size": {"family": KernelRidge, "target": GIVEN},
    "strong kernel ridge": {"family": KernelRidge, "config": STRONG},
    "strong kernel ridge, half the library": {"family": KernelRidge, "target": HALF, "config": STRONG},
    "strong kernel ridge, given the library size": {"family": KernelRidge, "target": GIVEN, "config": STRONG},
}


def encoders(names: Iterable[str], mpp: float) -> dict[str, Callable[[Any], Any]]:
    """Return what makes each encoder at a resolution, averaged over views where these are given."""
    wide = st.TileSpec(mpp, max(32, round(205 / mpp)))
    made: dict[str, Callable[[Any], Any]] = {
        "colour": lambda views: st.encoders.get("colour", tile=st.TileSpec(mpp, round(112 / mpp)), views=views),
        "morphology": lambda views: st.encoders.get("morphology", tile=wide, views=views),
        "network": lambda views: st.encoders.get(
            "efficientnet-lite0", tile=wide, layers=(2, 3), pool="mean+std", views=views
        ),
    }
    scales = [st.TileSpec(mpp, max(32, round(um / mpp))) for um in (112, 448)]
    made["scales"] = lambda views: st.encoders.get(
        [made["colour"](views), made["morphology"](views)]
        + [st.encoders.get("morphology", tile=t, views=views) for t in scales]
    )
    made["colour+morphology"] = lambda views: st.encoders.get([made[n](views) for n in ("colour", "morphology")])
    made["all"] = lambda views: st.encoders.get([made[n](views) for n in ("colour", "morphology", "network")])
    return {name: made[name] for name in names}


def read_sections(folder: Path, folder_a: Path) -> dict[str, SpatialData]:
    """Read A1, and C2-C5 averaged to its resolution."""
    spots = pd.read_csv(folder_a / "A1.spots.tsv", sep="\t")
    spots[["pixel_x", "pixel_y"]] *= A_WIDTH_PX[0] / A_WIDTH_PX[1]
    slides = {"A1": st.io.legacy_st(folder_a / "A1.counts.tsv.gz", folder_a / "A1.png", spots)}
    for name in C:
        slide = st.io.legacy_st(folder / f"{name}.counts.tsv.gz", folder / f"{name}.jpg", folder / f"{name}.spots.tsv")
        slides[name] = reduced(slide, MPP)
    return slides


def reduced(slide: SpatialData, mpp: float) -> SpatialData:
    """Return a slide whose image was averaged over areas to a coarser resolution."""
    from PIL import Image
    from spatialdata import SpatialData as Object
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Scale

    x0, y0, x1, y1 = Pyramid.from_image(slide.images["he"]).bounds_um
    pixels = np.moveaxis(image_of(slide, "he"), 0, -1)
    size = round((x1 - x0) / mpp), round((y1 - y0) / mpp)
    small = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))
    place = Scale([(x1 - x0) / size[0], (y1 - y0) / size[1]], axes=("x", "y"))
    image = Image2DModel.parse(np.moveaxis(small, -1, 0), dims=("c", "y", "x"), transformations={"um": place})
    return Object(images={"he": image}, shapes=dict(slide.shapes), tables=dict(slide.tables))


def image_of(slide: SpatialData, key: str) -> NDArray[np.uint8]:
    """Return the (3, h, w) pixels of an image."""
    image = slide.images[key]
    return np.asarray((next(iter(image["scale0"].ds.values())) if hasattr(image, "children") else image).data)


def prepared(slides: Mapping[str, SpatialData], train: Iterable[str], method: str | None) -> dict[str, SpatialData]:
    """Return the slides, normalised to the colours of the training slides."""
    from spatialdata import SpatialData as Object

    if method is None:
        return dict(slides)
    reference = st.pp.stain_reference({s: slides[s] for s in train}, mpp=max(MPP, 1.0) if "A1" in slides else None)
    new = {s: Object(images=dict(d.images), shapes=dict(d.shapes), tables=dict(d.tables)) for s, d in slides.items()}
    for slide in new.values():
        st.pp.stain_normalize(slide, method=method, reference=reference, image_key="he")
    return new


def read(
    slides: Mapping[str, SpatialData],
    train: list[str],
    test: list[str],
    *,
    genes: list[str],
    encoder: Any,
    target: str | None = None,
    family: Any = Ridge,
    config: Mapping[str, Any] | None = None,
    truth: Callable[[SpatialData, Any], NDArray[Any]] | None = None,
) -> NDArray[np.float64]:
    """Train on some slides and return the mean scores (Pearson, given the library size) on others."""
    model = st.tl.train(
        {s: slides[s] for s in train}, family.Config(**(config or {})), genes=genes, encoder=encoder,
        shapes_key="spots", target=target, groups={s: s for s in train}, intervals=False,
    )  # fmt: skip
    scores = []
    for s in test:
        table = st.tl.predict(slides[s], model, shapes_key="spots", inplace=False)
        counts = slides[s].tables["spots_counts"][table.obs["instance_id"].to_numpy()]
        library = np.asarray(counts.X.sum(axis=1)).ravel()
        part = counts[:, table.var_names]
        expected = np.asarray(part.X.todense()) if truth is None else truth(slides[s], part)
        total = library if truth is None else expected.sum(axis=1)
        observed = np.log1p(1e4 * expected / total[:, None])
        found = metrics.pearson(table.X, observed), metrics.partial_pearson(table.X, observed, np.log(library))
        scores.append([np.nan_to_num(f).mean() for f in found])
    return np.mean(scores, axis=0)


def her2st(args: argparse.Namespace) -> None:
    """Print the table of HER2ST."""
    slides = read_sections(args.folder, args.folder_a)
    shared = set.intersection(*(set(s.tables["spots_counts"].var_names) for s in slides.values()))
    tables = [slides[s].tables["spots_counts"] for s in C]
    counted: pd.Series = sum(pd.Series(np.asarray(t.X.sum(axis=0)).ravel(), t.var_names) for t in tables)
    genes = [g for g in counted.dropna().sort_values(ascending=False, kind="stable").index if g in shared][:N_GENES]
    print(f"{'encoder':18s} {'treatment':42s} same        C -> A1     A1 -> C     seconds")
    for name, make in encoders(args.encoders, MPP).items():
        for treatment, options in chosen(args.treatments):
            start, (method, views, how) = time.perf_counter(), parted(options)
            how |= {"genes": genes, "encoder": make(views)}
            own, other = prepared(slides, C, method), prepared(slides, ["A1"], method)
            same = np.mean([read(own, [t for t in C if t != s], [s], **how) for s in C], axis=0)
            rows = [same, read(own, list(C), ["A1"], **how), read(other, ["A1"], list(C), **how)]
            shown = "   ".join(f"{a:.3f} {b:.3f}" for a, b in rows)
            print(f"{name:18s} {treatment:42s} {shown} {time.perf_counter() - start:7.0f}", flush=True)


def toy(args: argparse.Namespace) -> None:
    """Print the table of the synthetic cohort."""
    slides = st.datasets.toy_cohort(6, size_um=(1400, 1400), n_genes=120, mpp=1.0)
    names = list(slides)
    train, test = names[:4], names[4:]
    changed = [recoloured(slides[s], k) for k, s in enumerate(test)]
    slides |= {f"{s}, changed": new for s, new in zip(test, changed, strict=True)}
    genes = list(slides[names[0]].tables["spots_counts"].var_names[:80])
    print(f"{'encoder':18s} {'treatment':42s} unseen      stain changed  seconds")
    for name, make in encoders(args.encoders, 1.0).items():
        for treatment, options in chosen(args.treatments):
            start, (method, views, how) = time.perf_counter(), parted(options)
            how |= {"genes": genes, "encoder": make(views), "truth": noiseless}
            ready = prepared(slides, train, method)
            rows = [read(ready, train, part, **how) for part in (test, [f"{s}, changed" for s in test])]
            shown = "   ".join(f"{a:.3f} {b:.3f}" for a, b in rows)
            print(f"{name:18s} {treatment:42s} {shown} {time.perf_counter() - start:7.0f}", flush=True)


def noiseless(slide: SpatialData, part: Any) -> NDArray[Any]:
    """Return the expression that counts were drawn from."""
    return np.asarray(part.layers["expected"])


def recoloured(slide: SpatialData, seed: int) -> SpatialData:
    """Return a slide with another amount of each stain and another light."""
    from spatialdata import SpatialData as Object
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import get_transformation

    shift = jitter(2, strength=0.6, seed=seed)[1]
    pixels = shift(np.moveaxis(image_of(slide, "he"), 0, -1)[None])[0]
    place = dict(get_transformation(slide.images["he"], get_all=True))
    image = Image2DModel.parse(np.moveaxis(pixels, -1, 0), dims=("c", "y", "x"), transformations=place)
    return Object(images={"he": image}, shapes=dict(slide.shapes), tables=dict(slide.tables))


def chosen(names: Iterable[str] | None) -> list[tuple[str, dict[str, Any]]]:
    """Return the treatments whose names begin so."""
    return [(t, o) for t, o in TREATMENTS.items() if names is None or any(t.startswith(n) for n in names)]


def parted(options: Mapping[str, Any]) -> tuple[str | None, Any, dict[str, Any]]:
    """Return how images are normalised, the views, and what is left for `read`."""
    left = {k: v for k, v in options.items() if k not in ("method", "views")}
    return options.get("method"), options.get("views"), left


def main() -> None:
    """Run the study that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    studies = parser.add_subparsers(required=True)
    for study in (her2st, toy):
        sub = studies.add_parser(study.__name__)
        if study is her2st:
            sub.add_argument("folder", type=Path)
            sub.add_argument("folder_a", type=Path)
        sub.add_argument("--encoders", nargs="+", default=["colour", "morphology", "network", "colour+morphology"])
        sub.add_argument("--treatments", nargs="+")
        sub.set_defaults(run=study)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, st.settings.override(cache_dir=Path(folder)):
        args.run(args)


if __name__ == "__main__":
    main()

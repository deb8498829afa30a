"""What XFuse reaches, on tissue of known truth and on real sections.

``python scripts/xfuse_study.py subtypes`` trains on synthetic tissue whose three types alternate below the size of a
spot, and asks: which type is each pixel; which half of two merged spots has more of a gene; how often the stated
intervals hold at withheld spots; and what is predicted on a slide with nothing but an image.

``python scripts/xfuse_study.py her2st FOLDER`` trains on the sections C2-C4 of a tumour (Andersson et al. 2021) and
predicts C5 from its image, beside the mean and the colour baselines; then it withholds spots of C4 in training and asks
how often the stated intervals hold there. ``--test C4`` (C2, C3) leaves C5 out of everything and predicts C4 by
the others: what settings are chosen by. ``--image-alone`` gives the model no features of an encoder.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import stpred as st
from stpred import metrics
from stpred.datasets import toy_subtypes

if TYPE_CHECKING:
    from spatialdata import SpatialData

SMALL = st.TileSpec(mpp=8.0, size_px=64)
COARSE = st.TileSpec(mpp=16.0, size_px=96)
BASELINE = st.TileSpec(mpp=0.5, size_px=224)
MARKERS = 8


def subtypes(*, epochs: int, seed: int) -> None:
    """Run the synthetic study."""
    config = st.models.XFuse.Config(
        depth=3, width=12, metagenes=4, batch_size=2, lr=2e-3, epochs=epochs, features=False
    )  # its image has 4 um per pixel
    how: dict[str, Any] = {"tile": SMALL, "shapes_key": "spots", "seed": seed}
    slides = {f"s{k}": toy_subtypes(seed=10 * seed + k) for k in range(3)}
    genes = list(slides["s0"].tables["spots_counts"].var_names)
    start = time.time()
    model = st.tl.train({"s0": slides["s0"]}, config, genes=genes, **how)
    print(f"one slide of 400 spots, {epochs} epochs: {time.time() - start:.0f} s, {int(model.active.sum())} metagenes")
    print("AUROC of each type's markers, pixel by pixel:", _aurocs(slides["s0"], model))
    print("AUROC of the average of the nearest spot:    ", _naive(slides["s0"]))
    _halves(slides["s0"], config, genes, how)
    held = st.tl.withheld_spots(
        {"s0": slides["s0"]}, config, fraction=0.15, seed=seed, shapes_key="spots",
        train_options={"genes": genes, "tile": SMALL},
    )  # fmt: skip
    print("withheld spots:", _by_metric(held))
    left = slides.pop("s2")
    _unseen(slides, left, config, genes=genes, tile=SMALL)


def _aurocs(slide: SpatialData, model: Any) -> list[float]:
    """Return how well each type's share of the markers tells its pixels."""
    from sklearn.metrics import roc_auc_score
    from spatialdata import SpatialData

    kind = np.asarray(slide.labels["subtype"])[1::2, 1::2]
    with_all = SpatialData(images={"he": slide.images["he"]}, shapes={"all": _box(len(kind) * SMALL.mpp)})
    image = st.tl.predict_map(
        with_all, model, shapes_key="all", posterior=st.Posterior(normalize_scale=True), inplace=False
    )
    values = np.asarray(image["scale0"].image.data)[:, : len(kind), : len(kind)].reshape(len(image["scale0"].c), -1)
    share = values / values.sum(axis=0)
    parts = [share[MARKERS * k : MARKERS * (k + 1)].sum(axis=0) for k in range(3)]
    return [round(float(roc_auc_score(kind.ravel() == k + 1, part)), 3) for k, part in enumerate(parts)]


def _box(edge_um: float) -> Any:
    """Return shapes that cover the slide."""
    import geopandas as gpd
    import shapely
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    frame = gpd.GeoDataFrame(geometry=[shapely.box(0, 0, edge_um, edge_um)], index=["all"])
    return ShapesModel.parse(frame, transformations={"um": Identity()})


def _naive(slide: SpatialData) -> list[float]:
    """Return the same for the measured share of the nearest spot, of pixels in spots."""
    from scipy.spatial import cKDTree
    from sklearn.metrics import roc_auc_score

    table = slide.tables["spots_counts"]
    share = table.X.toarray() / np.asarray(table.X.sum(axis=1))
    kind = np.asarray(slide.labels["subtype"])[1::2, 1::2]
    points = (np.stack(np.meshgrid(*map(np.arange, kind.shape[::-1])), axis=-1).reshape(-1, 2) + 0.5) * SMALL.mpp
    away, near = cKDTree(table.obsm["spatial"]).query(points)
    inside = away <= 50
    parts = [share[near, MARKERS * k : MARKERS * (k + 1)].sum(axis=1) for k in range(3)]
    return [round(float(roc_auc_score(kind.ravel()[inside] == k + 1, p[inside])), 3) for k, p in enumerate(parts)]


def merged(slide: SpatialData) -> tuple[SpatialData, list[tuple[str, str]]]:
    """Return a slide whose neighbouring spots are measured together, two by two, and the pairs."""
    import anndata as ad
    import geopandas as gpd
    import shapely
    from scipy.sparse import csr_matrix
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel, TableModel
    from spatialdata.transformations import Identity

    table, spots = slide.tables["spots_counts"], slide.shapes["spots"]
    edge = int(len(spots) ** 0.5)
    first = np.array([r * edge + c for r in range(edge) for c in range(0, edge - 1, 2)])
    discs = shapely.buffer(spots.geometry.to_numpy(), spots["radius"].to_numpy(), quad_segs=16)
    both = [shapely.multipolygons([discs[i], discs[i + 1]]) for i in first]
    index = [f"pair{i}" for i in range(len(first))]
    counts = csr_matrix(table.X[first] + table.X[first + 1])
    obs = pd.DataFrame({"region": pd.Categorical(["spots"] * len(first)), "instance_id": index}, index=index)
    pairs = ad.AnnData(counts, obs=obs, var=table.var)
    shapes = gpd.GeoDataFrame({"n": 2}, geometry=both, index=index)
    made = SpatialData(
        images={"he": slide.images["he"]},
        shapes={"spots": ShapesModel.parse(shapes, transformations={"um": Identity()})},
        tables={"spots_counts": TableModel.parse(
            pairs, region="spots", region_key="region", instance_key="instance_id")},
    )  # fmt: skip
    return made, [(str(spots.index[i]), str(spots.index[i + 1])) for i in first]


def _halves(slide: SpatialData, config: Any, genes: list[str], how: dict[str, Any]) -> None:
    """Ask which half of merged spots has more of a gene."""
    coarse, pairs = merged(slide)
    model = st.tl.train({"s0": coarse}, config, genes=genes, **how)
    found = st.tl.differential_expression(slide, model, "spots", pairs=pairs, posterior=st.Posterior(20))
    table = slide.tables["spots_counts"]
    expected = pd.DataFrame(
        table.obsm["shares"] @ table.varm["profile"].T, index=table.obs["instance_id"], columns=genes
    )
    truth = np.log2(
        expected.to_numpy()[expected.index.get_indexer(found["first"]), expected.columns.get_indexer(found["gene"])]
        / expected.to_numpy()[expected.index.get_indexer(found["second"]), expected.columns.get_indexer(found["gene"])]
    )
    right = np.sign(found["log2_fold_change"]) == np.sign(truth)
    stated = found["credible"].to_numpy()
    markers = found["gene"].str.startswith("TYPE").to_numpy()
    print(f"halves of {len(pairs)} merged spots: {stated.mean():.0%} of {len(found)} differences are stated with 95 % "
          f"credibility, {right[stated].mean():.1%} of these have the right sign ({right[stated & markers].mean():.1%} "
          f"of the markers'), {right.mean():.1%} of all")  # fmt: skip


def _unseen(
    slides: dict[str, SpatialData], left: SpatialData, config: Any, *, genes: Any, tile: st.TileSpec, seed: int = 0
) -> None:
    """Train on slides, predict another from its image, and print what the baselines give."""
    rows = []
    measured = left.tables["spots_counts"]
    for model in ("mean", "intensity", "colour", config):
        start = time.process_time()
        own: dict[str, Any] = {"tile": BASELINE} if isinstance(model, str) else {"tile": tile}
        target = "counts" if isinstance(model, str) else None
        trained = st.tl.train(slides, model, genes=genes, shapes_key="spots", target=target, seed=seed, **own)
        table = st.tl.predict(left, trained, shapes_key="spots", inplace=False)
        at = measured.obs["instance_id"].astype(str).tolist()
        truth = measured[[at.index(str(i)) for i in table.obs["instance_id"]], table.var_names].X.toarray()
        rows.append([trained.family, *_means(table.X, truth), round(time.process_time() - start)])
    print(
        pd.DataFrame(rows, columns=["model", "pearson", "r2", "pearson of shares", "CPU seconds"]).to_string(
            index=False
        )
    )


def _means(predicted: NDArray[np.float32], truth: NDArray[np.float32]) -> list[float]:
    shares = [np.log1p(1e4 * v / np.maximum(v.sum(axis=1, keepdims=True), 1e-9)) for v in (predicted, truth)]
    scores = (metrics.pearson(predicted, truth), metrics.r2(predicted, truth), metrics.pearson(*shares))
    return [float(np.round(np.nanmean(s), 3)) if np.isfinite(s).any() else float("nan") for s in scores]


def her2st(folder: Path, *, epochs: int, seed: int, test: str, features: bool) -> None:
    """Train on C2-C4 and predict C5, the 100 genes of highest mean count; then withhold spots of C4."""
    slides = {
        s: st.io.legacy_st(folder / f"{s}.counts.tsv.gz", folder / f"{s}.jpg", folder / f"{s}.spots.tsv")
        for s in sorted({"C2", "C3", "C4", test})
    }
    left = slides.pop(test)
    config = st.models.XFuse.Config(metagenes=10, epochs=epochs, features=features)
    rule = st.GeneRule("mean", n=100)
    _unseen(slides, left, config, genes=rule, tile=COARSE, seed=seed)
    if test != "C5":
        return
    start = time.process_time()
    held = st.tl.withheld_spots(slides, config, fraction=0.15, seed=seed, train_options={"genes": rule, "tile": COARSE})
    held = held[held["slide"] == "C4"]
    print(f"withheld spots of C4 ({time.process_time() - start:.0f} s of CPU):", _by_metric(held))


def _by_metric(scores: pd.DataFrame) -> dict[str, float]:
    return scores.groupby("metric")["value"].mean().round(3).to_dict()  # type: ignore[no-any-return]


if __name__ == "__main__":
    st.settings.max_upsampling = float("inf")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("subtypes", "her2st"))
    parser.add_argument("folder", type=Path, nargs="?", help="of HER2ST's C2-C5")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test", choices=("C2", "C3", "C4", "C5"), default="C5")
    parser.add_argument("--image-alone", action="store_true")
    given = parser.parse_args()
    if given.what == "subtypes":
        subtypes(epochs=given.epochs or 40, seed=given.seed)
    else:
        her2st(given.folder, epochs=given.epochs or 8, seed=given.seed, test=given.test, features=not given.image_alone)

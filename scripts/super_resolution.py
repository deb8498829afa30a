"""Compare maps of 8 um with the truth on synthetic tissue, or with a teacher's spots on HER2ST.

``python scripts/super_resolution.py toy`` trains on the spots of four synthetic donors whose sections were sequenced to
different depths, and scores maps of an unseen donor against its noiseless expression in squares of 8 um.

``python scripts/super_resolution.py her2st FOLDER`` distils on three of the sections C2-C5 (Andersson et al. 2021),
maps the fourth at 8 um, averages the map over each spot, and compares the scores with the teacher's own. It does so
for patches of tiles of 112 um and for patches by a tile of 16 um of their own (``--patches``), says how much of a
patch's prediction comes from what is around it, and whether markers are high in the kind of tissue that should hold
them: places are told apart by colour alone, without looking at the map. ``--teacher`` names other teachers.

Figures go into the folder that ``--figures`` names.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from PIL import Image
from scipy.interpolate import griddata
from scipy.ndimage import binary_opening, uniform_filter
from scipy.stats import mannwhitneyu

import stpred as st
from stpred import metrics
from stpred._image.stain import optical_density, unmix
from stpred.models import MLP, KernelRidge, Student
from stpred.tiles import Pyramid

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

DEPTHS = (1.0, 0.5, 0.2, 0.08, 1.0)
"""Share of its molecules that each donor's spots keep."""

BINS = "bins_008um"
SHOWN = ("EPCAM", "COL1A2", "PTPRC")

TISSUE = {
    "tumour clumps": ("tumour", ["EPCAM", "KRT19"]),
    "stroma": ("stroma", ["COL1A1", "COL3A1"]),
    "muscle": ("muscle", ["TAGLN", "MYL9"]),
    "fat": ("fat", ["PLIN1", "FABP4"]),
    "vessels": ("", ["VWF", "PECAM1"]),
}
"""Kinds of tissue, what :func:`tissue_kinds` calls them if it knows them, and two markers of each."""

SHOWN_ON_TISSUE = ("EPCAM", "KRT19", "COL1A1", "COL3A1", "VWF", "PECAM1")
WINDOW_UM = 800.0
WINDOWS_UM = ((3300.0, 1900.0), (1000.0, 2200.0))
"""Corners of the windows of C5 that are drawn."""


def thinned(sdata: SpatialData, share: float, *, seed: int) -> None:
    """Keep a share of the molecules of the spots, drawn at random."""
    table = sdata.tables["spots_counts"]
    counts = table.X.copy()
    counts.data = np.random.default_rng(seed).binomial(counts.data.astype(int), share).astype(np.int32)
    counts.eliminate_zeros()
    table.X = counts


def log_share(expected: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return log1p CP10k of noiseless expression."""
    totals = expected.sum(axis=1, keepdims=True)
    return np.log1p(1e4 * expected / np.maximum(totals, 1e-9)).astype(np.float32)


def with_truth(sdata: SpatialData) -> SpatialData:
    """Return the object with the noiseless expression of the bins (a hundredth of a count being one) as counts."""
    from scipy.sparse import csr_matrix
    from spatialdata import SpatialData as Object

    table = sdata.tables[f"{BINS}_counts"].copy()
    table.X = csr_matrix(np.rint(100 * table.layers["expected"]).astype(np.int32))
    return Object(images=dict(sdata.images), shapes={BINS: sdata.shapes[BINS]}, tables={f"{BINS}_counts": table})


def interpolated(sdata: SpatialData, table: Any, points_um: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the values of spots between them: linear, and of the nearest beyond the outermost."""
    xy = table.obsm["spatial"]
    inside, nearest = (griddata(xy, table.X, points_um, method=m) for m in ("linear", "nearest"))
    return np.where(np.isfinite(inside), inside, nearest).astype(np.float32)


def toy(figures: Path | None, *, size_um: float, n_genes: int) -> None:
    """Print median and mean Pearson over genes of each map against the truth at 8 um."""
    start = time.perf_counter()
    slides = st.datasets.toy_cohort(len(DEPTHS), size_um=(size_um, size_um), n_genes=n_genes, bin_um=8)
    for k, (sdata, share) in enumerate(zip(slides.values(), DEPTHS, strict=True)):
        thinned(sdata, share, seed=k)
    *names, left = slides
    train, unseen = {s: slides[s] for s in names}, slides[left]
    bins = unseen.tables[f"{BINS}_counts"]
    expected = bins.layers["expected"]
    there = expected.sum(axis=1) > 1e-6
    truth = log_share(expected)
    genes = list(bins.var_names)
    maps: dict[str, NDArray[np.float32]] = {}

    def told(name: str, values: NDArray[np.float32]) -> None:
        maps[name] = values
        r = metrics.pearson(values[there], truth[there])
        print(f"{name:55s} {np.nanmedian(r):.3f} {np.nanmean(r):.3f}  {time.perf_counter() - start:5.0f} s", flush=True)

    def at_8um(model: Any) -> NDArray[np.float32]:
        found = st.tl.predict(unseen, model, shapes_key=BINS, inplace=False)
        return found[[str(i) for i in bins.obs["instance_id"]]].X if found.n_obs == bins.n_obs else _filled(found, bins)

    common: dict[str, Any] = {"genes": genes, "shapes_key": "spots"}
    config = Student.Config(hidden=(1024, 512), epochs=30)  # the published widths
    ridge = st.tl.train(train, "ridge", encoder="morphology", **common)
    spots = st.tl.predict(unseen, ridge, shapes_key="spots", inplace=False)
    told("ridge on spots, interpolated", interpolated(unseen, spots, bins.obsm["spatial"]))
    told("student on raw counts (naive)", at_8um(st.tl.train(train, config, target="counts", **common)))
    told("student on log1p CP10k", at_8um(st.tl.train(train, config, **common)))
    for share in (0.0, 0.5):
        model = st.tl.distill(train, "ridge", config, measured_fraction=share, teacher_encoder="morphology", **common)
        told(f"student distilled from ridge, measured_fraction={share:g}", at_8um(model))
    whole = {s: with_truth(sdata) for s, sdata in train.items()}
    fine = st.tl.train(whole, Student.Config(hidden=(1024, 512), epochs=4), genes=genes, shapes_key=BINS)
    told("student trained on the noiseless truth at 8 um", at_8um(fine))
    if figures is not None:
        _draw_toy(unseen, bins.obsm["spatial"], {"truth": truth, **maps}, genes, figures / "super_resolution_toy.png")


def _filled(found: Any, bins: Any) -> NDArray[np.float32]:
    """Return predictions in the order of the bins, NaN where there is none."""
    rows = found.obs_names.get_indexer([str(i) for i in bins.obs["instance_id"]])
    out = np.full((bins.n_obs, found.n_vars), np.nan, dtype=np.float32)
    out[rows >= 0] = found.X[rows[rows >= 0]]
    return out


def _draw_toy(
    sdata: SpatialData, xy: NDArray[np.float64], maps: Mapping[str, Any], genes: list[str], path: Path
) -> None:
    import matplotlib.pyplot as plt

    shown = {
        "truth at 8 um": maps["truth"],
        "ridge on spots, interpolated": maps["ridge on spots, interpolated"],
        "student, 8 um": maps["student on log1p CP10k"],
        "distilled student, 8 um": maps["student distilled from ridge, measured_fraction=0"],
    }
    figure, axes = plt.subplots(
        len(SHOWN), 1 + len(shown), figsize=(2.6 * (1 + len(shown)), 2.7 * len(SHOWN)), layout="constrained"
    )
    image = np.asarray(sdata.images["he"]["scale0"].ds["image"]).transpose(1, 2, 0)
    extent = (0, image.shape[1] / 2, image.shape[0] / 2, 0)
    column, row = np.floor(xy / 8).astype(int).T
    for k, gene in enumerate(SHOWN):
        axes[k, 0].imshow(image, extent=extent)
        axes[k, 0].set_ylabel(gene)
        for ax, (name, values) in zip(axes[k, 1:], shown.items(), strict=True):
            plane = np.full((row.max() + 1, column.max() + 1), np.nan)
            plane[row, column] = values[:, genes.index(gene)]
            low, high = np.nanquantile(plane, (0.02, 0.98))
            ax.imshow(plane, extent=(0, 8 * plane.shape[1], 8 * plane.shape[0], 0), vmin=low, vmax=high)
            if k == 0:
                ax.set_title(name, fontsize=9)
        for ax in axes[k]:
            ax.set(xlim=(0, extent[1]), ylim=(extent[2], 0), xticks=[], yticks=[], aspect="equal")
    axes[0, 0].set_title("H&E; bar: 200 um", fontsize=9)
    axes[0, 0].plot([extent[1] - 240, extent[1] - 40], [extent[2] - 40] * 2, color="black", lw=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def patches(name: str) -> tuple[Any, dict[str, Any]]:
    """Return the encoder of patches, and the student's settings that belong to it.

    ``"tiles"``: patches of tiles of 112 um by "morphology", which look up to 24 um around; ``"isolated"``: each patch
    by a tile of 16 um of its own, of "morphology", colour and, if installed, shallow layers of EfficientNet-Lite0.
    """
    if name == "tiles":
        return "morphology", {}
    tile = st.TileSpec(0.5, 32)
    members = [st.encoders.get("morphology", tile=tile), st.encoders.get("colour", tile=st.TileSpec(0.5, 16))]
    if name == "isolated" and "efficientnet-lite0" in st.encoders.list():
        members.append(st.encoders.get("efficientnet-lite0", tile=tile, layers=(1, 2), pool="mean+std"))
    return st.encoders.get(members), {"isolated": True}


def teachers() -> dict[str, Any]:
    """Return the teachers by name; all but two see the neighbours within 520 um, the others tiles alone."""
    return {
        "kernel_ridge": KernelRidge.Config(context_um=520.0),
        "auto": "auto",
        "ridge": "ridge",
        "mlp": MLP.Config(hidden=(256,), input_dropout=0.5, dropout=0.5, lr=1e-3, weight_decay=1e-2, epochs=40),
    }


def genes_of(slides: Mapping[str, SpatialData], n: int = 250) -> tuple[list[str], list[str]]:
    """Return the genes of highest mean count on the training sections, and the markers of `TISSUE` among the others."""
    tables = [s.tables["spots_counts"] for s in slides.values()]
    counted: Any = sum(pd.Series(np.asarray(t.X.sum(axis=0)).ravel(), t.var_names) for t in tables)
    counted = counted.dropna().sort_values(ascending=False, kind="stable")
    genes = list(counted.index[:n])
    markers = [g for _, found in TISSUE.values() for g in found if counted.get(g, 0) > 0 and g not in genes]
    return genes, markers


def over_spots(fine: Any, parent: Any, spots: Any) -> Any:
    """Return the table of spots with the mean of the squares in each."""
    ids, member = np.unique(parent, return_inverse=True)
    mean = np.zeros((len(ids), fine.n_vars))
    np.add.at(mean, member, fine.X)
    mean /= np.bincount(member)[:, None]
    at = {i: k for k, i in enumerate(ids)}
    table = spots.copy()
    table.X = mean[[at[i] for i in table.obs["instance_id"]]].astype(np.float32)
    return table


def tissue_kinds(sdata: SpatialData, xy: NDArray[np.float64], *, pixel_um: float = 2.0) -> NDArray[Any]:
    """Return what a place looks like within 48 um, by rules of colour alone: "tumour", "stroma", "muscle", "fat" or "".

    Nuclei are where haematoxylin is above Otsu's threshold of the tissue, glass where hardly any light is absorbed.
    What is not glass is, in tumour, nuclei to a share of the highest fifth of places; in stroma, of the lowest third,
    with hardly any glass; in muscle the same, and eosin is of the highest fifth of these. Fat: more than half is glass,
    in holes of 30 um and more, but less than half within 200 um.
    """
    from skimage.filters import threshold_otsu

    pyramid = Pyramid.from_image(sdata.images["he"])
    x0, y0, x1, y1 = pyramid.bounds_um
    image = sdata.images["he"]
    pixels = (
        np.asarray(next(iter(image["scale0"].ds.values())).data) if hasattr(image, "children") else image.to_numpy()
    )
    size = round((x1 - x0) / pixel_um), round((y1 - y0) / pixel_um)
    small = np.asarray(Image.fromarray(np.moveaxis(pixels, 0, -1)).resize(size, Image.Resampling.BOX))
    channels = optical_density(small)
    haematoxylin, eosin = unmix(channels)[:2]
    glass = channels.mean(axis=0) < 0.08
    nuclei = haematoxylin > threshold_otsu(haematoxylin[~glass])
    holes = binary_opening(glass, np.ones((round(30 / pixel_um),) * 2))
    width = round(48 / pixel_um)
    at = tuple(np.clip(((xy - (x0, y0)) / pixel_um).astype(int), 0, np.array(size) - 1).T[::-1])
    share = {k: uniform_filter(v.astype(np.float32), width)[at] for k, v in
             {"nuclei": nuclei, "glass": glass, "holes": holes, "eosin": eosin}.items()}  # fmt: skip
    around = uniform_filter(holes.astype(np.float32), round(200 / pixel_um))[at]
    solid = np.maximum(1 - share["glass"], 1e-3)
    tissue, full = share["glass"] < 0.6, share["glass"] < 0.15
    dense, pink = share["nuclei"] / solid, share["eosin"] / solid
    kind = np.full(len(xy), "", dtype=object)
    kind[tissue & (dense > np.quantile(dense[tissue], 0.8))] = "tumour"
    pale = full & (dense < np.quantile(dense[tissue], 1 / 3))
    kind[pale] = "stroma"
    kind[pale & (pink > np.quantile(pink[pale], 0.8))] = "muscle"
    kind[(share["holes"] > 0.5) & (around < 0.5)] = "fat"
    return kind


def prevailing(sdata: SpatialData, kind: NDArray[Any]) -> NDArray[Any]:
    """Return the kind that two fifths or more of a predicted spot's squares are of, or nothing."""
    found = pd.crosstab(sdata.shapes["fine"]["parent"].to_numpy(), kind, normalize="index").drop(columns="")
    best = found.idxmax(axis=1).where(found.max(axis=1) >= 0.4, "")
    return best.reindex(sdata.tables["teacher"].obs["instance_id"]).fillna("").to_numpy()


def measured_like(sdata: SpatialData) -> Any:
    """Return the measured log1p CP10k of the spots and genes that the teacher predicted."""
    table, like = sdata.tables["spots_counts"], sdata.tables["teacher"]
    rows = pd.Index(table.obs["instance_id"]).get_indexer(like.obs["instance_id"])
    counts = np.asarray(table.X.todense(), dtype=np.float64)[rows]
    found = like.copy()
    shares = counts[:, table.var_names.get_indexer(like.var_names)] / counts.sum(axis=1, keepdims=True)
    found.X = np.log1p(1e4 * shares).astype(np.float32)
    return found


def print_regions(name: str, values: Any, kind: NDArray[Any]) -> None:
    """Print the AUROC of each kind's markers against all other kinds."""
    shown = []
    for kept, markers in TISSUE.values():
        for gene in (g for g in markers if kept and g in values.var_names):
            inside, beside = kind == kept, (kind != kept) & (kind != "")
            if not inside.any() or not beside.any():
                continue
            score = np.asarray(values[:, gene].X, dtype=float).ravel()
            wins = mannwhitneyu(score[inside], score[beside]).statistic
            shown.append(f"{kept} {gene} {wins / (inside.sum() * beside.sum()):.2f}")
    print(f"    {name}: {'; '.join(shown)}", flush=True)


def her2st(
    folder: Path,
    figures: Path | None,
    *,
    left_out: list[str],
    share: float,
    chosen: list[str],
    teacher_encoder: str,
    described: list[str],
) -> None:
    """Leave out one section at a time; print mean Pearson of teacher, and of the map averaged over each spot.

    Scores are of the 250 genes of highest mean count. `change` is the median over genes of
    :func:`stpred.tl.surroundings`, with all but the patch painted over and with all but the 16 um around its centre.
    """
    names = ("C2", "C3", "C4", "C5")
    slides = {
        s: st.io.legacy_st(folder / f"{s}.counts.tsv.gz", folder / f"{s}.jpg", folder / f"{s}.spots.tsv") for s in names
    }
    student = {"hidden": (256,), "input_dropout": 0.3, "dropout": 0.5, "epochs": 60, "batch_size": 64}
    for left in left_out:
        train = {s: slides[s] for s in names if s != left}
        unseen = slides[left]
        st.pp.subdivide(unseen, "spots", size_um=8, key_added="fine")
        genes, markers = genes_of(train)
        kind = tissue_kinds(
            unseen, np.column_stack([unseen.shapes["fine"].centroid.x, unseen.shapes["fine"].centroid.y])
        )
        print(f"{left}: squares of 8 um that look like", dict(pd.Series(kind).value_counts()), flush=True)
        for called in chosen:
            teacher, encoder = teachers()[called], teacher_encoder
            taught = st.tl.train(train, teacher, genes=[*genes, *markers], shapes_key="spots", encoder=encoder)
            st.tl.predict(unseen, taught, shapes_key="spots", key_added="teacher")
            measured = measured_like(unseen)
            print_regions("AUROC among spots, of the measurement", measured, prevailing(unseen, kind))
            print_regions("AUROC among spots, of the teacher", unseen.tables["teacher"], prevailing(unseen, kind))
            for patch in described:
                start = time.process_time()
                seen, settings = patches(patch)
                model = st.tl.distill(
                    train, teacher, Student.Config(**student, **settings), genes=[*genes, *markers],
                    shapes_key="spots", measured_fraction=share, teacher_encoder=encoder, encoder=seen,
                )  # fmt: skip
                fine = st.tl.predict(unseen, model, shapes_key="fine", inplace=False)
                parent = unseen.shapes["fine"].loc[fine.obs["instance_id"], "parent"].to_numpy()
                unseen.tables["map"] = over_spots(fine, parent, unseen.tables["teacher"])
                scores = {k: st.tl.compare(unseen, k, "spots_counts")["pearson"] for k in ("teacher", "map")}
                r = {k: float(np.nan_to_num(v[genes]).mean()) for k, v in scores.items()}
                epcam = {k: float(v.get("EPCAM", np.nan)) for k, v in scores.items()}
                change = [
                    st.tl.surroundings(unseen, model, n_patches=300, keep_um=k)["change"].median() for k in (None, 16.0)
                ]
                print(
                    f"{left}, {called}, {patch}: teacher {r['teacher']:.3f}, map over spots {r['map']:.3f} "
                    f"(EPCAM {epcam['teacher']:.2f}, {epcam['map']:.2f}); change without what is around a patch "
                    f"{change[0]:.2f}, beyond 16 um {change[1]:.2f}; {time.process_time() - start:.0f} s of CPU",
                    flush=True,
                )
                rows = unseen.shapes["fine"].index.get_indexer(fine.obs["instance_id"])
                print_regions("AUROC among squares", fine, kind[rows])
                print_regions("AUROC among spots, of the map", unseen.tables["map"], prevailing(unseen, kind))
                if figures is not None and called == chosen[0] and left == left_out[0]:
                    draw_windows(unseen, model, figures / f"her2st_{left}_{patch}.png")
                    if patch == "tiles":
                        st.tl.predict_map(unseen, model, genes=["EPCAM"], key_added="epcam_map")
                        for name, image in (("with_photograph", True), ("map", False)):
                            path = figures / f"her2st_epcam_{name}.png"
                            st.pl.raster(unseen, "epcam_map", "EPCAM", with_image=image, save=path)


def draw_windows(sdata: SpatialData, model: Any, path: Path) -> None:
    """Draw maps of 8 um of `SHOWN_ON_TISSUE` in two windows of the section (`WINDOWS_UM`), beside the H&E and alone."""
    import geopandas as gpd
    import matplotlib.pyplot as plt
    import shapely
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    genes = [g for g in SHOWN_ON_TISSUE if g in model.record.genes]
    pyramid = Pyramid.from_image(sdata.images["he"])
    boxes = [shapely.box(x, y, x + WINDOW_UM, y + WINDOW_UM) for x, y in WINDOWS_UM]
    frame = gpd.GeoDataFrame(geometry=boxes)
    sdata.shapes["windows"] = ShapesModel.parse(frame, transformations={"um": Identity()})
    st.pp.subdivide(sdata, "windows", size_um=8, key_added="window_squares")
    found = st.tl.predict(sdata, model, shapes_key="window_squares", genes=genes, inplace=False)
    parent = sdata.shapes["window_squares"].loc[found.obs["instance_id"], "parent"].to_numpy()
    figure, axes = plt.subplots(
        len(boxes),
        1 + len(genes),
        figsize=(3 * (1 + len(genes)), 3.1 * len(boxes)),
        layout="constrained",
        squeeze=False,
    )
    limits = np.quantile(found[:, genes].X, (0.02, 0.98), axis=0)
    for k, (x, y) in enumerate(WINDOWS_UM):
        centre = np.array([[x + WINDOW_UM / 2, y + WINDOW_UM / 2]])
        tile = next(iter(pyramid.read(centre, st.TileSpec(1.0, round(WINDOW_UM)))))[1][0]
        axes[k, 0].imshow(tile, extent=(x, x + WINDOW_UM, y + WINDOW_UM, y))
        rows = np.flatnonzero(parent == k)
        column, row = np.floor((found.obsm["spatial"][rows] - (x, y)) / 8).astype(int).T
        for j, gene in enumerate(genes):
            plane = np.full((row.max() + 1, column.max() + 1), np.nan)
            plane[row, column] = np.asarray(found[rows, gene].X).ravel()
            axes[k, j + 1].imshow(plane, vmin=limits[0, j], vmax=limits[1, j])
            axes[k, j + 1].set_title(gene, fontsize=9)
    for ax in axes.ravel():
        ax.set(xticks=[], yticks=[])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    for ax in axes[:, 0]:
        ax.remove()
    figure.savefig(path.with_name(f"{path.stem}_map.png"), dpi=110)  # what may be published: no photograph
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("what", choices=("toy", "her2st"))
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--figures", type=Path)
    parser.add_argument("--left-out", nargs="+", default=["C5", "C2", "C3", "C4"])
    parser.add_argument("--measured-fraction", type=float, default=0.5)
    parser.add_argument(
        "--teacher", nargs="+", default=["kernel_ridge"], choices=list(teachers()), help="of her2st; several are tried"
    )
    parser.add_argument("--encoder", default="imagenet-multiscale", help="through which the teacher sees tiles")
    parser.add_argument(
        "--patches", nargs="+", default=["tiles", "isolated"], choices=["tiles", "isolated"],
        help="of her2st: patches of tiles of 112 um, or by tiles of 16 um of their own",
    )  # fmt: skip
    parser.add_argument("--size-um", type=float, default=1000.0)
    parser.add_argument("--n-genes", type=int, default=100)
    given = parser.parse_args()
    if given.what == "toy":
        toy(given.figures, size_um=given.size_um, n_genes=given.n_genes)
    else:
        her2st(
            given.folder, given.figures, left_out=given.left_out, share=given.measured_fraction, chosen=given.teacher,
            teacher_encoder=given.encoder, described=given.patches,
        )  # fmt: skip

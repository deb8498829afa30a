"""See the spots of a folder of slides through their nuclei: how well cells predict spots, and which cells are picked.

    python scripts/her2st_cells.py ../shared/data/her2st --out cells
    python scripts/her2st_cells.py ../shared/data/her2st --out cells --steps ablation --near-um 50
    python scripts/her2st_cells.py --toy docs/images/gallery_toy.png

Nuclei are found on each slide, an encoder is pretrained on their crops (without expression, so on all slides), and one
slide at a time is left out. What takes long is kept in the folder `--out`; called again it goes on from there.
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

import stpred as st
from stpred import data
from stpred._core.places import Place
from stpred.models import MLP, DeepSpot2Cell, Ridge, SCellST

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

GENTLE = st.encoders.Augmentation(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05, scale=(0.8, 1), erase=0)
SHOWN = ["EPCAM", "COL1A2", "PTPRC"]
RELATED = ["KRT8", "KRT18", "KRT19", "COL1A1", "COL3A1", "CD74", "CD3E", "TRBC2"]
SHAPE = ["area_um2", "eccentricity", "haematoxylin"]
TOP = 200


COMMON = {"lr": 1e-3, "weight_decay": 1e-2, "max_epochs": 80}
RELATIVE = {"loss": "pearson", "batch_size": 1024}


def small(**given: Any) -> SCellST.Config:
    """Return sCellST for a few hundred spots: one hidden layer, heavy dropout, a higher learning rate."""
    return SCellST.Config(**({"hidden": (128,), "dropout": 0.5, **COMMON} | given))


def through_cells(epochs: int | None) -> dict[str, Any]:
    """Return the settings of sCellST that are compared on each encoder."""
    fixed, relative = {"epochs": epochs}, {"epochs": None if epochs is None else 2 * epochs, **RELATIVE}
    return {
        "scellst": small(**fixed),
        "scellst, loss pearson": small(**relative),
        "scellst, sum": small(pool="sum", **fixed),
        "scellst, attention": small(pool="attention", **fixed),
        "scellst, cells within 30 um": small(context_um=30.0, **fixed),
        "scellst, cells within 60 um": small(context_um=60.0, **fixed),
    }


def on_tiles(epochs: int | None) -> dict[str, Any]:
    """Return what cells are compared with: tiles of 112 um."""
    fixed = {"epochs": None if epochs is None else 2 * epochs, "input_dropout": 0.5, "dropout": 0.5}
    mlp = MLP.Config(hidden=(256,), **fixed, **COMMON, **RELATIVE)
    return {"ridge on tiles": Ridge.Config(), "mlp on tiles, loss pearson": mlp}


def both(epochs: int | None) -> dict[str, Any]:
    """Return the family that sees cells together with their spot's tile and the tiles around."""
    config = DeepSpot2Cell.Config(
        width=128, n_phi=2, n_rho=2, phi_dropout=0.5, rho_dropout=0.5, epochs=epochs, **COMMON
    )
    return {"deepspot2cell": config}


def add_nuclei(
    slides: Mapping[str, SpatialData], folder: Path, *, near_um: float | None, method: str | None = None
) -> None:
    """Find the nuclei of each slide, or take those of an earlier run, print what they are like, and keep those near."""
    import geopandas as gpd
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    folder.mkdir(parents=True, exist_ok=True)
    for name, sdata in slides.items():
        kept, start = folder / f"{name}.parquet", time.perf_counter()
        spots = data.read_region(sdata, Place(shapes_key="spots"), slide=name)
        if kept.is_file():
            frame = gpd.read_parquet(kept)
            sdata.shapes["nuclei"] = ShapesModel.parse(frame, transformations={"um": Identity()})
        else:
            st.pp.nuclei(sdata, min_area_um2=12.0, **({} if method is None else {"method": method}))
            frame = sdata.shapes["nuclei"].copy()
            frame.attrs = {}  # their place, which GeoParquet would write and cannot
            frame.to_parquet(kept)
        seconds = time.perf_counter() - start
        st.pp.tissue(sdata)
        seen = data.with_cells(spots, cells_key="nuclei")
        counts = seen.cells.links.counts()  # type: ignore[union-attr]
        area_mm2 = sdata.shapes["tissue"].area.sum() / 1e6
        low, middle, high = np.quantile(counts, (0.05, 0.5, 0.95))
        print(
            f"{name}: {len(frame)} nuclei, {len(frame) / area_mm2:.0f} per mm2 of {area_mm2:.1f} mm2 tissue, median "
            f"{frame['area_um2'].median():.1f} um2; {len(counts) / len(spots.coords_um):.1%} of {len(spots.coords_um)} "
            f"spots hold a cell, median {middle:.0f} cells (5-95 %: {low:.0f}-{high:.0f}); {seconds:.0f} s",
            flush=True,
        )
        if near_um is not None:  # what no spot sees needs no features
            centres = np.column_stack([frame.geometry.centroid.x, frame.geometry.centroid.y])
            near = np.unique(st.links.radius(spots.coords_um, centres, radius_um=near_um).indices)
            frame = frame.iloc[near]
            frame.attrs = {}
            sdata.shapes["nuclei"] = ShapesModel.parse(frame, transformations={"um": Identity()})
            print(f"    {len(frame)} within {near_um:g} um of the centre of a spot", flush=True)


def pretrained(slides: Mapping[str, SpatialData], folder: Path, given: argparse.Namespace) -> Any:
    """Return the encoder of the slides' own nuclei: the one in the folder, or a new one."""
    if (folder / "encoder").is_dir():
        encoder, seconds = st.encoders.load(folder / "encoder"), 0.0
    else:
        start = time.perf_counter()
        method = st.encoders.MoCo(
            epochs=given.epochs,
            batch_size=128,
            lr=1e-3,
            optimizer="adamw",
            temperature=0.2,
            momentum=0.9,
            hidden=512,
            augmentation=GENTLE,
        )
        with st.settings.override(checkpoint_dir=folder / "pretraining"):
            encoder = st.tl.pretrain_encoder(
                slides,
                given.backbone,
                method,
                shapes_key="nuclei",
                tile=st.TileSpec(0.5, given.tile_px),
                n_tiles=given.n_tiles,
                device="cpu",
            )
        seconds = time.perf_counter() - start
        st.encoders.save(encoder, folder / "encoder")
    print(f"encoder: {encoder.card.source}; {seconds:.0f} s", encoder.record["check"], flush=True)
    return encoder


def compare(slides: Mapping[str, SpatialData], encoder: Any, folder: Path, given: argparse.Namespace) -> None:
    """Leave out one slide at a time and print the mean Pearson over genes, all on the spots that hold a nucleus."""
    cells, tiles = through_cells(given.spot_epochs), on_tiles(given.spot_epochs)
    runs = {"morphology": ("morphology", tiles | cells | both(given.spot_epochs))}
    if encoder is not None:
        runs["pretrained"] = (encoder, cells)
    for called, (used, models) in runs.items():
        parts = []
        for name, config in models.items():
            if given.only and name not in given.only:
                continue
            start = time.perf_counter()
            # One that sees cells goes along in each call (its folds are kept), so that all have the same spots.
            with st.settings.override(checkpoint_dir=folder / f"scores_{called}"):
                scores = st.tl.cross_validate(
                    slides,
                    {name: config, "scellst": cells["scellst"]},
                    groups="slide",
                    cells_key="nuclei",
                    shapes_key="spots",
                    encoder=used,
                    device="cpu",
                )
            scores = scores[scores.model.isin([name, "library_size"])]
            table = by_slide(scores)
            print_row(called, name, table.loc[name], time.perf_counter() - start)
            parts.append(scores)
        if parts:
            print_row(called, "library size alone", table.loc["library_size"], 0.0)
            pd.concat(parts).to_csv(folder / f"scores_{called}.csv", index=False)


def by_slide(scores: pd.DataFrame) -> pd.DataFrame:
    """Return mean Pearson per model and slide; a gene that a model does not tell apart counts as 0."""
    pearson = scores[scores.metric == "pearson"].assign(value=lambda d: d.value.fillna(0.0))
    return pearson.groupby(["model", "slide"]).value.mean().unstack()


def print_row(encoder: str, model: str, row: pd.Series, seconds: float) -> None:
    """Print one line of the table."""
    values = " ".join(f"{v:.3f}" for v in row)
    print(f"{encoder:11s} {model:30s} {values} mean {row.mean():.4f} {seconds:.0f} s", flush=True)


def ablation(slides: Mapping[str, SpatialData], given: argparse.Namespace) -> None:
    """Print the table of settings, once for each nuclei finder, and keep it."""
    from cell_ablation import ablate

    parts = []
    for finder in given.finders:
        where = given.out / ("nuclei" if finder == "builtin" else f"nuclei_{finder}")
        add_nuclei(slides, where, near_um=given.near_um, method=finder)
        networks = not given.without_networks
        parts.append(ablate(slides, finder, networks=networks, epochs=given.spot_epochs or 40))
        pd.concat(parts).to_csv(given.out / "ablation.csv")


def show(
    slides: Mapping[str, SpatialData], called: str, config: Any, encoder: Any, folder: Path, given: argparse.Namespace
) -> None:
    """Predict the nuclei of a slide from the others, draw those of the highest values, and print their shape."""
    left_out = given.left_out
    learned = {name: sdata for name, sdata in slides.items() if name != left_out}
    genes = expressed(learned)
    model = st.tl.train(
        learned, config, genes=genes, shapes_key="spots", cells_key="nuclei",
        encoder=encoder, device="cpu",
    )  # fmt: skip
    sdata = slides[left_out]
    st.tl.predict(sdata, model, shapes_key="nuclei", key_added="cells", encoder=encoder, device="cpu")
    table = sdata.tables["cells"]
    table.layers["z"] = standardised(table)
    shown = [g for g in SHOWN if g in table.var_names]
    st.pl.gallery(sdata, "cells", color=shown, layer="z", n=12, save=folder / f"gallery_{called}.png")
    nuclei = sdata.shapes["nuclei"].loc[table.obs["instance_id"], SHAPE]
    usable = table.obs["in_distribution"].to_numpy()
    rows = {f"all {usable.sum()} nuclei": nuclei[usable].mean()}
    for gene in [g for g in [*SHOWN, *RELATED] if g in table.var_names]:
        z = np.where(usable, table[:, gene].layers["z"].ravel(), -np.inf)
        rows[f"top {TOP} of {gene}"] = nuclei.iloc[np.argsort(-z, kind="stable")[:TOP]].mean()
    print(f"{called}, cells of {left_out} by a model of the others; cv_pearson of spots:")
    print(table.var.loc[[g for g in [*SHOWN, *RELATED] if g in table.var_names], ["cv_pearson"]].round(3).T.to_string())
    print(pd.DataFrame(rows).T.round(3).to_string(), flush=True)


def expressed(slides: Mapping[str, SpatialData], n: int = 250) -> list[str]:
    """Return the genes of highest mean count, and the markers that are measured."""
    tables = [sdata.tables["spots_counts"] for sdata in slides.values()]
    common = sorted(set.intersection(*(set(t.var_names) for t in tables)))
    mean = pd.Series(sum(np.asarray(t[:, common].X.sum(axis=0)).ravel() for t in tables), index=common)
    highest = mean.sort_values(ascending=False, kind="stable").index[:n]
    return list(dict.fromkeys([*highest, *(g for g in [*SHOWN, *RELATED] if mean.get(g, 0) >= 10)]))


def standardised(table: AnnData) -> Any:
    """Return each gene's values over the cells in standard deviations from its mean."""
    values = np.asarray(table.X, dtype=np.float64)
    spread = values.std(axis=0)
    return ((values - values.mean(axis=0)) / np.where(spread > 0, spread, 1.0)).astype(np.float32)


def toy(path: Path) -> None:
    """Draw the gallery of a synthetic slide whose donor was not trained on: the picture of the documentation."""
    slides = st.datasets.toy_cohort(3, mpp=0.25, n_genes=60)
    learned = {name: slides[name] for name in ("donor0", "donor1")}
    model = st.tl.train(learned, small(epochs=100), shapes_key="spots", cells_key="cells", device="cpu")
    unseen = slides["donor2"]
    st.tl.predict(unseen, model, shapes_key="cells", key_added="predicted", device="cpu")
    table = unseen.tables["predicted"]
    table.layers["z"] = standardised(table)
    figure = st.pl.gallery(unseen, "predicted", color=SHOWN, layer="z", n=8)[0, 0].figure
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=900 / figure.get_figwidth())
    Image.open(path).convert("RGB").quantize(96).save(path, optimize=True)  # a third of the size, to the eye the same
    types = unseen.tables["cells_counts"].obs.set_index("instance_id")["type"].loc[table.obs["instance_id"]]
    for gene in SHOWN:
        best = np.argsort(-table[:, gene].layers["z"].ravel(), kind="stable")[:50]
        print(gene, "types of the 50 highest:", types.iloc[best].value_counts().loc[lambda n: n > 0].to_dict())
    print("types of all:", types.value_counts().to_dict())


def main() -> None:
    """Run the steps that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slides", type=Path, nargs="?")
    parser.add_argument("--out", type=Path, default=Path("her2st_cells"))
    parser.add_argument("--steps", nargs="*", default=["encoder", "compare", "gallery"])
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--finders", nargs="*", default=["builtin"], help="of nuclei, for the step ablation")
    parser.add_argument("--without-networks", action="store_true", help="ablation without stpred[imagenet]")
    parser.add_argument("--near-um", type=float, help="keep nuclei within this distance of a spot's centre")
    parser.add_argument("--left-out", default="C4")
    parser.add_argument(
        "--spot-epochs", type=int, help="passes over the spots; else chosen inside, at four times the cost"
    )
    parser.add_argument("--backbone", default="test_resnet")
    parser.add_argument("--tile-px", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--n-tiles", type=int, default=3000)
    parser.add_argument("--toy", type=Path, help="draw the synthetic gallery to this file, and nothing else")
    given = parser.parse_args()
    if given.toy is not None:
        toy(given.toy)
        return
    if given.slides is None:
        parser.error("name a folder of slides, or --toy FILE")
    st.settings.cache_dir = given.out / "features"
    slides, _ = st.io.read_cohort([given.slides])
    if "ablation" in given.steps:
        ablation(slides, given)
    if given.steps == ["ablation"]:
        return
    add_nuclei(slides, given.out / "nuclei", near_um=given.near_um)
    encoder = pretrained(slides, given.out, given) if "encoder" in given.steps else None
    start = time.perf_counter()
    crops = st.encoders.get(st.encoders.get("cells-multiscale").members[:2])  # of 24 and 48 um
    for sdata in slides.values():  # once for all settings: what a model asks for differs, the nuclei do not
        for used in (crops, encoder):
            if used is not None:
                st.pp.features(sdata, used, shapes_key="nuclei", device="cpu")
    print(f"features of all nuclei: {time.perf_counter() - start:.0f} s", flush=True)
    if "compare" in given.steps:
        compare(slides, encoder, given.out, given)
    if "gallery" in given.steps:
        show(slides, "crops_and_tiles", SCellST.Config(), None, given.out, given)
        show(slides, "morphology", small(epochs=given.spot_epochs), None, given.out, given)
        if encoder is not None:
            show(slides, "pretrained", small(epochs=given.spot_epochs), encoder, given.out, given)


if __name__ == "__main__":
    main()

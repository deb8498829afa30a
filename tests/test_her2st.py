"""The real-data test: HER2-positive breast cancer, sections C2-C5 of one donor, one left out at a time."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from scipy.ndimage import gaussian_filter, maximum_filter
from spatialdata import SpatialData

import stpred as st
from stpred.tiles import Pyramid

pytestmark = [pytest.mark.realdata, pytest.mark.slow]


@pytest.fixture(scope="module")
def slides(real_data: Path) -> dict[str, SpatialData]:
    slides, _ = st.io.read_cohort([real_data / "her2st"])
    assert sorted(slides) == ["C2", "C3", "C4", "C5"]
    for sdata in slides.values():  # once, for all that is trained below
        st.pp.features(sdata, shapes_key="spots")
    return slides


@pytest.fixture(scope="module")
def scores(slides: dict[str, SpatialData]) -> pd.DataFrame:
    pitch = 200.0
    grid = [st.models.Ridge.Config(context_um=c, block_weights="equal") for c in (None, 2.6 * pitch)]
    network = st.models.MLP.Config(
        hidden=(256,),
        context_um=2.6 * pitch,
        loss="pearson",
        input_dropout=0.5,
        dropout=0.5,
        lr=1e-3,
        weight_decay=1e-2,
        batch_size=1024,
        max_epochs=40,
    )
    kernel = st.models.KernelRidge.Config(context_um=2.6 * pitch, block_weights="equal")
    models = {"tile": "ridge", "neighbours": grid[1], "best": grid, "any": [grid[1], network], "kernel": kernel}
    return st.tl.cross_validate(slides, models, groups="slide", genes=st.GeneRule("mean", n=250), shapes_key="spots")


def mean_pearson(scores: pd.DataFrame, model: str) -> float:
    chosen = scores[(scores["model"] == model) & (scores["metric"] == "pearson")]
    return float(chosen.assign(value=chosen["value"].fillna(0.0)).groupby("slide")["value"].mean().mean())


def test_the_tile_alone(scores: pd.DataFrame) -> None:
    assert mean_pearson(scores, "tile") >= 0.315


def test_the_best_setting_chosen_inside_the_training_sections(scores: pd.DataFrame) -> None:
    assert mean_pearson(scores, "best") >= 0.315
    assert scores.loc[scores["model"] == "best", "chosen"].str.contains("context_um").all()


def test_the_best_family_chosen_inside_beats_ridge_with_neighbour_means(scores: pd.DataFrame) -> None:
    best, ridge = mean_pearson(scores, "any"), mean_pearson(scores, "neighbours")
    assert ridge >= 0.32
    assert best >= ridge + 0.01
    assert scores.loc[scores["model"] == "any", "chosen"].str.contains("family=").all()


def test_kernel_ridge_on_tiles_of_two_sizes(scores: pd.DataFrame) -> None:
    assert mean_pearson(scores, "kernel") >= 0.35


def test_library_size_alone_is_reported_and_labelled(scores: pd.DataFrame) -> None:
    # About 0.13 on the log scale, as a direct computation on these sections gives.
    assert mean_pearson(scores, "library_size") == pytest.approx(0.132, abs=0.005)
    assert scores["donor_shared"].all()
    assert (scores.groupby("slide")["gene"].nunique() >= 245).all()


def test_another_section_looks_like_training_and_another_tissue_does_not(
    slides: dict[str, SpatialData], real_data: Path, tmp_path: Path
) -> None:
    import tifffile
    from PIL import Image

    train = {s: slides[s] for s in ("C2", "C3", "C4")}
    config = st.models.Ridge.Config(standardize="train")
    model = st.tl.train(train, config, genes=st.GeneRule("mean", n=100), shapes_key="spots")
    own = st.tl.predict(slides["C5"], model, shapes_key="spots", inplace=False)
    assert own.obs["in_distribution"].mean() >= 0.85
    with tifffile.TiffFile(real_data / "wsi" / "CMU-1-Small-Region.svs") as file:
        pixels = Image.fromarray(file.pages[0].asarray()[:1600, :1600, :3])
    mpp = float(np.mean(list(model.record.training["mpp"].values())))
    pixels.resize([round(e * 0.499 / mpp) for e in pixels.size], Image.Resampling.LANCZOS).save(tmp_path / "cmu.png")
    other = st.io.wsi(tmp_path / "cmu.png", mpp=mpp)
    st.pp.tissue(other)
    st.pp.grid(other, pitch_um=100.0)
    with pytest.warns(UserWarning, match="are out of distribution for"):
        found = st.tl.predict(other, model, shapes_key="grid", inplace=False)
    higher = found.obs["ood_score"].to_numpy()[:, None] > own.obs["ood_score"].to_numpy()
    assert higher.mean() >= 0.9  # the area under the curve
    assert found.obs["in_distribution"].mean() < 0.1
    # Its intervals come from the three sections, each left out.
    slides["C5"].tables["unseen"] = own
    covered = st.tl.coverage(slides["C5"], "unseen", "spots_counts").groupby("level")["coverage"].mean()
    del slides["C5"].tables["unseen"]
    assert 0.85 <= covered[0.9] <= 0.97


def test_a_slide_that_is_too_coarse_is_refused(slides: dict[str, SpatialData], real_data: Path) -> None:
    train = {s: slides[s] for s in ("C2", "C3")}
    model = st.tl.train(train, genes=["EPCAM", "COL1A2"], shapes_key="spots")
    base = real_data / "mob"
    coarse = st.io.legacy_st(base / "MOB1.tsv", base / "MOB1.jpg", base / "alignment_table_MOB1.tsv", pitch_um=150)
    with pytest.raises(st._core.checks.InputError, match="coarse|resolution"):
        st.tl.predict(coarse, model, shapes_key="spots")


def dark_places(sdata: SpatialData) -> gpd.GeoDataFrame:
    """Return discs where haematoxylin peaks in the spots: cells as cheap as can be, for `pp.nuclei` takes minutes."""
    pyramid = Pyramid.from_image(sdata.images["he"], coordinate_system="um")
    spots, tile = sdata.tables["spots_counts"].obsm["spatial"], st.TileSpec(0.7, 144)
    found = []
    for rows, images in pyramid.read(spots, tile):
        for row, image in zip(rows, images, strict=True):
            density = gaussian_filter(-np.log((image[..., 0] + 1.0) / 256), 2.0)
            peak = (density == maximum_filter(density, 17)) & (density > np.quantile(density, 0.8))
            offsets = (np.argwhere(peak)[:, ::-1] + 0.5 - tile.size_px / 2) * tile.mpp
            found.append(spots[row] + offsets[np.linalg.norm(offsets, axis=1) < 49.0])
    return gpd.GeoDataFrame(geometry=shapely.buffer(shapely.points(np.concatenate(found)), 3.0))


def test_spots_through_their_cells(slides: dict[str, SpatialData]) -> None:
    pair = {name: slides[name] for name in ("C3", "C4")}
    for sdata in pair.values():
        st.pp.add_cells(sdata, dark_places(sdata).iloc[::2], units="um")
        assert len(sdata.shapes["nuclei"]) > 5 * len(sdata.shapes["spots"])
    # 0.27 here; with the builtin nuclei and three sections to train on 0.27 to 0.28, beside 0.29 of ridge on tiles.
    config = st.models.SCellST.Config(hidden=(128,), dropout=0.5, lr=1e-3, weight_decay=1e-2, epochs=30)
    scores = st.tl.cross_validate(
        pair, {"cells": config}, groups="slide", shapes_key="spots", cells_key="nuclei", device="cpu"
    )
    assert mean_pearson(scores, "cells") >= 0.22
    assert mean_pearson(scores, "cells") >= mean_pearson(scores, "library_size") + 0.05

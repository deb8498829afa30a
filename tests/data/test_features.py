"""Features by tile, sub-tile and patch, with and without the cache on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

import stpred as st
from stpred import data
from stpred._core.places import Place
from stpred.encoders import EncoderCard
from stpred.encoders.modules import TorchEncoder

if TYPE_CHECKING:
    from spatialdata import SpatialData


@pytest.fixture(scope="module")
def slide() -> SpatialData:
    return st.datasets.toy(size_um=(500, 500), n_genes=10)


def patches() -> TorchEncoder:
    """Mean colour of a tile, and of each of its 4 x 4 patches as dense tokens."""

    def dense(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(x, 4).flatten(2).transpose(1, 2)

    card = EncoderCard("patches", st.TileSpec(1.0, 32), width=0)
    return TorchEncoder(torch.nn.Linear(1, 1), card=card, forward=lambda x: x.mean(dim=(2, 3)), dense=dense)


@pytest.mark.parametrize("cached", [False, True])
def test_dense_tokens_are_the_patches_of_the_tile(
    slide: SpatialData, cached: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cached:
        monkeypatch.setattr(st.settings, "cache_dir", tmp_path)
    encoder = patches()
    region = data.read_region(slide, Place(shapes_key="spots")).take(np.arange(6))
    tokens = data.embed_dense(region, encoder, region.coords_um)
    assert tokens.shape == (6, 4, 4, 3)
    assert tokens.dtype == (np.float16 if cached else np.float32)
    tiles = data.embed(region, encoder, region.coords_um)
    np.testing.assert_allclose(tokens.mean(axis=(1, 2)), tiles, atol=2e-3)
    if cached:
        assert len(list(tmp_path.glob("*.npy"))) == 2  # tiles and patches are never taken for each other
        again = data.embed_dense(region, encoder, region.coords_um)
        assert np.array_equal(again, tokens)


def test_the_cache_never_gives_another_image_encoder_tile_or_place(
    slide: SpatialData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stpred import encoders

    monkeypatch.setattr(st.settings, "cache_dir", tmp_path)
    region = data.read_region(slide, Place(shapes_key="spots")).take(np.arange(4))
    other = data.read_region(st.datasets.toy(size_um=(500, 500), n_genes=10, seed=3), Place(shapes_key="spots"))
    colour = encoders.get("intensity")
    data.embed(region, colour, region.coords_um)
    data.embed(region, colour, region.coords_um + 1.0)
    data.embed(region, encoders.get("intensity", tile=st.TileSpec(1.0, 64)), region.coords_um)
    data.embed_parts(region, colour, region.coords_um, parts=2)
    data.embed(other, colour, region.coords_um)
    assert len(list(tmp_path.glob("*.npy"))) == 5


def test_training_from_the_cache_gives_the_same_model_again(
    slide: SpatialData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(st.settings, "cache_dir", tmp_path)
    config = st.models.DeepSpot.Config(width=8, n_phi=2, n_rho=2, parts=2, epochs=2)
    first = st.tl.train(slide, config, genes=["EPCAM"], shapes_key="spots")
    second = st.tl.train(slide, config, genes=["EPCAM"], shapes_key="spots")
    assert first.id == second.id
    assert len(list(tmp_path.glob("*.npy"))) == 2  # tiles and sub-tiles


def test_progress_names_the_slide_its_locations_and_encoders(
    slide: SpatialData, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """One line for encoders of one name at two widths; what is counted are locations, however many tiles each has."""
    from stpred._core import progress

    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    region = data.read_region(slide, Place(shapes_key="spots"))
    wide = st.encoders.get("intensity", tile=st.TileSpec(2.0, 224))
    with progress.lines():
        data.embed(region, st.encoders.get(["intensity", wide]), region.coords_um)
    last = capsys.readouterr().err.splitlines()[-1]
    n = len(region.coords_um)
    assert last.startswith(
        f"{region.slide}, spots: features of intensity at 112 and 448 um: {n} of {n} locations (100%)"
    )

"""Where metagenes are and what they raise, by a model whose metagenes and pixels are set by hand."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import shapely
import spatialdata
import torch
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel
from spatialdata.transformations import Identity, Scale, set_transformation
from torch import Tensor, nn

import stpred as st
from stpred import InputError, Posterior, encoders
from stpred._core.elements import scale0
from stpred.data._readers import pixels
from stpred.models.base import Record
from stpred.models.xfuse.model import XFuse
from stpred.models.xfuse.posterior import Draws
from stpred.tl._generative.metagenes import described, metagenes

MPP, EDGE_UM = 8.0, 256
TILE = st.TileSpec(mpp=MPP, size_px=16)
GENES = ["EPCAM", "HLA/B", "epcam", "COL1A1"]


class Picture(nn.Module):
    """The latents are the image itself, and a little noise."""

    def forward(self, image: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [(image, torch.full_like(image, 0.1))]


class First(nn.Module):
    def forward(self, latents: list[Tensor]) -> Tensor:
        return latents[0]


class Known(XFuse):
    """The first metagene is of the dark, the second of the bright, the third everywhere; red says how much there is."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.guide, self.decoder = Picture(), First()  # type: ignore[assignment]

    def mixture(self, h: Tensor) -> tuple[Tensor, Tensor]:
        x = h[:, 1].flatten()
        return torch.stack([-2 * x, 2 * x, torch.zeros_like(x)], dim=1), 2.0 + h[:, 0].flatten()


@pytest.fixture
def model() -> Known:
    """A model that uses metagenes 0, 2 and 3 of four."""
    config = XFuse.Config(depth=2, width=4, metagenes=4, max_metagenes=4, epochs=1)
    model = Known(config, n_features=pixels.DESCRIBED, n_genes=len(GENES))
    card = encoders.get("pixels", tile=TILE).card
    model.record = Record("known", GENES, encoder=card.to_dict(), tile=asdict(TILE), target="counts")
    model.active[1] = False
    with torch.no_grad():
        model.profile_mean.copy_(torch.arange(16.0).reshape(4, 4))
        model.profile_log_std.copy_(-torch.arange(16.0).reshape(4, 4))
    return model


def polygons(boxes: list[tuple[float, ...]]) -> gpd.GeoDataFrame:
    element = ShapesModel.parse(gpd.GeoDataFrame(geometry=[shapely.box(*b) for b in boxes]))
    set_transformation(element, Identity(), "um")
    return element


@pytest.fixture
def slide() -> SpatialData:
    """Smooth colours under squares of 16 um, and the area that they cover."""
    y, x = np.mgrid[:64, :64] / 63
    image = Image2DModel.parse(np.stack([40 + 180 * y, 40 + 180 * x, 90 + 0 * x]).astype(np.uint8), dims="cyx")
    set_transformation(image, Scale([4.0, 4.0], axes=("x", "y")), "um")
    boxes = [(x, y, x + 16, y + 16) for y in range(32, 224, 16) for x in range(32, 208, 16)]
    return SpatialData(
        images={"he": image}, shapes={"squares": polygons(boxes), "area": polygons([(32, 32, 208, 224)])}
    )


def test_table_tells_shares_scale_and_profiles(slide: SpatialData, model: Known) -> None:
    metagenes(slide, model, shapes_key="squares")
    table = slide.tables["squares_known_metagenes"]
    assert table.var_names.tolist() == ["metagene0", "metagene2", "metagene3"]
    assert table.X.dtype == np.float32
    np.testing.assert_allclose(table.X.sum(axis=1), 1, atol=1e-6)
    x, y = ((table.obsm["spatial"] - 126) / 252).T
    colour = 0.9 * 2 * x  # what the scaled pixels are about, from -0.9 to 0.9
    by_hand = np.exp(np.stack([-2 * colour, 2 * colour, 0 * colour], axis=1))
    by_hand /= by_hand.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(table.X, by_hand, atol=0.05)
    np.testing.assert_allclose(table.obs["scale"], 2 + 1.8 * y, atol=0.1)
    assert (table.layers["std"] > 0.001).all()  # of the noise
    assert (table.layers["std"] < 0.1).all()
    weights = table.obs["scale"].to_numpy()[:, None]  # squares are of one size
    np.testing.assert_allclose(table.var["share"], (table.X * weights).sum(axis=0) / weights.sum(), atol=1e-3)
    used = [0, 2, 3]
    np.testing.assert_array_equal(table.varm["profile"], np.arange(16.0).reshape(4, 4)[used])
    np.testing.assert_allclose(table.varm["profile_std"], np.exp(-np.arange(16.0)).reshape(4, 4)[used], rtol=1e-6)
    facts = json.loads(table.uns["stpred"])
    assert (facts["kind"], facts["genes"], facts["model"]) == ("metagenes", GENES, "known")
    assert facts["readout"]["n_samples"] == 10
    assert facts["left_out"]["no_pixel"] == 0


@pytest.mark.parametrize("at_once", [2**16, 40])
def test_kernel_and_parts(slide: SpatialData, model: Known, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """Whatever is read at a time, and in whichever order, a square's values stay."""
    whole = metagenes(slide, model, shapes_key="squares", inplace=False)
    monkeypatch.setattr("stpred.data._readers.pixels.MAX_TARGETS", at_once)
    slide.shapes["turned"] = slide.shapes["squares"].iloc[::-1]
    parts = metagenes(slide, model, shapes_key="turned", inplace=False)
    assert list(slide.tables) == []
    np.testing.assert_allclose(whole.X, parts.X[::-1], atol=1e-6)
    np.testing.assert_allclose(whole.obs["scale"], parts.obs["scale"][::-1], rtol=1e-6)
    np.testing.assert_allclose(whole.var["share"], parts.var["share"], rtol=1e-6)


def test_draws_are_described_by_hand() -> None:
    sums = torch.tensor([[[1.0, 3.0], [0.0, 0.0], [2.0, 2.0]], [[2.0, 2.0], [0.0, 0.0], [0.0, 8.0]]])
    none = torch.zeros(2, 1)
    mean, std, scale = described(
        Draws(sums, torch.tensor([8.0, 0.0, 2.0]), torch.zeros(2, 2, 1), none, none, Posterior(n_samples=2))
    )
    np.testing.assert_allclose(mean, [[0.375, 0.625], [np.nan, np.nan], [0.25, 0.75]])
    np.testing.assert_allclose(std, [[0.125, 0.125], [np.nan, np.nan], [0.25, 0.25]])
    np.testing.assert_allclose(scale, [0.5, np.nan, 3.0])


def test_table_survives_the_store(slide: SpatialData, model: Known, tmp_path: Path) -> None:
    metagenes(slide, model, shapes_key="squares", posterior=Posterior(2))
    slide.write(tmp_path / "slide.zarr")
    old, new = (s.tables["squares_known_metagenes"] for s in (slide, spatialdata.read_zarr(tmp_path / "slide.zarr")))
    assert old.uns["stpred"] == new.uns["stpred"]
    for name in ("profile", "profile_std"):
        np.testing.assert_array_equal(old.varm[name], new.varm[name])
    np.testing.assert_array_equal(old.X, new.X)
    np.testing.assert_array_equal(old.layers["std"], new.layers["std"])
    assert new.uns["spatialdata_attrs"]["region"] == "squares"


def test_map_agrees_with_the_table_on_its_pixels(slide: SpatialData, model: Known, tmp_path: Path) -> None:
    table = metagenes(slide, model, shapes_key="squares", posterior=Posterior(3), inplace=False)
    metagenes(slide, model, shapes_key="area", raster=True, resolution_um=16, posterior=Posterior(3))
    image = slide.images["area_known_metagenes_map"]
    values = np.asarray(scale0(image))
    assert scale0(image).coords["c"].to_numpy().tolist() == table.var_names.tolist()
    inside = values[:, np.isfinite(values[0])]
    np.testing.assert_allclose(inside.T, table.X, atol=1e-5)
    facts = json.loads(slide.attrs["stpred"]["area_known_metagenes_map"])
    assert (facts["kind"], facts["genes"], facts["resolution_um"]) == ("metagenes", GENES, 16)
    written = metagenes(slide, model, shapes_key="area", raster=True, resolution_um=16, posterior=Posterior(3),
                        out=tmp_path / "maps.zarr", inplace=False)  # fmt: skip
    np.testing.assert_array_equal(np.asarray(scale0(written)), values)
    finest = metagenes(slide, model, shapes_key="area", raster=True, posterior=Posterior(2), inplace=False)
    assert scale0(finest).shape[1:] == (192 // 8, 176 // 8)  # the model's own pixels


def test_name_and_region(slide: SpatialData, model: Known) -> None:
    with pytest.raises(InputError, match="name one with `shapes_key`"):
        metagenes(slide, model)
    model.record.region = "squares"
    metagenes(slide, model, key_added="mine", posterior=Posterior(2))
    with pytest.warns(UserWarning, match="'mine' existed"):
        metagenes(slide, model, key_added="mine", posterior=Posterior(2))
    assert list(slide.tables) == ["mine"]


def test_one_metagene_is_everything(slide: SpatialData, model: Known) -> None:
    model.active[2:] = False
    shared = model.mixture
    model.mixture = lambda h: (shared(h)[0][:, :1], shared(h)[1])  # type: ignore[method-assign]
    table = metagenes(slide, model, shapes_key="squares", posterior=Posterior(2), inplace=False)
    assert table.var_names.tolist() == ["metagene0"]
    np.testing.assert_array_equal(table.X, 1)
    np.testing.assert_array_equal(table.layers["std"], 0)


def test_shapes_without_a_pixel_are_left_out(slide: SpatialData, model: Known) -> None:
    slide.shapes["odd"] = polygons([(64, 64, 128, 128), (70, 2.9, 130, 2.95), (128, 64, 192, 128)])
    table = metagenes(slide, model, shapes_key="odd", posterior=Posterior(2), inplace=False)
    assert table.obs["instance_id"].tolist() == [0, 2]
    assert json.loads(table.uns["stpred"])["left_out"] == {"off_image": 0, "no_pixel": 1}
    slide.shapes["bars"] = polygons([(70, 2.5, 130, 3.5), (64, 64, 128, 128)])  # narrow, but not too narrow
    assert metagenes(slide, model, shapes_key="bars", posterior=Posterior(2), inplace=False).n_obs == 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"shapes_key": "nothing"}, "No shapes element named 'nothing'"),
        ({"posterior": 3}, "`posterior` must be a stpred.Posterior"),
        ({"resolution_um": 8}, "pass raster=True"),
        ({"out": "maps.zarr"}, "pass raster=True"),
        ({"key_added": "a/b"}, "`key_added` must be"),
        ({"key_added": "area"}, "is the name of the element"),
        ({"image_key": "other"}, "No image named 'other'"),
    ],
)
def test_bad_input(slide: SpatialData, model: Known, given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        metagenes(slide, model, **({"shapes_key": "squares"} | given))
    assert list(slide.tables) == []


def test_models_without_a_posterior_are_refused(
    slide: SpatialData, model: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(XFuse.Config, "generative", False)
    with pytest.raises(InputError, match="no posterior to draw from"):
        metagenes(slide, model)

"""Tokens with a tile each: what they see ends where that tile ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
from shapely import Point
from spatialdata import SpatialData

import stpred as st
from stpred import InputError, data
from stpred._core.places import Place
from stpred.data._readers.tokens import token_batch, token_width_um
from stpred.models import Needs, Student
from stpred.testing import add_shapes, picture_slide

SIDE = 256
NEEDS = Needs(tokens=True, isolated=True, token_um=8.0)


def colours() -> Any:
    """Mean and spread of the colours of a tile of 16 um beside those of one of 10 um: their extents differ."""
    wide, narrow = (st.encoders.get("colour", tile=st.TileSpec(1.0, px)) for px in (16, 10))
    return st.encoders.get([wide, narrow])


@pytest.fixture(scope="module")
def slide() -> SpatialData:
    """Noise, with three discs on it."""
    pixels = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3)).astype(np.uint8)
    made = picture_slide(pixels)
    places = [Point(60.0, 70.0), Point(130.5, 121.0), Point(180.0, 181.0)]
    add_shapes(made, "spots", gpd.GeoDataFrame({"radius": [20.0, 30.0, 3.0]}, geometry=places))
    return made


def test_a_token_is_the_tile_around_its_centre(slide: SpatialData) -> None:
    region = data.read_region(slide, Place(shapes_key="spots"))
    batch = token_batch(region, colours(), NEEDS)
    assert batch.parts is not None
    assert batch.blocks == (6, 6)
    image = slide.images["he"]
    pixels = np.asarray(image["scale0"].ds["image"] if hasattr(image, "children") else image).transpose(1, 2, 0)
    for k, (x, y) in enumerate(region.coords_um[:2]):
        radius = slide.shapes["spots"].radius.iloc[k]
        columns, rows = np.meshgrid(np.arange(SIDE // 8), np.arange(SIDE // 8))
        fine = (np.arange(8) + 0.5) / 8
        share = np.zeros(columns.shape)
        for a in fine:
            for b in fine:
                share += ((columns + a) * 8 - x) ** 2 + ((rows + b) * 8 - y) ** 2 <= radius**2
        centred = ((columns + 0.5) * 8 - x) ** 2 + ((rows + 0.5) * 8 - y) ** 2 <= radius**2
        weight = (share if 2 * radius < 6 * 8 else centred) / (share if 2 * radius < 6 * 8 else centred).sum()
        want = 0.0
        for j, i in zip(*np.nonzero(weight), strict=True):
            cx, cy = i * 8 + 4, j * 8 + 4
            seen = [pixels[cy - h : cy + h, cx - h : cx + h].reshape(-1, 3) for h in (8, 5)]
            want = want + weight[j, i] * np.concatenate([s.mean(axis=0) for s in seen])
        mine = slice(batch.parts.indptr[k], batch.parts.indptr[k + 1])
        found = batch.parts.weights[mine] @ batch.features[batch.parts.indices[mine]]
        np.testing.assert_allclose(found[[0, 1, 2, 6, 7, 8]], want, rtol=1e-4)


def test_settings_that_cannot_be_are_refused(slide: SpatialData) -> None:
    region = data.read_region(slide, Place(shapes_key="spots"))
    with pytest.raises(InputError, match="wider than the tile of 10 um"):
        token_batch(region, colours(), Needs(tokens=True, isolated=True, token_um=12.0))
    with pytest.raises(InputError, match="have a tile each"):
        token_batch(region, colours(), NEEDS, stride_um=8.0)
    assert token_width_um(colours(), Needs(tokens=True, isolated=True)) == 8.0


def test_nothing_beyond_the_tile_has_a_part_in_a_patch(tmp_path: Path) -> None:
    slides = st.datasets.toy_cohort(2, size_um=(300, 300), n_genes=6, bin_um=8)
    encoder = st.encoders.get("colour", tile=st.TileSpec(0.5, 32))
    config = Student.Config(hidden=(8,), epochs=2, isolated=True)
    model = st.tl.train(slides["donor0"], config, genes="all", shapes_key="spots", encoder=encoder)
    assert model.record.training["token_um"] == model.support_um == 8
    st.models.save(model, tmp_path / "model")
    again = st.models.load(tmp_path / "model")
    assert again.config.isolated
    unseen = slides["donor1"]
    one, two = (st.tl.predict(unseen, m, shapes_key="bins_008um", inplace=False) for m in (model, again))
    np.testing.assert_array_equal(one.X, two.X)
    patch = st.tl.surroundings(unseen, again, n_patches=40)
    tile = st.tl.surroundings(unseen, again, n_patches=40, keep_um=16)
    assert (patch["change"] > 0).all()
    assert (tile["change"] == 0).all()


def test_settings_stored_before_there_was_a_choice_are_patches_of_tiles() -> None:
    values = Student.Config().to_dict()
    del values["isolated"]
    assert not Student.Config.parse(values).isolated

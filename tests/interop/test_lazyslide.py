"""Features of LazySlide in a slide of ours, and models of ours as its predictors; containers are wsidata's."""

from __future__ import annotations

import numpy as np
import pytest
import spatialdata as sd

import stpred as st
from stpred import InputError, data
from stpred._core.elements import affine_to
from stpred._core.places import Place
from stpred._core.tables import read_provenance

wsidata = pytest.importorskip("wsidata")

TILE = st.TileSpec(0.5, 64)
SIZE = {"size_um": (500, 500), "n_genes": 20}


def colour():
    return st.encoders.get("colour", tile=TILE)


@pytest.fixture
def slide():
    return st.datasets.toy(**SIZE)


def tiled(slide, *, spoil: bool = False):
    """Tiles and features as LazySlide makes them, in pixels of the finest level: read from the array, by hand."""
    pixels = np.asarray(slide["he"]["scale0"].image.transpose("y", "x", "c"))
    mpp = float(np.sqrt(abs(np.linalg.det(affine_to(slide["he"])[:2, :2]))))
    edge = round(TILE.size_um / mpp)
    corners = np.array([(x, y) for y in range(0, len(pixels) - edge, edge) for x in range(0, len(pixels) - edge, edge)])
    spec = wsidata.TileSpec(
        height=TILE.size_px, width=TILE.size_px, stride_height=TILE.size_px, stride_width=TILE.size_px, mpp=TILE.mpp,
        base_downsample=TILE.mpp / mpp,
    )  # fmt: skip
    other = wsidata.open_wsi(sd.SpatialData(images={"he": slide["he"]}), image_key="he")
    wsidata.io.add_tiles(other, "tiles", corners, spec, np.zeros(len(corners), dtype=int))
    tiles = np.stack([pixels[y : y + edge, x : x + edge] for x, y in corners])
    features = colour().encode(np.ascontiguousarray(tiles[:, : TILE.size_px, : TILE.size_px]))
    wsidata.io.add_features(
        other, "colour_tiles", "tiles", np.random.default_rng(1).permutation(features) if spoil else features
    )
    return other, corners + edge / 2, features


def test_tiles_lie_where_they_lie_and_features_are_taken_for_the_encoders(slide) -> None:
    other, centres, features = tiled(slide)
    st.io.add_lazyslide(slide, other, encoder=colour())
    table = slide.tables["tiles_feat_colour"]
    affine = affine_to(slide["he"])
    np.testing.assert_allclose(table.obsm["spatial"], centres @ affine[:2, :2].T + affine[:2, 2], atol=1e-6)
    np.testing.assert_allclose(table.X, features, rtol=1e-6)
    found = read_provenance(table, what="table")
    assert found["encoder"] == colour().card.to_dict()
    assert found["computed_by"] == "LazySlide"
    model = st.tl.train(
        st.datasets.toy_cohort(2, **SIZE), st.models.Ridge.Config(standardize="train"), genes=["EPCAM"],
        shapes_key="spots", encoder=colour(),
    )  # fmt: skip
    expected = st.tl.predict(slide, model, shapes_key="tiles", inplace=False).X
    assert data.stored_features(data.read_region(slide, Place("tiles")), colour()) is not None  # no tile is read
    predictor = st.models.as_lazyslide(model)
    assert predictor.features_model_name == "colour"
    assert predictor.whole_slide == model.needs.slide_statistics
    np.testing.assert_allclose(predictor.predict(features)["EPCAM"], expected[:, 0], atol=1e-4)


def test_features_of_an_unknown_encoder_are_kept_apart(slide) -> None:
    other, _, _ = tiled(slide)
    st.io.add_lazyslide(slide, other, shapes_key="grid2")
    assert read_provenance(slide.tables["grid2_feat_colour"], what="table")["encoder"]["source"] == "LazySlide"
    assert slide["grid2"].index.tolist() == list(range(len(slide["grid2"])))


def test_an_object_that_lazyslide_worked_on_itself(slide) -> None:
    other, centres, features = tiled(slide)
    slide.shapes["tiles"], slide.tables["colour_tiles"] = other.shapes["tiles"], other.tables["colour_tiles"]
    st.io.add_lazyslide(slide, encoder=colour())
    affine = affine_to(slide["he"])
    table = slide.tables["tiles_feat_colour"]
    np.testing.assert_allclose(table.obsm["spatial"], centres @ affine[:2, :2].T + affine[:2, 2], atol=1e-6)
    assert "colour_tiles" in slide.tables


def test_bad_input(slide) -> None:
    other, _, _ = tiled(slide, spoil=True)
    with pytest.raises(InputError, match="are not those of the encoder 'colour' on this image"):
        st.io.add_lazyslide(slide, other, encoder=colour())
    assert "tiles" not in slide.shapes  # nothing is left behind
    with pytest.raises(InputError, match="has 6 features, the encoder 'intensity' gives 3"):
        st.io.add_lazyslide(slide, other, encoder="intensity")
    with pytest.raises(InputError, match=r"are of TileSpec\(mpp=0.5, size_px=64\), and the encoder 'colour' was made"):
        st.io.add_lazyslide(slide, other, encoder="colour")
    with pytest.raises(InputError, match=r"no feature table 'uni_tiles' of 'tiles'; there are \['colour_tiles'\]"):
        st.io.add_lazyslide(slide, other, feature_key="uni_tiles")
    with pytest.raises(InputError, match="has shapes 'spots' already"):
        st.io.add_lazyslide(slide, other, shapes_key="spots")
    with pytest.raises(InputError, match=r"no tiles 'windows'"):
        st.io.add_lazyslide(slide, other, tile_key="windows")
    with pytest.raises(InputError, match="must be a trained model"):
        st.models.as_lazyslide("ridge")
    model = st.tl.train(
        st.datasets.toy_cohort(2, **SIZE), st.models.Ridge.Config(context_um=150.0), genes=["EPCAM"],
        shapes_key="spots", encoder=colour(),
    )  # fmt: skip
    with pytest.raises(InputError, match="reads more than the features of a tile \\(context_um"):
        st.models.as_lazyslide(model)

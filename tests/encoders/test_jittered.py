from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import stpred as st
from stpred import InputError, TileSpec
from stpred._image.appearance import jitter
from stpred._image.stain import separate
from stpred.encoders.registry import from_card

TILE = TileSpec(1.0, 32)


@pytest.fixture(scope="module")
def tiles() -> np.ndarray:
    slide = st.datasets.toy(size_um=(300, 300), n_genes=5, mpp=1.0)
    image = np.asarray(next(iter(slide.images["he"]["scale0"].ds.values())).data)
    cut = [image[:, y : y + 32, x : x + 32] for y in (60, 120, 180) for x in (80, 140, 200)]
    return np.ascontiguousarray(np.moveaxis(np.stack(cut), 1, -1))


def test_features_are_the_mean_over_views(tiles: np.ndarray) -> None:
    plain = st.encoders.get("colour", tile=TILE)
    encoder = st.encoders.Jittered(plain, n_views=5, strength=0.4, seed=3)
    expected = np.mean([plain.encode(view(tiles)) for view in jitter(5, strength=0.4, seed=3)], axis=0)
    np.testing.assert_allclose(encoder.encode(tiles), expected, rtol=1e-5)
    assert encoder.card.width == plain.card.width
    assert np.abs(encoder.encode(tiles) - plain.encode(tiles)).max() > 0.1


def test_a_row_depends_on_its_tile_alone(tiles: np.ndarray) -> None:
    encoder = st.encoders.Jittered(st.encoders.get("morphology", tile=TILE), n_views=3)
    whole = encoder.encode(tiles)
    order = np.random.default_rng(0).permutation(len(tiles))
    np.testing.assert_array_equal(encoder.encode(tiles[order]), whole[order])
    np.testing.assert_array_equal(np.concatenate([encoder.encode(t[None]) for t in tiles]), whole)
    other = st.encoders.Jittered(st.encoders.get("morphology", tile=TILE), n_views=3, seed=1)
    assert np.abs(other.encode(tiles) - whole).max() > 1e-3
    assert encoder.encode(tiles[:0]).shape == (0, encoder.card.width)


def test_one_view_is_the_tile_itself(tiles: np.ndarray) -> None:
    plain = st.encoders.get("morphology", tile=TILE)
    np.testing.assert_allclose(st.encoders.Jittered(plain, n_views=1).encode(tiles), plain.encode(tiles), atol=1e-4)


def test_views_scale_the_stains_and_leave_glass(tiles: np.ndarray) -> None:
    none, first, second = jitter(3, strength=0.3, seed=0)
    assert np.abs(none(tiles).astype(int) - tiles).max() <= 1
    before = separate(tiles[:1])
    ratios = []
    for view in (first, second):
        shown = view(tiles[:1])
        assert shown.shape == tiles[:1].shape
        assert shown.dtype == np.uint8
        after = separate(shown)
        ratios.append([np.polyfit(before[k].ravel(), after[k].ravel(), 1)[0] for k in (0, 1)])
        glass = view(np.full((1, 4, 4, 3), 255, np.uint8))
        assert glass.min() >= 245
    np.testing.assert_allclose(np.prod(ratios, axis=0), 1, atol=0.06)  # pairs of a variation and its inverse
    assert np.abs(np.log(ratios)).max() < np.log(1.3) * 1.05


def test_features_vary_less_with_the_stain(tiles: np.ndarray) -> None:
    """What it is for: the effect of another stain is smaller than on the encoder, relative to that of the tissue."""
    stronger = jitter(20, strength=0.5, seed=9)[7](tiles)
    plain = st.encoders.get("colour", tile=TILE)

    def moved(encoder: Any) -> float:
        one, other = encoder.encode(tiles), encoder.encode(stronger)
        return float(np.abs(one - other).mean() / one.std(axis=0).mean())

    assert moved(st.encoders.Jittered(plain, n_views=16, strength=0.5)) < moved(plain)


def test_card_rebuilds_the_encoder(tiles: np.ndarray) -> None:
    encoder = st.encoders.Jittered(st.encoders.get("morphology", tile=TILE), n_views=2, strength=0.2, seed=5)
    card = json.loads(json.dumps(encoder.card.to_dict()))
    assert card["name"] == "morphology-jittered"
    assert card["views"] == {"n": 2, "strength": 0.2, "seed": 5}
    again = from_card(card)
    np.testing.assert_array_equal(again.encode(tiles), encoder.encode(tiles))
    with pytest.raises(InputError, match="views"):
        from_card({**card, "revision": "0"})
    assert "views" not in st.encoders.get("morphology").card.to_dict()  # so that what was written before is still found
    part = encoder.resized(16.0)
    assert part.card.tile.size_um == pytest.approx(16.0)
    assert part.card.views == encoder.card.views
    assert not hasattr(st.encoders.get("colour", views=2), "resized")


def test_dense_tokens(tiles: np.ndarray) -> None:
    plain = st.encoders.get("morphology", tile=TILE)
    encoder = st.encoders.Jittered(plain, n_views=2)
    expected = np.mean([plain.encode_dense(view(tiles)) for view in jitter(2, strength=0.3, seed=0)], axis=0)
    np.testing.assert_allclose(encoder.encode_dense(tiles), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="has no dense tokens"):
        st.encoders.get("colour", views=2).encode_dense(tiles)


def test_a_stored_model_finds_it_and_the_cache_keeps_it(tmp_path: Any) -> None:
    slide = st.datasets.toy(size_um=(400, 400), n_genes=5, mpp=1.0)
    encoder = st.encoders.Jittered(st.encoders.get("colour", tile=TILE), n_views=3)
    model = st.tl.train(slide, "ridge", encoder=encoder, shapes_key="spots")
    st.models.save(model, tmp_path / "model")
    st.tl.predict(slide, model, shapes_key="spots", key_added="first")
    loaded = st.models.load(tmp_path / "model")
    with st.settings.override(cache_dir=tmp_path / "cache"):
        for key in ("second", "third"):  # computed, and from the cache
            st.tl.predict(slide, loaded, shapes_key="spots", key_added=key)
    np.testing.assert_allclose(slide.tables["second"].X, slide.tables["first"].X, atol=1e-2)
    np.testing.assert_allclose(slide.tables["third"].X, slide.tables["second"].X, atol=1e-6)
    with pytest.raises(InputError, match="not the one that model"):
        st.tl.predict(slide, loaded, shapes_key="spots", encoder=st.encoders.get("colour", tile=TILE))
    st.pp.features(slide, encoder, shapes_key="spots")
    assert "spots_feat_colour-jittered" in slide.tables


def test_one_of_several(tiles: np.ndarray) -> None:
    both = st.encoders.get(["colour", st.encoders.get("colour", views=2)])
    again = from_card(json.loads(json.dumps(both.card.to_dict())))
    assert again.card == both.card
    assert again.members[1].card.views == {"n": 2, "strength": 0.3, "seed": 0}
    with pytest.raises(InputError, match="each by itself"):
        st.encoders.Jittered(both)
    every = st.encoders.get(["colour", "intensity"], views={"n": 3, "seed": 1})
    assert [m["views"] for m in every.card.members] == [{"n": 3, "strength": 0.3, "seed": 1}] * 2


def test_bad_input() -> None:
    for changes, message in (
        ({"n_views": 0}, "`n_views` must be a positive whole number"),
        ({"n_views": 1000}, "at most 256"),
        ({"strength": 0}, "`strength` must be a positive"),
        ({"strength": 2}, "at most 1"),
        ({"seed": -1}, "`seed` must be a whole number"),
    ):
        with pytest.raises(InputError, match=message):
            st.encoders.Jittered(st.encoders.get("colour"), **changes)
    with pytest.raises(InputError, match="gives pixels"):
        st.encoders.get("pixels", views=2)
    with pytest.raises(InputError, match="already"):
        st.encoders.get(st.encoders.get("colour", views=2), views=2)
    with pytest.raises(InputError, match="`views` has the fields"):
        st.encoders.get("colour", views={"number": 2})
    with pytest.raises(InputError, match="must be an encoder"):
        st.encoders.Jittered(3)  # type: ignore[arg-type]

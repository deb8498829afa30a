"""Encoders that were trained here, on the hub."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

import stpred as st
from stpred import encoders
from stpred._core.checks import InputError

pytest.importorskip("timm")
torch = pytest.importorskip("torch")

from stpred.encoders import trained  # noqa: E402
from stpred.encoders.modules import digest  # noqa: E402

from .fake_hub import FakeHub  # noqa: E402

TILE = st.TileSpec(2.0, 32)


@pytest.fixture(scope="module")
def encoder() -> trained.TrainedEncoder:
    kwargs, width = trained.size_for("test_resnet", TILE.size_px, seed=3)
    module = trained.build("test_resnet", kwargs, seed=3)
    card = encoders.EncoderCard(
        "my-cells", TILE, width, source="trained here: MoCo v3", revision=digest(module.state_dict()),
        mean=(0.6, 0.5, 0.7), std=(0.2, 0.2, 0.1), licence="your own",
    )  # fmt: skip
    record = {"method": "MoCo v3", "slides": {"a": {}, "b": {}}, "check": {"recognition": 0.91, "n_tiles": 8}}
    return trained.TrainedEncoder(module, card=card, backbone="test_resnet", kwargs=kwargs, seed=3, record=record)


def test_a_round_trip_gives_the_same_bits_and_models_name_the_commit(
    hub: FakeHub, encoder: trained.TrainedEncoder
) -> None:
    name = encoders.push_to_hub(encoder, "lab/cells", licence="mit")
    again = encoders.load("hf:lab/cells", device="cpu")
    tiles = np.random.default_rng(0).integers(0, 256, size=(5, 32, 32, 3), dtype=np.uint8)
    assert np.array_equal(again.encode(tiles), encoder.to("cpu").encode(tiles))
    assert again.card.source == name
    assert sorted(set(hub.fetched)) == ["config.json", "model.safetensors"]
    slides = st.datasets.toy_cohort(2, size_um=(400, 400), mpp=2.0, n_genes=4)
    model = st.tl.train(slides, "ridge", shapes_key="spots", genes=["EPCAM"], encoder=again)
    assert model.record.encoder["source"] == name
    model.encoder = None
    sdata = next(iter(slides.values()))
    hub.asked.clear()
    with pytest.raises(InputError, match=rf"stpred.encoders.load\('{name}'\)"):
        st.tl.predict(sdata, model, shapes_key="spots")
    assert not hub.asked  # a stored model fetches nothing by itself
    assert st.tl.predict(sdata, model, encoder=again, shapes_key="spots", inplace=False).n_vars == 1


def test_the_card_says_what_the_record_says(hub: FakeHub, encoder: trained.TrainedEncoder) -> None:
    name = encoders.push_to_hub(encoder, "lab/cells", licence="mit", notes="Of two slides.")
    text = hub.repositories["lab/cells"].commits[name.partition("@")[2]]["README.md"].decode()
    header = yaml.safe_load(text.split("---\n")[1])
    assert (header["license"], header["pipeline_tag"]) == ("mit", "image-feature-extraction")
    assert f"{encoder.card.width} features of a tile of 64 um (32 px at 2 um per pixel)" in text
    for line in (
        "| method | MoCo v3 |",
        "2 slides: a, b.",
        "| recognition | 0.91 |",
        "Of two slides.",
        "| `test_resnet`",
    ):
        assert line in text or line == "| `test_resnet`"
    assert 'st.encoders.load("hf:lab/cells")' in text


def test_models_and_encoders_are_told_apart(hub: FakeHub, encoder: trained.TrainedEncoder) -> None:
    encoders.push_to_hub(encoder, "lab/cells")
    st.models.load("default").push_to_hub("lab/breast")
    with pytest.raises(InputError, match="lacks|format version"):
        st.models.load("hf:lab/cells")
    with pytest.raises(InputError, match=r"it is a model, which stpred.models.load reads"):
        encoders.load("hf:lab/breast")
    with pytest.raises(InputError, match="can be uploaded, got 'morphology'"):
        encoders.push_to_hub("morphology", "lab/x")

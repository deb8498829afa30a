from __future__ import annotations

import numpy as np
import pytest

import stpred as st
from stpred import InputError, encoders
from stpred.encoders import registry

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

NAME = "timm/test_vit"


@pytest.fixture(scope="module")
def encoder() -> encoders.Encoder:
    return encoders.get(NAME, pretrained=False, device="cpu")


@pytest.fixture(scope="module")
def tiles() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size=(5, 160, 160, 3), dtype=np.uint8)


@pytest.fixture
def offline(monkeypatch) -> None:
    """A hub that cannot be reached, without waiting for its retries."""

    def refuse(*args, **kwargs):
        raise FileNotFoundError("cannot reach the hub")

    monkeypatch.setattr("timm.models._hub.hf_hub_download", refuse)


def test_card_follows_the_timm_configuration(encoder) -> None:
    card = encoder.card
    assert card.tile == st.TileSpec(0.5, 160)
    assert (card.width, card.dense) == (64, (10, 10, 64))
    assert card.mean == card.std == (0.5, 0.5, 0.5)
    assert card.source == "random weights"
    assert card.licence == "unknown"
    assert card.revision.startswith("sha256:")


def test_matches_timm_by_hand(encoder, tiles) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model("test_vit", num_classes=0).eval()
    transform = timm.data.create_transform(**(timm.data.resolve_data_config({}, model=model) | {"crop_pct": 1.0}))
    from PIL import Image

    with torch.no_grad():
        batch = torch.stack([transform(Image.fromarray(t)) for t in tiles])
        np.testing.assert_allclose(encoder.encode(tiles), model(batch).numpy(), atol=1e-4)
        tokens = model.forward_features(batch)[:, 1:].numpy()
    np.testing.assert_allclose(encoder.encode_dense(tiles).reshape(5, 100, 64), tokens, atol=1e-4)


def test_random_weights_are_the_same_every_time(encoder) -> None:
    before = torch.random.get_rng_state()
    again = encoders.get(NAME, pretrained=False, device="cpu")
    assert again.card == encoder.card
    assert torch.equal(torch.random.get_rng_state(), before)


def test_any_tile_is_resampled_to_the_input(encoder) -> None:
    fine = encoders.get(NAME, tile=st.TileSpec(0.25, 320), pretrained=False, device="cpu")
    flat = np.full((1, 160, 160, 3), 200, np.uint8)
    np.testing.assert_allclose(fine.encode(flat.repeat(2, axis=1).repeat(2, axis=2)), encoder.encode(flat), atol=1e-4)


def test_convolutional_models_have_no_tokens(tiles) -> None:
    encoder = encoders.get("timm/test_resnet", pretrained=False, device="cpu")
    assert encoder.card.dense is None
    together = encoder.encode(tiles)
    np.testing.assert_allclose(np.concatenate([encoder.encode(t[None]) for t in tiles]), together, atol=1e-5)


@pytest.mark.parametrize("kind", ["safetensors", "torch", "nested", "folder", "with_head"])
def test_local_weights_round_trip(tmp_path, tiles, kind) -> None:
    from safetensors.torch import save_file

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = timm.create_model("test_vit", num_classes=10 if kind == "with_head" else 0)
    state = model.state_dict()
    path = tmp_path / ("weights.pt" if kind in ("torch", "nested") else "model.safetensors")
    if kind in ("torch", "nested"):
        torch.save({"state_dict": state} if kind == "nested" else state, path)
    else:
        save_file(state, path)
    encoder = encoders.get(NAME, weights=tmp_path if kind == "folder" else path, device="cpu")
    model.reset_classifier(0)
    model.eval()
    batch = torch.tensor(tiles.transpose(0, 3, 1, 2) / 127.5 - 1, dtype=torch.float32)
    with torch.no_grad():
        np.testing.assert_allclose(encoder.encode(tiles), model(batch).numpy(), atol=1e-4)
    assert encoder.card.source.startswith("file ")


def test_a_record_of_local_weights_fetches_no_others(tmp_path, monkeypatch) -> None:
    from safetensors.torch import save_file

    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), tmp_path / "own.safetensors")
    card = encoders.get(NAME, weights=tmp_path / "own.safetensors", device="cpu").card
    monkeypatch.setattr("timm.create_model", lambda *a, **k: pytest.fail("asked the hub"))
    with pytest.raises(InputError, match=r"'timm/test_vit' had weights of its own \(file own.safetensors\)"):
        registry.from_card(card.to_dict())


def test_weights_of_another_model_are_refused(tmp_path) -> None:
    from safetensors.torch import save_file

    state = timm.create_model("test_vit", num_classes=0).state_dict()
    lacking = dict(list(state.items())[2:])
    save_file(lacking, tmp_path / "lacking.safetensors")
    with pytest.raises(InputError, match=r"of another model: it lacks tensors \['cls_token', 'pos_embed'\]"):
        encoders.get(NAME, weights=tmp_path / "lacking.safetensors")
    save_file({**state, "extra.weight": torch.zeros(2)}, tmp_path / "extra.safetensors")
    with pytest.raises(InputError, match=r"it has unknown tensors \['extra.weight'\]"):
        encoders.get(NAME, weights=tmp_path / "extra.safetensors")
    save_file({**state, "norm.bias": torch.zeros(2)}, tmp_path / "shape.safetensors")
    with pytest.raises(InputError, match=r"it has misshapen tensors \['norm.bias \(2,\)'\]"):
        encoders.get(NAME, weights=tmp_path / "shape.safetensors")


def test_timms_own_spelling_will_do() -> None:
    short, long = (encoders.get(name, pretrained=False, device="cpu") for name in ("test_vit", "timm/test_vit"))
    assert short.card == long.card


def test_offline_says_how_to_go_on(offline) -> None:
    with pytest.raises(
        InputError, match=r"weights of 'timm/test_vit' could not be fetched .*`weights=` a local .*`pret"
    ):
        encoders.get(NAME)
    with pytest.raises(InputError, match="could not be fetched"):
        encoders.get("timm/hf-hub:someone/something")


def test_names_are_checked_before_anything_is_fetched() -> None:
    with pytest.raises(InputError, match=r"timm has no model 'resnet5O'; did you mean \["):
        encoders.get("timm/resnet5O")
    with pytest.raises(InputError, match=r"no weights 'nope' for 'test_vit'; available: \['r160_in1k'\]"):
        encoders.get("timm/test_vit.nope")
    with pytest.raises(InputError, match="takes its architecture from the hub"):
        encoders.get("timm/hf-hub:someone/something", pretrained=False)
    with pytest.raises(InputError, match="no weights 'nope' for 'test_vit'"):
        encoders.get("test_vit.nope")
    assert "timm/test_vit" in encoders.list("timm/test_*")

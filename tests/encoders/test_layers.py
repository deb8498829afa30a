from __future__ import annotations

import warnings

import numpy as np
import pytest

import stpred as st
from stpred import InputError, encoders
from stpred.encoders import registry

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

TILE = st.TileSpec(0.5, 160)


@pytest.fixture(scope="module")
def tiles() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size=(3, 160, 160, 3), dtype=np.uint8)


def get(name: str, **options):
    return encoders.get(f"timm/{name}", pretrained=False, device="cpu", **options)


def maps_by_hand(name: str, tiles: np.ndarray) -> list[np.ndarray]:
    """The (n, width, rows, cols) output of every stage or block, caught on its way through the whole network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=0).eval()
    caught: dict[str, torch.Tensor] = {}
    names = [f["module"] for f in model.feature_info]
    for part in names:
        model.get_submodule(part).register_forward_hook(lambda m, i, out, part=part: caught.update({part: out}))
    mean, std = (torch.tensor(model.pretrained_cfg[k])[:, None, None] for k in ("mean", "std"))
    with torch.no_grad():
        model((torch.tensor(tiles.transpose(0, 3, 1, 2) / 255.0).float() - mean) / std)
        found = [caught[part] for part in names]
        if hasattr(model, "blocks") and found[0].ndim == 3:  # tokens: class token first, rows of patches after it
            found = [model.norm(f)[:, 1:].reshape(len(tiles), 10, 10, -1).permute(0, 3, 1, 2) for f in found]
    return [f.numpy().astype(np.float64) for f in found]


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit"])
def test_layers_are_those_of_the_whole_network(tiles, name) -> None:
    maps = maps_by_hand(name, tiles)
    n = len(maps)
    for layers, pool in (([0], None), ([1, -2], "mean+std"), ([n - 1], "mean"), (list(range(n)), "max")):
        wanted = []
        for each in (maps[i] for i in sorted(i % n for i in layers)):
            if pool == "max":
                wanted.append(each.max(axis=(2, 3)))
            else:
                wanted.append(each.mean(axis=(2, 3)))
            if pool == "mean+std":
                wanted.append(each.std(axis=(2, 3)))
        found = get(name, layers=layers, pool=pool).encode(tiles)
        np.testing.assert_allclose(found, np.concatenate(wanted, axis=1), atol=2e-4, err_msg=f"{layers} {pool}")


def test_the_card_says_which_layers_and_the_weights_are_those_of_the_network() -> None:
    whole, middle = get("test_resnet"), get("test_resnet", layers=(-2, 1))
    assert (middle.card.layers, middle.card.pool) == ((1, 3), "mean")
    assert middle.card.revision == whole.card.revision
    assert middle.card.tile == whole.card.tile
    assert {"layers", "pool"}.isdisjoint(whole.card.to_dict())
    assert middle.card.to_dict()["layers"] == [1, 3]


def test_what_comes_later_is_neither_kept_nor_computed(tiles) -> None:
    def size(encoder) -> int:
        return sum(p.numel() for p in encoder._module.parameters())

    for name in ("test_resnet", "test_efficientnet", "test_vit"):
        early, late = get(name, layers=(1,)), get(name, layers=(-1,))
        assert size(early) < 0.8 * size(late), name
    early = get("test_vit", layers=(1,))
    ran = []
    for i, block in enumerate(early._module.network.blocks):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    early.encode(tiles)
    assert ran == [0, 1]


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit"])
def test_tokens_are_positions_of_the_coarsest_layer(tiles, name) -> None:
    maps = maps_by_hand(name, tiles)
    for layers in ((1,), (0, 2)):
        encoder = get(name, layers=layers, pool="mean+std")
        tokens = encoder.encode_dense(tiles)
        side = maps[max(layers)].shape[-1]
        assert encoder.card.dense == tokens.shape[1:] == (side, side, sum(maps[i].shape[1] for i in layers))
        blocks = []
        for i in layers:
            part = maps[i].shape[-1] // side
            assert part * side == maps[i].shape[-1]
            cut = maps[i].reshape(*maps[i].shape[:2], side, part, side, part)
            blocks.append(cut.mean(axis=(3, 5)).transpose(0, 2, 3, 1))
        np.testing.assert_allclose(tokens, np.concatenate(blocks, axis=3), atol=2e-4)
        means = get(name, layers=layers).encode(tiles)
        np.testing.assert_allclose(tokens.mean(axis=(1, 2)), means, atol=2e-4)


def test_features_do_not_depend_on_the_batch(tiles) -> None:
    encoder = get("test_efficientnet", layers=(1, 2), pool="mean+std")
    one_by_one = np.concatenate([encoder.encode(t[None]) for t in tiles])
    np.testing.assert_allclose(one_by_one, encoder.encode(tiles), atol=1e-5)
    assert encoder.encode(tiles[:0]).shape == (0, encoder.card.width)


def test_tiles_go_through_a_network_at_another_size_than_its_own() -> None:
    """A tile of that size is not resampled; the card says so, and an encoder made from it is the same."""
    small = np.random.default_rng(1).integers(0, 256, size=(3, 48, 48, 3), dtype=np.uint8)
    options = {"layers": (1, 2), "pool": "mean+std", "tile": st.TileSpec(0.5, 48)}
    enlarged, as_it_is = get("test_resnet", **options), get("test_resnet", input_px=48, **options)
    assert (enlarged.card.input_px, as_it_is.card.input_px) == (None, 48)
    assert "input_px" not in enlarged.card.to_dict()
    assert np.abs(enlarged.encode(small) - as_it_is.encode(small)).max() > 1e-3
    whole = get("test_resnet", layers=(1, 2), tile=st.TileSpec(0.5, 160))  # its own size is 160
    assert whole.card.dense[:2] == (20, 20)
    assert as_it_is.card.dense[:2] == (6, 6)
    again = registry.from_card(as_it_is.card.to_dict(), device="cpu")
    np.testing.assert_array_equal(again.encode(small), as_it_is.encode(small))
    assert registry.different(enlarged, as_it_is.card.to_dict()) == "input_px: trained with 48, found None"


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("timm/vit_tiny_patch16_224", {"pretrained": False, "input_px": 96}, r"does not take `input_px`=96, but 224"),
        ("timm/test_resnet", {"pretrained": False, "input_px": 0}, r"`input_px` must be a positive whole number"),
        ("morphology", {"input_px": 48}, r"'morphology' takes its tile as it is; leave `input_px` out"),
    ],
)
def test_input_sizes_that_a_network_does_not_take(name: str, options: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        encoders.get(name, device="cpu", **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layers": (5,)}, r"`layers` has \[5\]; 'timm/test_resnet' has layers 0 to 4 \(.*-5\).* 0: 2, 1: 4, .*4: 32"),
        ({"layers": (-6, 1)}, r"`layers` has \[-6\]; 'timm/test_resnet' has layers 0 to 4"),
        ({"layers": (1, -4)}, r"names a layer more than once, got \(1, -4\)"),
        ({"layers": ()}, r"must be whole numbers, such as \(-1,\), got \(\); 'timm/test_resnet' has layers 0 to 4"),
        ({"layers": "layer3"}, r"must be whole numbers, .* got 'layer3'"),
        ({"layers": (1.5,)}, r"must be whole numbers"),
        ({"layers": (True,)}, r"must be whole numbers"),
        ({"layers": (1,), "pool": "median"}, r"`pool` must be one of \['mean', 'mean\+std', 'max'\], got 'median'"),
        ({"pool": "mean"}, r"`pool`='mean' says how `layers` are pooled; name them"),
    ],
)
def test_bad_layers_are_refused(options, said) -> None:
    with pytest.raises(InputError, match=said):
        get("test_resnet", **options)


def test_blocks_of_a_transformer_are_a_patch_apart() -> None:
    with pytest.raises(InputError, match=r"layers 0 to 5 .* this many pixels of the input: 16\."):
        get("test_vit", layers=(12,))


def test_encoders_without_layers_say_so(tiles) -> None:
    with pytest.raises(InputError, match=r"The encoder 'morphology' has no layers to choose from"):
        encoders.get("morphology", layers=(1,))
    with pytest.raises(InputError, match=r"the network of 'plain' does not give its middle layers"):
        encoders.get(torch.nn.Flatten(), tile=st.TileSpec(1.0, 8), name="plain", layers=(1,))
    loaded = get("test_resnet")
    with pytest.raises(InputError, match=r"was loaded already, .* it takes no \['layers'\]"):
        encoders.get(loaded, layers=(1,))


def test_a_module_of_timm_keeps_its_own_layers(tiles) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = timm.create_model("test_resnet", num_classes=0)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    options = {k: tuple(module.pretrained_cfg[k]) for k in ("mean", "std")}
    encoder = encoders.get(module, tile=TILE, name="mine", layers=(1,), device="cpu", **options)
    np.testing.assert_allclose(encoder.encode(tiles), get("test_resnet", layers=(1,)).encode(tiles), atol=1e-6)
    assert list(module.state_dict()) == list(before)


def test_factories_are_given_layers_if_they_take_them(monkeypatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    encoders.register("half", lambda tile=None, layers=None: get("test_resnet", tile=tile, layers=layers))
    assert encoders.get("half", layers=(2,)).card.layers == (2,)
    encoders.register("none", lambda tile=None, **kwargs: get("test_resnet", tile=tile))
    with pytest.raises(InputError, match="'none' has no layers"):
        encoders.get("none", layers=(2,))


def test_a_card_gives_the_same_encoder_again(tiles) -> None:
    for encoder in (
        get("test_resnet", tile=st.TileSpec(1.0, 96), layers=(1, 3), pool="mean+std"),
        get("test_vit"),
        encoders.get("morphology", tile=st.TileSpec(1.0, 64)),
    ):
        again = registry.from_card(encoder.card.to_dict(), device="cpu")
        assert again.card == encoder.card
    card = get("test_resnet", layers=(1,)).card.to_dict()
    with pytest.raises(InputError, match=r"'timm/test_resnet' is not the one that was recorded \(revision: trained wi"):
        registry.from_card({**card, "revision": "sha256:0"})


def test_a_model_on_layers_finds_its_encoder_again(tmp_path) -> None:
    slides = st.datasets.toy_cohort(2, size_um=(300, 300), n_genes=4)
    encoder = get("test_resnet", tile=st.TileSpec(1.0, 96), layers=(1, 2), pool="mean+std")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = st.tl.train(slides, "ridge", shapes_key="spots", encoder=encoder, genes=st.GeneRule("all"))
        one = next(iter(slides.values()))
        wanted = st.tl.predict(one, model, shapes_key="spots", encoder=encoder, inplace=False)
        st.models.save(model, tmp_path / "model")
        loaded = st.models.load(tmp_path / "model")
        assert loaded.record.encoder["layers"] == [1, 2]
        for options in ({}, {"encoder": "timm/test_resnet"}, {"encoder": encoder}):
            found = st.tl.predict(one, loaded, shapes_key="spots", inplace=False, device="cpu", **options)
            np.testing.assert_array_equal(found.X, wanted.X)
        other = get("test_resnet", tile=st.TileSpec(1.0, 96), layers=(1,), pool="mean+std")
        with pytest.raises(InputError, match=r"layers: trained with \[1, 2\], found \[1\]"):
            st.tl.predict(one, loaded, shapes_key="spots", encoder=other)


def test_maps_are_made_of_tokens_of_a_convolutional_network() -> None:
    """A student learns on the positions of two stages, 8 um apart, and a map is as fine as they are."""
    slides = st.datasets.toy_cohort(2, size_um=(400, 400), n_genes=6)
    encoder = get("test_efficientnet", tile=st.TileSpec(1.0, 160), layers=(1, 2))
    assert encoder.card.dense[:2] == (20, 20)
    config = st.models.Student.Config(hidden=(16,), epochs=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = st.tl.train(slides, config, shapes_key="spots", encoder=encoder, genes=st.GeneRule("all"))
        one = next(iter(slides.values()))
        image = st.tl.predict_map(one, model, inplace=False, device="cpu")
    assert model.record.training["token_um"] == 8.0
    finest = image["scale0"]["image"] if "scale0" in image else image
    assert finest.sizes["c"] == 6
    assert 40 <= finest.sizes["x"] <= 50

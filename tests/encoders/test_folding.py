from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import stpred as st
from stpred import encoders
from stpred.encoders.base import EncoderCard
from stpred.encoders.modules import TorchEncoder, digest

torch = pytest.importorskip("torch")
nn = torch.nn

SIZE = 32


def shuffled(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give norms the statistics and weights of a trained network: none of them leaves its input as it is."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                for tensor, low, high in (
                    (part.running_mean, -0.5, 0.5),
                    (part.running_var, 0.3, 2),
                    (part.weight, 0.5, 1.5),
                    (part.bias, -0.3, 0.3),
                ):
                    if tensor is not None:
                        tensor.copy_(torch.from_numpy(rng.uniform(low, high, tensor.shape).astype(np.float32)))
    return module.eval()


class Chain(nn.Module):
    """Convolution, norm, activation; the options are the ways in which a norm may not be folded."""

    def __init__(self, how: str = "plain") -> None:
        super().__init__()
        self.how = how
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=how == "bias")
        self.norm = nn.BatchNorm2d(8, affine=how != "no affine")
        self.again = nn.Conv2d(8, 8, 3, groups=8, padding_mode="circular", padding=1)
        self.last = nn.BatchNorm2d(8)

    def forward(self, x):
        first = self.conv(x)
        if self.how == "in place":
            first.mul_(2)
        if self.how == "norm of its own":
            first = first + 1
        x = self.norm(first).relu()
        if self.how == "used twice":
            x = x + first
        x = self.last(self.again(x))
        if self.how == "called twice":
            x = self.last(self.again(x))
        return x.mean(dim=(2, 3))

    def squares(self, x):
        return (self.norm(self.conv(x)) ** 2).flatten(2).transpose(1, 2)


def wrapped(module: nn.Module, *, fold: bool = True, **kwargs) -> TorchEncoder:
    card = EncoderCard(
        "test",
        st.TileSpec(0.5, SIZE),
        width=0,
        source="test",
        revision=digest(module.state_dict()),
        licence="unknown",
    )
    return TorchEncoder(module, card=card, fold=fold, **kwargs)


def n_norms(forward) -> int:
    module = getattr(forward, "__self__", forward)
    return sum(isinstance(m, nn.BatchNorm2d) for m in module.modules())


def used(encoder: TorchEncoder) -> nn.Module:
    return encoder._folding(encoder._forward, lambda: None)


@pytest.fixture(scope="module")
def tiles() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size=(5, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("how", "left"),
    [
        ("plain", 0),
        ("bias", 0),
        ("no affine", 0),
        ("in place", 1),
        ("norm of its own", 1),
        ("called twice", 1),
        ("used twice", 2),  # found out by its output
    ],
)
def test_only_what_may_be_folded_is(tiles: np.ndarray, how: str, left: int) -> None:
    module = shuffled(Chain(how))
    before = digest(module.state_dict())
    encoder = wrapped(module)
    assert n_norms(used(encoder)) == left
    np.testing.assert_allclose(encoder.encode(tiles), wrapped(module, fold=False).encode(tiles), atol=1e-5)
    assert n_norms(module) == 2
    assert digest(module.state_dict()) == before == encoder.card.revision
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    assert all(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize(
    "name", ["mobilenetv3_small_050", "test_resnet", "tf_efficientnet_lite0", "densenet121", "regnetx_002", "test_vit"]
)
def test_networks_of_timm_keep_their_features(name: str) -> None:
    timm = pytest.importorskip("timm")
    kwargs = {"img_size": 64} if name == "test_vit" else {}
    module = shuffled(timm.create_model(name, num_classes=0, **kwargs))
    card = EncoderCard(
        name, st.TileSpec(0.5, 64), width=0, source="", revision="", licence="", mean=(0.5,) * 3, std=(0.5,) * 3
    )
    many = np.random.default_rng(0).integers(0, 256, size=(3, 64, 64, 3), dtype=np.uint8)
    plain = TorchEncoder(module, card=card)
    folded = TorchEncoder(module, card=card, fold=True)
    if name != "test_vit":
        assert n_norms(used(folded)) < n_norms(module) / (1.5 if name == "densenet121" else 10)
    else:
        assert used(folded) is module
    expected = plain.encode(many)
    np.testing.assert_allclose(folded.encode(many), expected, atol=1e-5 * max(1, np.abs(expected).max()))


def test_methods_are_computed_with_the_copy_and_other_functions_are_not(tiles: np.ndarray) -> None:
    module = shuffled(Chain())
    encoder = wrapped(module, dense=module.squares)
    plain = wrapped(module, fold=False, dense=module.squares)
    np.testing.assert_allclose(encoder.encode_dense(tiles), plain.encode_dense(tiles), rtol=1e-4, atol=1e-5)
    assert n_norms(encoder._folding(module.squares, lambda: None)) < 2
    by_hand = wrapped(module, forward=lambda x: 2 * module(x))
    np.testing.assert_array_equal(by_hand.encode(tiles), 2 * plain.encode(tiles))


def test_the_copy_follows_the_weights(tiles: np.ndarray) -> None:
    module = shuffled(Chain())
    encoder = wrapped(module)
    before = encoder.encode(tiles)

    def check() -> None:
        nonlocal before
        now = encoder.encode(tiles)
        assert np.abs(now - before).max() > 1e-3
        np.testing.assert_allclose(now, wrapped(module, fold=False).encode(tiles), atol=1e-5)
        before = now

    with torch.no_grad():
        module.conv.weight.mul_(1.5)
    check()
    module.norm.running_mean += 0.3
    check()
    module.again.weight = nn.Parameter(module.again.weight.detach() * 2)
    check()
    module.load_state_dict(shuffled(Chain(), seed=5).state_dict())
    check()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    module.train()
    module(torch.randn(2, 3, SIZE, SIZE)).square().sum().backward()
    optimizer.step()
    assert module.training
    check()
    assert module.training
    assert module.norm.training


def test_copies_of_an_encoder_are_its_equals(tiles: np.ndarray) -> None:
    encoder = wrapped(shuffled(Chain()))
    expected = encoder.encode(tiles)
    for twin in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        np.testing.assert_allclose(twin.encode(tiles), expected, atol=1e-6)
        with torch.no_grad():
            twin._module.conv.weight.mul_(3)
        assert np.abs(twin.encode(tiles) - expected).max() > 1e-3
    np.testing.assert_array_equal(encoder.encode(tiles), expected)


def test_values_that_are_no_numbers_are_not_folded() -> None:
    module = shuffled(Chain())
    module.norm.running_var.fill_(float("nan"))
    assert used(wrapped(module)) is module


def test_digest_and_gradients_are_those_of_the_module(tiles: np.ndarray) -> None:
    pytest.importorskip("timm")
    encoder = encoders.get("timm/test_resnet", pretrained=False, device="cpu")
    assert encoder.card.revision == digest(encoder._module.state_dict())
    assert used(encoder) is not encoder._module
    x = torch.full((1, 160, 160, 3), 90.0, requires_grad=True)
    features = encoder.differentiable(x)
    np.testing.assert_allclose(
        features.detach(), encoder.encode(np.full((1, 160, 160, 3), 90, np.uint8)), atol=1e-5, rtol=1e-4
    )
    features.sum().backward()
    assert float(x.grad.abs().max()) > 0

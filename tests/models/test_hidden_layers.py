"""The hidden layer of every family: its output head applied to it gives the prediction."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from stpred import InputError
from stpred.models import Batch, registry

N, F, G = 30, 6, 3


def batch(**changes: Any) -> Batch:
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 1000, size=(N, 2))
    near = np.argsort(np.linalg.norm(xy[:, None] - xy, axis=2), axis=1)[:, 1:5]
    values: dict[str, Any] = {"neighbors": near, "coords_um": xy}
    return Batch.of(rng.normal(size=(N, F)).astype(np.float32), **(values | changes))


def build(family: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    config = registry.family(family).Config(standardize="none", **settings)
    return config.build(n_features=F, n_genes=G)


def linear(x: np.ndarray, weight: Any, bias: Any) -> np.ndarray:
    return x.astype(np.float64) @ weight.detach().double().numpy().T + bias.detach().double().numpy()


CASES: dict[str, tuple[dict[str, Any], int]] = {
    "mlp": ({"hidden": (16, 9), "context_um": 100.0}, 9),
    "miso": ({"n_neighbors": 4, "width": 8, "inner": 4, "n_heads": 2}, 8),
    "deepspot": ({"context": "spot+neighbors", "width": 5, "n_phi": 2, "n_rho": 2}, 10),
    "transformer": ({"width": 8, "inner": 4, "n_heads": 2}, 8),
}


@pytest.mark.parametrize("family", CASES)
def test_the_head_maps_the_layer_to_the_output(family: str) -> None:
    settings, width = CASES[family]
    model, b = build(family, **settings), batch()
    found = model.latent(b)
    assert found.shape == (N, width)
    assert found.dtype == np.float32
    if family == "deepspot":
        weight, bias = model.rho_weight.mean(dim=0), model.rho_bias.mean(dim=0)
    else:
        weight, bias = model.head.weight, model.head.bias
    np.testing.assert_allclose(linear(found, weight, bias), model.outputs(b), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["mlp", "miso", "deepspot"])
def test_rows_do_not_depend_on_the_others(family: str) -> None:
    model, b = build(family, **CASES[family][0]), batch()
    found = model.latent(b)
    order = np.random.default_rng(1).permutation(N)
    np.testing.assert_allclose(model.latent(b.take(order)), found[order], rtol=1e-4, atol=1e-6)
    for row in (0, 7):
        np.testing.assert_allclose(model.latent(b.take(np.array([row])))[0], found[row], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["histogene", "hist2st"])
def test_the_head_of_a_section_network_maps_the_layer(family: str) -> None:
    sizes: dict[str, Any] = {"width": 8, "depth": 1, "n_heads": 2, "feed_width": 8}
    more: dict[str, Any] = {"parts": 2, "n_graph_layers": 2} if family == "hist2st" else {}
    b = batch(neighbors=None)
    if more:
        b = batch(neighbors=None, parts=np.random.default_rng(5).normal(size=(N, 4, F)).astype(np.float32))
    model = build(family, **sizes, **more)
    np.testing.assert_allclose(
        linear(model.latent(b), model.head.weight, model.head.bias), model.outputs(b), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("pool", ["mean", "sum", "attention"])
def test_cells_are_averaged_as_the_model_does(pool: str) -> None:
    cells = [list(range(3 * k, 3 * k + 3)) for k in range(10)]
    model = build("scellst", regressor="perceptron", tile_um=None, hidden=(7, 4), output="linear", pool=pool)
    b = batch(neighbors=None, coords_um=None, cells=cells)
    out = linear(model.latent(b), model.layers[-1].weight, model.layers[-1].bias)
    scale = 3 if pool == "sum" else 1  # of which the hidden layer is the mean all the same
    np.testing.assert_allclose(out * scale, model.outputs(b), rtol=1e-4, atol=1e-5)


def test_a_perceptron_is_the_slow_one() -> None:
    model, b = build("mlp", hidden=(5,), activation="gelu"), batch(neighbors=None)
    slow = nn.functional.gelu(torch.from_numpy(linear(b.features, model.layers[0].weight, model.layers[0].bias)))
    np.testing.assert_allclose(model.latent(b), slow.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backbone", ["resnet18", "efficientnet-lite0"])
def test_channels_of_a_convolutional_network(backbone: str) -> None:
    pytest.importorskip("timm")
    torch.manual_seed(0)
    config = registry.family("stnet").Config(backbone=backbone, pretrained=False)
    model = config.build(n_features=32 * 32 * 3, n_genes=G)
    nn.init.normal_(model.head.weight)
    pixels = np.random.default_rng(0).integers(0, 255, size=(3, 32 * 32 * 3), dtype=np.uint8)
    b = Batch.of(pixels)
    found = model.latent(b)
    assert found.shape == (3, model.head.in_features)
    expected = model.outputs(b)
    np.testing.assert_allclose(linear(found, model.head.weight, model.head.bias), expected, rtol=1e-3, atol=1e-4)


def test_densenet_has_the_published_width() -> None:
    pytest.importorskip("timm")
    model = registry.family("stnet").Config(pretrained=False, n_views=1).build(n_features=3072, n_genes=2)
    assert model.latent(Batch.of(np.zeros((1, 32 * 32 * 3), np.uint8))).shape == (1, 1024)


def test_retrieval_compares_the_layer() -> None:
    model, b = build("retrieval", width=6, k=2, n_reference=5), batch(neighbors=None)
    y = np.random.default_rng(2).normal(size=(5, G)).astype(np.float32)
    model.set_buffer("reference", y)
    model.set_buffer("kept", np.ones(5))
    query = model.latent(b)
    with torch.inference_mode():
        model.eval()
        keys = model.expression(torch.from_numpy(y)).numpy()
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (query, keys)]
    nearest = np.argsort(-(unit[0] @ unit[1].T), axis=1)[:, :2]
    np.testing.assert_allclose(model.outputs(b), y[nearest].mean(axis=1), rtol=1e-4, atol=1e-5)


def test_members_stand_side_by_side() -> None:
    member = registry.family("mlp").Config(hidden=(4,), standardize="none")
    model = registry.family("ensemble").Config(member, n_members=2).build(n_features=F, n_genes=G)
    b = batch(neighbors=None)
    both = model.latent(b)
    np.testing.assert_array_equal(both, np.concatenate([m.latent(b) for m in model.members], axis=1))


@pytest.mark.parametrize("family", ["ridge", "mean"])
def test_others_have_none(family: str) -> None:
    model = registry.family(family).Config().build(n_features=F, n_genes=G)
    assert model.hidden_layer is None
    with pytest.raises(InputError, match="no hidden layer"):
        model.latent(batch())


def test_a_network_without_hidden_layers_has_none() -> None:
    with pytest.raises(InputError, match="'mlp' model of these settings has no hidden layer"):
        build("mlp", hidden=()).latent(batch(neighbors=None))


def test_every_network_has_one() -> None:
    """A family that is trained by gradient descent says what its hidden layer is (those of pixels apart)."""
    from stpred.models.parts.network import Network

    for name in registry.FAMILIES:
        cls = registry.family(name)
        if issubclass(cls, Network):
            assert cls.hidden_layer, name
            assert cls.hidden is not Network.hidden, name

"""Published checkpoint layouts against the published formulas, written out here once more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

import stpred as st
from stpred._core.checks import InputError, MissingFileError
from stpred.models import Batch, load_reference

State = dict[str, Tensor]


def linear(state: State, name: str, n_out: int, n_in: int, *, bias: bool = True) -> None:
    state[f"{name}.weight"] = torch.randn(n_out, n_in) / n_in**0.5
    if bias:
        state[f"{name}.bias"] = torch.randn(n_out) * 0.1


def miso_state(d: int = 12, width: int = 40, inner: int = 32, g: int = 7) -> State:
    torch.manual_seed(0)
    state: State = {}
    block = "transformer.layers.0."
    linear(state, "emb_layer", width, d)
    linear(state, f"{block}1.to_qkv", 3 * inner, width)
    linear(state, f"{block}1.to_out", width, inner, bias=False)
    linear(state, f"{block}3.hidden_layers.0", width, width)
    linear(state, "mlp", g, width)
    for norm in ("0", "2"):
        state[f"{block}{norm}.weight"] = 1 + 0.2 * torch.randn(width)
        state[f"{block}{norm}.bias"] = 0.2 * torch.randn(width)
    return state


def test_miso_equals_the_published_formula() -> None:
    state = miso_state()
    x = torch.randn(30, 12)
    neighbors = torch.stack([torch.randperm(30)[:6] for _ in range(30)])
    h = functional.linear(x, state["emb_layer.weight"], state["emb_layer.bias"])
    block = "transformer.layers.0."
    normed = functional.layer_norm(h, (40,), state[f"{block}0.weight"], state[f"{block}0.bias"])
    q, k, v = functional.linear(normed, state[f"{block}1.to_qkv.weight"], state[f"{block}1.to_qkv.bias"]).chunk(
        3, dim=1
    )
    rows = []
    for i in range(30):
        seen = [i, *[int(j) for j in neighbors[i] if j != i]]
        heads = []
        for a in range(2):  # heads of 16
            part = slice(16 * a, 16 * a + 16)
            weight = torch.softmax(k[seen, part] @ q[i, part] / 4.0, dim=0)
            heads.append(weight @ v[seen, part])
        rows.append(torch.cat(heads))
    h = h + torch.stack(rows) @ state[f"{block}1.to_out.weight"].T
    normed = functional.layer_norm(h, (40,), state[f"{block}2.weight"], state[f"{block}2.bias"])
    h = h + functional.linear(
        normed, state[f"{block}3.hidden_layers.0.weight"], state[f"{block}3.hidden_layers.0.bias"]
    )
    want = functional.linear(h, state["mlp.weight"], state["mlp.bias"]).numpy()
    model = load_reference("miso", {f"module.{k}": v for k, v in state.items()})
    assert model.config.n_heads == 2
    assert model.record.target == "relative"
    batch = Batch.of(x.numpy(), neighbors=neighbors.numpy())
    np.testing.assert_allclose(model.outputs(batch), want, atol=1e-5)
    np.testing.assert_allclose(model.predict(batch)[0], want.clip(min=0), atol=1e-5)


@pytest.mark.parametrize(("name", "layers", "widths"), [
    ("miso-student", "mlp.hidden_layers.{}", (10, 8, 6, 4)),
    ("scellst", "model.{}.0", (10, 8, 8, 8, 5)),
])  # fmt: skip
def test_perceptrons_equal_the_published_formula(name: str, layers: str, widths: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    state: State = {}
    numbers = range(0, 6, 2) if name == "miso-student" else range(4)
    for number, (a, b) in zip(numbers, zip(widths[:-1], widths[1:], strict=True), strict=True):
        linear(state, layers.format(number), b, a)
    x = torch.randn(9, 10)
    h = x
    for number in numbers:
        h = functional.linear(h, state[f"{layers.format(number)}.weight"], state[f"{layers.format(number)}.bias"])
        last = number == numbers[-1]
        if name == "miso-student":
            h = h.relu()
        else:
            h = functional.softplus(h, beta=20) if last else functional.leaky_relu(h, 0.01)
    model = load_reference(name, state)
    np.testing.assert_allclose(model.predict(Batch.of(x.numpy()))[0], h.numpy(), atol=1e-6)


@pytest.mark.parametrize("n_pools", [1, 3])
def test_deepspot_equals_the_published_formula(n_pools: int) -> None:
    torch.manual_seed(2)
    state: State = {}
    for i in range(4):
        linear(state, f"phi_spot.{i}.model.0", 6, 11)
        linear(state, f"rho.{i}.model.2", 5, 6 * n_pools)
    spots, parts = torch.randn(8, 11), torch.randn(8, 9, 11)
    neighbors = [[1, 2], [0], [], [4, 5, 6], [3], [3, 7], [0, 1], [5]]

    def phi(x: Tensor) -> Tensor:
        copies = [
            functional.linear(x, state[f"phi_spot.{i}.model.0.weight"], state[f"phi_spot.{i}.model.0.bias"])
            for i in range(4)
        ]
        return torch.stack([c.relu() for c in copies]).median(dim=0).values

    rows = []
    for i in range(8):
        pools = [phi(spots[i])]
        if n_pools == 3:
            pools.append(phi(parts[i]).sum(dim=0))
            pools.append(phi(spots[neighbors[i]]).amax(dim=0) if neighbors[i] else torch.zeros(6))
        z = torch.cat(pools)
        rows.append(
            torch.stack(
                [
                    functional.linear(z, state[f"rho.{i}.model.2.weight"], state[f"rho.{i}.model.2.bias"])
                    for i in range(4)
                ]
            ).mean(dim=0)
        )
    want = torch.stack(rows).clamp(min=0).numpy()
    model = load_reference("deepspot", state)
    batch = Batch.of(spots.numpy(), neighbors=neighbors, parts=parts.numpy())
    np.testing.assert_allclose(model.predict(batch)[0], want, atol=1e-5)


def test_stnet_takes_torchvisions_names(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(3)
    net = timm.create_model("densenet121", num_classes=4).eval()
    names = set(net.state_dict())
    assert {"features.conv0.weight", "features.denseblock4.denselayer16.conv2.weight", "features.norm5.bias"} <= names
    assert {"features.transition3.conv.weight", "classifier.bias"} <= names
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, tmp_path / "stnet.safetensors")
    model = load_reference("stnet", tmp_path / "stnet.safetensors", n_views=1)
    tiles = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    with torch.no_grad():
        want = net((torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25).numpy()
    np.testing.assert_allclose(model.predict(Batch.of(tiles.reshape(2, -1)))[0], want, atol=1e-4)
    other = load_reference("stnet", net.state_dict(), n_views=1, pixel_mean=(0.7, 0.5, 0.6), pixel_std=(0.1, 0.2, 0.1))
    assert not np.allclose(other.predict(Batch.of(tiles.reshape(2, -1)))[0], want, atol=1e-4)


def test_a_reference_predicts_in_an_object_and_survives_saving(tmp_path: Path) -> None:
    from stpred import encoders

    encoder = encoders.get("morphology")
    state = miso_state(d=encoder.card.width)
    model = load_reference(
        "miso", state, genes=[f"G{i}" for i in range(7)], encoder=encoder, pitch_um=100.0, n_neighbors=6
    )
    slide = st.datasets.toy(size_um=(500, 500), n_genes=20)
    st.tl.predict(slide, model, shapes_key="spots")
    table = slide.tables["spots_miso"]
    assert list(table.var_names) == [f"G{i}" for i in range(7)]
    assert table.obs["ood_score"].isna().all()  # nothing is known of the training tiles
    st.models.save(model, tmp_path / "m")
    again = st.tl.predict(slide, tmp_path / "m", shapes_key="spots", inplace=False)
    assert np.array_equal(again.X, table.X)
    with pytest.raises(InputError, match="does not say which encoder"):
        st.tl.predict(slide, load_reference("miso", state), shapes_key="spots")


def test_bad_weights_are_named(tmp_path: Path) -> None:
    state = miso_state()
    with pytest.raises(InputError, match=r"`name` must be one of .*'miso'.*got 'mizo'"):
        load_reference("mizo", state)
    lacking = {k: v for k, v in state.items() if k != "mlp.bias"}
    with pytest.raises(InputError, match=r"The 'miso' weights lack \['mlp.bias'\]"):
        load_reference("miso", lacking)
    with pytest.raises(InputError, match=r"parameters of another network: \['extra'\]"):
        load_reference("miso", {**state, "extra": torch.zeros(1)})
    with pytest.raises(InputError, match=r"do not fit the 'miso' network .*last.weight"):
        load_reference("miso", {**state, "mlp.weight": torch.zeros(7, 9)})
    with pytest.raises(InputError, match="`genes` must be 7 distinct symbols"):
        load_reference("miso", state, genes=["A", "B"])
    with pytest.raises(InputError, match=r"\['a'\] are none"):
        load_reference("miso", {"a": 1})  # type: ignore[dict-item]
    with pytest.raises(MissingFileError, match="There is no file"):
        load_reference("miso", tmp_path / "none.safetensors")
    torch.save(state, tmp_path / "pickled.pt")
    with pytest.raises(InputError, match="not a safetensors file; load a checkpoint of another kind yourself"):
        load_reference("miso", tmp_path / "pickled.pt")
    from stpred import encoders

    with pytest.raises(InputError, match="take 12 features, the encoder 'morphology' gives"):
        load_reference("miso", state, encoder=encoders.get("morphology"))
    with pytest.raises(InputError, match="`encoder` must come from stpred.encoders.get"):
        load_reference("miso", state, encoder="h0-mini")
    with pytest.raises(InputError, match="no DenseNet-121"):
        load_reference("stnet", state)
    with pytest.raises(InputError, match="MISOConfig has no fields"):
        load_reference("miso", state, depth=3)

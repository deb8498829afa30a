from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

import stpred as st
from stpred import InputError
from stpred.tl._trust.attribution import integrated_gradients

if TYPE_CHECKING:
    from spatialdata import SpatialData

TILE = st.TileSpec(mpp=4, size_px=24)
MEAN, STD = (0.7, 0.6, 0.7), (0.2, 0.25, 0.2)


class Corner(nn.Module):
    """Mean colour of the upper left quarter: a linear encoder that sees nothing else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, :12, :12].mean(dim=(2, 3))


def _network() -> nn.Module:
    torch.manual_seed(0)
    pool = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return nn.Sequential(nn.Conv2d(3, 6, 5, stride=2), nn.BatchNorm2d(6), pool)


def _trained(cohort: dict[str, SpatialData], config: Any, module: nn.Module | None, **kwargs: Any) -> Any:
    train = {s: cohort[s] for s in list(cohort)[:2]}
    encoder = None if module is None else st.encoders.get(module, tile=TILE, mean=MEAN, std=STD)
    more = {"tile": TILE} if module is None else {"encoder": encoder}
    return st.tl.train(train, config, genes=["EPCAM", "COL1A2"], shapes_key="spots", **more, **kwargs)


@pytest.mark.parametrize("context", [None, 120.0])
@pytest.mark.parametrize("standardize", ["train", "slide"])
def test_a_linear_model_gives_coefficient_times_difference(
    cohort: dict[str, SpatialData], unseen: SpatialData, context: float | None, standardize: str
) -> None:
    config = st.models.Ridge.Config(context_um=context, standardize=standardize, penalty=0.1)
    model = _trained(cohort, config, Corner())
    ids = unseen.shapes["spots"].index[[3, 10]]
    found = st.tl.attribution(unseen, model, ["COL1A2", "EPCAM"], instances=ids, n_steps=4)
    table = st.tl.predict(unseen, model, inplace=False)
    expected = table[table.obs["instance_id"].isin(ids), ["COL1A2", "EPCAM"]].X
    np.testing.assert_allclose(found.predicted, expected, atol=1e-4)
    assert np.abs(found.error).max() < 1e-4
    assert not found.attributions[:, :, 12:].any()  # what the encoder does not see
    assert not found.attributions[:, :, :, 12:].any()
    std = model.std.numpy()
    if standardize == "slide":
        encoder = model.encoder
        features = st.pp.features(unseen, encoder, shapes_key="spots", inplace=False).X
        std = features.std(axis=0)
    slope = (model.coef.numpy()[:3] / std[:, None])[:, [1, 0]] / np.array(STD)[:, None] / 255 / 144
    by_hand = np.einsum("nhwc,cg->nghw", found.tiles[:, :12, :12].astype(float) - 255, slope)
    np.testing.assert_allclose(found.attributions[:, :, :12, :12], by_hand, atol=1e-5, rtol=1e-3)


MODELS = {
    "ridge": st.models.Ridge.Config(context_um=120.0),
    "mlp": st.models.MLP.Config(hidden=(16,), epochs=3, context_um=120.0, lr=1e-2),
    "mlp_alone": st.models.MLP.Config(hidden=(16,), epochs=3, standardize="none", loss="pearson", lr=1e-2),
    "stnet": st.models.STNet.Config(
        pretrained=False, backbone="resnet10t", optimiser="adamw", lr=2e-3, reduction="mean", n_views=8, epochs=2
    ),
}
MODELS["stnet_slide"] = st.models.STNet.Config(**MODELS["stnet"].to_dict() | {"normalize": "slide", "n_views": 1})


@pytest.mark.parametrize("name", sorted(MODELS))
def test_attributions_are_complete_and_belong_to_the_prediction(
    cohort: dict[str, SpatialData], unseen: SpatialData, name: str
) -> None:
    model = _trained(cohort, MODELS[name], None if "stnet" in name else _network())
    ids = list(unseen.shapes["spots"].index[[5, 2]])
    before = [p.clone() for p in model.parameters()]
    found = st.tl.attribution(unseen, model, ["EPCAM"], instances=ids, n_steps=64, baseline="blur")
    table = st.tl.predict(unseen, model, genes=["EPCAM"], inplace=False)
    expected = table[[str(i) for i in ids]].X
    np.testing.assert_allclose(found.predicted, expected, atol=2e-3)
    assert found.attributions.shape == (2, 1, TILE.size_px, TILE.size_px)
    np.testing.assert_allclose(
        found.attributions.sum(axis=(2, 3)) - found.error, found.predicted - found.at_baseline, atol=1e-5
    )
    assert np.abs(found.error).max() < 0.02 + 0.1 * np.abs(found.predicted - found.at_baseline).max()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert list(found.instances) == ids


def test_the_path_is_integrated_not_the_end(cohort: dict[str, SpatialData]) -> None:
    """Of f = (sum of a window)^2 the integrated gradient is known, and pixels at the baseline have none."""
    tile = np.full((8, 8, 3), 255, np.uint8)
    tile[2:4, 2:4] = 55

    def square(x: torch.Tensor) -> torch.Tensor:
        total = (255 - x[:, :5, :5]).sum(dim=(1, 2, 3)) / 1000
        return torch.stack([torch.zeros_like(total), total**2], dim=1)

    found, end, start = integrated_gradients(
        square, tile, np.full(tile.shape, 255.0, np.float32), columns=[1], n_steps=8, batch_size=3
    )
    total = 4 * 3 * 200 / 1000
    assert (end[0], start[0]) == pytest.approx((total**2, 0))
    expected = np.zeros((8, 8))
    expected[2:4, 2:4] = total**2 / 4
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


def test_none_takes_the_location_with_most(cohort: dict[str, SpatialData], unseen: SpatialData) -> None:
    model = _trained(cohort, st.models.Ridge.Config(), Corner())
    table = st.tl.predict(unseen, model, inplace=False)
    for genes in (["EPCAM", "COL1A2"], ["COL1A2", "EPCAM"]):
        found = st.tl.attribution(unseen, model, genes, n_steps=2)
        most = table.obs["instance_id"].iloc[table[:, genes].X.argmax(axis=0)]
        assert found.instances.tolist() == most.tolist()


def test_bad_input(cohort: dict[str, SpatialData], unseen: SpatialData, ridge: Any) -> None:
    with pytest.raises(InputError, match="'morphology' are counted and measured.*feature_associations"):
        st.tl.attribution(unseen, ridge, ["EPCAM"])
    model = _trained(cohort, st.models.Ridge.Config(), Corner())
    for genes, options, said in (
        (["NOPE"], {}, "does not predict \\['NOPE'\\]"),
        (["EPCAM"], {"instances": ["x"]}, "not on the image in 'spots': \\['x'\\]"),
        (["EPCAM"], {"instances": "spot"}, "must be a list of ids"),
        (["EPCAM"], {"method": "shap"}, "'integrated_gradients'"),
        (["EPCAM"], {"baseline": "black"}, "'white', 'blur'"),
        (["EPCAM"], {"n_steps": 0}, "`n_steps`"),
    ):
        with pytest.raises(InputError, match=said):
            st.tl.attribution(unseen, model, genes, **options)
    mean = _trained(cohort, "mean", Corner())
    with pytest.raises(InputError, match="through a 'mean' model.*'mlp', 'ridge', 'stnet'"):
        st.tl.attribution(unseen, mean, ["EPCAM"])


def test_a_transform_of_its_own_is_refused(cohort: dict[str, SpatialData], unseen: SpatialData) -> None:
    def transform(picture: Any) -> torch.Tensor:
        return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1) / 100.0

    encoder = st.encoders.get(Corner(), tile=TILE, transform=transform)
    train = {s: cohort[s] for s in list(cohort)[:2]}
    model = st.tl.train(train, "ridge", genes=["EPCAM"], shapes_key="spots", encoder=encoder)
    with pytest.raises(InputError, match="prepares tiles in its own way"):
        st.tl.attribution(unseen, model, ["EPCAM"])

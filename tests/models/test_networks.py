from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from stpred import InputError, links, metrics, models, training
from stpred.models import MISO, MLP, Batch, DeepSpot, Ensemble, Record, STNet, Transformer
from stpred.models.base import BaseConfig
from stpred.models.parts import layers, losses, network
from stpred.models.parts.network import Network
from stpred.models.parts.sample import gather
from stpred.models.stnet import dihedral
from stpred.training import Run, _loop, _samplers, resumable

from . import naive

CPU = Run(device="cpu")

SMALL: dict[str, tuple[type[Network], BaseConfig]] = {
    "mlp": (MLP, MLP.Config(hidden=(8,), dropout=0.2, epochs=4, batch_size=16)),
    "mlp, context": (MLP, MLP.Config(hidden=(8,), context_um=120.0, epochs=4, batch_size=16)),
    "miso": (MISO, MISO.Config(n_neighbors=4, width=24, inner=12, n_heads=3, dropout=0.1, epochs=4)),
    "miso, alone": (MISO, MISO.Config(n_neighbors=0, width=24, inner=12, n_heads=3, epochs=4)),
    "deepspot": (DeepSpot, DeepSpot.Config(context_um=120.0, width=8, n_phi=4, n_rho=3, epochs=4, batch_size=16)),
    "transformer": (Transformer, Transformer.Config(width=24, inner=12, n_heads=3, epochs=4)),
    "stnet": (STNet, STNet.Config(backbone="test_resnet", pretrained=False, n_views=1, epochs=4, batch_size=16)),
}
FAMILIES = list(SMALL)
ON_FEATURES = [name for name in SMALL if name != "stnet"]

Function = Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]


def batch(
    slide: str = "a",
    *,
    n: int = 40,
    f: int = 6,
    g: int = 4,
    seed: int = 0,
    k: int = 4,
    y: Function | None = None,
    noise: float = 0.3,
) -> Batch:
    """Return locations of a square lattice with sub-tiles and nearest neighbours; y is of (own, neighbours' mean)."""
    rng = np.random.default_rng(seed)
    side = int(np.ceil(np.sqrt(n)))
    xy = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2)[:n] * 100.0
    x = rng.normal(size=(10 * n, f)).astype(np.float32)
    around = links.knn(xy, xy, n_neighbors=k) if k else None
    parts = links.Links(np.arange(n + 1) * 9, n + np.arange(9 * n))
    near = x[:n] if around is None else around.mean(x[:n], fill=0.0)
    truth = (np.exp(0.5 * x[:n, :1] @ np.ones((1, g))) if y is None else y(x[:n], near)).astype(np.float32)
    measured = truth + noise * rng.normal(size=truth.shape).astype(np.float32)
    return Batch(
        slide, x, np.arange(n), np.arange(n), xy, links=around, parts=parts, y=measured, truth=truth, scale="counts"
    )


def pixels(slide: str = "a", *, n: int = 24, g: int = 4, seed: int = 0, size: int = 16) -> Batch:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (n, size * size * 3)).astype(np.uint8)
    y = x[:, :g].astype(np.float32) / 255
    return Batch(slide, x, np.arange(n), np.arange(n), np.zeros((n, 2)), y=y, scale="log1p_cp10k")


def batches(name: str, n_slides: int = 2) -> list[Batch]:
    if name == "stnet":
        return [pixels(s, seed=i) for i, s in enumerate("abc"[:n_slides])]
    return [batch(s, seed=i, n=30 + 6 * i) for i, s in enumerate("abc"[:n_slides])]


def made(name: str, *, f: int = 6, g: int = 4, **settings: Any) -> Network:
    """Return a network in evaluation mode whose every weight and scale is random."""
    family, config = SMALL[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = family(replace(config, **settings), n_features=f, n_genes=g)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        model.gene_mean.uniform_(1, 2)
        model.gene_std.uniform_(0.5, 2)
    return model.eval()


def fit(name: str, given: list[Batch] | None = None, *, seed: int = 0, run: Run | None = None, **settings: Any) -> Any:
    family, config = SMALL[name]
    given = batches(name) if given is None else given
    groups = [b.slide for b in given]
    run = Run(device="cpu") if run is None else run
    return training.fit(family, replace(config, **settings), given, groups=groups, seed=seed, typical=False, run=run)


def same(a: Any, b: Any) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())


# Sizes.


@pytest.mark.parametrize(
    ("family", "config", "n_features", "n_genes", "n_parameters"),
    [
        (MISO, MISO.Config(loss="cosine"), 768, 785, 15_779_601),
        (DeepSpot, DeepSpot.Config(), 1536, 5000, 84_719_440),
        (STNet, STNet.Config(), 3 * 224 * 224, 250, 6_953_856 + 250 * 1025),
        (MLP, MLP.Config(hidden=(1024, 512), output="relu", loss="cosine"), 768, 785, 1_714_961),
    ],
)
def test_published_numbers_of_parameters(
    family: type[Network], config: BaseConfig, n_features: int, n_genes: int, n_parameters: int
) -> None:
    with torch.device("meta"):
        model = family(config, n_features=n_features, n_genes=n_genes)
    assert sum(p.numel() for p in model.parameters()) == n_parameters


# Networks against their slow forms.


def miso_pair(n: int, *, f: int = 5, dropout: float = 0.0) -> tuple[MISO, naive.Weights, Batch]:
    b = batch(n=n, f=f, g=3)
    config = MISO.Config(n_neighbors=4, width=24, inner=12, n_heads=3, standardize="none", dropout=dropout)
    model = MISO(config, n_features=f, n_genes=3)
    weights = naive.miso_weights(n_features=f, n_genes=3, width=24, inner=12)
    naive.fill_miso(model, weights)
    return model.eval(), weights, b


def rows_with_self(sample: Any) -> torch.Tensor:
    return torch.cat([sample.targets[:, None], sample.neighbors], dim=1)


@pytest.mark.parametrize("n", [30, 1400])
@pytest.mark.parametrize("f", [5, 40])
def test_miso_predicts_what_the_publication_computes(n: int, f: int) -> None:
    model, weights, b = miso_pair(n, f=f)
    sample = gather([b], [None])
    want = naive.naive_miso(weights, sample.features[: len(b.own)], rows_with_self(sample), n_heads=3)
    with torch.no_grad():
        torch.testing.assert_close(model(sample), want, atol=1e-5, rtol=1e-5)
    found = model.predict(b)[0]
    np.testing.assert_allclose(found, want.clamp(min=0), atol=1e-5, rtol=1e-5)
    few = np.arange(8)
    around = [b.links.indices[b.links.indptr[i] : b.links.indptr[i + 1]] for i in few]
    slow = naive.miso_by_location(weights, b.features, around, n_heads=3)
    np.testing.assert_allclose(found[:8], slow.clip(0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("n", [30, 1400])
def test_miso_learns_as_the_publication_does(n: int) -> None:
    model, weights, b = miso_pair(n)
    sample = gather([b], [None])
    for value in weights.values():
        value.requires_grad_()
    want = naive.naive_miso(weights, sample.features[:n], rows_with_self(sample), n_heads=3)
    losses.cosine(want, sample.y, sample.slides).backward()
    output = model.train()(sample)
    torch.testing.assert_close(output, want, atol=1e-5, rtol=1e-5)
    model.loss(output, sample).backward()
    gradients = naive.miso_gradients(model)
    assert gradients.keys() == weights.keys()
    for name, value in weights.items():
        torch.testing.assert_close(gradients[name], value.grad, atol=2e-5 * float(value.grad.abs().max()), rtol=1e-4)


def deepspot_pair(
    *, n_copies: int = 10, pools: tuple[str, str] = ("sum", "max")
) -> tuple[DeepSpot, naive.Weights, Any, Batch]:
    b = batch(g=3)
    config = DeepSpot.Config(
        context_um=120.0,
        width=8,
        n_phi=n_copies,
        n_rho=n_copies,
        standardize="none",
        scale_genes=False,
        parts_pool=pools[0],
        neighbors_pool=pools[1],
        phi_dropout=0.0,
        rho_dropout=0.0,
        output_dropout=0.0,
    )
    model = DeepSpot(config, n_features=6, n_genes=3)
    weights = naive.deepspot_weights(n_features=6, n_genes=3, width=8, n_copies=n_copies)
    naive.fill_deepspot(model, weights)
    return model.eval(), weights, gather([b], [None]), b


def bags(sample: Any) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    x = sample.features
    return x[sample.targets][:, None], x[sample.parts], [x[rows[rows >= 0]] for rows in sample.neighbors]


@pytest.mark.parametrize("n_copies", [1, 2, 7, 10])
def test_deepspot_predicts_what_the_publication_computes(n_copies: int) -> None:
    model, weights, sample, b = deepspot_pair(n_copies=n_copies)
    with torch.no_grad():
        want = naive.naive_deepspot(weights, *bags(sample))
        torch.testing.assert_close(model(sample), want, atol=1e-5, rtol=1e-5)
    found = model.predict(b)[0]
    np.testing.assert_allclose(found, want.clamp(min=0), atol=1e-5, rtol=1e-5)
    ragged = [[x.indices[x.indptr[i] : x.indptr[i + 1]] for i in range(40)] for x in (b.parts, b.links)]
    slow = naive.deepspot_by_location(weights, b.features, *ragged)
    np.testing.assert_allclose(found, slow.clip(0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pools", [("sum", "max"), ("mean", "sum"), ("max", "mean")])
def test_deepspot_learns_as_the_publication_does(pools: tuple[str, str]) -> None:
    model, weights, sample, _ = deepspot_pair(pools=pools)
    for value in weights.values():
        value.requires_grad_()
    want = naive.naive_deepspot(weights, *bags(sample), parts_pool=pools[0], neighbors_pool=pools[1])
    losses.mse(want, sample.y).backward()
    output = model.train()(sample)
    torch.testing.assert_close(output, want, atol=1e-5, rtol=1e-5)
    model.loss(output, sample).backward()
    gradients = naive.deepspot_gradients(model)
    assert gradients.keys() == weights.keys()
    for name, value in weights.items():
        torch.testing.assert_close(gradients[name], value.grad, atol=2e-5 * float(value.grad.abs().max()), rtol=1e-4)


# Medians and dropout.


@pytest.mark.parametrize("e", range(1, 14))
def test_median_by_exchanges_is_the_median(e: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "_BLOCK", {"cpu": 100})
    rng = torch.Generator().manual_seed(e)
    values = torch.randn(23, e, 5, generator=rng, dtype=torch.float64)
    assert torch.equal(layers.lower_median(values), values.median(dim=1).values)
    tied = torch.randint(-2, 3, (23, e, 5), generator=rng).double()
    assert torch.equal(layers.median_of_relus(tied), tied.relu().median(dim=1).values)
    ours, theirs = values.clone().requires_grad_(), values.clone().requires_grad_()
    weight = torch.randn(23, 5, generator=rng, dtype=torch.float64)
    (layers.median_of_relus(ours) * weight).sum().backward()
    (theirs.relu().median(dim=1).values * weight).sum().backward()
    assert torch.equal(ours.grad, theirs.grad)


def test_each_median_of_ties_sends_its_gradient_to_one_value() -> None:
    values = torch.ones(4, 6, 3, requires_grad=True)
    layers.median_of_relus(values).sum().backward()
    assert torch.equal(values.grad.sum(dim=1), torch.ones(4, 3))


def test_dropout_drops_its_share_and_no_gradient_passes_what_was_dropped() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kept = layers.dropout(torch.ones(300, 1001, requires_grad=True), 0.3)
        assert float((kept == 0).float().mean()) == pytest.approx(0.3, abs=0.005)
        assert abs(np.corrcoef(kept.detach().numpy()[:, :2].T)[0, 1]) < 0.2
        torch.manual_seed(0)
        assert torch.equal(layers.dropout(torch.ones(300, 1001), 0.3), kept)
        assert torch.equal(layers.dropout(kept, 0.0), kept)
        values = torch.rand(500, 3, 7, requires_grad=True)
        out = layers.median_of_relus(values, 0.3)
        out.sum().backward()
    scaled = values.detach() / 0.7
    # A median is one of the values, scaled up, and its gradient goes there; or zero, and goes nowhere.
    np.testing.assert_allclose((values.grad * values.detach()).sum(dim=1), out.detach(), rtol=1e-5)
    assert ((values.grad > 0).sum(dim=1) == (out > 0)).all()
    assert ((out[:, None] - scaled).abs().amin(dim=1)[out > 0] < 1e-6).all()
    # Two of three have to stay for a median above zero.
    assert float((out > 0).float().mean()) == pytest.approx(0.7**3 + 3 * 0.3 * 0.7**2, abs=0.03)


def test_dropout_of_deepspot_leaves_the_mean_alone() -> None:
    model = made("deepspot", f=6, n_phi=1, phi_dropout=0.0, rho_dropout=0.4, output_dropout=0.3)
    sample = gather([batch()], [None])
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        still = model(sample)
        model.train()
        each = torch.stack([model(sample) for _ in range(800)])
    assert ((each.mean(dim=0) - still).abs() < 5 * each.std(dim=0) / 800**0.5).all()


# Invariances.


@pytest.mark.parametrize("name", ["mlp, context", "miso", "deepspot"])
def test_order_and_padding_of_neighbours_do_not_matter(name: str) -> None:
    model, b = made(name), batch(n=30)
    sample = gather([b], [model.scaling(b)])
    rng = torch.Generator().manual_seed(0)
    order = torch.rand(30, sample.neighbors.shape[1] + 3, generator=rng).argsort(dim=1)
    wide = torch.nn.functional.pad(sample.neighbors, (0, 3), value=-1).gather(1, order)
    with torch.no_grad():
        torch.testing.assert_close(model(replace(sample, neighbors=wide)), model(sample), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_do_not_depend_on_what_else_is_predicted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    a = batches(name, 1)[0]
    model = made(name, f=a.features.shape[1])
    whole = model.predict(a)[0]
    assert whole.std(axis=0).min() > 1e-3
    rows = np.array([17, 3, 11, 5])
    np.testing.assert_allclose(model.predict(a.take(rows))[0], whole[rows], atol=1e-5, rtol=1e-4)
    monkeypatch.setattr(network, "BLOCK", 7)
    monkeypatch.setattr(models.stnet, "_BLOCK", 7)
    np.testing.assert_allclose(model.predict(a)[0], whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", [n for n in FAMILIES if n != "transformer"])
def test_slides_of_one_step_do_not_see_each_other(name: str) -> None:
    a, b = batches(name)
    model = made(name, f=a.features.shape[1])
    scalings = [model.scaling(x) for x in (a, b)]
    with torch.no_grad():
        together = model(gather([a, b], scalings))
        alone = [model(gather([x], [s])) for x, s in zip((a, b), scalings, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)


def test_the_global_transformer_takes_one_slide_at_a_time() -> None:
    a, b = batches("transformer")
    with pytest.raises(InputError, match="one slide; set batch_size=1"):
        made("transformer")(gather([a, b], [None, None], whole_slide=True))


@pytest.mark.parametrize("n", [3, 1])
def test_fewer_locations_than_neighbours(n: int) -> None:
    model, weights, _ = miso_pair(30)
    b = batch(n=n, f=5, g=3, k=36)
    assert b.links.counts().tolist() == [n - 1] * n
    everyone = torch.tensor([[i, *(j for j in range(n) if j != i)] for i in range(n)])
    want = naive.naive_miso(weights, torch.from_numpy(b.own), everyone, n_heads=3)
    np.testing.assert_allclose(model.predict(b)[0], want.clamp(min=0), atol=1e-5, rtol=1e-5)
    spot = made("deepspot", standardize="none").predict(batch(n=n, k=36))[0]
    assert np.isfinite(spot).all()


@pytest.mark.parametrize("name", ["mlp, context", "miso", "deepspot"])
def test_context_that_was_not_brought_is_asked_for(name: str) -> None:
    with pytest.raises(InputError, match="came without"):
        made(name).predict(replace(batch(), links=None))


# Losses.


@pytest.mark.parametrize("centred", [False, True])
def test_cosine_is_that_of_each_slide_and_gene(centred: bool) -> None:
    rng = np.random.default_rng(0)
    output, y = rng.normal(size=(2, 30, 5))
    slides = np.repeat([0, 1, 2], [3, 20, 7])
    y[slides == 1, 2] = 0
    found = losses.cosine(*(torch.from_numpy(x) for x in (output, y, slides)), centred=centred)
    assert float(found) == pytest.approx(naive.cosine_loss(output, y, slides, centred=centred))
    alone = losses.cosine(*(torch.from_numpy(x) for x in (output, y, 0 * slides)), centred=centred)
    assert float(alone) == pytest.approx(naive.cosine_loss(output, y, 0 * slides, centred=centred))


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("dead", ["y", "output"])
def test_a_gene_of_zeros_contributes_one_and_no_gradient(centred: bool, dead: str) -> None:
    output, y = torch.randn(2, 9, 1, generator=torch.Generator().manual_seed(0))
    output, y = output * (dead != "output"), y * (dead != "y")
    output.requires_grad_()
    loss = losses.cosine(output, y, torch.zeros(9, dtype=torch.int64), centred=centred)
    loss.backward()
    assert loss.item() == pytest.approx(1)
    assert torch.isfinite(output.grad).all()
    if dead == "y":
        assert (output.grad == 0).all()


def test_negative_binomial_is_scipys() -> None:
    rng = np.random.default_rng(0)
    totals = rng.integers(50, 5000, 12).astype(float)
    y, output, dispersion = rng.poisson(4.0, (12, 3)).astype(float), rng.normal(-5, 2, (12, 3)), rng.normal(0, 2, 3)
    found = losses.negative_binomial(*(torch.from_numpy(x) for x in (output, y, totals, dispersion)))
    assert float(found) == pytest.approx(naive.nb_loss(output, y, totals, dispersion))
    far = torch.full((12, 3), 80.0, requires_grad=True)
    losses.negative_binomial(far, torch.from_numpy(y).float(), torch.from_numpy(totals), torch.zeros(3)).backward()
    assert torch.isfinite(far.grad).all()


def test_mse_is_over_standardised_genes() -> None:
    model, b = made("mlp"), batch()
    sample = gather([b], [model.scaling(b)])
    output = model(sample)
    want = np.mean([(o - (y - m) / s) ** 2 for o, y, m, s in _columns(output, b, model)])
    assert model.loss(output, sample).item() == pytest.approx(float(want), rel=1e-5)
    np.testing.assert_allclose(
        model.predict(b)[0], (output * model.gene_std + model.gene_mean).clamp(min=0).detach(), rtol=1e-5
    )


def _columns(output: torch.Tensor, b: Batch, model: Network) -> list[Any]:
    values = output.detach().numpy(), b.y, model.gene_mean.numpy(), model.gene_std.numpy()
    return [(values[0][:, g], values[1][:, g], values[2][g], values[3][g]) for g in range(b.y.shape[1])]


# ST-Net.


def test_the_eight_views_are_the_ways_to_lay_a_tile() -> None:
    tile = torch.arange(2 * 3 * 25.0).view(2, 3, 5, 5)
    views = dihedral(tile)
    assert torch.equal(views[0], tile)
    assert len({v.numpy().tobytes() for v in views}) == 8
    corners = {tuple(v[0, 0, [0, 0, -1, -1], [0, -1, 0, -1]].tolist()) for v in views}
    assert len(corners) == 8
    for view in views:  # what is next to each other stays so
        assert sorted(view[1, 2].flatten().tolist()) == sorted(tile[1, 2].flatten().tolist())
        assert float(view[0, 0, 2, 2]) == float(tile[0, 0, 2, 2])


def test_prediction_over_views_does_not_see_how_a_tile_lies() -> None:
    b = pixels()
    tiles = b.features.reshape(-1, 16, 16, 3)
    turned = replace(b, features=np.rot90(tiles[:, ::-1], axes=(1, 2)).reshape(len(tiles), -1).copy())
    for n_views, invariant in ((8, True), (1, False)):
        model = made("stnet", f=768, n_views=n_views)
        apart = np.abs(model.predict(b)[0] - model.predict(turned)[0]).max()
        assert (apart < 1e-4) == invariant


def test_a_model_stored_before_keeps_its_log1p_cp10k() -> None:
    model = made("stnet", f=768)
    counts, total, n_genes = np.array([0.0, 1.0, 7.0, 300.0]), 3426.0, 20000.0
    model.set_buffer("library", np.array([total, n_genes]))
    share = torch.from_numpy(np.log((1 + counts) / (n_genes + total))).double()
    np.testing.assert_allclose(model.finish(share), np.log1p(counts / total * 1e4), rtol=1e-6, atol=1e-9)


def test_stnet_starts_at_the_training_mean() -> None:
    b = replace(pixels(), scale="log_share", totals=np.full(24, 900.0), n_measured=100)
    model = STNet(SMALL["stnet"][1], n_features=768, n_genes=4)
    model.begin([b])
    with torch.no_grad():
        out = model.eval()(gather([b], [model.scaling(b)]))
    np.testing.assert_allclose(out, np.tile(b.y.mean(0), (24, 1)), rtol=1e-5)
    assert model.library.tolist() == [0, 0]


def test_summed_errors_take_the_step_of_mean_errors_with_a_larger_rate() -> None:
    b = pixels()
    one = {"epochs": 1, "batch_size": 24}
    summed, _ = fit("stnet", [b], lr=1e-4, reduction="sum", **one)
    mean, _ = fit("stnet", [b], lr=24e-4, reduction="mean", **one)
    other, _ = fit("stnet", [b], lr=1e-4, reduction="mean", **one)
    for key, value in mean.named_parameters():
        torch.testing.assert_close(summed.get_parameter(key), value, atol=1e-6, rtol=1e-5)
    assert (summed.head.weight - other.head.weight).abs().max().item() > 1e-5


# Ensembles and files.


def test_an_ensembles_mean_and_spread_are_those_of_its_members() -> None:
    given = batches("mlp")
    model, facts = training.fit(
        Ensemble, Ensemble.Config(SMALL["mlp"][1], 3), given, groups=["a", "b"], typical=False, run=CPU
    )
    assert facts["n_ensemble"] == 3
    each = np.stack([m.predict(given[0])[0] for m in model.members]).astype(np.float64)
    assert np.ptp(each, axis=0).min() > 0
    mean, std = model.predict(given[0])
    np.testing.assert_allclose(mean, each.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(std, each.std(0), rtol=1e-4, atol=1e-6)
    alone, _ = fit("mlp", given, seed=2)
    assert same(alone, model.members[2])


def test_members_of_open_scale_are_brought_to_one() -> None:
    b, one, ten = batch(), made("miso"), made("miso")
    with torch.no_grad():
        factors = torch.tensor([1.0, 10.0, 100.0, 0.1])
        ten.last.weight.mul_(factors[:, None])
        ten.last.bias.mul_(factors)
    model = Ensemble(Ensemble.Config(SMALL["miso"][1], 2), n_features=6, n_genes=4)
    model.set_members([one, ten], [b], relative=True)
    mean, std = model.predict(b)
    assert (std <= 1e-4 * mean.max(axis=0)).all()
    for g in range(4):
        assert np.corrcoef(mean[:, g], one.predict(b)[0][:, g])[0, 1] > 0.9999


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_loaded_predicts_the_same_bits(name: str, tmp_path: Path) -> None:
    b = batches(name, 1)[0]
    model = made(name, f=b.features.shape[1])
    model.record = Record(name=name, genes=[f"G{i}" for i in range(4)])
    again = models.load(models.save(model, tmp_path / "model"))
    assert type(again) is type(model)
    assert again.config == model.config
    assert again.id == model.id
    assert same(again, model)
    np.testing.assert_array_equal(again.predict(b)[0], model.predict(b)[0])


# Training.


@pytest.mark.parametrize("name", FAMILIES)
def test_a_seed_decides_and_leaves_global_random_state_alone(name: str) -> None:
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    before, legacy = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, facts = fit(name)
    assert torch.equal(before, torch.random.get_rng_state())
    assert np.array_equal(legacy, np.random.get_state()[1])  # noqa: NPY002
    torch.manual_seed(99)
    again, _ = fit(name)
    other, _ = fit(name, seed=1)
    assert same(first, again)
    assert not same(first, other)
    assert facts["epochs"] == 4
    assert not first.training


class Stopped(Exception):
    pass


def stop_in(epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let training break off in an epoch; the state of every epoch before is on disk."""
    monkeypatch.setattr(_loop, "SAVE_EVERY_S", 0.0)

    def hook(self: Network, n: int) -> bool:
        if n == epoch:
            raise Stopped
        return False

    monkeypatch.setattr(Network, "on_epoch_end", hook)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_interrupted_training_goes_on_to_the_same_weights(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    want, facts = fit(name)
    with monkeypatch.context() as context:
        stop_in(3, context)
        with pytest.raises(Stopped):
            fit(name, run=Run(device="cpu", checkpoint=tmp_path))
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    with caplog.at_level(logging.INFO, logger="stpred"):
        found, again = fit(name, run=Run(device="cpu", checkpoint=tmp_path))
    assert "Training goes on after epoch 2" in caplog.text
    assert same(found, want)
    assert again == facts


@pytest.mark.parametrize("name", ["mlp", "miso"])
def test_choosing_epochs_goes_on_where_it_was_interrupted(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {"epochs": None, "max_epochs": 4, "patience": 2}
    want, facts = fit(name, **how)
    with monkeypatch.context() as context:
        stop_in(3, context)
        with pytest.raises(Stopped):
            fit(name, run=Run(device="cpu", checkpoint=tmp_path), **how)
    run = Run(device="cpu", checkpoint=tmp_path)
    with resumable(run):
        found, again = fit(name, run=run, **how)
        assert same(found, want)
        assert again == facts
        assert len(list(tmp_path.iterdir())) == 3  # two folds and the whole
    assert not tmp_path.exists()


def test_a_damaged_checkpoint_is_told_and_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    want, _ = fit("mlp", run=Run(device="cpu", checkpoint=tmp_path))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    found, _ = fit("mlp", run=Run(device="cpu", checkpoint=tmp_path))
    assert "is damaged" in caplog.text
    assert file.name in caplog.text
    assert same(found, want)


def test_another_seed_or_setting_has_a_checkpoint_of_its_own(tmp_path: Path) -> None:
    for seed, lr in ((0, 1e-3), (1, 1e-3), (0, 1e-2)):
        fit("mlp", seed=seed, lr=lr, run=Run(device="cpu", checkpoint=tmp_path))
    assert len(list(tmp_path.iterdir())) == 3


def test_a_loss_that_is_no_number_names_slide_and_epoch() -> None:
    a, b = batches("miso")
    b.y[4, 1] = 1e30  # finite, but its square is not
    with pytest.raises(
        InputError, match=r"(loss|gradient) became (nan|inf) in epoch 1, in a step of 36 locations of slides \['b'\]"
    ):
        fit("miso", [a, b])


@pytest.mark.parametrize(("what", "named"), [("y", "targets"), ("features", "features")])
def test_values_that_are_no_numbers_are_refused_before_training(what: str, named: str) -> None:
    a, b = batches("mlp")
    getattr(b, what)[4, 1] = np.nan
    with pytest.raises(InputError, match=rf"Slide 'b' has {named} that are not finite at 1 locations, first in row 4"):
        fit("mlp", [a, b])


def test_epochs_are_chosen_on_left_out_donors() -> None:
    how = {"epochs": None, "max_epochs": 6, "epochs_alone": 3, "lr": 0.01}
    given = [batch(s, seed=i) for i, s in enumerate("abc")]
    _, facts = fit("mlp", given, **how)
    assert facts["epochs_chosen_by"] == "left-out donors"
    assert 1 <= facts["epochs"] <= 6
    _, facts = fit("mlp", given[:1], **how)
    assert facts["epochs_chosen_by"].startswith("epochs_alone")
    assert facts["epochs"] == 3
    # In noise the first epochs are as good as the last, and training stops early.
    rng = np.random.default_rng(0)
    noise = [replace(b, y=rng.permutation(b.y), truth=None) for b in given]
    config = MLP.Config(**(how | {"max_epochs": 40, "patience": 2}))
    folds = training.fit_and_score(MLP, config, noise, groups=list("abc")).folds
    assert max(len(c.pearson) for c in folds) < 40


def test_oversampling_draws_equally_many_locations_of_each_cluster() -> None:
    a, b = batches("deepspot")
    clusters = [np.repeat([0, 1, 2], [20, 7, 3]), np.repeat([0, 1], [35, 1])]
    slide, row = _samplers._locations([a, b], np.random.default_rng(0), clusters)
    for i, sizes in enumerate(([20, 20, 20], [35, 35])):
        assert np.bincount(clusters[i][row[slide == i]]).tolist() == sizes
    model, _ = fit("deepspot", [a, b], oversample=3)
    again, _ = fit("deepspot", [a, b], oversample=3)
    assert same(model, again)
    assert not same(model, fit("deepspot", [a, b])[0])


@pytest.mark.parametrize("name", FAMILIES)
def test_half_precision_stays_near(name: str) -> None:
    given = batches(name)
    exact = fit(name, given, epochs=1)[0].predict(given[0])[0]
    half = fit(name, given, epochs=1, run=Run(device="cpu", precision="bf16-mixed"))[0].predict(given[0])[0]
    assert half.dtype == np.float32
    np.testing.assert_allclose(half, exact, atol=0.1 * np.abs(exact).max())


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match="'cuda:7' is not there"):
        fit("mlp", run=Run(device="cuda:7"))


# Known truth.

A = np.random.default_rng(5).normal(size=(6, 8)) * 0.4
TRUTH: dict[str, tuple[type[Network], dict[str, Any]]] = {
    "mlp": (MLP, {"hidden": (32,), "lr": 5e-3}),
    "miso": (MISO, {"n_neighbors": 4, "width": 64, "inner": 32, "n_heads": 4, "loss": "pearson", "lr": 3e-3}),
    "deepspot": (
        DeepSpot,
        {
            "context": "spot+neighbors",
            "context_um": 120.0,
            "width": 32,
            "n_phi": 3,
            "n_rho": 2,
            "lr": 5e-3,
            "batch_size": 128,
        },
    ),
}


def left_out(name: str, y: Function, *, noise: float = 0.3, **settings: Any) -> float:
    """Return the median over genes of the correlation with the truth on a slide that was not trained on."""
    family, how = TRUTH[name]
    # Without sub-tiles: what a batch holds is embedded, whether it is used or not.
    given = [replace(batch(s, n=400, seed=i, y=y, noise=noise), parts=None) for i, s in enumerate("abcd")]
    config = family.Config(**{"epochs": 25 if name != "miso" else 60, **how, **settings})
    model, _ = training.fit(family, config, given[:3], groups=list("abc"), typical=False, run=Run(device="cpu"))
    return float(np.median(metrics.pearson(model.predict(given[3])[0], given[3].truth)))


@pytest.mark.parametrize("name", list(TRUTH))
def test_a_function_of_the_tile_is_found(name: str) -> None:
    assert left_out(name, lambda own, _: np.exp(own @ A)) > 0.8


@pytest.mark.parametrize(
    ("name", "alone", "settings"),
    [
        ("miso", {"n_neighbors": 0}, {}),
        ("deepspot", {"context": "spot"}, {}),
        ("deepspot", {"context": "spot"}, {"neighbors_pool": "mean"}),
    ],
)
def test_a_function_of_the_neighbours_is_found_by_those_that_see_them(
    name: str, alone: dict[str, Any], settings: dict[str, Any]
) -> None:
    def around(_: NDArray[Any], near: NDArray[Any]) -> NDArray[Any]:
        return np.exp(2 * near @ A)

    with_them, without = left_out(name, around, **settings), left_out(name, around, **alone)
    assert with_them > 0.5
    assert abs(without) < 0.2


@pytest.mark.parametrize("name", list(TRUTH))
def test_nothing_is_found_where_there_is_nothing(name: str) -> None:
    rng = np.random.default_rng(9)
    assert abs(left_out(name, lambda own, _: np.exp(rng.normal(size=(len(own), 40))), epochs=5)) < 0.05


def test_spread_of_negative_binomial_predictions_is_that_of_the_counts() -> None:
    from stpred.models import Ensemble

    rng = np.random.default_rng(0)
    config = MLP.Config(hidden=(4,), loss="nb", standardize="none")
    model = MLP(config, n_features=3, n_genes=4)
    theta, library = np.array([1.0, 3.0, 10.0, 1e6]), 20_000
    with torch.no_grad():
        model.log_dispersion.copy_(torch.from_numpy(np.log(theta)))
        model.head.bias.copy_(torch.logit(torch.full((4,), 0.01)))  # 200 of 20 000 counts
        model.head.weight.zero_()
    model.set_buffer("library_median", np.array(library))
    batch = Batch.of(rng.normal(size=(5, 3)).astype(np.float32))
    mean, std = model.eval().predict(batch)
    assert std is not None
    assert mean.shape == std.shape == (5, 4)
    rates = rng.gamma(theta, 200 / theta, size=(200_000, 4))
    drawn = np.log1p(rng.poisson(rates) * 1e4 / library)
    np.testing.assert_allclose(std[0, 1:], drawn.std(axis=0)[1:], rtol=0.15)  # to first order: wide ones are off
    assert std[0, 0] > std[0, 1] > std[0, 2] > std[0, 3]
    both = Ensemble(Ensemble.Config(config, 2), n_features=3, n_genes=4)
    both.set_members([model, model], [batch], relative=False)
    np.testing.assert_allclose(both.predict(batch)[1], std, rtol=1e-5)  # members that agree are as sure as each
    assert MLP(MLP.Config(hidden=(4,)), n_features=3, n_genes=4).predict(batch)[1] is None

"""Families that see locations through their cells: pooling, scaling and losses against slow references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stpred import InputError
from stpred.links import Links
from stpred.models import Batch, DeepCell, DeepSpot2Cell, SCellST
from stpred.models.batch import Patches
from stpred.models.parts.layers import segment_mean, segment_softmax, segment_sum
from stpred.models.parts.sample import gather
from stpred.training import fit


def cells_at_random(rng: np.random.Generator, *, n: int = 12, m: int = 60) -> Links:
    """n locations, each with one to seven of m cells, in no order."""
    counts = rng.integers(1, 8, n)
    return Links(np.concatenate([[0], np.cumsum(counts)]), rng.permutation(m)[: counts.sum()])


def batch_at_random(*, seed: int = 0, n_genes: int = 4, width: int = 6, **more: Any) -> Batch:
    rng = np.random.default_rng(seed)
    cells = cells_at_random(rng)
    features = rng.normal(size=(60, width)).astype(np.float32)
    y = rng.gamma(2.0, 1.0, (12, n_genes)).astype(np.float32)
    coords = rng.uniform(0, 500, (12, 2))
    return Batch.of(features, cells=cells, y=y, coords_um=coords, scale="log1p_cp10k", **more)


def forward_slowly(model: SCellST, batch: Batch, scaled: np.ndarray) -> np.ndarray:
    """The published network, a cell at a time, and the pool, a spot at a time."""
    weights = [(layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in model.layers]
    out = []
    for i in range(batch.cells.n_targets):
        cells = []
        for row in batch.cells.indices[batch.cells.indptr[i] : batch.cells.indptr[i + 1]]:
            x = scaled[row].astype(np.float64)
            for k, (w, b) in enumerate(weights):
                x = w @ x + b
                if k < len(weights) - 1:
                    x = np.where(x > 0, x, 0.01 * x)
            cells.append(np.log1p(np.exp(20 * x)) / 20)
        out.append(np.sum(cells, axis=0) if model.config.pool == "sum" else np.mean(cells, axis=0))
    return np.stack(out)


@pytest.mark.parametrize("pool", ["mean", "sum"])
def test_scellst_is_the_published_network_pooled_over_cells(pool: str) -> None:
    batch = batch_at_random()
    torch.manual_seed(0)
    model = SCellST(SCellST.Config(hidden=(8, 7), pool=pool, standardize="none"), n_features=6, n_genes=4).eval()
    with torch.no_grad():
        found = model(gather([batch], [None])).numpy()
    np.testing.assert_allclose(found, forward_slowly(model, batch, batch.features), rtol=1e-5, atol=1e-6)


def test_a_spot_does_not_depend_on_order_other_spots_or_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_at_random()
    for pool in ("mean", "sum", "attention"):
        torch.manual_seed(1)
        model = SCellST(SCellST.Config(hidden=(8,), pool=pool), n_features=6, n_genes=4).eval()
        want = model.predict(batch)[0]
        rows = np.random.default_rng(2).permutation(12)[:7]
        np.testing.assert_allclose(model.predict(batch.take(rows))[0], want[rows], rtol=1e-5, atol=1e-6)
        turned = [
            batch.cells.indices[a:b][::-1] for a, b in zip(batch.cells.indptr, batch.cells.indptr[1:], strict=False)
        ]
        other = Batch.of(batch.features, cells=turned)
        np.testing.assert_allclose(model.predict(other)[0], want, rtol=1e-5, atol=1e-6)
        monkeypatch.setattr("stpred.models.parts.network.BLOCK", 5)
        np.testing.assert_allclose(model.predict(batch)[0], want, rtol=1e-5, atol=1e-6)
        monkeypatch.undo()


def test_training_sees_what_prediction_sees() -> None:
    """`ready` reorders and standardises once; the outputs are those of the plain path."""
    batch = batch_at_random()
    torch.manual_seed(0)
    model = SCellST(SCellST.Config(hidden=(8,), scale_genes=False), n_features=6, n_genes=4).eval()
    once, scaling = model.ready(batch)
    assert scaling is None
    assert np.array_equal(once.cells.indices, np.arange(once.cells.indices.size))  # a spot's cells lie together
    with torch.no_grad():
        found = model.finish(model(gather([once], [None]))).numpy()
    np.testing.assert_allclose(found, model.predict(batch)[0], rtol=1e-5, atol=1e-6)


def test_segments_match_loops_and_have_gradients() -> None:
    rng = np.random.default_rng(0)
    owners = torch.from_numpy(np.sort(rng.integers(0, 7, 30)))
    owners = owners[owners != 3]  # one segment is empty
    values = torch.from_numpy(rng.normal(size=(len(owners), 5)).astype(np.float32)).requires_grad_()
    total = segment_sum(values, owners, 7)
    slow = np.stack([values.detach().numpy()[owners.numpy() == i].sum(axis=0) for i in range(7)])
    np.testing.assert_allclose(total.detach().numpy(), slow, rtol=1e-5, atol=1e-6)
    mean = segment_mean(values, owners, 7)
    assert (mean[3] == 0).all()
    weight = torch.from_numpy(rng.normal(size=(7, 5)).astype(np.float32))
    (mean * weight).sum().backward()
    counts = torch.bincount(owners, minlength=7)
    np.testing.assert_allclose(values.grad, (weight / counts[:, None].clamp(min=1))[owners], rtol=1e-5)
    soft = segment_softmax(values[:, 0] * 50, owners, 7)
    for i in set(owners.tolist()):
        torch.testing.assert_close(soft[owners == i], (values[owners == i, 0] * 50).softmax(0))


def test_genes_are_scaled_by_the_range_of_each_slide() -> None:
    first, second = batch_at_random(seed=1), batch_at_random(seed=2)
    second = Batch.of(second.features, cells=second.cells, y=second.y * 3, scale="log1p_cp10k", slide="b")
    model = SCellST(SCellST.Config(hidden=(8,)), n_features=6, n_genes=4)
    model.begin([first, second])
    spans = [np.quantile(b.y, 0.95, axis=0) - b.y.min(axis=0) for b in (first, second)]
    np.testing.assert_allclose(model.gene_std, np.mean(spans, axis=0), rtol=1e-6)
    for batch, span in zip((first, second), spans, strict=True):
        sample = gather([model.ready(batch)[0]], [None])
        want = np.square(np.zeros((12, 4)) - batch.y / span).mean()
        assert float(model.loss(torch.zeros(12, 4), sample)) == pytest.approx(want, rel=1e-5)
    # It starts at the mean of the scaled spots.
    with torch.no_grad():
        for layer in list(model.layers)[:-1]:
            layer.weight.zero_()
            layer.bias.zero_()
    start = model.eval()(gather([model.ready(first)[0]], [None])).detach().numpy()[0]
    mean = np.concatenate([first.y, second.y]).mean(axis=0)
    np.testing.assert_allclose(start, mean / model.gene_std.numpy(), rtol=0.05)


def test_counts_have_the_likelihood_of_the_mean_share() -> None:
    from scipy.stats import nbinom

    rng = np.random.default_rng(0)
    cells = cells_at_random(rng)
    totals = rng.integers(500, 3000, 12).astype(np.float64)
    y = rng.poisson(5.0, (12, 4)).astype(np.float32)
    batch = Batch.of(rng.normal(size=(60, 6)).astype(np.float32), cells=cells, y=y, totals=totals, scale="counts")
    torch.manual_seed(0)
    model = SCellST(SCellST.Config(hidden=(8,), loss="nb", standardize="none"), n_features=6, n_genes=4).eval()
    model.begin([batch])
    with torch.no_grad():
        model.log_dispersion.copy_(torch.tensor([0.0, 0.5, 1.0, 2.0]))
        sample = gather([batch], [None])
        share = torch.sigmoid(model.per_cell(sample)).numpy().astype(np.float64)
        loss = float(model.loss(model(sample), sample))
    pooled = np.stack([share[a:b].mean(axis=0) for a, b in zip(cells.indptr, cells.indptr[1:], strict=False)])
    mu, theta = pooled * totals[:, None], np.exp([0.0, 0.5, 1.0, 2.0])
    slow = -nbinom.logpmf(y, theta, theta / (theta + mu)).mean()
    assert loss == pytest.approx(slow, rel=1e-4)
    np.testing.assert_allclose(model.predict(batch)[0], np.log1p(1e4 * pooled), rtol=1e-4)
    fitted, _ = fit(SCellST, SCellST.Config(hidden=(8,), loss="nb", epochs=3), [batch], groups=["a"])
    assert np.isfinite(fitted.predict(batch)[0]).all()


def with_patches(batch: Batch, *, seed: int = 0) -> Batch:
    from dataclasses import replace

    rng = np.random.default_rng(seed)
    tiles = rng.normal(size=(9, batch.features.shape[1])).astype(np.float32)
    counts = rng.integers(1, 5, len(batch.targets))
    around = Links(np.concatenate([[0], np.cumsum(counts)]), rng.integers(0, 9, counts.sum()))
    return replace(batch, patches=Patches(tiles, around, np.arange(9)))


def test_cells_of_deepspot2cell_add_up_to_their_spot() -> None:
    batch = with_patches(batch_at_random())
    config = DeepSpot2Cell.Config(width=8, n_phi=3, n_rho=2, epochs=3)
    model, _ = fit(DeepSpot2Cell, config, [batch], groups=["a"], typical=False)
    spots = model.predict(batch)[0]
    owner = np.repeat(np.arange(12), batch.cells.counts())
    from dataclasses import replace

    n = len(owner)
    single = replace(
        batch,
        targets=batch.cells.indices,
        cells=Links(np.arange(n + 1), batch.cells.indices),
        coords_um=batch.coords_um[owner],
        patches=batch.patches.take(owner),
        y=None,
    )
    alone = model.predict(single)[0]
    assert (alone >= 0).all()
    assert alone.max() > 0
    total = np.stack([alone[owner == i].sum(axis=0) for i in range(12)])
    np.testing.assert_allclose(total, spots, rtol=1e-4)


def test_deepspot2cell_is_its_formula() -> None:
    batch = with_patches(batch_at_random())
    torch.manual_seed(0)
    model = DeepSpot2Cell(
        DeepSpot2Cell.Config(width=5, n_phi=3, n_rho=2, standardize="none"), n_features=6, n_genes=4
    ).eval()

    def phi(net: Any, x: Tensor) -> Tensor:
        return torch.stack([copy(x) for copy in net.copies]).median(dim=0).values  # torch's median is the lower one

    want = []
    for i in range(12):
        inside = batch.cells.indices[batch.cells.indptr[i] : batch.cells.indptr[i + 1]]
        own, *others = batch.patches.links.indices[batch.patches.links.indptr[i] : batch.patches.links.indptr[i + 1]]
        spot = phi(model.phi_spot, torch.from_numpy(batch.patches.features[[own]]))[0]
        around = phi(model.phi_spot, torch.from_numpy(batch.patches.features[others])).mean(dim=0) if others else spot
        total: Any = 0
        for row in inside:
            cell = phi(model.phi_cell, torch.from_numpy(batch.features[[row]]))[0]
            x = torch.cat([cell, spot, around])
            total = total + torch.nn.functional.softplus(sum(r(x) for r in model.rho) / 2) * model.amount
        want.append(total.detach().numpy())
    np.testing.assert_allclose(model.predict(batch)[0], np.stack(want), rtol=1e-4, atol=1e-5)


def test_deepcell_sees_the_neighbours_of_each_cell() -> None:
    from dataclasses import replace

    batch = batch_at_random()
    rng = np.random.default_rng(3)
    near = Links(np.arange(61) * 4, rng.integers(0, 60, 240))
    config = DeepCell.Config(n_neighbors=4, width=8, n_phi=3, n_rho=2, standardize="none")
    torch.manual_seed(0)
    model = DeepCell(config, n_features=6, n_genes=4).eval()
    batch = replace(batch, cell_links=near)
    z = model.embed(torch.from_numpy(batch.features)).detach().numpy()
    weight, bias = (t.detach().numpy() for t in model.fold())
    want = []
    for a, b in zip(batch.cells.indptr, batch.cells.indptr[1:], strict=False):
        cells = batch.cells.indices[a:b]
        around = np.stack([z[near.indices[4 * c : 4 * c + 4]].max(axis=0) for c in cells])
        want.append((np.concatenate([z[cells], around], axis=1) @ weight.T + bias).mean(axis=0))
    np.testing.assert_allclose(model.outputs(batch), np.stack(want), rtol=1e-4, atol=1e-5)


def test_bad_input_of_cell_models() -> None:
    with pytest.raises(InputError, match=r"`pool` must be one of .*'attention'.*got 'max'"):
        SCellST.Config(pool="max")
    with pytest.raises(InputError, match="shares are averaged"):
        SCellST.Config(loss="nb", pool="sum")
    with pytest.raises(InputError, match="`context` and `context_um` are not for it"):
        DeepCell.Config(context_um=20.0)
    with pytest.raises(InputError, match="2 locations hold no cell"):
        Batch.of(np.zeros((3, 2), np.float32), cells=[[0], [], [1, 2], []])
    model = DeepSpot2Cell(DeepSpot2Cell.Config(width=4), n_features=6, n_genes=4)
    with pytest.raises(InputError, match="without the tiles of the spots"):
        model.predict(batch_at_random())
    with pytest.raises(InputError, match="not on .counts."):
        model.config.training_target("counts")

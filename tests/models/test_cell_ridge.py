"""sCellST in closed form: against ridge written out, cells and spots, settings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stpred import InputError
from stpred.links import Links
from stpred.models import Batch, Ensemble, SCellST
from stpred.training import fit

WIDTHS = (5, 3)


def batch_at_random(seed: int, *, n: int = 40, n_genes: int = 4, weights: np.ndarray | None = None) -> Batch:
    """Spots of one to seven cells, whose expression is linear in the cells' features and noisy."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 8, n)
    cells = Links(np.concatenate([[0], np.cumsum(counts)]), rng.permutation(300)[: counts.sum()])
    x = rng.normal(size=(300, sum(WIDTHS))).astype(np.float32)
    x[:, WIDTHS[0] :] *= 30.0
    truth = np.random.default_rng(0).normal(size=(sum(WIDTHS), n_genes)) / np.repeat([1.0, 30.0], WIDTHS)[:, None]
    y = (cells.mean(x) @ truth + rng.normal(scale=0.3, size=(n, n_genes)) + 2.0).astype(np.float32)
    totals = rng.integers(500, 5000, n).astype(float)
    return Batch.of(x, cells=cells, y=y, totals=totals, slide=f"s{seed}", blocks=WIDTHS)


def means_slowly(batch: Batch, standardize: str) -> np.ndarray:
    x = batch.features.astype(np.float64)
    if standardize == "slide":
        x = ((x - x[batch.sources].mean(axis=0)) / x[batch.sources].std(axis=0)).clip(-8, 8)
    indptr, indices = batch.cells.indptr, batch.cells.indices
    return np.stack([np.mean([x[r] for r in indices[indptr[i] : indptr[i + 1]]], axis=0) for i in range(len(batch.y))])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("standardize", ["slide", "none"])
def test_it_is_ridge_on_the_mean_of_the_cells(standardize: str, *, weighted: bool) -> None:
    """With a penalty on each weight in units of its block: a block counts as much as its columns vary in the mean."""
    batches = [batch_at_random(1), batch_at_random(2)]
    penalty = 0.7
    config = SCellST.Config(
        penalty=penalty,
        block_weights="equal",
        standardize=standardize,
        location_weights="depth" if weighted else None,
    )
    model, _ = fit(SCellST, config, batches, groups=["a", "b"], typical=False)
    x = np.concatenate([means_slowly(b, standardize) for b in batches])
    y = np.concatenate([b.y for b in batches]).astype(np.float64)
    totals = np.concatenate([b.totals for b in batches])
    w = np.sqrt(totals / np.median(totals)) if weighted else np.ones(len(y))
    w = w / w.mean()
    # Half of a total variance of 100 for either block.
    parts = np.split(x.var(axis=0), [WIDTHS[0]])
    size = np.concatenate([np.full(len(p), p.mean() * len(p) / 50.0) for p in parts])
    a = x - w @ x / w.sum()
    left = a.T @ (w[:, None] * a) + penalty * len(y) * np.diag(size)
    coef = np.linalg.solve(left, a.T @ (w[:, None] * (y - w @ y / w.sum())))
    np.testing.assert_allclose(model.coef.numpy(), coef, rtol=1e-3, atol=1e-5)
    want = means_slowly(batches[0], standardize) @ coef + w @ (y - x @ coef) / w.sum()
    np.testing.assert_allclose(model.predict(batches[0])[0], want, rtol=1e-4, atol=1e-4)


def test_a_spot_is_the_mean_of_its_cells_whatever_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [batch_at_random(k) for k in (1, 2)]
    model, chosen = fit(SCellST, SCellST.Config(), batches, groups=["a", "b"], typical=False)
    assert chosen["penalty_chosen_by"] == "leaving groups out"
    assert len(chosen["block_weights"]) == 2
    new = batch_at_random(3)
    spots = model.predict(new)[0]
    single = Batch.of(new.features, cells=[[i] for i in range(300)], blocks=WIDTHS)
    cells = model.predict(single)[0]
    np.testing.assert_allclose(new.cells.mean(cells), spots, rtol=1e-4, atol=1e-4)
    rows = np.random.default_rng(0).permutation(40)[:9]
    np.testing.assert_allclose(model.predict(new.take(rows))[0], spots[rows], rtol=1e-5, atol=1e-6)
    ends = zip(new.cells.indptr, new.cells.indptr[1:], strict=False)
    turned = Batch.of(new.features, cells=[new.cells.indices[a:b][::-1] for a, b in ends], blocks=WIDTHS)
    np.testing.assert_allclose(model.predict(turned)[0], spots, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr("stpred.models.parts.cell_ridge.BLOCK", 7)
    np.testing.assert_allclose(model.predict(new)[0], spots, rtol=1e-5, atol=1e-6)


def test_slides_of_another_stain_are_the_same_cells() -> None:
    batches = [batch_at_random(k) for k in (1, 2)]
    model, _ = fit(SCellST, SCellST.Config(), batches, groups=["a", "b"], typical=False)
    new = batch_at_random(3)
    stained = Batch.of(new.features * 1.3 + 2.0, cells=new.cells, blocks=WIDTHS)
    np.testing.assert_allclose(model.predict(stained)[0], model.predict(new)[0], rtol=1e-3, atol=1e-3)
    fixed, _ = fit(SCellST, SCellST.Config(standardize="train"), batches, groups=["a", "b"], typical=False)
    assert np.abs(fixed.predict(stained)[0] - fixed.predict(new)[0]).max() > 0.1


def test_members_of_an_ensemble_differ_by_what_they_are_fitted_on() -> None:
    batches = [batch_at_random(k) for k in (1, 2, 3)]
    config = Ensemble.Config(SCellST.Config(penalty=1.0), n_members=2)
    model, _ = fit(Ensemble, config, batches, groups=["a", "b", "c"], typical=False)
    _, std = model.predict(batch_at_random(4))
    assert std.mean() > 1e-3


def test_which_regressor_is_meant() -> None:
    config = SCellST.Config
    assert config().regressor == "ridge"
    assert config(context_um=30.0, penalty=1.0).regressor == "ridge"
    assert config(hidden=(8,)).regressor == config(loss="nb").regressor == "perceptron"
    assert (config.published().regressor, config.published().tile_um) == ("perceptron", None)
    assert config.published(lr=1e-3).lr == 1e-3
    assert config.parse(config().to_dict()) == config()
    assert config.parse(config(lr=1e-3).to_dict()) == config(lr=1e-3)
    old = {k: v for k, v in config.published().to_dict().items() if k not in NEW}
    assert config.parse(old) == config.published()  # stored before there was a choice


NEW = ("regressor", "tile_um", "penalty", "block_weights", "location_weights")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"regressor": "tree"}, r"`regressor` must be one of \['ridge', 'perceptron'\], got 'tree'"),
        ({"regressor": "ridge", "pool": "sum"}, r"\['pool'\] are settings of regressor='perceptron'"),
        ({"penalty": 1.0, "lr": 1e-3}, r"\['penalty'\] are settings of regressor='ridge'"),
        ({"penalty": 0.0}, r"`penalty` must be a positive number"),
        ({"tile_um": -1.0}, r"`tile_um`"),
        ({"block_weights": "best"}, r"`block_weights` must be one of"),
        ({"location_weights": "area"}, r"`location_weights` must be one of"),
    ],
)
def test_bad_settings(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        SCellST.Config(**given)

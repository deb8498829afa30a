"""Going on from trained weights, on arrays: what moves, what is chosen, and what is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stpred as st
from stpred import training
from stpred.models.batch import Batch
from stpred.models.ensemble import Ensemble
from stpred.training._tuning.parts import BLOCKS, DONORS, Part, Trial, choose, parts_of

G, WIDTH = 6, 16
ALL = np.ones(G, dtype=bool)
RNG = np.random.default_rng(11)
SHARED = RNG.normal(0, 1, (WIDTH, G))
OWN = SHARED + RNG.normal(0, 0.5, (WIDTH, G))
"""Weights of the old donors, and of the own one."""


def slide(name: str, weights: np.ndarray, *, seed: int, edge: int = 13, noise: float = 6.0) -> Batch:
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (edge * edge, WIDTH)).astype(np.float32)
    y = (9 + x @ weights + rng.normal(0, noise, (len(x), G))).astype(np.float32)
    at = np.stack(np.meshgrid(np.arange(edge), np.arange(edge)), axis=-1).reshape(-1, 2) * 100.0
    neighbours = [[j for j in (i - 1, i + 1) if 0 <= j < len(x)] for i in range(len(x))]
    return Batch.of(x, neighbors=neighbours, coords_um=at, slide=name, y=y, scale="log1p_cp10k")


OLD_SLIDES = [slide(f"old{i}", SHARED, seed=i, noise=3.0) for i in range(3)]
MINE = slide("mine", OWN, seed=8)
FRESH = slide("fresh", OWN, seed=9, noise=0.0)
CONFIGS: dict[str, Any] = {
    "ridge": st.models.Ridge.Config(),
    "mlp": st.models.MLP.Config(hidden=(32,), lr=3e-3, max_epochs=12, batch_size=32),
    "deepspot": st.models.DeepSpot.Config(
        context="spot+neighbors", context_um=150.0, width=32, n_phi=2, n_rho=2, lr=3e-3, max_epochs=12, batch_size=32
    ),
    "miso": st.models.MISO.Config(
        n_neighbors=2, width=16, inner=8, n_heads=2, lr=3e-3, max_epochs=30, loss="pearson", standardize="slide"
    ),
}
_TRAINED: dict[str, Any] = {}


def old_model(family: str) -> Any:
    if family not in _TRAINED:
        config = CONFIGS[family]
        given = config if family == "ridge" else replace(config, epochs=config.max_epochs)
        model, _ = training.fit(config.model_class, given, OLD_SLIDES, groups=["a", "b", "c"])
        model.config = config
        _TRAINED[family] = model
    return _TRAINED[family]


def go_on(
    model: Any, *slides: Batch, genes: np.ndarray = ALL, options: st.FineTuning | None = None, **more: Any
) -> Any:
    groups = more.pop("groups", ["mine"] * len(slides))
    options = st.FineTuning() if options is None else options
    return training.tune(model, slides, groups=groups, genes=genes, options=options, **more)


def accuracy(model: Any) -> float:
    return float(st.metrics.pearson(model.predict(FRESH)[0], FRESH.y).mean())


@pytest.mark.parametrize("family", list(CONFIGS))
def test_it_beats_the_old_model_and_the_own_slide_alone(family: str) -> None:
    old = old_model(family)
    before = {k: v.clone() for k, v in old.state_dict().items()}
    tuned = go_on(old, MINE)
    alone, _ = training.fit(type(old), old.config, [MINE], groups=["mine"], typical=False)
    assert accuracy(tuned.model) > max(accuracy(old), accuracy(alone))
    assert tuned.chosen["moved"] != "intercept"
    assert tuned.chosen["chosen_by"] == BLOCKS
    assert all(np.array_equal(v, before[k]) for k, v in old.state_dict().items())
    assert go_on(old, MINE).model.id == tuned.model.id


@pytest.mark.parametrize("family", list(CONFIGS))
def test_shuffled_targets_leave_the_weights_alone(family: str) -> None:
    old = old_model(family)
    y = MINE.y[np.random.default_rng(3).permutation(len(MINE.y))]  # type: ignore[index]
    tuned = go_on(old, replace(MINE, y=y))
    assert tuned.chosen["moved"] == "intercept"
    found = st.metrics.pearson(tuned.model.predict(FRESH)[0], old.predict(FRESH)[0])
    assert found.min() > 0.97  # but for what a new mean takes below zero


def test_epoch_zero_and_the_mean() -> None:
    old = old_model("mlp")
    tuned = go_on(old, replace(MINE, y=MINE.y + 3), options=st.FineTuning(epochs=0))  # type: ignore[operator]
    moved = tuned.model.predict(MINE)[0] - old.predict(MINE)[0]
    assert tuned.chosen["epochs"] == 0
    assert np.all(np.abs(moved.mean(axis=0) - (MINE.y + 3 - old.predict(MINE)[0]).mean(axis=0)) < 0.05)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("family", "head"), [("mlp", {"layers.1"}), ("deepspot", {"rho_weight", "rho_bias"}), ("miso", {"last"})]
)
def test_the_head_alone_moves(family: str, head: set[str]) -> None:
    old = old_model(family)
    tuned = go_on(old, MINE, options=st.FineTuning(trains="head", epochs=2))
    before, after = old.state_dict(), tuned.model.state_dict()
    moved = {k for k in before if not np.array_equal(before[k], after[k]) and not k.startswith(("typical", "gene_"))}
    assert {k.removesuffix(".weight").removesuffix(".bias") for k in moved} == head
    assert all(p.requires_grad for p in tuned.model.parameters())


def test_layers_near_the_input_move_less() -> None:
    old = old_model("mlp")

    def change(options: st.FineTuning, layer: str) -> float:
        after = go_on(old, MINE, options=options).model.state_dict()
        return float((after[f"{layer}.weight"] - old.state_dict()[f"{layer}.weight"]).abs().max())

    slow, even = (st.FineTuning(epochs=1, input_rate=r) for r in (0.01, 1.0))
    assert change(slow, "layers.0") < 0.05 * change(even, "layers.0")
    np.testing.assert_allclose(change(slow, "layers.1"), change(even, "layers.1"), rtol=0.3)


@pytest.mark.parametrize("family", ["ridge", "mlp"])
def test_genes_that_are_not_learned_stay(family: str) -> None:
    old, genes = old_model(family), np.arange(G) < 3
    y = np.where(genes, MINE.y, 0).astype(np.float32)
    tuned = go_on(old, replace(MINE, y=y), genes=genes)
    before, after = old.predict(FRESH)[0], tuned.model.predict(FRESH)[0]
    np.testing.assert_allclose(after[:, 3:], before[:, 3:], atol=0 if family == "ridge" else 0.5)
    assert np.abs(after[:, :3] - before[:, :3]).mean() > 3 * np.abs(after[:, 3:] - before[:, 3:]).mean()
    assert tuned.scores.pearson.shape[1] == 3


def test_members_of_an_ensemble_go_on_each() -> None:
    config = st.models.Ensemble.Config(st.models.MLP.Config(hidden=(16,), lr=3e-3, epochs=10), n_members=2)
    old, _ = training.fit(Ensemble, config, OLD_SLIDES, groups=["a", "b", "c"])
    new = go_on(old, MINE, options=st.FineTuning(epochs=3)).model
    assert accuracy(new) > accuracy(old)
    assert new.members[0].id != new.members[1].id
    assert new.predict(FRESH)[1].mean() > 0


def test_own_donors_are_held_out_where_there_are_several() -> None:
    slides = [replace(slide(f"m{i}", OWN, seed=20 + i), slide=f"m{i}") for i in range(3)]
    tuned = go_on(old_model("ridge"), *slides, groups=["x", "x", "y"])
    assert tuned.chosen["chosen_by"] == DONORS
    assert tuned.units == ["m0", "m1", "m2"]
    assert not tuned.by_block
    assert tuned.scores.pearson.shape == (3, G)


def test_an_interrupted_call_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stpred.training import _loop

    old, run = old_model("mlp"), training.Run(device="cpu", checkpoint=tmp_path / "state")
    whole = go_on(old, MINE, run=training.Run(device="cpu")).model.id
    steps, step = [0], _loop._step
    monkeypatch.setattr(_loop, "SAVE_EVERY_S", 0.0)

    def stop(*arguments: Any, **options: Any) -> float:
        steps[0] += 1
        if steps[0] == 40:
            raise KeyboardInterrupt
        return step(*arguments, **options)

    monkeypatch.setattr(_loop, "_step", stop)
    with pytest.raises(KeyboardInterrupt), training.resumable(run):
        go_on(old, MINE, run=run)
    before = steps[0]
    assert list((tmp_path / "state").iterdir())
    monkeypatch.setattr(_loop, "_step", lambda *a, **k: (steps.__setitem__(0, steps[0] + 1), step(*a, **k))[1])
    with training.resumable(run):
        assert go_on(old, MINE, run=run).model.id == whole
    resumed = steps[0] - before
    steps[0] = 0
    go_on(old, MINE, run=training.Run(device="cpu"))
    assert resumed < steps[0]
    assert not (tmp_path / "state").exists()


def trial(values: list[float], *, n: int = 100) -> Trial:
    quality = np.array(values)
    batch = replace(MINE.take(np.arange(n)), slide="x")
    return Trial(
        Part("p", [], [batch]), quality[:, None, None].astype(np.float32), quality, lambda c: [], lambda c: quality
    )


@pytest.mark.parametrize(
    ("trials", "usual", "chosen"),
    [
        ([[0.5, 0.52, 0.6], [0.5, 0.53, 0.58]], 0, 2),  # a sure gain
        ([[0.5, 0.52, 0.9], [0.5, 0.52, 0.3]], 0, 1),  # a larger one that is not
        ([[0.5, 0.4], [0.5, 0.45]], 0, 0),
        ([[-0.2, 0.01], [-0.2, 0.02]], 0, 0),  # a gain on the old model, but not on chance
        ([[0.5, 0.501], [0.5, 0.499]], 1, 1),  # the usual candidate, where nothing speaks against it
        ([[0.5, 0.4], [0.5, 0.42]], 1, 0),  # the old model, where that is surely better
        ([[0.01, 0.02], [-0.02, 0.01]], 1, 0),
        ([[0.5, 0.6, 0.6], [0.5, 0.55]], 0, 1),  # a part that stopped keeps its last
    ],
)
def test_choice_of_a_candidate(trials: list[list[float]], usual: int, chosen: int) -> None:
    assert choose([trial(t) for t in trials], usual=usual) == chosen
    assert choose([]) == 0


def test_parts_keep_a_gap_and_small_slides_have_none() -> None:
    parts, by = parts_of([MINE], ["a"], most=None)
    assert by == BLOCKS
    for part in parts:
        gap = np.linalg.norm(part.train[0].coords_um[:, None] - part.test[0].coords_um[None], axis=2).min()
        assert gap > 200
    assert sum(len(p.test[0].targets) for p in parts) == len(MINE.targets)
    tiny = slide("tiny", OWN, seed=0, edge=4)
    tuned = go_on(old_model("ridge"), tiny)
    assert "too small" in tuned.chosen["chosen_by"]
    assert tuned.chosen["moved"] == "intercept"

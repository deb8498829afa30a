"""One model of several families, chosen and weighed on held-out donors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import stpred as st
from stpred import InputError, training
from stpred.data import with_needs
from stpred.models import MLP, Auto, Batch, Ensemble, KernelRidge, Ridge
from stpred.training._stacking.weights import Correlations, Part, choose_weights, score

TINY = MLP.Config(hidden=(8,), loss="pearson", epochs=2, context_um=150.0)


def cohort(*, n: int = 80, n_slides: int = 4, seed: int = 0, bent: bool = True) -> list[Batch]:
    rng = np.random.default_rng(seed)
    to = np.random.default_rng(1).normal(size=(3, 6))
    xy = np.stack(np.meshgrid(np.arange(10), np.arange(n // 10)), axis=-1).reshape(-1, 2) * 100.0
    out = []
    for k in range(n_slides):
        x = rng.normal(size=(n, 5)).astype(np.float32)
        signal = np.stack([np.square(x[:, 0]) if bent else x[:, 0], np.abs(x[:, 1]), x[:, 2]], axis=1) @ to
        y = (signal + 0.5 * rng.normal(size=signal.shape)).astype(np.float32)
        out.append(Batch.of(x, coords_um=xy, slide=f"s{k}", y=y, totals=rng.integers(500, 5000, n).astype(float)))
    return out


def fitted(config: Auto.Config, batches: list[Batch], donors: str) -> training.Fitted:
    batches = [with_needs(b, config.needs) for b in batches]
    return training.fit_and_score(Auto, config, batches, groups=list(donors), typical=False)


def test_the_better_candidate_is_chosen_and_nothing_else_where_it_does_not_help() -> None:
    batches = cohort()
    found = fitted(
        Auto.Config(candidates=(Ridge.Config(penalty=1e4), KernelRidge.Config(), Ridge.Config())), batches[:3], "abc"
    )
    tried = found.chosen["auto"]["tried"]
    assert [t["family"] for t in tried] == ["ridge", "kernel_ridge", "ridge"]
    assert tried[1]["pearson"] > max(tried[0]["pearson"], tried[2]["pearson"]) + 0.1
    assert tried[1]["weight"] > 0.7
    assert "chosen" in tried[1]
    assert "kernel_ridge" in {m.family for m in found.model.members}
    truth, guess = batches[3].y, found.model.predict(batches[3])[0]
    assert np.mean([np.corrcoef(truth[:, g], guess[:, g])[0, 1] for g in range(6)]) > 0.6
    # On the scale of the measurement.
    assert np.square(guess - truth).mean() < truth.var(axis=0).mean()


def test_two_that_err_differently_are_better_together() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(200, 5))
    values = np.stack([truth + 2 * rng.normal(size=truth.shape) for _ in range(2)] + [rng.normal(size=truth.shape)])
    tables = [Correlations.of(Part(0, "a", values, truth))]
    weights = choose_weights(tables, 3)
    assert weights[:2] == pytest.approx([0.5, 0.5], abs=0.15)
    assert weights[2] < 0.1
    assert weights.sum() == pytest.approx(1)
    want = np.mean([np.corrcoef(np.tensordot(weights, values, 1)[:, g], truth[:, g])[0, 1] for g in range(5)])
    assert score(tables, weights) == pytest.approx(want)
    assert choose_weights(tables, 3, stacked=False).max() == 1


def test_nothing_is_invented() -> None:
    shuffled = [replace(b, y=np.random.default_rng(5).permutation(b.y)) for b in cohort()]
    found = fitted(Auto.Config(candidates=("ridge", "kernel_ridge")), shuffled[:3], "abc")
    held = training.held_out_scores(Auto, found.model.config, shuffled[:3], groups=list("abc"), folds=found.folds)
    assert abs(np.nanmean(held.pearson)) < 0.1
    truth, guess = shuffled[3].y, found.model.predict(with_needs(shuffled[3], found.model.needs))[0]
    assert np.square(guess - truth).mean() < 1.1 * truth.var(axis=0).mean()


def test_held_out_scores_are_those_of_weights_without_the_slide() -> None:
    batches = cohort()
    found = fitted(Auto.Config(candidates=("ridge", "kernel_ridge")), batches, "aabc")
    assert [c.slides for c in found.folds] == [["s0", "s1"], ["s2"], ["s3"]]
    assert all(c.pearson.shape == (1, len(c.slides), 6) for c in found.folds)
    assert np.mean([c.pearson.mean() for c in found.folds]) > 0.5


def test_one_donor_holds_out_blocks() -> None:
    found = fitted(Auto.Config(candidates=("ridge", "kernel_ridge")), cohort(n=200)[:1], "a")
    assert found.chosen["auto"]["held_out"] == "blocks of the only donor's slides"
    assert found.folds == []
    small = fitted(Auto.Config(candidates=("ridge", "kernel_ridge")), [cohort()[0].take(np.arange(6))], "a")
    assert "too small" in small.chosen["auto"]["held_out"]
    assert [m.family for m in small.model.members] == ["ridge"]


def test_a_saved_model_is_the_same(tmp_path: Path) -> None:
    slides = st.datasets.toy_cohort(3, size_um=(600, 600), n_genes=20)
    candidates = (
        Ridge.Config(context_um=(120, 260)), KernelRidge.Config(), Ensemble.Config(TINY, n_members=2),
    )  # fmt: skip
    model = st.tl.train(slides, Auto.Config(candidates=candidates), shapes_key="spots")
    again = st.models.load(st.models.save(model, tmp_path / "m"))
    assert again.id == model.id
    a, b = (st.tl.predict(slides["donor0"], m, shapes_key="spots", inplace=False) for m in (model, again))
    np.testing.assert_array_equal(a.X, b.X)
    assert model.record.target == "log1p_cp10k"
    assert len(again.record.training["auto"]["tried"]) == 3
    assert any(v is not None for v in again.record.var["cv_pearson"])


def test_defaults_follow_the_pitch() -> None:
    config = Auto.Config().at_pitch(200.0)
    assert config.needs.radii_um == (520.0, 1000.0)
    assert Auto.Config.parse(config.to_dict()) == config
    assert Auto.Config().needs.context_um is None


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ((), "list of up to"),
        ("ridge", "list of up to"),
        (("stnet",), "features of tiles"),
        (("miso",), "features of tiles"),
        (("scellst",), "features of tiles"),
        (("auto",), "longer list"),
        (("ridge", "intensity"), "features of tiles"),
        (("ridge", MLP.Config(loss="nb")), "different targets"),
        (("nothing",), "No model family"),
    ],
)
def test_wrong_candidates_are_refused(candidates: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Auto.Config(candidates=candidates)
    if candidates == ("auto",):
        with pytest.raises(InputError, match="weighs several"):
            Ensemble.Config("auto")


def test_stored_candidates_are_checked() -> None:
    good = Auto.Config(candidates=("ridge",)).to_dict()
    for wrong in ({"family": "ridge"}, {"family": "ridge", "config": {"x": 1}}, {"family": 3, "config": {}}, 5):
        with pytest.raises(InputError):
            Auto.Config.parse({**good, "candidates": [wrong]})
    with pytest.raises(InputError, match="no fields"):
        Auto.Config.parse({**good, "more": 1})

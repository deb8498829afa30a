from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import stpred as st
from stpred import InputError
from stpred.tl._samples.cox import elastic_net, log_likelihood
from stpred.tl._samples.random_draws import draw_summary


def cohort(n: int = 90, g: int = 8, *, effect: float = 1.5, seed: int = 0) -> AnnData:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, g))
    died = rng.exponential(np.exp(-effect * X[:, 3])) + 0.01
    left = rng.exponential(2, n) + 0.01
    obs = pd.DataFrame({"time": np.minimum(died, left), "event": died <= left}, index=[f"s{i}" for i in range(n)])
    obs["donor"] = [f"d{i // 2}" for i in range(n)]
    obs["kind"] = np.where(X[:, 1] + 0.3 * rng.normal(size=n) > 0, "a", "b")
    return AnnData(X, obs=obs, var=pd.DataFrame(index=[f"G{j}" for j in range(g)]))


@pytest.mark.parametrize(("penalizer", "l1_ratio"), [(0.05, 0.5), (0.2, 0.0), (0.02, 1.0)])
def test_the_elastic_net_is_that_of_lifelines(penalizer: float, l1_ratio: float) -> None:
    lifelines = pytest.importorskip("lifelines")
    made = cohort(60, 5)
    time, event = made.obs["time"].to_numpy(), made.obs["event"].to_numpy()
    X = (made.X - made.X.mean(axis=0)) / made.X.std(axis=0)
    found = elastic_net(X, time, event, penalizer=penalizer, l1_ratio=l1_ratio)
    frame = pd.DataFrame(X).add_prefix("g").assign(time=time, event=event)
    cox = lifelines.CoxPHFitter(penalizer=penalizer, l1_ratio=l1_ratio).fit(frame, "time", "event")

    def height(b: np.ndarray) -> float:
        penalty = l1_ratio * np.abs(b).sum() + (1 - l1_ratio) / 2 * (b**2).sum()
        return log_likelihood(X @ b, time, event) / len(X) - penalizer * penalty

    assert height(found) >= height(cox.params_.to_numpy()) - 1e-5
    np.testing.assert_allclose(found, cox.params_, atol=0.03)  # lifelines smooths the lasso's corner


def test_concordance_grows_with_the_cohort_and_draws_reproduce() -> None:
    made = cohort(90, 40, effect=1.0)
    draws = st.Draws(n_train=(12, 60), repeats=12)
    found = st.tl.survival(made, "time", "event", draws=draws, n_screened=None, penalizer=0.1)
    again = st.tl.survival(made, "time", "event", draws=st.Draws(n_train=60, repeats=3), n_screened=None, penalizer=0.1)
    few, many = (found.loc[found["n_train"] == n, "concordance"] for n in (12, 60))
    assert many.mean() > few.mean() + 0.03
    assert many.tolist()[:3] == again["concordance"].tolist()  # a draw does not depend on what else is drawn
    assert (found["n_samples_test"] == 90 - found["n_train"]).all()
    summary = pd.DataFrame(found.attrs["summary"])
    assert summary["standard_error"][1] == pytest.approx(many.std(ddof=1) / np.sqrt(12))
    pd.testing.assert_frame_equal(summary, draw_summary(found, "concordance"), check_dtype=False)


def test_shuffled_survival_is_not_predicted_and_screening_sees_training_samples_only() -> None:
    made = cohort(70, 300, effect=0.0, seed=3)
    found = st.tl.survival(
        made, "time", "event", draws=st.Draws(train_fraction=0.7, repeats=12), n_screened=5, penalizer=0.1
    )
    assert abs(found["concordance"].mean() - 0.5) < 0.1
    assert (found["n_train"] == 49).all()
    assert (found["n_genes"] <= 5).all()


def test_patients_are_drawn_with_all_their_samples() -> None:
    made = cohort(40)
    found = st.tl.survival(
        made, "time", "event", groups="donor", draws=st.Draws(n_train=14, repeats=3), penalizer=(0.1, 0.3)
    )
    assert found["n_samples_test"].tolist() == [12] * 3
    assert set(found["penalizer"]) <= {0.1, 0.3}


def test_classes_are_drawn_too() -> None:
    made = cohort(60, 5)
    found = st.tl.classify(made, "kind", draws=st.Draws(train_fraction=0.7, repeats=4), strength=0.1)
    assert found["auroc"].mean() > 0.9
    assert found.attrs["metric"] == "auroc"
    assert len(found.attrs["summary"]) == 1


def test_bad_input_is_named() -> None:
    made = cohort(30)
    rare = np.zeros(30)
    rare[:3] = 1
    for call, said in (
        (lambda: st.Draws(), "takes one of `n_train` and `train_fraction`"),
        (lambda: st.Draws(n_train=3, train_fraction=0.5), "takes one of"),
        (lambda: st.Draws(n_train=(3, 3)), "one or more different numbers"),
        (lambda: st.Draws(train_fraction=1.5), "Draws.train_fraction"),
        (lambda: st.tl.survival(made, "time", "event", draws=st.Draws(n_train=30)), "30 of 30 patients cannot"),
        (lambda: st.tl.survival(made, "time", "event", draws=5), "must be a stpred.Draws"),  # type: ignore[arg-type]
        (lambda: st.tl.survival(made, "time", np.zeros(30), draws=st.Draws(n_train=9)), "None of the 30 samples has"),
        (lambda: st.tl.survival(made, "time", rare, draws=st.Draws(n_train=1)), "200 draws of 1 patients in a row"),
        (lambda: st.tl.classify(made, ["a"] * 30, draws=st.Draws(n_train=9)), r"All samples have the label \['a'\]"),
    ):
        with pytest.raises(InputError, match=said):
            call()

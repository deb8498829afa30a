"""Going on from a trained model: better than it and than the own slide alone, and never worse silently."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import stpred as st
from stpred._core.checks import InputError
from stpred.testing import copy_slide

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stpred.models import Model

pytestmark = pytest.mark.usefixtures("kept_features")

SPOTS = "spots"


@pytest.fixture(scope="module")
def old(cohort: dict[str, SpatialData]) -> Model:
    slides = {s: cohort[s] for s in ("donor0", "donor1")}
    return st.tl.train(slides, "ridge", genes=st.GeneRule("mean", n=40), shapes_key=SPOTS)


@pytest.fixture
def own(cohort: dict[str, SpatialData]) -> SpatialData:
    return copy_slide(cohort["donor2"])


@pytest.fixture(scope="module")
def others() -> list[SpatialData]:
    """Slides of donors that neither model has seen."""
    return [st.datasets.toy(size_um=(800, 800), n_genes=60, donor=d) for d in (3, 4)]


def truth(slide: SpatialData, genes: list[str]) -> np.ndarray:
    """Noiseless log1p CP10k of the spots."""
    table = slide.tables["spots_counts"]
    expected = np.asarray(table.layers["expected"], dtype=np.float64)
    shown = expected[:, table.var_names.get_indexer(genes)]
    return np.log1p(1e4 * shown / expected.sum(axis=1, keepdims=True))


def accuracy(slide: SpatialData, model: Model) -> float:
    """Mean correlation with the noiseless truth."""
    table = st.tl.predict(slide, model, shapes_key=SPOTS, inplace=False)
    return float(np.nan_to_num(st.metrics.pearson(table.X, truth(slide, list(table.var_names)))).mean())


def shuffled(slide: SpatialData, *, seed: int) -> SpatialData:
    """The slide with the counts of its spots exchanged."""
    slide = copy_slide(slide)
    table = slide.tables["spots_counts"]
    table.X = table.X[np.random.default_rng(seed).permutation(table.n_obs)]
    return slide


@pytest.mark.filterwarnings("ignore:.*out of distribution")
def test_it_beats_the_old_model_and_the_own_slide_alone(
    old: Model, own: SpatialData, others: list[SpatialData]
) -> None:
    new = st.tl.finetune(old, own, shapes_key=SPOTS)
    alone = st.tl.train(own, "ridge", genes=old.record.genes, shapes_key=SPOTS)
    for slide in others:
        assert accuracy(slide, new) > max(accuracy(slide, old), accuracy(slide, alone)), slide
    said = new.record.training["finetuned"]
    assert said["moved"] == "weights"
    assert said["quality"]["tuned"] > said["quality"]["base"]


def test_on_shuffled_counts_the_old_model_stays(old: Model, own: SpatialData) -> None:
    before = st.tl.predict(own, old, shapes_key=SPOTS, inplace=False).X
    for seed in range(3):
        new = st.tl.finetune(old, shuffled(own, seed=seed), shapes_key=SPOTS)
        after = st.tl.predict(own, new, shapes_key=SPOTS, inplace=False).X
        assert np.median(st.metrics.pearson(after, before)) > 0.98
        assert np.mean(new.record.var["trusted"]) < 0.1  # one-sided p of 0.01 each


def test_the_old_model_is_left_alone_and_a_seed_decides(old: Model, own: SpatialData, tmp_path: Path) -> None:
    state, record, name = copy.deepcopy(old.state_dict()), copy.deepcopy(old.record), old.id
    one, two = (st.tl.finetune(old, own, shapes_key=SPOTS, seed=4) for _ in range(2))
    assert old.id == name
    assert old.record == record
    assert all(np.array_equal(v, state[k]) for k, v in old.state_dict().items())
    assert one.id == two.id != old.id
    assert one.record == two.record
    st.models.save(one, tmp_path / "new")
    again = st.models.load(tmp_path / "new")
    assert again.id == one.id
    assert again.record == one.record
    assert accuracy(own, again) == accuracy(own, one)


def test_an_infinite_strength_corrects_the_means_alone(old: Model, own: SpatialData) -> None:
    new = st.tl.finetune(old, own, shapes_key=SPOTS, options=st.FineTuning(strength=float("inf")))
    assert np.array_equal(new.coef, old.coef)
    table = st.tl.predict(own, new, shapes_key=SPOTS, inplace=False)
    counts = own.tables["spots_counts"]
    x = counts.X.toarray()
    y = np.log1p(1e4 * x / x.sum(axis=1, keepdims=True))[:, counts.var_names.get_indexer(old.record.genes)]
    np.testing.assert_allclose(table.X.mean(axis=0), y.mean(axis=0), atol=1e-4)


def test_genes_that_are_not_learned_keep_the_old_predictions(old: Model, own: SpatialData) -> None:
    some = old.record.genes[5:25]
    new = st.tl.finetune(old, own, shapes_key=SPOTS, genes=some)
    before, after = (st.tl.predict(own, m, shapes_key=SPOTS, inplace=False).to_df() for m in (old, new))
    others = [g for g in old.record.genes if g not in some]
    assert before[others].equals(after[others])
    assert not np.allclose(before[some], after[some])
    assert [g for g, k in zip(new.record.genes, new.record.var["finetuned"], strict=True) if k] == some
    at = new.record.genes.index(others[0])
    assert new.record.var["cv_pearson"][at] == old.record.var["cv_pearson"][at]
    assert new.record.var["interval_low"][at] is None
    # A panel without them does the same.
    table = own.tables["spots_counts"]
    own.tables["spots_counts"] = table[:, ~table.var_names.isin(others)].copy()
    with pytest.warns(UserWarning, match="library sizes over different genes"):
        panel = st.tl.finetune(old, own, shapes_key=SPOTS)
    assert panel.record.var["finetuned"] == new.record.var["finetuned"]


def test_the_record_says_what_happened(old: Model, own: SpatialData) -> None:
    new = st.tl.finetune(old, {"donor0": own}, shapes_key=SPOTS, groups={"donor0": "mine"}, name="Our own")
    said, training = new.record.training["finetuned"], new.record.training
    assert new.record.name == "our-own"
    assert (said["base"], said["base_name"]) == (old.id, "ridge")
    assert said["chosen_by"] == "held-out blocks of the only donor"
    assert said["slides"] == ["donor0 (own)"]
    assert training["slides"]["donor0 (own)"]["donor"] == "mine"
    assert training["n_donors"] == 3
    assert new.record.var["base_cv_pearson"] == old.record.var["cv_pearson"]
    assert new.record.var["cv_pearson"] != old.record.var["cv_pearson"]
    assert set(new.record.var["n_slides"]) == {said["n_parts"]}
    assert new.record.intervals["how"].startswith("own blocks")
    with pytest.raises(InputError, match="was trained on"):
        st.tl.conformal(new, {"a": own, "b": own}, shapes_key=SPOTS)


def test_own_and_old_tiles_are_in_distribution(old: Model, own: SpatialData, cohort: dict[str, SpatialData]) -> None:
    new = st.tl.finetune(old, own, shapes_key=SPOTS)
    for slide in (own, cohort["donor0"]):
        assert st.tl.predict(slide, new, shapes_key=SPOTS, inplace=False).obs["in_distribution"].mean() > 0.95


def _renamed(slide: SpatialData, names: Any) -> SpatialData:
    table = slide.tables["spots_counts"]
    table.var_names = [names(g, i) for i, g in enumerate(table.var_names)]
    return slide


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (lambda g, i: f"ENSG{i:011d}", r"share no gene.*'ENSG00000000000'.*Ensembl ids"),
        (lambda g, i: g.lower(), "share no gene.*upper and lower case"),
        (lambda g, i: f"other{i}", r"share no gene: the model predicts \['.*\['other0'"),
    ],
)
def test_slides_without_shared_genes_are_refused(old: Model, own: SpatialData, names: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        st.tl.finetune(old, _renamed(own, names), shapes_key=SPOTS)


def test_what_cannot_be_fine_tuned_is_refused(old: Model, own: SpatialData, cohort: dict[str, SpatialData]) -> None:
    with pytest.raises(InputError, match="no weights to go on from.*train it on the own slides"):
        st.tl.finetune(st.tl.train(cohort["donor0"], "mean", shapes_key=SPOTS), own, shapes_key=SPOTS)
    with pytest.raises(InputError, match="does not predict"):
        st.tl.finetune(old, own, genes=["NOPE"], shapes_key=SPOTS)
    with pytest.raises(InputError, match=r"`options` must be a stpred.FineTuning"):
        st.tl.finetune(old, own, options={"epochs": 3}, shapes_key=SPOTS)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="encoder is not the one"):
        st.tl.finetune(old, own, encoder="intensity", shapes_key=SPOTS)
    with pytest.raises(InputError, match="`cells_key` is for families that see cells"):
        st.tl.finetune(old, own, cells_key="cells", shapes_key=SPOTS)
    with pytest.warns(UserWarning, match="was trained on"):
        st.tl.finetune(old, cohort["donor0"], shapes_key=SPOTS)
    for wrong in ({"trains": "tail"}, {"epochs": -1}, {"epochs": 1.5}, {"lr": 0}, {"input_rate": 2}, {"strength": -1}):
        with pytest.raises(InputError, match="FineTuning"):
            st.FineTuning(**wrong)  # type: ignore[arg-type]

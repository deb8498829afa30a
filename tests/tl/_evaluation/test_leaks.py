"""Attempts to carry something of a left-out donor into its own score; none may succeed."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pandas as pd
import pytest
from spatialdata import SpatialData

import stpred as st
from stpred import InputError, training
from stpred.testing import copy_slide
from stpred.tl._evaluation import cross_validate as module

pytestmark = pytest.mark.usefixtures("kept_features")

LEFT = "donor2"
DONORS = {"donor0": "A", "donor1": "B", "donor2": "C"}


@pytest.fixture(scope="module")
def slides() -> dict[str, SpatialData]:
    return st.datasets.toy_cohort(3, size_um=(700, 700), n_genes=40)


def changed(slides: dict[str, SpatialData], *, image: bool = False, counts: bool = False) -> dict[str, SpatialData]:
    """The slides, the left-out one with another image or entirely different counts."""
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import get_transformation

    new = copy_slide(slides[LEFT])
    if counts:
        rng = np.random.default_rng(0)
        table = new.tables["spots_counts"]
        # Genes that were rare become the commonest and most variable ones: no rule could miss them.
        table.X = rng.poisson(rng.gamma(0.3, 900, size=table.shape)).astype(np.float32)
    if image:
        element = slides[LEFT].images["he"]
        pixels = element["scale0"]["image"].transpose("c", "y", "x").to_numpy()
        at = get_transformation(element, get_all=True)
        new.images["he"] = Image2DModel.parse(pixels[::-1] // 2, dims=("c", "y", "x"), transformations=at)
    return {**slides, LEFT: new}


def learned(
    slides: dict[str, SpatialData], models: Any, monkeypatch: pytest.MonkeyPatch, **how: Any
) -> tuple[dict[str, np.ndarray], list[str], pd.DataFrame]:
    """Return all tensors of the model that is scored on the left-out donor, the slides it saw, and the scores."""
    found: list[tuple[list[str], dict[str, np.ndarray]]] = []
    fit = training.fit

    def noted(family: Any, config: Any, batches: Any, **more: Any) -> Any:
        model, facts = fit(family, config, batches, **more)
        found.append(([b.slide for b in batches], {k: v.numpy().copy() for k, v in model.state_dict().items()}))
        return model, facts

    monkeypatch.setattr(module.training, "fit", noted)
    scores = st.tl.cross_validate(
        slides, models, **{"groups": DONORS, "genes": st.GeneRule("rmax", n=12), "shapes_key": "spots"} | how
    )
    monkeypatch.undo()
    (mine,) = [f for f in found if LEFT not in f[0]]
    return mine[1], mine[0], scores


FAMILIES = {
    "ridge that scales features over training": [
        st.models.Ridge.Config(standardize="train", n_components=8, context_um=150.0, penalty=p) for p in (0.1, 1000.0)
    ],
    "ridge that scales features per slide": st.models.Ridge.Config(standardize="slide"),
    "a network with epochs to choose": st.models.MLP.Config(hidden=(8,), max_epochs=4, loss="mse"),
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("what", ["counts", "image"])
def test_nothing_of_a_left_out_donor_reaches_its_model(
    slides: dict[str, SpatialData], name: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, saw, scores = learned(slides, {"m": FAMILIES[name]}, monkeypatch)
    again, _, others = learned(changed(slides, **{what: True}), {"m": FAMILIES[name]}, monkeypatch)
    assert saw == ["donor0", "donor1"]
    assert tensors.keys() == again.keys()
    for key, values in tensors.items():  # scalers, components, weights: the very same bits
        np.testing.assert_array_equal(values, again[key], err_msg=key)
    one, two = (s[(s["slide"] == LEFT) & (s["model"] == "m")] for s in (scores, others))
    assert one["gene"].tolist() == two["gene"].tolist()  # the rule chose the same genes
    assert one["chosen"].tolist() == two["chosen"].tolist()  # and so did the choice of settings and epochs
    assert not np.allclose(one["value"], two["value"], equal_nan=True)  # while the donor itself was scored anew


def test_a_donor_cannot_come_in_under_another_name(slides: dict[str, SpatialData]) -> None:
    twice = {**slides, "copy": slides[LEFT]}
    how: dict[str, Any] = {"genes": st.GeneRule("mean", n=5), "shapes_key": "spots"}
    with pytest.raises(InputError, match="'donor2' and 'copy' are locations on the same image, yet their donors"):
        st.tl.cross_validate(twice, "ridge", groups={**DONORS, "copy": "D"}, **how)
    with pytest.raises(InputError, match="same image"):
        st.tl.cross_validate(twice, "ridge", groups="slide", **how)
    scores = st.tl.cross_validate(twice, "intensity", groups={**DONORS, "copy": "C"}, **how)
    assert set(scores.loc[scores["fold"] == "C", "slide"]) == {"donor2", "copy", "pooled C"}  # left out together
    with pytest.raises(InputError, match="names no donor for slides"):
        st.tl.cross_validate(twice, "ridge", groups=DONORS, **how)
    with pytest.raises(TypeError, match="groups"):
        st.tl.cross_validate(slides, "ridge", **how)  # type: ignore[call-arg]


def test_features_that_were_scaled_over_the_cohort_are_not_taken(
    slides: dict[str, SpatialData], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = {"m": st.models.Ridge.Config(standardize="train")}
    clean, _, want = learned(slides, config, monkeypatch)
    bearing = {
        s: SpatialData(images=dict(v.images), shapes=dict(v.shapes), tables=dict(v.tables)) for s, v in slides.items()
    }
    for sdata in bearing.values():
        st.pp.features(sdata, shapes_key="spots")
    _, _, same = learned(bearing, config, monkeypatch)
    pd.testing.assert_frame_equal(same, want)  # features as stpred wrote them are used
    stacked = np.concatenate([np.asarray(s.tables["spots_feat_morphology"].X) for s in bearing.values()])
    for sdata in bearing.values():
        table = sdata.tables["spots_feat_morphology"]
        table.X = ((np.asarray(table.X) - stacked.mean(axis=0)) / (stacked.std(axis=0) + 1e-6)).astype(np.float32)
    with caplog.at_level(logging.WARNING, logger="stpred"):
        tensors, _, scores = learned(bearing, config, monkeypatch)
    assert "was changed since stpred wrote it" in caplog.text
    for key, values in clean.items():
        np.testing.assert_array_equal(values, tensors[key], err_msg=key)
    pd.testing.assert_frame_equal(scores, want)


def test_reordered_features_are_still_known() -> None:
    from stpred import data

    values = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    assert data.digest(values) == data.digest(values[::-1])
    other = values.copy()
    other[3, 2] += 1e-6
    assert data.digest(values) != data.digest(other)
    assert data.digest(values) != data.digest(values[:, ::-1])


def test_trained_genes_are_trusted_on_left_out_donors_alone(
    slides: dict[str, SpatialData], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = st.models.Ridge.Config(penalty=1e-3)  # fits its own slides far better than others
    model = st.tl.train(slides, config, groups=DONORS, genes=st.GeneRule("mean", n=20), shapes_key="spots")
    _, _, scores = learned(slides, {"m": config}, monkeypatch, genes=model.record.genes)
    pearson = scores[(scores["model"] == "m") & (scores["metric"] == "pearson")]
    want = pearson.groupby("gene")["value"].mean()
    found = pd.Series(model.record.var["cv_pearson"], index=model.record.genes, dtype=float)
    np.testing.assert_allclose(found, want.loc[found.index], atol=1e-3)

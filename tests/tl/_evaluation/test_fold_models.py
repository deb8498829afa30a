"""The models of a cross-validation, and their average as one model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

import stpred as st
from stpred import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from spatialdata import SpatialData

    from stpred.models import Model

GENES = ["EPCAM", "COL1A2", "KRT8", "DCN", "COL1A1", "ACTB"]
HOW: dict[str, Any] = {"shapes_key": "spots"}
MODELS = {
    "ridge": "ridge",
    "mlp": st.models.MLP.Config(hidden=(16,), epochs=3),
    "miso": st.models.MISO.Config(n_neighbors=6, width=16, inner=8, n_heads=2, epochs=2),
}


@pytest.fixture(scope="module")
def five() -> dict[str, SpatialData]:
    return st.datasets.toy_cohort(5, size_um=(600, 600), n_genes=40)


@pytest.fixture(scope="module")
def found(five: dict[str, SpatialData]) -> tuple[pd.DataFrame, dict[str, dict[str, Model]]]:
    """Three donors in three folds; the fourth and the fifth stay unseen."""
    slides = {s: five[s] for s in list(five)[:3]}
    donors = dict(zip(slides, "PQR", strict=True))
    return st.tl.cross_validate(slides, MODELS, groups=donors, genes=GENES, encoder="colour", return_models=True, **HOW)


def test_every_fold_gives_its_model_with_what_it_was_trained_on(
    five: dict[str, SpatialData], found: tuple[pd.DataFrame, dict[str, dict[str, Model]]]
) -> None:
    scores, models = found
    assert {name: list(folds) for name, folds in models.items()} == dict.fromkeys(MODELS, ["P", "Q", "R"])
    plain = st.tl.cross_validate(
        {s: five[s] for s in list(five)[:3]}, {"ridge": "ridge"}, groups=dict(zip(list(five)[:3], "PQR", strict=True)),
        genes=GENES, encoder="colour", **HOW,
    )  # fmt: skip
    pd.testing.assert_frame_equal(
        plain[plain["model"] == "ridge"].reset_index(drop=True),
        scores[scores["model"] == "ridge"].reset_index(drop=True),
    )
    for name, folds in models.items():
        for fold, model in folds.items():
            record = model.record
            assert record.name == name
            assert record.genes == GENES
            trained = {v["donor"] for v in record.training["slides"].values()}
            assert trained == set("PQR") - {fold}
            assert record.training["cross_validation"]["held_out"] == [f"donor{'PQR'.index(fold)}"]
            rows = scores[(scores["model"] == name) & (scores["fold"] == fold) & (scores["metric"] == "pearson")]
            wanted = rows.set_index("gene")["value"].reindex(GENES).to_numpy(dtype=float)
            stated = np.array([np.nan if v is None else v for v in record.var["cv_pearson"]], dtype=float)
            np.testing.assert_allclose(stated, wanted, rtol=1e-5)


def test_a_folds_model_scores_its_fold_to_the_last_bit(
    five: dict[str, SpatialData], found: tuple[pd.DataFrame, dict[str, dict[str, Model]]]
) -> None:
    scores, models = found
    folds = {name: each["R"] for name, each in models.items()}
    again = st.tl.validate({"donor2": five["donor2"]}, folds, groups={"donor2": "R"}, **HOW)
    expected = scores[(scores["fold"] == "R") & (scores["model"] != "training_mean")]
    both = expected.merge(again, on=["model", "slide", "gene", "metric", "target"], validate="one_to_one")
    assert len(both) == len(expected) == len(again)
    np.testing.assert_array_equal(both["value_x"], both["value_y"])
    with pytest.raises(InputError, match=r"Model 'ridge' was trained on \['donor1'\]"):
        st.tl.validate({"donor1": five["donor1"]}, folds["ridge"], groups={"donor1": "Z"}, **HOW)


@pytest.mark.parametrize("name", list(MODELS))
def test_the_average_is_the_mean_of_its_members(
    name: str,
    five: dict[str, SpatialData],
    found: tuple[pd.DataFrame, dict[str, dict[str, Model]]],
    tmp_path: Path,
) -> None:
    folds = found[1][name]
    joined = st.models.average(folds)
    slide = five["donor3"]

    def predicted(model: Any) -> Any:
        return st.tl.predict(slide, model, inplace=False, **HOW)

    each = np.stack([predicted(m).X for m in folds.values()]).astype(np.float64)
    if name == "miso":  # outputs whose scale is open: each gene of each member at the members' mean size
        size = np.stack([np.asarray(m.record.output_size) for m in folds.values()])
        each = each / (size / size.mean(axis=0))[:, None]
    table = predicted(joined)
    np.testing.assert_allclose(table.X, each.mean(axis=0), rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(table.layers["std"], each.std(axis=0), rtol=1e-3, atol=1e-5)
    assert np.isfinite(table.obs["ood_score"]).all()
    # Once more from disk, to the last bit, and in any order of the members but for rounding.
    st.models.save(joined, tmp_path / "m")
    stored = st.models.load(tmp_path / "m")
    assert stored.id == joined.id
    np.testing.assert_array_equal(predicted(stored).X, table.X)
    np.testing.assert_array_equal(predicted(tmp_path / "m").layers["std"], table.layers["std"])
    turned = st.models.average(list(folds.values())[::-1])
    np.testing.assert_allclose(predicted(turned).X, table.X, rtol=1e-5, atol=1e-6)
    assert len(json.dumps(stored.record.training)) > 0


def test_the_average_knows_the_slides_of_all(
    five: dict[str, SpatialData], found: tuple[pd.DataFrame, dict[str, dict[str, Model]]]
) -> None:
    joined = st.models.average(found[1]["ridge"], name="joined")
    record = joined.record
    assert record.name == "joined"
    assert sorted(record.training["slides"]) == ["donor0", "donor1", "donor2"]
    assert record.training["n_donors"] == 3
    assert record.var["n_slides"] == [3] * len(GENES)
    pearson = found[0][(found[0]["metric"] == "pearson") & (found[0]["model"] == "ridge")]
    means = pearson.groupby("gene")["value"].mean().reindex(GENES)
    np.testing.assert_allclose(record.var["cv_pearson"], means, rtol=1e-5)
    for slide in ("donor0", "donor1", "donor2"):
        with pytest.raises(InputError, match=rf"Model 'joined' was trained on \['{slide}'\]"):
            st.tl.validate({slide: five[slide]}, joined, groups={slide: "Z"}, **HOW)
        with pytest.raises(InputError, match=r"Model 'joined' was trained on \['renamed'\]"):
            st.tl.validate({"renamed": five[slide]}, joined, groups="slide", **HOW)
    with pytest.raises(InputError, match=r"was trained on \['donor3'\] \(or on their donors\)"):
        st.tl.validate({"donor3": five["donor3"]}, joined, groups={"donor3": "Q"}, **HOW)
    with pytest.raises(InputError, match=r"was trained on slides called \['donor1'\], if with other images"):
        st.tl.validate({"donor1": five["donor4"]}, joined, groups={"donor1": "Z"}, **HOW)
    outside = {s: five[s] for s in ("donor3", "donor4")}
    scores = st.tl.validate(outside, [joined, *list(found[1]["ridge"].values())[:1]], groups="slide", **HOW)
    averages = st.tl.summarise(scores)
    assert averages.loc[("log1p_cp10k", "joined"), "mean"] > 0.3
    alien = five["donor3"].tables["spots_counts"].copy()
    alien.var_names = [f"ENSG{i:011d}" for i in range(alien.n_vars)]
    foreign = st.testing.copy_slide(five["donor3"])
    foreign.tables["spots_counts"] = alien
    with pytest.raises(InputError, match=r"No gene of model 'joined' .* was measured on all slides"):
        st.tl.validate({"donor3": foreign}, joined, groups={"donor3": "Z"}, **HOW)


def test_grids_and_ensembles_and_other_orders_of_genes_are_averaged(five: dict[str, SpatialData]) -> None:
    slides = {s: five[s] for s in list(five)[:2]}
    small = {"encoder": "colour", **HOW}
    ridge = st.tl.train(slides, "ridge", genes=GENES, **small)
    turned = st.tl.train(slides, "ridge", genes=GENES[::-1], name="turned", **small)
    some = st.tl.train(slides, st.models.Ensemble.Config("ridge", n_members=2), genes=GENES, name="some", **small)
    mean = st.tl.train(slides, st.models.Ridge.Config(penalty=1e4), genes=GENES, name="mean", **small)
    slide = five["donor4"]

    def predicted(model: Any) -> Any:
        table = st.tl.predict(slide, model, inplace=False, **HOW)
        return table[:, GENES].X

    same = st.models.average([turned, ridge])
    assert same.record.name == "average"
    assert same.record.genes == GENES[::-1]
    np.testing.assert_allclose(predicted(same), predicted(ridge), rtol=1e-5)
    mixed = st.models.average([ridge, some, mean])
    expected = np.mean([predicted(m) for m in (ridge, some, mean)], axis=0)
    np.testing.assert_allclose(predicted(mixed), expected, rtol=1e-5)
    twice = st.models.average([mixed, ridge])
    np.testing.assert_allclose(predicted(twice), (expected + predicted(ridge)) / 2, rtol=1e-5)
    with pytest.raises(InputError, match="settings of an average of trained models"):
        st.tl.train(slides, mixed.config, genes=GENES, **small)
    own = {"family": "ridge", "config": {}}
    for stored, message in (
        ({"joined": []}, "must be the settings of one or more models"),
        ({"joined": [own], "n": 2}, "and nothing beside them"),
        ({"joined": [{"family": "nope", "config": {}}]}, "No model family named 'nope'"),
        ({"joined": [{"family": "ridge"}]}, "lacks"),
    ):
        with pytest.raises(InputError, match=message):
            st.models.Ensemble.Config.parse(stored)


def test_what_cannot_be_averaged_is_refused_and_why(
    five: dict[str, SpatialData], found: tuple[pd.DataFrame, dict[str, dict[str, Model]]]
) -> None:
    slides = {s: five[s] for s in list(five)[:2]}
    ridge = found[1]["ridge"]["P"]

    def trained(model: Any = "ridge", **changes: Any) -> Model:
        return st.tl.train(slides, model, **{"genes": GENES, "encoder": "colour", **HOW, **changes})

    for other, message in (
        (trained(genes=[*GENES[:-1], "ACTA2"]), r"predict other genes: 1 only the first \(\['ACTB'\]\), 1 only"),
        (trained(target="counts"), "predict on other scales: log1p_cp10k and counts"),
        (trained(encoder="intensity"), "see tiles through other encoders"),
        (trained(tile={"mpp": 1.0, "size_px": 64}), "see other tiles"),
        (trained(st.models.Ridge.Config(context_um=150.0)), "need other neighbours, cells or parts of a location"),
        (found[1]["miso"]["P"], "predict on other scales: log1p_cp10k and relative"),
    ):
        with pytest.raises(InputError, match=message):
            st.models.average([ridge, other])
    for given, message in (
        ([ridge], "two or more trained models, got 1"),
        (ridge, "two or more trained models; one alone is its own average"),
        (found[1], "trained models or their folders of one of its models, got dict"),
        ([ridge, "ridge"], "No model at 'ridge'"),
    ):
        with pytest.raises(InputError, match=message):
            st.models.average(given)  # type: ignore[arg-type]
    few = {s: st.testing.copy_slide(x) for s, x in slides.items()}
    for sdata in few.values():
        table = sdata.tables["spots_counts"]
        sdata.tables["spots_counts"] = table[:, GENES].copy()
    panel = st.tl.train(few, "ridge", genes=GENES, encoder="colour", **HOW)
    with pytest.raises(InputError, match="counted library sizes over other genes"):
        st.models.average([ridge, panel])
    miso = list(found[1]["miso"].values())
    size, miso[1].record.output_size = miso[1].record.output_size, []
    with pytest.raises(InputError, match="does not say how large they are on its training slides"):
        st.models.average(miso)
    miso[1].record.output_size = size

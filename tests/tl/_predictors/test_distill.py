"""Distillation: labels out of fold in every nested fold, teachers of equal weight, and what is told of it."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anndata import AnnData
from numpy.typing import NDArray
from spatialdata import SpatialData
from spatialdata.models import TableModel

import stpred as st
from stpred import InputError, data, metrics, training
from stpred._core.places import Place
from stpred.models import Batch, Model, Student
from stpred.training import _distil, _fit, _loop
from stpred.training._distil import Distillation, averaged, blended, on_scale, standardised

pytestmark = pytest.mark.usefixtures("kept_features")

SMALL = Student.Config(hidden=(16,), epochs=2)
HOW: dict[str, Any] = {"shapes_key": "spots", "genes": "all"}
TOY: dict[str, Any] = {"size_um": (400, 400), "n_genes": 12}


@pytest.fixture(scope="module")
def cohort() -> dict[str, SpatialData]:
    """Three donors, one slide each."""
    return st.datasets.toy_cohort(3, **TOY)


@pytest.fixture(scope="module")
def paired(cohort: dict[str, SpatialData]) -> dict[str, SpatialData]:
    """The same, and a second slide of the first donor."""
    return cohort | {"again0": st.datasets.toy(seed=5, donor=0, **TOY)}


DONORS = {"donor0": "A", "donor1": "B", "donor2": "C", "again0": "A"}


@pytest.fixture(scope="module")
def distilled(cohort: dict[str, SpatialData]) -> Model:
    return st.tl.distill(cohort, "ridge", SMALL, **HOW)


@pytest.fixture(scope="module")
def teachers(cohort: dict[str, SpatialData]) -> dict[str, Model]:
    """Each has seen all donors but the one it is called after."""
    return {d: st.tl.train({k: v for k, v in cohort.items() if k != d}, "ridge", **HOW) for d in cohort}


def labels_of(model: Model) -> dict[str, NDArray[np.float64]]:
    tables: dict[str, AnnData] = model.pseudo_labels  # type: ignore[assignment]
    return {k: np.asarray(t.X, dtype=np.float64) for k, t in tables.items()}


def measured_of(slides: dict[str, SpatialData], model: Model) -> dict[str, NDArray[np.float32]]:
    """Return the training targets of the labelled locations."""
    regions = {k: data.read_region(v, Place(shapes_key="spots"), slide=k, measured=True) for k, v in slides.items()}
    return {k: r.target(model.record.genes, "log1p_cp10k") for k, r in regions.items()}


def with_other_counts(slide: SpatialData, *, seed: int = 0) -> SpatialData:
    """Return the slide with the counts of each spot at another."""
    tables = {k: t.copy() for k, t in slide.tables.items()}
    table = tables["spots_counts"]
    table.X = table.X[np.random.default_rng(seed).permutation(table.n_obs)]
    return SpatialData(images=dict(slide.images), shapes=dict(slide.shapes), tables=tables)


def with_some_bins(slide: SpatialData, n: int = 30) -> SpatialData:
    """Return the slide with the bins that lie nearest to its middle."""
    table, bins = slide.tables["bins_016um_counts"], slide.shapes["bins_016um"]
    near = np.sort(np.argsort(np.linalg.norm(table.obsm["spatial"] - [200, 200], axis=1))[:n])
    kept = table[near].copy()
    shapes = dict(slide.shapes) | {"bins_016um": bins.loc[kept.obs[kept.uns["spatialdata_attrs"]["instance_key"]]]}
    return SpatialData(
        images=dict(slide.images), shapes=shapes, tables=dict(slide.tables) | {"bins_016um_counts": kept}
    )


# Nothing of a slide's donor reaches its labels.


def test_no_teacher_has_seen_a_slide_of_the_donor_or_of_the_fold(
    paired: dict[str, SpatialData], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every teacher that predicts a label, and every student that is scored, by the slides that went into them."""
    events: list[tuple[str, Any, Any]] = []
    plain_fit, plain_train, plain_labels = _fit.fit, _loop.train, Distillation.labels

    def fit(family: Any, config: Any, batches: list[Batch], **how: Any) -> tuple[Model, Any]:
        by = [b.slide for b in batches]
        assert how["groups"] == [DONORS[s] for s in by]
        assert how.get("relabel") is None  # a teacher learns from counts
        model, facts = plain_fit(family, config, batches, **how)
        predict = model.predict

        def told(batch: Batch) -> Any:
            events.append(("label", batch.slide, by))
            return predict(batch)

        model.predict = told  # type: ignore[method-assign]
        return model, facts

    def labels(self: Distillation, slides: list[str], groups: list[str]) -> Any:
        events.append(("ask", list(slides), None))
        return plain_labels(self, slides, groups)

    def train(model: Model, batches: list[Batch], **how: Any) -> Any:
        if isinstance(model, Student):
            events.append(("student", [b.slide for b in batches], [b.slide for b in how.get("validation") or ()]))
            assert all(b.truth is not None and not np.array_equal(b.y, b.truth) for b in batches)
        return plain_train(model, batches, **how)

    monkeypatch.setattr(_distil, "fit", fit)
    monkeypatch.setattr(_loop, "train", train)
    monkeypatch.setattr(Distillation, "labels", labels)
    model = st.tl.distill(paired, "ridge", Student.Config(hidden=(8,), max_epochs=2), groups=DONORS, **HOW)
    asked: list[str] = []
    held, taught = set(), set()
    for what, slides, other in events:
        if what == "ask":
            asked = slides
        elif what == "label":
            assert slides in asked
            assert set(other) <= set(asked)
            assert DONORS[slides] not in {DONORS[s] for s in other}
            taught.add((slides, frozenset(asked)))
        else:
            assert set(slides) == set(asked)  # labelled anew for these very slides
            assert not {DONORS[s] for s in slides} & {DONORS[s] for s in other}
            held |= {(s, frozenset(slides)) for s in other}
    everyone = frozenset(paired)
    folds = [frozenset(s for s in paired if DONORS[s] != d) for d in "ABC"]
    assert taught == {(s, of) for of in (everyone, *folds) for s in of}
    assert held == {(s, of) for of in folds for s in everyone - of}
    assert model.record.training["epochs_chosen_by"] == "left-out donors"
    assert all(v is not None for v in model.record.var["cv_pearson"])


def test_labels_do_not_know_the_counts_of_their_slide(
    cohort: dict[str, SpatialData], distilled: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other counts on one slide change the labels of all others, and of that one only the scale."""
    seen: list[dict[tuple[str, ...], Any]] = []
    plain = _loop.train

    def train(model: Model, batches: list[Batch], **how: Any) -> Any:
        if isinstance(model, Student) and how.get("validation"):
            seen[-1][tuple(b.slide for b in batches)] = {b.slide: b.y for b in batches}
        return plain(model, batches, **how)

    monkeypatch.setattr(_loop, "train", train)
    other = cohort | {"donor2": with_other_counts(cohort["donor2"])}
    models = []
    for slides in (cohort, other):
        seen.append({})
        models.append(st.tl.distill(slides, "ridge", SMALL, **HOW))
    assert models[0].id == distilled.id
    a, b = (labels_of(m) for m in models)
    np.testing.assert_allclose(standardised(a["donor2"]), standardised(b["donor2"]), atol=1e-3)
    for slide in ("donor0", "donor1"):
        assert np.abs(standardised(a[slide]) - standardised(b[slide])).max() > 0.1
    # A student that is scored on it learned the same labels, bit for bit.
    fold = ("donor0", "donor1")
    for slide in fold:
        np.testing.assert_array_equal(seen[0][fold][slide], seen[1][fold][slide])
    assert not np.array_equal(seen[0]["donor0", "donor2"]["donor0"], seen[1]["donor0", "donor2"]["donor0"])


# Averages and scale.


def random_slides(rng: np.random.Generator) -> dict[str, NDArray[np.float64]]:
    return {s: rng.normal(3, 1, (n, 5)) * [1, 2, 0.1, 30, 1] for s, n in (("a", 30), ("b", 41))}


def batches_of(y: dict[str, NDArray[np.float64]]) -> list[Batch]:
    rng = np.random.default_rng(0)
    values = {s: v.astype(np.float32) for s, v in y.items()}
    return [
        Batch.of(rng.normal(size=(len(v), 3)), slide=s, y=v, coords_um=np.zeros((len(v), 2))) for s, v in values.items()
    ]


def test_no_teacher_outweighs_another_by_its_scale() -> None:
    rng = np.random.default_rng(0)
    one, two, y = (random_slides(rng) for _ in range(3))
    loud = {s: 1000 * v + np.arange(5) * 77 for s, v in two.items()}

    def teacher(labels: dict[str, Any]) -> Any:
        return lambda slides, groups: ({s: labels[s] for s in slides}, dict.fromkeys(slides, groups))

    batches = batches_of(y)
    quiet = Distillation([teacher(one), teacher(two)])(batches, ["A", "B"])
    scaled = Distillation([teacher(one), teacher(loud)])(batches, ["A", "B"])
    for a, b, given in zip(quiet, scaled, batches, strict=True):
        np.testing.assert_allclose(a.y, b.y, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(a.truth, given.y)
    found = averaged([one, two])
    for s in "ab":
        want = [(t[s] - t[s].mean(axis=0)) / t[s].std(axis=0) for t in (one, two)]
        np.testing.assert_allclose(found[s], np.mean(want, axis=0), rtol=1e-4, atol=1e-5)
    _, taught = Distillation([teacher(one)]).labels(["a", "b"], ["A", "B"])
    assert taught == [{"a": ["A", "B"], "b": ["A", "B"]}]


def test_labels_have_the_mean_and_the_explained_spread_of_the_measurement() -> None:
    rng = np.random.default_rng(1)
    y, labels = random_slides(rng), random_slides(rng)
    labels = {s: 7 * v + (3 * y[s] * [1, 0, -1, 1, 0]) for s, v in labels.items()}  # of some genes they know something
    found = on_scale(labels, y)
    mean = np.concatenate([*y.values()]).mean(axis=0)
    n = {s: len(v) for s, v in y.items()}
    for g in range(5):
        inside = np.sqrt(sum(n[s] * y[s][:, g].var() for s in y) / sum(n.values()))
        r = sum(n[s] * np.corrcoef(labels[s][:, g], y[s][:, g])[0, 1] for s in y) / sum(n.values())
        for s in y:
            assert found[s][:, g].mean() == pytest.approx(mean[g], rel=1e-4)
            assert found[s][:, g].std() == pytest.approx(inside * max(r, 0.05), rel=1e-3)
            assert np.corrcoef(found[s][:, g], labels[s][:, g])[0, 1] == pytest.approx(1, abs=1e-5)
    constant = on_scale({s: np.ones_like(v) for s, v in y.items()}, y)
    for s in y:
        np.testing.assert_allclose(constant[s], np.broadcast_to(mean, y[s].shape), rtol=1e-5)


def test_a_share_of_the_measurement_mixes_it_in() -> None:
    rng = np.random.default_rng(2)
    y, labels = random_slides(rng)["a"], random_slides(rng)["a"]
    z, measured = standardised(labels), standardised(y)
    np.testing.assert_array_equal(blended(labels, y, 0.0), z)
    half = blended(labels, y, 0.5)
    np.testing.assert_allclose(half, standardised(z + measured), rtol=1e-6)
    np.testing.assert_allclose(half.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(half.std(axis=0), 1, rtol=1e-9)
    np.testing.assert_allclose((half * z).mean(axis=0), (half * measured).mean(axis=0))  # equally like both
    np.testing.assert_allclose(blended(labels, y, 1.0), measured, atol=1e-9)
    assert (standardised(np.full((4, 2), 3.0)) == 0).all()


def test_a_share_of_the_measurement_is_learned_but_no_pseudo_label(
    cohort: dict[str, SpatialData], distilled: Model
) -> None:
    alone = st.tl.distill(cohort, "ridge", SMALL, measured_fraction=0, **HOW)
    assert alone.record.training["distilled"]["measured_share"] == 0.0
    assert distilled.record.training["distilled"]["measured_share"] == 0.5
    assert alone.id != distilled.id
    labels, measured = labels_of(distilled), measured_of(cohort, distilled)
    for slide, values in labels_of(alone).items():
        np.testing.assert_array_equal(values, labels[slide])
    blended = on_scale(labels, measured, fraction=0.5)
    for slide, values in labels.items():
        apart = [np.nanmean(metrics.pearson(v, measured[slide])) for v in (values, blended[slide])]
        assert apart[1] > apart[0] + 0.1


def test_a_teacher_that_knows_nothing_changes_nothing(cohort: dict[str, SpatialData], distilled: Model) -> None:
    both = st.tl.distill(cohort, ["ridge", "mean"], SMALL, **HOW)
    a, b = labels_of(distilled), labels_of(both)
    for slide in cohort:
        np.testing.assert_allclose(a[slide], b[slide], rtol=1e-4, atol=1e-4)
    assert [t["family"] for t in both.record.training["distilled"]["teachers"]] == ["ridge", "mean"]
    assert len(both.record.training["distilled"]["taught"]) == 2


# Trained teachers.


def test_trained_teachers_label_the_slides_that_they_have_not_seen(
    cohort: dict[str, SpatialData],
    teachers: dict[str, Model],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked: list[tuple[str, str]] = []
    for name, model in teachers.items():

        def told(batch: Batch, name: str = name, plain: Any = model.predict) -> Any:
            asked.append((name, batch.slide))
            values, spread = plain(batch)
            return values * (1000 if name == "donor1" else 1), spread

        monkeypatch.setattr(model, "predict", told)
    with caplog.at_level(logging.WARNING, logger="stpred"):
        model = st.tl.distill(cohort, list(teachers.values()), SMALL, **HOW)
    assert sorted(asked) == [(d, d) for d in cohort]
    facts = model.record.training["distilled"]
    assert facts["taught"] == [{d: [teachers[d].id] for d in cohort}]
    assert facts["teachers"] == [{"family": "ridge", "id": t.id, "trained": True} for t in teachers.values()]
    # Of a fold no teacher is left that knows neither the labelled nor the left-out donor.
    assert all(v is None for v in model.record.var["cv_pearson"])
    assert not any(model.record.var["trusted"])
    assert "No teacher was trained without the counts of slide" in caplog.text
    monkeypatch.undo()
    plain = st.tl.distill(cohort, list(teachers.values()), SMALL, **HOW)
    for slide, values in labels_of(plain).items():
        np.testing.assert_allclose(labels_of(model)[slide], values, rtol=1e-4, atol=1e-4)


def test_where_no_teacher_is_left_it_says_for_which_slide(
    cohort: dict[str, SpatialData], teachers: dict[str, Model]
) -> None:
    two = {k: cohort[k] for k in ("donor0", "donor1")}
    with pytest.raises(InputError, match=r"No teacher was trained without the counts of slide 'donor[01]'"):
        st.tl.distill(two, [teachers["donor2"]], SMALL, **HOW)
    # Under another name it is the same slide.
    named = {"x": cohort["donor0"], "y": cohort["donor1"]}
    with pytest.raises(InputError, match=r"No teacher was trained without the counts of slide '[xy]'"):
        st.tl.distill(named, teachers["donor2"], SMALL, **HOW)


def test_teachers_of_other_slides_allow_scores(cohort: dict[str, SpatialData]) -> None:
    other = st.datasets.toy_cohort(2, seed=9, **TOY)
    teacher = st.tl.train({f"other{k}": v for k, v in other.items()}, "ridge", **HOW)
    model = st.tl.distill(cohort, [teacher, "ridge"], SMALL, **HOW)
    assert all(v is not None for v in model.record.var["cv_pearson"])
    trained, anew = model.record.training["distilled"]["taught"]
    assert trained == {s: [teacher.id] for s in cohort}
    assert anew == {s: [o for o in cohort if o != s] for s in cohort}


def test_a_teacher_of_another_slide_of_the_donor_is_not_asked(paired: dict[str, SpatialData]) -> None:
    slides = {k: paired[k] for k in ("donor0", "again0", "donor1")}
    of_a, of_b = (st.tl.train({k: slides[k]}, "ridge", **HOW) for k in ("donor0", "donor1"))
    groups = {k: DONORS[k] for k in slides}
    model = st.tl.distill(slides, [of_a, of_b], SMALL, groups=groups, **HOW)
    (taught,) = model.record.training["distilled"]["taught"]
    assert taught == {"donor0": [of_b.id], "again0": [of_b.id], "donor1": [of_a.id]}


def test_a_trained_teacher_must_know_the_genes(cohort: dict[str, SpatialData]) -> None:
    names = list(cohort["donor0"].tables["spots_counts"].var_names)
    teacher = st.tl.train(cohort["donor0"], "ridge", shapes_key="spots", genes=names[:5])
    rest = {k: cohort[k] for k in ("donor1", "donor2")}
    with pytest.raises(InputError, match=r"The teacher 'ridge' does not predict .*; pass genes= that all predict"):
        st.tl.distill(rest, teacher, SMALL, **HOW)
    # In any order of the genes it is asked for what it knows.
    model = st.tl.distill(rest, teacher, SMALL, shapes_key="spots", genes=names[:5][::-1])
    assert model.record.genes == names[:5][::-1]
    whole = st.tl.distill(rest, teacher, SMALL, shapes_key="spots", genes=names[:5])
    for slide, values in labels_of(model).items():
        np.testing.assert_allclose(values[:, ::-1], labels_of(whole)[slide], rtol=1e-4, atol=1e-4)


def test_a_trained_teacher_labels_as_it_predicts() -> None:
    """On bins, a teacher of spots takes its context at the pitch of spots."""
    slides = {k: with_some_bins(v) for k, v in st.datasets.toy_cohort(3, bin_um=16, **TOY).items()}
    teacher = st.tl.train(slides["donor2"], st.models.Ridge.Config(context_um=110.0), **HOW)
    rest = {k: slides[k] for k in ("donor0", "donor1")}
    model = st.tl.distill(rest, teacher, SMALL, shapes_key="bins_016um", genes="all")
    for slide, values in labels_of(model).items():
        table = st.tl.predict(rest[slide], teacher, shapes_key="bins_016um", inplace=False)
        instances = (t.obs[t.uns["spatialdata_attrs"]["instance_key"]] for t in (model.pseudo_labels[slide], table))  # type: ignore[index]
        rows = [list(ids) for ids in instances]
        want = np.asarray(table[[rows[1].index(i) for i in rows[0]], model.record.genes].X)
        np.testing.assert_allclose(standardised(values), standardised(want), atol=1e-2)


# What is refused.


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"teacher": "scellst"}, r"The teacher 'scellst' takes cells; teachers take tiles"),
        ({"student": "ridge"}, r"`student` must be a model of patches, such as 'student', not 'ridge'"),
        ({"student": "deepspot"}, r"`student` must be a model of patches"),
        ({"teacher": []}, r"`teacher` is empty; give a family such as 'ridge'"),
        ({"teacher": "rigde"}, "No model family named 'rigde'"),
        ({"measured_fraction": 1.0}, r"`measured_fraction` must be a number from 0 to below 1, got 1.0"),
        ({"measured_fraction": True}, r"`measured_fraction` must be a number"),
        ({"measured_fraction": -0.5}, r"`measured_fraction` must be a number"),
        ({"target": "log2"}, "target"),
        ({"groups": dict.fromkeys(["donor0", "donor1", "donor2"], "A")}, r"Distillation needs two donors or more"),
        ({"groups": {"donor0": "A"}}, r"`groups` names no donor for slides"),
    ],
)
def test_what_cannot_be_distilled_is_refused(cohort: dict[str, SpatialData], how: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        st.tl.distill(cohort, **{"student": SMALL, **HOW, **how})


def test_a_trained_teacher_that_sees_cells_is_refused(
    cohort: dict[str, SpatialData], teachers: dict[str, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = replace(teachers["donor2"].needs, cells=True)
    monkeypatch.setattr(st.models.Ridge, "needs", property(lambda self: needs))
    with pytest.raises(InputError, match="cells"):
        st.tl.distill(cohort, list(teachers.values()), SMALL, **HOW)


def test_a_single_slide_is_refused(cohort: dict[str, SpatialData]) -> None:
    with pytest.raises(InputError, match=r"train on the counts: stpred.tl.train\(slides, 'student'\)"):
        st.tl.distill({"donor0": cohort["donor0"]}, "ridge", SMALL, **HOW)
    with pytest.raises(InputError, match=r"Distillation needs two donors"):
        st.tl.distill(cohort["donor0"], "ridge", SMALL, **HOW)  # type: ignore[arg-type]


def test_teachers_out_of_fold_need_two_donors() -> None:
    batches = batches_of(random_slides(np.random.default_rng(0)))
    from stpred.models import Ridge

    with pytest.raises(InputError, match="leave no teacher that was trained without them"):
        training.out_of_fold(Ridge, Ridge.Config(), batches, groups=["A", "A"])
    labels, taught = training.out_of_fold(Ridge, Ridge.Config(), batches, groups=["A", "B"])
    assert taught == {"a": ["b"], "b": ["a"]}
    assert {s: v.shape for s, v in labels.items()} == {"a": (30, 5), "b": (41, 5)}


# What is told.


def test_the_record_tells_who_taught_what(cohort: dict[str, SpatialData], distilled: Model) -> None:
    record = distilled.record
    facts = record.training["distilled"]
    (told,) = facts["teachers"]
    assert told["family"] == "ridge"
    assert st.models.Ridge.Config.parse(told["config"]) == st.models.Ridge.Config()
    assert facts["measured_share"] == 0.5
    assert facts["taught"] == [{s: [o for o in cohort if o != s] for s in cohort}]
    assert (record.training["donors_given"], record.training["seed"], record.training["n_donors"]) == (False, 0, 3)
    assert (record.training["token_um"], distilled.support_um) == (8.0, 8.0)
    assert record.target == "log1p_cp10k"
    assert all(v is not None for v in record.var["cv_pearson"])
    for slide, values in labels_of(distilled).items():
        table = cohort[slide].tables["spots_counts"]
        counts = np.asarray(table.X.todense(), dtype=np.float64)
        truth = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))[:, table.var_names.get_indexer(record.genes)]
        assert facts["label_pearson"][slide] == pytest.approx(np.nanmean(st.metrics.pearson(values, truth)), abs=1e-3)


def test_it_round_trips_through_a_folder(distilled: Model, tmp_path: Path) -> None:
    back = st.models.load(st.models.save(distilled, tmp_path / "m"))
    assert back.id == distilled.id
    assert back.record == distilled.record


def test_pseudo_labels_are_tables_of_their_regions(cohort: dict[str, SpatialData], distilled: Model) -> None:
    tables: dict[str, AnnData] = distilled.pseudo_labels  # type: ignore[assignment]
    assert list(tables) == list(cohort)
    for name, table in tables.items():
        TableModel().validate(table)
        slide = cohort[name]
        assert list(table.var_names) == distilled.record.genes
        measured = slide.tables["spots_counts"]
        assert set(table.obs[table.uns["spatialdata_attrs"]["region_key"]]) == {"spots"}
        assert set(table.obs[table.uns["spatialdata_attrs"]["instance_key"]]) <= set(slide.shapes["spots"].index)
        assert table.n_obs == measured.n_obs
        np.testing.assert_allclose(table.obsm["spatial"], measured.obsm["spatial"], atol=1e-3)
        assert np.isfinite(table.X).all()
        facts = json.loads(table.uns["stpred"])
        assert (facts["kind"], facts["pseudo_labels"], facts["output_scale"]) == ("prediction", True, "log1p_cp10k")
        own = SpatialData(images=dict(slide.images), shapes=dict(slide.shapes), tables={"labels": table})
        assert own.tables["labels"].n_obs == table.n_obs


def test_the_student_predicts_finer_regions(cohort: dict[str, SpatialData], distilled: Model) -> None:
    table = st.tl.predict(cohort["donor2"], distilled, shapes_key="cells", inplace=False)
    assert table.n_obs == len(cohort["donor2"].shapes["cells"])
    assert np.isfinite(table.X).all()


def test_the_seed_decides(cohort: dict[str, SpatialData], distilled: Model) -> None:
    assert st.tl.distill(cohort, "ridge", SMALL, **HOW).id == distilled.id
    assert st.tl.distill(cohort, "ridge", SMALL, seed=1, **HOW).id != distilled.id
    turned = st.tl.distill(dict(reversed(cohort.items())), "ridge", SMALL, **HOW)
    for slide, values in labels_of(turned).items():
        np.testing.assert_allclose(values, labels_of(distilled)[slide], rtol=1e-3, atol=1e-3)


def test_teachers_and_student_train_in_half_precision(cohort: dict[str, SpatialData]) -> None:
    with st.settings.override(precision="bf16-mixed"):
        model = st.tl.distill(cohort, "ridge", SMALL, **HOW)
    assert np.isfinite(labels_of(model)["donor0"]).all()


def test_labels_of_counts_and_of_relative_losses(cohort: dict[str, SpatialData]) -> None:
    counts = st.tl.distill(cohort, "ridge", SMALL, target="counts", **HOW)
    facts = json.loads(counts.pseudo_labels["donor0"].uns["stpred"])  # type: ignore[index, union-attr]
    assert (facts["output_scale"], counts.record.target) == ("counts", "counts")
    relative = st.tl.distill(cohort, "ridge", Student.Config(hidden=(8,), epochs=1, loss="cosine"), **HOW)
    assert relative.record.target == "relative"


def test_labels_of_a_likelihood_of_counts_are_counts_or_refused(cohort: dict[str, SpatialData]) -> None:
    try:
        model = st.tl.distill(cohort, "ridge", Student.Config(hidden=(8,), epochs=1, loss="nb"), **HOW)
    except InputError:
        return
    assert min(v.min() for v in labels_of(model).values()) >= 0


def test_a_network_may_teach(cohort: dict[str, SpatialData]) -> None:
    """Also one that sees the slide through its patches."""
    teacher = Student.Config(hidden=(8,), epochs=1)
    model = st.tl.distill(cohort, teacher, SMALL, **HOW)
    assert model.record.training["distilled"]["teachers"][0]["family"] == "student"
    assert np.isfinite(labels_of(model)["donor1"]).all()


def test_an_interrupted_training_leaves_no_files_and_changes_nothing(
    cohort: dict[str, SpatialData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = st.models.MLP.Config(hidden=(4,), epochs=2)
    want = st.tl.distill(cohort, teacher, SMALL, **HOW)
    plain, number = _loop.train, 0

    def train(model: Model, batches: list[Batch], **how: Any) -> Any:
        nonlocal number
        number += 1
        if number == 5:
            raise KeyboardInterrupt
        return plain(model, batches, **how)

    monkeypatch.setattr(_loop, "train", train)
    with pytest.raises(KeyboardInterrupt):
        with st.settings.override(checkpoint_dir=tmp_path / "kept"):
            st.tl.distill(cohort, teacher, SMALL, **HOW)
    assert len(list((tmp_path / "kept").iterdir())) == 4
    monkeypatch.undo()
    with st.settings.override(checkpoint_dir=tmp_path / "kept"):
        assert st.tl.distill(cohort, teacher, SMALL, **HOW).id == want.id
    assert not (tmp_path / "kept").exists()

"""Cross-validation: folds, grids over families, blocks within slides, scales, resuming."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

import stpred as st
from stpred import InputError, data, training
from stpred._core.places import Place

if TYPE_CHECKING:
    from spatialdata import SpatialData

pytestmark = pytest.mark.usefixtures("kept_features")

HOW: dict[str, Any] = {"genes": st.GeneRule("mean", n=8), "shapes_key": "spots"}
SMALL = {
    "mlp": st.models.MLP.Config(hidden=(16,), epochs=2),
    "miso": st.models.MISO.Config(n_neighbors=6, width=16, inner=8, n_heads=2, epochs=2),
}


@pytest.fixture
def donors(cohort: dict[str, SpatialData]) -> dict[str, str]:
    return dict(zip(cohort, "pqr", strict=True))


def test_several_models_share_features_and_say_what_they_saw(
    cohort: dict[str, SpatialData], donors: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from stpred.data._readers import tiles

    calls: list[int] = []
    original = tiles.embed_region
    monkeypatch.setattr(tiles, "embed_region", lambda *a, **k: (calls.append(1), original(*a, **k))[1])
    both = ("log1p_cp10k", "counts")
    how = HOW | {"encoder": "morphology"}
    scores = st.tl.cross_validate(cohort, {**SMALL, "ridge": "ridge"}, groups=donors, scored_on=both, **how)
    assert len(calls) == 3  # once per slide, whatever the models
    trained_on = scores.groupby("model")["trained_on"].unique()
    assert trained_on["miso"].tolist() == ["counts"]
    assert trained_on["mlp"].tolist() == ["log1p_cp10k"]
    assert set(scores["target"]) == set(both)
    r2 = scores[scores["metric"] == "r2"]
    assert r2[r2["model"] == "miso"]["value"].isna().all()  # relative outputs have no error
    assert r2[(r2["model"] == "ridge") & (r2["target"] == "log1p_cp10k")]["value"].notna().any()
    assert (scores["split"] == "donor").all()
    assert not scores.duplicated(["model", "fold", "slide", "gene", "metric", "target"]).any()


def test_a_grid_may_span_families_and_says_what_won(cohort: dict[str, SpatialData], donors: dict[str, str]) -> None:
    grid = {"best": ["mean", st.models.Ridge.Config(penalty=0.3)]}
    scores = st.tl.cross_validate(cohort, grid, groups=donors, **HOW)
    chosen = scores.loc[scores["model"] == "best", "chosen"]
    assert chosen.str.contains("family=ridge, penalty=0.3").all()


def test_folds_of_donors_never_share_one() -> None:
    groups = {f"s{i}": f"d{i // 2}" for i in range(14)}
    folds = training.group_folds(groups, n_folds=3)
    assert len(folds) == 3
    tested = [s for _, _, test in folds for s in test]
    assert sorted(tested) == sorted(groups)
    for _, train, test in folds:
        assert not {groups[s] for s in train} & {groups[s] for s in test}
        assert set(train) | set(test) == set(groups)
        assert 4 <= len(test) <= 6
    assert len(training.group_folds(groups, n_folds=None)) == 7


def test_number_of_folds(cohort: dict[str, SpatialData], donors: dict[str, str]) -> None:
    scores = st.tl.cross_validate(cohort, "mean", groups=donors, n_folds=2, **HOW)
    assert set(scores["fold"]) == {"p+r", "q"} or len(set(scores["fold"])) == 2
    for wrong, message in ((1, "at least 2"), (4, "only 3 donors")):
        with pytest.raises(InputError, match=message):
            st.tl.cross_validate(cohort, "mean", groups=donors, n_folds=wrong, **HOW)


def test_blocks_leave_a_buffer(cohort: dict[str, SpatialData]) -> None:
    from scipy.spatial import cKDTree

    regions = {s: data.read_region(x, Place(shapes_key="spots"), slide=s, measured=True) for s, x in cohort.items()}
    folds = data.block_folds(regions, n_folds=3)
    for s, region in regions.items():
        tested = np.concatenate([f.test[s] for f in folds])
        assert sorted(tested) == list(range(len(region.coords_um)))
        for fold in folds:
            near = cKDTree(region.coords_um[fold.test[s]]).query(region.coords_um[fold.train[s]])[0]
            assert near.min() > 2.5 * 99
    scores = st.tl.cross_validate(cohort, {"ridge": "ridge", **SMALL}, groups="blocks", n_folds=3, **HOW)
    assert scores["donor_shared"].all()
    assert (scores["split"] == "block").all()
    assert set(scores["fold"]) == {"block0", "block1", "block2"}
    ridge = scores[(scores["model"] == "ridge") & (scores["metric"] == "pearson")]["value"]
    assert ridge.median() > 0.2
    with pytest.raises(InputError, match="too few for 60 blocks"):
        st.tl.cross_validate(cohort, "mean", groups="blocks", n_folds=60, **HOW)


def test_blocks_are_compact_and_even() -> None:
    xy = np.stack(np.meshgrid(np.arange(12), np.arange(8)), axis=-1).reshape(-1, 2) * 100.0
    blocks = data.blocks_of(xy, 4, slide="a")
    assert np.bincount(blocks).tolist() == [24, 24, 24, 24]
    for k in range(4):
        assert np.ptp(xy[blocks == k], axis=0).max() <= 500


def test_what_is_done_is_not_done_again(
    cohort: dict[str, SpatialData], donors: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = st.tl.cross_validate(cohort, SMALL, groups=donors, **HOW)
    # The third training is interrupted.
    original, seen = training.fit, []

    def failing(*args: Any, **kwargs: Any) -> Any:
        seen.append(args[0].family)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(training, "fit", failing)
    with pytest.raises(KeyboardInterrupt):
        with st.settings.override(checkpoint_dir=tmp_path / "cv"):
            st.tl.cross_validate(cohort, SMALL, groups=donors, **HOW)
    seen.clear()
    monkeypatch.setattr(training, "fit", lambda *a, **k: (seen.append(a[0].family), original(*a, **k))[1])
    with st.settings.override(checkpoint_dir=tmp_path / "cv"):
        found = st.tl.cross_validate(cohort, SMALL, groups=donors, **HOW)
    assert len(seen) == 4
    pd.testing.assert_frame_equal(found, want)
    seen.clear()
    with st.settings.override(checkpoint_dir=tmp_path / "cv"):
        again = st.tl.cross_validate(cohort, SMALL, groups=donors, **HOW)
    assert not seen
    pd.testing.assert_frame_equal(again, want)
    with st.settings.override(checkpoint_dir=tmp_path / "cv"):
        other = st.tl.cross_validate(cohort, SMALL, groups=donors, seed=1, **HOW)
    assert len(seen) == 6  # another seed is another run
    assert not np.allclose(other[other.model == "mlp"]["value"], want[want.model == "mlp"]["value"], equal_nan=True)


def test_genes_are_chosen_inside_each_fold(cohort: dict[str, SpatialData], donors: dict[str, str]) -> None:
    names = list(cohort)
    scores = st.tl.cross_validate(cohort, "mean", groups=donors, **HOW)
    for left, fold in donors.items():
        regions = [
            data.read_region(cohort[s], Place(shapes_key="spots"), slide=s, measured=True) for s in names if s != left
        ]
        want = data.choose_genes(regions, HOW["genes"]).index
        assert set(scores.loc[scores["fold"] == fold, "gene"]) == set(want)


def test_ensembles_of_everything(cohort: dict[str, SpatialData], donors: dict[str, str]) -> None:
    scores = st.tl.cross_validate(
        cohort, {n: st.models.Ensemble.Config(SMALL.get(n, n), 2) for n in ("ridge", "mlp")}, groups=donors, **HOW
    )
    assert scores.loc[scores["model"].isin(["ridge", "mlp"]), "chosen"].str.contains("n_ensemble=2").all()
    with pytest.raises(InputError, match="`n_members` must be a positive whole number"):
        st.tl.cross_validate(cohort, st.models.Ensemble.Config("ridge", 0), groups=donors, **HOW)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scored_on": "cpm"}, "`scored_on` must be one of"),
        ({"scored_on": []}, "`scored_on` is empty"),
        ({"target": "cpm"}, "`target` must be one of"),
        ({"device": "cuda:99"}, "`device`='cuda:99' is not there"),
    ],
)
def test_bad_arguments(
    cohort: dict[str, SpatialData], donors: dict[str, str], given: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        st.tl.cross_validate(cohort, SMALL, groups=donors, **{**HOW, **given})


def test_groups_are_required_and_refused_when_incomplete(cohort: dict[str, SpatialData]) -> None:
    with pytest.raises(TypeError, match="groups"):
        st.tl.cross_validate(cohort, "mean", **HOW)  # type: ignore[call-arg]
    with pytest.raises(InputError, match="names no donor for slides"):
        st.tl.cross_validate(cohort, "mean", groups={"donor0": "p"}, **HOW)
    with pytest.raises(InputError, match="must map every slide to its donor"):
        st.tl.cross_validate(cohort, "mean", groups="spots", **HOW)


def test_a_gene_without_variance_in_a_fold_is_missing_there_and_nowhere_else(
    cohort: dict[str, SpatialData], donors: dict[str, str]
) -> None:
    from scipy.sparse import csr_matrix
    from spatialdata import SpatialData as Object

    slides, genes = {}, ["EPCAM", "COL1A2", "KRT8"]
    for name, old in cohort.items():
        table = old.tables["spots_counts"].copy()
        if name != "donor2":  # never seen where donor2 is left out, and not scored where these are
            counts = table.X.toarray()
            counts[:, table.var_names.get_loc("EPCAM")] = 0
            table.X = csr_matrix(counts)
        slides[name] = Object(images=dict(old.images), shapes=dict(old.shapes), tables={"spots_counts": table})
    how = {**HOW, "genes": [g for g in genes if g in table.var_names]}
    scores = st.tl.cross_validate(slides, {**SMALL, "ridge": "ridge"}, groups=donors, **how)
    pearson = scores[scores["metric"] == "pearson"]
    flat = pearson[(pearson["gene"] == "EPCAM") & (pearson["slide"] != "donor2")]
    assert flat["value"].isna().all()
    others = pearson[(pearson["gene"] != "EPCAM") & (pearson["model"] == "ridge")]
    assert others["value"].notna().all()

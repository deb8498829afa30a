from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import geopandas as gpd
import numpy as np
import pytest
import xarray as xr
from spatialdata.models import TableModel

import stpred as st
from stpred import InputError, metrics
from stpred._core import targets

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from stpred.models import Model


pytestmark = pytest.mark.usefixtures("kept_features")


def against_truth(slide: SpatialData, predicted: AnnData) -> np.ndarray:
    """Pearson per gene with the noiseless expectation of the spots."""
    measured = slide.tables["spots_counts"]
    rows = measured.obs["instance_id"].astype(str).tolist()
    rows = [rows.index(i) for i in predicted.obs["instance_id"].astype(str)]
    expected = targets.dense(measured.layers["expected"])[rows]
    values = targets.transform(expected, expected.sum(axis=1), target="log1p_cp10k")
    return metrics.pearson(predicted.X, values[:, measured.var_names.get_indexer(predicted.var_names)])


def test_known_signal_is_recovered_on_an_unseen_donor(ridge: Model, unseen: SpatialData) -> None:
    table = st.tl.predict(unseen, ridge, inplace=False)
    colour = st.tl.train(unseen, "intensity", genes="all", shapes_key="spots")
    # The colour baseline is even allowed to train on the very slide that it is scored on.
    blind = st.tl.predict(unseen, colour, inplace=False)
    assert np.nanmedian(against_truth(unseen, table)) > 0.7
    assert np.nanmedian(against_truth(unseen, blind)) < 0.5


def test_no_signal_is_invented_on_shuffled_expression() -> None:
    slides = st.datasets.toy_cohort(3, size_um=(700, 700), n_genes=40, shuffled=True)
    model = st.tl.train(slides, "ridge", genes="all", shapes_key="spots")
    assert abs(np.nanmedian(np.array(model.record.var["cv_pearson"], dtype=float))) < 0.08
    assert np.mean(model.record.var["trusted"]) < 0.1


def test_predicted_table_keeps_the_contract(ridge: Model, unseen: SpatialData) -> None:
    assert st.tl.predict(unseen, ridge) is None
    table = unseen.tables["spots_ridge"]
    TableModel().validate(table)
    assert table.X.dtype == np.float32
    assert np.isfinite(table.X).all()
    assert table.obsm["spatial"].dtype == np.float64
    assert table.obs["ood_score"].dtype == np.float32
    assert table.obs["in_distribution"].dtype == bool
    assert ((table.obs["ood_score"] == 0) == table.obs["in_distribution"]).all()
    assert {"cv_pearson", "cv_spearman", "rmax", "n_slides", "trusted", "gene_id"} <= set(table.var)
    centroids = unseen.shapes["spots"].loc[table.obs["instance_id"]].geometry.centroid
    np.testing.assert_allclose(table.obsm["spatial"], np.column_stack([centroids.x, centroids.y]), atol=1e-6)
    facts = json.loads(table.uns["stpred"])
    assert facts["model_id"] == ridge.id
    assert facts["output_scale"] == "log1p_cp10k"
    assert facts["support_um"] == 448 + 2 * 120
    assert [m["name"] for m in facts["encoder"]["members"]] == ["morphology", "morphology"]
    assert facts["left_out"] == {"off_image": 0}


def test_a_cell_of_a_notebook_can_be_run_twice(ridge: Model, unseen: SpatialData) -> None:
    st.tl.predict(unseen, ridge)
    first = unseen.tables["spots_ridge"].X.copy()
    with pytest.warns(UserWarning, match="'spots_ridge' existed and is overwritten in memory"):
        st.tl.predict(unseen, ridge)
    assert np.array_equal(first, unseen.tables["spots_ridge"].X)


def test_result_does_not_depend_on_batch_size_chunks_or_order(ridge: Model, unseen: SpatialData) -> None:
    whole = st.tl.predict(unseen, ridge, inplace=False)
    with st.settings.override(batch_size=7):
        small = st.tl.predict(unseen, ridge, inplace=False)
    assert np.array_equal(whole.X, small.X)
    unseen.shapes["spots"] = unseen.shapes["spots"].iloc[::-1]
    turned = st.tl.predict(unseen, ridge, inplace=False)
    assert turned.obs_names.tolist() == whole.obs_names.tolist()[::-1]
    np.testing.assert_allclose(turned.X[::-1], whole.X, rtol=1e-5, atol=1e-5)


def test_saved_model_predicts_the_same(ridge: Model, unseen: SpatialData, tmp_path: Path) -> None:
    folder = st.models.save(ridge, tmp_path / "m")
    table = st.tl.predict(unseen, folder, inplace=False)
    assert np.array_equal(table.X, st.tl.predict(unseen, ridge, inplace=False).X)


def test_genes_are_a_selection(ridge: Model, unseen: SpatialData) -> None:
    names = ridge.record.genes[5:2:-1]
    table = st.tl.predict(unseen, ridge, genes=names, inplace=False)
    whole = st.tl.predict(unseen, ridge, inplace=False)
    assert table.var_names.tolist() == names
    assert np.array_equal(table.X, whole[:, names].X)


@pytest.mark.slow
def test_context_of_a_finer_region_comes_from_the_training_pitch(ridge: Model, unseen: SpatialData) -> None:
    """Cells that sit where spots sit get a spot's value, whether their own pitch is the spots' or much finer."""
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    def shapes(frame: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
        columns = {"radius": frame["radius"].to_numpy()} if "radius" in frame else {}
        new = gpd.GeoDataFrame(columns, geometry=frame.geometry.to_list(), index=frame.index)
        return ShapesModel.parse(new, transformations={"um": Identity()})

    unseen.shapes["copies"] = shapes(unseen.shapes["spots"])
    at_spots = st.tl.predict(unseen, ridge, shapes_key="spots", inplace=False)
    copies = st.tl.predict(unseen, ridge, shapes_key="copies", inplace=False)
    assert np.array_equal(at_spots.X, copies.X)
    unseen.shapes["cells"] = shapes(unseen.shapes["cells"].iloc[::5])
    cells = st.tl.predict(unseen, ridge, shapes_key="cells", genes=ridge.record.genes[:3], inplace=False)
    facts = json.loads(cells.uns["stpred"])
    assert facts["context"] in ("spots", "spots+grid")
    assert json.loads(copies.uns["stpred"])["context"] == "region"
    # A value does not depend on which other cells are asked for.
    unseen.shapes["some"] = shapes(unseen.shapes["cells"].iloc[10:60])
    part = st.tl.predict(unseen, ridge, shapes_key="some", genes=ridge.record.genes[:3], inplace=False)
    np.testing.assert_allclose(part.X, cells[part.obs_names].X, atol=1e-4)


def test_a_slide_without_shapes_gets_tissue_and_grid(ridge: Model, unseen: SpatialData) -> None:
    from spatialdata import SpatialData as Object

    bare = Object(images=dict(unseen.images))
    alone = st.tl.predict(bare, ridge, inplace=False)
    assert not bare.shapes
    assert not bare.tables
    st.tl.predict(bare, ridge)
    assert {"tissue", "grid"} == set(bare.shapes)
    assert "grid_ridge" in bare.tables
    table = bare.tables["grid_ridge"]
    pitch = np.diff(np.unique(table.obsm["spatial"][:, 0])).min()
    assert pitch == pytest.approx(ridge.record.pitch_um, rel=0.01)
    np.testing.assert_array_equal(alone.X, table.X)
    assert alone.obs_names.equals(table.obs_names)


def test_locations_off_the_image_are_left_out_and_counted(ridge: Model, unseen: SpatialData) -> None:
    from shapely import Point
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    inside = [Point(x, y) for x in range(100, 701, 100) for y in range(100, 701, 100)]
    frame = gpd.GeoDataFrame({"radius": 27.5}, geometry=[*inside, Point(-300, 50), Point(2000, 50)], index=range(51))
    unseen.shapes["mine"] = ShapesModel.parse(frame, transformations={"um": Identity()})
    table = st.tl.predict(unseen, ridge, shapes_key="mine", inplace=False)
    assert table.n_obs == 49
    assert json.loads(table.uns["stpred"])["left_out"] == {"off_image": 2}


def test_stored_features_are_reused_and_never_when_stale(
    ridge: Model, unseen: SpatialData, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stpred.data import _features

    st.pp.features(unseen, "morphology-multiscale", shapes_key="spots")
    want = st.tl.predict(unseen, ridge, inplace=False)
    calls: list[int] = []
    original = _features._embed
    monkeypatch.setattr(_features, "_embed", lambda *a, **k: (calls.append(len(a[2])), original(*a, **k))[1])
    assert np.array_equal(st.tl.predict(unseen, ridge, inplace=False).X, want.X)
    assert calls == []
    with xr.set_options(keep_attrs=True):  # where the image is placed stands in its attributes
        darker = unseen.images["he"].map_over_datasets(lambda d: d // 2)
    del unseen.images["he"]
    unseen.images["he"] = darker
    st.tl.predict(unseen, ridge, inplace=False)
    assert calls  # another image under the same name: computed anew


def test_genes_are_chosen_on_training_slides_and_intersected(cohort: dict[str, SpatialData]) -> None:
    from spatialdata import SpatialData as Object

    first, second = list(cohort)[:2]
    table = cohort[second].tables["spots_counts"]
    lacking = table[:, table.var_names[5:]].copy()
    other = Object(
        images=dict(cohort[second].images), shapes=dict(cohort[second].shapes), tables={"spots_counts": lacking}
    )
    model = st.tl.train({first: cohort[first], second: other}, "mean", genes="all", shapes_key="spots")
    assert not set(model.record.genes) & set(table.var_names[:5])
    assert model.record.genes
    with pytest.raises(InputError, match=table.var_names[0]):
        st.tl.train({first: cohort[first], second: other}, "mean", genes=list(table.var_names[:2]), shapes_key="spots")


def test_donors_decide_what_is_held_out(cohort: dict[str, SpatialData]) -> None:
    names = list(cohort)
    one = st.tl.train(
        cohort, "ridge", genes=st.GeneRule("mean", n=5), shapes_key="spots", groups=dict.fromkeys(names, "p")
    )
    assert one.record.var["cv_pearson"] == [None] * 5
    assert not any(one.record.var["trusted"])
    assert one.record.training["penalty_chosen_by"] == "generalised cross-validation"
    with pytest.raises(InputError, match=f"no donor for slides .*{names[2]}"):
        st.tl.train(cohort, "ridge", genes="all", shapes_key="spots", groups={names[0]: "a", names[1]: "b"})


def test_unlike_tiles_are_warned_about_once(ridge: Model, unseen: SpatialData) -> None:
    import dask.array as da
    from spatialdata import SpatialData as Object
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Scale

    noise = np.random.default_rng(0).integers(0, 256, (3, 1600, 1600), dtype=np.uint8)
    image = Image2DModel.parse(
        da.from_array(noise, chunks=(3, 512, 512)),
        dims=("c", "y", "x"),
        transformations={"um": Scale([0.5, 0.5], axes=("x", "y"))},
    )
    strange = Object(images={"he": image}, shapes={"spots": unseen.shapes["spots"]})
    with pytest.warns(UserWarning, match="are out of distribution for model 'ridge'") as caught:
        st.tl.predict(strange, ridge)
    assert len([w for w in caught if "out of distribution" in str(w.message)]) == 1
    assert not strange.tables["spots_ridge"].obs["in_distribution"].any()


def test_slides_of_training_are_told(
    ridge: Model, cohort: dict[str, SpatialData], unseen: SpatialData, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="stpred")
    st.tl.predict(unseen, ridge, inplace=False)
    assert "trained on" not in caplog.text
    name, slide = next(iter(cohort.items()))
    st.tl.predict(slide, ridge, inplace=False)
    assert f"{name} is one of the slides that the model was trained on" in caplog.text

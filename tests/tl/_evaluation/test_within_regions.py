from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

import stpred as st
from stpred import InputError
from stpred.tl._evaluation.within_regions import region_scores

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stpred.models import Model


def test_contrast_between_regions_is_told_from_what_is_within() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 200)
    inner, noise = rng.normal(size=400), rng.normal(size=(400, 2))
    # The first gene only differs between the regions, the second varies within them as well, and both are seen.
    x = np.stack([4.0 * labels, 4.0 * labels + inner], axis=1) + 0.1 * noise
    y = np.stack([4.0 * labels, 4.0 * labels + inner], axis=1) + rng.normal(size=(400, 2))
    one, two, both = region_scores(x, y, labels)
    assert (both["pearson_all"] > 0.85).all()
    assert abs(both["pearson_within"][0]) < 0.15
    assert both["pearson_within"][1] > 0.6
    for scores, at in ((one, labels == 0), (two, labels == 1)):
        for g in range(2):
            assert scores["pearson"][g] == pytest.approx(pearsonr(x[at, g], y[at, g])[0], abs=1e-9)
            assert scores["spearman"][g] == pytest.approx(spearmanr(x[at, g], y[at, g])[0], abs=1e-9)
    shuffled = region_scores(x, rng.permutation(y), labels)[-1]
    assert all(np.abs(v).max() < 0.15 for v in shuffled.values())


def test_locations_of_no_region_are_left_out() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 60, 3))
    labels = np.r_[np.full(20, -1), np.repeat([0, 1], 20)]
    for some, other in zip(region_scores(x, y, labels), region_scores(x[20:], y[20:], labels[20:]), strict=True):
        for name in some:
            np.testing.assert_array_equal(some[name], other[name])


def test_columns_and_polygons_give_the_same(unseen: SpatialData, ridge: Model) -> None:
    import geopandas as gpd
    from shapely.geometry import box
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    st.tl.predict(unseen, ridge)
    table = unseen["spots_counts"]
    left = table.obsm["spatial"][:, 0] < 400
    table.obs["half"] = np.where(left, "left", "right")
    found = st.tl.within_regions(unseen, "spots_ridge", "spots_counts", groupby="half", min_locations=5)
    assert set(found["region"]) == {"left", "right"}
    assert found.groupby("region")["n_locations"].first().sum() == table.n_obs
    whole = st.tl.compare(unseen, "spots_ridge", "spots_counts")
    beside = found.drop_duplicates("gene").set_index("gene")["pearson_all"]
    np.testing.assert_allclose(beside[whole.index], whole["pearson"], atol=1e-6)
    halves = gpd.GeoDataFrame(
        {"name": ["left", "right"], "geometry": [box(-1e4, -1e4, 400, 1e4), box(400.001, -1e4, 2e4, 1e4)]},
        index=["left", "right"],
    )
    unseen.shapes["annotation"] = ShapesModel.parse(halves, transformations={"um": Identity()})
    for column in ("name", "index"):
        again = st.tl.within_regions(
            unseen, "spots_ridge", "spots_counts", groupby=("annotation", column), min_locations=5
        )
        np.testing.assert_allclose(again["pearson"], found["pearson"])
    unseen.shapes["annotation"].loc["left", "geometry"] = box(-1e4, -1e4, 1e4, 1e4)
    with pytest.raises(InputError, match="locations lie in polygons of 'annotation' with different 'name'"):
        st.tl.within_regions(unseen, "spots_ridge", "spots_counts", groupby=("annotation", "name"))


def test_small_regions_and_unnamed_locations_are_told(unseen: SpatialData, ridge: Model) -> None:
    st.tl.predict(unseen, ridge)
    table = unseen["spots_counts"]
    names = np.array(["large"] * table.n_obs, dtype=object)
    names[:3], names[3:5] = "small", None
    table.obs["kind"] = names
    found = st.tl.within_regions(unseen, "spots_ridge", "spots_counts", groupby="kind", min_locations=10)
    assert found["region"].unique().tolist() == ["large"]
    assert found.attrs["left_out"] == {"small": 3}
    assert found.attrs["unnamed"] == 2
    np.testing.assert_allclose(found["pearson"], found["pearson_all"])
    with pytest.raises(InputError, match="No region of 'kind' has 100 locations: {'large'"):
        st.tl.within_regions(unseen, "spots_ridge", "spots_counts", groupby="kind", min_locations=100)


def test_bad_input_is_named(unseen: SpatialData, ridge: Model) -> None:
    st.tl.predict(unseen, ridge)
    for groupby, said in (
        ("none", "Neither table 'spots_counts' nor 'spots_ridge' has a column 'none'"),
        ("cells", r"for polygons give groupby=\('cells', column\)"),
        (("none", "name"), "No shapes element named 'none'"),
        (("cells", "none"), "No column of shapes 'cells' named 'none'"),
        (["cells", "none"], "`groupby` must be a column of obs or a pair"),
    ):
        with pytest.raises(InputError, match=said):
            st.tl.within_regions(unseen, "spots_ridge", "spots_counts", groupby=groupby)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="`min_locations` must be"):
        st.tl.within_regions(unseen, "spots_ridge", "spots_counts", groupby="n_cells", min_locations=0)

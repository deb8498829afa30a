from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from statsmodels.stats.multitest import multipletests

import stpred as st
from stpred import InputError, links
from stpred.metrics import benjamini_hochberg
from stpred.tl._downstream.spatial_null import cross_statistics, shifts

if TYPE_CHECKING:
    from spatialdata import SpatialData

KEY = "spots_counts"
SIDE = 25
XY = np.stack(np.meshgrid(np.arange(SIDE) * 100.0, np.arange(SIDE) * 100.0), axis=-1).reshape(-1, 2)


def averaging(xy: np.ndarray) -> object:
    near = links.knn(xy, xy, n_neighbors=6, include_self=True).to_csr(len(xy))
    return near.multiply(1 / near.sum(axis=1)).tocsr()


def smooth(rng: np.random.Generator, n: int, *, sigma: float = 3.0) -> np.ndarray:
    noise = rng.normal(size=(n, SIDE, SIDE))
    return np.stack([gaussian_filter(f, sigma, mode="wrap").ravel() for f in noise], axis=1)


def p_values(fields: np.ndarray, xy: np.ndarray, null: str, *, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    pairs = np.arange(fields.shape[1]).reshape(-1, 2)
    draw = shifts(xy, rng=rng) if null == "shift" else lambda: rng.permutation(len(xy))
    observed, drawn = cross_statistics(fields, averaging(xy), pairs, draw=draw, n=199)
    tails = [(1 + (d >= 0).sum(axis=0)) / 200 for d in (drawn - observed, observed - drawn)]
    return np.minimum(1, 2 * np.minimum(*tails))


def test_statistic_equals_the_obvious_loop() -> None:
    fields = smooth(np.random.default_rng(0), 4)
    average = averaging(XY)
    pairs = np.array([[0, 1], [2, 3]])
    observed, _ = cross_statistics(fields, average, pairs, draw=lambda: np.arange(len(XY)), n=1)
    lagged = np.asarray(average @ fields)
    for (a, b), value in zip(pairs, observed, strict=True):
        one = np.corrcoef(fields[:, a], lagged[:, b])[0, 1]
        other = np.corrcoef(lagged[:, a], fields[:, b])[0, 1]
        assert value == pytest.approx((one + other) / 2, abs=1e-12)
    turned, _ = cross_statistics(fields, average, pairs[:, ::-1], draw=lambda: np.arange(len(XY)), n=1)
    np.testing.assert_allclose(turned, observed, atol=1e-12)


def test_unrelated_smooth_fields_pass_the_shift_null_and_deceive_the_permutation() -> None:
    fields = smooth(np.random.default_rng(1), 120)
    shift = (p_values(fields, XY, "shift") <= 0.05).mean()
    permutation = (p_values(fields, XY, "permutation") <= 0.05).mean()
    assert shift <= 0.13  # 60 pairs: 0.05 and two standard errors are 0.11
    assert permutation > 0.5


def test_a_shift_is_a_rigid_motion_of_the_lattice() -> None:
    draw = shifts(XY, rng=np.random.default_rng(0))
    for _ in range(5):
        assert len(set(draw().tolist())) > 0.98 * len(XY)  # a lattice closes round the torus
    field = smooth(np.random.default_rng(2), 1)[:, 0]
    image = field[draw()].reshape(SIDE, SIDE)
    steps = np.abs(np.diff(image, axis=1)).mean()
    assert steps < 1.2 * np.abs(np.diff(field.reshape(SIDE, SIDE), axis=1)).mean()


@pytest.fixture(scope="module")
def planted() -> SpatialData:
    """Spots whose genes A1-A3 and B1-B3 share a smooth field, C1-C3 avoid it, and D1-D3 have one of their own."""
    from anndata import AnnData
    from spatialdata import SpatialData as Object
    from spatialdata.models import ShapesModel, TableModel
    from spatialdata.transformations import Identity

    rng = np.random.default_rng(3)
    common, own = smooth(rng, 2, sigma=2.0).T
    common, own = common / common.std(), own / own.std()
    log_rate = np.repeat(np.stack([common, common, -common, own], axis=1), 3, axis=1)
    ballast = np.full((len(XY), 40), 3.0)
    counts = rng.poisson(np.concatenate([5 * np.exp(0.7 * log_rate), ballast], axis=1))
    table = AnnData(counts.astype(np.int32))
    table.var_names = [f"{s}{i}" for s in "ABCD" for i in (1, 2, 3)] + [f"X{i}" for i in range(40)]
    table.obs_names = [f"s{i}" for i in range(len(XY))]
    table.obs["region"], table.obs["instance_id"] = "spots", table.obs_names.to_numpy()
    table.obs["region"] = table.obs["region"].astype("category")
    shapes = ShapesModel.parse(XY, geometry=0, radius=27.5, transformations={"um": Identity()})
    shapes.index = table.obs_names
    table = TableModel.parse(table, region="spots", region_key="region", instance_key="instance_id")
    return Object(shapes={"spots": shapes}, tables={KEY: table})


SETS = {s: [f"{s}{i}" for i in (1, 2, 3)] for s in "ABCD"}


@pytest.mark.parametrize("method", ["score", "rank"])
def test_planted_sets_are_found_with_their_sign(planted: SpatialData, method: str) -> None:
    found = st.tl.colocalization(planted, KEY, SETS, method=method, n_permutations=499)  # type: ignore[arg-type]
    found = found.set_index(["first", "second"])
    together, apart = found.loc[("A", "B")], found.loc[("A", "C")]
    assert together["statistic"] > 0.5
    assert together["p_holm"] < 0.05
    assert apart["statistic"] < -0.5
    assert apart["p_holm"] < 0.05
    assert found.loc[("A", "D"), "p_holm"] > 0.05
    assert found.attrs["null"] == "shift"
    told = st.tl.colocalization(planted, KEY, SETS, null="permutation", n_permutations=19).attrs["note"]
    assert "anti-conservative" in told


def test_shared_genes_do_not_make_sets_colocalised(planted: SpatialData) -> None:
    sets = {"one": ["A1", "A2", "X0", "X1"], "other": ["A1", "A2", "X2", "X3"], "part": ["A1"]}
    found = st.tl.colocalization(planted, KEY, sets, n_permutations=99).set_index(["first", "second"])
    assert found.loc[("one", "other"), "n_shared_genes"] == 2
    assert found.loc[("one", "other"), "n_genes_first"] == 2
    assert abs(found.loc[("one", "other"), "statistic"]) < 0.5  # all that is left is depth's noise
    assert np.isnan(found.loc[("one", "part"), "p_value"])  # nothing of its own is left


def test_correction_equals_statsmodels() -> None:
    p = np.random.default_rng(0).uniform(size=20) ** 3
    found = benjamini_hochberg(np.append(p, np.nan))
    np.testing.assert_allclose(found[:-1], multipletests(p, method="fdr_bh")[1])
    assert np.isnan(found[-1])
    assert np.isnan(benjamini_hochberg(np.array([np.nan]))).all()


def test_bad_input_is_named(planted: SpatialData) -> None:
    for more, said in (
        ({"method": "mean"}, "`method` must be one of"),
        ({"null": "rotate"}, "`null` must be one of"),
        ({"n_permutations": 0}, "`n_permutations` must be"),
        ({"n_neighbors": 400}, "has 625 locations to go by .* too few for 400 neighbours"),
        ({"coordinate_system": "px"}, "not placed in the coordinate system"),
    ):
        with pytest.raises(InputError, match=said):
            st.tl.colocalization(planted, KEY, SETS, **more)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="Only the set 'A'"):
        st.tl.colocalization(planted, KEY, {"A": ["A1"], "none": ["Q"]})
    with pytest.raises(InputError, match="None of the 1 genes"):
        st.tl.colocalization(planted, KEY, {"none": ["Q"]})
    with pytest.raises(InputError, match="No table"):
        st.tl.colocalization(planted, "x", SETS)
    with pytest.raises(InputError, match="`sdata` must be a SpatialData object"):
        st.tl.colocalization({"a": planted}, KEY, SETS)  # type: ignore[arg-type]

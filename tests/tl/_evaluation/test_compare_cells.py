from __future__ import annotations

import json
from typing import Any

import geopandas as gpd
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import shapely
from scipy.sparse import csr_matrix
from spatialdata import SpatialData
from spatialdata.models import ShapesModel
from spatialdata.transformations import Identity, Scale

import stpred as st
from stpred import InputError
from stpred.testing import build_table

mpl.use("Agg")


@pytest.fixture(scope="module")
def tissue() -> Any:
    return st.datasets.make_tissue(size_um=(400, 400), n_genes=30)


def predicted(values: np.ndarray, *, shapes_key: str, ids: pd.Index, genes: pd.Index, scale: str) -> Any:
    return build_table(
        values.astype(np.float32),
        shapes_key=shapes_key,
        instances=ids,
        var=pd.DataFrame({"trusted": np.arange(len(genes)) % 2 == 0}, index=genes),
        spatial_um=np.zeros((len(ids), 2)),
        provenance={"kind": "prediction", "output_scale": scale},
    )


def log1p_cp10k(counts: np.ndarray) -> np.ndarray:
    return np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)


@pytest.fixture
def slide(tissue: Any) -> SpatialData:
    """Predictions on three quarters of the nuclei, shifted and in another order; truth["cell"] is whose each is."""
    sdata = st.datasets.toy(tissue=tissue)
    rng = np.random.default_rng(0)
    table = sdata.tables["cells_counts"]
    kept = rng.permutation(table.n_obs)[: table.n_obs * 3 // 4]
    shift = rng.uniform(-0.5, 0.5, (len(kept), 2))
    nuclei = np.array([shapely.affinity.translate(tissue.nuclei[k], *s) for k, s in zip(kept, shift, strict=True)])
    # Pixels of half a micrometre: everything has to go through "um".
    frame = gpd.GeoDataFrame(
        {"truth": table.obs["instance_id"].to_numpy()[kept]},
        geometry=shapely.transform(nuclei, lambda xy: xy / 0.5),
        index=[f"n{i}" for i in range(len(kept))],
    )
    sdata.shapes["nuclei"] = ShapesModel.parse(frame, transformations={"um": Scale([0.5, 0.5], axes=("x", "y"))})
    expected = table.layers["expected"]
    values = log1p_cp10k(expected[kept] + 0.02) + rng.normal(0, 0.3, (len(kept), table.n_vars))
    for name, scale, x in (
        ("log", "log1p_cp10k", values),
        ("counts", "counts", expected[kept]),
        ("relative", "relative", values),
        ("shuffled", "log1p_cp10k", values[rng.permutation(len(kept))]),
    ):
        sdata.tables[f"nuclei_{name}"] = predicted(
            x, shapes_key="nuclei", ids=frame.index, genes=table.var_names, scale=scale
        )
    cells = pd.Index(frame["truth"])
    sdata.tables["cells_log"] = predicted(
        values, shapes_key="cells", ids=cells, genes=table.var_names, scale="log1p_cp10k"
    )
    return sdata


@pytest.mark.parametrize("match", ["auto", "overlap", "distance"])
def test_nuclei_against_cells_equal_the_same_cells_by_id(slide: SpatialData, match: Any) -> None:
    truth = st.tl.compare(slide, "cells_log", "cells_counts")
    scores = st.tl.compare(slide, "nuclei_log", "cells_counts", match=match, min_overlap=0.4, max_distance_um=6)
    facts = scores.attrs["matching"]["cell"]
    n = len(slide.shapes["nuclei"])
    assert facts["match"] == ("overlap" if match == "auto" else match)
    assert facts["regions"] == ["nuclei", "cells"]
    assert (facts["n_predicted"], facts["n_measured"]) == (n, len(slide.shapes["cells"]))
    assert facts["share_predicted"] > 0.9
    assert facts["share_measured"] == facts["n_matched"] / facts["n_measured"]
    assert (scores["n_locations"] == facts["n_compared"]).all()
    assert np.abs(scores["pearson"] - truth["pearson"][scores.index]).max() < 0.03
    if facts["n_matched"] == n:
        pd.testing.assert_frame_equal(scores, truth)
    assert list(scores.columns) == list(truth.columns)
    assert "level" not in scores


def test_every_match_is_the_right_cell(slide: SpatialData) -> None:
    from stpred.comparison.pairing import pair

    both = pair(slide, "nuclei_log", "cells_counts")
    counts = slide.tables["cells_counts"].to_df()
    truth = slide.shapes["nuclei"].loc[both.instances, "truth"]
    same = (counts.loc[truth.astype(str)].to_numpy() == both.counts.toarray()).all(axis=1)
    assert same.mean() > 0.995


def test_predictions_of_the_wrong_cells_are_worth_nothing(slide: SpatialData) -> None:
    right = st.tl.compare(slide, "nuclei_log", "cells_counts")["pearson"]
    wrong = st.tl.compare(slide, "nuclei_shuffled", "cells_counts")["pearson"]
    assert right.median() > 0.4
    assert abs(wrong.median()) < 0.1


def test_ids_may_be_shared_by_two_regions(slide: SpatialData) -> None:
    with pytest.raises(InputError, match=r"share no instance of 'nuclei' and 'cells': ids \['n0'"):
        st.tl.compare(slide, "nuclei_log", "cells_counts", match="id")
    truth = slide.shapes["nuclei"]["truth"]
    slide.shapes["nuclei"].index = pd.Index(truth.to_numpy())
    slide.tables["nuclei_log"].obs["instance_id"] = truth.to_numpy()
    scores = st.tl.compare(slide, "nuclei_log", "cells_counts", match="id")
    pd.testing.assert_frame_equal(scores, st.tl.compare(slide, "cells_log", "cells_counts"))


def in_bins(slide: SpatialData, name: str, size: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Mean prediction and summed counts of each square, with plain loops over locations."""
    sums: list[dict[tuple[int, int], list[np.ndarray]]] = [{}, {}]
    for side, table, mpp in ((0, f"nuclei_{name}", 0.5), (1, "cells_counts", 1.0)):
        shapes = slide.shapes[slide.tables[table].obs["region"].iloc[0]]
        centres = {i: (p.x * mpp, p.y * mpp) for i, p in shapes.geometry.centroid.items()}
        values = slide.tables[table].to_df().to_numpy()
        for row, i in enumerate(slide.tables[table].obs["instance_id"]):
            square = (int(centres[i][0] // size), int(centres[i][1] // size))
            sums[side].setdefault(square, []).append(values[row])
    shared = [s for s in sums[0] if s in sums[1] and np.sum(sums[1][s]) > 0]
    pooled = np.sum if name == "counts" else np.mean
    first = pd.DataFrame([pooled(sums[0][s], axis=0) for s in shared])
    return first, pd.DataFrame([np.sum(sums[1][s], axis=0) for s in shared])


@pytest.mark.parametrize("name", ["log", "counts"])
@pytest.mark.parametrize("size", [8, 55])
def test_square_bins_equal_the_slow_loop(slide: SpatialData, name: str, size: float) -> None:
    scores = st.tl.compare(slide, f"nuclei_{name}", "cells_counts", bin_um=size)
    ours, counts = in_bins(slide, name, size)
    truth = counts.to_numpy() if name == "counts" else log1p_cp10k(counts.to_numpy())
    assert (scores["n_locations"] == len(ours)).all()
    genes = list(slide.tables["cells_counts"].var_names)
    for gene in scores.index[[0, 7, 29]]:
        g = genes.index(gene)
        assert scores.loc[gene, "pearson"] == pytest.approx(np.corrcoef(ours[g], truth[:, g])[0, 1], abs=1e-4)
        assert scores.loc[gene, "mean_count"] == pytest.approx(counts[g].mean())
        rest = counts.sum(axis=1) - counts[g]
        assert scores.loc[gene, "library_size"] == pytest.approx(np.corrcoef(rest, truth[:, g])[0, 1], abs=1e-4)


def test_neighbourhoods_equal_the_slow_loop(slide: SpatialData) -> None:
    scores = st.tl.compare(slide, "cells_log", "cells_counts", n_neighbors=6)
    table, counts = slide.tables["cells_log"], slide.tables["cells_counts"].to_df()
    centres = slide.shapes["cells"].geometry.centroid.loc[table.obs["instance_id"]]
    xy = np.column_stack([centres.x, centres.y])
    measured = counts.loc[table.obs["instance_id"].astype(str)].to_numpy()
    values = table.to_df().to_numpy()
    near = [np.argsort(np.linalg.norm(xy - p, axis=1), kind="stable")[:6] for p in xy]
    ours = np.array([values[n].mean(axis=0) for n in near])
    theirs = log1p_cp10k(np.array([measured[n].sum(axis=0) for n in near]))
    for g in (0, 5, 20):
        gene = table.var_names[g]
        assert scores.loc[gene, "pearson"] == pytest.approx(np.corrcoef(ours[:, g], theirs[:, g])[0, 1], abs=1e-4)
    alone = st.tl.compare(slide, "cells_log", "cells_counts", n_neighbors=1)
    pd.testing.assert_frame_equal(alone, st.tl.compare(slide, "cells_log", "cells_counts"), rtol=1e-5)


def test_levels_stand_below_each_other_and_are_written(slide: SpatialData) -> None:
    asked = {"resolution": "cell", "n_neighbors": 10, "bin_um": (16, 55)}
    scores = st.tl.compare(slide, "nuclei_log", "cells_counts", write=True, **asked)
    assert scores["level"].unique().tolist() == ["cell", "k10", "bins_016um", "bins_055um"]
    assert set(scores.attrs["matching"]) == set(scores["level"])
    json.dumps(scores.attrs)
    by_level = scores.groupby("level")["pearson"].median()
    assert by_level["bins_055um"] > by_level["bins_016um"] > by_level["cell"]
    for name, part in scores.groupby("level"):
        assert part["pearson"].is_monotonic_decreasing
        single = {"cell": {}, "k10": {"n_neighbors": 10}, "bins_016um": {"bin_um": 16}, "bins_055um": {"bin_um": 55}}
        alone = st.tl.compare(slide, "nuclei_log", "cells_counts", **single[str(name)])
        pd.testing.assert_frame_equal(part.drop(columns="level"), alone)
        column = "measured_pearson" if name == "cell" else f"measured_pearson_{name}"
        var = slide.tables["nuclei_log"].var
        assert np.allclose(var[column], part["pearson"][var.index])
    only = st.tl.compare(slide, "nuclei_log", "cells_counts", trusted_only=True, **asked)
    assert only["trusted"].all()
    assert only.attrs["matching"] == scores.attrs["matching"]


def test_a_relative_prediction_has_correlations_and_no_errors(slide: SpatialData) -> None:
    scores = st.tl.compare(slide, "nuclei_relative", "cells_counts")
    assert scores[["r2", "rmse"]].isna().all(axis=None)
    log = st.tl.compare(slide, "nuclei_log", "cells_counts")
    assert np.allclose(scores["pearson"], log["pearson"][scores.index])


def test_few_matches_are_told(slide: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="stpred"):
        st.tl.compare(slide, "nuclei_log", "cells_counts")
    told = [r for r in caplog.records if "are matched with" in r.message]
    assert [r.levelname for r in told] == ["INFO"]
    caplog.clear()
    with caplog.at_level("INFO", logger="stpred"):
        st.tl.compare(slide, "nuclei_log", "cells_counts", match="distance", max_distance_um=0.3)
    assert [r.levelname for r in caplog.records if "are matched with" in r.message] == ["WARNING"]


def test_what_cannot_be_matched_is_refused(slide: SpatialData) -> None:
    spots = slide.tables["spots_counts"]
    slide.tables["spots_log"] = predicted(
        log1p_cp10k(spots.X.toarray() + 0.1),
        shapes_key="spots",
        ids=pd.Index(spots.obs["instance_id"]),
        genes=spots.var_names,
        scale="log1p_cp10k",
    )
    for match in ("auto", "distance"):
        with pytest.raises(InputError, match=r"one of 'spots' holds [\d.]+ of 'cells' .*stpred.pp.aggregate"):
            st.tl.compare(slide, "spots_log", "cells_counts", match=match)
    assert len(st.tl.compare(slide, "spots_log", "cells_counts", bin_um=200)) == spots.n_vars
    with pytest.raises(InputError, match=r"`match` must be one of \['auto', 'id'"):
        st.tl.compare(slide, "nuclei_log", "cells_counts", match="nearest")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="`resolution` must be one of"):
        st.tl.compare(slide, "nuclei_log", "cells_counts", resolution="bin")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="`n_neighbors` must be a positive whole number"):
        st.tl.compare(slide, "nuclei_log", "cells_counts", n_neighbors=2.5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="`bin_um` must be a positive number of um"):
        st.tl.compare(slide, "nuclei_log", "cells_counts", bin_um=(8, 0))
    with pytest.raises(InputError, match=r"`n_neighbors`=100000 is more than the \d+ locations"):
        st.tl.compare(slide, "nuclei_log", "cells_counts", n_neighbors=100_000)


def test_regions_far_apart_are_refused_with_both_boxes(slide: SpatialData) -> None:
    frame = slide.shapes["nuclei"]
    far = gpd.GeoDataFrame(geometry=frame.geometry.translate(20_000, 0).to_numpy(), index=frame.index)
    del slide.shapes["nuclei"]
    slide.shapes["nuclei"] = ShapesModel.parse(far, transformations={"um": Scale([0.5, 0.5], axes=("x", "y"))})
    for asked in ({}, {"match": "distance"}, {"bin_um": 16}):
        with pytest.raises(InputError, match=r"boxes are \[10\d{3}\.\d.*\] and \[\d+\.\d.*\] um"):
            st.tl.compare(slide, "nuclei_log", "cells_counts", **asked)  # type: ignore[arg-type]


def test_cells_without_shapes_are_refused_with_what_to_do(slide: SpatialData) -> None:
    del slide.shapes["cells"]
    assert len(st.tl.compare(slide, "cells_log", "cells_counts")) == 30  # by id no shapes are needed
    for asked in ({"predicted_key": "nuclei_log"}, {"predicted_key": "cells_log", "bin_um": 16}):
        with pytest.raises(InputError, match=r"region 'cells' is no element .*add the polygons as `sdata.shapes\['cel"):
            st.tl.compare(slide, measured_key="cells_counts", **asked)  # type: ignore[arg-type]


def test_shapes_outside_the_frame_are_refused(slide: SpatialData) -> None:
    old = slide.shapes["nuclei"]
    frame = gpd.GeoDataFrame(geometry=old.geometry.to_numpy(), index=old.index)
    del slide.shapes["nuclei"]
    slide.shapes["nuclei"] = ShapesModel.parse(frame, transformations={"global": Identity()})
    with pytest.raises(InputError, match="Shapes 'nuclei' are not placed in the coordinate system 'um'"):
        st.tl.compare(slide, "nuclei_log", "cells_counts")


def test_plots_work_across_regions(slide: SpatialData) -> None:
    axes = st.pl.compare(slide, "nuclei_log", "cells_counts", genes="EPCAM")
    score = st.tl.compare(slide, "nuclei_log", "cells_counts").loc["EPCAM", "pearson"]
    assert f"EPCAM: r = {score:.2f}" in [ax.get_title() for ax in axes]


def test_cells_without_counts_do_not_take_part(slide: SpatialData) -> None:
    table = slide.tables["cells_counts"]
    counts = table.X.toarray()
    counts[:50] = 0
    table.X = csr_matrix(counts)
    scores = st.tl.compare(slide, "nuclei_log", "cells_counts", resolution="cell", bin_um=8)
    facts = scores.attrs["matching"]["cell"]
    assert facts["n_matched"] - 50 <= facts["n_compared"] < facts["n_matched"]
    assert scores["pearson"].notna().any()

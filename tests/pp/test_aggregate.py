from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anndata as ad
import dask.dataframe as dd
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import spatialdata as sd
from scipy import sparse
from spatialdata import SpatialData
from spatialdata.models import PointsModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale

import stpred as st
from stpred import InputError
from stpred._core.expression.counts import check_counts
from stpred.pp import _sums
from stpred.testing import copy_slide

GENES = ["EPCAM", "CD3E", "COL1A1", "MS4A1"]


@pytest.fixture(scope="module")
def toy() -> SpatialData:
    return st.datasets.toy(size_um=(400, 400), n_genes=30)


@pytest.fixture
def slide(toy: SpatialData) -> SpatialData:
    return copy_slide(toy)


def transcripts(n: int = 4000, *, partitions: int = 3, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"x": rng.uniform(0, 400, n), "y": rng.uniform(0, 400, n), "qv": rng.uniform(5, 40, n)})
    names = [*GENES, "NegControlProbe_00001", "BLANK_0003", "antisense_X", "UnassignedCodeword_1"]
    frame["feature_name"] = pd.Categorical.from_codes(rng.integers(0, len(names), n), names)
    return frame


def points(frame: pd.DataFrame, *, partitions: int = 3, scale: float = 1.0) -> Any:
    """Points whose own unit is `scale` micrometres."""
    moved = frame.assign(x=frame["x"] / scale, y=frame["y"] / scale)
    return PointsModel.parse(
        dd.from_pandas(moved, npartitions=partitions),
        feature_key="feature_name",
        coordinates={"x": "x", "y": "y"},
        transformations={"um": Scale([scale, scale], axes=("x", "y"))},
    )


def slow(frame: pd.DataFrame, shapes: Any, genes: list[str]) -> np.ndarray:
    counts = np.zeros((len(shapes), len(genes)))
    for x, y, gene in frame[["x", "y", "feature_name"]].itertuples(index=False):
        if gene in genes:
            counts[[s.covers(shapely.Point(x, y)) for s in shapes], genes.index(gene)] += 1
    return counts


def test_transcripts_in_spots_equal_the_slow_loop_in_whatever_unit_they_come(slide: SpatialData) -> None:
    frame = transcripts(1500)
    slide.points["transcripts"] = points(frame, scale=0.2125)
    assert st.pp.aggregate(slide, shapes_key="spots", key_added="sums") is None
    table = slide.tables["sums"]
    spots = slide.shapes["spots"]
    circles = [p.buffer(r, quad_segs=32) for p, r in zip(spots.geometry, spots["radius"], strict=True)]
    good = frame[frame["qv"] >= 20]
    assert list(table.var_names) == sorted(GENES)
    assert (table.X.toarray() == slow(good, circles, sorted(GENES))).all()
    assert table.X.dtype == np.int32
    assert table.obs["instance_id"].tolist() == spots.index.tolist()
    assert (table.obs["n_transcripts"] == table.X.sum(axis=1).A1).all()
    assert np.allclose(table.obsm["spatial"], np.column_stack([spots.geometry.x, spots.geometry.y]))
    every = st.pp.aggregate(slide, shapes_key="spots", min_qv=None, drop_controls=False, inplace=False)
    assert every.n_vars == 8
    assert (every[:, GENES].X.toarray() == slow(frame, circles, GENES)).all()
    facts = json.loads(table.uns["stpred_aggregate"])
    control = ~frame["feature_name"].isin(GENES)
    assert facts["n_controls"] == control.sum()
    assert facts["controls"] == ["BLANK_0003", "NegControlProbe_00001", "UnassignedCodeword_1", "antisense_X"]
    assert facts["n_low_quality"] == ((frame["qv"] < 20) & ~control).sum()
    assert facts["n_summed"] + facts["n_outside"] == (good["feature_name"].isin(GENES)).sum()


def test_controls_are_known_by_the_vendors_own_column_too(slide: SpatialData) -> None:
    frame = transcripts(800).sort_values("feature_name").assign(qv=40.0)
    frame["is_gene"] = frame["feature_name"].isin(GENES[:3])
    slide.points["transcripts"] = points(frame.reset_index(drop=True), partitions=4)
    table = st.pp.aggregate(slide, "transcripts", "cells", inplace=False)
    assert list(table.var_names) == sorted(GENES[:3])
    assert GENES[3] in json.loads(table.uns["stpred_aggregate"])["controls"]
    # Low quality is no reason to lose the column of a gene.
    frame.loc[frame["feature_name"] == "EPCAM", "qv"] = 3.0
    slide.points["low"] = points(frame)
    low = st.pp.aggregate(slide, "low", "cells", inplace=False)
    assert list(low.var_names) == sorted(GENES[:3])
    assert low[:, "EPCAM"].X.sum() == 0


def test_it_agrees_with_spatialdata(slide: SpatialData) -> None:
    frame = transcripts(3000)
    frame = frame[frame["feature_name"].isin(GENES)].assign(qv=40.0)
    frame["feature_name"] = frame["feature_name"].cat.remove_unused_categories()
    slide.points["transcripts"] = points(frame)
    st.pp.aggregate(slide, "transcripts", "cells", key_added="sums")
    theirs = sd.aggregate(
        values="transcripts",
        by="cells",
        values_sdata=slide,
        by_sdata=slide,
        agg_func="count",
        target_coordinate_system="um",
        deepcopy=False,
    ).tables["table"]
    assert theirs.obs_names.tolist() == slide.tables["sums"].obs_names.tolist()
    assert (theirs[:, GENES].X.toarray() == slide.tables["sums"][:, GENES].X.toarray()).all()


def test_fractions_of_cells_agree_with_spatialdata(slide: SpatialData) -> None:
    table = slide.tables["cells_counts"]
    st.pp.aggregate(slide, "cells", "spots", fractions=True, key_added="sums")
    genes = list(table.var_names[:4])
    theirs = sd.aggregate(
        values="cells",
        by="spots",
        values_sdata=slide,
        by_sdata=slide,
        value_key=genes,
        table_name="cells_counts",
        agg_func="sum",
        fractions=True,
        target_coordinate_system="um",
        deepcopy=False,
        buffer_resolution=32,
    ).tables["cells_counts"]
    ours = slide.tables["sums"]
    assert np.allclose(ours[:, genes].layers["fractional"].toarray(), theirs.X.toarray(), rtol=2e-3, atol=0.02)
    check_counts(ours.X)
    exact = ours.layers["fractional"].toarray()
    assert np.abs(ours.X.toarray() - exact).max() < 1
    draws = [
        st.pp.aggregate(slide, "cells", "spots", fractions=True, seed=s, inplace=False).X.toarray() for s in range(30)
    ]
    assert not np.array_equal(draws[0], draws[1])
    error = np.mean(draws, axis=0) - exact  # rounding is right on average, though each draw is off by up to one
    assert abs(error.mean()) < 0.02
    assert np.abs(error).max() < 0.5


@pytest.mark.parametrize("fractions", [False, True])
@pytest.mark.parametrize("size", [8, 55])
def test_bins_hold_what_the_cells_hold(slide: SpatialData, size: int, fractions: bool) -> None:
    st.pp.aggregate(slide, "cells_counts", size_um=size, fractions=fractions)
    key = f"bins_{size:03d}um"
    table, shapes, cells = slide.tables[f"{key}_counts"], slide.shapes[key], slide.tables["cells_counts"]
    assert np.allclose(shapes.area, size**2)
    assert np.allclose(np.array(shapes.total_bounds) % size, 0)
    sums = table.layers["fractional"] if fractions else table.X
    assert np.allclose(sums.sum(axis=0), cells.X.sum(axis=0), rtol=1e-4)
    assert list(table.var_names) == list(cells.var_names)
    assert (table.var["gene_id"] == cells.var["gene_id"]).all()
    assert np.allclose(table.obsm["spatial"], np.column_stack([shapes.centroid.x, shapes.centroid.y]))
    assert table.obs["array_row"].is_monotonic_increasing
    if not fractions:
        assert table.obs["n_cells"].sum() == cells.n_obs
        assert (table.obs["n_cells"] > 0).all()
        inside = shapes.sindex.query(slide.shapes["cells"].centroid, predicate="intersects")[1]
        assert np.array_equal(np.bincount(inside), table.obs["n_cells"])


def test_bins_of_transcripts_do_not_depend_on_the_partitions(slide: SpatialData, tmp_path: Path) -> None:
    frame = transcripts()
    tables = []
    for n in (1, 5):
        one = SpatialData(points={"transcripts": points(frame, partitions=n)})
        st.pp.aggregate(one, size_um=16)
        tables.append(one.tables["bins_016um_counts"])
    assert tables[0].obs_names.equals(tables[1].obs_names)
    assert (tables[0].X != tables[1].X).nnz == 0
    one.write(tmp_path / "s.zarr")
    again = sd.read_zarr(tmp_path / "s.zarr")
    assert (again.tables["bins_016um_counts"].X != tables[1].X).nnz == 0
    # The bins that are there now are used as they are, and give the same by their polygons.
    with pytest.warns(UserWarning, match="'bins_016um_counts' existed and is overwritten"):
        st.pp.aggregate(one, size_um=16)
    assert (one.tables["bins_016um_counts"].X != tables[0].X).nnz == 0
    text = frame.assign(feature_name=frame["feature_name"].astype(str))
    named = SpatialData(points={"transcripts": points(text)})
    st.pp.aggregate(named, size_um=16, gene_key="feature_name")
    assert (named.tables["bins_016um_counts"].X != tables[0].X).nnz == 0


def test_a_transcript_on_the_border_of_two_bins_counts_once(slide: SpatialData) -> None:
    frame = transcripts(3000).assign(qv=40.0)
    frame[["x", "y"]] = frame[["x", "y"]].round(-1)  # most lie on an edge or a corner of bins of 20 um
    genes = sorted(GENES)
    good = frame[frame["feature_name"].isin(GENES)]
    right_of_or_below = np.zeros((20, 20, len(genes)))
    for x, y, gene in good[["x", "y", "feature_name"]].itertuples(index=False):
        if x < 400 and y < 400:
            right_of_or_below[int(y // 20), int(x // 20), genes.index(gene)] += 1
    one = SpatialData(points={"transcripts": points(frame)})
    st.pp.aggregate(one, size_um=20)
    made = one.tables["bins_020um_counts"]
    assert made.X.sum() == len(good)
    inner = made[(made.obs["array_row"] < 20) & (made.obs["array_col"] < 20)]
    rows, columns = inner.obs["array_row"].to_numpy(), inner.obs["array_col"].to_numpy()
    assert (inner.X.toarray() == right_of_or_below[rows, columns]).all()
    assert inner.X.sum() == right_of_or_below.sum()
    there = st.pp.aggregate(one, size_um=20, inplace=False)
    assert (there.X != made.X).nnz == 0


@pytest.mark.parametrize("fractions", [False, True])
def test_what_lies_in_several_shapes_counts_in_each_and_blocks_do_not_matter(
    slide: SpatialData, fractions: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    discs = gpd.GeoDataFrame({"radius": rng.uniform(5, 80, 40)}, geometry=shapely.points(rng.uniform(0, 400, (40, 2))))
    discs.loc[7, "geometry"] = shapely.Point(900, 900)  # far from anything
    slide.shapes["discs"] = ShapesModel.parse(discs, transformations={"um": Identity()})
    cells, counts = slide.shapes["cells"].geometry.to_numpy(), slide.tables["cells_counts"].X.toarray()
    truth, n = np.zeros((40, counts.shape[1])), np.zeros(40)
    for i, disc in enumerate(shapely.buffer(discs.geometry.to_numpy(), discs["radius"].to_numpy(), quad_segs=32)):
        share = np.array([disc.intersection(c).area / c.area if fractions else disc.covers(c.centroid) for c in cells])
        truth[i], n[i] = share @ counts, (share > 0).sum()
    assert n.sum() > 1.5 * len(cells)
    # The smaller number makes blocks of regions and of genes; rare counts become points, others columns.
    for values, rare in ((4_000_000, 0), (900, 0), (4_000_000, np.inf), (900, np.inf)):
        monkeypatch.setattr(_sums, "MAX_VALUES", values)
        monkeypatch.setattr(_sums, "MIN_DENSE", rare)
        table = st.pp.aggregate(slide, "cells", "discs", fractions=fractions, inplace=False)
        sums = table.layers["fractional"] if fractions else table.X
        assert np.allclose(sums.toarray(), truth, rtol=1e-5)
        assert (table.obs["n_cells"] == n).all()
        facts = json.loads(table.uns["stpred_aggregate"])
        assert facts["n_summed"] + facts["n_outside"] == facts["n_cells"] == len(cells)
        assert facts["n_empty"] == (truth.sum(axis=1) == 0).sum() >= 1


@pytest.mark.filterwarnings("error::RuntimeWarning", "error::UserWarning")
@pytest.mark.parametrize(("values", "rare"), [(4_000_000, 0.1), (1, 0.1), (1, 99)])
def test_broken_empty_and_merely_touching_outlines(values: int, rare: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sums, "MAX_VALUES", values)
    monkeypatch.setattr(_sums, "MIN_DENSE", rare)
    outlines = [
        shapely.box(0, 0, 8, 8),  # touches three bins and shares no area with them
        shapely.Polygon([(16, 0), (20, 4), (20, 0), (16, 4)]),  # a bow tie
        shapely.Polygon([(24, 0), (28, 0), (28, 4), (28, 8), (28, 0), (24, 4)]),  # with a spike that has no area
        shapely.Polygon(),
        shapely.box(81, 81, 83, 83),  # without any count
    ]
    cells = ShapesModel.parse(gpd.GeoDataFrame(geometry=outlines), transformations={"um": Identity()})
    counts = sparse.csr_matrix(np.array([[4, 0], [0, 6], [2, 2], [9, 9], [0, 0]]))
    table = ad.AnnData(counts, pd.DataFrame({"region": pd.Categorical(["cells"] * 5), "id": range(5)}, list("abcde")))
    table = TableModel.parse(table, region="cells", region_key="region", instance_key="id")
    for fractions in (True, False):
        one = SpatialData(shapes={"cells": cells}, tables={"cells_counts": table})
        st.pp.aggregate(one, "cells", size_um=8, fractions=fractions)
        bins = one.tables["bins_008um_counts"]
        assert bins.obs_names.tolist() == ["x0y0", "x2y0", "x3y0", "x10y10"]
        assert bins.X.toarray().tolist() == [[4, 0], [0, 6], [2, 2], [0, 0]]
        assert bins.obs["n_cells"].tolist() == [1, 1, 1, 1]
        assert json.loads(bins.uns["stpred_aggregate"])["n_without_shape"] == 1
    beside = gpd.GeoDataFrame(geometry=[shapely.box(-8, 0, 0, 8), shapely.Polygon()])
    one.shapes["beside"] = ShapesModel.parse(beside, transformations={"um": Identity()})
    with pytest.raises(InputError, match=r"Nothing of 'cells_counts' lies in the region: .* \[-8.0, 0.0, 0.0, 8.0\]"):
        st.pp.aggregate(one, "cells_counts", "beside", fractions=True)


def test_empty_shapes_stay_and_models_train_on_the_result(slide: SpatialData) -> None:
    frame = transcripts(20_000)
    slide.points["transcripts"] = points(frame[frame["x"] < 200])
    st.pp.grid(slide, pitch_um=50)
    st.pp.aggregate(slide, "transcripts", "grid")
    table = slide.tables["grid_counts"]
    assert table.n_obs == len(slide.shapes["grid"])
    empty = table.X.sum(axis=1).A1 == 0
    assert 0 < empty.sum() == json.loads(table.uns["stpred_aggregate"])["n_empty"] < table.n_obs
    model = st.tl.train(slide, "intensity", genes=GENES, shapes_key="grid")
    assert set(model.record.genes) == set(GENES)
    with pytest.raises(InputError, match="'spots_counts' is a table that stpred did not write"):
        st.pp.aggregate(slide, "transcripts", "spots")


def test_a_turned_frame_is_followed(slide: SpatialData) -> None:
    frame = transcripts(1000)
    angle = np.deg2rad(30)
    turn = np.array([[np.cos(angle), -np.sin(angle), 40.0], [np.sin(angle), np.cos(angle), -7.0], [0, 0, 1]])
    own = np.column_stack([frame["x"], frame["y"], np.ones(len(frame))]) @ np.linalg.inv(turn).T
    element = points(frame.assign(x=own[:, 0], y=own[:, 1]))
    sd.transformations.set_transformation(element, Affine(turn, ("x", "y"), ("x", "y")), "um")
    slide.points["turned"], slide.points["straight"] = element, points(frame)
    first, second = (
        st.pp.aggregate(slide, k, "spots", key_added=k, inplace=False).X.toarray() for k in ("turned", "straight")
    )
    assert (first == second).all()
    assert first.sum() > 0


def test_bad_input_is_named(slide: SpatialData) -> None:
    frame = transcripts(200)
    for kwargs, said in (
        ({"source_key": "cells_counts"}, "Give either `shapes_key` .* or `size_um`"),
        ({"source_key": "cells_counts", "shapes_key": "spots", "size_um": 8}, "Give either `shapes_key`"),
        ({"source_key": "nope", "size_um": 8}, "No points, table or shapes named 'nope'"),
        ({"source_key": "cells", "shapes_key": "nope"}, "No shapes element named 'nope'"),
        ({"source_key": "cells", "shapes_key": "cells"}, "is of 'cells' already"),
        ({"source_key": "cells", "size_um": 2.5}, "`size_um` must be a positive whole number of um"),
        ({"source_key": "cells", "size_um": 8, "inplace": False}, "with inplace=False none can be made"),
        ({"source_key": "cells", "size_um": 8, "key_added": "a/b"}, "`key_added` must be a non-empty name"),
    ):
        with pytest.raises(InputError, match=said):
            st.pp.aggregate(slide, **kwargs)  # type: ignore[arg-type]
    slide.points["transcripts"] = points(frame)
    with pytest.raises(InputError, match="transcripts have none; sum cells instead"):
        st.pp.aggregate(slide, "transcripts", size_um=8, fractions=True)
    with pytest.raises(InputError, match=r"have no column of genes 'gene'; they have .*name it as `gene_key`"):
        st.pp.aggregate(slide, "transcripts", size_um=8, gene_key="gene")
    with pytest.raises(InputError, match=r"None of the 200 transcripts .* quality below 50"):
        st.pp.aggregate(slide, "transcripts", size_um=8, min_qv=50)
    slide.points["more"] = points(frame)
    with pytest.raises(InputError, match=r"not clear what to sum: points with genes are \['transcripts', 'more'\]"):
        st.pp.aggregate(slide, size_um=8)
    slide.tables["cells_counts"].X = slide.tables["cells_counts"].X.astype(float) * 0.3
    with pytest.raises(InputError, match="counts of table 'cells_counts' hold .* not whole numbers"):
        st.pp.aggregate(slide, "cells_counts", size_um=8)
    assert not [k for k in slide.shapes if k.startswith("bins")]


def test_what_has_no_place_is_refused(slide: SpatialData) -> None:
    far = transcripts(200)
    slide.points["far"] = points(far.assign(x=far["x"] + 5000))
    with pytest.raises(
        InputError, match=r"Nothing of 'far' lies in the region: the boxes are \[50.*\] and \[\d+.*\] um"
    ):
        st.pp.aggregate(slide, "far", "spots", key_added="sums")
    lost = points(transcripts(100))
    sd.transformations.set_transformation(lost, {"other": Identity()}, set_all=True)
    slide.points["lost"] = lost
    with pytest.raises(InputError, match="Points 'lost' are not placed in the coordinate system 'um'"):
        st.pp.aggregate(slide, "lost", "spots", key_added="sums")
    squares = gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 100, 100)])
    slide.shapes["squares"] = ShapesModel.parse(squares, transformations={"other": Identity()})
    with pytest.raises(InputError, match="Shapes 'squares' are not placed in the coordinate system 'um'"):
        st.pp.aggregate(slide, "cells_counts", "squares")
    del slide.shapes["cells"]
    with pytest.raises(InputError, match=r"region 'cells' is no element of the object.*add the polygons"):
        st.pp.aggregate(slide, "cells_counts", size_um=8)

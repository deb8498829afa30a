from __future__ import annotations

import json
from typing import Any

import dask.array as da
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import spatialdata as sd
from scipy.sparse import csr_matrix
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, PointsModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale, Sequence, Translation

import stpred as st
from stpred import InputError
from stpred.testing import build_table

SIZES = (8, 16, 32, 55)
PIXEL = 4.0
SIDE = 100  # pixels of the map, so that it covers 400 um
CORNER = (-12.0, 20.0)
GENES = [f"G{i}" for i in range(7)]
FACTS = {"kind": "prediction", "output_scale": "log1p_cp10k"}


def rates() -> np.ndarray:
    """(genes, y, x) smooth expected counts of a pixel, the last gene of constant rate."""
    y, x = (np.mgrid[:SIDE, :SIDE] + 0.5) / SIDE
    waves = [np.sin(2 * np.pi * (k // 2 + 1) * x + k) * np.cos(2 * np.pi * (k % 3) * y) for k in range(len(GENES) - 1)]
    return np.stack([*(0.25 * (1 + 0.9 * w) for w in waves), np.full((SIDE, SIDE), 0.2)])


def transcripts(rate: np.ndarray) -> pd.DataFrame:
    """Poisson transcripts of the map, uniform in each pixel; with controls and doubtful ones."""
    rng = np.random.default_rng(0)
    gene, row, column = (
        np.repeat(v, n) for n in [rng.poisson(rate).ravel()] for v in map(np.ravel, np.indices(rate.shape))
    )
    n = len(gene)
    frame = pd.DataFrame(
        {
            "x": CORNER[0] + (column + rng.random(n)) * PIXEL,
            "y": CORNER[1] + (row + rng.random(n)) * PIXEL,
            "qv": np.where(rng.random(n) < 0.1, 5.0, 30.0),
            "gene": np.array([*GENES, "BLANK_1"], dtype=object)[np.where(rng.random(n) < 0.05, len(GENES), gene)],
        }
    )
    return frame.assign(gene=frame["gene"].astype("category"))


def points(frame: pd.DataFrame, *, unit_um: float = 1.0) -> Any:
    frame = frame.assign(x=frame["x"] / unit_um, y=frame["y"] / unit_um)
    place = {"um": Scale([unit_um, unit_um], axes=("x", "y"))}
    return PointsModel.parse(frame, feature_key="gene", transformations=place)


def raster(
    values: np.ndarray, *, chunks: tuple[int, int, int] = (2, 37, 41), genes: list[str] = GENES, **kwargs: Any
) -> Any:
    place = Sequence([Scale([PIXEL, PIXEL], axes=("x", "y")), Translation(list(CORNER), axes=("x", "y"))])
    lazy = da.from_array(np.asarray(values), chunks=chunks)
    kwargs = {"transformations": {"um": place}} | kwargs
    return Image2DModel.parse(lazy, dims=("c", "y", "x"), c_coords=genes, **kwargs)


def put_raster(sdata: SpatialData, key: str, image: Any, **facts: Any) -> None:
    sdata.images[key] = image
    sdata.attrs.setdefault("stpred", {})[key] = json.dumps(FACTS | facts)


def pixels_as_bins(values: np.ndarray, **facts: Any) -> tuple[Any, Any]:
    """Squares of the pixels that have a value, and the predicted table on them."""
    row, column = np.nonzero(~np.isnan(values[0]))
    corner = np.column_stack([column, row]) * PIXEL + CORNER
    index = pd.Index([f"p{i}" for i in range(len(row))])
    shapes = gpd.GeoDataFrame(geometry=shapely.box(*corner.T, *(corner + PIXEL).T), index=index)
    table = build_table(
        values[:, row, column].T.astype(np.float32),
        shapes_key="pixels",
        instances=index,
        var=pd.DataFrame({"cv_pearson": 0.5}, index=GENES),
        spatial_um=corner + PIXEL / 2,
        provenance=FACTS | facts,
    )
    return ShapesModel.parse(shapes, transformations={"um": Identity()}), table


@pytest.fixture(scope="module")
def prediction() -> np.ndarray:
    """(genes, y, x) float32 map with a hole and a ragged border."""
    rng = np.random.default_rng(1)
    values = np.log1p(rates() / rates().sum(axis=0) * 1e4) + rng.normal(0, 0.3, (len(GENES), SIDE, SIDE))
    values = values.astype(np.float32)
    values[:, 30:45, 20:50] = np.nan
    values[:, (rng.random((SIDE, SIDE)) < 0.1) & (np.arange(SIDE) >= 50)] = np.nan  # and blocks without any hole
    return values


@pytest.fixture
def slide(prediction: np.ndarray) -> SpatialData:
    shapes, table = pixels_as_bins(prediction)
    sdata = SpatialData(
        points={"transcripts": points(transcripts(rates()))}, shapes={"pixels": shapes}, tables={"pixels_map": table}
    )
    put_raster(sdata, "map", raster(prediction))
    return sdata


def same(first: pd.DataFrame, second: pd.DataFrame, *, exactly: bool = True) -> None:
    shared = [c for c in first.columns if c in second.columns]
    assert {"pearson", "spearman", "r2", "rmse", "library_size", "rmax", "pearson_of_rmax", "level"} <= set(shared)
    frames = [f[shared].reset_index().set_index(["level", "gene"]).sort_index() for f in (first, second)]
    pd.testing.assert_frame_equal(*frames, check_exact=exactly, **({} if exactly else {"rtol": 1e-5, "atol": 1e-6}))


def test_transcripts_equal_the_tables_that_aggregate_makes_of_them(slide: SpatialData) -> None:
    scores = st.tl.compare(slide, "pixels_map", "transcripts", bin_um=SIZES)
    assert scores["level"].unique().tolist() == [f"bins_{s:03d}um" for s in SIZES]
    for size in SIZES:
        st.pp.aggregate(slide, "transcripts", size_um=size)
        alone = st.tl.compare(slide, "pixels_map", f"bins_{size:03d}um_counts", bin_um=size)
        same(scores[scores["level"] == f"bins_{size:03d}um"], alone.assign(level=f"bins_{size:03d}um"))
        facts, theirs = scores.attrs["matching"][f"bins_{size:03d}um"], alone.attrs["matching"][f"bins_{size:03d}um"]
        assert {k: facts[k] for k in theirs if k != "regions"} == {k: v for k, v in theirs.items() if k != "regions"}
    left_out = facts["transcripts"]
    assert left_out["controls"] == ["BLANK_1"]
    assert left_out["n_low_quality"] > 0
    json.dumps(scores.attrs)


def test_transcripts_in_whatever_unit_they_come(slide: SpatialData) -> None:
    slide.points["pixels_of_them"] = points(transcripts(rates()), unit_um=0.2125)
    scores = [st.tl.compare(slide, "map", key, bin_um=SIZES) for key in ("transcripts", "pixels_of_them")]
    same(*scores)


def test_rmax_and_mean_count_equal_the_slow_loop(slide: SpatialData) -> None:
    frame = transcripts(rates())
    frame = frame[(frame["qv"] >= 20) & (frame["gene"] != "BLANK_1")]
    kept = slide.tables["pixels_map"].obsm["spatial"]
    scores = st.tl.compare(slide, "map", "transcripts", bin_um=SIZES)
    for size in SIZES:
        predicted = {(x // size, y // size) for x, y in kept}
        counts: dict[Any, dict[str, int]] = {}
        for x, y, gene in frame[["x", "y", "gene"]].itertuples(index=False):
            square = (x // size, y // size)
            if square in predicted:
                counts.setdefault(square, dict.fromkeys(GENES, 0))[gene] += 1
        table = pd.DataFrame(counts.values())
        part = scores[scores["level"] == f"bins_{size:03d}um"]
        assert (part["n_locations"] == len(table)).all()
        for gene in GENES:
            mean, variance = table[gene].mean(), table[gene].var(ddof=1)
            assert part.loc[gene, "mean_count"] == pytest.approx(mean)
            assert part.loc[gene, "rmax"] == pytest.approx(np.sqrt(max(1 - mean / variance, 0)))
        varied = part[part["rmax"] > 0]
        assert np.allclose(varied["pearson_of_rmax"], varied["pearson"] / varied["rmax"])
    ceiling = scores.groupby("level")["rmax"].median()
    assert ceiling["bins_008um"] < ceiling["bins_016um"] < ceiling["bins_032um"]


def test_the_ceiling_is_reached_by_the_true_rate_and_not_passed(slide: SpatialData) -> None:
    put_raster(slide, "truth", raster(rates().astype(np.float32)), output_scale="counts")
    scores = st.tl.compare(slide, "truth", "transcripts", bin_um=(8, 16, 32))
    known = scores.drop(index="G6")  # which has no rate to be known
    assert np.abs(known["pearson_of_rmax"] - 1).max() < 0.2  # an estimate of either
    assert (np.abs(known.groupby("level")["pearson_of_rmax"].mean() - 1) < 0.03).all()
    by_level = known.groupby("level")["rmax"].mean()
    assert by_level["bins_008um"] < 0.5 < 0.8 < by_level["bins_032um"]
    assert scores[scores["level"] == "bins_008um"].loc["G6", "rmax"] < 0.1


def test_rmax_is_0_below_poisson_noise_and_nan_without_counts() -> None:
    values = np.column_stack([[3, 3, 3, 3], [3, 4, 3, 4], [0, 0, 0, 0], [0, 9, 0, 1]])
    index = pd.Index(list("abcd"))
    frame = gpd.GeoDataFrame({"radius": 5.0}, geometry=shapely.points(np.arange(4) * 20.0, 5.0), index=index)
    genes = pd.DataFrame(index=["even", "calm", "none", "wild"])
    where = {"shapes_key": "spots", "instances": index, "var": genes, "spatial_um": np.zeros((4, 2))}
    guess = np.log1p(np.arange(16.0).reshape(4, 4) ** 2 % 7).astype(np.float32)
    sdata = SpatialData(
        shapes={"spots": ShapesModel.parse(frame, transformations={"um": Identity()})},
        tables={
            "spots_guess": build_table(guess, **where, provenance=FACTS),
            "dense": build_table(values.copy(), **where),
            "sparse": build_table(csr_matrix(values), **where),
        },
    )
    for key in ("dense", "sparse"):
        scores = st.tl.compare(sdata, "spots_guess", key)
        assert scores.loc[["even", "calm"], "rmax"].tolist() == [0.0, 0.0]
        assert np.isnan(scores.loc["none", "rmax"])
        assert scores.loc["wild", "rmax"] == pytest.approx(np.sqrt(1 - 2.5 / np.var([0, 9, 0, 1], ddof=1)))
        assert scores.index[scores["pearson_of_rmax"].notna()].tolist() == ["wild"]


@pytest.mark.parametrize("scale", ["log1p_cp10k", "counts"])
@pytest.mark.parametrize("chunks", [(1, SIDE, SIDE), (7, 16, 33), (3, SIDE, 50)])
def test_a_raster_equals_the_table_on_its_pixels(
    slide: SpatialData, prediction: np.ndarray, chunks: tuple[int, int, int], scale: str
) -> None:
    del slide.tables["pixels_map"]
    slide.tables["pixels_map"] = pixels_as_bins(prediction, output_scale=scale)[1]
    slide.images["map"] = raster(prediction, chunks=chunks)
    slide.attrs["stpred"]["map"] = json.dumps(FACTS | {"output_scale": scale})
    st.pp.aggregate(slide, "transcripts", size_um=4)
    for measured in ("transcripts", "bins_004um_counts"):
        sizes = (3, *SIZES, 27.3)
        scores, truth = (st.tl.compare(slide, k, measured, bin_um=sizes) for k in ("map", "pixels_map"))
        same(scores, truth, exactly=False)
        for level, facts in truth.attrs["matching"].items():
            found = scores.attrs["matching"][level]
            assert found.pop("n_incomplete") == 0
            assert {k: v for k, v in found.items() if k != "regions"} == {
                k: v for k, v in facts.items() if k != "regions"
            }


def test_a_raster_may_be_flipped_oblong_reordered_and_multiscale(slide: SpatialData, prediction: np.ndarray) -> None:
    sizes = (8, 16, 32)  # whose borders are borders of pixels
    truth = st.tl.compare(slide, "map", "transcripts", bin_um=sizes)
    order = [3, 0, 6, 1, 5, 2, 4]
    genes = [GENES[i] for i in order]
    # Rows from below, and each pixel split into two in x.
    values = np.repeat(prediction[order][:, ::-1], 2, axis=2)
    top = CORNER[1] + SIDE * PIXEL
    matrix = [[PIXEL / 2, 1e-12, CORNER[0]], [0, -PIXEL, top], [0, 0, 1]]
    place = Affine(matrix, input_axes=("x", "y"), output_axes=("x", "y"))
    image = raster(values, genes=genes, scale_factors=[2, 2], transformations={"um": place})
    put_raster(slide, "flipped", image)
    same(st.tl.compare(slide, "flipped", "transcripts", bin_um=sizes), truth, exactly=False)


def test_it_comes_back_from_disk(slide: SpatialData, tmp_path: Any) -> None:
    truth = st.tl.compare(slide, "map", "transcripts", bin_um=SIZES)
    slide.write(tmp_path / "slide.zarr")
    back = sd.read_zarr(tmp_path / "slide.zarr")
    same(st.tl.compare(back, "map", "transcripts", bin_um=SIZES), truth, exactly=False)


def test_only_the_chunks_of_shared_genes_are_read_and_each_once(slide: SpatialData, prediction: np.ndarray) -> None:
    read: list[tuple[int, ...]] = []

    def load(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        if block_info:
            read.append(tuple(block_info[0]["chunk-location"]))
        return block

    lazy = da.from_array(prediction, chunks=(2, 50, 50)).map_blocks(load, dtype=np.float32)
    names = [*GENES[:2], "one", "two", "three", *GENES[5:]]
    place = Sequence([Scale([PIXEL, PIXEL], axes=("x", "y")), Translation(list(CORNER), axes=("x", "y"))])
    image = Image2DModel.parse(lazy, dims=("c", "y", "x"), c_coords=names, transformations={"um": place})
    put_raster(slide, "lazy", image)
    read.clear()
    scores = st.tl.compare(slide, "lazy", "transcripts", bin_um=SIZES)
    assert sorted(read) == [(c, y, x) for c in (0, 2, 3) for y in (0, 1) for x in (0, 1)]
    truth = st.tl.compare(slide, "map", "transcripts", bin_um=SIZES)
    same(scores, truth[truth.index.isin(scores.index)], exactly=False)


def test_squares_that_lack_a_gene_are_left_out_and_a_gene_without_pixels_is_refused(
    slide: SpatialData, prediction: np.ndarray
) -> None:
    values = prediction.copy()
    values[2, :10, :10] = np.nan  # four squares of 16 um and parts of others
    slide.images["part"] = raster(values)
    slide.attrs["stpred"]["part"] = json.dumps(FACTS)
    whole, part = (
        st.tl.compare(slide, k, "transcripts", bin_um=16).attrs["matching"]["bins_016um"] for k in ("map", "part")
    )
    assert part["n_incomplete"] == whole["n_predicted"] - part["n_predicted"] > 0
    assert st.tl.compare(slide, "part", "transcripts", bin_um=16)["pearson"].notna().all()
    values[2] = np.nan
    slide.images["blank"] = raster(values)
    slide.attrs["stpred"]["blank"] = json.dumps(FACTS)
    with pytest.raises(InputError, match=r"'blank' holds no predicted pixel of the genes \['G2'\]"):
        st.tl.compare(slide, "blank", "transcripts", bin_um=16)


def test_scores_rise_with_the_squares_and_a_shuffled_map_is_worth_nothing(
    slide: SpatialData, prediction: np.ndarray
) -> None:
    scores = st.tl.compare(slide, "map", "transcripts", bin_um=SIZES).drop(index="G6")
    by_level = scores.groupby("level")["pearson"].mean()
    assert by_level["bins_008um"] < by_level["bins_016um"] < by_level["bins_032um"]
    assert by_level["bins_008um"] > 0.2
    kept = ~np.isnan(prediction[0])
    shuffled = np.full_like(prediction, np.nan)
    shuffled[:, kept] = np.random.default_rng(2).permutation(prediction[:, kept], axis=1)
    put_raster(slide, "shuffled", raster(shuffled))
    scores = st.tl.compare(slide, "shuffled", "transcripts", bin_um=SIZES)
    assert (scores.groupby("level")["pearson"].mean().abs() < 0.15).all()
    assert abs(scores.loc[scores["level"] == "bins_008um", "pearson"].mean()) < 0.03


def test_squares_finer_than_the_prediction_are_told(slide: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    toy = st.datasets.toy(size_um=(400, 400), n_genes=20)
    counts = toy.tables["spots_counts"]
    toy.tables["spots_guess"] = build_table(
        np.log1p(counts.X.toarray()).astype(np.float32),
        shapes_key="spots",
        instances=pd.Index(counts.obs["instance_id"]),
        var=pd.DataFrame(index=counts.var_names),
        spatial_um=counts.obsm["spatial"],
        provenance=FACTS,
    )
    xy = toy.shapes["spots"].geometry
    pitch = min(a.distance(b) for a in xy for b in xy if a is not b)
    for sdata, key, measured, fine, coarse in (
        (toy, "spots_guess", "cells_counts", pitch * 0.9, pitch * 1.01),
        (slide, "map", "transcripts", 3.9, 4),
        (slide, "pixels_map", "transcripts", 3.9, 4),
    ):
        for size, told in ((fine, 1), (coarse, 0)):
            caplog.clear()
            with caplog.at_level("WARNING", logger="stpred"):
                st.tl.compare(sdata, key, measured, bin_um=size)
            messages = [r.message for r in caplog.records if "are finer than the" in r.message]
            assert len(messages) == told
            assert all(f"between locations of '{key}'" in m for m in messages)


def test_transcripts_and_rasters_need_squares(slide: SpatialData) -> None:
    for asked in ({}, {"n_neighbors": 3}, {"resolution": "cell", "bin_um": 8}):
        with pytest.raises(
            InputError, match=r"'transcripts' are single transcripts; .*bin_um= .*stpred.pp.aggregate\."
        ):
            st.tl.compare(slide, "pixels_map", "transcripts", **asked)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=r"Image 'map' has pixels and no locations .*with bin_um="):
            st.tl.compare(slide, "map", "transcripts", **asked)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"Points 'transcripts' are single"):
        st.pl.compare(slide, "pixels_map", "transcripts")


def test_results_of_a_raster_have_no_table_to_go_to(slide: SpatialData) -> None:
    with pytest.raises(InputError, match="`write` puts scores into var .* 'map' is an image"):
        st.tl.compare(slide, "map", "transcripts", bin_um=8, write=True)
    with pytest.raises(InputError, match="Image 'map' marks none of the measured genes as trusted"):
        st.tl.compare(slide, "map", "transcripts", bin_um=8, trusted_only=True)
    scores = st.tl.compare(slide, "pixels_map", "transcripts", bin_um=8, write=True)
    var = slide.tables["pixels_map"].var
    assert np.allclose(var["measured_pearson_bins_008um"], scores["pearson"][var.index])


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (None, r"'odd' was not predicted by stpred: sdata.attrs\['stpred'\] has no provenance"),
        ("{", "provenance of image 'odd' was changed since"),
        ({"kind": "prediction"}, "is not the JSON string of a dictionary"),
        ('{"kind": "features"}', "Image 'odd' holds features, not predictions"),
        ('{"kind": "prediction"}', "'odd' does not state the scale"),
    ],
)
def test_an_image_without_facts_is_refused(slide: SpatialData, prediction: np.ndarray, facts: Any, said: str) -> None:
    slide.images["odd"] = raster(prediction)
    if facts is not None:
        slide.attrs["stpred"]["odd"] = facts
    with pytest.raises(InputError, match=said):
        st.tl.compare(slide, "odd", "transcripts", bin_um=8)


FAR = {"transformations": {"um": Translation([9e4, 0], axes=("x", "y"))}}


def turned(degrees: float) -> Affine:
    c, s = np.cos(np.radians(degrees)) * PIXEL, np.sin(np.radians(degrees)) * PIXEL
    return Affine([[c, -s, 0], [s, c, 0], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (FAR, r"No square bin of 8 um .*: Image 'odd' has 100 x 100 pixels, points 'transcripts' hold \d+ transcripts"),
        (FAR, r"; their boxes are \[90000\.5, 0\.5, 90099\.5, 99\.5\] and \[-12\.0, 20\.0, 388\.0, 420\.0\] um"),
        ({"transformations": {"um": turned(1)}}, "Image 'odd' is turned or sheared against 'um'"),
        ({"transformations": {"um": turned(90)}}, "Image 'odd' is turned or sheared"),
        ({"transformations": {"global": Identity()}}, "'odd' is not placed in the coordinate system 'um'"),
        ({"genes": list("abcdefg")}, r"Image 'odd' and points 'transcripts' share no gene: \['a', 'b'"),
        ({"genes": ["G0", *GENES[:-1]]}, r"Gene names of image 'odd', its channels, are not unique: \['G0'\]"),
        ({"dtype": np.uint8}, "pixels of image 'odd' are uint8; a predicted raster is float32"),
    ],
)
def test_a_raster_that_cannot_be_used_is_refused(
    slide: SpatialData, prediction: np.ndarray, change: dict[str, Any], said: str
) -> None:
    values = np.nan_to_num(prediction).astype(change.get("dtype", np.float32))
    put_raster(slide, "odd", raster(values, **{k: v for k, v in change.items() if k != "dtype"}))
    with pytest.raises(InputError, match=said):
        st.tl.compare(slide, "odd", "transcripts", bin_um=8)


def test_keys_of_something_else_are_refused(slide: SpatialData) -> None:
    with pytest.raises(
        InputError, match=r"No table named 'transcripts' and no images .*tables \['pixels_map'\], images"
    ):
        st.tl.compare(slide, "transcripts", "pixels_map", bin_um=8)
    with pytest.raises(InputError, match=r"No table named 'map' and no points .*points \['transcripts'\]"):
        st.tl.compare(slide, "pixels_map", "map", bin_um=8)
    with pytest.raises(InputError, match="counts of table 'pixels_map' hold"):
        st.tl.compare(slide, "map", "pixels_map", bin_um=8)
    slide.points["lost"] = PointsModel.parse(transcripts(rates()), transformations={"global": Identity()})
    with pytest.raises(InputError, match="Points 'lost' are not placed in the coordinate system 'um'"):
        st.tl.compare(slide, "map", "lost", bin_um=8)
    lonely = TableModel.parse(sd.SpatialData(tables=dict(slide.tables)).tables["pixels_map"].copy()[:5])
    lonely.uns.pop("spatialdata_attrs")
    slide.tables["lonely"] = lonely
    with pytest.raises(
        InputError, match="Table 'lonely' annotates no element .* so the locations of 'lonely' are unknown"
    ):
        st.tl.compare(slide, "lonely", "transcripts", bin_um=8)

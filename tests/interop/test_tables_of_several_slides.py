"""One table of several slides, as ``spatialdata.concatenate`` makes it: each function uses the rows of its frame."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from spatialdata import SpatialData, concatenate, deepcopy, read_zarr
from spatialdata.models import TableModel

import stpred as st
from stpred import InputError
from stpred._core.elements import find_table, region_in_frame, table_in_frame, table_regions

plt.switch_backend("Agg")

NAMES = ("a", "b", "c")
SETS = {"tumour": ["EPCAM", "KRT8", "KRT19"], "stroma": ["COL1A1", "COL1A2", "DCN"]}
COUNTS, RIDGE, FEATURES = "spots_counts", "spots_ridge", "spots_feat_intensity"
PAIRED = (RIDGE, COUNTS)


def together_of(parts: dict[str, SpatialData], **how: Any) -> SpatialData:
    """Concatenate copies: it renames the frames of what it is given."""
    how = {"merge": "same", "uns_merge": "first"} | how
    return concatenate({n: deepcopy(p) for n, p in parts.items()}, concatenate_tables=True, **how)


@pytest.fixture(scope="module")
def parts() -> dict[str, SpatialData]:
    """Three slides of other donors than the model's, with counts, predictions and features."""
    small: dict[str, Any] = {"size_um": (600.0, 600.0), "n_genes": 40, "mpp": 1.0}
    cohort = st.datasets.toy_cohort(6, **small)
    learned = {k: cohort[k] for k in ("donor3", "donor4", "donor5")}
    model = st.tl.train(learned, "ridge", encoder="intensity", genes="all", shapes_key="spots")
    found = {}
    for k, name in enumerate(NAMES):
        slide = cohort[f"donor{k}"]
        bare = SpatialData(images={"he": slide["he"]}, shapes={"spots": slide["spots"]}, tables={COUNTS: slide[COUNTS]})
        st.tl.predict(bare, model, shapes_key="spots")
        st.pp.features(bare, "intensity", shapes_key="spots")
        for key in PAIRED:
            x, y = bare[key].obsm["spatial"].T
            bare[key].obs["side"] = pd.Categorical(np.where(x + y > 600, "right", "left"))
            bare[key].obs["risk"] = x * (k + 1)
        found[name] = bare
    return found


@pytest.fixture
def together(parts: dict[str, SpatialData]) -> SpatialData:
    return together_of(parts)


def key(made: str) -> Callable[[SpatialData, str], Any]:
    """Return what a function leaves in the object."""
    return lambda sdata, suffix: sdata[made.format(suffix)]


CALLS: dict[str, Callable[..., Any]] = {
    "tl.compare": lambda s, f: st.tl.compare(s, *PAIRED, coordinate_system=f),
    "tl.within_regions": lambda s, f: st.tl.within_regions(
        s, *PAIRED, groupby="side", min_locations=5, coordinate_system=f
    ),
    "tl.correct": lambda s, f: st.tl.correct(s, *PAIRED, coordinate_system=f, inplace=False),
    "tl.recalibrate": lambda s, f: st.tl.recalibrate(s, *PAIRED, coordinate_system=f, inplace=False),
    "tl.coverage": lambda s, f: st.tl.coverage(s, *PAIRED, coordinate_system=f),
    "tl.markers": lambda s, f: st.tl.markers(s, COUNTS, "side", trusted_only=False, coordinate_system=f),
    "tl.pseudobulk": lambda s, f: st.tl.pseudobulk(s, RIDGE, in_distribution_only=False, coordinate_system=f),
    "tl.score_cell_types": lambda s, f: _scored(s, f),
    "tl.annotate_cells": lambda s, f: _annotated(s, f),
    "tl.impute_genes": lambda s, f: _imputed(s, f),
    "tl.trusted": lambda s, f: st.tl.trusted(s, RIDGE, coordinate_system=f),
    "tl.pathway_activity": lambda s, f: st.tl.pathway_activity(
        s, COUNTS, SETS, method="ulm", min_targets=2, coordinate_system=f, inplace=False
    ),
    "tl.colocalization": lambda s, f: st.tl.colocalization(s, COUNTS, SETS, n_permutations=19, coordinate_system=f),
    "tl.feature_associations": lambda s, f: st.tl.feature_associations(
        s, COUNTS, features="intensity", genes=["EPCAM"], groupby="side", coordinate_system=f
    ),
    "tl.differential_rank": lambda s, f: st.tl.differential_rank(s, COUNTS, "risk", n_top=5, coordinate_system=f),
    "tl.latent_clusters": lambda s, f: st.tl.latent_clusters(
        s, FEATURES, n_clusters=3, coordinate_system=f, inplace=False
    ).drop(columns="region"),
    "tl.cluster_purity": lambda s, f: st.tl.cluster_purity(s, COUNTS, "side", groupby="side", coordinate_system=f),
    "tl.typical_tiles": lambda s, f: st.tl.typical_tiles(s, FEATURES, groupby=None, n=3, coordinate_system=f).drop(
        columns="region"
    ),
    "tl.similar_tiles": lambda s, f: st.tl.similar_tiles(s, FEATURES, _first(s, f), n=3, coordinate_system=f).drop(
        columns="region"
    ),
    "tl.distance_to_border": lambda s, f: st.tl.distance_to_border(
        s, COUNTS, "left", groupby="side", coordinate_system=f, inplace=False
    )["slide"],
    "tl.composition_by_distance": lambda s, f: st.tl.composition_by_distance(
        s, COUNTS, "side", distance="risk", width_um=200, coordinate_system=f
    ),
    "tl.error_by_std": lambda s, f: st.tl.error_by_std(_with_std(s), *PAIRED, n_bins=3, coordinate_system=f),
    "tl.train": lambda s, f: _ridge(s, f).coef.numpy(),
    "tl.finetune": lambda s, f: st.tl.finetune(_elsewhere(), s, coordinate_system=f, **WHERE).weights.numpy(),
    "tl.conformal": lambda s, f: _conformal(s, f),
    "tl.cross_validate": lambda s, f: st.tl.cross_validate(
        s, ["mean"], groups="blocks", genes=["EPCAM"], n_folds=2, coordinate_system=f, **WHERE
    ),
    "tl.validate": lambda s, f: st.tl.validate({"x": s}, _elsewhere(), groups="slide", coordinate_system=f, **WHERE),
    "tl.probe_encoder": lambda s, f: st.tl.probe_encoder(
        "intensity", s, labels="side", n_folds=2, n_neighbors=3, buffer_um=10.0, coordinate_system=f, **WHERE
    ),
    "tl.withheld_spots": lambda s, f: st.tl.withheld_spots(s, "mean", coordinate_system=f, **FEW),
    "tl.misaligned_spots": lambda s, f: st.tl.misaligned_spots(s, "mean", radii=(0.0,), coordinate_system=f, **FEW),
    "tl.restarts": lambda s, f: st.tl.restarts(s, "mean", n_restarts=2, coordinate_system=f, **FEW),
    "pp.qc": lambda s, f: st.pp.qc(s, st.QC(min_counts=20), coordinate_system=f, **WHERE).reset_index(),
    "pp.select_genes": lambda s, f: st.pp.select_genes(s, st.GeneRule("rmax", n=5), coordinate_system=f, **WHERE),
    "pp.aggregate": lambda s, f: _aggregated(s, f),
    "pl.spatial": lambda s, f: _colours(st.pl.spatial(s, COUNTS, ["EPCAM"], show_image=False, coordinate_system=f)[1]),
    "pl.compare": lambda s, f: _colours(st.pl.compare(s, *PAIRED, genes="EPCAM", coordinate_system=f)[0]),
    "pl.gallery": lambda s, f: _titles(st.pl.gallery(s, COUNTS, color="EPCAM", n=3, size_um=60, coordinate_system=f)),
    "pl.latent": lambda s, f: np.asarray(
        st.pl.latent(s, FEATURES, coordinate_system=f).collections[0].get_offsets(), dtype=float
    ),
    "pl.markers": lambda s, f: _colours(
        st.pl.markers(s, COUNTS, ["EPCAM", "KRT8"], groupby="side", coordinate_system=f)
    ),
    "report": lambda s, f: _report(s, f),
}
"""By name: calls that use a table, on an object and a frame."""

WHERE: dict[str, Any] = {"table_key": COUNTS}
FEW: dict[str, Any] = WHERE | {"train_options": {"genes": ["EPCAM"]}}

ELSEWHERE = {
    "pl.attribution": "is of tiles; takes the rows of the table as pl.spatial does",
    "pl.metagenes": "needs a generative model; takes the rows as pl.spatial does",
    "pl.raster": "is of a raster; takes the rows of the table as pl.spatial does",
    "pp.register": "takes the counts of the shapes that it is told, which lie in one frame",
    "tl.alignment": "needs a large slide; reads its region as tl.validate does",
    "tl.calibration": "needs a generative model; reads its region as tl.train does",
    "tl.collect_cohort": "is of a folder of stores, each of one slide",
    "tl.distill": "trains a network; reads its slides as tl.train does",
    "tl.occluded_tiles": "as tl.misaligned_spots",
    "tl.tile_survival": "is of many slides with follow-up; takes the rows of a table as tl.differential_rank does",
    "tl.to_log1p_cp10k": "needs a model of log shares; takes the rows as tl.recalibrate does",
    "tl.withheld_sections": "is of several objects; reads each as tl.train does",
}
"""What takes the key of a table and is not called here, and why."""


def _ridge(sdata: SpatialData, frame: str) -> Any:
    return st.tl.train(
        sdata, encoder="intensity", genes=["EPCAM", "COL1A2"], intervals=False, coordinate_system=frame, **WHERE
    )


def _with_std(sdata: SpatialData) -> SpatialData:
    """Return the object with a standard deviation of each prediction."""
    sdata[RIDGE].layers["std"] = np.full(sdata[RIDGE].shape, 0.5, np.float32)
    return sdata


def _first(sdata: SpatialData, frame: str) -> Any:
    """Return the id of the first location of a frame."""
    return table_in_frame(sdata, FEATURES, coordinate_system=frame).obs["instance_id"].iloc[0]


def _elsewhere() -> Any:
    """Return a model of another slide."""
    small: dict[str, Any] = {"size_um": (400.0, 400.0), "n_genes": 20, "mpp": 1.0}
    return st.tl.train(
        st.datasets.toy(seed=9, donor=8, **small), encoder="intensity", genes=["EPCAM", "COL1A2"], shapes_key="spots"
    )


def _conformal(sdata: SpatialData, frame: str) -> pd.DataFrame:
    model = _elsewhere()
    return st.tl.conformal(model, {"x": sdata, "y": sdata}, coordinate_system=frame, **WHERE)


def _scored(sdata: SpatialData, frame: str) -> pd.DataFrame:
    found = st.tl.score_cell_types(sdata, COUNTS, SETS, coordinate_system=frame, inplace=False)
    assert found is not None
    assert found.n_obs == sdata[COUNTS].n_obs
    obs = found.obs.loc[found.obs["cell_type"].notna(), ["score_tumour", "score_stroma", "cell_type"]]
    return obs.astype({"cell_type": str}).reset_index(drop=True)


def _annotated(sdata: SpatialData, frame: str) -> pd.DataFrame:
    """Name the rows of a frame after cells of another slide."""
    cells = st.datasets.toy(seed=9, donor=8, size_um=(300.0, 300.0), n_genes=40, mpp=1.0)["cells_counts"]
    found = st.tl.annotate_cells(sdata, COUNTS, cells, groupby="type", coordinate_system=frame, inplace=False)
    assert found is not None
    obs = found.obs.loc[found.obs["cell_type"].notna(), ["cell_type", "cell_type_score", "cell_type_distance"]]
    return obs.astype({"cell_type": str}).reset_index(drop=True)


def _imputed(sdata: SpatialData, frame: str) -> Any:
    cells = st.datasets.toy(seed=9, donor=8, size_um=(300.0, 300.0), n_genes=50, mpp=1.0)["cells_counts"]
    return st.tl.impute_genes(
        sdata, RIDGE, cells, trusted_only=False, measured_key=COUNTS, coordinate_system=frame, inplace=False
    )


def _aggregated(sdata: SpatialData, frame: str) -> Any:
    st.pp.aggregate(sdata, COUNTS, size_um=200, key_added=f"sums{frame}", coordinate_system=frame)
    return sdata.tables.pop(f"sums{frame}").X.toarray()


def _colours(ax: Any) -> np.ndarray:
    """Return the values that are drawn, or the colours where there are no values."""
    values = [np.asarray(v, dtype=float).ravel() for c in ax.collections if (v := c.get_array()) is not None]
    return np.concatenate(values or [np.asarray(c.get_facecolor()).ravel() for c in ax.collections])


def _titles(axes: Any) -> list[str]:
    return [ax.get_title() for ax in axes.ravel()]


def _report(sdata: SpatialData, frame: str) -> str:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        page = st.report(
            f"{folder}/r.html", sdata, RIDGE, measured_key=COUNTS, coordinate_system=frame, n_maps=1, max_mb=2
        )
        text = Path(page).read_text()
    return text[text.index('"columns":') : text.index('"slides":[')]


def same(one: Any, other: Any) -> None:
    if isinstance(one, AnnData):
        np.testing.assert_allclose(np.asarray(one.X), np.asarray(other.X), rtol=1e-5, atol=1e-6)
        assert one.var_names.equals(other.var_names)
    elif isinstance(one, pd.DataFrame):
        plain = [f.drop(columns=["seconds", "slide"], errors="ignore").reset_index(drop=True) for f in (one, other)]
        pd.testing.assert_frame_equal(*plain, check_exact=False, rtol=1e-5, atol=1e-8, check_dtype=False)
    elif isinstance(one, np.ndarray) and one.dtype.kind == "f":
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    else:
        np.testing.assert_array_equal(one, other)


def test_every_function_that_takes_a_table_is_tried() -> None:
    taken = {"table_key", "predicted_key", "measured_key", "source_key"}
    public = {f"{m}.{n}": getattr(getattr(st, m), n) for m in ("tl", "pl", "pp") for n in dir(getattr(st, m))}
    public |= {"report": st.report}
    with_table = {
        name
        for name, f in public.items()
        if callable(f) and not name.split(".")[-1].startswith("_") and taken & set(inspect.signature(f).parameters)
    }
    assert with_table == CALLS.keys() | ELSEWHERE.keys()
    stated = {"coordinate_system", "training", "folder"}  # a folder's stores are of one slide each
    places = {n: set(inspect.signature(public[n]).parameters) & stated for n in with_table}
    assert all(places.values()), "a function that takes a table takes the frame, too"


@pytest.mark.parametrize("name", CALLS)
def test_the_frame_decides_which_rows_are_used(name: str, parts: dict[str, SpatialData], together: SpatialData) -> None:
    for slide in "cb":  # neither is the first one
        alone = SpatialData(
            images=dict(parts[slide].images), shapes=dict(parts[slide].shapes), tables=dict(parts[slide].tables)
        )
        same(CALLS[name](together, f"um-{slide}"), CALLS[name](alone, "um"))
    plt.close("all")


@pytest.mark.parametrize(
    "name", ["tl.compare", "tl.pseudobulk", "tl.colocalization", "pl.spatial", "report", "tl.train"]
)
def test_without_a_frame_the_regions_are_listed(name: str, together: SpatialData) -> None:
    with pytest.raises(InputError, match="um-a|'um'") as error:
        CALLS[name](together, "um")
    assert "'spots-a'" in str(error.value) or "No H&E image is placed" in str(error.value)


def test_the_order_of_slides_and_rows_does_not_matter(parts: dict[str, SpatialData]) -> None:
    expected = {n: st.tl.compare(p, *PAIRED) for n, p in parts.items()}
    other = together_of({n: parts[n] for n in "cab"})
    for key in PAIRED:
        shuffled = other[key][np.random.default_rng(0).permutation(other[key].n_obs)].copy()
        del other.tables[key]
        other.tables[key] = shuffled
    for name in NAMES:
        found = st.tl.compare(other, *PAIRED, coordinate_system=f"um-{name}")
        assert found["n_locations"].iloc[0] == parts[name][RIDGE].n_obs
        drawn = ["reliability", "rmax_null", "rmax_p"]  # of random halves of the counts, by the order of rows
        one, other_ = (f.drop(columns=drawn) for f in (found, expected[name].loc[found.index]))
        pd.testing.assert_frame_equal(one, other_, rtol=1e-5)
        assert found.attrs["matching"]["cell"]["regions"] == [f"spots-{name}"] * 2


def test_after_a_round_trip_and_with_unused_categories(together: SpatialData, tmp_path: Any) -> None:
    expected = st.tl.compare(together, *PAIRED, coordinate_system="um-b")
    together.write(tmp_path / "all.zarr")
    back = read_zarr(tmp_path / "all.zarr")
    found = st.tl.compare(back, *PAIRED, coordinate_system="um-b")
    pd.testing.assert_frame_equal(found, expected, rtol=1e-5, check_index_type=False)  # names may be of another dtype
    for key in PAIRED:  # rows of b alone; a table that was cut still names all regions
        part = together[key][(together[key].obs["region"] == "spots-b").to_numpy()].copy()
        part.obs["region"] = part.obs["region"].cat.set_categories(["spots-a", "spots-b", "spots-c"])
        assert part.uns["spatialdata_attrs"]["region"] == ["spots-a", "spots-b", "spots-c"]
        assert table_regions(part) == ["spots-b"]
        part.uns["spatialdata_attrs"]["region"] = ["spots-b"]
        del together.tables[key]
        together.tables[key] = part
    for frame in ("um", "um-b"):  # one region is left, so nothing has to be told apart
        pd.testing.assert_frame_equal(st.tl.compare(together, *PAIRED, coordinate_system=frame), expected, rtol=1e-5)


def test_two_regions_in_one_frame_are_ambiguous(parts: dict[str, SpatialData]) -> None:
    flat = together_of({n: parts[n] for n in "ab"}, merge_coordinate_systems_on_name=True)
    for use in (
        lambda: st.tl.compare(flat, *PAIRED),
        lambda: st.tl.pseudobulk(flat, RIDGE),
        lambda: region_in_frame(flat, COUNTS),
    ):
        with pytest.raises(
            InputError, match=r"annotates 2 regions in the coordinate system 'um': \['spots-a', 'spots-b'"
        ):
            use()


def test_one_slide_of_several_with_a_table_of_one(parts: dict[str, SpatialData], together: SpatialData) -> None:
    own = together[RIDGE][(together[RIDGE].obs["region"] == "spots-b").to_numpy()].copy()
    own.uns["spatialdata_attrs"]["region"] = "spots-b"
    together.tables["own"] = own
    expected = st.tl.compare(parts["b"], *PAIRED)
    for frame in ("um-b", "um"):  # no frame is needed where the two share a single region
        found = st.tl.compare(together, "own", COUNTS, coordinate_system=frame)
        pd.testing.assert_frame_equal(found, expected.loc[found.index], rtol=1e-5)
    with pytest.raises(InputError, match="not placed|has no place|'um-a'"):
        st.tl.compare(together, "own", COUNTS, coordinate_system="um-a")


def test_results_of_slides_stand_side_by_side(together: SpatialData) -> None:
    for name in "ab":
        where = {"coordinate_system": f"um-{name}"}
        st.tl.recalibrate(together, *PAIRED, **where)
        st.tl.correct(together, *PAIRED, **where)
        st.tl.compare(together, *PAIRED, write=True, **where)
        st.tl.score_cell_types(together, COUNTS, SETS, **where)
        st.tl.pathway_activity(together, COUNTS, SETS, method="ulm", min_targets=2, **where)
        for made in (f"{RIDGE}_recalibrated-{name}", f"spots-{name}_corrected", f"{COUNTS}_activity-{name}"):
            TableModel().validate(together[made])
            assert table_regions(together[made]) == [f"spots-{name}"]
    assert {"measured_pearson-a", "measured_pearson-b"} <= set(together[RIDGE].var)
    known = together[COUNTS].obs["cell_type"].notna()
    np.testing.assert_array_equal(known, together[COUNTS].obs["region"] != "spots-c")
    assert together[COUNTS].obs["score_tumour"].notna().equals(known)


def test_the_counts_are_found_by_their_usual_name(together: SpatialData) -> None:
    together.tables["other"] = together[COUNTS].copy()
    assert find_table(together, "spots-b") == COUNTS
    assert table_in_frame(together, COUNTS, coordinate_system="um-c").obs["region"].unique().tolist() == ["spots-c"]


def test_lost_provenance_is_named(parts: dict[str, SpatialData]) -> None:
    bare = together_of(parts, merge=None, uns_merge=None)
    where = {"coordinate_system": "um-b"}
    assert find_table(bare, "spots-b") == COUNTS  # a prediction that has lost its facts is no measurement
    for use in (
        lambda: st.tl.compare(bare, *PAIRED, **where),
        lambda: st.tl.correct(bare, *PAIRED, **where),
        lambda: st.tl.pseudobulk(bare, RIDGE, **where),
        lambda: st.tl.markers(bare, RIDGE, "side", **where),
        lambda: st.tl.score_cell_types(bare, RIDGE, SETS, **where),
        lambda: st.report("r.html", bare, RIDGE, **where),
    ):
        with pytest.raises(
            InputError, match=r"has lost its provenance, uns\['stpred'\], which concatenating drops"
        ) as error:
            use()
        assert "uns_merge='first'" in str(error.value)
    bare[RIDGE].uns["stpred"] = parts["a"][RIDGE].uns["stpred"]
    assert st.tl.compare(bare, *PAIRED, **where)["n_locations"].iloc[0] == parts["b"][RIDGE].n_obs


def test_a_slide_that_was_trained_on_is_known_in_its_frame(parts: dict[str, SpatialData]) -> None:
    model = _ridge(parts["b"], "um")
    copies = {
        n: SpatialData(images=dict(p.images), shapes=dict(p.shapes), tables={COUNTS: p[COUNTS]})
        for n, p in parts.items()
    }
    for part in copies.values():
        st.tl.predict(part, model, shapes_key="spots")
    both = together_of(copies)  # its facts are those of a, which was not trained on
    with pytest.raises(InputError, match="was trained on this slide"):
        st.tl.correct(both, *PAIRED, coordinate_system="um-b")
    st.tl.correct(both, *PAIRED, coordinate_system="um-a")


def test_without_a_frame_all_rows_are_taken_together_and_that_is_said(
    together: SpatialData, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="stpred"):
        found = st.tl.markers(together, COUNTS, "side", trusted_only=False)
    assert found.attrs["stpred"]["regions"] == [f"spots-{n}" for n in NAMES]
    assert f"All {together[COUNTS].n_obs} rows of table 'spots_counts' are taken together" in caplog.text
    st.tl.score_cell_types(together, COUNTS, SETS)
    assert together[COUNTS].obs["cell_type"].notna().all()

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from spatialdata import SpatialData

import stpred as st
from stpred import InputError
from stpred.testing import build_table

N, G = 80, 120


def _network(seed: int = 0) -> pd.DataFrame:
    """Three pathways of 30 genes that overlap, with weights of both signs."""
    rng = np.random.default_rng(seed)
    rows = [
        (name, f"G{g}", rng.normal())
        for name, first in (("a", 0), ("b", 20), ("c", 70))
        for g in range(first, first + 30)
    ]
    return pd.DataFrame(rows, columns=["source", "target", "weight"])


def _slide(*, strength: float = 1.0, shuffled: bool = False, **provenance: str) -> tuple[SpatialData, np.ndarray]:
    """A table whose genes follow the activities of the pathways by their weights, over very different gene means."""
    rng = np.random.default_rng(1)
    weights = _network().pivot(index="target", columns="source", values="weight")
    weights = weights.reindex([f"G{i}" for i in range(G)]).fillna(0.0).to_numpy()
    truth = rng.normal(size=(N, 3))
    values = strength * truth @ weights.T + rng.normal(size=(N, G)) + rng.uniform(0, 20, G)
    var = pd.DataFrame({"cv_pearson": np.linspace(0, 1, G)}, index=[f"G{i}" for i in range(G)])
    if shuffled:
        values = values[:, rng.permutation(G)]
    table = build_table(
        values.astype(np.float32), shapes_key="spots", instances=pd.RangeIndex(N), var=var,
        spatial_um=rng.uniform(0, 100, (N, 2)), obs={"ood_score": np.arange(N), "in_distribution": np.ones(N, bool)},
        provenance={"model": "m", "output_scale": "log1p_cp10k"} | provenance,
    )  # fmt: skip
    slide = SpatialData()
    slide.tables["t"] = table
    return slide, truth


def _corr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.array([np.corrcoef(x, y)[0, 1] for x, y in zip(a.T, b.T, strict=True)])


def test_mlm_recovers_activities_and_tells_overlapping_pathways_apart() -> None:
    slide, truth = _slide()
    st.tl.pathway_activity(slide, "t", _network())
    table = slide.tables["t_activity"]
    assert table.var_names.tolist() == ["a", "b", "c"]
    assert table.var["n_targets"].tolist() == [30, 30, 30]
    assert table.var["targets_cv_pearson"].is_monotonic_increasing
    assert _corr(table.X, truth).min() > 0.9
    assert abs(np.corrcoef(table.X[:, 0], truth[:, 1])[0, 1]) < 0.3


def test_shuffled_genes_have_no_activity() -> None:
    slide, truth = _slide(shuffled=True)
    found = st.tl.pathway_activity(slide, "t", _network(), inplace=False)
    assert list(slide.tables) == ["t"]
    assert found is not None
    assert np.abs(_corr(found.X, truth)).max() < 0.6  # three pathways by chance, in a table with signal
    nothing, truth = _slide(strength=0.0)
    found = st.tl.pathway_activity(nothing, "t", _network(), inplace=False)
    assert (found.layers["p_adj"] < 0.05).mean() < 0.06
    assert np.abs(_corr(found.X, truth)).max() < 0.3


@pytest.mark.parametrize("method", ["ulm", "mlm"])
def test_values_equal_least_squares(method: str) -> None:
    slide, _ = _slide()
    found = st.tl.pathway_activity(slide, "t", _network(), method=method, scale=False, inplace=False)
    weights = _network().pivot(index="target", columns="source", values="weight")
    weights = weights.reindex(slide.tables["t"].var_names).fillna(0.0).to_numpy()
    values = slide.tables["t"].X.astype(float)
    for k in range(3):
        design = np.column_stack([np.ones(G), weights if method == "mlm" else weights[:, k]])
        inverse = np.linalg.inv(design.T @ design)
        column = k + 1 if method == "mlm" else 1
        for i in (0, 7):
            slope = inverse @ design.T @ values[i]
            residual = values[i] - design @ slope
            spread = residual @ residual / (G - design.shape[1])
            assert found.X[i, k] == pytest.approx(slope[column] / np.sqrt(spread * inverse[column, column]), rel=1e-4)


def test_what_is_written(tmp_path: Path) -> None:
    slide, _ = _slide()
    path = tmp_path / "My Net.csv"
    _network().rename(columns={"source": "pathway", "target": "gene"}).to_csv(path, index=False)
    st.tl.pathway_activity(slide, "t", path)
    table = slide.tables["t_my-net"]
    assert table.X.dtype == np.float32
    assert table.obs["ood_score"].tolist() == list(range(N))
    np.testing.assert_array_equal(table.obsm["spatial"], slide.tables["t"].obsm["spatial"])
    facts = json.loads(table.uns["stpred"])
    assert (facts["kind"], facts["output_scale"], facts["source"]["model"]) == ("activity", "relative", "m")
    with pytest.warns(UserWarning, match="overwritten"):
        st.tl.pathway_activity(slide, "t", path)
    # Without the mean of each gene taken off, every location has the activity of the average one.
    flat = st.tl.pathway_activity(slide, "t", path, scale=False, inplace=False)
    assert (table.X.std(axis=0) / np.abs(table.X.mean(axis=0)) > 5).all()
    assert (flat.X.std(axis=0) / np.abs(flat.X.mean(axis=0)) < 5).any()
    slide.write(tmp_path / "slide.zarr")


def test_centres_come_from_the_shapes_where_the_table_has_none() -> None:
    slide = st.datasets.toy(size_um=(400, 400), n_genes=40)
    counts = slide.tables["spots_counts"]
    centres = counts.obsm.pop("spatial") if "spatial" in counts.obsm else None
    sets = {"a": counts.var_names[:10]}
    found = st.tl.pathway_activity(slide, "spots_counts", sets, inplace=False)
    assert found.obsm["spatial"].shape == (counts.n_obs, 2)
    if centres is not None:
        np.testing.assert_allclose(found.obsm["spatial"], centres, atol=1e-6)
    bare, _ = _slide()
    del bare.tables["t"].obsm["spatial"]
    assert "spatial" not in st.tl.pathway_activity(bare, "t", _network(), inplace=False).obsm


def test_squidpy_and_empty_locations() -> None:
    import squidpy as sq

    slide = st.datasets.toy(size_um=(600, 600), n_genes=40)
    counts = slide.tables["spots_counts"]
    first = counts.X.toarray() if hasattr(counts.X, "toarray") else counts.X.copy()
    first[0] = 0
    counts.X = first
    st.tl.pathway_activity(slide, "spots_counts", {"a": counts.var_names[:10], "b": counts.var_names[10:20]})
    table = slide.tables["spots_counts_activity"]
    assert table.n_obs == counts.n_obs - 1
    sq.gr.spatial_neighbors(table, coord_type="generic")
    sq.gr.spatial_autocorr(table, mode="moran", n_perms=None)
    assert np.isfinite(table.uns["moranI"]["I"]).all()


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        (("nowhere", {"a": ["G1"]}), {}, "No table named 'nowhere'"),
        (("t", {"a": ["g1", "g2"]}), {}, "None of the 2 genes .*'g1'.*case"),
        (("t", {"a": ["G1", "G2"]}), {}, "No gene set has at least 5"),
        (("t", {"a": [f"G{i}" for i in range(G)]}), {}, "the same weight in \\['a'\\]"),
        (("t", {k: [f"G{i}" for i in range(9)] for k in "ab"}), {}, "cannot be told apart .*'ulm'"),
        (("t", {f"s{i}": [f"G{i}"] for i in range(G)}), {"min_targets": 1}, "120 genes are too few to fit 120"),
        (("t", {"a": [f"G{i}" for i in range(9)]}), {"method": "viper"}, "'mlm', 'ulm'"),
        (("t", {"a": [f"G{i}" for i in range(9)]}), {"key_added": "a b"}, "key_added"),
        (("t", "kegg"), {}, "no file of gene sets 'kegg'.*'progeny'"),
    ],
)
def test_bad_input(arguments: tuple[str, Any], options: dict[str, Any], said: str) -> None:
    slide, _ = _slide()
    with pytest.raises(InputError, match=said):
        st.tl.pathway_activity(slide, *arguments, **options)

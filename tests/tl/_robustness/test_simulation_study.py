"""The simulation study: what can be learned is learned, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import stpred as st
from stpred import InputError
from stpred.tl._robustness.simulation_study import _Cells, _profiles, medoids

CONFIG = st.models.SCellST.Config(hidden=(64,), lr=3e-3, max_epochs=25, patience=5)


@pytest.fixture(scope="module")
def cells() -> np.ndarray:
    """Embeddings of cells in eight clusters."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(8, 12)) * 3
    return (centres.repeat(150, axis=0) + rng.normal(size=(1200, 12))).astype(np.float32)


@pytest.fixture(scope="module")
def scores(cells: np.ndarray) -> pd.DataFrame:
    reference = st.datasets.toy_reference(n_genes=240, n_cells=150, n_markers=10)
    return st.tl.simulation_study(
        cells,
        reference,
        n_markers=10,
        n_spots=600,
        cells_per_spot=10,
        inputs=["learned"],
        gene_sets=["hvg"],
        config=CONFIG,
    )


def test_spots_teach_cells(scores: pd.DataFrame) -> None:
    mean = scores.groupby(["scenario", "supervision", "level"]).pearson.mean()
    centroid = mean["centroid"]
    assert centroid["spots", "spot"] > 0.93
    assert centroid["spots", "cell"] > 0.90
    assert abs(centroid["spots", "spot"] - centroid["cells", "spot"]) < 0.03
    for level in ("spot", "cell"):
        assert abs(mean["random", "spots", level]) < 0.03
    assert mean["cell", "spots", "spot"] > mean["cell", "cells", "spot"] - 0.05


def test_markers_are_learned_better_than_what_varies_within_types(scores: pd.DataFrame) -> None:
    some = scores[(scores.scenario == "cell") & (scores.supervision == "spots")]
    mean = some.groupby(["level", "marker"]).pearson.mean()
    for level in ("spot", "cell"):
        assert mean[level, True] > mean[level, False] + 0.15


def test_one_hot_is_all_that_can_be_known(cells: np.ndarray) -> None:
    reference = st.datasets.toy_reference(n_types=4, n_genes=100, n_cells=80, n_markers=5)
    found = st.tl.simulation_study(
        cells,
        reference,
        n_markers=5,
        n_spots=300,
        cells_per_spot=5,
        scenarios=["centroid"],
        inputs=["one-hot"],
        supervision="spots",
        config=CONFIG,
    )
    assert found.groupby("level").pearson.mean().min() > 0.97
    assert list(found.columns) == [
        "scenario",
        "inputs",
        "gene_set",
        "supervision",
        "level",
        "gene",
        "marker",
        "pearson",
    ]
    alone = found[found["gene_set"] == "markers"]
    assert alone["marker"].all()
    assert (len(alone), len(found)) == (2 * 20, 2 * (100 + 20))  # two levels


def test_raw_counts_are_learned_by_their_likelihood(cells: np.ndarray) -> None:
    reference = st.datasets.toy_reference(n_types=4, n_genes=100, n_cells=80, n_markers=5)
    found = st.tl.simulation_study(
        cells,
        reference,
        n_markers=5,
        n_spots=300,
        cells_per_spot=5,
        scenarios=["centroid", "random"],
        inputs=["one-hot"],
        gene_sets=["markers"],
        supervision="spots",
        config=replace(CONFIG, loss="nb", lr=1e-2),
    )
    mean = found.groupby(["scenario", "level"]).pearson.mean()
    assert mean["centroid"].min() > 0.9
    assert mean["random"].abs().max() < 0.2


def test_library_sizes_are_over_all_genes_of_the_reference() -> None:
    reference = st.datasets.toy_reference(n_types=3, n_genes=200, n_cells=60, n_markers=5)
    profiles = _profiles(reference, "cell_type", n_types=None, n_hvg=40, n_markers=5, seed=0)
    total = np.asarray(reference.X.sum(axis=1)).ravel()
    found = np.concatenate(profiles.counts)
    np.testing.assert_allclose(np.sort(found[:, -1]), np.sort(total))
    assert (found[:, :-1].sum(axis=1) < 0.6 * found[:, -1]).all()
    kinds = np.repeat(np.arange(3), 4)
    drawn = _Cells(
        np.eye(3, dtype=np.float32)[kinds], profiles.draw(kinds, "centroid", np.random.default_rng(0)),
        np.arange(40), counted=False, seed=0,
    )  # fmt: skip
    y = np.expm1(drawn.spots(np.arange(12).reshape(2, 6)).y)
    rows = reference.obs["cell_type"].to_numpy()
    share = reference[:, profiles.genes].X.toarray() / total[:, None] * 1e4
    mean = [share[rows == k].mean(axis=0) for k in ("type0", "type1", "type2")]
    np.testing.assert_allclose(y[0], (4 * mean[0] + 2 * mean[1]) / 6, rtol=1e-4)


def test_medoids_are_the_best_of_all_choices() -> None:
    from itertools import combinations

    points = np.random.default_rng(1).normal(size=(9, 3))
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    best = min(combinations(range(9), 3), key=lambda c: distance[:, list(c)].min(axis=1).sum())
    assert medoids(points, 3, seed=0) == list(best)


def test_a_reference_has_types_with_steady_markers() -> None:
    reference = st.datasets.toy_reference(n_types=3, n_genes=90, n_cells=200, n_markers=10, seed=2)
    counts = reference.X.toarray()
    assert (counts == counts.round()).all()
    log = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    kinds = reference.obs["cell_type"].to_numpy()
    for kind in ("type0", "type1", "type2"):
        marks = (reference.var["marks"] == kind).to_numpy()
        assert marks.sum() == 10
        assert (log[kinds == kind][:, marks].mean(axis=0) > log[kinds != kind][:, marks].mean(axis=0) + 0.5).all()
    # Within a type genes vary together, beyond what shuffling each gene leaves.
    other = log[kinds == "type0"][:, (reference.var["marks"] == "").to_numpy()]
    rng = np.random.default_rng(0)
    alone = np.column_stack([rng.permutation(column) for column in other.T])
    first = [np.linalg.eigvalsh(np.corrcoef(v.T))[-1] for v in (other, alone)]
    assert first[0] > 1.5 * first[1]
    with pytest.raises(InputError, match="need 80 genes, not 50"):
        st.datasets.toy_reference(n_types=8, n_markers=10, n_genes=50)


def test_bad_input(cells: np.ndarray) -> None:
    reference = st.datasets.toy_reference(n_types=4, n_genes=100, n_cells=20, n_markers=5)
    with pytest.raises(InputError, match=r"`scenarios` must be one of .*'centroid'.*got 'mean'"):
        st.tl.simulation_study(cells, reference, scenarios=["mean"])
    with pytest.raises(InputError, match="No column of `reference.obs` named 'kind'"):
        st.tl.simulation_study(cells, reference, groupby="kind")
    with pytest.raises(InputError, match="50 cells are too few for 4 types"):
        st.tl.simulation_study(cells[:50], reference)
    with pytest.raises(InputError, match="has 4 types of two cells or more .*, not 9"):
        st.tl.simulation_study(cells, reference, n_types=9)
    logged = reference.copy()
    logged.X = logged.X.log1p()
    with pytest.raises(InputError, match="reference"):
        st.tl.simulation_study(cells, logged)
    with pytest.raises(InputError, match=r"must be a stpred.models.SCellST.Config"):
        st.tl.simulation_study(cells, reference, config=st.models.MLP.Config())  # type: ignore[arg-type]

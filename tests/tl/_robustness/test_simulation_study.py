"""The simulation study: what can be learned is learned, and nothing else."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import stpred as st
from stpred import InputError
from stpred.tl._robustness.simulation_study import medoids

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
        cells, reference, n_markers=10, n_spots=600, cells_per_spot=10, inputs=["learned"], config=CONFIG
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
    assert found["marker"].sum() == 2 * 20  # two levels
    assert list(found.columns) == ["scenario", "inputs", "supervision", "level", "gene", "marker", "pearson"]


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

"""The study of single cells on real tissue: its pieces, and that sCellST's cells lie above their null."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import stpred as st


@pytest.fixture(scope="module")
def study() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "scripts"))
        yield import_module("cell_truth")
        sys.modules.pop("donor_study", None)


@pytest.fixture(scope="module")
def lung(study: ModuleType, real_data: Path) -> Any:
    return study.read_lung(real_data / "xenium_lung_200")


def test_comparisons_average_to_the_area_under_the_curve(study: ModuleType) -> None:
    rng = np.random.default_rng(0)
    score, positive = rng.integers(5, size=40).astype(float), rng.random(40) < 0.4
    slow = [1.0 if a > b else 0.5 if a == b else 0.0 for a in score[positive] for b in score[~positive]]
    assert study.comparisons(score, positive).mean() == pytest.approx(np.mean(slow))
    value, low, high = study.interval(score, positive, n=200)
    assert low < value < high


def test_groups_are_of_neighbours(study: ModuleType) -> None:
    xy = np.random.default_rng(0).uniform(0, 1000, (100, 2))
    groups = study.neighbour_groups(xy)
    sizes = np.unique(groups, return_counts=True)[1]
    assert sizes.max() == 10
    assert len(sizes) <= 14
    spread = np.mean([np.ptp(xy[groups == g], axis=0).max() for g in np.unique(groups)])
    assert spread < 0.6 * 1000


def test_a_pseudo_spot_is_the_sum_of_the_nearest_cells(study: ModuleType) -> None:
    slide = study.part_of(st.datasets.toy(size_um=(300, 300), n_genes=8), np.arange(40))
    centre = slide.shapes["cells"].centroid  # of the outlines, by which cells are summed
    xy = slide.tables["cells_counts"].obsm["spatial"] = np.column_stack([centre.x, centre.y])
    study.add_pseudo_spots(slide, n_cells=4)
    counts, found = slide.tables["cells_counts"].X.toarray(), slide.tables["pseudo_counts"].X.toarray()
    for k in (0, 7, 39):
        nearest = np.argsort(((xy - xy[k]) ** 2).sum(axis=1))[:4]
        assert (found[k] == counts[nearest].sum(axis=0)).all()


@pytest.mark.realdata
def test_nuclei_have_a_width_at_the_pixel_size_that_is_assumed(study: ModuleType, lung: Any) -> None:
    assert 5.5 < study.nucleus_width_px(lung, mpp=study.LUNG_MPP) * study.LUNG_MPP < 7.5


@pytest.mark.realdata
def test_cells_of_the_other_half_are_predicted_above_the_null(study: ModuleType, lung: Any) -> None:
    table, genes = lung.tables["cells_counts"], study.expressed(lung)
    directions = study.halves(table.obsm["spatial"])["left/right"]
    truths = [study.log_cp10k(table[test], genes) for _, test in directions]
    with st.settings.override(max_upsampling=4.0):
        candidate = study.candidates(study.LUNG_MPP)["sCellST, crops"]
        guesses = [study.predicted(lung, candidate, *d, genes) for d in directions]
        rng = np.random.default_rng(0)
        shuffled = [study.predicted(lung, candidate, *d, genes, rng.permutation(len(d[0]))) for d in directions]
    value = study.median_pearson(guesses, truths)
    assert value > 0.04
    groups = [study.neighbour_groups(table.obsm["spatial"][test]) for _, test in directions]
    for within in (None, groups):
        null = study.null_of(guesses, truths, 100, within)
        assert null.std() > 0.005
        assert abs(null.mean()) < 0.02
        assert value > null.max()
    assert study.median_pearson(shuffled, truths) < 0.04

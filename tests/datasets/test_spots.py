from __future__ import annotations

import numpy as np
import pytest
import shapely
from scipy.spatial import cKDTree

from stpred.datasets import Tissue
from stpred.datasets._bins import bin_shares, cell_labels, make_bins, place_molecules
from stpred.datasets._spots import barcodes, legacy_spots, round_spots, visium_spots


def test_visium_spots_are_a_hexagonal_array_inside_the_image(tissue: Tissue) -> None:
    place = visium_spots(tissue).positions
    xy = place[["x_um", "y_um"]].to_numpy()
    distance, _ = cKDTree(xy).query(xy, k=2)
    np.testing.assert_allclose(distance[:, 1], 100, rtol=1e-3)
    assert (xy > 27.5).all()
    assert (xy < np.array(tissue.size_um) - 27.5).all()
    assert ((place["array_row"] + place["array_col"]) % 2 == 0).all()
    assert place.index.is_unique
    step = np.polyfit(place["array_col"], place["x_um"], 1)[0]
    assert step == pytest.approx(50)


def test_spots_sum_their_cells(tissue: Tissue) -> None:
    spots = visium_spots(tissue)
    for k in range(len(spots.positions)):
        centre = spots.positions[["x_um", "y_um"]].to_numpy()[k]
        inside = np.linalg.norm(tissue.xy_um - centre, axis=1) <= 27.5
        assert spots.positions["n_cells"].iloc[k] == inside.sum()
        if inside.any():
            factor = spots.expected[k] / tissue.expected[inside].sum(axis=0)
            np.testing.assert_allclose(factor, factor[0], rtol=1e-4)
    assert set(spots.positions["in_tissue"]) <= {0, 1}
    assert spots.counts[spots.positions["in_tissue"] == 0].sum() == 0


def test_without_library_factors_the_sum_is_exact(tissue: Tissue) -> None:
    centre = tissue.xy_um[:1]
    spots = round_spots(tissue, xy_um=centre, array=(np.array([0]), np.array([0])), diameter_um=60, per_spot=False)
    inside = np.linalg.norm(tissue.xy_um - centre, axis=1) <= 30
    np.testing.assert_allclose(spots.expected[0], tissue.expected[inside].sum(axis=0), rtol=1e-5)


def test_legacy_spots_are_a_square_array(tissue: Tissue) -> None:
    place = legacy_spots(tissue).positions
    distance, _ = cKDTree(place[["x_um", "y_um"]]).query(place[["x_um", "y_um"]], k=2)
    np.testing.assert_allclose(distance[:, 1], 200)
    assert place["array_row"].min() == place["array_col"].min() == 1


def test_barcodes_are_distinct_words_of_bases() -> None:
    names = barcodes(5000, rng=np.random.default_rng(0))
    assert len(set(names)) == 5000
    assert all(len(n) == 18 and set(n[:16]) <= set("ACGT") and n.endswith("-1") for n in names)


def test_labels_match_polygons(tissue: Tissue) -> None:
    labels = cell_labels(tissue, step_um=0.25)
    area = np.bincount(labels.ravel(), minlength=len(tissue.cells) + 1)[1:] / 16
    want = shapely.area(tissue.outlines)
    assert np.median(np.abs(area / want - 1)) < 0.04
    y, x = (np.floor(tissue.xy_um[:, k] / 0.25).astype(int) for k in (1, 0))
    assert (labels[y, x] == np.arange(len(tissue.cells)) + 1).mean() > 0.98


def test_molecules_are_the_counts_placed_inside_their_cells(tissue: Tissue) -> None:
    molecules = place_molecules(tissue, cell_labels(tissue))
    counted = np.zeros_like(tissue.counts)
    np.add.at(counted, (molecules["cell"], molecules["gene"]), 1)
    np.testing.assert_array_equal(counted, tissue.counts)
    some = molecules.iloc[:3000]
    distance = shapely.distance(shapely.points(some["x_um"], some["y_um"]), tissue.outlines[some["cell"]])
    assert distance.max() < 1.0  # a label pixel counts when its border is touched
    assert distance.mean() < 0.05


def test_bins_nest_and_keep_every_molecule(tissue: Tissue) -> None:
    labels = cell_labels(tissue)
    molecules = place_molecules(tissue, labels)
    fine, coarse = (make_bins(tissue, labels, molecules, size_um=s) for s in (2, 8))
    assert fine.counts.sum() == len(molecules)
    rows, columns = 336 // 8, 400 // 8
    for of in ("counts", "shares"):
        folded = (
            getattr(fine, of).toarray().reshape(rows, 4, columns, 4, -1).sum(axis=(1, 3)).reshape(rows * columns, -1)
        )
        np.testing.assert_allclose(getattr(coarse, of).toarray(), folded, atol=1e-9)
    np.testing.assert_allclose(fine.shares.sum(axis=0), 1)
    assert not fine.counts[np.flatnonzero(fine.positions["in_tissue"] == 0)].sum()
    assert fine.positions.index[columns * 4 + 1] == "s_002um_00001_00001-1"


def test_shares_against_a_loop() -> None:
    labels = np.random.default_rng(0).integers(0, 4, (8, 12)).astype(np.int32)
    got = bin_shares(labels, n_cells=3, shape=(2, 3), per_bin=4).toarray()
    for b in range(6):
        part = labels[b // 3 * 4 : b // 3 * 4 + 4, b % 3 * 4 : b % 3 * 4 + 4]
        for cell in range(3):
            assert got[b, cell] == pytest.approx((part == cell + 1).sum() / (labels == cell + 1).sum())

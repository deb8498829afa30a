from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import shapely

from stpred import InputError
from stpred.datasets import Tissue, make_tissue
from stpred.datasets._bins import cell_labels
from stpred.datasets._simulated.celltypes import CELL_TYPES, REGION_NAMES, REGIONS, TYPE_NAMES


def test_shapes_dtypes_and_ranges(tissue: Tissue) -> None:
    n = len(tissue.cells)
    assert tissue.image.shape == (672, 800, 3)
    assert tissue.image.dtype == np.uint8
    assert tissue.expected.shape == tissue.counts.shape == (n, 40)
    assert tissue.expected.dtype == np.float32
    assert tissue.counts.dtype == np.int32
    assert (tissue.expected > 0).all()
    assert len(tissue.nuclei) == len(tissue.outlines) == n > 200
    assert (tissue.xy_um > 0).all()
    assert (tissue.xy_um < [400, 336]).all()
    assert tissue.cells["chromatin"].between(0, 1).all()
    with pytest.raises(FrozenInstanceError):
        tissue.mpp = 1.0  # type: ignore[misc]


def test_same_seed_same_slide_other_seed_another() -> None:
    one, two = (make_tissue(size_um=(320, 320), mpp=1.0, n_genes=5, seed=4) for _ in range(2))
    np.testing.assert_array_equal(one.image, two.image)
    np.testing.assert_array_equal(one.counts, two.counts)
    donor = make_tissue(size_um=(320, 320), mpp=1.0, n_genes=5, seed=4, donor=1)
    assert not np.array_equal(one.image, donor.image)
    assert one.genes.equals(donor.genes)
    assert one.library != donor.library


def test_cells_do_not_depend_on_resolution_or_panel() -> None:
    one = make_tissue(size_um=(320, 320), mpp=1.0, n_genes=5)
    two = make_tissue(size_um=(320, 320), mpp=2.0, n_genes=9)
    assert one.cells.equals(two.cells)
    assert one.image.shape == (320, 320, 3)
    assert two.image.shape == (160, 160, 3)
    assert one.genes.equals(two.genes.iloc[:5])


def test_polygons_are_valid_nested_and_hardly_overlap(tissue: Tissue) -> None:
    assert shapely.is_valid(tissue.nuclei).all()
    assert shapely.is_valid(tissue.outlines).all()
    assert (shapely.get_type_id(tissue.outlines) == shapely.GeometryType.POLYGON).all()
    assert shapely.covers(tissue.outlines, shapely.buffer(tissue.nuclei, -1e-6)).all()
    overlap = shapely.area(tissue.outlines).sum() / shapely.area(shapely.union_all(tissue.outlines)) - 1
    assert overlap < 0.01


def test_stated_morphology_is_that_of_the_polygons(tissue: Tissue) -> None:
    area, stated = shapely.area(tissue.nuclei), tissue.cells["area_um2"].to_numpy()
    assert np.abs(area / stated - 1).max() < 0.08
    for polygon, (_, cell) in zip(tissue.nuclei[:40], tissue.cells.iloc[:40].iterrows(), strict=True):
        xy = np.array([[p.x, p.y] for p in _grid_inside(polygon)])
        values, vectors = np.linalg.eigh(np.cov(xy.T))
        assert np.sqrt(1 - values[0] / values[1]) == pytest.approx(cell["eccentricity"], abs=0.2)
        if cell["eccentricity"] > 0.85:
            turn = np.arctan2(*vectors[::-1, 1]) - cell["angle"]
            assert abs(np.sin(turn)) < 0.25


def _grid_inside(polygon: shapely.Polygon) -> list[shapely.Point]:
    x0, y0, x1, y1 = polygon.bounds
    x, y = np.meshgrid(np.arange(x0, x1, 0.2), np.arange(y0, y1, 0.2))
    points = shapely.points(x.ravel(), y.ravel())
    return list(points[shapely.contains(polygon, points)])


def test_types_differ_in_shape(tissue: Tissue) -> None:
    mean = tissue.cells.groupby("type", observed=True)[["area_um2", "eccentricity"]].mean()
    assert mean.loc["tumour", "area_um2"] > 1.8 * mean.loc["lymphocyte", "area_um2"]
    assert mean.loc["fibroblast", "eccentricity"] > 0.9
    assert mean.loc["lymphocyte", "eccentricity"] < 0.6


def test_nuclei_are_where_the_image_shows_them(tissue: Tissue) -> None:
    red = tissue.image[..., 0].astype(float)
    nuclei = cell_labels(tissue, step_um=tissue.mpp, nuclei=True) > 0
    cells = cell_labels(tissue, step_um=tissue.mpp) > 0
    ring = cells & ~nuclei
    assert red[nuclei].mean() < red[ring].mean() - 50
    shifted = np.roll(nuclei, 16, axis=1)
    assert red[nuclei].mean() < red[shifted].mean() - 30


def test_glass_surrounds_the_tissue(tissue: Tissue) -> None:
    border = np.concatenate([tissue.image[0], tissue.image[-1], tissue.image[:, 0], tissue.image[:, -1]])
    assert np.quantile(border.min(axis=1), 0.1) > 215
    saturation = np.ptp(tissue.image.astype(int), axis=2)
    assert 0.5 < (saturation > 30).mean() < 0.97


def test_specs_name_known_types() -> None:
    for region in REGIONS:
        assert set(region.share) <= set(TYPE_NAMES)
        assert sum(region.share.values()) == pytest.approx(1)
    assert len(set(TYPE_NAMES)) == len(CELL_TYPES) >= 4
    assert len(set(REGION_NAMES)) == 4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size_um": (100, 400)}, "`size_um` must be at least 300 by 300 um"),
        ({"size_um": (400, -1)}, "`size_um` must be a positive number of micrometres"),
        ({"mpp": 0}, "`mpp` must be a positive number"),
        ({"depth": float("nan")}, "`depth` must be a positive number"),
        ({"n_genes": 0}, "`n_genes` must be a positive whole number, got 0"),
        ({"n_genes": 2.5}, "`n_genes` must be a positive whole number, got 2.5"),
        ({"region_scale_um": -3}, "`region_scale_um` must be a positive number"),
    ],
)
def test_bad_input_is_named(wrong: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_tissue(**wrong)


def test_import_is_cheap() -> None:
    heavy = ["torch", "spatialdata", "scanpy", "zarr"]
    code = f"import sys, stpred.datasets; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"

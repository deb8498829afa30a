from __future__ import annotations

import numpy as np
import pytest

import stpred as st
from stpred._image.tissue import tissue_mask
from stpred.regions import Lattice


@pytest.mark.parametrize(("hexagonal", "neighbours"), [(True, 6), (False, 4)])
def test_lattice_is_measured_as_it_was_laid(hexagonal: bool, neighbours: int) -> None:
    points = Lattice(100.0, hexagonal).points((0, 0, 2000, 2000))
    found = Lattice.of(points)
    assert found.hexagonal == hexagonal
    assert found.pitch_um == pytest.approx(100.0)
    inner = points[np.all((points > 300) & (points < 1700), axis=1)]
    distance = np.linalg.norm(inner[:, None] - points[None], axis=2)
    assert (((distance > 1) & (distance < 101)).sum(axis=1) == neighbours).all()


def test_lattice_survives_jitter_and_holes() -> None:
    rng = np.random.default_rng(0)
    points = Lattice(200.0, hexagonal=False).points((0, 0, 4000, 4000))
    points = points[rng.random(len(points)) < 0.85] + rng.normal(0, 6, (1, 2))
    assert Lattice.of(points + rng.normal(0, 6, points.shape)).pitch_um == pytest.approx(200, rel=0.05)


def test_boxes_agree_on_the_points_they_share() -> None:
    lattice = Lattice(70.0, hexagonal=True)
    whole = {tuple(p) for p in lattice.points((0, 0, 1000, 1000)).round(6)}
    part = {tuple(p) for p in lattice.points((333, 250, 800, 777)).round(6)}
    assert part == {p for p in whole if 333 <= p[0] <= 800 and 250 <= p[1] <= 777}


def test_too_few_points_have_no_lattice() -> None:
    assert Lattice.of(np.zeros((2, 2))) is None
    assert Lattice.of(np.zeros((5, 2))) is None


def scene(*, glass: int = 240, stain: tuple[int, int, int] = (170, 90, 150)) -> np.ndarray:
    image = np.full((200, 200, 3), glass, dtype=np.uint8)
    image[50:150, 40:160] = stain
    image[90:100, 90:100] = glass  # a hole of 80 x 80 um
    image[5:8, 5:8] = stain  # dirt of 24 x 24 um
    return image


@pytest.mark.parametrize("glass", [255, 240, 215])
@pytest.mark.parametrize("stain", [(170, 90, 150), (225, 190, 215)])
def test_tissue_is_told_from_glass(glass: int, stain: tuple[int, int, int]) -> None:
    if glass == 215 and stain[0] > 200:
        pytest.skip("stain as light as the glass")
    mask = tissue_mask(scene(glass=glass, stain=stain), mpp=8.0)
    truth = np.zeros((200, 200), dtype=bool)
    truth[50:150, 40:160] = True
    overlap = (mask & truth).sum() / (mask | truth).sum()
    assert overlap > 0.93
    assert not mask[:20, :20].any()
    assert mask[95, 95]


def test_a_field_full_of_tissue_stays_whole_and_empty_glass_stays_empty() -> None:
    rng = np.random.default_rng(0)
    full = rng.normal((180, 110, 165), 12, (150, 150, 3)).clip(0, 255).astype(np.uint8)
    assert tissue_mask(full, mpp=8.0).mean() > 0.99
    empty = rng.normal(241, 2, (150, 150, 3)).clip(0, 255).astype(np.uint8)
    assert not tissue_mask(empty, mpp=8.0).any()


def test_tissue_and_grid_on_a_slide() -> None:
    slide = st.datasets.toy(size_um=(900, 900))
    st.pp.tissue(slide)
    area = slide.shapes["tissue"].geometry.union_all()
    cells = slide.shapes["cells"].geometry.centroid
    assert np.mean([area.contains(p) for p in cells]) > 0.97
    st.pp.grid(slide, pitch_um=60, layout="hexagonal")
    grid = slide.shapes["grid"]
    assert (grid["radius"] == 30).all()
    assert all(area.contains(p) for p in grid.geometry)
    assert len(grid) == pytest.approx(area.area / (60 * 60 * np.sqrt(3) / 2), rel=0.15)
    with pytest.warns(UserWarning, match="'grid' existed and are overwritten in memory"):
        st.pp.grid(slide, pitch_um=100)


def test_genes_are_selected_through_the_public_verb() -> None:
    slides = st.datasets.toy_cohort(2, size_um=(500, 500), n_genes=40)
    chosen = st.pp.select_genes(slides, st.GeneRule("rmax", n=8), shapes_key="spots")
    assert list(chosen.columns) == ["score", "rmax", "mean", "n_slides"]
    assert chosen["score"].is_monotonic_decreasing
    assert len(chosen) == 8
    assert st.pp.select_genes(slides, ["EPCAM"], shapes_key="spots").index.tolist() == ["EPCAM"]


def test_locations_on_fill_are_left_out_and_said() -> None:
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, ShapesModel
    from spatialdata.transformations import Identity, Scale

    from stpred.data import read_region

    pixels = np.asarray(st.datasets.toy(size_um=(400, 400), n_genes=5)["he"]["scale0"].image.data)
    frame = np.zeros((3, 800, 1000), np.uint8)
    frame[:, :, :800] = pixels
    place = {"um": Scale([0.5, 0.5], axes=("x", "y"))}
    image = Image2DModel.parse(frame, dims=("c", "y", "x"), transformations=place)
    xy = np.array([[200.0, 200.0], [210.0, 150.0], [450.0, 200.0], [480.0, 390.0]])
    spots = ShapesModel.parse(xy, geometry=0, radius=25, transformations={"um": Identity()})
    slide = SpatialData(images={"he": image}, shapes={"spots": spots})
    with pytest.warns(UserWarning, match="2 of 4 'spots' .* only fill"):
        region = read_region(slide)
    assert region.coords_um.tolist() == xy[:2].tolist()
    assert region.n_outside == 2
    st.pp.grid(slide, pitch_um=40)
    assert slide["grid"].geometry.x.max() <= 400  # whose right half is fill


def test_an_unsure_outline_is_said() -> None:
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Scale

    pixels = np.asarray(st.datasets.toy(size_um=(500, 500), n_genes=5)["he"]["scale0"].image.data)
    pale = np.rint(255 * (np.maximum(pixels, 1) / 255) ** 0.35).astype(np.uint8)
    place = {"um": Scale([0.5, 0.5], axes=("x", "y"))}
    slide = SpatialData(images={"he": Image2DModel.parse(pale, dims=("c", "y", "x"), transformations=place)})
    with pytest.warns(UserWarning, match="unsure: the stain is pale"):
        st.pp.tissue(slide)


def test_value_range_of_a_slide_leaves_fill_out() -> None:
    from stpred.data._readers.canvas import Canvas
    from stpred.tiles import Level, Pyramid

    pixels = np.asarray(st.datasets.toy(size_um=(400, 400), n_genes=5)["he"]["scale0"].image.data)
    padded = np.concatenate([pixels, np.zeros((3, 800, 100), np.uint8)], axis=2)
    plain, other = (Canvas(Pyramid([Level(p, np.diag([0.5, 0.5, 1.0]))]), 4.0).limits for p in (pixels, padded))
    assert np.abs(plain - other).max() <= 6

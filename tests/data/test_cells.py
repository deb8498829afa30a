"""Which cells are in which location, and batches of them."""

from __future__ import annotations

import logging

import geopandas as gpd
import numpy as np
import pytest
from shapely import Point, box
from spatialdata import SpatialData
from spatialdata.models import ShapesModel
from spatialdata.transformations import Identity, Scale

import stpred as st
from stpred import InputError, data, encoders
from stpred._core.places import Place
from stpred.models import Needs

TILE = st.TileSpec(0.5, 32)


@pytest.fixture(scope="module")
def slide() -> SpatialData:
    return st.datasets.toy(size_um=(400, 400), n_genes=12)


def bare(frame: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """The frame without the placement that it came with."""
    out = gpd.GeoDataFrame(geometry=list(frame.geometry), index=frame.index)
    return out.assign(radius=frame["radius"].to_numpy()) if "radius" in frame else out


def put(slide: SpatialData, name: str, frame: gpd.GeoDataFrame, *, scale: float = 1.0) -> SpatialData:
    placed = Identity() if scale == 1 else Scale([scale, scale], axes=("x", "y"))
    shapes = dict(slide.shapes) | {name: ShapesModel.parse(bare(frame), transformations={"um": placed})}
    return SpatialData(images=dict(slide.images), shapes=shapes, tables=dict(slide.tables))


def test_cells_of_spots_and_polygons_match_slow_geometry(slide: SpatialData) -> None:
    squares = gpd.GeoDataFrame(
        geometry=[box(x, y, x + 60, y + 60) for x in range(30, 330, 60) for y in range(30, 330, 60)]
    )
    slide = put(slide, "squares", squares)
    for name in ("spots", "squares"):
        region = data.with_cells(data.read_region(slide, Place(shapes_key=name)), cells_key="cells")
        centres = slide.shapes["cells"].geometry.centroid
        shapes = slide.shapes[name].loc[region.instances]
        for i, shape in enumerate(shapes.geometry[:6]):
            area = shape.buffer(27.5, quad_segs=400) if name == "spots" else shape
            want = set(np.flatnonzero([area.contains(c) for c in centres]))
            found = region.cells.links.indices[region.cells.links.indptr[i] : region.cells.links.indptr[i + 1]]
            assert set(found.tolist()) == want
        assert len(np.unique(region.cells.links.indices)) == region.cells.links.indices.size  # no cell counts twice


def test_a_region_in_other_units_holds_the_same_cells(slide: SpatialData) -> None:
    spots = slide.shapes["spots"]
    halved = gpd.GeoDataFrame(
        {"radius": spots.radius.to_numpy() / 2},
        geometry=[Point(p.x / 2, p.y / 2) for p in spots.geometry],
        index=spots.index,
    )
    other = put(slide, "halved", halved, scale=2.0)
    a = data.with_cells(data.read_region(other, Place(shapes_key="spots")), cells_key="cells")
    b = data.with_cells(data.read_region(other, Place(shapes_key="halved")), cells_key="cells")
    assert np.array_equal(a.cells.links.indices, b.cells.links.indices)


def test_what_are_cells_is_told_by_their_geometry(slide: SpatialData) -> None:
    bins = gpd.GeoDataFrame(geometry=[box(x, 0, x + 8, 8) for x in range(0, 160, 8)])
    slide = put(slide, "bins_008um", bins)
    assert data.looks_like_cells(slide, "cells")
    assert not data.looks_like_cells(slide, "spots")
    assert not data.looks_like_cells(slide, "bins_008um")
    region = data.with_cells(data.read_region(slide, Place(shapes_key="cells")))
    assert np.array_equal(region.cells.links.indices, np.arange(len(slide.shapes["cells"])))


def test_locations_without_cells_are_listed_and_left_out(slide: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    spots = slide.shapes["spots"]
    near = slide.shapes["cells"][slide.shapes["cells"].distance(spots.geometry.iloc[3]) > 40]
    fewer = put(slide, "nuclei", near)
    with caplog.at_level(logging.WARNING, logger="stpred"):
        region = data.with_cells(data.read_region(fewer, Place(shapes_key="spots")))
    assert region.cells.region.shapes_key == "nuclei"
    assert region.without_cells == (spots.index[3],)
    assert str(spots.index[3]) in caplog.text
    assert spots.index[3] not in region.instances
    far = put(slide, "nuclei", near.iloc[:1])
    kept = data.with_cells(data.read_region(far, Place(shapes_key="cells")), cells_key="nuclei")
    assert len(kept.instances) == 1
    with pytest.raises(InputError, match=r"No shapes element named 'nucleii' \(`cells_key`\)"):
        data.with_cells(data.read_region(slide, Place(shapes_key="spots")), cells_key="nucleii")
    none = SpatialData(images=dict(slide.images), shapes={"spots": spots})
    with pytest.raises(InputError, match=r"has no cells to see 'spots' through; find them with stpred.pp.nuclei"):
        data.with_cells(data.read_region(none, Place(shapes_key="spots")))


def test_context_of_cells_is_the_mean_around_them(slide: SpatialData) -> None:
    encoder = encoders.get("morphology", tile=TILE)
    region = data.with_cells(data.read_region(slide, Place(shapes_key="spots")), cells_key="cells").take(
        np.array([2, 5])
    )
    plain = data.reader_for(region, encoder, Needs(cells=True, slide_statistics=True)).whole()
    wide = data.reader_for(region, encoder, Needs(cells=True, slide_statistics=True, context_um=25.0)).whole()
    d = encoder.card.width
    assert wide.features.shape[1] == 2 * d + 1
    np.testing.assert_array_equal(wide.features[wide.cells.indices, :d], plain.features[plain.cells.indices])
    coords = region.cells.region.coords_um
    every = data.embed(region.cells.region, encoder, coords)
    for row, cell in zip(wide.cells.indices[:5], region.cells.links.indices[:5], strict=True):
        distance = np.linalg.norm(coords - coords[cell], axis=1)
        near = (distance <= 25.0) & (distance > 0)
        want = every[near].mean(axis=0) if near.any() else every[cell]
        np.testing.assert_allclose(wide.features[row, d : 2 * d], want, rtol=1e-4, atol=1e-4)
        assert wide.features[row, -1] == pytest.approx(np.log1p(near.sum()))


def test_statistics_of_a_slide_do_not_depend_on_what_is_asked_for(slide: SpatialData) -> None:
    encoder = encoders.get("morphology", tile=TILE)
    needs = Needs(cells=True, slide_statistics=True)
    whole = data.with_cells(data.read_region(slide, Place(shapes_key="cells")))
    some = data.reader_for(whole.take(np.arange(9)), encoder, needs).whole()
    spots = data.reader_for(
        data.with_cells(data.read_region(slide, Place(shapes_key="spots")), cells_key="cells"), encoder, needs
    ).whole()
    np.testing.assert_array_equal(some.features[some.sources], spots.features[spots.sources])


def test_many_cells_are_predicted_in_blocks_to_the_same_values(
    slide: SpatialData, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = encoders.get("morphology", tile=TILE)
    slide = SpatialData(images=dict(slide.images), shapes=dict(slide.shapes))
    st.pp.features(slide, shapes_key="cells", tile=TILE)  # computed once, taken from there
    region = data.with_cells(data.read_region(slide, Place(shapes_key="cells")))
    for needs in (
        Needs(cells=True, slide_statistics=True),
        Needs(cells=True, context_um=20.0),
        Needs(cells=True, n_neighbors=3),
    ):
        ((_, once),) = data.reader_for(region, encoder, needs).blocks()
        monkeypatch.setattr("stpred.data._readers.cells.CELL_BYTES", 50 * encoder.card.width * 4)
        seen = []
        for rows, batch in data.reader_for(region, encoder, needs).blocks():
            np.testing.assert_array_equal(batch.features[batch.cells.indices], once.features[once.cells.indices][rows])
            np.testing.assert_array_equal(batch.features[batch.sources], once.features[once.sources])
            seen.append(rows)
        assert len(seen) > 3
        assert np.array_equal(np.sort(np.concatenate(seen)), np.arange(len(region.instances)))
        monkeypatch.undo()


def two_scales() -> encoders.Encoder:
    """The tile comes first in the list, so that features change their order."""
    return encoders.get(
        [encoders.get("colour", tile=st.TileSpec(2.0, 56)), encoders.get("intensity", tile=st.TileSpec(0.5, 32))]
    )


def test_a_spot_has_one_tile_for_all_of_its_cells(slide: SpatialData) -> None:
    tile, crop = two_scales().members
    region = data.with_cells(data.read_region(slide, Place(shapes_key="spots")), cells_key="cells")
    batch = data.reader_for(region, two_scales(), Needs(cells=True, slide_statistics=True, tile_um=100.0)).whole()
    assert batch.blocks == (3, 6)
    assert batch.n_tile == 6
    around = data.embed(region, tile, region.coords_um)
    crops = data.embed(region.cells.region, crop, region.cells.region.coords_um)
    for i in range(len(region.coords_um)):
        some = slice(region.cells.links.indptr[i], region.cells.links.indptr[i + 1])
        own, rows = region.cells.links.indices[some], batch.cells.indices[some]
        np.testing.assert_allclose(batch.features[rows, :3], crops[own], atol=1e-6)
        np.testing.assert_allclose(batch.features[rows, 3:], np.tile(around[i], (len(own), 1)), atol=1e-6)
    plain = data.reader_for(region, two_scales(), Needs(cells=True, slide_statistics=True)).whole()
    assert plain.n_tile is None
    assert plain.blocks == (6, 3)
    with_means = data.reader_for(region, two_scales(), Needs(cells=True, context_um=25.0, tile_um=100.0)).whole()
    assert with_means.blocks == (3, 3, 1, 6)
    np.testing.assert_allclose(
        with_means.features[with_means.cells.indices][:, [0, 1, 2, 7, 8]], batch.features[batch.cells.indices][:, :5]
    )


def test_a_cell_has_the_tile_around_it(slide: SpatialData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read on a lattice of a quarter of the tile, whatever else is predicted; cells of large annotations alike."""
    tile, _ = two_scales().members
    needs = Needs(cells=True, slide_statistics=True, tile_um=100.0)
    region = data.with_cells(data.read_region(slide, Place(shapes_key="cells")))
    batch = data.reader_for(region, two_scales(), needs).whole()
    places = np.round(region.coords_um / 28.0) * 28.0
    near = data.embed(region, tile, np.unique(places, axis=0))
    want = near[np.unique(places, axis=0, return_inverse=True)[1].ravel()]
    np.testing.assert_allclose(batch.features[batch.cells.indices, 3:], want, atol=1e-6)
    some = np.random.default_rng(0).permutation(len(region.coords_um))[:20]
    part = data.reader_for(region.take(some), two_scales(), needs).whole()
    np.testing.assert_array_equal(part.features[part.cells.indices], batch.features[batch.cells.indices][some])
    np.testing.assert_array_equal(part.features[part.sources], batch.features[batch.sources])
    whole = put(slide, "annotation", gpd.GeoDataFrame(geometry=[box(0, 0, 400, 400)]))
    large = data.with_cells(data.read_region(whole, Place(shapes_key="annotation")), cells_key="cells")
    one = data.reader_for(large, two_scales(), needs).whole()
    np.testing.assert_array_equal(
        one.features[one.cells.indices], batch.features[batch.cells.indices][large.cells.links.indices]
    )
    monkeypatch.setattr("stpred.data._readers.cells.CELL_BYTES", 50 * 9 * 4)
    for rows, block in data.reader_for(region, two_scales(), needs).blocks():
        np.testing.assert_array_equal(block.features[block.cells.indices], batch.features[batch.cells.indices][rows])
        np.testing.assert_array_equal(block.features[block.sources], batch.features[batch.sources])


def test_encoders_of_one_kind_are_all_read_at_cells(slide: SpatialData) -> None:
    region = data.with_cells(data.read_region(slide, Place(shapes_key="spots")), cells_key="cells").take(np.arange(3))
    for tile_um in (10.0, 500.0):
        batch = data.reader_for(region, two_scales(), Needs(cells=True, tile_um=tile_um)).whole()
        assert batch.n_tile is None
        assert batch.blocks == (6, 3)

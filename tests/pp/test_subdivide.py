from __future__ import annotations

from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import shapely
from numpy.typing import NDArray
from shapely.affinity import rotate
from spatialdata import SpatialData
from spatialdata.models import ShapesModel
from spatialdata.transformations import Affine, Identity, set_transformation

import stpred as st
from stpred import InputError
from stpred._core import keys
from stpred._core.geometry import square_bins
from stpred.regions import squares_in


def element(shapes: Any, *, affine: NDArray | None = None, index: Any = None, radius: Any = None) -> gpd.GeoDataFrame:
    place = Identity() if affine is None else Affine(affine, input_axes=("x", "y"), output_axes=("x", "y"))
    columns = {} if radius is None else {"radius": radius}
    return ShapesModel.parse(
        gpd.GeoDataFrame(columns, geometry=list(shapes), index=index), transformations={"um": place}
    )


def cut(shapes: Any, size_um: float = 8.0, **kwargs: Any) -> gpd.GeoDataFrame:
    sdata = SpatialData.init_from_elements({"spots": element(shapes, **kwargs)})
    st.pp.subdivide(sdata, size_um=size_um, key_added="squares")
    return sdata.shapes["squares"]


def reference(shapes: list[Any], size: float) -> dict[tuple[int, int], int]:
    """Ask every shape about every centre around."""
    x0, y0, x1, y1 = shapely.total_bounds(shapes)
    found = {}
    for i in range(int(x0 // size) - 1, int(x1 // size) + 2):
        for j in range(int(y0 // size) - 1, int(y1 // size) + 2):
            center = shapely.Point((i + 0.5) * size, (j + 0.5) * size)
            inside = [k for k, shape in enumerate(shapes) if shape.contains(center)]
            if inside:
                found[i, j] = min(inside, key=lambda k: (shapes[k].centroid.distance(center), k))
    return found


def lattice(frame: gpd.GeoDataFrame) -> list[tuple[int, int]]:
    return [tuple(int(n) for n in name[1:].split("y")) for name in frame.index]


def scattered(rng: np.random.Generator) -> list[Any]:
    """Overlapping and small ones, one with a hole, one of two pieces, all on both sides of the origin."""
    centers = rng.uniform(-90, 90, (25, 2))
    shapes = [shapely.Point(c).buffer(r) for c, r in zip(centers, rng.uniform(1, 30, 25), strict=True)]
    shapes[3] = shapely.box(-70, -70, -20, -10) - shapely.box(-60, -55, -30, -30)
    shapes[7] = shapely.MultiPolygon([shapely.box(10.3, 10.1, 33.3, 41.9), shapely.box(60.7, 60.3, 90.2, 71.1)])
    shapes[11] = rotate(shapely.box(-5, -80, 15, 80), 31)
    return shapes


@pytest.mark.parametrize("size", [8.0, 3.3, 17.0])
def test_squares_and_parents_equal_the_slow_loop(size: float) -> None:
    shapes = scattered(np.random.default_rng(0))
    names = [f"s{k}" for k in range(len(shapes))]
    frame = cut(shapes, size, index=names)
    wanted = reference(shapes, size)
    assert len(wanted) > 30
    assert lattice(frame) == sorted(wanted, key=lambda square: square[::-1])
    assert frame["parent"].tolist() == [names[wanted[square]] for square in lattice(frame)]
    corners = np.array(lattice(frame)) * size
    assert np.allclose(shapely.bounds(frame.geometry.to_numpy()), np.hstack([corners, corners + size]))


def test_a_set_of_many_is_cut_in_several_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = np.array(scattered(np.random.default_rng(1)))
    whole = squares_in(shapes, 4.0)
    monkeypatch.setattr("stpred.regions.squares._AT_ONCE", 97)
    for a, b in zip(whole, squares_in(shapes, 4.0), strict=True):
        assert (a == b).all()


@pytest.mark.parametrize("corner", [(0, 0), (4, 4), (-160, 36.0), (8.1 * 3 - 0.3, 0)])
def test_squares_tile_a_square_wherever_it_lies(corner: tuple[float, float]) -> None:
    x, y = corner
    frame = cut([shapely.box(x, y, x + 80, y + 80)])
    assert len(frame) == 100
    assert frame.area.sum() == pytest.approx(80 * 80)
    assert frame.union_all().area == pytest.approx(80 * 80)


def test_of_shapes_that_touch_each_border_belongs_to_one() -> None:
    """Centres lie on every border: 4 + 8 n."""
    boxes = [shapely.box(x, y, x + 24, y + 16) for y in (4, 20, 36) for x in (-20, 4, 28)]
    counts = cut(boxes)["parent"].value_counts()
    assert (counts == 6).all()
    assert len(counts) == 9


@pytest.mark.parametrize("mirror", [1, -1])
def test_placement_turns_and_scales(mirror: int) -> None:
    turn = np.deg2rad(33)
    affine = np.eye(3)
    affine[:2, :2] = (
        0.37 * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ [[mirror, 0], [0, 1]]
    )
    affine[:2, 2] = 50, -20
    own = [shapely.box(0, 0, 400, 90), shapely.Point(300, 300).buffer(100)]
    moved = [shapely.transform(s, lambda xy: xy @ affine[:2, :2].T + affine[:2, 2]) for s in own]
    assert dict(zip(lattice(frame := cut(own, affine=affine)), frame["parent"], strict=True)) == reference(moved, 8.0)
    circle = cut([shapely.Point(300, 300)], affine=affine, radius=[100.0])
    assert lattice(circle) == lattice(frame[frame["parent"] == 1])


def test_two_regions_and_bins_agree_on_squares() -> None:
    slide = st.datasets.toy(size_um=(300, 300), n_genes=5)
    st.pp.tissue(slide)
    st.pp.subdivide(slide, "spots", size_um=16)
    st.pp.subdivide(slide, "tissue", size_um=16)
    spots, tissue = slide.shapes["spots_016um"], slide.shapes["tissue_016um"]
    both = spots.index.intersection(tissue.index)
    assert len(both) > 0.9 * len(spots)
    assert (spots.geometry[both] == tissue.geometry[both]).all()
    assert spots["parent"].isin(slide.shapes["spots"].index).all()
    inner = shapely.get_coordinates(tissue.geometry.centroid.to_numpy()) + 7.9
    assert square_bins(inner, 16)[0].tolist() == [list(square) for square in lattice(tissue)]
    with pytest.warns(UserWarning, match="'spots_016um' existed and are overwritten in memory"):
        st.pp.subdivide(slide, "spots", size_um=16)


def test_the_only_region_or_the_tissue_is_taken() -> None:
    box = element([shapely.box(0, 0, 40, 40)])
    sdata = SpatialData.init_from_elements({"spots": box})
    st.pp.subdivide(sdata)
    st.pp.subdivide(sdata, size_um=2.5)  # the squares there are no second region
    assert set(sdata.shapes) == {"spots", "spots_008um", "spots_2.5um"}
    sdata = SpatialData.init_from_elements({"spots": box, "cells": box})
    with pytest.raises(InputError, match=r"Several shapes .*\['spots', 'cells'\]; name one with `shapes_key`"):
        st.pp.subdivide(sdata)
    sdata.shapes["tissue"] = element([shapely.box(0, 0, 40, 40)])
    st.pp.subdivide(sdata)
    assert "tissue_008um" in sdata.shapes
    assert (keys.squares("spots", 8), keys.squares("spots", 110.0)) == ("spots_008um", "spots_110um")


def test_predicts_and_survives_the_disk(tmp_path: Any) -> None:
    from spatialdata import read_zarr

    slide = st.datasets.toy(size_um=(300, 300), n_genes=5)
    st.pp.subdivide(slide, "spots", size_um=25)
    st.pp.features(slide, "intensity", shapes_key="spots_025um")
    assert slide.tables["spots_025um_feat_intensity"].n_obs > 0
    slide.write(tmp_path / "slide.zarr")
    again = read_zarr(tmp_path / "slide.zarr").shapes["spots_025um"]
    assert again["parent"].tolist() == slide.shapes["spots_025um"]["parent"].tolist()


def test_shapes_without_a_centre_are_told(caplog: pytest.LogCaptureFixture) -> None:
    frame = cut([shapely.box(0, 0, 16, 16), shapely.box(21, 21, 23, 23)], index=["large", "small"])
    assert set(frame["parent"]) == {"large"}
    assert "1 of 2 'spots' hold no centre of a square of 8 um" in caplog.text
    assert "['small']" in caplog.text
    with pytest.raises(InputError, match="No shape of 'spots' holds the centre of a square of 200 um"):
        cut([shapely.box(0, 0, 16, 16)], 200)


def test_bad_input() -> None:
    sdata = SpatialData.init_from_elements({"spots": element([shapely.box(0, 0, 40, 40)])})
    for size in (0, -8, float("nan"), "8", True):
        with pytest.raises(InputError, match="`size_um` must be a positive number of micrometres"):
            st.pp.subdivide(sdata, size_um=size)
    with pytest.raises(InputError, match="`size_um`=0.0001 would be about 2e[+]11; choose larger ones"):
        st.pp.subdivide(sdata, size_um=1e-4)
    with pytest.raises(InputError, match=r"No shapes element named 'bins' \(`shapes_key`\)"):
        st.pp.subdivide(sdata, "bins")
    with pytest.raises(InputError, match="`key_added`='spots' is the region that is cut"):
        st.pp.subdivide(sdata, key_added="spots")
    with pytest.raises(InputError, match="`key_added` must be a non-empty name"):
        st.pp.subdivide(sdata, key_added="a/b")
    with pytest.raises(InputError, match="`sdata` must be a SpatialData object"):
        st.pp.subdivide(None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="Shapes 'spots' are not placed in the coordinate system 'mm'"):
        st.pp.subdivide(sdata, coordinate_system="mm")
    set_transformation(sdata.shapes["spots"], {"pixels": Identity()}, set_all=True)
    with pytest.raises(InputError, match="Shapes 'spots' are not placed in the coordinate system 'um'"):
        st.pp.subdivide(sdata, "spots")
    with pytest.raises(InputError, match="1 of the shapes 'spots' have no finite outline"):
        cut([shapely.Point(0, 0), shapely.Point(np.nan, 0)], radius=[9.0, 9.0])
    with pytest.raises(InputError, match=r"index of shapes 'spots' is not unique: \['x'\]"):
        cut([shapely.box(0, 0, 40, 40)] * 2, index=["x", "x"])
    sdata = SpatialData.init_from_elements({"spots": element([shapely.box(0, 0, 40, 40)])})
    sdata.shapes["spots"].drop(index=[0], inplace=True)
    with pytest.raises(InputError, match="Shapes 'spots' are empty"):
        st.pp.subdivide(sdata)
    with pytest.raises(InputError, match="has no shapes to work on"):
        st.pp.subdivide(SpatialData())


def test_measured_shapes_are_not_overwritten() -> None:
    slide = st.datasets.toy(size_um=(300, 300), n_genes=5)
    before = len(slide.shapes["cells"])
    with pytest.raises(InputError, match="Shapes 'cells' carry the measured table 'cells_counts'"):
        st.pp.subdivide(slide, "spots", key_added="cells")
    assert len(slide.shapes["cells"]) == before

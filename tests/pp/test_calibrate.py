from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
import spatialdata as sd
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, PointsModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale, get_transformation

import stpred as st
from stpred import InputError
from stpred._core.elements import affine_to, apply_affine, centroids, find_image, mpp_of

MPP = 0.4


def rgb(height: int, width: int, **transformations) -> object:
    data = np.full((3, height, width), 200, np.uint8)
    return Image2DModel.parse(data, dims=("c", "y", "x"), c_coords=["r", "g", "b"], transformations=transformations)


def lattice() -> tuple[np.ndarray, np.ndarray]:
    array = np.array([(r, c) for r in range(8) for c in range(16) if (r + c) % 2 == 0])
    pitch = 100 / MPP
    return array, np.column_stack([300 + array[:, 1] * pitch / 2, 300 + array[:, 0] * pitch * np.sqrt(3) / 2])


def visium(*, table: bool = True, full: bool = True) -> SpatialData:
    """An object with the names, systems and units of spatialdata-io's Visium reader."""
    array, xy = lattice()
    scale = Scale([0.1, 0.1], axes=("x", "y"))
    spots = ShapesModel.parse(
        xy, geometry=0, radius=65 / MPP / 2, index=np.arange(len(xy)),
        transformations={"s1": Identity(), "s1_downscaled_hires": scale},
    )  # fmt: skip
    images = {"s1_hires_image": rgb(200, 220, s1=scale.inverse(), s1_downscaled_hires=Identity())}
    if full:
        images["s1_full_image"] = rgb(2000, 2200, s1=Identity())
    tables = {}
    if table:
        counts = AnnData(np.ones((len(xy), 2), np.float32), obsm={"spatial": xy})
        counts.obs["array_row"], counts.obs["array_col"] = array.T
        counts.obs["region"], counts.obs["spot_id"] = "s1", np.arange(len(xy))
        counts.obs["region"] = counts.obs["region"].astype("category")
        tables["table"] = TableModel.parse(counts, region="s1", region_key="region", instance_key="spot_id")
    return SpatialData(images=images, shapes={"s1": spots}, tables=tables)


def snapshot(sdata: SpatialData) -> dict[str, dict[str, np.ndarray]]:
    return {
        name: {
            system: t.to_affine_matrix(("x", "y"), ("x", "y"))
            for system, t in get_transformation(element, get_all=True).items()
        }
        for _, name, element in sdata.gen_spatial_elements()
    }


@pytest.mark.parametrize("table", [True, False])
def test_visium_objects_of_spatialdata_io(table: bool) -> None:
    sdata = visium(table=table)
    before = snapshot(sdata)
    assert st.pp.calibrate(sdata) is None
    assert find_image(sdata) == "s1_full_image"
    assert mpp_of(affine_to(sdata.images["s1_full_image"])) == pytest.approx(MPP)
    assert affine_to(sdata.images["s1_hires_image"]) is None
    np.testing.assert_allclose(centroids(sdata, "s1")[0], lattice()[1] * MPP)
    after = snapshot(sdata)
    for name, systems in before.items():
        for system, matrix in systems.items():
            np.testing.assert_array_equal(after[name][system], matrix)
    if table:
        np.testing.assert_array_equal(sdata.tables["table"].obsm["spatial"], lattice()[1])


def test_hires_alone_gets_its_coarse_resolution_in_the_frame_of_the_full_image() -> None:
    sdata = visium(full=False)
    st.pp.calibrate(sdata)
    assert mpp_of(affine_to(sdata.images["s1_hires_image"])) == pytest.approx(10 * MPP)
    np.testing.assert_allclose(centroids(sdata, "s1")[0], lattice()[1] * MPP)


def test_calling_again_changes_nothing() -> None:
    sdata = visium()
    st.pp.calibrate(sdata)
    first = snapshot(sdata)
    st.pp.calibrate(sdata)
    second = snapshot(sdata)
    assert {k: set(v) for k, v in first.items()} == {k: set(v) for k, v in second.items()}
    for name, systems in first.items():
        for system, matrix in systems.items():
            np.testing.assert_array_equal(second[name][system], matrix)


def test_a_new_mpp_contradicts_the_old_place_and_replaces_it() -> None:
    sdata = visium()
    st.pp.calibrate(sdata)
    with pytest.warns(UserWarning, match=r"mpp= says 0\.45 um per pixel and its place in 'um' 0\.4"):
        st.pp.calibrate(sdata, mpp=0.45)
    assert mpp_of(affine_to(sdata.images["s1_full_image"])) == pytest.approx(0.45)
    np.testing.assert_allclose(centroids(sdata, "s1")[0], lattice()[1] * 0.45)


@pytest.mark.parametrize(
    ("size", "expected"),
    [({"um_between_centers": 100.0}, MPP), ({"um_diameter": 65.0}, MPP), ({"mpp": 0.41}, 0.41)],
)
def test_given_sizes(size: dict[str, float], expected: float) -> None:
    sdata = visium()
    st.pp.calibrate(sdata, shapes_key="s1", **size)
    assert mpp_of(affine_to(sdata.images["s1_full_image"])) == pytest.approx(expected)


@pytest.mark.parametrize("circles", [False, True])
def test_bins_named_by_their_size(circles: bool) -> None:
    xy = np.stack(np.meshgrid(np.arange(20), np.arange(20)), axis=-1).reshape(-1, 2) * 20.0 + 100
    transformations = {"hd": Identity()}
    if circles:
        bins = ShapesModel.parse(xy, geometry=0, radius=10.0, transformations=transformations)
    else:
        boxes = shapely.box(*(xy - 10).T, *(xy + 10).T)
        bins = ShapesModel.parse(gpd.GeoDataFrame(geometry=boxes), transformations=transformations)
    sdata = SpatialData(images={"hd_full_image": rgb(600, 620, hd=Identity())}, shapes={"hd_square_008um": bins})
    st.pp.calibrate(sdata)
    assert mpp_of(affine_to(sdata.images["hd_full_image"])) == pytest.approx(0.4)
    if not circles:
        with pytest.warns(UserWarning, match="differ"):
            st.pp.calibrate(sdata, um_square_edge=16, shapes_key="hd_square_008um")
        assert mpp_of(affine_to(sdata.images["hd_full_image"])) == pytest.approx(0.8)
        with pytest.raises(InputError, match="`um_diameter` does not fit shapes 'hd_square_008um', which are polygons"):
            st.pp.calibrate(sdata, um_diameter=8, shapes_key="hd_square_008um")


def test_xenium_objects_of_spatialdata_io_keep_a_rotated_alignment() -> None:
    pixel, angle = 0.2125, 0.6
    matrix = np.eye(3)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix[:2, :2] = turn * 0.5 / pixel
    matrix[:2, 2] = np.array([100, 80]) / pixel - matrix[:2, :2] @ [300, 250]
    up = Scale([1 / pixel, 1 / pixel], axes=("x", "y"))
    xy = np.stack(np.meshgrid(np.arange(4), np.arange(4)), axis=-1).reshape(-1, 2) * 9.0 + 85
    boxes = shapely.box(*(xy - 3).T, *(xy + 3).T)
    sdata = SpatialData(
        images={
            "he_image": rgb(500, 600, **{"global": Affine(matrix, ("x", "y"), ("x", "y"))}),
            "morphology": Image2DModel.parse(
                np.zeros((1, 900, 900), np.uint16), dims=("c", "y", "x"), transformations={"global": Identity()}
            ),
        },
        shapes={"cell_boundaries": ShapesModel.parse(gpd.GeoDataFrame(geometry=boxes), transformations={"global": up})},
        points={"transcripts": PointsModel.parse(xy, transformations={"global": up})},
    )
    st.pp.calibrate(sdata)
    to_um = affine_to(sdata.images["he_image"])
    corners = np.array([[0.0, 0], [600, 500]])
    np.testing.assert_allclose(apply_affine(to_um, corners), apply_affine(matrix, corners) * pixel)
    assert mpp_of(to_um) == pytest.approx(0.5)
    np.testing.assert_allclose(centroids(sdata, "cell_boundaries")[0], xy)
    np.testing.assert_allclose(affine_to(sdata.points["transcripts"]), np.eye(3), atol=1e-12)


def test_images_alone_need_mpp() -> None:
    sdata = SpatialData(images={"slide": rgb(100, 100, **{"global": Identity()})})
    with pytest.raises(InputError, match=r"resolution of image 'slide' cannot be derived.*pass mpp="):
        st.pp.calibrate(sdata)
    st.pp.calibrate(sdata, mpp=0.5)
    st.pp.calibrate(sdata)
    assert mpp_of(affine_to(sdata.images["slide"])) == 0.5


def test_slides_of_one_object_get_their_own_frames() -> None:
    one, other = visium(), visium()
    other.rename_coordinate_systems({"s1": "s2", "s1_downscaled_hires": "s2_downscaled_hires"})
    both = sd.concatenate({"a": one, "b": other})
    st.pp.calibrate(both, image_key="s1_full_image-a", coordinate_system="um_a")
    st.pp.calibrate(both, image_key="s1_full_image-b", coordinate_system="um_b")
    for own, foreign in ("ab", "ba"):
        np.testing.assert_allclose(centroids(both, f"s1-{own}", coordinate_system=f"um_{own}")[0], lattice()[1] * MPP)
        assert affine_to(both.shapes[f"s1-{own}"], f"um_{foreign}") is None
        assert find_image(both, coordinate_system=f"um_{own}") == f"s1_full_image-{own}"


def test_misuse_says_what_is_available() -> None:
    sdata = visium()
    with pytest.raises(InputError, match=r"Give one of mpp, um_between_centers.*got \['um_diameter', 'mpp'\]"):
        st.pp.calibrate(sdata, mpp=0.5, um_diameter=55)
    with pytest.raises(InputError, match=r"No shapes element named 'x' .*available: \['s1'\]"):
        st.pp.calibrate(sdata, shapes_key="x")
    with pytest.raises(InputError, match=r"No image named 'x'"):
        st.pp.calibrate(sdata, image_key="x")
    with pytest.raises(InputError, match="`mpp` must be a positive number"):
        st.pp.calibrate(sdata, mpp=-1)
    st.pp.calibrate(sdata)
    with pytest.raises(InputError, match=r"\['s1_full_image'\] lies already in 'um', which holds one H&E image"):
        st.pp.calibrate(sdata, image_key="s1_hires_image")
    del sdata.images["s1_full_image"], sdata.images["s1_hires_image"]
    with pytest.raises(InputError, match="has no image"):
        st.pp.calibrate(sdata)


def test_shapes_that_share_no_frame_and_shapes_off_the_image_are_refused() -> None:
    sdata = visium()
    sdata.shapes["far"] = ShapesModel.parse(
        np.ones((3, 2)), geometry=0, radius=1, transformations={"other": Identity()}
    )
    with pytest.raises(InputError, match=r"'far' and the image share no coordinate system: shapes have \['other'\]"):
        st.pp.calibrate(sdata, shapes_key="far")
    st.pp.calibrate(sdata)
    assert affine_to(sdata.shapes["far"]) is None
    hires = visium(full=False)
    hires.images["as_full"] = rgb(201, 221, s1=Identity())  # a small copy declared to be the full image
    with pytest.raises(
        InputError, match=r"of the shapes 's1' lie outside the image.*resolution that the shapes refer to"
    ):
        st.pp.calibrate(hires, image_key="as_full")


def test_output_of_the_vendor_reader(tmp_path: Path) -> None:
    import spatialdata_io

    outs = st.datasets.toy_visium(tmp_path / "outs", size_um=(600.0, 600.0), n_genes=20)
    ours = st.io.visium(outs)
    theirs = spatialdata_io.visium(outs, dataset_id="toy", fullres_image_file=outs / "fullres_image.tif")
    st.pp.calibrate(theirs)
    assert mpp_of(affine_to(theirs.images["toy_full_image"])) == pytest.approx(mpp_of(affine_to(ours.images["he"])))
    np.testing.assert_allclose(centroids(theirs, "toy")[0], centroids(ours, "spots")[0])


@pytest.mark.parametrize("name", ["cell_boundaries", "nucleus_boundaries"])
def test_a_name_is_no_evidence_for_micrometres(name: str) -> None:
    xy = np.stack(np.meshgrid(np.arange(6), np.arange(6)), axis=-1).reshape(-1, 2) * 60.0 + 40
    boxes = gpd.GeoDataFrame(geometry=shapely.box(*(xy - 12).T, *(xy + 12).T))  # 24 px, which could be um, too

    def by_hand(**transformations: object) -> SpatialData:
        return SpatialData(
            images={"he": rgb(400, 400, **{"global": Identity()})},
            shapes={name: ShapesModel.parse(boxes.copy(), transformations=transformations)},
        )

    sdata = by_hand(**{"global": Identity()})
    with pytest.raises(InputError, match=rf"\['{name}'\] .*cannot be told from the name alone\); pass mpp="):
        st.pp.calibrate(sdata)
    st.pp.calibrate(sdata, mpp=0.5)
    np.testing.assert_allclose(centroids(sdata, name)[0], xy * 0.5)
    # pixels of a finer image: cells of 24 um would be possible, of 240 um not
    large = by_hand(**{"global": Scale([0.1, 0.1], axes=("x", "y"))})
    large.shapes[name].geometry = boxes.scale(10, 10, origin=(0, 0))
    with pytest.raises(InputError, match="pass mpp="):
        st.pp.calibrate(large)
    # by the reader that says what it wrote
    sdata = by_hand(**{"global": Scale([4, 4], axes=("x", "y"))})
    sdata.attrs["spatialdata_io_reader"] = "xenium"
    boxes.geometry = boxes.scale(0.25, 0.25, origin=(0, 0))
    sdata.shapes[name].geometry = boxes.geometry
    st.pp.calibrate(sdata)
    assert mpp_of(affine_to(sdata.images["he"])) == pytest.approx(0.25)


def test_resolutions_that_no_image_has_are_refused() -> None:
    sdata = SpatialData(images={"slide": rgb(100, 100, **{"global": Identity()})})
    for mpp in (1e9, 1e-6):
        with pytest.raises(InputError, match="`mpp` must be 0.01 to 100 um per pixel"):
            st.pp.calibrate(sdata, mpp=mpp)


def test_spots_that_the_border_of_a_crop_cuts_are_no_contradiction() -> None:
    from shapely.geometry import box
    from spatialdata import polygon_query

    slide = st.datasets.toy(size_um=(700, 700), n_genes=5, mpp=1.0)
    crop = polygon_query(slide, box(233, 233, 480, 480), target_coordinate_system="um")
    bare = SpatialData(images={"he": crop["he"]}, shapes={"spots": crop["spots"]})
    inside = np.array([box(233, 233, 480, 480).contains(p) for p in bare["spots"].geometry])
    assert (~inside).mean() > 0.1
    st.pp.calibrate(bare, mpp=1.0)

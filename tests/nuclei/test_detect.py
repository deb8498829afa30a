from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pytest
import shapely
from numpy.typing import NDArray
from scipy.spatial import cKDTree

import stpred as st
from stpred import nuclei
from stpred._core.checks import InputError, UnsafeResolutionError
from stpred.tiles import Level, Pyramid

SIZE = (300, 300)


@pytest.fixture(scope="module")
def tissue() -> Any:
    return st.datasets.make_tissue(size_um=SIZE, mpp=0.5, seed=3, n_genes=5)


def pyramid_of(image: NDArray, affine: NDArray | None = None, *, mpp: float = 0.5) -> Pyramid:
    array = da.from_array(np.moveaxis(image, -1, 0), chunks=(3, 200, 200))
    return Pyramid([Level(array, np.diag([mpp, mpp, 1.0]) if affine is None else affine)])


@pytest.fixture(scope="module")
def found(tissue: Any) -> Any:
    return nuclei.detect(pyramid_of(tissue.image))


def centers(frame: Any) -> NDArray:
    return np.column_stack([frame.centroid.x, frame.centroid.y])


def share_met(a: NDArray, b: NDArray, *, within_um: float) -> float:
    """Share of the points of both sets that have one of the other nearby."""
    return float(np.r_[cKDTree(a).query(b)[0], cKDTree(b).query(a)[0]].__lt__(within_um).mean())


def test_finds_the_nuclei_and_describes_them(tissue: Any, found: Any) -> None:
    true = shapely.centroid(tissue.nuclei)
    assert share_met(np.column_stack([shapely.get_x(true), shapely.get_y(true)]), centers(found), within_um=2) > 0.93
    assert found.index.tolist() == list(range(1, len(found) + 1))
    assert found.index.name == "nucleus_id"
    assert found.is_valid.all()
    assert (found.geom_type == "Polygon").all()
    assert (np.diff(centers(found)[:, 1]) >= 0).all()
    assert found["area_um2"].to_numpy() == pytest.approx(found.area.to_numpy())
    assert found["area_um2"].between(8, 350).all()
    assert found["eccentricity"].between(0, 1).all()
    assert (found["haematoxylin"] > 0.1).all()
    pairs = cKDTree(centers(found)).query(centers(found), k=2)
    near = pairs[1][:, 1]
    overlap = shapely.area(shapely.intersection(found.geometry.to_numpy(), found.geometry.to_numpy()[near]))
    assert (overlap < 0.1 * found["area_um2"]).all()


@pytest.mark.parametrize("chunk_um", [101.0, 190.0])
def test_the_chunks_do_not_show(tissue: Any, found: Any, chunk_um: float) -> None:
    other = nuclei.detect(pyramid_of(tissue.image), chunk_um=chunk_um)
    assert abs(len(other) - len(found)) <= 0.01 * len(found)
    assert share_met(centers(other), centers(found), within_um=0.01) > 0.985
    # No nucleus is found twice at a seam.
    assert cKDTree(centers(other)).query(centers(other), k=2)[0][:, 1].min() > 2


def test_the_same_slide_gives_the_same_nuclei(tissue: Any, found: Any) -> None:
    assert nuclei.detect(pyramid_of(tissue.image)).equals(found)


def test_nuclei_move_with_the_image(tissue: Any, found: Any) -> None:
    shift = np.array([1234.56, -78.9])
    affine = np.diag([0.5, 0.5, 1.0])
    affine[:2, 2] = shift
    moved = nuclei.detect(pyramid_of(tissue.image, affine))
    assert centers(moved) - shift == pytest.approx(centers(found), abs=1e-6)
    quarter = np.array([[0, -0.5, 0], [0.5, 0, 0], [0, 0, 1.0]])  # x, y = -row, column
    turned = centers(nuclei.detect(pyramid_of(tissue.image, quarter)))
    assert share_met(np.column_stack([turned[:, 1], -turned[:, 0]]), centers(found), within_um=1) > 0.97
    angle = np.deg2rad(25)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    affine = np.eye(3)
    affine[:2, :2] = 0.5 * rotation
    back = centers(nuclei.detect(pyramid_of(tissue.image, affine))) @ rotation
    assert share_met(back, centers(found), within_um=1) > 0.93


def test_nuclei_stay_within_the_tissue_asked_for(tissue: Any, found: Any) -> None:
    half = nuclei.detect(pyramid_of(tissue.image), tissue=shapely.box(0, 0, 150, 300))
    assert set(map(tuple, centers(half).round(6))) == {tuple(c) for c in centers(found).round(6) if c[0] <= 150}


def test_glass_is_empty() -> None:
    rng = np.random.default_rng(0)
    glass = (241 + rng.normal(0, 1.5, (400, 500, 3))).clip(0, 255).astype(np.uint8)
    frame = nuclei.detect(pyramid_of(glass))
    assert len(frame) == 0
    assert frame.columns.tolist() == ["area_um2", "eccentricity", "haematoxylin", "eosin", "geometry"]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"method": "stardust"}, r"`method` must be one of \['network', 'builtin'.*got 'stardust'"),
        ({"method": 3}, "or a callable"),
        ({"method": "grandqc-tissue"}, "`method` must be one of"),
        ({"min_area_um2": 0}, "`min_area_um2` must be a positive"),
        ({"min_area_um2": 50, "max_area_um2": 20}, "must be below `max_area_um2`"),
        ({"chunk_um": 3}, "`chunk_um` must be at least 64"),
        ({"chunk_um": float("nan")}, "`chunk_um` must be a positive"),
    ],
)
def test_wrong_arguments_say_what_would_work(tissue: Any, keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        nuclei.detect(pyramid_of(tissue.image[:100, :100]), **keywords)


def test_a_coarse_image_is_refused_with_its_resolution(tissue: Any) -> None:
    with pytest.raises(UnsafeResolutionError, match=r"2 um per pixel; nuclei need 1 or finer"):
        nuclei.detect(pyramid_of(tissue.image, mpp=2.0))


def blue(rgb: NDArray[np.uint8], *, mpp: float) -> NDArray[np.int32]:
    """Label dark pixels; a method of a user's own."""
    from scipy import ndimage

    assert rgb.dtype == np.uint8
    assert mpp == 0.5
    return ndimage.label(ndimage.gaussian_filter(rgb[..., 0].astype(float), 1) < 130)[0]


def test_a_callable_is_a_method(tissue: Any) -> None:
    pyramid = pyramid_of(tissue.image)
    wide, narrow = (nuclei.detect(pyramid, method=blue, chunk_um=c) for c in (1000.0, 150.0))
    assert len(wide) > 60
    assert share_met(centers(wide), centers(narrow), within_um=0.01) > 0.98
    with pytest.raises(InputError, match=r"'<lambda>' must return whole numbers >= 0 of shape"):
        nuclei.detect(pyramid, method=lambda rgb, *, mpp: rgb[..., 0] / 2)


@pytest.fixture
def fake_models() -> Any:
    torch = pytest.importorskip("torch")
    lazyslide_models = pytest.importorskip("lazyslide_models")
    from lazyslide_models import MODEL_REGISTRY, ModelTask
    from lazyslide_models.base import SegmentationModel, SegmentationOutput

    seen: list[tuple[int, ...]] = []

    @lazyslide_models.register(key="fake-nuclei", task=ModelTask.segmentation, license="MIT")
    class FakeNuclei(SegmentationModel):
        def __init__(self) -> None:
            self.model = torch.nn.Identity()

        def segment(self, image: Any) -> Any:
            seen.append(tuple(image.shape))
            from scipy import ndimage

            dark = ndimage.gaussian_filter(image[:, 0].numpy(), (0, 1, 1)) < (130 / 255 - 0.485) / 0.229
            return SegmentationOutput(instance_map=torch.from_numpy(np.stack([ndimage.label(d)[0] for d in dark])))

    @lazyslide_models.register(
        key="fake-absent", task=ModelTask.segmentation, is_gated=True, hf_url="https://huggingface.co/someone/fake"
    )
    class FakeAbsent(FakeNuclei):
        def __init__(self) -> None:
            raise OSError("no network")

    @lazyslide_models.register(key="fake-maps", task=ModelTask.segmentation, license="MIT")
    class FakeMaps(FakeNuclei):
        def segment(self, image: Any) -> Any:
            return SegmentationOutput(probability_map=image)

    yield seen
    for key in ("fake-nuclei", "fake-absent", "fake-maps"):
        del MODEL_REGISTRY[key]


def test_models_of_lazyslide_models_are_methods(tissue: Any, fake_models: list[tuple[int, ...]]) -> None:
    pyramid = pyramid_of(tissue.image)
    by_model = nuclei.detect(pyramid, method="fake-nuclei", device="cpu")
    assert max(fake_models) <= (1, 3, 512, 512)
    assert share_met(centers(by_model), centers(nuclei.detect(pyramid, method=blue)), within_um=0.5) > 0.95
    assert {"instanseg", "nulite", "histoplus", "cellpose"} <= set(nuclei.names())
    with pytest.raises(
        InputError, match=r"'fake-absent' could not be had .*huggingface.co/someone/fake; they are gated"
    ):
        nuclei.detect(pyramid, method="fake-absent")
    with pytest.raises(InputError, match="'fake-maps' labels no single nuclei"):
        nuclei.detect(pyramid, method="fake-maps", device="cpu")


def test_eccentricity_is_that_of_the_ellipse() -> None:
    from shapely.affinity import rotate, scale

    circle = shapely.Point(1e5, 2e5).buffer(5, quad_segs=64)
    for stretch in (1.0, 1.5, 3.0):
        ellipse = rotate(scale(circle, stretch, 1), 30)
        got = nuclei.eccentricity(np.array([ellipse, shapely.box(0, 0, 2, 1)]))
        assert got == pytest.approx([np.sqrt(1 - stretch**-2), np.sqrt(0.75)], abs=1e-3)


@pytest.mark.parametrize("value", [0, 128])
def test_fill_beside_the_slide_changes_no_nucleus(tissue: Any, found: Any, value: int) -> None:
    frame = np.full((600, 680, 3), value, np.uint8)
    frame[:, :600] = tissue.image
    padded = nuclei.detect(pyramid_of(frame))
    assert len(padded) == pytest.approx(len(found), rel=0.02)
    assert share_met(centers(padded), centers(found), within_um=1) > 0.97
    assert (padded.centroid.x < 300).all()


def test_pen_on_glass_changes_no_nucleus(tissue: Any, found: Any) -> None:
    frame = np.full((600, 800, 3), tissue.image[:8, :8].mean(axis=(0, 1)), np.uint8)
    frame[:, :600] = tissue.image
    plain = nuclei.detect(pyramid_of(frame))
    frame[40:560, 650:730] = (40, 60, 170)
    marked = nuclei.detect(pyramid_of(frame))
    assert share_met(centers(marked), centers(plain), within_um=1) > 0.97
    assert (marked.centroid.x < 310).all()

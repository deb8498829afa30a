"""Quality control: each fault of a slide is found where it is, and only there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from spatialdata.models import Image2DModel
from spatialdata.transformations import get_transformation

import stpred as st
from stpred import InputError
from stpred._image.quality import folds, sharpness, window_share
from stpred.testing import copy_slide

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stpred.models import Model


@pytest.fixture(scope="module")
def clean() -> SpatialData:
    return st.datasets.toy(size_um=(1200, 1200), mpp=1.0, n_genes=40)


def with_pixels(slide: SpatialData, change: object, *, half: bool = True) -> tuple[SpatialData, np.ndarray]:
    """Return a copy whose left half (or all of it) is changed, and the x of its spots."""
    slide = copy_slide(slide)
    image = slide.images["he"]
    node = image["scale0"].image if hasattr(image, "children") and image.children else image
    pixels = np.moveaxis(np.asarray(node), 0, -1).copy()
    changed = np.s_[:, : pixels.shape[1] // 2 if half else None]
    pixels[changed] = change(pixels[changed])  # type: ignore[operator]
    place = get_transformation(image, to_coordinate_system="um")
    del slide.images["he"]
    slide.images["he"] = Image2DModel.parse(
        np.moveaxis(pixels, -1, 0), dims=("c", "y", "x"), c_coords=["r", "g", "b"], transformations={"um": place}
    )
    return slide, slide.tables["spots_counts"].obsm["spatial"][:, 0]


PEN, BLURRED = (150, 350, 300, 1000), (750, 300, 1050, 900)
"""x0, y0, x1, y1 in micrometres."""


@pytest.fixture(scope="module")
def spoiled(clean: SpatialData) -> SpatialData:
    """The slide with a stroke of a pen over one part, and another part far out of focus."""

    def spoil(pixels: np.ndarray) -> np.ndarray:
        x0, y0, x1, y1 = PEN
        ink = np.array([0.08, 0.4, 0.85]) * pixels[y0:y1, x0:x1]
        pixels[y0:y1, x0:x1] = gaussian_filter(ink, (4, 4, 0))
        x0, y0, x1, y1 = BLURRED
        pixels[y0:y1, x0:x1] = blur(pixels, sigma=9)[y0:y1, x0:x1]
        return pixels

    return with_pixels(clean, spoil, half=False)[0]


@pytest.fixture(scope="module")
def ridge(clean: SpatialData) -> Model:
    return st.tl.train(clean, "ridge", shapes_key="spots", encoder="colour", genes="all")


def inside(xy: np.ndarray, box: tuple[int, ...], *, margin: float) -> np.ndarray:
    """Return which points lie in a box that is larger by a margin."""
    return ((xy > np.array(box[:2]) - margin) & (xy < np.array(box[2:]) + margin)).all(axis=1)


def verdicts(slide: SpatialData, limits: st.QC | None = None) -> np.ndarray:
    st.pp.qc(slide, limits, shapes_key="spots")
    return slide.tables["spots_counts"].obs["qc_reason"].to_numpy()


def blur(pixels: np.ndarray, sigma: float = 2.5) -> np.ndarray:
    return np.stack([gaussian_filter(pixels[..., c].astype(float), sigma) for c in range(3)], axis=-1).round()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (blur, "blurred"),
        (lambda p: np.broadcast_to(p.reshape(-1, 3).max(axis=0), p.shape), "little_tissue"),
        (lambda p: np.broadcast_to(np.array([20, 40, 200], np.uint8), p.shape), "pen"),
        (lambda p: np.zeros_like(p), "fill"),
    ],
    ids=["blur", "glass", "pen", "fill"],
)
def test_a_fault_is_found_where_it_is(clean: SpatialData, change: object, reason: str) -> None:
    slide, x = with_pixels(clean, change)
    found = verdicts(slide)
    left, right = found[x < 520], found[x > 680]
    assert (left != "").mean() > 0.9
    # Ink over half of a slide may as well be fill, and a location whose centre is on fill is on no image.
    assert np.isin(
        left, {"pen": ["pen", "fill", "off_image"], "fill": ["fill", "off_image"]}.get(reason, [reason, ""])
    ).all()
    assert (right == "").all()


def test_folds_have_more_of_both_stains(clean: SpatialData) -> None:
    rng = np.random.default_rng(0)
    density = np.clip(rng.normal(0.25, 0.01, (150, 150, 3)) * [0.8, 1.2, 0.5], 0.02, None)
    tissue = np.ones((150, 150), bool)

    def picture(times: np.ndarray) -> np.ndarray:
        return (255 * 10 ** -(density * times)).round().clip(0, 255).astype(np.uint8)

    double = np.ones((150, 150, 1))
    double[60:75, 20:120] = 2.0
    found = folds(picture(double), tissue, mpp=8.0)
    assert found[62:73, 25:115].mean() > 0.9
    assert found[:50].sum() == found[90:].sum() == 0
    # Nuclei alone: haematoxylin added, no eosin.
    crowded = density.copy()
    crowded[60:75, 20:120] += 0.3 * np.array([0.65, 0.70, 0.29])
    assert folds((255 * 10**-crowded).round().astype(np.uint8), tissue, mpp=8.0).sum() == 0
    assert verdicts(copy_slide(clean)).tolist() == [""] * clean.tables["spots_counts"].n_obs


def test_sharpness_falls_with_blur_and_not_with_stain() -> None:
    rng = np.random.default_rng(0)
    density = gaussian_filter(rng.normal(size=(128, 128)), 0.7) * 0.3 + 6 * gaussian_filter(
        rng.normal(size=(128, 128)), 4
    )
    field = (255 * 10 ** -(0.3 + 0.2 * density[..., None] * [1, 1, 1]).clip(0, 2)).round().astype(np.uint8)
    pale = (255 * 10 ** -(0.3 + 0.1 * density[..., None] * [1, 1, 1]).clip(0, 2)).round().astype(np.uint8)
    values = [sharpness(f) for f in (field, blur(field).astype(np.uint8))]
    assert values[1] < 0.6 * values[0]
    assert sharpness(pale) == pytest.approx(values[0], rel=0.15)
    assert np.isnan(sharpness(np.full((64, 64, 3), 200, np.uint8)))


def test_shares_of_windows_equal_the_loop() -> None:
    rng = np.random.default_rng(0)
    mask, xy = rng.random((30, 40)) < 0.4, rng.uniform(-3, 43, (50, 2))
    padded = np.pad(mask, 20)
    expected = []
    for x, y in xy:
        x0, y0, x1, y1 = (round(v) + 20 for v in (x - 3.5, y - 3.5, x + 3.5, y + 3.5))
        expected.append(padded[y0:y1, x0:x1].mean())
    np.testing.assert_allclose(window_share(mask, xy, size_px=7), expected)


def test_counts_and_genes_are_judged_and_training_leaves_out_what_fails(clean: SpatialData) -> None:
    slide = copy_slide(clean)
    table = slide.tables["spots_counts"]
    X = table.X.tolil()
    X[:3] = 0
    X[:3, 0] = 2
    X[:, 5] = 0
    X[0, 5] = 1
    table.X = X.tocsr()
    limits = st.QC(min_counts=10, min_gene_counts=5, min_gene_share=0.1)
    summary = st.pp.qc(slide, limits, shapes_key="spots")
    assert summary.loc["few_counts", "n"] == 3
    assert summary["share"].sum() == pytest.approx(1.0)
    assert table.obs["qc_reason"].tolist()[:4] == ["few_counts"] * 3 + [""]
    np.testing.assert_array_equal(table.obs["total_counts"], np.asarray(table.X.sum(axis=1)).ravel())
    np.testing.assert_array_equal(table.obs["n_genes_by_counts"], (table.X > 0).sum(axis=1).A1)
    assert (~table.var["qc_pass"]).sum() == 1
    other = st.datasets.toy(size_um=(600, 600), mpp=1.0, n_genes=40, seed=1)
    slides = {"a": slide, "b": other}
    how = {"genes": st.GeneRule("mean", n=40), "shapes_key": "spots", "encoder": "colour"}
    model = st.tl.train(slides, "ridge", qc=limits, **how)
    assert model.record.training["left_out_by_quality"]["a"] == {"few_counts": 3}
    kept = copy_slide(slide)
    kept.tables["spots_counts"] = table[3:].copy()
    same = st.tl.train({"a": kept, "b": other}, "ridge", **(how | {"genes": model.record.genes}))
    assert model.record.training["slides"]["a"]["n_locations"] == table.n_obs - 3
    for mine, theirs in zip(model.state_dict().values(), same.state_dict().values(), strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs.numpy(), atol=1e-6)
    assert "left_out_by_quality" not in same.record.training


def test_a_region_without_counts_gets_columns_of_its_shapes(clean: SpatialData) -> None:
    slide = copy_slide(clean)
    del slide.tables["spots_counts"]
    st.pp.qc(slide, shapes_key="spots")
    assert slide.shapes["spots"]["qc_pass"].all()
    assert "qc_sharpness" in slide.shapes["spots"]
    before = slide.shapes["cells"].columns.tolist()
    assert st.pp.qc(slide, shapes_key="cells", inplace=False).loc["pass", "n"] > 0
    assert slide.shapes["cells"].columns.tolist() == before


def test_bad_limits_are_refused(clean: SpatialData) -> None:
    with pytest.raises(InputError, match=r"`qc` must be a stpred\.QC, or True"):
        st.tl.train(clean, "ridge", qc="strict", shapes_key="spots")
    with pytest.raises(InputError, match=r"QC\.max_pen"):
        st.QC(max_pen=3)
    with pytest.raises(InputError, match=r"No location of slide .* passes `qc`: \{'few_counts': \d+\}"):
        st.tl.train(clean, "ridge", qc=st.QC(min_counts=10**9), shapes_key="spots", encoder="colour")
    with pytest.raises(InputError, match="passes the limits on genes; relax `qc`"):
        st.tl.train(clean, "ridge", qc=st.QC(min_gene_counts=10**9), shapes_key="spots", encoder="colour")


def test_what_is_spoiled_is_not_predicted_but_counted(clean: SpatialData, spoiled: SpatialData, ridge: Model) -> None:
    everywhere = st.tl.predict(spoiled, ridge, shapes_key="spots", inplace=False)
    table = st.tl.predict(spoiled, ridge, shapes_key="spots", qc=True, inplace=False)
    provenance = json.loads(table.uns["stpred"])
    left = provenance["left_out"]
    assert left == {"off_image": 0, "pen": left["pen"], "blurred": left["blurred"]}
    assert table.n_obs + left["pen"] + left["blurred"] == everywhere.n_obs == len(spoiled.shapes["spots"])
    assert provenance["n_predicted"] == table.n_obs
    assert provenance["qc"] == st.QC().to_dict()
    gone = ~everywhere.obs["instance_id"].isin(table.obs["instance_id"]).to_numpy()
    xy = everywhere.obsm["spatial"]
    assert gone[inside(xy, PEN, margin=-20) | inside(xy, BLURRED, margin=-60)].all()
    assert not gone[~inside(xy, PEN, margin=30) & ~inside(xy, BLURRED, margin=30)].any()
    kept = copy_slide(spoiled)
    kept.shapes["kept"] = kept.shapes["spots"][~gone]
    np.testing.assert_array_equal(table.X, st.tl.predict(kept, ridge, shapes_key="kept", inplace=False).X)
    unjudged = json.loads(everywhere.uns["stpred"])
    assert "qc" not in unjudged
    assert unjudged["left_out"] == {"off_image": 0}


def test_a_map_has_no_value_where_the_slide_is_spoiled(spoiled: SpatialData, ridge: Model) -> None:
    slide = copy_slide(spoiled)
    how = {"shapes_key": "cells", "resolution_um": 60, "genes": ridge.record.genes[:2]}
    everywhere = st.tl.predict_map(slide, ridge, **how, inplace=False)
    st.tl.predict_map(slide, ridge, **how, qc=True)
    found, before = (np.asarray(image["scale0"]["image"])[0] for image in (slide.images["cells_ridge_map"], everywhere))
    place = get_transformation(slide.images["cells_ridge_map"]["scale0"]["image"], to_coordinate_system="um")
    y, x = np.indices(found.shape) + 0.5
    xy = np.column_stack([x.ravel(), y.ravel(), np.ones(x.size)]) @ place.to_affine_matrix("xy", "xy").T
    gone, there = np.isnan(found).ravel(), np.isfinite(before).ravel()
    assert gone[inside(xy[:, :2], PEN, margin=-20) | inside(xy[:, :2], BLURRED, margin=-60)].all()
    assert not (gone & there)[~inside(xy[:, :2], PEN, margin=60) & ~inside(xy[:, :2], BLURRED, margin=60)].any()
    left = json.loads(slide.attrs["stpred"]["cells_ridge_map"])["left_out"]
    assert sum(left.values()) == (gone & there).sum()
    assert min(left["pen"], left["blurred"]) > 0


def test_limits_that_no_prediction_can_be_judged_by_are_refused(spoiled: SpatialData, ridge: Model) -> None:
    counts = st.QC(min_counts=5, min_tissue=None, max_pen=None, max_fill=None, max_fold=None, min_sharpness=None)
    for verb, extra in ((st.tl.predict, {}), (st.tl.predict_map, {"resolution_um": 60})):
        with pytest.raises(InputError, match="`qc` has no limit on what the image shows"):
            verb(spoiled, ridge, shapes_key="spots", qc=counts, **extra)
        with pytest.raises(InputError, match=r"`qc` must be a stpred\.QC, or True"):
            verb(spoiled, ridge, shapes_key="spots", qc=0.3, **extra)
    with pytest.raises(InputError, match=r"No location of slide .* passes `qc`: \{.*'blurred': \d+\}"):
        st.tl.predict(spoiled, ridge, shapes_key="spots", qc=st.QC(min_sharpness=9.0))
    with pytest.raises(InputError, match=r"No pixel .* and passes `qc`: \{.*'blurred': \d+\}"):
        st.tl.predict_map(spoiled, ridge, shapes_key="spots", resolution_um=60, qc=st.QC(min_sharpness=9.0))


def test_tissue_without_any_detail_is_out_of_focus(clean: SpatialData) -> None:
    slide, x = with_pixels(clean, lambda p: blur(p, sigma=12))
    found = verdicts(slide)
    assert (found[x < 480] == "blurred").mean() > 0.9
    assert (found[x > 680] == "").all()


def test_one_tile_stands_for_many_near_locations(spoiled: SpatialData) -> None:
    from stpred import data
    from stpred._core.places import Place

    judge = data.ImageQuality.of(data.read_region(spoiled, Place("spots")).pyramid, st.QC())
    points = np.random.default_rng(0).uniform(300, 900, (300, 2))
    own, shared = (judge.reasons(points, dense=dense) for dense in (False, True))
    assert (own == shared).mean() > 0.9
    np.testing.assert_array_equal(judge.reasons(points[:50]), own[:50])

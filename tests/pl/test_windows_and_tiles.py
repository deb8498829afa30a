"""Windows of pictures in micrometres, and pictures of tiles, latents, metagenes and analyses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.transformations import Scale, Sequence, get_transformation, set_transformation

import stpred as st
from stpred import InputError, rasters
from stpred.pl import _canvas
from stpred.pl._analyses.metagenes import Inks
from stpred.pl._canvas import color_limits, window_of
from stpred.testing import build_table
from stpred.tl._trust.attribution import Attribution

WINDOW = (150.0, 100.0, 350.0, 250.0)


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    mpl.use("Agg")
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def slide() -> SpatialData:
    sdata = st.datasets.toy(size_um=(500, 500), n_genes=20)
    frame = rasters.Frame.around((0.0, 0.0, 500.0, 500.0), 10.0)
    down, across = np.mgrid[: frame.shape[0], : frame.shape[1]]
    sdata.images["map"] = rasters.element((across + 100.0 * down)[None].astype(np.float32), ["EPCAM"], frame)
    table = sdata["spots_counts"]
    table.layers["std"] = table.X.toarray().astype(np.float32) + 1
    table.obs["share"] = np.linspace(0, 1, table.n_obs)
    return sdata


def drawn_colours(ax: Any) -> np.ndarray:
    """Colours of the shapes, sorted."""
    found = np.concatenate([np.asarray(c.get_facecolors())[:, :3] for c in ax.collections])
    return found[np.lexsort(found.T)]


def colours_of(values: Any) -> np.ndarray:
    """Colours of values between their own quantiles."""
    low, high = color_limits(np.asarray(values))
    found = mpl.colormaps["viridis"](((np.asarray(values) - low) / (high - low)).clip(0, 1))[:, :3]
    return found[np.lexsort(found.T)]


def inside(slide: SpatialData) -> np.ndarray:
    """Spots of 55 um whose disc touches the window."""
    x, y = slide["spots_counts"].obsm["spatial"].T
    r = slide.shapes["spots"]["radius"].iloc[0]
    return (x + r > WINDOW[0]) & (x - r < WINDOW[2]) & (y + r > WINDOW[1]) & (y - r < WINDOW[3])


@pytest.mark.parametrize("image", [True, False])
def test_a_window_shows_its_locations_alone(slide: SpatialData, image: bool) -> None:
    table = slide["spots_counts"]
    axes = st.pl.spatial(slide, "spots_counts", ["EPCAM", "share"], crop_um=WINDOW, show_image=image)
    rows = inside(slide)
    assert 0 < rows.sum() < table.n_obs
    for ax in axes:
        assert (*ax.get_xlim(), *ax.get_ylim()) == (150, 350, 250, 100)  # y grows downwards
    gene = table[rows, "EPCAM"]
    np.testing.assert_allclose(drawn_colours(axes[1]), colours_of(gene.X.toarray().ravel()), atol=0.01)
    np.testing.assert_allclose(drawn_colours(axes[2]), colours_of(table.obs["share"].to_numpy()[rows]), atol=0.01)
    layer = st.pl.spatial(slide, "spots_counts", "EPCAM", layer="std", crop_um=WINDOW, show_image=image)
    np.testing.assert_allclose(drawn_colours(layer[1]), colours_of(gene.layers["std"].ravel()), atol=0.01)


def test_polygons_have_windows_and_the_image_is_finer(slide: SpatialData) -> None:
    small = st.pl.spatial(slide, "cells_counts", "EPCAM", crop_um=(200, 200, 260, 240))
    whole = st.pl.spatial(slide, "cells_counts", "EPCAM")
    assert 0 < len(drawn_colours(small[1])) < len(drawn_colours(whole[1])) / 10
    pixels = [ax.images[0].get_array().shape[1] for ax in (small[0], whole[0])]
    um = [60, 500]
    assert pixels[0] / um[0] >= 0.99 * pixels[1] / um[1]


def test_what_lies_beyond_the_slide_is_cut_off(slide: SpatialData) -> None:
    ax = st.pl.spatial(slide, "spots_counts", "EPCAM", crop_um=(-1000, 300, 200, 9000))[1]
    assert ax.get_xlim() == (0, 200)
    assert ax.get_ylim()[1] == 300
    assert ax.get_ylim()[0] == pytest.approx(500, abs=1)


@pytest.mark.parametrize(
    ("window", "said"),
    [
        ((100, 100, 100, 200), "is empty: its width is 0 um"),
        ((300, 100, 100, 200), r"is reversed.*you may mean \(100.0, 100.0, 300.0, 200.0\)"),
        ((100, 200, 300, 100), "is reversed"),
        ((900, 900, 1000, 1000), r"lies outside the slide: image 'he' reaches from \(0, 0\) to \(500, 500\) um"),
        ((-50, -50, 0, 0), "lies outside the slide"),
        ((1, 2, 3), "must be four numbers"),
        ("abcd", "must be four numbers"),
        (5, "must be four numbers"),
        ((0, 0, float("nan"), 1), "must be four numbers"),
        ((0, 0, 1, 1), "No shape of 'spots' lies in `crop_um`; they reach from"),
    ],
)
def test_bad_windows_are_named(slide: SpatialData, window: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        st.pl.spatial(slide, "spots_counts", "EPCAM", crop_um=window)


def test_a_window_of_a_raster_has_its_pixels(slide: SpatialData) -> None:
    axes = st.pl.raster(slide, "map", "EPCAM", crop_um=WINDOW)
    values = np.asarray(axes[1].images[0].get_array())
    down, across = np.mgrid[10:25, 15:35]
    np.testing.assert_array_equal(values, across + 100 * down)
    assert axes[1].images[0].get_extent() == [150, 350, 250, 100]
    assert axes[0].images[0].get_extent()[:2] == [150, 350]
    with pytest.raises(InputError, match="raster 'map' reaches from"):
        st.pl.raster(slide, "map", "EPCAM", crop_um=(600, 600, 700, 700))


@pytest.mark.parametrize("frames", ["um alone", "vendor's pixels too", "other name"])
def test_rasterised_locations_lie_where_patches_do(frames: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ``"global"`` means of the slide: it is not the frame that is drawn."""
    sdata = st.datasets.toy(size_um=(400, 400), n_genes=5)
    frame = "slide7" if frames == "other name" else "um"
    for element in (sdata.images["he"], sdata.shapes["spots"]):
        placed = {frame: get_transformation(element, "um")}
        if frames != "um alone":
            placed["global"] = Sequence([placed[frame], Scale([4.0, 4.0], axes=("x", "y"))])
        set_transformation(element, placed, set_all=True)
    before = get_transformation(sdata.shapes["spots"], get_all=True)
    sdata["spots_counts"].obs["one"] = 1.0
    drawn = []
    for least in (10**6, 3):
        monkeypatch.setattr(_canvas, "MIN_RASTERISED", least)
        axes = st.pl.spatial(sdata, "spots_counts", "one", coordinate_system=frame, show_image=False)
        axes[-1].figure.canvas.draw()
        box = axes[-1].get_window_extent()
        pixels = np.asarray(axes[-1].figure.canvas.buffer_rgba())[::-1, :, :3].astype(float)
        part = pixels[int(box.y0) + 2 : int(box.y1) - 2, int(box.x0) + 2 : int(box.x1) - 2]
        drawn.append(np.abs(part - 255).sum(axis=-1) > 60)
    patches, raster = drawn
    assert 0.05 < patches.mean() < 0.5
    assert (patches & raster).sum() > 0.8 * (patches | raster).sum()
    assert get_transformation(sdata.shapes["spots"], get_all=True).keys() == before.keys()


def test_windows_keep_what_overlaps() -> None:
    assert window_of((-5, 2, 50, 60), (0, 0, 40, 70), what="it", frame="um") == (0, 2, 40, 60)


def attributions(slide: SpatialData) -> Attribution:
    rng = np.random.default_rng(0)
    parts = rng.normal(size=(2, 2, 16, 16)).astype(np.float32)
    return Attribution(
        ["EPCAM", "COL1A2"], slide.shapes["spots"].index[[10, 15]], rng.integers(0, 255, (2, 16, 16, 3), np.uint8),
        parts, parts.sum(axis=(2, 3)) + 1, np.ones((2, 2), np.float32), np.zeros((2, 2), np.float32), 4.0, "white",
        slide["spots_counts"].obsm["spatial"][[10, 15]], "log1p_cp10k",
    )  # fmt: skip


def test_attributions_are_in_micrometres_on_one_scale(slide: SpatialData) -> None:
    from matplotlib_scalebar.scalebar import ScaleBar

    found = attributions(slide)
    axes = st.pl.attribution(found, smooth_um=0)
    assert axes.shape == (2, 3)
    x, y = found.centres_um[0]
    for ax in axes[0]:
        assert ax.images[0].get_extent() == pytest.approx([x - 32, x + 32, y + 32, y - 32])
        assert any(isinstance(a, ScaleBar) for a in ax.artists)
    strong = np.quantile(np.abs(found.attributions[:, 0]) * 100 / 16, 0.995)
    for row in (0, 1):  # the same colour is the same value on all tiles
        rgba = axes[row, 1].images[1].get_array()
        density = found.attributions[row, 0] * 100 / 16
        np.testing.assert_allclose(rgba[..., 3], 0.9 * np.sqrt(np.abs(density) / strong).clip(0, 1), rtol=1e-5)
        blue = rgba[..., 2] > rgba[..., 0]
        assert (blue[np.abs(density) > 0.1 * strong] == (density < 0)[np.abs(density) > 0.1 * strong]).all()
    assert f"{found.predicted[0, 0]:.2f} predicted, white 1.00" in axes[0, 1].get_title()


def test_attributions_stand_beside_the_prediction(slide: SpatialData) -> None:
    found = attributions(slide)
    axes = st.pl.attribution(found, genes="EPCAM", sdata=slide, table_key="spots_counts")
    assert [ax.get_title().split("\n")[0] for ax in axes[0, 1:]] == ["EPCAM: predicted", "EPCAM: attribution"]
    x, y = found.centres_um[0]
    frame = axes[0, 1].patches[-1]
    assert (frame.get_x(), frame.get_y(), frame.get_width()) == pytest.approx((x - 32, y - 32, 64))
    over = st.pl.attribution(found, genes=["EPCAM"], sdata=slide, raster_key="map")
    assert len(over[0, 1].images) == 2


def test_attributions_refuse_what_does_not_fit(slide: SpatialData) -> None:
    found = attributions(slide)
    for given, said in (
        ({"genes": "KRT8"}, r"no attributions of \['KRT8'\]"),
        ({"genes": []}, "`genes` is empty"),
        ({"table_key": "spots_counts"}, "pass it as `sdata`"),
        ({"sdata": slide}, "name them with `table_key` or `raster_key`"),
        ({"sdata": slide, "table_key": "spots_counts", "raster_key": "map"}, "not both"),
        ({"sdata": slide, "table_key": "nope"}, "No table named 'nope'"),
        ({"smooth_um": -1}, "`smooth_um` must be a number"),
    ):
        with pytest.raises(InputError, match=said):
            st.pl.attribution(found, **given)
    with pytest.raises(InputError, match="must be what stpred.tl.attribution returns"):
        st.pl.attribution("x")  # type: ignore[arg-type]


def test_tiles_are_drawn_in_rows(slide: SpatialData) -> None:
    xy = slide["spots_counts"].obsm["spatial"]
    frame = pd.DataFrame({
        "cluster": ["0"] * 3 + ["1"] * 2, "kind": "representative", "rank": [1, 2, 3, 1, 2], "distance": 0.5,
        "slide": "slide", "instance": list("abcde"), "x_um": xy[:5, 0], "y_um": xy[:5, 1],
    })  # fmt: skip
    axes = st.pl.tiles(slide, frame, size_um=60, ncols=2)
    assert axes.shape == (3, 2)
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["0\nrepresentative", "", "1\nrepresentative"]
    assert axes[0, 1].get_title() == "b\n0.5"
    with pytest.raises(InputError, match=r"has tiles of \['other'\]"):
        st.pl.tiles(slide, frame.assign(slide="other"))
    with pytest.raises(InputError, match="lacks the columns"):
        st.pl.tiles(slide, frame.drop(columns="x_um"))


def test_latents_are_their_principal_components(slide: SpatialData) -> None:
    rng = np.random.default_rng(0)
    table = slide["spots_counts"]
    x = rng.normal(size=(table.n_obs, 6)) * [9, 5, 1, 1, 1, 1]
    slide.tables["points"] = build_table(
        x.astype(np.float32), shapes_key="spots", instances=pd.Index(table.obs["instance_id"]),
        var=pd.DataFrame(index=[f"latent_{i}" for i in range(6)]), spatial_um=table.obsm["spatial"],
        obs={"kind": np.where(x[:, 0] > 0, "a", "b")},
    )  # fmt: skip
    ax = st.pl.latent(slide, "points", color="kind")
    at = np.asarray(ax.collections[0].get_offsets())
    np.testing.assert_allclose(at.var(axis=0), np.linalg.eigvalsh(np.cov(x.T, ddof=0))[::-1][:2], rtol=1e-3)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["a", "b"]
    with pytest.raises(InputError, match="No column of obs"):
        st.pl.latent(slide, "points", color="nope")
    with pytest.raises(InputError, match="`method` must be one of"):
        st.pl.latent(slide, "points", method="tsne")


def metagene_table(slide: SpatialData, shares: np.ndarray) -> None:
    table = slide["spots_counts"]
    made = build_table(
        shares.astype(np.float32), shapes_key="spots", instances=pd.Index(table.obs["instance_id"]),
        var=pd.DataFrame(index=[f"metagene{k}" for k in range(shares.shape[1])]), spatial_um=table.obsm["spatial"],
        obs={"scale": np.linspace(0.1, 1, len(shares))},
        provenance={"kind": "metagenes", "genes": ["A", "B", "C", "D"]},
    )  # fmt: skip
    made.varm["profile"] = np.eye(shares.shape[1], 4)
    slide.tables["metagenes"] = made


def test_like_mixtures_have_like_colours() -> None:
    rng = np.random.default_rng(0)
    shares = rng.dirichlet([0.3] * 5, size=400)
    inks = Inks.of(shares)
    colours = inks.colours(shares)
    assert colours.min() >= 0.1 - 1e-9
    assert colours.max() <= 1
    order = rng.permutation(400)
    np.testing.assert_allclose(Inks.of(shares[order]).colours(shares), colours, atol=1e-9)
    np.testing.assert_allclose(inks.colours(shares, np.full(400, 0.5)), colours / 2)
    pure = inks.colours(np.eye(5))
    apart = np.linalg.norm(pure[:, None] - pure, axis=2)[np.triu_indices(5, 1)]
    assert (apart > 0.1).sum() >= 9
    two = Inks.of(np.column_stack([np.linspace(0, 1, 9), np.linspace(1, 0, 9)]))  # one component is left
    assert two.axes.shape == (2, 1)
    with pytest.raises(InputError, match="same shares everywhere"):
        Inks.of(np.full((5, 3), 1 / 3))


def test_metagenes_are_one_picture_with_a_legend(slide: SpatialData) -> None:
    n = slide["spots_counts"].n_obs
    shares = np.random.default_rng(1).dirichlet([1, 1, 1], size=n)
    metagene_table(slide, shares)
    panels = st.pl.metagenes(slide, "metagenes", darken=False, n_genes=1)
    assert len(panels) == 2
    assert max(panels[0].get_facecolor()[:3]) < 0.9  # a place without ink is white, and seen
    faces = panels[0].collections[0].get_facecolors()
    np.testing.assert_allclose(faces[:, :3], Inks.of(slide["metagenes"].X.astype(float)).colours(shares), atol=1e-4)
    text = [t.get_text() for t in panels[1].texts]
    assert sorted(t.split(")  ")[1] for t in text) == ["A", "B", "C"]
    two = st.pl.metagenes({"a": slide, "b": slide}, "metagenes")
    assert [ax.get_title() for ax in two[:2]] == ["a", "b"]
    with pytest.raises(InputError, match="holds no metagenes|was not written by stpred"):
        st.pl.metagenes(slide, "spots_counts")


FRAME = pd.DataFrame({
    "group": ["a"] * 4 + ["b"], "gene": list("WXYZW"), "log2_fold_change": [3.0, -2.0, 0.5, 4.0, 1.0],
    "p_adj": [1e-8, 1e-4, 1e-9, 0.5, 0.01],
})  # fmt: skip


def test_a_volcano_colours_what_is_large_and_clear() -> None:
    ax = st.pl.volcano(FRAME, group="a")
    points = ax.collections[0]
    np.testing.assert_allclose(points.get_offsets(), np.column_stack([[3, -2, 0.5, 4], [8, 4, 9, -np.log10(0.5)]]))
    colours = [mpl.colors.to_hex(c) for c in points.get_facecolors()]
    up, down, grey = (mpl.colors.to_hex(c) for c in ("C3", "C0", "0.75"))
    assert colours == [up, down, grey, grey]
    assert {t.get_text() for t in ax.texts} == {"W", "X", "1 up", "1 down"}
    with pytest.raises(InputError, match="holds 2 comparisons"):
        st.pl.volcano(FRAME)
    with pytest.raises(InputError, match="no comparison 'c'"):
        st.pl.volcano(FRAME, group="c")


def test_names_of_a_volcano_lie_inside_and_apart() -> None:
    n = 24
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"gene": [f"G{i}" for i in range(n)], "log2_fold_change": rng.uniform(1.5, 2, n), "group": "a"}
    )
    frame["p_adj"] = np.r_[1e-30, np.full(n - 1, 1e-2)]  # nearly all at the bottom
    ax = st.pl.volcano(frame, n_labels=10)
    names = [t for t in ax.texts if t.get_text().startswith("G")]
    heights = np.sort([t.xyann[1] for t in names])
    assert len(names) == 10
    assert heights[0] > ax.get_ylim()[0]
    assert np.diff(heights).min() > 0.03 * np.ptp(ax.get_ylim())
    assert len({t.xyann[0] for t in names}) == 1
    assert names[0].xyann[0] > frame["log2_fold_change"].max()


def test_a_volcano_of_a_posterior_and_of_scanpy() -> None:
    frame = pd.DataFrame({
        "first": "t", "second": "s", "gene": list("AB"), "log2_fold_change": [2.0, 2.0], "probability": [1.0, 0.9],
        "credible": [True, False],
    })  # fmt: skip
    ax = st.pl.volcano(frame, group=("t", "s"))
    assert ax.get_title() == "t against s"
    np.testing.assert_allclose(np.asarray(ax.collections[0].get_offsets())[:, 1], [40, 1])
    sc = pytest.importorskip("scanpy")
    rng = np.random.default_rng(0)
    kind = np.repeat(["a", "b"], 30)
    table = AnnData(np.log1p(rng.poisson(3, (60, 5)) + 20 * (kind == "a")[:, None] * np.eye(5)[0]))
    table.obs["kind"] = pd.Categorical(kind)
    sc.tl.rank_genes_groups(table, "kind", method="t-test")
    ax = st.pl.volcano(table, group="a")
    assert "0" in {t.get_text() for t in ax.texts}
    with pytest.raises(InputError, match="scanpy compared 2 groups"):
        st.pl.volcano(table)
    with pytest.raises(InputError, match="run scanpy.tl.rank_genes_groups"):
        st.pl.volcano(AnnData(np.ones((2, 2))))


def test_compositions_and_errors_are_drawn() -> None:
    frame = pd.DataFrame({
        "slide": np.repeat(["a", "b"], 4), "distance_um": [-50, -50, 50, 50] * 2, "what": ["T", "B"] * 4,
        "value": [0.2, 0.8, 0.6, 0.4, 0.4, 0.6, 0.8, 0.2],
    })  # fmt: skip
    frame["low"], frame["high"] = frame["value"] - 0.1, frame["value"] + 0.1
    ax = st.pl.composition_by_distance(frame, what="T")
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [0.3, 0.7])
    assert len(st.pl.composition_by_distance(frame, kind="areas").collections) == 2
    with pytest.raises(InputError, match=r"no class \['X'\]"):
        st.pl.composition_by_distance(frame, what=["X"])
    means = frame.copy()
    means.attrs["stpred"] = {"value": "mean"}
    with pytest.raises(InputError, match="Only shares of classes add up"):
        st.pl.composition_by_distance(means, kind="areas")
    bins = pd.DataFrame({"bin": [0, 1], "std": [0.2, 0.6], "rmse": [0.3, 0.9]})
    bins.attrs["stpred"] = {"calibration": {"ratio": 1.5}, "verdict": "overconfident: x", "scale": "counts"}
    ax = st.pl.error_by_std(bins)
    assert ax.get_title() == "overconfident: error / stated = 1.50"
    assert ax.get_xlabel() == "stated standard deviation (counts)"
    np.testing.assert_allclose(ax.lines[1].get_xydata(), [[0.2, 0.3], [0.6, 0.9]])
    assert len(st.pl.error_by_std(pd.concat([bins.assign(slide="a"), bins.assign(slide="b")])).lines) == 3

"""Fold changes between regions, by a model whose metagenes and pixels are set by hand."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import torch
from anndata import AnnData
from scipy.stats import norm
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Identity, Scale, set_transformation
from torch import Tensor, nn

import stpred as st
from stpred import InputError, Posterior, data, encoders
from stpred._core.places import Place
from stpred.data._readers import pixels
from stpred.models.base import Record
from stpred.models.xfuse.model import XFuse
from stpred.models.xfuse.posterior import draw_posterior
from stpred.tl._generative.differential_expression import compare_regions, differential_expression

EDGE_UM, MPP, SQUARE_UM, SHARP = 256, 4, 64, 2.0
DARK = np.array([120.0, 60.0, 140.0])
TILE = st.TileSpec(mpp=8, size_px=16)
GENES = [f"g{i}" for i in range(12)]
PROFILES = np.zeros((2, len(GENES)))
LOG_RATE, LOGIT = np.linspace(-6, -3, len(GENES)), np.linspace(1, -1, len(GENES))
PROFILES[0, :3], PROFILES[1, 3:5] = (2.0, 1.0, 0.3), (1.5, -2.0)


class Picture(nn.Module):
    """The latents are the image itself."""

    def forward(self, image: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [(image, torch.zeros_like(image))]


class First(nn.Module):
    def forward(self, latents: list[Tensor]) -> Tensor:
        return latents[0]


class Known(XFuse):
    """Dark pixels are of the first metagene, bright ones of the second and of twice the scale."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.guide, self.decoder = Picture(), First()  # type: ignore[assignment]

    def mixture(self, h: Tensor) -> tuple[Tensor, Tensor]:
        x = h[:, 0].flatten()
        return torch.stack([-SHARP * x, SHARP * x], dim=1), 1.0 + (x > 0)


def known(kind: type[Known] = Known, *, spread: float = 0.05, **more: Any) -> Known:
    config = XFuse.Config(depth=2, width=4, metagenes=2, max_metagenes=2, epochs=1, **more)
    model = kind(config, n_features=pixels.DESCRIBED, n_genes=len(GENES))
    card = encoders.get("pixels", tile=TILE).card
    model.record = Record("known", GENES, encoder=card.to_dict(), tile=asdict(TILE), target="counts")
    with torch.no_grad():
        model.profile_mean.copy_(torch.from_numpy(PROFILES))
        model.profile_log_std.fill_(math.log(spread))
        model.log_rate.copy_(torch.from_numpy(LOG_RATE))
        model.logit.copy_(torch.from_numpy(LOGIT))
    return model


def polygons(boxes: list[tuple[float, ...]], **columns: Any) -> gpd.GeoDataFrame:
    index = [f"q{i}" for i in range(len(boxes))]
    frame = gpd.GeoDataFrame(columns, geometry=[shapely.box(*b) for b in boxes], index=index)
    element = ShapesModel.parse(frame)
    set_transformation(element, Identity(), "um")
    return element


@pytest.fixture
def slide() -> SpatialData:
    """Dark on the left, bright on the right, under 16 squares that tell sides and rows; the last one has no class.

    Dark is a stain: half a slide of grey would be fill.
    """
    pixels = np.repeat(DARK.astype(np.uint8), (EDGE_UM // MPP) ** 2).reshape(3, EDGE_UM // MPP, EDGE_UM // MPP)
    pixels[:, :, pixels.shape[2] // 2 :] = 200
    image = Image2DModel.parse(pixels, dims=("c", "y", "x"))
    set_transformation(image, Scale([MPP, MPP], axes=("x", "y")), "um")
    at = [(x, y) for y in range(0, EDGE_UM, SQUARE_UM) for x in range(0, EDGE_UM, SQUARE_UM)]
    squares = polygons(
        [(x, y, x + SQUARE_UM, y + SQUARE_UM) for x, y in at],
        side=["left" if x < EDGE_UM / 2 else "right" for x, _ in at],
        row=[f"row{y // SQUARE_UM}" for _, y in at[:-1]] + [None],
    )
    table = AnnData(np.zeros((15, 1), np.float32), obs=pd.DataFrame(
        {"region": pd.Categorical(["squares"] * 15), "id": squares.index[:15][::-1],
         "type": squares["side"].iloc[:15][::-1].str.upper().to_numpy()}, index=[str(i) for i in range(15)],
    ))  # fmt: skip
    table = TableModel.parse(table, region="squares", region_key="region", instance_key="id")
    halves = polygons([(0, 0, EDGE_UM / 2, EDGE_UM), (EDGE_UM / 2, 0, EDGE_UM, EDGE_UM)])
    return SpatialData(images={"he": image}, shapes={"squares": squares, "halves": halves}, tables={"cells": table})


def of(frame: pd.DataFrame, column: str = "log2_fold_change") -> np.ndarray:
    """Return one pair's values in the order of the genes."""
    return frame.set_index("gene").loc[GENES, column].to_numpy()


def dark_share(slide: SpatialData) -> tuple[float, float]:
    """Return the first metagene's share of dark and of bright pixels, by what the slide is scaled to."""
    reader = data.PixelReader.of(data.read_region(slide, Place(shapes_key="halves")), encoders.get("pixels", tile=TILE))
    x = reader.canvas.scaled(np.array([DARK, [200.0] * 3]))[:, 0]
    dark, bright = (1 / (1 + np.exp(2 * SHARP * x))).tolist()
    return dark, bright


def test_known_fold_changes_come_back(slide: SpatialData) -> None:
    # Away from the borders, where pixels are mixed.
    slide.shapes["inner"] = polygons([(32, 32, 96, 224), (160, 64, 224, 96)])
    found = differential_expression(slide, known(spread=1e-4), "inner")
    rate = np.exp(LOG_RATE + LOGIT)
    left, right = (rate * (a * np.exp(PROFILES[0]) + (1 - a) * np.exp(PROFILES[1])) for a in dark_share(slide))
    left, right = left / left.sum(), right / right.sum()
    np.testing.assert_allclose(of(found), np.log2(left / right), atol=1e-3)
    np.testing.assert_allclose(of(found, "mean_first"), 1e4 * left, rtol=1e-3)  # though one side has twice the RNA,
    np.testing.assert_allclose(of(found, "mean_second"), 1e4 * right, rtol=1e-3)  # and the other is larger
    assert found[["first", "second"]].drop_duplicates().to_numpy().tolist() == [["q0", "q1"]]
    assert found["inverse_cv"].is_monotonic_decreasing
    assert found.attrs["stpred"]["n_samples"] == 50
    assert list(slide.tables) == ["cells"]


def test_posterior_spread_is_that_of_the_profiles(slide: SpatialData) -> None:
    found = differential_expression(slide, known(spread=0.1), "halves", posterior=Posterior(200))
    dark, bright = dark_share(slide)
    # Of a gene of no effect and hardly any share: both metagenes' draws, as far as they are here more than there.
    assert of(found, "std")[5] == pytest.approx(0.1 * math.sqrt(2) * (dark - bright) / math.log(2), rel=0.15)
    raised = found.set_index("gene").loc[["g0", "g1", "g3", "g4"]]
    assert raised["credible"].all()
    assert (raised["probability"] > 0.999).all()


def test_swapped_pair_flips_every_sign_exactly(slide: SpatialData) -> None:
    model = known()
    one, other = (
        differential_expression(slide, model, "squares", groupby="side", pairs=[p], posterior=Posterior(7))
        for p in (("left", "right"), ("right", "left"))
    )
    np.testing.assert_array_equal(of(one), -of(other))
    np.testing.assert_array_equal(of(one, "lower"), -of(other, "upper"))
    for column in ("std", "inverse_cv", "probability", "credible"):
        np.testing.assert_array_equal(of(one, column), of(other, column))
    np.testing.assert_array_equal(of(one, "mean_first"), of(other, "mean_second"))


def test_slow_reference(slide: SpatialData) -> None:
    """Every draw, class, gene and statistic by itself."""
    model, n = known(), 6
    region = data.read_region(slide, Place(shapes_key="squares"))
    reader = data.PixelReader.of(region, encoders.get("pixels", tile=TILE))
    classes = slide.shapes["squares"]["row"]
    changes = np.zeros((n, len(GENES)))
    readings = {q: next(iter(reader.blocks(region.take(np.array([i])))))[1] for i, q in enumerate(region.instances)}
    for k in range(n):
        shares = {}
        for name in ("row1", "row3"):
            total = np.zeros(len(GENES))
            for q, batch in readings.items():
                if classes[q] == name:
                    reading = draw_posterior(model, batch, Posterior(n_samples=n, seed=3))
                    weights, profiles = reading.sums[k, 0].double().numpy(), reading.profiles[k].double().numpy()
                    for g in range(len(GENES)):
                        for m in range(2):
                            total[g] += weights[m] * math.exp(
                                profiles[m, g] + float(reading.base[k, g]) + float(reading.logits[k, g])
                            )
            shares[name] = total / total.sum()
        changes[k] = np.log2(shares["row1"]) - np.log2(shares["row3"])
    found = differential_expression(
        slide,
        model,
        "squares",
        groupby="row",
        pairs=[("row1", "row3")],
        posterior=Posterior(n, seed=3),
        genes=GENES[::-1],
    )
    mean, std = changes.mean(axis=0), changes.std(axis=0, ddof=1)
    np.testing.assert_allclose(of(found), mean, atol=1e-6)
    np.testing.assert_allclose(of(found, "std"), std, atol=1e-6)
    np.testing.assert_allclose(of(found, "lower"), mean - norm.ppf(0.975) * std, atol=1e-5)
    np.testing.assert_array_equal(of(found, "credible"), np.abs(mean) > norm.ppf(0.975) * std)
    agree = (np.sign(changes) == np.sign(mean)).mean(axis=0)
    expected = np.where(agree == 1, norm.cdf(np.abs(mean) / std), agree)
    np.testing.assert_allclose(of(found, "probability"), expected, atol=1e-3)


def test_covariates_change_the_background_unless_left_out(slide: SpatialData) -> None:
    model = known(spread=1e-4, covariates={"s1": {"section": "a"}, "s2": {"section": "b"}})
    with torch.no_grad():
        model.effect_log_std.fill_(-10)
        model.effect_mean[0, 0, 5] = 3.0
    found = {
        name: of(differential_expression(slide, model, "halves", posterior=posterior), "mean_first")
        for name, posterior in {
            "a": Posterior(4, covariates={"section": "a"}),
            "b": Posterior(4, covariates={"section": "b"}),
            "none": Posterior(4, normalize_covariates=True),
        }.items()
    }
    np.testing.assert_allclose(found["b"], found["none"], rtol=1e-2)
    odds = {name: share[5] / (1e4 - share[5]) for name, share in found.items()}
    assert odds["a"] / odds["none"] == pytest.approx(math.exp(3), rel=1e-2)


@pytest.mark.parametrize("at_once", [2**16, 3])
def test_classes_are_as_the_polygons_around_them(
    slide: SpatialData, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr("stpred.data._readers.pixels.MAX_TARGETS", at_once)
    model = known()
    whole = differential_expression(slide, model, "halves", posterior=Posterior(5))
    parts = differential_expression(slide, model, "squares", groupby="side", posterior=Posterior(5))
    for column in ("log2_fold_change", "std", "probability", "mean_first"):
        np.testing.assert_allclose(of(whole, column), of(parts, column), rtol=1e-5, atol=1e-6)


def test_all_others_are_the_other_class_or_all_other_shapes(slide: SpatialData) -> None:
    model = known()
    how: dict[str, Any] = {"groupby": "side", "posterior": Posterior(4)}
    plain = differential_expression(slide, model, "squares", pairs=[("left", "right")], **how)
    rest = differential_expression(slide, model, "squares", pairs=[["left", None]], **how)
    np.testing.assert_allclose(of(plain), of(rest), atol=1e-9)
    assert set(rest["second"]) == {"rest"}
    # Of three classes: what is not the first, whether it is named in another pair or not. Missing ones are no others.
    rows = slide.shapes["squares"]["row"]
    others = rows.map(lambda row: row and "b", na_action="ignore")
    slide.shapes["squares"]["first"] = rows.map({"row0": "a"}).where(rows == "row0", others)
    two = differential_expression(slide, model, "squares", groupby="first", posterior=Posterior(4))
    several = differential_expression(
        slide,
        model,
        "squares",
        groupby="row",
        pairs=[("row0", None), ("row1", "row0"), ("row1", None)],
        posterior=Posterior(4),
    )
    np.testing.assert_allclose(of(two), of(several.iloc[: len(GENES)]), atol=1e-5)
    assert several["second"].iloc[[0, len(GENES), -1]].tolist() == ["rest", "row0", "rest"]


def test_column_of_the_table_that_annotates_the_shapes(slide: SpatialData) -> None:
    model = known()
    table = differential_expression(
        slide, model, "squares", groupby="type", pairs=[("LEFT", "RIGHT")], posterior=Posterior(3)
    )
    squares = slide.shapes["squares"]
    squares["side"] = squares["side"].where(np.arange(16) < 15)  # the table lacks the last one
    own = differential_expression(slide, model, "squares", groupby="side", posterior=Posterior(3))
    np.testing.assert_array_equal(of(table), of(own))


def test_every_pair_of_shapes_by_name(slide: SpatialData) -> None:
    slide.shapes["squares"] = slide.shapes["squares"].set_axis(np.arange(10, 26))
    del slide.tables["cells"]
    with pytest.raises(InputError, match="120 pairs; name those"):
        differential_expression(slide, known(), "squares")
    found = differential_expression(
        slide, known(), "squares", pairs=[(10, "25"), (11, 10), (10, 25)], posterior=Posterior(2)
    )
    assert found[["first", "second"]].drop_duplicates().to_numpy().tolist() == [[10, 25], [11, 10]]
    assert np.abs(of(found.iloc[len(GENES) :])).max() < 1e-5  # both are dark
    assert not found.iloc[len(GENES) :]["credible"].any()
    slide.shapes["squares"]["class"] = [1.0, 2.0, 3.0, np.nan] * 4
    found = differential_expression(
        slide, known(), "squares", groupby="class", genes=["g3", "g1"], posterior=Posterior(2)
    )
    assert found[["first", "second"]].drop_duplicates().to_numpy().tolist() == [[1.0, 2.0], [1.0, 3.0], [2.0, 3.0]]
    assert found["gene"].iloc[:2].isin(["g1", "g3"]).all()


def hand_made(profiles: list[list[float]], *, zero: int = 0) -> Any:
    """Return draws of profiles of metagene 0 (metagene 1 raises nothing), with some genes that are nowhere."""
    from stpred.models.xfuse.posterior import Draws

    first = torch.tensor(profiles)
    n, genes = first.shape
    drawn = torch.stack([first, torch.zeros(n, genes)], dim=1)
    base = torch.zeros(n, genes)
    if zero:
        base[:, -zero:] = -torch.inf
    none = torch.zeros(n, 2, 2)
    return Draws(none, torch.ones(2), drawn, base, torch.zeros(n, genes), Posterior(n_samples=n))


def test_probability_is_of_the_sign() -> None:
    draws = hand_made([[1.0, -1.0], [2.0, -2.0], [3.0, -3.0], [-0.5, 0.5]])
    sums = np.tile(np.diag([5.0, 0.1]), (4, 1, 1))
    at = {"first": np.array([0, 1]), "second": np.array([1, 0])}
    found = compare_regions(sums, draws, **at)
    np.testing.assert_allclose(found["probability"], 0.75)
    assert not found["credible"].any()
    draws = hand_made([[1.0, -1.0], [1.1, -1.1], [0.9, -0.9], [1.0, -1.0]])
    found = compare_regions(sums, draws, **at)
    np.testing.assert_allclose(
        found["probability"], norm.cdf(np.abs(found["log2_fold_change"]) / found["std"]), rtol=1e-9
    )
    assert found["credible"].all()
    # A gene that does not change in one of four draws, and rises in three: half of that draw counts.
    found = compare_regions(sums, hand_made([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [0.0, 0.0]]), **at)
    np.testing.assert_allclose(found["probability"], 0.875)


def test_genes_that_are_nowhere_and_regions_that_are_alike() -> None:
    draws = hand_made([[1.0, -1.0, 0.5, 3.0], [2.0, -2.0, 0.1, -1.0]], zero=2)
    sums = np.array([[[3e6, 0.0], [0.0, 1e-4], [3e3, 0.0]]] * 2)
    found = compare_regions(sums, draws, first=np.array([0, 0]), second=np.array([1, 2]))
    assert all(np.isfinite(v).all() for v in found.values())
    np.testing.assert_array_equal(found["log2_fold_change"][:, 2:], 0)  # however large the regions are
    np.testing.assert_array_equal(found["probability"][:, 2:], 0.5)
    assert found["inverse_cv"][1].max() < 1e-6
    assert not found["credible"][1].any()


def test_one_metagene_tells_no_regions_apart(slide: SpatialData) -> None:
    class Single(Known):
        def mixture(self, h: Tensor) -> tuple[Tensor, Tensor]:
            logits, scale = super().mixture(h)
            return logits[:, :1], scale

    model = known(Single)
    model.active[1] = False
    found = differential_expression(slide, model, "halves", posterior=Posterior(3))
    assert np.abs(of(found)).max() < 1e-6
    assert not found["credible"].any()
    assert np.isfinite(found.select_dtypes("number").to_numpy()).all()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"shapes_key": "nothing"}, "No shapes element named 'nothing'"),
        ({"groupby": "kind"}, r"has a column 'kind' \(`groupby`\); available: \['side', 'row'.*'type'"),
        ({"groupby": "geometry"}, "has a column 'geometry'"),
        ({"groupby": "side", "pairs": [("left", "top")]}, r"no region 'top'.*it has \['left', 'right'\]"),
        ({"groupby": "side", "pairs": [("left", "left")]}, "compares region 'left' with itself"),
        ({"groupby": "side", "pairs": [(None, "left")]}, "swap the two"),
        ({"groupby": "side", "pairs": "left"}, "must be a list of pairs"),
        ({"groupby": "side", "pairs": ["ab"]}, "must hold pairs such as"),
        ({"groupby": "side", "pairs": []}, "`pairs` is empty"),
        ({"groupby": "one"}, r"nothing to compare: column 'one' of 'squares' has 1 region \['x'\]"),
        ({"groupby": "none"}, "has 0 regions; at least two"),
        ({"groupby": "side", "genes": ["g0", "XYZ"]}, "does not predict"),
        ({"groupby": "side", "posterior": Posterior(1)}, "at least 2: one draw"),
        (
            {"groupby": "side", "posterior": Posterior(2, normalize_size=True)},
            "leave normalize_scale and",
        ),
        ({"groupby": "side", "posterior": 5}, "`posterior` must be a stpred.Posterior"),
        ({"groupby": "side", "posterior": Posterior(2, covariates={"age": "old"})}, "no covariates"),
        ({"groupby": "side", "image_key": "other"}, "No image named 'other'"),
    ],
)
def test_bad_input(slide: SpatialData, given: dict[str, Any], said: str) -> None:
    slide.shapes["squares"]["one"] = ["x"] + [None] * 15
    slide.shapes["squares"]["none"] = None
    with pytest.raises(InputError, match=said):
        differential_expression(slide, known(), **({"shapes_key": "squares"} | given))


def test_column_in_two_tables_is_refused(slide: SpatialData) -> None:
    slide.tables["more"] = slide.tables["cells"].copy()
    with pytest.raises(InputError, match="Several tables of 'squares' have a column 'type'"):
        differential_expression(slide, known(), "squares", groupby="type")


def test_models_without_a_posterior_are_refused(slide: SpatialData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(XFuse.Config, "generative", False)
    with pytest.raises(InputError, match="no posterior to draw from"):
        differential_expression(slide, known(), "halves")


def test_regions_off_the_image_or_without_a_pixel(slide: SpatialData) -> None:
    boxes = [tuple(b) for b in shapely.bounds(np.asarray(slide.shapes["squares"].geometry))]
    # Off the image; and between two rows of the finest points that are looked at.
    boxes += [(900, 900, 964, 964), (70, 2.9, 130, 2.95)]
    slide.shapes["odd"] = polygons(boxes, kind=["a", "b"] * 8 + ["off", "thin"])
    for name, said in (("off", "'off'.* lie off image 'he'"), ("thin", "'thin'.* hold no pixel of the model's 8 um")):
        with pytest.raises(InputError, match=said):
            differential_expression(slide, known(), "odd", groupby="kind", pairs=[("a", name)], posterior=Posterior(2))
    found = differential_expression(slide, known(), "odd", groupby="kind", pairs=[("a", "b")], posterior=Posterior(2))
    assert len(found) == len(GENES)
    slide.shapes["odd"]["kind"] = ["a"] * 17 + ["thin"]
    with pytest.raises(InputError, match="no pixel in any region .* other than 'a'"):
        differential_expression(slide, known(), "odd", groupby="kind", pairs=[("a", None)], posterior=Posterior(2))

"""XFuse from slides to tables: training, resuming, reading out, partial slides, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import shapely
import torch
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, TableModel
from spatialdata.transformations import Identity

import stpred as st
from stpred import InputError
from stpred._core.places import Place
from stpred.models.xfuse.model import XFuse
from stpred.training import _loop

TILE = st.TileSpec(mpp=16.0, size_px=24)
HOW: dict[str, Any] = {"tile": TILE, "shapes_key": "spots"}


def config(**changes: Any) -> Any:
    return XFuse.Config(**({"depth": 2, "width": 4, "metagenes": 3, "epochs": 2, "batch_size": 2} | changes))


def genes_of(slide: SpatialData) -> list[str]:
    return list(slide.tables["spots_counts"].var_names)


@pytest.fixture(scope="module")
def slides() -> dict[str, SpatialData]:
    return {f"s{k}": st.datasets.toy_subtypes(seed=k, size_um=800, n_genes=30) for k in range(2)}


@pytest.fixture(scope="module")
def model(slides: dict[str, SpatialData]) -> Any:
    return st.tl.train(slides, config(), genes=genes_of(slides["s0"]), **HOW)


def changed(
    slide: SpatialData, *, rows: Any = slice(None), genes: Any = slice(None), counts: Any = None
) -> SpatialData:
    table = slide.tables["spots_counts"][rows, genes].copy()
    if counts is not None:
        table.X = counts(table.X)
    for key in list(table.varm):
        del table.varm[key]
    table.uns.pop("spatialdata_attrs", None)
    table = TableModel.parse(table, region="spots", region_key="region", instance_key="instance_id")
    return SpatialData(images=dict(slide.images), shapes=dict(slide.shapes), tables={"spots_counts": table})


def placed(frame: gpd.GeoDataFrame) -> Any:
    fresh = gpd.GeoDataFrame({c: frame[c].to_numpy() for c in frame}, geometry="geometry", index=list(frame.index))
    return ShapesModel.parse(fresh, transformations={"um": Identity()})


def with_shapes(slide: SpatialData, shapes: Any, name: str = "other") -> SpatialData:
    element = placed(shapes if isinstance(shapes, gpd.GeoDataFrame) else gpd.GeoDataFrame(geometry=shapes))
    return SpatialData(images=dict(slide.images), shapes={**dict(slide.shapes), name: element})


def test_table_has_counts_with_the_posteriors_deviation(slides: dict[str, SpatialData], model: Any) -> None:
    table = st.tl.predict(slides["s0"], model, shapes_key="spots", posterior=st.Posterior(4), inplace=False)
    facts = json.loads(table.uns["stpred"])
    assert facts["output_scale"] == "counts"
    assert facts["readout"]["n_samples"] == 4
    assert facts["support_um"] == 16
    assert (table.X > 0).all()
    assert (table.layers["std"] > 0).all()
    assert table.var["cv_pearson"].isna().all()
    assert not table.var["trusted"].any()
    with pytest.raises(InputError, match="30 genes"):
        st.tl.predict(slides["s0"], model, genes=["NONE"])


def test_saved_and_loaded_it_predicts_the_same(slides: dict[str, SpatialData], model: Any, tmp_path: Path) -> None:
    loaded = st.models.load(st.models.save(model, tmp_path / "m"))
    tables = [st.tl.predict(slides["s1"], m, shapes_key="spots", inplace=False) for m in (model, loaded)]
    np.testing.assert_array_equal(tables[0].X, tables[1].X)


def test_several_of_them_make_an_ensemble(slides: dict[str, SpatialData], tmp_path: Path) -> None:
    genes = genes_of(slides["s0"])[:4]
    both = st.tl.train(slides, st.models.Ensemble.Config(config(epochs=1), 2), genes=genes, **HOW)
    loaded = st.models.load(st.models.save(both, tmp_path / "e"))
    tables = [st.tl.predict(slides["s1"], m, shapes_key="spots", inplace=False) for m in (both, loaded)]
    np.testing.assert_array_equal(tables[0].X, tables[1].X)
    assert (tables[0].layers["std"] > 0).all()


def test_any_region_sums_its_pixels(slides: dict[str, SpatialData], model: Any) -> None:
    whole = shapely.box(160, 160, 480, 480)
    quarters = [shapely.box(x, y, x + 160, y + 160) for x in (160, 320) for y in (160, 320)]
    cells = [shapely.Point(300, 300).buffer(5)]
    slide = with_shapes(slides["s0"], [whole, *quarters, *cells])
    how: dict[str, Any] = {"shapes_key": "other", "inplace": False}
    table = st.tl.predict(slide, model, posterior=st.Posterior(3), **how)
    np.testing.assert_allclose(table.X[0], table.X[1:5].sum(axis=0), rtol=1e-4)
    assert (0 < table.X[5]).all()
    assert (table.X[5] < table.X[1]).all()
    density = st.tl.predict(slide, model, posterior=st.Posterior(3, normalize_size=True), **how)
    np.testing.assert_allclose(density.X[0], table.X[0] / 400, rtol=1e-4)
    flat = st.tl.predict(slide, model, posterior=st.Posterior(3, normalize_scale=True), **how)
    assert json.loads(flat.uns["stpred"])["output_scale"] == "relative"
    assert not np.allclose(flat.X[0], table.X[0])


def test_map_adds_up_to_the_table(slides: dict[str, SpatialData], model: Any) -> None:
    slide = with_shapes(slides["s0"], [shapely.box(160, 160, 480, 480)])
    table = st.tl.predict(slide, model, shapes_key="other", inplace=False)
    image = st.tl.predict_map(slide, model, shapes_key="other", inplace=False)
    values = np.asarray(image["scale0"].image.data)
    np.testing.assert_allclose(np.nansum(values, axis=(1, 2)), table.X[0], rtol=1e-3)
    kept = st.tl.predict(slides["s0"], model, shapes_key="spots", preserve="spots", inplace=False)
    assert kept.shape == (25, 30)


def test_asking_for_some_gives_what_asking_for_all_gives(slides: dict[str, SpatialData], model: Any) -> None:
    slide = slides["s0"]
    every = st.tl.predict(slide, model, shapes_key="spots", inplace=False)
    few = gpd.GeoDataFrame(slide.shapes["spots"].iloc[[3, 17]])
    table = st.tl.predict(with_shapes(slide, few, "few"), model, shapes_key="few", inplace=False)
    np.testing.assert_allclose(table.X, every.X[[3, 17]], rtol=1e-4)
    one = st.tl.predict(slide, model, genes=["TYPE1_2"], shapes_key="spots", inplace=False)
    np.testing.assert_allclose(one.X[:, 0], every[:, "TYPE1_2"].X[:, 0], rtol=1e-5)


def state(model: Any) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["drop_and_split", "extra"])
def test_training_goes_on_bit_for_bit_after_a_kill(
    strategy: str, slides: dict[str, SpatialData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_loop, "SAVE_EVERY_S", 0.0)
    settings = config(epochs=5, purge_interval=2, strategy=strategy, max_metagenes=6)
    how = {"genes": genes_of(slides["s0"]), "seed": 3, **HOW}
    straight = state(st.tl.train(slides, settings, **how))
    plain, count = XFuse.loss, []

    def killed(self: Any, output: Any, sample: Any) -> Any:
        count.append(1)
        if len(count) == 16:
            raise KeyboardInterrupt
        return plain(self, output, sample)

    monkeypatch.setattr(XFuse, "loss", killed)
    with pytest.raises(KeyboardInterrupt):
        with st.settings.override(checkpoint_dir=tmp_path / "kept"):
            st.tl.train(slides, settings, **how)
    monkeypatch.setattr(XFuse, "loss", plain)
    assert len(list((tmp_path / "kept").glob("*.safetensors"))) == 1
    with st.settings.override(checkpoint_dir=tmp_path / "kept"):
        resumed = state(st.tl.train(slides, settings, **how))
    assert not (tmp_path / "kept").exists()
    for name, value in straight.items():
        assert torch.equal(value, resumed[name]), name


def test_a_term_that_is_not_finite_ends_training_and_keeps_the_last_state(
    slides: dict[str, SpatialData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_loop, "SAVE_EVERY_S", 0.0)
    plain, count = XFuse._expression, []

    def broken(self: Any, *given: Any) -> Any:
        count.append(1)
        found = plain(self, *given)
        return (found[0] * float("nan") if len(count) > 12 else found[0], *found[1:])

    monkeypatch.setattr(XFuse, "_expression", broken)
    with pytest.raises(InputError, match="'expression' of the evidence lower bound became nan, in a step of patches"):
        with st.settings.override(checkpoint_dir=tmp_path / "kept"):
            st.tl.train(slides, config(epochs=8), genes=genes_of(slides["s0"]), **HOW)
    (file,) = (tmp_path / "kept").glob("*.safetensors")
    from safetensors.torch import load_file

    assert all(torch.isfinite(v).all() for v in load_file(file).values() if v.is_floating_point())


def test_sections_may_lack_genes_or_counts(slides: dict[str, SpatialData]) -> None:
    genes = genes_of(slides["s0"])
    other = changed(slides["s1"], genes=genes[5:])
    image = SpatialData(images=dict(st.datasets.toy_subtypes(seed=9, size_um=600).images))
    cohort = {"full": slides["s0"], "part": other, "image": image}
    trained = st.tl.train(cohort, config(), genes=genes, **HOW)
    assert trained.record.genes == genes
    assert set(trained.record.training["slides"]) == set(cohort)
    table = st.tl.predict(other, trained, shapes_key="spots", inplace=False)
    assert np.isfinite(table.X).all()
    with pytest.raises(InputError, match="No slide measured the genes"):
        st.tl.train(cohort, config(), genes=[*genes, "NONE"], **HOW)
    with pytest.raises(InputError, match="No training slide has counts"):
        st.tl.train({"image": image}, config(), **HOW)


def test_what_a_slide_lacks_is_not_taken_for_zero(slides: dict[str, SpatialData]) -> None:
    genes = genes_of(slides["s0"])
    zeroed = changed(slides["s1"], counts=lambda x: x.multiply(np.arange(len(genes)) != 0).tocsr())
    lacking = changed(slides["s1"], genes=genes[1:])
    found = []
    for other in (zeroed, lacking):
        trained = st.tl.train({"a": slides["s0"], "b": other}, config(epochs=1), genes=genes, **HOW)
        found.append(float((trained.log_rate + trained.logit).detach()[0]))
    assert found[1] > found[0] + 0.3  # half of the measurements are zero, or there is no measurement


def test_gene_without_counts_and_spot_without_counts(slides: dict[str, SpatialData]) -> None:
    def emptied(x: Any) -> Any:
        dense = x.toarray()
        dense[:, 2] = 0
        dense[7] = 0
        return type(x)(dense)

    slide = changed(slides["s0"], counts=emptied)
    trained = st.tl.train(slide, config(), genes=genes_of(slide), **HOW)
    table = st.tl.predict(slide, trained, shapes_key="spots", inplace=False)
    assert np.isfinite(table.X).all()
    assert table.n_obs == 25
    assert table.X[:, 2].mean() < 0.2 * table.X.mean()


def test_covariates(slides: dict[str, SpatialData], model: Any) -> None:
    assert model.config.covariates == {"s0": {"section": "s0"}, "s1": {"section": "s1"}}
    own: dict[str, Any] = {"shapes_key": "spots", "inplace": False}
    with torch.no_grad():
        model.effect_mean[0, 1] += 1.0  # of the second section
    try:
        plain = st.tl.predict(slides["s1"], model, **own)
        named = st.tl.predict(slides["s1"], model, posterior=st.Posterior(covariates={"section": "s1"}), **own)
        first = st.tl.predict(slides["s1"], model, posterior=st.Posterior(covariates={"section": "s0"}), **own)
        none = st.tl.predict(slides["s1"], model, posterior=st.Posterior(normalize_covariates=True), **own)
        unknown = st.tl.predict(slides["s1"], model, posterior=st.Posterior(covariates={"section": None}), **own)
    finally:
        with torch.no_grad():
            model.effect_mean[0, 1] -= 1.0
    np.testing.assert_array_equal(plain.X, named.X)  # the slide is known by its pixels
    assert np.median(plain.X / first.X) == pytest.approx(np.e, rel=0.1)
    assert np.median(none.X / first.X) == pytest.approx(1, rel=0.1)
    assert np.median(unknown.X / first.X) == pytest.approx((1 + np.e) / 2, rel=0.1)
    assert (unknown.layers["std"] > plain.layers["std"]).mean() > 0.9
    with pytest.raises(InputError, match="had no level 'new' in training; it had"):
        st.tl.predict(slides["s1"], model, posterior=st.Posterior(covariates={"section": "new"}), **own)
    with pytest.raises(InputError, match=r"no covariates \['donor'\]; it has \['section'\]"):
        st.tl.predict(slides["s1"], model, posterior=st.Posterior(covariates={"donor": "a"}), **own)
    with pytest.raises(InputError, match="lacks the slides"):
        st.tl.train(slides, config(covariates={"s0": {"patient": "a"}}), **HOW)
    unknown_level = config(covariates={"s0": {"patient": "a"}, "s1": {"patient": None}}, epochs=1)
    st.tl.train(slides, unknown_level, genes=genes_of(slides["s0"]), **HOW)


def test_overlapping_spots(slides: dict[str, SpatialData], caplog: pytest.LogCaptureFixture) -> None:
    slide = slides["s0"]
    for factor, refused in ((1.6, False), (4.0, True)):
        wide = slide.shapes["spots"].copy()
        wide["radius"] *= factor
        overlapping = changed(slide)
        overlapping.shapes["spots"] = placed(wide)
        if refused:
            with pytest.raises(InputError, match="overlap: .* of their area lies in another one"):
                st.tl.train(overlapping, config(epochs=1), **HOW)
        else:
            caplog.clear()
            st.tl.train(overlapping, config(epochs=1), **HOW)
            assert "a pixel counts for the nearest centre" in caplog.text


def test_spots_off_the_image_or_below_a_pixel_are_told(slides: dict[str, SpatialData]) -> None:
    shifted = changed(slides["s0"])
    moved = slides["s0"].shapes["spots"].copy()
    moved["geometry"] = moved.geometry.translate(5000, 0)
    shifted.shapes["spots"] = placed(moved)
    with pytest.raises(InputError, match="outside image"):
        st.tl.train(shifted, config(), **HOW)
    small = changed(slides["s0"])
    tiny = slides["s0"].shapes["spots"].copy()
    tiny["radius"] = 3.0
    small.shapes["spots"] = placed(tiny)
    with pytest.raises(InputError, match="less than a pixel of 16 um"):
        st.tl.train(small, config(), **HOW)


def test_more_regions_than_16_bits_number(slides: dict[str, SpatialData], model: Any) -> None:
    x, y = np.meshgrid(np.arange(200) * 4.0, np.arange(200) * 4.0)
    squares = with_shapes(slides["s0"], shapely.box(x.ravel(), y.ravel(), x.ravel() + 4, y.ravel() + 4))
    table = st.tl.predict(
        squares, model, shapes_key="other", posterior=st.Posterior(2), genes=["TYPE0_1"], inplace=False
    )
    assert table.n_obs == 40_000
    whole = with_shapes(slides["s0"], [shapely.box(0, 0, 800, 800)])
    all_of_it = st.tl.predict(
        whole, model, shapes_key="other", posterior=st.Posterior(2), genes=["TYPE0_1"], inplace=False
    )
    assert table.X.sum() == pytest.approx(all_of_it.X[0, 0], rel=1e-3)


def test_what_only_generative_models_can_do_is_refused_for_others(slides: dict[str, SpatialData], model: Any) -> None:
    other = st.tl.train(slides, "mean", shapes_key="spots", tile=st.TileSpec(mpp=4, size_px=28))
    with pytest.raises(InputError, match="`posterior` is for generative models"):
        st.tl.predict(slides["s0"], other, posterior=st.Posterior(3))
    with pytest.raises(InputError, match="amounts that add up"):
        st.tl.predict(slides["s0"], model, preserve="spots", posterior=st.Posterior(normalize_size=True))
    with pytest.raises(InputError, match="raw counts"):
        st.tl.train(slides, config(), target="log1p_cp10k", **HOW)
    with pytest.raises(InputError, match="stride_um"):
        st.tl.predict(slides["s0"], model, shapes_key="spots", stride_um=8)


def test_no_signal_is_found_where_there_is_none() -> None:
    slide = st.datasets.toy_subtypes(seed=4, size_um=1500, n_genes=24)
    rng = np.random.default_rng(0)
    mixed = changed(slide, counts=lambda x: x[rng.permutation(x.shape[0])])
    fresh = st.datasets.toy_subtypes(seed=5, size_um=1500, n_genes=24)
    truth = fresh.tables["spots_counts"].X.toarray()
    spread, found = {}, {}
    for name, taught in (("mixed", mixed), ("true", slide)):
        trained = st.tl.train(taught, config(depth=3, width=8, epochs=25, lr=3e-3), genes=genes_of(slide), **HOW)
        table = st.tl.predict(fresh, trained, shapes_key="spots", inplace=False)
        spread[name] = float(np.median(table.X.std(axis=0) / table.X.mean(axis=0)))
        found[name] = float(np.median([np.corrcoef(table.X[:, g], truth[:, g])[0, 1] for g in range(24)]))
    # Of counts that were dealt out at random hardly anything is predicted but their mean.
    assert spread["mixed"] < 0.4 * spread["true"]
    assert found["true"] > 0.5
    assert found["mixed"] < 0.5 * found["true"]


def test_pale_tissue_among_spots_is_not_taken_for_the_empty_slide(
    slides: dict[str, SpatialData], monkeypatch: pytest.MonkeyPatch
) -> None:
    from stpred.data._readers import canvas
    from stpred.data._readers.pixels import SlidePixelGrid
    from stpred.data._regions import read_region

    region = read_region(slides["s0"], Place(shapes_key="spots"))
    nothing = canvas.TissueMask(np.zeros((8, 8), dtype=bool), np.zeros(2))  # as if all of it looked like glass
    monkeypatch.setattr(canvas.TissueMask, "of", lambda pyramid: nothing)
    scene = SlidePixelGrid.of(region, TILE)
    view = scene.view(np.array([[16.0, 0, 150], [0, 16.0, 150]]), (24, 24))
    assert not scene.canvas.tissue(region.coords_um).any()
    assert view.tissue.all()

"""Features of encoders beside XFuse's pixels: planes, the term of metagenes and scale, the start, and whole models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import stpred as st
from stpred._core.checks import InputError, UnsafeResolutionError
from stpred.data._readers.planes import LIMIT, FeaturePlanes
from stpred.encoders.beside import PixelsBeside
from stpred.models.parts.pixel_grid import DESCRIBED, Window
from stpred.models.xfuse.model import XFuse
from stpred.models.xfuse.sample import PatchSample
from stpred.models.xfuse.start import Spots, fit_start, growth
from stpred.tiles import Level, Pyramid

TILE = st.TileSpec(mpp=16.0, size_px=16)
COLOUR = st.TileSpec(mpp=2.0, size_px=32)
SMALL: dict[str, Any] = {"depth": 2, "width": 4, "metagenes": 3}


class Ramp:
    """An encoder whose tokens are the means of their pixels: what they are between is known."""

    def __init__(self, n: int) -> None:
        self.card = st.encoders.EncoderCard("ramp", COLOUR, 3, dense=(n, n, 3))

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        return tiles.mean(axis=(1, 2)).astype(np.float32)

    def encode_dense(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        n, size = self.card.dense[0], COLOUR.size_px  # type: ignore[index]
        return tiles.reshape(len(tiles), n, size // n, n, size // n, 3).mean(axis=(2, 4)).astype(np.float32)

    def to(self, device: str | None) -> Ramp:
        return self


def pyramid(size: int = 200, *, seed: int = 0) -> Pyramid:
    image = np.random.default_rng(seed).integers(90, 220, (3, size, size), dtype=np.uint8)
    return Pyramid([Level(image, np.diag([2.0, 2.0, 1.0]))])


def test_planes_are_bilinear_between_tokens() -> None:
    slide, encoder = pyramid(), Ramp(4)  # tokens of 16 um, 8 px
    planes = FeaturePlanes.of(slide, [encoder], 16.0)
    image = np.asarray(next(iter(slide.read(np.array([[192.0, 192.0]]), st.TileSpec(2.0, 192))))[1][0], float)
    tokens = image.reshape(24, 8, 24, 8, 3).mean(axis=(1, 3))  # of the first 24 x 24 tokens
    mean, std = planes.planes[0].statistics
    tokens = ((tokens - mean) / std).clip(-LIMIT, LIMIT)
    um = np.random.default_rng(1).uniform(20, 340, (50, 2))
    found = planes.at(um)
    for (x, y), values in zip(um / 16 - 0.5, found, strict=True):
        c, r, fx, fy = int(x), int(y), x % 1, y % 1
        above = tokens[r, c] * (1 - fx) + tokens[r, c + 1] * fx
        below = tokens[r + 1, c] * (1 - fx) + tokens[r + 1, c + 1] * fx
        assert values == pytest.approx(above * (1 - fy) + below * fy, abs=0.02)  # float16 is kept


def test_windows_and_linear_maps_agree_with_the_whole_plane() -> None:
    slide = pyramid()
    encoders = [Ramp(4), Ramp(8)]
    whole = FeaturePlanes.of(slide, encoders, 16.0)
    planes = FeaturePlanes.of(slide, encoders, 16.0)
    window = Window(-3, 2, 20, 12)
    values = whole.window(Window(-5, 0, 32, 32))[:, 2:22, 2:14]
    np.testing.assert_array_equal(planes.window(window), values)
    rng = np.random.default_rng(0)
    centre, axes = rng.normal(size=6).astype(np.float32), rng.normal(size=(6, 2)).astype(np.float32)
    expected = np.einsum("fhw,fk->khw", values - centre[:, None, None], axes)
    np.testing.assert_allclose(planes.reduced(centre, axes).window(window), expected, atol=1e-4)
    assert planes.planes[1].n == 4  # tokens of 8 um are averaged to pixels of 16 um


def test_tiles_off_the_image_are_embedded_once() -> None:
    planes = FeaturePlanes.of(pyramid(), [Ramp(4)], 16.0)
    calls = []
    encode = planes.planes[0].encoder.encode_dense
    planes.planes[0].encoder.encode_dense = lambda tiles: calls.append(len(tiles)) or encode(tiles)  # type: ignore
    planes.fetch([Window(-60, -60, 40, 40)])
    assert sum(calls) == 1


def sample(n: int = 5, *, channels: int, seed: int = 0) -> PatchSample:
    torch.manual_seed(seed)
    pixel = torch.arange(2 * 16 * 16)[::4]
    region = torch.arange(len(pixel)) // 16
    owner = (torch.arange(8) >= 4).long()
    return PatchSample(
        torch.rand(2, 3, 16, 16) - 0.5, torch.ones(2, 16, 16, dtype=torch.bool), pixel, region, owner,
        torch.poisson(torch.full((8, n), 4.0)), torch.ones(2, n, dtype=torch.bool), ("a", "b"), {"a": 1, "b": 1},
        torch.randn(2, channels, 16, 16),
    )  # fmt: skip


def test_features_reach_guide_and_decoder() -> None:
    model = XFuse(XFuse.Config(**SMALL, feature_channels=4), n_features=DESCRIBED + 6, n_genes=5).train()
    given = sample(channels=4)
    assert given.features is not None
    given.features.requires_grad_()
    model.loss(model(given), given).backward()
    assert float(given.features.grad.abs().sum()) > 0  # type: ignore[union-attr]
    assert model.beside is not None
    assert float(model.beside.to_metagenes.grad.abs().sum()) > 0  # type: ignore[union-attr]
    assert float(model.beside.to_scale.grad.abs().sum()) > 0  # type: ignore[union-attr]
    model.eval()
    with torch.no_grad():
        one, other = (model.latents(given.image, f)[0][0] for f in (given.features, given.features * 0))
    assert not torch.equal(one, other)


def test_without_features_nothing_of_them_is_there() -> None:
    for config, width in ((XFuse.Config(**SMALL, features=False), DESCRIBED + 6), (XFuse.Config(**SMALL), DESCRIBED)):
        model = XFuse(config, n_features=width, n_genes=5)
        assert model.beside is None
        assert not any(name.startswith("beside") for name in model.state_dict())


def test_the_scales_factor_is_one_at_nothing_and_grows_linearly() -> None:
    found = growth(torch.tensor([-50.0, 0.0, 20.0, 30.0]))
    np.testing.assert_allclose(found, [0, 1, 20.5413, 30.5413], atol=1e-4)


def spots(*, shuffled: bool = False, effect_sd: float = 0.0, seed: int = 0) -> tuple[Spots, torch.Tensor]:
    """Spots of three sections whose two kinds follow the first feature, and whose size follows the second."""
    generator = torch.Generator().manual_seed(seed)
    n, g = 240, 12
    features = torch.randn(n, 4, generator=generator)
    share = torch.sigmoid(2 * features[:, 0])
    kinds = torch.ones(2, g)
    kinds[0, :4], kinds[1, 4:8] = 6.0, 6.0
    mean = 5 * (0.4 * features[:, 1]).exp()[:, None] * (share[:, None] * kinds[0] + (1 - share[:, None]) * kinds[1])
    group, quarter = torch.arange(n) % 3, torch.arange(n) // 3 % 4
    mean = mean * (effect_sd * torch.randn(3, g, generator=generator)).exp()[group]
    counts = torch.poisson(mean, generator=generator)
    if shuffled:
        counts = counts[torch.randperm(n, generator=generator)]
    sizes, measured = torch.full((n,), 20.0), torch.ones(n, g, dtype=torch.bool)
    return Spots(features, sizes, counts, measured, group, group, quarter), mean


def started(given: Spots) -> Any:
    from stpred.models.xfuse.initial import first_profiles, fit_baselines

    rate, logit = fit_baselines(given.counts, given.measured)
    profiles, _ = first_profiles(given.counts, given.measured, 2, logits=logit)
    rate = rate - profiles.exp().mean(dim=0).log()
    return fit_start(given, profiles=profiles, rate=rate, logit=logit)


def test_start_recovers_what_counts_follow() -> None:
    given, mean = spots()
    start, chosen = started(given)
    expected = (start.total_counts(given) * start.logit.exp()).log()
    for gene in range(12):
        assert np.corrcoef(expected[:, gene], mean[:, gene].log())[0, 1] > 0.9
    assert chosen.precision <= 100
    assert chosen.dispersion * chosen.unseen < 1.5


def test_other_sections_are_less_certain_by_what_their_effects_vary() -> None:
    alike, unlike = (started(spots(effect_sd=sd)[0])[1] for sd in (0.0, 0.6))
    assert alike.unseen <= 1.1
    assert unlike.unseen >= 1.35
    assert unlike.dispersion <= 1.2  # where the section's effects are known


def test_counts_of_other_sections_spread_more_at_the_same_mean() -> None:
    from stpred.models.xfuse.posterior import _baselines

    config = XFuse.Config(**SMALL, covariates={"a": {"section": "a"}, "b": {"section": "b"}})
    model = XFuse(config, n_features=DESCRIBED + 6, n_genes=5)
    posterior = st.Posterior()
    with torch.no_grad():
        model.effect_log_std.fill_(-20)
        model.beside.unseen.fill_(1.5)
        own = _baselines(model, "a", posterior, [torch.Generator() for _ in range(4)])
        other = _baselines(model, "new", posterior, [torch.Generator() for _ in range(4)])
    torch.testing.assert_close(other[1] - own[1], torch.full((4, 5), np.log(1.5), dtype=torch.float32))
    torch.testing.assert_close(other[0] + other[1], own[0] + own[1])


def test_models_from_before_that_factor_load_as_they_were() -> None:
    model = XFuse(XFuse.Config(**SMALL), n_features=DESCRIBED + 6, n_genes=5)
    state = {k: v for k, v in model.state_dict().items() if k != "beside.unseen"}
    model.beside.unseen.fill_(1.5)
    model.load_state_dict(state)
    assert float(model.beside.unseen) == 1


def test_start_finds_nothing_in_shuffled_counts() -> None:
    start, _ = started(spots(shuffled=True)[0])
    assert float(start.to_metagenes.abs().max()) < 0.05
    assert float(start.to_scale.abs().max()) < 0.05


def test_published_settings_have_their_tile_and_no_features() -> None:
    published = st.models.XFuse.Config.published()
    assert published.features is False
    assert published.default_tile.size_px == 768
    assert published.default_encoder == "pixels"
    assert st.models.XFuse.Config().default_tile.size_px == 96


@pytest.fixture(scope="module")
def cohort() -> dict[str, Any]:
    return st.datasets.toy_cohort(3, size_um=(400, 400), n_genes=12)


@pytest.fixture(scope="module")
def trained(cohort: dict[str, Any]) -> Any:
    slides = {k: v for k, v in cohort.items() if k != "donor2"}
    config = st.models.XFuse.Config(**SMALL, epochs=1)
    encoder = st.encoders.get("colour", tile=COLOUR)
    return st.tl.train(slides, config, shapes_key="spots", tile=TILE, encoder=encoder, genes="all")


def test_a_slide_with_nothing_but_an_image_is_predicted_and_models_are_stored(
    cohort: dict[str, Any], trained: Any, tmp_path: Path
) -> None:
    from spatialdata import SpatialData

    whole = cohort["donor2"]
    bare = SpatialData(images={"he": whole.images["he"]}, shapes={"spots": whole.shapes["spots"]})
    table = st.tl.predict(bare, trained, shapes_key="spots", inplace=False)
    assert np.isfinite(table.X).all()
    assert trained.beside is not None
    assert trained.record.encoder["members"][1]["name"] == "colour"
    assert trained.record.tile == TILE.to_dict()
    st.models.save(trained, tmp_path / "model")
    again = st.models.load(tmp_path / "model")
    np.testing.assert_array_equal(st.tl.predict(bare, again, shapes_key="spots", inplace=False).X, table.X)
    image = st.tl.predict_map(bare, again, shapes_key="spots", inplace=False)
    assert np.isfinite(np.asarray(image["scale0"].image.data)).any()


def test_maps_have_the_deviation_of_the_draws(cohort: dict[str, Any], trained: Any, tmp_path: Path) -> None:
    import geopandas as gpd
    import shapely
    from spatialdata import SpatialData, read_zarr
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    at = (np.stack(np.meshgrid(np.arange(8), np.arange(8)), axis=-1).reshape(-1, 2) + 4) * 16.0
    squares = gpd.GeoDataFrame(geometry=[shapely.box(x, y, x + 16, y + 16) for x, y in at], index=range(64))
    area = gpd.GeoDataFrame(geometry=[shapely.box(64, 64, 192, 192)], index=["all"])
    of = {"um": Identity()}
    shapes = {"px": ShapesModel.parse(squares, transformations=of), "all": ShapesModel.parse(area, transformations=of)}
    slide = SpatialData(images={"he": cohort["donor2"].images["he"]}, shapes=shapes)
    posterior, genes = st.Posterior(n_samples=4), trained.record.genes[:3]
    table = st.tl.predict(slide, trained, shapes_key="px", posterior=posterior, genes=genes, inplace=False)
    options: dict[str, Any] = {"shapes_key": "all", "posterior": posterior, "genes": genes}
    st.tl.predict_map(slide, trained, **options)
    out = tmp_path / "map.zarr"
    st.tl.predict_map(SpatialData(images={"he": slide.images["he"]}, shapes=shapes), trained, out=out, **options)
    for images in (slide.images, read_zarr(out).images):
        for name, values in (("all_xfuse_map", table.X), ("all_xfuse_map_std", table.layers["std"])):
            image = images[name]["scale0"].image
            assert list(image.coords["c"].values) == genes
            planes = np.asarray(image.data).reshape(3, -1)
            np.testing.assert_allclose(planes[:, np.isfinite(planes[0])].T, values, rtol=1e-4)
    assert json.loads(slide.attrs["stpred"]["all_xfuse_map_std"])["summary"] == "std"
    assert "all_xfuse_map_std" not in SpatialData(
        images={"m": st.tl.predict_map(slide, trained, inplace=False, **options)}
    )


def test_another_encoder_is_refused(cohort: dict[str, Any], trained: Any) -> None:
    same = st.tl.predict(
        cohort["donor2"], trained, shapes_key="spots", encoder=st.encoders.get("colour", tile=COLOUR), inplace=False
    )
    np.testing.assert_array_equal(same.X, st.tl.predict(cohort["donor2"], trained, shapes_key="spots", inplace=False).X)
    for other in (
        "pixels",
        "intensity",
        PixelsBeside(st.encoders.get("pixels", tile=TILE), [st.encoders.get("intensity")]),
    ):
        with pytest.raises(InputError, match="not the one"):
            st.tl.predict(cohort["donor2"], trained, shapes_key="spots", encoder=other, inplace=False)


def test_models_stored_before_there_were_features(cohort: dict[str, Any], tmp_path: Path) -> None:
    config = st.models.XFuse.Config(**SMALL, epochs=1, features=False)
    model = st.tl.train({"a": cohort["donor0"]}, config, shapes_key="spots", tile=TILE, genes="all")
    st.models.save(model, tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    content = json.loads(file.read_text())
    for name in ("features", "feature_channels"):
        content["config"].pop(name)
    file.write_text(json.dumps(content))
    again = st.models.load(tmp_path / "model")
    assert again.config.features is False
    tables = [st.tl.predict(cohort["donor0"], m, shapes_key="spots", inplace=False).X for m in (model, again)]
    np.testing.assert_array_equal(*tables)


def test_slides_too_coarse_for_features(cohort: dict[str, Any]) -> None:
    slide = {"a": st.datasets.toy_subtypes(seed=0)}
    options: dict[str, Any] = {"shapes_key": "spots", "tile": st.TileSpec(8.0, 16), "genes": st.GeneRule("mean", n=5)}
    model = st.tl.train(slide, st.models.XFuse.Config(**SMALL, epochs=1), **options)
    assert model.record.encoder["name"] == "pixels"
    with pytest.raises(UnsafeResolutionError, match="coarser"):
        st.tl.train(slide, st.models.XFuse.Config(**SMALL, epochs=1, features=True), **options)
    with pytest.raises(InputError, match="features=True"):
        st.tl.train(slide, st.models.XFuse.Config(**SMALL, features=False), encoder="colour", **options)


def test_too_small_patches_are_refused(cohort: dict[str, Any]) -> None:
    config = st.models.XFuse.Config(depth=4, width=2, epochs=1, features=False)
    with pytest.raises(InputError, match="at least; give"):
        st.tl.train({"a": cohort["donor0"]}, config, shapes_key="spots", tile=st.TileSpec(16.0, 16), genes="all")

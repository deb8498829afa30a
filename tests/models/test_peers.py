"""Peers as baselines against slow references; what their predictions must not depend on; what adds up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

import stpred as st
from stpred import InputError, data, metrics, training
from stpred._core.places import Place
from stpred.links import Links
from stpred.models import Batch, DeepSpot, Hist2ST, HisToGene, IStar, NMFComposition, RandomForest, load, save
from stpred.models.parts.sample import gather
from stpred.models.parts.section import Places
from stpred.testing import MeanColour, small_slide

SMALL = {"width": 16, "depth": 2, "n_heads": 2, "head_width": 4, "feed_width": 12, "standardize": "none"}


def slide(name: str, *, n: int = 100, seed: int = 0, shuffled: bool = False, parts: int | None = None) -> Batch:
    """n locations of a square lattice whose genes are linear in the features."""
    rng = np.random.default_rng(seed)
    weights = np.random.default_rng(99).normal(size=(6, 8))
    x = rng.normal(size=(n, 6)).astype(np.float32)
    y = np.maximum(5 + x @ weights + 0.3 * rng.normal(size=(n, 8)), 0).astype(np.float32)
    xy = 100.0 * np.stack(np.divmod(np.arange(n), 10), axis=1) + 30
    pieces = None if parts is None else (x[:, None] + rng.normal(size=(n, parts**2, 6))).astype(np.float32)
    y = rng.permutation(y) if shuffled else y
    return Batch.of(x, y=y, coords_um=xy, parts=pieces, scale="log1p_cp10k", slide=name)


def fitted(config: Any, batches: list[Batch], *, seed: int = 0) -> Any:
    donors = [b.slide for b in batches]
    return training.fit(config.model_class, config, batches, groups=donors, seed=seed, typical=False)[0]


def new(config: Any, *, n_genes: int = 8) -> Any:
    """An untrained network whose places say something."""
    torch.manual_seed(1)
    model = config.build(n_features=6, n_genes=n_genes).eval()
    if getattr(model, "places", None) is not None:
        for table in (model.places.x, model.places.y):
            torch.nn.init.normal_(table)
    return model


# Random forest.


@pytest.mark.parametrize("settings", [{"n_components": None}, {"n_components": 3}, {"max_depth": 2, "min_leaf": 1}])
def test_the_forest_is_scikit_learns(settings: dict[str, Any]) -> None:
    from sklearn.ensemble import RandomForestRegressor

    batches, unseen = [slide("a"), slide("b", seed=1)], slide("c", seed=2)
    config = RandomForest.Config(n_trees=7, scale_genes=False, **settings)
    model = fitted(config, batches)
    x = np.concatenate([model.design(b) for b in batches])
    y = np.concatenate([b.y for b in batches]).astype(np.float64)
    torch.manual_seed(0)
    seed = int(torch.randint(2**31 - 1, (1,)))
    forest = RandomForestRegressor(
        7, min_samples_leaf=config.min_leaf, max_depth=config.max_depth, max_features=1 / 3, random_state=seed
    )
    k = config.n_components
    if k is None or k >= 8:
        want = forest.fit(x, y).predict(model.design(unseen))
    else:  # scikit-learn's trees, and the mean of all genes in each leaf by a loop
        centred = y - y.mean(axis=0)
        forest.fit(x, centred @ np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :k])
        want = np.zeros((100, 8))
        for tree, drawn in zip(forest.estimators_, forest.estimators_samples_, strict=True):
            leaves = tree.apply(x[drawn].astype(np.float32))
            for i, leaf in enumerate(tree.apply(model.design(unseen).astype(np.float32))):
                want[i] += y[drawn][leaves == leaf].mean(axis=0) / 7
    np.testing.assert_allclose(model.predict(unseen)[0], want, rtol=1e-5)
    assert model.config.n_rows == 200


def test_the_seed_decides_a_forest_and_damaged_trees_are_refused(tmp_path: Any) -> None:
    batches = [slide("a"), slide("b", seed=1)]
    config = RandomForest.Config(n_trees=3)
    first, again, other = (fitted(config, batches, seed=s).predict(batches[0])[0] for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0
    model = fitted(config, batches)
    model.record = replace(model.record, genes=[f"g{i}" for i in range(8)])
    stored = load(save(model, tmp_path / "m"))
    np.testing.assert_array_equal(stored.predict(batches[0])[0], first)
    stored.branches[0, 0] = 0  # its own child
    with pytest.raises(InputError, match="trees of the stored random forest are damaged"):
        stored.predict(batches[0])


# Composition.


def test_programmes_of_planted_parts_are_found() -> None:
    rng = np.random.default_rng(0)
    profiles = np.kron(np.eye(3), np.full(4, 2.0)) + 0.1
    batches = []
    for name in "abc":
        amount = rng.dirichlet(np.full(3, 0.5), 80)
        x = np.concatenate([amount, rng.normal(size=(80, 3))], axis=1).astype(np.float32)
        batches.append(Batch.of(x, y=(amount @ profiles).astype(np.float32), slide=name, scale="log1p_cp10k"))
    model = fitted(NMFComposition.Config(n_components=3, penalty=1e-3), batches[:2])
    found, _ = model.predict(batches[2])
    assert metrics.pearson(found, batches[2].y).min() > 0.99
    np.testing.assert_allclose(found, model.composition(batches[2]) @ model.programmes.numpy(), rtol=1e-6)
    of = model.programmes.numpy() / np.linalg.norm(model.programmes.numpy(), axis=1, keepdims=True)
    assert (of @ (profiles / np.linalg.norm(profiles, axis=1, keepdims=True)).T).max(axis=0).min() > 0.97
    assert model.composition(batches[2]).min() >= 0
    few = fitted(NMFComposition.Config(n_components=40), batches[:2])  # more than there are genes
    assert few.programmes.shape == (40, 12)
    assert metrics.pearson(few.predict(batches[2])[0], batches[2].y).min() > 0.9


def test_what_is_not_made_of_parts_is_refused() -> None:
    with pytest.raises(InputError, match="Log shares are negative"):
        NMFComposition.Config().training_target("log_share")
    below = replace(slide("a"), y=slide("a").y - 9)
    with pytest.raises(InputError, match="negative values"):
        fitted(NMFComposition.Config(), [below])


# Sections.


def attended_slowly(model: Any, h: NDArray[np.float64], sources: NDArray[np.float64]) -> NDArray[np.float64]:
    """The blocks of a network, row by row and head by head."""

    def linear(layer: Any, x: NDArray[np.float64]) -> NDArray[np.float64]:
        out = x @ layer.weight.detach().double().numpy().T
        return out if layer.bias is None else out + layer.bias.detach().double().numpy()

    def normed(layer: Any, x: NDArray[np.float64]) -> NDArray[np.float64]:
        return torch.nn.functional.layer_norm(
            torch.from_numpy(x), x.shape[-1:], layer.weight.double(), layer.bias.double()
        ).detach().numpy()  # fmt: skip

    width = model.config.head_width
    for block in model.blocks:
        after = []
        for rows in (sources, h):
            q = np.split(linear(block.qkv, normed(block.norm, rows)), 3, axis=1)[0]
            k, v = np.split(linear(block.qkv, normed(block.norm, sources)), 3, axis=1)[1:]
            heads = []
            for a in range(0, q.shape[1], width):
                score = q[:, a : a + width] @ k[:, a : a + width].T / np.sqrt(width)
                weight = np.exp(score - score.max(axis=1, keepdims=True))
                heads.append(weight / weight.sum(axis=1, keepdims=True) @ v[:, a : a + width])
            rows = rows + linear(block.out, np.concatenate(heads, axis=1))
            inner = torch.nn.functional.gelu(torch.from_numpy(linear(block.feed[0], normed(block.feed_norm, rows))))
            after.append(rows + linear(block.feed[3], inner.numpy()))
        sources, h = after
    return h


def test_histogene_equals_a_slow_reference() -> None:
    model = new(HisToGene.Config(**SMALL, loss="pearson", pitch_um=100))
    batch = slide("a", n=30)
    x = batch.features.astype(np.float64)
    h = x @ model.embedding.weight.detach().double().numpy().T + model.embedding.bias.detach().double().numpy()
    column, row = np.divmod(np.arange(30), 10)
    h += model.places.x.detach().double().numpy()[column] + model.places.y.detach().double().numpy()[row]
    out = attended_slowly(model, h, h)
    with torch.no_grad():
        want = model.last(model.norm(torch.from_numpy(out).float())).numpy()
    np.testing.assert_allclose(model.predict(batch)[0], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [HisToGene.Config(**SMALL), Hist2ST.Config(**SMALL, parts=2, n_graph_layers=2)])
def test_a_prediction_depends_on_the_section_and_not_on_what_else_is_asked_for(config: Any) -> None:
    model, batch = new(replace(config, pitch_um=100)), slide("a", parts=2)
    whole = model.predict(batch)[0]
    some = np.random.default_rng(0).permutation(100)[:17]
    np.testing.assert_allclose(model.predict(batch.take(some))[0], whole[some], rtol=1e-4, atol=1e-5)
    moved = replace(batch, places_um=batch.places_um + [700.0, -40.0])  # the corner of the section is its origin
    np.testing.assert_allclose(model.predict(moved)[0], whole, rtol=1e-4, atol=1e-5)
    turned = replace(batch, places_um=batch.places_um[:, ::-1])
    assert np.abs(model.predict(turned)[0] - whole).max() > 1e-3
    # Targets beside the section's own locations attend to these, and do not change them.
    beside = replace(batch, sources=np.arange(60), source_parts=batch.parts.take(np.arange(60)))
    alone = [model.predict(beside.take(rows))[0] for rows in (np.arange(70, 75), np.arange(100))]
    np.testing.assert_allclose(alone[0], alone[1][70:75], rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="batch_size=1"):
        model(gather([batch, batch], [None, None], whole_slide=True))


def test_places_between_entries_are_interpolated_and_beyond_the_table_add_nothing() -> None:
    places = Places(4, 3)
    for table in (places.x, places.y):
        torch.nn.init.normal_(table)
    at = torch.tensor([[1.0, 2.0], [0.5, 3.0], [9.0, -3.0], [1.0001, 2.0]])
    with torch.no_grad():
        found = places(at)
        assert torch.equal(found[0], places.x[1] + places.y[2])
        torch.testing.assert_close(found[1], (places.x[0] + places.x[1]) / 2 + places.y[3])
    assert found[2].abs().max() == 0
    assert torch.equal(found[3], found[0])
    assert float(Places(4, 3)(at).detach().abs().max()) == 0  # untrained, they say nothing


def test_hist2sts_graph_is_of_the_nearest_within_two_pitches() -> None:
    model = new(Hist2ST.Config(**SMALL, parts=2, pitch_um=100))
    batch = slide("a", parts=2)
    keep = np.concatenate([np.arange(40), [99]])  # the last one is alone
    batch = replace(
        batch, sources=keep, targets=keep, source_parts=batch.parts.take(keep), parts=batch.parts.take(keep)
    )
    sample = gather([batch], [None], whole_slide=True)
    rows, n_sources, _ = model.stream(sample)
    found = model._neighbors(sample, rows, n_sources).numpy()
    distance = cdist(batch.coords_um[keep], batch.coords_um[keep])
    for i, row in enumerate(found):
        near = sorted(d for j, d in enumerate(distance[i]) if j != i and d <= 200)[:4]
        np.testing.assert_allclose(distance[i, row[row >= 0]], near)
    assert (found[-1] == -1).all()
    with torch.no_grad():
        assert torch.isfinite(model(sample)).all()


def test_hist2sts_views_turn_the_tile() -> None:
    torch.manual_seed(0)
    convolution = new(Hist2ST.Config(**SMALL, parts=3)).convolution
    features, parts = torch.randn(9, 6), torch.arange(9)[None]
    grid = parts.view(3, 3)
    turned = torch.rot90(grid, 1).flip(1).reshape(1, 9)
    with torch.no_grad():
        torch.testing.assert_close(convolution(features, parts, turn=5), convolution(features, turned))
        assert not torch.allclose(convolution(features, turned), convolution(features, parts))


def test_hist2st_learns_from_its_views() -> None:
    sample = gather([slide("a", parts=2)], [None], whole_slide=True)
    model = new(Hist2ST.Config(**SMALL, parts=2, views=3)).train()
    output = model(sample)
    assert output.shape == (4, 100, 8)
    each = [torch.nn.functional.mse_loss(o, sample.y) for o in output]
    pull = torch.nn.functional.mse_loss(output[0], output[1:].mean(dim=0))
    torch.testing.assert_close(model.loss(output, sample), torch.stack(each).mean() + 0.5 * pull)


@pytest.mark.parametrize(
    "config",
    [
        HisToGene.Config(width=32, depth=1, n_heads=2, head_width=8, feed_width=16, epochs=30, lr=5e-3),
        Hist2ST.Config(
            width=24, depth=1, n_heads=2, head_width=8, feed_width=16, parts=2, channels=8, n_mixers=1,
            n_graph_layers=1, views=1, epochs=25, lr=1e-2,
        ),
        RandomForest.Config(n_trees=40, max_features=1.0),
        NMFComposition.Config(n_components=6),
    ],
    ids=lambda c: c.family,
)  # fmt: skip
def test_signal_is_found_and_none_is_invented(config: Any) -> None:
    unseen = slide("z", n=200, seed=9, parts=2)
    for shuffled in (False, True):
        batches = [slide(s, seed=i, shuffled=shuffled, parts=2) for i, s in enumerate("abc")]
        r = np.median(metrics.pearson(fitted(config, batches).predict(unseen)[0], unseen.y))
        assert (abs(r) < 0.25) if shuffled else (r > 0.7), (shuffled, r)


# iStar.


def test_istars_parts_add_up_to_the_spot() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(3, 9, 12)
    ends = np.concatenate([[0], np.cumsum(counts)])
    x = rng.normal(size=(ends[-1], 6)).astype(np.float32)
    first = ends[:-1]
    y = rng.gamma(2.0, 3.0, (12, 8)).astype(np.float32)
    shares = Links(ends, np.arange(len(x)), np.repeat(1 / counts, counts))
    spots = Batch(
        "a", x, first, np.arange(len(x)), np.zeros((12, 2)), parts=shares, area_um2=64.0 * counts, y=y, scale="counts"
    )
    each = replace(
        spots, targets=np.arange(len(x)), coords_um=np.zeros((len(x), 2)), y=None, area_um2=np.full(len(x), 64.0),
        parts=Links(np.arange(len(x) + 1), np.arange(len(x))),
    )  # fmt: skip
    for scale in ("counts", "log1p_cp10k"):
        model = fitted(IStar.Config(hidden=(8,), epochs=3), [replace(spots, scale=scale)])
        whole, fine = model.predict(spots)[0], model.predict(each)[0]
        together = np.add.reduceat(fine, first, axis=0)
        together = together if scale == "counts" else together / counts[:, None]
        np.testing.assert_allclose(together, whole, rtol=1e-4)
    assert model.footprint_um2 == 0


def test_istars_counts_of_a_finer_region_are_of_its_area(tmp_path: Any) -> None:
    encoder = MeanColour(st.TileSpec(0.5, 64), n_patches=4)  # patches of 8 um
    sdata = small_slide()
    how: dict[str, Any] = {"genes": ["EPCAM", "COL1A2"], "shapes_key": "spots", "encoder": encoder, "target": "counts"}
    model = st.tl.train(sdata, IStar.Config(hidden=(8,), epochs=2), **how)
    spots = st.tl.predict(sdata, model, shapes_key="spots", encoder=encoder, inplace=False)
    st.pp.subdivide(sdata, "spots", size_um=8, key_added="fine")
    fine = st.tl.predict(sdata, model, shapes_key="fine", encoder=encoder, inplace=False)
    inside = data.inside_of(data.read_region(sdata, Place(shapes_key="spots")), fine.obsm["spatial"])
    area = np.pi * sdata.shapes["spots"]["radius"].to_numpy() ** 2
    found = inside.sum(fine.X) / (inside.counts() * 64 / area)[:, None]  # squares are inside by their centre
    np.testing.assert_allclose(found.mean(axis=0), spots.X.mean(axis=0), rtol=0.03)  # they are seen in other tiles
    stored = save(model, tmp_path / "m")
    again = st.tl.predict(sdata, stored, shapes_key="spots", encoder=encoder, inplace=False)
    np.testing.assert_array_equal(again.X, spots.X)


def test_istars_patches_see_their_tile_and_their_colour() -> None:
    encoder = MeanColour(st.TileSpec(0.5, 64), n_patches=4)
    tiles = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    from stpred.encoders.tokens import with_hierarchy

    found = with_hierarchy(encoder).encode_dense(tiles)
    assert found.shape == (2, 4, 4, 9)
    patch = tiles[1, 16:32, 48:64].mean(axis=(0, 1))
    np.testing.assert_allclose(found[1, 1, 3], [*patch, *tiles[1].mean(axis=(0, 1)), *patch], rtol=1e-5)


def test_istars_genes_lie_between_least_and_largest() -> None:
    model = new(IStar.Config(hidden=(8,)))
    batch = replace(slide("a"), parts=None)
    model.begin([batch])
    scaled = (batch.y - model.gene_mean.numpy()) / model.gene_std.numpy()
    assert (scaled.min(), scaled.max()) == (0, 1)
    assert (model.outputs(batch) > 0).all()  # no patch is below zero


# Settings.


def test_settings_that_make_no_sense_are_refused() -> None:
    for family, settings, message in (
        (HisToGene, {"depth": 0}, "depth"),
        (HisToGene, {"pitch_um": -1}, "pitch_um"),
        (Hist2ST, {"kernel": 2}, "must be odd"),
        (Hist2ST, {"self_distillation": -1}, "self_distillation"),
        (IStar, {"isolated": True}, "its own"),
        (IStar, {"output": "relu"}, "output"),
        (IStar, {"loss": "cosine"}, "squared errors"),
        (RandomForest, {"max_features": 2}, "max_features"),
        (RandomForest, {"n_trees": 0}, "n_trees"),
        (NMFComposition, {"n_components": 0}, "n_components"),
    ):
        with pytest.raises(InputError, match=message):
            family.Config(**settings)


def test_published_settings_are_those_of_the_papers() -> None:
    big = HisToGene.Config.published()
    assert (big.width, big.depth, big.n_heads * big.head_width, big.lr, big.epochs) == (1024, 4, 1024, 1e-5, 100)
    assert Hist2ST.Config.published(views=3).views == 3
    assert Hist2ST.Config.published().depth == 8
    assert IStar.Config.published().hidden == (256,) * 4
    assert HisToGene.Config().at_pitch(100.0).pitch_um == 100


# Neighbours of DeepSpot that are weighed.


def weighted_slowly(model: Any, batch: Batch) -> NDArray[np.float64]:
    """The mean over neighbours of the values of phi, a location and a neighbour at a time."""
    with torch.no_grad():
        z = model.embed(torch.from_numpy(batch.features)).double()
        query, key = (None if m is None else m.weight.double() for m in (model.weighting.query, model.weighting.key))
    width = float(model.weighting.log_width.exp()) * 150
    out = np.zeros((len(batch.targets), z.shape[1]))
    for i in range(len(out)):
        rows = batch.links.indices[batch.links.indptr[i] : batch.links.indptr[i + 1]]
        scores = []
        for row in rows:
            score = -np.square(batch.coords_um[row] - batch.coords_um[i]).sum() / (2 * width**2)
            if query is not None:
                score += float((query @ z[i]) @ (key @ z[row])) / np.sqrt(len(query))
            scores.append(score)
        weights = np.exp(np.array(scores))
        for weight, row in zip(weights / weights.sum(), rows, strict=True):
            out[i] += weight * z[row].numpy()
    return out


@pytest.mark.parametrize("how", ["distance", "attention"])
def test_neighbours_are_weighed_as_a_slow_loop_does(how: str) -> None:
    config = DeepSpot.Config(
        context="spot+neighbors", context_um=150, neighbors_pool=how, width=12, n_phi=2, n_rho=2, standardize="none"
    )
    assert config.needs.places
    model = new(config)
    batch = data.with_needs(slide("a", n=60), config.needs)
    links = batch.links
    batch = replace(
        batch,
        links=Links(np.concatenate([[0, 0], links.indptr[2:] - links.indptr[1]]), links.indices[links.indptr[1] :]),
    )
    with torch.no_grad():
        sample = gather([batch], [None])
        pooled = model.pool(model.embed(sample.features), sample)[:, 12:].numpy()
    np.testing.assert_allclose(pooled, weighted_slowly(model, batch), rtol=1e-4, atol=1e-5)
    assert not pooled[0].any()  # it has no neighbours
    whole = model.predict(batch)[0]
    order = np.random.default_rng(0).permutation(60)[:21]
    np.testing.assert_allclose(model.predict(batch.take(order))[0], whole[order], rtol=1e-4, atol=1e-5)
    back = Links(links.indptr, np.concatenate([r[::-1] for r in np.split(links.indices, links.indptr[1:-1])]))
    plain = model.predict(replace(batch, links=links))[0]
    np.testing.assert_allclose(model.predict(replace(batch, links=back))[0], plain, rtol=1e-4, atol=1e-5)


def test_near_neighbours_are_preferred_where_they_say_more() -> None:
    rng = np.random.default_rng(0)
    xy = 50.0 * np.stack(np.divmod(np.arange(400), 20), axis=1)
    x = rng.normal(size=(400, 3)).astype(np.float32)
    near = (cdist(xy, xy) < 60) & ~np.eye(400, dtype=bool)
    y = np.maximum(3 + 2 * (near @ np.maximum(x, 0)) / near.sum(axis=1, keepdims=True), 0).astype(np.float32)
    config = DeepSpot.Config(
        context="spot+neighbors", context_um=200, neighbors_pool="distance", width=32, n_phi=1, n_rho=1, epochs=40,
        phi_dropout=0, rho_dropout=0, output_dropout=0, standardize="none", batch_size=100, lr=1e-2,
    )  # fmt: skip
    batch = data.with_needs(Batch.of(x, y=y, coords_um=xy, scale="log1p_cp10k"), config.needs)
    model = fitted(config, [batch])
    assert float(model.weighting.log_width.exp()) < 0.4  # of 200 um
    assert np.median(metrics.pearson(model.predict(batch)[0], y)) > 0.8


def test_pools_that_know_no_places_are_unchanged_and_cells_have_none() -> None:
    assert not DeepSpot.Config().needs.places
    assert DeepSpot.Config().build(n_features=6, n_genes=8).weighting is None
    with pytest.raises(InputError, match="pools its neighbours by one of"):
        st.models.DeepCell.Config(neighbors_pool="attention")
    with pytest.raises(InputError, match="neighbors_pool"):
        DeepSpot.Config(neighbors_pool="nearest")


# Sections elsewhere than in training.


def test_a_section_is_cross_validated_and_predicted_at_another_pitch() -> None:
    slides = st.datasets.toy_cohort(2, size_um=(500, 500), n_genes=12)
    config = Hist2ST.Config(
        width=8, depth=1, n_heads=2, head_width=4, feed_width=8, parts=2, views=1, n_graph_layers=1, epochs=1
    )
    how: dict[str, Any] = {"genes": "all", "encoder": MeanColour(), "shapes_key": "spots"}
    model = st.tl.train(slides, config, groups=dict.fromkeys(slides, "one"), **how)
    scores = st.tl.cross_validate(slides, config, groups={s: s for s in slides}, **how)
    assert scores.loc[scores["metric"] == "rmse", "value"].notna().any()
    unseen = small_slide(donor=5)
    cells = st.tl.predict(unseen, model, shapes_key="cells", encoder=MeanColour(), inplace=False)
    assert np.isfinite(cells.X).all()
    st.pp.grid(unseen, pitch_um=60, key_added="fine")
    del unseen.shapes["spots"], unseen.tables["spots_counts"]
    fine = st.tl.predict(unseen, model, shapes_key="fine", encoder=MeanColour(), inplace=False)
    assert np.isfinite(fine.X).all()

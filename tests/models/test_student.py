"""The student of patches against a loop over locations; what it must not depend on, and what it learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from spatialdata import SpatialData
from torch.nn.functional import softplus

import stpred as st
from stpred import InputError, models, training
from stpred.links import Links
from stpred.models import Batch, Student
from stpred.models.parts.sample import Scaling, gather

pytestmark = pytest.mark.usefixtures("kept_features")

WIDTH, GENES, TOKENS = 6, 4, 50


def batch_at_random(*, seed: int = 0, n: int = 12, most: int = 8, weighted: bool = True, **more: Any) -> Batch:
    """n locations, each of one to `most` of 50 tokens, with shares that add up to one."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, most + 1, n)
    rows = np.concatenate([rng.choice(TOKENS, c, replace=False) for c in counts])
    weights = np.concatenate([w / w.sum() for w in (rng.uniform(0.1, 1, c) for c in counts)])
    parts = Links(np.concatenate([[0], np.cumsum(counts)]), rows, weights if weighted else None)
    features = rng.normal(2, 3, (TOKENS, WIDTH)).astype(np.float32)
    y = rng.gamma(2.0, 1.0, (n, GENES)).astype(np.float32)
    first = parts.indices[parts.indptr[:-1]]
    how = {"parts": parts, "y": y, "scale": "log1p_cp10k"} | more
    return Batch(f"s{seed}", features, first, np.arange(40), rng.uniform(0, 500, (n, 2)), **how)


def student(*, seed: int = 0, **config: Any) -> Student:
    torch.manual_seed(seed)
    config = {"hidden": (8, 7), "standardize": "none", "scale_genes": False} | config
    return Student(Student.Config(**config), n_features=WIDTH, n_genes=GENES).eval()


def forward_slowly(model: Student, batch: Batch) -> NDArray[np.float64]:
    """The perceptron, a token at a time, and the weighted mean, a location at a time."""
    weights = [(a.weight.detach().double().numpy(), a.bias.detach().double().numpy()) for a in model.layers]
    out = []
    for i in range(batch.parts.n_targets):
        mine = slice(batch.parts.indptr[i], batch.parts.indptr[i + 1])
        values = []
        for row in batch.parts.indices[mine]:
            x = batch.features[row].astype(np.float64)
            for k, (w, b) in enumerate(weights):
                x = w @ x + b
                if k < len(weights) - 1:
                    x = np.maximum(x, 0)
            if model.config.output == "relu":
                x = np.maximum(x, 0)
            elif model.config.output == "softplus":
                x = softplus(torch.from_numpy(x), beta=20).numpy()
            values.append(x)
        shares = None if batch.parts.weights is None else batch.parts.weights[mine]
        out.append(np.average(values, axis=0, weights=shares))
    return np.stack(out)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("output", ["linear", "relu", "softplus"])
@pytest.mark.parametrize("hidden", [(8, 7), ()])
def test_a_location_is_the_mean_of_its_patches(weighted: bool, output: str, hidden: tuple[int, ...]) -> None:
    batch = batch_at_random(weighted=weighted)
    model = student(output=output, hidden=hidden)
    with torch.no_grad():
        found = model(gather([batch], [None])).numpy()
    np.testing.assert_allclose(found, forward_slowly(model, batch), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(model.predict(batch)[0], found.clip(0), rtol=1e-6)
    np.testing.assert_allclose(model.outputs(batch), found, rtol=1e-6)


def test_without_footprints_a_location_is_its_own_patch() -> None:
    batch = batch_at_random()
    single = replace(batch, parts=Links(np.arange(13), batch.targets))
    model = student()
    want = model.outputs(single)
    np.testing.assert_allclose(model.outputs(replace(batch, parts=None)), want, rtol=1e-6)
    np.testing.assert_allclose(model.ood_distance(replace(batch, parts=None)), model.ood_distance(single), rtol=1e-6)


def test_order_and_names_of_tokens_do_not_matter() -> None:
    batch = batch_at_random()
    model = student(standardize="slide")
    want = model.predict(batch)[0]
    rng = np.random.default_rng(5)
    rows = rng.permutation(12)
    np.testing.assert_allclose(model.predict(batch.take(rows))[0], want[rows], rtol=1e-5, atol=1e-6)
    # Other rows for the same tokens, and the tokens of a location the other way round.
    names = rng.permutation(TOKENS)
    shuffled = np.empty_like(batch.features)
    shuffled[names] = batch.features
    turned = [np.arange(a, b)[::-1] for a, b in zip(batch.parts.indptr, batch.parts.indptr[1:], strict=False)]
    place = np.concatenate(turned)
    parts = Links(batch.parts.indptr, names[batch.parts.indices[place]], batch.parts.weights[place])
    other = replace(batch, features=shuffled, parts=parts, targets=names[batch.targets], sources=names[batch.sources])
    np.testing.assert_allclose(model.predict(other)[0], want, rtol=1e-5, atol=1e-6)
    # A token that is seen twice, with half its share each.
    twice = Links(2 * batch.parts.indptr, np.repeat(batch.parts.indices, 2), np.repeat(batch.parts.weights / 2, 2))
    np.testing.assert_allclose(model.predict(replace(batch, parts=twice))[0], want, rtol=1e-5, atol=1e-6)


def test_a_location_does_not_depend_on_what_it_is_padded_with() -> None:
    """Others of more tokens, or of another slide, in the same step; patches of others do not reach it."""
    one, two = batch_at_random(seed=1, most=2), batch_at_random(seed=2, most=9)
    model = student()
    with torch.no_grad():
        alone = [model(gather([b], [None])).numpy() for b in (one, two)]
        together = model(gather([one, two], [None, None])).numpy()
        first = model(gather([one.take(np.array([3]))], [None])).numpy()
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(first, alone[0][[3]], rtol=1e-5, atol=1e-6)
    sample = gather([one, two], [None, None])
    assert sample.part_weights is not None
    assert sample.parts is not None
    assert (sample.part_weights[sample.parts < 0] == 0).all()
    np.testing.assert_allclose(sample.part_weights.sum(dim=1), 1, rtol=1e-5)
    # NaN in a patch of someone else stays there.
    strange = one.features.copy()
    strange[np.setdiff1d(np.arange(TOKENS), one.parts.take(np.array([3])).indices)] = np.nan
    with torch.no_grad():
        kept = model(gather([replace(one, features=strange).take(np.array([3]))], [None])).numpy()
    np.testing.assert_allclose(kept, alone[0][[3]], rtol=1e-5, atol=1e-6)


def test_blocks_of_prediction_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_at_random(n=40)
    model = student(standardize="slide")
    model.typical.fit([model.ood_features(batch)])
    want, unlike = model.predict(batch)[0], model.ood_distance(batch)
    for values in (1, 5 * GENES, 17 * GENES):
        monkeypatch.setattr("stpred.models.student._VALUES", values)
        monkeypatch.setattr("stpred.models.student._ROWS", 3)
        blocks = model._blocks(batch)
        assert len(blocks) > 5
        assert np.array_equal(np.concatenate(blocks), np.arange(40))
        found = np.concatenate([model.predict(batch.take(rows))[0] for rows in blocks])
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(model.predict(batch)[0], want, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(model.ood_distance(batch), unlike, rtol=1e-5)


def test_training_sees_what_prediction_sees() -> None:
    batch = batch_at_random()
    model = student(standardize="slide")
    once, scaling = model.ready(batch)
    assert scaling is None
    with torch.no_grad():
        found = model.finish(model(gather([once], [None]))).numpy()
    np.testing.assert_allclose(found, model.predict(batch)[0], rtol=1e-5, atol=1e-6)
    # Standardised by what speaks for the slide, not by the tokens that are asked for.
    np.testing.assert_array_equal(once.features, Scaling.of(batch.features[batch.sources]).apply(batch.features))
    plain = student()
    assert plain.ready(batch)[0] is batch


def test_unlikeness_is_by_the_mean_distance_of_the_patches() -> None:
    batch = batch_at_random()
    model = student()
    assert np.isnan(model.ood_distance(batch)).all()  # nothing is known yet
    model.typical.fit([model.ood_features(batch), model.ood_features(batch_at_random(seed=1))])
    far = batch.features.copy()
    far[:25] += 60
    strange = replace(batch, features=far)
    distance = model.typical.distance(far)
    mine = [slice(a, b) for a, b in zip(batch.parts.indptr, batch.parts.indptr[1:], strict=False)]
    mean = np.array([np.average(distance[batch.parts.indices[s]], weights=batch.parts.weights[s]) for s in mine])
    np.testing.assert_allclose(model.ood_distance(strange), model.typical.relative(mean), rtol=1e-4, atol=1e-5)
    assert model.ood_distance(strange).max() > 2 > model.ood_distance(batch).max()
    assert np.array_equal(model.ood_features(strange), far[batch.sources])


def test_gradients_are_those_of_the_slow_mean() -> None:
    batch = batch_at_random()
    model = student(dropout=0.0, input_dropout=0.0)
    loss = model(gather([batch], [None])).square().sum()
    loss.backward()
    fast = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    values = model.per_token(torch.from_numpy(batch.features))
    total = torch.zeros(())
    for a, b in zip(batch.parts.indptr, batch.parts.indptr[1:], strict=False):
        shares = torch.from_numpy(batch.parts.weights[a:b])
        total = total + (shares[:, None] * values[torch.from_numpy(batch.parts.indices[a:b])]).sum(dim=0).square().sum()
    total.backward()
    for one, p in zip(fast, model.parameters(), strict=True):
        torch.testing.assert_close(one, p.grad, rtol=1e-4, atol=1e-5)


def test_it_round_trips_through_a_folder(tmp_path: Path) -> None:
    batches = [batch_at_random(seed=s) for s in range(2)]
    config = Student.Config(hidden=(5,), epochs=2, token_um=16, footprint_um=56)
    model, _ = training.fit(Student, config, batches, groups=["a", "b"])
    model.record.genes = list("ABCD")
    model.record.training = {"token_um": 16.0}
    back = models.load(models.save(model, tmp_path / "m"))
    assert isinstance(back, Student)
    assert back.config == config
    assert back.needs == model.needs
    assert (back.needs.token_um, back.needs.footprint_um, back.needs.tokens) == (16.0, 56.0, True)
    assert back.support_um == model.support_um == 16.0
    assert back.id == model.id
    np.testing.assert_array_equal(back.predict(batches[0])[0], model.predict(batches[0])[0])
    np.testing.assert_array_equal(back.ood_distance(batches[0]), model.ood_distance(batches[0]))


def test_the_same_seed_gives_the_same_student() -> None:
    batches = [batch_at_random(seed=s) for s in range(2)]
    config = Student.Config(hidden=(5,), epochs=2)
    state = torch.get_rng_state()
    first, again, other = (training.fit(Student, config, batches, groups=["a", "b"], seed=s)[0].id for s in (0, 0, 1))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"output": "relu"}, r"`output`='relu' cannot reach standardised genes: pass scale_genes=False"),
        ({"output": "softplus"}, r"`output`='softplus' cannot reach"),
        ({"output": "sigmoid", "scale_genes": False}, "output"),
        ({"activation": "tanh"}, "activation"),
        ({"hidden": (8, 0)}, "hidden"),
        ({"dropout": 1.0}, "dropout"),
        ({"input_dropout": -0.1}, "input_dropout"),
        ({"token_um": 0}, "token_um"),
        ({"token_um": -8.0}, "token_um"),
        ({"footprint_um": float("nan")}, "footprint_um"),
        ({"standardize": "batch"}, "standardize"),
    ],
)
def test_settings_that_cannot_be_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Student.Config(**config)


def test_settings_as_published_are_taken() -> None:
    config = Student.Config(
        hidden=(1024, 512),
        dropout=0,
        input_dropout=0,
        output="relu",
        scale_genes=False,
        epochs=5,
        standardize="none",
        footprint_um=112,
    )
    assert Student.Config.parse(config.to_dict()) == config
    model = Student(config, n_features=WIDTH, n_genes=GENES)
    assert not model.needs.slide_statistics
    assert model.head is None
    assert [layer.out_features for layer in model.layers] == [1024, 512, GENES]
    assert Student.Config(output="relu", loss="cosine").output == "relu"  # nothing is standardised there
    with pytest.raises(InputError, match="has no fields"):
        Student.Config.parse({"n_hidden": 3})


# On slides.


def on_cells(slides: dict[str, SpatialData]) -> tuple[NDArray[np.float64], models.Model]:
    """Return the correlation of each gene on the cells of the third donor, learned from spots of two others."""
    config = Student.Config(hidden=(32,), epochs=30, batch_size=32, dropout=0.1, input_dropout=0.1)
    train = {k: slides[k] for k in ("donor0", "donor1")}
    model = st.tl.train(train, config, shapes_key="spots", genes="all")
    table = st.tl.predict(slides["donor2"], model, shapes_key="cells", inplace=False)
    known = slides["donor2"].tables["cells_counts"]
    expected = known.layers["expected"].astype(np.float64)
    truth = np.log1p(1e4 * expected / expected.sum(axis=1, keepdims=True))
    return st.metrics.pearson(table.X.astype(float), truth[:, known.var_names.get_indexer(table.var_names)]), model


@pytest.fixture(scope="module")
def tissues() -> list[Any]:
    return [st.datasets.make_tissue(size_um=(500, 500), donor=d, n_genes=24) for d in range(3)]


def test_it_learns_finer_expression_than_it_was_shown(tissues: list[Any]) -> None:
    score, model = on_cells({f"donor{d}": st.datasets.toy(tissue=t) for d, t in enumerate(tissues)})
    assert np.nanmean(score) > 0.4
    assert model.support_um == model.record.training["token_um"] == 8.0


def test_it_learns_nothing_from_shuffled_expression(tissues: list[Any]) -> None:
    score, model = on_cells({f"donor{d}": st.datasets.toy(tissue=t, shuffled=True) for d, t in enumerate(tissues)})
    assert abs(np.nanmean(score)) < 0.1
    assert np.nanmax(np.abs(score)) < 0.3
    assert not any(model.record.var["trusted"])


def test_support_is_the_patch_that_was_asked_for(tissues: list[Any]) -> None:
    config = Student.Config(hidden=(16,), epochs=2, token_um=16)
    model = st.tl.train(st.datasets.toy(tissue=tissues[0]), config, shapes_key="spots", genes="all")
    assert model.support_um == model.record.training["token_um"] == 16.0

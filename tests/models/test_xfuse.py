"""XFuse: bound, metagenes and read-out against what is slow and plain to see."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from stpred import InputError, Posterior
from stpred.data._readers.canvas import Canvas
from stpred.data._readers.pixels import SlidePixelGrid
from stpred.models import Batch, XFuse
from stpred.models.parts.pixel_grid import Window
from stpred.models.xfuse import config, likelihood, posterior
from stpred.models.xfuse.covariates import Covariates
from stpred.models.xfuse.initial import first_profiles, fit_baselines
from stpred.models.xfuse.metagenes import Change
from stpred.models.xfuse.networks import Decoder, Encoder
from stpred.models.xfuse.posterior import Draws, draw_posterior
from stpred.models.xfuse.sample import PatchSample
from stpred.tiles import Level, Pyramid

from . import naive_xfuse

COVARIATES: dict[str, dict[str, str | None]] = {
    "a": {"patient": "p1", "batch": "x"},
    "b": {"patient": "p2", "batch": None},
    "c": {"patient": "p2", "batch": "y"},
}
N_PATCHES = {"a": 4, "b": 6, "c": 3}


def stirred(model: XFuse, *, seed: int = 0, spread: float = 0.4) -> XFuse:
    """Return a model of which nothing is at its start, outside of training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim < 3 or name.startswith("effect"):
                value += spread * torch.randn(value.shape, generator=generator)
        for layer in (model.image_mean[-1], model.image_spread[-1], model.scale[-1], model.metagene):
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))  # type: ignore[union-attr, operator]
        for name, value in model.named_buffers():
            if name.endswith("running_mean"):
                value.copy_(0.3 * torch.randn(value.shape, generator=generator))
            elif name.endswith("running_var"):
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
    return model.eval()


def tiny(**more: Any) -> XFuse:
    """A model of five genes with metagenes 0, 2 and 5."""
    torch.manual_seed(1)
    settings = {"depth": 2, "width": 3, "metagenes": 3, "max_metagenes": 6, "covariates": COVARIATES, **more}
    model = stirred(XFuse(XFuse.Config(**settings), n_features=1, n_genes=5))
    if settings["metagenes"] == 3:
        model.active.copy_(torch.tensor([True, False, True, False, False, True]))
    return model


def patches(slides: tuple[str, ...] = ("a", "b", "a"), *, edge: int = 8, seed: int = 0) -> PatchSample:
    """Patches with three regions each, the last of them without counts, and a last region without pixels."""
    rng = np.random.default_rng(seed)
    b, size = len(slides), edge * edge
    pixels, regions = [], []
    for k in range(b):
        order = rng.permutation(size)
        for r, n in enumerate((9, 5, 20)):
            pixels.append(k * size + np.sort(order[r * 20 : r * 20 + n]))
            regions.append(np.full(n, 3 * k + r))
    counts = rng.poisson(rng.gamma(2.0, 3.0, (3 * b + 1, 5))).astype(np.float32)
    counts[2::3] = 0
    counts[-1] = 0
    known = np.ones((b, 5), dtype=bool)
    known[[s == "b" for s in slides], 3] = False
    on_image = np.ones((b, edge, edge), dtype=bool)
    on_image[0, :, :2] = False
    arrays: dict[str, NDArray[Any]] = {
        "image": rng.uniform(-0.9, 0.9, (b, 3, edge, edge)).astype(np.float32),
        "on_image": on_image,
        "pixel": np.concatenate(pixels),
        "region": np.concatenate(regions),
        "owner": np.append(np.repeat(np.arange(b), 3), b - 1),
        "counts": counts,
        "measured": known,
    }
    return PatchSample(**{k: torch.from_numpy(v) for k, v in arrays.items()}, slides=slides, n_patches=dict(N_PATCHES))


# The bound.


@pytest.mark.parametrize("seed", [0, 1])
def test_every_term_of_the_bound_is_the_literal_one(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sample = tiny(), patches(seed=seed)
    torch.manual_seed(seed)
    draws = naive_xfuse.recorded(monkeypatch)
    with torch.no_grad():
        found = model(sample)
    monkeypatch.undo()
    assert len(draws.like) == 2 + 3  # two levels of latents, and effects of each patch
    want = naive_xfuse.elbo(model, sample, draws)
    for name, value in want.items():
        assert float(getattr(found, name)) == pytest.approx(value, rel=1e-4), name
        assert value != 0, name
    signed = want["image"] + want["expression"] - want["latents"] - want["metagenes"] - want["effects"] - want["levels"]
    assert float(model.loss(found, sample)) == pytest.approx(-signed, rel=1e-4)


def test_bound_without_covariates_and_with_patches_of_another_size(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(depth=3, width=2, covariates={})
    sample = patches(("s", "s"), edge=9)  # not a multiple of 4: latents of 9, 5 and 3
    sample.n_patches = {"s": 10}
    draws = naive_xfuse.recorded(monkeypatch)
    with torch.no_grad():
        found = model(sample)
    monkeypatch.undo()
    want = naive_xfuse.elbo(model, sample, draws)
    for name, value in want.items():
        assert float(getattr(found, name)) == pytest.approx(value, rel=1e-4, abs=1e-12), name
    assert [d.shape[2] for d in draws.like] == [9, 5, 3]


def test_patches_without_any_region_are_images(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = patches()
    for name in ("pixel", "region", "owner", "counts"):
        setattr(sample, name, getattr(sample, name)[:0])
    draws = naive_xfuse.recorded(monkeypatch)
    with torch.no_grad():
        found = tiny()(sample)
    monkeypatch.undo()
    assert float(found.expression) == 0
    want = naive_xfuse.elbo(tiny(), sample, draws)
    assert float(found.image) == pytest.approx(want["image"], rel=1e-4)
    assert np.isfinite(float(found.total()))


def test_gradients_reach_everything_in_use_and_nothing_else() -> None:
    model, sample = tiny().train(), patches()
    model.loss(model(sample), sample).backward()
    for name, value in model.named_parameters():
        assert value.grad is not None, name
        assert torch.isfinite(value.grad).all(), name
        assert value.grad.abs().sum() > 0, name
    for value in (model.profile_mean, model.profile_log_std, model.metagene.weight, model.metagene.bias):
        rows = value.grad.flatten(1) if value.ndim > 1 else value.grad[:, None]  # type: ignore[union-attr]
        assert (rows.abs().sum(dim=1) > 0).tolist() == model.active.tolist()


def test_counts_of_an_unknown_level_teach_its_effect_and_how_likely_it_is() -> None:
    model, sample = tiny(), patches(("b",))
    model(sample).expression.backward()
    moved = model.effect_mean.grad.abs().sum(dim=(0, 2)) > 0  # type: ignore[union-attr]
    assert moved[:2].sum() == 1  # the batch that was drawn
    assert moved[2:].tolist() == [False, True]  # patient p2
    assert model.level_logits.grad is not None
    assert model.level_logits.grad.any()


def test_profile_of_a_single_metagene_is_not_learned() -> None:
    model, sample = tiny(metagenes=1).train(), patches()
    model.loss(model(sample), sample).backward()
    for value in (model.profile_mean, model.profile_log_std):
        assert value.grad is None or not value.grad.any()
    assert model.log_rate.grad is not None
    assert model.log_rate.grad.any()


@pytest.mark.parametrize(("where", "names"), [("counts", "'expression'"), ("image", "'(image|latents)'")])
def test_step_that_is_not_finite_is_named(where: str, names: str) -> None:
    model, sample = tiny(), patches(("a", "c"))
    if where == "counts":
        sample.counts[1, 2] = torch.nan
    else:
        sample.image[0, 1, 4, 4] = torch.nan
    with torch.no_grad():
        found = model(sample)
    with pytest.raises(InputError, match=names) as error:
        model.loss(found, sample)
    assert "a, c" in str(error.value) or "['a', 'c']" in str(error.value)


def test_rates_of_the_optimiser_are_those_of_each_kind_of_parameter() -> None:
    model = tiny(lr=0.01, lr_global=0.01)
    lr = {id(p): group["lr"] for group in model.optimizer().param_groups for p in group["params"]}
    assert len(lr) == sum(1 for _ in model.parameters())
    for name, value in model.named_parameters():
        if name in ("log_rate", "logit"):
            want = 0.05
        elif name in ("profile_mean", "profile_log_std", "effect_mean", "effect_log_std", "level_logits"):
            want = 0.02
        else:
            want = 0.01
        assert lr[id(value)] == pytest.approx(want), name


# Counts of pixels and of regions.


def test_pixels_counts_add_up_to_the_regions() -> None:
    rates = torch.tensor([0.3, 1.7, 0.02, 4.0], dtype=torch.double)
    logits = torch.tensor(0.4, dtype=torch.double)
    k = torch.arange(400, dtype=torch.double)
    together = np.array([1.0])
    for rate in rates:
        together = np.convolve(together, likelihood.negative_binomial(k, rate, logits).exp().numpy())[:400]
    one = torch.zeros(1, 1, dtype=torch.double)
    total = likelihood.total_counts(rates.sum().reshape(1, 1), one, one)
    region = likelihood.negative_binomial(k, total[0, 0], logits).exp().numpy()
    np.testing.assert_allclose(together, region, atol=1e-6)
    assert region.sum() == pytest.approx(1, abs=1e-6)
    assert (region * k.numpy()).sum() == pytest.approx(float(rates.sum() * logits.exp()), rel=1e-5)
    assert naive_xfuse.log_nb_pmf(7, 6.02 + 1e-8, 0.4) == pytest.approx(np.log(region[7]), rel=1e-6)


def test_sums_over_regions_are_those_of_a_loop() -> None:
    rng = np.random.default_rng(0)
    values, region = rng.normal(size=(50, 3)), np.sort(rng.integers(0, 6, 50))
    region[region == 4] = 5  # one without pixels
    found = likelihood.region_sums(torch.from_numpy(values), torch.from_numpy(region), 6)
    want = [values[region == r].sum(axis=0) for r in range(6)]
    np.testing.assert_allclose(found, want, atol=1e-12)


def reduced_slowly(case: dict[str, Tensor], n_regions: int) -> NDArray[np.float64]:
    """Log likelihood of the model of each set of others, minus that of all, in double precision."""

    def log_likelihood(kept: list[int]) -> float:
        a = torch.softmax(case["logits"][:, kept].double(), dim=1) * case["scale"].double()[:, None]
        total = torch.zeros(n_regions, case["counts"].shape[1], dtype=torch.double)
        for p, r in enumerate(case["region"].tolist()):
            for j, m in enumerate(kept):
                total[r] += a[p, j] * case["profiles"][m].double().exp() * case["base"][r].double().exp()
        found = likelihood.negative_binomial(case["counts"].double(), total + 1e-8, case["success"].double())
        return float((found * case["measured"]).sum())

    m = case["logits"].shape[1]
    full = log_likelihood(list(range(m)))
    return np.array([log_likelihood([j for j in range(m) if j != k]) - full for k in range(m)])


@pytest.mark.parametrize("spread", [1.0, 5.0, "saturated"])
@pytest.mark.parametrize("m", [2, 4])
def test_leaving_one_out_is_the_model_without_it(spread: float | str, m: int) -> None:
    generator = torch.Generator().manual_seed(m)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    logits = normal(40, m) * (1.0 if isinstance(spread, str) else spread)
    if spread == "saturated":
        logits = 40 * torch.sign(logits)  # ties of those at the top as well as of those at the bottom
        logits[:3] = torch.tensor([40.0] + [-40.0] * (m - 1))
        logits[3, :] = 40.0
    region = torch.arange(40) // 8
    region[region == 3] = 4  # one region is empty
    counts = torch.poisson(torch.rand(5, 6, generator=generator) * 12, generator=generator)
    counts[3] = counts[1] = 0
    case = {
        "logits": logits,
        "scale": torch.rand(40, generator=generator) + 0.1,
        "region": region,
        "profiles": normal(m, 6),
        "base": 0.5 * normal(5, 6),
        "success": normal(5, 6),
        "counts": counts,
        "measured": torch.rand(5, 6, generator=generator) > 0.2,
    }
    found = likelihood.leave_one_out(n_regions=5, **case)
    np.testing.assert_allclose(found, reduced_slowly(case, 5), atol=1e-3)


def test_leaving_out_the_only_one_changes_nothing() -> None:
    case = {k: torch.rand(4, 1) for k in ("logits",)} | {"scale": torch.rand(4), "region": torch.zeros(4).long()}
    one = torch.rand(1, 3)
    found = likelihood.leave_one_out(
        n_regions=1, profiles=one, base=one, success=one, counts=one.round(), measured=one > -1, **case
    )
    assert found.tolist() == [0.0]


def test_scores_of_metagenes_are_differences_of_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    model, samples = tiny(), [patches(seed=0), patches(("b", "c"), seed=1)]
    naive_xfuse.recorded(monkeypatch, noise=False)
    found = model.leave_one_out(samples, draws=2)
    assert list(found) == [0, 2, 5]
    with torch.no_grad():
        full = sum(float(model(s).total().double()) for s in samples)
        for m in found:
            model.active[m] = False
            without = sum(float(model(s).total().double()) for s in samples)
            model.active[m] = True
            assert found[m] == pytest.approx(without - full, abs=0.02), m
    assert len({round(v, 1) for v in found.values()}) == 3
    assert max(abs(v) for v in found.values()) > 1


def test_scores_leave_the_model_in_training() -> None:
    model = tiny().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.leave_one_out([patches()], draws=1)
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name  # running statistics included


# Reviews of the metagenes.


def test_copy_takes_over_parameters_and_the_optimisers_state() -> None:
    model, sample = tiny().train(), patches()
    optimizer = model.optimizer()
    for _ in range(2):
        optimizer.zero_grad()
        model.loss(model(sample), sample).backward()
        optimizer.step()
    own = [model.profile_mean, model.profile_log_std, model.metagene.weight, model.metagene.bias]
    before = [p.detach().clone() for p in own]
    moments = [{k: v.clone() for k, v in optimizer.state[p].items()} for p in own]  # type: ignore[index]
    model._change(Change(dropped=[2], added=[(2, 0), (1, 5), (4, None)]))
    assert model.active.tolist() == [True, True, True, False, True, True]
    for p, old, state in zip(own, before, moments, strict=True):
        for new, parent in ((2, 0), (1, 5)):
            assert torch.equal(p[new], old[parent])  # type: ignore[index]
        for stays in (0, 3, 5):
            assert torch.equal(p[stays], old[stays])  # type: ignore[index]
        now = optimizer.state[p]  # type: ignore[index]
        assert {"exp_avg", "exp_avg_sq"} < set(now)
        for name in set(now) - {"step"}:
            assert torch.equal(now[name][2], state[name][0])
            assert torch.equal(now[name][1], state[name][5])
            assert torch.equal(now[name][5], state[name][5])
            assert not now[name][4].any()
            assert state[name][5].any()
    assert not model.profile_mean[4].any()
    assert torch.allclose(model.profile_log_std[4].exp(), torch.tensor(0.01))
    optimizer.zero_grad()
    model.loss(model(sample), sample).backward()  # and on it goes
    optimizer.step()


def test_reviews_are_due_each_interval_but_the_last_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(epochs=22, purge_interval=5)
    asked: list[tuple[int, int]] = []

    def scores(samples: Any, *, draws: int) -> dict[int, float]:
        asked.append((epoch, draws))
        return {m: -1.0 if m != 2 else 1.0 for m in np.flatnonzero(model.active.numpy()).tolist()}

    monkeypatch.setattr(model, "leave_one_out", scores)
    history = {}
    for epoch in range(1, 23):
        assert model.review(epoch, lambda: []) is False
        history[epoch] = np.flatnonzero(model.active.numpy()).tolist()
    assert [epoch for epoch, _ in asked[:4]] == [5, 10, 15, 22]
    assert all(draws == 3 for _, draws in asked)
    assert history[4] == [0, 2, 5]
    assert len(history[5]) == 4  # 0 and 5 and their copies, of which one is in the place of 2
    assert 2 not in history[22]
    assert len(history[22]) >= 3
    forest = [v for v in model.forest.tolist() if v != -2]
    assert sorted(v for v in forest if v >= 0) == history[15]


def test_last_review_leaves_one_metagene_where_all_are_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(epochs=3, strategy="extra")

    def scores(samples: Any, *, draws: int) -> dict[int, float]:
        return {m: {0: 3.0, 2: 1.0, 5: 2.0}[m] for m in np.flatnonzero(model.active.numpy()).tolist()}

    monkeypatch.setattr(model, "leave_one_out", scores)
    model.review(3, lambda: [])
    assert np.flatnonzero(model.active.numpy()).tolist() == [2]


def test_of_two_that_stand_for_the_same_only_one_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(epochs=3)

    def scores(samples: Any, *, draws: int) -> dict[int, float]:
        left = np.flatnonzero(model.active.numpy()).tolist()
        twins = {0, 2} <= set(left)
        return {m: (0.5 if twins and m in (0, 2) else -10.0) for m in left}

    monkeypatch.setattr(model, "leave_one_out", scores)
    model.review(3, lambda: [])
    assert len(left := np.flatnonzero(model.active.numpy()).tolist()) == 2
    assert 5 in left


# Networks and starts.


def test_networks_have_about_the_published_numbers_of_parameters() -> None:
    guide, decoder = Encoder(6, 16), Decoder(6, 16)

    def millions(*parts: torch.nn.Module) -> float:
        return sum(p.numel() for part in parts for p in part.parameters()) / 1e6

    assert millions(guide.first, guide.levels, guide.down) == pytest.approx(10.7, rel=0.03)
    assert millions(guide.mean, guide.spread) == pytest.approx(1.4, rel=0.03)
    assert millions(decoder) == pytest.approx(12.2, rel=0.03)
    assert millions(guide) == pytest.approx(10.7 + 1.4, rel=0.03)


@pytest.mark.parametrize(("height", "width"), [(37, 51), (64, 64), (1, 1), (33, 16)])
def test_features_come_back_at_the_size_of_the_image(height: int, width: int) -> None:
    guide, decoder = Encoder(4, 2).eval(), Decoder(4, 2).eval()
    with torch.no_grad():
        found = guide(torch.rand(2, 3, height, width))
        assert decoder([mean for mean, _ in found]).shape == (2, 2, height, width)
    for i, (mean, std) in enumerate(found):
        want = (2, 2 * 2**i, -(-height // 2**i), -(-width // 2**i))
        assert mean.shape == std.shape == want
        assert (std > 0).all()


def test_baselines_are_those_that_counts_were_drawn_from() -> None:
    rng = np.random.default_rng(0)
    total, logit = np.array([0.5, 3.0, 10.0, 1.0, 2.0]), np.array([1.0, 0.0, 0.5, -1.0, 2.5])
    counts = rng.poisson(rng.gamma(total, np.exp(logit), (6000, 5))).astype(np.float32)
    rate, found = fit_baselines(torch.from_numpy(counts), torch.ones(6000, 5, dtype=torch.bool))
    mean = (rate + found).exp().numpy()
    np.testing.assert_allclose(mean, counts.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(mean, total * np.exp(logit), rtol=0.06)
    np.testing.assert_allclose(found, logit, atol=0.25)
    np.testing.assert_allclose(rate, np.log(total), atol=0.25)


def test_baselines_of_odd_genes_are_finite_and_of_known_rows_alone() -> None:
    rng = np.random.default_rng(1)
    counts = rng.poisson(rng.gamma(2.0, 3.0, (400, 5))).astype(np.float32)
    counts[:, 0] = 0
    counts[:, 1] = 7
    counts[:200, 2] = 0  # not measured there
    counts[:, 4] = 0
    known = np.ones((400, 5), dtype=bool)
    known[:200, 2] = False
    known[:, 4] = False  # nowhere
    rate, logit = fit_baselines(torch.from_numpy(counts), torch.from_numpy(known))
    assert torch.isfinite(rate).all()
    assert torch.isfinite(logit).all()
    mean = (rate + logit).exp().numpy()
    assert 0 < mean[0] < 0.01
    np.testing.assert_allclose(mean[1:4], [7, counts[200:, 2].mean(), counts[:, 3].mean()], rtol=1e-4)
    alone = fit_baselines(torch.from_numpy(counts[200:, 2:3]), torch.ones(200, 1, dtype=torch.bool))
    np.testing.assert_allclose([rate[2], logit[2]], [alone[0][0], alone[1][0]], atol=0.02)


def test_first_profiles_are_parts_of_the_counts() -> None:
    rng = np.random.default_rng(2)
    parts = np.ones((2, 8))
    parts[0, :3] = parts[1, 5:] = 20.0
    parts /= parts.sum(axis=1, keepdims=True)
    share = rng.beta(0.4, 0.4, (300, 1))
    counts = rng.poisson(800 * (share * parts[0] + (1 - share) * parts[1])).astype(np.float32)
    logits = torch.zeros(8)
    profiles, deviation = first_profiles(
        torch.from_numpy(counts), torch.ones(300, 8, dtype=torch.bool), 2, logits=logits
    )
    assert ((0 < deviation) & (deviation < 0.2)).all()  # hundreds of thousands of counts leave little open
    found = profiles.numpy()
    assert np.abs(found).max() <= 3
    found = found[np.argsort(-found[:, 0])]
    assert (found[0, :3] > 0.3).all()
    assert (found[0, 5:] < -0.5).all()
    assert (found[1, 5:] > 0.3).all()
    assert (found[1, :3] < -0.5).all()
    empty, open_ = first_profiles(torch.zeros(20, 8), torch.ones(20, 8, dtype=torch.bool), 3, logits=logits)
    assert torch.isfinite(empty).all()
    assert (open_ > 0.99).all()  # nothing but the prior is known


def test_more_first_profiles_than_genes_or_locations_are_those_of_the_mean() -> None:
    counts = torch.from_numpy(np.random.default_rng(3).poisson(20.0, (30, 3)).astype(np.float32))
    for some in (counts, counts[:2].repeat(1, 4)):
        genes = some.shape[1]
        measured = torch.ones_like(some, dtype=torch.bool)
        profiles, deviation = first_profiles(some, measured, 8, logits=torch.zeros(genes))
        assert profiles.shape == deviation.shape == (8, genes)
        assert bool((profiles[:2] != 0).any())
        assert not profiles[min(some.shape) :].any()
        assert (deviation[min(some.shape) :] == 1).all()


# Draws.

MPP, SIDE = 4.0, 150


def slide(name: str = "a", *, seed: int = 0, radius: float = 5.0, n_genes: int = 5, side: int = SIDE) -> Batch:
    """A slide of blotches with discs on a square grid, and counts."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    field = np.stack([gaussian_filter(rng.normal(size=(side, side)), 4) for _ in range(3)])
    image = np.clip(150 + 300 * field + rng.normal(scale=10, size=field.shape), 0, 255).astype(np.uint8)
    canvas = Canvas(Pyramid([Level(image, np.diag([MPP, MPP, 1.0]))]), MPP)
    x, y = np.meshgrid(np.arange(10.0, side - 8, 15), np.arange(10.0, side - 8, 15))
    at = np.stack([x.ravel(), y.ravel()], axis=1) * MPP

    def says(target: NDArray[np.int64], xy: NDArray[np.float64]) -> NDArray[np.bool_]:
        return np.asarray(np.square(xy - at[target]).sum(axis=1) <= (radius * MPP) ** 2, dtype=bool)

    scene = SlidePixelGrid(canvas, at - radius * MPP, at + radius * MPP, at, says, canvas.bounds, 48)
    counts = rng.poisson(rng.gamma(3.0, 1.0, (len(at), n_genes)) * np.arange(1, n_genes + 1)).astype(np.float32)
    rows = np.arange(len(at))
    return Batch(name, np.zeros((len(at), 1), np.float32), rows, rows, at, y=counts, pixel_grid=scene)


def part(batch: Batch, rows: NDArray[np.int64]) -> Batch:
    n = np.arange(len(rows))
    scene: Any = batch.pixel_grid
    return Batch(
        batch.slide, batch.features[rows], n, n, batch.coords_um[rows], pixel_grid=scene.take(rows),
        y=None if batch.y is None else batch.y[rows],
    )  # fmt: skip


@pytest.fixture(scope="module")
def model() -> XFuse:
    """A model of three levels that tells places apart."""
    torch.manual_seed(0)
    config = XFuse.Config(depth=3, width=4, metagenes=3, max_metagenes=4, covariates=COVARIATES)
    model = stirred(XFuse(config, n_features=1, n_genes=5), spread=0.3).train()
    for layer in model.modules():  # statistics of all layers as on a slide, so that nothing dies away
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    scene: Any = slide().pixel_grid
    image = torch.from_numpy(scene.image(scene.bounds))[None]
    with torch.no_grad():
        h = model.decoder([mean + std * torch.randn_like(mean) for mean, std in model.guide(image)])
        model.mixture(h)
        model.picture(h)
    return model.eval()


@pytest.fixture(scope="module")
def batch() -> Batch:
    return slide()


def test_some_targets_are_read_as_among_all(model: XFuse, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posterior, "CORE", 64)  # nine tiles, of which the few targets need less
    few = Posterior(n_samples=3, seed=5)
    mean, std = model.predict(batch, few)
    rows = np.array([70, 3, 4, 44])
    some = model.predict(part(batch, rows), few)
    np.testing.assert_allclose(some[0], mean[rows], rtol=1e-5)
    np.testing.assert_allclose(some[1], std[rows], rtol=1e-4)  # type: ignore[index]
    assert (mean.std(axis=0) / mean.mean(axis=0)).min() > 0.05  # or else all of this says little
    again = model.predict(batch, few)
    np.testing.assert_array_equal(again[0], mean)
    other = model.predict(batch, Posterior(n_samples=3, seed=6))[0]
    assert np.abs(other / mean - 1).mean() > 0.01


@pytest.mark.parametrize(("margin", "off"), [(None, 0.03), (12, 1e-6)])  # 6: all that bears on a pixel
def test_tiles_hardly_matter(
    model: XFuse, batch: Batch, margin: int | None, off: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = Posterior(n_samples=2)
    if margin is not None:
        monkeypatch.setattr(posterior, "MARGIN", margin)
    whole = model.predict(batch, few)[0]
    monkeypatch.setattr(posterior, "CORE", 32)
    tiled = model.predict(batch, few)[0]
    assert not np.array_equal(whole, tiled)
    for g in range(5):
        assert np.corrcoef(whole[:, g], tiled[:, g])[0, 1] > 0.98
    assert np.abs(tiled / whole - 1).mean() < off


def test_sums_are_those_of_one_pass_over_the_slide(model: XFuse, batch: Batch) -> None:
    scene: Any = batch.pixel_grid
    reading = draw_posterior(model, batch, Posterior(n_samples=2, seed=3))
    inside = scene.inside(scene.bounds)
    with torch.no_grad():
        found = list(posterior.decoded(model, scene, scene.bounds, n_samples=2, seed=3))
    for s, (activation, scale) in enumerate(found):
        np.testing.assert_allclose(activation.sum(dim=1), 1, rtol=1e-5)
        want = np.zeros((len(batch.targets), 3))
        amount = (activation * scale[:, None]).numpy()[inside.pixel] * inside.share[:, None]
        np.add.at(want, inside.target, amount)
        np.testing.assert_allclose(reading.sums[s], want, rtol=1e-4)
    sizes = np.bincount(inside.target, weights=inside.share)
    np.testing.assert_allclose(reading.sizes, sizes, rtol=1e-5)
    np.testing.assert_allclose(sizes, np.pi * 25, rtol=0.05)


def test_what_is_decoded_of_a_place_does_not_depend_on_the_tile(
    model: XFuse, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posterior, "MARGIN", 12)
    scene: Any = batch.pixel_grid
    tile = Window(33, 50, 21, 30)  # off the lattice of the coarsest level, differently in rows and columns
    with torch.no_grad():
        every, some = (
            next(iter(posterior.decoded(model, scene, t, n_samples=1, seed=3))) for t in (scene.bounds, tile)
        )
    for a, b in zip(every, some, strict=True):
        part_of = a.reshape(SIDE, SIDE, -1)[33:54, 50:80]
        np.testing.assert_allclose(b.reshape(21, 30, -1), part_of, rtol=1e-4, atol=1e-6)


def test_noise_of_a_place_stays_whatever_window_is_read() -> None:
    channels = [2, 4, 8]
    one = posterior._noise(Window(-40, 52, 200, 156), channels, seed=9)
    two = posterior._noise(Window(60, -8, 72, 130), channels, seed=9)
    for i in range(3):
        step = 2**i
        top, left = 100 // step, 60 // step  # of the overlap, rows 60 to 132 and columns 52 to 122, in each
        a = one[i][0, :, top : top + 72 // step, : 70 // step]
        b = two[i][0, :, : 72 // step, left : left + 70 // step]
        assert torch.equal(a, b)
        assert one[i].shape == (1, channels[i], 200 // step, 156 // step)
        assert abs(float(one[i].mean())) < 0.05
        assert float(one[i].std()) == pytest.approx(1, abs=0.05)
        flat = one[i][0].flatten(1)
        assert len(torch.unique(flat[0])) > 0.999 * flat.shape[1]  # no block twice
    assert not torch.equal(one[0], posterior._noise(Window(-40, 52, 200, 156), channels, seed=10)[0])


def test_tiles_cover_what_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posterior, "CORE", 64)
    bounds = Window(-10, 5, 150, 200)
    tiles = posterior.tiles_of(np.array([[-10, 5, 139, 204]]), bounds)
    seen = np.zeros((150, 200), dtype=int)
    for t in tiles:
        seen[t.row + 10 : t.row + 10 + t.height, t.column - 5 : t.column - 5 + t.width] += 1
    assert (seen == 1).all()
    assert posterior.tiles_of(np.array([[70, 70, 80, 80]]), bounds) == [Window(64, 64, 64, 64)]
    assert len(posterior.tiles_of(np.array([[-30, 70, 300, 80]]), bounds)) == 4  # no tile off the image


def test_reading_changes_neither_model_nor_the_random_state(model: XFuse, batch: Batch) -> None:
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    np.random.seed(0)  # noqa: NPY002
    model.predict(part(batch, np.arange(3)), Posterior(n_samples=1))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    model.eval()


def reading(**more: Any) -> Draws:
    generator = torch.Generator().manual_seed(0)

    def positive(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) + 0.2

    s, n, m, g = 2, 4, 3, 5
    return Draws(
        5 * positive(s, n, m), torch.tensor([10.0, 20.0, 5.0, 1.5]), torch.log(positive(s, m, g)),
        torch.log(positive(s, g)), torch.log(positive(s, g)), Posterior(n_samples=s, **more),
    )  # fmt: skip


def gathered(found: Any, n: int = 4, g: int = 5) -> NDArray[np.float32]:
    blocks = list(found)
    out = np.full((len(blocks[0][2]), n, g), np.nan, dtype=np.float32)
    for rows, genes, values in blocks:
        assert np.isnan(out[:, rows, genes]).all()
        out[:, rows, genes] = values
    return out


def test_expected_counts_are_spelled_out(monkeypatch: pytest.MonkeyPatch) -> None:
    r = reading()
    want = np.zeros((2, 4, 5))
    for s in range(2):
        for i in range(4):
            for g in range(5):
                rate = sum(float(r.sums[s, i, m] * (r.profiles[s, m, g] + r.base[s, g]).exp()) for m in range(3))
                want[s, i, g] = rate * float(r.logits[s, g].exp())
    np.testing.assert_allclose(gathered(r.expected()), want, rtol=1e-5)
    sized = gathered(reading(normalize_size=True).expected())
    np.testing.assert_allclose(sized, want / np.array([10.0, 20.0, 5.0, 1.5])[:, None], rtol=1e-5)
    for values in (1, 7, 13):
        monkeypatch.setattr(posterior, "_VALUES", values)
        np.testing.assert_allclose(gathered(r.expected()), want, rtol=1e-5)


def test_drawn_counts_have_mean_and_variance_of_the_negative_binomial() -> None:
    r = reading()
    drawn = gathered(r.counts(repeats=20_000))
    assert (drawn == drawn.round()).all()
    mean = gathered(r.expected())
    odds = r.logits.exp().numpy()[:, None]
    for s in range(2):
        own = drawn[s::2].astype(np.float64)  # draws of a sample of the posterior
        np.testing.assert_allclose(own.mean(axis=0), mean[s], rtol=0.04)
        np.testing.assert_allclose(own.var(axis=0), mean[s] * (1 + odds[s]), rtol=0.08)
    np.testing.assert_array_equal(gathered(r.counts(repeats=2)), gathered(reading().counts(repeats=2)))


def test_normalised_readings(model: XFuse, batch: Batch) -> None:
    some = part(batch, np.arange(12))
    plain = draw_posterior(model, some, Posterior(n_samples=2))
    sized, _ = model.predict(some, Posterior(n_samples=2, normalize_size=True))
    mean, _ = model.predict(some, Posterior(n_samples=2))
    np.testing.assert_allclose(sized, mean / plain.sizes.numpy()[:, None], rtol=1e-5)
    unscaled = draw_posterior(model, some, Posterior(n_samples=2, normalize_scale=True))
    # With a scale of one each pixel counts once, however many metagenes share it.
    np.testing.assert_allclose(unscaled.sums.sum(dim=2), plain.sizes.expand(2, -1), rtol=1e-5)
    assert not np.allclose(plain.sums.sum(dim=2), plain.sizes.expand(2, -1), rtol=0.05)
    without = draw_posterior(model, some, Posterior(n_samples=2, normalize_covariates=True))
    for s in range(2):
        assert torch.equal(without.base[s], model.log_rate.detach())
        assert torch.equal(without.logits[s], model.logit.detach())
    assert torch.equal(without.profiles, plain.profiles)
    assert torch.equal(without.sums, plain.sums)
    scales = [
        Posterior(**{k: True}).output_scale for k in ("normalize_scale", "normalize_size", "normalize_covariates")
    ]
    assert scales == ["relative", "relative", "counts"]


def sure(model: XFuse) -> XFuse:
    """The model with effects that are known exactly."""
    with torch.no_grad():
        model.effect_log_std.fill_(-30)
    return model


def levels_of(model: XFuse, batch: Batch, **more: Any) -> list[tuple[int, int]]:
    """Return, for each sample, which rows of effects (batch, patient) were used."""
    found = draw_posterior(model, batch, Posterior(**more))
    out = []
    for s in range(len(found.base)):
        pairs = [
            (i, j)
            for i in (0, 1)
            for j in (2, 3)
            if torch.allclose(found.base[s], model.log_rate + model.effect_mean[0, i] + model.effect_mean[0, j])
            and torch.allclose(found.logits[s], model.logit + model.effect_mean[1, i] + model.effect_mean[1, j])
        ]
        out += pairs
    assert len(out) == len(found.base)
    return out


def test_draws_go_through_the_levels_that_may_be(batch: Batch) -> None:
    model = sure(tiny())
    few = part(batch, np.arange(1))

    def named(name: str) -> Batch:
        return Batch(name, few.features, few.targets, few.sources, few.coords_um, pixel_grid=few.pixel_grid)

    # Rows: batch x and y, patient p1 and p2.
    assert levels_of(model, named("a"), n_samples=3) == [(0, 2)] * 3
    assert levels_of(model, named("c"), n_samples=2) == [(1, 3)] * 2
    assert levels_of(model, named("a"), n_samples=2, covariates={"batch": "y"}) == [(1, 2)] * 2
    new = levels_of(model, named("new"), n_samples=10)
    for k in range(2):
        assert sorted(row[k] for row in new) == [2 * k] * 5 + [2 * k + 1] * 5
    assert len(set(new)) > 2  # not the same order for both
    given = levels_of(model, named("a"), n_samples=4, covariates={"patient": None})
    assert sorted(given) == [(0, 2), (0, 2), (0, 3), (0, 3)]
    with torch.no_grad():  # what training found of the level of b: 3 to 1
        model.level_logits[0] = torch.tensor([np.log(3.0), 0.0])
    assert sorted(levels_of(model, named("b"), n_samples=8)) == [(0, 3)] * 6 + [(1, 3)] * 2
    assert sorted(levels_of(model, named("b"), n_samples=8, covariates={"batch": None})) == [(0, 3)] * 4 + [(1, 3)] * 4


@pytest.mark.parametrize("normalised", [False, True])
def test_levels_and_covariates_that_were_not_seen_are_refused(batch: Batch, normalised: bool) -> None:
    model, few = tiny(), part(batch, np.arange(1))
    with pytest.raises(InputError, match=r"'patient' had no level 'p9'.*p1.*p2"):
        model.predict(few, Posterior(covariates={"patient": "p9"}, normalize_covariates=normalised))
    with pytest.raises(InputError, match=r"no covariates \['stain'\].*batch.*patient"):
        model.predict(few, Posterior(covariates={"stain": "he"}, normalize_covariates=normalised))


def test_covariates_of_training_are_checked() -> None:
    with pytest.raises(InputError, match=r"lacks the slides.*s2.*it has.*s1"):
        Covariates.restricted_to({"s1": {"p": "x"}}, ["s1", "s2"])
    with pytest.raises(InputError, match="No training slide has a level.*p"):
        Covariates.restricted_to({"s1": {"p": None}, "s2": {"p": "x"}}, ["s1"])
    slides = {"s1": {"p": "x"}, "s2": {"p": "y"}, "s3": {"p": "x"}}
    assert set(Covariates.restricted_to(slides, ["s1"])) == {"s1", "s3"}
    with pytest.raises(InputError, match="must map slides"):
        XFuse.Config(covariates={"s1": "x"})
    assert XFuse.Config().for_slides(["s1", "s2"]).covariates == {"s1": {"section": "s1"}, "s2": {"section": "s2"}}
    assert XFuse.Config().for_slides(["s1"]).covariates == {}


def test_new_model_predicts_means_of_counts_and_colours() -> None:
    batches = [slide("a"), slide("c", seed=1)]
    torch.manual_seed(0)
    model = XFuse(XFuse.Config(depth=2, width=4, metagenes=1, covariates=COVARIATES), n_features=1, n_genes=5)
    model.begin(batches)
    mean, _ = model.predict(batches[0], Posterior(n_samples=4))
    counts = np.concatenate([b.y for b in batches])  # type: ignore[misc]
    np.testing.assert_allclose(mean.mean(axis=0), counts.mean(axis=0), rtol=0.06)
    scene: Any = batches[0].pixel_grid
    picture, spread = model.picture(torch.zeros(1, 4, 2, 2))
    pixels = np.concatenate([b.pixel_grid.image(scene.bounds).reshape(3, -1) for b in batches], axis=1)  # type: ignore[union-attr]
    np.testing.assert_allclose(picture[0, :, 0, 0].detach(), pixels.mean(axis=1), atol=0.02)
    np.testing.assert_allclose(spread[0, :, 0, 0].detach(), pixels.std(axis=1), rtol=0.05)


def test_slide_without_pixels_or_a_setting_that_cannot_be_is_refused(model: XFuse) -> None:
    with pytest.raises(InputError, match="'s' came without its pixels"):
        model.predict(Batch.of(np.zeros((2, 1), np.float32), slide="s"))
    with pytest.raises(InputError, match="n_samples"):
        Posterior(n_samples=0)
    with pytest.raises(InputError, match="exceeds `max_metagenes`"):
        XFuse.Config(metagenes=5, max_metagenes=4)
    with pytest.raises(InputError, match="strategy"):
        XFuse.Config(strategy="none")
    with pytest.raises(InputError, match="epochs"):
        XFuse.Config(epochs=None)
    with pytest.raises(InputError, match="counts"):
        model.config.training_target("log1p_cp10k")
    assert config.XFuseConfig.published().purge_interval == 1000
    assert config.XFuseConfig.published().amsgrad

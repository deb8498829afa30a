"""Neighbours within one radius, and in rings between several."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import stpred as st
from stpred import InputError, training
from stpred.data import with_needs
from stpred.models import MLP, Batch, Ridge
from stpred.models.batch import Needs
from stpred.models.parts.context import context_needs, ring_means, seen_by
from stpred.models.parts.layers import ring_means_of_rows
from stpred.models.parts.sample import gather

RADII = (120.0, 250.0, 400.0)


def batch(slide: str = "a", *, n: int = 80, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 5)).astype(np.float32)
    xy = np.stack(np.meshgrid(np.arange(10), np.arange(n // 10)), axis=-1).reshape(-1, 2) * 100.0
    xy[-1] = [5000, 5000]  # one without neighbours
    return Batch(slide, x, np.arange(n), np.arange(n), xy, y=x[:, :3] + rng.normal(size=(n, 3)).astype(np.float32))


def naive_rings(b: Batch, radii: tuple[float, ...]) -> list[np.ndarray]:
    out = []
    for inner, outer in zip((0.0, *radii), radii, strict=False):
        rows = []
        for i, at in enumerate(b.coords_um):
            d = np.linalg.norm(b.coords_um - at, axis=1)
            ring = (d > max(inner, 1e-3)) & (d <= outer)
            rows.append(b.features[ring].mean(0) if ring.any() else (out[-1][i] if out else b.features[i]))
        out.append(np.array(rows))
    return out


def test_ring_means_equal_the_slow_ones_in_numpy_and_torch() -> None:
    b = with_needs(batch(), Needs(**context_needs(RADII)))
    want = naive_rings(b, RADII)
    for found, expected in zip(ring_means(b), want, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    sample = gather([b, b], [None, None])
    x = sample.features[sample.targets]
    for found, expected in zip(
        ring_means_of_rows(sample.features, sample.neighbors, sample.near, otherwise=x), want, strict=True
    ):
        np.testing.assert_allclose(found[: len(expected)].numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wanted", [None, 250.0, (120.0, 400.0), RADII])
def test_a_batch_of_all_radii_serves_each_model(wanted: float | tuple[float, ...] | None) -> None:
    both = with_needs(batch(), Needs(**context_needs(RADII)))
    alone = with_needs(batch(), Needs(**context_needs(wanted)))
    seen = seen_by(both, Needs(**context_needs(wanted)))
    assert seen.radii_um == alone.radii_um
    if wanted is None:
        assert seen.links is None
        return
    np.testing.assert_array_equal(seen.links.indices, alone.links.indices)
    np.testing.assert_array_equal(seen.links.indptr, alone.links.indptr)
    assert (seen.near is None) == (alone.near is None)
    with pytest.raises(InputError, match="without neighbours within"):
        seen_by(both, Needs(**context_needs((60.0, 120.0))))


@pytest.mark.parametrize(
    "config", [Ridge.Config(context_um=RADII), MLP.Config(context_um=RADII, hidden=(8,), epochs=2)]
)
def test_rows_do_not_depend_on_one_another(config: Ridge.Config | MLP.Config) -> None:
    b = with_needs(batch(), config.needs)
    model, _ = training.fit(config.model_class, config, [b], groups=["a"])
    rows = np.array([41, 79, 3])
    np.testing.assert_allclose(model.predict(b.take(rows))[0], model.predict(b)[0][rows], rtol=1e-4, atol=1e-4)


def test_a_model_of_rings_is_applied_at_its_pitch(tmp_path: object) -> None:
    slides = st.datasets.toy_cohort(2, size_um=(700, 700), n_genes=20)
    model = st.tl.train(slides, Ridge.Config(context_um=(260, 120)), shapes_key="spots")
    assert model.config.context_um == (120.0, 260.0)
    slide = slides["donor0"]
    same = st.tl.predict(slide, model, shapes_key="spots", inplace=False)
    path = st.models.save(model, f"{tmp_path}/m")
    again = st.models.load(path)
    assert again.config == model.config
    np.testing.assert_array_equal(st.tl.predict(slide, again, shapes_key="spots", inplace=False).X, same.X)
    st.pp.grid(slide, pitch_um=50)
    # A point of a finer grid takes its rings from the spots, however many grid points lie nearer.
    finer = st.tl.predict(slide, model, shapes_key="grid", inplace=False)
    part = st.tl.predict(slide, model, shapes_key="spots", inplace=False)
    near = np.linalg.norm(finer.obsm["spatial"][:, None] - part.obsm["spatial"][None], axis=-1)
    close = near.min(axis=1) < 30
    assert (
        np.corrcoef(np.asarray(finer.X)[close].ravel(), np.asarray(part.X)[near.argmin(1)[close]].ravel())[0, 1] > 0.5
    )


@pytest.mark.parametrize(
    "wrong", [(), (100.0, 100.0), (100.0, -1.0), (100.0, float("nan")), "far", tuple(range(1, 11))]
)
def test_wrong_radii_are_refused(wrong: object) -> None:
    for family in (Ridge, MLP):
        with pytest.raises(InputError, match="context_um"):
            family.Config(context_um=wrong)
    assert Ridge.Config(context_um=(100.0,)) == Ridge.Config(context_um=100.0)


def test_stored_radii_are_checked() -> None:
    config = Ridge.Config(context_um=RADII)
    assert Ridge.Config.parse({**config.to_dict(), "context_um": list(RADII)}) == config
    for wrong in ([1.0, "2"], [1.0, 1e9]):
        with pytest.raises(InputError, match="context_um"):
            Ridge.Config.parse({**config.to_dict(), "context_um": wrong})


def test_near_counts_go_with_the_targets() -> None:
    b = with_needs(batch(), Needs(**context_needs(RADII)))
    rows = np.array([5, 2])
    np.testing.assert_array_equal(b.take(rows).near, b.near[rows])
    assert (b.near[:, -1] == b.links.counts()).all()
    lone = replace(b, links=None)
    with pytest.raises(InputError, match="without neighbours"):
        ring_means(lone)
    assert isinstance(torch.as_tensor(b.near), torch.Tensor)

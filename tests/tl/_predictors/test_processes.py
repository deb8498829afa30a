"""Forked workers, threads and the global random state: prediction is at home in all of them."""

from __future__ import annotations

import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from spatialdata import SpatialData

import stpred as st
from stpred.models.base import Model

GENES = ["EPCAM", "COL1A2"]

_FORK = """
import multiprocessing
import numpy as np
import stpred as st

st.settings.max_upsampling = 4
slide = st.datasets.toy(size_um=(400.0, 500.0), mpp=1.0, n_genes=5)
trained = [
    st.tl.train(slide, family, genes={genes!r}, shapes_key="spots", encoder=encoder)
    for family, encoder in (("ridge", "morphology"), ("mlp", "intensity"))
]


def predict(k):
    return np.asarray(st.tl.predict(slide, trained[k], shapes_key="spots", inplace=False).X)


if __name__ == "__main__":
    before = [predict(k) for k in (0, 1)]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for k in (0, 1):
            for found in pool.map_async(predict, [k, k]).get(timeout=100):
                np.testing.assert_allclose(found, before[k], rtol=1e-5)
    for k in (0, 1):
        np.testing.assert_array_equal(predict(k), before[k])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks by default")
def test_forked_workers_predict_after_their_parent_did() -> None:
    script = _FORK.format(genes=GENES)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope="module")
def slides() -> list[SpatialData]:
    return [st.datasets.toy(size_um=(400.0, 500.0), mpp=1.0, n_genes=5, donor=d) for d in range(4)]


@pytest.fixture(scope="module")
def model(slides: list[SpatialData]) -> Model:
    return st.tl.train(slides[0], "ridge", genes=GENES, shapes_key="spots")


def predict(slide: SpatialData, model: Model) -> np.ndarray:
    return np.asarray(st.tl.predict(slide, model, shapes_key="spots", inplace=False).X)


@pytest.mark.filterwarnings("ignore:.*out of distribution:UserWarning")
@pytest.mark.parametrize("same", [True, False])
def test_four_threads_predict_what_one_does(slides: list[SpatialData], model: Model, same: bool) -> None:
    chosen = [slides[0]] * 4 if same else slides
    expected = [predict(slide, model) for slide in chosen]
    with ThreadPoolExecutor(4) as pool:
        for found, right in zip(pool.map(lambda s: predict(s, model), chosen), expected, strict=True):
            np.testing.assert_array_equal(found, right)


def state() -> tuple[bytes, bytes, str]:
    return torch.get_rng_state().numpy().tobytes(), np.random.get_state()[1].tobytes(), str(random.getstate())  # noqa: NPY002


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_global_random_state_is_left_alone(slides: list[SpatialData], model: Model) -> None:
    before = state()
    predict(slides[1], model)
    st.pp.tissue(slides[1])
    st.pp.nuclei(slides[1])
    config = st.models.MLP.Config(hidden=(8,), epochs=1)
    st.tl.train(slides[1], config, genes=GENES, shapes_key="spots", encoder="intensity")
    st.tl.cross_validate(
        {"a": slides[1], "b": slides[2]}, ["ridge"], groups={"a": "A", "b": "B"}, genes=GENES, shapes_key="spots",
        encoder="intensity",
    )  # fmt: skip
    assert state() == before

from __future__ import annotations

import os
import threading

import dask
import dask.array as da
import numpy as np
import pytest

from stpred._core.compute import threads
from stpred._core.compute.threads import dask_in_process, in_threads, n_threads


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


@pytest.mark.parametrize(
    ("text", "expected"), [("1", 1), ("3", 3), ("40", 8), ("4,2", 4), ("", 8), ("0", 8), ("many", 8), ("-1", 8)]
)
def test_as_many_as_the_environment_allows_and_the_cores_hold(
    text: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert n_threads() == expected
    assert n_threads(2) == min(expected, 2)


def test_without_the_variable_every_core_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert n_threads() == 8
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert n_threads() == 1


def test_results_come_in_order_and_one_thread_is_the_callers_own() -> None:
    def work(k: int) -> tuple[int, int]:
        return k, threading.get_ident()

    own = threading.get_ident()
    assert in_threads(work, range(5), threads=1) == [(k, own) for k in range(5)]
    found = in_threads(work, range(5), threads=3)
    assert [k for k, _ in found] == list(range(5))
    assert own not in {thread for _, thread in found}
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda k: 1 // k, range(3), threads=3)


@pytest.mark.parametrize("allowed", ["1", "2"])
def test_dask_computes_in_this_process(allowed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", allowed)
    array = da.ones((4, 4), chunks=2).map_blocks(lambda x: x * threading.get_ident(), dtype=np.int64)
    with dask.config.set(scheduler="processes"), dask_in_process():
        assert dask.config.get("scheduler") == threads.dask_options()["scheduler"]
        found = set(np.unique(array.compute()))
    assert (found == {threading.get_ident()}) == (allowed == "1")

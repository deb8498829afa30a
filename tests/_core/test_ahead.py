from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator

import pytest

from stpred._core.compute.ahead import ahead


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stpred._core.compute.ahead.n_threads", lambda: 2)


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("stpred-ahead")]


@pytest.mark.parametrize("n", [1, 3, 50])
def test_items_come_in_their_order(n: int) -> None:
    assert list(ahead(range(20), n)) == list(range(20))
    assert list(ahead(iter([None, False, None]), n)) == [None, False, None]
    assert list(ahead([], n)) == []
    assert threads() == []


@pytest.mark.parametrize("n", [1, 2])
def test_no_more_than_n_are_made_ahead_in_another_thread(n: int) -> None:
    made: list[int] = []
    by: set[str] = set()
    waiting = threading.Semaphore(0)

    def items() -> Iterator[int]:
        for k in range(10):
            by.add(threading.current_thread().name)
            made.append(k)
            waiting.release()
            yield k

    taken = ahead(items(), n)
    assert made == []  # nothing before the first is asked for
    for k in range(3):
        assert next(taken) == k
        for _ in range(n + 1 if k == 0 else 1):
            assert waiting.acquire(timeout=10)  # the next ones are made although nobody asks for them
        assert len(made) == k + 1 + n
    taken.close()
    assert len(by) == 1
    assert threading.current_thread().name not in by


def test_an_error_comes_at_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("the file is cut off")

    taken = ahead(items(), 5)
    assert [next(taken), next(taken)] == [1, 2]
    with pytest.raises(OSError, match="cut off"):
        next(taken)
    assert threads() == []
    assert list(taken) == []


def test_with_one_thread_nothing_is_made_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stpred._core.compute.ahead.n_threads", lambda: 1)
    made: list[str] = []

    def items() -> Iterator[int]:
        try:
            for k in range(3):
                made.append(threading.current_thread().name)
                yield k
            raise OSError("the file is cut off")
        finally:
            made.append("closed")

    own = threading.current_thread().name
    taken = ahead(items(), 2)
    assert (next(taken), next(taken), made) == (0, 1, [own, own])
    taken.close()
    assert made == [own, own, "closed"]
    with pytest.raises(OSError, match="cut off"):
        list(ahead(items()))


def test_beside_a_gpu_items_are_made_ahead_with_one_thread_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stpred._core.compute.ahead.n_threads", lambda: 1)
    by = list(ahead((threading.current_thread().name for _ in range(3)), beside=True))
    assert len(by) == 3
    assert threading.current_thread().name not in by


def test_closing_early_ends_the_thread_and_the_items() -> None:
    closed = []

    def items() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            closed.append(True)

    taken = ahead(items(), 2)
    assert next(taken) == 0
    assert len(threads()) == 1
    taken.close()
    assert (threads(), closed) == ([], [True])
    next(ahead(items()))  # dropped without being closed
    assert threads() == []


def in_child() -> list[int]:
    return list(ahead(range(5)))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_has_a_thread_of_its_own() -> None:
    started = ahead(range(5))
    next(started)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(in_child).get(timeout=60) == [0, 1, 2, 3, 4]
    assert list(started) == [1, 2, 3, 4]

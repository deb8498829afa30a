"""Progress without a terminal: lines for the command line, nothing elsewhere."""

from __future__ import annotations

import pytest

from stpred import settings
from stpred._core import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test moves."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    monkeypatch.setattr(settings, "progress", None)
    return now


def test_a_line_every_half_minute_with_the_time_that_is_left(clock: list[float], capsys: pytest.CaptureFixture) -> None:
    with progress.lines():
        for _ in progress.track(range(10), total=10, describe="folds"):
            clock[0] += 20
    assert capsys.readouterr().err.splitlines() == [
        "folds: 2 of 10 (20%), about 3 min left",
        "folds: 4 of 10 (40%), about 2 min left",
        "folds: 6 of 10 (60%), about 80 s left",
        "folds: 8 of 10 (80%), about 40 s left",
        "folds: 10 of 10 (100%), about 0 s left",
    ]


def test_short_tasks_share_the_half_minute(clock: list[float], capsys: pytest.CaptureFixture) -> None:
    with progress.lines():
        for name in "abcd":
            for _ in progress.track(range(2), total=2, describe=name):
                clock[0] += 5
    assert capsys.readouterr().err.splitlines() == ["c: 2 of 2 (100%), about 0 s left"]


def test_nothing_in_a_script_or_when_quiet(
    clock: list[float], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work() -> None:
        for _ in progress.track(range(3), total=3, describe="x"):
            clock[0] += 40

    work()
    monkeypatch.setattr(settings, "progress", False)
    with progress.lines():
        work()
    assert capsys.readouterr().err == ""


def test_weights_are_tiles(clock: list[float], capsys: pytest.CaptureFixture) -> None:
    with progress.lines():
        for _ in progress.track([[1] * 30, [1] * 10], total=40, describe="enc", weight=len, unit="tile"):
            clock[0] += 31
    assert capsys.readouterr().err.splitlines()[0] == "enc: 30 of 40 tiles (75%), about 10 s left"


@pytest.mark.parametrize(("seconds", "said"), [(5, "5 s"), (89, "89 s"), (120, "2 min"), (7200, "2.0 h")])
def test_durations(seconds: float, said: str) -> None:
    assert progress.duration(seconds) == said

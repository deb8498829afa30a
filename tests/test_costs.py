"""The page of costs prints what its script prints."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "cohort_costs.py"
PAGE = (ROOT / "docs" / "howto" / "internet_scale.md").read_text()


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_tables_of_the_page_are_the_script_s(printed) -> None:
    blocks = re.findall(r"<!-- printed by python scripts/cohort_costs.py(.*?) -->\n(.*?)<!-- end -->", PAGE, flags=re.S)
    assert len(blocks) == 2
    for arguments, block in blocks:
        assert block == printed(*arguments.split())


def test_own_numbers_enter(printed) -> None:
    text = printed(
        "--slides", "36", "--width-px", "10000", "--height-px", "10000", "--mpp", "0.5", "--tissue", "0.4", "--cores",
        "2", "--network", "A=10", "--rate", "seconds_per_slide=20", "--rate", "seconds_per_mm2=8",
    )  # fmt: skip
    assert "| tissue | width x height x mpp^2 x share | 10 mm2 |" in text
    assert "| tiles on a grid of 100 um | tissue / pitch^2 | 1 000 |" in text
    assert "| 100 s | 1 | 0.5 h |" in text  # 36 slides of 20 + 8 x 10 s
    assert re.search(r"^\| A \| 10 \| 100 s \| 1 \|", text, flags=re.M)
    with pytest.raises(SystemExit):
        printed("--rate", "unknown=1")
    with pytest.raises(SystemExit):
        printed("--network", "A=fast")

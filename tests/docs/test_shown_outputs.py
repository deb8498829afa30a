"""Outputs on pages and in notebooks are compared with those of today."""

from __future__ import annotations

from typing import Any

import pytest
from shown_outputs import differences, same_output

nbformat = pytest.importorskip("nbformat")


@pytest.mark.parametrize(
    ("shown", "given", "same"),
    [
        ("n  2\nr 0.50}", "n 2\nr   0.51}", True),
        ("{'r': 0.50, 'n': 3}", "{'r': 0.51, 'n': 3}", True),
        ("1500.0 um", "1510.5 um", True),
        ("97.5%", "97.9%", True),
        ("  obsm: 'a'", "  obsm: 'a'\n  layers: None (.X)\n", True),
        ("  layers: 'a'", "  layers: None (.X), 'a'", True),
        ("  layers: 'a', 'b'", "  layers: 'a', None (.X), 'b'", True),
        ("n 2", "n 3", False),
        ("0.50", "0.54", False),
        ("-0.50", "0.50", False),
        ("r 0.5", "s 0.5", False),
        ("r 0.5", "r 0.5 more", False),
        ("(1, 2.0)", "(2, 2.0)", False),
    ],
)
def test_words_are_the_same_and_numbers_nearly(shown: str, given: str, same: bool) -> None:
    assert same_output(shown, given) is same


def notebook(printed: str, value: str, *, pictures: int = 0) -> Any:
    v4 = nbformat.v4
    outputs = [
        v4.new_output("stream", name="stdout", text=printed),
        v4.new_output("stream", name="stderr", text=f"warning {printed}"),
        v4.new_output("execute_result", data={"text/plain": value}),
        *[v4.new_output("display_data", data={"text/plain": "<Figure>", "image/png": "a"}) for _ in range(pictures)],
    ]
    return v4.new_notebook(cells=[v4.new_markdown_cell("# A"), v4.new_code_cell("f()", outputs=outputs)])


def test_cells_that_show_something_else_are_named() -> None:
    shown = notebook("a\nb 0.50\n", "[1]", pictures=1)
    assert differences(shown, notebook("b 0.51\na\n", "[1]", pictures=1)) == []
    assert "and gives" in differences(shown, notebook("a\nb 0.50\n", "[2]", pictures=1))[0]
    assert "1 shows" in differences(shown, notebook("a\nc 0.50\n", "[1]", pictures=1))[0]
    found = differences(shown, notebook("a\nb 0.50\n", "[1]"))
    assert any("shows 1 pictures and gives 0" in line for line in found)

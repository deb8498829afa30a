"""Whether the output that a page or a notebook shows is what its code gives today."""

from __future__ import annotations

import math
import re
from typing import Any

TOLERANCE = 0.02
"""Of numbers with decimals, absolute or relative: versions of libraries and processors move the last digits."""
_NUMBER = re.compile(r"-?\d+\.\d+(?=[,}\])%]*$)")

_ANY_ANNDATA = re.compile(r"None \(\.X\), |, None \(\.X\)|^ *layers: None \(\.X\)$", re.MULTILINE)
"""What anndata from 0.13 on says of ``X`` among the layers."""


def same_output(shown: str, given: str) -> bool:
    """Whether the words are the same, and numbers with decimals nearly."""
    a, b = (_ANY_ANNDATA.sub("", text).split() for text in (shown, given))
    return len(a) == len(b) and all(x == y or _near(x, y) for x, y in zip(a, b, strict=True))


def _near(a: str, b: str) -> bool:
    found = [_NUMBER.search(a), _NUMBER.search(b)]
    if found[0] is None or found[1] is None or _NUMBER.sub("", a) != _NUMBER.sub("", b):
        return False
    return math.isclose(float(found[0][0]), float(found[1][0]), rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def text_outputs(cell: Any) -> str:
    """Return what a cell of a notebook printed, and its value; warnings and pictures are left out."""
    said = [o.text if o.output_type == "stream" else o.get("data", {}).get("text/plain", "") for o in cell.outputs
            if o.get("name") != "stderr"]  # fmt: skip
    return "\n".join(said)


def differences(shown: Any, given: Any) -> list[str]:
    """Return a line for each cell of two notebooks of the same code whose text or number of pictures differs."""
    found = []
    for n, (a, b) in enumerate(zip(shown.cells, given.cells, strict=True)):
        if a.cell_type != "code":
            continue
        # Warnings and output of another process come in either order.
        if not same_output(*("\n".join(sorted(text_outputs(c).splitlines())) for c in (a, b))):
            found.append(f"cell {n} shows\n{text_outputs(a)}\nand gives\n{text_outputs(b)}")
        pictures = [sum("image/png" in o.get("data", {}) for o in c.outputs) for c in (a, b)]
        if pictures[0] != pictures[1]:
            found.append(f"cell {n} shows {pictures[0]} pictures and gives {pictures[1]}")
    return found

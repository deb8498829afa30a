"""The code of docs/howto/recipes.md runs, and what it finds is there."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "recipes.md"

plt.switch_backend("Agg")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """Run the blocks one after the other, as a reader does."""
    found: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of squidpy, and of genes that are not trusted
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL):
            exec(compile(block, "recipes.md", "exec"), found)
    return found


def test_recipes_rest_on_trusted_genes(names: dict[str, Any]) -> None:
    assert names["table"].var["trusted"].all()
    assert (
        names["table"].n_vars < names["slide"]["cells_ridge"].n_vars
        or names["slide"]["cells_ridge"].var["trusted"].all()
    )
    assert names["checked"]["trusted"].all()
    assert "classes apart" in names["check"].attrs["stpred"]["summary"]


def test_neighbours_niches_and_pairs_are_found(names: dict[str, Any]) -> None:
    obs = names["table"].obs
    truth = names["measured"].obs.set_index("instance_id")["type"].astype(str).loc[obs["instance_id"]]
    known = (obs["cell_type"] != "unknown").to_numpy()
    assert known.mean() > 0.7
    assert (obs["cell_type"].astype(str).to_numpy() == truth.to_numpy())[known].mean() > 0.6
    assert (np.diag(names["z"])[np.isfinite(np.diag(names["z"]))] > 0).mean() > 0.7  # like lies by like in this tissue
    assert names["niches"].nunique() > 1
    assert len(names["checked"]) == len(names["there"]) > 0
    assert names["scores"]["imputed"].sum() > 10

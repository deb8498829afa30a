"""What stpred relies on, for every registered family."""

from __future__ import annotations

from typing import Any

import pytest

from stpred.models import registry
from stpred.testing import check_model

SMALL: dict[str, dict[str, Any]] = {
    "auto": {"candidates": ("ridge", "ridge")},
    "deepcell": {"width": 8, "n_phi": 1, "n_rho": 1, "epochs": 1},
    "deepspot": {"width": 8, "n_phi": 1, "n_rho": 1, "epochs": 1},
    "deepspot2cell": {"width": 8, "epochs": 1},
    "ensemble": {"member": "mean", "n_members": 2},
    "hist2st": {"width": 8, "depth": 1, "feed_width": 8, "parts": 2, "n_graph_layers": 1, "views": 1, "epochs": 1},
    "histogene": {"width": 8, "depth": 1, "feed_width": 8, "epochs": 1},
    "miso": {"width": 8, "epochs": 1},
    "mlp": {"hidden": (8,), "epochs": 1},
    "random_forest": {"n_trees": 5},
    "scellst": {"epochs": 1},
    "transformer": {"width": 8, "epochs": 1},
    "stnet": {"backbone": "test_resnet", "pretrained": False, "epochs": 1},
    "xfuse": {"depth": 2, "width": 4, "metagenes": 3, "epochs": 1},
}
"""Settings that make a family's check cheap; a new family has its defaults."""


DEAR = {"istar", "student"}
"""Read tens of thousands of patches; `test_peers.py`, `test_student.py` and `test_super_resolution.py` say the same of
them."""


@pytest.mark.parametrize("name", sorted(set(registry.families()) - DEAR))
def test_family(name: str) -> None:
    check_model(registry.family(name).Config(**SMALL.get(name, {})))

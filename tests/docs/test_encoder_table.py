"""The table of encoders says of each what lazyslide-models says: licence, access, parameters, repository."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import stpred as st

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "choose_model.md"
ROW = re.compile(r"^\| `([^`]+)` \| (.*?) \| (open|gated) \| (.*?) ?\| (?:\[[^\]]*\]\((.*?)\))? ?\|$", re.MULTILINE)


def test_encoders_are_those_of_the_registry_with_their_licence_and_access() -> None:
    registry = pytest.importorskip("lazyslide_models").MODEL_REGISTRY
    found = {name: rest for name, *rest in ROW.findall(PAGE.read_text())}
    assert set(found) == set(st.encoders.list()) & set(registry)
    for name, (licence, access, parameters, url) in found.items():
        card = registry[name]
        stated = [card.license] if isinstance(card.license, str) else card.license
        assert licence == " and ".join(stated), name
        assert access == ("gated" if card.is_gated else "open"), name
        assert parameters == (card.param_size or ""), name
        assert url in {card.hf_url, card.github_url}, name

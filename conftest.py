"""Where the examples of docstrings run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def example_features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the features that examples compute, which many do of the same slides."""
    return tmp_path_factory.mktemp("features")


@pytest.fixture(autouse=True)
def _example_surroundings(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run an example in an empty folder, with the features of others at hand; a test that is none runs as it is."""
    if not isinstance(request.node, pytest.DoctestItem):
        yield
        return
    from stpred import settings

    request.getfixturevalue("monkeypatch").chdir(request.getfixturevalue("tmp_path"))
    with settings.override(cache_dir=request.getfixturevalue("example_features")):
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let examples warn, as small as their slides are."""
    for item in items:
        if isinstance(item, pytest.DoctestItem):
            item.add_marker(pytest.mark.filterwarnings("default::UserWarning:stpred.*"))

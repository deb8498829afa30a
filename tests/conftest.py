from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that two processes end at the same time."""
    first = (
        "test_her2st.py",
        "test_cell_models.py",
        "test_cli.py",
        "test_train_networks.py",
        "test_pretrain_encoder.py",
        "test_moco.py",
    )
    items.sort(key=lambda item: item.path.name not in first)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of public data that tests try real input on; skipped where it is absent."""
    default = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("STPRED_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"real data folder {folder.name!r} is not there; set $STPRED_DATA")
    return folder


@pytest.fixture(scope="session")
def features_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the features that the tests with :func:`kept_features` share."""
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="module")
def kept_features(features_folder: Path) -> Iterator[None]:
    """Tiles are embedded once for all tests of a module, and of the others that ask for it: many read the same toys."""
    from stpred import settings

    with settings.override(cache_dir=features_folder):
        yield

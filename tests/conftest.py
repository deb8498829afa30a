from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of public data that tests try real input on; skipped where it is absent."""
    default = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("STPRED_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"real data folder {folder.name!r} is not there; set $STPRED_DATA")
    return folder

"""The traps in real files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import stpred as st
from stpred._core.checks import UnsafeResolutionError
from stpred.models import Model

pytestmark = pytest.mark.realdata


def test_visium_crop_is_too_coarse_to_predict_from(real_data: Path, refused: Any, trained: Model) -> None:
    sdata = st.io.visium(real_data / "visium_breast_outs")
    for model in (trained, None):
        with refused(
            "'he'", "25.4", "um per pixel", "settings.max_upsampling", sdata=sdata, error=UnsafeResolutionError
        ):
            st.tl.predict(sdata, model)
    with st.settings.override(max_upsampling=float("inf")):
        st.tl.predict(sdata, trained)
    facts = json.loads(sdata.tables["spots_tiny"].uns["stpred"])
    assert facts["upsampled"] is True
    assert facts["mpp"] == pytest.approx(25.45, rel=0.01)


def test_lung_cells_with_rows_named_x(real_data: Path, refused: Any) -> None:
    base = real_data / "xenium_lung_200"
    with refused("look swapped", "swap_xy=True", "swap_xy=False"):
        st.io.hest(base / "NCBI858.h5ad", base / "NCBI858.jpg", mpp=0.5, shapes_key="cells")
    with refused("'NCBI858.jpg' is stated nowhere", "mpp="):
        st.io.hest(base / "NCBI858.h5ad", base / "NCBI858.jpg", shapes_key="cells", swap_xy=True)


def test_incomplete_xenium_bundle_has_no_image(real_data: Path, refused: Any, trained: Model) -> None:
    sdata = st.io.xenium(real_data / "xenium_toy")
    with refused("has no image", sdata=sdata):
        st.tl.predict(sdata, trained, shapes_key="cells")

"""The study of maps on real tissue: kinds of tissue by colour, and maps averaged over spots."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

import anndata
import numpy as np
import pandas as pd
import pytest

from stpred.testing import picture_slide


@pytest.fixture(scope="module")
def study() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "scripts"))
        return import_module("super_resolution")


def test_kinds_of_tissue_are_told_by_colour(study: ModuleType) -> None:
    """A quarter each of crowded nuclei, of pale and of deep pink with few nuclei, and of holes between thin walls."""
    rng = np.random.default_rng(0)
    size = 800
    image = np.empty((size, size, 3))
    image[:] = (215, 150, 190)
    image[400:, :400] = (215, 100, 165)
    image[400:, 400:] = (245, 243, 246)
    image[400:, 400::80] = image[400::80, 400:] = (225, 170, 200)
    y, x = np.mgrid[:size, :size]
    for n, (x0, y0) in ((900, (0, 0)), (40, (400, 0)), (40, (0, 400))):
        for cx, cy in rng.uniform(6, 394, (n, 2)) + (x0, y0):
            near = slice(int(cy) - 6, int(cy) + 7), slice(int(cx) - 6, int(cx) + 7)
            image[near][np.hypot(x[near] - cx, y[near] - cy) < 5] = (70, 50, 130)
    slide = picture_slide((image + rng.normal(0, 3, image.shape)).clip(0, 255).astype(np.uint8))
    at = np.stack(np.meshgrid(np.arange(20.0, 800, 20), np.arange(20.0, 800, 20)), axis=-1).reshape(-1, 2)
    kind = study.tissue_kinds(slide, at)
    left, top = (at < 400).T
    inside = (np.abs(at - 400) > 40).all(axis=1)  # what a window of 48 um says of one quarter
    assert (kind == "tumour")[left & top].mean() > 0.4
    assert not (kind == "tumour")[inside & ~(left & top)].any()
    assert not np.isin(kind, ["stroma", "muscle", "fat"])[inside & left & top].any()
    assert set(kind[inside & ~left & top]) == {"", "stroma"}
    assert set(kind[inside & left & ~top]) >= {"stroma", "muscle"}
    assert not (kind == "muscle")[inside & top].any()


def test_a_map_is_averaged_over_each_spot(study: ModuleType) -> None:
    rng = np.random.default_rng(0)
    parent = np.array(["b", "a", "b", "c", "a", "b"])
    fine = anndata.AnnData(rng.normal(size=(6, 2)).astype(np.float32))
    spots = anndata.AnnData(np.zeros((3, 2), np.float32), obs=pd.DataFrame({"instance_id": ["c", "b", "a"]}))
    found = study.over_spots(fine, parent, spots)
    want = [fine.X[parent == i].mean(axis=0) for i in ("c", "b", "a")]
    np.testing.assert_allclose(found.X, want, rtol=1e-6)

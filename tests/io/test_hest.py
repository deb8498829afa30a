from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from anndata import AnnData
from PIL import Image
from scipy import sparse

import stpred as st
from stpred._core.checks import InputError, MissingFileError
from stpred._core.elements import affine_to, centroids, mpp_of
from stpred.io._swap import swap_evidence


@pytest.fixture
def sample(tmp_path: Path) -> SimpleNamespace:
    """A slide with tissue in a corner that x and y tell apart, and a hexagonal array of spots on it."""
    rng = np.random.default_rng(0)
    array = np.array([(r, c) for r in range(10) for c in range(40) if (r + c) % 2 == 0])
    xy = np.column_stack([60 + array[:, 1] * 10.0, 30 + array[:, 0] * 10.0 * np.sqrt(3)])
    image = np.full((520, 560, 3), 240, np.uint8)
    image[20:210, 50:480] = rng.integers(90, 180, (190, 430, 3))
    Image.fromarray(image).save(tmp_path / "he.png")
    counts = AnnData(sparse.csr_matrix(rng.poisson(2.0, (len(array), 3)).astype(np.float32)))
    counts.obs_names = [f"s{i}" for i in range(len(array))]
    counts.var_names = ["EPCAM", "VIM", "CD3E"]
    counts.obs["array_row"], counts.obs["array_col"] = array.T
    counts.obsm["spatial"] = xy
    return SimpleNamespace(counts=counts, image=tmp_path / "he.png", xy=xy, path=tmp_path)


def test_visium_arrays_calibrate_themselves(sample: SimpleNamespace) -> None:
    sample.counts.write_h5ad(sample.path / "a.h5ad")
    for source in (sample.counts, sample.path / "a.h5ad"):
        sdata = st.io.hest(source, sample.image)
        assert mpp_of(affine_to(sdata.images["he"])) == pytest.approx(5.0)
        np.testing.assert_allclose(centroids(sdata, "spots")[0], sample.xy * 5)
        table = sdata.tables["spots_counts"]
        np.testing.assert_allclose(table.obsm["spatial"], sample.xy * 5)
        np.testing.assert_array_equal(table.X.toarray(), sample.counts.X.toarray())
        assert (sdata.shapes["spots"]["radius"] * 5).to_numpy() == pytest.approx(27.5)


def test_positions_in_obs_and_pixel_sizes_in_uns(sample: SimpleNamespace) -> None:
    counts = sample.counts.copy()
    del counts.obsm["spatial"]
    counts.obs = counts.obs[[]].assign(pxl_col_in_fullres=sample.xy[:, 0], pxl_row_in_fullres=sample.xy[:, 1])
    with pytest.raises(InputError, match=r"stated nowhere; pass mpp="):
        st.io.hest(counts, sample.image)
    assert mpp_of(affine_to(st.io.hest(counts, sample.image, pitch_um=100).images["he"])) == pytest.approx(5.0)
    counts.uns["spatial"] = {"ST": {"metadata": {"pixel_size_um_embedded": 9.0, "pixel_size_um_estimated": 5.1}}}
    with pytest.raises(InputError, match=r"pixel_size_um_estimated' says 5\.1 .*pixel_size_um_embedded' 9"):
        st.io.hest(counts, sample.image)
    del counts.uns["spatial"]["ST"]["metadata"]["pixel_size_um_embedded"]
    sdata = st.io.hest(counts, sample.image, shapes_key="cells")
    assert mpp_of(affine_to(sdata.images["he"])) == pytest.approx(5.1)
    assert (sdata.shapes["cells"]["radius"] * 5.1).to_numpy() == pytest.approx(5.0)
    assert "cells_counts" in sdata.tables


def test_swapped_positions_on_the_image_are_found_by_the_tissue(sample: SimpleNamespace) -> None:
    counts = sample.counts.copy()
    counts.obsm["spatial"] = sample.xy[:, ::-1]
    with pytest.raises(InputError, match=r"only if x and y are exchanged \(mean darkness .*swap_xy=True"):
        st.io.hest(counts, sample.image, mpp=5)
    sdata = st.io.hest(counts, sample.image, mpp=5, swap_xy=True)
    np.testing.assert_allclose(centroids(sdata, "spots")[0], sample.xy * 5)
    kept = st.io.hest(counts, sample.image, mpp=5, swap_xy=False)
    np.testing.assert_allclose(centroids(kept, "spots")[0], sample.xy[:, ::-1] * 5)


def test_swapped_positions_outside_the_image_are_found_by_its_size(sample: SimpleNamespace) -> None:
    Image.open(sample.image).crop((0, 0, 560, 220)).save(sample.path / "wide.png")
    counts = sample.counts.copy()
    st.io.hest(counts, sample.path / "wide.png")
    counts.obsm["spatial"] = sample.xy[:, ::-1]
    with pytest.raises(InputError, match=r"outside the image of 560 x 220 px, and 0% if x and y are exchanged"):
        st.io.hest(counts, sample.path / "wide.png", mpp=5)


def test_tissue_everywhere_is_no_sign_of_a_swap() -> None:
    rng = np.random.default_rng(0)
    t, _ = swap_evidence(rng.normal(100, 20, 128), rng.normal(100, 20, 128))
    assert abs(t) < 4
    assert swap_evidence(np.zeros(3), np.ones(3)) == (0.0, 1.0)
    t, ratio = swap_evidence(np.full(50, 20.0), np.full(50, 60.0))
    assert t > 100
    assert ratio == 3


def test_bad_input_says_what_is_wrong(sample: SimpleNamespace) -> None:
    counts = sample.counts
    with pytest.raises(MissingFileError, match="no AnnData file"):
        st.io.hest("none.h5ad", sample.image)
    far = counts.copy()
    far.obsm["spatial"] = sample.xy + 2000
    with pytest.raises(
        InputError, match=r"100% of the spots lie outside.*full-resolution one that the positions refer to"
    ):
        st.io.hest(far, sample.image)
    bare = counts.copy()
    del bare.obsm["spatial"]
    with pytest.raises(InputError, match=r"has no positions: .*obs \['array_row', 'array_col'\]"):
        st.io.hest(bare, sample.image)
    odd = counts.copy()
    odd.obsm["spatial"] = np.where(np.arange(len(sample.xy))[:, None] == 3, np.nan, sample.xy)
    with pytest.raises(InputError, match="1 positions are NaN"):
        st.io.hest(odd, sample.image)
    normalised = counts.copy()
    normalised.X = normalised.X * 0.37
    with pytest.raises(InputError, match="not whole numbers.*normalised"):
        st.io.hest(normalised, sample.image)
    normalised.layers["counts"] = counts.X
    st.io.hest(normalised, sample.image, layer="counts")
    with pytest.raises(InputError, match=r"No layer named 'raw' .*available: \['counts'\]"):
        st.io.hest(normalised, sample.image, layer="raw")
    twice = counts.copy()
    twice.obs_names = ["s0", *twice.obs_names[:-1]]
    with pytest.raises(InputError, match="not unique"):
        st.io.hest(twice, sample.image)


@pytest.mark.realdata
def test_lung_cells_with_rows_named_x_are_found(real_data: Path) -> None:
    base = real_data / "xenium_lung_200"
    with pytest.raises(InputError, match=r"look swapped; pass swap_xy=True"):
        st.io.hest(base / "NCBI858.h5ad", base / "NCBI858.jpg", mpp=0.5)
    sdata = st.io.hest(base / "NCBI858.h5ad", base / "NCBI858.jpg", mpp=0.5, swap_xy=True, shapes_key="cells")
    assert sdata.tables["cells_counts"].shape == (200, 338)

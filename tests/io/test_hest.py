from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from PIL import Image
from scipy import sparse

import stpred as st
from stpred._core.checks import InputError, MissingFileError
from stpred.io._images.swap import swap_evidence
from stpred.testing import affine_to, centroids, mpp_of


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


@pytest.mark.filterwarnings("ignore:Observation names are not unique")  # of anndata, in its caller's name
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


def test_observations_on_glass_are_left_out(sample: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    under = np.arange(len(sample.xy)) % 3 > 0
    right = [f"s{i}" for i in np.flatnonzero(under)]
    forms = (under, under.astype(float), under.astype(str), under.astype(int).astype(str), np.where(under, "yes", "no"))
    for values in forms:
        counts = sample.counts.copy()
        counts.obs["in_tissue"] = values
        with caplog.at_level("INFO", logger="stpred"):
            sdata = st.io.hest(counts, sample.image)
        assert list(sdata.tables["spots_counts"].obs["instance_id"]) == right
        assert list(sdata.shapes["spots"].index) == right
        np.testing.assert_array_equal(sdata.tables["spots_counts"].X.toarray(), sample.counts[under].X.toarray())
    assert "67 of 200 observations lie beside the tissue" in caplog.text
    counts.obs["in_tissue"] = 0
    with pytest.raises(InputError, match="No observation of the AnnData is under tissue"):
        st.io.hest(counts, sample.image)
    counts.obs["in_tissue"] = "maybe"
    with pytest.raises(InputError, match=r"'in_tissue' that are neither 0 nor 1: \['maybe'\]"):
        st.io.hest(counts, sample.image)


@pytest.mark.parametrize("column", ["feature_name", "gene_symbols", "gene_name", "symbol"])
def test_symbols_beside_ensembl_ids(column: str, sample: SimpleNamespace) -> None:
    counts = sample.counts.copy()
    ids = [f"ENSG{i:011d}" for i in range(3)]
    counts.var_names = ids
    counts.var[column] = np.array(["EPCAM", None, "EPCAM"], dtype=object)
    counts.var[column] = counts.var[column].astype("category")
    table = st.io.hest(counts, sample.image).tables["spots_counts"]
    assert list(table.var_names) == ["EPCAM", ids[1], "EPCAM-1"]
    assert list(table.var["gene_id"]) == ids
    counts = sample.counts.copy()  # names that are symbols stay
    counts.var[column] = ["A", "B", "C"]
    assert list(st.io.hest(counts, sample.image).tables["spots_counts"].var_names) == ["EPCAM", "VIM", "CD3E"]


def test_counts_are_taken_from_where_they_are(sample: SimpleNamespace) -> None:
    right = sample.counts.X.toarray()

    def read(**how: str) -> np.ndarray:
        return np.asarray(st.io.hest(counts, sample.image, **how).tables["spots_counts"].X.toarray())

    def normalised() -> AnnData:
        found = sample.counts.copy()
        found.X = found.X * 0.37
        return found

    counts = normalised()
    counts.layers["raw_counts"] = sample.counts.X.copy()
    with pytest.warns(UserWarning, match="not whole numbers.* taken from the layer 'raw_counts'"):
        np.testing.assert_array_equal(read(), right)
    counts = normalised()
    counts.raw = sample.counts.copy()
    with pytest.warns(UserWarning, match=r"taken from \.raw"):
        np.testing.assert_array_equal(read(), right)
    np.testing.assert_array_equal(read(layer="raw"), right)
    counts.layers["counts"] = sample.counts.X.copy()  # the same as .raw
    with pytest.warns(UserWarning, match="taken from the layer 'counts'"):
        np.testing.assert_array_equal(read(), right)
    counts.layers["spliced"] = sample.counts.X * 2
    with pytest.raises(InputError, match=r"several others hold raw counts, \['counts', 'spliced', 'raw'\]"):
        read()
    np.testing.assert_array_equal(read(layer="spliced"), right * 2)
    counts = normalised()
    counts.layers["log"] = counts.X
    with pytest.raises(InputError, match=r"neither \.raw nor a layer of \['log'\] holds raw counts"):
        read()
    counts = sample.counts.copy()  # a matrix of zeros is no counts where there are others
    counts.layers["counts"] = counts.X.copy()
    counts.X = counts.X * 0
    with pytest.warns(UserWarning, match="are all zero; the raw counts are taken from the layer 'counts'"):
        np.testing.assert_array_equal(read(), right)


def test_raw_may_hold_more_genes(sample: SimpleNamespace) -> None:
    counts = sample.counts[:, :2].copy()
    counts.raw = sample.counts.copy()
    counts.X = counts.X * 0.37
    with pytest.warns(UserWarning, match=r"taken from \.raw"):
        table = st.io.hest(counts, sample.image).tables["spots_counts"]
    assert list(table.var_names) == ["EPCAM", "VIM", "CD3E"]


def test_several_pixel_sizes_are_said(sample: SimpleNamespace) -> None:
    counts = sample.counts.copy()
    counts.uns["spatial"] = {"ST": {"metadata": {"pixel_size_um_embedded": 4.9, "pixel_size_um_estimated": 5.0}}}
    with pytest.warns(UserWarning, match=r"several sizes of a pixel .* 5 \(.*estimated'\), 4\.9 \(.*; the first"):
        sdata = st.io.hest(counts, sample.image)
    assert mpp_of(affine_to(sdata.images["he"])) == pytest.approx(5.0)
    counts.uns["spatial"] = {"ST": {"metadata": {"pixel_size_um_embedded": 5.0, "pixel_size_um_estimated": "none"}}}
    st.io.hest(counts, sample.image)  # one that is no number hides none


def test_odd_obs_and_obsm(sample: SimpleNamespace, tmp_path: Path) -> None:
    counts = sample.counts.copy()
    counts.obsm["spatial"] = np.column_stack([sample.xy, np.zeros(len(sample.xy))])  # x, y and z
    counts.obs["array_row"] = counts.obs["array_row"].astype(str).astype("category")
    counts.obs["array_col"] = counts.obs["array_col"].where(np.arange(counts.n_obs) > 2)
    counts.var["_index"] = counts.var_names.to_numpy()  # SeuratDisk leaves it, and anndata does not write it
    sdata = st.io.hest(counts, sample.image)
    assert mpp_of(affine_to(sdata.images["he"])) == pytest.approx(5.0)
    sdata.write(tmp_path / "a.zarr")
    counts = sample.counts.copy()
    counts.obsm["spatial"] = pd.DataFrame(sample.xy[:, ::-1], columns=["y", "x"], index=counts.obs_names)
    np.testing.assert_allclose(centroids(st.io.hest(counts, sample.image), "spots")[0], sample.xy * 5)
    counts.obsm["spatial"] = np.full((counts.n_obs, 2), "here", dtype=object)
    with pytest.raises(InputError, match=r"positions in obsm\['spatial'\] are not numbers"):
        st.io.hest(counts, sample.image)
    counts = sample.counts.copy()
    counts.var_names = ["0", "1", "2"]
    with pytest.warns(UserWarning, match="have no names but their numbers, 0 to 2"):
        st.io.hest(counts, sample.image)
    with pytest.raises(InputError, match=r"`mpp` must be 0\.01 to 100 um per pixel"):
        st.io.hest(sample.counts, sample.image, mpp=1000.0)


def test_dark_fill_is_no_tissue_that_positions_could_be_swapped_onto() -> None:
    from stpred.io._images.swap import _darkness

    level = np.full((3, 300, 300), 240, np.uint8)
    level[:, 20:80, 150:280] = np.random.default_rng(0).integers(90, 200, (3, 60, 130))
    level[:, 150:280, 20:80] = 0
    xy = np.random.default_rng(1).uniform((155, 25), (275, 75), (60, 2))
    given, exchanged = _darkness(level, xy)
    assert given.min() > 60
    assert exchanged.max() == 0

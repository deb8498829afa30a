"""Every format as the ecosystem's own readers see it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import spatialdata_io
import tifffile
from PIL import Image
from spatialdata.transformations import get_transformation

from stpred import InputError
from stpred.datasets import (
    Tissue,
    load_truth,
    toy_hest,
    toy_legacy_st,
    toy_visium,
    toy_visium_hd,
    toy_wsi,
    toy_xenium,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # the readers' own warnings


@pytest.mark.parametrize(("version", "counts"), [("v1", "h5"), ("v2", "both")])
def test_visium_reads_in_spatialdata_io(tissue: Tissue, tmp_path: Path, version: str, counts: str) -> None:
    path = toy_visium(tmp_path / "outs", version=version, counts=counts, tissue=tissue)
    sdata = spatialdata_io.visium(path, dataset_id="x", fullres_image_file="fullres_image.tif")
    table, truth = sdata["table"], load_truth(path)["spots"]
    truth = truth[table.obs_names]
    np.testing.assert_array_equal(table.X.toarray(), truth.layers["counts"])
    np.testing.assert_allclose(sdata["x"].geometry.get_coordinates() * 0.5, truth.obsm["spatial"], atol=0.51)
    image = sdata["x_full_image"]["scale0"].ds["image"].transpose("y", "x", "c").to_numpy()
    np.testing.assert_array_equal(image, tissue.image)
    assert table.var["gene_ids"].tolist() == tissue.genes["gene_id"].tolist()
    assert (path / "filtered_feature_bc_matrix").is_dir() == (counts == "both")


def test_visium_versions_differ_in_their_positions(tissue: Tissue, tmp_path: Path) -> None:
    names = {"v1": "tissue_positions_list.csv", "v3": "tissue_positions.csv", "v4": "tissue_positions.parquet"}
    frames = {}
    for version, name in names.items():
        spatial = toy_visium(tmp_path / version, version=version, fullres=False, tissue=tissue) / "spatial"
        assert [p.name for p in spatial.glob("tissue_positions*")] == [name]
        read = pd.read_parquet if name.endswith("parquet") else pd.read_csv
        frames[version] = read(spatial / name, **({"header": None} if version == "v1" else {}))
    frames["v1"].columns = frames["v4"].columns
    pd.testing.assert_frame_equal(frames["v1"], frames["v3"], check_dtype=False)
    pd.testing.assert_frame_equal(frames["v4"], frames["v3"], check_dtype=False)
    assert not (tmp_path / "v1" / "fullres_image.tif").exists()
    assert len(frames["v1"]) > len(load_truth(tmp_path / "v1")["spots"]) - 1


def test_visium_scale_factors_are_those_of_the_thumbnails(tissue: Tissue, tmp_path: Path) -> None:
    spatial = toy_visium(tmp_path / "outs", tissue=tissue) / "spatial"
    factors = json.loads((spatial / "scalefactors_json.json").read_text())
    assert factors["spot_diameter_fullres"] == 130
    for name in ("hires", "lowres"):
        size = Image.open(spatial / f"tissue_{name}_image.png").size
        assert size[0] == pytest.approx(800 * factors[f"tissue_{name}_scalef"])
        assert size[1] == pytest.approx(672 * factors[f"tissue_{name}_scalef"], abs=0.6)


def test_full_resolution_tif_says_nothing_of_its_resolution(tissue: Tissue, tmp_path: Path) -> None:
    with tifffile.TiffFile(toy_visium(tmp_path / "outs", tissue=tissue) / "fullres_image.tif") as file:
        page = file.pages[0]
        assert page.is_tiled
        assert page.tags.get("XResolution") is None or page.tags["XResolution"].value == (1, 1)
        assert "ImageDescription" not in page.tags


def test_visium_hd_reads_in_spatialdata_io(tissue: Tissue, tmp_path: Path) -> None:
    path = toy_visium_hd(tmp_path / "outs", tissue=tissue)
    sdata = spatialdata_io.visium_hd(path, dataset_id="x", load_nucleus_segmentations=True)
    truth = load_truth(path)
    for size in (2, 8, 16):
        table, want = sdata[f"square_{size:03d}um"], truth[f"bins_{size:03d}um"]
        assert table.obs_names.tolist() == want.obs_names.tolist()
        np.testing.assert_array_equal(table.X.toarray(), want.layers["counts"].toarray())
        centre = sdata[f"x_square_{size:03d}um"].geometry.centroid
        np.testing.assert_allclose(np.column_stack([centre.x, centre.y]) * 0.5, want.obsm["spatial"], atol=1e-6)
        assert want.X.sum() == pytest.approx(truth["cells"].X.sum(), rel=1e-3)
    cells = sdata["cell_segmentations"]
    np.testing.assert_array_equal(cells.X.toarray(), truth["cells"].layers["counts"])
    assert cells.obs_names.tolist() == truth["cells"].obs_names.tolist()
    centre = sdata["x_nucleus_segmentations"].geometry.centroid
    nuclei = truth["cells"][sdata["nucleus_segmentations"].obs_names].obsm["spatial"]
    assert np.abs(np.column_stack([centre.x, centre.y]) * 0.5 - nuclei).max() < 1
    inside = sdata["nucleus_segmentations"].X.sum() / truth["cells"].layers["counts"].sum()
    assert 0.15 < inside < 0.8


def test_visium_hd_without_segmentation_and_unknown_bins(tissue: Tissue, tmp_path: Path) -> None:
    path = toy_visium_hd(tmp_path / "outs", tissue=tissue, bin_sizes=(16,), segmented=False)
    assert [p.name for p in (path / "binned_outputs").iterdir()] == ["square_016um"]
    assert not (path / "segmented_outputs").exists()
    with pytest.raises(InputError, match="`bin_sizes` must be one of"):
        toy_visium_hd(tmp_path / "other", bin_sizes=(4,))


@pytest.fixture(scope="module")
def small_xenium_tissue() -> Tissue:
    from stpred.datasets import make_tissue

    return make_tissue(size_um=(320, 300), mpp=0.4, n_genes=12, seed=1)


def test_xenium_reads_in_spatialdata_io(small_xenium_tissue: Tissue, tmp_path: Path) -> None:
    tissue = small_xenium_tissue
    path = toy_xenium(tmp_path / "bundle", tissue=tissue)
    sdata = spatialdata_io.xenium(path)
    truth, table = load_truth(path)["cells"], sdata["table"]
    assert table.obs["cell_id"].tolist() == truth.obs_names.tolist()
    np.testing.assert_array_equal(table.X.toarray(), tissue.counts)
    assert sdata["cell_boundaries"].index.tolist() == truth.obs_names.tolist()
    np.testing.assert_allclose(table.obsm["spatial"], truth.obsm["spatial"], atol=4)
    labels = sdata["cell_labels"]["scale0"].ds["image"].to_numpy()
    x, y = (truth.obsm["spatial"] / 0.2125).astype(int).T
    assert (labels[y, x] == table.obs["cell_labels"].to_numpy()).mean() > 0.98
    points = sdata["transcripts"].compute()
    assert (points["cell_id"] != "UNASSIGNED").sum() == tissue.counts.sum()
    assert (points["cell_id"] == "UNASSIGNED").any()


@pytest.mark.parametrize(("rotation_deg", "flip", "he_scale"), [(0, False, 1.6), (35, False, 1.2), (-100, True, 2.0)])
def test_xenium_alignment_is_true(
    small_xenium_tissue: Tissue, tmp_path: Path, rotation_deg: float, flip: bool, he_scale: float
) -> None:
    tissue = small_xenium_tissue
    path = toy_xenium(tmp_path / "b", tissue=tissue, rotation_deg=rotation_deg, flip=flip, he_scale=he_scale)
    sdata = spatialdata_io.xenium(path, transcripts=False, cells_labels=False, nucleus_labels=False)
    affine = get_transformation(sdata["he_image"]).to_affine_matrix(("x", "y"), ("x", "y"))
    assert np.sqrt(abs(np.linalg.det(affine[:2, :2]))) == pytest.approx(he_scale)
    assert (np.linalg.det(affine) < 0) == flip
    image = sdata["he_image"]["scale0"].ds["image"].transpose("y", "x", "c").to_numpy().astype(float)
    rng = np.random.default_rng(0)
    spots = rng.uniform(80, 220, (2000, 2))
    there = np.column_stack([spots / 0.2125, np.ones(len(spots))]) @ np.linalg.inv(affine).T
    here = np.floor(spots / tissue.mpp).astype(int)
    got = image[there[:, 1].astype(int), there[:, 0].astype(int)]
    want = tissue.image[here[:, 1], here[:, 0]].astype(float)
    for c in range(3):
        assert np.corrcoef(got[:, c], want[:, c])[0, 1] > 0.9


def test_xenium_without_he(small_xenium_tissue: Tissue, tmp_path: Path) -> None:
    path = toy_xenium(tmp_path / "bundle", tissue=small_xenium_tissue, he=False)
    assert not list(path.glob("*he_image*"))
    with pytest.raises(InputError, match="`he_scale` must be a positive number"):
        toy_xenium(tmp_path / "other", he_scale=0)


def test_svs_looks_like_one(tissue: Tissue, tmp_path: Path) -> None:
    path = toy_wsi(tmp_path / "a.svs", tissue=tissue)
    with tifffile.TiffFile(path) as file:
        assert file.is_svs
        assert "MPP = 0.5" in file.pages[0].description
        assert file.pages[0].is_tiled
        assert not file.pages[1].is_tiled
        np.testing.assert_array_equal(file.pages[0].asarray(), tissue.image)
    openslide = pytest.importorskip("openslide")
    slide = openslide.OpenSlide(path)
    assert float(slide.properties["openslide.mpp-x"]) == 0.5
    assert slide.dimensions == (800, 672)


def test_ome_and_flat_tif_state_their_resolution(tissue: Tissue, tmp_path: Path) -> None:
    with tifffile.TiffFile(toy_wsi(tmp_path / "a.ome.tif", tissue=tissue)) as file:
        assert 'PhysicalSizeX="0.5"' in file.ome_metadata
        assert len(file.series[0].levels) == 2
        np.testing.assert_array_equal(file.series[0].asarray(), tissue.image)
    with tifffile.TiffFile(toy_wsi(tmp_path / "a.tif", tissue=tissue, stated_mpp=0.25)) as file:
        n, d = file.pages[0].tags["XResolution"].value
        assert 1e4 / (n / d) == pytest.approx(0.25)
        assert not file.pages[0].is_tiled
    np.testing.assert_array_equal(Image.open(toy_wsi(tmp_path / "a.png", tissue=tissue)), tissue.image)


def test_wsi_refuses_unknown_formats_and_existing_files(tissue: Tissue, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="says no known format"):
        toy_wsi(tmp_path / "a.czi")
    with pytest.raises(InputError, match="`format` must be one of"):
        toy_wsi(tmp_path / "a.tif", format="ndpi")
    path = toy_wsi(tmp_path / "a.tif", format="ome.tif", tissue=tissue)
    with pytest.raises(InputError, match="exists and is not empty"):
        toy_wsi(path, tissue=tissue)
    assert toy_wsi(path, tissue=tissue, overwrite=True) == path
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tif", "a.tif.truth"]


def test_legacy_st_tables(tissue: Tissue, tmp_path: Path) -> None:
    path = toy_legacy_st(tmp_path / "st", tissue=tissue)
    counts = pd.read_csv(path / "counts.tsv.gz", sep="\t", index_col=0)
    spots = pd.read_csv(path / "spots.tsv", sep="\t")
    assert spots.columns.tolist() == ["x", "y", "new_x", "new_y", "pixel_x", "pixel_y", "selected"]
    selected = spots[spots["selected"] == 1]
    assert counts.index.tolist() == [f"{x}x{y}" for x, y in zip(selected["x"], selected["y"], strict=True)]
    truth = load_truth(path)["spots"]
    np.testing.assert_array_equal(counts.to_numpy(), truth.layers["counts"])
    np.testing.assert_allclose(selected[["pixel_x", "pixel_y"]] * tissue.mpp, truth.obsm["spatial"], atol=0.01)
    image = np.asarray(Image.open(path / "image.jpg")).astype(int)
    assert np.abs(image - tissue.image).mean() < 3


def test_hest_pair(tissue: Tissue, tmp_path: Path) -> None:
    import anndata

    path = toy_hest(tmp_path / "pair", tissue=tissue)
    table, truth = anndata.read_h5ad(path / "toy.h5ad"), load_truth(path)["spots"]
    np.testing.assert_allclose(table.obsm["spatial"] * 0.5, truth.obsm["spatial"])
    np.testing.assert_array_equal(table.X.toarray(), truth.layers["counts"])
    assert table.uns["pixel_size_um_estimated"] == 0.5
    np.testing.assert_array_equal(tifffile.imread(path / "toy.tif"), tissue.image)
    bare = anndata.read_h5ad(toy_hest(tmp_path / "bare", tissue=tissue, pixel_size=False) / "toy.h5ad")
    assert "pixel_size_um_estimated" not in bare.uns


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"version": "v9"}, "`version` must be one of"), ({"counts": "csv"}, "`counts` must be one of")],
)
def test_visium_refuses_unknowns_before_making_anything(tmp_path: Path, wrong: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        toy_visium(tmp_path / "outs", **wrong)
    assert not list(tmp_path.iterdir())

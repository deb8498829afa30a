from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stpred._core.checks import InputError, MissingFileError
from stpred.datasets import Tissue, _files, load_truth, toy_hest, toy_wsi
from stpred.datasets._simulated.warp import placement, warp

GENES = pd.DataFrame({"gene_id": ["ENSG1", "ENSG2", "ENSG3"]}, index=["A", "B", "C"])
COUNTS = np.array([[0, 2, 0], [1, 0, 5]])


def test_staged_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "sub" / "out"
    with pytest.raises(InputError, match="cannot be written"), _files.staged(target, overwrite=False) as folder:
        (folder / "half").joinpath("way").write_text("x")
    assert list(tmp_path.iterdir()) == []  # nor the folder that was made to hold it
    with _files.staged(target, overwrite=False) as folder:
        (folder / "whole").write_text("x")
        assert not target.exists()
    assert [p.name for p in target.iterdir()] == ["whole"]
    assert [p.name for p in target.parent.iterdir()] == ["out"]


def test_existing_folder_is_refused_or_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with _files.staged(tmp_path / "out", overwrite=False) as folder:  # an empty one is no loss
        (folder / "old").write_text("x")
    with pytest.raises(InputError, match="exists and is not empty"), _files.staged(tmp_path / "out", overwrite=False):
        pass
    with _files.staged(tmp_path / "out", overwrite=True) as folder:
        (folder / "new").write_text("x")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["new"]


def test_failed_overwrite_keeps_the_old(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("x")
    with pytest.raises(RuntimeError, match="stop"), _files.staged(tmp_path / "out", overwrite=True):
        raise RuntimeError("stop")
    assert (tmp_path / "out" / "old").read_text() == "x"


def test_10x_h5_reads_back(tmp_path: Path) -> None:
    import scanpy as sc

    facts = {"library_id": "x", "chemistry": "y", "software": "z"}
    kinds = ["Gene Expression", "Gene Expression", "Negative Control Probe"]
    _files.write_10x_h5(tmp_path / "m.h5", COUNTS, barcodes=["b1", "b2"], genes=GENES, feature_types=kinds, **facts)
    table = sc.read_10x_h5(tmp_path / "m.h5", gex_only=False)
    np.testing.assert_array_equal(table.X.toarray(), COUNTS)
    assert table.var["gene_ids"].tolist() == ["ENSG1", "ENSG2", "ENSG3"]
    assert table.obs_names.tolist() == ["b1", "b2"]
    assert sc.read_10x_h5(tmp_path / "m.h5").n_vars == 2


def test_10x_mtx_reads_back(tmp_path: Path) -> None:
    import scanpy as sc

    _files.write_10x_mtx(tmp_path / "m", COUNTS, barcodes=["b1", "b2"], genes=GENES)
    table = sc.read_10x_mtx(tmp_path / "m")
    np.testing.assert_array_equal(table.X.toarray(), COUNTS)
    assert table.var_names.tolist() == ["A", "B", "C"]


def test_pyramid_levels_are_block_means() -> None:
    image = np.random.default_rng(0).integers(0, 255, (513, 700, 3), dtype=np.uint8)
    levels = _files.pyramid(image)
    assert [level.shape[:2] for level in levels] == [(513, 700), (256, 350)]
    np.testing.assert_allclose(levels[1][3, 5], image[6:8, 10:12].reshape(4, 3).mean(axis=0), atol=0.51)


@pytest.mark.parametrize(("rotation_deg", "flip"), [(0, False), (90, False), (17, True), (-140, False)])
def test_placement_holds_the_slide_and_keeps_areas(rotation_deg: float, flip: bool) -> None:
    affine, (rows, columns) = placement((300, 200), mpp=0.4, rotation_deg=rotation_deg, flip=flip)
    assert np.linalg.det(affine[:2, :2]) == pytest.approx(-0.16 if flip else 0.16)
    corners = np.array([[0, 0, 1], [300, 0, 1], [0, 200, 1], [300, 200, 1.0]])
    pixels = (np.linalg.inv(affine) @ corners.T)[:2]
    assert pixels.min() > -1e-6
    assert (pixels.max(axis=1) <= [columns + 1e-6, rows + 1e-6]).all()


def test_warp_by_quarter_turns_is_exact() -> None:
    image = np.random.default_rng(0).integers(0, 255, (200, 300, 3), dtype=np.uint8)
    for turns, flip in ((0, False), (1, False), (2, True), (3, False)):
        affine, shape = placement((150, 100), mpp=0.5, rotation_deg=90 * turns, flip=flip)
        want = np.rot90(image, turns)  # turning the camera from x to y turns what it sees the other way
        want = want[:, ::-1] if flip else want
        got = warp(image, mpp=0.5, affine=affine, shape=shape)
        assert got.shape == want.shape
        assert np.abs(got.astype(int) - want).max() <= 1


def test_warp_there_and_back_is_the_same_tissue(tissue: Tissue) -> None:
    affine, shape = placement(tissue.size_um, mpp=0.4, rotation_deg=23, flip=True)
    turned = warp(tissue.image, mpp=tissue.mpp, affine=affine, shape=shape)
    to_turned = np.linalg.inv(affine) @ np.diag([tissue.mpp, tissue.mpp, 1])
    back = warp(turned, mpp=1.0, affine=to_turned, shape=tissue.image.shape[:2])
    assert np.abs(back.astype(int) - tissue.image)[30:-30, 30:-30].mean() < 2


def test_truth_of_files_and_folders(tissue: Tissue, tmp_path: Path) -> None:
    for path in (toy_wsi(tmp_path / "a.png", tissue=tissue), toy_hest(tmp_path / "b", tissue=tissue)):
        cells = load_truth(path)["cells"]
        np.testing.assert_array_equal(cells.X, tissue.expected)
        np.testing.assert_array_equal(cells.layers["counts"], tissue.counts)
        np.testing.assert_allclose(cells.obsm["spatial"], tissue.xy_um)
        assert cells.obs["type"].tolist() == tissue.cells["type"].tolist()
    with pytest.raises(MissingFileError, match="No truth of a toy was found"):
        load_truth(tmp_path)

"""A local copy of HEST-1k and a task of HEST-Benchmark, laid out as published, of synthetic slides."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from shapely.geometry import box, mapping

import stpred as st
from stpred import InputError

MPP = 1.0
IDS = ("TENX1", "TENX2", "NCBI3")


@pytest.fixture(scope="module")
def hest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three samples, two of them of one patient; counts without a pixel size of their own."""
    base = tmp_path_factory.mktemp("hest")
    for name in ("st", "wsis", "metadata"):
        (base / name).mkdir()
    for k, sample in enumerate(IDS):
        made = st.datasets.toy_hest(
            base / f"_{sample}", pixel_size=False, seed=k, donor=k, size_um=(500.0, 500.0), n_genes=20, mpp=MPP
        )
        shutil.move(made / "toy.h5ad", base / "st" / f"{sample}.h5ad")
        shutil.move(made / "toy.tif", base / "wsis" / f"{sample}.tif")
        shutil.rmtree(made)
        facts = {"patient": "P1" if k < 2 else None, "pixel_size_um_estimated": MPP, "organ": "Breast"}
        (base / "metadata" / f"{sample}.json").write_text(json.dumps(facts))
    return base


@pytest.fixture
def task(hest: Path, tmp_path: Path) -> Path:
    """Two folds; the first leaves a sample out altogether."""
    folder = tmp_path / "IDC"
    (folder / "splits").mkdir(parents=True)
    shutil.copytree(hest / "st", folder / "adata")
    for k, (train, test) in enumerate(((["TENX2"], ["TENX1"]), (["TENX1", "TENX2"], ["NCBI3"]))):
        for side, members in (("train", train), ("test", test)):
            lines = [f"{s},patches/{s}.h5,adata/{s}.h5ad" for s in members]
            (folder / "splits" / f"{side}_{k}.csv").write_text("\n".join(["sample_id,patches_path,expr_path", *lines]))
    (folder / "var_50genes.json").write_text(json.dumps({"genes": ["EPCAM", "COL1A1"]}))
    return folder


def test_a_folder_of_samples_is_a_cohort(hest: Path) -> None:
    slides, donors = st.io.read_cohort([hest])
    assert sorted(slides) == sorted(IDS)
    assert donors == {"TENX1": "P1", "TENX2": "P1"}
    image = slides["NCBI3"]["he"]["scale0"]["image"]
    assert image.sizes["y"] == 500 / MPP
    um = slides["NCBI3"]["spots_counts"].obsm["spatial"]
    assert 0 < um.min()
    assert um.max() < 500
    apart = np.linalg.norm(um[:, None] - um[None], axis=2)
    assert np.median(np.min(apart + 1e9 * np.eye(len(um)), axis=1)) == pytest.approx(100, rel=0.02)


def test_a_task_is_a_cohort_with_its_folds(kept_features: None, hest: Path, task: Path) -> None:
    found = st.io.hest_bench(task, hest)
    assert list(found.slides) == ["TENX2", "TENX1", "NCBI3"]
    assert found.genes == ["EPCAM", "COL1A1"]
    assert found.donors == {"TENX1": "P1", "TENX2": "P1"}
    each = found.splits.of({s: s for s in found.slides})
    assert each is not None
    assert [(n, sorted(a), b) for n, a, b in each] == [
        ("0", ["TENX2"], ["TENX1"]),
        ("1", ["TENX1", "TENX2"], ["NCBI3"]),
    ]
    scores = st.tl.cross_validate(
        found.slides, ["mean"], groups="slide", genes=found.genes, splits=found.splits, encoder="intensity",
        shapes_key="spots",
    )  # fmt: skip
    assert set(scores["slide"]) == {"TENX1", "NCBI3", "pooled 0", "pooled 1"}
    assert set(scores["gene"]) == set(found.genes)
    with pytest.raises(InputError, match=r"train and test on donors \['P1'\]"):  # what the published folds do not say
        st.tl.cross_validate(
            found.slides, ["mean"], groups=found.donors | {"NCBI3": "P2"}, genes=found.genes, splits=found.splits
        )


def test_cells_of_an_archive_are_added(hest: Path, tmp_path: Path) -> None:
    slides, _ = st.io.read_cohort([hest])
    sdata = slides["TENX1"]
    cells = [
        {"type": "Feature", "geometry": mapping(box(x, y, x + 10, y + 8)),
         "properties": {"classification": {"name": "Neoplastic", "color": [255, 0, 0]}}}
        for x, y in ((100, 100), (200, 120), (300, 300))
    ]  # fmt: skip
    path = tmp_path / "TENX1_cellvit_seg.geojson.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("TENX1_cellvit_seg.geojson", json.dumps(cells))
    st.pp.add_cells(sdata, path, units="px", key_added="cells")
    np.testing.assert_allclose(sdata["cells"]["area_um2"], 80 * MPP**2)
    assert set(sdata["cells"]["cell_type"]) == {"Neoplastic"}
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("second.geojson", "[]")
    with pytest.raises(InputError, match="holds 2 GeoJSON files; one is needed"):
        st.pp.add_cells(sdata, path, units="px", key_added="cells")
    path.write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(InputError, match="cannot be read"):
        st.pp.add_cells(sdata, path, units="px", key_added="cells")


def test_what_is_wrong_with_a_task_is_said(hest: Path, task: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no folder 'splits'"):
        st.io.hest_bench(tmp_path, hest)
    with pytest.raises(InputError, match="has no folder 'wsis'"):
        st.io.hest_bench(task, tmp_path)
    genes = task / "var_50genes.json"
    genes.write_text('{"genes": 3}')
    with pytest.raises(InputError, match="holds no list of symbols"):
        st.io.hest_bench(task, hest)
    genes.write_text('["EPCAM"]')
    (task / "var_100genes.json").write_text('["EPCAM"]')
    with pytest.raises(InputError, match=r"2 files var_\*genes.json.*`genes_file`"):
        st.io.hest_bench(task, hest)
    last = task / "splits" / "test_1.csv"
    kept = last.read_text()
    last.write_text(kept.replace("NCBI3", "TENX1"))
    with pytest.raises(InputError, match=r"trains and tests on \['TENX1'\]"):
        st.io.hest_bench(task, hest)
    last.write_text(kept.replace("NCBI3", "GONE"))
    with pytest.raises(InputError, match=r"Samples \['GONE'\] have no counts"):
        st.io.hest_bench(task, hest, genes_file="var_50genes.json")
    last.write_text("sample\nx\n")
    with pytest.raises(InputError, match="needs a column 'sample_id'"):
        st.io.hest_bench(task, hest)
    last.unlink()
    with pytest.raises(InputError, match=r"has no test_1\.csv"):
        st.io.hest_bench(task, hest)


def test_what_is_wrong_with_a_folder_is_said(hest: Path, tmp_path: Path) -> None:
    (tmp_path / "st").mkdir()
    (tmp_path / "wsis").mkdir()
    with pytest.raises(InputError, match="no sample has both counts"):
        st.io.read_cohort([tmp_path])
    shutil.copy(hest / "st" / "TENX1.h5ad", tmp_path / "st")
    shutil.copy(hest / "wsis" / "TENX1.tif", tmp_path / "wsis")
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "TENX1.json").write_text('{"pixel_size_um_estimated": -1}')
    with pytest.raises(InputError, match="metadata .* are wrong: `pixel_size_um_estimated` must be a positive number"):
        st.io.read_cohort([tmp_path])

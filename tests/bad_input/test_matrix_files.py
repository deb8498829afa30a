"""Matrices in h5, h5ad and mtx files that are broken, absurdly large or elsewhere; today's libraries crash on some."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pytest
from scipy import sparse

import stpred as st
from stpred.io._tables import matrix

Change = Callable[[h5py.File], None]


def put(key: str, value: Any) -> Change:
    """Return a change that replaces one part of a file; `value` may be made from what is there."""

    def change(file: h5py.File) -> None:
        new = value(file[key][()]) if callable(value) else value
        attrs = dict(file[key].attrs)
        del file[key]
        file[key] = new
        for name, attr in attrs.items():
            if not isinstance(new, (h5py.ExternalLink, h5py.SoftLink)):
                file[key].attrs[name] = attr

    return change


def drop(key: str) -> Change:
    return lambda file: file.__delitem__(key)


def declared(key: str, n: int) -> Change:
    def change(file: h5py.File) -> None:
        del file[key]
        file.create_dataset(key, shape=(n,), dtype="int32", chunks=(1024,))

    return change


def looping(file: h5py.File) -> None:
    file["matrix/features/again"] = file["matrix"]


def virtual(file: h5py.File) -> None:
    n = len(file["matrix/data"])
    layout = h5py.VirtualLayout(shape=(n,), dtype="int32")
    layout[:] = h5py.VirtualSource("/etc/hosts", "x", shape=(n,))
    del file["matrix/data"]
    file.create_virtual_dataset("matrix/data", layout)


def last(value: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda v: np.r_[v[:-1], value].astype(v.dtype)


BROKEN_10X: dict[str, tuple[Change, str]] = {
    "no matrix": (drop("matrix"), "neither 'matrix' nor a genome"),
    "matrix a number": (lambda f: (f.__delitem__("matrix"), f.__setitem__("matrix", 3)), "no group"),
    "no barcodes": (drop("matrix/barcodes"), "has no 'matrix/barcodes'"),
    "no features": (drop("matrix/features"), "no group 'matrix/features'"),
    "no names": (drop("matrix/features/name"), "has no 'matrix/features/name'"),
    "barcodes a number": (put("matrix/barcodes", 3), "no 1-dimensional array"),
    "barcodes numbers": (put("matrix/barcodes", lambda v: np.arange(len(v))), "holds no text"),
    "barcodes twice": (put("matrix/barcodes", lambda v: np.r_[v[:1], v[:-1]]), "holds barcodes twice"),
    "no genes": (put("matrix/features/feature_type", lambda v: np.full(len(v), b"x")), "only ['x']"),
    "one barcode less": (put("matrix/barcodes", lambda v: v[:-1]), "barcodes"),
    "shape nan": (put("matrix/shape", np.array([np.nan, 5.0])), "not whole numbers"),
    "shape half": (put("matrix/shape", np.array([2.5, 5.0])), "not whole numbers"),
    "shape of three": (put("matrix/shape", np.array([1, 2, 3])), "3 numbers, not 2"),
    "shape huge": (put("matrix/shape", np.array([2**61, 2**61])), "shape of genes and barcodes"),
    "index beyond": (put("matrix/indices", last(10**6)), "points to 1000000, beyond the 20"),
    "index at the end": (put("matrix/indices", last(20)), "points to 20, beyond the 20"),
    "index negative": (put("matrix/indices", last(-1)), "values from -1 to 19, which are no positions"),
    "indices short": (put("matrix/indices", lambda v: v[:-1]), "values and"),
    "indices text": (put("matrix/indices", lambda v: np.full(len(v), b"x")), "no numbers"),
    "indptr falls": (put("matrix/indptr", lambda v: np.r_[v[:1], v[2], v[1], v[3:]]), "does not divide"),
    "indptr ends early": (put("matrix/indptr", lambda v: np.r_[v[:-1], v[-2]]), "does not divide"),
    "indptr short": (put("matrix/indptr", lambda v: v[:-1]), "entries where"),
    "data text": (put("matrix/data", lambda v: np.full(len(v), b"x")), "no numbers"),
    "data huge": (put("matrix/data", lambda v: v.astype(np.int64) + 2**31), "2147483647 or more"),
    "link outside": (put("matrix/data", h5py.ExternalLink("/etc/hosts", "/x")), "link to another file"),
    "link to itself": (put("matrix/data", h5py.SoftLink("/matrix/data")), "matrix/data' is a link to nothing"),
    "link to nothing": (put("matrix/data", h5py.SoftLink("/nowhere")), "link to nothing"),
    "in a circle": (looping, "contain themselves"),
    "virtual": (virtual, "lie in other files"),
    "four TiB": (declared("matrix/data", 2**40), "declares 4 TiB, of which the file holds 0 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(BROKEN_10X))
def test_broken_10x_matrices(kind: str, copied: Any, refused: Any) -> None:
    change, said = BROKEN_10X[kind]
    path = copied("visium") / "filtered_feature_bc_matrix.h5"
    with h5py.File(path, "r+") as file:
        change(file)
    with refused(said):
        st.io.visium(path.parent)


@pytest.mark.parametrize("name", ["visium", "visium_hd", "segmented", "xenium"])
def test_every_reader_of_10x_matrices_checks_them(name: str, copied: Any, refused: Any) -> None:
    folder = copied("visium_hd" if name == "segmented" else name)
    files = {
        "visium": "filtered_feature_bc_matrix.h5",
        "visium_hd": "binned_outputs/square_016um/filtered_feature_bc_matrix.h5",
        "segmented": "segmented_outputs/filtered_feature_cell_matrix.h5",
        "xenium": "cell_feature_matrix.h5",
    }
    with h5py.File(folder / files[name], "r+") as file:
        put("matrix/indices", last(10**6))(file)
    with refused(Path(files[name]).name, "points to 1000000, beyond the"):
        st.io.read(folder)


def test_whole_numbers_that_r_wrote_as_doubles(copied: Any) -> None:
    folder = copied("visium")
    before = st.io.visium(folder).tables["spots_counts"]
    with h5py.File(folder / "filtered_feature_bc_matrix.h5", "r+") as file:
        for key in ("shape", "indices", "indptr", "data"):
            put(f"matrix/{key}", lambda v: v.astype(np.float64))(file)
    after = st.io.visium(folder).tables["spots_counts"]
    np.testing.assert_array_equal(after.X.toarray(), before.X.toarray())
    assert list(after.var_names) == list(before.var_names)
    assert list(after.obs_names) == list(before.obs_names)


def test_features_of_other_kinds_are_left_out(copied: Any) -> None:
    folder = copied("visium")
    before = st.io.visium(folder).tables["spots_counts"]
    with h5py.File(folder / "filtered_feature_bc_matrix.h5", "r+") as file:
        put("matrix/features/feature_type", lambda v: np.r_[v[:-2], [b"Antibody Capture"] * 2])(file)
    after = st.io.visium(folder).tables["spots_counts"]
    assert list(after.var_names) == list(before.var_names[:-2])


def test_matrices_of_cell_ranger_2(tmp_path: Path, refused: Any) -> None:
    counts = sparse.csr_matrix(np.array([[0, 2, 1], [3, 0, 0]]))
    path = tmp_path / "old.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("GRCh38")
        group["genes"], group["gene_names"] = np.array([b"E1", b"E2", b"E3"]), np.array([b"A", b"B", b"C"])
        group["barcodes"], group["shape"] = np.array([b"x", b"y"]), np.array([3, 2])
        group["data"], group["indices"], group["indptr"] = counts.data, counts.indices, counts.indptr
    np.testing.assert_array_equal(matrix.read_10x_h5(path).X.toarray(), counts.toarray())
    with h5py.File(path, "r+") as file:
        put("GRCh38/indices", last(3))(file)
    with refused("old.h5", "points to 3, beyond the 3"):
        matrix.check_10x_h5(path)
    with h5py.File(path, "r+") as file:
        file.create_group("mm10")
    with refused("several genomes, ['GRCh38', 'mm10']"):
        matrix.check_10x_h5(path)


@pytest.mark.parametrize("part", ["X", "layers/counts", "raw/X", "obsm/other"])
@pytest.mark.parametrize("form", ["csr", "csc"])
def test_broken_matrices_of_anndata_files(
    part: str, form: str, tmp_path: Path, vendor_files: Path, refused: Any
) -> None:
    counts = ad.read_h5ad(vendor_files / "hest" / "toy.h5ad")
    counts.X = sparse.csr_matrix(counts.X).asformat(form)
    counts.raw = counts.copy()
    counts.layers["counts"] = counts.X.copy()
    counts.obsm["other"] = counts.X.copy()
    path = tmp_path / "a.h5ad"
    counts.write_h5ad(path)
    whole = path.read_bytes()
    for key, change, said in (
        ("indices", last(10**7), "beyond the"),
        ("indptr", lambda v: v[::-1], "does not divide"),
        ("indptr", lambda v: v[:-1], "entries where"),
        ("data", lambda v: v[:-1], "values and"),
        ("data", lambda v: np.full(len(v), b"x"), "no numbers"),
    ):
        path.write_bytes(whole)
        with h5py.File(path, "r+") as file:
            put(f"{part}/{key}", change)(file)
        with refused(path.name, f"/{part}", said):
            st.io.hest(path, vendor_files / "hest" / "toy.tif")


def test_anndata_files_with_links_and_sizes_beyond_them(tmp_path: Path, vendor_files: Path, refused: Any) -> None:
    path, image = tmp_path / "a.h5ad", vendor_files / "hest" / "toy.tif"
    whole = (vendor_files / "hest" / "toy.h5ad").read_bytes()
    for change, said in (
        (put("X/data", h5py.ExternalLink("/etc/hosts", "/x")), "link to another file"),
        (declared("X/data", 2**40), "declares 4 TiB"),
        (lambda f: f["X"].attrs.__setitem__("shape", [2**40, 20]), "entries where"),
        (lambda f: f["X"].attrs.__delitem__("shape"), "states no shape"),
    ):
        path.write_bytes(whole)
        with h5py.File(path, "r+") as file:
            change(file)
        with refused(path.name, said):
            st.io.hest(path, image)


@pytest.fixture
def mtx(copied: Any) -> Callable[..., Path]:
    """Writes the counts of a Visium folder as mtx, one line replaced; returns the folder."""

    def write(at: int, line: str) -> Path:
        import pandas as pd
        from scipy.io import mmwrite

        folder = copied("visium")
        h5 = folder / "filtered_feature_bc_matrix.h5"
        table = matrix.read_10x_h5(h5)
        h5.unlink()
        target = folder / "filtered_feature_bc_matrix"
        target.mkdir()
        mmwrite(target / "matrix.mtx", sparse.coo_matrix(table.X.T.astype(int)))
        lines = [x for x in (target / "matrix.mtx").read_text().splitlines() if x.strip() not in ("", "%")]
        lines[at] = line or lines[at]
        (target / "matrix.mtx").unlink()
        (target / "matrix.mtx.gz").write_bytes(gzip.compress("\n".join(lines).encode() + b"\n"))
        features = pd.DataFrame({"id": table.var["gene_ids"], "name": table.var_names, "type": "Gene Expression"})
        features.to_csv(target / "features.tsv.gz", sep="\t", header=False, index=False)
        pd.Series(table.obs_names).to_csv(target / "barcodes.tsv.gz", header=False, index=False)
        return folder

    return write


@pytest.mark.parametrize(
    ("at", "line", "said"),
    [
        (0, "%%MatrixMarket matrix array real general", "no MatrixMarket file of coordinates"),
        (0, "%%MatrixMarket matrix coordinate pattern general", "no MatrixMarket file of coordinates"),
        (1, "20", "three sizes"),
        (1, "1000000000 1000000000 1", "do the files belong together"),
        (1, "99999999999999999999 1 1", "do the files belong together"),
        (1, "20 {n} 999999999999", "declares 999999999999 entries"),
        (1, "20 {n} -1", "declares -1 entries"),
        (2, "99999 1 1", "cannot be read"),
        (2, "1 1 99999999999999999999", "cannot be read"),
        (2, "1 1 nan", "holds 'n' where"),
        (2, "1 1 0.5", "holds '.' where"),
        (2, "1 1 1e9", "holds 'e' where"),
        (2, "1 1 1 1", "but holds"),
        (2, "1 1", "but holds"),
        (2, "1 1 -5", "negative"),
    ],
)
def test_broken_mtx_files(
    at: int, line: str, said: str, mtx: Callable[..., Path], vendor_files: Path, refused: Any
) -> None:
    n = len(matrix.read_10x_h5(vendor_files / "visium" / "filtered_feature_bc_matrix.h5"))
    folder = mtx(at, line.format(n=n))
    with refused(said):
        st.io.visium(folder)


def test_mtx_gives_what_h5_gives(mtx: Callable[..., Path], vendor_files: Path) -> None:
    table = st.io.visium(mtx(0, "")).tables["spots_counts"]
    right = st.io.visium(vendor_files / "visium").tables["spots_counts"]
    np.testing.assert_array_equal(table.X.toarray(), right.X.toarray())


@pytest.mark.parametrize("form", ["csr", "csc"])
def test_broken_tables_in_memory(form: str, rebuild: Any, trained: Any, cohort: Any, refused: Any) -> None:
    """Every function that takes a table looks at its matrix first; SciPy would end the process in most of them."""
    sdata = rebuild()
    st.tl.predict(sdata, trained, key_added="guess")
    table = sdata.tables["spots_counts"]
    del sdata.tables["spots_counts"]
    table.X = table.X.asformat(form)
    table.layers["other"] = table.X.copy()
    table.X.indices[-1] = 10**8
    table.obs["half"] = np.where(np.arange(table.n_obs) % 2, "a", "b")
    sdata.tables["spots_counts"] = table
    markers = {"x": ["EPCAM", "KRT8"], "y": ["COL1A2", "CD3E"]}
    calls: dict[str, Callable[[], Any]] = {
        "train": lambda: st.tl.train(sdata, "intensity", genes=["EPCAM"], shapes_key="spots"),
        "compare": lambda: st.tl.compare(sdata, "guess", "spots_counts"),
        "score_cell_types": lambda: st.tl.score_cell_types(sdata, "spots_counts", markers),
        "markers": lambda: st.tl.markers(sdata, "spots_counts", groupby="half"),
        "pseudobulk": lambda: st.tl.pseudobulk({"a": sdata, "b": cohort["b"]}, "spots_counts"),
        "select_genes": lambda: st.pp.select_genes({"a": sdata}, st.GeneRule("mean", n=3), shapes_key="spots"),
        "spatial": lambda: st.pl.spatial(sdata, "spots_counts", "EPCAM"),
        "pathway_activity": lambda: st.tl.pathway_activity(sdata, "spots_counts", markers),
    }
    for name, call in calls.items():
        with refused("broken sparse matrix"):
            call()
            pytest.fail(name)
    table.X = table.layers["other"].copy()
    table.layers["other"].indices[-1] = 10**8
    with refused("the layer 'other'", "broken sparse matrix"):
        st.tl.score_cell_types(sdata, "spots_counts", markers, layer="other")

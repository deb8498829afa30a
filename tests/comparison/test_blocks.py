"""Scores of large tables are made block by block: the same as of whole matrices, and in the memory of a block."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from scipy import sparse
from spatialdata.models import ShapesModel
from spatialdata.transformations import Identity

import stpred as st
from stpred import genes, metrics
from stpred._core.expression import cut
from stpred._core.expression.cut import Cut
from stpred._core.tables import build_table
from stpred._core.targets import transform
from stpred.comparison.pairing import pair
from stpred.comparison.scoring import Measured

FORMS = {"dense": np.asarray, "csr": sparse.csr_matrix, "csc": sparse.csc_matrix, "array": sparse.csr_array}


def slide_of(predicted, counts, *, order=None):
    """Return a slide of a predicted and a measured table of the same spots, on a square lattice."""
    n, n_genes = predicted.shape
    wide = int(np.ceil(np.sqrt(n)))
    xy = 10.0 * np.column_stack([np.arange(n) % wide, np.arange(n) // wide]) + 5
    names = np.array([f"G{g}" for g in range(counts.shape[1])])
    order = np.arange(n) if order is None else order
    counts = counts[order]
    stated = {"kind": "prediction", "output_scale": "log1p_cp10k"}
    own = pd.DataFrame(index=names[-n_genes:][::-1])
    tables = {
        "p": build_table(
            predicted, shapes_key="spots", instances=pd.RangeIndex(n), var=own, spatial_um=xy, provenance=stated
        ),
        "m": build_table(
            counts, shapes_key="spots", instances=pd.Index(order), var=pd.DataFrame(index=names), spatial_um=xy[order]
        ),
    }
    shapes = ShapesModel.parse(xy, geometry=0, radius=4.0, transformations={"um": Identity()})
    return sd.SpatialData(shapes={"spots": shapes}, tables=tables)


def values_of(n, n_genes, n_predicted, *, seed=0):
    rng = np.random.default_rng(seed)
    rates = rng.gamma(0.5, 2, n_genes) * rng.gamma(3, 0.4, (n, 1)) * rng.gamma(2, 0.5, (n, n_genes))
    counts = rng.poisson(rates).astype(np.float32)
    predicted = np.log1p(rates[:, -n_predicted:][:, ::-1] * rng.gamma(9, 1 / 9, (n, n_predicted)))
    return predicted.astype(np.float32), counts


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("values", [7, 60, 10**6])
def test_blocks_of_a_cut_are_those_of_the_matrix(form, values, monkeypatch):
    monkeypatch.setattr(cut, "BLOCK_VALUES", values)
    rng = np.random.default_rng(0)
    full = rng.poisson(1.0, (12, 9)).astype(np.float32)
    rows, columns = rng.permutation(12)[:10], rng.permutation(9)[:7]
    sets = sparse.csr_matrix(np.column_stack([np.ones(5, int), rng.integers(0, 2, (5, 9))]))
    dense = sets.toarray() @ full[rows][:, columns]
    plain = Cut(FORMS[form](full))
    cases = {
        "all": (plain, full),
        "rows": (plain.take(rows), full[rows]),
        "columns": (plain.select(columns), full[:, columns]),
        "both": (plain.take(rows).select(columns), full[rows][:, columns]),
        "taken twice": (plain.take(rows).take(np.arange(3, 8)).select(columns), full[rows[3:8]][:, columns]),
        "sums": (plain.take(rows).select(columns).pooled(sets), dense),
        "some sums": (plain.take(rows).pooled(sets).take(np.array([3, 0])).select(columns), dense[[3, 0]]),
        "means": (
            plain.take(rows).select(columns).pooled(sets, mean=True), dense / sets.toarray().sum(axis=1)[:, None],
        ),
        "sums of sums": (plain.take(rows).select(columns).pooled(sets).pooled(sets[:2, :5]), sets[:2, :5] @ dense),
    }  # fmt: skip
    for name, (own, wanted) in cases.items():
        assert own.shape == wanted.shape, name
        blocks = [own.block(genes) for genes in own.slices()]
        found = np.concatenate([b.toarray() if hasattr(b, "toarray") else b for b in blocks], axis=1)
        np.testing.assert_allclose(found, wanted, rtol=1e-12, err_msg=name)
        if name != "means":
            for axis in (0, 1):
                np.testing.assert_allclose(own.sum(axis=axis), wanted.sum(axis=axis), rtol=1e-12, err_msg=name)
    if values == 7:
        assert len(list(plain.slices())) > 1


def test_means_are_not_pooled_again():
    sets = sparse.csr_matrix(np.ones((2, 3)))
    with pytest.raises(ValueError, match="Means of sets"):
        Cut(np.ones((3, 2))).pooled(sets, mean=True).pooled(sets[:, :2])


def reference(both, coords_um):
    """Return scores of whole matrices at once, as the functions of `metrics` make them."""
    p, o, counts = both.guessed, both.observed, both.counts
    counts = counts.toarray() if hasattr(counts, "toarray") else counts
    windows, whole = Measured.of(both).windows
    unit = [(v - v.min(axis=0)) / np.ptp(v, axis=0) for v in (p.astype(float), o.astype(float))]
    given = np.log1p(counts.sum(axis=1).astype(float))
    tested = metrics.rmax_test(counts[:, both.columns])
    return {
        "pearson": metrics.pearson(p, o), "spearman": metrics.spearman(p, o), "r2": metrics.r2(p, o),
        "rmse": metrics.rmse(p, o), "mae": metrics.mae(p, o), "auroc": metrics.auroc(p, o),
        "ssim": metrics.ssim(*unit, windows[whole], data_range=1.0),
        "pearson_smoothed": metrics.pearson(p, metrics.smooth(o, windows)),
        "pearson_given_library_size": metrics.partial_pearson(p, o, given),
        "library_size": metrics.library_size_baseline(counts, target=both.target, genes=both.columns),
        "neighbour_average": metrics.neighbour_baseline(o, windows),
        "rmax": genes.rmax(counts[:, both.columns]), "mean_count": counts[:, both.columns].mean(axis=0),
        "rmax_null": tested.null_mean, "rmax_p": tested.p_value,
        "reliability": halves(counts, both.columns, both.target),
    }  # fmt: skip


def halves(counts, columns, target, *, n_splits=3):
    """Return the reliability from all counts thrown apart at once."""
    matrix = sparse.csc_matrix(counts)
    rng, found = np.random.default_rng(0), []
    for _ in range(n_splits):
        drawn = rng.binomial(matrix.data.astype(int), 0.5)
        sides = [sparse.csc_matrix((d, matrix.indices, matrix.indptr)) for d in (drawn, matrix.data - drawn)]
        sides = [s.toarray().astype(float) for s in sides]
        kept = np.all([s.sum(axis=1) > 0 for s in sides], axis=0)
        scaled = [transform(s[kept][:, columns], s[kept].sum(axis=1), target=target) for s in sides]
        found.append(metrics.pearson(*scaled))
    r = np.clip(np.nanmean(found, axis=0), 0, None)
    return np.sqrt(2 * r / (1 + r))


@pytest.mark.parametrize("form", ["dense", "csr", "csc"])
def test_scores_are_those_of_whole_matrices_whatever_the_blocks(form, monkeypatch):
    predicted, counts = values_of(150, 40, 23)
    sdata = slide_of(predicted, FORMS[form](counts), order=np.random.default_rng(1).permutation(150)[:140])
    wanted = reference(pair(sdata, "p", "m"), None)
    found = {}
    for values in (150 * 5, 2**22):
        monkeypatch.setattr(cut, "BLOCK_VALUES", values)
        found[values] = st.tl.compare(sdata, "p", "m", n_neighbors=(4,), resolution="cell", bin_um=30)
        cell = found[values].query("level == 'cell'").reindex([f"G{g}" for g in range(39, 16, -1)])
        for name, score in wanted.items():
            tolerance = 1e-6 if name == "mean_count" else 1e-9  # means of float32 counts are float32
            np.testing.assert_allclose(cell[name], score, rtol=tolerance, atol=1e-9, err_msg=name)
    pd.testing.assert_frame_equal(*found.values(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("form", "options"), [("dense", {}), ("csr", {"n_neighbors": 5})])
def test_memory_does_not_grow_with_the_genes(form, options, monkeypatch):
    monkeypatch.setattr(cut, "BLOCK_VALUES", 900 * 20)
    peaks = []
    for n_genes in (20, 40, 200):  # what is imported on the way in the first is not counted
        predicted, counts = values_of(900, n_genes, n_genes)
        sdata = slide_of(predicted, FORMS[form](counts))
        tracemalloc.start()
        st.tl.compare(sdata, "p", "m", **options)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] - peaks[1] < 3 * predicted.nbytes  # whole matrices took more than fifteen times as much

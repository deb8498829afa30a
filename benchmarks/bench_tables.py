"""Large tables: peak memory and time of ``compare`` on 20 000 x 18 000 and of ``predict`` on 500 000 x 500.

Each case runs in a process of its own. `compare` is to stay below the two matrices (the prediction as float32, the
counts as they are stored) plus 1 GB, and `predict` below its result plus 2 GB; imports and the slide are in these.
``python -m benchmarks.bench_tables CASE N_LOCATIONS N_GENES`` runs one case of another size.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _slides

SPACING_UM = 8.0

CASES = {
    "compare_sparse": (20_000, 18_000),
    "compare_dense": (20_000, 18_000),
    "compare_bins": (20_000, 18_000),
    "compare_neighbours": (20_000, 18_000),
    "predict_cells": (500_000, 500),
    "predict_genes": (20_000, 18_000),
}


def peak_gb() -> float:
    """Return the peak resident memory of this process since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("VmHWM"))


def forget_peak() -> None:
    """Let the peak be what is resident now: what made the inputs is not measured."""
    Path("/proc/self/clear_refs").write_text("5")


def size_gb(matrix: Any) -> float:
    """Return the memory of a matrix as it is stored."""
    parts = [matrix] if isinstance(matrix, np.ndarray) else [matrix.data, matrix.indices, matrix.indptr]
    return float(sum(part.nbytes for part in parts)) / 1e9


def places(n: int) -> np.ndarray:
    """Return the centres of `n` locations on a square lattice."""
    wide = int(np.ceil(np.sqrt(n)))
    return SPACING_UM * (np.column_stack([np.arange(n) % wide, np.arange(n) // wide]) + 0.5)


def measured_slide(n: int, n_genes: int, *, sparse: bool) -> Any:
    """Return a slide of a predicted and a measured table, as many genes detected at a location as by Visium."""
    import spatialdata as sd
    from scipy.sparse import csr_matrix

    from stpred._core.tables import build_table

    rng = np.random.default_rng(0)
    rate = rng.gamma(0.4, 1.0, n_genes).astype(np.float32)
    predicted = np.empty((n, n_genes), np.float32)
    dense = None if sparse else np.zeros((n, n_genes), np.float32)
    parts = []
    for first in range(0, n, 500):
        amount = rng.gamma(4.0, 0.25, (min(500, n - first), 1)) * rng.gamma(2.0, 0.5, (min(500, n - first), n_genes))
        counts = rng.poisson(rate * amount).astype(np.float32)
        predicted[first : first + 500] = np.log1p(rate * np.sqrt(amount))
        if dense is None:
            parts.append(csr_matrix(counts))
        else:
            dense[first : first + 500] = counts
    if dense is None:
        dense = joined(parts, n_genes)
    xy = places(n)
    import pandas as pd

    var = pd.DataFrame(index=[f"G{g}" for g in range(n_genes)])
    shapes = {"spots": circles(xy)}
    where = {"shapes_key": "spots", "instances": pd.RangeIndex(n), "var": var, "spatial_um": xy}
    stated = {"kind": "prediction", "output_scale": "log1p_cp10k"}
    tables = {
        "spots_model": build_table(predicted, provenance=stated, **where),
        "spots_counts": build_table(dense, **where),
    }
    return sd.SpatialData(shapes=shapes, tables=tables)


def joined(parts: list[Any], n_genes: int) -> Any:
    """Put sparse strips below each other, holding little more than the result."""
    from scipy.sparse import csr_matrix

    indptr = np.concatenate([[0], np.cumsum(np.concatenate([np.diff(p.indptr) for p in parts]))])
    data, indices = np.empty(indptr[-1], np.float32), np.empty(indptr[-1], np.int32)
    first = 0
    n = len(indptr) - 1
    while parts:
        part = parts.pop(0)
        data[first : first + part.nnz], indices[first : first + part.nnz] = part.data, part.indices
        first += part.nnz
    return csr_matrix((data, indices, indptr), shape=(n, n_genes))


def circles(xy: np.ndarray) -> Any:
    """Return circles as shapes in micrometres."""
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    return ShapesModel.parse(xy, geometry=0, radius=SPACING_UM / 2.2, transformations={"um": Identity()})


def run_compare(case: str, n: int, n_genes: int) -> dict[str, float]:
    """Compare, and say what it took."""
    import stpred as st

    sdata = measured_slide(n, n_genes, sparse=case != "compare_dense")
    matrices = sum(size_gb(t.X) for t in sdata.tables.values())
    options: dict[str, Any] = {
        "compare_bins": {"bin_um": 2 * SPACING_UM},
        "compare_neighbours": {"n_neighbors": 7},
    }.get(case, {})
    forget_peak()
    start = time.process_time(), time.perf_counter()
    st.tl.compare(sdata, "spots_model", "spots_counts", **options)
    return {
        "peak_gb": peak_gb(), "data_gb": matrices,
        "cpu_s": time.process_time() - start[0], "wall_s": time.perf_counter() - start[1],
    }  # fmt: skip


class Projection:
    """Pixels of a small tile as features, for what an encoder computes is not measured: 768, as of a ViT-B."""

    def __init__(self) -> None:
        import stpred as st
        from stpred.encoders.base import EncoderCard

        self.card = EncoderCard("projection", st.TileSpec(1.0, 16), 768)

    def to(self, device: str | None) -> Projection:
        return self

    def encode(self, tiles: np.ndarray) -> np.ndarray:
        return tiles.reshape(len(tiles), -1).astype(np.float32)


def large_slide(n: int, folder: Path) -> Any:
    """Return a slide of JPEG tiles with `n` locations all over it."""
    import stpred as st

    size_px = int(np.ceil(np.sqrt(n))) * int(2 * SPACING_UM) + 512
    _slides.write_tiled(folder / "slide.tif", size_px=size_px, levels=4)
    sdata = st.io.wsi(folder / "slide.tif", mpp=0.5)
    sdata.shapes["cells"] = circles(places(n) + 128)
    return sdata


def trained(encoder: Any, n_genes: int) -> Any:
    """Return a ridge with rings of neighbours, standardised slide by slide; its genes are repeated up to `n_genes`."""
    import torch

    import stpred as st

    cohort = st.datasets.toy_cohort(2, size_um=(900, 900), n_genes=60)
    config = st.models.Ridge.Config(context_um=520.0, standardize="slide", rank=16)
    model = st.tl.train(cohort, config, shapes_key="spots", encoder=encoder, genes=st.GeneRule("mean", n=50))
    at = torch.arange(n_genes) % len(model.record.genes)
    model.directions, model.intercept = model.directions[:, at], model.intercept[at]
    model.record.genes = [f"{model.record.genes[i]}.{k}" for k, i in enumerate(at.tolist())]
    model.record.var, model.record.intervals, model.n_genes = {}, {}, n_genes
    return model


def run_predict(n: int, n_genes: int) -> dict[str, float]:
    """Predict, and say what it took."""
    import stpred as st

    with tempfile.TemporaryDirectory(prefix="stpred-bench-") as name:
        encoder = Projection()
        model = trained(encoder, n_genes)
        sdata = large_slide(n, Path(name))
        forget_peak()
        before = peak_gb()
        start = time.process_time(), time.perf_counter()
        table = st.tl.predict(sdata, model, shapes_key="cells", encoder=encoder, inplace=False)
        return {
            "peak_gb": peak_gb(), "data_gb": size_gb(table.X), "before_gb": before,
            "cpu_s": time.process_time() - start[0], "wall_s": time.perf_counter() - start[1],
        }  # fmt: skip


def run(case: str, n: int, n_genes: int) -> dict[str, float]:
    """Run a case in this process."""
    return run_compare(case, n, n_genes) if case.startswith("compare") else run_predict(n, n_genes)


class Tables:
    """Each case once, in a process of its own; all numbers come from that run."""

    params = (tuple(CASES),)
    param_names = ("case",)
    timeout = 3600

    def setup_cache(self) -> dict[str, dict[str, float]]:
        found = {}
        for case, size in CASES.items():
            command = [sys.executable, "-m", "benchmarks.bench_tables", case, *map(str, size)]
            found[case] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        return found

    setup_cache.timeout = 4 * 3600  # type: ignore[attr-defined]

    def track_peak_gb(self, found: dict[str, dict[str, float]], case: str) -> float:
        return found[case]["peak_gb"]

    def track_beyond_data_gb(self, found: dict[str, dict[str, float]], case: str) -> float:
        """Below 1 of `compare`, beyond its matrices, and below 2 of `predict`, beyond its result."""
        return found[case]["peak_gb"] - found[case]["data_gb"]

    def track_cpu_seconds(self, found: dict[str, dict[str, float]], case: str) -> float:
        return found[case]["cpu_s"]

    track_peak_gb.unit = track_beyond_data_gb.unit = "GB"  # type: ignore[attr-defined]
    track_cpu_seconds.unit = "s"  # type: ignore[attr-defined]


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))

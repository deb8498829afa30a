"""Collecting the tables of many slides: memory stays at one block, whatever their number; pseudo-bulk beside.

Stores are faked: 20 000 locations x 500 genes each, float32. The command runs in a process of its own.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.bench_memory import Usage, run
from stpred.cohort.manifest import Record, write_manifest

N_ROWS, N_GENES = 20_000, 500


def fake_run(folder: Path, *, n_slides: int, n_rows: int = N_ROWS, n_genes: int = N_GENES) -> None:
    """Write a run whose stores hold the same table of random values under different names."""
    import anndata
    import pandas as pd
    import zarr

    from stpred.testing import build_table

    rng = np.random.default_rng(0)
    table = build_table(
        rng.gamma(2.0, 0.5, size=(n_rows, n_genes)).astype(np.float32),
        shapes_key="grid",
        instances=pd.RangeIndex(n_rows),
        var=pd.DataFrame({"cv_pearson": 0.5, "trusted": True}, index=[f"GENE{i}" for i in range(n_genes)]),
        spatial_um=rng.uniform(0, 1e4, (n_rows, 2)),
        obs={"ood_score": rng.random(n_rows), "in_distribution": rng.random(n_rows) < 0.8},
        provenance={"model": "default", "model_id": "m1", "output_scale": "log1p_cp10k"},
    )
    records = []
    for k in range(n_slides):
        store = folder / f"s{k}.zarr" / "tables" / "grid_default"
        if k:
            shutil.copytree(folder / "s0.zarr", folder / f"s{k}.zarr")
        else:
            store.parent.mkdir(parents=True)
            anndata.io.write_elem(zarr.open_group(store, mode="w", zarr_format=3), "/", table)
        about = {"model": "default", "model_id": "m1", "table": "grid_default", "donor": f"d{k}"}
        records.append(Record(f"s{k}", f"/data/s{k}.svs", store=f"s{k}.zarr", status="complete", **about))  # type: ignore[arg-type]
    write_manifest(records, folder)


def collect(folder: Path, *arguments: str) -> Usage:
    """Collect from the command line, as a user does."""
    command = [sys.executable, "-m", "stpred.cli", "--quiet", "collect", str(folder), "--no-page", *arguments]
    return run(command)


class Collect:
    """20 000 locations x 500 genes a slide."""

    params = ((4, 40), ("h5ad", "zarr", "pseudo-bulk only"))
    param_names = ("n_slides", "tables")
    timeout = 1200

    def setup(self, n_slides: int, tables: str) -> None:
        """Fake the run and collect it."""
        self.folder = Path(tempfile.mkdtemp())
        fake_run(self.folder, n_slides=n_slides)
        more = [] if tables == "pseudo-bulk only" else ["--tables", str(self.folder / f"tables.{tables}")]
        self.used = collect(self.folder, "-o", str(self.folder / "bulk.h5ad"), *more)

    def teardown(self, n_slides: int, tables: str) -> None:
        """Remove what was made."""
        shutil.rmtree(self.folder)

    def track_peak(self, n_slides: int, tables: str) -> float:
        """Peak memory, of which imports take about 0.4 GB."""
        return self.used.rss_gb

    def track_cpu(self, n_slides: int, tables: str) -> float:
        """CPU time."""
        return self.used.cpu_s


for method, unit in {"peak": "GB", "cpu": "s CPU"}.items():
    getattr(Collect, f"track_{method}").unit = unit

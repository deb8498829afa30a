"""Cell types and genes by a single-cell reference on synthetic cells, where the truth is known.

    python scripts/reference_accuracy.py --size 800

Prints, for measured counts with fewer and fewer genes and for predictions from H&E: accuracy beside the best possible,
the share that is unknown, and, for each type, how often it is unknown where the reference lacks it, found and stated.
"""

from __future__ import annotations

import argparse
import json
import logging
import warnings
from typing import Any

import numpy as np
from anndata import AnnData, concat
from numpy.typing import NDArray
from spatialdata import SpatialData

import stpred as st


def annotated(table: AnnData, reference: AnnData) -> tuple[NDArray[Any], dict[str, Any]]:
    """Return the class of each cell and what is stated of them."""
    found = st.tl.annotate_cells(SpatialData(tables={"t": table}), "t", reference, groupby="type", inplace=False)
    assert found is not None
    text = found.uns.get("stpred_cell_types")
    stated = json.loads(text) if text else json.loads(found.uns["stpred"])["cell_types"]
    return found.obs["cell_type"].astype(str).to_numpy(), stated


def best_by_counts(table: AnnData, expected: NDArray[Any], truth: NDArray[Any]) -> float:
    """Return the accuracy of the likelihood of each type's true shares of the counts."""
    names = np.unique(truth)
    shares = np.stack([expected[truth == n].sum(axis=0) for n in names])
    shares /= shares.sum(axis=1, keepdims=True)
    return float((names[np.asarray(table.X @ np.log(shares).T).argmax(axis=1)] == truth).mean())


def best_by_values(values: NDArray[Any], truth: NDArray[Any]) -> float:
    """Return the accuracy of linear discriminants that are fitted on the true types of the other half of the cells."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.model_selection import cross_val_score

    found = cross_val_score(LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.01), values, truth, cv=2)
    return float(found.mean())


def report(name: str, table: AnnData, reference: AnnData, truth: NDArray[Any], best: float) -> None:
    """Print a line of accuracy, and one of types that the reference lacks."""
    labels, stated = annotated(table, reference)
    known = labels != "unknown"
    print(
        f"{name:24} accuracy {(labels == truth).mean():.3f} (of known cells {(labels == truth)[known].mean():.3f}), "
        f"best possible {best:.3f}, unknown {1 - known.mean():.3f}, reliability {stated.get('reliability')}"
    )
    parts = []
    for kind in np.unique(truth):
        without, _ = annotated(table, reference[reference.obs["type"] != kind])
        parts.append(f"{kind} {(without[truth == kind] == 'unknown').mean():.2f}/{stated['unknown_if_absent'][kind]}")
    print(f"{'':24} unknown if absent, found/stated: {', '.join(parts)}", flush=True)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=float, default=800.0, help="edge of each slide in micrometres")
    parser.add_argument("--counts-only", action="store_true", help="leave out predictions, which take minutes")
    size = parser.parse_args().size
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    tissues = {f"donor{d}": st.datasets.make_tissue(size_um=(size, size), n_genes=60, donor=d) for d in range(3)}
    slides = {name: st.datasets.toy(tissue=tissue) for name, tissue in tissues.items()}
    reference = concat([slides[s]["cells_counts"] for s in ("donor0", "donor1")], index_unique="-")
    slide, tissue = slides.pop("donor2"), tissues["donor2"]
    cells = slide["cells_counts"]
    truth = cells.obs["type"].astype(str).to_numpy()
    for n in (8, 16, 30, 60):
        genes = np.random.default_rng(n).permutation(60)[:n]
        best = best_by_counts(cells[:, genes], tissue.expected[:, genes], truth)
        report(f"counts of {n} genes", cells[:, genes].copy(), reference, truth, best)
    if parser.parse_args().counts_only:
        return
    for kind in ("spots", "cells"):
        model = st.tl.train(slides, "ridge", genes="all", shapes_key=kind)
        st.tl.predict(slide, model, shapes_key="cells", key_added=f"by_{kind}")
        table = slide[f"by_{kind}"]
        types = truth[cells.obs["instance_id"].isin(table.obs["instance_id"]).to_numpy()]
        report(f"predicted, of {kind}", table, reference, types, best_by_values(np.asarray(table.X), types))


if __name__ == "__main__":
    main()

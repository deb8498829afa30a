from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import keys, targets
from stpred._core.checks import InputError, distinct, fraction_of, listing, positive, whole
from stpred._core.tables import package_versions
from stpred.tl._downstream.markers import chosen_genes
from stpred.tl._reference.reading import MIN_GENES, match_genes, read_locations, read_reference
from stpred.tl._reference.separation import MIN_ACCURACY, separate

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


def check_reference(
    reference: AnnData,
    genes: AnnData | Iterable[str],
    groupby: str,
    *,
    layer: str | None = None,
    trusted_only: bool = True,
    n_genes: int = 500,
    depth: float | None = None,
    level: float = 0.01,
    min_accuracy: float = MIN_ACCURACY,
    min_in_group: int = 10,
    seed: int = 0,
) -> pd.DataFrame:
    """Say which classes a single-cell reference cannot tell apart with some genes.

    Cells of the reference are held out, thinned to the depth that the locations have, and assigned by these genes
    alone, as :func:`stpred.tl.annotate_cells` does with counts. What fails here fails on predictions, whose errors come
    on top.

    Parameters
    ----------
    reference
        Raw counts of single cells.
    genes
        Genes by name, or a table (predicted or measured), whose genes and depth are taken.
    groupby
        Column of the reference's ``obs`` with the classes.
    layer
        Layer of the reference with the raw counts; None takes ``X``.
    trusted_only
        Of a table: use only genes that ``var["trusted"]`` vouches for, where it has such a column.
    n_genes
        Genes of which the classes explain the most variance in the reference are taken, where more are shared.
    depth
        Counts of these genes in a location; None takes that of the table (of measured counts of each location, of
        predictions what the model's training tables had), or leaves the reference as it is.
    level
        Share of a class's own cells that may be called unknown.
    min_accuracy
        Accuracy between two classes, 0.5 to 1, below which they are said to be indistinct.
    min_in_group
        Classes with fewer cells are left out (the log says which).
    seed
        Of halves, draws and thinning.

    Returns
    -------
    DataFrame indexed by class, with

    - ``n_cells``: held-out cells (at most 1000);
    - ``recall``, ``precision``: share of the class that is taken for it, and of what is taken for it that is of it,
      for classes of equal size;
    - ``confused_with``, ``share_confused``: the other class that most of its cells are taken for;
    - ``indistinct_with``: classes that cannot be told from it, directly or through others, comma separated;
    - ``unknown``: share that lies beyond the limit of distance;
    - ``unknown_if_absent``: the same share, if the reference lacked the class: how likely a type that is missing is
      found to be.

    ``attrs["stpred"]`` holds ``"summary"``, a sentence that says it all, the ``"confusion"`` between all classes, the
    genes and the depth.

    Raises
    ------
    InputError
        If the reference holds no raw counts, has no such column or fewer than two classes, or shares fewer than two
        genes.

    Examples
    --------
    >>> import stpred as st
    >>> reference = st.datasets.toy_reference(n_types=3, n_genes=80, n_cells=60)
    >>> found = st.tl.check_reference(reference, reference.var_names[:40], "cell_type")
    >>> found.attrs["stpred"]["summary"]
    'With 40 shared genes, the reference tells its 3 classes apart (lowest accuracy between two of them: 1.00).'
    """
    level = fraction_of(level, name="level")
    min_in_group = whole(min_in_group, name="min_in_group")
    if isinstance(min_accuracy, bool) or not 0.5 <= float(min_accuracy) <= 1:
        raise InputError(f"`min_accuracy` must lie between 0.5 and 1, got {min_accuracy!r}.")
    depths: Any = None if depth is None else np.array([positive(depth, name="depth", unit="counts")])
    names, columns, found_depths = _genes_of(reference, genes, trusted_only=trusted_only)
    depths = found_depths if depths is None else depths
    cells = read_reference(reference, columns, genes=names, groupby=groupby, layer=layer, min_in_group=min_in_group)
    rng, before = np.random.default_rng(seed), targets.totals(cells.counts).mean()
    cells = cells.of_genes(cells.informative(whole(n_genes, name="n_genes"), rng))
    if depths is not None:
        depths = depths * targets.totals(cells.counts).mean() / before  # what the genes taken have of it
    found = separate(cells, depths=depths, level=level, rng=rng)
    frame = _frame(found, min_accuracy)
    usual = float(np.median(targets.totals(cells.counts) if depths is None else depths))
    frame.attrs[keys.UNS] = {
        "kind": "check_reference",
        "summary": summary(found, len(cells.genes), min_accuracy),
        "groupby": groupby,
        "genes": cells.genes,
        "depth": usual,
        "level": level,
        "confusion": {
            a: dict(zip(found.names, row, strict=True))
            for a, row in zip(found.names, found.confusion.tolist(), strict=True)
        },
        "versions": package_versions(),
    }
    return frame


def _genes_of(reference: Any, genes: Any, *, trusted_only: bool) -> tuple[list[str], Any, Any]:
    """Return shared genes, their columns in the reference, and the depths of the locations where there are any."""
    from anndata import AnnData

    if isinstance(genes, AnnData):
        picked = chosen_genes(genes, what="table", trusted_only=trusted_only)
        ids = genes.var["gene_id"].astype(str).to_numpy()[picked] if "gene_id" in genes.var else None
        ours, columns = match_genes(reference, genes.var_names[picked], ids=ids, what="table")
        locations = read_locations(genes, picked[ours], what="table")
        depths = targets.totals(locations.values) if locations.measured else locations.depth
        return (
            [str(g) for g in genes.var_names[picked[ours]]],
            columns,
            None if depths is None else np.atleast_1d(depths),
        )
    if isinstance(genes, str):
        raise InputError(f"`genes` must be a list of genes or a table, got {genes!r}.")
    names = [str(g) for g in distinct(genes, name="genes")]
    ours, columns = match_genes(reference, names, what="list of genes")
    if len(ours) < MIN_GENES:
        raise InputError(f"The reference has {len(ours)} of the {len(names)} genes {listing(names)}.")
    return [names[i] for i in ours], columns, None


def _frame(found: Any, min_accuracy: float) -> pd.DataFrame:
    import pandas as pd

    off = found.confusion.copy()
    np.fill_diagonal(off, -1.0)
    other = off.argmax(axis=1)
    share = off.max(axis=1)
    groups = found.indistinct(min_accuracy)
    together = {name: [n for n in group if n != name] for group in groups for name in group}
    return pd.DataFrame(
        {
            "n_cells": found.n_cells,
            "recall": found.recall,
            "precision": found.precision,
            "confused_with": [found.names[k] if s > 0 else "" for k, s in zip(other, share, strict=True)],
            "share_confused": share,
            "indistinct_with": [", ".join(together.get(name, [])) for name in found.names],
            "unknown": found.unknown,
            "unknown_if_absent": found.unknown_if_absent,
        },
        index=pd.Index(found.names, name="class"),
    )


def summary(found: Any, n_genes: int, min_accuracy: float) -> str:
    """Return in a sentence which classes are told apart."""
    groups = found.indistinct(min_accuracy)
    start = f"With {n_genes} shared genes, the reference"
    if not groups:
        return (
            f"{start} tells its {len(found.names)} classes apart (lowest accuracy between two of them: "
            f"{found.pairwise.min():.2f})."
        )
    if len(groups) == 1 and len(groups[0]) == len(found.names):
        return f"{start} tells none of its {len(found.names)} classes apart from all others: join classes or add genes."
    named = "; ".join(listing(g) for g in groups)
    return f"{start} cannot tell apart: {named} (accuracy between two under {min_accuracy:g}); join them or add genes."

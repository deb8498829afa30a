from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core.checks import InputError, fraction_of, listing, warn
from stpred.tl._downstream.markers import chosen_genes

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

_NAMES = (("source", "target"), ("ligand", "receptor"))


def check_pairs(
    table: AnnData, pairs: Mapping[str, Any] | pd.DataFrame | Iterable[tuple[str, str]], *, level: float = 0.05
) -> pd.DataFrame:
    """Say which pairs of a ligand and a receptor rest on genes that the model does not vouch for.

    Parameters
    ----------
    table
        Predicted table with ``var["trusted"]``.
    pairs
        What ``squidpy.gr.ligrec(..., copy=True)`` returned (or left in ``uns``), a frame with columns ``source`` and
        ``target`` (or ``ligand`` and ``receptor``), or pairs of genes. Upper and lower case make no difference, since
        squidpy turns genes to upper case.
    level
        Of a result of squidpy: p value up to which a pair counts as found.

    Returns
    -------
    DataFrame with a row per pair: ``source``, ``target``, ``source_trusted``, ``target_trusted``, ``trusted`` (both
    are), ``cv_pearson`` (the lower of the two, NaN where not stated) and, of a result of squidpy, ``n_found``: in how
    many pairs of groups it has a p value up to `level`. A warning names pairs that are given, or found, and not
    trusted.

    Raises
    ------
    InputError
        If the table does not say which genes are trusted, or a gene is not in the table.

    Examples
    --------
    >>> import numpy as np, pandas as pd, stpred as st
    >>> from anndata import AnnData
    >>> var = pd.DataFrame({"trusted": [True, True, False]}, index=["CCL19", "CCR7", "CXCR4"])
    >>> found = st.tl.check_pairs(AnnData(np.zeros((2, 3)), var=var), [("CCL19", "CCR7")])
    >>> found["trusted"].tolist()
    [True]
    """
    import pandas as pd

    level = fraction_of(level, name="level")
    if "trusted" not in table.var:
        raise InputError(
            "The table does not say which genes are trusted: it has no var['trusted'], since it was measured, or its "
            "model was trained without held-out slides."
        )
    chosen_genes(table, what="table", trusted_only=False)  # refuses names that occur twice
    names, n_found = _pairs_of(pairs, level)
    place = {str(g).upper(): i for i, g in enumerate(table.var_names)} | {g: i for i, g in enumerate(table.var_names)}
    if missing := list(dict.fromkeys(g for pair in names for g in pair if g not in place and g.upper() not in place)):
        raise InputError(f"The table has no gene {listing(missing)}, of which pairs are given.")
    at = np.array([[place.get(g, place.get(g.upper())) for g in pair] for pair in names], dtype=np.int64).reshape(-1, 2)
    trust = table.var["trusted"].fillna(value=False).to_numpy(dtype=bool)[at]
    scores = table.var["cv_pearson"].to_numpy(dtype=np.float64) if "cv_pearson" in table.var else None
    frame = pd.DataFrame(
        {
            "source": table.var_names[at[:, 0]].astype(str),
            "target": table.var_names[at[:, 1]].astype(str),
            "source_trusted": trust[:, 0],
            "target_trusted": trust[:, 1],
            "trusted": trust.all(axis=1),
            "cv_pearson": np.full(len(at), np.nan) if scores is None else scores[at].min(axis=1),
        }
    )
    if n_found is not None:
        frame["n_found"] = n_found
    counted = np.ones(len(frame), dtype=bool) if n_found is None else np.asarray(n_found) > 0
    if bad := [f"{s}-{t}" for s, t in frame.loc[counted & ~frame["trusted"], ["source", "target"]].to_numpy()]:
        warn(
            f"{len(bad)} of {int(counted.sum())} pairs {'' if n_found is None else 'that were found '}rest on genes "
            f"that the model does not vouch for: {listing(bad)}; run them on stpred.tl.trusted(table)."
        )
    return frame


def _pairs_of(pairs: Any, level: float) -> tuple[list[tuple[str, str]], list[int] | None]:
    """Return pairs of names, and of a result of squidpy how often each was found."""
    import pandas as pd

    if isinstance(pairs, Mapping):
        if not isinstance(pairs.get("pvalues"), pd.DataFrame):
            raise InputError(f"`pairs` has no frame of 'pvalues', as squidpy's result has; it has {listing(pairs)}.")
        values = pairs["pvalues"]
        # Sparse columns of squidpy hold NaN where a pair was not tested.
        found = (np.asarray(values, dtype=np.float64) <= level).sum(axis=1)
        return [(str(a), str(b)) for a, b in values.index], [int(n) for n in found]
    if isinstance(pairs, pd.DataFrame):
        for names in _NAMES:
            if set(names) <= set(pairs.columns):
                return [(str(a), str(b)) for a, b in pairs[list(names)].to_numpy()], None
        raise InputError(f"`pairs` must have the columns 'source' and 'target'; it has {listing(pairs.columns)}.")
    given = list(pairs)
    if odd := [p for p in given if isinstance(p, str) or len(tuple(p)) != 2]:
        raise InputError(f"`pairs` must hold pairs of two genes, got {odd[0]!r}.")
    return [(str(a), str(b)) for a, b in given], None

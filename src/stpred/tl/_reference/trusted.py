from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

import numpy as np

from stpred._core import keys
from stpred._core.checks import InputError, key_in
from stpred._core.elements import need_sdata, table_in_frame
from stpred._core.tables import read_prediction
from stpred.tl._downstream.markers import chosen_genes

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger("stpred")


def trusted(
    table: AnnData | SpatialData,
    table_key: str | None = None,
    *,
    in_distribution_only: bool = False,
    coordinate_system: str | None = keys.UM,
) -> AnnData:
    """Return a copy of a predicted table with the genes that its model vouches for, for whatever comes next.

    Clusters, neighbourhoods, ligands and receptors of a prediction rest on all of its genes, also on those that could
    not be predicted on held-out tissue. What is computed on this copy does not.

    Parameters
    ----------
    table
        Predicted table, or an object that holds it.
    table_key
        Of an object: name of the table.
    in_distribution_only
        Leave out locations whose image is unlike the training tiles (``obs["in_distribution"]``), too.
    coordinate_system
        Of a table in an object that annotates regions of several slides: the frame of the slide whose rows are taken.
        None takes all rows.

    Returns
    -------
    AnnData of its own with the trusted genes, everything else as it was, and in its provenance (``uns["stpred"]``)
    under ``"trusted"`` how many genes and locations were left out.

    Raises
    ------
    InputError
        If the table is no prediction or does not say which genes are trusted, or nothing is left.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(3, size_um=(400, 400), n_genes=20)
    >>> model = st.tl.train({k: slides[k] for k in ("donor0", "donor1")}, "ridge", genes="all", shapes_key="spots")
    >>> st.tl.predict(slides["donor2"], model, shapes_key="spots")
    >>> table = st.tl.trusted(slides["donor2"], "spots_ridge")
    >>> bool(table.var["trusted"].all()), table.n_vars <= 20
    (True, True)
    """
    from anndata import AnnData

    if isinstance(table, AnnData):
        if table_key is not None:
            raise InputError("`table_key` names a table of a SpatialData object, and a table was given.")
        what, whole = "table", table
    else:
        need_sdata(table)
        if table_key is None:
            raise InputError(f"Name the table with `table_key`; available: {sorted(table.tables)}.")
        key_in(table_key, table.tables, what="table", name="table_key")
        what, whole = f"table {table_key!r}", table_in_frame(table, table_key, coordinate_system=coordinate_system)
    provenance = read_prediction(whole, what=what)
    if "trusted" not in whole.var:
        raise InputError(
            f"The {what} does not say which genes are trusted: it has no var['trusted'], since it was measured, or its "
            "model was trained without held-out slides."
        )
    genes = chosen_genes(whole, what=what, trusted_only=True)
    rows = np.arange(whole.n_obs)
    if in_distribution_only:
        if keys.IN_DISTRIBUTION not in whole.obs:
            raise InputError(f"The {what} has no obs[{keys.IN_DISTRIBUTION!r}]; pass in_distribution_only=False.")
        rows = np.flatnonzero(whole.obs[keys.IN_DISTRIBUTION].to_numpy(dtype=bool))
        if len(rows) == 0:
            raise InputError(f"None of the {whole.n_obs} locations of {what} is in distribution.")
    found = whole[rows][:, genes].copy()
    left_out = {"genes_left_out": whole.n_vars - len(genes), "locations_left_out": whole.n_obs - len(rows)}
    logger.info("%d of %d genes and %d of %d locations are kept.", len(genes), whole.n_vars, len(rows), whole.n_obs)
    # The fingerprint stays that of the whole table: values that are changed later are still found.
    found.uns[keys.UNS] = json.dumps(provenance | {"trusted": left_out}, sort_keys=True)
    return found

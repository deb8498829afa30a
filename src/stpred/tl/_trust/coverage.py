from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from stpred._core import keys
from stpred.comparison.pairing import pair
from stpred.inference.intervals import interval_coverage

if TYPE_CHECKING:
    from spatialdata import SpatialData


def coverage(
    sdata: SpatialData, predicted_key: str, measured_key: str, *, coordinate_system: str = keys.UM
) -> pd.DataFrame:
    """Compute the coverage of the measurement by a prediction's intervals, by gene and level.

    Parameters
    ----------
    sdata
        Object with both tables, of a slide that neither trained the model nor calibrated its intervals.
    predicted_key
        Table of a model with calibrated intervals (:func:`stpred.tl.conformal`).
    measured_key
        Table of raw counts; locations are joined by id, or by overlap where the regions differ.
    coordinate_system
        The slide's micrometre frame.

    Returns
    -------
    Tidy DataFrame: ``gene``, ``level`` (nominal), ``coverage`` (share of the locations), ``n_locations``. A slide's
    coverage is one draw: over slides it varies far more than its number of locations suggests. ``attrs["library"]``
    says how the genes that library sizes are counted over compare with those of training; where they differ, so that
    intervals are of another scale, a warning says so and there is a column ``same_library``, False.

    Raises
    ------
    InputError
        If the prediction has no intervals, or the two share no location or gene.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(4, size_um=(500, 500), n_genes=20)
    >>> unseen = slides.pop("donor3")
    >>> model = st.tl.train(slides, genes=["EPCAM", "COL1A2"], shapes_key="spots")
    >>> st.tl.predict(unseen, model, shapes_key="spots")
    >>> st.tl.coverage(unseen, "spots_ridge", "spots_counts")["level"].unique().tolist()
    [0.5, 0.8, 0.9, 0.95]
    """
    both = pair(sdata, predicted_key, measured_key, coordinate_system=coordinate_system)
    return interval_coverage(both, sdata.tables[predicted_key], predicted_key)

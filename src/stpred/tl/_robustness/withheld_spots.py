from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stpred.tl._robustness.stress import COLUMNS, Job, score_withheld, withhold

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData

    from stpred.models import BaseConfig, Model


def withheld_spots(
    slides: SpatialData | Mapping[str, SpatialData],
    model: str | BaseConfig | type[Model] = "xfuse",
    *,
    share: float = 0.2,
    n_genes: int = 100,
    seed: int = 0,
    shapes_key: str | None = None,
    table_key: str | None = None,
    intervals: Sequence[float] = (0.5, 0.9),
    n_samples: int = 100,
    **training: Any,
) -> pd.DataFrame:
    """Leave some spots of every slide out of training, and score the model at them.

    This is the question of imputing: what lies between spots of a slide that was otherwise measured. It is easier than
    that of tissue which was never measured, since a spot's neighbours share its image and its RNA: for the latter see
    :func:`stpred.tl.withheld_sections` and :func:`stpred.tl.cross_validate`.

    Parameters
    ----------
    slides
        One SpatialData object, or a mapping of slide names to them, with raw counts. They are left as they are. For
        families that learn from images alone, slides without counts may be among them. Where slides measured materially
        different genes, those that they share are taken, as in :func:`stpred.tl.cross_validate`.
    model
        Family name, class or ``Config`` of the model that is trained.
    share
        Share of the spots that is withheld. Which ones depends on `seed` and the slide's name, and not on their counts.
    n_genes
        Genes that are scored: those of highest mean count in the training spots, among the model's.
    seed
        Of what is withheld, and of training.
    shapes_key, table_key
        As in :func:`stpred.tl.train`.
    intervals
        Of generative models: levels of the central posterior-predictive intervals whose coverage is told; see
        :func:`stpred.tl.calibration`.
    n_samples
        Of generative models: draws from the posterior.
    **training
        Whatever else :func:`stpred.tl.train` takes, such as ``genes``, ``encoder``, ``tile``, ``groups``, ``device`` or
        ``checkpoint``.

    Returns
    -------
    Tidy DataFrame, one row per slide, gene and metric: ``check``, ``model``, ``slide``, ``gene``, ``metric``
    (``pearson``, ``spearman``, ``r2``; of generative models also ``coverage_50``, ``coverage_90``), ``value`` (missing
    where a gene does not vary, or ``r2`` where predictions are relative) and ``target``, the scale scored on: raw
    ``"counts"`` for models that predict these, else ``"log1p_cp10k"``. Scores of raw counts hold what the amount of RNA
    in a spot tells.

    Raises
    ------
    InputError
        If a share is not between 0 and 1, a slide has too few spots, or training refuses what it is given.

    References
    ----------
    Bergenstråhle et al., Super-resolved spatial transcriptomics by deep data fusion, Nature Biotechnology 40 (2022).

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(2, size_um=(600, 600), n_genes=20)
    >>> scores = st.tl.withheld_spots(slides, "ridge", n_genes=5, shapes_key="spots")
    >>> scores.groupby("metric").size().to_dict()
    {'pearson': 10, 'r2': 10, 'spearman': 10}
    """
    job = Job.of(
        model, training, seed=seed, shapes_key=shapes_key, table_key=table_key,
        n_genes=n_genes, intervals=intervals, n_samples=n_samples,
    )  # fmt: skip
    return score_withheld(*withhold(slides, share, job), job).assign(check="withheld_spots")[COLUMNS]

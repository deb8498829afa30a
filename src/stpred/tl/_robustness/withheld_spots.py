from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stpred._core import keys
from stpred._core.places import Place
from stpred.tl._robustness.engine import COLUMNS, Trial, score_withheld

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData

    from stpred.models import BaseConfig, Model


def withheld_spots(
    slides: SpatialData | Mapping[str, SpatialData],
    model: str | BaseConfig | type[Model] = "xfuse",
    *,
    fraction: float = 0.2,
    n_genes: int = 100,
    levels: Sequence[float] = (0.5, 0.9),
    n_samples: int = 100,
    context: bool = False,
    shapes_key: str | None = None,
    table_key: str | None = None,
    image_key: str | None = None,
    seed: int = 0,
    device: str | None = None,
    train_options: Mapping[str, Any] | None = None,
    coordinate_system: str = keys.UM,
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
    fraction
        Fraction of the spots that is withheld. Which ones depends on `seed` and the slide's name, not on their counts.
    n_genes
        Genes that are scored: those of highest mean count in the training spots, among the model's.
    levels
        Of generative models: levels of the central posterior-predictive intervals whose coverage is computed; see
        :func:`stpred.tl.calibration`.
    n_samples
        Of generative models: draws from the posterior.
    context
        Also give what the scores are read against, at the same spots: models ``library_size`` and ``ceiling`` as of
        :func:`stpred.tl.cross_validate`. :func:`stpred.report` shows scores on raw counts only beside these.
    shapes_key, table_key, image_key, device, coordinate_system
        As in :func:`stpred.tl.train`.
    seed
        Of what is withheld, of training and of posterior draws.
    train_options
        Further arguments of :func:`stpred.tl.train` by name, such as ``genes``, ``encoder``, ``tile`` or ``groups``.

    Returns
    -------
    Tidy DataFrame with the columns of :func:`stpred.tl.cross_validate`, so that :func:`stpred.tl.summarise`,
    :func:`stpred.tl.rank_models`, plots and :func:`stpred.report` take it, one row per slide, gene and metric:
    ``check``, ``model``, ``fold``, ``slide``, ``gene``, ``metric``
    (``pearson``, ``spearman``, ``r2``; of generative models also ``coverage_50``, ``coverage_90``), ``value`` (missing
    where a gene does not vary, or ``r2`` where predictions are relative) and ``target``, the scale scored on: raw
    ``"counts"`` for models that predict these, else ``"log1p_cp10k"``; ``trained_on``,
    ``donor_shared`` (True), ``split`` (``"spots"``), ``chosen`` and ``donor`` (by ``groups`` of `train_options`, else
    the slide). Scores of raw counts hold what the amount of RNA in a spot tells.

    Raises
    ------
    InputError
        If a fraction is not between 0 and 1, a slide has too few spots, or training refuses an option.

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
    place = Place(shapes_key, image_key, table_key, coordinate_system=coordinate_system)
    trial = Trial(model, place, seed, device, train_options, n_genes, levels, n_samples)
    found = score_withheld(trial, slides, fraction, {0: None}, column="change", context=context)
    return found.assign(check="withheld_spots")[COLUMNS]

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from stpred import data
from stpred._core import keys
from stpred._core.checks import InputError, distinct, fraction_of, listing
from stpred._core.elements import need_sdata
from stpred._core.places import Place
from stpred._core.specs import Posterior
from stpred.inference.predictor import Predictor, load_trained, need_generative
from stpred.tl._robustness.posterior import interval_coverage, read_posterior

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stpred.models import Model


def calibration(
    sdata: SpatialData,
    model: Model | str | Path,
    *,
    shapes_key: str | None = None,
    table_key: str | None = None,
    image_key: str | None = None,
    genes: Iterable[str] | None = None,
    levels: Sequence[float] = (0.5, 0.8, 0.9, 0.95),
    posterior: Posterior | None = None,
    device: str | None = None,
    coordinate_system: str = keys.UM,
) -> pd.DataFrame:
    """Compute the coverage of measured counts by the intervals of a generative model.

    For every measured location the model gives draws of the counts that would be measured there, with the noise of the
    measurement and what the model does not know. Of a calibrated model, the central interval at a level of 90 % holds
    90 % of the measured counts; of an overconfident one, fewer.

    Counts are discrete, so that an interval of counts holds more than its level: of a gene that is mostly 0, nearly
    all, whatever the model. Therefore the measured count's place is randomised among equal ones: with draws X of a
    location and a measured x, ``u = P(X < x) + v P(X = x)`` with v uniform between 0 and 1, x itself counted as one of
    the draws; and the interval at level q holds x if u is between ``(1 - q) / 2`` and ``(1 + q) / 2``. Then u is
    uniform, and coverage the level, for a model that is right, at low counts and with few draws, too.

    Parameters
    ----------
    sdata
        Slide with raw counts, which should not have been trained on: in training locations coverage says how well the
        model fits. It is left as it is. For withheld spots and sections see :func:`stpred.tl.withheld_spots` and
        :func:`stpred.tl.withheld_sections`.
    model
        A trained generative model (``"xfuse"``), or the folder it was saved in.
    shapes_key, table_key, image_key, coordinate_system
        Region, its raw counts and the H&E image; None finds them.
    genes
        Genes; None takes all of the model's. Those that the slide did not measure are skipped.
    levels
        Levels of the intervals.
    posterior
        How the posterior is read; None takes ``Posterior(n_samples=100)``.
    device
        As in :func:`stpred.tl.predict`.

    Returns
    -------
    Tidy DataFrame, one row per gene and level: ``gene``, ``level``, ``coverage`` (share of the locations) and
    ``n_locations``. By chance alone, a gene's coverage is off by about ``sqrt(level * (1 - level) / n_locations)``.

    Raises
    ------
    InputError
        If the model is not generative, a level is not between 0 and 1, or the slide measured none of the genes.

    References
    ----------
    Czado, Gneiting and Held, Predictive model assessment for count data, Biometrics 65 (2009).

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(size_um=(800, 800), n_genes=20)
    >>> config = st.models.XFuse.Config(depth=2, width=4, epochs=2)
    >>> model = st.tl.train(slide, config, shapes_key="spots", tile=st.TileSpec(mpp=16, size_px=32))
    >>> found = st.tl.calibration(slide, model, posterior=st.Posterior(20))
    >>> found.groupby("level").coverage.mean().is_monotonic_increasing
    True
    """
    levels = sorted(fraction_of(level, name="levels") for level in distinct(levels, name="levels"))
    posterior = Posterior(n_samples=100) if posterior is None else posterior
    if isinstance(posterior, Posterior) and posterior.output_scale == "relative":
        raise InputError("Draws are compared with counts; leave normalize_scale and normalize_size out of `posterior`.")
    trained = load_trained(model)
    need_generative(trained)
    need_sdata(sdata)
    region = data.read_region(
        sdata,
        Place(shapes_key, image_key, table_key, coordinate_system=coordinate_system),
        measured=True,
        prefer=trained.record.region,
    )
    predictor = Predictor.of(trained, genes=genes, device=device, posterior=posterior)
    region, wanted = predictor.named(region), predictor.genes
    names = [g for g, there in zip(wanted, region.measures(wanted), strict=True) if there]
    if not names:
        raise InputError(f"The slide measured none of the genes {listing(wanted)}.")
    _, ranks = read_posterior(trained, region, names, posterior=posterior, device=device)
    parts = [
        pd.DataFrame(
            {"gene": names, "level": level, "coverage": interval_coverage(ranks, level), "n_locations": len(ranks)}
        )
        for level in levels
    ]
    return pd.concat(parts, ignore_index=True)

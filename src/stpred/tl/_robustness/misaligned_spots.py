from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stpred import data
from stpred._core.elements import affine_to
from stpred.tl._robustness.stress import (
    COLUMNS,
    Job,
    Withheld,
    at_least_zero,
    copied,
    generator_of,
    score_changes,
    several,
)

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stpred.models import BaseConfig, Model


def misaligned_spots(
    slides: SpatialData | Mapping[str, SpatialData],
    model: str | BaseConfig | type[Model] = "xfuse",
    *,
    radii: Sequence[float] = (0, 1, 2),
    share: float = 0.2,
    n_genes: int = 100,
    seed: int = 0,
    shapes_key: str | None = None,
    table_key: str | None = None,
    intervals: Sequence[float] = (0.5, 0.9),
    n_samples: int = 100,
    **training: Any,
) -> pd.DataFrame:
    """Train on spots that are misplaced on the image, and score the model at withheld spots in their true places.

    It says how much a poor alignment of spots and image costs. The model is trained once for every distance.

    Parameters
    ----------
    slides
        As in :func:`stpred.tl.withheld_spots`; they are left as they are.
    model
        Family name, class or ``Config`` of the model that is trained.
    radii
        Distances that the training spots are moved by, in radii of a spot (half of the median width, of shapes other
        than circles): all of a slide in one random direction, the same for every distance. Spots that come to lie off
        the image are not trained on, and slides where these are many are refused.
    share, n_genes, seed, shapes_key, table_key, intervals, n_samples, **training
        As in :func:`stpred.tl.withheld_spots`, to which a distance of 0 is the same; the same spots are withheld.

    Returns
    -------
    As of :func:`stpred.tl.withheld_spots`, with a column ``shift_radii``.

    Raises
    ------
    InputError
        As in :func:`stpred.tl.withheld_spots`, or if a distance is negative.

    References
    ----------
    Bergenstråhle et al., Super-resolved spatial transcriptomics by deep data fusion, Nature Biotechnology 40 (2022).

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(size_um=(600, 600), n_genes=20)
    >>> scores = st.tl.misaligned_spots(slide, "ridge", radii=(0, 1), n_genes=5, shapes_key="spots")
    >>> scores["shift_radii"].unique().tolist()
    [0.0, 1.0]
    """
    distances = [at_least_zero(r, name="radii") for r in several(radii, name="radii")]
    job = Job.of(
        model, training, seed=seed, shapes_key=shapes_key, table_key=table_key,
        n_genes=n_genes, intervals=intervals, n_samples=n_samples,
    )  # fmt: skip
    found = score_changes(slides, share, job, distances, lambda w, d: _moved(w, d, job), column="shift_radii")
    return found.assign(check="misaligned_spots")[[*COLUMNS, "shift_radii"]]


def _moved(withheld: Withheld, distance: float, job: Job) -> SpatialData:
    """Return what is trained on, with all spots moved by so many radii."""
    region = withheld.region
    angle = generator_of(job.seed, region.slide, 2).uniform(0, 2 * np.pi)
    away_um = distance * data.median_width_um(region) / 2 * np.array([np.cos(angle), np.sin(angle)])
    element = withheld.training.shapes[region.shapes_key]
    to_um = np.asarray(affine_to(element, region.coordinate_system))
    x, y = np.linalg.solve(to_um[:2, :2], away_um)
    moved = element.copy()
    moved.geometry = element.geometry.translate(xoff=x, yoff=y)
    return copied(withheld.training, shapes={region.shapes_key: moved}, tables=withheld.training.tables)

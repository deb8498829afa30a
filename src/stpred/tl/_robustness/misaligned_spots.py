from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from stpred._core import keys
from stpred._core.checks import InputError, distinct
from stpred._core.places import Place
from stpred.tl._robustness.engine import COLUMNS, Trial, score_withheld
from stpred.tl._robustness.transforms import misalign

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData

    from stpred.models import BaseConfig, Model


def misaligned_spots(
    slides: SpatialData | Mapping[str, SpatialData],
    model: str | BaseConfig | type[Model] = "xfuse",
    *,
    radii: Sequence[float] = (0, 1, 2),
    fraction: float = 0.2,
    n_genes: int = 100,
    levels: Sequence[float] = (0.5, 0.9),
    n_samples: int = 100,
    shapes_key: str | None = None,
    table_key: str | None = None,
    image_key: str | None = None,
    seed: int = 0,
    device: str | None = None,
    train_options: Mapping[str, Any] | None = None,
    coordinate_system: str = keys.UM,
) -> pd.DataFrame:
    """Train on spots that are misplaced on the image, and score the model at withheld spots in their true places.

    It shows the cost of a poor alignment of spots and image. The model is trained once for every distance.

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
    fraction, n_genes, levels, n_samples, seed, train_options
        As in :func:`stpred.tl.withheld_spots`, to which a distance of 0 is the same; the same spots are withheld.
    shapes_key, table_key, image_key, device, coordinate_system
        As in :func:`stpred.tl.train`.

    Returns
    -------
    As of :func:`stpred.tl.withheld_spots`, with a column ``shift_radii``;
    ``stpred.tl.paired_tests(scores, "shift_radii", reference=0)`` tests what a shift costs.

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
    distances = [_distance(r) for r in distinct(radii, name="radii")]
    place = Place(shapes_key, image_key, table_key, coordinate_system=coordinate_system)
    trial = Trial(model, place, seed, device, train_options, n_genes, levels, n_samples)
    transforms = {d: partial(misalign, radii=d, seed=seed) if d else None for d in distances}
    found = score_withheld(trial, slides, fraction, transforms, column="shift_radii")
    return found.assign(check="misaligned_spots")[[*COLUMNS, "shift_radii"]]


def _distance(value: Any) -> float:
    """Return a finite number that is not negative."""
    try:
        number = float("nan") if isinstance(value, (str, bytes, bool)) else float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not 0 <= number < float("inf"):
        raise InputError(f"`radii` must be a number of at least 0, got {value!r}.")
    return number

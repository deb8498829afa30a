from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import keys
from stpred._core.checks import InputError, listing, one_of, whole
from stpred._core.names import name_of
from stpred.tl._latent.space import Space

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData

AMONG = ("all", "same", "others")


def similar_tiles(
    slides: Mapping[str, SpatialData] | SpatialData,
    table_key: str,
    instance: Any,
    *,
    slide: str | None = None,
    n: int = 10,
    among: str = "all",
    metric: str = "euclidean",
    coordinate_system: str = keys.UM,
) -> pd.DataFrame:
    """Find the locations whose tiles a network sees as most alike to a given one, on all slides.

    Parameters
    ----------
    slides
        Slides by name, or one slide.
    table_key
        Table of every slide: of :func:`stpred.tl.latent`, or any other whose rows are points of one space.
    instance
        Id of the location (index of its shape).
    slide
        Its slide; None: the only one that has such a location.
    n
        Locations to return.
    among
        ``"all"`` slides, the ``"same"`` slide, or only the ``"others"``: neighbours on a slide are alike by their place
        and stain.
    metric
        ``"euclidean"`` or ``"cosine"`` (1 - cosine).
    coordinate_system
        The slides' micrometre frame; of a table that annotates regions of several slides, the rows of the one there.

    Returns
    -------
    DataFrame, nearest first: ``rank`` (0 is the location itself), ``distance``, ``slide``, ``image``, ``region``,
    ``instance``, ``x_um``, ``y_um``. :func:`stpred.pl.tiles` draws them. Locations of the same distance come by the
    names of slide and location.

    Raises
    ------
    InputError
        If there is no such location, or several slides have one and `slide` is not given.

    References
    ----------
    He et al. (2020), Integrating spatial gene expression and breast tumour morphology via deep learning, Nature
    Biomedical Engineering 4:827: the tile of another patient that is nearest in the latent space.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(2, size_um=(500, 500), n_genes=20)
    >>> for one in slides.values():
    ...     st.pp.features(one, shapes_key="spots")
    >>> first = slides["donor0"].shapes["spots"].index[0]
    >>> found = st.tl.similar_tiles(slides, "spots_feat_morphology", first, slide="donor0", n=2, among="others")
    >>> found["slide"].tolist()
    ['donor0', 'donor1', 'donor1']
    """
    import pandas as pd

    n, among = whole(n, name="n"), one_of(among, AMONG, name="among")
    space = Space.of(slides, table_key, metric=metric, coordinate_system=coordinate_system)
    row = _row(space, table_key, instance, slide)
    own = space.places["slide"].to_numpy() == space.places["slide"].iloc[row]
    allowed = {"all": np.ones(len(own), bool), "same": own, "others": ~own}[among].copy()
    allowed[row] = False
    rows = np.flatnonzero(allowed)
    if len(rows) == 0:
        raise InputError(f"There is no location to compare with among={among!r} in table {table_key!r}.")
    places = space.places.iloc[rows]
    distance = space.distances(space.values[row], rows)
    order = np.lexsort([places["instance"].astype(str), places["slide"].astype(str), distance])[:n]
    chosen = np.concatenate([[row], rows[order]])
    found = space.places.iloc[chosen].reset_index(drop=True)
    found.insert(0, "rank", np.arange(len(chosen)))
    found.insert(1, "distance", np.concatenate([[0.0], distance[order]]))
    assert isinstance(found, pd.DataFrame)
    return found


def _row(space: Space, table_key: str, instance: Any, slide: str | None) -> int:
    """Return the row of a location."""
    places = space.places
    hit = (places["instance"] == instance).to_numpy(dtype=bool, copy=True)
    if not hit.any():
        hit = (places["instance"].astype(str) == str(instance)).to_numpy(copy=True)
    if slide is not None:
        name = name_of(slide, what="slide")
        if name not in space.tables:
            raise InputError(f"No slide named {name!r} (`slide`); there are {listing(space.tables)}.")
        hit &= places["slide"].to_numpy() == name
    rows = np.flatnonzero(hit)
    if len(rows) == 0:
        some = places["instance"] if slide is None else places.loc[places["slide"] == str(slide), "instance"]
        raise InputError(
            f"Table {table_key!r}{'' if slide is None else f' of {slide!r}'} has no location {instance!r}; its ids "
            f"are {listing(some, most=3)}."
        )
    if len(rows) > 1:
        raise InputError(
            f"Location {instance!r} is on the slides {listing(places['slide'].iloc[rows])}; name one with `slide`."
        )
    return int(rows[0])

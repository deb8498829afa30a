from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import keys, targets
from stpred._core.checks import InputError, fraction_of, key_in, listing, one_of, warn, whole
from stpred._core.elements import need_sdata, table_in_frame, table_regions
from stpred.comparison.cell_types import CELL_TYPE, rows_of, updated_column, write_provenance
from stpred.tl._downstream.markers import chosen_genes
from stpred.tl._reference.check_reference import summary
from stpred.tl._reference.count_types import CountClasses, posterior
from stpred.tl._reference.reading import (
    Locations,
    Reference,
    match_genes,
    profiles,
    pseudo_cells,
    read_locations,
    read_reference,
)
from stpred.tl._reference.separation import MIN_ACCURACY, means_of, separate
from stpred.tl._reference.value_types import explained_by_classes, fit_typical, reliability, unknown_if_absent

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

logger = logging.getLogger("stpred")

UNKNOWN = "unknown"
CENTERS = ("table", "reference")
_MAX_ROWS = 5000
"""Locations that the classes of predictions are fitted on at most; all are assigned."""


@dataclass(frozen=True)
class _Assigned:
    """Classes (n,), their probabilities and margins (n,), distances (n,) relative to the limit, and what is stated."""

    best: NDArray[np.int64]
    score: NDArray[np.float64]
    margin: NDArray[np.float64]
    distance: NDArray[np.float64]
    stated: dict[str, Any]
    related: bool = True


def annotate_cells(
    sdata: SpatialData,
    table_key: str,
    reference: AnnData,
    *,
    groupby: str,
    layer: str | None = None,
    trusted_only: bool = True,
    n_genes: int = 500,
    center: str | None = None,
    level: float = 0.01,
    min_score: float = 0.5,
    min_in_group: int = 10,
    key_added: str = CELL_TYPE,
    coordinate_system: str | None = keys.UM,
    seed: int = 0,
    inplace: bool = True,
) -> AnnData | None:
    """Name the cells of a table after the classes of a single-cell reference, or ``"unknown"``.

    Both sides are taken over their shared genes alone. Raw counts are assigned by the negative-binomial likelihood of
    each class's shares of the counts. Predictions are compared as log1p CP10k over the shared genes; they are drawn
    towards the mean, each gene by its own amount, and their errors are shared by many genes, so the classes' profiles
    are centred on the table and scaled gene by gene, and the errors are whitened (see Notes).

    Parameters
    ----------
    sdata
        Object with the table.
    table_key
        Predicted or measured table of cells. On locations of several cells the name is that of the nearest class, not
        of a mixture.
    reference
        Raw counts of single cells.
    groupby
        Column of the reference's ``obs`` with the classes.
    layer
        Layer of the reference with the raw counts; None takes ``X``.
    trusted_only
        Use only genes that ``var["trusted"]`` vouches for, where the table has such a column.
    n_genes
        Genes of which the classes explain the most variance in the reference are taken, where more are shared.
    center
        ``"table"``: what the table's genes have on average is what the reference's classes have in the composition that
        is found, which takes out differences between platforms and slides; types must then vary within the table.
        ``"reference"``: values mean what they mean in the reference, as on one platform. None: ``"table"`` for
        predictions, ``"reference"`` for counts.
    level
        Share of cells of the reference's own classes that may be called unknown by their distance.
    min_score
        Cells whose best class has a lower probability are unknown, too.
    min_in_group
        Classes of the reference with fewer cells are left out (the log says which).
    key_added
        Column of ``obs`` for the class.
    coordinate_system
        Of a table that annotates regions of several slides: the frame of the slide whose rows are annotated; the
        columns of other rows stay as they are, or missing. None annotates all rows together.
    seed
        Of draws and thinning.
    inplace
        With False a copy of the table with the columns is returned and the object is left alone.

    Returns
    -------
    None, or with ``inplace=False`` the AnnData. Writes into ``obs``

    - ``key_added``: categorical, the class or ``"unknown"``;
    - ``{key_added}_score``: float64, probability of the best class. The fit of predictions is too sure of itself, since
      errors that look like another class are not told from it; so where ``var["cv_pearson"]`` is there, probabilities
      are drawn towards the classes' shares by the ``reliability`` that follows from it (see Notes);
    - ``{key_added}_margin``: float64, what it is ahead of the second;
    - ``{key_added}_distance``: float64, mean squared residual from the best class, relative to the limit: above 1 the
      cell is unknown.

    and into ``uns["stpred"]`` under ``"cell_types"`` (``uns["stpred_cell_types"]`` of tables that stpred did not write)
    the genes, the scale and, for each class, ``recall`` (the share of the reference's own held-out cells that is found,
    at the depth of the table), ``unknown`` (of these cells, or of the locations of a prediction, the share beyond the
    limit) and ``unknown_if_absent``: the share of its cells that would be unknown if the reference lacked the class.

    Raises
    ------
    InputError
        If the reference holds no raw counts, has no such column or fewer than two classes; if the two share fewer than
        two (trusted) genes; or if the table is on a scale on which a reference has no values (``relative``,
        ``log_share``).

    Notes
    -----
    The limit of distances of counts is that of held-out cells of the reference, thinned to the depths of the table, for
    each class. The errors of predictions are not in the reference: their limit is what the covariance of the table's
    own residuals gives, scaled to the table's median; classes and covariance are fitted on the three quarters of the
    locations that are nearest, so that a type that the reference lacks does not pass for error. Errors with heavier
    tails than the normal distribution's make more locations unknown than `level` says. ``unknown_if_absent`` is found
    by leaving out one class after the other. Where the classes explain no more of a prediction than classes whose genes
    are exchanged (19 times; the mean and three standard deviations of these), every location is unknown; a table of a
    single type, centred on itself, may come to that.

    ``reliability``, stated of predictions with held-out scores, is a cautious estimate of Cohen's kappa of the types:
    what the found classes say of each gene's truth (their correlation with its prediction, times that of the prediction
    with the truth on held-out slides), relative to what the reference's classes say of its cells. Predictions that were
    scored at the table's kind of locations are meant; those of spots say little of cells within them.

    References
    ----------
    Danaher et al. 2022 (Insitutype): assignment by negative-binomial likelihood of reference profiles. Cable et al.
    2022 (RCTD): effects of platforms on each gene.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(2, size_um=(400, 400), n_genes=40)
    >>> reference = slides["donor0"].tables["cells_counts"]  # cells of another donor, with their types
    >>> st.tl.annotate_cells(slides["donor1"], "cells_counts", reference, groupby="type")
    >>> obs = slides["donor1"].tables["cells_counts"].obs
    >>> bool((obs["cell_type"].astype(str) == obs["type"].astype(str)).mean() > 0.9)
    True
    """
    need_sdata(sdata)
    key_in(table_key, sdata.tables, what="table", name="table_key")
    if center is not None:
        one_of(center, CENTERS, name="center")
    level = fraction_of(level, name="level")
    min_score = fraction_of(min_score, name="min_score", zero=True)
    min_in_group = whole(min_in_group, name="min_in_group")
    whole_table, what = sdata.tables[table_key], f"table {table_key!r}"
    table = table_in_frame(sdata, table_key, coordinate_system=coordinate_system)
    picked = chosen_genes(table, what=what, trusted_only=trusted_only)
    ids = table.var["gene_id"].astype(str).to_numpy()[picked] if "gene_id" in table.var else None
    ours, columns = match_genes(reference, table.var_names[picked], ids=ids, what=what)
    genes = [str(g) for g in table.var_names[picked[ours]]]
    cells = read_reference(reference, columns, genes=genes, groupby=groupby, layer=layer, min_in_group=min_in_group)
    locations = read_locations(table, picked[ours], what=what)
    if center is None:
        center = "reference" if locations.measured else "table"
    rng = np.random.default_rng(seed)
    columns = cells.informative(whole(n_genes, name="n_genes"), rng)
    cells, locations = cells.of_genes(columns), locations.of_genes(columns)
    assign = _assign_counts if locations.measured else _assign_values
    found = assign(cells, locations, centred=center == "table", level=level, rng=rng)
    labels = _labels(found, cells.names, min_score=min_score)
    _warn(found, labels, what=what, center=center)
    result = whole_table if inplace else whole_table.copy()
    _write(result, table, labels, found, cells.names, key_added=key_added)
    provenance = {
        "key_added": key_added,
        "method": "reference",
        "groupby": groupby,
        "genes": cells.genes,
        "regions": table_regions(table),
        "trusted_only": bool(trusted_only),
        "center": center,
        "depth": locations.depth,
        "level": level,
        "min_score": min_score,
        "seed": seed,
        "n_unknown": int((labels == UNKNOWN).sum()),
        "related": found.related,
    }
    write_provenance(result, provenance | found.stated)
    return None if inplace else result


def _assign_counts(
    cells: Reference, locations: Locations, *, centred: bool, level: float, rng: np.random.Generator
) -> _Assigned:
    """Assign raw counts."""
    counts = locations.values
    totals = targets.totals(counts)
    filled = totals > 0
    if not filled.any():
        raise InputError(f"No location has counts of the {len(cells.genes)} shared genes.")
    found = separate(cells, depths=totals, level=level, rng=rng)
    classes = CountClasses.of(cells)
    if centred:
        classes = classes.centred_on(counts[filled])
    classes = classes.with_prior_of(classes.log_likelihood(counts[filled]))
    chance = posterior(classes, counts)
    best = chance.argmax(axis=1)
    distance = classes.distance(counts, best) / found.limit[best]
    distance[~filled] = np.nan
    chance[~filled] = np.nan
    return _Assigned(
        best,
        *_scores(chance, best),
        distance,
        {
            "told_apart": found.related,
            "summary": summary(found, len(cells.genes), MIN_ACCURACY),
            "indistinct": found.indistinct(MIN_ACCURACY),
            "recall": _by_name(cells, found.recall),
            "unknown": _by_name(cells, found.unknown),
            "unknown_if_absent": _by_name(cells, found.unknown_if_absent),
        },
        related=found.related,
    )


def _assign_values(
    cells: Reference, locations: Locations, *, centred: bool, level: float, rng: np.random.Generator
) -> _Assigned:
    """Assign predictions."""
    values = locations.log_values()
    depths = None if locations.depth is None else np.array([max(locations.depth, 1.0)])
    apart = separate(cells, depths=depths, level=level, rng=rng)
    sums, codes = pseudo_cells(cells, locations.depth, rng=rng)
    typical = profiles(sums, codes, len(cells.names))
    some = values if len(values) <= _MAX_ROWS else values[rng.choice(len(values), _MAX_ROWS, replace=False)]
    classes = fit_typical(some, typical, centred=centred)
    chance = classes.posterior(values)
    best = chance.argmax(axis=1)
    distance = classes.distance(values, best)
    limit = classes.limit(distance, level=level, rng=rng)
    explained, exchanged = explained_by_classes(some, typical, centred=centred, rng=rng)
    absent = unknown_if_absent(
        some, classes.posterior(some).argmax(axis=1), typical, centred=centred, level=level, rng=rng
    )
    agreement = None
    if locations.pearson is not None:
        agreement = reliability(classes, values, best, cells=(sums, codes), pearson=locations.pearson)
    score, margin = _scores(chance, best)
    if agreement is not None:
        # Where classes are found by chance, a location is of its class as often as any is.
        score, margin = agreement * score + (1 - agreement) * classes.prior[best], agreement * margin
    return _Assigned(
        best,
        score,
        margin,
        distance / limit,
        {
            "told_apart": apart.related,
            "summary": summary(apart, len(cells.genes), MIN_ACCURACY),
            "indistinct": apart.indistinct(MIN_ACCURACY),
            "recall": _by_name(cells, apart.recall),
            "unknown": _by_name(cells, means_of(distance > limit, best, len(cells.names))),
            "unknown_if_absent": _by_name(cells, absent),
            "explained": explained,
            "explained_by_chance": exchanged,
            "slope": float(np.median(classes.slope)),
            "reliability": agreement,
        },
        related=explained > exchanged and apart.related,
    )


def _scores(chance: NDArray[np.float64], best: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (n,) probabilities of the best class, and what it is ahead of the second."""
    first = chance[np.arange(len(best)), best]
    return first, first - np.sort(chance, axis=1)[:, -2]


def _by_name(cells: Reference, values: NDArray[np.float64]) -> dict[str, float | None]:
    return {name: None if np.isnan(v) else round(float(v), 4) for name, v in zip(cells.names, values, strict=True)}


def _labels(found: _Assigned, names: list[str], *, min_score: float) -> NDArray[Any]:
    """Return (n,) classes, or ``"unknown"``."""
    if not found.related:
        return np.full(len(found.best), UNKNOWN, dtype=object)
    known = (found.distance <= 1) & (found.score >= min_score)
    return np.where(known, np.array(names, dtype=object)[found.best], UNKNOWN)


def _warn(found: _Assigned, labels: NDArray[Any], *, what: str, center: str) -> None:
    """Warn of what makes the labels worth little."""
    if not found.related:
        why = "tells none of its classes apart with these genes"
        if found.stated["told_apart"]:
            why = (
                f"explains no more of the values ({found.stated['explained']:.0%} of their variance) than one of other "
                f"genes could ({found.stated['explained_by_chance']:.0%})"
            )
        warn(f"The reference {why}, so every location of {what} is {UNKNOWN!r}.")
        return
    if found.stated["indistinct"]:
        warn(found.stated["summary"])
    share = float((labels == UNKNOWN).mean())
    if share > 0.5:
        help_ = "the reference may lack its types"
        if center == "reference":
            help_ += ", or come from another platform (center='table' takes that out)"
        agreement = found.stated.get("reliability")
        if agreement is not None and agreement < 0.5:
            help_ = (
                "by the held-out scores of their genes, the types found agree with the truth little beyond chance "
                f"({agreement:.2f} of 1), so that few have the probability `min_score`"
            )
        warn(f"{share:.0%} of the locations of {what} are {UNKNOWN!r}: {help_}.")
    missed = [n for n, s in found.stated["unknown_if_absent"].items() if s is not None and s < 0.5]
    if missed:
        logger.warning(
            "Types that the reference lacks may be named after others in %s: without its own class, under half of %s "
            "would be %r.",
            *(what, listing(missed), UNKNOWN),
        )


def _write(
    result: AnnData, table: AnnData, labels: NDArray[Any], found: _Assigned, names: list[str], *, key_added: str
) -> None:
    """Write the columns of obs; rows of other regions keep theirs."""
    import pandas as pd

    rows = np.arange(result.n_obs) if table.n_obs == result.n_obs else rows_of(result, table)
    columns = {"score": found.score, "margin": found.margin, "distance": found.distance}
    for name, values in columns.items():
        column = f"{key_added}_{name}"
        result.obs[column] = updated_column(result, column, rows, values.astype(np.float64))
    written = updated_column(result, key_added, rows, labels)
    present = set(written[pd.notna(written)])
    known = [*names, *sorted(present - {*names, UNKNOWN}), UNKNOWN]
    result.obs[key_added] = pd.Categorical(written, categories=[c for c in known if c in present])

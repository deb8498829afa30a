from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from stpred._core import keys, tables, targets
from stpred._core.checks import InputError, listing, one_of
from stpred._core.expression.bulk import (
    AVERAGES,
    KIND,
    TOTAL,
    WITHIN_SLIDES,
    bulk_profile,
    how_averaged,
    removes_slide_differences,
)
from stpred._core.names import names_of
from stpred.comparison.slide_tables import SlideTable, slide_tables

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData


def pseudobulk(
    slides: Mapping[str, SpatialData] | SpatialData,
    table_key: str,
    *,
    in_distribution_only: bool = True,
    layer: str | None = None,
    average: str = "amounts",
    obs: pd.DataFrame | None = None,
    coordinate_system: str = keys.UM,
) -> AnnData:
    """Average a table over each slide: one row per slide, as if its tissue had been sequenced in bulk.

    RNA of a whole section adds up as molecules, not as their logarithms. So log1p CP10k is averaged as
    ``log1p(mean(expm1(x)))``: the mean of logarithms would give too little to a gene that is high in a tenth of the
    tissue, and favour genes that are even. Every location counts the same there, whatever its amount of RNA. Counts are
    summed. Relative predictions have no unit that could be added up; they are averaged as they are, and only
    differences between slides within a gene mean something.

    Parameters
    ----------
    slides
        Slides by name, or one slide.
    table_key
        Table of every slide: predictions or raw counts.
    in_distribution_only
        Leave out locations that the table marks as out of distribution.
    layer
        Layer to average instead of ``X``, on the same scale.
    average
        Of values on a logarithmic scale: ``"amounts"`` averages what they are logarithms of, as a bulk measurement
        does; ``"values"`` averages them as they are (DeepSpot's publication).
    obs
        Facts of the slides to join (survival, labels, donors), indexed by slide; it may hold more slides.
    coordinate_system
        The slides' micrometre frame; of a table that annotates regions of several slides, the rows of the one there.

    Returns
    -------
    AnnData of slides x genes that all slides have. ``X`` is float32 log1p CP10k (or relative), or float64 sums of
    counts, with ``layers["mean"]`` per location. ``obs``: ``n_locations`` that were averaged, ``n_left_out`` and
    ``share_left_out`` as out of distribution, for counts ``total_counts`` of all genes, also of those that other slides
    lack, and what was joined. ``var["trusted"]``: whether every slide's table trusts the gene, where they say.
    ``uns["stpred"]``: JSON with the scale (``"output_scale"``) and how the values came about.

    Raises
    ------
    InputError
        If all locations of a slide are out of distribution, the tables share no gene or scale, or `obs` lacks a slide.

    Notes
    -----
    Models that standardise features within each slide (``standardize="slide"``, the default of ``"ridge"`` and of
    networks) say little of what whole slides differ in, such as how much of them is tumour. To compare slides, train
    with ``standardize="train"``, on slides of one stain or after :func:`stpred.pp.stain_normalize`.

    References
    ----------
    Nonchev et al. (2025), DeepSpot: Leveraging Spatial Context for Enhanced Spatial Transcriptomics Prediction from
    H&E Images, medRxiv 10.1101/2025.02.09.25321567. There pseudo-bulk is the mean of the predictions as they are.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(2, size_um=(400, 400), n_genes=20)
    >>> bulk = st.tl.pseudobulk(slides, "spots_counts")
    >>> bulk.shape, bulk.obs_names.tolist()
    ((2, 20), ['donor0', 'donor1'])
    """
    import pandas as pd
    from anndata import AnnData

    one_of(average, AVERAGES, name="average")
    sides, genes = slide_tables(slides, table_key, coordinate_system=coordinate_system)
    rows, sums, facts = [], [], []
    for side in sides.values():
        kept = side.in_distribution() if in_distribution_only else np.ones(side.table.n_obs, dtype=bool)
        if not kept.any():
            raise InputError(
                f"All {len(kept)} locations of table {table_key!r} of {side.slide!r} are out of distribution; leave "
                "the slide out or give in_distribution_only=False."
            )
        values = side.values(genes, layer=layer)[kept]
        rows.append(bulk_profile(values, scale=side.scale, average=average))
        sums.append(float(side.values(side.library_genes, layer=layer)[kept].sum()))
        left = int((~kept).sum())
        facts.append({"n_locations": int(kept.sum()), "n_left_out": left, "share_left_out": left / len(kept)})
    scale = next(iter(sides.values())).scale
    frame = pd.DataFrame(facts, index=pd.Index(list(sides), name="slide"))
    X = np.stack(rows)
    bulk = AnnData(X if scale == "counts" else X.astype(np.float32), obs=frame, var=_var(sides, genes))
    if scale == "counts":
        bulk.obs[TOTAL] = sums
        bulk.layers["mean"] = X / frame[["n_locations"]].to_numpy()
    if obs is not None:
        bulk.obs = bulk.obs.join(_of_slides(obs, list(sides), list(bulk.obs)))
    provenance = {
        "kind": KIND,
        "table": table_key,
        "layer": layer,
        "output_scale": "log1p_cp10k" if scale == "cp10k" else scale,
        "comparable": "within genes only" if scale == "relative" else "within and between genes",
        "average": how_averaged(scale, average),
        "in_distribution_only": in_distribution_only,
        WITHIN_SLIDES: any(removes_slide_differences(side.provenance.get("config")) for side in sides.values()),
        "models": {name: side.provenance.get("model_id") for name, side in sides.items()},
        "genes_left_out": {name: side.table.n_vars - len(genes) for name, side in sides.items()},
        "versions": tables.package_versions(),
    }
    tables.write_provenance(bulk, provenance)
    return bulk


def log1p_cpm(bulk: AnnData) -> tuple[NDArray[np.float64], str]:
    """Return the (S, G) values of a pseudo-bulk for models and correlations, and their scale.

    Sums of counts become log1p counts per million of the slide, log1p CP10k the same; ``"relative"`` and log shares
    stay as they are.
    """
    facts = tables.read_prediction(bulk, what="pseudo-bulk")
    if facts.get("kind") != KIND:
        raise InputError(f"A pseudo-bulk from stpred.tl.pseudobulk is needed, got {facts.get('kind')!r}.")
    X = targets.dense(bulk.X)
    scale = str(facts["output_scale"])
    if scale in ("relative", targets.LOG_SHARE):
        return X, scale
    if scale == "counts":
        total = bulk.obs[TOTAL].to_numpy(dtype=np.float64)
        if (total <= 0).any():
            raise InputError(f"Slides without any count: {listing(bulk.obs_names[total <= 0])}; leave them out.")
        return np.log1p(X / total[:, None] * 1e6), "log1p_cpm"
    return np.log1p(np.expm1(X) * 1e6 / targets.CP10K), "log1p_cpm"


def _of_slides(obs: pd.DataFrame, slides: list[str], taken: list[str]) -> pd.DataFrame:
    """Return the rows of `obs` of the slides, in their order."""
    import pandas as pd

    if not isinstance(obs, pd.DataFrame):
        raise InputError(f"`obs` must be a DataFrame indexed by slide, got {type(obs).__name__}.")
    frame = obs.set_axis(pd.Index(names_of(obs.index, what="slide in the index of `obs`"), dtype=object))
    if missing := [s for s in slides if s not in frame.index]:
        raise InputError(f"`obs` lacks the slides {listing(missing)}; its index holds {listing(frame.index[:5])}.")
    if not frame.index.is_unique:
        raise InputError(f"`obs` names slides more than once: {listing(frame.index[frame.index.duplicated()])}.")
    if clash := [c for c in frame.columns if c in taken]:
        raise InputError(f"`obs` has columns that the pseudo-bulk writes itself: {listing(clash)}; rename them.")
    return frame.loc[slides]


def _var(sides: Mapping[str, SlideTable], genes: pd.Index) -> pd.DataFrame:
    import pandas as pd

    var = pd.DataFrame(index=genes)
    if all("trusted" in side.table.var for side in sides.values()):
        marks = [side.table.var.loc[genes, "trusted"].to_numpy(dtype=bool) for side in sides.values()]
        var["trusted"] = np.all(marks, axis=0)
    return var

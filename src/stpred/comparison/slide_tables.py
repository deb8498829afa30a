"""The table of the same name of every slide: shared genes, one scale, and which locations are to be believed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import keys, targets
from stpred._core.checks import InputError, key_in, listing, warn
from stpred._core.elements import (
    centroids,
    lost_provenance,
    need_sdata,
    table_in_frame,
    table_instances,
    table_regions,
)
from stpred._core.expression.counts import check_counts
from stpred._core.expression.gene_names import mismatch
from stpred._core.expression.library import (
    LIBRARY,
    MIN_TRAINING_SHARE,
    Library,
    describe_shares,
    gene_sums,
    overlap,
    shared_genes,
)
from stpred._core.geometry import placed
from stpred._core.names import named
from stpred._core.tables import read_prediction

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

ONE_SLIDE = "slide"
"""What the only slide is called where a SpatialData object is given and no mapping of several."""


@dataclass(frozen=True)
class SlideTable:
    """One slide's table.

    Attributes
    ----------
    slide, key
        Names of slide and table.
    table
        The table as it is, or the rows of it that are of the slide.
    scale
        What its values are: ``"log1p_cp10k"``, ``"counts"``, ``"cp10k"`` or ``"relative"``.
    provenance
        What stpred wrote of a prediction; empty for measured counts.
    library
        Genes that library sizes of measured counts are over; None: all of the table.
    """

    slide: str
    key: str
    table: AnnData
    scale: str
    provenance: dict[str, Any]
    library: pd.Index | None = None

    @property
    def library_genes(self) -> pd.Index:
        """Genes that library sizes are counted over."""
        return self.table.var_names if self.library is None else self.library

    def library_sizes(self) -> NDArray[np.float64]:
        """(n,) library sizes of measured counts."""
        return targets.totals(self.table.X if self.library is None else self.values(self.library))

    @property
    def description(self) -> str:
        """Description in messages."""
        return f"Table {self.key!r} of {self.slide!r}"

    @property
    def measured(self) -> bool:
        """Whether these are raw counts of a measurement."""
        return not self.provenance

    def in_distribution(self) -> NDArray[np.bool_]:
        """(n,) locations that look like what the model was trained on; all, where the table does not say."""
        if keys.IN_DISTRIBUTION not in self.table.obs:
            return np.ones(self.table.n_obs, dtype=bool)
        return self.table.obs[keys.IN_DISTRIBUTION].to_numpy(dtype=bool)

    def values(self, genes: pd.Index, *, layer: str | None = None) -> Any:
        """(n, g) values of some genes, as they are stored."""
        columns = self.table.var_names.get_indexer(genes)
        if layer is not None:
            key_in(layer, self.table.layers, what=f"layer of table {self.key!r}", name="layer")
            return self.table.layers[layer][:, columns]
        return self.table.X[:, columns]

    def normalised(self, genes: pd.Index) -> NDArray[np.float32]:
        """(n, g) dense values of which the amount of RNA is no part: counts as log1p CP10k, others as they are."""
        values = self.values(genes)
        if self.measured:
            return targets.transform(values, self.library_sizes(), target="log1p_cp10k")
        values = targets.dense(values, np.float32)
        if self.scale == "cp10k":
            return np.log1p(values.clip(min=0))
        if self.scale == "counts":  # predicted ones may fall a little below zero
            library = targets.totals(targets.dense(self.table.X, np.float32).clip(min=0))
            return targets.transform(values.clip(min=0), library, target="log1p_cp10k")
        return values

    def on_scale(self, genes: pd.Index, scale: str) -> NDArray[np.float32]:
        """(n, g) dense values on a scale, so that a measurement and a prediction mean the same.

        ``"log1p_cp10k"`` is free of the amount of RNA that a location caught (:meth:`normalised`), ``"counts"`` holds
        it. A relative prediction is on the scale that its model was trained on. Others are refused.
        """
        own = self.scale
        if own == "relative":
            trained = str((self.provenance.get("training") or {}).get("target", own))
            own = targets.scale_of(trained)
        if scale == "counts" and own == "counts":
            return targets.dense(self.values(genes), np.float32)
        if scale == "log1p_cp10k" and (own in (scale, "cp10k") or self.scale == "counts"):
            return self.normalised(genes)
        hint = f"; pass scale={own!r} for both sides" if own in targets.TARGETS else ""
        if own == targets.LOG_SHARE:
            hint = "; see stpred.tl.to_log1p_cp10k"
        what = "measured counts" if self.measured else f"predictions of a model of {own!r}"
        raise InputError(f"{self.description} holds {what}, which cannot be compared as {scale!r}{hint}.")

    def with_counts(self) -> NDArray[np.bool_]:
        """(n,) locations that were measured with at least one count; of a prediction all."""
        if not self.measured:
            return np.ones(self.table.n_obs, dtype=bool)
        return self.library_sizes() > 0


def named_slides(slides: Mapping[str, SpatialData] | SpatialData) -> dict[str, SpatialData]:
    """Return a mapping of slides as it is, and one SpatialData object as the only slide."""
    if not isinstance(slides, Mapping):
        try:
            need_sdata(slides)
        except InputError as error:
            raise InputError(
                f"`slides` must be a mapping of names to SpatialData objects or one such object, got "
                f"{type(slides).__name__}."
            ) from error
        return {ONE_SLIDE: slides}
    if not slides:
        raise InputError("`slides` is empty; give at least one slide.")
    for sdata in slides.values():
        need_sdata(sdata)
    return named(slides, what="slides")


def slide_table(
    sdata: SpatialData, table_key: str, *, slide: str = ONE_SLIDE, coordinate_system: str = keys.UM
) -> SlideTable:
    """Return a table of predictions, or one of raw counts, and what its values are.

    Of a table of several slides, the rows of the one in the frame.
    """
    key_in(table_key, sdata.tables, what=f"table of {slide!r}", name="table_key")
    table = table_in_frame(sdata, table_key, coordinate_system=coordinate_system)
    if not table.var_names.is_unique:
        repeated = table.var_names[table.var_names.duplicated()].unique()
        raise InputError(f"Gene names of table {table_key!r} of {slide!r} are not unique: {listing(repeated)}.")
    if keys.UNS not in table.uns:
        if lost := lost_provenance(table):
            raise InputError(
                f"Without provenance raw counts are needed; table {table_key!r} of {slide!r} cannot be read: {lost}."
            )
        check_counts(table.X, what=f"counts of table {table_key!r} of {slide!r}")
        return SlideTable(slide, table_key, table, "counts", {})
    provenance = read_prediction(table, what=f"table {table_key!r} of {slide!r}")
    if "output_scale" not in provenance:
        kind = provenance.get("kind")
        raise InputError(f"Table {table_key!r} of {slide!r} holds {kind}, neither expression nor counts.")
    scale = str(provenance["output_scale"])
    scale = "cp10k" if scale == "counts" and provenance.get("per") else scale
    return SlideTable(slide, table_key, table, scale, provenance)


def slide_tables(
    slides: Mapping[str, SpatialData] | SpatialData, table_key: str, *, coordinate_system: str = keys.UM
) -> tuple[dict[str, SlideTable], pd.Index]:
    """Return the named table of every slide, and the genes that all have, in the order of the first.

    A missing table, tables of different scales, or no shared gene are errors.
    """
    found = {
        name: slide_table(sdata, table_key, slide=name, coordinate_system=coordinate_system)
        for name, sdata in named_slides(slides).items()
    }
    first, *others = found.values()
    genes = first.table.var_names
    for other in others:
        if (other.scale, other.measured) != (first.scale, first.measured):
            raise InputError(
                f"Tables {table_key!r} are not on the same scale: that of {first.slide!r} holds {_what(first)}, that "
                f"of {other.slide!r} {_what(other)}."
            )
        shared = genes[genes.isin(other.table.var_names)]
        if len(shared) == 0:
            hint = mismatch(list(genes), list(other.table.var_names))
            raise InputError(
                f"{other.description} shares no gene with those before it: {listing(other.table.var_names[:3])} "
                f"against {listing(genes[:3])}{'; ' + hint if hint else ''}."
            )
        genes = shared
    return _on_one_library(found, table_key), genes


def _on_one_library(sides: dict[str, SlideTable], table_key: str) -> dict[str, SlideTable]:
    """Let library sizes of measured tables be over the genes that all share; warn where they, or models', differ."""
    first = next(iter(sides.values()))
    if not first.measured:
        _warn_of_models(sides, table_key)
        return sides
    if len({frozenset(side.table.var_names) for side in sides.values()}) < 2:
        return sides
    genes, share = shared_genes({s: (side.table.var_names, gene_sums(side.table.X)) for s, side in sides.items()})
    if min(share.values()) >= MIN_TRAINING_SHARE:
        return sides
    n = {s: side.table.n_vars for s, side in sides.items()}
    warn(
        f"Tables {table_key!r} of the slides measured different genes, so library sizes of all are counted over the "
        f"{len(genes)} that they share and their values are one scale ({describe_shares(share, n)})."
    )
    return {
        s: replace(side, library=first.table.var_names[first.table.var_names.isin(genes)]) for s, side in sides.items()
    }


def _warn_of_models(sides: dict[str, SlideTable], table_key: str) -> None:
    """Warn of predictions that are log1p CP10k over different genes."""
    libraries = {s: Library.parse(side.provenance.get(LIBRARY)) for s, side in sides.items()}
    own = {s: found for s, found in libraries.items() if found is not None and sides[s].scale != "relative"}
    if len({found.genes for found in own.values()}) < 2:
        return
    first, *others = own
    for other in others:
        found = overlap(own[first], own[other].genes, own[other].share)
        if not found.same:
            warn(
                f"Tables {table_key!r} of {first!r} and {other!r} are of models whose library sizes are counted over "
                f"different genes (the {found.n_shared} shared ones carry {found.share_model:.0%} and "
                f"{found.share_measured:.0%} of their counts), so their values are not on one scale; predict all "
                "slides with one model."
            )
            return


def _what(side: SlideTable) -> str:
    return "measured counts" if side.measured else f"predictions as {side.scale!r}"


def positions_um(sdata: SpatialData, table: AnnData, *, coordinate_system: str = keys.UM) -> NDArray[np.float64]:
    """Return the (n, 2) centroids of a table's rows in micrometres, from the shapes that it annotates."""
    regions = table_regions(table)
    if len(regions) != 1:
        raise InputError(f"The table annotates {listing(regions)}; one with a single region is needed.")
    placed(sdata, regions[0], coordinate_system=coordinate_system)
    xy, index = centroids(sdata, regions[0], coordinate_system=coordinate_system)
    rows, ids = table_instances(table, regions[0])
    positions = index.get_indexer(ids)
    if len(rows) != table.n_obs or (positions < 0).any():
        missing = table.n_obs - len(rows) + int((positions < 0).sum())
        raise InputError(f"{missing} of {table.n_obs} rows of the table have no shape in {regions[0]!r}.")
    return xy[positions]

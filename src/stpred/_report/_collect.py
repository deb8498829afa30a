"""What a report says, as plain numbers and words: of slides, of genes, and of what has to be warned of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stpred import data, metrics
from stpred import genes as gene_rules
from stpred._core import keys
from stpred._core.checks import InputError, key_in, listing
from stpred._core.elements import need_sdata, region_in_frame, table_instances, table_regions
from stpred._core.names import name_of, named
from stpred._core.tables import changed_values, read_provenance, scored_over
from stpred.comparison.pairing import pair
from stpred.inference.intervals import interval_coverage
from stpred.inference.provenance import provenance_in_frame

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stpred.comparison.terms import Pair

LIBRARY, NEIGHBOURS, MEAN, CEILING = keys.CONTEXT
RELIABILITY, RMAX = "reliability", "rmax"
CONTEXT = (LIBRARY, NEIGHBOURS, MEAN, CEILING, RELIABILITY, RMAX)
CORRELATIONS = ("pearson", "spearman", "pearson_smoothed", "pearson_given_library_size")
"""Metrics of which an undefined value means that nothing was predicted, so that it counts as 0 in a mean."""

METRICS = (
    *CORRELATIONS[:2], "pearson_given_library_size", "pearson_smoothed", "r2", "rmse", "mae", "auroc", "ssim"
)  # fmt: skip
LOG, COUNTS = "log1p_cp10k", "counts"
SCALES = {
    LOG: "log1p of counts per 10 000",
    COUNTS: "raw counts",
    "log_share": "log share of a gene in its location (holds the library size)",
    "relative": "relative: only differences between locations mean something",
}
NAMELESS = "this slide"
"""What a single slide without a name is called."""

LEVEL = 0.9
"""Of the intervals that are spoken of."""

TIDY = ("model", "slide", "gene", "metric", "value", "target")


@dataclass
class Slide:
    """One slide: its predicted table's rows of one region, and what was measured there.

    `name` is how the page calls it, `known_as` how scores do, and `anonymous` that it has no name of its own.
    """

    name: str
    sdata: SpatialData
    table: AnnData
    region: str
    rows: NDArray[np.int64]
    instances: pd.Index
    provenance: dict[str, Any]
    both: Pair | None = None
    changed: str | None = None
    covered: pd.DataFrame | None = None
    alignment: pd.Series | None = None
    known_as: str = ""
    anonymous: bool = False

    @property
    def usual(self) -> float | None:
        """Share of the locations that look like those of training, if that is known."""
        if keys.IN_DISTRIBUTION not in self.table.obs:
            return None
        return float(self.table.obs[keys.IN_DISTRIBUTION].to_numpy(dtype=bool)[self.rows].mean())

    @property
    def coverage(self) -> float | None:
        """Share of the measurements that lie in the predicted intervals of `LEVEL`, averaged over genes, if known."""
        if self.covered is None:
            return None
        part = self.covered.loc[self.covered["level"] == LEVEL, "coverage"].dropna()
        return float(part.mean()) if len(part) else None


@dataclass
class Content:
    """Everything that a page shows.

    Attributes
    ----------
    slides
        The slides, in the order given.
    genes
        A row per gene that any slide has: ``score`` (what genes are ranked by), its context, ``trusted``.
    score
        What ``score`` is.
    target
        Scale that the scores per slide are on; empty without any.
    model
        What the predictions are called.
    per_slide
        (slides, genes) values of each metric.
    overview
        One row per scale and model, mean scores.
    warnings
        Sentences.
    n_donors
        Donors that the scores are of, where they are known.
    scored_over
        Locations that genes are scored over, in words, where these are others than those that are shown.
    """

    slides: list[Slide]
    genes: pd.DataFrame
    score: str
    target: str
    model: str
    per_slide: dict[str, NDArray[np.float64]]
    overview: pd.DataFrame
    warnings: list[str] = field(default_factory=list)
    n_donors: int | None = None
    scored_over: str | None = None


def read_slides(
    slides: SpatialData | Mapping[str, SpatialData],
    predicted_key: str,
    *,
    measured_key: str | None,
    coordinate_system: str,
) -> list[Slide]:
    """Return the slides with their tables, refusing what is not there."""
    only = None
    if not isinstance(slides, Mapping):
        need_sdata(slides)
        ((known_as, sdata),) = data.as_slides(slides).items()
        only = _own_name(sdata, coordinate_system)
        slides = {known_as: sdata}
    if not slides:
        raise InputError("`slides` is empty; give one SpatialData object or a mapping of names to several.")
    found = []
    for name, sdata in named(slides, what="slides").items():
        need_sdata(sdata)
        if predicted_key not in sdata.tables:
            raise InputError(
                f"Slide {str(name)!r} has no table {predicted_key!r} (`predicted_key`); available: "
                f"{listing(sdata.tables)}."
            )
        if measured_key is not None and measured_key not in sdata.tables:
            raise InputError(
                f"Slide {str(name)!r} has no table {measured_key!r} (`measured_key`); available: "
                f"{listing(sdata.tables)}."
            )
        table = sdata.tables[predicted_key]
        regions = table_regions(table)
        if not regions:
            raise InputError(f"Table {predicted_key!r} of slide {str(name)!r} annotates no region, so it has no map.")
        region = region_in_frame(sdata, predicted_key, coordinate_system=coordinate_system)
        rows, instances = table_instances(table, region)
        provenance = read_provenance(table, what=f"table {predicted_key!r} of slide {str(name)!r}")
        provenance = provenance_in_frame(sdata, predicted_key, provenance, coordinate_system=coordinate_system)
        if provenance.get("kind") != "prediction":
            raise InputError(
                f"Table {predicted_key!r} of slide {str(name)!r} holds {provenance.get('kind')}, not predictions."
            )
        slide = Slide(str(name), sdata, table, region, rows, instances, provenance, known_as=str(name))
        if only is not None:
            slide.name, slide.anonymous = only or NAMELESS, not only
        slide.changed = changed_values(table, provenance, what=f"table {predicted_key!r} of slide {str(name)!r}")
        if measured_key is not None:
            slide.both = pair(sdata, predicted_key, measured_key, coordinate_system=coordinate_system)
            if "intervals" in provenance and not provenance["intervals"].get("withheld"):
                slide.covered = interval_coverage(slide.both, table, predicted_key)
        found.append(slide)
    return found


def _own_name(sdata: SpatialData, coordinate_system: str) -> str:
    """Return what a single slide is called: its store, or the vendor's name of its run; empty where neither is."""
    if sdata.path is not None:
        return PurePath(str(sdata.path)).name.removesuffix(".zarr")
    frames = [c for c in sdata.coordinate_systems if c not in (coordinate_system, keys.UM, "global")]
    own = [c for c in frames if not c.endswith(("_downscaled_hires", "_downscaled_lowres"))]
    return str(own[0]) if len(own) == 1 else ""


def collect(slides: list[Slide], scores: pd.DataFrame | None, *, model: str | None) -> Content:
    """Bring tables and scores together."""
    names = list(dict.fromkeys(str(g) for s in slides for g in s.table.var_names))
    genes = _stated(slides, names)
    warned: list[str] = []
    if scores is not None:
        tidy, called = _tidy(scores, model, slides)
        held_out = True
    elif any(s.both is not None for s in slides):
        called = str(slides[0].provenance.get("model", "model"))
        tidy, held_out = _measured(slides, called), False
    else:
        called, tidy, held_out = str(slides[0].provenance.get("model", "model")), pd.DataFrame(columns=list(TIDY)), True
    lacking = [t for t in _scales(tidy) if t == COUNTS and LIBRARY not in set(tidy.loc[tidy["target"] == t, "model"])]
    if lacking:  # such scores are mostly the library size, and cannot be read without it
        tidy = tidy[tidy["target"] != COUNTS]
        warned.append(
            "Scores on raw counts came without those of the library size alone and are left out: they cannot be read "
            "without them."
        )
    where = None
    target = _main_scale(tidy, slides)
    part = tidy[tidy["target"] == target]
    if part.empty:
        genes["score"] = genes.get("cv_pearson", pd.Series(np.nan, index=genes.index))
        where = scored_over(slides[0].provenance, slides[0].region)
        score = f"Pearson {'' if where is None else f'over {where} '}on left-out slides of training"
    else:
        genes["score"] = _gene_means(part, called, "pearson", names)
        score = "Pearson on left-out slides" if held_out else "Pearson on these slides"
        for row, column in ((LIBRARY, LIBRARY), (NEIGHBOURS, NEIGHBOURS)):
            genes[column] = _gene_means(part, row, "pearson", names)
        ceilings = [
            _gene_means(part, CEILING, m, names) for m in ("reliability", "rmax")[: 2 if target == COUNTS else 1]
        ]
        genes["ceiling"] = ceilings[0] if len(ceilings) == 1 else ceilings[0].fillna(ceilings[1])
    order = [s.name for s in slides]
    return Content(
        slides, genes, score, target, called, _per_slide(part, called, order, names), _overview(tidy, called), warned,
        n_donors=_n_donors(tidy), scored_over=where,
    )  # fmt: skip


def _stated(slides: list[Slide], names: list[str]) -> pd.DataFrame:
    """Return what the tables state of each gene: means of numbers, trusted where every slide says so.

    Of a gene that was not scored in every fold of a cross-validation, trust is missing: nobody has tried it.
    """
    frame = pd.DataFrame(index=pd.Index(names, name="gene"))
    for column in ("cv_pearson", "rmax"):
        if parts := [s.table.var[column].astype(float) for s in slides if column in s.table.var]:
            frame[column] = pd.concat(parts, axis=1).mean(axis=1).reindex(names)
    if parts := [s.table.var["trusted"].astype(float) for s in slides if "trusted" in s.table.var]:
        frame["trusted"] = pd.concat(parts, axis=1).min(axis=1).reindex(names).eq(1.0).astype("boolean")
        frame.loc[~_scored_in_every_fold(slides, names), "trusted"] = pd.NA
    if counts := [
        pd.Series(np.asarray(s.both.counts[:, s.both.columns].mean(axis=0)).ravel(), index=s.both.genes)
        for s in slides
        if s.both is not None
    ]:
        frame["mean_count"] = pd.concat(counts, axis=1).mean(axis=1).reindex(names)
    return frame


def _scored_in_every_fold(slides: list[Slide], names: list[str]) -> NDArray[np.bool_]:
    """Return (genes,) which ones every slide has, with scores on other donors; all that are of one model."""
    every = np.ones(len(names), dtype=bool)
    for s in slides:
        if "cross_validated" in s.provenance and "n_slides" in s.table.var:
            every &= s.table.var["n_slides"].reindex(names).fillna(0).gt(0).to_numpy()
    return every


def _n_donors(tidy: pd.DataFrame) -> int | None:
    """Return the number of donors that scores are of; None where none were named."""
    if "donor" not in tidy or ("donor_shared" in tidy and tidy["donor_shared"].astype(bool).any()):
        return None
    return int(tidy["donor"].nunique())


def _tidy(scores: pd.DataFrame, model: str | None, slides: list[Slide]) -> tuple[pd.DataFrame, str]:
    """Return the scores of these slides and the name under which the predictions are scored."""
    if not isinstance(scores, pd.DataFrame) or (missing := [c for c in TIDY if c not in scores]):
        got = type(scores).__name__ if not isinstance(scores, pd.DataFrame) else f"a frame without {listing(missing)}"
        raise InputError(f"`scores` must be the tidy frame of stpred.tl.cross_validate, got {got}.")
    there = [str(m) for m in scores["model"].unique() if m not in CONTEXT]
    if model is None:
        stated = {str(s.provenance.get(k)) for s in slides for k in ("model", "family")} & set(there)
        candidates = there if len(there) == 1 else sorted(stated)
        if len(candidates) != 1:
            raise InputError(
                f"`scores` holds the models {listing(there)}; say with `model` whose predictions are shown."
            )
        model = candidates[0]
    key_in(model, there, what="model in `scores`", name="model")
    names = {s.name for s in slides}
    own = {s.known_as: s.name for s in slides}
    spoken = scores["slide"].map(name_of).map(lambda n: own.get(n, n))
    known = scores.assign(slide=spoken)[spoken.isin(names).to_numpy()]
    if known.empty:
        raise InputError(
            f"`scores` are of the slides {listing(scores['slide'].unique())}, and the report is of {listing(names)}."
        )
    return known.assign(gene=known["gene"].astype(str)), model


def _measured(slides: list[Slide], called: str) -> pd.DataFrame:
    """Return scores of the tables that were measured, as cross-validation would put them."""
    parts = []
    for s in slides:
        if s.both is None:
            continue
        both = s.both
        rows = [
            (called, "pearson", metrics.pearson(both.guessed, both.observed)),
            (LIBRARY, "pearson", metrics.library_size_baseline(both.counts, target=both.target, genes=both.columns)),
        ]
        if both.target == COUNTS:  # the noise of raw counts is no bound on the logarithmic scale
            rows.append((CEILING, "rmax", gene_rules.rmax(both.counts[:, both.columns])))
        if both.comparable:
            rows.append((called, "rmse", metrics.rmse(both.guessed, both.observed)))
        parts += [
            pd.DataFrame({"model": m, "metric": k, "value": v, "gene": both.genes.astype(str)}).assign(
                slide=s.name, target=both.target
            )
            for m, k, v in rows
        ]
    return pd.concat(parts, ignore_index=True)


def _scales(tidy: pd.DataFrame) -> list[str]:
    there = [str(t) for t in tidy["target"].dropna().unique()]
    return sorted(there, key=lambda t: (t != LOG, t))


def _main_scale(tidy: pd.DataFrame, slides: list[Slide]) -> str:
    """Return the scale that genes are ranked on: the prediction's own, else the logarithmic one."""
    there = _scales(tidy)
    own = str(slides[0].provenance.get("output_scale"))
    return own if own in there else (there[0] if there else "")


def _gene_means(part: pd.DataFrame, model: str, metric: str, names: list[str]) -> pd.Series:
    """Return each gene's mean over slides; a gene that is undefined everywhere stays so."""
    rows = part[(part["model"] == model) & (part["metric"] == metric)]
    return rows.groupby("gene", observed=True)["value"].mean().reindex(names)


def _per_slide(part: pd.DataFrame, called: str, slides: list[str], names: list[str]) -> dict[str, NDArray[np.float64]]:
    """Return (slides, genes) values of every metric, and of the context's correlation."""
    wanted = [(called, m, m) for m in METRICS] + [(LIBRARY, "pearson", LIBRARY), (NEIGHBOURS, "pearson", NEIGHBOURS)]
    found = {}
    for model, metric, column in wanted:
        rows = part[(part["model"] == model) & (part["metric"] == metric)]
        if rows["value"].notna().any():
            wide = rows.pivot_table(index="slide", columns="gene", values="value", aggfunc="mean", observed=True)
            found[column] = wide.reindex(index=slides, columns=names).to_numpy(dtype=np.float64)
    return found


def _overview(tidy: pd.DataFrame, called: str) -> pd.DataFrame:
    """Return mean scores over genes (each averaged over slides) by scale and model, the reported model first."""
    if tidy.empty:
        return pd.DataFrame()
    tidy = tidy[(tidy["metric"] != RMAX) | (tidy["target"] == COUNTS)]
    bounds = tidy["model"] == CEILING  # both are of the correlation
    tidy = tidy.assign(model=tidy["model"].mask(bounds, tidy["metric"]), metric=tidy["metric"].mask(bounds, "pearson"))
    filled = tidy.assign(value=tidy["value"].where(~tidy["metric"].isin(CORRELATIONS), tidy["value"].fillna(0.0)))
    by_gene = filled.groupby(["target", "model", "metric", "gene"], observed=True)["value"].mean()
    means = by_gene.groupby(level=[0, 1, 2], observed=True).mean().unstack("metric")
    columns = [m for m in METRICS if m in means and means[m].notna().any()]
    rest = sorted(set(means.index.get_level_values(1)) - {called, *CONTEXT})
    order = [called, *rest, *CONTEXT]
    rows = [(t, m) for t in _scales(tidy) for m in order if (t, m) in means.index]
    return means.loc[rows, columns]

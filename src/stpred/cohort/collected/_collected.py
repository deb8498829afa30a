"""The tables of a run that are collected: pseudo-bulk of each slide, joined tables, and how they came about."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core.checks import InputError, listing, warn
from stpred._core.expression.bulk import KIND, TOTAL, WITHIN_SLIDES, BulkSum, how_averaged, removes_slide_differences
from stpred._core.progress import track
from stpred._core.tables import package_versions, plain
from stpred.cohort.collected._joined_tables import JoinedTables
from stpred.cohort.collected._stored_tables import Locations, StoredTable
from stpred.cohort.manifest import COMPLETE

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray

JOINED = "cohort_tables"
"""Kind of joined tables, in their provenance."""

ALL_LOCATIONS, LOCATION_SD = "all_locations", "location_sd"

_NOT_COPIED = ("slide", "status", "error", "in_distribution", "n_tiles", "n_genes", "table")
"""Columns of the manifest that are not copied: they are computed from the tables, or the same for all."""


@dataclass(frozen=True)
class Cohort:
    """The tables that are collected, and what of them."""

    manifest: pd.DataFrame
    found: list[StoredTable]
    genes: pd.Index
    in_distribution_only: bool
    average: str
    layers: tuple[str, ...]
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Slides that are left out since their results cannot be read, and why."""

    @property
    def scale(self) -> str:
        """What the values of all tables are."""
        return self.found[0].scale

    @property
    def n_obs(self) -> int:
        """Locations of all slides."""
        return sum(table.n_obs for table in self.found)

    @cached_property
    def _columns(self) -> dict[int, NDArray[np.int64]]:
        """For each list of genes, by its ``id``, the (G,) positions of the collected genes in it; -1: it lacks them."""
        return {key: genes.get_indexer(self.genes) for key, genes in {id(t.genes): t.genes for t in self.found}.items()}

    def _lacking(self) -> list[str]:
        """Slides that lack some of the genes."""
        short = {key for key, at in self._columns.items() if (at < 0).any()}
        return [table.slide for table in self.found if id(table.genes) in short]

    def warn_of_gaps(self, manifest: pd.DataFrame) -> None:
        """Say which slides are not complete, lack genes, or were predicted otherwise than others."""
        left = manifest[manifest["status"] != COMPLETE]
        if len(left):
            counts = ", ".join(f"{n} {status}" for status, n in left["status"].value_counts().items())
            warn(f"{len(left)} of {len(manifest)} slides are not complete and left out ({counts}).")
        if lacking := self._lacking():
            warn(
                f"{len(lacking)} of {len(self.found)} slides lack some of the {len(self.genes)} genes, which are NaN "
                f"there: {listing(lacking, most=3)}; var['n_collected'] counts the slides of each gene."
            )
        for column, what in (("settings", "options"), ("table", "tables")):
            values = self.manifest[column].value_counts()
            if len(values) > 1:
                said = ", ".join(f"{n} slides {value!r}" for value, n in list(values.items())[:5])
                warn(f"The slides were predicted with different {what} ({said}), see obs[{column!r}].")

    def check_room(self, path: Path) -> None:
        """Refuse joined tables that the disk has no room for."""
        need = self.n_obs * (len(self.genes) * 4 * (1 + len(self.layers)) + 60)
        above = next(p for p in path.absolute().parents if p.exists())
        free = shutil.disk_usage(above).free
        if need > free:
            raise InputError(
                f"The joined tables of {self.n_obs:,} locations x {len(self.genes):,} genes need about "
                f"{need / 1e9:.1f} GB, and {str(above)!r} has {free / 1e9:.1f} GB left; choose fewer genes or another "
                "disk."
            )

    def donors(self) -> pd.Series:
        """Donors by slide; those that are not known are missing."""
        return self.manifest["donor"].where(self.manifest["donor"] != "").astype("category")

    def shape_of_joined(self, manifest: pd.DataFrame) -> dict[str, Any]:
        """Return what :class:`JoinedTables` asks."""
        own = self.found[0].provenance  # of the values as they are, not averaged
        said = self.provenance(manifest) | {k: own[k] for k in ("output_scale", "per") if k in own}
        said |= {"kind": JOINED, "average": None, "in_distribution_only": False}
        return {
            "n_obs": self.n_obs,
            "var": self.var(),
            "categories": {
                "slide": [table.slide for table in self.found],
                "donor": [str(d) for d in self.donors().cat.categories],
                "region": list(dict.fromkeys(r for table in self.found for r in table.regions)),
            },
            "text_ids": any(table.text_ids for table in self.found),
            "layers": self.layers,
            "uns": json.dumps(said, sort_keys=True, default=plain),
        }

    def var(self) -> pd.DataFrame:
        """What the model states of each gene, from the first slide that has it."""
        import pandas as pd

        parts, seen = [], set()
        for table in self.found:
            if id(table.genes) not in seen:
                seen.add(id(table.genes))
                part = table.var()
                part.index = table.genes
                parts.append(part[part.index.isin(self.genes)])
        joined = pd.concat(parts)
        var = joined[~joined.index.duplicated()].reindex(self.genes)
        for name in var:  # where only some tables have a column, truth values are objects beside NaN
            if var[name].dtype == object and var[name].dropna().map(lambda v: isinstance(v, bool | np.bool_)).all():
                var[name] = [v is not None and v == v and bool(v) for v in var[name]]
        var["n_collected"] = np.sum([self._columns[id(t.genes)] >= 0 for t in self.found], axis=0, dtype=np.int64)
        var.index.name = None
        return var

    def read(self, writer: JoinedTables | None) -> AnnData:
        """Read every table once; return the pseudo-bulk and fill the joined tables."""
        import pandas as pd
        from anndata import AnnData

        profiles: dict[str, list[NDArray[np.float64]]] = {"X": [], ALL_LOCATIONS: [], LOCATION_SD: []}
        facts, start = [], 0
        donors = self.donors().astype(object).where(self.donors().notna(), "")
        for table in track(self.found, total=len(self.found), describe="reading tables"):
            locations = table.locations()
            if writer is not None:
                writer.put(start, table.slide, str(donors[table.slide]), locations)
            slide = self._read(table, locations, start, writer)
            for name, into in profiles.items():
                into.append(slide.profiles[name])
            facts.append(_facts(table, locations, slide))
            start += table.n_obs
        own = self.manifest.drop(columns=[c for c in _NOT_COPIED if c in self.manifest])
        obs = own.assign(donor=self.donors()).join(pd.DataFrame(facts, index=own.index))
        obs.index = pd.Index([str(s) for s in obs.index], name="slide")
        stacked = {name: np.stack(rows) for name, rows in profiles.items()}
        counts = self.scale == "counts"
        dtype: type[np.floating[Any]] = np.float64 if counts else np.float32
        bulk = AnnData(stacked.pop("X").astype(dtype), obs=obs, var=self.var())
        if not self.in_distribution_only:
            del stacked[ALL_LOCATIONS]
        for name, values in stacked.items():
            bulk.layers[name] = values.astype(np.float32 if name == LOCATION_SD else dtype)
        if counts:
            n = obs["n_locations"].to_numpy()[:, None]
            bulk.layers["mean"] = np.divide(bulk.X, n, out=np.full(bulk.shape, np.nan), where=n > 0)
        else:
            del bulk.obs[TOTAL]
        if empty := [s for s, n in zip(obs.index, obs["n_locations"], strict=True) if n == 0]:
            warn(
                f"No location of {len(empty)} of {len(obs)} slides is in distribution, so their rows are NaN: "
                f"{listing(empty, most=3)}; leave them out, or average all locations (in_distribution_only=False)."
            )
        return bulk

    def _read(self, table: StoredTable, locations: Locations, start: int, writer: JoinedTables | None) -> _Slide:
        """Read the values of one table."""
        at = self._columns[id(table.genes)]
        there = np.flatnonzero(at >= 0)
        everything = self.scale == "counts"  # the total is that of all genes
        columns = at[there]
        whole = len(columns) == len(table.genes) and bool((columns == np.arange(len(columns))).all())
        kept = locations.in_distribution if self.in_distribution_only else np.ones(table.n_obs, dtype=bool)
        inside, outside = (BulkSum(len(there), scale=self.scale, average=self.average) for _ in range(2))
        spread, total = _Spread(len(there)), 0.0
        for rows, values in table.blocks(None if everything or whole else columns):
            if everything:
                total += float(values[kept[rows]].sum(dtype=np.float64))
                values = values if whole else values[:, columns]
            averaged = values if kept[rows].all() else values[kept[rows]]
            inside.add(averaged)
            spread.add(averaged)
            outside.add(values[~kept[rows]])
            if writer is not None:
                writer.values(start + rows.start, self._spaced(values, there))
        for layer in self.layers if writer is not None else ():
            for rows, values in table.blocks(None if whole else columns, layer=layer):
                writer.values(start + rows.start, self._spaced(values, there), layer=layer)  # type: ignore[union-attr]
        named = {"X": inside.profile(), ALL_LOCATIONS: (inside + outside).profile(), LOCATION_SD: spread.sd()}
        profiles = {name: np.full(len(self.genes), np.nan) for name in named}
        for name, profile in named.items():
            profiles[name][there] = profile
        return _Slide(profiles, int(kept.sum()), total)

    def _spaced(self, values: NDArray[np.float32], there: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return values with NaN for the genes that a slide lacks."""
        if len(there) == len(self.genes):
            return values
        out = np.full((len(values), len(self.genes)), np.nan, dtype=np.float32)
        out[:, there] = values
        return out

    def provenance(self, manifest: pd.DataFrame) -> dict[str, Any]:
        """Return how the values came about."""
        left = manifest[manifest["status"] != COMPLETE]
        own = self.found[0].provenance
        return {name: value for name, value in own.items() if name != "per"} | {
            "kind": KIND,
            "output_scale": "log1p_cp10k" if self.scale == "cp10k" else self.scale,
            "comparable": "within genes only" if self.scale == "relative" else "within and between genes",
            "average": how_averaged(self.scale, self.average),
            "in_distribution_only": self.in_distribution_only,
            WITHIN_SLIDES: any(removes_slide_differences(table.provenance.get("config")) for table in self.found),
            "tables": sorted({table.key for table in self.found}),
            "n_slides": len(self.found),
            "unreadable": dict(self.unreadable),
            "left_out": {str(status): sorted(str(s) for s in part["slide"]) for status, part in left.groupby("status")},
            "n_lacking_genes": len(self._lacking()),
            "versions": package_versions(),
        }


@dataclass(frozen=True)
class _Slide:
    """What one table gives: its profiles, how many locations were averaged, and the total of counts."""

    profiles: Mapping[str, NDArray[np.float64]]
    n_locations: int
    total: float


class _Spread:
    """Standard deviation of each gene over rows that come in blocks (Chan, Golub and LeVeque 1983)."""

    def __init__(self, n_genes: int) -> None:
        self.n, self.mean, self.square = 0, np.zeros(n_genes), np.zeros(n_genes)

    def add(self, values: NDArray[np.float32]) -> None:
        if (n := len(values)) == 0:
            return
        mean = values.mean(axis=0, dtype=np.float64)
        off = mean - self.mean
        both = self.n + n
        self.square += np.square(values - mean).sum(axis=0) + off**2 * (self.n * n / both)
        self.mean += off * (n / both)
        self.n = both

    def sd(self) -> NDArray[np.float64]:
        return np.sqrt(self.square / self.n) if self.n else np.full(len(self.mean), np.nan)


def _facts(table: StoredTable, locations: Locations, slide: _Slide) -> dict[str, Any]:
    left = table.n_obs - slide.n_locations
    score = locations.ood_score[np.isfinite(locations.ood_score)]
    return {
        "table": table.key,
        "region": ", ".join(table.regions),
        "n_genes": len(table.genes),
        "n_tiles": table.n_obs,
        "n_not_predicted": sum(table.left_out.values()),
        "upsampled": table.upsampled,
        "n_locations": slide.n_locations,
        "n_left_out": left,
        "share_left_out": left / table.n_obs,
        "share_in_distribution": float(locations.in_distribution.mean()),
        "median_ood_score": float(np.median(score)) if len(score) else np.nan,
        TOTAL: slide.total,
    }

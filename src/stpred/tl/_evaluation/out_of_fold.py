"""What models predict for slides that they were not trained on, as tables of these slides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stpred import data, genes, training
from stpred._core import keys, tables
from stpred._core.expression.library import LIBRARY
from stpred.models.ood import ood_scores, slide_ood_summary

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData


@dataclass(frozen=True)
class Prediction:
    """One model's prediction for (a part of) one slide.

    Attributes
    ----------
    slide, rows, genes
        Where, at which rows of its region (None: all), and of which genes.
    mean, std
        (n, G) float32; `std` None where the model gives none.
    ood_distance, slide_limit
        (n,) distances from the training tiles, and the median up to which a slide counts as alike.
    scale, per, n_measured
        Output scale; of predicted amounts, the total counts they refer to; of a log share, its number of genes.
    family, config, chosen, encoder, fold, trained_on
        What predicted it through which encoder, and the slides that it learned from.
    """

    slide: str
    rows: NDArray[np.int64] | None
    genes: list[str]
    mean: NDArray[np.float32]
    std: NDArray[np.float32] | None
    ood_distance: NDArray[np.float32]
    slide_limit: float | None
    scale: str
    per: int | None
    n_measured: int | None
    family: str
    config: dict[str, Any]
    chosen: str
    encoder: str
    fold: str
    trained_on: list[str]


class OutOfFold:
    """Collects the predictions of all folds and puts them into the slides."""

    def __init__(self, key_added: str, regions: Mapping[str, data.Region], names: Iterable[str]) -> None:
        self.regions = regions
        self.images = {s: {"image": r.pyramid.fingerprint} for s, r in regions.items()}
        self.library = data.library_of(list(regions.values())).packed()
        self.keys: dict[tuple[str, str], str] = {}
        for slide, region in regions.items():
            for name in names:
                key = f"{keys.predicted(region.shapes_key, keys.slug(name))}_{key_added}"
                tables.check_writable(region.sdata, key)
                self.keys[slide, name] = key
        self.found: dict[tuple[str, str], list[Prediction]] = {}

    def add(self, name: str, predictions: Iterable[Prediction]) -> None:
        """Take what a model predicted in one fold."""
        for p in predictions:
            self.found.setdefault((p.slide, name), []).append(p)

    def put(self, slides: Mapping[str, SpatialData], scores: pd.DataFrame) -> None:
        """Write one table per slide and model; `scores` are those of all held-out slides, tidy.

        What a table says of its genes is from the slides of other donors: nothing of its own is in it.
        """
        donors = scores.groupby("slide", observed=True)["donor"].first().to_dict()
        for (slide, name), parts in self.found.items():
            (donor,) = scores.loc[scores["slide"] == slide, "donor"].unique()
            others = scores[(scores["model"] == name) & ~(scores["donor"] == donor)]
            table = _table(
                self.regions[slide], parts, _of_genes(others, self.regions), images=self.images, donors=donors,
                library=self.library,
            )  # fmt: skip
            tables.put_table(slides[slide], self.keys[slide, name], table)


def _table(
    region: data.Region,
    parts: list[Prediction],
    statistics: pd.DataFrame,
    *,
    images: dict[str, dict[str, str]],
    donors: Mapping[str, str],
    library: dict[str, Any],
) -> Any:
    first = parts[0]
    common = set.intersection(*(set(p.genes) for p in parts))
    shared = [g for g in first.genes if g in common]
    rows = np.concatenate([np.arange(len(p.mean)) if p.rows is None else p.rows for p in parts])
    order = np.argsort(rows, kind="stable")

    def joined(name: str) -> NDArray[np.float32]:
        values = [getattr(p, name)[:, pd.Index(p.genes).get_indexer(shared)] for p in parts]
        return np.concatenate(values)[order]

    score = np.concatenate([ood_scores(p.ood_distance, p.slide_limit) for p in parts])[order]
    part = region.take(rows[order])
    var = statistics.reindex(shared)
    var["trusted"] = var["trusted"].eq(other=True)
    var["n_slides"] = var["n_slides"].fillna(0).astype(int)
    var["rmax"] = genes.rmax(part.counts[:, part.var.index.get_indexer(shared)])  # type: ignore[index,union-attr]
    return tables.build_table(
        np.maximum(joined("mean"), 0) if first.scale == "counts" else joined("mean"),
        shapes_key=region.shapes_key,
        instances=part.instances,
        var=var,
        spatial_um=part.coords_um,
        obs={keys.OOD_SCORE: score, keys.IN_DISTRIBUTION: score <= 0},
        layers={keys.STD: joined("std")} if all(p.std is not None for p in parts) else None,
        provenance={
            "kind": "prediction",
            "model": first.family,
            "family": first.family,
            "config": first.config,
            "encoder": {"name": first.encoder},
            "output_scale": first.scale,
            **({} if first.per is None else {"per": first.per}),
            LIBRARY: library,
            "cross_validated": [_fold(p, donors) for p in parts],
            "training": {
                "slides": {s: images[s] for s in dict.fromkeys(s for p in parts for s in p.trained_on)},
                **({} if first.n_measured is None else {"n_measured": first.n_measured}),
            },
            "slide": slide_ood_summary(np.concatenate([p.ood_distance for p in parts]), _one_limit(parts)),
            "image": region.pyramid.fingerprint,
            "image_key": region.image_key,
            "mpp": region.pyramid.mpp,
            "n_predicted": len(part.coords_um),
            "left_out": {"off_image": region.n_outside, "no_cells": len(region.without_cells)},
            "versions": tables.package_versions(),
        },
    )


def _fold(part: Prediction, donors: Mapping[str, str]) -> dict[str, Any]:
    """Return what a table says of the fold that predicted (a part of) it; of a fixed model, no slides."""
    found = {"fold": part.fold, "trained_on": part.trained_on, "chosen": part.chosen}
    if not part.trained_on:
        return found
    return found | {"n_donors": len({donors.get(s, s) for s in part.trained_on})}


def _one_limit(parts: list[Prediction]) -> float | None:
    """Return the limit that a slide is judged by; parts of one slide have models, and limits, of their own."""
    limits = [p.slide_limit for p in parts if p.slide_limit is not None]
    return float(np.mean(limits)) if len(limits) == len(parts) else None


def _of_genes(scores: pd.DataFrame, regions: Mapping[str, data.Region]) -> pd.DataFrame:
    """Return what all held-out slides yield for each gene, as training does: mean scores, their number, and trust."""
    if scores.empty:
        columns = {"cv_pearson": float, "cv_spearman": float, "n_slides": int, "trusted": bool}
        return pd.DataFrame({k: pd.Series(dtype=v) for k, v in columns.items()})
    scores = scores[scores["target"] == scores["target"].iloc[0]]

    def wide(metric: str) -> pd.DataFrame:
        part = scores[scores["metric"] == metric]
        return part.pivot_table(index="slide", columns="gene", values="value", aggfunc="mean", dropna=False, sort=False)

    pearson, spearman = wide("pearson"), wide("spearman")
    n = np.array([len(regions[s].coords_um) for s in pearson.index])
    spearman = spearman.reindex(index=pearson.index, columns=pearson.columns)
    held = training.HeldOut(pearson.to_numpy(), spearman.to_numpy(), n)
    return pd.DataFrame(held.columns(), index=pd.Index(pearson.columns.astype(str), name=None))

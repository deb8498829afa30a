"""Bringing slides that measured different genes to one library, so that their log1p CP10k is one scale."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stpred._core.checks import warn
from stpred._core.expression.library import (
    MIN_TRAINING_SHARE,
    Library,
    Overlap,
    describe_shares,
    gene_sums,
    overlap,
    shared_genes,
)
from stpred.data._regions import Region


@dataclass(frozen=True)
class SharedLibrary:
    """The genes that library sizes of all slides are counted over, where these measured materially different ones.

    Attributes
    ----------
    genes
        Measured on every slide.
    share
        Slide to the part of its counts that they carry.
    """

    genes: list[str]
    share: dict[str, float]

    def to_dict(self) -> dict[str, object]:
        """Return plain values, for records and results."""
        return {"n_genes": len(self.genes), "share": {s: round(v, 4) for s, v in self.share.items()}}


def shared_library(regions: Iterable[Region]) -> SharedLibrary | None:
    """Return the genes to count library sizes over, and warn; None where the slides' own are one scale already."""
    measured = {r.slide: r for r in regions if r.counts is not None and r.var is not None}
    if len({frozenset(r.var.index) for r in measured.values()}) < 2:  # type: ignore[union-attr]
        return None
    genes, share = shared_genes({s: (r.var.index, gene_sums(r.counts)) for s, r in measured.items()})  # type: ignore[union-attr]
    if min(share.values()) >= MIN_TRAINING_SHARE or not genes:
        return None
    n = {s: len(r.var) for s, r in measured.items()}  # type: ignore[arg-type]
    if len(genes) < 2:
        warn(
            f"The slides share one measured gene, {genes[0]!r}, so library sizes are counted over different genes and "
            f"log1p CP10k is another scale on each ({describe_shares(share, n)})."
        )
        return None
    warn(
        f"The slides measured different genes, so library sizes of all are counted over the {len(genes)} that they "
        f"share and log1p CP10k is one scale ({describe_shares(share, n)})."
    )
    return SharedLibrary(genes, share)


def library_of(regions: Sequence[Region]) -> Library:
    """Return what the library sizes of slides are counted over."""
    return Library.of([(r.var.index, r.counts) for r in regions if r.counts is not None])  # type: ignore[union-attr]


def on_library(region: Region, library: Library | None) -> tuple[Region, Overlap | None]:
    """Return a slide with library sizes over a model's genes where it measured these and others; and the comparison.

    `library` None: the slide is returned unchanged.
    """
    if library is None or region.counts is None or region.var is None:
        return region, None
    found = overlap(library, region.var.index, gene_sums(region.counts))
    return (region.over(library.genes) if found.wider else region), found

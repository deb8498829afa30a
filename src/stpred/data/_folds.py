"""Who may be trained on with whom, which genes the training slides choose, and parts of slides as folds."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from stpred import genes as gene_kernels
from stpred._core.checks import InputError, listing
from stpred._core.names import is_mapping, name_of, named
from stpred.data._regions import Region
from stpred.regions import Lattice

if TYPE_CHECKING:
    import pandas as pd


BLOCK_FOLDS = 4

BUFFER_PITCHES = 2.5
"""Distance between training and test locations of one slide: neighbours share their image and their RNA."""


class TooSmall(InputError):
    """A slide that cannot be cut into blocks with a gap between them."""


@dataclass(frozen=True)
class Fold:
    """Slides and, within them, rows (None: all) that are trained on and tested."""

    name: str
    train: dict[str, Any]
    test: dict[str, Any]


def donor_folds(slides: list[str], groups: Mapping[Any, Any] | str) -> dict[str, str]:
    """Return each slide's donor; ``groups="slide"`` makes each slide its own."""
    if isinstance(groups, str):
        if groups != "slide":
            raise InputError(f"`groups` must map every slide to its donor, or be 'slide'; got {groups!r}.")
        return {s: s for s in slides}
    if not is_mapping(groups):
        raise InputError(f"`groups` must map every slide to its donor, or be 'slide'; got {groups!r}.")
    donors = named(groups, what="groups")
    if missing := [s for s in slides if s not in donors]:
        raise InputError(f"`groups` names no donor for slides {listing(missing)}; it has {listing(donors)}.")
    return {s: name_of(donors[s], what=f"donor of slide {s!r}") for s in slides}


def refuse_copies(regions: Mapping[str, Region], donors: Mapping[str, str]) -> None:
    """Refuse slides that show the same tissue under the names of two donors."""
    by_image: dict[str, list[str]] = {}
    for slide, region in regions.items():
        for other in by_image.setdefault(region.pyramid.fingerprint, []):
            if donors[other] != donors[slide] and _overlap(region.coords_um, regions[other].coords_um):
                raise InputError(
                    f"Slides {other!r} and {slide!r} are locations on the same image, yet their donors are "
                    f"{donors[other]!r} and {donors[slide]!r}; give them one donor, or leave one out."
                )
        by_image[region.pyramid.fingerprint].append(slide)


def _overlap(first: NDArray[np.float64], second: NDArray[np.float64]) -> bool:
    """Whether the boxes of two sets of locations overlap."""
    return bool((first.min(axis=0) <= second.max(axis=0)).all() and (second.min(axis=0) <= first.max(axis=0)).all())


def choose_genes(
    regions: list[Region], rule: Any, *, partial: bool = False, allowed: Collection[str] | None = None
) -> pd.DataFrame:
    """Return genes chosen by a rule on these regions alone, best first, with their scores.

    `partial`: genes that are named need not be measured on every slide. `allowed`: genes to choose among, unless they
    are named; None: all.
    """
    if partial and rule.method == "list":
        return _named(regions, list(rule.genes))
    names, columns = gene_kernels.shared_genes({r.slide: r.var.index for r in regions if r.var is not None})
    if allowed is not None and rule.method != "list":
        kept = np.flatnonzero([g in allowed for g in names])
        if not len(kept):
            raise InputError("No gene that all training slides measured passes the limits on genes; relax `qc`.")
        names, columns = [names[i] for i in kept], {s: np.asarray(c)[kept] for s, c in columns.items()}
    counts = {r.slide: r.counts[:, columns[r.slide]] for r in regions if r.counts is not None}
    return gene_kernels.select(rule, counts, names, coords_um={r.slide: r.coords_um for r in regions})


def _named(regions: list[Region], names: list[str]) -> pd.DataFrame:
    """Return named genes with their scores over the slides that measured them; there must be one of each."""
    import pandas as pd

    measured = [r for r in regions if r.var is not None and r.counts is not None]
    if missing := [g for g in names if not any(g in r.var.index for r in measured)]:  # type: ignore[union-attr]
        raise InputError(f"No slide measured the genes {listing(missing)}.")
    sums, rows, ceilings, n_slides = (np.zeros(len(names)) for _ in range(4))
    for region in measured:
        columns = region.var.index.get_indexer(names)  # type: ignore[union-attr]
        there = np.flatnonzero(columns >= 0)
        counts = region.counts[:, columns[there]]  # type: ignore[index]
        found = np.asarray(counts.sum(axis=0)).ravel()
        sums[there] += found
        rows[there] += counts.shape[0]
        n_slides[there] += found > 0
        ceilings[there] += np.where(found > 0, np.nan_to_num(gene_kernels.rmax(counts)), 0)
    mean = sums / rows
    return pd.DataFrame(
        {"score": mean, "rmax": ceilings / np.maximum(n_slides, 1), "mean": mean, "n_slides": n_slides.astype(int)},
        index=pd.Index(names, dtype=object),
    )


def common_lattice(regions: list[Region]) -> Lattice | None:
    """Return the training lattice: the slides' median pitch, and the arrangement of the first."""
    lattices = [lattice for r in regions if (lattice := Lattice.of(r.coords_um)) is not None]
    if not lattices:
        return None
    return Lattice(float(np.median([x.pitch_um for x in lattices])), lattices[0].hexagonal)


def block_folds(regions: dict[str, Region], *, n_folds: int | None = None) -> list[Fold]:
    """Return folds (None: 4) that leave out one block of every slide, and nothing near it is trained on."""
    n_folds = BLOCK_FOLDS if n_folds is None else n_folds
    blocks = {s: blocks_of(r.coords_um, n_folds, slide=s) for s, r in regions.items()}
    folds = []
    for k in range(n_folds):
        train, test = {}, {}
        for s, region in regions.items():
            test[s] = np.flatnonzero(blocks[s] == k)
            train[s] = far_from(region.coords_um, test[s], slide=s)
        folds.append(Fold(f"block{k}", train, test))
    return folds


def far_from(coords_um: NDArray[np.float64], rows: NDArray[np.int64], *, slide: str) -> NDArray[np.int64]:
    """Return rows of the locations that are more than the buffer away from those of `rows`."""
    lattice = Lattice.of(coords_um)
    buffer_um = BUFFER_PITCHES * (100.0 if lattice is None else lattice.pitch_um)
    far = np.flatnonzero(cKDTree(coords_um[rows]).query(coords_um)[0] > buffer_um)
    if len(far) == 0:
        raise TooSmall(
            f"Slide {slide!r} is too small for blocks with a buffer of {buffer_um:g} um: nothing remains to train on."
        )
    return far


def blocks_of(coords_um: NDArray[np.float64], n_folds: int, *, slide: str) -> NDArray[np.int64]:
    """Cut a slide into compact blocks of equal size, by halving it across its longer side again and again."""
    if len(coords_um) < 2 * n_folds:
        raise TooSmall(f"Slide {slide!r} has {len(coords_um)} locations, too few for {n_folds} blocks.")
    out = np.zeros(len(coords_um), dtype=np.int64)

    def cut(rows: NDArray[np.int64], first: int, n: int) -> None:
        if n == 1:
            out[rows] = first
            return
        axis = int(np.argmax(np.ptp(coords_um[rows], axis=0)))
        order = rows[np.lexsort((coords_um[rows, 1 - axis], coords_um[rows, axis]))]
        where = len(order) * (n // 2) // n
        cut(order[:where], first, n // 2)
        cut(order[where:], first + n // 2, n - n // 2)

    cut(np.arange(len(coords_um)), 0, n_folds)
    return out

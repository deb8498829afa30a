"""Gene names: which ones slides share, and why they may share none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from stpred._core.checks import InputError, listing
from stpred._core.expression.counts import looks_like_ensembl


def shared_genes(
    names: Mapping[str, Sequence[str]], *, ids: Mapping[str, Sequence[str]] | None = None
) -> tuple[list[str], dict[str, NDArray[np.int64]]]:
    """Find the genes that every slide (or table) measures, and where they are in each.

    Parameters
    ----------
    names
        Gene names of each slide.
    ids
        Gene ids of each slide, in the order of its names; when given, genes are matched by id, and named as on the
        first slide.

    Returns
    -------
    The shared names, sorted, and for each slide the (n_shared,) int64 columns that hold them.

    Raises
    ------
    InputError
        When a slide has a name twice, or when no gene is shared; the message shows names of both sides.

    Examples
    --------
    >>> from stpred.genes import shared_genes
    >>> shared_genes({"a": ["EPCAM", "CD3E", "MS4A1"], "b": ["CD3E", "EPCAM"]})
    (['CD3E', 'EPCAM'], {'a': array([1, 0]), 'b': array([0, 1])})
    """
    if not names:
        raise InputError("No slide was given to take genes from.")
    if ids is not None and {k: len(v) for k, v in ids.items()} != {k: len(v) for k, v in names.items()}:
        raise InputError("`ids` must have one gene id for each name, on the same slides as `names`.")
    by, kind = (names, "gene names") if ids is None else (ids, "gene ids")
    tables = {slide: [str(g) for g in genes] for slide, genes in by.items()}
    for slide, genes in tables.items():
        refuse_duplicates(genes, where=repr(slide), kind=kind)
    places = {slide: {g: i for i, g in enumerate(genes)} for slide, genes in tables.items()}
    common = set.intersection(*(set(p) for p in places.values()))
    if not common:
        raise InputError(_no_overlap(tables, kind=kind))
    first = next(iter(names))
    label = {g: str(names[first][places[first][g]]) for g in common}
    refuse_duplicates(label.values(), where=repr(first), kind="gene names")
    ordered = sorted(common, key=label.__getitem__)
    columns = {slide: np.array([p[g] for g in ordered], dtype=np.int64) for slide, p in places.items()}
    return [label[g] for g in ordered], columns


def refuse_duplicates(genes: Iterable[str], *, where: str, kind: str) -> None:
    """Refuse names that occur twice, and say which."""
    seen: set[str] = set()
    repeated: set[str] = set()
    for gene in genes:
        (repeated if gene in seen else seen).add(gene)
    if repeated:
        raise InputError(
            f"{len(repeated)} {kind} occur more than once in {where}: {listing(sorted(repeated))}; "
            "make them unique (adata.var_names_make_unique()) or sum their columns."
        )


def _no_overlap(tables: Mapping[str, list[str]], *, kind: str) -> str:
    """Say which two sides have nothing in common, and why that may be."""
    first, genes = next(iter(tables.items()))
    for other, theirs in tables.items():
        if other != first and not set(genes) & set(theirs):
            hint = mismatch(genes, theirs)
            return (
                f"{first!r} and {other!r} share no {kind}: {listing(genes[:3])} against {listing(theirs[:3])}"
                f"{'; ' + hint if hint else ''}."
            )
    return f"No gene is on all of {listing(tables)}; leave out the slide with another panel."


def mismatch(ours: Sequence[str], theirs: Sequence[str]) -> str | None:
    """Guess why two lists of gene names do not meet."""
    ensembl = [looks_like_ensembl(side) for side in (ours, theirs)]
    if ensembl[0] != ensembl[1]:
        sides = ("the first", "the second") if ensembl[0] else ("the second", "the first")
        return f"{sides[0]} look like Ensembl ids and {sides[1]} like symbols, so name both the same way"
    alike: tuple[tuple[Callable[[str], str], str], ...] = (
        (lambda g: g.split(".")[0], "they differ only by the version after the dot of the id"),
        (str.upper, "they differ only by upper and lower case, as human and mouse symbols do"),
    )
    for simplify, reason in alike:
        if {simplify(g) for g in ours} & {simplify(g) for g in theirs}:
            return reason
    return None

"""Which genes library sizes are counted over: log1p CP10k over one set of genes is not that over another.

A gene of 50 counts in a whole transcriptome of 10 000 is one of 50 in a panel of 1 000: ten times as much per ten
thousand. Genes that hardly carry counts make no difference, so sets are compared by the share of the counts that both
have, not by their number.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stpred._core.expression.cut import Cut

LIBRARY = "library"
"""Key of a table's provenance for the library that its values are on."""

MIN_SHARE = 0.9
"""Share of both libraries that the shared genes carry, from which on log1p CP10k is one scale."""

MIN_TRAINING_SHARE = 0.95
"""Share of every training slide's counts that the shared genes carry, from which on each keeps its own library."""

_MAX_BYTES = 2**24
"""Size of the packed names of genes, unpacked."""

_ROOT = 65535


@dataclass(frozen=True)
class Library:
    """Genes that library sizes are counted over.

    Attributes
    ----------
    genes
        Their names.
    share
        (G,) part of all counts that each carries, 0 to 1.
    median_size
        Median library size of a location.
    """

    genes: tuple[str, ...]
    share: NDArray[np.float64]
    median_size: float

    @classmethod
    def of(cls, parts: Sequence[tuple[Sequence[str], Any]]) -> Library:
        """Take it from the gene names and (n, G) counts of one or more slides, over the genes that all have."""
        first = [str(g) for g in parts[0][0]]
        shared = set(first).intersection(*({str(g) for g in names} for names, _ in parts[1:]))
        genes = [g for g in first if g in shared]
        sums, sizes = np.zeros(len(genes)), []
        for names, counts in parts:
            found = gene_sums(counts)
            place = {str(g): k for k, g in enumerate(names)}
            columns = np.fromiter((place[g] for g in genes), dtype=np.int64, count=len(genes))
            sums += found[columns]
            sizes.append(np.asarray(counts.sum(axis=1), dtype=np.float64).ravel())
        total = sums.sum()
        median = float(np.median(np.concatenate(sizes))) if sum(map(len, sizes)) else 0.0
        return cls(tuple(genes), sums / total if total > 0 else sums, median)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for a model's record; shares keep four digits."""
        return {
            "n_genes": len(self.genes),
            "median_size": float(f"{self.median_size:.6g}"),
            "genes": list(self.genes),
            "share": [float(f"{v:.4g}") for v in self.share],
        }

    def packed(self) -> dict[str, Any]:
        """Return it as strings, for the provenance of tables: about 100 kB for 18 000 genes."""
        roots = np.round(np.sqrt(np.clip(self.share, 0, 1)) * _ROOT).astype("<u2")
        return {
            "n_genes": len(self.genes),
            "median_size": float(f"{self.median_size:.6g}"),
            "genes": _text(zlib.compress("\n".join(self.genes).encode(), 9)),
            "share": _text(zlib.compress(roots.tobytes(), 9)),
        }

    @classmethod
    def parse(cls, values: Any) -> Library | None:
        """Read what `to_dict` or `packed` returned; None of a model or table that does not state it."""
        try:
            genes, share = values["genes"], values["share"]
            if isinstance(genes, str):
                genes = _bytes(genes).decode().split("\n")
                share = np.square(np.frombuffer(_bytes(share), dtype="<u2").astype(np.float64) / _ROOT)
            share = np.asarray(share, dtype=np.float64)
            if len(genes) == 0 or share.shape != (len(genes),) or not (share >= 0).all():
                return None
            return cls(tuple(map(str, genes)), share / max(share.sum(), 1e-30), float(values["median_size"]))
        except (KeyError, TypeError, ValueError, zlib.error, binascii.Error):
            return None

    def share_of(self, genes: Iterable[str]) -> float:
        """Return the part of the counts that some genes carry."""
        wanted = {str(g) for g in genes}
        return float(self.share[[g in wanted for g in self.genes]].sum())


@dataclass(frozen=True)
class Overlap:
    """What a model's library and a measured one have in common.

    Attributes
    ----------
    n_model, n_measured, n_shared
        Numbers of genes.
    share_model, share_measured
        Part of either library's counts that the shared genes carry.
    """

    n_model: int
    n_measured: int
    n_shared: int
    share_model: float
    share_measured: float

    @property
    def same(self) -> bool:
        """Whether log1p CP10k over either is one scale."""
        return min(self.share_model, self.share_measured) >= MIN_SHARE

    @property
    def wider(self) -> bool:
        """Whether the measurement has nearly all of the model's genes, and others: it can be counted over these."""
        return self.share_model >= MIN_SHARE > self.share_measured and self.n_shared > 1

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "n_genes_model": self.n_model,
            "n_genes_measured": self.n_measured,
            "n_genes_shared": self.n_shared,
            "share_model": round(self.share_model, 4),
            "share_measured": round(self.share_measured, 4),
        }


def overlap(library: Library, genes: Sequence[str], sums: ArrayLike) -> Overlap:
    """Compare a model's library with measured genes.

    Parameters
    ----------
    library
        Of the model's training tables.
    genes, sums
        (G,) measured genes and the counts of each.

    Examples
    --------
    >>> import numpy as np
    >>> from stpred._core.expression.library import Library, overlap
    >>> whole = Library.of([(["A", "B", "C"], np.array([[80, 15, 5], [80, 15, 5]]))])
    >>> found = overlap(whole, ["B", "C"], [150, 50])
    >>> round(found.share_model, 2), found.share_measured, found.same, found.wider
    (0.2, 1.0, False, False)
    """
    known = set(library.genes)
    counts = np.asarray(sums, dtype=np.float64)
    shared = shared_columns(library, genes)
    total = counts.sum()
    return Overlap(
        len(known),
        len(genes),
        len(shared),
        library.share_of(genes),
        float(counts[shared].sum() / total) if total > 0 else len(shared) / max(len(genes), 1),
    )


def shared_columns(library: Library, genes: Sequence[str]) -> NDArray[np.int64]:
    """Return the positions of measured genes that are of a library."""
    known = set(library.genes)
    return np.flatnonzero([str(g) in known for g in genes])


def gene_sums(counts: Any) -> NDArray[np.float64]:
    """Return the (G,) counts of each gene, of dense or sparse counts."""
    if hasattr(counts, "tocsr") or isinstance(counts, np.ndarray):
        counts = Cut(counts)
    return np.asarray(counts.sum(axis=0), dtype=np.float64).ravel()


def shared_genes(slides: Mapping[str, tuple[Sequence[str], ArrayLike]]) -> tuple[list[str], dict[str, float]]:
    """Return the genes that all slides measured, in the order of the first, and the share of each one's counts in them.

    Parameters
    ----------
    slides
        Name to (G,) genes and the counts of each.
    """
    names = {s: [str(g) for g in genes] for s, (genes, _) in slides.items()}
    first, *others = names.values()
    common = set(first).intersection(*map(set, others))
    shares = {}
    for s, (_, sums) in slides.items():
        counts = np.asarray(sums, dtype=np.float64)
        inside = counts[[g in common for g in names[s]]].sum()
        shares[s] = float(inside / counts.sum()) if counts.sum() > 0 else 1.0
    return [g for g in first if g in common], shares


def describe_shares(shares: Mapping[str, float], n: Mapping[str, int], *, most: int = 4) -> str:
    """Describe for a message how many genes each of some slides measured, those with the smallest share first."""
    order = sorted(shares, key=lambda s: shares[s])
    some = [f"{s[:60]!r} {n[s]} genes, of whose counts these are {shares[s]:.0%}" for s in order[:most]]
    return "; ".join(some) + (f"; and {len(order) - most} more" if len(order) > most else "")


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _bytes(text: str) -> bytes:
    """Unpack, up to a size that no list of genes has."""
    return zlib.decompressobj().decompress(base64.b64decode(text, validate=True), _MAX_BYTES)

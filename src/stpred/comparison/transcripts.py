"""Transcripts in memory: where each lies in micrometres and of which gene it is, without controls and doubtful ones."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from stpred._core import keys
from stpred._core.checks import InputError, listing
from stpred._core.elements import affine_to, apply_affine
from stpred._core.expression.cut import Cut

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray
    from spatialdata import SpatialData

MIN_QV = 20.0
"""Quality below which the vendor counts no transcript for a cell."""
NUDGE_UM = 1e-6
"""By how much points are moved right and down, so that one on a border of two bins lies in one of them."""

_GENE_COLUMNS = ("feature_name", "gene", "target", "feature")
# Probes and codewords of the vendors that stand for no gene.
_CONTROL = re.compile(
    r"^(NegControl|Negative|NegPrb|BLANK|antisense|UnassignedCodeword|DeprecatedCodeword|Intergenic|GenomicControl"
    r"|SystemControl|FalseCode)",
    flags=re.I,
)


@dataclass(frozen=True)
class Transcripts:
    """Transcripts that count.

    Attributes
    ----------
    xy_um
        (n, 2) positions, moved by `NUDGE_UM`.
    codes
        (n,) int32 gene of each, as its position in `genes`.
    genes
        Sorted names, also of genes that lost all their transcripts to their quality.
    summary
        What was excluded, JSON-able.
    """

    xy_um: NDArray[np.float64]
    codes: NDArray[np.int32]
    genes: list[str]
    summary: dict[str, Any]


@dataclass(frozen=True)
class TranscriptsSide:
    """Points of transcripts; a location is a transcript."""

    key: str
    found: Transcripts
    noun: ClassVar[str] = "points"

    @property
    def genes(self) -> pd.Index:
        """Its genes."""
        import pandas as pd

        return pd.Index(self.found.genes, dtype=object)

    @property
    def region(self) -> str:
        """Name of the element."""
        return self.key

    @property
    def description(self) -> str:
        """Description in messages."""
        return f"{self.key!r} hold {len(self.found.codes)} transcripts"

    def check_counts(self) -> None:
        """A transcript counts once."""

    def counted(self) -> tuple[NDArray[np.float64], Cut]:
        """Return the (n, 2) positions in micrometres and the (n, all genes) counts, a one in each row."""
        from scipy.sparse import csr_matrix

        n = len(self.found.codes)
        ones = (np.ones(n, np.int32), self.found.codes, np.arange(n + 1))
        return self.found.xy_um, Cut(csr_matrix(ones, shape=(n, len(self.found.genes))))


def gene_column(points: Any) -> str | None:
    """Return the column of points that names the gene."""
    declared = points.attrs.get("spatialdata_attrs", {}).get("feature_key")
    return next((c for c in (declared, *_GENE_COLUMNS) if c is not None and c in points.columns), None)


def read_transcripts(
    sdata: SpatialData,
    points_key: str,
    *,
    gene_key: str | None = None,
    min_qv: float | None = MIN_QV,
    drop_controls: bool = True,
    coordinate_system: str = keys.UM,
) -> Transcripts:
    """Read points of transcripts into memory, without control probes and those whose ``qv`` is below `min_qv`.

    `gene_key` None takes the column that the points declare, or a usual name. Controls are found by their names and by
    the column ``is_gene`` where there is one.
    """
    import pandas as pd

    points = sdata.points[points_key]
    affine = affine_to(points, coordinate_system)
    if affine is None:
        raise InputError(
            f"Points {points_key!r} are not placed in the coordinate system {coordinate_system!r}; place them with "
            "spatialdata.transformations.set_transformation, or run stpred.pp.calibrate(sdata)."
        )
    gene = gene_key if gene_key is not None else gene_column(points)
    if gene is None or gene not in points.columns:
        raise InputError(
            f"Points {points_key!r} have no column of genes{'' if gene is None else ' ' + repr(gene)}; they have "
            f"{listing(points.columns)}; name it as `gene_key` of stpred.pp.aggregate."
        )
    extra = [c for c in ("qv", "is_gene") if c in points.columns]
    frame = points[list(dict.fromkeys(["x", "y", gene, *extra]))].compute()
    names, codes = _named(frame[gene])
    is_control = np.zeros(len(names), dtype=bool)
    if drop_controls:
        is_control = np.array([bool(_CONTROL.match(n)) for n in names], dtype=bool)
        if "is_gene" in extra:
            is_control[codes[~frame["is_gene"].to_numpy(dtype=bool)]] = True
    control = is_control[codes]
    low = np.zeros_like(control)
    if min_qv is not None and "qv" in extra:
        low = frame["qv"].to_numpy() < min_qv
    kept = ~(control | low)
    summary = {
        "n_transcripts": len(frame),
        "n_low_quality": int((low & ~control).sum()),
        "min_qv": min_qv if "qv" in extra else None,
        "n_controls": int(control.sum()),
        "controls": sorted(names[i] for i in np.unique(codes[control])),
    }
    if not kept.any():
        raise InputError(
            f"None of the {len(frame)} transcripts of {points_key!r} remains: {summary['n_controls']} are controls and "
            f"{summary['n_low_quality']} have a quality below {min_qv}."
        )
    # A gene that lost all its transcripts keeps its column, a control does not.
    genes = sorted(n for n, out in zip(names, is_control, strict=True) if not out)
    column = pd.Index(genes).get_indexer(names)[codes[kept]].astype(np.int32)
    xy = apply_affine(affine, frame[["x", "y"]].to_numpy(dtype=np.float64)[kept]) + NUDGE_UM
    return Transcripts(xy, column, genes, summary)


def _named(column: Any) -> tuple[list[str], NDArray[np.int64]]:
    """Return the names in a column (of text, bytes or categories) and the number of each row's."""
    import pandas as pd

    if isinstance(column.dtype, pd.CategoricalDtype):
        codes, names = column.cat.codes.to_numpy(dtype=np.int64), list(column.cat.categories)
    else:
        codes, names = pd.factorize(column)
        codes = codes.astype(np.int64)
    if (codes < 0).any():
        raise InputError(f"{int((codes < 0).sum())} transcripts have no gene in the column {column.name!r}.")
    return [n.decode() if isinstance(n, bytes) else str(n) for n in names], codes

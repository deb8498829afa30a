"""Which locations and genes are good enough to learn from, and which locations to predict on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from stpred._core.checks import InputError, fraction_of, positive, whole

REASONS = ("few_counts", "few_genes", "pen", "fill", "little_tissue", "fold", "blurred")
"""Why a location does not pass, the first that holds: what pen or fill hides is not known to be tissue or none."""


@dataclass(frozen=True)
class QC:
    """Limits on locations and genes; None judges nothing.

    Parameters
    ----------
    min_counts, min_genes
        Fewest counts, and genes with a count, of a location.
    min_tissue
        Least share of tissue in its tile.
    max_pen, max_fill
        Largest share of pen marks, and of fill of stitching or scanner, in its tile.
    max_fold
        Largest share of folded tissue in its tile: places where both stains are far above what they are around.
    min_sharpness
        Least ratio of detail below a micrometre to detail of a few micrometres in its tile: above 0.45 on slides in
        focus, 0.4 to 0.24 blurred by a micrometre, below 0.2 by two, and 0 in a tile of tissue without any detail. Not
        judged on images coarser than 1 um per pixel. Of locations that are denser than a quarter of the tile, one tile
        stands for all in a square of half its edge.
    tile_um
        Edge of the tile in micrometres.
    min_gene_counts, min_gene_share
        Fewest counts of a gene over all slides, and least share of the locations that have any.

    Raises
    ------
    InputError
        If a setting is impossible; the message names it and what would be possible.

    Notes
    -----
    sCellST's publication uses ``QC(min_counts=20, min_gene_counts=200, min_gene_share=0.1)``.

    Examples
    --------
    >>> import stpred as st
    >>> st.QC(min_counts=20).min_counts
    20
    """

    min_counts: int | None = None
    min_genes: int | None = None
    min_tissue: float | None = 0.1
    max_pen: float | None = 0.25
    max_fill: float | None = 0.25
    max_fold: float | None = 0.5
    min_sharpness: float | None = 0.3
    tile_um: float = 112.0
    min_gene_counts: int | None = None
    min_gene_share: float | None = None

    def __post_init__(self) -> None:
        for name in ("min_counts", "min_genes", "min_gene_counts"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, whole(value, name=f"QC.{name}"))
        for name in ("min_tissue", "max_pen", "max_fill", "max_fold", "min_gene_share"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, fraction_of(value, name=f"QC.{name}", zero=True))
        if self.min_sharpness is not None:
            object.__setattr__(self, "min_sharpness", positive(self.min_sharpness, name="QC.min_sharpness", unit=""))
        object.__setattr__(self, "tile_um", positive(self.tile_um, name="QC.tile_um", unit="micrometres"))

    @property
    def judges_image(self) -> bool:
        """Whether any limit is of what the image shows."""
        limits = (self.min_tissue, self.max_pen, self.max_fill, self.max_fold, self.min_sharpness)
        return any(limit is not None for limit in limits)

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, for JSON."""
        return asdict(self)

    @classmethod
    def of_image(cls, value: Any) -> QC | None:
        """Accept limits for locations that are predicted on, whose counts are not known; None and False: none."""
        if value is None or value is False:
            return None
        limits = cls.parse(value)
        if not limits.judges_image:
            raise InputError(
                "`qc` has no limit on what the image shows, and nothing else is known of a location that is predicted "
                "on: set one of min_tissue, max_pen, max_fill, max_fold and min_sharpness."
            )
        return limits

    @classmethod
    def parse(cls, value: Any) -> QC:
        """Accept limits, or True for the default ones."""
        if isinstance(value, cls):
            return value
        if value is True:
            return cls()
        raise InputError(f"`qc` must be a stpred.QC, or True for its defaults, got {value!r}.")

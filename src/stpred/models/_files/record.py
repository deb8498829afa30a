"""The record of a trained model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Record:
    """Metadata of a trained model; stored in ``config.json``.

    Attributes
    ----------
    name
        Name of the model, and suffix of its tables.
    genes
        Gene symbols, in output order.
    var
        Per-gene columns, name to values: ``cv_pearson``, ``cv_spearman``, ``rmax``, ``n_slides``, ``trusted``,
        ``gene_id``.
    encoder, tile, gene_rule
        Recipes (their ``to_dict``).
    target
        Output scale: ``"log1p_cp10k"``, ``"counts"``, ``"log_share"`` or ``"relative"``.
    pitch_um, region
        Median spacing and name of the training locations.
    reach_um
        Median distance of the furthest context neighbour in training; None without neighbours.
    cells
        Region whose cells form the training locations; None: their own tiles.
    training
        Slides, donors, numbers of locations, seed, choice of settings.
    library
        Genes that library sizes of training were counted over
        (``Library.to_dict``): ``genes``, the ``share`` of all counts of each,
        ``median_size`` of a location; or empty.
    intervals
        Conformal intervals calibrated on held-out slides, or empty: ``scale`` on which offsets are added
        (``"identity"`` or ``"sqrt"``), ``slides``, and for each of ``levels`` the genes' offsets ``low`` and ``high``,
        ``factor``, ``coverage`` and ``coverage_sd`` over slides.
    output_size
        Of relative outputs: root mean square of each gene's predictions over the training slides, by which several
        models are brought to one scale; or empty.
    hub
        Where a model of the Hugging Face hub was loaded from: ``repository``, ``revision`` (the commit) and
        ``model_id`` of what was there; or empty.

    Examples
    --------
    >>> import stpred as st
    >>> record = st.models.load("default").record
    >>> record.name, len(record.genes), record.target
    ('default', 3222, 'log1p_cp10k')
    """

    name: str
    genes: list[str]
    var: dict[str, list[Any]] = field(default_factory=dict)
    encoder: dict[str, Any] = field(default_factory=dict)
    tile: dict[str, Any] = field(default_factory=dict)
    gene_rule: dict[str, Any] = field(default_factory=dict)
    target: str = "log1p_cp10k"
    pitch_um: float | None = None
    region: str | None = None
    reach_um: float | None = None
    cells: str | None = None
    training: dict[str, Any] = field(default_factory=dict)
    library: dict[str, Any] = field(default_factory=dict)
    intervals: dict[str, Any] = field(default_factory=dict)
    output_size: list[float] = field(default_factory=list)
    hub: dict[str, Any] = field(default_factory=dict)

    @property
    def n_measured(self) -> int | None:
        """Number of genes in the denominator of a log share; None of other scales."""
        return self.training.get("n_measured")

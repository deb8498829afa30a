"""Profiles of whole slides from values of their locations: what adds up in a bulk measurement, and how."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stpred._core import targets

KIND = "pseudobulk"
"""Kind of a table of such profiles, in its provenance."""

WITHIN_SLIDES = "standardized_within_slides"
"""Whether what whole slides differ in was removed before the prediction, in the provenance of profiles."""

TOTAL = "total_counts"
"""Column of ``obs``: counts of all genes, also of those that are left out."""

AVERAGES = ("amounts", "values")

_HOW = {
    "counts": "sum",
    "relative": "mean",
    "cp10k": "log1p(mean)",
    targets.LOG_SHARE: "log(mean(exp))",
}
"""How the amounts of a scale are averaged; log1p CP10k otherwise."""


def how_averaged(scale: str, average: str) -> str:
    """Describe how values of a scale are averaged, such as ``"log1p(mean(expm1))"``."""
    return "mean" if average == "values" and scale != "counts" else _HOW.get(scale, "log1p(mean(expm1))")


def removes_slide_differences(config: object) -> bool:
    """Whether settings of a model, or of one of its members, standardise features within each slide.

    Examples
    --------
    >>> from stpred._core.expression.bulk import removes_slide_differences
    >>> removes_slide_differences({"members": [{"standardize": "slide"}]})
    True
    """
    if isinstance(config, Mapping):
        return config.get("standardize") == "slide" or any(removes_slide_differences(v) for v in config.values())
    return isinstance(config, (list, tuple)) and any(removes_slide_differences(v) for v in config)


class BulkSum:
    """The profile of a slide whose locations come in blocks.

    Parameters
    ----------
    n_genes
        Genes, as many as the values have columns.
    scale
        Of the values: ``"log1p_cp10k"``, ``"cp10k"`` (the same before the logarithm), ``"counts"``, ``"log_share"`` or
        ``"relative"``.
    average
        ``"amounts"``: of what logarithms are of; ``"values"``: of the values as they are.

    Examples
    --------
    >>> import numpy as np
    >>> from stpred._core.expression.bulk import BulkSum, bulk_profile
    >>> x = np.random.default_rng(0).random((7, 3))
    >>> bulk = BulkSum(3, scale="log1p_cp10k")
    >>> bulk.add(x[:4])
    >>> bulk.add(x[4:])
    >>> np.allclose(bulk.profile(), bulk_profile(x, scale="log1p_cp10k"))
    True
    """

    def __init__(self, n_genes: int, *, scale: str, average: str = "amounts") -> None:
        self.scale, self.average = scale, average
        self.n = 0
        self._sum = np.zeros(n_genes)

    def add(self, values: Any) -> None:
        """Add (n, G) values of locations, dense or sparse."""
        self.n += values.shape[0]
        self._sum += _amounts(values, self.scale, self.average).sum(axis=0)

    def __add__(self, other: BulkSum) -> BulkSum:
        """Return the sum over the locations of both."""
        both = BulkSum(len(self._sum), scale=self.scale, average=self.average)
        both.n, both._sum = self.n + other.n, self._sum + other._sum
        return both

    def profile(self) -> NDArray[np.float64]:
        """Return the (G,) profile; NaN where no location was added."""
        if self.n == 0:
            return np.full(len(self._sum), np.nan)
        return self._sum.copy() if self.scale == "counts" else _back(self._sum / self.n, self.scale, self.average)


def bulk_profile(values: Any, *, scale: str, average: str = "amounts") -> NDArray[np.float64]:
    """Return the (G,) profile of (N, G) dense or sparse values: counts summed, others averaged as amounts of RNA.

    `scale` and `average` as of :class:`BulkSum`.
    """
    if scale == "counts":
        return np.asarray(values.sum(axis=0), dtype=np.float64).ravel()
    return _back(_amounts(values, scale, average).mean(axis=0), scale, average)


def _amounts(values: Any, scale: str, average: str) -> NDArray[np.float64]:
    """Return what of the values adds up over locations."""
    dense = targets.dense(values)
    if average == "values" and scale != "counts":
        return np.log1p(dense.clip(min=0)) if scale == "cp10k" else dense
    if scale == targets.LOG_SHARE:
        counts: NDArray[np.float64] = np.exp(dense)
        return counts
    return np.expm1(dense) if scale == "log1p_cp10k" else dense


def _back(mean: NDArray[np.float64], scale: str, average: str) -> NDArray[np.float64]:
    """Return a mean of amounts on the scale of the profile."""
    if scale == "relative" or average == "values":
        return mean
    return np.log(mean) if scale == targets.LOG_SHARE else np.log1p(mean)

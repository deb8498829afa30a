"""Ridge regression on tile features, with optional context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stpred import metrics
from stpred._core.checks import InputError, one_of, positive
from stpred.models.base import BaseConfig, Model
from stpred.models.batch import Batch, Needs
from stpred.models.parts.context import check_context, context_needs, n_means, ring_means
from stpred.models.parts.sample import EXTREME

STANDARDIZE = ("train", "slide")
PENALTIES = tuple(float(p) for p in np.round(np.logspace(-3, 2, 11), 6))


@dataclass(frozen=True)
class RidgeConfig(BaseConfig):
    """Settings of :class:`Ridge`.

    Parameters
    ----------
    penalty
        Penalty per training location on standardised features; None chooses it from `penalties`, by holding donors out
        if there are several groups and by generalised cross-validation otherwise.
    penalties
        What None chooses from.
    n_components
        Principal components that the features are reduced to first; None keeps the features.
    context_um
        Radius in micrometres around each location within which the neighbours' features are averaged and added;
        several radii add the mean of each ring between them; None: the tile alone.
    standardize
        ``"slide"``: features by each slide's own mean and standard deviation, which removes shifts of stain and
        scanner; ``"train"``: by those of the training tiles, which keeps differences between whole slides.
    """

    family: ClassVar[str] = "ridge"
    penalty: float | None = None
    penalties: tuple[float, ...] = PENALTIES
    n_components: int | None = None
    context_um: float | tuple[float, ...] | None = None
    standardize: str = "slide"

    def __post_init__(self) -> None:
        one_of(self.standardize, STANDARDIZE, name="standardize")
        self.check_positive("penalty")
        check_context(self)
        if not self.penalties:
            raise InputError("`penalties` must name at least one penalty.")
        object.__setattr__(self, "penalties", tuple(positive(p, name="penalties") for p in self.penalties))
        if self.n_components is not None and (int(self.n_components) != self.n_components or self.n_components < 1):
            raise InputError(f"`n_components` must be a positive whole number or None, got {self.n_components!r}.")

    @property
    def needs(self) -> Needs:
        """Neighbours within the radius; slide statistics when each slide is standardised by itself."""
        return Needs(**context_needs(self.context_um), slide_statistics=self.standardize == "slide")


class Ridge(Model):
    """Standardise, optionally reduce by PCA, then ridge with intercept; all genes share one penalty.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(3, size_um=(500, 500), n_genes=20)
    >>> config = st.models.Ridge.Config(context_um=120)
    >>> model = st.tl.train(slides, config, genes=st.GeneRule("mean", n=20), shapes_key="spots")
    """

    mean: Tensor
    std: Tensor
    coef: Tensor
    intercept: Tensor
    Config: ClassVar[type[RidgeConfig]] = RidgeConfig
    config: RidgeConfig

    def __init__(self, config: BaseConfig, *, n_features: int, n_genes: int) -> None:
        super().__init__(config, n_features=n_features, n_genes=n_genes)
        width = n_features * (1 + n_means(self.config.context_um))
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("std", torch.ones(n_features))
        self.register_buffer("coef", torch.zeros(width, n_genes))
        self.register_buffer("intercept", torch.zeros(n_genes))

    def fit(self, batches: Sequence[Batch], *, groups: Sequence[str]) -> dict[str, Any]:
        """Choose the penalty and solve in closed form."""
        sources = np.concatenate([b.features[b.sources] for b in batches]).astype(np.float64)
        self.set_buffer("mean", sources.mean(axis=0))
        self.set_buffer("std", _safe(sources.std(axis=0)))
        x = [self.design(b) for b in batches]
        y = [np.asarray(b.y, dtype=np.float64) for b in batches]
        penalty, chosen_by = self.config.penalty, "given"
        scores: dict[str, float] = {}
        if penalty is None:
            penalty, scores, chosen_by = self._choose(x, y, list(groups))
        coef, intercept = _solve(
            np.concatenate(x), np.concatenate(y), penalties=(penalty,), rank=self.config.n_components
        )
        self.set_buffer("coef", coef[0])
        self.set_buffer("intercept", intercept[0])
        return {"penalty": penalty, "penalty_chosen_by": chosen_by, "penalty_scores": scores}

    def _choose(
        self, x: list[NDArray[np.float64]], y: list[NDArray[np.float64]], groups: list[str]
    ) -> tuple[float, dict[str, float], str]:
        """Return the best penalty, the score of each, and the criterion."""
        penalties, rank = self.config.penalties, self.config.n_components
        names = sorted(set(groups))
        if len(names) < 2:
            errors = _gcv(np.concatenate(x), np.concatenate(y), penalties=penalties, rank=rank)
            scores = dict(zip(map(str, penalties), (-errors).tolist(), strict=True))
            return penalties[int(np.argmin(errors))], scores, "generalised cross-validation"
        total = np.zeros((len(names), len(penalties)))
        for f, name in enumerate(names):
            train = [i for i, g in enumerate(groups) if g != name]
            rows, truth = np.concatenate([x[i] for i in train]), np.concatenate([y[i] for i in train])
            s, vt, projected, center_x, center_y = _decompose(rows, truth, rank)
            for i in (i for i, g in enumerate(groups) if g == name):
                z = (x[i] - center_x) @ vt.T
                for p, penalty in enumerate(penalties):
                    guess = (z * _shrink(s, penalty, len(rows))) @ projected + center_y
                    total[f, p] += np.nan_to_num(metrics.pearson(guess, y[i])).mean() / groups.count(name)
        mean = total.mean(axis=0)
        scores = dict(zip(map(str, penalties), mean.round(5).tolist(), strict=True))
        return penalties[int(np.argmax(mean))], scores, "leaving groups out"

    def predict(self, batch: Batch) -> tuple[NDArray[np.float32], None]:
        """Apply the linear map."""
        coef = self.coef.cpu().numpy().astype(np.float64)
        return (self.design(batch) @ coef + self.intercept.cpu().numpy()).astype(np.float32), None

    def design(self, batch: Batch) -> NDArray[np.float64]:
        """Return the (n, width) columns that `coef` weighs: own features and, with context, the neighbours' means."""
        mean, std = self.mean.cpu().numpy(), self.std.cpu().numpy()
        if self.config.standardize == "slide":
            sources = batch.features[batch.sources].astype(np.float64)
            mean, std = sources.mean(axis=0), _safe(sources.std(axis=0))
        own = ((batch.own - mean) / std).clip(-EXTREME, EXTREME)
        if self.config.context_um is None:
            return own
        around = [((ring - mean) / std).clip(-EXTREME, EXTREME) for ring in ring_means(batch)]
        return np.concatenate([own, *around], axis=1)


def _safe(std: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return standard deviations with 1 for constant features."""
    return np.where(std < 1e-8, 1.0, std)


def _decompose(
    x: NDArray[np.float64], y: NDArray[np.float64], rank: int | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return s and vt of the centred x, cut to `rank`, u' y of the centred y, and the centres of x and y."""
    center_x, center_y = x.mean(axis=0), y.mean(axis=0)
    x, y = x - center_x, y - center_y
    # The smaller of the two cross-products decides: many features (deep encoders) or many locations.
    wide = x.shape[0] < x.shape[1]
    values, vectors = np.linalg.eigh(x @ x.T if wide else x.T @ x)
    values, vectors = values[::-1], vectors[:, ::-1]
    keep = values > 1e-12 * max(values.max(initial=0.0), 1e-300)
    s, vectors = np.sqrt(values[keep]), vectors[:, keep]
    vt = (x.T @ vectors / s).T if wide else vectors.T
    projected = vectors.T @ y if wide else (vt @ (x.T @ y)) / s[:, None]
    if rank is not None:
        s, vt, projected = s[:rank], vt[:rank], projected[:rank]
    return s, vt, projected, center_x, center_y


def _shrink(s: NDArray[np.float64], penalty: float, n: int) -> NDArray[np.float64]:
    """Return the inverse singular values shrunk by a penalty per location."""
    return s / (s**2 + penalty * n)


def _solve(
    x: NDArray[np.float64], y: NDArray[np.float64], *, penalties: Sequence[float], rank: int | None
) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
    """Ridge with an unpenalised intercept for every penalty, from one decomposition."""
    s, vt, projected, center_x, center_y = _decompose(x, y, rank)
    coefs = [vt.T @ (_shrink(s, p, len(x))[:, None] * projected) for p in penalties]
    return coefs, [center_y - center_x @ coef for coef in coefs]


def _gcv(
    x: NDArray[np.float64], y: NDArray[np.float64], *, penalties: Sequence[float], rank: int | None
) -> NDArray[np.float64]:
    """Generalised cross-validation error, mean over genes scaled to unit variance, of every penalty."""
    y = (y - y.mean(axis=0)) / _safe(y.std(axis=0))
    s, _, projected, _, _ = _decompose(x, y, rank)
    outside = np.square(y).sum() - np.square(projected).sum()
    errors = []
    for p in penalties:
        shrink = s * _shrink(s, p, len(x))
        residual = np.square((1 - shrink)[:, None] * projected).sum() + outside
        freedom = 1 - (1 + shrink.sum()) / len(x)
        errors.append(residual / y.size / max(freedom, 1e-6) ** 2)
    return np.asarray(errors)

"""Kernel ridge regression on tile features: a Gaussian and a linear kernel, exact or on landmarks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stpred import metrics
from stpred._core.checks import InputError, one_of, positive
from stpred.models.base import MULTISCALE, BaseConfig
from stpred.models.batch import Batch, Needs
from stpred.models.parts.closed_form import (
    RANKS,
    TOTAL_VARIANCE,
    Rows,
    block_scale,
    check_weights,
    directions_of,
    kernel_ridge,
    onto,
    prepared_rows,
    thin_svd,
)
from stpred.models.parts.context import check_context, context_needs
from stpred.models.parts.standardised import STANDARDIZE, StandardisedModel

PENALTIES = tuple(float(p) for p in np.round(np.logspace(-2.5, 1, 8), 6))

MAX_EXACT = 20_000
"""Training locations up to which the kernel of all of them is solved, in 3.2 GB of memory; beyond it, landmarks."""

N_LANDMARKS = 4096
"""Landmarks of more training locations."""

CHOSEN_ON = 2000
"""Training locations that penalty, length scale and rank are chosen on, evenly spread over the slides."""

BLOCK = 4096
"""Rows of a kernel between locations and landmarks that are in memory at a time."""


@dataclass(frozen=True)
class KernelRidgeConfig(BaseConfig):
    """Settings of :class:`KernelRidge`.

    Parameters
    ----------
    penalty
        Penalty per training location; None chooses it from `penalties`, by holding donors out if there are several
        groups and by generalised cross-validation otherwise. Kernels have a diagonal of about 100.
    penalties
        What None chooses from.
    length_scale
        Of the Gaussian kernel, in units of the median distance between training locations; None chooses it from
        `length_scales`.
    length_scales
        What None chooses from.
    linear
        Share of the linear kernel in the sum of both, from 0 to below 1.
    n_components
        Principal components that the weighted features are reduced to first: they are stored for every landmark.
    n_landmarks
        Training locations that are stored, drawn evenly from the slides where there are more (Nystroem's method); at
        most 20 000. None: all of them up to 20 000, else 4096; a trained model has the number.
    context_um, standardize, block_weights, location_weights, rank
        As of :class:`Ridge`.

    Raises
    ------
    InputError
        If a setting is impossible; the message names it and what would be possible.
    """

    family: ClassVar[str] = "kernel_ridge"
    default_encoder: ClassVar[str] = MULTISCALE
    sparse_targets: ClassVar[bool] = True
    seeded: ClassVar[bool] = False
    penalty: float | None = None
    penalties: tuple[float, ...] = PENALTIES
    length_scale: float | None = None
    length_scales: tuple[float, ...] = (0.7, 1.0)
    linear: float = 0.5
    n_components: int = 256
    n_landmarks: int | None = None
    context_um: float | tuple[float, ...] | None = None
    standardize: str = "slide"
    block_weights: str | None = None
    location_weights: str | None = "depth"
    rank: int | str | None = "auto"

    def __post_init__(self) -> None:
        one_of(self.standardize, STANDARDIZE, name="standardize")
        self.check_positive("penalty", "length_scale")
        self.check_fraction("linear")
        self.check_whole("n_components", "n_landmarks")
        if self.n_landmarks is not None and self.n_landmarks > MAX_EXACT:
            raise InputError(f"`n_landmarks` must be at most {MAX_EXACT}, got {self.n_landmarks}.")
        for name in ("penalties", "length_scales"):
            if not (values := getattr(self, name)):
                raise InputError(f"`{name}` must name at least one.")
            object.__setattr__(self, name, tuple(positive(v, name=name) for v in values))
        check_context(self)
        check_weights(self)

    @property
    def needs(self) -> Needs:
        """Neighbours within the radii; slide statistics when each slide is standardised by itself."""
        return Needs(**context_needs(self.context_um), slide_statistics=self.standardize == "slide")


class KernelRidge(StandardisedModel):
    """Ridge in the feature space of a Gaussian plus a linear kernel; all genes share penalty and length scale.

    Notes
    -----
    Stored are the landmarks' principal components and their coefficients, ``n_landmarks * (n_components + n_genes)``
    numbers of four bytes, and the components' loadings. Locations without library sizes (made from arrays) need
    ``location_weights=None``.

    References
    ----------
    Saunders, Gammerman & Vovk (1998), Ridge regression learning algorithm in dual variables, ICML. Williams & Seeger
    (2001), Using the Nystroem method to speed up kernel machines, NeurIPS 13.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(3, size_um=(500, 500), n_genes=20)
    >>> model = st.tl.train(slides, "kernel_ridge", genes=st.GeneRule("mean", n=20), shapes_key="spots")
    >>> model.record.training["penalty_chosen_by"]
    'leaving groups out'
    """

    loadings: Tensor
    landmarks: Tensor
    coef: Tensor
    intercept: Tensor
    gamma: Tensor
    Config: ClassVar[type[KernelRidgeConfig]] = KernelRidgeConfig
    config: KernelRidgeConfig

    def __init__(self, config: BaseConfig, *, n_features: int, n_genes: int) -> None:
        super().__init__(config, n_features=n_features, n_genes=n_genes)
        m, k = self.config.n_landmarks or 0, min(self.config.n_components, self.width)
        self.register_buffer("loadings", torch.zeros(self.width, k))
        self.register_buffer("landmarks", torch.zeros(m, k))
        self.register_buffer("coef", torch.zeros(m, n_genes))
        self.register_buffer("intercept", torch.zeros(n_genes))
        self.register_buffer("gamma", torch.ones(()))

    def fit(self, batches: Sequence[Batch], *, groups: Sequence[str]) -> dict[str, Any]:
        """Choose weights of blocks, penalty, length scale and rank, and solve in closed form."""
        rows, scale, weighed = prepared_rows(self, batches, groups)
        if scale is None:
            scale = block_scale([slice(0, self.width)], np.ones(1))
        rows = rows.scaled(scale)
        loadings = _loadings(np.concatenate(rows.thinned(CHOSEN_ON).x), self.config.n_components)
        rows = rows.mapped(lambda x: x @ loadings)
        few = rows.thinned(CHOSEN_ON)
        median = _median_distance(np.concatenate(few.x))
        chosen = self._choose(few, median)
        self.set_buffer("gamma", np.asarray(0.5 / (chosen["length_scale"] * median) ** 2))
        x, y, q = rows.joined()
        at = self._landmarks(rows)
        if len(at) == len(x):
            coef, intercept = kernel_ridge(self._kernel(x, x), y, q, chosen["penalty"], rank=chosen["rank"])
        else:
            parts = lambda: ((self._kernel(x[i], x[at]), i) for i in _blocks(len(x)))  # noqa: E731
            coef, intercept = _nystroem(self._kernel(x[at], x[at]), parts, y, q, chosen["penalty"], rank=chosen["rank"])
        self.config = replace(self.config, n_landmarks=len(at), n_components=loadings.shape[1])
        for name, value in (("loadings", scale[:, None] * loadings), ("landmarks", x[at]), ("coef", coef)):
            self.set_buffer(name, value)
        self.set_buffer("intercept", intercept)
        return {**chosen, "n_landmarks": len(at), **weighed}

    def _landmarks(self, rows: Rows) -> NDArray[np.int64]:
        """Return training locations that are stored: all, or as many as are wanted, drawn evenly from the slides."""
        sizes = np.array(rows.sizes)
        n = int(sizes.sum())
        most = self.config.n_landmarks or (MAX_EXACT if n <= MAX_EXACT else N_LANDMARKS)
        if n <= most:
            return np.arange(n)
        rng = np.random.default_rng(0)
        order = np.concatenate([(rng.permutation(k) + 0.5) / k for k in sizes])
        return np.sort(np.argsort(order, kind="stable")[:most])

    def _kernel(
        self, x: NDArray[np.float64], landmarks: NDArray[np.float64], gamma: float | None = None
    ) -> NDArray[np.float64]:
        """Return the (n, m) kernel between rows of components."""
        linear = self.config.linear
        found = x @ landmarks.T
        kernel = found * -2
        kernel += np.square(x).sum(axis=1)[:, None]
        kernel += np.square(landmarks).sum(axis=1)
        np.maximum(kernel, 0, out=kernel)
        kernel *= -(float(self.gamma) if gamma is None else gamma)
        np.exp(kernel, out=kernel)
        kernel *= (1 - linear) * TOTAL_VARIANCE
        if linear:
            found *= linear
            kernel += found
        return kernel

    def _choose(self, rows: Rows, median: float) -> dict[str, Any]:
        """Return penalty, length scale and rank, how they were chosen, and the scores."""
        config = self.config
        penalties = config.penalties if config.penalty is None else (config.penalty,)
        lengths = config.length_scales if config.length_scale is None else (config.length_scale,)
        ranks = RANKS if config.rank == "auto" else (config.rank,)
        one_donor = len(set(rows.groups)) < 2
        if one_donor and config.rank == "auto":
            ranks = (None,)
        if len(penalties) == len(lengths) == len(ranks) == 1:
            by = "given"
            best, scores = (0, 0, 0), np.full((1, 1, 1), np.nan)
        else:
            x = np.concatenate(rows.x)
            score = _gcv if one_donor else _donor_scores
            kernels = (self._kernel(x, x, 0.5 / (length * median) ** 2) for length in lengths)
            scores = np.stack([score(k, rows, penalties, ranks) for k in kernels])
            by = "generalised cross-validation" if one_donor else "leaving groups out"
            best = np.unravel_index(int(np.argmax(scores)), scores.shape)  # type: ignore[assignment]
        f, r, p = best
        return {
            "penalty": penalties[p],
            "length_scale": lengths[f],
            "rank": ranks[r],
            "penalty_chosen_by": by,
            "penalty_scores": _scores(penalties, scores[f, r]),
            "length_scale_scores": _scores(lengths, scores.max(axis=(1, 2))),
            "rank_scores": _scores(ranks, scores[f].max(axis=1)),
        }

    def predict(self, batch: Batch) -> tuple[NDArray[np.float32], None]:
        """Apply the kernel to the landmarks, some thousand locations at a time."""
        design = self.design(batch)
        loadings, landmarks, coef, intercept = (
            t.cpu().numpy().astype(np.float64) for t in (self.loadings, self.landmarks, self.coef, self.intercept)
        )
        out = np.empty((len(design), self.n_genes), dtype=np.float32)
        for rows in _blocks(len(design)):
            out[rows] = self._kernel(design[rows] @ loadings, landmarks) @ coef + intercept
        return out, None


def _blocks(n: int) -> Iterator[slice]:
    return (slice(i, min(i + BLOCK, n)) for i in range(0, n, BLOCK))


def _scores(values: Sequence[Any], found: NDArray[np.float64]) -> dict[str, float]:
    """Return the score of each value by its name; nothing where none was scored."""
    names = ["all" if v is None else str(v) for v in values]
    return {k: round(float(v), 5) for k, v in zip(names, found, strict=True) if np.isfinite(v)}


def _loadings(x: NDArray[np.float64], n_components: int) -> NDArray[np.float64]:
    """Return the (width, k) loadings of the principal components of rows."""
    return thin_svd(x - x.mean(axis=0))[2][:n_components].T


def _median_distance(x: NDArray[np.float64]) -> float:
    """Return the median distance between rows; 1 where they coincide."""
    from scipy.spatial.distance import pdist

    found = float(np.median(pdist(x))) if len(x) > 1 else 0.0
    return found if found > 0 else 1.0


def _centred(
    kernel: NDArray[np.float64], weights: NDArray[np.float64], across: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Return a kernel of training locations, and that of others with them, centred by the weighted mean."""
    q = weights / weights.sum()
    middle = kernel @ q
    whole = q @ middle
    inside = kernel - middle - middle[:, None] + whole
    return inside, None if across is None else across - middle - (across @ q)[:, None] + whole


def _donor_scores(
    kernel: NDArray[np.float64], rows: Rows, penalties: Sequence[float], ranks: Sequence[Any]
) -> NDArray[np.float64]:
    """Return the (ranks, penalties) mean correlation over donors that are held out."""
    y = np.concatenate(rows.y)
    weights = np.ones(len(y)) if rows.weights is None else np.concatenate(rows.weights)
    slide = np.repeat(np.arange(len(rows.x)), [len(x) for x in rows.x])
    total = np.zeros((len(ranks), len(penalties)))
    folds = rows.folds()
    for train, test in folds:
        a, b = np.flatnonzero(np.isin(slide, train)), np.flatnonzero(np.isin(slide, test))
        inside, across = _centred(kernel[np.ix_(a, a)], weights[a], kernel[np.ix_(b, a)])
        root = np.sqrt(weights[a])
        center = weights[a] @ y[a] / weights[a].sum()
        values, vectors = np.linalg.eigh(root[:, None] * inside * root)
        values = values.clip(0)
        projected = vectors.T @ (root[:, None] * (y[a] - center))
        z = (across * root) @ vectors
        for p, penalty in enumerate(penalties):
            shrink = 1 / (values + penalty * len(a))
            guess = (z * shrink) @ projected
            directions = None if tuple(ranks) == (None,) else directions_of((values * shrink)[:, None] * projected)
            for r, rank in enumerate(ranks):
                kept = guess if directions is None or rank is None else onto(guess, directions[:, :rank])
                for s in test:
                    there = slide[b] == s
                    found = metrics.pearson(kept[there] + center, y[b][there])
                    total[r, p] += np.nan_to_num(found).mean() / len(test) / len(folds)
    return total


def _gcv(
    kernel: NDArray[np.float64], rows: Rows, penalties: Sequence[float], ranks: Sequence[Any]
) -> NDArray[np.float64]:
    """Return (ranks, penalties) minus the generalised cross-validation error, which knows no rank."""
    y = np.concatenate(rows.y)
    y = y / np.where(y.std(axis=0) < 1e-8, 1.0, y.std(axis=0))
    weights = np.ones(len(y)) if rows.weights is None else np.concatenate(rows.weights)
    root = np.sqrt(weights)
    values, vectors = np.linalg.eigh(root[:, None] * _centred(kernel, weights)[0] * root)
    values = values.clip(0)
    projected = vectors.T @ (root[:, None] * (y - weights @ y / weights.sum()))
    errors = []
    for penalty in penalties:
        shrink = values / (values + penalty * len(y))
        residual = np.square((1 - shrink)[:, None] * projected).sum() / y.size
        errors.append(residual / max(1 - (1 + shrink.sum()) / len(y), 1e-6) ** 2)
    return np.tile(-np.asarray(errors), (len(ranks), 1))


def _nystroem(
    landmarks: NDArray[np.float64],
    parts: Any,
    y: NDArray[np.float64],
    weights: NDArray[np.float64] | None,
    penalty: float,
    *,
    rank: int | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (m, G) coefficients of landmarks and the (G,) intercept.

    Parameters
    ----------
    landmarks
        (m, m) their kernel.
    parts
        Called, gives the kernel between some rows and the landmarks, and which rows.
    y, weights, penalty, rank
        As of :func:`kernel_ridge`.
    """
    from scipy.linalg import cho_factor, cho_solve

    n, m = len(y), len(landmarks)
    weights = np.ones(n) if weights is None else weights
    q = weights / weights.sum()
    center = q @ y
    middle = sum(q[i] @ k for k, i in parts())
    gram, cross = np.zeros((m, m)), np.zeros((m, y.shape[1]))
    for k, i in parts():
        k = k - middle
        weighted = weights[i, None] * k
        gram += k.T @ weighted
        cross += weighted.T @ (y[i] - center)
    system = gram + penalty * n * landmarks
    # Landmarks that all but coincide leave the system singular.
    system[np.diag_indices(m)] += 1e-8 * np.trace(system) / m
    coef = cho_solve(cho_factor(system, lower=True, overwrite_a=True, check_finite=False), cross)
    if rank is not None:
        values, vectors = np.linalg.eigh(coef.T @ gram @ coef)
        coef = onto(coef, vectors[:, ::-1][:, :rank])
    return coef, center - middle @ coef

"""Ridge regression on tile features, with optional context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stpred import metrics
from stpred._core.checks import InputError, one_of, positive
from stpred.models.base import MULTISCALE, BaseConfig, Differentiable
from stpred.models.batch import Batch, Needs
from stpred.models.parts.closed_form import (
    RANKS,
    Rows,
    block_scale,
    check_weights,
    columns_of,
    directions_of,
    onto,
    prepared_rows,
)
from stpred.models.parts.context import check_context, context_needs, n_means
from stpred.models.parts.cross_products import CrossProducts, spectrum, total
from stpred.models.parts.standardised import STANDARDIZE, StandardisedModel, safe

Decomposed = tuple[NDArray[np.float64], ...]
"""Singular values s, vt, u' y, and the centres of x and y."""

Products = list[tuple[list[int], CrossProducts]]
"""Slides of folds of donors, and their sums of products."""

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
    block_weights
        How blocks of features weigh, those of several encoders and those of the tile and of each ring around it:
        ``"chosen"`` by leaving donors out, ``"equal"``, or by their ``"width"``, which is all features side by side.
        None: ``"chosen"`` with several encoders or radii, otherwise ``"width"``. Weighted features have variances that
        add up to 100, which is what `penalty` refers to then.
    location_weights
        ``"depth"``: training locations weigh by the square root of their library size, since few counts are noise;
        None: all alike.
    rank
        Number of combinations of genes that are predicted, those which vary most in what the features explain; genes
        that go together then share their noise, and the stored model is small. ``"auto"`` chooses it, with the penalty
        (the trained model's settings hold the number); None: each gene by itself.

    Raises
    ------
    InputError
        If a setting is impossible; the message names it and what would be possible.
    """

    family: ClassVar[str] = "ridge"
    default_encoder: ClassVar[str] = MULTISCALE
    sparse_targets: ClassVar[bool] = True
    differentiable: ClassVar[Differentiable | None] = "linear"
    penalty: float | None = None
    penalties: tuple[float, ...] = PENALTIES
    n_components: int | None = None
    context_um: float | tuple[float, ...] | None = None
    standardize: str = "slide"
    block_weights: str | None = None
    location_weights: str | None = None
    rank: int | str | None = None

    def __post_init__(self) -> None:
        one_of(self.standardize, STANDARDIZE, name="standardize")
        self.check_positive("penalty")
        check_context(self)
        check_weights(self)
        if not self.penalties:
            raise InputError("`penalties` must name at least one penalty.")
        object.__setattr__(self, "penalties", tuple(positive(p, name="penalties") for p in self.penalties))
        if self.n_components is not None and (int(self.n_components) != self.n_components or self.n_components < 1):
            raise InputError(f"`n_components` must be a positive whole number or None, got {self.n_components!r}.")

    @property
    def needs(self) -> Needs:
        """Neighbours within the radius; slide statistics when each slide is standardised by itself."""
        return Needs(**context_needs(self.context_um), slide_statistics=self.standardize == "slide")


class Ridge(StandardisedModel):
    """Standardise, optionally reduce by PCA, then ridge with intercept; all genes share one penalty.

    References
    ----------
    Hoerl & Kennard (1970), Ridge regression: biased estimation for nonorthogonal problems, Technometrics 12:55.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(3, size_um=(500, 500), n_genes=20)
    >>> config = st.models.Ridge.Config(context_um=120)
    >>> model = st.tl.train(slides, config, genes=st.GeneRule("mean", n=20), shapes_key="spots")
    """

    coef: Tensor
    directions: Tensor | None
    intercept: Tensor
    Config: ClassVar[type[RidgeConfig]] = RidgeConfig
    config: RidgeConfig

    def __init__(self, config: BaseConfig, *, n_features: int, n_genes: int) -> None:
        super().__init__(config, n_features=n_features, n_genes=n_genes)
        rank = self.config.rank if isinstance(self.config.rank, int) else None
        self.register_buffer("coef", torch.zeros(self.width, n_genes if rank is None else rank))
        self.register_buffer("directions", None if rank is None else torch.zeros(rank, n_genes))
        self.register_buffer("intercept", torch.zeros(n_genes))

    @property
    def weights(self) -> Tensor:
        """(width, n_genes) weights of the standardised columns."""
        return self.coef if self.directions is None else self.coef @ self.directions

    def column_scale(self, blocks: Sequence[int] | None) -> NDArray[np.float64] | None:
        """Return what the columns were multiplied by in training, of encoders that are `blocks` wide; None: 1."""
        weights = self.record.training.get("block_weights")
        if weights is None:
            return None
        columns = columns_of(blocks, self.n_features, 1 + n_means(self.config.context_um))
        return block_scale(columns, np.asarray(weights, dtype=np.float64))

    def set_weights(self, weights: NDArray[np.float64], intercept: NDArray[np.float64]) -> None:
        """Set (width, n_genes) weights; those of another rank than the settings say become each gene's own."""
        rank = self.config.rank
        if not isinstance(rank, int):
            return self._set(weights, None, intercept)
        u, s, vt = np.linalg.svd(weights, full_matrices=False)
        kept = min(rank, len(s))
        if (s[kept:] > 1e-6 * s[0]).any():
            self.config = replace(self.config, rank=None)
            return self._set(weights, None, intercept)
        return self._set(u[:, :kept] * s[:kept], vt[:kept], intercept)

    def fit(self, batches: Sequence[Batch], *, groups: Sequence[str]) -> dict[str, Any]:
        """Choose the penalty and solve in closed form."""
        rows, scale, weighed = prepared_rows(self, batches, groups)
        rows = rows.scaled(scale)
        products = rows.products() if rows.one_by_one else None
        chosen = self._choose(rows, products)
        coef, directions, intercept = _solve(
            self._decomposed(rows, products),
            sum(rows.sizes),
            penalty=chosen["penalty"],
            n_directions=chosen.get("rank"),
        )
        if self.config.rank is not None:
            self.config = replace(self.config, rank=chosen["rank"])
        self._set(coef if scale is None else coef * scale[:, None], directions, intercept)
        return chosen | weighed

    def _set(
        self, coef: NDArray[np.float64], directions: NDArray[np.float64] | None, intercept: NDArray[np.float64]
    ) -> None:
        """Set the weights, or with (r, n_genes) directions their factors, filled up to the rank of the settings."""
        if directions is not None and isinstance(self.config.rank, int):
            missing = self.config.rank - len(directions)
            coef, directions = np.pad(coef, ((0, 0), (0, missing))), np.pad(directions, ((0, missing), (0, 0)))
        self.set_buffer("coef", coef)
        if directions is None:
            self.directions = None
        else:
            self.set_buffer("directions", directions)
        self.set_buffer("intercept", intercept)

    def _decomposed(self, rows: Rows, products: Products | None, train: list[int] | None = None) -> Decomposed:
        """Decompose the rows of all slides, or of those of training, from sums of products where there are any."""
        rank = self.config.n_components
        if products is not None:
            parts = [p for slides, p in products if train is None or set(slides) <= set(train)]
            return _decompose_products(total(parts), rank)
        x, y, weights = (rows if train is None else rows.of(train)).joined()
        return _decompose(x, y, rank, weights)

    def _choose(self, rows: Rows, products: Products | None) -> dict[str, Any]:
        """Return the penalty and, where asked for, the rank, how they were chosen, and the score of each."""
        config = self.config
        ranks = RANKS if config.rank == "auto" else (config.rank,)
        penalties = config.penalties if config.penalty is None else (config.penalty,)
        with_rank: dict[str, Any] = {} if config.rank is None else {"rank": ranks[0]}
        if config.penalty is not None and len(ranks) == 1:
            return {"penalty": config.penalty, "penalty_chosen_by": "given", "penalty_scores": {}, **with_rank}
        if len(set(rows.groups)) < 2:
            if products is None:
                errors = _gcv(*rows.joined(), penalties=penalties, rank=config.n_components)
            else:
                errors = _gcv_of_products(total([p for _, p in products]), penalties, config.n_components)
            scores = dict(zip(map(str, penalties), (-errors).tolist(), strict=True))
            if config.rank == "auto":
                with_rank = {"rank": None, "rank_chosen_by": "nothing, for there is one donor only"}
            return {
                "penalty": penalties[int(np.argmin(errors))],
                "penalty_chosen_by": "generalised cross-validation",
                "penalty_scores": scores,
                **with_rank,
            }
        every = range(len(rows.sizes))
        folds = rows.folds() if products is None else [([i for i in every if i not in t], t) for t, _ in products]
        found = np.mean(
            [
                self._fold_scores(rows, self._decomposed(rows, products, train), train, test, penalties, ranks)
                for train, test in folds
            ],
            axis=0,
        )
        r, p = np.unravel_index(int(np.argmax(found)), found.shape)
        if config.rank is not None:
            with_rank = {"rank": ranks[r]}
        if len(ranks) > 1:
            names = ["all" if k is None else str(k) for k in ranks]
            with_rank["rank_scores"] = dict(zip(names, found.max(axis=1).round(5).tolist(), strict=True))
        scores = dict(zip(map(str, penalties), found[r].round(5).tolist(), strict=True))
        by = "leaving groups out"
        return {"penalty": penalties[p], "penalty_chosen_by": by, "penalty_scores": scores, **with_rank}

    def _fold_scores(
        self,
        rows: Rows,
        decomposed: Decomposed,
        train: list[int],
        test: list[int],
        penalties: tuple[float, ...],
        ranks: Sequence[Any],
    ) -> NDArray[np.float64]:
        """Return the (ranks, penalties) mean correlation on the slides of a donor, with models of the others."""
        scores = np.zeros((len(ranks), len(penalties)))
        s, vt, projected, center_x, center_y = decomposed
        shrunk = [_shrink(s, penalty, sum(rows.sizes[i] for i in train)) for penalty in penalties]
        most = max((r for r in ranks if r is not None), default=0)
        directions = [directions_of((s * q)[:, None] * projected)[:, :most].copy() if most else None for q in shrunk]
        for i in test:
            z, y = (rows.x[i] - center_x) @ vt.T, rows.y[i]
            for p, shrink in enumerate(shrunk):
                guess = (z * shrink) @ projected
                for r, rank in enumerate(ranks):
                    kept = guess if directions[p] is None or rank is None else onto(guess, directions[p][:, :rank])  # type: ignore[index]
                    found = metrics.pearson(kept + center_y, y)
                    scores[r, p] += np.nan_to_num(found).mean() / len(test)
        return scores

    def predict(self, batch: Batch) -> tuple[NDArray[np.float32], None]:
        """Apply the linear map."""
        values = self.design(batch) @ self.coef.cpu().numpy().astype(np.float64)
        if self.directions is not None:
            values = values @ self.directions.cpu().numpy().astype(np.float64)
        return (values + self.intercept.cpu().numpy()).astype(np.float32), None


def _decompose(
    x: NDArray[np.float64], y: NDArray[np.float64], rank: int | None, weights: NDArray[np.float64] | None = None
) -> Decomposed:
    """Return s and vt of the centred x, cut to `rank`, u' y of the centred y, and the centres of x and y."""
    if weights is None:
        center_x, center_y = x.mean(axis=0), y.mean(axis=0)
        x, y = x - center_x, y - center_y
    else:
        center_x, center_y = weights @ x / weights.sum(), weights @ y / weights.sum()
        root = np.sqrt(weights)[:, None]
        x, y = root * (x - center_x), root * (y - center_y)
    # The smaller of the two cross-products decides: many features (deep encoders) or many locations.
    wide = x.shape[0] < x.shape[1]
    s, vectors = spectrum(x @ x.T if wide else x.T @ x)
    vt = (x.T @ vectors / s).T if wide else vectors.T
    projected = vectors.T @ y if wide else (vt @ (x.T @ y)) / s[:, None]
    return s[:rank], vt[:rank], projected[:rank], center_x, center_y


def _decompose_products(sums: CrossProducts, rank: int | None) -> Decomposed:
    """Return what :func:`_decompose` returns, from sums of products."""
    xx, xy, _ = sums.centred()
    s, vectors = spectrum(xx)
    return s[:rank], vectors.T[:rank], ((vectors.T @ xy) / s[:, None])[:rank], *sums.centers


def _shrink(s: NDArray[np.float64], penalty: float, n: int) -> NDArray[np.float64]:
    """Return the inverse singular values shrunk by a penalty per location."""
    return s / (s**2 + penalty * n)


def _solve(
    decomposed: Decomposed, n: int, *, penalty: float, n_directions: int | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None, NDArray[np.float64]]:
    """Ridge with an unpenalised intercept: weights, or those of some directions and the directions; and intercept."""
    s, vt, projected, center_x, center_y = decomposed
    shrink = _shrink(s, penalty, n)
    if n_directions is None:
        coef = vt.T @ (shrink[:, None] * projected)
        return coef, None, center_y - center_x @ coef
    directions = directions_of((s * shrink)[:, None] * projected)[:, :n_directions]
    coef = vt.T @ (shrink[:, None] * (projected @ directions))
    return coef, directions.T, center_y - (center_x @ coef) @ directions.T


def _gcv(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    weights: NDArray[np.float64] | None = None,
    *,
    penalties: Sequence[float],
    rank: int | None,
) -> NDArray[np.float64]:
    """Generalised cross-validation error, mean over genes scaled to unit variance, of every penalty."""
    y = (y - y.mean(axis=0)) / safe(y.std(axis=0))
    s, _, projected, _, center = _decompose(x, y, rank, weights)
    whole = np.square(y).sum() if weights is None else (weights[:, None] * np.square(y - center)).sum()
    return _gcv_errors(s, projected, float(whole), len(x), penalties)


def _gcv_of_products(sums: CrossProducts, penalties: Sequence[float], rank: int | None) -> NDArray[np.float64]:
    """Return what :func:`_gcv` returns, from sums of products; with weights, genes are scaled by weighted variances."""
    s, _, projected, *_ = _decompose_products(sums, rank)
    square = sums.centred()[2]
    spread = safe(np.sqrt(square / sums.weight))
    return _gcv_errors(s, projected / spread, float((square / spread**2).sum()), sums.n, penalties)


def _gcv_errors(
    s: NDArray[np.float64], projected: NDArray[np.float64], whole: float, n: int, penalties: Sequence[float]
) -> NDArray[np.float64]:
    """Return the errors from (k,) singular values, (k, n_genes) projected targets and the sum of their squares."""
    outside = whole - np.square(projected).sum()
    errors = []
    for p in penalties:
        shrink = s * _shrink(s, p, n)
        residual = np.square((1 - shrink)[:, None] * projected).sum() + outside
        freedom = 1 - (1 + shrink.sum()) / n
        errors.append(residual / (n * projected.shape[1]) / max(freedom, 1e-6) ** 2)
    return np.asarray(errors)

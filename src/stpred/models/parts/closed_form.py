"""What models of closed form share: weights of locations and blocks of features, reduced rank, kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stpred import metrics
from stpred._core.checks import InputError, one_of
from stpred._core.lazy import Lazily
from stpred._core.targets import dense
from stpred.models.batch import Batch
from stpred.models.parts.context import n_means
from stpred.models.parts.cross_products import CrossProducts, dealt, one_by_one

LOCATION_WEIGHTS = ("depth",)
BLOCK_WEIGHTS = ("equal", "chosen", "width")

RANKS = (3, 5, 8, 12, 20, 40, None)
"""Numbers of combinations of genes that ``rank="auto"`` chooses from; None: each gene by itself."""

TOTAL_VARIANCE = 100.0
"""What the variances of weighted features add up to, so that penalties do not depend on the number of features."""

MAX_ROWS = 750
"""Training locations that block weights are chosen on, evenly spread over the slides: kernels are as large as their
square."""

MAX_GENES = 250
"""Genes that block weights are chosen by, those that vary most: of thousands it would take most of the training."""

MAX_FOLDS = 3
"""Folds of donors that block weights are chosen on."""

_FACTORS = (0.0, 1 / 3, 3.0)
_ROUNDS = 2
_GAIN = 3e-4
"""Least gain of the mean correlation that a change of weights is worth."""

_BOUNDS = (0.05, 20.0)


@dataclass(frozen=True)
class Rows:
    """Training locations, slide by slide.

    Attributes
    ----------
    x
        (n, width) float64 features of each slide; where slides are taken one by one, :class:`Lazily`.
    y
        (n, n_genes) float64 targets; likewise.
    weights
        (n,) weights of the locations, 1 on average over all; None: all alike.
    groups
        Donor of each slide.
    sizes
        Number of locations of each slide.
    """

    x: Sequence[NDArray[np.float64]]
    y: Sequence[NDArray[np.float64]]
    weights: list[NDArray[np.float64]] | None
    groups: list[str]
    sizes: list[int]

    @property
    def one_by_one(self) -> bool:
        """Whether slides are taken one by one, for they do not fit into memory at once."""
        return isinstance(self.x, Lazily)

    def of(self, slides: Sequence[int]) -> Rows:
        """Return some slides."""
        return Rows(
            _picked(self.x, slides),
            _picked(self.y, slides),
            None if self.weights is None else [self.weights[i] for i in slides],
            [self.groups[i] for i in slides],
            [self.sizes[i] for i in slides],
        )

    def mapped(self, function: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Rows:
        """Return the rows with what a function makes of the features of each slide."""
        return replace(self, x=self.x.mapped(function) if isinstance(self.x, Lazily) else [function(x) for x in self.x])

    def scaled(self, scale: NDArray[np.float64] | None) -> Rows:
        """Return the rows with each feature multiplied."""
        return self if scale is None else self.mapped(lambda x: x * scale)

    def thinned(self, most: int) -> Rows:
        """Return at most about `most` locations, evenly spread over the slides."""
        step = -(-sum(self.sizes) // most)
        if step <= 1:
            return self if not self.one_by_one else replace(self, x=list(self.x), y=list(self.y))
        weights = None if self.weights is None else [w[::step] for w in self.weights]
        copy = self.one_by_one  # and not a view that would keep all of a slide
        x, y = ([np.array(v[::step], copy=copy or None) for v in values] for values in (self.x, self.y))
        return Rows(x, y, weights, self.groups, [len(v) for v in x])

    def folds(self) -> list[tuple[list[int], list[int]]]:
        """Return the slides of training and of test, each donor held out once."""
        names = sorted(set(self.groups))
        return [
            ([i for i, g in enumerate(self.groups) if g != name], [i for i, g in enumerate(self.groups) if g == name])
            for name in names
        ]

    def joined(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64] | None]:
        """Return features, targets and weights of all slides."""
        weights = None if self.weights is None else np.concatenate(self.weights)
        return np.concatenate(self.x), np.concatenate(self.y), weights

    def products(self) -> list[tuple[list[int], CrossProducts]]:
        """Return the slides of each of a few folds of donors, and their sums of products."""
        found = []
        for slides in dealt(self.groups):
            sums: CrossProducts | None = None
            for i in slides:
                x, y = self.x[i], self.y[i]
                if sums is None:
                    sums = CrossProducts.zeros(x.shape[1], y.shape[1])
                sums.add(x, y, None if self.weights is None else self.weights[i])
            assert sums is not None
            found.append((slides, sums))
        return found


def _picked(values: Sequence[Any], which: Sequence[int]) -> Sequence[Any]:
    return values.picked(which) if isinstance(values, Lazily) else [values[i] for i in which]


def check_weights(config: Any) -> None:
    """Check ``block_weights``, ``location_weights`` and, where there is one, ``rank`` of settings."""
    for name, known in (("block_weights", BLOCK_WEIGHTS), ("location_weights", LOCATION_WEIGHTS)):
        if (value := getattr(config, name)) is not None:
            one_of(value, known, name=name)
    if getattr(config, "rank", "auto") != "auto":
        config.check_whole("rank")


def prepared_rows(
    model: Any, batches: Sequence[Batch], groups: Sequence[str]
) -> tuple[Rows, NDArray[np.float64] | None, dict[str, Any]]:
    """Set a model's scaling; return its rows, what each column is to be multiplied by, and what is recorded of it."""
    model.set_scaling(batches)
    weights = location_weights(batches, model.config.location_weights)
    design = Lazily(lambda i: model.design(batches[i]), len(batches))
    targets = Lazily(lambda i: dense(batches[i].y), len(batches))
    sizes = [len(b.targets) for b in batches]
    rows = Rows(design, targets, weights, list(groups), sizes)
    if not one_by_one(batches, width=model.width):
        rows = Rows(list(design), list(targets), weights, list(groups), sizes)
    return rows, *scale_of_blocks(model.config, rows, batches[0].blocks, n_features=model.n_features)


def scale_of_blocks(
    config: Any, rows: Rows, blocks: Sequence[int] | None, *, n_features: int
) -> tuple[NDArray[np.float64] | None, dict[str, Any]]:
    """Return what each feature of the design is multiplied by (None: as it is), and what is recorded of it."""
    n_parts = 1 + n_means(config.context_um)
    how = config.block_weights
    if how is None:
        how = "chosen" if len(blocks or ()) > 1 or isinstance(config.context_um, tuple) else "width"
    columns = columns_of(blocks, n_features, n_parts)
    if how == "width" or len(columns) == 1:
        return None, {}
    if how == "equal":
        return block_scale(columns, np.ones(len(columns))), {"block_weights": [1 / len(columns)] * len(columns)}
    penalties = config.penalties if config.penalty is None else (config.penalty,)
    weights, chosen = choose_block_weights(rows, columns, n_parts, penalties=penalties)
    return block_scale(columns, weights), chosen


def location_weights(batches: Sequence[Batch], how: str | None) -> list[NDArray[np.float64]] | None:
    """Return the weights of each slide's locations.

    ``"depth"``: by the square root of the library size over the slides' median, from 0.05 to 20. Values of locations
    with few counts are noisier, and a slide that was sequenced deeper says more.
    """
    if how is None:
        return None
    if lacking := [b.slide for b in batches if b.totals is None]:
        raise InputError(f"Slide {lacking[0]!r} came without library sizes, which `location_weights`='depth' needs.")
    totals = [np.asarray(b.totals, dtype=np.float64) for b in batches]
    median = np.median(np.concatenate(totals))
    found = [np.sqrt(t / max(median, 1e-12)).clip(*_BOUNDS) for t in totals]
    mean = np.concatenate(found).mean()
    return [w / mean for w in found]


def columns_of(blocks: Sequence[int] | None, n_features: int, n_parts: int) -> list[slice]:
    """Return the columns of each block in a design of `n_parts` times the features: own, then each ring's means."""
    widths = tuple(blocks or (n_features,)) * n_parts
    ends = np.cumsum(widths)
    return [slice(int(end - width), int(end)) for end, width in zip(ends, widths, strict=True)]


def block_scale(columns: Sequence[slice], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what each feature is multiplied by, so that blocks have their weight in the sum of all variances."""
    share = weights / weights.sum()
    scale = [
        np.full(c.stop - c.start, np.sqrt(w * TOTAL_VARIANCE / (c.stop - c.start)))
        for c, w in zip(columns, share, strict=True)
    ]
    return np.concatenate(scale)


def choose_block_weights(
    rows: Rows, columns: Sequence[slice], n_parts: int, *, penalties: Sequence[float]
) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """Choose the weights of blocks by leaving donors out, starting from equal ones, one after the other.

    A block's weight is that of its encoder times that of its part (the tile, each ring around it). Each of these in
    turn is set to nothing, to a third and to three times of what it is, and keeps the value that scores best; two
    rounds at most. Scores are mean Pearson correlations over held-out slides and the genes, up to `MAX_GENES` of them.

    Returns
    -------
    (n_blocks,) weights that add up to 1, and what is recorded of the choice.
    """
    n = len(columns)
    factors = [np.ones(n // n_parts), np.ones(n_parts)]
    if len(set(rows.groups)) < 2:
        equal = np.full(n, 1 / n)
        return equal, {"block_weights": equal.round(4).tolist(), "block_weights_chosen_by": "equal, one donor only"}
    few = rows.thinned(MAX_ROWS)
    x = np.concatenate(few.x)
    score = _scorer(few, [x[:, c] @ x[:, c].T * (TOTAL_VARIANCE / (c.stop - c.start)) for c in columns])
    best, at = score(_product(*factors), penalties)
    first, tried = best, 1
    for _ in range(_ROUNDS):
        before = best
        for side, i in [(s, i) for s, of in enumerate(factors) if len(of) > 1 for i in range(len(of))]:
            for value in [factors[side][i] * f if factors[side][i] else f for f in _FACTORS]:
                changed = [of.copy() for of in factors]
                changed[side][i] = value
                if value == factors[side][i] or not changed[side].any():
                    continue
                found, where = score(_product(*changed), [p for p in penalties if 0.2 < p / at < 5])
                tried += 1
                if found > best + _GAIN:
                    best, at, factors = found, where, changed
        if best == before:
            break
    weights = _product(*factors)
    return weights, {
        "block_weights": weights.round(4).tolist(),
        "block_weights_chosen_by": "leaving groups out",
        "block_weight_scores": {"equal": round(first, 5), "chosen": round(best, 5), "n_tried": tried},
    }


def _product(encoders: NDArray[np.float64], parts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weight of each block, those of one part side by side."""
    weights = np.outer(parts, encoders).ravel()
    return weights / weights.sum()


def _scorer(
    rows: Rows, kernels: Sequence[NDArray[np.float64]]
) -> Callable[[NDArray[np.float64], Sequence[float]], tuple[float, float]]:
    """Return a function of weights and penalties that gives the best mean correlation and its penalty."""
    y = np.concatenate(rows.y)
    if y.shape[1] > MAX_GENES:
        y = y[:, np.sort(np.argsort(-y.var(axis=0), kind="stable")[:MAX_GENES])]
    slide = np.repeat(np.arange(len(rows.x)), [len(x) for x in rows.x])
    q = np.ones(len(y)) if rows.weights is None else np.concatenate(rows.weights)

    def score(weights: NDArray[np.float64], penalties: Sequence[float]) -> tuple[float, float]:
        kernel = sum(w * k for w, k in zip(weights, kernels, strict=True) if w > 0)
        total = np.zeros(len(penalties))
        folds = rows.folds()[:MAX_FOLDS]
        for train, test in folds:
            a = np.flatnonzero(np.isin(slide, train))
            for p, penalty in enumerate(penalties):
                alpha, intercept = kernel_ridge(kernel[np.ix_(a, a)], y[a], q[a], penalty)  # type: ignore[index]
                for s in test:
                    b = np.flatnonzero(slide == s)
                    guess = kernel[np.ix_(b, a)] @ alpha + intercept  # type: ignore[index]
                    total[p] += np.nan_to_num(metrics.pearson(guess, y[b])).mean() / len(test) / len(folds)
        best = int(np.argmax(total))
        return float(total[best]), float(penalties[best])

    return score


def kernel_ridge(
    kernel: NDArray[np.float64],
    y: NDArray[np.float64],
    weights: NDArray[np.float64] | None,
    penalty: float,
    *,
    rank: int | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (n, G) coefficients of an (n, n) kernel and the (G,) unpenalised intercept; the penalty is per location.

    The kernel is centred in feature space by the weighted mean, which is absorbed into both results, and overwritten.
    """
    from scipy.linalg import cho_factor, cho_solve

    n = len(kernel)
    weights = np.ones(n) if weights is None else weights
    q = weights / weights.sum()
    root = np.sqrt(weights)
    middle = kernel @ q
    whole = float(q @ middle)
    center = q @ y
    kernel -= middle
    kernel -= middle[:, None]
    kernel += whole
    kernel *= root
    kernel *= root[:, None]
    kernel[np.diag_indices(n)] += penalty * n
    target = root[:, None] * (y - center)
    alpha = cho_solve(cho_factor(kernel, lower=True, overwrite_a=True, check_finite=False), target)
    intercept = center
    if rank is not None:
        directions = directions_of(target - penalty * n * alpha)[:, :rank]  # of the fitted values
        alpha = onto(alpha, directions)
    alpha *= root[:, None]
    total = alpha.sum(axis=0)
    return alpha - q[:, None] * total, intercept - middle @ alpha + whole * total


def thin_svd(
    x: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return u, s, vt of a matrix by the smaller of its cross-products, without directions of no length."""
    wide = x.shape[0] < x.shape[1]
    values, vectors = np.linalg.eigh(x @ x.T if wide else x.T @ x)
    keep = values > 1e-12 * max(values.max(initial=0.0), 1e-300)
    s, vectors = np.sqrt(values[keep][::-1]), vectors[:, keep][:, ::-1]
    return (vectors, s, (x.T @ vectors / s).T) if wide else (x @ vectors / s, s, vectors.T)


def directions_of(fitted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the (n_genes, r) orthonormal combinations of genes that vary in (k, n_genes) fitted values, most first."""
    wide = fitted.shape[0] < fitted.shape[1]
    values, vectors = np.linalg.eigh(fitted @ fitted.T if wide else fitted.T @ fitted)
    values, vectors = values[::-1], vectors[:, ::-1]
    if not wide:
        return vectors
    keep = values > 1e-12 * max(values.max(initial=0.0), 1e-300)
    return fitted.T @ vectors[:, keep] / np.sqrt(values[keep])


def onto(values: NDArray[np.float64], directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Project (n, n_genes) values onto combinations of genes."""
    return (values @ directions) @ directions.T

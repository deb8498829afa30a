"""A random forest on tile features: the baseline of hand-crafted features in ST-Net's publication."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from stpred._core.checks import InputError, one_of
from stpred._core.targets import dense
from stpred.models.base import BaseConfig
from stpred.models.batch import Batch, Needs
from stpred.models.parts.context import check_context, context_needs
from stpred.models.parts.standardised import STANDARDIZE, StandardisedModel, safe

_NONE = -1
"""Child of a leaf."""


@dataclass(frozen=True)
class RandomForestConfig(BaseConfig):
    """Settings of :class:`RandomForest`.

    Parameters
    ----------
    n_trees
        Number of trees, each of a bootstrap sample of the training locations.
    min_leaf
        Smallest number of locations in a leaf.
    max_depth
        Of a tree; None: down to `min_leaf`.
    max_features
        Fraction of the features that each split is chosen from.
    n_components
        Principal components of expression that splits are chosen by; leaves hold the mean of every gene all the same.
        With as many as there are genes, or None, splits are those by all genes, since the variance that a split
        explains does not depend on the basis.
    scale_genes
        Let all genes count alike in the choice of splits, instead of by their variance.
    context_um
        Radius in micrometres within which the neighbours' features are averaged and added; several radii add the mean
        of each ring between them; None: the tile alone.
    standardize
        ``"slide"``: features by each slide's own mean and standard deviation, which removes shifts of stain and
        scanner; ``"train"``: by those of the training tiles, which a forest does not see.
    n_nodes, n_rows
        Nodes of all trees and training locations of the fitted forest; set by the fit.

    Raises
    ------
    InputError
        If a setting is impossible; the message names it and what would be possible.
    """

    family: ClassVar[str] = "random_forest"
    seeded: ClassVar[bool] = True
    n_trees: int = 100
    min_leaf: int = 5
    max_depth: int | None = None
    max_features: float = 1 / 3
    n_components: int | None = 50
    scale_genes: bool = True
    context_um: float | tuple[float, ...] | None = None
    standardize: str = "slide"
    n_nodes: int = 0
    n_rows: int = 0

    def __post_init__(self) -> None:
        one_of(self.standardize, STANDARDIZE, name="standardize")
        check_context(self)
        self.check_whole("n_trees", "min_leaf", "max_depth", "n_components")
        self.check_whole("n_nodes", "n_rows", zero=True)
        self.check_positive("max_features")
        if self.max_features > 1:
            raise InputError(f"`max_features` must be a fraction of the features up to 1, got {self.max_features!r}.")

    @property
    def needs(self) -> Needs:
        """Neighbours within the radius; slide statistics when each slide is standardised by itself."""
        return Needs(**context_needs(self.context_um), slide_statistics=self.standardize == "slide")


class RandomForest(StandardisedModel):
    """Mean over regression trees, each grown on a bootstrap sample; a leaf is the mean expression of its locations.

    Notes
    -----
    The trees are scikit-learn's, and so are the predictions. Stored are their splits, the training locations in each
    leaf with how often the bootstrap drew them, and the training expression, all as arrays, from which leaves are
    computed: far less than the mean of every gene in every leaf. Unlike in the publication, whose features are of its
    own segmentation of nuclei, they are those of any encoder (``"morphology"`` has nuclei among them).

    References
    ----------
    He et al. (2020), Integrating spatial gene expression and breast tumour morphology via deep learning, Nature
    Biomedical Engineering 4. Breiman (2001), Random forests, Machine Learning 45.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(2, size_um=(500, 500), n_genes=20)
    >>> model = st.tl.train(slides, st.models.RandomForest.Config(n_trees=5), shapes_key="spots")
    >>> model.config.n_rows == sum(s["n_locations"] for s in model.record.training["slides"].values())
    True
    """

    feature: Tensor
    threshold: Tensor
    branches: Tensor
    first: Tensor
    leaves: Tensor
    drawn: Tensor
    expression: Tensor
    Config: ClassVar[type[RandomForestConfig]] = RandomForestConfig
    config: RandomForestConfig

    def __init__(self, config: BaseConfig, *, n_features: int, n_genes: int) -> None:
        super().__init__(config, n_features=n_features, n_genes=n_genes)
        c = self.config
        self._set_trees(
            feature=np.zeros(c.n_nodes, np.int32),
            threshold=np.zeros(c.n_nodes),
            branches=np.full((c.n_nodes, 2), _NONE, np.int32),
            first=np.zeros(c.n_trees, np.int32),
            leaves=np.zeros((c.n_trees, c.n_rows), np.int32),
            drawn=np.zeros((c.n_trees, c.n_rows), np.int16),
        )
        self.register_buffer("expression", torch.zeros(c.n_rows, n_genes))

    def _set_trees(self, **arrays: NDArray[Any]) -> None:
        for name, values in arrays.items():
            # created from the shape, so that a model of stored settings can be laid out without memory
            buffer = torch.zeros(values.shape, dtype=getattr(torch, values.dtype.name))
            if buffer.device.type != "meta":
                buffer.copy_(torch.from_numpy(values))
            self.register_buffer(name, buffer)

    def fit(self, batches: Sequence[Batch], *, groups: Sequence[str]) -> dict[str, Any]:
        """Grow the trees."""
        from sklearn.ensemble import RandomForestRegressor

        c = self.config
        self.set_scaling(batches)
        x = np.concatenate([self.design(b).astype(np.float32) for b in batches])
        y = np.concatenate([dense(b.y, np.float32) for b in batches])
        forest = RandomForestRegressor(
            c.n_trees,
            min_samples_leaf=c.min_leaf,
            max_depth=c.max_depth,
            max_features=c.max_features,
            random_state=int(torch.randint(2**31 - 1, (1,))),
        ).fit(x, self._split_by(y))
        trees = [t.tree_ for t in forest.estimators_]
        first = np.cumsum([0, *(t.node_count for t in trees)])
        self.config = replace(c, n_nodes=int(first[-1]), n_rows=len(x))
        children = [np.stack([t.children_left, t.children_right], axis=1) for t in trees]
        self._set_trees(
            feature=np.concatenate([np.maximum(t.feature, 0) for t in trees]).astype(np.int32),
            threshold=np.concatenate([t.threshold for t in trees]).astype(np.float64),
            branches=np.concatenate(
                [np.where(pair < 0, _NONE, pair + start) for pair, start in zip(children, first[:-1], strict=True)]
            ).astype(np.int32),
            first=first[:-1].astype(np.int32),
            leaves=np.stack([t.apply(x) + start for t, start in zip(trees, first[:-1], strict=True)]).astype(np.int32),
            drawn=np.stack([np.bincount(rows, minlength=len(x)) for rows in forest.estimators_samples_]).astype(
                np.int16
            ),
        )
        self.set_buffer("expression", y)
        return {"n_nodes": self.config.n_nodes, "depth": int(max(t.max_depth for t in trees))}

    def _split_by(self, y: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return what splits are chosen by: genes, scaled, or their leading principal components."""
        values = y.astype(np.float64)
        if self.config.scale_genes:
            values = (values - values.mean(axis=0)) / safe(values.std(axis=0))
        k = self.config.n_components
        if k is None or k >= values.shape[1]:
            return values
        values -= values.mean(axis=0)
        return np.asarray(values @ np.linalg.eigh(values.T @ values)[1][:, ::-1][:, :k])

    def predict(self, batch: Batch) -> tuple[NDArray[np.float32], None]:
        """Average the leaves that a location falls into."""
        total = np.zeros((len(batch.targets), self.n_genes))
        expression = self.expression.cpu().numpy().astype(np.float64)
        for found, of_rows, weights in self._each_tree(self.design(batch).astype(np.float32)):
            used, at = np.unique(found, return_inverse=True)
            place = np.searchsorted(used, of_rows).clip(max=len(used) - 1)
            rows = np.flatnonzero((used[place] == of_rows) & (weights > 0))
            summing = csr_array((weights[rows], (place[rows], rows)), shape=(len(used), len(of_rows)))
            total += (summing @ expression / np.asarray(summing.sum(axis=1))[:, None])[at]
        return (total / self.config.n_trees).astype(np.float32), None

    def _each_tree(
        self, x: NDArray[np.float32]
    ) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float64]]]:
        """Yield the leaf of each row of x, that of each training location, and how often it was drawn."""
        feature, threshold, children = (b.cpu().numpy() for b in (self.feature, self.threshold, self.branches))
        self._check_trees(feature, children)
        leaves, drawn = self.leaves.cpu().numpy(), self.drawn.cpu().numpy().astype(np.float64)
        for tree, root in enumerate(self.first.cpu().numpy()):
            at = np.full(len(x), root, dtype=np.int32)
            going = np.arange(len(x))
            while len(going := going[children[at[going], 0] >= 0]):
                node = at[going]
                right = x[going, feature[node]] > threshold[node]
                at[going] = children[node, right.astype(np.int64)]
            yield at, leaves[tree], drawn[tree]

    def _check_trees(self, feature: NDArray[np.int32], children: NDArray[np.int32]) -> None:
        """Refuse stored trees that lead nowhere: children come after their parent, so that every path ends."""
        inner = np.flatnonzero((children >= 0).any(axis=1))
        after = (children[inner] > inner[:, None]).all() and (children < len(children)).all()
        roots = self.first.cpu().numpy()
        if not (
            after and ((roots >= 0) & (roots < max(1, len(children)))).all() and self.width > feature.max(initial=0)
        ):
            raise InputError("The trees of the stored random forest are damaged; save the model again.")

"""Composition of a location in expression programmes, predicted from its tile: the NMF baseline of ST-Net."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stpred._core.checks import InputError, positive
from stpred._core.targets import LOG_SHARE, dense
from stpred.models.base import MULTISCALE, BaseConfig, Model
from stpred.models.batch import Batch, Needs
from stpred.models.ridge import PENALTIES, Ridge, RidgeConfig

_ITERATIONS = 500


@dataclass(frozen=True)
class NMFCompositionConfig(BaseConfig):
    """Settings of :class:`NMFComposition`.

    Parameters
    ----------
    n_components
        Number of programmes of genes.
    penalty, penalties, context_um, standardize
        Of the ridge regression that predicts the composition, as in :class:`~stpred.models.Ridge`.

    Raises
    ------
    InputError
        If a setting is impossible; the message names it and what would be possible.
    """

    family: ClassVar[str] = "nmf_composition"
    default_encoder: ClassVar[str] = MULTISCALE
    n_components: int = 12
    penalty: float | None = None
    penalties: tuple[float, ...] = PENALTIES
    context_um: float | tuple[float, ...] | None = None
    standardize: str = "slide"

    def __post_init__(self) -> None:
        self.check_whole("n_components")
        object.__setattr__(self, "penalties", tuple(positive(p, name="penalties") for p in self.penalties))
        object.__setattr__(self, "context_um", self.ridge.context_um)

    @property
    def ridge(self) -> RidgeConfig:
        """Settings of the regression."""
        return RidgeConfig(
            penalty=self.penalty,
            penalties=self.penalties,
            context_um=self.context_um,
            standardize=self.standardize,
        )

    @property
    def needs(self) -> Needs:
        """Those of the regression."""
        return self.ridge.needs

    def training_target(self, target: str | None) -> str:
        """Refuse log shares, which are negative."""
        if target == LOG_SHARE:
            raise InputError(
                "Log shares are negative, and 'nmf_composition' is made of parts that are not: train on "
                "'log1p_cp10k' or 'counts'."
            )
        return super().training_target(target)


class NMFComposition(Model):
    """Non-negative matrix factorisation of training expression; its factors at a location from ridge on the tile.

    Notes
    -----
    Expression is rebuilt from the predicted factors, none of which is negative. The penalty is chosen by the factors of
    left-out donors; the programmes themselves are of all training slides. In the publication a network predicts the
    composition, here ridge on the features of any encoder does.

    References
    ----------
    He et al. (2020), Integrating spatial gene expression and breast tumour morphology via deep learning, Nature
    Biomedical Engineering 4. Lee & Seung (1999), Learning the parts of objects by non-negative matrix factorization,
    Nature 401.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(2, size_um=(500, 500), n_genes=20)
    >>> model = st.tl.train(slides, st.models.NMFComposition.Config(n_components=4), shapes_key="spots")
    >>> tuple(model.programmes.shape)[0]
    4
    """

    programmes: Tensor
    Config: ClassVar[type[NMFCompositionConfig]] = NMFCompositionConfig
    config: NMFCompositionConfig

    def __init__(self, config: BaseConfig, *, n_features: int, n_genes: int) -> None:
        super().__init__(config, n_features=n_features, n_genes=n_genes)
        k = self.config.n_components
        self.factors = Ridge(self.config.ridge, n_features=n_features, n_genes=k)
        del self.factors.typical  # tiles are judged by the model's own
        self.register_buffer("programmes", torch.zeros(k, n_genes))

    def fit(self, batches: Sequence[Batch], *, groups: Sequence[str]) -> dict[str, Any]:
        """Factorise the expression, and regress the factors on the features."""
        from sklearn.decomposition import NMF

        y = [dense(b.y, np.float64) for b in batches]
        joined = np.concatenate(y)
        if (joined < 0).any():
            raise InputError(
                "The training targets have negative values, and 'nmf_composition' is of parts that add up."
            )
        k = min(self.config.n_components, *joined.shape)
        nmf = NMF(k, init="nndsvda", random_state=0, max_iter=_ITERATIONS, tol=1e-3)
        composition = nmf.fit_transform(joined)
        programmes = nmf.components_
        error = np.linalg.norm(joined - composition @ programmes) / np.linalg.norm(joined).clip(1e-12)
        # Of factors and programmes only the product is determined: programmes are made to add up to the mean location.
        size = programmes.sum(axis=1) / joined.sum(axis=1).mean().clip(1e-12)
        size[size < 1e-12] = 1.0
        missing = self.config.n_components - k
        composition = np.pad(composition * size, ((0, 0), (0, missing)))
        self.set_buffer("programmes", np.pad(programmes / size[:, None], ((0, missing), (0, 0))))
        parts = np.split(composition.astype(np.float32), np.cumsum([len(v) for v in y])[:-1])
        learned = [replace(b, y=part) for b, part in zip(batches, parts, strict=True)]
        chosen = self.factors.fit(learned, groups=groups)
        return {**chosen, "n_components": k, "reconstruction_error": float(error)}

    def composition(self, batch: Batch) -> NDArray[np.float32]:
        """Return the (n, n_components) amount of each programme, 1 of one alone being an average location."""
        return np.maximum(self.factors.predict(batch)[0], 0)

    def predict(self, batch: Batch) -> tuple[NDArray[np.float32], None]:
        """Add up the programmes."""
        return self.composition(batch) @ self.programmes.cpu().numpy(), None

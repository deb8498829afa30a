"""Attention over all locations of a slide: the baseline that local attention is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from stpred._core.checks import InputError
from stpred.models.batch import Needs
from stpred.models.miso import MISO, MISOConfig
from stpred.models.parts.sample import Sample


@dataclass(frozen=True)
class TransformerConfig(MISOConfig):
    """Settings of :class:`Transformer`: those of :class:`MISO`, in the sizes of its baseline.

    Parameters
    ----------
    width, inner, n_heads, dropout
        As of :class:`MISO`.
    """

    family: ClassVar[str] = "transformer"
    width: int = 512
    inner: int = 256
    n_heads: int = 8
    n_neighbors: int = 0

    @property
    def needs(self) -> Needs:
        """Every location of the slide at the training pitch."""
        return Needs(whole_slide=True, slide_statistics=self.standardize == "slide")


class Transformer(MISO):
    """The network of MISO with every location attending to every other of its slide, without positions.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(2, size_um=(600, 600), n_genes=20)
    >>> config = st.models.Transformer.Config(width=32, inner=16, n_heads=2, epochs=3)
    >>> model = st.tl.train(slides, config, shapes_key="spots")
    """

    Config: ClassVar[type[TransformerConfig]] = TransformerConfig  # type: ignore[assignment]

    def attend(self, qkv: Tensor, sample: Sample) -> Tensor:
        """Attend to all sources: (m, 3 * inner) queries, keys and values to (n, inner)."""
        if sample.sources is None:
            raise InputError("The batch came without the slide's locations, which this model needs.")
        if int(sample.slides.max()) > 0:
            raise InputError("A step of the global transformer holds one slide; set batch_size=1.")
        heads = self.config.n_heads
        query, key, value = (
            part.view(len(part), heads, -1).transpose(0, 1)[None] for part in qkv.split(self.config.inner, dim=1)
        )
        query = query[:, :, sample.targets]
        key, value = key[:, :, sample.sources], value[:, :, sample.sources]
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        return attended[0].transpose(0, 1).reshape(len(sample.targets), -1)

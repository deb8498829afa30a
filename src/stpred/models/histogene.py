"""HisToGene: a transformer over all locations of a section, told where they are (Pang et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from stpred.models.parts.sample import Sample
from stpred.models.parts.section import SectionConfig, SectionNetwork


@dataclass(frozen=True)
class HisToGeneConfig(SectionConfig):
    """Settings of :class:`HisToGene`; see :class:`stpred.models.NetworkConfig` for those that every network has.

    Parameters
    ----------
    width
        Of the residual stream.
    depth
        Blocks of attention.
    n_heads, head_width
        Number of heads, and width of each.
    feed_width
        Hidden width of the perceptron after each attention.
    dropout, input_dropout
        In the network, and on the features.
    n_places
        Entries of the tables of places along x and y, one for each pitch of the training locations; None leaves places
        out.
    pitch_um
        Distance of two entries; None: the pitch of the training locations.

    Raises
    ------
    InputError
        If a setting is impossible; the message names it and what would be possible.
    """

    family: ClassVar[str] = "histogene"

    @classmethod
    def published(cls, **changes: Any) -> HisToGeneConfig:
        """Return the publication's settings: width 1024, 16 heads, lr 1e-5, 100 epochs, features and genes as given."""
        values: dict[str, Any] = {
            "width": 1024, "depth": 4, "n_heads": 16, "head_width": 64, "feed_width": 2048, "dropout": 0.1,
            "n_places": 64, "lr": 1e-5, "epochs": 100, "standardize": "none", "scale_genes": False, "clip_norm": None,
        }  # fmt: skip
        return cls(**(values | changes))


class HisToGene(SectionNetwork):
    """Linear embedding of each location, learned vectors of its place along x and y, transformer, linear head.

    Notes
    -----
    The step is a section, as published. Departures: the image side is the features of any encoder instead of the pixels
    of a patch, embedded linearly like these; the network is narrower by default (`published` has the full size), since
    a few sections cannot train one of 1024 columns; features are standardised by slide and genes over the training
    locations; places are counted in pitches from the section's upper left location instead of the array's printed
    numbers, are interpolated between entries, and start at zero; and a location that is not of the training pitch
    attends to those of that pitch on its slide.

    References
    ----------
    Pang, Su & Li (2021), Leveraging information in spatial transcriptomics to predict super-resolution gene expression
    from histology images in tumors, bioRxiv 2021.11.28.470212.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(2, size_um=(600, 600), n_genes=20)
    >>> config = st.models.HisToGene.Config(width=32, depth=1, n_heads=2, feed_width=32, epochs=3)
    >>> model = st.tl.train(slides, config, shapes_key="spots")
    >>> model.config.pitch_um
    100.0
    """

    hidden_layer = "the stream after the transformer, normalised"
    Config: ClassVar[type[HisToGeneConfig]] = HisToGeneConfig  # type: ignore[assignment]
    config: HisToGeneConfig

    def forward(self, sample: Sample) -> Tensor:
        """Return (n, n_genes) outputs."""
        return self.last(self.hidden(sample))

    def hidden(self, sample: Sample) -> Tensor:
        """Return the (n, width) values that the last layer maps."""
        rows, n_sources, targets = self.stream(sample)
        x = nn.functional.dropout(sample.features[rows], self.config.input_dropout, self.training)
        h = self.attend(self.located(self.embedding(x), rows, sample), n_sources)
        return self.norm(h[targets])

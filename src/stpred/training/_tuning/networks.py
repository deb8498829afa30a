"""A network's part in going on from a trained model: a few more epochs, the layers nearest to the input slowest."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from stpred._core.specs import FineTuning
from stpred._core.targets import dense
from stpred.models.base import Model
from stpred.models.batch import Batch
from stpred.training import _loop
from stpred.training._run import Run, fingerprint
from stpred.training._scores import criterion_of
from stpred.training._tuning.parts import Part, Trial

SLOWER = 0.3
"""Of the family's learning rate, where none is given: small steps from weights that are good already."""


def copied(model: Model) -> Any:
    """Return a model of the same weights and a record of its own, with the same encoder."""
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn, and replaced at once
        new = model.config.build(n_features=model.n_features, n_genes=model.n_genes)
    new.load_state_dict(model.state_dict())
    new.record = copy.deepcopy(model.record)
    model.lend(new)
    return new


def with_own_targets(model: Any, batch: Batch, genes: NDArray[np.bool_]) -> Batch:
    """Return the batch with a network's own predictions as targets of the genes that are not learned.

    Learning without forgetting (Li & Hoiem 2016): the shared layers move, what these genes are predicted as stays.
    """
    if genes.all():
        return batch
    y = dense(batch.y, np.float32)
    y[:, ~genes] = model.own_targets(batch)[:, ~genes]
    if batch.truth is None:
        return replace(batch, y=y)
    truth = dense(batch.truth, np.float32)
    truth[:, ~genes] = model.as_scored(model.predict(batch)[0])[:, ~genes]
    return replace(batch, y=y, truth=truth)


@dataclass(frozen=True)
class NetworkMethod:
    """A few epochs from the old weights; the candidates are their numbers, from 0."""

    options: FineTuning
    genes: NDArray[np.bool_]
    seed: int
    run: Run

    usual: ClassVar[int] = 0

    @property
    def given(self) -> int | None:
        """The number of epochs, where the user gave it."""
        return self.options.epochs

    def trial(self, model: Any, part: Part) -> Trial:
        """Score the network on a held-out part before the first epoch and after each."""
        net = self._start(model, part.train)
        epochs = model.config.max_epochs if self.given is None else self.given
        curve: Any = None
        if epochs:
            curve, _ = self._train(net, model, part.train, epochs, seed=self.seed, held=part.test, name=part.name)
        else:
            curve = _loop.score_once(net, part.test)
        curve = replace(curve, pearson=curve.pearson[..., self.genes], spearman=curve.spearman[..., self.genes])

        def predict(c: int) -> list[NDArray[Any]]:
            again = self._start(model, part.train)
            if c:
                self._train(again, model, part.train, c, seed=self.seed, name=f"{part.name}, again")
            return [again.predict(b)[0] for b in part.test]

        return Trial(
            part,
            curve.pearson,
            curve.quality(criterion_of(type(model), model.config)),
            predict,
            lambda c: curve.spearman[c],
        )

    def final(self, model: Any, batches: Sequence[Batch], chosen: int, *, seed: int) -> tuple[Any, dict[str, Any]]:
        """Return a copy after the chosen number of epochs on all slides."""
        new = self._start(model, batches)
        summary: dict[str, Any] = {"moved": "intercept", "epochs": 0}
        if chosen:
            _, found = self._train(new, model, batches, chosen, seed=seed, name=f"{chosen} epochs")
            summary = {"moved": self.options.trains, **found}
        new.kept_genes = None
        for p in new.parameters():
            p.requires_grad_(requires_grad=True)
        return new, summary

    def _start(self, model: Any, batches: Sequence[Batch]) -> Any:
        """Return a copy whose mean prediction is the mean of the own slides; only what is to move needs gradients."""
        new = copied(model)
        new.kept_genes = None if self.genes.all() else ~self.genes
        new.recentre(batches)
        moving = set(new.layers_by_depth()[-1])
        for name, p in new.named_parameters():
            p.requires_grad_(self.options.trains == "all" or name in moving)
        return new

    def _train(
        self, net: Any, model: Any, batches: Sequence[Batch], epochs: int, *,
        seed: int, name: str, held: Sequence[Batch] = (),
    ) -> tuple[Any, dict[str, Any]]:  # fmt: skip
        checkpoint = None
        if self.run.checkpoint is not None:
            what = f"{model.family} from {model.id} by {self.options}"
            options: dict[str, Any] = {"seed": seed, "epochs": epochs, "precision": self.run.precision}
            checkpoint = self.run.file(fingerprint(what, model.config, batches, held, **options))
        return _loop.train(
            net, batches, epochs=epochs, seed=seed, run=self.run, validation=held,
            patience=model.config.patience if held and self.given is None else None,
            checkpoint=checkpoint, warm=self._rates(net), describe=f"{model.family}: {name}",
        )  # fmt: skip

    def _rates(self, net: Any) -> Callable[[torch.optim.Optimizer], None]:
        """Return what gives an optimiser the learning rate of each layer: geometric from the head to the input."""
        layers = net.layers_by_depth()
        parameters = dict(net.named_parameters())
        ratio = self.options.input_rate ** (1 / max(len(layers) - 1, 1))

        def rate(optimizer: torch.optim.Optimizer) -> None:
            plain = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
            highest = plain["lr"] * SLOWER if self.options.lr is None else self.options.lr
            optimizer.param_groups.clear()
            for depth, names in enumerate(reversed(layers)):
                some = [p for n in names if (p := parameters[n]).requires_grad]
                if some:
                    optimizer.add_param_group({**plain, "params": some, "lr": highest * ratio**depth})

        return rate

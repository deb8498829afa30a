"""What the readers of a slide's locations have in common, whether a model sees tiles, cells, tokens or pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stpred.data._features import check_resolution
from stpred.data._regions import Region
from stpred.encoders.base import Encoder
from stpred.models.batch import Batch, Needs
from stpred.regions import Lattice


@dataclass(frozen=True)
class Context:
    """Locations that a model was trained on, as far as prediction elsewhere depends on them.

    Attributes
    ----------
    lattice
        Their arrangement; None in training, when a region is its own context. A region of another pitch takes its
        context from points at the training pitch: the slide's locations of the region `home` where there is one near
        the target, otherwise a grid on the tissue.
    home
        Name of their region.
    width_um
        Their median width, of models of tokens.
    """

    lattice: Lattice | None = None
    home: str | None = None
    width_um: float | None = None


@dataclass(frozen=True)
class Targets:
    """What was measured at the locations of a batch; fields as of :class:`~stpred.models.batch.Batch`."""

    y: Any = None
    truth: Any = None
    scale: str | None = None
    measured: NDArray[np.bool_] | None = None

    def put(self, batch: Batch) -> Batch:
        """Return the batch with these targets."""
        return replace(batch, **{f.name: getattr(self, f.name) for f in fields(self)})


class Reader(Protocol):
    """Turns locations of one slide into batches."""

    def whole(self) -> Batch:
        """Return all locations of the region as one batch, as models are trained on it."""
        ...

    def blocks(self, part: Region | None = None) -> Iterator[tuple[NDArray[np.int64], Batch]]:
        """Yield rows and their batch, so many at a time that they fit into memory.

        `part`: other locations of the same slide instead of the region's own.
        """
        ...


@dataclass(frozen=True)
class PlainReader:
    """A reader whose batches depend on a region, an encoder, what a model needs, and where it was trained."""

    region: Region
    encoder: Encoder
    needs: Needs
    trained_on: Context

    def __post_init__(self) -> None:
        check_resolution(self.region, self.encoder)

    def whole(self) -> Batch:
        """Return all locations as one batch."""
        return self.batch(self.region)

    def batch(self, region: Region) -> Batch:
        """Embed a region."""
        raise NotImplementedError


def blocks_of(encoder: Encoder, *, dense: bool = False) -> tuple[int, ...] | None:
    """Return the widths of the features (or dense tokens) of several encoders side by side; None of a single one."""
    card = encoder.card
    if not card.members:
        return None
    return card.dense_blocks if dense else card.blocks


def evenly(n: int, most: int) -> NDArray[np.int64]:
    """Return at most `most` of `n` row numbers, spread evenly over them."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).astype(np.int64))

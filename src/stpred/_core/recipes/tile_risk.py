"""A survival model of tiles: its network and how it is fitted."""

from __future__ import annotations

from dataclasses import dataclass

from stpred._core.checks import InputError, fraction_of, positive, whole


@dataclass(frozen=True)
class TileRisk:
    """Settings of :func:`stpred.tl.tile_survival`.

    Parameters
    ----------
    n_top
        Tiles of the highest scores that the network sees of a slide, and as many of the lowest.
    hidden
        Width of the hidden layer on these scores.
    n_epochs
        Most steps in which tile scores are refined through the network; how many are taken is chosen in inner folds.
    step
        Length of the first of these steps, as a share of the length of the tile scores' weights.
    learning_rate
        Of the network (Adam).
    n_inner
        Inner folds of the training slides of a fold: as many models are fitted, each without one of them, and averaged.
    n_repeats
        How often the outer folds are drawn anew; risks are averaged over the repeats.
    max_tiles
        Most tiles of a slide that are fitted, a random choice; all tiles are scored. None: all.
    level
        One-sided level at which slides must be ranked better than by chance, each by models that were not fitted to its
        follow-up. Where they are not, all tiles have the risk 0. None gives risks in any case.

    Raises
    ------
    InputError
        If a setting is impossible; the message names it and what would be possible.

    Notes
    -----
    ``n_top=25`` is the number of tiles of either end in MISO's publication.

    Examples
    --------
    >>> import stpred as st
    >>> st.TileRisk(n_top=10).n_top
    10
    """

    n_top: int = 25
    hidden: int = 16
    n_epochs: int = 40
    step: float = 0.05
    learning_rate: float = 0.02
    n_inner: int = 5
    n_repeats: int = 1
    max_tiles: int | None = 2000
    level: float | None = 0.01

    def __post_init__(self) -> None:
        for name in ("n_top", "hidden", "n_epochs", "n_inner", "n_repeats"):
            object.__setattr__(self, name, whole(getattr(self, name), name=f"TileRisk.{name}"))
        for name in ("step", "learning_rate"):
            object.__setattr__(self, name, positive(getattr(self, name), name=f"TileRisk.{name}"))
        if self.max_tiles is not None:
            object.__setattr__(self, "max_tiles", whole(self.max_tiles, name="TileRisk.max_tiles", unset=True))
        if self.level is not None:
            fraction_of(self.level, name="TileRisk.level")
        if self.n_inner < 2:
            raise InputError(f"`TileRisk.n_inner` must be at least 2, got {self.n_inner}.")

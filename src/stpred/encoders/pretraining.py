"""How encoders are pretrained without labels: typed options, which load no network library."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from stpred._core.checks import InputError, one_of, positive, whole

OPTIMIZERS = ("lars", "adamw")
MOMENTUM_SCHEDULES = ("constant", "cosine")
BASE_LR = {"lars": 0.6, "adamw": 1.5e-4}
"""Per 256 tiles of a step."""
WEIGHT_DECAY = {"lars": 1e-6, "adamw": 0.1}
WARMUP_EPOCHS = 10


def _interval(value: Any, *, name: str) -> tuple[float, float]:
    """Return two positive numbers in order."""
    pair = tuple(value) if isinstance(value, (tuple, list)) else ()
    if len(pair) != 2 or not all(_number(v) and v > 0 for v in pair) or pair[0] > pair[1]:
        raise InputError(f"`Augmentation.{name}` must be two positive numbers, the smaller first, got {value!r}.")
    return float(pair[0]), float(pair[1])


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Augmentation:
    """How two views of a tile may differ.

    The defaults are the first recipe published with sCellST.

    Parameters
    ----------
    rotate
        Turn by any angle.
    flip
        Mirror every second view.
    scale
        Smallest and largest fraction of the tile's area that a view shows, enlarged to the tile.
    aspect
        Smallest and largest ratio of the shown part's width to its height.
    jitter
        Fraction of views whose colours change by the four that follow, in random order.
    brightness, contrast, saturation
        Factors lie within 1 plus or minus this, and are not negative.
    hue
        Turns of the colour circle, at most.
    stain
        Standard deviation of the factors, of mean 1, by which haematoxylin and eosin are multiplied (0.3 in the second
        published recipe); 0 leaves them.
    blur
        Fraction of views that are blurred.
    blur_px
        Smallest and largest sigma of the Gaussian.
    erase
        Fraction of views with a black rectangle.
    erase_area, erase_aspect
        Its fraction of the area and the ratio of its edges, smallest and largest.

    Examples
    --------
    >>> import stpred as st
    >>> st.encoders.Augmentation(stain=0.3, flip=True).flip
    True
    """

    rotate: bool = True
    flip: bool = False
    scale: tuple[float, float] = (0.6, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    jitter: float = 0.8
    brightness: float = 0.6
    contrast: float = 0.7
    saturation: float = 0.5
    hue: float = 0.2
    stain: float = 0.0
    blur: float = 0.1
    blur_px: tuple[float, float] = (0.1, 2.0)
    erase: float = 0.3
    erase_area: tuple[float, float] = (0.05, 0.15)
    erase_aspect: tuple[float, float] = (0.8, 1.2)

    def __post_init__(self) -> None:
        for name in ("scale", "aspect", "blur_px", "erase_area", "erase_aspect"):
            object.__setattr__(self, name, _interval(getattr(self, name), name=name))
        for name in ("scale", "erase_area"):
            if getattr(self, name)[1] > 1:
                raise InputError(
                    f"`Augmentation.{name}` is a fraction of the area, at most 1, got {getattr(self, name)!r}."
                )
        for name, most in {
            **dict.fromkeys(("jitter", "blur", "erase"), 1.0),
            **dict.fromkeys(("brightness", "contrast", "saturation", "stain"), math.inf),
            "hue": 0.5,
        }.items():
            if not (_number(value := getattr(self, name)) and 0 <= value <= most):
                upper = "" if most == math.inf else f" and at most {most:g}"
                raise InputError(f"`Augmentation.{name}` must be a number, at least 0{upper}, got {value!r}.")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class MoCo:
    """Momentum contrast, version 3 (Chen, Xie & He 2021, arXiv:2104.02057): options of pretraining.

    The defaults are those that sCellST published for hundreds of thousands of cells and a GPU.

    Parameters
    ----------
    epochs
        Passes over the tiles.
    batch_size
        Tiles per step and process, each contrasted with all others; 4096 as published needs a large GPU.
    lr
        Highest learning rate; None: 0.6 ("lars") or 1.5e-4 ("adamw") for each 256 tiles of a step.
    optimizer
        ``"lars"`` (as published) or ``"adamw"``.
    weight_decay
        None: 1e-6 ("lars") or 0.1 ("adamw").
    momentum
        How slowly the second encoder follows the first.
    momentum_schedule
        ``"constant"``, or ``"cosine"``: the momentum rises to 1.
    temperature
        Of the similarities; lower ones tell tiles apart more finely.
    warmup_epochs
        Epochs in which the learning rate rises; None: 10, but at most a tenth of all.
    hidden, projection
        Widths of the two heads, which are thrown away after training, and of their output.
    augmentation
        How the two views of a tile differ.

    Raises
    ------
    InputError
        If a value is impossible.

    References
    ----------
    Chen, Xie & He (2021), An empirical study of training self-supervised vision transformers, ICCV. Chadoutaud et
    al. (2026), sCellST predicts single-cell gene expression from H&E images, Nature Communications.

    Examples
    --------
    Settings for a few thousand cells and minutes on a CPU:

    >>> import stpred as st
    >>> views = st.encoders.Augmentation(
    ...     brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05, scale=(0.8, 1), erase=0
    ... )
    >>> method = st.encoders.MoCo(
    ...     optimizer="adamw", lr=1e-3, batch_size=64, temperature=0.2, momentum=0.9, augmentation=views
    ... )
    >>> method.augmentation.hue
    0.05
    """

    epochs: int = 150
    batch_size: int = 256
    lr: float | None = None
    optimizer: str = "lars"
    weight_decay: float | None = None
    momentum: float = 0.99
    momentum_schedule: str = "constant"
    temperature: float = 1.0
    warmup_epochs: float | None = None
    hidden: int = 4096
    projection: int = 256
    augmentation: Augmentation = Augmentation()

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "hidden", "projection"):
            object.__setattr__(self, name, whole(getattr(self, name), name=name))
        if not isinstance(self.augmentation, Augmentation):
            raise InputError(f"`augmentation` must be stpred.encoders.Augmentation(...), got {self.augmentation!r}.")
        positive(self.temperature, name="temperature")
        one_of(self.optimizer, OPTIMIZERS, name="optimizer")
        one_of(self.momentum_schedule, MOMENTUM_SCHEDULES, name="momentum_schedule")
        for name, most in (("momentum", 1.0), ("weight_decay", math.inf), ("warmup_epochs", math.inf)):
            value = getattr(self, name)
            if value is None and name != "momentum":
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
                upper = "" if most == math.inf else f" and at most {most:g}"
                raise InputError(f"`{name}` must be a number, at least 0{upper}, got {value!r}.")
        if self.lr is not None:
            positive(self.lr, name="lr")

    @property
    def warmup(self) -> float:
        """Epochs in which the rate rises; by default never more than a tenth of all."""
        return min(WARMUP_EPOCHS, self.epochs / 10) if self.warmup_epochs is None else float(self.warmup_epochs)

    def base_lr(self, tiles_per_step: int) -> float:
        """Return the highest learning rate."""
        return BASE_LR[self.optimizer] * tiles_per_step / 256 if self.lr is None else self.lr

    def lr_at(self, epoch: float, *, tiles_per_step: int) -> float:
        """Return the rate at a point of time: linear warm-up, then half a cosine to zero."""
        highest = self.base_lr(tiles_per_step)
        if epoch < self.warmup:
            return highest * epoch / self.warmup
        done = (epoch - self.warmup) / max(self.epochs - self.warmup, 1e-9)
        return highest * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    def momentum_at(self, epoch: float) -> float:
        """Return the momentum of the second encoder; with "cosine" it ends at 1."""
        if self.momentum_schedule == "constant":
            return self.momentum
        return 1 - 0.5 * (1 + math.cos(math.pi * epoch / self.epochs)) * (1 - self.momentum)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {**asdict(self), "augmentation": self.augmentation.to_dict()}

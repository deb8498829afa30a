"""Encoders: what turns H&E tiles into features.

``list`` gives their names, ``get`` one from a name, an encoder, a ``torch.nn.Module`` or a list of these
(:class:`Composite`: several side by side, each with its own tile), ``register`` adds a name;
``save`` and ``load`` keep those of :func:`stpred.tl.pretrain_encoder`, which :class:`MoCo` is the method of;
``push_to_hub`` shares them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stpred.encoders._hub import push_to_hub
from stpred.encoders._saved import load, save
from stpred.encoders.base import Encoder, EncoderCard
from stpred.encoders.composite import Composite
from stpred.encoders.pretraining import Augmentation, MoCo
from stpred.encoders.registry import get, register
from stpred.encoders.registry import list_encoders as list

if TYPE_CHECKING:
    from stpred.encoders._built_in.colour import ColourEncoder, IntensityEncoder
    from stpred.encoders._built_in.morphology import Morphology
    from stpred.encoders.jittered import Jittered

__all__ = [
    "Augmentation",
    "Composite",
    "ColourEncoder",
    "Encoder",
    "EncoderCard",
    "IntensityEncoder",
    "Jittered",
    "MoCo",
    "Morphology",
    "get",
    "list",
    "load",
    "push_to_hub",
    "register",
    "save",
]


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that `import stpred.encoders` stays light.
    if name == "Morphology":
        from stpred.encoders._built_in.morphology import Morphology

        return Morphology
    if name == "Jittered":
        from stpred.encoders.jittered import Jittered

        return Jittered
    if name in ("ColourEncoder", "IntensityEncoder"):
        from stpred.encoders._built_in import colour

        return getattr(colour, name)
    raise AttributeError(f"module 'stpred.encoders' has no attribute {name!r}")


def __dir__() -> Any:
    return sorted(__all__)

"""A side of a registration, and where its own micrometres lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stpred._image.registration import Side


@dataclass(frozen=True)
class Placed:
    """What an element shows, on a grid along its own axes.

    Attributes
    ----------
    side
        Planes and tissue.
    to_frame
        (3, 3) from the side's own micrometres to the frame, or for an image that is to be placed to its pixels.
    what
        What it is, for messages.
    """

    side: Side
    to_frame: NDArray[np.float64]
    what: str

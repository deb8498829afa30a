"""Which elements of a slide an operation reads."""

from __future__ import annotations

from dataclasses import dataclass

from stpred._core import keys


@dataclass(frozen=True)
class Place:
    """Elements of a slide and the coordinate system they are read in; what is None is inferred.

    Attributes
    ----------
    shapes_key, image_key, table_key
        Locations, H&E image and table of counts.
    layer
        Layer of the table that holds the counts; None: ``X``.
    coordinate_system
        Micrometre frame of the slide.
    """

    shapes_key: str | None = None
    image_key: str | None = None
    table_key: str | None = None
    layer: str | None = None
    coordinate_system: str = keys.UM

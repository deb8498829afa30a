"""What a check of the slides' alignment found, for a report."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from stpred._core.checks import InputError, listing

if TYPE_CHECKING:
    from stpred._report._collect import Slide

COLUMNS = ("slide", "shift_um", "gain", "p_value", "aligned")


def put_alignment(slides: list[Slide], found: pd.DataFrame | None) -> None:
    """Give every slide its row of a frame of :func:`stpred.tl.alignment`; frames of no such slides are refused."""
    if found is None:
        return
    if not isinstance(found, pd.DataFrame) or not set(COLUMNS) <= set(found.columns):
        raise InputError(f"`alignment` must be a frame of stpred.tl.alignment, with columns {list(COLUMNS)}.")
    rows = {str(row["slide"]): row for _, row in found.iterrows()}
    for slide in slides:
        slide.alignment = rows.get(slide.name, rows.get(slide.known_as))
    if all(slide.alignment is None for slide in slides):
        raise InputError(
            f"`alignment` is of slides {listing(rows)}, and the report of {listing([s.name for s in slides])}."
        )


def shift_text(slide: Slide) -> str:
    """Return the best shift of a slide's locations, what it gains and how likely that is by chance."""
    row = slide.alignment
    if row is None:
        return "–"
    return f"{row['shift_um']:.0f} µm, {row['gain']:+.3f} (p = {row['p_value']:.2g})"


def misaligned(slides: list[Slide]) -> str | None:
    """Return a warning of slides whose measurement fits the image better elsewhere, or None."""
    off = [s for s in slides if s.alignment is not None and not s.alignment["aligned"]]
    if not off:
        return None
    each = ", ".join(f"{s.name} by about {s.alignment['shift_um']:.0f} µm" for s in off if s.alignment is not None)
    return (
        f"The measured locations fit the image better after a shift: {each}. Check the alignment before believing "
        "scores there."
    )

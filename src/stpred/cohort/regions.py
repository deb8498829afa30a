"""The region of a slide that a run predicts on, where nobody is there to be asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stpred import data, pp
from stpred._core import keys

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stpred.models import Model


def ensure_cells(sdata: SpatialData) -> tuple[str, str]:
    """Return the slide's region of cells, and what there is to say: without one its nuclei are segmented."""
    present = [k for k in (keys.NUCLEI, keys.CELLS) if k in sdata.shapes]
    found = present or [k for k in sdata.shapes if data.looks_like_cells(sdata, k)]
    if found:
        return found[0], ""
    pp.nuclei(sdata)
    return keys.NUCLEI, f"Found {len(sdata.shapes[keys.NUCLEI])} nuclei."


def region_to_predict(
    sdata: SpatialData, model: Model, shapes_key: str | None, *, cells: bool = False
) -> tuple[str | None, list[str]]:
    """Return the region that a model is applied to (None: its own, or a grid), and what there is to say.

    `cells`: the slide's cells, or its nuclei, which are found then.
    """
    said: list[str] = []
    if model.needs.cells or cells:
        found, note = ensure_cells(sdata)
        said += [note] if note else []
        shapes_key = found if shapes_key is None else shapes_key
    if shapes_key is None:
        shapes_key, note = default_region(sdata, model.record.region)
        said += [note] if note else []
    return shapes_key, said


def default_region(sdata: SpatialData, trained_on: str | None) -> tuple[str | None, str]:
    """Return the region to take where a slide has several, which is an error in Python, and what there is to say."""
    candidates = [k for k in sdata.shapes if k != keys.TISSUE]
    if len(candidates) < 2 or trained_on in candidates:
        return None, ""
    found = next((k for k in (keys.SPOTS, keys.CELLS, keys.bins(8), keys.bins(16)) if k in candidates), None)
    if found is None:
        return None, ""
    return found, f"Of the regions {', '.join(candidates)} took {found}; --shapes names another."

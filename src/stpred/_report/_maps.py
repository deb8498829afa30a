"""Maps that a page draws by itself: a thumbnail, places of locations, and a byte per location and gene."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import targets
from stpred._core.elements import find_image
from stpred._core.geometry import geometries_um, square_bins
from stpred.tiles import Pyramid

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stpred._report._collect import Slide

MAX_DRAWN = 20_000
"""Locations of a slide from which on they are averaged in squares: no screen shows more."""

MISSING = 255
"""Byte of a location without a value."""

STEPS = 65_535
"""Steps into which the box of a slide is cut in each direction."""

QUANTILES = (0.01, 0.99)


@dataclass
class Layout:
    """Where the locations of a slide are drawn.

    Attributes
    ----------
    box_um
        x0, y0, x1, y1 of what is shown.
    xy_um
        (m, 2) centres of what is drawn.
    member
        (n,) which of them each location belongs to, or None: each is drawn.
    size_um
        Radius of circles, or half the edge of squares.
    square
        Whether squares are drawn.
    image
        JPEG of the tissue in the box, or None.
    """

    box_um: tuple[float, float, float, float]
    xy_um: NDArray[np.float64]
    member: NDArray[np.int64] | None
    size_um: float
    square: bool
    image: bytes | None

    @property
    def filled_um(self) -> float:
        """Size for small maps, on which spots as they are would be dots; the tissue still shows between them."""
        from scipy.spatial import cKDTree

        if len(self.xy_um) < 2:
            return self.size_um
        nearest = cKDTree(self.xy_um).query(self.xy_um, k=2)[0][:, 1]
        return max(self.size_um, 0.36 * float(np.median(nearest)))

    def reduced(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return one value per drawn location: the mean of the known ones in it."""
        if self.member is None:
            return values
        known = np.isfinite(values)
        n = np.bincount(self.member[known], minlength=len(self.xy_um))
        total = np.bincount(self.member[known], weights=values[known], minlength=len(self.xy_um))
        return np.where(n > 0, total / np.maximum(n, 1), np.nan)

    def to_json(self, name: str) -> dict[str, Any]:
        """Return what the page has to know of the slide."""
        x0, y0, x1, y1 = self.box_um
        places = (self.xy_um - [x0, y0]) / [x1 - x0, y1 - y0] * STEPS
        places = np.clip(np.round(places), 0, STEPS).astype("<u2")
        return {
            "name": name,
            "width": x1 - x0,
            "height": y1 - y0,
            "size": self.size_um,
            "filled": self.filled_um,
            "square": self.square,
            "x": encoded(places[:, 0].tobytes()),
            "y": encoded(places[:, 1].tobytes()),
            "image": None if self.image is None else "data:image/jpeg;base64," + encoded(self.image),
        }


def encoded(data: bytes) -> str:
    """Return bytes as base64 text."""
    return base64.b64encode(data).decode("ascii")


def lay_out(slide: Slide, *, image_key: str | None, max_px: int, coordinate_system: str) -> Layout:
    """Say where a slide's locations are drawn, on a thumbnail of the tissue around them."""
    xy = np.asarray(slide.table.obsm["spatial"], dtype=np.float64)[slide.rows]
    size, square = _footprint(slide, coordinate_system)
    member = None
    low, high = xy.min(axis=0) - size, xy.max(axis=0) + size
    if len(xy) > MAX_DRAWN:
        edge = float(np.sqrt(np.prod(high - low) / MAX_DRAWN))
        edge = max(edge, 2 * size)
        at, member = square_bins(xy, edge)
        xy, size, square = np.multiply(at + 0.5, edge, dtype=np.float64), edge / 2, True
    margin = 0.04 * float((high - low).max())
    box = (*(low - margin).tolist(), *(high + margin).tolist())
    image = None
    if image_key is not None or len(slide.sdata.images):
        key = find_image(slide.sdata, image_key, coordinate_system=coordinate_system)
        pyramid = Pyramid.from_image(slide.sdata.images[key], coordinate_system=coordinate_system)
        box, image = _photograph(pyramid, box, max_px=max_px)
    return Layout(box, xy, member, size, square, image)


def drawn_note(layouts: list[Layout]) -> str:
    """Say in what way the small maps are not as the slide is."""
    said = ""
    if any(layout.filled_um > 1.01 * layout.size_um for layout in layouts):
        said += "Locations are drawn larger here than they are; the maps of a gene below show their size. "
    if any(layout.member is not None for layout in layouts):
        said += f"Of slides with more than {MAX_DRAWN:,} locations the maps show averages in squares."
    return f'<p class="note">{said.strip()}</p>' if said else ""


def _footprint(slide: Slide, coordinate_system: str) -> tuple[float, bool]:
    """Return the radius of a location, or half its edge and that it is a square."""
    import shapely

    rows = np.unique(np.linspace(0, len(slide.sdata.shapes[slide.region]) - 1, 500).astype(np.int64))
    shapes, _ = geometries_um(slide.sdata, slide.region, rows=rows, coordinate_system=coordinate_system)
    area = float(np.median(shapely.area(shapes)))
    x0, y0, x1, y1 = shapely.bounds(shapes).T
    if area > 0.95 * float(np.median((x1 - x0) * (y1 - y0))):
        return np.sqrt(area) / 2, True
    return float(np.sqrt(area / np.pi)), False


def _photograph(
    pyramid: Pyramid, box: tuple[float, ...], *, max_px: int
) -> tuple[tuple[float, float, float, float], bytes]:
    """Return the tissue in a box as a JPEG, and the box as it was cut."""
    from PIL import Image

    x0, y0, x1, y1 = pyramid.bounds_um
    x0, y0, x1, y1 = max(x0, box[0]), max(y0, box[1]), min(x1, box[2]), min(y1, box[3])
    mpp = max(pyramid.mpp, max(x1 - x0, y1 - y0) / max_px)
    pixels, corner = pyramid.thumbnail(mpp)
    left, top = np.maximum(np.floor((np.array([x0, y0]) - corner) / mpp), 0).astype(int)
    right, bottom = np.ceil((np.array([x1, y1]) - corner) / mpp).astype(int)
    part = pixels[top:bottom, left:right]
    start = corner + np.array([left, top]) * mpp
    end = start + np.array(part.shape[1::-1]) * mpp
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(part)).save(buffer, format="JPEG", quality=78, optimize=True)
    return (float(start[0]), float(start[1]), float(end[0]), float(end[1])), buffer.getvalue()


class Values:
    """Predicted and measured values of a slide's locations, gene by gene."""

    def __init__(self, slide: Slide, layout: Layout) -> None:
        self.slide, self.layout = slide, layout
        self.columns = {str(g): i for i, g in enumerate(slide.table.var_names)}
        self.measured = {} if slide.both is None else {str(g): i for i, g in enumerate(slide.both.genes)}
        self.at = None if slide.both is None else slide.instances.get_indexer(slide.both.instances)

    def of(self, gene: str) -> list[Any] | None:
        """Return [low, high, bytes] of the prediction, and of the measurement if there is one; None without a gene."""
        if gene not in self.columns:
            return None
        table = self.slide.table
        predicted = targets.dense(table.X[:, [self.columns[gene]]]).ravel()[self.slide.rows]
        found = [quantised(self.layout.reduced(predicted))]
        if gene in self.measured:
            both: Any = self.slide.both
            observed = np.full(len(self.slide.rows), np.nan)
            observed[self.at] = both.observed[:, self.measured[gene]]
            found.append(quantised(self.layout.reduced(observed)))
        return found


def quantised(values: NDArray[np.float64]) -> list[Any]:
    """Return the lower and upper end of the colours and a byte per value, as base64."""
    known = values[np.isfinite(values)]
    low, high = np.quantile(known, QUANTILES).tolist() if len(known) else (0.0, 1.0)
    span = high - low
    # A constant gets a scale of its own size, as in stpred.pl, not one of rounding errors.
    high, span = (high, span) if span > 1e-3 * max(abs(low), 1e-3) else (low + max(abs(low), 1.0), max(abs(low), 1.0))
    steps = np.full(len(values), MISSING, dtype=np.uint8)
    there = np.isfinite(values)
    steps[there] = np.clip(np.round((values[there] - low) / span * (MISSING - 1)), 0, MISSING - 1)
    return [float(f"{low:.4g}"), float(f"{high:.4g}"), encoded(steps.tobytes())]

"""Which pictures an image file holds, and which of them is the slide."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from stpred._core.checks import InputError, listing, warn
from stpred._core.files import readable
from stpred.io._images.resolution import ome_images
from stpred.io._images.sizes import check_directory

logger = logging.getLogger("stpred")

MIN_SCENE_SHARE = 0.05
"""Share of the largest picture's pixels from which on another one counts as a scene that a user may have meant."""

MIN_FACTOR = 1.9
"""Smaller copies of a picture are at least this much smaller."""
COMPARED_PX = 16 * 2**20
"""Up to this size a picture is looked at, to tell whether a smaller one shows the same."""
COMPARED = (32, 32)
MAX_DIFFERENCE = 25.0
"""Mean difference of grey values from which on it does not."""
MAX_PAGES = 10_000
"""A slide of all levels, focal planes and channels has fewer; others take minutes to be looked through."""

_ANCILLARY = re.compile(
    r"label|macro|thumb|overview|\bmap\b|preview|probability|barcode|snapshot|low ?res", re.IGNORECASE
)
_OWN_IMAGES = ("ome", "scn", "shaped", "qpi")
"""Kinds of tif that say which pictures are levels of one another."""


class Place(NamedTuple):
    """Where a level's pages are: those `start` to `stop` of a level of a series, or one page that is in no series."""

    series: int
    level: int
    start: int = 0
    stop: int | None = None

    def pages(self, tif: Any) -> list[Any]:
        """Return the pages: one of all samples, or one for each channel."""
        if self.series < 0:
            return [tif.pages[self.level]]
        return list(tif.series[self.series].levels[self.level].pages)[self.start : self.stop]


@dataclass(frozen=True)
class Part:
    """One level of a scene, as its file describes it; `sizes` are of its axes but for those of one."""

    place: Place
    sizes: dict[str, int]
    dtype: np.dtype
    pages: list[Any]

    @property
    def keyframe(self) -> Any:
        """The page that describes all of them."""
        return next(page for page in self.pages if page is not None).keyframe

    @property
    def area(self) -> int:
        """Number of pixels."""
        return self.sizes["Y"] * self.sizes["X"]


@dataclass
class Scene:
    """One picture of a file with its levels, the finest first."""

    number: int
    name: str
    levels: list[Part]
    kind: str = ""
    image: Any = field(default=None, repr=False)

    def __str__(self) -> str:
        sizes = self.levels[0].sizes
        name = f" {self.name!r}" if self.name else ""
        return f"{self.number}{name} ({sizes['X']} x {sizes['Y']} px)"

    @property
    def is_ancillary(self) -> bool:
        """Whether it is a label, a macro or another small picture about the slide."""
        return bool(_ANCILLARY.search(self.name))


def scenes_of(tif: Any) -> list[Scene]:
    """Return the pictures of an opened tif, in the order of the file."""
    if len(tif.pages) > MAX_PAGES:
        raise InputError(f"The image {tif.filename!r} is a stack of {len(tif.pages)} pages, not a slide.")
    scenes: list[Scene] = []
    images = ome_images(tif)
    offsets: set[int] = set()
    for s, series in enumerate(tif.series):
        if max(len(level.pages) for level in series.levels) > MAX_PAGES:
            raise InputError(f"The image {tif.filename!r} is a stack of {len(series.pages)} pages, not a slide.")
        offsets |= {page.offset for level in series.levels for page in level.pages if page is not None}
        if not math.prod(series.shape):
            continue
        name = _name(series, tif)
        for n in range(_stacked(series)):
            parts = [_part(Place(s, k), level, n, of=_stacked(series)) for k, level in enumerate(series.levels)]
            for levels in _alike([p for p in parts if p is not None], series.kind):
                scene = Scene(len(scenes), name, levels, series.kind)
                scene.image = _described(images, s, scene)
                scenes.append(scene)
    scenes += _beside_series(tif, offsets, len(scenes))
    return _unite(tif, scenes)


def _name(series: Any, tif: Any) -> str:
    if tif.is_qpi:  # tifffile goes by the order of pages
        kind = re.search(r"<ImageType>\s*(\w+)", series.keyframe.description or "")
        return kind[1] if kind else series.name
    return series.name or ""


def _stacked(series: Any) -> int:
    """Return how many colour pictures of one size tifffile stacked to one series; 1 where it is one picture."""
    pages, n = len(series.pages), math.prod(s for a, s in zip(series.axes, series.shape, strict=True) if a not in "YXS")
    colour = series.keyframe.samplesperpixel > 1 or int(series.keyframe.photometric) == 3
    others = {a for a, s in zip(series.axes, series.shape, strict=True) if a not in "YXS" and s > 1}
    return n if n == pages and colour and others <= set("IQC") else 1


def _part(place: Place, level: Any, n: int, *, of: int) -> Part | None:
    sizes = {a: s for a, s in zip(level.axes, level.shape, strict=True) if s > 1 or a in "YX"}
    pages = list(level.pages)
    if of > 1:
        if len(pages) != of:
            return None
        sizes = {a: s for a, s in sizes.items() if a in "YXS"}
        place, pages = place._replace(start=n, stop=n + 1), pages[n : n + 1]
    if not {"Y", "X"} <= set(sizes) or level.dtype is None:
        return None
    return Part(place, sizes, np.dtype(level.dtype), pages)


def _alike(parts: list[Part], kind: str) -> list[list[Part]]:
    """Part a series where tifffile took pages for levels by their size alone and they show something else."""
    if kind != "generic" or not parts:
        return [parts] if parts else []
    finest, scenes = parts[0], [[parts[0]]]
    for part in parts[1:]:
        marked = part.keyframe.is_reduced or part.keyframe.is_subifd
        if marked or _shows(finest, part):
            scenes[0].append(part)
        elif len(scenes) > 1 and is_level(scenes[-1][0], part) and _shows(scenes[-1][0], part):
            scenes[-1].append(part)
        else:
            scenes.append([part])
    return scenes


def _shows(finest: Part, part: Part) -> bool:
    """Tell whether a smaller picture shows what a larger one does; of those too large to look at, assume it."""
    if finest.area > COMPARED_PX or len(finest.pages) != 1 or len(part.pages) != 1:
        return True
    path = Path(finest.pages[0].parent.filehandle.path)
    try:
        with readable(path.name, what="image"):
            for one in (part, finest):
                check_directory(path, one.pages)
            small, large = (one.pages[0].asarray(maxworkers=1) for one in (part, finest))
    except InputError as error:  # what is needed of it is checked when it is read
        logger.info("%s", error)
        return True
    if small.dtype != np.uint8 or large.dtype != np.uint8 or small.ndim != 3 or large.ndim != 3:
        return True
    grey = [np.asarray(a, dtype=np.uint8).max(axis=a.shape.index(min(a.shape))) for a in (small, large)]
    reduced = [np.asarray(Image.fromarray(g).resize(COMPARED, Image.Resampling.BOX), dtype=np.float64) for g in grey]
    return bool(np.abs(reduced[0] - reduced[1]).mean() <= MAX_DIFFERENCE)


def _described(images: Sequence[Any], series: int, scene: Scene) -> Any:
    """Return the OME header's element of a scene: the one at its place if the size fits, else the only fitting one."""
    sizes = scene.levels[0].sizes

    def fits(image: Any) -> bool:
        pixels = next((e for e in image if e.tag.rpartition("}")[2] == "Pixels"), None)
        return pixels is not None and [pixels.get(f"Size{a}") for a in "XY"] == [str(sizes[a]) for a in "XY"]

    if series < len(images) and fits(images[series]):
        return images[series]
    fitting = [image for image in images if fits(image)]
    return fitting[0] if len(fitting) == 1 else None


def _beside_series(tif: Any, offsets: set[int], count: int) -> list[Scene]:
    """Return the pictures that are in no series, which tifffile leaves out where a vendor's layout is another one."""
    if not (tif.is_qpi or tif.is_philips or tif.is_svs):
        return []
    scenes: list[Scene] = []
    for k in range(len(tif.pages)):
        page = tif.pages[k]
        if page.offset in offsets or not page.shape or not math.prod(page.shape):
            continue
        kind = re.search(r"<ImageType>\s*(\w+)", page.description or "")
        sizes = {a: s for a, s in zip(page.axes, page.shape, strict=True) if s > 1 or a in "YX"}
        if page.dtype is not None:
            part = Part(Place(-1, k), sizes, np.dtype(page.dtype), [page])
            scenes.append(Scene(count + len(scenes), kind[1] if kind else "", [part], "page"))
    return scenes


def _unite(tif: Any, scenes: list[Scene]) -> list[Scene]:
    """Make levels of what the file keeps apart though it is a smaller copy, and number what is left."""
    left: list[Scene] = []
    for scene in scenes:
        first, kind = scene.levels[0], scene.name
        wanted = kind == "ReducedResolution" or (tif.is_svs and first.keyframe.is_tiled)
        whole = next((s for s in reversed(left) if is_level(s.levels[0], first)), None) if wanted else None
        if whole is not None:  # an Aperio slide without a thumbnail, whose second level is taken for one
            whole.levels.append(first)
        else:
            left.append(scene)
    for number, scene in enumerate(left):
        scene.number = number
    return left


def is_level(finest: Part, level: Part) -> bool:
    """Tell whether a level is a scaled copy of the finest one, as some files carry others under the same name."""
    ratios = [finest.sizes[a] / level.sizes[a] for a in "YX"]
    allowed = 2.0 / min(level.sizes[a] for a in "YX")
    return ratios[0] > 1 and abs(ratios[0] / ratios[1] - 1) < max(0.02, allowed) and level.dtype == np.uint8


def choose(scenes: Sequence[Scene], *, scene: int | str | None, path: Path) -> Scene:
    """Return the scene that was asked for, else the largest; those not taken are named.

    Raises
    ------
    InputError
        If there is no such scene.
    """
    if scene is not None:
        return _find_scene(scenes, scene, path)
    slides = [s for s in scenes if not s.is_ancillary] or list(scenes)
    chosen = max(slides, key=lambda s: math.prod(s.levels[0].sizes.values()))  # the first of equals
    others = [s for s in scenes if s is not chosen and not _is_copy(chosen, s)]
    alike = [s for s in others if not s.is_ancillary and s.levels[0].area >= MIN_SCENE_SHARE * chosen.levels[0].area]
    if alike:
        warn(
            f"The image {path.name!r} holds several scenes: {chosen} is read, not {', '.join(map(str, alike[:6]))}"
            f"{' and more' if len(alike) > 6 else ''}; scene= chooses another."
        )
    if len(others) > len(alike):
        logger.info("%s: of %s, %s is read.", path.name, listing(scenes), chosen)
    return chosen


def _is_copy(chosen: Scene, scene: Scene) -> bool:
    """Tell whether a picture is a smaller copy of the chosen one, of files that do not say what their pictures are."""
    finest, first = chosen.levels[0], scene.levels[0]
    smaller = finest.sizes["Y"] >= MIN_FACTOR * first.sizes["Y"] and is_level(finest, first)
    return smaller and scene.kind not in _OWN_IMAGES and _shows(finest, first)


def _find_scene(scenes: Sequence[Scene], scene: int | str, path: Path) -> Scene:
    found: list[Scene] = []
    if isinstance(scene, str):
        found = [s for s in scenes if s.name == scene] or [s for s in scenes if s.name.lower() == scene.lower()]
        if not found and scene.strip().isdigit():
            scene = int(scene)
    if isinstance(scene, (int, np.integer)) and not isinstance(scene, bool):
        found = [s for s in scenes if s.number == scene]
    if len(found) != 1:
        raise InputError(
            f"`scene` must be the number or the name of one of the scenes of {path.name!r}, got {scene!r}; there are "
            f"{listing(scenes, most=20)}."
        )
    return found[0]

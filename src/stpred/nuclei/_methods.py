"""What can segment a field: the built-in kernel, models of lazyslide-models, any callable."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stpred._core.checks import InputError, listing
from stpred._image.labels import Labels, whole_pieces
from stpred._image.stain import he_inverse
from stpred._image.tissue import white_level

BUILTIN, NETWORK = "builtin", "network"
OWN = (NETWORK, BUILTIN)
"""What comes with stpred."""
DEFAULT = BUILTIN
MIN_AREA_UM2 = 8.0
"""Smallest nucleus, if nothing else is said: below it, more of what is found is debris than nuclei are gained."""
WORK_MPP = 0.5
"""Micrometres per pixel of the fields of the own methods, and of callables that say nothing else."""

_PACKAGE = "lazyslide-models"
# Models with a `segment` that label tissue, artefacts or whatever a prompt points at, not every nucleus.
_OTHER_TASKS = {"grandqc-artifact", "grandqc-tissue", "hest-tissue-segmentation", "pathprofiler", "sam"}
_MODEL_MPP, _MODEL_PX, _MODEL_REACH_UM = 0.5, 512, 24.0
_MOST_NETWORK_UM = 320.0  # about 400 MB of activations per thread
# HistoPLUS' position codes are made for one size.
_FIXED_PX = {"histoplus": 224}


class Segmenter(Protocol):
    """Any callable that labels the nuclei of a field.

    It gets (h, w, 3) uint8 RGB pixels and ``mpp``, and returns (h, w) whole numbers: 0 for ground, another number for
    each nucleus. An attribute ``mpp`` says at which resolution it wants its fields; without one it gets 0.5 um per
    pixel.
    """

    def __call__(self, rgb: NDArray[np.uint8], *, mpp: float) -> NDArray[np.integer]:
        """Return the label image of a field."""
        ...


class Slide(Protocol):
    """What a method measures once per slide; more than the white is its own business."""

    @property
    def white(self) -> tuple[float, float, float]:
        """Grey values of red, green and blue where there is no tissue."""
        ...


@dataclass(frozen=True)
class White:
    """The least that is measured once per slide."""

    white: tuple[float, float, float]


Fields = list[NDArray[np.uint8]]
Visible = list[NDArray[np.bool_] | None]


def measure_white(fields: Fields, visible: Visible) -> Slide:
    """Measure the glass of a slide on fields of its tissue and what is visible of each."""
    return White(white_level(fields, visible))


@dataclass(frozen=True)
class Method:
    """One way to segment, and the fields it wants.

    Attributes
    ----------
    mpp
        Resolution of its fields.
    reach_um
        Overlap of neighbouring fields on every side.
    field_px
        Edge of its fields, where it is bound to one.
    run
        Field and what was measured on the slide in, labels 1..n in one piece each out.
    threads
        Whether several fields may be segmented at once.
    inset_um
        How far within the border of its labels the outline of a nucleus is.
    measure
        What `run` wants to know of the slide, from some fields of its tissue.
    grid_um
        Fields begin at multiples of it.
    most_um
        Largest edge of a field without its overlap.
    pool
        Starts that many threads for `run`.
    """

    mpp: float
    reach_um: float
    field_px: int | None
    run: Callable[[NDArray[np.uint8], Any], Labels]
    threads: bool
    inset_um: float = 0.0
    measure: Callable[[Fields, Visible], Slide] = measure_white
    grid_um: float = 2.0
    most_um: float = np.inf
    pool: Callable[[int], AbstractContextManager[Executor]] = ThreadPoolExecutor


def names() -> list[str]:
    """Return what `method` may be: the own ones and the nucleus models of lazyslide-models, if installed."""
    if find_spec("lazyslide_models") is None:
        return list(OWN)
    from lazyslide_models import MODEL_REGISTRY

    return [*OWN, *(n for n, model in MODEL_REGISTRY.items() if hasattr(model, "segment") and n not in _OTHER_TASKS)]


def check(method: Any) -> None:
    """Refuse what is no method."""
    # Own names first: importing lazyslide-models takes seconds.
    if callable(method) or (isinstance(method, str) and (method in OWN or method in names())):
        return
    missing = "" if find_spec("lazyslide_models") else f"; more come with `pip install {_PACKAGE}`"
    raise InputError(
        f"`method` must be one of {listing(names(), most=40)}{missing}, or a callable(rgb, mpp=...) that returns a "
        f"label image, got {method!r}."
    )


def make(method: str | Segmenter, *, min_area_um2: float, max_area_um2: float, device: str | None = None) -> Method:
    """Return the method of that name, or the callable as one."""
    check(method)
    if method == BUILTIN:
        return _builtin(min_area_um2, max_area_um2)
    if method == NETWORK:
        return _network(min_area_um2, max_area_um2, device=device)
    if isinstance(method, str):
        return _model(method, device=device)
    mpp = float(getattr(method, "mpp", None) or WORK_MPP)
    return Method(
        mpp, _MODEL_REACH_UM, None, lambda rgb, _: _labels(method(rgb, mpp=mpp), rgb.shape, method), threads=False
    )


def _builtin(min_area_um2: float, max_area_um2: float) -> Method:
    from stpred._image.segment import INSET_UM, REACH_UM, measure_staining, segment

    def run(rgb: NDArray[np.uint8], staining: Any) -> Labels:
        return segment(rgb, staining, min_area_um2=min_area_um2, max_area_um2=max_area_um2)

    return Method(WORK_MPP, REACH_UM, None, run, threads=True, inset_um=INSET_UM, measure=measure_staining)


def _network(min_area_um2: float, max_area_um2: float, *, device: str | None) -> Method:
    from stpred.nuclei import _network as network
    from stpred.nuclei._levels import measure_levels, normalised
    from stpred.nuclei._parting import part

    device = _device(device)
    net = network.load(device)
    area_px = (min_area_um2 / WORK_MPP**2, max_area_um2 / WORK_MPP**2)

    def run(rgb: NDArray[np.uint8], levels: Any) -> Labels:
        found = network.planes(net, normalised(rgb, levels), device=device)
        return part(found, offset_px=network.OFFSET_PX, area_px=area_px)

    # The network sees 24 um around a pixel; a nucleus reaches as far from its middle as the rest.
    grid_um = network.STRIDE_PX * WORK_MPP
    return Method(
        WORK_MPP, 32.0, None, run, threads=True, measure=measure_levels, grid_um=grid_um, most_um=_MOST_NETWORK_UM,
        pool=_single_threaded,
    )  # fmt: skip


@contextmanager
def _single_threaded(n: int) -> Iterator[Executor]:
    """Start threads in which torch has one thread of its own; many fields at once are faster than many threads each."""
    import torch

    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(n, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)  # for threads that are started later


def _device(device: str | None) -> str:
    import torch

    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def stains(rgb: NDArray[np.uint8], white: tuple[float, float, float]) -> NDArray[np.float32]:
    """Return haematoxylin and eosin of a field as (2, h, w), against the slide's own glass."""
    inverse = he_inverse()
    grey = np.maximum(np.arange(256), 1)
    out = np.zeros((2, *rgb.shape[:2]), np.float32)
    for channel in range(3):
        density = np.maximum(np.log10(white[channel] / grey), 0).astype(np.float32)
        for stain in range(2):
            out[stain] += (density * inverse[channel, stain])[rgb[..., channel]]
    return out


def _model(name: str, *, device: str | None) -> Method:
    """Build a model of lazyslide-models; its fields are those that it was made for."""
    import torch
    from lazyslide_models import MODEL_REGISTRY

    cls: Any = MODEL_REGISTRY[name]
    try:
        model = cls()
    except ImportError as error:
        raise InputError(f"The method {name!r} needs a package that is not installed: {error}.") from error
    except Exception as error:
        where = getattr(cls, "hf_url", None) or getattr(cls, "github_url", None) or _PACKAGE
        gated = "; they are gated: request access there and log in to Hugging Face" * bool(getattr(cls, "is_gated", 0))
        raise InputError(
            f"The weights of {name!r} could not be had ({type(error).__name__}); they come from {where}{gated}, or "
            f"fill the Hugging Face cache on a machine that can reach it; method={BUILTIN!r} needs none."
        ) from error
    device = _device(device)
    model.to(device)
    transform = model.get_transform()
    step = getattr(getattr(cls, "input_constraint", None), "divisible_by", None) or 1
    size_px = _FIXED_PX.get(name, _MODEL_PX) // step * step

    def run(rgb: NDArray[np.uint8], _: Slide) -> Labels:
        with torch.inference_mode():
            image = torch.from_numpy(rgb) if transform is None else transform(rgb)
            found = model.segment(image[None].to(device)).instance_map
        if found is None:
            raise InputError(f"The model {name!r} labels no single nuclei, so it cannot be a `method`.")
        return _labels(found[0].cpu().numpy() if torch.is_tensor(found) else found[0], rgb.shape, name)

    mpp = float(getattr(cls, "_base_mpp", None) or _MODEL_MPP)
    return Method(mpp, _MODEL_REACH_UM, size_px, run, threads=False)


def _labels(found: Any, shape: tuple[int, ...], method: Any) -> Labels:
    """Check a label image and number its labels 1..n, one piece each."""
    labels = np.asarray(found)
    if labels.shape != shape[:2] or not np.issubdtype(labels.dtype, np.integer) or labels.min(initial=0) < 0:
        name = method if isinstance(method, str) else getattr(method, "__name__", type(method).__name__)
        raise InputError(
            f"The method {name!r} must return whole numbers >= 0 of shape {shape[:2]}, got {labels.dtype} of shape "
            f"{labels.shape}."
        )
    _, numbers = np.unique(np.r_[0, labels.reshape(-1)], return_inverse=True)
    return whole_pieces(numbers[1:].reshape(labels.shape))

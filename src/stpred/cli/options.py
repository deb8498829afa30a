"""Options that several commands share."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from stpred._core.settings import settings

Slides = Annotated[
    list[str],
    typer.Argument(
        metavar="SLIDES...",
        help="Slides (path or name=path), folders of slides, or a csv that lists them (columns slide, path, donor, "
        "format, and the options under Reading with _ for -, such as image, spots, mpp, swap_xy).",
    ),
]

_PANEL = "Reading"


def _option(*names: str, help: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=_PANEL)


READER_OPTIONS: dict[str, Any] = {
    "format": Annotated[
        str | None,
        _option("--format", help="visium, visium_hd, xenium, legacy_st, hest or wsi; default: found from the files."),
    ],
    "mpp": Annotated[float | None, _option("--mpp", help="Micrometres per pixel of the full-resolution image.")],
    "image": Annotated[
        Path | None,
        _option("--image", "--he-image", help="Full-resolution H&E image that belongs to the folder or h5ad file."),
    ],
    "spots": Annotated[Path | None, _option("--spots", help="Legacy ST: spots file of the counts file SLIDE.")],
    "alignment": Annotated[Path | None, _option("--alignment", help="Xenium: alignment csv of the H&E image.")],
    "scene": Annotated[str | None, _option("--scene", help="Which of several scenes of one image file.")],
    "swap_xy": Annotated[
        bool | None,
        _option("--swap-xy/--no-swap-xy", help="HEST: x and y are exchanged, or as they are."),
    ],
    "counts": Annotated[str | None, _option("--counts", help="Visium: name of the file of counts.")],
    "layer": Annotated[str | None, _option("--layer", help="HEST: layer of the h5ad file that holds raw counts.")],
    "bin_size": Annotated[
        list[int] | None, _option("--bin-size", help="Visium HD: edge of the bins in um; may be repeated.")
    ],
    "segmentations": Annotated[
        bool | None, _option("--segmentations/--no-segmentations", help="Visium HD: read segmented cells.")
    ],
    "dataset_id": Annotated[str | None, _option("--dataset-id", help="Visium: name in the file names.")],
    "pitch_um": Annotated[float | None, _option("--pitch-um", help="Legacy ST, HEST: distance of the spots' centres.")],
    "diameter_um": Annotated[float | None, _option("--diameter-um", help="Legacy ST, HEST: diameter of the spots.")],
    "pixel_size_um": Annotated[
        float | None, _option("--pixel-size-um", help="Xenium: size of the morphology image's pixels.")
    ],
}
"""Options of the readers, by the name of the csv's column."""


CACHE = Annotated[
    Path | None,
    typer.Option(
        "--cache", help="Folder in which features are kept; those that stpred features put there are not computed anew."
    ),
]


def reads_slides(command: Callable[..., None], *, cache: bool = True) -> Callable[..., None]:
    """Give a command with a parameter ``reading`` the options of the readers, packed into it.

    `cache`: also an option for the folder of features.
    """
    signature = inspect.signature(command, eval_str=True)
    own = [p for n, p in signature.parameters.items() if n != "reading"]
    more = [
        inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=a)
        for n, a in READER_OPTIONS.items()
    ]
    own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    if cache:
        own.append(inspect.Parameter("cache", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=CACHE))

    @functools.wraps(command)
    def wrapped(**kwargs: Any) -> None:
        reading = {n: kwargs.pop(n) or None if n == "bin_size" else kwargs.pop(n) for n in READER_OPTIONS}
        kept = kwargs.pop("cache", None)
        with contextlib.nullcontext() if kept is None else settings.override(cache_dir=kept.absolute()):
            command(reading=reading, **kwargs)

    wrapped.__signature__ = signature.replace(parameters=own + more)  # type: ignore[attr-defined]
    return wrapped


Genes = Annotated[
    str | None,
    typer.Option(help="Rule and number (mean:250, hvg:1000, svg:200, rmax:500, all), or symbols separated by commas."),
]

Encoder = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ENCODER",
        help="Name (see stpred models) or the folder of a saved one; default: the model family's own (mostly "
        "morphology). Behind @ come um per pixel and pixels of its tile (morphology@0.5x224), behind a colon the "
        "layers of a network and how they are pooled (:layers=1-4 or :layers=1+3,pool=max). Repeat the option to put "
        "the features of several encoders side by side.",
    ),
]


def _upsampling(wanted: bool) -> bool:
    if wanted:
        settings.max_upsampling = float("inf")
    return wanted


Upsampling = Annotated[
    bool, typer.Option("--allow-upsampling", callback=_upsampling, help="Accept an image that is too coarse.")
]

Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; default: a GPU if there is one.")]

ShapesKey = Annotated[str | None, typer.Option("--shapes", help="Region to work on; default: found by itself.")]

Groups = Annotated[
    str | None,
    typer.Option(
        help="Donors: 'slide' (each slide its own) or slide=donor pairs with commas; default: the csv's column."
    ),
]


Ensemble = Annotated[int | None, typer.Option(help="Train so many members; their spread is the uncertainty.")]

Checkpoint = Annotated[Path | None, typer.Option(help="Folder that an interrupted training goes on from.")]

Precision = Annotated[str | None, typer.Option(help="32-true (default), bf16-mixed or 16-mixed.")]

_MANY = "Many slides"


def many(*names: str, help: str) -> Any:
    """Return an option about runs over many slides."""
    return typer.Option(*names, help=help, rich_help_panel=_MANY)


Workers = Annotated[
    int | None, many("--workers", help="Processes, of one core each; default: as cores and memory allow.")
]

GPUs = Annotated[str | None, many("--devices", help="GPUs, such as 0,1: a process for each.")]

Scheduler = Annotated[str | None, many("--scheduler", help="Address of a Dask scheduler to work on.")]

Shard = Annotated[str | None, many("--shard", help="i/n: only the i-th of n parts, as one of n jobs.")]

SkipErrors = Annotated[bool, many("--skip-errors", help="Slides that fail are no error: exit status 3 instead of 2.")]

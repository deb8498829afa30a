"""Options that several commands share."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from stpred._core.settings import PRECISIONS, settings
from stpred.cli.help import complete
from stpred.cli.help.complete import Completer
from stpred.cli.help.formatting import LAST

OUTPUT, TRAINING, MACHINE, MANY = "What is written", "Training", "Encoder and device", "Many slides"
"""Groups of options in ``--help``; ``LAST``, of the readers, comes behind them."""


def option(*names: str, metavar: str, help: str, panel: str | None = None, complete: Completer | None = None) -> Any:
    """Return an option that takes a value."""
    return typer.Option(*names, metavar=metavar, help=help, rich_help_panel=panel, autocompletion=complete)


def flag(*names: str, help: str, panel: str | None = None, **more: Any) -> Any:
    """Return an option without a value."""
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


def _reading(*names: str, metavar: str, help: str, complete: Completer | None = None) -> Any:
    return option(*names, metavar=metavar, help=help, panel=LAST, complete=complete)


Slides = Annotated[
    list[str],
    typer.Argument(
        metavar="SLIDE",
        help="Slides (path or name=path), folders of slides, or a csv that lists them: columns slide, path, donor, "
        "format, and the options under Reading the slides with _ for -, such as image, spots, mpp, swap_xy.",
    ),
]

READER_OPTIONS: dict[str, Any] = {
    "format": Annotated[
        str | None,
        _reading(
            "--format", metavar="FORMAT", complete=complete.one_of(complete.FORMATS),
            help="visium, visium_hd, xenium, legacy_st, hest or wsi; default: found from the files.",
        ),
    ],
    "mpp": Annotated[
        float | None,
        _reading("--mpp", metavar="UM", help="Micrometres per pixel of the full-resolution image."),
    ],
    "image": Annotated[
        Path | None,
        _reading(
            "--image", "--he-image", metavar="FILE",
            help="Full-resolution H&E image that belongs to the folder or h5ad file.",
        ),
    ],
    "spots": Annotated[
        Path | None, _reading("--spots", metavar="FILE", help="Legacy ST: spots file of the counts file SLIDE.")
    ],
    "alignment": Annotated[
        Path | None, _reading("--alignment", metavar="FILE", help="Xenium: alignment csv of the H&E image.")
    ],
    "scene": Annotated[
        str | None, _reading("--scene", metavar="SCENE", help="Which of several scenes of one image file.")
    ],
    "swap_xy": Annotated[
        bool | None,
        flag("--swap-xy/--no-swap-xy", help="HEST: x and y are exchanged, or as they are.", panel=LAST),
    ],
    "counts": Annotated[
        str | None, _reading("--counts", metavar="NAME", help="Visium: name of the file of counts.")
    ],
    "layer": Annotated[
        str | None, _reading("--layer", metavar="NAME", help="HEST: layer of the h5ad file that holds raw counts.")
    ],
    "bin_size": Annotated[
        list[int] | None,
        _reading("--bin-size", metavar="UM", help="Visium HD: edge of the bins in um; may be repeated."),
    ],
    "segmentations": Annotated[
        bool | None,
        flag("--segmentations/--no-segmentations", help="Visium HD: read segmented cells, or not.", panel=LAST),
    ],
    "dataset_id": Annotated[
        str | None, _reading("--dataset-id", metavar="NAME", help="Visium: name in the file names.")
    ],
    "pitch_um": Annotated[
        float | None, _reading("--pitch-um", metavar="UM", help="Legacy ST, HEST: distance of the spots' centres.")
    ],
    "diameter_um": Annotated[
        float | None, _reading("--diameter-um", metavar="UM", help="Legacy ST, HEST: diameter of the spots.")
    ],
    "pixel_size_um": Annotated[
        float | None,
        _reading("--pixel-size-um", metavar="UM", help="Xenium: size of the morphology image's pixels."),
    ],
}  # fmt: skip
"""Options of the readers, by the name of the csv's column."""


CACHE = Annotated[
    Path | None,
    option(
        "--cache", metavar="FOLDER", panel=MACHINE,
        help="Folder in which features are kept; those that stpred features put there are not computed anew.",
    ),
]  # fmt: skip


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
    option(
        "--genes", metavar="GENES", complete=complete.one_of(complete.GENE_RULES),
        help="Rule and number (mean:250, hvg:1000, svg:200, rmax:500, all), or symbols separated by commas; default: "
        "mean:250.",
    ),
]  # fmt: skip

Encoder = Annotated[
    list[str] | None,
    option(
        "--encoder", metavar="ENCODER", panel=MACHINE, complete=complete.encoders,
        help="Name (see stpred models), folder of a saved one or hf:owner/name@revision; default: the model "
        "family's own (mostly morphology). Behind @ come um per pixel and pixels of its tile "
        "(morphology@0.5x224), behind a colon the layers of a network and how they are pooled (:layers=1-4 or "
        ":layers=1+3,pool=max). Repeat the option to put the features of several encoders side by side.",
    ),
]  # fmt: skip


def _upsampling(wanted: bool) -> bool:
    if wanted:
        settings.max_upsampling = float("inf")
    return wanted


Upsampling = Annotated[
    bool,
    flag(
        "--allow-upsampling", callback=_upsampling, panel=MACHINE,
        help="Accept an image that is coarser than the encoder expects.",
    ),
]  # fmt: skip

Device = Annotated[
    str | None,
    option(
        "--device", metavar="DEVICE", panel=MACHINE, complete=complete.one_of(complete.DEVICES),
        help="cpu, cuda, ...; default: a GPU if there is one.",
    ),
]  # fmt: skip

ShapesKey = Annotated[
    str | None,
    option("--shapes", metavar="NAME", help="Region, such as spots, bins_008um or cells; default: found by itself."),
]

Groups = Annotated[
    str | None,
    option(
        "--groups", metavar="DONORS",
        help="Donors: 'slide' (each slide its own) or slide=donor pairs with commas; default: the csv's column.",
    ),
]  # fmt: skip

Ensemble = Annotated[
    int | None,
    option(
        "--ensemble", metavar="N", panel=TRAINING, help="Train N members; their spread is the uncertainty."
    ),
]  # fmt: skip

Checkpoint = Annotated[
    Path | None,
    option(
        "--checkpoint", metavar="FOLDER", panel=TRAINING, help="Folder that an interrupted training goes on from."
    ),
]  # fmt: skip

Precision = Annotated[
    str | None,
    option(
        "--precision", metavar="PRECISION", panel=TRAINING, complete=complete.one_of(PRECISIONS),
        help="32-true (default), bf16-mixed or 16-mixed.",
    ),
]  # fmt: skip

Seed = Annotated[int, option("--seed", metavar="N", panel=TRAINING, help="Seed of whatever is random.")]


def overwrites(what: str) -> Any:
    """Return the option to replace something."""
    return flag("--overwrite", help=f"Replace {what}.", panel=OUTPUT)


Workers = Annotated[
    int | None,
    option(
        "--workers", metavar="N", panel=MANY,
        help="Processes, of one core each; default: as cores and memory allow.",
    ),
]  # fmt: skip

GPUs = Annotated[
    str | None, option("--devices", metavar="GPUS", panel=MANY, help="GPUs, such as 0,1: a process for each.")
]

Scheduler = Annotated[
    str | None,
    option("--scheduler", metavar="ADDRESS", panel=MANY, help="Address of a Dask scheduler to work on."),
]

Shard = Annotated[
    str | None,
    option("--shard", metavar="I/N", panel=MANY, help="Only the I-th of N parts, as one of N jobs."),
]

SkipErrors = Annotated[
    bool,
    flag("--skip-errors", panel=MANY, help="Slides that fail are no error: exit status 3 instead of 2."),
]

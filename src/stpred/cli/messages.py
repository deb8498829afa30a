"""Messages of the Python functions, said in the words of the command line."""

from __future__ import annotations

import re
from collections.abc import Collection

OPTIONS = {
    "adata": None,
    "bin_size": "--bin-size",
    "bin_sizes": "--bin-size",
    "cache_dir": "--cache",
    "cells": "--cells",
    "checkpoint_dir": "--checkpoint",
    "client": "--scheduler",
    "counts": "--counts",
    "counts_file": "--counts",
    "dataset_id": "--dataset-id",
    "device": "--device",
    "devices": "--devices",
    "diameter_um": "--diameter-um",
    "encoder": "--encoder",
    "fabric": None,
    "format": "--format",
    "fullres_image": "--image",
    "genes": "--genes",
    "groupby": "--groupby",
    "groups": "--groups",
    "he_alignment": "--alignment",
    "he_image": "--image",
    "alignment": "--alignment",
    "average": "--average",
    "image": "--image",
    "layer": "--layer",
    "layers": "--layer",
    "library_size": "--library-size",
    "model": "--model",
    "models": "--models",
    "mpp": "--mpp",
    "n_members": "--ensemble",
    "n_folds": "--folds",
    "n_workers": "--workers",
    "name": "--name",
    "out": "--out",
    "overwrite": "--overwrite",
    "page": "--page",
    "picture": "--picture",
    "pitch_um": "--pitch-um",
    "pixel_size_um": "--pixel-size-um",
    "positions": "--positions",
    "precision": "--precision",
    "qc": "--qc",
    "raster": "--map",
    "report": "--report",
    "scene": "--scene",
    "seed": "--seed",
    "segmentations": "--segmentations",
    "shapes_key": "--shapes",
    "shard": "--shard",
    "spot_diameter_um": "--diameter-um",
    "spots": "--spots",
    "swap_xy": "--swap-xy",
    "table_key": "--table",
    "tables": "--tables",
    "target": "--target",
    "url": "--url",
    "validation": "--validation",
    "with_map": "--map",
}
"""Parameters of Python functions and readers, and the options that stand for them."""

_PHRASES = (
    (r"average all locations \(in_distribution_only=False\)", "pass --all-locations"),
    (r"say that it may be overwritten(?: \(overwrite\))?", "pass --overwrite"),
    (r" \(call stpred\.io\.\w+ with the files otherwise\)", " (otherwise name the files: --image, --spots)"),
    (r"run stpred\.pp\.calibrate\(sdata\) or pass mpp= to the reader", "pass --mpp"),
    (r"; make some with stpred\.pp\.grid\(sdata\)", "; training needs slides with measured locations"),
    (r", or with a finer tile=TileSpec\(mpp=\.\.\., size_px=\.\.\.\)", ", or in Python with a finer tile"),
    (r"set stpred\.settings\.max_upsampling to \d+ to", "pass --allow-upsampling to"),
    (r"encoder=stpred\.encoders\.load\(folder\)", "--encoder FOLDER"),
    (r", or make its name known with stpred\.encoders\.register\(name, folder\)", ""),
    (r"pass it as `encoder=`, such as ", "pass "),
    (r"`key_added`=('[^']*')", r"The result's name \1"),
    (r"choose another (?:name|`key_added`)(?=\.?$)", "choose another name"),
)

_NAMES = "|".join(sorted(OPTIONS, key=len, reverse=True))
_VALUE = r"'[^']*'|\"[^\"]*\"|\[[^\]]*\]|[\w.+-]*\w"
_QUOTED = re.compile(rf"(?<!column )`(?P<name>{_NAMES})(?:=(?P<inner>{_VALUE})?)?`(?:=(?P<value>{_VALUE}))?")
_BARE = re.compile(rf"(?<![\w.`'\"/-])(?<!\w\()(?P<name>{_NAMES})=(?P<value>{_VALUE}|\.\.\.)?(?=[\s,.;:)]|$)")
_STAYS = re.compile(r"name=path")


def as_options(message: str, *, known: Collection[str], slide: str | None = None) -> str:
    """Return a message with options in the place of Python parameters.

    Parameters
    ----------
    message
        What a function said.
    known
        Options of the command, such as ``{"--mpp", "--swap-xy", "--no-swap-xy"}``; others are left as they are.
    slide
        Name of the only slide, which functions call ``'slide'`` where they are given an object without a name.
    """
    for pattern, said in _PHRASES:
        message = re.sub(pattern, said, message)
    if slide is not None:
        message = re.sub(r"\b([Ss]lide) 'slide'", lambda m: f"{m[1]} {slide!r}", message)

    def option(match: re.Match[str]) -> str:
        if _STAYS.match(message, match.start()):
            return match[0]
        name = OPTIONS[match["name"]]
        if name is None or name not in known:
            return match[0]
        groups = match.groupdict()
        value = groups.get("inner") or groups.get("value")
        marks = "`" if match[0].startswith("`") else ""
        return f"{marks}{_with_value(name, value, known)}{marks}"

    return _BARE.sub(option, _QUOTED.sub(option, message))


def _with_value(option: str, value: str | None, known: Collection[str]) -> str:
    """Write an option with what a parameter was said to be."""
    negative = f"--no-{option[2:]}"
    if value in (None, "...", "True"):
        return option
    if value == "False":
        return negative if negative in known else f"without {option}"
    text = str(value)
    if len(text) > 1 and text[0] in "'\"" and re.fullmatch(r"[\w./:+-]+", text[1:-1]):
        text = text[1:-1]
    return f"{option} {text}"

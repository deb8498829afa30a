"""Recognising a format from the files of a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stpred._core.checks import InputError, MissingFileError, listing, one_of
from stpred._core.files import readable
from stpred.io._images.open import SUFFIXES

if TYPE_CHECKING:
    from spatialdata import SpatialData

FORMATS = ("visium", "visium_hd", "xenium", "legacy_st", "hest", "wsi")

PARTS = {"legacy_st": ("counts", "image", "spots"), "hest": ("adata", "image")}
"""Arguments of the readers of several files, in their order."""

_LOOKED_FOR = (
    "an image file (wsi); 'binned_outputs/square_*um' (visium_hd); 'experiment.xenium', or 'cell_feature_matrix.h5' "
    "with 'cells' or 'cell_boundaries' (xenium); 'spatial' with '*feature_bc_matrix*' (visium); one h5ad file and one "
    "image (hest); counts and spots tsv files and one image (legacy_st)"
)


def read(path: str | Path, *, format: str | None = None, **kwargs: Any) -> SpatialData:
    """Read a slide of any format that stpred knows; which one is recognised from the files.

    Parameters
    ----------
    path
        Image file or folder.
    format
        One of ``"visium"``, ``"visium_hd"``, ``"xenium"``, ``"legacy_st"``, ``"hest"``, ``"wsi"``; None looks
        at the files.
    **kwargs
        Passed to the reader of that format.

    Returns
    -------
    What the reader returns: an object calibrated in micrometres.

    Raises
    ------
    InputError
        If the format is not recognised; the message says what was looked for.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy_wsi("slide.tif", size_um=(300, 300))
    >>> list(st.io.read(slide).images)
    ['he']
    """
    from stpred import io

    path = Path(path)
    with readable(path, what="slide"):  # a name that is too long, a folder that may not be looked into
        there = path.exists()
        if there and path.is_dir():
            next(path.iterdir(), None)
    if not there:
        raise MissingFileError(f"There is nothing at {str(path)!r}.")
    format = detect(path) if format is None else one_of(format, FORMATS, name="format")
    reader: Callable[..., SpatialData] = getattr(io, format)
    return reader(*(members(path, format) if format in PARTS else [path]), **kwargs)


def detect(path: str | Path) -> str:
    """Return the name of the format of an image file or a folder, or say what was looked for."""
    path = Path(path)
    if path.is_file():
        if path.suffix.lower() in SUFFIXES:
            return "wsi"
        raise InputError(f"{path.name!r} is of no known format; looked for {_LOOKED_FOR}.")
    if not path.is_dir():
        raise InputError(f"{str(path)!r} is neither a file nor a folder.")
    for base in (path, path / "outs"):
        if found := _in_folder(base):
            return found
    names = listing(sorted(p.name for p in path.iterdir()))
    raise InputError(f"The format of {str(path)!r} (holding {names}) is not known; looked for {_LOOKED_FOR}.")


def _in_folder(base: Path) -> str | None:
    def has(*patterns: str) -> bool:
        return any(next(base.glob(pattern), None) is not None for pattern in patterns)

    if not base.is_dir():
        return None
    if has("binned_outputs/square_*um", "square_*um"):
        return "visium_hd"
    if has("experiment.xenium") or (has("cell_feature_matrix*") and has("cells.*", "cell_boundaries.*")):
        return "xenium"
    if has("*feature_bc_matrix*") and has("spatial", "*tissue_positions*"):
        return "visium"
    for format in ("hest", "legacy_st"):
        if all(len(found) == 1 for found in candidates(_files(base), format)):
            return format
    return None


def _files(base: Path) -> list[Path]:
    return sorted(p for p in base.iterdir() if p.is_file() and not p.name.startswith("."))


def candidates(files: list[Path], format: str) -> list[list[Path]]:
    """Return which of the files could be each of a reader's arguments (h5ad and image; counts, image and spots)."""
    images = [p for p in files if p.suffix.lower() in SUFFIXES]
    if format == "hest":
        return [[p for p in files if p.suffix == ".h5ad"], images]
    tables = [p for p in files if any(p.name.lower().endswith(e) for e in (".tsv", ".tsv.gz", ".csv", ".csv.gz"))]
    spots = [p for p in tables if any(word in p.name.lower() for word in ("spot", "alignment", "selection"))]
    return [[p for p in tables if p not in spots], images, spots]


def members(base: Path, format: str, *, only: str | None = None) -> list[Path]:
    """Return the files of a slide of several files in a folder, of each kind one, or say what there is."""
    if not base.is_dir():
        raise InputError(f"`format`={format!r} needs the folder of its files, got the file {base.name!r}.")
    parts = PARTS[format]
    found = candidates(_files(base), format)
    for part, those in zip(parts, found, strict=True):
        kind = "h5ad" if part == "adata" else part
        if len(those) != 1 and only in (None, part):
            raise InputError(
                f"{str(base)!r} has {len(those)} {kind} files for {format!r}: {listing(p.name for p in those)}; "
                f"exactly one is needed (call stpred.io.{format} with the files otherwise)."
            )
    return [those[0] for part, those in zip(parts, found, strict=True) if only in (None, part)]

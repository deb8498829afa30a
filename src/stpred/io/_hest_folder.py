"""Folders of HEST-1k: one file per sample in folders of counts, images and metadata."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from stpred._core.checks import InputError, listing, positive
from stpred._core.files import read_json
from stpred.io._images.open import SUFFIXES

COUNTS, IMAGES, METADATA = "st", "wsis", "metadata"
"""Folders of HEST-1k."""

_SIZES = ("pixel_size_um_estimated", "pixel_size_um_embedded")


def is_hest(folder: Path) -> bool:
    """Whether a folder holds samples as HEST-1k does."""
    return (folder / COUNTS).is_dir() and (folder / IMAGES).is_dir()


def rows(folder: Path, *, samples: Collection[str] | None = None, counts: Path | None = None) -> list[dict[str, Any]]:
    """Return a row of a table of slides per sample: counts, image, and donor and pixel size as the metadata say.

    Parameters
    ----------
    folder
        Folder with ``st`` (h5ad files), ``wsis`` (images) and maybe ``metadata`` (json files).
    samples
        Ids to take; None: all that have counts and an image.
    counts
        Another folder of h5ad files.

    Raises
    ------
    InputError
        If a named sample lacks a file, or there is none.
    """
    counts = counts or folder / COUNTS
    tables = {p.stem: p for p in sorted(counts.glob("*.h5ad"))}
    images = {p.stem: p for p in sorted((folder / IMAGES).iterdir()) if p.suffix.lower() in SUFFIXES}
    wanted = sorted(tables.keys() & images.keys()) if samples is None else list(samples)
    for kind, place, there in (("counts", counts, tables), ("image", folder / IMAGES, images)):
        if lost := [s for s in wanted if s not in there]:
            raise InputError(f"Samples {listing(lost)} have no {kind} in {str(place)!r}; it has {listing(there)}.")
    if not wanted:
        raise InputError(
            f"{str(folder)!r} is laid out as HEST-1k is, but no sample has both counts in {COUNTS!r} "
            f"({listing(tables)}) and an image in {IMAGES!r} ({listing(images)})."
        )
    return [
        {"slide": s, "path": tables[s], "format": "hest", "image": images[s]} | _known(folder / METADATA / f"{s}.json")
        for s in wanted
    ]


def _known(path: Path) -> dict[str, Any]:
    """Return donor and um per pixel, as far as a sample's metadata state them."""
    if not path.is_file():
        return {}
    metadata = read_json(path, what="metadata")
    found: dict[str, Any] = {}
    if isinstance(patient := metadata.get("patient"), (str, int)) and str(patient).strip():
        found["donor"] = str(patient).strip()
    for field in _SIZES:
        if (size := metadata.get(field)) is not None and size == size:
            try:
                return found | {"mpp": positive(size, name=field, unit="um per pixel")}
            except InputError as error:
                raise InputError(f"The metadata {str(path)!r} are wrong: {error}") from error
    return found

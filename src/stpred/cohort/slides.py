"""The slides of a run: files of any format that is read, stores of SpatialData, patterns, and objects on disk."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stpred._core.checks import InputError, MissingFileError
from stpred._core.files import read_json, readable
from stpred.io.samples import Sample, list_samples, read_sample

if TYPE_CHECKING:
    from spatialdata import SpatialData

STORE = "spatialdata"
"""Format of a slide that is a store of SpatialData already."""


def find_slides(slides: Any, *, format: str | None = None, options: Mapping[str, Any] | None = None) -> list[Sample]:
    """Return the slides of a run before any is read.

    Parameters
    ----------
    slides
        As of :func:`stpred.tl.predict_cohort`.
    format, options
        As of :func:`stpred.io.samples.list_samples`.
    """
    if isinstance(slides, Mapping):
        named: Iterable[Any] = [_named(name, value) for name, value in slides.items()]
    elif isinstance(slides, (str, Path)):
        named = [slides]
    elif isinstance(slides, Iterable):
        named = slides
    else:
        raise InputError(
            "`slides` must be a csv, a folder, a pattern such as 'slides/*.svs', a list of those, or a mapping of "
            f"names to paths, got {type(slides).__name__}."
        )
    sources = [found for source in named for found in _expand(source, format)]
    return list_samples(sources, format=format, options=options)


def is_many(source: str | Path) -> bool:
    """Whether a source stands for several slides, though it may hold one: a pattern, a table, or no slide itself."""
    path = Path(source)
    if not path.exists():
        return glob.has_magic(str(source))
    return path.is_file() and path.suffix.lower() in (".csv", ".tsv")


def read_slide(sample: Sample) -> SpatialData:
    """Read one slide of a run."""
    if is_store(sample.path):
        import spatialdata

        with readable(sample.path, what="store"):
            return spatialdata.read_zarr(sample.path)
    return read_sample(sample)


def is_store(path: Path) -> bool:
    """Whether a path is a store of SpatialData."""
    with suppress(InputError, OSError, AttributeError):
        return path.is_dir() and "spatialdata_attrs" in read_json(path / "zarr.json", what="store")["attributes"]
    return False


def reading_of(sample: Sample) -> dict[str, Any]:
    """Return the options that a slide is read with, but for its files, whose content decides."""
    return {k: v for k, v in sample.options.items() if k not in ("image", "spots", "alignment")}


def _named(name: Any, value: Any) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return {"slide": name, **value}
    if isinstance(value, (str, Path)):
        return {"slide": name, "path": value}
    if (path := getattr(value, "path", None)) is not None:  # an object that lies in a store
        return {"slide": name, "path": path, "format": STORE}
    raise InputError(
        f"Slide {name!r} is in memory only ({type(value).__name__}), and workers are other processes: write it with "
        "sdata.write(path), or predict it with stpred.tl.predict."
    )


def _expand(source: Any, format: str | None) -> list[Any]:
    """Return the sources that a pattern, or a folder of stores, stands for."""
    if isinstance(source, Mapping):
        path = Path(source["path"]) if "path" in source else None
        if path is None:
            raise InputError(f"Slide {source.get('slide')!r} names no path.")
        return [{"format": STORE, **source}] if is_store(path) else [source]
    path = Path(source)
    if not path.exists() and glob.has_magic(str(source)):
        found = sorted(glob.glob(str(source), recursive=True))
        if not found:
            raise MissingFileError(f"Nothing is of the pattern {str(source)!r}.")
        return [part for name in found for part in _expand(name, format)]
    if is_store(path):
        return [{"slide": path.stem, "path": path, "format": STORE}]
    if path.is_dir() and format is None:
        stores = [p for p in sorted(path.iterdir()) if is_store(p)]
        if stores:
            return [part for p in stores for part in _expand(p, format)]
    return [source]

"""Several slides at once: a table that lists them, or a folder that holds them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stpred._core.checks import InputError, MissingFileError, listing, positive
from stpred._core.files import readable
from stpred._core.names import name_of
from stpred.io._detect import FORMATS, candidates, detect, read
from stpred.io._open import SUFFIXES

if TYPE_CHECKING:
    from spatialdata import SpatialData

_COLUMNS = ("slide", "path", "format", "donor", "image", "spots", "mpp")


def read_cohort(
    sources: Iterable[str | Path | Mapping[str, Any]], *, format: str | None = None, **kwargs: Any
) -> tuple[dict[str, SpatialData], dict[str, str]]:
    """Read slides from paths, folders of slides, or tables that list them.

    Parameters
    ----------
    sources
        Each a slide (anything that :func:`stpred.io.read` takes, also as ``name=path``), a folder of slides
        (subfolders, image files, or legacy ST files that share the part of their names before the first dot), or a csv
        or tsv file with columns ``slide``, ``path`` and optionally ``format``, ``donor``, ``image``, ``spots``,
        ``mpp`` (paths relative to the file; `path` is the counts file of legacy ST and the h5ad file of HEST-style
        data), or a mapping of such columns.
    format
        As in :func:`stpred.io.read`.
    **kwargs
        Passed to every reader.

    Returns
    -------
    Slide names to objects, and slide names to donors as far as a table names them.

    Raises
    ------
    InputError
        If a source holds no slide, two slides have one name, or a table has unknown columns.

    Examples
    --------
    >>> import stpred as st, pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> for name in ("first", "second"):
    ...     _ = st.datasets.toy_legacy_st(folder / name, size_um=(600, 600))
    >>> slides, donors = st.io.read_cohort([folder])
    >>> sorted(slides)
    ['first', 'second']
    """
    slides: dict[str, SpatialData] = {}
    donors: dict[str, str] = {}
    for source in sources:
        for sample in _samples(source, format):
            name = name_of(sample["slide"], what="slide")
            if name in slides:
                raise InputError(f"Two slides are called {name!r}; name them as name=path.")
            slides[name] = _read_one(sample, kwargs)
            if (donor := sample.get("donor")) is not None and donor == donor and donor != "":
                donors[name] = name_of(donor, what="donor")
    if not slides:
        raise InputError("No slide was named.")
    return slides, donors


def _samples(source: str | Path | Mapping[str, Any], format: str | None) -> list[dict[str, Any]]:
    """Return what is known of each slide that a source holds."""
    if isinstance(source, Mapping):
        path = Path(source["path"])
        return [{"slide": _folder_name(path) if path.is_dir() else path.name.split(".")[0], **source}]
    name: str | None
    name, _, rest = str(source).partition("=")
    path = Path(rest) if rest and not Path(source).exists() else Path(source)
    name = name if path != Path(source) else None
    if not path.exists():
        raise MissingFileError(f"There is nothing at {str(path)!r}.")
    if path.is_file() and path.suffix.lower() in (".csv", ".tsv"):
        return _listed(path)
    if path.is_file() or format is not None:
        return [{"slide": name or path.name.split(".")[0], "path": path, "format": format}]
    try:
        return [{"slide": name or _folder_name(path), "path": path, "format": detect(path)}]
    except InputError as error:
        found = _inside(path)
        if not found:
            raise InputError(f"{str(error).rstrip('.')}; nor does it hold several slides.") from error
        return found


def _folder_name(path: Path) -> str:
    """Name a slide after its folder; `outs` says nothing."""
    path = path.resolve()
    return path.parent.name if path.name == "outs" else path.name


def _inside(folder: Path) -> list[dict[str, Any]]:
    """Return the slides in a folder: subfolders, or files that share the part of their name before the first dot."""
    found: list[dict[str, Any]] = []
    stems: dict[str, list[Path]] = {}
    for p in sorted(folder.iterdir()):
        if p.is_dir():
            try:
                found.append({"slide": p.name, "path": p, "format": detect(p)})
            except InputError:
                continue
        else:
            stems.setdefault(p.name.split(".")[0], []).append(p)
    for stem, files in stems.items():
        for kind, columns in (("legacy_st", ("path", "image", "spots")), ("hest", ("path", "image"))):
            parts = candidates(files, kind)
            if all(len(c) == 1 for c in parts):
                found.append({"slide": stem, "format": kind} | {k: c[0] for k, c in zip(columns, parts, strict=True)})
                break
        else:
            if len(files) == 1 and files[0].suffix.lower() in SUFFIXES:
                found.append({"slide": stem, "path": files[0], "format": "wsi"})
    return found


def _listed(path: Path) -> list[dict[str, Any]]:
    """Read a table of slides."""
    import pandas as pd

    with readable(path, what="table of slides"):
        # Lines that begin with # are comments; a # further on, and words such as NA, may be part of a name.
        lines = [x for x in path.read_text(encoding="utf-8-sig").split("\n") if not x.lstrip().startswith("#")]
        frame = pd.read_csv(
            StringIO("\n".join(lines)),
            sep="\t" if path.suffix.lower() == ".tsv" else ",",
            dtype=str,
            keep_default_na=False,
        )
    if missing := {"slide", "path"} - set(frame.columns):
        raise InputError(f"{path.name!r} lacks the columns {sorted(missing)}; it may have {listing(_COLUMNS)}.")
    if unknown := set(frame.columns) - set(_COLUMNS):
        raise InputError(f"{path.name!r} has unknown columns {sorted(unknown)}; it may have {listing(_COLUMNS)}.")
    rows: list[dict[str, Any]] = [
        {str(k): v for k, v in row.items() if isinstance(v, str) and v} for row in frame.to_dict("records")
    ]
    for number, row in enumerate(rows, start=1):
        if missing := {"slide", "path"} - set(row):
            raise InputError(f"Row {number} of {path.name!r} names no {' and no '.join(sorted(missing))}.")
        for column in ("path", "image", "spots"):
            if column in row:
                row[column] = path.parent / row[column]
        if "mpp" in row:
            try:
                row["mpp"] = positive(float(row["mpp"]), name="mpp", unit="um per pixel")
            except ValueError as error:
                raise InputError(
                    f"Slide {row['slide']!r} of {path.name!r}: `mpp` must be a positive number of um per pixel, got "
                    f"{row['mpp']!r}."
                ) from error
    return rows


def _read_one(sample: dict[str, Any], kwargs: dict[str, Any]) -> SpatialData:
    from stpred import io

    kwargs = kwargs | ({"mpp": sample["mpp"]} if "mpp" in sample else {})
    kind = sample.get("format")
    if kind is None and "image" in sample and sample["path"].is_dir():
        kind = detect(sample["path"])
    if kind is not None and kind not in FORMATS:
        raise InputError(f"Slide {sample['slide']!r}: `format` must be one of {listing(FORMATS)}, got {kind!r}.")
    if "image" not in sample:
        return read(sample["path"], format=kind, **kwargs)
    if kind is None:
        kind = "legacy_st" if "spots" in sample else "hest"
    if kind == "legacy_st":
        return io.legacy_st(sample["path"], sample["image"], sample["spots"], **kwargs)
    if kind == "hest":
        return io.hest(sample["path"], sample["image"], **kwargs)
    own = {"visium": "fullres_image", "visium_hd": "fullres_image", "xenium": "he_image"}.get(kind)
    if own is None:
        raise InputError(f"Slide {sample['slide']!r}: the column `image` does not go with format {kind!r}.")
    return read(sample["path"], format=kind, **{own: sample["image"]}, **kwargs)

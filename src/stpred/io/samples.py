"""Samples: what is known of each slide before it is read, from paths, folders and tables of slides."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stpred._core.checks import InputError, MissingFileError, listing, positive
from stpred._core.files import readable
from stpred._core.names import name_of
from stpred.io import _hest_folder as hest_folder
from stpred.io._detect import FORMATS, PARTS, candidates, detect, members
from stpred.io._images.open import SUFFIXES

if TYPE_CHECKING:
    from spatialdata import SpatialData


def _number(text: Any) -> float:
    return positive(float(text), name="number")


def _truth(text: Any) -> bool:
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if str(text).strip().lower() not in known:
        raise InputError("no truth value")
    return known[str(text).strip().lower()]


def _whole_numbers(text: Any) -> list[int]:
    return [int(t) for t in str(text).replace(",", " ").replace(";", " ").split()]


def _scene(text: Any) -> int | str:
    return int(text) if str(text).strip().isdigit() else str(text)


@dataclass(frozen=True)
class Column:
    """What a table of slides, or an option of the command line, may say about how a slide is read.

    Attributes
    ----------
    parameters
        Format to the name of the reader's parameter; a single name where every reader that has it calls it alike.
    parse
        From text.
    must
        What `parse` refuses all but.
    one_slide
        It is about one slide, such as a file.
    """

    parameters: Mapping[str, str] | str
    parse: Callable[[Any], Any]
    must: str
    one_slide: bool = False

    def parameter(self, format: str) -> str | None:
        """Return the parameter of the format's reader, or None where that reader has none."""
        from stpred import io

        name = self.parameters if isinstance(self.parameters, str) else self.parameters.get(format)
        return name if name in inspect.signature(getattr(io, format)).parameters else None


READER_OPTIONS: dict[str, Column] = {
    "image": Column(
        {"visium": "fullres_image", "visium_hd": "fullres_image", "xenium": "he_image"} | dict.fromkeys(
            ("legacy_st", "hest"), "image"
        ),
        Path, "a file", one_slide=True,
    ),
    "spots": Column("spots", Path, "a file", one_slide=True),
    "counts": Column("counts_file", str, "a file's name", one_slide=True),
    "alignment": Column("he_alignment", Path, "a file", one_slide=True),
    "scene": Column("scene", _scene, "a scene's number or name"),
    "mpp": Column("mpp", _number, "a positive number of um per pixel"),
    "pitch_um": Column("pitch_um", _number, "a positive number of um"),
    "diameter_um": Column(
        {"legacy_st": "spot_diameter_um", "hest": "diameter_um"}, _number, "a positive number of um"
    ),
    "pixel_size_um": Column("pixel_size_um", _number, "a positive number of um"),
    "bin_size": Column("bin_sizes", _whole_numbers, "whole numbers of um, such as 8"),
    "segmentations": Column("segmentations", _truth, "true or false"),
    "swap_xy": Column("swap_xy", _truth, "true or false"),
    "layer": Column("layer", str, "a layer's name"),
    "dataset_id": Column("dataset_id", str, "a name", one_slide=True),
}  # fmt: skip
"""Columns of a table of slides beside ``slide``, ``path``, ``format`` and ``donor``."""

_FILES = ("path", "image", "spots", "alignment")
"""Columns whose paths are relative to the table."""

_COLUMNS = ("slide", "path", "format", "donor", *READER_OPTIONS)


@dataclass(frozen=True)
class Sample:
    """A slide that is not read yet.

    Attributes
    ----------
    slide, path
        Its name, and its file or folder.
    format
        Of the files; None: recognised from them.
    donor
        If a table names it.
    options
        Values of `READER_OPTIONS`.
    passed
        Those of `options` that no table states but the caller passed, for messages.
    """

    slide: str
    path: Path
    format: str | None = None
    donor: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    passed: frozenset[str] = frozenset()


def list_samples(
    sources: Iterable[str | Path | Mapping[str, Any]],
    *,
    format: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[Sample]:
    """Return the samples of sources, before any is read.

    Parameters
    ----------
    sources, format
        As of :func:`stpred.io.read_cohort`.
    options
        Values of `READER_OPTIONS` that win over what a table states; those of one slide, such as ``image``, are
        refused where there are several.
    """
    passed = {k: v for k, v in (options or {}).items() if v is not None}
    sources = list(sources)
    if "spots" in passed and len(sources) == 1 and not isinstance(sources[0], Mapping):
        # The slide is the file of counts then, which as a table alone would be taken for one that lists slides.
        name, path = _split_name(sources[0])
        sources = [{"path": path, "format": format} | ({} if name is None else {"slide": name})]
    samples = [_sample(row, passed) for source in sources for row in _rows(source, format)]
    if not samples:
        raise InputError("No slide was named.")
    names = [sample.slide for sample in samples]
    if twice := [n for i, n in enumerate(names) if n in names[:i]]:
        raise InputError(f"Two slides are called {twice[0]!r}; name them as name=path.")
    if len(samples) > 1 and (single := [k for k in passed if READER_OPTIONS[k].one_slide]):
        raise InputError(
            f"`{single[0]}` is of one slide, and there are {len(samples)}, {listing(names)}; list them in a csv with a "
            f"column {single[0]}."
        )
    return samples


def _sample(row: Mapping[str, Any], passed: Mapping[str, Any]) -> Sample:
    """Return the sample of a row, in which empty and missing values count as not given."""
    known = {k: v for k, v in row.items() if v is not None and v == v and v != ""}
    if unknown := known.keys() - set(_COLUMNS):
        raise InputError(
            f"Slide {row['slide']!r} has unknown columns {sorted(unknown)}; it may have {listing(_COLUMNS)}."
        )
    return Sample(
        slide=name_of(row["slide"], what="slide"),
        path=Path(known.pop("path")),
        format=known.pop("format", None),
        donor=name_of(known.pop("donor"), what="donor") if "donor" in known else None,
        options={k: v for k, v in known.items() if k != "slide"} | dict(passed),
        passed=frozenset(passed),
    )


def _split_name(source: str | Path) -> tuple[str | None, Path]:
    """Split ``name=path``; a path that exists as it is has no name."""
    name, _, rest = str(source).partition("=")
    path = Path(rest) if rest and not Path(source).exists() else Path(source)
    if not path.exists():
        raise MissingFileError(f"There is nothing at {str(path)!r}.")
    return (name if path != Path(source) else None), path


def _file_name(path: Path) -> str:
    """Name a slide after its file, without what its name says about the format."""
    name = path.name
    name = name[:-3] if name.lower().endswith(".gz") else name
    name = Path(name).stem or name
    stem, _, ending = name.rpartition(".")
    return stem if stem and ending.lower() in ("ome", "counts") else name


def _rows(source: str | Path | Mapping[str, Any], format: str | None) -> list[dict[str, Any]]:
    """Return a mapping of columns for each slide that a source holds."""
    if isinstance(source, Mapping):
        path = Path(source["path"])
        return [{"slide": _folder_name(path) if path.is_dir() else _file_name(path), **source, "path": path}]
    name, path = _split_name(source)
    if path.is_file() and path.suffix.lower() in (".csv", ".tsv"):
        return _rows_of_table(path)
    if path.is_file() or format is not None:
        called = _folder_name(path) if path.is_dir() else _file_name(path)
        return [{"slide": name or called, "path": path, "format": format}]
    try:
        return [{"slide": name or _folder_name(path), "path": path, "format": detect(path)}]
    except InputError as error:
        found = _rows_of_folder(path)
        if not found:
            raise InputError(f"{str(error).rstrip('.')}; nor does it hold several slides.") from error
        return found


def _folder_name(path: Path) -> str:
    """Name a slide after its folder; `outs` says nothing."""
    path = path.resolve()
    while path.name in ("outs", "binned_outputs") and path.parent.name:
        path = path.parent
    return path.name


def _rows_of_folder(folder: Path) -> list[dict[str, Any]]:
    """Return the slides in a folder: subfolders, or files that share the part of their name before the first dot."""
    if hest_folder.is_hest(folder):
        return hest_folder.rows(folder)
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
        for format in ("legacy_st", "hest"):
            parts = candidates(files, format)
            if all(len(c) == 1 for c in parts):
                columns = ("path", *PARTS[format][1:])
                found.append({"slide": stem, "format": format} | {k: c[0] for k, c in zip(columns, parts, strict=True)})
                break
        else:
            if len(files) == 1 and files[0].suffix.lower() in SUFFIXES:
                found.append({"slide": stem, "path": files[0], "format": "wsi"})
    return found


def _rows_of_table(path: Path) -> list[dict[str, Any]]:
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
        if not isinstance(frame.index, pd.RangeIndex):  # pandas would take the first column for names of rows
            raise ValueError("its rows have more fields than its first line has names")
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
        for column in _FILES:
            if column in row:
                row[column] = path.parent / row[column]
                with readable(str(row[column])[:200], what=f"`{column}` of slide {row['slide'][:100]!r}"):
                    row[column].exists()  # a name that no file can have
        for column in READER_OPTIONS.keys() & row.keys() - set(_FILES):
            row[column] = _parsed(column, row[column], f"Slide {row['slide']!r} of {path.name!r}: the column ")
    return rows


def _parsed(column: str, text: Any, where: str) -> Any:
    """Return the value of a column, or say where it is wrong."""
    try:
        return READER_OPTIONS[column].parse(text)
    except ValueError as error:
        raise InputError(f"{where}`{column}` must be {READER_OPTIONS[column].must}, got {text!r}.") from error


def read_sample(sample: Sample, **kwargs: Any) -> SpatialData:
    """Read one slide of :func:`list_samples`; `kwargs` go to its reader as they are."""
    from stpred import io

    path = sample.path
    if not path.exists():
        raise MissingFileError(f"There is nothing at {str(path)!r}.")
    format = format_of(sample)
    options = {}
    for column, value in sample.options.items():
        parameter = READER_OPTIONS[column].parameter(format)
        if parameter is None:
            name = f"`{column}`" if column in sample.passed else f"the column `{column}`"
            taking = [f for f in FORMATS if READER_OPTIONS[column].parameter(f)]
            raise InputError(
                f"Slide {sample.slide!r}: {name} does not go with format {format!r}, only with {listing(taking)}."
            )
        options[parameter] = value
    files: list[Any] = []
    for number, part in enumerate(PARTS.get(format, ())):
        if part in options:
            files.append(options.pop(part))
        elif path.is_dir():
            files += members(path, format, only=part)
        elif number == 0:
            files.append(path)
        else:
            raise InputError(
                f"Slide {sample.slide!r}: {path.name!r} alone is no slide of format {format!r}; name its `{part}` "
                "file as well."
            )
    return getattr(io, format)(*(files or [path]), **options, **kwargs)  # type: ignore[no-any-return]


def format_of(sample: Sample) -> str:
    """Return the stated format of a slide, or the one recognised from its files."""
    if sample.format is not None:
        if sample.format not in FORMATS:
            raise InputError(
                f"Slide {sample.slide!r}: `format` must be one of {listing(FORMATS)}, got {sample.format!r}."
            )
        return str(sample.format)
    if sample.path.is_file() and sample.path.suffix.lower() not in SUFFIXES:
        if "spots" in sample.options:
            return "legacy_st"
        if "image" in sample.options or sample.path.suffix.lower() == ".h5ad":
            return "hest"
    return detect(sample.path)

"""``stpred export``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stpred._core import keys
from stpred._core.checks import InputError, MissingFileError, listing
from stpred._core.elements import rgb_problem
from stpred._core.files import readable
from stpred.cli.options import flag, option
from stpred.cli.session import console, plain_messages

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anndata import AnnData
    from spatialdata import SpatialData

_KINDS = {
    (".geojson", ".geojson.gz"): "geojson",
    (".h5", ".hdf5"): "h5",
    (".ome.tif", ".ome.tiff"): "tiff",
    (".json",): "vitessce",
}

_OF = {
    "layer": ("geojson", "h5", "vitessce"),
    "groupby": ("geojson", "vitessce"),
    "counts": ("h5",),
    "library_size": ("h5",),
    "positions": ("h5",),
    "mpp": ("geojson",),
    "url": ("vitessce",),
}
"""Options, and the files that they are about."""


def export(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Store that stpred predict wrote, or another one.")],
    out: Annotated[
        list[Path],
        option(
            "--out", "-o", metavar="FILE",
            help="File to write, by its ending: .geojson or .geojson.gz (QuPath), .h5 (10x layout: scanpy, Seurat), "
            ".ome.tif (map, for QuPath and Fiji), .json (view of vitessce); may be repeated.",
        ),
    ],
    genes: Annotated[
        str | None, option("--genes", metavar="GENES", help="Only these symbols, separated by commas.")
    ] = None,
    table: Annotated[
        str | None, option("--table", metavar="NAME", help="Table of the store; default: the predicted one.")
    ] = None,
    layer: Annotated[
        str | None, option("--layer", metavar="NAME", help="Layer, such as std, instead of the predictions.")
    ] = None,
    overwrite: Annotated[bool, flag("--overwrite", help="Replace existing files.")] = False,
    groupby: Annotated[
        str | None,
        option(
            "--groupby", metavar="COLUMN", panel=".geojson (QuPath)",
            help="Column of the table, such as cell types, as classes; of .json, too.",
        ),
    ] = None,
    mpp: Annotated[
        float | None,
        option(
            "--mpp", metavar="UM", panel=".geojson (QuPath)",
            help="Micrometres per pixel of the slide in QuPath; default: of the image predicted from.",
        ),
    ] = None,
    counts: Annotated[
        bool, flag("--counts", panel=".h5 (scanpy, Seurat)", help="Whole numbers on the scale of counts.")
    ] = False,
    library_size: Annotated[
        float | None,
        option(
            "--library-size", metavar="N", panel=".h5 (scanpy, Seurat)",
            help="With --counts: counts per location; default: as in the model's training.",
        ),
    ] = None,
    positions: Annotated[
        Path | None,
        option(
            "--positions", metavar="CSV", panel=".h5 (scanpy, Seurat)", help="File of positions in um to write, too."
        ),
    ] = None,
    map: Annotated[
        str | None,
        option(
            "--map", metavar="NAME", panel=".ome.tif (QuPath, Fiji)", help="Map of the store; default: its only one."
        ),
    ] = None,
    url: Annotated[
        str | None,
        option("--url", metavar="URL", panel=".json (vitessce)", help="Address at which the store is served."),
    ] = None,
) -> None:  # fmt: skip
    """Write predictions of a store for other programs: QuPath, scanpy, Seurat, Fiji, vitessce."""
    import stpred as st

    given = {
        "layer": layer, "groupby": groupby, "mpp": mpp, "counts": counts or None, "library_size": library_size,
        "positions": positions, "url": url,
    }  # fmt: skip
    chosen = None if genes is None else [g.strip() for g in genes.split(",") if g.strip()]
    write: dict[str, Any] = {
        "geojson": st.io.write_geojson,
        "h5": st.io.write_10x_h5,
        "tiff": st.io.write_tiff_map,
        "vitessce": st.io.write_vitessce,
    }
    with plain_messages():
        kinds = [_kind(path) for path in out]
        _check_options(given, kinds)
        sdata = _read(store)
        for path, kind in zip(out, kinds, strict=True):
            key = _map(sdata, map) if kind == "tiff" else _table(sdata, table)
            own: dict[str, Any] = {k: v for k, v in given.items() if v is not None and kind in _OF[k]}
            write[kind](sdata, key, path, genes=chosen, overwrite=overwrite, **own)
            console.print(f"{key}   {path}", highlight=False)


def _kind(path: Path) -> str:
    for suffixes, kind in _KINDS.items():
        if path.name.lower().endswith(suffixes):
            return kind
    endings = [s for suffixes in _KINDS for s in suffixes]
    raise InputError(f"{str(path)!r} ends in none of {listing(endings, most=20)}, which say what is written.")


def _check_options(given: dict[str, Any], kinds: list[str]) -> None:
    """Refuse options that are about none of the files."""
    endings = {kind: suffixes[0] for suffixes, kind in _KINDS.items()}
    for name, value in given.items():
        if value is not None and not set(_OF[name]) & set(kinds):
            raise InputError(f"`{name}` is for {' and '.join(endings[k] for k in _OF[name])} files; none is written.")
    if len(set(kinds)) < len(kinds):
        raise InputError("Two files of one kind are to be written; call the command for each.")


def _read(store: Path) -> SpatialData:
    import spatialdata

    if not store.is_dir():
        raise MissingFileError(f"There is no store {str(store)!r}.")
    with readable(store, what="store"):
        return spatialdata.read_zarr(store)


def _table(sdata: SpatialData, named: str | None) -> str:
    """Return the named table, or the only predicted one."""
    if named is not None:
        return named
    found = [key for key, table in sdata.tables.items() if _is_predicted(table)]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"The store has {len(found)} predicted tables; name one with `table_key`: {_each(found)}.")
    others = _each(sdata.tables)
    raise InputError(
        "The store has no predicted table"
        + (f"; name another one with `table_key` if it is what you want to write: {others}." if others else ".")
    )


def _is_predicted(table: AnnData) -> bool:
    try:
        return "output_scale" in json.loads(table.uns[keys.UNS])
    except (KeyError, TypeError, ValueError):
        return False


def _each(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def _map(sdata: SpatialData, named: str | None) -> str:
    """Return the named map, or the only one."""
    if named is not None:
        return named
    found = [key for key, image in sdata.images.items() if rgb_problem(image) is not None]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"The store has {len(found)} maps; name one with `raster`: {_each(found)}.")
    raise InputError("The store has no map; stpred predict --map writes one, with a model of patches such as student.")

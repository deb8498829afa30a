"""Writing results to disk, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stpred._core import keys
from stpred._core.checks import InputError, check_parent, one_of
from stpred._core.disk.staging import staged_folder
from stpred._core.elements import affine_to, find_image
from stpred.tiles import Pyramid, thumbnail_element

if TYPE_CHECKING:
    from spatialdata import SpatialData


PICTURES = (".png", ".jpg", ".pdf", ".svg")

_REPLACEABLE = ("zarr.json", ".zgroup", "config.json")


def check_free(path: str | Path, *, overwrite: bool = False) -> Path:
    """Return `path` if a store or model can be written there; only such a one is ever replaced, and only if told."""
    path = check_parent(Path(path))
    if path.exists() and not overwrite:
        raise InputError(f"{str(path)!r} exists; choose another name or say that it may be overwritten (overwrite).")
    if path.exists() and not path.is_dir():
        raise InputError(f"{str(path)!r} is a file, not a folder to replace.")
    if path.exists() and any(path.iterdir()) and not any((path / mark).exists() for mark in _REPLACEABLE):
        raise InputError(f"{str(path)!r} is neither a zarr store nor a model, so it is not overwritten; name another.")
    return path


def check_file(path: Path | None) -> None:
    """Refuse a path, if given, at which no file can be written."""
    if path is not None and check_parent(path).is_dir():
        raise InputError(f"{str(path)!r} is a folder, not a file to write.")


def check_picture(path: Path, *, overwrite: bool = False, keep: Iterable[Path | None] = ()) -> Path:
    """Return `path` if a picture can be written there; `keep` are files that it never replaces, such as the slide."""
    one_of(path.suffix.lower(), PICTURES, name="picture")
    if path.exists():
        if not overwrite:
            raise InputError(f"The picture {str(path)!r} exists; name another or say that it may be overwritten.")
        if path.is_dir() or any(path.samefile(p) for p in keep if p is not None and p.exists()):
            raise InputError(f"The picture {str(path)!r} would replace a folder or the slide itself; name another.")
    return check_parent(path)


def light_copy(sdata: SpatialData, *, coordinate_system: str = keys.UM, max_px: int = 2000) -> SpatialData:
    """Return tables, the shapes placed in micrometres, and a thumbnail of the H&E image under its usual key."""
    from spatialdata import SpatialData as Object

    key = find_image(sdata, None, coordinate_system=coordinate_system)
    pyramid = Pyramid.from_image(sdata.images[key], coordinate_system=coordinate_system)
    image = thumbnail_element(pyramid, max_px=max_px, coordinate_system=coordinate_system)
    shapes = {k: v for k, v in sdata.shapes.items() if affine_to(v, coordinate_system) is not None}
    return Object(images={keys.IMAGE: image}, shapes=shapes, tables=dict(sdata.tables))


def write_result(
    sdata: SpatialData,
    path: str | Path,
    *,
    with_image: bool = False,
    overwrite: bool = False,
    attrs: Mapping[str, Any] | None = None,
) -> Path:
    """Write tables, shapes and a thumbnail as a zarr store that appears whole or not at all.

    Parameters
    ----------
    sdata
        Object with predictions.
    path
        Store to make.
    with_image
        Write the object as it is, pixels included, instead of a thumbnail.
    overwrite
        Replace an existing store.
    attrs
        Attributes that the store gets beside the object's own.
    """
    from spatialdata import SpatialData as Object

    path = check_free(path, overwrite=overwrite)
    made = sdata if with_image else light_copy(sdata)
    if attrs:
        made = Object(
            images=dict(made.images), labels=dict(made.labels), points=dict(made.points), shapes=dict(made.shapes),
            tables=dict(made.tables), attrs={**made.attrs, **attrs},
        )  # fmt: skip
    with staged_folder(path, what="store") as new:
        new.rmdir()  # spatialdata makes it
        made.write(new)
    return path

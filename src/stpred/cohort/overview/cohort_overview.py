"""The page that shows what became of each slide of a run."""

from __future__ import annotations

from pathlib import Path

from stpred._core.checks import InputError, check_parent, positive, whole
from stpred._core.disk.staging import staged_file
from stpred.cohort.manifest import read_manifest
from stpred.cohort.overview._page import render

MB = 1_000_000


def cohort_overview(
    folder: str | Path,
    path: str | Path,
    *,
    title: str | None = None,
    thumbnail_px: int = 144,
    max_mb: float = 40.0,
    overwrite: bool = False,
) -> Path:
    """Write one HTML page about a run over many slides: what became of each, how far to trust it, why others failed.

    The page holds everything it shows and loads nothing from the net. Thousands of slides can be searched, filtered and
    sorted by every column; failed slides come first, with their reasons grouped. Only rows in sight are drawn, and only
    their thumbnails are decoded.

    Parameters
    ----------
    folder
        Folder that :func:`stpred.tl.predict_cohort` wrote, also while it still runs, or where all slides failed.
    path
        File to write, ending in ``.html``. It appears whole or not at all.
    title
        Heading; None names the folder.
    thumbnail_px
        Longest edge of a thumbnail, in pixels.
    max_mb
        Size of the file up to which thumbnails are put in; slides that find no room for theirs are shown without, and
        the page says so. At 144 px a thumbnail takes about 6 kB.
    overwrite
        Replace an existing file.

    Returns
    -------
    The path.

    Raises
    ------
    InputError
        If the folder holds no run, its manifest no slide, or the file exists.

    Examples
    --------
    >>> import tempfile
    >>> import stpred as st
    >>> from stpred.cohort.manifest import Record, write_manifest
    >>> folder = Path(tempfile.mkdtemp())
    >>> write_manifest([Record("a", "a.svs", status="failed", error="The file 'a.svs' is cut off.")], folder)
    >>> st.tl.cohort_overview(folder, folder / "overview.html").name
    'overview.html'
    """
    folder, target = Path(folder), check_page(path, overwrite=overwrite)
    room = int(positive(max_mb, name="max_mb") * MB)
    px = whole(thumbnail_px, name="thumbnail_px", unit="pixels")
    manifest = read_manifest(folder)
    if manifest.empty:
        raise InputError(f"The manifest in {str(folder)!r} has no slide.")
    page = render(manifest, folder, target, title=title, room=room, px=px)
    with staged_file(target, what="overview page") as part:
        part.write_text(page, encoding="utf-8")
    return target


def check_page(path: str | Path, *, overwrite: bool = False) -> Path:
    """Return `path` if a page can be written there."""
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"The overview is a page, so its name must end in .html, got {str(path)!r}.")
    if check_parent(path).is_dir():
        raise InputError(f"{str(path)!r} is a folder, not a file to write.")
    if path.exists() and not overwrite:
        raise InputError(f"{str(path)!r} exists; choose another name or say that it may be overwritten (overwrite).")
    return path

"""A page about predictions that opens from disk: how far to trust them, maps, and every gene's scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from stpred._core import keys
from stpred._core.checks import InputError, check_parent, positive, whole
from stpred._core.disk.staging import staged_file
from stpred._report import _collect, _page
from stpred._report._alignment import put_alignment
from stpred._report._warnings import warnings_of

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData

MB = 1_000_000


def report(
    path: str | Path,
    slides: SpatialData | Mapping[str, SpatialData],
    predicted_key: str,
    *,
    measured_key: str | None = None,
    scores: pd.DataFrame | None = None,
    model: str | None = None,
    alignment: pd.DataFrame | None = None,
    title: str | None = None,
    n_maps: int = 4,
    max_mb: float = 20.0,
    image_key: str | None = None,
    coordinate_system: str = keys.UM,
    overwrite: bool = False,
) -> Path:
    """Write one HTML page that says what was predicted, with what, and how far to trust it, gene by gene.

    The page holds everything it shows and loads nothing from the net. Thousands of genes can be searched and sorted;
    a click on a gene shows its maps and its scores on every slide.

    Parameters
    ----------
    path
        File to write, ending in ``.html``. It appears whole or not at all.
    slides
        One slide, or names to slides.
    predicted_key
        Predicted table, of this name in every slide. For scores that mean something it is of slides that the model did
        not learn from, such as what cross-validation predicts for those that it leaves out.
    measured_key
        Raw counts of the same locations, of this name in every slide, to show beside the prediction; where `scores` is
        None the scores are taken against them.
    scores
        Tidy frame for these slides: of :func:`stpred.tl.cross_validate`, :func:`stpred.tl.validate`, or, with
        ``context=True``, :func:`stpred.tl.withheld_sections` and :func:`stpred.tl.withheld_spots`.
    model
        Which model of `scores` made the predictions; None takes the only one, or the one that the table names.
    alignment
        Frame of :func:`stpred.tl.alignment` for these slides: the page says what shift of the locations fits best, and
        warns of slides that are misaligned.
    title
        Heading; None names the model and the slides.
    n_maps
        Number of best, and of worst, genes that are shown with maps from the start.
    max_mb
        Size of the file up to which maps of genes are put in: of the best and worst first, then from the best down.
        Genes that find no room say so.
    image_key
        H&E image of the slides; None takes the one in the micrometre frame.
    coordinate_system
        The slides' micrometre frame.
    overwrite
        Replace an existing file.

    Returns
    -------
    The path.

    Raises
    ------
    InputError
        If the file exists, a slide has no such table, or `scores` are of other slides or of several models and none is
        named.

    Notes
    -----
    Scores on raw counts are shown only beside those of the library size alone; where these are missing they are left
    out, and the page says so. Of slides with more than 20 000 locations the maps are averages in squares.

    Examples
    --------
    >>> import tempfile
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(3, size_um=(500, 500), n_genes=20)
    >>> unseen = slides.pop("donor2")
    >>> model = st.tl.train(slides, "intensity", genes="all", shapes_key="spots")
    >>> st.tl.predict(unseen, model)
    >>> folder = tempfile.mkdtemp()
    >>> st.report(f"{folder}/report.html", unseen, "spots_intensity", measured_key="spots_counts").name
    'report.html'
    """
    target = check_page(path, overwrite=overwrite)
    whole(n_maps, name="n_maps")
    room = int(positive(max_mb, name="max_mb") * MB)
    read = _collect.read_slides(slides, predicted_key, measured_key=measured_key, coordinate_system=coordinate_system)
    put_alignment(read, alignment)
    content = _collect.collect(read, scores, model=model)
    content.warnings += warnings_of(content, scores)
    page = _page.render(
        content,
        title=title,
        n_maps=n_maps,
        room=room,
        image_key=image_key,
        coordinate_system=coordinate_system,
    )
    _write(target, page)
    return target


def check_page(path: str | Path, *, overwrite: bool = False) -> Path:
    """Return `path` if a page can be written there."""
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"A report is a page, so its name must end in .html, got {str(path)!r}.")
    if check_parent(path).is_dir():
        raise InputError(f"{str(path)!r} is a folder, not a file to write.")
    if path.exists() and not overwrite:
        raise InputError(f"{str(path)!r} exists; choose another name or say that it may be overwritten (overwrite).")
    return path


def _write(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all."""
    with staged_file(path, what="report") as part:
        part.write_text(text, encoding="utf-8")

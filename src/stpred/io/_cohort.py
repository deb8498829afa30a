"""Several slides at once: a table that lists them, or a folder that holds them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stpred.io.samples import list_samples, read_sample

if TYPE_CHECKING:
    from spatialdata import SpatialData


def read_cohort(
    sources: Iterable[str | Path | Mapping[str, Any]], *, format: str | None = None, **kwargs: Any
) -> tuple[dict[str, SpatialData], dict[str, str]]:
    """Read slides from paths, folders of slides, or tables that list them.

    Parameters
    ----------
    sources
        Each a slide (anything that :func:`stpred.io.read` takes, also as ``name=path``), a folder of slides
        (subfolders, image files, or legacy ST files that share the part of their names before the first dot; or a
        local copy of HEST-1k with its ``st``, ``wsis`` and ``metadata``, which names donors and pixel sizes), or a csv
        or tsv file with columns ``slide``, ``path`` and optionally ``format``, ``donor``, ``image``, ``spots``,
        ``mpp`` (paths relative to the file; `path` is the counts file of legacy ST and the h5ad file of HEST-style
        data), or a mapping of such columns. Further columns are the readers' own parameters: ``alignment`` (Xenium),
        ``scene``, ``swap_xy``, ``layer`` (HEST), ``counts`` (the matrix' file name), ``dataset_id``, ``bin_size``,
        ``segmentations`` (Visium HD), ``pitch_um``, ``diameter_um`` (legacy ST, HEST) and ``pixel_size_um`` (Xenium).
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
    for sample in list_samples(sources, format=format):
        slides[sample.slide] = read_sample(sample, **kwargs)
        if sample.donor is not None:
            donors[sample.slide] = sample.donor
    return slides, donors

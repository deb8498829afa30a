from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stpred._core.checks import InputError
from stpred._core.progress import track
from stpred._core.settings import settings
from stpred.cohort.extraction.extraction import Extraction, FeatureOptions
from stpred.cohort.locks import parse_shard
from stpred.cohort.run import open_run
from stpred.cohort.slides import find_slides

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData


def features_cohort(
    slides: str | Path | Iterable[str | Path] | Mapping[str, str | Path | Mapping[str, Any] | SpatialData],
    out: str | Path,
    *,
    models: str | Path | Iterable[str | Path] = "ridge",
    encoder: str | Path | list[str | Path] | None = None,
    shapes_key: str | None = None,
    device: str | None = None,
    client: Any = None,
    shard: str | None = None,
    overwrite: bool = False,
) -> pd.DataFrame:
    """Extract the features of many slides into a folder, from which training and prediction then take them.

    That is what costs most of both, so it is a step of its own, in processes on Dask: it can be interrupted at any
    time, also within a slide, and called again. With ``stpred.settings.cache_dir`` set to the folder,
    :func:`stpred.tl.train`, :func:`stpred.tl.cross_validate` and :func:`stpred.tl.predict` compute no tile anew that is
    there, and training leaves the features on disk, of which it holds a minibatch (or a slide) at a time.

    Parameters
    ----------
    slides
        As in :func:`stpred.tl.predict_cohort`.
    out
        Folder of the features, 16-bit floats, with ``manifest.parquet`` and ``manifest.csv``.
    models
        What they are for: families, whose training on these slides is prepared (of their measured regions), and
        trained models, as folders or bundled names, whose prediction is. Families that see the same of a location, such
        as ``"ridge"`` and ``"mlp"``, share their features.
    encoder
        Name or folder of an encoder, instead of each model's own; of several a list.
    shapes_key
        Region; None: as :func:`stpred.tl.train` or :func:`stpred.tl.predict_cohort` take it.
    device
        Where encoders run; None: a GPU if there is one.
    client, shard
        As in :func:`stpred.tl.predict_cohort`.
    overwrite
        Go through all slides again; features that are there stay.

    Returns
    -------
    DataFrame with a row per slide, as of :func:`stpred.tl.predict_cohort`: ``store`` is the list of a slide's features,
    ``n_tiles`` the number of its locations, ``table`` their region, ``model`` the encoder.

    Raises
    ------
    InputError
        As :func:`stpred.tl.predict_cohort`; or if a family sees pixels only.

    Examples
    --------
    With threads of this process as workers; without ``client=`` they are processes.

    >>> from distributed import Client
    >>> import stpred as st
    >>> slide = st.datasets.toy_legacy_st("slides/first", size_um=(600, 600))
    >>> with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=":0") as client:
    ...     done = st.pp.features_cohort("slides", "features", models="intensity", client=client)
    >>> done["status"].tolist()
    ['complete']
    >>> with st.settings.override(cache_dir="features"):
    ...     model = st.tl.train(st.io.read_cohort(["slides"])[0], "intensity")
    """
    if encoder is not None and not all(
        isinstance(e, (str, Path)) for e in (encoder if isinstance(encoder, (list, tuple)) else [encoder])
    ):
        raise InputError(
            "`encoder` of a cohort is a name or the folder of a saved encoder, which every worker loads: write it with "
            "stpred.encoders.save(encoder, folder)."
        )
    named = tuple(str(m) for m in ([models] if isinstance(models, (str, Path)) else models))
    job = Extraction.of(FeatureOptions(named, encoder, shapes_key, device))
    with open_run(find_slides(slides), job, out, shard=parse_shard(shard), overwrite=overwrite) as run:
        results = run.results(client=client, n_workers=settings.n_workers, devices=settings.devices)
        for _ in track(results, total=len(run.tasks), describe="Slides", line_every_s=60.0):
            pass
        return run.frame

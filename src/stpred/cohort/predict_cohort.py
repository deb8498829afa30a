from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stpred._core.checks import InputError
from stpred._core.progress import track
from stpred.cohort.locks import parse_shard
from stpred.cohort.manifest import prepare
from stpred.cohort.options import PredictOptions
from stpred.cohort.prediction import Prediction, place_of
from stpred.cohort.run import open_run
from stpred.cohort.slides import find_slides

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData

    from stpred._core.recipes.quality import QC
    from stpred.models import Model


def predict_cohort(
    slides: str | Path | Iterable[str | Path] | Mapping[str, str | Path | Mapping[str, Any] | SpatialData],
    model: Model | str | Path | None,
    out: str | Path,
    *,
    genes: Iterable[str] | None = None,
    shapes_key: str | None = None,
    cells: bool = False,
    encoder: str | Path | list[str | Path] | None = None,
    qc: QC | bool | None = None,
    with_map: bool = False,
    with_image: bool = False,
    previews: bool = False,
    device: str | None = None,
    client: Any = None,
    shard: str | None = None,
    overwrite: bool = False,
) -> pd.DataFrame:
    """Predict expression for many slides, each into a store of its own, in processes on Dask.

    The run can be interrupted at any time, and called again: slides whose results are complete for this model, these
    settings and the content of their files are not predicted again, and large ones go on where they were. A slide that
    fails does not stop the others. Results of another model or other settings in the same folder are moved to
    ``out/replaced``.

    Parameters
    ----------
    slides
        A csv of slides (see :func:`stpred.io.read_cohort`), a folder of them, a pattern such as ``"slides/*.svs"``, a
        list of those; or names to paths, to mappings of the csv's columns, or to objects that lie in stores. Stores of
        SpatialData are slides as well.
    model
        A trained model, its folder, a bundled name or ``"hf:owner/name@revision"``; None: the bundled default. Each
        worker loads it once.
    out
        Folder of the results: ``NAME.zarr`` for each slide (tables, shapes, a thumbnail of the image),
        ``manifest.parquet`` and ``manifest.csv``.
    genes
        Genes to keep; None keeps all that the model knows.
    shapes_key
        Region to predict on; None takes the model's own training region, else spots, cells or bins of 8 um, else a
        grid.
    cells
        Predict on the slide's cells, or its nuclei, which are found first.
    encoder
        Name or folder of the model's encoder, where it is not found by itself; of several a list.
    qc
        Limits on what the image shows (:class:`stpred.QC`; True: its defaults): locations that do not pass are left
        out, as by :func:`stpred.tl.predict`. None: all are predicted.
    with_map
        Also write a map, see :func:`stpred.tl.predict_map`, of a model of patches.
    with_image
        Stores hold the slide's pixels instead of a thumbnail.
    previews
        Also draw ``NAME.png``.
    device
        Where model and encoder run; None: a GPU if there is one.
    client
        A ``distributed.Client`` or the address of a scheduler, whose workers need one thread each and the file system
        in common; where workers have the resource ``GPU``, each slide takes one. None: processes on this machine, see
        ``stpred.settings.n_workers`` and ``stpred.settings.devices``.
    shard
        ``"i/n"``: only the i-th of n parts of the slides, counted from 1, as one of n jobs that have no scheduler in
        common and may run at once.
    overwrite
        Predict all slides again.

    Returns
    -------
    DataFrame with a row per slide (of this shard): ``slide``, ``path``, ``donor``, ``store``, ``status``
    (``"complete"`` or ``"failed"``), ``error`` (a sentence), ``warnings``, ``seconds``, ``worker``, ``finished``,
    ``fingerprint`` (of the content of its files), ``mpp``, ``n_tiles``, ``in_distribution`` (share of the tiles),
    ``table`` (key of the predicted table), ``n_genes``, ``model``, ``model_id``, ``settings`` (a hash), ``versions``.

    Raises
    ------
    InputError
        If no slide is found, two have one name, the folder is written by another client (which is named) or holds
        stores that no run has written, the model does not know a gene, or no scheduler answers. What is wrong with a
        single slide is in its row instead.

    Examples
    --------
    With threads of this process as workers; without ``client=`` they are processes.

    >>> from distributed import Client
    >>> import stpred as st
    >>> for name in ("first", "second"):
    ...     slide = st.datasets.toy_wsi(f"slides/{name}.svs", format="svs", size_um=(300, 300))
    >>> with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=":0") as client:
    ...     manifest = st.tl.predict_cohort("slides", None, "predicted", client=client)
    >>> manifest["status"].tolist()
    ['complete', 'complete']
    """
    from stpred import settings

    if encoder is not None and not all(
        isinstance(e, (str, Path)) for e in (encoder if isinstance(encoder, (list, tuple)) else [encoder])
    ):
        raise InputError(
            "`encoder` of a cohort is a name or the folder of a saved encoder, which every worker loads: write it with "
            "stpred.encoders.save(encoder, folder)."
        )
    options = PredictOptions(
        shapes_key=shapes_key,
        cells=cells,
        genes=None if genes is None else tuple([genes] if isinstance(genes, str) else genes),
        encoder=encoder,
        device=device,
        with_image=with_image,
        with_map=with_map,
        qc=qc,
    )
    job = prediction_of(model, Path(out), options, previews=previews)
    with open_run(find_slides(slides), job, out, shard=parse_shard(shard), overwrite=overwrite) as run:
        results = run.results(client=client, n_workers=settings.n_workers, devices=settings.devices)
        for _ in track(results, total=len(run.tasks), describe="Slides", line_every_s=60.0):
            pass
        return run.frame


def prediction_of(model: Any, out: Path, options: PredictOptions, *, previews: bool) -> Prediction:
    """Return what is done with each slide, once model and options are known to go together."""
    place, trained = place_of(model, prepare(out.absolute()))
    options.check(trained)
    return Prediction(place, trained.record.name, trained.id, options, previews)

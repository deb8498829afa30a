"""Results of a run over many slides in one AnnData: pseudo-bulk with what is known of each slide, and joined tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from stpred._core.checks import InputError, check_parent, distinct, listing, one_of, warn
from stpred._core.disk.staging import staged_file, staged_folder
from stpred._core.expression.bulk import AVERAGES
from stpred._core.progress import track
from stpred._core.tables import write_provenance
from stpred.cohort.collected._collected import Cohort
from stpred.cohort.collected._joined_tables import joined_tables, of_either_format
from stpred.cohort.collected._stored_tables import Opener, StoredTable, UnreadableSlide
from stpred.cohort.manifest import COMPLETE, read_manifest
from stpred.stores import check_free

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


def collect_cohort(
    folder: str | Path,
    out: str | Path | None = None,
    *,
    tables: str | Path | None = None,
    genes: Iterable[str] | None = None,
    in_distribution_only: bool = True,
    average: str = "amounts",
    layers: Sequence[str] = (),
    table_key: str | None = None,
    model: str | None = None,
    overwrite: bool = False,
    skip_errors: bool = False,
) -> AnnData:
    """Collect the predictions of a run over many slides: a pseudo-bulk per slide, and if asked all tables in one file.

    Stores are read one after the other, a block of rows at a time, so memory stays at one block and what is known of
    the locations of one slide, however many slides there are.

    Parameters
    ----------
    folder
        Folder that :func:`stpred.tl.predict_cohort` wrote. Slides that are not complete are left out with a warning.
    out
        Pseudo-bulk to write, ending in ``.h5ad`` or ``.zarr``; None only returns it. It appears whole or not at all.
    tables
        File or store, ending likewise, of the tables of all slides one below the other.
    genes
        Symbols to collect, in this order; None takes all genes that any slide has.
    in_distribution_only
        Average only locations that look like the model's training tiles, as :func:`stpred.tl.pseudobulk` does.
    average
        Of values on a logarithmic scale: ``"amounts"`` averages what they are logarithms of, as a bulk measurement
        does; ``"values"`` averages them as they are.
    layers
        Layers of the tables, such as ``"std"``, that `tables` holds beside ``X``.
    table_key
        Table of every store; None takes the one that the manifest names.
    model
        Name or id of the model whose slides are collected, where a folder holds results of several.
    overwrite
        Replace existing files.
    skip_errors
        Leave out slides that are complete in the manifest and whose results are missing or cannot be read, with a
        warning, instead of refusing to collect anything.

    Returns
    -------
    AnnData of slides x genes, as from :func:`stpred.tl.pseudobulk`, so that :func:`stpred.tl.survival`,
    :func:`stpred.tl.classify` and :func:`stpred.tl.compare_bulk` take it. ``X`` is float32 on the scale of the
    predictions (float64 sums of counts, with ``layers["mean"]``). It is NaN for genes that a slide lacks, and for
    slides without any location in distribution. ``layers["all_locations"]``: the same over all locations;
    ``layers["location_sd"]``: standard deviation of the values over the locations that were averaged. ``obs``: columns
    of the manifest, ``donor`` (missing where it is not known), ``table``, ``region``, ``n_tiles`` (locations),
    ``n_not_predicted`` (off the image, without cells, of poor quality), ``upsampled`` (an image too coarse for the
    model), ``n_locations`` that were averaged, ``n_left_out`` and ``share_left_out`` of the others,
    ``share_in_distribution``, ``median_ood_score``, ``n_genes``. ``var``: what the model states of each gene's
    predictability, and ``n_collected`` slides that have it. ``uns["stpred"]``: JSON with scale, model, the slides that
    were left out (``"left_out"``), and those that were skipped with the reason of each (``"unreadable"``).

    `tables` holds an AnnData of locations x genes: ``obs_names`` ``slide/instance``, ``obs`` with ``slide``, ``donor``,
    ``region``, ``instance_id``, ``ood_score`` and ``in_distribution``, ``obsm["spatial"]`` in micrometres of each
    slide's own frame, float32 ``X``.

    Raises
    ------
    InputError
        If the folder holds no run or no complete slide, a store lacks its table, no slide has a gene, the slides are
        of several models or scales, or the disk has no room.

    Examples
    --------
    >>> import tempfile
    >>> import stpred as st
    >>> from stpred.cohort.manifest import Record, write_manifest
    >>> slides = st.datasets.toy_cohort(2, size_um=(300, 300), n_genes=8, mpp=1.0)
    >>> model = st.tl.train(slides, "mean", encoder="intensity", genes="all", shapes_key="spots")
    >>> st.tl.predict(slides["donor1"], model)
    >>> folder = tempfile.mkdtemp()
    >>> slides["donor1"].write(f"{folder}/donor1.zarr")
    >>> done = Record("donor1", "donor1.svs", store="donor1.zarr", status="complete", table="spots_mean")
    >>> write_manifest([done], Path(folder))
    >>> bulk = st.tl.collect_cohort(folder, f"{folder}/cohort.h5ad", in_distribution_only=False)
    >>> bulk.shape
    (1, 8)
    """
    folder = Path(folder)
    one_of(average, AVERAGES, name="average")
    if layers and tables is None:
        raise InputError(f"`layers`={list(layers)} are of joined tables, and `tables` names no file for them.")
    manifest = read_manifest(folder)
    stores = {folder / str(store) for store in manifest["store"] if store}
    targets = [
        _target(p, name, stores, overwrite=overwrite) for p, name in ((out, "out"), (tables, "tables")) if p is not None
    ]
    if len(targets) == 2 and targets[0].resolve() == targets[1].resolve():
        raise InputError(f"`out` and `tables` are both {str(targets[0])!r}; name two files.")
    complete = _chosen(manifest, folder, model)
    found, skipped = _open(complete, folder, table_key, layers, skip_errors=skip_errors)
    path = None if tables is None else targets[-1]
    while True:
        there = complete.loc[[table.slide for table in found]]
        cohort = Cohort(there, found, _genes(found, genes), in_distribution_only, average, tuple(layers), skipped)
        try:
            bulk = _read(cohort, manifest, path)
            break
        except UnreadableSlide as error:
            found = [table for table in found if table.slide != error.slide]
            if not skip_errors or not found:
                raise
            skipped = {**skipped, error.slide: str(error)}
    if skipped:
        said = "; ".join(f"{slide!r} ({reason.rstrip('.')})" for slide, reason in list(skipped.items())[:2])
        warn(f"{len(skipped)} of {len(complete)} complete slides cannot be read and are left out, such as {said}.")
    cohort.warn_of_gaps(manifest)
    write_provenance(bulk, cohort.provenance(manifest))
    if out is not None:
        _write(bulk, targets[0])
    return bulk


def _read(cohort: Cohort, manifest: pd.DataFrame, path: Path | None) -> AnnData:
    """Return the pseudo-bulk, and write the joined tables where there is a path for them."""
    if path is None:
        return cohort.read(None)
    cohort.check_room(path)
    with joined_tables(path, **cohort.shape_of_joined(manifest)) as writer:
        return cohort.read(writer)


def _target(path: str | Path, name: str, stores: set[Path], *, overwrite: bool) -> Path:
    """Return a path at which a result can be written."""
    path = Path(path)
    if path.suffix not in (".h5ad", ".zarr"):
        raise InputError(f"`{name}` must end in .h5ad or .zarr, got {str(path)!r}.")
    if any(path.resolve() == store.resolve() for store in stores):
        raise InputError(f"`{name}`={str(path)!r} is the store of a slide; choose another name.")
    if path.suffix == ".zarr":
        return check_free(path, overwrite=overwrite)
    if check_parent(path).is_dir():
        raise InputError(f"`{name}`={str(path)!r} is a folder, not a file to write.")
    if path.exists() and not overwrite:
        raise InputError(f"{str(path)!r} exists; choose another name or say that it may be overwritten (overwrite).")
    return path


def _chosen(manifest: pd.DataFrame, folder: Path, model: str | None) -> pd.DataFrame:
    """Return the complete slides of one model."""
    complete = manifest[manifest["status"] == COMPLETE]
    if complete.empty:
        counts = ", ".join(f"{n} {status}" for status, n in manifest["status"].value_counts().items()) or "no slide"
        raise InputError(f"No slide in {str(folder)!r} is complete ({counts}); run stpred predict into it again.")
    if model is not None:
        known = (complete["model"] == model) | (complete["model_id"] == model)
        if not known.any():
            said = distinct([*complete["model"], *complete["model_id"]], name="model")
            raise InputError(
                f"No complete slide in {str(folder)!r} is of the model {model!r}; there are {listing(said)}."
            )
        complete = complete[known]
    ids = complete.groupby("model_id", sort=False)
    if ids.ngroups > 1:
        said = [f"{part['model'].iloc[0]} ({name}): {len(part)} slides" for name, part in ids]
        raise InputError(
            f"The complete slides in {str(folder)!r} are of {ids.ngroups} models, whose values are not to be mixed: "
            f"{listing(said)}; choose one by its id (model=...)."
        )
    repeated = complete["slide"][complete["slide"].duplicated()].unique()
    if len(repeated):
        raise InputError(
            f"The manifest in {str(folder)!r} has several complete rows of the slides {listing(repeated)}."
        )
    return complete.set_index("slide")


def _open(
    complete: pd.DataFrame, folder: Path, table_key: str | None, layers: Sequence[str], *, skip_errors: bool
) -> tuple[list[StoredTable], dict[str, str]]:
    """Return the table of every slide, and why those that are skipped cannot be opened.

    Without `skip_errors`, or where none can be opened, all that cannot are refused at once.
    """
    opener, found, wrong = Opener(layers), [], {}
    for slide, row in track(complete.iterrows(), total=len(complete), describe="opening stores"):
        try:
            found.append(opener(str(slide), folder / row["store"], row["table"] if table_key is None else table_key))
        except InputError as error:
            wrong[str(slide)] = str(error)
    if wrong and not (skip_errors and found):
        more = f" (the first of {len(wrong)} such slides of {len(complete)})" if len(wrong) > 1 else ""
        raise InputError(
            f"{next(iter(wrong.values())).rstrip('.')}{more}; remove such a store and predict the slide again, or name "
            "another table (table_key)."
        )
    scales: dict[str, list[str]] = {}
    for table in found:
        scales.setdefault(table.scale, []).append(table.slide)
    if len(scales) > 1:
        said = "; ".join(f"{scale!r} of {listing(slides, most=3)}" for scale, slides in scales.items())
        raise InputError(f"The tables are on several scales, which are not to be mixed: {said}.")
    models: dict[str, str] = {}
    for table in found:
        models.setdefault(str(table.provenance.get("model_id", "")), table.slide)
    if len(models) > 1:
        said = "; ".join(f"{name!r} (such as {slide!r})" for name, slide in models.items())
        raise InputError(
            f"The tables in the stores are of {len(models)} models, whose values are not to be mixed: {said}; "
            "choose another table (table_key) or predict these slides again."
        )
    return found, wrong


def _genes(found: list[StoredTable], wanted: Iterable[str] | None) -> pd.Index:
    """Return the genes to collect: those wanted, or all that any slide has, in the order of the first."""
    import pandas as pd

    lists = {id(table.genes): table.genes for table in found}
    for table in found:
        if not table.genes.is_unique:
            repeated = table.genes[table.genes.duplicated()].unique()
            raise InputError(
                f"Gene names of the {table.what} {str(table.store)!r} are not unique: {listing(repeated)}."
            )
    union = pd.Index(list(dict.fromkeys(g for names in lists.values() for g in names)), dtype=object)
    if wanted is None:
        return union
    chosen = distinct([wanted] if isinstance(wanted, str) else [str(g) for g in wanted], name="genes")
    if missing := [g for g in chosen if g not in union]:
        raise InputError(
            f"No slide has {len(missing)} of {len(chosen)} `genes`: {listing(missing)}; the tables have "
            f"{len(union)}, such as {listing(union[:5])}."
        )
    return pd.Index(chosen, dtype=object)


@contextmanager
def _staged(path: Path) -> Iterator[Path]:
    what = "pseudo-bulk"
    with staged_folder(path, what=what) if path.suffix == ".zarr" else staged_file(path, what=what) as part:
        yield part


def _write(bulk: AnnData, path: Path) -> None:
    """Write a small AnnData, whole or not at all."""
    with _staged(path) as part:
        if path.suffix == ".h5ad":
            bulk.write_h5ad(part)
            return
        with of_either_format():
            bulk.write_zarr(part)

"""``stpred collect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from stpred._core.checks import InputError
from stpred._core.words.phrases import count
from stpred.cli.cohort import SKIPPED, print_failed
from stpred.cli.help import complete
from stpred.cli.options import flag, option
from stpred.cli.session import console, plain_messages

COLLECTED = "What is collected"


def collect(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder that stpred predict wrote for many slides.")],
    out: Annotated[
        Path | None,
        option("--out", "-o", metavar="FILE", help="Pseudo-bulk per slide to write: .h5ad or .zarr."),
    ] = None,
    tables: Annotated[
        Path | None,
        option(
            "--tables", metavar="FILE",
            help="Write the tables of all slides, one below the other, to this .h5ad or .zarr."
        ),
    ] = None,
    page: Annotated[
        Path | None,
        option("--page", metavar="HTML", help="Overview page to write; default: beside --out, or else --tables."),
    ] = None,
    no_page: Annotated[bool, flag("--no-page", help="Write no overview page.")] = False,
    overwrite: Annotated[bool, flag("--overwrite", help="Replace existing files.")] = False,
    skip_errors: Annotated[
        bool,
        flag(
            "--skip-errors",
            help="Leave out slides whose results are missing or cannot be read, list them, and end with exit status 3.",
        ),
    ] = False,
    genes: Annotated[
        str | None,
        option(
            "--genes", metavar="GENES", panel=COLLECTED,
            help="Collect only these symbols, separated by commas, in this order.",
        ),
    ] = None,
    all_locations: Annotated[
        bool, flag("--all-locations", panel=COLLECTED, help="Average locations out of distribution, too.")
    ] = False,
    average: Annotated[
        str,
        option(
            "--average", metavar="WHAT", panel=COLLECTED, complete=complete.one_of(("amounts", "values")),
            help="amounts: average before the logarithm, as a bulk measurement does; values: average the predictions "
            "as they are.",
        ),
    ] = "amounts",
    layer: Annotated[
        list[str] | None,
        option(
            "--layer", metavar="NAME", panel=COLLECTED,
            help="Layer, such as std, to write with --tables; may be repeated.",
        ),
    ] = None,
    table: Annotated[
        str | None,
        option(
            "--table", metavar="NAME", panel=COLLECTED, help="Table of the stores; default: the one that was predicted."
        ),
    ] = None,
    model: Annotated[
        str | None,
        option(
            "--model", metavar="MODEL", panel=COLLECTED, help="Name or id of the model, where a folder holds several."
        ),
    ] = None,
) -> None:  # fmt: skip
    """Collect a run over many slides: pseudo-bulk with each slide's quality, all tables in one file, and a page."""
    import stpred as st
    from stpred.cohort.manifest import Record
    from stpred.cohort.overview.cohort_overview import check_page

    with plain_messages():
        if no_page and page is not None:
            raise InputError("`--page` and `--no-page` are both given; give one of them.")
        beside = out or tables
        if page is None and not no_page and beside is not None:
            page = beside.with_suffix(".html")
        if page is None and beside is None:
            raise InputError("There is nothing to write; give `--out`, `--tables` or `--page`.")
        if page is not None:
            check_page(page, overwrite=overwrite)  # before minutes of reading
        skipped: dict[str, str] = {}
        if beside is not None:
            skipped = _collect(
                folder,
                out,
                tables,
                genes=None if genes is None else [g.strip() for g in genes.split(",") if g.strip()],
                in_distribution_only=not all_locations,
                average=average,
                layers=layer or (),
                table_key=table,
                model=model,
                overwrite=overwrite,
                skip_errors=skip_errors,
            )
        if page is not None:
            st.tl.cohort_overview(folder, page, overwrite=overwrite)
            console.print(f"Overview page   {page}", highlight=False)
        if skipped:
            print_failed((Record(slide, "", error=why) for slide, why in skipped.items()), word="Left out")
            raise typer.Exit(SKIPPED)


def _collect(folder: Path, out: Path | None, tables: Path | None, **options: Any) -> dict[str, str]:
    """Collect, say what was written, and return what was skipped and why."""
    import stpred as st
    from stpred._core.tables import read_prediction

    bulk = st.tl.collect_cohort(folder, out, tables=tables, **options)
    if out is not None:
        console.print(
            f"Pseudo-bulk of {count(bulk.n_obs, 'slide')} x {count(bulk.n_vars, 'gene')}   {out}", highlight=False
        )
    if tables is not None:
        n = int(bulk.obs["n_tiles"].sum())
        console.print(f"Tables of {n:,} locations x {count(bulk.n_vars, 'gene')}   {tables}", highlight=False)
    low = int((bulk.obs["share_in_distribution"] < 0.5).sum())
    if low:
        console.print(
            f"{low} of {bulk.n_obs} slides are mostly out of distribution (share_in_distribution below 50%); what is "
            "said of them should not be relied on."
        )
    return dict(read_prediction(bulk)["unreadable"])

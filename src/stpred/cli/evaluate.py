"""``stpred evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from stpred._core.checks import InputError
from stpred._core.disk import hub
from stpred._core.disk.weights import CONFIG
from stpred._core.places import Place
from stpred.cli.encoders import load_encoder
from stpred.cli.help import complete
from stpred.cli.options import (
    OUTPUT,
    Checkpoint,
    Device,
    Encoder,
    Ensemble,
    Genes,
    Groups,
    Precision,
    Seed,
    ShapesKey,
    Slides,
    Upsampling,
    option,
    overwrites,
    reads_slides,
)
from stpred.cli.session import console, plain_messages
from stpred.cli.slides import ensure_cells, needs_cells, parse_genes, parse_groups, read_slides

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData


HELD_OUT = "cv"
"""Ending of the tables that cross-validation predicts for held-out slides."""


@reads_slides
def evaluate(
    slides: Slides,
    groups: Groups = None,
    models: Annotated[
        str,
        option(
            "--models", metavar="FAMILIES", complete=complete.family_list,
            help="Families, separated by commas; ridge_best chooses settings. A folder or hf:owner/name@revision is a "
            "trained model, which is scored as it is.",
        ),
    ] = "mean,intensity,colour,ridge,ridge_best",
    genes: Genes = None,
    shapes: ShapesKey = None,
    folds: Annotated[
        int | None,
        option("--folds", metavar="N", help="Number of folds; default: one donor left out at a time."),
    ] = None,
    out: Annotated[
        Path | None, option("--out", "-o", metavar="CSV", panel=OUTPUT, help="csv of all scores.")
    ] = None,
    report: Annotated[
        Path | None,
        option("--report", metavar="HTML", panel=OUTPUT, help="Page of the best model's maps and scores."),
    ] = None,
    overwrite: Annotated[bool, overwrites("an existing report")] = False,
    ensemble: Ensemble = None,
    checkpoint: Checkpoint = None,
    precision: Precision = None,
    seed: Seed = 0,
    encoder: Encoder = None,
    allow_upsampling: Upsampling = False,
    device: Device = None,
    *,
    reading: dict[str, Any],
) -> None:  # fmt: skip
    """Score models on donors they have not seen, on the log and on the raw scale, beside the library size alone.

    Which slides share a donor must be said, by the csv's column or --groups: slides of one donor are never on both
    sides of a fold, since that would make scores optimistic.
    """
    import pandas as pd

    import stpred as st
    from stpred import data
    from stpred._report import check_page
    from stpred.stores import check_file

    with plain_messages():
        check_file(out)
        if report is not None:
            check_page(report, overwrite=overwrite)
        read, donors = read_slides(slides, reading)
        chosen = _families(models, read, shapes)
        encoder_used = load_encoder(encoder)
        grouping = parse_groups(groups, donors, required=True)
        if needs_cells(_configs(chosen)) or any(m.needs.cells for m in _trained(chosen)):
            for sdata in read.values():
                ensure_cells(sdata)
        used = _encoders(chosen, encoder_used)
        for name, sdata in read.items():  # once for both scales, and all encoders in one pass over the image
            region = data.read_region(sdata, Place(shapes_key=shapes), slide=name, measured=True)
            if used is not None and st.settings.cache_dir is not None:
                data.embed(
                    region, st.encoders.get(used, device=device), region.coords_um
                )  # into the folder, and not into memory
            elif used is not None:
                st.pp.features(sdata, used, shapes_key=region.shapes_key, device=device)
        with st.settings.override(checkpoint_dir=checkpoint, precision=precision):
            parts = [
                st.tl.cross_validate(
                    read,
                    chosen if ensemble is None else _ensembles(chosen, ensemble),
                    groups=grouping,
                    genes=parse_genes(genes),
                    shapes_key=shapes,
                    encoder=encoder_used,
                    target=target,
                    n_folds=folds,
                    seed=seed,
                    device=device,
                    key_added=HELD_OUT if report is not None and target == "log1p_cp10k" else None,
                )
                for target in ("log1p_cp10k", "counts")
            ]
        scores = pd.concat(parts, ignore_index=True)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            scores.to_csv(out, index=False)
        _print_scores(scores, list(chosen))
        if out is not None:
            console.print(f"All scores: {out}")
        if report is not None:
            _report(read, scores, _best(scores, list(chosen)), report, overwrite=overwrite)
            console.print(f"Report: {report}")


def _families(text: str, slides: dict[str, Any], shapes: str | None) -> dict[str, Any]:
    """Return models by name; ``ridge_best`` is a grid around the slides' own pitch, a place is of a trained model."""
    from stpred import data, models
    from stpred.regions import Lattice

    chosen: dict[str, Any] = {}
    for name in (n.strip() for n in text.split(",")):
        if hub.is_remote(name) or (Path(name) / CONFIG).is_file():
            trained = models.load(name)
            chosen[name if trained.record.name in chosen else trained.record.name] = trained
            continue
        if name != "ridge_best":
            chosen[name] = name
            continue
        first = next(iter(slides.items()))
        lattice = Lattice.of(
            data.read_region(first[1], Place(shapes_key=shapes), slide=first[0], measured=True).coords_um
        )
        reaches = (
            [None] if lattice is None else [None, round(1.6 * lattice.pitch_um, 1), round(2.6 * lattice.pitch_um, 1)]
        )
        chosen[name] = [
            models.Ridge.Config(context_um=reach, standardize=how) for reach in reaches for how in ("train", "slide")
        ]
    return chosen


def _trained(chosen: dict[str, Any]) -> list[Any]:
    """Return the models that are scored as they are."""
    return [m for m in chosen.values() if hasattr(m, "record")]


def _configs(chosen: dict[str, Any]) -> list[Any]:
    """Return the families and configs that are trained, those of grids one by one."""
    grids = [m if isinstance(m, list) else [m] for m in chosen.values() if not hasattr(m, "record")]
    return [config for grid in grids for config in grid]


def _ensembles(chosen: dict[str, Any], n_members: int) -> dict[str, Any]:
    """Return an ensemble of every model, and of every config to choose from."""
    from stpred.models import Ensemble

    def ensemble(model: Any) -> Any:
        if isinstance(model, list):
            return [ensemble(m) for m in model]
        return model if hasattr(model, "record") else Ensemble.Config(model, n_members)

    return {name: ensemble(model) for name, model in chosen.items()}


def _encoders(chosen: dict[str, Any], encoder: Any) -> Any:
    """Return the encoders that the models see through side by side, each once; None without, as for raw pixels."""
    from stpred import encoders
    from stpred.encoders.composite import members_of
    from stpred.models.registry import resolve

    configs = [resolve(c) for c in _configs(chosen)]
    own = {c.default_encoder: encoder if encoder is not None and c.encoder_is_free else None for c in configs}
    used = [name if given is None else given for name, given in sorted(own.items())]
    members = [m for e in used if e != "pixels" for m in members_of(encoders.get(e))]
    each = {repr(m.card.to_dict()): m for m in members}
    return encoders.get(list(each.values())) if len(each) > 1 else next(iter(each.values()), None)


def _print_scores(scores: pd.DataFrame, models: list[str]) -> None:
    """Print mean Pearson: a row per scale and model, a column per slide while they are few, and the means."""
    from rich.table import Table

    wide, given = (_by_slide(scores, metric) for metric in ("pearson", "pearson_given_library_size"))
    n_genes = scores[scores.metric == "pearson"].groupby("slide").gene.nunique().max()
    table = Table(title=f"Mean Pearson over {n_genes} genes, slides left out in turn", title_justify="left")
    table.add_column("scale")
    table.add_column("model")
    slides = list(wide.columns) if len(wide.columns) <= 8 else []
    for column in [*map(str, slides), "mean", "given library size"]:
        table.add_column(column, justify="right")
    for target, short in (("log1p_cp10k", "log1p CP10k"), ("counts", "raw counts")):
        for model in [*models, "library_size"]:
            row = wide.loc[(target, model)]
            held = f"{given.loc[(target, model)].mean():.3f}" if (target, model) in given.index else ""
            table.add_row(short, model, *(f"{row[s]:.3f}" for s in slides), f"{row.mean():.3f}", held)
        table.add_section()
    console.print(table)
    if scores.donor_shared.any():
        console.print(
            "donor_shared=True: one donor's slides are on both sides; for new donors these scores are optimistic."
        )
    for (fold, model), part in scores[scores.target == "log1p_cp10k"].groupby(["fold", "model"]):
        if model.endswith("_best"):
            console.print(f"  {fold}: {model} chose {part.chosen.iloc[0]}")
    console.print("library_size: a spot's total of all other genes alone; never read raw-count scores without it.")
    console.print(
        "given library size: the mean once a spot's total is taken out; scores of other donors are read by it."
    )


def _by_slide(scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return a metric's means over genes, scale and model by slide; a gene without a score counts as 0."""
    rows = scores[scores.metric == metric]
    return rows.assign(value=rows.value.fillna(0.0)).pivot_table(
        index=["target", "model"], columns="slide", values="value", aggfunc="mean", observed=True
    )


def _best(scores: pd.DataFrame, models: list[str]) -> str:
    """Return the model of the highest mean Pearson on the logarithmic scale; of equal ones the first."""
    part = scores[(scores.metric == "pearson") & (scores.target == "log1p_cp10k")]
    means = part.assign(value=part.value.fillna(0.0)).groupby("model").value.mean()
    return max(models, key=lambda m: means.get(m, 0.0))


def _report(
    read: dict[str, SpatialData], scores: pd.DataFrame, model: str, path: Path, *, overwrite: bool = False
) -> None:
    """Write the page of a model from what was predicted for the slides that it had not seen."""
    import stpred as st
    from stpred._core import keys
    from stpred._core.elements import find_table, region_in_frame

    ending = f"_{keys.slug(model)}_{HELD_OUT}"
    first = next(iter(read.values()))
    key = next((k for k in first.tables if k.endswith(ending)), None)
    if key is None:
        raise InputError(f"There are no predictions of {model!r} for left-out slides to report on.")
    measured = find_table(first, region_in_frame(first, key))
    everywhere = all(measured in sdata.tables for sdata in read.values())
    st.report(
        path, read, key, measured_key=measured if everywhere else None, scores=scores, model=model, overwrite=overwrite
    )

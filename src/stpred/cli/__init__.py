"""The command line, thin over the Python functions."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from stpred._core import progress
from stpred._core.checks import InputError, listing
from stpred._core.files import reason
from stpred._core.places import Place
from stpred.cli._messages import as_options

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData

    from stpred import GeneRule

app = typer.Typer(
    name="stpred",
    help="Predict spatial gene expression from H&E images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console(stderr=False, soft_wrap=True)
errors = Console(stderr=True, soft_wrap=True)

Slides = Annotated[
    list[str],
    typer.Argument(
        metavar="SLIDES...",
        help="Slides (path or name=path), folders of slides, or a csv that lists them (columns slide, path, donor, "
        "format, and the options under Reading with _ for -, such as image, spots, mpp, swap_xy).",
    ),
]
_PANEL = "Reading"


def _option(*names: str, help: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=_PANEL)


_READING: dict[str, Any] = {
    "format": Annotated[
        str | None,
        _option("--format", help="visium, visium_hd, xenium, legacy_st, hest or wsi; default: found from the files."),
    ],
    "mpp": Annotated[float | None, _option("--mpp", help="Micrometres per pixel of the full-resolution image.")],
    "image": Annotated[
        Path | None,
        _option("--image", "--he-image", help="Full-resolution H&E image that belongs to the folder or h5ad file."),
    ],
    "spots": Annotated[Path | None, _option("--spots", help="Legacy ST: spots file of the counts file SLIDE.")],
    "alignment": Annotated[Path | None, _option("--alignment", help="Xenium: alignment csv of the H&E image.")],
    "scene": Annotated[str | None, _option("--scene", help="Which of several scenes of one image file.")],
    "swap_xy": Annotated[
        bool | None,
        _option("--swap-xy/--no-swap-xy", help="HEST: x and y are exchanged, or as they are."),
    ],
    "counts": Annotated[str | None, _option("--counts", help="Visium: name of the file of counts.")],
    "layer": Annotated[str | None, _option("--layer", help="HEST: layer of the h5ad file that holds raw counts.")],
    "bin_size": Annotated[
        list[int] | None, _option("--bin-size", help="Visium HD: edge of the bins in um; may be repeated.")
    ],
    "segmentations": Annotated[
        bool | None, _option("--segmentations/--no-segmentations", help="Visium HD: read segmented cells.")
    ],
    "dataset_id": Annotated[str | None, _option("--dataset-id", help="Visium: name in the file names.")],
    "pitch_um": Annotated[float | None, _option("--pitch-um", help="Legacy ST, HEST: distance of the spots' centres.")],
    "diameter_um": Annotated[float | None, _option("--diameter-um", help="Legacy ST, HEST: diameter of the spots.")],
    "pixel_size_um": Annotated[
        float | None, _option("--pixel-size-um", help="Xenium: size of the morphology image's pixels.")
    ],
}
"""Options of the readers, the same for every command that reads slides; a csv's columns are called the same."""


def _reads(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command with a parameter ``reading`` the options of the readers, packed into it."""
    signature = inspect.signature(command, eval_str=True)
    own = [p for n, p in signature.parameters.items() if n != "reading"]
    more = [
        inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=a) for n, a in _READING.items()
    ]
    own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]

    @functools.wraps(command)
    def wrapped(**kwargs: Any) -> None:
        reading = {n: kwargs.pop(n) or None if n == "bin_size" else kwargs.pop(n) for n in _READING}
        command(reading=reading, **kwargs)

    wrapped.__signature__ = signature.replace(parameters=own + more)  # type: ignore[attr-defined]
    return wrapped


Genes = Annotated[
    str | None,
    typer.Option(help="Rule and number (mean:250, hvg:1000, svg:200, rmax:500, all), or symbols separated by commas."),
]
Encoder = Annotated[
    str | None,
    typer.Option(help="Encoder, or the folder of a saved one; default: the model family's own (mostly morphology)."),
]


def _upsampling(wanted: bool) -> bool:
    if wanted:
        from stpred import settings

        settings.max_upsampling = float("inf")
    return wanted


Upsampling = Annotated[
    bool, typer.Option("--allow-upsampling", callback=_upsampling, help="Accept an image that is too coarse.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; default: a GPU if there is one.")]
ShapesKey = Annotated[str | None, typer.Option("--shapes", help="Region to work on; default: found by itself.")]
Groups = Annotated[
    str | None,
    typer.Option(
        help="Donors: 'slide' (each slide its own) or slide=donor pairs with commas; default: the csv's column."
    ),
]


_UNSEEN = "cv"
"""Ending of tables that cross-validation predicts for slides that it left out."""

Ensemble = Annotated[int | None, typer.Option(help="Train so many members; their spread is the uncertainty.")]
Checkpoint = Annotated[Path | None, typer.Option(help="Folder that an interrupted training goes on from.")]
Precision = Annotated[str | None, typer.Option(help="32-true (default), bf16-mixed or 16-mixed.")]


@dataclass
class _Session:
    """How the command line was called."""

    quiet: bool = False
    verbose: bool = False
    options: frozenset[str] = frozenset()


_session = _Session()


def _version(wanted: bool) -> None:
    if wanted:
        import stpred

        console.print(f"stpred {stpred.__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, nothing on what will be done.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say what is being done.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Predict spatial gene expression from H&E images."""
    command = getattr(context.command, "commands", {}).get(context.invoked_subcommand)
    names = [] if command is None else [o for p in command.params for o in (*p.opts, *p.secondary_opts)]
    _session.quiet, _session.verbose, _session.options = quiet, verbose, frozenset(names)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write into.")] = Path("demo"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier demo.")] = False,
) -> None:
    """Make synthetic slides in the vendor's format, train, predict on held-out tissue and compare with the truth."""
    from stpred._demo import run

    with _sentences():
        run(out, console=console, overwrite=overwrite)


@app.command()
@_reads
def predict(
    slide: Annotated[
        str, typer.Argument(help="Slide: an image file or a vendor's folder; or a folder of slides, or a csv of them.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Zarr store to write; of several slides, the folder of their stores.")
    ],
    model: Annotated[str | None, typer.Option(help="Model folder or bundled name; default: the bundled model.")] = None,
    shapes: ShapesKey = None,
    genes: Annotated[str | None, typer.Option(help="Keep only these symbols, separated by commas.")] = None,
    picture: Annotated[Path | None, typer.Option(help="PNG to draw; default: beside the store.")] = None,
    with_image: Annotated[bool, typer.Option("--with-image", help="Copy the slide's pixels into the store.")] = False,
    with_map: Annotated[bool, typer.Option("--map", help="Add a map of the tissue, of a model of patches.")] = False,
    allow_upsampling: Upsampling = False,
    encoder: Annotated[str | None, typer.Option(help="The model's encoder or its folder, if it is not found.")] = None,
    device: Device = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing store.")] = False,
    *,
    reading: dict[str, Any],
) -> None:
    """Predict expression for a slide: a table on its spots, bins or cells, or on a grid, and a picture."""
    import stpred as st
    from stpred.stores import check_free, check_picture

    with _sentences() as words:
        samples = _samples([slide], reading)
        several = len(samples) > 1
        if several:
            if picture is not None:
                raise InputError(
                    f"`--picture` is of one slide, and {slide!r} holds {len(samples)}, {listing(_names(samples))}."
                )
            out = out.with_suffix("") if out.suffix == ".zarr" else out
            stores = {n: out / _store_name(n) for n in _names(samples)}
        else:
            stores = dict.fromkeys(_names(samples), out)
        pictures = {n: store.with_suffix(".png") if picture is None else picture for n, store in stores.items()}
        for sample in samples:
            check_free(stores[sample["slide"]], overwrite=overwrite)
            check_picture(pictures[sample["slide"]], overwrite=overwrite, keep=(sample["path"], sample.get("image")))
        trained = st.models.load("default" if model is None else model)
        if with_map and not trained.needs.tokens:
            raise InputError(f"`--map` is of models of patches ('student'), and {trained.record.name!r} sees tiles.")
        how: dict[str, Any] = {
            "genes": None if genes is None else genes.split(","),
            "device": device,
            "encoder": _encoder(encoder),
        }
        if several:
            console.print(f"{len(samples)} slides in {slide}: {', '.join(_names(samples))}.")
        for sample in samples:
            name = words.slide = sample["slide"]
            _predict_one(
                sample, trained, stores[name], pictures[name],
                shapes=shapes, with_image=with_image, with_map=with_map, overwrite=overwrite, how=how,
            )  # fmt: skip


def _store_name(slide: str) -> str:
    return re.sub(r"[^\w.-]+", "-", slide) + ".zarr"


def _predict_one(
    sample: dict[str, Any],
    trained: Any,
    out: Path,
    picture: Path,
    *,
    shapes: str | None,
    with_image: bool,
    with_map: bool,
    overwrite: bool,
    how: dict[str, Any],
) -> None:
    """Predict one slide, write and draw it, and say how far it can be trusted."""
    import matplotlib.pyplot as plt

    import stpred as st
    from stpred._core.files import writable
    from stpred.io._cohort import read_sample
    from stpred.stores import write_result

    name = sample["slide"]
    sdata = read_sample(sample)
    before = set(sdata.tables)
    if trained.needs.cells:
        cells = _cells(sdata)
        shapes = cells if shapes is None else shapes
    usual = _usual(sdata, trained.record.region) if shapes is None else shapes
    st.tl.predict(sdata, trained, shapes_key=usual, **how)
    (key,) = set(sdata.tables) - before
    write_result(sdata, out, with_image=with_image, overwrite=overwrite)
    map_key = None
    if with_map:
        images = set(sdata.images)
        st.tl.predict(sdata, trained, raster=True, out=out, **how)
        (map_key,) = set(sdata.images) - images
    panels = _picture(sdata, key, map_key)
    with writable(picture, what="picture"):
        picture.parent.mkdir(parents=True, exist_ok=True)
        panels[0].figure.savefig(picture, dpi=130)
    plt.close(panels[0].figure)
    table = sdata.tables[key]
    console.print(f"Predicted {table.n_vars} genes for {table.n_obs} locations of slide {name!r} ({key!r}).")
    console.print(f"  store    {out}\n  picture  {picture}")
    if map_key is not None:
        size = sdata.images[map_key]["scale0"].ds["image"].sizes
        console.print(
            f"  map      {map_key!r}: {size['x']} x {size['y']} pixels of {size['c']} genes, an image element"
        )
    console.print(f"  trust    {_trust(table)}")
    console.print(f'Next: spatialdata.read_zarr("{out}").tables["{key}"], ready for scanpy and squidpy.')
    if map_key is not None:
        gene = table.var_names[0]
        console.print(
            f'      sdata = spatialdata.read_zarr("{out}"); sdata.images["{map_key}"], or '
            f'stpred.pl.raster(sdata, "{map_key}", "{gene}").'
        )


def _trust(table: Any) -> str:
    """Say how far a prediction can be trusted; what most tiles are unlike comes first."""
    known = int(table.var["trusted"].sum()) if "trusted" in table.var else 0
    alike = float(table.obs["in_distribution"].mean())
    tiles = f"{alike:.0%} of the tiles look like the model's training tiles"
    genes = f"{known} of {table.n_vars} genes were predictable on left-out slides of the model's own training data"
    if alike < 0.5:
        return (
            f"OUT OF DISTRIBUTION: only {tiles}, so the values of this slide should not be relied on; {genes}, which "
            "says nothing about tissue like this."
        )
    return f"{genes}; {tiles}."


def _picture(sdata: SpatialData, key: str, map_key: str | None) -> Any:
    """Draw the prediction, with how unlike the training tiles the slide is where some of it is."""
    import stpred as st
    from stpred.pl._spatial import best_genes

    table = sdata.tables[key]
    genes = best_genes(table)
    if map_key is not None:
        return st.pl.raster(sdata, map_key, genes, table_key=key)
    return st.pl.spatial(sdata, key, [*genes, "ood_score"], ncols=5)


@app.command()
@_reads
def train(
    slides: Slides,
    out: Annotated[Path, typer.Option("--out", "-o", help="Model folder to write.")],
    model: Annotated[str, typer.Option(help="Family: see stpred models.")] = "ridge",
    genes: Genes = None,
    groups: Groups = None,
    shapes: ShapesKey = None,
    encoder: Encoder = None,
    target: Annotated[str | None, typer.Option(help="log1p_cp10k or counts; default: the family's own.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model; default: the output folder's.")] = None,
    validation: Annotated[str | None, typer.Option(help="Slides, with commas, that only end the training.")] = None,
    ensemble: Ensemble = None,
    checkpoint: Checkpoint = None,
    precision: Precision = None,
    seed: Annotated[int, typer.Option(help="Seed of whatever is random.")] = 0,
    device: Device = None,
    allow_upsampling: Upsampling = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing model.")] = False,
    *,
    reading: dict[str, Any],
) -> None:
    """Train a model on slides with measured expression."""
    import stpred as st
    from stpred.stores import check_free

    with _sentences():
        check_free(out, overwrite=overwrite)
        read, donors = _read(slides, reading)
        if _sees_cells([model]):
            for sdata in read.values():
                _cells(sdata)
        with st.settings.override(checkpoint_dir=checkpoint, precision=precision):
            trained = st.tl.train(
                read,
                model if ensemble is None else st.models.Ensemble.Config(model, n_members=ensemble),
                genes=_rule(genes),
                groups=_donors(groups, donors, required=False),
                shapes_key=shapes,
                encoder=_encoder(encoder),
                target=target,
                name=out.name if name is None else name,
                validation=None if validation is None else [s.strip() for s in validation.split(",")],
                seed=seed,
                device=device,
            )
        st.models.save(trained, out, overwrite=overwrite)
        scores = [v for v in trained.record.var["cv_pearson"] if v is not None]
        held_out = f"mean held-out Pearson {sum(scores) / len(scores):.3f}" if scores else "not validated (one donor)"
        console.print(f"Trained {model} on {len(read)} slides, {len(trained.record.genes)} genes, {held_out}: {out}")
        console.print(f"Next: stpred predict SLIDE -o OUT.zarr --model {out}")


@app.command()
@_reads
def evaluate(
    slides: Slides,
    groups: Groups = None,
    models: Annotated[str, typer.Option(help="Families, separated by commas; ridge_best chooses settings.")] = (
        "mean,intensity,ridge,ridge_best"
    ),
    genes: Genes = None,
    shapes: ShapesKey = None,
    encoder: Encoder = None,
    folds: Annotated[int | None, typer.Option(help="Number of folds; default: one donor left out at a time.")] = None,
    ensemble: Ensemble = None,
    checkpoint: Checkpoint = None,
    precision: Precision = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="csv of all scores.")] = None,
    report: Annotated[Path | None, typer.Option(help="Page (.html) of the best model's maps and scores.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of whatever is random.")] = 0,
    device: Device = None,
    allow_upsampling: Upsampling = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing report.")] = False,
    *,
    reading: dict[str, Any],
) -> None:
    """Score models on donors they have not seen, on the log and on the raw scale, beside the library size alone."""
    import pandas as pd

    import stpred as st
    from stpred import data
    from stpred._report import check_page
    from stpred.stores import check_file

    with _sentences():
        check_file(out)
        if report is not None:
            check_page(report, overwrite=overwrite)
        read, donors = _read(slides, reading)
        chosen = _families(models, read, shapes)
        encoder_used = _encoder(encoder)
        grouping = _donors(groups, donors, required=True)
        if _sees_cells([m for grid in chosen.values() for m in (grid if isinstance(grid, list) else [grid])]):
            for sdata in read.values():
                _cells(sdata)
        for name, sdata in read.items():  # once for both scales
            region = data.read_region(sdata, Place(shapes_key=shapes), slide=name, measured=True).shapes_key
            if not isinstance(encoder_used, (str, type(None))):
                continue
            for used in _encoders(chosen, encoder_used) - {"pixels"}:
                st.pp.features(sdata, used, shapes_key=region, device=device)
        with st.settings.override(checkpoint_dir=checkpoint, precision=precision):
            parts = [
                st.tl.cross_validate(
                    read,
                    chosen if ensemble is None else _ensembles(chosen, ensemble),
                    groups=grouping,
                    genes=_rule(genes),
                    shapes_key=shapes,
                    encoder=encoder_used,
                    target=target,
                    n_folds=folds,
                    seed=seed,
                    device=device,
                    key_added=_UNSEEN if report is not None and target == "log1p_cp10k" else None,
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


@app.command("models")
def list_models() -> None:
    """List the models that come with stpred, and the families that can be trained."""
    from rich.table import Table

    import stpred as st
    from stpred.models.registry import bundled, families, family

    table = Table(title="Models", title_justify="left")
    for column in ("name", "what", "genes", "scale", "encoder"):
        table.add_column(column)
    for name in bundled():
        record = st.models.load(name).record
        table.add_row(
            name,
            record.training.get("summary", "trained"),
            str(len(record.genes)),
            record.target,
            record.encoder["name"],
        )
    for name in sorted(families()):
        found = family(name)
        table.add_row(
            name, f"to train: {(found.__doc__ or '').strip().splitlines()[0]}", "", "", found.Config.default_encoder
        )
    console.print(table)
    console.print("stpred predict SLIDE -o OUT.zarr --model NAME, or stpred train SLIDES... -o MODEL --model FAMILY")


def _samples(slides: list[str], reading: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what is known of each slide before it is read: where it is, and with which options."""
    from stpred.io._cohort import READING, list_samples

    given = {k: v for k, v in reading.items() if v is not None and k != "format"}
    for name in given.keys() & {"scene"}:
        given[name] = READING[name].parse(given[name])
    return list_samples(slides, format=reading["format"], options=given)


def _names(samples: list[dict[str, Any]]) -> list[str]:
    return [sample["slide"] for sample in samples]


def _read(slides: list[str], reading: dict[str, Any]) -> tuple[dict[str, SpatialData], dict[str, str]]:
    """Read slides and their donors, as far as a csv names them."""
    from stpred.io._cohort import read_sample

    samples = _samples(slides, reading)
    read = {sample["slide"]: read_sample(sample) for sample in samples}
    return read, {sample["slide"]: sample["donor"] for sample in samples if "donor" in sample}


def _encoder(given: str | None) -> Any:
    """Return an encoder's name, or what is saved in a folder."""
    from stpred import encoders

    return encoders.load(given) if given is not None and Path(given).is_dir() else given


def _sees_cells(models: list[Any]) -> bool:
    """Whether one of these families or settings sees locations through the cells in them."""
    from stpred.models import registry

    return any(registry.resolve(m).needs.cells for m in models)


def _cells(sdata: SpatialData) -> str:
    """Return the slide's region of cells; nuclei are found where it has none."""
    import stpred as st
    from stpred import data
    from stpred._core import keys

    there = [k for k in (keys.NUCLEI, keys.CELLS) if k in sdata.shapes]
    found = there or [k for k in sdata.shapes if data.looks_like_cells(sdata, k)]
    if found:
        return found[0]
    st.pp.nuclei(sdata)
    console.print(f"Found {len(sdata.shapes[keys.NUCLEI])} nuclei.")
    return keys.NUCLEI


def _usual(sdata: SpatialData, trained_on: str | None) -> str | None:
    """Return the region that is mostly meant where a slide has several; Python asks instead."""
    from stpred._core import keys

    candidates = [k for k in sdata.shapes if k != keys.TISSUE]
    if len(candidates) < 2 or trained_on in candidates:
        return None
    found = next((k for k in (keys.SPOTS, keys.CELLS, keys.bins(8), keys.bins(16)) if k in candidates), None)
    if found is not None:
        console.print(f"Of the regions {', '.join(candidates)} took {found}; --shapes names another.")
    return found


def _rule(text: str | None) -> GeneRule | list[str] | None:
    """Read ``rule:n`` or symbols separated by commas."""
    from stpred import GeneRule

    if text is None:
        return None
    method, _, n = text.partition(":")
    if method not in GeneRule.METHODS or method == "list":
        return [g.strip() for g in text.split(",") if g.strip()]
    if n and not n.isdigit():
        raise InputError(f"`--genes` takes a whole number after the rule, got {text!r}.")
    return GeneRule(method, n=int(n) if n else None)


def _donors(text: str | None, listed: dict[str, str], *, required: bool) -> Any:
    """Return donors from the option or from the csv."""
    if text == "slide":
        return "slide" if required else None
    if text:
        pairs = [p.split("=", 1) for p in text.split(",")]
        if any(len(p) != 2 for p in pairs):
            raise InputError(f"`--groups` must be 'slide' or slide=donor pairs separated by commas, got {text!r}.")
        return dict(pairs)
    if listed:
        return listed
    if required:
        raise InputError(
            "Which slides share a donor? Give `--groups slide1=donorA,slide2=donorA,...`, a csv with a donor "
            "column, or "
            "`--groups slide` to take every slide for its own (sections of one donor are then scored as if they "
            "were independent)."
        )
    return None


def _families(text: str, slides: dict[str, Any], shapes: str | None) -> dict[str, Any]:
    """Return models by name; ``ridge_best`` is a grid around the slides' own pitch."""
    from stpred import data, models
    from stpred.regions import Lattice

    chosen: dict[str, Any] = {}
    for name in (n.strip() for n in text.split(",")):
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


def _ensembles(chosen: dict[str, Any], n_members: int) -> dict[str, Any]:
    """Make an ensemble of every model, and of every setting to choose from."""
    from stpred.models import Ensemble

    def several(model: Any) -> Any:
        return [several(m) for m in model] if isinstance(model, list) else Ensemble.Config(model, n_members)

    return {name: several(model) for name, model in chosen.items()}


def _encoders(chosen: dict[str, Any], encoder: str | None) -> set[str]:
    """Return the encoders that the models see through."""
    from stpred.models.base import BaseConfig
    from stpred.models.registry import resolve

    own = {resolve(o).default_encoder for m in chosen.values() for o in (m if isinstance(m, list) else [m])}
    return {encoder if encoder is not None and name == BaseConfig.default_encoder else name for name in own}


def _print_scores(scores: pd.DataFrame, models: list[str]) -> None:
    """Print mean Pearson: a row per scale and model, a column per slide while they are few, and the mean."""
    from rich.table import Table

    pearson = scores[scores.metric == "pearson"]
    wide = pearson.assign(value=pearson.value.fillna(0.0)).pivot_table(
        index=["target", "model"], columns="slide", values="value", aggfunc="mean", observed=True
    )
    n_genes = pearson.groupby("slide").gene.nunique().max()
    table = Table(title=f"Mean Pearson over {n_genes} genes, slides left out in turn", title_justify="left")
    table.add_column("scale")
    table.add_column("model")
    slides = list(wide.columns) if len(wide.columns) <= 8 else []
    for column in [*map(str, slides), "mean"]:
        table.add_column(column, justify="right")
    for target, short in (("log1p_cp10k", "log1p CP10k"), ("counts", "raw counts")):
        for model in [*models, "library_size"]:
            row = wide.loc[(target, model)]
            table.add_row(short, model, *(f"{row[s]:.3f}" for s in slides), f"{row.mean():.3f}")
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

    ending = f"_{keys.slug(model)}_{_UNSEEN}"
    first = next(iter(read.values()))
    key = next((k for k in first.tables if k.endswith(ending)), None)
    if key is None:
        raise InputError(f"There are no predictions of {model!r} for left-out slides to report on.")
    measured = find_table(first, region_in_frame(first, key))
    everywhere = all(measured in sdata.tables for sdata in read.values())
    st.report(
        path, read, key, measured_key=measured if everywhere else None, scores=scores, model=model, overwrite=overwrite
    )


@dataclass
class _Words:
    """What messages are said in: the command's options, and the slide that is worked on."""

    known: frozenset[str]
    slide: str | None = None

    def __call__(self, message: object) -> str:
        return as_options(str(message), known=self.known, slide=self.slide)


class _Said(logging.Handler):
    """Prints log messages as sentences."""

    def __init__(self, words: _Words) -> None:
        super().__init__()
        self.words = words

    def emit(self, record: logging.LogRecord) -> None:
        errors.print(escape(self.words(record.getMessage())), highlight=False)


@contextlib.contextmanager
def _sentences() -> Iterator[_Words]:
    """Turn expected errors into one sentence and exit code 2, and show warnings and progress.

    Messages name options of the command line where Python's name parameters.
    """
    from stpred import settings

    words = _Words(_session.options)

    def show(message: Any, *_: Any, **__: Any) -> None:
        errors.print(f"[yellow]Warning:[/yellow] {escape(words(message))}", highlight=False)

    logger = logging.getLogger("stpred" if _session.verbose else "stpred.fits")
    before, progress_before = logger.level, settings.progress
    said = _Said(words)
    if not _session.quiet:
        logger.setLevel(logging.INFO)
        logger.addHandler(said)
    else:
        settings.progress = False
    with warnings.catch_warnings(), progress.lines():
        warnings.filterwarnings("ignore")
        warnings.filterwarnings("default", category=UserWarning, module=r"stpred(\.|$)")
        warnings.showwarning = show
        try:
            yield words
        except (InputError, OSError) as error:
            text = words(error) if isinstance(error, InputError) else _of_system(error)
            errors.print(f"[red]Error:[/red] {escape(text)}", highlight=False)
            raise typer.Exit(2) from error
        finally:
            logger.setLevel(before)
            logger.removeHandler(said)
            settings.progress = progress_before


def _of_system(error: OSError) -> str:
    """Say what the system refused, and about which file where it tells."""
    return f"{reason(error)}: {str(error.filename)!r}." if error.filename is not None else f"{reason(error)}."


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()

"""The demonstration: synthetic slides in the vendor's format, from files to a prediction on an unseen donor."""

from __future__ import annotations

import shlex
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stpred import datasets, io, metrics, models, pl, tl
from stpred._core import targets
from stpred._core.checks import InputError, check_parent, listing
from stpred._core.specs import GeneRule
from stpred.stores import check_free, write_result

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from spatialdata import SpatialData

TRAIN, TEST = ("donor1", "donor2", "donor3"), "donor4"
SIZE_UM = (1600.0, 1600.0)
N_GENES = 200
COLOUR = {"intensity": "binned mean colour (intensity)", "colour": "mean and sd of colour (colour)"}
"""Families that see nothing but colour, and what the table calls them."""

FILES = ("slides", "slides.csv", "model", "predicted.zarr", "compare.png", "spatial.png", "scores.csv")
DISK_GB = 0.25
"""Space that `FILES` take, rounded up."""


def run(out: Path, *, console: Console, overwrite: bool = False, quiet: bool = False) -> pd.DataFrame:
    """Make, read, train, predict, compare, draw; return the per-gene scores of the unseen donor.

    Parameters
    ----------
    out
        Folder to write `FILES` into.
    console
        Where to report.
    overwrite
        Replace what an earlier demonstration left there; other files are kept.
    quiet
        Do not say first what will be done.
    """
    from rich.progress import Progress

    _clear(out, overwrite=overwrite)
    if not quiet:
        _announce(out, console=console)
    start = time.monotonic()
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("making synthetic slides", total=len(TRAIN) + 5)

        def step(text: str) -> None:
            progress.update(bar, advance=1, description=text)

        paths = {}
        for number, name in enumerate((*TRAIN, TEST)):
            paths[name] = datasets.toy_visium(
                out / "slides" / name / "outs",
                seed=number,
                donor=number,
                size_um=SIZE_UM,
                n_genes=N_GENES,
                overwrite=True,
            )
            step(f"made slide {name}")
        _list_slides(out)
        slides = {name: io.visium(path) for name, path in paths.items()}
        unseen = slides.pop(TEST)
        step("training")
        trained = {
            "ridge": tl.train(slides, models.Ridge.Config(standardize="slide"), genes=GeneRule("mean", n=N_GENES)),
            **{family: tl.train(slides, family, genes=GeneRule("mean", n=N_GENES)) for family in COLOUR},
        }
        models.save(trained["ridge"], out / "model", overwrite=True)
        step(f"predicting {TEST}")
        for model in trained.values():
            tl.predict(unseen, model, shapes_key="spots")
        step("comparing and drawing")
        scores = tl.compare(unseen, "spots_ridge", "spots_counts", write=True)
        for family in COLOUR:
            scores[family] = tl.compare(unseen, f"spots_{family}", "spots_counts")["pearson"]
        for key in trained:
            scores[f"{key}_truth"] = _against_truth(unseen, f"spots_{key}", paths[TEST])
        scores.to_csv(out / "scores.csv")
        pl.compare(unseen, "spots_ridge", "spots_counts", save=out / "compare.png")
        pl.spatial(unseen, "spots_ridge", [*scores.index[:2], "ood_score"], save=out / "spatial.png")
        write_result(unseen, out / "predicted.zarr", overwrite=True)
    _report(scores, out, n_spots=unseen.tables["spots_ridge"].n_obs, console=console)
    console.print(f"Done in {time.monotonic() - start:.0f} s.")
    _say_next(out, console=console)
    return scores


def _announce(out: Path, *, console: Console) -> None:
    """Say what will be done, how long it takes, how much space, and where results go."""
    console.print(
        f"""A demonstration on synthetic tissue, from files to a prediction that is checked:
  1. draw H&E slides of four donors with known expression, as Space Ranger folders
  2. train a model on three of them
  3. predict the fourth, which the model has not seen
  4. compare with its measured counts, and with the truth behind them
It takes one to two minutes on two cores, and {DISK_GB} GB of disk. Nothing is
downloaded. Results go to {out}/.
""",
        highlight=False,
    )


def _say_next(out: Path, *, console: Console) -> None:
    """Name commands for the user's own data; as they stand they run on what was made."""
    console.print("Next, with your own data in the place of the demonstration's:")
    for what, command in next_commands(out):
        console.print(f"  {what}\n    {command}", highlight=False, markup=False)


def next_commands(out: Path) -> list[tuple[str, str]]:
    """Return three commands that run on what the demonstration made, and what each is for."""
    return [
        (
            "Predict a slide: an image file or a vendor's folder (no --model: the bundled one).",
            f"stpred predict {_quoted(out / 'slides' / TEST / 'outs')} -o mine.zarr --model {_quoted(out / 'model')}",
        ),
        (
            "Score models on donors they have not seen: a csv lists slides and donors.",
            f"stpred evaluate {_quoted(out / 'slides.csv')} --models colour,ridge --report report.html",
        ),
        (
            "Train a model on the slides of such a csv.",
            f"stpred train {_quoted(out / 'slides.csv')} -o mymodel --genes mean:{N_GENES}",
        ),
    ]


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _list_slides(out: Path) -> None:
    """Write the csv that lists the slides, as commands for several slides take it."""
    rows = [f"{name},slides/{name}/outs,{name}" for name in (*TRAIN, TEST)]
    (out / "slides.csv").write_text("\n".join(["slide,path,donor", *rows]) + "\n")


def _clear(out: Path, *, overwrite: bool) -> None:
    """Refuse to mix with an earlier demonstration unless it may be replaced; other files are not touched."""
    if check_parent(out).is_file():
        raise InputError(f"{str(out)!r} is a file, not a folder to write into.")
    earlier = [out / name for name in FILES if (out / name).exists()]
    if earlier and not overwrite:
        raise InputError(
            f"{str(out)!r} holds what exists from an earlier demonstration, {listing(p.name for p in earlier)}; choose "
            "another folder or say that it may be overwritten (overwrite)."
        )
    for path in earlier:  # only what a demonstration wrote is replaced
        if path.name in ("model", "predicted.zarr"):
            check_free(path, overwrite=True)
        elif path.name == "slides" and {p.name for p in path.iterdir()} - {*TRAIN, TEST}:
            raise InputError(f"{str(path)!r} holds more than an earlier demonstration did; choose another folder.")
    for path in earlier:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    out.mkdir(parents=True, exist_ok=True)


def _against_truth(unseen: SpatialData, key: str, path: Path) -> pd.Series:
    """Return each gene's Pearson correlation with the noiseless expectation, on the log scale."""
    import pandas as pd

    truth = datasets.load_truth(path)["spots"]
    table = unseen.tables[key]
    truth = truth[table.obs["instance_id"].astype(str).to_numpy()]
    expected = np.asarray(truth.X)
    values = targets.transform(expected, expected.sum(axis=1), target="log1p_cp10k")
    columns = truth.var_names.get_indexer(table.var_names)
    return pd.Series(metrics.pearson(np.asarray(table.X), values[:, columns]), index=table.var_names)


def _report(scores: pd.DataFrame, out: Path, *, n_spots: int, console: Console) -> None:
    from rich.table import Table

    table = Table(title=f"{TEST}, never seen in training: {n_spots} spots, {len(scores)} genes", title_justify="left")
    table.add_column("median Pearson per gene")
    table.add_column("measured counts (log1p CP10k)", justify="right")
    table.add_column("noiseless truth", justify="right")
    table.add_row("ridge on morphology", f"{scores.pearson.median():.2f}", f"{scores.ridge_truth.median():.2f}")
    for family, what in COLOUR.items():
        table.add_row(what, f"{scores[family].median():.2f}", f"{scores[f'{family}_truth'].median():.2f}")
    table.add_row("library size alone", f"{scores.library_size.median():.2f}", "")
    console.print(table)
    best = ", ".join(f"{g} {r:.2f}" for g, r in scores.pearson.head(5).items())
    console.print(f"Best genes: {best}")
    console.print(f"Made in {out}/:")
    for name, what in (
        ("slides/, slides.csv", "synthetic Space Ranger folders with their truth, and their list"),
        ("model/", "the trained model (config.json + model.safetensors)"),
        ("predicted.zarr", "SpatialData: spots, measured and predicted tables, thumbnail"),
        ("compare.png, spatial.png", "measured beside predicted; predictions on the tissue"),
        ("scores.csv", "every gene's scores"),
    ):
        console.print(f"  {name:26}{what}")

"""The command line says one sentence, exits with 2, and leaves nothing where it was to write."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import stpred as st
from stpred.cli import app
from stpred.models import Model

runner = CliRunner()


@pytest.fixture
def stpred(tmp_path: Path) -> Callable[..., None]:
    """Runs the command line in `tmp_path` and expects it to refuse."""

    def listing() -> list[tuple[str, int]]:
        return sorted((str(p), p.stat().st_mtime_ns) for p in tmp_path.rglob("*") if p.is_file())

    def run(*arguments: object, says: tuple[str, ...]) -> None:
        before = listing()
        result = runner.invoke(app, [str(a) for a in arguments])
        assert result.exit_code == 2, (result.output, result.exception)
        assert "Traceback" not in result.output
        lines = [line for line in result.output.splitlines() if line.strip()]
        assert len(lines) == 1, result.output
        assert lines[0].startswith("Error: ")
        for part in says:
            assert part in lines[0], lines[0]
        assert listing() == before

    return run


@pytest.fixture
def model(trained: Model, tmp_path: Path) -> Path:
    return st.models.save(trained, tmp_path / "model")


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    Image.fromarray(np.full((40, 50, 3), 200, np.uint8)).save(tmp_path / "slide.png")
    return tmp_path / "slide.png"


def test_predict_on_odd_files(stpred: Any, model: Path, slide: Path, tmp_path: Path) -> None:
    (tmp_path / "text.tif").write_text("hello")
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out.zarr"
    for given, says in (
        (["none.svs"], ("none.svs'",)),
        ([tmp_path / "text.tif"], ("'text.tif' cannot be read as a tif",)),
        ([tmp_path / "empty"], ("empty' (holding [])", "(visium)")),
        ([slide], ("'slide.png' is stated nowhere", "pass --mpp")),
        ([slide, "--mpp", 0], ("`--mpp` must be a positive number",)),
        ([slide, "--mpp", 0.5, "--format", "visum"], ("'visum'", "'visium_hd'")),
    ):
        stpred("predict", *given, "-o", out, "--model", model, says=says)
    for name in ("nope", tmp_path):
        stpred("predict", slide, "--mpp", 0.5, "-o", out, "--model", name, says=(repr(str(name)), "'default'"))


def test_text_in_brackets_is_not_taken_for_markup(stpred: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "wsidata", None)
    (tmp_path / "slide.mrxs").write_bytes(b"")
    stpred("predict", tmp_path / "slide.mrxs", "-o", tmp_path / "o.zarr", says=("pip install 'stpred[wsi]'",))


def test_predict_on_a_slide_with_odd_options(stpred: Any, copied: Any, model: Path, tmp_path: Path) -> None:
    outs, out = copied("visium"), tmp_path / "out.zarr"
    (tmp_path / "mine.txt").write_text("precious")
    hires = outs / "spatial" / "tissue_hires_image.png"
    for given, says in (
        (["--shapes", "cells"], ("'cells'", "['spots']")),
        (["--genes", "EPCAM,NOPE"], ("['NOPE']", "['EPCAM', 'COL1A2']")),
        (["--image", hires], ("'tissue_hires_image.png' is not the full-resolution image", "as --image")),
        (["--spots", hires], ("Slide 'visium'", "`--spots` does not go with format 'visium'", "['legacy_st']")),
        (["--swap-xy"], ("`--swap-xy` does not go with format 'visium', only with ['hest']",)),
        (["--counts", "no.h5"], ("'no.h5'",)),
        (["--device", "cuda:77"], ("`--device cuda:77` is not there",)),
        (["--picture", tmp_path / "a.xyz"], ("`--picture`", "'.png'", "'.xyz'")),
        (["--picture", tmp_path / "mine.txt" / "a.png"], ("mine.txt' is a file",)),
    ):
        stpred("predict", outs, "-o", out, "--model", model, *given, says=says)
    stpred("predict", outs, "-o", tmp_path / "mine.txt" / "o.zarr", "--model", model, says=("mine.txt' is a file",))
    (outs / "fullres_image.tif").unlink()
    stpred(
        "predict",
        outs,
        "-o",
        out,
        "--model",
        model,
        says=("1.999 um per pixel", "0.5 um per pixel", "full-resolution", "pass --allow-upsampling"),
    )


def test_nothing_of_the_user_is_replaced(stpred: Any, copied: Any, model: Path, slide: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("precious")
    predict = ("predict", slide, "--mpp", 0.5, "--model", model)
    stpred(*predict, "-o", tmp_path / "data", says=("data' exists", "pass --overwrite"))
    stpred(*predict, "-o", tmp_path / "data", "--overwrite", says=("data' is neither a zarr store nor a model",))
    stpred(*predict, "-o", model, says=("model' exists", "overwrite"))
    # the picture would be drawn beside the store, over the slide itself
    stpred(*predict, "-o", tmp_path / "slide.zarr", says=("slide.png' exists", "pass --overwrite"))
    stpred(*predict, "-o", tmp_path / "slide.zarr", "--overwrite", says=("slide.png'", "the slide itself"))
    stpred("train", copied("visium"), "-o", tmp_path / "data", "--overwrite", says=("data' is neither",))
    stpred("demo", "-o", slide, says=("slide.png' is a file",))
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "mine.svs").write_bytes(b"")
    stpred("demo", "-o", tmp_path, says=("['slides', 'model']", "overwrite"))
    shutil.rmtree(model)
    stpred("demo", "-o", tmp_path, "--overwrite", says=("slides' holds more than",))


def test_train_with_odd_options(stpred: Any, copied: Any, slide: Path, tmp_path: Path) -> None:
    outs, out = copied("visium"), tmp_path / "mine"
    (tmp_path / "slides.csv").write_text("slide,path,mpp\na,visium,half\n")
    for given, says in (
        ([outs, "--model", "rigde"], ("'rigde'", "'ridge'")),
        ([outs, "--encoder", "intensity", "--genes", "hgv"], ("['hgv']", "gene rule", "'hvg'")),
        ([outs, "--genes", "mean:ten"], ("`--genes` takes a whole number", "'mean:ten'")),
        ([outs, "--encoder", "intensity", "--genes", "EPCAM,NOPE"], ("['NOPE']", "'ACTB'")),
        ([outs, "--groups", "donor"], ("`--groups`", "'donor'")),
        ([outs, "--target", "log"], ("`--target`", "'log1p_cp10k'", "'log'")),
        ([slide, "--mpp", 0.5], ("no shapes", "training needs slides with measured locations")),
        ([outs, slide, "--image", slide], ("`--image` is of one slide, and there are 2", "csv")),
        ([outs, outs], ("Two slides are called 'visium'", "name=path")),
        ([tmp_path / "slides.csv"], ("'a'", "`mpp`", "'half'")),
        ([tmp_path / "none.csv"], ("none.csv'",)),
    ):
        stpred("train", *given, "-o", out, says=says)


def test_evaluate_with_odd_options(stpred: Any, copied: Any, tmp_path: Path) -> None:
    outs, out = copied("visium"), tmp_path / "scores.csv"
    stpred("evaluate", outs, "--groups", "slide", "-o", out, "--models", "unet", says=("'unet'", "'ridge'"))
    stpred(
        "evaluate",
        outs,
        "--groups",
        "a=p",
        "-o",
        out,
        "--models",
        "mean",
        "--encoder",
        "intensity",
        says=("names no donor for slides ['visium']", "['a']"),
    )
    stpred("evaluate", outs, "--groups", "slide", "-o", tmp_path, says=("is a folder, not a file",))

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from typer.testing import CliRunner

import stpred as st
from stpred import _demo
from stpred.cli import app

run = CliRunner()
SIZE_UM = (600.0, 600.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two Visium slides and a table that lists them."""
    base = tmp_path_factory.mktemp("cohort")
    for i, name in enumerate(("a", "b")):
        st.datasets.toy_visium(base / name / "outs", seed=i, donor=i, size_um=SIZE_UM, n_genes=30)
    pd.DataFrame({"slide": ["a", "b"], "path": ["a/outs", "b/outs"], "donor": ["p", "q"]}).to_csv(
        base / "slides.csv", index=False
    )
    return base


def ok(*arguments: object) -> str:
    result = run.invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    """A model of five genes, trained on the command line."""
    ok("train", folder / "slides.csv", "-o", folder / "m", "--genes", "mean:5", "--model", "intensity")
    return folder / "m"


def refused(*arguments: object) -> str:
    result = run.invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return result.output


def test_help_of_every_command() -> None:
    assert "Predict spatial gene expression" in ok("--help")


def test_finetune(folder: Path, model: Path, tmp_path: Path) -> None:
    own = folder / "a" / "outs"
    said = ok("finetune", "default", own, "-o", tmp_path / "own")
    assert "Fine-tuned default on 1 slide," in said
    assert "Next: stpred predict" in said
    new = st.models.load(tmp_path / "own")
    assert new.record.name == "own"
    assert new.record.training["finetuned"]["base"] == st.models.load("default").id
    assert "exists" in refused("finetune", "default", own, "-o", tmp_path / "own")
    assert "no weights to go on from" in refused("finetune", model, own, "-o", tmp_path / "other")


def test_train_predict_evaluate(folder: Path, tmp_path: Path) -> None:
    said = ok("train", folder / "slides.csv", "-o", tmp_path / "mine", "--genes", "mean:10", "--model", "intensity")
    assert "10 genes, mean held-out Pearson" in said
    model = st.models.load(tmp_path / "mine")
    assert model.record.name == "mine"
    assert model.record.training["n_donors"] == 2

    said = ok("predict", folder / "a" / "outs", "-o", tmp_path / "out.zarr", "--model", tmp_path / "mine")
    assert "Predicted 10 genes" in said
    assert "a is one of the slides that the model was trained on" in said
    assert "Next:" in said
    back = sd.read_zarr(tmp_path / "out.zarr")
    assert {"spots_mine", "spots_counts"} <= set(back.tables)
    assert set(back.images) == {"he"}
    assert max(back.images["he"].shape) <= 2000
    assert (tmp_path / "out.png").stat().st_size > 10_000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "out.png", "out.zarr"]

    scores, page = tmp_path / "scores.csv", tmp_path / "report.html"
    how = ("--models", "mean,intensity", "--genes", "mean:10", "-o", scores, "--report", page)
    said = ok("evaluate", folder / "slides.csv", *how)
    assert f"Report: {page}" in said
    assert "by <strong>intensity</strong>" in page.read_text()
    assert "exists; choose another name" in refused("evaluate", folder / "slides.csv", *how)
    said = ok("evaluate", folder / "slides.csv", *how, "--overwrite")
    assert "library_size" in said
    assert "given library size" in said
    assert "donor_shared" not in said
    frame = pd.read_csv(scores)
    assert set(frame["target"]) == {"log1p_cp10k", "counts"}
    assert set(frame["fold"]) == {"p", "q"}


def test_evaluate_demands_donors(folder: Path) -> None:
    assert "Which slides share a donor?" in refused("evaluate", folder / "a", folder / "b", "--models", "mean")
    said = ok("evaluate", folder / "a", folder / "b", "--groups", "slide", "--models", "mean", "--genes", "mean:5")
    assert "donor_shared=True" in said


def test_predict_a_plain_slide_on_a_grid(folder: Path, tmp_path: Path) -> None:
    slide = st.datasets.toy_wsi(tmp_path / "slide.svs", format="svs", size_um=SIZE_UM)
    ok(
        "train",
        folder / "slides.csv",
        "-o",
        tmp_path / "m",
        "--genes",
        "mean:5",
        "--model",
        "intensity",
        "--name",
        "colour",
    )
    ok(
        "predict",
        slide,
        "-o",
        tmp_path / "o.zarr",
        "--model",
        tmp_path / "m",
        "--picture",
        tmp_path / "p.png",
        "--with-image",
    )
    back = sd.read_zarr(tmp_path / "o.zarr")
    assert {"tissue", "grid"} <= set(back.shapes)
    facts = json.loads(back.tables["grid_colour"].uns["stpred"])
    assert facts["mpp"] == pytest.approx(0.5)
    assert (tmp_path / "p.png").exists()
    assert max(back.images["he"]["scale0"]["image"].shape) == 1200


def test_qc_leaves_locations_out(model: Path, tmp_path: Path) -> None:
    """Half of the slide is out of focus: those locations are left out, and the provenance says why."""
    import tifffile
    from skimage.filters import gaussian

    pixels = tifffile.imread(st.datasets.toy_wsi(tmp_path / "slide.tif", size_um=SIZE_UM))
    half = len(pixels) // 2
    pixels[:half] = gaussian(pixels[:half], 6, channel_axis=-1, preserve_range=True)
    tifffile.imwrite(tmp_path / "blurred.tif", pixels, photometric="rgb")
    how = ("predict", tmp_path / "blurred.tif", "--mpp", "0.5", "--model", model)
    ok(*how, "-o", tmp_path / "judged.zarr", "--qc")
    judged = sd.read_zarr(tmp_path / "judged.zarr").tables["grid_m"]
    assert json.loads(judged.uns["stpred"])["left_out"]["blurred"] >= 2
    assert judged.obsm["spatial"][:, 1].min() > SIZE_UM[1] / 3


@pytest.mark.slow
def test_predict_takes_the_usual_region_of_several(tmp_path: Path, model: Path) -> None:
    bundle = st.datasets.toy_xenium(tmp_path / "x", size_um=(320, 320), n_genes=30, rotation_deg=25)
    said = ok("predict", bundle, "-o", tmp_path / "o.zarr", "--model", model)
    assert "took cells" in said
    assert "cells_m" in sd.read_zarr(tmp_path / "o.zarr").tables


def test_existing_output_is_kept(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    out.mkdir()
    (out / "precious").write_text("x")
    assert "exists" in refused("predict", folder / "a" / "outs", "-o", out)
    assert (out / "precious").read_text() == "x"
    assert "exists" in refused("train", folder / "slides.csv", "-o", out)


def test_errors_are_one_sentence(folder: Path, tmp_path: Path) -> None:
    assert "There is nothing at" in refused("predict", tmp_path / "nowhere.svs", "-o", tmp_path / "o.zarr")
    assert "No model at 'oracle'" in refused("predict", folder / "a", "-o", tmp_path / "o.zarr", "--model", "oracle")
    assert "No model family named 'oracle'" in refused(
        "train", folder / "slides.csv", "-o", tmp_path / "m", "--model", "oracle"
    )
    (tmp_path / "bad.csv").write_text("name,file\na,b\n")
    assert "lacks the columns ['path', 'slide']" in refused("train", tmp_path / "bad.csv", "-o", tmp_path / "m")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.csv"]


def test_models_are_listed() -> None:
    said = ok("models")
    for name in ("default", *st.models.registry.families(), *st.encoders.list("e*"), "morphology", "timm/..."):
        assert name in said


@pytest.mark.slow
def test_demo_leaves_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_demo, "SIZE_UM", (1000.0, 1000.0))
    monkeypatch.setattr(_demo, "N_GENES", 100)
    said = ok("demo", "-o", tmp_path / "demo")
    assert "noiseless truth" in said
    assert "mean and sd of colour" in said
    made = tmp_path / "demo"
    assert {p.name for p in made.iterdir()} == set(_demo.FILES)
    assert (
        said.index("which the model has not seen") < said.index("noiseless truth") < said.index("Next, with your own")
    )
    assert sum(p.stat().st_size for p in made.rglob("*") if p.is_file()) < _demo.DISK_GB * 1e9
    for _, command in _demo.next_commands(made):
        assert command in said
    scores = pd.read_csv(tmp_path / "demo" / "scores.csv", index_col=0)
    assert scores["ridge_truth"].median() >= 0.7
    assert scores["intensity_truth"].median() <= 0.5 * scores["ridge_truth"].median()
    assert "exists" in refused("demo", "-o", tmp_path / "demo")
    monkeypatch.chdir(tmp_path)
    predict, evaluate, train = (shlex.split(command)[1:] for _, command in _demo.next_commands(made))
    assert "Predicted 100 genes for" in ok(*predict)
    assert "Report: report.html" in ok(*evaluate)
    assert "Trained ridge on 4 slides" in ok(*train)
    assert np.isfinite(sd.read_zarr(tmp_path / "demo" / "predicted.zarr").tables["spots_ridge"].X).all()


def test_cells_on_the_command_line(folder: Path, tmp_path: Path) -> None:
    """A model that sees cells finds a plain slide's nuclei by itself; so does training, where no cells are given."""
    from stpred.cli.slides import ensure_cells, needs_cells

    slides = {n: st.io.visium(folder / n / "outs") for n in ("a", "b")}
    assert needs_cells(["ridge", "scellst"])
    assert not needs_cells(["ridge", st.models.MLP.Config()])
    assert ensure_cells(slides["a"]) == "nuclei"
    config = st.models.SCellST.Config(hidden=(16,), epochs=2)
    model = st.tl.train(slides["a"], config, shapes_key="spots", genes=["EPCAM", "COL1A2"], name="m")
    st.models.save(model, tmp_path / "m")
    slide = st.datasets.toy_wsi(tmp_path / "b.tif", size_um=(300, 300))
    assert "'nuclei_m'" in ok("predict", slide, "-o", tmp_path / "b.zarr", "--model", tmp_path / "m")
    table = sd.read_zarr(tmp_path / "b.zarr").tables["nuclei_m"]
    assert table.n_obs > 50


def test_predict_adds_a_map_of_a_model_of_patches(folder: Path, tmp_path: Path) -> None:
    slide = st.io.visium(folder / "a" / "outs")
    config = st.models.Student.Config(hidden=(8,), epochs=1)
    st.models.save(st.tl.train(slide, config, genes=["EPCAM", "COL1A2"], shapes_key="spots"), tmp_path / "fine")
    ok("predict", folder / "b" / "outs", "-o", tmp_path / "out.zarr", "--model", tmp_path / "fine", "--map")
    back = sd.read_zarr(tmp_path / "out.zarr")
    assert back.images["tissue_student_map"]["scale0"].ds["image"].coords["c"].values.tolist() == ["EPCAM", "COL1A2"]
    assert "spots_student" in back.tables
    said = refused("predict", folder / "b" / "outs", "-o", tmp_path / "no.zarr", "--map")
    assert "`--map` is of models of patches" in " ".join(said.split())
    assert not (tmp_path / "no.zarr").exists()


def test_the_version_is_told() -> None:
    assert ok("--version").strip() == f"stpred {st.__version__}"


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Workers of runs are threads of this process, which starts faster."""
    from distributed import Client

    from stpred.cohort import run
    from stpred.cohort.clusters import Workers

    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=":0") as client:
        monkeypatch.setattr(run, "workers", lambda *_, **__: nullcontext(Workers(client, 1)))
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_predict_reads_what_evaluate_reads(folder: Path, model: Path, tmp_path: Path) -> None:
    """A folder that holds a slide is that slide; of several, each is predicted, as of a csv."""
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "s1").symlink_to(folder / "a")
    said = ok("predict", tmp_path / "one", "-o", tmp_path / "one.zarr", "--model", model)
    assert "slide 's1'" in said
    assert "spots_m" in sd.read_zarr(tmp_path / "one.zarr").tables
    (tmp_path / "one" / "s2").symlink_to(folder / "b")
    said = ok("predict", tmp_path / "one", "-o", tmp_path / "two.zarr", "--model", model, "--previews")
    assert "2 slides, 0 complete already" in said
    assert {p.name for p in (tmp_path / "two").iterdir() if not p.name.startswith(".")} == {
        "s1.zarr", "s1.png", "s2.zarr", "s2.png", "manifest.csv", "manifest.parquet"
    }  # fmt: skip
    said = refused("predict", tmp_path / "one", "-o", tmp_path / "four", "--picture", tmp_path / "p.png")
    assert "`--picture` is of one slide" in said


@pytest.mark.usefixtures("in_process")
def test_many_slides(folder: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "three"
    image = next(p for p in sorted((folder / "a").rglob("*.tif*")) if p.stat().st_size > 10_000)
    (tmp_path / "cut.tif").write_bytes(image.read_bytes()[:3000])
    table = pd.read_csv(folder / "slides.csv").assign(path=lambda t: [str(folder / p) for p in t["path"]])
    broken = pd.DataFrame({"slide": ["cut", "gone"], "path": [tmp_path / "cut.tif", tmp_path / "gone.tif"]})
    pd.concat([table, broken]).to_csv(tmp_path / "slides.csv", index=False)
    how = ("predict", tmp_path / "slides.csv", "-o", out, "--model", model)
    said = " ".join(refused(*how, "--shapes", "spots").split())
    assert "4 slides, 0 complete already" in said
    assert "2 of 4 slides are complete" in said
    assert "Failed: gone: There is nothing at" in said
    more = [str(a) for a in (*how, "--skip-errors", "--shapes", "spots")]
    assert run.invoke(app, more).exit_code == 3
    said = ok("status", out)
    assert "2 complete, 2 failed, 0 pending of 4 slides" in said
    frame = pd.read_parquet(out / "manifest.parquet").set_index("slide")
    assert frame["status"].to_dict() == {"a": "complete", "b": "complete", "cut": "failed", "gone": "failed"}
    assert frame.loc["a", ["donor", "table", "model"]].tolist() == ["p", "spots_m", "m"]
    assert "a is one of the slides that the model was trained on" in frame.loc["a", "warnings"]
    table = sd.read_zarr(out / "a.zarr").tables["spots_m"]
    assert table.shape == tuple(frame.loc["a", ["n_tiles", "n_genes"]])
    before = {p: p.stat().st_mtime_ns for p in (out / "a.zarr").rglob("*")}
    said = ok("predict", folder / "slides.csv", "-o", out, "--model", model, "--shapes", "spots")
    assert "2 slides, 2 complete already" in said
    assert before == {p: p.stat().st_mtime_ns for p in (out / "a.zarr").rglob("*")}
    said = ok("predict", folder / "slides.csv", "-o", out, "--model", model, "--shapes", "spots", "--genes",
              str(table.var_names[0]))  # fmt: skip
    assert "Of another model or other settings: 2 results; replaced ones go to" in said
    assert len(list((out / "replaced").iterdir())) == 2
    assert sd.read_zarr(out / "a.zarr").tables["spots_m"].n_vars == 1


def test_files_of_one_slide_are_named_by_options(tmp_path: Path) -> None:
    st.datasets.toy_legacy_st(tmp_path / "st", size_um=(900, 900))
    parts = sorted(p.name for p in (tmp_path / "st").iterdir())
    counts, image, spots = (next(tmp_path / "st" / p for p in parts if w in p) for w in ("counts", ".jpg", "spot"))
    one = tmp_path / "one"
    one.mkdir()
    moved = [p.rename(one / n) for p, n in ((counts, "S7.stdata.tsv.gz"), (image, "S7.jpg"), (spots, "xy.tsv"))]
    model = tmp_path / "m"
    how = ("--genes", "mean:5", "--model", "intensity")
    said = ok("train", moved[0], "--image", moved[1], "--spots", moved[2], "-o", model, *how)
    assert "Trained intensity on 1 slide, 5 genes" in said
    said = ok(
        "predict", moved[0], "--he-image", moved[1], "--spots", moved[2], "--pitch-um", 200,
        "-o", tmp_path / "o.zarr", "--model", model,
    )  # fmt: skip
    assert "slide 'S7.stdata'" in said
    said = refused("predict", moved[0], "-o", tmp_path / "p.zarr", "--model", model, "--format", "legacy_st")
    assert "name its `--image` file as well" in " ".join(said.split())

    st.datasets.toy_hest(tmp_path / "hest", size_um=(500, 500))
    h5ad, picture = sorted((tmp_path / "hest").iterdir(), key=lambda p: p.suffix != ".h5ad")[:2]
    alone = h5ad.rename(tmp_path / "x.h5ad")
    said = ok("predict", alone, "--image", picture, "--no-swap-xy", "-o", tmp_path / "h.zarr", "--model", model)
    assert "slide 'x'" in said


def test_a_picture_of_other_tissue_looks_like_it(folder: Path, tmp_path: Path) -> None:
    """The line of trust, the panel and the line across the top tell of a slide unlike those of training."""
    from PIL import Image

    from stpred.cohort import pictures

    model = tmp_path / "m"
    ok("train", folder / "slides.csv", "-o", model, "--genes", "mean:5")
    Image.fromarray(np.random.default_rng(0).integers(0, 160, (900, 900, 3), dtype=np.uint8)).save(tmp_path / "o.png")
    said = ok("predict", tmp_path / "o.png", "--mpp", 0.5, "-o", tmp_path / "out.zarr", "--model", model)
    trust = next(line for line in said.splitlines() if line.startswith("  trust"))
    assert trust.startswith("  trust    OUT OF DISTRIBUTION: only 0% of the tiles")
    assert "100 um" not in said
    back = sd.read_zarr(tmp_path / "out.zarr")
    assert sorted(back.shapes["grid"].radius.unique()) == [50.0]
    axes = pictures.draw_picture(back, "grid_m", None)
    assert axes[-1].get_title() == "ood_score"
    assert axes[0].figure.get_suptitle().startswith("Out of distribution: 100% of the tiles")

"""Encoders as they are spelled on the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from typer.testing import CliRunner

import stpred as st
from stpred import InputError, data
from stpred.cli import app
from stpred.cli.encoders import EncoderOption, load_encoder

run = CliRunner()


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("morphology", EncoderOption("morphology")),
        ("morphology@0.5x224", EncoderOption("morphology", st.TileSpec(0.5, 224))),
        ("timm/resnet18.a1_in1k@1x96", EncoderOption("timm/resnet18.a1_in1k", st.TileSpec(1.0, 96))),
        ("timm/resnet18:layers=1-4", EncoderOption("timm/resnet18", None, (1, 2, 3, 4))),
        ("resnet18:layers=-1", EncoderOption("resnet18", None, (-1,))),
        ("x@.9x224: pool=mean+std , layers=0+2-3", EncoderOption("x", st.TileSpec(0.9, 224), (0, 2, 3), "mean+std")),
        ("timm/hf-hub:someone/net@main", EncoderOption("timm/hf-hub:someone/net@main")),
    ],
)
def test_spellings(text: str, want: EncoderOption) -> None:
    assert EncoderOption.parse(text) == want


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no encoder"),
        ("@0.5x224", "names no encoder"),
        ("morphology@", "micrometres per pixel, x and pixels, such as @0.5x224, got ''"),
        ("morphology@224", "such as @0.5x224, got '224'"),
        ("morphology@0.5x224um", "got '0.5x224um'"),
        ("morphology@0x224", "TileSpec.mpp"),
        ("resnet18:", "behind the colon come layers=... and pool=..., got ''"),
        ("resnet18:layers", "got 'layers'"),
        ("resnet18:layers=", "got 'layers='"),
        ("resnet18:depth=2", "got 'depth=2'"),
        ("resnet18:layers=1,3", "got '3'"),
        ("resnet18:layers=1,layers=3", "gives layers twice"),
        ("resnet18:layers=4-1", "numbers and ranges joined with +, such as 2, 1-4 or 1-3+5, got '4-1'"),
        ("resnet18:layers=last", "got 'last'"),
        ("resnet18:layers=1+", "got ''"),
        ("morphology:layers=1", "'morphology' has no layers"),
    ],
)
def test_misspellings_say_what_is_wrong(text: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        load_encoder([text])
    assert said in str(error.value)


def test_what_is_loaded(tmp_path: Path) -> None:
    assert load_encoder(None) is None
    assert load_encoder([]) is None
    assert load_encoder(["morphology"]) == "morphology"
    assert load_encoder(["colour@1x64"]).card.tile == st.TileSpec(1.0, 64)
    folder = tmp_path / "mine@home"
    folder.mkdir()
    assert EncoderOption.parse(str(folder)) == EncoderOption(str(folder))
    with pytest.raises(InputError, match="has its own tile and layers; give its folder alone"):
        load_encoder([f"{tmp_path}@0.5x224"])


def test_encoders_side_by_side(tmp_path: Path) -> None:
    given = ["colour@1x64", "intensity@0.5x64", "colour@2x64"]
    outs = st.datasets.toy_visium(tmp_path / "a" / "outs", size_um=(600, 600), n_genes=20)
    options = [o for e in given for o in ("--encoder", e)]
    train = ["train", str(outs), "-o", str(tmp_path / "m"), "--genes", "mean:4", *options]
    assert run.invoke(app, train).exit_code == 0
    model = st.models.load(tmp_path / "m")
    assert model.record.tile == {"mpp": 2.0, "size_px": 64}
    assert model.n_features == 6 + 3 + 6
    predict = ["predict", str(outs), "-o", str(tmp_path / "o.zarr"), "--model", str(tmp_path / "m")]
    assert run.invoke(app, predict).exit_code == 0
    found = sd.read_zarr(tmp_path / "o.zarr").tables["spots_m"].X
    assert run.invoke(app, [*predict, *options, "--overwrite"]).exit_code == 0
    np.testing.assert_array_equal(sd.read_zarr(tmp_path / "o.zarr").tables["spots_m"].X, found)
    wrong = run.invoke(app, [*predict, "--overwrite", "--encoder", "colour@1x"])
    assert wrong.exit_code == 2
    assert "such as @0.5x224, got '1x'" in " ".join(wrong.output.split())


def test_evaluation_of_encoders_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    original = data._features._stream
    monkeypatch.setattr(
        data._features, "_stream", lambda r, shares, **k: (passes.append(r.slide), original(r, shares, **k))[1]
    )
    how_big = {"size_um": (600, 600), "n_genes": 20}
    slides = [str(st.datasets.toy_visium(tmp_path / f"{s}" / "outs", seed=s, **how_big)) for s in (0, 1)]
    how = ["--groups", "slide", "--genes", "mean:4", "-o", str(tmp_path / "s.csv")]
    models = ["--models", "mean,intensity,colour,ridge"]
    both = ["--encoder", "intensity@0.5x64", "--encoder", "colour@1x64"]
    said = run.invoke(app, ["evaluate", *[f"{s}={p}" for s, p in zip("ab", slides, strict=True)], *how, *models, *both])
    assert said.exit_code == 0, said.output
    scores = pd.read_csv(tmp_path / "s.csv")
    assert {"colour", "ridge", "library_size"} <= set(scores["model"])
    assert len(passes) == 2  # one pass over each image for all encoders and both scales

"""``hf:owner/name`` in the commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import spatialdata
from typer.testing import CliRunner

import stpred as st
from stpred.cli import app

from .fake_hub import FakeHub


def run(*args: str | Path) -> str:
    result = CliRunner().invoke(app, [str(a) for a in args])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def slides(tmp_path: Path) -> list[Path]:
    return [st.datasets.toy_visium(tmp_path / n, size_um=(500, 500), n_genes=6, seed=i) for i, n in enumerate("ab")]


def test_commands_take_models_of_the_hub(hub: FakeHub, slides: list[Path], tmp_path: Path) -> None:
    other = {"c": st.io.visium(st.datasets.toy_visium(tmp_path / "c", size_um=(500, 500), n_genes=6, seed=7))}
    model = st.tl.train(other, "ridge", genes=["EPCAM", "COL1A2"], encoder="colour", name="ours")
    name = model.push_to_hub("lab/ours")
    run("predict", slides[0], "-o", tmp_path / "one.zarr", "--model", "hf:lab/ours")
    (table,) = [t for k, t in spatialdata.read_zarr(tmp_path / "one.zarr").tables.items() if "ours" in k]
    assert json.loads(table.uns["stpred"])["hub"]["revision"] == name.partition("@")[2]
    said = run(
        "evaluate",
        *slides,
        "--groups",
        "slide",
        "--models",
        "mean,hf:lab/ours@main",
        "--genes",
        "EPCAM,COL1A2",
        "--encoder",
        "colour",
    )
    assert "ours" in said
    run("finetune", name, *slides, "-o", tmp_path / "tuned", "--encoder", "colour")
    assert st.models.load(tmp_path / "tuned").record.training["finetuned"]["base_hub"] == name

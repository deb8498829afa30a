"""The examples of ``--help`` run as they stand, on small synthetic files of the names that they use."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import stpred as st
from stpred.cli import app
from stpred.cli.help.examples import EXAMPLES

LEFT_OUT = ("demo", "doctor", "models", "evaluate", "features")
"""Commands that other tests run in the same way; their examples are parsed by ``test_help.py``."""

ORDER = ("predict", "export", "status", "collect", "train", "finetune")
DOWNLOADS = "timm/"
"""What an example names that needs a network."""


@contextmanager
def same_process(n_slides: int, n_workers: int | None, devices: Any) -> Iterator[Any]:
    """Give a thread of this process as the worker of a run."""
    from distributed import Client

    from stpred.cohort.clusters import Workers

    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=":0") as client:
        yield Workers(client, 1)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of runs are threads of this process."""
    monkeypatch.setattr("stpred.cohort.clusters._on_this_machine", same_process)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Slides, lists and models of the names in examples."""
    monkeypatch.chdir(tmp_path)
    for n, name in enumerate(("p1", "p2")):
        st.datasets.toy_visium(f"{name}/outs", donor=n, size_um=(600, 600), n_genes=60)
    st.datasets.toy_wsi("slide.svs", format="svs", size_um=(400, 400))
    bundle = st.datasets.toy_xenium("xenium/outs", size_um=(300, 300), n_genes=60)
    shutil.copy(bundle / "toy_he_image.ome.tif", "he.ome.tif")
    shutil.copy(bundle / "toy_he_imagealignment.csv", "he_imagealignment.csv")
    rows = "slide,path,donor\np1,p1/outs,d1\np2,p2/outs,d2\n"
    for name in ("slides.csv", "own.csv"):
        Path(name).write_text(rows)
    slides = {name: st.io.visium(f"{name}/outs") for name in ("p1", "p2")}
    for name, model in (("mymodel", "ridge"), ("mynet", st.models.MLP.Config(hidden=(16,), epochs=1))):
        st.models.save(st.tl.train(slides, model, genes=["EPCAM", "CD3E", "KRT8"], name=name), name)
    fine = st.models.Student.Config(hidden=(8,), epochs=1)
    st.models.save(st.tl.train(slides, fine, genes=["EPCAM"]), "patches")
    return tmp_path


def run(line: str) -> None:
    result = CliRunner().invoke(app, shlex.split(line)[1:])
    assert result.exit_code == 0, f"{line}\n{result.output}"


@pytest.mark.slow
@pytest.mark.usefixtures("in_process", "files")
def test_examples_run() -> None:
    assert set(ORDER) | set(LEFT_OUT) | {""} == set(EXAMPLES)
    run("stpred predict p1/outs -o fine.zarr --model patches --map")
    for name in ORDER:
        if name == "train":  # they write what was made by hand
            shutil.rmtree("mymodel")
        for what, line in EXAMPLES[name]:
            if DOWNLOADS not in line:
                run(line)
                assert what.endswith((".", "?"))

"""The examples of runs over many slides work: snippets of the page, its job array, Snakemake and Nextflow."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import read_h5ad
from distributed import Client, LocalCluster
from tifffile import imwrite
from typer.testing import CliRunner

import stpred as st
from stpred.cli import app
from stpred.cohort import run
from stpred.cohort.clusters import Workers

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
PAGE = (ROOT / "docs" / "howto" / "many_slides.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)

LOCAL = {"processes": False, "n_workers": 1, "threads_per_worker": 1, "dashboard_address": None}
"""A cluster within this process."""

SLURM_ARGUMENTS = {
    "cores", "job_extra_directives", "job_script_prologue", "log_directory", "memory", "processes", "queue", "walltime",
    "worker_extra_args",
}  # fmt: skip
"""Those of ``dask_jobqueue.SLURMCluster`` 0.9.0 that the page speaks of."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small slides, a table of them, and a model of three genes."""
    folder = tmp_path_factory.mktemp("many")
    genes = ["EPCAM", "COL1A2", "CD3E"]
    slides = st.datasets.toy_cohort(2, size_um=(300, 300), n_genes=10, mpp=1.0)
    model = st.tl.train(slides["donor0"], "mean", encoder="intensity", genes=genes, shapes_key="spots")
    st.models.save(model, folder / "mymodel")
    for name, sdata in zip("ab", slides.values(), strict=True):
        pixels = np.asarray(sdata.images["he"]["scale0"].ds["image"])
        imwrite(folder / f"{name}.tif", pixels.transpose(1, 2, 0), photometric="rgb")
    (folder / "slides.csv").write_text("slide,path,mpp\na,a.tif,1\nb,b.tif,1\n")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same without results, as working folder."""
    for path in made.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client(**LOCAL) as found:
        yield found


@pytest.fixture
def in_process(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that start workers of their own find these."""
    monkeypatch.setattr(run, "workers", lambda given, **_: nullcontext(Workers(given or client, 1)))


@pytest.fixture
def clusters(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A cluster within this process in place of those of SLURM and Kubernetes; returns what they were asked for."""
    asked: dict[str, Any] = {}

    class SLURMCluster(LocalCluster):
        def __init__(self, **options: Any) -> None:
            assert not options.keys() - SLURM_ARGUMENTS
            asked["slurm"] = options
            super().__init__(**LOCAL)

        def adapt(self, *, minimum_jobs: int, maximum_jobs: int) -> None:
            asked["jobs"] = minimum_jobs, maximum_jobs

    class KubeCluster(LocalCluster):
        def __init__(self, *, custom_cluster_spec: dict[str, Any]) -> None:
            asked["kubernetes"] = custom_cluster_spec
            super().__init__(**LOCAL)

    def make_cluster_spec(
        name: str, *, image: str, n_workers: int, resources: Any, env: Any, worker_command: list[str]
    ) -> dict[str, Any]:
        container = {"name": "worker", "image": image, "args": worker_command, "env": env, "resources": resources}
        worker = {"replicas": n_workers, "spec": {"containers": [container]}}
        return {"kind": "DaskCluster", "metadata": {"name": name}, "spec": {"worker": worker}}

    modules = {
        "dask_jobqueue": {"SLURMCluster": SLURMCluster},
        "dask_kubernetes": {},
        "dask_kubernetes.operator": {"KubeCluster": KubeCluster, "make_cluster_spec": make_cluster_spec},
    }
    for name, names in modules.items():
        module = ModuleType(name)
        vars(module).update(names)
        monkeypatch.setitem(sys.modules, name, module)
    return asked


def code(snippet: str) -> Any:
    return compile(snippet, "many_slides.md", "exec")


@pytest.mark.usefixtures("in_process")
def test_snippets_of_the_page(folder: Path, clusters: dict[str, Any], client: Client) -> None:
    """Each runs by itself; those that predict lack a result at least."""
    n_predicted = 0
    for snippet in SNIPPETS:
        snippet = snippet.replace("tcp://head:8786", client.scheduler.address)
        if "predict_cohort" in snippet:
            shutil.rmtree(folder / "predicted" / "b.zarr", ignore_errors=True)
        found: dict[str, Any] = {"print": lambda *_: None}
        exec(code(snippet), found)
        if "predict_cohort" in snippet:
            n_predicted += 1
            assert found["manifest"]["status"].tolist() == ["complete", "complete"]
            assert (folder / "predicted" / "b.zarr" / "zarr.json").exists()
        if "table" in found:
            assert found["table"].n_vars == 3
    assert n_predicted == 5
    assert found["bulk"].obs_names.tolist() == ["a", "b"]
    assert found["page"].exists()
    asked = clusters["slurm"]
    assert (asked["cores"], asked["processes"], clusters["jobs"]) == (1, 1, (1, 20))
    container = clusters["kubernetes"]["spec"]["worker"]["spec"]["containers"][0]
    assert container["args"][1:] == ["--nthreads", "1"]
    assert container["volumeMounts"][0]["mountPath"] == "/shared"


def test_jobs_that_dask_jobqueue_submits() -> None:
    """The real one writes the script that the page means."""
    jobqueue = pytest.importorskip("dask_jobqueue")
    call = next(
        n for s in SNIPPETS for n in ast.walk(ast.parse(s)) if isinstance(n, ast.Call) and "SLURM" in ast.dump(n.func)
    )
    options = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
    gpus = {"job_extra_directives": ["--gres=gpu:1"]}
    options["worker_extra_args"] += ["--resources", "GPU=1"]
    with jobqueue.SLURMCluster(**options, **gpus, scheduler_options={"dashboard": False}) as cluster:
        script = cluster.job_script()
    for part in ("--nthreads 1", "--lifetime 11h", "--resources GPU=1", "#SBATCH --gres=gpu:1", "OMP_NUM_THREADS=1"):
        assert part in script


@pytest.fixture
def shell(folder: Path, in_process: None) -> Callable[..., list[list[str]]]:
    """Run a script of bash in which ``stpred`` is this package, and return the arguments of its calls."""
    calls = folder / "calls"
    tools = folder / "bin"
    tools.mkdir()
    (tools / "stpred").write_text(f'#!/bin/bash\nprintf "%s\\037" "$PWD" "$@" >> "{calls}"; echo >> "{calls}"\n')
    (tools / "stpred").chmod(0o755)

    def start(script: str, *, code: int = 0, **env: str) -> list[list[str]]:
        calls.unlink(missing_ok=True)
        path = f"{tools}{os.pathsep}{os.environ['PATH']}"
        strict = ["bash", "-euo", "pipefail", "-c", script]  # as workflow systems start it
        done = subprocess.run(strict, env={**os.environ, **env, "PATH": path}, cwd=folder, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        found = [line.split("\037")[1:-1] for line in calls.read_text().splitlines()]
        for call in found:
            result = CliRunner().invoke(app, call)
            assert result.exit_code == code, result.output
        return found

    return start


def complete(folder: Path) -> int:
    return int((pd.read_parquet(folder / "predicted" / "manifest.parquet")["status"] == "complete").sum())


def test_the_job_array_of_the_page(folder: Path, shell: Callable[..., list[list[str]]]) -> None:
    (script,) = (s for s in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL) if "#SBATCH" in s)
    script = script.replace("source /shared/venv/bin/activate\n", "")
    for k in (1, 2):
        given = {"SLURM_ARRAY_TASK_ID": str(k), "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_CPUS_PER_TASK": "2"}
        shell(script, **given)
        assert complete(folder) == k


def test_commands_of_nextflow(folder: Path, shell: Callable[..., list[list[str]]]) -> None:
    """What Nextflow would run, filled in as it does; it is not there to run it."""
    text = (EXAMPLES / "nextflow" / "main.nf").read_text()
    predict, collect = re.findall(r'script:\s*"""\n(.*?)"""', text, flags=re.DOTALL)
    names = {
        "slides": str(folder / "slides.csv"), "out": str(folder / "predicted"), "task.cpus": "1",
        "params.model": str(folder / "mymodel"), "params.shards": "2",
    }  # fmt: skip

    def filled(script: str, **more: str) -> str:
        script = re.sub(r"(?<!\\)\$\{([\w.]+)\}", lambda found: {**names, **more}[found[1]], script)
        return script.replace("\\\n", "").replace("\\$", "$")  # of strings of Groovy

    for k in (1, 2):
        (call,) = shell(filled(predict, shard=str(k)))
        assert call[call.index("--shard") + 1] == f"{k}/2"
        assert complete(folder) == k
    shell(filled(collect))
    assert read_h5ad(folder / "cohort.h5ad").obs_names.tolist() == ["a", "b"]
    assert (folder / "cohort.html").exists()
    assert set(re.findall(r"params\.(\w+) =", text)) == set(re.findall(r"params\.(\w+)(?! =)\b", text))


def test_commands_of_snakemake(folder: Path, shell: Callable[..., list[list[str]]]) -> None:
    """Its shell commands, filled in as it does, where it is not there to run them."""
    text = (EXAMPLES / "snakemake" / "Snakefile").read_text()
    predict, collect = ("".join(re.findall(r'"(.*)"', part)) for part in re.findall(r"shell:\n((?: +\".*\n)+)", text))
    names = {"OUT": "predicted", "MODEL": "mymodel", "SHARDS": "2", "input": "slides.csv", "threads": "1",
             "output[0]": "predicted.h5ad", "output[1]": "predicted.html"}  # fmt: skip

    def filled(script: str, **more: str) -> str:
        return re.sub(r"\{([\w.\[\]]+)\}", lambda found: {**names, **more}[found[1]], script)

    for k in (1, 2):
        shell(filled(predict, **{"wildcards.i": str(k)}))
        assert complete(folder) == k
    shell(filled(collect))
    assert read_h5ad(folder / "predicted.h5ad").n_obs == 2


@pytest.mark.parametrize("code", [0, 3, 2])
def test_parts_with_failed_slides_end_no_workflow(code: int) -> None:
    """``--skip-errors`` says 3 where slides failed; only that is no error."""
    texts = [(EXAMPLES / "snakemake" / "Snakefile").read_text(), (EXAMPLES / "nextflow" / "main.nf").read_text()]
    for text in texts:
        (guard,) = re.findall(r"--skip-errors (\|\| \[ \\?\$\? -eq 3 \])", text)
        script = f"(exit {code}) {guard}".replace("\\", "")
        assert subprocess.run(["bash", "-euo", "pipefail", "-c", script]).returncode == (code == 2)


needs_snakemake = pytest.mark.skipif(shutil.which("snakemake") is None, reason="needs snakemake")


def snakemake(*more: str, folder: Path) -> str:
    config = ["--config", "slides=slides.csv", "model=mymodel", "shards=2"]
    line = ["snakemake", "-s", str(EXAMPLES / "snakemake" / "Snakefile"), "-j", "1", *more, *config]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


@needs_snakemake
def test_snakemake_plans_all_parts(tmp_path: Path) -> None:
    (tmp_path / "slides.csv").write_text("slide,path\n")
    plan = snakemake("-n", folder=tmp_path)
    assert re.search(r"^predict +2$", plan, flags=re.MULTILINE)
    assert re.search(r"^collect +1$", plan, flags=re.MULTILINE)


@needs_snakemake
@pytest.mark.slow
def test_snakemake(folder: Path) -> None:
    """It ends with what was collected, and then has nothing to do."""
    snakemake(folder=folder)
    assert complete(folder) == 2
    assert read_h5ad(folder / "predicted.h5ad").n_obs == 2
    assert "Nothing to be done" in snakemake("-n", folder=folder)

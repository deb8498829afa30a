"""Execute the notebooks, and write them from and to plain text.

python scripts/notebooks.py run [NAME ...] [--in-place]   execute; into build/notebooks (or --out FOLDER), or in place
python scripts/notebooks.py write FILE.py ...             a script with "# %%" cells as notebooks/FILE.ipynb, executed
python scripts/notebooks.py text NAME ...                 print a notebook as such a script

A script has cells that begin with "# %%" (code) or "# %% [markdown]" (lines that begin with "# "). The kernel starts in
an empty temporary folder with one thread, so a notebook finds only what it has made itself. Two run at a time. One
whose cells print something else than it shows fails, but for the last digits; --in-place keeps the new outputs.
"""

from __future__ import annotations

import argparse
import base64
import io
import multiprocessing
import os
import re
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image
from shown_outputs import differences

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
CELL_TIMEOUT_S = 300
CPU_LIMIT_S = 90.0
"""Beyond which a run fails; notebooks are written to take less than 60 s of CPU."""
RC = "figure.dpi: 80\nsavefig.dpi: 80\n"
WIDGET = "application/vnd.jupyter.widget-view+json"
KEPT_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python", "file_extension": ".py", "mimetype": "text/x-python"},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    step = steps.add_parser("run")
    step.add_argument("names", nargs="*")
    step.add_argument("--out", type=Path, default=ROOT / "build" / "notebooks")
    step.add_argument("--in-place", action="store_true")
    step.add_argument("--jobs", type=int, default=2)
    step = steps.add_parser("write")
    step.add_argument("scripts", nargs="+", type=Path)
    step = steps.add_parser("text")
    step.add_argument("names", nargs="+")
    args = parser.parse_args()
    if args.step == "run":
        return run(paths_of(args.names), FOLDER if args.in_place else args.out, jobs=args.jobs)
    if args.step == "write":
        return run([from_text(script) for script in args.scripts], FOLDER, jobs=2)
    print("\n".join(to_text(path) for path in paths_of(args.names)))
    return 0


def paths_of(names: list[str]) -> list[Path]:
    """Return the notebooks that have these names or begin with them; all without names."""
    found = sorted(FOLDER.glob("*.ipynb"))
    chosen = [p for p in found if not names or any(p.stem.startswith(Path(n).stem) for n in names)]
    if not chosen:
        sys.exit(f"No notebook of {[p.stem for p in found]} begins with {names}.")
    return chosen


def run(paths: list[Path], out: Path, *, jobs: int) -> int:
    """Execute notebooks, write them to `out`, report; return 1 if any fails or takes too long."""
    out.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    bad = 0
    with ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=1) as pool:
        for path, (error, cpu_s, wall_s) in zip(paths, pool.map(execute, paths, [out] * len(paths)), strict=True):
            slow = cpu_s > CPU_LIMIT_S
            state = "failed" if error else f"longer than {CPU_LIMIT_S:.0f} s" if slow else "ok"
            if not error and out != FOLDER:
                error = "\n".join(differences(read(path), read(out / path.name)))
                state = "other outputs" if error else state
            bad += bool(error or slow)
            print(f"{path.stem:36} {cpu_s:5.0f} s of CPU {wall_s:5.0f} s  {state}", flush=True)
            if error:
                print(error, flush=True)
    return int(bad > 0)


def read(path: Path) -> Any:
    """Return the notebook of a file."""
    import nbformat

    return nbformat.read(path, as_version=4)


def execute(path: Path, out: Path) -> tuple[str, float, float]:
    """Execute one notebook in an empty folder; return the error, seconds of CPU and seconds."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    notebook, start, error = read(path), time.perf_counter(), ""
    with tempfile.TemporaryDirectory() as work, tempfile.TemporaryDirectory() as settings:
        rc = Path(settings) / "matplotlibrc"
        rc.write_text(RC)
        # squidpy's import shows two warnings about its own docstrings, which are no part of any analysis.
        mine = {
            "OMP_NUM_THREADS": "1",
            "NUMBA_NUM_THREADS": "1",
            "MATPLOTLIBRC": str(rc),
            "IPYTHONDIR": settings,
            "PYTHONWARNINGS": "ignore::SyntaxWarning:docrep.decorators",
        }
        client = NotebookClient(
            notebook, timeout=CELL_TIMEOUT_S, kernel_name="python3", resources={"metadata": {"path": work}}
        )
        try:
            client.execute(env={**os.environ, **mine})
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as raised:
            error = str(raised)
        clean(notebook, work)
    if not error:
        nbformat.write(notebook, out / path.name)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return error, used.ru_utime + used.ru_stime, time.perf_counter() - start


def clean(notebook: Any, work: str) -> None:
    """Take out what differs between runs and machines: times, versions, widgets of progress bars, the folder."""
    notebook.metadata = KEPT_METADATA
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = {k: v for k, v in cell.metadata.items() if k == "tags"}
        if cell.cell_type != "code":
            continue
        cell.outputs = [o for o in cell.outputs if WIDGET not in o.get("data", {})]
        for output in cell.outputs:
            output.pop("metadata", None) if output.output_type == "stream" else output.update(metadata={})
            if "text" in output:
                output.text = re.sub(r"\S*/ipykernel_\d+/\d+\.py", "cell", output.text.replace(f"{work}/", ""))
                output.text = re.sub(r"\x1b\[[\d;]*m", "", output.text)
            data = output.get("data", {})
            if "image/png" in data:
                data["image/png"] = smaller(data["image/png"])
            for kind in [k for k in data if k.startswith("text/")]:
                data[kind] = re.sub(r" at 0x[0-9a-f]+", "", data[kind].replace(f"{work}/", ""))


def smaller(png: str) -> str:
    """Return a picture in base64 with a palette of 256 colours: pictures of tissue take a third of the room."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    buffer = io.BytesIO()
    small = image.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    small.save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def from_text(script: Path) -> Path:
    """Write the notebook of a script with "# %%" cells, without outputs."""
    import nbformat

    cells = []
    for part in re.split(r"^# %%", script.read_text(), flags=re.MULTILINE)[1:]:
        head, _, body = part.partition("\n")
        if "[markdown]" in head:
            lines = [re.sub(r"^# ?", "", line) for line in body.strip().splitlines()]
            cells.append(nbformat.v4.new_markdown_cell("\n".join(lines)))
        else:
            cells.append(nbformat.v4.new_code_cell(body.strip()))
    notebook = nbformat.v4.new_notebook(cells=cells)
    clean(notebook, "")
    path = FOLDER / f"{script.stem}.ipynb"
    nbformat.write(notebook, path)
    return path


def to_text(path: Path) -> str:
    """Return a notebook as a script with "# %%" cells."""
    import nbformat

    parts = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            lines = [f"# {line}".rstrip() for line in cell.source.splitlines()]
            parts.append("\n".join(["# %% [markdown]", *lines]))
        else:
            parts.append(f"# %%\n{cell.source}")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.exit(main())

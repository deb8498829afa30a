"""Every command and snippet of the pages runs, in order, page by page, on small synthetic files.

A block of ``python`` or ``bash`` that cannot is preceded by ``<!-- not run: reason -->``, with one of `REASONS`. A
block of ``text`` right behind one of ``python`` is what that prints, with the value of its last line, as in a notebook.
"""

from __future__ import annotations

import ast
import io
import os
import re
import shlex
import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from shown_outputs import same_output

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

REASONS = (
    "installs packages",
    "needs a GPU",
    "needs a cluster",
    "needs a network",
    "needs gated weights",
    "needs public data",
    "takes minutes",
)
"""Why a block may be left out."""

FOLDERS = ("getting_started", "howto", "concepts", "methods")
PAGES = [ROOT / "README.md", DOCS / "index.md", *sorted(p for f in FOLDERS for p in (DOCS / f).glob("*.md"))]
FENCE = re.compile(r"^(?P<indent>\s*)(?P<ticks>`{3,})\s*(?P<language>[^`]*?)\s*$")
MARKER = re.compile(r"<!--\s*not run:\s*(?P<reason>.*?)\s*-->")
LANGUAGES = ("python", "bash")


@dataclass(frozen=True)
class Block:
    """A block of code: its language, its text, its first line's number, why it is not run, and what it shows."""

    language: str
    text: str
    line: int
    not_run: str | None
    shows: str | None = None


def blocks_of(text: str) -> list[Block]:
    """Return the fenced blocks of a page."""
    found: list[Block] = []
    lines, n, before = text.splitlines(), 0, ""
    while n < len(lines):
        opened = FENCE.match(lines[n])
        if opened is None:
            before = lines[n].strip() or before
            n += 1
            continue
        close = re.compile(rf"^\s*`{{{len(opened['ticks'])},}}\s*$")
        end = next((m for m in range(n + 1, len(lines)) if close.match(lines[m])), len(lines))
        body = [line.removeprefix(opened["indent"]) for line in lines[n + 1 : end]]
        marked = MARKER.search(before)
        block = Block(opened["language"], "\n".join(body), n + 2, marked["reason"] if marked else None)
        if block.language == "text" and found and found[-1].language == "python" and not before:
            found[-1] = replace(found[-1], shows=block.text)
        found.append(block)
        before, n = "", end + 1
    return found


def commands_of(block: Block) -> Iterator[tuple[int, dict[str, str], list[str]]]:
    """Give the number of the line, the variables set before it, and the words of each command of a block of bash."""
    number, joined = block.line, ""
    for n, line in enumerate(block.text.splitlines()):
        joined = joined or ""
        number = number if joined else block.line + n
        if line.endswith("\\"):
            joined += line[:-1] + " "
            continue
        words, joined = shlex.split(joined + line, comments=True), ""
        variables: dict[str, str] = {}
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            key, _, value = words.pop(0).partition("=")
            variables[key] = value
        if words:
            yield number, variables, words


def run_python(block: Block, page: str, namespace: dict[str, Any]) -> str:
    """Run a block so that errors carry the page's own line numbers; return what it prints and ends with."""
    body = ast.parse("\n" * (block.line - 1) + block.text, page)
    last = ast.Expression(body.body.pop().value) if body.body and isinstance(body.body[-1], ast.Expr) else None  # type: ignore[attr-defined]
    with redirect_stdout(io.StringIO()) as printed:
        exec(compile(body, page, "exec"), namespace)
        value = None if last is None else eval(compile(last, page, "eval"), namespace)
    return printed.getvalue() + ("" if value is None else repr(value))


def run_bash(block: Block, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the calls of ``stpred`` in this process; any other command must be marked."""
    from typer.testing import CliRunner

    from stpred.cli import app

    for line, variables, words in commands_of(block):
        assert words[0] == "stpred", f"{page}:{line}: `{words[0]}` is not run here; mark the block `not run: reason`"
        assert not {"|", ">", "&&", ";"} & set(words), f"{page}:{line}: one command a line, without pipes"
        with monkeypatch.context() as patch:
            for key, value in variables.items():
                patch.setenv(key, value)
            result = CliRunner().invoke(app, words[1:])
        if result.exit_code != 0:
            error = "" if result.exception is None else "".join(traceback.format_exception(result.exception))
            pytest.fail(
                f"{page}:{line}: `{shlex.join(words)}` ended with {result.exit_code}:\n{result.output}\n{error}"
            )


@contextmanager
def _same_process(n_slides: int, n_workers: int | None, devices: Any) -> Iterator[Any]:
    """Do the slides of a run in this process, in place of workers that would each import everything."""
    from distributed import Client

    from stpred.cohort.clusters import Workers

    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
        yield Workers(client, 1)


@pytest.fixture
def page_folder(
    prepared: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Work in a copy of the prepared files; settings of the session are as before afterwards."""
    import matplotlib as mpl

    import stpred as st
    from stpred.cohort import clusters

    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    monkeypatch.setattr(clusters, "_on_this_machine", _same_process)
    mpl.use("Agg")
    with st.settings.override(cache_dir=prepared.parent / "page_features", progress=False):
        yield tmp_path
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.mark.slow
@pytest.mark.filterwarnings("default::UserWarning:stpred.*")
@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_block_of_the_page_runs(page: Path, page_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, namespace = str(page.relative_to(ROOT)), {"__name__": "__main__"}
    for block in blocks_of(page.read_text()):
        if block.not_run is not None or block.language not in LANGUAGES:
            continue
        if block.language == "bash":
            run_bash(block, name, monkeypatch)
            continue
        try:
            printed = run_python(block, name, namespace)
        except (Exception, SystemExit) as error:  # noqa: BLE001
            frames = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == name]
            line = frames[-1] if frames else getattr(error, "lineno", block.line)
            pytest.fail(f"{name}:{line}: {type(error).__name__}: {error}\n{traceback.format_exc()}")
        if block.shows is not None and not same_output(block.shows, printed):
            pytest.fail(f"{name}:{block.line}: the page shows\n{block.shows}\nand the block gives\n{printed}")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_blocks_are_marked_in_the_agreed_way(page: Path) -> None:
    """Reasons are those of the list, code is in plain fences, and each marker is followed by a block of code."""
    text = page.read_text()
    blocks = blocks_of(text)
    assert not [b.line for b in blocks if b.not_run is not None and b.not_run not in REASONS], f"reasons are {REASONS}"
    assert not [b.line for b in blocks if re.match(r"\{code|py$|sh$|shell|console|ipython", b.language)]
    assert len([b for b in blocks if b.not_run is not None and b.language in LANGUAGES]) == len(MARKER.findall(text))
    for block in blocks:  # what is not run is at least Python
        if block.language == "python":
            compile(block.text, str(page), "exec")


def test_blocks_are_found_with_their_lines_and_markers() -> None:
    text = "# A\n\n```python\na = 1\n```\n\n<!-- not run: needs a GPU -->\n\n"
    text += "```bash\nX=1 stpred predict a \\\n  -o b  # c\n```\n"
    first, second = blocks_of(text)
    assert (first.text, first.line, first.not_run) == ("a = 1", 4, None)
    assert (second.line, second.not_run) == (10, "needs a GPU")
    assert list(commands_of(second)) == [(10, {"X": "1"}, ["stpred", "predict", "a", "-o", "b"])]
    assert blocks_of("```python\n1\n```\n\n```text\n1\n```")[0].shows == "1"
    assert blocks_of("```python\n1\n```\n\nSo:\n\n```text\n1\n```")[0].shows is None
    assert os.linesep.join(b.text for b in blocks_of("````text\n```python\n````")) == "```python"


def test_what_a_block_prints_and_its_value_are_kept() -> None:
    assert run_python(Block("python", "a = 2\nprint(a)\n[a, 0.5]", 1, None), "page", {}) == "2\n[2, 0.5]"

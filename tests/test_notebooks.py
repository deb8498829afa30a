"""The committed notebooks: run from top to bottom, quiet, small, and true to their outputs. None is executed here."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

import stpred

nbformat = pytest.importorskip("nbformat")

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
MAX_BYTES = 1_500_000
UNITS = r"(?:um2?|µm2?|px|pixels?|mm|cm|nm|GB|MB|kB|s|seconds?|minutes?|hours?|h)\b"
NUMBER = r"-?\d+(?:\.\d+)?"

notebooks = pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def text_of(output: Any) -> str:
    """Return what an output says as text, tags of tables left out."""
    if output.output_type == "stream":
        return str(output.text)
    data = output.get("data", {})
    html = re.sub(r"<style.*?</style>|<[^>]+>", " ", data.get("text/html", ""), flags=re.DOTALL)
    return f"{data.get('text/plain', '')} {html} {data.get('text/markdown', '')}"


def prose(source: str) -> str:
    """Return markdown without headings, code and the targets of links."""
    source = re.sub(r"```.*?```|`[^`\n]*`|^#.*$", " ", source, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"\]\([^)]*\)", "]", source)


def results(source: str) -> list[str]:
    """Return numbers of a piece of prose that look like results: decimals, percentages, and "57 of 60".

    Lengths, times and sizes in memory are none.
    """
    text = re.sub(rf"{NUMBER}(?: (?:to|x|and) {NUMBER})* ?{UNITS}", " ", prose(source))
    found = re.findall(rf"(?<![\w.-]){NUMBER} ?%", text)
    found += [n for pair in re.findall(r"(?<![\w.])(\d+) of (?:the )?(\d+)", text) for n in pair]
    return found + re.findall(r"(?<![\w.])-?\d+\.\d+(?!\w|\.\d| ?%)", text)


def shown(number: str, outputs: str) -> bool:
    """Whether a number of the prose stands in outputs, rounded as the prose has it; percentages also as fractions."""
    percent = number.endswith("%")
    stated = number.rstrip("% ")
    places = len(stated.partition(".")[2])
    values = [float(v) for v in re.findall(rf"{NUMBER}(?:e[+-]?\d+)?", outputs.replace(",", ""))]
    slack = 0.5 * 10**-places + 1e-9
    return any(abs(v * factor - float(stated)) <= slack for v in values for factor in ([1, 100] if percent else [1]))


def untrue(notebook: Any) -> list[str]:
    """Return the numbers of the prose that neither the outputs of the code just above nor any code shows."""
    wrong, outputs, code, after_text = [], "", "", True
    for cell in notebook.cells:
        if cell.cell_type == "code":
            code += cell.source
            outputs = "" if after_text else outputs
            outputs += " ".join(text_of(o) for o in cell.outputs)
            after_text = False
        elif cell.cell_type == "markdown":
            after_text = True
            wrong += [n for n in results(cell.source) if not shown(n, outputs) and not shown(n, code)]
    return wrong


def load_script() -> Any:
    spec = importlib.util.spec_from_file_location("notebooks_script", ROOT / "scripts" / "notebooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def noise(cells: list[Any]) -> list[str]:
    """Return what was written to stderr, except warnings of stpred of which the next text speaks."""
    found = []
    for number, cell in enumerate(cells):
        texts = [c.source for c in cells[number:] if c.cell_type == "markdown"]
        told = bool(texts) and "warn" in texts[0]
        outputs = cell.get("outputs", [])
        errors = "".join(o.text for o in outputs if o.get("name") == "stderr")
        heads = re.findall(r"^\S+:\d+: (\w+): ", errors, flags=re.MULTILINE)
        if errors and not (told and heads and set(heads) == {"InputWarning"}):
            found.append(errors[:300])
    return found


@notebooks
def test_a_notebook_is_valid_and_small(path: Path) -> None:
    nbformat.validate(read(path))
    assert path.stat().st_size < MAX_BYTES


@notebooks
def test_it_was_run_from_top_to_bottom_without_errors_and_noise(path: Path) -> None:
    cells = [c for c in read(path).cells if c.cell_type == "code"]
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    outputs = [o for c in cells for o in c.outputs]
    assert any("image/png" in o.get("data", {}) for o in outputs)
    assert not [o for o in outputs if o.output_type == "error"]
    assert not noise(read(path).cells)


@notebooks
def test_it_names_no_place_of_a_machine(path: Path) -> None:
    found = re.findall(
        r"(?<![\w.:/])/(?:home|tmp|root|work|Users|usr|opt|var|private)/\S*|[A-Z]:\\\\", path.read_text()
    )
    assert not found
    assert " at 0x" not in path.read_text()


@notebooks
def test_numbers_of_the_prose_stand_in_the_outputs_above(path: Path) -> None:
    assert not untrue(read(path))


@notebooks
def test_names_and_parameters_exist(path: Path) -> None:
    notebook, wrong = read(path), []
    texts = [c.source for c in notebook.cells if c.cell_type == "markdown"]
    spans = [s for t in texts for s in re.findall(r"```python\n(.*?)```", t, flags=re.DOTALL)]
    spans += [s for t in texts for s in re.findall(r"`([^`\n]+)`", t)]
    for source in [c.source for c in notebook.cells if c.cell_type == "code"] + spans:
        for name in re.findall(r"(?<![\w./])st(?:\.[A-Za-z_]\w*)+", source):
            try:
                reduce(getattr, name.split(".")[1:], stpred)
            except AttributeError:
                wrong.append(name)
        try:
            tree = ast.parse(source)
        except SyntaxError:
            continue  # a span that is no expression
        for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
            name = ast.unparse(call.func)
            if not re.fullmatch(r"st(\.\w+)+", name) or name in wrong:
                continue
            parameters = inspect.signature(reduce(getattr, name.split(".")[1:], stpred)).parameters  # type: ignore[arg-type]
            if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                wrong += [f"{name}({k.arg}=)" for k in call.keywords if k.arg and k.arg not in parameters]
    assert not wrong


@notebooks
def test_it_says_which_public_data_to_use_and_what_comes_next(path: Path) -> None:
    texts = [c.source for c in read(path).cells if c.cell_type == "markdown"]
    assert texts[0].startswith("# ")
    assert any(re.search(r"^###? .*public data", t, flags=re.MULTILINE | re.IGNORECASE) for t in texts)
    assert re.search(r"^## What next", texts[-1], flags=re.MULTILINE)
    targets = [t for text in texts for t in re.findall(r"\]\((?!https?:)([^)#\s]+)", text)]
    assert targets
    assert not [t for t in targets if not (FOLDER / t).exists()]


def test_the_index_of_tutorials_lists_every_notebook() -> None:
    index = (ROOT / "docs" / "tutorials" / "index.md").read_text()
    assert not [p.stem for p in PATHS if p.stem not in index]


def test_untrue_numbers_are_found() -> None:
    def made(text: str) -> Any:
        new = nbformat.v4
        output = new.new_output("stream", name="stdout", text="median 0.618, share 0.43, 57 of 60, n 1,204\n")
        code = new.new_code_cell("level = 0.9", outputs=[output])
        return new.new_notebook(cells=[code, new.new_markdown_cell(text)])

    true = "The median is 0.62, 43 % are above, 57 of the 60 genes at 55.5 um, level 0.9; see `0.77`. ## 0.99"
    assert not untrue(made(true.replace(" ## 0.99", "\n## 0.99")))
    assert untrue(made("It is 0.63, or 44 %, or 58 of 60, or 0.6181.")) == ["44 %", "58", "0.63", "0.6181"]


def test_a_notebook_survives_its_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = load_script()
    source = '# %% [markdown]\n# # Title\n#\n# Text.\n\n# %%\nx = 1  # %% no cell\n\nprint("# a")\n'
    file = tmp_path / "09_x.py"
    file.write_text(source)
    monkeypatch.setattr(script, "FOLDER", tmp_path)
    assert script.to_text(script.from_text(file)) == source


@pytest.mark.slow
def test_a_notebook_is_executed_in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = load_script()
    file = tmp_path / "09_x.py"
    file.write_text(
        "# %%\nimport os, warnings\nprint(os.getcwd() + '/x', os.listdir())\nobject()\n\n# %%\nwarnings.warn('noise')\n"
    )
    monkeypatch.setattr(script, "FOLDER", tmp_path)
    path = script.from_text(file)
    error, cpu_s, _ = script.execute(path, tmp_path)
    assert not error
    assert cpu_s > 0
    notebook = read(path)
    assert text_of(notebook.cells[0].outputs[0]) == "x []\n"
    assert "0x" not in text_of(notebook.cells[0].outputs[1])
    assert notebook.cells[1].outputs[0].name == "stderr"
    file.write_text("# %%\nraise ValueError('no')\n")
    assert "ValueError" in script.execute(script.from_text(file), tmp_path)[0]

"""The pages of documentation: names, parameters, scripts and links in them exist."""

from __future__ import annotations

import ast
import inspect
import json
import re
from functools import reduce
from pathlib import Path

import pytest

import stpred
import stpred.testing  # documented, and imported by no other part

ROOT = Path(__file__).parents[1]
BUILT = ("_build", "generated")
PAGES = [
    ROOT / "README.md",
    *sorted(p for p in (ROOT / "docs").rglob("*.md") if not set(BUILT) & set(p.parts)),
    ROOT / "examples" / "README.md",
    *sorted((ROOT / "notebooks").glob("*.ipynb")),
]

pages = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


def read(page: Path) -> str:
    """Return the text of a page; the code of a notebook is in blocks of Python."""
    if page.suffix != ".ipynb":
        return page.read_text()
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(page.read_text())["cells"]]
    return "\n\n".join(f"```python\n{text}\n```" if kind == "code" else text for kind, text in cells)


def spans(page: Path) -> list[str]:
    """Return what stands between single backticks outside blocks of code."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", read(page), flags=re.DOTALL))


def snippets(page: Path) -> list[ast.AST]:
    """Return the blocks of Python that parse; those that run are run by ``tests/docs``."""
    blocks = re.findall(r"^```python\n(.*?)^```", read(page), flags=re.DOTALL | re.MULTILINE)
    found = []
    for block in blocks:
        try:
            found.append(ast.parse(block))
        except SyntaxError:
            continue
    return found


def resolve(name: str) -> object:
    """Return what a dotted name such as ``st.tl.train`` stands for."""
    return reduce(getattr, name.split(".")[1:], stpred)


def calls(span: str) -> list[tuple[str, list[str]]]:
    """Return names and keywords of the calls of stpred in a span; none where it is no expression."""
    try:
        return calls_in(ast.parse(span, mode="eval"))
    except SyntaxError:
        return []


def calls_in(tree: ast.AST) -> list[tuple[str, list[str]]]:
    """Return names and keywords of the calls of stpred below a node."""
    found = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
    named = [(ast.unparse(n.func), [k.arg for k in n.keywords if k.arg]) for n in found]
    return [(name, keywords) for name, keywords in named if re.fullmatch(r"(st|stpred)(\.\w+)+", name)]


def commands(text: str) -> list[list[str]]:
    """Return the words of each call of ``stpred`` in blocks of bash and in spans."""
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)).replace("\\\n", " ")
    lines = re.findall(r"^(?:\w+=\S+ +)*(stpred [^\n#|&]*)", blocks, flags=re.MULTILINE)
    lines += [s for s in re.findall(r"`(stpred [^`\n]+)`", text) if "..." not in s]
    return [line.split() for line in lines]


def steps_of(script: Path) -> set[str]:
    """Return the names and strings that a script's ``STEPS`` is made of."""
    nodes = ast.parse(script.read_text()).body
    value = next(n.value for n in nodes if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "STEPS")
    named = {n.id for n in ast.walk(value) if isinstance(n, ast.Name)}
    return named | {n.value for n in ast.walk(value) if isinstance(n, ast.Constant)}


@pages
def test_names_exist(page: Path) -> None:
    names = set(re.findall(r"(?<![\w./])(?:st|stpred)(?:\.[A-Za-z_]\w*)+", read(page)))
    unknown = []
    for name in sorted(names):
        try:
            resolve(name)
        except AttributeError:
            unknown.append(name)
    assert not unknown


@pages
def test_parameters_exist(page: Path) -> None:
    wrong = []
    found = [call for span in spans(page) for call in calls(span)]
    found += [call for tree in snippets(page) for call in calls_in(tree)]
    for name, keywords in found:
        signature = inspect.signature(resolve(name))  # type: ignore[arg-type]
        parameters = signature.parameters.values()
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            wrong += [f"{name}({k}=)" for k in keywords if k not in signature.parameters]
    assert not wrong


@pages
def test_scripts_and_their_options_exist(page: Path) -> None:
    text = read(page)
    assert not [s for s in set(re.findall(r"\bscripts/\w+\.py", text)) if not (ROOT / s).is_file()]
    commands = re.findall(r"python (scripts/\w+\.py)([^`\n#]*)", text)
    wrong = []
    for script, rest in commands:
        known = set(re.findall(r"\"(--[a-z-]+)\"", (ROOT / script).read_text()))
        wrong += [f"{script} {o}" for o in re.findall(r"(?<!\S)--[a-z-]+", rest) if o not in known]
    assert not wrong


@pages
def test_commands_and_their_options_exist(page: Path) -> None:
    from typer.main import get_command

    from stpred.cli import app

    known = {
        name: {option for p in command.params for option in (*p.opts, *p.secondary_opts)}
        for name, command in get_command(app).commands.items()  # type: ignore[attr-defined]
    }
    wrong = []
    for _, name, *rest in commands(read(page)):
        if name not in known:
            wrong.append(name)
            continue
        wrong += [f"{name} {w}" for w in rest if re.match(r"--?[a-z]", w) and w.split("=")[0] not in known[name]]
    assert not wrong


def test_steps_of_figures_exist() -> None:
    """Sections that name a script with ``--steps STEP`` speak of its steps alone."""
    text = (ROOT / "docs" / "methods" / "publications.md").read_text()
    for section in re.split(r"^## ", text, flags=re.MULTILINE):
        found = re.search(r"(scripts/\w+\.py)[^`]*--steps STEP", section)
        if found is None:
            continue
        known = steps_of(ROOT / found[1])
        named = [re.findall(r"`(\w+)`", part) for part in re.findall(r"steps? (`\w+`(?: and `\w+`)*)", section)]
        steps = {s for part in named for s in part}
        assert steps
        assert not steps - known


@pages
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#\s]+)", read(page))
    assert not [t for t in targets if not (page.parent / t).exists()]

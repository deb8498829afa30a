"""The architecture, kept by tests: imports and their ranks, sizes, signatures and docstrings of public functions."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import stpred

SOURCE = Path(stpred.__file__).parent

RANKS = {
    "_core": 0,
    **dict.fromkeys(["_image", "tiles", "links", "genes", "metrics", "rasters"], 1),
    **dict.fromkeys(["calibration", "regions", "nuclei", "stores", "encoders", "models"], 2),
    **dict.fromkeys(["data", "pretrained", "registration"], 3),
    **dict.fromkeys(["comparison", "training"], 4),
    **dict.fromkeys(["inference", "io", "pp", "pl", "datasets"], 5),
    "tl": 6,
    **dict.fromkeys(["testing", "cohort"], 7),
    **dict.fromkeys(["_demo", "_report"], 8),
    "cli": 9,
}
PACKAGES = ("io", "pp", "tl", "pl", "models", "encoders", "datasets", "metrics")


def module_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Names of the stpred parts that a file imports, inside functions too, type-checking blocks left out."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "stpred":
            parts = (node.module or "").split(".")
            found |= {parts[1]} if len(parts) > 1 else {a.name for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("stpred.")}
    return found - {"TileSpec", "GeneRule", "settings"}


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_module_imports_only_lower_ranks(path: Path) -> None:
    own = module_of(path)
    if own == "__init__":
        return
    for other in imports(path):
        assert other == own or RANKS[other] < RANKS[own], f"{own} (rank {RANKS[own]}) imports {other}"


def test_every_part_has_a_rank() -> None:
    parts = {module_of(p) for p in SOURCE.rglob("*.py")} - {"__init__"}
    assert parts == set(RANKS)


@pytest.mark.parametrize(
    ("part", "forbidden"),
    [("models", ("spatialdata", "anndata")), ("metrics", ("torch",)), ("pl", ("torch",))],
)
def test_parts_stay_free_of_what_they_must_not_know(part: str, forbidden: tuple[str, ...]) -> None:
    files = [p for p in SOURCE.rglob("*.py") if module_of(p) == part]
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [n for n in names if n.split(".")[0] in forbidden], path


@pytest.mark.parametrize(
    ("names", "unwanted"),
    [("stpred", ["torch", "spatialdata", "scanpy"]), ("stpred.pl, stpred.metrics", ["torch"])],
)
def test_imports_are_light(names: str, unwanted: list[str]) -> None:
    code = f"import sys, {names}; print([m for m in {unwanted!r} if m in sys.modules])"
    start = time.perf_counter()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
    assert time.perf_counter() - start < 20  # the figure is kept in benchmarks; here only what would be absurd


def public() -> list[tuple[str, object]]:
    found = [(f"stpred.{n}", getattr(stpred, n)) for n in ("TileSpec", "GeneRule", "report")]
    for package in PACKAGES:
        module = importlib.import_module(f"stpred.{package}")
        names = getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]
        for name in names:
            thing = getattr(module, name)
            if callable(thing) and getattr(thing, "__module__", "").startswith("stpred"):
                found.append((f"stpred.{package}.{name}", thing))
    return found


FUNCTIONS = [(n, f) for n, f in public() if inspect.isfunction(f)]


@pytest.mark.parametrize(("name", "function"), FUNCTIONS, ids=[n for n, _ in FUNCTIONS])
def test_signatures(name: str, function: object) -> None:
    parameters = inspect.signature(function).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    assert len(positional) <= 3, name
    assert not [p.name for p in positional if isinstance(p.default, bool)], f"{name}: booleans are keywords"
    assert all(p.annotation is not p.empty for p in parameters), name


@pytest.mark.parametrize(("name", "function"), FUNCTIONS, ids=[n for n, _ in FUNCTIONS])
def test_docstrings_name_every_parameter_and_show_an_example(name: str, function: object) -> None:
    doc = inspect.getdoc(function) or ""
    assert doc, name
    section = re.search(r"Parameters\n-+\n(.*?)(?:\n\n[A-Z][a-z]+\n-+\n|\Z)", doc, flags=re.S)
    # An entry is a line without indent in the section, such as "shapes_key, table_key" or "**kwargs".
    lines = [x for x in section.group(1).splitlines() if x and not x.startswith(" ")] if section else []
    documented = {w.strip().lstrip("*") for line in lines for w in line.split(":")[0].split(",")}
    wanted = set(inspect.signature(function).parameters)
    assert documented == wanted, f"{name}: {documented ^ wanted}"
    assert ">>>" in doc, f"{name} shows no example"


def test_no_pickle_is_ever_loaded() -> None:
    risky = re.compile(r"\bimport pickle|joblib\.load|allow_pickle=True|weights_only=False|(?<!\.)\beval\(|\bexec\(")
    for path in SOURCE.rglob("*.py"):
        assert not [line for line in path.read_text().splitlines() if risky.search(line)], path


def test_specs_are_frozen_and_survive_json() -> None:
    import json

    spec, rule = stpred.TileSpec(0.25, 128), stpred.GeneRule("list", genes=("A", "B"))
    assert stpred.TileSpec(**json.loads(json.dumps(spec.to_dict()))) == spec
    assert stpred.GeneRule.parse(json.loads(json.dumps(rule.to_dict()))) == rule
    assert spec.size_um == 32.0
    with pytest.raises(AttributeError):
        spec.mpp = 1.0  # type: ignore[misc]
    for wrong in ({"mpp": 0}, {"mpp": float("nan")}, {"size_px": 0}, {"size_px": 1.5}):
        with pytest.raises(ValueError, match="must be a positive"):
            stpred.TileSpec(**wrong)
    with pytest.raises(ValueError, match="must be one of"):
        stpred.GeneRule("variance")
    with pytest.raises(ValueError, match=r"repeated: \['A'\]"):
        stpred.GeneRule.parse(["A", "A"])
    assert stpred.GeneRule.parse(np.array(["A", "B"])) == rule


MODULES = {
    ".".join(p.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__"): p
    for p in sorted(SOURCE.rglob("*.py"))
}
PARSED = {module: ast.parse(path.read_text()) for module, path in MODULES.items()}


def without_type_checking(tree: ast.Module) -> Iterator[ast.AST]:
    """Every node of a module that runs; what only a type checker reads is left out."""
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            stack.extend(node.orelse)
            continue
        yield node
        stack.extend(ast.iter_child_nodes(node))


def imported_modules(module: str) -> set[str]:
    """Modules of stpred that a module imports, anywhere in it, as the names they have."""
    found = set()
    for node in without_type_checking(PARSED[module]):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{a.name}" for a in node.names}
            found |= {n if n in MODULES else node.module for n in names}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
    return (found & set(MODULES)) - {module}


def test_imports_make_no_circles() -> None:
    import networkx as nx

    graph = nx.DiGraph([(m, other) for m in MODULES for other in imported_modules(m)])
    circles = [sorted(c) for c in nx.strongly_connected_components(graph) if len(c) > 1]
    assert not circles


def test_no_module_imports_a_private_one_of_another_package() -> None:
    """``a.b._c`` is imported from within ``a.b`` only; ``stpred._core`` and ``stpred._image`` from everywhere."""
    found = []
    for module, path in MODULES.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for other in imported_modules(module):
            parts = other.split(".")
            owners = [".".join(parts[:i]) for i in range(2, len(parts)) if parts[i].startswith("_")]
            found += [(module, other) for o in owners if not f"{package}.".startswith(f"{o}.")]
    assert not found


LARGEST_FOLDERS = {"models": 24}
"""Folders of more than sixteen modules, and why: models hold one file per method."""


def test_folders_are_small() -> None:
    folders = {p.parent: str(p.parent.relative_to(SOURCE)) for p in MODULES.values()}
    large = {f: n for p, f in folders.items() if (n := len(list(p.glob("*.py")))) > LARGEST_FOLDERS.get(f, 16)}
    assert not large


def test_modules_are_short() -> None:
    long = {m: n for m, p in MODULES.items() if (n := len(p.read_text().splitlines())) > 400}
    assert not long


def lines_of_code(function: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> int:
    """Lines of a function's body without docstrings, blank lines and comments."""
    left_out: set[int] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and ast.get_docstring(node):
            left_out |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    body = [n for n in range(function.body[0].lineno, (function.end_lineno or 0) + 1) if n not in left_out]
    return sum(bool(text) and not text.startswith("#") for text in (lines[n - 1].strip() for n in body))


def test_functions_are_short() -> None:
    long = {}
    for module, path in MODULES.items():
        lines = path.read_text().splitlines()
        for node in ast.walk(PARSED[module]):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (n := lines_of_code(node, lines)) > 60:
                long[f"{module}.{node.name}"] = n
    assert not long


WIDEST = {"stpred.tl.train": 19, "stpred.tl.distill": 18, "stpred.tl.cross_validate": 20}
"""Verbs that need more than sixteen parameters, each for a decision of its user's."""


@pytest.mark.parametrize(("name", "function"), FUNCTIONS, ids=[n for n, _ in FUNCTIONS])
def test_verbs_have_few_parameters(name: str, function: object) -> None:
    assert len(inspect.signature(function).parameters) <= WIDEST.get(name, 16)

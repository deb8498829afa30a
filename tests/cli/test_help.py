"""Help that can be read, examples that can be typed, and values that the shell completes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import stpred as st
from stpred.cli import app
from stpred.cli.app import COMMANDS
from stpred.cli.help import complete, families, formatting
from stpred.cli.help.examples import EXAMPLES
from stpred.encoders.registry import own_summaries
from stpred.models import registry

run = CliRunner()
NAMES = [name for commands in COMMANDS.values() for name in commands]
APP = get_command(app)

each = pytest.mark.parametrize("name", NAMES)


def command(name: str) -> Any:
    return APP.commands[name]  # type: ignore[attr-defined]


def help_of(*names: str) -> str:
    result = run.invoke(app, [*names, "--help"], prog_name="stpred", env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("names", [(), *((n,) for n in NAMES)], ids=lambda n: " ".join(n) or "stpred")
def test_help_fits_a_terminal_and_ends_with_examples(names: tuple[str, ...]) -> None:
    said = help_of(*names)
    assert not [line for line in said.splitlines() if len(line) > 80]
    examples = said[said.index("\nExamples:\n") :]
    for _, line in EXAMPLES["".join(names)]:
        assert line.split()[0] == "stpred"
        assert " ".join(line.split()) in " ".join(examples.replace("\\\n", " ").split())
    assert "Exit status" in help_of()


@each
def test_options_are_grouped(name: str) -> None:
    """No group of options is longer than what fits beside each other; the readers' options come last."""
    with command(name).make_context(name, [], resilient_parsing=True) as context:
        groups = formatting.grouped(command(name), context)
    assert list(groups)[-1] == formatting.OTHER
    assert max(len(rows) for panel, rows in groups.items() if panel != formatting.LAST) <= 9
    if formatting.LAST in groups:
        assert list(groups)[-2] == formatting.LAST
    options = [p for p in command(name).params if p.param_type_name == "option" and not p.is_flag]
    assert not [p.name for p in options if not p.metavar]
    assert not [p.name for p in options if not p.help]


@each
def test_examples_are_understood(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every example names its command, and each of its options is one, with a value that can be read."""
    assert 1 <= len(EXAMPLES[name]) <= 4
    lines = [line for _, line in EXAMPLES[name]]
    assert any(shlex.split(line)[1] == name for line in lines)
    for line in lines:
        parse(line)


def parse(line: str) -> None:
    for part in line.partition(" > ")[0].split(" && "):
        words = [w for w in shlex.split(part)[1:] if w not in ("-q", "-v")]
        with command(words[0]).make_context(words[0], words[1:]) as context:
            assert context.params is not None


def test_examples_of_the_application_are_understood() -> None:
    for _, line in EXAMPLES[""]:
        parse(line)


def test_a_wrong_option_is_named() -> None:
    result = run.invoke(app, ["predict", "a.svs", "-o", "b.zarr", "--modle", "x"])
    assert result.exit_code == 2
    assert "--modle" in result.output


def test_every_family_answers_a_question() -> None:
    assert {n for found in families.QUESTIONS.values() for n in found} == set(registry.FAMILIES)
    said = run.invoke(app, ["models"], env={"COLUMNS": "80"}).output
    for question, found in families.QUESTIONS.items():
        assert question in said
        for name in found:
            assert re.search(rf"^ +{name} ", said, flags=re.MULTILINE), name
    for name in registry.bundled():
        assert name in said


def test_families_of_other_packages_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    more = {"mine": "stpred.models.ridge:Ridge", "gone": "no_such_package:Model"}
    monkeypatch.setattr(registry, "families", lambda: registry.FAMILIES | more)
    others = families.grouped()["Of other packages"]
    assert others["gone"] == "cannot be imported"
    assert others["mine"] == (st.models.Ridge.__doc__ or "").strip().splitlines()[0]


def test_formats_are_those_of_the_readers() -> None:
    from stpred.io import _detect

    assert set(complete.FORMATS) == set(_detect.FORMATS)


def completed(*words: str) -> list[str]:
    """Ask for completions as bash does."""
    env = {
        "_STPRED_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(("stpred", *words)),
        "COMP_CWORD": str(len(words)),
    }
    result = run.invoke(app, [], prog_name="stpred", env=env)
    return result.output.split("\n")[:-1]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("pre",), ["predict"]),
        (("predict", "--pre"), ["--previews"]),
        (("train", "a", "--model", "deep"), ["deepcell", "deepspot", "deepspot2cell"]),
        (("evaluate", "a", "--models", "mean,ridge"), ["mean,ridge", "mean,ridge_best"]),
        (("predict", "a", "--format", "vis"), ["visium", "visium_hd"]),
        (("predict", "a", "--model", "default"), ["default", "default-imagenet"]),
        (("train", "a", "--genes", "r"), ["rmax:"]),
        (("train", "a", "--target", "cou"), ["counts"]),
        (("train", "a", "--precision", "bf"), ["bf16-mixed"]),
        (("train", "a", "--encoder", "morph"), ["morphology", "morphology-multiscale"]),
        (("finetune", "default-"), ["default-imagenet"]),
    ],
)
def test_values_are_completed(words: tuple[str, ...], expected: list[str]) -> None:
    assert sorted(completed(*words)) == expected


def test_folders_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    st.models.save(st.models.load("default"), "mine/tumour")
    Path("mine/other").mkdir()
    assert completed("predict", "a", "--model", "mine/") == ["mine/tumour"]
    assert complete.trained("mine/tu") == [("mine/tumour", "folder of a model")]
    assert complete.trained("nowhere/") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_is_shown(shell: str, tmp_path: Path) -> None:
    """It is what ``--install-completion`` puts into the shell's start file."""
    env = os.environ | {"_STPRED_COMPLETE": f"source_{shell}", "HOME": str(tmp_path)}
    code = "import sys; sys.argv = ['stpred']; from stpred.cli import app; app(prog_name='stpred')"
    said = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert "_STPRED_COMPLETE" in said
    assert f"complete_{shell}" in said


def test_completion_is_quick() -> None:
    """It imports neither PyTorch nor anndata."""
    code = (
        "import sys; from stpred.cli import app; from stpred.cli.help import complete as c\n"
        "c.families(''); c.trained(''); c.encoders(''); c.families_or_trained('')\n"
        "print([m for m in ('torch', 'anndata', 'spatialdata', 'lazyslide_models') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
    assert own_summaries()

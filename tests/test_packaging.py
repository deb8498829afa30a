"""What goes to PyPI, conda-forge, GitHub and Read the Docs agrees with pyproject.toml and is well-formed."""

from __future__ import annotations

import importlib.util
import re
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

import stpred

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
YAML_FILES = sorted(
    p
    for pattern in (
        ".github/**/*.yml",
        ".github/**/*.yaml",
        "recipe/*.yaml",
        "packaging/**/*.yaml",
        ".readthedocs.yaml",
    )
    for p in ROOT.glob(pattern)
)


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_yaml_is_read(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_all_yaml_is_looked_at() -> None:
    assert len(YAML_FILES) >= 8


def test_the_conda_recipe_has_the_dependencies_of_the_project() -> None:
    recipe = read("recipe/recipe.yaml")
    pairs = [re.fullmatch(r"([\w.-]+)(.*)", d).groups() for d in PROJECT["dependencies"]]  # type: ignore[union-attr]
    wanted = {f"{CONDA_NAMES.get(name, name)} {versions}".strip() for name, versions in pairs}
    found = {" ".join(r.split()) for r in recipe["requirements"]["run"] if not r.startswith("python ")}
    assert found == wanted
    assert f">={recipe['context']['python_min']}" == PROJECT["requires-python"]
    assert recipe["context"]["version"] == stpred.__version__
    assert recipe["build"]["noarch"] == "python"
    scripts = [f"{name} = {place}" for name, place in PROJECT["scripts"].items()]
    assert recipe["build"]["python"]["entry_points"] == scripts
    assert recipe["about"]["license"] == PROJECT["license"]


def test_the_entry_of_the_ecosystem_keeps_the_rules_of_its_schema() -> None:
    entry = read("packaging/ecosystem/meta.yaml")
    required = {"name", "description", "project_home", "documentation_home", "install", "license", "tags", "contact"}
    assert required | {"version", "category"} <= entry.keys()
    text = ("name", "description", "project_home", "documentation_home", "tutorials_home", "license", "version")
    assert all(isinstance(entry[k], str) and entry[k].strip() for k in (*text, "test_command"))
    assert all(entry[k].startswith("https://") for k in text if k.endswith("_home"))
    assert entry["category"] == "ecosystem"
    assert entry["install"] == {"pypi": PROJECT["name"]}
    for names in (entry["tags"], entry["contact"]):
        assert names
        assert all(isinstance(n, str) for n in names)
        assert len(set(names)) == len(names)
    assert (entry["license"], entry["version"]) == (PROJECT["license"], stpred.__version__)
    assert entry["project_home"] == PROJECT["urls"]["Source"]
    assert entry["documentation_home"] == PROJECT["urls"]["Documentation"]


def test_the_extra_all_is_all_extras() -> None:
    extras = dict(PROJECT["optional-dependencies"])
    (said,) = extras.pop("all")
    assert set(re.fullmatch(r"stpred\[(.*)\]", said)[1].split(",")) == set(extras)  # type: ignore[index]
    own = {re.match(r"[\w.-]+", d)[0] for d in PROJECT["dependencies"]}  # type: ignore[index]
    assert not own & {"timm", "huggingface-hub", "lazyslide-models"}


@pytest.mark.parametrize("name", ["test", "release"])
def test_actions_are_pinned_to_commits_and_may_do_little(name: str) -> None:
    text = (ROOT / f".github/workflows/{name}.yml").read_text()
    used = re.findall(r"uses: (\S+)(.*)", text)
    assert used
    for action, comment in used:
        assert re.fullmatch(r"[\w-]+/[\w.-]+@[0-9a-f]{40}", action), action
        assert re.fullmatch(r" # v\d+\.\d+\.\d+", comment), action
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    scripts = re.findall(r"(?:scripts|\.ci)/[\w.]+", text)
    assert all((ROOT / s).exists() for s in scripts)
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert set(re.findall(r"run: make ([\w-]+)", text)) <= targets


def test_the_release_is_published_by_trust_and_after_the_check() -> None:
    jobs = read(".github/workflows/release.yml")["jobs"]
    assert any("check_wheel.sh" in step.get("run", "") for step in jobs["build"]["steps"])
    publish = jobs["publish"]
    assert publish["needs"] == "build"
    assert publish["permissions"] == {"id-token": "write"}
    assert publish["environment"]["name"] == "pypi"
    last = publish["steps"][-1]
    assert last["uses"].startswith("pypa/gh-action-pypi-publish@")
    assert "password" not in last.get("with", {})
    assert "id-token" not in str(jobs["build"])


def test_every_python_of_the_classifiers_is_tested() -> None:
    jobs = read(".github/workflows/test.yml")["jobs"]
    tested = {v["python"] for v in jobs["versions"]["strategy"]["matrix"]["include"]}
    stated = {c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d", c)}
    assert tested == stated
    resolutions = {v["resolution"] for v in jobs["versions"]["strategy"]["matrix"]["include"]}
    assert resolutions == {"lowest-direct", "highest"}


def test_issue_forms_have_what_github_needs() -> None:
    for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text())
        if path.name == "config.yml":
            assert all({"name", "url", "about"} == link.keys() for link in form["contact_links"])
            continue
        assert {"name", "description", "body"} <= form.keys(), path.name
        ids = [field["id"] for field in form["body"]]
        assert len(set(ids)) == len(ids)
        for field in form["body"]:
            assert field["type"] in ("input", "textarea", "dropdown", "checkboxes", "markdown")
            assert field["attributes"]["label"]


def test_read_the_docs_builds_what_is_there() -> None:
    config = read(".readthedocs.yaml")
    assert config["version"] == 2
    assert (ROOT / config["sphinx"]["configuration"]).is_file()
    assert config["sphinx"]["fail_on_warning"] is True


def test_archives_are_told_what_they_lack_and_should_not_hold(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("check_contents", ROOT / "scripts" / "check_contents.py")
    check: Any = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(check)  # type: ignore[union-attr]
    source = ROOT / "src" / "stpred"
    files = [p for p in source.rglob("*") if p.is_file() and not any(n in p.as_posix() for n in check.NEVER)]

    def wheel(leave_out: str = "", more: str = "") -> Path:
        path = tmp_path / "stpred-0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for name in (f"stpred/{p.relative_to(source).as_posix()}" for p in files):
                if name != leave_out:
                    archive.writestr(name, b"")
            if more:
                archive.writestr(more, b"")
        return path

    assert check.faults_of(wheel(), ROOT) == []
    assert check.faults_of(wheel("stpred/py.typed"), ROOT) == ["lacks stpred/py.typed"] * 2
    css = next(f"stpred/{p.relative_to(source).as_posix()}" for p in files if p.suffix == ".css")
    assert check.faults_of(wheel(css), ROOT) == [f"lacks {css}"]
    assert check.faults_of(wheel(more="tests/test_packaging.py"), ROOT) == ["holds tests/test_packaging.py"]

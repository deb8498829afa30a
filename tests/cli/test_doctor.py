"""``stpred doctor``: what it finds, with and without what is optional, and when something is broken."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner

import stpred as st
from stpred.cli import app
from stpred.cli.doctor import machine, packages, weights
from stpred.cli.doctor.finding import BROKEN, NOTE, OK, Finding

run = CliRunner()


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the doctor asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def reported(*arguments: str, status: int = 0) -> dict[str, dict[str, dict[str, Any]]]:
    result = run.invoke(app, ["doctor", "--json", *arguments])
    assert result.exit_code == status, result.output
    said = json.loads(result.output)
    assert said.pop("ok") is (status == 0)
    return {title: {f["name"]: f for f in findings} for title, findings in said.items()}


def test_what_is_reported(tmp_path: Path) -> None:
    (tmp_path / "features.npy").write_bytes(b"x" * 5000)
    said = reported("--cache", str(tmp_path))
    assert said["versions"]["stpred"]["value"] == st.__version__
    required = {r.name for r in packages.requirements()[0]}
    assert required <= set(said["versions"])
    assert {"torch", "spatialdata", "zarr"} <= required
    assert said["devices"]["CPU"]["details"]["cores"] >= 1
    assert 0 < said["devices"]["cpu"]["details"]["seconds"] < 60
    assert said["folders"]["features"]["details"]["bytes"] == 5000
    assert said["folders"]["features"]["details"]["files"] == 1
    assert said["settings"]["batch_size"]["value"] == str(st.settings.batch_size)
    assert set(said["extras"]) == set(packages.requirements()[1])
    assert said["extras"]["encoders"]["details"]["install"] == "pip install 'stpred[encoders]'"
    assert list(said["extras"])[-1] == "all"
    assert "encoder: morphology, tiles of 112 and 448 um" in said["weights"]["model default"]["value"]
    assert {f"model {n}" for n in ("default", "default-imagenet")} <= set(said["weights"])
    assert said["weights"]["model default"]["status"] == OK
    assert said["weights"]["encoder morphology"]["details"]["seconds_per_tile"] > 0
    assert said["weights"]["nucleus network"]["status"] == OK


def test_every_extra_says_what_it_brings() -> None:
    assert set(packages.requirements()[1]) <= set(packages.BRINGS)


def test_a_base_install_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without timm and lazyslide-models nothing is broken: notes say what is absent and what installs it."""
    for module in ("timm", "lazyslide_models", "huggingface_hub", "openslide", "wsidata"):
        monkeypatch.setitem(sys.modules, module, None)
    said = reported()
    assert "downloaded weights" not in said["folders"]
    for section, name in (("weights", "timm"), ("weights", "lazyslide-models"), ("programs", "OpenSlide")):
        assert said[section][name]["status"] == NOTE
        assert "pip install 'stpred[" in said[section][name]["hint"]
    assert said["extras"]["encoders"]["value"] == "lacks lazyslide-models, timm"
    assert said["weights"]["model default"]["status"] == OK
    assert said["weights"]["model default-imagenet"]["status"] == NOTE
    assert "stpred[" in said["weights"]["model default-imagenet"]["hint"]


def test_what_is_broken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    base = [Requirement("numpy"), Requirement("rich>=99"), Requirement("no-such-package")]
    monkeypatch.setattr(packages, "requirements", lambda: (base, {}))
    monkeypatch.setattr(weights, "weights", lambda: iter([Finding("model default", "does not load", BROKEN)]))
    monkeypatch.setattr(weights, "programs", lambda: iter(()))
    result = run.invoke(app, ["doctor"])
    assert result.exit_code == 1
    said = " ".join(result.output.split())
    assert "3 broken: no-such-package, rich, model default." in said
    assert "pip install --upgrade 'rich>=99'" in said
    assert "All that stpred needs works" not in said


def test_a_package_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "halfbuilt.py").write_text("raise OSError('libgone.so: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(packages.metadata, "version", lambda _: "1.0")
    found = packages.check(Requirement("halfbuilt"))
    assert found.status == BROKEN
    assert "libgone.so" in found.hint


def test_a_damaged_model_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import stpred.nuclei
    from stpred.models import registry

    monkeypatch.setattr(registry, "BUNDLED", tmp_path)
    (tmp_path / "default").mkdir()
    (tmp_path / "default" / "config.json").write_text("{")
    assert weights._model("default").status == BROKEN
    monkeypatch.setattr(stpred.nuclei, "__path__", [str(tmp_path)])
    (tmp_path / "_weights").mkdir()
    (tmp_path / "_weights" / "nuclei.json").write_text('{"sha256": "0"}')
    (tmp_path / "_weights" / "nuclei.safetensors").write_bytes(b"short")
    assert weights._nuclei().status == BROKEN


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert machine._folder("features", tmp_path / "file").status == BROKEN
    found = machine._folder("features", tmp_path / "new" / "deep")
    assert found.status != BROKEN
    assert "not made yet" in found.value


def test_downloads_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = tmp_path / "models--owner--net" / "snapshots" / "abc" / "model.safetensors"
    weight.parent.mkdir(parents=True)
    weight.write_bytes(b"x")
    (tmp_path / "models--owner--begun").mkdir()
    monkeypatch.setattr(weights, "hub_folder", lambda: tmp_path)
    assert weights._downloaded().details["repositories"] == ["owner/net"]

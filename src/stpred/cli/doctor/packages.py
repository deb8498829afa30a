"""Installed packages against what stpred requires, and what each extra would add."""

from __future__ import annotations

import contextlib
import importlib
import io
import platform
import sys
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from importlib.util import find_spec

from packaging.requirements import Requirement

import stpred
from stpred._core.files import reason
from stpred.cli.doctor.finding import BROKEN, NOTE, Finding, Section

FIRST = ("torch", "spatialdata", "anndata", "scanpy", "squidpy")
"""Packages that are shown first."""

MODULES = {
    "lightning-fabric": "lightning_fabric",
    "openslide-bin": "openslide_bin",
    "pillow": "PIL",
    "scikit-image": "skimage",
    "scikit-learn": "sklearn",
    "scikit-misc": "skmisc",
}
"""Modules of packages whose names differ in more than a hyphen."""

BRINGS = {
    "all": "everything that the other extras bring",
    "analysis": "pathway activity and enrichment (decoupler), attribution (captum), survival models (lifelines)",
    "encoders": "encoders by name: any vision model of timm, pathology models of lazyslide-models",
    "hub": "models and encoders from the Hugging Face hub, and pushing yours",
    "imagenet": "encoders with ImageNet weights without a download, and the bundled model default-imagenet",
    "wsi": "scanner formats: mrxs, ndpi, scn, bif and others that need OpenSlide",
}
"""What each extra is for."""


def requirements() -> tuple[list[Requirement], dict[str, list[Requirement]]]:
    """Return what stpred requires, and what each extra adds; nothing where stpred is not installed."""
    try:
        texts = metadata.requires("stpred") or []
    except metadata.PackageNotFoundError:
        return [], {}
    base: list[Requirement] = []
    extras: dict[str, list[Requirement]] = defaultdict(list)
    for requirement in map(Requirement, texts):
        marker = requirement.marker
        if marker is None or marker.evaluate({"extra": ""}):
            base.append(requirement)
            continue
        for extra in metadata.metadata("stpred").get_all("Provides-Extra") or []:
            if marker.evaluate({"extra": extra}):
                extras[extra].append(requirement)
    return base, dict(extras)


def versions() -> Section:
    """Yield stpred, Python and every package that stpred requires, each imported once."""
    yield Finding("stpred", stpred.__version__, details={"path": str(next(iter(stpred.__path__)))})
    yield Finding("Python", platform.python_version(), details={"executable": sys.executable})
    yield Finding("system", platform.platform())
    base, _ = requirements()
    if not base:
        yield Finding("metadata", "stpred is not installed", NOTE, "install it, so that its requirements are known")
        base = [Requirement(name) for name in FIRST]
    for requirement in sorted(base, key=_order):
        found = check(requirement)
        yield replace(found, details={"required": True}) if found.name not in FIRST else found


def extras() -> Section:
    """Yield the extras, what each brings and how to install it."""
    for extra, needed in sorted(requirements()[1].items(), key=lambda item: (item[0] == "all", item)):
        found = [check(r, imported=False) for r in needed]
        wrong = [f for f in found if f.status == BROKEN]
        # Of a clone, too: the installed stpred satisfies pip, which looks for the extra's packages alone.
        install = f"pip install 'stpred[{extra}]'"
        brings = BRINGS.get(extra, "")
        details = {"install": install, "brings": brings, "packages": {f.name: f.value for f in found}}
        if not wrong:
            said = "installed" if extra == "all" else ", ".join(f"{f.name} {f.value}" for f in found)
            yield Finding(extra, said, hint=brings, details=details | {"installed": True})
            continue
        missing = ", ".join(f.name for f in wrong)
        yield Finding(extra, f"lacks {missing}", NOTE, f"{brings}: {install}", details | {"installed": False})


def check(requirement: Requirement, *, imported: bool = True) -> Finding:
    """Return the version of a package; broken if it is absent, too old, or (with `imported`) cannot be imported."""
    name = requirement.name
    again = f"pip install --upgrade '{name}{requirement.specifier}'"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(name, "not installed", BROKEN, again)
    if requirement.specifier and not requirement.specifier.contains(version, prereleases=True):
        return Finding(name, version, BROKEN, f"stpred needs {requirement.specifier}: {again}")
    if not imported:
        there = is_importable(module_of(name))
        return Finding(name, version) if there else Finding(name, "not importable", BROKEN, again)
    if failure := import_failure(module_of(name)):
        return Finding(name, version, BROKEN, f"cannot be imported ({failure}): pip install --force-reinstall {name}")
    return Finding(name, version)


def module_of(name: str) -> str:
    """Return the module that a package is imported as."""
    return MODULES.get(name, name.replace("-", "_"))


def import_failure(module: str) -> str | None:
    """Import a module; return why that fails, or None."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            importlib.import_module(module)
        except Exception as error:  # noqa: BLE001  # whatever a package raises while it is imported
            return f"{type(error).__name__}: {reason(error)}"
    return None


def is_importable(module: str) -> bool:
    """Return whether the import system finds a module; it is not run."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _order(requirement: Requirement) -> tuple[int, str]:
    names: Sequence[str] = FIRST
    return (names.index(requirement.name) if requirement.name in names else len(names), requirement.name)

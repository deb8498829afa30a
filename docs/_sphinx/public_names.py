"""Objects are documented, and linked from docstrings and signatures, under the names that users import them by."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import TYPE_CHECKING, Any

import stpred

if TYPE_CHECKING:
    from docutils.nodes import Element, TextElement
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

PACKAGES = ("io", "pp", "tl", "pl", "models", "encoders", "metrics", "datasets", "testing")


def public_names() -> dict[str, Any]:
    """Return each public object by the name that users import it by, such as ``stpred.tl.train``.

    A family's ``Config`` is public, too.
    """
    names = {f"stpred.{n}": getattr(stpred, n) for n in stpred.__all__}
    names = {n: o for n, o in names.items() if not inspect.ismodule(o) and n != "stpred.__version__"}
    for package in PACKAGES:
        module = import_module(f"stpred.{package}")
        names |= {f"stpred.{package}.{n}": getattr(module, n) for n in module.__all__}
    families = {n: o for n, o in names.items() if n.startswith("stpred.models.") and inspect.isclass(o)}
    for name, family in families.items():
        config = vars(family).get("Config")
        if inspect.isclass(config) and config not in families.values():
            names[f"{name}.Config"] = config
    return names


def _rename(names: dict[str, Any]) -> dict[str, str]:
    """Give classes the place they are public in; return public names by former ones, full and short."""
    public: dict[str, str] = {}
    for name, thing in names.items():
        if not (inspect.isclass(thing) or inspect.isfunction(thing)) or not thing.__module__.startswith("stpred"):
            continue
        for former in (f"{thing.__module__}.{thing.__qualname__}", thing.__name__):
            public.setdefault(former, name)
        if inspect.isclass(thing):
            package, _, qualified = name.removeprefix("stpred.").partition(".")
            thing.__module__ = f"stpred.{package}" if package in PACKAGES else "stpred"
            thing.__qualname__ = qualified if package in PACKAGES else package
            thing.__name__ = name.rpartition(".")[2]
    return public


def _resolve(app: Sphinx, env: BuildEnvironment, node: Element, content: TextElement) -> Element | None:
    """Link a name that is no public one, such as ``Model`` or ``stpred.models.base.Model``, to the public one."""
    if node.get("refdomain") != "py":
        return None
    target = node.get("reftarget", "").removeprefix("~")
    head, _, member = target.rpartition(".")
    names: dict[str, str] = app.public_names  # type: ignore[attr-defined]
    found = names.get(target) or (f"{names[head]}.{member}" if head in names else None)
    if found is None or found == target:
        return None
    domain = env.get_domain("py")
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", found, node, content)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.public_names = _rename(public_names())  # type: ignore[attr-defined]
    app.connect("missing-reference", _resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""Parts of the cards (``README.md``) of repositories on the hub: the YAML header, sections and tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stpred._core.checks import InputError

_LICENCES = frozenset(
    "apache-2.0 mit bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear isc zlib unlicense artistic-2.0 bsl-1.0 mpl-2.0 "
    "gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 agpl-3.0 osl-3.0 afl-3.0 ecl-2.0 eupl-1.1 eupl-1.2 epl-2.0 ms-pl wtfpl "
    "cc cc0-1.0 cc-by-2.0 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 "
    "cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 openrail "
    "creativeml-openrail-m bigscience-openrail-m odbl odc-by pddl".split()
)
"""Identifiers that the hub knows; others are "other" with a name."""


def header(fields: Mapping[str, Any]) -> str:
    """Return the YAML block that the hub reads; fields of None are left out."""
    import yaml

    said = yaml.safe_dump(
        {k: v for k, v in fields.items() if v is not None}, sort_keys=False, allow_unicode=True, width=1000
    )
    return f"---\n{said}---"


def licence_fields(licence: str) -> dict[str, str]:
    """Return the fields of the header for a licence."""
    name = licence.strip().lower() if isinstance(licence, str) else ""
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+ -]{0,99}", name):
        raise InputError(f"`licence` must be an SPDX identifier such as 'cc-by-4.0', got {licence!r}.")
    if name in _LICENCES:
        return {"license": name}
    return {"license": "other", "license_name": name.replace(" ", "-")}


def metric(kind: str, name: str, value: float) -> dict[str, Any]:
    """Return one score of the header's model-index."""
    return {"type": kind, "name": name, "value": round(float(value), 4)}


def section(title: str, body: str) -> str:
    """Return a section with its heading."""
    return f"## {title}\n\n{body}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def text_of(value: Any) -> str:
    """Return a name as plain text of a table's cell: on one line, without marks that Markdown or HTML would read."""
    plain = " ".join(str(value).split())
    return re.sub(r"([|\\<>`*\[\]])", lambda m: f"&#{ord(m[0])};", plain)

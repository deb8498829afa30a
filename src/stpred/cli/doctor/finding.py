"""What an inspection finds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

OK, NOTE, BROKEN = "ok", "note", "broken"
"""It works; it is optional and absent, or there is something to know; it has to be repaired."""


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes
    ----------
    name
        What was looked at, such as a package.
    value
        What was found, such as its version.
    status
        `OK`, `NOTE` or `BROKEN`.
    hint
        What to do or to know.
    details
        Numbers and names for programs (``--json``).
    """

    name: str
    value: str
    status: str = OK
    hint: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return asdict(self)


Section = Iterator[Finding]

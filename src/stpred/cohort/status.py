"""How far a run is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from stpred.cohort.locks import client_of
from stpred.cohort.manifest import COMPLETE, FAILED, OWN, PENDING, Record, read_manifest, records_of

_RECENT = 50
"""Slides whose pace the estimate is of."""


@dataclass(frozen=True)
class Status:
    """How far a run is.

    Attributes
    ----------
    records
        Of all slides.
    client
        Who runs it now, such as "process 12 on host"; None where nobody does.
    left_s
        Seconds until it is done at the pace of the last slides; None where it is not known.
    """

    records: list[Record]
    client: str | None
    left_s: float | None

    @classmethod
    def of(cls, folder: Path) -> Status:
        """Return that of a run's folder."""
        records = records_of(read_manifest(folder))
        client = client_of(folder / OWN)
        return cls(records, client, None if client is None else _left_s(records))

    def n(self, status: str) -> int:
        """Return how many slides are of a status."""
        return sum(r.status == status for r in self.records)


def _left_s(records: list[Record]) -> float | None:
    ends = sorted(datetime.fromisoformat(r.finished) for r in records if r.finished and r.status in (COMPLETE, FAILED))
    pending = sum(r.status == PENDING for r in records)
    ends = ends[-_RECENT:]
    if len(ends) < 2 or not pending:
        return None
    pace = (datetime.now(UTC) - ends[0]).total_seconds() / (len(ends) - 1)
    return pace * pending

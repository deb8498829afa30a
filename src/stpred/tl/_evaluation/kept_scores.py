"""Scores of finished folds on disk, each file named by everything that they depend on."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stpred import data, training
from stpred._core.checks import InputError
from stpred._core.disk.staging import staged_file
from stpred._core.files import readable
from stpred.models.base import BaseConfig

logger = logging.getLogger("stpred")

_MARK = "# sha256 "
"""What the last line of a file of scores begins with."""


class KeptScores:
    """Scores of a model in a fold on disk."""

    def __init__(self, folder: str | Path | None, decides: list[Any]) -> None:
        key = hashlib.sha256(json.dumps(decides, default=_plain, sort_keys=True).encode()).hexdigest()[:20]
        self.path = None if folder is None else Path(folder) / f"scores-{key}.csv"

    def load(self) -> pd.DataFrame | None:
        """Return what is there, if it is."""
        if self.path is None or not self.path.is_file():
            return None
        kinds = {"gene": str, "slide": str, "metric": str, "target": str, "chosen": str, "trained_on": str}
        try:
            with readable(self.path, what="file of a fold's scores"):
                text, _, mark = self.path.read_text(encoding="utf-8").rpartition(_MARK)
                if mark.strip() != _digest(text):
                    raise ValueError("it does not hold what was written")
                frame = pd.read_csv(
                    io.StringIO(text),
                    dtype=kinds,
                    float_precision="round_trip",
                    keep_default_na=False,
                    na_values={"value": [""]},
                )
        except InputError as error:
            logger.warning("%s The fold is scored anew.", error)
            return None
        logger.info("A finished fold was taken from %s.", self.path)
        return frame

    def save(self, frame: pd.DataFrame) -> None:
        """Keep it; the file appears whole."""
        if self.path is None:
            return
        text = frame.to_csv(index=False)
        with staged_file(self.path, what="file of a fold's scores") as part:
            part.write_text(f"{text}{_MARK}{_digest(text)}\n", encoding="utf-8")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _plain(value: Any) -> Any:
    """Return a value as JSON: configs by their fields, folds by rows."""
    if isinstance(value, data.Fold):
        return [value.name, value.train, value.test]
    if isinstance(value, BaseConfig):
        return [value.family, value.to_dict()]
    if isinstance(value, type):
        return value.__name__
    return value.tolist() if isinstance(value, np.ndarray) else str(value)


def identities(regions: Mapping[str, data.Region]) -> dict[str, str]:
    """Return a digest of each slide's image, locations, counts and cells."""
    found = {}
    for slide, r in regions.items():
        digest = hashlib.blake2b(digest_size=10)
        cells = None if r.cells is None else (r.cells.region.shapes_key, r.cells.region.coords_um, r.cells.links)
        genes = None if r.var is None else list(r.var.index)
        for value in (r.pyramid.fingerprint, r.coordinate_system, r.shapes_key, r.coords_um, genes, r.counts):
            training.add_to_digest(digest, value)
        for value in cells or ():
            training.add_to_digest(digest, value)
        found[slide] = digest.hexdigest()
    return found

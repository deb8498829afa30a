"""Predictors of lazyslide-models: of features (``feature_prediction``) and of tiles (``tile_prediction``)."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stpred._core.checks import InputError, MissingFileError, listing
from stpred._core.settings import settings
from stpred.encoders.modules import digest
from stpred.pretrained.hub import repository

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX = "lazyslide/"
TASKS = {"feature_prediction": "features", "tile_prediction": "tiles"}

_ROWS = 4096
"""Locations whose features are mapped at a time."""

_SYMBOLS = "symbol2ensembl.json"
"""File that names the outputs of predictors whose outputs are Ensembl ids."""

NOTES = {
    "path2space": "its tiles were normalised by Macenko's method in training: stpred.pp.stain_normalize(sdata, "
    "method='macenko') first",
}
"""What a user must know beside the card."""

PITCH_UM = {"stpath": 100.0}
"""Distance of the locations that predictors of whole slides were trained on, where it is known."""


def installed() -> bool:
    """Return whether lazyslide-models can be imported."""
    return find_spec("lazyslide_models") is not None


def predictors() -> dict[str, type[Any]]:
    """Return the predictors of the registry, by name."""
    from lazyslide_models import MODEL_REGISTRY

    return {name: cls for name, cls in MODEL_REGISTRY.items() if task_of(cls) is not None}


def task_of(cls: Any) -> str | None:
    """Return which of the two tasks a class of the registry is for, or None."""
    task = getattr(cls, "task", None)
    tasks = [getattr(t, "value", t) for t in (task if isinstance(task, (list, tuple)) else [task])]
    return next((t for t in tasks if t in TASKS), None)


def card(name: str, cls: Any) -> dict[str, Any]:
    """Return what the registry says of a predictor, JSON-able."""
    said = {
        "licence": " and ".join(_several(getattr(cls, "license", None))) or "unknown",
        "licence_url": " and ".join(_several(getattr(cls, "license_url", None))) or None,
        "commercial": getattr(cls, "commercial", None),
        "gated": bool(getattr(cls, "is_gated", False)),
        "url": getattr(cls, "hf_url", None) or getattr(cls, "github_url", None),
        "paper": getattr(cls, "paper_url", None),
        "package": f"lazyslide-models {_version()}",
        "note": NOTES.get(name),
    }
    return {k: v for k, v in said.items() if v is not None}


class LazySlidePredictor:
    """A predictor of lazyslide-models in memory.

    Parameters
    ----------
    name
        In the registry.
    weights
        A file or folder; None: the Hugging Face hub.
    genes
        Outputs that are wanted; passed on where it saves the others.
    gene_ids
        Symbols to Ensembl ids, by which outputs that are ids are named, or symbols get ids.
    settings
        Further keywords of the class.
    """

    def __init__(
        self,
        name: str,
        *,
        weights: Path | None,
        genes: Sequence[str] | None,
        gene_ids: Mapping[str, str] | None,
        settings: Mapping[str, Any],
    ) -> None:
        self.name = name
        cls = predictors()[name]
        self.kind = TASKS[str(task_of(cls))]
        self.whole_slide = bool(getattr(cls, "whole_slide", False))
        self.needs_coords = bool(getattr(cls, "needs_coords", False))
        self._model, files = _build(name, cls, weights, genes, settings)
        module = getattr(self._model, "model", None)
        state = getattr(module, "state_dict", None)
        self.revision = f"lazyslide-models {_version()}" if state is None else digest(state())
        self._transform = self._model.get_transform()
        self.reference = getattr(self._model, "reference_features", None)
        self._files, self._gene_ids = files, dict(gene_ids or {})
        self.keys: list[str] = []
        self.symbols: list[str] = []
        self.gene_ids: list[str | None] = []

    @property
    def tile_px(self) -> int:
        """Edge of the tile that its transform takes as it is."""
        for step in getattr(self._transform, "transforms", ()):
            if (size := getattr(step, "size", None)) is not None:
                return int(size if isinstance(size, int) else size[0])
        constraint = getattr(type(self._model), "input_constraint", None)
        return int(getattr(constraint, "min", None) or 224)

    def name_outputs(self, width: int) -> None:
        """Ask for the outputs' names with blank input of this width; refuse outputs that are no numbers."""
        blank = np.zeros((4, width), dtype=np.float32 if self.kind == "features" else np.uint8)
        coords = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=np.float64) * 100 if self.needs_coords else None
        found = self._outputs(blank, coords)
        if odd := [k for k, v in found.items() if np.asarray(v).dtype.kind not in "fiub" or np.shape(v) != (4,)]:
            raise InputError(
                f"{PREFIX}{self.name} gives {listing(odd, most=4)}, which are no numbers for each location, so it is "
                "no predictor of values; see its own package."
            )
        self.keys = [str(k) for k in found]
        self.symbols, self.gene_ids = _named(self.keys, self._files, self._gene_ids)

    def predict(self, inputs: NDArray[Any], coords: NDArray[np.float64] | None) -> NDArray[np.float32]:
        """Map (n, width) features or pixels to (n, G) values."""
        each = len(inputs) if self.whole_slide else _ROWS if self.kind == "features" else max(settings.batch_size, 1)
        parts = []
        for start in range(0, len(inputs), max(each, 1)):
            rows = slice(start, start + each)
            found = self._outputs(inputs[rows], None if coords is None else coords[rows])
            if list(found) != self.keys:
                raise InputError(f"{PREFIX}{self.name} gave other outputs than before.")
            parts.append(np.stack([np.asarray(v, dtype=np.float32) for v in found.values()], axis=1))
        return np.concatenate(parts)

    def to(self, device: Any) -> None:
        """Move it."""
        self._model.to(device)

    def _outputs(self, inputs: NDArray[Any], coords: NDArray[np.float64] | None) -> dict[str, Any]:
        import torch

        given: Any = np.ascontiguousarray(inputs, dtype=np.float32) if self.kind == "features" else self._tiles(inputs)
        try:
            with torch.inference_mode():
                return dict(self._model.predict(given, coords) if self.needs_coords else self._model.predict(given))
        except (ValueError, RuntimeError) as error:
            hint = "; with `pitch_um` of stpred.models.get, finer regions are predicted among points at that distance"
            raise InputError(
                f"{PREFIX}{self.name} cannot predict {len(inputs)} locations: {error}"
                f"{hint if self.whole_slide else ''}."
            ) from error

    def _tiles(self, pixels: NDArray[Any]) -> Any:
        """Return what the predictor takes, of (n, 3 * px * px) pixels."""
        import torch
        from PIL import Image

        side = int(np.sqrt(pixels.shape[1] // 3))
        tiles = np.ascontiguousarray(pixels, dtype=np.uint8).reshape(len(pixels), side, side, 3)
        device = next((p.device for p in getattr(self._model.model, "parameters", tuple)()), None)
        if self._transform is None:
            batch = torch.from_numpy(tiles.transpose(0, 3, 1, 2).copy()).float() / 255
        else:
            batch = torch.stack([torch.as_tensor(self._transform(Image.fromarray(t))) for t in tiles])
        return batch if device is None else batch.to(device)


def _build(
    name: str, cls: Any, weights: Path | None, genes: Sequence[str] | None, given: Mapping[str, Any]
) -> tuple[Any, dict[str, Path]]:
    """Construct a model of the registry; the error names where to get weights that cannot be fetched."""
    if "token" in given:
        raise InputError("stpred never logs in: log in to Hugging Face yourself, or pass local `weights`.")
    if weights is not None and not weights.exists():
        raise MissingFileError(f"There is no file or folder `weights`={str(weights)!r}.")
    known = inspect.signature(cls.__init__).parameters
    own = {k for k in known if k not in ("self", "token", "model_path", "genes", "gene_voc_path")}
    if unknown := sorted(set(given) - own):
        raise InputError(f"{PREFIX}{name} has no settings {listing(unknown)}; it takes {listing(sorted(own))}.")
    kwargs = dict(given)
    if genes is not None and "genes" in known:
        kwargs["genes"] = list(genes)
    if weights is not None and weights.is_file():
        if "model_path" not in known:
            raise InputError(f"{PREFIX}{name} takes the folder of its weights, not a file: {str(weights)!r}.")
        kwargs["model_path"] = str(weights)
    folder = None if weights is None else weights.parent if weights.is_file() else weights
    with _explained(name, cls, weights), repository(folder) as files:
        return cls(**kwargs), files


@contextmanager
def _explained(name: str, cls: Any, weights: Path | None) -> Iterator[None]:
    """Turn whatever goes wrong in another package's loading code into a message that says what to do."""
    try:
        yield
    except InputError:
        raise
    except ImportError as error:
        raise InputError(f"{PREFIX}{name} needs a package that is not installed: {error}") from error
    except Exception as error:
        if weights is not None:
            raise InputError(f"`weights`={str(weights)!r} cannot be used for {PREFIX}{name}: {error}") from error
        said = card(name, cls)
        why = (
            f"are gated (licence {said['licence']}): request access at {said.get('url')} and log in to Hugging Face "
            "yourself"
            if said["gated"]
            else f"could not be fetched ({type(error).__name__}; see {said.get('url')})"
        )
        raise InputError(
            f"The weights of {PREFIX}{name} {why}, or download their files on a machine that can and pass "
            f"stpred.models.get({PREFIX + name!r}, weights=<their folder>)."
        ) from error


def _named(
    keys: Sequence[str], files: Mapping[str, Path], gene_ids: Mapping[str, str]
) -> tuple[list[str], list[str | None]]:
    """Return symbols and ids of outputs, which may be either; names are distinct."""
    of_id: dict[str, str] = {}
    by_symbol = dict(gene_ids)
    for file in (path for asked, path in files.items() if Path(asked).name == _SYMBOLS):
        for symbol, found in json.loads(file.read_text(encoding="utf-8")).items():
            by_symbol.setdefault(str(symbol), str(found))
    for symbol, found in by_symbol.items():  # the user's names first
        of_id.setdefault(found.partition(".")[0], symbol)
    symbols, ids = [], []
    for key in keys:
        is_id = key.startswith("ENS") and key.partition(".")[0][-6:].isdigit()
        symbols.append(of_id.get(key.partition(".")[0], key) if is_id else key)
        ids.append(key if is_id else by_symbol.get(key))
    taken: set[str] = set()
    for i, (symbol, key) in enumerate(zip(symbols, keys, strict=True)):
        symbols[i] = key if symbol in taken else symbol
        taken.add(symbols[i])
    return symbols, ids


def _several(value: str | Sequence[str] | None) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _version() -> str:
    try:
        return version("lazyslide-models")
    except PackageNotFoundError:  # a copy beside the packages
        return "unknown"

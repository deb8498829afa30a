"""Models on disk: ``config.json`` + ``model.safetensors`` in one folder, written whole, loaded without pickle."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from stpred._core.checks import InputError, MissingFileError, listing, whole
from stpred._core.weights import CONFIG, WEIGHTS, write_folder
from stpred.models import _registry
from stpred.models._base import FORMAT_VERSION, Model, Record


def save(model: Model, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a trained model as a folder.

    Parameters
    ----------
    model
        What `tl.train` returned.
    path
        Folder to make.
    overwrite
        Replace an existing folder.

    Returns
    -------
    The folder; it appears whole or not at all.

    Examples
    --------
    >>> import stpred as st, tempfile, pathlib
    >>> folder = pathlib.Path(tempfile.mkdtemp()) / "copy"
    >>> st.models.save(st.models.load("default"), folder).name
    'copy'
    """
    path = Path(path)
    if not isinstance(model, Model):
        raise InputError(f"`model` must be a trained model, got {type(model).__name__}.")
    if not model.record.genes:
        raise InputError(f"The {model.family!r} model is not trained, so there is nothing to keep.")
    if path.exists() and not overwrite:
        raise InputError(f"{str(path)!r} exists; pass overwrite=True to replace the model.")
    if path.exists() and not (path.is_dir() and (path / CONFIG).exists()):
        raise InputError(f"{str(path)!r} is not a model folder, so it is not overwritten.")
    facts = {
        "format_version": FORMAT_VERSION,
        "family": model.family,
        "id": model.id,
        "config": model.config.to_dict(),
        "n_features": model.n_features,
        "record": asdict(model.record),
    }
    return write_folder(path, facts, model.state_dict())


def load(path: str | Path) -> Model:
    """Load a trained model.

    Parameters
    ----------
    path
        Folder that `save` wrote, or the name of a bundled model.

    Raises
    ------
    InputError
        If the folder is no model, of another format version, or lacks tensors.

    Examples
    --------
    >>> import stpred as st
    >>> st.models.load("default").record.target
    'log1p_cp10k'
    """
    folder = _registry.BUNDLED / str(path) if str(path) in _registry.bundled() else Path(path)
    if not (folder / CONFIG).is_file():
        raise MissingFileError(
            f"No model at {str(path)!r} (a folder with {CONFIG} and {WEIGHTS} is needed); bundled: "
            f"{listing(_registry.bundled())}."
        )
    try:
        facts = json.loads((folder / CONFIG).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{str(folder / CONFIG)!r} is not valid JSON: {error}.") from error
    found = facts.get("format_version") if isinstance(facts, dict) else None
    if found != FORMAT_VERSION:
        raise InputError(
            f"Model {str(path)!r} has format version {found!r}, this stpred reads {FORMAT_VERSION}; "
            f"{'upgrade stpred' if isinstance(found, int) and found > FORMAT_VERSION else 'train or save it again'}."
        )
    if missing := {"family", "config", "n_features", "record"} - facts.keys():
        raise InputError(f"{str(folder / CONFIG)!r} lacks {sorted(missing)}.")
    family = _registry.family(facts["family"])
    record = _record(facts["record"], folder / CONFIG)
    if not isinstance(facts["config"], dict):
        raise InputError(f"{str(folder / CONFIG)!r} holds no settings under 'config' but {facts['config']!r}.")
    width = whole(facts["n_features"], name=f"n_features of {folder / CONFIG}")
    model = family(family.Config.parse(facts["config"]), n_features=width, n_genes=len(record.genes))
    model.record = record
    _load_tensors(model, folder / WEIGHTS)
    return model.eval()


def _record(facts: Any, path: Path) -> Record:
    """Return the record of a model, after checking that its parts are there and fit each other."""
    if not isinstance(facts, dict):
        raise InputError(f"{str(path)!r} holds no facts under 'record' but {facts!r}.")
    known = {f.name for f in fields(Record)}
    if unknown := sorted(set(facts) - known):
        raise InputError(f"The record of {str(path)!r} has unknown fields {unknown}; known are {sorted(known)}.")
    if lacking := [k for k in ("name", "genes") if not facts.get(k)]:
        raise InputError(f"The record of {str(path)!r} lacks {lacking}.")
    if odd := [k for k, v in facts.get("var", {}).items() if len(v) != len(facts["genes"])]:
        raise InputError(
            f"The record of {str(path)!r} has {len(facts['genes'])} genes, but not as many values of {odd}."
        )
    return Record(**facts)


def _load_tensors(model: Model, path: Path) -> None:
    """Fill the model's tensors, naming those that are missing, unknown or of another shape."""
    if not path.is_file():
        raise MissingFileError(f"Model file {str(path)!r} is missing.")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{str(path)!r} is not a readable safetensors file: {error}.") from error
    expected = model.state_dict()
    if missing := sorted(expected.keys() - tensors.keys()):
        raise InputError(f"Model file {str(path)!r} lacks tensors {listing(missing)}.")
    if unknown := sorted(tensors.keys() - expected.keys()):
        raise InputError(
            f"Model file {str(path)!r} has tensors that {model.family!r} does not know: {listing(unknown)}."
        )
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise InputError(
                f"Tensor {name!r} of {str(path)!r} has shape {tuple(tensor.shape)}, {model.family!r} with this "
                f"config needs "
                f"{tuple(expected[name].shape)}."
            )
    model.load_state_dict(tensors)

"""Models on disk: ``config.json`` + ``model.safetensors`` in one folder, written whole, loaded without pickle."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file

from stpred._core.checks import InputError, MissingFileError, check_parent, listing, whole
from stpred._core.disk import hub
from stpred._core.disk.weights import CONFIG, WEIGHTS, check_tensors, check_values, write_folder
from stpred._core.files import read_json, readable
from stpred.models import registry
from stpred.models._files import stored
from stpred.models.base import FORMAT_VERSION, Model


def save(model: Model, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a trained model as a folder.

    Parameters
    ----------
    model
        A trained model.
    path
        New folder.
    overwrite
        Replace an existing folder.

    Returns
    -------
    The folder, written atomically.

    Raises
    ------
    InputError
        If the model is not trained, or something is at the path that may not be replaced.

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
    check_parent(path)
    if path.exists() and not overwrite:
        raise InputError(f"{str(path)!r} exists; pass overwrite=True to replace the model.")
    if path.exists() and not (path.is_dir() and (path / CONFIG).exists()):
        raise InputError(f"{str(path)!r} is not a model folder, so it is not overwritten.")
    return write_folder(path, model.stored(), model.state_dict(), what="model")


def load(path: str | Path) -> Model:
    """Load a trained model.

    Parameters
    ----------
    path
        Folder that `save` wrote; the name of a bundled model; or ``"hf:owner/name"`` or ``"hf:owner/name@revision"``
        of the Hugging Face hub, where :meth:`stpred.models.Model.push_to_hub` put it (``pip install 'stpred[hub]'``).
        A revision is a branch, a tag or a commit; without one it is the newest of ``main``. The commit is kept in
        ``model.record.hub`` and in the provenance of predictions. Only ``config.json`` and ``model.safetensors`` are
        read. What was loaded before is in the cache of huggingface_hub, and works with ``HF_HUB_OFFLINE=1``.

    Returns
    -------
    The model, as it was saved.

    Raises
    ------
    InputError
        If the folder is no model, of another format version, or lacks tensors; or the repository is not there, or
        closed to you.

    Examples
    --------
    >>> import stpred as st
    >>> st.models.load("default").record.target
    'log1p_cp10k'
    """
    if hub.is_remote(path):
        snapshot = hub.fetch(path, what="model")
        model = _load(snapshot.folder, path)
        model.record.hub = {
            "repository": snapshot.repository, "revision": snapshot.commit, "model_id": model.id,
        }  # fmt: skip
        return model
    return _load(registry.BUNDLED / str(path) if str(path) in registry.bundled() else Path(path), path)


def _load(folder: Path, path: str | Path) -> Model:
    """Return the model of a folder; `path` is what the user called it."""
    if not (folder / CONFIG).is_file():
        hint = " Published predictors come from stpred.models.get." if str(path).startswith("lazyslide/") else ""
        raise MissingFileError(
            f"No model at {str(path)!r} (a folder with {CONFIG} and {WEIGHTS} is needed); bundled: "
            f"{listing(registry.bundled())}.{hint}"
        )
    config, weights = folder / CONFIG, folder / WEIGHTS
    content = read_json(config, what="model's config")
    found = content.get("format_version")
    if found != FORMAT_VERSION or isinstance(found, bool):
        raise InputError(
            f"Model {str(path)!r} has format version {found!r}, this stpred reads {FORMAT_VERSION}; "
            f"{'upgrade stpred' if isinstance(found, int) and found > FORMAT_VERSION else 'train or save it again'}."
        )
    if missing := {"family", "config", "n_features", "record"} - content.keys():
        raise InputError(f"{str(config)!r} lacks {sorted(missing)}.")
    family = registry.family(content["family"], stored=True)
    record = stored.record(content["record"], config)
    if not isinstance(content["config"], dict):
        raise InputError(f"{str(config)!r} holds no settings under 'config' but {content['config']!r}.")
    settings = family.Config.parse(content["config"])
    width = whole(content["n_features"], name=f"n_features of {config}")

    build = partial(settings.build, n_features=width, n_genes=len(record.genes))
    check_tensors(weights, build, what=repr(settings.family))
    with readable(weights, what="model file"):
        tensors = load_file(weights)
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn, and replaced at once
        model = build()
    model.load_state_dict(tensors)
    check_values(model.state_dict().items(), weights)
    model.record = record
    stored.check_width(model, config)
    return model.eval()

"""Loading code of other packages reads a local folder where it would ask a hub, and never unpickles code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

from stpred._core.checks import MissingFileError, listing

_OWN_LOADERS = {"deepspotm": "DeepSpotM"}
"""Packages whose class reads a repository by itself, by its ``from_pretrained``, which takes a folder as well."""

_one_at_a_time = Lock()


@contextmanager
def repository(folder: Path | None) -> Iterator[dict[str, Path]]:
    """Serve the files of a folder to whatever asks the Hugging Face hub for a file or repository meanwhile.

    Files are found by their path in the repository, or by name alone. None: the hub is asked. Torch files are read with
    ``weights_only=True``, whatever is asked for. Yields the files that were read, name in the repository to path.
    """
    import huggingface_hub
    import torch

    found: dict[str, Path] = {}
    ask, load = huggingface_hub.hf_hub_download, torch.load

    def download(repo_id: str, filename: str, *args: Any, **kwargs: Any) -> str:
        path = Path(ask(repo_id, filename, *args, **kwargs)) if folder is None else _local(folder, repo_id, filename)
        found[filename] = path
        return str(path)

    def tensors(*args: Any, **kwargs: Any) -> Any:
        return load(*args, **(kwargs | {"weights_only": True}))

    with _one_at_a_time, ExitStack() as stack:
        stack.enter_context(_replaced(huggingface_hub, "hf_hub_download", download))
        stack.enter_context(_replaced(torch, "load", tensors))
        if folder is not None:
            stack.enter_context(_replaced(huggingface_hub, "snapshot_download", lambda *a, **k: str(folder)))
            for package, name in _OWN_LOADERS.items():
                if find_spec(package) is not None:
                    cls = getattr(import_module(package), name)
                    stack.enter_context(_replaced(cls, "from_pretrained", _reads(cls.from_pretrained, folder)))
        yield found


def _reads(original: Callable[..., Any], folder: Path) -> Any:
    return staticmethod(lambda name, *args, **kwargs: original(str(folder), *args, **kwargs))


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replace an attribute meanwhile."""
    own = name in vars(owner)
    before = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


def _local(folder: Path, repo_id: str, filename: str) -> Path:
    options = [folder / filename, folder / Path(filename).name]
    for path in options:
        if path.is_file():
            return path
    there = sorted(p.name for p in folder.iterdir())[:10]
    raise MissingFileError(
        f"The folder of weights {str(folder)!r} lacks {filename!r} (of the hub repository {repo_id!r}); it holds "
        f"{listing(there)}."
    )

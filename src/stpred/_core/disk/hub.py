"""Folders of ``config.json`` + ``model.safetensors`` on the Hugging Face hub: ``hf:owner/name@revision``.

Only these two files are read, and only where a user names a repository; huggingface_hub is imported then.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from stpred._core.checks import InputError, MissingFileError, listing
from stpred._core.disk.weights import CONFIG, WEIGHTS
from stpred._core.files import reason
from stpred._core.progress import is_hidden

PREFIX = "hf:"
CARD = "README.md"
EXTRA = "pip install 'stpred[hub]'"

_NAME = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}")
_REVISION = re.compile(r"\w[\w./-]{0,254}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubName:
    """A repository of the hub, and the branch, tag or commit of it.

    Examples
    --------
    >>> HubName.parse("hf:owner/name@v1")
    HubName(repository='owner/name', revision='v1')
    """

    repository: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str | Path) -> HubName:
        """Read ``hf:owner/name`` or ``hf:owner/name@revision``; anything else is refused."""
        name, at, revision = str(text).removeprefix(PREFIX).partition("@")
        if not _NAME.fullmatch(name) or (at and not _REVISION.fullmatch(revision)):
            raise InputError(
                f"{str(text)!r} names no repository of the Hugging Face hub; it is hf:owner/name, or "
                "hf:owner/name@revision with a branch, a tag or a commit."
            )
        return cls(name, revision or None)

    def __str__(self) -> str:
        return f"{PREFIX}{self.repository}" + ("" if self.revision is None else f"@{self.revision}")


@dataclass(frozen=True)
class Snapshot:
    """The files of one commit, in the local cache of huggingface_hub.

    Attributes
    ----------
    folder
        Holds ``config.json`` and ``model.safetensors``.
    repository, commit
        Where they come from; `commit` is the hash that a branch or tag was resolved to.
    """

    folder: Path
    repository: str
    commit: str

    @property
    def name(self) -> str:
        """``hf:owner/name@commit``, which is these files for good."""
        return str(HubName(self.repository, self.commit))


def is_remote(name: Any) -> bool:
    """Whether a name is of the hub."""
    return isinstance(name, (str, Path)) and str(name).startswith(PREFIX)


def fetch(name: str | Path, *, what: str) -> Snapshot:
    """Return the files of a repository, from the cache where they are there already.

    Parameters
    ----------
    name
        ``hf:owner/name`` (its branch main) or ``hf:owner/name@revision``.
    what
        What it should hold, ``"model"`` or ``"encoder"``, for messages.

    Raises
    ------
    InputError
        If the name is none, or the repository or revision is not there, closed, or holds something else.
    """
    wanted = HubName.parse(name)
    if _COMMIT.fullmatch(wanted.revision or "") and (folder := _in_cache(wanted)) is not None:
        return Snapshot(folder, wanted.repository, folder.name)
    hub = _huggingface_hub()
    with _answered(wanted):
        path = hub.snapshot_download(
            wanted.repository,
            revision=wanted.revision,
            allow_patterns=[CONFIG, WEIGHTS],
            library_name="stpred",
            tqdm_class=_no_bar() if is_hidden() else None,
        )
    folder = Path(path)
    if lacking := [f for f in (CONFIG, WEIGHTS) if not (folder / f).is_file()]:
        raise MissingFileError(
            f"The repository {str(wanted)!r} holds no {what} of stpred: it lacks {listing(lacking)}, and nothing else "
            "is read."
        )
    if not _COMMIT.fullmatch(folder.name):
        raise InputError(f"The hub did not say which commit of {str(wanted)!r} it gave, so it cannot be recorded.")
    return Snapshot(folder, wanted.repository, folder.name)


def _in_cache(wanted: HubName) -> Path | None:
    """Return the folder of a commit, which never changes, if both files are in the cache."""
    hub = _huggingface_hub()
    found = [hub.try_to_load_from_cache(wanted.repository, f, revision=wanted.revision) for f in (CONFIG, WEIGHTS)]
    return Path(found[0]).parent if all(isinstance(f, str) for f in found) else None


def push(folder: Path, repo_id: str, card: str, *, private: bool, branch: str | None, message: str) -> str:
    """Upload a folder and its card as one commit; return ``hf:owner/name@commit``.

    Parameters
    ----------
    folder
        Holds ``config.json`` and ``model.safetensors``; nothing else of it is uploaded.
    repo_id
        ``owner/name``; the repository is created if it is not there.
    card
        Text of ``README.md``.
    private
        Whether a new repository is closed to others.
    branch
        Branch to commit to, created if it is not there; None: main.
    message
        Of the commit.
    """
    target = HubName.parse(repo_id)
    if target.revision is not None:
        raise InputError(f"{repo_id!r} names a revision; give the repository alone, and a branch as `branch`.")
    hub = _huggingface_hub()
    api = hub.HfApi(library_name="stpred")
    files = {CONFIG: folder / CONFIG, WEIGHTS: folder / WEIGHTS, CARD: card.encode()}
    with _answered(target, writing=True):
        api.create_repo(target.repository, private=private, exist_ok=True)
        if branch is not None:
            api.create_branch(target.repository, branch=branch, exist_ok=True)
        done = api.create_commit(
            target.repository,
            [hub.CommitOperationAdd(path_in_repo=n, path_or_fileobj=f) for n, f in files.items()],
            commit_message=message,
            revision=branch,
        )
    return str(HubName(target.repository, done.oid))


def _huggingface_hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise InputError(f"The Hugging Face hub needs the package huggingface_hub: {EXTRA}.") from error
    return huggingface_hub


def _no_bar() -> Any:
    """Return the class of bars that are not drawn."""
    bar: Any = import_module("huggingface_hub.utils").tqdm

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        bar.__init__(self, *args, **(kwargs | {"disable": True}))

    return type("NoBar", (bar,), {"__init__": init})


@contextmanager
def _answered(name: HubName, *, writing: bool = False) -> Iterator[None]:
    """Turn what huggingface_hub raises into one sentence that says what to do."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{name.repository}"
    login = "log in (`hf auth login`, or the variable HF_TOKEN)"
    try:
        yield
    except errors.GatedRepoError as error:
        raise InputError(
            f"Access to {str(name)!r} must be asked for: do so at {page}, then {login} with that account."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise MissingFileError(
            f"There is no repository {name.repository!r} on the Hugging Face hub, or it is private: check the name, "
            f"and {login} with an account that may {'write to' if writing else 'read'} it."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise MissingFileError(
            f"The repository {name.repository!r} has no revision {name.revision!r}; leave it out for the newest, or "
            f"look at the branches, tags and commits at {page}."
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise MissingFileError(
            f"{str(name)!r} is not in the local cache, and the hub was not asked or could not be reached: connect to "
            "the network, unset HF_HUB_OFFLINE, or load it once where there is one."
        ) from error
    except errors.HfHubHTTPError as error:
        raise InputError(_refused(name, error, login=login, writing=writing)) from error
    except (errors.HFValidationError, OSError) as error:  # connection errors of its clients are OSErrors, or below
        raise InputError(f"The Hugging Face hub could not be used for {str(name)!r}: {reason(error)}.") from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore", "requests"):
            raise
        raise InputError(f"The Hugging Face hub could not be reached for {str(name)!r}: {reason(error)}.") from error


def _refused(name: HubName, error: Any, *, login: str, writing: bool) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        may = "write to" if writing else "read"
        return f"The Hugging Face hub does not let you {may} {name.repository!r}: {login} with an account that may."
    said = getattr(error, "server_message", None) or reason(error)
    return f"The Hugging Face hub refused {str(name)!r} (status {status}): {said}."

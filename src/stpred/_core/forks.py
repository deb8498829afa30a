"""Forked workers (multiprocessing on Linux, joblib): threads of the parent do not exist in a child."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from typing import Any

_registered = False
_open: weakref.WeakSet[Any] = weakref.WeakSet()


def renew(holder: Any) -> None:
    """Give an object (or class) a new ``_lock`` in forked children, and let it open its file anew.

    A lock may be held by a thread that the child does not have, and the place in an open file is shared with the
    parent. What it opened is under ``_pages`` or ``_reader``.
    """
    guard()
    _open.add(holder)


def guard() -> None:
    """Make dask and torch usable in this process although its parent has used them, and in children to come.

    Called wherever pixels are read or networks are made; the first call registers what a forked child does.
    """
    global _registered
    if not _registered:
        _registered = True
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_in_child)
    threaded = sys.modules.get("dask.threaded")
    if threaded is not None:
        pools = [threaded.default_pool, *(p for kept in list(threaded.pools.values()) for p in list(kept.values()))]
        # A fork before the first call leaves pools whose threads are all dead, and which wait for them for ever.
        if any(getattr(p, "_threads", None) and not any(t.is_alive() for t in list(p._threads)) for p in pools):
            _forget_pools()


def _in_child() -> None:
    _forget_pools()
    for holder in list(_open):
        holder._lock = threading.Lock()
        for name in ("_pages", "_reader"):
            if hasattr(holder, name):
                setattr(holder, name, None)
    if (torch := sys.modules.get("torch")) is not None and hasattr(torch, "set_num_threads"):
        torch.set_num_threads(1)  # OpenMP waits for the parent's threads; as in the workers of torch's data loaders


def _forget_pools() -> None:
    threaded = sys.modules.get("dask.threaded")
    if threaded is not None:
        threaded.default_pool = None  # type: ignore[attr-defined]
        threaded.pools.clear()
        threaded.pools_lock = threading.Lock()  # type: ignore[attr-defined]

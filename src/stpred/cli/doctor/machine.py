"""Processors, memory and GPUs, each with a small computation, and the folders that are written to."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np

from stpred._core.compute.threads import n_threads
from stpred._core.files import reason
from stpred._core.settings import settings
from stpred.cli.doctor.finding import BROKEN, NOTE, OK, Finding, Section

GB = 1e9
LEAST_FREE_GB = 5.0
"""Free space below which a folder is worth a note: features and results of a large slide take some gigabytes."""

_CGROUP = Path("/sys/fs/cgroup/memory.max")


def devices() -> Section:
    """Yield cores, memory and every device that PyTorch has, with the time of a product of matrices on it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    said = os.environ.get("OMP_NUM_THREADS")
    hint = "" if said is None else f"OMP_NUM_THREADS={said}"
    name = platform.processor() or platform.machine()
    yield Finding("CPU", f"{cores} cores ({name}), threads used: {n_threads()}", hint=hint, details={"cores": cores})
    memory = memory_bytes()
    if memory is not None:
        few = memory < 8 * GB
        hint = "large slides need 8 GB or more; predict few at once (--workers 1)" if few else ""
        yield Finding("memory", f"{memory / GB:.1f} GB", NOTE if few else OK, hint, {"bytes": memory})
    try:
        import torch
    except Exception as error:  # noqa: BLE001  # whatever a broken installation raises
        yield Finding("torch", "cannot be imported", BROKEN, reason(error))
        return
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = torch.backends.mps.is_available()
    for device in ["cpu", *(f"cuda:{i}" for i in range(gpus)), *(["mps"] if mps else [])]:
        yield _computed(device)
    if gpus == 0 and not mps:
        build = torch.version.cuda
        large = "" if build is None else f"; torch is the build for CUDA {build}, the one for CPUs is smaller"
        yield Finding("GPU", "none", NOTE, f"all runs on the CPU{large}", {"cuda_build": build})


def memory_bytes() -> int | None:
    """Return the memory of this machine, or of the container where it has less; None where it is not known."""
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    try:
        limit = int(_CGROUP.read_text())
    except (OSError, ValueError):
        return found
    return min(found, limit)


def _computed(device: str) -> Finding:
    """Multiply matrices on a device and compare with NumPy."""
    import torch

    details: dict[str, object] = {}
    try:
        label = "computes"
        if device.startswith("cuda"):
            found = torch.cuda.get_device_properties(device)
            label = f"{found.name}, {found.total_memory / GB:.0f} GB, computes"
            details = {"name": found.name, "bytes": found.total_memory}
        values = np.random.default_rng(0).standard_normal((256, 256), dtype=np.float32)
        start = time.perf_counter()
        product = (torch.from_numpy(values).to(device) @ torch.from_numpy(values).to(device)).cpu().numpy()
        seconds = time.perf_counter() - start
    except Exception as error:  # noqa: BLE001  # whatever a driver raises
        return Finding(device, "does not compute", BROKEN, f"{type(error).__name__}: {reason(error)}")
    if not np.allclose(product, values @ values, atol=0.1):
        return Finding(device, "computes wrong products", BROKEN, "check the driver, and that torch is built for it")
    return Finding(device, label, details={**details, "seconds": seconds})


def session_settings() -> Section:
    """Yield the settings that commands start with."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        changed = value != field.default
        yield Finding(field.name, str(value), hint="changed" if changed else "", details={"changed": changed})


def folders(cache: Path | None) -> Section:
    """Yield the folder of features with its size, the one of temporary files, and the one of downloaded weights."""
    kept = cache if cache is not None else settings.cache_dir
    if kept is None:
        yield Finding("features", "not kept", NOTE, "pass --cache FOLDER to compute them once for several commands")
    else:
        yield _folder("features", Path(kept), counted=True)
    yield _folder("temporary files", Path(tempfile.gettempdir()))
    if (hub := hub_folder()) is not None:
        yield _folder("downloaded weights", hub, counted=True)


def hub_folder() -> Path | None:
    """Return where the Hugging Face hub keeps files, or None without its package; nothing is asked online."""
    try:
        from huggingface_hub import constants
    except ImportError:
        return None
    return Path(constants.HF_HUB_CACHE)


def _folder(name: str, path: Path, *, counted: bool = False) -> Finding:
    above = next((p for p in (path, *path.absolute().parents) if p.exists()), Path.cwd())
    details: dict[str, object] = {"path": str(path)}
    if not above.is_dir() or not os.access(above, os.W_OK):
        return Finding(name, str(path), BROKEN, "cannot be written", details)
    free = shutil.disk_usage(above).free
    details["free_bytes"] = free
    said = "" if path.exists() else " (not made yet)"
    if counted and path.exists():
        sizes = list(_sizes(path))
        details |= {"bytes": sum(sizes), "files": len(sizes)}
        said = f": {sum(sizes) / GB:.2f} GB in {len(sizes)} files"
    few = free < LEAST_FREE_GB * GB
    return Finding(name, f"{path}{said}, {free / GB:.0f} GB free", NOTE if few else OK,
                   "little space is left" if few else "", details)  # fmt: skip


def _sizes(folder: Path) -> Iterator[int]:
    """Yield the sizes of the files below a folder; links are not followed."""
    for root, _, names in os.walk(folder, onerror=None):
        for name in names:
            try:
                found = os.lstat(os.path.join(root, name))
            except OSError:
                continue
            yield found.st_size

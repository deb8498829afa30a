"""A run over many slides: speed of two workers, kills, broken slides, and what the run itself costs.

``python -m benchmarks.bench_cohort [scaling] [kills] [broken] [overhead] --slides 200 --kills 20`` prints a table. All
runs are of the command line with the bundled model, on synthetic slides of a few seconds each.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import psutil

from benchmarks import _slides

SMALL_PX, LARGE_PX = 2_000, 24_000
"""Edges of slides of a few seconds, and of about a minute."""


def make(folder: Path, n: int, size_px: int) -> None:
    """Write slides that differ in the order of their tiles."""
    folder.mkdir(parents=True)
    for k in range(n):
        _slides.write_tiled(folder / f"s{k:03d}.tif", size_px=size_px, levels=3, full=False, first=k)


def command(slides: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "stpred.cli", "-q", "predict", str(slides), "-o", str(out), "--mpp", "0.5", *more]


def seconds(line: list[str], **env: str) -> float:
    start = time.perf_counter()
    subprocess.run(line, check=True, env={**os.environ, **env}, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def cpu_seconds() -> float:
    """CPU time of the processes that have ended, which other jobs on the machine change little."""
    times = os.times()
    return times.children_user + times.children_system


def scaling(folder: Path, n: int) -> None:
    """Seconds of one worker over those of two; at least 1.7."""
    make(folder / "slides", n, SMALL_PX)
    took = [seconds(command(folder / "slides", folder / f"by{w}", "--workers", str(w))) for w in (1, 2)]
    print(f"| {n} slides | one worker {took[0]:.0f} s, two {took[1]:.0f} s: {took[0] / took[1]:.2f} |", flush=True)
    assert differing(folder / "by1", folder / "by2") == []


def kills(folder: Path, n: int, n_kills: int, *, seed: int = 0) -> None:
    """Random kills of workers and of the client; every result must be that of an undisturbed run."""
    rng = random.Random(seed)
    make(folder / "slides", n, SMALL_PX)
    subprocess.run(command(folder / "slides", folder / "calm", "--workers", "2"), check=True)
    out, left, n_clients, n_workers, lost = folder / "killed", n_kills, 0, 0, 0
    reported: dict[str, str] = {}
    for _ in range(10 * n_kills):
        process = subprocess.Popen(command(folder / "slides", out, "--workers", "2"), stderr=subprocess.DEVNULL)
        while process.poll() is None:
            time.sleep(rng.uniform(2, 8))
            workers = workers_of(process.pid)
            if left and workers and process.poll() is None:
                victim = rng.choice(workers) if rng.random() < 0.6 else process.pid
                n_clients, n_workers = n_clients + (victim == process.pid), n_workers + (victim != process.pid)
                os.kill(victim, signal.SIGKILL)
                left -= 1
            now = complete(out)
            lost += sum(not (out / store).exists() for store in reported)
            reported |= now
        process.wait()
        if process.returncode == 0:
            break
    wrong = differing(folder / "calm", out)
    done = len(complete(out))
    print(
        f"| {n_kills - left} kills ({n_workers} of workers, {n_clients} of the client) in {n} slides | complete "
        f"{done}, reported and lost {lost}, other than in an undisturbed run {len(wrong)}, left over "
        f"{len(list((out / '.stpred' / 'unfinished').glob('*')))} |",
        flush=True,
    )


def workers_of(client: int) -> list[int]:
    """Return the processes of the workers of a client."""
    found = []
    for process in psutil.Process(client).children() if psutil.pid_exists(client) else []:
        with suppress(psutil.Error):
            if "spawn_main" in " ".join(process.cmdline()):
                found.append(process.pid)
    return found


def complete(out: Path) -> dict[str, str]:
    """Return stores that are reported complete, by name."""
    if not (out / "manifest.parquet").exists():
        return {}
    frame = pd.read_parquet(out / "manifest.parquet")
    return frame.loc[frame["status"] == "complete"].set_index("store")["fingerprint"].to_dict()


def differing(a: Path, b: Path) -> list[str]:
    """Return files of stores that differ between two runs, or are in one alone."""

    def files(base: Path) -> dict[str, Path]:
        return {str(p.relative_to(base)): p for s in base.glob("*.zarr") for p in s.rglob("*") if p.is_file()}

    ours, theirs = files(a), files(b)
    return sorted(set(ours) ^ set(theirs)) + [
        k for k in ours.keys() & theirs.keys() if ours[k].read_bytes() != theirs[k].read_bytes()
    ]


def broken(folder: Path, n: int) -> None:
    """Ten broken slides among others: listed, and the others done."""
    slides = folder / "slides"
    make(slides, n, SMALL_PX)
    whole = (slides / "s000.tif").read_bytes()
    noise = np.random.default_rng(0).bytes(50_000)
    contents = [whole[: len(whole) // k] for k in (2, 3, 10)] + [b"", b"II*\0", noise, b"no image", b"\x89PNG\r\n"]
    for k, content in enumerate(contents):
        (slides / f"broken{k}.tif").write_bytes(content)
    (slides / "broken8.svs").write_bytes(whole[:100])
    (slides / "broken9.png").write_bytes(noise)
    line = command(slides, folder / "out", "--workers", "2", "--skip-errors")
    code = subprocess.run(line, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL).returncode
    frame = pd.read_parquet(folder / "out" / "manifest.parquet")
    print(f"| {n} slides and 10 broken ones | exit status {code}, {frame['status'].value_counts().to_dict()} |")
    for row in frame[frame["status"] == "failed"].itertuples():
        print(f"    {row.slide}: {row.error}", flush=True)


def overhead(folder: Path, n: int) -> None:
    """Seconds of a run of slides of about a minute, by one worker, over those of single commands in turn."""
    make(folder / "slides", n, LARGE_PX)
    limits = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    start = cpu_seconds()
    single = [
        seconds(command(p, folder / f"{p.stem}.zarr"), **limits) for p in sorted((folder / "slides").glob("*.tif"))
    ]
    between = cpu_seconds()
    many = seconds(command(folder / "slides", folder / "out", "--workers", "1", "--previews"), **limits)
    cpu = between - start, cpu_seconds() - between
    print(f"| {n} slides of {np.mean(single):.0f} s | {sum(single):.0f} s alone, {many:.0f} s in a run: "
          f"{many / sum(single) - 1:+.1%}; CPU time {cpu[0]:.0f} s, {cpu[1]:.0f} s: {cpu[1] / cpu[0] - 1:+.1%} |",
          flush=True)  # fmt: skip


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    known: dict[str, Callable[[Path, argparse.Namespace], None]] = {
        "scaling": lambda f, a: scaling(f, a.slides),
        "kills": lambda f, a: kills(f, a.slides, a.kills),
        "broken": lambda f, a: broken(f, a.slides),
        "overhead": lambda f, a: overhead(f, max(a.slides // 50, 2)),
    }
    parser.add_argument("parts", nargs="*", choices=[*known, []], default=list(known))
    parser.add_argument("--slides", type=int, default=200)
    parser.add_argument("--kills", type=int, default=20)
    given = parser.parse_args()
    for part in given.parts:
        with tempfile.TemporaryDirectory(prefix="stpred-bench-") as name:
            known[part](Path(name), given)
            shutil.rmtree(name, ignore_errors=True)
            Path(name).mkdir()


if __name__ == "__main__":
    main()

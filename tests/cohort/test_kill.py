"""Processes of a run are killed while it goes on; a job that only sleeps and writes stands for prediction."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from stpred.cohort.manifest import OWN, read_manifest

pytestmark = pytest.mark.slow

JOB = """
import json, sys, time
from dataclasses import dataclass
from pathlib import Path
from stpred._core.disk.staging import staged_folder
from stpred.cohort.manifest import OWN
from stpred.cohort.run import open_run
from stpred.cohort.slides import find_slides

@dataclass(frozen=True)
class Slow:
    model_id = model_name = what = "slow"
    suffix = ".slow"

    def settings_of(self, sample): return "s"
    def key_of(self, sample, fingerprint): return fingerprint
    def is_there(self, folder, store): return (folder / store).exists()
    def is_foreign(self, folder, store): return False
    def wants_more(self, folder, store): return False
    def add_more(self, folder, store): pass

    def finished(self, folder, store, key):
        file = folder / store / "key"
        return {"n_tiles": 1} if file.exists() and file.read_text() == key else None

    def work(self, sample, folder, store, key):
        with (folder / OWN / "log").open("a") as log:
            log.write(sample.slide + "\\n")
        with staged_folder(folder / store, what="result") as new:
            for part in range(4):
                (new / str(part)).write_text(key)
                time.sleep(0.1)
            (new / "key").write_text(key)

if __name__ == "__main__":
    with open_run(find_slides(sys.argv[1]), Slow(), sys.argv[2]) as run:
        for record in run.results(n_workers=2):
            print(json.dumps([record.store, record.status]), flush=True)
"""


def line_of(process: psutil.Process) -> str:
    """Return the command line of a process; nothing where it has ended."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def test_nothing_that_is_complete_is_lost_and_the_rest_is_done(tmp_path: Path) -> None:
    (tmp_path / "slow_job.py").write_text(JOB)
    slides = tmp_path / "slides"
    slides.mkdir()
    for k in range(24):
        (slides / f"s{k:02d}.tif").write_text(str(k))
    out, rng, left, runs = tmp_path / "out", random.Random(0), 4, 0
    reported: set[str] = set()
    line = [sys.executable, str(tmp_path / "slow_job.py"), str(slides), str(out)]
    while runs < 12:
        runs += 1
        process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL)
        assert process.stdout is not None
        for number, said in enumerate(process.stdout):
            store, status = json.loads(said)
            assert status == "complete"
            reported.add(store)
            if left and number >= 2 + left % 2:  # first a worker, then the client, and so on
                workers = [p.pid for p in psutil.Process(process.pid).children() if "spawn_main" in line_of(p)]
                os.kill(rng.choice(workers) if left % 2 == 0 and workers else process.pid, signal.SIGKILL)
                left -= 1
        assert all((out / store / "key").exists() for store in reported)
        if process.wait() == 0:
            break
    assert left == 0
    assert runs > 1
    frame = read_manifest(out)
    assert frame["status"].tolist() == ["complete"] * 24
    assert {p.name for p in out.glob("*.slow")} == set(frame["store"])
    for store in frame["store"]:
        files = {p.name: p.read_text() for p in (out / store).iterdir()}
        assert set(files) == {"0", "1", "2", "3", "key"}
        assert len(set(files.values())) == 1
    time.sleep(0.5)
    assert not [p for p in psutil.process_iter() if str(tmp_path) in line_of(p)]
    n_times = len((out / OWN / "log").read_text().split())
    assert n_times <= 24 + 4 * 4  # what is complete is not done again

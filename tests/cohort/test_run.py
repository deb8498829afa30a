from __future__ import annotations

import json
import os
import resource
import runpy
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from stpred._core.checks import InputError
from stpred._core.disk import locks
from stpred._core.disk.staging import staged_folder
from stpred.cohort import clusters, worker
from stpred.cohort import run as cohort_run
from stpred.cohort.clusters import parse_devices, split_cores, workers
from stpred.cohort.locks import alone, client_of, parse_shard
from stpred.cohort.manifest import OWN, prepare, read_manifest, record_file
from stpred.cohort.run import open_run
from stpred.cohort.status import Status
from stpred.cohort.worker import Task, run_task
from stpred.io.samples import Sample


@dataclass(frozen=True)
class Copies:
    """A job that copies a file's text into a folder, and fails where it says so."""

    model_id: str = "m1"
    model_name: str = "copy"
    option: str = ""
    what: str = "copy"
    suffix: str = ".copy"

    def settings_of(self, sample: Sample) -> str:
        return f"{self.option}{dict(sample.options)}"

    def key_of(self, sample: Sample, fingerprint: str) -> str:
        return f"{self.model_id} {self.settings_of(sample)} {fingerprint}"

    def _said(self, path: Path) -> dict[str, Any]:
        return json.loads((path / "said.json").read_text()) if (path / "said.json").exists() else {}

    def finished(self, folder: Path, store: str, key: str) -> dict[str, Any] | None:
        said = self._said(folder / store)
        return {"n_tiles": said["n"]} if said.get("key") == key else None

    def is_there(self, folder: Path, store: str) -> bool:
        return bool(self._said(folder / store))

    def is_foreign(self, folder: Path, store: str) -> bool:
        return (folder / store).exists() and not self.is_there(folder, store)

    def wants_more(self, folder: Path, store: str) -> bool:
        return False

    def add_more(self, folder: Path, store: str) -> None:
        raise AssertionError

    def help(self, sample: Sample, folder: Path, store: str, key: str, *, start: float) -> None:
        raise AssertionError

    def work(self, sample: Sample, folder: Path, store: str, key: str) -> None:
        text = sample.path.read_text()
        if text == "wrong":
            raise InputError("It is wrong.")
        if text == "bug":
            raise ZeroDivisionError("division")
        if text == "memory":
            raise MemoryError
        with (folder / OWN / "log").open("a") as log:
            log.write(sample.slide + "\n")
        if (folder / store).exists():
            shutil.rmtree(folder / store)
        with staged_folder(folder / store, what="copy") as new:
            (new / "said.json").write_text(json.dumps({"key": key, "n": len(text)}))


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=":0") as found:
        yield found


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    (tmp_path / "slides").mkdir()
    found = []
    for k, text in enumerate(["one", "wrong", "three", "bug", "fives"]):
        path = tmp_path / "slides" / f"{k}.txt"
        path.write_text(text)
        found.append(Sample(f"s{k}", path))
    return found


def run(samples: list[Sample], out: Path, client: Any, job: Copies | None = None, **options: Any) -> Any:
    with open_run(samples, job or Copies(), out, **options) as opened:
        done = [record.slide for record in opened.results(client=client)]
        return opened.frame.set_index("slide"), done


def worked_on(out: Path) -> list[str]:
    log = out / OWN / "log"
    found = sorted(log.read_text().split()) if log.exists() else []
    log.unlink(missing_ok=True)
    return found


def test_what_is_complete_is_not_done_again_and_failures_stop_nobody(
    tmp_path: Path, samples: list[Sample], client: Client
) -> None:
    out = tmp_path / "out"
    frame, done = run(samples, out, client)
    assert sorted(done) == frame.index.tolist() == ["s0", "s1", "s2", "s3", "s4"]
    assert frame["status"].tolist() == ["complete", "failed", "complete", "failed", "complete"]
    assert frame.loc["s1", "error"] == "It is wrong."
    assert frame.loc["s3", "error"] == "ZeroDivisionError: division."
    assert "ZeroDivisionError" in (out / OWN / "errors" / "s3.copy.txt").read_text()
    assert frame.loc["s4", "n_tiles"] == 5
    assert worked_on(out) == ["s0", "s2", "s4"]
    (tmp_path / "slides" / "1.txt").write_text("mended")
    frame, done = run(samples, out, client)
    assert sorted(done) == ["s1", "s3"]  # what failed is tried again
    assert worked_on(out) == ["s1"]
    assert frame.loc["s1", "status"] == "complete"
    assert read_manifest(out)["status"].tolist() == frame["status"].tolist()


def test_changed_files_models_and_settings_are_done_again(
    tmp_path: Path, samples: list[Sample], client: Client
) -> None:
    out, few = tmp_path / "out", [samples[0], samples[2]]
    run(few, out, client)
    assert worked_on(out) == ["s0", "s2"]
    os.utime(samples[0].path, (1, 1))  # touched, but of the same content
    assert run(few, out, client)[1] == ["s0"]
    assert worked_on(out) == []
    samples[0].path.write_text("ONE")
    run(few, out, client)
    assert worked_on(out) == ["s0"]
    run(few, out, client, Copies(model_id="m2"))
    assert worked_on(out) == ["s0", "s2"]
    run(few, out, client, Copies(model_id="m2", option="x"))
    assert worked_on(out) == ["s0", "s2"]
    run(few, out, client, Copies(model_id="m2", option="x"), overwrite=True)
    assert worked_on(out) == ["s0", "s2"]
    samples[2].path.unlink()  # the files may be gone afterwards
    frame, done = run(few, out, client, Copies(model_id="m2", option="x"))
    assert done == []
    assert frame["status"].tolist() == ["complete", "complete"]
    shutil.rmtree(out / "s0.copy")  # but results may not
    run(few, out, client, Copies(model_id="m2", option="x"))
    assert worked_on(out) == ["s0"]


def test_manifests_that_take_long_are_written_less_often(
    tmp_path: Path, samples: list[Sample], client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = cohort_run.write_manifest, []

    def slow(frame: Any, folder: Path) -> None:
        written.append(time.sleep(pause))
        write(frame, folder)

    monkeypatch.setattr(cohort_run, "write_manifest", slow)
    monkeypatch.setattr(cohort_run, "MANIFEST_S", 0.0)
    monkeypatch.setattr(cohort_run, "MANIFEST_SHARE", 1e9)
    pause = 0.0
    run(samples, tmp_path / "often", client)
    assert len(written) == 7  # at the start, after each slide, at the end
    monkeypatch.setattr(cohort_run, "MANIFEST_SHARE", 1e-3)
    written.clear()
    pause = 0.1
    run(samples, tmp_path / "seldom", client)
    assert len(written) == 2
    assert len(read_manifest(tmp_path / "seldom")) == 5


def test_a_result_without_record_is_taken_over(tmp_path: Path, samples: list[Sample], client: Client) -> None:
    out = tmp_path / "out"
    run(samples[:1], out, client)
    worked_on(out)
    record_file(out, "s0.copy").unlink()  # killed between the two
    (out / "manifest.parquet").unlink()
    frame, _ = run(samples[:1], out, client)
    assert frame["status"].tolist() == ["complete"]
    assert worked_on(out) == []


def test_shards_part_the_slides_and_share_a_manifest(tmp_path: Path, samples: list[Sample], client: Client) -> None:
    out = tmp_path / "out"
    parts = [run(samples, out, client, shard=(i, 3))[1] for i in (1, 2, 3)]
    assert sorted(sum(parts, [])) == [s.slide for s in samples]
    assert len(read_manifest(out)) == 5
    assert worked_on(out) == ["s0", "s2", "s4"]


def test_a_second_client_is_told_who_is_at_it(tmp_path: Path, samples: list[Sample]) -> None:
    out = tmp_path / "out"
    with open_run(samples, Copies(), out):
        assert client_of(out / OWN) == locks.holder(out / OWN / "locks" / "all.run")
        assert str(os.getpid()) in str(client_of(out / OWN))
        for shard in (None, (1, 2)):
            with pytest.raises(InputError, match=f"is being written by process {os.getpid()}"):
                with alone(out / OWN, shard):
                    pass
    with alone(prepare(out), (1, 2)), alone(out / OWN, (2, 2)):
        for shard in (None, (1, 2), (3, 3)):
            with pytest.raises(InputError, match="is being written by"):
                with alone(out / OWN, shard):
                    pass
    assert client_of(out / OWN) is None


def test_a_foreign_result_is_never_touched(tmp_path: Path, samples: list[Sample], client: Client) -> None:
    out = tmp_path / "out"
    (out / "s0.copy").mkdir(parents=True)
    (out / "s0.copy" / "mine").write_text("x")
    with pytest.raises(InputError, match="which no run has written"):
        run(samples, out, client, overwrite=True)
    assert (out / "s0.copy" / "mine").exists()


def test_two_workers_at_one_slide_do_it_once(tmp_path: Path, samples: list[Sample]) -> None:
    out = tmp_path / "out"
    prepare(out)
    task = Task(samples[0], "s0.copy", out)
    with locks.held(_made(out) / "s0.copy.lock", what="slide"):  # as a worker whose client was killed holds it
        found: list[Any] = []
        second = threading.Thread(target=lambda: found.append(run_task(Copies(), task)))
        second.start()
        time.sleep(0.3)
        assert not found
    second.join(20)
    assert found[0].status == "complete"
    assert run_task(Copies(), task).status == "complete"
    assert worked_on(out) == ["s0"]


def _made(out: Path) -> Path:
    (out / OWN / "locks").mkdir(exist_ok=True)
    return out / OWN / "locks"


def test_a_worker_that_sees_no_folder_says_so(tmp_path: Path, samples: list[Sample]) -> None:
    record = run_task(Copies(), Task(samples[0], "s0.copy", tmp_path / "elsewhere"))
    assert record.status == "failed"
    assert "does not see the folder" in record.error
    assert not (tmp_path / "elsewhere").exists()


class Unknown(Copies):
    """A job that no worker can load, as where a package is lacking."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


def test_a_worker_that_cannot_load_the_job_says_so(tmp_path: Path, samples: list[Sample], client: Client) -> None:
    frame, _ = run(samples[:1], tmp_path / "out", client, Unknown())
    assert "cannot load what is to be done: ValueError: invalid literal" in frame["error"].iloc[0]


def test_a_folder_that_is_read_only_is_refused(
    tmp_path: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(InputError, match="is not writable"):
        run(samples, tmp_path / "out", None)
    assert not (tmp_path / "out").exists()


def test_memory_that_is_lacking_is_said(tmp_path: Path, samples: list[Sample]) -> None:
    samples[0].path.write_text("memory")
    prepare(tmp_path)
    assert run_task(Copies(), Task(samples[0], "a.copy", tmp_path)).error == "It takes more memory than there is."


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs limits of a process")
def test_a_full_disk_is_said_and_leaves_nothing_half(
    tmp_path: Path, samples: list[Sample], client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def full(self: Path, *_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", str(self))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        record = run_task(Copies(), Task(samples[0], "s0.copy", prepare(out).parent))
    assert record.status == "failed"
    assert "No space left on device" in record.error
    assert not (out / "s0.copy").exists()
    frame, _ = run(samples[:1], out, client)
    assert frame["status"].tolist() == ["complete"]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, samples: list[Sample]) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file, not a folder"):
        run(samples, tmp_path / "file", None)
    with pytest.raises(InputError, match="is a file, not a folder"):
        run(samples, tmp_path / "file" / "below", None)


def test_status(tmp_path: Path, samples: list[Sample], client: Client) -> None:
    out = tmp_path / "out"
    with open_run(samples, Copies(), out) as opened:
        found = opened.results(client=client)
        next(found)
        status = Status.of(out)
        assert status.n("pending") <= 4  # workers go on meanwhile
        assert sum(status.n(s) for s in ("complete", "failed", "pending")) == 5
        assert str(os.getpid()) in str(status.client)
        found.close()
    assert Status.of(out).client is None


@pytest.mark.parametrize("text", ["", "0/4", "5/4", "a/b", "1", "1/0", "-1/4"])
def test_shards_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="must be i/n"):
        parse_shard(text)


@pytest.mark.parametrize("text", ["", "a", "0,0", "-1", "0;1"])
def test_devices_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="numbers of GPUs"):
        parse_devices(text)


def test_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    monkeypatch.setattr("stpred.cohort.clusters._memory_gb", lambda: 16.0)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert split_cores(100, None, None) == (4, 2)  # of memory
    assert split_cores(2, None, None) == (2, 4)
    assert split_cores(100, 2, None) == (2, 1)
    assert split_cores(100, None, 2) == (2, 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert split_cores(100, 2, None) == (2, 3)


def test_schedulers_that_do_not_answer_and_options_that_do_not_go_together(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "CONNECT_S", 1.0)
    with pytest.raises(InputError, match="No Dask scheduler answers"):
        with workers("tcp://127.0.0.1:9", n_slides=1):
            pass
    with pytest.raises(InputError, match="a scheduler has workers of its own"):
        with workers(client, n_slides=1, n_workers=2):
            pass
    with pytest.raises(InputError, match="must be a distributed.Client"):
        with workers(7, n_slides=1):
            pass


def test_slides_take_a_gpu_where_workers_have_one(tmp_path: Path, samples: list[Sample]) -> None:
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=":0", resources={"GPU": 1}) as c:
        with workers(c, n_slides=1) as found:
            assert found.resources == {"GPU": 1}
        assert run(samples[:1], tmp_path / "out", c)[0]["status"].tolist() == ["complete"]


def test_waiting_for_another_process_has_an_end(
    tmp_path: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "WAIT_S", 0.1)
    prepare(tmp_path)
    with locks.held(_made(tmp_path) / "s0.copy.lock", what="slide"):
        record = run_task(Copies(), Task(samples[0], "s0.copy", tmp_path))
    assert "is being written by process" in record.error


@pytest.mark.parametrize(
    ("script", "refused"),
    [
        ("run()", True),
        ("def main():\n    run()\n\n\nmain()", True),
        ("if __name__ == '__main__':\n    run()", False),
        ("if True:\n    run()", True),
        ("if __name__ == '__main__':\n    print()\nelse:\n    pass\nrun()", True),
    ],
)
def test_a_script_without_a_guard_starts_no_workers(script: str, refused: bool, tmp_path: Path) -> None:
    """Its workers would import it and call for workers of their own; Dask would start them anew without an end."""
    started: list[int] = []
    head = "from stpred.cohort import clusters\ndef run():\n    with clusters.workers(None, n_slides=2): pass\n"
    (tmp_path / "script.py").write_text(head + script)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distributed.LocalCluster", lambda **kwargs: started.append(1) or nullcontext())
        patch.setattr("distributed.Client", lambda cluster: nullcontext())
        with pytest.raises(InputError, match="below `if __name__ == '__main__':`") if refused else nullcontext():
            runpy.run_path(str(tmp_path / "script.py"), run_name="__main__")
    assert started == [1] * (not refused)

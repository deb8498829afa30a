from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from distributed import Client

import stpred as st
from stpred._core.checks import InputError
from stpred.cohort import fingerprint, prediction
from stpred.cohort.fingerprint import fingerprint_of
from stpred.cohort.manifest import OWN, prepare
from stpred.cohort.options import PredictOptions
from stpred.cohort.slides import find_slides
from stpred.data import _strips
from stpred.encoders.base import Encoder
from stpred.encoders.composite import members_of
from stpred.io.samples import Sample

SIZE_UM = (500.0, 500.0)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    for seed in (0, 1):
        st.datasets.toy_wsi(folder / f"s{seed}.svs", size_um=SIZE_UM, seed=seed)
        for truth in folder.glob("*.truth"):
            for file in truth.iterdir():
                file.unlink()
            truth.rmdir()
    return folder


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=":0") as found:
        yield found


@pytest.fixture(scope="module")
def model() -> Any:
    cohort = st.datasets.toy_cohort(2, size_um=SIZE_UM, n_genes=20)
    return st.tl.train(cohort, genes=["EPCAM", "COL1A2"], shapes_key="spots")


def contents(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_each_slide_is_what_predict_makes_of_it(slides: Path, tmp_path: Path, client: Client, model: Any) -> None:
    out = tmp_path / "out"
    manifest = st.tl.predict_cohort(str(slides / "*.svs"), model, out, client=client, previews=True)
    assert manifest["status"].tolist() == ["complete", "complete"]
    assert (out / "s0.png").stat().st_size > 10_000
    alone = st.io.read(slides / "s0.svs")
    st.tl.predict(alone, model)
    there = sd.read_zarr(out / "s0.zarr").tables["grid_ridge"]
    np.testing.assert_array_equal(there.X, alone.tables["grid_ridge"].X)
    row = manifest.set_index("slide").loc["s0"]
    assert row["n_tiles"] == len(there)
    assert row["mpp"] == pytest.approx(0.5)
    assert row["model_id"] == model.id
    assert row["in_distribution"] == pytest.approx(float(there.obs["in_distribution"].mean()), abs=1e-5)
    # With limits on what the image shows: other settings, and locations left out as by predict.
    limits = st.QC(min_tissue=0.99)
    st.tl.predict(alone, model, qc=limits, key_added="judged")
    judged = tmp_path / "judged"
    kept = st.tl.predict_cohort({"s0": slides / "s0.svs"}, model, judged, client=client, qc=limits)
    assert 0 < kept["n_tiles"].item() == alone.tables["judged"].n_obs < len(there)
    assert kept["settings"].item() != row["settings"]
    # Once more: the same bytes, and objects in stores are slides as well, of another name.
    before = contents(out / "s0.zarr")
    st.tl.predict_cohort(slides, model, out, client=client, previews=True, overwrite=True)
    assert contents(out / "s0.zarr") == before
    assert not list((out / OWN / "unfinished").iterdir())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_stores_are_slides(slides: Path, tmp_path: Path, client: Client, model: Any) -> None:
    st.io.read(slides / "s1.svs").write(tmp_path / "mine.zarr")
    sdata = sd.read_zarr(tmp_path / "mine.zarr")
    manifest = st.tl.predict_cohort({"a": sdata, "b": slides / "s1.svs"}, model, tmp_path / "out", client=client)
    assert manifest["status"].tolist() == ["complete", "complete"], manifest["error"].tolist()
    a, b = (sd.read_zarr(tmp_path / "out" / f"{n}.zarr").tables["grid_ridge"] for n in "ab")
    np.testing.assert_allclose(a.X, b.X, atol=1e-5)
    assert [s.slide for s in find_slides(tmp_path / "mine.zarr")] == ["mine"]
    assert [s.slide for s in find_slides([tmp_path])] == ["mine"]
    with pytest.raises(InputError, match="is in memory only"):
        st.tl.predict_cohort({"a": st.io.read(slides / "s1.svs")}, model, tmp_path / "out")


def test_a_large_slide_goes_on_where_it_was(
    slides: Path, tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "LARGE_BYTES", 1)
    whole, interrupted = tmp_path / "whole", tmp_path / "interrupted"
    encoder: Any = type(members_of(model.encoder)[0])
    seen: list[int] = []
    encode = encoder.encode

    def counted(self: Encoder, tiles: Any) -> Any:
        seen.append(len(tiles))
        if stop and sum(seen) > stop:
            raise KeyboardInterrupt  # no ordinary failure: as a kill, it passes everything
        return encode(self, tiles)

    monkeypatch.setattr(encoder, "encode", counted)
    stop = 0
    with st.settings.override(batch_size=4):
        _predict(slides / "s0.svs", whole, model)
        all_tiles = sum(seen)
        assert all_tiles > 16
        seen.clear()
        stop = all_tiles // 2
        with pytest.raises(KeyboardInterrupt):
            _predict(slides / "s0.svs", interrupted, model)
        assert not (interrupted / "s0.zarr").exists()
        seen.clear()
        stop = 0
        _predict(slides / "s0.svs", interrupted, model)
    assert sum(seen) <= all_tiles - all_tiles // 2 + 4
    assert contents(whole / "s0.zarr") == contents(interrupted / "s0.zarr")
    assert not list((interrupted / OWN / "unfinished").iterdir())


def _predict(path: Path, out: Path, model: Any) -> None:
    place, trained = prediction.place_of(model, prepare(out))
    job = prediction.Prediction(place, "ridge", trained.id, PredictOptions())
    monkey = prediction._load
    prediction._load = lambda *_: model  # type: ignore[assignment]
    try:
        sample = Sample("s0", path)
        job.work(sample, out, "s0.zarr", job.key_of(sample, fingerprint_of(sample)))
    finally:
        prediction._load = monkey


def test_idle_workers_help_with_a_large_slide(
    slides: Path, tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What helpers embed is what a worker alone embeds, and their features go when the slide is finished."""
    monkeypatch.setattr(fingerprint, "LARGE_BYTES", 1)
    monkeypatch.setattr(_strips, "PLACES", 8)
    monkeypatch.setattr(prediction, "_load", lambda *_: model)
    sample, encoder = Sample("s0", slides / "s0.svs"), type(members_of(model.encoder)[0])
    job = prediction.Prediction("", "ridge", model.id, PredictOptions())
    key = job.key_of(sample, fingerprint_of(sample))
    encode, seen = encoder.encode, []
    monkeypatch.setattr(encoder, "encode", lambda self, tiles: seen.append(len(tiles)) or encode(self, tiles))
    for name in ("alone", "helped"):
        prepare(tmp_path / name)
        if name == "helped":
            job.help(sample, tmp_path / name, "s0.zarr", key, start=0.5)
            assert sum(seen) > 16  # all of it, as nobody else is at it
            seen.clear()
        job.work(sample, tmp_path / name, "s0.zarr", key)
        if name == "alone":
            assert sum(seen) > 16
            seen.clear()
    assert sum(seen) == 0
    assert contents(tmp_path / "alone" / "s0.zarr") == contents(tmp_path / "helped" / "s0.zarr")
    job.help(sample, tmp_path / "helped", "s0.zarr", key, start=0.5)
    assert not list((tmp_path / "helped" / OWN / "unfinished").iterdir())


def test_bad_input(slides: Path, tmp_path: Path, model: Any) -> None:
    out = tmp_path / "out"
    for how, said in (
        ({"slides": 7}, "`slides` must be a csv"),
        ({"slides": str(tmp_path / "*.svs")}, "Nothing is of the pattern"),
        ({"slides": [slides / "s0.svs", slides / "s0.svs"]}, "Two slides are called"),
        ({"genes": ["NOGENE"]}, "does not predict"),
        ({"with_map": True}, "is of models of patches"),
        ({"cells": True, "shapes_key": "spots"}, "leave `shapes_key` out"),
        ({"encoder": model.encoder}, "a name or the folder of a saved encoder"),
        ({"shard": "3/2"}, "must be i/n"),
        ({"slides": pd.DataFrame({"a": [1]})}, "There is nothing at"),
    ):
        given = {"slides": slides, **how}
        with pytest.raises(InputError, match=said):
            st.tl.predict_cohort(given.pop("slides"), model, out, **given)

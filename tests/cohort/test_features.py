from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client
from typer.testing import CliRunner

import stpred as st
from stpred import testing
from stpred._core.checks import InputError
from stpred.cli.app import app
from stpred.cohort.extraction.extraction import SUFFIX, Extraction, FeatureOptions, features_of_slide
from stpred.data import _shares
from stpred.io.samples import Sample

COLOUR = FeatureOptions(("ridge",), "colour")


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as found:
        yield found


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    for seed, name in enumerate(("a", "b")):
        st.datasets.toy_legacy_st(folder / name, size_um=(600, 600), n_genes=12, seed=seed)
    return folder


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of tiles that an encoder saw."""
    found: list[int] = []
    encode = _shares.Share.encode

    def counted(self: Any, tiles: Any) -> Any:
        found.append(len(tiles))
        return encode(self, tiles)

    monkeypatch.setattr(_shares.Share, "encode", counted)
    return found


def test_training_and_prediction_find_what_was_extracted(slides: Path, tmp_path: Path, encoded: list[int]) -> None:
    read = st.io.read_cohort([slides])[0]
    config = st.models.DeepSpot.Config(width=4, n_phi=2, n_rho=2, epochs=1)
    for name, options in (("plain", COLOUR), ("parts", FeatureOptions(("ridge", "deepspot"), "colour"))):
        facts = {s: features_of_slide(Sample(s, slides / s), options, tmp_path / name) for s in ("a", "b")}
        assert sum(encoded) == sum(f["n_tiles"] for f in facts.values()) * (1 if name == "plain" else 10)
        assert [len(f["entries"]) for f in facts.values()] == [1 if name == "plain" else 2] * 2
        assert all((tmp_path / name / f"{e}.npy").is_file() for f in facts.values() for e in f["entries"])
        assert {f["table"] for f in facts.values()} == {"spots"}
        encoded.clear()
        with st.settings.override(cache_dir=tmp_path / name):
            model = st.tl.train(read, "ridge" if name == "plain" else config, encoder="colour", intervals=False)
        assert not encoded
    st.models.save(model, tmp_path / "model")
    options = FeatureOptions((str(tmp_path / "model"),))
    features_of_slide(Sample("a", slides / "a"), options, tmp_path / "for prediction")
    assert encoded
    encoded.clear()
    with st.settings.override(cache_dir=tmp_path / "for prediction"):
        st.tl.predict(st.io.read_cohort([slides])[0]["a"], model, shapes_key="spots")
    assert not encoded


def test_a_run_does_only_what_is_missing(
    slides: Path, tmp_path: Path, client: Client, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "features"
    how: dict[str, Any] = {"encoder": "colour", "client": client}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Extraction, "work", lambda *a: (_ for _ in ()).throw(InputError("No.")))
        assert st.pp.features_cohort(slides, out, **how)["error"].tolist() == ["No.", "No."]
    done = st.pp.features_cohort(slides, out, **how).set_index("slide")
    assert done["status"].tolist() == ["complete"] * 2
    assert done["model"].tolist() == ["colour"] * 2
    assert done["store"].tolist() == [f"a{SUFFIX}", f"b{SUFFIX}"]
    assert (done["n_tiles"] > 0).all()
    total, n_files = sum(encoded), len(list(out.glob("*.npy")))
    assert total == done["n_tiles"].sum()
    st.pp.features_cohort(slides, out, **how)
    assert sum(encoded) == total
    next(iter(out.glob("*.npy"))).unlink()
    written = {path: path.stat().st_mtime_ns for path in out.glob(f"*{SUFFIX}")}
    again = st.pp.features_cohort(slides, out, **how)
    assert again["status"].tolist() == ["complete"] * 2
    assert total < sum(encoded) < 2 * total
    assert len(list(out.glob("*.npy"))) == n_files
    assert sum(path.stat().st_mtime_ns == time for path, time in written.items()) == 1
    (out / f"a{SUFFIX}").write_text("{}")
    with pytest.raises(InputError, match=r"a\.features\.json.*which no run has written"):
        st.pp.features_cohort(slides, out, **how)
    with pytest.raises(InputError, match="xfuse.*sees the pixels of the whole slide"):
        st.pp.features_cohort(slides, out, models=["ridge", "xfuse"])
    with pytest.raises(InputError, match="name or the folder of a saved encoder"):
        st.pp.features_cohort(slides, out, encoder=testing.MeanColour())  # type: ignore[arg-type]


def test_on_the_command_line(slides: Path, tmp_path: Path, client: Client, encoded: list[int]) -> None:
    table, cache = tmp_path / "slides.csv", tmp_path / "cache"
    table.write_text(f"slide,path,donor\na,{slides / 'a'},A\nb,{slides / 'b'},B\nc,{tmp_path / 'c.tif'},C\n")
    run = CliRunner().invoke
    address = client.scheduler.address
    command = ["features", str(table), "-o", str(cache), "--encoder", "colour", "--scheduler", address]
    result = run(app, [*command, "--skip-errors"])
    assert result.exit_code == 3, result.output
    assert "2 of 3 slides are complete" in result.output
    assert "Failed: c:" in result.output
    assert run(app, command).exit_code == 2
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:3]))
    result = run(app, command)
    assert result.exit_code == 0, result.output
    assert f"Next: stpred train {table} -o MODEL --model ridge --cache {cache}" in result.output
    encoded.clear()
    trained = ["train", str(table), "-o", str(tmp_path / "model"), "--encoder", "colour", "--cache", str(cache)]
    result = run(app, trained)
    assert result.exit_code == 0, result.output
    assert not encoded
    assert st.settings.cache_dir is None

from __future__ import annotations

import errno
import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata as ad
import geopandas
import numpy as np
import pandas as pd
import pytest
import zarr
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel
from spatialdata.transformations import Identity
from typer.testing import CliRunner

import stpred as st
from stpred import InputError
from stpred._core.expression.bulk import BulkSum, bulk_profile
from stpred._core.tables import read_prediction
from stpred.cli import app
from stpred.cohort.collected import _joined_tables, _stored_tables
from stpred.cohort.collected.collect_cohort import collect_cohort
from stpred.cohort.manifest import Record, write_manifest
from stpred.stores import write_result
from stpred.testing import build_table

GENES = ["EPCAM", "CD3D", "COL1A1", "DCN"]

Run = tuple[Path, dict[str, ad.AnnData]]


def stored(
    store: Path,
    genes: list[str],
    *,
    n: int = 7,
    seed: int = 0,
    scale: str = "log1p_cp10k",
    share: float = 0.6,
    ids: Callable[[int], Any] = lambda i: f"b{i}",
    key: str = "spots_ridge",
    model_id: str = "m1",
    **said: Any,
) -> ad.AnnData:
    """Put a predicted table into a store, and nothing else; return it."""
    rng = np.random.default_rng(seed)
    X = rng.gamma(2.0, 1.0, size=(n, len(genes))).astype(np.float32)
    X = X.round() if scale == "counts" else X
    table = build_table(
        X,
        shapes_key="spots",
        instances=pd.Index([ids(i) for i in range(n)]),
        var=pd.DataFrame({"cv_pearson": np.linspace(0.9, 0.1, len(genes)), "trusted": True}, index=genes),
        spatial_um=rng.uniform(0, 1000, (n, 2)),
        obs={"ood_score": rng.random(n), "in_distribution": np.arange(n) < round(share * n)},
        layers={"std": 0.1 * X},
        provenance={"kind": "prediction", "model": "ridge", "model_id": model_id, "output_scale": scale} | said,
    )
    (store / "tables").mkdir(parents=True)
    group = zarr.open_group(store / "tables" / key, mode="w", zarr_format=3)
    ad.io.write_elem(group, "/", table)
    return table


def record(slide: str, **said: Any) -> Record:
    facts = {"status": "complete", "table": "spots_ridge", "model": "ridge", "model_id": "m1", "donor": f"of {slide}"}
    return Record(slide, f"/slides/{slide}.svs", **({"store": f"{slide}.zarr"} | facts | said))


def run_of(folder: Path, slides: Mapping[str, dict[str, Any]], *more: Record) -> dict[str, ad.AnnData]:
    """Make what a run over slides leaves behind; `slides` holds the options of their tables."""
    tables = {}
    for k, (name, options) in enumerate(slides.items()):
        tables[name] = stored(folder / f"{name}.zarr", **({"genes": GENES, "seed": k} | options))
    write_manifest([*(record(name, mpp=0.5) for name in slides), *more], folder)
    return tables


def test_a_profile_in_blocks_is_that_of_all_values() -> None:
    x = np.random.default_rng(0).gamma(2.0, 1.0, size=(11, 3))
    for scale in ("log1p_cp10k", "cp10k", "counts", "log_share", "relative"):
        for average in ("amounts", "values"):
            parts = [BulkSum(3, scale=scale, average=average) for _ in range(2)]
            parts[0].add(x[:4])
            parts[0].add(x[4:6])
            parts[1].add(x[6:])
            whole = bulk_profile(x, scale=scale, average=average)
            np.testing.assert_allclose((parts[0] + parts[1]).profile(), whole, rtol=1e-12)
    assert np.isnan(BulkSum(3, scale="counts").profile()).all()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two slides, which no test changes, and their tables."""
    folder = tmp_path_factory.mktemp("run")
    poor = {"left_out": {"off_image": 1, "pen": 2, "without_cells": ["7"]}, "upsampled": True}
    return folder, run_of(folder, {"a": poor, "b": {"n": 5, "share": 1.0}})


@pytest.mark.parametrize("block_bytes", [1, 40, 16_000_000])
def test_profiles_are_those_of_the_tables(run: Run, monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    monkeypatch.setattr(_stored_tables, "BLOCK_BYTES", block_bytes)
    bulk = collect_cohort(run[0])
    assert bulk.obs_names.tolist() == ["a", "b"]
    assert bulk.var_names.tolist() == GENES
    for name, table in run[1].items():
        kept = table.obs["in_distribution"].to_numpy()
        row = bulk[name]
        np.testing.assert_allclose(np.expm1(row.X[0]), np.expm1(table.X[kept].astype(float)).mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(
            np.expm1(row.layers["all_locations"][0]), np.expm1(table.X.astype(float)).mean(axis=0), rtol=1e-5
        )
        np.testing.assert_allclose(row.layers["location_sd"][0], table.X[kept].std(axis=0), rtol=1e-4)
        said = row.obs.iloc[0]
        assert said["n_tiles"] == len(kept)
        assert said["n_locations"] + said["n_left_out"] == len(kept)
        assert said["share_in_distribution"] == pytest.approx(kept.mean())
        assert (said["n_not_predicted"], said["upsampled"]) == (3 if name == "a" else 0, name == "a")
        assert said["median_ood_score"] == pytest.approx(np.median(table.obs["ood_score"]))
        assert (said["donor"], said["table"], said["region"], said["mpp"]) == (
            f"of {name}",
            "spots_ridge",
            "spots",
            0.5,
        )
    assert bulk.var["cv_pearson"].tolist() == pytest.approx(np.linspace(0.9, 0.1, 4))
    assert bulk.var["n_collected"].tolist() == [2] * 4
    assert read_prediction(bulk)["model_id"] == "m1"


def small_slide(seed: int, genes: list[str]) -> SpatialData:
    """Return a slide of twelve spots with predictions."""
    rng = np.random.default_rng(seed)
    place = {"um": Identity()}
    pixels = rng.integers(150, 250, (3, 40, 30), dtype=np.uint8)
    image = Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=["r", "g", "b"], transformations=place)
    xy = np.stack(np.meshgrid(np.arange(4), np.arange(3)), axis=-1).reshape(-1, 2) * 10.0
    frame = geopandas.GeoDataFrame({"radius": np.full(12, 3.0)}, geometry=geopandas.points_from_xy(*xy.T))
    table = build_table(
        rng.gamma(2.0, 1.0, size=(12, len(genes))).astype(np.float32),
        shapes_key="spots",
        instances=frame.index,
        var=pd.DataFrame(index=genes),
        spatial_um=xy,
        obs={"in_distribution": np.arange(12) % 3 > 0, "ood_score": np.zeros(12)},
        provenance={"model_id": "m1", "output_scale": "log1p_cp10k"},
    )
    return SpatialData(
        images={"he": image},
        shapes={"spots": ShapesModel.parse(frame, transformations=place)},
        tables={"spots_ridge": table},
    )


def test_it_agrees_with_the_pseudobulk_of_slides_in_memory(tmp_path: Path) -> None:
    """And so other tools take it: through disk, of both formats."""
    slides = {f"s{k}": small_slide(k, [*GENES, "KRT8"]) for k in range(3)}
    records = [record(name) for name in slides]
    for name, sdata in slides.items():
        write_result(sdata, tmp_path / f"{name}.zarr")
    write_manifest(records, tmp_path)
    expected = st.tl.pseudobulk(slides, "spots_ridge")
    for end, read in ((".h5ad", ad.read_h5ad), (".zarr", ad.read_zarr)):
        collect_cohort(tmp_path, tmp_path / f"bulk{end}")
        bulk = read(tmp_path / f"bulk{end}")
        np.testing.assert_allclose(bulk.X, expected.X, rtol=1e-6)
        assert bulk.var_names.tolist() == expected.var_names.tolist()
        for column in ("n_locations", "n_left_out", "share_left_out"):
            assert bulk.obs[column].tolist() == expected.obs[column].tolist()
        measured_bulk = pd.DataFrame(expected.X, expected.obs_names, expected.var_names)
        found = st.tl.compare_bulk(bulk, measured_bulk, bulk_scale="log")
        assert found["correlation"].min() > 0.999


def test_counts_are_summed_and_their_total_is_of_all_genes(tmp_path: Path) -> None:
    tables = run_of(tmp_path, {"a": {"scale": "counts"}, "b": {"scale": "counts", "share": 1.0}})
    bulk = collect_cohort(tmp_path, genes=["DCN", "CD3D"])
    assert bulk.var_names.tolist() == ["DCN", "CD3D"]
    for name, table in tables.items():
        kept = table[table.obs["in_distribution"].to_numpy()]
        np.testing.assert_allclose(bulk[name].X[0], kept[:, ["DCN", "CD3D"]].X.sum(axis=0))
        np.testing.assert_allclose(bulk[name].layers["mean"][0], kept[:, ["DCN", "CD3D"]].X.mean(axis=0), rtol=1e-6)
        assert bulk.obs.loc[name, "total_counts"] == pytest.approx(kept.X.sum())


def test_genes_that_a_slide_lacks_are_nan_and_said(tmp_path: Path) -> None:
    tables = run_of(tmp_path, {"a": {}, "b": {"genes": ["DCN", "NEW", "EPCAM"]}})
    with pytest.warns(UserWarning, match="2 of 2 slides lack some of the 5 genes"):
        bulk = collect_cohort(
            tmp_path, tmp_path / "bulk.h5ad", tables=tmp_path / "all.zarr", in_distribution_only=False
        )
    assert bulk.var_names.tolist() == [*GENES, "NEW"]
    assert bulk.var["n_collected"].tolist() == [2, 1, 1, 2, 1]
    assert np.isnan(bulk.to_df()).to_numpy().tolist() == [[False] * 4 + [True], [False, True, True, False, False]]
    joined = ad.read_zarr(tmp_path / "all.zarr").to_df()
    assert np.isnan(joined["NEW"]).tolist() == [True] * 7 + [False] * 7
    np.testing.assert_array_equal(joined["DCN"], np.r_[tables["a"][:, "DCN"].X[:, 0], tables["b"][:, "DCN"].X[:, 0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        read_prediction(ad.read_h5ad(tmp_path / "bulk.h5ad"))  # NaN is what was written


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Slides with ids of text and numbers, of which one has no donor."""
    folder = tmp_path_factory.mktemp("three")
    slides: dict[str, dict[str, Any]] = {"a": {}, "b": {"n": 4, "ids": lambda i: 10 + i}, "ç/d": {"n": 9}}
    tables = {n: stored(folder / f"{k}.zarr", GENES, seed=k, **o) for k, (n, o) in enumerate(slides.items())}
    donors = {"a": "d", "b": "", "ç/d": "d"}
    write_manifest([record(n, store=f"{k}.zarr", donor=donors[n]) for k, n in enumerate(slides)], folder)
    return folder, tables


@pytest.mark.parametrize("end", [".h5ad", ".zarr"])
def test_joined_tables_are_what_concatenation_gives(
    three: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(_stored_tables, "BLOCK_BYTES", 40)
    monkeypatch.setattr(_joined_tables, "CHUNK_BYTES", 100)
    folder, tables = three
    out = tmp_path / f"all{end}"
    collect_cohort(folder, tables=out, genes=["COL1A1", "EPCAM"], layers=["std"])
    joined = ad.read_h5ad(out) if end == ".h5ad" else ad.read_zarr(out)
    expected = ad.concat(tables, index_unique=None)[:, ["COL1A1", "EPCAM"]]
    np.testing.assert_array_equal(joined.X, expected.X)
    np.testing.assert_array_equal(joined.layers["std"], expected.layers["std"])
    np.testing.assert_array_equal(joined.obsm["spatial"], expected.obsm["spatial"])
    assert joined.obs_names.is_unique
    assert joined.obs_names.tolist() == [f"{n}/{i}" for n, t in tables.items() for i in t.obs["instance_id"]]
    assert joined.obs["slide"].tolist() == [n for n, t in tables.items() for _ in range(t.n_obs)]
    assert joined.obs["donor"].isna().sum() == 4
    assert joined.obs["region"].unique().tolist() == ["spots"]
    assert joined.obs["instance_id"].tolist() == [str(i) for t in tables.values() for i in t.obs["instance_id"]]
    assert joined.obs["in_distribution"].tolist() == expected.obs["in_distribution"].tolist()
    np.testing.assert_allclose(joined.obs["ood_score"], expected.obs["ood_score"], rtol=1e-6)
    said = json.loads(joined.uns["stpred"])
    assert (said["kind"], said["output_scale"], said["model_id"]) == ("cohort_tables", "log1p_cp10k", "m1")
    assert joined.var["n_collected"].tolist() == [3, 3]
    copied = tmp_path / "copy.h5ad"
    joined.write_h5ad(copied)  # an ordinary AnnData
    if end == ".h5ad":
        assert ad.read_h5ad(out, backed="r").X[3, 1] == expected.X[3, 1]


def test_whole_numbers_stay_instance_ids(three: Run, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in ("b", "c"):
        shutil.copytree(three[0] / "1.zarr", tmp_path / "run" / f"{name}.zarr")
    write_manifest([record("b"), record("c")], tmp_path / "run")
    collect_cohort(tmp_path / "run", tables=tmp_path / "t.h5ad")
    joined = ad.read_h5ad(tmp_path / "t.h5ad")
    assert joined.obs["instance_id"].tolist() == [10, 11, 12, 13] * 2
    assert joined.obs_names[4] == "c/10"


def test_what_is_left_out_is_said(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run[0], tmp_path, dirs_exist_ok=True)
    marks = zarr.open_group(tmp_path / "b.zarr" / "tables" / "spots_ridge" / "obs", use_consolidated=False)
    marks["in_distribution"][:] = False
    more = (record("c", status="failed", error="No."), record("d", status="pending"))
    write_manifest([record("a"), record("b"), *more], tmp_path)
    with pytest.warns(UserWarning, match="slides") as warned:
        bulk = collect_cohort(tmp_path, tmp_path / "x.h5ad")
    said = [str(w.message) for w in warned]
    assert any("2 of 4 slides are not complete and left out (1 failed, 1 pending)" in s for s in said)
    assert any("No location of 1 of 2 slides is in distribution" in s and "'b'" in s for s in said)
    assert np.isnan(bulk["b"].X).all()
    assert not np.isnan(bulk["b"].layers["all_locations"]).any()
    assert read_prediction(bulk)["left_out"] == {"failed": ["c"], "pending": ["d"]}


def refused(match: str, *args: Any, **options: Any) -> None:
    with pytest.raises(InputError, match=match):
        collect_cohort(*args, **options)


def test_what_cannot_be_collected_is_named(run: Run, tmp_path: Path) -> None:
    refused("no cohort was predicted into it", tmp_path)
    write_manifest([record("a", status="failed"), record("b", status="pending")], tmp_path)
    refused(r"No slide in '.*' is complete \(1 failed, 1 pending\)", tmp_path)
    folder, out = run[0], tmp_path / "x.h5ad"
    refused("must end in .h5ad or .zarr", folder, tmp_path / "x.csv")
    refused("is the store of a slide", folder, folder / "a.zarr", overwrite=True)
    refused("are both", folder, tmp_path / "x.zarr", tables=tmp_path / "x.zarr")
    refused(r"No slide has 1 of 2 `genes`: \['NOPE'\]; the tables have 4", folder, out, genes=["DCN", "NOPE"])
    refused("`genes` is empty", folder, out, genes=[])
    refused("`average` must be one of", folder, out, average="median")
    refused(r"is of the model 'other'; there are \['ridge', 'm1'\]", folder, out, model="other")
    refused("has no table 'cells_ridge'; its tables: .*'spots_ridge'", folder, out, table_key="cells_ridge")
    refused("`layers`=.*names no file", folder, out, layers=["std"])
    refused(r"lacks layers\['q10'\]; it has \['std'\]", folder, layers=["q10"], tables=out)
    (tmp_path / "there.h5ad").touch()
    refused("exists; choose another name", folder, tmp_path / "there.h5ad")
    (tmp_path / "dir.h5ad").mkdir()
    refused("is a folder, not a file", folder, tmp_path / "dir.h5ad")
    assert not list(tmp_path.glob("x.*"))


def test_stores_that_are_not_what_the_manifest_says(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run[0], tmp_path, dirs_exist_ok=True)
    write_manifest([record("a"), record("b"), record("gone")], tmp_path)
    refused("is complete in the manifest, but its store .*gone.zarr' is not there", tmp_path)
    write_manifest([record("a"), record("b")], tmp_path)
    table = tmp_path / "b.zarr" / "tables" / "spots_ridge"
    (table / "zarr.json").unlink()
    refused("store of slide 'b', .*b.zarr' (cannot be read|is not there)", tmp_path)
    write_manifest([record("a")], tmp_path)
    chunks = [p for p in (tmp_path / "a.zarr" / "tables" / "spots_ridge" / "X" / "c").rglob("*") if p.is_file()]
    chunks[0].write_bytes(b"damage")
    out = {"out": tmp_path / "x.h5ad", "tables": tmp_path / "t.zarr"}
    refused("table 'spots_ridge' of slide 'a' in .*a.zarr' cannot be read", tmp_path, **out)
    assert not [*tmp_path.glob("x.*"), *tmp_path.glob("t.*"), *tmp_path.glob(".t*")]


def test_what_cannot_be_read_is_skipped_on_request(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    shutil.copytree(folder / "b.zarr", folder / "torn.zarr")
    chunks = [p for p in (folder / "torn.zarr" / "tables" / "spots_ridge" / "X" / "c").rglob("*") if p.is_file()]
    chunks[-1].write_bytes(b"damage")
    write_manifest([record(s) for s in ("gone", "a", "torn", "b")], folder)
    expected = collect_two(folder, run)
    out = {"out": tmp_path / "x.h5ad", "tables": tmp_path / "t.h5ad"}
    with pytest.raises(InputError, match="'gone' is complete in the manifest, but its store"):
        collect_cohort(folder, **out)
    with pytest.warns(UserWarning, match=r"2 of 4 complete slides cannot be read.*'gone'.*'torn'"):
        bulk = collect_cohort(folder, **out, skip_errors=True)
    assert bulk.obs_names.tolist() == ["a", "b"]
    np.testing.assert_array_equal(bulk.X, expected.X)
    joined = ad.read_h5ad(tmp_path / "t.h5ad")
    assert list(dict.fromkeys(joined.obs["slide"])) == ["a", "b"]
    assert not np.isnan(joined.X).any()
    said = json.loads(bulk.uns["stpred"])["unreadable"]
    assert list(said) == ["gone", "torn"]
    assert "cannot be read" in said["torn"]
    write_manifest([record("gone"), record("torn")], folder)  # nothing is left
    refused("'torn'", folder, tmp_path / "y.h5ad", skip_errors=True)
    assert not [*tmp_path.glob("y*"), *tmp_path.glob(".y*")]


def collect_two(folder: Path, run: Run) -> ad.AnnData:
    """Collect the slides that can be read, alone."""
    named = folder.parent / "two"
    for name in ("a", "b"):
        shutil.copytree(run[0] / f"{name}.zarr", named / f"{name}.zarr")
    write_manifest([record("a"), record("b")], named)
    return collect_cohort(named)


def test_the_command_lists_what_it_skips(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    write_manifest([record("a"), record("gone"), record("b")], folder)
    command = ["collect", str(folder), "-o", str(tmp_path / "x.h5ad")]
    assert CliRunner().invoke(app, command).exit_code == 2
    said = CliRunner().invoke(app, [*command, "--skip-errors"])
    assert said.exit_code == 3, said.output
    assert "Pseudo-bulk of 2 slides" in said.output
    assert "Left out: gone: Slide 'gone' is complete in the manifest" in " ".join(said.output.split())
    assert (tmp_path / "x.h5ad").is_file()
    assert (tmp_path / "x.html").is_file()


def test_models_and_scales_are_not_mixed(tmp_path: Path) -> None:
    for name, model, scale in (("a", "m1", "log1p_cp10k"), ("b", "m2", "log1p_cp10k"), ("c", "m1", "relative")):
        stored(tmp_path / f"{name}.zarr", GENES, scale=scale, model_id=model)
    write_manifest([record("a"), record("b", model_id="m2")], tmp_path)
    refused(r"are of 2 models, .*ridge \(m1\): 1 slides.*choose one by its id", tmp_path)
    assert collect_cohort(tmp_path, model="m2").obs_names.tolist() == ["b"]
    write_manifest([record("a"), record("b")], tmp_path)
    refused(r"tables in the stores are of 2 models.*'m2' \(such as 'b'\)", tmp_path)
    write_manifest([record("a"), record("c")], tmp_path)
    refused(r"on several scales.*'log1p_cp10k' of \['a'\]; 'relative' of \['c'\]", tmp_path)


def test_a_full_disk_leaves_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
        refused("need about 0.0 GB, and .* has 0.0 GB left", run[0], tables=tmp_path / "t.zarr")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "Can't close file (file write failed: errno = 28, total write size = 2048)")

    monkeypatch.setattr(_joined_tables.JoinedTables, "values", full)
    for end in (".h5ad", ".zarr"):
        refused("No space left on device; nothing was changed", run[0], tables=tmp_path / f"t{end}")
    assert not list(tmp_path.iterdir())


def test_the_command_writes_all_three(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "cohort.h5ad"
    command = ["collect", str(run[0]), "-o", str(out), "--tables", str(tmp_path / "t.h5ad"), "--layer", "std"]
    said = CliRunner().invoke(app, [*command, "--genes", "DCN, EPCAM", "--all-locations"])
    assert said.exit_code == 0, said.output
    assert "Pseudo-bulk of 2 slides x 2 genes" in said.output
    assert "Tables of 12 locations x 2 genes" in said.output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cohort.h5ad", "cohort.html", "t.h5ad"]
    bulk = ad.read_h5ad(out)
    assert bulk.var_names.tolist() == ["DCN", "EPCAM"]
    assert bulk.obs["n_left_out"].tolist() == [0, 0]
    for more, reason in (
        (["-o", str(out)], "exists; choose another name or pass --overwrite"),
        (["-o", "x.h5ad", "--page", "p.html", "--no-page"], "are both given"),
        ([], "There is nothing to write"),
        (["-o", str(tmp_path / "x.h5ad"), "--genes", "NOPE"], "No slide has 1 of 1 `--genes`"),
    ):
        said = CliRunner().invoke(app, ["collect", str(run[0]), *more])
        assert said.exit_code == 2
        assert reason in said.output
    assert len(list(tmp_path.iterdir())) == 3
    assert CliRunner().invoke(app, ["collect", str(run[0]), "--page", str(tmp_path / "p.html")]).exit_code == 0
    assert (tmp_path / "p.html").is_file()


def test_counts_per_ten_thousand_are_averaged_as_amounts_and_joined_as_they_are(tmp_path: Path) -> None:
    tables = run_of(tmp_path, {"a": {"scale": "counts", "per": 1e4}})
    bulk = collect_cohort(tmp_path, tables=tmp_path / "t.h5ad", in_distribution_only=False)
    np.testing.assert_allclose(bulk.X[0], np.log1p(tables["a"].X.mean(axis=0)), rtol=1e-5)
    assert read_prediction(bulk)["output_scale"] == "log1p_cp10k"
    joined = ad.read_h5ad(tmp_path / "t.h5ad")
    np.testing.assert_array_equal(joined.X, tables["a"].X)
    said = json.loads(joined.uns["stpred"])
    assert (said["output_scale"], said["per"]) == ("counts", 1e4)

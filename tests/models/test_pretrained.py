"""Published predictors as models: their own loading code, on small local weights of the same layout."""

from __future__ import annotations

import importlib.util
import json
import sys
import types

import numpy as np
import pytest
import spatialdata as sd

import stpred as st
from stpred import InputError
from stpred._core.tables import read_provenance

pytest.importorskip("lazyslide_models")
torch = pytest.importorskip("torch")

from . import pretrained_fakes as fakes  # noqa: E402

GENES = ["EPCAM", "COL1A2", "PTPRC", "MUC1"]
SIZE = {"size_um": (600, 600), "n_genes": 20}


@pytest.fixture(scope="module", autouse=True)
def registered():
    names = fakes.register_fakes()
    yield
    fakes.unregister(names)


@pytest.fixture(scope="module")
def slides() -> dict:
    return st.datasets.toy_cohort(3, **SIZE)


def colours(slide, shapes_key: str = "spots") -> np.ndarray:
    return np.asarray(st.pp.features(slide, "colour", shapes_key=shapes_key, inplace=False).X)


def measured(slide) -> np.ndarray:
    counts = slide.tables["spots_counts"]
    values = np.asarray(counts.X.todense() if hasattr(counts.X, "todense") else counts.X, dtype=np.float64)
    return np.log1p(values / values.sum(axis=1, keepdims=True) * 1e4)[:, counts.var_names.get_indexer(GENES)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Weights that were learned on another donor."""
    other = st.datasets.toy(donor=7, seed=7, **SIZE)
    x, y = colours(other), measured(other)
    weights = np.linalg.lstsq(x - x.mean(axis=0), y - y.mean(axis=0), rcond=1e-6)[0]
    path = tmp_path_factory.mktemp("weights")
    fakes.write_weights(path, GENES, 3 * weights)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return st.models.get("lazyslide/fake-features", weights=folder)


def by_hand(folder, features: np.ndarray) -> np.ndarray:
    layer = fakes.linear(str(folder / "features.safetensors"))
    with torch.no_grad():
        return layer(torch.as_tensor(features, dtype=torch.float32)).numpy()


def aligned(slide, table, region: str) -> None:
    sd.models.TableModel().validate(table)
    rows = slide[region].loc[table.obs["instance_id"]]
    centres = np.stack([rows.geometry.centroid.x, rows.geometry.centroid.y], axis=1)
    to_um = sd.transformations.get_transformation(slide[region], "um").to_affine_matrix(("x", "y"), ("x", "y"))
    np.testing.assert_allclose(table.obsm["spatial"], centres @ to_um[:2, :2].T + to_um[:2, 2], atol=1e-3)


def test_values_are_those_of_the_module_and_say_where_they_are_from(slides, folder, model) -> None:
    binned = st.datasets.toy(size_um=(300, 300), n_genes=20, bin_um=16)
    for region in ("bins_016um", "spots", "cells"):
        slide = binned if region == "bins_016um" else slides["donor0"]
        with pytest.warns(UserWarning, match=r"is not known, so obs\['ood_score'\] is NaN"):
            st.tl.predict(slide, model, shapes_key=region)
        table = slide.tables[f"{region}_fake-features"]
        np.testing.assert_allclose(table.X, by_hand(folder, colours(slide, region)), rtol=1e-5, atol=1e-5)
        aligned(slide, table, region)
    assert table.var_names.tolist() == GENES
    assert np.isnan(table.obs["ood_score"]).all()
    assert table.obs["ood_score"].dtype.kind == "f"
    assert table.obs["in_distribution"].dtype == bool
    assert not table.obs["in_distribution"].any()
    found = read_provenance(table, what="table")
    assert found["output_scale"] == "relative"
    assert found["slide"]["share_unlike"] is None
    training = found["training"]
    assert training["source"] == "lazyslide/fake-features"
    assert training["licence"] == "CC-BY-NC-4.0"
    assert training["revision"] == model.config.revision
    assert training["revision"].startswith("sha256:")
    assert training["package"].startswith("lazyslide-models ")
    assert training["ood_reference"] == "none: ood_score is NaN"
    assert model.id == st.models.get("lazyslide/fake-features", weights=folder).id


def test_tiles_of_pixels_and_a_slide_without_regions(slides, folder, tmp_path) -> None:
    slide = slides["donor0"]
    model = st.models.get("lazyslide/fake-tiles", weights=folder)
    assert model.record.tile == {"mpp": 0.5, "size_px": 32}
    st.tl.predict(slide, model, shapes_key="spots")
    pixels = st.encoders.get("pixels", tile=st.TileSpec(0.5, 32))
    tiles = np.asarray(st.pp.features(slide, pixels, shapes_key="spots", inplace=False).X).reshape(-1, 32 * 32, 3)
    layer = fakes.linear(str(folder / "tiles.safetensors"))
    with torch.no_grad():
        expected = layer(torch.tensor((tiles.mean(axis=1) / 255 - 0.5) / 0.5, dtype=torch.float32)).numpy()
    np.testing.assert_allclose(slide.tables["spots_fake-tiles"].X, expected, atol=2e-3)
    bare = sd.SpatialData(images={"he": slide["he"]})
    st.tl.predict(bare, model)
    aligned(bare, bare.tables["grid_fake-tiles"], "grid")
    bare.write(tmp_path / "bare.zarr")
    again = sd.read_zarr(tmp_path / "bare.zarr").tables["grid_fake-tiles"]
    np.testing.assert_array_equal(again.X, bare.tables["grid_fake-tiles"].X)


def test_a_predictor_of_whole_slides_sees_all_points_and_their_places(slides, folder, tmp_path) -> None:
    slide = slides["donor0"]
    model = st.models.get("lazyslide/fake-slide", weights=folder, organ_type="Breast")
    assert model.record.var["gene_id"][0] == "ENSG00000000000"
    assert model.record.genes == GENES
    st.tl.predict(slide, model, shapes_key="spots")
    table = slide.tables["spots_fake-slide"]
    values = by_hand(folder, colours(slide))
    xy = table.obsm["spatial"] - table.obsm["spatial"].min(axis=0)
    np.testing.assert_allclose(table.X, values + values.mean(axis=0) + xy[:, :1] / xy.max(), rtol=1e-4, atol=1e-4)
    assert table.var["gene_id"].tolist() == [f"ENSG{i:011d}" for i in range(4)]
    with pytest.raises(InputError, match=r"max_spots=400; with `pitch_um` of stpred.models.get, finer regions"):
        st.tl.predict(slide, model, shapes_key="cells")
    finer = st.models.get("lazyslide/fake-slide", weights=folder, pitch_um=100)
    st.tl.predict(slide, finer, shapes_key="cells")
    cells = slide.tables["cells_fake-slide"]
    own = by_hand(folder, colours(slide, "cells"))
    rest = cells.X - own - (cells.obsm["spatial"][:, :1] - cells.obsm["spatial"][:, 0].min()) / 600
    assert rest.std(axis=0).max() < 0.2 * own.std(axis=0).max()  # the slide's part is nearly that of its spots
    renamed = st.models.get("lazyslide/fake-slide", weights=folder, gene_ids={"ERBB2": "ENSG00000000001.4"})
    assert renamed.record.genes == ["EPCAM", "ERBB2", "PTPRC", "MUC1"]
    few = st.models.get("lazyslide/fake-slide", weights=folder, genes=["MUC1", "EPCAM"])
    st.tl.predict(slide, few, shapes_key="spots", key_added="few")
    np.testing.assert_allclose(slide.tables["few"].X, table[:, ["MUC1", "EPCAM"]].X, rtol=1e-5)


def test_a_saved_model_holds_no_weights_and_takes_none_but_its_own(slides, folder, model, tmp_path) -> None:
    path = st.models.save(model, tmp_path / "saved")
    assert sorted(p.name for p in path.iterdir()) == ["config.json", "model.safetensors"]
    said = (path / "config.json").read_text()
    assert str(folder) not in said
    assert "pretrained_fakes" not in said
    batch = st.models.Batch.of(colours(slides["donor0"]))
    with pytest.raises(InputError, match=r"weights of 'lazyslide/fake-features' are not part of a saved model"):
        st.models.load(path).predict(batch)
    with pytest.raises(InputError, match=r"names 'lazyslide/fake-features', whose weights are not part of it"):
        st.models.get(path)
    for weights in (folder, model):
        again = st.models.get(path, weights=weights)
        np.testing.assert_array_equal(again.predict(batch)[0], model.predict(batch)[0])
        assert again.id == model.id
    fakes.write_weights(tmp_path / "others", GENES, np.ones((6, 4)))
    with pytest.raises(InputError, match="are not those of model 'fake-features'"):
        st.models.get(path, weights=tmp_path / "others")
    with pytest.raises(InputError, match=r"is a saved model, which says \['genes'\] itself"):
        st.models.get(path, weights=folder, genes=["EPCAM"])
    with pytest.raises(InputError, match="is a model of family"):
        st.models.get(st.models.save(st.models.load("default"), tmp_path / "own"), weights=folder)
    content = json.loads(said)
    content["config"]["code"] = "os.system"
    (path / "config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"no fields \['code'\]"):
        st.models.load(path)


def test_scored_beside_models_that_are_trained(slides, folder, model) -> None:
    groups = {"donor0": "A", "donor1": "B", "donor2": "C"}
    scores, found = st.tl.cross_validate(
        slides, ["mean", "ridge", model], groups=groups, genes=GENES, shapes_key="spots", encoder="colour",
        key_added="cv", return_models=True,
    )  # fmt: skip
    own = scores[(scores["model"] == "fake-features") & (scores["metric"] == "pearson")]
    assert set(own["fold"]) == {"A", "B", "C"}
    assert set(own["gene"]) == set(GENES)
    expected = st.metrics.pearson(by_hand(folder, colours(slides["donor1"])), measured(slides["donor1"]))
    row = own[own["slide"] == "donor1"].set_index("gene")["value"].reindex(GENES)
    np.testing.assert_allclose(row, expected, atol=1e-5)
    assert scores[(scores["model"] == "fake-features") & (scores["metric"] == "r2")]["value"].isna().all()  # relative
    assert found["fake-features"]["A"] is model
    assert "fake-features" in str(st.tl.rank_models(scores))
    table = slides["donor1"].tables["spots_fake-features_cv"]
    np.testing.assert_allclose(table.X, by_hand(folder, colours(slides["donor1"])), rtol=1e-4, atol=1e-5)
    outside = st.tl.validate(slides, {"theirs": model}, groups=groups, shapes_key="spots")
    same = outside[(outside["metric"] == "pearson") & (outside["model"] == "theirs") & (outside["slide"] == "donor1")]
    np.testing.assert_allclose(same.set_index("gene")["value"].reindex(GENES), expected, atol=1e-5)
    assert np.isnan(outside.attrs["in_distribution"]["theirs"]["donor1"])
    ridge = st.tl.train(slides, "ridge", genes=GENES, shapes_key="spots", encoder="colour")
    with pytest.raises(InputError, match=r"Model 'ridge' was trained on \['donor0', 'donor1', 'donor2'\]"):
        st.tl.cross_validate(slides, ridge, groups=groups, shapes_key="spots")
    with pytest.raises(InputError, match="predicts none of the 1 genes of fold 'A'"):
        st.tl.cross_validate(slides, model, groups=groups, genes=["KRT8"], shapes_key="spots")


def test_recalibrated_and_fine_tuned_to_the_scale_of_a_slide(slides, folder, model, tmp_path) -> None:
    slide = slides["donor2"]
    st.tl.predict(slide, model, shapes_key="spots")
    st.tl.recalibrate(slide, "spots_fake-features", "spots_counts", instances=slide["spots"].index[::3])
    table = slide.tables["spots_fake-features_recalibrated"]
    assert read_provenance(table, what="table")["output_scale"] == "log1p_cp10k"
    assert "interval_low" in table.var
    held_out = np.setdiff1d(np.arange(len(measured(slide))), np.arange(0, len(slide["spots"]), 3))
    raw, new = (np.abs(t.X - measured(slide))[held_out].mean() for t in (slide.tables["spots_fake-features"], table))
    assert new < 0.5 * raw
    with pytest.raises(InputError, match="can have no intervals: its predictions are relative"):
        st.tl.conformal(model, slides, shapes_key="spots")

    own = {s: slides[s] for s in ("donor0", "donor1")}
    tuned = st.tl.finetune(model, own, shapes_key="spots", groups={"donor0": "A", "donor1": "B"})
    assert tuned.record.target == "log1p_cp10k"
    assert tuned.record.training["finetuned"]["base"] == model.id
    assert tuned.typical.fitted
    assert model.record.target == "relative"
    assert not model.config.head
    got = st.tl.predict(slide, tuned, shapes_key="spots", inplace=False)
    truth = measured(slide)
    assert np.abs(got.X - truth).mean() < 0.5 * np.abs(slide.tables["spots_fake-features"].X - truth).mean()
    assert np.isfinite(got.obs["ood_score"]).all()
    before = st.metrics.pearson(slide.tables["spots_fake-features"].X, truth).mean()
    assert st.metrics.pearson(got.X, truth).mean() > before - 0.05
    again = st.models.get(st.models.save(tuned, tmp_path / "tuned"), weights=folder)
    np.testing.assert_allclose(st.tl.predict(slide, again, shapes_key="spots", inplace=False).X, got.X, rtol=1e-6)
    fresh = {f"n{i}": st.datasets.toy(donor=5 + i, seed=5 + i, **SIZE) for i in range(3)}
    found = st.tl.conformal(tuned, fresh, shapes_key="spots")
    assert found.set_index("level").loc[0.9, "coverage"] > 0.75
    assert {"lower", "upper"} <= set(
        st.tl.predict(slide, tuned, shapes_key="spots", interval=0.9, inplace=False).layers
    )


def test_a_reference_of_training_tiles_gives_scores(slides, folder) -> None:
    reference = [colours(slides[s]) for s in ("donor0", "donor1", "donor2")]
    model = st.models.get("lazyslide/fake-features", weights=folder, reference=reference)
    table = st.tl.predict(slides["donor0"], model, shapes_key="spots", inplace=False)
    assert table.obs["in_distribution"].mean() > 0.9
    assert np.isfinite(table.obs["ood_score"]).all()
    assert model.record.training["ood_reference"].endswith("training tiles of 3 slides")
    with pytest.raises(InputError, match=r"finite features of shape \(n, 6\)"):
        st.models.get("lazyslide/fake-features", weights=folder, reference=np.ones((5, 3)))


def test_loading_code_of_the_package_reads_local_folders(slides, tmp_path, monkeypatch) -> None:
    """The classes of lazyslide-models themselves."""

    class Pool(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = torch.nn.Linear(3, 768)

        def forward(self, x):
            return self.map(x.mean(dim=(2, 3)))

    encoder = st.encoders.get(Pool(), tile=st.TileSpec(0.5, 32), name="ctranspath")
    head = torch.nn.Linear(768, 3).eval()
    rows = torch.export.Dim("rows", min=1)
    program = torch.export.export(head, (torch.zeros(4, 768),), dynamic_shapes=({0: rows},))
    torch.export.save(program, tmp_path / "Path2Space_exported.pt2")
    (tmp_path / "Path2Space_genes.txt").write_text("EPCAM\nMUC1\nERBB2\n")
    with pytest.warns(UserWarning, match="normalised by Macenko's method in training"):
        model = st.models.get("lazyslide/path2space", weights=tmp_path, encoder=encoder)
    assert model.record.training["licence"] == "Apache-2.0"
    table = st.tl.predict(slides["donor0"], model, shapes_key="spots", inplace=False)
    features = np.asarray(st.pp.features(slides["donor0"], encoder, shapes_key="spots", inplace=False).X, np.float32)
    with torch.no_grad():
        np.testing.assert_allclose(table.X, head(torch.tensor(features)).numpy(), rtol=1e-3, atol=1e-4)
    (tmp_path / "Path2Space_genes.txt").unlink()
    with pytest.raises(InputError, match=r"lacks 'Path2Space/Path2Space_genes.txt' \(of the hub repository"):
        st.models.get("lazyslide/path2space", weights=tmp_path, encoder=encoder)

    asked = []

    class Theirs(torch.nn.Module):
        gene_names = ("EPCAM", "MUC1")

        def __init__(self) -> None:
            super().__init__()
            self.map = torch.nn.Linear(3, 2)

        @classmethod
        def from_pretrained(cls, name, source):
            asked.append((name, source))
            return cls(), lambda image: torch.tensor(np.asarray(image), dtype=torch.float32).permute(2, 0, 1) / 255

        def forward(self, image):
            return self.map(image.mean(dim=(2, 3))), None, None

    module = types.ModuleType("deepspotm")
    module.__spec__ = importlib.util.spec_from_loader("deepspotm", loader=None)
    module.DeepSpotM = Theirs
    monkeypatch.setitem(sys.modules, "deepspotm", module)
    model = st.models.get("lazyslide/deepspotm", weights=tmp_path, source="prott5")
    assert asked == [(str(tmp_path), "prott5")]
    assert model.record.genes == ["EPCAM", "MUC1"]
    assert not model.record.training["commercial"]
    assert "PolyForm-Noncommercial" in model.record.training["licence"]
    assert st.tl.predict(slides["donor0"], model, shapes_key="spots", inplace=False).n_vars == 2


def test_bad_input(slides, folder, tmp_path, monkeypatch) -> None:
    get = st.models.get
    with pytest.raises(InputError, match=r"named 'lazyslide/stpth' \(did you mean 'lazyslide/stpath'.*lazyslide/path2"):
        get("lazyslide/stpth")
    with pytest.raises(InputError, match="there are .*lazyslide/deepspotm"):
        get("nothing at all")
    with pytest.raises(InputError, match="There is no file or folder `weights`='nowhere'"):
        get("lazyslide/fake-features", weights="nowhere")
    with pytest.raises(InputError, match=r"lacks 'Fake/features.safetensors'.*it holds"):
        get("lazyslide/fake-features", weights=tmp_path)
    (tmp_path / "features.safetensors").write_text("no tensors")
    with pytest.raises(InputError, match="cannot be used for lazyslide/fake-features"):
        get("lazyslide/fake-features", weights=tmp_path)
    with pytest.raises(InputError, match=r"does not predict \['NOPE'\]; it has 4 outputs, such as"):
        get("lazyslide/fake-features", weights=folder, genes=["EPCAM", "NOPE"])
    with pytest.raises(InputError, match="`genes` is empty"):
        get("lazyslide/fake-features", weights=folder, genes=[])
    with pytest.raises(InputError, match=r"has no settings \['organ'\]; it takes \['max_spots', 'organ_type'\]"):
        get("lazyslide/fake-slide", weights=folder, organ="Breast")
    with pytest.raises(InputError, match="never logs in"):
        get("lazyslide/fake-slide", weights=folder, token="x")
    with pytest.raises(InputError, match=r"gives .'class'.?, which are no numbers"):
        get("lazyslide/fake-classes", weights=folder)
    with pytest.raises(InputError, match="was trained on features of 'colour', not of 'intensity'"):
        get("lazyslide/fake-features", weights=folder, encoder="intensity")
    with pytest.raises(InputError, match="reads tiles itself"):
        get("lazyslide/fake-tiles", weights=folder, encoder="colour")
    with pytest.raises(InputError, match="`pitch_um` is for predictors that see a slide as a whole"):
        get("lazyslide/fake-features", weights=folder, pitch_um=100)
    with pytest.raises(InputError, match="takes the folder of its weights, not a file"):
        get("lazyslide/fake-tiles", weights=folder / "tiles.safetensors")

    with pytest.raises(InputError, match="Published predictors come from stpred.models.get"):
        st.tl.predict(slides["donor0"], "lazyslide/stpath")
    with pytest.raises(InputError, match="a published predictor, whose weights are not part of a saved model"):
        st.tl.predict_cohort({"a": tmp_path}, get("lazyslide/fake-tiles", weights=folder), tmp_path / "out")

    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(InputError, match=r"could not be fetched \(OSError.*weights=<their folder>"):
        get("lazyslide/fake-features")
    with pytest.raises(InputError, match=r"are gated \(licence CC-BY-NC-4.0\): request access"):
        get("lazyslide/fake-tiles")
    monkeypatch.setattr("stpred.pretrained.lazyslide.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"come with `pip install 'stpred\[encoders\]'`"):
        get("lazyslide/stpath")


def test_no_pickle_is_run(folder, tmp_path) -> None:
    from stpred.pretrained.hub import repository

    torch.save({"weight": types.SimpleNamespace()}, tmp_path / "bad.pth")
    before = torch.load
    with repository(tmp_path), pytest.raises(Exception, match="(?i)weights.only"):
        torch.load(tmp_path / "bad.pth", weights_only=False)
    assert torch.load is before


def test_other_panels_and_alike_genes_are_refused(slides, model) -> None:
    other = st.datasets.toy(n_genes=20, size_um=(400, 400))
    other.tables["spots_counts"].var_names = [f"ENSG{i:011d}" for i in range(20)]
    with pytest.raises(InputError, match="share no gene"):
        st.tl.cross_validate({"a": other, "b": slides["donor0"]}, ["ridge", model], groups={"a": "A", "b": "B"},
                             genes=GENES, shapes_key="spots")  # fmt: skip
    with pytest.raises(InputError, match="maps all of its genes|share no gene"):
        st.tl.finetune(model, other, shapes_key="spots")

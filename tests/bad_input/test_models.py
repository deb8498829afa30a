"""Model folders that are none or damaged, models that are not trained, features of another image or encoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from spatialdata import SpatialData

import stpred as st
from stpred._core.checks import MissingFileError
from stpred.models import Model

Change = Callable[[Path], Any]


def facts(**changed: Any) -> Change:
    def change(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text()) | changed
        (folder / "config.json").write_text(json.dumps({k: v for k, v in content.items() if v is not ...}, default=str))

    return change


def record(**changed: Any) -> Change:
    def change(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        content["record"] |= changed
        (folder / "config.json").write_text(json.dumps(content))

    return change


def tensors(edit: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    def change(folder: Path) -> None:
        found = load_file(folder / "model.safetensors")
        edit(found)
        save_file(found, folder / "model.safetensors")

    return change


def write(name: str, content: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content)


DAMAGED: dict[str, tuple[Change, tuple[str, ...]]] = {
    "newer": (facts(format_version=99), ("format version 99", "reads 1", "upgrade stpred")),
    "older": (facts(format_version=0), ("format version 0", "reads 1", "train or save it again")),
    "unversioned": (facts(format_version=None), ("format version None", "reads 1")),
    "unknown family": (facts(family="unet"), ("No model family named 'unet'", "'istar', 'kernel_ridge', 'mean'")),
    "no record": (facts(record=...), ("config.json' lacks ['record']",)),
    "odd record": (facts(record="x"), ("config.json' holds no record", "'x'")),
    "unknown fact": (record(speed=11), ("unknown fields ['speed']", "'genes'")),
    "no genes": (record(genes=None), ("config.json' lacks ['genes']",)),
    "short column": (record(var={"rmax": [1.0]}), ("2 genes", "['rmax']")),
    "unknown setting": (facts(config={"speed": 11}), ("has no fields ['speed']", "['n_bins']")),
    "odd settings": (facts(config="x"), ("config.json' holds no settings", "'x'")),
    "odd width": (facts(n_features="wide"), ("n_features", "positive whole number", "'wide'")),
    "no encoder": (record(encoder={}), ("'tiny' does not say which encoder",)),
    "unknown encoder": (record(encoder={"name": "retina-x"}), ("No encoder named 'retina-x'", "'morphology'")),
    "missing tensor": (tensors(lambda t: t.pop("coef")), ("model.safetensors' lacks tensors ['coef']",)),
    "unknown tensor": (
        tensors(lambda t: t.update(extra=torch.zeros(2))),
        ("model.safetensors'", "'intensity' does not know: ['extra']"),
    ),
    "odd shape": (tensors(lambda t: t.update(coef=torch.zeros(2, 2))), ("Tensor 'coef'", "shape (2, 2)", "needs (")),
    "no tensors": (lambda folder: (folder / "model.safetensors").unlink(), ("model.safetensors' is missing",)),
    "junk tensors": (write("model.safetensors", b"\x80\x04 pickle"), ("model.safetensors' cannot be read",)),
    "empty tensors": (write("model.safetensors", b""), ("model.safetensors' cannot be read",)),
    "junk config": (write("config.json", b"{"), ("config.json' is not valid JSON",)),
    "list config": (write("config.json", b"[]"), ("holds no JSON object but list",)),
    "no config": (lambda folder: (folder / "config.json").unlink(), ("No model at", "config.json", "'default'")),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_model_folders(kind: str, trained: Model, rebuild: Any, refused: Any, tmp_path: Path) -> None:
    change, parts = DAMAGED[kind]
    folder = st.models.save(trained, tmp_path / "model")
    change(folder)
    sdata = rebuild()
    with refused(*parts, sdata=sdata):
        st.tl.predict(sdata, folder, shapes_key="spots")


@pytest.mark.parametrize("name", ["nowhere", "ridge", "", "defaul"])
def test_names_that_are_no_model(name: str, rebuild: Any, refused: Any) -> None:
    sdata = rebuild()
    with refused(f"No model at {name!r}", "config.json", "bundled: ['default', ", sdata=sdata, error=MissingFileError):
        st.tl.predict(sdata, name, shapes_key="spots")


def test_folders_that_are_no_model(rebuild: Any, refused: Any, tmp_path: Path) -> None:
    sdata = rebuild()
    for folder in (tmp_path, tmp_path / "none"):
        with refused(repr(str(folder)), "config.json", "'default'", sdata=sdata, error=MissingFileError):
            st.tl.predict(sdata, folder, shapes_key="spots")


def test_models_that_are_not_trained(rebuild: Any, refused: Any, tmp_path: Path) -> None:
    sdata = rebuild()
    untrained = st.models.Ridge(st.models.Ridge.Config(), n_features=3, n_genes=2)
    with refused("'ridge' model is not trained", "stpred.tl.train", sdata=sdata):
        st.tl.predict(sdata, untrained, shapes_key="spots")
    with refused("'ridge' model is not trained"):
        st.models.save(untrained, tmp_path / "m")
    for value, kind in ((5, "int"), (st.models.Ridge.Config(), "RidgeConfig"), (st.models.Ridge, "ABCMeta")):
        with refused("`model` must be a trained model, its folder, a bundled name or hf:owner/name", kind, sdata=sdata):
            st.tl.predict(sdata, value, shapes_key="spots")  # type: ignore[arg-type]
    with refused("`model` must be a trained model", "str"):
        st.models.save("m", tmp_path / "m")  # type: ignore[arg-type]


def test_models_are_replaced_only_when_told(trained: Model, refused: Any, tmp_path: Path) -> None:
    folder = st.models.save(trained, tmp_path / "m")
    with refused("m' exists", "overwrite=True"):
        st.models.save(trained, folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("precious")
    with refused("mine' is not a model folder"):
        st.models.save(trained, tmp_path / "mine", overwrite=True)


def test_another_encoder_than_in_training(trained: Model, rebuild: Any, refused: Any) -> None:
    sdata = rebuild()
    with refused("not the one that model 'tiny'", "trained with intensity, found morphology", sdata=sdata):
        st.tl.predict(sdata, trained, shapes_key="spots", encoder="morphology")


def fresh(sdata: SpatialData, model: Model) -> np.ndarray:
    return st.tl.predict(sdata, model, shapes_key="spots", inplace=False).X


def moved(features: Any, *, by: float) -> None:
    """Change the features and let the table say that stpred wrote them so."""
    from stpred import data

    features.X = features.X + by
    written = json.loads(features.uns["stpred"])
    features.uns["stpred"] = json.dumps(written | {"digest": data.digest(features.X)})


def test_stored_features_are_used_for_their_own_image_only(
    trained: Model, rebuild: Any, picture: Any, pixels: Any
) -> None:
    sdata = rebuild()
    expected = fresh(sdata, trained)
    st.pp.features(sdata, "intensity", shapes_key="spots")
    features = sdata.tables["spots_feat_intensity"]
    features.X = features.X + 5
    np.testing.assert_array_equal(fresh(sdata, trained), expected)  # changed by somebody else
    moved(features, by=0)  # tells whether they were used
    assert not np.allclose(fresh(sdata, trained), expected)

    other = picture(255 - pixels)
    stale = rebuild(images={"he": other}, tables=dict(sdata.tables))
    np.testing.assert_array_equal(fresh(stale, trained), fresh(rebuild(images={"he": other}), trained))


def test_stored_features_of_other_places_or_another_encoder_are_not_used(trained: Model, rebuild: Any) -> None:
    sdata = rebuild()
    expected = fresh(sdata, trained)
    st.pp.features(sdata, "intensity", shapes_key="spots", tile=st.TileSpec(mpp=0.5, size_px=64))
    np.testing.assert_array_equal(fresh(sdata, trained), expected)  # another tile

    sdata = rebuild()
    st.pp.features(sdata, "intensity", shapes_key="spots")
    features = sdata.tables["spots_feat_intensity"]
    written = json.loads(features.uns["stpred"])
    written["encoder"]["revision"] = "another"
    features.uns["stpred"] = json.dumps(written)
    moved(features, by=5)
    np.testing.assert_array_equal(fresh(sdata, trained), expected)  # another encoder

    sdata = rebuild()
    st.pp.features(sdata, "intensity", shapes_key="spots")
    features = sdata.tables["spots_feat_intensity"]
    features.obsm["spatial"] = features.obsm["spatial"] + 50
    moved(features, by=5)
    np.testing.assert_array_equal(fresh(sdata, trained), expected)  # the spots were moved since


@pytest.mark.parametrize("facts", ["{bad", "[]", 5])
def test_tables_in_the_place_of_features(facts: Any, trained: Model, rebuild: Any, refused: Any) -> None:
    sdata = rebuild()
    foreign = sdata.tables["spots_counts"].copy()
    foreign.uns["stpred"] = facts
    sdata.tables["spots_feat_intensity"] = foreign
    with refused("table 'spots_feat_intensity'", "was changed since stpred wrote it", "'stpred'", sdata=sdata):
        st.tl.predict(sdata, trained, shapes_key="spots")


def test_tables_in_the_place_of_features_without_provenance_are_not_used(trained: Model, rebuild: Any) -> None:
    sdata = rebuild()
    expected = st.tl.predict(sdata, trained, shapes_key="spots", inplace=False).X
    sdata.tables["spots_feat_intensity"] = sdata.tables["spots_counts"].copy()
    np.testing.assert_array_equal(st.tl.predict(sdata, trained, shapes_key="spots", inplace=False).X, expected)

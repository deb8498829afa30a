"""Arguments of the wrong kind, unknown names, groups of donors, and where results are put."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import spatialdata as sd
from spatialdata import SpatialData

import stpred as st
from stpred.models import Model

Cohort = dict[str, SpatialData]


def test_slides_of_the_wrong_kind(rebuild: Any, refused: Any) -> None:
    sdata = rebuild()
    calls: list[Callable[[Any], Any]] = [
        lambda x: st.tl.train(x, "intensity"),
        lambda x: st.tl.cross_validate(x, "intensity", groups="slide"),
        lambda x: st.pp.select_genes(x),
    ]
    wrong = {"list": [sdata], "NoneType": None, "AnnData": sdata.tables["spots_counts"], "str": "outs"}
    for call in calls:
        for kind, value in wrong.items():
            with refused("`slides` must be a SpatialData or a mapping", f"got {kind}", sdata=sdata):
                call(value)
        with refused("`slides` is empty", "SpatialData", sdata=sdata):
            call({})
        with refused("`slides` must map names to SpatialData", "'p2' is a list", sdata=sdata):
            call({"p1": sdata, "p2": [sdata]})


def test_objects_of_the_wrong_kind(cohort: Cohort, refused: Any, trained: Model) -> None:
    calls: list[Callable[[Any], Any]] = [
        lambda x: st.tl.predict(x, trained),
        lambda x: st.tl.compare(x, "a", "b"),
        st.pp.features,
        st.pp.grid,
        st.pp.tissue,
        st.pp.calibrate,
    ]
    for call in calls:
        for value in (None, "outs", cohort["a"].tables["spots_counts"]):
            with refused("`sdata` must be a SpatialData object", f"got {type(value).__name__}"):
                call(value)
        for several in (cohort, [cohort["a"]]):
            with refused("`sdata` must be a SpatialData object", "each slide in turn"):
                call(several)


def test_the_slide_in_question_is_named(cohort: Cohort, rebuild: Any, refused: Any) -> None:
    sdata = rebuild(images={})
    with refused("Slide 'second'", "no image", sdata=sdata):
        st.tl.train({"first": cohort["b"], "second": sdata}, "intensity", shapes_key="spots")


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"encoder": "morphologie"}, ("No encoder named 'morphologie'", "'morphology'")),
        ({"encoder": 5}, ("`encoder` must be", "int")),
        ({"model": "rigde"}, ("No model family named 'rigde'", "'istar', 'kernel_ridge', 'mean', 'miso'")),
        ({"model": 5}, ("`model` must be a family", "'ridge'", "got 5")),
        ({"model": dict}, ("`model` must be a family", "'ridge'", "dict")),
        ({"target": "log"}, ("`target` must be one of ['log1p_cp10k', 'counts'", "'log'")),
        ({"tile": {"mpx": 1}}, ("`tile` has unknown fields ['mpx']", "mpp and size_px")),
        ({"tile": 5}, ("`tile` must be a stpred.TileSpec", "got 5")),
        ({"tile": {"mpp": 0}}, ("`TileSpec.mpp` must be a positive number", "got 0")),
        ({"tile": {"size_px": "big"}}, ("`TileSpec.size_px` must be a positive whole number of pixels", "'big'")),
        ({"groups": {"a": "p"}}, ("`groups` names no donor for slides ['b']", "['a']")),
        ({"groups": ["p", "q"]}, ("`groups` must map every slide to its donor", "['p', 'q']")),
        ({"name": "///"}, ("`name` must hold a letter or digit", "'///'")),
    ],
)
def test_training_with_odd_arguments(
    given: dict[str, Any], parts: tuple[str, ...], cohort: Cohort, refused: Any
) -> None:
    options = {"model": "intensity", "shapes_key": "spots", "genes": ["EPCAM"]} | given
    with refused(*parts, sdata=cohort["a"]):
        st.tl.train(cohort, options.pop("model"), **options)


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"groups": {"a": "p"}}, ("`groups` names no donor for slides ['b']", "['a']")),
        ({"groups": {"a": "p", "b": "p"}}, ("at least two donors", "['p']", "groups='slide'")),
        ({"groups": "donor"}, ("`groups` must map every slide to its donor, or be 'slide'", "'donor'")),
        ({"groups": None}, ("`groups` must map every slide to its donor, or be 'slide'", "None")),
        ({"models": "unet"}, ("No model family named 'unet'", "'ridge'")),
        ({"models": []}, ("`models` is empty",)),
        ({"models": {"best": []}}, ("no setting for ['best']",)),
        ({"models": ["mean", "mean"]}, ("Two models are called 'mean'", "mapping")),
        ({"genes": ["NOPE"]}, ("['NOPE']", "'ACTB'")),
        ({"target": "log"}, ("`target` must be one of", "'log'")),
    ],
)
def test_cross_validation_with_odd_arguments(
    given: dict[str, Any], parts: tuple[str, ...], cohort: Cohort, refused: Any
) -> None:
    options = {"models": "intensity", "groups": "slide", "shapes_key": "spots", "genes": ["EPCAM"]} | given
    with refused(*parts, sdata=cohort["a"]):
        st.tl.cross_validate(cohort, **options)


def test_cross_validation_of_a_single_slide(cohort: Cohort, refused: Any) -> None:
    with refused("at least two slides", "['a']"):
        st.tl.cross_validate({"a": cohort["a"]}, "intensity", groups="slide")


@pytest.mark.parametrize("size", [0, -1, 0.5, "64", float("nan")])
def test_batches_of_no_size(size: Any, refused: Any) -> None:
    with refused("`batch_size` must be a positive whole number", repr(size)):
        st.settings.batch_size = size
    with refused("`batch_size`"), st.settings.override(batch_size=size):
        pass
    assert st.settings.batch_size == 64


@pytest.mark.parametrize("factor", [0, -1, "2", float("nan")])
def test_upsampling_of_no_size(factor: Any, refused: Any) -> None:
    with refused("`max_upsampling` must be a positive number", repr(factor)):
        st.settings.max_upsampling = factor


def test_unknown_settings(refused: Any) -> None:
    with refused("no setting 'batchsize'", "'batch_size'"):
        st.settings.batchsize = 3
    with refused("no setting 'batchsize'"), st.settings.override(max_upsampling=3, batchsize=3):
        pass
    assert st.settings.max_upsampling == 2


def test_feature_type_that_is_none(rebuild: Any, refused: Any) -> None:
    sdata = rebuild()
    with refused("`dtype` must be one of ['float32', 'float16']", "'int8'", sdata=sdata):
        st.pp.features(sdata, "intensity", shapes_key="spots", dtype="int8")


NAMES = {
    "a/b": "without '/', ':' or spaces",
    "a:b": "without '/', ':' or spaces",
    "a b": "without '/', ':' or spaces",
    "a+b": "letters, digits",
    "": "non-empty",
    ".": "non-empty",
    "__a": "not beginning with",
    "he": "in `sdata.images`",
    "HE": "'he' in `sdata.images`",
    "spots": "in `sdata.shapes`",
    "Cells": "'cells' in `sdata.shapes`",
    "spots_COUNTS": "'spots_counts' in `sdata.tables`",
    "spots_counts": "stpred did not write",
}


@pytest.mark.parametrize("key", NAMES)
def test_names_that_a_table_cannot_have(
    key: str, rebuild: Any, refused: Any, trained: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stpred import data

    def too_early(*_: Any, **__: Any) -> None:
        raise AssertionError("embedded before the name was checked")

    monkeypatch.setattr(data, "embed", too_early)
    sdata = rebuild()
    with refused("`key_added`", repr(key), NAMES[key], sdata=sdata):
        st.tl.predict(sdata, trained, shapes_key="spots", key_added=key)
    with refused("`key_added`", repr(key), NAMES[key], sdata=sdata):
        st.pp.features(sdata, "intensity", shapes_key="spots", key_added=key)


@pytest.mark.parametrize("key", ["a/b", "he", "tissue", "GRID"])
def test_names_that_clash_with_regions_to_be_made(key: str, cohort: Cohort, refused: Any, trained: Model) -> None:
    sdata = SpatialData(images=dict(cohort["a"].images))
    with refused("`key_added`", repr(key), sdata=sdata):
        st.tl.predict(sdata, trained, key_added=key)


@pytest.mark.parametrize("key", ["a/b", "he", "HE", "spots_counts", "Spots"])
def test_names_that_shapes_cannot_have(key: str, rebuild: Any, refused: Any) -> None:
    sdata = rebuild()
    for make in (st.pp.grid, st.pp.tissue):
        with refused("`key_added`", repr(key), sdata=sdata):
            make(sdata, key_added=key)
        with refused("Shapes 'spots' carry the measured table 'spots_counts'", "`key_added`", sdata=sdata):
            make(sdata, key_added="spots")


def test_results_in_memory_are_overwritten_with_a_warning(rebuild: Any, trained: Model) -> None:
    sdata = rebuild()
    st.tl.predict(sdata, trained, shapes_key="spots")
    with pytest.warns(UserWarning, match="Table 'spots_tiny' existed and is overwritten in memory"):
        st.tl.predict(sdata, trained, shapes_key="spots", genes=["EPCAM"])
    assert list(sdata.tables["spots_tiny"].var_names) == ["EPCAM"]
    st.pp.grid(sdata)
    with pytest.warns(UserWarning, match="Shapes 'grid' existed and are overwritten in memory"):
        st.pp.grid(sdata, pitch_um=50)


@pytest.mark.filterwarnings("ignore:.*zarr:UserWarning")
def test_results_on_disk_are_kept_unless_told(rebuild: Any, refused: Any, trained: Model, tmp_path: Path) -> None:
    from stpred.stores import write_result

    sdata = rebuild(tables={})
    st.tl.predict(sdata, trained, shapes_key="spots", genes=["EPCAM"])
    write_result(sdata, tmp_path / "out.zarr")
    with pytest.warns(UserWarning, match="overwritten in memory"):
        st.tl.predict(sdata, trained, shapes_key="spots")
    with refused("out.zarr' exists", "overwrite", sdata=sdata):
        write_result(sdata, tmp_path / "out.zarr")
    assert list(sd.read_zarr(tmp_path / "out.zarr").tables["spots_tiny"].var_names) == ["EPCAM"]
    write_result(sdata, tmp_path / "out.zarr", overwrite=True)
    assert sd.read_zarr(tmp_path / "out.zarr").tables["spots_tiny"].n_vars == 2
    assert [p.name for p in tmp_path.iterdir()] == ["out.zarr"]


def test_what_stpred_did_not_write_is_never_replaced(rebuild: Any, refused: Any, tmp_path: Path) -> None:
    from stpred.stores import write_result

    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("precious")
    sdata = rebuild()
    with refused("data' is neither a zarr store nor a model", sdata=sdata):
        write_result(sdata, tmp_path / "data", overwrite=True)
    with refused("mine.txt' is a file", sdata=sdata):
        write_result(sdata, tmp_path / "data" / "mine.txt", overwrite=True)
    with refused("mine.txt' is a file", sdata=sdata):
        write_result(sdata, tmp_path / "data" / "mine.txt" / "out.zarr")

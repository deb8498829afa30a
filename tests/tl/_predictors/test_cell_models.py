"""Models that see spots through their cells, from slides to tables."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from spatialdata import SpatialData
from spatialdata.models import TableModel

import stpred as st
from stpred import InputError, links
from stpred._core.places import Place

pytestmark = pytest.mark.usefixtures("kept_features")

GENES = st.GeneRule("all")
SMALL = st.models.SCellST.Config(epochs=40, lr=1e-3)
TILE = st.TileSpec(0.5, 32)


@pytest.fixture(scope="module")
def cohort() -> dict[str, SpatialData]:
    return st.datasets.toy_cohort(3, size_um=(700, 700), n_genes=24)


@pytest.fixture(scope="module")
def trained(cohort: dict[str, SpatialData]) -> st.models.Model:
    slides = {k: cohort[k] for k in ("donor0", "donor1")}
    return st.tl.train(slides, SMALL, shapes_key="spots", cells_key="cells", genes=GENES, tile=TILE)


def cell_truth(slide: SpatialData, names: list[str]) -> np.ndarray:
    table = slide.tables["cells_counts"]
    expected = table.layers["expected"].astype(np.float64)
    shares = np.log1p(1e4 * expected / expected.sum(axis=1, keepdims=True))
    return shares[:, table.var_names.get_indexer(names)]


def test_cells_are_learned_from_spots(cohort: dict[str, SpatialData], trained: st.models.Model) -> None:
    """Trained on the spots of two donors, the cells of a third follow their own noiseless expression."""
    table = st.tl.predict(cohort["donor2"], trained, shapes_key="cells", inplace=False)
    TableModel().validate(table)
    assert table.n_obs == len(cohort["donor2"].shapes["cells"])
    score = st.metrics.pearson(table.X.astype(float), cell_truth(cohort["donor2"], list(table.var_names)))
    assert np.nanmedian(score) > 0.5
    spots = st.tl.predict(cohort["donor2"], trained, shapes_key="spots", inplace=False)
    expected = cohort["donor2"].tables["spots_counts"]
    truth = np.log1p(1e4 * expected.layers["expected"] / expected.layers["expected"].sum(axis=1, keepdims=True))
    truth = truth[:, expected.var_names.get_indexer(spots.var_names)].astype(float)
    assert np.nanmedian(st.metrics.pearson(spots.X.astype(float), truth)) > 0.65
    assert min(t.obs["in_distribution"].mean() for t in (table, spots)) > 0.7
    facts = json.loads(table.uns["stpred"])
    assert (facts["cells"], facts["output_scale"], facts["left_out"]["no_cells"]) == ("cells", "log1p_cp10k", 0)
    assert facts["training"]["n_cells"]["donor0"] > 200


def test_a_spot_is_the_mean_of_its_cells(cohort: dict[str, SpatialData], trained: st.models.Model) -> None:
    slide = cohort["donor2"]
    cells, spots = (st.tl.predict(slide, trained, shapes_key=k, inplace=False) for k in ("cells", "spots"))
    inside = links.within(spots.obsm["spatial"], 27.5, cells.obsm["spatial"], nearest_only=True)
    np.testing.assert_allclose(inside.mean(cells.X), spots.X, rtol=1e-4, atol=1e-5)


def test_nothing_is_learned_from_shuffled_spots(cohort: dict[str, SpatialData]) -> None:
    slides = st.datasets.toy_cohort(2, size_um=(700, 700), n_genes=24, shuffled=True)
    model = st.tl.train(
        slides,
        st.models.SCellST.Config(epochs=15, lr=1e-3),
        shapes_key="spots",
        cells_key="cells",
        genes=GENES,
        tile=TILE,
    )
    other = cohort["donor2"]
    table = st.tl.predict(other, model, shapes_key="cells", inplace=False)
    score = st.metrics.pearson(table.X.astype(float), cell_truth(other, list(table.var_names)))
    assert abs(np.nanmedian(score)) < 0.15  # 24 genes of one slide


def test_a_saved_model_predicts_the_same_cells(
    cohort: dict[str, SpatialData], trained: st.models.Model, tmp_path: Path
) -> None:
    st.models.save(trained, tmp_path / "m")
    again = st.models.load(tmp_path / "m")
    assert again.record.cells == "cells"
    slide = cohort["donor0"]
    want, found = (st.tl.predict(slide, m, shapes_key="cells", inplace=False) for m in (trained, again))
    assert np.array_equal(want.X, found.X)


def crops_beside_tiles() -> list[Any]:
    return [st.encoders.get("morphology", tile=TILE), st.encoders.get("colour", tile=st.TileSpec(2.0, 56))]


@pytest.fixture(scope="module")
def in_closed_form(cohort: dict[str, SpatialData]) -> st.models.Model:
    slides = {k: cohort[k] for k in ("donor0", "donor1")}
    given = crops_beside_tiles()
    return st.tl.train(slides, "scellst", shapes_key="spots", cells_key="cells", genes=GENES, encoder=given)


def test_cells_in_closed_form_are_at_least_as_true(
    cohort: dict[str, SpatialData], trained: st.models.Model, in_closed_form: st.models.Model, tmp_path: Path
) -> None:
    slide = cohort["donor2"]
    assert in_closed_form.config.regressor == "ridge"
    found = st.tl.predict(slide, in_closed_form, shapes_key="cells", encoder=crops_beside_tiles(), inplace=False)
    TableModel().validate(found)
    truth = cell_truth(slide, list(found.var_names))
    network = st.tl.predict(slide, trained, shapes_key="cells", inplace=False)
    scores = [np.nanmedian(st.metrics.pearson(t.X.astype(float), truth)) for t in (found, network)]
    assert scores[0] > max(scores[1] - 0.02, 0.55)
    assert found.obs["in_distribution"].mean() > 0.7
    st.models.save(in_closed_form, tmp_path / "m")
    again = st.tl.predict(slide, st.models.load(tmp_path / "m"), shapes_key="cells", inplace=False)
    assert np.array_equal(found.X, again.X)


def test_spots_in_closed_form_without_expression_say_nothing(cohort: dict[str, SpatialData]) -> None:
    slides = st.datasets.toy_cohort(2, size_um=(700, 700), n_genes=24, shuffled=True)
    given = crops_beside_tiles()
    model = st.tl.train(slides, "scellst", shapes_key="spots", cells_key="cells", genes=GENES, encoder=given)
    table = st.tl.predict(cohort["donor2"], model, shapes_key="cells", inplace=False)
    score = st.metrics.pearson(table.X.astype(float), cell_truth(cohort["donor2"], list(table.var_names)))
    assert abs(np.nanmedian(score)) < 0.15


def test_cells_of_the_additive_variant_add_up_to_their_spot(cohort: dict[str, SpatialData]) -> None:
    slides = {k: cohort[k] for k in ("donor0", "donor1")}
    config = st.models.DeepSpot2Cell.Config(width=16, n_phi=2, n_rho=2, epochs=10)
    model = st.tl.train(slides, config, shapes_key="spots", cells_key="cells", genes=GENES, tile=TILE)
    slide = cohort["donor2"]
    for key in ("spots", "cells"):
        st.tl.predict(slide, model, shapes_key=key)
    spots, cells = (slide.tables[f"{k}_deepspot2cell"] for k in ("spots", "cells"))
    inside = links.within(spots.obsm["spatial"], 27.5, cells.obsm["spatial"], nearest_only=True)
    np.testing.assert_allclose(inside.sum(cells.X), spots.X, rtol=1e-4)
    facts = json.loads(spots.uns["stpred"])
    assert (facts["output_scale"], facts["per"], facts["context"]) == ("counts", 10_000, "spots")
    # Amounts are compared as log1p, without being told so.
    scores = st.tl.compare(slide, "spots_deepspot2cell", "spots_counts")
    table = slide.tables["spots_counts"]
    counts = table.X.toarray().astype(float)
    log = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))[:, table.var_names.get_indexer(scores.index)]
    values = np.log1p(spots[:, scores.index].X.astype(float))
    np.testing.assert_allclose(scores["pearson"], st.metrics.pearson(values, log), rtol=1e-4)
    # A slide without spots takes the tiles around its cells from a grid at the training pitch.
    bare = SpatialData(images=dict(slide.images), shapes={"cells": slide.shapes["cells"]})
    table = st.tl.predict(bare, model, shapes_key="cells", inplace=False)
    assert json.loads(table.uns["stpred"])["context"] == "grid"
    found = st.metrics.pearson(table.X.astype(float), cells.X.astype(float))
    assert np.nanmedian(found) > 0.8


def test_measured_cells_supervise_directly(cohort: dict[str, SpatialData]) -> None:
    slides = {k: cohort[k] for k in ("donor0", "donor1")}
    config = st.models.DeepCell.Config(width=16, n_phi=2, n_rho=2, n_neighbors=6, epochs=4, batch_size=256)
    model = st.tl.train(slides, config, shapes_key="cells", genes=GENES, tile=TILE)
    table = st.tl.predict(cohort["donor2"], model, shapes_key="cells", inplace=False)
    score = st.metrics.pearson(table.X.astype(float), cell_truth(cohort["donor2"], list(table.var_names)))
    assert np.nanmedian(score) > 0.45
    # The neighbours of a cell are the same whichever cells are asked for.
    from stpred import data, encoders

    encoder = encoders.get("morphology", tile=st.TileSpec(**model.record.tile))
    region = data.with_cells(data.read_region(cohort["donor2"], Place(shapes_key="cells")))
    some = data.reader_for(region.take(np.arange(20)), encoder, model.needs).whole()
    np.testing.assert_allclose(model.predict(some)[0], table.X[:20], rtol=1e-4, atol=1e-4)
    spots = st.tl.predict(cohort["donor2"], model, shapes_key="spots", inplace=False)
    assert spots.n_obs == len(cohort["donor2"].shapes["spots"])


def test_spots_without_cells_are_no_zeros(
    cohort: dict[str, SpatialData], trained: st.models.Model, caplog: pytest.LogCaptureFixture
) -> None:
    slide = cohort["donor2"]
    spots, cells = slide.shapes["spots"], slide.shapes["cells"]
    lonely = spots.index[4]
    fewer = cells[cells.distance(spots.geometry.loc[lonely]) > 45]
    some = SpatialData(
        images=dict(slide.images),
        shapes={"spots": spots, "cells": fewer},
        tables={"spots_counts": slide.tables["spots_counts"]},
    )
    with caplog.at_level(logging.WARNING, logger="stpred"):
        st.tl.predict(some, trained, shapes_key="spots")
    table = some.tables["spots_scellst"]
    assert lonely not in set(table.obs["instance_id"])
    assert json.loads(table.uns["stpred"])["left_out"] == {"off_image": 0, "no_cells": 1, "without_cells": [lonely]}
    assert lonely in caplog.text
    other = st.tl.train({"a": some, "b": cohort["donor0"]}, SMALL, shapes_key="spots", genes=GENES, tile=TILE)
    assert other.record.training["without_cells"] == {"a": 1, "b": 0}


def test_cross_validation_compares_cells_and_tiles_on_the_same_spots(cohort: dict[str, SpatialData]) -> None:
    pair = {k: cohort[k] for k in ("donor0", "donor1")}
    how: dict[str, Any] = {"groups": {k: k for k in pair}, "shapes_key": "spots", "cells_key": "cells"}
    config = st.models.SCellST.Config(hidden=(32,), epochs=10, lr=3e-3)
    scores = st.tl.cross_validate(pair, {"cells": config, "colour": "intensity"}, genes=GENES, tile=TILE, **how)
    assert {"cells", "colour", "library_size"} <= set(scores["model"])
    pearson = scores[(scores.metric == "pearson") & (scores.model == "cells")]
    assert pearson.value.median() > 0.2
    with pytest.raises(InputError, match="none of the models does"):
        st.tl.cross_validate(pair, "ridge", **how)


def test_one_slide_ends_its_training_by_blocks(cohort: dict[str, SpatialData]) -> None:
    config = st.models.SCellST.Config(hidden=(16,), max_epochs=6, patience=2, lr=3e-3)
    model = st.tl.train(cohort["donor0"], config, shapes_key="spots", cells_key="cells", genes=GENES, tile=TILE)
    assert model.record.training["epochs_chosen_by"] == "left-out blocks of the only donor"
    assert 1 <= model.record.training["epochs"] <= 6


def test_bad_input(cohort: dict[str, SpatialData], trained: st.models.Model) -> None:
    slide = cohort["donor0"]
    with pytest.raises(InputError, match="`cells_key` is for families that see cells; 'ridge' sees tiles"):
        st.tl.train(slide, "ridge", shapes_key="spots", cells_key="cells")
    with pytest.raises(InputError, match="No shapes element named 'nuclei' "):
        st.tl.predict(slide, trained, shapes_key="spots", cells_key="nuclei")
    with pytest.raises(InputError, match="are cells; this model is trained on spots"):
        st.tl.train(slide, st.models.DeepSpot2Cell.Config(epochs=1), shapes_key="cells")
    bare = SpatialData(images=dict(slide.images), shapes={"spots": slide.shapes["spots"]})
    with pytest.raises(InputError, match=r"has no cells to see 'spots' through; find them with stpred.pp.nuclei"):
        st.tl.predict(bare, trained, shapes_key="spots")


def test_a_plain_slide_gets_its_nuclei(cohort: dict[str, SpatialData], trained: st.models.Model) -> None:
    bare = SpatialData(images=dict(cohort["donor2"].images))
    st.tl.predict(bare, trained)
    table = bare.tables["nuclei_scellst"]
    assert table.n_obs == len(bare.shapes["nuclei"])
    assert table.n_obs > 0.8 * len(cohort["donor2"].shapes["cells"])
    # Beside the measured cells, in one object.
    both = SpatialData(
        images=dict(bare.images),
        shapes={"nuclei": bare.shapes["nuclei"], "cells": cohort["donor2"].shapes["cells"]},
        tables={"nuclei_scellst": table, "cells_counts": cohort["donor2"].tables["cells_counts"]},
    )
    scores = st.tl.compare(both, "nuclei_scellst", "cells_counts")
    assert scores["n_locations"].iloc[0] > 0.7 * table.n_obs
    assert scores["pearson"].median() > 0.15  # against counts of single cells

"""Networks through `tl.train` and `tl.predict`: pixels, ensembles, interruptions, known truth and none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from spatialdata import SpatialData

import stpred as st
from stpred import InputError, metrics
from stpred._core.places import Place
from stpred.models import Network

pytestmark = pytest.mark.usefixtures("kept_features")

GENES = st.GeneRule("mean", n=30)


def expected(sdata: SpatialData, table: Any) -> np.ndarray:
    """Noiseless log1p CP10k of a synthetic slide, in the rows and columns of a predicted table."""
    truth = sdata.tables["spots_counts"][table.obs_names]
    share = truth.layers["expected"] / truth.layers["expected"].sum(axis=1, keepdims=True)
    return np.log1p(1e4 * share)[:, truth.var_names.get_indexer(table.var_names)]


@pytest.fixture(scope="module")
def donors() -> dict[str, SpatialData]:
    return st.datasets.toy_cohort(4, size_um=(1000, 1000), n_genes=60)


def recovered(donors: dict[str, SpatialData], config: Any, **how: Any) -> float:
    """Return the median gene's correlation with the noiseless truth of a donor that was not trained on."""
    *train, last = donors
    one = dict.fromkeys(train, "one")  # the number of epochs is given, so that no inner folds are needed
    model = st.tl.train({s: donors[s] for s in train}, config, genes=GENES, shapes_key="spots", groups=one, **how)
    table = st.tl.predict(donors[last], model, shapes_key="spots", inplace=False)
    return float(np.nanmedian(metrics.pearson(table.X, expected(donors[last], table))))


SIZES = {
    "mlp": st.models.MLP.Config(hidden=(128,), lr=1e-3, input_dropout=0.3, epochs=30),
    "miso": st.models.MISO.Config(
        n_neighbors=6, width=128, inner=64, n_heads=4, loss="pearson", dropout=0.3, lr=1e-3, epochs=40
    ),
    "deepspot": st.models.DeepSpot.Config(
        width=64, n_phi=4, n_rho=2, context="spot+neighbors", epochs=60, batch_size=64
    ),
    "retrieval": st.models.Retrieval.Config(width=64, k=20, epochs=20, n_reference=600),
    "histogene": st.models.HisToGene.Config(width=64, depth=2, n_heads=4, feed_width=64, lr=1e-3, epochs=12),
    "random_forest": st.models.RandomForest.Config(n_trees=30),
    "nmf_composition": st.models.NMFComposition.Config(),
}


@pytest.mark.parametrize("name", sorted(SIZES))
def test_known_expression_of_an_unseen_donor_is_recovered(donors: dict[str, SpatialData], name: str) -> None:
    target = {"target": "log1p_cp10k"} if name == "miso" else {}
    assert recovered(donors, SIZES[name], **target) >= 0.8


TILE = st.TileSpec(mpp=3.5, size_px=32)
PIXELS = st.models.STNet.Config(
    pretrained=False, backbone="resnet10t", optimiser="adamw", lr=2e-3, reduction="mean", n_views=1, epochs=2
)


def test_pixels_stream_through_in_blocks(
    cohort: dict[str, SpatialData], unseen: SpatialData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:

    train = {s: cohort[s] for s in list(cohort)[:2]}
    model = st.tl.train(train, PIXELS, genes=st.GeneRule("mean", n=6), shapes_key="spots", tile=TILE)
    assert model.record.encoder["name"] == "pixels"
    assert model.record.tile == {"mpp": 3.5, "size_px": 32}
    assert model.record.target == model.record.training["target"] == model.record.training["scored_on"] == "log_share"
    assert model.record.n_measured == len(cohort[list(cohort)[0]].tables["spots_counts"].var)
    unseen.shapes["some"] = unseen.shapes["cells"].iloc[::6]
    model = st.tl.train(train, replace(PIXELS, normalize="slide"), genes=["EPCAM"], shapes_key="spots", tile=TILE)
    whole = st.tl.predict(unseen, model, shapes_key="some", inplace=False)
    monkeypatch.setattr("stpred.data._readers.tiles.PIXEL_BLOCK", 70)
    blocks = st.tl.predict(unseen, model, shapes_key="some", inplace=False)
    np.testing.assert_allclose(blocks.X, whole.X, rtol=1e-4, atol=1e-5)
    assert blocks.obs["in_distribution"].mean() > 0.5
    st.models.save(model, tmp_path / "m")
    again = st.tl.predict(unseen, tmp_path / "m", shapes_key="some", inplace=False)
    np.testing.assert_allclose(again.X, blocks.X, atol=1e-6)


@pytest.mark.slow
def test_a_convolutional_network_learns_from_pixels(donors: dict[str, SpatialData]) -> None:
    config = replace(PIXELS, epochs=12, normalize="slide")
    assert recovered(donors, config, tile=TILE) >= 0.5


def test_weights_that_cannot_be_fetched_are_explained(
    cohort: dict[str, SpatialData], monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm

    original = timm.create_model

    def create(name: str, pretrained: bool = False, **kwargs: Any) -> Any:
        if pretrained:
            raise OSError("offline")
        return original(name, pretrained=False, **kwargs)

    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(InputError, match=r"ImageNet weights of 'densenet121' cannot be fetched .*pretrained=False"):
        st.tl.train(cohort, "stnet", genes=["EPCAM"], shapes_key="spots", tile=TILE)
    with pytest.raises(
        InputError, match=r"`backbone` must be a model of timm or one of .*, got 'densnet121'; close: .'densenet121'"
    ):
        st.tl.train(cohort, st.models.STNet.Config(backbone="densnet121"), genes=["EPCAM"], shapes_key="spots")


def test_fetched_weights_start_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm
    import torch

    from stpred.models.stnet import STNet, _fetch

    original = timm.create_model
    torch.manual_seed(0)
    source = original("resnet18", num_classes=1000)
    monkeypatch.setattr(
        timm, "create_model", lambda name, pretrained=False, **k: source if pretrained else original(name, **k)
    )
    model = STNet(STNet.Config(backbone="resnet18"), n_features=3 * 32 * 32, n_genes=5)
    _fetch(model.net, "resnet18")
    own = model.net.state_dict()
    assert all(torch.equal(own[k], v) for k, v in source.state_dict().items() if not k.startswith("fc"))
    assert model.head.out_features == 5


def test_ensembles_say_how_sure_they_are(cohort: dict[str, SpatialData], unseen: SpatialData, tmp_path: Path) -> None:
    train = {s: cohort[s] for s in list(cohort)[:2]}
    for config in (st.models.MLP.Config(hidden=(16,), epochs=3), "ridge"):
        model = st.tl.train(train, st.models.Ensemble.Config(config, 3), genes=GENES, shapes_key="spots")
        st.tl.predict(unseen, model, shapes_key="spots")
        table = unseen.tables[f"spots_{model.record.name}"]
        assert model.record.name in ("mlp", "ridge")
        assert table.layers["std"].shape == table.shape
        assert (table.layers["std"] > 0).mean() > 0.9
        members = np.stack([m.predict(model_batch(unseen, model))[0] for m in model.members])
        np.testing.assert_allclose(table.X, members.mean(axis=0), atol=1e-4)
        np.testing.assert_allclose(table.layers["std"], members.std(axis=0), atol=1e-4)
        st.models.save(model, tmp_path / model.record.name)
        again = st.tl.predict(unseen, tmp_path / model.record.name, shapes_key="spots", inplace=False)
        assert np.array_equal(again.layers["std"], table.layers["std"])


def model_batch(sdata: SpatialData, model: Any) -> Any:
    from stpred import data

    region = data.read_region(sdata, Place(shapes_key="spots"))
    return data.reader_for(region, model.encoder, model.needs).whole()


@pytest.mark.parametrize("n_members", [None, 2])
def test_an_interrupted_training_goes_on_to_the_same_result(
    cohort: dict[str, SpatialData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_members: int | None
) -> None:
    config: Any = st.models.MLP.Config(hidden=(16,), max_epochs=6, dropout=0.2)
    config = config if n_members is None else st.models.Ensemble.Config(config, n_members)
    how: dict[str, Any] = {"genes": GENES, "shapes_key": "spots"}
    want = st.tl.train(cohort, config, **how)
    seen = {"epochs": 0}

    def interrupt(self: Network, epoch: int) -> bool:
        seen["epochs"] += 1
        if seen["epochs"] == 15:
            raise KeyboardInterrupt
        return False

    monkeypatch.setattr(Network, "on_epoch_end", interrupt)
    monkeypatch.setattr("stpred.training._loop.SAVE_EVERY_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        with st.settings.override(checkpoint_dir=tmp_path / "run"):
            st.tl.train(cohort, config, **how)
    assert any((tmp_path / "run").iterdir())
    with st.settings.override(checkpoint_dir=tmp_path / "run"):
        found = st.tl.train(cohort, config, **how)
    assert found.id == want.id
    assert found.record.var == want.record.var
    assert not (tmp_path / "run").exists()  # done: nothing is left behind
    # What was done before the interruption was not done again: 3 folds and the members, 6 epochs each at most.
    total = 3 * 6 + (n_members or 1) * found.record.training["epochs"]
    assert seen["epochs"] <= total + 1


def test_bad_input_of_networks(cohort: dict[str, SpatialData], tmp_path: Path) -> None:
    one = {"donor0": cohort["donor0"]}
    small = st.models.MLP.Config(hidden=(4,), epochs=1)
    with pytest.raises(InputError, match="`device`='cuda:9' is not there"):
        st.tl.train(one, small, genes=["EPCAM"], shapes_key="spots", device="cuda:9")
    with pytest.raises(InputError, match="`precision` must be one of"):
        with st.settings.override(precision="float8"):
            st.tl.train(one, small, genes=["EPCAM"], shapes_key="spots")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="`checkpoint_dir` must be a folder"):
        with st.settings.override(checkpoint_dir=tmp_path / "file"):
            st.tl.train(one, small, genes=["EPCAM"], shapes_key="spots")
    with pytest.raises(InputError, match="stnet has its own encoder, 'pixels'"):
        st.tl.train(one, PIXELS, genes=["EPCAM"], shapes_key="spots", encoder="morphology")
    # One donor, one slide: nothing to choose epochs by; the family's own number is taken, and it says so.
    alone = st.models.MLP.Config(hidden=(4,), epochs_alone=3)
    model = st.tl.train(one, alone, genes=["EPCAM"], shapes_key="spots")
    assert model.record.training["epochs"] == 3
    assert "no other donor" in model.record.training["epochs_chosen_by"]
    assert model.record.var["cv_pearson"] == [None]


def test_counts_may_sit_in_a_layer(cohort: dict[str, SpatialData]) -> None:
    how: dict[str, Any] = {"genes": GENES, "shapes_key": "spots"}
    want = st.tl.train(cohort, "ridge", **how)
    moved = {}
    for s, sdata in cohort.items():
        table = sdata.tables["spots_counts"].copy()
        table.layers["raw"] = table.X.copy()
        table.X = table.X * 0.5  # no counts
        moved[s] = SpatialData(images=sdata.images, shapes=sdata.shapes, tables={"spots_counts": table})
    with pytest.raises(InputError, match="counts"):
        st.tl.train(moved, "ridge", **how)
    assert st.tl.train(moved, "ridge", layer="raw", **how).id == want.id
    with pytest.raises(InputError, match="layer"):
        st.tl.train(moved, "ridge", layer="absent", **how)
    donors = {s: s for s in cohort}
    cases = ((cohort, None), (moved, "raw"))
    scores = [st.tl.cross_validate(c, "ridge", groups=donors, layer=k, **how) for c, k in cases]
    pd.testing.assert_frame_equal(*scores)


def test_fewer_locations_than_neighbours(unseen: SpatialData, cohort: dict[str, SpatialData]) -> None:
    config = st.models.MISO.Config(n_neighbors=500, width=16, inner=8, n_heads=1, epochs=1, standardize="train")
    model = st.tl.train(cohort, config, genes=["EPCAM", "COL1A2"], shapes_key="spots")
    table = st.tl.predict(unseen, model, shapes_key="spots", inplace=False)
    assert np.isfinite(table.X).all()


def test_mixed_precision_is_close(cohort: dict[str, SpatialData]) -> None:
    config = st.models.MLP.Config(hidden=(16,), epochs=2)
    how: dict[str, Any] = {"genes": GENES, "shapes_key": "spots", "groups": dict.fromkeys(cohort, "one")}
    full = st.tl.train(cohort, config, **how)
    with st.settings.override(precision="bf16-mixed"):
        mixed = st.tl.train(cohort, config, **how)
    slide = cohort["donor0"]
    a, b = (st.tl.predict(slide, m, shapes_key="spots", inplace=False).X for m in (full, mixed))
    assert 0 < np.abs(a - b).max() < 0.2


def test_negative_binomial_predicts_on_the_log_scale(donors: dict[str, SpatialData]) -> None:
    config = st.models.MLP.Config(hidden=(64,), loss="nb", lr=2e-3, epochs=40, input_dropout=0.3)
    *train, last = donors
    model = st.tl.train({s: donors[s] for s in train}, config, genes=GENES, shapes_key="spots")
    assert model.record.target == "log1p_cp10k"
    assert model.record.training["target"] == "counts"
    table = st.tl.predict(donors[last], model, shapes_key="spots", inplace=False)
    truth = expected(donors[last], table)
    assert np.nanmedian(metrics.pearson(table.X, truth)) >= 0.7
    assert abs(np.median(table.X.mean(axis=0) - truth.mean(axis=0))) < 0.5  # the scale is right, not only the order
    assert json.loads(table.uns["stpred"])["family"] == "mlp"


@pytest.mark.parametrize("n_members", [None, 2])
def test_validation_slides_end_the_training_and_are_not_trained_on(
    cohort: dict[str, SpatialData], n_members: int | None
) -> None:
    config: Any = st.models.MLP.Config(hidden=(32,), lr=2e-2, max_epochs=25, patience=3)
    config = config if n_members is None else st.models.Ensemble.Config(config, n_members)
    how: dict[str, Any] = {"genes": GENES, "shapes_key": "spots"}
    model = st.tl.train(cohort, config, validation=["donor1"], **how)
    facts = model.record.training
    assert facts["epochs_chosen_by"] == "validation slides"
    assert facts["validation"] == ["donor1"]
    assert set(model.record.var["n_slides"]) == {1}
    # The scores are those of the model that is returned: of its best epoch, not of its last.
    table = st.tl.predict(cohort["donor1"], model, shapes_key="spots", inplace=False)
    counts = cohort["donor1"].tables["spots_counts"][table.obs_names]
    total = np.asarray(counts.X.sum(axis=1))
    truth = np.log1p(1e4 * counts[:, table.var_names].X.toarray() / total)
    np.testing.assert_allclose(metrics.pearson(table.X, truth), model.record.var["cv_pearson"], atol=1e-4)
    for wrong, message in (
        (["donor9"], "must name some of the slides"),
        (list(cohort), "not all"),
        ([], "must name some"),
    ):
        with pytest.raises(InputError, match=message):
            st.tl.train(cohort, config, validation=wrong, **how)
    with pytest.raises(InputError, match=r"shares donors \['p'\] with the training slides"):
        st.tl.train(cohort, config, validation=["donor1"], groups=dict.fromkeys(cohort, "p"), **how)


def test_an_interrupted_validated_training_keeps_its_best(
    cohort: dict[str, SpatialData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = st.models.MLP.Config(hidden=(256,), lr=0.2, max_epochs=12, patience=12)
    how: dict[str, Any] = {"genes": GENES, "shapes_key": "spots", "validation": ["donor1"]}
    want = st.tl.train(cohort, config, **how)
    assert want.record.training["epochs"] < 12

    def interrupt(self: Network, epoch: int) -> bool:
        if epoch == 11:
            raise KeyboardInterrupt
        return False

    with monkeypatch.context() as patch:
        patch.setattr(Network, "on_epoch_end", interrupt)
        patch.setattr("stpred.training._loop.SAVE_EVERY_S", 0.0)
        with pytest.raises(KeyboardInterrupt):
            with st.settings.override(checkpoint_dir=tmp_path / "run"):
                st.tl.train(cohort, config, **how)
    with st.settings.override(checkpoint_dir=tmp_path / "run"):
        assert st.tl.train(cohort, config, **how).id == want.id

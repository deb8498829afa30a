"""Encoders trained here, on disk: the same bits after a round trip, whole or not at all, known by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stpred as st
from stpred import encoders
from stpred._core.checks import InputError, MissingFileError
from stpred.encoders import registry

torch = pytest.importorskip("torch")
pytest.importorskip("timm")

from stpred.encoders import _saved, trained  # noqa: E402
from stpred.encoders.modules import digest  # noqa: E402

TILE = st.TileSpec(0.5, 32)


def made(backbone: str, *, seed: int = 3, name: str = "my-cells") -> trained.TrainedEncoder:
    kwargs, width = trained.size_for(backbone, TILE.size_px, seed=seed)
    module = trained.build(backbone, kwargs, seed=seed)
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(1.01)  # no longer what the seed alone gives
    card = encoders.EncoderCard(
        name, TILE, width, source="trained here", revision=digest(module.state_dict()), mean=(0.6, 0.5, 0.7),
        std=(0.2, 0.2, 0.1),
    )  # fmt: skip
    record = {"method": "MoCo v3", "check": {"n_tiles": 8}}
    return trained.TrainedEncoder(module, card=card, backbone=backbone, kwargs=kwargs, seed=seed, record=record)


@pytest.fixture(scope="module")
def encoder() -> trained.TrainedEncoder:
    return made("test_resnet")


@pytest.fixture(scope="module")
def tiles() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size=(5, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_a_round_trip_changes_nothing(backbone: str, tiles: np.ndarray, tmp_path: Path) -> None:
    first = made(backbone)
    folder = encoders.save(first, tmp_path / "deep" / "cells")
    again = encoders.load(folder, device="cpu")
    assert again.card == first.card
    assert again.record == first.record
    assert (again.encode(tiles) == first.encode(tiles)).all()
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert (again.card.dense is not None) == (backbone == "test_vit")
    untrained, other = first.untrained(), again.untrained()
    assert untrained.card.revision == other.card.revision != first.card.revision
    assert (untrained.encode(tiles) == other.encode(tiles)).all()


def test_nothing_is_overwritten_unasked_or_left_half(
    encoder: trained.TrainedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = encoders.save(encoder, tmp_path / "cells")
    with pytest.raises(InputError, match="exists; pass overwrite=True"):
        encoders.save(encoder, folder)
    encoders.save(made("test_resnet", seed=4), folder, overwrite=True)
    assert encoders.load(folder, device="cpu").card.revision != encoder.card.revision
    (tmp_path / "notes").mkdir()
    with pytest.raises(InputError, match="is not an encoder's folder"):
        encoders.save(encoder, tmp_path / "notes", overwrite=True)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("disk full")

    before = encoders.load(folder, device="cpu").card
    monkeypatch.setattr("json.dumps", fail)
    for path in (tmp_path / "new", folder):
        with pytest.raises(OSError, match="disk full"):
            encoders.save(encoder, path, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cells", "notes"]
    assert encoders.load(folder, device="cpu").card == before


def test_only_what_was_trained_here_is_saved(tmp_path: Path) -> None:
    for other, said in (("morphology", "'morphology'"), (encoders.get("intensity"), "'intensity'")):
        with pytest.raises(InputError, match=f"pretrain_encoder returned can be saved, got {said}"):
            encoders.save(other, tmp_path / "x")  # type: ignore[arg-type]


def test_damage_is_told(encoder: trained.TrainedEncoder, tmp_path: Path) -> None:
    folder = encoders.save(encoder, tmp_path / "cells")
    config = folder / "config.json"
    facts = json.loads(config.read_text())

    def written(text: str) -> None:
        config.write_text(text)

    for change, message in (
        ({"kind": "model"}, "holds no encoder"),
        ({"kind": None, "family": "ridge"}, "it is a model, which stpred.models.load reads"),
        ({"format_version": 2}, "has format version 2, this stpred reads 1"),
        ({"card": []}, r"lacks \['card'\]"),
        ({"card": facts["card"] | {"colour": 1}}, r"unknown fields \['colour'\]"),
        ({"card": {"name": "x"}}, r"The card in .* lacks \['mean', .*'width'\]"),
        ({"backbone": "resnett"}, "timm has no model 'resnett'"),
        ({"backbone": "test_resnet2"}, "timm has no model 'test_resnet2'"),
        ({"backbone": "test_vit"}, "lacks tensors"),
        ({"card": facts["card"] | {"revision": "sha256:0"}}, "are not those that the encoder was saved with"),
    ):
        written(json.dumps(facts | change))
        with pytest.raises(InputError, match=message):
            encoders.load(folder, device="cpu")
    written("{")
    with pytest.raises(InputError, match="is not valid JSON"):
        encoders.load(folder)
    written(json.dumps(facts))
    (folder / "model.safetensors").unlink()
    with pytest.raises(MissingFileError, match="is missing"):
        encoders.load(folder)
    with pytest.raises(MissingFileError, match="No encoder at .*stpred.encoders.save writes it"):
        encoders.load(tmp_path)


def test_a_folder_is_known_by_a_name(
    encoder: trained.TrainedEncoder, tiles: np.ndarray, tmp_path: Path, no_names: None
) -> None:
    folder = encoders.save(encoder, tmp_path / "cells")
    encoders.register("colon", folder)
    assert "colon" in encoders.list()
    found = encoders.get("colon", device="cpu")
    assert found.card.name == "colon"
    assert found.card.revision == encoder.card.revision
    assert (found.encode(tiles) == encoder.encode(tiles)).all()
    assert encoders.get("colon", tile=TILE, device="cpu").card == found.card
    with pytest.raises(InputError, match=r"'colon' was trained on TileSpec\(mpp=0.5, size_px=32\); it takes no other"):
        encoders.get("colon", tile=st.TileSpec(0.25, 32))
    untrained = encoders.get("colon", pretrained=False, device="cpu")
    assert untrained.card.revision == encoder.untrained().card.revision
    with pytest.raises(InputError, match="'colon' is taken"):
        encoders.register("colon", folder)
    with pytest.raises(MissingFileError, match="No encoder at"):
        encoders.register("liver", tmp_path / "liver")
    with pytest.raises(InputError, match="`factory` must be a function that returns an encoder, or the folder"):
        encoders.register("liver", 3)  # type: ignore[arg-type]


def test_backbones_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"timm has no model 'resnet19'; did you mean"):
        trained.size_for("resnet19", 32, seed=0)
    with pytest.raises(InputError, match="takes its architecture from the hub"):
        trained.build("timm/hf-hub:a/b", {}, seed=0)
    with pytest.raises(InputError, match="of 20 px"):
        trained.size_for("test_vit", 20, seed=0)  # no whole number of patches
    assert trained.size_for("timm/test_resnet", 24, seed=0) == ({}, 96)
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(InputError, match=r"needs timm: pip install 'stpred\[encoders\]'"):
        trained.build("test_resnet", {}, seed=0)


def test_the_end_of_a_residual_branch_begins_at_zero() -> None:
    module = trained.build("resnet18", {}, seed=0)
    assert float(module.layer1[0].bn2.weight.detach().abs().max()) == 0
    assert float(module.layer1[0].bn1.weight.detach().min()) == 1
    assert _saved.FORMAT_VERSION == 1


def test_layers_of_a_saved_encoder(tmp_path: Path, tiles: np.ndarray, no_names: None) -> None:
    first = made("test_vit")
    encoders.register("mine", encoders.save(first, tmp_path / "cells"))
    last = encoders.get("mine", layers=(-1,), device="cpu")
    assert (last.card.name, last.card.layers, last.card.revision) == ("mine", (5,), first.card.revision)
    np.testing.assert_allclose(last.encode(tiles), first.encode_dense(tiles).mean(axis=(1, 2)), atol=1e-5)
    again = registry.from_card(last.card.to_dict(), device="cpu")
    np.testing.assert_array_equal(again.encode(tiles), last.encode(tiles))

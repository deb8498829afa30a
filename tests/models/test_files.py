from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from stpred import models, training
from stpred._core.checks import InputError, MissingFileError
from stpred.models import Batch, Intensity, Mean, Model, Ridge, registry


def fitted(family: type[Model], config: object = None) -> tuple[Model, Batch]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3)).astype(np.float32)
    rows = np.arange(40)
    batch = Batch("a", x, rows, rows, rng.uniform(0, 1000, (40, 2)), y=(x @ rng.normal(size=(3, 5))).astype(np.float32))
    model, _ = training.fit(family, family.Config() if config is None else config, [batch], groups=["a"])
    model.record.genes = list("ABCDE")
    model.record.var = {"cv_pearson": [0.5, None, 0.1, 0.2, 0.3]}
    return model, batch


@pytest.mark.parametrize(
    ("family", "config"),
    [
        (Mean, None),
        (Intensity, Intensity.Config(n_bins=3)),
        (Ridge, None),
        (Ridge, Ridge.Config(penalty=2.0, n_components=2)),
    ],
)
def test_round_trip_is_bit_identical(tmp_path: Path, family: type[Model], config: object) -> None:
    model, batch = fitted(family, config)
    back = models.load(models.save(model, tmp_path / "m"))
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["config.json", "model.safetensors"]
    assert type(back) is family
    assert back.config == model.config
    assert back.record == model.record
    assert back.id == model.id
    assert np.array_equal(back.predict(batch)[0], model.predict(batch)[0])
    assert np.array_equal(back.typical.distance(batch.own), model.typical.distance(batch.own))
    assert [p.name for p in tmp_path.iterdir()] == ["m"]  # nothing is left of the staging


def test_existing_folder_is_kept_unless_told(tmp_path: Path) -> None:
    model, _ = fitted(Mean)
    models.save(model, tmp_path / "m")
    with pytest.raises(InputError, match="exists; pass overwrite=True"):
        models.save(model, tmp_path / "m")
    models.save(model, tmp_path / "m", overwrite=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious.txt").write_text("x")
    with pytest.raises(InputError, match="not a model folder"):
        models.save(model, tmp_path / "other", overwrite=True)
    assert (tmp_path / "other" / "precious.txt").exists()


def test_bad_files_each_get_their_sentence(tmp_path: Path) -> None:
    model, _ = fitted(Ridge)
    folder = models.save(model, tmp_path / "m")
    config, weights = folder / "config.json", folder / "model.safetensors"
    good, tensors = config.read_text(), load_file(weights)

    with pytest.raises(MissingFileError, match=r"No model at 'nowhere' .* bundled"):
        models.load("nowhere")
    config.write_text(json.dumps(json.loads(good) | {"format_version": 99}))
    with pytest.raises(InputError, match="format version 99, this stpred reads 1; upgrade stpred"):
        models.load(folder)
    config.write_text(json.dumps({"family": "ridge"}))
    with pytest.raises(InputError, match="format version None"):
        models.load(folder)
    config.write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        models.load(folder)
    config.write_text(json.dumps(json.loads(good) | {"family": "oracle"}))
    with pytest.raises(InputError, match="No model family named 'oracle'"):
        models.load(folder)
    facts = json.loads(good)
    facts["config"]["speed"] = 11
    config.write_text(json.dumps(facts))
    with pytest.raises(InputError, match=r"has no fields \['speed'\]"):
        models.load(folder)

    config.write_text(good)
    save_file({k: v for k, v in tensors.items() if k != "coef"}, weights)
    with pytest.raises(InputError, match=r"lacks tensors \['coef'\]"):
        models.load(folder)
    save_file(tensors | {"more": tensors["coef"].clone()}, weights)
    with pytest.raises(InputError, match=r"does not know: \['more'\]"):
        models.load(folder)
    save_file(tensors | {"coef": tensors["coef"][:, :2].contiguous()}, weights)
    with pytest.raises(InputError, match=r"Tensor 'coef' .* has shape \(3, 2\), .* needs \(3, 5\)"):
        models.load(folder)
    weights.write_bytes(b"\x80\x04 not tensors")
    with pytest.raises(InputError, match="model file .* cannot be read"):
        models.load(folder)
    weights.unlink()
    with pytest.raises(MissingFileError, match="is missing"):
        models.load(folder)


def test_third_parties_add_families_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    theirs = EntryPoint("their-mean", "stpred.models.baselines:Mean", registry.ENTRY_POINTS)
    monkeypatch.setattr(registry, "entry_points", lambda group: [theirs] if group == registry.ENTRY_POINTS else [])
    assert "their-mean" in models.list()
    assert registry.family("their-mean") is Mean


def test_bundled_model_is_small_and_carries_its_card() -> None:
    folder = registry.BUNDLED / "default"
    assert models.list()[0] == "default"
    assert sum(p.stat().st_size for p in folder.iterdir()) < 5_000_000
    model = models.load("default")
    scores = np.array(model.record.var["cv_pearson"], dtype=float)
    assert 1000 < len(model.record.genes) < 6000
    assert (scores > 0.1).all()
    assert all(model.record.var["trusted"])
    card = (folder / "CARD.md").read_text()
    assert "one patient" in card
    assert "must not be used" in card

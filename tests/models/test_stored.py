"""A stored model is data: whatever a field says, it is refused when loaded, or predictions work."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from stpred import InputError, models
from stpred.models import Batch, Model, registry

GENES = ["A", "B", "C"]
SMALL: dict[str, dict[str, Any]] = {
    "mean": {},
    "intensity": {"n_bins": 3},
    "colour": {},
    "ridge": {},
    "mlp": {"hidden": [4]},
    "deepspot": {"width": 4, "n_phi": 2, "n_rho": 2},
    "deepcell": {"width": 4, "n_phi": 2, "n_rho": 2, "n_neighbors": 2},
    "deepspot2cell": {"width": 4, "n_phi": 2, "n_rho": 2},
    "miso": {"width": 8, "inner": 4, "n_heads": 2, "n_neighbors": 2},
    "transformer": {"width": 8, "inner": 4, "n_heads": 2},
    "scellst": {"hidden": [4]},
    "student": {"hidden": [4]},
    "stnet": {"backbone": "test_resnet", "pretrained": False, "n_views": 1},
    "xfuse": {"depth": 2, "width": 4, "metagenes": 2, "max_metagenes": 3, "covariates": {"s": {"donor": "a"}}},
    "ensemble": {"n": 2, "family": "ridge", "member": {}},
}
JUNK: list[Any] = [
    None, "", "x", "NaN", "../../etc/passwd", "\u202e", "a" * 10_000, -1, 0, 1, 2.5, 1e308, -1e308, 1e-308, 10**9,
    10**12, 2**31, 2**63, 10**30, True, False, [], {}, [[]], [1, 2], ["a"], {"a": 1}, [None], 0.1, [10**9],
    float("nan"), float("inf"), "\ud800",
]  # fmt: skip


def tiny(name: str) -> Model:
    family = registry.family(name)
    width = {"stnet": 3 * 32 * 32, "intensity": 3}.get(name, 5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = family(family.Config.parse(SMALL[name]), n_features=width, n_genes=3)
    card = {
        "name": "own", "tile": {"mpp": 0.5, "size_px": 32}, "width": width, "source": "x", "revision": "1",
        "licence": "x", "gated": False, "mean": [0.5] * 3, "std": [0.2] * 3, "dense": [2, 2, width],
    }  # fmt: skip
    level = {"level": 0.9, "factor": 1.0, "coverage": 0.9, "coverage_sd": None}
    level |= {"low": [-1.0, -1.0, None], "high": [1.0] * 3}
    var = {"cv_pearson": [0.1, None, 0.2], "trusted": [True, False, True], "gene_id": ["a", "b", None]}
    slides = {"s": {"donor": "a", "n_locations": 3, "image": "f"}}
    intervals = {"scale": "identity", "slides": ["s"], "n_donors": 1, "width_um": 55.0, "how": "x", "levels": [level]}
    model.record = models.Record(
        name=name,
        genes=list(GENES),
        var={**var, "own": [1, 2, 3]},
        encoder=card,
        tile=card["tile"],
        gene_rule={"method": "list", "n": None, "genes": list(GENES), "min_total": 10},
        target="counts" if name == "xfuse" else "log1p_cp10k",
        pitch_um=100.0,
        region="spots",
        reach_um=100.0,
        training={"slides": slides, "hexagonal": True, "slide_limit": 2.0},
        intervals=intervals,
    )  # fmt: skip
    return model.eval()


def batch_of(name: str, model: Model) -> Batch | None:
    """Return four locations as the family sees them; None for the one that looks at a slide's pixels itself."""
    rng, n = np.random.default_rng(0), 4
    if name == "xfuse":
        return None
    values = rng.integers(0, 256, (n, model.n_features), dtype=np.uint8) if name == "stnet" else None
    features = rng.normal(size=(n, model.n_features)).astype(np.float32) if values is None else values
    more: dict[str, Any] = {"colour": np.full((2, 3), 0.5, np.float32)} if name == "stnet" else {}
    if model.needs.linked:
        more["neighbors"] = [[1, 2], [0], [3], [2, 1]]
    if model.needs.parts or model.needs.tokens:
        more["parts"] = rng.normal(size=(n, 4, model.n_features)).astype(np.float32)
    return None if model.needs.cells else Batch.of(features, **more)


def places(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if at:
        yield at
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree[:2]) if isinstance(tree, list) else ():
        yield from places(value, (*at, key))


def edited(tree: Any, at: tuple[Any, ...], value: Any) -> Any:
    new = copy.deepcopy(tree)
    part = new
    for key in at[:-1]:
        part = part[key]
    if value is ...:
        del part[at[-1]]
    else:
        part[at[-1]] = value
    return new


def use(folder: Path, name: str) -> None:
    """Load and predict; only an InputError may come of it, and nothing but finite values out of it."""
    model = models.load(folder)
    batch = batch_of(name, model)
    assert model.support_um > 0
    if batch is not None:
        mean, std = model.predict(batch)
        assert np.isfinite(mean).all()
        assert std is None or np.isfinite(std).all()
        model.ood_distance(batch)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in ("stnet", "xfuse", "ensemble") else n for n in SMALL]
)
def test_every_field_with_junk(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "families", lambda: registry.FAMILIES)  # no search for plugins at every load
    folder = models.save(tiny(name), tmp_path / "m")
    use(folder, name)
    config = folder / "config.json"
    tree = json.loads(config.read_text())
    rng = np.random.default_rng(0)
    spots = [p for p in places(tree) if p[0] != "record" or name == "mean"]
    heavy = name in ("stnet", "xfuse", "deepspot2cell")
    for at in spots:
        for j in rng.permutation(len(JUNK))[: 3 if heavy else 8]:
            config.write_text(json.dumps(edited(tree, at, JUNK[j])))
            try:
                use(folder, name)
            except InputError:
                continue
            except Exception as error:
                raise AssertionError(f"{name}: {at} = {str(JUNK[j])[:40]!r}: {error!r}") from error


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (("record", "genes"), ["A", "A", "B"]),
        (("record", "genes"), ["A", " ", "B"]),
        (("record", "genes"), ["A", 1, "B"]),
        (("record", "target"), "log2"),
        (("record", "tile", "mpp"), 1000.0),
        (("record", "tile", "size_px"), 10**6),
        (("record", "tile", "size_px"), 64),  # the encoder states another
        (("record", "pitch_um"), 0),
        (("record", "pitch_um"), 1e300),
        (("record", "var", "trusted"), ["yes", "no", "no"]),
        (("record", "var", "cv_pearson"), [0.1, "x", 0.2]),
        (("record", "var", "cv_pearson"), [0.1, 7.0, 0.2]),
        (("record", "var", "own"), [1, "x", None]),
        (("record", "encoder", "std"), [0.2, 0.0, 0.2]),
        (("record", "encoder", "width"), 6),
        (("record", "training", "slide_limit"), -1),
        (("record", "training", "slides"), ["s"]),
        (("record", "training", "deep"), json.loads("[" * 60 + "]" * 60)),
        (("record", "intervals", "levels", 0, "low"), [1.0]),
        (("record", "intervals", "levels", 0, "level"), 2),
        (("n_features",), 10**9),
        (("n_features",), True),
        (("family",), ["ridge"]),
        (("config", "standardize"), 5),
        (("config", "context_um"), 1e300),
        (("format_version",), True),
    ],
)
def test_fields_that_must_be_refused(at: tuple[Any, ...], value: Any, tmp_path: Path) -> None:
    folder = models.save(tiny("ridge"), tmp_path / "m")
    config = folder / "config.json"
    config.write_text(json.dumps(edited(json.loads(config.read_text()), at, value)))
    with pytest.raises(InputError):
        models.load(folder)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("mlp", {"hidden": [10**9]}),
        ("mlp", {"hidden": [10**9, 10**9]}),
        ("miso", {"width": 2**31 - 1, "inner": 2**30, "n_heads": 1}),
        ("deepspot", {"width": 10**8, "n_phi": 10**4}),
        ("xfuse", {"depth": 10**6}),
        ("xfuse", {"depth": 20, "width": 2**20}),
        ("ensemble", {"n": 10**9}),
        ("intensity", {"n_bins": 10**9}),
        ("scellst", {"hidden": [4] * 5000}),
    ],
)
def test_declared_sizes_are_compared_before_memory_is_taken(
    family: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    folder = models.save(tiny(family), tmp_path / "m")
    config = folder / "config.json"
    tree = json.loads(config.read_text())
    tree["config"] |= settings
    config.write_text(json.dumps(tree))
    with pytest.raises(InputError):
        models.load(folder)


def test_tensors_that_no_model_holds(tmp_path: Path) -> None:
    folder = models.save(tiny("ridge"), tmp_path / "m")
    weights = folder / "model.safetensors"
    good = {k: v.clone() for k, v in load_file(weights).items()}  # not mapped onto the file that is written below

    def refused(**changed: torch.Tensor) -> None:
        save_file(good | changed, weights)
        with pytest.raises(InputError, match=next(iter(changed))):
            models.load(folder)

    coef = good["coef"]
    refused(coef=torch.full_like(coef, float("nan")))
    refused(coef=torch.full_like(coef, float("inf")))
    refused(coef=torch.full_like(coef, 3e38))
    refused(coef=torch.full(coef.shape, 1e300, dtype=torch.float64))
    refused(coef=torch.ones(coef.shape, dtype=torch.int32))
    refused(coef=torch.ones(coef.shape, dtype=torch.bool))
    refused(std=torch.zeros_like(good["std"]))
    refused(**{"typical.limit": torch.tensor(0.0)})
    save_file(good | {"coef": coef.half()}, weights)  # other precisions are read as ever
    np.testing.assert_array_equal(models.load(folder).coef, coef.half().float())


def test_loading_leaves_the_random_state_alone(tmp_path: Path) -> None:
    folder = models.save(tiny("mlp"), tmp_path / "m")
    before = torch.get_rng_state()
    models.load(folder)
    assert torch.equal(torch.get_rng_state(), before)

"""Small predictors of the interface of lazyslide-models, with weights in a folder as on the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lazyslide_models import MODEL_REGISTRY, ModelTask, register
from lazyslide_models.base import FeaturePredictionModel, TilePredictionModel
from safetensors.torch import load_file, save_file

REPOSITORY = "someone/predictors"


def write_weights(folder: Path, genes: list[str], features: np.ndarray, tiles: np.ndarray | None = None) -> None:
    """Write the files of a repository: (width, n_genes) weights of features, and (3, n_genes) of mean colours."""
    folder.mkdir(exist_ok=True)
    tiles = np.random.default_rng(0).normal(size=(3, len(genes))) if tiles is None else tiles
    for name, value in {"features": features, "tiles": tiles}.items():
        weight = torch.from_numpy(value.T.astype(np.float32))
        state = {"weight": weight.contiguous(), "bias": torch.zeros(len(genes))}
        save_file(state, folder / f"{name}.safetensors")
    (folder / "genes.txt").write_text("\n".join(genes))
    ids = {g: f"ENSG{i:011d}" for i, g in enumerate(genes)} | {f"ALIAS{i}": f"ENSG{i:011d}" for i in range(2)}
    (folder / "symbol2ensembl.json").write_text(json.dumps(ids))


def ask(name: str) -> str:
    from huggingface_hub import hf_hub_download

    return hf_hub_download(REPOSITORY, f"Fake/{name}")


def linear(path: str) -> torch.nn.Linear:
    state = load_file(path)
    layer = torch.nn.Linear(*reversed(state["weight"].shape))
    layer.load_state_dict(state)
    return layer.eval()


def register_fakes() -> list[str]:
    """Register them; return their names."""
    facts: dict[str, Any] = {
        "hf_url": f"https://huggingface.co/{REPOSITORY}", "license": "CC-BY-NC-4.0", "commercial": False,
        "paper_url": "https://doi.org/10.1000/fake",
    }  # fmt: skip

    @register(key="fake-features", task=ModelTask.feature_prediction, **facts)
    class FakeFeatures(FeaturePredictionModel):
        """Each location by its features."""

        features_model_name = "colour"

        def __init__(self, model_path=None, token=None):
            self.model = linear(model_path or ask("features.safetensors"))
            self.genes = Path(ask("genes.txt")).read_text().split()

        def predict(self, features):
            values = self.model(torch.as_tensor(features)).numpy()
            return dict(zip(self.genes, values.T, strict=True))

    @register(key="fake-slide", task=ModelTask.feature_prediction, **facts)
    class FakeSlide(FeaturePredictionModel):
        """All locations of a slide at once, by Ensembl ids."""

        features_model_name = "colour"
        needs_coords = True
        whole_slide = True

        def __init__(self, organ_type=None, genes=None, gene_voc_path=None, token=None, max_spots=400):
            self.model = linear(ask("features.safetensors"))
            self.ids = json.loads(Path(ask("symbol2ensembl.json")).read_text())
            self.genes, self.max_spots = genes, max_spots
            self.names = Path(ask("genes.txt")).read_text().split()

        def predict(self, features, coords=None):
            if len(features) > self.max_spots:
                raise ValueError(f"{len(features)} spots are more than max_spots={self.max_spots}")
            values = self.model(torch.as_tensor(features)).numpy()
            xy = coords - coords.min(axis=0)
            values = values + values.mean(axis=0) + (xy[:, :1] / max(xy.max(), 1e-9))
            found = {self.ids[n]: v for n, v in zip(self.names, values.T, strict=True)}
            return found if self.genes is None else {g: found[self.ids[g]] for g in self.genes if g in self.ids}

    @register(key="fake-tiles", task=ModelTask.tile_prediction, is_gated=True, **facts)
    class FakeTiles(TilePredictionModel):
        """Pixels of a tile."""

        def __init__(self, genes=None):
            self.model = linear(ask("tiles.safetensors"))
            names = Path(ask("genes.txt")).read_text().split()
            self.columns = tuple(names)

        def get_transform(self):
            from torchvision.transforms.v2 import Compose, Normalize, Resize, ToDtype, ToImage

            return Compose(
                [ToImage(), ToDtype(torch.float32, scale=True), Resize((32, 32)), Normalize([0.5] * 3, [0.5] * 3)]
            )

        def predict(self, image):
            assert image.shape[1:] == (3, 32, 32)
            values = self.model(image.mean(dim=(2, 3))).numpy()
            return dict(zip(self.columns, values.T, strict=True))

    @register(key="fake-classes", task=ModelTask.tile_prediction, **facts)
    class FakeClasses(TilePredictionModel):
        columns = ("class", "prob")

        def __init__(self):
            self.model = torch.nn.Identity()

        def predict(self, image):
            return {"class": ["tumour"] * len(image), "prob": np.ones(len(image))}

    return ["fake-features", "fake-slide", "fake-tiles", "fake-classes"]


def unregister(names: list[str]) -> None:
    for name in names:
        del MODEL_REGISTRY[name]

"""Record what every part of stpred computes on synthetic slides, and compare later code with the record.

    python scripts/golden_record.py write golden            # before a change
    python scripts/golden_record.py compare golden          # after it: lists what is not the same to the last bit
    python scripts/golden_record.py compare golden --only family/ridge tl/compare
    python scripts/golden_record.py write golden --only real --real ../shared/data/her2st

Each entry below calls public functions and returns what they gave. An entry is kept as two files: numbers in
``NAME.npz``, everything else in ``NAME.json``; both map a path such as ``spots/obs/ood_score`` to a value. Models are
kept as well (``models/FAMILY``): entries ``stored/...`` predict from those folders, so that a comparison also tells
whether later code can read earlier models. Package versions, times and folders are left out. When a public name
changes, only the call in an entry has to follow it; when a recorded key changes, say so in `RENAMED`.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import anndata as ad
import geopandas as gpd
import numpy as np
import pandas as pd
import scipy.sparse
import shapely
import torch
import xarray as xr
from spatialdata import SpatialData, concatenate, deepcopy, read_zarr
from spatialdata.models import ShapesModel
from spatialdata.transformations import Identity, get_transformation, remove_transformation

import stpred as st

RENAMED: dict[str, str] = {}
"""Regular expressions on paths of the record, and what the same value is called now."""

LEFT_OUT = re.compile(r"(^|/)(versions|created|date|seconds|path|folder)(/|$)")
"""Paths that differ from run to run or machine to machine."""

ENVIRONMENT = {
    "MPLBACKEND": "Agg",
    "MKL_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
"""One thread: the order of a sum is part of its result."""

MAX_VALUES = 1_000_000
"""Larger arrays are kept as a hash and a sample of so many values at most."""

Record = dict[str, Any]


# Tools of the entries.


@dataclasses.dataclass
class Tools:
    """What entries share: a folder to write into, small slides, and models trained on them once."""

    folder: Path
    stored: Path
    saved: Path
    real: Path | None = None

    def new_folder(self) -> Path:
        """Return an empty folder."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    @cached_property
    def cohort(self) -> dict[str, SpatialData]:
        """Three donors; what entries change is in copies."""
        return st.datasets.toy_cohort(3, size_um=(600, 600), n_genes=24)

    @property
    def training(self) -> dict[str, SpatialData]:
        """The two donors that models are trained on."""
        return {name: copied(self.cohort[name]) for name in ("donor0", "donor1")}

    def slide(self, name: str = "donor2") -> SpatialData:
        """Return a copy of a slide; `donor2` is that which no model has seen."""
        return copied(self.cohort[name])

    @cached_property
    def ridge(self) -> Any:
        """A closed-form model with context."""
        return st.tl.train(self.training, st.models.Ridge.Config(context_um=120.0), genes="all", shapes_key="spots")

    @cached_property
    def student(self) -> Any:
        """A model of patches of a tile."""
        config = st.models.Student.Config(hidden=(16,), epochs=2)
        return st.tl.train(self.training, config, genes="all", shapes_key="spots")

    @cached_property
    def scene_cohort(self) -> dict[str, SpatialData]:
        """Coarse slides for the generative model."""
        return st.datasets.toy_cohort(2, size_um=(500, 500), n_genes=12, mpp=1.0)

    @cached_property
    def xfuse(self) -> Any:
        """The generative model."""
        config = st.models.XFuse.Config(depth=2, width=4, metagenes=4, epochs=3)
        return st.tl.train(self.scene_cohort, config, genes="all", shapes_key="spots", tile=SCENE_TILE)

    def predicted(self) -> SpatialData:
        """Return the unseen slide with the predictions of `ridge`."""
        slide = self.slide()
        st.tl.predict(slide, self.ridge, shapes_key="spots")
        return slide

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Cross-validated scores of three cheap models."""
        return st.tl.cross_validate(
            self.five, ["mean", "intensity", "ridge"], groups="slide", genes="all", shapes_key="spots"
        )

    @cached_property
    def five(self) -> dict[str, SpatialData]:
        """Five small slides, for what needs more donors."""
        return st.datasets.toy_cohort(5, size_um=(400, 400), n_genes=16)

    @cached_property
    def pseudobulk(self) -> ad.AnnData:
        """Forty samples of ten genes, with a class, a survival time and donors."""
        rng = np.random.default_rng(0)
        values = rng.normal(size=(40, 10))
        obs = pd.DataFrame({"donor": [f"d{i // 2}" for i in range(40)]}, index=[f"s{i}" for i in range(40)])
        obs["kind"] = np.where(values[:, 0] + 0.5 * rng.normal(size=40) > 0, "a", "b")
        obs["time"] = rng.exponential(np.exp(-values[:, 3])) + 0.01
        obs["event"] = rng.random(40) < 0.7
        return ad.AnnData(values, obs=obs, var=pd.DataFrame(index=[f"G{j}" for j in range(10)]))


def copied(sdata: SpatialData) -> SpatialData:
    """Return an object whose tables may be changed."""
    return SpatialData(
        images=dict(sdata.images),
        shapes={k: with_own_index(v) for k, v in sdata.shapes.items()},
        points=dict(sdata.points),
        tables={k: t.copy() for k, t in sdata.tables.items()},
    )


def with_own_index(shapes: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Return a copy of shapes that keeps its transformations."""
    copy = shapes.copy()
    copy.attrs = dict(shapes.attrs)
    return copy


SCENE_TILE = st.TileSpec(mpp=16, size_px=32)
SMALL_TILE = st.TileSpec(mpp=3.5, size_px=32)
CELL_TILE = st.TileSpec(mpp=0.5, size_px=32)
THROUGH_CELLS = {"cells_key": "cells", "tile": CELL_TILE}
GENE_SETS = {"tumour": ["EPCAM", "KRT8", "MUC1"], "stroma": ["COL1A1", "COL1A2", "DCN"], "immune": ["PTPRC", "MS4A1"]}


def small_network() -> torch.nn.Module:
    """Return a convolutional encoder with fixed weights."""
    torch.manual_seed(0)
    pool = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
    return torch.nn.Sequential(torch.nn.Conv2d(3, 6, 5, stride=2), pool)


def tiles(n: int = 6, size: int = 224) -> np.ndarray:
    """Return tiles of synthetic tissue."""
    image = st.datasets.make_tissue(size_um=(400, 400), n_genes=5).image
    starts = np.linspace(0, image.shape[0] - size, n).astype(int)
    return np.stack([image[a : a + size, b : b + size] for a, b in zip(starts, starts[::-1], strict=True)])


ENTRIES: dict[str, Callable[[Tools], Record]] = {}
"""All entries, in the order in which they run."""


def entry(name: str) -> Callable[[Callable[[Tools], Record]], Callable[[Tools], Record]]:
    """Give an entry its name."""

    def add(function: Callable[[Tools], Record]) -> Callable[[Tools], Record]:
        ENTRIES[name] = function
        return function

    return add


# Families of models: trained, saved, predicted on spots and on something finer.


@dataclasses.dataclass(frozen=True)
class Family:
    """How a family is trained at little cost; `finer` is the region of the second prediction."""

    config: Any
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    prediction: dict[str, Any] = dataclasses.field(default_factory=dict)
    finer: str = "few"
    scene: bool = False


def scene_family(**settings: Any) -> Family:
    """Return settings of the generative family."""
    config = st.models.XFuse.Config(
        **({"depth": 2, "width": 4, "metagenes": 3, "epochs": 2, "batch_size": 2} | settings)
    )
    return Family(config, {"tile": SCENE_TILE}, {"posterior": st.Posterior(4)}, finer="spots_064um", scene=True)


FAMILIES: dict[str, Callable[[], Family]] = {
    "mean": lambda: Family("mean"),
    "intensity": lambda: Family("intensity"),
    "colour": lambda: Family("colour"),
    "ridge": lambda: Family("ridge"),
    "ridge-context": lambda: Family(st.models.Ridge.Config(context_um=120.0, n_components=8), {"target": "counts"}),
    "mlp": lambda: Family(st.models.MLP.Config(hidden=(16,), input_dropout=0.3, dropout=0.2, epochs=3)),
    "mlp-softplus": lambda: Family(
        st.models.MLP.Config(
            hidden=(8,), output="softplus", activation="gelu", standardize="train", scale_genes=False, epochs=2
        )
    ),
    "mlp-early-stopping": lambda: Family(
        st.models.MLP.Config(hidden=(8,), context_um=120.0, max_epochs=4, loss="pearson")
    ),
    "miso": lambda: Family(
        st.models.MISO.Config(n_neighbors=6, width=32, inner=16, n_heads=2, dropout=0.3, epochs=3)
    ),
    "transformer": lambda: Family(st.models.Transformer.Config(width=32, inner=16, n_heads=2, epochs=3)),
    "deepspot": lambda: Family(st.models.DeepSpot.Config(width=16, n_phi=2, n_rho=2, epochs=3, batch_size=32)),
    "deepspot-neighbors": lambda: Family(
        st.models.DeepSpot.Config(width=16, n_phi=2, n_rho=2, epochs=2, context="spot+neighbors", parts_pool="max")
    ),
    "stnet": lambda: Family(
        st.models.STNet.Config(
            pretrained=False, backbone="resnet10t", optimiser="adamw", lr=2e-3, reduction="mean", n_views=1, epochs=1
        ),
        {"tile": SMALL_TILE, "genes": st.GeneRule("mean", n=6)},
    ),
    "student": lambda: Family(st.models.Student.Config(hidden=(16,), epochs=3), finer="fine"),
    "student-footprint": lambda: Family(
        st.models.Student.Config(hidden=(8,), epochs=2, token_um=16, footprint_um=80), finer="fine"
    ),
    "student-intensity": lambda: Family(
        st.models.Student.Config(hidden=(8,), epochs=2, token_um=28), {"encoder": "intensity"}
    ),
    "ensemble": lambda: Family(st.models.Ensemble.Config(st.models.MLP.Config(hidden=(8,), epochs=2), 2)),
    "deepcell": lambda: Family(
        st.models.DeepCell.Config(width=16, n_neighbors=6, epochs=2), THROUGH_CELLS, finer="cells"
    ),
    "deepspot2cell": lambda: Family(
        st.models.DeepSpot2Cell.Config(width=16, n_phi=2, n_rho=2, epochs=2), THROUGH_CELLS, finer="cells"
    ),
    "scellst": lambda: Family(
        st.models.SCellST.Config(hidden=(16,), epochs=3, lr=1e-3), THROUGH_CELLS, finer="cells"
    ),
    "xfuse": lambda: scene_family(),
    "xfuse-split": lambda: scene_family(purge_interval=1, epochs=4, max_metagenes=8, amsgrad=True),
    "xfuse-extra": lambda: scene_family(
        strategy="extra", purge_interval=1, epochs=3, spare=2, spare_epochs=3, decay=False, score_folds=True,
        covariates={"donor0": {"patient": "a"}, "donor1": {"patient": "b"}},
    ),
}  # fmt: skip
"""One cheap setting or more of every family."""


def slide_for(tools: Tools, family: Family) -> SpatialData:
    """Return the slide to predict on, with the finer regions."""
    if family.scene:
        slide = copied(tools.scene_cohort["donor1"])
        st.pp.subdivide(slide, "spots", size_um=64)
        return slide
    slide = tools.slide()
    slide.shapes["few"] = slide.shapes["cells"].iloc[::30]
    if family.finer == "fine":
        st.pp.subdivide(slide, "spots", size_um=8, key_added="fine")
    return slide


def predictions(tools: Tools, family: Family, model: Any) -> Record:
    """Predict the two regions of a slide."""
    slide = slide_for(tools, family)
    return {
        name: st.tl.predict(slide, model, shapes_key=key, inplace=False, **family.prediction)
        for name, key in (("spots", "spots"), ("finer", family.finer))
    }


def train_family(tools: Tools, *, name: str) -> Record:
    """Train a family; record the model as it is on disk and its predictions."""
    family = FAMILIES[name]()
    slides = tools.scene_cohort if family.scene else tools.training
    how = {"genes": "all", "shapes_key": "spots"} | family.training
    model = st.tl.train(slides, family.config, **how)
    folder = st.models.save(model, tools.saved / name, overwrite=True)
    return {**saved_model(folder), **predictions(tools, family, model)}


def saved_model(folder: Path) -> Record:
    """Return settings and weights of a model's folder."""
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text())
    return {"config.json": config, "weights": load_file(folder / "model.safetensors")}


def stored_family(tools: Tools, *, name: str) -> Record:
    """Predict with the model that is kept in the record."""
    return predictions(tools, FAMILIES[name](), st.models.load(tools.stored / name))


for _name in FAMILIES:
    ENTRIES[f"family/{_name}"] = partial(train_family, name=_name)
for _name in FAMILIES:
    ENTRIES[f"stored/{_name}"] = partial(stored_family, name=_name)


@entry("family/default")
def bundled_model(tools: Tools) -> Record:
    slide = tools.slide()
    bare = SpatialData(images=dict(slide.images))
    st.tl.predict(bare)
    return {
        "names": st.models.list(),
        "record": st.models.load("default").record,
        "spots": st.tl.predict(slide, shapes_key="spots", inplace=False),
        "bare": bare,
    }


@entry("family/reference")
def published_layouts(tools: Tools) -> Record:
    """Random weights in the layouts of published models."""
    torch.manual_seed(0)
    d, width, inner, g = 212, 40, 32, 3
    block = "transformer.layers.0."
    sizes = {
        "miso": {
            "module.emb_layer": (width, d), f"module.{block}1.to_qkv": (3 * inner, width),
            f"module.{block}1.to_out": (width, inner), f"module.{block}3.hidden_layers.0": (width, width),
            "module.mlp": (g, width), f"module.{block}0": (width,), f"module.{block}2": (width,),
        },
        "miso-student": {f"mlp.hidden_layers.{i}": s for i, s in ((0, (8, 104)), (2, (6, 8)), (4, (g, 6)))},
        "deepspot": {f"phi_spot.{i}.model.0": (6, d) for i in range(3)}
        | {f"rho.{i}.model.2": (g, 18) for i in range(3)},
    }  # fmt: skip
    found, encoder = {}, st.encoders.get("morphology")
    for name, layers in sizes.items():
        weights = {f"{k}.weight": torch.randn(shape) / 6 for k, shape in layers.items()}
        weights |= {f"{k}.bias": torch.randn(shape[0]) / 6 for k, shape in layers.items() if "to_out" not in k}
        how = {"genes": ["A", "B", "C"], "encoder": encoder, "pitch_um": 100.0}
        model = st.models.load_reference(name, weights, **how)
        table = st.tl.predict(tools.slide(), model, shapes_key="spots", inplace=False)
        found[name] = {"config": model.config, "record": model.record, "predicted": table}
    return found


# Data sets and readers.


def made_by(tools: Tools, write: Callable[[Path], Any], read: Callable[[Path], Any]) -> Record:
    """Write a synthetic data set, read it."""
    folder = tools.new_folder()
    path = write(folder / "a")
    written = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return {"files": written, "object": read(path)}


def readers() -> dict[str, tuple[Callable[[Path], Any], Callable[[Path], Any]]]:
    """Return how each format is written and read."""
    data, small = st.datasets, {"size_um": (400, 400), "n_genes": 12}
    one = {"size_um": (400, 400)}
    return {
        "visium": (lambda p: data.toy_visium(p, **small), st.io.visium),
        "visium_v1": (
            lambda p: data.toy_visium(p, version="v1", counts="mtx", **small),
            lambda p: st.io.visium(p, mpp=0.5),
        ),
        "visium_v4": (lambda p: data.toy_visium(p, version="v4", seed=1, donor=1, **small), st.io.read),
        "visium_hd": (lambda p: data.toy_visium_hd(p, **small), st.io.visium_hd),
        "visium_hd_8": (lambda p: data.toy_visium_hd(p, **small), lambda p: st.io.visium_hd(p, bin_sizes=8)),
        "xenium": (
            lambda p: data.toy_xenium(p, **small),
            lambda p: st.io.xenium(p, labels=True, transcripts=True, morphology=True),
        ),
        "xenium_flipped": (lambda p: data.toy_xenium(p, flip=True, rotation_deg=20.0, **small), st.io.read),
        "legacy_st": (lambda p: data.toy_legacy_st(p, n_genes=12), st.io.read),
        "hest": (lambda p: data.toy_hest(p, **small), st.io.read),
        "hest_no_pixel_size": (
            lambda p: data.toy_hest(p, pixel_size=False, **small),
            lambda p: st.io.read(p, pitch_um=100.0, diameter_um=55.0),
        ),
        "visium_no_fullres": (lambda p: data.toy_visium(p, fullres=False, **small), st.io.visium),
        "xenium_no_he": (lambda p: data.toy_xenium(p, he=False, **small), st.io.xenium),
        "wsi_tif": (lambda p: data.toy_wsi(p.with_suffix(".tif"), **one), st.io.wsi),
        "wsi_svs": (lambda p: data.toy_wsi(p.with_suffix(".svs"), **one), st.io.wsi),
        "wsi_ome": (lambda p: data.toy_wsi(p.with_suffix(".ome.tif"), **one), st.io.read),
        "wsi_png": (lambda p: data.toy_wsi(p.with_suffix(".png"), **one), lambda p: st.io.wsi(p, mpp=0.5)),
    }


for _name, (_write, _read) in readers().items():
    ENTRIES[f"io/{_name}"] = partial(made_by, write=_write, read=_read)


@entry("io/hest_layers")
def counts_in_a_layer(tools: Tools) -> Record:
    """A table whose X is normalised and whose raw counts are in a layer, with Ensembl ids as names."""
    folder = st.datasets.toy_hest(tools.new_folder() / "a", size_um=(400, 400), n_genes=12)
    adata = ad.read_h5ad(next(folder.rglob("*.h5ad")))
    image = next(p for p in folder.rglob("*.tif*"))
    adata.layers["counts"] = adata.X.copy()
    adata.var["symbol"] = list(adata.var_names)
    adata.var_names = [f"ENSG{i:011d}" for i in range(adata.n_vars)]
    adata.X = np.log1p(adata.X.toarray() if scipy.sparse.issparse(adata.X) else adata.X)
    return {"found": st.io.hest(adata, image), "named": st.io.hest(adata, image, layer="counts", shapes_key="own")}


@entry("io/read_cohort")
def read_cohort(tools: Tools) -> Record:
    folder = tools.new_folder()
    for i, name in enumerate(("a", "b")):
        st.datasets.toy_visium(folder / name / "outs", seed=i, donor=i, size_um=(400, 400), n_genes=12)
    slides, donors = st.io.read_cohort([{"slide": n, "path": folder / n / "outs", "donor": f"d{n}"} for n in "ab"])
    found, _ = st.io.read_cohort([folder])
    rows = {"slide": ["x", "y"], "path": ["a/outs", "b/outs"], "donor": ["p", "p"], "mpp": [0.5, 0.5]}
    pd.DataFrame(rows).to_csv(folder / "slides.csv", index=False)
    listed, donors_listed = st.io.read_cohort([folder / "slides.csv"])
    return {
        "slides": slides, "donors": donors, "found": sorted(found), "listed": sorted(listed), "of csv": donors_listed,
    }  # fmt: skip


@entry("datasets/tissue")
def synthetic_tissue(tools: Tools) -> Record:
    return {"tissue": st.datasets.make_tissue(size_um=(400, 400), n_genes=12)}


@entry("datasets/toy")
def synthetic_slides(tools: Tools) -> Record:
    small = {"size_um": (400, 400), "n_genes": 12}
    return {
        "toy": st.datasets.toy(**small),
        "shuffled": st.datasets.toy(seed=3, shuffled=True, **small),
        "bins": st.datasets.toy(bin_um=16, **small),
        "cohort": st.datasets.toy_cohort(2, **small),
        "subtypes": st.datasets.toy_subtypes(size_um=900, n_genes=12),
        "reference": st.datasets.toy_reference(n_types=4, n_genes=100, n_cells=50, n_markers=5),
    }


@entry("datasets/truth")
def stored_truth(tools: Tools) -> Record:
    path = st.datasets.toy_visium(tools.new_folder() / "outs", size_um=(400, 400), n_genes=12)
    return {"truth": st.datasets.load_truth(path)}


# Preprocessing.


@entry("pp/regions")
def regions(tools: Tools) -> Record:
    slide = tools.slide()
    st.pp.tissue(slide)
    st.pp.tissue(slide, key_added="tissue_low", threshold=0.05)
    st.pp.grid(slide, pitch_um=50, layout="hexagonal")
    st.pp.grid(slide, pitch_um=80, key_added="squares")
    st.pp.subdivide(slide, "spots", size_um=16)
    return {k: slide.shapes[k] for k in ("tissue", "tissue_low", "grid", "squares", "spots_016um")}


@entry("pp/filled")
def filled_slide(tools: Tools) -> Record:
    """A slide with a black frame, of which only the tissue is to be found."""
    from PIL import Image

    tissue = st.datasets.make_tissue(size_um=(500, 400), n_genes=5, mpp=1.0)
    path = tools.new_folder() / "a.png"
    Image.fromarray(np.pad(tissue.image, ((90, 60), (40, 150), (0, 0)))).save(path)
    slide = st.io.wsi(path, mpp=1.0)
    st.pp.tissue(slide)
    st.pp.grid(slide, pitch_um=60)
    features = st.pp.features(
        slide, "intensity", tile=st.TileSpec(mpp=2.0, size_px=32), shapes_key="grid", inplace=False
    )
    return {"tissue": slide.shapes["tissue"], "grid": slide.shapes["grid"], "features": features}


def dark(rgb: np.ndarray, *, mpp: float) -> np.ndarray:
    """Label what is darker than most."""
    from skimage.measure import label

    return label(rgb.mean(axis=2) < 110)


@entry("pp/nuclei")
def nuclei(tools: Tools) -> Record:
    slide = copied(tools.five["donor0"])
    st.pp.nuclei(slide)
    st.pp.nuclei(slide, method=dark, key_added="dark", min_area_um2=20.0, max_area_um2=200.0, chunk_um=256.0)
    return {k: slide.shapes[k] for k in ("nuclei", "dark")}


@entry("pp/add_cells")
def add_cells(tools: Tools) -> Record:
    slide = tools.slide()
    circles = [shapely.Point(*p).buffer(9) for p in ((100, 100), (200, 300), (500, 400))]
    frame = gpd.GeoDataFrame({"class": ["x", "y", "x"]}, geometry=circles, index=["p", "q", "r"])
    st.pp.add_cells(slide, frame, units="px", key_added="frame")
    path = tools.new_folder() / "cells.geojson"
    frame.to_file(path, driver="GeoJSON")
    st.pp.add_cells(slide, path, units="px", key_added="file")
    y, x = np.mgrid[:1200, :1200] + 0.5
    labels = ((y - 200) ** 2 + (x - 300) ** 2 < 400) * 7 + ((y - 400) ** 2 + (x - 100) ** 2 < 100) * 9
    st.pp.add_cells(slide, labels.astype(np.int32), key_added="labels")
    return {k: slide.shapes[k] for k in ("frame", "file", "labels")}


@entry("pp/aggregate")
def aggregate(tools: Tools) -> Record:
    slide = tools.slide()
    folder = st.datasets.toy_xenium(tools.new_folder() / "x", size_um=(300, 300), n_genes=12)
    xenium = st.io.xenium(folder, transcripts=True)
    st.pp.aggregate(slide, "cells_counts", size_um=55)
    return {
        "cells in spots": st.pp.aggregate(slide, "cells", "spots", inplace=False),
        "fractions": st.pp.aggregate(slide, "cells", "spots", fractions=True, inplace=False),
        "bins": slide.shapes["bins_055um"],
        "cells in bins": slide.tables["bins_055um_counts"],
        "transcripts": st.pp.aggregate(xenium, "transcripts", "cells", inplace=False),
        "all transcripts": st.pp.aggregate(
            xenium, "transcripts", "cells", min_qv=None, drop_controls=False, inplace=False
        ),
    }


@entry("pp/features")
def features(tools: Tools) -> Record:
    slide = tools.slide()
    slide.shapes["few"] = slide.shapes["cells"].iloc[::50]
    network = st.encoders.get(small_network(), tile=SMALL_TILE, mean=(0.7, 0.6, 0.7), std=(0.2, 0.25, 0.2))
    st.pp.features(slide, shapes_key="spots")
    return {
        "morphology": slide.tables["spots_feat_morphology"],
        "cells": st.pp.features(slide, tile=CELL_TILE, shapes_key="few", inplace=False),
        "intensity": st.pp.features(slide, "intensity", shapes_key="spots", dtype="float16", inplace=False),
        "network": st.pp.features(slide, network, shapes_key="spots", inplace=False),
    }


@entry("pp/calibrate")
def calibrate(tools: Tools) -> Record:
    folder, small = tools.new_folder(), {"size_um": (400, 400), "n_genes": 12}
    objects = {
        "visium": st.io.visium(st.datasets.toy_visium(folder / "a", **small)),
        "visium_hd": st.io.visium_hd(st.datasets.toy_visium_hd(folder / "b", **small), bin_sizes=[8, 16]),
        "xenium": st.io.xenium(st.datasets.toy_xenium(folder / "c", **small)),
    }
    for name, slide in objects.items():
        for _, _, element in slide.gen_spatial_elements():
            if "um" in get_transformation(element, get_all=True):
                remove_transformation(element, "um")
        st.pp.calibrate(slide, mpp=0.34 if name == "xenium" else None)
    image = SpatialData(images={"he": objects["visium"].images["he"]})
    remove_transformation(image.images["he"], "um")
    st.pp.calibrate(image, mpp=0.7)
    found = {name: {k: transformations(e) for _, k, e in o.gen_spatial_elements()} for name, o in objects.items()}
    return found | {"given": transformations(image.images["he"])}


@entry("pp/select_genes")
def select_genes(tools: Tools) -> Record:
    rules = {m: st.GeneRule(m, n=8) for m in ("mean", "hvg", "svg", "rmax")}
    rules |= {"all": st.GeneRule("all"), "list": st.GeneRule("list", genes=("EPCAM", "DCN"))}
    return {
        name: {"rule": rule.to_dict(), "genes": st.pp.select_genes(tools.training, rule, shapes_key="spots")}
        for name, rule in rules.items()
    }


# Arrays: genes, scores, links, encoders.


def random_scores() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return predicted values, observed values and counts of 60 locations and 8 genes."""
    rng = np.random.default_rng(0)
    rate = np.exp(rng.normal(1, 1, (60, 8)))
    counts = rng.poisson(rate)
    return np.log1p(rate) + 0.5 * rng.normal(size=rate.shape), np.log1p(counts), counts


@entry("genes")
def gene_scores(tools: Tools) -> Record:
    from stpred import genes

    _, _, counts = random_scores()
    rng = np.random.default_rng(1)
    xy = rng.uniform(0, 800, (60, 2))
    names = [f"G{i}" for i in range(8)]
    slides = {"a": counts, "b": rng.permutation(counts)}
    return {
        "rmax": genes.rmax(counts),
        "hvg": genes.hvg(list(slides.values())),
        "svg": genes.svg(list(slides.values()), [xy, xy]),
        "morans_i": genes.morans_i(counts, xy),
        "mean_counts": genes.mean_counts(list(slides.values())),
        "select": genes.select(st.GeneRule("svg", n=4), slides, names, coords_um={"a": xy, "b": xy}),
        "shared_genes": genes.shared_genes({"a": names, "b": [*names[::-2], "X"]}),
        "shared_ids": genes.shared_genes(
            {"a": names, "b": [n.lower() for n in names]},
            ids={"a": [f"ENSG{i:011d}" for i in range(8)], "b": [f"ENSG{i:011d}" for i in range(8)]},
        ),
    }


@entry("metrics")
def metrics(tools: Tools) -> Record:
    from stpred import links

    m = st.metrics
    x, y, counts = random_scores()
    rng = np.random.default_rng(2)
    xy = rng.uniform(0, 800, (60, 2))
    near = links.knn(xy, xy, n_neighbors=6, include_self=True).to_csr(60)
    table = rng.normal(0.3, 0.1, (10, 4))
    donors = [f"d{i // 2}" for i in range(10)]
    per_gene = {name: getattr(m, name)(x, y) for name in ("pearson", "spearman", "r2", "rmse", "mae")}
    return per_gene | {
        "auroc": m.auroc(x, y > 1),
        "partial_pearson": m.partial_pearson(x, y, counts.sum(axis=1)),
        "ssim": m.ssim(x, y, near),
        "smooth": m.smooth(x, near),
        "neighbour_baseline": m.neighbour_baseline(y, near),
        "library_size_baseline": [m.library_size_baseline(counts, target=t) for t in ("counts", "log1p_cp10k")],
        "reliability": m.reliability(counts),
        "rmax_test": m.rmax_test(counts),
        "permutation_null": m.permutation_null(x, y, n_permutations=50, blocks=np.arange(60) // 10),
        "coverage": m.coverage(y, x - 1, x + 1),
        "conformal_intervals": m.conformal_intervals(
            [y[:20] - x[:20], y[20:40] - x[20:40], y[40:] - x[40:]], level=0.8
        ),
        "consistent_genes": m.consistent_genes(table),
        "fisher_t_test": m.fisher_t_test(table[:, 0]),
        "holm": m.holm([0.01, 0.04, 0.03]),
        "median_p": m.median_p([0.01, 0.02, 0.6]),
        "bootstrap_ci": m.bootstrap_ci(table, groups=donors, n_samples=500),
        "compare_models": m.compare_models(table, list("abcd")),
        "summarise": m.summarise([0.5, float("nan"), 0.1]),
        "average": {o: m.average(table, order=o) for o in ("genes", "slides")},
    }


@entry("links")
def ragged_indices(tools: Tools) -> Record:
    from stpred import links

    rng = np.random.default_rng(3)
    a, b = rng.uniform(0, 400, (20, 2)), rng.uniform(0, 400, (80, 2))
    return {
        "within": links.within(a, 40.0, b, nearest_only=True),
        "radius": links.radius(a, b, radius_um=60.0),
        "knn": links.knn(a, b, n_neighbors=4),
        "from_labels": links.from_labels(rng.integers(-1, 20, 80), 20),
        "mean": links.knn(a, b, n_neighbors=4).mean(b),
    }


@entry("encoders")
def encoders(tools: Tools) -> Record:
    images = tiles()
    found: Record = {"names": st.encoders.list()}
    for name in ("morphology", "intensity", "colour", "pixels"):
        encoder = st.encoders.get(name)
        found[name] = {"card": encoder.card}
        if name != "pixels":
            found[name]["features"] = encoder.encode(images)
    small = st.encoders.get("morphology", tile=CELL_TILE)
    found["small"] = {"card": small.card, "features": small.encode(images[:, :32, :32])}
    module = st.encoders.get(small_network(), tile=SMALL_TILE, mean=(0.7, 0.6, 0.7), std=(0.2, 0.25, 0.2))
    found["module"] = {"card": module.card, "features": module.encode(images[:, :32, :32])}
    found["patches"] = st.encoders.get("morphology").encode_dense(images[:2])
    for name in ("timm/test_vit", "timm/test_resnet"):
        network = st.encoders.get(name, pretrained=False)
        size = network.card.tile.size_px
        found[name] = {"card": network.card, "features": network.encode(images[:2, :size, :size])}
    return found


# Training and prediction.


@entry("tl/predict")
def prediction_options(tools: Tools) -> Record:
    slide = tools.slide()
    st.pp.subdivide(slide, "spots", size_um=8, key_added="fine")
    model = st.tl.train(tools.five, "ridge", genes="all", shapes_key="spots", intervals=True)
    bare = SpatialData(images=dict(slide.images))
    st.tl.predict(bare, tools.ridge)
    coarse = st.datasets.toy(size_um=(600, 600), mpp=1.6, n_genes=24)
    student = tools.student
    with st.settings.override(max_upsampling=4):
        upsampled = st.tl.predict(coarse, tools.ridge, shapes_key="spots", inplace=False)
    return {
        "genes": st.tl.predict(slide, tools.ridge, shapes_key="spots", genes=["DCN", "EPCAM"], inplace=False),
        "interval": st.tl.predict(slide, model, shapes_key="spots", interval=0.9, inplace=False),
        "no shapes": bare,
        "stride": st.tl.predict(slide, student, shapes_key="fine", stride_um=56.0, inplace=False),
        "preserve": st.tl.predict(slide, student, shapes_key="fine", preserve="spots", inplace=False),
        "usual region": st.tl.predict(slide, tools.ridge, inplace=False),
        "from folder": st.tl.predict(slide, st.models.save(tools.ridge, tools.new_folder() / "m"), inplace=False),
        "coarse": upsampled,
    }


@entry("tl/predict_posterior")
def posterior(tools: Tools) -> Record:
    slide, model = copied(tools.scene_cohort["donor1"]), tools.xfuse
    options = {
        "scale": st.Posterior(4, normalize_scale=True),
        "size": st.Posterior(4, normalize_size=True),
        "covariates": st.Posterior(4, normalize_covariates=True),
        "level": st.Posterior(4, covariates={"section": "donor0"}),
        "one draw": st.Posterior(1),
    }
    how = {"shapes_key": "spots", "inplace": False}
    return {k: st.tl.predict(slide, model, posterior=posterior, **how) for k, posterior in options.items()}


@entry("tl/predict_map")
def maps(tools: Tools) -> Record:
    slide = tools.slide()
    slide.shapes["part"] = box(88, 96, 216, 208)
    out = tools.new_folder() / "maps.zarr"
    how = {"genes": ["EPCAM", "DCN"]}
    in_memory = st.tl.predict_map(slide, tools.student, shapes_key="part", inplace=False, **how)
    st.tl.predict_map(slide, tools.student, shapes_key="part", out=out, **how)
    st.tl.predict_map(slide, tools.student, key_added="whole", **how)
    tiled = st.tl.predict_map(slide, tools.ridge, shapes_key="part", resolution_um=28.0, inplace=False, **how)
    kept = st.tl.predict_map(slide, tools.student, preserve="spots", shapes_key="part", inplace=False, **how)
    scene = copied(tools.scene_cohort["donor1"])
    pixels = st.tl.predict_map(scene, tools.xfuse, resolution_um=32.0, posterior=st.Posterior(3), inplace=False)
    return {
        "in memory": in_memory,
        "on disk": slide.images["part_student_map"],
        "whole": slide.images["whole"],
        "provenance": dict(slide.attrs.get("stpred", {})),
        "tissue": slide.shapes["tissue"],
        "model of tiles": tiled,
        "preserve": kept,
        "generative": pixels,
    }


@entry("tl/several_slides")
def several_slides(tools: Tools) -> Record:
    """Two slides in one object, each with a frame of its own, and one table of both."""
    parts = {k: deepcopy(tools.five[f"donor{i}"]) for i, k in enumerate("ab")}
    both = concatenate(parts, concatenate_tables=True, merge="same", uns_merge="first")
    frame = {"coordinate_system": "um-b"}
    model = st.tl.train(dict(list(tools.five.items())[2:]), "ridge", genes="all", shapes_key="spots")
    st.tl.predict(both, model, shapes_key="spots-b", key_added="predicted", **frame)
    return {
        "predicted": both.tables["predicted"],
        "scores": st.tl.compare(both, "predicted", "spots_counts", **frame),
        "features": st.pp.features(both, "intensity", shapes_key="spots-b", inplace=False, **frame),
        "markers": st.tl.markers(both, "cells_counts", "type", n_genes=3),
    }


@entry("tl/backed")
def backed(tools: Tools) -> Record:
    """A slide that lies on disk, with predictions written into it."""
    path = tools.new_folder() / "a.zarr"
    tools.predicted().write(path)
    slide = read_zarr(path)
    st.tl.predict(slide, tools.student, shapes_key="spots")
    st.tl.predict_map(slide, tools.student, genes=["EPCAM"], out=path)
    scores = st.tl.compare(slide, "spots_student", "spots_counts")
    slide.write_element("spots_student")
    return {"read": read_zarr(path), "scores": scores}


@entry("tl/libraries")
def libraries(tools: Tools) -> Record:
    """Slides whose counts are of different genes."""
    slides = tools.training
    for drop, slide in zip((0, 4), slides.values(), strict=True):
        table = slide.tables["spots_counts"]
        slide.tables["spots_counts"] = table[:, drop:].copy()
    last = tools.slide()
    last.tables["spots_counts"] = last.tables["spots_counts"][:, 3:].copy()
    model = st.tl.train(slides, "ridge", genes="all", shapes_key="spots")
    st.tl.predict(last, model, shapes_key="spots")
    return {
        "record": model.record,
        "chosen": st.pp.select_genes(slides, "mean", shapes_key="spots"),
        "predicted": last.tables["spots_ridge"],
        "scores": st.tl.compare(last, "spots_ridge", "spots_counts"),
        "corrected": st.tl.correct(last, "spots_ridge", "spots_counts", inplace=False),
        "cross-validated": st.tl.cross_validate(slides, "ridge", groups="slide", genes="all", shapes_key="spots"),
    }


def box(x0: float, y0: float, x1: float, y1: float) -> gpd.GeoDataFrame:
    """Return one rectangle in micrometres."""
    return ShapesModel.parse(
        gpd.GeoDataFrame(geometry=[shapely.box(x0, y0, x1, y1)]), transformations={"um": Identity()}
    )


@entry("tl/train")
def training_options(tools: Tools) -> Record:
    config = st.models.MLP.Config(hidden=(8,), max_epochs=3)
    how = {"genes": st.GeneRule("rmax", n=6), "shapes_key": "spots"}
    models = {
        "validation": st.tl.train(tools.five, config, validation=["donor4"], seed=3, **how),
        "encoder": st.tl.train(tools.training, "ridge", encoder="intensity", tile=SMALL_TILE, name="own", **how),
        "network": st.tl.train(
            tools.training, "ridge", encoder=st.encoders.get(small_network(), tile=SMALL_TILE), target="counts", **how
        ),
        "groups": st.tl.train(tools.five, "ridge", groups=dict.fromkeys(tools.five, "one"), **how),
        "cells": st.tl.train(tools.training, "intensity", genes=["EPCAM"], shapes_key="cells"),
    }
    with st.settings.override(checkpoint_dir=tools.new_folder() / "c"):
        models["checkpoint"] = st.tl.train(tools.training, config, **how)
        models["resumed"] = st.tl.train(tools.training, config, **how)
    with st.settings.override(precision="bf16-mixed"):
        models["half precision"] = st.tl.train(tools.training, config, **how)
    for loss in ("mse", "pearson", "cosine"):
        mlp = st.models.MLP.Config(hidden=(8,), epochs=2, loss=loss)
        models[loss] = st.tl.train(tools.training, mlp, **how)
    return {k: {"record": m.record, "weights": dict(m.state_dict())} for k, m in models.items()}


@entry("tl/cross_validate")
def cross_validate(tools: Tools) -> Record:
    slides = {k: copied(s) for k, s in tools.five.items()}
    donors = dict(zip(slides, "AABBC", strict=True))
    mlp = st.models.MLP.Config(hidden=(8,), max_epochs=3, epochs_alone=2)
    models = {"mlp": mlp, "best": ["intensity", "ridge"]}
    scores = st.tl.cross_validate(
        slides, models, groups=donors, genes=st.GeneRule("mean", n=6), shapes_key="spots", key_added="oof"
    )
    tables = {k: {n: t for n, t in s.tables.items() if "oof" in n} for k, s in slides.items()}
    few = dict(list(tools.cohort.items())[:2])
    blocks = st.tl.cross_validate(few, "ridge", groups="blocks", genes="all", n_folds=3, shapes_key="spots")
    both = ["counts", "log1p_cp10k"]
    members = {"genes": st.GeneRule("mean", n=4), "n_folds": 2, "scored_on": both}
    ensemble = st.tl.cross_validate(
        tools.five, {"m": st.models.Ensemble.Config(mlp, 2)}, groups="slide", shapes_key="spots", **members
    )
    return {"by slide": tools.scores, "by donor": scores, "tables": tables, "blocks": blocks, "ensemble": ensemble}


@entry("tl/distill")
def distill(tools: Tools) -> Record:
    config = st.models.Student.Config(hidden=(16,), epochs=2)
    slides = {k: copied(s) for k, s in list(tools.five.items())[:3]}
    how = {"genes": "all", "shapes_key": "spots"}
    model = st.tl.distill(slides, "ridge", config, **how)
    names = list(tools.five)
    teachers = [st.tl.train({n: tools.five[n] for n in pair}, "ridge", **how) for pair in (names[3:], names[2:4])]
    other = st.tl.distill(slides, teachers, config, measured_fraction=0.0, target="counts", **how)
    return {
        "trained teachers": {"record": other.record, "labels": other.pseudo_labels},
        "record": model.record,
        "weights": dict(model.state_dict()),
        "pseudo_labels": model.pseudo_labels,
        "spots": st.tl.predict(tools.five["donor3"], model, shapes_key="spots", inplace=False),
    }


@entry("tl/pretrain_encoder")
def pretrain_encoder(tools: Tools) -> Record:
    slides = dict(list(tools.five.items())[:2])
    encoder = st.tl.pretrain_encoder(
        slides,
        "test_resnet",
        st.encoders.MoCo(epochs=1, batch_size=36, hidden=32),
        tile=st.TileSpec(0.5, 24),
        n_tiles=80,
        device="cpu",
    )
    folder = st.encoders.save(encoder, tools.new_folder() / "encoder")
    again = st.encoders.load(folder, device="cpu")
    images = tiles()[:, :24, :24]
    return {
        "card": encoder.card,
        "record": encoder.record,
        "features": encoder.encode(images),
        "loaded": again.encode(images),
        **saved_model(folder),
    }


@entry("tl/probe_encoder")
def probe_encoder(tools: Tools) -> Record:
    slides = dict(list(tools.five.items())[:2])
    how = {"labels": "type", "tile": CELL_TILE, "n_neighbors": 5}
    return {
        "donors": st.tl.probe_encoder("morphology", slides, n_tiles=300, **how),
        "blocks": st.tl.probe_encoder("intensity", tools.five["donor0"], **how),
    }


# Evaluation.


@entry("tl/compare")
def compare_tables(tools: Tools) -> Record:
    slide = tools.predicted()
    st.pp.aggregate(slide, "cells", "spots", key_added="sums")
    slide.shapes["few"] = slide.shapes["cells"].iloc[::20]
    st.tl.predict(slide, tools.ridge, shapes_key="few")
    found = {
        "plain": st.tl.compare(slide, "spots_ridge", "spots_counts"),
        "counts": st.tl.compare(slide, "spots_ridge", "spots_counts", target="counts"),
        "smoothed": st.tl.compare(slide, "spots_ridge", "spots_counts", n_neighbors=[6, 12], trusted_only=True),
        "other table": st.tl.compare(slide, "spots_ridge", "sums"),
        "cells": st.tl.compare(slide, "few_ridge", "cells_counts", resolution="cell"),
        "overlap": st.tl.compare(slide, "few_ridge", "cells_counts", match="overlap"),
        "distance": st.tl.compare(slide, "few_ridge", "cells_counts", match="distance"),
        "finer": st.tl.compare(slide, "few_ridge", "spots_counts"),
        "bins": st.tl.compare(slide, "few_ridge", "cells_counts", bin_um=[100.0, 200.0]),
    }
    st.tl.compare(slide, "spots_ridge", "spots_counts", write=True)
    slide.shapes["part"] = box(100, 100, 300, 300)
    st.tl.predict_map(slide, tools.student, shapes_key="part")
    found["map"] = st.tl.compare(slide, "part_student_map", "cells_counts", bin_um=[50.0, 100.0])
    xenium = st.io.xenium(
        st.datasets.toy_xenium(tools.new_folder() / "x", size_um=(300, 300), n_genes=24), transcripts=True
    )
    st.tl.predict(xenium, tools.student, shapes_key="cells")
    found["transcripts"] = st.tl.compare(xenium, "cells_student", "transcripts", bin_um=[50.0])
    return found | {"written": slide.tables["spots_ridge"]}


@entry("tl/within_regions")
def within_regions(tools: Tools) -> Record:
    slide = tools.predicted()
    table = slide.tables["spots_counts"]
    table.obs["half"] = np.where(table.obsm["spatial"][:, 0] < 300, "left", "right")
    slide.shapes["areas"] = box(0, 0, 300, 600)
    slide.shapes["areas"]["name"] = ["west"]
    how = {"min_locations": 5}
    return {
        "column": st.tl.within_regions(slide, "spots_ridge", "spots_counts", groupby="half", **how),
        "shapes": st.tl.within_regions(slide, "spots_ridge", "spots_counts", groupby=("areas", "name"), **how),
    }


@entry("tl/summarise")
def summaries(tools: Tools) -> Record:
    found: Record = {by: st.tl.summarise(tools.scores, groupby=by, n_bootstrap=500) for by in ("model", "gene")}
    found["zero"] = st.tl.summarise(tools.scores, metric="spearman", nan="zero", n_bootstrap=500)
    how = {"target": "log1p_cp10k", "models": ["intensity", "ridge", "library_size"]}
    found["rank"] = st.tl.rank_models(tools.scores, **how)
    found["rank slides"] = st.tl.rank_models(tools.scores, over="slide", nan="drop", **how)
    return found


# How far to trust predictions.


@entry("tl/conformal")
def conformal(tools: Tools) -> Record:
    names = list(tools.five)
    model = st.tl.train({s: tools.five[s] for s in names[:2]}, genes="all", shapes_key="spots")
    found = st.tl.conformal(model, {s: tools.five[s] for s in names[2:]}, shapes_key="spots")
    slide = copied(tools.five["donor0"])
    st.tl.predict(slide, model, shapes_key="spots")
    return {
        "levels": found,
        "intervals": model.record.intervals,
        "coverage": st.tl.coverage(slide, "spots_ridge", "spots_counts"),
        "interval": st.tl.predict(slide, model, shapes_key="spots", interval=0.8, inplace=False),
    }


@entry("tl/recalibrate")
def recalibrate(tools: Tools) -> Record:
    slide = tools.predicted()
    some = slide.shapes["spots"].index[:15]
    return {
        "some": st.tl.recalibrate(slide, "spots_ridge", "spots_counts", instances=some, inplace=False),
        "all": st.tl.recalibrate(slide, "spots_ridge", "spots_counts", inplace=False),
        "correct": st.tl.correct(slide, "spots_ridge", "spots_counts", inplace=False),
    }


OPTIONS = {"encoder": "intensity", "tile": st.TileSpec(mpp=4, size_px=16)}
STRESS = {"n_genes": 4, "shapes_key": "spots", "train_options": OPTIONS}


@entry("tl/withheld_spots")
def withheld_spots(tools: Tools) -> Record:
    slides = dict(list(tools.cohort.items())[:2])
    config = st.models.XFuse.Config(depth=2, width=4, epochs=2)
    how = {"n_genes": 4, "shapes_key": "spots", "train_options": {"tile": SCENE_TILE}, "n_samples": 10}
    return {
        "ridge": st.tl.withheld_spots(slides, "ridge", fraction=0.3, **STRESS),
        "xfuse": st.tl.withheld_spots(tools.scene_cohort, config, fraction=0.3, **how),
    }


@entry("tl/withheld_sections")
def withheld_sections(tools: Tools) -> Record:
    return {"ridge": st.tl.withheld_sections(dict(list(tools.cohort.items())[:2]), "ridge", **STRESS)}


@entry("tl/misaligned_spots")
def misaligned_spots(tools: Tools) -> Record:
    return {"ridge": st.tl.misaligned_spots(tools.slide(), "ridge", radii=(0, 1), **STRESS)}


@entry("tl/occluded_tiles")
def occluded_tiles(tools: Tools) -> Record:
    return {"ridge": st.tl.occluded_tiles(tools.slide(), "ridge", fractions=(0, 0.5), **STRESS)}


@entry("tl/restarts")
def restarts(tools: Tools) -> Record:
    config = st.models.MLP.Config(hidden=(8,), epochs=2)
    return {"mlp": st.tl.restarts(tools.slide(), config, n_restarts=3, **STRESS)}


@entry("tl/attribution")
def attribution(tools: Tools) -> Record:
    network = st.encoders.get(small_network(), tile=SMALL_TILE)
    model = st.tl.train(tools.training, "ridge", genes=["EPCAM", "DCN"], encoder=network, shapes_key="spots")
    settings = st.models.MLP.Config(hidden=(8,), context_um=120.0, epochs=2)
    mlp = st.tl.train(tools.training, settings, genes=["EPCAM", "DCN"], encoder=network, shapes_key="spots")
    stnet = FAMILIES["stnet"]()
    pixels = st.tl.train(tools.training, stnet.config, shapes_key="spots", **stnet.training)
    slide = tools.slide()
    ids = slide.shapes["spots"].index[[2, 5]]
    how = {"instances": ids, "encoder": network, "n_steps": 4}
    return {
        "network": st.tl.attribution(slide, model, ["DCN", "EPCAM"], **how),
        "mlp": st.tl.attribution(slide, mlp, ["EPCAM"], **how),
        "pixels": st.tl.attribution(slide, pixels, ["DCN"], instances=ids, n_steps=2, baseline="blur"),
    }


@entry("tl/surroundings")
def surroundings(tools: Tools) -> Record:
    return {"student": st.tl.surroundings(tools.slide(), tools.student, n_patches=50)}


# Generative models.


@entry("tl/calibration")
def calibration(tools: Tools) -> Record:
    return {"xfuse": st.tl.calibration(copied(tools.scene_cohort["donor1"]), tools.xfuse, posterior=st.Posterior(10))}


@entry("tl/differential_expression")
def differential_expression(tools: Tools) -> Record:
    slide = copied(tools.scene_cohort["donor0"])
    spots = slide.shapes["spots"]
    spots["side"] = ["left" if x < 250 else "right" for x in spots.geometry.x]
    options = {"plain": st.Posterior(5), "normalized": st.Posterior(5, normalize_covariates=True)}
    return {
        k: st.tl.differential_expression(slide, tools.xfuse, "spots", groupby="side", posterior=posterior)
        for k, posterior in options.items()
    }


@entry("tl/metagenes")
def metagenes(tools: Tools) -> Record:
    slide = copied(tools.scene_cohort["donor0"])
    out = tools.new_folder() / "maps.zarr"
    how = {"posterior": st.Posterior(3), "inplace": False}
    image = st.tl.metagenes(slide, tools.xfuse, raster=True, resolution_um=32.0, **how)
    raster = {"raster": True, "resolution_um": 32.0, "posterior": st.Posterior(3)}
    st.tl.metagenes(slide, tools.xfuse, out=out, key_added="stored", **raster)
    return {
        "table": st.tl.metagenes(slide, tools.xfuse, shapes_key="spots", **how),
        "map": image,
        "on disk": slide.images["stored"],
    }


# Analyses of tables.


@entry("tl/differential_rank")
def differential_rank(tools: Tools) -> Record:
    how = {"n_top": 10, "n_bootstrap": 300}
    return {
        "column": st.tl.differential_rank(tools.cohort, "spots_counts", "n_cells", **how),
        "slide": st.tl.differential_rank(tools.predicted(), "spots_ridge", np.arange(36.0)[: n_spots(tools)], **how),
    }


def n_spots(tools: Tools) -> int:
    """Return the number of spots of the unseen slide."""
    return len(tools.cohort["donor2"].shapes["spots"])


@entry("tl/enrichment")
def enrichment(tools: Tools) -> Record:
    values = np.random.default_rng(0).standard_normal(200)
    values[:20] += 1.5
    genes = [f"G{i}" for i in range(200)]
    sets = {f"s{i}": genes[5 * i : 5 * i + 20] for i in range(10)}
    path = tools.new_folder() / "sets.gmt"
    path.write_text("".join("\t".join([name, "none", *members]) + "\n" for name, members in sets.items()))
    found = st.tl.markers(tools.slide(), "cells_counts", "type", n_genes=6)
    background = list(tools.slide().tables["cells_counts"].var_names)
    return {
        "file": st.tl.enrichment(genes[:30], path, background=genes),
        "markers": st.tl.enrichment(found, GENE_SETS, background=background, min_size=2),
        "over-representation": st.tl.enrichment(genes[:30], sets, background=genes),
        "ranked": st.tl.enrichment(pd.Series(values, index=genes), sets, n_permutations=200),
    }


@entry("tl/pathway_activity")
def pathway_activity(tools: Tools) -> Record:
    slide = tools.predicted()
    genes = list(slide.tables["spots_ridge"].var_names)
    rng = np.random.default_rng(0)
    rows = [(n, g, rng.normal()) for n, start in (("a", 0), ("b", 6), ("c", 12)) for g in genes[start : start + 10]]
    network = pd.DataFrame(rows, columns=["source", "target", "weight"])
    methods = ("mlm", "ulm")
    return {m: st.tl.pathway_activity(slide, "spots_ridge", network, method=m, inplace=False) for m in methods}


@entry("tl/score_cell_types")
def score_cell_types(tools: Tools) -> Record:
    slide = tools.slide()
    found = st.tl.score_cell_types(slide, "cells_counts", GENE_SETS, ctrl_size=5, inplace=False)
    st.tl.score_cell_types(slide, "cells_counts", GENE_SETS, ctrl_size=5, min_margin=0.1, key_added="kind")
    frame = pd.DataFrame([(t, g) for t, genes in GENE_SETS.items() for g in genes], columns=["cell_type", "gene"])
    path = tools.new_folder() / "markers.csv"
    frame.to_csv(path, index=False)
    predicted = tools.predicted()
    return {
        "returned": found,
        "written": slide.tables["cells_counts"],
        "file": st.tl.score_cell_types(predicted, "spots_ridge", path, ctrl_size=5, inplace=False),
        "frame": st.tl.score_cell_types(predicted, "spots_counts", frame, ctrl_size=5, seed=1, inplace=False),
    }


@entry("tl/markers")
def markers(tools: Tools) -> Record:
    slide = tools.slide()
    return {m: st.tl.markers(slide, "cells_counts", "type", n_genes=5, method=m) for m in ("wilcoxon", "t-test")}


@entry("tl/colocalization")
def colocalization(tools: Tools) -> Record:
    slide = tools.predicted()
    how = {"n_permutations": 99}
    return {
        "score": st.tl.colocalization(slide, "spots_counts", GENE_SETS, **how),
        "rank": st.tl.colocalization(slide, "spots_ridge", GENE_SETS, method="rank", null="permutation", **how),
    }


@entry("tl/feature_associations")
def feature_associations(tools: Tools) -> Record:
    slide = tools.slide()
    st.pp.features(slide, shapes_key="spots")
    return {
        "own": st.tl.feature_associations(slide, "spots_counts", genes=["EPCAM", "DCN"]),
        "pearson": st.tl.feature_associations(slide, "spots_counts", genes=["EPCAM"], method="pearson", n_features=5),
    }


@entry("tl/pseudobulk")
def pseudobulk(tools: Tools) -> Record:
    slides = {k: copied(s) for k, s in tools.cohort.items()}
    for slide in slides.values():
        st.tl.predict(slide, tools.ridge, shapes_key="spots")
    predicted = st.tl.pseudobulk(slides, "spots_ridge")
    measured = st.tl.pseudobulk(slides, "cells_counts", in_distribution_only=False)
    found = {"predicted": predicted, "measured": measured}
    few = {k: copied(s) for k, s in tools.five.items()}
    ours, other = (st.tl.pseudobulk(few, key) for key in ("spots_counts", "cells_counts"))
    found |= {m: st.tl.compare_bulk(ours, other, method=m) for m in ("spearman", "pearson")}
    return found


@entry("tl/survival")
def survival(tools: Tools) -> Record:
    how = {"groups": "donor", "n_folds": 3, "penalizer": (0.1, 0.3)}
    return {"plain": st.tl.survival(tools.pseudobulk, "time", "event", **how)}


@entry("tl/classify")
def classify(tools: Tools) -> Record:
    how = {"n_folds": 3, "n_repeats": 2, "strength": (0.03, 0.3)}
    return {"donors": st.tl.classify(tools.pseudobulk, "kind", groups="donor", **how)}


@entry("tl/simulation_study")
def simulation_study(tools: Tools) -> Record:
    rng = np.random.default_rng(0)
    cells = (rng.normal(size=(4, 8)) * 3).repeat(60, axis=0) + rng.normal(size=(240, 8))
    reference = st.datasets.toy_reference(n_types=4, n_genes=100, n_cells=50, n_markers=5)
    config = st.models.SCellST.Config(hidden=(16,), lr=3e-3, max_epochs=4, patience=2)
    how = {"n_spots": 100, "cells_per_spot": 5, "cells_per_type": 50, "n_markers": 5}
    return {"scores": st.tl.simulation_study(cells.astype(np.float32), reference, config=config, **how)}


# Pictures, page and command line.


@entry("pl")
def pictures(tools: Tools) -> Record:
    import matplotlib.pyplot as plt

    slide = tools.predicted()
    slide.shapes["part"] = box(88, 96, 216, 208)
    st.tl.predict_map(slide, tools.student, shapes_key="part")
    model = st.tl.train(tools.training, st.models.MLP.Config(hidden=(8,), max_epochs=3), shapes_key="spots")
    ranks = pd.DataFrame({"gene": ["A", "B"], "score": [0.4, -0.1], "low": [0.2, -0.3], "high": [0.6, 0.1]})
    levels = pd.DataFrame({"gene": ["A", "B"] * 2, "level": [0.5, 0.5, 0.9, 0.9], "coverage": [0.5, 0.4, 0.9, 0.8]})
    drawn: dict[str, Callable[[Path], Any]] = {
        "spatial": lambda p: st.pl.spatial(slide, "spots_ridge", ["EPCAM", "DCN"], save=p),
        "compare": lambda p: st.pl.compare(slide, "spots_ridge", "spots_counts", genes="EPCAM", save=p),
        "map": lambda p: st.pl.raster(slide, "part_student_map", ["EPCAM"], save=p),
        "gallery": lambda p: st.pl.gallery(slide, "cells_counts", color="EPCAM", n=4, save=p),
        "markers": lambda p: st.pl.markers(slide, "cells_counts", GENE_SETS, groupby="type", save=p),
        "genes": lambda p: st.pl.genes(slide.tables["spots_ridge"].var, save=p),
        "models": lambda p: st.pl.models(tools.scores, target="log1p_cp10k", save=p),
        "training": lambda p: st.pl.training(model, save=p),
        "coverage": lambda p: st.pl.coverage(levels.assign(n_locations=100), save=p),
        "differential_rank": lambda p: st.pl.differential_rank(ranks, save=p),
    }
    found = {}
    for name, draw in drawn.items():
        path = tools.new_folder() / f"{name}.png"
        draw(path)
        found[name] = plt.imread(path)
        plt.close("all")
    return found


@entry("report")
def report(tools: Tools) -> Record:
    slides = {k: copied(tools.cohort[k]) for k in ("donor2",)}
    for slide in slides.values():
        st.tl.predict(slide, tools.ridge, shapes_key="spots")
    path = st.report(tools.new_folder() / "a.html", slides, "spots_ridge", measured_key="spots_counts", n_maps=2)
    page = re.sub(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d)?)?", "", path.read_text())
    texts = re.sub(r"data:image/[^\"')]*", "", page)
    return {"pictures": re.findall(r"data:image/[^\"')]*", page), "text": texts.splitlines()}


@entry("cli/commands")
def command_line(tools: Tools) -> Record:
    import spatialdata as sd
    from typer.testing import CliRunner

    from stpred.cli import app

    folder, run = tools.new_folder(), CliRunner()
    for i, name in enumerate(("a", "b")):
        st.datasets.toy_visium(folder / name / "outs", seed=i, donor=i, size_um=(400, 400), n_genes=20)
    rows = {"slide": ["a", "b"], "path": ["a/outs", "b/outs"], "donor": ["p", "q"]}
    pd.DataFrame(rows).to_csv(folder / "slides.csv", index=False)
    commands = {
        "train": ("train", folder / "slides.csv", "-o", folder / "m", "--genes", "mean:5", "--model", "ridge"),
        "predict": ("predict", folder / "a" / "outs", "-o", folder / "a.zarr", "--model", folder / "m"),
        "evaluate": ("evaluate", folder / "slides.csv", "--models", "mean,intensity", "-o", folder / "scores.csv"),
        "models": ("models",),
    }
    said = {}
    for name, words in commands.items():
        result = run.invoke(app, [str(w) for w in words])
        if result.exit_code:
            raise RuntimeError(f"{name}: {result.output}")
        said[name] = re.sub(r"\d+(\.\d+)? ?s\b", "", result.output).split("\n")
    return {
        "said": said,
        "model": saved_model(folder / "m"),
        "predicted": sd.read_zarr(folder / "a.zarr"),
        "scores": pd.read_csv(folder / "scores.csv"),
    }


@entry("cli/demo")
def demonstration(tools: Tools) -> Record:
    from typer.testing import CliRunner

    from stpred.cli import app

    out = tools.new_folder() / "demo"
    result = CliRunner().invoke(app, ["demo", "-o", str(out)])
    return {
        "ended": result.exit_code,
        "files": sorted(p.name for p in out.iterdir()),
        "model": saved_model(out / "model"),
        "predicted": read_zarr(out / "predicted.zarr"),
        "scores": pd.read_csv(out / "scores.csv"),
    }


@entry("real/readers")
def real_files(tools: Tools) -> Record:
    """Vendors' files beside the folder of real slides."""
    data = tools.real.parent
    lung, mob = data / "xenium_lung_200", data / "mob"
    objects = {
        "visium": st.io.visium(data / "visium_breast_outs"),
        "visium_hd": st.io.visium_hd(data / "visium_hd_colon"),
        "xenium": st.io.xenium(data / "xenium_toy"),
        "svs": st.io.wsi(data / "wsi" / "CMU-1-Small-Region.svs"),
        "lung": st.io.hest(lung / "NCBI858.h5ad", lung / "NCBI858.jpg", mpp=0.5, swap_xy=True, shapes_key="cells"),
        "mob": st.io.legacy_st(mob / "MOB1.tsv", mob / "MOB1.jpg", mob / "alignment_table_MOB1.tsv", pitch_um=150),
    }
    for name in ("svs", "mob"):
        st.pp.tissue(objects[name])
    slide = SpatialData(images=dict(objects["svs"].images), shapes=dict(objects["svs"].shapes))
    st.tl.predict(slide)
    return objects | {"predicted": slide.tables}


@entry("real/her2st")
def real_scores(tools: Tools) -> Record:
    """Cross-validated scores on sections of one donor."""
    out = tools.new_folder() / "scores.csv"
    script = Path(__file__).resolve().parent / "compare_families.py"
    only = ["ridge, the tile alone", "ridge with neighbour means", "mlp with neighbour means"]
    command = [sys.executable, script, tools.real, "--only", *only, "--targets", "log1p_cp10k", "--out", out]
    done = subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True)
    scores = pd.read_csv(out, low_memory=False)
    pearson = scores[scores.metric == "pearson"].assign(value=lambda d: d.value.fillna(0.0))
    means = pearson.groupby(["target", "model", "slide"]).value.mean()
    printed = [re.sub(r" \d+ s$", "", line) for line in done.stdout.splitlines()]
    return {"printed": printed, "means": means, "scores": scores}


# From results to plain values.


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield paths and plain values: arrays of numbers, lists of text, single values."""
    if LEFT_OUT.search(path):
        return
    if isinstance(value, str):
        provenance = path.endswith(("uns/stpred", "attrs/stpred"))
        yield from _leaves_of_json(value, path) if provenance else [(path, without_folders(value))]
    elif isinstance(value, bytes):
        yield path, hashlib.sha256(value).hexdigest()
    elif value is None or isinstance(value, bool | int | float):
        yield path, value
    elif isinstance(value, np.generic):
        yield from leaves(value.item(), path)
    elif (parts := _parts(value)) is not None:
        for key, part in parts:
            yield from leaves(part, f"{path}/{key}" if path else str(key))
    elif isinstance(value, np.ndarray):
        yield from _leaves_of_array(value, path)
    elif isinstance(value, list | tuple | set | frozenset):
        yield from _leaves_of_list(sorted(value) if isinstance(value, set | frozenset) else list(value), path)
    else:
        yield path, str(value)


def without_folders(text: str) -> str:
    """Return a text without the names of temporary files."""
    return re.sub(r"/\S*golden-\w+/\S*", "(folder)", text)


def _parts(value: Any) -> Any:
    """Return names and parts of an object, or None for what has none."""
    if isinstance(value, SpatialData):
        return ((f"{kind}/{k}", e) for kind, k, e in value.gen_elements())
    if isinstance(value, ad.AnnData):
        return _parts_of_table(value)
    if isinstance(value, gpd.GeoDataFrame):
        return _parts_of_shapes(value)
    if isinstance(value, pd.DataFrame):
        columns = ((f"column {c}", value[c].to_numpy()) for c in value.columns)
        return [("index", value.index), ("columns", list(map(str, value.columns))), *columns, ("attrs", value.attrs)]
    if isinstance(value, pd.Series):
        return [("index", value.index), ("values", value.to_numpy())]
    if isinstance(value, pd.MultiIndex):
        return [("names", list(map(str, value.names))), ("values", [list(map(str, v)) for v in value])]
    if isinstance(value, pd.Index | pd.api.extensions.ExtensionArray):
        return [("values", np.asarray(value))]
    if isinstance(value, xr.DataTree):
        levels = [(name, next(iter(level.values()))) for name, level in value.children.items()]
        return [*levels, ("transformations", transformations(value))]
    if isinstance(value, xr.DataArray):
        placed = "transform" in value.attrs
        named = [] if "c" not in value.coords else [("channels", list(map(str, value.coords["c"].to_numpy())))]
        where = [("transformations", transformations(value))] if placed else []
        return [("dims", list(value.dims)), ("pixels", np.asarray(value.data)), *named, *where]
    if hasattr(value, "compute") and hasattr(value, "columns"):  # points; spatialdata orders their columns at random
        rows = value.compute().reset_index(drop=True)
        return [("rows", rows[sorted(rows.columns)]), ("transformations", transformations(value))]
    if scipy.sparse.issparse(value):
        ordered = value.tocsr().sorted_indices()
        return [("shape", list(value.shape)), *((n, getattr(ordered, n)) for n in ("data", "indices", "indptr"))]
    if isinstance(value, torch.Tensor):
        return [("values", value.detach().cpu().numpy())]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
    if isinstance(value, Mapping):
        return ((str(k).replace("/", "|"), v) for k, v in value.items())
    return None


def _parts_of_table(table: ad.AnnData) -> Iterator[tuple[str, Any]]:
    yield "X", table.X
    yield "obs", table.obs
    yield "var", table.var
    for name in ("layers", "obsm", "varm", "obsp", "varp", "uns"):
        yield name, dict(getattr(table, name))


def _parts_of_shapes(shapes: gpd.GeoDataFrame) -> Iterator[tuple[str, Any]]:
    yield "index", shapes.index
    yield "bounds", shapes.geometry.bounds.to_numpy()
    yield "area", shapes.geometry.area.to_numpy()
    yield "coordinates", hashlib.sha256(b"".join(shapely.to_wkb(shapes.geometry.to_numpy()))).hexdigest()
    yield "columns", list(map(str, shapes.columns))
    for name in shapes.columns.drop(shapes.geometry.name):
        yield f"column {name}", shapes[name].to_numpy()
    if "transform" in shapes.attrs:
        yield "transformations", transformations(shapes)


def transformations(element: Any) -> dict[str, np.ndarray]:
    """Return the matrix into every coordinate system."""
    found = get_transformation(element, get_all=True)
    return {system: t.to_affine_matrix(("x", "y"), ("x", "y")) for system, t in found.items()}


def _leaves_of_json(text: str, path: str) -> Iterator[tuple[str, Any]]:
    try:
        told = json.loads(text)
    except json.JSONDecodeError:
        told = {"text": text}
    yield from leaves(told, path)


def _leaves_of_array(array: np.ndarray, path: str) -> Iterator[tuple[str, Any]]:
    if array.dtype == object and array.size and isinstance(array.flat[0], shapely.Geometry):
        yield f"{path}/sha256", hashlib.sha256(b"".join(shapely.to_wkb(array.ravel()))).hexdigest()
    elif array.dtype.kind not in "biufc":
        yield from _leaves_of_list(array.tolist(), path)
    elif array.size > MAX_VALUES or (array.dtype == np.uint8 and array.size > MAX_VALUES // 20):
        every = int(np.ceil(array.size / (MAX_VALUES // 100)))
        yield f"{path}/shape", list(array.shape)
        yield f"{path}/sha256", hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
        yield f"{path}/sample", array.ravel()[::every]
    else:
        yield path, array


def _leaves_of_list(items: list[Any], path: str) -> Iterator[tuple[str, Any]]:
    items = [v.item() if isinstance(v, np.generic) else v for v in items]
    if all(isinstance(v, bool | int | float) for v in items) and items:
        yield path, np.asarray(items)
    elif all(v is None or isinstance(v, str | bool | int | float) for v in items):
        items = [without_folders(v) if isinstance(v, str) else v for v in items]
        yield path, [None if isinstance(v, float) and np.isnan(v) else v for v in items]
    else:
        for i, item in enumerate(items):
            yield from leaves(item, f"{path}/{i}")


# Writing and comparing.


def run_entry(name: str, tools: Tools) -> dict[str, Any]:
    """Return what an entry computes, or how it failed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            return dict(leaves(ENTRIES[name](tools)))
    except Exception as error:  # noqa: BLE001 - one failing entry must not hide the others
        traceback.print_exc(file=sys.stderr)
        return {"failed": f"{type(error).__name__}: {error}"}


def files_of(folder: Path, name: str) -> tuple[Path, Path]:
    """Return where an entry's numbers and everything else are kept."""
    base = folder / "entries" / name.replace("/", "__")
    return base.with_name(base.name + ".npz"), base.with_name(base.name + ".json")


def keep(found: dict[str, Any], folder: Path, name: str) -> None:
    """Write an entry."""
    numbers, rest = files_of(folder, name)
    numbers.parent.mkdir(parents=True, exist_ok=True)
    arrays = {k: v for k, v in found.items() if isinstance(v, np.ndarray)}
    np.savez_compressed(numbers, paths=np.array(list(arrays)), **{f"a{i}": v for i, v in enumerate(arrays.values())})
    others = {k: v for k, v in found.items() if k not in arrays}
    rest.write_text(json.dumps(others, indent=0, sort_keys=True))


def kept(folder: Path, name: str) -> dict[str, Any] | None:
    """Read an entry; None if the record has none."""
    numbers, rest = files_of(folder, name)
    if not rest.exists():
        return None
    with np.load(numbers) as file:
        arrays = {str(path): file[f"a{i}"] for i, path in enumerate(file["paths"])}
    found = json.loads(rest.read_text()) | arrays
    for old, new in RENAMED.items():
        found = {re.sub(old, new, path): value for path, value in found.items()}
    return found


def difference(old: Any, new: Any) -> float | str | None:
    """Return None for the same, the largest absolute difference of numbers, or in words how values differ."""
    if isinstance(old, bool | int | float) and isinstance(new, bool | int | float):
        old, new = np.asarray(old), np.asarray(new)
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new) and old != new:
        at = next(i for i, pair in enumerate(zip(old, new, strict=True)) if pair[0] != pair[1])
        return f"item {at}: {short(old[at])} -> {short(new[at])}"
    if not (isinstance(old, np.ndarray) and isinstance(new, np.ndarray)):
        return None if old == new else f"{short(old)} -> {short(new)}"
    if old.shape != new.shape:
        return f"shape {old.shape} -> {new.shape}"
    if old.dtype != new.dtype:
        return f"{old.dtype} -> {new.dtype}"
    numeric = old.dtype.kind == "f"
    if np.array_equal(old, new, equal_nan=numeric):
        return None
    if numeric and (np.isnan(old) != np.isnan(new)).any():
        return "NaN at other places"
    with np.errstate(invalid="ignore"):
        return float(np.nanmax(np.abs(old.astype(np.float64) - new.astype(np.float64))))


def short(value: Any) -> str:
    """Return the beginning of a value's text."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 90 else f"{text[:87]}..."


def differences(old: dict[str, Any], new: dict[str, Any]) -> tuple[float, list[str]]:
    """Return the largest difference of numbers, and all that differs, a line each, large differences first."""
    shared = [(path, difference(old[path], new[path])) for path in old if path in new]
    numbers = sorted(((path, d) for path, d in shared if isinstance(d, float)), key=lambda pair: -pair[1])
    lines = [f"{path}: differs by up to {d:.3g}" for path, d in numbers]
    lines += [f"{path}: {d}" for path, d in shared if isinstance(d, str)]
    lines += [f"missing: {path}" for path in old if path not in new]
    lines += [f"new: {path}" for path in new if path not in old]
    return (numbers[0][1] if numbers else 0.0), lines


def write(names: list[str], tools: Tools, folder: Path) -> int:
    """Write entries; return how many failed."""
    failed = 0
    for name in names:
        start = time.perf_counter()
        found = run_entry(name, tools)
        keep(found, folder, name)
        failed += "failed" in found
        said = found.get("failed", f"{len(found)} values")
        print(f"{name:28s} {time.perf_counter() - start:6.1f} s  {said}", flush=True)
    return failed


def compare(names: list[str], tools: Tools, folder: Path, *, n_lines: int) -> int:
    """Compare entries with the record; return how many are not identical."""
    changed = []
    for name in names:
        start, old = time.perf_counter(), kept(folder, name)
        if old is None:
            print(f"{name:28s}           not in the record", flush=True)
            changed.append(name)
            continue
        new = dict(_as_stored(run_entry(name, tools)))
        largest, lines = differences(old, new)
        words = "identical" if not lines else f"{len(lines)} of {len(old)} differ, numbers by up to {largest:.3g}"
        if "failed" in new:
            words = f"failed: {new['failed']}"
        print(f"{name:28s} {time.perf_counter() - start:6.1f} s  {words}", flush=True)
        for line in lines[:n_lines]:
            print(f"    {line}", flush=True)
        if len(lines) > n_lines:
            print(f"    ... and {len(lines) - n_lines} more (--lines)", flush=True)
        if lines or "failed" in new:
            changed.append(name)
    print(f"{len(names) - len(changed)} of {len(names)} entries are identical; not so: {', '.join(changed) or 'none'}")
    return len(changed)


def _as_stored(found: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield values as they are after a round trip through files."""
    for path, value in found.items():
        yield path, value if isinstance(value, np.ndarray) else json.loads(json.dumps(value))


def chosen(patterns: list[str] | None, *, real: bool) -> list[str]:
    """Return the names of entries; patterns may hold * and name a group."""
    names = [n for n in ENTRIES if real or not n.startswith("real/")]
    if not patterns:
        return names
    unknown = [p for p in patterns if not fnmatch.filter(names, p) and not any(n.startswith(f"{p}/") for n in names)]
    if unknown:
        raise SystemExit(f"No entry named {', '.join(unknown)}; --list shows all (real/... need --real).")
    return [n for n in names if any(fnmatch.fnmatch(n, p) or n.startswith(f"{p}/") for p in patterns)]


def main() -> None:
    """Write or compare a record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["write", "compare"], nargs="?")
    parser.add_argument("folder", type=Path, nargs="?", help="folder of the record")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="entries, or groups of them such as tl")
    parser.add_argument("--real", type=Path, metavar="FOLDER", help="real slides of one donor: adds real/...")
    parser.add_argument("--lines", type=int, default=8, help="differences to show of an entry")
    parser.add_argument("--list", action="store_true", help="show the names of all entries")
    given = parser.parse_args()
    if given.list:
        print("\n".join(ENTRIES))
        return
    if given.command is None or given.folder is None:
        parser.error("say `write` or `compare` and the folder of the record")
    if any(os.environ.get(k) != v for k, v in ENVIRONMENT.items()):  # read by libraries when they are imported
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ENVIRONMENT})
    torch.set_num_threads(1)
    names = chosen(given.only, real=given.real is not None)
    with tempfile.TemporaryDirectory(prefix="golden-") as name:
        scratch = Path(name)
        st.settings.cache_dir = scratch / "features"
        st.settings.progress = False
        stored = given.folder / "models"
        saved = stored if given.command == "write" else scratch / "models"
        saved.mkdir(parents=True, exist_ok=True)
        tools = Tools(scratch, stored=stored, saved=saved, real=given.real)
        start = time.perf_counter()
        if given.command == "write":
            failed = write(names, tools, given.folder)
        else:
            failed = compare(names, tools, given.folder, n_lines=given.lines)
    print(f"{time.perf_counter() - start:.0f} s")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()

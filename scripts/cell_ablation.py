"""What predicts spots through their cells: nuclei finder, crop, encoder, tile, pooling; each section left out in turn.

A step of `her2st_cells.py`. All settings see the same spots and the same 250 genes, the most counted ones of the three
sections that are learned from. The row "chosen inside" takes for each section the closed-form setting that does best
when the others are left out in turn among themselves.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

import stpred as st
from stpred import data, training
from stpred._core.places import Place
from stpred.encoders.composite import members_of
from stpred.models import Batch, Ridge, SCellST

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

CROPS = ("m24", "m48", "n24", "n48")
TILES = ("m112", "m448", "n112", "n448")
MORPHOLOGY = ("m112", "m448")
N_GENES = 250
NETWORK = {"hidden": (128,), "dropout": 0.5, "lr": 1e-3, "weight_decay": 1e-2}


@dataclass(frozen=True)
class Setting:
    """A row of the table: crops of cells, tiles, and the settings of the model (None: ridge on the tiles alone)."""

    name: str
    crops: tuple[str, ...]
    tiles: tuple[str, ...] = ()
    config: SCellST.Config | None = SCellST.Config()

    @property
    def blocks(self) -> tuple[str, ...]:
        """Crops and tiles."""
        return (*self.crops, *self.tiles)

    @property
    def closed(self) -> bool:
        """Whether it is one of the settings that are chosen from."""
        return self.config is not None and self.config.regressor == "ridge"


def closed_forms(*, networks: bool) -> list[Setting]:
    """Return the settings in closed form, and ridge on tiles beside them."""
    crops = CROPS if networks else CROPS[:2]
    tiles = {"": (), "tile 112": TILES[:1], "tiles 112, 448": MORPHOLOGY}
    if networks:
        tiles["tiles 112, 448, also by the network"] = TILES
    rows = [Setting(f"ridge on {name}, no cells", (), own, None) for name, own in tiles.items() if own]
    for name, own in tiles.items():
        prior = f"; {name}" if name else ""
        rows += [Setting(f"{crop}{prior}", (crop,), own) for crop in crops]
        if not own and networks:
            rows += [Setting("m24 m48", ("m24", "m48")), Setting("n24 n48", ("n24", "n48"))]
        rows.append(Setting(f"{' '.join(crops)}{prior}", crops, own))
    return rows


def networks_of(epochs: int) -> list[Setting]:
    """Return the published network with each pooling and loss, fixed numbers of epochs, on one crop and with tiles."""
    rows = []
    for name, blocks in {"m24": (("m24",), ()), "m24 m48; tiles 112, 448": (("m24", "m48"), MORPHOLOGY)}.items():
        for how, given in {
            "mean": {},
            "attention": {"pool": "attention"},
            "sum": {"pool": "sum"},
            "mean, Pearson loss": {"loss": "pearson", "batch_size": 1024, "epochs": 2 * epochs},
            "mean, negative binomial": {"loss": "nb"},
        }.items():
            config = SCellST.Config(**({"epochs": epochs} | NETWORK | given))
            rows.append(Setting(f"network, {how}: {name}", *blocks, config))
    return rows


class Sections:
    """The spots of all sections with every block of features, read once."""

    def __init__(self, slides: Mapping[str, SpatialData], encoder: Any, names: Iterable[str]) -> None:
        self.encoder = encoder
        wide = [m.card.tile.size_um >= (SCellST.Config().tile_um or 0.0) for m in members_of(encoder)]
        for sdata in slides.values():  # once for spots and nuclei, whatever is asked for, and on disk by their places
            for shapes_key, which in (("nuclei", False), ("spots", True)):
                some = [m for m, w in zip(members_of(encoder), wide, strict=True) if w == which]
                st.pp.features(sdata, st.encoders.get(some), shapes_key=shapes_key, device="cpu")
        self.regions = {
            s: data.with_cells(
                data.read_region(sdata, Place(shapes_key="spots"), slide=s, measured=True), cells_key="nuclei"
            )
            for s, sdata in slides.items()
        }
        needs = SCellST.Config().needs
        self.batches = {s: data.reader_for(r, encoder, needs).whole() for s, r in self.regions.items()}
        widths = next(iter(self.batches.values())).blocks
        ends = np.cumsum(widths)
        self.columns = dict(zip(names, np.split(np.arange(ends[-1]), ends[:-1]), strict=True))

    def targets(self, train: Iterable[str]) -> dict[str, NDArray[np.float32]]:
        """Return log1p CP10k, or raw counts under the key with "/counts", of the genes of the training sections."""
        genes = list(data.choose_genes([self.regions[s] for s in train], st.GeneRule("mean", n=N_GENES)).index)
        return {
            f"{s}{suffix}": np.asarray(r.target(genes, scale), dtype=np.float32)
            for s, r in self.regions.items()
            for suffix, scale in (("", "log1p_cp10k"), ("/counts", "counts"))
        }

    def batch(self, s: str, setting: Setting, y: Mapping[str, NDArray[np.float32]]) -> Batch:
        """Return a section with the features of a setting."""
        batch = self.batches[s]
        keep = np.concatenate([self.columns[b] for b in setting.blocks])
        blocks = tuple(len(self.columns[b]) for b in setting.blocks)
        some = replace(batch, features=np.ascontiguousarray(batch.features[:, keep]), blocks=blocks, truth=None)
        if setting.config is None:  # each spot's own tile, which all of its cells have
            n = len(batch.targets)
            some = replace(some, features=some.own, targets=np.arange(n), sources=np.arange(n), cells=None, n_tile=None)
        elif setting.config.loss == "nb":
            return replace(some, y=y[f"{s}/counts"], truth=y[s], scale="counts")
        return replace(some, y=y[s], scale="log1p_cp10k")

    def score(
        self, setting: Setting, train: tuple[str, ...], test: str, y: Mapping[str, NDArray[np.float32]]
    ) -> tuple[float, dict[str, Any]]:
        """Return the mean Pearson correlation over genes on a section, and what the fit chose."""
        config = Ridge.Config() if setting.config is None else setting.config
        model, chosen = training.fit(
            config.model_class,
            config,
            [self.batch(s, setting, y) for s in train],
            groups=list(train),
            typical=False,
            run=training.Run(device="cpu", checkpoint=None),
        )
        found = model.predict(self.batch(test, setting, y))[0]
        return float(np.nan_to_num(st.metrics.pearson(found.astype(float), y[test].astype(float))).mean()), chosen


def ablate(
    slides: Mapping[str, SpatialData], finder: str, *, networks: bool, epochs: int, inside: bool = True
) -> pd.DataFrame:
    """Print and return the scores of each setting on each section, and of the one that is chosen inside."""
    start = time.process_time()
    encoder = st.encoders.get("cells-imagenet" if networks else "cells-multiscale", device="cpu")
    crops = CROPS if networks else CROPS[:2]
    tiles = TILES if networks else MORPHOLOGY
    assert len(members_of(encoder)) == len(crops) + len(tiles)
    sections = Sections(slides, encoder, (*crops, *tiles))
    print(f"features: {time.process_time() - start:.0f} s of CPU", flush=True)
    names = list(slides)
    targets = {h: sections.targets([s for s in names if s != h]) for h in names}
    rows: dict[str, list[float]] = {}
    within: dict[str, list[float]] = {}
    for setting in [*closed_forms(networks=networks), *networks_of(epochs)]:
        start = time.process_time()
        scores = [sections.score(setting, tuple(s for s in names if s != h), h, targets[h]) for h in names]
        rows[setting.name] = [score for score, _ in scores]
        if inside and setting.closed:
            within[setting.name] = [_inside(sections, setting, [s for s in names if s != h], targets[h]) for h in names]
        show(finder, setting.name, rows[setting.name], time.process_time() - start)
    if within:
        table = pd.DataFrame(within, index=names)
        best = table.idxmax(axis=1)
        rows["chosen inside"] = [rows[best[h]][k] for k, h in enumerate(names)]
        show(finder, "chosen inside", rows["chosen inside"], 0.0)
        print("    chosen for each: " + "; ".join(f"{h}: {best[h]}" for h in names), flush=True)
    return pd.DataFrame(rows, index=names).T.rename_axis("setting").assign(finder=finder)


def _inside(sections: Sections, setting: Setting, names: list[str], y: Mapping[str, NDArray[np.float32]]) -> float:
    """Return the mean score over sections that are left out among the training sections."""
    return float(np.mean([sections.score(setting, tuple(s for s in names if s != v), v, y)[0] for v in names]))


def show(finder: str, name: str, scores: list[float], seconds: float) -> None:
    """Print a row."""
    values = " ".join(f"{v:.3f}" for v in scores)
    print(f"{finder:8s} {name:58s} {values} mean {np.mean(scores):.4f} {seconds:.0f} s", flush=True)

"""Feature extraction of one slide of a run: what a worker does."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stpred import data, models
from stpred._core import tables
from stpred._core.checks import InputError
from stpred._core.disk.staging import staged_file
from stpred._core.files import read_json
from stpred._core.places import Place
from stpred._core.settings import settings
from stpred.cohort.options import load_encoder
from stpred.cohort.regions import ensure_cells, region_to_predict
from stpred.cohort.slides import read_slide, reading_of
from stpred.inference.predictor import Predictor
from stpred.io.samples import Sample
from stpred.models import registry
from stpred.regions import Lattice
from stpred.training.cohort import encoder_of

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stpred.encoders.base import Encoder
    from stpred.models.base import BaseConfig

FORMAT = 1

SUFFIX = ".features.json"
"""Ending of the file, beside the cache's entries, that says which of them are a slide's."""


@dataclass(frozen=True)
class FeatureOptions:
    """What is extracted, alike for all slides of a run.

    Attributes
    ----------
    models
        Families, whose training is prepared for, and trained models (folders, bundled names), whose prediction is.
    encoder
        Name of an encoder, or the folders of saved ones; None: that of each model.
    shapes_key
        Region; None: the measured one in training, and in prediction that of :func:`stpred.tl.predict_cohort`.
    device
        Where encoders run.
    """

    models: tuple[str, ...] = ("ridge",)
    encoder: Any = None
    shapes_key: str | None = None
    device: str | None = None

    @property
    def families(self) -> list[str]:
        """Names of the families among the models."""
        return [m for m in self.models if m in registry.families()]

    def cards(self) -> dict[str, Any]:
        """Return what is said of the encoder of each model; refuses those whose features cannot be kept."""
        found: dict[str, Any] = {}
        for name in self.models:
            if name not in self.families:
                found[name] = _predictor(name, self.encoder, self.device).encoder.card.to_dict()
                continue
            config = registry.resolve(name)
            if config.needs.pixel_grid:
                raise InputError(f"{name!r} sees the pixels of the whole slide; there are no features to keep for it.")
            found[name] = _encoder(name, self.encoder, self.device).card.to_dict()
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return what decides the result, JSON-able."""
        said = {k: v for k, v in asdict(self).items() if k != "device"}
        return said | {"encoder": None if self.encoder is None else str(self.encoder)}


def features_of_slide(sample: Sample, options: FeatureOptions, cache: Path) -> dict[str, Any]:
    """Extract what training or prediction will read of a slide into a cache folder, as far as it is not there.

    Returns
    -------
    What the manifest says of it (``table``: the regions; ``n_tiles``: their locations; ``mpp``, ``versions``), and
    ``entries``, the names of the cache's entries.
    """
    sdata = read_slide(sample)
    regions: dict[str, data.Region] = {}
    with settings.override(cache_dir=cache), data.used_entries() as entries:
        for name in options.models:
            if name in options.families:
                region = _as_trained(sdata, sample.slide, name, options)
            else:
                region = _as_predicted(sdata, name, options)
            regions.setdefault(region.shapes_key, region)
    return {
        "table": ", ".join(regions),
        "n_tiles": sum(len(r.coords_um) for r in regions.values()),
        "mpp": round(float(next(iter(regions.values())).pyramid.mpp), 6),
        "versions": json.dumps(tables.package_versions(), sort_keys=True),
        "entries": sorted(entries),
    }


def _as_trained(sdata: SpatialData, slide: str, family: str, options: FeatureOptions) -> data.Region:
    """Embed the measured region as :func:`stpred.tl.train` does."""
    config: BaseConfig = registry.resolve(family)
    if config.needs.cells:
        ensure_cells(sdata)
    region = data.read_region(sdata, Place(shapes_key=options.shapes_key), slide=slide, measured=True)
    if config.needs.cells:
        region = data.with_cells(region)
    lattice = Lattice.of(region.coords_um)
    needs = config.at_pitch(None if lattice is None else lattice.pitch_um).needs
    data.reader_for(region, _encoder(family, options.encoder, options.device), needs).whole()
    return region


def _as_predicted(sdata: SpatialData, model: str, options: FeatureOptions) -> data.Region:
    """Embed the region that :func:`stpred.tl.predict_cohort` takes, and the context of its locations."""
    predictor = _predictor(model, options.encoder, options.device)
    shapes, _ = region_to_predict(sdata, predictor.model, options.shapes_key)
    region = predictor.region(sdata, Place(shapes_key=shapes), create=True)
    for _ in predictor.batches(region):
        pass
    return region


@lru_cache(maxsize=8)
def _encoder_of(family: str, encoder: Any, device: str | None) -> Encoder:
    return encoder_of(registry.resolve(family), load_encoder(encoder), tile=None, device=device)


def _encoder(family: str, encoder: Any, device: str | None) -> Encoder:
    """Return the encoder that a family is trained through; loaded once in each process."""
    return _encoder_of(family, tuple(encoder) if isinstance(encoder, list) else encoder, device)


@lru_cache(maxsize=4)
def _predictor_of(model: str, encoder: Any, device: str | None) -> Predictor:
    return Predictor.of(models.load(model), encoder=load_encoder(encoder), device=device)


def _predictor(model: str, encoder: Any, device: str | None) -> Predictor:
    return _predictor_of(model, tuple(encoder) if isinstance(encoder, list) else encoder, device)


@dataclass(frozen=True)
class Extraction:
    """What is done with each slide of a run whose folder is the cache.

    Attributes
    ----------
    options
        What is extracted.
    model_name, model_id
        Names of the encoders, and a hash of what is said of them.
    """

    options: FeatureOptions
    model_name: str
    model_id: str

    what = "features"
    suffix = SUFFIX

    @classmethod
    def of(cls, options: FeatureOptions) -> Extraction:
        """Return it once models and encoders are known to be there."""
        cards = options.cards()
        digest = hashlib.sha256(json.dumps(cards, sort_keys=True, default=str).encode()).hexdigest()[:12]
        return cls(options, ", ".join(dict.fromkeys(str(c["name"]) for c in cards.values())), digest)

    def settings_of(self, sample: Sample) -> str:
        """Return a short hash of everything but encoders and files that decides the result."""
        said = {"format": FORMAT, "options": self.options.to_dict(), "read": reading_of(sample)}
        return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:12]

    def key_of(self, sample: Sample, fingerprint: str) -> str:
        """Return what the result is of: encoders, settings and content of the files."""
        return f"{self.model_id}-{self.settings_of(sample)}-{fingerprint}"

    def is_there(self, folder: Path, store: str) -> bool:
        """Whether features of the slide were extracted by any run."""
        return bool(_said(folder / store))

    def is_foreign(self, folder: Path, store: str) -> bool:
        """Whether another file stands in the place of the slide's."""
        return (folder / store).exists() and not self.is_there(folder, store)

    def finished(self, folder: Path, store: str, key: str) -> dict[str, Any] | None:
        """Return what is said of a slide, if it is of this key and none of its entries is gone."""
        said = _said(folder / store)
        if said.get("key") != key or not all((folder / f"{e}.npy").is_file() for e in said.get("entries", ())):
            return None
        return {k: v for k, v in said.items() if k not in ("key", "entries")}

    def wants_more(self, folder: Path, store: str) -> bool:
        """Whether something is still to come: nothing."""
        return False

    def work(self, sample: Sample, folder: Path, store: str, key: str) -> None:
        """Extract, and write which entries are the slide's."""
        said = {"key": key, **features_of_slide(sample, self.options, folder)}
        with staged_file(folder / store, what="list of a slide's features") as part:
            part.write_text(json.dumps(said, sort_keys=True), encoding="utf-8")

    def add_more(self, folder: Path, store: str) -> None:
        """Add nothing."""

    def help(self, sample: Sample, folder: Path, store: str, key: str, *, start: float) -> None:
        """Do nothing: the features of a slide are extracted by one worker."""


def _said(path: Path) -> dict[str, Any]:
    with suppress(InputError, ValueError):
        found = read_json(path, what="list of a slide's features")
        return found if isinstance(found, dict) and "key" in found else {}
    return {}

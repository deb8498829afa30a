"""Prediction of one slide of a run: what a worker does."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stpred import models
from stpred._core import tables
from stpred._core.checks import InputError, InputWarning
from stpred._core.disk import hub
from stpred._core.files import read_json, writable
from stpred.cohort.fingerprint import is_large
from stpred.cohort.manifest import OWN
from stpred.cohort.options import PredictOptions
from stpred.cohort.pictures import write_picture
from stpred.cohort.slides import read_slide, reading_of
from stpred.io.samples import Sample
from stpred.stores import write_result

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stpred.models import Model

ATTRIBUTE = "stpred_cohort"
"""Attribute of a store, a JSON string: of what model, image and settings it is the result."""

REPLACED = "replaced"
"""Folder, beside the stores, of results of other models, images or settings."""

MAP = "_map"
"""Ending of the map's key."""

FORMAT = 1


@dataclass(frozen=True)
class Prediction:
    """What is done with each slide.

    Attributes
    ----------
    model
        Folder or bundled name, from which every worker loads it once.
    model_name, model_id
        Of what is loaded there.
    options
        What is predicted.
    previews
        Also draw a picture.
    """

    model: str
    model_name: str
    model_id: str
    options: PredictOptions
    previews: bool = False

    what = "predict"
    suffix = ".zarr"

    def settings_of(self, sample: Sample) -> str:
        """Return a short hash of everything but model and files that decides the result."""
        said = {"format": FORMAT, "options": self.options.to_dict(), "read": reading_of(sample)}
        return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:12]

    def key_of(self, sample: Sample, fingerprint: str) -> str:
        """Return what the result is of: model, settings and content of the files."""
        return f"{self.model_id}-{self.settings_of(sample)}-{fingerprint}"

    def is_there(self, folder: Path, store: str) -> bool:
        """Whether there is a result of any run."""
        return stored_key(folder / store) is not None

    def is_foreign(self, folder: Path, store: str) -> bool:
        """Whether something stands in the place of the result that no run has written."""
        return (folder / store).exists() and stored_key(folder / store) is None

    def finished(self, folder: Path, store: str, key: str) -> dict[str, Any] | None:
        """Return what is said of a result if it is there and of this key."""
        said = _said(folder / store)
        return {k: v for k, v in said.items() if k != "key"} if said.get("key") == key else None

    def wants_more(self, folder: Path, store: str) -> bool:
        """Whether a finished result lacks what goes beside it."""
        return self.previews and not _picture_of(folder / store).exists()

    def work(self, sample: Sample, folder: Path, store: str, key: str) -> None:
        """Predict a slide and put its store in place, whole.

        What an earlier process of the same key has finished, such as the table but not the map, is gone on with.
        """
        draft = folder / OWN / "unfinished" / store
        is_table_there = stored_key(draft) == key
        if draft.exists() and not is_table_there:
            shutil.rmtree(draft)
        if not is_table_there or self.options.with_map:
            model = _load(self.model, self.model_id)
            with _warnings() as warned:
                sdata = read_slide(sample)
                if not is_table_there:
                    with _kept_features(sample, _features_of(draft)):
                        table, notes = self.options.predict(sdata, model, slide=sample.slide)
            if not is_table_there:
                said = {"key": key, **_facts(sdata, table), "warnings": "\n".join([*notes, *warned])}
                attrs = {ATTRIBUTE: json.dumps(said, sort_keys=True)}
                write_result(sdata, draft, with_image=self.options.with_image, attrs=attrs)
            if self.options.with_map:
                self._add_map(sdata, model, draft)
        _publish(draft, folder / store, key)
        shutil.rmtree(_features_of(draft), ignore_errors=True)

    def add_more(self, folder: Path, store: str) -> None:
        """Draw the picture of a finished result."""
        import spatialdata

        kept = spatialdata.read_zarr(folder / store)
        rasters = [k for k in kept.images if k.endswith(MAP)]
        write_picture(kept, _said(folder / store)["table"], next(iter(rasters), None), _picture_of(folder / store))

    def help(self, sample: Sample, folder: Path, store: str, key: str, *, start: float) -> None:
        """Embed strips of a large slide that another worker is at, from a share of them on, until it is finished."""
        draft = folder / OWN / "unfinished" / store
        with _kept_features(sample, _features_of(draft)):
            strips = self.options.strips(read_slide(sample), _load(self.model, self.model_id))
            first = int(start * len(strips))
            for strip in (*strips[first:], *strips[:first]):
                if self.finished(folder, store, key) is not None or stored_key(draft) == key:
                    break
                strip.embed()
        if self.finished(folder, store, key) is not None:
            shutil.rmtree(_features_of(draft), ignore_errors=True)

    def _add_map(self, sdata: SpatialData, model: Model, draft: Path) -> None:
        """Add the map to an unfinished store, from where it was interrupted."""
        import spatialdata

        kept = spatialdata.read_zarr(draft)
        if any(k.endswith(MAP) for k in kept.images):
            return
        for name, shapes in kept.shapes.items():  # what was created with the table
            if name not in sdata.shapes:
                sdata.shapes[name] = shapes
        self.options.predict_map(sdata, model, draft)


def _features_of(draft: Path) -> Path:
    return draft.with_suffix(".features")


@contextmanager
def _kept_features(sample: Sample, folder: Path) -> Iterator[None]:
    """Keep the features of a large slide until it is finished: an interrupted prediction goes on where it was.

    They are kept as half-precision floats, as in every cache of features, so results do not depend on interruptions.
    """
    from stpred import settings

    if settings.cache_dir is not None or not is_large(sample):
        yield
        return
    with settings.override(cache_dir=folder):
        yield


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect what stpred warns of in a block, each once; other packages' warnings are ignored."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield said
    own = [str(w.message) for w in found if issubclass(w.category, InputWarning)]
    said.extend(dict.fromkeys(own))


def stored_key(store: Path) -> str | None:
    """Return what a store is the result of; None where no run has written it, or there is none."""
    return _said(store).get("key")


def _publish(draft: Path, store: Path, key: str) -> None:
    """Put a store in its place; a result of another model, image or settings is moved out of the way, not lost."""
    there = stored_key(store)
    with writable(store, what="store"):
        if there is not None:
            name = f"{store.stem}-{hashlib.sha256(there.encode()).hexdigest()[:8]}{store.suffix}"
            place = draft.with_name(f"old-{name}") if there == key else store.parent / REPLACED / name
            place.parent.mkdir(exist_ok=True)
            shutil.rmtree(place, ignore_errors=True)
            store.rename(place)
        draft.rename(store)
        if there == key:
            shutil.rmtree(place, ignore_errors=True)


def _picture_of(store: Path) -> Path:
    return store.with_suffix(".png")


def _said(store: Path) -> dict[str, Any]:
    """Return what a store says of the run that wrote it; nothing where it is not there or of another kind."""
    with suppress(InputError, ValueError, TypeError, KeyError):
        found = json.loads(read_json(store / "zarr.json", what="store")["attributes"][ATTRIBUTE])
        return found if isinstance(found, dict) else {}
    return {}


def _facts(sdata: SpatialData, key: str) -> dict[str, Any]:
    """Return what the manifest says of a result."""
    table = sdata.tables[key]
    provenance = tables.read_provenance(table, what=f"table {key!r}")
    return {
        "table": key,
        "n_tiles": table.n_obs,
        "n_genes": table.n_vars,
        "in_distribution": round(float(table.obs["in_distribution"].mean()), 6),
        "mpp": round(float(provenance["mpp"]), 6),
        "versions": json.dumps(provenance["versions"], sort_keys=True),
    }


@lru_cache(maxsize=1)
def _load(place: str, model_id: str) -> Model:
    """Return the model; once in each process."""
    model = models.load(place)
    if model.id != model_id:
        raise InputError(f"The model at {place!r} is another one than when the run began; start it again.")
    return model


def place_of(model: Any, own: Path) -> tuple[str, Model]:
    """Return where workers load a model from, and the model; one in memory is put into the run's folder."""
    from stpred.inference.predictor import load_trained

    trained = load_trained(model)
    if trained.family == "pretrained":  # what is saved of it has no weights, and workers are other processes
        raise InputError(
            f"Model {trained.record.name!r} is a published predictor, whose weights are not part of a saved model, and "
            "workers load saved ones: predict slide by slide with stpred.tl.predict(sdata, model)."
        )
    if model is None:
        return "default", trained
    if trained.hub is not None and hub.is_remote(model):
        return trained.hub, trained  # the commit, so that all workers load the same
    if isinstance(model, (str, Path)):
        return (str(Path(model).absolute()) if Path(model).is_dir() else str(model)), trained
    folder = own / "model" / trained.id
    if not folder.exists():
        models.save(trained, folder)
    return str(folder), trained

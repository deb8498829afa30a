"""What is predicted, alike for all slides of a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stpred import data, tl
from stpred._core.checks import InputError
from stpred._core.disk import hub
from stpred._core.places import Place
from stpred._core.recipes.quality import QC
from stpred._core.tables import read_provenance
from stpred.cohort.regions import region_to_predict
from stpred.inference.predictor import Predictor, gene_columns
from stpred.inference.provenance import is_of_training, said_of_training

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stpred.models import Model


@dataclass(frozen=True)
class PredictOptions:
    """Prediction options of a run.

    Attributes
    ----------
    shapes_key
        Region to predict on; None: the model's training region, else the usual one of several, else a grid.
    cells
        Predict on cells: those of the slide, or its nuclei, which are found first.
    genes
        Genes to keep; None: all.
    encoder
        Encoder of the model, its name, or the folders of saved ones.
    device
        Where model and encoder run; None: a GPU if there is one.
    with_image
        The store holds the slide's pixels instead of a thumbnail.
    with_map
        It also holds a map, of a model of patches.
    qc
        Limits on what the image shows, as of :func:`stpred.tl.predict`; None: all locations are predicted.
    """

    shapes_key: str | None = None
    cells: bool = False
    genes: tuple[str, ...] | None = None
    encoder: Any = None
    device: str | None = None
    with_image: bool = False
    with_map: bool = False
    qc: QC | bool | None = None

    def check(self, model: Model) -> None:
        """Refuse what a model cannot do, before any slide is read."""
        gene_columns(model, self.genes)
        QC.of_image(self.qc)
        if self.with_map and not model.needs.tokens:
            raise InputError(f"`with_map` is of models of patches ('student'), and {model.record.name!r} sees tiles.")
        if self.cells and self.shapes_key is not None:
            raise InputError("`cells` is a region by itself; leave `shapes_key` out.")

    def to_dict(self) -> dict[str, Any]:
        """Return what decides the result, JSON-able."""
        said = {k: v for k, v in asdict(self).items() if k not in ("device", "encoder", "qc")}
        said |= {"encoder": None if self.encoder is None else str(self.encoder)}
        limits = QC.of_image(self.qc)
        return said if limits is None else said | {"qc": limits.to_dict()}  # results without are found as before

    def predict(self, sdata: SpatialData, model: Model, *, slide: str) -> tuple[str, list[str]]:
        """Add the predicted table to a slide; return its key, and what there is to say of the slide, by this name."""
        shapes, said = region_to_predict(sdata, model, self.shapes_key, cells=self.cells)
        before = set(sdata.tables)
        tl.predict(
            sdata, model, shapes_key=shapes, genes=self.genes, device=self.device, encoder=load_encoder(self.encoder),
            qc=self.qc,
        )  # fmt: skip
        (key,) = set(sdata.tables) - before
        if is_of_training(read_provenance(sdata.tables[key])):
            said = [*said, said_of_training(slide)]
        return key, said

    def strips(self, sdata: SpatialData, model: Model) -> list[data.Strip]:
        """Return the strips in which a large slide is embedded before it is predicted."""
        shapes, _ = region_to_predict(sdata, model, self.shapes_key, cells=self.cells)
        predictor = Predictor.of(model, genes=self.genes, encoder=load_encoder(self.encoder), device=self.device)
        region = predictor.region(sdata, Place(shapes_key=shapes), create=True)
        if (limits := QC.of_image(self.qc)) is not None:
            region = data.passing(region, limits)
        return data.embedding_strips(predictor.reader(region))

    def predict_map(self, sdata: SpatialData, model: Model, out: Path) -> str:
        """Write the map into a store, block by block; return its key."""
        before = set(sdata.images)
        tl.predict_map(
            sdata, model, out=out, genes=self.genes, device=self.device, encoder=load_encoder(self.encoder), qc=self.qc
        )
        (key,) = set(sdata.images) - before
        return key


def load_encoder(given: Any) -> Any:
    """Return an encoder, its name, or what is saved in the folder of this name; of several a list."""
    from stpred import encoders

    if isinstance(given, (list, tuple)):
        return [load_encoder(g) for g in given]
    if isinstance(given, (str, Path)) and (Path(given).is_dir() or hub.is_remote(given)):
        return encoders.load(given)
    return given

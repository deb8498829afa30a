"""A trained model, ready to be applied to the locations of slides."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from stpred import data, encoders, models, regions
from stpred._core import tables
from stpred._core.checks import InputError, listing, warn
from stpred._core.compute.moments import Moments
from stpred._core.elements import need_sdata, normalisation, shapes_in
from stpred._core.expression.library import LIBRARY, Library
from stpred._core.specs import Posterior, TileSpec
from stpred.encoders.beside import PIXELS, PixelsBeside
from stpred.encoders.composite import members_of
from stpred.encoders.modules import pick_device
from stpred.encoders.registry import different, rebuild
from stpred.inference.default_regions import with_default_regions
from stpred.models.base import FORMAT_VERSION

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stpred._core.places import Place
    from stpred.encoders.base import Encoder
    from stpred.models import Model
    from stpred.models.batch import Batch
    from stpred.models.xfuse.posterior import Draws

PIECE_VALUES = 2**23
"""Predicted values that are made at a time: 64 MB of float64."""

LEAST_PIECE = 4096
"""Targets at a time of models that see the whole slide each time."""


@dataclass(frozen=True)
class Applied:
    """What a model says of the locations of a region.

    Attributes
    ----------
    mean, std
        (n, n_genes) predictions; `std` None where the model gives none.
    distance
        (n,) distances from the training tiles.
    context
        Where neighbours were taken from.
    """

    mean: NDArray[np.float32]
    std: NDArray[np.float32] | None
    distance: NDArray[np.float32]
    context: str | None


@dataclass(frozen=True)
class Predictor:
    """A trained model with its encoder, on its device, and which of its genes are predicted.

    Attributes
    ----------
    model
        The model.
    encoder
        The encoder that it was trained with.
    columns
        Positions of the predicted genes among those of the model.
    device
        Where both run; None: a GPU if there is one.
    posterior
        How the posterior of a generative model is read; None of all others.
    stride_um
        Of models of patches: distance of the overlapping tiles that hold a patch; None: see `data`.
    """

    model: Model
    encoder: Encoder
    columns: list[int]
    device: str | None = None
    posterior: Posterior | None = None
    stride_um: float | None = None

    @classmethod
    def of(
        cls,
        model: Any,
        *,
        genes: Iterable[str] | None = None,
        encoder: Any = None,
        device: str | None = None,
        posterior: Posterior | None = None,
        stride_um: float | None = None,
    ) -> Self:
        """Load the model and its encoder; parameters as of :func:`stpred.tl.predict`.

        Raises
        ------
        InputError
            If the model is not trained, does not know a gene, was trained with another encoder or is not generative
            and a posterior is given.
        """
        trained = load_trained(model)
        columns = gene_columns(trained, genes)
        posterior = _posterior_of(trained, posterior)
        used = _encoder_of(trained, encoder, device=device)
        trained.to(pick_device(device))
        return cls(trained, used, columns, device, posterior, stride_um)

    @property
    def name(self) -> str:
        """What results are called after."""
        return self.model.record.name

    @property
    def genes(self) -> list[str]:
        """The predicted genes."""
        return [self.model.record.genes[i] for i in self.columns]

    @property
    def var(self) -> pd.DataFrame:
        """Statistics of each predicted gene, indexed by symbol."""
        return _gene_frame(self.model).iloc[self.columns]

    @property
    def context(self) -> data.Context:
        """The locations that the model was trained on, as far as prediction elsewhere depends on them."""
        record = self.model.record
        hexagonal = bool(record.training.get("hexagonal"))
        lattice = None if record.pitch_um is None else regions.Lattice(record.pitch_um, hexagonal)
        return data.Context(lattice, record.region, record.training.get("width_um"))

    def region(
        self, sdata: SpatialData, place: Place, *, create: bool = False, cells_key: str | None = None
    ) -> data.Region:
        """Return the locations of a slide that the model is applied to, with the cells in them if it needs these.

        With `create`, a slide without any gets default ones, in an object of its own (``region.sdata``).
        """
        need_sdata(sdata)
        if create and place.shapes_key is None and not shapes_in(sdata, place.coordinate_system):
            sdata = with_default_regions(sdata, place, cells=self.model.needs.cells)
        region = self.named(data.read_region(sdata, place, prefer=self.model.record.region))
        if self.model.needs.cells:
            region = data.with_cells(region, cells_key=cells_key, prefer=self.model.record.cells)
        return region

    def named(self, region: data.Region) -> data.Region:
        """Return the region under the name that its slide had in training, if it was among those slides."""
        slides: dict[str, Any] = self.model.record.training.get("slides", {})
        image = region.pyramid.fingerprint
        wanted = self.model.record.training.get("normalised")
        ours = normalisation(region.sdata, region.image_key)
        if wanted and any((ours or {}).get(k) != wanted.get(k) for k in ("method", "reference")):
            warn(
                f"Model {self.name!r} was trained on images normalised by {wanted.get('method')!r}, and image "
                f"{region.image_key!r} was not normalised so: stpred.pp.stain_normalize(sdata, "
                f"method={wanted.get('method')!r}, reference=model.record.training['normalised']['reference'])."
            )
        return replace(region, slide=next((s for s, v in slides.items() if v.get("image") == image), region.slide))

    def reader(self, region: data.Region) -> data.Reader:
        """Return what reads the region, or blocks of other locations of its slide."""
        return data.reader_for(region, self.encoder, self.model.needs, self.context, stride_um=self.stride_um)

    def batches(self, region: data.Region) -> Iterator[tuple[NDArray[np.int64], Batch]]:
        """Yield rows of the region and their batch, so many at a time that they fit into memory."""
        return self.reader(region).blocks()

    def predict(self, batch: Batch) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Return the (n, n_genes) mean and, where the model has one, its standard deviation."""
        options = () if self.posterior is None else (self.posterior,)
        mean, std = self.model.predict(batch, *options)
        if len(self.columns) == mean.shape[1] and self.columns == list(range(mean.shape[1])):
            return mean, std
        return mean[:, self.columns], None if std is None else std[:, self.columns]

    def pieces(self, batch: Batch) -> Iterator[tuple[slice, Batch]]:
        """Yield which targets of a batch, and these as a batch, so many at a time that their predictions are a block.

        A model of many genes makes several arrays as large as its predictions on the way.
        """
        n, needs = len(batch.targets), self.model.needs
        most = max(PIECE_VALUES // len(self.model.record.genes), LEAST_PIECE if needs.whole_slide else 1)
        if n <= most or needs.pixel_grid:
            yield slice(0, n), batch
            return
        if needs.slide_statistics and batch.moments is None and batch.cells is None:
            batch = replace(batch, moments=Moments.of(batch.features, batch.sources))  # once for all pieces
        for first in range(0, n, most):
            rows = slice(first, min(first + most, n))
            yield rows, batch.take(np.arange(rows.start, rows.stop))

    def draw(self, batch: Batch) -> Draws:
        """Return draws from the posterior of a batch's targets, of all genes of the model."""
        from stpred.models.xfuse.posterior import draw_posterior

        return draw_posterior(self.model, batch, self.posterior)  # type: ignore[arg-type]

    def values(self, region: data.Region) -> NDArray[np.float32]:
        """Return (n, n_genes) means of all locations of a region."""
        out = np.empty((len(region.coords_um), len(self.columns)), dtype=np.float32)
        for rows, batch in self.batches(region):
            for piece, part in self.pieces(batch):
                out[rows[piece]] = self.predict(part)[0]
        return out

    def apply(self, region: data.Region) -> Applied:
        """Return predictions, deviations and distances of all locations of a region, made block by block."""
        n, columns = len(region.coords_um), len(self.columns)
        mean, distance = np.empty((n, columns), np.float32), np.empty(n, np.float32)
        std: NDArray[np.float32] | None = None
        context: str | None = None
        for rows, batch in self.batches(region):
            for piece, part in self.pieces(batch):
                mean[rows[piece]], spread = self.predict(part)
                distance[rows[piece]] = self.model.ood_distance(part)
                if spread is not None:
                    std = np.empty_like(mean) if std is None else std
                    std[rows[piece]] = spread
            context = batch.context
        return Applied(mean, std, distance, context)

    def provenance(self, region: data.Region, context: str | None) -> dict[str, Any]:
        """Return the provenance of predictions for a region; `context`: where neighbours were taken from."""
        model, record = self.model, self.model.record
        library = Library.parse(record.library)
        left_out: dict[str, Any] = {"off_image": region.n_outside}
        if region.cells is not None:
            left_out["no_cells"] = len(region.without_cells)
            left_out["without_cells"] = [str(i) for i in region.without_cells[:1000]]
        left_out |= region.left_out or {}
        found = {
            "kind": "prediction",
            "model": record.name,
            "model_id": model.id,
            "family": model.family,
            "config": model.config.to_dict(),
            "format_version": FORMAT_VERSION,
            "encoder": self.encoder.card.to_dict(),
            "tile": record.tile,
            "gene_rule": record.gene_rule,
            "training": record.training,
            **({} if record.region is None else {"training_region": record.region}),
            "output_scale": record.target,
            "support_um": model.support_um,
            "context": context,
            "image": region.pyramid.fingerprint,
            "image_key": region.image_key,
            "mpp": region.pyramid.mpp,
            "upsampled": region.pyramid.mpp > 1.01 * min(m.card.tile.mpp for m in members_of(self.encoder)),
            "n_predicted": len(region.coords_um),
            "left_out": left_out,
            "versions": tables.package_versions(),
        }
        if model.hub is not None:
            found["hub"] = {"repository": record.hub["repository"], "revision": record.hub["revision"]}
        if region.cells is not None:
            found["cells"] = region.cells.region.shapes_key
        if region.qc is not None:
            found["qc"] = region.qc.to_dict()
        if library is not None:
            found[LIBRARY] = library.packed()
        if model.config.per is not None:
            found["per"] = model.config.per
        if self.posterior is not None:
            found |= {"readout": self.posterior.to_dict(), "output_scale": self.posterior.output_scale}
        return found


def load_trained(model: Any) -> Model:
    """Return a trained model: itself, that of a folder, a bundled or a hub's name, or the bundled default (None)."""
    if model is None:
        return models.load("default")
    if isinstance(model, (str, Path)):
        return models.load(model)
    if not isinstance(model, models.Model):
        raise InputError(
            f"`model` must be a trained model, its folder, a bundled name or hf:owner/name, got "
            f"{type(model).__name__}; train one with stpred.tl.train."
        )
    if not model.record.genes:
        raise InputError(f"The {model.family!r} model is not trained; make it with stpred.tl.train.")
    return model


def need_generative(model: Model) -> None:
    """Refuse models without a posterior."""
    if not model.config.generative:
        raise InputError(
            f"Model {model.record.name!r} ({model.family!r}) has no posterior to draw from; this is for generative "
            "models, such as one of stpred.tl.train(slides, 'xfuse')."
        )


def gene_columns(model: Model, genes: Iterable[str] | None) -> list[int]:
    """Return positions of the wanted genes; None: of all."""
    names = model.record.genes
    if genes is None:
        return list(range(len(names)))
    if not isinstance(genes, Iterable):
        raise InputError(f"`genes` must be a list of symbols or None, got {genes!r}.")
    wanted = [genes] if isinstance(genes, str) else [str(g) for g in genes]
    if not wanted:
        raise InputError(
            f"`genes` is empty; model {model.record.name!r} knows {len(names)}, such as {listing(names[:5])}."
        )
    position = {g: i for i, g in enumerate(names)}
    if missing := [g for g in wanted if g not in position]:
        raise InputError(
            f"Model {model.record.name!r} does not predict {listing(missing)}; it knows {len(names)} genes, such as "
            f"{listing(names[:5])}."
        )
    return [position[g] for g in dict.fromkeys(wanted)]


def _posterior_of(model: Model, posterior: Any) -> Posterior | None:
    """Return the options of a generative model's posterior; refuse them for other models."""
    if posterior is not None and not isinstance(posterior, Posterior):
        raise InputError(f"`posterior` must be a stpred.Posterior, got {posterior!r}.")
    if not model.config.generative:
        if posterior is not None:
            raise InputError(f"`posterior` is for generative models, such as 'xfuse'; got {model.family!r}.")
        return None
    posterior = Posterior() if posterior is None else posterior
    model.covariates.of("", posterior.covariates)  # type: ignore[union-attr,operator]  # refused before any work
    return posterior


def _encoder_of(model: Model, given: Any, *, device: str | None) -> Encoder:
    """Return the encoder that the model was trained with, and nothing else."""
    wanted = model.record.encoder
    if "name" not in wanted or not {"mpp", "size_px"} <= set(model.record.tile):
        raise InputError(f"Model {model.record.name!r} does not say which encoder and tile it was trained with.")
    named = given is None or (isinstance(given, str) and given == wanted["name"])
    own = getattr(model, "encoder", None) if named else _loaded(given, model)
    encoder = own.to(device) if own is not None else _encoder_by_name(model, device=device)
    if said := different(encoder, wanted):
        raise InputError(f"The encoder is not the one that model {model.record.name!r} was trained with ({said}).")
    return encoder


def _loaded(given: Any, model: Model) -> Encoder:
    """Return the encoder that a user gave, at the tile that the model was trained on; several at each one's own."""
    if model.needs.pixel_grid and "members" in model.record.encoder and given != PIXELS:
        if isinstance(given, PixelsBeside):
            return given
        pixels = encoders.get(PIXELS, tile=TileSpec(**model.record.tile))
        return PixelsBeside(pixels, [encoders.get(given)])
    if not isinstance(given, (list, tuple)):
        several = isinstance(given, str) and "members" in model.record.encoder  # such a name has tiles of its own
        return encoders.get(given, tile=None if several else TileSpec(**model.record.tile))
    members = model.record.encoder.get("members", [])
    if len(members) != len(given):
        return encoders.get(given)
    tiles = [TileSpec(**member["tile"]) for member in members]
    return encoders.get(
        [e if hasattr(e, "card") else encoders.get(e, tile=t) for e, t in zip(given, tiles, strict=True)]
    )


def _encoder_by_name(model: Model, *, device: str | None) -> Encoder:
    wanted = model.record.encoder
    try:
        return rebuild({**wanted, "tile": model.record.tile}, device=device)
    except InputError as error:
        several = ", a list of its members," if "members" in wanted else ""
        source = str(wanted.get("source"))
        place = repr(source) if source.startswith("hf:") else "folder"
        raise InputError(
            f"{str(error).rstrip('.')}; model {model.record.name!r} was trained with the encoder {wanted['name']!r} "
            f"({source}): pass it{several} as `encoder=`, such as encoder=stpred.encoders.load({place}) "
            "for one that was saved, or register its name with stpred.encoders.register(name, folder)."
        ) from error


def _gene_frame(model: Model) -> pd.DataFrame:
    import pandas as pd

    frame = pd.DataFrame(index=pd.Index(model.record.genes, dtype=object))
    for name, values in model.record.var.items():
        if name == "gene_id":
            frame[name] = np.asarray(values, dtype=object)
        elif name == "trusted":
            frame[name] = np.asarray(values, dtype=bool)
        else:
            frame[name] = np.asarray([np.nan if v is None else v for v in values])
    return frame

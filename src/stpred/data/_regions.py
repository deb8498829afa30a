"""Finding and checking a slide's image, locations and counts."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stpred._core import keys, targets
from stpred._core.checks import InputError, key_in, listing
from stpred._core.elements import (
    centroids,
    find_image,
    find_region,
    find_table,
    is_measured,
    shapes_in,
    table_instances,
    table_regions,
)
from stpred._core.expression.counts import check_counts
from stpred._core.names import named
from stpred._core.places import Place
from stpred._core.recipes.quality import QC
from stpred.data._off_image import locations_on
from stpred.links import Links
from stpred.regions import Lattice, tissue_points
from stpred.tiles import Pyramid

if TYPE_CHECKING:
    import pandas as pd
    from scipy.sparse import csr_matrix
    from spatialdata import SpatialData

logger = logging.getLogger("stpred")

MAX_DENSE = 2**24
"""Values of a training target up to which it is dense."""

MAX_COHORT = 2**28
"""Values of the training targets of all slides up to which these are dense, in 1 GB."""

MAX_FILLED = 0.3
"""Fraction of values other than zero up to which a large target stays sparse, as that of a million bins."""

IMAGE_PITCH_UM = 100.0
"""Distance of the points that stand for the locations of a slide without any."""

_ONLY = "slide"
"""What a slide is called that came without a name."""


@dataclass(frozen=True)
class Region:
    """Locations of one slide on its image, and what was measured there.

    Attributes
    ----------
    slide, shapes_key, image_key
        Where it comes from.
    instances
        (n,) index values of the shapes.
    coords_um
        (n, 2) centres.
    n_outside
        Locations that were skipped because their centre is off the image.
    cells
        The slide's cells and which of them lie in each location, for models that see cells (`with_cells`).
    without_cells
        Locations that were skipped because no cell lies in them.
    counts, totals, var
        (n, G) raw counts, (n,) library sizes and the genes' frame, where a table was requested.
    edge_um
        Of locations without shapes, such as the pixels of a map: each is a square of this edge.
    left_out
        Locations that did not pass quality control, by reason; None where nothing was judged.
    qc
        The limits that were judged by.
    """

    sdata: SpatialData
    pyramid: Pyramid
    slide: str
    shapes_key: str
    image_key: str
    instances: pd.Index
    coords_um: NDArray[np.float64]
    n_outside: int = 0
    coordinate_system: str = keys.UM
    counts: csr_matrix | None = None
    totals: NDArray[np.float64] | None = None
    var: pd.DataFrame | None = None
    cells: CellsInside | None = None
    without_cells: tuple[Any, ...] = ()
    edge_um: float | None = None
    left_out: dict[str, int] | None = None
    qc: QC | None = None

    def target(
        self,
        names: list[str],
        target: str,
        *,
        sparse: bool = False,
        n_measured: int | None = None,
        among: int | None = None,
    ) -> Any:
        """Return the (n, n_genes) training target of the named genes.

        `sparse`: as csr where that is far smaller. `n_measured`: number of genes of a log share, which is one of the
        model and not of each slide; None: the slide's own. `among`: locations of all slides of a cohort, of so many
        that targets are sparse whatever the model.
        """
        if among is not None and among * len(names) > MAX_COHORT:
            return self._target(names, target, least=0, n_measured=n_measured)
        return self._target(names, target, least=MAX_DENSE if sparse else None, n_measured=n_measured)

    def _target(self, names: list[str], target: str, *, least: int | None, n_measured: int | None) -> Any:
        """Return the target, sparse from `least` values (None: never)."""
        if self.counts is None or self.var is None or self.totals is None:
            raise InputError(f"Slide {self.slide!r} has no counts of {self.shapes_key!r}.")
        columns = self.var.index.get_indexer(names)
        counts = self.counts[:, columns]
        if (columns < 0).any():  # of a gene that was not measured here, nothing is there
            from scipy.sparse import diags_array

            counts = (counts @ diags_array((columns >= 0).astype(counts.dtype))).tocsr()
        if (
            least is not None
            and target in targets.TARGETS
            and np.prod(counts.shape) > least
            and counts.nnz < MAX_FILLED * np.prod(counts.shape)
        ):
            return targets.sparse_transform(counts, self.totals, target=target)
        return targets.transform(counts, self.totals, target=target, n_measured=n_measured or self.counts.shape[1])

    @property
    def n_measured(self) -> int | None:
        """Number of measured genes."""
        return None if self.counts is None else int(self.counts.shape[1])

    def beside(self, shapes_key: str) -> Region:
        """Return other locations of the same slide, on the same image."""
        place = Place(shapes_key, self.image_key, coordinate_system=self.coordinate_system)
        return read_region(self.sdata, place, slide=self.slide)

    def measures(self, names: list[str]) -> NDArray[np.bool_]:
        """Return (n_genes,) whether the slide measured each gene."""
        if self.var is None:
            return np.zeros(len(names), dtype=bool)
        return np.asarray(self.var.index.get_indexer(names) >= 0, dtype=bool)

    def over(self, genes: Collection[str]) -> Region:
        """Return the slide as if it had measured only these genes; locations without any count of them are skipped."""
        if self.counts is None or self.var is None:
            raise InputError(f"Slide {self.slide!r} has no counts of {self.shapes_key!r}.")
        columns = np.flatnonzero(self.var.index.isin(list(genes)))
        counts = self.counts[:, columns]
        sizes = targets.totals(counts)
        part = replace(self, counts=counts, totals=sizes, var=self.var.iloc[columns])
        if (sizes > 0).all():
            return part
        if not (sizes > 0).any():
            raise InputError(
                f"Slide {self.slide!r} has no count of the {len(columns)} genes that library sizes are counted over."
            )
        empty = int((sizes == 0).sum())
        logger.info("Slide %r: %d locations without counts of the shared genes are skipped.", self.slide, empty)
        return part.take(np.flatnonzero(sizes > 0))

    def take(self, rows: NDArray[np.int64]) -> Region:
        """Return some of the locations, in this order."""
        return replace(
            self,
            instances=self.instances[rows],
            coords_um=self.coords_um[rows],
            counts=None if self.counts is None else self.counts[rows],
            totals=None if self.totals is None else self.totals[rows],
            cells=None if self.cells is None else replace(self.cells, links=self.cells.links.take(rows)),
        )


@dataclass(frozen=True)
class CellsInside:
    """The cells of a slide, and which of them are in each location of a region.

    Attributes
    ----------
    region
        The cells, all that are on the image.
    links
        Ragged index from locations to rows of `region`, nearest to the location's centre first; of a region of cells,
        each itself.
    """

    region: Region
    links: Links


def as_slides(slides: SpatialData | Mapping[str, SpatialData]) -> dict[str, SpatialData]:
    """Accept one object or a mapping of them; names are text from here on."""
    from spatialdata import SpatialData

    if not isinstance(slides, Mapping):
        if not isinstance(slides, SpatialData):
            raise InputError(
                f"`slides` must be a SpatialData or a mapping of names to them, got {type(slides).__name__}."
            )
        return {_ONLY: slides}
    if not slides:
        raise InputError("`slides` is empty; give at least one SpatialData object.")
    for name, sdata in slides.items():
        if not isinstance(sdata, SpatialData):
            raise InputError(
                f"`slides` must map names to SpatialData objects, but {name!r} is a {type(sdata).__name__}."
            )
    return named(slides, what="slides")


def read_region(
    sdata: SpatialData,
    place: Place | None = None,
    *,
    slide: str = _ONLY,
    measured: bool = False,
    prefer: str | None = None,
) -> Region:
    """Find image, region and (with `measured`) counts of a slide, check them, and drop locations off the image."""
    place = Place() if place is None else place
    shapes_key, table_key, coordinate_system = place.shapes_key, place.table_key, place.coordinate_system
    with _naming(slide):
        image_key = find_image(sdata, place.image_key, coordinate_system=coordinate_system)
        if shapes_key is None and measured:
            shapes_key = _measured_region(sdata, table_key, prefer=prefer, coordinate_system=coordinate_system)
        shapes_key = find_region(sdata, shapes_key, prefer=prefer, coordinate_system=coordinate_system)
        if measured:
            table_key = find_table(sdata, shapes_key, table_key)
        pyramid = Pyramid.from_image(sdata.images[image_key], coordinate_system=coordinate_system)
        coords, instances = _locations(sdata, shapes_key, coordinate_system)
    at = np.arange(len(coords))
    counts = totals = var = None
    if measured and table_key is not None:
        rows, counts, var = _counts(sdata, slide, shapes_key, table_key, instances, layer=place.layer)
        coords, instances, at = coords[rows], instances[rows], at[rows]
        totals = targets.totals(counts)
    inside = locations_on(
        pyramid, sdata, coords, at, slide=slide, shapes_key=shapes_key, image_key=image_key,
        coordinate_system=coordinate_system,
    )  # fmt: skip
    keep = inside if totals is None else inside & (totals > 0)
    if totals is not None and (empty := int((totals == 0).sum())):
        logger.info("Slide %r: %d locations of %r without any count are skipped.", slide, empty, shapes_key)
    if not keep.any():
        raise InputError(
            f"Slide {slide!r} has no usable location in {shapes_key!r} (of {len(keep)}): all are without counts or off "
            "the image; check that counts, shapes and image belong together."
        )
    return Region(
        sdata=sdata,
        pyramid=pyramid,
        slide=slide,
        shapes_key=shapes_key,
        image_key=image_key,
        instances=instances[keep],
        coords_um=coords[keep],
        n_outside=int((~inside).sum()),
        coordinate_system=coordinate_system,
        counts=None if counts is None else counts[keep],
        totals=None if totals is None else totals[keep],
        var=var,
    )


def read_image(sdata: SpatialData, place: Place | None = None, *, slide: str = _ONLY) -> Region:
    """Return a slide of which there is only the image: points on its tissue stand for locations."""
    place = Place() if place is None else place
    coordinate_system = place.coordinate_system
    with _naming(slide):
        image_key = find_image(sdata, place.image_key, coordinate_system=coordinate_system)
        pyramid = Pyramid.from_image(sdata.images[image_key], coordinate_system=coordinate_system)
        points = tissue_points(pyramid, Lattice(IMAGE_PITCH_UM, hexagonal=False))
        if len(points) == 0:
            raise InputError(f"Image {image_key!r} shows no tissue; is it the H&E image, and is it in focus?")
    import pandas as pd

    return Region(
        sdata=sdata, pyramid=pyramid, slide=slide, shapes_key="", image_key=image_key,
        instances=pd.RangeIndex(len(points)), coords_um=points, coordinate_system=coordinate_system,
        edge_um=IMAGE_PITCH_UM,
    )  # fmt: skip


def has_counts(sdata: SpatialData) -> bool:
    """Whether an object holds any measured table."""
    return any(is_measured(table) and table_regions(table) for table in sdata.tables.values())


@contextmanager
def _naming(slide: str) -> Iterator[None]:
    """Name the slide that an error is about, where there are several."""
    try:
        yield
    except InputError as error:
        if slide != _ONLY:
            error.args = (f"Slide {slide!r}: {error}",)
        raise


def _locations(sdata: SpatialData, shapes_key: str, coordinate_system: str) -> tuple[NDArray[np.float64], pd.Index]:
    """Return centres and ids of a region; an empty one, NaN and repeated ids are refused."""
    coords, instances = centroids(sdata, shapes_key, coordinate_system=coordinate_system)
    if len(instances) == 0:
        raise InputError(
            f"Shapes {shapes_key!r} are empty; name others with `shapes_key`, or make some with stpred.pp.grid."
        )
    if (odd := ~np.isfinite(coords).all(axis=1)).any():
        raise InputError(
            f"{int(odd.sum())} of the shapes {shapes_key!r} have no finite centre: {listing(instances[odd])}."
        )
    if not instances.is_unique:
        repeated = instances[instances.duplicated()].unique()
        raise InputError(
            f"The index of shapes {shapes_key!r} is not unique: {listing(repeated)}; give every shape a name of its "
            "own."
        )
    return coords, instances


def _measured_region(
    sdata: SpatialData, table_key: str | None, *, prefer: str | None, coordinate_system: str
) -> str | None:
    """Return the slide's only region with counts, unless the preferred one is there or several could be meant."""
    if prefer is not None and prefer in sdata.shapes:
        return None
    tables = [table_key] if table_key in sdata.tables else [k for k, t in sdata.tables.items() if is_measured(t)]
    annotated = {region for t in tables for region in table_regions(sdata.tables[t])}
    with_counts = [k for k in shapes_in(sdata, coordinate_system) if k in annotated]
    return with_counts[0] if len(with_counts) == 1 else None


def _counts(
    sdata: SpatialData, slide: str, shapes_key: str, table_key: str, instances: pd.Index, *, layer: str | None
) -> tuple[NDArray[np.int64], csr_matrix, pd.DataFrame]:
    """Return rows of the shapes that were measured, their counts in that order, and the genes."""
    from scipy.sparse import csr_matrix

    table = sdata.tables[table_key]
    what = f"table {table_key!r} of slide {slide!r}"
    values = (
        table.X if layer is None else table.layers[key_in(layer, table.layers, what=f"layer of {what}", name="layer")]
    )
    if not table.var_names.is_unique:
        repeated = table.var_names[table.var_names.duplicated()].unique()
        raise InputError(
            f"The gene names of {what} are not unique: {listing(repeated)}; run var_names_make_unique() first."
        )
    table_rows, ids = table_instances(table, shapes_key)
    position = instances.get_indexer(ids)
    if (position < 0).all():
        raise InputError(
            f"No instance of {what} is in shapes {shapes_key!r}: the table has {listing(ids[:3])}, the shapes "
            f"{listing(instances[:3])}."
        )
    if (missing := int((position < 0).sum())) > 0:
        logger.warning("%d rows of %s have no shape in %r and are skipped.", missing, what, shapes_key)
    found = position >= 0
    counts = None if values is None else values[table_rows[found]]
    check_counts(counts, what=f"counts of {what}" if layer is None else f"layer {layer!r} of {what}")
    return position[found], csr_matrix(counts), table.var

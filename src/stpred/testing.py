"""Helpers for tests of stpred and of what is built on it: small slides, fitted models, a naive encoder, checks."""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stpred import datasets, models, tl
from stpred._core import keys
from stpred._core.checks import InputError
from stpred._core.elements import affine_to, apply_affine, centroids, mpp_of
from stpred._core.specs import TileSpec
from stpred._core.tables import build_table
from stpred.encoders import Encoder, EncoderCard
from stpred.encoders.composite import members_of

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stpred.models import Model

__all__ = [
    "MeanColour",
    "add_shapes",
    "affine_to",
    "apply_affine",
    "build_table",
    "centroids",
    "check_encoder",
    "check_model",
    "copy_slide",
    "fitted_model",
    "mpp_of",
    "picture_slide",
    "refused",
    "small_cohort",
    "small_slide",
]

SMALL = datasets.TissueSettings(size_um=(500.0, 500.0), n_genes=20)
MAX_MESSAGE = 800


class MeanColour:
    """An encoder whose features are a tile's mean red, green and blue, and whose patch tokens are those of its patches.

    Parameters
    ----------
    tile
        The tile that it sees.
    n_patches
        Patches along an edge of the tile; None: it has no patch tokens.

    Examples
    --------
    >>> import numpy as np
    >>> from stpred.testing import MeanColour
    >>> MeanColour().encode(np.full((1, 64, 64, 3), 7, np.uint8))
    array([[7., 7., 7.]], dtype=float32)
    """

    def __init__(self, tile: TileSpec | None = None, *, n_patches: int | None = None) -> None:
        dense = None if n_patches is None else (n_patches, n_patches, 3)
        self.card = EncoderCard("mean-colour", tile or TileSpec(0.5, 64), 3, dense=dense)
        self.n_tiles = 0
        if n_patches is not None:
            self.encode_dense = self._encode_patches

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map (n, size_px, size_px, 3) tiles to their (n, 3) mean colours; `n_tiles` counts them."""
        self.n_tiles += len(tiles)
        return tiles.mean(axis=(1, 2)).astype(np.float32)

    def _encode_patches(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert self.card.dense is not None
        self.n_tiles += len(tiles)
        n = self.card.dense[0]
        px = tiles.shape[1] // n
        return tiles.reshape(len(tiles), n, px, n, px, 3).mean(axis=(2, 4)).astype(np.float32)

    def to(self, device: str | None) -> MeanColour:
        """Return the encoder itself, which has no parameters."""
        return self


@lru_cache(maxsize=32)
def _tissue(settings: datasets.TissueSettings) -> datasets.Tissue:
    return datasets.make_tissue(settings)


def small_slide(*, bin_um: int | None = None, **settings: Unpack[datasets.TissueKeywords]) -> SpatialData:
    """Return a synthetic slide as an object of the caller's own; its tissue is made once per process.

    Parameters
    ----------
    bin_um
        As in :func:`stpred.datasets.toy`.
    **settings
        Fields of :class:`stpred.datasets.TissueSettings`; by default 500 x 500 um and 20 genes.

    Examples
    --------
    >>> from stpred.testing import small_slide
    >>> sorted(small_slide().shapes)
    ['cells', 'spots']
    """
    return datasets.toy(tissue=_tissue(replace(SMALL, **settings)), bin_um=bin_um)


def small_cohort(n_slides: int = 2, **settings: Unpack[datasets.TissueKeywords]) -> dict[str, SpatialData]:
    """Return slides of several donors as :func:`small_slide` makes them.

    Parameters
    ----------
    n_slides
        Number of slides.
    **settings
        As in :func:`small_slide`.

    Examples
    --------
    >>> from stpred.testing import small_cohort
    >>> list(small_cohort(2))
    ['donor0', 'donor1']
    """
    first = replace(SMALL, **settings)
    donors = range(first.donor, first.donor + n_slides)
    return {f"donor{d}": datasets.toy(tissue=_tissue(replace(first, donor=d))) for d in donors}


def copy_slide(slide: SpatialData, **elements: Mapping[str, Any]) -> SpatialData:
    """Return an object with the same elements and tables of its own.

    Parameters
    ----------
    slide
        A slide.
    **elements
        ``images=``, ``labels=``, ``shapes=``, ``points=`` or ``tables=`` to hold instead of the slide's.

    Examples
    --------
    >>> from stpred.testing import copy_slide, small_slide
    >>> slide = small_slide()
    >>> sorted(copy_slide(slide, tables={}).tables), sorted(slide.tables)
    ([], ['cells_counts', 'spots_counts'])
    """
    from spatialdata import SpatialData

    held: dict[str, Mapping[str, Any]] = {
        kind: dict(getattr(slide, kind)) for kind in ("images", "labels", "shapes", "points")
    }
    held["tables"] = {name: table.copy() for name, table in slide.tables.items()}
    return SpatialData(**(held | elements), attrs=dict(slide.attrs))


def picture_slide(pixels: NDArray[np.uint8], *, mpp: float = 1.0) -> SpatialData:
    """Return a slide that holds a picture and nothing else.

    Parameters
    ----------
    pixels
        (rows, columns, 3) RGB.
    mpp
        Micrometres per pixel.

    Examples
    --------
    >>> import numpy as np
    >>> from stpred.testing import picture_slide
    >>> list(picture_slide(np.zeros((40, 50, 3), np.uint8)).images)
    ['he']
    """
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Scale

    placed = {keys.UM: Scale([mpp, mpp], axes=("x", "y"))}
    image = Image2DModel.parse(pixels, dims=("y", "x", "c"), c_coords=["r", "g", "b"], transformations=placed)
    return SpatialData(images={keys.IMAGE: image})


def add_shapes(
    slide: SpatialData, name: str, shapes: Any, *, radius_um: float = 4.0, affine: ArrayLike | None = None
) -> None:
    """Add a region to a slide.

    Parameters
    ----------
    slide
        The slide to add to.
    name
        Key of the shapes.
    shapes
        A GeoDataFrame, shapely geometries, or (n, 2) centres of circles.
    radius_um
        Radius of points.
    affine
        (3, 3) from the shapes' coordinates to micrometres; None: they are micrometres.

    Examples
    --------
    >>> from stpred.testing import add_shapes, small_slide
    >>> slide = small_slide()
    >>> add_shapes(slide, "places", [[100.0, 120.0], [200.0, 220.0]])
    >>> len(slide.shapes["places"])
    2
    """
    import geopandas as gpd
    import shapely
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Affine, Identity

    if isinstance(shapes, gpd.GeoDataFrame):
        frame = shapes.copy()
        frame.attrs = {}
    else:
        geometry = np.asarray(shapes)
        frame = gpd.GeoDataFrame(geometry=shapely.points(geometry) if geometry.ndim == 2 else geometry)
    if "radius" not in frame and (frame.geom_type == "Point").all():
        frame["radius"] = radius_um
    placed = Identity() if affine is None else Affine(np.asarray(affine), ("x", "y"), ("x", "y"))
    slide.shapes[name] = ShapesModel.parse(frame, transformations={keys.UM: placed})


@lru_cache(maxsize=32)
def _fitted(model: Any, genes: tuple[str, ...] | str, encoder: str) -> Model:
    chosen = list(genes) if isinstance(genes, tuple) else genes
    return tl.train(small_cohort(), model, genes=chosen, shapes_key=keys.SPOTS, encoder=encoder, device="cpu")


def fitted_model(model: Any = "ridge", *, genes: tuple[str, ...] | str = "all", encoder: str = "intensity") -> Model:
    """Return a model of the spots of :func:`small_cohort`; it is trained once per process, each caller has a copy.

    Parameters
    ----------
    model
        Name or ``Config``.
    genes
        Names, or ``"all"``.
    encoder
        Name of an encoder; the default is quick.

    Examples
    --------
    >>> from stpred.testing import fitted_model
    >>> len(fitted_model(genes=("EPCAM", "COL1A2")).record.genes)
    2
    """
    return copy.deepcopy(_fitted(model, genes, encoder))


@contextmanager
def refused(*parts: str, error: type[Exception] = InputError) -> Iterator[None]:
    """Expect an error in the house's form: one sentence that says all `parts`.

    Parameters
    ----------
    *parts
        Texts that the message must hold: what is wrong, and what to do.
    error
        Its type.

    Raises
    ------
    AssertionError
        If there is no error, or its message is not such a sentence.

    Examples
    --------
    >>> import stpred as st
    >>> from stpred.testing import refused
    >>> with refused("n_genes", "got 0"):
    ...     st.datasets.toy(n_genes=0)
    """
    try:
        yield
    except error as caught:
        message = str(caught)
    else:
        raise AssertionError(f"No {error.__name__} was raised.")
    assert "\n" not in message, message
    assert "  " not in message, message
    assert not re.search(r"[.?!] [A-Z]|[.]{2}$", message), f"Not one sentence: {message}"
    assert len(message) < MAX_MESSAGE, message
    for part in parts:
        assert part in message, f"{part!r} is not in: {message}"


def check_encoder(encoder: Encoder) -> None:
    """Check what stpred relies on in an encoder: float32 rows of the card's width, each from its tile alone.

    Parameters
    ----------
    encoder
        The encoder, on the CPU.

    Raises
    ------
    AssertionError
        If it does not hold.

    Examples
    --------
    >>> import stpred as st
    >>> from stpred.testing import check_encoder
    >>> check_encoder(st.encoders.get("intensity"))
    """
    assert isinstance(encoder, Encoder)
    rng = np.random.default_rng(0)
    sizes = [member.card.tile.size_px for member in members_of(encoder)]
    each = [rng.integers(0, 256, (3, size, size, 3), dtype=np.uint8) for size in sizes]

    def encoded(rows: Any) -> NDArray[np.float32]:
        own: Any = [tiles[rows] for tiles in each]
        return np.asarray(encoder.encode(own if len(own) > 1 else own[0]))

    features = encoded(slice(None))
    assert features.shape == (3, encoder.card.width), features.shape
    assert features.dtype == np.float32, features.dtype
    assert np.isfinite(features).all()
    for k in range(3):
        np.testing.assert_allclose(encoded([k])[0], features[k], rtol=1e-4, atol=1e-5)


def check_model(config: Any) -> Model:
    """Check what stpred relies on in a model family: it trains, predicts finite values, and is the same after a save.

    Parameters
    ----------
    config
        The family's ``Config``; few epochs are enough.

    Returns
    -------
    Model
        The trained model.

    Raises
    ------
    AssertionError
        If it does not hold.

    Examples
    --------
    >>> import stpred as st
    >>> from stpred.testing import check_model
    >>> len(check_model(st.models.Mean.Config()).record.genes)
    20
    """
    slides = small_cohort(3)
    unseen = slides.pop("donor2")
    encoder = None if config.default_encoder.startswith("pixels") else "intensity"
    model = tl.train(slides, config, genes="all", shapes_key=keys.SPOTS, encoder=encoder, device="cpu")
    table: Any = tl.predict(unseen, model, shapes_key=keys.SPOTS, device="cpu", inplace=False)
    assert np.isfinite(table.X).all()
    assert table.X.dtype == np.float32
    with tempfile.TemporaryDirectory() as folder:
        models.save(model, Path(folder) / "model")
        again = models.load(Path(folder) / "model")
    second: Any = tl.predict(unseen, again, shapes_key=keys.SPOTS, device="cpu", inplace=False)
    np.testing.assert_array_equal(table.X, second.X)
    return model

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stpred import data, encoders
from stpred._core import keys, tables
from stpred._core.checks import InputError, listing
from stpred._core.elements import find_image, scale0, table_instances
from stpred._core.places import Place
from stpred._core.specs import TileSpec
from stpred.encoders.base import EncoderCard

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

TILE_SPEC = "tile_spec"
"""Where wsidata keeps what its tiles are, in ``attrs``."""

_CHECKED = 16
"""Tiles that are embedded anew, to see whether the features are those of the encoder."""

_SAME = 0.5
"""Share of the distance of two tiles' features that those of one tile may be apart: pixels are resampled otherwise."""


def add_lazyslide(
    sdata: SpatialData,
    wsi: SpatialData | None = None,
    *,
    tile_key: str = "tiles",
    feature_key: str | None = None,
    encoder: Any = None,
    shapes_key: str | None = None,
    image_key: str | None = None,
    coordinate_system: str = keys.UM,
) -> None:
    """Take tiles and features that LazySlide computed into a slide.

    LazySlide (and wsidata under it) keeps tiles in pixels of the slide's finest level. They become a region in the
    micrometre frame, through the transformation of the slide's image, and the feature table becomes one that
    :func:`stpred.tl.train`, :func:`stpred.tl.predict` and the other functions of tables take.

    Parameters
    ----------
    sdata
        A calibrated slide; it is changed in memory.
    wsi
        ``WSIData`` of the same image, or a SpatialData object read from its store. None: `sdata` itself, opened by
        ``wsidata.open_wsi(sdata)``.
    tile_key
        Its tiles.
    feature_key
        Its feature table, such as ``"gigapath_tiles"``; None takes the only one of these tiles.
    encoder
        The encoder that made the features (see :func:`stpred.encoders.get`), with the tile that LazySlide read. A few
        tiles are then embedded anew, and features that are not the encoder's are refused; training and prediction with
        this encoder use the table instead of reading tiles. None: the table is there to look at, and is not taken for
        any encoder's.
    shapes_key
        Name of the new region; None takes `tile_key`.
    image_key, coordinate_system
        H&E image and micrometre frame of `sdata`.

    Returns
    -------
    None. Writes the shapes, and ``{shapes}_feat_{encoder}`` with ``obsm["spatial"]`` in micrometres and provenance.

    Raises
    ------
    InputError
        If there are no such tiles or features, the images differ in shape, ids do not match, or the encoder has
        another tile, width or features.

    References
    ----------
    Zheng, Abila, Chrenkova, Winkler and Rendeiro, LazySlide, 2025.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(size_um=(400, 400), n_genes=20)
    >>> try:
    ...     st.io.add_lazyslide(slide)
    ... except st.InputError as error:
    ...     str(error).startswith("There are no tiles 'tiles'")
    True
    """
    source = sdata if wsi is None else wsi
    if tile_key not in source.shapes:
        raise InputError(f"There are no tiles {tile_key!r}; the object has the shapes {listing(source.shapes)}.")
    image_key = find_image(sdata, image_key, coordinate_system=coordinate_system)
    feature_key = _feature_table(source, tile_key, feature_key)
    theirs = source.tables[feature_key]
    region_key = tile_key if shapes_key is None else shapes_key
    tiles = source.shapes[tile_key]
    ids = _ids(tiles)
    rows, found = _rows(theirs, tile_key)
    at = ids.get_indexer(found)
    if (at < 0).any() or not found.is_unique:
        raise InputError(
            f"Table {feature_key!r} names {int((at < 0).sum())} tiles that {tile_key!r} does not hold, or some twice."
        )
    name = feature_key.removesuffix(f"_{tile_key}")
    used = None if encoder is None else encoders.get(encoder)
    tile = _tile(source, tile_key)
    if used is not None:
        _check_card(used.card, tile, theirs.n_vars, feature_key)
    key = keys.features(region_key, name if used is None else used.card.name)
    tables.check_writable(sdata, key)
    if region_key in sdata.shapes and not (source is sdata and region_key == tile_key):
        raise InputError(f"The slide has shapes {region_key!r} already; choose another `shapes_key`.")
    tables.check_name(sdata, region_key, kind="shapes")
    shapes = _in_um(tiles, ids, _pixels_to_um(sdata, image_key, wsi, coordinate_system), coordinate_system)
    before = sdata.shapes.get(region_key)
    _put(sdata, region_key, shapes)
    try:
        table = _table(sdata, Place(region_key, image_key, None, None, coordinate_system), theirs, rows, found, used,
                       name=name, tile=tile, feature_key=feature_key)  # fmt: skip
    except InputError:
        _put(sdata, region_key, before)
        raise
    tables.put_table(sdata, key, table)


def _put(sdata: SpatialData, key: str, shapes: Any) -> None:
    if key in sdata.shapes:
        del sdata.shapes[key]
    if shapes is not None:
        sdata.shapes[key] = shapes


def _feature_table(source: SpatialData, tile_key: str, given: str | None) -> str:
    """Return the name of the table of features: the given one, or the only one of these tiles."""
    regions = {k: t.uns.get("spatialdata_attrs", {}).get("region") for k, t in source.tables.items()}
    of_tiles = [k for k, r in regions.items() if r in (tile_key, [tile_key]) and keys.UNS not in source.tables[k].uns]
    if given is not None:
        if given not in of_tiles:
            raise InputError(f"There is no feature table {given!r} of {tile_key!r}; there are {listing(of_tiles)}.")
        return given
    if len(of_tiles) != 1:
        raise InputError(f"{len(of_tiles)} tables annotate {tile_key!r}: {listing(of_tiles)}; name one: `feature_key`.")
    return of_tiles[0]


def _ids(tiles: Any) -> pd.Index:
    import pandas as pd

    return pd.Index(tiles["tile_id"] if "tile_id" in tiles.columns else tiles.index)


def _rows(table: AnnData, tile_key: str) -> tuple[NDArray[np.int64], pd.Index]:
    rows, found = table_instances(table, tile_key)
    return np.asarray(rows), found


def _tile(source: SpatialData, tile_key: str) -> TileSpec | None:
    """Return what LazySlide read for each tile, where the object says it."""
    said = dict(source.attrs.get(TILE_SPEC, {})).get(tile_key) or {}
    if said.get("mpp") is None or said.get("width") is None:
        return None
    if said.get("height", said["width"]) != said["width"]:
        raise InputError(
            f"The tiles {tile_key!r} are {said['width']} x {said['height']} px; only squares are read here."
        )
    return TileSpec(float(said["mpp"]), int(said["width"]))


def _check_card(card: EncoderCard, tile: TileSpec | None, width: int, feature_key: str) -> None:
    if card.width != width:
        raise InputError(f"Table {feature_key!r} has {width} features, the encoder {card.name!r} gives {card.width}.")
    if tile is not None and (tile.size_px != card.tile.size_px or abs(tile.mpp / card.tile.mpp - 1) > 0.01):
        raise InputError(
            f"The features in {feature_key!r} are of {tile}, and the encoder {card.name!r} was made for {card.tile}; "
            f"make it with stpred.encoders.get({card.name!r}, tile=stpred.TileSpec({tile.mpp:g}, {tile.size_px}))."
        )


def _pixels_to_um(sdata: SpatialData, image_key: str, wsi: Any, coordinate_system: str) -> Any:
    """Return the transformation from pixels of the slide's finest level to micrometres."""
    from spatialdata.transformations import Scale, Sequence, get_transformation

    image = sdata.images[image_key]
    to_um = get_transformation(image, coordinate_system)
    properties = getattr(wsi, "properties", None)
    if properties is None or getattr(properties, "shape", None) is None:
        return to_um
    finest = scale0(image)
    ours = np.array([finest.sizes["y"], finest.sizes["x"]], dtype=float)
    theirs = np.array(properties.shape[:2], dtype=float)
    factors = ours / theirs
    if abs(factors[0] / factors[1] - 1) > 0.01:
        raise InputError(
            f"Image {image_key!r} is {ours[1]:g} x {ours[0]:g} px and the other slide {theirs[1]:g} x {theirs[0]:g}, "
            "so they are not of one image."
        )
    return Sequence([Scale(factors[::-1], axes=("x", "y")), to_um]) if abs(factors - 1).max() > 1e-6 else to_um


def _in_um(tiles: Any, ids: pd.Index, to_um: Any, coordinate_system: str) -> Any:
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import get_transformation

    own = dict(get_transformation(tiles, get_all=True))
    frame = tiles.copy().set_index(ids.rename(None))
    frame.attrs = {}
    return ShapesModel.parse(frame, transformations=own | {coordinate_system: to_um})


def _table(
    sdata: SpatialData,
    place: Place,
    theirs: AnnData,
    rows: NDArray[np.int64],
    ids: pd.Index,
    used: Any,
    *,
    name: str,
    tile: TileSpec | None,
    feature_key: str,
) -> AnnData:
    """Return the table of the tiles that lie on the image."""
    import pandas as pd

    region = data.read_region(sdata, place)
    at = ids.get_indexer(region.instances)
    kept = at >= 0
    region = region.take(np.flatnonzero(kept))
    x = theirs.X[rows[at[kept]]]
    values = np.asarray(x.todense() if hasattr(x, "todense") else x, dtype=np.float32)
    if not np.isfinite(values).all():
        raise InputError(f"Table {feature_key!r} has features that are not finite.")
    if used is not None:
        _check_features(values, region, used, feature_key)
    card = EncoderCard(name, tile or TileSpec(), values.shape[1], source="LazySlide", revision="unknown",
                       licence="unknown") if used is None else used.card  # fmt: skip
    names = card.feature_names or [f"{keys.slug(card.name)}_{i}" for i in range(values.shape[1])]
    return tables.build_table(
        values,
        shapes_key=region.shapes_key,
        instances=region.instances,
        var=pd.DataFrame(index=pd.Index(list(names), dtype=object)),
        spatial_um=region.coords_um,
        provenance={
            "kind": "features",
            "encoder": card.to_dict(),
            "tile": None if tile is None and used is None else card.tile.to_dict(),
            "image": region.pyramid.fingerprint,
            "image_key": region.image_key,
            "mpp": region.pyramid.mpp,
            "digest": data.digest(values),
            "computed_by": "LazySlide",
            "of": feature_key,
            "left_out": {"off_image": region.n_outside},
            "versions": tables.package_versions(),
        },
    )


def _check_features(values: NDArray[np.float32], region: data.Region, used: Any, feature_key: str) -> None:
    """Refuse features that are not the encoder's: a few tiles must be nearer to themselves than to others."""
    some = np.sort(np.random.default_rng(0).choice(len(values), min(_CHECKED, len(values)), replace=False))
    own = np.asarray(data.embed(region, used, region.coords_um[some]), dtype=np.float64)
    apart = np.linalg.norm(own[:, None] - values[some][None].astype(np.float64), axis=2)
    same = np.diag(apart)
    others = apart[~np.eye(len(some), dtype=bool)]
    if np.mean(same) > _SAME * (np.mean(others) if len(others) else np.linalg.norm(own)):
        raise InputError(
            f"The features in {feature_key!r} are not those of the encoder {used.card.name!r} on this image: tiles "
            f"that were embedded anew are {np.mean(same):.3g} apart from them, and two tiles are "
            f"{np.mean(others):.3g} apart. Other weights, another tile, or another image?"
        )

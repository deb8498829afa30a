from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred import data, encoders
from stpred._core import keys, tables
from stpred._core.checks import one_of
from stpred._core.places import Place
from stpred._core.specs import TileSpec

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


def features(
    sdata: SpatialData,
    encoder: Any = "morphology",
    *,
    shapes_key: str | None = None,
    image_key: str | None = None,
    tile: TileSpec | Mapping[str, float] | None = None,
    key_added: str | None = None,
    dtype: str = "float32",
    device: str | None = None,
    coordinate_system: str = keys.UM,
    inplace: bool = True,
) -> AnnData | None:
    """Compute image features for every location of a region; `tl.train` and `tl.predict` reuse them.

    Parameters
    ----------
    sdata
        Object with a calibrated H&E image.
    encoder
        Name (see :func:`stpred.encoders.list`), encoder, or ``torch.nn.Module``; or a list of these, whose features are
        written side by side.
    shapes_key
        Region; None takes the only one.
    image_key
        H&E image; None takes the one in the micrometre frame.
    tile
        :class:`~stpred.TileSpec`; None takes the encoder's own.
    key_added
        Name of the table; None makes ``{shapes}_feat_{encoder}``.
    dtype
        ``"float32"`` or ``"float16"``.
    device
        Where the encoder runs; None takes a GPU if there is one.
    coordinate_system
        The slide's micrometre frame.
    inplace
        With False the table is returned and the object is left alone.

    Returns
    -------
    None, or with ``inplace=False`` the AnnData: ``X`` (n_instances, width) features, ``var_names`` feature names,
    ``obsm["spatial"]`` float64 centroids in micrometres, ``uns["stpred"]`` a JSON string with encoder, tile and image.

    Raises
    ------
    InputError
        If there is no (or more than one) H&E image, it is not calibrated or too coarse for the tile, the region or
        the encoder is unknown, or an encoder cannot be made.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(size_um=(500, 500), n_genes=20)
    >>> st.pp.features(slide, shapes_key="spots")
    >>> slide.tables["spots_feat_morphology"].n_obs == len(slide.shapes["spots"])
    True
    """
    import pandas as pd

    one_of(dtype, ("float32", "float16"), name="dtype")
    used = encoders.get(encoder, tile=None if tile is None else TileSpec.parse(tile), device=device)
    region = data.read_region(
        sdata, Place(shapes_key=shapes_key, image_key=image_key, coordinate_system=coordinate_system)
    )
    key = keys.features(region.shapes_key, used.card.name) if key_added is None else key_added
    if inplace:
        tables.check_writable(sdata, key)
    data.check_resolution(region, used, what=f"Image {region.image_key!r}")
    values = data.embed(region, used, region.coords_um)
    names = used.card.feature_names or [f"{keys.slug(used.card.name)}_{i}" for i in range(used.card.width)]
    values = values.astype(np.dtype(dtype))
    table = tables.build_table(
        values,
        shapes_key=region.shapes_key,
        instances=region.instances,
        var=pd.DataFrame(index=pd.Index(list(names), dtype=object)),
        spatial_um=region.coords_um,
        provenance={
            "kind": "features",
            "encoder": used.card.to_dict(),
            "tile": used.card.tile.to_dict(),
            "image": region.pyramid.fingerprint,
            "image_key": region.image_key,
            "mpp": region.pyramid.mpp,
            "digest": data.digest(values),
            "left_out": {"off_image": region.n_outside},
            "versions": tables.package_versions(),
        },
    )
    if not inplace:
        return table
    tables.put_table(sdata, key, table)
    return None

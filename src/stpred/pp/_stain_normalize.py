"""H&E images with the colours of another slide."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stpred import rasters
from stpred._core import keys, tables
from stpred._core.checks import InputError, one_of, warn
from stpred._core.elements import affine_to, find_image, need_sdata, normalised_from, rgb_problem
from stpred._image.appearance import METHODS, ColourMap, StainReference
from stpred.pp._stain_reference import MPP, measure, resolve
from stpred.tiles import Pyramid

if TYPE_CHECKING:
    from spatialdata import SpatialData

_COARSEST_PX = 1024


def stain_normalize(
    sdata: SpatialData,
    *,
    method: str = "macenko",
    reference: SpatialData | Mapping[str, Any] | StainReference | str | Path | None = None,
    image_key: str | None = None,
    key_added: str | None = None,
    coordinate_system: str = keys.UM,
    seed: int = 0,
    inplace: bool = True,
) -> Any:
    """Give an H&E image the colours of another slide: a lazy image beside the old one, which verbs then use.

    Colours are measured on a sample of the tissue; the pixels themselves are mapped when they are read. Where verbs
    look for the H&E image by themselves they take the normalised one instead of the image that it was made from; name
    the latter with `image_key` where it is wanted. Normalise every slide of a study, training and new ones, to one
    `reference`: a model remembers that of its training slides (``model.record.training["normalised"]``), and warns of
    an image that was not normalised so.

    Parameters
    ----------
    sdata
        Object with a calibrated H&E image.
    method
        ``"macenko"``: the amounts of haematoxylin and eosin (Macenko et al. 2009), scaled to the 99th percentiles of
        the reference and shown in its stain vectors; what is neither keeps its amount. ``"reinhard"``: mean and
        standard deviation of l, alpha and beta over tissue (Reinhard et al. 2001). ``"moments"``: the linear map of
        optical densities that gives them the second moments of the reference and changes colours least (Pitie &
        Kokaram 2007); it needs no stain vectors.
    reference
        Another slide; several by name, taken together; a :class:`StainReference`, its dictionary, or its JSON file.
        None takes colours that stpred states, the mean of public H&E slides of several scanners.
    image_key
        The image to normalise; None takes the one in the micrometre frame, and of a slide that was normalised already
        the image that this began from.
    key_added
        Name of the new image; None makes ``{image}_{method}``.
    coordinate_system
        The slide's micrometre frame.
    seed
        Which places on the tissue are looked at.
    inplace
        With False the image is returned and the object is left alone.

    Returns
    -------
    None, or with ``inplace=False`` the image. Writes ``sdata.images[key_added]``: dims c, y, x, uint8, multiscale, with
    chunks and transformations of the old one, in memory; and what it was made from, how and to what reference into
    ``sdata.attrs["stpred"][key_added]``, a JSON string.

    Raises
    ------
    InputError
        If there is no calibrated H&E image, too little tissue on it, the method or reference is unknown, or the stains
        cannot be told apart (``"macenko"``).

    Notes
    -----
    Colours are measured at 1 um per pixel, or at the resolution of the coarser of slide and reference, relative to each
    slide's own glass, which becomes the glass of the reference. Pixels that are black in all channels stay as they
    are. The object can be written and read as any other; then the pixels are computed and stored.

    References
    ----------
    Macenko et al. 2009, A method for normalizing histology slides for quantitative analysis, ISBI 2009, 1107-1110.
    Reinhard et al. 2001, Color transfer between images, IEEE Comput. Graph. Appl. 21(5), 34-41.
    Pitie & Kokaram 2007, The linear Monge-Kantorovitch linear colour mapping for example-based colour transfer, CVMP.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(size_um=(500, 500), n_genes=20)
    >>> other = st.datasets.toy(size_um=(500, 500), n_genes=20, donor=1)
    >>> st.pp.stain_normalize(slide, reference=other)
    >>> sorted(slide.images)
    ['he', 'he_macenko']
    """
    one_of(method, METHODS, name="method")
    source = _source(sdata, image_key, coordinate_system)
    key = f"{source}_{method}" if key_added is None else key_added
    if inplace:
        _check_key(sdata, key, source)
    pyramid = Pyramid.from_image(sdata.images[source], coordinate_system=coordinate_system)
    wanted = resolve(reference, like=pyramid, seed=seed)
    mpp = max(MPP, wanted.mpp, pyramid.mpp)
    found = measure(pyramid, what=f"image {source!r}", method=method, mpp=mpp, seed=seed)
    image = _mapped(sdata.images[source], ColourMap(found, wanted, method=method))
    if not inplace:
        return image
    if key in sdata.images:
        warn(f"Image {key!r} existed and is overwritten in memory.")
        del sdata.images[key]
    sdata.images[key] = image
    provenance = {
        "kind": keys.NORMALISED,
        "source": source,
        "method": method,
        "reference": wanted.to_dict(),
        "measured": found.to_dict(),
        "image": pyramid.fingerprint,
        "versions": tables.package_versions(),
    }
    rasters.note(sdata, key, json.dumps(provenance))
    return None


def _source(sdata: SpatialData, image_key: str | None, coordinate_system: str) -> str:
    """Return the image to normalise: the named one, or that from which all in the frame began."""
    need_sdata(sdata)
    if image_key is None:
        began = set()
        for key, image in sdata.images.items():
            if rgb_problem(image) is None and affine_to(image, coordinate_system) is not None:
                while (before := normalised_from(sdata, key)) is not None:
                    key = before
                began.add(key)
        image_key = began.pop() if len(began) == 1 else None
    return find_image(sdata, image_key, coordinate_system=coordinate_system)


def _check_key(sdata: SpatialData, key: str, source: str) -> None:
    """Refuse a name that is taken by what was not normalised here."""
    tables.check_name(sdata, key, kind="images")
    if key == source:
        raise InputError(f"`key_added`={key!r} is the image itself; choose another name, or leave it out.")
    if key in sdata.images and normalised_from(sdata, key) is None:
        raise InputError(f"`key_added`={key!r} is an image that stpred did not normalise; choose another name.")


def _mapped(image: Any, colours: ColourMap) -> Any:
    """Return a lazy copy of an image element whose pixels are mapped chunk by chunk, level by level."""
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import get_transformation, set_transformation
    from xarray import DataTree

    placed = get_transformation(image, get_all=True)
    if not isinstance(image, DataTree):
        data = _lazily(image.transpose("c", "y", "x").data, colours)
        smaller = 0
        while min(data.shape[1:]) >> smaller > 1 and max(data.shape[1:]) >> smaller > _COARSEST_PX:
            smaller += 1
        return Image2DModel.parse(
            data, dims=("c", "y", "x"), c_coords=["r", "g", "b"], transformations=dict(placed),
            scale_factors=[2] * smaller or None,
        )  # fmt: skip
    nodes = {}
    for name, node in image.children.items():
        array = next(iter(node.ds.values())).transpose("c", "y", "x")
        nodes[name] = array.copy(data=_lazily(array.data, colours)).drop_attrs().to_dataset(name="image")
    tree = DataTree.from_dict(nodes)
    set_transformation(tree, dict(placed), set_all=True)
    Image2DModel.validate(tree)
    return tree


def _lazily(pixels: Any, colours: ColourMap) -> Any:
    """Return a (3, h, w) dask array of mapped pixels; a chunk holds all three channels."""
    import dask.array as da
    import numpy as np

    array = da.asarray(pixels).rechunk({0: 3})
    return array.map_blocks(colours, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))

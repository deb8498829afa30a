from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stpred._core.checks import InputError, positive
from stpred._core.elements import affine_to, apply_affine
from stpred.tl._robustness.stress import COLUMNS, Job, Withheld, copied, generator_of, score_changes, several, share_of

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stpred.models import BaseConfig, Model

_MARK = 32


def occluded_tiles(
    slides: SpatialData | Mapping[str, SpatialData],
    model: str | BaseConfig | type[Model] = "xfuse",
    *,
    shares: Sequence[float] = (0, 0.25, 0.5),
    tile_um: float = 200.0,
    share: float = 0.2,
    n_genes: int = 100,
    seed: int = 0,
    shapes_key: str | None = None,
    table_key: str | None = None,
    intervals: Sequence[float] = (0.5, 0.9),
    n_samples: int = 100,
    **training: Any,
) -> pd.DataFrame:
    """Hide parts of the training images, and score the model at withheld spots on the images as they are.

    It says how much artefacts such as folds, ink and torn tissue cost, and whether a model needs the image at all. The
    model is trained once for every share.

    Parameters
    ----------
    slides
        As in :func:`stpred.tl.withheld_spots`; they are left as they are.
    model
        Family name, class or ``Config`` of the model that is trained.
    shares
        Shares of the squares of each training image that are painted in the colour of its empty glass, at random; what
        is hidden in a smaller share is also hidden in a larger one. Nothing is painted before it is read.
    tile_um
        Edge of the squares in micrometres.
    share, n_genes, seed, shapes_key, table_key, intervals, n_samples, **training
        As in :func:`stpred.tl.withheld_spots`, to which a share of 0 is the same; the same spots are withheld.

    Returns
    -------
    As of :func:`stpred.tl.withheld_spots`, with a column ``occluded_share``.

    Raises
    ------
    InputError
        As in :func:`stpred.tl.withheld_spots`, or if the squares are too large for an image.

    References
    ----------
    Bergenstråhle et al., Super-resolved spatial transcriptomics by deep data fusion, Nature Biotechnology 40 (2022).

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(size_um=(600, 600), n_genes=20)
    >>> scores = st.tl.occluded_tiles(slide, "ridge", shares=(0, 0.5), n_genes=5, shapes_key="spots")
    >>> scores["occluded_share"].unique().tolist()
    [0.0, 0.5]
    """
    hidden = [share_of(s, name="shares", least=0.0) for s in several(shares, name="shares")]
    tile_um = positive(tile_um, name="tile_um", unit="um")
    job = Job.of(
        model, training, seed=seed, shapes_key=shapes_key, table_key=table_key,
        n_genes=n_genes, intervals=intervals, n_samples=n_samples,
    )  # fmt: skip
    found = score_changes(slides, share, job, hidden, lambda w, h: _hidden(w, h, tile_um, job), column="occluded_share")
    return found.assign(check="occluded_tiles")[[*COLUMNS, "occluded_share"]]


def _hidden(withheld: Withheld, share: float, tile_um: float, job: Job) -> SpatialData:
    """Return what is trained on, with a share of its image painted over."""
    region = withheld.region
    x0, y0, x1, y1 = region.pyramid.bounds_um
    shape = int(np.ceil((y1 - y0) / tile_um - 1e-9)), int(np.ceil((x1 - x0) / tile_um - 1e-9))
    n = shape[0] * shape[1]
    n_hidden = round(share * n)
    if not 0 < n_hidden < n:
        raise InputError(
            f"The image of slide {region.slide!r} has {n} squares of {tile_um:g} um, of which a share of {share:g} is "
            f"{n_hidden}; choose a smaller `tile_um`."
        )
    hide = np.zeros(n, dtype=bool)
    hide[generator_of(job.seed, region.slide, 3).permutation(n)[:n_hidden]] = True
    image = _painted(
        withheld.training.images[region.image_key],
        hide.reshape(shape),
        colour=region.pyramid.background,
        corner_um=(x0, y0),
        tile_um=tile_um,
        coordinate_system=region.coordinate_system,
    )
    return copied(withheld.training, images={region.image_key: image}, tables=withheld.training.tables)


def _painted(
    image: Any,
    hide: NDArray[np.bool_],
    *,
    colour: tuple[int, int, int],
    corner_um: tuple[float, float],
    tile_um: float,
    coordinate_system: str,
) -> Any:
    """Return a single- or multiscale image element in which the (rows, columns) of squares to `hide` are painted."""
    from xarray import DataTree

    affine = np.asarray(affine_to(image, coordinate_system))
    scales = image.children if isinstance(image, DataTree) else {}
    found = {k: next(iter(n.ds.values())) for k, n in scales.items()} or {"": image}
    full = next(iter(found.values()))
    painted: dict[str, Any] = {}
    for k, array in found.items():
        # The borders of all scales coincide, so a pixel is as large as its share of the whole.
        scale = np.diag([full.sizes["x"] / array.sizes["x"], full.sizes["y"] / array.sizes["y"], 1.0])
        painted[k] = _paint(array, affine @ scale, hide, colour, corner_um, tile_um, marked=array is full)
    if not scales:
        return painted[""]
    nodes = {k: n.to_dataset().assign({next(iter(n.ds)): painted[k]}) for k, n in scales.items()}
    return DataTree.from_dict({"/": image.to_dataset(), **nodes})


def _paint(
    array: Any,
    to_um: NDArray[np.float64],
    hide: NDArray[np.bool_],
    colour: tuple[int, int, int],
    corner_um: tuple[float, float],
    tile_um: float,
    *,
    marked: bool,
) -> Any:
    """Return a (c, y, x) array that is painted, chunk by chunk, when it is read."""
    import dask.array as da

    paint = np.array(colour).reshape(3, 1, 1)
    digest = hashlib.sha256(hide.tobytes() + repr((hide.shape, tile_um)).encode()).digest()
    bits = np.unpackbits(np.frombuffer(digest, dtype=np.uint8))[:_MARK]

    def block(pixels: NDArray[Any], block_info: Any = None) -> NDArray[Any]:
        (_, _), (y0, y1), (x0, x1) = block_info[0]["array-location"]
        y, x = np.mgrid[y0:y1, x0:x1]
        um = apply_affine(to_um, np.stack([x.ravel() + 0.5, y.ravel() + 0.5], axis=1))
        at = np.floor((um - corner_um) / tile_um).astype(np.int64)
        rows, columns = at[:, 1].clip(0, hide.shape[0] - 1), at[:, 0].clip(0, hide.shape[1] - 1)
        out = np.where(hide[rows, columns].reshape(y.shape), paint, pixels).astype(pixels.dtype)
        if marked and y0 == 0 and x0 < _MARK:
            # An image is known by a sample of its pixels, which the squares may miss: the last bits of the first ones
            # make sure that it is not taken for the image as it was, whose features may be kept.
            n = min(_MARK, x1) - x0
            out[:, 0, :n] ^= bits[x0 : x0 + n].astype(pixels.dtype)
        return out

    pixels = array.transpose("c", "y", "x").data
    pixels = pixels if isinstance(pixels, da.Array) else da.from_array(np.asarray(pixels), chunks=(3, 1024, 1024))
    pixels = pixels.rechunk({0: 3})
    return array.transpose("c", "y", "x").copy(data=da.map_blocks(block, pixels, dtype=pixels.dtype, meta=pixels._meta))

"""Tissue whose expression changes below the size of a spot, with the truth of every pixel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from stpred._core import keys
from stpred._core.checks import positive, whole

if TYPE_CHECKING:
    from spatialdata import SpatialData

N_SUBTYPES = 3
MARKERS = 8
"""Genes of each subtype that are higher in it."""

_FOLD = 10.0
_ODDS = 1.0
"""Variance of a count beyond its mean, in parts of the mean: negative binomials of one success probability."""
_COLOURS = np.array([[190.0, 130.0, 175.0], [225.0, 165.0, 195.0], [170.0, 125.0, 190.0]])


def toy_subtypes(
    *,
    seed: int = 0,
    size_um: float = 3000.0,
    mpp: float = 4.0,
    grain_um: float = 45.0,
    pitch_um: float = 150.0,
    spot_um: float = 100.0,
    n_genes: int = 60,
    depth: float = 3000.0,
) -> SpatialData:
    """Make a slide of three intermingled tissue types, finer than the spots that measure it.

    Parameters
    ----------
    seed
        Of everything random; slides of different seeds share the types' colours, textures and profiles.
    size_um
        Edge of the square slide.
    mpp
        Micrometres per pixel of the image.
    grain_um
        Width of the patches of one type.
    pitch_um, spot_um
        Distance and diameter of the spots on a square grid.
    n_genes
        Genes: ``TYPE0_1`` to ``TYPE2_8`` are markers, eight of each type; the rest are alike everywhere.
    depth
        Mean counts of a spot.

    Returns
    -------
    A slide with image ``he``, shapes ``spots``, table ``spots_counts``, and labels ``subtype``: each pixel's type, 1 to
    3. The table's ``obsm["shares"]`` holds the (n, 3) shares of the types in each spot, ``varm["profile"]`` the
    (n_genes, 3) shares of the genes in the counts of each.

    Raises
    ------
    InputError
        If a size, a resolution or a number is not positive.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy_subtypes(size_um=1000)
    >>> sorted(slide.labels), slide.tables["spots_counts"].n_vars
    (['subtype'], 60)
    """
    from stpred.links import within

    edge = int(positive(size_um, name="size_um") / positive(mpp, name="mpp"))
    n_genes = max(whole(n_genes, name="n_genes"), N_SUBTYPES * MARKERS)
    rng = np.random.default_rng([seed, 17])
    fields = np.stack([gaussian_filter(rng.normal(size=(edge, edge)), grain_um / mpp / 2) for _ in range(N_SUBTYPES)])
    kind = fields.argmax(axis=0)
    image = _image(kind, rng)
    profile = _profiles(n_genes)
    centres = np.arange(pitch_um / 2, size_um - spot_um / 2, pitch_um)
    xy = np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)
    pixels = (np.stack(np.meshgrid(np.arange(edge), np.arange(edge)), axis=-1).reshape(-1, 2) + 0.5) * mpp
    shares = within(xy, spot_um / 2, pixels).mean(np.eye(N_SUBTYPES)[kind.ravel()])
    library = depth * rng.gamma(20.0, 1 / 20.0, size=len(xy))
    counts = rng.poisson(rng.gamma(shares @ profile.T * library[:, None] / _ODDS) * _ODDS)
    return _build_slide(image, kind, xy, spot_um / 2, counts, shares=shares, profile=profile, mpp=mpp)


def _profiles(n_genes: int) -> NDArray[np.float64]:
    """Return the (n_genes, 3) shares of genes in the counts of each type, the same for every slide."""
    rng = np.random.default_rng(5)
    base = rng.gamma(2.0, 1.0, size=n_genes)
    profile = np.repeat(base[:, None], N_SUBTYPES, axis=1)
    for k in range(N_SUBTYPES):
        profile[k * MARKERS : (k + 1) * MARKERS, k] *= _FOLD
    return np.asarray(profile / profile.sum(axis=0))


def _image(kind: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return (h, w, 3) pixels: each type's colour, with grains of its own coarseness."""
    noise = np.stack([gaussian_filter(rng.normal(size=kind.shape), s) for s in (0.7, 1.6, 0.7)])
    noise /= noise.std(axis=(1, 2), keepdims=True)
    texture = np.take_along_axis(noise, kind[None], axis=0)[0]
    strength = np.array([22.0, 14.0, 30.0])[kind]
    pixels = _COLOURS[kind] + (texture * strength)[..., None] + rng.normal(scale=6.0, size=(*kind.shape, 3))
    return np.clip(gaussian_filter(pixels, (0.6, 0.6, 0)), 0, 255).astype(np.uint8)


def _build_slide(
    image: NDArray[np.uint8],
    kind: NDArray[np.int64],
    xy: NDArray[np.float64],
    radius: float,
    counts: NDArray[np.int64],
    *,
    mpp: float,
    shares: NDArray[np.float64],
    profile: NDArray[np.float64],
) -> SpatialData:
    import anndata as ad
    import geopandas as gpd
    import pandas as pd
    import shapely
    from scipy.sparse import csr_matrix
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Identity, Scale

    place = {keys.UM: Scale([mpp, mpp], axes=("x", "y"))}
    index = [f"spot{i}" for i in range(len(xy))]
    shapes = gpd.GeoDataFrame({"radius": np.full(len(xy), radius)}, geometry=shapely.points(xy), index=index)
    markers = [f"TYPE{k}_{i + 1}" for k in range(N_SUBTYPES) for i in range(MARKERS)]
    genes = [*markers, *(f"EVEN{i + 1}" for i in range(counts.shape[1] - len(markers)))]
    obs = pd.DataFrame({"region": pd.Categorical(["spots"] * len(xy)), "instance_id": index}, index=index)
    table = ad.AnnData(csr_matrix(counts.astype(np.float32)), obs=obs, var=pd.DataFrame(index=genes))
    table.obsm["spatial"], table.obsm["shares"] = xy, shares
    table.varm["profile"] = profile
    return SpatialData(
        images={"he": Image2DModel.parse(image.transpose(2, 0, 1), dims=("c", "y", "x"), c_coords=["r", "g", "b"],
                                         transformations=place)},
        labels={"subtype": Labels2DModel.parse((kind + 1).astype(np.int16), dims=("y", "x"), transformations=place)},
        shapes={"spots": ShapesModel.parse(shapes, transformations={keys.UM: Identity()})},
        tables={"spots_counts": TableModel.parse(table, region="spots", region_key="region",
                                                 instance_key="instance_id")},
    )  # fmt: skip

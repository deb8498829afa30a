from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stpred import data, encoders
from stpred._core import keys, tables
from stpred._core.checks import InputError, positive, whole
from stpred._core.elements import need_sdata
from stpred._core.places import Place
from stpred.inference.predictor import encoder_for, region_for, trained_model
from stpred.models import Model

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from stpred.encoders.base import Encoder

logger = logging.getLogger("stpred")

CLUSTER = "cluster"
"""Column of ``obs`` with the clusters."""


def latent(
    sdata: SpatialData,
    encoder: Any = "morphology",
    *,
    shapes_key: str | None = None,
    n_components: int = 20,
    n_neighbors: int = 15,
    resolution: float = 1.0,
    umap: bool = False,
    seed: int = 0,
    key_added: str | None = None,
    image_key: str | None = None,
    device: str | None = None,
    coordinate_system: str = keys.UM,
    inplace: bool = True,
) -> AnnData | None:
    """Embed the tiles of a region and cluster them by how they look: morphology without any gene.

    Features are standardised over the locations, reduced by PCA, linked to their nearest neighbours and clustered by
    the Leiden algorithm (scanpy).

    Parameters
    ----------
    sdata
        Object with a calibrated H&E image.
    encoder
        Name of an encoder (see :func:`stpred.encoders.list`), an encoder, a ``torch.nn.Module``, or a trained model (or
        its folder), whose encoder is taken. Features that :func:`stpred.pp.features` stored are used where they are of
        this image and encoder.
    shapes_key
        Region; None takes the model's own when present, else the slide's only one.
    n_components
        Principal components; fewer where there are fewer features or locations.
    n_neighbors, resolution
        Of the graph of neighbours and of Leiden: more of the latter makes more clusters.
    umap
        Add a two-dimensional map of the neighbours.
    seed
        Of all of it; same input and seed, same result.
    key_added
        Name of the table; None makes ``{shapes}_latent``.
    image_key, device, coordinate_system
        As in :func:`stpred.pp.features`.
    inplace
        With False the table is returned and the object is left alone.

    Returns
    -------
    None, or with ``inplace=False`` the AnnData, with a row per location:

    - ``X``: float32 (n, width) features, as the encoder gives them;
    - ``obsm["X_pca"]`` (float32, n by components), with `umap` ``obsm["X_umap"]``, and ``obsm["spatial"]``, centres in
      micrometres;
    - ``obs["cluster"]``: categorical ``"0"``, ``"1"``, ..., the largest first;
    - ``uns["stpred"]``: JSON with encoder, image, settings and the share of variance of each component.

    Raises
    ------
    InputError
        If the encoder is ``"pixels"``, whose values are no embedding, there are no more locations than `n_neighbors`,
        or igraph is not installed.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(size_um=(500, 500), n_genes=20)
    >>> st.tl.latent(slide, shapes_key="spots", n_components=5)
    >>> slide.tables["spots_latent"].obsm["X_pca"].shape[1], "cluster" in slide.tables["spots_latent"].obs
    (5, True)
    """
    need_sdata(sdata)
    wanted, near = whole(n_components, name="n_components"), whole(n_neighbors, name="n_neighbors")
    fineness = positive(resolution, name="resolution")
    used, region = _seen(
        sdata, encoder, shapes_key=shapes_key, image_key=image_key, device=device, coordinate_system=coordinate_system
    )
    if used.card.name == "pixels":
        raise InputError("Pixels as they are make no embedding of tiles; pass another encoder, such as 'morphology'.")
    key = f"{region.shapes_key}_latent" if key_added is None else key_added
    if inplace:
        tables.check_writable(sdata, key)
    what = f"Image {region.image_key!r}"
    region.pyramid.check_resolution(used.card.tile, what=what)
    values = data.stored_features(region, used)
    if values is None:
        values = np.asarray(data.embed(region, used, region.coords_um), dtype=np.float32)
    scores, shares, cluster, drawn = embedding(
        values, n_components=wanted, n_neighbors=near, resolution=fineness, umap=umap, seed=seed
    )
    names = used.card.feature_names or [f"{keys.slug(used.card.name)}_{i}" for i in range(used.card.width)]
    table = tables.build_table(
        values,
        shapes_key=region.shapes_key,
        instances=region.instances,
        var=pd.DataFrame(index=pd.Index(list(names), dtype=object)),
        spatial_um=region.coords_um,
        provenance={
            "kind": "latent",
            "output_scale": "relative",
            "encoder": used.card.to_dict(),
            "image": region.pyramid.fingerprint,
            "image_key": region.image_key,
            "n_neighbors": near,
            "resolution": fineness,
            "seed": seed,
            "variance_shares": shares.round(5).tolist(),
            "n_clusters": len(set(cluster)),
            "left_out": {"off_image": region.n_outside},
            "versions": tables.package_versions(),
        },
    )
    table.obs[CLUSTER] = pd.Categorical(cluster, categories=sorted(set(cluster), key=int))
    table.obsm["X_pca"] = scores
    if drawn is not None:
        table.obsm["X_umap"] = drawn
    if not inplace:
        return table
    tables.put_table(sdata, key, table)
    return None


def embedding(
    values: NDArray[Any], *, n_components: int, n_neighbors: int, resolution: float, umap: bool = False, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.float64], list[str], NDArray[np.float32] | None]:
    """Return (n, k) principal components, (k,) their shares of variance, (n,) clusters and, if wanted, (n, 2) a map.

    Parameters
    ----------
    values
        (n, F) features; constant ones are left out.
    n_components, n_neighbors, resolution, umap, seed
        As of `latent`.
    """
    import scanpy as sc
    from anndata import AnnData

    if not np.isfinite(values).all():
        raise InputError("The features hold NaN or infinite values.")
    if len(values) <= n_neighbors:
        raise InputError(
            f"{len(values)} locations are too few for {n_neighbors} neighbours of each; lower `n_neighbors`."
        )
    values = np.asarray(values, dtype=np.float64)
    spread = values.std(axis=0)
    varying = spread > 1e-8 * np.maximum(np.abs(values).max(axis=0), 1e-8)
    if not varying.any():
        raise InputError("All locations have the same features, so there is nothing to embed.")
    scaled = ((values - values.mean(axis=0)) / np.where(varying, spread, 1.0))[:, varying]
    rank = min(n_components, scaled.shape[1], len(scaled) - 1)
    if rank < n_components:
        logger.info("%d components, since there are %d features of %d locations.", rank, scaled.shape[1], len(scaled))
    # A full decomposition has no random start, and features are few.
    u, s, vt = np.linalg.svd(scaled, full_matrices=False)
    sign = np.sign(vt[np.arange(len(vt)), np.abs(vt).argmax(axis=1)])
    scores = (u * s * sign)[:, :rank].astype(np.float32)
    work = AnnData(np.zeros((len(scores), 1), np.float32), obsm={"X_pca": scores})
    state = np.random.get_state()  # noqa: NPY002  scanpy seeds it
    try:
        sc.pp.neighbors(work, n_neighbors=n_neighbors, use_rep="X_pca", random_state=seed)
        sc.tl.leiden(work, resolution=resolution, flavor="igraph", directed=False, n_iterations=-1, random_state=seed)
        if umap:
            sc.tl.umap(work, random_state=seed)
    except ImportError as error:
        raise InputError("Clusters need igraph: pip install 'scanpy[leiden]'.") from error
    finally:
        np.random.set_state(state)  # noqa: NPY002
    drawn = np.asarray(work.obsm["X_umap"], dtype=np.float32) if umap else None
    return scores, s[:rank] ** 2 / np.sum(s**2), work.obs["leiden"].astype(str).tolist(), drawn


def _seen(
    sdata: SpatialData,
    encoder: Any,
    *,
    shapes_key: str | None,
    image_key: str | None,
    device: str | None,
    coordinate_system: str,
) -> tuple[Encoder, data.Region]:
    """Return what looks at the tiles, and where they are."""
    saved = isinstance(encoder, (str, Path)) and (Path(encoder) / "config.json").is_file()
    if isinstance(encoder, Model) or saved:
        model = trained_model(encoder)
        where: dict[str, Any] = {"image_key": image_key, "coordinate_system": coordinate_system}
        return encoder_for(model, None, device=device), region_for(sdata, model, shapes_key=shapes_key, **where)
    used = encoders.get(encoder, device=device)
    return used, data.read_region(
        sdata, Place(shapes_key=shapes_key, image_key=image_key, coordinate_system=coordinate_system)
    )

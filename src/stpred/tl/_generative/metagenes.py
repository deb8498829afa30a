from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stpred import data
from stpred._core import keys, tables
from stpred._core.checks import InputError
from stpred._core.places import Place
from stpred.inference.predictor import Predictor, load_trained, need_generative
from stpred.inference.raster import predict_raster
from stpred.inference.tables import ood_columns, put_result, result_key, warn_out_of_distribution

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from stpred._core.specs import Posterior
    from stpred.models import Model
    from stpred.models.batch import Batch
    from stpred.models.xfuse.posterior import Draws

logger = logging.getLogger("stpred")

SCALE = "scale"
PROFILE = "profile"
PROFILE_STD = "profile_std"
SHARE = "share"


def metagenes(
    sdata: SpatialData,
    model: Model | str | Path,
    *,
    shapes_key: str | None = None,
    raster: bool = False,
    resolution_um: float | None = None,
    key_added: str | None = None,
    posterior: Posterior | None = None,
    image_key: str | None = None,
    encoder: Any = None,
    out: str | Path | None = None,
    device: str | None = None,
    coordinate_system: str = keys.UM,
    inplace: bool = True,
) -> Any:
    """Tell where the metagenes of a generative model are on a slide, and which genes they raise.

    Every pixel has a scale (how much RNA there is) and a mixture of metagenes (programmes of genes that the model found
    in training). A region's share of a metagene is the sum of scale times mixture over its pixels, relative to that of
    all metagenes: what part of the region's expression it stands for.

    Parameters
    ----------
    sdata
        Slide with a calibrated H&E image; it needs no counts.
    model
        A trained generative model (``"xfuse"``), the folder that it was saved in, or its name.
    shapes_key
        Region whose shapes are described; None takes the model's own training region when present, else the slide's
        only one. A slide without any gets ``tissue`` and ``grid``. Of a map: the shapes that it covers (None:
        ``tissue``, found if need be).
    raster
        Instead of a table, write a map: an image element with metagenes as channels (float32, NaN where nothing is
        told, multiscale).
    resolution_um
        Edge of the map's pixels; None takes the model's own.
    key_added
        Name of the table (None: ``{shapes}_{model}_metagenes``) or of the map (``{shapes}_{model}_metagenes_map``). An
        existing one is overwritten in memory with a warning.
    posterior
        How the posterior is read; None takes ``Posterior()``.
    image_key, encoder, device, coordinate_system
        As in :func:`stpred.tl.predict`.
    out
        Store to which a map is written block by block, as in :func:`stpred.tl.predict_map`.
    inplace
        With False the table (or image element) is returned and the object is left alone.

    Returns
    -------
    None, or with ``inplace=False`` the AnnData (or the image element). ``sdata.attrs["stpred"]`` holds a map's
    provenance. The table (validated by ``TableModel``; its variables are the metagenes that the model uses,
    ``metagene0``, ``metagene1``, ... by their numbers in the model) has

    - ``X``: float32 (n_instances, n_metagenes) mean share over the draws; rows sum to 1;
    - ``layers["std"]``: its standard deviation over the draws;
    - ``obs``: ``scale`` (float32, mean scale of the region's pixels: relative density of RNA), ``region``,
      ``instance_id``, ``ood_score``, ``in_distribution``;
    - ``obsm["spatial"]``: float64 (n_instances, 2) centroids in micrometres;
    - ``var["share"]``: float64 mean share in all regions together;
    - ``varm["profile"]``, ``varm["profile_std"]``: float32 (n_metagenes, n_genes) posterior mean and standard deviation
      of each gene's natural log factor in the metagene, relative to the gene's baseline;
    - ``uns["stpred"]``: one JSON string as of :func:`stpred.tl.predict`, with ``"kind": "metagenes"`` and the genes
      of the profiles under ``"genes"``.

    Shapes that hold no pixel are left out (``left_out`` in the provenance).

    Raises
    ------
    InputError
        If the model is not generative, there is no (or more than one) H&E image, it is not calibrated or too coarse, or
        many locations lie off it.

    Notes
    -----
    Metagenes have no order and no names, and two trainings number them differently. Only differences between profiles
    bear on shares of genes: what all metagenes raise alike is the baseline's and the scale's.

    References
    ----------
    Bergenstråhle et al. 2022, "Super-resolved spatial transcriptomics by deep data fusion", Nature Biotechnology.

    Examples
    --------
    >>> import json
    >>> import pandas as pd
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(2, size_um=(400, 400), n_genes=20)
    >>> config = st.models.XFuse.Config(depth=2, width=4, epochs=1)
    >>> model = st.tl.train(slides, config, shapes_key="spots", tile=st.TileSpec(mpp=16, size_px=16))
    >>> st.tl.metagenes(slides["donor0"], model, shapes_key="spots", posterior=st.Posterior(3))
    >>> table = slides["donor0"].tables["spots_xfuse_metagenes"]
    >>> genes = json.loads(table.uns["stpred"])["genes"]
    >>> profiles = pd.DataFrame(table.varm["profile"], index=table.var_names, columns=genes)
    >>> profiles.shape == (table.n_vars, 20)
    True
    """
    trained = load_trained(model)
    need_generative(trained)
    if not raster and (out is not None or resolution_um is not None):
        raise InputError("`out` and `resolution_um` are of a map; pass raster=True with them.")
    predictor = MetagenePredictor.of(trained, encoder=encoder, device=device, posterior=posterior)
    place = Place(shapes_key, image_key, coordinate_system=coordinate_system)
    if raster:
        return predict_raster(
            predictor, sdata, place, key_added=key_added, resolution_um=resolution_um, out=out, inplace=inplace
        )
    region = predictor.region(sdata, place, create=True)
    key = result_key(sdata, region, predictor.name, key_added) if inplace else ""
    table, region = predictor.table(region)
    if not inplace:
        return table
    put_result(sdata, key, table, region)
    return None


class MetagenePredictor(Predictor):
    """Predicts, instead of genes, which fraction of a location's expression each metagene of the model stands for."""

    @property
    def name(self) -> str:
        """What results are called after."""
        return f"{self.model.record.name}_metagenes"

    @property
    def genes(self) -> list[str]:
        """The metagenes that the model uses, by their numbers."""
        return [f"metagene{k}" for k in np.flatnonzero(self.model.active.cpu().numpy()).tolist()]  # type: ignore[union-attr,operator]

    def predict(self, batch: Batch) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the (n, m) mean and standard deviation of the fractions."""
        return described(self.draw(batch))[:2]

    def provenance(self, region: data.Region, context: str | None) -> dict[str, Any]:
        """Return the provenance of metagenes in a region."""
        found = super().provenance(region, context)
        return found | {"kind": "metagenes", "output_scale": SHARE, "genes": list(self.model.record.genes)}

    def table(self, region: data.Region) -> tuple[AnnData, data.Region]:
        """Return the table that :func:`stpred.tl.metagenes` describes, and the locations in it."""
        n, names = len(region.coords_um), self.genes
        mean, std = (np.empty((n, len(names)), np.float32) for _ in range(2))
        scale, distance = (np.empty(n, np.float32) for _ in range(2))
        total: Any = 0.0
        reader = data.PixelReader.of(region, self.encoder)
        for rows, batch in reader.blocks():
            found = self.draw(batch)
            mean[rows], std[rows], scale[rows] = described(found)
            distance[rows] = self.model.ood_distance(batch)
            total = total + found.sums.cpu().double().sum(dim=1).numpy()
        there = np.isfinite(mean).all(axis=1)
        if not there.any():
            raise InputError(
                f"No shape of {region.shapes_key!r} holds a pixel of the model's {reader.canvas.mpp:g} um; choose "
                "larger ones."
            )
        if empty := int((~there).sum()):
            logger.warning("%d of %r hold no pixel of the model and are left out.", empty, region.shapes_key)
        region = region.take(np.flatnonzero(there))
        obs, slide = ood_columns(self.model, distance[there])
        provenance = self.provenance(region, reader.context) | slide
        provenance["left_out"] |= {"no_pixel": empty}
        table = tables.build_table(
            mean[there],
            shapes_key=region.shapes_key,
            instances=region.instances,
            var=pd.DataFrame({SHARE: (total / total.sum(axis=1, keepdims=True)).mean(axis=0)}, index=pd.Index(names)),
            spatial_um=region.coords_um,
            obs={SCALE: scale[there], **obs},
            layers={keys.STD: std[there]},
            provenance=provenance,
        )
        # Arrays, not frames: each column of a frame is an array of its own in the store, and genes may have a "/".
        table.varm[PROFILE], table.varm[PROFILE_STD] = profiles_of(self.model)
        warn_out_of_distribution(self.model, obs[keys.OOD_SCORE])
        return table, region


def described(draws: Draws) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Return (n, m) mean and standard deviation of metagenes' shares, and (n,) mean scales; NaN without a pixel."""
    amounts = draws.sums.cpu().numpy()
    total, size = amounts.sum(axis=2, keepdims=True), draws.sizes.cpu().numpy()
    there = (size > 0) & (total > 0).all(axis=0)[:, 0]
    share = np.divide(amounts, total, out=np.full_like(amounts, np.nan), where=there[None, :, None])
    scale = np.divide(total.mean(axis=0)[:, 0], size, out=np.full_like(size, np.nan), where=there)
    return share.mean(axis=0), share.std(axis=0), scale


def profiles_of(model: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return (m, n_genes) posterior mean and standard deviation of the log profiles of the metagenes in use."""
    mean, log_std = (p.detach()[model.active].cpu().numpy() for p in (model.profile_mean, model.profile_log_std))
    return np.ascontiguousarray(mean), np.exp(log_std)

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stpred import data
from stpred._core import keys, tables
from stpred._core.checks import InputError
from stpred._core.elements import need_sdata
from stpred.encoders.modules import pick_device
from stpred.inference.predictor import (
    encoder_for,
    need_generative,
    provenance_of,
    put_result,
    region_for,
    trained_model,
    trust,
    warn_unlike,
)
from stpred.inference.raster import Job, predict_map

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stpred.models import Model
    from stpred.models.base import Record
    from stpred.models.batch import Batch, Needs
    from stpred.models.xfuse.readout import Reading, Readout

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
    n_samples: int = 10,
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
    n_samples
        Draws from the posterior.
    image_key, encoder, device, coordinate_system
        As in :func:`stpred.tl.predict`.
    out
        Store to which a map is written block by block, as in :func:`stpred.tl.predict`.
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
    >>> st.tl.metagenes(slides["donor0"], model, shapes_key="spots", n_samples=3)
    >>> table = slides["donor0"].tables["spots_xfuse_metagenes"]
    >>> genes = json.loads(table.uns["stpred"])["genes"]
    >>> profiles = pd.DataFrame(table.varm["profile"], index=table.var_names, columns=genes)
    >>> profiles.shape == (table.n_vars, 20)
    True
    """
    from stpred.models.xfuse.readout import Readout

    trained = trained_model(model)
    need_generative(trained)
    readout = Readout(n_samples=n_samples)
    need_sdata(sdata)
    if not raster and (out is not None or resolution_um is not None):
        raise InputError("`out` and `resolution_um` are of a map; pass raster=True with them.")
    used = encoder_for(trained, encoder, device=device)
    shares = Shares.of(trained)
    if raster:
        trained.to(pick_device(device))
        job = Job(
            shares,  # type: ignore[arg-type]  # looks like a model whose genes are metagenes
            used,
            list(range(len(shares.record.genes))),
            {},
            {"readout": readout},
        )
        return predict_map(
            sdata,
            job,
            shapes_key=shapes_key,
            image_key=image_key,
            key_added=key_added,
            resolution_um=resolution_um,
            preserve=None,
            out=out,
            coordinate_system=coordinate_system,
            provenance=lambda region, context: _facts(trained, used, region, context, readout),
            inplace=inplace,
        )
    if inplace and key_added is not None:
        tables.check_writable(sdata, key_added)
    region = region_for(
        sdata, trained, shapes_key=shapes_key, image_key=image_key, coordinate_system=coordinate_system, make=inplace
    )
    key = keys.predicted(region.shapes_key, shares.record.name) if key_added is None else key_added
    if inplace:
        tables.check_writable(sdata, key)
        tables.check_name(region.sdata, key, kind="tables")
    trained.to(pick_device(device))
    n, names = len(region.coords_um), shares.record.genes
    mean, std = (np.empty((n, len(names)), np.float32) for _ in range(2))
    scale, distance = (np.empty(n, np.float32) for _ in range(2))
    total: Any = 0.0
    reader = data.PixelReader.of(region, used)
    for rows, batch in reader.blocks(region):
        found = shares.read(batch, readout)
        mean[rows], std[rows], scale[rows] = described(found)
        distance[rows] = trained.ood_distance(batch)
        total = total + found.sums.cpu().double().sum(dim=1).numpy()
    there = np.isfinite(mean).all(axis=1)
    if not there.any():
        raise InputError(
            f"No shape of {region.shapes_key!r} holds a pixel of the model's {reader.canvas.mpp:g} um; choose larger "
            "ones."
        )
    if empty := int((~there).sum()):
        logger.warning("%d of %r hold no pixel of the model and are left out.", empty, region.shapes_key)
    region = region.take(np.flatnonzero(there))
    obs, unlike = trust(trained, distance[there])
    facts = _facts(trained, used, region, reader.context, readout) | unlike
    facts["left_out"] = facts["left_out"] | {"no_pixel": empty}
    table = tables.build_table(
        mean[there],
        shapes_key=region.shapes_key,
        instances=region.instances,
        var=pd.DataFrame({SHARE: (total / total.sum(axis=1, keepdims=True)).mean(axis=0)}, index=pd.Index(names)),
        spatial_um=region.coords_um,
        obs={SCALE: scale[there], **obs},
        layers={keys.STD: std[there]},
        provenance=facts,
    )
    # Arrays, not frames: each column of a frame is an array of its own in the store, and genes may have a "/".
    table.varm[PROFILE], table.varm[PROFILE_STD] = profiles_of(trained)
    warn_unlike(trained, obs[keys.OOD_SCORE])
    if not inplace:
        return table
    put_result(sdata, key, table, region)
    return None


def described(reading: Reading) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Return (n, m) mean and standard deviation of metagenes' shares, and (n,) mean scales; NaN without a pixel."""
    amounts = reading.sums.cpu().numpy()
    total, size = amounts.sum(axis=2, keepdims=True), reading.sizes.cpu().numpy()
    there = (size > 0) & (total > 0).all(axis=0)[:, 0]
    share = np.divide(amounts, total, out=np.full_like(amounts, np.nan), where=there[None, :, None])
    scale = np.divide(total.mean(axis=0)[:, 0], size, out=np.full_like(size, np.nan), where=there)
    return share.mean(axis=0), share.std(axis=0), scale


def profiles_of(model: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return (m, n_genes) posterior mean and standard deviation of the log profiles of the metagenes in use."""
    mean, log_std = (p.detach()[model.active].cpu().numpy() for p in (model.profile_mean, model.profile_log_std))
    return np.ascontiguousarray(mean), np.exp(log_std)


@dataclass(frozen=True)
class Shares:
    """A model seen as one that predicts, instead of genes, which part of a location each of its metagenes has.

    Attributes
    ----------
    model
        The model.
    record
        What it says of itself, with metagenes for genes.
    """

    model: Any
    record: Record

    @classmethod
    def of(cls, model: Any) -> Shares:
        """Name the metagenes that the model uses by their numbers."""
        names = [f"metagene{k}" for k in np.flatnonzero(model.active.cpu().numpy()).tolist()]
        return cls(model, replace(model.record, name=f"{model.record.name}_metagenes", genes=names, var={}))

    @property
    def needs(self) -> Needs:
        """What the data layer has to bring."""
        return self.model.needs  # type: ignore[no-any-return]

    @property
    def id(self) -> str:
        """Hash of the model."""
        return str(self.model.id)

    def ood_distance(self, batch: Batch) -> NDArray[np.float32]:
        """Return (n,) distances from the training tiles, as shares of their limit."""
        return np.asarray(self.model.ood_distance(batch))

    def read(self, batch: Batch, readout: Readout) -> Reading:
        """Return draws from the posterior."""
        from stpred.models.xfuse.readout import read_out

        return read_out(self.model, batch, readout)

    def predict(self, batch: Batch, readout: Readout) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return (n, m) mean and standard deviation of the shares."""
        mean, std, _ = described(self.read(batch, readout))
        return mean, std


def _facts(model: Model, encoder: Any, region: data.Region, context: str | None, readout: Readout) -> dict[str, Any]:
    said = provenance_of(model, encoder, region, context)
    return said | {
        "kind": "metagenes",
        "output_scale": SHARE,
        "readout": asdict(readout),
        "genes": list(model.record.genes),
    }

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stpred import data
from stpred._core import keys
from stpred._core.checks import InputError, listing, one_of, whole
from stpred._core.places import Place
from stpred._core.settings import settings
from stpred.inference.predictor import Predictor, load_trained
from stpred.tl._trust.pixel_gradients import check_encoder, check_family, prediction_of

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData

    from stpred.encoders.base import Encoder
    from stpred.models import Model
    from stpred.tl._trust.pixel_gradients import Function

logger = logging.getLogger("stpred")

METHODS = ("integrated_gradients",)
BASELINES = ("white", "blur")

_BLUR = 8
"""The blurred baseline's Gaussian is the tile's edge over this."""

_INCOMPLETE = 0.05


@dataclass(frozen=True)
class Attribution:
    """Which pixels of a tile raise or lower a prediction.

    Attributes
    ----------
    genes, instances
        (G,) symbols and (n,) ids of the locations.
    tiles
        (n, H, W, 3) uint8, as the model sees them.
    attributions
        (n, G, H, W) float32, summed over the channels, on the scale of the prediction: over a tile they add up to
        ``predicted - at_baseline``.
    predicted, at_baseline
        (n, G) float32 predictions of the tile and of the baseline.
    error
        (n, G) error of the sum, smaller with more `n_steps`.
    mpp
        Micrometres per pixel of the tiles.
    baseline
        What the tiles were compared with.
    centres_um
        (n, 2) centres of the tiles in micrometres of the slide's frame.
    output_scale
        Scale of the predictions.
    """

    genes: list[str]
    instances: pd.Index
    tiles: NDArray[np.uint8]
    attributions: NDArray[np.float32]
    predicted: NDArray[np.float32]
    at_baseline: NDArray[np.float32]
    error: NDArray[np.float32]
    mpp: float
    baseline: str
    centres_um: NDArray[np.float64] | None = None
    output_scale: str | None = None


def attribution(
    sdata: SpatialData,
    model: Model | str | Path,
    genes: Iterable[str],
    *,
    shapes_key: str | None = None,
    instances: Iterable[Any] | None = None,
    method: str = "integrated_gradients",
    n_steps: int = 32,
    baseline: str = "white",
    image_key: str | None = None,
    encoder: Any = None,
    device: str | None = None,
    coordinate_system: str = keys.UM,
) -> Attribution:
    """Tell which pixels of a tile make a prediction, by integrated gradients.

    The gradient of the prediction by the pixels is averaged on the straight line from a baseline to the tile, and
    multiplied by the tile's difference from the baseline (captum). Neighbouring tiles and the statistics by which a
    slide is standardised are held as they are.

    Parameters
    ----------
    sdata
        Slide with a calibrated H&E image.
    model
        A trained model of pixels (``"stnet"``), or ``"ridge"`` or ``"mlp"`` on features of an encoder that is a torch
        module; or the folder that it was saved in, or its name.
    genes
        Genes of the model, few: each takes `n_steps` passes through the network for each tile.
    shapes_key
        Region; None takes the model's own when present, else the slide's only one.
    instances
        Ids of the locations; None: for each gene in turn the one where most of it is predicted.
    method
        ``"integrated_gradients"``.
    n_steps
        Points on the line, of Gauss-Legendre quadrature.
    baseline
        ``"white"``: empty glass, so that everything in the tile counts; ``"blur"``: the tile without its structure
        (Gaussian of an eighth of its edge), so that colour and density of the tissue as a whole do not count.
    image_key, encoder, device, coordinate_system
        As in :func:`stpred.tl.predict`.

    Returns
    -------
    :class:`Attribution`, which :func:`stpred.pl.attribution` draws; the object is left alone.

    Raises
    ------
    InputError
        If genes or instances are unknown, or pixels cannot be followed through the encoder or the model: features of
        ``"morphology"`` are counted and measured, for which :func:`stpred.tl.feature_associations` asks instead.

    Notes
    -----
    An attribution explains the model, not the tissue: pixels that go along with a gene need not have to do with it.
    Where a prediction is cut off at 0, its gradient is 0.

    References
    ----------
    Sundararajan et al. 2017, "Axiomatic attribution for deep networks", ICML.

    Examples
    --------
    >>> import stpred as st, torch
    >>> slides = st.datasets.toy_cohort(2, size_um=(500, 500), n_genes=20)
    >>> pool = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
    >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 5), torch.nn.ReLU(), pool)
    >>> encoder = st.encoders.get(network, tile=st.TileSpec(4, 24))
    >>> model = st.tl.train(slides, "ridge", genes=["EPCAM"], encoder=encoder, shapes_key="spots")
    >>> found = st.tl.attribution(slides["donor0"], model, ["EPCAM"], n_steps=8)
    >>> found.attributions.shape
    (1, 1, 24, 24)
    """
    one_of(method, METHODS, name="method")
    one_of(baseline, BASELINES, name="baseline")
    steps, at_once = whole(n_steps, name="n_steps"), min(16, settings.batch_size)
    trained = load_trained(model)
    check_family(trained)
    predictor = Predictor.of(trained, genes=genes, encoder=encoder, device=device)
    used, columns = predictor.encoder, predictor.columns
    check_encoder(used)
    region = predictor.region(sdata, Place(shapes_key, image_key, coordinate_system=coordinate_system))
    wanted = None if instances is None else _rows(region, instances)
    if wanted is not None and not trained.needs.sources:  # then a location does not depend on the others
        region, wanted = region.take(wanted), np.arange(len(wanted))
    batches = list(predictor.batches(region))
    if wanted is None:
        values = np.empty((len(region.coords_um), len(columns)), np.float32)
        for rows, batch in batches:
            values[rows] = predictor.predict(batch)[0]
        wanted = np.asarray(list(dict.fromkeys(values.argmax(axis=0).tolist())))  # in the order of the genes
    tiles = _tiles(region, used, wanted)
    parts = []
    for row, tile in zip(wanted, tiles, strict=True):
        rows, batch = next((r, b) for r, b in batches if (r == row).any())
        function = prediction_of(trained, used, batch, int(np.flatnonzero(rows == row)[0]), tile=tile)
        start = baseline_of(tile, baseline)
        parts.append(integrated_gradients(function, tile, start, columns=columns, n_steps=steps, batch_size=at_once))
    attributions, predicted, at_baseline = (np.stack(p) for p in zip(*parts, strict=True))
    error = attributions.sum(axis=(2, 3)) - (predicted - at_baseline)
    worst = float(np.max(np.abs(error) / np.maximum(np.abs(predicted - at_baseline), 0.1)))
    if worst > _INCOMPLETE:
        logger.warning("Attributions add up to the prediction within %.0f %% only; raise `n_steps`.", 100 * worst)
    return Attribution(
        predictor.genes, region.instances[wanted], tiles, attributions, predicted,
        at_baseline, error, used.card.tile.mpp, baseline, region.coords_um[wanted], trained.record.target,
    )  # fmt: skip


def integrated_gradients(
    function: Function, tile: NDArray[np.uint8], start: NDArray[np.float32], *, columns: list[int], n_steps: int,
    batch_size: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:  # fmt: skip
    """Return (g, H, W) attributions of a tile's pixels, and (g,) predictions of the tile and of the baseline.

    Parameters
    ----------
    function
        Maps (b, H, W, 3) float tiles of 0 to 255 to (b, n_genes) predictions, differentiably.
    tile, start
        (H, W, 3) tile and baseline.
    columns
        (g,) which genes.
    n_steps, batch_size
        Points on the line, and the number of them that go through `function` at a time.
    """
    import torch

    try:
        from captum.attr import IntegratedGradients
    except ImportError as error:
        raise InputError('Attributions need captum: pip install "stpred[analysis]".') from error
    x, x0 = (torch.from_numpy(np.array(v, dtype=np.float32))[None] for v in (tile, start))
    engine = IntegratedGradients(function)
    found = []
    for column in columns:
        part = engine.attribute(x, x0, target=column, n_steps=n_steps, internal_batch_size=batch_size)
        found.append(part.detach().sum(dim=-1)[0].cpu().numpy().astype(np.float32))
    with torch.no_grad():
        ends = function(torch.cat([x, x0]))[:, columns].float().cpu().numpy()
    return np.stack(found), ends[0], ends[1]


def baseline_of(tile: NDArray[np.uint8], kind: str) -> NDArray[np.float32]:
    """Return the (H, W, 3) baseline of a tile."""
    if kind == "white":
        return np.full(tile.shape, 255.0, np.float32)
    from scipy.ndimage import gaussian_filter

    sigma = tile.shape[0] / _BLUR
    return gaussian_filter(tile.astype(np.float32), (sigma, sigma, 0), mode="nearest")


def _rows(region: data.Region, instances: Iterable[Any]) -> NDArray[np.int64]:
    """Return the positions of the wanted locations."""
    if isinstance(instances, (str, bytes)) or not isinstance(instances, Iterable):
        raise InputError(f"`instances` must be a list of ids of {region.shapes_key!r}, got {instances!r}.")
    wanted = list(instances)
    rows = region.instances.get_indexer(wanted)
    if not wanted or (rows < 0).any():
        unknown = [w for w, r in zip(wanted, rows, strict=True) if r < 0]
        raise InputError(
            f"`instances` are not on the image in {region.shapes_key!r}: {listing(unknown)}; its ids are "
            f"{listing(region.instances, most=3)}."
        )
    return rows.astype(np.int64)


def _tiles(region: data.Region, encoder: Encoder, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    from stpred.tiles import read_tiles

    return read_tiles(region.pyramid, region.coords_um[rows], encoder.card.tile)

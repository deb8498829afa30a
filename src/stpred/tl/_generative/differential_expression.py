from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from stpred import data
from stpred._core import keys, tables
from stpred._core.checks import InputError
from stpred._core.places import Place
from stpred._core.specs import Posterior
from stpred.inference.predictor import Predictor, gene_columns, load_trained, need_generative
from stpred.models.parts.pixel_grid import Coverage, Window
from stpred.tl._generative.region_classes import Classes, Pair, checked_pairs

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stpred.models import Model
    from stpred.models.xfuse.posterior import Draws

COUNTS = 1e4
"""Counts that fractions are given of."""

MIN_TOTAL, PSEUDO_FRACTION = 1e-300, 1e-12
MIN_STD = 1e-6
LEVEL = 0.95
"""Of the credible intervals."""


def differential_expression(
    sdata: SpatialData,
    model: Model | str | Path,
    shapes_key: str | None = None,
    *,
    groupby: str | None = None,
    pairs: Sequence[tuple[Any, Any]] | None = None,
    genes: Iterable[str] | None = None,
    posterior: Posterior | None = None,
    image_key: str | None = None,
    encoder: Any = None,
    device: str | None = None,
    coordinate_system: str = keys.UM,
) -> pd.DataFrame:
    """Tell which genes differ between regions of a slide, by the posterior of a generative model.

    In each draw from the posterior, a region's expression is the sum over its pixels, and a gene's share is its part of
    the expected expression of all genes of the model; the log2 fold change is the difference of two regions' log2
    shares in the same draw. So regions need no counts: they may be annotations, spots or cells on any slide with an
    image, and neither size nor density of RNA matters.

    Parameters
    ----------
    sdata
        Slide with a calibrated H&E image.
    model
        A trained generative model (``"xfuse"``), the folder that it was saved in, or its name.
    shapes_key
        Shapes that make the regions; None takes the model's own training region when present, else the slide's only
        one.
    groupby
        Column of the shapes, or of ``obs`` of the table that annotates them, whose classes are the regions: shapes of
        one class are summed (where two of them overlap, both count). Shapes of no class (missing values) are left out.
        None: each shape is a region, named by its index.
    pairs
        Which regions to compare, such as ``[("tumour", "stroma"), ("tumour", None)]``; None in the second place stands
        for all other regions together. None: every pair, if these are no more than 50.
    genes
        Genes to report; None: all. Shares are of all genes of the model in any case.
    posterior
        How the posterior is read, with at least 2 draws; None takes ``Posterior(n_samples=50)``. With the same seed a
        place has the same latents, and the metagenes the same profiles, whichever regions are asked for.
    image_key
        H&E image; None takes the one in the micrometre frame.
    encoder, device, coordinate_system
        As in :func:`stpred.tl.predict`.

    Returns
    -------
    DataFrame with a row for each pair and gene, each pair's genes sorted by falling `inverse_cv`; the object is left
    alone. Columns:

    - ``first``, ``second``: names of the regions (``"rest"`` for all others), and ``gene``;
    - ``log2_fold_change``, ``std``: mean and standard deviation of log2(first / second) over the draws;
    - ``inverse_cv``: absolute mean over standard deviation (of at least 1e-6), by which the publication ranks;
    - ``probability``: posterior probability that the mean's sign is right, which is the share of draws of that sign (a
      draw of exactly 0 counts half); where all draws agree, that of a normal distribution of this mean and deviation;
    - ``credible``, ``lower``, ``upper``: the central 95 % interval of that normal distribution, and whether it excludes
      0;
    - ``mean_first``, ``mean_second``: mean shares as counts per 10 000 of the model's genes.

    ``attrs["stpred"]`` says model, regions, draws and versions.

    Raises
    ------
    InputError
        If the model is not generative; if shapes, a column, a region of a pair or a gene do not exist; if there is but
        one region, or a region is compared with itself; if a region lies off the image or holds no pixel; or if there
        are too many pairs to make them all.

    Notes
    -----
    The posterior speaks of what the model does not know after training, not of how patients differ: the same regions of
    several slides say that. Small regions differ the more the finer the model sees, and neighbouring regions share the
    image that is read around them.

    References
    ----------
    Bergenstråhle et al. 2022, "Super-resolved spatial transcriptomics by deep data fusion", Nature Biotechnology.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(2, size_um=(400, 400), n_genes=20)
    >>> config = st.models.XFuse.Config(depth=2, width=4, epochs=1)
    >>> model = st.tl.train(slides, config, shapes_key="spots", tile=st.TileSpec(mpp=16, size_px=16))
    >>> spots = slides["donor0"].shapes["spots"]
    >>> spots["side"] = ["left" if x < 200 else "right" for x in spots.geometry.x]
    >>> how = {"groupby": "side", "posterior": st.Posterior(5)}
    >>> found = st.tl.differential_expression(slides["donor0"], model, "spots", **how)
    >>> found[["first", "second"]].iloc[0].tolist(), len(found)
    (['left', 'right'], 20)
    """
    trained = load_trained(model)
    need_generative(trained)
    columns = gene_columns(trained, genes)
    posterior = _checked_posterior(Posterior(n_samples=50) if posterior is None else posterior)
    predictor = Predictor.of(trained, encoder=encoder, device=device, posterior=posterior)
    region = predictor.region(sdata, Place(shapes_key, image_key, coordinate_system=coordinate_system))
    classes = Classes.of(sdata, region.shapes_key, groupby=groupby)
    classes, compared = classes.only(checked_pairs(pairs, classes))
    draws, mpp = _draws_of_classes(predictor, region, classes.codes_of(region), n=len(classes.names) + 1)
    classes.check_pixels(draws.sizes.numpy(), compared, mpp=mpp)
    sums, first, second = _sides(draws.sums.numpy(), compared)
    frame = compare_regions(sums, draws, first=first, second=second)
    found = _tidy(frame, columns, trained.record.genes, pairs=[classes.names_of(pair) for pair in compared])
    found.attrs[keys.UNS] = {
        "kind": "differential_expression",
        "model": trained.record.name,
        "model_id": trained.id,
        "image": region.pyramid.fingerprint,
        "shapes_key": region.shapes_key,
        "by": groupby,
        "n_samples": posterior.n_samples,
        "seed": posterior.seed,
        "normalize_covariates": posterior.normalize_covariates,
        "covariates": posterior.covariates,
        "left_out": {"off_image": region.n_outside},
        "versions": tables.package_versions(),
    }
    return found


def compare_regions(
    sums: NDArray[np.float64], draws: Draws, *, first: NDArray[np.int64], second: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    """Return what the draws say of the fold changes of pairs of regions, each as (p, n_genes).

    Parameters
    ----------
    sums
        (s, k, m) scale times activation of the metagenes, summed over the pixels of each region.
    draws
        The draws of profiles and baselines that belong to them; their own sums are not used.
    first, second
        (p,) rows of the regions in `sums`.
    """
    n_samples, n_genes = len(sums), draws.base.shape[1]
    shape = (len(first), n_genes)
    mean, square, above, tied = (np.zeros(shape) for _ in range(4))
    share = np.zeros((sums.shape[1], n_genes))
    for k, amounts in enumerate(sums):
        log_rate = draws.profiles[k].cpu().double() + (draws.base[k] + draws.logits[k]).cpu().double()
        expected = amounts @ log_rate.exp().numpy()
        # Shares, and the smallest one added: a gene that is nowhere is so alike in small and large regions.
        part = expected / np.maximum(expected.sum(axis=1, keepdims=True), MIN_TOTAL)
        log_share = np.log2(part + PSEUDO_FRACTION)
        change = log_share[first] - log_share[second]
        share += part / n_samples
        away = change - mean
        mean += away / (k + 1)
        square += away * (change - mean)
        above += change > 0
        tied += change == 0
    std = np.sqrt(square / (n_samples - 1))
    steady = np.abs(mean) / np.maximum(std, MIN_STD)
    right = (np.where(mean < 0, n_samples - above - tied, above) + tied / 2) / n_samples
    reach = -ndtri((1 - LEVEL) / 2) * std
    return {
        "log2_fold_change": mean,
        "std": std,
        "inverse_cv": steady,
        "probability": np.where(mean == 0, 0.5, np.where(right == 1, ndtr(steady), right)),
        "credible": np.abs(mean) > -ndtri((1 - LEVEL) / 2) * np.maximum(std, MIN_STD),
        "lower": mean - reach,
        "upper": mean + reach,
        "mean_first": COUNTS * share[first],
        "mean_second": COUNTS * share[second],
    }


@dataclass(frozen=True)
class MergedGrid:
    """A pixel grid whose targets are taken together: region `code` of each target, of which there may be millions."""

    grid: Any
    code: NDArray[np.int64]

    @property
    def bounds(self) -> Window:
        """The pixels that touch the image."""
        return self.grid.bounds

    def boxes(self) -> NDArray[np.int64]:
        """Return the (n, 4) boxes of the targets that were merged."""
        return self.grid.boxes()

    def fetch(self, windows: list[Window]) -> None:
        """Read what these windows show."""
        self.grid.fetch(windows)

    def image(self, window: Window) -> NDArray[np.float32]:
        """Return the (3, h, w) scaled pixels of a window."""
        return self.grid.image(window)

    def reduced(self, centre: NDArray[np.float32], axes: NDArray[np.float32]) -> MergedGrid:
        """Return it with linear combinations of the features beside the pixels."""
        return MergedGrid(self.grid.reduced(centre, axes), self.code)

    def features(self, window: Window) -> NDArray[np.float32]:
        """Return the (k, h, w) features of a window's pixels."""
        return self.grid.features(window)

    def inside(self, window: Window) -> Coverage:
        """Return which pixels of a window lie in which regions, once for every target that they lie in."""
        found = self.grid.inside(window)
        code = self.code[found.target]
        order = np.argsort(code, kind="stable")
        return Coverage(code[order], found.pixel[order], found.share[order])


def _checked_posterior(posterior: Any) -> Posterior:
    """Refuse what cannot tell how sure the model is, and what fractions of the expression do not depend on."""
    if not isinstance(posterior, Posterior):
        raise InputError(f"`posterior` must be a stpred.Posterior, got {posterior!r}.")
    if posterior.n_samples < 2:
        raise InputError("`n_samples` must be at least 2: one draw says nothing of how sure the model is.")
    if posterior.output_scale == "relative":
        raise InputError(
            "Regions are compared by fractions of their expression; leave normalize_scale and normalize_size out."
        )
    return posterior


def _sides(
    sums: NDArray[np.float64], pairs: list[Pair]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Return (s, k, m) sums of what is compared, and the (p,) rows of both sides of each pair.

    `sums` are the (s, n + 1, m) ones of the regions and, last, of what is in none that is named.
    """
    rows: dict[tuple[int, bool], int] = {}
    found = []
    for first, second in pairs:
        for code, others in ((first, False), (first, True) if second is None else (second, False)):
            if (code, others) not in rows:
                rows[code, others] = len(rows)
                found.append(np.delete(sums, code, axis=1).sum(axis=1) if others else sums[:, code])
    at = [(rows[a, False], rows[a, True] if b is None else rows[b, False]) for a, b in pairs]
    return np.stack(found, axis=1), *np.array(at, dtype=np.int64).T


def _draws_of_classes(
    predictor: Predictor, region: data.Region, codes: NDArray[np.int64], *, n: int
) -> tuple[Draws, float]:
    """Return the draws of `n` classes, which `codes` gives of each location (-1: none), and the size of a pixel."""
    reader = data.PixelReader.of(region, predictor.encoder, described=False)
    rows = np.flatnonzero(codes >= 0)
    sums: Any = 0.0
    sizes: Any = 0.0
    for part, batch in reader.blocks(region.take(rows)):
        grid: Any = MergedGrid(batch.pixel_grid, codes[rows[part]])
        found = predictor.draw(replace(batch, pixel_grid=grid, targets=np.zeros(n, dtype=np.int64)))
        sums, sizes = sums + found.sums.cpu().double(), sizes + found.sizes.cpu().double()
    # Profiles and baselines are the same in each part, since the seed is.
    return replace(found, sums=sums, sizes=sizes), reader.canvas.mpp


def _tidy(
    values: dict[str, NDArray[Any]], columns: list[int], genes: list[str], *, pairs: list[tuple[Any, Any]]
) -> pd.DataFrame:
    """Return a row for each pair and gene, sorted within the pair."""
    names = np.asarray(genes, dtype=object)[columns]
    parts = []
    for p, (first, second) in enumerate(pairs):
        order = np.argsort(-values["inverse_cv"][p][columns], kind="stable")
        labels = {"first": first, "second": second, "gene": names[order]}
        parts.append(pd.DataFrame(labels | {k: v[p][columns][order] for k, v in values.items()}))
    return pd.concat(parts, ignore_index=True)

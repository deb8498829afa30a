from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from stpred import data
from stpred._core import keys
from stpred._core.checks import InputError, distinct, fraction_of, one_of, positive, whole
from stpred._core.geometry import square_bins
from stpred._core.places import Place
from stpred._core.progress import track
from stpred._core.targets import SCALES
from stpred.inference.predictor import Predictor
from stpred.regions import Lattice
from stpred.tl._robustness.engine import SCALE
from stpred.tl._robustness.transforms import translate, with_elements

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stpred.models import Model

N_DIRECTIONS = 8
PITCHES = (0.5, 1.0, 1.5)
"""Default distances, in pitches of the measured locations."""

BLOCK_PITCHES = 2.0
"""Edge of the squares whose locations change sign together, in pitches: neighbours are no independent evidence."""

MIN_LOCATIONS = 20
MIN_BLOCKS = 6
"""Squares below which the sign of none could be told from chance: 2 ** -6 is 0.016."""

MIN_TRUSTED = 5
"""Trusted genes from which on they alone are looked at."""


def alignment(
    slides: SpatialData | Mapping[str, SpatialData],
    model: Model | str | Path,
    *,
    distances_um: Iterable[float] | None = None,
    genes: Iterable[str] | None = None,
    alpha: float = 0.05,
    n_permutations: int = 999,
    shapes_key: str | None = None,
    image_key: str | None = None,
    table_key: str | None = None,
    layer: str | None = None,
    encoder: Any = None,
    device: str | None = None,
    seed: int = 0,
    coordinate_system: str = keys.UM,
) -> pd.DataFrame:
    """Check that measured locations lie in their true places on the image, by predictions at shifted places.

    A model of other slides predicts every location from the image where it is said to lie, and from places shifted in
    eight directions by a few distances. Where a shift predicts the measurement better than no shift, beyond chance, the
    slide is misaligned.

    Parameters
    ----------
    slides
        One measured slide, or names to slides; none that the model learned from. They are left as they are.
    model
        A trained model, or its folder.
    distances_um
        Distances in micrometres; None: half, one and one and a half pitches of the locations.
    genes
        Genes that are looked at; None: those that the model marks as trusted, or all where these are fewer than five.
    alpha
        Level at which a slide is called misaligned.
    n_permutations
        Of the null distribution.
    shapes_key, image_key, table_key, layer, encoder, device, coordinate_system
        As in :func:`stpred.tl.train` and :func:`stpred.tl.predict`.
    seed
        Of the permutations.

    Returns
    -------
    DataFrame with a row per slide:

    - ``slide``
    - ``shift_x_um``, ``shift_y_um``, ``shift_um``: what to add to the locations' coordinates for the best score,
      between the tried shifts by a quadratic surface; 0 where none is better
    - ``score``, ``score_shifted``, ``gain``: Pearson correlation with the measurement, mean over genes, as it is and
      after the best of the tried shifts, and their difference
    - ``statistic``, ``null_95``, ``p_value``: largest sum over squares of the slide of the gain in each, over its root
      mean square; 95th percentile of that with random signs of the squares, and the share of such that reach it
    - ``aligned``: False where ``p_value`` is at most `alpha`
    - ``at_border``: the best shift is of the largest distance tried, so that the true one may be larger
    - ``n_locations`` (those on the image after every shift), ``n_genes``

    ``attrs["shifts"]`` lists every shift: ``slide``, ``x_um``, ``y_um``, ``score``.

    Raises
    ------
    InputError
        If a slide has no counts, no gene of the model was measured or varies, or too few locations stay on the image.

    Notes
    -----
    The null is that no shift is better than none: then the gain of a square of two pitches is as likely positive as
    negative. One set of signs serves all shifts, whose largest statistic is taken, so that trying many costs no false
    alarm. It shows shifts, not turns or scalings, and none that are small against the tissue's own structures.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(3, size_um=(900, 900), n_genes=20)
    >>> unseen = slides.pop("donor2")
    >>> model = st.tl.train(slides, encoder="colour", shapes_key="spots")
    >>> found = st.tl.alignment(unseen, model, distances_um=(50, 100), shapes_key="spots", n_permutations=99)
    >>> bool(found["aligned"].item())
    True
    """
    alpha, n_permutations = fraction_of(alpha, name="alpha"), whole(n_permutations, name="n_permutations")
    if distances_um is not None:
        distances_um = [
            positive(d, name="distances_um", unit="um") for d in distinct(distances_um, name="distances_um")
        ]
    predictor = Predictor.of(model, genes=genes, encoder=encoder, device=device)
    place = Place(shapes_key, image_key, table_key, layer, coordinate_system=coordinate_system)
    rows, tried = [], []
    given = data.as_slides(slides)
    for name, sdata in track(given.items(), total=len(given), describe="slides"):
        region = data.read_region(sdata, place, slide=name, measured=True, prefer=predictor.model.record.region)
        lattice = Lattice.of(region.coords_um)
        pitch_um = data.median_width_um(region) if lattice is None else lattice.pitch_um
        shifts = shifts_of([p * pitch_um for p in PITCHES] if distances_um is None else distances_um)
        at, measured, predicted, n_genes = _at_shifts(region, predictor, shifts, chosen=genes is not None)
        agreement = np.stack([agreements(p, measured) for p in predicted])
        _, block = square_bins(region.coords_um[at], BLOCK_PITCHES * pitch_um)
        if block.max() + 1 < MIN_BLOCKS:
            raise InputError(
                f"Slide {name!r} spans {block.max() + 1} squares of {BLOCK_PITCHES * pitch_um:g} um, and chance can be "
                f"told from {MIN_BLOCKS} on: it is too small for this check."
            )
        found = judged(agreement, shifts, block, n_permutations=n_permutations, seed=seed)
        facts = {"aligned": found["p_value"] > alpha or found["gain"] <= 0, "n_locations": len(at), "n_genes": n_genes}
        rows.append({"slide": name, **found, **facts})
        scores = agreement.mean(axis=1)
        tried += [
            {"slide": name, "x_um": float(x), "y_um": float(y), "score": float(s)}
            for (x, y), s in zip(shifts, scores, strict=True)
        ]
    frame = pd.DataFrame(rows)
    frame.insert(frame.columns.get_loc("p_value") + 1, "aligned", frame.pop("aligned"))
    frame.attrs["shifts"] = tried
    return frame


def shifts_of(distances_um: Iterable[float]) -> NDArray[np.float64]:
    """Return the (1 + 8 d, 2) shifts in eight directions by each of d distances, none first."""
    angle = np.arange(N_DIRECTIONS) * 2 * np.pi / N_DIRECTIONS
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return np.concatenate([np.zeros((1, 2)), *(d * circle for d in sorted(distances_um))])


def agreements(predicted: ArrayLike, measured: ArrayLike) -> NDArray[np.float64]:
    """Return the (n,) products of standardised (n, n_genes) values, mean over genes; their mean is the mean Pearson."""
    return np.asarray((_standardised(predicted) * _standardised(measured)).mean(axis=1))


def _standardised(values: ArrayLike) -> NDArray[np.float64]:
    centred = np.asarray(values, dtype=np.float64)
    centred = centred - centred.mean(axis=0)
    std = centred.std(axis=0)
    return np.divide(centred, std, out=np.zeros_like(centred), where=std > 1e-9)


def judged(
    agreement: NDArray[np.float64],
    shifts: NDArray[np.float64],
    block: NDArray[np.int64],
    *,
    n_permutations: int,
    seed: int,
) -> dict[str, Any]:
    """Return the best shift, its gain, and how likely such a gain is by chance.

    Parameters
    ----------
    agreement
        (s, n) agreement of prediction and measurement at each location after each shift, the first of which is none.
    shifts
        (s, 2) in micrometres.
    block
        (n,) square of each location, from 0.
    n_permutations, seed
        Of the random signs of the squares.
    """
    gains = (agreement[1:] - agreement[0]).T
    sums = np.zeros((int(block.max()) + 1, gains.shape[1]))
    np.add.at(sums, block, gains)
    size = np.sqrt(np.square(sums).sum(axis=0))
    size[size < 1e-12] = np.inf
    statistic = float((sums.sum(axis=0) / size).max())
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(n_permutations, len(sums)))
    null = (signs @ (sums / size)).max(axis=1)
    score = agreement.mean(axis=1)
    best = int(np.argmax(score))
    x, y = peak(shifts, score)
    far = np.linalg.norm(shifts, axis=1)
    return {
        "shift_x_um": x,
        "shift_y_um": y,
        "shift_um": float(np.hypot(x, y)),
        "score": float(score[0]),
        "score_shifted": float(score[best]),
        "gain": float(score[best] - score[0]),
        "statistic": statistic,
        "null_95": float(np.quantile(null, 0.95)),
        "p_value": float((1 + (null >= statistic - 1e-12).sum()) / (1 + n_permutations)),
        "at_border": bool(best > 0 and far[best] > far.max() - 1e-6),
    }


def peak(shifts: NDArray[np.float64], score: NDArray[np.float64]) -> tuple[float, float]:
    """Return the maximum of a quadratic surface through the scores about the best of (s, 2) shifts.

    That shift itself where no shift is best, the surface has no maximum, or it lies farther off than the next shifts.
    """
    best = shifts[int(np.argmax(score))]
    if not best.any():
        return 0.0, 0.0
    away = shifts - best
    distance = np.linalg.norm(away, axis=1)
    near = np.sort(distance)[1]
    use = distance <= 2.1 * near
    x, y = (away[use] / near).T
    weight = np.exp(-np.square(distance[use] / near) / 4)
    design = np.stack([np.ones(len(x)), x, y, x * x, x * y, y * y], axis=1)
    if len(x) >= design.shape[1]:
        _, bx, by, xx, xy, yy = np.linalg.lstsq(design * weight[:, None], score[use] * weight, rcond=None)[0]
        curvature = np.array([[2 * xx, xy], [xy, 2 * yy]])
        if (np.linalg.eigvalsh(curvature) < -1e-9).all():
            top = -np.linalg.solve(curvature, [bx, by])
            if np.hypot(*top) <= 1:
                best = best + near * top
    return float(best[0]), float(best[1])


def _at_shifts(
    region: data.Region, predictor: Predictor, shifts: NDArray[np.float64], *, chosen: bool
) -> tuple[NDArray[np.int64], NDArray[np.float64], list[NDArray[np.float32]], int]:
    """Return rows of the region that are on the image after every shift, and what is measured and predicted there."""
    names = [g for g, there in zip(predictor.genes, region.measures(predictor.genes), strict=True) if there]
    trusted = predictor.var.get("trusted")
    if not chosen and trusted is not None:
        kept = [g for g in names if bool(trusted[g])]
        names = kept if len(kept) >= MIN_TRUSTED else names
    if not names:
        raise InputError(f"Slide {region.slide!r} measured none of the genes of model {predictor.name!r}.")
    model, columns = predictor.model, [predictor.genes.index(g) for g in names]
    place = Place(region.shapes_key, region.image_key, coordinate_system=region.coordinate_system)
    rows, values = [], []
    bare = with_elements(region.sdata, tables={})
    for shift in track(shifts, total=len(shifts), describe=f"shifts of {region.slide}"):
        on_image = np.flatnonzero(region.pyramid.contains(region.coords_um + shift))
        if len(on_image) < MIN_LOCATIONS:
            rows.append(on_image)
            break
        there = predictor.region(_only(translate(bare, region, shift), region.take(on_image)), place)
        found = model.as_scored(predictor.values(there))[:, columns]
        at = region.instances.get_indexer(there.instances)
        rows.append(at[at >= 0])
        values.append(found[at >= 0])
    common = np.flatnonzero(np.bincount(np.concatenate(rows), minlength=len(region.instances)) == len(shifts))
    if len(common) < MIN_LOCATIONS:
        raise InputError(
            f"Of the {len(region.instances)} measured locations of slide {region.slide!r}, {len(common)} are on the "
            f"image after every shift, and at least {MIN_LOCATIONS} are needed; pass smaller `distances_um`."
        )
    scale = one_of(model.record.training[SCALE], SCALES, name=SCALE)
    measured = region.target(names, scale, n_measured=model.record.n_measured)[common]
    varies = np.flatnonzero(np.std(measured, axis=0) > 1e-9)
    if len(varies) == 0:
        raise InputError(f"None of the genes of model {predictor.name!r} varies over slide {region.slide!r}.")
    values = [
        v[np.argsort(r)][np.searchsorted(np.sort(r), common)][:, varies] for r, v in zip(rows, values, strict=True)
    ]
    return common, measured[:, varies], values, len(varies)


def _only(sdata: SpatialData, region: data.Region) -> SpatialData:
    """Return the object with no other locations in the region's element than the region's."""
    element = sdata.shapes[region.shapes_key]
    kept = element.iloc[element.index.get_indexer(region.instances)]
    return with_elements(sdata, shapes={region.shapes_key: kept}, tables={})

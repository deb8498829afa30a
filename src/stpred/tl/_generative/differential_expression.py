from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from stpred import data
from stpred._core import keys, tables
from stpred._core.checks import InputError, listing, whole
from stpred._core.elements import need_sdata, table_instances, table_regions
from stpred.encoders.modules import pick_device
from stpred.inference.predictor import encoder_for, gene_columns, need_generative, region_for, trained_model
from stpred.models.parts.pixel_grid import Coverage, Window

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stpred.models import Model
    from stpred.models.parts.pixel_grid import PixelGrid
    from stpred.models.xfuse.readout import Reading, Readout

REST = "rest"
"""What all other regions together are called in the result."""

PER = 1e4
"""Counts that shares are given of."""

_MOST_PAIRS = 50
_LEAST, _LEAST_SHARE = 1e-300, 1e-12
_LEAST_STD = 1e-6
_CENTRAL = 0.95


def differential_expression(
    sdata: SpatialData,
    model: Model | str | Path,
    shapes_key: str | None = None,
    *,
    by: str | None = None,
    pairs: Sequence[tuple[Any, Any]] | None = None,
    genes: Iterable[str] | None = None,
    n_samples: int = 50,
    seed: int = 0,
    image_key: str | None = None,
    encoder: Any = None,
    covariates: Mapping[str, str | None] | None = None,
    normalize_covariates: bool = False,
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
    by
        Column of the shapes, or of ``obs`` of the table that annotates them, whose classes are the regions: shapes of
        one class are summed (where two of them overlap, both count). Shapes of no class (missing values) are left out.
        None: each shape is a region, named by its index.
    pairs
        Which regions to compare, such as ``[("tumour", "stroma"), ("tumour", None)]``; None in the second place stands
        for all other regions together. None: every pair, if these are no more than 50.
    genes
        Genes to report; None: all. Shares are of all genes of the model in any case.
    n_samples
        Draws from the posterior, at least 2.
    seed
        Of the draws. With the same seed a place has the same latents, and the metagenes the same profiles, whichever
        regions are asked for.
    image_key
        H&E image; None takes the one in the micrometre frame.
    encoder, device, coordinate_system
        As in :func:`stpred.tl.predict`.
    covariates
        This slide's levels, such as ``{"patient": "a"}``; None for one that is not known: it is drawn from all of them.
    normalize_covariates
        Leave the effects of covariates, such as the section, out.

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
    >>> found = st.tl.differential_expression(slides["donor0"], model, "spots", by="side", n_samples=5)
    >>> found[["first", "second"]].iloc[0].tolist(), len(found)
    (['left', 'right'], 20)
    """
    trained = trained_model(model)
    need_generative(trained)
    columns = gene_columns(trained, genes)
    readout = _readout(trained, n_samples, seed, normalize_covariates=normalize_covariates, covariates=covariates)
    need_sdata(sdata)
    used = encoder_for(trained, encoder, device=device)
    region = region_for(sdata, trained, shapes_key=shapes_key, image_key=image_key, coordinate_system=coordinate_system)
    classes = Classes.of(sdata, region.shapes_key, by=by)
    classes, asked = classes.only(_checked_pairs(pairs, classes))
    codes = classes.codes_of(region)
    trained.to(pick_device(device))
    reader = data.PixelReader.of(region, used, described=False)
    reading = _read(trained, reader, region, codes=codes, n=len(classes.names) + 1, readout=readout)
    classes.check_pixels(reading.sizes.numpy(), asked, mpp=reader.canvas.mpp)
    sides = _Sides.of(reading.sums.numpy(), asked)
    frame = compare_regions(sides.sums, reading, first=sides.first, second=sides.second)
    found = _tidy(frame, columns, trained.record.genes, pairs=[classes.told(pair) for pair in asked])
    found.attrs[keys.UNS] = {
        "kind": "differential_expression",
        "model": trained.record.name,
        "model_id": trained.id,
        "image": region.pyramid.fingerprint,
        "shapes_key": region.shapes_key,
        "by": by,
        "n_samples": readout.n_samples,
        "seed": readout.seed,
        "normalize_covariates": readout.normalize_covariates,
        "covariates": None if readout.covariates is None else dict(readout.covariates),
        "left_out": {"off_image": region.n_outside},
        "versions": tables.package_versions(),
    }
    return found


def compare_regions(
    sums: NDArray[np.float64], reading: Reading, *, first: NDArray[np.int64], second: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    """Return what the draws say of the fold changes of pairs of regions, each as (p, n_genes).

    Parameters
    ----------
    sums
        (s, k, m) scale times activation of the metagenes, summed over the pixels of each region.
    reading
        The draws of profiles and baselines that belong to them; its own sums are not looked at.
    first, second
        (p,) rows of the regions in `sums`.
    """
    n_samples, n_genes = len(sums), reading.base.shape[1]
    shape = (len(first), n_genes)
    mean, square, above, tied = (np.zeros(shape) for _ in range(4))
    share = np.zeros((sums.shape[1], n_genes))
    for k, amounts in enumerate(sums):
        log_rate = reading.profiles[k].cpu().double() + (reading.base[k] + reading.logits[k]).cpu().double()
        expected = amounts @ log_rate.exp().numpy()
        # Shares, and the smallest one added: a gene that is nowhere is so alike in small and large regions.
        part = expected / np.maximum(expected.sum(axis=1, keepdims=True), _LEAST)
        log_share = np.log2(part + _LEAST_SHARE)
        change = log_share[first] - log_share[second]
        share += part / n_samples
        away = change - mean
        mean += away / (k + 1)
        square += away * (change - mean)
        above += change > 0
        tied += change == 0
    std = np.sqrt(square / (n_samples - 1))
    steady = np.abs(mean) / np.maximum(std, _LEAST_STD)
    right = (np.where(mean < 0, n_samples - above - tied, above) + tied / 2) / n_samples
    reach = -ndtri((1 - _CENTRAL) / 2) * std
    return {
        "log2_fold_change": mean,
        "std": std,
        "inverse_cv": steady,
        "probability": np.where(mean == 0, 0.5, np.where(right == 1, ndtr(steady), right)),
        "credible": np.abs(mean) > -ndtri((1 - _CENTRAL) / 2) * np.maximum(std, _LEAST_STD),
        "lower": mean - reach,
        "upper": mean + reach,
        "mean_first": PER * share[first],
        "mean_second": PER * share[second],
    }


@dataclass(frozen=True)
class Classes:
    """Regions of a slide that are made of shapes.

    Attributes
    ----------
    names
        What they are called.
    codes
        Region of each shape, by the shape's index; -1 for none.
    what
        Where the names come from, for messages.
    """

    names: list[Any]
    codes: pd.Series
    what: str

    @classmethod
    def of(cls, sdata: SpatialData, shapes_key: str, *, by: str | None) -> Classes:
        """Return the classes of a column, or each shape for itself; one region alone is refused."""
        element = sdata.shapes[shapes_key]
        if by is None:
            what = f"shapes {shapes_key!r}"
            found = cls(list(element.index), pd.Series(np.arange(len(element)), index=element.index), what)
        else:
            values = pd.Categorical(_column(sdata, shapes_key, by)).remove_unused_categories()
            what = f"column {by!r} of {shapes_key!r}"
            found = cls(list(values.categories), pd.Series(np.asarray(values.codes, np.int64), element.index), what)
        if len(found.names) < 2:
            raise InputError(
                f"There is nothing to compare: {what} has {len(found.names)} region"
                f"{'s' * (len(found.names) != 1)}{' ' + listing(found.names) if found.names else ''}; at least two are "
                "needed."
            )
        return found

    def position(self, name: Any) -> int:
        """Return the number of a region, by its name or what its name looks like."""
        for known in (self.names, [str(n) for n in self.names]):
            for asked in (name, str(name)):
                if asked in known:
                    return known.index(asked)
        raise InputError(f"There is no region {name!r} (`pairs`) in {self.what}; it has {listing(self.names)}.")

    def told(self, pair: tuple[int, int | None]) -> tuple[Any, Any]:
        """Return the names of a pair."""
        first, second = pair
        return self.names[first], REST if second is None else self.names[second]

    def only(self, pairs: list[tuple[int, int | None]]) -> tuple[Classes, list[tuple[int, int | None]]]:
        """Return the regions that pairs name, and the pairs in their numbers.

        All other regions have the number after the last one where a pair asks for them, else none (-1).
        """
        wanted = sorted({r for pair in pairs for r in pair if r is not None})
        rest = len(wanted) if any(second is None for _, second in pairs) else -1
        number = np.full(len(self.names) + 1, rest)  # the last one is that of -1
        number[wanted], number[-1] = np.arange(len(wanted)), -1
        of = {r: k for k, r in enumerate(wanted)}
        chosen = replace(self, names=[self.names[r] for r in wanted], codes=self.codes.map(lambda c: number[c]))
        return chosen, [(of[a], None if b is None else of[b]) for a, b in pairs]

    def codes_of(self, region: data.Region) -> NDArray[np.int64]:
        """Return the region of each location, -1 for none; a region of which nothing is on the image is refused."""
        codes = self.codes.loc[region.instances].to_numpy()
        if lost := [name for r, name in enumerate(self.names) if not (codes == r).any()]:
            raise InputError(f"The regions {listing(lost)} of {self.what} lie off image {region.image_key!r}.")
        return np.asarray(codes, dtype=np.int64)

    def check_pixels(self, sizes: NDArray[Any], pairs: list[tuple[int, int | None]], *, mpp: float) -> None:
        """Refuse regions of the pairs that hold no pixel, by (n + 1,) numbers of pixels."""
        if empty := [name for name, size in zip(self.names, sizes[:-1], strict=True) if size <= 0]:
            raise InputError(
                f"The regions {listing(empty)} of {self.what} hold no pixel of the model's {mpp:g} um: they are too "
                "small, or lie off the image but for their centre."
            )
        for first in {a for a, b in pairs if b is None and sizes.sum() <= sizes[a]}:
            raise InputError(f"There is no pixel in any region of {self.what} other than {self.names[first]!r}.")


@dataclass(frozen=True)
class MergedScene:
    """A scene whose targets are taken together: region `code` of each target, of which there may be millions."""

    scene: PixelGrid
    code: NDArray[np.int64]

    @property
    def bounds(self) -> Window:
        """The pixels that touch the image."""
        return self.scene.bounds

    def boxes(self) -> NDArray[np.int64]:
        """Return the (n, 4) boxes of the targets that were merged."""
        return self.scene.boxes()

    def fetch(self, windows: list[Window]) -> None:
        """Read what these windows show."""
        self.scene.fetch(windows)

    def image(self, window: Window) -> NDArray[np.float32]:
        """Return the (3, h, w) scaled pixels of a window."""
        return self.scene.image(window)

    def inside(self, window: Window) -> Coverage:
        """Return which pixels of a window lie in which regions, once for every target that they lie in."""
        found = self.scene.inside(window)
        code = self.code[found.target]
        order = np.argsort(code, kind="stable")
        return Coverage(code[order], found.pixel[order], found.share[order])


@dataclass(frozen=True)
class _Sides:
    """(s, k, m) sums of what is compared, and the (p,) rows of both sides of each pair."""

    sums: NDArray[np.float64]
    first: NDArray[np.int64]
    second: NDArray[np.int64]

    @classmethod
    def of(cls, sums: NDArray[np.float64], pairs: list[tuple[int, int | None]]) -> _Sides:
        """Make them from the (s, n + 1, m) sums of the regions and of what is in none that is named."""
        rows: dict[tuple[int, bool], int] = {}
        found = []
        for first, second in pairs:
            for code, others in ((first, False), (first, True) if second is None else (second, False)):
                if (code, others) not in rows:
                    rows[code, others] = len(rows)
                    found.append(np.delete(sums, code, axis=1).sum(axis=1) if others else sums[:, code])
        at = [(rows[a, False], rows[a, True] if b is None else rows[b, False]) for a, b in pairs]
        return cls(np.stack(found, axis=1), *np.array(at, dtype=np.int64).T)


def _readout(model: Any, n_samples: Any, seed: Any, **how: Any) -> Readout:
    from stpred.models.xfuse.readout import Readout

    if whole(n_samples, name="n_samples") < 2:
        raise InputError("`n_samples` must be at least 2: one draw says nothing of how sure the model is.")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise InputError(f"`seed` must be a whole number, at least 0, got {seed!r}.")
    readout = Readout(n_samples=n_samples, seed=int(seed), **how)
    model.covariates.of("", readout.covariates)  # refused before any work
    return readout


def _column(sdata: SpatialData, shapes_key: str, by: str) -> pd.Series:
    """Return a column of the shapes, or of the only table that annotates them and has it, by the shapes' index."""
    element = sdata.shapes[shapes_key]
    if by in element.columns and by != element.geometry.name:
        return element[by]
    annotating = {k: t for k, t in sdata.tables.items() if shapes_key in table_regions(t)}
    having = [k for k, t in annotating.items() if by in t.obs]
    if len(having) > 1:
        raise InputError(
            f"Several tables of {shapes_key!r} have a column {by!r}: {listing(having)}; copy the one you mean into "
            f"sdata.shapes[{shapes_key!r}][{by!r}]."
        )
    if not having:
        there = [c for c in element.columns if c != element.geometry.name]
        there += [c for t in annotating.values() for c in t.obs]
        raise InputError(
            f"Neither shapes {shapes_key!r} nor a table of theirs has a column {by!r} (`by`); available: "
            f"{listing(dict.fromkeys(there))}."
        )
    table = annotating[having[0]]
    rows, ids = table_instances(table, shapes_key)
    if not ids.is_unique:
        raise InputError(f"Table {having[0]!r} annotates some of {shapes_key!r} more than once.")
    return pd.Series(table.obs[by].iloc[rows].array, index=ids).reindex(element.index)


def _checked_pairs(pairs: Any, classes: Classes) -> list[tuple[int, int | None]]:
    """Return the pairs as numbers of regions, each once."""
    if pairs is None:
        n = len(classes.names)
        if n * (n - 1) // 2 > _MOST_PAIRS:
            raise InputError(
                f"{classes.what[0].upper()}{classes.what[1:]} has {n} regions, which makes {n * (n - 1) // 2} pairs; "
                "name those to compare with `pairs`, such as [('a', 'b'), ('a', None)]."
            )
        return list(combinations(range(n), 2))
    if isinstance(pairs, (str, bytes)) or not isinstance(pairs, Iterable):
        raise InputError(f"`pairs` must be a list of pairs of regions, such as [('a', 'b')], got {pairs!r}.")
    found: dict[tuple[int, int | None], None] = {}
    for pair in pairs:
        if isinstance(pair, (str, bytes)) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise InputError(f"`pairs` must hold pairs such as ('a', 'b') or ('a', None), got {pair!r}.")
        if pair[0] is None:
            raise InputError("Only the second region of a pair may be None (all others): swap the two.")
        first, second = (None if name is None else classes.position(name) for name in pair)
        if first == second:
            raise InputError(f"`pairs` compares region {pair[0]!r} with itself.")
        found[first, second] = None  # type: ignore[index]
    if not found:
        raise InputError("`pairs` is empty; name at least one pair of regions, or leave it out for every pair.")
    return list(found)


def _read(
    model: Any, reader: Any, region: data.Region, *, codes: NDArray[np.int64], n: int, readout: Readout
) -> Reading:
    """Return the draws of `n` regions, of which `codes` says which one each location belongs to (-1: none)."""
    from stpred.models.xfuse.readout import read_out

    rows = np.flatnonzero(codes >= 0)
    sums: Any = 0.0
    sizes: Any = 0.0
    for part, batch in reader.blocks(region.take(rows)):
        scene: Any = MergedScene(batch.pixel_grid, codes[rows[part]])
        found = read_out(model, replace(batch, pixel_grid=scene, targets=np.zeros(n, dtype=np.int64)), readout)
        sums, sizes = sums + found.sums.cpu().double(), sizes + found.sizes.cpu().double()
    # Profiles and baselines are the same in each part, since the seed is.
    return replace(found, sums=sums, sizes=sizes)


def _tidy(
    values: dict[str, NDArray[Any]], columns: list[int], genes: list[str], *, pairs: list[tuple[Any, Any]]
) -> pd.DataFrame:
    """Return a row for each pair and gene, sorted within the pair."""
    names = np.asarray(genes, dtype=object)[columns]
    parts = []
    for p, (first, second) in enumerate(pairs):
        order = np.argsort(-values["inverse_cv"][p][columns], kind="stable")
        told = {"first": first, "second": second, "gene": names[order]}
        parts.append(pd.DataFrame(told | {k: v[p][columns][order] for k, v in values.items()}))
    return pd.concat(parts, ignore_index=True)

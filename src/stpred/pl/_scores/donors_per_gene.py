from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from stpred import metrics
from stpred._core.checks import InputError, fraction_of
from stpred.pl._figure import finish, plain, single
from stpred.pl._scores.frames import of_metric, of_model

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def donors_per_gene(
    scores: pd.DataFrame,
    *,
    model: str | None = None,
    metric: str = "pearson",
    target: str | None = None,
    null: Literal["binomial", "sign_flips"] = "sign_flips",
    level: float = 0.95,
    n_samples: int = 2000,
    seed: int = 0,
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Draw in how many donors genes are predicted with a positive correlation, against chance.

    Parameters
    ----------
    scores
        Tidy frame with a column ``donor``, such as of :func:`stpred.tl.cross_validate` or :func:`stpred.tl.validate`.
    model
        Which model; None: the only one.
    metric, target
        Correlation and scale, averaged over each donor's slides; undefined ones count as not positive.
    null
        Chance, as of :func:`stpred.metrics.positive_donors`: ``"sign_flips"`` keeps that genes of a donor resemble each
        other, ``"binomial"`` takes each for itself.
    level
        Of the limits of chance, and one minus the family-wise error at which a gene counts as predicted consistently.
    n_samples, seed
        Draws of chance.
    ax
        Axes to draw into; None makes a figure.
    save
        File to write the figure to.

    Returns
    -------
    The axes: a bar for every number of donors, darker from where a gene passes the binomial test after Holm, with the
    number of genes expected by chance and its limits.

    Raises
    ------
    InputError
        If there are fewer than two donors, or several models and none is named.

    References
    ----------
    He et al., Integrating spatial gene expression and breast tumour morphology via deep learning, Nature Biomedical
    Engineering 4 (2020).

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(3, size_um=(500, 500), n_genes=20)
    >>> scores = st.tl.cross_validate(slides, ["ridge"], groups="slide", genes="all", shapes_key="spots")
    >>> axes = st.pl.donors_per_gene(scores)
    """
    level = fraction_of(level, name="level")
    part, name = of_model(of_metric(scores, metric, target), model)
    if "donor" not in part:
        raise InputError("`scores` has no column 'donor'; stpred.tl.cross_validate and stpred.tl.validate write it.")
    per_slide = part.groupby(["donor", "slide", "gene"], observed=True)["value"].mean()
    wide = per_slide.groupby(level=["donor", "gene"]).mean().unstack("gene").to_numpy(dtype=np.float64)
    n_donors = len(wide)
    if n_donors < 2:
        raise InputError("Genes are counted over two donors or more, `scores` has one.")
    found = metrics.positive_donors(wide, null=null, level=level, n_samples=n_samples, seed=seed)
    tested = metrics.consistent_genes(wide, alpha=round(1 - level, 12))
    numbers = np.arange(n_donors + 1)
    passing = [bool(tested.consistent[tested.n_positive == k].any()) for k in numbers]
    ax = single(ax, size=(max(4.8, 1.6 + 0.34 * n_donors), 4.2))
    colors = ["C0" if p else "0.72" for p in passing]
    ax.bar(numbers, found.n_genes, width=0.8, color=colors, edgecolor="white")
    chance = {"binomial": "coin tosses", "sign_flips": "signs of donors flipped"}[null]
    spread = np.abs(np.stack([found.low, found.high]) - found.expected)
    label = f"chance: {chance} (mean, {100 * level:g} % of draws)"
    ax.errorbar(numbers, found.expected, yerr=spread, fmt="o", color="C3", markersize=4, capsize=2, label=label)
    n = int(tested.consistent.sum())
    said = f"{n} of {wide.shape[1]} genes pass (binomial test, Holm)"
    if not n and 0.5**n_donors * wide.shape[1] > 1 - level:
        said = f"{n_donors} donors are too few for any gene to pass the binomial test after Holm"
    ax.set_title(f"{name.replace('_', ' ')}: {said}", fontsize=9, loc="left")
    ax.set(xlabel=f"donors of {n_donors} with a positive {metric.replace('_', ' ')}", ylabel="genes")
    from matplotlib.ticker import MaxNLocator

    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylim(0, 1.14 * max(float(found.high.max()), float(found.n_genes.max())))  # room for the legend
    ax.legend(frameon=False, fontsize=8, loc="upper left")
    plain(ax)
    return finish(ax, save)

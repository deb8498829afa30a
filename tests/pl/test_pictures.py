"""Every plot against a picture of it that was looked at.

``STPRED_REFERENCES=make pytest tests/pl/test_pictures.py`` draws the pictures anew; look at each of them before it is
committed. They are drawn without text, which every platform renders a little differently, so what is written is asked
for in words here and in the other tests.
"""

from __future__ import annotations

import os
import types
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.testing.compare import compare_images
from matplotlib.text import Text
from packaging.version import Version
from PIL import Image
from spatialdata import SpatialData

import stpred as st
from stpred import InputError, rasters
from stpred.metrics import compare_models
from stpred.testing import build_table

REFERENCE = Path(__file__).parent / "reference"
MAKE = os.environ.get("STPRED_REFERENCES") == "make"
TOLERANCE = 9.0
"""Root mean square over pixels, of 255."""


@pytest.fixture(autouse=True)
def _own_style() -> Iterator[None]:
    mpl.use("Agg")
    with mpl.style.context("default"):
        yield
    plt.close("all")


@cache
def slide() -> SpatialData:
    """Synthetic tissue with a prediction that is partly right, and a map."""
    sdata = st.datasets.toy(size_um=(600, 600), n_genes=20, seed=3)
    measured = sdata.tables["spots_counts"]
    rng = np.random.default_rng(0)
    counts = measured.X.toarray()
    log = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    score = np.linspace(0.9, 0.05, measured.n_vars)
    noise = rng.normal(size=log.shape) * log.std(axis=0)
    values = log.mean(axis=0) + score * (log - log.mean(axis=0)) + (1 - score) * noise
    var = pd.DataFrame({"cv_pearson": score, "rmax": np.clip(score + 0.1, 0, 1), "trusted": score > 0.4})
    table = build_table(
        values.astype(np.float32),
        shapes_key="spots",
        instances=pd.Index(measured.obs["instance_id"]),
        var=var.set_index(measured.var_names),
        spatial_um=measured.obsm["spatial"],
        obs={"group": pd.Categorical(np.where(measured.obsm["spatial"][:, 0] > 300, "right", "left"))},
        provenance={"kind": "prediction", "model": "made up", "output_scale": "log1p_cp10k"},
    )
    table.obs["group"] = pd.Categorical(table.obs["group"])
    sdata.tables["predicted"] = table
    frame = rasters.Frame.around((80.0, 40.0, 520.0, 400.0), 16.0)
    height, width = frame.shape
    down, across = np.mgrid[:height, :width]
    picture = np.sin(across / 4) + np.cos(down / 3)
    picture[:6, :6] = np.nan
    sdata.images["map"] = rasters.element(picture[None].astype(np.float32), ["EPCAM"], frame)
    return sdata


def scores(n_genes: int = 60) -> pd.DataFrame:
    """A tidy frame as of cross-validation: two scales, three models, their context and their ceiling."""
    rng = np.random.default_rng(1)
    rows = []
    middle = {"ridge": 0.35, "miso": 0.45, "mean": 0.0, "library_size": 0.2, "neighbour_average": 0.5}
    gene = rng.normal(scale=0.15, size=n_genes)
    for target in ("log1p_cp10k", "counts"):
        for slide in ("a", "b", "c"):
            for model, level in middle.items():
                values = np.clip(level + gene + rng.normal(scale=0.05, size=n_genes), -1, 1)
                values = np.full(n_genes, np.nan) if model == "mean" else values
                rows.append((target, slide, model, "pearson", values))
            rows.append((target, slide, "ceiling", "reliability", np.clip(0.7 + gene, 0, 1)))
            rows.append((target, slide, "ceiling", "rmax", np.clip(0.8 + gene, 0, 1)))
            rows.append((target, slide, "ridge", "rmse", np.full(n_genes, np.nan)))
    genes = [f"G{i}" for i in range(n_genes)]
    parts = [
        pd.DataFrame({"target": t, "slide": s, "model": m, "metric": k, "gene": genes, "value": v})
        for t, s, m, k, v in rows
    ]
    return pd.concat(parts, ignore_index=True)


def by_donor(n_donors: int, n_genes: int = 60) -> pd.DataFrame:
    """A tidy frame of four models on several donors; the first genes are the easiest."""
    rng = np.random.default_rng(5)
    parts = []
    for model, level in {"ridge": 0.4, "mlp": 0.36, "miso": 0.3, "weak": 0.08}.items():
        for d in range(n_donors):
            values = level * np.linspace(1.5, 0.5, n_genes) + rng.normal(0, 0.05) + rng.normal(0, 0.1, n_genes)
            parts.append(pd.DataFrame({"model": model, "slide": f"s{d}", "donor": f"D{d}", "value": values}))
    frame = pd.concat(parts, ignore_index=True).assign(metric="pearson", target="log1p_cp10k", fold="")
    return frame.assign(gene=[f"G{i}" for i in range(n_genes)] * (4 * n_donors))


def per_gene(n: int = 80) -> pd.DataFrame:
    rng = np.random.default_rng(2)
    ceiling = rng.uniform(0.1, 0.95, n)
    frame = pd.DataFrame(
        {"rmax": ceiling, "pearson": ceiling * rng.uniform(0, 1, n), "mean_count": rng.lognormal(size=n)}
    )
    frame["trusted"] = frame["pearson"] > 0.3
    return frame.set_index(pd.Index([f"GENE{i}" for i in range(n)], name="gene"))


def covered(*, slides: bool = True) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    rows = [
        (g, level, np.clip(level - 0.04 + 0.03 * s + rng.normal(scale=0.03), 0, 1), 200, f"slide{s}")
        for g in range(30)
        for level in (0.5, 0.8, 0.9, 0.95)
        for s in range(3)
    ]
    frame = pd.DataFrame(rows, columns=["gene", "level", "coverage", "n_locations", "slide"])
    return frame if slides else frame[frame["slide"] == "slide0"].drop(columns="slide")


def ranks(n: int = 40) -> pd.DataFrame:
    rng = np.random.default_rng(4)
    score = rng.normal(scale=0.3, size=n)
    wide = rng.uniform(0.05, 0.35, n)
    return pd.DataFrame(
        {"gene": [f"GENE{i}" for i in range(n)], "score": score, "low": score - wide, "high": score + wide}
    )


def compared() -> Any:
    values = np.array([[0.5, 0.45, 0.0], [0.4, 0.45, 0.0], [0.45, 0.3, 0.1], [0.5, 0.4, 0.0]])
    return compare_models(values, ["miso", "ridge", "mean"])


def model(curve: dict[str, list[float]] | None, **facts: Any) -> Any:
    record = types.SimpleNamespace(name="mine", training={"curve": curve, **facts})
    return types.SimpleNamespace(record=record, family="mlp", config=types.SimpleNamespace(epochs=None))


LEARNED = {"loss": [float(x) for x in np.exp(-np.arange(20) / 6)], "pearson": [0.4 - 0.4 / (i + 1) for i in range(20)]}
SETS = {"epithelium": ["EPCAM", "KRT8", "NOPE"], "stroma": ["COL1A1", "DCN", "VIM"]}

PICTURES: dict[str, Callable[..., Any]] = {
    "spatial": lambda **how: st.pl.spatial(slide(), "predicted", ["EPCAM", "COL1A1"], **how),
    "compare": lambda **how: st.pl.compare(slide(), "predicted", "spots_counts", genes=["EPCAM", "DCN"], **how),
    "raster": lambda **how: st.pl.raster(slide(), "map", "EPCAM", **how),
    "gallery": lambda **how: st.pl.gallery(slide(), "predicted", color=["EPCAM", "DCN"], n=4, size_um=60, **how),
    "genes": lambda **how: st.pl.genes(per_gene(), **how),
    "genes_var": lambda **how: st.pl.genes(slide().tables["predicted"].var, n_labels=3, **how),
    "models": lambda **how: st.pl.models(scores(), target="log1p_cp10k", **how),
    "models_slides": lambda **how: st.pl.models(scores(), target="counts", points="slide", **how),
    "models_compared": lambda **how: st.pl.models(
        scores(), target="log1p_cp10k", order=["miso", "ridge", "mean"], comparison=compared(), **how
    ),
    "boxes": lambda **how: st.pl.boxes(
        by_donor(4), groupby="slide", tests=st.tl.paired_tests(by_donor(4), groupby="slide", reference="ridge"), **how
    ),
    "boxes_donors": lambda **how: st.pl.boxes(
        by_donor(9), points="donor", tests=st.tl.paired_tests(by_donor(9), over="donor"), **how
    ),
    "top_genes": lambda **how: st.pl.top_genes(st.tl.top_gene_curve(by_donor(9), n_genes=[10, 20, 40, 60]), **how),
    "critical_difference": lambda **how: st.pl.critical_difference(st.tl.rank_models(by_donor(9)), **how),
    "critical_difference_wilcoxon": lambda **how: st.pl.critical_difference(
        st.tl.rank_models(by_donor(9)), test="wilcoxon", **how
    ),
    "donors_per_gene": lambda **how: st.pl.donors_per_gene(by_donor(12), model="weak", **how),
    "donors_per_gene_binomial": lambda **how: st.pl.donors_per_gene(by_donor(12), model="weak", null="binomial", **how),
    "coverage": lambda **how: st.pl.coverage(covered(), **how),
    "coverage_one_slide": lambda **how: st.pl.coverage(covered(slides=False), **how),
    "markers": lambda **how: st.pl.markers(slide(), "predicted", SETS, groupby="group", **how),
    "markers_dots": lambda **how: st.pl.markers(
        slide(), "predicted", SETS["stroma"], groupby="group", kind="dots", **how
    ),
    "differential_rank": lambda **how: st.pl.differential_rank(ranks(), **how),
    "training": lambda **how: st.pl.training(model(LEARNED, epochs=15), **how),
}


def figure_of(axes: Any) -> Any:
    return np.ravel(axes)[0].figure


other_layout = pytest.mark.skipif(
    Version(mpl.__version__) < Version("3.10"), reason="matplotlib laid figures out otherwise"
)


@other_layout
@pytest.mark.parametrize("name", PICTURES)
def test_the_picture_is_as_it_was_when_it_was_looked_at(name: str, tmp_path: Path) -> None:
    figure = figure_of(PICTURES[name]())
    for text in figure.findobj(Text):
        text.set_visible(False)
    drawn = REFERENCE / f"{name}.png" if MAKE else tmp_path / f"{name}.png"
    REFERENCE.mkdir(exist_ok=True)
    figure.savefig(drawn, dpi=50, metadata={"Software": None})
    if MAKE:  # to the eye the same, at half of the size
        Image.open(drawn).convert("RGB").quantize(200, dither=Image.Dither.NONE).save(drawn, optimize=True)
    else:
        said = compare_images(str(REFERENCE / drawn.name), str(drawn), TOLERANCE)
        assert said is None, said


@pytest.mark.parametrize("name", PICTURES)
def test_every_plot_returns_axes_and_writes_a_file(name: str, tmp_path: Path) -> None:
    axes = PICTURES[name](save=tmp_path / "new" / "picture.png")
    kinds = {type(ax) for ax in np.ravel(axes)}
    assert all(issubclass(k, mpl.axes.Axes) for k in kinds)
    assert isinstance(axes, (mpl.axes.Axes, np.ndarray))
    assert (tmp_path / "new" / "picture.png").read_bytes()[:4] == b"\x89PNG"
    assert not plt.get_fignums()  # what is written is closed


@other_layout
def test_a_picture_of_something_else_is_told_from_it(tmp_path: Path) -> None:
    """The tolerance has teeth: other values, other colours and a missing panel are all beyond it."""
    if MAKE:
        pytest.skip("pictures are being made")
    others = {
        "coverage": lambda: st.pl.coverage(covered().assign(coverage=lambda f: f["coverage"] ** 2)),
        "raster": lambda: st.pl.raster(slide(), "map", "EPCAM", cmap="magma"),
        "compare": lambda: st.pl.compare(slide(), "predicted", "spots_counts", genes=["DCN", "EPCAM"]),
        "models": lambda: st.pl.models(scores().assign(value=lambda f: f["value"] ** 2), target="log1p_cp10k"),
    }
    for name, draw in others.items():
        figure = figure_of(draw())
        for text in figure.findobj(Text):
            text.set_visible(False)
        figure.savefig(tmp_path / f"{name}.png", dpi=50)
        assert compare_images(str(REFERENCE / f"{name}.png"), str(tmp_path / f"{name}.png"), TOLERANCE) is not None, (
            name
        )


def test_maps_have_scale_bars() -> None:
    from matplotlib_scalebar.scalebar import ScaleBar

    for name in ("spatial", "compare", "raster"):
        for ax in np.ravel(PICTURES[name]()):
            bars = [a for a in ax.artists if isinstance(a, ScaleBar)]
            assert len(bars) == (ax.get_xlabel().strip() == ""), (name, ax.get_title())


def test_errors_are_predicted_minus_measured_around_zero() -> None:
    from matplotlib.collections import PatchCollection, PathCollection

    axes = PICTURES["compare"]()
    sdata = slide()
    counts = sdata.tables["spots_counts"].X.toarray()
    log = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    guessed = np.asarray(sdata.tables["predicted"].X)
    names = list(sdata.tables["predicted"].var_names)
    errors = {g: guessed[:, names.index(g)] - log[:, names.index(g)] for g in ("EPCAM", "DCN")}
    limit = np.quantile(np.abs(np.r_[errors["EPCAM"], errors["DCN"]]), 0.99)
    for at, gene in ((2, "EPCAM"), (6, "DCN")):
        assert axes[at].get_title() == f"{gene}, error"
        (bar,) = [c for c in figure_of(axes).axes if c.get_label() == "<colorbar>" and _beside(c, axes[at])]
        np.testing.assert_allclose(bar.get_ylim(), (-limit, limit), rtol=1e-4)  # one scale for all genes
        (spots,) = [c for c in axes[at].collections if isinstance(c, PatchCollection | PathCollection)]  # by version
        shown = spots.get_facecolor()[:, :3]
        blue, red = shown[errors[gene].argmin()], shown[errors[gene].argmax()]
        assert blue[2] > blue[0]
        assert red[0] > red[2]


def _beside(bar: Any, ax: Any) -> bool:
    mine = bar._colorbar.ax.get_subplotspec() if bar.get_subplotspec() else None
    return mine is not None and mine == ax.get_subplotspec() or ax in bar._colorbar_info["parents"]


def test_violins_show_each_gene_once_with_its_context() -> None:
    ax = st.pl.models(scores(), target="log1p_cp10k")
    labels = [t.get_text() for t in ax.get_xticklabels()]
    assert labels == [
        "miso",
        "ridge",
        "mean",
        "library size",
        "neighbour average",
    ]  # best median first, then the context
    frame = scores()
    part = frame[(frame.model == "miso") & (frame.target == "log1p_cp10k")].groupby("gene").value.mean()
    points = ax.collections[1].get_offsets()  # after the body of the first violin
    np.testing.assert_allclose(np.sort(points[:, 1]), np.sort(part))
    assert f"{part.median():.2f}" in [t.get_text() for t in ax.texts]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["ceiling (reliability), median 0.70"]
    mean = ax.texts[labels.index("mean")].get_text()
    assert mean == "0.00"  # a prediction that does not vary tells nothing
    one = st.pl.models(scores()[lambda f: f.target == "counts"], points="slide")
    assert len(one.collections[1].get_offsets()) == 3
    donors = scores().assign(donor=lambda f: f.slide.map({"a": "A", "b": "A", "c": "B"}))
    said = st.pl.models(donors, target="counts").get_xlabel()
    assert said == "each point is one of 60 genes, averaged over 3 slides of 2 donors"
    narrow = st.pl.models(donors, target="counts", points="slide", order=["miso"]).get_xlabel()
    assert narrow == "each point is one of 3 slides of 2 donors,\naveraged over 60 genes"
    bounds = scores()[lambda f: f.metric != "reliability"]
    assert st.pl.models(bounds, target="log1p_cp10k").get_legend() is None  # rmax is of raw counts
    assert "rmax" in st.pl.models(bounds, target="counts").get_legend().get_texts()[0].get_text()


def test_bars_join_models_that_cannot_be_told_apart() -> None:
    ax = PICTURES["models_compared"]()
    bars = [line for line in ax.lines if line.get_marker() == "o"]
    order = ["miso", "ridge", "mean"]
    assert compared().groups == (("miso", "ridge"), ("ridge", "mean"))
    assert [list(b.get_xdata()) for b in bars] == [[order.index(n) for n in g] for g in compared().groups]
    assert bars[0].get_ydata()[0] != bars[1].get_ydata()[0]
    assert "4 blocks" in ax.get_xlabel()
    with pytest.raises(InputError, match="is of none of the models"):
        st.pl.models(scores(), target="counts", order=["neighbour_average"], comparison=compared())


def test_genes_names_the_best_and_knows_what_is_a_ceiling() -> None:
    frame = per_gene()
    ax = st.pl.genes(frame, n_labels=3)
    best = frame["pearson"].sort_values(ascending=False).index[:3]
    assert [t.get_text() for t in ax.texts] == list(best)
    said = [t.get_text() for t in ax.get_legend().get_texts()]
    assert said == [f"not trusted ({(~frame.trusted).sum()})", f"trusted ({frame.trusted.sum()})", "score = rmax"]
    ax = st.pl.genes(frame.drop(columns="trusted"), x="mean_count")
    assert ax.get_xscale() == "log"
    assert ax.get_legend() is None
    assert st.pl.genes(frame.rename(columns={"pearson": "cv_pearson"})).get_ylabel().endswith("left-out slides")


def test_coverage_draws_the_mean_over_genes() -> None:
    frame = covered()
    ax = st.pl.coverage(frame)
    lines = {line.get_label(): line for line in ax.lines}
    assert set(lines) == {"calibrated", "slide0", "slide1", "slide2", "mean"}
    mean = frame.groupby(["level", "gene"]).coverage.mean().groupby("level").mean()
    np.testing.assert_allclose(lines["mean"].get_ydata(), mean)
    one = frame[frame.slide == "slide1"].groupby("level").coverage.mean()
    np.testing.assert_allclose(lines["slide1"].get_ydata(), one)


def test_markers_are_z_scores_with_stars_for_trusted_genes() -> None:
    table = slide().tables["predicted"]
    ax = PICTURES["markers"]()
    wanted = ["EPCAM", "KRT8", "COL1A1", "DCN"]
    trusted = table.var.loc[wanted, "trusted"]
    assert [t.get_text() for t in ax.get_xticklabels()] == [g + " *" * t for g, t in trusted.items()]
    z = (table[:, wanted].X - table[:, wanted].X.mean(axis=0)) / table[:, wanted].X.std(axis=0)
    means = pd.DataFrame(z).groupby(table.obs["group"].to_numpy()).mean().to_numpy()
    np.testing.assert_allclose(np.ravel(ax.collections[0].get_array()), means.ravel(), atol=1e-5)
    frame = pd.DataFrame({"group": ["left"] * 3 + ["right"] * 3, "gene": ["DCN", "VIM", "KRT8", "EPCAM", "DCN", "VIM"]})
    ax = st.pl.markers(slide(), "predicted", frame, groupby="group", n_genes=1)
    assert [t.get_text().removesuffix(" *") for t in ax.get_xticklabels()] == ["DCN", "EPCAM"]


def test_ranks_are_those_furthest_from_zero() -> None:
    frame = ranks()
    ax = st.pl.differential_rank(frame, n_genes=5)
    far = frame.loc[frame.score.abs().nlargest(5).index].sort_values("score").gene
    assert [t.get_text() for t in ax.get_yticklabels()] == list(far)
    alone = st.pl.differential_rank(frame.set_index("gene").assign(low=np.nan, high=np.nan), n_genes=5)
    assert [t.get_text() for t in alone.get_yticklabels()] == list(far)


def test_training_marks_the_epochs_and_knows_who_has_none() -> None:
    assert len(st.pl.training(model({"loss": [1.0, 0.5]}))) == 1
    axes = PICTURES["training"]()
    assert [ax.get_ylabel() for ax in axes] == ["training loss", "mean held-out Pearson"]
    assert axes[0].lines[1].get_xdata()[0] == 15
    with pytest.raises(InputError, match="'mine' was saved without its curve"):
        st.pl.training(model(None))
    closed = model(None)
    closed.config = types.SimpleNamespace()
    with pytest.raises(InputError, match="is solved in closed form"):
        st.pl.training(closed)
    with pytest.raises(InputError, match="must be a trained model, got str"):
        st.pl.training("folder")


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        (lambda: st.pl.genes(per_gene(), x="nope"), r"`scores` lacks the columns \['nope'\]"),
        (lambda: st.pl.genes({"pearson": 1}), "must be a DataFrame"),  # type: ignore[arg-type]
        (lambda: st.pl.genes(pd.concat([per_gene(), per_gene()])), "several rows of genes"),
        (lambda: st.pl.genes(per_gene().assign(pearson=np.nan)), "No gene of `scores` has both"),
        (lambda: st.pl.models(scores()), "name one with `target`"),
        (lambda: st.pl.models(scores(), target="nope"), "No scale named 'nope'"),
        (lambda: st.pl.models(scores(), target="counts", metric="nope"), "No score named 'nope'"),
        (lambda: st.pl.models(scores(), target="counts", metric="rmse"), "No model has a value of 'rmse'"),
        (lambda: st.pl.models(scores(), target="counts", order=["nope"]), "No model named 'nope'"),
        (lambda: st.pl.models(scores(), target="counts", points="fold"), "`points` must be one of"),  # type: ignore[arg-type]
        (lambda: st.pl.boxes(by_donor(3), groupby="gene"), "are both 'gene': a box of one value"),
        (lambda: st.pl.boxes(by_donor(3), column="nope"), "No column of `scores` named 'nope'"),
        (lambda: st.pl.boxes(by_donor(3), order=["nope"]), "`order` names 'nope', which is none of 'model'"),
        (lambda: st.pl.boxes(by_donor(3), metric="rmse"), "No score named 'rmse'"),
        (
            lambda: st.pl.boxes(by_donor(3), tests=st.tl.paired_tests(by_donor(3)).assign(first="other")),
            "`tests` has none of the groups and models",
        ),
        (lambda: st.pl.boxes(by_donor(3), tests=by_donor(3)), r"`tests` lacks the columns \['first', 'second'"),
        (lambda: st.pl.top_genes(by_donor(3)), r"`curve` lacks the columns"),
        (lambda: st.pl.critical_difference(by_donor(3)), "must be what stpred.tl.rank_models returns"),  # type: ignore[arg-type]
        (lambda: st.pl.donors_per_gene(by_donor(3)), "has the models .*; name one with `model`"),
        (lambda: st.pl.donors_per_gene(by_donor(1), model="ridge"), "two donors or more"),
        (lambda: st.pl.donors_per_gene(by_donor(3).drop(columns="donor"), model="ridge"), "no column 'donor'"),
        (lambda: st.pl.coverage(covered().drop(columns="level")), r"lacks the columns \['level'\]"),
        (lambda: st.pl.coverage(covered().iloc[:0]), "has no row to draw"),
        (lambda: st.pl.differential_rank(ranks(), n_genes=0), "`n_genes` must be a positive whole number"),
        (lambda: st.pl.differential_rank(ranks().assign(gene="A")), "several rows of one gene"),
        (lambda: st.pl.differential_rank(ranks().assign(score=np.nan)), "No gene of `frame` has a score"),
        (lambda: st.pl.markers(slide(), "nope", ["EPCAM"], groupby="group"), "No table named 'nope'"),
        (lambda: st.pl.markers(slide(), "predicted", ["NOPE"], groupby="group"), r"has none of the genes \['NOPE'\]"),
        (lambda: st.pl.markers(slide(), "predicted", ["EPCAM"], groupby="nope"), "No obs column named 'nope'"),
        (
            lambda: st.pl.markers(slide(), "predicted", ["EPCAM"], groupby="instance_id", kind="x"),
            "`kind` must be one of",
        ),  # type: ignore[arg-type]
        (lambda: st.pl.coverage(covered(), save="a.nope"), "`save` must end in a format"),
    ],
)
def test_bad_input_is_named(draw: Callable[[], Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        draw()

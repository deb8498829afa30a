"""What predictions on HER2ST say downstream, one figure per analysis, and how far it agrees with what was measured.

    python scripts/her2st_analyses.py ../shared/data/her2st analyses --gene-sets ../shared/data/gene_sets

Sections C2 to C5 of one patient (HER2-positive breast cancer, legacy ST): each is predicted by ridge on morphology,
trained on the other three, 2 000 genes; most figures are of C5. Two to three minutes on one core. What was seen:

``clusters.png``
    The cluster at the left tip is the fibrous tissue there, found by morphology alone as well; the others are
    interleaved (adjusted Rand index of the two 0.37).
``markers_predicted.png``, ``markers_measured.png``
    Cluster 1 is vessels and fibrous stroma (PLVAP, MXRA8), 2 stroma with macrophages (C1QA, APOC1, TYMP), 4 answers to
    interferon (STAT1, TAP1), 0 is dense tumour (most measured EPCAM, too), 3 a diffuse rest with KRT81 and KRT86.
    Counts agree on PLVAP, C1QA, STAT1 and HNRNPF, at about half the contrast; GAPDH in cluster 1 is not confirmed.
``enrichment.png``
    Stroma and macrophages: epithelial-mesenchymal transition (a collagen signature here), coagulation and complement;
    the interferon response of cluster 4 is at the margin (adjusted p 0.06). As expected; the tumour clusters have none.
``pathways.png``
    PROGENy: JAK-STAT (r 0.48 with the measured activity, along the interferon cluster) and TGFb (0.48, in stroma) can
    be believed, MAPK (0.40) and Estrogen (0.33) less. Hypoxia (0.11), EGFR, NFkB and Androgen (0.05 and below) cannot,
    however smooth their predicted maps are.
``differential_rank.png``
    With predicted proliferation as a stand-in for a risk (no survival is known here): epithelial genes (CDH1, EPCAM) on
    one end, vessels and stroma (PLVAP, BGN, COL6A2) on the other. Predictions reach the largest possible score, since
    they vary along few axes, so their intervals say nothing; measured genes by the same risk agree in order (r 0.90),
    but reach half as far.
``colocalization.png``
    Macrophages, plasma cells and fibroblasts share the stroma; endothelium avoids the tumour. Tumour and immune genes
    neither seek nor avoid each other, predicted or measured. Predictions exaggerate (-0.71 where -0.26 was measured).
    T-cell genes are too rare to be predicted.
``pseudobulk.png``
    Over genes 0.86 to 0.95, which is no better than the mean of the other sections (0.90 to 0.96). Within genes, four
    sections of one patient tell nothing: leaving one out makes the training mean fall where the section is high.
    Predictions lie below the diagonal: a model of the mean logarithm underestimates the mean.
``feature_associations.png``
    EPCAM goes along with dark, coarsely structured nuclei on all four sections (about 0.5); COL1A2 weakly against them
    (-0.25).
``attribution.png``
    Ridge on random, never trained convolutions (held-out r 0.58 for EPCAM): the dark nuclei of the epithelial cords
    raise EPCAM and lower C1QA. Plausible, but it says "dark nuclei", not "tumour": small nuclei of the stroma in the
    lower tile do the same. Frames at the tile's border are of the convolutions, not of the tissue.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import pandas as pd

import stpred as st
from stpred import metrics

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

SHOWN, TABLE, MEASURED = "C5", "spots_ridge", "spots_counts"
TYPES = {
    "tumour": ["EPCAM", "KRT8", "KRT18", "KRT19", "KRT7", "ERBB2", "GRB7", "CLDN4", "SPINT2", "ELF3"],
    "T cells": ["CD3E", "CD3D", "CD2", "TRAC", "TRBC1", "TRBC2", "IL7R", "CD52", "LTB", "CCL5", "CORO1A"],
    "plasma and B": ["IGKC", "IGHG1", "IGHG3", "IGHG4", "IGLC2", "IGLC3", "JCHAIN", "MZB1", "IGHA1", "MS4A1", "CD79A"],
    "myeloid": ["CD68", "CD14", "C1QA", "C1QB", "C1QC", "LYZ", "AIF1", "TYROBP", "FCER1G", "APOE", "CTSB"],
    "fibroblasts": ["COL1A1", "COL1A2", "COL3A1", "DCN", "LUM", "FN1", "SPARC", "POSTN", "COL6A3", "THY1"],
    "endothelium": ["PECAM1", "VWF", "CLDN5", "AQP1", "PLVAP", "A2M", "IGFBP7", "CAVIN1", "EGFL7"],
}
PATHWAYS = ["JAK-STAT", "TGFb", "MAPK", "Estrogen", "Hypoxia"]
STAND_IN = "HALLMARK_G2M_CHECKPOINT"


def main() -> None:
    """Run all analyses and write them to a folder."""
    mpl.use("Agg")
    args = _arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    st.settings.cache_dir = str(args.out / "cache")
    begin = time.perf_counter()
    slides, _ = st.io.read_cohort([args.folder])
    for name, slide in slides.items():
        model = st.tl.train(
            {k: s for k, s in slides.items() if k != name},
            st.models.Ridge.Config(context_um=520.0),
            genes=st.GeneRule("mean", n=2000),
            shapes_key="spots",
        )
        st.tl.predict(slide, model, shapes_key="spots")
        _say(f"{name}: predicted by a model of the other three sections of the same patient")
    slide = slides[SHOWN]
    hallmark, progeny = args.gene_sets / "hallmark_v7.gmt", args.gene_sets / "progeny_human.csv"
    groups(slide, args.out, hallmark)
    pathways(slide, args.out, progeny)
    risk(slides, args.out, hallmark)
    together(slide, args.out)
    bulk(slides, args.out)
    associations(slides, args.out)
    pixels(slides, args.out)
    _say(f"done in {time.perf_counter() - begin:.0f} s, on {time.process_time():.0f} s of processor")


def groups(slide: SpatialData, out: Path, hallmark: Path) -> None:
    """Clusters of the prediction: where they are, their markers, the same markers as measured, enriched hallmarks."""
    import matplotlib.pyplot as plt
    import scanpy as sc
    from sklearn.metrics import adjusted_rand_score

    table, counts = slide.tables[TABLE], slide.tables[MEASURED]
    features = st.pp.features(slide, "morphology", shapes_key="spots", inplace=False)
    table.obs["cluster"] = _clusters(table[:, table.var["trusted"].to_numpy()])
    features.obs["cluster"] = _clusters(features)
    counts.obs["cluster"] = _joined(counts, table.obs["cluster"])
    counts.layers["log"] = _logged(counts)
    found = st.tl.markers(slide, TABLE, "cluster", n_genes=6)
    sets = {f"cluster {g}": part.gene.tolist() for g, part in found.groupby("group")}
    st.pl.markers(slide, TABLE, sets, groupby="cluster", save=out / "markers_predicted.png")
    st.pl.markers(slide, MEASURED, sets, groupby="cluster", layer="log", save=out / "markers_measured.png")
    found.to_csv(out / "markers.csv", index=False)
    fig, axes = plt.subplots(1, 2, figsize=(10, 3.7), layout="constrained")
    for ax, key, title in zip(
        axes, (TABLE, "spots_features"), ("predicted expression", "morphology alone"), strict=True
    ):
        _classes(ax, slide, slide.tables[key], title=f"clusters of {title}")
    _save(fig, out / "clusters.png")
    many = st.tl.markers(slide, TABLE, "cluster", n_genes=100)
    sets_found = st.tl.enrichment(many, hallmark)
    sets_found.to_csv(out / "enrichment.csv", index=False)
    wide = sets_found.pivot(index="set", columns="group", values="p_adj")
    wide = wide[wide.min(axis=1) < 0.05]
    wide.index = wide.index.str.removeprefix("HALLMARK_").str.replace("_", " ").str.lower()
    strength = -np.log10(wide.loc[wide.min(axis=1).sort_values().index[:15]])
    fig, ax = plt.subplots(figsize=(5.5, 0.3 * len(strength) + 1.6), layout="constrained")
    _matrix(
        fig, ax, strength, cmap="magma_r", low=0, high=min(10, strength.to_numpy().max()), label="-log10 adjusted p"
    )
    ax.set(xlabel="cluster of the prediction", title="hallmarks among 100 markers each", ylabel="")
    _save(fig, out / "enrichment.png")
    epcam = sc.get.obs_df(counts, keys=["EPCAM"], layer="log").groupby(counts.obs["cluster"], observed=True).mean()
    alike = adjusted_rand_score(table.obs["cluster"], features.obs["cluster"])
    _say(f"measured EPCAM by cluster: {epcam.EPCAM.round(2).to_dict()}; Rand index with morphology {alike:.2f}")
    _say(f"clusters: {table.obs['cluster'].value_counts().to_dict()}; enriched: {list(strength.index[:6])}")


def pathways(slide: SpatialData, out: Path, progeny: Path) -> None:
    """PROGENy activities of the prediction beside those of the measurement, and their correlation."""
    import matplotlib.pyplot as plt

    st.tl.pathway_activity(slide, TABLE, progeny, trusted_only=True)
    st.tl.pathway_activity(slide, MEASURED, progeny)
    predicted, measured = (slide.tables[f"{t}_progeny_human"] for t in (TABLE, MEASURED))
    shared = [p for p in predicted.var_names if p in measured.var_names]
    theirs = measured[[str(i) for i in predicted.obs_names], shared].X
    frame = pd.DataFrame({"pathway": shared, "pearson": metrics.pearson(predicted[:, shared].X, theirs)})
    frame["n_targets_predicted"] = predicted.var.loc[shared, "n_targets"].to_numpy()
    frame.sort_values("pearson", ascending=False).to_csv(out / "pathways.csv", index=False)
    asked = [p for p in PATHWAYS if p in shared]
    fig, axes = plt.subplots(2, len(asked), figsize=(3.3 * len(asked), 5.4), layout="constrained")
    for column, name in zip(axes.T, asked, strict=True):
        r = frame.set_index("pathway").pearson[name]
        for ax, title, values in zip(column, ("predicted", "measured"), (predicted[:, name].X, theirs), strict=True):
            flat = values.ravel() if title == "predicted" else values[:, shared.index(name)]
            _values(fig, ax, predicted.obsm["spatial"], flat)
            ax.set_title(f"{name}, predicted (r = {r:.2f})" if title == "predicted" else title, fontsize=10)
    _save(fig, out / "pathways.png")
    _say(f"pathways, predicted against measured: {frame.set_index('pathway').pearson.round(2).to_dict()}")


def risk(slides: dict[str, SpatialData], out: Path, hallmark: Path) -> None:
    """DR-score with a stand-in for a risk: predicted proliferation. No survival was looked at."""
    import matplotlib.pyplot as plt

    from stpred.tl._downstream.gene_sets import read_gene_sets

    cycle = read_gene_sets(hallmark)[STAND_IN]
    scores = {}
    for name, slide in slides.items():
        table = slide.tables[TABLE]
        chosen = table[:, table.var_names.isin(cycle) & table.var["trusted"].to_numpy()].X
        scores[name] = ((chosen - chosen.mean(axis=0)) / chosen.std(axis=0)).mean(axis=1)
    found = st.tl.differential_rank(slides, TABLE, scores)
    found = found.assign(in_set=found.gene.isin(cycle))
    found.to_csv(out / "differential_rank.csv", index=False)
    series = {n: pd.Series(scores[n], index=slides[n].tables[TABLE].obs_names) for n in slides}
    measured = st.tl.differential_rank(
        slides, MEASURED, {n: series[n].reindex(slides[n].tables[MEASURED].obs_names) for n in slides}
    )
    both = found[~found.in_set].merge(measured, on="gene", suffixes=("", "_measured"))
    r = np.corrcoef(both.score, both.score_measured)[0, 1]
    fig, axes = plt.subplots(1, 2, figsize=(10, 6.5), layout="constrained")
    st.pl.differential_rank(pd.concat([both.head(14), both.tail(14)]), n_genes=28, ax=axes[0])
    axes[0].set_title(
        f"stand-in risk: predicted proliferation\n(its {len(found) - len(both)} genes left out)", fontsize=10
    )
    axes[1].scatter(both.score, both.score_measured, s=5, alpha=0.5, linewidth=0)
    axes[1].axhline(0, color="black", linewidth=0.8)
    axes[1].axvline(0, color="black", linewidth=0.8)
    axes[1].set(xlabel="DR score of predicted genes", ylabel="DR score of measured genes, same risk",
                title=f"r = {r:.2f} over {len(both)} genes")  # fmt: skip
    _save(fig, out / "differential_rank.png")
    _say(
        f"DR-score: highest {both.gene.head(8).tolist()}, lowest {both.gene.tail(8).tolist()}; with the measured ranks "
        f"of the same genes r = {r:.2f}, same sign {np.mean(np.sign(both.score) == np.sign(both.score_measured)):.0%}"
    )


def together(slide: SpatialData, out: Path) -> None:
    """Which cell types' genes lie together, predicted and measured."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    # The same genes on both sides: those that are predicted. T cells fall out where they are too rare for that.
    known = slide.tables[TABLE].var_names
    sets = {k: kept for k, genes in TYPES.items() if len(kept := [g for g in genes if g in known]) > 1}
    frames = []
    for ax, (title, key) in zip(axes, {"predicted": TABLE, "measured": MEASURED}.items(), strict=True):
        found = st.tl.colocalization(slide, key, sets)
        frames.append(found.assign(table=title))
        mirrored = pd.concat([found, found.rename(columns={"first": "second", "second": "first"})])
        value = mirrored.pivot(index="first", columns="second", values="statistic")
        order = [t for t in TYPES if t in value.index]
        p = mirrored.pivot(index="first", columns="second", values="p_value").loc[order, order].to_numpy()
        _matrix(fig, ax, value.loc[order, order], cmap="RdBu_r", low=-0.8, high=0.8, label="cross-correlation")
        for i, j in np.argwhere(p < 0.05):
            ax.text(j, i, "*", ha="center", va="center", fontsize=14)
        ax.set(title=f"{title} ({SHOWN}; * p < 0.05 against shifts)", xlabel="", ylabel="")
    pd.concat(frames).to_csv(out / "colocalization.csv", index=False)
    _save(fig, out / "colocalization.png")
    for frame in frames:
        pair = frame[(frame["first"] == "tumour") | (frame["second"] == "tumour")]
        _say(f"{frame.table.iloc[0]}: tumour with " + ", ".join(
            f"{s if f == 'tumour' else f} {v:+.2f} (p {p:.2g})"
            for f, s, v, p in zip(pair["first"], pair["second"], pair["statistic"], pair["p_value"], strict=True)
        ))  # fmt: skip


def bulk(slides: dict[str, SpatialData], out: Path) -> None:
    """Pseudo-bulk of the predictions against that of the counts."""
    import matplotlib.pyplot as plt

    predicted, measured = st.tl.pseudobulk(slides, TABLE), st.tl.pseudobulk(slides, MEASURED)
    found = st.tl.compare_bulk(predicted, measured)
    found.to_csv(out / "pseudobulk.csv", index=False)
    genes = found.gene.to_numpy()
    counts = measured.to_df().to_numpy()
    theirs = pd.DataFrame(
        np.log1p(1e4 * counts / measured.obs[["total_counts"]].to_numpy()), measured.obs_names, measured.var_names
    )
    ours = predicted.to_df()
    fig, axes = plt.subplots(1, 2, figsize=(9, 4.3), layout="constrained")
    axes[0].scatter(theirs.loc[SHOWN, genes], ours.loc[SHOWN, genes], s=4, alpha=0.5, linewidth=0)
    top = float(max(theirs.loc[SHOWN, genes].max(), ours.loc[SHOWN, genes].max()))
    axes[0].plot([0, top], [0, top], color="black", linewidth=0.8)
    r, base = (found.attrs[k][SHOWN] for k in ("per_sample", "per_sample_of_mean"))
    axes[0].set(
        xlabel="measured (log1p CP10k)", ylabel="predicted (log1p CP10k)",
        title=f"{SHOWN}, over genes: {r:.3f}\n(mean of the other sections: {base:.3f})",
    )  # fmt: skip
    axes[1].hist(found.correlation.dropna(), bins=np.arange(-1.1, 1.2, 0.2), color="C0", alpha=0.8)
    axes[1].axvline(0, color="black", linewidth=0.8)
    axes[1].set(xlabel="Spearman over four sections of one patient", ylabel="genes",
                title=f"within genes: median {found.correlation.median():.2f}\n"
                      "(leaving one of four out pushes it to -1)")  # fmt: skip
    _save(fig, out / "pseudobulk.png")
    _say(f"pseudo-bulk: over genes {found.attrs['per_sample']}, by the mean {found.attrs['per_sample_of_mean']}; "
         f"over sections median {found.correlation.median():.2f}")  # fmt: skip


def associations(slides: dict[str, SpatialData], out: Path) -> None:
    """Named features that go along with measured EPCAM and COL1A2, on each section."""
    import matplotlib.pyplot as plt

    parts = [
        st.tl.feature_associations(slide, MEASURED, genes=["EPCAM", "COL1A2"]).assign(slide=name)
        for name, slide in slides.items()
    ]
    found = pd.concat(parts)
    found.to_csv(out / "feature_associations.csv", index=False)
    fig, axes = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
    for ax, gene in zip(axes, ("EPCAM", "COL1A2"), strict=True):
        wide = found[found.gene == gene].pivot(index="feature", columns="slide", values="correlation")
        # What repeats: the section of weakest correlation decides, of features that agree in sign.
        steady = wide.abs().min(axis=1) * (wide.gt(0).all(axis=1) | wide.lt(0).all(axis=1))
        wide = wide.loc[steady.sort_values(ascending=False).index[:10]].iloc[::-1]
        for k, name in enumerate(wide.columns):
            ax.scatter(wide[name], np.arange(len(wide)), s=22, label=name, color=f"C{k}")
        ax.set_yticks(np.arange(len(wide)), wide.index, fontsize=8)
        ax.axvline(0, color="black", linewidth=0.8)
        ax.set(xlabel="Spearman with the measured gene", title=gene, xlim=(-0.8, 0.8))
        _say(f"{gene}: {[f'{i} {v:+.2f}' for i, v in wide.mean(axis=1).iloc[::-1].head(5).items()]}")
    axes[0].legend(fontsize=8)
    _save(fig, out / "feature_associations.png")


def pixels(slides: dict[str, SpatialData], out: Path) -> None:
    """Integrated gradients through ridge on random convolutions, which is what can be trained in seconds."""
    import matplotlib.pyplot as plt
    from scipy.ndimage import gaussian_filter

    encoder = st.encoders.get(
        _random_filters(), tile=st.TileSpec(mpp=1.0, size_px=150), mean=(0.65, 0.5, 0.7), std=(0.2, 0.2, 0.15),
        name="random-filters",
    )  # fmt: skip
    train = {k: s for k, s in slides.items() if k != SHOWN}
    model = st.tl.train(train, "ridge", genes=["EPCAM", "C1QA", "COL1A2"], shapes_key="spots", encoder=encoder)
    slide = slides[SHOWN]
    st.tl.predict(slide, model, shapes_key="spots", key_added="spots_random_filters")
    scores = st.tl.compare(slide, "spots_random_filters", MEASURED)
    found = st.tl.attribution(slide, model, ["EPCAM", "C1QA"], n_steps=128)
    fig, axes = plt.subplots(2, 3, figsize=(9, 6.2), layout="constrained")
    for i, row in enumerate(axes):
        row[0].imshow(found.tiles[i])
        row[0].set_title(f"spot {found.instances[i]}: most {found.genes[i]} predicted", fontsize=9)
        for j, ax in enumerate(row[1:]):
            values = gaussian_filter(found.attributions[i, j], 1.5)
            end = np.percentile(np.abs(values), 99.5)
            ax.imshow(values, cmap="RdBu_r", vmin=-end, vmax=end)
            change = f"{found.predicted[i, j]:.2f} (empty glass: {found.at_baseline[i, j]:.2f})"
            ax.set_title(f"{found.genes[j]}: {change}", fontsize=9)
    for ax in axes.ravel():
        ax.set_axis_off()
    _save(fig, out / "attribution.png")
    dark = 255 - found.tiles.mean(axis=-1)
    most = dark >= np.quantile(dark, 0.8, axis=(1, 2), keepdims=True)
    for i, gene in enumerate(found.genes):
        part = found.attributions[i, i][most[i]].sum()
        whole = found.attributions[i, i].sum()
        r = scores.loc[gene, "pearson"]
        _say(f"{gene}: held-out r {r:.2f}; of {whole:+.2f} the darkest fifth of the pixels makes {part:+.2f}")
    _say(f"attributions add up within {np.abs(found.error).max():.3f}")


def _random_filters(n: int = 64, size: int = 7, scales: int = 3) -> Any:
    """Return a network of random, never trained convolutions at three scales, averaged over the tile."""
    import torch
    from torch import nn

    class RandomFilters(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            source = torch.Generator().manual_seed(0)
            weight = torch.randn(n, 3, size, size, generator=source)
            # From filters that see colour to ones that see only structure.
            weight -= weight.mean(dim=(2, 3), keepdim=True) * torch.linspace(0, 1, n)[:, None, None, None]
            self.weight = nn.Parameter(nn.functional.normalize(weight.flatten(1)).view_as(weight))
            self.bias = nn.Parameter(0.3 * torch.randn(n, generator=source))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            parts = []
            for _ in range(scales):
                seen = nn.functional.relu(nn.functional.conv2d(x, self.weight, self.bias))
                parts.append(seen.mean(dim=(2, 3)))
                x = nn.functional.avg_pool2d(x, 2)
            return torch.cat(parts, dim=1)

    return RandomFilters()


def _clusters(table: AnnData) -> Any:
    """Return the Leiden cluster of each row."""
    import scanpy as sc

    work = table.copy()
    sc.pp.scale(work)
    sc.pp.pca(work, n_comps=10, random_state=0)
    sc.pp.neighbors(work, n_neighbors=15, random_state=0)
    sc.tl.leiden(work, resolution=0.5, flavor="igraph", directed=False, n_iterations=2, random_state=0)
    return work.obs["leiden"].to_numpy()


def _logged(table: AnnData) -> Any:
    import scanpy as sc

    work = table.copy()
    sc.pp.normalize_total(work, target_sum=1e4)
    sc.pp.log1p(work)
    return work.X


def _joined(table: AnnData, column: pd.Series) -> Any:
    return pd.Categorical(column.reindex(table.obs_names))


def _classes(ax: Any, slide: SpatialData, table: AnnData, *, title: str) -> None:
    """Draw the clusters of a table's locations in micrometres."""
    xy, cluster = table.obsm["spatial"], pd.Series(np.asarray(table.obs["cluster"])).astype(str)
    for k, name in enumerate(sorted(cluster.unique(), key=int)):
        inside = (cluster == name).to_numpy()
        ax.scatter(*xy[inside].T, s=42, color=f"C{k}", label=f"{name} ({inside.sum()})")
    ax.set(aspect="equal", title=title, xlabel="um", ylabel="um")
    ax.invert_yaxis()
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def _values(fig: Any, ax: Any, xy: Any, values: Any) -> None:
    """Draw values of locations, with colours equally above and below 0."""
    end = np.percentile(np.abs(values), 98)
    shown = ax.scatter(*xy.T, c=values, s=22, cmap="RdBu_r", vmin=-end, vmax=end, edgecolor="grey", linewidth=0.2)
    ax.set(aspect="equal", xticks=[], yticks=[])
    ax.invert_yaxis()
    fig.colorbar(shown, ax=ax, shrink=0.6)


def _matrix(fig: Any, ax: Any, frame: pd.DataFrame, *, cmap: str, low: float, high: float, label: str) -> None:
    shown = ax.imshow(frame.to_numpy(dtype=float), cmap=cmap, vmin=low, vmax=high, aspect="auto")
    ax.set_xticks(
        range(frame.shape[1]), frame.columns, rotation=45 if frame.columns.str.len().max() > 3 else 0, ha="right"
    )
    ax.set_yticks(range(frame.shape[0]), frame.index)
    fig.colorbar(shown, ax=ax, label=label, shrink=0.8)


def _save(fig: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    fig.savefig(path, dpi=130)
    plt.close(fig)


def _say(text: str) -> None:
    print(text, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of HER2ST sections")
    parser.add_argument("out", type=Path, help="folder for figures and tables (outside the repository: H&E is in them)")
    parser.add_argument("--gene-sets", type=Path, help="folder with hallmark_v7.gmt and progeny_human.csv")
    args = parser.parse_args()
    args.gene_sets = args.gene_sets or args.folder.parent / "gene_sets"
    return args


if __name__ == "__main__":
    main()

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stpred import metrics, training
from stpred._core.checks import InputError, key_in, listing, one_of, whole
from stpred._core.expression.counts import check_counts
from stpred._core.progress import track
from stpred._core.targets import CP10K, dense, totals
from stpred.links import Links
from stpred.models.batch import Batch
from stpred.models.scellst import SCellST, SCellSTConfig

if TYPE_CHECKING:
    from anndata import AnnData

SCENARIOS = ("centroid", "cell", "random")
SUPERVISION = ("spots", "cells")
INPUTS = ("learned", "one-hot")
GENE_SETS = ("hvg", "markers")

COMPONENTS = 50
HELD_OUT_FRACTION = 0.2


def simulation_study(
    embeddings: AnnData | NDArray[Any],
    reference: AnnData,
    *,
    groupby: str = "cell_type",
    n_types: int | None = None,
    n_hvg: int = 1000,
    n_markers: int = 20,
    scenarios: Sequence[str] = SCENARIOS,
    supervision: Sequence[str] = SUPERVISION,
    inputs: Sequence[str] = INPUTS,
    gene_sets: Sequence[str] = GENE_SETS,
    n_spots: int = 5000,
    cells_per_spot: int = 20,
    cells_per_type: int = 2000,
    config: SCellSTConfig | None = None,
    seed: int = 0,
    device: str | None = None,
) -> pd.DataFrame:
    """Test on simulated spots whether single-cell expression can be learned from them at all.

    Real cell images are given simulated expression: their embeddings are clustered, every cluster stands for a cell
    type of a single-cell reference, and spots are sums of cells. Then what a model learns from spots is compared with
    what it learns from the cells themselves, where the truth of each cell is given (the study of the sCellST
    publication).

    Parameters
    ----------
    embeddings
        Features of cells, such as a table that :func:`stpred.pp.features` wrote, or an (n, n_features) array.
    reference
        Raw counts of single cells with their types, such as :func:`stpred.datasets.toy_reference`.
    groupby
        Column of ``reference.obs`` with the types.
    n_types
        Number of types that are used; None: all, at most 8. Of more, the medoids of the types' mean profiles.
    n_hvg
        Highly variable genes of the reference that are simulated.
    n_markers
        Marker genes per type (t-test with overestimated variance), which are also trained on alone.
    scenarios
        What a cell of cluster i expresses: ``"centroid"``, the mean profile of type i; ``"cell"``, a random cell of
        type i; ``"random"``, any cell (nothing can be learned: the control).
    supervision
        ``"spots"``: trained on spots (multiple-instance learning); ``"cells"``: trained on each cell (the ceiling).
    inputs
        ``"learned"``: the embeddings; ``"one-hot"``: the number of the cluster, which is all the information there is.
    gene_sets
        What a model is trained on: ``"hvg"``, all simulated genes; ``"markers"``, the marker genes alone.
    n_spots, cells_per_spot
        Of training and of test, each, drawn from different cells, with replacement.
    cells_per_type
        Cells nearest to the centre of each cluster that are used, half of them for training.
    config
        Settings of the model; None: those of the publication but a learning rate of 1e-3 and at most 60 epochs. With
        ``loss="nb"`` spots are raw counts: sums of their cells', of the scenario ``"centroid"`` Poisson draws of the
        types' mean counts.
    seed
        Of everything.
    device
        Where it is trained.

    Returns
    -------
    DataFrame with one row per scenario, input, gene set, supervision, level (``"spot"``, ``"cell"``) and gene:
    ``marker`` (bool) and ``pearson`` with the truth over the test spots or cells, on the log1p CP10k scale, whose
    library is over all genes of the reference.

    Raises
    ------
    InputError
        If there are fewer cells or types than needed, or the reference holds no raw counts.

    References
    ----------
    Chadoutaud et al. (2026), sCellST predicts single-cell gene expression from H&E images, Nature Communications.

    Examples
    --------
    >>> import numpy as np, stpred as st
    >>> cells = np.random.default_rng(0).normal(size=(800, 5)) + 8 * np.eye(8, 5).repeat(100, axis=0)
    >>> reference = st.datasets.toy_reference(n_types=4, n_genes=100, n_cells=50, n_markers=5)
    >>> found = st.tl.simulation_study(
    ...     cells, reference, scenarios=["centroid"], inputs=["learned"], gene_sets=["hvg"], n_spots=100, n_markers=5
    ... )
    >>> bool(found.groupby(["supervision", "level"]).pearson.mean().min() > 0.5)
    True
    """
    scenarios = _some(scenarios, SCENARIOS, name="scenarios")
    supervision = _some(supervision, SUPERVISION, name="supervision")
    inputs = _some(inputs, INPUTS, name="inputs")
    gene_sets = _some(gene_sets, GENE_SETS, name="gene_sets")
    n_spots, cells_per_spot = whole(n_spots, name="n_spots"), whole(cells_per_spot, name="cells_per_spot")
    config = SCellSTConfig(lr=1e-3, max_epochs=60, patience=8) if config is None else config
    if not isinstance(config, SCellSTConfig):
        raise InputError(f"`config` must be a stpred.models.SCellST.Config, got {type(config).__name__}.")
    profiles = _profiles(reference, groupby, n_types=n_types, n_hvg=n_hvg, n_markers=n_markers, seed=seed)
    values = dense(getattr(embeddings, "X", embeddings), np.float32)
    cells = _clusters(values, len(profiles.counts), cells_per_type=cells_per_type, seed=seed)
    rows = []
    runs = [(s, i, g, v) for s in scenarios for i in inputs for g in gene_sets for v in supervision]
    for scenario, kind, gene_set, source in track(runs, total=len(runs), describe="simulation"):
        rng = np.random.default_rng(seed)  # the same cells, profiles and spots for all that are compared
        genes = np.flatnonzero(profiles.marker | (gene_set == "hvg"))
        parts = []
        for own in (cells.train, cells.test):
            kinds = cells.kind[own]
            features = values[own] if kind == "learned" else np.eye(len(profiles.counts), dtype=np.float32)[kinds]
            drawn = profiles.draw(kinds, scenario, rng)
            inside = rng.integers(len(own), size=(n_spots, cells_per_spot))
            parts.append((_Cells(features, drawn, genes, counted=config.loss == "nb", seed=seed), inside))
        (learned, inside), (new, new_inside) = parts
        model = _fit(learned, inside, supervision=source, config=config, seed=seed, device=device)
        for level, batch in (("spot", new.spots(new_inside)), ("cell", new.each())):
            score = metrics.pearson(model.predict(batch)[0], batch.scored)
            names, marker = [profiles.genes[i] for i in genes], profiles.marker[genes]
            rows.append(
                pd.DataFrame({"gene": names, "marker": marker, "pearson": score}).assign(
                    scenario=scenario, inputs=kind, gene_set=gene_set, supervision=source, level=level
                )
            )
    columns = ["scenario", "inputs", "gene_set", "supervision", "level", "gene", "marker", "pearson"]
    return pd.concat(rows, ignore_index=True)[columns]


@dataclass(frozen=True)
class _Profiles:
    """Expression of the reference.

    Attributes
    ----------
    genes, marker
        Names, and which of them mark a type.
    counts
        (n, n_genes + 1) raw counts of each type's cells; the last column is the library size, over all genes.
    """

    genes: list[str]
    marker: NDArray[np.bool_]
    counts: list[NDArray[np.float32]]

    def draw(self, kinds: NDArray[np.int64], scenario: str, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return (n, n_genes + 1) counts and library sizes of cells of these types.

        Of the scenario ``"centroid"`` the mean over a type's cells of counts per 10 000, at the type's mean library.
        """
        if scenario == "centroid":
            return np.stack([_share(c).mean(axis=0) * c[:, -1].mean() for c in self.counts])[kinds]
        if scenario == "random":
            every = np.concatenate(self.counts)
            return every[rng.integers(len(every), size=len(kinds))]
        out = np.empty((len(kinds), len(self.genes) + 1), dtype=np.float32)
        for kind, cells in enumerate(self.counts):
            rows = np.flatnonzero(kinds == kind)
            out[rows] = cells[rng.integers(len(cells), size=len(rows))]
        return out


def _share(counts: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (n, n_genes + 1) counts over their library size, the last column."""
    return counts / counts[:, -1:]


@dataclass(frozen=True)
class _Cells:
    """Simulated cells: (n, f) features, (n, all genes + 1) counts with library sizes, and the genes that are learned.

    Every cell counts alike in its spot: what is summed are counts per 10 000. With `counted`, spots have raw counts.
    """

    features: NDArray[np.float32]
    counts: NDArray[np.float32]
    genes: NDArray[np.int64]
    counted: bool
    seed: int

    def each(self) -> Batch:
        """Return every cell as a location of its own."""
        return self.spots(np.arange(len(self.features))[:, None])

    def spots(self, inside: NDArray[np.int64]) -> Batch:
        """Return spots that hold these cells, (n, cells per spot) rows."""
        n, each = inside.shape
        cells = Links(np.arange(n + 1) * each, inside.reshape(-1))
        mean = cells.sum(_share(self.counts)[:, self.genes]) / each
        truth = np.log1p(CP10K * mean).astype(np.float32)
        if not self.counted:
            return replace(Batch.of(self.features, cells=cells, y=truth, scale="log1p_cp10k"), slide="simulated")
        total = cells.sum(self.counts)
        y, size = total[:, self.genes], total[:, -1]
        if not np.array_equal(y, np.round(y)):
            y = np.random.default_rng(self.seed).poisson(y)
        batch = Batch.of(self.features, cells=cells, y=y.astype(np.float32), truth=truth, totals=size, scale="counts")
        return replace(batch, slide="simulated")


@dataclass(frozen=True)
class _Clusters:
    """(n,) cluster of each cell, and the rows of those that are trained and tested on."""

    kind: NDArray[np.int64]
    train: NDArray[np.int64]
    test: NDArray[np.int64]


def _some(given: Sequence[str], options: Sequence[str], *, name: str) -> list[str]:
    values = [given] if isinstance(given, str) else list(given)
    if not values:
        raise InputError(f"`{name}` is empty; give some of {listing(options)}.")
    return [one_of(v, options, name=name) for v in values]


def _profiles(
    reference: AnnData, groupby: str, *, n_types: int | None, n_hvg: int, n_markers: int, seed: int
) -> _Profiles:
    """Choose highly variable genes and types of the reference, and find the types' markers.

    Library sizes are over all of its genes: of the chosen ones alone, a type that has few of them would seem to have
    more of each.
    """
    import scanpy as sc

    key_in(groupby, reference.obs, what="column of `reference.obs`", name="groupby")
    check_counts(reference.X, what="counts of `reference`")
    table = reference.copy()
    table.obs[groupby] = table.obs[groupby].astype("category")
    library = totals(table.X)
    if (library <= 0).any():
        table, library = table[library > 0].copy(), library[library > 0]
    chosen = np.ones(table.n_vars, dtype=bool)
    if table.n_vars > n_hvg:
        sc.pp.highly_variable_genes(table, n_top_genes=n_hvg, flavor="seurat_v3")
        chosen = table.var["highly_variable"].to_numpy(dtype=bool)
    counts = np.column_stack([dense(table.X[:, np.flatnonzero(chosen)], np.float32), library.astype(np.float32)])
    sc.pp.normalize_total(table, target_sum=CP10K)
    table = table[:, chosen].copy()
    sc.pp.log1p(table)
    sizes = table.obs[groupby].value_counts()
    kinds = [str(k) for k in table.obs[groupby].cat.categories if sizes[k] >= 2]
    wanted = min(len(kinds), 8) if n_types is None else whole(n_types, name="n_types", unset=True)
    if len(kinds) < max(wanted, 2):
        raise InputError(f"The reference has {len(kinds)} types of two cells or more in {groupby!r}, not {wanted}.")
    owner = table.obs[groupby].astype(str).to_numpy()
    if wanted < len(kinds):
        log = dense(table.X, np.float64)
        kinds = [kinds[i] for i in medoids(np.stack([log[owner == k].mean(axis=0) for k in kinds]), wanted, seed=seed)]
        table = table[np.isin(owner, kinds)].copy()
    sc.tl.rank_genes_groups(table, groupby, method="t-test_overestim_var", n_genes=n_markers)
    marks = {str(g) for k in kinds for g in table.uns["rank_genes_groups"]["names"][k]}
    genes = table.var_names.astype(str).tolist()
    return _Profiles(genes, np.array([g in marks for g in genes]), [counts[owner == k] for k in kinds])


def medoids(points: NDArray[np.float64], k: int, *, seed: int, rounds: int = 50) -> list[int]:
    """Return the rows of k medoids of (n, f) points, the best of alternating assignment and update from ten starts."""
    from scipy.spatial.distance import cdist

    distance = cdist(points, points)
    rng = np.random.default_rng(seed)
    best: tuple[float, list[int]] = (np.inf, [])
    for _ in range(10):
        chosen = rng.choice(len(points), k, replace=False)
        for _ in range(rounds):
            owner = distance[:, chosen].argmin(axis=1)
            new = np.array(
                [
                    members[distance[np.ix_(members, members)].sum(axis=0).argmin()]
                    for i in range(k)
                    for members in [np.flatnonzero(owner == i)]
                ]
            )
            if np.array_equal(new, chosen):
                break
            chosen = new
        cost = float(distance[:, chosen].min(axis=1).sum())
        if cost < best[0]:
            best = (cost, sorted(int(i) for i in chosen))
    return best[1]


def _clusters(values: NDArray[np.float32], k: int, *, cells_per_type: int, seed: int) -> _Clusters:
    """Cluster cells by their embeddings and keep those nearest to each centre, half for training and half for test."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    if values.ndim != 2 or not np.isfinite(values).all():
        raise InputError(f"`embeddings` must be a finite (n, n_features) array, got shape {values.shape}.")
    if len(values) < 20 * k:
        raise InputError(f"{len(values)} cells are too few for {k} types; give at least {20 * k}.")
    scaled = StandardScaler().fit_transform(values.astype(np.float64))
    parts = PCA(min(COMPONENTS, *scaled.shape), random_state=seed).fit_transform(scaled)
    found = KMeans(k, n_init=4, random_state=seed).fit(parts)
    distance = np.linalg.norm(parts - found.cluster_centers_[found.labels_], axis=1)
    rng = np.random.default_rng(seed)
    train, test = [], []
    for i in range(k):
        members = np.flatnonzero(found.labels_ == i)
        near = rng.permutation(members[np.argsort(distance[members])][:cells_per_type])
        train.append(near[: len(near) // 2])
        test.append(near[len(near) // 2 :])
    return _Clusters(found.labels_.astype(np.int64), np.concatenate(train), np.concatenate(test))


def _fit(
    cells: _Cells,
    inside: NDArray[np.int64],
    *,
    supervision: str,
    config: SCellSTConfig,
    seed: int,
    device: str | None,
) -> SCellST:
    """Train on spots, or on their cells; a fifth of them, which nothing ties to the rest, ends the training."""
    held = max(1, int(len(inside) * HELD_OUT_FRACTION))
    # Every cell of the training spots once: the spots hold no more cells than that.
    own = inside if supervision == "spots" else np.random.default_rng(seed).permutation(len(cells.features))[:, None]
    held = held if supervision == "spots" else max(1, int(len(own) * HELD_OUT_FRACTION))
    run = training.Run(device=device, checkpoint=None)
    fitted = training.fit_and_score(
        SCellST,
        config,
        [cells.spots(own[held:])],
        groups=["simulated"],
        validation=[cells.spots(own[:held])],
        seed=seed,
        typical=False,
        run=run,
    )
    return fitted.model  # type: ignore[return-value]

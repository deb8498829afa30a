from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score

import stpred as st
from stpred import InputError
from stpred.tl._generative.latent import embedding

if TYPE_CHECKING:
    from pathlib import Path

    from spatialdata import SpatialData


def _blobs(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three kinds of tiles in 30 features of very different size, with a constant one."""
    rng = np.random.default_rng(seed)
    kind = np.repeat([0, 1, 2], [80, 60, 40])
    values = rng.normal(size=(180, 30)) + 3 * rng.normal(size=(3, 30))[kind]
    values[:, 4] = 5.0
    return values * 10.0 ** rng.integers(-2, 3, 30), kind


def _embedded(values: np.ndarray, **options: Any) -> Any:
    return embedding(values, **{"n_components": 10, "n_neighbors": 15, "resolution": 0.3} | options)


def test_kinds_are_recovered_and_columns_shuffled_apart_have_none() -> None:
    values, kind = _blobs()
    scores, shares, cluster, drawn = _embedded(values)
    assert adjusted_rand_score(kind, cluster) > 0.95
    assert drawn is None
    assert cluster.count("0") == 80  # the largest first
    rng = np.random.default_rng(1)
    shuffled = np.column_stack([rng.permutation(column) for column in values.T])
    assert abs(adjusted_rand_score(kind, _embedded(shuffled)[2])) < 0.05
    assert _embedded(shuffled)[1].max() < shares.max() / 2


def test_components_equal_scikit_learn() -> None:
    values, _ = _blobs()
    scores, shares, *_ = _embedded(values)
    kept = np.delete(values, 4, axis=1)
    reference = PCA(10, svd_solver="full").fit((kept - kept.mean(axis=0)) / kept.std(axis=0))
    theirs = reference.transform((kept - kept.mean(axis=0)) / kept.std(axis=0))
    np.testing.assert_allclose(np.abs(scores), np.abs(theirs), atol=1e-3)
    np.testing.assert_allclose(shares, reference.explained_variance_ratio_, rtol=1e-6)


def test_the_seed_decides_and_the_global_state_stays() -> None:
    values, _ = _blobs()
    np.random.seed(3)  # noqa: NPY002
    first = _embedded(values, umap=True, seed=4)
    after = np.random.random()  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    assert np.random.random() == after  # noqa: NPY002
    again = _embedded(values, umap=True, seed=4)
    assert first[2] == again[2]
    np.testing.assert_array_equal(first[3], again[3])
    assert first[3].shape == (180, 2)


def test_what_is_written(unseen: SpatialData, tmp_path: Path) -> None:
    st.tl.latent(unseen, shapes_key="spots", n_components=6, umap=True)
    table = unseen.tables["spots_latent"]
    features = st.pp.features(unseen, shapes_key="spots", inplace=False)
    np.testing.assert_array_equal(table.X, features.X)
    assert table.var_names.tolist() == features.var_names.tolist()
    assert table.obsm["X_pca"].shape == (table.n_obs, 6)
    assert table.obsm["X_umap"].shape == (table.n_obs, 2)
    facts = json.loads(table.uns["stpred"])
    assert facts["kind"] == "latent"
    assert facts["n_clusters"] == table.obs["cluster"].nunique() == len(table.obs["cluster"].cat.categories)
    assert len(facts["variance_shares"]) == 6
    marked = st.tl.markers(
        unseen, "spots_latent", "cluster", n_genes=2, min_in_group=3
    )  # which features tell clusters apart
    assert marked.log2_fold_change.isna().all()
    unseen.write(tmp_path / "slide.zarr")


def test_a_model_brings_its_encoder_and_region(unseen: SpatialData, ridge: Any, tmp_path: Path) -> None:
    st.models.save(ridge, tmp_path / "m")
    tables = [st.tl.latent(unseen, m, n_components=4, inplace=False) for m in (ridge, tmp_path / "m")]
    assert "spots_latent" not in unseen.tables
    for table in tables:
        assert table.n_obs == len(unseen.shapes["spots"])
        np.testing.assert_array_equal(table.obsm["X_pca"], tables[0].obsm["X_pca"])


def test_bad_input(unseen: SpatialData) -> None:
    for encoder, options, said in (
        ("pixels", {}, "Pixels as they are make no embedding"),
        ("morphology", {"n_neighbors": 10_000}, "too few for 10000 neighbours"),
        ("morphology", {"n_components": 0}, "`n_components`"),
        ("morphology", {"resolution": 0}, "`resolution`"),
        ("morphology", {"shapes_key": "nowhere"}, "No shapes element named 'nowhere'"),
        ("morphology", {"key_added": "spots_counts"}, "is a table that stpred did not write"),
    ):
        with pytest.raises(InputError, match=said):
            st.tl.latent(unseen, encoder, **{"shapes_key": "spots"} | options)
    with pytest.raises(InputError, match="the same features"):
        _embedded(np.ones((40, 3)))
    values, _ = _blobs()
    values[0, 0] = np.nan
    with pytest.raises(InputError, match="NaN"):
        _embedded(values)

"""Libraries: which share of the counts the genes of two tables have in common, against a reference and by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from stpred._core.expression.library import Library, gene_sums, overlap, shared_columns, shared_genes


def whole(n: int = 200, n_genes: int = 2000, seed: int = 0) -> tuple[list[str], csr_matrix]:
    """Return counts of a whole transcriptome, about 5 000 a location, most in few genes."""
    rng = np.random.default_rng(seed)
    part = rng.lognormal(0, 2, n_genes)
    counts = rng.poisson(rng.lognormal(8.5, 0.3, (n, 1)) * part / part.sum())
    return [f"GENE{i}" for i in range(n_genes)], csr_matrix(counts)


def test_shares_and_size_are_those_of_the_counts() -> None:
    names, counts = whole()
    found = Library.of([(names, counts), (names, counts[:50])])
    both = np.concatenate([counts.toarray(), counts[:50].toarray()])
    np.testing.assert_allclose(found.share, both.sum(axis=0) / both.sum())
    assert found.median_size == np.median(both.sum(axis=1))


def test_of_slides_it_is_over_the_genes_that_all_have() -> None:
    names, counts = whole(n_genes=300)
    other = csr_matrix(counts.toarray()[:, ::-1])[:, :250]
    found = Library.of([(names, counts), (names[::-1][:250], other)])
    assert set(found.genes) == set(names[50:])
    dense = counts.toarray()[:, 50:].sum(axis=0)
    np.testing.assert_allclose(found.share, dense / dense.sum())


@pytest.mark.parametrize("n_genes", [1, 300, 18_000])
def test_it_comes_back_from_records_and_provenance(n_genes: int) -> None:
    names, counts = whole(50, n_genes)
    library = Library.of([(names, counts)])
    for stored in (library.to_dict(), library.packed()):
        back = Library.parse(json.loads(json.dumps(stored)))
        assert back is not None
        assert back.genes == library.genes
        assert stored["n_genes"] == n_genes
        np.testing.assert_allclose(back.share, library.share, rtol=0.02, atol=1e-8)
        assert back.median_size == pytest.approx(library.median_size, rel=1e-5)
    assert len(json.dumps(library.packed())) < 150_000


@pytest.mark.parametrize(
    "odd",
    [
        None,
        {},
        {"genes": ["A"], "share": [0.5, 0.5], "median_size": 3},
        {"genes": ["A"], "share": [-1.0], "median_size": 3},
        {"genes": "no base64", "share": "AAAA", "median_size": 3},
        {"genes": "AAAA", "share": "AAAA", "median_size": 3},
        {"genes": ["A"], "share": ["x"], "median_size": 3},
        {"genes": ["A"], "share": [1.0]},
    ],
)
def test_what_is_no_library_is_unknown(odd: object) -> None:
    assert Library.parse(odd) is None


def test_overlap_against_a_slow_reference() -> None:
    names, counts = whole()
    library = Library.of([(names, counts)])
    rng = np.random.default_rng(1)
    theirs = [names[i] for i in rng.permutation(2000)[:300]] + [f"OTHER{i}" for i in range(50)]
    sums = rng.poisson(20, 350)
    found = overlap(library, theirs, sums)
    share = dict(zip(names, library.share, strict=True))
    assert found.share_model == pytest.approx(sum(share.get(g, 0) for g in theirs))
    assert found.share_measured == pytest.approx(
        sum(s for g, s in zip(theirs, sums, strict=True) if g in share) / sums.sum()
    )
    assert (found.n_model, found.n_measured, found.n_shared) == (2000, 350, 300)
    assert [theirs[k] for k in shared_columns(library, theirs)] == theirs[:300]


def test_genes_that_carry_no_counts_make_no_difference_and_few_that_carry_many_do() -> None:
    names, counts = whole()
    library = Library.of([(names, counts)])
    order = np.argsort(library.share)
    sums = gene_sums(counts)
    rare = np.sort(order[1000:])  # half of the genes are gone, with hardly a count
    found = overlap(library, [names[k] for k in rare], sums[rare])
    assert found.same
    common = np.sort(order[:-20])  # twenty are gone
    found = overlap(library, [names[k] for k in common], sums[common])
    assert not found.same
    assert found.share_measured == 1.0


def test_a_panel_model_against_a_whole_transcriptome_can_be_counted_over_the_panel() -> None:
    names, counts = whole()
    panel = Library.of([(names[:300], counts[:, :300])])
    found = overlap(panel, names, gene_sums(counts))
    assert found.wider
    assert not found.same
    assert found.share_model == pytest.approx(1.0)


def test_shared_genes_of_slides_and_the_part_of_each_ones_counts() -> None:
    genes, share = shared_genes({"a": (["X", "Y", "Z"], [5, 3, 2]), "b": (["Z", "Y", "W"], [1, 1, 2])})
    assert genes == ["Y", "Z"]
    assert share == {"a": 0.5, "b": 0.5}

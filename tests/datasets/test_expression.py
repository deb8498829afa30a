from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stpred.datasets import Tissue
from stpred.datasets._simulated.celltypes import CELL_TYPES, TYPE_NAMES
from stpred.datasets._simulated.expression import biology, draw_counts, express, neighbour_share


def test_biology_of_fewer_genes_is_a_prefix() -> None:
    few, many = biology(20), biology(60)
    assert few.genes.equals(many.genes.iloc[:20])
    np.testing.assert_array_equal(few.profile, many.profile[:, :20])
    np.testing.assert_array_equal(few.near, many.near[..., :20])


def test_gene_names_are_unique_and_include_known_ones() -> None:
    genes = biology(1000).genes
    assert genes.index.is_unique
    assert genes["gene_id"].is_unique
    assert {"EPCAM", "COL1A2", "PTPRC"} <= set(genes.index[:16])
    assert genes["gene_id"].str.fullmatch(r"ENSG\d{11}").all()


def test_neighbour_share_against_a_loop(tissue: Tissue) -> None:
    xy, kind = tissue.xy_um[:150], tissue.cells["type"].cat.codes.to_numpy()[:150]
    share = neighbour_share(xy, kind)
    for i in range(0, 150, 7):
        near = np.linalg.norm(xy - xy[i], axis=1) <= 50
        want = [(kind[near] == t).mean() for t in range(len(TYPE_NAMES))]
        np.testing.assert_allclose(share[i], want)


def test_expectation_against_a_loop(tissue: Tissue) -> None:
    facts = biology(25)
    facts = replace(facts, spread=np.zeros(25))
    got = express(tissue.cells, facts, depth=100.0, rng=np.random.default_rng(0))
    kind = tissue.cells["type"].cat.codes.to_numpy()
    share = neighbour_share(tissue.xy_um, kind)
    for i in range(0, len(kind), 41):
        cell, t = tissue.cells.iloc[i], kind[i]
        size = np.log(cell["area_um2"] / CELL_TYPES[t].area_um2) / CELL_TYPES[t].area_cv
        log = facts.profile[t] + facts.own[0, t] * size + facts.own[1, t] * (cell["chromatin"] - 0.5) / 0.25
        for other in range(len(TYPE_NAMES)):
            log = log + facts.near[other, t] * (share[i, other] - 0.2)
        np.testing.assert_allclose(got[i] / got[i].sum(), np.exp(log) / np.exp(log).sum(), rtol=1e-4)
    assert 50 < got.sum(axis=1).mean() < 200


def test_every_kind_of_driver_occurs() -> None:
    driver = biology(200).genes["driver"]
    assert 0.1 < (driver.isin(["area", "chromatin"])).mean() < 0.5
    assert 0.1 < driver.str.startswith("near ").mean() < 0.5
    assert (driver == "none").mean() > 0.2


def test_markers_mark(tissue: Tissue) -> None:
    share = tissue.expected / tissue.expected.sum(axis=1, keepdims=True)
    tumour = (tissue.cells["type"] == "tumour").to_numpy()
    k = tissue.genes.index.get_loc("EPCAM")
    assert share[tumour, k].mean() > 2 * share[~tumour, k].mean()


def test_counts_have_the_stated_mean_and_variance() -> None:
    expected = np.full((200_000, 1), 6.0, dtype=np.float32)
    counts = draw_counts(expected, rng=np.random.default_rng(1), dispersion=0.25)
    assert counts.mean() == pytest.approx(6.0, rel=0.02)
    assert counts.var() == pytest.approx(6 + 0.25 * 36, rel=0.03)
    poisson = draw_counts(expected, rng=np.random.default_rng(1), dispersion=0.0)
    assert poisson.var() == pytest.approx(6.0, rel=0.02)

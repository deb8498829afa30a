"""The page of the data model names every key that stpred writes into tables, and no other of predicted ones."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import stpred as st
from stpred._core import keys

if TYPE_CHECKING:
    from anndata import AnnData

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "concepts" / "data_model.md").read_text(encoding="utf-8")
IN_COMMON = {'obs["region"]', 'obs["instance_id"]', 'obsm["spatial"]', 'uns["spatialdata_attrs"]', 'uns["stpred"]'}
LATER = {'var["measured_pearson"]', 'var["measured_spearman"]'}
"""Of comparisons, in predicted tables."""


def section(title: str) -> str:
    """Return the text of a section without those below it."""
    return re.split(r"^##+ ", PAGE.split(f"# {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def named(text: str) -> set[str]:
    """Return what a text names, such as ``obs["ood_score"]``."""
    return set(re.findall(r'`((?:obs|var|obsm|varm|layers|uns)\["\w+"\])`', text))


def written(table: AnnData) -> set[str]:
    """Return the names of a table's parts in the same form."""
    parts = ("obs", "var", "obsm", "varm", "layers", "uns")
    return {f'{part}["{key}"]' for part in parts for key in getattr(table, part).keys() if key}


@pytest.fixture(scope="module")
def tables() -> dict[str, AnnData]:
    """Tables of one slide: measured, features, and predicted by two models, one of them with intervals."""
    slides = st.datasets.toy_cohort(4, size_um=(400, 400), n_genes=8)
    for slide in slides.values():
        slide.tables["spots_counts"].var["gene_id"] = [f"ENSG{i}" for i in range(8)]
    slide = slides.pop("donor3")
    ridge = st.tl.train(slides, "ridge", genes="all", encoder="colour", shapes_key="spots")
    members = st.models.Ensemble.Config("colour", n_members=2)
    ensemble = st.tl.train(slides, members, genes="all", shapes_key="spots", name="ensemble")
    st.pp.features(slide, "colour", shapes_key="spots")
    st.tl.predict(slide, ridge, shapes_key="spots", interval=0.9)
    st.tl.predict(slide, ensemble, shapes_key="spots")
    st.pp.qc(slide, shapes_key="spots")
    return dict(slide.tables)


def test_every_constant_name_is_on_the_page() -> None:
    names = {v for k, v in vars(keys).items() if k.isupper() and isinstance(v, str)}
    scores = set(keys.CONTEXT)  # rows of scores, and no keys of tables
    kinds = {keys.NORMALISED}
    assert not [n for n in sorted(names - scores - kinds) if not re.search(rf'[`"]{re.escape(n)}[`"]', PAGE)]


def test_examples_of_composed_names_are_those_that_are_made() -> None:
    made = (
        keys.bins(8),
        keys.squares("spots", 8),
        keys.counts("spots"),
        keys.features("spots", "morphology"),
        keys.predicted("spots", "ridge"),
        keys.predicted_map("tissue", "student"),
        keys.map_std(keys.predicted_map("tissue", "xfuse")),
        keys.in_frame("um", "um-a"),
    )
    assert not [n for n in made if f"`{n}`" not in PAGE and n != "um-a"]
    assert keys.in_frame("spots", "um-a") == "spots-a"


def test_predicted_tables_have_what_the_page_lists(tables: dict[str, AnnData]) -> None:
    predicted = [tables["spots_ridge"], tables["spots_ensemble"]]
    found = set.union(*map(written, predicted))
    assert found - IN_COMMON == named(section("Predicted tables")) - LATER
    assert IN_COMMON <= found
    assert named(section("Every table")) == IN_COMMON


def test_measured_tables_have_what_the_page_lists(tables: dict[str, AnnData]) -> None:
    listed = named(section("Measured tables"))
    missing = {c for c in written(tables["spots_counts"]) if c.startswith('obs["qc_') or "counts" in c} - listed
    assert not missing
    assert {'obs["qc_pass"]', 'obs["total_counts"]', 'var["gene_id"]'} <= written(tables["spots_counts"]) & listed


@pytest.mark.parametrize(
    ("key", "title"),
    [("spots_ridge", "Provenance"), ("spots_ensemble", "Provenance"), ("spots_feat_colour", "Feature tables")],
)
def test_every_key_of_the_provenance_is_on_the_page(tables: dict[str, Any], key: str, title: str) -> None:
    provenance = json.loads(tables[key].uns[keys.UNS])
    assert not [k for k in provenance if f"`{k}`" not in section(title)]

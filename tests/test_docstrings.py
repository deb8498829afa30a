"""Docstrings of what is public: numpydoc with parameters, errors, publications and examples."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix

import stpred
from stpred import metrics
from stpred.models import registry

PACKAGES = ("io", "pp", "tl", "pl", "models", "encoders", "datasets", "metrics")
SECTIONS = (
    "Parameters", "Attributes", "Returns", "Yields", "Raises", "Warns", "See Also", "Notes", "References", "Examples",
)  # fmt: skip
RAISES_NOTHING = {"stpred.models.list"}
"""Functions without an argument that could be wrong."""

AFTER_PUBLICATIONS = {
    *(f"stpred.models.{n}" for n in (
        "Auto", "DeepCell", "DeepSpot", "DeepSpot2Cell", "Ensemble", "HisToGene", "Hist2ST", "IStar", "Intensity",
        "KernelRidge", "MISO", "MLP", "NMFComposition", "RandomForest", "Retrieval", "Ridge", "SCellST", "STNet",
        "Student", "Transformer", "XFuse",
    )),
    *(f"stpred.tl.{n}" for n in (
        "annotate_cells", "attribution", "calibration", "classify", "cluster_purity", "colocalization",
        "compare_bulk", "composition_by_distance", "conformal", "correct", "differential_expression",
        "differential_rank", "distance_to_border", "distill", "enrichment", "error_by_std", "finetune",
        "impute_genes", "latent", "latent_clusters", "metagenes", "misaligned_spots", "occluded_tiles",
        "paired_colocalization", "paired_tests", "pathway_activity", "pretrain_encoder", "pseudobulk",
        "rank_agreement", "rank_models", "recalibrate", "restarts", "score_cell_types", "similar_tiles",
        "simulation_study", "summarise", "superior_genes", "surroundings", "survival", "tile_survival",
        "to_log1p_cp10k", "top_gene_curve", "withheld_sections", "withheld_spots", "within_regions",
    )),
    *(f"stpred.metrics.{n}" for n in (
        "auroc", "benjamini_hochberg", "bootstrap_ci", "compare_models", "conformal_intervals", "consistent_genes",
        "correlation_difference_test", "fisher_t_test", "holm", "median_p", "permutation_null", "positive_donors",
        "reliability", "rmax_test", "signed_rank_p", "ssim", "top_genes",
    )),
    *(f"stpred.{n}" for n in ("FineTuning", "GeneRule", "Posterior", "pp.nuclei", "pp.stain_normalize")),
    *(f"stpred.{n}" for n in ("encoders.MoCo", "encoders.get", "models.average")),
}  # fmt: skip
"""What was published, and must be cited: authors, year, title or journal."""


def public() -> dict[str, Any]:
    found = {f"stpred.{n}": getattr(stpred, n) for n in stpred.__all__ if callable(getattr(stpred, n))}
    for package in PACKAGES:
        module = importlib.import_module(f"stpred.{package}")
        found |= {f"stpred.{package}.{n}": getattr(module, n) for n in module.__all__}
    return {n: thing for n, thing in found.items() if callable(thing)}


PUBLIC = public()
FUNCTIONS = [n for n, thing in PUBLIC.items() if inspect.isfunction(thing)]
CONFIGS = {c.__name__: c for c in (registry.family(f).Config for f in registry.FAMILIES)}


def doc_of(thing: Any) -> str:
    own = thing.__doc__ if inspect.isclass(thing) else inspect.getdoc(thing)
    return inspect.cleandoc(own or "")


def sections(doc: str) -> dict[str, str]:
    """Return the sections of a numpydoc docstring, in their order."""
    parts = re.split(r"^([A-Z][A-Za-z ]+)\n(-{3,})$", doc, flags=re.MULTILINE)
    return {parts[i]: parts[i + 2].strip("\n") for i in range(1, len(parts), 3)}


def entries(section: str) -> set[str]:
    """Return what a section of parameters documents."""
    lines = [x for x in section.splitlines() if x and not x.startswith(" ")]
    return {w.strip().lstrip("*") for line in lines for w in line.split(":")[0].split(",")}


@pytest.mark.parametrize("name", PUBLIC)
def test_sections_are_those_of_numpydoc(name: str) -> None:
    doc = doc_of(PUBLIC[name])
    assert doc.splitlines()[0].strip().endswith((".", "?")) or "\n" in doc, "a sentence"
    found = re.findall(r"^([A-Z][A-Za-z ]+)\n(-{3,})$", doc, flags=re.MULTILINE)
    names = [title for title, _ in found]
    assert not set(names) - set(SECTIONS)
    assert names == sorted(names, key=SECTIONS.index)
    assert all(len(line) == len(title) for title, line in found)


@pytest.mark.parametrize("name", PUBLIC)
def test_an_example_is_shown(name: str) -> None:
    assert ">>>" in sections(doc_of(PUBLIC[name])).get("Examples", "")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_errors_are_named(name: str) -> None:
    if name in RAISES_NOTHING:
        assert not inspect.signature(PUBLIC[name]).parameters
        return
    said = sections(doc_of(PUBLIC[name])).get("Raises", "")
    named = re.findall(r"^(\w+)$", said, flags=re.MULTILINE)
    assert "InputError" in named
    assert len(said) > 30, "when it is raised"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_returned_or_written_is_said(name: str) -> None:
    """Functions that return something have a section for it; those that write name the key, element or column."""
    function = PUBLIC[name]
    said = sections(doc_of(function)).get("Returns", "")
    returns = str(inspect.signature(function).return_annotation)
    if returns not in ("None", ""):
        assert said
    if "key_added" in inspect.signature(function).parameters:
        assert "``" in said


@pytest.mark.parametrize(
    "name", ["TileSpec", "GeneRule", "QC", "Splits", "Draws", "FineTuning", "Posterior", "TileRisk"]
)
def test_recipes_say_what_they_refuse_and_document_their_fields(name: str) -> None:
    recipe = getattr(stpred, name)
    assert "Raises" in sections(doc_of(recipe))
    assert entries(sections(doc_of(recipe))["Parameters"]) == {f.name for f in dataclasses.fields(recipe)}


@pytest.mark.parametrize("name", CONFIGS)
def test_settings_of_families_are_documented(name: str) -> None:
    """By the Config itself or by what it inherits from; what is documented exists."""
    config = CONFIGS[name]
    fields = {f.name for f in dataclasses.fields(config)}
    found: set[str] = set()
    for cls in config.__mro__:
        own = entries(sections(doc_of(cls)).get("Parameters", "")) if cls.__module__.startswith("stpred") else set()
        assert cls is not config or not own - fields
        found |= own
    assert not {f for f in fields if not f.startswith("_")} - found
    if fields:
        assert "Raises" in sections(doc_of(config))


@pytest.mark.parametrize("name", sorted(AFTER_PUBLICATIONS))
def test_publications_are_cited(name: str) -> None:
    said = sections(doc_of(PUBLIC[name])).get("References", "")
    assert re.search(r"\b(19|20)\d\d\b", said), "a year"
    assert len(said) > 50, "authors, and title or journal"


A, B = np.ones((4, 3)), np.ones((4, 2))
WINDOWS = csr_matrix(np.ones((2, 4)))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *((n, (A, B)) for n in ("pearson", "spearman", "r2", "rmse", "mae", "auroc", "permutation_null")),
        *((n, (A[:3], A)) for n in ("pearson", "spearman", "r2", "rmse", "mae", "auroc")),
        *((n, (A[:, 0], A[:, 0])) for n in ("pearson", "rmse")),
        ("ssim", (A, B, WINDOWS)),
        ("ssim", (A, A, csr_matrix(np.ones((2, 5))))),
        ("smooth", (A[:, 0], WINDOWS)),
        ("smooth", (A, csr_matrix(np.ones((2, 5))))),
        ("partial_pearson", (A, A, np.ones(5))),
        ("coverage", (A, A, B)),
        ("library_size_baseline", (A[:, 0],)),
        ("neighbour_baseline", (A, WINDOWS)),
        ("reliability", (A[:, 0],)),
        ("rmax_test", (A[:, 0],)),
        ("rmax_test", (A[:1],)),
        ("average", (A[:, 0],)),
        ("summarise", (A,)),
        ("top_genes", (A[:, 0],)),
        ("positive_donors", (A[:, 0],)),
        ("consistent_genes", (A[:, 0],)),
        ("bootstrap_ci", (A[None],)),
        ("fisher_t_test", (A[None],)),
        ("correlation_difference_test", (np.full(3, 2.0), np.zeros(3), 50)),
        ("signed_rank_p", (A,)),
        ("benjamini_hochberg", ([2.0],)),
        ("holm", (A,)),
        ("median_p", ([],)),
        ("compare_models", (A, ["a", "b"])),
        ("conformal_intervals", ([A, B],)),
    ],
)
def test_scores_refuse_wrong_shapes_in_one_sentence(name: str, arguments: tuple[Any, ...]) -> None:
    more = {"nan": "mean"} if name == "summarise" else {}
    with pytest.raises(stpred.InputError) as error:
        getattr(metrics, name)(*arguments, **more)
    assert str(error.value).endswith(".")
    assert ". " not in re.sub(r"\d\.\d", "", str(error.value))


DATACLASSES = [n for n, thing in PUBLIC.items() if dataclasses.is_dataclass(thing) and inspect.isclass(thing)]


@pytest.mark.parametrize("name", DATACLASSES)
def test_fields_of_results_and_records_are_documented(name: str) -> None:
    """What is documented exists, and each field is documented by the class or one that it inherits from."""
    thing = PUBLIC[name]
    documented: set[str] = set()
    for cls in thing.__mro__[:-1]:
        said = sections(doc_of(cls))
        documented |= entries(said.get("Parameters", "")) | entries(said.get("Attributes", ""))
    properties = {n for n, value in inspect.getmembers(thing) if isinstance(value, property)}
    fields = {f.name for f in dataclasses.fields(thing) if not f.name.startswith("_")}
    assert not fields - documented
    assert not documented - fields - properties


@pytest.mark.parametrize("name", [n for n in PUBLIC if inspect.isclass(PUBLIC[n])])
def test_public_methods_are_documented(name: str) -> None:
    own = [
        (n, m) for n, m in vars(PUBLIC[name]).items() if not n.startswith("_") and callable(getattr(m, "__func__", m))
    ]
    assert not [n for n, m in own if not inspect.getdoc(getattr(m, "__func__", m))]

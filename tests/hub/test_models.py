"""Models on the hub: the same bits after a round trip, pinned to a commit, nothing read but their two files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

import stpred as st
from stpred._core.checks import InputError, MissingFileError
from stpred.models import Model

from .fake_hub import FakeHub, Repository

TILE = st.TileSpec(2.0, 32)


@pytest.fixture(scope="module")
def slides() -> dict[str, object]:
    return st.datasets.toy_cohort(2, size_um=(500, 500), mpp=2.0, n_genes=8)


@pytest.fixture(scope="module")
def model(slides: dict[str, object]) -> Model:
    return st.tl.train(
        slides, "colour", shapes_key="spots", tile=TILE, genes=["EPCAM", "COL1A2", "PTPRC"], name="virtual panel"
    )


@pytest.fixture
def pushed(hub: FakeHub, model: Model) -> str:
    return model.push_to_hub("lab/breast", licence="CC-BY-4.0", notes="From *one* study.")


def provenance(sdata: object, model: object) -> tuple[np.ndarray, dict[str, object]]:
    table = st.tl.predict(sdata, model, shapes_key="spots", inplace=False)
    return np.asarray(table.X), json.loads(table.uns["stpred"])


def test_a_round_trip_gives_the_same_bits_and_predictions_name_the_commit(
    hub: FakeHub, model: Model, pushed: str, slides: dict[str, object]
) -> None:
    commit = pushed.partition("@")[2]
    assert pushed == f"hf:lab/breast@{commit}"
    assert set(hub.repositories["lab/breast"].commits[commit]) - {".gitattributes"} == {
        "README.md", "config.json", "model.safetensors",
    }  # fmt: skip
    sdata = slides["donor1"]
    before, said = provenance(sdata, model)
    assert "hub" not in said
    for name in ("hf:lab/breast", "hf:lab/breast@main", pushed):
        loaded = st.models.load(name)
        assert (loaded.id, loaded.hub) == (model.id, pushed)
        after, said = provenance(sdata, name)
        assert np.array_equal(after, before)
        assert said["hub"] == {"repository": "lab/breast", "revision": commit}
    loaded.record.genes[0] = "OTHER"  # it is another model now
    assert loaded.hub is None


def test_a_branch_is_resolved_at_each_load_and_a_commit_stays(hub: FakeHub, model: Model, pushed: str) -> None:
    trial = model.push_to_hub("lab/breast", branch="trial", notes="second")
    assert trial != pushed
    assert st.models.load("hf:lab/breast@trial").hub == trial
    newest = model.push_to_hub("lab/breast", notes="third")
    assert st.models.load("hf:lab/breast").hub == newest
    assert st.models.load(pushed).hub == pushed


def test_only_the_two_files_are_read(hub: FakeHub, pushed: str) -> None:
    repository = hub.repositories["lab/breast"]
    repository.commit({"pytorch_model.bin": b"pickle", "modeling.py": b"boom", "deep/config.json": b"{}"})
    folder = Path(st.models.load("hf:lab/breast").record.hub["repository"])
    assert sorted(set(hub.fetched)) == ["config.json", "model.safetensors"]
    assert not folder.exists()
    repository.branches["bare"] = "0" * 40
    repository.commits["0" * 40] = {"pytorch_model.bin": b"pickle", "README.md": b""}
    with pytest.raises(MissingFileError, match=r"'hf:lab/breast@bare' holds no model of stpred: it lacks \['config"):
        st.models.load("hf:lab/breast@bare")


def test_what_is_in_the_cache_works_offline(
    hub: FakeHub, model: Model, pushed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    st.models.load("hf:lab/breast")
    hub.asked.clear()
    assert st.models.load(pushed).id == model.id
    assert not hub.asked
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert st.models.load("hf:lab/breast").hub == pushed
    with pytest.raises(MissingFileError, match="'hf:lab/other' is not in the local cache.*HF_HUB_OFFLINE"):
        st.models.load("hf:lab/other")
    assert not hub.asked


def test_nothing_is_asked_unless_a_repository_is_named(
    hub: FakeHub, pushed: str, slides: dict[str, object], tmp_path: Path
) -> None:
    folder = st.models.save(st.models.load("hf:lab/breast"), tmp_path / "copy")
    hub.asked.clear()
    copy = st.models.load(folder)
    assert copy.hub == pushed
    provenance(next(iter(slides.values())), copy)
    assert not hub.asked


def test_closed_missing_and_unreachable_repositories_are_said(
    hub: FakeHub, model: Model, pushed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories["lab/closed"] = Repository(private=True)
    hub.repositories["lab/gated"] = Repository(gated=True)
    hub.repositories["lab/gated"].commit({"config.json": b"{}", "model.safetensors": b""})
    with pytest.raises(MissingFileError, match="has no revision 'v9'; leave it out"):
        st.models.load("hf:lab/breast@v9")
    for wrong in ("hf:", "hf:breast", "hf:a/b/c", "hf:lab/breast@", "hf:lab/br east", "hf://lab/breast"):
        with pytest.raises(InputError, match="it is hf:owner/name, or hf:owner/name@revision"):
            st.models.load(wrong)
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody")
    for name in ("hf:lab/closed", "hf:lab/none"):
        with pytest.raises(MissingFileError, match="or it is private: check the name, and log in .*may read it"):
            st.models.load(name)
    with pytest.raises(InputError, match="must be asked for: do so at http://127.*/lab/gated"):
        st.models.load("hf:lab/gated")
    with pytest.raises(InputError, match="log in .* with an account that may"):
        model.push_to_hub("lab/breast")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"'lab/breast'|'hf:lab/breast'"):
        model.push_to_hub("lab/breast")


def test_a_private_repository_is_created_closed(hub: FakeHub, model: Model) -> None:
    model.push_to_hub("lab/secret", private=True)
    assert hub.repositories["lab/secret"].private


def test_the_card_says_what_the_record_says(hub: FakeHub, model: Model, pushed: str) -> None:
    text = hub.repositories["lab/breast"].commits[pushed.partition("@")[2]]["README.md"].decode()
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["license"] == "cc-by-4.0"
    assert header["library_name"] == "stpred"
    scores = header["model-index"][0]["results"][0]["metrics"]
    mean = np.mean(model.record.var["cv_pearson"])
    assert next(s["value"] for s in scores if s["type"] == "pearson") == pytest.approx(mean, abs=1e-4)
    body = text.split("---\n", 2)[2]
    slides = model.record.training["slides"]
    assert f"2 slides of 2 donors, {sum(s['n_locations'] for s in slides.values())} locations." in body
    for name, slide in slides.items():
        assert f"| {name} | {name} | {slide['n_locations']} | 2 |" in body
    for gene, pearson in zip(model.record.genes, model.record.var["cv_pearson"], strict=True):
        assert f"| {gene} | {pearson:.3f} |" in body
    card = model.record.encoder
    assert f"| `{card['name']}` |" in body
    assert f"| {card['licence']} | open |" in body
    assert 'st.models.load("hf:lab/breast")' in body
    assert "From *one* study." in body
    assert "at most 2 donors" in body
    assert "Not for diagnosis" in body
    assert model.id in body


def test_cards_of_models_with_little_to_say(hub: FakeHub) -> None:
    model = st.models.load("default")
    model.record.var, model.record.training, model.record.intervals = {}, {}, {}
    model.record.genes[0] = "A|<b>`x`\n\nB"
    name = model.push_to_hub("lab/bare", licence="My own 1.0")
    text = hub.repositories["lab/bare"].commits[name.partition("@")[2]]["README.md"].decode()
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["license"] == "other"
    assert header["license_name"] == "my-own-1.0"
    assert "model-index" not in header
    assert "names no slides" in text
    assert "No gene was scored" in text
    assert "| A&#124;&#60;b&#62;&#96;x&#96; B |" in text
    with pytest.raises(InputError, match="`licence` must be an SPDX identifier"):
        model.push_to_hub("lab/bare", licence="a\nb: c")


def test_the_public_card_is_valid_for_the_hub(hub: FakeHub, pushed: str) -> None:
    from huggingface_hub import ModelCard

    text = hub.repositories["lab/breast"].commits[pushed.partition("@")[2]]["README.md"].decode()
    card = ModelCard(text)
    assert card.data.license == "cc-by-4.0"
    assert card.data.model_name == "breast"
    (result, *_) = card.data.eval_results
    assert (result.task_type, result.dataset_type) == ("gene-expression-prediction", "held-out-slides")


def test_what_cannot_be_pushed_is_refused(hub: FakeHub) -> None:
    with pytest.raises(InputError, match="is not trained, so there is nothing to upload"):
        st.models.Ridge.Config().build(n_features=3, n_genes=2).push_to_hub("lab/x")
    with pytest.raises(InputError, match="names a revision"):
        st.models.load("default").push_to_hub("lab/x@main")
    assert not hub.repositories


def test_fine_tuned_models_name_the_commit_that_they_began_with(hub: FakeHub, slides: dict[str, object]) -> None:
    base = st.tl.train(slides, "ridge", shapes_key="spots", genes=["EPCAM", "COL1A2"], encoder="colour", tile=TILE)
    name = base.push_to_hub("lab/base")
    own = st.datasets.toy_cohort(2, size_um=(500, 500), mpp=2.0, n_genes=8, seed=9)
    new = st.tl.finetune(st.models.load(name), own, shapes_key="spots")
    assert new.hub is None
    assert new.record.training["finetuned"]["base_hub"] == name
    pushed = new.push_to_hub("lab/new")
    text = hub.repositories["lab/new"].commits[pushed.partition("@")[2]]["README.md"].decode()
    assert f"| fine-tuned from | `{name}`" in text


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"pip install 'stpred\[hub\]'"):
        st.models.load("hf:lab/breast")

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from stpred import InputError
from stpred.tl._downstream.gene_sets import read_gene_sets, read_network, sets_among


def _long() -> pd.DataFrame:
    return pd.DataFrame({"source": ["a", "a", "b"], "target": ["X", "Y", "Y"], "weight": [2.0, -1.0, 0.5]})


def test_every_form_gives_the_same_sets(tmp_path: Path) -> None:
    expected = {"a": ["X", "Y"], "b": ["Y"]}
    (tmp_path / "sets.gmt").write_text("a\tabout a\tX\tY\tX\t\nb\t\tY\n")
    _long().to_csv(tmp_path / "sets.csv", index=False)
    _long().rename(columns={"source": "pathway", "target": "gene"}).to_csv(tmp_path / "sets.tsv.gz", sep="\t")
    for source in (expected, _long(), tmp_path / "sets.gmt", str(tmp_path / "sets.csv"), tmp_path / "sets.tsv.gz"):
        assert read_gene_sets(source) == expected


def test_network_has_weights_and_no_repeats() -> None:
    twice = pd.concat([_long(), pd.DataFrame({"source": ["a"], "target": ["X"], "weight": [4.0]})])
    assert read_network(twice).to_dict("list") == {
        "source": ["a", "a", "b"], "target": ["X", "Y", "Y"], "weight": [3.0, -1.0, 0.5],
    }  # fmt: skip
    assert read_network({"a": ["X", "Y"]})["weight"].tolist() == [1.0, 1.0]
    assert read_network({"a": {"X": -2}})["weight"].tolist() == [-2.0]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({}, "no gene set"),
        ({"a": []}, "are empty: \\['a'\\]"),
        ({"a": "EPCAM"}, "must be a list"),
        ({"a": {"X": "high"}}, "must be numbers"),
        ({"a": {"X": float("nan")}}, "not all finite"),
        ("nowhere.gmt", "no file .*'hallmark', 'progeny'"),
        ("progeny:cat", "organism of 'progeny'.*'human', 'mouse'"),
        (pd.DataFrame({"source": ["a"], "value": [1]}), "need a column .*'target'.*has \\['source', 'value'\\]"),
        (3, "must be a mapping .* got int"),
    ],
)
def test_bad_sources_are_refused(source: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_gene_sets(source)


def test_bad_files_are_refused(tmp_path: Path) -> None:
    for name, text, said in (
        ("a.gmt", "only a name\n", "line 1"),
        ("b.gmt", "a\t\tX\na\t\tY\n", "more than once"),
        ("c.gmt", "a\tabout\n", "are empty"),
        ("d.xlsx", "", "suffix"),
        ("e.csv", "", "cannot be read"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=said):
            read_gene_sets(tmp_path / name)


def test_the_net_is_asked_only_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import decoupler

    asked: list[str] = []

    def fake(organism: str) -> pd.DataFrame:
        asked.append(organism)
        return _long()

    monkeypatch.setattr(decoupler.op, "progeny", fake)
    assert read_network("progeny")["weight"].tolist() == [2.0, -1.0, 0.5]
    assert read_gene_sets("progeny:mouse")["b"] == ["Y"]
    assert asked == ["human", "mouse"]

    def broken(organism: str) -> pd.DataFrame:
        raise ConnectionError("no net")

    monkeypatch.setattr(decoupler.op, "hallmark", broken)
    with pytest.raises(InputError, match="cannot be loaded .*no net.*local file"):
        read_gene_sets("hallmark")
    monkeypatch.setitem(sys.modules, "decoupler", None)
    with pytest.raises(InputError, match="stpred\\[analysis\\]"):
        read_gene_sets("hallmark")


def test_sets_among_says_why_none_is_left() -> None:
    sets = {"a": ["EPCAM", "KRT8", "CD3E"], "b": ["CD3E"]}
    assert sets_among(sets, ["KRT8", "CD3E"], what="t", min_size=2) == {"a": ["KRT8", "CD3E"]}
    with pytest.raises(InputError, match="None of the 3 genes of 2 sets .*'EPCAM'.* 2 genes of t .*'Epcam'.*case"):
        sets_among(sets, ["Epcam", "Krt8"], what="t")
    with pytest.raises(InputError, match="2 of the 3 genes .* 2 at most in one \\('a'\\)"):
        sets_among(sets, ["KRT8", "CD3E"], what="t", min_size=3)


@pytest.mark.parametrize("text", ["nan\tx\tEPCAM\n", "A\x00\tx\tEPCAM\n", "A\tx\tEP\x00CAM\n", " \tx\tEPCAM\n"])
def test_sets_whose_names_were_lost_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "sets.gmt").write_text(text)
    with pytest.raises(InputError, match=r"sets\.gmt"):
        read_gene_sets(tmp_path / "sets.gmt")

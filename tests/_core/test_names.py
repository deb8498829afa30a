from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from stpred import InputError
from stpred._core.names import look_up, name_of, named


@pytest.mark.parametrize(
    ("given", "name"),
    [(1, "1"), (np.int64(7), "7"), (np.uint8(7), "7"), (2.0, "2"), (np.float32(3), "3"), ("007", "007"), ("a b", "a b"),
     (np.str_("x"), "x"), (1.5, "1.5"), (True, "True")],
)  # fmt: skip
def test_whole_numbers_are_their_digits_and_text_stays(given: object, name: str) -> None:
    found = name_of(given)
    assert found == name
    assert type(found) is str


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA, np.float64("nan")])
def test_a_missing_value_is_no_name(missing: object) -> None:
    with pytest.raises(InputError, match="A donor is missing"):
        name_of(missing, what="donor")


def test_two_keys_of_one_name_are_refused() -> None:
    with pytest.raises(InputError, match=r"`groups` has two entries of the name '1' \(1 and '1'\)"):
        named({1: "x", "1": "y"}, what="groups")


def test_series_are_mappings() -> None:
    assert look_up(pd.Series(["x", "y"], index=[10, 2]), ["2", "10"], what="groups") == {"2": "y", "10": "x"}
    with pytest.raises(InputError, match=r"`groups` lacks \['3'\]; it has \['10', '2'\]"):
        look_up({10: "x", 2: "y"}, ["3"], what="groups")

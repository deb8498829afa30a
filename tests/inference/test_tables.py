from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stpred._core.tables import one_donor
from stpred.inference.tables import warn_out_of_distribution


@pytest.mark.parametrize("n_donors", [1, 2])
def test_a_model_of_one_donor_says_that_it_cannot_tell_how_donors_differ(n_donors: int) -> None:
    model: Any = SimpleNamespace(record=SimpleNamespace(name="ridge", training={"n_donors": n_donors}))
    with pytest.warns(UserWarning, match="^75% of the tiles are out of distribution for model 'ridge'") as caught:
        warn_out_of_distribution(model, np.array([0, 1, 2, 3], dtype=np.float32))
    said = str(caught[0].message)
    assert ("trained on one donor, so it cannot tell how far donors differ" in said) == (n_donors == 1)


def test_folds_are_of_one_donor_where_each_is() -> None:
    assert one_donor({"training": {"n_donors": 1}})
    assert not one_donor({"training": {}})
    assert one_donor({"cross_validated": [{"trained_on": ["a", "b"], "n_donors": 1}]})
    assert one_donor({"cross_validated": [{"trained_on": ["a"]}]})  # written before donors were counted
    assert not one_donor({"cross_validated": [{"trained_on": ["a"], "n_donors": 1}, {"trained_on": [], "chosen": ""}]})

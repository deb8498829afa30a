"""Recipes are checked when they are made, and are plain values."""

from __future__ import annotations

import json
from types import MappingProxyType
from typing import Any

import pytest

import stpred as st


def test_posterior_is_plain_and_says_its_scale() -> None:
    posterior = st.Posterior(5, covariates=MappingProxyType({"patient": None}))
    assert json.loads(json.dumps(posterior.to_dict())) == {
        "n_samples": 5,
        "normalize_scale": False,
        "normalize_size": False,
        "normalize_covariates": False,
        "covariates": {"patient": None},
        "seed": 0,
    }
    assert posterior == st.Posterior(5, covariates={"patient": None})
    assert posterior.output_scale == st.Posterior(normalize_covariates=True).output_scale == "counts"
    assert st.Posterior(normalize_scale=True).output_scale == "relative"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"n_samples": 0}, "`n_samples` must be"),
        ({"n_samples": 1.5}, "`n_samples` must be"),
        ({"normalize_size": 1}, "`normalize_size` must be True or False"),
        ({"covariates": "a"}, "`covariates` must map"),
        ({"seed": -1}, "`seed` must be"),
        ({"seed": True}, "`seed` must be"),
    ],
)
def test_posterior_refuses(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(st.InputError, match=said):
        st.Posterior(**fields)

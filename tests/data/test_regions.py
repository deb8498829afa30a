"""Which elements a region is read from."""

from __future__ import annotations

import numpy as np
import pytest

import stpred as st
from stpred import InputError, data
from stpred._core.places import Place


def test_counts_of_a_layer() -> None:
    slide = st.datasets.toy(size_um=(500, 500), n_genes=10)
    table = slide["spots_counts"]
    raw = table.X.toarray()
    table.layers["raw"] = table.X.copy()
    table.X = np.log1p(raw).astype(np.float32)
    with pytest.raises(InputError, match="raw counts are needed"):
        data.read_region(slide, Place("spots"), measured=True)
    region = data.read_region(slide, Place("spots", layer="raw"), measured=True)
    rows = table.obs["instance_id"].isin(region.instances).to_numpy()
    np.testing.assert_array_equal(region.counts.toarray(), raw[rows])
    np.testing.assert_array_equal(region.totals, raw[rows].sum(axis=1))
    with pytest.raises(
        InputError, match=r"No layer of table 'spots_counts'.*'counts' \(`layer`\); available: \['expected', 'raw'\]"
    ):
        data.read_region(slide, Place("spots", layer="counts"), measured=True)

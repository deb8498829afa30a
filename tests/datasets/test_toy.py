from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import issparse

from stpred import InputError
from stpred.datasets import Tissue, TissueSettings, toy, toy_cohort, toy_visium
from stpred.testing import affine_to, centroids

TINY = {"size_um": (320.0, 320.0), "mpp": 1.0, "n_genes": 10}


def test_toy_is_a_calibrated_slide(tissue: Tissue) -> None:
    from spatialdata.models import TableModel

    sdata = toy(tissue=tissue)
    assert set(sdata.images) == {"he"}
    assert set(sdata.shapes) == {"spots", "cells"}
    assert set(sdata.tables) == {"spots_counts", "cells_counts"}
    np.testing.assert_allclose(affine_to(sdata["he"]), np.diag([0.5, 0.5, 1]))
    np.testing.assert_allclose(affine_to(sdata["he"], "toy"), np.eye(3))
    np.testing.assert_allclose(affine_to(sdata["spots"], "toy"), np.diag([2, 2, 1]))
    for key in ("spots", "cells"):
        table = sdata[f"{key}_counts"]
        TableModel().validate(table)
        assert issparse(table.X)
        assert table.layers["expected"].dtype == np.float32
        xy, index = centroids(sdata, key)
        assert index.tolist() == table.obs["instance_id"].tolist()
        np.testing.assert_allclose(table.obsm["spatial"], xy, atol=4)
    np.testing.assert_array_equal(sdata["cells_counts"].X.toarray(), tissue.counts)
    assert sdata["cells_counts"].obs["type"].tolist() == tissue.cells["type"].tolist()
    image = sdata["he"]["scale0"].ds["image"]
    assert image.dims == ("c", "y", "x")
    np.testing.assert_array_equal(image.transpose("y", "x", "c").to_numpy(), tissue.image)


def test_toy_survives_the_disk(tissue: Tissue, tmp_path: Path) -> None:
    import spatialdata as sd

    toy(tissue=tissue).write(tmp_path / "toy.zarr")
    back = sd.read_zarr(tmp_path / "toy.zarr")
    np.testing.assert_array_equal(back["cells_counts"].layers["expected"], tissue.expected)


def test_shuffling_moves_rows_but_nothing_else(tissue: Tissue) -> None:
    plain, shuffled = toy(tissue=tissue), toy(tissue=tissue, shuffled=True)
    for key in ("spots_counts", "cells_counts"):
        one, two = plain[key], shuffled[key]
        assert one.obs_names.tolist() == two.obs_names.tolist()
        moved = (one.layers["expected"] != two.layers["expected"]).any(axis=1)
        assert moved.mean() > 0.5
        order = [np.lexsort(t.layers["expected"].T) for t in (one, two)]
        np.testing.assert_array_equal(one.layers["expected"][order[0]], two.layers["expected"][order[1]])
        np.testing.assert_array_equal(one.X.toarray()[order[0]], two.X.toarray()[order[1]])


def test_cohort_has_one_donor_per_slide() -> None:
    cohort = toy_cohort(2, **TINY)
    assert list(cohort) == ["donor0", "donor1"]
    one, two = (cohort[k]["cells_counts"] for k in cohort)
    assert one.var.equals(two.var)
    assert one.n_obs != two.n_obs
    with pytest.raises(InputError, match="`n_slides` must be a positive whole number, got 0"):
        toy_cohort(0)


def test_settings_and_keywords_make_the_same_slide() -> None:
    settings = TissueSettings(size_um=(320, 320), mpp=1, n_genes=10, donor=2)
    one, two = toy(tissue=settings), toy(**TINY, donor=2)
    np.testing.assert_array_equal(one["cells_counts"].X.toarray(), two["cells_counts"].X.toarray())
    changed = toy(tissue=settings, donor=3)["cells_counts"]
    assert changed.shape != one["cells_counts"].shape
    assert list(toy_cohort(2, tissue=settings)) == ["donor2", "donor3"]


def test_a_made_tissue_takes_no_settings(tissue: Tissue, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"`tissue` is made already; leave out its settings \['donor', 'mpp'\]"):
        toy(tissue=tissue, mpp=1.0, donor=1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'sede'"):
        toy(sede=1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'sede'"):
        toy_visium(tmp_path / "outs", sede=1)
    assert not (tmp_path / "outs").exists()

"""One tissue, written in every vendor's format, read back: the same places, counts and pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest

import stpred as st
from stpred.calibration import scaling
from stpred.io._images.pixels import multiscale
from stpred.tiles import Pyramid, read_tiles

SIZE_UM = (500.0, 420.0)
CENTRES = np.array([[150.0, 120.0], [300.0, 250.0], [390.5, 171.3]])


@pytest.fixture(scope="module")
def tissue() -> Any:
    return st.datasets.make_tissue(size_um=SIZE_UM, n_genes=20, seed=3)


WAYS: dict[str, Callable[[Path, Any], Any]] = {
    "visium v1": lambda p, t: st.io.visium(st.datasets.toy_visium(p / "a", tissue=t, version="v1"), mpp=0.5),
    "visium v2": lambda p, t: st.io.visium(
        st.datasets.toy_visium(p / "a", tissue=t, version="v2", counts="mtx"), mpp=0.5
    ),
    "visium v4": lambda p, t: st.io.visium(st.datasets.toy_visium(p / "a", tissue=t, version="v4"), mpp=0.5),
    "visium hd": lambda p, t: st.io.visium_hd(st.datasets.toy_visium_hd(p / "a", tissue=t)),
    "svs": lambda p, t: st.io.wsi(st.datasets.toy_wsi(p / "a.svs", tissue=t)),
    "ome.tif": lambda p, t: st.io.wsi(st.datasets.toy_wsi(p / "a.ome.tif", tissue=t)),
    "flat tif": lambda p, t: st.io.wsi(st.datasets.toy_wsi(p / "a.tif", tissue=t)),
    "png": lambda p, t: st.io.wsi(st.datasets.toy_wsi(p / "a.png", tissue=t), mpp=0.5),
    "legacy": lambda p, t: st.io.read(st.datasets.toy_legacy_st(p / "a", tissue=t), mpp=0.5),
    "hest": lambda p, t: st.io.read(st.datasets.toy_hest(p / "a", tissue=t)),
    "xenium": lambda p, t: st.io.xenium(
        st.datasets.toy_xenium(p / "a", tissue=t, rotation_deg=0.0, he_scale=0.5 / 0.2125)
    ),
    "xenium turned and flipped": lambda p, t: st.io.xenium(
        st.datasets.toy_xenium(p / "a", tissue=t, rotation_deg=20.0, flip=True)
    ),
}


@pytest.fixture(scope="module")
def read(tissue: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Path]]:
    """Returns what a way reads and the folder that it was written to; each is made once."""
    made: dict[str, tuple[Any, Path]] = {}

    def get(way: str) -> tuple[Any, Path]:
        if way not in made:
            folder = tmp_path_factory.mktemp("toy")
            made[way] = WAYS[way](folder, tissue), folder / "a"
        return made[way]

    return get


@pytest.mark.parametrize("way", WAYS)
def test_tiles_are_those_of_the_tissue(read: Callable, tissue: Any, way: str) -> None:
    truth = multiscale([da.from_array(tissue.image.transpose(2, 0, 1), chunks=(3, 256, 256))], {"um": scaling(0.5)})
    tile = st.TileSpec(mpp=0.6, size_px=160)
    expected = read_tiles(Pyramid.from_image(truth), CENTRES, tile)
    found = read_tiles(Pyramid.from_image(read(way)[0].images["he"]), CENTRES, tile)
    assert (abs(found.astype(int) - expected).mean(axis=(1, 2, 3)) < 2).all()


@pytest.mark.parametrize("way", ["visium v1", "visium v2", "hest", "legacy"])
def test_spots_hold_the_counts_and_places_that_were_written(read: Callable, way: str) -> None:
    sdata, folder = read(way)
    truth, table = st.datasets.load_truth(folder)["spots"], sdata.tables["spots_counts"]
    shared = [n for n in table.obs_names if n in set(truth.obs_names)]
    assert shared
    np.testing.assert_array_equal(table[shared].X.toarray(), np.asarray(truth[shared].layers["counts"]))
    np.testing.assert_allclose(table[shared].obsm["spatial"], truth[shared].obsm["spatial"], atol=1.0)


def test_cells_hold_the_counts_and_places_that_were_written(read: Callable) -> None:
    sdata, folder = read("xenium turned and flipped")
    truth, table = st.datasets.load_truth(folder)["cells"], sdata.tables["cells_counts"]
    assert set(table.obs_names) == set(truth.obs_names) == set(sdata.shapes["cells"].index)
    np.testing.assert_array_equal(table.X.toarray(), np.asarray(truth[table.obs_names].layers["counts"]))
    np.testing.assert_allclose(table.obsm["spatial"], truth[table.obs_names].obsm["spatial"], atol=4.0)

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from anndata import AnnData
from PIL import Image

import stpred as st
from stpred._core.checks import InputError, MissingFileError
from stpred.io._detect import detect

Make = Callable[..., SimpleNamespace]


def test_vendor_folders_are_recognised(make_visium: Make, make_hd: Make, make_xenium: Make) -> None:
    visium, hd = make_visium().outs, make_hd().outs
    assert detect(visium) == detect(visium.parent) == "visium"
    assert detect(hd) == detect(hd.parent) == detect(hd / "binned_outputs") == "visium_hd"
    assert detect(make_xenium(pixel_size=None).path) == "xenium"
    assert "spots" in st.io.read(visium, dataset_id="x").shapes
    assert st.io.read(hd, bin_sizes=16).shapes.keys() == {"bins_016um"}


def test_folders_of_files_are_recognised_and_passed_on(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    array = np.array([(x, y) for x in range(8) for y in range(8)])
    names = [f"{x}x{y}" for x, y in array]
    image = Image.fromarray(rng.integers(0, 256, (300, 300, 3), dtype=np.uint8))
    (tmp_path / "st").mkdir()
    image.save(tmp_path / "st" / "a.png")
    rows = "\n".join(f"{n}\t1\t2" for n in names)
    (tmp_path / "st" / "a.counts.tsv").write_text(f"\tA\tB\n{rows}\n")
    rows = "\n".join(f"{x}\t{y}\t{20 + 30 * x}\t{20 + 30 * y}" for x, y in array)
    (tmp_path / "st" / "a.spots.tsv").write_text(f"x\ty\tpixel_x\tpixel_y\n{rows}\n")
    assert detect(tmp_path / "st") == "legacy_st"
    assert len(st.io.read(tmp_path / "st", pitch_um=150).shapes["spots"]) == 64
    image.save(tmp_path / "st" / "b.png")
    with pytest.raises(InputError, match=r"2 image files for 'legacy_st': \['a.png', 'b.png'\]; exactly one"):
        st.io.read(tmp_path / "st", format="legacy_st")

    (tmp_path / "hest").mkdir()
    image.save(tmp_path / "hest" / "a.png")
    table = AnnData(np.ones((64, 2), np.float32), obsm={"spatial": array * 30.0 + 20})
    table.var_names = ["EPCAM", "VIM"]
    table.write_h5ad(tmp_path / "hest" / "a.h5ad")
    assert detect(tmp_path / "hest") == "hest"
    assert st.io.read(tmp_path / "hest", mpp=2.0).tables["spots_counts"].shape == (64, 2)
    assert detect(tmp_path / "hest" / "a.png") == "wsi"
    assert list(st.io.read(tmp_path / "hest" / "a.png", mpp=1.0).images) == ["he"]


def test_unknown_things_are_refused_with_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(
        InputError, match=r"holding \['notes.txt'\].*looked for an image file.*binned_outputs.*legacy_st"
    ):
        st.io.read(tmp_path)
    with pytest.raises(InputError, match="'notes.txt' is of no known format"):
        st.io.read(tmp_path / "notes.txt")
    with pytest.raises(MissingFileError, match="nothing at"):
        st.io.read(tmp_path / "none")
    with pytest.raises(InputError, match=r"`format` must be one of \['visium', .*got 'cosmx'"):
        st.io.read(tmp_path, format="cosmx")


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("visium_breast_outs", "visium"),
        ("visium_hd_colon", "visium_hd"),
        ("xenium_toy", "xenium"),
        ("xenium_lung_200", "hest"),
        ("wsi/CMU-1-Small-Region.svs", "wsi"),
    ],
)
def test_real_folders_are_recognised(real_data: Path, name: str, format: str) -> None:
    assert detect(real_data / name) == format

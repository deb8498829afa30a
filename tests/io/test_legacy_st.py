from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import stpred as st
from stpred._core.checks import InputError, MissingFileError
from stpred.testing import affine_to, centroids, mpp_of


@pytest.fixture
def section(tmp_path: Path) -> SimpleNamespace:
    rng = np.random.default_rng(0)
    array = np.array([(x, y) for x in range(3, 11) for y in range(5, 12)])
    pixels = array * 30.0 + rng.normal(0, 0.5, array.shape)
    spots = pd.DataFrame(
        {"x": array[:, 0], "y": array[:, 1], "pixel_x": pixels[:, 0], "pixel_y": pixels[:, 1], "selected": 1}
    )
    spots.loc[:4, "selected"] = 0
    names = [f"{x}x{y}" for x, y in array]
    counts = pd.DataFrame(rng.poisson(2.0, (len(array), 4)), index=names, columns=["EPCAM", "VIM", "ERBB2", "GNAS"])
    counts = counts.iloc[rng.permutation(len(counts))[3:]]
    counts.to_csv(tmp_path / "a.counts.tsv.gz", sep="\t")
    spots.to_csv(tmp_path / "a.spots.tsv", sep="\t", index=False)
    Image.fromarray(rng.integers(0, 256, (400, 380, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    files = tmp_path / "a.counts.tsv.gz", tmp_path / "a.png", tmp_path / "a.spots.tsv"
    return SimpleNamespace(files=files, counts=counts, spots=spots, path=tmp_path)


def test_spots_are_those_selected_with_counts_in_micrometres(section: SimpleNamespace) -> None:
    sdata = st.io.legacy_st(*section.files)
    table = sdata.tables["spots_counts"]
    chosen = section.spots[section.spots["selected"] == 1]
    expected = {f"{x}x{y}" for x, y in zip(chosen["x"], chosen["y"], strict=True)} & set(section.counts.index)
    assert set(table.obs_names) == expected == set(sdata.shapes["spots"].index)
    np.testing.assert_array_equal(table.X.toarray(), section.counts.loc[table.obs_names])
    assert mpp_of(affine_to(sdata.images["he"])) == pytest.approx(200 / 30, rel=0.005)
    assert (sdata.shapes["spots"]["radius"] * 200 / 30).to_numpy() == pytest.approx(50, rel=0.005)
    xy, _ = centroids(sdata, "spots")
    np.testing.assert_allclose(table.obsm["spatial"], xy)
    own = chosen.set_axis([f"{x}x{y}" for x, y in zip(chosen["x"], chosen["y"], strict=True)])
    pixels = own.loc[table.obs_names, ["pixel_x", "pixel_y"]].to_numpy()
    np.testing.assert_allclose(xy, pixels * mpp_of(affine_to(sdata.images["he"])))
    assert (table.obs["array_x"].astype(str) + "x" + table.obs["array_y"].astype(str) == table.obs_names).all()


def test_frames_and_turned_counts_and_unselected_tables_are_read_alike(section: SimpleNamespace) -> None:
    expected = st.io.legacy_st(*section.files).tables["spots_counts"]
    turned = st.io.legacy_st(section.counts.T, section.files[1], section.spots).tables["spots_counts"]
    assert list(turned.obs_names) == list(expected.obs_names)
    np.testing.assert_array_equal(turned.X.toarray(), expected.X.toarray())
    unselected = section.spots[section.spots["selected"] == 1].drop(columns="selected")
    assert st.io.legacy_st(section.counts, section.files[1], unselected).tables["spots_counts"].n_obs == expected.n_obs


def test_pitch_and_mpp_can_be_given(section: SimpleNamespace) -> None:
    sdata = st.io.legacy_st(*section.files, pitch_um=100)
    assert mpp_of(affine_to(sdata.images["he"])) == pytest.approx(100 / 30, rel=0.005)
    with pytest.warns(UserWarning, match=r"mpp= says 5 .* the spot pitch of 200 um 6\.6"):
        assert mpp_of(affine_to(st.io.legacy_st(*section.files, mpp=5).images["he"])) == 5


def test_bad_tables_say_what_is_wrong(section: SimpleNamespace) -> None:
    counts, image, spots = section.files
    with pytest.raises(MissingFileError, match="no counts file"):
        st.io.legacy_st("none.tsv", image, spots)
    with pytest.raises(InputError, match=r"lacks the columns \['pixel_x', 'pixel_y'\]"):
        st.io.legacy_st(counts, image, section.spots[["x", "y"]])
    with pytest.raises(InputError, match="name no spots"):
        st.io.legacy_st(section.counts.reset_index(drop=True), image, spots)
    with pytest.raises(InputError, match="share no spot"):
        st.io.legacy_st(section.counts, image, section.spots.assign(x=section.spots["x"] + 50))
    with pytest.raises(InputError, match="no spot with selected = 1"):
        st.io.legacy_st(counts, image, section.spots.assign(selected=0))
    with pytest.raises(InputError, match="spots twice"):
        st.io.legacy_st(counts, image, pd.concat([section.spots, section.spots[-1:]]))
    bad = section.counts.copy()
    bad.loc["8x8", "VIM"] = -1
    with pytest.raises(InputError, match="1 negative values"):
        st.io.legacy_st(bad, image, spots)
    with pytest.raises(InputError, match=r"\['VIM'\] are not numbers"):
        st.io.legacy_st(section.counts.astype({"VIM": str}), image, spots)
    with pytest.raises(InputError, match="do not follow their array coordinates"):
        st.io.legacy_st(counts, image, section.spots.assign(pixel_x=np.random.default_rng(0).permutation(300)[:56]))
    with pytest.raises(InputError, match="lie outside the image"):
        st.io.legacy_st(counts, image, section.spots.assign(pixel_x=section.spots["pixel_x"] + 5000))


@pytest.mark.realdata
@pytest.mark.parametrize(("name", "n_spots"), [("C2", 187), ("C5", None)])
def test_her2st_sections(real_data: Path, name: str, n_spots: int | None) -> None:
    base = real_data / "her2st"
    sdata = st.io.legacy_st(base / f"{name}.counts.tsv.gz", base / f"{name}.jpg", base / f"{name}.spots.tsv")
    assert mpp_of(affine_to(sdata.images["he"])) == pytest.approx(0.687, rel=0.01)
    if n_spots is not None:
        assert sdata.tables["spots_counts"].shape == (n_spots, 15_706)


@pytest.mark.realdata
def test_staggered_arrays_of_the_olfactory_bulb(real_data: Path) -> None:
    base = real_data / "mob"
    sdata = st.io.legacy_st(base / "MOB1.tsv", base / "MOB1.jpg", base / "alignment_table_MOB1.tsv", pitch_um=150)
    assert sdata.tables["spots_counts"].shape == (379, 1000)
    assert "gene_id" in sdata.tables["spots_counts"].var
    assert mpp_of(affine_to(sdata.images["he"])) == pytest.approx(4.6, rel=0.02)

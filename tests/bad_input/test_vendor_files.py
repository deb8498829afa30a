"""Vendors' folders: files that are missing, damaged or of another slide, small copies as full image, swapped axes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import stpred as st
from stpred._core.checks import MissingFileError

READERS: dict[str, Callable[..., Any]] = {
    "visium": st.io.visium,
    "visium_hd": st.io.visium_hd,
    "xenium": st.io.xenium,
    "legacy_st": st.io.read,
    "hest": st.io.read,
}


@pytest.mark.parametrize("name", ["visium", "visium_hd", "xenium"])
def test_folders_that_are_none(name: str, refused: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.tif").write_bytes(b"")
    for path in ("none", "empty", "a.tif"):
        with refused(f"{path}'", error=MissingFileError):
            READERS[name](tmp_path / path)


def test_folders_of_no_known_format(refused: Any, tmp_path: Path, vendor_files: Path) -> None:
    (tmp_path / "empty").mkdir()
    with refused("empty' (holding [])", "(visium)", "(visium_hd)", "(xenium)", "(hest)", "(legacy_st)"):
        st.io.read(tmp_path / "empty")
    with refused("`format` must be one of", "'visium', 'visium_hd', 'xenium', 'legacy_st', 'hest', 'wsi'", "'visum'"):
        st.io.read(vendor_files / "visium", format="visum")
    with refused("0 h5ad files for 'hest'", "stpred.io.hest"):
        st.io.read(vendor_files / "visium", format="hest")


@pytest.mark.parametrize(
    ("name", "file", "parts"),
    [
        ("visium", "filtered_feature_bc_matrix.h5", ("No counts", "filtered_feature_bc_matrix.h5", "raw_feature")),
        ("visium", "spatial/scalefactors_json.json", ("No scale factors", "scalefactors_json.json")),
        ("visium", "spatial/tissue_positions.csv", ("No spot positions", "tissue_positions.parquet", "positions_list")),
        ("visium_hd", "binned_outputs/square_016um/spatial/scalefactors_json.json", ("square_016um", "scale factors")),
        ("visium_hd", "binned_outputs/square_008um/spatial/tissue_positions.parquet", ("square_008um", "positions")),
        ("xenium", "cell_feature_matrix.h5", ("no counts", "'cell_feature_matrix.h5' and 'cell_feature_matrix'")),
        ("xenium", "toy_he_imagealignment.csv", ("'toy_he_image.ome.tif' has no alignment", "he_alignment=", "mpp=")),
        ("legacy_st", "counts.tsv.gz", ("holding", "'spots.tsv'", "(legacy_st)")),
        ("legacy_st", "spots.tsv", ("holding", "'counts.tsv.gz'", "(legacy_st)")),
        ("hest", "toy.h5ad", ("holding", "'toy.tif'", "(hest)")),
        ("hest", "toy.tif", ("holding", "'toy.h5ad'", "(hest)")),
    ],
)
def test_missing_files_are_named(name: str, file: str, parts: tuple[str, ...], copied: Any, refused: Any) -> None:
    folder = copied(name)
    (folder / file).unlink()
    with refused(*parts):
        READERS[name](folder)


@pytest.mark.parametrize("content", [b"", b"garbage\n" * 30], ids=["empty", "garbage"])
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("visium", "filtered_feature_bc_matrix.h5"),
        ("visium", "spatial/scalefactors_json.json"),
        ("visium", "spatial/tissue_positions.csv"),
        ("visium_hd", "binned_outputs/square_008um/filtered_feature_bc_matrix.h5"),
        ("visium_hd", "binned_outputs/square_016um/spatial/tissue_positions.parquet"),
        ("visium_hd", "binned_outputs/square_016um/spatial/scalefactors_json.json"),
        ("visium_hd", "segmented_outputs/cell_segmentations.geojson"),
        ("visium_hd", "segmented_outputs/filtered_feature_cell_matrix.h5"),
        ("xenium", "cell_feature_matrix.h5"),
        ("xenium", "cells.parquet"),
        ("xenium", "cells.zarr.zip"),
        ("xenium", "cell_boundaries.parquet"),
        ("xenium", "nucleus_boundaries.parquet"),
        ("xenium", "experiment.xenium"),
        ("xenium", "toy_he_image.ome.tif"),
        ("xenium", "toy_he_imagealignment.csv"),
        ("legacy_st", "counts.tsv.gz"),
        ("legacy_st", "spots.tsv"),
        ("legacy_st", "image.jpg"),
        ("hest", "toy.h5ad"),
        ("hest", "toy.tif"),
    ],
)
def test_damaged_files_are_named(name: str, file: str, content: bytes, copied: Any, refused: Any) -> None:
    folder = copied(name)
    (folder / file).write_bytes(content)
    named = () if file == "spots.tsv" and content else (Path(file).name,)
    with refused(*named):
        READERS[name](folder)


def test_cut_h5_files_are_named(copied: Any, refused: Any) -> None:
    for name, file in (("visium", "filtered_feature_bc_matrix.h5"), ("xenium", "cell_feature_matrix.h5")):
        path = copied(name) / file
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with refused(file, "cut off"):
            READERS[name](path.parent)


@pytest.mark.parametrize("kind", ["hires", "lowres"])
def test_copies_given_as_the_full_image(kind: str, vendor_files: Path, refused: Any) -> None:
    outs = vendor_files / "visium"
    size = {"hires": "160 x 240", "lowres": "64 x 96"}[kind]
    with refused(f"'tissue_{kind}_image.png' is not the full-resolution image", size, "640 x 960", "fullres_image="):
        st.io.visium(outs, fullres_image=outs / "spatial" / f"tissue_{kind}_image.png")


def test_without_a_full_image_predicting_is_refused(copied: Any, refused: Any, trained: Any) -> None:
    folder = copied("visium")
    full = folder / "fullres_image.tif"
    full.write_bytes(full.read_bytes()[: full.stat().st_size // 2])
    with pytest.warns(UserWarning, match=r"not taken: .*'fullres_image\.tif' is cut off"):
        sdata = st.io.visium(folder)
    with refused("Image 'he'", "1.999 um per pixel", "settings.max_upsampling to 4", sdata=sdata):
        st.tl.predict(sdata, trained)


def test_swapped_axes_are_found(vendor_files: Path, refused: Any) -> None:
    counts = ad.read_h5ad(vendor_files / "hest" / "toy.h5ad")
    straight = counts.obsm["spatial"].copy()
    counts.obsm["spatial"] = straight[:, ::-1].copy()
    image = vendor_files / "hest" / "toy.tif"
    with refused("of the spots lie outside the image of 640 x 960 px", "look swapped", "swap_xy=True"):
        st.io.hest(counts, image)
    sdata = st.io.hest(counts, image, swap_xy=True)
    np.testing.assert_allclose(sdata.tables["spots_counts"].obsm["spatial"], straight / 2)
    with refused("of the spots lie outside the image", "640", "960", "full-resolution"):
        st.io.hest(counts, image, swap_xy=False)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda a: a.obsm["spatial"].__iadd__(1e5), ("100% of the spots lie outside", "0 to 640", "0 to 960")),
        (lambda a: a.obsm["spatial"].__setitem__((0, 0), np.nan), ("1 positions are NaN", "-1'")),
        (lambda a: setattr(a, "X", a.X * 0.3), ("counts of 'spots'", "not whole numbers", "normalised")),
        (lambda a: setattr(a, "X", -a.X), ("counts of 'spots'", "negative")),
        (lambda a: setattr(a, "obs_names", ["x", "x", *a.obs_names[2:]]), ("not unique", "['x']")),
        (
            lambda a: (a.obsm.pop("spatial"), a.obs.drop(columns=["pxl_col_in_fullres"], inplace=True)),
            ("no positions", "obsm['spatial']", "'array_row', 'array_col', 'pxl_row_in_fullres'"),
        ),
    ],
)
def test_anndata_that_does_not_fit(
    change: Callable[[ad.AnnData], Any], parts: tuple[str, ...], vendor_files: Path, refused: Any
) -> None:
    counts = ad.read_h5ad(vendor_files / "hest" / "toy.h5ad")
    change(counts)
    with refused(*parts):
        st.io.hest(counts, vendor_files / "hest" / "toy.tif")


def test_anndata_of_another_kind(vendor_files: Path, refused: Any) -> None:
    image = vendor_files / "hest" / "toy.tif"
    counts = ad.read_h5ad(vendor_files / "hest" / "toy.h5ad")
    with refused("`adata` must be an AnnData", "NoneType"):
        st.io.hest(None, image)  # type: ignore[arg-type]
    with refused("no observation", "(0, 20)"):
        st.io.hest(counts[:0].copy(), image)
    with refused("No layer named 'raw'", "`layer`", "available: []"):
        st.io.hest(counts, image, layer="raw")
    with refused("none.tif'", error=MissingFileError):
        st.io.hest(counts, vendor_files / "none.tif")


def test_repeated_gene_names_get_suffixes(vendor_files: Path) -> None:
    counts = ad.read_h5ad(vendor_files / "hest" / "toy.h5ad")
    counts.var_names = ["EPCAM", "EPCAM", *counts.var_names[2:]]
    sdata = st.io.hest(counts, vendor_files / "hest" / "toy.tif")
    assert list(sdata.tables["spots_counts"].var_names[:2]) == ["EPCAM", "EPCAM-1"]


def test_positions_without_numbers(copied: Any, refused: Any) -> None:
    path = copied("visium") / "spatial" / "tissue_positions.csv"
    frame = pd.read_csv(path)
    frame.loc[3, "pxl_row_in_fullres"] = np.nan
    frame.to_csv(path, index=False)
    with refused("'tissue_positions.csv' have no number", "1 rows", frame["barcode"][3]):
        st.io.visium(path.parent.parent)
    path = copied("legacy_st") / "spots.tsv"
    frame = pd.read_csv(path, sep="\t")
    frame["pixel_x"] = frame["pixel_x"].astype(object)
    frame.loc[0, "pixel_x"] = "here"
    frame.to_csv(path, sep="\t", index=False)
    with refused("The spots have no number", "in 1 rows", "'pixel_x'"):
        st.io.read(path.parent)


def test_scale_factors_that_lack_the_spot_size(copied: Any, refused: Any) -> None:
    path = copied("visium") / "spatial" / "scalefactors_json.json"
    path.write_text(json.dumps({"tissue_hires_scalef": 0.25}))
    with refused("lack 'spot_diameter_fullres'", "['tissue_hires_scalef']"):
        st.io.visium(path.parent.parent)


def test_bins_that_are_not_there(vendor_files: Path, refused: Any) -> None:
    with refused("`bin_sizes`=[4]", "[2, 8, 16]"):
        st.io.visium_hd(vendor_files / "visium_hd", bin_sizes=4)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("", ("slides.csv", "cannot be read")),
        ("slide,paht\na,b\n", ("lacks the columns ['path']", "'donor'")),
        ("slide,path,where\na,b,c\n", ("unknown columns ['where']", "'donor'")),
        ("slide,path\na,\n", ("Row 1 of 'slides.csv' names no path",)),
        ("slide,path,mpp\na,b,half\n", ("'a'", "`mpp` must be a positive number", "'half'")),
        ("slide,path,mpp\na,b,0\n", ("'a'", "`mpp` must be a positive number", "'0'")),
        ("slide,path\na,none\n", ("none'",)),
        ("slide,path,format\na,.,visum\n", ("Slide 'a'", "'visium'", "'visum'")),
    ],
)
def test_tables_of_slides(content: str, parts: tuple[str, ...], refused: Any, tmp_path: Path) -> None:
    (tmp_path / "slides.csv").write_text(content)
    with refused(*parts):
        st.io.read_cohort([tmp_path / "slides.csv"])

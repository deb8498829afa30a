"""The synthetic files that the pages' commands and snippets work on."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

DONORS = ("p1", "p2", "p3", "p4")
GENES = 60
MPP = 0.75


def write_files(folder: Path) -> None:
    """Write small slides in every vendor's format, a trained model and a reference, under the names that pages use."""
    from stpred import datasets as ds

    small = {"size_um": (800.0, 800.0), "mpp": MPP, "n_genes": GENES}
    ds.toy_visium(folder / "sample1" / "outs", donor=5, **small)
    for n, donor in enumerate(DONORS):
        ds.toy_visium(folder / donor / "outs", donor=n, **small)
    ds.toy_visium_hd(folder / "hd" / "outs", size_um=(500.0, 500.0), mpp=MPP, n_genes=GENES)
    _write_xenium(folder)
    ds.toy_wsi(folder / "slide.ome.tif", donor=6, **small)
    for n, name in enumerate(("a1", "a2", "b1")):
        ds.toy_wsi(folder / "slides" / f"{name}.tif", donor=n, size_um=(500.0, 500.0), mpp=MPP)
    rows = ["slide,path,donor", "a1,slides/a1.tif,a", "a2,slides/a2.tif,a", "b1,slides/b1.tif,b"]
    (folder / "slides.csv").write_text("\n".join(rows) + "\n")
    rows = ["slide,path,donor", *(f"{donor},{donor}/outs,{donor}" for donor in DONORS[:3])]
    (folder / "measured.csv").write_text("\n".join(rows) + "\n")
    _write_legacy(folder)
    pair = ds.toy_hest(folder / "pair", **small)
    (folder / "hest").mkdir()
    for suffix in (".h5ad", ".tif"):
        (pair / f"toy{suffix}").rename(folder / "hest" / f"sample{suffix}")
    shutil.rmtree(pair)
    _write_trained(folder)
    for truth in [p for pattern in ("*/outs/truth", "*.truth", "slides/*.truth") for p in folder.glob(pattern)]:
        shutil.rmtree(truth)


def _write_xenium(folder: Path) -> None:
    from stpred import datasets

    bundle = datasets.toy_xenium(folder / "xenium" / "outs", size_um=(500.0, 500.0), n_genes=GENES)
    for name in ("he_image.ome.tif", "he_imagealignment.csv"):
        (bundle / f"toy_{name}").rename(bundle / name)
    shutil.copy(bundle / "he_image.ome.tif", folder / "he.ome.tif")
    shutil.copy(bundle / "he_imagealignment.csv", folder / "he_imagealignment.csv")


def _write_legacy(folder: Path) -> None:
    import pandas as pd
    from PIL import Image

    from stpred import datasets

    section = datasets.toy_legacy_st(folder / "section", size_um=(1200.0, 1200.0), n_genes=GENES)
    target = folder / "legacy"
    target.mkdir()
    pd.read_csv(section / "counts.tsv.gz", sep="\t", index_col=0).to_csv(target / "counts.tsv", sep="\t")
    Image.open(section / "image.jpg").save(target / "image.png")
    shutil.copy(section / "spots.tsv", target / "spots.tsv")
    shutil.rmtree(section)


def _write_trained(folder: Path) -> None:
    from shapely.geometry import mapping

    import stpred as st

    slides = {d: st.io.visium(folder / d / "outs") for d in DONORS[:3]}
    model = st.tl.train(slides, "ridge", genes=st.GeneRule("mean", n=40), groups={d: d for d in slides})
    st.models.save(model, folder / "mymodel")
    slide = st.io.visium(folder / "sample1" / "outs")
    st.pp.nuclei(slide)
    pixels = slide.shapes["nuclei"].geometry.scale(1 / MPP, 1 / MPP, origin=(0, 0))
    outlines = [
        {"type": "Feature", "geometry": mapping(p), "properties": {"classification": {"name": "Tumor"}}} for p in pixels
    ]
    (folder / "cells.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": outlines}))
    reference = st.datasets.toy_reference(n_types=3, n_genes=200, n_cells=60)
    genes = list(slide.tables["spots_counts"].var_names)
    reference.var_names = [*genes, *reference.var_names[len(genes) :]]
    reference.write_h5ad(folder / "reference.h5ad")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the files, written once, also where several processes test; $STPRED_PAGE_FILES keeps them."""
    base = tmp_path_factory.getbasetemp()
    base = Path(os.environ.get("STPRED_PAGE_FILES", base.parent if "popen" in base.name else base)).absolute()
    base.mkdir(parents=True, exist_ok=True)
    folder = base / "pages"
    with FileLock(base / "pages.lock"):
        if not folder.exists():
            unfinished = base / "pages_unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            write_files(unfinished)
            unfinished.rename(folder)
    return folder

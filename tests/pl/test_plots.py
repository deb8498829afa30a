from __future__ import annotations

import io
from collections.abc import Iterator

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

import stpred as st
from stpred import InputError
from stpred.models import Model

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def slide() -> object:
    sdata = st.datasets.toy(size_um=(600, 600), n_genes=20)
    model = st.tl.train(sdata, "intensity", genes="all", shapes_key="spots")
    assert isinstance(model, Model)
    st.tl.predict(sdata, model, shapes_key="spots")
    return sdata


def drawn(figure: object) -> np.ndarray:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=60)
    return np.asarray(Image.open(buffer).convert("RGB"))


def test_spatial_draws_the_genes_and_says_how_far_they_are_validated(slide: object) -> None:
    axes = st.pl.spatial(slide, "spots_intensity", ["EPCAM", "ood_score"])
    assert [ax.get_title() for ax in axes] == ["H&E", "EPCAM (not validated)", "ood_score"]
    assert len({tuple(c) for c in drawn(axes[0].figure).reshape(-1, 3)[::50]}) > 50
    again = st.pl.spatial(slide, "spots_counts", "EPCAM", show_image=False)
    assert again[1].get_title() == "EPCAM"
    assert "values" not in slide.tables


def test_compare_shows_measured_beside_predicted(slide: object) -> None:
    axes = st.pl.compare(slide, "spots_intensity", "spots_counts", genes=["EPCAM"])
    score = st.tl.compare(slide, "spots_intensity", "spots_counts").loc["EPCAM", "pearson"]
    titles = [ax.get_title() for ax in axes]
    assert titles == ["EPCAM, measured", "EPCAM, predicted", "EPCAM, error", f"EPCAM: r = {score:.2f}", ""]
    assert len(drawn(axes[0].figure)) > 100
    assert len(st.pl.compare(slide, "spots_intensity", "spots_counts")) == 13
    other = st.pl.compare(slide, "spots_intensity", "spots_counts", genes="EPCAM", target="counts")
    assert other[2].get_title() == "EPCAM, error of z-scores"  # of a prediction on another scale


def test_unknown_genes_and_tables_are_named(slide: object) -> None:
    with pytest.raises(InputError, match=r"no gene or obs column \['NOPE'\]"):
        st.pl.spatial(slide, "spots_intensity", "NOPE")
    with pytest.raises(InputError, match=r"No table named 'nope'"):
        st.pl.spatial(slide, "nope")
    with pytest.raises(InputError, match=r"No layer named 'std'"):
        st.pl.spatial(slide, "spots_intensity", "EPCAM", layer="std")
    with pytest.raises(InputError, match=r"Genes \['NOPE'\] are not both predicted and measured"):
        st.pl.compare(slide, "spots_intensity", "spots_counts", genes="NOPE")


def test_a_map_is_drawn_where_it_is(tmp_path: object) -> None:
    """What is not predicted stays empty, and the picture spans the map in micrometres."""
    from stpred import rasters

    sdata = st.datasets.toy(size_um=(400, 400), n_genes=20)
    frame = rasters.Frame.around((80.0, 40.0, 240.0, 200.0), 8.0)
    values = np.full((2, *frame.shape), np.nan, dtype=np.float32)
    values[:, 4:12, 4:12] = np.arange(64, dtype=np.float32).reshape(8, 8)
    sdata.images["mine"] = rasters.element(values, ["EPCAM", "COL1A2"], frame)
    axes = st.pl.raster(sdata, "mine", ["COL1A2"], save=tmp_path / "map.png")  # type: ignore[operator]
    assert [ax.get_title() for ax in axes] == ["H&E", "COL1A2"]
    assert (tmp_path / "map.png").stat().st_size > 5000  # type: ignore[operator]
    for ax in axes:
        np.testing.assert_allclose(ax.get_xlim(), (80, 240))
        np.testing.assert_allclose(ax.get_ylim(), (200, 40))
    shown = axes[1].images[0]
    np.testing.assert_allclose(shown.get_extent(), (80, 240, 200, 40))
    assert np.ma.getmaskarray(shown.get_array()).sum() == values[0].size - 64
    with pytest.raises(InputError, match="has no gene"):
        st.pl.raster(sdata, "mine", "NOPE")
    with pytest.raises(InputError, match="No image named"):
        st.pl.raster(sdata, "nothing", "EPCAM")
    with pytest.raises(InputError, match="`genes` is empty"):
        st.pl.raster(sdata, "mine", [])

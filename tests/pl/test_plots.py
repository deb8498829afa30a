from __future__ import annotations

import io
from collections.abc import Iterator

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import stpred as st
from stpred import InputError
from stpred.models import Model
from stpred.testing import fitted_model

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


def test_categories_have_a_legend_and_their_own_colours() -> None:
    sdata = st.datasets.toy(size_um=(500, 500), n_genes=20)
    table = sdata["spots_counts"]
    kinds = np.array(["stroma", "tumour", "glass"])[np.arange(table.n_obs) % 2]
    table.obs["kind"] = pd.Categorical(kinds, categories=["stroma", "tumour", "glass"])
    table.obs["kept"] = kinds == "tumour"
    table.obs.loc[table.obs_names[:3], "kind"] = None
    table.uns["kind_colors"] = ["#ff0000", "#00ff00", "#0000ff"]
    axes = st.pl.spatial(sdata, "spots_counts", ["kind", "kept", "array_row"], show_image=False)
    legends = [ax.get_legend() for ax in axes]
    assert [[t.get_text() for t in g.get_texts()] for g in legends[1:3]] == [["stroma", "tumour"], ["False", "True"]]
    assert legends[3] is None  # numbers keep a colour bar
    faces = np.concatenate([c.get_facecolors() for c in axes[1].collections])[:, :3]
    red, green = (int((np.abs(faces - c) < 0.02).all(axis=1).sum()) for c in ((1, 0, 0), (0, 1, 0)))
    assert red == (table.obs["kind"] == "stroma").sum()
    assert green == (table.obs["kind"] == "tumour").sum()
    assert len(table) - red - green == 3


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
    table = sdata.tables["spots_counts"]
    table.obs["in_distribution"], table.obs["ood_score"] = True, 0.0
    assert len(st.pl.raster(sdata, "mine", "COL1A2", table_key="spots_counts")) == 2  # a score of zero tells nothing
    table.obs["in_distribution"], table.obs["ood_score"] = False, 1.0
    axes = st.pl.raster(sdata, "mine", "COL1A2", table_key="spots_counts")
    assert [ax.get_title() for ax in axes] == ["H&E", "COL1A2", "ood_score"]
    assert "unlike the model's training tiles" in axes[0].figure.get_suptitle()
    with pytest.raises(InputError, match="has no gene"):
        st.pl.raster(sdata, "mine", "NOPE")
    with pytest.raises(InputError, match="No image named"):
        st.pl.raster(sdata, "nothing", "EPCAM")
    with pytest.raises(InputError, match="`genes` is empty"):
        st.pl.raster(sdata, "mine", [])


def test_the_line_across_a_figure_says_what_is_known() -> None:
    slide = st.datasets.toy(size_um=(400, 400), n_genes=5)
    model = fitted_model("mean")
    st.tl.predict(slide, model, shapes_key="spots", genes=["EPCAM"])
    obs = slide["spots_mean"].obs
    obs["in_distribution"] = False
    for scores, said in [(2.0, "Out of distribution: 100% of the tiles"), (np.nan, "training tiles are not known")]:
        obs["ood_score"] = np.float32(scores)
        figure = st.pl.spatial(slide, "spots_mean", ["EPCAM"])[0].figure
        assert said in figure.get_suptitle()
        plt.close(figure)


def test_a_score_over_other_locations_names_them(slide: object) -> None:
    """A score over spots is none of nuclei: titles say over which locations it is."""
    from stpred._core.tables import read_provenance, write_provenance

    table = slide.tables["spots_intensity"].copy()
    assert read_provenance(table)["training_region"] == "spots"
    table.var["cv_pearson"] = 0.5
    slide.tables["again"] = table
    assert st.pl.spatial(slide, "again", "EPCAM")[1].get_title() == "EPCAM (cross-validated r = 0.50)"
    provenance = read_provenance(table)
    table.obs["in_distribution"] = False
    write_provenance(table, provenance | {"training": {"n_donors": 1}})
    across = st.pl.spatial(slide, "again", "EPCAM")[0].figure.get_suptitle()
    assert "unlike those of the single training donor" in across
    for region, said in (("nuclei", "nuclei"), ("bins_008um", "8 µm bins")):
        write_provenance(table, provenance | {"training_region": region})
        assert st.pl.spatial(slide, "again", "EPCAM")[1].get_title() == f"EPCAM (r = 0.50 over held-out {said})"


def test_a_picture_without_anything_out_of_distribution_has_no_panel_of_it(slide: object) -> None:
    from stpred.cohort.pictures import draw_picture

    table = slide.tables["spots_intensity"].copy()
    table.obs["ood_score"], table.obs["in_distribution"] = 0.0, True
    slide.tables["inside"] = table
    titles = [ax.get_title() for ax in draw_picture(slide, "inside", None)]
    assert titles[0] == "H&E (all in distribution)"
    assert "ood_score" not in titles
    table.obs.iloc[0, table.obs.columns.get_loc("ood_score")] = 0.5
    titles = [ax.get_title() for ax in draw_picture(slide, "inside", None)]
    assert (titles[0], titles[-1]) == ("H&E", "ood_score")

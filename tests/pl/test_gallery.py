from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import shapely
from matplotlib.figure import Figure
from PIL import Image
from spatialdata import SpatialData

import stpred as st
from stpred import InputError

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    plt.close("all")


def gallery(sdata: SpatialData, table_key: str, **asked: Any) -> Figure:
    return st.pl.gallery(sdata, table_key, **asked)[0, 0].figure


@pytest.fixture
def slide() -> SpatialData:
    sdata = st.datasets.toy(size_um=(400, 400), n_genes=30)
    table = sdata.tables["cells_counts"]
    marks = table.var["marks"]
    st.tl.score_cell_types(sdata, "cells_counts", {t: list(table.var_names[marks == t]) for t in ("tumour", "plasma")})
    return sdata


def centres(sdata: SpatialData) -> np.ndarray:
    points = sdata.shapes["cells"].geometry.centroid
    return np.column_stack([points.x, points.y])


def shown(figure: Figure) -> list[list[np.ndarray]]:
    """Centres in micrometres of the crops in each row."""
    rows: dict[int, list[np.ndarray]] = {}
    for ax in figure.axes:
        for image in ax.images:
            x0, x1, y1, y0 = image.get_extent()
            line = ax.get_subplotspec().rowspan.start
            rows.setdefault(line, []).append(np.array([(x0 + x1) / 2, (y0 + y1) / 2]))
    return [rows[i] for i in sorted(rows)]


def slow_choice(values: np.ndarray, xy: np.ndarray, *, n: int, size: float, extent: float) -> list[int]:
    inside = (xy - size / 2 >= 0).all(axis=1) & (xy + size / 2 <= extent).all(axis=1)
    kept: list[int] = []
    for row in np.argsort(-values, kind="stable"):
        near = any(max(abs(xy[row] - xy[k])) < size for k in kept)
        if np.isfinite(values[row]) and inside[row] and not near and len(kept) < n:
            kept.append(int(row))
    return kept


def test_the_best_cells_of_each_type_are_shown_apart_from_each_other(slide: SpatialData) -> None:
    figure = gallery(slide, "cells_counts", n=6, size_um=30)
    table, xy = slide.tables["cells_counts"], centres(slide)
    assert [ax.get_ylabel() for ax in figure.axes if ax.get_ylabel()] == ["tumour", "plasma"]
    for name, row in zip(("tumour", "plasma"), shown(figure), strict=True):
        values = table.obs[f"score_{name}"].where(table.obs["cell_type"] == name).to_numpy()
        truth = slow_choice(values, xy, n=6, size=30, extent=400)
        assert np.allclose(row, xy[truth])
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert len(titles) == 12
    assert float(titles[0]) >= float(titles[5]) > 0


def test_genes_and_numbers_are_ranked_by_value(slide: SpatialData) -> None:
    figure = gallery(slide, "cells_counts", color=["EPCAM", "area_um2"], n=4)
    table, xy = slide.tables["cells_counts"], centres(slide)
    for row, values in zip(shown(figure), (table.to_df()["EPCAM"], table.obs["area_um2"]), strict=True):
        truth = slow_choice(values.to_numpy(dtype=float), xy, n=4, size=24, extent=400)
        assert np.allclose(row, xy[truth])
    layer = gallery(slide, "cells_counts", color="EPCAM", layer="expected", n=2)
    expected = table.layers["expected"][:, table.var_names.get_loc("EPCAM")]
    assert np.allclose(shown(layer)[0], xy[slow_choice(expected, xy, n=2, size=24, extent=400)])
    close = gallery(slide, "cells_counts", color="EPCAM", n=8, min_distance_um=0.1)
    far = gallery(slide, "cells_counts", color="EPCAM", n=8, min_distance_um=100)
    gaps = [min(np.abs(a - b).max() for i, a in enumerate(r) for b in r[:i]) for r in (shown(close)[0], shown(far)[0])]
    assert gaps[0] < 24
    assert gaps[1] >= 100


def test_a_crop_is_the_image_at_its_place_and_the_outline_is_the_cell(slide: SpatialData) -> None:
    figure = gallery(slide, "cells_counts", color="area_um2", n=1, size_um=20)
    ax, (x, y) = figure.axes[0], shown(figure)[0][0]
    crop = ax.images[0].get_array()
    assert crop.shape == (40, 40, 3)
    whole = np.moveaxis(np.asarray(slide.images["he"]["scale0"]["image"]), 0, -1)
    row, column = round(y / 0.5), round(x / 0.5)
    there = whole[row - 20 : row + 20, column - 20 : column + 20]
    assert np.abs(crop.astype(float) - there).mean() < 6  # but for half a pixel
    assert np.abs(crop[::-1].astype(float) - there).mean() > 6
    outline = slide.shapes["cells"].geometry.iloc[int(np.linalg.norm(centres(slide) - [x, y], axis=1).argmin())]
    drawn = {tuple(np.round(p, 6)) for line in ax.lines for p in line.get_xydata()}
    assert {tuple(np.round(p, 6)) for p in shapely.get_coordinates(outline)} <= drawn
    without = gallery(slide, "cells_counts", color="area_um2", n=1, size_um=20, outline=False)
    assert len(without.axes[0].lines) == 1  # the scale bar
    bar = without.axes[0].lines[0].get_xdata()
    assert without.axes[0].texts[0].get_text() == f"{bar[1] - bar[0]:g} µm"
    assert 20 / 5 < bar[1] - bar[0] < 20 / 2


def test_cells_unlike_training_are_left_out(slide: SpatialData) -> None:
    table, xy = slide.tables["cells_counts"], centres(slide)
    values = table.obs["area_um2"].to_numpy()
    table.obs["in_distribution"] = values < np.quantile(values, 0.9)
    row = shown(gallery(slide, "cells_counts", color="area_um2", n=3))[0]
    kept = np.where(table.obs["in_distribution"], values, np.nan)
    assert np.allclose(row, xy[slow_choice(kept, xy, n=3, size=24, extent=400)])
    table.obs["in_distribution"] = False
    with pytest.raises(InputError, match=r"no cell to show for 'area_um2': of \d+, none is in distribution"):
        gallery(slide, "cells_counts", color="area_um2")


def test_categories_without_scores_and_groups(slide: SpatialData) -> None:
    table = slide.tables["cells_counts"]
    # A column that happens to name its categories like scored types is not ranked by their scores.
    table.obs["other"] = pd.Categorical(np.where(np.arange(table.n_obs) % 2, "tumour", "unassigned"))
    figure = gallery(slide, "cells_counts", color="other", n=3)
    assert [ax.get_ylabel() for ax in figure.axes if ax.get_ylabel()] == ["tumour"]
    assert not [ax.get_title() for ax in figure.axes if ax.get_title()]
    again = gallery(slide, "cells_counts", color="other", n=3)
    assert np.allclose(shown(figure), shown(again))
    other = gallery(slide, "cells_counts", color="other", n=3, seed=1)
    assert not np.allclose(shown(figure), shown(other))
    one = gallery(slide, "cells_counts", groups=["plasma", "tumour"], n=2)
    assert [ax.get_ylabel() for ax in one.axes if ax.get_ylabel()] == ["plasma", "tumour"]


def test_spots_are_drawn_too(slide: SpatialData) -> None:
    figure = gallery(slide, "spots_counts", color=["EPCAM", "CD3E"], n=3, size_um=60)
    radius = np.linalg.norm(figure.axes[0].lines[0].get_xydata() - shown(figure)[0][0], axis=1)
    assert np.allclose(radius, 27.5, atol=0.05)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=50)
    pixels = np.asarray(Image.open(buffer).convert("RGB"))
    assert len({tuple(c) for c in pixels.reshape(-1, 3)[::7]}) > 100


def test_bad_arguments_are_named(slide: SpatialData) -> None:
    for asked, said in (
        ({"color": "NOPE"}, r"no obs column or gene \['NOPE'\]"),
        ({"color": ["cell_type", "EPCAM"]}, "one categorical column or several numeric ones"),
        ({"color": []}, "`color` is empty"),
        ({"groups": "nope"}, r"no category \['nope'\]; it has \['tumour', 'plasma'"),
        ({"color": "EPCAM", "groups": "a"}, "`groups` are categories"),
        ({"n": 0}, "`n` must be a positive whole number"),
        ({"size_um": -1}, "`size_um` must be a positive number of um"),
        ({"size_um": 500}, "no cell to show for 'tumour'"),
        ({"image_key": "nope"}, "No image named 'nope'"),
        ({"color": "EPCAM", "layer": "nope"}, "No layer named 'nope'"),
    ):
        with pytest.raises(InputError, match=said):
            gallery(slide, "cells_counts", **asked)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="No table named 'nope'"):
        gallery(slide, "nope")
    del slide.shapes["cells"]
    with pytest.raises(InputError, match="region 'cells' is no element"):
        gallery(slide, "cells_counts")

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from spatialdata import SpatialData

import stpred as st
from stpred import InputError
from stpred.testing import build_table

CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
ARGUMENTS = (
    "--headless=new --no-sandbox --disable-gpu --disable-background-networking --disable-sync --no-first-run".split()
)
EVIL = "<script>document.title='broken'</script>"
EVILLER = "</script><img src=x onerror=\"document.title='broken'\">"


def predicted(sdata: SpatialData, values: np.ndarray, var: pd.DataFrame, **facts: Any) -> None:
    """Put a table as of a prediction into the object."""
    measured = sdata.tables["spots_counts"]
    stated = {
        "kind": "prediction",
        "model": "made-up",
        "family": "ridge",
        "encoder": {"name": "morphology", "revision": "1", "licence": "BSD-3-Clause"},
        "tile": {"mpp": 0.5, "size_px": 224},
        "output_scale": "log1p_cp10k",
        "support_um": 112.0,
        "gene_rule": {"method": "all"},
        "training": {"n_donors": 2, "slides": {"p": {"image": "1"}, "q": {"image": "2"}}},
        "versions": {"stpred": "0.1.0"},
        "mpp": 0.5,
    }
    sdata.tables["predicted"] = build_table(
        values.astype(np.float32),
        shapes_key="spots",
        instances=pd.Index(measured.obs["instance_id"]),
        var=var,
        spatial_um=measured.obsm["spatial"],
        obs={"in_distribution": np.arange(len(values)) % 10 > 1, "ood_score": np.zeros(len(values))},
        provenance=stated | facts,
    )


def cohort(n: int = 3) -> dict[str, SpatialData]:
    """Toy slides whose first gene is predicted best and whose last one worst; two have names that break pages."""
    slides = st.datasets.toy_cohort(n, size_um=(600, 600), n_genes=40)
    for k, sdata in enumerate(slides.values()):
        table = sdata.tables["spots_counts"]
        names = list(table.var_names)
        names[3], names[5] = EVIL, EVILLER
        table.var_names = pd.Index(names)
        counts = table.X.toarray()
        log = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
        share = np.linspace(1, 0, len(names))
        noise = np.random.default_rng(k).normal(size=log.shape) * log.std(axis=0)
        var = pd.DataFrame({"cv_pearson": share, "rmax": 0.9, "trusted": share > 0.5}, index=table.var_names)
        predicted(sdata, share * log + (1 - share) * noise, var)
    return slides


def tidy(slides: dict[str, SpatialData], *, targets: tuple[str, ...] = ("log1p_cp10k", "counts")) -> pd.DataFrame:
    """Scores as of cross-validation: two models and their context."""
    genes = next(iter(slides.values())).tables["predicted"].var_names
    rng = np.random.default_rng(0)
    parts = []
    for target in targets:
        for k, slide in enumerate(slides):
            rows = {("made-up", "pearson"): np.linspace(0.9, -0.1, len(genes)) + 0.01 * k}
            rows |= {
                ("made-up", "rmse"): rng.uniform(0.2, 1, len(genes)),
                ("other", "pearson"): np.full(len(genes), 0.2),
            }
            rows |= {
                ("library_size", "pearson"): np.full(len(genes), 0.25),
                ("neighbour_average", "pearson"): np.full(len(genes), 0.4),
            }
            rows |= {
                ("ceiling", "reliability"): np.full(len(genes), 0.7),
                ("ceiling", "rmax"): np.full(len(genes), 0.8),
            }
            parts += [
                pd.DataFrame({"model": m, "metric": k2, "gene": genes, "value": v, "slide": slide, "target": target})
                for (m, k2), v in rows.items()
            ]
    return pd.concat(parts, ignore_index=True).assign(donor_shared=False)


def embedded(path: Path) -> dict[str, Any]:
    """What the page's script draws from."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), flags=re.S)
    assert found is not None
    return json.loads(found.group(1))


@pytest.fixture(scope="module")
def slides() -> dict[str, SpatialData]:
    return cohort()


@pytest.fixture(scope="module")
def page(slides: dict[str, SpatialData], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    return st.report(path, slides, "predicted", measured_key="spots_counts", scores=tidy(slides), n_maps=3)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five thousand genes on two slides, with more maps than there is room for."""
    pair = st.datasets.toy_cohort(2, size_um=(600, 600), n_genes=20)
    names = [f"GENE{i}" for i in range(5000)]
    rng = np.random.default_rng(0)
    for sdata in pair.values():
        n = sdata.tables["spots_counts"].n_obs
        var = pd.DataFrame({"cv_pearson": rng.uniform(-0.1, 0.8, 5000), "trusted": rng.random(5000) > 0.5}, index=names)
        predicted(sdata, rng.normal(size=(n, 5000)), var)
    path = tmp_path_factory.mktemp("many") / "report.html"
    began = time.perf_counter()
    st.report(path, pair, "predicted", scores=tidy(pair), model="made-up", max_mb=1.5)
    assert time.perf_counter() - began < 60
    return path


def test_the_page_holds_the_values_that_it_is_asked_for(slides: dict[str, SpatialData], page: Path) -> None:
    import base64

    data = embedded(page)
    genes = data["genes"]
    scores = tidy(slides)
    part = scores[(scores.model == "made-up") & (scores.metric == "pearson") & (scores.target == "log1p_cp10k")]
    mean = part.groupby("gene").value.mean()
    assert data["columns"][0]["values"] == pytest.approx(mean[genes].to_numpy(), abs=1e-3)
    assert data["best"] == [0, 1, 2]
    assert data["worst"] == [39, 38, 37]
    assert len(data["maps"]) == 40
    table = slides["donor1"].tables["predicted"]
    (low, high, values), (low_measured, *_) = data["maps"]["7"][1]
    column = table.X[:, 7]
    assert [low, high] == pytest.approx(np.quantile(column, [0.01, 0.99]), rel=1e-3)
    steps = np.frombuffer(base64.b64decode(values), np.uint8)
    np.testing.assert_allclose(low + steps / 254 * (high - low), np.clip(column, low, high), atol=(high - low) / 250)
    place = data["slides"][1]
    x = np.frombuffer(base64.b64decode(place["x"]), "<u2") / 65535 * place["width"]
    np.testing.assert_allclose(x - x[0], table.obsm["spatial"][:, 0] - table.obsm["spatial"][0, 0], atol=0.05)
    assert place["size"] == pytest.approx(27.5, rel=0.01)
    assert place["filled"] == pytest.approx(36, rel=0.01)  # spots are 100 um apart
    counts = slides["donor1"].tables["spots_counts"].X.toarray()
    log = np.log1p(1e4 * counts[:, 7] / counts.sum(axis=1))
    assert low_measured == pytest.approx(np.quantile(log, 0.01), rel=1e-3)


def test_it_appears_whole_or_not_at_all_and_replaces_nothing(slides: dict[str, SpatialData], tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    assert st.report(path, slides, "predicted") == path
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444 & ~current_umask()
    before = path.read_bytes()
    with pytest.raises(InputError, match="exists; choose another name"):
        st.report(path, slides, "predicted")
    with pytest.raises(InputError, match="have the models|holds the models"):
        st.report(path, slides, "predicted", scores=tidy(slides).replace("made-up", "a"), overwrite=True)
    assert path.read_bytes() == before
    st.report(path, slides, "predicted", title="Another", overwrite=True)
    assert "<title>Another</title>" in path.read_text()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_what_cannot_be_reported_is_named(slides: dict[str, SpatialData], tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    scores = tidy(slides)
    for asked, said in (
        ({"measured_key": "nope"}, "Slide 'donor0' has no table 'nope'"),
        ({"scores": scores.drop(columns="metric")}, r"a frame without \['metric'\]"),
        ({"scores": scores.assign(slide="x")}, r"`scores` are of the slides \['x'\]"),
        ({"scores": scores, "model": "nope"}, "No model in `scores` named 'nope'"),
        ({"n_maps": 0}, "`n_maps` must be a positive whole number"),
        ({"max_mb": -1}, "`max_mb` must be a positive number"),
    ):
        with pytest.raises(InputError, match=said):
            st.report(path, slides, "predicted", **asked)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="Slide 'donor0' has no table 'nope'"):
        st.report(path, slides, "nope")
    with pytest.raises(InputError, match="was not written by stpred"):
        st.report(path, slides, "spots_counts")
    with pytest.raises(InputError, match="`slides` is empty"):
        st.report(path, {}, "predicted")
    with pytest.raises(InputError, match="must end in .html"):
        st.report(tmp_path / "report.pdf", slides, "predicted")
    assert not list(tmp_path.iterdir())


def warned(path: Path) -> str:
    found = re.search(r'<section id="warnings".*?</section>', path.read_text(), flags=re.S)
    assert found is not None
    return found.group(0)


def test_warnings_say_what_is_wrong(tmp_path: Path) -> None:
    slides = cohort(2)
    path = tmp_path / "r.html"
    scores = tidy(slides)

    def said(**asked: Any) -> str:
        return warned(st.report(path, slides, "predicted", overwrite=True, **asked))

    plain = said(scores=scores)
    assert "20% of donor0, 20% of donor1" in plain
    assert "donor_shared" not in plain
    assert "donor_shared" in said(scores=scores.assign(donor_shared=True))
    without = said(scores=scores[~((scores.model == "library_size") & (scores.target == "counts"))])
    assert "came without those of the library size" in without
    assert "On raw counts" not in path.read_text()
    scores.loc[scores.model == "library_size", "value"] = 0.95
    assert "the library size alone correlates with the measurement at least as well" in said(scores=scores)
    for sdata in slides.values():
        table = sdata.tables["predicted"]
        predicted(
            sdata, table.X, table.var.assign(trusted=False), output_scale="relative", upsampled=True, image="1",
            training={"n_donors": 1, "slides": {"p": {"image": "1"}}},
        )  # fmt: skip
    text = said(measured_key="spots_counts")
    for part in (
        "no gene as trusted",
        "are relative",
        "was upsampled",
        "one donor only",
        "was trained on donor0, donor1",
    ):
        assert part in text
    assert embedded(path)["columns"][0]["title"] == "Pearson on these slides"
    for sdata in slides.values():
        table = sdata.tables["predicted"]
        predicted(sdata, table.X, table.var.drop(columns="cv_pearson"))
    assert "No gene was validated" in said()


def test_folds_of_one_donor_do_not_call_a_slide_unlike_training(tmp_path: Path) -> None:
    """Nothing says how far donors differ where one was seen; genes of some folds alone are not untrusted."""
    slides = st.datasets.toy_cohort(2, size_um=(600, 600), n_genes=20)
    asked: dict[str, Any] = {"shapes_key": "spots", "genes": "all", "key_added": "cv"}
    scores = st.tl.cross_validate(slides, ["intensity"], groups={"donor0": "A", "donor1": "B"}, **asked)
    tables = [sdata.tables["spots_intensity_cv"] for sdata in slides.values()]
    shared = [g for g in tables[0].var_names if g in tables[1].var_names]
    first, second = shared[:1], shared[1:3]  # as of genes that one fold chose alone
    for sdata, dropped, alone in zip(slides.values(), (first, second), (second, first), strict=True):
        table = sdata.tables["spots_intensity_cv"]
        assert json.loads(table.uns["stpred"])["cross_validated"][0]["n_donors"] == 1
        table = table[:, [g for g in shared if g not in dropped]].copy()
        table.obs["in_distribution"] = False
        table.var["n_slides"] = np.where(table.var_names.isin(alone), 0, 1)
        table.var["trusted"] = ~table.var_names.isin(alone)
        sdata.tables["spots_intensity_cv"] = table
    n = len(shared)
    path = st.report(tmp_path / "r.html", slides, "spots_intensity_cv", scores=scores)
    text = path.read_text()
    assert "Each fold was trained on one donor, so how far donors differ is not known" in warned(path)
    assert "100% of donor0, 100% of donor1" in warned(path)
    assert "predictions there are guesses" not in text
    assert (
        f"<span class=value>{n - 3} of {n - 3}</span><span class=label>genes scored in every fold are trusted" in text
    )
    assert "3 more were chosen in some folds only" in text
    assert "Where “Trusted” is –, the gene was not scored in every fold." in text
    assert f"{n} genes predicted from the H&amp;E image for" in text
    assert "spots of 2 slides of 2 donors by <strong>intensity</strong>, cross-validated" in text
    data = embedded(path)
    assert [data["trusted"].count(v) for v in (None, 0, 1)] == [3, 0, n - 3]


def test_a_single_slide_has_its_own_name_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from stpred._report import _collect

    _own_name = _collect._own_name

    def called(path: str | None, frames: list[str]) -> str:
        return _own_name(SimpleNamespace(path=path, coordinate_systems=frames), "um")  # type: ignore[arg-type]

    assert called("/there/p1.zarr", ["um"]) == "p1"
    assert called(None, ["um", "global", "run7", "run7_downscaled_hires", "run7_downscaled_lowres"]) == "run7"
    assert called(None, ["um", "a", "b"]) == called(None, ["um", "global"]) == ""
    slide = cohort(1)["donor0"]
    text = st.report(tmp_path / "r.html", slide, "predicted").read_text()
    assert "<h1>made-up: predicted expression of toy</h1>" in text
    monkeypatch.setattr(_collect, "_own_name", lambda *_: "")
    text = st.report(tmp_path / "r.html", slide, "predicted", overwrite=True).read_text()
    assert "<h1>made-up: predicted expression</h1>" in text
    assert "20% of this slide" in text
    scores = tidy({"slide": slide})  # as cross-validation calls a single one
    st.report(tmp_path / "r.html", slide, "predicted", scores=scores, overwrite=True)


def test_scores_over_other_locations_name_them(tmp_path: Path) -> None:
    slides = cohort(1)
    old = slides["donor0"].tables["predicted"]
    path = tmp_path / "r.html"
    for region, said in (("spots", False), ("nuclei", True)):
        predicted(slides["donor0"], old.X, old.var, training_region=region)
        text = st.report(path, slides, "predicted", overwrite=True).read_text()
        assert ("Genes are scored over nuclei, and predicted for spots" in warned(path)) == said
        assert ("median Pearson over nuclei on left-out slides of training" in text) == said
        assert ("as the model states, over nuclei" in text) == said


def test_scores_on_raw_counts_stand_beside_the_library_size(page: Path) -> None:
    text = page.read_text()
    table = text[text.index("On raw counts") :]
    table = table[: table.index("</table>")]
    assert "library size alone" in table
    assert re.search(r"library size alone</th><td>0\.250", table)
    assert "ceiling: rmax" in table
    logs = text[text.index("On log1p of counts per 10 000") : text.index("On raw counts")]
    assert re.search(r"ceiling: reliability of the measurement</th><td>0\.700", logs)
    assert "ceiling: rmax" not in logs  # no bound on that scale


def test_intervals_are_counted(tmp_path: Path) -> None:
    slides = cohort(1)
    old = slides["donor0"].tables["predicted"]
    levels = [{"level": 0.5, "coverage": 0.5}, {"level": 0.9, "coverage": 0.88}]
    predicted(slides["donor0"], old.X, old.var, intervals={"levels": levels, "slides": ["p", "q"], "how": "so"})
    table = slides["donor0"].tables["predicted"]
    wide = np.where(np.arange(table.n_vars) % 4 > 0, 50.0, -50.0)[:, None]  # three in four genes are always inside
    table.varm["interval_offsets"] = np.hstack([-wide, wide, -wide, wide])
    text = st.report(tmp_path / "r.html", slides, "predicted", measured_key="spots_counts").read_text()
    assert "<span class=value>75%</span><span class=label>of measurements inside their 90% intervals" in text
    assert "calibrated on 2 slides (so): at 90% they held 88% of the measurements of slides left out" in text


def test_locations_beyond_what_a_screen_shows_are_averaged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from stpred._report import _maps

    slides = cohort(1)
    monkeypatch.setattr(_maps, "MAX_DRAWN", 9)
    data = embedded(st.report(tmp_path / "r.html", slides, "predicted"))
    place = data["slides"][0]
    assert place["square"]
    assert (
        "Of slides with more than 9 locations the maps show averages in squares." in (tmp_path / "r.html").read_text()
    )
    assert "drawn larger" not in (tmp_path / "r.html").read_text()
    assert "“Trusted” is –" not in (tmp_path / "r.html").read_text()
    table = slides["donor0"].tables["predicted"]
    import base64

    drawn = len(base64.b64decode(place["x"])) // 2
    assert 4 <= drawn <= 16
    layout = _maps.Layout((0, 0, 1, 1), np.zeros((2, 2)), np.array([0, 0, 1]), 1.0, square=True, image=None)
    assert layout.reduced(np.array([1.0, np.nan, np.nan])).tolist() == pytest.approx([1.0, np.nan], nan_ok=True)
    assert table.n_obs > drawn


def test_five_thousand_genes_fit(many: Path) -> None:
    assert many.stat().st_size <= 1_500_000
    data = embedded(many)
    assert len(data["genes"]) == 5000
    assert 100 < len(data["maps"]) < 5000
    assert {str(g) for g in [*data["best"], *data["worst"]]} <= set(data["maps"])


# What follows opens the page in a browser.


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on the path")
    with api.sync_playwright() as play:
        started = play.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield started
        started.close()


class Opened:
    """A page in the browser, and what it should not have done."""

    def __init__(
        self, browser: Any, path: Path, *, width: int = 1280, height: int = 900, scheme: str = "light"
    ) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.tab = self.context.new_page()
        self.tab.set_default_timeout(10_000)
        self.wrong: list[str] = []
        self.tab.on("console", lambda m: self.wrong.append(m.text) if m.type in ("error", "warning") else None)
        self.tab.on("pageerror", lambda e: self.wrong.append(str(e)))
        self.tab.on("request", lambda r: self.wrong.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
        self.tab.goto(path.as_uri())
        self.tab.wait_for_selector("html[data-ready=true]")

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def rows(self) -> list[str]:
        return self.tab.locator("#table tbody button").all_inner_texts()

    def colour(self) -> tuple[int, ...]:
        said = self.tab.evaluate("getComputedStyle(document.body).backgroundColor")
        return tuple(int(v) for v in re.findall(r"\d+", said))[:3]


def test_search_sort_and_a_gene(browser: Any, page: Path) -> None:
    with Opened(browser, page) as opened:
        tab = opened.tab
        data = embedded(page)
        assert opened.rows()[0] == data["genes"][0]
        tab.get_by_role("button", name="Gene", exact=True).click()
        names = [n for n in opened.rows() if n.isalnum()]
        assert names == sorted(names, key=lambda n: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", n)])
        assert tab.locator("#table th").first.get_attribute("aria-sort") == "ascending"
        tab.locator("#table thead button").nth(1).click()  # Pearson, downwards, then upwards
        tab.locator("#table thead button").nth(1).click()
        assert opened.rows()[0] == data["genes"][39]
        tab.locator("#search").fill("epc")
        assert opened.rows() == ["EPCAM"]
        assert "1 of 40 genes" in tab.locator("#count").inner_text()
        tab.locator("#search").press("ArrowDown")
        tab.keyboard.press("Enter")
        tab.wait_for_selector("#detail canvas[data-drawn]")
        gene = data["genes"].index("EPCAM")
        said = tab.locator("#detail").inner_text()
        assert f"{data['columns'][0]['values'][gene]:.3f}" in said
        assert tab.locator("#detail canvas").count() == 2
        colours = tab.evaluate(
            """() => {
                const canvas = document.querySelector("#detail canvas");
                const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
                return new Set(new Uint32Array(data.buffer)).size;
            }"""
        )
        assert colours > 500  # the tissue, and locations upon it
        drawn = tab.locator("#detail figure")
        assert drawn.locator(".scale").all_inner_texts() == ["200 µm", "200 µm"]
        assert drawn.locator(".unit").all_inner_texts() == ["log1p CP10k", "log1p CP10k"]
        assert drawn.locator(".scale").first.bounding_box()["y"] >= sum(
            drawn.locator("canvas").first.bounding_box()[k] for k in ("y", "height")
        )  # below the map, which it does not cover
        hidden = "[...document.querySelectorAll('.scroll')].filter((e) => e.scrollWidth > e.clientWidth).length"
        assert tab.evaluate(hidden) == 0  # every table is as wide as the page
        tab.locator("#every tbody button").nth(2).click()  # another slide: its maps
        assert "Maps on donor2" in tab.locator("#detail").inner_text()
        assert tab.locator("#slide").input_value() == "2"
        tab.keyboard.press("Escape")
        assert "Choose a gene" in tab.locator("#detail").inner_text()
        assert tab.evaluate("document.activeElement.textContent") == "EPCAM"
        tab.locator("#search").fill("")
        tab.locator("#trusted").check()
        assert "20 of 40 genes" in tab.locator("#count").inner_text()
        assert opened.wrong == []


def test_names_are_text_whatever_they_hold(browser: Any, page: Path) -> None:
    with Opened(browser, page) as opened:
        for name in (EVIL, EVILLER):
            opened.tab.locator("#search").fill(name)
            assert opened.rows() == [name]
            opened.tab.locator("#table tbody button").click()
            assert opened.tab.locator("#detail h3").inner_text() == name
        assert opened.tab.title() != "broken"
        assert opened.tab.locator("img").count() == 0
        assert opened.wrong == []


def test_dark_follows_the_system_and_the_button(browser: Any, page: Path) -> None:
    with Opened(browser, page) as light, Opened(browser, page, scheme="dark") as dark:
        assert min(light.colour()) > 200
        assert max(dark.colour()) < 60
        light.tab.locator("#theme").click()
        dark.tab.locator("#theme").click()
        assert max(light.colour()) < 60
        assert min(dark.colour()) > 200
        assert light.wrong + dark.wrong == []


def test_a_phone_scrolls_in_one_direction(browser: Any, page: Path) -> None:
    with Opened(browser, page, width=360, height=740) as opened:
        tab = opened.tab
        tab.locator("#table tbody button").nth(1).click()
        tab.wait_for_selector("#detail canvas[data-drawn]")
        assert tab.evaluate("document.documentElement.scrollWidth") <= 360
        too_wide = tab.evaluate(
            """() => [...document.querySelectorAll("body *")]
                .filter((e) => !e.closest(".scroll, pre, .skip") && e.getBoundingClientRect().right > 361)
                .map((e) => e.outerHTML.slice(0, 80))"""
        )
        assert too_wide == []
        top = tab.locator("#detail").bounding_box()["y"]
        assert -5 < top < 740  # what was asked for is in sight
        assert opened.wrong == []


def test_keys_reach_every_gene_of_five_thousand(browser: Any, many: Path) -> None:
    data = embedded(many)
    missing = next(g for g in range(5000) if str(g) not in data["maps"])
    with Opened(browser, many) as opened:
        tab = opened.tab
        assert 0 < len(opened.rows()) < 100  # only what is in sight
        began = time.perf_counter()
        tab.locator("#search").fill("GENE4999")
        assert opened.rows() == ["GENE4999"]
        assert time.perf_counter() - began < 2
        tab.locator("#search").fill("")
        tab.evaluate("document.getElementById('viewport').scrollTop = 1e9")
        tab.wait_for_selector('#table tbody tr[data-row="4999"]')
        tab.locator("#table tbody button").last.click()
        assert tab.locator("#detail h3").inner_text() == f"GENE{data['worst'][0]}"
        assert tab.locator("#detail canvas").count() == 1
        tab.keyboard.press("ArrowUp")
        assert tab.evaluate("document.activeElement.closest('tr').dataset.row") == "4998"
        tab.locator("#search").fill(f"GENE{missing}")
        tab.locator(f'#table tbody button[data-gene="{missing}"]').click()
        assert "no room" in tab.locator("#detail .nomap").inner_text()
        assert opened.wrong == []

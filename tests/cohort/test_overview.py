from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import zarr

from stpred import InputError
from stpred.cohort.manifest import Record, write_manifest
from stpred.cohort.overview import _page
from stpred.cohort.overview._thumbnails import thumbnail
from stpred.cohort.overview.cohort_overview import cohort_overview

CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
ARGUMENTS = (
    "--headless=new --no-sandbox --disable-gpu --disable-background-networking --disable-sync --no-first-run".split()
)
EVIL = "<script>document.title='broken'</script>"
EVILLER = "</script><img src=x onerror=\"document.title='broken'\">"
COLOURS = {"good": (200, 60, 160), "doubtful": (90, 60, 200)}


def image_store(store: Path, colour: tuple[int, int, int], *, sizes: tuple[int, ...] = (300,)) -> None:
    """Put an image of one colour into a store, with a level for each size."""
    group = zarr.open_group(store / "images" / "he", mode="w", zarr_format=3)
    for k, size in enumerate(sizes):
        data = np.broadcast_to(np.array(colour, np.uint8)[:, None, None], (3, size, size // 2))
        group.create_array(f"s{k}", data=np.ascontiguousarray(data))
    datasets = [{"path": f"s{k}"} for k in range(len(sizes))]
    group.attrs["ome"] = {"multiscales": [{"datasets": datasets}]}


def records() -> list[Record]:
    done: dict[str, Any] = {"status": "complete", "model": "default", "model_id": "m1", "table": "grid_default"}
    done |= {"versions": '{"stpred": "0.1.0"}'}
    return [
        Record("good", "/x/good.svs", "p1", "good.zarr", in_distribution=0.9, n_tiles=1200, mpp=0.25,
               seconds=75.0, **done),
        Record("doubtful", "/x/b.svs", "p2", "doubtful.zarr", in_distribution=0.3, n_tiles=90, mpp=0.5, seconds=400.0,
               warnings="2 of 90 tiles are blurred.", **done),
        Record("bare", "/x/c.svs", "p2", "bare.zarr", in_distribution=0.7, n_tiles=10_000, mpp=1.0, seconds=3.0,
               warnings="7 of 10000 tiles are blurred.", **done),
        Record("waits", "/x/d.svs", "", "waits.zarr"),
        Record(EVIL, f"/x/{EVIL}", EVILLER, "e.zarr", status="failed", error="The image '/x/e.svs' is cut off."),
        Record("slide 10", "/x/f.svs", "", "f.zarr", status="failed", error="The image '/x/f.svs' is cut off."),
        Record("slide 9", "/x/g.svs", "", "g.zarr", status="failed", error=f"{EVILLER} has no tissue.\nNone."),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    for name, colour in COLOURS.items():
        image_store(folder / f"{name}.zarr", colour)
    (folder / "good.png").write_bytes(b"")
    write_manifest(records(), folder)
    return folder


@pytest.fixture(scope="module")
def page(run: Path) -> Path:
    return cohort_overview(run, run / "pages" / "overview.html", title=f"Run & {EVIL}")


def embedded(path: Path) -> tuple[dict[str, Any], str]:
    """What the page's script draws from: data, and thumbnails in one text."""
    text = path.read_text()
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, flags=re.S)
    thumbs = re.search(r'<script type="text/plain" id="thumbs">(.*?)</script>', text, flags=re.S)
    assert data is not None
    assert thumbs is not None
    return json.loads(data[1]), thumbs[1]


def test_the_page_holds_the_manifest_and_thumbnails(page: Path) -> None:
    data, thumbs = embedded(page)
    columns = data["columns"]
    by_name = {n: i for i, n in enumerate(columns["slide"])}
    assert set(by_name) == {r.slide for r in records()}
    i = by_name["doubtful"]
    said = [columns[k][i] for k in ("share", "tiles", "mpp", "seconds", "donor", "status")]
    assert said == [0.3, 90, 0.5, 400.0, "p2", 2]
    assert [columns["picture"][by_name[n]] for n in ("good", "doubtful")] == ["./../good.png", ""]
    assert sum(data["thumbs"]) == len(thumbs)
    assert [n for n, i in by_name.items() if data["thumbs"][i]] == ["doubtful", "good"]
    assert len({data["errorGroup"][by_name[n]] for n in (EVIL, "slide 10")}) == 1
    assert data["warningGroup"][by_name["doubtful"]] == data["warningGroup"][by_name["bare"]] == 0
    text = page.read_text()
    assert EVIL not in text
    assert not re.search(r"(?:src|href)=\"?https?:|url\(", text)


def test_thumbnails_come_from_the_smallest_level_that_will_do(tmp_path: Path) -> None:
    import io

    from PIL import Image

    image_store(tmp_path / "a.zarr", (10, 120, 200), sizes=(1000, 250, 60))
    (tmp_path / "a.zarr" / "images" / "he" / "s0" / "zarr.json").touch()
    for chunk in (tmp_path / "a.zarr" / "images" / "he" / "s0").rglob("c/**/*"):
        if chunk.is_file():
            chunk.write_bytes(b"never read")
    found = thumbnail(tmp_path / "a.zarr", px=144)
    assert found is not None
    picture = Image.open(io.BytesIO(found))
    assert picture.size == (72, 144)
    np.testing.assert_allclose(np.asarray(picture).reshape(-1, 3), [[10, 120, 200]] * (72 * 144), atol=6)
    assert thumbnail(tmp_path / "a.zarr", px=500) is None  # damaged: no picture, no error
    assert thumbnail(tmp_path / "gone.zarr", px=144) is None


def test_thumbnails_stop_where_the_page_is_full(run: Path, page: Path, tmp_path: Path) -> None:
    data, thumbs = embedded(page)
    rest = page.stat().st_size - len(thumbs)
    room = (rest + max(data["thumbs"]) + 60) / 1e6
    small = cohort_overview(run, tmp_path / "o.html", title=f"Run & {EVIL}", max_mb=room)
    assert small.stat().st_size <= room * 1e6 + 100
    assert sum(n > 0 for n in embedded(small)[0]["thumbs"]) == 1
    assert "1 thumbnail found no room in the file (max_mb)" in small.read_text()


def test_texts_that_differ_in_names_and_numbers_are_one_kind() -> None:
    same = [
        ("The image '/a b/c.svs' of 3 levels is cut off.", "The image 'x' of 12 levels is cut off."),
        ("Out of memory: 1.5e9 bytes for /a/b.svs.", "Out of memory: 12 bytes for /c.svs."),
        ("Tables ['a', 'b'] differ.", "Tables ['c'] differ."),
    ]
    for one, other in same:
        assert _page._pattern(one) == _page._pattern(other) != ""
    assert _page._pattern("No tissue in 'a'.") != _page._pattern("No mpp in 'a'.")
    assert "log1p" in _page._pattern("log1p of 3")


def test_what_cannot_be_shown_is_named(run: Path, tmp_path: Path) -> None:
    for path, options, said in (
        (tmp_path / "o.pdf", {}, "must end in .html"),
        (tmp_path / "o.html", {"max_mb": 0}, "`max_mb` must be a positive number"),
        (tmp_path / "o.html", {"thumbnail_px": 0.5}, "`thumbnail_px` must be a positive whole number of pixels"),
    ):
        with pytest.raises(InputError, match=said):
            cohort_overview(run, path, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no cohort was predicted into it"):
        cohort_overview(tmp_path, tmp_path / "o.html")
    write_manifest([], tmp_path)
    with pytest.raises(InputError, match="has no slide"):
        cohort_overview(tmp_path, tmp_path / "o.html")
    (tmp_path / "o.html").write_text("kept")
    with pytest.raises(InputError, match="exists; choose another name"):
        cohort_overview(run, tmp_path / "o.html")
    assert (tmp_path / "o.html").read_text() == "kept"


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

    def __init__(self, browser: Any, path: Path, *, width: int = 1280, scheme: str = "light") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        self.tab = self.context.new_page()
        self.tab.set_default_timeout(30_000)
        self.wrong: list[str] = []
        self.tab.on("console", lambda m: self.wrong.append(m.text) if m.type in ("error", "warning") else None)
        self.tab.on("pageerror", lambda e: self.wrong.append(str(e)))
        self.tab.on("request", lambda r: self.wrong.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
        self.tab.goto(path.as_uri())
        self.tab.wait_for_selector("html[data-ready=true]", state="attached")

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def rows(self) -> list[str]:
        return self.tab.locator("#table tbody button").all_inner_texts()

    def sort(self, label: str) -> list[str]:
        self.tab.locator("#table thead button", has_text=label).click()
        return self.rows()


def test_sort_by_every_column_search_and_filter(browser: Any, page: Path) -> None:
    with Opened(browser, page) as opened:
        tab = opened.tab
        failed = [EVIL, "slide 9", "slide 10"]  # numbers in names count as numbers
        assert opened.rows() == [*failed, "waits", "doubtful", "bare", "good"]
        assert opened.sort("Slide") == [EVIL, "bare", "doubtful", "good", "slide 9", "slide 10", "waits"]
        assert opened.sort("Slide")[0] == "waits"
        assert opened.sort("Status")[:4] == [*failed, "waits"]
        assert opened.sort("In distribution")[:3] == ["doubtful", "bare", "good"]
        assert opened.sort("In distribution")[:3] == ["good", "bare", "doubtful"]  # what is not known stays last
        assert tab.locator("#table th[aria-sort=descending]").inner_text().startswith("In distribution")
        assert opened.sort("Tiles")[:3] == ["bare", "good", "doubtful"]
        assert opened.sort("µm/px")[:3] == ["bare", "doubtful", "good"]
        assert opened.sort("Time")[:3] == ["doubtful", "good", "bare"]
        assert opened.sort("Error")[-2:] == ["good", "waits"]
        tab.locator("#sort").select_option(label="donor")
        assert opened.rows()[-3:] == ["slide 9", "slide 10", "waits"]
        tab.locator("#search").fill("P2 blurred")
        assert sorted(opened.rows()) == ["bare", "doubtful"]
        assert tab.locator("#count").inner_text() == "2 of 7 slides"
        tab.locator("#search").fill("nothing like it")
        assert opened.rows() == []
        assert "No slide fits" in tab.locator("#table").inner_text()
        tab.locator("#clear").click()
        tab.locator("#show").select_option("low")
        assert opened.rows() == ["doubtful"]
        tab.locator("#clear").click()
        tab.locator(".group.error").first.click()
        assert sorted(opened.rows()) == sorted([EVIL, "slide 10"])
        assert "is cut off" in tab.locator("#filter").inner_text()
        with tab.expect_download() as saved:
            tab.locator("#save").click()
        listed = pd.read_csv(saved.value.path())
        failed = [r for r in records() if r.slide in (EVIL, "slide 10")]
        assert listed[["slide", "path"]].to_numpy().tolist() == [[r.slide, r.path] for r in failed]
        tab.locator(".group.error").first.click()
        assert len(opened.rows()) == 7
        assert opened.wrong == []


def test_names_are_text_and_rows_open_by_keyboard(browser: Any, page: Path) -> None:
    with Opened(browser, page) as opened:
        tab = opened.tab
        assert tab.locator("h1").inner_text() == f"Run & {EVIL}"
        tab.locator("#search").fill("cut <script")
        assert opened.rows() == [EVIL]
        tab.locator("#search").press("ArrowDown")
        tab.keyboard.press("Enter")
        assert tab.locator("#detail-name").inner_text() == opened.rows()[0]
        assert EVILLER in tab.locator("#detail").inner_text()
        tab.keyboard.press("Escape")
        assert tab.evaluate("document.activeElement.textContent") == opened.rows()[0]
        tab.locator("#search").fill("")
        tab.locator("#search").press("ArrowDown")
        tab.keyboard.press("End")
        assert tab.evaluate("document.activeElement.textContent") == "good"
        tab.keyboard.press("ArrowUp")
        tab.keyboard.press("Enter")
        tab.keyboard.press("ArrowRight")
        assert tab.locator("#detail-name").inner_text() == "good"
        assert tab.locator("#detail a").get_attribute("href") == "./../good.png"
        said = tab.locator("#detail").inner_text()
        for part in ("90%", "1,200", "0.25 µm per pixel", "/x/good.svs", "75 s"):
            assert part in said
        tab.locator("#close").click()
        assert tab.title() == f"Run & {EVIL}"
        assert tab.locator("img[src='x']").count() == 0
        assert opened.wrong == []


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1280, "dark")])
def test_it_fits_narrow_screens_and_dark_ones(browser: Any, page: Path, width: int, scheme: str) -> None:
    with Opened(browser, page, width=width, scheme=scheme) as opened:
        assert opened.tab.evaluate("document.documentElement.scrollWidth") <= width
        back, text = opened.tab.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        )
        light = [sum(int(v) for v in re.findall(r"\d+", c)[:3]) for c in (back, text)]
        assert (light[0] > light[1]) is (scheme == "light")
        opened.tab.locator("#theme").click()
        assert opened.tab.evaluate("getComputedStyle(document.body).backgroundColor") != back
        assert opened.tab.locator("#table tbody .pill:visible").first.inner_text() == "failed"


def test_two_thousand_slides_are_usable(browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = thumbnail_of(tmp_path) + np.random.default_rng(0).bytes(4000)  # after its end, which browsers leave out
    monkeypatch.setattr(_page, "thumbnail", lambda store, px: picture)
    write_manifest(
        [
            Record(f"s{k}", f"/x/{k}.svs", f"p{k % 90}", f"{k}.zarr", "complete", in_distribution=k / 2000, n_tiles=k)
            if k % 40
            else Record(f"s{k}", f"/x/{k}.svs", "", f"{k}.zarr", "failed", error=f"The image '{k}' is cut off.")
            for k in range(2000)
        ],
        tmp_path,
    )
    path = cohort_overview(tmp_path, tmp_path / "o.html")
    assert 10e6 < path.stat().st_size < 20e6
    start = time.perf_counter()
    with Opened(browser, path) as opened:
        assert time.perf_counter() - start < 25  # 3 s on an idle machine, see benchmarks; here what would be absurd
        tab = opened.tab
        assert tab.locator("#table tbody tr[data-row]").count() < 40
        assert opened.rows()[:2] == ["s0", "s40"]
        assert opened.sort("Tiles")[:2] == ["s1999", "s1998"]
        tab.evaluate("document.getElementById('viewport').scrollTop = 1e7")
        wait_until(tab, "[...document.querySelectorAll('#table tbody button')].at(-1).textContent === 's1960'")
        tab.locator("#search").fill("p7 s1")
        wait_until(tab, "document.querySelector('#table img').naturalWidth > 0")
        assert opened.wrong == []


def wait_until(tab: Any, condition: str) -> None:
    """Wait for a condition; playwright's own way evaluates text within the page, which its policy may forbid."""
    for _ in range(200):
        if tab.evaluate(condition):
            return
        tab.wait_for_timeout(50)
    pytest.fail(f"never came true: {condition}")


def thumbnail_of(folder: Path) -> bytes:
    image_store(folder / "one.zarr", COLOURS["good"])
    found = thumbnail(folder / "one.zarr", px=144)
    assert found is not None
    return found

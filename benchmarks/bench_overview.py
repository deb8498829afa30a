"""The overview page of a run over 2 000 slides: built, opened in headless Chromium, sorted and searched; under 3 s.

A run is faked: a manifest with slides that failed in several ways, and stores that hold a thumbnail only, of synthetic
tissue. "Open" is from the start of the navigation until the table of slides is drawn; a sort or a search until the
browser has painted it.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from stpred.cohort.manifest import Record, write_manifest

N_SLIDES = 2000
LIMIT_S = 3.0
IMAGE_PX = 400

ERRORS = (
    "The image '/data/{s}.svs' cannot be read: unexpected end of file; it is damaged or cut off, so copy it again.",
    "The image '/data/{s}.svs' does not say its resolution; pass `mpp`.",
    "No tissue was found on slide '{s}'.",
    "The image '/data/{s}.svs' has {n} pixels and no pyramid, more than fits into memory.",
)


def images(n: int = 8) -> list[np.ndarray]:
    """Return (3, h, w) uint8 images of synthetic tissue of several shapes."""
    import stpred as st

    found = []
    for seed in range(n):
        size = (400.0 + 60 * (seed % 3), 400.0 + 80 * (seed % 4))
        slide = st.datasets.toy(size_um=size, n_genes=5, seed=seed, mpp=1.0)
        image = slide["he"]
        found.append(np.asarray(image["scale0"]["image"] if hasattr(image, "keys") else image).astype(np.uint8))
    return found


def fake_run(folder: Path, *, n_slides: int = N_SLIDES, seed: int = 0) -> None:
    """Write the manifest and thumbnails of a run over many slides."""
    import zarr

    rng = np.random.default_rng(seed)
    pictures = images()
    records = []
    for k in range(n_slides):
        name = f"TCGA-{rng.integers(1000, 9999)}-{k:04d}"
        about: dict[str, Any] = {"donor": name[:9], "store": f"{name}.zarr", "model": "default", "model_id": "0123abcd"}
        kind = rng.random()
        if kind < 0.04:
            error = ERRORS[rng.integers(len(ERRORS))].format(s=name, n=int(rng.integers(1e8, 1e9)))
            records.append(Record(name, f"/data/{name}.svs", status="failed", error=error, seconds=2.0, **about))
            continue
        if kind < 0.06:
            records.append(Record(name, f"/data/{name}.svs", **about))
            continue
        share = float(rng.beta(8, 2) if rng.random() < 0.85 else rng.beta(2, 5))
        records.append(
            Record(
                name,
                f"/data/{name}.svs",
                status="complete",
                warnings=f"{rng.integers(2, 90)} tiles touch the border." if rng.random() < 0.1 else "",
                seconds=float(rng.gamma(4, 20)),
                worker=f"node{rng.integers(8)}:{rng.integers(4)}",
                finished=f"2026-11-{rng.integers(1, 30):02d}T12:{rng.integers(60):02d}:00+00:00",
                mpp=float(rng.choice([0.25, 0.2527, 0.5, 0.4942])),
                n_tiles=int(rng.integers(300, 30_000)),
                in_distribution=share,
                table="grid_default",
                n_genes=250,
                settings="5f1c",
                versions='{"stpred": "0.1.0"}',
                **about,
            )
        )
        group = zarr.open_group(folder / f"{name}.zarr" / "images" / "he", mode="w", zarr_format=3)
        image = np.roll(pictures[k % len(pictures)][:, :: rng.choice([-1, 1]), :: rng.choice([-1, 1])], k, axis=2)
        group.create_array("s0", data=np.ascontiguousarray(image), chunks=image.shape)
        group.attrs["ome"] = {"multiscales": [{"datasets": [{"path": "s0"}]}]}
    write_manifest(records, folder)


def opened(page: Path, *, width: int = 1280, height: int = 900) -> dict[str, float]:
    """Open the page in headless Chromium and use it; return seconds of each step."""
    found = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise NotImplementedError("playwright is not installed") from error
    if found is None:
        raise NotImplementedError("there is no Chromium on the path")
    arguments = ["--headless=new", "--no-sandbox", "--disable-gpu"]
    painted = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
    seconds = {}
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=found, args=arguments)
        tab = browser.new_context(viewport={"width": width, "height": height}).new_page()

        def timed(name: str, act: Any) -> None:
            start = time.perf_counter()
            act()
            tab.evaluate(painted)
            seconds[name] = time.perf_counter() - start

        def go() -> None:
            tab.goto(page.as_uri(), wait_until="commit")
            tab.wait_for_selector("html[data-ready=true]", state="attached")

        timed("open", go)
        head = tab.locator("#table thead button")
        for at, name in enumerate(("slide", "status", "share", "tiles", "mpp", "seconds", "error")):
            timed(f"sort by {name}", head.nth(at).click)
        timed("search", lambda: tab.locator("#search").fill("tcga 99 node3"))
        timed("show all again", lambda: tab.locator("#search").fill(""))
        timed("scroll to the end", lambda: tab.evaluate("document.getElementById('viewport').scrollTop = 1e7"))
        browser.close()
    return seconds


class Overview:
    """2 000 slides."""

    timeout = 600

    def setup(self) -> None:
        """Make the run, the page, and use it once."""
        import stpred as st

        self.folder = Path(tempfile.mkdtemp())
        fake_run(self.folder)
        start = time.process_time()
        self.page = st.tl.cohort_overview(self.folder, self.folder / "overview.html")
        self.build_s = time.process_time() - start
        self.seconds = opened(self.page)

    def teardown(self) -> None:
        """Remove what was made."""
        shutil.rmtree(self.folder)

    def track_build(self) -> float:
        """CPU time of the page, reading 2 000 thumbnails."""
        return self.build_s

    def track_size(self) -> float:
        """Size of the page."""
        return self.page.stat().st_size / 1e6

    def track_open(self) -> float:
        """Wall time until the table is drawn; at most `LIMIT_S`."""
        return self.seconds["open"]

    def track_sort(self) -> float:
        """Slowest of the sorts, one by each column."""
        return max(v for k, v in self.seconds.items() if k.startswith("sort"))

    def track_search(self) -> float:
        """Search for three words."""
        return self.seconds["search"]

    def track_scroll(self) -> float:
        """Jump to the last slides."""
        return self.seconds["scroll to the end"]


for method, unit in {"build": "s CPU", "size": "MB", "open": "s", "sort": "s", "search": "s", "scroll": "s"}.items():
    getattr(Overview, f"track_{method}").unit = unit

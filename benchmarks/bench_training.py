"""Peak memory of `st.tl.train` on cohorts of 10 and of 40 slides whose features are in the cache; it stays about flat.

4 000 locations a slide, 1 536 features, 500 genes: 0.25 GB of features as float32 for ten slides, 0.98 GB for forty.
The features are noise of an encoder of this file, put into the cache beforehand, so that no network runs. Each training
is a process of its own; what it held before (imports, slides) is not counted. Two slides validate, so that it is one
fit.

By itself: ``python -m benchmarks.bench_training [FAMILY ...] [--slides 10,40]`` prints a table.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

N_LOCATIONS, N_FEATURES, N_GENES = 4_000, 1_536, 500
N_SLIDES = (10, 40)
MPP, PITCH_UM, SIDE = 8.0, 100.0, 64
FAMILIES: dict[str, dict[str, Any]] = {
    "ridge": {},
    "mlp": {"hidden": (256,), "max_epochs": 1},
    "miso": {"width": 256, "inner": 128, "n_heads": 4, "n_neighbors": 18, "max_epochs": 1},
}


class Noise:
    """An encoder whose features are noise, at next to no cost."""

    def __init__(self) -> None:
        from stpred import TileSpec
        from stpred.encoders import EncoderCard

        self.card = EncoderCard("noise", TileSpec(MPP, 16), N_FEATURES)
        self._rng = np.random.default_rng(0)

    def encode(self, tiles: np.ndarray) -> np.ndarray:
        """Return (n, n_features) noise."""
        return self._rng.standard_normal((len(tiles), N_FEATURES), dtype=np.float32)

    def to(self, device: str | None) -> Noise:
        """Return the encoder itself."""
        return self


def slide(number: int) -> Any:
    """Return a slide of a plain image that is never in memory as a whole, with sparse random counts."""
    import anndata
    import dask.array as da
    import geopandas as gpd
    import pandas as pd
    from scipy import sparse
    from shapely import points
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Identity, Scale

    rng = np.random.default_rng(number)
    xy = (np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), axis=-1).reshape(-1, 2)[:N_LOCATIONS] + 1) * PITCH_UM
    edge = int((SIDE + 1) * PITCH_UM / MPP)
    image = Image2DModel.parse(
        da.full((3, edge, edge), number, dtype=np.uint8, chunks=(3, 256, 256)), dims=("c", "y", "x"),
        c_coords=["r", "g", "b"], transformations={"um": Scale([MPP, MPP], axes=("x", "y"))},
    )  # fmt: skip
    names = [f"s{i}" for i in range(N_LOCATIONS)]
    frame = gpd.GeoDataFrame({"geometry": points(xy), "radius": 27.5}, index=names)
    counts = sparse.random(N_LOCATIONS, N_GENES, density=0.1, format="csr", dtype=np.float32, random_state=rng)
    counts.data = np.ceil(counts.data * 5)
    table = anndata.AnnData(counts, pd.DataFrame(index=names), pd.DataFrame(index=[f"g{i}" for i in range(N_GENES)]))
    table.obs["region"], table.obs["instance"] = pd.Categorical(["spots"] * N_LOCATIONS), names
    return SpatialData(
        images={"he": image},
        shapes={"spots": ShapesModel.parse(frame, transformations={"um": Identity()})},
        tables={"counts": TableModel.parse(table, region="spots", region_key="region", instance_key="instance")},
    )


@dataclass(frozen=True)
class Usage:
    """What a training needed beyond imports and slides: GB of resident memory, of it not mapped from files, seconds."""

    peak_gb: float
    anonymous_gb: float
    cpu_s: float


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith(name + ":"))


def train(cache: Path, family: str, n_slides: int) -> Usage:
    """Train in this process."""
    import stpred as st
    from stpred.models import registry

    slides = {f"slide{i}": slide(i) for i in range(n_slides)}
    donors = {name: f"donor{i // 2}" for i, name in enumerate(slides)}
    config = registry.family(family).Config(**FAMILIES[family])
    st.tl.train({"small": st.datasets.toy()}, "mean", shapes_key="spots")  # imports what is imported late
    before, most, ended = (_status("VmRSS"), _status("RssAnon")), [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            most[0] = max(most[0], _status("RssAnon"))

    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.process_time()
    with st.settings.override(cache_dir=cache, progress=False):
        st.tl.train(
            slides, config, encoder=Noise(), groups=donors, genes="all", intervals=False, device="cpu",
            validation=["slide0", "slide1"],
        )  # fmt: skip
    spent = time.process_time() - start
    ended.set()
    watcher.join()
    return Usage(_status("VmHWM") - before[0], most[0] - before[1], spent)


def fill(cache: Path, n_slides: int) -> None:
    """Put the features of slides into the cache."""
    import stpred as st
    from stpred import data

    encoder = Noise()
    with st.settings.override(cache_dir=cache, progress=False):
        for i in range(n_slides):
            region = data.read_region(slide(i), slide=f"slide{i}", measured=True)
            data.embed(region, encoder, region.coords_um)


def measure(cache: Path, family: str, n_slides: int) -> Usage:
    """Train in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.bench_training", "--child", str(cache), family, str(n_slides)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return Usage(**json.loads(done.stdout.splitlines()[-1]))


class Train:
    """10 and 40 slides of 4 000 locations."""

    params = (tuple(FAMILIES), N_SLIDES)
    param_names = ("family", "n_slides")
    timeout = 3600

    def setup_cache(self) -> dict[str, Usage]:
        """Train each once; all numbers come from that run."""
        with tempfile.TemporaryDirectory(prefix="stpred-bench-") as name:
            fill(Path(name), max(N_SLIDES))
            return {f"{f}{n}": measure(Path(name), f, n) for f in FAMILIES for n in N_SLIDES}

    setup_cache.timeout = 3600  # type: ignore[attr-defined]

    def track_peak_gb(self, usage: dict[str, Usage], family: str, n_slides: int) -> float:
        return usage[f"{family}{n_slides}"].peak_gb

    def track_peak_anonymous_gb(self, usage: dict[str, Usage], family: str, n_slides: int) -> float:
        return usage[f"{family}{n_slides}"].anonymous_gb

    def track_cpu_seconds(self, usage: dict[str, Usage], family: str, n_slides: int) -> float:
        return usage[f"{family}{n_slides}"].cpu_s

    track_peak_gb.unit = track_peak_anonymous_gb.unit = "GB"  # type: ignore[attr-defined]
    track_cpu_seconds.unit = "s"  # type: ignore[attr-defined]


def main() -> None:
    """Print a table, or of a child what it used."""
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(asdict(train(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])))))
        return
    wanted = [a for a in sys.argv[1:] if a in FAMILIES] or list(FAMILIES)
    at = sys.argv.index("--slides") + 1 if "--slides" in sys.argv else 0
    numbers = [int(n) for n in sys.argv[at].split(",")] if at else list(N_SLIDES)
    kept = sys.argv[sys.argv.index("--cache") + 1] if "--cache" in sys.argv else None
    with tempfile.TemporaryDirectory(prefix="stpred-bench-") as name:
        cache = Path(kept or name)
        fill(cache, max(numbers))
        print("| family | slides | features as float32 | peak | not mapped from files | CPU time |")
        print("|---|---|---|---|---|---|")
        for family in wanted:
            for n in numbers:
                used = measure(cache, family, n)
                size = n * N_LOCATIONS * N_FEATURES * 4 / 1e9
                print(
                    f"| {family} | {n} | {size:.2f} GB | {used.peak_gb:.2f} GB | {used.anonymous_gb:.2f} GB "
                    f"| {used.cpu_s:.0f} s |",
                    flush=True,
                )


if __name__ == "__main__":
    main()

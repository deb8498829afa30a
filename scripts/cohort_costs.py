"""What predicting thousands of slides costs: hours of CPU and GPU, bytes read and stored. Put in your own numbers.

python scripts/cohort_costs.py                                   # the tables of docs/howto/internet_scale.md
python scripts/cohort_costs.py --slides 500 --tissue 0.4 --gigabytes 2 --cores 16 --gpus 1

Rates are those of `RATES`, each with where it comes from; ``--rate NAME=VALUE`` replaces one.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

RATES: dict[str, tuple[float, str]] = {
    "seconds_per_slide": (2.12, "python -m benchmarks costs"),
    "seconds_per_mm2": (2.61, "python -m benchmarks costs"),
    "map_seconds_per_mm2": (15.7, "python -m benchmarks costs"),
    "reading_seconds_per_tile": (0.0035, "python -m benchmarks pipeline: 3 to 4 ms beyond the encoder"),
    "fingerprint_bytes_per_second": (1.31e09, "python -m benchmarks costs"),
    "thumbnail_bytes_per_value": (0.636, "python -m benchmarks costs"),
    "bytes_per_slide": (2.04e05, "python -m benchmarks costs"),
    "bytes_per_tile": (40.2, "python -m benchmarks costs"),
    "bytes_per_gene": (38.9, "python -m benchmarks costs"),
    "bytes_per_value": (3.4, "python -m benchmarks costs"),
    "map_bytes_per_value": (4, "python -m benchmarks costs"),
}
"""Measured on one core, CPU time; bytes as stores take on disk."""

TIMM = "timm, results/benchmark-infer-amp-nchw-pt240-cu124-rtx4090.csv"

NETWORKS = {
    "ResNet-18": 13_537.15,
    "ViT-S/16": 7_693.38,
    "ViT-L/16 (such as UNI, Phikon-v2)": 912.7,
    "ViT-H/14 (such as Virchow2)": 346.11,
}
"""Published tiles of 224 px per second on an RTX 4090, mixed precision, input ready (`TIMM`)."""

CPU_NETWORKS = {"mobilenetv3_small_100": 0.0029, "ResNet-18": 0.019, "ViT-S/16": 0.100}
"""Seconds of one core per tile through stpred, as ``python -m benchmarks encoders`` measures."""

PITCH_UM, MAP_STRIDE_UM, PATCH_UM = 100.0, 56.0, 8.0
"""Distance of the grid's locations, of the tiles of a map, and of its pixels."""

THUMBNAIL_PX = 2_000
"""Longest edge of the image in a store."""

WHOLE_BYTES, SAMPLED_BYTES = 1 << 30, 1 << 28
"""Files up to the first size are read whole for their fingerprint, of larger ones the second."""

N_FEATURES, FEATURE_BYTES = 1_024, 2


@dataclass(frozen=True)
class Plan:
    """A cohort, the machines for it, and the rates."""

    slides: int
    width_px: int
    height_px: int
    mpp: float
    tissue: float
    gigabytes: float
    cores: int
    gpus: int
    gigabytes_per_second: float
    rates: dict[str, float]
    networks: dict[str, float]

    @property
    def tissue_mm2(self) -> float:
        """Of a slide."""
        return self.width_px * self.height_px * (self.mpp / 1000) ** 2 * self.tissue

    @property
    def tiles(self) -> float:
        """Of a slide, on a grid."""
        return self.tissue_mm2 * (1000 / PITCH_UM) ** 2

    @property
    def map_tiles(self) -> float:
        """Of a slide, for a map."""
        return self.tissue_mm2 * (1000 / MAP_STRIDE_UM) ** 2

    @property
    def map_pixels(self) -> float:
        """Of a slide."""
        return self.tissue_mm2 * (1000 / PATCH_UM) ** 2

    @property
    def cpu_seconds(self) -> float:
        """Of a slide, with the bundled model."""
        return self.rates["seconds_per_slide"] + self.rates["seconds_per_mm2"] * self.tissue_mm2

    @property
    def fingerprint_bytes(self) -> float:
        """That are read of a slide for its fingerprint."""
        size = self.gigabytes * 1e9
        return size if size <= WHOLE_BYTES else SAMPLED_BYTES

    def table_bytes(self, n_genes: int) -> float:
        """Of a slide's store."""
        r = self.rates
        small = min(1.0, THUMBNAIL_PX / max(self.width_px, self.height_px)) ** 2
        thumbnail = 3 * self.width_px * self.height_px * small * r["thumbnail_bytes_per_value"]
        table = r["bytes_per_slide"] + self.tiles * r["bytes_per_tile"]
        return thumbnail + table + n_genes * (r["bytes_per_gene"] + self.tiles * r["bytes_per_value"])

    def map_bytes(self, n_genes: int) -> float:
        """Of a slide's map."""
        return self.map_pixels * n_genes * self.rates["map_bytes_per_value"]


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> Iterator[str]:
    """Yield the lines of a table in Markdown, and an empty one."""
    head = list(head)
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(str(cell) for cell in row) + " |"
    yield ""


def number(value: float, unit: str = "") -> str:
    """Write a number with three significant digits, in words that a reader takes in."""
    if value >= 1000:
        digits = len(str(round(value)))
        text = f"{round(value, 3 - digits):,.0f}".replace(",", " ")
    else:
        text = f"{value:.3g}"
    return f"{text} {unit}".strip()


def size(n_bytes: float) -> str:
    """Write bytes in the unit that fits."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n_bytes < 999.5:
            return number(n_bytes, unit)
        n_bytes /= 1000
    return number(n_bytes, "PB")


def hours(seconds: float) -> str:
    """Write a time in hours, or in days where it is longer than two."""
    return number(seconds / 3600, "h") if seconds < 48 * 3600 else number(seconds / 86400, "days")


def slide_rows(plan: Plan) -> Iterator[tuple[object, ...]]:
    """Yield what a slide is, each with its formula."""
    yield "tissue", "width x height x mpp^2 x share", number(plan.tissue_mm2, "mm2")
    yield "tiles on a grid of 100 um", "tissue / pitch^2", number(plan.tiles)
    yield "tiles for a map", "tissue / stride^2, 56 um", number(plan.map_tiles)
    yield "pixels of a map", "tissue / patch^2, 8 um", number(plan.map_pixels)


def cpu_rows(plan: Plan) -> Iterator[tuple[object, ...]]:
    """Yield the work on CPUs."""
    r, n = plan.rates, plan.slides
    map_seconds = r["map_seconds_per_mm2"] * plan.tissue_mm2
    hashing = plan.fingerprint_bytes / r["fingerprint_bytes_per_second"]
    for what, formula, seconds in (
        ("table, bundled model", "seconds_per_slide + seconds_per_mm2 x tissue", plan.cpu_seconds),
        ("map, patches of `morphology`", "map_seconds_per_mm2 x tissue", map_seconds),
        *((f"table, {name}", "tiles x seconds per tile", plan.tiles * one) for name, one in CPU_NETWORKS.items()),
        ("fingerprint", "bytes read for it / fingerprint_bytes_per_second", hashing),
    ):
        clock = hours(n * seconds / plan.cores)
        yield what, formula, number(seconds, "s"), number(n * seconds / 3600), clock


def gpu_rows(plan: Plan) -> Iterator[tuple[object, ...]]:
    """Yield the work on GPUs, by network."""
    for name, rate in plan.networks.items():
        seconds = plan.tiles / rate
        cores = rate * plan.rates["reading_seconds_per_tile"]
        total = plan.slides * seconds / 3600
        maps = plan.slides * plan.map_tiles / rate / 3600
        yield name, number(rate), number(seconds, "s"), number(total), number(maps), f"{cores:.1f}"


def byte_rows(plan: Plan) -> Iterator[tuple[object, ...]]:
    """Yield what is read and stored."""
    read = plan.gigabytes * 1e9
    more = plan.fingerprint_bytes

    def row(what: str, one: float, *, moved: bool = False) -> tuple[object, ...]:
        total = plan.slides * one
        clock = hours(total / (plan.gigabytes_per_second * 1e9)) if moved else ""
        return what, size(one), size(total), clock

    yield row("slides, read once", read, moved=True)
    yield row("and for their fingerprints", more, moved=True)
    for genes in (1_000, 18_000):
        yield row(f"stores, {number(genes)} genes", plan.table_bytes(genes))
    for genes in (100, 1_000, 18_000):
        yield row(f"maps beside them, {number(genes)} genes", plan.map_bytes(genes))
    yield row(f"features, {N_FEATURES} 16-bit floats a tile", plan.tiles * N_FEATURES * FEATURE_BYTES)


def limits(plan: Plan) -> Iterator[tuple[object, ...]]:
    """Yield slides per hour that each part of the machines could do by itself."""
    reading = (plan.gigabytes * 1e9 + plan.fingerprint_bytes) / (plan.gigabytes_per_second * 1e9)
    yield "file system", f"{plan.gigabytes_per_second:g} GB per second", number(3600 / reading)
    yield "CPUs, bundled model", f"{plan.cores} cores", number(plan.cores * 3600 / plan.cpu_seconds)
    feeding = plan.tiles * plan.rates["reading_seconds_per_tile"]
    yield "CPUs, reading for GPUs", f"{plan.cores} cores", number(plan.cores * 3600 / feeding)
    for name, rate in plan.networks.items():
        yield name, f"{plan.gpus} GPUs", number(plan.gpus * 3600 * rate / plan.tiles)


def report(plan: Plan) -> str:
    """Return all tables."""
    area = f"{number(plan.width_px)} x {number(plan.height_px)} px at {plan.mpp:g} um"
    lines = [
        f"{number(plan.slides)} slides of {area} per pixel, {plan.tissue:.0%} tissue, {plan.gigabytes:g} GB each; "
        f"{plan.cores} cores, {plan.gpus} GPUs, a file system of {plan.gigabytes_per_second:g} GB per second.",
        "",
        *table(("a slide", "formula", "value"), slide_rows(plan)),
        *table(("on CPUs", "seconds per slide", "per slide", "CPU hours", f"{plan.cores} cores"), cpu_rows(plan)),
        *table(
            ("network on a GPU", "tiles per second", "per slide", "GPU hours", "GPU hours, maps", "cores to feed it"),
            gpu_rows(plan),
        ),
        *table(("bytes", "per slide", "all", "time"), byte_rows(plan)),
        *table(("what could be the limit", "of", "slides per hour"), limits(plan)),
    ]
    return "\n".join(lines).rstrip() + "\n"


def rates_table() -> str:
    """Return the rates with their sources."""
    rows = [(f"`{name}`", number(value), f"`{source}`") for name, (value, source) in RATES.items()]
    return "\n".join(table(("rate", "value", "measured by"), rows)).rstrip() + "\n"


def named(text: str, parser: argparse.ArgumentParser) -> tuple[str, float]:
    """Return name and number of ``NAME=VALUE``."""
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        parser.error(f"{text!r} is not NAME=VALUE with a number")


def main(arguments: list[str] | None = None) -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, default=30_000)
    parser.add_argument("--width-px", type=int, default=80_000)
    parser.add_argument("--height-px", type=int, default=60_000)
    parser.add_argument("--mpp", type=float, default=0.25)
    parser.add_argument("--tissue", type=float, default=0.2, help="share of the slide")
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of a slide's file")
    parser.add_argument("--cores", type=int, default=64)
    parser.add_argument("--gpus", type=int, default=4)
    parser.add_argument("--gigabytes-per-second", type=float, default=1.0, help="that the file system delivers")
    parser.add_argument("--rate", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument(
        "--network", action="append", default=[], metavar="NAME=TILES", help="tiles per second of a GPU"
    )
    parser.add_argument("--rates", action="store_true", help="print the rates and where they come from instead")
    given = vars(parser.parse_args(arguments))
    own = dict(named(text, parser) for text in given.pop("rate"))
    if unknown := own.keys() - RATES.keys():
        parser.error(f"there is no rate {', '.join(sorted(unknown))}; there are {', '.join(RATES)}")
    rates = {name: value for name, (value, _) in RATES.items()} | own
    networks = dict(named(text, parser) for text in given.pop("network")) or NETWORKS
    if given.pop("rates"):
        print(rates_table(), end="")
        return
    print(report(Plan(**given, rates=rates, networks=networks)), end="")


if __name__ == "__main__":
    main()

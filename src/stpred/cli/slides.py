"""Slides, donors and genes from the text of arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stpred._core.checks import InputError
from stpred.cli.session import console

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stpred import GeneRule
    from stpred.io.samples import Sample


def find_samples(slides: list[str], reading: dict[str, Any]) -> list[Sample]:
    """Return the slides of arguments before they are read, with the options of the readers."""
    from stpred.cohort.slides import find_slides
    from stpred.io.samples import READER_OPTIONS

    options = {k: v for k, v in reading.items() if v is not None and k != "format"}
    if "scene" in options:
        options["scene"] = READER_OPTIONS["scene"].parse(options["scene"])
    return find_slides(slides, format=reading["format"], options=options)


def read_slides(slides: list[str], reading: dict[str, Any]) -> tuple[dict[str, SpatialData], dict[str, str]]:
    """Read slides, and their donors as far as a csv names them."""
    from stpred.cohort.slides import read_slide

    samples = find_samples(slides, reading)
    read = {sample.slide: read_slide(sample) for sample in samples}
    return read, {sample.slide: sample.donor for sample in samples if sample.donor is not None}


def needs_cells(models: list[Any]) -> bool:
    """Whether one of these families or configs needs segmented cells."""
    from stpred.models import registry

    return any(registry.resolve(m).needs.cells for m in models)


def ensure_cells(sdata: SpatialData) -> str:
    """Return the slide's region of cells; without one its nuclei are segmented."""
    from stpred.cohort.regions import ensure_cells as ensure

    key, note = ensure(sdata)
    if note:
        console.print(note)
    return key


def parse_genes(text: str | None) -> GeneRule | list[str] | None:
    """Parse ``rule:n`` or symbols separated by commas."""
    from stpred import GeneRule

    if text is None:
        return None
    method, _, n = text.partition(":")
    if method not in GeneRule.METHODS or method == "list":
        return [g.strip() for g in text.split(",") if g.strip()]
    if n and not n.isdigit():
        raise InputError(f"`--genes` takes a whole number after the rule, got {text!r}.")
    return GeneRule(method, n=int(n) if n else None)


def parse_groups(text: str | None, listed: dict[str, str], *, required: bool) -> Any:
    """Return donors from the option or from the csv."""
    if text == "slide":
        return "slide" if required else None
    if text:
        pairs = [p.split("=", 1) for p in text.split(",")]
        if any(len(p) != 2 for p in pairs):
            raise InputError(f"`--groups` must be 'slide' or slide=donor pairs separated by commas, got {text!r}.")
        return dict(pairs)
    if listed:
        return listed
    if required:
        raise InputError(
            "Which slides share a donor? Give `--groups slide1=donorA,slide2=donorA,...`, a csv with a donor "
            "column, or "
            "`--groups slide` to take every slide for its own (sections of one donor are then scored as if they "
            "were independent)."
        )
    return None

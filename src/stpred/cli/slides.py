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
    from stpred.io.samples import READER_OPTIONS, list_samples

    options = {k: v for k, v in reading.items() if v is not None and k != "format"}
    if "scene" in options:
        options["scene"] = READER_OPTIONS["scene"].parse(options["scene"])
    return list_samples(slides, format=reading["format"], options=options)


def read_slides(slides: list[str], reading: dict[str, Any]) -> tuple[dict[str, SpatialData], dict[str, str]]:
    """Read slides, and their donors as far as a csv names them."""
    from stpred.io.samples import read_sample

    samples = find_samples(slides, reading)
    read = {sample.slide: read_sample(sample) for sample in samples}
    return read, {sample.slide: sample.donor for sample in samples if sample.donor is not None}


def needs_cells(models: list[Any]) -> bool:
    """Whether one of these families or configs needs segmented cells."""
    from stpred.models import registry

    return any(registry.resolve(m).needs.cells for m in models)


def ensure_cells(sdata: SpatialData) -> str:
    """Return the slide's region of cells; without one its nuclei are segmented."""
    import stpred as st
    from stpred import data
    from stpred._core import keys

    present = [k for k in (keys.NUCLEI, keys.CELLS) if k in sdata.shapes]
    found = present or [k for k in sdata.shapes if data.looks_like_cells(sdata, k)]
    if found:
        return found[0]
    st.pp.nuclei(sdata)
    console.print(f"Found {len(sdata.shapes[keys.NUCLEI])} nuclei.")
    return keys.NUCLEI


def default_region(sdata: SpatialData, trained_on: str | None) -> str | None:
    """Return the region to take where a slide has several, which is an error in Python."""
    from stpred._core import keys

    candidates = [k for k in sdata.shapes if k != keys.TISSUE]
    if len(candidates) < 2 or trained_on in candidates:
        return None
    found = next((k for k in (keys.SPOTS, keys.CELLS, keys.bins(8), keys.bins(16)) if k in candidates), None)
    if found is not None:
        console.print(f"Of the regions {', '.join(candidates)} took {found}; --shapes names another.")
    return found


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

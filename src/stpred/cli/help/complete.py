"""Values that the shell completes; nothing here imports PyTorch, which would take seconds at each press of a key."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from stpred.models import registry

Completer = Callable[[str], list[tuple[str, str]]]

GENE_RULES = {
    "rmax:": "genes with the least noise of counting, such as rmax:500",
    "mean:": "genes with the most counts, such as mean:250",
    "hvg:": "genes that vary most, such as hvg:1000",
    "svg:": "genes with spatial patterns, such as svg:200",
    "all": "every gene that all slides have",
}

DEVICES = {"cpu": "processor", "cuda": "NVIDIA or AMD GPU", "mps": "GPU of a Mac"}

FORMATS = {
    "visium": "Space Ranger folder",
    "visium_hd": "Space Ranger folder of Visium HD",
    "xenium": "Xenium bundle",
    "legacy_st": "counts file of Spatial Transcriptomics, with --image and --spots",
    "hest": "h5ad file of HEST, with --image",
    "wsi": "H&E image alone",
}


def families(incomplete: str) -> list[tuple[str, str]]:
    """Complete families that can be trained."""
    from stpred.cli.help.families import answers

    return [(name, what) for name, what in answers().items() if name.startswith(incomplete)]


def trained(incomplete: str) -> list[tuple[str, str]]:
    """Complete bundled models, and folders of models that are here."""
    found = [(name, "comes with stpred") for name in registry.bundled() if name.startswith(incomplete)]
    return found + [(name, "folder of a model") for name in _folders(incomplete, holding="config.json")]


def families_or_trained(incomplete: str) -> list[tuple[str, str]]:
    """Complete the last of several names with commas between them."""
    before, comma, last = incomplete.rpartition(",")
    return [(f"{before}{comma}{name}", what) for name, what in [*families(last), *trained(last)]]


def family_list(incomplete: str) -> list[tuple[str, str]]:
    """Complete the last of several families with commas between them."""
    before, comma, last = incomplete.rpartition(",")
    more = [("ridge_best", "ridge, with settings chosen on the training slides")]
    names = [*families(last), *((n, w) for n, w in more if n.startswith(last))]
    return [(f"{before}{comma}{name}", what) for name, what in names]


def encoders(incomplete: str) -> list[tuple[str, str]]:
    """Complete encoders that come with stpred or an installed package of weights, and folders of saved ones."""
    from stpred.encoders.registry import own_summaries

    found = [(name, what) for name, what in own_summaries().items() if name.startswith(incomplete)]
    found += [("timm/", "any vision model of timm")] if "timm/".startswith(incomplete) else []
    return found + [(name, "folder of an encoder") for name in _folders(incomplete, holding="config.json")]


def one_of(values: dict[str, str] | Iterable[str]) -> Completer:
    """Return what completes one of some values."""
    named = values if isinstance(values, dict) else dict.fromkeys(values, "")

    def complete(incomplete: str) -> list[tuple[str, str]]:
        return [(name, what) for name, what in named.items() if name.startswith(incomplete)]

    return complete


def _folders(incomplete: str, *, holding: str) -> list[str]:
    """Return folders whose path begins so and that hold a file; nothing where they cannot be listed."""
    path = Path(incomplete or ".")
    parent = path if incomplete.endswith("/") or not incomplete else path.parent
    try:
        found = sorted(p for p in parent.iterdir() if (p / holding).is_file())
    except OSError:
        return []
    return [str(p) for p in found if str(p).startswith(incomplete)]

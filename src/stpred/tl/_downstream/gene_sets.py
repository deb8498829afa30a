"""Gene sets and weighted networks: from mappings, frames and files, and by name from the net."""

from __future__ import annotations

import gzip
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from stpred._core.checks import InputError, MissingFileError, listing, one_of
from stpred._core.expression.gene_names import mismatch
from stpred._core.files import readable

if TYPE_CHECKING:
    import pandas as pd

    Source: TypeAlias = Mapping[str, Any] | pd.DataFrame | str | Path

logger = logging.getLogger("stpred")

NAMED = ("hallmark", "progeny")
"""What is loaded from the net through decoupler, and only when it is named; ``"progeny:mouse"`` names the organism."""

ORGANISMS = ("human", "mouse")

# Names of columns in the files of the field; decoupler's own first.
_SOURCE = ("source", "pathway", "geneset", "gene_set", "set", "term")
_TARGET = ("target", "gene", "genesymbol", "gene_symbol", "symbol")
_WEIGHT = ("weight", "mor")

_KINDS = (
    f"a mapping of names to genes, a frame with columns 'source' and 'target', the path of a .gmt, .csv or .tsv file, "
    f"or one of {listing(NAMED)} (loaded from the net)"
)


def read_gene_sets(source: Source) -> dict[str, list[str]]:
    """Return the genes of each set, without repeats; weights are left aside.

    Parameters
    ----------
    source
        Mapping of names to genes (or to mappings of genes to weights); frame, or .csv or .tsv file, in the long form of
        decoupler (``source``, ``target`` and perhaps ``weight``; ``pathway`` and ``gene`` do as well); .gmt file; or
        ``"hallmark"`` (MSigDB hallmarks, CC BY 4.0) or ``"progeny"`` (Schubert et al. 2018, Apache-2.0), human unless
        ``":mouse"`` follows, which decoupler loads from static.omnipathdb.org and omnipathdb.org.

    Raises
    ------
    InputError
        When there is no such file or name, a set is empty, or what is there cannot be read as sets.
    """
    return {name: list(genes) for name, genes in _read(source).items()}


def read_network(source: Source) -> pd.DataFrame:
    """Return columns `source`, `target` and `weight` (1 where none is given), a row for each pair.

    Pairs that are given more than once get the mean of their weights, which have to be finite.
    """
    import pandas as pd

    rows = [(name, gene, weight) for name, genes in _read(source).items() for gene, weight in genes.items()]
    return pd.DataFrame(rows, columns=["source", "target", "weight"])


def sets_among(
    sets: Mapping[str, Iterable[str]], genes: Sequence[str], *, what: str, min_size: int = 1
) -> dict[str, list[str]]:
    """Return the genes of each set that are among `genes`, of sets that keep at least `min_size` of them.

    `what` names `genes` in messages, such as "table 'spots_ridge'". No set left is an error.
    """
    there = set(genes)
    kept = {name: [g for g in members if g in there] for name, members in sets.items()}
    found = {name: members for name, members in kept.items() if len(members) >= min_size}
    if found:
        if len(found) < len(kept):
            logger.info(
                "%d of %d gene sets have under %d genes in %s.", len(kept) - len(found), len(kept), min_size, what
            )
        return found
    wanted = list(dict.fromkeys(g for members in sets.values() for g in members))
    shared = [g for g in wanted if g in there]
    if not shared:
        hint = mismatch(wanted, list(genes))
        raise InputError(
            f"None of the {len(wanted)} genes of {len(kept)} sets (such as {listing(wanted[:3])}) is among the "
            f"{len(there)} genes of {what} (such as {listing(list(genes)[:3])})"
            f"{'; ' + hint + ': take the sets of the right organism' if hint else ''}."
        )
    most = max(kept, key=lambda name: len(kept[name]))
    raise InputError(
        f"No gene set has at least {min_size} genes among the {len(there)} of {what}: {len(shared)} of the "
        f"{len(wanted)} genes of {len(kept)} sets are there, {len(kept[most])} at most in one ({most!r}); predict more "
        "genes or allow smaller sets."
    )


def _read(source: Any) -> dict[str, dict[str, float]]:
    """Return the weight of each gene of each set."""
    import pandas as pd

    if isinstance(source, Mapping):
        found, what = _from_mapping(source), "the mapping"
    elif isinstance(source, pd.DataFrame):
        found, what = _from_frame(source, what="the frame"), "the frame"
    elif isinstance(source, (str, Path)):
        found, what = _from_path(source), repr(str(source))
    else:
        raise InputError(f"Gene sets must be {_KINDS}; got {type(source).__name__}.")
    if not found:
        raise InputError(f"There is no gene set in {what}; give at least one with its genes.")
    if nameless := sum(name.strip() in ("", "nan") for name in found):  # what pandas makes of no name
        raise InputError(f"{nameless} gene sets in {what} have no name; give each one.")
    if broken := [name for name, genes in found.items() if any("\0" in text for text in (name, *genes))]:
        raise InputError(f"Names in {what} hold NUL characters, in {listing(broken)}; the file is damaged or no text.")
    if empty := [name for name, genes in found.items() if not genes]:
        raise InputError(f"{len(empty)} gene sets in {what} are empty: {listing(empty)}; leave them out.")
    if odd := [name for name, genes in found.items() if not np.isfinite(list(genes.values())).all()]:
        raise InputError(f"Weights of {listing(odd)} in {what} are not all finite numbers.")
    return found


def _from_mapping(source: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    found = {}
    for name, genes in source.items():
        if isinstance(genes, (str, bytes)) or not isinstance(genes, Iterable):
            raise InputError(f"The genes of set {name!r} must be a list, got {genes!r}.")
        weights = genes.items() if isinstance(genes, Mapping) else ((g, 1.0) for g in genes)
        try:
            found[str(name)] = _averaged((g, float(w)) for g, w in weights)
        except (TypeError, ValueError) as error:
            raise InputError(f"The weights of set {name!r} must be numbers: {error}.") from error
    return found


def _from_frame(frame: pd.DataFrame, *, what: str) -> dict[str, dict[str, float]]:
    """Return the sets of a long frame."""
    lower = {str(c).lower(): c for c in frame.columns}
    source, target, weight = (
        next((lower[c] for c in names if c in lower), None) for names in (_SOURCE, _TARGET, _WEIGHT)
    )
    if source is None or target is None:
        raise InputError(
            f"Gene sets in long form need a column of sets ({listing(_SOURCE)}) and one of genes ({listing(_TARGET)}); "
            f"{what} has {listing(frame.columns)}."
        )
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()]
        raise InputError(f"{what} has the columns {listing(twice)} more than once.")
    # Rows without a name or a gene say nothing; a row without a weight is found later as one that is not finite.
    frame = frame.dropna(subset=[source, target])
    try:
        weights = np.ones(len(frame)) if weight is None else frame[weight].to_numpy(dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"The column {weight!r} of {what} holds no numbers: {error}.") from error
    pairs: dict[str, list[tuple[Any, float]]] = {}
    for name, gene, value in zip(frame[source], frame[target], weights, strict=True):
        pairs.setdefault(str(name), []).append((gene, float(value)))
    return {name: _averaged(members) for name, members in pairs.items()}


def _from_path(source: str | Path) -> dict[str, dict[str, float]]:
    name, _, organism = str(source).partition(":")
    if isinstance(source, str) and name in NAMED:
        return _from_net(name, organism or "human")
    path = Path(source)
    with readable(str(source)[:200], what="file of gene sets"):
        there = path.is_file()
    if not there:
        raise MissingFileError(f"There is no file of gene sets {str(source)!r}; gene sets are {_KINDS}.")
    kind = Path(path.name.removesuffix(".gz")).suffix.lower()
    if kind == ".gmt":
        return _from_gmt(path)
    one_of(kind, (".gmt", ".csv", ".tsv", ".txt"), name="suffix of a file of gene sets")
    import pandas as pd

    with readable(path.name, what="table of gene sets"):
        frame = pd.read_csv(path, sep="," if kind == ".csv" else "\t")
        if not isinstance(frame.index, pd.RangeIndex):
            raise ValueError("its rows have more fields than its first line has names")
    return _from_frame(frame, what=repr(path.name))


def _from_gmt(path: Path) -> dict[str, dict[str, float]]:
    """Read lines of name, description and genes, separated by tabs."""
    with readable(path.name, what="GMT file"):
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
        lines = [line.split("\t") for line in text.splitlines() if line.strip()]
    found: dict[str, dict[str, float]] = {}
    for number, line in enumerate(lines, 1):
        if len(line) < 2:
            raise InputError(
                f"{path.name!r} is no GMT file: line {number} is not name, description and genes with tabs between."
            )
        if line[0] in found:
            raise InputError(f"The gene set {line[0]!r} is in {path.name!r} more than once; give each its own name.")
        found[line[0]] = _averaged((gene, 1.0) for gene in line[2:])
    return found


def _from_net(name: str, organism: str) -> dict[str, dict[str, float]]:
    """Load what decoupler knows by that name; this is the one place that asks the net."""
    one_of(organism, ORGANISMS, name=f"organism of {name!r}")
    op = need_decoupler().op
    try:
        frame = getattr(op, name)(organism=organism)
    except Exception as error:  # whatever keeps the service from answering, the way out is the same
        raise InputError(
            f"{name!r} cannot be loaded from omnipathdb.org ({type(error).__name__}: {error}); pass a local file "
            "instead, such as a GMT of MSigDB or a csv with columns source, target and weight."
        ) from error
    return _from_frame(frame, what=repr(name))


def need_decoupler() -> Any:
    """Import decoupler, or say how to install it."""
    try:
        import decoupler
    except ImportError as error:
        raise InputError('This needs decoupler: pip install "stpred[analysis]".') from error
    return decoupler


def _averaged(pairs: Iterable[tuple[Any, float]]) -> dict[str, float]:
    """Return the mean weight of each gene, in the order of their first mention; names without text are dropped."""
    found: dict[str, list[float]] = {}
    for gene, weight in pairs:
        if gene is not None and gene == gene and (named := str(gene).strip()):
            found.setdefault(named, []).append(weight)
    return {gene: float(np.mean(weights)) for gene, weights in found.items()}

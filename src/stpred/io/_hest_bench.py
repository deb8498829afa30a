"""Tasks of HEST-Benchmark: samples, their folds and genes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stpred._core.checks import InputError, MissingFileError, distinct, listing
from stpred._core.files import parse_json, readable
from stpred._core.recipes.splits import Splits
from stpred.io import _hest_folder as hest_folder
from stpred.io.samples import list_samples, read_sample

if TYPE_CHECKING:
    from spatialdata import SpatialData

_SPLIT = re.compile(r"(train|test)_(\d+)\.csv")


class HestTask(NamedTuple):
    """A task of HEST-Benchmark.

    Attributes
    ----------
    slides
        Sample to slide.
    splits
        The published folds: pass them to :func:`stpred.tl.cross_validate`.
    genes
        The published genes.
    donors
        Sample to donor, as far as the metadata name them.
    """

    slides: dict[str, SpatialData]
    splits: Splits
    genes: list[str]
    donors: dict[str, str]


def hest_bench(task: str | Path, hest: str | Path, *, genes_file: str | None = None) -> HestTask:
    """Read a task of HEST-Benchmark as a cohort with its published folds and genes.

    The task's own patches are of one size and resolution; models here read tiles as they need them, so the whole images
    are taken from a local folder of HEST-1k. Nothing is downloaded.

    Parameters
    ----------
    task
        Folder of the task: ``splits/train_0.csv``, ``splits/test_0.csv`` and so on (a column ``sample_id``), a json
        file of genes, and ``adata`` (h5ad files; where it is missing ``st`` of `hest` is taken).
    hest
        Folder of HEST-1k with ``wsis`` (images), and ``metadata`` where donors and pixel sizes are to be known.
    genes_file
        Name of the json file in `task`; None: the only ``var_*genes.json``.

    Returns
    -------
    HestTask
        Slides, splits (fold ``"0"`` holds out the samples of ``test_0.csv``; samples of neither file are left out of
        it), genes and donors. The folds hold out slides: where they share donors, ``cross_validate(groups=donors)``
        refuses them and ``groups="slide"`` takes them as they are published, and says so in every row.

    Raises
    ------
    InputError
        If files are missing, a sample is trained and tested on in one fold, or a sample lacks counts or image.

    References
    ----------
    Jaume et al., HEST-1k: A dataset for spatial transcriptomics and histology image analysis. NeurIPS (2024).

    Examples
    --------
    >>> import json
    >>> from pathlib import Path
    >>> import pandas as pd
    >>> import stpred as st
    >>> hest, task = Path("hest_data"), Path("hest-bench/IDC")
    >>> for folder in (hest / "wsis", hest / "st", hest / "metadata", task / "adata", task / "splits"):
    ...     folder.mkdir(parents=True)
    >>> for seed, name in enumerate(("A", "B")):
    ...     toy = st.datasets.toy_hest(f"toy{name}", size_um=(300, 300), n_genes=20, seed=seed)
    ...     _ = (toy / "toy.h5ad").rename(task / "adata" / f"{name}.h5ad")
    ...     _ = (toy / "toy.tif").rename(hest / "wsis" / f"{name}.tif")
    ...     _ = (hest / "metadata" / f"{name}.json").write_text(json.dumps({"patient": name}))
    >>> for side, name in (("train", "A"), ("test", "B")):
    ...     paths = {"patches_path": [f"patches/{name}.h5"], "expr_path": [f"adata/{name}.h5ad"]}
    ...     pd.DataFrame({"sample_id": [name], **paths}).to_csv(task / "splits" / f"{side}_0.csv", index=False)
    >>> _ = (task / "var_50genes.json").write_text(json.dumps({"genes": ["EPCAM", "COL1A1"]}))
    >>> found = st.io.hest_bench(task, hest)
    >>> list(found.slides), found.genes
    (['A', 'B'], ['EPCAM', 'COL1A1'])

    Scored as published: ``st.tl.cross_validate(found.slides, ["ridge"], groups="slide", genes=found.genes,
    splits=found.splits, scored_on="log1p_cp10k")``.
    """
    task, hest = Path(task), Path(hest)
    for folder, needed in ((task, "splits"), (hest, hest_folder.IMAGES)):
        if not (folder / needed).is_dir():
            raise MissingFileError(f"{str(folder)!r} has no folder {needed!r}.")
    folds = _folds(task / "splits")
    genes = _genes(task, genes_file)
    samples = list(dict.fromkeys(s for sides in folds.values() for side in ("train", "test") for s in sides[side]))
    own = task / "adata"
    rows = hest_folder.rows(hest, samples=samples, counts=own if own.is_dir() else None)
    named = {row["slide"]: row["donor"] for row in rows if "donor" in row}
    away = {n: [s for s in samples if s not in sides["train"] + sides["test"]] for n, sides in folds.items()}
    splits = Splits(
        folds={n: sides["test"] for n, sides in folds.items()}, discarded={n: v for n, v in away.items() if v} or None
    )
    slides = {sample.slide: read_sample(sample) for sample in list_samples(rows)}
    return HestTask(slides, splits, genes, named)


def _folds(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Return the samples that each fold trains and tests on."""
    found: dict[str, dict[str, list[str]]] = {}
    for path in sorted(folder.iterdir()):
        if match := _SPLIT.fullmatch(path.name):
            found.setdefault(match[2], {})[match[1]] = _samples(path)
    if not found:
        raise MissingFileError(f"{str(folder)!r} has no train_0.csv and test_0.csv.")
    for name, sides in found.items():
        for side in ("train", "test"):
            if side not in sides:
                raise MissingFileError(f"{str(folder)!r} has no {side}_{name}.csv.")
        if both := sorted(set(sides["train"]) & set(sides["test"])):
            raise InputError(f"Fold {name!r} of {str(folder)!r} trains and tests on {listing(both)}.")
    return dict(sorted(found.items(), key=lambda item: int(item[0])))


def _samples(path: Path) -> list[str]:
    import pandas as pd

    with readable(path, what="split"):
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    if "sample_id" not in frame or not len(frame):
        raise InputError(f"The split {str(path)!r} needs a column 'sample_id' with rows; it has {listing(frame)}.")
    return [str(s) for s in distinct(frame["sample_id"].tolist(), name="sample_id")]


def _genes(task: Path, name: str | None) -> list[str]:
    """Return the genes of a json file: a list, or an object with one."""
    found = sorted(task.glob("var_*genes.json")) if name is None else [task / name]
    if len(found) != 1:
        raise InputError(
            f"{str(task)!r} has {len(found) or 'no'} files var_*genes.json: {listing(p.name for p in found)}; name one "
            "with `genes_file`."
        )
    with readable(found[0], what="file of genes"):
        text = found[0].read_bytes()
    values: Any = parse_json(text, path=found[0].name, what="file of genes")
    if isinstance(values, dict):
        values = values.get("genes")
    if not isinstance(values, list) or not values or not all(isinstance(g, str) for g in values):
        raise InputError(f"The file of genes {str(found[0])!r} holds no list of symbols, nor an object with 'genes'.")
    return distinct(values, name="genes")

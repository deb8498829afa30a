"""Writing files whole, and the pieces that several vendors' formats share: 10x matrices, thumbnails, tiled TIFFs."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stpred._core.checks import InputError, check_parent
from stpred._core.disk.staging import staged_folder

TILED: dict[str, Any] = {"tile": (256, 256), "compression": "zlib", "predictor": True}
GENOME = "TOY"


@contextmanager
def staged(path: str | Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a new folder beside `path` that takes its place when the block ends well, and is gone when it does not.

    An existing non-empty `path` is refused unless `overwrite`.
    """
    path = Path(path)
    refuse_existing(path, overwrite=overwrite)
    with staged_folder(path, what="data set") as folder:
        yield folder


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Raise if there is something at `path` that must not be lost."""
    taken = check_parent(path).exists() and (path.is_file() or any(path.iterdir()))
    if taken and not overwrite:
        raise InputError(f"'{path}' exists and is not empty; choose another path or pass overwrite=True.")


def write_10x_h5(
    path: Path,
    counts: Any,
    *,
    barcodes: Sequence[str],
    genes: pd.DataFrame,
    library_id: str,
    chemistry: str,
    software: str,
    feature_types: Sequence[str] | None = None,
) -> None:
    """Write a (n, genes) count matrix as the vendor's feature-barcode HDF5."""
    import h5py
    from scipy.sparse import csr_matrix

    matrix = csr_matrix(counts, dtype=np.int32)
    matrix.sort_indices()
    features = {
        "id": genes["gene_id"],
        "name": genes.index,
        "feature_type": ["Gene Expression"] * len(genes) if feature_types is None else feature_types,
        "genome": [GENOME] * len(genes),
    }
    with h5py.File(path, "w") as file:
        file.attrs["chemistry_description"] = chemistry
        file.attrs["filetype"] = "matrix"
        file.attrs["library_ids"] = np.array([library_id], dtype="S")
        file.attrs["original_gem_groups"] = np.array([1])
        file.attrs["software_version"] = software
        file.attrs["version"] = 2
        group = file.create_group("matrix")
        group["barcodes"] = np.asarray(barcodes, dtype="S")
        group["shape"] = np.array(matrix.shape[::-1], dtype=np.int32)
        for name in ("data", "indices", "indptr"):
            values = getattr(matrix, name).astype(np.int32 if name == "data" else np.int64)
            group.create_dataset(name, data=values, compression="gzip", compression_opts=1)
        table = group.create_group("features")
        table["_all_tag_keys"] = np.array(["genome"], dtype="S")
        for name, values in features.items():
            table[name] = np.asarray(values, dtype="S")


def write_10x_mtx(folder: Path, counts: Any, *, barcodes: Sequence[str], genes: pd.DataFrame) -> None:
    """Write a (n, genes) count matrix as the vendor's folder of three gzipped text files."""
    from scipy.io import mmwrite
    from scipy.sparse import csc_matrix

    folder.mkdir()
    with gzip.open(folder / "matrix.mtx.gz", "wb", compresslevel=1) as file:
        mmwrite(file, csc_matrix(counts, dtype=np.int32).T, field="integer")
    with gzip.open(folder / "barcodes.tsv.gz", "wt", compresslevel=1) as file:
        file.writelines(f"{b}\n" for b in barcodes)
    with gzip.open(folder / "features.tsv.gz", "wt", compresslevel=1) as file:
        file.writelines(f"{i}\t{n}\tGene Expression\n" for i, n in zip(genes["gene_id"], genes.index, strict=True))


def write_json(path: Path, content: Any) -> None:
    """Write JSON as the vendors do: indented, one file."""
    path.write_text(json.dumps(content, indent=4) + "\n")


def write_thumbnails(folder: Path, image: NDArray[np.uint8]) -> dict[str, float]:
    """Write ``tissue_hires_image.png`` and ``tissue_lowres_image.png``; return their scale factors.

    The finer one has at most 2000 pixels and never more than a quarter of the full resolution, the coarser one 600.
    """
    from PIL import Image

    height, width = image.shape[:2]
    largest = max(height, width)
    factors = {}
    for name, limit in (("hires", 2000), ("lowres", 600)):
        factor = min(limit / largest, 0.25 if name == "hires" else 0.1)
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        Image.fromarray(image).resize(size, Image.Resampling.BOX).save(folder / f"tissue_{name}_image.png")
        factors[f"tissue_{name}_scalef"] = size[0] / width
    return factors


def write_tiled_tif(path: Path, image: NDArray[np.uint8]) -> None:
    """Write an RGB image as one tiled, losslessly compressed TIFF that says nothing of its resolution."""
    import tifffile

    tifffile.imwrite(path, image, photometric="rgb", metadata=None, **TILED)


def write_ome_tif(path: Path, image: NDArray[Any], *, mpp: float, channel: str | None = None) -> None:
    """Write an RGB (rows, columns, 3) or one-channel (rows, columns) image as a pyramidal OME-TIFF."""
    import tifffile

    rgb = image.ndim == 3
    levels = pyramid(image)
    metadata: dict[str, Any] = {"axes": "YXS" if rgb else "YX"}
    for axis in "XY":
        metadata |= {f"PhysicalSize{axis}": mpp, f"PhysicalSize{axis}Unit": "µm"}
    if channel is not None:
        metadata["Channel"] = {"Name": [channel]}
    with tifffile.TiffWriter(path, ome=True) as file:
        form = {"photometric": "rgb" if rgb else "minisblack", **TILED}
        file.write(levels[0], subifds=len(levels) - 1, metadata=metadata, **form)
        for level in levels[1:]:
            file.write(level, subfiletype=1, metadata=None, **form)


def pyramid(image: NDArray[Any], *, smallest_px: int = 256) -> list[NDArray[Any]]:
    """Return the image and its halvings (means of 2 x 2 pixels) down to `smallest_px`."""
    levels = [image]
    while max(levels[-1].shape[:2]) >= 2 * smallest_px:
        last = levels[-1]
        even = last[: last.shape[0] // 2 * 2, : last.shape[1] // 2 * 2].astype(np.float32)
        halved = (even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]) / 4
        levels.append(np.rint(halved).astype(image.dtype))
    return levels

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image
from scipy import sparse

GENES = ["EPCAM", "VIM", "CD3E", "TBCE", "TBCE", "ZERO"]
GENE_IDS = [f"ENSG{i:011d}" for i in range(len(GENES))]


def picture(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """A smooth, coloured, asymmetric picture: no flip or rotation maps it onto itself."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(60, 256, (height // 16 + 2, width // 16 + 2, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def write_10x(path: Path, counts: np.ndarray, barcodes: list[str], *, genes: list[str] | None = None) -> None:
    """Write the 10x h5 of a (spots, genes) matrix."""
    genes = GENES if genes is None else genes
    matrix = sparse.csc_matrix(np.asarray(counts).T)  # genes by barcodes, as the format has it
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = np.array(barcodes, dtype="S")
        group["data"] = matrix.data.astype(np.int32)
        group["indices"] = matrix.indices.astype(np.int64)
        group["indptr"] = matrix.indptr.astype(np.int64)
        group["shape"] = np.array(matrix.shape, dtype=np.int32)
        features = group.create_group("features")
        features["name"] = np.array(genes, dtype="S")
        features["id"] = np.array(GENE_IDS[: len(genes)], dtype="S")
        features["feature_type"] = np.array(["Gene Expression"] * len(genes), dtype="S")
        features["genome"] = np.array(["toy"] * len(genes), dtype="S")
        file.attrs["library_ids"] = np.array([b"toy"])


def counts_of(n: int, *, seed: int = 0) -> np.ndarray:
    counts = np.random.default_rng(seed).poisson(3.0, (n, len(GENES)))
    counts[:, -1] = 0
    return counts


@pytest.fixture
def make_visium(tmp_path: Path) -> Callable[..., SimpleNamespace]:
    """Writes an outs folder: hexagonal spots of 20 px pitch (5 um per px) on a 400 x 480 px slide."""

    def make(
        *,
        name: str = "s1/outs",
        positions: str = "tissue_positions.csv",
        matrix: str = "h5",
        prefix: str = "",
        fullres: str | None = "../slide.tif",
        hires: bool = True,
        lowres: bool = True,
    ) -> SimpleNamespace:
        outs = tmp_path / name
        (outs / "spatial").mkdir(parents=True)
        array = np.array([(r, c) for r in range(16) for c in range(34) if (r + c) % 2 == 0])
        xy = np.column_stack([40 + array[:, 1] * 10.0, 40 + array[:, 0] * 10.0 * np.sqrt(3)])
        barcodes = [f"BC{i:04d}-1" for i in np.random.default_rng(1).permutation(len(array))]
        in_tissue = (np.arange(len(array)) % 5 != 0).astype(int)
        frame = pd.DataFrame(
            {
                "barcode": barcodes,
                "in_tissue": in_tissue,
                "array_row": array[:, 0],
                "array_col": array[:, 1],
                "pxl_row_in_fullres": xy[:, 1],
                "pxl_col_in_fullres": xy[:, 0],
            }
        )
        path = outs / "spatial" / f"{prefix}{positions}"
        if path.suffix == ".parquet":
            frame.to_parquet(path)
        else:
            frame.to_csv(path, index=False, header="list" not in positions)
        counts = counts_of(len(array))
        kept = np.flatnonzero(in_tissue)[::-1]  # the matrix has its own order
        names = [barcodes[i] for i in kept]
        if matrix == "h5":
            write_10x(outs / f"{prefix}filtered_feature_bc_matrix.h5", counts[kept], names)
        else:
            _write_mtx(outs / f"{prefix}filtered_feature_bc_matrix", counts[kept], names, packed=matrix == "mtx.gz")
        scale = {"tissue_hires_scalef": 0.25, "tissue_lowres_scalef": 0.125, "spot_diameter_fullres": 13.0}
        (outs / "spatial" / f"{prefix}scalefactors_json.json").write_text(json.dumps(scale))
        image = picture(400, 480)
        for wanted, kind, factor in ((hires, "hires", 4), (lowres, "lowres", 8)):
            if wanted:
                small = Image.fromarray(image).resize((480 // factor, 400 // factor), Image.Resampling.BOX)
                small.save(outs / "spatial" / f"{prefix}tissue_{kind}_image.png")
        if fullres is not None:
            tifffile.imwrite(outs / fullres, image, tile=(64, 64), photometric="rgb")
        return SimpleNamespace(
            outs=outs,
            image=image,
            barcodes=names,
            xy=xy[kept],
            counts=counts[kept],
            frame=frame,
            mpp=5.0,
            spatial=outs / "spatial",
        )

    return make


def _write_mtx(folder: Path, counts: np.ndarray, barcodes: list[str], *, packed: bool) -> None:
    import gzip
    from io import BytesIO

    from scipy.io import mmwrite

    folder.mkdir()
    buffer = BytesIO()
    mmwrite(buffer, sparse.coo_matrix(counts.T), field="integer")
    rows = [f"{i}\t{g}\tGene Expression" for i, g in zip(GENE_IDS, GENES, strict=True)]
    contents = {
        "matrix.mtx": buffer.getvalue(),
        "features.tsv": ("\n".join(rows) + "\n").encode(),
        "barcodes.tsv": ("\n".join(barcodes) + "\n").encode(),
    }
    for name, content in contents.items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)


@pytest.fixture
def make_hd(tmp_path: Path) -> Callable[..., SimpleNamespace]:
    """Writes binned outputs of 8 and 16 um on a turned lattice, 0.5 um per px, on a 400 x 480 px slide."""

    def make(
        *, sizes: tuple[int, ...] = (8, 16), feature_slice: bool = False, fullres: bool = True, cells: bool = False
    ) -> SimpleNamespace:
        outs = tmp_path / "colon" / "outs"
        image = picture(400, 480)
        turn = np.array([[np.cos(0.03), -np.sin(0.03)], [np.sin(0.03), np.cos(0.03)]])
        truth = {}
        for size in sizes:
            base = outs / "binned_outputs" / f"square_{size:03d}um"
            (base / "spatial").mkdir(parents=True)
            side = 80 // size
            array = np.array([(r, c) for r in range(side) for c in range(side)])
            xy = 60 + ((array[:, ::-1] + 0.5) * size / 0.5) @ turn.T
            barcodes = [f"s_{size:03d}um_{r:05d}_{c:05d}-1" for r, c in array]
            frame = pd.DataFrame(
                {
                    "barcode": barcodes,
                    "in_tissue": 1,
                    "array_row": array[:, 0],
                    "array_col": array[:, 1],
                    "pxl_row_in_fullres": xy[:, 1],
                    "pxl_col_in_fullres": xy[:, 0],
                }
            )
            frame.to_parquet(base / "spatial" / "tissue_positions.parquet")
            scale = {
                "spot_diameter_fullres": size / 0.5,
                "bin_size_um": float(size),
                "microns_per_pixel": 0.5,
                "tissue_hires_scalef": 0.25,
                "tissue_lowres_scalef": 0.125,
            }
            (base / "spatial" / "scalefactors_json.json").write_text(json.dumps(scale))
            Image.fromarray(image).resize((120, 100)).save(base / "spatial" / "tissue_hires_image.png")
            counts = counts_of(len(array), seed=size)
            order = np.random.default_rng(size).permutation(len(array))[:-2]  # two bins without counts
            write_10x(base / "filtered_feature_bc_matrix.h5", counts[order], [barcodes[i] for i in order])
            truth[size] = SimpleNamespace(counts=counts[order], barcodes=[barcodes[i] for i in order], xy=xy[order])
        if fullres:
            (outs / "microscope_image").mkdir()
            tifffile.imwrite(outs / "microscope_image" / "slide.btf", image, photometric="rgb")
        if feature_slice:
            with h5py.File(outs / "s7_feature_slice.h5", "w") as file:
                file.attrs["metadata_json"] = "{}"
        if cells:
            _write_cells(outs / "segmented_outputs")
        return SimpleNamespace(outs=outs, image=image, bins=truth, mpp=0.5)

    return make


def _write_cells(folder: Path) -> None:
    names = [f"cellid_{i:09d}-1" for i in (3, 1, 7)]
    write_10x(folder / "filtered_feature_cell_matrix.h5", counts_of(3), names)
    for stem, half in (("cell", 6), ("nucleus", 3)):
        features = []
        for i in (1, 3, 7, 9):  # one that has no counts
            x, y = 70 + 20 * i, 90 + 10 * i
            ring = [
                [x - half, y - half],
                [x + half, y - half],
                [x + half, y + half],
                [x - half, y + half],
                [x - half, y - half],
            ]
            geometry = {"type": "Polygon", "coordinates": [ring]}
            features.append({"type": "Feature", "properties": {"cell_id": i}, "geometry": geometry})
        content = {"type": "FeatureCollection", "features": features}
        (folder / f"{stem}_segmentations.geojson").write_text(json.dumps(content))


@pytest.fixture
def make_xenium(tmp_path: Path) -> Callable[..., SimpleNamespace]:
    """Writes a small bundle without cells.zarr.zip: 30 square cells in um."""

    def make(*, name: str = "bundle", tables: str = "parquet", pixel_size: float | None = 0.2125) -> SimpleNamespace:
        bundle = tmp_path / name
        bundle.mkdir()
        rng = np.random.default_rng(3)
        centres = np.stack(np.meshgrid(np.arange(6) * 12.0 + 20, np.arange(5) * 12.0 + 15), axis=-1).reshape(-1, 2)
        ids = [f"cell{chr(97 + i % 26)}{i}-1" for i in rng.permutation(len(centres))]
        corners = np.array([[-4, -3], [4, -3], [4, 3], [-4, 3], [-4, -3]], dtype=float)

        def boundaries(size: float) -> pd.DataFrame:
            points = (centres[:, None] + size * corners[None]).reshape(-1, 2)
            return pd.DataFrame(
                {"cell_id": np.repeat(ids, len(corners)), "vertex_x": points[:, 0], "vertex_y": points[:, 1]}
            )

        cells = pd.DataFrame(
            {"cell_id": ids, "x_centroid": centres[:, 0], "y_centroid": centres[:, 1], "cell_area": 48.0}
        )
        frames = {"cells": cells, "cell_boundaries": boundaries(1.0), "nucleus_boundaries": boundaries(0.5)}
        for stem, frame in frames.items():
            if tables == "parquet":
                frame.to_parquet(bundle / f"{stem}.parquet")
            else:
                frame.to_csv(bundle / f"{stem}.csv.gz", index=False)
        order = rng.permutation(len(ids))
        counts = counts_of(len(ids))
        write_10x(bundle / "cell_feature_matrix.h5", counts, [ids[i] for i in order])
        if pixel_size is not None:
            (bundle / "experiment.xenium").write_text(json.dumps({"pixel_size": pixel_size}))
        return SimpleNamespace(
            path=bundle,
            ids=[ids[i] for i in order],
            centres=centres[order],
            counts=counts,
            pixel_size=0.2125 if pixel_size is None else pixel_size,
        )

    return make

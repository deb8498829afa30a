"""A synthetic Xenium bundle, with an H&E image of the same section and its alignment."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stpred._core.checks import positive
from stpred.datasets import _files
from stpred.datasets._bins import RASTER_UM, cell_labels, place_molecules
from stpred.datasets._simulated.tissue import Tissue, TissueKeywords, TissueSettings, get_tissue
from stpred.datasets._simulated.truth import FOLDER, save_truth
from stpred.datasets._simulated.warp import placement, warp

PIXEL_UM = 0.2125
VERSION = "xenium-2.0.1.0"
CONTROLS = ("NegControlProbe_00001", "NegControlProbe_00002", "NegControlCodeword_0500")
IDS, BACKGROUND, DAPI = range(30, 33)


def toy_xenium(
    path: str | Path,
    *,
    he: bool = True,
    rotation_deg: float = 12.0,
    flip: bool = False,
    he_scale: float = 1.6,
    tissue: Tissue | TissueSettings | None = None,
    overwrite: bool = False,
    **settings: Unpack[TissueKeywords],
) -> Path:
    """Write a synthetic Xenium bundle with a post-Xenium H&E image.

    Parameters
    ----------
    path
        Folder to write; appears whole or not at all.
    he
        Also write ``toy_he_image.ome.tif`` and ``toy_he_imagealignment.csv``.
    rotation_deg, flip
        How the H&E image lies: turned by so much against the transcripts, and mirrored.
    he_scale
        Pixel of the H&E image in morphology pixels of 0.2125 um.
    tissue
        A slide to write, or the settings to make one from; None: 600 x 600 um, 100 genes, 0.34 um
        per pixel (at which the tissue is drawn before it is turned).
    overwrite
        Replace an existing folder.
    **settings
        Fields of :class:`TissueSettings` to replace.

    Returns
    -------
    pathlib.Path
        The bundle; :func:`load_truth` gives its cells, under the bundle's cell ids.

    Raises
    ------
    InputError
        If a number is not positive or the folder exists.

    Examples
    --------
    >>> import stpred as st
    >>> path = st.datasets.toy_xenium("toy_bundle", size_um=(320, 320), n_genes=20, rotation_deg=30)
    >>> sdata = st.io.xenium(path)
    """
    he_mpp = PIXEL_UM * positive(he_scale, name="he_scale")
    with _files.staged(path, overwrite=overwrite) as folder:
        tissue = get_tissue(tissue, TissueSettings(size_um=(600.0, 600.0), mpp=0.34, n_genes=100), settings)
        ids = tissue.rng(IDS).choice(2**32 - 1, size=len(tissue.cells), replace=False).astype(np.uint32)
        names = _spell(ids)
        labels = cell_labels(tissue, step_um=PIXEL_UM)
        nuclei = cell_labels(tissue, step_um=PIXEL_UM, nuclei=True)
        transcripts = _transcripts(place_molecules(tissue, cell_labels(tissue)), tissue, names)
        transcripts.to_parquet(folder / "transcripts.parquet", index=False)
        cells = _cells(tissue, names)
        cells.to_parquet(folder / "cells.parquet", index=False)
        _write_boundaries(folder / "cell_boundaries.parquet", tissue.outlines, names)
        _write_boundaries(folder / "nucleus_boundaries.parquet", tissue.nuclei, names)
        _write_matrix(folder / "cell_feature_matrix.h5", tissue, names)
        _write_zarr(folder / "cells.zarr.zip", ids, cells, tissue, masks=(nuclei, labels))
        (folder / "morphology_focus").mkdir()
        dapi = _dapi(nuclei, tissue.rng(DAPI))
        _files.write_ome_tif(
            folder / "morphology_focus" / "morphology_focus_0000.ome.tif", dapi, mpp=PIXEL_UM, channel="DAPI"
        )
        _files.write_json(folder / "experiment.xenium", _experiment(tissue, len(transcripts)))
        if he:
            _write_he(folder, tissue, mpp=he_mpp, rotation_deg=rotation_deg, flip=flip)
        save_truth(folder / FOLDER, tissue, names=names)
    return Path(path)


def _spell(ids: NDArray[np.uint32]) -> list[str]:
    """Spell cell ids as the vendor does: hexadecimal digits as the letters a to p, and the suffix ``-1``."""
    nibbles = ids[:, None] >> np.arange(28, -1, -4, dtype=np.uint32) & np.uint32(15)
    return ["".join(row) + "-1" for row in np.array(list("abcdefghijklmnop"))[nibbles]]


def _transcripts(molecules: pd.DataFrame, tissue: Tissue, names: list[str]) -> pd.DataFrame:
    """Return the decoded transcripts, with one in a hundred scattered outside any cell."""
    rng = tissue.rng(BACKGROUND)
    stray = max(1, len(molecules) // 100)
    width, height = tissue.size_um
    x = np.concatenate([molecules["x_um"], rng.uniform(0, width, stray)]).astype(np.float32)
    y = np.concatenate([molecules["y_um"], rng.uniform(0, height, stray)]).astype(np.float32)
    gene = np.concatenate([molecules["gene"], rng.integers(0, len(tissue.genes), stray)])
    cell = np.concatenate([np.array(names)[molecules["cell"]], np.full(stray, "UNASSIGNED")])
    nuclei = cell_labels(tissue, nuclei=True)
    i, j = (np.minimum((v / RASTER_UM).astype(int), n - 1) for v, n in zip((y, x), nuclei.shape, strict=True))
    return pd.DataFrame(
        {
            "transcript_id": np.arange(len(x), dtype=np.uint64) + 281474976710656,
            "cell_id": cell,
            "overlaps_nucleus": (nuclei[i, j] > 0).astype(np.uint8),
            "feature_name": tissue.genes.index.to_numpy()[gene],
            "x_location": x,
            "y_location": y,
            "z_location": rng.uniform(12, 18, len(x)).astype(np.float32),
            "qv": np.where(rng.random(len(x)) < 0.9, 40.0, rng.uniform(20, 40, len(x))).astype(np.float32),
            "fov_name": "A1",
        }
    )


def _cells(tissue: Tissue, names: list[str]) -> pd.DataFrame:
    import shapely

    centre = shapely.get_coordinates(shapely.centroid(tissue.outlines))
    total = tissue.counts.sum(axis=1)
    return pd.DataFrame(
        {
            "cell_id": names,
            "x_centroid": centre[:, 0],
            "y_centroid": centre[:, 1],
            "transcript_counts": total,
            "control_probe_counts": 0,
            "control_codeword_counts": 0,
            "unassigned_codeword_counts": 0,
            "total_counts": total,
            "cell_area": shapely.area(tissue.outlines),
            "nucleus_area": shapely.area(tissue.nuclei),
            "nucleus_count": 1,
            "segmentation_method": "Segmented by nucleus expansion of 4.0µm",
        }
    )


def _write_boundaries(path: Path, polygons: NDArray[Any], names: list[str]) -> None:
    import shapely

    rings = shapely.get_exterior_ring(polygons)
    xy, index = shapely.get_coordinates(rings, return_index=True)
    frame = {
        "cell_id": np.array(names)[index],
        "vertex_x": xy[:, 0].astype(np.float32),
        "vertex_y": xy[:, 1].astype(np.float32),
        "label_id": (index + 1).astype(np.int32),
    }
    pd.DataFrame(frame).to_parquet(path, index=False)


def _write_matrix(path: Path, tissue: Tissue, names: list[str]) -> None:
    """Write cells by features; some are controls, which a reader of genes leaves out."""
    genes = pd.concat([tissue.genes[["gene_id"]], pd.DataFrame({"gene_id": CONTROLS}, index=list(CONTROLS))])
    kinds = ["Negative Control " + ("Probe" if "Probe" in c else "Codeword") for c in CONTROLS]
    _files.write_10x_h5(
        path,
        np.pad(tissue.counts, ((0, 0), (0, len(CONTROLS)))),
        barcodes=names,
        genes=genes,
        library_id="Custom",
        chemistry="Single Cell 3' v3",
        software=VERSION,
        feature_types=["Gene Expression"] * len(tissue.genes) + kinds,
    )


def _write_zarr(
    path: Path, ids: NDArray[np.uint32], cells: pd.DataFrame, tissue: Tissue, *, masks: tuple[NDArray[np.int32], ...]
) -> None:
    """Write ``cells.zarr.zip``: ids, a summary, and label images of nuclei (0) and cells (1)."""
    import zarr

    columns = {
        "cell_centroid_x": cells["x_centroid"],
        "cell_centroid_y": cells["y_centroid"],
        "cell_area": cells["cell_area"],
        "nucleus_centroid_x": tissue.cells["x_um"],
        "nucleus_centroid_y": tissue.cells["y_um"],
        "nucleus_area": cells["nucleus_area"],
        "z_level": np.zeros(len(cells)),
        "nucleus_count": cells["nucleus_count"],
    }
    with zarr.storage.ZipStore(path, mode="w") as store:
        # Attributes are given with each element: writing them later would put a second copy into the zip.
        about = {"major_version": 6, "minor_version": 0, "number_cells": len(ids), "spatial_units": "microns"}
        root = zarr.create_group(store, zarr_format=2, attributes=about)
        root.create_array("cell_id", data=np.column_stack([ids, np.ones_like(ids)]))
        summary = np.column_stack([np.asarray(v, dtype=np.float64) for v in columns.values()])
        root.create_array("cell_summary", data=summary, attributes={"column_names": list(columns)})
        for k, mask in enumerate(masks):
            root.create_array(f"masks/{k}", data=mask.astype(np.uint32), chunks=(1024, 1024))
            root.create_array(f"polygon_sets/{k}/cell_index", data=np.arange(len(ids), dtype=np.uint32))


def _dapi(nuclei: NDArray[np.int32], rng: np.random.Generator) -> NDArray[np.uint16]:
    """Draw what the instrument's own camera sees: nuclei of different brightness, out-of-focus light, noise."""
    from scipy.ndimage import gaussian_filter

    brightness = np.concatenate([[0.0], rng.uniform(0.5, 1.0, int(nuclei.max()))]).astype(np.float32)
    light = gaussian_filter(brightness[nuclei], 0.4 / PIXEL_UM)
    light += 0.3 * gaussian_filter(light, 3.0 / PIXEL_UM)
    light = 2500 * light + 120 + 25 * rng.standard_normal(light.shape, dtype=np.float32)
    return np.clip(light, 0, 65535).astype(np.uint16)


def _experiment(tissue: Tissue, n_transcripts: int) -> dict[str, Any]:
    return {
        "major_version": 6,
        "minor_version": 0,
        "patch_version": 0,
        "run_name": "Synthetic tissue",
        "region_name": f"toy_donor{tissue.donor}",
        "preservation_method": "FFPE",
        "num_cells": len(tissue.cells),
        "transcripts_per_cell": round(n_transcripts / len(tissue.cells), 1),
        "panel_name": "Toy panel",
        "panel_organism": "Human",
        "panel_num_targets_predesigned": len(tissue.genes),
        "panel_num_targets_custom": 0,
        "pixel_size": PIXEL_UM,
        "analysis_sw_version": VERSION,
        "instrument_sw_version": "2.0.1.0",
    }


def _write_he(folder: Path, tissue: Tissue, *, mpp: float, rotation_deg: float, flip: bool) -> None:
    """Write the H&E image, and the affine from its pixels to morphology pixels as Xenium Explorer writes it."""
    affine, shape = placement(tissue.size_um, mpp=mpp, rotation_deg=rotation_deg, flip=flip)
    image = warp(tissue.image, mpp=tissue.mpp, affine=affine, shape=shape)
    _files.write_ome_tif(folder / "toy_he_image.ome.tif", image, mpp=mpp)
    to_morphology = np.diag([1 / PIXEL_UM, 1 / PIXEL_UM, 1.0]) @ affine
    np.savetxt(folder / "toy_he_imagealignment.csv", to_morphology, delimiter=",", fmt="%.12g")

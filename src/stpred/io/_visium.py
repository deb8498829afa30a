"""Visium: the output of Space Ranger, versions 1 to 4."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stpred._core import keys
from stpred._core.checks import InputError, MissingFileError, listing
from stpred._core.files import readable
from stpred.calibration import (
    HEX_STEPS,
    SPACERANGER_SPOT_UM,
    VISIUM_PITCH_UM,
    Evidence,
    lattice_pitch_px,
    place,
    scaling,
)
from stpred.io._assemble import clean_name, counts_table, first_existing, folder, slide
from stpred.io._spaceranger import calibrate_run, find_fullres, place_images, require_file
from stpred.io._tables.links_folder import staged
from stpred.io._tables.matrix import check_10x_mtx, usable_10x_h5
from stpred.io._tables.spaceranger import check_array, check_diameter, read_positions, read_scalefactors

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from geopandas import GeoDataFrame
    from spatialdata import SpatialData

logger = logging.getLogger("stpred")

_COUNTS = ("*filtered_feature_bc_matrix.h5", "*filtered_feature_bc_matrix")
_RAW = ("*raw_feature_bc_matrix.h5", "*raw_feature_bc_matrix")
_POSITIONS = ("*tissue_positions.parquet", "*tissue_positions.csv", "*tissue_positions_list.csv")
_SCALEFACTORS = ("*scalefactors_json.json",)


def visium(
    path: str | Path,
    *,
    fullres_image: str | Path | None = None,
    scene: int | str | None = None,
    mpp: float | None = None,
    dataset_id: str | None = None,
    counts_file: str | None = None,
) -> SpatialData:
    """Read a Visium slide as Space Ranger (versions 1 to 4) wrote it, calibrated in micrometres.

    Parameters
    ----------
    path
        The ``outs`` folder, or the folder that holds it.
    fullres_image
        The image that Space Ranger was run on; it must show what the hires image shows, lying as it does. None takes
        the only image in `path`, ``outs`` or the folder above whose size and content fit; without any, Space Ranger's
        hires image becomes ``he``, at its own coarse resolution.
    scene
        Number or name of the picture, of an image file that holds several; see :func:`stpred.io.wsi`.
    mpp
        Micrometres per full-resolution pixel; None derives it from the spot pitch of 100 um.
    dataset_id
        Name of the vendor's coordinate system; None takes it from the file names or the folder.
    counts_file
        Counts relative to the outs folder (h5, or a folder with ``matrix.mtx.gz``); None takes the filtered matrix.

    Returns
    -------
    Object with

    - image ``he`` (uint8 c, y, x, lazy, multiscale), and ``he_hires`` and ``he_lowres`` where the full image is there;
    - circles ``spots``, index = barcode, the spots under tissue;
    - table ``spots_counts``: raw counts (sparse), names = symbols, ``var["gene_id"]``, ``obs["array_row"]`` and
      ``obs["array_col"]``, ``obsm["spatial"]`` in micrometres.

    All lie in ``dataset_id`` (full-resolution pixels), ``{dataset_id}_downscaled_hires`` and ``..._lowres``; ``he`` and
    ``spots`` also in ``"um"``.

    Raises
    ------
    InputError
        If files do not match, spots lie outside the image, or a downscaled copy is given as the full image.
    MissingFileError
        If the counts, positions or scale factors are not there.

    Examples
    --------
    >>> import stpred as st
    >>> outs = st.datasets.toy_visium("sample1/outs", size_um=(400, 400), n_genes=20)
    >>> sdata = st.io.visium(outs)
    >>> sdata.tables["spots_counts"].shape
    (9, 20)
    """
    root = folder(path, what="Visium")
    outs = _outs(root)
    counts_path = _counts_path(outs, counts_file)
    dataset_id = clean_name(dataset_id or _dataset_id(outs, counts_path))
    spatial = outs / "spatial" if (outs / "spatial").is_dir() else outs
    scalefactors = read_scalefactors(_file(spatial, _SCALEFACTORS, what="scale factors"))
    positions = read_positions(_file(spatial, _POSITIONS, what="spot positions"))
    copies = {
        kind: first_existing(spatial, (f"*tissue_{kind}_image.png", f"*tissue_{kind}_image.jpg"))
        for kind in ("hires", "lowres")
    }

    counts, spots = _read(counts_path, positions, scalefactors, dataset_id)
    xy = np.column_stack([spots.geometry.x, spots.geometry.y])
    fullres = find_fullres(
        fullres_image, scene=scene, folders=(outs, root, outs.parent), copies=copies, scalefactors=scalefactors
    )
    resolution = calibrate_run(
        _evidence(counts.obs, xy, scalefactors),
        fullres=fullres,
        xy_px=xy,
        user_mpp=mpp,
        dataset_id=dataset_id,
        what="spots",
        radius_px=float(spots["radius"].max()),
    )
    check_diameter(
        scalefactors["spot_diameter_fullres"], mpp=resolution, expected_um=SPACERANGER_SPOT_UM, what="Visium spots"
    )
    images = place_images(
        fullres=fullres.pixels, copies=copies, scalefactors=scalefactors, dataset_id=dataset_id, mpp=resolution
    )
    place(spots, scaling(resolution))
    table = counts_table(counts, shapes_key=keys.SPOTS, instances=spots.index, spatial_um=xy * resolution)
    if not images:
        logger.info("Slide %r has no image at all.", dataset_id)
    return slide(images=images, shapes={keys.SPOTS: spots}, tables={keys.counts(keys.SPOTS): table})


def _outs(path: Path) -> Path:
    for candidate in (path, path / "outs"):
        if (
            any(first_existing(candidate, (pattern,)) for pattern in (*_COUNTS, *_RAW))
            or (candidate / "spatial").is_dir()
        ):
            return candidate
    raise MissingFileError(
        f"{str(path)!r} is no Visium output: neither it nor its folder 'outs' has 'spatial' or {listing(_COUNTS)}."
    )


def _file(base: Path, patterns: tuple[str, ...], *, what: str) -> Path:
    return require_file(first_existing(base, patterns), what=what, base=base, looked_for=patterns)


def _counts_path(outs: Path, counts_file: str | None) -> Path:
    if counts_file is not None:
        if not (outs / counts_file).exists():
            raise MissingFileError(f"There is no counts file {counts_file!r} in {str(outs)!r}.")
        return outs / counts_file
    found = first_existing(outs, _COUNTS)
    if found is None and (found := first_existing(outs, _RAW)) is not None:
        logger.info("No filtered matrix: the spots under tissue are taken from %s.", found.name)
    return require_file(found, what="counts", base=outs, looked_for=(*_COUNTS, *_RAW))


def _dataset_id(outs: Path, counts: Path) -> str:
    for ending in ("filtered_feature_bc_matrix", "raw_feature_bc_matrix"):
        prefix = counts.name.split(ending)[0].strip("_.-")
        if ending in counts.name and prefix:
            return prefix
    base = outs.resolve()
    return base.parent.name if base.name == "outs" else base.name


def _read(
    counts_path: Path, positions: pd.DataFrame, scalefactors: dict[str, float], dataset_id: str
) -> tuple[AnnData, GeoDataFrame]:
    """Return counts and circles of the spots under tissue in the same order, the circles indexed by barcode."""
    from spatialdata_io import visium as vendor_reader

    scales = {f"tissue_{kind}_scalef": 1.0 for kind in ("hires", "lowres")} | scalefactors
    if "spot_diameter_fullres" not in scales:
        raise InputError(f"The scale factors lack 'spot_diameter_fullres'; they hold {listing(scalefactors)}.")
    files, name = _count_files(counts_path)
    files["spatial/tissue_positions.csv"] = positions.to_csv().encode()
    files["spatial/scalefactors_json.json"] = json.dumps(scales).encode()
    with readable(counts_path, what="counts"), staged(files) as root:
        sdata = vendor_reader(root, dataset_id=dataset_id, counts_file=name)
    counts, spots = sdata.tables["table"], sdata.shapes[dataset_id]
    _drop_systems(
        spots, [f"{dataset_id}_downscaled_{k}" for k in ("hires", "lowres") if f"tissue_{k}_scalef" not in scalefactors]
    )
    unplaced = counts.obs["in_tissue"].isna().to_numpy()
    if unplaced.any():
        raise InputError(
            f"{int(unplaced.sum())} barcodes of the counts have no position, such as "
            f"{counts.obs_names[unplaced][0]!r}; do counts and positions belong to the same slide?"
        )
    under = counts.obs["in_tissue"].to_numpy() == 1
    if not under.any():
        raise InputError("No spot of the counts is under tissue (in_tissue = 1).")
    counts, spots = counts[under].copy(), spots[under].copy()
    spots.index = counts.obs_names.copy()
    spots.index.name = None
    return counts, spots


def _count_files(counts: Path) -> tuple[dict[str, Path | bytes], str]:
    if counts.is_file():
        return {"filtered_feature_bc_matrix.h5": usable_10x_h5(counts)}, "filtered_feature_bc_matrix.h5"
    check_10x_mtx(counts)
    files: dict[str, Path | bytes] = {}
    for name in ("matrix.mtx", "features.tsv", "barcodes.tsv"):
        if (packed := counts / f"{name}.gz").exists():
            files[f"{name}.gz"] = packed
        elif (plain := counts / name).exists():
            files[f"{name}.gz"] = gzip.compress(plain.read_bytes(), compresslevel=1)
        else:
            raise MissingFileError(f"The counts folder {str(counts)!r} lacks {name}.gz.")
    return files, "matrix.mtx.gz"


def _drop_systems(element: GeoDataFrame, systems: list[str]) -> None:
    from spatialdata.transformations import remove_transformation

    for system in systems:
        remove_transformation(element, system)


def _evidence(obs: pd.DataFrame, xy: np.ndarray, scalefactors: dict[str, float]) -> list[Evidence]:
    """The pitch is printed to a precision that no header reaches; the nominal spot size is for slides of few spots."""
    array = obs[["array_row", "array_col"]].to_numpy(dtype=np.float64)
    check_array(array, xy, what="spots")
    pitch = lattice_pitch_px(array, xy, steps=HEX_STEPS, max_stray=1.0)
    if pitch is not None:
        return [Evidence(VISIUM_PITCH_UM / pitch, f"the spot pitch of {VISIUM_PITCH_UM:g} um")]
    diameter = scalefactors["spot_diameter_fullres"]
    return [Evidence(SPACERANGER_SPOT_UM / diameter, f"the nominal spot size of {SPACERANGER_SPOT_UM:g} um")]

"""Visium HD: binned and segmented output of Space Ranger."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stpred._core import keys
from stpred._core.checks import InputError, MissingFileError, listing, warn
from stpred._core.files import readable
from stpred.calibration import SQUARE_STEPS, Evidence, lattice_pitch_px, place, scaling
from stpred.io._assemble import clean_name, counts_table, first_existing, folder, slide
from stpred.io._spaceranger import calibrate_run, find_fullres, place_images
from stpred.io._tables.damage import check_readable
from stpred.io._tables.links_folder import staged
from stpred.io._tables.matrix import barcodes_10x, read_10x_h5, usable_10x_h5
from stpred.io._tables.segments import read_segments
from stpred.io._tables.spaceranger import check_array, check_diameter, read_positions, read_scalefactors

if TYPE_CHECKING:
    from anndata import AnnData
    from geopandas import GeoDataFrame
    from spatialdata import SpatialData

logger = logging.getLogger("stpred")

DEFAULT_BINS_UM = (8, 16)

_BIN = re.compile(r"^square_(\d{3})um$")
_COUNTS = "filtered_feature_bc_matrix.h5"
_CELL_COUNTS = "filtered_feature_cell_matrix.h5"
_CELLS = "cell_segmentations.geojson"
_NUCLEI = "nucleus_segmentations.geojson"
SAME_RUN = 0.02
"""Relative difference of scale factors between the bin sizes of one run."""
_ID = "slide"
"""Name under which the files are handed over; the caller's own name is set afterwards."""


def visium_hd(
    path: str | Path,
    *,
    bin_sizes: Sequence[int] | int | None = None,
    fullres_image: str | Path | None = None,
    scene: int | str | None = None,
    mpp: float | None = None,
    segmentations: bool | None = None,
    dataset_id: str | None = None,
) -> SpatialData:
    """Read a Visium HD slide as Space Ranger wrote it, calibrated in micrometres.

    Parameters
    ----------
    path
        The ``outs`` folder, the folder that holds it, or ``binned_outputs``.
    bin_sizes
        Edge lengths of the bins to load, in micrometres. None loads 8 and 16 where they are; 2 um bins (millions of
        squares) only when asked for.
    fullres_image
        The microscope image that Space Ranger was run on; None looks as :func:`stpred.io.visium` does, and in
        ``microscope_image``.
    scene
        Number or name of the picture, of an image file that holds several; see :func:`stpred.io.wsi`.
    mpp
        Micrometres per full-resolution pixel; None takes ``microns_per_pixel`` of the scale factors.
    segmentations
        Load segmented cells (``cells``, ``cells_counts``) and nuclei (``nuclei``). None: where they are.
    dataset_id
        Name of the vendor's coordinate system; None takes it from the file names or the folder.

    Returns
    -------
    Object with the image ``he`` (and ``he_hires``, ``he_lowres``), squares ``bins_008um``, ``bins_016um``, ... (index =
    barcode), tables ``bins_008um_counts``, ... and, with segmentations, ``cells``, ``cells_counts`` and ``nuclei``,
    placed in ``"um"`` and in the vendor's coordinate systems as :func:`stpred.io.visium` does.

    Raises
    ------
    InputError
        If a bin size is not there (those present are listed), or the image does not fit.
    MissingFileError
        If there is no binned output.

    Examples
    --------
    >>> import stpred as st
    >>> outs = st.datasets.toy_visium_hd("colon/outs", size_um=(300, 300), n_genes=20)
    >>> sdata = st.io.visium_hd(outs, bin_sizes=8)
    >>> sorted(sdata.shapes)
    ['bins_008um', 'cells', 'nuclei']
    """
    root = folder(path, what="Visium HD")
    outs, present = _outs(root)
    sizes = _chosen(bin_sizes, present)
    segmented = _segmented(outs, segmentations=segmentations)
    dataset_id = clean_name(dataset_id or _dataset_id(outs))
    scalefactors = read_scalefactors(present[sizes[0]] / "spatial" / "scalefactors_json.json")
    copies = {kind: _copy(outs, present[sizes[0]], kind) for kind in ("hires", "lowres")}

    regions = _read(present, sizes, segmented, scalefactors, dataset_id)
    coarsest = keys.bins(max(sizes))
    counts, squares = regions[coarsest]
    xy = _centres(squares)
    fullres = find_fullres(
        fullres_image,
        scene=scene,
        folders=(outs, outs / "microscope_image", root, outs.parent),
        copies=copies,
        scalefactors=scalefactors,
    )
    evidence = _evidence(scalefactors, counts.obs, xy, size_um=max(sizes))
    resolution = calibrate_run(evidence, fullres=fullres, xy_px=xy, user_mpp=mpp, dataset_id=dataset_id, what="bins")
    shapes, tables = {}, {}
    for size in sizes:
        edge = float(np.sqrt(regions[keys.bins(size)][1].geometry.iloc[0].area))
        check_diameter(edge, mpp=resolution, expected_um=size, what=f"bins of {size} um")
    for name, (region_counts, element) in regions.items():
        place(element, scaling(resolution))
        shapes[name] = element
        if region_counts is not None:
            centres = _centres(element) * resolution
            table = counts_table(region_counts, shapes_key=name, instances=element.index, spatial_um=centres)
            tables[keys.counts(name)] = table
    images = place_images(
        fullres=fullres.pixels, copies=copies, scalefactors=scalefactors, dataset_id=dataset_id, mpp=resolution
    )
    return slide(images=images, shapes=shapes, tables=tables)


def bin_folders(base: Path) -> dict[int, Path]:
    """Return the bin sizes (um) that a folder holds, each with its own folder."""
    found = {}
    for child in sorted(base.iterdir()) if base.is_dir() else ():
        if (match := _BIN.match(child.name)) and child.is_dir():
            found[int(match[1])] = child
    return found


def _outs(path: Path) -> tuple[Path, dict[int, Path]]:
    for outs in (path, path / "outs"):
        if present := bin_folders(outs / "binned_outputs"):
            return outs, present
    if present := bin_folders(path):
        return (path.parent if path.name == "binned_outputs" else path), present
    raise MissingFileError(
        f"{str(path)!r} is no Visium HD output: it has no 'binned_outputs/square_008um' or the like."
    )


def _chosen(bin_sizes: Sequence[int] | int | None, present: dict[int, Path]) -> list[int]:
    usable = {size for size, base in present.items() if (base / _COUNTS).exists()}
    if bin_sizes is None:
        chosen = [size for size in DEFAULT_BINS_UM if size in usable]
        if not chosen:
            raise InputError(f"No bins of {DEFAULT_BINS_UM} um; present: {sorted(usable)}; name them with bin_sizes=.")
        return chosen
    sizes = sorted({int(size) for size in np.atleast_1d(np.asarray(bin_sizes))})
    if not sizes or set(sizes) - usable:
        raise InputError(f"`bin_sizes`={sizes} are not all there; present (um): {sorted(usable)}.")
    return sizes


def _segmented(outs: Path, *, segmentations: bool | None) -> Path | None:
    base = outs / "segmented_outputs"
    complete = (base / _CELL_COUNTS).exists() and (base / _CELLS).exists()
    if segmentations and not complete:
        raise MissingFileError(f"`segmentations=True`, but {str(base)!r} lacks {_CELL_COUNTS!r} or {_CELLS!r}.")
    return base if complete and segmentations is not False else None


def _dataset_id(outs: Path) -> str:
    found = first_existing(outs, ("*_feature_slice.h5",))
    if found is not None:
        return found.name.removesuffix("_feature_slice.h5")
    base = outs.resolve()
    return base.parent.name if base.name == "outs" else base.name


def _copy(outs: Path, bin_folder: Path, kind: str) -> Path | None:
    for base in (outs / "spatial", bin_folder / "spatial"):
        if (found := first_existing(base, (f"tissue_{kind}_image.png",))) is not None:
            return found
    return None


def _read(
    present: dict[int, Path], sizes: list[int], segmented: Path | None, scalefactors: dict[str, float], dataset_id: str
) -> dict[str, tuple[Any, GeoDataFrame]]:
    """Return counts and polygons by region name; the polygons are indexed by barcode and placed in vendor systems."""
    from spatialdata_io import visium_hd as vendor_reader

    files = _files(present, sizes, scalefactors)
    check_readable(*(f for f in files.values() if isinstance(f, Path)))
    with readable(next(iter(present.values())).parent, what="output"), staged(files) as root:
        sdata = vendor_reader(root, dataset_id=_ID, bin_size=list(sizes), load_segmentations_only=False)
    regions: dict[str, tuple[Any, GeoDataFrame]] = {}
    for size in sizes:
        vendor = f"square_{size:03d}um"
        regions[keys.bins(size)] = _region(sdata.tables[vendor], sdata.shapes[f"{_ID}_{vendor}"])
    if segmented is not None:
        regions[keys.CELLS] = _cells(segmented)
        if (segmented / _NUCLEI).exists():
            regions[keys.NUCLEI] = (None, read_segments(segmented / _NUCLEI))
    for _, element in regions.values():
        _place_vendor(element, scalefactors, dataset_id)
    return regions


def _region(counts: Any, element: GeoDataFrame) -> tuple[Any, GeoDataFrame]:
    """Return counts and squares of the bins under tissue, the squares indexed by barcode."""
    element = element[["geometry"]].copy()
    element.index = counts.obs_names.copy()
    element.index.name = None
    under = counts.obs["in_tissue"].to_numpy() == 1
    if not under.any():
        raise InputError("No bin of the counts is under tissue (in_tissue = 1).")
    if not under.all():
        logger.info("%d of %d bins lie beside the tissue (in_tissue = 0); left out.", (~under).sum(), len(under))
        counts, element = counts[under].copy(), element[under].copy()
    return counts, element


def _cells(segmented: Path) -> tuple[AnnData, GeoDataFrame]:
    """Return counts and polygons of the segmented cells that have both, in the order of the counts."""
    counts = read_10x_h5(segmented / _CELL_COUNTS)
    counts.var_names_make_unique()
    polygons = read_segments(segmented / _CELLS)
    drawn = counts.obs_names.isin(polygons.index)
    if not drawn.any():
        raise InputError(
            f"{_CELL_COUNTS!r} and {_CELLS!r} of {str(segmented)!r} share no cell: "
            f"{listing(counts.obs_names, most=2)} against {listing(polygons.index, most=2)}."
        )
    if not drawn.all():
        warn(
            f"{int((~drawn).sum())} of {len(drawn)} cells of {_CELL_COUNTS!r} have no polygon in {_CELLS!r} and are "
            f"left out: {listing(counts.obs_names[~drawn])}."
        )
        counts = counts[drawn].copy()
    counts.obs["cell_id"] = counts.obs_names.to_numpy()
    return counts, polygons.loc[counts.obs_names]


def _files(present: dict[int, Path], sizes: list[int], scalefactors: dict[str, float]) -> dict[str, Path | bytes]:
    from io import BytesIO

    files: dict[str, Path | bytes] = {"feature_slice.h5": _feature_slice()}
    for size in sizes:
        target, source = f"binned_outputs/square_{size:03d}um", present[size]
        positions = source / "spatial" / "tissue_positions.parquet"
        if not positions.exists():
            raise MissingFileError(f"{str(source)!r} lacks 'spatial/tissue_positions.parquet'.")
        found, own = read_positions(positions), read_scalefactors(source / "spatial" / "scalefactors_json.json")
        _same_slide(own, scalefactors, source)
        files[f"{target}/{_COUNTS}"] = usable_10x_h5(source / _COUNTS)
        barcodes = barcodes_10x(source / _COUNTS)
        if (lost := ~np.isin(barcodes, found.index.to_numpy().astype(str))).any():
            raise InputError(
                f"{int(lost.sum())} of {len(lost)} barcodes of the counts in {source.name!r} have no position, such as "
                f"{barcodes[lost][0]!r}; do counts and positions belong to the same slide?"
            )
        buffer = BytesIO()
        found.reset_index().to_parquet(buffer, index=False)
        files[f"{target}/spatial/tissue_positions.parquet"] = buffer.getvalue()
        whole = _consistent(_complete(own), source, size_um=size)
        files[f"{target}/spatial/scalefactors_json.json"] = json.dumps(whole).encode()
    return files


def _same_slide(own: dict[str, float], first: dict[str, float], source: Path) -> None:
    """Refuse bins whose scale factors are of another image than those of the first bin size."""
    for name in ("microns_per_pixel", "tissue_hires_scalef", "tissue_lowres_scalef"):
        if name in own and name in first and abs(own[name] / first[name] - 1) > SAME_RUN:
            raise InputError(
                f"The scale factors of {source.name!r} state {name} as {own[name]:.4g}, another bin size of the run "
                f"{first[name]:.4g}; are they of the same slide?"
            )


def _complete(scalefactors: dict[str, float]) -> dict[str, float]:
    """Return scale factors with stand-ins for the small images, whose placing is set afterwards."""
    return {"tissue_hires_scalef": 1.0, "tissue_lowres_scalef": 1.0} | scalefactors


def _consistent(scalefactors: dict[str, float], source: Path, *, size_um: int) -> dict[str, float]:
    """Return scale factors whose bin size, edge and resolution agree, as the vendor reader asserts.

    The resolution is judged afterwards, by the positions of the bins; here only the edge of the squares is taken.
    """
    edge, stated = scalefactors.get("spot_diameter_fullres"), scalefactors.get("bin_size_um", size_um)
    if stated != size_um:
        raise InputError(f"The scale factors of {source.name!r} are of bins of {stated:g} um.")
    if edge is None:
        if "microns_per_pixel" not in scalefactors:
            raise InputError(
                f"The scale factors of {source.name!r} state neither spot_diameter_fullres nor microns_per_pixel."
            )
        edge = size_um / scalefactors["microns_per_pixel"]
    own = {"bin_size_um": float(size_um), "spot_diameter_fullres": edge, "microns_per_pixel": size_um / edge}
    return scalefactors | own


def _feature_slice() -> bytes:
    """Return a stand-in for the file in which the vendor reader looks up the format version and nothing else.

    It is not always shipped with the binned output.
    """
    from io import BytesIO

    import h5py

    buffer = BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs["metadata_json"] = json.dumps({"hd_layout_json": json.dumps({"file_format": "1.0"})})
    return buffer.getvalue()


def _place_vendor(element: GeoDataFrame, scalefactors: dict[str, float], dataset_id: str) -> None:
    from spatialdata.transformations import set_transformation

    from stpred.calibration import to_transformation

    systems = {dataset_id: np.eye(3)}
    for kind in ("hires", "lowres"):
        if f"tissue_{kind}_scalef" in scalefactors:
            systems[f"{dataset_id}_downscaled_{kind}"] = scaling(scalefactors[f"tissue_{kind}_scalef"])
    set_transformation(element, {k: to_transformation(v) for k, v in systems.items()}, set_all=True)


def _centres(squares: GeoDataFrame) -> np.ndarray:
    points = squares.geometry.centroid
    return np.column_stack([points.x.to_numpy(), points.y.to_numpy()])


def _evidence(scalefactors: dict[str, float], obs: pd.DataFrame, xy: np.ndarray, *, size_um: int) -> list[Evidence]:
    found = []
    if "microns_per_pixel" in scalefactors:
        found.append(Evidence(scalefactors["microns_per_pixel"], "microns_per_pixel of the scale factors"))
    array = obs[["array_row", "array_col"]].to_numpy(dtype=np.float64)
    check_array(array, xy, what="bins")
    pitch = lattice_pitch_px(array, xy, steps=SQUARE_STEPS)
    if pitch is not None:
        found.append(Evidence(size_um / pitch, f"the bin size of {size_um} um"))
    return found

"""A synthetic whole slide without expression, as scanners write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from stpred._core.checks import InputError, one_of, positive
from stpred._core.disk.staging import staged_file
from stpred.datasets import _files
from stpred.datasets._simulated.tissue import Tissue, TissueKeywords, TissueSettings, get_tissue
from stpred.datasets._simulated.truth import save_truth, truth_folder

FORMATS = {"svs": (".svs",), "ome.tif": (".ome.tif", ".ome.tiff"), "tif": (".tif", ".tiff"), "png": (".png",)}


def toy_wsi(
    path: str | Path,
    *,
    format: str | None = None,
    stated_mpp: float | None = None,
    tissue: Tissue | TissueSettings | None = None,
    overwrite: bool = False,
    **settings: Unpack[TissueKeywords],
) -> Path:
    """Write a synthetic whole slide: an image and nothing else.

    Parameters
    ----------
    path
        File to write; appears whole or not at all.
    format
        ``"svs"`` (tiled pyramid with an Aperio description), ``"ome.tif"`` (tiled pyramid with ``PhysicalSizeX``),
        ``"tif"`` (one level in strips, resolution in the TIFF tags) or ``"png"`` (no resolution); None: by the name.
    stated_mpp
        Resolution that the file claims, to make one that is wrong; None: the true one.
    tissue
        A slide to write, or the settings to make one from; None: the defaults of :class:`TissueSettings`.
    overwrite
        Replace an existing file.
    **settings
        Fields of :class:`TissueSettings` to replace.

    Returns
    -------
    pathlib.Path
        The file; the truth lies beside it in ``<name>.truth``, where :func:`load_truth` finds it.

    Raises
    ------
    InputError
        If the format is unknown or the file exists.

    Examples
    --------
    >>> import stpred as st
    >>> path = st.datasets.toy_wsi("toy.svs", size_um=(400, 400))
    >>> sdata = st.io.wsi(path)
    """
    path = Path(path)
    format = _format(path) if format is None else one_of(format, FORMATS, name="format")
    if stated_mpp is not None:
        stated_mpp = positive(stated_mpp, name="stated_mpp", unit="um per pixel")
    _files.refuse_existing(path, overwrite=overwrite)
    _files.refuse_existing(path, overwrite=overwrite)
    tissue = get_tissue(tissue, TissueSettings(), settings)
    write = {"svs": _write_svs, "ome.tif": _write_ome, "tif": _write_flat, "png": _write_png}[format]
    with _files.staged(truth_folder(path), overwrite=True) as folder:
        save_truth(folder, tissue)
        with staged_file(path, what="slide") as part:
            write(part, tissue.image, stated_mpp or tissue.mpp)
    return path


def _format(path: Path) -> str:
    for format, suffixes in FORMATS.items():
        if path.name.lower().endswith(suffixes):
            return format
    known = [s for suffixes in FORMATS.values() for s in suffixes]
    raise InputError(f"`path`='{path}' says no known format; end it in one of {known}, or pass `format`.")


def _write_svs(path: Path, image: NDArray[np.uint8], mpp: float) -> None:
    """Write the levels as pages of one file, the thumbnail second, as Aperio scanners do."""
    import tifffile

    height, width = image.shape[:2]
    levels = _files.pyramid(image, smallest_px=512)
    thumbnail = _files.pyramid(image)[-1]
    head = "Aperio Image Library v12.0.15\r\n"
    about = f"|AppMag = {10 / mpp:.4g}|MPP = {mpp:.6g}|Filename = toy"
    form: dict[str, Any] = {"photometric": "rgb", "metadata": None, "software": False}
    with tifffile.TiffWriter(path) as file:
        for k, level in enumerate(levels):
            size = f"{width}x{height} [0,0 {width}x{height}] (256x256)"
            if k:
                size += f" -> {level.shape[1]}x{level.shape[0]}"
            file.write(level, description=f"{head}{size} Deflate{about}", **form, **_files.TILED)
            if k == 0:
                size = f"{width}x{height} -> {thumbnail.shape[1]}x{thumbnail.shape[0]} - {about}"
                file.write(thumbnail, description=head + size, rowsperstrip=16, **form)


def _write_ome(path: Path, image: NDArray[np.uint8], mpp: float) -> None:
    _files.write_ome_tif(path, image, mpp=mpp)


def _write_flat(path: Path, image: NDArray[np.uint8], mpp: float) -> None:
    import tifffile

    per_cm = (1e4 / mpp, 1e4 / mpp)
    tifffile.imwrite(
        path, image, photometric="rgb", rowsperstrip=64, compression="zlib", predictor=True, metadata=None,
        resolution=per_cm, resolutionunit="CENTIMETER",
    )  # fmt: skip


def _write_png(path: Path, image: NDArray[np.uint8], _: float) -> None:
    """Write a PNG, which keeps its resolution to itself."""
    from PIL import Image

    Image.fromarray(image).save(path, format="PNG", compress_level=1)

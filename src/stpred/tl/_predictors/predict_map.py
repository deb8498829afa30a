from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stpred._core import keys
from stpred._core.checks import InputError
from stpred._core.places import Place
from stpred._core.recipes.quality import QC
from stpred.inference.predictor import Predictor
from stpred.inference.raster import predict_raster

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stpred._core.specs import Posterior
    from stpred.models import Model


def predict_map(
    sdata: SpatialData,
    model: Model | str | Path | None = None,
    *,
    shapes_key: str | None = None,
    image_key: str | None = None,
    key_added: str | None = None,
    genes: Iterable[str] | None = None,
    encoder: Any = None,
    resolution_um: float | None = None,
    stride_um: float | None = None,
    preserve: str | None = None,
    qc: QC | bool | None = None,
    posterior: Posterior | None = None,
    out: str | Path | None = None,
    device: str | None = None,
    coordinate_system: str = keys.UM,
    inplace: bool = True,
) -> Any:
    """Predict expression for every pixel of an area from the H&E image, as an image whose channels are genes.

    Parameters
    ----------
    sdata, model, image_key, genes, encoder, stride_um, preserve, device, coordinate_system
        As in :func:`stpred.tl.predict`. A model that sees cells has no map.
    shapes_key
        Shapes that are covered: pixels are those with their centre in them. None: ``tissue``, found if need be.
    posterior
        Options of a generative model's posterior. Where they are given, and not with `preserve`, a second image,
        ``{key_added}_std``, holds the standard deviation of its draws.
    key_added
        Name of the image; None makes ``{shapes}_{model}_map``. An existing one is overwritten in memory with a warning.
    resolution_um
        Edge of the pixels in micrometres; None takes the model's patches. Models of whole tiles need it.
    qc
        As in :func:`stpred.tl.predict`: pixels that do not pass are NaN.
    out
        Store (new, or of SpatialData) to which the map is written block by block, so that it need not fit into memory.
        An interrupted call goes on where it was when it is called again. The object gets the map as a lazy image.
    inplace
        With False the image is returned and the object is not changed.

    Returns
    -------
    None, or with ``inplace=False`` the image element (of the means alone): multiscale, dims c, y, x with genes as
    channels, float32 on the model's output scale, NaN where nothing is predicted.
    ``sdata.attrs["stpred"]`` holds its provenance, a JSON string as in the tables of :func:`stpred.tl.predict`.

    Raises
    ------
    InputError
        As in :func:`stpred.tl.predict`; if pixels are smaller than those of the image or too many; if the map is larger
        than memory or disk (checked first), or another process is writing it.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(2, size_um=(400, 400), n_genes=20)
    >>> model = st.tl.train(slides, st.models.Student.Config(hidden=(32,), epochs=2), shapes_key="spots")
    >>> st.tl.predict_map(slides["donor0"], model, genes=["EPCAM"], resolution_um=50)
    >>> slides["donor0"].images["tissue_student_map"]["scale0"]["image"].sizes["c"]
    1
    """
    predictor = Predictor.of(
        model, genes=genes, encoder=encoder, device=device, posterior=posterior, stride_um=stride_um
    )
    if predictor.model.needs.cells:
        raise InputError(f"{predictor.name!r} sees cells, so it has no map; predict on the cells' shapes.")
    place = Place(shapes_key=shapes_key, image_key=image_key, coordinate_system=coordinate_system)
    return predict_raster(
        predictor,
        sdata,
        place,
        key_added=key_added,
        resolution_um=resolution_um,
        preserve=preserve,
        qc=QC.of_image(qc),
        out=out,
        inplace=inplace,
        with_std=_has_std(posterior) and preserve is None and (inplace or out is not None),
    )


def _has_std(posterior: Posterior | None) -> bool:
    """Return whether the standard deviation of draws is wanted: their options are given, and there are several."""
    return posterior is not None and posterior.n_samples > 1

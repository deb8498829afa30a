from __future__ import annotations

from typing import TYPE_CHECKING

from stpred import nuclei as detection
from stpred import regions
from stpred._core import keys
from stpred._core.checks import element_name

if TYPE_CHECKING:
    from spatialdata import SpatialData


def nuclei(
    sdata: SpatialData,
    *,
    method: str | detection.Segmenter = detection.DEFAULT,
    image_key: str | None = None,
    key_added: str | None = None,
    tissue_key: str | None = None,
    min_area_um2: float = detection.MIN_AREA_UM2,
    max_area_um2: float = 350.0,
    chunk_um: float = 512.0,
    device: str | None = None,
    coordinate_system: str = keys.UM,
) -> None:
    """Outline the nuclei on the H&E image.

    Parameters
    ----------
    sdata
        Object with a calibrated H&E image of 1 um per pixel or finer.
    method
        ``"builtin"``: image processing without a trained model. ``"network"``: a small network of stpred's own, with
        its weights in the package; better than the first on most fields, not on all (see Notes).
        Neither needs a download. Or any nucleus model of lazyslide-models by its name, such as ``"instanseg"``,
        ``"nulite"``, ``"histoplus"`` or ``"cellpose"``, wherever its weights can be had. Or a callable
        ``method(rgb, mpp=...)`` that turns (h, w, 3) uint8 pixels into an (h, w) image of labels; it gets fields of 0.5
        um per pixel, or of its attribute ``mpp``.
    image_key
        H&E image; None takes the one in the micrometre frame.
    key_added
        Name of the shapes; None makes ``nuclei``, with the frame's suffix in a frame other than ``"um"``.
    tissue_key
        Shapes to stay within; None looks everywhere that is not glass.
    min_area_um2, max_area_um2
        Bounds on the area of a nucleus.
    chunk_um
        Edge of the pieces in which the slide is worked on: larger ones take more memory. The result does not depend on
        it.
    device
        Torch device for a model; None takes a GPU where there is one.
    coordinate_system
        The slide's micrometre frame.

    Returns
    -------
    None. Writes ``sdata.shapes[key_added]``: polygons in micrometres from the top down, index ``nucleus_id``, with
    ``area_um2``, ``eccentricity`` (0 round, towards 1 long), ``haematoxylin`` and ``eosin`` (mean optical density).

    Raises
    ------
    InputError
        If there is no calibrated H&E image, it is coarser than 1 um per pixel, the method is unknown or its weights
        cannot be had, or no nucleus is found.

    Notes
    -----
    The network [1]_ works at 0.5 um per pixel and says of every pixel whether it is in a nucleus, how deep, and where
    the middle of that nucleus is. Pixels vote for middles [2]_; summits of the votes are seeds of a watershed. It was
    trained on the annotated H&E and purple-stained fields of stage 1 of the 2018 Data Science Bowl [3]_ and synthetic
    tissue, with strong changes of stain, scale (0.25 to 0.7 um per pixel) and focus, and sees optical densities between
    the slide's own ground and nuclei. F1 at an intersection over union of a half on groups of colours that were left
    out of training: 0.70 (built in 0.66) on 103 purple fields, 0.66 (0.64) on four pink ones; with one pink field left
    out at a time 0.70 (0.64); on purple fields of its training 0.81 (0.66). It also finds nuclei out of focus. As it is
    not better by 0.05 on every colour that it has not seen, it is not the default.

    The built-in method measures the slide's own glass and stain once. Its candidates are the connected regions of every
    threshold on the density of red; it keeps those whose edge is sharp and whose shape is close to an ellipse, and
    parts nuclei that touch where they narrow.

    References
    ----------
    .. [1] Ronneberger et al. 2015, MICCAI 18:234 (U-Net).
    .. [2] Cheng et al. 2020, CVPR, 12475 (Panoptic-DeepLab).
    .. [3] Caicedo et al. 2019, Nat. Methods 16:1247.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(size_um=(300, 300), n_genes=5)
    >>> st.pp.nuclei(slide)
    >>> slide.shapes["nuclei"].columns.tolist()
    ['area_um2', 'eccentricity', 'haematoxylin', 'eosin', 'geometry']
    """
    key_added = element_name(keys.in_frame(keys.NUCLEI, coordinate_system) if key_added is None else key_added)
    regions.check_shapes(sdata, key_added)
    frame = detection.outline(
        sdata,
        method=method,
        image_key=image_key,
        tissue_key=tissue_key,
        min_area_um2=min_area_um2,
        max_area_um2=max_area_um2,
        chunk_um=chunk_um,
        device=device,
        coordinate_system=coordinate_system,
    )
    regions.put_shapes(sdata, key_added, frame, coordinate_system=coordinate_system)

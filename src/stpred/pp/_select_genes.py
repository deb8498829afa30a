from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from stpred import data
from stpred._core import keys
from stpred._core.places import Place
from stpred._core.specs import GeneRule

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData


def select_genes(
    slides: SpatialData | Mapping[str, SpatialData],
    genes: GeneRule | str | Iterable[str] | None = None,
    *,
    shapes_key: str | None = None,
    table_key: str | None = None,
    image_key: str | None = None,
    coordinate_system: str = keys.UM,
) -> pd.DataFrame:
    """Choose genes by a rule; give it the training slides alone.

    Parameters
    ----------
    slides
        One object or a mapping of names to them, with raw counts. Genes that any of them lacks are left out.
    genes
        A :class:`~stpred.GeneRule`, a rule's name, or a list of symbols; None takes the 250 genes of highest mean
        count.
    shapes_key, table_key, image_key
        Region, its raw counts and H&E image; None finds them.
    coordinate_system
        The slides' micrometre frame.

    Returns
    -------
    DataFrame indexed by gene symbol, best first: the rule's score, ``mean``, ``rmax`` and ``n_slides``.

    Raises
    ------
    InputError
        If the slides share no gene, a listed gene is missing, the counts are no whole numbers, or the region is not
        found.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(size_um=(500, 500), n_genes=20)
    >>> chosen = st.pp.select_genes(slide, st.GeneRule("rmax", n=10), shapes_key="spots")
    >>> len(chosen)
    10
    """
    regions = [
        data.read_region(
            sdata,
            Place(shapes_key=shapes_key, image_key=image_key, table_key=table_key, coordinate_system=coordinate_system),
            slide=slide,
            measured=True,
        )
        for slide, sdata in data.as_slides(slides).items()
    ]
    return data.choose_genes(regions, GeneRule.parse(genes))

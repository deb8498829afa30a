"""Choice of the reader that serves what a model needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stpred._core.checks import InputError
from stpred.data._readers.cells import CellReader
from stpred.data._readers.pixels import PixelReader
from stpred.data._readers.reader import Context, Reader
from stpred.data._readers.tiles import TileReader
from stpred.data._readers.tokens import TokenReader

if TYPE_CHECKING:
    from stpred.data._regions import Region
    from stpred.encoders.base import Encoder
    from stpred.models.batch import Needs


def reader_for(
    region: Region,
    encoder: Encoder,
    needs: Needs,
    context: Context | None = None,
    *,
    stride_um: float | None = None,
) -> Reader:
    """Return what reads a region for a model, in training, validation and prediction alike.

    Parameters
    ----------
    region
        Locations of one slide.
    encoder
        What turns tiles into features.
    needs
        What the model asks for.
    context
        Where the model was trained; None in training.
    stride_um
        Of models of tokens: distance of the overlapping tiles that tokens are read in. None: half a tile where
        locations are finer than those of training, otherwise a whole one.
    """
    context = Context() if context is None else context
    if needs.tokens:
        return TokenReader.of(region, encoder, needs, context, stride_um=stride_um)
    if stride_um is not None:
        raise InputError("`stride_um` is for models of tokens (patches of tiles), such as 'student'.")
    if needs.pixel_grid:
        return PixelReader.of(region, encoder)
    return (CellReader if needs.cells else TileReader)(region, encoder, needs, context)

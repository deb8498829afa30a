"""Reading tiles in micrometres from an image of any pyramid and any affine placement.

A tile is a centre plus a :class:`~stpred.TileSpec`; it is axis-aligned in the micrometre frame, whatever rotation,
flip or scale places the image there. Tiles are read in a streaming order in which each image chunk is decoded once and
dropped after the last tile that touches it.
"""

from stpred.tiles._levels import Level
from stpred.tiles._pyramid import Pyramid, read_tiles, thumbnail_element
from stpred.tiles._resample import resample

__all__ = ["Level", "Pyramid", "read_tiles", "resample", "thumbnail_element"]

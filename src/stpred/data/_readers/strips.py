"""The strips in which a reader's features are embedded, for several processes that embed a slide together."""

from __future__ import annotations

from typing import Any

import numpy as np

from stpred.data._readers.tiles import TileReader
from stpred.data._strips import Strip, listed


def embedding_strips(reader: Any) -> list[Strip]:
    """Return the strips in which the features of a region are embedded, the same in every process.

    Several processes may embed them at the same time, each with ``strip.embed()``; what predicts or trains afterwards,
    or meanwhile, finds them in the cache.

    Parameters
    ----------
    reader
        What reads the region; see :func:`~stpred.data.reader_for`.

    Returns
    -------
    list
        Empty without ``stpred.settings.cache_dir``, of few locations, and of models of cells, tokens and pixels, whose
        features are embedded block by block.
    """
    if not isinstance(reader, TileReader) or getattr(reader.encoder, "dtype", np.float32) == np.uint8:
        return []
    with listed() as found:
        reader.batch(reader.region)
    return found


def embed_strip(reader: Any, number: int) -> bool:
    """Embed one of the :func:`embedding_strips`; False where another process is at it."""
    return embedding_strips(reader)[number].embed()

"""From SpatialData objects to what models are trained on and predict from."""

from stpred.data._cells_inside import cells_region, inside_of, looks_like_cells, with_cells
from stpred.data._feature_cache import used_entries
from stpred.data._features import (
    check_resolution,
    digest,
    embed,
    embed_dense,
    embed_parts,
    embed_region,
    embed_wide,
    stored_features,
)
from stpred.data._folds import (
    BLOCK_FOLDS,
    Fold,
    TooSmall,
    block_folds,
    blocks_of,
    choose_genes,
    common_lattice,
    donor_folds,
    far_from,
    refuse_copies,
)
from stpred.data._library import SharedLibrary, library_of, on_library, shared_library
from stpred.data._quality import ImageQuality, Quality, good_genes, judge, passing
from stpred.data._readers.choose import reader_for
from stpred.data._readers.footprints import median_width_um
from stpred.data._readers.pixels import PixelReader
from stpred.data._readers.reader import Context, Reader, Targets
from stpred.data._readers.strips import embed_strip, embedding_strips
from stpred.data._readers.surroundings import reach_um
from stpred.data._readers.tiles import with_needs, with_parts
from stpred.data._readers.tokens import TokenReader, masked_tokens, token_width_um
from stpred.data._regions import Region, as_slides, has_counts, read_image, read_region
from stpred.data._strips import Strip

__all__ = [
    "BLOCK_FOLDS",
    "Context",
    "Fold",
    "ImageQuality",
    "PixelReader",
    "Quality",
    "Reader",
    "Region",
    "SharedLibrary",
    "Strip",
    "Targets",
    "TokenReader",
    "TooSmall",
    "as_slides",
    "block_folds",
    "blocks_of",
    "cells_region",
    "check_resolution",
    "choose_genes",
    "common_lattice",
    "digest",
    "donor_folds",
    "embed",
    "embed_dense",
    "embed_parts",
    "embed_region",
    "embed_strip",
    "embed_wide",
    "embedding_strips",
    "far_from",
    "good_genes",
    "has_counts",
    "inside_of",
    "judge",
    "library_of",
    "looks_like_cells",
    "masked_tokens",
    "median_width_um",
    "on_library",
    "passing",
    "reach_um",
    "read_image",
    "read_region",
    "reader_for",
    "refuse_copies",
    "shared_library",
    "stored_features",
    "token_width_um",
    "used_entries",
    "with_cells",
    "with_needs",
    "with_parts",
]

"""From SpatialData objects to what models are trained on and predict from."""

from stpred.data._batches import make_batch, prediction_batches, reach_um, token_reader, with_needs, with_parts
from stpred.data._cells import cells_region, inside_of, looks_like_cells, with_cells
from stpred.data._features import digest, embed, embed_dense, embed_parts, embed_wide, stored_features
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
from stpred.data._regions import Region, as_slides, has_counts, read_image, read_region
from stpred.data._scene import scene_reader
from stpred.data._tokens import masked_tokens, median_width_um

__all__ = [
    "BLOCK_FOLDS",
    "Fold",
    "Region",
    "SharedLibrary",
    "TooSmall",
    "as_slides",
    "block_folds",
    "blocks_of",
    "cells_region",
    "choose_genes",
    "common_lattice",
    "digest",
    "donor_folds",
    "embed",
    "embed_dense",
    "embed_parts",
    "embed_wide",
    "far_from",
    "has_counts",
    "inside_of",
    "library_of",
    "looks_like_cells",
    "make_batch",
    "masked_tokens",
    "median_width_um",
    "on_library",
    "prediction_batches",
    "reach_um",
    "read_image",
    "read_region",
    "refuse_copies",
    "scene_reader",
    "shared_library",
    "stored_features",
    "token_reader",
    "with_cells",
    "with_needs",
    "with_parts",
]

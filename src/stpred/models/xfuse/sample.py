"""Training samples of XFuse."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass  # not frozen, for Fabric casts the tensors of a copy where precision is mixed
class PatchSample:
    """Patches of one or several slides, with the regions that are complete in them.

    Attributes
    ----------
    image
        (b, 3, h, w) scaled pixels.
    on_image
        (b, h, w) whether a pixel lies on its slide's image.
    pixel, region
        (p,) pixels that lie in regions, counted through all patches, and the region of each, ascending.
    owner
        (r,) patch that each region lies in.
    counts
        (r, n_genes) what was measured in it.
    measured
        (b, n_genes) whether the gene was measured on the patch's slide.
    slides
        Name of each patch's slide.
    n_patches
        Patches per epoch of every training slide.
    features
        (b, k, h, w) features of encoders beside the pixels; or None.
    """

    image: Tensor
    on_image: Tensor
    pixel: Tensor
    region: Tensor
    owner: Tensor
    counts: Tensor
    measured: Tensor
    slides: tuple[str, ...]
    n_patches: dict[str, int] = field(default_factory=dict)
    features: Tensor | None = None

"""What came of a registration."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stpred._core import keys
from stpred._core.checks import InputError, key_in, listing

if TYPE_CHECKING:
    from spatialdata import SpatialData

KIND = "registration"


def note_key(image_key: str) -> str:
    """Name, in an object's provenance, of where an image was registered; no element can be called so."""
    return f"{image_key}:{KIND}"


def read_note(sdata: SpatialData, image_key: str | None) -> tuple[str, dict[str, Any]]:
    """Return a registered image of an object, the only one where none is named, and the provenance of its place.

    Raises
    ------
    InputError
        If none is registered, or several are and none is named.
    """
    kept = sdata.attrs.get(keys.UNS, {})
    registered = [k for k in sdata.images if note_key(k) in kept]
    if image_key is None:
        if len(registered) != 1:
            raise InputError(
                "No image of the object was registered; run stpred.pp.register(sdata, moving, fixed) first."
                if not registered
                else f"{len(registered)} images were registered, {listing(registered)}; name one with `image_key`."
            )
        image_key = registered[0]
    if key_in(image_key, sdata.images, what="image", name="image_key") not in registered:
        raise InputError(
            f"Image {image_key!r} was not registered (registered: {listing(registered)}); run "
            f"stpred.pp.register(sdata, {image_key!r}, fixed) first."
        )
    return image_key, json.loads(kept[note_key(image_key)])


@dataclass(frozen=True)
class Registration:
    """Where an H&E image lies on measured data, and how far that can be believed.

    Attributes
    ----------
    moving, fixed
        The image, and the element it was registered to.
    affine
        (3, 3) from pixels of the image to micrometres of the frame.
    coordinate_system
        The frame in which the image is placed.
    mpp
        Micrometres per pixel.
    scale
        By how much a micrometre that was said of the image is longer in the frame; NaN where none was said.
    rotation_deg, mirrored
        How the image is turned, and whether it is a mirror image.
    score
        Agreement of both sides: root mean square of the correlations of their planes.
    null
        Scores of the best placements at wrong turns and mirror images of the same two.
    z
        Standard deviations of `null` by which the score is above its mean.
    convincing
        Whether no wrong placement comes near: z at least 5, and the score 1.25 times the best of `null`.
    overlap
        Dice coefficient of the outlines of the tissue.
    residual_um
        Median shift by which single parts of the tissue would agree still better; NaN where no part is clear.
    n_landmarks, landmark_error_um
        Pairs that were given, and their median distance after all; NaN without any.
    """

    moving: str
    fixed: str
    affine: NDArray[np.float64]
    coordinate_system: str
    mpp: float
    scale: float
    score: float
    null: tuple[float, ...]
    z: float
    convincing: bool
    overlap: float
    residual_um: float
    n_landmarks: int = 0
    landmark_error_um: float = float("nan")

    @property
    def mirrored(self) -> bool:
        """Whether the image is a mirror image."""
        return bool(np.linalg.det(self.affine[:2, :2]) < 0)

    @property
    def rotation_deg(self) -> float:
        """Angle of the image's rows in the frame, in (-180, 180]."""
        return float(np.degrees(np.arctan2(self.affine[1, 0], self.affine[0, 0])))

    def __repr__(self) -> str:
        mirror = ", mirrored" if self.mirrored else ""
        return (
            f"Registration of {self.moving!r} to {self.fixed!r} in {self.coordinate_system!r}: {self.mpp:.4g} um per "
            f"pixel, turned by {self.rotation_deg:.1f} degrees{mirror}; score {self.score:.2f} against "
            f"{max(self.null, default=float('nan')):.2f} of wrong placements (z {self.z:.1f}), outlines "
            f"{self.overlap:.2f}, residual {self.residual_um:.1f} um"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            "kind": KIND,
            **{k: v for k, v in vars(self).items() if k != "affine"},
            "affine": self.affine.tolist(),
            "rotation_deg": self.rotation_deg,
            "mirrored": self.mirrored,
        }

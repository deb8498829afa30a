"""Which channels a tif holds: whether three of them are red, green and blue, and how they become that."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

_COLOUR_SPACES = {
    0: "inverted greyscale (miniswhite)",
    4: "a transparency mask",
    5: "CMYK (separated inks)",
    6: "YCbCr without JPEG compression",
    8: "of colour space CIELab",
    9: "of colour space ICCLab",
    10: "of colour space ITULab",
    32803: "a colour filter array of a camera",
    32844: "of colour space LogL",
    32845: "of colour space LogLuv",
    34892: "linear raw of a camera",
}
_OF_FLUORESCENCE = ("Fluor", "EmissionWavelength", "ExcitationWavelength")
_JPEG = (6, 7, 34892, 33007)
_APERIO_YCBCR = 33003
"""Aperio's JPEG 2000 of YCbCr, which the decoder turns to RGB."""

_RGB_NAMES = (("r", "red", "rot", "rouge"), ("g", "green", "gruen", "grün", "vert"), ("b", "blue", "blau", "bleu"))
_NO_NAME = re.compile(
    r"(?:(?:channel|ch|c|image|series|sample|plane|(?:tl )?brightfield|bf|rgb)?[\s_:#.-]*[\d:_ -]*)", re.IGNORECASE
)
_FLUORESCENT = re.compile(
    r"dapi|hoechst|fitc|tritc|\bcy\s?[2357]|gfp|mcherry|texas.?red|alexa|\baf\s?\d{3}|opal|\bpe\b|fluor", re.IGNORECASE
)


class Colours(NamedTuple):
    """How decoded samples become red, green and blue.

    `kind` is ``"rgb"``, ``"palette"``, ``"alpha"`` (the fourth sample is opacity) or ``"premultiplied"`` (and colours
    are multiplied by it already); `palette` a table of 256 x 3.
    """

    kind: str = "rgb"
    palette: np.ndarray | None = None

    @property
    def has_alpha(self) -> bool:
        """Whether the fourth sample is opacity."""
        return self.kind in ("alpha", "premultiplied")

    def to_rgb(self, block: np.ndarray) -> np.ndarray:
        """Return (y, x, 3) pixels of decoded samples (y, x, n); what is transparent is laid on white."""
        if self.palette is not None:
            return self.palette[block[:, :, 0]]
        if not self.has_alpha:
            return block
        return on_white(block, premultiplied=self.kind == "premultiplied")


def on_white(rgba: np.ndarray, *, premultiplied: bool = False) -> np.ndarray:
    """Lay (y, x, 4) pixels on white; where they are opaque, their colours stay what they are."""
    rgb = np.ascontiguousarray(rgba[:, :, :3])
    alpha = rgba[:, :, 3]
    clear = alpha < 255
    if not clear.any():
        return rgb
    share = alpha[clear].astype(np.uint32)[:, None]
    colour = rgb[clear].astype(np.uint32)
    blended = (colour * 255 if premultiplied else colour * share) + 255 * (255 - share)
    rgb[clear] = np.minimum((blended + 127) // 255, 255).astype(np.uint8)
    return rgb


def colours_of(page: Any, sizes: dict[str, int], dtype: np.dtype) -> tuple[Colours | None, str]:
    """Return how a page's samples become RGB, or None and what the image is instead.

    Parameters
    ----------
    page
        A tifffile page.
    sizes
        Axis -> length of the scene's level, but for axes of one.
    dtype
        Of the samples.
    """
    photometric = int(page.photometric)
    channels = [n for a, n in sizes.items() if a not in "YX"]
    if len(channels) > 1 or not set(sizes) <= set("YXSC"):
        return None, f"a stack of axes {''.join(sizes)} and shape {tuple(sizes.values())}"
    if not channels and photometric == 3:
        return _palette(page, dtype)
    if not channels:
        kind = "greyscale (one channel)"
        return None, f"16-bit {kind}" if dtype == np.uint16 else kind
    if channels[0] not in (3, 4):
        return None, "two-channel" if channels[0] == 2 else f"{channels[0]}-channel"
    if channels[0] == 4 and ("C" in sizes or len(page.extrasamples) != 1 or photometric != 2):
        return None, "CMYK (separated inks)" if photometric == 5 else "four-channel"
    if dtype != np.uint8 or page.bitspersample != 8:
        return None, f"{page.bitspersample}-bit ({dtype})"
    space = _COLOUR_SPACES.get(photometric)
    if photometric == 6 and page.compression in _JPEG and page.planarconfig == 1 and "C" not in sizes:
        space = None
    if page.compression == _APERIO_YCBCR or "PhotometricInterpretation" not in page.tags:
        space = None  # decoded to RGB; not said, so that three samples speak for themselves
    if space is not None or photometric not in (0, 1, 2, 6):
        return None, space or f"of photometric interpretation {photometric}"
    if channels[0] == 3:
        return Colours(), ""
    return Colours({1: "premultiplied", 2: "alpha"}.get(int(page.extrasamples[0]), "unnamed")), ""


def _palette(page: Any, dtype: np.dtype) -> tuple[Colours | None, str]:
    table = np.asarray(page.colormap) if page.colormap is not None else np.empty((0, 0))
    if dtype != np.uint8 or table.ndim != 2 or len(table) != 3 or not 0 < table.shape[1] <= 256:
        return None, "a palette image whose palette is not of 256 colours"
    # 16 bits per colour, of which some programs fill 8
    bits = 0 if table.max(initial=0) < 256 else 8
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[: table.shape[1]] = np.right_shift(table.astype(np.uint32), bits).T
    return Colours("palette", palette), ""


def refused_by_name(tif: Any, page: Any, sizes: dict[str, int], image: Any) -> str | None:
    """Return what the file's header calls the three channels if that is not red, green and blue.

    Parameters
    ----------
    tif
        The opened ``TiffFile``.
    page
        A page of the scene.
    sizes
        Axis -> length of the scene's level.
    image
        The ``Image`` of the OME header that describes it, if any.
    """
    planes = "C" in sizes  # one page for each channel
    channels = _ome_channels(image) if image is not None else []
    if len(channels) == 1:  # of three samples, under any name
        name = f"{channels[0].get('Name', '')} {channels[0].get('Fluor', '')}".strip()
        return f"of one channel {name!r} in colours" if _FLUORESCENT.search(name) else None
    # other headers name pictures, profiles and slices beside channels: of a page of three samples they tell nothing
    names = [c.get("Name", "") for c in channels] or (_other_names(tif) if planes or tif.is_shaped else [])
    if problem := _named(names):
        return problem
    if planes and _all_rgb(names):
        return None
    if any(c.get(key) for c in channels for key in _OF_FLUORESCENCE):
        return f"of fluorescence channels {_channel_names(channels, _OF_FLUORESCENCE)}"
    if any(
        "fluorescence"
        in f"{c.get('ContrastMethod', '')} {c.get('IlluminationType', '')} {c.get('AcquisitionMode', '')}".lower()
        for c in channels
    ):
        return "of fluorescence channels (by its OME header)"
    colours = [c.get("Color") for c in channels]
    if len(colours) == 3 and None not in colours and len(set(colours)) > 1 and not _are_rgb_colours(colours):
        return f"of three channels shown in the colours {', '.join(map(_hex, colours))}"
    if not planes:
        return None
    if tif.is_imagej and not tif.is_ome and (tif.imagej_metadata or {}).get("mode") in ("composite", "color"):
        return "an ImageJ composite of three channels that are not named red, green and blue"
    if not (tif.is_ome or tif.is_imagej or tif.is_shaped):
        return "a stack of three channels, one page each, as scanners write fluorescence"
    return None


def _named(names: Sequence[str]) -> str | None:
    """Tell from names whether three channels are something else than red, green and blue."""
    meaningful = [name for name in names if not _NO_NAME.fullmatch(name.strip())]
    alike = len(meaningful) == 3 and len(set(meaningful)) == 1 and not _FLUORESCENT.search(meaningful[0])
    if not meaningful or alike or _all_rgb(names):  # three times the name of the picture
        return None
    return "of channels " + ", ".join(repr(name if len(name) <= 60 else name[:60] + "...") for name in names[:6])


def _all_rgb(names: Sequence[str]) -> bool:
    """Tell whether names are those of red, green and blue, in this order."""
    if any(_FLUORESCENT.search(name) for name in names):
        return False
    words = [set(re.split(r"[^a-zü]+", name.lower())) for name in names]
    return len(words) == 3 and all(word & set(known) for word, known in zip(words, _RGB_NAMES, strict=True))


def _ome_channels(image: Any) -> list[Any]:
    return [e for e in image.iter() if e.tag.rpartition("}")[2] == "Channel"]


def _channel_names(channels: Sequence[Any], keys: Sequence[str]) -> str:
    return ", ".join(next((repr(c.get(k)) for k in keys if c.get(k)), "?") for c in channels[:6])


def _are_rgb_colours(colours: Sequence[str]) -> bool:
    """Tell whether OME colours (signed 32-bit integers of RGBA) are red, green and blue."""
    return [_hex(c)[:6] for c in colours] == ["ff0000", "00ff00", "0000ff"]


def _hex(colour: str) -> str:
    try:
        return f"{int(colour) & 0xFFFFFFFF:08x}"
    except ValueError:
        return str(colour)[:20]


def _other_names(tif: Any) -> list[str]:
    """Return channel names of headers that are not OME; none where there are none."""
    if tif.is_qpi:
        matches = [
            re.search(r"<(Name|Biomarker)>\s*([^<]*?)\s*</\1>", p.description or "") for p in list(tif.pages)[:3]
        ]
        return [m[2] for m in matches if m is not None]
    if tif.is_imagej:
        labels = (tif.imagej_metadata or {}).get("Labels")
        return [str(label) for label in labels] if isinstance(labels, list) else []
    if tif.is_shaped:
        header: dict[str, Any] = (tif.shaped_metadata or ({},))[0]
        channel = header.get("Channel")
        first = channel.get("Name") if isinstance(channel, dict) else None
        names = next((n for n in (first, header.get("channel_names"), header.get("channels")) if n), None)
        return [str(n) for n in names] if isinstance(names, list) else []
    if tif.is_micromanager:
        names = ((tif.micromanager_metadata or {}).get("Summary") or {}).get("ChNames")
        return [str(n) for n in names] if isinstance(names, list) else []
    if tif.is_scn:
        return re.findall(r"<channelSettings[^>]*\bname=\"([^\"]*)\"", tif.pages.first.description or "")[:3]
    return []

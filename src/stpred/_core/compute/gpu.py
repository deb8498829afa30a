"""Too little memory on a GPU, said with what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from stpred._core.checks import InputError


@contextmanager
def enough_memory(doing: str, *, advice: str) -> Iterator[None]:
    """Turn torch's error of a full GPU into one that says what was being done and what helps.

    Raises
    ------
    InputError
        If the memory of the GPU does not suffice.
    """
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InputError(f"The GPU ran out of memory {doing}; {advice}.") from error

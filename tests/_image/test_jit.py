from __future__ import annotations

import numba
import pytest

from stpred._core.compute.jit import kernel


def twice(x: float) -> float:
    return 2 * x


def test_a_kernel_computes_and_lets_other_threads_run() -> None:
    compiled = kernel(twice)
    assert compiled(3.0) == 6.0
    assert compiled.targetoptions["nogil"]


def test_without_a_place_for_the_cache_it_is_compiled_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    njit = numba.njit

    def refuse(*, cache: bool = False, **options: bool) -> object:
        if cache:
            raise RuntimeError("cannot cache function 'twice': no locator available")
        return njit(**options)

    monkeypatch.setattr(numba, "njit", refuse)
    assert kernel(twice)(3.0) == 6.0

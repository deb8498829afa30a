from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stpred import InputError
from stpred.models.parts import attention
from stpred.models.parts.attention import local_attention

PATHS = ["compiled", "blocks"]


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    take(request.param, monkeypatch)
    return request.param


def take(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send `local_attention` one way, with blocks of a few targets and threads even for little work."""
    monkeypatch.setattr(attention, "_is_compiled", lambda _: path == "compiled")
    monkeypatch.setattr(attention, "_BLOCK", {"cpu": 200})
    monkeypatch.setattr(attention, "_MIN_THREADED", 0)


def case(
    *, n: int = 9, m: int = 13, k: int = 5, n_heads: int = 3, width: int = 4, dtype: torch.dtype = torch.float64
) -> tuple[list[Tensor], Tensor, int]:
    """Return query, key and value, neighbours with gaps, repeats and an empty row, and the number of heads."""
    rng = torch.Generator().manual_seed(0)
    floats = [torch.randn(rows, n_heads * width, generator=rng, dtype=torch.float64) for rows in (n, m, m)]
    neighbors = torch.randint(0, m, (n, k), generator=rng)
    neighbors[torch.rand(n, k, generator=rng) < 0.3] = -1
    neighbors[2] = -1
    neighbors[4] = 7
    return [x.to(dtype).requires_grad_() for x in floats], neighbors, n_heads


def by_hand(query: Any, key: Any, value: Any, neighbors: Any, n_heads: int) -> np.ndarray:
    width = query.shape[1] // n_heads
    out = np.zeros(query.shape)
    for i in range(len(query)):
        for h in range(n_heads):
            own = slice(h * width, (h + 1) * width)
            near = [j for j in neighbors[i] if j >= 0]
            scores = [math.exp(float(query[i, own] @ key[j, own]) / math.sqrt(width)) for j in near]
            for j, score in zip(near, scores, strict=True):
                out[i, own] += score / sum(scores) * value[j, own]
    return out


def plain(query: Tensor, key: Tensor, value: Tensor, neighbors: Tensor, n_heads: int) -> Tensor:
    """Return the same from rows gathered at once, for PyTorch's own gradients."""
    shape = (*neighbors.shape, n_heads, query.shape[1] // n_heads)
    k, v = (x[neighbors.clamp(min=0)].view(shape) for x in (key, value))
    scores = torch.einsum("nhw,nkhw->nkh", query.view(len(query), *shape[2:]), k) / math.sqrt(shape[3])
    missing = (neighbors < 0)[..., None]
    weights = scores.masked_fill(missing, -1e30).softmax(1).masked_fill(missing, 0)
    return torch.einsum("nkh,nkhw->nhw", weights, v).flatten(1)


def gradients(out: Tensor, floats: list[Tensor]) -> list[Tensor]:
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return list(torch.autograd.grad((out * weights).sum(), floats))


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("n_heads", "width"), [(3, 4), (1, 5), (2, 16)])
def test_equals_loops(path: str, n_heads: int, width: int, dtype: torch.dtype, within: float) -> None:
    floats, neighbors, _ = case(n_heads=n_heads, width=width, dtype=dtype)
    out = local_attention(*floats, neighbors, n_heads=n_heads)
    assert out.dtype == dtype
    want = by_hand(*(x.detach().double().numpy() for x in floats), neighbors.numpy(), n_heads)
    np.testing.assert_allclose(out.detach().numpy(), want, rtol=within, atol=within)
    exact = [x.detach().double().requires_grad_() for x in floats]
    wanted = gradients(plain(*exact, neighbors, n_heads), exact)
    for a, b in zip(gradients(out, floats), wanted, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=within, atol=10 * within)


def test_gradients_equal_differences(path: str) -> None:
    floats, neighbors, n_heads = case(n=5, m=8, k=3, n_heads=2)
    assert torch.autograd.gradcheck(lambda *x: local_attention(*x, neighbors, n_heads=n_heads), floats)


def test_both_paths_agree_on_many_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    floats, neighbors, n_heads = case(n=300, m=200, k=11, dtype=torch.float32)
    found = []
    for path in PATHS:
        take(path, monkeypatch)
        monkeypatch.setattr(attention, "_BLOCK", {"cpu": 20_000})
        out = local_attention(*floats, neighbors, n_heads=n_heads)
        found.append([out.detach(), *gradients(out, floats)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-5)


def test_the_path_follows_device_and_precision() -> None:
    assert attention._is_compiled(torch.zeros(1))
    assert attention._is_compiled(torch.zeros(1).double())
    assert not attention._is_compiled(torch.zeros(1).half())
    assert not attention._is_compiled(torch.zeros(1, device="meta"))


def test_order_and_padding_do_not_matter(path: str) -> None:
    floats, neighbors, n_heads = case()
    out = local_attention(*floats, neighbors, n_heads=n_heads)
    wider = torch.nn.functional.pad(neighbors, (1, 2), value=-1)[:, torch.randperm(8)]
    again = local_attention(*floats, wider, n_heads=n_heads)
    torch.testing.assert_close(again, out, rtol=1e-13, atol=1e-13)
    for a, b in zip(gradients(again, floats), gradients(out, floats), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_padding_at_the_end_changes_no_bit_when_compiled() -> None:
    floats, neighbors, n_heads = case()
    out = local_attention(*floats, neighbors, n_heads=n_heads)
    wider = torch.nn.functional.pad(neighbors, (0, 3), value=-1)
    assert torch.equal(local_attention(*floats, wider, n_heads=n_heads), out)


def test_a_target_does_not_depend_on_the_others(path: str) -> None:
    (query, key, value), neighbors, n_heads = case(n=20)
    out = local_attention(query, key, value, neighbors, n_heads=n_heads)
    some = torch.tensor([17, 3, 4])
    part = local_attention(query[some], key, value, neighbors[some], n_heads=n_heads)
    torch.testing.assert_close(part, out[some], rtol=1e-13, atol=1e-13)
    assert torch.equal(gradients(part, [query])[0][[0, 1, 2]], torch.zeros(3, query.shape[1]).double())


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_no_bit(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    take("compiled", monkeypatch)
    floats, neighbors, n_heads = case(n=40)
    found = []
    for count in (1, threads):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
        out = local_attention(*floats, neighbors, n_heads=n_heads)
        found.append([out.detach(), *gradients(out, floats)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_without_neighbours_it_is_zero(path: str) -> None:
    floats, neighbors, n_heads = case()
    with torch.no_grad():
        floats[1][0] = floats[2][0] = math.nan  # row 0 stands in for what is missing in no path
    neighbors[neighbors == 0] = -1
    out = local_attention(*floats, neighbors, n_heads=n_heads)
    assert torch.equal(out[2], torch.zeros_like(out[2]))
    assert out.isfinite().all()
    found = gradients(out, floats)
    assert all(x.isfinite().all() for x in found)
    assert not found[0][2].any()


@pytest.mark.parametrize(("n", "m", "k"), [(3, 4, 0), (0, 4, 2), (3, 0, 2)])
def test_nothing_to_attend_to(path: str, n: int, m: int, k: int) -> None:
    floats = [torch.ones(rows, 8, requires_grad=True) for rows in (n, m, m)]
    out = local_attention(*floats, torch.full((n, k), -1), n_heads=2)
    out.sum().backward()
    assert out.shape == (n, 8)
    assert not out.any()
    assert all(x.grad is not None and not x.grad.any() for x in floats)


def test_large_scores_do_not_overflow(path: str) -> None:
    (query, key, value), neighbors, n_heads = case(dtype=torch.float32)
    out = local_attention(query * 1e4, key, value, neighbors, n_heads=n_heads)
    assert out.isfinite().all()
    assert all(x.isfinite().all() for x in gradients(out, [query, key, value]))


def test_columns_of_a_wider_array(path: str) -> None:
    floats, neighbors, n_heads = case(n=13)
    joined = torch.cat([x.detach() for x in floats], 1).requires_grad_()
    out = local_attention(*joined.chunk(3, 1), neighbors, n_heads=n_heads)
    want = local_attention(*floats, neighbors, n_heads=n_heads)
    assert torch.equal(out, want)
    assert torch.equal(gradients(out, [joined])[0], torch.cat(gradients(want, floats), 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_sums_in_single(dtype: torch.dtype) -> None:
    floats, neighbors, n_heads = case(n=200, m=8, dtype=dtype)
    out = local_attention(*floats, neighbors, n_heads=n_heads)
    exact = [x.detach().double().requires_grad_() for x in floats]
    want = local_attention(*exact, neighbors, n_heads=n_heads)
    assert out.dtype == dtype
    # Only the results are rounded, once: half a unit in the last place.
    within = torch.finfo(dtype).eps / 2 * 1.01
    torch.testing.assert_close(out.double(), want, rtol=within, atol=1e-6)
    weights = torch.rand(out.shape, dtype=torch.float64).to(dtype)
    found, wanted = torch.autograd.grad(out, floats, weights), torch.autograd.grad(want, exact, weights.double())
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), b, rtol=within, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_gpu_equals_cpu(dtype: torch.dtype) -> None:
    floats, neighbors, n_heads = case(n=300, m=200, k=11, n_heads=4, width=8, dtype=dtype)
    there = [x.detach().cuda().requires_grad_() for x in floats]
    out = local_attention(*floats, neighbors, n_heads=n_heads)
    gpu = local_attention(*there, neighbors.cuda(), n_heads=n_heads)
    within = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(gpu.cpu(), out, rtol=within, atol=1e-5)
    found = torch.autograd.grad(gpu, there, torch.ones_like(gpu))
    for a, b in zip(found, torch.autograd.grad(out, floats, torch.ones_like(out)), strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=within, atol=1e-4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"key": torch.zeros(13, 11).double()}, r"\(13, 11\)"),
        ({"value": torch.zeros(12, 12).double()}, r"\(12, 12\)"),
        ({"query": torch.zeros(9, 3, 4).double()}, r"must be \(n, D\)"),
        ({"n_heads": 5}, "divide the 12 columns of `query`, got 5"),
        ({"n_heads": 0}, "`n_heads` must be a positive whole number"),
        ({"key": torch.zeros(13, 12)}, "floats of one precision.*float32"),
        ({"neighbors": torch.zeros(9, 5)}, "int64.*float32"),
        ({"neighbors": torch.zeros(8, 5, dtype=torch.int64)}, r"\(9, k\).*\(8, 5\)"),
        ({"neighbors": torch.full((9, 5), 13)}, "-1 to 12, got 13 to 13"),
        ({"neighbors": torch.full((9, 5), -2)}, "-1 to 12, got -2 to -2"),
        ({"neighbors": torch.zeros(9, 5, dtype=torch.int64, device="meta")}, "one device.*meta"),
    ],
)
def test_input_that_does_not_fit(changed: dict[str, Any], message: str) -> None:
    (query, key, value), neighbors, n_heads = case()
    given = {"query": query, "key": key, "value": value, "neighbors": neighbors, "n_heads": n_heads} | changed
    with pytest.raises(InputError, match=message):
        local_attention(**given)

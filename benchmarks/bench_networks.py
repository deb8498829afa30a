"""Networks of published sizes against their publications' way of computing them (``tests/models/naive.py``).

Ratios are of wall times of alternating runs, the least of each, so that what else the machine does bears on both. Peak
memory is what a process of its own needs beyond weights and features.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

N_LOCATIONS, N_NEIGHBORS, N_FEATURES, N_GENES = 5_000, 36, 768, 1_000
"""Of MISO."""
N_SPOTS, N_SPOT_FEATURES, N_SPOT_GENES, SLIDE_SPOTS = 1_024, 1_536, 5_000, 5_000
"""Of DeepSpot: a step takes its spots from slides of `SLIDE_SPOTS`."""
REPEATS = 3


def _naive() -> Any:
    path = Path(__file__).parents[1] / "tests" / "models" / "naive.py"
    spec = importlib.util.spec_from_file_location("stpred_naive", path)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def alternating(*calls: Callable[[], Any], repeats: int = REPEATS) -> list[float]:
    """Return the least wall time of each call, after one run of each to warm up."""
    for call in calls:
        call()
    spent: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, times in zip(calls, spent, strict=True):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    return [min(times) for times in spent]


def _hexagon(n: int) -> np.ndarray:
    """Return (n, 2) places of a lattice of 100 um pitch."""
    side = int(np.ceil(np.sqrt(n)))
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    xy = np.stack([x + 0.5 * (y % 2), y * np.sqrt(0.75)], axis=-1).reshape(-1, 2)
    return 100.0 * xy[:n]


class MISO:
    """5 000 locations, 36 neighbours, 768 features, 1 000 genes."""

    timeout = 1200

    def setup(self, n: int = N_LOCATIONS) -> None:
        import torch

        from stpred import models
        from stpred.models.parts.sample import gather

        naive = _naive()
        weights = naive.miso_weights(n_features=N_FEATURES, n_genes=N_GENES, plain_norms=True)
        config = models.MISO.Config(n_neighbors=N_NEIGHBORS, standardize="none")
        self.model = models.MISO(config, n_features=N_FEATURES, n_genes=N_GENES)
        naive.fill_miso(self.model, weights)
        self.batch = self.batch_of(n)
        self.sample = gather([self.batch], [None])
        self.naive, self.weights = naive, weights
        self.rows = torch.cat([self.sample.targets[:, None], self.sample.neighbors], dim=1)

    def batch_of(self, n: int) -> Any:
        from stpred import links
        from stpred.models import Batch

        rng = np.random.default_rng(0)
        xy = _hexagon(n)
        features = rng.normal(size=(n, N_FEATURES)).astype(np.float32)
        y = rng.poisson(1.0, (n, N_GENES)).astype(np.float32)
        around = links.knn(xy, xy, n_neighbors=N_NEIGHBORS)
        return Batch("slide", features, np.arange(n), np.arange(n), xy, links=around, y=y)

    def forward(self) -> Any:
        with self.model.predicting():
            return self.model(self.sample)

    def step(self) -> None:
        self.model.train()
        self.model.zero_grad(set_to_none=True)
        self.model.loss(self.model(self.sample), self.sample).backward()

    def naive_forward(self) -> Any:
        import torch

        with torch.inference_mode():
            return self.naive.naive_miso(self.weights, self.sample.features, self.rows)

    def naive_step(self) -> None:
        for value in self.weights.values():
            value.requires_grad_().grad = None
        output = self.naive.naive_miso(self.weights, self.sample.features, self.rows)
        self.model.loss(output, self.sample).backward()

    def track_forward_over_naive(self) -> float:
        """Prediction with linear maps multiplied out anew each time."""
        ours, theirs = alternating(self.forward, self.naive_forward)
        return ours / theirs

    def track_step_over_naive(self) -> float:
        """Forward, loss and gradients, without the optimiser."""
        ours, theirs = alternating(self.step, self.naive_step)
        return ours / theirs

    def track_folded_over_plain(self) -> float:
        """Prediction with layer norm and linear maps multiplied out, over each of them applied in turn."""
        from stpred.models import miso

        def plain() -> None:
            import torch

            with torch.inference_mode():
                self.model.eval()(self.sample)

        worth, miso._WORTH_FOLDING = miso._WORTH_FOLDING, 2**62
        try:
            folded, unfolded = alternating(self.forward, plain)
        finally:
            miso._WORTH_FOLDING = worth
        return folded / unfolded

    def track_compiled_attention_over_pytorch(self) -> float:
        """Attention and its gradients by the compiled kernels, over PyTorch's in blocks."""
        import torch

        from stpred.models.parts import attention

        generator = torch.Generator().manual_seed(0)
        inner, n_heads = self.model.config.inner, self.model.config.n_heads
        tables = [torch.randn(N_LOCATIONS, inner, generator=generator, requires_grad=True) for _ in range(3)]

        def attend() -> None:
            attention.local_attention(*tables, self.rows, n_heads=n_heads).sum().backward()

        def by_pytorch() -> None:
            is_compiled, attention._is_compiled = attention._is_compiled, lambda _: False
            try:
                attend()
            finally:
                attention._is_compiled = is_compiled

        compiled, blocks = alternating(attend, by_pytorch)
        return compiled / blocks

    def track_forward_seconds(self) -> float:
        return alternating(self.forward, repeats=2)[0]

    def track_step_seconds(self) -> float:
        return alternating(self.step, repeats=2)[0]

    def track_forward_memory_over_naive(self) -> float:
        return peak_mb("MISO", "forward") / peak_mb("MISO", "naive_forward")

    def track_step_memory_over_naive(self) -> float:
        return peak_mb("MISO", "step") / peak_mb("MISO", "naive_step")

    def track_step_memory_mb(self) -> float:
        return peak_mb("MISO", "step")

    def track_cost_of_a_location_at_50000_over_5000(self) -> float:
        """Of prediction in blocks: 1 is linear."""
        large = self.batch_of(10 * N_LOCATIONS)
        few, many = alternating(lambda: self.model.predict(self.batch), lambda: self.model.predict(large), repeats=2)
        return many / few / 10


class DeepSpot:
    """1 024 spots, nine sub-spots, six neighbours, 1 536 features, 5 000 genes."""

    timeout = 1200

    def setup(self) -> None:
        from stpred import models

        naive = _naive()
        weights = naive.deepspot_weights(n_features=N_SPOT_FEATURES, n_genes=N_SPOT_GENES)
        config = models.DeepSpot.Config(context_um=120.0, standardize="none")
        self.model = models.DeepSpot(config, n_features=N_SPOT_FEATURES, n_genes=N_SPOT_GENES)
        naive.fill_deepspot(self.model, weights)
        self.naive, self.weights = naive, weights
        # Prediction goes through a slide by place, training takes spots from anywhere on it.
        self.block = self._sample(np.arange(N_SPOTS))
        self.drawn = self._sample(np.sort(np.random.default_rng(1).choice(SLIDE_SPOTS, N_SPOTS, replace=False)))

    def _sample(self, rows: np.ndarray) -> Any:
        from stpred import links
        from stpred.models import Batch
        from stpred.models.parts.sample import gather

        n, rng = SLIDE_SPOTS, np.random.default_rng(0)
        xy = _hexagon(n)
        features = rng.normal(size=(10 * n, N_SPOT_FEATURES)).astype(np.float32)
        parts = links.Links(np.arange(n + 1) * 9, n + np.arange(9 * n))
        around = links.radius(xy, xy, radius_um=120.0)
        y = rng.normal(size=(n, N_SPOT_GENES)).astype(np.float32)
        whole = Batch("slide", features, np.arange(n), np.arange(n), xy, links=around, parts=parts, y=y)
        return gather([whole.take(rows)], [None])

    def _bags(self, sample: Any) -> tuple[Any, Any, Any]:
        """Return the features of spot, sub-spots and neighbours; borders are filled up with zeros, as published."""
        import torch

        features = torch.cat([sample.features, sample.features.new_zeros(1, N_SPOT_FEATURES)])
        return features[sample.targets][:, None], features[sample.parts], features[sample.neighbors]

    def predict(self) -> Any:
        with self.model.predicting():
            return self.model(self.block)

    def step(self) -> None:
        self.model.train()
        self.model.zero_grad(set_to_none=True)
        self.model.loss(self.model(self.drawn), self.drawn).backward()

    def naive_predict(self) -> Any:
        import torch

        with torch.inference_mode():
            return self.naive.naive_deepspot(self.weights, *self._bags(self.block))

    def naive_step(self) -> None:
        for value in self.weights.values():
            value.requires_grad_().grad = None
        dropout = {"phi_dropout": 0.3, "rho_dropout": 0.3, "output_dropout": 0.1}
        output = self.naive.naive_deepspot(self.weights, *self._bags(self.drawn), **dropout)
        self.model.loss(output, self.drawn).backward()

    def track_prediction_over_naive(self) -> float:
        ours, theirs = alternating(self.predict, self.naive_predict)
        return ours / theirs

    def track_step_over_naive(self) -> float:
        """Forward with dropout, loss and gradients, without the optimiser."""
        ours, theirs = alternating(self.step, self.naive_step)
        return ours / theirs

    def track_prediction_seconds(self) -> float:
        return alternating(self.predict, repeats=2)[0]

    def track_step_seconds(self) -> float:
        return alternating(self.step, repeats=2)[0]

    def track_step_memory_over_naive(self) -> float:
        return peak_mb("DeepSpot", "step") / peak_mb("DeepSpot", "naive_step")

    def track_step_memory_mb(self) -> float:
        return peak_mb("DeepSpot", "step")


def _unit(unit: str, *methods: Callable[..., float]) -> None:
    for method in methods:
        method.unit = unit  # type: ignore[attr-defined]


_unit("ratio", MISO.track_forward_over_naive, MISO.track_step_over_naive, MISO.track_forward_memory_over_naive)
_unit("ratio", MISO.track_step_memory_over_naive, MISO.track_cost_of_a_location_at_50000_over_5000)
_unit("ratio", MISO.track_folded_over_plain, MISO.track_compiled_attention_over_pytorch)
_unit("ratio", DeepSpot.track_prediction_over_naive, DeepSpot.track_step_over_naive)
_unit("ratio", DeepSpot.track_step_memory_over_naive)
_unit("s", MISO.track_forward_seconds, MISO.track_step_seconds)
_unit("s", DeepSpot.track_prediction_seconds, DeepSpot.track_step_seconds)
_unit("MB", MISO.track_step_memory_mb, DeepSpot.track_step_memory_mb)


@cache
def peak_mb(network: str, call: str) -> float:
    """Return by how much resident memory grows at most during a call, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.bench_networks", network, call]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    return float(done.stdout)


def _status_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def _measure_peak(network: str, call: str) -> float:
    import torch

    subject = {"MISO": MISO, "DeepSpot": DeepSpot}[network]()
    subject.setup()
    torch.randn(64, 64) @ torch.randn(64, 64)  # libraries make themselves at home on first use
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _status_mb("VmRSS")
    getattr(subject, call)()
    return _status_mb("VmHWM") - before


if __name__ == "__main__":
    print(_measure_peak(*sys.argv[1:]))

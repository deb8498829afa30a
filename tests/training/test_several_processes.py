"""Two processes share each step: the same result as one process with steps of twice the size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = """
import sys
import numpy as np
import torch
from lightning_fabric import Fabric
from stpred import training
from stpred.models import Batch, MLP

def batch(slide, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(64, 5)).astype(np.float32)
    y = (x @ rng.normal(size=(5, 3))).astype(np.float32)
    return Batch.of(x, slide=slide, y=y)

def work(fabric, size, path):
    config = MLP.Config(hidden=(8,), epochs=3, batch_size=size, standardize="none", lr=0.01, clip_norm=None)
    run = training.Run(fabric=fabric)
    model, _ = training.fit(MLP, config, [batch("a", 0), batch("b", 1)], groups=["a", "b"], run=run)
    if fabric.is_global_zero:
        np.save(path, model.layers[0].weight.detach().numpy())

if __name__ == "__main__":
    torch.set_num_threads(1)
    Fabric(accelerator="cpu", devices=2, strategy="ddp_fork").launch(work, 16, sys.argv[2])
    work(Fabric(accelerator="cpu", devices=1), 32, sys.argv[1])
"""


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    paths = [str(tmp_path / f"{n}.npy") for n in (1, 2)]
    done = subprocess.run([sys.executable, str(script), *paths], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    alone, together = (np.load(path) for path in paths)
    np.testing.assert_allclose(alone, together, atol=1e-5)

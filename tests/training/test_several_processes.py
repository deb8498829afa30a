"""Two processes share each step: the same result as one process with steps of twice the size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import stpred as st

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


PUBLIC = """
import json, sys
from pathlib import Path
import torch
from lightning_fabric import Fabric
import stpred as st
from stpred import testing
from stpred.models import MLP
from stpred.training import _checkpoint

def work(fabric, size, folder):
    folder = Path(folder)
    save = _checkpoint.Checkpoint.save
    def noted(self, *args):
        (folder / f"saved_by_{fabric.global_rank}").touch()
        return save(self, *args)
    _checkpoint.Checkpoint.save = noted
    slides = testing.small_cohort(3)
    one = testing.small_slide(seed=9)
    config = MLP.Config(hidden=(8,), max_epochs=4, patience=2, batch_size=size, lr=0.01, clip_norm=None)
    with st.settings.override(fabric=fabric, cache_dir=folder / "cache", checkpoint_dir=folder / "state"):
        model = st.tl.train(slides, config, shapes_key="spots", encoder=testing.MeanColour(), intervals=False)
    predicted = st.tl.predict(one, model, shapes_key="spots", inplace=False, encoder=testing.MeanColour(), device="cpu")
    said = {"id": model.id, "training": model.record.training, "var": model.record.var, "x": predicted.X.tolist()}
    (folder / f"rank{fabric.global_rank}.json").write_text(json.dumps(said, sort_keys=True))

if __name__ == "__main__":
    torch.set_num_threads(1)
    Fabric(accelerator="cpu", devices=2, strategy="ddp_fork").launch(work, 16, sys.argv[1])
    work(Fabric(accelerator="cpu", devices=1), 32, sys.argv[2])
"""


@pytest.mark.slow
def test_train_on_two_processes(tmp_path: Path) -> None:
    """All processes end with the same model, choose alike, and only the first writes states of training."""
    script = tmp_path / "script.py"
    script.write_text(PUBLIC)
    folders = [tmp_path / "two", tmp_path / "one"]
    for folder in folders:
        folder.mkdir()
    done = subprocess.run(
        [sys.executable, str(script), *map(str, folders)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = ((folders[0] / f"rank{i}.json").read_text() for i in (0, 1))
    assert first == second
    assert (folders[0] / "saved_by_0").exists()
    assert not (folders[0] / "saved_by_1").exists()
    alone = json.loads((folders[1] / "rank0.json").read_text())
    together = json.loads(first)
    np.testing.assert_allclose(together["x"], alone["x"], atol=0.15)
    a, b = np.ravel(together["x"]), np.ravel(alone["x"])
    assert np.corrcoef(a, b)[0, 1] > 0.99
    assert len(list((folders[0] / "cache").glob("*.npy"))) == 3


@pytest.mark.slow
def test_the_command_trains_in_two_processes(tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        st.datasets.toy_legacy_st(tmp_path / "slides" / name, size_um=(600, 600), n_genes=12, seed=seed)
    model = tmp_path / "model"
    command = [sys.executable, "-m", "stpred.cli", "train", str(tmp_path / "slides"), "-o", str(model)]
    options = ["--model", "mlp", "--encoder", "colour", "--devices", "2", "--device", "cpu"]
    options += ["--cache", str(tmp_path / "cache")]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Trained mlp on 2 slides") == 1
    assert st.models.load(model).record.training["n_donors"] == 2

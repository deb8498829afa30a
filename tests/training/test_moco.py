"""MoCo v3: its loss, moving average, optimiser and schedules against plain ones; interruptions; classifiers on top."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from stpred import InputError
from stpred.encoders import Augmentation, MoCo
from stpred.training import Run, _loop, _moco, feature_scores, pretrain, resumable
from stpred.training._checkpoint import State

COLOURS = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}


class Tiny(nn.Sequential):
    """The smallest network with everything that has a state: convolution, batch norm, dropout."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Dropout(0.1),
        )  # fmt: skip


def tiny(seed: int = 0) -> Tiny:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Tiny()


@pytest.fixture(scope="module")
def crops() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size=(70, 18, 18, 3), dtype=np.uint8)


def trained(crops: np.ndarray, *, seed: int = 0, run: Run | None = None, **kwargs: Any) -> tuple[Tiny, dict[str, Any]]:
    config = MoCo(**{"epochs": 3, "batch_size": 32, "hidden": 16, "projection": 8} | kwargs)
    net = tiny()
    where = {"width": 8, "size_px": 12, "config": config, "seed": seed, "run": run or Run(device="cpu")}
    return net, pretrain(net, crops, **COLOURS, **where)


def test_the_loss_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(7, 5)), rng.normal(size=(7, 5))
    for temperature in (1.0, 0.2):
        total = 0.0
        for i in range(7):
            alike = [q[i] @ k[j] / np.linalg.norm(q[i]) / np.linalg.norm(k[j]) / temperature for j in range(7)]
            total -= math.log(math.exp(alike[i]) / sum(map(math.exp, alike)))
        found = _moco.contrast(torch.tensor(q), torch.tensor(k), temperature=temperature)
        assert float(found) == pytest.approx(2 * temperature * total / 7, rel=1e-5)


def test_the_loss_is_symmetric_and_no_gradient_reaches_the_second_encoder() -> None:
    model = _moco.MomentumContrast(tiny().eval(), width=8, config=MoCo(hidden=16, projection=8))
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    one, two = torch.rand(2, 6, 3, 12, 12).unbind()
    loss = model(one, two)
    assert float(loss.detach()) == pytest.approx(float(model(two, one).detach()), rel=1e-4)
    loss.backward()
    assert all(p.grad is None for p in model.slow.parameters())
    assert all(p.grad is not None for p in [*model.encoder.parameters(), *model.predictor.parameters()])
    # No scale and shift on the projector's last norm, none at all on the predictor's.
    assert not model.encoder[1][-1].affine
    assert isinstance(model.predictor[-1], nn.Linear)


def test_the_second_encoder_follows_slowly() -> None:
    model = _moco.MomentumContrast(tiny(), width=8, config=MoCo(hidden=16, projection=8))
    before = copy.deepcopy(list(model.slow.parameters()))
    with torch.no_grad():
        for p in model.encoder.parameters():
            p.add_(1.0)
    model.follow(0.9)
    for slow, old, fast in zip(model.slow.parameters(), before, model.encoder.parameters(), strict=True):
        torch.testing.assert_close(slow, 0.9 * old + 0.1 * fast)
    model.follow(1.0)
    torch.testing.assert_close(next(model.slow.parameters()), 0.9 * before[0] + 0.1 * next(model.encoder.parameters()))


def test_lars_against_two_steps_by_hand() -> None:
    rng = np.random.default_rng(0)
    w, b = rng.normal(size=(3, 4)), rng.normal(size=3)
    grads = [(rng.normal(size=(3, 4)), rng.normal(size=3)) for _ in range(2)]
    weight, bias = nn.Parameter(torch.tensor(w)), nn.Parameter(torch.tensor(b))
    optimizer = _moco.LARS([weight, bias], lr=0.5, weight_decay=0.1, momentum=0.9, trust=0.01)
    vw, vb = np.zeros((3, 4)), np.zeros(3)
    for gw, gb in grads:
        weight.grad, bias.grad = torch.tensor(gw), torch.tensor(gb)
        optimizer.step()
        full = gw + 0.1 * w
        vw = 0.9 * vw + full * (0.01 * np.linalg.norm(w) / np.linalg.norm(full))
        vb = 0.9 * vb + gb  # neither weight decay nor trust
        w, b = w - 0.5 * vw, b - 0.5 * vb
        np.testing.assert_allclose(weight.detach().numpy(), w, rtol=1e-10)
        np.testing.assert_allclose(bias.detach().numpy(), b, rtol=1e-10)
    nothing = nn.Parameter(torch.zeros(2, 2))
    nothing.grad = torch.ones_like(nothing)
    _moco.LARS([nothing], lr=0.5, trust=0.01).step()
    assert torch.equal(nothing.detach(), torch.full((2, 2), -0.5))  # of no length: a plain step


def test_schedules() -> None:
    config = MoCo(epochs=100, warmup_epochs=10, momentum_schedule="cosine")
    assert config.base_lr(512) == pytest.approx(1.2)
    assert MoCo(optimizer="adamw").base_lr(512) == pytest.approx(3e-4)
    rates = [config.lr_at(e, tiles_per_step=256) for e in (0, 5, 10, 55, 100)]
    assert rates == pytest.approx([0, 0.3, 0.6, 0.3, 0], abs=1e-9)
    assert [config.momentum_at(e) for e in (0, 50, 100)] == pytest.approx([0.99, 0.995, 1.0])
    assert MoCo(epochs=100).momentum_at(50) == 0.99
    assert (MoCo(epochs=150).warmup, MoCo(epochs=20).warmup) == (10, 2)


@pytest.mark.parametrize("optimizer", ["lars", "adamw"])
def test_an_interrupted_training_goes_on_to_the_same_result(
    crops: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    whole, facts = trained(crops, optimizer=optimizer, epochs=4)
    monkeypatch.setattr(_loop, "SAVE_EVERY_S", 0.0)
    done: list[int] = []
    save = State.save

    def interrupt(self: State, checkpoint: Any) -> None:
        save(self, checkpoint)
        done.append(len(self.losses))
        if len(done) == 2:
            raise KeyboardInterrupt

    run = Run(device="cpu", checkpoint=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(State, "save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            trained(crops, optimizer=optimizer, epochs=4, run=run)
        with resumable(run):
            again, same = trained(crops, optimizer=optimizer, epochs=4, run=run)
    assert done == [1, 2, 3, 4]
    assert same["loss"] == facts["loss"]
    for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert not list(tmp_path.iterdir()) if tmp_path.exists() else True


def test_another_training_does_not_take_up_a_state(crops: np.ndarray, tmp_path: Path) -> None:
    trained(crops, run=Run(device="cpu", checkpoint=tmp_path))
    for n, changed in enumerate(({"seed": 1}, {"temperature": 0.2}, {"augmentation": Augmentation(flip=True)})):
        trained(crops, run=Run(device="cpu", checkpoint=tmp_path), **changed)
        assert len(list(tmp_path.iterdir())) == n + 2
    trained(crops[::-1], run=Run(device="cpu", checkpoint=tmp_path))
    assert len(list(tmp_path.iterdir())) == 5


def test_seeds_decide_and_the_global_random_state_is_left_alone(crops: np.ndarray) -> None:
    before, legacy = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, facts = trained(crops)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (np.random.get_state()[1] == legacy).all()  # noqa: NPY002
    again, other = trained(crops)[0], trained(crops, seed=1)[0]
    assert torch.equal(first[0].weight, again[0].weight)
    assert not torch.equal(first[0].weight, other[0].weight)
    assert not torch.equal(first[0].weight, tiny()[0].weight)
    # 70 tiles in steps of 32: what is left over is dropped.
    assert (facts["tiles_per_step"], facts["steps"], len(facts["loss"])) == (32, 6, 3)
    assert facts["chance_loss"] == pytest.approx(4 * math.log(32), rel=1e-4)


def test_what_cannot_be_trained(crops: np.ndarray) -> None:
    assert trained(crops[:20], epochs=1)[1]["tiles_per_step"] == 20
    with pytest.raises(InputError, match="There are 15 tiles to learn from; 16 or more are needed"):
        trained(crops[:15])
    with pytest.raises(InputError, match=r"The loss became nan in epoch \d+, step \d+; lower `lr`"):
        trained(crops, optimizer="adamw", lr=1e30, warmup_epochs=0, epochs=5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "`epochs` must be a positive whole number"),
        ({"optimizer": "sgd"}, r"`optimizer` must be one of \['lars', 'adamw'\], got 'sgd'"),
        ({"momentum": 1.5}, "`momentum` must be a number, at least 0 and at most 1, got 1.5"),
        ({"momentum": None}, "`momentum` must be a number"),
        ({"temperature": 0}, "`temperature` must be a positive number"),
        ({"momentum_schedule": "linear"}, "`momentum_schedule` must be one of"),
        ({"warmup_epochs": -1}, "`warmup_epochs` must be a number, at least 0, got -1"),
        ({"lr": "high"}, "`lr` must be a positive number"),
        ({"augmentation": {"stain": 0.3}}, "`augmentation` must be stpred.encoders.Augmentation"),
    ],
)
def test_what_the_settings_refuse(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MoCo(**wrong)


def test_measures_without_labels() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 8)).astype(np.float32)
    assert feature_scores.effective_rank(x) == pytest.approx(8, abs=0.1)
    assert feature_scores.effective_rank(np.outer(x[:, 0], np.ones(8)).astype(np.float32)) == pytest.approx(1, abs=1e-3)
    assert feature_scores.effective_rank(np.ones((5, 3), np.float32)) == 0
    assert feature_scores.recognition(x, x + 0.001 * rng.normal(size=x.shape).astype(np.float32)) > 0.999
    assert feature_scores.recognition(x, rng.permutation(x)) == pytest.approx(0.5, abs=0.05)
    flat = np.ones((50, 8), np.float32)
    assert feature_scores.recognition(flat, flat) == 0.5  # all alike: no better than guessing
    assert feature_scores.spread(flat) == 0
    assert feature_scores.spread(x) == pytest.approx(1, abs=0.01)


SCRIPT = """
import sys
import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn
from stpred.encoders import MoCo
from stpred.training import Run, pretrain

def work(fabric):
    crops = np.random.default_rng(0).integers(0, 256, size=(70, 18, 18, 3), dtype=np.uint8)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    config = MoCo(epochs=2, batch_size=16, hidden=16, projection=8, optimizer="adamw", lr=0.01)
    facts = pretrain(
        net, crops, width=8, size_px=12, config=config, mean=(0.5,) * 3, std=(0.2,) * 3, seed=0, run=Run(fabric=fabric)
    )
    assert (facts["tiles_per_step"], facts["steps"]) == (32, 4)
    np.save(f"{sys.argv[1]}/{fabric.global_rank}.npy", net[0].weight.detach().numpy())
    np.save(f"{sys.argv[1]}/loss{fabric.global_rank}.npy", facts["loss"])

if __name__ == "__main__":
    torch.set_num_threads(1)
    Fabric(accelerator="cpu", devices=2, strategy="ddp_fork").launch(work)
"""


@pytest.mark.slow
def test_two_processes_share_each_step_and_stay_the_same(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("", "loss"):
        first, second = (np.load(tmp_path / f"{name}{rank}.npy") for rank in (0, 1))
        np.testing.assert_array_equal(first, second)
    # Each view has to be found among the tiles of both: the loss starts near that of guessing among 32.
    assert np.load(tmp_path / "loss0.npy")[0] == pytest.approx(4 * math.log(32), abs=1.0)

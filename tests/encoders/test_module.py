from __future__ import annotations

import pickle

import numpy as np
import pytest

import stpred as st
from stpred import InputError, encoders, settings

torch = pytest.importorskip("torch")

TILE = st.TileSpec(0.5, 16)


class Tiny(torch.nn.Module):
    """A convolution, batch norm and dropout: wrong in training mode."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv = torch.nn.Conv2d(3, 5, 3)
        self.norm = torch.nn.BatchNorm2d(5)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.norm(self.conv(x))).mean(dim=(2, 3))


@pytest.fixture
def tiles() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size=(7, 16, 16, 3), dtype=np.uint8)


def test_matches_the_module_by_hand(tiles) -> None:
    module = Tiny()
    mean, std = (0.7, 0.5, 0.6), (0.2, 0.3, 0.25)
    encoder = encoders.get(module, tile=TILE, mean=mean, std=std, device="cpu")
    assert encoder.card.width == 5
    assert (encoder.card.name, encoder.card.tile, encoder.card.dense) == ("tiny", TILE, None)
    by_hand = (tiles.transpose(0, 3, 1, 2) / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    with torch.no_grad():
        expected = Tiny().eval()(torch.tensor(by_hand, dtype=torch.float32)).numpy()
    features = encoder.encode(tiles)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected, atol=1e-5)
    # The same preparation, as a transform of a single PIL image.
    own = encoders.get(
        module,
        tile=TILE,
        device="cpu",
        transform=lambda p: torch.tensor(
            (np.asarray(p).transpose(2, 0, 1) / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
        ).float(),
    )
    np.testing.assert_allclose(own.encode(tiles), features, atol=1e-5)


def test_rows_do_not_depend_on_the_batch(tiles, monkeypatch) -> None:
    encoder = encoders.get(Tiny(), tile=TILE, device="cpu")
    together = encoder.encode(tiles)
    monkeypatch.setattr(settings, "batch_size", 2)
    np.testing.assert_allclose(encoder.encode(tiles), together, atol=1e-6)
    np.testing.assert_allclose(np.concatenate([encoder.encode(t[None]) for t in tiles]), together, atol=1e-6)
    np.testing.assert_allclose(encoder.encode(tiles[::-1])[::-1], together, atol=1e-6)
    assert encoder.encode(tiles[:0]).shape == (0, 5)


def test_nothing_else_changes(tiles) -> None:
    module = Tiny()
    module.norm.eval()  # partly frozen, as in fine-tuning
    modes = [m.training for m in module.modules()]
    before = {k: v.clone() for k, v in module.state_dict().items()}
    seed = torch.random.get_rng_state()
    encoders.get(module, tile=TILE, device="cpu").encode(tiles)
    assert [m.training for m in module.modules()] == modes
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), seed)
    assert torch.is_grad_enabled()


def test_revision_follows_the_weights() -> None:
    first, second = Tiny(), Tiny()
    cards = [encoders.get(m, tile=TILE, device="cpu").card for m in (first, second)]
    assert cards[0] == cards[1]
    with torch.no_grad():
        second.conv.bias += 1e-3
    assert encoders.get(second, tile=TILE, device="cpu").card.revision != cards[0].revision


def test_bad_modules_are_named(tiles) -> None:
    with pytest.raises(InputError, match=r"A module needs `tile=`.*\(Tiny\)"):
        encoders.get(Tiny())
    with pytest.raises(InputError, match="`mean` and `std` together"):
        encoders.get(Tiny(), tile=TILE, mean=(0.5, 0.5, 0.5))
    with pytest.raises(InputError, match=r"'conv2d' must return a tensor of 2 dimensions .* got \(1, 4, 14, 14\)"):
        encoders.get(torch.nn.Conv2d(3, 4, 3), tile=TILE, device="cpu")
    with pytest.raises(InputError, match="'nowhere' is not a torch device"):
        encoders.get(Tiny(), tile=TILE, device="nowhere")
    with pytest.raises(InputError, match="is not there; torch sees"):
        encoders.get(Tiny(), tile=TILE, device="cuda:99")
    encoder = encoders.get(Tiny(), tile=TILE, device="cpu")
    with pytest.raises(InputError, match=r"uint8 tiles of shape \(n, 16, 16, 3\), got float64"):
        encoder.encode(tiles / 255)
    with pytest.raises(InputError, match=r"got uint8 of shape \(7, 8, 16, 3\)"):
        encoder.encode(tiles[:, :8])
    with pytest.raises(InputError, match="'tiny' has no dense tokens"):
        encoder.encode_dense(tiles)


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_pickles_are_not_run(tmp_path) -> None:
    from stpred.encoders.modules import read_weights

    path = tmp_path / "evil.pt"
    path.write_bytes(pickle.dumps(Trap(tmp_path / "sprung"), protocol=2))
    with pytest.raises(InputError, match=r"evil.pt' cannot be read as a file of tensors"):
        read_weights(path)
    assert not (tmp_path / "sprung").exists()
    torch.save(Tiny(), tmp_path / "whole.pt")
    with pytest.raises(InputError, match="not a whole module"):
        read_weights(tmp_path / "whole.pt")
    with pytest.raises(InputError, match="There is no file or folder"):
        read_weights(tmp_path / "absent.pt")
    with pytest.raises(InputError, match=r"has none of \['model.safetensors', 'pytorch_model.bin'\]"):
        read_weights(tmp_path)
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    with pytest.raises(InputError, match="holds no state dict"):
        read_weights(tmp_path / "empty.pt")

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import stpred as st
from stpred import InputError, encoders
from stpred.encoders import registry


class Doubler:
    """The smallest thing that is an encoder."""

    def __init__(self, *, tile: st.TileSpec | None = None, factor: float = 2.0) -> None:
        self.card = encoders.EncoderCard("doubler", tile or st.TileSpec(1.0, 8), 1)
        self.factor = factor

    def encode(self, tiles: np.ndarray) -> np.ndarray:
        return (self.factor * tiles.mean(axis=(1, 2, 3))[:, None]).astype(np.float32)

    def to(self, device: str | None) -> Doubler:
        return self


@pytest.fixture
def registered(monkeypatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    encoders.register("doubler", Doubler)


def test_import_is_light() -> None:
    code = "import sys, stpred.encoders as e; print([m for m in ('torch', 'timm', 'skimage') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_built_in_and_registered_names(registered) -> None:
    assert {"colour", "morphology", "intensity", "doubler"} <= set(encoders.list())
    assert encoders.list("doub*") == ["doubler"]
    assert encoders.get("morphology").card.name == "morphology"
    made = encoders.get("doubler", tile=st.TileSpec(0.5, 4), factor=3.0)
    assert made.card.tile == st.TileSpec(0.5, 4)
    assert made.encode(np.full((1, 4, 4, 3), 5, np.uint8))[0, 0] == 15
    assert encoders.get(made) is made


def test_names_cannot_be_taken_twice(registered) -> None:
    for name in ("morphology", "doubler"):
        with pytest.raises(InputError, match=f"name '{name}' is taken"):
            encoders.register(name, Doubler)
    with pytest.raises(InputError, match="without '/'"):
        encoders.register("timm/mine", Doubler)


def test_unknown_names_show_close_ones() -> None:
    with pytest.raises(
        InputError, match=r"No encoder named 'morphologie'; did you mean \['morphology', 'morphology-mul"
    ):
        encoders.get("morphologie")
    with pytest.raises(
        InputError, match=r"available: \['cells-imagenet', .*'colour', .*'morphology', .*'timm/<any timm model>'"
    ):
        encoders.get("qqqq")


def test_what_get_refuses(registered) -> None:
    with pytest.raises(InputError, match="'morphology' has no weights"):
        encoders.get("morphology", weights="x.safetensors")
    with pytest.raises(InputError, match="'doubler' was loaded already, for TileSpec"):
        encoders.get(Doubler(), tile=st.TileSpec(0.5, 224))
    with pytest.raises(
        InputError, match=r"a name, an encoder, a torch.nn.Module or a list of these, got a class \(Doubler\)"
    ):
        encoders.get(Doubler)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="go with the name of an encoder, not with a Doubler"):
        encoders.get(Doubler(), pretrained=False)
    with pytest.raises(InputError, match="got a int"):
        encoders.get(3)  # type: ignore[arg-type]

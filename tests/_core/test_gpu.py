"""A full GPU is an error that says what helps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import stpred as st
from stpred import InputError
from stpred.testing import small_cohort


class Full(torch.nn.Module):
    """A network whose device is full, once it is said to be."""

    is_full = False

    def forward(self, x: Any) -> Any:
        if self.is_full:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return x.mean(dim=(2, 3))


def test_tiles_that_do_not_fit_are_told_of_the_batch_size() -> None:
    network = Full()
    encoder = st.encoders.get(network, tile=st.TileSpec(mpp=0.5, size_px=8), name="full")
    network.is_full = True
    message = r"GPU ran out.*'full'.*batch_size \(16\)"
    with st.settings.override(batch_size=16), pytest.raises(InputError, match=message):
        encoder.encode(np.full((2, 8, 8, 3), 9, np.uint8))


def test_a_step_that_does_not_fit_is_told_of_the_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    from stpred.models import MLP

    def full(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(MLP, "loss", full)
    config = MLP.Config(epochs=1, hidden=(4,))
    with pytest.raises(InputError, match="GPU ran out of memory in a step of .*`batch_size`"):
        st.tl.train(small_cohort(2), config, groups="slide", shapes_key="spots", encoder="colour")

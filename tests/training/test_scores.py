from __future__ import annotations

import numpy as np
import pytest

import stpred as st
from stpred import InputError
from stpred.models import MLP, STNet
from stpred.training._scores import Curve, best_epoch, criterion_of


def test_settings_say_what_chooses_the_epochs() -> None:
    """Correlation peaks in the third epoch, the error is least in the first."""
    pearson = np.array([0.1, 0.2, 0.3, 0.2], np.float32)[:, None, None].repeat(5, axis=2)
    error = np.array([0.5, 0.6, 0.7, 0.8], np.float32)[:, None].repeat(5, axis=1)
    curve = Curve(["a"], np.array([9]), pearson, pearson, error)
    published, relative = STNet.Config(), STNet.Config(criterion="pearson")
    assert best_epoch([curve], criterion_of(STNet, published)) == 1
    assert best_epoch([curve], criterion_of(STNet, relative)) == 3
    assert best_epoch([curve], criterion_of(MLP, MLP.Config())) == 3
    with pytest.raises(InputError, match=r"`criterion` must be one of \['mse', 'pearson'\], got 'loss'"):
        st.models.STNet.Config(criterion="loss")

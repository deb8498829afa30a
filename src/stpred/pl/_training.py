from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core.checks import InputError
from stpred.pl._figure import array, finish, plain

if TYPE_CHECKING:
    from numpy.typing import NDArray

CURVES = {"loss": "training loss", "pearson": "mean held-out Pearson"}


def training(model: Any, *, save: str | Path | None = None) -> NDArray[Any]:
    """Draw how a network learned: its loss, and its scores on slides that it did not learn from.

    Parameters
    ----------
    model
        A trained model, of which ``record.training["curve"]`` holds a value per epoch of ``"loss"``, of ``"pearson"``,
        or of both.
    save
        File to write the figure to.

    Returns
    -------
    (1,) or (2,) axes. A line marks the number of epochs that the model was trained for.

    Raises
    ------
    InputError
        If the model is solved in closed form and has no epochs, or was saved without its curve.

    Examples
    --------
    >>> import stpred as st
    >>> cohort = st.datasets.toy_cohort(2, size_um=(500, 500), n_genes=20)
    >>> model = st.tl.train(cohort, st.models.MLP.Config(epochs=3), shapes_key="spots")
    >>> model.record.training["curve"] = {"loss": [0.9, 0.6, 0.5], "pearson": [0.1, 0.3, 0.3]}
    >>> len(st.pl.training(model))
    2
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    record = getattr(model, "record", None)
    if record is None:
        raise InputError(
            f"`model` must be a trained model, got {type(model).__name__}; read a folder with stpred.models.load."
        )
    curve = record.training.get("curve") or {}
    drawn = {k: np.asarray(curve[k], dtype=np.float64) for k in CURVES if len(curve.get(k) or ())}
    if not drawn and not hasattr(model.config, "epochs"):
        raise InputError(
            f"Model {record.name!r} ({model.family!r}) is solved in closed form, so it has no epochs to draw."
        )
    if not drawn:
        raise InputError(f"Model {record.name!r} was saved without its curve; train it again to draw one.")
    _, axes = plt.subplots(1, len(drawn), figsize=(4.6 * len(drawn), 3.4), squeeze=False, layout="constrained")
    chosen = record.training.get("epochs")
    for ax, (name, values) in zip(axes[0], drawn.items(), strict=True):
        epochs = np.arange(1, len(values) + 1)
        ax.plot(epochs, values, color="C0", marker="o" if len(values) < 30 else None, markersize=3)
        if isinstance(chosen, int) and 1 <= chosen <= len(values):
            ax.axvline(chosen, color="0.5", linestyle="--", linewidth=0.8, label=f"{chosen} epochs")
            ax.legend(frameon=False, fontsize=8)
        ax.set(xlabel="epoch", ylabel=CURVES[name])
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        plain(ax)
    return finish(array(list(axes[0])), save)

"""Settings of a session; nothing here acts at import."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stpred._core.checks import InputError, listing, one_of, positive, whole

if TYPE_CHECKING:
    from lightning_fabric import Fabric

PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")


@dataclass
class Settings:
    """What a user may change for a session; unknown names and impossible values are refused.

    Attributes
    ----------
    progress
        Show progress bars. None shows them on a terminal and in notebooks only.
    batch_size
        Tiles that an encoder sees at once.
    max_upsampling
        How much finer than its own resolution an image may be read before it is refused (2 = a 1 um/px image may feed a
        0.5 um/px encoder). Results say in their provenance that an image was read finer than it is.
    mpp_tolerance
        Relative difference of two sources of resolution that is reported.
    cache_dir
        Folder in which features are kept between sessions, and in which training leaves them, of cohorts that do not
        fit into memory; None keeps none.
    checkpoint_dir
        Folder in which unfinished trainings and finished folds of cross-validations are kept, each by a fingerprint of
        everything that decides its result; None keeps none. Called again with the same arguments, an interrupted
        training goes on from there to the same result; its files go when it is done, those of folds stay.
    precision
        Of training: ``"32-true"`` (None), ``"bf16-mixed"`` or ``"16-mixed"``; weights stay in single precision.
    n_workers
        Processes in which :func:`stpred.tl.predict_cohort` works on this machine, of one core each (or as many as
        ``OMP_NUM_THREADS`` says). None: one for each core, or fewer where memory (4 GB each) or slides are fewer, which
        then share the cores.
    devices
        Numbers of the GPUs of this machine that it uses, such as ``(0, 1)``, each through a process of its own.
    fabric
        A launched Lightning Fabric to train on several GPUs with; it decides on device and precision instead.

    Examples
    --------
    >>> import stpred as st
    >>> with st.settings.override(batch_size=16):
    ...     st.settings.batch_size
    16
    >>> st.settings.batch_size
    64
    """

    progress: bool | None = None
    batch_size: int = 64
    max_upsampling: float = 2.0
    mpp_tolerance: float = 0.05
    cache_dir: Path | str | None = None
    checkpoint_dir: Path | str | None = None
    precision: str | None = None
    n_workers: int | None = None
    devices: Sequence[int] | None = None
    fabric: Fabric | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        known = [f.name for f in fields(self)]
        if name not in known:
            raise InputError(f"There is no setting {name!r}; there are {listing(known, most=len(known))}.")
        if name == "batch_size" or (name == "n_workers" and value is not None):
            value = whole(value, name=name)
        elif name == "max_upsampling" and value != float("inf"):
            value = positive(value, name=name)
        elif name == "precision" and value is not None:
            value = one_of(value, PRECISIONS, name=name)
        super().__setattr__(name, value)

    @contextmanager
    def override(self, **changes: Any) -> Iterator[None]:
        """Change settings for the length of a ``with`` block."""
        before = {name: getattr(self, name, None) for name in changes}
        try:
            for name, value in changes.items():
                setattr(self, name, value)
            yield
        finally:
            for name in changes:
                if hasattr(self, name):
                    setattr(self, name, before[name])


settings = Settings()

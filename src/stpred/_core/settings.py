"""Settings of a session; nothing here acts at import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass
class Settings:
    """What a user may change for a session.

    Attributes
    ----------
    progress
        Show progress bars. None shows them on a terminal and in notebooks only.
    batch_size
        Tiles that an encoder sees at once when a function is not told otherwise.
    max_upsampling
        How much finer than its own resolution an image may be read before it is refused (2 = a 1 um/px image may feed a
        0.5 um/px encoder).
    mpp_tolerance
        Relative difference of two sources of resolution that is reported.
    cache_dir
        Folder in which features are kept between sessions; None keeps none.
    """

    progress: bool | None = None
    batch_size: int = 64
    max_upsampling: float = 2.0
    mpp_tolerance: float = 0.05
    cache_dir: Path | str | None = None


settings = Settings()

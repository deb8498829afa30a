"""Settings of the session that workers take over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stpred import settings


def session_settings() -> Mapping[str, Any]:
    """Return them by name."""
    names = ("batch_size", "max_upsampling", "mpp_tolerance", "cache_dir")
    return {name: getattr(settings, name) for name in names}

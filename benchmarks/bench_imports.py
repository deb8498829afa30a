"""Import time: under 2 s, and without torch."""

from __future__ import annotations

import subprocess
import sys
import time

PARTS = ("stpred", "stpred.io", "stpred.pp", "stpred.tl", "stpred.pl", "stpred.cli")


class Imports:
    """A fresh interpreter that imports one part and nothing else."""

    params = (PARTS,)
    param_names = ("part",)

    def track_seconds(self, part: str) -> float:
        """Wall time of the interpreter and the import; the better of three, as files are read anew the first time."""
        times = []
        for _ in range(3):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", f"import {part}"], check=True)
            times.append(time.perf_counter() - start)
        return min(times)

    def track_imports_torch(self, part: str) -> int:
        """1 if torch comes with it, which it must not."""
        code = f"import {part}, sys; print(int('torch' in sys.modules))"
        return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)

    track_seconds.unit = "s"  # type: ignore[attr-defined]

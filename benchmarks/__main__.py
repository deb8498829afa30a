"""Run the benchmarks without asv and print a table: ``python -m benchmarks [PART ...]``.

Without arguments all runs but what takes an idle machine, or whole slides, minutes and gigabytes of disk: ask for
``collect``, ``composite``, ``encoders``, ``large_slide``, ``memory``, ``maps`` and ``training``. Times are of one run
each, so they say what is slow and not what changed by a few per cent; for that there is asv.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import pkgutil
import sys
import time
from collections.abc import Iterator
from typing import Any

import benchmarks

SLOW = {"cohort", "collect", "composite", "costs", "encoders", "large_slide", "maps", "memory", "tables", "training"}


def parts() -> list[str]:
    """Return the names of the benchmark modules, without their prefix."""
    found = [m.name for m in pkgutil.iter_modules(benchmarks.__path__)]
    return sorted(name.removeprefix("bench_") for name in found if name.startswith("bench_"))


def measure(cls: type) -> Iterator[tuple[str, float, str]]:
    """Yield name, value and unit of each method of a benchmark class, for each combination of its parameters."""
    cached = cls().setup_cache() if hasattr(cls, "setup_cache") else None
    given = () if cached is None else (cached,)
    params: Any = getattr(cls, "params", ())
    methods = [n for n, _ in inspect.getmembers(cls, inspect.isfunction) if n.startswith(("time_", "track_"))]
    for values in itertools.product(*params):
        instance = cls()
        if hasattr(instance, "setup"):
            try:
                instance.setup(*given, *values)
            except NotImplementedError as reason:  # asv's word for what cannot be run here
                print(f"  {cls.__name__}({', '.join(map(str, values))}) is skipped: {reason}")
                continue
        for name in methods:
            method = getattr(instance, name)
            start = time.perf_counter()
            result = method(*given, *values)
            spent = time.perf_counter() - start
            label = f"{cls.__name__}.{name}({', '.join(map(str, values))})"
            yield (label, spent, "s") if name.startswith("time_") else (label, result, getattr(method, "unit", ""))
        if hasattr(instance, "teardown"):
            instance.teardown(*given, *values)


def main() -> None:
    """Run what was asked for."""
    wanted = sys.argv[1:] or [part for part in parts() if part not in SLOW]
    if unknown := set(wanted) - set(parts()):
        sys.exit(f"There is no benchmark {sorted(unknown)}; there are {parts()}.")
    for part in wanted:
        module = importlib.import_module(f"benchmarks.bench_{part}")
        print(f"{part}: {(module.__doc__ or '').splitlines()[0]}")
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if cls.__module__ == module.__name__ and any(n.startswith(("time_", "track_")) for n in vars(cls)):
                for name, value, unit in measure(cls):
                    print(f"  {name:<70} {value:10.3g} {unit}", flush=True)


if __name__ == "__main__":
    main()

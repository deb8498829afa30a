"""Sizes of what each extra adds to the base install, for docs/getting_started/install.md.

python scripts/extra_sizes.py     # in an environment with all extras: pip install ".[all]"
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def closure(
    name: str, extras: frozenset[str] = frozenset(), seen: set[tuple[str, frozenset[str]]] | None = None
) -> set[str]:
    """Return the installed packages that one needs, with some of its extras."""
    seen = set() if seen is None else seen
    key = (canonicalize_name(name), extras)
    if key in seen:
        return set()
    seen.add(key)
    try:
        requires = distribution(name).requires or []
    except PackageNotFoundError:
        return set()
    found = {key[0]}
    for line in requires:
        needed = Requirement(line)
        if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in extras or {""}):
            found |= closure(needed.name, frozenset(needed.extras), seen)
    return found


def size_mb(name: str) -> float:
    """Return the size of a package's files."""
    paths = [f.locate() for f in distribution(name).files or []]
    return sum(p.stat().st_size for p in paths if p.is_file()) / 1e6


def main() -> None:
    base = closure("stpred")
    for extra in distribution("stpred").metadata.get_all("Provides-Extra") or []:
        added = closure("stpred", frozenset({extra})) - base
        print(f"{extra:10} {sum(map(size_mb, added)):6.0f} MB  {', '.join(sorted(added))}")


if __name__ == "__main__":
    main()

"""Say what a wheel or an sdist lacks or should not hold; exit status 1 if anything.

python scripts/check_contents.py dist/*
"""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path

IN_WHEEL = (
    "stpred/__init__.py",
    "stpred/py.typed",
    "stpred/models/_bundled/default/config.json",
    "stpred/models/_bundled/default/model.safetensors",
    "stpred/models/_bundled/default-imagenet/model.safetensors",
)
IN_SDIST = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "tests/test_package.py", "src/stpred/py.typed")
NEVER = ("__pycache__", ".pyc", ".ipynb_checkpoints", ".zarr", ".venv")
MAX_MB = {".whl": 30, ".gz": 60}


def names_of(path: Path) -> list[str]:
    """Return the names of the files in a wheel or, without its top folder, in an sdist."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            return wheel.namelist()
    with tarfile.open(path) as sdist:
        return [m.name.partition("/")[2] for m in sdist.getmembers() if m.isfile()]


def faults_of(path: Path, source: Path) -> list[str]:
    """Return what is wrong with an archive that was built from a checkout."""
    names = set(names_of(path))
    wheel = path.suffix == ".whl"
    found = [f"lacks {n}" for n in (IN_WHEEL if wheel else IN_SDIST) if n not in names]
    found += [f"holds {n}" for n in sorted(names) if any(part in n for part in NEVER)]
    if wheel:
        found += [f"holds {n}" for n in sorted(names) if not n.startswith(("stpred/", "stpred-"))]
        inside = {
            f"stpred/{p.relative_to(source / 'src' / 'stpred').as_posix()}"
            for p in (source / "src" / "stpred").rglob("*")
            if p.is_file() and not any(part in p.as_posix() for part in NEVER)
        }
        found += [f"lacks {n}" for n in sorted(inside - names)]
    if (size := path.stat().st_size / 1e6) > MAX_MB[path.suffix]:
        found.append(f"is {size:.0f} MB large, more than {MAX_MB[path.suffix]}")
    return found


def main(paths: list[str]) -> int:
    """Print the faults of archives."""
    source, status = Path(__file__).resolve().parents[1], 0
    for path in map(Path, paths):
        faults = faults_of(path, source)
        status |= bool(faults)
        print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB, {'; '.join(faults) or 'as it should be'}")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

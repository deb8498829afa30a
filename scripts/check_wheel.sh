#!/usr/bin/env bash
# Build wheel and sdist, check them, and use the wheel in an empty environment outside the checkout.
# scripts/check_wheel.sh [PYTHON]: the interpreter of the environment (default: python3). KEEP=1 leaves it there;
# DIST=FOLDER copies what was checked into a folder.
set -euo pipefail
python="${1:-python3}"
here="$(cd "$(dirname "$0")/.." && pwd)"
work="$(mktemp -d)"
[ -n "${KEEP:-}" ] || trap 'rm -rf "$work"' EXIT

"$python" -m venv "$work/build"
"$work/build/bin/python" -m pip install --quiet build twine
"$work/build/bin/python" -m build --outdir "$work/dist" "$here"
"$work/build/bin/python" -m twine check --strict "$work"/dist/*
"$python" "$here/scripts/check_contents.py" "$work"/dist/*

"$python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet "$work"/dist/*.whl
cd "$work"  # away from the sources
export MPLBACKEND=agg HF_HUB_OFFLINE=1
"$work/venv/bin/python" - <<'PY'
import importlib.util
import pathlib

import stpred

place = pathlib.Path(stpred.__file__)
assert "site-packages" in place.parts, place
assert importlib.util.find_spec("timm") is None, "the base install brings timm"
PY
"$work/venv/bin/stpred" demo --out demo
"$work/venv/bin/python" -c 'import stpred as st; st.datasets.toy_visium("sample/outs", size_um=(600, 600), n_genes=20)'
"$work/venv/bin/stpred" predict sample/outs -o predicted.zarr
"$work/venv/bin/stpred" doctor
cd "$here"
[ -z "${DIST:-}" ] || { mkdir -p "$DIST" && cp "$work"/dist/* "$DIST"/; }
echo "the wheel works: $(ls "$work"/dist)"

"""Bad input gets one sentence, and neither the object nor the disk changes."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from spatialdata.transformations import Scale, get_transformation

import stpred as st
from stpred import InputError
from stpred.datasets import Tissue
from stpred.models import Model

Refused = Callable[..., AbstractContextManager[None]]
Rebuild = Callable[..., SpatialData]
Copied = Callable[[str], Path]

SIZE_UM = (320.0, 480.0)


@pytest.fixture(autouse=True)
def _short_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the import of all histology and timm encoders where a name is looked for among theirs."""
    monkeypatch.setattr("stpred.encoders._networks.lazyslide.names", lambda: ["uni", "virchow2"])
    monkeypatch.setattr("stpred.encoders._networks.timm_models.names", lambda: ["resnet18"])


@pytest.fixture(scope="session")
def tissues() -> list[Tissue]:
    """Two donors, taller than wide so that swapped coordinates fall off the image."""
    return [st.datasets.make_tissue(size_um=SIZE_UM, n_genes=20, donor=d) for d in range(2)]


@pytest.fixture(scope="session")
def cohort(tissues: list[Tissue]) -> dict[str, SpatialData]:
    """Two slides, ``a`` and ``b``; tests build their own objects from these."""
    return {name: st.datasets.toy(tissue=tissue) for name, tissue in zip("ab", tissues, strict=True)}


@pytest.fixture(scope="session")
def trained(cohort: dict[str, SpatialData]) -> Model:
    """A model of two genes on a quick encoder."""
    return st.tl.train(cohort, "intensity", genes=["EPCAM", "COL1A2"], shapes_key="spots", name="tiny")


@pytest.fixture(scope="session")
def pixels(tissues: list[Tissue]) -> np.ndarray:
    """(3, height, width) uint8 H&E."""
    return np.ascontiguousarray(tissues[0].image.transpose(2, 0, 1))


@pytest.fixture(scope="session")
def vendor_files(tissues: list[Tissue], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same slide in every format, each in its own folder."""
    base = tmp_path_factory.mktemp("vendors")
    made: dict[str, Callable[..., Path]] = {
        "visium": st.datasets.toy_visium,
        "visium_hd": st.datasets.toy_visium_hd,
        "xenium": st.datasets.toy_xenium,
        "legacy_st": st.datasets.toy_legacy_st,
        "hest": st.datasets.toy_hest,
    }
    for name, write in made.items():
        write(base / name, tissue=tissues[0])
    return base


@pytest.fixture
def copied(vendor_files: Path, tmp_path: Path) -> Copied:
    """Copies a vendor's folder, without its truth, for a test to damage."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(vendor_files / name, tmp_path / name, ignore=shutil.ignore_patterns("truth")))

    return copy


@pytest.fixture(scope="session")
def picture() -> Callable[..., Any]:
    """Makes a single-scale image element, 0.5 um per pixel in ``"um"`` unless told otherwise."""

    def make(array: np.ndarray, transformations: dict[str, Any] | None = None) -> Any:
        placed = {"um": Scale([0.5, 0.5], axes=("x", "y"))} if transformations is None else transformations
        return Image2DModel.parse(array, dims=("c", "y", "x"), transformations=placed)

    return make


@pytest.fixture
def rebuild(cohort: dict[str, SpatialData]) -> Rebuild:
    """Returns slide ``a`` as an object of the test's own, with other ``images=``, ``shapes=`` or ``tables=``."""

    def build(name: str = "a", **replaced: Any) -> SpatialData:
        old = cohort[name]
        kinds = {
            "images": dict(old.images),
            "shapes": dict(old.shapes),
            "tables": {k: t.copy() for k, t in old.tables.items()},
        }
        return SpatialData(**(kinds | replaced))

    return build


@pytest.fixture
def refused(tmp_path: Path) -> Refused:
    """Expects an error of one sentence that says all `parts`, and nothing to change in the object or on the disk."""

    @contextmanager
    def expect(*parts: str, sdata: SpatialData | None = None, error: type[Exception] = InputError) -> Iterator[None]:
        before = _state(sdata), _disk(tmp_path)
        with pytest.raises(error) as caught:
            yield
        assert isinstance(caught.value, InputError)
        said = str(caught.value)
        assert "\n" not in said
        assert "  " not in said
        assert not re.search(r"[.?!] [A-Z]|[.]{2}$", said), said  # one sentence
        assert len(said) < 800, said
        for part in parts:
            assert part in said, said
        assert (_state(sdata), _disk(tmp_path)) == before

    return expect


def _state(sdata: SpatialData | None) -> Any:
    """What an object holds: names, placement, geometry and the contents of tables."""
    if sdata is None:
        return None
    elements = {
        (kind, name): repr(get_transformation(element, get_all=True))
        for kind in ("images", "labels", "shapes")
        for name, element in getattr(sdata, kind).items()
    }
    shapes = {
        name: hashlib.sha256(b"".join(element.geometry.to_wkb()) + repr(list(element.index)).encode()).hexdigest()
        for name, element in sdata.shapes.items()
    }
    return elements, shapes, {name: _table(table) for name, table in sdata.tables.items()}


def _table(table: Any) -> Any:
    x = table.X
    stored = (x.data, x.indices, x.indptr) if hasattr(x, "indptr") else (np.asarray(x),)
    text = table.obs.to_csv() + table.var.to_csv()
    digest = hashlib.sha256(b"".join(part.tobytes() for part in stored) + text.encode())
    layers = sorted(name for name in table.layers if name is not None)  # None: X, in newer versions of anndata
    return digest.hexdigest(), layers, sorted(table.obsm), repr(dict(table.uns))


def _disk(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()}

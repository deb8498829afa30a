"""The cell types and regions of the synthetic tissue: what a nucleus of each looks like and where it sits."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class CellType:
    """Shape, texture and surroundings of one cell type; stains are in natural-log units."""

    name: str
    area_um2: float  # mean nuclear area
    area_cv: float  # its coefficient of variation
    aspect: float  # mean ratio of the nucleus' long to its short axis
    optical_density: float  # haematoxylin of the nuclear body
    hollow: float = 0.0  # 0: evenly filled; 1: all chromatin at the rim (a vesicular nucleus)
    stipple: float = 0.0  # amplitude of fine chromatin texture
    clump: float = 0.0  # amplitude of coarse chromatin texture
    nucleoli: float = 0.0  # mean number
    cytoplasm_um: float = 0.0  # width of the drawn cytoplasm around the nucleus; 0 draws none
    eosin: float = 0.0  # of the cytoplasm
    basophilia: float = 0.0  # haematoxylin of the cytoplasm
    rna: float = 1.0  # RNA content relative to the average cell


@dataclass(frozen=True)
class Region:
    """Density and composition of one kind of tissue."""

    name: str
    spacing_um: float  # mean distance between neighbouring cells
    share: dict[str, float] = field(default_factory=dict)  # of each cell type
    eosin: float = 0.3  # of the ground substance
    fibrous: float = 0.0  # how much of it is drawn as aligned fibres, 0..1


CELL_TYPES: tuple[CellType, ...] = (
    CellType(
        "tumour",
        area_um2=82,
        area_cv=0.25,
        aspect=1.2,
        optical_density=0.85,
        hollow=0.6,
        stipple=0.05,
        clump=0.10,
        nucleoli=1.6,
        cytoplasm_um=4.2,
        eosin=0.42,
        basophilia=0.06,
        rna=1.5,
    ),
    CellType(
        "fibroblast", area_um2=36, area_cv=0.25, aspect=4.2, optical_density=1.25, stipple=0.12, clump=0.08, rna=0.8
    ),
    CellType(
        "lymphocyte", area_um2=28, area_cv=0.15, aspect=1.1, optical_density=1.75, stipple=0.05, clump=0.12, rna=0.6
    ),
    CellType(
        "epithelial",
        area_um2=44,
        area_cv=0.18,
        aspect=1.75,
        optical_density=1.15,
        stipple=0.30,
        nucleoli=0.3,
        rna=1.2,
    ),
    CellType(
        "plasma",
        area_um2=38,
        area_cv=0.15,
        aspect=1.15,
        optical_density=1.30,
        hollow=0.2,
        clump=0.50,
        cytoplasm_um=3.0,
        eosin=0.35,
        basophilia=0.30,
        rna=1.1,
    ),
)

REGIONS: tuple[Region, ...] = (
    Region("tumour", 14.5, {"tumour": 0.88, "lymphocyte": 0.06, "fibroblast": 0.06}, eosin=0.16, fibrous=0.2),
    Region("stroma", 15.5, {"fibroblast": 0.80, "lymphocyte": 0.08, "plasma": 0.12}, eosin=0.48, fibrous=1.0),
    Region("lymphoid", 9.6, {"lymphocyte": 0.88, "plasma": 0.08, "fibroblast": 0.04}, eosin=0.22, fibrous=0.3),
    Region("gland", 17.0, {"fibroblast": 0.72, "plasma": 0.18, "lymphocyte": 0.10}, eosin=0.42, fibrous=0.7),
)
"""In glands the share is that of the tissue between the rings of epithelial cells."""

TYPE_NAMES: tuple[str, ...] = tuple(t.name for t in CELL_TYPES)
REGION_NAMES: tuple[str, ...] = tuple(r.name for r in REGIONS)

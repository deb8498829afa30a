from __future__ import annotations

import numpy as np
import pytest

from stpred import InputError
from stpred.calibration import (
    HEX_STEPS,
    SQUARE_STEPS,
    STAGGERED_STEPS,
    Evidence,
    check_fullres_size,
    check_inside,
    grid_steps,
    is_hexagonal,
    lattice_pitch_px,
    looks_hexagonal,
    nearest_pitch,
    settle_mpp,
    share_outside,
    to_transformation,
)


def hexagon(
    rows: int = 12, columns: int = 24, *, pitch: float = 270.0, angle: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    array = np.array([(r, c) for r in range(rows) for c in range(columns) if (r + c) % 2 == 0], dtype=float)
    xy = np.column_stack([array[:, 1] * pitch / 2, array[:, 0] * pitch * np.sqrt(3) / 2])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return array, xy @ turn.T + 5000


@pytest.mark.parametrize("angle", [0.0, 0.4, np.pi / 2])
def test_pitch_of_a_hexagonal_lattice_survives_rotation_holes_and_jitter(angle: float) -> None:
    rng = np.random.default_rng(0)
    array, xy = hexagon(angle=angle)
    keep = rng.random(len(array)) < 0.3  # few spots have any direct neighbour left
    jittered = xy[keep] + rng.normal(0, 2, (keep.sum(), 2))
    assert lattice_pitch_px(array[keep], jittered, steps=HEX_STEPS) == pytest.approx(270, rel=0.003)
    assert is_hexagonal(array[keep], jittered)


def test_pitch_of_square_and_staggered_arrays() -> None:
    array = np.array([(x, y) for x in range(6) for y in range(7)], dtype=float)
    assert grid_steps(array) == SQUARE_STEPS
    assert lattice_pitch_px(array, array * 291.0, steps=SQUARE_STEPS) == pytest.approx(291)
    staggered = array[array.sum(axis=1) % 2 == 0]
    assert grid_steps(staggered) == STAGGERED_STEPS
    spread = staggered * [21.6, 24.05]
    assert lattice_pitch_px(staggered, spread, steps=STAGGERED_STEPS) == pytest.approx(np.hypot(21.6, 24.05))
    assert not is_hexagonal(staggered, spread)


def test_pitch_is_unknown_for_a_line_of_spots_and_refused_for_a_jumble() -> None:
    line = np.array([[0, 2 * i] for i in range(10)], dtype=float)
    assert lattice_pitch_px(line, line * 10, steps=HEX_STEPS) is None
    assert lattice_pitch_px(line[:3], line[:3] * 10, steps=HEX_STEPS) is None
    array, xy = hexagon()
    shuffled = np.random.default_rng(0).permutation(xy)
    with pytest.raises(InputError, match="do not follow their array coordinates"):
        lattice_pitch_px(array, shuffled, steps=HEX_STEPS)
    with pytest.raises(InputError, match="swapped"):  # rows and columns exchanged stretch a hexagonal lattice
        lattice_pitch_px(array[:, ::-1], xy, steps=HEX_STEPS)


def test_nearest_pitch_ignores_isolated_spots() -> None:
    _, xy = hexagon(6, 12)
    far = np.array([[9e4, 9e4], [9e5, 9e4]])
    assert nearest_pitch(np.vstack([xy, far])) == pytest.approx(270)
    assert nearest_pitch(xy[:1]) is None
    assert looks_hexagonal(xy)
    square = np.stack(np.meshgrid(np.arange(9), np.arange(9)), axis=-1).reshape(-1, 2) * 10.0
    assert not looks_hexagonal(square)
    assert not looks_hexagonal(np.random.default_rng(0).uniform(0, 100, (300, 2)))


def test_first_evidence_wins_and_small_differences_are_silent() -> None:
    assert settle_mpp([Evidence(0.5, "a"), Evidence(0.51, "b")]) == 0.5
    assert settle_mpp([Evidence(float("nan"), "a"), Evidence(0.4, "b")]) == 0.4
    assert settle_mpp([], user_mpp=0.3) == 0.3


def test_differences_over_five_percent_name_both_values() -> None:
    with pytest.warns(UserWarning, match=r"the pitch says 0\.5 um per pixel and the header 0\.6; 0\.5 is used"):
        settle_mpp([Evidence(0.5, "the pitch"), Evidence(0.6, "the header")])


def test_gross_contradictions_are_refused_unless_a_value_is_given() -> None:
    evidence = [Evidence(0.5, "the pitch"), Evidence(1.0, "the header")]
    with pytest.raises(InputError, match=r"contradictory: the pitch says 0\.5 .* the header 1;.*pass mpp="):
        settle_mpp(evidence)
    with pytest.warns(UserWarning, match=r"mpp= says 0\.5 .* the header 1"):
        assert settle_mpp(evidence, user_mpp=0.5) == 0.5


def test_no_evidence_and_bad_values_are_refused() -> None:
    with pytest.raises(InputError, match=r"slide 's1' is stated nowhere; pass mpp="):
        settle_mpp([], what="slide 's1'")
    with pytest.raises(InputError, match="`mpp` must be a positive number"):
        settle_mpp([], user_mpp=0.0)


def test_positions_outside_the_image_print_both_boxes_in_pixels_and_um() -> None:
    xy = np.array([[10, 10], [90, 40], [150, 20], [160, 30]])
    assert share_outside(xy, width=100, height=50) == 0.5
    with pytest.raises(
        InputError, match=r"50% of the spots.*x 10 to 160, y 10 to 40 px \(5 to 80 by 5 to 20 um\).*x 0 to 100"
    ):
        check_inside(xy, width=100, height=50, mpp=0.5)
    check_inside(np.repeat([[1.0, 1.0]], 20, axis=0), width=2, height=2, mpp=1)
    few_outside = np.vstack([np.ones((19, 2)), [[99, 1]]])
    check_inside(few_outside, width=2, height=2, mpp=1)


def test_hires_given_as_full_resolution_is_named() -> None:
    hires = {"hires_size": (2000, 1800), "hires_scalef": 0.1}
    check_fullres_size((20000, 18000), what="he.tif", **hires)
    with pytest.raises(
        InputError, match=r"scaled by 0\.1 \(this is the hires image\); pass the image that Space Ranger"
    ):
        check_fullres_size((2000, 1800), what="he.png", **hires)
    with pytest.raises(InputError, match=r"copy scaled by 0\.5;"):
        check_fullres_size((10000, 9000), what="he.tif", **hires)
    with pytest.warns(UserWarning, match="may not be the image"):
        check_fullres_size((18000, 20000), what="he.tif", **hires)


@pytest.mark.parametrize(
    ("matrix", "kind"),
    [
        (np.eye(3), "Identity"),
        (np.diag([0.5, 0.5, 1]), "Scale"),
        (np.array([[0, -0.5, 3], [0.5, 0, 4], [0, 0, 1.0]]), "Affine"),
        (np.diag([-0.5, 0.5, 1]), "Affine"),
    ],
)
def test_transformations_are_as_simple_as_possible_and_exact(matrix: np.ndarray, kind: str) -> None:
    found = to_transformation(matrix)
    assert type(found).__name__ == kind
    np.testing.assert_array_equal(found.to_affine_matrix(("x", "y"), ("x", "y")), matrix)


def test_a_spot_far_from_its_lattice_is_named() -> None:
    array = np.array([(r, c) for r in range(20) for c in range(20)], dtype=float)
    xy = array[:, ::-1] * 50 + 300
    assert lattice_pitch_px(array, xy, steps=SQUARE_STEPS, max_stray=1.0) == pytest.approx(50)
    xy[210] += (0, 120)
    assert lattice_pitch_px(array, xy, steps=SQUARE_STEPS) == pytest.approx(50, rel=0.01)
    with pytest.raises(InputError, match="1 spots lie more than 1 pitches .* coordinates 10 and 10 by 1"):
        lattice_pitch_px(array, xy, steps=SQUARE_STEPS, max_stray=1.0)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e308])
def test_coordinates_that_cannot_be(value: float) -> None:
    array = np.array([(r, c) for r in range(4) for c in range(4)], dtype=float)
    xy = array * 10
    for broken in (array, xy):
        changed = broken.copy()
        changed[3, 0] = value
        pair = (changed, xy) if broken is array else (array, changed)
        with pytest.raises(InputError, match="not finite, or beyond"):
            lattice_pitch_px(*pair, steps=SQUARE_STEPS)
    array[3, 0] = value
    with pytest.raises(InputError, match="not finite, or beyond"):
        grid_steps(array)
    assert not is_hexagonal(array, xy)

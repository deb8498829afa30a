"""Several encoders at once on a slide: one pass over the image, each member kept by itself, models and students."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from spatialdata import SpatialData

import stpred as st
from stpred import data, encoders
from stpred._core.checks import UnsafeResolutionError
from stpred._core.places import Place
from stpred.data._features import embed_centre
from stpred.encoders.composite import Composite, members_of
from stpred.io._images.pixels import halve
from stpred.testing import MeanColour, copy_slide, small_slide
from stpred.tiles import Level, Pyramid

SMALL, COARSE, WIDE = st.TileSpec(0.5, 64), st.TileSpec(1.0, 80), st.TileSpec(2.0, 56)


@pytest.fixture(scope="module")
def slide() -> SpatialData:
    return small_slide()


@pytest.fixture(scope="module")
def region(slide: SpatialData) -> data.Region:
    return data.read_region(slide, Place(shapes_key="spots"))


def three() -> Composite:
    made = encoders.get([encoders.get("colour", tile=SMALL), MeanColour(COARSE), encoders.get("intensity", tile=WIDE)])
    assert isinstance(made, Composite)
    return made


def apart(embed: Callable[..., NDArray[Any]], region: data.Region, encoder: Any, *args: Any, **how: Any) -> Any:
    """Return what the members give one by one."""
    return np.concatenate([embed(region, m, *args, **how) for m in members_of(encoder)], axis=-1)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_features_are_those_of_the_members(region: data.Region, batch_size: int) -> None:
    encoder, at = three(), region.coords_um
    with st.settings.override(batch_size=batch_size):
        found = data.embed(region, encoder, at)
    assert found.dtype == np.float32
    assert np.array_equal(found, apart(data.embed, region, encoder, at))
    order = [2, 0, 1]
    turned = data.embed(region, encoders.get([encoder.members[k] for k in order]), at)
    parts = np.split(found, np.cumsum(encoder.card.blocks)[:-1], axis=1)
    assert np.array_equal(turned, np.concatenate([parts[k] for k in order], axis=1))


def test_members_of_one_tile_share_it(region: data.Region, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[int] = []
    original = Pyramid.read_several
    monkeypatch.setattr(Pyramid, "read_several", lambda p, v, **k: (kinds.append(len(v)), original(p, v, **k))[1])
    data.embed(region, encoders.get(["colour", "intensity", MeanColour(SMALL)]), region.coords_um)
    assert kinds == [2]


def test_parts_and_other_extents_are_those_of_the_members(region: data.Region) -> None:
    encoder, at = three(), region.coords_um[:5]
    for embed, how in (
        (data.embed_parts, {"parts": 2}),
        (data.embed_wide, {"size_um": 40.0}),
        (embed_centre, {"parts": 2}),
    ):
        found = embed(region, encoder, at, **how)
        assert np.array_equal(found, apart(embed, region, encoder, at, **how)), embed.__name__
    grids = encoders.get([MeanColour(st.TileSpec(0.5, 64), n_patches=4), MeanColour(st.TileSpec(1.0, 32), n_patches=4)])
    found = data.embed_dense(region, grids, at)
    assert found.shape == (5, 4, 4, 6)
    assert np.array_equal(found, apart(data.embed_dense, region, grids, at))


def counting_pyramid(*, stored: bool) -> tuple[Pyramid, list[Counter[tuple[int, ...]]]]:
    """Levels of 0.5 and 1 um per pixel, the second stored or averaged from the first, and how often chunks are made."""
    rng = np.random.default_rng(0)
    image = np.asarray(Image.fromarray(rng.integers(90, 250, (30, 36, 3), dtype=np.uint8)).resize((1440, 1200)))
    seen: list[Counter[tuple[int, ...]]] = [Counter(), Counter()]

    def counted(pixels: NDArray[np.uint8], k: int, chunk: int) -> da.Array:
        def load(block: NDArray[np.uint8], block_info: Any = None) -> NDArray[np.uint8]:
            seen[k][block_info[0]["chunk-location"]] += 1
            return block

        array = da.from_array(np.moveaxis(pixels, -1, 0), chunks=(3, chunk, chunk))
        return da.map_blocks(load, array, meta=np.empty((0, 0, 0), np.uint8))

    fine = counted(image, 0, 128)
    half = halve(fine)
    coarse = counted(np.moveaxis(half.compute(scheduler="synchronous"), 0, -1), 1, 160) if stored else half
    seen[0].clear()
    return Pyramid([Level(fine, np.diag([0.5, 0.5, 1.0])), Level(coarse, np.diag([1.0, 1.0, 1.0]))]), seen


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("batch_size", [3, 50])
def test_every_chunk_is_decoded_once(region: data.Region, stored: bool, batch_size: int) -> None:
    from dataclasses import replace

    pyramid, seen = counting_pyramid(stored=stored)
    assert pyramid.background
    for counts in seen:
        counts.clear()
    encoder = three()  # the first two read the finest level, the third one the other
    assert [pyramid.level_for(m.card.tile.mpp) is pyramid.levels[1] for m in encoder.members] == [False, False, True]
    x, y = np.meshgrid(np.arange(0, 721, 40.0), np.arange(0, 601, 40.0))
    at = np.random.default_rng(0).permutation(np.column_stack([x.ravel(), y.ravel()]))
    placed = replace(region, pyramid=pyramid)
    with st.settings.override(batch_size=batch_size):
        found = data.embed(placed, encoder, at)
    assert set(seen[0].values()) == {1}
    assert len(seen[0]) == 10 * 12
    assert set(seen[1].values()) == ({1} if stored else set())
    assert len(seen[1]) == (4 * 5 if stored else 0)
    assert np.array_equal(found, apart(data.embed, placed, encoder, at))


@pytest.mark.parametrize("stored", [True, False])
def test_decoded_chunks_are_dropped(stored: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a slide four times as high, hardly more is in memory at once."""
    from stpred.tiles import _stream

    peaks: list[int] = []

    class Watched(_stream.Chunks):
        def release(self, users: Any) -> None:
            peaks[-1] = max(peaks[-1], sum(p.nbytes for kept in self.kept for p in kept.values()))
            super().release(users)

    monkeypatch.setattr(_stream, "Chunks", Watched)
    for height in (1200, 4800):
        peaks.append(0)
        fine = da.full((3, height, 720), 200, dtype=np.uint8, chunks=(3, 128, 128))
        half = halve(fine)
        if stored:
            half = da.from_array(half.compute(), chunks=(3, 128, 128))
        pyramid = Pyramid([Level(fine, np.diag([0.5, 0.5, 1.0])), Level(half, np.eye(3))])
        x, y = np.meshgrid(np.arange(0, 360, 30.0), np.arange(0, height / 2, 30.0))
        at = np.column_stack([x.ravel(), y.ravel()])
        for _ in pyramid.read_several([(at, SMALL), (at, WIDE)], batch_size=8):
            pass
    assert peaks[1] < 1.5 * peaks[0]
    assert peaks[1] < 0.15 * 720 * 4800 * 3


@pytest.mark.parametrize("degrees", [0, 20])
def test_fill_and_what_lies_beyond_the_image_are_as_for_the_members(region: data.Region, degrees: float) -> None:
    from dataclasses import replace

    picture = np.full((600, 640, 3), 240, np.uint8)
    picture[60:540, 60:580] = np.random.default_rng(0).integers(120, 200, (480, 520, 3))
    turned = np.asarray(Image.fromarray(picture).rotate(degrees, expand=True, fillcolor=(0, 0, 0)))
    array = da.from_array(np.moveaxis(turned, -1, 0), chunks=(3, 100, 100))
    placed = replace(region, pyramid=Pyramid([Level(array, np.diag([0.5, 0.5, 1.0]))]))
    height, width = placed.pyramid.shape
    x, y = np.meshgrid(np.arange(0, width / 2, 45.0), np.arange(0, height / 2, 45.0))
    at = np.column_stack([x.ravel(), y.ravel()])
    encoder = three()
    assert np.array_equal(data.embed(placed, encoder, at), apart(data.embed, placed, encoder, at))


def test_the_cache_keeps_each_member_by_itself(
    region: data.Region, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(st.settings, "cache_dir", tmp_path)
    encoder, at = three(), region.coords_um
    alone = data.embed(region, encoder.members[1], at)
    before = encoder.members[1].n_tiles  # type: ignore[attr-defined]
    found = data.embed(region, encoder, at)
    assert encoder.members[1].n_tiles == before  # type: ignore[attr-defined]  # as computed for it alone
    assert len(list(tmp_path.glob("*.npy"))) == 3
    assert found.dtype == np.float16
    assert np.array_equal(found[:, 6:9], alone)
    for member in encoder.members:
        monkeypatch.setattr(type(member), "encode", lambda *_: pytest.fail("embedded again"))
    assert np.array_equal(data.embed(region, encoder, at), found)
    pairs = encoders.get([encoder.members[2], encoder.members[0]])
    assert np.array_equal(data.embed(region, pairs, at), np.concatenate([found[:, 9:], found[:, :6]], axis=1))


def test_an_interrupted_pass_goes_on_where_each_member_was(
    region: data.Region, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(st.settings, "cache_dir", tmp_path)
    encoder, at = three(), region.coords_um
    second = encoder.members[1]
    original = MeanColour.encode

    def breaks(self: MeanColour, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        if self.n_tiles > len(at) // 2:
            raise RuntimeError("stopped")
        return original(self, tiles)

    monkeypatch.setattr(MeanColour, "encode", breaks)
    with st.settings.override(batch_size=4):
        with pytest.raises(RuntimeError, match="stopped"):
            data.embed(region, encoder, at)
        monkeypatch.setattr(MeanColour, "encode", original)
        done = second.n_tiles  # type: ignore[attr-defined]
        found = data.embed(region, encoder, at)
    assert 0 < done < len(at)
    assert second.n_tiles == len(at)  # type: ignore[attr-defined]  # each tile once
    monkeypatch.setattr(st.settings, "cache_dir", None)
    np.testing.assert_allclose(found, data.embed(region, encoder, at), rtol=1e-3)


def test_tables_of_the_whole_and_of_members_are_used(slide: SpatialData, monkeypatch: pytest.MonkeyPatch) -> None:
    own = copy_slide(slide)
    encoder = three()
    st.pp.features(own, list(encoder.members), shapes_key="spots")
    key = "spots_feat_colour-32um-mean-colour-80um-intensity-112um"
    table = own.tables[key]
    assert list(table.var_names) == list(encoder.card.feature_names or ())
    assert json.loads(table.uns["stpred"])["encoder"] == encoder.card.to_dict()
    region = data.read_region(own, Place(shapes_key="spots"))
    points = region.coords_um[:4] + 3
    expected = data.embed(region, encoder, np.concatenate([region.coords_um, points]))
    counts: Counter[str] = Counter()
    original = data._features._embed
    monkeypatch.setattr(
        data._features,
        "_embed",
        lambda r, members, at: (counts.update({m.card.name: len(at) for m in members}), original(r, members, at))[1],
    )
    assert np.array_equal(data.embed_region(region, encoder, points_um=points), expected)
    assert counts == {"colour": 4, "mean-colour": 4, "intensity": 4}  # the points alone
    del own.tables[key]
    st.pp.features(own, encoder.members[0], shapes_key="spots")
    counts.clear()
    assert np.array_equal(data.embed_region(region, encoder, points_um=points), expected)
    n = len(region.coords_um)
    assert counts == {"colour": 4, "mean-colour": n + 4, "intensity": n + 4}
    rows = np.array([3, 1])
    assert np.array_equal(data.embed_region(region, encoder, rows=rows), expected[rows])


def test_a_table_of_several_serves_each_of_them(slide: SpatialData, monkeypatch: pytest.MonkeyPatch) -> None:
    own = copy_slide(slide)
    encoder = three()
    st.pp.features(own, encoder, shapes_key="spots")
    region = data.read_region(own, Place(shapes_key="spots"))
    expected = [data.embed(region, m, region.coords_um) for m in encoder.members]
    monkeypatch.setattr(data._features, "_embed", None)  # nothing is embedded
    for member, values in zip(encoder.members, expected, strict=True):
        assert np.array_equal(data.embed_region(region, member), values)
    some = encoders.get([encoder.members[2], encoder.members[0]])
    assert np.array_equal(data.embed_region(region, some), np.concatenate([expected[2], expected[0]], axis=1))
    monkeypatch.undo()
    other = encoders.get("colour", tile=COARSE)
    assert np.array_equal(data.embed_region(region, other), data.embed(region, other, region.coords_um))
    (key,) = (k for k in own.tables if "_feat_" in k)
    own.tables[key].X[:, 0] += 1  # changed by hand: no longer what it says
    assert np.array_equal(data.embed_region(region, encoder.members[0]), expected[0])


def test_too_coarse_an_image_names_the_member(slide: SpatialData) -> None:
    from dataclasses import replace

    region = data.read_region(slide, Place(shapes_key="spots"))
    fine = MeanColour(st.TileSpec(0.1, 64))
    fine.card = replace(fine.card, name="fine")
    with pytest.raises(UnsafeResolutionError, match="5x coarser than the 0.1 um per pixel that the encoder 'fine' exp"):
        data.check_resolution(region, encoders.get(["intensity", fine]))
    with pytest.raises(UnsafeResolutionError, match="that the encoder 'fine' expects"):
        st.pp.features(slide, ["intensity", fine], shapes_key="spots")


def test_batches_say_how_wide_the_members_features_are() -> None:
    from stpred.models.batch import Needs

    slide = small_slide(size_um=(300, 300))
    region = data.read_region(slide, Place(shapes_key="spots"), measured=True)
    encoder = three()
    assert data.reader_for(region, encoder, Needs()).whole().blocks == (6, 3, 3)
    assert data.reader_for(region, encoders.get("colour"), Needs()).whole().blocks is None
    cells = data.with_cells(region)
    batch = data.reader_for(cells, encoder, Needs(cells=True, context_um=40.0)).whole()
    assert batch.blocks == (6, 3, 3, 6, 3, 3, 1)
    assert sum(batch.blocks) == batch.features.shape[1]
    grids = encoders.get([MeanColour(st.TileSpec(0.5, 64), n_patches=4), MeanColour(st.TileSpec(1.0, 32), n_patches=4)])
    batch = data.reader_for(region, grids, Needs(tokens=True)).whole()
    assert batch.blocks == (3, 3)
    assert batch.take(np.array([0])).blocks == (3, 3)

"""Features of many places in strips, by one process or several."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stpred as st
from stpred import data
from stpred._core.disk.on_disk import Reordered
from stpred._core.places import Place
from stpred.data import _strips
from stpred.data._readers import tiles
from stpred.encoders import EncoderCard
from stpred.models.batch import Needs
from stpred.regions import Lattice


class Colours:
    """Mean colour of tiles; says which batches it saw, and can break."""

    def __init__(self, name: str = "colours", *, breaks_at: int = -1) -> None:
        self.card = EncoderCard(name, st.TileSpec(1.0, 24), width=3, source="test", revision="1")
        self.batches: list[np.ndarray] = []
        self.breaks_at = breaks_at
        self.started, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    def encode(self, tiles: np.ndarray) -> np.ndarray:
        self.started.set()
        assert self.go_on.wait(60)
        if len(self.batches) == self.breaks_at:
            raise KeyboardInterrupt
        self.batches.append(tiles)
        # as of a network: all of a batch has a little part in each of it
        return tiles.mean(axis=(1, 2), dtype=np.float64).astype(np.float32) + np.float32(tiles.mean() / 100)

    @property
    def n_seen(self) -> int:
        return sum(map(len, self.batches))

    def to(self, device: str | None) -> Colours:
        return self


@pytest.fixture(scope="module")
def region() -> data.Region:
    slide = st.datasets.toy(size_um=(600, 500), n_genes=5)
    st.pp.grid(slide, pitch_um=30)
    found = data.read_region(slide, Place(shapes_key="grid"))
    rng = np.random.default_rng(0)
    return found.take(rng.permutation(len(found.coords_um)))  # their order is not that of the strips


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(_strips, "PLACES", 60)
    with st.settings.override(cache_dir=tmp_path, batch_size=8):
        yield tmp_path


def test_they_are_where_their_rows_are_and_kept_one_by_one(region: data.Region, cache: Path) -> None:
    coords, encoder = region.coords_um, Colours()
    n = -(-len(coords) // 60)
    assert n > 3
    found = data.embed(region, encoder, coords)
    assert len(list(cache.glob("*.npy"))) == n
    np.testing.assert_array_equal(data.embed(region, encoder, coords), found)
    assert encoder.n_seen == len(coords)
    with st.settings.override(cache_dir=None):
        plain = data.embed(region, Colours(), coords)
    np.testing.assert_allclose(found, plain, rtol=2e-3, atol=1.0)  # float16, and other batches
    stays = data.embed_region(region, encoder, on_disk=True)
    assert isinstance(stays, Reordered)
    np.testing.assert_array_equal(stays, found)
    np.testing.assert_array_equal(stays[[7, 0, -1]], found[[7, 0, -1]])
    np.testing.assert_array_equal(stays[3:9, 1], found[3:9, 1])


@pytest.mark.parametrize("breaks_at", [0, 3, 8, 11])
def test_an_interrupted_slide_goes_on_in_the_middle_of_a_strip(
    region: data.Region, cache: Path, breaks_at: int
) -> None:
    coords = region.coords_um
    with st.settings.override(cache_dir=cache / "undisturbed"):
        whole = data.embed(region, Colours(), coords)
    with pytest.raises(KeyboardInterrupt):
        data.embed(region, before := Colours(breaks_at=breaks_at), coords)
    found = data.embed(region, after := Colours(), coords)
    np.testing.assert_array_equal(found, whole)
    assert before.n_seen + after.n_seen == len(coords)


def test_a_busy_strip_is_done_last_and_waited_for(region: data.Region, cache: Path) -> None:
    coords, other, encoder = region.coords_um, Colours(), Colours()
    first = _strips.strips_of(region, [_strips.Share(other, coords, other.card.tile, "tiles")])[0]
    other.go_on.clear()
    theirs = threading.Thread(target=first.embed)
    theirs.start()
    assert other.started.wait(30)
    found: list[Any] = []
    ours = threading.Thread(target=lambda: found.append(data.embed(region, encoder, coords)))
    ours.start()
    for _ in range(600):
        if encoder.n_seen >= len(coords) - len(first.rows):
            break
        ours.join(0.05)
    assert encoder.n_seen == len(coords) - len(first.rows)  # all but the busy one are there
    assert not first.embed()
    other.go_on.set()
    ours.join(30)
    theirs.join(30)
    assert other.n_seen == len(first.rows)
    with st.settings.override(cache_dir=cache / "alone"):
        np.testing.assert_array_equal(found[0], data.embed(region, Colours(), coords))


def test_several_at_once_embed_nothing_twice(region: data.Region, cache: Path) -> None:
    encoders, found = [Colours() for _ in range(3)], {}

    def work(k: int) -> None:
        found[k] = data.embed(region, encoders[k], region.coords_um)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sum(e.n_seen for e in encoders) == len(region.coords_um)
    assert min(e.n_seen for e in encoders) > 0
    with st.settings.override(cache_dir=cache / "alone"):
        alone = data.embed(region, Colours(), region.coords_um)
    for k in range(3):
        np.testing.assert_array_equal(found[k], alone)


@pytest.mark.parametrize(
    "needs", [Needs(), Needs(context_um=70), Needs(parts=2), Needs(parts=2, whole_slide=True, places=True)]
)
def test_strips_of_a_reader_are_all_that_it_embeds(
    region: data.Region, cache: Path, needs: Needs, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = st.encoders.get([Colours("one"), Colours("two")])
    context = data.Context(Lattice(45.0, hexagonal=False), "elsewhere")
    reader = data.reader_for(region, encoder, needs, context)
    with st.settings.override(cache_dir=None):
        assert data.embedding_strips(reader) == []
    strips = data.embedding_strips(reader)
    assert len(list(cache.iterdir())) == 0
    assert len(strips) >= 4
    assert all(len(strip.rows) <= 60 + 4 for strip in strips)
    for number in reversed(range(len(strips))):
        assert data.embed_strip(reader, number)
    members = encoder.members
    seen = [m.n_seen for m in members]
    ((_, whole),) = reader.blocks()
    monkeypatch.setattr(tiles, "TILE_BYTES", 0)
    monkeypatch.setattr(tiles, "PIXEL_BLOCK", 100)
    monkeypatch.setattr(tiles, "BLOCK_BYTES", 100)
    for rows, batch in reader.blocks():  # from disk
        np.testing.assert_array_equal(batch.features[batch.targets], whole.features[whole.targets[rows]])
    assert [m.n_seen for m in members] == seen


def test_models_that_read_block_by_block_have_no_strips(region: data.Region) -> None:
    pixels = st.encoders.get("pixels", tile=st.TileSpec(1.0, 16))
    assert data.embedding_strips(data.reader_for(region, pixels, Needs())) == []


@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_process_of_one_thread_reads_ahead_for_a_gpu_alone(
    region: data.Region, on_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stpred.tiles import _stream

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    by, cut = set(), _stream.View.cut
    monkeypatch.setattr(
        _stream.View, "cut", lambda self, *args: (by.add(threading.current_thread().name), cut(self, *args))[1]
    )
    encoder = Colours()
    encoder.on_gpu = on_gpu  # type: ignore[attr-defined]
    data.embed(region, encoder, region.coords_um[:20])
    assert all(name.startswith("stpred-ahead") for name in by) == on_gpu

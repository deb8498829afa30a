"""Several encoders as one: card, names, arrays, tokens, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import stpred as st
from stpred import encoders
from stpred._core import keys
from stpred._core.checks import InputError, element_name
from stpred._core.disk import stored
from stpred.encoders import Composite, EncoderCard
from stpred.encoders.registry import from_card
from stpred.encoders.tokens import token_edge_um, with_tokens
from stpred.testing import MeanColour, check_encoder

SMALL, WIDE = st.TileSpec(0.5, 64), st.TileSpec(1.0, 64)


def tiles(*specs: st.TileSpec, n: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (n, spec.size_px, spec.size_px, 3), dtype=np.uint8) for spec in specs]


def both() -> Composite:
    made = encoders.get(["morphology", encoders.get("intensity", tile=WIDE)])
    assert isinstance(made, Composite)
    return made


def test_the_card_describes_all_members() -> None:
    card = both().card
    morphology, intensity = (m.card for m in both().members)
    assert card.name == "morphology-112um+intensity-64um"
    assert card.tile == morphology.tile  # the largest
    assert card.blocks == (morphology.width, 3)
    assert card.width == sum(card.blocks)
    assert card.feature_names is not None
    assert card.feature_names[:1] == (f"morphology-112um_{morphology.feature_names[0]}",)
    assert card.feature_names[-3:] == tuple(f"intensity-64um_{n}" for n in intensity.feature_names)
    assert len(set(card.feature_names)) == card.width
    assert card.licence == "BSD-3-Clause"
    assert json.loads(json.dumps(card.to_dict())) == card.to_dict()
    assert stored.card(card.to_dict(), "card") == card.to_dict()
    assert card.members == (morphology.to_dict(), intensity.to_dict())
    assert EncoderCard("x", SMALL, 5).blocks == (5,)
    assert "members" not in morphology.to_dict()  # what was written of single encoders is still found


def test_licences_are_joined_and_revisions_tell_members_apart() -> None:
    class Other(MeanColour):
        def __init__(self, revision: str) -> None:
            super().__init__()
            self.card = EncoderCard("other", SMALL, 3, licence="Apache-2.0", revision=revision, gated=True)

    first, again, changed = (encoders.get(["intensity", Other(r)]).card for r in ("1", "1", "2"))
    assert first.licence == "BSD-3-Clause AND Apache-2.0"
    assert first.gated
    assert first.revision == again.revision != changed.revision


@pytest.mark.parametrize("n", [2, 3, 6, 12])
def test_names_are_readable_short_and_distinct(n: int) -> None:
    sizes = [64 + 16 * k for k in range(n)]
    names = [encoders.get([MeanColour(st.TileSpec(mpp, s)) for s in sizes]).card.name for mpp in (0.5, 0.75, 1.0)]
    assert len(set(names)) == 3
    assert all(len(name) <= 80 and name.startswith("mean-colour-") for name in names)
    assert len(keys.features("bins_008um", names[0])) < 120
    assert element_name(keys.features("spots", names[0]))


def test_members_of_one_name_and_extent_have_names_of_their_own() -> None:
    card = encoders.get([MeanColour(st.TileSpec(0.5, 64)), MeanColour(st.TileSpec(1.0, 32))]).card
    assert card.name == "mean-colour-32um-64px+mean-colour-32um-32px"
    assert len(set(card.feature_names or ())) == 6


def test_features_are_those_of_the_members_side_by_side() -> None:
    made = both()
    own = tiles(*(m.card.tile for m in made.members))
    expected = np.concatenate([m.encode(x) for m, x in zip(made.members, own, strict=True)], axis=1)
    assert np.array_equal(made.encode(own), expected)
    assert made.encode(own).dtype == np.float32
    check_encoder(encoders.get(["colour", encoders.get("intensity", tile=WIDE)]))
    one_tile = encoders.get(["intensity", "colour"])
    assert np.array_equal(one_tile.encode(own[0]), one_tile.encode([own[0], own[0]]))


def test_arrays_of_other_members_are_refused() -> None:
    with pytest.raises(InputError, match=r"see tiles of 2 kinds .*give a list of arrays"):
        both().encode(tiles(SMALL)[0])
    with pytest.raises(InputError, match="`tiles` must be 2 arrays, one for each encoder, got 1"):
        both().encode(tiles(SMALL))


def test_lists_are_flattened_and_one_encoder_stays_itself() -> None:
    nested = encoders.get([both(), ["colour"], ["intensity", "colour"][:1]])
    assert [c["name"] for c in nested.card.members] == ["morphology", "intensity", "colour", "intensity"]
    alone = encoders.get("intensity")
    assert encoders.get([alone]) is alone
    assert encoders.get(both(), device="cpu").card == both().card
    sized = encoders.get(["intensity", encoders.get("colour", tile=WIDE)], tile=SMALL)
    assert [m.card.tile for m in sized.members] == [SMALL, WIDE]


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ([], {}, "The list of encoders is empty"),
        (["morphology", "morphology"], {}, "'morphology' is in the list twice with the same tile"),
        ([["intensity"], both()], {"tile": WIDE}, "'intensity' is in the list twice"),
        (["morphology", "pixels"], {}, "'pixels' gives pixels, not features, so it cannot be one of several"),
        (["morphology", "nothing"], {}, "No encoder named 'nothing'"),
        (["morphology", 3], {}, "a list of these, got a int"),
        (["morphology", "intensity"], {"pretrained": False}, "`pretrained` go with a single encoder"),
        (["morphology", "intensity"], {"layers": (1,), "pool": "mean"}, "`layers`, `pool` go with a single encoder"),
        (["morphology", "intensity"], {"weights": "x.pt"}, "`weights` go with a single encoder"),
    ],
)
def test_what_is_refused(given: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        encoders.get(given, **options)


def test_it_is_rebuilt_from_its_card() -> None:
    card = both().card.to_dict()
    assert from_card(card).card == both().card
    changed = json.loads(json.dumps(card))
    changed["members"][1]["revision"] = "0"
    with pytest.raises(InputError, match=r"intensity, revision: trained with 0, found 1"):
        from_card(changed)
    with pytest.raises(InputError, match="widths do not add up to 7"):
        stored.card({**card, "width": 7}, "card")
    with pytest.raises(InputError, match=r"members\[0\] is of several encoders, and itself one of several"):
        stored.card({**card, "members": [card]}, "card")


def test_tokens_of_one_grid_stand_side_by_side() -> None:
    fine, coarse = MeanColour(st.TileSpec(0.5, 64), n_patches=4), MeanColour(st.TileSpec(1.0, 32), n_patches=4)
    made = with_tokens(encoders.get([fine, coarse]))
    assert made.card.dense == (4, 4, 6)
    assert made.card.dense_blocks == (3, 3)
    assert token_edge_um(made) == 8
    own = tiles(fine.card.tile, coarse.card.tile)
    expected = np.concatenate([fine.encode_dense(own[0]), coarse.encode_dense(own[1])], axis=-1)
    assert np.array_equal(made.encode_dense(own), expected)


def test_members_without_a_grid_take_that_of_the_others() -> None:
    tile = st.TileSpec(0.5, 96)
    made = with_tokens(encoders.get([encoders.get("morphology", tile=tile), MeanColour(tile, n_patches=4)]))
    assert [m.card.dense[:2] for m in made.members] == [(4, 4), (4, 4)]
    free = encoders.get([encoders.get("morphology", tile=tile), encoders.get("intensity", tile=tile)])
    assert with_tokens(free).card.dense[:2] == (6, 6)
    assert with_tokens(free, 12).card.dense[:2] == (4, 4)


def test_tokens_of_incompatible_tiles_are_refused() -> None:
    with pytest.raises(InputError, match=r"incompatible tiles .*edges differ \('morphology' 112 um, 'intensity' 64 um"):
        with_tokens(both())
    four, eight = MeanColour(SMALL, n_patches=4), MeanColour(st.TileSpec(1.0, 32), n_patches=8)
    eight.card = EncoderCard("other", eight.card.tile, 3, dense=(8, 8, 3))
    assert encoders.get([four, eight]).card.dense is None
    with pytest.raises(InputError, match=r"grids of tokens differ \('mean-colour' 4 x 4, 'other' 8 x 8\)"):
        with_tokens(encoders.get([four, eight]))
    with pytest.raises(InputError, match="no dense tokens on one grid"):
        encoders.get([four, eight]).encode_dense(tiles(SMALL))

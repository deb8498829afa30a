"""Messages of Python functions in the words of the command line."""

from __future__ import annotations

import pytest

from stpred.cli.messages import OPTIONS, as_options

KNOWN = frozenset({o for o in OPTIONS.values() if o} | {"--no-swap-xy", "--no-segmentations"} - {"--name"})


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("stated nowhere; pass mpp= (micrometres per pixel).", "stated nowhere; pass --mpp (micrometres per pixel)."),
        ("is contradictory; check it or pass mpp=.", "is contradictory; check it or pass --mpp."),
        ("`mpp` must be a positive number, got 0.", "`--mpp` must be a positive number, got 0."),
        ("`mpp`=0.5 contradicts the alignment", "`--mpp 0.5` contradicts the alignment"),
        ("'m' exists; pass overwrite=True to replace the model.", "'m' exists; pass --overwrite to replace the model."),
        (
            "'m' exists; choose another name or say that it may be overwritten (overwrite).",
            "'m' exists; choose another name or pass --overwrite.",
        ),
        (
            "The picture 'a.png' exists; name another or say that it may be overwritten.",
            "The picture 'a.png' exists; name another or pass --overwrite.",
        ),
        (
            "use the full-resolution slide, or set stpred.settings.max_upsampling to 4 to go on with blurred tiles.",
            "use the full-resolution slide, or pass --allow-upsampling to go on with blurred tiles.",
        ),
        ("pass the image that it was run on as fullres_image=.", "pass the image that it was run on as --image."),
        ("name one as fullres_image=.", "name one as --image."),
        ("names like x); pass he_image= to add one.", "names like x); pass --image to add one."),
        (
            "pass he_alignment= (csv or 3 x 3 matrix), or mpp= if its corner",
            "pass --alignment (csv or 3 x 3 matrix), or --mpp if its corner",
        ),
        (
            "so they look swapped; pass swap_xy=True (or swap_xy=False to keep them).",
            "so they look swapped; pass --swap-xy (or --no-swap-xy to keep them).",
        ),
        ("present (um): [8]; name them with bin_sizes=.", "present (um): [8]; name them with --bin-size."),
        ("`bin_sizes`=[4] are not all there", "`--bin-size [4]` are not all there"),
        ("`segmentations=True`, but 'x' lacks", "`--segmentations`, but 'x' lacks"),
        ("states no pixel_size (x); pass pixel_size_um=.", "states no pixel_size (x); pass --pixel-size-um."),
        ("`device`='cuda:3' is not there", "`--device cuda:3` is not there"),
        ("`shapes_key`='a b' is a label image", "`--shapes 'a b'` is a label image"),
        ("name one with `shapes_key`.", "name one with `--shapes`."),
        ("for sections of one donor pass groups='slide'.", "for sections of one donor pass --groups slide."),
        ("`n_folds` is 9, but there are only 2 donors", "`--folds` is 9, but there are only 2 donors"),
        ("`out`='m.zarr' is no SpatialData store", "`--out m.zarr` is no SpatialData store"),
        ("leave `encoder` out.", "leave `--encoder` out."),
        ("`picture` must be one of ['.png'], got '.x'.", "`--picture` must be one of ['.png'], got '.x'."),
        ("exactly one is needed (call stpred.io.legacy_st with the files otherwise).",
         "exactly one is needed (otherwise name the files: --image, --spots)."),
        ("`image` is of one slide", "`--image` is of one slide"),
        # what stays
        ("the column `image` does not go with format 'wsi'", "the column `image` does not go with format 'wsi'"),
        ("name them as name=path.", "name them as name=path."),
        ("take slide=donor pairs", "take slide=donor pairs"),
        ("lower `lr`", "lower `lr`"),
        ("with a finer tile=TileSpec(mpp=0.5, size_px=224)", "with a finer tile=TileSpec(mpp=0.5, size_px=224)"),
        ("'run/mpp=0.5' is not there", "'run/mpp=0.5' is not there"),
    ],
)  # fmt: skip
def test_parameters_are_said_as_options(said: str, expected: str) -> None:
    assert as_options(said, known=KNOWN) == expected


def test_only_options_of_the_command_are_named() -> None:
    assert as_options("pass mpp= or `groups`", known={"--mpp"}) == "pass --mpp or `groups`"
    assert as_options("pass swap_xy=False", known={"--swap-xy"}) == "pass without --swap-xy"


def test_the_only_slide_is_called_by_its_name() -> None:
    assert as_options("Slide 'slide': x; slide 'slide' too", known=set(), slide="S1") == "Slide 'S1': x; slide 'S1' too"
    assert as_options("Slide 'slides' of", known=set(), slide="S1") == "Slide 'slides' of"

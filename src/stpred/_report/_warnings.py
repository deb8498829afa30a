"""What a reader of a report has to be warned of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stpred._core import keys
from stpred._core.tables import one_donor
from stpred._report._alignment import misaligned
from stpred._report._collect import LIBRARY, SCALES
from stpred.inference.provenance import is_of_training

if TYPE_CHECKING:
    import pandas as pd

    from stpred._report._collect import Content, Slide

OUTSIDE_LIMIT = 0.15
"""Fraction of out-of-distribution locations from which on a slide is named in the warnings."""


def warnings_of(content: Content, scores: pd.DataFrame | None) -> list[str]:
    """Return what a reader has to know before believing a number."""
    return [*_warnings_of_training(content, scores), *_warnings_of_slides(content), *_warnings_of_scores(content)]


def _warnings_of_training(content: Content, scores: pd.DataFrame | None) -> list[str]:
    """Return what limits the model's own scores: donors, slides that it was trained on, genes never validated."""
    slides, genes, messages = content.slides, content.genes, []
    training = slides[0].provenance.get("training") or {}
    if scores is not None and "donor_shared" in scores and scores["donor_shared"].astype(bool).any():
        messages.append(
            "Slides of one donor are on both sides of the cross-validation (donor_shared): for new donors these scores "
            "are optimistic."
        )
    if scores is None and (own := [s.name for s in slides if is_of_training(s.provenance)]):
        messages.append(
            f"The model was trained on {_join(own)}: scores and maps there say how well it fits, not how well it "
            "predicts."
        )
    if training.get("n_donors") == 1:
        messages.append("The model was trained on one donor only, so nothing is known of how it does on another.")
    if training.get("donors_given") is False and len(training.get("slides") or ()) > 1:
        messages.append("No donors were named in training: each slide was taken for a donor of its own.")
    if "cv_pearson" not in genes or genes["cv_pearson"].isna().all():
        if content.per_slide.get("pearson") is None:
            messages.append(
                "No gene was validated on left-out slides: nothing says how far to trust these predictions."
            )
    elif "trusted" in genes and genes["trusted"].notna().any() and not genes["trusted"].any():
        messages.append("The model marks no gene as trusted.")
    if content.scored_over is not None and slides[0].region != keys.GRID:
        messages.append(
            f"Genes are scored over {content.scored_over}, and predicted for {keys.in_words(slides[0].region)}: "
            "nothing was measured there, so how well these are predicted is not known."
        )
    return messages


def _warnings_of_slides(content: Content) -> list[str]:
    """Return which slides are out of distribution, too coarse, changed or not comparable."""
    slides, messages = content.slides, []
    fractions = {s.name: 1 - s.usual for s in slides if s.usual is not None and 1 - s.usual > OUTSIDE_LIMIT}
    if fractions:
        each = _join([f"{fraction:.0%} of {name}" for name, fraction in fractions.items()])
        messages.append(_outside(slides, each))
    if strange := [s.name for s in slides if (s.provenance.get("slide") or {}).get("in_distribution") is False]:
        messages.append(f"As a whole, {_join(strange)} look{'s' * (len(strange) == 1)} unlike the slides of training.")
    if coarse := [s.name for s in slides if s.provenance.get("upsampled")]:
        messages.append(f"The image of {_join(coarse)} is coarser than the model's tiles and was upsampled.")
    if slides[0].provenance.get("output_scale") == "relative":
        messages.append(
            "The predictions are relative: correlations mean something, their size does not, and there is no R2 or "
            "RMSE."
        )
    doubts = [d for s in slides for d in (s.provenance.get("intervals") or {}).get("doubts", ())]
    doubts += [d for s in slides if s.covered is not None for d in s.covered.attrs.get("doubts", ())]
    if doubts:
        messages.append("Intervals may not hold here. " + " ".join(dict.fromkeys(doubts)))
    messages += [s.changed for s in slides if s.changed is not None]
    messages += [m for m in [misaligned(slides)] if m is not None]
    if other := [s.name for s in slides if s.both is not None and s.both.same_library is False]:
        messages.append(
            f"The measurement of {_join(other)} counts library sizes over other genes than the model was trained on: "
            "log1p CP10k is not one scale, so errors and intervals say nothing (correlations of a gene change little)."
        )
    for what in ("family", "output_scale", "encoder"):
        kinds = {
            str((s.provenance.get(what) or {}).get("name") if what == "encoder" else s.provenance.get(what))
            for s in slides
        }
        if len(kinds) > 1:
            messages.append(
                f"The slides were predicted with different models ({what.replace('_', ' ')}: "
                f"{', '.join(sorted(kinds))})."
            )
    return messages


def _outside(slides: list[Slide], each: str) -> str:
    """Return what locations out of distribution mean: little, where the model has seen a single donor."""
    if not all(one_donor(s.provenance) for s in slides):
        return f"Many locations look unlike those of training, so predictions there are guesses: {each}."
    folds = any("cross_validated" in s.provenance for s in slides)
    return (
        f"{'Each fold' if folds else 'The model'} was trained on one donor, so how far donors differ is not known, and "
        f"the out-of-distribution score may flag too much: {each}."
    )


def _warnings_of_scores(content: Content) -> list[str]:
    """Return where the library size alone does as well, and slides of which little was measured."""
    messages = []
    overview = content.overview
    for scale in _in(overview):
        if "pearson" in overview and (scale, LIBRARY) in overview.index and (scale, content.model) in overview.index:
            ours, size = (overview.loc[(scale, m), "pearson"] for m in (content.model, LIBRARY))
            if size >= ours:
                messages.append(
                    f"On {SCALES.get(scale, scale)} the library size alone correlates with the measurement at least "
                    f"as well as the prediction does ({size:.2f} against {ours:.2f})."
                )
    if few := [
        s.name for s in content.slides if s.both is not None and s.both.matching.get("share_predicted", 1) < 0.5
    ]:
        messages.append(f"Fewer than half of the predicted locations of {_join(few)} were measured.")
    return messages


def _in(overview: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(overview.index.get_level_values(0))) if len(overview) else []


def _join(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")

"""The average of models that were trained apart, as one model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stpred._core.checks import InputError, listing
from stpred._core.expression.library import MIN_SHARE, Library
from stpred.models.base import Model, Record
from stpred.models.ensemble import Ensemble, EnsembleConfig
from stpred.models.files import load

PITCHES_DIFFER = 0.05
"""Share by which the spacings of training locations may differ."""

_ENCODER = ("name", "width", "revision", "layers", "pool", "views", "input_px")
"""What features depend on, beside the tile."""

_OF_ONE_FIT = ("epochs", "curve", "penalty", "seed", "summary")
"""What a record says of one training."""


def average(models: Iterable[Model | str | Path] | Mapping[Any, Any], *, name: str | None = None) -> Ensemble:
    """Average trained models, such as those of a cross-validation's folds, into one.

    Its prediction is the mean of theirs; ``layers["std"]`` holds their spread, and what they state themselves. It is
    saved, loaded, applied and validated as any other model, and remembers the slides of all: what any of its members
    was trained on is refused as a validation slide.

    Parameters
    ----------
    models
        Two or more trained models, or their folders; or a mapping to them, as ``cross_validate(return_models=True)``
        returns for each model. They are left as they are.
    name
        What the average is called; None: the name of the members if they have one, else ``"average"``.

    Returns
    -------
    :class:`stpred.models.Ensemble`, whose genes are in the order of the first. In ``record.var``, ``cv_pearson`` and
    ``cv_spearman`` are means over the slides held out of the members, ``n_slides`` the number of these, and ``trusted``
    is what most members trust. Outputs whose scale is open (relative) are brought to one size per gene before they are
    averaged. Conformal intervals are not taken over: see :func:`stpred.tl.conformal`.

    Raises
    ------
    InputError
        If the members predict other genes or on other scales, see other tiles, encoders, neighbours or cells, were
        trained at another spacing, or are generative; the message says in what they differ.

    References
    ----------
    Schmauch et al. (2025), A deep learning-based multiscale integration of spatial omics with tumor morphology,
    Nature Communications: the models of a cross-validation, averaged on external cohorts.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(3, size_um=(500, 500), n_genes=20)
    >>> how = {"genes": ["EPCAM", "COL1A2"], "shapes_key": "spots"}
    >>> scores, models = st.tl.cross_validate(slides, "ridge", groups="slide", return_models=True, **how)
    >>> model = st.models.average(models["ridge"])
    >>> sorted(model.record.training["slides"])
    ['donor0', 'donor1', 'donor2']
    """
    members = _loaded(models)
    for other in members[1:]:
        _refuse_different(members[0], other)
    _refuse_libraries(members)
    first = members[0]
    names = {m.record.name for m in members}
    config = EnsembleConfig(joined=tuple(m.config for m in members))
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn, and replaced at once
        joined = config.build(n_features=first.n_features, n_genes=first.n_genes)
    assert isinstance(joined, Ensemble)
    for copy, member in zip(joined.members, members, strict=True):
        copy.load_state_dict(member.state_dict())
    columns = np.stack([_columns(first.record, m.record) for m in members])
    joined.columns.copy_(torch.from_numpy(columns))
    joined.record = _record(members, columns, name=name or (names.pop() if len(names) == 1 else "average"))
    if first.record.target == "relative":
        size = np.stack([np.asarray(m.record.output_size)[c] for m, c in zip(members, columns, strict=True)])
        joined.set_scale(size)
        joined.record.output_size = size.mean(axis=0).tolist()
    if (encoder := getattr(first, "encoder", None)) is not None:
        joined.encoder = encoder  # type: ignore[assignment]
    return joined.eval()


def _loaded(models: Any) -> list[Model]:
    """Return the members."""
    if isinstance(models, (str, Path, Model)):
        raise InputError("`models` must be two or more trained models; one alone is its own average.")
    given = list(models.values()) if isinstance(models, Mapping) else list(models)
    found = [load(m) if isinstance(m, (str, Path)) else m for m in given]
    for member in found:
        if not isinstance(member, Model):
            more = " of one of its models" if isinstance(member, Mapping) else ""
            raise InputError(f"`models` must be trained models or their folders{more}, got {type(member).__name__}.")
        if not member.record.genes:
            raise InputError(f"A {member.family!r} model of `models` is not trained.")
        if member.config.generative:
            raise InputError(
                f"Model {member.record.name!r} ({member.family!r}) is generative: posteriors are not averaged."
            )
    if len(found) < 2:
        raise InputError(f"`models` must be two or more trained models, got {len(found)}.")
    return found


def _refuse_different(first: Model, other: Model) -> None:
    """Refuse members that cannot be averaged, and say in what they differ."""
    ours, theirs = first.record, other.record
    who = f"{ours.name!r} ({_trained(first)}) and {theirs.name!r} ({_trained(other)})"
    if set(ours.genes) != set(theirs.genes):
        alone = [[g for g in a.genes if g not in set(b.genes)] for a, b in ((ours, theirs), (theirs, ours))]
        raise InputError(
            f"Models {who} predict other genes: {len(alone[0])} only the first ({listing(alone[0], most=3)}), "
            f"{len(alone[1])} only the second ({listing(alone[1], most=3)}). A gene rule chooses anew in every fold; "
            "train on one list of genes."
        )
    for what, get in _ALIKE.items():
        if (a := get(first)) != (b := get(other)):
            if isinstance(a, dict) and isinstance(b, dict):
                keys = [k for k in {**a, **b} if a.get(k) != b.get(k)]
                a, b = ({k: side.get(k) for k in keys} for side in (a, b))
            raise InputError(f"Models {who} {what}: {a} and {b}.")
    pitches = [r.pitch_um for r in (ours, theirs) if r.pitch_um is not None]
    if len(pitches) == 2 and max(pitches) > (1 + PITCHES_DIFFER) * min(pitches):
        raise InputError(f"Models {who} were trained at other spacings: {pitches[0]:g} and {pitches[1]:g} um.")
    if ours.target == "relative" and not (ours.output_size and theirs.output_size):
        raise InputError(
            f"The outputs of models {who} are relative, and one does not say how large they are on its training slides "
            "(published weights, fine-tuned models and those of earlier versions do not): train it again."
        )


def _trained(model: Model) -> str:
    slides = list(model.record.training.get("slides", ()))
    return f"trained on {listing(slides, most=3)}" if slides else f"a {model.family!r} model"


def _encoder(model: Model) -> Any:
    """Return what of the card of a model's encoder its features depend on."""
    card = model.record.encoder
    members = [{k: m.get(k) for k in (*_ENCODER, "tile") if m.get(k) is not None} for m in card.get("members", ())]
    return {k: card.get(k) for k in _ENCODER if card.get(k) is not None} | ({"members": members} if members else {})


_ALIKE: dict[str, Callable[[Model], Any]] = {
    "predict on other scales": lambda m: m.record.target,
    "predict amounts per other totals": lambda m: m.config.per,
    "count log shares over other numbers of genes": lambda m: m.record.n_measured,
    "see other tiles": lambda m: m.record.tile,
    "see tiles through other encoders": _encoder,
    "take features of other widths": lambda m: m.n_features,
    "need other neighbours, cells or parts of a location (give `context_um` of their settings)": lambda m: vars(
        m.needs
    ),
    "were trained on images that were normalised in other ways": lambda m: m.record.training.get("normalised"),
}
"""What members must have in common, by how a message says that they do not."""


def _refuse_libraries(members: Sequence[Model]) -> None:
    """Refuse members whose library sizes were counted over materially different genes: their log scales differ."""
    known = [(m, library) for m in members if (library := Library.parse(m.record.library)) is not None]
    for m, library in known[1:]:
        first, own = known[0]
        share = min(own.share_of(library.genes), library.share_of(own.genes))
        if share < MIN_SHARE:
            raise InputError(
                f"Models {first.record.name!r} ({_trained(first)}) and {m.record.name!r} ({_trained(m)}) counted "
                f"library sizes over other genes, so that log1p CP10k is another scale: those that both have carry "
                f"{share:.0%} of the counts of one."
            )


def _columns(first: Record, own: Record) -> Any:
    """Return the (n_genes,) position of each of the first model's genes among a member's."""
    position = {g: i for i, g in enumerate(own.genes)}
    return np.array([position[g] for g in first.genes], dtype=np.int64)


def _record(members: Sequence[Model], columns: Any, *, name: str) -> Record:
    """Return what is known of all members together."""
    first = members[0].record
    reach = [m.record.reach_um for m in members if m.record.reach_um is not None]
    pitch = [m.record.pitch_um for m in members if m.record.pitch_um is not None]
    return Record(
        name=name,
        genes=list(first.genes),
        var=_var([m.record for m in members], columns),
        encoder=first.encoder,
        tile=first.tile,
        gene_rule=first.gene_rule,
        target=first.target,
        pitch_um=float(np.median(pitch)) if pitch else None,
        region=first.region,
        reach_um=float(np.median(reach)) if reach else None,
        cells=first.cells,
        training=_training(members),
        library=_library(members),
    )


def _var(records: Sequence[Record], columns: Any) -> dict[str, list[Any]]:
    """Return the genes' statistics: means over members, of held-out slides weighted by their number."""

    def matrix(name: str, default: float) -> Any:
        each = [np.array([default if v is None else v for v in r.var[name]], dtype=np.float64) for r in records]
        return np.stack([v[c] for v, c in zip(each, columns, strict=True)])

    shared = [k for k in records[0].var if all(k in r.var for r in records)]
    weight = matrix("n_slides", 0.0) if "n_slides" in shared else None
    found: dict[str, list[Any]] = {}
    for column in shared:
        if column == "gene_id":
            found[column] = list(records[0].var[column])
        elif column == "n_slides":
            found[column] = weight.sum(axis=0).astype(int).tolist()  # type: ignore[union-attr]
        elif column == "trusted":
            found[column] = (matrix(column, 0.0).mean(axis=0) > 0.5).tolist()
        elif column in ("cv_pearson", "cv_spearman", "rmax", "mean"):
            values = matrix(column, np.nan)
            known = np.isfinite(values)
            w = known * (weight if weight is not None and column.startswith("cv_") else 1.0)
            total = np.where(known, values, 0.0) * w
            with np.errstate(invalid="ignore", divide="ignore"):
                mean = total.sum(axis=0) / w.sum(axis=0)
            found[column] = [None if not np.isfinite(v) else float(f"{v:.6g}") for v in mean]
    return found


def _training(members: Sequence[Model]) -> dict[str, Any]:
    """Return the training of all members: their slides together, and what all say alike."""
    each = [m.record.training for m in members]
    merged = {k: v for k, v in each[0].items() if k not in _OF_ONE_FIT and all(t.get(k) == v for t in each)}
    slides: dict[str, Any] = {}
    mpp: dict[str, Any] = {}
    for i, training in enumerate(each):
        for s, facts in training.get("slides", {}).items():
            # Slides of two cohorts may have one name: both are remembered.
            known = slides.get(s, facts).get("image") == facts.get("image")
            called = s if known else f"{s} (of model {i})"
            slides[called] = facts
            if s in training.get("mpp", {}):
                mpp[called] = training["mpp"][s]
    limits = [t["slide_limit"] for t in each if t.get("slide_limit") is not None]
    own = [
        {"id": m.id, "family": m.family, "slides": list(t.get("slides", ()))}
        for m, t in zip(members, each, strict=True)
    ]
    return merged | {
        "slides": slides,
        "mpp": mpp,
        "validation": sorted({s for t in each for s in t.get("validation", ())}),
        "n_donors": len({facts.get("donor") for facts in slides.values()}),
        "donors_given": any(t.get("donors_given", False) for t in each),
        "slide_limit": float(np.mean(limits)) if len(limits) == len(each) else None,
        "averaged": own,
    }


def _library(members: Sequence[Model]) -> dict[str, Any]:
    """Return the library of the genes that all members counted over."""
    known = [library for m in members if (library := Library.parse(m.record.library)) is not None]
    if len(known) < len(members):
        return {}
    common = set(known[0].genes).intersection(*(library.genes for library in known[1:]))
    genes = [g for g in known[0].genes if g in common]
    shares = []
    for library in known:
        share = dict(zip(library.genes, library.share, strict=True))
        shares.append([share[g] for g in genes])
    mean = np.mean(shares, axis=0)
    size = float(np.median([library.median_size for library in known]))
    return Library(tuple(genes), mean / max(mean.sum(), 1e-30), size).to_dict()

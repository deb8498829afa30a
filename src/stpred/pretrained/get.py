"""Published predictors by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred import encoders
from stpred._core import keys
from stpred._core.checks import InputError, listing, one_of, positive, warn
from stpred._core.specs import TileSpec
from stpred._core.targets import SCALES
from stpred.models.base import Record
from stpred.models.files import load
from stpred.models.pretrained.model import Pretrained
from stpred.pretrained import lazyslide
from stpred.pretrained.lazyslide import PREFIX, LazySlidePredictor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stpred.encoders.base import Encoder

DEFAULT_MPP = 0.5


def get(
    name: str | Path,
    *,
    weights: str | Path | Pretrained | None = None,
    genes: Iterable[str] | None = None,
    gene_ids: Mapping[str, str] | None = None,
    encoder: Any = None,
    tile: TileSpec | None = None,
    target: str | None = None,
    pitch_um: float | None = None,
    reference: Any = None,
    device: str | None = None,
    **settings: Any,
) -> Pretrained:
    """Make a model of a predictor that others trained and published.

    It is a model like any other: :func:`stpred.tl.predict` applies it to spots, bins, cells and grids,
    :func:`stpred.tl.validate` and :func:`stpred.tl.cross_validate` score it beside models that are trained,
    :func:`stpred.tl.recalibrate` and :func:`stpred.tl.finetune` bring it to a slide's own scale. Its code is that of
    its package, and nothing is fetched unless you name a predictor without `weights`.

    Parameters
    ----------
    name
        ``"lazyslide/"`` and a name of the tasks ``feature_prediction`` and ``tile_prediction`` of lazyslide-models,
        such as ``"lazyslide/path2space"``, ``"lazyslide/stpath"`` or ``"lazyslide/deepspotm"``; or the folder of such a
        model that :func:`stpred.models.save` wrote, which then gets its weights from `weights`.
    weights
        Folder with the files of the predictor's hub repository (or its file of weights, with the others beside it), or
        a model of this function that has them. None: its package asks the Hugging Face hub.
    genes
        Symbols (or what its outputs are called) to predict, in this order; None: all. Where the package can leave the
        others out, it does.
    gene_ids
        Symbols to Ensembl ids, such as ``dict(zip(table.var_names, table.var["gene_id"]))``: outputs that are known by
        their id get the symbol.
    encoder
        Of a predictor of features: the encoder that it was trained on, as in :func:`stpred.encoders.get`, such as
        ``stpred.encoders.get("gigapath", weights=folder)``. None: by its name, from the hub.
    tile
        What is read around each location; None: the encoder's own, or of a predictor of tiles its input size at 0.5 um
        per pixel.
    target
        Scale of the predictions, where you know it: ``"log1p_cp10k"``, ``"counts"`` or ``"log_share"``. None:
        ``"relative"``, a scale of their own, so that correlations alone mean something until they are recalibrated.
    pitch_um
        Of a predictor that sees all locations of a slide at once: distance of those that it was trained on. Finer
        regions are then predicted among points at that distance, a few at a time. None: 100 of STPath; of others, every
        region is taken as it is.
    reference
        (n, width) features of its training tiles (of a predictor of tiles: (n, 24) colour statistics), or a list of
        these with one array for each slide, from which out-of-distribution scores are computed. None: those of its
        package, where it has them; otherwise ``ood_score`` is NaN and ``in_distribution`` False.
    device
        Where it runs; None takes a GPU if there is one.
    **settings
        Further keywords of the predictor, such as ``organ_type="Breast"`` and ``tech_type="Visium"`` of STPath.

    Returns
    -------
    Model
        Of family ``"pretrained"``. ``record.training`` has its licence, source, revision (a fingerprint of the
        weights) and package, and so has every table of its predictions. :func:`stpred.models.save` keeps everything
        but the weights and the code.

    Raises
    ------
    InputError
        If there is no predictor of this name (those that exist are listed), its package is not installed, its weights
        cannot be had or are others than those of a saved model, its outputs are no numbers, or it lacks a gene.

    References
    ----------
    Zheng, Abila, Chrenkova, Winkler and Rendeiro, LazySlide, 2025.

    Examples
    --------
    >>> import stpred as st
    >>> try:
    ...     st.models.get("lazyslide/nothing")
    ... except st.InputError as error:
    ...     str(error).startswith("No published predictor named")
    True
    """
    if isinstance(name, Path) or (Path(name).is_dir() and not str(name).startswith(PREFIX)):
        given = {"genes": genes, "gene_ids": gene_ids, "tile": tile, "target": target, "pitch_um": pitch_um,
                 "reference": reference, **settings}  # fmt: skip
        if odd := [k for k, v in given.items() if v is not None]:
            raise InputError(f"{str(name)!r} is a saved model, which says {listing(odd)} itself; leave them out.")
        return _saved(name, weights=weights, encoder=encoder, device=device)
    if isinstance(weights, Pretrained):
        raise InputError("A model as `weights` goes with the folder of a saved one; pass a folder or file of weights.")
    own = _find(str(name))
    wanted = None if genes is None else _wanted(genes)
    runtime = LazySlidePredictor(
        own, weights=None if weights is None else Path(weights), genes=wanted, gene_ids=gene_ids, settings=settings
    )
    used = _encoder(own, runtime, encoder, tile, device)
    runtime.name_outputs(used.card.width)
    model = _model(own, runtime, used, settings, wanted)
    model.record.target = "relative" if target is None else one_of(target, (*SCALES, "relative"), name="target")
    if runtime.whole_slide:
        pitch_um = lazyslide.PITCH_UM.get(own) if pitch_um is None else positive(pitch_um, name="pitch_um")
        model.record.pitch_um = pitch_um
    elif pitch_um is not None:
        raise InputError(f"`pitch_um` is for predictors that see a slide as a whole; {str(name)!r} sees tiles.")
    _judge_by(model, runtime.reference if reference is None else reference)
    if (note := model.record.training.get("note")) is not None:
        warn(f"Of {PREFIX}{own}: {note}.")
    return model.run_by(runtime)


def _find(name: str) -> str:
    """Return the name in the registry, or say what there is."""
    if not lazyslide.installed():
        raise InputError(
            f"No published predictor named {name!r}: those of lazyslide-models come with "
            "`pip install 'stpred[encoders]'`."
        )
    known = {PREFIX + n: n for n in lazyslide.predictors()}
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise InputError(f"No published predictor named {name!r}{hint}; there are {listing(sorted(known), most=40)}.")
    return known[name]


def _wanted(genes: Iterable[str]) -> list[str]:
    found = list(dict.fromkeys([genes] if isinstance(genes, str) else [str(g) for g in genes]))
    if not found:
        raise InputError("`genes` is empty; name some, or pass None for all.")
    return found


def _encoder(own: str, runtime: LazySlidePredictor, given: Any, tile: TileSpec | None, device: str | None) -> Encoder:
    """Return what reads tiles for a predictor: pixels, or the encoder that it was trained on."""
    if runtime.kind == "tiles":
        if given is not None:
            raise InputError(f"{PREFIX}{own} reads tiles itself; leave `encoder` out.")
        return encoders.get("pixels", tile=TileSpec(DEFAULT_MPP, runtime.tile_px) if tile is None else tile)
    wanted = getattr(lazyslide.predictors()[own], "features_model_name", None)
    if given is None and wanted is None:
        raise InputError(f"{PREFIX}{own} does not say which encoder it was trained on; pass `encoder`.")
    # An encoder in memory has its tile already.
    chosen: Any = wanted if given is None else given
    used = encoders.get(chosen, tile=None if hasattr(given, "card") else tile, device=device)
    if wanted is not None and used.card.name != wanted:
        raise InputError(
            f"{PREFIX}{own} was trained on features of {wanted!r}, not of {used.card.name!r}; pass "
            f"encoder=stpred.encoders.get({wanted!r}, weights=<folder>)."
        )
    if tile is not None and used.card.tile != tile:
        raise InputError(f"The encoder {used.card.name!r} was made for {used.card.tile}, not for {tile}.")
    return used


def _model(
    own: str, runtime: LazySlidePredictor, used: Encoder, settings: Mapping[str, Any], wanted: list[str] | None
) -> Pretrained:
    symbols, ids = runtime.symbols, runtime.gene_ids
    if wanted is not None:
        at = {k: i for i, k in reversed(list(enumerate(runtime.keys)))} | {s: i for i, s in enumerate(symbols)}
        if missing := [g for g in wanted if g not in at]:
            raise InputError(
                f"{PREFIX}{own} does not predict {listing(missing)}; it has {len(symbols)} outputs, such as "
                f"{listing(symbols[:3])}."
            )
        chosen = [at[g] for g in wanted]
        symbols, ids = [symbols[i] for i in chosen], [ids[i] for i in chosen]
    config = Pretrained.Config(
        source=PREFIX + own, kind=runtime.kind, whole_slide=runtime.whole_slide, needs_coords=runtime.needs_coords,
        revision=runtime.revision, settings=dict(settings), chosen=wanted is not None,
    )  # fmt: skip
    model = Pretrained(config, n_features=used.card.width, n_genes=len(symbols))
    said = lazyslide.card(own, lazyslide.predictors()[own])
    model.record = Record(
        name=keys.slug(own),
        genes=list(symbols),
        var={"gene_id": [i or "" for i in ids]} if any(ids) else {},
        encoder=used.card.to_dict(),
        tile=used.card.tile.to_dict(),
        training={"summary": f"published weights of {PREFIX}{own}", "source": PREFIX + own,
                  "revision": runtime.revision, "hexagonal": True, **said},
    )  # fmt: skip
    model.encoder = used  # type: ignore[assignment]
    return model.eval()


def _judge_by(model: Pretrained, reference: Any) -> None:
    """Fit out-of-distribution distances to features of the training tiles, where they are known."""
    if reference is None:
        model.record.training["ood_reference"] = "none: ood_score is NaN"
        return
    slides = _arrays(reference)
    if odd := [
        a.shape for a in slides if a.ndim != 2 or a.shape[1] != model.n_ood_features or not np.isfinite(a).all()
    ]:
        raise InputError(
            f"`reference` must hold finite features of shape (n, {model.n_ood_features}), got {listing(map(str, odd))}."
        )
    limit = model.typical.fit(slides)
    model.record.training["ood_reference"] = f"{sum(map(len, slides))} training tiles of {len(slides)} slides"
    if limit is not None:
        model.record.training["slide_limit"] = round(limit + 5e-5, 4)


def _arrays(reference: Any) -> list[NDArray[np.float32]]:
    if isinstance(reference, Mapping):
        reference = list(reference.values())
    several = isinstance(reference, Sequence)
    found = [np.asarray(a, dtype=np.float32) for a in (reference if several else [reference])]
    if not found or any(len(a) < 2 for a in found):
        raise InputError("`reference` must hold the features of two training tiles or more of each slide.")
    return found


def _saved(path: str | Path, *, weights: Any, encoder: Any, device: str | None) -> Pretrained:
    """Return a saved model with its predictor."""
    model = load(path)
    if not isinstance(model, Pretrained):
        raise InputError(f"{str(path)!r} is a model of family {model.family!r}, all of it; load it with models.load.")
    config = model.config
    if weights is None:
        raise InputError(
            f"The model in {str(path)!r} names {config.source!r}, whose weights are not part of it: pass their folder "
            f"as `weights`, or weights=stpred.models.get({config.source!r}) to have them fetched."
        )
    if encoder is not None:
        model.encoder = encoders.get(encoder, device=device)  # type: ignore[assignment]
    if isinstance(weights, Pretrained):
        if getattr(model, "encoder", None) is None and hasattr(weights, "encoder"):
            model.encoder = weights.encoder
        return model.run_by(weights.runtime)
    own = _find(config.source)
    ids = dict(zip(model.record.genes, model.record.var.get("gene_id", ()), strict=False))
    runtime = LazySlidePredictor(
        own, weights=Path(weights), genes=model.record.genes if config.chosen else None,
        gene_ids={g: i for g, i in ids.items() if i}, settings=config.settings,
    )  # fmt: skip
    runtime.name_outputs(model.n_features)
    return model.run_by(runtime)

"""Weights that are here, and programs that readers use: each is opened, none is downloaded."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import numpy as np

from stpred._core.checks import InputError
from stpred._core.disk.wheels import WHEELS
from stpred._core.files import reason
from stpred._core.words.phrases import count
from stpred.cli.doctor.finding import BROKEN, NOTE, Finding, Section
from stpred.cli.doctor.machine import hub_folder
from stpred.cli.doctor.packages import import_failure, is_importable

_ENCODERS = "pip install 'stpred[encoders]'"
_AGAIN = "pip install --force-reinstall --no-deps stpred"


def weights() -> Section:
    """Yield bundled models and networks, encoders of installed packages, and what was downloaded before."""
    from stpred.models.registry import bundled

    for name in bundled():
        yield _model(name)
    yield _nuclei()
    yield _encoder()
    for name, wheel in WHEELS.items():
        if wheel.folder() is None:
            yield Finding(name, "not installed", NOTE, f"ImageNet weights, {wheel.licence}: {wheel.install}")
            continue
        try:
            yield Finding(name, wheel.source)
        except InputError as error:
            yield Finding(name, "damaged", BROKEN, str(error))
    yield _timm()
    yield _lazyslide()
    yield _downloaded()


def programs() -> Section:
    """Yield the library that opens scanner formats."""
    needed = [m for m in ("wsidata", "openslide") if not is_importable(m)]
    install = "pip install 'stpred[wsi]'"
    if needed:
        hint = f"mrxs, ndpi and other scanner formats cannot be read: {install}"
        yield Finding("OpenSlide", f"lacks {' and '.join(needed)}", NOTE, hint)
        return
    if failure := import_failure("openslide"):
        yield Finding("OpenSlide", "does not load", BROKEN, f"{failure}; {install} brings the library")
        return
    import openslide

    yield Finding("OpenSlide", openslide.__library_version__, hint="mrxs, ndpi and other scanner formats can be read")


def _model(name: str) -> Finding:
    """Load a bundled model, and its encoder where that is installed."""
    from stpred import models
    from stpred._core.words.encoders import encoder_words
    from stpred.encoders.registry import from_card

    try:
        record = models.load(name).record
    except (InputError, OSError) as error:
        return Finding(f"model {name}", "does not load", BROKEN, f"{error} {_AGAIN}")
    details = {"genes": len(record.genes), "encoder": record.encoder["name"]}
    said = f"{count(len(record.genes), 'gene')}; encoder: {encoder_words(record.encoder, record.tile)}"
    try:
        from_card(record.encoder, device="cpu")
    except InputError as error:
        return Finding(f"model {name}", said, NOTE, f"its encoder is not there: {error}", details)
    return Finding(f"model {name}", said, details=details)


def _nuclei() -> Finding:
    import stpred.nuclei

    folder = Path(next(iter(stpred.nuclei.__path__))) / "_weights"
    try:
        wanted = json.loads((folder / "nuclei.json").read_text())["sha256"]
        digest = hashlib.sha256((folder / "nuclei.safetensors").read_bytes()).hexdigest()
    except (OSError, ValueError, KeyError) as error:
        return Finding("nucleus network", "does not load", BROKEN, f"{reason(error)}; {_AGAIN}")
    if digest != wanted:
        return Finding("nucleus network", "damaged", BROKEN, f"its checksum is another one; {_AGAIN}")
    return Finding("nucleus network", "bundled", hint="stpred.pp.nuclei(sdata, method='network')")


def _encoder() -> Finding:
    """Embed tiles with the default encoder."""
    import stpred as st

    tiles = np.random.default_rng(0).integers(120, 240, (2, 224, 224, 3), dtype=np.uint8)
    encoder = st.encoders.get("morphology", device="cpu")
    try:
        encoder.encode(tiles)  # compiles
        start = time.perf_counter()
        features = encoder.encode(tiles)
        seconds = (time.perf_counter() - start) / len(tiles)
    except Exception as error:  # noqa: BLE001  # whatever numba or another package raises
        return Finding("encoder morphology", "does not compute", BROKEN, f"{type(error).__name__}: {reason(error)}")
    if not np.isfinite(features).all():
        return Finding("encoder morphology", "gives values that are not finite", BROKEN, _AGAIN)
    said = f"built in, {seconds * 1e3:.0f} ms per tile on the CPU"
    return Finding("encoder morphology", said, details={"seconds_per_tile": seconds})


def _timm() -> Finding:
    if not is_importable("timm"):
        return Finding("timm", "not installed", NOTE, f"encoders such as timm/resnet50.tv_in1k: {_ENCODERS}")
    if failure := import_failure("timm"):
        return Finding("timm", "cannot be imported", BROKEN, f"{failure}; {_ENCODERS}")
    import timm

    n = len(timm.list_models())
    return Finding("timm", f"{n} architectures", hint="weights are downloaded when asked for", details={"n": n})


def _lazyslide() -> Finding:
    if not is_importable("lazyslide_models"):
        return Finding("lazyslide-models", "not installed", NOTE, f"pathology encoders and predictors: {_ENCODERS}")
    if failure := import_failure("lazyslide_models"):
        return Finding("lazyslide-models", "cannot be imported", BROKEN, f"{failure}; {_ENCODERS}")
    from lazyslide_models import MODEL_REGISTRY

    from stpred.pretrained import lazyslide

    predictors = sorted(lazyslide.predictors())
    encoders = sorted(n for n, cls in MODEL_REGISTRY.items() if hasattr(cls, "encode_image"))
    said = f"{len(encoders)} encoders, predictors {', '.join(predictors)}"
    return Finding("lazyslide-models", said, hint="weights are downloaded when asked for; some need access",
                   details={"encoders": encoders, "predictors": predictors})  # fmt: skip


def _downloaded() -> Finding:
    """List the repositories whose files the hub's folder has."""
    folder = hub_folder()
    found = [] if folder is None else sorted(folder.glob("models--*")) if folder.is_dir() else []
    names = [p.name.removeprefix("models--").replace("--", "/") for p in found if any(p.glob("snapshots/*/*"))]
    if not names:
        return Finding("downloaded weights", "none", NOTE, "" if folder is None else str(folder), {"repositories": []})
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return Finding("downloaded weights", shown, hint=str(folder), details={"repositories": names})

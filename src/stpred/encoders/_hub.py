"""An encoder that was trained here is uploaded to the Hugging Face hub, with a card."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stpred._core.disk import hub
from stpred._core.disk.hub_cards import header, licence_fields, section, table, text_of
from stpred.encoders import _saved

if TYPE_CHECKING:
    from stpred.encoders.trained import TrainedEncoder

MAX_SLIDES = 50
"""Names of slides in the card."""

TAGS = ["biology", "histopathology", "feature-extraction", "self-supervised", "spatial-transcriptomics", "scverse"]


def push_to_hub(
    encoder: TrainedEncoder,
    repo_id: str,
    *,
    licence: str | None = None,
    notes: str | None = None,
    private: bool = False,
    branch: str | None = None,
    message: str | None = None,
) -> str:
    """Upload an encoder that was trained here to the Hugging Face hub, with a card made of its record.

    ``config.json``, ``model.safetensors`` and ``README.md`` are written as one commit. The record is public then. Log
    in before, by ``hf auth login`` or the variable ``HF_TOKEN``.

    Parameters
    ----------
    encoder
        What :func:`stpred.tl.pretrain_encoder` or :func:`load` returned.
    repo_id
        ``"owner/name"``; it is created if it is not there.
    licence
        Of the weights, an SPDX identifier such as ``"cc-by-4.0"``; None leaves it open. Weights that training began
        with may have a licence that binds yours.
    notes
        Markdown for the card, such as the study that the slides are from.
    private
        Create the repository closed to others.
    branch
        Branch to commit to, created if it is not there; None is ``main``.
    message
        Of the commit.

    Returns
    -------
    ``"hf:owner/name@commit"``, which :func:`load` takes.

    Raises
    ------
    InputError
        If the encoder was not trained here, huggingface_hub is not installed, or the hub refuses.

    Examples
    --------
    >>> import stpred as st
    >>> st.encoders.push_to_hub("morphology", "owner/name")
    Traceback (most recent call last):
    ...
    stpred._core.checks.InputError: Only an encoder that stpred.tl.pretrain_encoder returned can be uploaded, ...
    """
    _saved.check_trained(encoder, what="uploaded")
    target = hub.HubName.parse(repo_id)
    card = encoder_card(encoder, target.repository, licence=licence, notes=notes)
    with tempfile.TemporaryDirectory() as temporary:
        folder = _saved.write(encoder, Path(temporary) / "encoder")
        return hub.push(
            folder,
            repo_id,
            card,
            private=private,
            branch=branch,
            message=message or f"Encoder {encoder.card.name} ({encoder.card.revision})",
        )


def encoder_card(encoder: TrainedEncoder, repository: str, *, licence: str | None, notes: str | None) -> str:
    """Return the text of the card (``README.md``)."""
    card = encoder.card
    parts = [
        header(
            {
                "library_name": "stpred",
                **({} if licence is None else licence_fields(licence)),
                "pipeline_tag": "image-feature-extraction",
                "tags": TAGS,
            }
        ),
        f"# {text_of(card.name)}\n\nAn encoder of H&E tiles: {card.width} features of a tile of "
        f"{card.tile.size_um:.4g} um ({card.tile.size_px} px at {card.tile.mpp:g} um per pixel), for "
        "[stpred](https://pypi.org/project/stpred/).",
        "" if notes is None else section("Notes of the author", notes.strip()),
        section("How to use it", _usage(repository)),
        section("How it was trained", _training(encoder)),
        section("Intended use", "Research on H&E images. Not for diagnosis, and not for decisions about patients."),
        section(
            "Limits",
            "Features hold for tissue, staining and scanners like those of the training slides. Compare it with the "
            "encoder `morphology` on slides with measured expression before use "
            "(`stpred.tl.probe_encoder`, `stpred.tl.cross_validate`).",
        ),
    ]
    return "\n\n".join(p for p in parts if p) + "\n"


def _usage(repository: str) -> str:
    return f"""\
```bash
pip install "stpred[encoders,hub]"
```

```python
import stpred as st

encoder = st.encoders.load("hf:{repository}")
model = st.tl.train(slides, "ridge", encoder=encoder)
```

`hf:{repository}@COMMIT` is this version for good. A model keeps the commit of its encoder."""


def _training(encoder: TrainedEncoder) -> str:
    card, record = encoder.card, encoder.record
    rows = [
        ("network", f"`{text_of(encoder.backbone)}` (timm)"),
        ("source", text_of(card.source)),
        ("revision of the weights", f"`{text_of(card.revision)}`"),
        ("licence in the record", text_of(card.licence)),
        *((text_of(k.replace("_", " ")), text_of(v)) for k, v in record.items() if isinstance(v, (str, int, float))),
    ]
    said = table(("", ""), rows)
    slides = record.get("slides")
    if isinstance(slides, dict) and slides:
        said += f"\n\n{len(slides)} slides: {', '.join(text_of(s) for s in list(slides)[:MAX_SLIDES])}"
        said += "." if len(slides) <= MAX_SLIDES else f" and {len(slides) - MAX_SLIDES} more, see `config.json`."
    if rows := list(_checks(record.get("check"))):
        said += f"\n\nChecks on tiles that were held out:\n\n{table(('check', 'value'), rows)}"
    return said


def _checks(found: Any, before: str = "") -> Iterator[tuple[str, str]]:
    """Yield names and values of the checks of a record, those of nested ones with both names."""
    if isinstance(found, dict):
        for name, value in found.items():
            yield from _checks(value, f"{before}, {name}" if before else str(name))
    elif before and isinstance(found, (str, int, float)):
        yield text_of(before.replace("_", " ")), f"{found:.4g}" if isinstance(found, float) else text_of(found)

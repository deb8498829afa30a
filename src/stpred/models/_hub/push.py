"""A trained model is uploaded to the hub: its two files and a generated card, as one commit."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from stpred._core.checks import InputError
from stpred._core.disk import hub
from stpred._core.disk.weights import write_folder
from stpred.models._hub.card import model_card

if TYPE_CHECKING:
    from stpred.models.base import Model


def push_model(
    model: Model,
    repo_id: str,
    *,
    licence: str | None,
    notes: str | None,
    private: bool,
    branch: str | None,
    message: str | None,
) -> str:
    """Upload a trained model; see :meth:`stpred.models.Model.push_to_hub`."""
    target = hub.HubName.parse(repo_id)
    if not model.record.genes:
        raise InputError(f"The {model.family!r} model is not trained, so there is nothing to upload.")
    if model.family == "pretrained":
        raise InputError(
            f"Model {model.record.name!r} is a published predictor: its weights are no part of it and belong to its "
            "authors, so it is not uploaded; name it in your code with stpred.models.get."
        )
    card = model_card(model, target.repository, licence=licence, notes=notes)
    content = model.stored()
    content["record"] |= {"hub": {}}  # of the new repository the commit is not known yet
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_folder(Path(temporary) / "model", content, model.state_dict(), what="model")
        return hub.push(
            folder,
            repo_id,
            card,
            private=private,
            branch=branch,
            message=message or f"Model {model.record.name} ({model.id})",
        )

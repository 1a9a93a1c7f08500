"""What the licence of a model asks of who uses it."""

from __future__ import annotations

import re

from sdm.models.registry import AnyModel

_FREE = re.compile(r"(CC0|CC[ -]BY[ -]\d|MIT|Apache|BSD|ISC|Unlicense|public domain)[\w .-]*", re.IGNORECASE)
"""Licences that leave a user free to do anything with a map, credit given."""


def licence_of(model: AnyModel) -> str:
    """Its licence in words: "CC BY-NC-SA 4.0 (non-commercial)"; "" if it states none."""
    return f"{model.licence} (non-commercial)" if re.search(r"\bNC\b", model.licence) else model.licence


def licence_note(model: AnyModel) -> str:
    """A line for the user of a model whose licence binds, else ""."""
    bound = model.licence and not _FREE.fullmatch(model.licence)
    return f"Model {model.name}: licence {licence_of(model)}" if bound else ""


def credits_of(model: AnyModel) -> tuple[str, ...]:
    """A line of credit with the model's licence; none where it states none."""
    return (f"Model {model.name}: {licence_of(model)}",) if model.licence else ()

"""Notices that the licence of a model requires."""

from __future__ import annotations

import re

from sdm.models.joint import members_of
from sdm.models.protocol import Model

_FREE = re.compile(r"(CC0|CC[ -]BY[ -]\d|MIT|Apache|BSD|ISC|Unlicense|public domain)[\w .-]*", re.IGNORECASE)
"""Licences that allow any use of a map, credit given."""


def licence_text(model: Model) -> str:
    """Its licence in words: "CC BY-NC-SA 4.0 (non-commercial)"; "" if it states none."""
    return f"{model.licence} (non-commercial)" if re.search(r"\bNC\b", model.licence) else model.licence


def licence_note(model: Model) -> str:
    """A line for the user of a model whose licence restricts the use of its maps, else ""."""
    restricted = [m for m in members_of(model) if m.licence and not _FREE.fullmatch(m.licence)]
    return "; ".join(f"Model {m.name}: licence {licence_text(m)}" for m in restricted)


def credit_lines(model: Model) -> tuple[str, ...]:
    """A line of credit with the licence of a model, or of each that it consists of; none where it states none."""
    return tuple(f"Model {m.name}: {licence_text(m)}" for m in members_of(model) if m.licence)

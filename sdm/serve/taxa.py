"""Taxa as the page shows them."""

from __future__ import annotations

from sdm.names import Taxon
from sdm.names.text import fold


def taxon_fields(taxon: Taxon) -> dict[str, str]:
    """Scientific name, rank and first common name, "" where there is none."""
    return {"name": taxon.name, "rank": taxon.rank, "common": taxon.common[0] if taxon.common else ""}


def matching_synonym(taxon: Taxon, text: str) -> str:
    """The name that contains the text, "" where that is one of those in `taxon_fields`."""
    words = fold(text)
    if any(words in fold(name) for name in (taxon.name, *taxon.common[:1])):
        return ""
    return next((name for name in (*taxon.common[1:], *taxon.synonyms) if words in fold(name)), "")

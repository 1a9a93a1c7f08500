"""The range of a resolved name that is mapped, native or whole, and what its user should know of it."""

from __future__ import annotations

from dataclasses import replace

from sdm.models.joint import member_of
from sdm.models.protocol import Model
from sdm.names import Resolution


def of_origin(model: Model, resolution: Resolution, origin: str) -> Resolution:
    """The resolution of a name for the range that was asked for, with notes on that range.

    Parameters
    ----------
    model : in which the name was resolved.
    resolution : what the name stands for.
    origin : native, or all: the introduced range too. A species without one, as far as the model knows, stays native.
    """
    taxon = resolution.taxon
    model = member_of(model, taxon)
    introduced = taxon.rank == "species" and taxon.name in model.introduced
    notes = []
    if origin == "all" and introduced:
        notes.append(f"The map shows the whole range of {taxon.name}, native and introduced.")
    elif origin == "all":
        notes.append(f"Model {model.name} knows no introduced range of {taxon.name}, so --origin all changes nothing.")
    elif introduced:
        notes.append(f"The map shows the native range of {taxon.name}; --origin all adds where people introduced it.")
    notes += model.remarks(taxon.name) if taxon.rank == "species" else ()
    return replace(
        resolution,
        origin="all" if origin == "all" and introduced else "native",
        notes=(*resolution.notes, *notes),
    )

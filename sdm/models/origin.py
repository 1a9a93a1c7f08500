"""Native or whole ranges: which of them a model knows of a species."""

from __future__ import annotations

from dataclasses import replace

from sdm.models.protocol import Model
from sdm.names import Resolution


def with_origin(model: Model, resolution: Resolution, origin: str) -> Resolution:
    """The resolution of a name for the range that was asked for, with a note where the two may be confused.

    Parameters
    ----------
    model : in which the name was resolved.
    resolution : what the name stands for.
    origin : native, or all: the introduced range too. A species without one, as far as the model knows, stays native.
    """
    taxon = resolution.taxon
    introduced = taxon.rank == "species" and taxon.name in model.introduced
    if origin == "all" and introduced:
        note = f"The map shows the whole range of {taxon.name}, native and introduced."
        return replace(resolution, origin=origin, notes=(*resolution.notes, note))
    if origin == "all":
        note = f"Model {model.name} knows no introduced range of {taxon.name}, so --origin all changes nothing."
    elif introduced:
        note = f"The map shows the native range of {taxon.name}; --origin all adds where people introduced it."
    else:
        return resolution
    return replace(resolution, notes=(*resolution.notes, note))

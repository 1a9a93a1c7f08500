"""Records of other species of a group, whose places show where observers went."""

from __future__ import annotations

from pathlib import Path

from sdm.errors import RecordsError, quoted
from sdm.records.background import Positions
from sdm.records.read import read_raw
from sdm.records.table import Records
from sdm.request.records import CleanOptions, ReadOptions


def read_group(
    path: str | Path, species: str, *, options: ReadOptions | None = None, clean: CleanOptions | None = None
) -> Positions:
    """Read the places of the records of a group.

    Parameters
    ----------
    path : a file of any of the formats of `Records.read`, of any number of species.
    species : that is left out, "" for none.
    options, clean : as of `Records.read`; of records at the same location one is kept, whatever their species.

    Raises
    ------
    RecordsError : the file cannot be read, or has no other records.
    """
    raw = read_raw(path, options).without(species)
    if not len(raw):
        raise RecordsError(f"{quoted(Path(path).name)} has no records of other species than {quoted(species)}.")
    records = Records.from_raw(raw, clean).presences
    if not len(records):
        raise RecordsError(f"{quoted(Path(path).name)} has no presence of the group that is left after cleaning.")
    return Positions(records.lon, records.lat)

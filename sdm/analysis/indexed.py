"""The maps of a region index, for sums over zones: computed strip by strip, none of them written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sdm.analysis.zones import Maps, open_maps
from sdm.engine.targets import named_target
from sdm.errors import RegionIndexError, SpeciesNameError
from sdm.files.workbooks import check_workbook
from sdm.models.choice import resolve_in, resolved
from sdm.models.origin import of_origin
from sdm.names import Resolution
from sdm.names.lists import read_names

if TYPE_CHECKING:
    from sdm.index import Index

AT_ONCE = 32
"""Species whose maps are computed together: each pass over the index costs its decoding."""


def is_index(path: str | Path) -> bool:
    """Whether a path, or an address, is that of a region index."""
    return "://" in str(path) or (Path(path) / "embedding").is_dir()


def index_maps(index: Index, names: str | Path | None = None, origin: str = "native") -> tuple[Maps, tuple[str, ...]]:
    """The maps of the species of a list, by default of all that the model knows; and notes for the user.

    Species whose pixels the index does not hold, and names that the model does not know, are left out and noted.

    Parameters
    ----------
    index : opened.
    names : a list of names in a file.
    origin : native, or all: with introduced populations.

    Raises
    ------
    SpeciesNameError : no name of the list can be mapped.
    RegionIndexError : the index is not of a model that is here.
    """
    model = index.model
    if names is None:
        found = {taxon.name: Resolution(taxon.name, taxon, True, "") for taxon in model.taxa}
        notes: list[str] = []
    else:
        found, notes = _listed(index, names)
    targets = {}
    outside = 0
    for name, resolution in found.items():
        meant = of_origin(model, resolution, origin) if resolution.taxon.name in model.introduced else resolution
        target = named_target(model, meant, index.modalities, month=index.month)
        try:
            index.check_mask(target.mask, name)
        except RegionIndexError:
            outside += 1
            continue
        targets[name] = target
    if outside:
        notes.append(
            f"{outside:,} species live where this index holds no pixels (mask {index.mask}); they are left out."
        )
    if not targets:
        raise SpeciesNameError(f"no species can be mapped from region index {index.url!r}; {' '.join(notes)}")
    chosen, columns = list(targets.values()), slice(0, index.grid.shape[1])

    def read(first: int, end: int, rows: slice) -> np.ndarray:
        return index.values(chosen[first:end], rows, columns)

    return Maps(index.grid.geobox, tuple(targets), read, AT_ONCE), tuple(notes)


def _listed(index: Index, path: str | Path) -> tuple[dict[str, Resolution], list[str]]:
    """What the names of a list are in the model of an index, each species once, and what could not be resolved."""
    check_workbook(path)
    asked, notes = read_names(path)
    found: dict[str, Resolution] = {}
    failed: list[str] = []
    for one in asked:
        try:
            resolution = resolved(resolve_in(index.model, one.query, False))
        except SpeciesNameError as error:
            failed.append(f"row {one.row}: {error}")
            continue
        found[resolution.taxon.name] = resolution
    if failed:
        notes = [*notes, f"{len(failed):,} of {len(asked):,} names cannot be mapped; the first, {failed[0]}"]
    return found, notes


def all_maps(
    paths: Sequence[str], names: str | Path | None = None, origin: str = "native"
) -> tuple[list[Maps], tuple[str, ...]]:
    """Maps of GeoTIFFs, folders, batches and region indexes; and notes. Raises as `open_maps` and `index_maps`."""
    from sdm.index import Index

    files = [path for path in paths if not is_index(path)]
    maps, notes = open_maps(files), list[str]()
    for path in (path for path in paths if is_index(path)):
        made, said = index_maps(Index.open(path, cache_bytes=256 << 20), names, origin)
        maps.append(made)
        notes += said
    return maps, tuple(notes)

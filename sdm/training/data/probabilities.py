"""Another model's probabilities as labels."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence

import numpy as np

from sdm.errors import LayerError, TooLargeError
from sdm.models.coverage import DEGREES, Coverage
from sdm.names import TaxonTable
from sdm.training.data.labels import LabelBlock, Places, SparseLabels
from sdm.training.data.records import check_lonlat, one_line
from sdm.training.data.source import Source
from sdm.training.recipe.sources import ProbabilitiesSettings

MAX_BYTES = 8 << 30
"""Of an unpacked archive: a far larger one is not training data."""
ARRAYS = ("species", "lonlat", "place", "month", "indptr", "indices", "value")


class Probabilities(Source):
    """Another model's output: a probability of each species at each of its places, by month if it has months."""

    settings: ProbabilitiesSettings

    def __init__(self, settings: ProbabilitiesSettings, taxa: TaxonTable) -> None:
        super().__init__(settings)
        arrays = _open_npz(settings.path, ARRAYS, ("coverage",))
        _check_arrays(arrays, settings.path)
        self._lonlat = arrays["lonlat"].astype(np.float64)
        self._month, self._place = arrays["month"], arrays["place"]
        check_lonlat(self._lonlat, settings.path)
        self._coverage = _coverage(arrays.get("coverage"), settings.path)
        names = [str(s) for s in arrays["species"]]
        known = self._known_names(names, taxa)
        self.species = tuple(dict.fromkeys(known.values()))
        number = {s: k for k, s in enumerate(self.species)}
        to_species = np.array([number[known[n]] if n in known else -1 for n in names])
        column = to_species[arrays["indices"].astype(np.int64)]
        kept = column >= 0
        indptr = np.concatenate([[0], np.cumsum(kept)])[arrays["indptr"].astype(np.int64)]
        self._table = SparseLabels(indptr, column[kept], len(self.species), arrays["value"][kept])

    @property
    def coverage(self) -> Coverage | None:
        """The array `coverage` of the archive, if it has one."""
        return self._coverage

    def places(self, seed: int) -> Places:
        """Its places; the rows of one place (its months) are a group."""
        return Places.grouped(self._lonlat, self._month, self._place)

    def block(self, places: Places, own: int) -> LabelBlock:
        """The probabilities, at its own places."""
        rows = self._own_rows(places, own)
        return LabelBlock(self.name, self.species, rows, self._table, soft=True, weight=self.settings.weight)


def _check_arrays(arrays: dict[str, np.ndarray], path: str) -> None:
    """Raise LayerError unless the arrays fit together."""
    lonlat, month, value = arrays["lonlat"], arrays["month"], arrays["value"]
    indptr, column = arrays["indptr"].astype(np.int64), arrays["indices"].astype(np.int64)
    rows = len(lonlat)
    consistent = (
        lonlat.shape == (rows, 2)
        and month.shape == arrays["place"].shape == (rows,)
        and indptr.shape == (rows + 1,)
        and indptr[0] == 0
        and indptr[-1] == len(column) == len(value)
        and (np.diff(indptr) >= 0).all()
        and value.dtype == np.uint8
        and (len(column) == 0 or (column.min() >= 0 and column.max() < len(arrays["species"])))
        and ((month >= 0) & (month <= 12)).all()
    )
    if not consistent or rows == 0:
        raise LayerError(
            f"probabilities {path!r} do not fit together: lonlat (P, 2), place and month (P,) with months "
            "0..12, indptr (P+1,), indices within species, value uint8 of the same length."
        )


def _coverage(cells: np.ndarray | None, path: str) -> Coverage | None:
    """Coverage from a grid of the whole globe, rows from 90 N, columns from 180 W."""
    if cells is None:
        return None
    degrees = 180 / len(cells) if cells.ndim == 2 and len(cells) else 0.0
    if degrees not in DEGREES or cells.shape[1] != 2 * len(cells) or cells.dtype != bool:
        raise LayerError(
            f"probabilities {path!r}: coverage must be a bool grid of the globe with cells of "
            f"{', '.join(map(str, DEGREES))} degrees, not {cells.shape} {cells.dtype}."
        )
    return Coverage(degrees, cells)


def _open_npz(path: str, keys: Sequence[str], optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(i.file_size for i in archive.infolist())
        if size > MAX_BYTES:
            raise TooLargeError(f"archive {path!r} unpacks to {size / 2**30:.0f} GiB; at most 8 are read.")
        with np.load(path, allow_pickle=False) as z:
            missing = [k for k in keys if k not in z]
            if missing:
                raise LayerError(f"archive {path!r} lacks {', '.join(missing)}; it needs {', '.join(keys)}.")
            return {k: z[k] for k in (*keys, *optional) if k in z}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise LayerError(f"archive {path!r} cannot be read: {one_line(error)}.") from error

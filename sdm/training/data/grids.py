"""Presence of species in the cells of a grid of longitude and latitude, as compressed rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix

from sdm.errors import LayerError
from sdm.training.data.records import one_line


@dataclass(frozen=True)
class DegreeGrid:
    """Cells of equal degrees, in rows from the north, from 180 W."""

    step: float
    """Degrees."""

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return round(180 / self.step), round(360 / self.step)

    def cells(self, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
        """(N,) number of the cell that holds each position, in degrees."""
        rows, cols = self.shape
        row = np.clip(np.floor((90.0 - lat) / self.step).astype(np.int64), 0, rows - 1)
        col = np.clip(np.floor((lon + 180.0) / self.step).astype(np.int64), 0, cols - 1)
        return row * cols + col

    def corners(self, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(west, north) degrees, each (N,), of cells."""
        row, col = np.divmod(cells, self.shape[1])
        return -180.0 + self.step * col, 90.0 - self.step * row

    def centres(self, cells: np.ndarray) -> np.ndarray:
        """(N, 2) (lon, lat) of cells."""
        west, north = self.corners(cells)
        return np.stack([west + 0.5 * self.step, north - 0.5 * self.step], axis=1)

    def boxes(self, cells: np.ndarray) -> np.ndarray:
        """(K, 4) float32 (west, south, east, north) of cells (N,), ascending; neighbours in a row share one."""
        if not cells.size:
            return np.empty((0, 4), np.float32)
        first = np.flatnonzero((np.diff(cells, prepend=-2) != 1) | (cells % self.shape[1] == 0))
        last = np.append(first[1:], cells.size) - 1
        west, north = self.corners(cells[first])
        east = self.corners(cells[last])[0] + self.step
        return np.stack([west, north - self.step, east, north], axis=1).astype(np.float32)


@dataclass(frozen=True)
class GridRanges:
    """Ranges on a grid."""

    species: tuple[str, ...]
    grid: DegreeGrid
    presence: csr_matrix
    """(species, cells) uint8, 1 where present."""

    @classmethod
    def read(cls, path: str | Path, names: Mapping[str, str]) -> GridRanges:
        """Read an archive of `species` (S,), `indptr` (S + 1,), `cells` and `step`; {name there: name here} are kept.

        The cells of species s are `cells[indptr[s]:indptr[s + 1]]`. Ranges that get the same name are united. Raises
        LayerError for an archive that is damaged or does not fit together.
        """
        z = _arrays(Path(path))
        grid = DegreeGrid(float(z["step"]))
        listed = [str(name).replace("_", " ") for name in z["species"]]
        size = np.diff(z["indptr"])
        kept = [k for k, name in enumerate(listed) if name in names and size[k]]
        species = tuple(dict.fromkeys(names[listed[k]] for k in kept))
        number = {name: k for k, name in enumerate(species)}
        row = np.repeat([number[names[listed[k]]] for k in kept], size[kept])
        column = np.concatenate([np.empty(0, np.int64), *(z["cells"][slice(*z["indptr"][k : k + 2])] for k in kept)])
        shape = (len(species), math.prod(grid.shape))
        presence = csr_matrix((np.ones(row.size, np.uint8), (row, column.astype(np.int64))), shape=shape)
        presence.data[:] = 1  # cells named twice were added up
        return cls(species, grid, presence)

    @classmethod
    def names(cls, path: str | Path) -> list[str]:
        """Names, with a space, of the ranges in an archive that have a cell. Raises LayerError."""
        z = _arrays(Path(path))
        return [str(s).replace("_", " ") for s, n in zip(z["species"], np.diff(z["indptr"]), strict=True) if n]

    def cells_of(self, species: int) -> np.ndarray:
        """The cells of a species, by its index, ascending."""
        row = slice(*self.presence.indptr[species : species + 2])
        return np.sort(self.presence.indices[row].astype(np.int64))


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            z = {key: file[key] for key in ("species", "indptr", "cells", "step")}
        step, indptr, cells = float(z["step"]), z["indptr"], z["cells"]
        if not 0.05 <= step <= 10 or abs(round(180 / step) - 180 / step) > 1e-6:
            raise ValueError(f"a step of {step:g} degrees does not divide the globe")
        if indptr.shape != (len(z["species"]) + 1,) or indptr[0] != 0 or indptr[-1] != cells.size:
            raise ValueError("its arrays do not fit together")
        if (np.diff(indptr) < 0).any() or (cells.size and int(cells.max()) >= math.prod(DegreeGrid(step).shape)):
            raise ValueError("its arrays do not fit together")
        if cells.size and int(cells.min()) < 0:
            raise ValueError("it has a cell below 0")
    except Exception as error:  # a damaged archive can fail in any way
        raise LayerError(f"ranges {str(path)!r} cannot be read: {one_line(error)}.") from error
    return z

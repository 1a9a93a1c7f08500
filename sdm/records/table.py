"""Cleaned occurrence records of one species: positions for a fit, and their audit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sdm.errors import RecordsError
from sdm.records.audit import Audit

if TYPE_CHECKING:
    from sdm.records.raw import RawRecords
    from sdm.request.records import CleanOptions, ReadOptions


@dataclass(frozen=True, eq=False)
class Records:
    """Occurrence records of one species, cleaned; N records."""

    species: str
    """Scientific name as the file has it, "" if unknown."""
    lon: np.ndarray
    """(N,) float64 degrees, WGS84."""
    lat: np.ndarray
    """(N,) float64 degrees, WGS84."""
    present: np.ndarray
    """(N,) bool; False: an absence."""
    uncertainty_m: np.ndarray
    """(N,) float64 metres, NaN where unknown."""
    month: np.ndarray
    """(N,) int8, 1 to 12, 0 where unknown."""
    year: np.ndarray
    """(N,) int32, 0 where unknown."""
    row: np.ndarray
    """(N,) int64 number of the row in the file, 1 for the first after the header."""
    audit: Audit
    """Every row that was read, kept or dropped; it stays that of the whole file in a selection."""

    def __len__(self) -> int:
        return len(self.lon)

    @property
    def presences(self) -> Records:
        """The records of presence."""
        return self.select(self.present)

    @property
    def absences(self) -> Records:
        """The records of absence."""
        return self.select(~self.present)

    def select(self, mask: np.ndarray) -> Records:
        """Some of the records; `mask`: (N,) bool, or indices."""
        columns = ("lon", "lat", "present", "uncertainty_m", "month", "year", "row")
        return replace(self, **{name: getattr(self, name)[mask] for name in columns})

    def thinned(self, degrees: float) -> Records:
        """At most one record per cell of a grid of `degrees`, in the order of the file.

        A presence is preferred to an absence, otherwise the first record of the cell is taken. Raises RecordsError.
        """
        if not (np.isfinite(degrees) and degrees > 0):
            raise RecordsError(f"thinning to {degrees!r} degrees is not possible; give a number above 0.")
        column = np.floor((self.lon + 180.0) / degrees).astype(np.int64)
        row = np.floor((self.lat + 90.0) / degrees).astype(np.int64)
        # Presences first, each kind in the order of the file.
        order = np.argsort(~self.present, kind="stable")
        cell = row * (int(np.ceil(360.0 / degrees)) + 1) + column
        _, first = np.unique(cell[order], return_index=True)
        return self.select(np.sort(order[first]))

    @classmethod
    def read(
        cls,
        path: str | Path,
        species: str | None = None,
        *,
        options: ReadOptions | None = None,
        clean: CleanOptions | None = None,
    ) -> Records:
        """Read and clean the records of one species.

        Parameters
        ----------
        path
            Darwin Core archive, GBIF, iNaturalist or eBird download, delimited text, GeoPackage, GeoJSON, shapefile,
            KML, Parquet or GeoParquet, also zipped.
        species
            Scientific name. Needed where the file has several species; where it has none, the name of the result.
        options
            How to read the file: names of columns, layer, CRS.
        clean
            Which checks to make, and their limits.

        Returns
        -------
        Records
            It may be empty: `audit` says why each row was dropped.

        Raises
        ------
        RecordsError
            The file cannot be read, its columns are not clear, or the species is not clear.
        """
        from sdm.records.read import read_raw

        raw = read_raw(path, options, species)
        return cls.from_raw(raw.only(species), clean)

    @classmethod
    def read_all(
        cls, path: str | Path, *, options: ReadOptions | None = None, clean: CleanOptions | None = None
    ) -> dict[str, Records]:
        """Read and clean the records of all species of a file, by name in alphabetical order.

        Rows without the name of a species are left out. Parameters and errors are those of `read`.
        """
        from sdm.records.read import read_raw

        raw = read_raw(path, options)
        return {name: cls.from_raw(part, clean) for name, part in raw.by_species().items()}

    @classmethod
    def from_points(
        cls,
        lon: np.ndarray,
        lat: np.ndarray,
        present: np.ndarray | None = None,
        *,
        species: str = "",
        uncertainty_m: np.ndarray | None = None,
        month: np.ndarray | None = None,
        year: np.ndarray | None = None,
    ) -> Records:
        """Records that are used as they are, without any check.

        Parameters
        ----------
        lon, lat
            (N,) degrees, WGS84.
        present
            (N,) bool, False for an absence; by default all are presences.
        species
            Scientific name.
        uncertainty_m, month, year
            (N,) as in the fields of the same names; by default unknown.
        """
        import pyarrow

        lon, lat = (np.asarray(values, np.float64) for values in (lon, lat))
        n = len(lon)
        here = np.ones(n, bool) if present is None else np.asarray(present, bool)
        row = np.arange(1, n + 1)
        texts = {"species": [species] * n, "lon": [str(x) for x in lon.tolist()], "lat": [str(y) for y in lat.tolist()]}
        given = pyarrow.table({name: pyarrow.array(column, pyarrow.string()) for name, column in texts.items()})
        unknown = n if uncertainty_m is None else int(np.isnan(uncertainty_m).sum())
        as_given = np.zeros(n, np.int8)
        audit = Audit("points", species, row, given, here, as_given, as_given, lon, lat, unknown_uncertainty=unknown)
        return cls(
            species=species,
            lon=lon,
            lat=lat,
            present=here,
            uncertainty_m=np.full(n, np.nan) if uncertainty_m is None else np.asarray(uncertainty_m, np.float64),
            month=np.zeros(n, np.int8) if month is None else np.asarray(month, np.int8),
            year=np.zeros(n, np.int32) if year is None else np.asarray(year, np.int32),
            row=row,
            audit=audit,
        )

    @classmethod
    def from_raw(cls, raw: RawRecords, clean: CleanOptions | None = None) -> Records:
        """Clean what was read of one species."""
        from sdm.records.clean import clean_rows

        audit, kept = clean_rows(raw, clean)
        return cls(
            species=raw.species,
            lon=audit.lon[kept],
            lat=audit.lat[kept],
            present=raw.rows["present"][kept],
            uncertainty_m=raw.rows["uncertainty_m"][kept],
            month=raw.rows["month"][kept],
            year=raw.rows["year"][kept],
            row=raw.rows["row"][kept],
            audit=audit,
        )

"""`[data]` of a recipe: the sources that a model learns from, one settings class per kind."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True)
class SourceSettings:
    """The keys that every `[[data.source]]` has."""

    kind: ClassVar[str] = ""
    path: str
    """File or folder, relative to the working directory."""
    name: str = ""
    """Its name in tables and logs; by default the kind."""
    share: float = 1.0
    """Share of the places in a batch, relative to the other sources."""
    weight: float = 1.0
    """Weight of its labels in the loss."""
    group: str = ""
    """The group of species (column `group` of taxa.csv) about which nothing is known outside the source's extent."""
    every_month: bool = False
    """In a seasonal model: whether labels without a month hold in each month, or only for the whole year."""


@dataclass(frozen=True)
class RangesSettings(SourceSettings):
    """Presence on an equal-area raster: a folder of rasters `Genus_epithet.tif`, or the packed PHYLACINE archive."""

    kind: ClassVar[str] = "ranges"
    points_per_cell: int = 12
    """Places drawn once in each cell of land."""
    points_per_cell_sea: int = 4
    """Places drawn once in each cell of sea."""
    land_share: float = 0.6
    """Share of the places drawn from this source that lie in cells of land."""
    corrections: str = ""
    """CSV of what the rasters lack (`sdm.training.data.corrections`); empty: none."""
    origin: str = "native"
    """native: the native ranges; all: introduced ones too, only of the species that have one by the corrections."""


@dataclass(frozen=True)
class PolygonsSettings(SourceSettings):
    """Range polygons, which label the places of other sources in their bounding box."""

    kind: ClassVar[str] = "polygons"
    species: str = "species"
    """Column of the names."""
    points: int = 0
    """Places of its own: random land in its bounding box."""
    points_per_cell: int = 0
    """Places drawn in each cell of land of a raster source within the box, where that is more."""
    cell_weight: float = 1.0
    """How many times as likely such a cell is drawn as others."""


@dataclass(frozen=True)
class ProbabilitiesSettings(SourceSettings):
    """Another model's output: an .npz of species, lonlat, place, month, and rows of probabilities (CSR)."""

    kind: ClassVar[str] = "probabilities"


@dataclass(frozen=True)
class RecordsSettings(SourceSettings):
    """The keys of tables of records: .csv[.gz], .tsv[.gz], .parquet, or a vector file of points."""

    species: str = "species"
    """Column of the names."""
    taxon: str = ""
    """The species of all rows, for a table without such a column."""
    lon: str = ""
    """Column of the longitude or x; by default lon, longitude, decimalLongitude, x and the like."""
    lat: str = ""
    """Column of the latitude or y, likewise."""
    crs: str = "EPSG:4326"
    """CRS of these columns; a vector file has its own."""
    presence: str = ""
    """Column of 1 (present) and 0."""
    month: str = ""
    """Column of the month, 1 to 12."""
    columns: dict[str, str] = field(default_factory=dict)
    """{column: species}, for a table with a column of 0 and 1 per species."""
    thin: float = 0.0
    """Degrees; all records in one square of this size are drawn as often as a single one."""


@dataclass(frozen=True)
class SurveysSettings(RecordsSettings):
    """Plots: a row for each species found in one; the other species of the table are absent there."""

    kind: ClassVar[str] = "surveys"
    min_records: int = 1
    """Species found less often are left out."""


@dataclass(frozen=True)
class OccurrencesSettings(RecordsSettings):
    """Records of presence, with a background."""

    kind: ClassVar[str] = "occurrences"
    background: str = "land"
    """land (random land around the records), target-group (records of the other species), file (rows of presence 0)."""
    background_places: int = 0
    """For land: how many; 0: as many as records, at least 1000."""
    background_share: float = 0.5
    """Share of the places drawn from this source that are background."""
    margin: float = 5.0
    """Degrees around the bounding box of the records in which land is background."""


BACKGROUNDS = ("land", "target-group", "file")
SOURCE_KINDS: dict[str, type[SourceSettings]] = {
    k.kind: k for k in (RangesSettings, PolygonsSettings, ProbabilitiesSettings, SurveysSettings, OccurrencesSettings)
}


@dataclass(frozen=True)
class Data:
    """The sources, in the order of their species."""

    source: tuple[SourceSettings, ...] = ()

"""Recognition of the columns of a file of records."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence

from sdm.errors import RecordsError, quoted
from sdm.request.records import ReadOptions

MAX_COLUMNS = 10_000

ROLES: dict[str, tuple[tuple[str, ...], ...]] = {
    "lon": (
        ("decimallongitude",),
        ("longitude", "lon", "long", "lng", "longitudedd", "londd", "longdd", "decimallon", "decimallong", "longitud"),
        ("longitudewgs84", "lonwgs84", "xwgs84", "wgs84x", "geolongitude"),
        ("x", "xcoord", "coordx", "xcoordinate", "pointx", "easting"),
        ("longitudine", "längengrad", "laengengrad", "länge", "laenge", "lengtegraad"),
    ),
    "lat": (
        ("decimallatitude",),
        ("latitude", "lat", "latitudedd", "latdd", "decimallat", "latitud"),
        ("latitudewgs84", "latwgs84", "ywgs84", "wgs84y", "geolatitude"),
        ("y", "ycoord", "coordy", "ycoordinate", "pointy", "northing"),
        ("latitudine", "breitengrad", "breite", "breedtegraad"),
    ),
    "species": (
        ("species", "speciesname", "taxonspeciesname"),
        ("acceptedscientificname",),
        ("scientificname", "sciname", "binomial", "binomialname", "latinname"),
        ("taxon", "taxonname", "acceptedname", "canonicalname"),
        ("nombrecientífico", "nombrecientifico", "nomscientifique", "wissenschaftlichername", "artname"),
        ("sp", "art", "especie", "espèce", "espece", "espécie", "specie", "soort"),
    ),
    "point": (("wkt", "geometry", "geom", "thegeom", "wktgeom"),),
    "genus": (("genus",), ("taxongenusname",)),
    "epithet": (("specificepithet", "epithet"),),
    "date": (
        ("eventdate",),
        ("observedon", "observationdate", "obsdate", "datecollected", "collectiondate"),
        ("date",),
    ),
    "year": (("year",),),
    "month": (("month",),),
    "uncertainty": (
        ("coordinateuncertaintyinmeters", "coordinateuncertaintyinmetres"),
        ("publicpositionalaccuracy",),
        ("positionalaccuracy", "coordinateuncertainty", "uncertaintym", "coordinateuncertaintym", "accuracym"),
        ("coorduncertainty", "coorduncertaintym", "uncertainty", "accuracy", "gpsaccuracy", "gpsaccuracym"),
    ),
    "status": (("occurrencestatus",),),
    "presence": (("presence", "present", "presenceabsence", "presabs", "pa", "detected"),),
    "count": (("individualcount",), ("observationcount",), ("count",)),
    "basis": (("basisofrecord",),),
    "captive": (("captivecultivated", "captive", "iscaptive"),),
    "exotic": (("exoticcode",),),
    "establishment": (("establishmentmeans",),),
    "degree": (("degreeofestablishment",),),
    "licence": (("license", "licence"),),
    "dataset": (("datasetkey",),),
    "taxon_key": (("specieskey",), ("acceptedtaxonkey", "acceptednameusagekey"), ("taxonkey",)),
    "country": (("countrycode",), ("country", "placecountryname", "countryname")),
}
"""The names of columns that mean something, best ones first; in lower case, letters and digits only."""

_UNIT = re.compile(
    r"[(\[](?:in )?(?:decimal degrees|decimal|degrees|deg|dd|°|wgs ?84|m|metres|meters)[)\]]\s*$", re.IGNORECASE
)
"""A unit in brackets at the end of a column's name, the one that the column is taken to be in."""

_OPTIONS = {"lon": "lon_column", "lat": "lat_column", "species": "species_column", "presence": "presence_column"}


def key(name: str) -> str:
    """A column's name without case, spaces and punctuation; a Darwin Core term also without its address."""
    name = name.rpartition("/")[2] if "://" in name else name.rpartition(":")[2]
    return re.sub(r"[\W_]+", "", name).lower()


def find_columns(
    names: Sequence[str], options: ReadOptions, source: str, *, points: bool = False, species: str | None = None
) -> dict[str, int]:
    """Index of the column of each role in `ROLES` that the file has.

    Parameters
    ----------
    names
        Header of the file.
    options
        Columns that the user names.
    source
        Name of the file, for messages.
    points
        The file has geometries: it needs no columns of coordinates, and they are used only where the user names them.
    species
        The species asked for. A file without names may have a column of presences under this name.

    Raises
    ------
    RecordsError
        A column is missing, or several could be meant.
    """
    if len(names) > MAX_COLUMNS:
        raise RecordsError(
            f"{source} has {len(names):,} columns, more than {MAX_COLUMNS:,}; keep those that are needed."
        )
    keys = [key(name) for name in names]
    columns: dict[str, int] = {}
    for role, tiers in ROLES.items():
        asked = getattr(options, _OPTIONS.get(role, ""), None)
        if asked is not None:
            columns[role] = _named(names, keys, asked, source)
        elif not (points and role in ("lon", "lat")):
            index = _usual(names, keys, tiers, role, source)
            if index is not None:
                columns[role] = index
    if "species" not in columns and "presence" not in columns and species and keys.count(key(species)) == 1:
        columns["presence"] = keys.index(key(species))
    if points or {"lon", "lat"} <= set(columns):
        columns.pop("point", None)
    if not points:
        _require_coordinates(columns, names, source)
    elif ("lon" in columns) != ("lat" in columns):
        raise RecordsError(f"{source}: name both --lon-column and --lat-column, or neither.")
    return columns


def _named(names: Sequence[str], keys: list[str], asked: str, source: str) -> int:
    exact = [i for i, name in enumerate(names) if name.strip() == asked.strip()]
    matching = exact or [i for i, k in enumerate(keys) if k == key(asked)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise RecordsError(f"{source} has {len(matching)} columns {quoted(asked)}; rename all but one.")
    raise RecordsError(f"{source} has no column {quoted(asked)}; it has {_listed(names)}.")


def _usual(
    names: Sequence[str], keys: list[str], tiers: tuple[tuple[str, ...], ...], role: str, source: str
) -> int | None:
    bare = [key(_UNIT.sub("", name)) for name in names]
    for one, tier in itertools.product((keys, bare), tiers):
        matching = [i for i, k in enumerate(one) if k in tier]
        if len(matching) > 1:
            option = _OPTIONS.get(role)
            remedy = f"say which with --{option.replace('_', '-')}" if option else "rename all but one"
            both = " and ".join(quoted(names[i], 40) for i in matching[:3])
            raise RecordsError(
                f"{source} has several columns that could be the {_WORDS.get(role, role)}: {both}; {remedy}."
            )
        if matching:
            return matching[0]
    return None


_WORDS = {"lon": "longitude", "lat": "latitude", "species": "species name"}


def _require_coordinates(columns: Mapping[str, int], names: Sequence[str], source: str) -> None:
    missing = [role for role in ("lon", "lat") if role not in columns]
    if missing and "point" not in columns:
        what = " or ".join(_WORDS[role] for role in missing)
        remedy = " and ".join(f"--{_OPTIONS[role].replace('_', '-')}" for role in missing)
        raise RecordsError(f"{source} has no column of {what} among {_listed(names)}; name it with {remedy}.")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 12:,} more" if len(names) > 12 else ""
    return ", ".join(quoted(name.strip(), 30) for name in names[:12]) + more

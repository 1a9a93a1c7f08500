"""Records, and maps beside them, to the numbers of Red List criterion B, and to files."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from sdm._version import __version__
from sdm.analysis.redlist import B1, B2, CELL_M, STEPS, Extent, eoo_of_polygons, extent, met
from sdm.errors import LayerError, RecordsError, RequestError, quoted
from sdm.records.read import read_raw
from sdm.records.table import Records
from sdm.records.values import same_name
from sdm.request import CleanOptions, RangeRule, ReadOptions

SIDES = ("low", "range", "high")
"""The cautious range of a map, the range itself, and the generous one."""
NO_AOO = (
    "The area of occupancy is not computed from a map: a map says where the species may live, at 5 km or coarser, and "
    "nearly all of its 2 x 2 km cells hold no individual. Records are needed."
)
NO_CATEGORY = (
    "Thresholds of area alone give no category: criterion B also asks for two of few locations or severe "
    "fragmentation, continuing decline, and extreme fluctuations."
)
SUFFIXES = ("-assessment.csv", "-assessment.json", "-assessment.gpkg")


@dataclass(frozen=True)
class MapExtent:
    """The extents of occurrence of the range on a map."""

    name: str
    """Of its file."""
    rule: str
    """That the map was cut by."""
    eoo_km2: dict[str, float]
    """By side; those that are known."""
    hulls: dict[str, shapely.MultiPolygon] = field(repr=False)
    """In degrees, (lon, lat)."""
    empty: tuple[str, ...] = ()
    """Sides without any place: they have no extent, and a threshold of area says nothing of them."""


@dataclass(frozen=True)
class Assessment:
    """The numbers of one species."""

    species: str
    records: Records
    extent: Extent | None
    """None where no presence is left."""
    map: MapExtent | None = None
    error: str = ""

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences the user should read."""
        notes = [NO_AOO] if self.map is not None else []
        if self.map is not None:
            for side in self.map.empty:
                name = "range" if side == "range" else f"{side} range"
                notes.append(f"The {name} on map {self.map.name} is empty, so it has no extent.")
        seen = self.records.presences
        if vague := int((seen.uncertainty_m > CELL_M).sum()):
            notes.append(
                f"{vague:,} of {len(seen):,} presences are uncertain by more than {CELL_M:,} m, the width of a cell: "
                f"the area of occupancy is as uncertain; --max-uncertainty-m {CELL_M} leaves them out."
            )
        if self.extent is not None and self.extent.wide:
            notes.append("The records lie more than a hemisphere apart, where a convex hull means little.")
        return tuple(notes)

    def row(self) -> dict[str, Any]:
        """The numbers by the names of columns; "" where they are not known."""
        line: dict[str, Any] = {"species": self.species, "presences": int(self.records.present.sum())}
        if self.extent is not None:
            line |= {
                "eoo_km2": round(self.extent.eoo_km2, 3),
                "eoo_of_points_km2": round(self.extent.of_points_km2, 3),
                "aoo_km2": self.extent.aoo_km2,
                "aoo_cells": len(self.extent.cells.cells),
                **_columns("b1", met(self.extent.eoo_km2, B1)),
                **_columns("b2", met(self.extent.aoo_km2, B2)),
            }
        if self.map is not None:
            line |= {"map": self.map.name, "map_rule": self.map.rule}
            for side, area in self.map.eoo_km2.items():
                line |= {f"map_{side}_eoo_km2": round(area, 3), **_columns(f"b1_map_{side}", met(area, B1))}
        return dict.fromkeys(COLUMNS, "") | line | {"notes": " ".join(self.notes), "error": self.error}

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        audit, told = self.records.audit, {k: v for k, v in self.row().items() if v != ""}
        told["records"] = {"source": audit.source, **audit.counts(), "citations": audit.citations.to_dict()}
        if self.extent is not None:
            told["projection"] = self.extent.plane.crs.to_string()
            told["grid_origin_m"] = list(self.extent.cells.origin)
        if self.map is not None:
            told["aoo_of_map"] = None
        return told


def _columns(prefix: str, thresholds: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}_{category.lower()}": value for category, value in thresholds.items()}


COLUMNS = (
    "species",
    "presences",
    "eoo_km2",
    "eoo_of_points_km2",
    "aoo_km2",
    "aoo_cells",
    *_columns("b1", B1),
    *_columns("b2", B2),
    "map",
    "map_rule",
    *(name for side in SIDES for name in (f"map_{side}_eoo_km2", *_columns(f"b1_map_{side}", B1))),
    "notes",
    "error",
)
"""Of the table."""


def assess(
    records: str | Path | Records,
    maps: str | Path | Iterable[str | Path] = (),
    species: str | None = None,
    *,
    options: ReadOptions | None = None,
    clean: CleanOptions | None = None,
) -> list[Assessment]:
    """Extent of occurrence and area of occupancy of the species of a file of records.

    Parameters
    ----------
    records : a file of any format that `sdm.Records.read` reads, or records.
    maps : maps of these species, whose ranges have extents of occurrence too: `NAME.tif` with `NAME-range.gpkg` beside
        it, or a map of probabilities, which is then cut where its area is the expected one.
    species : only this one of the file, or the name of a species in a file without names.
    options, clean : as of `sdm.Records.read`.

    Returns
    -------
    One for each species, by name. A species without a usable presence has an error in place of numbers.

    Raises
    ------
    RecordsError : the file cannot be read, or no species has a usable presence.
    RequestError : a map is of none of the species.
    LayerError : a map cannot be read, or has no range.
    """
    found = _records(records, species, options, clean)
    paths = [Path(maps)] if isinstance(maps, str | Path) else [Path(path) for path in maps]
    mapped = _maps(paths, [one.species for one in found])
    done = [_assessed(one, mapped.get(k)) for k, one in enumerate(found)]
    if all(one.extent is None for one in done):
        raise RecordsError(done[0].error or "the records hold no species.")
    return done


def _records(
    records: str | Path | Records, species: str | None, options: ReadOptions | None, clean: CleanOptions | None
) -> list[Records]:
    if isinstance(records, Records):
        return [records]
    raw = read_raw(records, options, species)
    if species is not None:
        return [Records.from_raw(raw.only(species), clean)]
    return [Records.from_raw(part, clean) for part in raw.by_species().values()]


def _assessed(records: Records, found: MapExtent | None) -> Assessment:
    seen = records.presences
    if not len(seen):
        told = " ".join(records.audit.sentences())
        error = f"there is no usable presence among the records of {records.species or 'the species'!r}. {told}"
        return Assessment(records.species, records, None, found, error)
    return Assessment(records.species, records, extent(seen.lon, seen.lat), found)


# Maps --------------------------------------------------------------------------------------------


def _maps(paths: Sequence[Path], species: Sequence[str]) -> dict[int, MapExtent]:
    """The extents of maps by the numbers of the species that they are of."""
    mapped: dict[int, MapExtent] = {}
    for path in paths:
        name, extents = _map_extent(path)
        known = [k for k, one in enumerate(species) if name and same_name(one) == same_name(name)]
        if not known and len(species) == 1 and not (name and species[0]):
            known = [0]  # one of the two has no name
        if not known:
            whose = f"of {quoted(name)}" if name else "of a species that it does not name"
            listed = ", ".join(map(quoted, species[:5]))
            raise RequestError(
                f"map {quoted(str(path), 120)} is {whose}, but the records are of {listed}; "
                "give the map of one of them, and name the species of the records with --species."
            )
        if known[0] in mapped:
            raise RequestError(f"two maps of {quoted(name)} are given; give one.")
        mapped[known[0]] = extents
    return mapped


def _map_extent(path: Path) -> tuple[str, MapExtent]:
    """The species of a map, "" where it does not say, and the extents of its range."""
    stem = path.name.removesuffix(".gpkg").removesuffix(".tif").removesuffix("-range")
    polygons = path.with_name(f"{stem}-range.gpkg")
    name, rule, ranges = _written_range(polygons) if polygons.exists() else _cut_map(path)
    extents = {side: eoo_of_polygons(shape) for side, shape in ranges.items() if not shape.is_empty}
    empty = tuple(side for side in ranges if side not in extents)
    areas = {side: area for side, (area, _) in extents.items()}
    return name, MapExtent(path.name, rule, areas, {side: hull for side, (_, hull) in extents.items()}, empty)


def _written_range(path: Path) -> tuple[str, str, dict[str, shapely.Geometry]]:
    """Species, rule and polygons by side of a range that was written beside a map."""
    import geopandas
    from pyogrio.errors import DataLayerError, DataSourceError

    ranges: dict[str, shapely.Geometry] = {}
    name, rule = "", ""
    try:
        for side, layer in zip(SIDES, ("range_low", "range", "range_high"), strict=True):
            if layer in geopandas.list_layers(path).name.to_list():
                frame = geopandas.read_file(path, layer=layer).to_crs(4326)
                ranges[side] = shapely.union_all(frame.geometry.to_numpy())
                if layer == "range":
                    name, rule = str(frame.binomial[0]), str(frame.rule[0])
    except (DataSourceError, DataLayerError, AttributeError, KeyError, ValueError) as error:
        raise LayerError(f"range {quoted(str(path), 120)} cannot be read ({error}).") from None
    if "range" not in ranges:
        raise LayerError(f"{quoted(str(path), 120)} has no layer 'range'; make it with taxabind-map --range RULE.")
    return name, rule, ranges


def _cut_map(path: Path) -> tuple[str, str, dict[str, shapely.Geometry]]:
    """The same of a map without a range: cut where its area is the expected one."""
    import rasterio
    import rioxarray
    from odc.geo.geobox import GeoBox

    from sdm.outputs.binary import at_least, cut
    from sdm.outputs.expectation import SURE, thresholds
    from sdm.outputs.polygons import polygons_of

    try:
        with rasterio.open(path) as file:
            tags = file.tags()
            geobox = GeoBox(file.shape, file.transform, str(file.crs)) if file.crs else None
    except rasterio.errors.RasterioIOError as error:
        raise LayerError(f"map {quoted(str(path), 120)} cannot be read ({error}).") from None
    if tags.get("score") != "probability" or geobox is None:
        raise LayerError(
            f"map {quoted(str(path), 120)} holds no probabilities that this program wrote, and no range lies beside "
            "it; map the species again with --range RULE."
        )
    rules = (RangeRule("precision", SURE), RangeRule("area"), RangeRule("recall", SURE))
    raster: Any = rioxarray.open_rasterio(path, masked=True, chunks={"x": 1024, "y": 1024})
    with raster:
        values = raster[0]
        low, own, high = thresholds(values, geobox, rules)
        at = {"low": max(low, own), "range": own, "high": min(high, own)}
        ranges = {side: polygons_of(cut(values, geobox, at_least(t)).mask, geobox) for side, t in at.items()}
    return tags.get("species", ""), "area", ranges


# Files -------------------------------------------------------------------------------------------


def write_assessments(
    done: Sequence[Assessment], out: str | Path, stem: str, *, overwrite: bool = False, command: str = ""
) -> list[Path]:
    """Write `STEM-assessment.csv`, `.json` and `.gpkg` into a folder: all of them or none.

    Parameters
    ----------
    done : from `assess`.
    out, stem : the folder, and how names of files begin.
    overwrite : replace existing files.
    command : the command line that asked for it.

    Returns
    -------
    The paths of the files. The layers of the GeoPackage are `eoo` (hulls around the cells), `aoo` (the cells), and of
    maps `eoo_of_map`.

    Raises
    ------
    OutputError : a file exists (without `overwrite`) or cannot be written.
    """
    from sdm.files.atomic import Staging
    from sdm.outputs.escape import table_text
    from sdm.outputs.geopackage import write_layers
    from sdm.outputs.sidecar import write_json

    names = [f"{stem}{suffix}" for suffix in SUFFIXES]
    with Staging(Path(out), names, overwrite=overwrite) as staging:
        table, told, layers = (staging.path(name) for name in names)
        with table.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            for one in done:
                writer.writerow({k: table_text(v) if isinstance(v, str) else v for k, v in one.row().items()})
        write_json(told, report(done, command))
        write_layers(layers, _layers(done))
        return staging.publish()


def report(done: Sequence[Assessment], command: str = "") -> dict[str, Any]:
    """All numbers and how they came about, as JSON values."""
    return {
        "species": [one.to_dict() for one in done],
        "method": {
            "aoo": f"cells with a record, {CELL_M:,} m wide, on the grid of {STEPS} x {STEPS} offsets with the fewest",
            "eoo": "convex hull around the outlines of these cells, at least the AOO",
            "eoo_of_points": "convex hull of the records themselves",
            "projection": "Lambert azimuthal equal-area around the middle of the records of a species, WGS 84",
            "thresholds_km2": {"b1": B1, "b2": B2},
            "category": NO_CATEGORY,
            "aoo_of_map": NO_AOO,
        },
        "command": command,
        "software": f"taxabind-map {__version__}",
    }


def _layers(done: Sequence[Assessment]) -> list[Any]:
    from sdm.outputs.geopackage import Layer

    known = [(one, one.extent) for one in done if one.extent is not None]
    numbers = [{"species": one.species, "eoo_km2": e.eoo_km2, "aoo_km2": e.aoo_km2} for one, e in known]
    cells = [{"species": one.species, "cells": len(e.cells.cells), "aoo_km2": e.aoo_km2} for one, e in known]
    layers = [
        Layer("eoo", [e.plane.degrees(np.array([e.hull], dtype=object)) for _, e in known], numbers),
        Layer("aoo", [e.plane.degrees(e.cells.squares) for _, e in known], cells),
    ]
    rows = [
        ({"species": one.species, "map": one.map.name, "side": side, "eoo_km2": area}, one.map.hulls[side])
        for one in done
        if one.map is not None
        for side, area in one.map.eoo_km2.items()
    ]
    if rows:
        layers.append(Layer("eoo_of_map", [shape for _, shape in rows], [row for row, _ in rows]))
    return layers

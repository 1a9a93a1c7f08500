"""After the tiles: pictures, the map of the sum, and the files of single species."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sdm.engine.doubt import Doubt
from sdm.files import records, workspace
from sdm.maps import ranges
from sdm.maps.batch import tiles
from sdm.maps.batch.texts import AGREEMENT, ENCODING, PAGE, PICTURES, RICHNESS, SPECIES, STORE
from sdm.maps.batch.tiles import Work
from sdm.maps.report import describe, surrounding_countries
from sdm.outputs import cube, gallery
from sdm.outputs.blocks import Source
from sdm.outputs.metadata import MapMetadata
from sdm.outputs.overlay import png


def drawings(work: Work) -> list[int | str]:
    """The arguments of `draw`, the slowest first."""
    return ["tif", "html", *range(-(-len(work.batch.stems) // tiles.PICTURED))]


def draw(what: int | str, work: Work, highest: float) -> dict[str, Any]:
    """The pictures of a group of species; or of the map of the sum the GeoTIFF, whose statistics are returned,
    or the web map. `highest`: the highest sum.
    """
    if isinstance(what, int):
        write_pictures(what, work)
        return {}
    return write_richness(what, work, highest)


def write_richness(suffix: str, work: Work, highest: float) -> dict[str, Any]:
    """The map of the sum as GeoTIFF with its style, whose statistics are returned, or as web map."""
    from sdm.outputs.cog import write_cog
    from sdm.outputs.style import write_qml
    from sdm.outputs.webmap import write_html

    geobox = work.plan.grid.geobox
    layer = cube.Layer(work.store, work.richness.variable)
    meta = replace(work.richness, valid_range=(0.0, highest if highest > 0.0 else 1.0))
    part = work.tmp / f"{RICHNESS}.{suffix}"
    statistics: dict[str, Any] = {}
    if suffix == "tif":
        statistics = write_cog(part, layer, geobox, meta).to_dict()
        write_qml(work.new / f"{RICHNESS}.qml", meta)
    else:
        links = {"GeoTIFF": f"{RICHNESS}.tif", "all species": PAGE, "report": workspace.REPORT}
        write_html(part, layer, meta, _country_outlines(work), links, geobox=geobox)
    part.replace(work.new / part.name)
    # A sum weighted by area is no area here.
    return {k: v for k, v in statistics.items() if k not in ("expected_area_km2", "histogram", "histogram_range")}


def write_pictures(group: int, work: Work) -> None:
    """Pictures of one group of species, for the page, from the parts that the tiles left in their records."""
    grid = work.plan.grid
    step = gallery.stride(grid.shape)
    stems = work.batch.stems[group * tiles.PICTURED : (group + 1) * tiles.PICTURED]
    pictures = np.zeros((len(stems), *(-(-length // step) for length in grid.shape)), dtype=np.uint8)
    name = f"value_pictures_{group}"
    for tile in grid.tiles():
        record = records.read_record(records.record_path(work.tiles, tile.index), (name,))
        if name in record:  # else nothing is modelled there, or no n-th pixel lies in the tile
            top, left = -(-tile.rows.start // step), -(-tile.cols.start // step)
            bottom, right = (-(-part.stop // step) for part in (tile.rows, tile.cols))
            shape = (len(stems), bottom - top, right - left)
            decoded = np.frombuffer(cube.codec().decode(record[name].tobytes()), dtype=np.uint8)
            pictures[:, top:bottom, left:right] = decoded.reshape(shape)
    for stem, picture in zip(stems, pictures, strict=True):
        (work.new / PICTURES / f"{stem}.png").write_bytes(png(picture))


def write_species_range(k: int, work: Work) -> tuple[int, dict[str, float]]:
    """The range of one species, as raster, style and polygons; returns its number and the numbers of the range.

    What an earlier run has made is kept.
    """
    from sdm.files.durable import flush

    assert work.rule is not None
    names = [f"{work.batch.stems[k]}{suffix}" for suffix in ranges.SUFFIXES]
    folder, parts = work.new / SPECIES, [work.tmp / name for name in names]
    if not all((folder / name).exists() for name in names):
        layer = cube.Layer(work.store, work.metadata.variable, k)
        ranges.write_range(work.batch.job, k, work.rule, parts, layer, command=work.command)
        for part in parts:
            flush(part)
            part.replace(folder / part.name)
    return k, ranges.read_entry(folder / names[0])


def write_species(k: int, work: Work, suffixes: Sequence[str]) -> None:
    """The files of one species in the formats asked for; what an earlier run has made is kept."""
    from sdm.files.durable import flush
    from sdm.outputs.cog import write_cog
    from sdm.outputs.geozarr import write_geozarr
    from sdm.outputs.sidecar import write_json
    from sdm.outputs.style import write_qml
    from sdm.outputs.webmap import write_html

    stem, folder = work.batch.stems[k], work.new / SPECIES
    missing = [s for s in suffixes if not (folder / f"{stem}.{s}").exists()]
    if not missing:
        return
    described = describe(work.batch.job, k, work.command)
    description = f"{described.description} {ENCODING} Rounded to 1/8192."
    meta = replace(described, variable=work.metadata.variable, description=description)
    layer, target = cube.Layer(work.store, meta.variable, k), work.plan.targets[k]
    bands: list[Source] = [cube.Layer(work.store, band.name, k) for band in target.measured]
    if target.doubt is not None:
        bands.insert(0, _UncertaintyLayer(layer, cube.Layer(work.store, AGREEMENT), target.doubt))
    meta = replace(meta, bands=target.bands)
    for suffix in missing:
        part = work.tmp / f"{stem}.{suffix}"
        if suffix == "tif":
            write_cog(part, layer, work.plan.grid.geobox, meta, bands)
        elif suffix == "qml":
            write_qml(part, meta)
        elif suffix == "v3.zarr":
            write_geozarr(part, layer, work.plan.grid.geobox, meta, bands)
        elif suffix == "stac.json":
            write_json(part, _stac_item(k, work, meta, (layer, *bands), suffixes))
        else:
            links = {"GeoTIFF": f"{stem}.tif"} if "tif" in suffixes else {}
            box, outline, countries = work.plan.grid.geobox, _range_outline(k, work), _country_outlines(work)
            write_html(part, layer, meta, countries, links, geobox=box, bands=bands, outline=outline)
        flush(part)  # a later run takes what has its name for complete
        part.replace(folder / part.name)


def _stac_item(
    k: int, work: Work, meta: MapMetadata, layers: Sequence[Source], suffixes: Sequence[str]
) -> dict[str, Any]:
    """The item of the map of one species; without a GeoTIFF of its own, it names the store of all species."""
    from sdm.outputs import stac
    from sdm.outputs.statistics import summarise, summarise_band

    stem, geobox = work.batch.stems[k], work.plan.grid.geobox
    names = [f"{stem}.{suffix}" for suffix in suffixes if suffix != "stac.json"]
    names += [f"{stem}{suffix}" for suffix in ranges.SUFFIXES if (work.new / SPECIES / f"{stem}{suffix}").exists()]
    assets = {name[len(stem) + 1 :]: name for name in names} | {"all_species": f"../{STORE}"}
    further = tuple(summarise_band(one, geobox, band) for one, band in zip(layers[1:], meta.bands, strict=True))
    return stac.item(stem, geobox, meta, assets, replace(summarise(layers[0], geobox), bands=further))


def _range_outline(k: int, work: Work) -> tuple[str, Any] | None:
    """The outline of the range of one species, where one was written."""
    from sdm.outputs.geopackage import read_polygons

    path = work.new / SPECIES / f"{work.batch.stems[k]}{ranges.SUFFIXES[-1]}"
    return (f"Range ({work.rule})", read_polygons(path, "range")) if path.exists() else None


class _UncertaintyLayer:
    """The uncertainty of a species as a source for the writers: from its values and the agreement of the modalities."""

    chunks = None

    def __init__(self, values: cube.Layer, agreement: cube.Layer, doubt: Doubt) -> None:
        self._values, self._agreement, self._doubt = values, agreement, doubt
        self.shape, self.encoding = values.shape, values.encoding

    def __getitem__(self, place: tuple[slice, slice]) -> np.ndarray:
        """Uncertainty (rows, columns), float32."""
        return self._doubt.uncertainty(self._values[place], self._agreement[place])


_outlines: dict[Path, Any] = {}


def _country_outlines(work: Work) -> Any:
    """Country outlines of a batch, read once per process."""
    if work.store not in _outlines:
        _outlines.clear()
        _outlines[work.store] = surrounding_countries(work.plan.grid)
    return _outlines[work.store]

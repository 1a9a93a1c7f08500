"""The map as a Cloud-Optimized GeoTIFF: streamed, tagged, and read back in full before it is published.

A plain tiled GeoTIFF is written first and then copied by GDAL's COG driver. Direct ways either load the
whole map or write empty overviews; and GDAL cannot add tags to a finished COG, so they are set before.
"""

import contextlib
import re
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from odc.geo.geobox import GeoBox

from sdm.errors import OutputError
from sdm.files.atomic import disk_errors
from sdm.outputs.blocks import Source, iter_blocks
from sdm.outputs.metadata import Band, MapMetadata, one_line
from sdm.outputs.statistics import Accumulator, BandAccumulator, BandSummary, Summary

if TYPE_CHECKING:
    from rasterio.io import DatasetReader, DatasetWriter

BLOCK = 512
"""Side of an internal tile in pixels; smaller maps have no overviews."""

_RESERVED = re.compile(r"AREA_OR_POINT|TIFFTAG_.*|STATISTICS_.*|OVR_.*", re.IGNORECASE)
_MAX_PIXELS = 1 << 20  # in one block: 4 MB
_CACHE = 32 << 20  # bytes of GDAL's block cache while writing; its default is 5 % of the machine's memory

_COG_OPTIONS = {
    "COMPRESS": "DEFLATE",
    "PREDICTOR": "YES",
    "LEVEL": 6,
    "BLOCKSIZE": BLOCK,
    "NUM_THREADS": "ALL_CPUS",
    "OVERVIEW_RESAMPLING": "AVERAGE",
    "BIGTIFF": "IF_SAFER",
    # AUTO copies the exact statistics; YES would compute them again, and fail on an empty map.
    "STATISTICS": "AUTO",
}

_Checks = dict[tuple[int, tuple[int, int, int, int]], int]
"""CRC-32 of the pixels of each band and window (column, row, width, height)."""


def write_cog(
    path: Path, source: Source, geobox: GeoBox, metadata: MapMetadata, bands: Sequence[Source] = ()
) -> Summary:
    """Write a map and return its exact statistics.

    The file has float32 values with nodata NaN, overviews of means over modelled pixels, DEFLATE with the
    floating-point predictor, a short name and unit of each band, its meaning as the tag `quantity` of the band, exact
    STATISTICS_* tags and the tags of `metadata`.
    It appears at `path` only after its layout has been validated, every block of every level decoded, and
    every pixel found equal to the source. Memory is bounded for maps of any size.

    Parameters
    ----------
    path
        File to write.
    source
        The map, shape (y, x).
    geobox
        Its grid.
    metadata
        Its names, unit and provenance.
    bands
        The layers of `metadata.bands`, in order, of the same shape: band 2 and following.

    Returns
    -------
    Summary
        Statistics over the modelled pixels, and those of the further bands.

    Raises
    ------
    OutputError
        If the file cannot be written or fails its check.
    ValueError
        If the shapes of `source`, `bands` and `geobox` differ, or there are more or fewer bands than described.
    """
    import rasterio
    from rasterio.shutil import copy

    layers = (source, *bands)
    for layer in layers:
        if tuple(layer.shape) != tuple(geobox.shape):
            raise ValueError(f"map of shape {tuple(layer.shape)} does not fit grid {tuple(geobox.shape)}")
    if len(bands) != len(metadata.bands):
        raise ValueError(f"{len(bands)} bands are given, and {len(metadata.bands)} described")
    unique = uuid.uuid4().hex[:8]
    staged, finished = (path.with_name(f".{path.name}.{unique}.{part}.tif") for part in ("plain", "cog"))
    try:
        with disk_errors(path), rasterio.Env(GDAL_CACHEMAX=_CACHE, GDAL_PAM_ENABLED="NO"):
            summary, checks = _write_plain(staged, layers, geobox, metadata)
            copy(staged, finished, driver="COG", **_COG_OPTIONS)
            staged.unlink()
            _verify(finished, path.name, geobox, summary, checks)
            finished.replace(path)
    finally:
        for file in path.parent.glob(f".{path.name}.{unique}.*"):
            with contextlib.suppress(OSError):
                file.unlink()
    return summary


def _write_plain(
    path: Path, layers: Sequence[Source], geobox: GeoBox, metadata: MapMetadata
) -> tuple[Summary, _Checks]:
    import rasterio
    from rasterio.enums import ColorInterp

    accumulator = Accumulator(geobox, metadata.valid_range)
    checks: _Checks = {}
    # Bands are written one after the other; blocks that hold all of them would be written as often.
    interleave = {"INTERLEAVE": "BAND"} if len(layers) > 1 else {}
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        dtype="float32",
        count=len(layers),
        height=geobox.height,
        width=geobox.width,
        crs=str(geobox.crs),
        transform=geobox.affine,
        nodata=float("nan"),
        tiled=True,
        blockxsize=BLOCK,
        blockysize=BLOCK,
        BIGTIFF="IF_SAFER",
        SPARSE_OK=True,
        **interleave,
    ) as file:
        _write_band(file, 1, layers[0], accumulator, checks)
        summary = accumulator.result()
        file.colorinterp = [ColorInterp.gray, *[ColorInterp.undefined] * len(metadata.bands)]
        file.set_band_description(1, metadata.variable)
        file.set_band_unit(1, one_line(metadata.unit))
        for number, (layer, band) in enumerate(zip(layers[1:], metadata.bands, strict=True), start=2):
            further = BandAccumulator(geobox, band)
            _write_band(file, number, layer, further, checks)
            described = further.result()
            file.set_band_description(number, band.name)
            file.set_band_unit(number, one_line(band.unit))
            file.update_tags(number, **_band_tags(described, summary.count + summary.nodata_count), **_meaning(band))
            summary = replace(summary, bands=(*summary.bands, described))
        file.update_tags(**_tags(metadata, summary))
        file.update_tags(
            1, quantity=one_line(metadata.quantity), **_band_tags(summary, summary.count + summary.nodata_count)
        )
    return summary, checks


def _write_band(
    file: "DatasetWriter", number: int, source: Source, accumulator: Accumulator | BandAccumulator, checks: _Checks
) -> None:
    from rasterio.windows import Window

    for rows, columns, values in iter_blocks(source, _MAX_PIXELS):
        window = (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
        file.write(values, number, window=Window(*window))
        checks[number, window] = _checksum(values)
        accumulator.update(rows, columns, values)


def _checksum(values: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(values).data)


def _tags(metadata: MapMetadata, summary: Summary) -> dict[str, str]:
    tags: dict[str, str] = {}
    for key, value in metadata.tags.items():
        # GDAL stores tags as KEY=VALUE lines, and reserves some keys.
        safe = re.sub(r"[^A-Za-z0-9_.-]", "_", key) or "_"
        tags[f"tag_{safe}" if _RESERVED.fullmatch(safe) else safe] = one_line(value)
    texts = (metadata.title, metadata.quantity, metadata.description)
    tags |= {
        "AREA_OR_POINT": "Area",
        "TIFFTAG_IMAGEDESCRIPTION": one_line(". ".join(filter(None, texts))),
        "not_modelled": "NaN",
        "modelled_pixels": str(summary.count),
        "modelled_area_km2": f"{summary.modelled_area_km2:.6g}",
    }
    if metadata.unit == "1" and metadata.variable == "probability":  # of another quantity value x area is no area
        tags["expected_area_km2"] = f"{summary.expected_area_km2:.6g}"
    if metadata.attribution:
        tags["TIFFTAG_COPYRIGHT"] = one_line("; ".join(metadata.attribution))
    return tags


def _meaning(band: Band) -> dict[str, str]:
    tags = {"quantity": one_line(band.quantity)}
    return tags if band.limit is None else tags | {"low_trust_above": f"{band.limit:g}"}


def _band_tags(summary: Summary | BandSummary, pixels: int) -> dict[str, str]:
    if not summary.count:
        return {"STATISTICS_VALID_PERCENT": "0"}
    share = 100 * summary.count / pixels
    return {
        "STATISTICS_MINIMUM": repr(summary.min),
        "STATISTICS_MAXIMUM": repr(summary.max),
        "STATISTICS_MEAN": repr(summary.mean),
        "STATISTICS_STDDEV": repr(summary.std),
        "STATISTICS_VALID_PERCENT": f"{share:.4g}",
    }


def _verify(path: Path, name: str, geobox: GeoBox, summary: Summary, checks: _Checks) -> None:
    """Raise OutputError unless the file at `path` is a valid COG with exactly the pixels that were streamed."""
    import rasterio
    from rasterio.windows import Window
    from rio_cogeo.cogeo import cog_validate

    # The validator does not read pixels: a file truncated to a twentieth passes.
    _, errors, _ = cog_validate(path, quiet=True)
    # It reports an image as wide as one tile as untiled; `_verify_tiled` checks that instead.
    errors = [error for error in errors if "not tiled" not in error]
    if errors:
        raise OutputError(f"{name} failed its check: {'; '.join(errors)}.")
    with rasterio.open(path) as file:
        _verify_tiled(file, name)
        same_grid = file.shape == tuple(geobox.shape) and file.transform.almost_equals(geobox.affine)
        if not same_grid or file.nodata is None or not np.isnan(file.nodata):
            raise OutputError(f"{name} failed its check: grid or nodata differ after writing.")
        for (band, window), check in checks.items():
            if _checksum(file.read(band, window=Window(*window))) != check:
                raise OutputError(f"{name} failed its check: pixels differ at {Window(*window)}.")
        levels = len(file.overviews(1))
    for level in range(levels):
        with rasterio.open(path, overview_level=level) as overview:
            _verify_tiled(overview, name)
            _verify_overview(overview, name, 1, summary)
            for number, described in enumerate(summary.bands, start=2):
                _verify_overview(overview, name, number, described)


def _verify_tiled(file: "DatasetReader", name: str) -> None:
    if file.block_shapes[0] != (BLOCK, BLOCK):
        raise OutputError(f"{name} failed its check: it is stored in blocks of {file.block_shapes[0]}.")


def _verify_overview(overview: "DatasetReader", name: str, number: int, summary: Summary | BandSummary) -> None:
    """Means of a band lie between its smallest and its largest value, and exist if any pixel is modelled."""
    low, high = np.inf, -np.inf
    for _, window in overview.block_windows(number):
        values = overview.read(number, window=window)
        values = values[~np.isnan(values)]
        if values.size:
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    if summary.min is None or summary.max is None:
        wrong = low <= high
    else:
        margin = 1e-5 * max(abs(summary.min), abs(summary.max))
        wrong = low > high or low < summary.min - margin or high > summary.max + margin
    if wrong:
        raise OutputError(f"{name} failed its check: an overview does not average the map.")

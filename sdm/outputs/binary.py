"""A map cut in two: where it is inside a range and where it is not, as a raster, and what lies inside."""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from sdm.errors import OutputError
from sdm.files.atomic import disk_errors
from sdm.outputs.blocks import Source, iter_blocks
from sdm.outputs.cog import BLOCK
from sdm.outputs.metadata import one_line
from sdm.outputs.statistics import PixelArea

NODATA = 255
"""Not modelled. 1 is inside the range, 0 outside."""

Inside: TypeAlias = Callable[[npt.NDArray[np.float32], slice, slice], npt.NDArray[np.bool_]]
"""Of values (y, x), and the rows and columns of the map that they are: which lie inside."""


@dataclass(frozen=True)
class Cut:
    """The pixels of a map inside a range."""

    mask: npt.NDArray[np.uint8]
    """(y, x): 1 inside, 0 outside, NODATA where not modelled."""
    area_km2: float
    """True area of the pixels inside."""
    hit_km2: float
    """Sum of value times area inside."""
    expected_km2: float
    """Sum of value times area over the whole map."""

    @property
    def precision(self) -> float | None:
        """Of probabilities: the share of the area inside that is expected to lie in the true range."""
        return self.hit_km2 / self.area_km2 if self.area_km2 > 0 else None

    @property
    def recall(self) -> float | None:
        """Of probabilities: the share of the true range that is expected to lie inside."""
        return self.hit_km2 / self.expected_km2 if self.expected_km2 > 0 else None


def at_least(threshold: float) -> Inside:
    """Inside are values at or above a threshold."""

    def inside(values: npt.NDArray[np.float32], _rows: slice, _columns: slice) -> npt.NDArray[np.bool_]:
        # In the precision of the map: a threshold that is the value of a presence must keep this presence.
        with np.errstate(invalid="ignore"):
            return values >= values.dtype.type(threshold)

    return inside


def cut(source: Source, geobox: GeoBox, inside: Inside) -> Cut:
    """Cut a map of shape (y, x), block by block; a byte per pixel is held."""
    pixel_area = PixelArea(geobox)
    mask = np.empty(geobox.shape, dtype=np.uint8)
    sums = np.zeros(3)
    for rows, columns, values in iter_blocks(source):
        missing = np.isnan(values)
        within = inside(values, rows, columns) & ~missing
        mask[rows, columns] = np.where(missing, NODATA, within)
        area = np.broadcast_to(pixel_area.block(rows, columns), values.shape)
        expected = np.where(missing, 0.0, values) * area
        sums += area[within].sum(), expected[within].sum(), expected.sum()
    return Cut(mask, *(float(one) for one in sums / 1e6))


def write_binary(
    path: Path, mask: npt.NDArray[np.uint8], geobox: GeoBox, quantity: str, tags: Mapping[str, str]
) -> None:
    """Write a mask as a Cloud-Optimized GeoTIFF of bytes with nodata 255.

    Parameters
    ----------
    path : file to write; it appears only when every pixel was read back.
    mask : 1, 0 and NODATA, shape (y, x).
    geobox : its grid.
    quantity : meaning of the band, a tag of it; its name is `range`.
    tags : of the file.

    Raises
    ------
    OutputError : the disk refuses, or the check fails.
    """
    import rasterio
    from rasterio.shutil import copy
    from rio_cogeo.cogeo import cog_validate

    unique = uuid.uuid4().hex[:8]
    staged, finished = (path.with_name(f".{path.name}.{unique}.{part}.tif") for part in ("plain", "cog"))
    options = {"COMPRESS": "DEFLATE", "LEVEL": 9, "BLOCKSIZE": BLOCK, "OVERVIEW_RESAMPLING": "MODE"}
    try:
        with disk_errors(path), rasterio.Env(GDAL_PAM_ENABLED="NO"):
            _write_plain(staged, mask, geobox, quantity, tags)
            copy(staged, finished, driver="COG", BIGTIFF="IF_SAFER", **options)
            _, errors, _ = cog_validate(finished, quiet=True)
            # It takes an image as wide as one tile for untiled.
            if errors := [error for error in errors if "not tiled" not in error]:
                raise OutputError(f"{path.name} failed its check: {'; '.join(errors)}.")
            with rasterio.open(finished) as file:
                if not np.array_equal(file.read(1), mask):
                    raise OutputError(f"{path.name} failed its check: pixels differ.")
            finished.replace(path)
    finally:
        for file in path.parent.glob(f".{path.name}.{unique}.*"):
            with contextlib.suppress(OSError):
                file.unlink()


def _write_plain(
    path: Path, mask: npt.NDArray[np.uint8], geobox: GeoBox, quantity: str, tags: Mapping[str, str]
) -> None:
    import rasterio

    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        dtype="uint8",
        count=1,
        height=geobox.height,
        width=geobox.width,
        crs=str(geobox.crs),
        transform=geobox.affine,
        nodata=NODATA,
        tiled=True,
        blockxsize=BLOCK,
        blockysize=BLOCK,
        BIGTIFF="IF_SAFER",
    ) as file:
        file.write(mask, 1)
        file.set_band_description(1, "range")
        file.update_tags(1, quantity=one_line(quantity))
        file.update_tags(**{re.sub(r"[^A-Za-z0-9_.-]", "_", key): one_line(value) for key, value in tags.items()})

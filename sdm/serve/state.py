"""An index and its model: the answers to all questions of the page. No HTTP here."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdm._version import __version__
from sdm.engine.graph import to_dask_with_bands
from sdm.engine.places import Target
from sdm.errors import RequestError, SpeciesNameError
from sdm.files.vectors import countries
from sdm.layers import ATTRIBUTION
from sdm.layers.landmask import LandMask
from sdm.maps.plan import Job, plan_resolved
from sdm.maps.report import describe
from sdm.models.choice import resolve_in, resolved
from sdm.models.joint import member_of
from sdm.models.licence import credit_lines
from sdm.models.protocol import Model
from sdm.names.habitat import mask_for
from sdm.outputs.basemap import land_and_borders
from sdm.outputs.cog import write_cog
from sdm.outputs.overlay import LEVELS, palette, png
from sdm.outputs.style import RAMP
from sdm.outputs.webmap import viewport
from sdm.request import MapRequest
from sdm.request.choices import ORIGINS, parse_word
from sdm.request.months import when
from sdm.serve.cache import Cache
from sdm.serve.dropped import MARK, Dropped
from sdm.serve.frame import detail, picture_frame
from sdm.serve.pictures import Picture, Pictures
from sdm.serve.pixels import read_pixels
from sdm.serve.places import PlaceReader
from sdm.serve.taxa import matching_synonym, taxon_fields

if TYPE_CHECKING:
    import numpy as np

    from sdm.index import Index

HELD_PIXELS = 500_000
"""Largest number of pixels of the index in memory, about those of the map on a screen. A larger index is sampled, and
tiles show every pixel at closer zooms."""

PICTURE_PIXELS = 2 * HELD_PIXELS
"""Pixels of the overview of a smaller index: Mercator stretches the north, and small maps are enlarged."""

SUGGESTIONS = 12
"""Names suggested while typing."""

TILE_BYTES = 256 << 20
"""Cache of the index's tiles, which places and close views are read from."""

MEANING = {
    "probability": (
        "The probability that a place lies in the known range. It is neither abundance nor habitat quality; "
        "transparent areas are not modelled."
    )
}
"""Explains the value of a pixel, by the name of the score."""


def sentence_of(target: Target) -> str:
    """The meaning of a value of a fit."""
    text = target.score.explanation
    return text[:1].upper() + text[1:]


class Explorer:
    """Answers about the species and places of one index. Threads may share it; the index is only read.

    Raises RegionIndexError where `model` is not the model of the index, RequestError where the index lies
    beyond the latitudes of the web map.
    """

    def __init__(
        self,
        index: Index,
        model: Model | str | Path | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Read the pixels of the overview; `progress` is called with the number of tiles read and to read."""
        self.index, self.model, self.grid = index, index.find_model(model), index.grid
        self.model.load("cpu")
        land_mask = LandMask()
        complete = self.grid.pixels <= HELD_PIXELS
        self.frame = picture_frame(self.grid, PICTURE_PIXELS if complete else HELD_PIXELS)
        self.detail = detail(self.grid, self.frame)
        self.pixels = read_pixels(index, self.frame, land_mask, progress)
        self.pictures = Pictures(index, self.pixels, self.detail, land_mask)
        self.places = PlaceReader(index, self.model, land_mask)
        self.dropped = Dropped(index)
        self._jobs: Cache[Job] = Cache(4096, lambda job: 1)
        self._basemap: Cache[tuple[str, str]] = Cache(1, lambda texts: 0)

    # Species -------------------------------------------------------------------------------------

    def suggest(self, text: str) -> list[dict[str, str]]:
        """Taxa with names similar to the text, best first; none for text that cannot be a name."""
        try:
            taxa = self.model.taxa.search(text, SUGGESTIONS)
        except SpeciesNameError:
            return []
        return [{**taxon_fields(taxon), "matched": matching_synonym(taxon, text)} for taxon in taxa]

    def job(self, name: str, origin: str = "native") -> Job:
        """The taxon of a name and how it is mapped, by its native range or all of it. Raises SpeciesNameError.

        A name may be the key of a dropped species, see `Explorer.drop`.
        """
        if name.startswith(MARK):
            return self.dropped.job(name)
        return self._jobs.get(f"{origin} {name}", lambda: self._plan(name, origin))

    def drop(self, path: Path) -> list[dict[str, Any]]:
        """Fit the species of a file, or open a saved fit: see `describe` of each. Raises SdmError subclasses."""
        return [self.describe(key) for key in self.dropped.add(path)]

    def describe(self, name: str, origin: str = "native") -> dict[str, Any]:
        """The taxon of a name, notes for the reader, area and largest value of its map. Raises SpeciesNameError."""
        job = self.job(name, origin)
        resolution, target, picture = job.resolutions[0], job.plan.targets[0], self.picture(name, origin)
        # The page explains the storage of the embeddings once, for all species.
        source_note = job.plan.source.note if job.plan.source else ""
        return {
            **taxon_fields(resolution.taxon),
            "query": resolution.query,
            "how": resolution.how,
            "origin": resolution.origin,
            "notes": [note for note in job.notes[0] if note != source_note],
            "lineage": list(resolution.taxon.lineage),
            "mask": target.mask,
            "modelled_km2": picture.modelled_km2,
            "expected_km2": picture.expected_km2,
            "highest": picture.highest,
            "quantity": target.score.name.replace("_", " "),
            "meaning": sentence_of(target) if job.fits else MEANING.get(target.score.name, ""),
            "file": f"{job.slugs[0]}.tif",
        }

    def picture(self, name: str, origin: str = "native") -> Picture:
        """The species on `frame`. Raises SpeciesNameError."""
        return self.pictures.overview(self.job(name, origin))

    def tile(self, name: str, zoom: int, x: int, y: int, origin: str = "native") -> np.ndarray:
        """Levels (256, 256) uint8 of one XYZ tile of the web map. Raises SpeciesNameError, RequestError."""
        return self.pictures.tile(self.job(name, origin), zoom, x, y)

    def image(self, name: str, zoom: int, x: int, y: int, origin: str = "native") -> bytes:
        """One XYZ tile of any zoom as a PNG in the colours of the map, transparent where nothing is modelled.

        Raises SpeciesNameError, RequestError.
        """
        parse_word("origin", origin, ORIGINS)
        return png(self.pictures.any_tile(self.job(name, origin), self.frame, zoom, x, y))

    def cog(self, name: str, folder: Path, origin: str = "native") -> Path:
        """Write the species' map in the index's resolution as a Cloud-Optimized GeoTIFF into a folder."""
        import xarray as xr

        job = self.job(name, origin)
        path = folder / f"{job.slugs[0]}.tif"
        values, further = to_dask_with_bands(job.plan)  # computed tile by tile
        layers = [xr.DataArray(layer, dims=("y", "x")) for layer in (values[0], *further[0])]
        meta = describe(job, 0, shlex.join(["sdm", "serve", self.index.url]))
        meta = replace(meta, bands=job.plan.targets[0].bands)
        write_cog(path, layers[0], self.grid.geobox, meta, layers[1:])
        return path

    def _plan(self, name: str, origin: str) -> Job:
        resolution = resolved(resolve_in(self.model, name, as_group=False))
        model = member_of(self.model, resolution.taxon)
        mask, held = mask_for(resolution.taxon), self.index.mask
        notes: tuple[str, ...] = ()
        if held not in ("none", mask):
            if mask != "none":
                raise RequestError(f"{resolution.taxon.name} is mapped on {mask}, but this index contains only {held}.")
            mask, notes = held, (f"This index contains only {held}, so the map covers nothing else.",)
        request = MapRequest.of(species=name, index=self.index, origin=origin, mask=mask, max_pixels=self.grid.pixels)
        job = plan_resolved(request, model, [resolution], "cpu")
        return replace(job, notes=((*notes, *job.notes[0]),))

    # Places --------------------------------------------------------------------------------------

    def place(self, lon: float, lat: float, name: str | None = None, origin: str = "native") -> dict[str, Any]:
        """The pixel at a position (degrees): the likeliest species, and the value of a named one."""
        parse_word("origin", origin, ORIGINS)
        return self.places.report(lon, lat, partial(self.job, name, origin) if name else None, origin)

    # The page ------------------------------------------------------------------------------------

    def info(self) -> dict[str, Any]:
        """The index and its model, as the page describes them."""
        frame, score = self.frame, self.places.targets[0].score
        rows, cols = self.grid.shape
        low, high = score.valid_range
        return {
            "version": __version__,
            "digest": self.index.digest,
            "bounds": [frame.west, frame.south, frame.east, frame.north],
            "picture": list(frame.shape),
            "row_km2": [float(f"{area:.6g}") for area in frame.areas()],
            "detail": None if self.detail is None else asdict(self.detail),
            "viewport": list(self.viewport()[0]),
            "grid": {
                "crs": self.grid.crs,
                "resolution": self.grid.resolution,
                "degrees": self.grid.is_geographic,
                "rows": rows,
                "columns": cols,
            },
            "quantity": score.name.replace("_", " "),
            "season": when(self.index.month) if self.model.seasonal else "",
            "meaning": MEANING.get(score.name, ""),
            "range": [low, high],
            "steps": LEVELS,
            "ramp": list(RAMP),
            "palette": palette()[: LEVELS + 1].tolist(),
            "mask": self.index.mask,
            "modalities": list(self.index.modalities),
            "model": {
                "name": self.model.name,
                "title": self.model.title,
                "version": self.model.version,
                "licence": self.model.licence,
                "digest": self.model.digest,
                "species": len(self.places.targets),
                "introduced": len(self.model.introduced),
            },
            "exactness": self.index.notes["error_of_probability"],
            "encoding": self.index.encoding,
            "credits": [*ATTRIBUTION, *credit_lines(self.model)],
        }

    def viewport(self) -> tuple[tuple[float, float, float, float], float]:
        """The area that can be viewed, (west, south, east, north), and the larger side of the map, in degrees."""
        frame = self.frame
        return viewport((frame.west, frame.south, frame.east, frame.north))

    def basemap(self) -> tuple[str, str]:
        """GeoJSON texts: polygons of land, and lines of coasts and borders."""
        (_, south, _, north), _ = window = self.viewport()
        return self._basemap.get("", lambda: land_and_borders(countries((-180.0, south, 180.0, north)), *window))

    def close(self) -> None:
        """Stop the threads."""
        self.pixels.embeddings.close()

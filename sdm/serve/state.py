"""What the explorer knows: an index, its model, and the answers made from them. No HTTP here."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdm._version import __version__
from sdm.engine.cluster import processors
from sdm.engine.graph import to_dask
from sdm.engine.inputs import at_month, environment_of, satellite_of
from sdm.engine.places import Target
from sdm.engine.targets import target_of
from sdm.errors import RegionIndexError, RequestError, SpeciesNameError
from sdm.files.vectors import countries
from sdm.grid import Tile
from sdm.index.encoding import DTYPES
from sdm.layers import ATTRIBUTION
from sdm.layers.landmask import LandMask
from sdm.maps.plan import Job, plan
from sdm.maps.report import describe
from sdm.models.bundled import Model
from sdm.models.licence import credits_of
from sdm.names import Resolution, Taxon
from sdm.names.habitat import mask_for
from sdm.names.text import fold
from sdm.outputs.basemap import land_and_borders
from sdm.outputs.cog import write_cog
from sdm.outputs.overlay import LEVELS, levels, palette
from sdm.outputs.style import RAMP
from sdm.outputs.webmap import viewport
from sdm.request.months import when
from sdm.serve.frame import detail, locate, picture_frame, tile_frame
from sdm.serve.products import Cache, Packed

if TYPE_CHECKING:
    from sdm.index import Index

HELD_PIXELS = 500_000
"""Pixels of the index kept in memory for the first picture, about those of the map on a screen. A larger index is
sampled, and shown in full by tiles as one zooms in."""

PICTURE_PIXELS = 2 * HELD_PIXELS
"""Of a picture whose index is held whole: Mercator stretches the north, and small maps are enlarged."""

TOP = 20
"""Species listed for a place."""

SUGGESTIONS = 12

MEANING = {
    "probability": (
        "The probability that a place lies in the known range. Not an abundance, not a habitat quality; where the map "
        "is transparent nothing is claimed."
    )
}
"""What a pixel says, by the name of the score."""

CACHE_BYTES = 64 << 20
"""Of pictures, and again of tiles of species."""

TILE_BYTES = 256 << 20
"""For the index to keep tiles in, from which places and close views are answered."""


@dataclass(frozen=True)
class Picture:
    """A species on the frame of the whole map."""

    levels: np.ndarray
    """(rows, columns) uint8: 0 not modelled, 1 to LEVELS over the valid range."""
    modelled_km2: float
    expected_km2: float
    """Sum of value x area."""
    highest: float | None
    """Largest value; None where nothing is modelled."""


class Explorer:
    """Answers about the species and places of one index. Thread-safe; the index is only read.

    `tell(done, total)` is called while the index is read on entry, in tiles. Raises RegionIndexError where
    `model` is not the one the index was made with, RequestError where the index lies beyond the web map.
    """

    def __init__(
        self, index: Index, model: Model | str | Path | None = None,
        tell: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:  # fmt: skip
        self.index, self.model, self.grid = index, index.find_model(model), index.grid
        self.model.load("cpu")
        self._surface = LandMask()
        whole = self.grid.pixels <= HELD_PIXELS
        self.frame = picture_frame(self.grid, PICTURE_PIXELS if whole else HELD_PIXELS)
        self.detail = detail(self.grid, self.frame)
        self._read(tell)
        self._layers = self._open_layers()
        self._taxa = tuple(self.model.taxa)
        self._targets = [target_of(self.model, Resolution(t.name, t, True, ""), index.modalities) for t in self._taxa]
        self._vectors = np.stack([target.vector for target in self._targets])
        self._jobs = Cache(4096, lambda job: 1)
        self._pictures = Cache(CACHE_BYTES, lambda picture: picture.levels.nbytes)
        self._tiles = Cache(CACHE_BYTES, lambda tile: tile.nbytes)
        self._lookups = Cache(CACHE_BYTES // 4, lambda arrays: sum(a.nbytes for a in arrays))
        self._basemap = Cache(1, lambda texts: 0)

    def _read(self, tell: Callable[[int, int], None]) -> None:
        """Take the pixels of the picture into memory, with where they are and how much ground each stands for."""
        columns = self.grid.shape[1]
        rows, cols, inside = locate(self.grid, *self.frame.lonlat())
        flat = rows * columns + cols
        wanted = np.unique(flat[inside])
        # Pages of memory that no pixel is ever written to (seas, where the index has none) are never taken.
        codes = np.zeros((wanted.size, self.index.dim), dtype=DTYPES[self.index.encoding])
        scales, lon, lat = (np.zeros(wanted.size, dtype) for dtype in (np.float32, np.float64, np.float64))
        slots = np.full(wanted.size + 1, -1, dtype=np.int32)
        count = 0
        tiles = list(self.grid.tiles())
        tell(0, len(tiles))

        def read(tile: Tile):
            """Of the pixels of the picture in this tile: number, codes, scale, longitude, latitude."""
            some_codes, some_scales, pixels = self.index.encoded(tile.rows, tile.cols)
            row, col = np.divmod(pixels, tile.shape[1])
            place = (row + tile.rows.start) * columns + col + tile.cols.start
            number = np.searchsorted(wanted, place)
            found = wanted[np.minimum(number, wanted.size - 1)] == place
            positions = (a.ravel()[pixels[found]] for a in self._lonlat(tile))
            return number[found], some_codes[found], some_scales[found], *positions

        with ThreadPoolExecutor(processors()) as pool:
            for done, (number, *found) in enumerate(pool.map(read, tiles), 1):
                some = slice(count, count + number.size)
                codes[some], scales[some], lon[some], lat[some] = found
                slots[number] = np.arange(some.start, some.stop)
                count = some.stop
                tell(done, len(tiles))
        self._packed = Packed(codes[:count], scales[:count])
        self._lon, self._lat = lon[:count], lat[:count]
        self._keep = {kind: self._surface.keep(kind, self._lon, self._lat) for kind in ("land", "sea")}
        slots[slots < 0] = count  # one beyond the last: not modelled
        self._lookup = np.where(inside, slots[np.searchsorted(wanted, flat)], count).astype(np.int32)
        ground = np.broadcast_to(self.frame.areas()[:, None], self.frame.shape)
        self._ground = np.bincount(self._lookup.ravel(), ground.ravel(), minlength=count + 1)[:count]

    def _lonlat(self, tile: Tile) -> tuple[np.ndarray, np.ndarray]:
        return self.grid.lonlat(np.arange(tile.rows.start, tile.rows.stop), np.arange(tile.cols.start, tile.cols.stop))

    def _open_layers(self) -> dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]]:
        """Per modality: positions (N,), (N,) degrees -> values for its encoder; {} where the layers are not at hand."""
        try:
            self.index.places(self.model)
        except RegionIndexError:  # made with rasters of the user's own
            return {}
        return {
            "location": lambda lon, lat: at_month(self.model, np.stack([lon, lat], axis=1), self.index.month),
            "satellite": satellite_of(self.model).crops,
            "environment": environment_of(self.model).sample,
        }

    # Species -------------------------------------------------------------------------------------

    def suggest(self, text: str) -> list[dict[str, str]]:
        """Taxa whose names resemble what has been typed, best first; none for text that cannot be a name."""
        try:
            found = self.model.taxa.search(text, SUGGESTIONS)
        except SpeciesNameError:
            return []
        return [{**_named(taxon), "matched": _matched(taxon, text)} for taxon in found]

    def job(self, name: str) -> Job:
        """What a name stands for and how it is mapped. Raises SpeciesNameError."""
        return self._jobs.get(name, lambda: self._plan(name))

    def describe(self, name: str) -> dict[str, Any]:
        """What a name resolved to, the notes a reader should see, and the sizes of its map."""
        job = self.job(name)
        resolution, target, picture = job.resolutions[0], job.plan.targets[0], self.picture(name)
        return {
            **_named(resolution.taxon),
            "query": resolution.query,
            "known": resolution.known,
            "how": resolution.how,
            # That numbers are stored as bytes is true of every species here: the page says it once.
            "notes": [note for note in job.notes[0] if note != job.plan.source.note],
            "lineage": list(resolution.taxon.lineage),
            "mask": target.mask,
            "modelled_km2": picture.modelled_km2,
            "expected_km2": picture.expected_km2,
            "highest": picture.highest,
            "file": f"{job.slugs[0]}.tif",
        }

    def picture(self, name: str) -> Picture:
        """The species on `frame`. Raises SpeciesNameError."""
        job = self.job(name)
        return self._pictures.get(job.resolutions[0].taxon, lambda: self._draw(job.plan.targets[0]))

    def _draw(self, target: Target) -> Picture:
        values = target.score.values(self._packed.cosines(target.vector))
        hidden = ~self._shown(target, self._lon, self._lat, self._keep.get(target.mask))
        values[hidden] = np.nan
        drawn = np.append(levels(values, target.score.valid_range), np.uint8(0))[self._lookup]
        modelled = float(self._ground[~hidden].sum())
        values[hidden] = 0.0
        highest = float(values.max()) if modelled else None
        return Picture(drawn, modelled, float(self._ground @ values), highest)

    def _shown(self, target: Target, lon: np.ndarray, lat: np.ndarray, keep: np.ndarray | None = None) -> np.ndarray:
        """Boolean, shape of `lon`: where this species may be shown, of the places the index holds."""
        if keep is None:
            keep = self._surface.keep(target.mask, lon, lat)
        if target.extent is not None:
            west, south, east, north = target.extent
            keep = keep & (lon >= west) & (lon <= east) & (lat >= south) & (lat <= north)
        return keep

    def tile(self, name: str, zoom: int, x: int, y: int) -> np.ndarray:
        """Levels (256, 256) of one tile of the web map, from the index in full. Raises RequestError."""
        job = self.job(name)
        if self.detail is None or not self.detail.first <= zoom <= self.detail.last:
            raise RequestError(f'there are no tiles of this index at zoom {zoom}; see "detail" in api/index.')
        rows, cols, inside = self._lookups.get(
            (zoom, x, y), lambda: locate(self.grid, *tile_frame(zoom, x, y).lonlat())
        )
        out = np.zeros(inside.shape, dtype=np.uint8)
        size, across = self.grid.tile_size, -(-self.grid.shape[1] // self.grid.tile_size)
        numbers = np.where(inside, rows // size * across + cols // size, -1)
        for number in np.unique(numbers[inside]):
            i, j = divmod(int(number), across)
            here = numbers == number
            out[here] = self._chunk(job, i, j)[rows[here] - i * size, cols[here] - j * size]
        return out

    def _chunk(self, job: Job, i: int, j: int) -> np.ndarray:
        """Levels of one tile of the grid."""
        target, taxon = job.plan.targets[0], job.resolutions[0].taxon

        def make() -> np.ndarray:
            size, (height, width) = self.grid.tile_size, self.grid.shape
            rows, cols = slice(i * size, min((i + 1) * size, height)), slice(j * size, min((j + 1) * size, width))
            return levels(self.index.values((target,), rows, cols)[0], target.score.valid_range)

        return self._tiles.get((taxon, i, j), make)

    def cog(self, name: str, folder: Path) -> Path:
        """Write the species' map, every pixel of the index, as a Cloud-Optimized GeoTIFF into a folder."""
        import xarray as xr

        job = self.job(name)
        path = folder / f"{job.slugs[0]}.tif"
        array = xr.DataArray(to_dask(job.plan)[0], dims=("y", "x"))  # tile by tile, whatever the size
        write_cog(path, array, self.grid.geobox, describe(job, 0, shlex.join(["sdm", "serve", self.index.url])))
        return path

    def _plan(self, name: str) -> Job:
        resolution = self.model.taxa.resolve(name)
        mask, held = mask_for(resolution.taxon), self.index.mask
        notes: tuple[str, ...] = ()
        if held not in ("none", mask):
            if mask != "none":
                raise RequestError(f"{resolution.taxon.name} is mapped on {mask}, and this index holds {held} only.")
            mask, notes = held, (f"This index holds {held} only: the map leaves out what lies beyond.",)
        job = plan(
            name, index=self.index, resolved=(self.model, [resolution]), mask=mask, device="cpu",
            max_pixels=self.grid.pixels,
        )  # fmt: skip
        return replace(job, notes=((*notes, *job.notes[0]),))

    # Places --------------------------------------------------------------------------------------

    def place(self, lon: float, lat: float, name: str | None = None) -> dict[str, Any]:
        """What the index says of the pixel that holds a position (degrees).

        With a species: its value there, and what each modality adds to the cosine. In any case the species
        most likely there.
        """
        rows, cols, inside = locate(self.grid, np.array([lon]), np.array([lat]))
        answer: dict[str, Any] = {"lon": lon, "lat": lat, "inside": bool(inside[0, 0]), "modelled": False}
        if not inside[0, 0]:
            return answer
        row, col = int(rows[0, 0]), int(cols[0, 0])
        pixel = Tile((0, 0), slice(row, row + 1), slice(col, col + 1))
        x, y = (a.ravel() for a in self._lonlat(pixel))
        answer |= {"row": row, "column": col, "pixel": [float(x[0]), float(y[0])]}
        embeddings, _ = self.index.embeddings(pixel.rows, pixel.cols)
        answer["modelled"] = bool(len(embeddings))
        if not len(embeddings):
            return answer
        if name:
            job = self.job(name)
            target = job.plan.targets[0]
            value = float(self.index.values((target,), pixel.rows, pixel.cols)[0, 0, 0])
            answer["species"] = {
                **_named(job.resolutions[0].taxon),
                "value": None if math.isnan(value) else value,
                "mask": target.mask,
                "cosine": float(embeddings[0] @ target.vector),
                "parts": self._parts(pixel, x, y, target.vector),
            }
        answer["top"] = self._likeliest(embeddings[0], x, y)
        return answer

    def _parts(self, pixel: Tile, lon: np.ndarray, lat: np.ndarray, vector: np.ndarray) -> list[dict[str, Any]]:
        """What each modality adds to the cosine at a pixel; [] where its layers are not at hand.

        The embedding of a place is the sum of its modalities' unit embeddings m, divided by the length of
        that sum, so the cosine with a species s is the sum of m . s / |sum|. Where the index does not hold
        each modality, the place is encoded again.
        """
        parts: dict[str, np.ndarray] = {}
        for modality in self.index.modalities:
            if modality in self.index.held:
                found, _ = self.index.embeddings(pixel.rows, pixel.cols, modality)
            elif modality in self._layers:
                values = self._layers[modality](lon, lat)
                found = self.model.load("cpu").encode(modality, values).numpy() if np.isfinite(values).all() else ()
            else:
                found = ()
            if not len(found):
                return []
            parts[modality] = found[0].astype(np.float64)
        length = np.linalg.norm(sum(parts.values()))
        return [{"modality": m, "cosine": float(part @ vector / length)} for m, part in parts.items()]

    def _likeliest(self, embedding: np.ndarray, lon: np.ndarray, lat: np.ndarray) -> list[dict[str, Any]]:
        """The index read the other way: the species with the largest values at one place, best first."""
        cosines = self._vectors @ embedding
        keep = {kind: self._surface.keep(kind, lon, lat) for kind in ("land", "sea", "none")}
        found = []
        # A larger cosine is a larger value, so nothing need be scored that is not listed.
        for k in np.argsort(-cosines):
            target = self._targets[k]
            if not self._shown(target, lon, lat, keep[target.mask])[0]:
                continue
            found.append({**_named(self._taxa[k]), "value": float(target.score.values(cosines[k : k + 1])[0])})
            if len(found) == TOP:
                break
        return found

    # The page ------------------------------------------------------------------------------------

    def info(self) -> dict[str, Any]:
        """What the page needs to know of the index before any species is asked for."""
        frame, score = self.frame, self._targets[0].score
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
                "species": len(self._taxa),
            },
            "exactness": self.index.notes["error_of_probability"],
            "encoding": self.index.encoding,
            "credits": [*ATTRIBUTION, *credits_of(self.model)],
        }

    def viewport(self) -> tuple[tuple[float, float, float, float], float]:
        """What can be looked at - the map and a margin - and the larger side of the map, in degrees."""
        frame = self.frame
        return viewport((frame.west, frame.south, frame.east, frame.north))

    def basemap(self) -> tuple[str, str]:
        """GeoJSON texts: areas of land, lines of coasts and borders."""
        (_, south, _, north), _ = window = self.viewport()
        return self._basemap.get("", lambda: land_and_borders(countries((-180.0, south, 180.0, north)), *window))

    def close(self) -> None:
        """Stop the threads."""
        self._packed.close()


def _named(taxon: Taxon) -> dict[str, str]:
    return {"name": taxon.name, "rank": taxon.rank, "common": taxon.common[0] if taxon.common else ""}


def _matched(taxon: Taxon, text: str) -> str:
    """The name that holds the text, where it is none of those shown anyway."""
    words = fold(text)
    shown = (taxon.name, *taxon.common[:1])
    if any(words in fold(name) for name in shown):
        return ""
    return next((name for name in (*taxon.common[1:], *taxon.synonyms) if words in fold(name)), "")

"""The environment at a place: climate, terrain and land cover as one standardised vector.

The model's `config.json` lists the variables, their order and their transforms. This module finds
them in the bundled layers, or in the user's rasters that replace them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from sdm.errors import LayerError
from sdm.files.release import data_file
from sdm.layers.raster import RasterLayer, Source, interpolate
from sdm.layers.surroundings import shifted_surroundings
from sdm.layers.units import check_units, limits

BUNDLED = ("bioclim.tif", "elevation.tif", "relief.tif", "landcover.tif", "surroundings.tif")

CLIP = 5.0
"""Standard deviations to which standardised values are clipped: models are not trained beyond."""

BIOCLIM_BANDS = 19
"""Bioclimatic variables, in a file of all of them."""


@dataclass(frozen=True)
class Input:
    """One column of the environment vector.

    `layer` is the variable's name ("bio1", "elevation", "landcover"); `transform` one of
    identity, log1p, land_km, sea_km, symlog, class; `value` the class for transform "class".
    The result is standardised, `(x - mean) / std`, and clipped to +-`CLIP`.
    """

    layer: str
    transform: str = "identity"
    value: int = 0
    mean: float = 0.0
    std: float = 1.0

    def apply(self, raw: np.ndarray) -> np.ndarray:
        """Transform and standardise raw values in the layer's own units; NaN stays NaN."""
        x = (self.transformed(raw) - self.mean) / self.std
        return np.clip(x, -CLIP, CLIP).astype(np.float32)

    def transformed(self, raw: np.ndarray) -> np.ndarray:
        """Transform raw values without standardising them."""
        match self.transform:
            case "identity":
                return raw
            case "log1p":
                return np.log1p(np.maximum(raw, 0.0))
            case "land_km":
                return np.maximum(raw, 0.0) / 1000.0
            case "sea_km":
                return np.minimum(raw, 0.0) / 1000.0
            case "symlog":
                return np.sign(raw) * np.log1p(np.abs(raw))
            case "class":
                return np.where(np.isnan(raw), np.nan, raw == self.value)
            case other:
                raise LayerError(f"environment input {self.layer!r} names the unknown transform {other!r}.")


class Environment:
    """The environment vector at places, from a set of raster layers.

    `inputs` are the model's; `overrides` are the user's raster files, whose variables (by band description
    or file name) replace the bundled ones. Raises LayerError when no layer has an input.
    """

    def __init__(self, inputs: Iterable[Input], overrides: Iterable[str | Path] = ()) -> None:
        self.inputs = tuple(inputs)
        self.overrides = tuple(str(p) for p in overrides)
        bands: dict[str, tuple[RasterLayer, int]] = {}
        for name in BUNDLED:
            bands.update(_named_bands(RasterLayer(data_file(name))))
        self._bundled = dict(bands)
        replaced: dict[str, tuple[RasterLayer, int]] = {}
        for given in self.overrides:
            for name, source in _override(given, {i.layer for i in self.inputs}).items():
                if name in replaced:
                    _refuse_twice(name, replaced[name][0].path, source[0].path)
                replaced[name] = source
        self.replaced = tuple(sorted(replaced))
        """Names of the variables the user's rasters provide."""
        self._own = {layer for layer, _ in replaced.values()}
        for name, (layer, band) in replaced.items():
            if between := limits(name):
                layer.limits[band] = between
        bands.update(replaced)
        around = {i.layer: bands[i.layer] for i in self.inputs if i.layer in bands and i.layer not in replaced}
        around = {name: source for name, source in around.items() if name.startswith("mean")}
        self.surroundings = _with_surroundings(bands, around, replaced)
        """Names of the means around a place in which the user's rasters are."""
        self._groups = _group(self.inputs, bands)

    def sample(self, lon: np.ndarray, lat: np.ndarray, standardise: bool = True) -> np.ndarray:
        """Inputs at places: (N,), (N,) degrees -> (N, len(inputs)) float32, standardised or only transformed.

        Where a row has a NaN, the environment is not known.
        """
        out = np.empty((lon.size, len(self.inputs)), dtype=np.float32)
        for group in self._groups:
            out[:, _as_slice(_columns(group))] = _read(group, lon, lat, standardise)
        return out

    def finer(self, degrees: float) -> np.ndarray:
        """Positions of the inputs whose layers have cells smaller than this, ascending."""
        groups = (group for group in self._groups if group[0].layer.dx < degrees)
        return np.sort(np.array([k for group in groups for k in _columns(group)], dtype=np.intp))

    def sample_finer(self, degrees: float, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
        """The inputs of `finer` alone, standardised, in their order: (N, F) float32. Coarser layers are not read."""
        groups = [group for group in self._groups if group[0].layer.dx < degrees]
        order = np.argsort([k for group in groups for k in _columns(group)])
        if not groups:
            return np.empty((lon.size, 0), dtype=np.float32)
        read = np.concatenate([_read(group, lon, lat, True) for group in groups], axis=1)
        return read if np.array_equal(order, np.arange(order.size)) else read[:, order]

    def check(self, lon: np.ndarray, lat: np.ndarray) -> None:
        """Raise LayerError when the user's rasters miss the places (N,), (N,) degrees or have other units."""
        for part in (p for group in self._groups for p in group):
            layer, bands = part.layer, list(part.bands)
            if layer not in self._own:
                continue
            layer.require_overlap("environment", lon, lat)
            names = {band: name for name, (_, band) in _named_bands(layer).items()}
            plain = RasterLayer(layer.path)  # without the limits of its values
            for band in bands:
                known, number = self._bundled.get(names[band], (None, 0))
                there = np.full(lon.size, np.nan) if known is None else known.nearest(lon, lat, number)
                check_units(layer.path, names[band], plain.nearest(lon, lat, band), there)


@dataclass(frozen=True)
class _Part:
    """The inputs that come from one layer."""

    layer: RasterLayer
    bands: tuple[int, ...]
    columns: tuple[int, ...]
    """Positions of the inputs in the environment vector."""
    inputs: tuple[tuple[Input, int], ...]
    """Each input with the position of its band in `bands`."""

    def prepare(self, standardise: bool) -> Callable[[np.ndarray], np.ndarray]:
        """The function that turns values (..., bands) of this layer into its columns."""
        functions = [(i.apply if standardise else i.transformed, k) for i, k in self.inputs]
        if len(self.bands) == 1 and all(i.transform == "class" for i, _ in self.inputs):
            return partial(_look_up, np.stack([f(_CODES) for f, _ in functions], axis=1).astype(np.float32))
        return lambda block: np.stack([f(block[..., k]) for f, k in functions], axis=-1)


def _columns(group: list[_Part]) -> list[int]:
    """Positions of the inputs of a group in the environment vector."""
    return [k for part in group for k in part.columns]


def _read(group: list[_Part], lon: np.ndarray, lat: np.ndarray, standardise: bool) -> np.ndarray:
    """The inputs of a group at places (N,), (N,) degrees, as `_columns` orders them: (N, columns) float32."""
    sources = [Source(part.layer, part.bands, part.prepare(standardise), len(part.columns)) for part in group]
    return interpolate(sources, lon, lat)


_CODES = np.array([*range(256), -1.0, np.nan], dtype=np.float32)
"""Every class of a land cover map, then a value that is no class, then nodata."""


def _look_up(table: np.ndarray, block: np.ndarray) -> np.ndarray:
    """Columns of classes, (..., 1) -> (..., columns); `table` has a row for each of `_CODES`."""
    codes = block[..., 0]
    is_class = (codes >= 0) & (codes < 256) & (codes == np.floor(codes))
    return table.take(np.where(is_class, codes, np.where(np.isnan(codes), 257, 256)).astype(np.intp), axis=0)


def _group(inputs: tuple[Input, ...], bands: dict[str, tuple[RasterLayer, int]]) -> list[list[_Part]]:
    """Inputs grouped by layer (one read per file), and layers by lattice (interpolated together)."""
    by_layer: dict[int, list[int]] = {}
    for column, item in enumerate(inputs):
        if item.layer not in bands:
            raise LayerError(f"environment variable {item.layer!r}, which the model reads, is in no layer.")
        by_layer.setdefault(id(bands[item.layer][0]), []).append(column)
    groups: dict[tuple[float, ...], list[_Part]] = {}
    for columns in by_layer.values():
        layer = bands[inputs[columns[0]].layer][0]
        numbers = [bands[inputs[c].layer][1] for c in columns]
        wanted = tuple(dict.fromkeys(numbers))
        positions = tuple((inputs[c], wanted.index(n)) for c, n in zip(columns, numbers, strict=True))
        groups.setdefault(layer.lattice, []).append(_Part(layer, wanted, tuple(columns), positions))
    return list(groups.values())


def _with_surroundings(
    bands: dict[str, tuple[RasterLayer, int]],
    around: dict[str, tuple[RasterLayer, int]],
    replaced: dict[str, tuple[RasterLayer, int]],
) -> tuple[str, ...]:
    """Put the user's rasters into the means around a place, entries of `bands`; returns the names that changed."""
    if not around or not replaced:
        return ()
    layer = next(iter(around.values()))[0]
    shifted = shifted_surroundings(layer, {name: band for name, (_, band) in around.items()}, replaced)
    if shifted is None:
        return ()
    bands.update({name: (shifted, band) for name, (_, band) in around.items()})
    return tuple(name for name, (_, band) in around.items() if band in shifted.shifts)


def _as_slice(columns: list[int]) -> slice | list[int]:
    """Consecutive columns as a slice, which is far faster to assign to."""
    first = columns[0]
    return slice(first, first + len(columns)) if columns == list(range(first, first + len(columns))) else columns


def _named_bands(layer: RasterLayer) -> dict[str, tuple[RasterLayer, int]]:
    """The layer and band number of each variable of a layer."""
    bands = {}
    stem = Path(layer.path).stem
    for band in range(1, layer.count + 1):
        name = _variable(layer.descriptions[band - 1]) or (_variable(stem) if layer.count == 1 else None)
        if name:
            bands[name] = (layer, band)
    if not bands and layer.count == BIOCLIM_BANDS and re.search(r"(?:^|[^a-z])bio(?:c|clim)?(?![a-z])", stem.lower()):
        # Scenarios of WorldClim, wc2.1_10m_bioc_MODEL_ssp585_2061-2080.tif, have one band for each of bio1..bio19.
        bands = {f"bio{band}": (layer, band) for band in range(1, layer.count + 1)}
    return bands


def _override(given: str, wanted: set[str]) -> dict[str, tuple[RasterLayer, int]]:
    """The wanted variables of a file or folder. Raises LayerError where there are none, or one is there twice."""
    bands: dict[str, tuple[RasterLayer, int]] = {}
    names: list[str] = []
    for path in expand([given]):
        for name, source in _named_bands(RasterLayer(path)).items():
            names.append(name)
            if name in bands:
                _refuse_twice(name, bands[name][0].path, source[0].path)
            if name in wanted:
                bands[name] = source
    if not bands:
        raise LayerError(
            f"environment raster {given!r} has no band that this model reads (found: "
            f"{', '.join(names) or 'no named bands'}); describe the bands as bio1..bio19, elevation, relief or "
            "landcover, or use WorldClim's file names (wc2.1_5m_bio_1.tif)."
        )
    return bands


def names_known_variables(paths: Iterable[str]) -> bool:
    """Whether every file of some paths has a band named as a bundled variable is. Raises LayerError."""
    return all(_named_bands(RasterLayer(path)) for path in expand(paths))


def _refuse_twice(name: str, one: str, other: str) -> None:
    raise LayerError(f"environment variable {name} is in both {one!r} and {other!r}; give one of them.")


def _variable(text: str) -> str | None:
    """The variable a band description or file name stands for: "wc2.1_5m_bio_01" -> "bio1"."""
    text = text.strip().lower()
    if match := re.match(r"mean\d+km-[a-z]+\d*", text):  # a mean around the place is not the variable itself
        return match[0]
    if match := re.search(r"chelsa_bio10_0*([1-9]\d?)(?!\d)", text):  # there "bio10" is the name of the whole set
        return f"bio{int(match[1])}"
    if match := re.search(r"bioc_.+_0*([1-9]\d?)$", text):  # bands of WorldClim's scenarios, after model and years
        return f"bio{int(match[1])}"
    if match := re.search(r"(?:^|[^a-z])bio[ _-]?0*([1-9]\d?)(?!\d)", text):
        return f"bio{int(match[1])}"
    words = set(re.split(r"[^a-z]+", text))
    for name, synonyms in {
        "elevation": {"elevation", "elev", "dem", "altitude", "alt"},
        "relief": {"relief", "ruggedness"},
        "landcover": {"landcover", "igbp"},
    }.items():
        if words & synonyms:
            return name
    return None


def expand(paths: Iterable[str]) -> list[Path]:
    """The files of some paths: folders stand for the rasters in them. Raises LayerError for a folder without any."""
    out: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in (".tif", ".tiff", ".nc", ".asc"))
            if not inside:
                raise LayerError(f"environment folder {str(path)!r} holds no raster (.tif, .nc or .asc).")
            out += inside
        else:
            out.append(path)
    return out

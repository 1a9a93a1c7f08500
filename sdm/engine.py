"""The tile engine: from a grid to probabilities, one Dask task per tile.

How a tile becomes pixels (`score_tile`):

1. Places. Each modality is encoded on a lattice of every k-th pixel, k from the model's pitch for
   that modality: location and imagery vary slowly, the environment is encoded at the pitch of its
   layers. Lattices are counted from the first pixel of the whole map, never of the tile.
2. Layers are sampled at the lattice, encoders run over batches of one fixed size.
3. Coarser embeddings are interpolated to the environment's lattice, all are summed, normalised and
   compared with the species; where pixels are finer still, the logit is interpolated.
4. Pixels off the mask, the region, the layers or the model's domain become NaN: not modelled.

Every step depends on the pixel's index in the whole map alone, so any tiling gives the same bits
on the same device with the same batch size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial

import numpy as np

from sdm.errors import RequestError
from sdm.grid import Grid, Tile
from sdm.layers.environment import Environment, Input
from sdm.layers.landmask import LandMask
from sdm.layers.satellite import Satellite
from sdm.model import Model

BATCH = {"cpu": 2048, "cuda": 65536}
"""Places per forward pass. Fixed per device: a matrix product of another shape may round differently."""

KM_PER_DEGREE = 111.195


@dataclass(frozen=True)
class Plan:
    """Everything a tile task needs, small enough to send to a worker: no weights, no open files."""

    model: Model
    grid: Grid
    modalities: tuple[str, ...]
    species: np.ndarray
    """(S, dim) float32 unit vectors."""
    masks: tuple[str, ...]
    """Per species: "land", "sea" or "none"."""
    extents: tuple[tuple[float, float, float, float] | None, ...] = ()
    """Per species: (west, south, east, north) outside which nothing is known of it, or None."""
    device: str = "cpu"
    environment: tuple[str, ...] = ()
    satellite: str | None = None
    step: int | None = None
    """Encode every step-th pixel in all modalities; None: by each modality's pitch."""

    def __post_init__(self) -> None:
        if not self.modalities:
            raise RequestError("no modality is left to map with.")
        self.model.calibration(self.modalities)
        if self.step is not None and not 1 <= self.step <= 64:
            raise RequestError(f"step {self.step} is outside 1..64 pixels.")

    @cached_property
    def strides(self) -> dict[str, int]:
        """Pixels between encoded places, per modality; coarser ones are multiples of the finest."""
        if self.step is not None:
            return dict.fromkeys(self.modalities, self.step)
        pixel = self.grid.resolution
        if not self.grid.is_geographic:
            pixel = pixel * self.grid.metres_per_unit / (KM_PER_DEGREE * 1000.0)
        wanted = {m: max(1, int(self.model.pitch(m) / pixel + 1e-6)) for m in self.modalities}
        finest = min(wanted.values())
        return {m: k // finest * finest for m, k in wanted.items()}


def score_tile(plan: Plan, tile: Tile) -> np.ndarray:
    """Probability of each species at the tile's pixels: (S, rows, columns) float32, NaN = not modelled."""
    grid = plan.grid
    rows, cols = np.arange(tile.rows.start, tile.rows.stop), np.arange(tile.cols.start, tile.cols.stop)
    lon, lat = grid.lonlat(rows, cols)
    shown = _shown(plan, tile, lon, lat)  # (S, rows, columns)
    if not shown.any():
        return np.full(shown.shape, np.nan, dtype=np.float32)
    k = min(plan.strides.values())
    shown_anywhere = shown.any(axis=0)
    # Sea around a land map, or land outside a region, costs nothing: only needed places are encoded.
    needed = shown_anywhere if k == 1 else _neighbours(shown_anywhere, rows, cols, k)
    logits, known = _logits_on_lattice(plan, tile, needed)
    if k == 1:
        pixels = logits
    else:
        pixels, known = _upsample_scalar(logits, known, rows, cols, k)
    out = 1.0 / (1.0 + np.exp(-pixels))
    out[~(shown & known)] = np.nan
    return out.astype(np.float32, copy=False)


def _shown(plan: Plan, tile: Tile, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """Boolean (S, rows, columns): inside mask, region and the latitudes the model was trained on."""
    south, north = plan.model.domain
    with np.errstate(invalid="ignore"):
        common = np.isfinite(lat) & (lat >= south) & (lat <= north)
    inside = plan.grid.inside_region(tile)
    if inside is not None:
        common &= inside
    if not common.any():
        return np.zeros((len(plan.masks), *common.shape), dtype=bool)
    by_kind = {kind: common & _land_mask().keep(kind, lon, lat) for kind in set(plan.masks)}
    shown = np.stack([by_kind[kind] for kind in plan.masks])
    for k, extent in enumerate(plan.extents):
        if extent is not None:
            west, south, east, north = extent
            shown[k] &= (lon >= west) & (lon <= east) & (lat >= south) & (lat <= north)
    return shown


def _logits_on_lattice(plan: Plan, tile: Tile, needed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits (S, n, m) at the finest lattice covering the tile, and where they are known (n, m).

    `needed` (n, m) says which lattice places to encode; the others stay unknown.
    """
    import torch

    from sdm.score import cosine, normalise

    strides = plan.strides
    k = min(strides.values())
    rows, cols = _nodes(tile.rows, k), _nodes(tile.cols, k)
    encoders = plan.model.load(plan.device)
    species = torch.from_numpy(plan.species).to(encoders.device)
    scale, bias = plan.model.calibration(plan.modalities)
    layers = _layers(plan)

    fine = [m for m in plan.modalities if strides[m] == k]
    coarse: dict[int, list[str]] = {}
    for m in plan.modalities:
        if strides[m] != k:
            coarse.setdefault(strides[m], []).append(m)
    # Embeddings of one coarse lattice are added before they are interpolated: once, not per modality.
    sums = []
    known = np.ones((rows.size, cols.size), dtype=bool)
    for stride, modalities in coarse.items():
        r, c = _nodes_around(rows, stride), _nodes_around(cols, stride)
        total, ok = _encode_lattice(plan, layers, encoders, modalities, r, c)
        sums.append((stride, r, c, total))
        known &= ok[np.ix_((rows + stride // 2) // stride - r[0] // stride, (cols + stride // 2) // stride - c[0] // stride)]

    todo = np.flatnonzero(needed)
    lon, lat = (a.ravel()[todo] for a in plan.grid.lonlat(rows, cols))
    logits = np.zeros((len(plan.species), rows.size * cols.size), dtype=np.float32)
    fine_known = np.zeros(rows.size * cols.size, dtype=bool)
    batch = BATCH[encoders.device.type]
    blends = [_Blend(stride, r, c, total, rows, cols) for stride, r, c, total in sums]
    for start in range(0, todo.size, batch):
        part = todo[start : start + batch]
        stop = start + part.size
        total, ok = _encode_batch(layers, encoders, fine, lon[start:stop], lat[start:stop], batch)
        padded = np.pad(part, (0, batch - part.size), mode="edge")
        for blend in blends:
            total = total + blend.at(padded)
        cos = cosine(normalise(total), species)
        logits[:, part] = (cos * scale + bias)[: part.size].T.cpu().numpy()
        fine_known[part] = ok
    known &= fine_known.reshape(known.shape)
    return logits.reshape(-1, rows.size, cols.size), known


def _encode_lattice(plan, layers, encoders, modalities, rows, cols):
    """Sum of unit embeddings (n, m, dim) of some modalities on a lattice, and where they are known (n, m)."""
    import torch

    lon, lat = plan.grid.lonlat(rows, cols)
    lon, lat = lon.ravel(), lat.ravel()
    batch = BATCH[encoders.device.type]
    parts, oks = [], []
    for start in range(0, lon.size, batch):
        stop = min(start + batch, lon.size)
        total, ok = _encode_batch(layers, encoders, modalities, lon[start:stop], lat[start:stop], batch)
        parts.append(total[: stop - start])
        oks.append(ok)
    shape = (rows.size, cols.size)
    return torch.cat(parts).reshape(*shape, -1), np.concatenate(oks).reshape(shape)


def _encode_batch(layers, encoders, modalities, lon, lat, batch):
    """Sum of unit embeddings (batch, dim), the last rows padding, and known (N,) of N <= batch places."""
    known = np.isfinite(lon)
    lon, lat = np.where(known, lon, 0.0), np.where(known, lat, 0.0)
    total = None
    for modality in modalities:
        values, ok = layers[modality](lon, lat)
        known = known & ok
        padded = np.zeros((batch, *values.shape[1:]), dtype=values.dtype)
        padded[: len(values)] = values
        embedding = encoders.encode(modality, padded)
        total = embedding if total is None else total + embedding
    return total, known


class _Blend:
    """Bilinear interpolation of a lattice of embeddings at the places of a finer lattice.

    `total` is (n, m, dim) at global pixel rows `r` and columns `c`, multiples of `stride`; `rows`
    and `cols` are the finer lattice. Written as separate subtract, multiply, add: each rounds
    alike whatever the position in memory.
    """

    def __init__(self, stride, r, c, total, rows, cols) -> None:
        import torch

        self.total = total  # (n, m, dim)
        self.cols = cols.size
        tensor = partial(torch.as_tensor, device=total.device)
        self.row0, self.col0 = tensor(rows // stride - r[0] // stride), tensor(cols // stride - c[0] // stride)
        self.row_weight = tensor(((rows % stride) / stride).astype(np.float32))
        self.col_weight = tensor(((cols % stride) / stride).astype(np.float32))

    def at(self, places: np.ndarray):
        """Interpolated embeddings at sorted flat indices of the finer lattice: (N,) -> (N, dim)."""
        import torch

        index = torch.as_tensor(places, device=self.total.device)
        row, col = index // self.cols, index % self.cols
        # Blend rows first: a batch spans few rows, and a row of the coarse lattice is short.
        first, last = int(row[0]), int(row[-1])
        span = slice(first, last + 1)
        upper, lower = self.total[self.row0[span]], self.total[self.row0[span] + 1]
        blended = upper + (lower - upper) * self.row_weight[span][:, None, None]  # (rows, m, dim)
        base = (row - first) * blended.shape[1] + self.col0[col]
        blended = blended.reshape(-1, blended.shape[-1])
        left, right = blended[base], blended[base + 1]
        return left + (right - left) * self.col_weight[col][:, None]


def _nodes(pixels: slice, k: int) -> np.ndarray:
    """Lattice indices (multiples of k) that enclose a run of pixels; the run itself when k is 1."""
    if k == 1:
        return np.arange(pixels.start, pixels.stop)
    return np.arange(pixels.start // k, (pixels.stop - 1) // k + 2) * k


def _nodes_around(index: np.ndarray, stride: int) -> np.ndarray:
    """Multiples of `stride` that enclose sorted indices, with one beyond for interpolation."""
    return np.arange(index[0] // stride, index[-1] // stride + 2) * stride


def _neighbours(shown: np.ndarray, rows: np.ndarray, cols: np.ndarray, k: int) -> np.ndarray:
    """Lattice places (n, m) used by the interpolation of any shown pixel."""
    r, c = rows // k - rows[0] // k, cols // k - cols[0] // k
    needed = np.zeros((r[-1] + 2, c[-1] + 2), dtype=bool)
    where = np.nonzero(shown)
    for dr in (0, 1):
        for dc in (0, 1):
            needed[r[where[0]] + dr, c[where[1]] + dc] = True
    return needed


def _upsample_scalar(values, known, rows, cols, k):
    """Bilinear (S, n, m) on the k-lattice -> (S, rows, columns); unknown corners are left out.

    A pixel is known when its nearest lattice place is.
    """
    r, c = rows // k - rows[0] // k, cols // k - cols[0] // k
    fr = ((rows % k) / k).astype(np.float32)[:, None]
    fc = ((cols % k) / k).astype(np.float32)[None, :]
    total = np.zeros((values.shape[0], rows.size, cols.size), dtype=np.float32)
    weight = np.zeros((rows.size, cols.size), dtype=np.float32)
    for dr, wr in ((0, 1 - fr), (1, fr)):
        for dc, wc in ((0, 1 - fc), (1, fc)):
            ok = known[np.ix_(r + dr, c + dc)]
            w = wr * wc * ok
            total += np.where(ok, values[:, (r + dr)[:, None], (c + dc)[None, :]], 0.0) * w
            weight += w
    near = known[np.ix_((rows + k // 2) // k - rows[0] // k, (cols + k // 2) // k - cols[0] // k)]
    ok = near & (weight > 0)
    return total / np.where(ok, weight, 1.0), ok


def _layers(plan: Plan) -> dict:
    """Per modality: a function (lon, lat) -> (values for the encoder, known)."""
    return _open_layers(plan.model, plan.modalities, plan.environment, plan.satellite)


@lru_cache(maxsize=8)
def _land_mask() -> LandMask:
    return LandMask()


_layer_cache: dict = {}


def _open_layers(model: Model, modalities: tuple[str, ...], environment: tuple[str, ...], satellite: str | None) -> dict:
    key = (model.digest, modalities, environment, satellite)
    if key in _layer_cache:
        return _layer_cache[key]
    layers: dict = {}
    if "location" in modalities:
        layers["location"] = lambda lon, lat: (np.stack([lon, lat], axis=1), np.ones(lon.size, dtype=bool))
    if "environment" in modalities:
        env = environment_of(model, environment)

        def sample(lon, lat):
            values = env.sample(lon, lat)
            ok = np.isfinite(values).all(axis=1)
            if not ok.all():
                values[~ok] = 0.0
            return values, ok

        layers["environment"] = sample
    if "satellite" in modalities:
        sat = satellite_of(model, satellite)
        layers["satellite"] = lambda lon, lat: (sat.crops(lon, lat), sat.known(lon, lat))
    _layer_cache[key] = layers
    return layers


def environment_of(model: Model, overrides: Sequence[str] = ()) -> Environment:
    """The environment layers as this model reads them."""
    return Environment([Input(**i) for i in model.config["environment"]["inputs"]], overrides)


def satellite_of(model: Model, path: str | None = None) -> Satellite:
    """The imagery as this model reads it."""
    return Satellite(model.config["satellite"]["size"], model.config["satellite"]["pixel"], path)


def check_layers(plan: Plan) -> None:
    """Sample a few places over the map before any work. Raises LayerError."""
    rows = np.unique(np.linspace(0, plan.grid.shape[0] - 1, 24).astype(int))
    cols = np.unique(np.linspace(0, plan.grid.shape[1] - 1, 24).astype(int))
    lon, lat = (a.ravel() for a in plan.grid.lonlat(rows, cols))
    ok = np.isfinite(lon)
    if not ok.any():
        raise RequestError("no pixel of the map lies on the globe in this CRS; choose another CRS or box.")
    if "environment" in plan.modalities and plan.environment:
        environment_of(plan.model, plan.environment).check(lon[ok], lat[ok])
    if "satellite" in plan.modalities and plan.satellite:
        satellite_of(plan.model, plan.satellite).check(lon[ok], lat[ok])


def to_dask(plan: Plan):
    """The map as a lazy Dask array (S, rows, columns) float32: one task, one chunk per tile."""
    import dask.array as da

    grid = plan.grid
    rows, cols = grid.shape
    size = grid.tile_size
    chunks = (
        (len(plan.species),),
        tuple(min(size, rows - r) for r in range(0, rows, size)),
        tuple(min(size, cols - c) for c in range(0, cols, size)),
    )
    tiles = {tile.index: tile for tile in grid.tiles()}
    from dask.base import tokenize

    name = "suitability-" + tokenize(
        plan.model.digest, grid, plan.modalities, plan.species, plan.masks, plan.environment, plan.satellite, plan.step
    )
    graph = {(name, 0, i, j): (score_tile, plan, tile) for (i, j), tile in tiles.items()}
    # The dtype and meta are stated: otherwise Dask would run a tile, and load the model, to guess them.
    return da.Array(graph, name, chunks, dtype=np.float32, meta=np.empty((0, 0, 0), dtype=np.float32))

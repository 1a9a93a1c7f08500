"""The tile engine: from a grid to probabilities, one Dask task per tile.

How a tile becomes pixels (`score_tile`):

1. Location and imagery vary slowly: they are encoded on a coarse lattice of every k-th pixel, k from
   the model's pitch for the modality, and their embeddings are interpolated (`_Blend`).
2. The environment can change within a pixel. It is encoded on a lattice too, summed with the others
   and compared with the species (`_Frame`); but only where the four nodes around a cell agree, far
   from the threshold, is the cosine interpolated. All other cells are encoded pixel by pixel.
3. Pixels off the mask, the region, the layers or the model's domain become NaN: not modelled.

Lattices are counted from the origin of the CRS (`Places.anchor`), never from the first pixel of a tile or
a map; batches have one fixed size; and every step depends on the pixel's index alone. So any tiling
gives the same bits on the same device with the same batch size, and maps of overlapping boxes agree.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np

from sdm.errors import RequestError
from sdm.grid import Grid, Tile
from sdm.inputs import Inputs, at_month, check_month, open_inputs
from sdm.layers.landmask import LandMask
from sdm.model import AnyModel, local_device
from sdm.suitability import Suitability

SAMPLED_AT_ONCE = 32768
"""Places whose layers are read together: enough that windows are read once, few enough for any tile size."""

TARGETS_AT_ONCE, PLACES_AT_ONCE = 256, 1024
"""Species and places compared in one matrix product: enough for full speed, few enough for a processor's cache."""

SETTLED = 0.02
"""A cell of the lattice is interpolated where the values within it differ by less than this, even if the
cosine went past those of its four corners by the margin of what the map measures (`sdm.suitability`)."""

KM_PER_DEGREE = 111.195

Extent = tuple[float, float, float, float]
"""(west, south, east, north), degrees."""


class Source(Protocol):
    """Where the embeddings of places lie ready: a window of a region index. Thread-safe; travels to workers."""

    digest: str
    note: str
    """For the user of a map."""
    info: dict
    """For its report, as JSON values."""

    def embeddings(self, tile: Tile) -> tuple[np.ndarray, np.ndarray]:
        """Of all pixels of a tile that are held, as `embed_tile` returns them."""
        ...

    def encoded(self, tile: Tile) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same as it is stored: codes (N, dim) of any number type, scales (N,) float32, pixels (N,)."""
        ...

    def values(self, targets: Sequence[Target], tile: Tile) -> np.ndarray:
        """As `score_tile` returns them, but for the region."""
        ...


@dataclass(frozen=True, kw_only=True)
class Places:
    """Which places are encoded, and how: all that does not depend on the species.

    Small enough to send to a worker: no weights, no open files.
    """

    model: AnyModel
    grid: Grid
    modalities: tuple[str, ...]
    device: str = "cpu"
    """auto, cpu, cuda or cuda:N, of the process that computes (`here`)."""
    environment: tuple[str, ...] = ()
    satellite: str | None = None
    step: int | None = None
    """Encode every step-th pixel in all modalities; None: by each modality's pitch."""
    satellite_step: int | None = None
    """The same for imagery alone."""
    month: int = 0
    """Of a seasonal model: 1 to 12; 0: the whole year."""
    source: Source | None = None
    """Take the embeddings from here, and encode nothing."""

    def __post_init__(self) -> None:
        if not self.modalities:
            raise RequestError("no modality is left to map with.")
        check_month(self.model, self.month)
        for step in (self.step, self.satellite_step):
            if step is not None and not 1 <= step <= 64:
                raise RequestError(f"step {step} is outside 1..64 pixels.")
        if self.step is not None and self.satellite_step is not None:
            raise RequestError("a step of all modalities and one of imagery are given; give one of them.")

    @cached_property
    def strides(self) -> dict[str, int]:
        """Pixels between encoded places, per modality."""
        if self.step is not None:
            return dict.fromkeys(self.modalities, self.step)
        pixel = self.grid.resolution
        if not self.grid.is_geographic:
            pixel = pixel * self.grid.metres_per_unit / (KM_PER_DEGREE * 1000.0)
        strides = {m: max(1, int(self.model.pitch(m) / pixel + 1e-6)) for m in self.modalities}
        if self.environment and "environment" in strides:
            # The user's rasters may hold detail that the corners of a lattice cell do not tell.
            strides["environment"] = 1
        if self.satellite_step is not None and "satellite" in strides:
            strides["satellite"] = self.satellite_step
        return strides

    @property
    def inputs(self) -> Inputs:
        """The layers, open in this process."""
        return open_inputs(self.model, self.modalities, self.environment, self.satellite)

    @property
    def here(self) -> str:
        """The torch device in this process: a client without a GPU may send tasks to workers with one."""
        return local_device(self.device)

    @cached_property
    def anchor(self) -> tuple[int, int]:
        """Pixels from a node shared by all lattices, north-west of the map, to its first pixel: (rows, columns).

        Pixel edges lie on whole multiples of the resolution (`make_grid`), so nodes are common to all maps
        of one CRS and resolution: a larger box holds the very pixels of a smaller one.
        """
        period = math.lcm(*self.strides.values())
        a = self.grid.geobox.affine
        return round(a.f / a.e) % period, round(a.c / a.a) % period

    def lonlat(self, rows: np.ndarray, cols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`Grid.lonlat` of pixels numbered from the anchor: (lon, lat) degrees, each (len(rows), len(cols))."""
        return self.grid.lonlat(rows - self.anchor[0], cols - self.anchor[1])

    def pixels(self, tile: Tile) -> tuple[np.ndarray, np.ndarray]:
        """Row and column numbers of a tile's pixels, counted from the anchor."""
        first_row, first_col = self.anchor
        return (
            np.arange(tile.rows.start, tile.rows.stop) + first_row,
            np.arange(tile.cols.start, tile.cols.stop) + first_col,
        )

    @property
    def blended(self) -> tuple[str, ...]:
        """The modalities whose embeddings are interpolated; the others are encoded where a place is scored."""
        return tuple(m for m in self.modalities if m != "environment" and self.strides[m] > 1 and not self.step)

    @property
    def lattice(self) -> int:
        """Pixels between the places that are scored first."""
        return self.step or self.strides.get("environment", 1)


@dataclass(frozen=True)
class Target:
    """What is mapped: a vector of the space, where it may be shown, and what a cosine with it means."""

    vector: np.ndarray
    """(dim,) float32 unit vector."""
    score: Suitability
    mask: str = "none"
    """"land", "sea" or "none"."""
    extent: Extent | None = None
    """Outside it nothing is known of the species."""


@dataclass(frozen=True, kw_only=True)
class Plan(Places):
    """Everything a tile task needs to map some species."""

    targets: tuple[Target, ...]

    @cached_property
    def species(self) -> np.ndarray:
        """The vectors of the targets: (S, dim) float32."""
        return np.stack([t.vector for t in self.targets])

    @cached_property
    def habitats(self) -> tuple[list[tuple[str, Extent | None]], list[int]]:
        """The different (mask, extent) pairs of the targets, and which of them each target has."""
        asked = [(t.mask, t.extent) for t in self.targets]
        number = {habitat: k for k, habitat in enumerate(dict.fromkeys(asked))}
        return list(number), [number[habitat] for habitat in asked]

    def values(self, cosines: np.ndarray, offsets: float = 0.0) -> np.ndarray:
        """Cosines (S, ...), moved by `offsets` times each score's margin -> values (S, ...) float32."""
        pairs = zip(self.targets, cosines, strict=True)
        return np.stack([t.score.values(c + offsets * t.score.margin) for t, c in pairs])


def score_tile(plan: Plan, tile: Tile) -> np.ndarray:
    """Value of each species at the tile's pixels: (S, rows, columns) float32, NaN = not modelled."""
    if plan.source is not None:
        values, inside = plan.source.values(plan.targets, tile), plan.grid.inside_region(tile)
        if inside is not None:
            values[:, ~inside] = np.nan
        return values
    k = plan.lattice
    rows, cols = plan.pixels(tile)
    frame_rows, frame_cols = _enclosing(rows, k), _enclosing(cols, k)
    lon, lat = plan.lonlat(frame_rows, frame_cols)
    inside = tuple(
        slice(part[0] - whole[0], part[0] - whole[0] + part.size)
        for part, whole in ((rows, frame_rows), (cols, frame_cols))
    )
    habitats, of = plan.habitats
    shown_ = shown(plan, tile, habitats, lon[inside], lat[inside])[of]  # (S, rows, columns)
    if not shown_.any():
        return np.full(shown_.shape, np.nan, dtype=np.float32)
    # Sea around a land map, or land outside a region, costs nothing: only needed places are encoded.
    needed = np.zeros(lon.shape, dtype=bool)
    needed[inside] = shown_.any(axis=0)
    if k == 1:
        frame = _Frame(plan, frame_rows, frame_cols, lon, lat, needed)
        cosines, known = frame.cosines(plan.species, needed)
    else:
        nodes = np.zeros(lon.shape, dtype=bool)
        nodes[::k, ::k] = _nodes_of(needed[inside], rows, cols, k)
        frame = _Frame(plan, frame_rows, frame_cols, lon, lat, needed | nodes)
        at_nodes, nodes_known = (a[..., ::k, ::k] for a in frame.cosines(plan.species, nodes))
        cosines, known = _upsample_scalar(at_nodes, nodes_known, rows, cols, k)
        if plan.step is None:
            unsettled = _unsettled(plan, at_nodes, nodes_known, rows, cols, k)  # (S, rows, columns)
            again = np.zeros(lon.shape, dtype=bool)
            again[inside] = (unsettled & shown_).any(axis=0)
            exact, exact_known = (a[..., inside[0], inside[1]] for a in frame.cosines(plan.species, again))
            cosines = np.where(unsettled, exact, cosines)
            known = np.where(unsettled, exact_known, known)
    values = plan.values(cosines)
    values[~(shown_ & known)] = np.nan
    return values


def embed_tile(
    places: Places, tile: Tile, mask: str = "none", skip: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Unit summed embedding of every known pixel of a tile, whatever the species.

    Returns (embeddings (N, dim) float32, pixels (N,) int64: flat indices into the tile, ascending).
    Location and imagery are interpolated as in `score_tile`; the environment is encoded at every pixel,
    since whether its cell is settled depends on the species. `mask`: land, sea or none. `skip` (rows,
    columns): pixels left out.
    """
    rows, cols = places.pixels(tile)
    lon, lat = places.lonlat(rows, cols)
    wanted = shown(places, tile, [(mask, None)], lon, lat)[0]
    if skip is not None:
        wanted &= ~skip
    if not wanted.any():
        return np.empty((0, places.model.dim), dtype=np.float32), np.empty(0, dtype=np.int64)
    if places.source is not None:
        embeddings, pixels = places.source.embeddings(tile)
        keep = wanted.ravel()[pixels]
        return (embeddings, pixels) if keep.all() else (embeddings[keep], pixels[keep])
    frame = _Frame(places, rows, cols, lon, lat, wanted)
    embeddings, known = frame.embeddings(wanted)
    return embeddings[known], np.flatnonzero(wanted)[known]


def stored_tile(places: Places, tile: Tile, mask: str = "none") -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """As `embed_tile`, without unpacking what an index holds: (codes (N, dim), scales (N,) or None, pixels (N,)).

    The codes, times the scales where there are any, are the embeddings.
    """
    if places.source is None:
        embeddings, pixels = embed_tile(places, tile, mask)
        return embeddings, None, pixels
    codes, scales, pixels = places.source.encoded(tile)
    wanted = shown(places, tile, [(mask, None)], *places.lonlat(*places.pixels(tile)))[0].ravel()[pixels]
    return (codes, scales, pixels) if wanted.all() else (codes[wanted], scales[wanted], pixels[wanted])


def score_embeddings(
    embeddings: np.ndarray, targets: Sequence[Target], device: str = "cpu", negligible: float = 0.0,
    scales: np.ndarray | None = None,
) -> Iterator[tuple[int, np.ndarray | None]]:  # fmt: skip
    """Yields (k, values (N,) float32) of each target in turn, for unit embeddings (N, dim) of places.

    With `scales` (N,) float32 the embeddings are codes of any number type, to be multiplied by them.
    Values below `negligible` may be any below it; None stands for a target that has no others. The values are
    the caller's to change until the next are asked for. Targets are taken `TARGETS_AT_ONCE` at a time, so
    memory does not grow with their number. `device`: a torch device of this process.
    """
    import torch

    count, dim = embeddings.shape
    with torch.inference_mode(), one_torch_thread(device):
        # In memory of torch's own alignment and of one shape: the same bits in every run.
        places = torch.empty((PLACES_AT_ONCE, dim), device=device)
        vectors = torch.empty((TARGETS_AT_ONCE, dim), device=device)
        cosines = torch.empty((PLACES_AT_ONCE, TARGETS_AT_ONCE), device=device)
        rows = _rows(count)
        strips = range(0, count, PLACES_AT_ONCE)
        for first in range(0, len(targets), TARGETS_AT_ONCE):
            part = targets[first : first + TARGETS_AT_ONCE]
            vectors[: len(part)] = torch.from_numpy(np.stack([t.vector for t in part]))
            floors = [t.score.negligible(negligible) if negligible > 0.0 else -np.inf for t in part]
            floor = torch.tensor(floors, dtype=torch.float32, device=device)
            written = np.zeros((len(part), len(strips)), dtype=bool)
            for number, start in enumerate(strips):
                stop = min(start + PLACES_AT_ONCE, count)
                places[: stop - start] = torch.from_numpy(embeddings[start:stop])
                # A strip of places and a block of targets, their product too, stay in the processor's cache.
                # Most species are absent from most strips: their cosines are looked at there and dropped.
                block = torch.mm(places, vectors.T, out=cosines)[: stop - start, : len(part)]
                if scales is not None:
                    block *= torch.from_numpy(scales[start:stop, None]).to(device)
                present = torch.nonzero(torch.amax(block, dim=0) >= floor).flatten().cpu().numpy()
                rows[present, start:stop] = block.cpu().numpy()[:, present].T
                written[present, number] = True
            for k, target in enumerate(part):
                row = rows[k]
                if not written[k].any():
                    yield first + k, None
                    continue
                for number in np.flatnonzero(~written[k]):
                    row[strips[number] : strips[number] + PLACES_AT_ONCE] = -1.0
                yield first + k, target.score.values(row, out=row)


def _rows(count: int) -> np.ndarray:
    """(TARGETS_AT_ONCE, count) float32 in memory that the thread keeps: fresh pages cost more than their use."""
    size = TARGETS_AT_ONCE * count
    if getattr(_kept, "rows", np.empty(0)).size < size:
        _kept.rows = np.empty(size, dtype=np.float32)
    return _kept.rows[:size].reshape(TARGETS_AT_ONCE, count)


_kept = threading.local()


def shown(
    places: Places, tile: Tile, habitats: Sequence[tuple[str, Extent | None]], lon: np.ndarray, lat: np.ndarray
) -> np.ndarray:
    """Boolean (H, rows, columns): inside the region, where the model had anything to learn from, and each habitat.

    `habitats`: (mask, extent) pairs; `lon`, `lat` (rows, columns) degrees of the tile's pixels.
    """
    south, north = places.model.domain
    with np.errstate(invalid="ignore"):
        common = np.isfinite(lat) & (lat >= south) & (lat <= north)
    if places.model.coverage is not None:
        common &= places.model.coverage.keep(lon, lat)
    inside = places.grid.inside_region(tile)
    if inside is not None:
        common &= inside
    if not common.any():
        return np.zeros((len(habitats), *common.shape), dtype=bool)
    by_mask = {mask: common & _land_mask().keep(mask, lon, lat) for mask in {mask for mask, _ in habitats}}
    out = np.stack([by_mask[mask] for mask, _ in habitats])
    for k, (_, extent) in enumerate(habitats):
        if extent is not None:
            west, south, east, north = extent
            out[k] &= (lon >= west) & (lon <= east) & (lat >= south) & (lat <= north)
    return out


class _Frame:
    """A rectangle of pixels whose places can be scored: slow modalities are encoded once, on entry.

    `rows` (n,), `cols` (m,): pixels counted from the anchor; `lon`, `lat`, `needed` (n, m): their positions,
    and which of them will be asked for.
    """

    def __init__(self, plan: Places, rows, cols, lon, lat, needed) -> None:
        self.plan, self.lon, self.lat = plan, lon, lat
        groups: dict[int, list[str]] = {}
        for m in plan.blended:
            groups.setdefault(plan.strides[m], []).append(m)
        self.encoded = tuple(m for m in plan.modalities if m not in plan.blended)
        # Embeddings of one coarse lattice are added before they are interpolated: once, not per modality.
        self.blends = [_Blend(plan, group, k, rows, cols, needed) for k, group in groups.items()]

    def cosines(self, species: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cosines (S, n, m) with unit vectors (S, dim) at the wanted places (n, m), 0 elsewhere; known (n, m)."""
        import torch

        from sdm.score import similarity

        cosines = np.zeros((len(species), wanted.size), dtype=np.float32)
        known = np.zeros(wanted.size, dtype=bool)
        vectors = torch.from_numpy(species).to(self.plan.here)
        for places, total, ok in self._sums(wanted):
            cosines[:, places] = similarity(total, vectors)[: places.size].T.cpu().numpy()
            known[places] = ok
        return cosines.reshape(-1, *wanted.shape), known.reshape(wanted.shape)

    def embeddings(self, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Unit embeddings (N, dim) float32 of the N wanted places, in order, and which are known (N,)."""
        from sdm.score import normalise

        row = np.cumsum(wanted.ravel()) - 1
        out = np.empty((int(wanted.sum()), self.plan.model.dim), dtype=np.float32)
        known = np.zeros(len(out), dtype=bool)
        for places, total, ok in self._sums(wanted):
            out[row[places]] = normalise(total)[: places.size].cpu().numpy()
            known[row[places]] = ok
        return out, known

    def _sums(self, wanted: np.ndarray):
        """Yields (flat indices of wanted places, their summed embeddings (batch, dim) with padding, known)."""
        import torch

        todo = np.flatnonzero(wanted)
        lon, lat = self.lon.ravel()[todo], self.lat.ravel()[todo]
        near = np.logical_and.reduce([blend.known for blend in self.blends]) if self.blends else None
        p = self.plan
        with torch.inference_mode(), one_torch_thread(p.here):
            for part, total, ok in _embed(p.model, p.inputs, p.here, self.encoded, lon, lat, p.month):
                places = todo[part]
                for blend in self.blends:
                    total += blend.at(places, len(total))
                yield places, total, ok if near is None else ok & near.ravel()[places]


def embed_positions(
    model: AnyModel, modalities: Sequence[str], lon: np.ndarray, lat: np.ndarray, *,
    environment: Sequence[str] = (), satellite: str | None = None, device: str = "cpu", month: int = 0,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Unit summed embeddings (N, dim) float32 at positions (N,), (N,) degrees, and which are known (N,).

    Each is encoded just there, nothing is interpolated. `month`: 1 to 12, of a seasonal model.
    """
    import torch

    from sdm.score import normalise

    out, known = np.empty((lon.size, model.dim), dtype=np.float32), np.zeros(lon.size, dtype=bool)
    inputs, here = open_inputs(model, modalities, environment, satellite), local_device(device)
    with torch.inference_mode(), one_torch_thread(here):
        for part, total, ok in _embed(model, inputs, here, modalities, lon, lat, month):
            out[part] = normalise(total)[: ok.size].cpu().numpy()
            known[part] = ok
    return out, known


def _embed(model: AnyModel, inputs: Inputs, device: str, modalities, lon, lat, month: int):
    """Sum of the unit embeddings of some modalities (or none) at places (N,), (N,), batch by batch.

    Yields (slice of the places, (batch, dim) tensor, known (places of the batch,)); rows of the
    tensor beyond the slice are padding. The tensor is the caller's to change.
    """
    import torch

    encoders = model.load(device)
    batch = model.batch(modalities, encoders.device.type)
    chunk = max(batch, min(SAMPLED_AT_ONCE, 64 * batch))
    for first in range(0, lon.size, chunk):
        count = min(chunk, lon.size - first)
        padding = (0, -count % batch)
        x, y = (np.pad(a[first : first + count], padding, mode="edge") for a in (lon, lat))
        known = np.isfinite(x)
        if not known.all():
            x, y = np.where(known, x, 0.0), np.where(known, y, 0.0)
        values = []
        for modality in modalities:
            read, ok = inputs.read[modality](x, y)
            values.append(at_month(model, read, month) if modality == "location" else read)
            known = known & ok
        for start in range(0, count, batch):
            stop = min(start + batch, count)
            total = torch.zeros((batch, model.dim), device=encoders.device)
            for modality, read in zip(modalities, values, strict=True):
                total += encoders.encode(modality, read[start : start + batch])
            yield slice(first + start, first + stop), total, known[start:stop]


class _Blend:
    """Embeddings of a coarse lattice, encoded once and interpolated at the places of a finer one.

    `rows` (n,), `cols` (m,): pixels of the finer lattice; `needed` (n, m): its places that will be
    asked for. Only the coarse nodes around those are encoded.
    """

    def __init__(self, plan: Places, modalities, stride: int, rows, cols, needed) -> None:
        import torch

        r, c = _nodes_around(rows, stride), _nodes_around(cols, stride)
        wanted = _nodes_of(needed, rows, cols, stride)
        todo = np.flatnonzero(wanted)
        lon, lat = (a.ravel()[todo] for a in plan.lonlat(r, c))
        ok = np.zeros(wanted.size, dtype=bool)
        with torch.inference_mode(), one_torch_thread(plan.here):
            self.table = torch.empty((todo.size, plan.model.dim), device=plan.here)
            for part, total, known in _embed(plan.model, plan.inputs, plan.here, modalities, lon, lat, plan.month):
                self.table[part] = total[: known.size]
                ok[todo[part]] = known
        self.entry = np.zeros(wanted.size, dtype=np.int64)  # row of the table, per node
        self.entry[todo] = np.arange(todo.size)
        self.width, self.columns = c.size, cols.size
        self.row, self.col = rows // stride - r[0] // stride, cols // stride - c[0] // stride
        self.row_weight = ((rows % stride) / stride).astype(np.float32)
        self.col_weight = ((cols % stride) / stride).astype(np.float32)
        near = (rows + stride // 2) // stride - r[0] // stride, (cols + stride // 2) // stride - c[0] // stride
        self.known = ok.reshape(wanted.shape)[np.ix_(*near)]
        """Boolean (n, m): the nearest coarse node is known."""

    def at(self, places: np.ndarray, length: int):
        """Interpolated embeddings (length, dim) at flat indices (N,) of the finer lattice, N <= length.

        One weighted sum of four rows of the table per place: no step depends on the place's
        position in the batch.
        """
        import torch

        row, col = np.divmod(places, self.columns)
        corner = self.row[row] * self.width + self.col[col]
        down, across = self.row_weight[row], self.col_weight[col]
        index = np.zeros((length, 4), dtype=np.int64)
        weight = np.zeros((length, 4), dtype=np.float32)
        for k, (step, w) in enumerate(
            (
                (0, (1 - down) * (1 - across)),
                (1, (1 - down) * across),
                (self.width, down * (1 - across)),
                (self.width + 1, down * across),
            )
        ):
            index[: places.size, k] = self.entry[corner + step]
            weight[: places.size, k] = w
        index, weight = (torch.from_numpy(a).to(self.table.device) for a in (index, weight))
        return torch.nn.functional.embedding_bag(index, self.table, mode="sum", per_sample_weights=weight)


class one_torch_thread:
    """Run torch's CPU operations on one thread while any tile is being encoded.

    Tiles are the unit of parallel work; and a convolution split over another number of threads may
    round differently, which would make a map depend on the machine's processors.
    """

    _lock = threading.Lock()
    _inside = 0
    _before = 1

    def __init__(self, device: str) -> None:
        self.active = device == "cpu"

    def __enter__(self) -> None:
        import torch

        cls = type(self)
        if self.active:
            with cls._lock:
                if cls._inside == 0:
                    cls._before = torch.get_num_threads()
                cls._inside += 1
                torch.set_num_threads(1)  # the count is kept per thread: each tile's thread sets its own

    def __exit__(self, *exc: object) -> None:
        import torch

        cls = type(self)
        if self.active:
            with cls._lock:
                cls._inside -= 1
                if cls._inside == 0:
                    torch.set_num_threads(cls._before)


def _enclosing(index: np.ndarray, stride: int) -> np.ndarray:
    """The run of pixels from the node at or before the first index to the node after the last."""
    if stride == 1:
        return index
    return np.arange(index[0] // stride * stride, (index[-1] // stride + 1) * stride + 1)


def _nodes_around(index: np.ndarray, stride: int) -> np.ndarray:
    """Multiples of `stride` that enclose sorted indices, with one beyond for interpolation."""
    return np.arange(index[0] // stride, index[-1] // stride + 2) * stride


def _nodes_of(needed: np.ndarray, rows: np.ndarray, cols: np.ndarray, stride: int) -> np.ndarray:
    """The nodes (of `_nodes_around` in both directions) that surround any needed place of `rows` x `cols`."""
    cells = needed
    for axis, index in ((0, rows), (1, cols)):
        starts = np.flatnonzero(np.diff(index // stride, prepend=-1))
        cells = np.logical_or.reduceat(cells, starts, axis=axis)
    nodes = np.zeros((cells.shape[0] + 1, cells.shape[1] + 1), dtype=bool)
    for down in (0, 1):
        for across in (0, 1):
            nodes[down : down + cells.shape[0], across : across + cells.shape[1]] |= cells
    return nodes


def _unsettled(plan, cosines, known, rows, cols, k) -> np.ndarray:
    """Pixels (S, rows, columns) that must be encoded: the cell around them is not known to be flat.

    `cosines` (S, n, m) on the k-lattice, `known` (n, m). Decided per species, so that a map does
    not depend on what else is mapped with it. Nodes themselves are exact already.
    """
    n, m = known.shape
    corners = [np.s_[..., d : n - 1 + d, a : m - 1 + a] for d in (0, 1) for a in (0, 1)]
    low, high = (f.reduce([cosines[c] for c in corners]) for f in (np.minimum, np.maximum))
    spread = plan.values(high, 1.0) - plan.values(low, -1.0)
    cells = (spread > SETTLED) | ~np.logical_and.reduce([known[c] for c in corners])
    out = cells[:, (rows // k - rows[0] // k)[:, None], (cols // k - cols[0] // k)[None, :]]
    out &= (rows % k > 0)[:, None] | (cols % k > 0)[None, :]
    return out


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


@lru_cache(maxsize=8)
def _land_mask() -> LandMask:
    return LandMask()


def check_layers(plan: Places) -> None:
    """Sample a few places over the map before any work. Raises LayerError."""
    rows = np.unique(np.linspace(0, plan.grid.shape[0] - 1, 24).astype(int))
    cols = np.unique(np.linspace(0, plan.grid.shape[1] - 1, 24).astype(int))
    lon, lat = (a.ravel() for a in plan.grid.lonlat(rows, cols))
    ok = np.isfinite(lon)
    if not ok.any():
        raise RequestError("no pixel of the map lies on the globe in this CRS; choose another CRS or box.")
    plan.inputs.check(lon[ok], lat[ok])


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
        plan.model.digest, grid, plan.modalities, plan.targets, plan.device, plan.environment, plan.satellite,
        plan.step, plan.satellite_step, plan.month, plan.source and plan.source.digest,
    )  # fmt: skip
    # The plan is an entry of its own: on a cluster it reaches a worker once, not with each tile.
    common = f"plan-{name}"
    graph = {common: plan} | {(name, 0, i, j): (score_tile, common, tile) for (i, j), tile in tiles.items()}
    # The dtype and meta are stated: otherwise Dask would run a tile, and load the model, to guess them.
    return da.Array(graph, name, chunks, dtype=np.float32, meta=np.empty((0, 0, 0), dtype=np.float32))

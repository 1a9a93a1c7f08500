"""One tile: from its pixels to values.

How a tile becomes pixels (`score_tile`):

1. Location and imagery vary slowly: they are encoded on a coarse lattice of every k-th pixel, k from
   the model's pitch for the modality, and their embeddings are interpolated (`sdm.engine.lattice.Blend`).
2. The environment can change within a pixel. It is encoded on a lattice too, summed with the others
   and compared with the species (`_Frame`); but only where the four nodes around a cell agree, far
   from the threshold, is the cosine interpolated. All other cells are encoded pixel by pixel.
3. Pixels off the mask, the region, the layers or the model's domain become NaN: not modelled.

Lattices are counted from the origin of the CRS (`Places.anchor`), never from the first pixel of a tile or
a map; batches have one fixed size; and every step depends on the pixel's index alone. So any tiling
gives the same bits on the same device with the same batch size, and maps of overlapping boxes agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from sdm.engine.encode import embed_batches, one_torch_thread
from sdm.engine.lattice import Blend, enclosing, nodes_of, unsettled_pixels, upsample
from sdm.engine.places import Extent, Places, Plan
from sdm.grid import Tile
from sdm.layers.landmask import LandMask


def score_tile(plan: Plan, tile: Tile) -> np.ndarray:
    """Value of each species at the tile's pixels: (S, rows, columns) float32, NaN = not modelled."""
    if plan.source is not None:
        values, region = plan.source.values(plan.targets, tile), plan.grid.inside_region(tile)
        if region is not None:
            values[:, ~region] = np.nan
        return values
    k = plan.lattice
    rows, cols = plan.pixels(tile)
    frame_rows, frame_cols = enclosing(rows, k), enclosing(cols, k)
    lon, lat = plan.lonlat(frame_rows, frame_cols)
    inside = _part(rows, frame_rows), _part(cols, frame_cols)
    habitats, of = plan.habitats
    keep = mappable(plan, tile, habitats, lon[inside], lat[inside])[of]  # (S, rows, columns)
    if not keep.any():
        return np.full(keep.shape, np.nan, dtype=np.float32)
    # Sea around a land map, or land outside a region, costs nothing: only needed places are encoded.
    needed = np.zeros(lon.shape, dtype=bool)
    needed[inside] = keep.any(axis=0)
    if k == 1:
        frame = _Frame(plan, frame_rows, frame_cols, lon, lat, needed)
        cosines, known = frame.cosines(plan.species, needed)
    else:
        nodes = np.zeros(lon.shape, dtype=bool)
        nodes[::k, ::k] = nodes_of(needed[inside], rows, cols, k)
        frame = _Frame(plan, frame_rows, frame_cols, lon, lat, needed | nodes)
        cosines, known = _interpolated(plan, frame, nodes, keep, inside)
    values = plan.values(cosines)
    values[~(keep & known)] = np.nan
    return values


def _part(index: np.ndarray, whole: np.ndarray) -> slice:
    """Where a run of pixels lies within a longer one."""
    first = int(index[0] - whole[0])
    return slice(first, first + index.size)


def _interpolated(
    plan: Plan, frame: _Frame, nodes: np.ndarray, keep: np.ndarray, inside: tuple[slice, slice]
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines (S, rows, columns) interpolated between nodes, exact where those do not settle the answer; and known.

    `nodes` (n, m): the places of the frame on the lattice. `keep` (S, rows, columns): the pixels that may be shown.
    `inside`: the tile within the frame.
    """
    k = plan.lattice
    rows, cols = frame.rows[inside[0]], frame.cols[inside[1]]
    at_nodes, nodes_known = (a[..., ::k, ::k] for a in frame.cosines(plan.species, nodes))
    cosines, known = upsample(at_nodes, nodes_known, rows, cols, k)
    if plan.sampling.step is not None:
        return cosines, known
    unsettled = unsettled_pixels(plan, at_nodes, nodes_known, rows, cols, k)  # (S, rows, columns)
    again = np.zeros(nodes.shape, dtype=bool)
    again[inside] = (unsettled & keep).any(axis=0)
    exact, exact_known = (a[..., inside[0], inside[1]] for a in frame.cosines(plan.species, again))
    return np.where(unsettled, exact, cosines), np.where(unsettled, exact_known, known)


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
    wanted = mappable(places, tile, [(mask, None)], lon, lat)[0]
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
    wanted = mappable(places, tile, [(mask, None)], *places.lonlat(*places.pixels(tile)))[0].ravel()[pixels]
    return (codes, scales, pixels) if wanted.all() else (codes[wanted], scales[wanted], pixels[wanted])


def mappable(
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

    def __init__(
        self,
        plan: Places,
        rows: np.ndarray,
        cols: np.ndarray,
        lon: np.ndarray,
        lat: np.ndarray,
        needed: np.ndarray,
    ) -> None:
        self.plan, self.rows, self.cols, self.lon, self.lat = plan, rows, cols, lon, lat
        groups: dict[int, list[str]] = {}
        for m in plan.blended:
            groups.setdefault(plan.strides[m], []).append(m)
        self.encoded = tuple(m for m in plan.modalities if m not in plan.blended)
        # Embeddings of one coarse lattice are added before they are interpolated: once, not per modality.
        self.blends = [Blend(plan, group, k, rows, cols, needed) for k, group in groups.items()]

    def cosines(self, species: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cosines (S, n, m) with unit vectors (S, dim) at the wanted places (n, m), 0 elsewhere; known (n, m)."""
        import torch

        from sdm.models.score import similarity

        cosines = np.zeros((len(species), wanted.size), dtype=np.float32)
        known = np.zeros(wanted.size, dtype=bool)
        vectors = torch.from_numpy(species).to(self.plan.here)
        for places, total, ok in self._sums(wanted):
            cosines[:, places] = similarity(total, vectors)[: places.size].T.cpu().numpy()
            known[places] = ok
        return cosines.reshape(-1, *wanted.shape), known.reshape(wanted.shape)

    def embeddings(self, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Unit embeddings (N, dim) float32 of the N wanted places, in order, and which are known (N,)."""
        from sdm.models.score import normalise

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
            for part, total, ok in embed_batches(p.model, p.inputs, p.here, self.encoded, lon, lat, p.month):
                places = todo[part]
                for blend in self.blends:
                    total += blend.at(places, len(total))
                yield places, total, ok if near is None else ok & near.ravel()[places]


@lru_cache(maxsize=8)
def _land_mask() -> LandMask:
    return LandMask()

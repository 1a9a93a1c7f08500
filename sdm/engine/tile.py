"""One tile: from its pixels to values.

How a tile becomes pixels (`score_tile`):

1. Location and imagery vary slowly: they are encoded on a coarse lattice of every k-th pixel, k from
   the model's pitch for the modality, and their embeddings are interpolated (`sdm.engine.lattice.Blend`).
2. The environment can change within a pixel. It is encoded on a lattice too, summed with the others
   and compared with the species (`sdm.engine.frame`). Between nodes the cosine follows from those of the four nodes
   and their slopes along what is read at the pixel (`sdm.engine.slopes`); where these do not agree, it is encoded.
   Of fits, of many species at once and of other models' encoders no slopes are known: there the cosine is interpolated
   only where the four nodes agree, far from the threshold (`sdm.engine.lattice.unsettled_pixels`).
   Further bands (`map_tile`) of fits are interpolated on a lattice of their own (`sdm.engine.trust`); that of a
   named species follows from its value and the agreement of the modalities (`sdm.engine.doubt`).
3. Pixels off the mask, the region, the layers or the model's domain become NaN: not modelled.

Lattices are counted from the origin of the CRS (`Places.anchor`), never from the first pixel of a tile or
a map; batches have one fixed size; and every step depends on the pixel's index alone. So any tiling
gives the same bits on the same device with the same batch size, and maps of overlapping boxes agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from sdm.engine import slopes, trust
from sdm.engine.frame import Frame
from sdm.engine.lattice import Nodes, enclosing, unsettled_pixels, upsample
from sdm.engine.places import Extent, Places, Plan, Source
from sdm.grid import Tile
from sdm.layers.landmask import LandMask


class TileMaps(NamedTuple):
    """What is mapped of a tile; NaN = not modelled."""

    values: np.ndarray
    """(S, rows, columns) float32."""
    bands: tuple[np.ndarray, ...]
    """The further bands of each target: (B, rows, columns) float32, B = 0 where it has none."""


def score_tile(plan: Plan, tile: Tile) -> np.ndarray:
    """Value of each species at the tile's pixels: (S, rows, columns) float32, NaN = not modelled."""
    return _map_tile(plan, tile, banded=False).values


def map_tile(plan: Plan, tile: Tile) -> TileMaps:
    """As `score_tile`, with the further bands of the targets (`Target.bands`)."""
    return _map_tile(plan, tile, banded=plan.banded)


def _map_tile(plan: Plan, tile: Tile, banded: bool) -> TileMaps:
    if plan.source is not None:
        return _from_source(plan, plan.source, tile, banded)
    rows, cols = plan.pixels(tile)
    measured = banded and plan.trusted
    strides = (plan.lattice, plan.trust_stride if measured else 1)
    frame_rows, frame_cols = enclosing(rows, *strides), enclosing(cols, *strides)
    lon, lat = plan.lonlat(frame_rows, frame_cols)
    inside = _part(rows, frame_rows), _part(cols, frame_cols)
    habitats, of = plan.habitats
    keep = mappable(plan, tile, habitats, lon[inside], lat[inside])[of]  # (S, rows, columns)
    if not keep.any():
        return _nothing(plan, keep.shape)
    # Sea around a land map, or land outside a region, costs nothing: only needed places are encoded.
    needed = np.asarray(keep.any(axis=0))
    lattice, coarse = (Nodes((frame_rows, frame_cols), rows, cols, needed, k) if k > 1 else None for k in strides)
    wanted = np.zeros(lon.shape, dtype=bool)
    wanted[inside] = needed
    asked = [wanted, *(nodes.wanted for nodes in (lattice, coarse) if nodes is not None)]
    frame = Frame(plan, frame_rows, frame_cols, lon, lat, np.logical_or.reduce(asked))
    if lattice is None:
        raw, known = (a[..., inside[0], inside[1]] for a in frame.raw(plan, wanted))
        agreement = raw[len(keep) :]
    else:
        raw, known, agreement = _interpolated(plan, frame, lattice, keep, inside)
    values = plan.values(raw[: len(keep)])
    plan.limit(values, tile, lon[inside], lat[inside])
    values[~(keep & known)] = np.nan
    if not banded:
        return TileMaps(values, ())
    bands = _unmeasured(plan, values.shape) if coarse is None else _bands(plan, frame, coarse, values, inside)
    agreement = plan.supported(agreement, lon[inside], lat[inside])
    return TileMaps(values, _doubted(plan, values, agreement, bands))


def _doubted(
    plan: Plan, values: np.ndarray, agreement: np.ndarray, bands: tuple[np.ndarray, ...]
) -> tuple[np.ndarray, ...]:
    """The bands of each target, those of targets with a `doubt` from values (S, ...) and agreement (S or 1, ...)."""
    if not plan.doubted:
        return bands
    each = np.broadcast_to(agreement, values.shape)
    return tuple(
        measured if target.doubt is None else np.concatenate([target.doubt.uncertainty(layer, g)[None], measured])
        for target, layer, g, measured in zip(plan.targets, values, each, bands, strict=True)
    )


def _unmeasured(plan: Plan, shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """No measured bands of any target, for values of shape (S, rows, columns)."""
    return tuple(np.empty((0, *shape[1:]), dtype=np.float32) for _ in plan.targets)


def _nothing(plan: Plan, shape: tuple[int, ...]) -> TileMaps:
    """A tile in which no pixel is modelled, of shape (S, rows, columns)."""
    bands = (np.full((len(t.bands), *shape[1:]), np.nan, dtype=np.float32) for t in plan.targets)
    return TileMaps(np.full(shape, np.nan, dtype=np.float32), tuple(bands))


def _bands(
    plan: Plan, frame: Frame, nodes: Nodes, values: np.ndarray, inside: tuple[slice, slice]
) -> tuple[np.ndarray, ...]:
    """The bands of each target, for values (S, rows, columns) of a tile that lies `inside` the frame."""
    shown = np.isfinite(values).any(axis=0)
    return trust.by_target(plan, _on_lattice(plan, frame, nodes, inside).at(shown), values)


def _on_lattice(plan: Plan, frame: Frame, nodes: Nodes, inside: tuple[slice, slice]) -> trust.OnLattice:
    """The bands of all targets at the nodes of a lattice, for a tile that lies `inside` the frame."""

    def exact(pixels: np.ndarray) -> np.ndarray:
        wanted = np.zeros(nodes.wanted.shape, dtype=bool)
        wanted[inside] = pixels
        return frame.bands(plan, wanted)[0][:, inside[0], inside[1]]

    at_nodes, known = (nodes.of(a) for a in frame.bands(plan, nodes.wanted))
    return trust.OnLattice(at_nodes, known, frame.rows[inside[0]], frame.cols[inside[1]], nodes.stride, exact)


def measured_tile(plan: Plan, tile: Tile, needed: np.ndarray) -> trust.OnLattice:
    """The measured bands of many targets, to be interpolated one target after the other.

    `needed` (rows, columns): the pixels that any of them is mapped at, at least one.
    """
    if plan.source is not None:
        return trust.from_source(plan, plan.source, tile)
    rows, cols = plan.pixels(tile)
    frame_rows, frame_cols = enclosing(rows, plan.trust_stride), enclosing(cols, plan.trust_stride)
    inside = _part(rows, frame_rows), _part(cols, frame_cols)
    nodes = Nodes((frame_rows, frame_cols), rows, cols, needed, plan.trust_stride)
    wanted = nodes.wanted.copy()
    wanted[inside] |= needed
    frame = Frame(plan, frame_rows, frame_cols, *plan.lonlat(frame_rows, frame_cols), wanted)
    return _on_lattice(plan, frame, nodes, inside)


def _from_source(plan: Plan, source: Source, tile: Tile, banded: bool) -> TileMaps:
    """`map_tile` where the embeddings lie ready."""
    plain = [k for k, target in enumerate(plan.targets) if target.fit is None]
    values = np.full((len(plan.targets), *tile.shape), np.nan, dtype=np.float32)
    if plain:
        values[plain] = source.values([plan.targets[k] for k in plain], tile)
        region = plan.grid.inside_region(tile)
        if region is not None:
            values[:, ~region] = np.nan
    if len(plain) < len(plan.targets):
        lon, lat = plan.lonlat(*plan.pixels(tile))
        embeddings, pixels = source.embeddings(tile)
        environment, known = plan.environment(lon.ravel()[pixels], lat.ravel()[pixels])
        for k, target in enumerate(plan.targets):
            if target.fit is not None:
                keep = mappable(plan, tile, [(target.mask, target.extent)], lon, lat)[0].ravel()[pixels] & known
                scored = target.values(trust.in_batches(target.fit.logit, embeddings[keep], environment[keep]))
                values[k].reshape(-1)[pixels[keep]] = scored
    if not banded:
        return TileMaps(values, ())
    shown = np.asarray(np.isfinite(values).any(axis=0))
    nothing = _nothing(plan, values.shape)
    if not shown.any():
        return nothing
    bands = _unmeasured(plan, values.shape)
    if plan.trusted:
        bands = trust.by_target(plan, trust.from_source(plan, source, tile).at(shown), values)
    agreement = source.agreement(tile)[None] if plan.doubted else values[:0]
    return TileMaps(values, _doubted(plan, values, agreement, bands))


def _part(index: np.ndarray, whole: np.ndarray) -> slice:
    """Where a run of pixels lies within a longer one."""
    first = int(index[0] - whole[0])
    return slice(first, first + index.size)


def _interpolated(
    plan: Plan, frame: Frame, nodes: Nodes, keep: np.ndarray, inside: tuple[slice, slice]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `Frame.raw` gives (S, rows, columns), interpolated between nodes, exact where those do not settle it.

    Also which pixels are known, and how well the modalities agree for each target, if that is asked for.
    `nodes`: of the lattice, within the frame. `keep` (S, rows, columns): the pixels that may be shown.
    `inside`: the tile within the frame.
    """
    count, step = len(keep), plan.sampling.step
    detail = None if step is not None else slopes.detail_of(plan, nodes.stride)
    if detail is not None:
        settled = slopes.estimate(plan, frame, nodes, keep, inside, detail)
        smooth, known = np.concatenate([settled.cosines, settled.agreement]), settled.known
        unsettled = settled.unsettled
    else:
        rows, cols = frame.rows[inside[0]], frame.cols[inside[1]]
        at_nodes, nodes_known = (nodes.of(a) for a in frame.raw(plan, nodes.wanted))
        smooth, known = upsample(at_nodes, nodes_known, rows, cols, nodes.stride)
        if step is not None:
            return smooth[:count], known, smooth[count:]
        unsettled = unsettled_pixels(plan, at_nodes[:count], nodes_known, rows, cols, nodes.stride)
    again = np.zeros(nodes.wanted.shape, dtype=bool)
    again[inside] = (unsettled & keep).any(axis=0)
    exact, exact_known = (a[..., inside[0], inside[1]] for a in frame.raw(plan, again))
    # As the values, by target: a map does not depend on what else is mapped with it.
    agreement = np.where(unsettled, exact[count:], smooth[count:]) if plan.doubted else smooth[count:]
    raw = np.where(unsettled, exact[:count], smooth[:count])
    return raw, np.where(unsettled, exact_known, known), agreement


def embed_tile(
    places: Places, tile: Tile, mask: str = "none", skip: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Unit summed embedding of every known pixel of a tile, whatever the species.

    Returns (embeddings (N, dim) float32, pixels (N,) int64: flat indices into the tile, ascending, agreement of the
    modalities (N,) float32, None where an index does not hold it).
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
        none = np.empty(0, dtype=np.float32)
        return np.empty((0, places.model.dim), dtype=np.float32), np.empty(0, dtype=np.int64), none
    if places.source is not None:
        embeddings, pixels = places.source.embeddings(tile)
        keep = wanted.ravel()[pixels]
        embeddings, pixels = (embeddings, pixels) if keep.all() else (embeddings[keep], pixels[keep])
        return embeddings, pixels, _agreement_of(places.source, tile, pixels)
    frame = Frame(places, rows, cols, lon, lat, wanted)
    embeddings, known, agreement = frame.embeddings(wanted)
    pixels = np.flatnonzero(wanted)[known]
    return embeddings[known], pixels, places.supported(agreement[known], lon.ravel()[pixels], lat.ravel()[pixels])


def _agreement_of(source: Source, tile: Tile, pixels: np.ndarray) -> np.ndarray | None:
    """Of pixels (N,) of a tile, float32; None where the source does not hold it."""
    return source.agreement(tile).ravel()[pixels] if source.has_agreement else None


class StoredTile(NamedTuple):
    """The N known pixels of a tile as they lie ready."""

    codes: np.ndarray
    """(N, dim): times the scales, where there are any, the unit embeddings."""
    scales: np.ndarray | None
    """(N,) float32."""
    pixels: np.ndarray
    """(N,) flat indices into the tile, ascending."""
    agreement: np.ndarray | None
    """(N,) float32 of the modalities; None where an index does not hold it."""


def stored_tile(places: Places, tile: Tile, mask: str = "none") -> StoredTile:
    """As `embed_tile`, without unpacking what an index holds."""
    if places.source is None:
        embeddings, pixels, agreement = embed_tile(places, tile, mask)
        return StoredTile(embeddings, None, pixels, agreement)
    codes, scales, pixels = places.source.encoded(tile)
    wanted = mappable(places, tile, [(mask, None)], *places.lonlat(*places.pixels(tile)))[0].ravel()[pixels]
    if not wanted.all():
        codes, scales, pixels = codes[wanted], scales[wanted], pixels[wanted]
    return StoredTile(codes, scales, pixels, _agreement_of(places.source, tile, pixels))


def mappable(
    places: Places, tile: Tile, habitats: Sequence[tuple[str, Extent | None]], lon: np.ndarray, lat: np.ndarray
) -> np.ndarray:
    """Boolean (H, rows, columns): inside the region, in the latitudes of the model, and in each habitat.

    `habitats`: (mask, extent) pairs; `lon`, `lat` (rows, columns) degrees of the tile's pixels.
    """
    south, north = places.model.domain
    with np.errstate(invalid="ignore"):
        common = np.isfinite(lat) & (lat >= south) & (lat <= north)
    if places.hides_uncovered and places.model.coverage is not None:
        common &= places.model.coverage.keep(lon, lat)
    inside = places.grid.inside_region(tile)
    if inside is not None:
        common &= inside
    if not common.any():
        return np.zeros((len(habitats), *common.shape), dtype=bool)
    size = places.grid.pixel_size(
        np.arange(tile.rows.start, tile.rows.stop), np.arange(tile.cols.start, tile.cols.stop)
    )
    by_mask = {
        mask: common & _land_mask().keep_pixels(mask, lon, lat, size, places.land_share)
        for mask in {mask for mask, _ in habitats}
    }
    out = np.stack([by_mask[mask] for mask, _ in habitats])
    for k, (_, extent) in enumerate(habitats):
        if extent is not None:
            west, south, east, north = extent
            out[k] &= (lon >= west) & (lon <= east) & (lat >= south) & (lat <= north)
    return out


@lru_cache(maxsize=8)
def _land_mask() -> LandMask:
    return LandMask()

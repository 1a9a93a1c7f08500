"""The species at a place: their values, and the contribution of each modality."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sdm.engine.inputs import Read, at_month, open_inputs
from sdm.engine.limits import Limit, Pixels, limits_of
from sdm.engine.places import Target
from sdm.engine.targets import limited, make_target, probability
from sdm.engine.tile import map_tile
from sdm.errors import RegionIndexError
from sdm.grid import Tile
from sdm.layers.landmask import LandMask, Size
from sdm.maps.plan import Job
from sdm.models.joint import member_of
from sdm.models.protocol import Model
from sdm.names import Resolution
from sdm.outputs.metadata import Band
from sdm.serve.frame import locate
from sdm.serve.pixels import is_mapped, tile_lonlat
from sdm.serve.taxa import taxon_fields

if TYPE_CHECKING:
    from sdm.index import Index

TOP = 20
"""Species listed for a place."""
ROUNDING = 1e-4
"""More, in logits, than any rounding of a value."""


class PlaceReader:
    """Describes single pixels of an index."""

    def __init__(self, index: Index, model: Model, land_mask: LandMask) -> None:
        self._index, self._model, self._land_mask = index, model, land_mask
        self._layers = _bundled_layers(index, model)
        self._taxa = tuple(model.taxa)
        scores = [probability(member_of(model, taxon), index.modalities, taxon.group) for taxon in self._taxa]
        resolutions = [Resolution(taxon.name, taxon, True, "") for taxon in self._taxa]
        vectors = np.array(model.species_embeddings(self._taxa))
        self.targets = [
            limited(make_target(model, resolution, vector, score), model, resolution, month=index.month)
            for resolution, vector, score in zip(resolutions, vectors, scores, strict=True)
        ]
        """Of every species of the model, in order."""
        self._vectors = {"native": vectors, "all": vectors.copy()}
        # A value is no more than that of its cosine with all that may be added to it.
        self._most = np.array([0.0 if t.known is None else t.known.offset for t in self.targets], dtype=np.float32)
        self._scale, self._bias = (np.array([getattr(s, n) for s in scores], np.float32) for n in ("scale", "bias"))
        for k, taxon in enumerate(self._taxa):
            if taxon.name in model.introduced:
                self._vectors["all"][k] = model.species_embedding(Resolution(taxon.name, taxon, True, "", (), "all"))

    def report(
        self, lon: float, lat: float, plan: Callable[[], Job] | None = None, origin: str = "native"
    ) -> dict[str, Any]:
        """The pixel that contains a position (degrees), and the species with the largest values there.

        `origin`: by the native ranges of the species, or by all of them. With a job from `plan`, called only for a
        modelled pixel: the species' value there, and what each modality contributes to the cosine.
        """
        grid = self._index.grid
        rows, cols, inside = locate(grid, np.array([lon]), np.array([lat]))
        answer: dict[str, Any] = {"lon": lon, "lat": lat, "inside": bool(inside[0, 0]), "modelled": False}
        if not inside[0, 0]:
            return answer
        row, col = int(rows[0, 0]), int(cols[0, 0])
        pixel = Tile((0, 0), slice(row, row + 1), slice(col, col + 1))
        x, y = (a.ravel() for a in tile_lonlat(grid, pixel))
        answer |= {"row": row, "column": col, "pixel": [float(x[0]), float(y[0])]}
        embeddings, _ = self._index.embeddings(pixel.rows, pixel.cols)
        answer["modelled"] = bool(len(embeddings))
        if not len(embeddings):
            return answer
        if plan is not None:
            job = plan()
            target = job.plan.targets[0]
            mapped = map_tile(job.plan, pixel)
            value = float(mapped.values[0, 0, 0])
            bands = zip(target.bands, mapped.bands[0] if mapped.bands else (), strict=True)
            answer["species"] = {
                **taxon_fields(job.resolutions[0].taxon),
                "value": None if math.isnan(value) else value,
                "mask": target.mask,
                "cosine": float(embeddings[0] @ target.vector),
                "parts": self._parts(pixel, x, y, target) if target.fit is None else [],
                "quantity": target.score.name.replace("_", " "),
                "trust": [_trust(band, layer) for band, layer in bands if not np.isnan(layer).all()],
            }
        size = grid.pixel_size(np.array([row]), np.array([col]))
        answer["top"] = self.likeliest(embeddings[0], x, y, (size[0].ravel(), size[1].ravel()), origin)
        return answer

    def _parts(self, pixel: Tile, lon: np.ndarray, lat: np.ndarray, target: Target) -> list[dict[str, Any]]:
        """The contribution of each modality to the cosine at a pixel; [] where its layers are not available.

        The embedding of a place is the sum of its modalities' unit embeddings m, divided by the length of
        that sum, so the cosine with a species s is the sum of m . s / |sum|.
        """
        embeddings: dict[str, np.ndarray] = {}
        for modality in self._index.modalities:
            embedding = self._embedding(pixel, lon, lat, modality)
            if embedding is None:
                return []
            embeddings[modality] = embedding.astype(np.float64)
        length = np.linalg.norm(sum(embeddings.values()))
        return [{"modality": m, "cosine": float(e @ target.vector / length)} for m, e in embeddings.items()]

    def _embedding(self, pixel: Tile, lon: np.ndarray, lat: np.ndarray, modality: str) -> np.ndarray | None:
        """One modality's embedding (dim,) of a pixel: from the index if stored there, else encoded again."""
        if modality in self._index.held:
            stored, _ = self._index.embeddings(pixel.rows, pixel.cols, modality)
            return stored[0] if len(stored) else None
        if modality not in self._layers:
            return None
        values, known = self._layers[modality](lon, lat)
        if modality == "location":
            values = at_month(self._model, values, self._index.month)
        return self._model.embed(modality, values)[0] if known.all() else None

    def likeliest(
        self, embedding: np.ndarray, lon: np.ndarray, lat: np.ndarray, size: Size, origin: str = "native"
    ) -> list[dict[str, Any]]:
        """The `TOP` species with the largest values at one pixel, (1,), (1,) degrees, of a size; best first."""
        cosines = self._vectors[origin] @ embedding
        share = self._index.land_share
        in_habitat = {k: self._land_mask.keep_pixels(k, lon, lat, size, share) for k in ("land", "sea", "none")}
        species: list[dict[str, Any]] = []
        limited = Pixels(lon, lat, np.asarray(size[1]))
        # Known ranges and limits only lower these bounds: species are scored until no other can be listed.
        most = self._scale.astype(np.float64) * (cosines + self._most) + self._bias + ROUNDING
        with np.errstate(over="ignore"):
            bounds = 1.0 / (1.0 + np.exp(-most))
        for k in np.argsort(-most):
            if len(species) >= TOP and species[TOP - 1]["value"] >= bounds[k]:
                break
            target = self.targets[k]
            cosine = cosines[k : k + 1]
            target.add_known(cosine, lon, lat)
            value = target.score.values(cosine)
            if is_mapped(target, lon, lat, in_habitat[target.mask])[0]:
                limited.apply(self._limits(k, origin), value)
                species.append({**taxon_fields(self._taxa[k]), "value": float(value[0])})
                species.sort(key=lambda one: -one["value"])
        return species[:TOP]

    def _limits(self, k: int, origin: str) -> tuple[Limit, ...]:
        """The limits of the k-th species within its native range, or all of it."""
        taxon = self._taxa[k]
        if origin == "native" or taxon.name not in self._model.introduced:
            return self.targets[k].limits
        return limits_of(self._model, Resolution(taxon.name, taxon, True, "", (), origin), self._index.month)


def _trust(band: Band, layer: np.ndarray) -> dict[str, Any]:
    """One band at a pixel (1, 1): how far to trust the value there."""
    value = float(layer[0, 0])
    high = band.limit is not None and value > band.limit
    return {"name": band.name, "value": value, "unit": band.unit, "caution": band.caution if high else ""}


def _bundled_layers(index: Index, model: Model) -> Mapping[str, Read]:
    """The layers of the index by modality; {} where it was made with the user's own rasters."""
    try:
        index.places(model)
    except RegionIndexError:
        return {}
    return open_inputs(model, index.modalities).read

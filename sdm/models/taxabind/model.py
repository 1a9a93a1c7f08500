"""The published TaxaBind space as a model: names, texts, photos and sounds in; places scored by it.

It is a `sdm.models.protocol.Model` as the bundled ones are. What differs: it embeds any species that can be named,
photographed or recorded, and its cosines are not calibrated.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sdm.errors import ModelError, SpeciesNameError
from sdm.models.layerspec import ImageryCrops, LayerSpec, Position, WorldClimChannels
from sdm.models.protocol import Check
from sdm.models.taxabind.checkpoints import Checkpoints
from sdm.names import Resolution, Taxon, TaxonTable, taxonomic_string

if TYPE_CHECKING:
    import numpy as np

    from sdm.models.taxabind.encoders import PublishedEncoders

LAYERS: Mapping[str, LayerSpec] = MappingProxyType(
    {"location": Position(), "satellite": ImageryCrops(256, 10.0), "environment": WorldClimChannels()}
)
"""By modality of a place, in the order in which their embeddings are added."""
CROP_DEGREES = 0.023
"""A satellite crop is 2.56 km wide: encoding one more often than that sees the same ground twice."""
LINEAGE = 7
"""Words of a taxonomic string: five ranks from the kingdom to the family, then the genus and the epithet."""

_encoders: dict[tuple[str, str], PublishedEncoders] = {}
_lock = threading.Lock()


@dataclass(frozen=True)
class PublishedModel:
    """The six published encoders, or as many as there are weights for; see `Model`."""

    checkpoints: Checkpoints
    tables: tuple[Path, ...] = field(default=(), repr=False)
    """Folders with a `taxa.csv`, which give a name its full lineage."""
    name: str = "taxabind"
    title: str = "TaxaBind (arXiv 2411.00683), published checkpoints"
    version: str = ""
    licence: str = "MIT (image, text); none stated (satellite, location, environment, audio)"
    calibrated: bool = False
    seasonal: bool = False
    ranges: str = ""
    domain: tuple[float, float] = (-90.0, 90.0)

    @classmethod
    def open(
        cls, folder: str | Path | None, tables: Iterable[Path], cache_dir: str | Path | None = None
    ) -> PublishedModel:
        """The published model below a folder, or from the Hugging Face cache. Raises ModelError."""
        # A damaged part is reported when it is used: the others may be all that is needed.
        return cls(Checkpoints.open(folder, cache_dir), tuple(tables))

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k != "taxa"}

    @property
    def folder(self) -> Path:
        """The folder of the weights."""
        return self.checkpoints.root

    @property
    def digest(self) -> str:
        """SHA-256 over the files in use, first 16 hex digits."""
        return self.checkpoints.digest

    @property
    def space(self) -> tuple[str, str]:
        """See `Model`: its encoders are its own."""
        return self.name, self.digest

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities whose weights are on disk, of location, satellite, environment, image, text, audio."""
        order = (*LAYERS, "image", "text", "audio")
        return tuple(m for m in order if m in self.checkpoints.modalities)

    @property
    def place_modalities(self) -> tuple[str, ...]:
        """The modalities of a place."""
        return tuple(m for m in LAYERS if m in self.checkpoints.modalities)

    @property
    def dim(self) -> int:
        """Length of the embeddings."""
        return self.checkpoints.dim

    @property
    def layers(self) -> Mapping[str, LayerSpec]:
        """The layer that is read for each modality of a place."""
        return LAYERS

    @cached_property
    def taxa(self) -> TaxonTable:
        """Names with their lineage. The space knows many more: see `resolve`."""
        return TaxonTable.load_all(self.tables)

    def pitch(self, modality: str) -> float:
        """Degrees between the places at which a modality is encoded; 0: at every pixel."""
        return CROP_DEGREES if modality == "satellite" else 0.0

    @property
    def introduced(self) -> frozenset[str]:
        """None: it does not tell native from introduced."""
        return frozenset()

    @property
    def coverage(self) -> None:
        """The area with training data: not stated, so everywhere."""
        return None

    def remarks(self, species: str) -> tuple[str, ...]:
        """None: nothing is known of the ranges that it learned from."""
        return ()

    def known_range(self, taxon: Taxon) -> None:
        """Nothing is known of ranges."""

    def extent(self, group: str) -> None:
        """No limits: a species may be mapped anywhere."""
        return

    def calibration(self, modalities: tuple[str, ...], group: str = "") -> tuple[float, float]:
        """None of its cosines can be turned into a probability: raises ModelError."""
        raise ModelError(f"model {self.name!r} is not calibrated.")

    def files(self) -> list[dict[str, Any]]:
        """Path and bytes of the files in use."""
        return [{"path": str(p), "bytes": p.stat().st_size} for f in self.checkpoints.present for p in f.paths]

    def verify(self) -> list[Check]:
        """Check every file in use, and report weights that cannot be used; see `sdm.models.taxabind.verify`."""
        from sdm.models.taxabind.verify import verify

        parts = {part.key: part.modalities for part in self.checkpoints.parts}
        unusable = [Check(parts[key], self.folder, None, "", problem) for key, problem in self.checkpoints.problems]
        return verify(self.checkpoints) + unusable

    def batch(self, modalities: Sequence[str], device: str) -> int:
        """Places per forward pass: a vision transformer's take much memory and time, padding included."""
        sizes = {"cpu": 16, "cuda": 512} if "satellite" in modalities else {"cpu": 512, "cuda": 16384}
        return sizes[device]

    def load(self, device: str = "cpu") -> PublishedEncoders:
        """The encoders on a device, shared by all callers in this process."""
        from sdm.models.taxabind.encoders import PublishedEncoders

        key = (self.digest, device)
        with _lock:
            if key not in _encoders:
                _encoders[key] = PublishedEncoders(self.checkpoints, device)
            return _encoders[key]

    def resolve(self, query: str) -> Resolution:
        """The taxon that a name stands for, with its lineage from the tables.

        A species that the tables lack takes the lineage of its genus; a full taxonomic string (kingdom to
        species, as "Animalia Chordata Aves Accipitriformes Accipitridae Haliaeetus leucocephalus") is taken as
        it is. Raises SpeciesNameError for a name without a lineage.
        """
        words = query.split()
        if len(words) == LINEAGE and all(w.isalpha() for w in words):
            name = " ".join(words[-2:])
            return Resolution(query, Taxon("species", name, (*words[:5], words[5], name)), True, "full lineage")
        try:
            resolution = self.taxa.resolve(query)
        except SpeciesNameError as error:
            raise SpeciesNameError(
                f"{error} For a species outside the tables of names give its full lineage, kingdom to species, or use "
                "--text."
            ) from None
        if resolution.known or resolution.taxon.rank != "genus" or len(words) < 2:
            return resolution
        taxon = resolution.taxon
        name = f"{taxon.name} {words[1].lower()}"
        note = f"{name} is not in the tables of names; its lineage is taken from its genus."
        return Resolution(
            query, Taxon("species", name, (*taxon.lineage, name), group=taxon.group), True, "genus", (note,)
        )

    def species_embedding(self, resolution: Resolution) -> np.ndarray:
        """Unit embedding (dim,) float32 of a resolved name: of its bare taxonomic string."""
        return self.embed("text", [taxonomic_string(resolution.taxon)])[0]

    def species_embeddings(self, taxa: Sequence[Taxon]) -> np.ndarray:
        """Unit embeddings (N, dim) float32 of N taxa: of their bare taxonomic strings."""
        return self.embed("text", [taxonomic_string(taxon) for taxon in taxa])

    def embed(self, modality: str, values: object) -> np.ndarray:
        """Unit embeddings (N, dim) float32 of N values of a modality, computed on the CPU."""
        return self.load("cpu").encode(modality, values).numpy()

"""A model in a folder of this project's format: its facts, its names and its calibration."""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdm.errors import ModelError
from sdm.models.config import calibration_key
from sdm.models.folder import bundled_folders, encoders_folder, find_folder, read_folder
from sdm.models.layerspec import LayerSpec, MosaicCrops, Position, StandardisedVariables, Variable
from sdm.models.protocol import Check
from sdm.models.shared import DESCRIBED, EARLIER, encoders_digest
from sdm.names.origin import introduced_among, with_introduced
from sdm.request.choices import MODALITIES

if TYPE_CHECKING:
    import numpy as np

    from sdm.models.coverage import Coverage
    from sdm.models.encoders.bundled import BundledEncoders
    from sdm.models.known_ranges import KnownRange
    from sdm.names import Resolution, Taxon, TaxonTable

BATCH = {"cpu": 512, "cuda": 65536}
"""Places per forward pass. Fixed per device: a matrix product of another shape may round differently.
On a CPU the activations of 512 places fit in its second-level cache, and little is lost to padding."""

_encoders: dict[tuple[str, str, str], BundledEncoders] = {}
_lock = threading.RLock()


@dataclass(frozen=True)
class BundledModel:
    """An opened model folder, one of those that come with this package or the user's own; see `Model`.

    Weights are read when first needed (`load`); torch is imported no earlier.
    """

    folder: Path
    config: dict
    """The checked `config.json`, with the description of encoders that it shares."""
    digest: str
    """sha256 over config, weights and vocabulary, first 16 hex digits."""

    @classmethod
    def open(cls, name_or_folder: str | Path) -> BundledModel:
        """Open a bundled model by name, or any folder. Raises ModelError."""
        path = find_folder(name_or_folder)
        return cls(path, *read_folder(path))

    def __getstate__(self) -> dict:
        # The tables are not pickled: a tile task sent to a worker needs none of them.
        return {k: v for k, v in self.__dict__.items() if k not in ("taxa", "introduced", "known_ranges", "_notes")}

    @property
    def name(self) -> str:
        """The model's name, as given to --model."""
        return self.config["name"]

    @property
    def dim(self) -> int:
        """Length of the embeddings."""
        return self.config["dim"]

    @property
    def title(self) -> str:
        """The model in a few words."""
        return str(self.config.get("title", ""))

    @property
    def version(self) -> str:
        """Its version; "" if it states none."""
        return str(self.config.get("version", ""))

    @property
    def licence(self) -> str:
        """Licence of the weights; "" if it states none."""
        return str(self.config.get("licence", ""))

    @property
    def encoders(self) -> BundledModel | None:
        """The model whose encoders of places it shares; None: it has its own. Raises ModelError."""
        return BundledModel.open(encoders_folder(self.folder, self._own)) if "encoders" in self.config else None

    @property
    def _own(self) -> dict:
        """The config without the description of encoders that are shared."""
        return {key: value for key, value in self.config.items() if key not in DESCRIBED}

    @cached_property
    def space(self) -> tuple[str, str]:
        """The model whose encoders of places it uses, and 16 hexadecimal digits that stand for them."""
        if "encoders" in self.config:
            name, digest = self.config["encoders"]["model"], self.config["encoders"]["digest"]
            return name, EARLIER.get(digest, digest)
        return self.name, encoders_digest(self.folder, self.config)

    @property
    def calibrated(self) -> bool:
        """True: a cosine can be turned into a probability."""
        return True

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that it can encode; species are known by name only."""
        return MODALITIES

    @property
    def place_modalities(self) -> tuple[str, ...]:
        """The same: all are of a place."""
        return MODALITIES

    @property
    def seasonal(self) -> bool:
        """Whether its maps depend on the month."""
        return self.config["location"].get("season", False)

    @property
    def ranges(self) -> str:
        """A clause that states which ranges it was trained on; "" if unknown."""
        return str(self.config.get("ranges", ""))

    @cached_property
    def introduced(self) -> frozenset[str]:
        """The species that have a vector of their whole range, native and introduced, beside that of the native one."""
        tokens = (self.folder / "vocabulary.txt").read_text(encoding="utf-8", errors="replace").split("\n")
        return introduced_among(token.removeprefix("species:") for token in tokens)

    @cached_property
    def coverage(self) -> Coverage | None:
        """The area with training data; None: everywhere. Raises ModelError for a malformed entry."""
        entry = self.config.get("coverage")
        if entry is None:
            return None
        from sdm.models.coverage import Coverage

        try:
            return Coverage.decode(entry)
        except ValueError as error:
            raise ModelError(f"model {self.name!r}: config.json: {error}.") from error

    @property
    def domain(self) -> tuple[float, float]:
        """(south, north) latitude in degrees between which the model was trained."""
        south, north = self.config["domain"]
        return float(south), float(north)

    @property
    def layers(self) -> Mapping[str, LayerSpec]:
        """The layer that is read for each modality: the bundled layers, as the model was trained with them."""
        satellite, environment = self.config["satellite"], self.config["environment"]
        return {
            "location": Position(),
            "satellite": MosaicCrops(satellite["size"], satellite["pixel"]),
            "environment": StandardisedVariables(tuple(Variable(**entry) for entry in environment["inputs"])),
        }

    @cached_property
    def taxa(self) -> TaxonTable:
        """The species this model knows, with their names."""
        from sdm.names import TaxonTable

        return TaxonTable.load(self.folder)

    def remarks(self, species: str) -> tuple[str, ...]:
        """The note on a species in `notes.csv`, if there is one. Raises ModelError for a malformed file."""
        note = self._notes.get(species)
        return () if note is None else (note,)

    @cached_property
    def _notes(self) -> dict[str, str]:
        from sdm.names.taxa import read_remarks

        path = self.folder / "notes.csv"
        return read_remarks(path) if path.exists() else {}

    @cached_property
    def known_ranges(self) -> Mapping[str, KnownRange]:
        """What is known of the range of each species; {} for a model without such a table. Raises ModelError."""
        from sdm.models.known_ranges import read_known_ranges

        text = (self.folder / "vocabulary.txt").read_text(encoding="utf-8")
        return read_known_ranges(self.folder, [token for token in text.split("\n") if token])

    def known_range(self, taxon: Taxon) -> KnownRange | None:
        """What is known of the range of a species; None for a group, and where nothing is."""
        return self.known_ranges.get(taxon.name) if taxon.rank == "species" else None

    def extent(self, group: str) -> tuple[float, float, float, float] | None:
        """(west, south, east, north) degrees where ranges of a group of species are known; None: everywhere."""
        entry = self.config.get("groups", {}).get(group) or {}
        return tuple(entry["extent"]) if entry.get("extent") else None

    def batch(self, modalities: Sequence[str], device: str) -> int:
        """Places per forward pass on a kind of device, "cpu" or "cuda"."""
        return BATCH[device]

    def pitch(self, modality: str) -> float:
        """Degrees between the places at which a modality is encoded; finer pixels interpolate."""
        return float(self.config[modality]["pitch"])

    def calibration(self, modalities: tuple[str, ...], group: str = "") -> tuple[float, float]:
        """(scale, bias) that turn the cosine of a set of modalities into a probability. Raises ModelError.

        `group`: of the species (`Taxon.group`), some of which have a calibration of their own.
        """
        own = self.config.get("groups", {}).get(group, {}).get("calibration")
        entry = (own or self.config["calibration"]).get(calibration_key(modalities))
        if entry is None:
            raise ModelError(f"model {self.name!r} has no calibration for {calibration_key(modalities)}.")
        return float(entry["scale"]), float(entry["bias"])

    def resolve(self, query: str) -> Resolution:
        """The taxon that a name stands for. Raises SpeciesNameError."""
        return self.taxa.resolve(query)

    def species_embedding(self, resolution: Resolution) -> np.ndarray:
        """Unit embedding (dim,) float32 of a resolved name. Raises ModelError if no rank of its lineage is known."""
        lineage = resolution.taxon.lineage
        if resolution.origin == "all":
            lineage = (*lineage[:-1], with_introduced(lineage[-1]))
        try:
            return self.load("cpu").encode_lineage(lineage)
        except KeyError:
            raise ModelError(f"model {self.name!r} has no vector for any rank of {resolution.taxon.name!r}.") from None

    def species_embeddings(self, taxa: Sequence[Taxon]) -> np.ndarray:
        """Unit embeddings (N, dim) float32 of N of its taxa."""
        return self.load("cpu").encode_lineages([taxon.lineage for taxon in taxa])

    def embed(self, modality: str, values: np.ndarray) -> np.ndarray:
        """Unit embeddings (N, dim) float32 of N values of a modality, computed on the CPU."""
        return self.load("cpu").encode(modality, values).numpy()

    def load(self, device: str = "cpu") -> BundledEncoders:
        """The encoders on a device: one copy of the weights per process, however many threads and tiles ask."""
        from sdm.models.encoders.bundled import BundledEncoders

        key = (str(self.folder), self.digest, device)
        with _lock:
            if key not in _encoders:
                local = self._on_this_machine()
                shared = local.encoders
                base = None if shared is None else shared.load(device)
                _encoders[key] = BundledEncoders(local.folder, local.config, device, base)
            return _encoders[key]

    def files(self) -> list[dict[str, Any]]:
        """Path and bytes of the files in its folder."""
        return [{"path": str(p), "bytes": p.stat().st_size} for p in sorted(self.folder.iterdir()) if p.is_file()]

    def verify(self) -> list[Check]:
        """Read all weights and compare them with the config. Raises ModelError for what does not fit."""
        self.load("cpu")
        return [Check(self.modalities, self.folder, None, self.digest, "ok")]

    def _on_this_machine(self) -> BundledModel:
        """The same model where this machine has it: a worker may hold the bundled ones in another folder."""
        if (self.folder / "model.safetensors").is_file():
            return self
        folder = bundled_folders().get(self.folder.name)
        local = BundledModel.open(folder) if folder else None
        if local is None or local.digest != self.digest:
            raise ModelError(
                f"model {self.name!r} is not on {socket.gethostname()}: no folder {str(self.folder)!r}, and no bundled "
                f"model with the hash {self.digest}; put it there, or on a file system that all machines share."
            )
        return local

"""The interface of a model, independent of the format of its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    import torch

    from sdm.models.coverage import Coverage
    from sdm.models.known_ranges import KnownRange
    from sdm.models.layerspec import LayerSpec
    from sdm.names import Resolution, Taxon, TaxonTable


class Encoders(Protocol):
    """The encoders of a model on one device."""

    @property
    def device(self) -> torch.device:
        """The device they compute on."""
        ...

    def encode(self, modality: str, values: Any) -> torch.Tensor:
        """Values of one modality -> (N, dim) unit vectors, float32 on the device."""
        ...


@runtime_checkable
class SlopedEncoders(Encoders, Protocol):
    """Encoders that tell how the vector of a place varies with its environment."""

    def encode_with_slopes(self, values: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Environment values (N, inputs) on the device and their unit vectors (N, dim), joined for `torch.autograd`."""
        ...


@dataclass(frozen=True)
class Check:
    """The result of checking one file of a model."""

    modalities: tuple[str, ...]
    path: Path
    bytes: int | None
    """None: several files, or none."""
    digest: str
    """Hexadecimal SHA-256, or the first digits of one."""
    status: str
    """ "ok", "recorded" (trusted now, compared from now on), or what is wrong, as one sentence."""

    @property
    def good(self) -> bool:
        """Nothing is wrong with the file."""
        return self.status in ("ok", "recorded")


class Model(Protocol):
    """An opened model: cheap to open, to compare (`digest`) and to send to a worker.

    Weights are read, and torch is imported, by `load` and by what encodes.
    """

    @property
    def name(self) -> str:
        """As given to --model."""
        ...

    @property
    def title(self) -> str:
        """The model in a few words."""
        ...

    @property
    def version(self) -> str:
        """Its version; "" if it states none."""
        ...

    @property
    def licence(self) -> str:
        """Licence of the weights; "" if it states none."""
        ...

    @property
    def folder(self) -> Path:
        """The folder of its files."""
        ...

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that change with anything that changes an embedding."""
        ...

    @property
    def space(self) -> tuple[str, str]:
        """The model whose encoders of places it uses, and 16 hexadecimal digits that stand for them.

        Embeddings of places are the same for all models of one space.
        """
        ...

    @property
    def dim(self) -> int:
        """Length of the embeddings."""
        ...

    @property
    def calibrated(self) -> bool:
        """Whether a cosine can be turned into a probability (`calibration`)."""
        ...

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that it can encode."""
        ...

    @property
    def place_modalities(self) -> tuple[str, ...]:
        """The modalities of a place, in the order in which their embeddings are added."""
        ...

    @property
    def seasonal(self) -> bool:
        """Whether its maps depend on the month."""
        ...

    @property
    def ranges(self) -> str:
        """A clause that states which ranges it was trained on; "" if unknown."""
        ...

    @property
    def introduced(self) -> frozenset[str]:
        """The species of which it knows the introduced range too, beside the native one."""
        ...

    @property
    def coverage(self) -> Coverage | None:
        """The area with training data; None: everywhere. Raises ModelError for a malformed entry."""
        ...

    @property
    def domain(self) -> tuple[float, float]:
        """(south, north) latitude in degrees between which it may be used."""
        ...

    @property
    def layers(self) -> Mapping[str, LayerSpec]:
        """The layer that is read for each modality of a place."""
        ...

    @property
    def taxa(self) -> TaxonTable:
        """The names it comes with."""
        ...

    def remarks(self, species: str) -> tuple[str, ...]:
        """Sentences that the user of a map of a species should read: what its range lacks, or holds besides."""
        ...

    def known_range(self, taxon: Taxon) -> KnownRange | None:
        """What is known of the range of a species; None for a group, and where nothing is."""
        ...

    def extent(self, group: str) -> tuple[float, float, float, float] | None:
        """(west, south, east, north) degrees where ranges of a group of species are known; None: everywhere."""
        ...

    def batch(self, modalities: Sequence[str], device: str) -> int:
        """Places per forward pass on a kind of device, "cpu" or "cuda"."""
        ...

    def pitch(self, modality: str) -> float:
        """Degrees between the places at which a modality is encoded, finer pixels interpolate; 0: every pixel."""
        ...

    def calibration(self, modalities: tuple[str, ...], group: str = "") -> tuple[float, float]:
        """(scale, bias) that turn a cosine of these modalities into a probability. Raises ModelError without one.

        `group`: of the species (`Taxon.group`), some of which have a calibration of their own.
        """
        ...

    def resolve(self, query: str) -> Resolution:
        """The taxon that a name stands for. Raises SpeciesNameError."""
        ...

    def species_embedding(self, resolution: Resolution) -> np.ndarray:
        """Unit embedding (dim,) float32 of a resolved name."""
        ...

    def species_embeddings(self, taxa: Sequence[Taxon]) -> np.ndarray:
        """Unit embeddings (N, dim) float32 of N of its taxa."""
        ...

    def embed(self, modality: str, values: Any) -> np.ndarray:
        """Unit embeddings (N, dim) float32 of N values of a modality, computed on the CPU."""
        ...

    def load(self, device: str = "cpu") -> Encoders:
        """The encoders on a device, shared by all callers in this process. Raises ModelError."""
        ...

    def files(self) -> list[dict[str, Any]]:
        """Path and bytes of the files it consists of."""
        ...

    def verify(self) -> list[Check]:
        """Check its files: names, shapes and numbers of all weights, and hashes where there are known ones.

        A bad file that has its own entry is reported there; a model that cannot be read at all raises ModelError.
        """
        ...

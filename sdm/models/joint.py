"""Several models of one space as one: a place is encoded once for the species of all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdm.errors import ModelError
from sdm.files.fingerprint import of_parts
from sdm.models.bundled import BundledModel
from sdm.models.layerspec import LayerSpec
from sdm.models.protocol import Check, Model
from sdm.names import Resolution, Taxon, TaxonTable, resolve_among

if TYPE_CHECKING:
    import numpy as np

    from sdm.models.coverage import Coverage
    from sdm.models.encoders.bundled import BundledEncoders
    from sdm.models.known_ranges import KnownRange

JOINS = "+"
"""Between the names of the members, as given to --model."""


@dataclass(frozen=True)
class JointModel:
    """Models that share their encoders of places, as a `Model`; a species in two of them is that of the first.

    What is the same for all places is taken from the first member, what is of a species from the one that has it
    (`member`).
    """

    members: tuple[BundledModel, ...]
    """Two or more, of one `space`."""

    def __post_init__(self) -> None:
        if len({model.space[1] for model in self.members}) != 1:
            names = ", ".join(model.name for model in self.members)
            raise ModelError(f"models {names} do not share their encoders of places; use them one by one.")

    def __getstate__(self) -> dict:
        return {"members": self.members}

    @property
    def first(self) -> BundledModel:
        """The first member."""
        return self.members[0]

    @cached_property
    def name(self) -> str:
        """The names of the members, joined by "+"."""
        return JOINS.join(model.name for model in self.members)

    @property
    def title(self) -> str:
        """The members in a few words."""
        return "; ".join(model.title for model in self.members if model.title)

    @property
    def version(self) -> str:
        """The versions of the members, in their order."""
        return JOINS.join(model.version or "?" for model in self.members)

    @property
    def licence(self) -> str:
        """The licences of the members."""
        return " and ".join(dict.fromkeys(model.licence for model in self.members if model.licence))

    @property
    def folder(self) -> Path:
        """The folder of the first member."""
        return self.first.folder

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits that change with any member."""
        return of_parts([model.digest for model in self.members])

    @property
    def space(self) -> tuple[str, str]:
        """See `Model`: that of every member."""
        return self.first.space

    @property
    def dim(self) -> int:
        """Length of the embeddings."""
        return self.first.dim

    @property
    def calibrated(self) -> bool:
        """True: every member is."""
        return True

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that it can encode."""
        return self.first.modalities

    @property
    def place_modalities(self) -> tuple[str, ...]:
        """The modalities of a place."""
        return self.first.place_modalities

    @property
    def seasonal(self) -> bool:
        """Whether its maps depend on the month."""
        return self.first.seasonal

    @property
    def ranges(self) -> str:
        """Those of the first member; each species has those of its own."""
        return self.first.ranges

    @cached_property
    def introduced(self) -> frozenset[str]:
        """The species with an introduced range, of all members."""
        return frozenset().union(*(model.introduced for model in self.members))

    @property
    def coverage(self) -> Coverage | None:
        """The area with training data of the first member."""
        return self.first.coverage

    @property
    def domain(self) -> tuple[float, float]:
        """(south, north) latitude in degrees within which every member may be used."""
        domains = [model.domain for model in self.members]
        return max(south for south, _ in domains), min(north for _, north in domains)

    @property
    def layers(self) -> Mapping[str, LayerSpec]:
        """The layer that is read for each modality of a place."""
        return self.first.layers

    @cached_property
    def taxa(self) -> TaxonTable:
        """The names of all members."""
        return TaxonTable.union([model.taxa for model in self.members])

    def member(self, taxon: Taxon) -> Model:
        """The member that has a species or a group; the first for what none has."""
        name, lineage = taxon.lineage[-1] if taxon.lineage else taxon.name, taxon.lineage
        for model in self.members:
            if name.lower() in model.taxa.by_name or model.taxa.group(lineage) is not None:
                return model
        return self.first

    def remarks(self, species: str) -> tuple[str, ...]:
        """Those of the member that has the species."""
        return next((m.remarks(species) for m in self.members if species in m.taxa), ())

    def known_range(self, taxon: Taxon) -> KnownRange | None:
        """What is known of the range of a species; None for a group, and where nothing is."""
        return self.member(taxon).known_range(taxon)

    def extent(self, group: str) -> tuple[float, float, float, float] | None:
        """(west, south, east, north) degrees where ranges of a group of species are known; None: everywhere."""
        return next((box for model in self.members if (box := model.extent(group)) is not None), None)

    def batch(self, modalities: Sequence[str], device: str) -> int:
        """Places per forward pass on a kind of device, "cpu" or "cuda"."""
        return self.first.batch(modalities, device)

    def pitch(self, modality: str) -> float:
        """Degrees between the places at which a modality is encoded; finer pixels interpolate."""
        return self.first.pitch(modality)

    def calibration(self, modalities: tuple[str, ...], group: str = "") -> tuple[float, float]:
        """That of the first member: a vector alone belongs to none. A species has that of its `member`."""
        return self.first.calibration(modalities, group)

    def resolve(self, query: str) -> Resolution:
        """The taxon that a name stands for in the members. Raises SpeciesNameError."""
        return next(iter(resolve_among({model.name: model.taxa for model in self.members}, query).values()))

    def species_embedding(self, resolution: Resolution) -> np.ndarray:
        """Unit embedding (dim,) float32 of a resolved name."""
        return self.member(resolution.taxon).species_embedding(resolution)

    def species_embeddings(self, taxa: Sequence[Taxon]) -> np.ndarray:
        """Unit embeddings (N, dim) float32 of N of its taxa."""
        import numpy as np

        out = np.empty((len(taxa), self.dim), dtype=np.float32)
        homes = [self.member(taxon) for taxon in taxa]
        for model in self.members:
            rows = [k for k, home in enumerate(homes) if home is model]
            if rows:
                out[rows] = model.species_embeddings([taxa[k] for k in rows])
        return out

    def embed(self, modality: str, values: Any) -> np.ndarray:
        """Unit embeddings (N, dim) float32 of N values of a modality, computed on the CPU."""
        return self.first.embed(modality, values)

    def load(self, device: str = "cpu") -> BundledEncoders:
        """The encoders of places on a device."""
        return self.first.load(device)

    def files(self) -> list[dict[str, Any]]:
        """Path and bytes of the files of all members."""
        return [file for model in self.members for file in model.files()]

    def verify(self) -> list[Check]:
        """Check the files of all members."""
        return [check for model in self.members for check in model.verify()]


def join(models: Iterable[BundledModel]) -> BundledModel | JointModel:
    """One model of those given, which share their encoders: the only one, or all of them. Raises ModelError."""
    given = tuple(models)
    return given[0] if len(given) == 1 else JointModel(given)


def spaces(models: Iterable[BundledModel]) -> list[BundledModel | JointModel]:
    """Models, those that share their encoders as one, in the order of the first of each."""
    by_space: dict[str, list[BundledModel]] = {}
    for model in models:
        by_space.setdefault(model.space[1], []).append(model)
    return [join(of) for of in by_space.values()]


def members_of(model: Model) -> tuple[Model, ...]:
    """The models that a model consists of: itself, or several of one space."""
    return model.members if isinstance(model, JointModel) else (model,)


def member_of(model: Model, taxon: Taxon) -> Model:
    """The model that has a taxon, among the `members_of` a model."""
    return model.member(taxon) if isinstance(model, JointModel) else model


def encoding_model(model: Model) -> Model:
    """The model whose encoders of places a model uses: itself, or the one it shares them with."""
    first = members_of(model)[0]
    return (first.encoders or first) if isinstance(first, BundledModel) else first


def narrowed(model: Model, taxa: Iterable[Taxon]) -> Model:
    """The part of a model that has some taxa: the members that do, the first for none."""
    if not isinstance(model, JointModel):
        return model
    used = {id(model.member(taxon)) for taxon in taxa}
    return join([one for one in model.members if id(one) in used] or model.members[:1])

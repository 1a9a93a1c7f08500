"""What is asked for, other than by a name alone: photos, recordings, words, vectors, and sums of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sdm.errors import ModelError, RequestError
from sdm.models.registry import AnyModel
from sdm.names import Resolution, Taxon

NOUNS = {"image": "photos", "audio": "recordings", "text": "free text"}


@dataclass(frozen=True)
class Query:
    """Evidence to be added up: each list is averaged first, so ten photos weigh as much as one."""

    photos: tuple[str, ...] = ()
    audio: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    embedding: str | None = None
    """FILE or FILE#key: see `sdm.files.embeddings.read_embeddings`."""

    @classmethod
    def of(cls, photo=None, audio=None, text=None, embedding=None) -> Query:
        """From one or several of each. Raises RequestError for an empty text."""

        def several(value) -> tuple[str, ...]:
            if value is None:
                return ()
            return (str(value),) if isinstance(value, str | Path) else tuple(str(v) for v in value)

        texts = several(text)
        if any(not t.strip() for t in texts):
            raise RequestError("an empty text says nothing of a species; give words, or leave --text out.")
        return cls(several(photo), several(audio), texts, None if embedding is None else str(embedding))

    def __bool__(self) -> bool:
        return bool(self.photos or self.audio or self.texts or self.embedding)

    @property
    def parts(self) -> tuple[str, ...]:
        """What it consists of, in words: "photo bear.jpg", "text 'alpine meadow'"."""
        said = [f"photo {Path(p).name}" for p in self.photos] + [f"sound {Path(p).name}" for p in self.audio]
        said += [f"text {t.strip()!r}" for t in self.texts]
        return (*said, *((f"vector {Path(self.embedding).name}",) if self.embedding else ()))

    def vectors(self, model: AnyModel) -> list[np.ndarray]:
        """One unit vector (dim,) per kind of evidence. Raises ModelError for a kind the model cannot encode."""
        from sdm.files.embeddings import mean_vector, read_embeddings

        found = []
        for modality, given in (("image", self.photos), ("audio", self.audio), ("text", self.texts)):
            if not given:
                continue
            if modality not in model.modalities:
                raise ModelError(f"model {model.name!r} cannot encode {NOUNS[modality]}; give --model taxabind.")
            found.append(mean_vector(model.embed(modality, _read(modality, given))))
        if self.embedding:
            vectors = read_embeddings(self.embedding, model.dim, f"model {model.name!r}").vectors
            found.append(mean_vector(vectors))
        return found


def answer(model: AnyModel, name: Resolution | None, query: Query) -> tuple[Resolution, np.ndarray]:
    """What a name (or none) and other evidence stand for together: unit vectors added, and made unit again.

    Source of the sum: TaxaBind, arXiv 2411.00683, section 3.
    """
    vectors = query.vectors(model)
    taxon = name.taxon if name else None
    if name is not None:
        vectors.insert(0, model.species_embedding(name))
    total = np.sum(vectors, axis=0)
    length = float(np.linalg.norm(total))
    if not length > 1e-6:
        raise RequestError("the vectors given cancel each other out; leave one of them out.")
    label = " + ".join(([taxon.name] if taxon else []) + list(query.parts))
    found = Taxon(
        "query", label if len(label) <= 120 else label[:119] + "…", taxon.lineage if taxon else (),
        group=taxon.group if taxon else "",
    )  # fmt: skip
    note = "The query is the normalised sum of the embeddings of: " + "; ".join(
        ([f"the name {taxon.name}"] if taxon else []) + list(query.parts)
    )
    notes = (*(name.notes if name else ()), note + ".") if len(vectors) > 1 or len(query.parts) > 1 else ()
    return Resolution(label, found, True, "query", notes), (total / length).astype(np.float32)


def _read(modality: str, given: Sequence[str]):
    """Values for an encoder: crops (N, 224, 224, 3) uint8, waves, or texts."""
    if modality == "image":
        from sdm.models.taxabind.photo import read_photo

        return np.stack([read_photo(path) for path in given])
    if modality == "audio":
        from sdm.models.taxabind.sound import read_sound

        return [read_sound(path) for path in given]
    return list(given)

"""Evidence besides a name: photos, recordings, text and vectors, in the embedding space of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sdm.errors import ModelError, RequestError
from sdm.names import Resolution, Taxon
from sdm.request import Query

if TYPE_CHECKING:
    from sdm.models.protocol import Model

NOUNS = {"image": "photos", "audio": "recordings", "text": "free text"}
LONGEST_LABEL = 120


def combine(model: Model, name: Resolution | None, query: Query) -> tuple[Resolution, np.ndarray]:
    """The query of a name (or none) and other evidence: the normalised sum of their unit vectors.

    Returns a resolution for the whole, and its unit vector (dim,) float32. Raises ModelError for evidence that the
    model cannot encode, RequestError where the vectors cancel out.
    Source of the sum: TaxaBind, arXiv 2411.00683, section 3.
    """
    vectors = evidence_vectors(model, query)
    taxon = name.taxon if name else None
    if name is not None:
        vectors.insert(0, model.species_embedding(name))
    total = np.sum(vectors, axis=0)
    length = float(np.linalg.norm(total))
    if not length > 1e-6:
        raise RequestError("the given vectors cancel out; omit one of them.")
    label = " + ".join(([taxon.name] if taxon else []) + list(query.evidence))
    shortened = label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "…"
    whole = Taxon("query", shortened, taxon.lineage if taxon else (), group=taxon.group if taxon else "")
    notes = name.notes if name else ()
    if len(vectors) > 1 or len(query.evidence) > 1:
        parts = ([f"the name {taxon.name}"] if taxon else []) + list(query.evidence)
        notes = (*notes, f"The query is the normalised sum of the embeddings of: {'; '.join(parts)}.")
    else:
        notes = ()
    origin = name.origin if name else "native"
    return Resolution(label, whole, True, "query", notes, origin), (total / length).astype(np.float32)


def evidence_vectors(model: Model, query: Query) -> list[np.ndarray]:
    """One unit vector (dim,) per kind of evidence: several of a kind are averaged, so ten photos weigh as much as one.

    Raises ModelError for a kind the model cannot encode.
    """
    from sdm.files.embeddings import mean_vector, read_embeddings

    vectors = []
    for modality, given in (("image", query.photo), ("audio", query.audio), ("text", query.text)):
        if not given:
            continue
        if modality not in model.modalities:
            raise ModelError(f"model {model.name!r} cannot encode {NOUNS[modality]}; give --model taxabind.")
        vectors.append(mean_vector(model.embed(modality, _read(modality, given))))
    if query.embedding:
        vectors.append(mean_vector(read_embeddings(query.embedding, model.dim, f"model {model.name!r}").vectors))
    return vectors


def _read(modality: str, given: Sequence[str]) -> Any:
    """Values for an encoder: crops (N, 224, 224, 3) uint8, waves, or texts."""
    if modality == "image":
        from sdm.models.taxabind.photo import read_photo

        return np.stack([read_photo(path) for path in given])
    if modality == "audio":
        from sdm.models.taxabind.sound import read_sound

        return [read_sound(path) for path in given]
    return list(given)

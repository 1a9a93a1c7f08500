"""The tables of the TaxaBind paper for a dataset and a model: computed values beside the published ones."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sdm.errors import ModelError, RequestError
from sdm.evaluation.classification import accuracies
from sdm.evaluation.datasets import Dataset
from sdm.evaluation.encode import Encoders, encode_items
from sdm.evaluation.retrieval import retrievals
from sdm.files.atomic import Staging, disk_errors
from sdm.files.embeddings import read_embeddings
from sdm.models.protocol import Model
from sdm.outputs.embeddings import write_embeddings

PUBLISHED_TOP1 = {
    "iSatNat": {
        ("image",): 70.09,
        ("image", "location"): 72.73,
        ("image", "satellite"): 73.20,
        ("image", "environment"): 72.02,
    },
    "TaxaBench-8k": {
        ("image",): 34.45,
        ("image", "location"): 36.59,
        ("image", "satellite"): 37.54,
        ("image", "environment"): 36.51,
        ("image", "audio"): 36.27,
    },
}
"""Zero-shot top-1 accuracy of TaxaBind in percent, arXiv 2411.00683; iSatNat's photos are those of iNat-2021."""


@dataclass(frozen=True)
class Table:
    """A table, ready to print."""

    name: str
    """Name of its file, without suffix."""
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    notes: tuple[str, ...] = field(default=())

    def to_csv(self) -> str:
        """As CSV with one header line; None is an empty field."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.header)
        writer.writerows([["" if v is None else v for v in row] for row in self.rows])
        return text.getvalue()

    def to_markdown(self) -> str:
        """As a Markdown table below its title, followed by notes; None is a dash."""
        lines = [f"## {self.title}", "", f"| {' | '.join(self.header)} |"]
        numeric = [all(isinstance(r[c], int | float | None) for r in self.rows) for c in range(len(self.header))]
        lines.append("|" + "|".join("---:" if n else "---" for n in numeric) + "|")
        lines += ["| " + " | ".join("-" if v is None else str(v) for v in row) + " |" for row in self.rows]
        return "\n".join([*lines, "", *(f"* {note}" for note in self.notes)]).rstrip() + "\n"


@dataclass(frozen=True)
class Encoded:
    """The embeddings of a dataset by a model."""

    dataset: Dataset
    embeddings: Mapping[str, np.ndarray]
    """(N, dim) float32 unit vectors by modality."""
    texts: np.ndarray
    """(C, dim) float32 unit vectors of the classes."""


def encode_dataset(
    dataset: Dataset,
    model: Model,
    encoders: Encoders,
    batch: int = 64,
    cache: str | Path | None = None,
    tell: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Encoded:
    """Embed every modality of a dataset that the model has, and the texts of its classes.

    Parameters
    ----------
    dataset : the observations
    model : the model, whose `encoders` these are
    encoders : of the model
    batch : items encoded at once
    cache : folder of Parquet files as `sdm embed` writes them, read instead of encoding again
    tell : called with (modality, done, total) after every batch

    Raises
    ------
    ModelError : when the model has no text encoder or none of the modalities
    RequestError : for a cache of another model or other observations
    """
    if "text" not in model.modalities:
        raise ModelError(f"model {model.name!r} has no text encoder; use --model taxabind.")
    modalities = [m for m in dataset.modalities if m in model.modalities]
    if not modalities:
        raise ModelError(f"model {model.name!r} has none of {', '.join(dataset.modalities)}.")
    folder = None if cache is None else Path(cache)

    def embed(modality: str, ids: Sequence[str], items: Any) -> np.ndarray:
        path = None if folder is None else folder / f"{modality}.parquet"
        if path and path.exists():
            return _cached(path, ids, model)
        vectors = encode_items(encoders, modality, items, batch, lambda done, total: tell(modality, done, total))
        if path:
            columns = {"id": list(ids), "modality": [modality] * len(ids)}
            write_embeddings(path, vectors, columns, model=model.name, digest=model.digest)
        return vectors

    embeddings = {m: embed(m, dataset.ids, dataset.values(m)) for m in modalities}
    texts = [c.text for c in dataset.classes]
    return Encoded(dataset, embeddings, embed("text", texts, texts))


def _cached(path: Path, ids: Sequence[str], model: Model) -> np.ndarray:
    cached = read_embeddings(path, model.dim, f"model {model.name!r}")
    if cached.metadata.get("digest") != model.digest or cached.labels != tuple(ids):
        raise RequestError(
            f"{str(path)!r} was made by another model or of other observations; remove it or choose another folder."
        )
    return cached.vectors


def zero_shot_table(encoded: Encoded, ks: Sequence[int] = (1, 5), device: str = "cpu") -> Table:
    """Top-k and mean class accuracy, in percent, of every sum of modalities."""
    dataset = encoded.dataset
    published = PUBLISHED_TOP1.get(dataset.name, {})
    rows = []
    for accuracy in accuracies(encoded.embeddings, encoded.texts, dataset.labels, ks, device):
        paper = published.get(accuracy.modalities)
        top = [_percent(accuracy.top[k]) for k in ks]
        rows.append((" + ".join(accuracy.modalities), *top, _percent(accuracy.mean_class), paper))
    return Table(
        "zero-shot",
        f"Zero-shot classification, {dataset.name}",
        ("modalities", *(f"top-{k} %" for k in ks), "mean class %", "published top-1 %"),
        tuple(rows),
        (
            f"{len(dataset):,} observations, {len(dataset.classes):,} classes; class = argmax of "
            "normalise(sum of unit embeddings) . text.",
            "Published: TaxaBind, arXiv 2411.00683; a dash where there is no published value.",
            *dataset.notes,
        ),
    )


def retrieval_table(encoded: Encoded, ks: Sequence[int] = (1, 5, 10), device: str = "cpu") -> Table:
    """Recall@k in percent and median rank, of every sum of modalities against every other and against text."""
    dataset = encoded.dataset
    galleries = {"text": (encoded.texts, dataset.labels)}
    rows = [
        (" + ".join(r.query), r.target, *(_percent(r.recall[k]) for k in ks), r.median_rank, r.gallery)
        for r in retrievals(encoded.embeddings, galleries, ks, device)
    ]
    return Table(
        "retrieval",
        f"Cross-modal retrieval, {dataset.name}",
        ("query", "target", *(f"R@{k} %" for k in ks), "median rank", "gallery"),
        tuple(rows),
        (
            f"{len(dataset):,} queries; the right answer is the same observation, for text the string of its species. "
            "Equal similarities count as a guess among them.",
            "Published values for retrieval are not included.",
            *dataset.notes,
        ),
    )


def write_tables(folder: str | Path, tables: Sequence[Table], heading: str, overwrite: bool = False) -> list[Path]:
    """Write each table as `<name>.csv` and all as `tables.md` below `heading`; all files or none.

    Raises OutputError when one exists (without `overwrite`) or cannot be written.
    """
    folder = Path(folder)
    content = {f"{t.name}.csv": t.to_csv() for t in tables}
    content["tables.md"] = "\n".join([heading.rstrip() + "\n", *(t.to_markdown() for t in tables)])
    with Staging(folder, list(content), overwrite=overwrite) as staging:
        for name, text in content.items():
            with disk_errors(folder / name):
                staging.path(name).write_text(text, encoding="utf-8")
        return staging.publish()


def _percent(fraction: float) -> float:
    return round(100.0 * fraction, 2)

"""`sdm classify`: the species of a list that fit a photo, a sound or a place best."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from sdm.cli.app import EPILOG, printable, say, sdm_app
from sdm.cli.options import takes_options
from sdm.errors import ModelError, RequestError, SpeciesNameError
from sdm.request.box import check_position
from sdm.request.options import Option, Options
from sdm.request.parts import MONTH

if TYPE_CHECKING:
    import numpy as np

    from sdm.cli.inputs import Encoder
    from sdm.evaluation.species import Candidate


@dataclass(frozen=True, kw_only=True)
class ClassifyOptions(Options):
    """The options of `sdm classify`."""

    photos: Annotated[tuple[str, ...], Option("Photos, each classified.", metavar="[PHOTO]...", argument=True)] = ()
    species: Annotated[
        Path | None,
        Option("The candidates: one name a line, or a CSV with a column species.", metavar="CSV|TXT"),
    ] = None
    at: Annotated[
        tuple[float, float] | None,
        Option("A place in degrees, longitude first; added to each photo.", metavar="LON LAT"),
    ] = None
    audio: Annotated[tuple[str, ...], Option("A recording, added to each photo. Repeatable.", metavar="FILE")] = ()
    satellite: Annotated[str | None, Option("Imagery around --at, added to each photo.", metavar="RASTER")] = None
    month: Annotated[str | None, MONTH] = None
    same: Annotated[bool, Option("All photos show the same individual; average them.")] = False
    model: Annotated[str, Option("Model.", metavar="NAME|FOLDER")] = "taxabind"
    taxonomy: Annotated[
        Path | None,
        Option("Table with the columns kingdom to species, which adds the higher ranks of the names.", metavar="CSV"),
    ] = None
    top: Annotated[int, Option("How many species to print.", low=1)] = 5
    json_output: Annotated[bool, Option("Print JSON on stdout.", flags=("--json",))] = False
    device: Annotated[str, Option("cpu, cuda or cuda:N.")] = "cpu"

    def __post_init__(self) -> None:
        if self.species is None:
            raise RequestError("no candidates are given; name a list with --species.")
        if not (self.photos or self.audio or self.at):
            raise RequestError("there is nothing to classify; give a photo, --audio or --at.")
        if self.satellite and not self.at:
            raise RequestError("--satellite needs --at LON LAT: imagery is cut out around a place.")
        if self.at:
            check_position(*self.at)
        if self.same and not self.photos:
            raise RequestError("--same needs at least one photo.")

    @property
    def place_modalities(self) -> tuple[str, ...]:
        """The modalities of the place that are encoded."""
        return () if not self.at else ("location", "satellite") if self.satellite else ("location",)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that the model must have."""
        evidence = {"image": self.photos, "audio": self.audio}
        return (*(m for m, files in evidence.items() if files), *self.place_modalities)


@sdm_app.command("classify", epilog=EPILOG)
@takes_options()
def classify_command(options: ClassifyOptions) -> None:
    """Name the species of a list that photos, sounds and a place are most like. Cosines, not probabilities.

    sdm classify bear.jpg --at -134.9 58.6 --species mammals.csv
    """
    from sdm.cli.inputs import Encoder, check_month, open_with

    candidates = _read_candidates(options)
    model = open_with(options.model, *options.modalities)
    month = check_month(model, options.month, options.place_modalities)

    from sdm.evaluation.classification import classify

    encoder = Encoder(model, options.device, month)
    embeddings = _encode(encoder, options)
    candidates, texts = _encode_candidates(encoder, candidates)
    rows, cosines = classify(embeddings, texts, options.top)
    queries = [options.photos] if options.same or not options.photos else [(p,) for p in options.photos]
    results = [
        {
            "photos": list(query),
            "modalities": list(embeddings),
            "species": [
                {"name": candidates[r].name, "text": candidates[r].text, "cosine": round(float(c), 6)}
                for r, c in zip(rows[i], cosines[i], strict=True)
            ],
        }
        for i, query in enumerate(queries)
    ]
    incomplete = sum(not c.complete for c in candidates)
    if options.json_output:
        report = {
            "model": model.name,
            "digest": model.digest,
            "month": month or None,
            "candidates": len(candidates),
            "without_higher_ranks": incomplete,
            "results": results,
        }
        print(json.dumps(report, indent=2))
        return
    if incomplete and "text" in model.modalities:
        say(
            f"note: {incomplete:,} of {len(candidates):,} names have no higher ranks in any table and were used as "
            "given; add the ranks with --taxonomy for better results."
        )
    _print_results(results, options.audio)


def _read_candidates(options: ClassifyOptions) -> list[Candidate]:
    from sdm.evaluation.species import Taxonomy, read_candidates
    from sdm.models.registry import list_models

    assert options.species is not None
    tables = [model.taxa for model in list_models()]
    taxonomy = Taxonomy.read(options.taxonomy, tables) if options.taxonomy else Taxonomy(tables=tables)
    return read_candidates(options.species, taxonomy)


def _encode(encoder: Encoder, options: ClassifyOptions) -> dict[str, np.ndarray]:
    """Unit vectors (queries, dim) by modality: one query per photo, or one in all."""
    import numpy as np

    from sdm.files.embeddings import mean_vector

    embeddings: dict[str, np.ndarray] = {}
    if options.photos:
        vectors = encoder.encode("image", options.photos)
        embeddings["image"] = mean_vector(vectors)[None] if options.same else vectors
    count = len(embeddings["image"]) if options.photos else 1
    if options.audio:
        embeddings["audio"] = _repeat(mean_vector(encoder.encode("audio", options.audio)), count)
    if options.at:
        lonlat = np.array([options.at], np.float64)
        places = encoder.encode_places(lonlat, options.place_modalities, options.satellite)
        embeddings |= {modality: _repeat(vectors[0], count) for modality, vectors in places.items()}
    return embeddings


def _repeat(vector: np.ndarray, count: int) -> np.ndarray:
    import numpy as np

    return np.repeat(vector[None], count, axis=0)


def _encode_candidates(encoder: Encoder, candidates: list[Candidate]) -> tuple[list[Candidate], np.ndarray]:
    """The candidates and their vectors: by text, or by name where a model knows names only."""
    import numpy as np

    model = encoder.model
    if "text" in model.modalities:
        return candidates, encoder.encode("text", [c.text for c in candidates])
    known, vectors = [], []
    for candidate in candidates:
        try:
            vectors.append(model.species_embedding(model.taxa.resolve(candidate.name)))
        except SpeciesNameError:
            continue
        known.append(candidate)
    if not known:
        raise ModelError(f"model {model.name!r} knows none of the {len(candidates):,} names; use --model taxabind.")
    if len(known) < len(candidates):
        say(
            f"note: model {model.name!r} does not know {len(candidates) - len(known):,} of the names; they are omitted."
        )
    return known, np.stack(vectors)


def _print_results(results: list[dict[str, Any]], audio: tuple[str, ...]) -> None:
    for result in results:
        title = ", ".join([*result["photos"], *audio]) or "place"
        print(printable(f"{title}  ({' + '.join(result['modalities'])})"))
        for entry in result["species"]:
            print(printable(f"  {entry['cosine']:+.4f}  {entry['name']}"))

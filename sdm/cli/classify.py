"""`sdm classify`: which species of a list is it?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdm.cli.app import EPILOG, Month, printable, say, sdm_app
from sdm.errors import ModelError, RequestError, SpeciesNameError

if TYPE_CHECKING:
    import numpy as np

    from sdm.evaluation.species import Candidate


@sdm_app.command("classify", epilog=EPILOG)
def classify_command(
    photos: Annotated[
        list[str] | None, typer.Argument(metavar="[PHOTO]...", help="Photos, each classified.", show_default=False)
    ] = None,
    species: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV|TXT", help="The candidates: one name a line, or a CSV with a column species.",
            show_default=False,
        ),
    ] = None,
    at: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="LAT LON", help="Where, latitude first; added to each photo.", show_default=False),
    ] = None,
    audio: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="A recording, added to each photo. Repeatable.", show_default=False),
    ] = None,
    satellite: Annotated[
        str | None,
        typer.Option(metavar="RASTER", help="Imagery around --at, added to each photo.", show_default=False),
    ] = None,
    month: Month = None,
    same: Annotated[bool, typer.Option("--same", help="All photos show the same animal or plant: average.")] = False,
    model: Annotated[str, typer.Option(metavar="NAME|FOLDER", help="Model.")] = "taxabind",
    taxonomy: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="kingdom, ..., species: completes names to seven ranks.", show_default=False),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many species to print.")] = 5,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
) -> None:  # fmt: skip
    """Name the species of a list that photos, sounds and a place are most like. Cosines, not probabilities.

    sdm classify bear.jpg --at 58.6 -134.9 --species mammals.csv
    """
    if species is None:
        raise RequestError("no candidates are given; name a list with --species.")
    if not (photos or audio or at):
        raise RequestError("there is nothing to classify; give a photo, --audio or --at.")
    if satellite and not at:
        raise RequestError("--satellite needs --at LAT LON: imagery is cut out around a place.")
    if at and not (-90 <= at[0] <= 90 and -180 <= at[1] <= 180):
        raise RequestError(f"--at {at[0]:g} {at[1]:g}: latitude -90 to 90 comes first, then longitude -180 to 180.")
    if same and not photos:
        raise RequestError("--same is about photos, and none is given.")

    from sdm.cli.inputs import month_of, open_with, place_embeddings
    from sdm.evaluation.species import Taxonomy, read_candidates
    from sdm.models.bundled import list_models

    # The bundled models' tables of names; a published model has none.
    tables = [m.taxa for m in list_models() if hasattr(m, "taxa")]
    names = Taxonomy.read(taxonomy, tables) if taxonomy else Taxonomy(tables=tables)
    candidates = read_candidates(species, names)
    needed = [m for m, given in (("image", photos), ("audio", audio), ("location", at), ("satellite", satellite))
              if given]  # fmt: skip
    opened = open_with(model, *needed)
    of_month = month_of(opened, month, [m for m in needed if m in ("location", "satellite")])

    import numpy as np

    from sdm.evaluation.classification import classify
    from sdm.evaluation.encode import encode_items
    from sdm.files.embeddings import mean_vector

    encoders = opened.load(device)
    added: dict[str, np.ndarray] = {}
    if photos:
        found = encode_items(encoders, "image", photos)
        added["image"] = mean_vector(found)[None] if same else found
    count = len(added["image"]) if photos else 1
    if audio:
        added["audio"] = _repeat(mean_vector(encode_items(encoders, "audio", audio)), count)
    if at:
        lonlat = np.array([[at[1], at[0]]], np.float64)
        wanted = ["location", *(["satellite"] if satellite else [])]
        for modality, vectors in place_embeddings(
            opened, encoders, lonlat, wanted, satellite, device, of_month
        ).items():
            added[modality] = _repeat(vectors[0], count)
    candidates, texts = _texts(opened, encoders, candidates)
    rows, cosines = classify(added, texts, top)
    queries = [photos] if same or not photos else [[p] for p in photos]
    results = [
        {
            "photos": query or [],
            "modalities": list(added),
            "species": [
                {"name": candidates[r].name, "text": candidates[r].text, "cosine": round(float(c), 6)}
                for r, c in zip(rows[i], cosines[i], strict=True)
            ],
        }
        for i, query in enumerate(queries)
    ]
    incomplete = sum(not c.complete for c in candidates)
    if json_output:
        report = {
            "model": opened.name, "digest": opened.digest, "month": of_month or None, "candidates": len(candidates),
            "without_higher_ranks": incomplete, "results": results,
        }  # fmt: skip
        print(json.dumps(report, indent=2))
        return
    if incomplete and "text" in opened.modalities:
        say(
            f"note: {incomplete:,} of {len(candidates):,} names have no higher ranks in any table and were used as "
            "given; --taxonomy completes them, which the model understands better."
        )
    for result in results:
        title = ", ".join([*result["photos"], *(audio or [])]) or "place"
        print(printable(f"{title}  ({' + '.join(added)})"))
        for entry in result["species"]:
            print(printable(f"  {entry['cosine']:+.4f}  {entry['name']}"))


def _repeat(vector: np.ndarray, count: int) -> np.ndarray:
    import numpy as np

    return np.repeat(vector[None], count, axis=0)


def _texts(model: Any, encoders: Any, candidates: list[Candidate]) -> tuple[list[Candidate], np.ndarray]:
    """The candidates and their vectors: by text, or by name where a model knows names only."""
    import numpy as np

    from sdm.evaluation.encode import encode_items

    if "text" in model.modalities:
        return candidates, encode_items(encoders, "text", [c.text for c in candidates])
    kept, vectors = [], []
    for candidate in candidates:
        try:
            vectors.append(model.species_embedding(model.taxa.resolve(candidate.name)))
        except SpeciesNameError:
            continue
        kept.append(candidate)
    if not kept:
        raise ModelError(f"model {model.name!r} knows none of the {len(candidates):,} names; use --model taxabind.")
    if len(kept) < len(candidates):
        say(f"note: model {model.name!r} does not know {len(candidates) - len(kept):,} of the names; left out.")
    return kept, np.stack(vectors)

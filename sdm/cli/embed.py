"""`sdm embed`: photos, recordings, texts and places as vectors, for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sdm.cli.app import EPILOG, Month, say, sdm_app
from sdm.errors import RequestError

PLACES = ("location", "satellite", "environment")


@sdm_app.command("embed", epilog=EPILOG)
def embed_command(
    files: Annotated[
        list[str] | None, typer.Argument(help="Photos and recordings, told apart by their endings.", show_default=False)
    ] = None,
    photo: Annotated[list[str] | None, typer.Option(metavar="FILE", help="A photo. Repeatable.")] = None,
    audio: Annotated[list[str] | None, typer.Option(metavar="FILE", help="A recording. Repeatable.")] = None,
    text: Annotated[list[str] | None, typer.Option(help="A text, for example a taxonomic string. Repeatable.")] = None,
    places: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV", help="Places: columns lon and lat (or longitude, decimalLongitude, ...), degrees.",
            show_default=False,
        ),
    ] = None,
    modalities: Annotated[
        str, typer.Option(help="Of the places: any of location, satellite, environment; one row each.")
    ] = "location",
    total: Annotated[
        bool, typer.Option("--sum", help="One row per place instead: the normalised sum of its modalities.")
    ] = False,
    satellite: Annotated[
        str | None,
        typer.Option(metavar="RASTER", help="Imagery in place of the model's own.", show_default=False),
    ] = None,
    month: Month = None,
    model: Annotated[str, typer.Option(metavar="NAME|FOLDER", help="Model.")] = "taxabind",
    out: Annotated[Path, typer.Option(metavar="FILE.parquet", help="Output.")] = Path("embeddings.parquet"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
    batch: Annotated[int, typer.Option(min=1, max=65536, help="Items encoded at once.")] = 64,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No summary.")] = False,
) -> None:  # fmt: skip
    """Write embeddings as Parquet: id, modality, path, text, lon, lat, embedding.

    sdm embed --photo bear.jpg bear2.jpg --text "alpine meadow" --out bear.parquet

    sdm embed --places points.csv --modalities location,environment --model mammals-trees --out places.parquet
    """
    from sdm.cli.inputs import month_of, open_with, sort_files

    photos, sounds = sort_files(files or (), photo or (), audio or ())
    texts = list(text or ())
    if not (photos or sounds or texts or places):
        raise RequestError("there is nothing to embed; give photos, recordings, --text or --places.")
    wanted = _modalities(modalities) if places else ()
    needed = [m for m, given in (("image", photos), ("audio", sounds), ("text", texts)) if given]

    from sdm.evaluation.tabular import read_places
    from sdm.files.atomic import check_targets

    if out.suffix.lower() != ".parquet":
        raise RequestError(f"embeddings are written as Parquet; call the output {out.stem}.parquet, not {out.name!r}.")
    check_targets(out.parent, [out.name], overwrite=overwrite)  # before the work, not after it
    names, lonlat = read_places(places) if places else ([], None)
    opened = open_with(model, *needed, *wanted)
    of_month = month_of(opened, month, wanted)

    import numpy as np

    from sdm.cli.inputs import place_embeddings
    from sdm.evaluation.encode import encode_items
    from sdm.evaluation.ranking import combine
    from sdm.outputs.embeddings import COLUMNS, write_embeddings

    encoders = opened.load(device)
    parts: list[np.ndarray] = []
    columns: dict[str, list[Any]] = {c: [] for c in COLUMNS}

    def add(vectors: np.ndarray, modality: str, ids: list[str], **values: Any) -> None:
        parts.append(vectors)
        for column in COLUMNS:
            columns[column] += values.get(column, [None] * len(ids))
        columns["id"][-len(ids) :], columns["modality"][-len(ids) :] = ids, [modality] * len(ids)

    if photos:
        add(encode_items(encoders, "image", photos, batch), "image", photos, path=photos)
    if sounds:
        add(encode_items(encoders, "audio", sounds, batch), "audio", sounds, path=sounds)
    if texts:
        add(encode_items(encoders, "text", texts, batch), "text", texts, text=texts)
    if lonlat is not None:
        found = place_embeddings(opened, encoders, lonlat, wanted, satellite, device, of_month)
        if total:
            found = {"+".join(found): combine(list(found.values()))}
        for modality, vectors in found.items():
            add(vectors, modality, names, lon=lonlat[:, 0].tolist(), lat=lonlat[:, 1].tolist())
    written = write_embeddings(
        out, np.concatenate(parts), columns, model=opened.name, digest=opened.digest, overwrite=overwrite,
        month=of_month,
    )  # fmt: skip
    if not quiet:
        say(f"{sum(map(len, parts)):,} embeddings of {parts[0].shape[1]} numbers by model {opened.name}: {written}")


def _modalities(text: str) -> tuple[str, ...]:
    names = [n.strip() for n in text.split(",")]
    for name in names:
        if name not in PLACES:
            raise RequestError(f"modality {name!r} of a place is not known; choose any of {', '.join(PLACES)}.")
    if len(set(names)) < len(names):
        raise RequestError(f"modalities {text!r} name one twice.")
    return tuple(m for m in PLACES if m in names)

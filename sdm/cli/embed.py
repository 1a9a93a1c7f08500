"""`sdm embed`: photos, recordings, texts and places as vectors, for other programs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from sdm.cli.app import EPILOG, say, sdm_app
from sdm.cli.options import takes_options
from sdm.errors import RequestError
from sdm.request.choices import parse_modalities
from sdm.request.options import Option, Options
from sdm.request.parts import MONTH

if TYPE_CHECKING:
    import numpy as np

    from sdm.cli.inputs import Encoder


@dataclass(frozen=True, kw_only=True)
class EmbedOptions(Options):
    """The options of `sdm embed`."""

    files: Annotated[
        tuple[str, ...], Option("Photos and recordings, recognised by file extension.", argument=True)
    ] = ()
    photo: Annotated[tuple[str, ...], Option("A photo. Repeatable.", metavar="FILE")] = ()
    audio: Annotated[tuple[str, ...], Option("A recording. Repeatable.", metavar="FILE")] = ()
    text: Annotated[tuple[str, ...], Option("A text, for example a taxonomic string. Repeatable.")] = ()
    places: Annotated[
        Path | None,
        Option("Places: columns lon and lat (or longitude, decimalLongitude, ...), degrees.", metavar="CSV"),
    ] = None
    modalities: Annotated[
        str, Option("Modalities of --places: any of location, satellite, environment; one row each.")
    ] = "location"
    total: Annotated[
        bool,
        Option("One row per place instead: the normalised sum of its modalities.", flags=("--sum",)),
    ] = False
    satellite: Annotated[str | None, Option("Imagery in place of the model's own.", metavar="RASTER")] = None
    month: Annotated[str | None, MONTH] = None
    model: Annotated[str, Option("Model.", metavar="NAME|FOLDER")] = "taxabind"
    out: Annotated[Path, Option("Output.", metavar="FILE.parquet")] = Path("embeddings.parquet")
    overwrite: Annotated[bool, Option("Replace an existing output.")] = False
    batch: Annotated[int, Option("Items encoded at once.", low=1, high=65536)] = 64
    device: Annotated[str, Option("cpu, cuda or cuda:N.")] = "cpu"
    quiet: Annotated[bool, Option("No summary.", flags=("--quiet", "-q"))] = False


@sdm_app.command("embed", epilog=EPILOG)
@takes_options()
def embed_command(options: EmbedOptions) -> None:
    """Write embeddings as Parquet: id, modality, path, text, lon, lat, embedding.

    sdm embed --photo bear.jpg bear2.jpg --text "alpine meadow" --out bear.parquet

    sdm embed --places points.csv --modalities location,environment --model mammals-trees --out places.parquet
    """
    from sdm.cli.inputs import Encoder, check_month, open_with, sort_files

    out = options.out
    photos, sounds = sort_files(options.files, options.photo, options.audio)
    items = {"image": photos, "audio": sounds, "text": list(options.text)}
    items = {modality: given for modality, given in items.items() if given}
    if not (items or options.places):
        raise RequestError("there is nothing to embed; give photos, recordings, --text or --places.")
    modalities = parse_modalities(options.modalities) if options.places else ()

    from sdm.evaluation.csv_rows import read_places
    from sdm.files.atomic import check_targets

    if out.suffix.lower() != ".parquet":
        raise RequestError(f"embeddings are written as Parquet; call the output {out.stem}.parquet, not {out.name!r}.")
    check_targets(out.parent, [out.name], overwrite=options.overwrite)  # before the work, not after it
    ids, lonlat, without = read_places(options.places) if options.places else ([], None, 0)
    if without:
        say(
            f"note: {without:,} {'row' if without == 1 else 'rows'} of the list of places without coordinates left out."
        )
    model = open_with(options.model, *items, *modalities)
    encoder = Encoder(model, options.device, check_month(model, options.month, modalities))
    rows = _Rows()
    for modality, given in items.items():
        vectors = encoder.encode(modality, given, options.batch)
        rows.add(modality, vectors, given, **{"text" if modality == "text" else "path": given})
    if lonlat is not None:
        for modality, vectors in _encode_places(encoder, lonlat, modalities, options).items():
            rows.add(modality, vectors, ids, lon=lonlat[:, 0].tolist(), lat=lonlat[:, 1].tolist())
    _write(rows, encoder, options)


def _encode_places(
    encoder: Encoder, lonlat: np.ndarray, modalities: tuple[str, ...], options: EmbedOptions
) -> dict[str, np.ndarray]:
    """Vectors of the places by modality, or by the names of all that were summed."""
    vectors = encoder.encode_places(lonlat, modalities, options.satellite)
    if not options.total:
        return vectors
    from sdm.evaluation.ranking import combine

    return {"+".join(vectors): combine(list(vectors.values()))}


class _Rows:
    """The rows of the output: vectors, and the item, text or place of each."""

    def __init__(self) -> None:
        from sdm.outputs.embeddings import COLUMNS

        self.vectors: list[np.ndarray] = []
        self.columns: dict[str, list[Any]] = {c: [] for c in COLUMNS}

    def add(self, modality: str, vectors: np.ndarray, ids: list[str], **values: list[Any]) -> None:
        """Add one row per vector; columns without values are left empty."""
        self.vectors.append(vectors)
        values |= {"id": ids, "modality": [modality] * len(ids)}
        for name, column in self.columns.items():
            column += values.get(name, [None] * len(ids))


def _write(rows: _Rows, encoder: Encoder, options: EmbedOptions) -> None:
    import numpy as np

    from sdm.outputs.embeddings import write_embeddings

    vectors, model = np.concatenate(rows.vectors), encoder.model
    path = write_embeddings(
        options.out,
        vectors,
        rows.columns,
        model=model.name,
        digest=model.digest,
        overwrite=options.overwrite,
        month=encoder.month,
    )
    if not options.quiet:
        say(f"{len(vectors):,} embeddings of {vectors.shape[1]} numbers by model {model.name}: {path}")

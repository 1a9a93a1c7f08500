"""`sdm retrieve`: nearest neighbours among embeddings."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdm.cli.app import EPILOG, say, sdm_app
from sdm.errors import RequestError

if TYPE_CHECKING:
    from sdm.files.embeddings import Embeddings

CARRIED = ("modality", "path", "text", "lon", "lat")
"""Columns of the targets that are copied to the output."""


@sdm_app.command("retrieve", epilog=EPILOG)
def retrieve_command(
    query: Annotated[
        str, typer.Option(metavar="FILE[#KEY]", help="Embeddings to look up: Parquet, npy, npz, pt or safetensors.")
    ],
    targets: Annotated[str, typer.Option(metavar="FILE[#KEY]", help="Embeddings to look among.")],
    top: Annotated[int, typer.Option(min=1, max=100_000, help="Neighbours per query.")] = 10,
    mean: Annotated[bool, typer.Option("--mean", help="Average all queries into one.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.csv|FILE.json", help="Output; by default CSV on stdout.", show_default=False),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
) -> None:
    """Find the nearest embeddings across modalities: places for a photo, photos for a sound, imagery for a text.

    sdm retrieve --query bear.parquet --targets places.parquet --top 20 --out near.csv
    """
    if out and out.suffix.lower() not in (".csv", ".json"):
        raise RequestError(f"output {out.name!r} must end in .csv or .json.")
    from sdm.evaluation.ranking import nearest
    from sdm.files.atomic import Staging, check_targets, disk_errors
    from sdm.files.embeddings import mean_vector, read_embeddings

    if out:
        check_targets(out.parent, [out.name], overwrite=overwrite)
    asked = read_embeddings(query)
    among = read_embeddings(targets, asked.dim, "the queries' model")
    _check_models(asked, among)
    vectors, labels = (mean_vector(asked.vectors)[None], ("mean",)) if mean else (asked.vectors, asked.labels)
    rows, cosines = nearest(vectors, among.vectors, top, device)
    carried = [c for c in CARRIED if c in among.columns]
    neighbours = [
        {
            "query": labels[i],
            "rank": k + 1,
            "target": among.labels[r],
            "cosine": round(float(c), 6),
            **{column: among.columns[column][r] for column in carried},
        }
        for i in range(len(vectors))
        for k, (r, c) in enumerate(zip(rows[i], cosines[i], strict=True))
    ]
    if out is None:
        print(_csv(neighbours), end="")
        return
    text = (
        _csv(neighbours)
        if out.suffix.lower() == ".csv"
        else json.dumps(neighbours, indent=2, ensure_ascii=False) + "\n"
    )
    with Staging(out.parent, [out.name], overwrite=overwrite) as staging:
        with disk_errors(out):
            staging.path(out.name).write_bytes(text.encode("utf-8", "replace"))
        staging.publish()
    say(f"{len(neighbours):,} neighbours of {len(vectors):,} queries among {len(among):,}: {out}")


def _check_models(asked: Embeddings, among: Embeddings) -> None:
    """Vectors of two models have nothing to do with each other, even where their lengths agree."""
    ours, theirs = (e.metadata.get("digest") for e in (asked, among))
    if ours and theirs and ours != theirs:
        raise RequestError(
            f"the queries were made by model {asked.metadata.get('model')!r} ({ours}), the targets by "
            f"{among.metadata.get('model')!r} ({theirs}); embed both with one model."
        )


def _csv(neighbours: list[dict[str, Any]]) -> str:
    from sdm.outputs.escape import table_text

    text = io.StringIO()
    writer = csv.DictWriter(text, list(neighbours[0]), lineterminator="\n")
    writer.writeheader()
    for row in neighbours:
        writer.writerow({key: table_text(value) if isinstance(value, str) else value for key, value in row.items()})
    return text.getvalue()

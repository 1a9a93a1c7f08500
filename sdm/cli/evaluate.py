"""`sdm evaluate`: how good is a map, judged by records?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from sdm.cli.app import EPILOG, printable, say, sdm_app
from sdm.cli.options import Change, takes_options
from sdm.errors import RequestError
from sdm.request.choices import MASKS, parse_word
from sdm.request.options import Option, Options, whole_number
from sdm.request.records import CleanOptions, ReadOptions

if TYPE_CHECKING:
    from sdm.records.evaluate import EvaluateOptions, Evaluation
    from sdm.records.report import MapPicture, Report
    from sdm.records.sample import MapSampler
    from sdm.records.table import Records


@dataclass(frozen=True, kw_only=True)
class EvaluateMap(Options):
    """The options of `sdm evaluate`."""

    map: Annotated[
        str, Option("The map: GeoTIFF or other raster, or a Zarr of this program.", metavar="MAP", argument=True)
    ]
    records: Annotated[
        str | None,
        Option(
            "Occurrence records, preferably not those the map was made from: Darwin Core archive, GBIF, iNaturalist or "
            "eBird download, CSV, GeoPackage, GeoJSON, shapefile, KML, Parquet.",
            metavar="FILE",
        ),
    ] = None
    species: Annotated[str | None, Option("Which species of the file, where it has several.", metavar="NAME")] = None
    background: Annotated[
        str | None,
        Option(
            "Records of other species of the group, to compare with as well. Default: those in the same file.",
            metavar="FILE",
        ),
    ] = None
    within_km: Annotated[float, Option("Comparison places lie within this distance of a presence.", metavar="KM")] = (
        1000.0
    )
    places: Annotated[int, Option("Random places to compare with.")] = 10_000
    mask: Annotated[str, Option("Where random places lie: land, sea or none.", metavar="|".join(MASKS))] = "land"
    band: Annotated[int, Option("Band of the raster.", low=1)] = 1
    probability: Annotated[
        bool | None,
        Option(
            "Whether values are probabilities of presence. Default: as the band's description says.",
            flags=("--probability/--no-probability",),
        ),
    ] = None
    threshold: Annotated[
        float | None, Option("Score from which a place counts as suitable; the share of presences below it is printed.")
    ] = None
    seed: Annotated[int, Option("Seed of the random places.")] = 0
    out: Annotated[
        Path | None, Option("Write NAME-evaluation.html and NAME-evaluation.json here.", metavar="FOLDER")
    ] = None
    overwrite: Annotated[bool, Option("Replace existing outputs.")] = False
    json_output: Annotated[bool, Option("Print JSON on stdout.", flags=("--json",))] = False

    def __post_init__(self) -> None:
        if self.records is None:
            raise RequestError("no records are given to judge the map by; name a file with --records.")
        parse_word("mask", self.mask, MASKS)
        whole_number("places", self.places, 20, 1_000_000)
        whole_number("seed", self.seed, 0, 2**31 - 1)
        if not 0.0 < self.within_km <= 20_100.0:  # half around the Earth
            raise RequestError(f"within_km {self.within_km:g} is outside 0..20100.")


@sdm_app.command("evaluate", epilog=EPILOG)
@takes_options(
    changes={"habitat": Change("land: drop records at sea; sea: drop records on land; none: no check.", "none")}
)
def evaluate_command(options: EvaluateMap, read: ReadOptions, clean: CleanOptions) -> None:
    """Judge a map of any origin by occurrence records: AUC, AUC-PRG, TSS, Boyce index; calibration where it applies.

    sdm evaluate maps/vipera-berus.tif --records independent.csv
    """
    from sdm.files.atomic import check_targets
    from sdm.records.evaluate import evaluate
    from sdm.records.sample import open_sampler
    from sdm.records.table import Records

    if options.out:
        check_targets(options.out, _names(options.map), overwrite=options.overwrite)  # before the work, not after it
    sampler = open_sampler(options.map, options.band)
    assert options.records is not None
    records = Records.read(options.records, options.species, options=read, clean=clean)
    if not options.json_output:
        for line in records.audit.sentences():
            say(line)
    others = records.audit.other_species > 0
    evaluation = evaluate(sampler, records, _evaluate_options(options, records.species, others, read, clean))
    report = _report(evaluation, records, sampler)
    files = []
    if options.out:
        report = replace(report, picture=_picture(evaluation, sampler))
        files = _write(report, options.out, _names(options.map), options.overwrite)
    if options.json_output:
        from sdm.records.report import json_text

        print(json_text(report))
        return
    print(printable(_table(evaluation)))
    for path in files:
        print(printable(f"  {path}"))


def _evaluate_options(
    options: EvaluateMap, species: str, others: bool, read: ReadOptions, clean: CleanOptions
) -> EvaluateOptions:
    from sdm.records.evaluate import EvaluateOptions

    group = None
    # Without a file of the group, the other species of the same file show where observers went.
    background = options.background or (options.records if others else None)
    if background is not None:
        from sdm.records.group import read_group

        positions = read_group(background, species, options=read, clean=clean)
        group = (positions.lon, positions.lat)
    return EvaluateOptions(
        within_km=options.within_km,
        places=options.places,
        surface=options.mask,
        group=group,
        probability=options.probability,
        thresholds={} if options.threshold is None else {"fixed": options.threshold},
        band=options.band,
        seed=options.seed,
    )


def _report(evaluation: Evaluation, records: Records, sampler: MapSampler) -> Report:
    from sdm.records.report import Report

    audit = records.audit
    name = f", {records.species}" if records.species else ""
    return Report(
        title=f"{evaluation.source}{name}",
        lead=f"A map judged by {evaluation.presences:,} presences.",
        records=records,
        counts=audit.counts(),
        sentences=audit.sentences(),
        evaluation=evaluation,
        probability=evaluation.probability,
        provenance={"Map": sampler.name, "Values": sampler.quantity or "not stated", "Records": audit.source},
        citations=[*audit.citations.texts, *audit.citations.doi],
    )


def _picture(evaluation: Evaluation, sampler: MapSampler) -> MapPicture | None:
    """The map, its colours from 0 to 1 or over the values that it has."""
    import numpy as np

    from sdm.records.report import MapPicture

    picture = sampler.picture()
    if picture is None:
        return None
    values, geobox = picture
    low, high = (float(edge) for edge in (np.nanmin(values), np.nanmax(values)))
    inside = low >= 0.0 and high <= 1.0
    low, high = (0.0, 1.0) if inside else (low, high if high > low else low + 1.0)
    return MapPicture(values, geobox, sampler.quantity or evaluation.source, (low, high))


def _names(map_path: str) -> tuple[str, str]:
    """The names of the page and of its numbers."""
    stem = Path(map_path).stem
    return f"{stem}-evaluation.html", f"{stem}-evaluation.json"


def _write(report: Report, out: Path, names: tuple[str, str], overwrite: bool) -> list[Path]:
    """Write the page and its numbers into a folder, which is made; returns their paths."""
    from sdm.files.atomic import Staging
    from sdm.records.report import write_json, write_report

    page, numbers = names
    with Staging(out, names, overwrite=overwrite) as staging:
        write_report(staging.path(page), report)
        write_json(staging.path(numbers), report)
        return staging.publish()


def _table(evaluation: Evaluation) -> str:
    """The measures as text, a line for each comparison."""
    from sdm.records.evaluate import CONTRASTS, LABELS

    scores = evaluation.scores
    names = [name for name in LABELS if any(getattr(one, name) is not None for one in scores.values())]
    first = f"{evaluation.source}: {evaluation.presences:,} presences"
    if evaluation.same_pixel:
        first += f", {evaluation.same_pixel:,} more in the same pixels"
    if evaluation.off_map:
        first += f", {evaluation.off_map:,} off the map"
    lines = [first, f"{'against':<36}{'places':>8}" + "".join(f"{LABELS[name]:>9}" for name in names)]
    for contrast, one in scores.items():
        values = (getattr(one, name) for name in names)
        cells = "".join(f"{'-' if value is None else f'{value:.3f}':>9}" for value in values)
        lines.append(f"{CONTRASTS[contrast]:<36}{one.places:>8,}{cells}")
    lines += [f"{share:.1%} of the presences lie below the threshold" for share in evaluation.omission.values()]
    return "\n".join([*lines, *(f"note: {note}" for note in evaluation.notes)])

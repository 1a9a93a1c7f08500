"""`taxabind-map` and `sdm map`: parse, plan, write, print. No decision about maps is made here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdm._version import __version__
from sdm.cli.app import (
    EPILOG,
    Reporting,
    command_line,
    extent_line,
    map_app,
    model_line,
    printable,
    progress,
    say,
    say_licence,
    sdm_app,
)
from sdm.cli.config import read_config
from sdm.cli.models import open_telling, print_models, search_names
from sdm.cli.options import takes_options
from sdm.errors import RequestError, SpeciesNameError
from sdm.request import Delivery, Execution, ListOptions, MapRequest
from sdm.request.options import Option
from sdm.request.parts import LIST

if TYPE_CHECKING:
    from sdm.maps.plan import Job


NOVEL = 0.1
"""Share of a map that is unlike the records, from which the user is warned."""


def show_version(asked: bool) -> None:
    """Print the version and stop, if asked."""
    if asked:
        print(f"taxabind-map {__version__}")
        raise typer.Exit()


@dataclass(frozen=True, kw_only=True)
class MapOptions(Reporting):
    """Options of this command that are not part of a request."""

    species_file: Annotated[
        str | None,
        Option(
            "Map all names of a .csv, .tsv, .txt, .xlsx or .parquet file (- reads standard input) in one pass, into "
            "one Zarr with a summary, a richness map and a web page; an interrupted run resumes.",
            panel=LIST,
            metavar="FILE",
            flags=("--species", "--species-list"),
        ),
    ] = None
    config: Annotated[
        Path | None,
        Option(
            "TOML file of options by their long names; the command line takes precedence.",
            panel="Running",
            metavar="FILE.toml",
            callback=read_config,
        ),
    ] = None
    list_models: Annotated[bool, Option("List the bundled models.", callback=print_models)] = False
    search: Annotated[str | None, Option("Find species by part of a name.", metavar="NAME", callback=search_names)] = (
        None
    )
    version: Annotated[bool, Option("Show the version.", callback=show_version)] = False


@map_app.command(epilog=EPILOG)
@sdm_app.command("map", epilog=EPILOG)
@takes_options()
def map_command(
    request: MapRequest,
    execution: Execution,
    delivery: Delivery,
    listing: ListOptions,
    options: MapOptions,
) -> None:
    """Map where a species lives: a probability raster as Cloud-Optimized GeoTIFF, Zarr and offline web map.

    taxabind-map "Ursus arctos" --bbox -170 48 -100 72

    taxabind-map "brown bear" --region alaska.geojson --crs EPSG:3338 --resolution 5000

    taxabind-map --species list.csv --bbox -125 31 -102 49 --out west

    taxabind-map "Vipera berus" --records adders.csv --bbox -11 49 3 61
    """
    from sdm.records.listed import lists_records

    _check_species(request, options.species_file)
    if options.species_file and lists_records(options.species_file):
        request = replace(request, source=replace(request.source, records=options.species_file))
        options = replace(options, species_file=None)
    ref = request.model
    if ref.model is not None and (ref.model.startswith("hf://") or ref.cache_dir or ref.offline):
        opened = open_telling(ref.model, ref.cache_dir, ref.offline, options.quiet)
        request = replace(request, model=replace(ref, model=opened))
    if options.species_file:
        from sdm.cli.batch import map_list

        map_list(options.species_file, request, listing, delivery, execution, options)
    elif request.source.given and not request.query.species:
        _map_records(request, delivery, execution, listing, options)
    else:
        from sdm.maps.plan import plan_map

        with _hint_at_quotes(request.query.species):
            job = plan_map(request, execution.device)
        _map(job, delivery, execution, options)


def _check_species(request: MapRequest, species_file: str | None) -> None:
    query = request.query
    if query.species and species_file:
        raise RequestError("give species either by name or with --species FILE, not both.")
    if species_file and query.evidence:
        raise RequestError("photos, sounds, text and embeddings cannot be combined with --species FILE.")
    if species_file and request.source.given:
        raise RequestError("--records, --gbif and --fitted cannot be combined with --species FILE.")
    if not (query.species or species_file or query.evidence or request.source.given):
        raise RequestError('no species given; name one, for example "Ursus arctos", or look one up with --search.')


@contextmanager
def _hint_at_quotes(names: Sequence[str]) -> Iterator[None]:
    """Tell one who typed a name of two words without quotes, which are two names to the shell."""
    whole = " ".join(names)
    if len(names) == 2 and re.fullmatch(r"[A-Z][a-z-]+ [a-z-]+", whole):
        from sdm.models.registry import list_models

        if any(whole in model.taxa for model in list_models()):
            raise RequestError(f'{names[0]} and {names[1]} are two names here; put the name in quotes: "{whole}".')
    try:
        yield
    except SpeciesNameError as error:
        if len(names) > 1 and all(" " not in name for name in names):
            error.args = (f'{error} (A name of several words needs quotes: "{whole}".)',)
        raise


def _map_records(
    request: MapRequest, delivery: Delivery, execution: Execution, listing: ListOptions, options: MapOptions
) -> None:
    """Map the species of a file of records: one as a map by itself, several as a batch."""
    from sdm.maps.plan import fit_opened, in_climate, open_fits

    opened = open_fits(request, execution.device)
    if len(opened.opened.species) <= 1:
        _map(in_climate(fit_opened(opened, execution.device)), delivery, execution, options)
        return
    from sdm.cli.batch import map_fits

    map_fits(opened, listing, delivery, execution, options)


def _map(job: Job, delivery: Delivery, execution: Execution, options: MapOptions) -> None:
    from sdm.maps.ranges import check, stand_in_note
    from sdm.maps.write import refuse, write

    wanted = check(job, delivery.range)
    if not options.quiet:
        _say_names(job)
        for k, _ in filter(lambda pair: delivery.range and not pair[1], enumerate(wanted)):
            say(f"note: {stand_in_note(job, k)}")
    if options.dry_run:
        refuse(job, delivery, execution)
        estimate = job.estimate(delivery.formats_or())
        print(json.dumps(estimate, indent=2)) if options.json_output else _print_estimate(estimate)
        return
    with progress(not options.quiet, options.progress) as tell:
        results = write(job, delivery, execution, command=command_line(), progress=tell)
    if options.json_output:
        reports = [r.report for r in results]
        print(json.dumps(reports[0] if len(reports) == 1 else reports, indent=2, default=str))
    elif not options.quiet:
        for result in results:
            _print_result(result)


def _say_names(job: Job) -> None:
    """Print to stderr how the names were resolved, the notes and the licence, before the work begins."""
    for resolution, notes in zip(job.resolutions, job.notes, strict=True):
        if resolution.taxon.name.casefold() != resolution.query.strip().casefold():
            say(f"{resolution.query} -> {resolution.taxon.label} ({resolution.how})")
        for note in notes:
            say(f"note: {note}")
    say_licence(job.plan.model)


def _print_estimate(e: dict[str, Any]) -> None:
    print(f"{', '.join(e['species'])}: {e['columns']} x {e['rows']} = {e['pixels']:,} pixels in {e['tiles']} tiles")
    print(extent_line(e))
    print(f"{e['crs']}, resolution {e['resolution']:g}; at most {e['bytes_at_most'] / 1e6:.0f} MB of outputs")
    print(model_line(e))


def _print_result(result: Any) -> None:
    s = result.report["statistics"]
    print(printable(result.species))
    if s["count"]:
        score = result.report["score"]["score"]
        area = f"{s['modelled_area_km2']:,.0f} km2 modelled"
        if score == "probability":
            area = f"expected area {s['expected_area_km2']:,.0f} of {area}"
        print(f"  {score.replace('_', ' ')} {s['min']:.3f} .. {s['max']:.3f}, mean {s['mean']:.3f}; {area}")
    else:
        print("  no pixel is modelled here (all masked)")
    if "area_km2" in result.report.get("range", {}):
        _print_range(result.report["range"], result.report["score"]["score"])
    for one in result.report.get("cross_validation", []):
        error = "" if one["standard_error"] is None else f" ± {one['standard_error']:.2f}"
        print(f"  AUC {one['auc']:.2f}{error} against {one['against']}, in {one['left_out']} left out of the fit")
    novel = result.report.get("trust", {}).get("share_novel") or 0.0
    if novel > NOVEL:
        print(
            f"  {novel:.0%} of the map has an environment unlike that of the records: do not rely on it there (novelty)"
        )
    for path in result.files.values():
        print(f"  {path}")


def _print_range(found: dict[str, Any], score: str) -> None:
    area = f"{found['area_km2']:,.0f} km2"
    if "low" in found:
        area += f" (low {found['low']['area_km2']:,.0f}, high {found['high']['area_km2']:,.0f})"
    print(f"  range {found['rule']}: {score.replace('_', ' ')} from {found['threshold']:.3f}, {area}")

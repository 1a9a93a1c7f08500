"""`sdm zones`: what maps hold in parks, countries and other zones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from sdm.cli.app import EPILOG, printable, progress, say, sdm_app
from sdm.cli.options import takes_options
from sdm.errors import RequestError
from sdm.request.choices import ORIGINS, parse_word
from sdm.request.options import Option, Options

if TYPE_CHECKING:
    from sdm.analysis.zones import ZoneSums

LISTED = 20
"""Rows to print; the table has all."""


@dataclass(frozen=True, kw_only=True)
class ZonesOptions(Options):
    """The options of `sdm zones`."""

    maps: Annotated[
        tuple[str, ...],
        Option(
            "Maps: GeoTIFFs, folders of them, folders of a batch, or region indexes.", metavar="MAP...", argument=True
        ),
    ]
    zones: Annotated[Path | None, Option("Vector file of polygons, which may overlap.", metavar="FILE")] = None
    id: Annotated[
        str | None,
        Option("Attribute that names the zones; features of one name are one zone. Default: numbers.", metavar="NAME"),
    ] = None
    layer: Annotated[str | None, Option("Layer of the file. Default: the only one with polygons.", metavar="NAME")] = (
        None
    )
    where: Annotated[
        str | None, Option("Only the features that meet a condition, such as \"IUCN = 'II'\".", metavar="CONDITION")
    ] = None
    species: Annotated[
        Path | None,
        Option("From a region index: list of species. Default: all that its model knows.", metavar="FILE"),
    ] = None
    origin: Annotated[str, Option("From a region index: native, or all: also where people introduced a species.")] = (
        "native"
    )
    threshold: Annotated[float, Option("Probability from which area counts as above.")] = 0.5
    out: Annotated[Path, Option("Folder for STEM-zones.csv and STEM-zones.gpkg.", metavar="DIR")] = Path("zones")
    overwrite: Annotated[bool, Option("Replace existing outputs.")] = False
    quiet: Annotated[bool, Option("No progress, no summary.", flags=("--quiet", "-q"))] = False

    def __post_init__(self) -> None:
        if self.zones is None:
            raise RequestError("no zones are given; name a vector file of polygons with --zones.")
        parse_word("origin", self.origin, ORIGINS)
        if not 0.0 < self.threshold < 1.0:
            raise RequestError(f"threshold {self.threshold:g} must lie between 0 and 1.")


@sdm_app.command("zones", epilog=EPILOG)
@takes_options()
def zones_command(options: ZonesOptions) -> None:
    """Sum maps over zones: area, mean, maximum, expected area, area above a threshold, share of the range, richness.

    sdm zones maps/puma-concolor.tif --zones parks.gpkg --id SITE_ID

    sdm zones west/ --zones parks.gpkg --id SITE_ID --out parks

    sdm zones west.zarr --species list.csv --zones parks.gpkg --id SITE_ID
    """
    from sdm.analysis.indexed import all_maps, is_index
    from sdm.analysis.zones import Zones, sum_zones, write_csv, write_gpkg
    from sdm.files.atomic import Staging, check_targets, disk_errors

    assert options.zones is not None
    if options.species is not None and not any(map(is_index, options.maps)):
        raise RequestError("--species chooses from a region index, but none is given; omit it.")
    stem = options.zones.name.split(".")[0] or "zones"
    names = [f"{stem}-zones.csv", f"{stem}-zones.gpkg"]
    check_targets(options.out, names, overwrite=options.overwrite)
    maps, notes = all_maps(options.maps, options.species, options.origin)
    zones = Zones.read(options.zones, options.id, options.layer, options.where)
    for note in (*notes, *zones.notes):
        say(f"note: {note}")
    with progress(enabled=not options.quiet) as tell:
        sums = sum_zones(zones, maps, options.threshold, tell)
    with Staging(options.out, names, overwrite=options.overwrite) as staging:
        with disk_errors(options.out):
            write_csv(staging.path(names[0]), sums)
            write_gpkg(staging.path(names[1]), sums)
        staging.publish()
    if not options.quiet:
        _print(sums)
        for name in names:
            print(printable(f"  {options.out / name}"))


def _print(sums: ZoneSums) -> None:
    import numpy as np

    zones, several = sums.zones, len(sums.names) > 1
    by = sums.richness if several else sums.expected_km2[:, 0]
    relative = bool(np.isnan(by).all())
    if relative:
        by = sums.species_above if several else np.nan_to_num(sums.mean[:, 0])
    order = by.argsort(kind="stable")[::-1]
    print(f"{len(zones):,} zones, {len(sums.names):,} maps")
    for z in order[:LISTED]:
        text = f"{zones.ids[z]}: {zones.area_km2[z]:,.0f} km2, {sums.modelled_km2[z].max():,.0f} modelled; "
        if relative and several:
            text += f"{sums.species_above[z]:,} species reach {sums.threshold:g} somewhere"
        elif relative:
            text += f"mean {sums.mean[z, 0]:.2f}, highest {sums.max[z, 0]:.2f}"
        elif several:
            text += f"{sums.richness[z]:.1f} species expected at a place"
        else:
            expected, share, mean = (column[z, 0] for column in (sums.expected_km2, sums.share_of_range, sums.mean))
            text += f"expected area {expected:,.0f} km2, {share:.1%} of the range; mean {mean:.2f}"
        print(printable(text))
    if len(zones) > LISTED:
        print(f"{len(zones) - LISTED:,} more zones; the table has all")

"""Species fitted to the user's records: from files to what a map needs of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdm.engine.inputs import layer_fingerprints
from sdm.engine.places import Places, Target
from sdm.errors import ModelError, RecordsError, RequestError, SpeciesNameError
from sdm.files.fingerprint import of_files, of_parts
from sdm.grid import Grid
from sdm.layers.environment import names_known_variables
from sdm.layers.stack import RasterStack
from sdm.models.choice import choose_for_most, refuse_name_of_other_model
from sdm.models.joint import member_of, members_of, narrowed
from sdm.models.registry import default_model, list_models, open_model
from sdm.names import Resolution, Taxon
from sdm.names.habitat import mask_for
from sdm.records.background import Positions
from sdm.records.covariate_model import CovariateModel
from sdm.records.features import ModelFeatures, RasterFeatures
from sdm.records.fit import fit_prepared, prepare, prior_for
from sdm.records.fitted import Fitted, check_covariates
from sdm.records.raw import RawRecords
from sdm.records.read import read_raw
from sdm.records.table import Records
from sdm.records.target import BACKGROUNDS, FittedScore, FittedTrust
from sdm.records.training import Training
from sdm.records.validation import Case
from sdm.records.values import same_name
from sdm.request import CleanOptions, MapRequest, ModelRef, RecordsSource, Sampling
from sdm.request.box import KM_PER_DEGREE

if TYPE_CHECKING:
    from sdm.models.protocol import Model
    from sdm.records.review import Review

FINEST_DETAIL_M = 5000.0
"""Metres: what the bundled layers resolve. Records are not dropped for being less exact than a finer pixel."""


@dataclass(frozen=True)
class FittedSpecies:
    """A species with its fit, and the records it was fitted to where they were read in this run."""

    resolution: Resolution
    fitted: Fitted
    case: Case | None = None
    """The records it was fitted to; None for a saved fit."""
    review: Review | None = None
    """Of the fit, where it was made right after it."""

    @property
    def records(self) -> Records | None:
        """The records it was fitted to, where they were read in this run."""
        return None if self.case is None else self.case.records

    def target(self, model: Model, mask: str = "auto", trust: bool = True, mess: bool = False) -> Target:
        """What is mapped.

        `mask`: land, sea, none, or auto: by the habitat of the species, else by its records, else (the rasters of the
        user alone) wherever they have values. `trust`: with bands that say how far to trust it, `mess` among them.
        """
        if mask == "auto" and model.dim == 0:
            mask = "none"  # the user's rasters say where they hold
        elif mask == "auto":
            known = bool(self.resolution.taxon.lineage)
            mask = mask_for(self.resolution.taxon) if known else self.fitted.info.mask
        return Target(
            np.zeros(model.dim, dtype=np.float32),
            FittedScore.of(self.fitted),
            mask,
            fit=self.fitted,
            # A kept zero-shot map does not depend on the records, and their places say nothing of it.
            trust=FittedTrust(self.fitted, mess) if trust and not self.fitted.info.zero_shot else None,
        )

    def report(self) -> dict[str, Any]:
        """The entry of the fit in the report of a map, as JSON values."""
        info = self.fitted.info.to_dict()
        if self.records is None:
            return info
        return info | {"records": self.records.audit.counts(), "gbif_taxon_keys": dict(self._taxon_keys)}

    @property
    def _taxon_keys(self) -> dict[str, int]:
        """Kept records by the key that GBIF gave their taxon."""
        return {} if self.records is None else self.records.audit.citations.taxon_keys

    def tags(self) -> dict[str, str]:
        """The tags of the fit in the other outputs of a map."""
        info = self.fitted.info
        return {
            "fit_method": info.method,
            "fit_background": info.background,
            "fit_presences": str(info.counts.get("presences", 0)),
            "records_citation": "; ".join(info.citations),
            "records_licences": "; ".join(f"{name}: {count}" for name, count in info.licences.items()),
            "gbif_taxon_key": " ".join(self._taxon_keys),
        }

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences the user should read."""
        info = self.fitted.info
        lines = [] if self.records is None else self.records.audit.sentences()
        lines.append(f"Fitted to {info.counts.get('presences', 0):,} presences: {info.method}.")
        lines.append(f"Compared with {BACKGROUNDS[info.background]} ({info.background_rule}).")
        if info.mask == "sea" and not self.resolution.taxon.lineage:
            lines.append("Most of its records lie at sea, so only sea and lakes are mapped; --mask maps other pixels.")
        return (*lines, *([info.gate] if info.gate else []), *info.notes, *(f"Cite: {c}" for c in info.citations))

    def place_note(self, grid: Grid) -> tuple[str, ...]:
        """A sentence where none of the records lies in the box of a map."""
        if self.case is None:
            return ()
        west, south, east, north = grid.bbox
        seen = self.case.records.presences
        inside = ((seen.lon - west) % 360.0 <= east - west) & (seen.lat >= south) & (seen.lat <= north)
        if inside.any():
            return ()
        return (f"None of the {len(seen):,} presences lies in the box of the map.",)


Failures = dict[str, str]
"""Why species could not be fitted, by name."""


@dataclass(frozen=True)
class Species:
    """A species of the user's records, before it is fitted."""

    name: str
    resolution: Resolution | None
    """None: the model does not know it."""
    raw: RawRecords | Records
    own: frozenset[str] = frozenset()
    """Its names in the file."""


@dataclass(frozen=True)
class Opened:
    """The species of a request and the model that describes places, before anything is encoded."""

    model: Model
    species: tuple[Species, ...] = ()
    table: RawRecords | None = None
    """All species of the file."""
    saved: FittedSpecies | None = None
    """From the file of a fit, in place of records."""


def records_identity(request: MapRequest, opened: Opened) -> dict[str, Any]:
    """What fits to the records of a request depend on, beside the places of its maps: JSON values by name.

    Of a file its name, for people, and its content.
    """
    source = request.source
    given = "--gbif " + source.gbif if source.gbif is not None else source.records
    if isinstance(given, str | Path) and source.gbif is None:
        listed = () if opened.table is None else opened.table.files
        content, name = of_files([given, *listed]), Path(given).name
    else:
        content, name = of_parts(_content(opened)), given if isinstance(given, str) else "records"
    beside = source.background
    options = {
        option: list(value) if isinstance(value, tuple) else value
        for part in (request.reading, request.cleaning, request.fitting)
        for option, value in part.to_dict().items()
    }
    return {
        "records": {"name": str(name), "content": content},
        "background": None if beside is None else {"name": Path(beside).name, "content": of_files([beside])},
        "evaluate": source.evaluate,
        **{option.replace("_", " "): value for option, value in options.items()},
    }


def _content(opened: Opened) -> Iterator[str]:
    """Text that depends on all numbers of the records of all species."""
    for one in opened.species:
        raw = one.raw
        columns = {n: getattr(raw, n) for n in ("lon", "lat", "present")} if isinstance(raw, Records) else raw.rows
        yield one.name
        yield from (f"{name} {np.ascontiguousarray(values).tobytes().hex()}" for name, values in columns.items())


def open_species(request: MapRequest) -> Opened:
    """Read the records of a request and say what each of its species is. Raises RecordsError."""
    if request.source.fitted is not None:
        return _open_saved(request)
    table = _read(request)
    labels = list(request.query.species) or _names_in(table, request.source)
    if _covariates_alone(request):
        rasters = request.sampling.environment
        model: Model = CovariateModel.of_rasters(rasters, request.fitting.categorical)
        resolutions: list[Resolution | None] = [None] * len(labels)
    else:
        model, resolutions = _resolve(labels, request.model)
    merged: dict[str, tuple[Resolution | None, list[str]]] = {}
    for label, resolution in zip(labels, resolutions, strict=True):
        name = resolution.taxon.name if resolution else label
        merged.setdefault(name, (resolution, []))[1].append(label)
    species = tuple(_species(name, resolution, names, table) for name, (resolution, names) in merged.items())
    return Opened(model, species, table if isinstance(table, RawRecords) else None)


@dataclass(frozen=True)
class Kept:
    """The finished fits of a run in a folder, as the files that people are given: a run that goes on reads them.

    The folder is of one request: what the fits depend on beside the name of a species is the same.
    """

    folder: Path

    def read(self, name: str) -> Fitted | None:
        """The fit of a species; None where there is none, or none that can be used."""
        path = self._path(name)
        if not path.is_file():
            return None
        with suppress(RecordsError):
            fitted = Fitted.open(path)
            if fitted.info.species == name:
                return fitted
        return None

    def write(self, name: str, fitted: Fitted) -> None:
        """Keep a fit. Raises OutputError."""
        self.folder.mkdir(exist_ok=True)
        fitted.save(self._path(name))

    def _path(self, name: str) -> Path:
        return self.folder / f"{of_parts([name])}.fit.safetensors"


def fit_species(
    opened: Opened,
    request: MapRequest,
    places: Places,
    device: str = "auto",
    failures: Failures | None = None,
    finish: Callable[[FittedSpecies], FittedSpecies] | None = None,
    kept: Kept | None = None,
) -> list[FittedSpecies]:
    """Fit the species of a request to their records.

    Parameters
    ----------
    opened : from `open_species`.
    request : what was asked for.
    places : of the map: a fit describes places as the map does, in the same modalities, month and layers.
    device : auto, cpu, cuda or cuda:N.
    failures : receives the species whose records cannot be used; without it the first of them is an error.
    finish : what is left of each, once it is fitted; by default all.
    kept : finished fits of the same request, which are read, and to which the others are added.
    """
    if opened.saved is not None:
        return [opened.saved]
    group = _Group(request, opened.table)
    source = _source(opened.model, places, device)
    fits = []
    for one in opened.species:
        try:
            records = replace(_cleaned(one, request.cleaning, places.grid, opened.model.dim == 0), species=one.name)
            if not records.present.any():
                told = " ".join(records.audit.sentences())
                raise RecordsError(f"there is no usable presence among the records of {one.name!r}. {told}")
            home = members_of(opened.model)[0]
            if one.resolution is not None:
                home = member_of(opened.model, one.resolution.taxon)
            case = _fit(records, home, request, source, group.without(one.own, one.name), kept)
        except RecordsError as error:
            if failures is None:
                raise
            failures[one.name] = str(error)
            continue
        fitted = FittedSpecies(one.resolution or _unknown(one.name), case.fitted, case)
        fits.append(fitted if finish is None else finish(fitted))
    return fits


def _source(model: Model, places: Places, device: str) -> ModelFeatures | RasterFeatures:
    """What places are described with; it remembers them from species to species."""
    if isinstance(model, CovariateModel):
        return RasterFeatures(model.paths, model.categorical)
    return ModelFeatures(model, places.sampling, device)


def _fit(
    records: Records,
    model: Model,
    request: MapRequest,
    source: ModelFeatures | RasterFeatures,
    group: Positions | None,
    kept: Kept | None,
) -> Case:
    """A species fitted, with all that its review needs."""
    options = request.fitting
    fitted = None if kept is None else kept.read(records.species)
    prior = None
    if isinstance(source, ModelFeatures):
        prior = prior_for(model, source, records.species, options)
    if fitted is not None and not request.source.evaluate:  # nobody asks for the places of the fit
        return Case(records, fitted, Training.empty(), source, prior, options, group)
    training, info = prepare(records, source, group, options)
    if isinstance(source, ModelFeatures):  # whose encoders several models may share
        info = replace(info, model=model.name, model_digest=model.digest)
    if fitted is None:
        fitted = fit_prepared(training, info, source, prior, options)
        if kept is not None:
            kept.write(records.species, fitted)
    return Case(records, fitted, training, source, prior, options, group)


def _read(request: MapRequest) -> RawRecords | Records:
    """The records as they were given."""
    source = request.source
    if isinstance(source.records, Records):
        return source.records
    if source.gbif is not None:
        from sdm.files.paths import cache_folder
        from sdm.records.gbif import Service, fetch

        service = Service(cache=cache_folder() / "gbif", offline=request.model.offline)
        return fetch(source.gbif, service=service, clean=request.cleaning)
    return read_raw(Path(source.records), request.reading)


def _names_in(table: RawRecords | Records, source: RecordsSource) -> list[str]:
    """The species of the records; of a file without names, its own name."""
    if isinstance(table, Records):
        return [table.species or "species"]
    return sorted(name for name in table.names if name) or [Path(str(source.records)).name.split(".")[0] or "species"]


def _species(name: str, resolution: Resolution | None, labels: Sequence[str], table: RawRecords | Records) -> Species:
    """The rows of a species: under the names it was asked for by, its accepted name, or a synonym."""
    if isinstance(table, Records) or not table.names:
        return Species(name, resolution, table)
    known = () if resolution is None else (resolution.taxon.name, *resolution.taxon.synonyms)
    own = frozenset(found for label in (*labels, *known) if (found := table.find(label)) is not None)
    if not own:
        table.only(labels[0])  # raises, with the nearest names of the file
    return Species(name, resolution, table.united(own, name), own)


def _resolve(names: list[str], ref: ModelRef) -> tuple[Model, list[Resolution | None]]:
    """The model that knows most of the names, and what each is in it; None for a species it does not know."""
    model: Model
    if ref.model is None:
        try:
            model, outcomes = choose_for_most(names, as_group=True)
        except SpeciesNameError:
            return default_model(None), [None] * len(names)
    else:
        model, outcomes = open_model(ref.model, cache_dir=ref.cache_dir, offline=ref.offline), []
        for name in names:
            try:
                outcomes.append(refuse_name_of_other_model(model, name, model.resolve(name)))
            except SpeciesNameError as error:
                outcomes.append(error)
    # A genus or family in place of an unknown species is not accepted here: the records describe the species itself.
    known = [o if isinstance(o, Resolution) and o.known else None for o in outcomes]
    return narrowed(model, (o.taxon for o in known if o is not None)), known


def _unknown(name: str) -> Resolution:
    """A species that no model knows."""
    return Resolution(name, Taxon("species", name, ()), True, "records")


def _cleaned(one: Species, options: CleanOptions, grid: Grid, exact: bool) -> Records:
    """The records of a species, cleaned by its habitat and the size of a pixel; `exact`: whatever the pixel's size."""
    if isinstance(one.raw, Records):
        return one.raw
    if options.habitat == "auto" and one.resolution is not None:
        options = replace(options, habitat=mask_for(one.resolution.taxon))
    if options.max_uncertainty_m is None:
        pixel = grid.resolution * (KM_PER_DEGREE * 1000.0 if grid.is_geographic else grid.metres_per_unit)
        options = replace(options, max_uncertainty_m=pixel if exact else max(pixel, FINEST_DETAIL_M))
    return Records.from_raw(one.raw, options)


class _Group:
    """The target group: the records of --background, else all species of the file; cleaned once, by name."""

    def __init__(self, request: MapRequest, table: RawRecords | None) -> None:
        background = request.source.background
        self.table = table if background is None else read_raw(Path(background), request.reading)
        self.given, self.cleaning = background is not None, request.cleaning

    @cached_property
    def places(self) -> dict[str, Positions]:
        """Where each species was recorded."""
        if self.table is None or (not self.given and len(self.table.names) < 2):
            return {}
        cleaned = {name: Records.from_raw(part, self.cleaning) for name, part in self.table.by_species().items()}
        return {name: Positions(r.presences.lon, r.presences.lat) for name, r in cleaned.items()}

    def without(self, own: frozenset[str], name: str) -> Positions | None:
        """Where the species of the group but one were recorded; None where there are none."""
        left_out = {*own, self.table.find(name) if self.table is not None else None}
        parts = [positions for key, positions in self.places.items() if key not in left_out and len(positions)]
        if not parts:
            if self.given:
                raise RecordsError(f"--background holds no usable record of another species than {name!r}.")
            return None
        lon, lat = (np.concatenate([getattr(p, axis) for p in parts]) for axis in ("lon", "lat"))
        return Positions(lon, lat)


def _covariates_alone(request: MapRequest) -> bool:
    """Whether species are fitted to the user's rasters alone: not all of them are variables of the bundled models."""
    rasters = request.sampling.environment
    if not rasters or request.index is not None or rasters[0].partition("#")[0] == "approximate":
        return False
    return not names_known_variables(rasters)


def _open_saved(request: MapRequest) -> Opened:
    """A fit made before, with the model it was made with."""
    given = request.source.fitted
    fitted = given if isinstance(given, Fitted) else Fitted.open(given)
    name = request.query.species[0] if request.query.species else fitted.info.species or "species"
    if fitted.info.features == "covariates":
        _refuse_other_species(_unknown(name), fitted)
        return Opened(_rasters_of_fit(fitted, request), saved=FittedSpecies(_unknown(name), fitted))
    model = _model_of_fit(fitted, request)
    try:
        resolution = model.resolve(name)
    except SpeciesNameError:
        resolution = None
    known = resolution if resolution is not None and resolution.known else _unknown(name)
    _refuse_other_species(known, fitted)
    return Opened(model, saved=FittedSpecies(known, fitted))


def _refuse_other_species(resolution: Resolution, fitted: Fitted) -> None:
    """Raise RecordsError for a name that is not that of the species of a saved fit."""
    taxon, own = resolution.taxon, fitted.info.species
    names = {same_name(name) for name in (taxon.name, *taxon.synonyms)}
    if own and same_name(own) not in names:
        raise RecordsError(f"the fit is of {own!r}, not of {taxon.name!r}; leave the name out.")


def _rasters_of_fit(fitted: Fitted, request: MapRequest) -> Model:
    """The user's rasters, with the bands that a fit was made with, in its order."""
    names, categorical = fitted.covariates.names, fitted.covariates.categorical
    if not request.sampling.environment:
        raise RecordsError(
            f"the fit needs the covariates {', '.join(names[:5])}; give their rasters with --environment."
        )
    classes = tuple(name for name, is_class in zip(names, categorical, strict=True) if is_class)
    stack = RasterStack(request.sampling.environment)
    if missing := [name for name in names if name not in stack.names]:
        raise RecordsError(
            f"the fit needs the covariate {missing[0]!r}, which is not among the bands given "
            f"({', '.join(stack.names[:10])}); name the band or file so."
        )
    return CovariateModel.of_rasters(request.sampling.environment, classes, names)


def _model_of_fit(fitted: Fitted, request: MapRequest) -> Model:
    """The model that a fit was made with."""
    info, ref = fitted.info, request.model
    opened: Model | None
    if ref.model is not None:
        given = open_model(ref.model, cache_dir=ref.cache_dir, offline=ref.offline)
        opened = next((m for m in members_of(given) if m.digest == info.model_digest), given)
    else:
        opened = next((m for m in list_models() if m.digest == info.model_digest), None)
    if opened is None or opened.digest != info.model_digest or opened.dim != fitted.dim:
        raise ModelError(
            f"the fit was made with model {info.model!r} ({info.model_digest}), which is not the one given or bundled "
            "here; give its folder with --model, or fit the records again."
        )
    check_covariates(fitted, ModelFeatures(opened))
    return opened


def sampling_of_fit(saved: FittedSpecies, sampling: Sampling) -> Sampling:
    """The modalities and the month that a saved fit was made with. Raises RequestError where others are asked for."""
    info = saved.fitted.info
    if info.features == "covariates":
        return replace(sampling, environment=())
    for name, asked, own in (
        ("modalities", sampling.modalities, info.modalities),
        ("month", sampling.month, info.month),
    ):
        if asked is not None and asked != own:
            text = ",".join(own) if isinstance(own, tuple) else own
            raise RequestError(
                f"--{name} is given, but the fit was made with {text or 'the whole year'}; leave it out."
            )
    return replace(sampling, modalities=info.modalities, month=info.month)


def check_layers_of_fit(saved: FittedSpecies, places: Places) -> None:
    """Raise RecordsError where the layers of a map are not those that a saved fit was made with.

    Another climate is allowed: rasters of the user's own in place of the bundled environment.
    """
    info, sampling = saved.fitted.info, places.sampling
    if info.features == "covariates" or places.source is not None:
        return
    now = layer_fingerprints(places.model, (*places.modalities, "environment"), (), sampling.satellite)
    for name, was in info.layers.items():
        if was.startswith("bundled:") and now.get(name, was) != was:
            raise RecordsError(
                f"the fit was made with another bundled {name} layer than this version has; fit the records again."
            )

"""Species fitted to the user's records: from files to what a map needs of them."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdm.engine.places import Target
from sdm.errors import ModelError, RecordsError, SpeciesNameError
from sdm.files.fingerprint import of_parts
from sdm.grid import Grid
from sdm.layers.environment import names_known_variables
from sdm.models.choice import choose_for_most, refuse_name_of_other_model
from sdm.models.registry import default_model, list_models, open_model
from sdm.names import Resolution, Taxon
from sdm.names.habitat import mask_for
from sdm.records.background import Positions
from sdm.records.covariate_model import CovariateModel
from sdm.records.features import ModelFeatures, RasterFeatures
from sdm.records.fit import fit_prepared, prepare, prior_for
from sdm.records.fitted import Fitted
from sdm.records.group import read_group
from sdm.records.raw import RawRecords
from sdm.records.read import read_raw
from sdm.records.table import Records
from sdm.records.target import BACKGROUNDS, FittedScore, FittedTrust
from sdm.records.validation import Case
from sdm.request import CleanOptions, MapRequest, ModelRef, RecordsSource

if TYPE_CHECKING:
    from sdm.models.protocol import Model

FINEST_DETAIL_M = 5000.0
"""Metres: what the bundled layers resolve. Records are not dropped for being less exact than a finer pixel."""
KM_PER_DEGREE = 111.195


@dataclass(frozen=True)
class FittedSpecies:
    """A species with its fit, and the records it was fitted to where they were read in this run."""

    resolution: Resolution
    fitted: Fitted
    case: Case | None = None
    """The records it was fitted to; None for a saved fit."""

    @property
    def records(self) -> Records | None:
        """The records it was fitted to, where they were read in this run."""
        return None if self.case is None else self.case.records

    def target(self, model: Model, mask: str = "auto", trust: bool = True) -> Target:
        """What is mapped.

        `mask`: land, sea, none, or auto: by the habitat of the species, else by its records, else (the rasters of the
        user alone) wherever they have values. `trust`: with bands that say how far to trust it.
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
            trust=FittedTrust(self.fitted) if trust and not self.fitted.info.zero_shot else None,
        )

    @property
    def identity(self) -> str:
        """What its values depend on: 16 hex digits."""
        scores = self.fitted.ensemble, self.fitted.calibration
        return of_parts([self.resolution.taxon.name, pickle.dumps(scores, protocol=5).hex()])

    def report(self) -> dict[str, Any]:
        """The entry of the fit in the report of a map, as JSON values."""
        info = self.fitted.info.to_dict()
        return info | ({} if self.records is None else {"records": self.records.audit.counts()})

    def tags(self) -> dict[str, str]:
        """The tags of the fit in the other outputs of a map."""
        info = self.fitted.info
        return {
            "fit_method": info.method,
            "fit_background": info.background,
            "fit_presences": str(info.counts.get("presences", 0)),
            "records_citation": "; ".join(info.citations),
            "records_licences": "; ".join(f"{name}: {count}" for name, count in info.licences.items()),
        }

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences the user should read."""
        info = self.fitted.info
        lines = [] if self.records is None else self.records.audit.sentences()
        lines.append(f"Fitted to {info.counts.get('presences', 0):,} presences: {info.method}.")
        lines.append(f"Compared with {BACKGROUNDS[info.background]} ({info.background_rule}).")
        return (*lines, *([info.gate] if info.gate else []), *info.notes, *(f"Cite: {c}" for c in info.citations))


Failures = dict[str, str]
"""Why species could not be fitted, by name."""


def fit_species(
    request: MapRequest, grid: Grid, device: str = "auto", failures: Failures | None = None
) -> tuple[Model, list[FittedSpecies]]:
    """The species of a request fitted to their records, and the model that describes places.

    Parameters
    ----------
    request : with `source.given`, its region and index opened.
    grid : of the map.
    device : auto, cpu, cuda or cuda:N.
    failures : receives the species whose records are of no use; without it the first of them is an error.

    Raises
    ------
    RecordsError : the records cannot be read, or are of no use.
    """
    if request.source.fitted is not None:
        return _from_file(request)
    raw = _read(request)
    named = _named(request.query.species, raw, request.source)
    if _covariates_alone(request):
        rasters = request.sampling.environment
        model: Model = CovariateModel.of_rasters(rasters, request.fitting.categorical)
        resolutions: list[Resolution | None] = [None] * len(named)
    else:
        model, resolutions = _resolve(list(named), request.model)
    read: dict[str, Positions] = {}
    fits = []
    for (name, part), resolution in zip(named.items(), resolutions, strict=True):
        records = _cleaned(part, request.cleaning, resolution, grid, model.dim == 0)
        records = replace(records, species=resolution.taxon.name if resolution else name)
        try:
            case = _fit(records, model, request, _others(request, named, name, read), device)
        except RecordsError as error:
            if failures is None:
                raise
            failures[name] = str(error)
            continue
        fits.append(FittedSpecies(resolution or _unknown(name), case.fitted, case))
    return model, fits


def _fit(records: Records, model: Model, request: MapRequest, group: Positions | None, device: str) -> Case:
    """A species fitted, with all that its review needs."""
    options, source, prior = request.fitting, _source(model, request, device), None
    if isinstance(source, ModelFeatures):
        prior = prior_for(model, source, records.species, options)
    training, info = prepare(records, source, group, options)
    fitted = fit_prepared(training, info, source, prior, options)
    return Case(records, fitted, training, source, prior, options, group)


def _source(model: Model, request: MapRequest, device: str) -> ModelFeatures | RasterFeatures:
    """The source of features of places."""
    if model.dim == 0:
        return RasterFeatures(request.sampling.environment, request.fitting.categorical)
    return ModelFeatures(model, request.sampling, device)


def _read(request: MapRequest) -> dict[str, RawRecords | Records]:
    """The records by the names of their species."""
    source = request.source
    if isinstance(source.records, Records):
        return {source.records.species: source.records}
    if source.gbif is not None:
        from sdm.files.paths import cache_folder
        from sdm.records.gbif import Service, fetch

        service = Service(cache=cache_folder() / "gbif", offline=request.model.offline)
        records = fetch(source.gbif, service=service, clean=request.cleaning)
        return {records.species: records}
    return dict(read_raw(Path(source.records), request.reading).by_species())


def _named(
    names: Sequence[str], raw: dict[str, RawRecords | Records], source: RecordsSource
) -> dict[str, RawRecords | Records]:
    """The records of the species that are asked for: those named, or all of the file."""
    where = str(source.records)
    if not names:
        if list(raw) == [""]:
            return {Path(where).name.split(".")[0] or "species": raw[""]}
        return {name: part for name, part in raw.items() if name}
    if len(raw) == 1 and len(names) == 1:
        return {names[0]: next(iter(raw.values()))}
    by_key = {name.casefold(): part for name, part in raw.items()}
    chosen = {}
    for name in names:
        part = by_key.get(name.strip().casefold())
        if part is None:
            listed = ", ".join(sorted(raw)[:5])
            raise RecordsError(
                f"records {where!r} hold no row of {name!r}; they name {len(raw):,} species, such as {listed}."
            )
        chosen[name] = part
    return chosen


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
    return model, [o if isinstance(o, Resolution) and o.known else None for o in outcomes]


def _unknown(name: str) -> Resolution:
    """A species that no model knows."""
    return Resolution(name, Taxon("species", name, ()), True, "records")


def _cleaned(
    part: RawRecords | Records, options: CleanOptions, resolution: Resolution | None, grid: Grid, exact: bool
) -> Records:
    """The records of a species, cleaned by its habitat and the size of a pixel; `exact`: whatever the pixel's size."""
    if isinstance(part, Records):
        return part
    if options.habitat == "auto" and resolution is not None:
        options = replace(options, habitat=mask_for(resolution.taxon))
    if options.max_uncertainty_m is None:
        pixel = grid.resolution * (KM_PER_DEGREE * 1000.0 if grid.is_geographic else grid.metres_per_unit)
        options = replace(options, max_uncertainty_m=pixel if exact else max(pixel, FINEST_DETAIL_M))
    return Records.from_raw(part, options)


def _others(
    request: MapRequest, named: dict[str, RawRecords | Records], own: str, read: dict[str, Positions]
) -> Positions | None:
    """The target group: the records of --background without the species itself, else the other species of its file.

    `read`: what was cleaned of the other species of the file already, by name.
    """
    source = request.source
    if source.background is not None:
        return read_group(source.background, own, options=request.reading, clean=request.cleaning)
    for name, part in named.items():
        if name not in read and isinstance(part, RawRecords):
            records = Records.from_raw(part, request.cleaning).presences
            read[name] = Positions(records.lon, records.lat)
    parts = [positions for name, positions in read.items() if name != own and len(positions)]
    if not parts:
        return None
    lon, lat = (np.concatenate([getattr(p, axis) for p in parts]) for axis in ("lon", "lat"))
    return Positions(lon, lat)


def _covariates_alone(request: MapRequest) -> bool:
    """Whether the user's rasters are fitted to by themselves: some of them is no variable of the bundled models."""
    rasters = request.sampling.environment
    if not rasters or request.index is not None or rasters[0].partition("#")[0] == "approximate":
        return False
    return not names_known_variables(rasters)


def _from_file(request: MapRequest) -> tuple[Model, list[FittedSpecies]]:
    """A fit made before, with the model it was made with."""
    given = request.source.fitted
    fitted = given if isinstance(given, Fitted) else Fitted.open(given)
    name = request.query.species[0] if request.query.species else fitted.info.species or "species"
    model = _model_of_fit(fitted, request)
    resolution = None
    if model.dim:
        try:
            resolution = model.resolve(name)
        except SpeciesNameError:
            resolution = None
    known = resolution if resolution is not None and resolution.known else _unknown(name)
    return model, [FittedSpecies(known, fitted)]


def _model_of_fit(fitted: Fitted, request: MapRequest) -> Model:
    info = fitted.info
    if info.features == "covariates":
        if not request.sampling.environment:
            names = ", ".join(fitted.covariates.names[:5])
            raise RecordsError(f"the fit needs the covariates {names}; give their rasters with --environment.")
        model = CovariateModel.of_rasters(request.sampling.environment, request.fitting.categorical)
        return model
    ref = request.model
    opened: Model | None
    if ref.model is not None:
        opened = open_model(ref.model, cache_dir=ref.cache_dir, offline=ref.offline)
    else:
        opened = next((m for m in list_models() if m.digest == info.model_digest), None)
    if opened is None or opened.digest != info.model_digest:
        raise ModelError(
            f"the fit was made with model {info.model!r} ({info.model_digest}), which is not the one given or bundled "
            "here; give its folder with --model, or fit the records again."
        )
    return opened

"""A training recipe: everything that decides what comes out, in one TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from math import isfinite
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

from sdm.errors import RequestError
from sdm.training.binding import Binding
from sdm.training.bounds import broken
from sdm.training.splits import check_split
from sdm.training.trainer import Settings

MODALITIES = ("location", "satellite", "environment")


@dataclass(frozen=True)
class SourceData:
    """What every `[[data.source]]` may say."""

    kind: ClassVar[str] = ""
    path: str
    """File or folder, relative to where the command is run."""
    name: str = ""
    """What tables call it; the kind, if not given."""
    share: float = 1.0
    """Of the places in a batch, relative to the other sources."""
    weight: float = 1.0
    """Of its labels in the loss."""
    group: str = ""
    """The group of species (column `group` of taxa.csv) about which nothing is known outside the source's box."""
    every_month: bool = False
    """Whether labels that know no season hold in each month, in a seasonal model; else only for the whole year."""


@dataclass(frozen=True)
class RangesData(SourceData):
    """Presence on an equal-area raster: a folder of rasters `Genus_epithet.tif`, or PHYLACINE packed."""

    kind: ClassVar[str] = "ranges"
    points_per_cell: int = 12
    """Places drawn in each cell of land, once."""
    points_per_cell_sea: int = 4
    land_share: float = 0.6
    """Of the places in a batch from this source, how many are in cells of land."""


@dataclass(frozen=True)
class PolygonsData(SourceData):
    """Range polygons; label the places of other sources in their box."""

    kind: ClassVar[str] = "polygons"
    species: str = "species"
    """Column of the names."""
    points: int = 0
    """Places of its own, random land in its box."""
    points_per_cell: int = 0
    """Places drawn in each cell of land of a raster source within the box, where that is more."""
    cell_weight: float = 1.0
    """How much likelier such a cell is drawn than others."""


@dataclass(frozen=True)
class ProbabilitiesData(SourceData):
    """Another model's output: an .npz of species, lonlat, place, month, and rows of probabilities (CSR)."""

    kind: ClassVar[str] = "probabilities"


@dataclass(frozen=True)
class RecordsData(SourceData):
    """What tables of records have in common: .csv[.gz], .tsv, .parquet, or a vector file of points."""

    species: str = "species"
    """Column of the names."""
    taxon: str = ""
    """The species of all rows, for a table without such a column."""
    lon: str = ""
    lat: str = ""
    """Columns of the position; by default lon, longitude, decimalLongitude, x and the like."""
    crs: str = "EPSG:4326"
    """Of these columns; a vector file brings its own."""
    presence: str = ""
    """Column of 1 (present) and 0."""
    month: str = ""
    """Column of the month, 1 to 12."""
    columns: dict = field(default_factory=dict)
    """{column: species}, for a table with a column of 0 and 1 per species."""
    thin: float = 0.0
    """Degrees; records in one square of this size are drawn together as often as one alone."""


@dataclass(frozen=True)
class SurveysData(RecordsData):
    """Plots: a row for each species found in one; the other species of the table are absent there."""

    kind: ClassVar[str] = "surveys"
    min_records: int = 1
    """Species found less often are left out."""


@dataclass(frozen=True)
class OccurrencesData(RecordsData):
    """Records of presence, with a background."""

    kind: ClassVar[str] = "occurrences"
    background: str = "land"
    """land (random land around the records), target-group (records of the other species), file (rows of presence 0)."""
    background_places: int = 0
    """For land: how many; 0: as many as records, at least 1000."""
    background_share: float = 0.5
    """Of the places drawn from this source, how many are background."""
    margin: float = 5.0
    """Degrees around the box of the records in which land is background."""


KINDS = {k.kind: k for k in (RangesData, PolygonsData, ProbabilitiesData, SurveysData, OccurrencesData)}


@dataclass(frozen=True)
class Data:
    """What is learned from: the sources, in the order of their species."""

    source: tuple[SourceData, ...] = ()


@dataclass(frozen=True)
class LocationSize:
    """Of `sdm.models.encoders.location`."""

    sigmas: tuple[float, ...] = (1.0, 4.0, 10.0)
    features: int = 128
    width: int = 512
    depth: int = 3
    pitch: float = 0.25
    """Degrees of the lattice on which a map encodes, and between whose points it interpolates."""
    season: bool = False


@dataclass(frozen=True)
class SatelliteSize:
    """Of `sdm.models.encoders.satellite`; a crop has `size` x `size` pixels of `pixel` degrees."""

    size: int = 16
    pixel: float = 1 / 15
    width: int = 128
    depth: int = 2
    pitch: float = 0.25


@dataclass(frozen=True)
class EnvironmentSize:
    """Of `sdm.models.encoders.environment`."""

    width: int = 256
    depth: int = 2
    pitch: float = 0.2
    around_km: tuple[int, ...] = (100, 300)


SIZES = {"location": LocationSize, "satellite": SatelliteSize, "environment": EnvironmentSize}


@dataclass(frozen=True)
class Architecture:
    """Sizes of the encoders: tables as SIZES has them, those of the bundled models where a recipe says nothing."""

    dim: int = 256
    location: dict = field(default_factory=dict)
    satellite: dict = field(default_factory=dict)
    environment: dict = field(default_factory=dict)


@dataclass(frozen=True)
class ObjectiveData:
    """What is asked of the weights: the range loss and its dropouts."""

    species_dropout: float = 0.1
    """Share of species that a step knows without their own vector, by their genus, family, order and class."""
    genus_dropout: float = 0.2
    """Share of those that it knows without the vector of the genus, too."""
    subset_shares: dict = field(default_factory=dict)
    """Share of places scored by each set of modalities, e.g. {"location" = 0.1}; the rest by all."""
    dropout: float = 0.0
    """Inside the location encoder."""
    env_dropout: float = 0.0
    """Inside the environment and satellite encoders."""
    start_scale: float = 20.0
    start_bias: float = -6.0
    """Of sigmoid(scale * cosine + bias), both learned."""
    max_scale: float = 100.0
    places_per_cell: int = 1
    """Places of one raster cell that are drawn together, for the pooled loss."""
    pool: float = 0.0
    """Share of the pooled loss (presence is known of the cell, not of the place); 0: none."""
    initial: str = ""
    """Model folder or run folder to start from; empty: random weights."""
    locked: tuple[str, ...] = ()
    """Encoders that keep the weights they start with: location, satellite, environment, text."""


@dataclass(frozen=True)
class Optimiser(Settings):
    """How the weights are found: the trainer's settings and the rates."""

    learning_rate: float = 2e-3
    text_learning_rate: float = 5e-3
    weight_decay: float = 1e-2
    text_weight_decay: float = 1e-4


@dataclass(frozen=True)
class Evaluation:
    """What is held out while developing; see `sdm.training.splits`."""

    split: str = "blocks"
    """blocks, continents, climate or species."""
    block_degrees: float = 10.0
    held_out: float = 0.2
    """Share of the blocks, or of the species."""
    continents: tuple[str, ...] = ()
    """Those held out: africa, antarctica, asia, australia, europe, north-america, south-america."""
    climate: tuple[str, ...] = ()
    """Held out: the main classes of Koeppen, A to E, or a tail of `held_out` of the land: hot, cold, wet, dry."""
    seed: int = 7
    min_cells: int = 5
    """Held-out places that a species must have to be scored."""
    max_places: int = 20000
    """Held-out places scored per source."""
    calibrate: tuple[str, ...] = ()
    """Names of the sources whose labels the calibration is fitted on; by default the first."""


@dataclass(frozen=True)
class Recipe:
    """One recipe file, checked."""

    name: str
    title: str
    version: str
    licence: str
    data: Data
    architecture: Architecture
    objective: ObjectiveData
    optimiser: Optimiser
    evaluation: Evaluation
    path: Path
    binding: Binding | None = None
    """[binding]: pairs of modalities instead of the range objective."""
    ranges: str = ""
    """What the model takes for the range of a species, a clause for its users; empty: maps of 96 km cells."""

    @classmethod
    def read(cls, path: str | Path) -> Recipe:
        """Read and check a recipe. Raises RequestError naming the key that is wrong, and those known."""
        path = Path(path)
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise RequestError(f"recipe {str(path)!r} cannot be read: {error.strerror}.") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RequestError(f"recipe {str(path)!r} is not valid TOML: {error}.") from error
        return _recipe(path, raw)


def _recipe(path: Path, raw: dict) -> Recipe:
    sections = {
        "architecture": Architecture, "objective": ObjectiveData, "optimiser": Optimiser, "evaluation": Evaluation,
    }  # fmt: skip
    texts = ("name", "title", "version", "licence")
    if "binding" in raw:
        sections["binding"] = Binding
    _refuse_unknown(path, "", raw, {*texts, "ranges", "data", "binding", *sections})
    values: dict = {"path": path}
    for key in texts:
        if not isinstance(raw.get(key), str):
            raise RequestError(f"recipe {str(path)!r} needs the text {key!r} at its top.")
        values[key] = raw[key]
    check_name(path, values["name"])
    if not "".join(values[k] for k in texts).isprintable():
        raise RequestError(f"recipe {str(path)!r}: title, version and licence must each be one line.")
    values["ranges"] = _typed(path, "the top ranges", raw.get("ranges", ""), str)
    values["data"] = Data(_sources(path, _is_table(path, "data", raw.get("data", {}))))
    for key, kind in sections.items():
        values[key] = _section(path, f"[{key}]", _is_table(path, key, raw.get(key, {})), kind)
    sizes = {part: _sizes(path, part, getattr(values["architecture"], part)) for part in SIZES}
    values["architecture"] = replace(values["architecture"], **sizes)
    recipe = Recipe(**values)
    _check(recipe)
    return recipe


def _sizes(path: Path, part: str, raw: dict) -> dict:
    """A table of [architecture], checked and complete; what is not for every model is there only where it is said."""
    whole = asdict(_section(path, f"[architecture] {part}", raw, SIZES[part]))
    lists = {k: list(v) if isinstance(v, tuple) else v for k, v in whole.items()}
    return {k: v for k, v in lists.items() if k in raw or k not in ("season", "around_km")}


def _sources(path: Path, raw: dict) -> tuple[SourceData, ...]:
    _refuse_unknown(path, "[data]", raw, {"source"})
    entries = raw.get("source", [])
    if not isinstance(entries, list) or not entries or not all(isinstance(e, dict) for e in entries):
        raise RequestError(f"recipe {str(path)!r} needs at least one [[data.source]] with a kind and a path.")
    sources: list[SourceData] = []
    for number, entry in enumerate(entries, 1):
        place = f"[[data.source]] number {number}"
        kind = KINDS.get(str(entry.get("kind")))
        if kind is None:
            raise RequestError(
                f"recipe {str(path)!r}: {place} has the kind {entry.get('kind')!r}; known: {', '.join(KINDS)}."
            )
        values = {"name": kind.kind, **{k: v for k, v in entry.items() if k != "kind"}}
        source = _section(path, f"{place} ({kind.kind})", values, kind)
        if not source.name.strip() or not source.name.isprintable():
            raise RequestError(f"recipe {str(path)!r}: {place} has the name {source.name!r}; give it one of letters.")
        if source.name in [s.name for s in sources]:
            raise RequestError(
                f"recipe {str(path)!r}: two sources are called {source.name!r}; give each of them its own name."
            )
        sources.append(source)
    return tuple(sources)


def _section(path: Path, place: str, raw: dict, kind: type) -> Any:
    types = get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}
    _refuse_unknown(path, place, raw, set(known))
    values = {}
    for key, value in raw.items():
        values[key] = found = _typed(path, f"{place} {key}", value, types[key])
        for number in found if isinstance(found, tuple) else (found,):
            if isinstance(number, int | float) and (rule := broken(key, number)):
                raise RequestError(f"recipe {str(path)!r}: {place} {key} = {value!r} must be {rule}.")
    for key, item in known.items():
        if key not in values and item.default is MISSING and item.default_factory is MISSING:
            raise RequestError(f"recipe {str(path)!r}: {place} needs the key {key!r}.")
    return kind(**values)


def _typed(path: Path, place: str, value: Any, wanted: Any) -> Any:
    """A value of the type of its key. TOML's whole numbers do for any number, its lists for tuples."""
    origin = get_origin(wanted) or wanted
    if origin is tuple and isinstance(value, list):
        inner, *more = get_args(wanted)
        if more and more[-1] is not Ellipsis and len(value) != 1 + len(more):
            raise RequestError(f"recipe {str(path)!r}: {place} = {value!r} must be a list of {1 + len(more)}.")
        return tuple(_typed(path, place, v, inner) for v in value)
    if isinstance(value, float) and not isfinite(value):
        raise RequestError(f"recipe {str(path)!r}: {place} = {value!r} must be a finite number.")
    if origin is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    allowed = get_args(wanted) if isinstance(wanted, UnionType) else origin
    if not isinstance(value, allowed) or (isinstance(value, bool) and origin is not bool):
        names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", dict: "a table"}
        raise RequestError(f"recipe {str(path)!r}: {place} = {value!r} must be {names.get(origin, 'a list')}.")
    return value


def _is_table(path: Path, key: str, value: Any) -> dict:
    if not isinstance(value, dict):
        raise RequestError(f"recipe {str(path)!r}: {key!r} must be a table, [{key}].")
    return value


def _refuse_unknown(path: Path, place: str, raw: dict, known: set[str]) -> None:
    unknown = sorted(set(raw) - known)
    if unknown:
        names = ", ".join(sorted(known))
        raise RequestError(
            f"recipe {str(path)!r}: {place or 'the top'} has the unknown key {unknown[0]!r}; known: {names}."
        )


def check_sections(path: Path, optimiser: Settings, binding: Binding | None) -> None:
    """Refuse values of [optimiser] and [binding] that cannot be, in either kind of recipe."""
    with _of(path, "optimiser"):
        optimiser.check()
        if binding and optimiser.batch < 2:
            raise RequestError("batch is 1, which leaves nothing to tell a pair from; give 2 or more.")
    with _of(path, "binding"):
        if binding:
            binding.check()


def check_name(path: Path, name: str) -> None:
    """Refuse a name that is no plain file name: folders are called after it."""
    if not name.isprintable() or set(name) & set("/\\:") or not name.strip(". "):
        raise RequestError(f"recipe {str(path)!r}: name = {name!r} must be a plain file name.")


@contextmanager
def _of(path: Path, section: str) -> Iterator[None]:
    """Within: a RequestError says which section of which recipe it is about."""
    try:
        yield
    except RequestError as error:
        raise RequestError(f"recipe {str(path)!r}: [{section}] {error}") from None


def _check(recipe: Recipe) -> None:
    """Refuse values of the right type that cannot be."""
    path, o = recipe.path, recipe.objective
    for name in (*o.subset_shares, *o.locked):
        known = (*MODALITIES, "text") if name in o.locked else MODALITIES
        parts = name.split("+")
        if set(parts) - set(known) or len(set(parts)) < len(parts):
            raise RequestError(
                f"recipe {str(path)!r}: [objective] names {name!r}; known: {', '.join(known)}, each once."
            )
    shares = list(o.subset_shares.values())
    if any(not isinstance(v, int | float) or not 0 <= v <= 1 for v in shares) or sum(shares) > 1 + 1e-9:
        raise RequestError(f"recipe {str(path)!r}: [objective] subset_shares must be 0 or more and sum to at most 1.")
    if o.locked and not o.initial:
        raise RequestError(
            f"recipe {str(path)!r}: [objective] locked encoders need the model to start from, initial = a folder."
        )
    if set(o.locked) >= {*MODALITIES, "text"}:
        raise RequestError(f"recipe {str(path)!r}: [objective] locks every encoder, so nothing would be trained.")
    if not 0 <= o.pool <= 1 or o.places_per_cell < 1 or (o.pool > 0 and o.places_per_cell < 2):
        raise RequestError(
            f"recipe {str(path)!r}: [objective] pool must lie in 0..1, and above 0 needs places_per_cell of 2 or more."
        )
    if o.max_scale < o.start_scale:
        raise RequestError(f"recipe {str(path)!r}: [objective] max_scale {o.max_scale:g} is below start_scale.")
    e = recipe.evaluation
    check_sections(path, recipe.optimiser, recipe.binding)
    with _of(path, "evaluation"):
        check_split(e.split, e.continents, e.climate)
    for source in recipe.data.source:
        if isinstance(source, OccurrencesData) and source.background not in ("land", "target-group", "file"):
            raise RequestError(
                f"recipe {str(path)!r}: source {source.name!r} has the background {source.background!r}; "
                "known: land, target-group, file."
            )
        if isinstance(source, OccurrencesData) and source.background == "file" and not source.presence:
            raise RequestError(
                f"recipe {str(path)!r}: source {source.name!r} with background = 'file' needs presence, the column "
                "of 1 and 0."
            )
        if isinstance(source, RangesData) and source.share and not source.points_per_cell:
            raise RequestError(
                f"recipe {str(path)!r}: source {source.name!r} draws no place on land; give points_per_cell 1 or more, "
                "or share = 0 to label the places of others only."
            )
    if not any(source.weight for source in recipe.data.source) and not recipe.binding:
        raise RequestError(f"recipe {str(path)!r}: every source has weight 0, so nothing would be learned.")
    names = [s.name for s in recipe.data.source]
    for name in recipe.evaluation.calibrate:
        if name not in names:
            raise RequestError(
                f"recipe {str(path)!r}: [evaluation] calibrate names {name!r}; the sources are {', '.join(names)}."
            )

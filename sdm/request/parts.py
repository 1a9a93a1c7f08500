"""The options of a map, an index and a run, in groups; all of them by the names that users give them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from sdm.errors import RequestError, SpeciesNameError
from sdm.request.box import BBox
from sdm.request.choices import (
    ATLAS,
    ENCODINGS,
    LAND_SHARE,
    LIMITS,
    MASKS,
    MASKS_OF_A_MAP,
    ORIGINS,
    SCORES,
    UNCOVERED,
    USUAL_FORMATS,
    parse_device,
    parse_formats,
    parse_modalities,
    parse_word,
)
from sdm.request.months import parse_month
from sdm.request.options import Composed, Option, Options, several, whole_number
from sdm.request.ranges import RangeRule
from sdm.request.records import CleanOptions, FitOptions, ReadOptions, RecordsSource

EVIDENCE = "Other evidence (needs --model taxabind)"
LIST = "Lists of species"
FILE_ENDINGS = (".tif", ".tiff", ".zarr", ".html", ".json", ".nc", ".png", ".qml", ".csv", ".gpkg", ".zip")
"""Of names that a folder of outputs hardly has."""
STEPS = (1, 64)
"""Pixels between encoded places: least and most."""
EXCLUSIVE = (
    ({"bbox"}, {"region"}),
    ({"species"}, {"species_file"}, {"records", "gbif", "fitted"}),
    ({"threads", "workers"}, {"scheduler_address"}),
    ({"step"}, {"satellite_step"}),
    ({"records"}, {"gbif"}, {"fitted"}),
)
"""Sets of options that exclude each other: one on the command line replaces the others of a --config file."""

MONTH = Option(
    "Month of a seasonal model, for example 5 or May. Default: the whole year.",
    panel="Model",
    metavar="1..12|NAME",
    kind=str,
)


@dataclass(frozen=True, kw_only=True)
class Area(Options):
    """The area of a map, its CRS, pixels and tiles."""

    bbox: Annotated[
        Any,
        Option(
            "Box in degrees; west > east crosses the antimeridian.",
            panel="Where",
            metavar="WEST SOUTH EAST NORTH",
            kind=tuple[float, float, float, float],
        ),
    ] = None
    """A `BBox`, or None. Given as (west, south, east, north) in degrees."""
    region: Annotated[
        Any,
        Option(
            "Vector file; its extent is mapped and pixels outside its polygons are masked.",
            panel="Where",
            metavar="FILE",
            kind=str,
        ),
    ] = None
    """A vector file, a GeoDataFrame, or a WGS84 geometry (lon, lat)."""
    layer: Annotated[
        str | None,
        Option("Layer of --region. Default: the only one with polygons.", panel="Where", metavar="NAME"),
    ] = None
    where: Annotated[
        str | None,
        Option(
            "Only the features of --region that meet a condition, such as \"NAME = 'Jura'\".",
            panel="Where",
            metavar="CONDITION",
        ),
    ] = None
    crs: Annotated[str | int | None, Option("CRS of the map. Default: EPSG:4326.", panel="Where", kind=str)] = None
    resolution: Annotated[
        float | None,
        Option("Pixel size in CRS units. Default: a round number giving about a megapixel.", panel="Where"),
    ] = None
    tile_size: Annotated[
        int,
        Option("Tile side in pixels, also the Zarr chunk size. Fixed by the index with --index.", panel="Running"),
    ] = 256
    max_pixels: Annotated[int, Option("Refuse larger maps.", panel="Running", low=1)] = 100_000_000

    def __post_init__(self) -> None:
        whole_number("tile_size", self.tile_size)
        whole_number("max_pixels", self.max_pixels)
        self._set(bbox=None if self.bbox is None else BBox.of(self.bbox))
        for name in ("layer", "where"):
            if getattr(self, name) is not None and self.region is None:
                raise RequestError(f"{name} chooses from the file of a region, but no region is given; add --region.")


@dataclass(frozen=True, kw_only=True)
class Sampling(Options):
    """The pixels that are shown, the modalities that are encoded, their spacing and their layers."""

    modalities: Annotated[
        Any, Option("Any of location, satellite, environment. Default: all.", panel="Model", kind=str)
    ] = None
    """A tuple of modalities; None: all that are available."""
    month: Annotated[Any, MONTH] = None
    """1 to 12; None: the whole year."""
    satellite: Annotated[
        str | None, Option("RGB raster in place of the bundled mosaic.", panel="Model", metavar="FILE")
    ] = None
    environment: Annotated[
        tuple[str, ...],
        Option(
            "Rasters in place of bundled variables (bio1, elevation, ...). Repeatable.",
            panel="Model",
            metavar="FILE|FOLDER",
        ),
    ] = ()
    land_share: Annotated[
        float | None,
        Option(
            "Share of a pixel that must be land for a map of land to show it; for a map of the sea, sea or lake. "
            f"Default: {LAND_SHARE:g}.",
            panel="Where",
            low=0.0,
            high=1.0,
        ),
    ] = None
    uncovered: Annotated[
        str | None,
        Option(
            "show or hide pixels where the model has no reliable training data. Default: show.",
            panel="Where",
        ),
    ] = None
    clamp: Annotated[
        bool,
        Option(
            "Limit the values of your rasters (--environment) to the range that the model, or the fit, was trained on.",
            panel="Model",
        ),
    ] = False
    step: Annotated[
        int | None,
        Option(
            "Encode every n-th pixel in all modalities (1: every pixel). Default: the spacing set by the model.",
            panel="Model",
        ),
    ] = None
    satellite_step: Annotated[
        int | None, Option("Encode imagery at every n-th pixel, and interpolate between.", panel="Model")
    ] = None

    def __post_init__(self) -> None:
        for name in ("step", "satellite_step"):
            if getattr(self, name) is not None:
                whole_number(name, getattr(self, name), *STEPS, " pixels")
        if self.uncovered is not None:
            parse_word("uncovered", self.uncovered, UNCOVERED)
        if self.step is not None and self.satellite_step is not None:
            raise RequestError("step and satellite_step are both given; give only one of them.")
        self._set(
            modalities=None if self.modalities is None else parse_modalities(self.modalities),
            month=parse_month(self.month) or None,
            satellite=None if self.satellite is None else str(self.satellite),
            environment=several(self.environment),
        )


@dataclass(frozen=True, kw_only=True)
class Query(Options):
    """The species and other evidence, the mask and the score of a map."""

    species: Annotated[tuple[str, ...], Option("Scientific or common names, each in quotes.", argument=True)] = ()
    photo: Annotated[
        tuple[str, ...],
        Option(
            "Photo of the species. Repeatable; photos are averaged and added to the name, if one is given.",
            panel=EVIDENCE,
            metavar="FILE",
        ),
    ] = ()
    audio: Annotated[
        tuple[str, ...], Option("Sound recording of the species. Repeatable.", panel=EVIDENCE, metavar="FILE")
    ] = ()
    text: Annotated[
        tuple[str, ...],
        Option('Free text, such as "alpine meadow with grazing ungulates". Repeatable.', panel=EVIDENCE),
    ] = ()
    embedding: Annotated[
        str | None,
        Option(
            "Vectors in the model's embedding space (.npy, .npz, .pt, .safetensors, .parquet); FILE#key selects one.",
            panel=EVIDENCE,
            metavar="FILE",
        ),
    ] = None
    as_group: Annotated[
        bool,
        Option(
            "Map a species that the model does not know as its genus or family. Default: refuse it; in a list, leave "
            "it out.",
            panel="Model",
        ),
    ] = False
    origin: Annotated[
        str,
        Option("native: the native range; all: also where people introduced the species.", panel="Model"),
    ] = "native"
    compare_with: Annotated[
        tuple[str, ...],
        Option(
            "Also map another climate, and the change from it to that of --environment: current (the bundled layers) "
            "or rasters. Writes NAME-current.tif and NAME-change.tif. Repeatable.",
            panel="Model",
            metavar="current|FILE|FOLDER",
        ),
    ] = ()
    atlas: Annotated[
        str,
        Option(
            "prior: species with small ranges are mapped with their known range in the model's atlas; none: by their "
            "vectors alone.",
            panel="Model",
        ),
    ] = "prior"
    mask: Annotated[str, Option("land, sea, none, or auto (by the species' habitat).", panel="Where")] = "auto"
    limits: Annotated[
        str,
        Option(
            "auto: lower probabilities far from water (animals of the shore), on large islands without a cell of the "
            "range, and in winter quarters while the bird breeds. none: as the model has them.",
            panel="Where",
        ),
    ] = "auto"
    score: Annotated[
        str,
        Option(
            "probability, relative (share of the world's land that scores lower), cosine, or auto: the first of these "
            "that the model supports.",
            panel="Model",
        ),
    ] = "auto"

    def __post_init__(self) -> None:
        try:
            species = (self.species,) if isinstance(self.species, str) else tuple(self.species)
        except TypeError:
            raise RequestError(f"species {self.species!r} is not a list.") from None
        if not all(isinstance(name, str) for name in species):
            raise SpeciesNameError(f"species {list(species)!r} must be names, given as text.")
        self._set(
            species=species,
            photo=several(self.photo),
            audio=several(self.audio),
            text=several(self.text),
            embedding=None if self.embedding is None else str(self.embedding),
            compare_with=several(self.compare_with),
        )
        if any(not text.strip() for text in self.text):
            raise RequestError("--text is empty; describe the species or its habitat, or omit --text.")
        parse_word("origin", self.origin, ORIGINS)
        parse_word("atlas", self.atlas, ATLAS)
        parse_word("mask", self.mask, MASKS_OF_A_MAP)
        parse_word("limits", self.limits, LIMITS)
        parse_word("score", self.score, SCORES)

    @property
    def evidence(self) -> tuple[str, ...]:
        """The evidence given besides a name, in words: "photo bear.jpg", "text 'alpine meadow'"."""
        words = [f"photo {Path(p).name}" for p in self.photo] + [f"sound {Path(p).name}" for p in self.audio]
        words += [f"text {t.strip()!r}" for t in self.text]
        return (*words, *((f"vector {Path(self.embedding).name}",) if self.embedding else ()))


@dataclass(frozen=True, kw_only=True)
class ModelRef(Options):
    """The model, its cache and whether it may be downloaded."""

    model: Annotated[
        Any,
        Option("Default: the bundled model that knows the species.", panel="Model", metavar="NAME|FOLDER", kind=str),
    ] = None
    """Name, folder or hf:// address, or an opened model; None: the bundled one that knows the species."""
    cache_dir: Annotated[str | None, Option("Where fetched models are kept.", panel="Model", metavar="DIR")] = None
    offline: Annotated[bool, Option("Do not download models; use only those already on disk.", panel="Model")] = False


@dataclass(frozen=True, kw_only=True)
class MapRequest(Composed):
    """A map, or several of one area."""

    query: Query = Query()
    area: Area = Area()
    sampling: Sampling = Sampling()
    model: ModelRef = ModelRef()
    source: RecordsSource = field(default_factory=RecordsSource)
    reading: ReadOptions = field(default_factory=ReadOptions)
    cleaning: CleanOptions = field(default_factory=CleanOptions)
    fitting: FitOptions = field(default_factory=FitOptions)
    index: Annotated[
        Any,
        Option(
            "Region index made by `sdm index build`, used instead of encoding. Without a box or region the whole index "
            "is mapped.",
            panel="Where",
            metavar="FOLDER|URL",
            kind=str,
        ),
    ] = None
    """A region index, its path or its URL, that holds the embeddings of the area."""

    parts: ClassVar[dict[str, type[Options]]] = {
        "query": Query,
        "area": Area,
        "sampling": Sampling,
        "model": ModelRef,
        "source": RecordsSource,
        "reading": ReadOptions,
        "cleaning": CleanOptions,
        "fitting": FitOptions,
    }


MAX_WAIT_S = 30 * 86400.0


@dataclass(frozen=True, kw_only=True)
class Execution(Options):
    """The device, threads, workers or cluster that compute the tiles."""

    device: Annotated[str, Option("auto, cpu, cuda or cuda:N.", panel="Running")] = "auto"
    threads: Annotated[
        int | None,
        Option(
            "Tiles computed at the same time by threads of this process (default: one per processor); with --workers, "
            "by each worker.",
            panel="Running",
            low=1,
            high=1024,
        ),
    ] = None
    workers: Annotated[
        int | None,
        Option(
            "Worker processes on this machine, one tile at a time each. With GPUs, use one per GPU. Default: none.",
            panel="Running",
            low=1,
            high=1024,
        ),
    ] = None
    scheduler_address: Annotated[
        str | Path | None,
        Option(
            "Compute on a running Dask cluster: tcp://HOST:PORT, tls://HOST:PORT or its scheduler file.",
            panel="Running",
            metavar="ADDRESS|FILE.json",
            kind=str,
        ),
    ] = None

    worker_wait: Annotated[
        float,
        Option(
            "Seconds to wait while a cluster has no worker; then the run ends with exit code 8.",
            panel="Running",
            metavar="SECONDS",
        ),
    ] = 120.0

    def __post_init__(self) -> None:
        parse_device(self.device)
        if not 0.0 < self.worker_wait <= MAX_WAIT_S:
            raise RequestError(
                f"worker_wait {self.worker_wait:g} must be above 0 and at most {MAX_WAIT_S:g} seconds (30 days)."
            )
        for name in ("threads", "workers"):
            if getattr(self, name) is not None:
                whole_number(name, getattr(self, name), 1, 1024)
        if self.scheduler_address is not None and (self.workers is not None or self.threads is not None):
            raise RequestError(
                "scheduler_address uses a running cluster, whose workers and threads are already set; "
                "omit workers and threads."
            )


@dataclass(frozen=True, kw_only=True)
class Delivery(Options):
    """The output folder and formats."""

    out: Annotated[str | Path, Option("Output folder.", panel="Output", metavar="DIR", kind=str)] = "maps"
    formats: Annotated[
        Any,
        Option(
            "Any of cog, zarr, html, zarr3 (Zarr format 3 with GeoZarr conventions), stac (a STAC item of each map). "
            "Default: cog,zarr,html; with --species only zarr, which is always written.",
            panel="Output",
            flags=("--format",),
            kind=str,
        ),
    ] = None
    """A tuple of formats; None: those usual for what is written."""
    range: Annotated[
        Any,
        Option(
            "Also write the range, as a raster of 1 and 0 and as polygons. RULE: a number such as 0.5, precision=P, "
            "recall=R, area (as large as the expected area); for fits to records also mtp, p10, max-tss, equal "
            "(equal-sensitivity-specificity).",
            panel="Output",
            metavar="RULE",
            kind=str,
        ),
    ] = None
    """A `RangeRule`, or what it can be parsed from."""
    overwrite: Annotated[
        bool,
        Option(
            "Replace existing outputs, and unfinished ones of another request.",
            panel="Output",
        ),
    ] = False

    def __post_init__(self) -> None:
        self._set(
            formats=None if self.formats is None else parse_formats(self.formats),
            range=None if self.range is None else RangeRule.parse(self.range),
        )
        out = Path(self.out)
        if out.suffix.lower() in FILE_ENDINGS and not out.is_dir():
            raise RequestError(
                f"out {str(out)!r} is the name of a file, but outputs go into a folder, each under the name of its "
                f"species; give a folder, for example {str(out.with_suffix(''))!r}."
            )

    def formats_or(self, usual: Sequence[str] = USUAL_FORMATS) -> tuple[str, ...]:
        """The formats asked for, or the usual ones."""
        return tuple(usual) if self.formats is None else self.formats


@dataclass(frozen=True, kw_only=True)
class ListOptions(Options):
    """A list of species in a file, and how its maps are summarised."""

    column: Annotated[
        str | None,
        Option(
            "Column with the names. Default: recognised by its name.",
            panel=LIST,
            metavar="NAME",
            flags=("--species-column",),
        ),
    ] = None
    strict: Annotated[
        bool,
        Option("Stop with an error if a name cannot be mapped, instead of skipping it.", panel=LIST),
    ] = False
    threshold: Annotated[float, Option("Probability above which the summary counts area.", panel=LIST)] = 0.5

    def __post_init__(self) -> None:
        try:
            self._set(threshold=float(self.threshold))
        except (TypeError, ValueError):
            raise RequestError(f"threshold {str(self.threshold)[:40]!r} is not a number.") from None
        if not 0.0 < self.threshold < 1.0:
            raise RequestError(f"threshold {self.threshold:g} must lie between 0 and 1.")


@dataclass(frozen=True, kw_only=True)
class Storage(Options):
    """The mask, number format and embeddings of an index."""

    mask: Annotated[
        str,
        Option("Pixels to encode: land, sea, or none for both. Species that live elsewhere cannot be mapped with it."),
    ] = "land"
    encoding: Annotated[str, Option("int8, or float16: about three times as large, and nearly exact.")] = "int8"
    each: Annotated[bool, Option("Also store the embedding of each modality separately.")] = False

    def __post_init__(self) -> None:
        parse_word("mask", self.mask, MASKS)
        parse_word("encoding", self.encoding, ENCODINGS)


@dataclass(frozen=True, kw_only=True)
class IndexRequest(Composed):
    """A region index."""

    area: Area = Area(max_pixels=1_000_000_000)
    sampling: Sampling = Sampling()
    model: ModelRef = ModelRef()
    storage: Storage = Storage()

    parts: ClassVar[dict[str, type[Options]]] = {
        "area": Area,
        "sampling": Sampling,
        "model": ModelRef,
        "storage": Storage,
    }

"""The other sections of a recipe: encoder sizes, objective, optimiser, pairwise binding, and what is held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sdm.errors import RequestError

SPLITS = ("blocks", "cells", "continents", "climate", "species")
CONTINENTS = ("africa", "antarctica", "asia", "australia", "europe", "north-america", "south-america")
KOEPPEN = ("A", "B", "C", "D", "E")
"""The main climate classes of Köppen and Geiger."""
TAILS = ("hot", "cold", "wet", "dry")
"""Ends of the distribution of annual temperature and rain over the land."""
SCHEDULES = ("one-cycle", "cosine-restarts", "constant")
PRECISIONS = ("bf16", "fp16", "float32")
LOSSES = ("infonce", "supcon", "location", "sigmoid", "range")
DEFAULT_LOSSES = {"location": "location", "environment": "location", "satellite": "supcon", "audio": "infonce"}
"""TaxaBind's loss by modality; "supcon" for others, since a species may well occur twice in a batch."""
DISTILLATIONS = ("cosine", "l2")
NEGATIVES = ("area", "degrees")
BALANCES = ("place", "species")


@dataclass(frozen=True)
class LocationSize:
    """Size of `sdm.models.encoders.location`."""

    sigmas: tuple[float, ...] = (1.0, 4.0, 10.0)
    features: int = 128
    width: int = 512
    depth: int = 3
    pitch: float = 0.5
    """Degrees between the lattice points at which a map encodes; values between them are interpolated."""
    season: bool = False


@dataclass(frozen=True)
class SatelliteSize:
    """Size of `sdm.models.encoders.satellite`; a crop has `size` x `size` pixels of `pixel` degrees."""

    size: int = 16
    pixel: float = 1 / 15
    width: int = 128
    depth: int = 2
    pitch: float = 0.2


@dataclass(frozen=True)
class EnvironmentSize:
    """Size of `sdm.models.encoders.environment`."""

    width: int = 256
    depth: int = 2
    pitch: float = 0.2
    around_km: tuple[int, ...] = (100, 300)


ENCODER_SIZES = {"location": LocationSize, "satellite": SatelliteSize, "environment": EnvironmentSize}


@dataclass(frozen=True)
class Architecture:
    """Encoder sizes: tables as in ENCODER_SIZES; what a recipe leaves out is as in the bundled models."""

    dim: int = 256
    location: dict = field(default_factory=dict)
    satellite: dict = field(default_factory=dict)
    environment: dict = field(default_factory=dict)


@dataclass(frozen=True)
class ObjectiveSettings:
    """The range loss, its dropouts, and the weights it starts from."""

    species_dropout: float = 0.1
    """Share of species that a step represents without their own vector, by genus, family, order and class."""
    genus_dropout: float = 0.2
    """Share of those that are represented without the vector of the genus, too."""
    subset_shares: dict = field(default_factory=dict)
    """Share of places scored by each set of modalities, e.g. {"location" = 0.1}; the rest by all."""
    dropout: float = 0.0
    """Inside the location encoder."""
    env_dropout: float = 0.0
    """Inside the environment and satellite encoders."""
    start_scale: float = 20.0
    """Initial scale of sigmoid(scale * cosine + bias); scale and bias are learned."""
    start_bias: float = -6.0
    """Initial bias, likewise."""
    max_scale: float = 100.0
    places_per_cell: int = 1
    """Places of one raster cell that are drawn together, for the pooled loss."""
    pool: float = 0.0
    """Share of the pooled loss (presence is known of the cell, not of the place); 0: none."""
    initial: str = ""
    """Model folder or run folder to start from; empty: random weights."""
    locked: tuple[str, ...] = ()
    """Encoders that keep their initial weights: location, satellite, environment, text."""


@dataclass(frozen=True)
class TrainerSettings:
    """How an objective is optimised."""

    steps: int = 2400
    batch: int = 1024
    """Over all processes together."""
    schedule: str = "one-cycle"
    """one-cycle (up over `warm_up`, then down to zero), cosine-restarts (a cosine from the peak rate to zero every
    `restart_every` steps), or constant. The peak rates are those of the objective's parameter groups."""
    warm_up: float = 0.1
    """Share of the steps."""
    restart_every: int = 0
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    clip: float = 1.0
    """Largest norm of the gradient; 0: not clipped."""
    ema: float = 0.995
    """Decay of the moving average of the weights, which is the result of a run; 0: the last weights."""
    precision: str = "bf16"
    """bf16 and fp16 run matrix products under autocast, fp16 with a scaled gradient and on GPUs only."""
    seed: int = 0
    checkpoint_every: int = 500
    validate_every: int = 0
    """Steps between calls of the trainer's `validate`; 0: never."""
    snapshot_every: int = 0
    """Steps between copies of the averaged weights that are kept, as snapshots/step-N.pt; 0: none."""

    def check(self, device: str | None = None) -> None:
        """Raise RequestError, naming the key, for an impossible value; on `device`, if it is known already."""
        if self.schedule not in SCHEDULES:
            raise RequestError(f"schedule {self.schedule!r} is not known; choose {', '.join(SCHEDULES)}.")
        if self.precision not in PRECISIONS:
            raise RequestError(f"precision {self.precision!r} is not known; choose {', '.join(PRECISIONS)}.")
        if self.precision == "fp16" and device is not None and not device.startswith("cuda"):
            raise RequestError(f"precision 'fp16' needs a GPU, not device {device!r}; choose bf16 or float32.")
        if self.schedule == "cosine-restarts" and self.restart_every < 1:
            raise RequestError("schedule 'cosine-restarts' needs restart_every, the steps of one period, 1 or more.")
        for key in ("steps", "batch", "checkpoint_every"):
            if getattr(self, key) < 1:
                raise RequestError(f"{key} is {getattr(self, key)}; it must be 1 or more.")
        if not 0.0 <= self.ema < 1.0:
            raise RequestError(f"ema is {self.ema}; it must be at least 0 and below 1.")
        if not 0.0 < self.warm_up < 1.0:
            raise RequestError(f"warm_up is {self.warm_up}, a share of the steps; it must lie between 0 and 1.")


@dataclass(frozen=True)
class OptimiserSettings(TrainerSettings):
    """The trainer's settings, and the learning rates of the parameter groups."""

    learning_rate: float = 2e-3
    text_learning_rate: float = 5e-3
    weight_decay: float = 1e-2
    text_weight_decay: float = 1e-4


@dataclass(frozen=True)
class BindingSettings:
    """[binding]: which modalities are aligned to which binding modality, and by which losses."""

    binding: str = "text"
    modalities: tuple[str, ...] = ()
    """Aligned to the binding one; () is all others of the space."""
    train: tuple[str, ...] = ()
    """Towers that learn; () is `modalities` (locked tuning). With the binding one too: full fine-tuning."""
    losses: dict = field(default_factory=dict)
    """By modality: infonce, supcon, location, sigmoid, or range (whole ranges instead of pairs; one side must be
    text). See DEFAULT_LOSSES."""
    balance: str = "place"
    """How observations are drawn: place (a place, then a species there) or species (a species, then a place)."""
    negatives: str = "area"
    """Random places of the location loss: uniform by area, or by degrees as in TaxaBind's code."""
    temperature: float = 0.07
    learn_temperature: bool = True
    location_weights: tuple[float, float] = (0.4, 0.6)
    """Of CE(anchor -> location) and CE(location -> anchor)."""
    sum_weight: float = 0.0
    """Weight of an additional loss, that of the normalised sum of all modalities against the binding one."""
    modality_dropout: float = 0.0
    """Probability that a modality is left out of that sum, per observation; at least one stays."""
    distil: float = 0.0
    """Weight of the distance to the embeddings before training, over the towers that learn."""
    distil_by: str = "cosine"
    """"cosine": 1 - cosine; "l2": squared distance before normalisation, over the mean squared length."""

    def check(self) -> None:
        """Raise RequestError for a value that is wrong for every space."""
        for key, known in (("balance", BALANCES), ("negatives", NEGATIVES), ("distil_by", DISTILLATIONS)):
            if getattr(self, key) not in known:
                raise RequestError(f"{key} {getattr(self, key)!r} is not known; choose {' or '.join(known)}.")
        for m, loss in self.losses.items():
            if loss not in LOSSES:
                raise RequestError(f"loss {loss!r} of {m} is not known; choose {', '.join(LOSSES)}.")
        if not any(self.location_weights):
            raise RequestError("location_weights are both 0, so the location loss would teach nothing.")


@dataclass(frozen=True)
class EvaluationSettings:
    """What is held out while developing; see `sdm.training.data.splits`."""

    split: str = "blocks"
    """blocks, cells, continents, climate or species."""
    block_degrees: float = 10.0
    held_out: float = 0.2
    """Share of the blocks, of the cells, or of the species."""
    continents: tuple[str, ...] = ()
    """Those held out: africa, antarctica, asia, australia, europe, north-america, south-america."""
    climate: tuple[str, ...] = ()
    """Held out: main classes of Köppen, A to E, or a tail of `held_out` of the land: hot, cold, wet, dry."""
    seed: int = 7
    min_cells: int = 5
    """Held-out places where a species must be present to be scored."""
    max_places: int = 20000
    """Held-out places scored per source."""
    calibrate: tuple[str, ...] = ()
    """Names of the sources whose labels the calibration is fitted on; by default the first."""
    edge_weight: float = 0.0
    """How often a held-out place near the edge of a range counts in the calibration, beside once as all others."""


def check_split(split: str, continents: Sequence[str], climate: Sequence[str]) -> None:
    """Raise RequestError for an unknown split, continent or climate, or for a split that lacks what it needs."""
    if split not in SPLITS:
        raise RequestError(f"split {split!r} is not known; choose {', '.join(SPLITS)}.")
    for what, given, known in (("continent", continents, CONTINENTS), ("climate", climate, (*KOEPPEN, *TAILS))):
        for name in given:
            if name not in known:
                raise RequestError(f"{what} {name!r} is not known; choose {', '.join(known)}.")
    if split == "continents" and not continents:
        raise RequestError(f"split 'continents' needs continents, those held out: {', '.join(CONTINENTS)}.")
    if split == "climate" and not climate:
        raise RequestError(f"split 'climate' needs climate, what is held out: {', '.join((*KOEPPEN, *TAILS))}.")

"""A model: its folder, its encoders, its names and its calibration.

A model folder holds `config.json` (architecture, inputs, calibration, domain), `model.safetensors`
(weights), `vocabulary.txt` (tokens of the text tower, one a line), `taxa.csv` (names) and a card,
`README.md`. Weights are safetensors only, and every key and shape must match: nothing in the
folder is executed.
"""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdm.errors import ModelError
from sdm.files.paths import folder as resource_folder
from sdm.models.config import FORMAT, calibration_key, check_config
from sdm.request.choices import MODALITIES

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from sdm.models.coverage import Coverage
    from sdm.names import Resolution, TaxonTable


BATCH = {"cpu": 512, "cuda": 65536}
"""Places per forward pass. Fixed per device: a matrix product of another shape may round differently.
On a CPU the activations of 512 places fit in its second-level cache, and little is lost to padding."""


DEFAULT = "mammals-trees"
"""The bundled model for what is made without any species: an index, for one."""


FILES = ("config.json", "model.safetensors", "vocabulary.txt", "taxa.csv")


@dataclass(frozen=True)
class Model:
    """An opened model folder; weights are read when first needed (`encoders`).

    Cheap to open and to compare (`digest`); torch is imported only by `encoders`.
    """

    folder: Path
    config: dict
    digest: str
    """sha256 over config, weights and vocabulary, first 16 hex digits."""

    @classmethod
    def open(cls, name_or_folder: str | Path) -> Model:
        """Open a bundled model by name, or any folder. Raises ModelError."""
        path = _find(name_or_folder)
        for name in FILES:
            if not (path / name).is_file():
                raise ModelError(
                    f"model folder {str(path)!r} has no {name}; a model needs config.json, "
                    "model.safetensors, vocabulary.txt and taxa.csv."
                )
        try:
            config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ModelError(f"model {str(path)!r}: config.json cannot be read: {error}") from error
        if not isinstance(config, dict) or config.get("format") != FORMAT:
            raise ModelError(f"model {str(path)!r}: config.json is not of the format {FORMAT!r}.")
        check_config(path, config)
        digest = hashlib.sha256()
        for name in ("config.json", "model.safetensors", "vocabulary.txt"):
            digest.update((path / name).read_bytes())
        return cls(path, config, digest.hexdigest()[:16])

    def __getstate__(self) -> dict:
        # The table of names stays at home: a tile task sent to a worker needs none of it.
        return {k: v for k, v in self.__dict__.items() if k != "taxa"}

    @property
    def name(self) -> str:
        """The model's name, as given to --model."""
        return self.config["name"]

    @property
    def dim(self) -> int:
        """Length of the embeddings."""
        return self.config["dim"]

    @property
    def title(self) -> str:
        """The model in a few words."""
        return str(self.config.get("title", ""))

    @property
    def version(self) -> str:
        """Its version, "" if it states none."""
        return str(self.config.get("version", ""))

    @property
    def licence(self) -> str:
        """Of the weights, "" if it states none."""
        return str(self.config.get("licence", ""))

    @property
    def calibrated(self) -> bool:
        """Whether a cosine can be turned into a probability."""
        return True

    @property
    def modalities(self) -> tuple[str, ...]:
        """What it can encode. Species are known by their names alone."""
        return MODALITIES

    @property
    def place_modalities(self) -> tuple[str, ...]:
        """Those of a place."""
        return MODALITIES

    @property
    def seasonal(self) -> bool:
        """Whether it can tell one month from another."""
        return self.config["location"].get("season", False)

    @property
    def ranges(self) -> str:
        """What it takes for the range of a species, as a clause without its point; "" if it does not say."""
        return str(self.config.get("ranges", ""))

    @cached_property
    def coverage(self) -> Coverage | None:
        """Where it had anything to learn from, None: everywhere. Raises ModelError for a malformed entry."""
        entry = self.config.get("coverage")
        if entry is None:
            return None
        from sdm.models.coverage import Coverage

        try:
            return Coverage.decode(entry)
        except ValueError as error:
            raise ModelError(f"model {self.name!r}: config.json: {error}.") from error

    def extent(self, group: str) -> tuple[float, float, float, float] | None:
        """(west, south, east, north) degrees where ranges of a group of species are known, None: everywhere."""
        entry = self.config.get("groups", {}).get(group) or {}
        return tuple(entry["extent"]) if entry.get("extent") else None

    def batch(self, modalities: Sequence[str], device: str) -> int:
        """Places per forward pass on a kind of device, "cpu" or "cuda"."""
        return BATCH[device]

    def resolve(self, query: str) -> Resolution:
        """What a name stands for. Raises SpeciesNameError."""
        return self.taxa.resolve(query)

    def files(self) -> list[dict[str, Any]]:
        """Path and bytes of the files it consists of."""
        return [{"path": str(p), "bytes": p.stat().st_size} for p in sorted(self.folder.iterdir()) if p.is_file()]

    @cached_property
    def taxa(self) -> TaxonTable:
        """The species this model knows, with their names."""
        from sdm.names import TaxonTable

        return TaxonTable.load(self.folder)

    def calibration(self, modalities: tuple[str, ...]) -> tuple[float, float]:
        """(scale, bias) that turn the cosine of a set of modalities into a probability."""
        entry = self.config["calibration"].get(calibration_key(modalities))
        if entry is None:
            raise ModelError(f"model {self.name!r} has no calibration for {calibration_key(modalities)}.")
        return float(entry["scale"]), float(entry["bias"])

    def pitch(self, modality: str) -> float:
        """Degrees between the places at which a modality is encoded; finer pixels interpolate."""
        return float(self.config[modality]["pitch"])

    @property
    def domain(self) -> tuple[float, float]:
        """(south, north) latitude in degrees between which the model was trained."""
        south, north = self.config["domain"]
        return float(south), float(north)

    def load(self, device: str = "cpu") -> Encoders:
        """The encoders on a device, shared by all callers in this process."""
        return _load(self, device)

    def species_embedding(self, resolution: Resolution) -> np.ndarray:
        """Unit embedding (dim,) float32 of a resolved name."""
        import torch

        from sdm.models.score import normalise

        encoders = self.load("cpu")
        try:
            with torch.inference_mode():
                return normalise(encoders.text.embed(resolution.taxon.lineage)).numpy()
        except KeyError:
            raise ModelError(f"model {self.name!r} has no vector for any rank of {resolution.taxon.name!r}.") from None


class Encoders:
    """The torch side of a model on one device: places in, `(N, dim)` unit vectors out."""

    def __init__(self, model: Model, device: str) -> None:
        import torch

        self.device = torch.device(device)
        try:
            vocabulary = (model.folder / "vocabulary.txt").read_text(encoding="utf-8").split("\n")
        except (OSError, ValueError) as error:
            raise ModelError(f"model {model.name!r}: vocabulary.txt cannot be read: {error}") from error
        # Without memory until the weights have been seen to fit: sizes in a config cost nothing.
        with torch.device("meta"):
            modules = build(model.config, vocabulary)
        _load_weights(model, modules)
        modules.eval().requires_grad_(False).to(self.device)
        self.location, self.satellite = modules["location"], modules["satellite"]
        self.environment, self.text = modules["environment"], modules["text"]

    def encode(self, modality: str, values: np.ndarray) -> torch.Tensor:
        """One batch of one modality -> (N, dim) unit vectors, float32 on the device.

        location: (N, 2) float64 degrees, (lon, lat), of a seasonal model (N, 3) with the month 1..12, 0 the
        whole year; satellite: (N, size, size, 3) uint8; environment: (N, inputs) float32, standardised.
        """
        import torch

        from sdm.models.score import normalise

        x = torch.from_numpy(values)
        if modality == "location":
            x = x.float()
        x = x.to(self.device, non_blocking=True)
        with torch.inference_mode(), self._precision():
            y = getattr(self, modality)(x)
        return normalise(y.float())

    def _precision(self):
        import torch

        # bf16 halves the time on a GPU; on a CPU it would cost accuracy and often time.
        return torch.autocast("cuda", dtype=torch.bfloat16, enabled=self.device.type == "cuda")


def build(config: dict, vocabulary: list[str], dropout: float = 0.0, env_dropout: float = 0.0) -> nn.ModuleDict:
    """The untrained modules that a config describes: location, satellite, environment, text."""
    from torch import nn

    from sdm.models.encoders.environment import EnvironmentEncoder
    from sdm.models.encoders.location import LocationEncoder
    from sdm.models.encoders.satellite import SatelliteEncoder
    from sdm.models.encoders.text import TaxonTower

    loc, sat, env, dim = config["location"], config["satellite"], config["environment"], config["dim"]
    shape = (loc["sigmas"], loc["features"], loc["width"], loc["depth"])
    return nn.ModuleDict(
        {
            "location": LocationEncoder(dim, *shape, dropout=dropout, season=loc.get("season", False)),
            "satellite": SatelliteEncoder(dim, sat["size"], sat["width"], sat["depth"], dropout=env_dropout),
            "environment": EnvironmentEncoder(dim, len(env["inputs"]), env["width"], env["depth"], dropout=env_dropout),
            "text": TaxonTower([t for t in vocabulary if t], dim),
        }
    )


def list_models() -> list[Model]:
    """The bundled models, the usual one first."""
    return [Model.open(path) for path in bundled().values()]


def bundled() -> dict[str, Path]:
    """Folders of the bundled models by name: the usual one first, the others sorted."""
    found = sorted(resource_folder("models").iterdir(), key=lambda p: (p.name != DEFAULT, p.name))
    return {p.name: p for p in found if (p / "config.json").is_file()}


def _find(name: str | Path) -> Path:
    path = Path(name)
    try:
        if path.is_dir() and (path / "config.json").exists():
            return path.resolve()
    except (OSError, ValueError):  # a name too long, or with a null byte
        pass
    known = bundled()
    if str(name) in known:
        return known[str(name)]
    raise ModelError(
        f"model {str(name)[:120]!r} is neither a bundled model ({', '.join(known) or 'none'}) nor a folder "
        "with a config.json; see --list-models."
    )


def _load_weights(model: Model, modules: nn.ModuleDict) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(model.folder / "model.safetensors")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"model {model.name!r}: model.safetensors cannot be read: {error}") from error
    expected = modules.state_dict()
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or extra:
        raise ModelError(
            f"model {model.name!r}: weights do not fit config.json (missing {missing[:3]}, extra {extra[:3]})."
        )
    for key, value in state.items():
        if value.shape != expected[key].shape:
            raise ModelError(
                f"model {model.name!r}: weight {key} has shape {tuple(value.shape)}, "
                f"config.json says {tuple(expected[key].shape)}."
            )
        if not value.isfinite().all():
            raise ModelError(f"model {model.name!r}: weight {key} holds numbers that are not finite.")
    # The text table ships in half precision to keep the wheel small.
    modules.load_state_dict({k: v.to(expected[k].dtype) for k, v in state.items()}, assign=True)


_cache: dict[tuple[str, str, str], Encoders] = {}


_lock = threading.Lock()


def _load(model: Model, device: str) -> Encoders:
    """One copy of the weights per process and device, however many threads and tiles ask."""
    key = (str(model.folder), model.digest, device)
    with _lock:
        if key not in _cache:
            _cache[key] = Encoders(_found_here(model), device)
        return _cache[key]


def _found_here(model: Model) -> Model:
    """The model where this machine has it: a worker may hold the bundled ones in another folder."""
    if (model.folder / "model.safetensors").is_file():
        return model
    folder = bundled().get(model.folder.name)
    found = Model.open(folder) if folder else None
    if found is None or found.digest != model.digest:
        raise ModelError(
            f"model {model.name!r} is not on {socket.gethostname()}: no folder {str(model.folder)!r}, and no bundled "
            f"model with the hash {model.digest}; put it there, or on a file system that all machines share."
        )
    return found

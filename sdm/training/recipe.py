"""A training recipe: everything that decides what comes out, in one TOML file."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path

from sdm.errors import RequestError


@dataclass(frozen=True)
class Data:
    """Where the range data lie (folders or files, relative to where the command is run)."""

    phylacine: str = ""
    """Folder with `phylacine_current_ranges.npz`."""
    trees: str = ""
    """GeoParquet of range polygons, columns `species` and geometry; empty: none."""
    points_per_cell: int = 12
    points_per_cell_trees: int = 24
    points_per_cell_sea: int = 4


@dataclass(frozen=True)
class Architecture:
    """Sizes of the encoders; see `sdm.encoders`."""

    dim: int = 256
    location: dict = field(default_factory=dict)
    satellite: dict = field(default_factory=dict)
    environment: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Optimiser:
    """How the weights are found."""

    steps: int = 4000
    batch: int = 1024
    learning_rate: float = 2e-3
    text_learning_rate: float = 5e-3
    weight_decay: float = 1e-2
    dropout: float = 0.0
    env_dropout: float = 0.0
    ema: float = 0.995
    land_share: float = 0.6
    tree_weight: float = 2.0
    """How much likelier a cell with tree data is drawn than other land."""
    species_dropout: float = 0.1
    genus_dropout: float = 0.2
    subset_shares: dict = field(default_factory=dict)
    """Share of places scored by each set of modalities, e.g. {"location" = 0.1}; the rest by all."""
    seed: int = 0


@dataclass(frozen=True)
class Evaluation:
    """What is held out while developing."""

    block_degrees: float = 10.0
    held_out: float = 0.2
    seed: int = 7
    min_cells: int = 5


@dataclass(frozen=True)
class Recipe:
    """One recipe file, checked."""

    name: str
    title: str
    version: str
    licence: str
    data: Data
    architecture: Architecture
    optimiser: Optimiser
    evaluation: Evaluation
    path: Path

    @classmethod
    def read(cls, path: str | Path) -> Recipe:
        """Read and check a recipe. Raises RequestError naming the key that is wrong."""
        path = Path(path)
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise RequestError(f"recipe {str(path)!r} cannot be read: {error.strerror}.") from error
        except tomllib.TOMLDecodeError as error:
            raise RequestError(f"recipe {str(path)!r} is not valid TOML: {error}.") from error
        sections = {"data": Data, "architecture": Architecture, "optimiser": Optimiser, "evaluation": Evaluation}
        values: dict = {"path": path}
        for key in ("name", "title", "version", "licence"):
            if not isinstance(raw.get(key), str):
                raise RequestError(f"recipe {str(path)!r} needs the text {key!r} at its top.")
            values[key] = raw[key]
        for key, kind in sections.items():
            section = raw.get(key, {})
            known = {f.name for f in fields(kind)}
            unknown = sorted(set(section) - known)
            if unknown:
                names = ", ".join(sorted(known))
                raise RequestError(f"recipe {str(path)!r}: [{key}] has the unknown key {unknown[0]!r}; known: {names}.")
            section = {k: tuple(v) if isinstance(v, list) else v for k, v in section.items()}
            values[key] = kind(**section)
        return cls(**values)
